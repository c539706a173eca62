"""What a run reads and writes, what it was made from, and so whether it has to be run again.

hashes/<run>.json, there only while the run is done, holds hashes of its parameters, its code and
the contents of its inputs and outputs. A rerun follows from those alone, never from a file's time.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from tdbook.runs import disk, parameters, sweeps
from tdbook.runs.parameters import notebook_of
from tdlib import files

# What each reads and writes in the run folder; a parameter may name several models, or none. 04 and
# 07 also read what the other runs made, and 04 merges their adapters.
NOTEBOOKS = {
    "00_teacher": ("", "tokens models/teacher"),
    "01_distill": ("tokens models/{teacher} models/{beside}", "models/{student}"),
    "02_hard_set": (
        "tokens models/{teacher} models/{base} models/{compare} models/{unseen_teacher}",
        "scores/{run}.npy hard_set.json",
    ),
    "03_lora": (
        "tokens models/{teacher} models/{base} {hard_set} scores/{scores}",
        "adapters/{adapter}",
    ),
    "04_merge_eval": ("tokens", ""),
    "05_progressive": ("tokens models/{teacher}", "models/150m models/75m models/75m-direct"),
    "06_inference": ("tokens models/{models}", "exports/{models}"),
    "07_evidence": ("tokens", ""),
}
# change no result
VOLATILE = {
    *"""redo device out checkpoint_minutes micro_windows max_skipped deterministic processes
 activation_checkpointing after_checkpoint after_run wandb""".split()
}
QUICK = {"smoke", "tiny"}  # profiles in which changed code repeats a run; elsewhere it is noted
ONE_THREAD = QUICK | {"small"}  # models so small that two runs of a thread each beat one of two
KEPT = ("parameters", "code", "inputs", "outputs")  # of hashes/<run>.json
EMPTY = {"inputs": {}, "outputs": {}}  # where there is none
HARD_SET = "hard_set.json"  # of what runs write, this alone may be changed by hand
BY_A_RUN = r"by [\w.+-]+'s parameters"  # how its words begin where a run chose it
SEEN = ".looked.json"  # in a run folder: outputs whose times moved and whose content did not
AFTER, OLDER = "after ", "made by older code"
# hashes of earlier code (e5f1020, by notebook) that makes today's numbers of sound text and tokens:
# its nights are not stale. Empty this when a number changes.
SAME_NUMBERS = """2c2811566976 60e546bf5b31 e9c23c7f8d89 4cc86c119eed 6b7737ec0689 818620973981
 5a8e5e2a1fa1 ef23690959da""".split()
CODE = Path(__file__).parents[2]
SAMPLED = 2**30  # bytes; of a larger file 64 MiB are hashed


def _paths(patterns: str, values: dict) -> list[str]:
    """Parameters filled in: one path for each name of several, none for an empty one."""
    found = []
    for pattern in patterns.split():
        key = pattern.partition("{")[2].partition("}")[0]
        names = values.get(key, "").split() if key else [""]
        found += [pattern.replace(f"{{{key}}}", name) for name in names]
    return found


def reads(run: str, values: dict, made: list[str]) -> list[str]:
    """Paths in the run folder; `made` is what the other runs of the folder write."""
    models = [path for path in made if path.startswith(("models/", "adapters/"))]
    if run.startswith("03"):  # it replays 02's choice, or makes its own from 02's scores
        own = values.get("share") is not None
        values = values | ({"hard_set": ""} if own else {})
        values |= {} if own or values.get("windows") == "easiest" else {"scores": ""}
    own = _paths(NOTEBOOKS[notebook_of(run)][0], values)
    return own + (models if run.startswith(("04", "07")) else [])


def writes(run: str, values: dict, made: list[str]) -> list[str]:
    """The same of what it writes."""
    if values.get("trains") == "weights":
        return [f"models/{values['adapter']}"]
    adapters = [Path(path).name for path in made if path.startswith("adapters/")]
    merged = [f"models/{name}-merged" for name in adapters] if run.startswith("04") else []
    return _paths(NOTEBOOKS[notebook_of(run)][1], values) + merged


def load(out: Path, run: str) -> dict | None:
    """What a finished run left; None where there is none, or a broken one."""
    return files.whole(out / "hashes" / f"{run}.json", *KEPT)


def makers(out: Path) -> dict[str, tuple[str, dict]]:
    """What finished runs wrote → the run, and the fingerprint it had then; where two wrote the
    same, the later one, as after a run got another name."""
    times = {}
    for path in sorted((out / "hashes").glob("*.json")):
        with contextlib.suppress(FileNotFoundError):  # a run that begins anew meanwhile
            times[path.stem] = path.stat().st_mtime_ns
    made: dict[str, tuple[str, dict]] = {}
    for run in sorted(times, key=times.get):
        made |= {path: (run, was) for path, was in (load(out, run) or EMPTY)["outputs"].items()}
    return dict(sorted(made.items(), key=lambda item: item[1][0]))


def made_by_others(out: Path, run: str) -> dict[str, dict]:
    """What the folder's other finished runs wrote → fingerprint; 06 makes nothing to compare."""
    found = makers(out).items()
    return {n: was for n, (maker, was) in found if maker != run and not maker.startswith("06")}


