"""Sentences computed from numbers: what notebooks, records and pages say, each in one place."""

import numpy as np

from tdbook.analysis import intervals
from tdbook.export import inference
from tdlib import hard_set
from tdlib.model import Llama


def loaded(path: str, teacher: Llama) -> str:
    """What was loaded, and what was repaired on the way."""
    c, cut = teacher.config, teacher.cut_rows
    shape = f"{c.layers} layers, {c.heads} heads ({c.kv_heads} of keys), width {c.dim}"
    words = f"Loaded from `{path}`: {shape}, MLP {c.mlp_dim}, context {c.context:,}."
    return words + f" The last {cut:,} rows of its embedding were zeros and are cut." * (cut > 0)


def trial(trial: dict) -> str:
    """What `teacher.check` measured."""
    loss, entropy = trial["loss"], trial["entropy"]
    words = f"On {trial['windows']} validation windows its loss is {loss:.3f}; with RoPE's other "
    words += f"order it would be {trial['loss_other_rope']:.3f}, so the order is right."
    if loss < entropy:
        return words
    return (
        f"{words} **⚠ The frequencies of the tokens alone give {entropy:.3f}: either the tokens "
        "are not from this teacher's tokenizer, or it has hardly been trained.**"
    )


def curves(logs: dict[str, list[dict]]) -> str:
    """Whether the last part of each curve still fell; of two, when the second one came to where the
    first one ends."""
    sentences = []
    for name, log in logs.items():
        if len(log) > 2:
            fall = log[-2]["val/loss"] - log[-1]["val/loss"]
            how = (
                f"still fell by {fall:.3f}: train longer"
                if fall > 0.03
                else f"changed by {-fall:+.3f}"
            )
            sentences.append(f"In the last of {len(log) - 1} parts the loss of {name} {how}.")
    if len(logs) == 2:
        (other, first), (name, second) = logs.items()
        end = first[-1]["val/loss"]
        at = next(
            (row["tokens"] / second[-1]["tokens"] for row in second if row["val/loss"] <= end), None
        )
        when = "never" if at is None else f"after {at:.0%} of its training"
        sentences.append(f"{name} reached the {end:.3f} where {other} ends {when}.")
    return " ".join(sentences)


def difficulty(base: str, short: dict) -> str:
    """The sentence that 02 puts before anything else."""
    better = short["student_better"]
    counts = f"{base} is better than its teacher on {better:.1%} of {short['windows']:,} windows"
    if short.get("scored", 1) < 1:
        counts += f" (of which {short['scored']:.1%}, spread evenly, were scored)"
    if short.get("masked"):
        counts += f" but for {short['masked']:,}, which have no target"
    if better > 0.5:
        return (
            f"**⚠ {counts}: most of them. Difficulty is then mostly noise, and a hard set and an "
            "adapter built on it mean nothing here. Train a better teacher, or longer, first.**"
        )
    return f"{counts}. Its mean gap of {short['mean']:+.3f} nats measures what it lacks."


def choice(chosen: hard_set.HardSet, base: str) -> str:
    """What was chosen, for hard_set.json: of the hardest, what was left out and what joined."""
    k, rule = len(chosen.windows_K), chosen.rule
    share = chosen.share * (k - chosen.easy) / max(1, k)
    words = f"the hardest {share:.1%} of {base}'s windows, {chosen.threshold:.4f} nats and more"
    words += f", less the very hardest {rule.clip:.1%}" if rule.clip else ""
    words += ", without junk" if rule.leave_out_junk else ""
    words += f", and {chosen.easy:,} easy ones" if chosen.easy else ""
    tokens = f"; of each the hardest {rule.token_share:.0%} of its tokens"
    return words + (tokens if rule.token_share < 1 else "")


def hard_windows(base: str, short: dict, chosen: hard_set.HardSet, difficulty_N: np.ndarray) -> str:
    """How much of what was lost the hard set holds."""
    hard_N, lost_N = hard_set.hard(chosen, difficulty_N), np.fmax(difficulty_N, 0, dtype=np.float64)
    held = lost_N[hard_N].sum() / (lost_N.sum() or 1)
    share, better = hard_N.sum() / max(1, np.isfinite(difficulty_N).sum()), short["student_better"]
    warning = f"{base} is BETTER than its teacher on {better:.0%} of windows. "
    easy = f" {chosen.easy:,} easy windows are mixed in."
    return (
        f"{warning * (better > 0.5)}The hardest {share:.1%} of the windows "
        f"({chosen.threshold:.3f} nats and more) hold {held:.0%} of what {base} lost; the plan's "
        f"claim is most of it.{easy * (chosen.easy > 0)}"
    )


def difference(one: str, other: str, d: dict) -> str:
    """That `one` is better or worse than `other`, or not clearly different, with the interval."""
    size = intervals.Interval(d["difference"], d["low"], d["high"])
    how = "is better than" if d["high"] < 0 else "is not clearly different from"
    how = "is WORSE than" if d["low"] > 0 else how
    left_out = f"; {d['masked']:,} of {d['windows']:,} windows have no target and are left out"
    return f"{one} {how} {other}: {size} nats, one seed{left_out * (d['masked'] > 0)}."


def speed(name: str, shipped: list[dict], rows: list[dict], costs: list[dict]) -> str:
    """The 4-bit file in one sentence: bytes, tokens a second, and what it costs."""
    file, cost = (next(row for row in some if row["format"] == "Q4_0") for some in (shipped, costs))
    by = {row["way"]: row["decode"] for row in rows if row["threads"] == 1}
    return (
        f"{name} as Q4_0 is {file['bytes'] / 1e6:.3g} MB and writes {by['Q4_0']:,.0f} tokens a "
        f"second on one thread, {by['Q4_0'] / by[inference.RAW]:.1f} × plain PyTorch; 4 bits cost "
        f"{cost['loss'] - costs[0]['loss']:+.4f} nats."
    )


def setting(value: object, plan: tuple[float, float] | None, form: str = "{:g}") -> str:
    """A setting as text; * where the plan names it."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    return form.format(value) + " *" * (plan is not None and plan[0] <= value <= plan[1])
