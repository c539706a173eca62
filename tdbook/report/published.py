"""What is published of the evidence: README's table, and a second run held against the first.

    python -m tdbook.report.published readme [--check]         README's table, and the recipe's
    python -m tdbook.report.published compare outputs/small    does a folder agree with what is published?

All numbers come from the tables of notebook 07, as `make publish` copied them.
"""

import math
import sys
from pathlib import Path

import pandas as pd

from tdbook.analysis import intervals
from tdbook.runs import parameters
from tdbook.runs.notebooks import EVIDENCE as EVIDENCE_RUN
from tdbook.runs.rules import TRIED
from tdlib.files import write_whole as write

EVIDENCE = parameters.ROOT / "outputs/published/evidence"
BEGIN, END = (
    "<!-- evidence: made by python -m tdbook.report.published readme -->",
    "<!-- /evidence -->",
)


def headline(folder: Path = EVIDENCE) -> str:
    """README's table, from the published numbers alone."""
    claims_, effects = (_read(folder, name) for name in ("claims", "effects"))
    lines = ["| claim of the plan | verdict | because | measured | the plan |",
             "|---|---|---|---|---|"]  # fmt: skip
    for row in claims_.itertuples():
        of = effects[(effects["claim"] == row.key) & (effects["role"] == "claim")]
        first = of.iloc[0] if len(of) else None
        said, plan = "–", "–"
        if first is not None:
            said = f"{first['effect']}: {_documents(first)}; {_seeds(first)}"
            if not math.isnan(first["plan from"]):
                plan = f"{first['plan from']:+.1f} to {first['plan to']:+.1f}".replace("-", "−")
        lines.append(f"| {row.claim} | {row.verdict} | {row.because} | {said} | {plan} |")
    for _, e in effects[effects["claim"] == "recipe"].head(1).iterrows():
        best, page = _best(_read(folder, "choices")), "params/b200/recommended/README.md"
        knobs = ", ".join(f"{knob} {best[knob]}" for knob in TRIED if knob in best)
        lines += ["", f"The better recipe ([{knobs}]({page})) against the plan's own 50M + LoRA: "
                  f"{e['effect']}: {_documents(e)}; {_seeds(e)}."]  # fmt: skip
    return "\n".join(lines)


def _best(tried: pd.DataFrame) -> pd.Series:
    return tried[tried["against the recipe"] == "the recipe"].iloc[0]


def _read(folder: Path, name: str) -> pd.DataFrame:
    path = folder / f"tables/{EVIDENCE_RUN}-{name}.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: `make evidence`, then `make publish`")
    return pd.read_csv(path)


def recommended(folder: Path = EVIDENCE) -> str:
    """What each value of the recommended recipe rests on: the same student with that one value
    changed, on development; then the recipe on the text that judges."""
    tried, effects = _read(folder, "choices"), _read(folder, "effects")
    knobs = [c for c in tried.columns if c in TRIED]
    best = _best(tried)
    lines = ["| parameter | value | the same with another value, against it |", "|---|---|---|"]
    for knob in knobs:
        rest = [k for k in knobs if k != knob]
        alike = tried[rest].astype(str) == best[rest].astype(str)
        if knob == "ce_weight":
            alike["temperature"] |= tried["ce_weight"] == 1  # which has none
        same = tried[alike.all(axis=1)]
        said = [f"{row[knob]}: {row['against the recipe']}" for _, row in same.iterrows()
                if row[knob] != best[knob]]  # fmt: skip
        lines.append(f"| {knob} | {best[knob]} | {'; '.join(said) or 'not tried alone'} |")
    found = effects[effects["claim"] == "recipe"]
    lines += ["", "| on the confirmation text | documents | seeds |", "|---|---|---|"]
    lines += [f"| {e['effect']} | {_documents(e)} | {_seeds(e)} |" for _, e in found.iterrows()]
    return "\n".join(lines)


def _documents(e: pd.Series) -> str:
    return intervals.with_interval(*e[["value", "low", "high"]])


def _seeds(e: pd.Series) -> str:
    if e["seeds"] < 2:
        return "one seed"
    mean, half = e["mean of seeds"], e["half-width over seeds"]
    return f"{e['seeds']} seeds {mean:+.3f} ± {half:.3f}".replace("-", "−")


def readme(check: bool = False) -> bool:
    """Put the tables into README.md and into that of the recommended recipe, or say whether they
    are there already."""
    pages = {
        parameters.ROOT / "README.md": headline,
        parameters.ROOT / "params/b200/recommended/README.md": recommended,
    }
    same = []
    for path, table in pages.items():
        text = path.read_text("utf-8")
        if [text.count(mark) for mark in (BEGIN, END)] != [1, 1]:
            raise ValueError(f"{path} must hold {BEGIN} and {END} once each: put them there, the "
                             "table goes between")  # fmt: skip
        before, rest = text.split(BEGIN)
        wanted = f"{before}{BEGIN}\n\n{table(EVIDENCE)}\n\n{END}{rest.split(END)[1]}"
        same.append(wanted == text)
        if not check and wanted != text:
            write(path, wanted)
    return all(same)


def compare(out: Path, published: Path = EVIDENCE) -> list[str]:
    """What does not agree between a run folder and what is published: an effect of which neither
    value lies in the other's interval, and a verdict that changed. [] where all agrees."""
    said, (new, old) = [], (_read(folder, "effects") for folder in (out, published))
    new, old = (frame.set_index(["claim", "effect"]) for frame in (new, old))
    for key in old.index:
        if key not in new.index:
            said.append(f"{key[1]} ({key[0]}) is published and not here")
            continue
        a, b = new.loc[key], old.loc[key]
        spans = [_widest(x) for x in (a, b)]
        if not (
            spans[0][0] <= b["value"] <= spans[0][1] or spans[1][0] <= a["value"] <= spans[1][1]
        ):
            said.append(f"{key[1]} ({key[0]}) is {a['value']:+.4f} here, published "
                        f"{b['value']:+.4f} [{b['low']:+.4f}, {b['high']:+.4f}]")  # fmt: skip
    verdicts = [_read(folder, "claims").set_index("key")["verdict"] for folder in (out, published)]
    said += [f"{key}: {verdicts[0].get(key)!r} here, {v!r} published"
             for key, v in verdicts[1].items() if verdicts[0].get(key) != v]  # fmt: skip
    return said


def _widest(row: pd.Series) -> tuple[float, float]:
    """Both intervals and the value; of one document, or one seed, one of them is not known."""
    mean, half = row["mean of seeds"], row["half-width over seeds"]
    ends = [row["value"], row["low"], row["high"], mean - half, mean + half]
    known = [end for end in ends if not math.isnan(end)]
    return min(known), max(known)


def main(arguments: list[str]) -> int:
    try:
        match arguments:
            case "readme", *flags:
                same = readme(check="--check" in flags)
                print("README has what is published" if same else "README is not what is published"
                      if "--check" in flags else "README: tables written")  # fmt: skip
                return 0 if same or "--check" not in flags else 1
            case "compare", out:
                said = compare(parameters.ROOT / out, EVIDENCE)
                print(
                    "\n".join(said) or f"{out} agrees with {EVIDENCE.relative_to(parameters.ROOT)}"
                )
                return 1 if said else 0
    except (OSError, ValueError) as error:
        print(error)
        return 1
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
