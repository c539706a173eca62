"""Roles come from parameters, effects pair seeds, and verdicts say what known losses hold."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tdbook.analysis import intervals, verdict
from tdbook.analysis.verdict import ROLES, ROWS, Trial
from tdbook.book import comparison, evidence
from tests.tdbook.analysis.test_judge import CASES

D, N = 60, 1200  # documents, windows of the text that judges
DOCUMENT_N = np.arange(N) // (N // D)
NOISE_N = np.random.default_rng(0).normal(0, 0.5, N)  # of the text: no difference holds it
P01 = dict(profile="small", out="o", shape="student-50m-small", ce_weight=0.5, init="random")
P01 |= dict(epochs=2.0, temperature=2.0, token_limit=0, learning_rate=2e-3, distinct_tokens=0)
P03 = dict(out="o", base="50m", rank=16, learning_rate=1e-3, ce_weight=0.0)
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
HARD, RANDOM = replayed("hard"), replayed("random", windows="random")
LARGE = distilled("big", shape="student-120m-small")
LONG = distilled("long", tokens=1400, epochs=2.8)


def models(records: list[dict], points: dict | None = None) -> dict[str, verdict.Model]:
    """Those of a folder; a point's record is in a folder of its own."""
    made = {n: dict(model=next(iter(r["models"])), record=r) for n, r in (points or {}).items()}
    points = {name: SimpleNamespace(**point) for name, point in made.items()}
    by_run = {record["parameters"]["run"]: record for record in records}
    return verdict.models(SimpleNamespace(records=by_run, points=points))


def of(records: list[dict], means: dict, points: dict | None = None, **more) -> Trial:
    """Losses that differ as the means do, but for what a document adds to a model."""
    names = dict(base="50m", scratch="scratch", teacher="teacher", picked_by="pick")
    there = {name: model for name, model in models(records, points).items() if name in means}
    rng = np.random.default_rng(1)
    own = {name: 0.002 * rng.normal(size=D)[DOCUMENT_N] for name in means}
    losses = {n: NOISE_N + mean + own[n] - own[n].mean() for n, mean in means.items()}
    return Trial(there, losses, DOCUMENT_N, **names | more)


def test_students_are_found_by_parameters_not_by_names():
    others = (distilled(name, **changed) for name, changed in CASES["students"].items())
    records = [*CORE, PROGRESSIVE, *others]
    names = [name for record in records for name in record["models"]]
    wanted = CASES["roles"]
    rival = {"a": distilled("x1", tokens=1400, shape="student-55m")}
    t = of(records, dict.fromkeys([*names, "a"], 1.0), rival)  # own ones go before
    assert {role: t.role(role)[0].name for role in wanted} == wanted
    assert [m.name for m in t.role("student-80m")] == ["x2", "a-seed"]
    t = of(CORE, dict.fromkeys([*names[:4], "a"], 1.0), rival)
    assert [role for role in ROLES if t.role(role)] == CASES["few"]
    for words in ("direct − distilled", "its base − student-80m"):
        assert t.effect(words).seeds == 0 and t.effect(words).verdict[1] == "not run"
    begun = dict(init="teacher", ce_weight=0.1, temperature=1.0)
    records += [distilled(f"begun-{n}", tokens=n, token_limit=n, **begun) for n in (900, 1500)]
    more = {f"p-{n}": distilled("p", 1, n, init="teacher", ce_weight=1.0) for n in (1510, 4000)}
    records.append(replayed("a", base="begun-900"))
    names += [*more, "begun-900", "begun-1500", "a-merged"]
    t = of(records, dict.fromkeys(names, 1.0), more, base="begun-900")  # not the plan's own
    assert {role: [m.name for m in t.role(role)] for role in CASES["begun"]} == CASES["begun"]


