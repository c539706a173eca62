"""Whose a path in a run folder is: the book removes and replaces there only what it made itself.

A folder says inside what the book wrote into it (files.MARK). What else a run writes was free, or
the book's, when it began there first: .claims/<run>.json keeps which. Runs older than that are
known by their records: hashes/ and state/. Imports no torch.
"""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from tdbook.runs import hashes
from tdlib import files

CLAIMS = ".claims"
PAGES = ("index.html", "morning.md")
NAMED = """results/{}.json hashes/{}.json state/{}.json checkpoints/{} {}.html .done/{}
 figures/{}-* tables/{}-* logs/{}-*""".split()  # what every run writes under its own name
# of a kept teacher
CACHED = r"rows\.bin|valid\.bin|key\.json|\.key(-\d+\.new|\.json\.\d+(\.begun)?)"


def claim(out: Path, run: str, values: dict, notebook: bool = False) -> None:
    """The run's from now on: all that it will write. FileExistsError names what is another's, or is
    read by this same run. `notebook`: <run>.ipynb too, which under papermill is the user's."""
    writes = hashes.outputs(out, run, values)
    reads = {n: p for n, p in hashes.inputs(out, run, values).items() if p.exists()}
    if both := [name for name, path in writes.items() if _read_of(path, reads.values())]:
        given = [n for n, p in reads.items() if any(_read_of(w, [p]) for w in writes.values())]
        which = next((k for k, v in values.items() if v in given), "that")
        raise FileExistsError(
            f"{', '.join(given)} is the run's own folder: leave {which} empty, or change out "
            f"(OUT=); {run} would replace {', '.join(both)} in {out}"
        )
    if foreign := not_ours(out, run, list(writes), notebook):
        raise FileExistsError(refusal(out, foreign))
    made = hashes.makers(out)
    for name, path in writes.items():  # older than marks: all under new names is replaced
        if path.is_dir() and not path.is_symlink() and files.mark_of(path) is None:
            if name in made or _since(out, run, path):
                files.write_whole(path / files.MARK, '{"files": {}}')
    kept = out / CLAIMS / f"{run}.json"
    before = _claimed(kept)
    claimed = sorted({*before, *writes, *losses(writes)})
    if claimed != before or not kept.exists():
        files.write_whole(kept, json.dumps(claimed).encode())


def refusal(out: Path, foreign: list[str]) -> str:
    is_ = "is" if len(foreign) == 1 else "are"
    return (
        f"{', '.join(foreign)} in {out} {is_} not the book's and would be replaced: move what is "
        "there away, or give another run folder (OUT=)"
    )


def not_ours(out: Path, run: str, writes: list[str], notebook: bool = False) -> list[str]:
    """What stands in the way of a run and was made by another: paths in the run folder."""
    foreign = []
    if not ((out / CLAIMS / f"{run}.json").exists() or _began(out, run) or hashes.load(out, run)):
        paths = named(out, run) + sorted(out.glob(f"{run}.ipynb")) * notebook
        paths = [path for path in paths if not (path / "made_from.json").is_file()]
        foreign = [str(path.relative_to(out)) for path in paths]
    foreign += [page for page in PAGES if not is_book(out) and os.path.lexists(out / page)]
    made = hashes.makers(out)
    claimed = (path for kept in (out / CLAIMS).glob("*.json") for path in _claimed(kept))
    ours = {*made, *losses(made), *claimed}
    others = {path: out / path for path in (*writes, *losses(writes)) if path not in ours}
    free = [p for p, place in others.items() if files.free(place) or _since(out, run, place)]
    return foreign + [path for path in others if path not in free]


def named(out: Path, run: str) -> list[Path]:
    """All in a run folder that bears a run's name, and not the longer one of another."""
    kinds = ("results", "state")
    longer = tuple(f"{p.stem}-" for kind in kinds for p in (out / kind).glob(f"{run}-*.json"))
    paths = [path for pattern in NAMED for path in sorted(out.glob(pattern.format(run)))]
    return [path for path in paths if not path.name.startswith(longer)]


def run_of(path: Path, out: Path) -> str:
    """01_distill-50m-scratch-curve.png is of 01_distill-50m-scratch, not of 01_distill-50m."""
    runs = (record.stem for kind in ("results", "state") for record in (out / kind).glob("*.json"))
    return max((run for run in runs if path.name.startswith(f"{run}-")), key=len, default="")


def is_book(out: Path) -> bool:
    """Whether a run has begun in this folder, or one of a sweep's points in it."""
    began = any(_began(out, path.stem) for path in (out / "state").glob("*.json"))
    return began or (out / CLAIMS).is_dir() or (out / "points.json").is_file()


def _since(out: Path, run: str, place: Path) -> bool:
    """Whether all of it is younger than the beginning of a run without a whole list of claims."""
    began = out / "checkpoints" / run / "made_from.json"
    if _claimed(out / CLAIMS / f"{run}.json") or not began.is_file():
        return False
    paths = [p for p in (place.rglob("*") if place.is_dir() else [place]) if not p.is_dir()]
    return all(path.lstat().st_mtime >= began.stat().st_mtime - 1 for path in paths)


def losses(writes: Iterable[str]) -> list[str]:
    """Where evaluations keep the losses of the models among these."""
    names = [Path(path).name for path in writes if path.startswith(("models/", "adapters/"))]
    return [f"scores/val/{name}.{kind}" for name in names for kind in ("npy", "npz")]


def _claimed(path: Path) -> list[str]:
    return files.whole(path, kind=list) or []  # broken: the records and the state tell


def _began(out: Path, run: str) -> bool:
    """Whether state/<run>.json is the book's: that it is empty can come of a power cut."""
    path = out / "state" / f"{run}.json"
    empty = path.is_file() and not path.read_bytes().strip(b"\0 \n")
    return empty or (files.whole(path, "run") or {"run": ""})["run"] == run


def _read_of(path: Path, reads: Iterable[Path]) -> bool:
    """Whether one of `reads`, or a file in it, lies at or below `path`; through links too."""
    if not os.path.lexists(path):
        return False
    there = path.resolve()
    every = (p for read in reads for p in (read, *(read.iterdir() if read.is_dir() else ())))
    return any(p.resolve().is_relative_to(there) for p in every)


def clean_cache(out: Path) -> list[str]:
    """Remove the targets that the book kept of a teacher; what else is there stays: its names."""
    cache = out / "cache"
    if cache.is_symlink():  # a sweep's point has its parent's
        cache.unlink()
    for key in sorted(cache.glob("*/key.json")):
        if '"draws"' in key.read_text("utf8", "replace"):
            for path in [p for p in key.parent.iterdir() if re.fullmatch(CACHED, p.name)]:
                path.unlink()
    for folder in [*cache.glob("*/"), cache]:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return sorted(str(path.relative_to(out)) for path in cache.rglob("*") if not path.is_dir())
