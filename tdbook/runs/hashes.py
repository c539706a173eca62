"""What a run was made from, and so whether it has to be run again.

hashes/<run>.json, there only while the run is done, holds hashes of its parameters, its code and
the contents of its inputs and outputs. A rerun follows from those alone, never from a file's time.
A fingerprint of a file or folder: {"sha256" of its content, "files": name → [size, mtime_ns],
"each": name → hash}.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from tdbook.runs import disk, notebooks, parameters, rules, sweeps
from tdbook.runs.notebooks import INFERENCE, notebook_of
from tdlib import files

QUICK = {"smoke", "tiny"}  # profiles in which changed code repeats a run; elsewhere it is noted
ONE_THREAD = QUICK | {"small"}  # models so small that two runs of a thread each beat one of two
KEPT = ("parameters", "code", "inputs", "outputs")  # of hashes/<run>.json
EMPTY = {"inputs": {}, "outputs": {}}  # where there is none
HARD_SET = "hard_set.json"  # of what runs write, this alone may be changed by hand
BY_A_RUN = r"by [\w.+-]+'s parameters"  # how its words begin where a run chose it
SEEN = ".looked.json"  # in a run folder: outputs whose times moved and whose content did not
AFTER, OLDER = "after ", "made by older code"
# hashes of earlier code (e5f1020 and fc5e254, by notebook) that makes today's numbers of sound text
# and tokens: its nights are not stale. Empty this when a number changes.
SAME_NUMBERS = """2c2811566976 60e546bf5b31 e9c23c7f8d89 4cc86c119eed 6b7737ec0689 818620973981
 5a8e5e2a1fa1 ef23690959da 3338b0aa2c9e 75266ca90994 82b05768a5af 4c8e5e5e7823 f0dada1bf494
 3bdaa2e547dc 06ce08abb246 4b8312acf677""".split()
CODE = Path(__file__).parents[2]
SAMPLED = 2**30  # bytes; of a larger file 64 MiB are hashed


def load(out: Path, run: str) -> dict | None:
    """hashes/<run>.json; None where there is none, or a broken one."""
    return files.whole(out / "hashes" / f"{run}.json", *KEPT)


def makers(out: Path) -> dict[str, tuple[str, dict]]:
    """Output of a finished run → the run, and the fingerprint then; if two wrote it, the later."""
    times = {}
    for path in sorted((out / "hashes").glob("*.json")):
        with contextlib.suppress(FileNotFoundError):  # a run that begins anew meanwhile
            times[path.stem] = path.stat().st_mtime_ns
    made: dict[str, tuple[str, dict]] = {}
    for run in sorted(times, key=times.get):
        made |= {path: (run, was) for path, was in (load(out, run) or EMPTY)["outputs"].items()}
    return dict(sorted(made.items(), key=lambda item: item[1][0]))


def made_by_others(out: Path, run: str) -> dict[str, dict]:
    """What the folder's other finished runs wrote for others to read → fingerprint."""
    others = {path: made for path, made in makers(out).items() if made[0] != run}
    return {p: was for p, (maker, was) in others.items() if notebook_of(maker) != INFERENCE}


def inputs(out: Path, run: str, values: dict) -> dict[str, Path]:
    """What a run reads, as its parameters name it → where that is."""
    inside = notebooks.reads(run, values, [*made_by_others(out, run)])
    outside = parameters.external(notebook_of(run), values)
    places = {path: out / path for path in inside}
    places |= {path: parameters.ROOT / path for path in outside}
    return places | sweeps.results(out, values.get("sweeps", ""))


def input_hashes(out: Path, run: str, places: dict[str, Path]) -> dict[str, dict]:
    """Fingerprints of what a run reads: of what another run wrote, the one it had then."""
    made = made_by_others(out, run)
    return {
        name: made[name] if _by_a_run(path, made.get(name)) else fingerprint(path, made.get(name))
        for name, path in places.items()
    }


def outputs(out: Path, run: str, values: dict) -> dict[str, Path]:
    return {path: out / path for path in notebooks.writes(run, values, [*made_by_others(out, run)])}


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
        job, reasons[name] = jobs[name], ""
        if name in before:
            return ""
        points = [n for n, other in jobs.items() if other.sweep == job.sweep and other is not job]
        above = [*job.needs, *points] if job.compares else job.needs
        again = [n for n in above if n in jobs and judge_one(n)]
        pending = {path for n in again for path in jobs[n].writes}
        reasons[name] = why(job.out, job.run, job.parameters, pending)
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


def why(out: Path, run: str, values: dict, pending: Collection[str] = ()) -> str:
    """Why a run has to be made; "" for one that is done: same parameters, inputs of the same
    content, outputs there and, in quick profiles, the same code. `pending`: inputs that are about
    to be made again, and so no reason yet."""
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
    now, others = inputs(out, run, values), made_by_others(out, run)
    if other := sorted((now.keys() ^ kept["inputs"].keys()) - {*pending}):
        return f"reads {', '.join(other[:3])} {'now' if other[0] in now else 'no longer'}"
    for name in (name for name in now if name not in pending):
        if not now[name].exists():
            return f"{name} is gone"
        if not _same(now[name], kept["inputs"][name], others.get(name)):
            return f"{name} has changed"
    return ""


