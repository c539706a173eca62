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
        """Whether the plan's range may meet the intervals; an unknown end leaves out none."""
        low, high = min(i.low for i in self.both), max(i.high for i in self.both)
        return not (self.plan and (low > self.plan[1] or self.plan[0] > high))

    @property
    def row(self) -> dict:
        """As plots.effects takes it."""
        return vars(self) | self.change._asdict() | {"over_seeds": self.over_seeds}

    @property
    def spread(self) -> str:
        """ "over 3 seeds −0.030 ± 0.005"."""
        if not self.over_seeds:
            return "one seed"
        mean, half = self.over_seeds
        return f"over {len(self.seeds)} seeds {mean:+.3f} ± {half:.3f}".replace("-", "−")

    def words(self) -> str:
        plan = " (the plan: {:+.1f} to {:+.1f})".format(*self.plan) if self.plan else ""
        return f"{self.what}: {self.change}, {self.spread}{plan.replace('-', '−')}"


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


def table(claims: Sequence[Mapping]) -> pd.DataFrame:
    """One row a claim: the verdict and the first reason; a claim's own section has all of them."""
    rows = []
    for claim in claims:
        first, *more = claim["why"].split("; ")
        because = first + (f" (and {len(more)} more)" if more else "")
        rows.append({k: claim[k] for k in ("key", "claim", "verdict")} | {"because": because})
    return pd.DataFrame(rows)


def effects_table(effects: Mapping[str, Sequence[Effect]]) -> pd.DataFrame:
    """Every effect as numbers, key of the claim → effects."""
    rows, unknown = [], (math.nan, math.nan)
    for key, listed in effects.items():
        for e in listed:
            row = {"claim": key, "effect": e.what, "role": e.role} | e.change._asdict()
            row["seeds"] = max(1, len(e.seeds))
            row["mean of seeds"], row["half-width over seeds"] = e.over_seeds or unknown
            row["plan from"], row["plan to"] = e.plan or unknown
            rows.append(row)
    return pd.DataFrame(rows)
