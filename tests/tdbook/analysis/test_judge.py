"""Verdicts follow the rules that were written before the runs (params/small/README.md)."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from tdbook.analysis import verdict
from tdbook.analysis.intervals import Interval
from tdbook.analysis.verdict import FAILS, HOLDS, PART, UNDECIDED, Effect, judge

CASES = yaml.safe_load(Path(__file__).with_name("cases.yaml").read_text("utf8"))


def of(ends: list[float], seeds: Sequence[float] = (), what: str = "a − b", **more) -> Effect:
    more |= {"plan": tuple(more["plan"])} if more.get("plan") else {}
    return Effect(what, Interval(sum(ends) / 2, *ends), tuple(seeds), **more)


GOOD, CONTROL = (of(**CASES["effects"][name]) for name in ("good", "control"))


@pytest.mark.parametrize(("ends", "seeds", "clear"), CASES["clear"])
def test_clear_is_what_the_intervals_over_documents_and_seeds_say(ends, seeds, clear):
    effect = of(ends, seeds)
    assert effect.clear == clear and replace(effect, claimed=1).clear == -clear
    if len(seeds) > 1:  # Student's t, as scipy has it
        wanted = stats.t.interval(0.95, len(seeds) - 1, np.mean(seeds), stats.sem(seeds))
        assert effect.both[1][1:] == pytest.approx(wanted)
    assert effect.both[0] is effect.change and len(effect.both) == 1 + (len(seeds) > 1)


@pytest.mark.parametrize(("effects", "result", "why"), CASES["verdicts"])
def test_the_verdict_and_why(effects, result, why):
    effects = [of(**effect) for effect in effects]
    found, said = judge(effects, every=False)
    assert found == result and why in said
    assert result != HOLDS or said == "clear over documents and seeds"
    needed = {e.what for e in effects if e.role == "claim" and e.clear == -1}
    assert judge(effects)[0] == (FAILS if needed else result)


def some(rng: np.random.Generator) -> list[Effect]:
    """One to four effects of any kind, at times near 0."""
    effects = []
    for i in range(rng.integers(1, 5)):
        low, high = sorted(rng.normal(rng.choice([-0.4, 0, 0.4]), 0.2, 2).tolist())
        seeds = tuple(rng.normal((low + high) / 2, 0.05, rng.integers(0, 5)).tolist())
        plan = tuple(sorted(rng.uniform(-0.6, 0.1, 2).tolist())) if rng.random() < 0.5 else None
        role, claimed = rng.choice(["claim", "claim", "control", "part"]), rng.choice([-1, 1])
        more = dict(role=str(role), plan=plan, claimed=int(claimed))
        effects.append(of([low, high], seeds, what=f"e{i}", **more))
    return effects


def turned(e: Effect) -> Effect:
    plan, seeds = e.plan and (-e.plan[1], -e.plan[0]), tuple(-s for s in e.seeds)
    change = Interval(-e.change.value, -e.change.high, -e.change.low)
    return replace(e, change=change, plan=plan, claimed=-e.claimed, seeds=seeds)


def wider(e: Effect, by: float) -> Effect:
    """Both intervals, about the same middles."""
    mean = float(np.mean(e.seeds)) if e.seeds else 0.0
    change = e.change._replace(low=e.change.low - by, high=e.change.high + by)
    return replace(e, change=change, seeds=tuple(mean + (1 + by) * (s - mean) for s in e.seeds))


def test_signs_do_not_matter_and_less_knowledge_never_decides():
    rng, seen = np.random.default_rng(0), set()
    may = {UNDECIDED: {UNDECIDED}, HOLDS: {HOLDS, PART, UNDECIDED}}
    for _ in range(300):
        effects, every = some(rng), bool(rng.random() < 0.5)
        result = judge(effects, every)
        seen.add(result[0])
        assert judge([turned(e) for e in effects], every) == result
        less = judge([wider(e, rng.uniform(0, 1)) for e in effects], every)[0]
        assert less in may.get(result[0], {HOLDS, PART, FAILS, UNDECIDED})
        assert judge([replace(e, seeds=e.seeds[:1]) for e in effects], every)[0] != HOLDS
    assert seen == {HOLDS, PART, FAILS, UNDECIDED}


def test_words_and_tables_hold_every_number_which_survives_a_file():
    half = stats.t.ppf(0.975, 2) * np.std(GOOD.seeds, ddof=1) / 3**0.5
    numbers = f"−0.400 [−0.450, −0.350], over 3 seeds −0.400 ± {half:.3f}"
    assert GOOD.words() == f"a − b: {numbers} (the plan: −0.5 to −0.3)"
    assert Effect("x-1", Interval(-0.1)).words() == "x-1: −0.100 [unknown], one seed"
    frame = verdict.effects_table({"one": [GOOD, CONTROL], "two": [of([0.1, 0.2])], "three": []})
    back = pd.read_csv(io.StringIO(frame.to_csv(index=False)))
    pd.testing.assert_frame_equal(back, frame, check_exact=True)
    assert back["claim"].tolist() == ["one", "one", "two"]
    first = ["one", "a − b", "claim", *GOOD.change, 3, *GOOD.over_seeds, *GOOD.plan]
    names = "claim effect role value low high seeds".split()
    names += ["mean of seeds", "half-width over seeds", "plan from", "plan to"]
    assert back.iloc[0].to_dict() == dict(zip(names, first, strict=True))
    assert back.iloc[2]["seeds"] == 1 and back.iloc[2][names[7:]].isna().all()
