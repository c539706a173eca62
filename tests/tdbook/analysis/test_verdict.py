"""Roles come from parameters, never from names; effects and the verdict in words say what simulated
losses hold, whose truth is known."""

import itertools
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tdbook.analysis import verdict
from tdbook.analysis.verdict import CLAIMS, Trial
from tdbook.book import comparison, evidence

D, N = 60, 1200  # documents, windows of the text that judges
SEED = 0.04  # nats that another seed moves a window, on both sides
DOCUMENT_N = np.arange(N) // (N // D)
NOISE_N = np.random.default_rng(0).normal(0, 0.5, N)  # of the text: no difference holds it
EQUAL = (0.0, 0.0)
MEAN = 4 / 3  # of 1 and, on a third of the windows, 2
P01 = dict(profile="small", out="o", shape="student-50m-small", ce_weight=0.5, init="random")
P01 |= dict(epochs=2.0, temperature=2.0, token_limit=0, learning_rate=2e-3, distinct_tokens=0)
P01["warmup_share"] = 0.1
P03 = dict(profile="small", out="o", base="50m", rank=16, learning_rate=1e-3, ce_weight=0.0)
P03 |= dict(windows="hard", trains="adapter")


def distilled(name: str, seed: int = 1, tokens: int = 1000, **changed) -> dict:
    p = P01 | dict(run=f"01_distill-{name}", student=name, seed=seed) | changed
    log = {f"log of {name}": [{"tokens": 0}, {"tokens": tokens}]}
    return dict(notebook="01_distill", parameters=p, models={name: {}}, remembered=log)


def replayed(name: str, seed: int = 1, **changed) -> dict:
    p = P03 | dict(run=f"03_lora-{name}", adapter=name, seed=seed) | changed
    log = {f"log of {name}": [{"tokens": 200}]}
    return dict(notebook="03_lora", parameters=p, models={name: {}}, remembered=log)


P00, P05 = dict(run="00_teacher", seed=1), dict(run="05_progressive", seed=1, ce_weight=0.5)
TEACHER = dict(notebook="00_teacher", parameters=P00, models={"teacher": {}}, remembered={})
ROUTES = {name: {} for name in ("150m", "75m", "75m-direct")}
PROGRESSIVE = dict(notebook="05_progressive", parameters=P05, models=ROUTES, remembered={})
SCRATCH = distilled("scratch", ce_weight=1.0)
CORE = [TEACHER, distilled("50m"), distilled("pick", 2), SCRATCH]
THIRD = distilled("third", 3)
HARD, RANDOM = replayed("hard"), replayed("random", windows="random")
ON = {"on-hard": "hard", "on-random": "random", "on": "all"}
EVERY = {"hard-merged": HARD, "random-merged": RANDOM}
EVERY |= {f"{w}-merged": replayed(w, windows=w) for w in ("easiest", "all")}
EVERY |= {name: replayed(name, trains="weights", windows=w) for name, w in ON.items()}
EVERY |= {"long": distilled("long", tokens=1400, epochs=2.8)}
EVERY |= {n: distilled(n, shape=f"student-{m}-small") for n, m in (("55m", "55m"), ("big", "120m"))}


def models(records: list[dict], points: dict | None = None) -> dict[str, verdict.Model]:
    """Those of a folder; a point's record is in a folder of its own."""
    made = {n: dict(model=next(iter(r["models"])), record=r) for n, r in (points or {}).items()}
    points = {name: SimpleNamespace(**point) for name, point in made.items()}
    by_run = {record["parameters"]["run"]: record for record in records}
    return verdict.models(SimpleNamespace(records=by_run, points=points))


def of(records: list[dict], losses: dict, hard_N: np.ndarray, points=None, **more) -> Trial:
    names = dict(base="50m", scratch="scratch", teacher="teacher", picked_by="pick", resamples=400)
    there = {name: model for name, model in models(records, points).items() if name in losses}
    return Trial(there, losses, hard_N, DOCUMENT_N, **names | more)


