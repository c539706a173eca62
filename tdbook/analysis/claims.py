"""A claim and its verdict: effects with intervals over documents and over seeds, judged by rules.

The rules are those of params/small/README.md, which were written before the runs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from tdbook.analysis import intervals
from tdbook.analysis.intervals import Interval

HOLDS, PART, FAILS, UNDECIDED = "holds", "holds in part", "fails", "not decidable here"


@dataclass(frozen=True)
class Effect:
    """A difference of loss (or of a share): of the first seed with its interval over documents, and
    of every seed. Where `claimed` is −1, below 0 is as the plan has it."""

    what: str
    change: Interval
    seeds: tuple[float, ...] = ()  # the same difference with every seed, the first among them
    role: str = "claim"  # or control, or part: shown, and not judged
    plan: tuple[float, float] | None = None  # the plan's own range of this difference
    claimed: int = -1

    @property
    def over_seeds(self) -> tuple[float, float] | None:
        """Mean and half-width of the t interval; None for one seed."""
        return intervals.over_seeds(self.seeds) if len(self.seeds) > 1 else None

    @property
    def both(self) -> list[Interval]:
        """The interval over documents and, of several seeds, that over seeds."""
        if not self.over_seeds:
            return [self.change]
        mean, half = self.over_seeds
        return [self.change, Interval(mean, mean - half, mean + half)]

    @property
    def clear(self) -> int:
        """1 where both intervals lie on the claimed side of 0, −1 on the other, else 0."""
        signs = {interval.clear for interval in self.both}
        return signs.pop() * self.claimed if len(signs) == 1 else 0

    @property
    def of_plans_size(self) -> bool:
        """Whether the plan's range may meet the intervals: an end that is not known leaves out
        none."""
        low, high = min(i.low for i in self.both), max(i.high for i in self.both)
        return not (self.plan and (low > self.plan[1] or self.plan[0] > high))

    @property
    def row(self) -> dict:
        """As numbers, for figures and tables."""
        own = {"what": self.what, "role": self.role, "plan": self.plan, "seeds": self.seeds}
        return own | self.change._asdict() | {"over_seeds": self.over_seeds}

    @property
    def spread(self) -> str:
        """The t interval over seeds as "−0.030 ± 0.005"."""
        return "{:+.3f} ± {:.3f}".format(*self.over_seeds).replace("-", "−")

    def words(self) -> str:
        seeds = f"over {len(self.seeds)} seeds {self.spread}" if self.over_seeds else "one seed"
        plan = " (the plan: {:+.1f} to {:+.1f})".format(*self.plan) if self.plan else ""
        return f"{self.what}: {self.change}, {seeds}{plan.replace('-', '−')}"


@dataclass(frozen=True)
class Claim:
    key: str
    claim: str
    verdict: str
    why: str
    control: str
    change: str  # what would change our mind
    effects: tuple[Effect, ...] = ()
    notes: tuple[str, ...] = ()  # what else was measured, in sentences


def judge(effects: Sequence[Effect], every: bool = True) -> tuple[str, str]:
    """The verdict on the effects whose role is "claim", and why. `every`: the claim needs all of
    them; otherwise some make it hold in part even where others go against it."""
    mains = [e for e in effects if e.role == "claim"]
    if not mains:
        return UNDECIDED, "it was not run"
    right, wrong = ([e for e in mains if e.clear == sign] for sign in (1, -1))
    one_seed = any(len(e.seeds) < 2 for e in mains)
    if wrong and (every or not right):
        names = ", ".join(e.what for e in wrong)
        return FAILS, f"clear in the other direction: {names}{' (one seed)' * one_seed}"
    if not right:
        if not any(e.of_plans_size for e in mains):
            return FAILS, "not clear, and the plan's smallest size lies outside the intervals"
        return UNDECIDED, "no effect is clear over documents and seeds"
    controls = [e for e in effects if e.role == "control"]
    reserves = [f"{e.what} is not clear" for e in mains if e.clear == 0]
    reserves += [f"{e.what} goes the other way" for e in wrong]
    reserves += [f"{e.what} is {_size(e)} than the plan says" for e in right if not e.of_plans_size]
    reserves += [f"no better than a control: {e.what}" for e in controls if e.clear != 1]
    reserves += ["one seed"] * one_seed
    return (PART, "; ".join(reserves)) if reserves else (HOLDS, "clear over documents and seeds")


def _size(e: Effect) -> str:
    ends = [abs(end) for interval in e.both for end in interval[1:]]
    return "smaller" if min(ends) < min(map(abs, e.plan)) else "larger"


def table(claims: Sequence[Claim]) -> pd.DataFrame:
    """One row a claim: the verdict and the first reason; a claim's own section has all of them."""
    rows = []
    for c in claims:
        first, *more = c.why.split("; ")
        because = first + (f" (and {len(more)} more)" if more else "")
        rows.append(dict(key=c.key, claim=c.claim, verdict=c.verdict, because=because))
    return pd.DataFrame(rows)


def effects_table(effects: Mapping[str, Sequence[Effect]]) -> pd.DataFrame:
    """Every effect as numbers, key of the claim → effects."""
    columns = {"seeds": "seeds", "mean": "mean of seeds", "half": "half-width over seeds"}
    rows = []
    for key, listed in effects.items():
        for e in listed:
            mean, half = e.over_seeds or (math.nan, math.nan)
            low, high = e.plan or (math.nan, math.nan)
            row = {"claim": key, "effect": e.what, "role": e.role} | e.change._asdict()
            row |= dict(seeds=max(1, len(e.seeds)), mean=mean, half=half)
            rows.append(row | {"plan from": low, "plan to": high})
    return pd.DataFrame(rows).rename(columns=columns)
