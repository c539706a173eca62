"""Notebook 04's verdict: does an adapter on the hard windows win back what the student lost, and
more than the same spent on anything else? A table, the same in words, and one sentence.

What is compared is what claims.yaml lists for the claims `distilled` and `adapter`, as effects on
hard, on easy and on all text; where it lists models at their best rate, the folder's own are taken.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tdbook.analysis import intervals
from tdbook.analysis.claims import Effect
from tdbook.analysis.intervals import Interval
from tdbook.analysis.trial import CLAIMS, Model, Trial
from tdlib import hard_set

ENOUGH = 0.15  # nats that a teacher must be better than the base for the trial to mean something
ADAPTER, NOTHING = "adapter on hard", "nothing: another seed of the base"
RIVAL = "student-120m"
# what two models of 03 may differ in besides what they are compared for
OF_ADAPTERS = ["rank", "lora_scale", "targets"]
OF_BOTH = "share token_share ce_weight temperature epochs token_limit learning_rate".split()


@dataclass(frozen=True)
class Comparison:
    question: str
    one: Model
    other: Model
    effects: dict[str, Effect]  # by part of the text
    beyond: Interval  # change on the hard part minus that on the easy one


def listed() -> dict[str, bool]:
    """Role that the adapter is compared with → whether the claim needs it."""
    rows = next(claim["effects"] for claim in CLAIMS["claims"] if claim["key"] == "adapter")
    judged = [row for row in rows if not row.keys() & {"part", "on"}]
    roles = {next(iter(row.values())).split(" − ")[1]: row.get("needed", True) for row in judged}
    return {role.removeprefix("best "): needed for role, needed in roles.items()}


def comparisons(t: Trial) -> list[Comparison]:
    """Every comparison that the claims need, of the models that are there."""
    pairs = [("distilled against scratch", t.models[t.base], m) for m in t.of("scratch")]
    for one in t.of(ADAPTER):
        for role in listed():
            question = f"{ADAPTER} against {role}"
            pairs += [(question, one, other) for other in t.of(role, one.seeds)]
    base, *seeds = t.seeds_of(t.models[t.base])
    own = [m for m in seeds if m.own]  # those of a sweep where the folder itself has none
    pairs += [(NOTHING, m, base) for m in own or seeds]
    return [compare(t, *pair) for pair in pairs]


def compare(t: Trial, question: str, one: Model, other: Model) -> Comparison:
    effects = {part: t.effect(one, other, part=part) for part in ("hard", "easy", "all")}
    apart_N = t.losses[one.name] - t.losses[other.name]
    beyond = intervals.beyond(apart_N, t.hard_N, t.document_N, t.resamples)
    return Comparison(question, one, other, effects, beyond)


def table(compared: Iterable[Comparison]) -> pd.DataFrame:
    """The comparisons as a table: changes of loss with their intervals, and over seeds."""
    rows = []
    for c in compared:
        changes = {f"{part} part": f"{c.effects[part].change}" for part in ("hard", "easy")}
        changes |= {"hard beyond easy": f"{c.beyond}", "all text": f"{c.effects['all'].change}"}
        names = {"question": c.question, "model": c.one.name, "against": c.other.name}
        hard = c.effects["hard"]
        seeds = f"{len(hard.seeds)}: {hard.spread}" if hard.over_seeds else "one seed"
        rows.append(names | changes | {"seeds, hard part": seeds})
    return pd.DataFrame(rows)


def sentences(t: Trial, compared: list[Comparison]) -> list[str]:
    """The verdict, most important first: whether the trial means anything, then every comparison,
    what was not run, and what another seed of the base seems to gain."""
    lines = [*warnings(t), *map(in_words, compared)]
    if left_out := int(np.isnan(t.losses[t.base]).sum()):
        lines.append(
            f"{left_out:,} of {len(t.hard_N):,} windows have no target (a mask): they are neither "
            "hard nor easy, and in no mean and no interval."
        )
    lines += [gap_in_words(t, c.one, c.other) for c in compared if c.question.endswith(RIVAL)]
    there = {c.question.removeprefix(f"{ADAPTER} against ") for c in compared}
    missing = [role for role, needed in listed().items() if needed and role not in there]
    if "its base" in missing:
        lines.append(f"No adapter on the hard set of {t.base} is here, so the claim is not tried.")
    elif missing:
        lines.append(f"Not run, so not compared: {', '.join(missing)}.")
    if NOTHING not in there:
        lines.append(
            f"We cannot say how much of this is chance: that needs a third seed of {t.base}, since "
            f"{t.picked_by} picks the hard windows."
        )
    return lines


def headline(t: Trial, compared: list[Comparison]) -> str:
    """What the plan stands or falls with: hard windows against random ones, or what there is."""
    warned = [line.replace("**", "") for line in warnings(t) if line.startswith("**⚠")]
    wanted = [c for c in compared if c.question == f"{ADAPTER} against adapter on random"]
    return " ".join([*warned, *map(in_words, wanted or compared[:1])]) or "Nothing to compare."


def warnings(t: Trial) -> list[str]:
    """What makes the trial mean little, said before it."""
    lines = []
    if t.teacher in t.losses:
        behind = t.change(t.base, t.teacher)
        ahead = _size(behind, signed=True)
        lines.append(
            f"{t.base} is {ahead} behind its teacher: there is a lag to win back."
            if behind.value >= ENOUGH
            else f"**⚠ This trial means little**: {t.base} is only {ahead} behind its teacher, and "
            f"it takes {ENOUGH} for a lag to win back. Train a better teacher first."
        )
    compared = t.picked_by in (t.base, t.scratch, t.teacher)
    made = [m.name for m in t.models.values() if m.base == t.picked_by]
    if compared or made:
        why = "it is in the comparison" if compared else f"{made[0]} was made from it"
        lines.append(
            f"**⚠ {t.picked_by} picks the hard windows, and {why}**: windows picked because one "
            "model did badly there flatter every other. Name another seed as picked_by."
        )
    return lines


def in_words(c: Comparison) -> str:
    """One comparison: hard part, easy part, all, and over seeds."""
    hard, easy, whole = (e.change for e in c.effects.values())
    one, other = (f"the {m.kind} ({m.name})" if m.base else m.name for m in (c.one, c.other))
    how = {
        -1: f"beats {other} by {_size(hard)}",
        0: f"is not clearly apart from {other} ({_size(hard)})",
        1: f"loses to {other} by {_size(hard)}",
    }
    line = f"On the hard part {one} {how[hard.clear]}"
    for change, where in ((easy, "on the easy part"), (whole, "on all text")):
        size = _size(change)
        how = {-1: f"it gains {size}", 0: f"they are not apart ({size})", 1: f"it loses {size}"}
        line += f"; {where} {how[change.clear]}"
    line += f"; {_seeds_in_words(c)}."
    if odd := _also(c.one, c.other):
        line += f" They also differ in {odd}."
    if c.question == NOTHING:
        how = "is clear" if c.beyond.clear else "is not clearly apart from nothing"
        line = f"What nothing at all 'gains', read in the same way: {line[0].lower()}{line[1:]}"
        line += (
            f" Its change on the hard part beyond that on the easy one {how}: {_size(c.beyond)}."
        )
    return line


def _size(change: Interval, signed: bool = False) -> str:
    """A change as "0.050 ± 0.006 nats [0.045, 0.056]", signed where it is not clear."""
    value, low, high = change
    if np.isnan(value):
        return "undefined: no window there has a target"
    if np.isnan(low):
        return f"{value:+.3f} nats, of one document".replace("-", "−")
    form = ".3f" if signed or max(map(abs, change)) >= 0.001 else ".5f"  # of hardly anything
    if change.clear and not signed:
        value, low, high = abs(value), *sorted((abs(low), abs(high)))
    else:
        form = f"+{form}"
    size = f"{value:{form}} ± {change.half:{form.strip('+')}} nats [{low:{form}}, {high:{form}}]"
    return size.replace("-", "−")


def _seeds_in_words(c: Comparison) -> str:
    hard, easy = (c.effects[part] for part in ("hard", "easy"))
    if not hard.over_seeds:
        return "one seed"
    each = f"hard {hard.spread}, easy {easy.spread}"
    return f"over {len(hard.seeds)} seeds (t interval of the change): {each}"


def _also(one: Model, other: Model) -> str:
    """What two models of 03 differ in besides the windows and what trains."""
    if not (one.base and other.base):
        return ""
    names = OF_ADAPTERS * (one.trains == other.trains) + OF_BOTH
    pairs = ((name, one.p.get(name), other.p.get(name)) for name in names)
    return ", ".join(f"{name} ({a} against {b})" for name, a, b in pairs if a != b)


def gap_in_words(t: Trial, one: Model, rival: Model) -> str:
    """How much of the way from the base to the larger rival the adapter goes, on all text."""
    losses_3N = np.stack([t.losses[name] for name in (t.base, one.name, rival.name)])
    means_R3 = intervals.resampled_means(losses_3N, t.document_N, t.resamples)
    closed_R = intervals.gap_closed(*means_R3.T)
    base, adapted, large = hard_set.known_mean(losses_3N, axis=1)
    closed = Interval((base - adapted) / (base - large), *intervals.interval(closed_R))
    size = f"{closed:.2f}"
    if np.isnan(means_R3).any():
        size = "undefined, since one document has no interval"
    elif not np.isfinite(closed_R).any():
        size = "undefined, since the base is not clearly worse"
    return f"Share of the gap from {t.base} to {rival.name} that {one.name} closes: {size}."