def simulated(records: list[dict], **truth: tuple[float, float]) -> Trial:
    """Windows are hard as `pick` has it. Each model is the student's truth, plus what is given for
    the hard fifth (of that truth) and for the rest, plus a seed's noise."""
    rng = np.random.default_rng(0)
    teacher_N = 4 + 0.4 * rng.normal(size=D)[DOCUMENT_N] + 0.3 * rng.normal(size=N)
    lag_N = np.clip(0.3 + 0.1 * rng.normal(size=D)[DOCUMENT_N] + 0.1 * rng.normal(size=N), 0, 1)
    truly_N = lag_N >= np.quantile(lag_N, 0.8)
    losses = {"teacher": teacher_N}
    for name, (hard, easy) in truth.items():
        own_N = SEED * rng.normal(size=N)
        losses[name] = teacher_N + lag_N + np.where(truly_N, hard, easy) + own_N
    return of(records, losses, comparison.hard_windows(losses, "pick", "teacher", 0.2))


def plain(records: list[dict], means: dict, points: dict | None = None, **more) -> Trial:
    """Losses that differ as the means do, and twice as much on hard text, which is a third."""
    hard_N = np.arange(N) % 3 == 0
    losses = {name: NOISE_N + mean * (1 + hard_N) for name, mean in means.items()}
    return of(records, losses, hard_N, points, **more)


def claim(key: str, t: Trial) -> list:
    return t.effects(CLAIMS["claims"][key]["effects"])


def test_students_are_found_by_parameters_not_by_names():
    large = dict(shape="student-120m-small")
    records = [
        *(*CORE, PROGRESSIVE, distilled("x3", **large), distilled("120m", **large, ce_weight=1.0)),
        *(distilled("cold", **large, temperature=1.0), distilled("cut", **large, init="teacher")),
        distilled("longer-a", tokens=2000, ce_weight=1.0, distinct_tokens=1000),
        distilled("longer-b", tokens=2000, ce_weight=1.0),
        distilled("x0", tokens=2500, token_limit=2500),
        *(distilled("x1", shape="student-55m"), distilled("x2", shape="student-80m-tiny")),
        distilled("a-seed", 3, shape="student-80m-tiny"),  # the base's seed goes before it
        distilled("75m-long", tokens=3000, shape="student-75m-small"),
    ]
    names = [name for record in records for name in record["models"]]
    wanted = """distilled 50m, scratch scratch, scratch for more epochs longer-a, direct 75m-direct,
     scratch on fresh tokens longer-b, a stretched schedule x0, student-55m x1, student-80m x2,
     student-120m x3, student-75m 75m-long, progressive 75m"""
    wanted = dict(row.strip().rsplit(" ", 1) for row in wanted.split(","))
    t = plain(records, dict.fromkeys(names, 1.0))
    assert {role: t.first(role).name for role in wanted} == wanted
    point = {"x1": distilled("x1", shape="student-55m")}  # is no favourite
    t = plain(CORE, dict.fromkeys([*names[:4], "x1"], 1.0), point)
    found = [role for role in CLAIMS["models"] if t.first(role)]
    assert found == ["distilled", "its base", "scratch"]
    assert t.effects([{"claim": "direct − distilled"}, {"claim": "its base − student-80m"}]) == []


def test_every_arm_is_at_the_rate_that_development_prefers_before_the_claim_is_judged():
    """Adapters on hard windows at four rates, and others that are no candidates; all of these are
    better on development than the one that is."""
    weights = dict(trains="weights", windows="all")
    records = [*CORE, HARD, replayed("of-pick", base="pick")]
    records += [replayed("on", ce_weight=0.5, **weights)]
    points = {f"lr{rate:g}": replayed("hard", learning_rate=rate) for rate in (5e-4, 2e-3, 5e-3)}
    points |= {"rank": replayed("hard", rank=8), "clip": replayed("hard")}
    points |= {"random": RANDOM | {"models": {"hard": {}}}, "text": replayed("hard", ce_weight=0.5)}
    points |= {"on2": replayed("on", ce_weight=0.1, **weights)}
    points |= {"four-bits": replayed("on", ce_weight=0.1, rounding="q4_0", **weights)}
    dev = {"teacher": 1, "50m": 6, "pick": 6, "scratch": 7, "hard-merged": 5.3, "lr0.0005": 5.4}
    dev |= {"lr0.002": 5.1, "lr0.005": 5.2, "rank": 4.0, "clip": 4.1, "random": 4.2, "text": 4.3}
    dev |= {"of-pick-merged": 4.4, "on": 4.6, "on2": 4.5, "four-bits": 1.0}
    # on the text that judges the order is another
    means = dev | {"hard-merged": 3.0, "lr0.005": 2.0, "lr0.002": 5.9, "on": 1.0}
    t = plain(records, means, points, mixed={"clip"}, development=dev)
    assert t.models["of-pick-merged"].base == "pick"
    arms = [f"best {trains} on " for trains in ("adapter", "weights")]
    pairs = itertools.product(arms, ("hard", "random", "easiest", "all"))
    best = [t.first(arm + windows) for arm, windows in pairs]
    found = [model and model.name for model in best]  # of weights ce_weight is tuned too
    assert found == ["lr0.002", "random", None, None, None, None, None, "on2"]
    slow = replace(t, development=dev | {"lr0.0005": 0.0})
    assert slow.first("best adapter on hard").name == "lr0.0005"
    assert replace(t, development={}).first("best adapter on hard").name == "hard-merged"
    assert plain(CORE, dev, development=dev).first("best adapter on hard") is None
    rate = "adapter on hard (rate 0.002)"  # a point of a sweep; against the others, the controls
    wanted = {
        ("claim", "adapter on hard − 50m"): 3 - 6,
        ("part", f"{rate} − 50m"): 5.9 - 6,
        ("control", f"{rate} − adapter on random (rate 0.001)"): 1.7,
        ("control", f"{rate} − weights on all (rate 0.001)"): 1.4,
    }
    found = {(e.role, e.what): e.change.value for e in claim("adapter", t) if "text" not in e.what}
    assert found == pytest.approx({key: apart * MEAN for key, apart in wanted.items()})


