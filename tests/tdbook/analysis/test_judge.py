"""Verdicts follow DESIGN's rules: one interval of the seeds' mean, and the plan's smallest size."""

import io
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tdbook.analysis import verdict
from tdbook.analysis.intervals import Interval
from tdbook.analysis.verdict import FAILS, HOLDS, UNDECIDED, Effect, Verdict, judge, judge_one
from tests.helpers import cases

CASES = cases(__file__)


def of(low: float, high: float, least: float = 0.0, seeds: int = 3, role: str = "effect", **more):
    interval = Interval((low + high) / 2, low, high)
    return Effect(role, interval, seeds, role, least, **more)


@pytest.mark.parametrize(("ends", "least", "claimed", "result", "where"), CASES["one"])
def test_the_verdict_is_where_the_interval_lies(ends, least, claimed, result, where):
    """Beside the smallest size."""
    assert judge_one(Interval(math.nan, *ends), least, claimed) == (result, where)


@pytest.mark.parametrize(("effects", "result", "why"), CASES["together"])
def test_a_claim_holds_if_both_its_effect_and_its_mechanism_do(effects, result, why):
    assert judge([of(*effect) for effect in effects]) == (result, why)


def some(rng: np.random.Generator) -> Effect:
    """Any effect, at times near δ or near 0."""
    claimed, size = int(rng.choice([-1, 1])), float(rng.choice([0, 0.1, 0.3]))
    middle = rng.normal(rng.choice([0, claimed * size, 0.4]), 0.1)
    half = 10 ** rng.uniform(-4, 0)
    more = dict(least=claimed * size, claimed=claimed, seeds=int(rng.integers(3, 6)))
    return of(middle - half, middle + half, **more)


def narrower(e: Effect, share: float) -> Effect:
    value, low, high = e.interval
    return replace(e, interval=Interval(value, *(value + share * (x - value) for x in (low, high))))


def turned(e: Effect) -> Effect:
    value, low, high = e.interval
    return replace(e, interval=Interval(-value, -high, -low), least=-e.least, claimed=-e.claimed)


def test_knowing_more_never_turns_a_failure_into_anything_else_and_signs_do_not_matter():
    rng, seen = np.random.default_rng(0), set()
    for _ in range(2000):
        e = some(rng)
        result, where = e.verdict
        seen.add((result, where))
        near = narrower(e, rng.uniform(0, 1)).verdict[0]
        assert near == result or result == UNDECIDED
        short = e.claimed * e.interval.value < e.claimed * e.least
        wide = narrower(e, 10 ** rng.uniform(0, 3)).verdict[0]
        assert HOLDS not in (result, near, wide) or not short
        assert wide in (result, UNDECIDED) and turned(e).verdict == (result, where)
        both = [e, replace(some(rng), role="mechanism")]
        sharper = judge([narrower(x, rng.uniform(0, 1)) for x in both])[0]
        assert sharper == FAILS or judge(both)[0] != FAILS
        for seeds in range(verdict.SEEDS):  # few decide nothing
            assert judge([replace(e, seeds=seeds)])[0] == UNDECIDED
    assert {word for word, _ in seen} == {HOLDS, FAILS, UNDECIDED} and len(seen) == 6


def test_a_row_of_the_table_and_every_effect_survive_a_file():
    effects = [of(-0.28, -0.11, -0.3, plan=(-0.5, -0.3)), of(0.2, 0.3, seeds=5, role="cost")]
    effects += [of(0.1, 0.2, seeds=0, role="also"), of(-0.2, -0.1, seeds=1, role="also")]
    row = Verdict("distilled", effects, *judge(effects)).cells()
    assert [*row.values()][1:] == CASES["cells"]
    ends = {"wins": (-0.2, -0.1), "undecided": (-0.2, 0.1), "not run": (-0.2, -0.1, 0, 0)}
    for word, cost in ends.items():
        cells = Verdict("adapter", [of(*cost, role="cost")], "", "").cells()
        assert cells["at equal cost"] == word and cells["measured"] == "–"
    frame = verdict.effects_table([Verdict("distilled", effects, "", "")])
    back = pd.read_csv(io.StringIO(frame.to_csv(index=False)))
    pd.testing.assert_frame_equal(back, frame, check_exact=True)
    assert back["role"].tolist() == ["effect", "cost", "also"]  # what was run
    assert back.loc[0, ["low", "high", "seeds"]].tolist() == [-0.28, -0.11, 3]
    assert back.loc[2, "verdict"] == "not decidable here: one seed"