def test_every_arm_is_at_the_rate_that_development_prefers_with_the_seed_that_chooses():
    """Adapters on hard windows at three rates, and others that are no candidates; all of these are
    better on development than the one that is. The seed that chooses is in no comparison."""
    weights = dict(trains="weights", windows="all")
    records = [*CORE, HARD, distilled("third", 3), replayed("on", weight_decay=0.1, **weights)]
    points = {name: replayed("hard", **changed) for name, changed in CASES["arms"].items()}
    points |= {"on2": replayed("on", ce_weight=0.1, **weights)}
    dev = CASES["arms on development"]
    # on the text that judges the order is another
    means = dev | {"hard-merged": 3.0, "lr0.002": 5.9, "on": 1.0, "s3": 5.7}
    t = of(records, means, points, development=dev)
    arms = [f"best {trains} on " for trains in ("adapter", "weights")]
    roles = [arm + windows for arm, windows in itertools.product(arms, ("hard", "random", "all"))]
    found = [[m.name for m in t.role(role)] for role in [*roles, "best adapter of rank 8"]]
    assert found == [["lr0.002", "s3"], ["random"], [], [], [], ["on2"], ["rank"]]
    assert replace(t, development={}).role("best adapter on hard")[0].name == "hard-merged"
    assert of(CORE, dev, development=dev).role("best adapter on hard") == []
    e = t.effect("best adapter on hard − its base")
    assert e.what == "adapter on hard (learning_rate 0.002) − its base"
    assert e.pairs == (("lr0.002", "50m"), ("s3", "third"))
    assert e.interval.value == pytest.approx((5.9 - 6 + 5.7 - 6) / 2)
    # where the seed that chooses has been tried too, it alone counts, and is not read
    with_2 = dict(seed=2, base="pick")
    more = {f"p{r:g}": replayed("hard", learning_rate=r, **with_2) for r in (5e-4, 1e-3, 2e-3)}
    for best, wanted in (("p0.0005", ["lr0.0005"]), ("p0.001", ["hard-merged"])):
        chosen = dict.fromkeys(more, 5.0) | {best: 4.9}
        t = of(records, means | chosen, points | more, development=dev | chosen)
        assert [m.name for m in t.role("best adapter on hard")] == wanted
        assert [m.name for m in t.role("adapter on hard")] == ["hard-merged"]
        assert [m.name for m in t.preferred([t.models[name] for name in more])] == wanted
    assert replace(t, picked_by="50m").chooses is None


def test_the_best_loss_is_of_the_plans_temperatures_or_weight_against_all_others():
    points = {name: distilled("50m", **changed) for name, changed in CASES["losses tried"].items()}
    dev = CASES["losses on development"]
    means = dict.fromkeys(dev, 1.0) | {"fast": 1.2, "50m": 0.5, "low": 1.5, "t1": 0.1}
    t = of(CORE, means, points, development=dev)
    found = {key: t.judged(key).effects[0] for key in ("temperature", "ce_weight")}
    assert found["temperature"].pairs == (("fast", "t1"),)  # of T 1 but one was run
    assert found["ce_weight"].pairs == (("fast", "low"),)  # on the text that judges 50m is better
    assert found["ce_weight"].interval.value == pytest.approx(-0.3)
    assert t.effect("best distilled − best scratch").pairs == (("fast", "scratch"),)