def test_settings_and_rates_differ_in_these_alone_and_are_chosen_on_development():
    points = {"t4": distilled("50m", temperature=4.0), "t1": distilled("50m", temperature=1.0)}
    points |= {"low": distilled("50m", ce_weight=0.1, cached_draws=12)}
    points |= {"seed3": distilled("50m", 3, ce_weight=0.1), "cut": distilled("50m", init="teacher")}
    points |= {"long": distilled("50m", epochs=4.0), "fast": distilled("50m", learning_rate=4e-3)}
    points |= {"alone": distilled("50m", learning_rate=1e-3, ce_weight=1.0)}
    dev = dict.fromkeys(("teacher", "pick", "seed3", "cut", "long"), 0.0)
    dev |= {"50m": 6.0, "scratch": 7.0, "t4": 5.9, "t1": 6.2, "low": 5.8, "fast": 5.7, "alone": 6.9}
    means = dict.fromkeys(dev, 1.0) | {"t4": 1.2, "50m": 0.5, "low": 1.5, "t1": 0.1, "fast": 0.3}
    t = plain(CORE, means, points, development=dev)
    (effect,), _ = evidence.loss_settings(None, None, t)
    assert effect.what == "t4 − low"  # on the text that judges 50m and t1 are better
    assert effect.change.value == pytest.approx((1.2 - 1.5) * MEAN)
    found = {e.what: (e.role, e.change.value) for e in claim("distilled", t)}
    wanted = {"50m − scratch": ("claim", pytest.approx(-0.5 * MEAN))}
    assert found == wanted | {"fast − alone": ("part", pytest.approx(-0.7 * MEAN))}
    other = replace(t, development=dev | {"50m": 0.0, "scratch": 0.0})
    assert evidence.loss_settings(None, None, other)[0][0].what == "50m − scratch"
    assert [e.what for e in claim("distilled", other)] == ["50m − scratch"]  # none twice
    alone = plain(CORE[:2], {"teacher": 0, "50m": 1}, development={"teacher": 0, "50m": 1})
    assert evidence.loss_settings(None, None, alone) == ([], [])


def effect(t: Trial, one: str, other: str, **more):
    return t.effect(t.models[one], t.models[other], **more)


