"""What a run reads and writes, what it was made from, and so whether it has to be run again.

hashes/<run>.json, there only while the run is done, holds hashes of its parameters, its code and
the contents of its inputs and outputs. A rerun follows from those alone, never from a file's time.
"""

import hashlib
import json
from pathlib import Path

from tdlib import parameters, sweeps
from tdlib.files import below
from tdlib.parameters import notebook_of

# paths in the run folder; 04 and 07 besides read what the others made; 04 merges their adapters
READS = {
    "00_teacher": [],
    "01_distill": ["tokens", "models/{teacher}", "models/{beside}"],
    "02_hard_set": ["tokens", "models/{teacher}", "models/{base}"],
    "03_lora": ["tokens", "models/{teacher}", "models/{base}", "{hard_set}", "scores/{scores}"],
    "04_merge_eval": ["tokens"],
    "05_progressive": ["tokens", "models/{teacher}"],
    "06_inference": ["tokens"],
    "07_evidence": ["tokens"],
}
WRITES = {
    "00_teacher": ["tokens", "models/teacher"],
    "01_distill": ["models/{student}"],
    "02_hard_set": ["scores/{run}.npy", "hard_set.json"],
    "03_lora": ["adapters/{adapter}"],
    "04_merge_eval": [],
    "05_progressive": ["models/150m", "models/75m", "models/75m-direct"],
}
# change no result
VOLATILE = {"redo", "device", "out", "checkpoint_minutes", "micro_windows", "max_skipped"}
VOLATILE |= {"activation_checkpointing", "deterministic", "processes"}
VOLATILE |= {"after_checkpoint", "after_run", "wandb"}
QUICK = {"smoke", "tiny"}  # profiles in which changed code repeats a run; elsewhere it is noted
ONE_THREAD = QUICK | {"small"}  # models so small that two runs of a thread each beat one of two
SAMPLED = 2**30  # bytes; of a larger file 64 MiB are hashed


def reads(run: str, values: dict, made: list[str]) -> list[str]:
    """Paths in the run folder; `made` is what the other runs of the folder write."""
    compared = [path for path in made if path.startswith(("models/", "adapters/"))]
    values = {"beside": "", "hard_set": "", "scores": ""} | values
    if run.startswith("03"):  # it replays 02's choice, or makes its own from 02's scores
        values |= {"hard_set": ""} if values.get("share") is not None else {}
        asked = values.get("share") is not None or values.get("windows") == "easiest"
        values |= {} if asked else {"scores": ""}
    own = [pattern.format(**values) for pattern in READS.get(notebook_of(run), [])]
    own = [path for path in own if path and not path.endswith("/")]
    named = (values.get(key, "") for key in ("models", "compare", "unseen_teacher"))  # 06, 02
    own += [f"models/{name}" for names in named for name in names.split()]
    return own + (compared if run.startswith(("04", "07")) else [])


def writes(run: str, values: dict, made: list[str]) -> list[str]:
    adapters = [Path(path).name for path in made if path.startswith("adapters/")]
    if values.get("trains") == "weights":
        return [f"models/{values['adapter']}"]
    own = [pattern.format(**values) for pattern in WRITES.get(notebook_of(run), [])]
    own += [f"exports/{name}" for name in values.get("models", "").split()]  # 06
    return own + ([f"models/{name}-merged" for name in adapters] if run.startswith("04") else [])


def load(out: Path, run: str) -> dict | None:
    path = out / "hashes" / f"{run}.json"
    return json.loads(path.read_text(encoding="utf8")) if path.exists() else None


def made_by_others(out: Path, run: str) -> dict[str, dict]:
    """What the folder's other finished runs wrote → fingerprint; 06 makes nothing to compare."""
    names = sorted(path.stem for path in (out / "hashes").glob("*.json"))
    others = [name for name in names if name != run and not name.startswith("06")]
    return {path: found for name in others for path, found in load(out, name)["outputs"].items()}


def inputs(out: Path, run: str, values: dict) -> dict[str, Path]:
    """What a run reads, as its parameters name it → where that is."""
    inside = {path: out / path for path in reads(run, values, list(made_by_others(out, run)))}
    given = parameters.external(notebook_of(run), values)
    swept = sweeps.results(out, values.get("sweeps", ""))
    return inside | {path: parameters.ROOT / path for path in given} | swept


def outputs(out: Path, run: str, values: dict) -> dict[str, Path]:
    return {path: out / path for path in writes(run, values, list(made_by_others(out, run)))}


