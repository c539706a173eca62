"""What a run was made from, and so whether it has to be run again.

hashes/<run>.json, there only while the run is done, holds hashes of its parameters, its code and
the contents of its inputs and outputs. A rerun follows from those alone, never from a file's time.
A fingerprint: {"sha256" of the content, "files": name → [size, mtime_ns], "each": name → hash}.
"""

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterable
from pathlib import Path

from tdbook.runs import machine, notebooks, parameters, sweeps
from tdbook.runs.notebooks import notebook_of
from tdlib import files

HARD_SET = "hard_set.json"  # of what runs write, this alone may be changed by hand
QUICK = {"smoke", "tiny"}  # profiles in which changed code repeats a run; elsewhere it is noted
ONE_THREAD = QUICK | {"small"}  # models so small that two runs of a thread each beat one of two
KEPT = ("parameters", "code", "inputs", "outputs")  # of hashes/<run>.json
EMPTY = {"inputs": {}, "outputs": {}}  # where there is none
AFTER, OLDER = "after ", "made by older code"
CODE = Path(__file__).parents[2]


def load(out: Path, run: str) -> dict | None:
    """hashes/<run>.json; None where there is none, or a broken one."""
    return files.whole(out / "hashes" / f"{run}.json", *KEPT)


def makers(out: Path) -> dict[str, tuple[str, dict]]:
    """Output of a finished run → the run, and the fingerprint then; if two wrote it, the later."""
    times: dict[str, int] = {}
    for path in (out / "hashes").glob("*.json"):
        with contextlib.suppress(FileNotFoundError):  # a run that begins anew meanwhile
            times[path.stem] = path.stat().st_mtime_ns
    made: dict[str, tuple[str, dict]] = {}
    for run in sorted(sorted(times), key=times.get):
        made |= {path: (run, was) for path, was in (load(out, run) or EMPTY)["outputs"].items()}
    return dict(sorted(made.items(), key=lambda item: item[1][0]))


def made_by_others(out: Path, run: str) -> dict[str, dict]:
    """What the folder's other finished runs wrote → fingerprint."""
    return {name: was for name, (maker, was) in makers(out).items() if maker != run}


def inputs(out: Path, run: str, values: dict) -> dict[str, Path]:
    """What a run reads, as its parameters name it → where that is."""
    inside = notebooks.reads(run, values, [*made_by_others(out, run)])
    if notebook_of(run) == notebooks.EVIDENCE:  # it keeps the losses of models: weights may go
        inside = [p for p in inside if p == "tokens" or [*(out / p).glob("*.safetensors")]]
    outside = parameters.external(notebook_of(run), values)
    places = {path: out / path for path in inside} | {p: parameters.ROOT / p for p in outside}
    return places | sweeps.results(out, values.get("sweeps", ""))


def input_hashes(out: Path, run: str, places: dict[str, Path], known: dict | None = None) -> dict:
    """Fingerprints of what a run reads. What another run wrote, but a hard set, keeps the one that
    it had then. `known` ones are believed where no time moved."""
    made, known = made_by_others(out, run) | {HARD_SET: None}, known or {}
    return {n: made.get(n) or fingerprint(path, known.get(n)) for n, path in places.items()}


def outputs(out: Path, run: str, values: dict) -> dict[str, Path]:
    return {path: out / path for path in notebooks.writes(run, values, [*made_by_others(out, run)])}


def judge(jobs: dict, asked: Iterable[str], before: Iterable[str] = ()) -> dict[str, str]:
    """Why each run of `asked`, and each that these need, must be made; "" where it is current.
    `jobs`: name → graph.BookRun; those in `before` count as current. A run "after X, if that comes
    out new" is judged again once X is made."""
    reasons: dict[str, str] = {}

    def judge_one(name: str) -> str:
        if name in reasons:
            return reasons[name]
        job, reasons[name] = jobs[name], ""
        if name in before:
            return ""
        again = [n for n in job.needs if n in jobs and judge_one(n)]
        pending = {path for n in again for path in jobs[n].writes}
        reasons[name] = why(job.out, job.run, job.parameters, pending)
        if again and not reasons[name]:
            reasons[name] = f"{AFTER}{again[0]}, if that comes out new"
        return reasons[name]

    for name in asked:
        judge_one(name)
    return {name: reasons[name] for name in jobs if name in reasons}