def test_an_effect_is_one_minus_the_other_and_seeds_are_paired_by_the_bases():
    """Base, scratch, 55m, and adapters, with seeds 1, 3 and 4; the picker, and what it made."""
    records = [*CORE, HARD, RANDOM, replayed("of-pick", 2, base="pick"), EVERY["55m"]]
    means = {"teacher": 0, "50m": 0.6, "pick": 9, "scratch": 0.9, "hard-merged": 0.54}
    means |= {"random-merged": 0.57, "of-pick-merged": 5, "55m": 0.51, "s3 random": 0.6}
    points = {"s3 random": replayed("random", 3, windows="random")}
    for s, more in ((3, 0.03), (4, 0.06)):
        points |= {f"s{s} 50m": distilled("50m", s), f"s{s} hard": replayed("hard", s)}
        means |= {f"s{s} 50m": 0.6 + more, f"s{s} hard": 0.54 - more}
    dev = dict.fromkeys(means, 0.0) | {"of-pick-merged": -9.0}
    t = plain(records, means, points, development=dev)
    pairs = {
        ("hard-merged", "50m"): [0.54 - 0.6, 0.51 - 0.63, 0.48 - 0.66],
        ("hard-merged", "random-merged"): [0.54 - 0.57, 0.51 - 0.6],
        ("55m", "hard-merged"): [0.51 - 0.54],  # the 55m has one seed
        ("50m", "scratch"): [0.6 - 0.9],
    }
    for pair, apart in pairs.items():
        (value, low, high), back = effect(t, *pair).change, effect(t, *pair[::-1])
        assert value == pytest.approx(apart[0] * MEAN) and low <= value <= high < 0
        assert effect(t, *pair).seeds == pytest.approx([MEAN * x for x in apart])
        assert back.change == pytest.approx((-value, -high, -low))
        assert back.seeds == pytest.approx([-MEAN * x for x in apart])
    hard = effect(t, "hard-merged", "50m", role="part", part="hard", plan=[-0.5, -0.1])
    assert hard.change.value == pytest.approx(2 * (0.54 - 0.6))
    assert hard.what == "adapter on hard − 50m on hard text"
    assert (hard.role, hard.plan) == ("part", (-0.5, -0.1))
    assert t.first("best adapter on hard").name == "hard-merged"
    table = comparison.verdict_table(comparison.effects(t)).set_index("difference")["seeds"]
    assert table[hard.what] == hard.spread and "over 3 seeds" in hard.spread
    assert not [role for role in CLAIMS["models"] if "pick" in str(t.first(role))[:30]]


@pytest.fixture(scope="module")
def whole() -> Trial:
    """Of everything one: the adapter gains 0.05 on hard text and loses 0.02 on easy text."""
    truth = dict.fromkeys(["50m", "pick", "third", *EVERY], EQUAL) | {"scratch": (0.2, 0.2)}
    truth |= {"hard-merged": (-0.05, 0.02), "big": (-0.1, -0.1)}
    return simulated([*CORE, THIRD, *EVERY.values()], **truth)


def test_every_effect_of_the_claim_is_shown_or_missed(whole):
    table = comparison.verdict_table(comparison.effects(whole)).set_index("difference")
    rivals = ["50m", "a stretched schedule", "55m"]
    rivals += [f"adapter on {windows}" for windows in ("random", "easiest", "all")]
    rivals += [f"weights on {windows}" for windows in ("hard", "random", "all")]
    rivals[1] = "long"
    wanted = ["50m − scratch", "third − 50m", *(f"adapter on hard − {rival}" for rival in rivals)]
    parts = [f"adapter on hard − {rival} on {part} text"
             for rival in ("50m", "adapter on random") for part in ("hard", "easy")]  # fmt: skip
    gap = "share of the gap from 50m to big that adapter on hard closes"
    assert sorted(table.index) == sorted([*wanted, *parts, gap])
    base, one, rival = (whole.losses[name].mean() for name in ("50m", "hard-merged", "big"))
    share = f"{(base - one) / (base - rival):+.3f} [".replace("-", "−")
    assert table.loc[gap, "of loss"].startswith(share)
    assert table.loc["third − 50m", ["claim", "seeds"]].tolist() == ["nothing", "one seed"]
    # from the arrays, without the module
    apart_N, hard_N = whole.losses["hard-merged"] - whole.losses["random-merged"], whole.hard_N
    each = {" on hard text": hard_N, " on easy text": ~hard_N, "": hard_N | True}
    for part, at_N in each.items():
        row = table.loc[f"adapter on hard − adapter on random{part}"]
        value, low, high = map(float, re.findall(r"[-+]\d\.\d+", row["of loss"].replace("−", "-")))
        assert low < value < high and value == pytest.approx(apart_N[at_N].mean(), abs=6e-4)
        # a part of the picked fifth is easy in truth: between 0.02 lost and 0.05 gained
        assert -0.05 < value < 0.03 and (value < -0.02) == (part == " on hard text")
        line = f"adapter on hard − adapter on random{part}: {row['of loss']}, one seed."
        assert line in comparison.headline(whole) and row["seeds"] == "one seed"
    assert comparison.headline(whole).startswith("An adapter on the hard set closes most of")
    assert not any("Not run" in line for line in comparison.limits(whole))
    names = ("50m", "pick", "scratch", "hard-merged")
    some = simulated([*CORE, HARD], **dict.fromkeys(names, EQUAL))
    *_, missing, last = comparison.limits(some)
    names = missing.removeprefix("Not run, so not compared: ").removesuffix(".").split(", ")
    rivals = {*rivals, "student-120m", "student-55m", "a stretched schedule"}
    assert sorted(names) == sorted(rivals - {"50m", "55m", "long"})  # each once, and no other
    assert "needs a third seed of 50m, since pick" in last
    alone = simulated(CORE, **dict.fromkeys(("50m", "pick", "scratch"), EQUAL))
    assert "not compared: adapter on hard, adapter on random, " in comparison.limits(alone)[-2]
    assert comparison.headline(alone).endswith("120M: not decidable here (it was not run).")


