"""Whose a path in a run folder is: the book removes and replaces there only what it made itself.

A folder says inside what the book wrote into it (tdlib.files). What else a run writes was free, or
the book's, when it began there first: .claims/<run>.json keeps which.
"""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from tdbook.runs import hashes
from tdlib import files

CLAIMS = ".claims"
PAGES = ("index.html", "morning.md")
# what every run writes under its own name
RECORDS = "results/{}.json hashes/{}.json state/{}.json checkpoints/{} {}.html .done/{}".split()
SHOWN = ("figures", "tables", "logs")  # and, in these, <run>-*


def claim(out: Path, run: str, values: dict, notebook: bool = False) -> None:
    """The run's from now on: all that it will write. FileExistsError names what is another's, or is
    read by this same run. `notebook`: <run>.ipynb too, which under papermill is the user's."""
    writes, reads = hashes.outputs(out, run, values), hashes.inputs(out, run, values)
    for read, path in reads.items():
        for written, place in writes.items():
            if _lies_in(path, place):
                name = next((key for key, value in values.items() if value == read), "that")
                raise FileExistsError(
                    f"{read} is the run's own folder: leave {name} empty, or change out (OUT=); "
                    f"{run} would replace {written} in {out}"
                )
    if foreign := not_ours(out, run, [*writes], notebook):
        raise FileExistsError(refusal(out, foreign))
    kept = out / CLAIMS / f"{run}.json"
    before = files.whole(kept, kind=list)
    claimed = sorted({*(before or []), *writes, *losses(writes)})
    if claimed != before:
        files.write_whole(kept, json.dumps(claimed))


def refusal(out: Path, foreign: list[str]) -> str:
    what = f"{', '.join(foreign)} in {out}: not the book's and would be replaced"
    return f"{what}: move what is there away, or give another run folder (OUT=)"


def not_ours(out: Path, run: str, writes: list[str], notebook: bool = False) -> list[str]:
    """What stands in the way of a run and was made by another: paths in the run folder."""
    foreign = [page for page in PAGES if not is_book(out) and os.path.lexists(out / page)]
    if not (out / CLAIMS / f"{run}.json").exists() and not hashes.load(out, run):
        paths = [*named(out, run), *sorted(out.glob(f"{run}.ipynb")) * notebook]
        foreign += [str(path.relative_to(out)) for path in paths]
    made = hashes.makers(out)
    claims = [files.whole(path, kind=list) or [] for path in (out / CLAIMS).glob("*.json")]
    ours = {*made, *losses(made)}.union(*claims)
    others = [path for path in (*writes, *losses(writes)) if path not in ours]
    return foreign + [path for path in others if not files.free(out / path)]


def named(out: Path, run: str) -> list[Path]:
    """All in a run folder that bears a run's name, and not the longer one of another."""
    paths = [out / record.format(run) for record in RECORDS]
    shown = [path for kind in SHOWN for path in sorted((out / kind).glob(f"{run}-*"))]
    paths += [path for path in shown if run_of(path, out) in (run, "")]
    return [path for path in paths if os.path.lexists(path)]


def run_of(path: Path, out: Path) -> str:
    """01_distill-50m-scratch-curve.png is of 01_distill-50m-scratch, not of 01_distill-50m."""
    runs = (record.stem for kind in ("results", "state") for record in (out / kind).glob("*.json"))
    return max((run for run in runs if path.name.startswith(f"{run}-")), key=len, default="")


def is_book(out: Path) -> bool:
    """Whether a run has begun in this folder, or one of a sweep's points in it."""
    states = (files.whole(path, "run", "state") for path in (out / "state").glob("*.json"))
    return (out / CLAIMS).is_dir() or (out / "points.json").is_file() or any(states)


def losses(writes: Iterable[str]) -> list[str]:
    """Where evaluations keep the losses of the models among these."""
    names = [Path(path).name for path in writes if path.startswith(("models/", "adapters/"))]
    return [f"scores/val/{name}.{kind}" for name in names for kind in ("npy", "npz")]


def _lies_in(read: Path, written: Path) -> bool:
    """Whether what is read, or a file in it, lies at or below `written`; through links too."""
    paths = [read, *(read.iterdir() if read.is_dir() else ())] if os.path.lexists(written) else []
    return any(path.resolve().is_relative_to(written.resolve()) for path in paths)


def clean_cache(out: Path) -> list[str]:
    """Remove the targets that the book kept of a teacher; where others put files beside, all stays:
    the names of what does."""
    cache = out / "cache"
    if cache.is_symlink():  # a sweep's point has its parent's
        cache.unlink()
    for key in sorted(cache.glob("*/key.json")):
        names = {p.name for p in key.parent.iterdir() if not p.name.startswith(".key")}
        if names <= {"key.json", "rows.bin", "valid.bin"} and '"draws"' in key.read_text(
            "utf8", "replace"
        ):
            shutil.rmtree(key.parent)
    return sorted(str(path.relative_to(out)) for path in cache.rglob("*") if not path.is_dir())
