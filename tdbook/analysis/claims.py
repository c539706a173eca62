"""A claim and its verdict: effects with intervals over documents and over seeds, judged by rules.

An effect is a difference of loss (or of a share) with two 95 % intervals: over documents, of the
first seed, and, where several seeds were run, a t interval over their paired differences. The rules
are those of params/small/README.md, which were written before the runs.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from tdbook.analysis import intervals

HOLDS, PART, FAILS, UNDECIDED = "holds", "holds in part", "fails", "not decidable here"


@dataclass(frozen=True)
class Effect:
    """One difference with both intervals; where `claimed` is −1, below 0 is as the plan has it."""

    what: str
    value: float  # seed 1
    low: float  # over documents
    high: float
    seeds: tuple[float, ...] = ()  # the same difference with every seed, seed 1 among them
    role: str = "claim"  # or control, or part: shown, and not judged
    plan: tuple[float, float] | None = None  # the plan's own range of this difference
    claimed: int = -1

    @property
    def over_seeds(self) -> tuple[float, float] | None:
        """Mean and half-width; None for one seed."""
        return intervals.over_seeds(self.seeds) if len(self.seeds) > 1 else None

    @property
    def span(self) -> tuple[float, float]:
        """From and to, both intervals taken together."""
        mean, half = self.over_seeds or (self.value, 0.0)
        return min(self.low, mean - half), max(self.high, mean + half)

    @property
    def clear(self) -> int:
        """1 where both intervals lie on the claimed side of 0, −1 on the other, else 0."""
        spans = [(self.low, self.high)]
        if found := self.over_seeds:
            spans.append((found[0] - found[1], found[0] + found[1]))
        signs = {(low > 0) - (high < 0) for low, high in spans}
        return signs.pop() * self.claimed if len(signs) == 1 else 0

    def words(self) -> str:
        said = intervals.with_interval(self.value, self.low, self.high)
        if found := self.over_seeds:
            said += f", over {len(self.seeds)} seeds {found[0]:+.3f} ± {found[1]:.3f}"
        else:
            said += ", one seed"
        if self.plan:
            said += f" (the plan: {self.plan[0]:+.1f} to {self.plan[1]:+.1f})"
        return f"{self.what}: {said.replace('-', '−')}"


@dataclass(frozen=True)
class Claim:
    key: str
    claim: str
    verdict: str
    why: str
    control: str
    change: str
    effects: tuple[Effect, ...] = ()
    notes: tuple[str, ...] = ()  # what else was measured, in sentences


def judge(effects: Sequence[Effect], every: bool = True) -> tuple[str, str]:
    """The verdict on the effects whose role is "claim", and why. `every`: the claim needs all of
    them; otherwise some make it hold in part even where others go against it."""
    mains = [e for e in effects if e.role == "claim"]
    if not mains:
        return UNDECIDED, "it was not run"
    right, wrong = ([e.what for e in mains if e.clear == s] for s in (1, -1))
    if wrong and (every or not right):
        return FAILS, f"clear in the other direction: {', '.join(wrong)}" + _single(mains)
    if not right:
        small = [e for e in mains if e.plan and not _overlap(e.span, e.plan)]
        if len(small) == len(mains):
            return FAILS, "not clear, and the plan's smallest size lies outside the intervals"
        return UNDECIDED, "no effect is clear over documents and seeds"
    odd = [f"{w} is not clear" for w in (e.what for e in mains if e.clear == 0)]
    odd += [f"{w} goes the other way" for w in wrong]
    odd += [
        f"{e.what} is {'smaller' if min(map(abs, e.span)) < min(map(abs, e.plan)) else 'larger'} "
        "than the plan says"
        for e in mains
        if e.clear == 1 and e.plan and not _overlap(e.span, e.plan)
    ]
    odd += [f"no better than a control: {e.what}" for e in effects
            if e.role == "control" and e.clear != 1]  # fmt: skip
    odd += ["one seed"] if _single(mains) else []
    return (PART, "; ".join(odd)) if odd else (HOLDS, "clear over documents and seeds")


def _single(mains: Iterable[Effect]) -> str:
    return " (one seed)" if any(len(e.seeds) < 2 for e in mains) else ""


def _overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two spans may meet: an end that is not known (NaN, one document) leaves out none."""
    return not (one[0] > other[1] or other[0] > one[1])


def in_short(why: str) -> str:
    """The first reason, and how many more there are: a claim's own section has them all."""
    first, *more = why.split("; ")
    return first + (f" (and {len(more)} more)" if more else "")


def table(found: Sequence[Claim]) -> pd.DataFrame:
    """One row a claim: the verdict, and the first reason. (More columns fit no paper.)"""
    return pd.DataFrame([
        {"key": c.key, "claim": c.claim, "verdict": c.verdict, "because": in_short(c.why)}
        for c in found
    ])  # fmt: skip


def effects_table(found: Mapping[str, Sequence[Effect]]) -> pd.DataFrame:
    """Every effect as numbers, key of the claim → effects."""
    rows = []
    for key, effects in found.items():
        for e in effects:
            mean, half = e.over_seeds or (math.nan, math.nan)
            low, high = e.plan or (math.nan, math.nan)
            rows.append({
                "claim": key, "effect": e.what, "role": e.role, "value": e.value, "low": e.low,
                "high": e.high, "seeds": max(1, len(e.seeds)), "mean of seeds": mean,
                "half-width over seeds": half, "plan from": low, "plan to": high,
            })  # fmt: skip
    return pd.DataFrame(rows)