def test_windows_without_a_target_change_no_number(whole):
    at = np.flatnonzero(np.arange(N) % 7 == 0)  # a new one before each seventh window, and a whole
    at = np.concatenate([at, np.full(9, N)])  # document of them
    document_N = np.insert(whole.document_N, at, [*whole.document_N[at[:-9]], *[D] * 9])
    losses = {n: np.insert(x, at, np.nan) for n, x in whole.losses.items()}
    hard_N = comparison.hard_windows(losses, "pick", "teacher", 0.2)
    masked = replace(whole, losses=losses, hard_N=hard_N, document_N=document_N)
    tables = [comparison.verdict_table(comparison.effects(t)) for t in (masked, whole)]
    assert tables[0].equals(tables[1])
    assert comparison.limits(masked) == comparison.limits(whole)


def test_of_one_document_and_of_a_part_without_a_target_nothing_is_clear(whole):
    alone = replace(whole, document_N=np.zeros(N, int))
    assert "[unknown] nats behind its teacher" in comparison.limits(alone)[0]
    line = comparison.headline(alone)
    assert "not decidable here" in line and line.count("[unknown]") == 3 and "nan" not in line
    losses = {n: np.where(whole.hard_N, np.nan, x) for n, x in whole.losses.items()}
    assert "on hard text: undefined, one seed" in comparison.headline(replace(whole, losses=losses))


def test_two_seeds_show_no_gain_on_the_hard_part_when_a_third_picks(whole):
    """They would if the base picked: windows on which it did badly flatter every other."""
    change = effect(whole, "third", "50m", part="hard").change
    assert not change.clear and abs(change.value) < 0.01
    hard_N = comparison.hard_windows(whole.losses, "50m", "teacher", 0.2)
    assert effect(replace(whole, hard_N=hard_N), "third", "50m", part="hard").change.clear == -1


def test_a_picker_in_the_comparison_and_a_teacher_that_is_hardly_better_are_said_first(whole):
    there = models([*CORE, THIRD, replayed("x", 3, base="third"), *EVERY.values()])
    for picks in ("50m", "scratch", "third"):
        lines = comparison.warnings(replace(whole, models=there, picked_by=picks))
        assert lines[1].startswith(f"**⚠ {picks} picks the hard windows, and it")
        assert ("x-merged" in lines[1]) == (picks == "third")
    assert len(comparison.warnings(whole)) == 1
    names = ("50m", "pick", "scratch", "hard-merged", "random-merged")
    for lag, little in ((-0.2, True), (0.0, False)):  # the mean lag is 0.3, or 0.1 with 0.2 less
        t = simulated([*CORE, HARD, RANDOM], **dict.fromkeys(names, (lag, lag)))
        first = comparison.limits(t)[0]
        assert ("This trial means little" in first) == little
        assert f"{effect(t, '50m', 'teacher').change} nats behind" in first
        assert comparison.headline(t).startswith("⚠ This trial") == little


def test_a_gap_may_be_undefined_and_what_else_differs_is_said(whole):
    equal = replace(whole, losses=whole.losses | {"big": whole.losses["third"]})
    *_, e = [e for e in claim("adapter", equal) if "share of the gap" in e.what]
    assert e.words().endswith("closes: undefined, one seed") and e.role == "part"
    other = replayed("random", windows="random", rank=4, token_share=0.5)
    there = models([*CORE, replayed("hard", token_share=None), other])
    words = "hard-merged and random-merged differ in more: rank 16 against 4, "
    lines = comparison.limits(replace(whole, models=there))
    assert f"{words}token_share inherited against 0.5." in lines
