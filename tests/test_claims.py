"""Verdicts follow the rules that were written before the runs (params/small/README.md)."""

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tdbook.analysis.claims import (
    FAILS,
    HOLDS,
    PART,
    UNDECIDED,
    Claim,
    Effect,
    effects_table,
    judge,
    table,
)

PLAN = (-0.5, -0.3)
SEEDS = (-0.42, -0.40, -0.38)  # t interval −0.40 ± 0.05


def of(low: float, high: float, seeds: tuple = (), **more) -> Effect:
    return Effect(more.pop("what", "a − b"), (low + high) / 2, low, high, seeds, **more)


GOOD = of(-0.45, -0.35, SEEDS, plan=PLAN)
CONTROL = of(-0.2, -0.1, (-0.15, -0.16, -0.14), role="control", what="a − control")


@pytest.mark.parametrize(
    ("low", "high", "seeds", "clear"),
    [
        (-0.2, -0.1, (-0.15, -0.16, -0.14), 1),
        (-0.2, -0.1, (), 1),  # of one seed the documents alone tell
        (-0.2, -0.1, (-0.15,), 1),
        (0.1, 0.2, (0.15, 0.16, 0.14), -1),
        (-0.1, 0.1, (-0.15, -0.16, -0.14), 0),  # not over documents
        (-0.2, -0.1, (-0.5, 0.3, -0.2), 0),  # not over seeds
        (-0.2, -0.1, (0.15, 0.16, 0.14), 0),  # one against the other
        (-0.1, 0.0, (), 0),  # 0 is in it
        (np.nan, np.nan, (-0.15, -0.16, -0.14), 0),  # of one document nothing is known
    ],
)
def test_clear_is_what_both_intervals_say(low, high, seeds, clear):
    effect = of(low, high, seeds)
    assert effect.clear == clear
    assert replace(effect, claimed=1).clear == -clear


@pytest.mark.parametrize("seeds", [(0.1, 0.4), (-0.2, -0.25, -0.1), (1.0, 2.0, 4.0, 8.0, -3.0)])
def test_the_interval_over_seeds_is_students_t_of_scipy(seeds):
    low, high = stats.t.interval(0.95, len(seeds) - 1, np.mean(seeds), stats.sem(seeds))
    mean, half = of(-0.1, 0.1, seeds).over_seeds
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert of(-0.1, 0.1, seeds).span == pytest.approx((min(-0.1, low), max(0.1, high)))


def test_of_one_seed_the_span_is_that_of_the_documents():
    assert of(-0.3, -0.1).over_seeds is None and of(-0.3, -0.1, (-0.2,)).over_seeds is None
    assert of(-0.3, -0.1, (-0.2,)).span == (-0.3, -0.1)


def test_words_give_every_number_and_a_true_minus():
    said = GOOD.words()
    half = stats.t.ppf(0.975, 2) * np.std(SEEDS, ddof=1) / 3**0.5
    assert said == (
        f"a − b: −0.400 [−0.450, −0.350], over 3 seeds −0.400 ± {half:.3f} (the plan: −0.5 to −0.3)"
    )
    said = of(-1.5, -1.2, (-1.3, -1.4), what="50m-1 − 50m", plan=(-2, -1)).words()
    assert "-" not in said.removeprefix("50m-1") and said.startswith("50m-1 − 50m: −1.350 [")
    assert of(-0.3, -0.1).words() == "a − b: −0.200 [−0.300, −0.100], one seed"
    assert of(np.nan, np.nan, what="x").words().startswith("x: undefined")
    assert Effect("x", -0.1, np.nan, np.nan).words() == "x: −0.100 [unknown], one seed"


# --- verdicts, by the written rules


def test_a_claim_holds_where_all_of_it_is_clear_of_the_plans_size_and_beats_its_controls():
    assert judge([GOOD])[0] == HOLDS
    assert judge([GOOD, CONTROL])[0] == HOLDS
    assert judge([replace(GOOD, plan=None), CONTROL])[0] == HOLDS
    assert judge([of(0.35, 0.45, (0.42, 0.40, 0.38), claimed=1)])[0] == HOLDS


@pytest.mark.parametrize(
    ("effects", "why"),
    [
        ([of(-0.45, -0.35, plan=PLAN)], "one seed"),
        ([of(-0.45, -0.35, (-0.4,), plan=PLAN)], "one seed"),
        ([of(-0.2, -0.1, (-0.15, -0.16, -0.14), plan=PLAN)], "a − b is smaller than the plan"),
        ([of(-0.9, -0.8, (-0.85, -0.86, -0.84), plan=PLAN)], "a − b is larger than the plan"),
        ([GOOD, replace(CONTROL, low=-0.2, high=0.1)], "no better than a control: a − control"),
        ([GOOD, of(0.1, 0.2, (0.15, 0.16), role="control")], "no better than a control"),
        ([GOOD, replace(GOOD, what="c − d", low=-0.4, high=0.1)], "c − d is not clear"),
    ],
)
def test_a_clear_effect_with_a_reserve_holds_in_part_and_says_it(effects, why):
    result, said = judge(effects)
    assert result == PART and why in said


def test_a_claim_fails_where_it_goes_the_other_way():
    for seeds in ((), (0.15, 0.16, 0.14)):
        result, why = judge([of(0.1, 0.2, seeds), CONTROL])
        assert result == FAILS and why.startswith("clear in the other direction: a − b")
        assert ("one seed" in why) == (not seeds)
    assert judge([GOOD, of(0.1, 0.2, (0.15, 0.16, 0.14))])[0] == FAILS  # it needs both


