"""Notebook 04's verdict: does an adapter on the hard windows win back what the student lost, and
more than the same spent on anything else? A table, one sentence, and what limits both.

What is compared is what claims.yaml lists for the claims `distilled` and `adapter`, on hard, easy
and all text; where it lists models at their best rate, the folder's own are taken.
"""

import numpy as np
import pandas as pd

from tdbook.analysis import intervals
from tdbook.analysis.intervals import Interval
from tdbook.analysis.trial import CLAIMS, WORDS, Model, Trial
from tdbook.runs import rules
from tdlib.hard_set import known_mean

ENOUGH = 0.15  # nats that a teacher must be better than the base for the trial to mean something
NOTHING = "nothing: another seed of the base"
PARTS = ("hard", "easy", "all")


def listed(*keys: str) -> dict[str, dict]:
    """Question ("adapter on hard against its base") → row of claims.yaml."""
    rows = [row for claim in CLAIMS["claims"] if claim["key"] in keys for row in claim["effects"]]
    rows = [(next(iter(row.values())), row) for row in rows if not row.keys() & {"part", "text"}]
    return {words.replace("best ", "").replace("−", "against"): row for words, row in rows}


def comparisons(t: Trial) -> dict[str, tuple[Model, Model]]:
    """Question → the two models, of all that is there."""
    rows = listed("distilled", "adapter")
    pairs = {q: pair for q, row in rows.items() for _, _, *pair in t.pairs([row])}
    base, *seeds = t.seeds_of(t.models[t.base])
    seeds = [model for model in seeds if model.own] or seeds
    return pairs | ({NOTHING: (seeds[0], base)} if seeds else {})


def table(t: Trial) -> pd.DataFrame:
    """The comparisons: changes of loss with their intervals, and over seeds."""
    rows = []
    for question, (one, other) in comparisons(t).items():
        row = {"question": question, "model": one.name, "against": other.name + _also(one, other)}
        effects = {part: t.effect(one, other, part=part) for part in PARTS}
        row |= {f"{part} text": f"{effect.change}" for part, effect in effects.items()}
        rows.append(row | {"seeds, hard text": effects["hard"].spread})
    return pd.DataFrame(rows)


def limits(t: Trial) -> list[str]:
    """What limits the comparison, most important first, and how much of the gap is closed."""
    lines, there, needed = warnings(t), comparisons(t), listed("adapter")
    lines += [
        gap_in_words(t, *there[q]) for q, row in needed.items() if "gap" in row and q in there
    ]
    missing = [q for q, row in needed.items() if row.get("needed", True) and q not in there]
    if missing:
        lines.append(f"Not run, so not compared: {', '.join(missing)}.")
    if NOTHING not in there:
        lines.append(WORDS["chance"].format(t=t))
    return lines


def warnings(t: Trial) -> list[str]:
    """What makes the trial mean little, said before it."""
    lines = []
    if t.teacher in t.models:
        behind = t.change(t.base, t.teacher)
        words = WORDS["lag" if behind.value >= ENOUGH else "little"]
        lines.append(words.format(t=t, behind=behind, enough=ENOUGH))
    made = [model.name for model in t.models.values() if model.base == t.picked_by]
    if t.picked_by in (t.base, t.scratch, t.teacher) or made:
        lines.append(WORDS["picker"].format(t=t, made=", ".join(made)))
    return lines


def headline(t: Trial) -> str:
    """What the plan stands or falls with: hard windows against random ones, or what there is."""
    warned = [line.replace("**", "") for line in warnings(t) if line.startswith("**⚠")]
    compared = comparisons(t)
    main = compared.get("adapter on hard against adapter on random")
    lines = [in_words(t, *pair) for pair in ([main] if main else [*compared.values()][:1])]
    return " ".join([*warned, *lines]) or "Nothing to compare."


def in_words(t: Trial, one: Model, other: Model) -> str:
    """One comparison: hard, easy and all text, over seeds, and what else differs."""
    names = [f"the {m.kind} ({m.name})" if m.base else m.name for m in (one, other)]
    effects = {part: t.effect(one, other, part=part) for part in PARTS}
    parts = [f"on {part} text {_apart(effect.change)}" for part, effect in effects.items()]
    hard = effects["hard"]
    parts.append(hard.spread + " on hard text" * (len(hard.seeds) > 1))
    return f"Loss of {names[0]} against {names[1]}{_also(one, other)}: {'; '.join(parts)}."


def _apart(change: Interval) -> str:
    how = {-1: "better", 0: "not clearly apart", 1: "worse"}[change.clear]
    digits = ".3f" if abs(change.value) >= 0.0005 else ".5f"
    return f"{how}, {change:{digits}} nats"


def _also(one: Model, other: Model) -> str:
    """What two models of 03 differ in besides the windows and what trains."""
    names = (*rules.ADAPTERS, *rules.REPLAYS) if one.adapter == other.adapter else rules.REPLAYS
    pairs = [(name, one.p.get(name), other.p.get(name)) for name in names]
    odd = ", ".join(f"{name} {a} against {b}" for name, a, b in pairs if a != b)
    return f" ({odd})" if odd and one.base and other.base else ""


def gap_in_words(t: Trial, one: Model, rival: Model) -> str:
    """How much of the way from the base to the larger rival the adapter goes, on all text."""
    losses_3N = np.stack([t.losses[name] for name in (t.base, one.name, rival.name)])
    closed_R = intervals.gap_closed(
        *intervals.resampled_means(losses_3N, t.document_N, t.resamples).T
    )
    base, adapted, large = known_mean(losses_3N, axis=1)
    closed = Interval((base - adapted) / (base - large), *intervals.interval(closed_R))
    undefined = "undefined, since the base is not clearly worse"
    size = undefined if np.isnan(closed_R).all() else f"{closed:.2f}"
    return f"Share of the gap from {t.base} to {rival.name} that {one.name} closes: {size}."
