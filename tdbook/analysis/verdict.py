"""Notebook 04's verdict: does an adapter on the hard windows win back what the student lost, and
more than the same spent on anything else? A table, the same in words, and one sentence.

What is compared is what claims.yaml lists for the claims `distilled` and `adapter`, on hard, easy
and all text; where it lists models at their best rate, the folder's own are taken.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tdbook.analysis import intervals
from tdbook.analysis.claims import Effect
from tdbook.analysis.intervals import Interval
from tdbook.analysis.trial import CLAIMS, Model, Trial
from tdbook.runs import rules
from tdlib.hard_set import known_mean

ENOUGH = 0.15  # nats that a teacher must be better than the base for the trial to mean something
ADAPTER, RIVAL = "adapter on hard", "student-120m"
NOTHING = "nothing: another seed of the base"


@dataclass(frozen=True)
class Comparison:
    question: str
    one: Model
    other: Model
    effects: dict[str, Effect]  # by part of the text
    beyond: Interval  # change on the hard part minus that on the easy one


def rivals() -> dict[str, bool]:
    """Role that the adapter is compared with → whether the claim needs it."""
    rows = next(claim["effects"] for claim in CLAIMS["claims"] if claim["key"] == "adapter")
    rows = [row for row in rows if not row.keys() & {"part", "text"}]
    roles = [next(iter(row.values())).split(" − ")[1].removeprefix("best ") for row in rows]
    return {role: row.get("needed", True) for role, row in zip(roles, rows, strict=True)}


def comparisons(t: Trial) -> list[Comparison]:
    """Every comparison that the claims need, of the models that are there."""
    base, *seeds = t.seeds_of(t.models[t.base])
    pairs = [("distilled against scratch", base, scratch) for scratch in t.of("scratch")]
    for one in t.of(ADAPTER):
        for role in rivals():
            question = f"{ADAPTER} against {role}"
            pairs += [(question, one, other) for other in t.of(role, one.seeds)]
    own = [model for model in seeds if model.own]
    pairs += [(NOTHING, model, base) for model in own or seeds]
    return [compare(t, *pair) for pair in pairs]


def compare(t: Trial, question: str, one: Model, other: Model) -> Comparison:
    effects = {part: t.effect(one, other, part=part) for part in ("hard", "easy", "all")}
    apart_N = t.losses[one.name] - t.losses[other.name]
    beyond = intervals.beyond(apart_N, t.hard_N, t.document_N, t.resamples)
    return Comparison(question, one, other, effects, beyond)


def table(compared: Iterable[Comparison]) -> pd.DataFrame:
    """The comparisons as a table: changes of loss with their intervals, and over seeds."""
    columns = "question, model, against, hard part, easy part, hard beyond easy, all text"
    rows = []
    for c in compared:
        hard, easy, whole = c.effects.values()
        changes = (hard.change, easy.change, c.beyond, whole.change)
        seeds = f"{len(hard.seeds)}: {hard.spread}" if hard.over_seeds else "one seed"
        rows.append([c.question, c.one.name, c.other.name, *map(format, changes), seeds])
    return pd.DataFrame(rows, columns=[*columns.split(", "), "seeds, hard part"])


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
    missing = [role for role, needed in rivals().items() if needed and role not in there]
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
    if t.teacher in t.models:
        behind = t.change(t.base, t.teacher)
        if behind.value >= ENOUGH:
            lines.append(f"{t.base} is {behind} nats behind its teacher: a lag to win back.")
        else:
            lines.append(
                f"**⚠ This trial means little**: {t.base} is {behind} nats behind its teacher, and "
                f"it takes {ENOUGH} for a lag to win back. Train a better teacher first."
            )
    compared = t.picked_by in (t.base, t.scratch, t.teacher)
    made = [model.name for model in t.models.values() if model.base == t.picked_by]
    if compared or made:
        why = "it is in the comparison" if compared else f"{made[0]} was made from it"
        lines.append(
            f"**⚠ {t.picked_by} picks the hard windows, and {why}**: windows picked because one "
            "model did badly there flatter every other. Name another seed as picked_by."
        )
    return lines


def in_words(c: Comparison) -> str:
    """One comparison: hard, easy and all text, over seeds, and what else differs."""
    one, other = (f"the {m.kind} ({m.name})" if m.base else m.name for m in (c.one, c.other))
    parts = [f"on {part} text {_apart(effect.change)}" for part, effect in c.effects.items()]
    hard, easy, _ = c.effects.values()
    seeds = "one seed"
    if hard.over_seeds:
        seeds = f"over {len(hard.seeds)} seeds hard {hard.spread}, easy {easy.spread}"
    line = f"Loss of {one} against {other}: {'; '.join(parts)}; {seeds}."
    if odd := _also(c.one, c.other):
        line += f" They also differ in {odd}."
    if c.question == NOTHING:
        how = "clear" if c.beyond.clear else "not clearly apart from nothing"
        line = f"What nothing at all 'gains', read in the same way. {line}"
        line += f" Its change on hard text beyond that on easy text is {how}: {c.beyond} nats."
    return line


def _apart(change: Interval) -> str:
    if np.isnan(change.value):
        return "undefined, since no window there has a target"
    how = {-1: "better", 0: "not clearly apart", 1: "worse"}[change.clear]
    digits = ".3f" if abs(change.value) >= 0.0005 else ".5f"
    return f"{how}, {change:{digits}} nats"


def _also(one: Model, other: Model) -> str:
    """What two models of 03 differ in besides the windows and what trains."""
    if not (one.base and other.base):
        return ""
    both = one.adapter == other.adapter
    names = (*rules.ADAPTERS, *rules.REPLAYS) if both else rules.REPLAYS  # weights have no rank
    pairs = ((name, one.p.get(name), other.p.get(name)) for name in names)
    return ", ".join(f"{name} ({a} against {b})" for name, a, b in pairs if a != b)


def gap_in_words(t: Trial, one: Model, rival: Model) -> str:
    """How much of the way from the base to the larger rival the adapter goes, on all text."""
    losses_3N = np.stack([t.losses[name] for name in (t.base, one.name, rival.name)])
    means_R3 = intervals.resampled_means(losses_3N, t.document_N, t.resamples)
    closed_R = intervals.gap_closed(*means_R3.T)
    base, adapted, large = known_mean(losses_3N, axis=1)
    closed = Interval((base - adapted) / (base - large), *intervals.interval(closed_R))
    size = f"{closed:.2f}"
    if np.isnan(means_R3).any():
        size = "undefined, since one document has no interval"
    elif np.isnan(closed_R).all():
        size = "undefined, since the base is not clearly worse"
    return f"Share of the gap from {t.base} to {rival.name} that {one.name} closes: {size}."