def _same(path: Path, kept: dict, made: dict | None) -> bool:
    """Whether an input is what a run was made from. What another run wrote is known by its record:
    files laid beside it later, or before that run read it, change nothing."""
    if not _by_a_run(path, made):
        return fingerprint(path, kept)["sha256"] == kept["sha256"]
    if made["sha256"] == kept["sha256"]:
        return True
    more = made["files"].keys() <= kept["files"].keys()
    return more and fingerprint(path, kept, kept["files"])["sha256"] == kept["sha256"]


def _by_a_run(path: Path, made: dict | None) -> bool:
    """Whether a run answers for what lies here: not for a hard set, which may be chosen by hand,
    nor for files that are links, which are their owner's."""
    if made is None or path.name == HARD_SET:
        return False
    return not any((path / name).is_symlink() for name in made["files"] if name != ".")


def older_code(out: Path, run: str) -> bool:
    """Whether a finished run was made by other code than today's, which may have other numbers."""
    made = files.whole(out / "results" / f"{run}.json", "code", "notebook")
    if made is None or str(made["code"])[:12] in SAME_NUMBERS:
        return False
    return made["code"] != of_code(made["notebook"])


def damage(out: Path, run: str, full: bool = False) -> list[str]:
    """What a finished run wrote and is otherwise now, a line each: the file, how, and what makes it
    again. Sizes and times are looked at; content where a time moved, or always in a `full` look.
    Not damage: what was laid beside, what was removed whole, a hard set chosen by hand."""
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
        path, shown = place / file, name if file == "." else f"{name}/{file}"
        if name != HARD_SET and path.is_symlink() and file != ".":
            return ""  # its owner's
        if not path.is_file():
            return f"{shown} is gone"
        stats[file] = _stat(path)
        if stats[file][0] != size and name != HARD_SET:
            return f"{shown} has {stats[file][0]:,} bytes, had {size:,}"
    still, now = stats == was["files"], {"sha256": was["sha256"], "files": stats}
    if not full and (still or seen == now):
        return ""
    if name == HARD_SET and not still:
        return "" if chosen(place) is not None else f"{name} is no whole choice of windows"
    found, each = fingerprint(place, names=was["files"]), was.get("each", {})
    if found["sha256"] == was["sha256"]:
        if not still:  # a copied folder: the next look reads nothing
            with contextlib.suppress(OSError):  # a folder that may only be read
                looked = (files.whole(out / SEEN) or {}) | {name: now}
                files.write_whole(out / SEEN, json.dumps(looked).encode())
        return ""
    other = [file for file in each if found["each"][file] != each[file]]
    other += [file for file in stats if stats[file] != was["files"][file]]
    inside = f"/{other[0]}" if other and other[0] != "." else ""
    return f"{name}{inside} has other content"


def chosen(path: Path) -> dict | None:
    """A hard set as its file has it; None where that is no choice of windows."""
    choice = files.whole(path, "windows_K", "threshold", "share")
    rows = choice and choice["windows_K"]
    if not isinstance(rows, list) or any(type(row) is not int for row in rows):
        return None
    numbers = all(type(choice[key]) in (int, float) for key in ("threshold", "share"))
    return choice if numbers and rows == sorted({*rows}) and min(rows, default=0) >= 0 else None


def by_hand(path: Path) -> bool:
    """Whether a hard set was chosen by a person, in the explorer or elsewhere."""
    choice = chosen(path)
    return choice is not None and not re.match(BY_A_RUN, choice.get("words", ""))


def fingerprint(path: Path, known: dict | None = None, names: Iterable[str] | None = None) -> dict:
    """Of a file or folder, or of `names` alone in it. Where every size and time is that of `known`,
    its hash is believed and nothing is read."""
    if names is None:  # but for a model's card
        below = sorted(disk.below(path)) if path.is_dir() else [path]
        below = [file for file in below if file.is_file() and not file.name.startswith(".")]
        below = [file for file in below if file == path or file.name != "README.md"]
    else:
        below = [path / name for name in names if (path / name).is_file()]
    stats = {str(file.relative_to(path)): _stat(file) for file in below}
    if known and known["files"] == stats:
        return known
    digest, each = hashlib.sha256(), {}
    for name in stats:
        own = _content(path / name)
        each[name] = own.hex()[:16]
        digest.update(f"{name}\0".encode() + own)
    return {"sha256": digest.hexdigest(), "files": stats, "each": each}


def _stat(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


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
    """Of both packages with their word lists, and of the cells of the notebook."""
    digest = hashlib.sha256()
    for path in sorted(p for place in ("tdlib", "tdbook") for p in (CODE / place).rglob("*")):
        if path.suffix in {".py", ".yaml", ".toml"}:
            digest.update(path.read_bytes())
    path = parameters.ROOT / "notebooks" / f"{notebook}.ipynb"
    cells = json.loads(path.read_text(encoding="utf8"))["cells"] if path.exists() else []
    digest.update("\0".join("".join(cell["source"]) for cell in cells).encode())
    return digest.hexdigest()


def decisive(values: dict) -> dict:
    """Without the parameters that change no result."""
    return {name: value for name, value in values.items() if name not in rules.VOLATILE}


def of_parameters(values: dict) -> str:
    return of(decisive(values))


def of(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
