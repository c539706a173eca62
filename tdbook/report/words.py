"""Sentences computed from numbers: what notebooks, records and pages say, each in one place."""

from pathlib import Path

import numpy as np
import yaml

from tdbook.analysis import intervals
from tdbook.export import inference
from tdlib import hard_set
from tdlib.model import Llama

SENTENCES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))


def _say(*names: str, **values: object) -> str:
    """Some sentences, one after the other; "" is none."""
    return " ".join(SENTENCES[name].format(**values) for name in names if name)


def loaded(path: str, teacher: Llama) -> str:
    """What was loaded, and what was repaired on the way."""
    repaired, c = "cut_rows" * (teacher.cut_rows > 0), teacher.config
    return _say("loaded", repaired, path=path, c=c, cut_rows=teacher.cut_rows)


def trial(trial: dict) -> str:
    """What `teacher.check` measured."""
    return _say("trial", "untrained" * (trial["loss"] >= trial["entropy"]), **trial)


def curves(logs: dict[str, list[dict]]) -> str:
    """Whether the last part of each curve still fell; of two, when the second one came to where the
    first one ends."""
    sentences = []
    for name, log in logs.items():
        if len(log) > 2:
            fall = log[-2]["val/loss"] - log[-1]["val/loss"]
            which = "still_falls" if fall > 0.03 else "has_settled"
            sentences.append(_say(which, parts=len(log) - 1, name=name, fall=fall, change=-fall))
    if len(logs) == 2:
        (other, first), (name, second) = logs.items()
        end, whole = first[-1]["val/loss"], second[-1]["tokens"]
        at = (row["tokens"] / whole for row in second if row["val/loss"] <= end)
        when = next((f"after {share:.0%} of its training" for share in at), "never")
        sentences.append(_say("reached", name=name, end=end, other=other, when=when))
    return " ".join(sentences)


def difficulty(base: str, short: dict) -> str:
    """The sentence that 02 puts before anything else."""
    better, windows = short["student_better"], short["windows"]
    counted = f"{base} is better than its teacher on {better:.1%} of {windows:,} windows"
    if short.get("scored", 1) < 1:
        counted += f" (of which {short['scored']:.1%}, spread evenly, were scored)"
    if short.get("masked"):
        counted += f" but for {short['masked']:,}, which have no target"
    return _say("noise" if better > 0.5 else "gap", counted=counted, mean=short["mean"])


def choice(chosen: hard_set.HardSet, base: str) -> str:
    """What was chosen, for hard_set.json: of the hardest, what was left out and what joined."""
    k, rule = len(chosen.windows_K), chosen.rule
    share = chosen.share * (k - chosen.easy) / max(1, k)
    words = f"the hardest {share:.1%} of {base}'s windows, {chosen.threshold:.4f} nats and more"
    words += f", less the very hardest {rule.clip:.1%}" * (rule.clip > 0)
    words += ", without junk" * rule.leave_out_junk
    words += f", and {chosen.easy:,} easy ones" * (chosen.easy > 0)
    return words + f"; of each the hardest {rule.token_share:.0%} of its tokens" * (
        rule.token_share < 1
    )


def hard_windows(base: str, short: dict, chosen: hard_set.HardSet, difficulty_N: np.ndarray) -> str:
    """How much of what was lost the hard set holds."""
    hard_N, lost_N = hard_set.hard(chosen, difficulty_N), np.fmax(difficulty_N, 0, dtype=np.float64)
    held = lost_N[hard_N].sum() / (lost_N.sum() or 1)
    values = {"share": hard_N.sum() / max(1, np.isfinite(difficulty_N).sum()), "held": held}
    values |= {"base": base, "threshold": chosen.threshold, "easy": chosen.easy}
    which = "better" * (short["student_better"] > 0.5), "hold", "mixed_in" * (chosen.easy > 0)
    return _say(*which, **values | short)


def difference(one: str, other: str, d: dict) -> str:
    """That `one` is better or worse than `other`, or not clearly different, with the interval."""
    size = intervals.Interval(d["difference"], d["low"], d["high"])
    how = {-1: "is better than", 0: "is not clearly different from", 1: "is WORSE than"}[size.clear]
    left_out = f"; {d['masked']:,} of {d['windows']:,} windows have no target and are left out"
    return f"{one} {how} {other}: {size} nats, one seed{left_out * (d['masked'] > 0)}."


def speed(name: str, shipped: list[dict], rows: list[dict], costs: list[dict]) -> str:
    """The 4-bit file in one sentence: bytes, tokens a second, and what it costs."""
    file, cost = (next(row for row in some if row["format"] == "Q4_0") for some in (shipped, costs))
    speeds = {row["way"]: row["decode"] for row in rows if row["threads"] == 1}
    values = {"megabytes": file["bytes"] / 1e6, "cost": cost["loss"] - costs[0]["loss"]}
    values |= {"speed": speeds["Q4_0"], "times": speeds["Q4_0"] / speeds[inference.RAW]}
    return _say("speed", name=name, **values)


def setting(value: object, plan: tuple[float, float] | None) -> str:
    """A setting as text; * where the plan names it."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    return f"{value:g}" + " *" * (plan is not None and plan[0] <= value <= plan[1])