def test_seeds_are_paired_by_the_bases_and_a_share_of_the_gap_has_three():
    """Base, 120m and adapters with seeds 1, 3 and 4; what the picker made is not read."""
    records = [*CORE, HARD, RANDOM, replayed("of-pick", 2, base="pick"), LARGE]
    means = {"teacher": 0, "50m": 0.6, "pick": 9, "scratch": 0.9, "hard-merged": 0.54}
    means |= {"random-merged": 0.57, "of-pick-merged": 5, "big": 0.4, "s3 random": 0.6}
    points = {"s3 random": replayed("random", 3, windows="random", base="s3")}
    for s, more in ((3, 0.03), (4, 0.06)):
        points |= {f"s{s}": distilled("50m", s), f"s{s} hard": replayed("hard", s, base=f"s{s}")}
        points |= {f"big{s}": LARGE | {"parameters": LARGE["parameters"] | {"seed": s}}}
        means |= {f"s{s}": 0.6 + more, f"s{s} hard": 0.54 - more, f"big{s}": 0.4}
    t = of(records, means, points)
    wanted = {"adapter on hard − its base": (0.54 - 0.6, 0.51 - 0.63, 0.48 - 0.66)}
    wanted |= {"adapter on hard − adapter on random": (0.54 - 0.57, 0.51 - 0.6)}
    wanted |= {"distilled − scratch": (0.6 - 0.9,)}
    for words, apart in wanted.items():
        e, back = t.effect(words), t.effect(" − ".join(words.split(" − ")[::-1]))
        assert e.seeds == back.seeds == len(apart)
        assert e.interval.value == pytest.approx(np.mean(apart))
        assert back.interval == pytest.approx([-e.interval[i] for i in (0, 2, 1)])
        change_SN = [t.losses[x] - t.losses[y] for x, y in e.pairs]
        assert e.interval == pytest.approx(intervals.of_seeds(change_SN, DOCUMENT_N))
    gap = t.judged("gap")
    share = (0.06 + 0.12 + 0.18) / (0.2 + 0.23 + 0.26)
    assert gap.effects[0].interval.value == pytest.approx(share)
    what = "share of the gap from its base to student-120m that adapter on hard closes"
    assert gap.effects[0].what == what
    assert gap.result == verdict.UNDECIDED and gap.effects[0].least == 0.5
    adapter = t.judged("adapter")  # 0.12 ± much, but two seeds of random windows
    assert "adapter on hard − adapter on random: 2 seeds" in adapter.why
    assert adapter.result == verdict.UNDECIDED and adapter.effects[0].least == -0.1


@pytest.fixture(scope="module")
def whole() -> Trial:
    """The adapter gains 0.05 on the base, and 0.02 on random windows; everything has one seed."""
    records = [*CORE, HARD, RANDOM, LARGE, LONG]
    means = {"teacher": 0.0, "50m": 0.6, "pick": 0.6, "scratch": 0.8, "hard-merged": 0.55}
    return of(records, means | {"random-merged": 0.57, "big": 0.5, "long": 0.4})


def test_04_says_that_one_seed_decides_nothing_and_what_was_not_run(whole):
    verdicts = [whole.judged(key) for key in comparison.JUDGED]
    table = verdict.table(verdicts).set_index("key")
    why = ["one seed", "not run", "one seed", "one seed"]
    assert table["verdict"].tolist() == [f"not decidable here ({x})" for x in why]
    assert table["seeds"].tolist() == [1, "–", 1, 1] and table["resolves"].tolist() == ["–"] * 4
    assert table["at equal cost"].tolist() == ["not run", "not run", "undecided", "–"]
    line = comparison.headline(whole, verdicts)
    start = "Not decided: the adapter on the hard set, merged, ends 0.050 nats lower"
    assert line.startswith(start) and "closes +50.0 [" in line
    assert "It ends 0.020 nats lower than one on random windows [" in line
    lag, missing = comparison.limits(whole, verdicts)
    assert lag.endswith("nats behind its teacher: a lag to win back.") and "+0.600 [" in lag
    assert missing.startswith("Not run, so not compared: ")
    asked = ROWS["distilled"]["cost"], ROWS["distilled_t1"]["effect"], ROWS["distilled_t1"]["cost"]
    assert all(words in missing for words in asked)
    assert "best distilled − best scratch" not in missing  # is the claim, where no rate was chosen
    some = of(CORE, {"teacher": 0, "50m": 0.6, "pick": 0.6, "scratch": 0.8})
    verdicts = [some.judged(key) for key in comparison.JUDGED]
    assert "no adapter on the hard set was trained" in comparison.headline(some, verdicts)


