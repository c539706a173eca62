"""Whose a path in a run folder is: the book removes and replaces there only what it made itself.

A folder says inside what the book wrote into it (files.MARK). What else a run writes was free, or
the book's, when it began there first: .claims/<run>.json keeps which. Run folders older than that
are known by their records: hashes/ and state/. Imports no torch.

    python -m tdbook.runs.ownership clean-cache outputs/tiny
"""

import json
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from tdbook.runs import hashes, parameters
from tdlib import files

CLAIMS = ".claims"
PAGES = ("index.html", "morning.md")
NAMED = """results/{}.json hashes/{}.json state/{}.json checkpoints/{} {}.html .done/{}
 figures/{}-* tables/{}-* logs/{}-*""".split()  # what every run writes under its own name
CACHED = (
    r"rows\.bin|valid\.bin|key\.json|\.key(-\d+\.new|\.json\.\d+(\.begun)?)"  # of a kept teacher
)


def claim(out: Path, run: str, values: dict, notebook: bool = False) -> None:
    """The run's from now on: all that it will write. FileExistsError names what is there and not
    the book's, or is read by this same run; then nothing was touched. `notebook`: <run>.ipynb too,
    which under plain papermill is the user's affair."""
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
                files.mark(path, [])
    kept = out / CLAIMS / f"{run}.json"
    claimed = sorted({*_claimed(kept), *writes, *losses(writes)})
    if claimed != _claimed(kept) or not kept.exists():
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
    began = (out / CLAIMS / f"{run}.json").exists() or _state(out, run) or hashes.load(out, run)
    if not began:
        paths = named(out, run) + sorted(out.glob(f"{run}.ipynb")) * notebook
        paths = [path for path in paths if not (path / "made_from.json").is_file()]
        foreign = [str(path.relative_to(out)) for path in paths]
    foreign += [page for page in PAGES if not is_book(out) and os.path.lexists(out / page)]
    places = [*writes, *losses(writes)]
    return foreign + [path for path in places if not _is_ours(out, run, path)]


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
    began = any(_state(out, path.stem) for path in (out / "state").glob("*.json"))
    return began or (out / CLAIMS).is_dir() or (out / "points.json").is_file()


def _is_ours(out: Path, run: str, path: str) -> bool:
    place, made = out / path, hashes.makers(out)
    if files.free(place):
        return True
    claimed = (p for kept in (out / CLAIMS).glob("*.json") for p in _claimed(kept))
    return path in (*made, *losses(made), *claimed) or _since(out, run, place)


def _since(out: Path, run: str, place: Path) -> bool:
    """Whether all of it is younger than the beginning of this run, which has no record yet."""
    began = out / "checkpoints" / run / "made_from.json"
    if _claimed(out / CLAIMS / f"{run}.json"):
        return False  # that says it
    every = [p for p in (place.rglob("*") if place.is_dir() else [place]) if not p.is_dir()]
    return began.is_file() and all(p.lstat().st_mtime >= began.stat().st_mtime - 1 for p in every)


def losses(writes: Iterable[str]) -> list[str]:
    """Where evaluations keep the losses of the models among these."""
    names = [Path(path).name for path in writes if path.startswith(("models/", "adapters/"))]
    return [f"scores/val/{name}.{kind}" for name in names for kind in ("npy", "npz")]


def _claimed(path: Path) -> list[str]:
    return files.whole(path, kind=list) or []  # broken: the records and the state tell


def _state(out: Path, run: str) -> bool:
    """Whether state/<run>.json is the book's: that it is empty can come of a power cut."""
    path = out / "state" / f"{run}.json"
    empty = path.is_file() and not path.read_bytes().strip(b"\0 \n")
    return empty or (files.whole(path, "run") or {"run": ""})["run"] == run


def _read_of(path: Path, reads: Iterable[Path]) -> bool:
    """Whether one of `reads`, or a file in it, lies at or below what stands at `path`; through
    links too."""
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


if __name__ == "__main__":
    left = clean_cache(parameters.ROOT / sys.argv[2])
    print(f"left, for the book did not make it: {', '.join(left)}" if left else "removed")
