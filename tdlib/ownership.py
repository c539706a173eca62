"""Whose a path in a run folder is: the book removes and replaces there only what it made itself.

A folder says inside what the book wrote into it (files.MARK). What else a run writes was free, or
the book's, when it began there first: .claims/<run>.json keeps which. Run folders older than that
are known by their records: hashes/ and state/. Imports no torch.

    python -m tdlib.ownership clean-cache outputs/tiny
"""

import json
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from tdlib import files, hashes, parameters

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
    for path, names in _unmarked(out, run, list(writes)).items():
        files.mark(out / path, names)
    kept = out / CLAIMS / f"{run}.json"
    claimed = sorted({*_claimed(kept), *writes, *_losses(list(writes))})
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
    named = [pattern.format(run) for pattern in NAMED] + [f"{run}.ipynb"] * notebook
    began = (out / CLAIMS / f"{run}.json").exists() or _state(out, run) or hashes.load(out, run)
    longer = [f"{name}-" for name in _known(out) if name.startswith(f"{run}-")]
    there = [] if began else [path for pattern in named for path in sorted(out.glob(pattern))]
    there = [path for path in there if not path.name.startswith((".", *longer))]
    foreign = [str(path.relative_to(out)) for path in there
               if not (path / "made_from.json").is_file()]  # fmt: skip
    foreign += [page for page in PAGES if not is_book(out) and os.path.lexists(out / page)]
    both = [*writes, *_losses(writes)]
    return foreign + [path for path in both if not _is_ours(out, run, path)]


def is_book(out: Path) -> bool:
    """Whether a run has begun in this folder, or one of a sweep's points in it."""
    return (out / CLAIMS).is_dir() or bool(_known(out)) or (out / "points.json").is_file()


def _is_ours(out: Path, run: str, path: str) -> bool:
    place, recorded = out / path, _recorded(out)
    if not os.path.lexists(place):
        return True
    if place.is_dir() and not place.is_symlink() and not any(place.iterdir()):
        return True
    claimed = (p for kept in (out / CLAIMS).glob("*.json") for p in _claimed(kept))
    return path in (*recorded, *_losses([*recorded]), *claimed) or _since(out, run, place)


def _unmarked(out: Path, run: str, writes: list[str]) -> dict[str, list[str]]:
    """Folders older than marks that the run may replace → the names in them that the book wrote;
    none where no record says."""
    found, recorded = {}, _recorded(out)
    for path in writes:
        place = out / path
        if place.is_dir() and not place.is_symlink() and files.mark_of(place) is None:
            names = [*recorded[path], "README.md"] if path in recorded else []  # no record of cards
            if names or _since(out, run, place):
                found[path] = [name for name in names if os.path.lexists(place / name)]
    return found


def _since(out: Path, run: str, place: Path) -> bool:
    """Whether all of it is younger than the beginning of this run, which has no record yet."""
    began = out / "checkpoints" / run / "made_from.json"
    if (out / CLAIMS / f"{run}.json").exists():
        return False  # that says it
    every = [p for p in (place.rglob("*") if place.is_dir() else [place]) if not p.is_dir()]
    return began.is_file() and all(p.lstat().st_mtime >= began.stat().st_mtime - 1 for p in every)


def _losses(writes: list[str]) -> list[str]:
    names = [Path(path).name for path in writes if path.startswith(("models/", "adapters/"))]
    return [f"scores/val/{name}.{kind}" for name in names for kind in ("npy", "npz")]


def _claimed(path: Path) -> list[str]:
    return json.loads(path.read_text("utf8")) if path.exists() else []


def _recorded(out: Path) -> dict[str, list[str]]:
    """What finished runs wrote here → the files of it."""
    found = {}
    for path in (out / "hashes").glob("*.json"):
        try:
            outputs = json.loads(path.read_text("utf8"))["outputs"]
            found |= {name: list(kept["files"]) for name, kept in outputs.items()}
        except (ValueError, KeyError, TypeError):
            continue  # damaged: its run is made again
    return found


def _known(out: Path) -> list[str]:
    return [path.stem for path in (out / "state").glob("*.json") if _state(out, path.stem)]


def _state(out: Path, run: str) -> bool:
    """Whether state/<run>.json is the book's: that it is empty can come of a power cut."""
    try:
        text = (out / "state" / f"{run}.json").read_text("utf8")
        return not text.strip("\0 \n") or json.loads(text)["run"] == run
    except (OSError, ValueError, KeyError, TypeError):
        return False


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
