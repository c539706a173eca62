"""What this repository publishes of its evidence: README's table, and a second run held against it.

    python -m bench.published readme                   write the table
    python -m bench.published compare outputs/small    what does not agree; `make evidence` ends so

All numbers come from the tables of notebook 07, as `make publish` copied them.
"""

import math
import sys
from pathlib import Path

import pandas as pd

from tdbook.analysis.intervals import Interval
from tdbook.analysis.verdict import ROWS
from tdbook.runs import notebooks, parameters
from tdlib.files import write_whole as write

EVIDENCE = parameters.ROOT / "outputs/published/evidence"
BEGIN = "<!-- evidence: made by python -m bench.published readme -->"
END = "<!-- /evidence -->"


def headline(folder: Path) -> str:
    """README's table, from the published numbers alone: rows and order are those of claims.yaml."""
    columns = ["claim", "verdict", "measured", "the plan", "at equal cost"]
    places = {key: row["readme"] for key, row in ROWS.items() if "readme" in row}
    claims = _read(folder, "claims").set_index("key")
    keys = sorted(places.keys() & claims.index, key=places.get)
    lines = [columns, ["---"] * len(columns), *claims.loc[keys, columns].to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _read(folder: Path, name: str) -> pd.DataFrame:
    path = folder / f"tables/{notebooks.EVIDENCE}-{name}.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: `make evidence`, then `make publish`")
    return pd.read_csv(path)


def readme(check: bool = False) -> bool:
    """Put the table into README.md; returns whether it was there already. `check`: only that."""
    path = parameters.ROOT / "README.md"
    text = path.read_text("utf-8")
    if [text.count(mark) for mark in (BEGIN, END)] != [1, 1]:
        places = "put them there, the table goes between"
        raise ValueError(f"{path} must hold {BEGIN} and {END} once each: {places}")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    wanted = f"{before}{BEGIN}\n\n{headline(EVIDENCE)}\n\n{END}{after}"
    if not check and wanted != text:
        write(path, wanted)
    return wanted == text


def compare(out: Path, published: Path) -> list[str]:
    """What does not agree between a run folder and what is published: an effect of which neither
    value lies in the other's interval, and a verdict that changed. [] where all agrees."""
    lines, keys = [], ["claim", "effect", "role"]
    here, there = (_read(folder, "effects").set_index(keys) for folder in (out, published))
    for place, old in there.iterrows():
        claim, name, _ = place
        if place not in here.index:
            lines.append(f"{name} ({claim}) is published and not here")
        elif not (_holds(new := here.loc[place], old["value"]) or _holds(old, new["value"])):
            old = Interval(*old[["value", "low", "high"]])
            lines.append(f"{name} ({claim}) is {new['value']:+.4f} here, published {old:.4f}")
    claims = (_read(place, "claims").set_index("key")["verdict"] for place in (out, published))
    new, old = (verdicts.str.partition(" (")[0] for verdicts in claims)  # the word alone
    changed = {key: verdict for key, verdict in old.items() if new.get(key) != verdict}
    return lines + [f"{key}: {new.get(key)!r} here, {v!r} published" for key, v in changed.items()]


def _holds(effect: pd.Series, value: float) -> bool:
    """Whether a value lies in an effect's interval; one that is not known is its value alone."""
    known = [end for end in effect[["value", "low", "high"]] if not math.isnan(end)]
    return min(known) <= value <= max(known)


def main(arguments: list[str]) -> int:
    try:
        match arguments:
            case ["readme"]:
                print("README has what is published" if readme() else "README: table written")
                return 0
            case ["compare", out]:
                lines = compare(parameters.ROOT / out, EVIDENCE)
                agrees = f"{out} agrees with {EVIDENCE.relative_to(parameters.ROOT)}"
                print("\n".join(lines) or agrees)
                return int(bool(lines))
    except (ValueError, OSError) as error:
        print(error)
        return 1
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
