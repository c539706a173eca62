"""What is published of the evidence: README's table, and a second run held against the first.

All numbers come from the tables of notebook 07, as `make publish` copied them.
"""

import math
from pathlib import Path

import pandas as pd

from tdbook.analysis.intervals import Interval
from tdbook.runs import parameters
from tdbook.runs.notebooks import EVIDENCE as EVIDENCE_RUN
from tdbook.runs.rules import TRIED
from tdlib.files import write_whole as write

EVIDENCE = parameters.ROOT / "outputs/published/evidence"
RECIPE = "params/b200/recommended/README.md"
BEGIN = "<!-- evidence: made by python -m tdbook published readme -->"
END = "<!-- /evidence -->"


def headline(folder: Path) -> str:
    """README's table, from the published numbers alone."""
    claims, effects = (_read(folder, name) for name in ("claims", "effects"))
    lines = [
        "| claim of the plan | verdict | because | measured | the plan |",
        "|---|---|---|---|---|",
    ]
    for row in claims.itertuples():
        rests_on = effects[(effects["claim"] == row.key) & (effects["role"] == "claim")]
        measured = plan = "–"
        for _, effect in rests_on.head(1).iterrows():
            measured = f"{effect['effect']}: {_documents(effect)}; {_seeds(effect)}"
            if not math.isnan(effect["plan from"]):
                plan = f"{effect['plan from']:+.1f} to {effect['plan to']:+.1f}".replace("-", "−")
        lines.append(f"| {row.claim} | {row.verdict} | {row.because} | {measured} | {plan} |")
    for _, effect in effects[effects["claim"] == "recipe"].head(1).iterrows():
        best = _recipe(_read(folder, "choices"))
        knobs = ", ".join(f"{knob} {best[knob]}" for knob in TRIED if knob in best)
        lines += [
            "",
            f"The better recipe ([{knobs}]({RECIPE})) against the plan's own 50M + LoRA: "
            f"{effect['effect']}: {_documents(effect)}; {_seeds(effect)}.",
        ]
    return "\n".join(lines)


def recommended(folder: Path) -> str:
    """What each value of the recommended recipe rests on: the same student with that one value
    changed, on development; then the recipe on the text that judges."""
    tried, effects = _read(folder, "choices"), _read(folder, "effects")
    best = _recipe(tried)
    knobs = [column for column in tried.columns if column in TRIED]
    lines = ["| parameter | value | the same with another value, against it |", "|---|---|---|"]
    for knob in knobs:
        rest = [k for k in knobs if k != knob]
        alike = tried[rest].astype(str) == best[rest].astype(str)
        if knob == "ce_weight":
            alike["temperature"] |= tried["ce_weight"] == 1  # which has none
        others = tried[alike.all(axis=1) & (tried[knob] != best[knob])]
        words = [f"{row[knob]}: {row['against the recipe']}" for _, row in others.iterrows()]
        lines.append(f"| {knob} | {best[knob]} | {'; '.join(words) or 'not tried alone'} |")
    lines += ["", "| on the confirmation text | documents | seeds |", "|---|---|---|"]
    for _, effect in effects[effects["claim"] == "recipe"].iterrows():
        lines.append(f"| {effect['effect']} | {_documents(effect)} | {_seeds(effect)} |")
    return "\n".join(lines)


def _read(folder: Path, name: str) -> pd.DataFrame:
    path = folder / f"tables/{EVIDENCE_RUN}-{name}.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: `make evidence`, then `make publish`")
    return pd.read_csv(path)


def _recipe(tried: pd.DataFrame) -> pd.Series:
    return tried[tried["against the recipe"] == "the recipe"].iloc[0]


def _documents(effect: pd.Series) -> str:
    return f"{Interval(*effect[['value', 'low', 'high']])}"


def _seeds(effect: pd.Series) -> str:
    if effect["seeds"] < 2:
        return "one seed"
    mean, half = effect["mean of seeds"], effect["half-width over seeds"]
    return f"{effect['seeds']} seeds {mean:+.3f} ± {half:.3f}".replace("-", "−")


def readme(check: bool = False) -> bool:
    """Put the tables into README.md and into that of the recommended recipe; returns whether they
    were there already. `check`: only that."""
    current = True
    for page, table in {"README.md": headline, RECIPE: recommended}.items():
        path = parameters.ROOT / page
        text = path.read_text("utf-8")
        if [text.count(mark) for mark in (BEGIN, END)] != [1, 1]:
            places = "put them there, the table goes between"
            raise ValueError(f"{path} must hold {BEGIN} and {END} once each: {places}")
        before, rest = text.split(BEGIN)
        wanted = f"{before}{BEGIN}\n\n{table(EVIDENCE)}\n\n{END}{rest.split(END)[1]}"
        current &= wanted == text
        if not check and wanted != text:
            write(path, wanted)
    return current


def compare(out: Path, published: Path) -> list[str]:
    """What does not agree between a run folder and what is published: an effect of which neither
    value lies in the other's interval, and a verdict that changed. [] where all agrees."""
    lines, tables = [], (_read(folder, "effects") for folder in (out, published))
    new, old = (table.set_index(["claim", "effect"]) for table in tables)
    for key, b in old.iterrows():
        name = f"{key[1]} ({key[0]})"
        if key not in new.index:
            lines.append(f"{name} is published and not here")
            continue
        a = new.loc[key]
        if not (_holds(a, b["value"]) or _holds(b, a["value"])):
            interval = f"{b['value']:+.4f} [{b['low']:+.4f}, {b['high']:+.4f}]"
            lines.append(f"{name} is {a['value']:+.4f} here, published {interval}")
    here, there = (_read(place, "claims").set_index("key")["verdict"] for place in (out, published))
    lines += [f"{key}: {here.get(key)!r} here, {verdict!r} published"
              for key, verdict in there.items() if here.get(key) != verdict]  # fmt: skip
    return lines


def _holds(effect: pd.Series, value: float) -> bool:
    """Whether a value lies within both intervals of an effect and what is between; of one document,
    or one seed, one of them is not known."""
    mean, half = effect["mean of seeds"], effect["half-width over seeds"]
    ends = [*effect[["value", "low", "high"]], mean - half, mean + half]
    known = [end for end in ends if not math.isnan(end)]
    return min(known) <= value <= max(known)


def run(words: list[str]) -> int:
    """`readme [--check]` or `compare FOLDER`; returns the exit status, 1 where they differ."""
    match words:
        case ["readme", *flags]:
            check = "--check" in flags
            current = readme(check)
            other = "README is not what is published" if check else "README: tables written"
            print("README has what is published" if current else other)
            return int(check and not current)
        case ["compare", out]:
            lines = compare(parameters.ROOT / out, EVIDENCE)
            agrees = f"{out} agrees with {EVIDENCE.relative_to(parameters.ROOT)}"
            print("\n".join(lines) or agrees)
            return int(bool(lines))
    print("python -m tdbook published readme [--check], or compare outputs/small")
    return 2
