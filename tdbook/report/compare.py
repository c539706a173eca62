"""What the page that compares runs reads of records; compare.js filters, sorts, draws and diffs it.

Of records alone: those of a published folder hold no text and no path, and so its page holds none.
"""

import math
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

from tdlib import files

# records of runs, of a sweep's points, and of those as `make publish` copies them
PLACES = ("results/*.json", "sweeps/*/*/results/*.json", "results/sweeps/*/*/*.json")
READ = ("run", "notebook", "parameters", "models")
POINTS = 120  # of a curve; of a longer log every k-th, and always its ends and its lowest


def records(out: Path) -> Iterator[dict]:
    """Of each finished run and point; `place`: [] or the sweep and the point."""
    for path in (path for place in PLACES for path in sorted(out.glob(place))):
        record = files.whole(path, *READ)
        if record and not path.is_symlink():  # as what a point reads of its parent
            place = [x for x in path.relative_to(out).parts[:-1] if x not in ("sweeps", "results")]
            kept = {key: record.get(key) for key in (*READ, "seconds", "tokens_per_second")}
            logs = {model: _curve(record, f"log of {model}") for model in record["models"]}
            yield kept | {"place": place, "curves": logs}


def _curve(record: dict, log: str) -> list[tuple]:
    rows = record.get("remembered", {}).get(log) or []
    curve = [(row["tokens"], row["val/loss"]) for row in rows if row.get("val/loss") is not None]
    step, lowest = math.ceil(len(curve) / POINTS), min(curve, key=itemgetter(1), default=None)
    return [at for i, at in enumerate(curve) if i % step == 0 or at in (lowest, curve[-1])]