def inputs(out: Path, run: str, values: dict) -> dict[str, Path]:
    """What a run reads, as its parameters name it → where that is."""
    inside = {path: out / path for path in reads(run, values, list(made_by_others(out, run)))}
    given = parameters.external(notebook_of(run), values)
    swept = sweeps.results(out, values.get("sweeps", ""))
    return inside | {path: parameters.ROOT / path for path in given} | swept


def input_hashes(out: Path, run: str, found: dict[str, Path]) -> dict[str, dict]:
    """Fingerprints of what a run reads: of what another run wrote, the one it had then."""
    made = made_by_others(out, run)
    return {
        name: made[name] if _own(path, made.get(name)) else fingerprint(path, made.get(name))
        for name, path in found.items()
    }


def outputs(out: Path, run: str, values: dict) -> dict[str, Path]:
    return {path: out / path for path in writes(run, values, list(made_by_others(out, run)))}


def record(out: Path, run: str, values: dict, code: str, inputs: dict[str, dict]) -> dict:
    """What hashes/<run>.json holds; `inputs` are fingerprints taken before the run."""
    made = {path: fingerprint(where) for path, where in outputs(out, run, values).items()}
    return {"parameters": of_parameters(values), "code": code, "inputs": inputs, "outputs": made}


def judge(
    jobs: dict, asked: Iterable[str], before: Iterable[str] = (), full: bool = False
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The one answer that all who ask get, for the runs asked for and those above them, in the
    order of `jobs` (name → graph.BookRun): why each is to be made, "" where it is current; and the
    damage, a line each, of those that are not to be made for certain. `before` are taken as they
    are. "after X, if that comes out new": to be judged again once X is made."""
    reasons: dict[str, str] = {}

    def judge_one(name: str) -> str:
        if name in reasons:
            return reasons[name]
        one, reasons[name] = jobs[name], ""
        if name in before:
            return ""
        page = one.sweep and one.notebook == "04_merge_eval"  # it compares the sweep's points
        points = [n for n, o in jobs.items() if page and o.sweep == one.sweep and o is not one]
        again = [n for n in (*one.needs, *points) if n in jobs and judge_one(n)]
        pending = {path for n in again for path in jobs[n].writes}
        reasons[name] = why(one.out, one.run, one.parameters, pending)
        if again and not reasons[name]:
            more = " …" * (len(again) > 2)
            reasons[name] = f"{AFTER}{', '.join(again[:2])}{more}, if that comes out new"
        return reasons[name]

    for name in asked:
        judge_one(name)
    reasons = {name: reasons[name] for name in jobs if name in reasons}
    keep = [name for name, reason in reasons.items() if not reason or reason.startswith(AFTER)]
    hurt = {name: damage(jobs[name].out, jobs[name].run, full) for name in keep}
    return reasons, {name: lines for name, lines in hurt.items() if lines}


def is_current(out: Path, run: str, values: dict) -> bool:
    """Whether a run is done and need not be repeated."""
    return not why(out, run, values)


def why(out: Path, run: str, values: dict, pending: Collection[str] = ()) -> str:
    """Why a run has to be made, in words; "" for one that is done: same parameters, inputs of the
    same content, outputs there (a hard set may be changed by hand) and, in quick profiles, the same
    code. `pending`: inputs that are about to be made again, and so no reason yet."""
    kept, made = load(out, run), out / "results" / f"{run}.json"
    for path, keys in ((out / "hashes" / made.name, KEPT), (made, ("parameters",))):
        if path.exists() and files.whole(path, *keys) is None:
            return f"{path.parent.name}/{path.name} is broken"
    if kept is None or not made.exists():
        return "not finished" if (out / "state" / f"{run}.json").exists() else "new"
    if values["redo"]:
        return "to be repeated"
    if kept["parameters"] != of_parameters(values):
        before, now = files.record(made)["parameters"], decisive(values)
        changed = [name for name in now if before.get(name, ...) != now[name]]
        words = [f"{name} was {before.get(name)!r}, is {now[name]!r}" for name in changed]
        return "; ".join(words) or "other parameters"
    if values["profile"] in QUICK and kept["code"] != of_code(notebook_of(run)):
        return OLDER
    if gone := [name for name, path in outputs(out, run, values).items() if not path.exists()]:
        return f"{', '.join(gone)} is gone"
    return _changed(out, run, values, kept["inputs"], pending)


def _changed(out: Path, run: str, values: dict, kept: dict, pending: Collection[str]) -> str:
    """Which input is not the one a run was made from; "" for none."""
    now, made = inputs(out, run, values), made_by_others(out, run)
    if other := sorted((now.keys() ^ kept.keys()) - {*pending}):
        return f"reads {', '.join(other[:3])} {'now' if other[0] in now else 'no longer'}"
    for name, path in ((name, path) for name, path in now.items() if name not in pending):
        if not path.exists():
            return f"{name} is gone"
        if not _same(path, kept[name], made.get(name)):
            return f"{name} has changed"
    return ""


def _same(path: Path, kept: dict, made: dict | None) -> bool:
    """Whether an input is what a run was made from. What another run wrote is known by its record:
    files laid beside it later, or before that run read it, change nothing."""
    if not _own(path, made):
        return fingerprint(path, kept)["sha256"] == kept["sha256"]
    if made["sha256"] == kept["sha256"]:
        return True
    more = made["files"].keys() <= kept["files"].keys()
    return more and fingerprint(path, kept, kept["files"])["sha256"] == kept["sha256"]


def _own(path: Path, made: dict | None) -> bool:
    """Whether a run of the book answers for what lies here, and nobody else: a hard set may be
    chosen by hand, and files that are links are their owner's."""
    return (
        made is not None
        and path.name != HARD_SET
        and not any((path / name).is_symlink() for name in made["files"] if name != ".")
    )


def older_code(out: Path, run: str) -> bool:
    """Whether a finished run was made by other code than today's, which may have other numbers."""
    made = files.whole(Path(out) / "results" / f"{run}.json", "code", "notebook")
    if made is None or str(made["code"])[:12] in SAME_NUMBERS:
        return False
    return made["code"] != of_code(made["notebook"])


def damage(out: Path, run: str, full: bool = False) -> list[str]:
    """What a finished run wrote and is otherwise now, a line each: the file, how, and what makes it
    again. Size and time are looked at; content where a time moved, or always in a `full` look. What
    was laid beside is none of it, and what was removed whole is gone, not damaged."""
    seen, remedy = files.whole(out / SEEN) or {}, f"REDO={run} makes it again"
    made = makers(out) if (out / "hashes" / f"{run}.json").exists() else {}
    own = {n: was for n, (maker, was) in made.items() if maker == run and (out / n).exists()}
    hurt = (_hurt(out, name, was, seen.get(name), full) for name, was in own.items())
    return [f"{what}: {run} wrote it otherwise: {remedy}" for what in hurt if what]


def input_damage(out: Path, run: str, values: dict) -> list[str]:
    """The damage of what a run reads of other runs."""
    made, read = makers(out), inputs(out, run, values)
    others = {made[name][0]: None for name in read if name in made and made[name][0] != run}
    starts = tuple(f"{name}{end}" for name in read for end in " /")
    return [line for other in others for line in damage(out, other) if line.startswith(starts)]


def _hurt(out: Path, name: str, was: dict, seen: dict | None, full: bool) -> str:
    """The first file of an output that is not as it was written, and how; "" for none."""
    place, stats = out / name, {}
    for file, (size, _) in was["files"].items():
        shown = name if file == "." else f"{name}/{file}"
        if name != HARD_SET and (place / file).is_symlink() and file != ".":
            return ""  # its owner's
        if not (place / file).is_file():
            return f"{shown} is gone"
        stat = (place / file).stat()
        stats[file] = [stat.st_size, stat.st_mtime_ns]
        if stat.st_size != size and name != HARD_SET:
            return f"{shown} has {stat.st_size:,} bytes, had {size:,}"
    still = stats == was["files"]
    if not full and (still or seen == {"sha256": was["sha256"], "files": stats}):
        return ""
    if name == HARD_SET and not still:
        return "" if chosen(place) is not None else f"{name} is no whole choice of windows"
    now, each = fingerprint(place, names=was["files"]), was.get("each", {})
    if now["sha256"] == was["sha256"]:
        if not still:  # a copied folder: the next look reads nothing
            _remember(out, name, {"sha256": was["sha256"], "files": stats})
        return ""
    other = [file for file in each if now["each"][file] != each[file]]
    other += [file for file in stats if stats[file] != was["files"][file]]
    inside = f"/{other[0]}" if other and other[0] != "." else ""
    return f"{name}{inside} has other content"


def _remember(out: Path, name: str, found: dict) -> None:
    with contextlib.suppress(OSError):  # a folder that may only be read
        seen = (files.whole(out / SEEN) or {}) | {name: found}
        files.write_whole(out / SEEN, json.dumps(seen).encode())


def chosen(path: Path) -> dict | None:
    """A hard set as its file has it; None where that is no choice of windows."""
    choice = files.whole(path, "windows_K", "threshold", "share")
    rows = choice and choice["windows_K"]
    if not isinstance(rows, list) or any(type(i) is not int for i in rows):
        return None
    numbers = all(type(choice[key]) in (int, float) for key in ("threshold", "share"))
    return choice if numbers and rows == sorted({*rows}) and min(rows, default=0) >= 0 else None


def by_hand(path: Path) -> bool:
    """Whether a hard set was chosen by a person, in the explorer or elsewhere."""
    choice = chosen(path)
    return choice is not None and not re.match(BY_A_RUN, choice.get("words", ""))


def fingerprint(path: Path, known: dict | None = None, names: Iterable[str] | None = None) -> dict:
    """{"sha256" of the content of a file or folder, "files": {name: [size, mtime_ns]}, "each": that
    of every file}; of these `names` alone, where given. Where every size and time is the known one,
    the known hash is believed and nothing is read."""
    if names is None:
        found = sorted(disk.below(path)) if path.is_dir() else [path]
        found = [file for file in found if file.is_file() and not file.name.startswith(".")]
        found = [file for file in found if file == path or file.name != "README.md"]  # its card
    else:
        found = [path / name for name in names if (path / name).is_file()]
    stats = {str(file.relative_to(path)): file.stat() for file in found}
    stats = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
    if known and known["files"] == stats:
        return known
    digest, each = hashlib.sha256(), {}
    for name, file in zip(stats, found, strict=True):
        own = _content(file)
        each[name] = own.hex()[:16]
        digest.update(f"{name}\0".encode() + own)
    return {"sha256": digest.hexdigest(), "files": stats, "each": each}


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
    """Of both packages, their word lists included, and of the notebook's cells without their outputs."""
    digest = hashlib.sha256()
    for path in sorted(p for place in ("tdlib", "tdbook") for p in (CODE / place).rglob("*")):
        if path.suffix in {".py", ".yaml"}:
            digest.update(path.read_bytes())
    path = parameters.ROOT / "notebooks" / f"{notebook}.ipynb"
    cells = json.loads(path.read_text(encoding="utf8"))["cells"] if path.exists() else []
    digest.update("\0".join("".join(cell["source"]) for cell in cells).encode())
    return digest.hexdigest()


def of_parameters(values: dict) -> str:
    return of(decisive(values))


def decisive(values: dict) -> dict:
    """Without the parameters that change no result."""
    return {name: value for name, value in values.items() if name not in VOLATILE}


def of(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
