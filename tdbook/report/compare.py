"""What the page that compares runs holds: a row a model, with parameters, results and its curve.

compare.js filters, sorts, draws and diffs the rows. They come of records alone: those of a
published folder hold no text and no path, and so its page holds none.
"""

import math
from pathlib import Path

from tdbook.runs import parameters
from tdlib import files

POINTS = 120  # of a curve; of a longer log every k-th, and always its ends and its lowest
# records of runs, of a sweep's points, and of those as `make publish` copies them
PLACES = ("results/*.json", "sweeps/*/*/results/*.json", "results/sweeps/*/*/*.json")
# they may differ between models of one setting, so they are no columns
LABELS = (parameters.LABELS | parameters.VOLATILE | {"teacher"}) - {"seed"}


def content(outs: list[Path]) -> dict:
    """All rows of some folders. What all runs of a notebook have alike is there once."""
    paths = [(out, path) for out in outs for place in PLACES for path in sorted(out.glob(place))]
    # what a point reads of its parent are links
    rows = [row for out, path in paths if not path.is_symlink() for row in _rows(out, path)]
    common: dict[str, dict] = {}
    for row in rows:
        alike, own = common.get(row["notebook"], row["parameters"]), row["parameters"].items()
        common[row["notebook"]] = dict(pair for pair in alike.items() if pair in own)
    for row in rows:
        own, alike = row["parameters"].items(), common[row["notebook"]]
        row["parameters"] = {name: value for name, value in own if name not in alike}
    about = {"plan": parameters.PLAN, "labels": sorted(LABELS), "points": POINTS}
    return {"rows": rows, "common": common} | about


def _rows(out: Path, path: Path) -> list[dict]:
    """A row for each model of a run, or one for a run that makes none; [] of a broken record."""
    record, rows = files.whole(path, "run", "notebook", "parameters", "models") or {}, []
    place = [x for x in path.relative_to(out).parts[:-1] if x not in ("sweeps", "results")]
    run = {name: record.get(name) for name in ("run", "notebook")}
    run |= {"folder": out.name, **dict(zip(("sweep", "point"), place, strict=False))}
    own = record.get("parameters", {}).items()
    run["parameters"] = {name: value for name, value in own if name not in ("run", "out")}
    cost = {name: record.get(name) for name in ("seconds", "tokens_per_second")}
    for model, metrics in (record and (record["models"] or {"": {}})).items():
        log = record.get("remembered", {}).get(f"log of {model}") or []
        curve = [(x["tokens"], x["val/loss"]) for x in log if x.get("val/loss") is not None]
        numbers = {name: x for name, x in (metrics | cost).items() if isinstance(x, int | float)}
        row = {"model": model, "results": {name: float(f"{x:.6g}") for name, x in numbers.items()}}
        rows.append(run | row | {"curve": _thinned(curve)})
    return rows


def _thinned(curve: list[tuple]) -> list[tuple]:
    step, last = math.ceil(len(curve) / POINTS), len(curve) - 1
    lowest = min(range(len(curve)), key=lambda i: curve[i][1], default=0)
    return [at for i, at in enumerate(curve) if i % step == 0 or i in (lowest, last)]