@pytest.mark.parametrize(
    ("low", "high", "plan", "result"),
    [
        (-0.1, 0.1, PLAN, FAILS),  # the plan's smallest size, 0.3, is outside
        (-0.35, 0.1, PLAN, UNDECIDED),  # and here it may be
        (-0.1, 0.1, None, UNDECIDED),
        (-0.1, 0.1, (-0.3, 0.0), UNDECIDED),  # a plan that may be nothing
        (np.nan, np.nan, PLAN, UNDECIDED),  # an interval that is not known leaves out nothing
    ],
)
def test_what_is_not_clear_fails_only_where_the_plans_smallest_size_is_left_out(
    low, high, plan, result
):
    assert judge([of(low, high, plan=plan)])[0] == result
    other = None if plan is None else (-plan[1], -plan[0])
    assert judge([of(-high, -low, plan=other, claimed=1)])[0] == result


def test_nothing_run_is_not_decidable_whatever_its_controls_and_parts_are():
    assert judge([]) == judge([CONTROL, replace(GOOD, role="part")])
    assert judge([])[0] == UNDECIDED


def test_parts_are_shown_and_never_judged():
    for low, high in ((0.1, 0.2), (-0.1, 0.1)):
        assert judge([GOOD, of(low, high, role="part", plan=PLAN)]) == judge([GOOD])


def test_of_a_claim_of_several_things_some_hold_it_in_part():
    right, wrong, open_ = GOOD, of(0.1, 0.2, (0.15, 0.16, 0.14)), of(-0.1, 0.1, (0.0, 0.1))
    for effects, result in (
        ([right, right], HOLDS), ([right, wrong], PART), ([right, open_], PART),
        ([wrong, open_], FAILS), ([wrong, wrong], FAILS), ([open_, open_], UNDECIDED),
    ):  # fmt: skip
        assert judge(effects, every=False)[0] == result
        assert judge(effects, every=True)[0] == (FAILS if wrong in effects else result)
    assert "a − b goes the other way" in judge([right, wrong], every=False)[1]


def some(rng: np.random.Generator) -> list[Effect]:
    """One to four effects of any kind, at times near 0."""
    found = []
    for i in range(rng.integers(1, 5)):
        low, high = sorted(rng.normal(rng.choice([-0.4, 0, 0.4]), 0.2, 2).tolist())
        seeds = tuple(rng.normal((low + high) / 2, 0.05, rng.integers(0, 5)).tolist())
        plan = tuple(sorted(rng.uniform(-0.6, 0.1, 2).tolist())) if rng.random() < 0.5 else None
        role = str(rng.choice(["claim", "claim", "control", "part"]))
        found.append(of(low, high, seeds, what=f"e{i}", role=role, plan=plan,
                        claimed=int(rng.choice([-1, 1]))))  # fmt: skip
    return found


def turned(e: Effect) -> Effect:
    plan = e.plan and (-e.plan[1], -e.plan[0])
    return replace(e, value=-e.value, low=-e.high, high=-e.low, plan=plan, claimed=-e.claimed,
                   seeds=tuple(-s for s in e.seeds))  # fmt: skip


def wider(e: Effect, by: float) -> Effect:
    """Both intervals, about the same middles."""
    mean = float(np.mean(e.seeds)) if e.seeds else 0.0
    return replace(e, low=e.low - by, high=e.high + by,
                   seeds=tuple(mean + (1 + by) * (s - mean) for s in e.seeds))  # fmt: skip


def test_signs_do_not_matter_and_less_knowledge_never_decides():
    rng, seen = np.random.default_rng(0), set()
    for _ in range(400):
        effects, every = some(rng), bool(rng.random() < 0.5)
        result = judge(effects, every)
        seen.add(result[0])
        assert judge([turned(e) for e in effects], every) == result
        less = judge([wider(e, rng.uniform(0, 1)) for e in effects], every)[0]
        if result[0] == UNDECIDED:
            assert less == UNDECIDED
        if result[0] == HOLDS:
            assert less != FAILS
        one = [replace(e, seeds=e.seeds[:1]) for e in effects]
        assert judge(one, every)[0] != HOLDS
    assert seen == {HOLDS, PART, FAILS, UNDECIDED}


# --- tables


def test_tables_hold_every_claim_and_effect_and_numbers_survive_a_file():
    found = {"one": [GOOD, CONTROL], "two": [replace(of(0.1, 0.2), claimed=1)], "three": []}
    frame = effects_table(found)
    back = pd.read_csv(io.StringIO(frame.to_csv(index=False)))
    pd.testing.assert_frame_equal(back, frame, check_exact=True)
    assert list(back["claim"]) == ["one", "one", "two"]
    assert list(back["seeds"]) == [3, 3, 1]
    mean, half = GOOD.over_seeds
    assert back.iloc[0].to_dict() == {
        "claim": "one", "effect": "a − b", "role": "claim", "value": GOOD.value, "low": -0.45,
        "high": -0.35, "seeds": 3, "mean of seeds": mean, "half-width over seeds": half,
        "plan from": -0.5, "plan to": -0.3,
    }  # fmt: skip
    assert back.iloc[2][["mean of seeds", "half-width over seeds", "plan from"]].isna().all()
    claims = [Claim("one", "It is so, always", HOLDS, "clear", "nothing", "more", (GOOD,))]
    back = pd.read_csv(io.StringIO(table(claims).to_csv(index=False)))
    assert back.to_dict("records") == [{
        "key": "one", "claim": "It is so, always", "verdict": HOLDS, "because": "clear",
    }]  # fmt: skip