def why(out: Path, run: str, values: dict, pending: Collection[str] = ()) -> str:
    """Why a run has to be made; "" where parameters, inputs, outputs and, in quick profiles, code
    are as they were. `pending` inputs are about to be made again, and so no reason yet."""
    kept, made = load(out, run), out / "results" / f"{run}.json"
    for path, keys in ((out / "hashes" / made.name, KEPT), (made, ("parameters",))):
        if path.exists() and files.whole(path, *keys) is None:
            return f"{path.parent.name}/{path.name} is broken"
    if kept is None or not made.exists():
        return "not finished" if (out / "state" / f"{run}.json").exists() else "new"
    if values["redo"]:
        return "to be repeated"
    before, now = decisive(files.record(made)["parameters"]), decisive(values)
    if changed := [name for name in before | now if before.get(name, ...) != now.get(name, ...)]:
        return "; ".join(f"{n} was {before.get(n)!r}, is {now.get(n)!r}" for n in changed)
    if values["profile"] in QUICK and kept["code"] != of_code(notebook_of(run)):
        return OLDER
    now, read = inputs(out, run, values), kept["inputs"]
    if other := sorted((now.keys() ^ read.keys()) - {*pending}):
        return f"reads {', '.join(other[:3])} {'now' if other[0] in now else 'no longer'}"
    now = {name: path for name, path in now.items() if name not in pending}
    places = outputs(out, run, values) | now
    if gone := [name for name, path in places.items() if not path.exists()]:
        return f"{', '.join(gone)} is gone"
    for name, found in input_hashes(out, run, now, read).items():
        if found["sha256"] != read[name]["sha256"]:
            return f"{name} has changed"
    return ""


def damage(out: Path, run: str, full: bool = False, reads: Iterable | None = None) -> list[str]:
    """A line, with the remedy, for each file that a finished run wrote, or others wrote of what it
    `reads`, and that differs now. `full` reads every file, else those whose size or time moved.
    No damage: files laid beside, outputs removed whole, a hard set chosen by hand."""
    lines = []
    for name, (maker, was) in makers(out).items():
        place, asked = out / name, maker == run if reads is None else maker != run and name in reads
        if not asked or not place.exists():
            continue
        now, what = fingerprint(place, None if full else was, was["files"]), ""
        if name == HARD_SET and now["files"] != was["files"]:
            what = "" if chosen(place) is not None else f"{name} is no whole choice of windows"
        elif now["sha256"] != was["sha256"]:
            file = next((f for f, own in was["each"].items() if now["each"].get(f) != own), ".")
            what = f"{Path(name, file)} {'has other content' if file in now['each'] else 'is gone'}"
        if what:
            lines.append(f"{what}: {maker} wrote it otherwise: REDO={maker} makes it again")
    return lines


def chosen(path: Path) -> dict | None:
    """A hard set as its file has it; None where that is no choice of windows."""
    choice = files.whole(path, "windows_K", "threshold", "share")
    if choice is None or not isinstance(rows := choice["windows_K"], list):
        return None
    whole = all(type(row) is int and row >= 0 for row in rows) and rows == sorted({*rows})
    return choice if whole else None


def fingerprint(path: Path, known: dict | None = None, names: Iterable[str] | None = None) -> dict:
    """Of a file or folder, or of `names` in it; `known` is believed where no size or time moved."""
    if names is None:  # but for hidden ones, and a model's card
        below = sorted(machine.below(path)) if path.is_dir() else [path]
        hidden = [f for f in below if f != path and (f.name[0] == "." or f.name == "README.md")]
        names = [str(f.relative_to(path)) for f in below if f not in hidden]
    stats = {name: (path / name).stat() for name in names if (path / name).is_file()}
    stats = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
    if known and known["files"] == stats:
        return known
    hashes = {name: _content(path / name) for name in stats}
    digest = hashlib.sha256(b"".join(f"{n}\0".encode() + own for n, own in hashes.items()))
    each = {name: own.hex()[:16] for name, own in hashes.items()}
    return {"sha256": digest.hexdigest(), "files": stats, "each": each}


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def of_code(notebook: str) -> str:
    """Of both packages with their tables, and of the cells of the notebook."""
    digest = hashlib.sha256()
    for path in sorted(p for place in ("tdlib", "tdbook") for p in (CODE / place).rglob("*")):
        if path.suffix in {".py", ".yaml", ".toml", ".tsv"}:
            digest.update(path.read_bytes())
    path = parameters.ROOT / "notebooks" / f"{notebook}.ipynb"
    cells = json.loads(path.read_text("utf8"))["cells"] if path.exists() else []
    digest.update("\0".join("".join(cell["source"]) for cell in cells).encode())
    return digest.hexdigest()


def decisive(values: dict) -> dict:
    """Without the parameters that change no result."""
    return {name: value for name, value in values.items() if name not in parameters.VOLATILE}


def of(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
