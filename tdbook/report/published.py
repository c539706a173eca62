"""What is published of the evidence: README's table, and a second run held against the first.

All numbers come from the tables of notebook 07, as `make publish` copied them.
"""

import math
from pathlib import Path

import pandas as pd

from tdbook.analysis.intervals import Interval
from tdbook.runs import notebooks, parameters
from tdbook.runs.parameters import TRIED
from tdbook.runs.units import minus
from tdlib.files import write_whole as write

EVIDENCE = parameters.ROOT / "outputs/published/evidence"
RECIPE = "params/b200/recommended/README.md"
BEGIN = "<!-- evidence: made by python -m tdbook published readme -->"
END = "<!-- /evidence -->"


def headline(folder: Path) -> str:
    """README's table, from the published numbers alone: each claim with the effect it rests on."""
    claims, effects = (_read(folder, name) for name in ("claims", "effects"))
    first = effects[effects["role"] == "claim"].drop_duplicates("claim").set_index("claim")
    measured = {claim: _measured(effect) for claim, effect in first.iterrows()}
    lines = ["| claim of the plan | verdict | because | measured | the plan |", "|---" * 5 + "|"]
    for row in claims.itertuples():
        cells = row.claim, row.verdict, row.because, *measured.get(row.key, ("–", "–"))
        lines.append(f"| {' | '.join(cells)} |")
    tried = _read(folder, "choices")
    if "recipe" in measured and "against the recipe" in tried:
        best = tried[tried["against the recipe"] == "the recipe"].iloc[0]
        knobs = ", ".join(f"{knob} {best[knob]}" for knob in TRIED if knob in best)
        better = f"The better recipe ([{knobs}]({RECIPE})) against the plan's own 50M + LoRA"
        lines += ["", f"{better}: {measured['recipe'][0]}."]
    return "\n".join(lines)


def _read(folder: Path, name: str) -> pd.DataFrame:
    path = folder / f"tables/{notebooks.EVIDENCE}-{name}.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: `make evidence`, then `make publish`")
    return pd.read_csv(path)


def _measured(effect: pd.Series) -> tuple[str, str]:
    """An effect over documents and over seeds; and what the plan expects."""
    seeds, (low, high) = "one seed", effect[["plan from", "plan to"]]
    if effect["seeds"] > 1:
        over = effect[["seeds", "mean of seeds", "half-width over seeds"]]
        seeds = minus("{} seeds {:+.3f} ± {:.3f}".format(*over))
    plan = "–" if math.isnan(low) else minus(f"{low:+.1f} to {high:+.1f}")
    return f"{effect['effect']}: {Interval(*effect[['value', 'low', 'high']])}; {seeds}", plan


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
    lines, keys = [], ["claim", "effect"]
    here, there = (_read(folder, "effects").set_index(keys) for folder in (out, published))
    for (claim, name), old in there.iterrows():
        if (claim, name) not in here.index:
            lines.append(f"{name} ({claim}) is published and not here")
            continue
        new = here.loc[(claim, name)]
        if not (_holds(new, old["value"]) or _holds(old, new["value"])):
            interval = f"{old['value']:+.4f} [{old['low']:+.4f}, {old['high']:+.4f}]"
            lines.append(f"{name} ({claim}) is {new['value']:+.4f} here, published {interval}")
    new, old = (_read(place, "claims").set_index("key")["verdict"] for place in (out, published))
    changed = {key: verdict for key, verdict in old.items() if new.get(key) != verdict}
    return lines + [f"{key}: {new.get(key)!r} here, {v!r} published" for key, v in changed.items()]


def _holds(effect: pd.Series, value: float) -> bool:
    """Whether a value lies within both intervals of an effect, where known, and what is between."""
    mean, half = effect["mean of seeds"], effect["half-width over seeds"]
    ends = [*effect[["value", "low", "high"]], mean - half, mean + half]
    known = [end for end in ends if not math.isnan(end)]
    return min(known) <= value <= max(known)