def test_windows_without_a_target_change_no_number_and_one_document_tells_none(whole):
    at = np.flatnonzero(np.arange(N) % 7 == 0)  # a new one before each seventh window, and a whole
    at = np.concatenate([at, np.full(9, N)])  # document of them
    document_N = np.insert(whole.document_N, at, [*whole.document_N[at[:-9]], *[D] * 9])
    losses = {n: np.insert(x, at, np.nan) for n, x in whole.losses.items()}
    masked = replace(whole, losses=losses, document_N=document_N)
    tables = [[t.judged(key).cells() for key in comparison.JUDGED] for t in (masked, whole)]
    assert tables[0] == tables[1]
    alone = replace(whole, document_N=np.zeros(N, int))  # one document: nothing is known
    line = comparison.headline(alone, [alone.judged(key) for key in comparison.JUDGED])
    assert "which may be chance" in line and "closes undefined" in line and "nan" not in line


def test_a_picker_that_is_judged_and_a_teacher_that_is_hardly_better_are_said_first(whole):
    for picks in ("50m", "scratch"):
        line = comparison.limits(replace(whole, picked_by=picks), [])[1]
        assert line.startswith(f"**⚠ {picks} makes the choices") and "seed of 50m" in line
    for lag, little in ((0.1, True), (0.2, False)):
        losses = whole.losses | {"teacher": whole.losses["50m"] - lag}
        t = replace(whole, losses=losses)
        first = comparison.limits(t, [])[0]
        assert ("This trial means little" in first) == little and f"{lag:+.3f} [" in first
        line = comparison.headline(t, [t.judged(key) for key in comparison.JUDGED])
        assert line.startswith("⚠ This trial") == little


def test_each_way_to_go_on_is_told_by_how_much_the_base_has_learnt():
    """Each length of a training is a model as if trained alone: at a million tokens an adapter on
    hard windows closes a tenth of the gap, at two nothing. Five seeds, rivals of three."""
    begun, records = dict(schedule="wsd", init="teacher", temperature=1.0), [*CORE]
    begun |= dict(cooldowns="1M 2M")
    means = {name: 5.0 for record in CORE for name in record["models"]}

    def trunk(record: dict, name: str, less: float) -> None:
        logs = {f"log of {name}-{x}": [{"tokens": x * 1_000_000}] for x in (1, 2)}
        found = {f"{name}-{x}": 4.5 - 0.2 * x + 0.01 * seed - less for x in (1, 2)}
        records.append(record | dict(models={x: {} for x in found}, remembered=logs))
        means.update(found)

    for seed in (1, 2, 3, 4, 5, 6):
        trunk(distilled(f"w{seed}", seed, **begun), f"w{seed}", 0)
        if seed in (1, 3, 4):
            trunk(distilled(f"big{seed}", seed, shape="student-120m", **begun), f"big{seed}", 0.4)
        for million, windows, rate in itertools.product((1, 2), ("hard", "random"), (1e-3, 1e-2)):
            name, base = f"{windows}{seed}-{million}-{rate:g}", f"w{seed}-{million}"
            gain = {"hard": 0.04, "random": 0.02}[windows] * (million == 1) * (rate < 5e-3)
            records.append(replayed(name, seed, base=base, windows=windows, learning_rate=rate))
            means[f"{name}-merged"] = means[base] - gain
    development = {name: mean if "-0.001" in name else 9 for name, mean in means.items()}
    t = of(records, means, base="w1-2", picked_by="w2-2", development=development)
    table, shares = evidence.maturity(t)
    rows = {(row["base"][0], row["way"]): row for row in table.to_dict("records")}
    assert len(rows) == 10
    for length, way in (("1", "weights on hard"), ("2", "the longer training")):
        assert rows[length, way]["share of the gap, %"] == "not run"
    wanted = {("1", "adapter on hard"): (-0.04, 10), ("1", "adapter on random"): (-0.02, 5)}
    wanted |= {("2", "adapter on hard"): (0, 0), ("1", "the longer training"): (-0.2, 50)}
    for (length, way), (gain, share) in wanted.items():
        row, percent = rows[length, way], shares[f"{length} million tokens"][way]
        assert percent.value == pytest.approx(share, abs=1e-6)
        assert row["loss − the base's"][1:].startswith(f"{abs(gain):.3f} [")
        assert (row["loss − the base's"][0] == "−") == (gain < 0) or not gain
        assert row["share of the gap, %"] == f"{percent:.1f}" and row["seeds"] == "5; 3"