def record(out: Path, run: str, values: dict, code: str, inputs: dict[str, dict]) -> dict:
    """What hashes/<run>.json holds; `inputs` are fingerprints taken before the run."""
    made = {path: fingerprint(where) for path, where in outputs(out, run, values).items()}
    return {"parameters": of_parameters(values), "code": code, "inputs": inputs, "outputs": made}


def is_current(out: Path, run: str, values: dict) -> bool:
    """Whether a run is done and need not be repeated."""
    return not why(out, run, values)


def why(out: Path, run: str, values: dict) -> str:
    """Why a run has to be made, in words; "" for one that is done: same parameters, inputs of the
    same content, outputs there (a hard set may be changed by hand) and, in quick profiles, the same
    code."""
    kept, made = load(out, run), out / "results" / f"{run}.json"
    if kept is None or not made.exists():
        return "not finished" if (out / "state" / f"{run}.json").exists() else "new"
    if values["redo"]:
        return "to be repeated"
    if kept["parameters"] != of_parameters(values):
        before = json.loads(made.read_text(encoding="utf8"))["parameters"]
        return (
            "; ".join(
                f"{name} was {before.get(name)!r}, is {value!r}"
                for name, value in values.items()
                if name not in VOLATILE and before.get(name, ...) != value
            )
            or "other parameters"
        )
    if values["profile"] in QUICK and kept["code"] != of_code(notebook_of(run)):
        return "made by older code"
    gone = [name for name, path in outputs(out, run, values).items() if not path.exists()]
    if gone:
        return f"{', '.join(gone)} is gone"
    return _changed(inputs(out, run, values), kept["inputs"])


def _changed(found: dict[str, Path], kept: dict[str, dict]) -> str:
    """Which input is not the one a run was made from; "" for none."""
    if other := sorted(found.keys() ^ kept.keys()):
        return f"reads {', '.join(other[:3])} {'now' if other[0] in found else 'no longer'}"
    changed = (
        name for name, path in found.items()
        if not path.exists() or fingerprint(path, kept[name])["sha256"] != kept[name]["sha256"]
    )  # fmt: skip
    name = next(changed, "")
    return name and f"{name} {'has changed' if found[name].exists() else 'is gone'}"


def older_code(out: Path, run: str) -> bool:
    """Whether a finished run was made by other code than today's."""
    path = Path(out) / "results" / f"{run}.json"
    made = json.loads(path.read_text(encoding="utf8")) if path.exists() else None
    return made is not None and made["code"] != of_code(made["notebook"])


def fingerprint(path: Path, known: dict | None = None) -> dict:
    """{"sha256" of the content of a file or folder, "files": {name: [size, mtime_ns]}}. Where every
    size and time is the known one, the known hash is believed and nothing is read."""
    found = sorted(below(path)) if path.is_dir() else [path]
    found = [file for file in found if file.is_file() and not file.name.startswith(".")]
    found = [file for file in found if file == path or file.name != "README.md"]  # a model's card
    files = {str(file.relative_to(path)): file.stat() for file in found}
    files = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in files.items()}
    if known and known["files"] == files:
        return known
    digest = hashlib.sha256()
    for name, file in zip(files, found, strict=True):
        digest.update(f"{name}\0".encode() + _content(file))
    return {"sha256": digest.hexdigest(), "files": files}


def _content(path: Path) -> bytes:
    """Hash of a file; of a large one, of its size and 64 evenly spaced MiB."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= SAMPLED:
            return hashlib.file_digest(file, "sha256").digest()
        digest = hashlib.sha256(str(size).encode())
        for i in range(64):
            file.seek((size - 2**20) * i // 63)
            digest.update(file.read(2**20))
    return digest.digest()


def of_code(notebook: str) -> str:
    """Of tdlib, its word lists included, and of the notebook's cells without their outputs."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.iterdir()):
        if path.suffix in {".py", ".yaml"}:
            digest.update(path.read_bytes())
    path = parameters.ROOT / "notebooks" / f"{notebook}.ipynb"
    cells = json.loads(path.read_text(encoding="utf8"))["cells"] if path.exists() else []
    digest.update("\0".join("".join(cell["source"]) for cell in cells).encode())
    return digest.hexdigest()


def of_parameters(values: dict) -> str:
    return of({name: value for name, value in values.items() if name not in VOLATILE})


def of(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
