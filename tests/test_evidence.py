"""Claims rest on the right models, read on the right text: simulated losses, and the smoke book."""

import itertools
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from peft import PeftModel
from scipy import stats
from transformers import AutoModelForCausalLM

from tdbook.analysis import claims, kept_and_lost, verdict
from tdbook.book import comparison, evidence
from tdbook.corpus import token_files
from tdbook.runs import estimates, running
from tdbook.runs.running import Run
from tdlib import data, evaluate
from tdlib.model import Llama
from tests.test_verdict import TEACHER, distilled, replayed

ROOT = Path(__file__).parents[1]
D, N = 30, 600  # documents, windows of the text that judges
DOCUMENT_N = np.arange(N) // (N // D)
NOISE_N = np.random.default_rng(0).normal(0, 0.5, N)  # of the text: no difference holds it


def trial(results: list[dict], means: dict, points: dict | None = None, mixed=()) -> verdict.Trial:
    """Losses that differ as the means do, and twice as much on hard text, which is a third."""
    hard_N = np.arange(N) % 3 == 0
    found = {name: NOISE_N + mean * (1 + hard_N) for name, mean in means.items()}
    return verdict.Trial(
        verdict.arms(results, points or {}), found, hard_N, DOCUMENT_N, "50m", "scratch", "teacher",
        "pick", 200, frozenset(mixed),
    )  # fmt: skip


def point(record: dict) -> tuple[str, dict]:
    """As a sweep's point has it: the model's name, and the record, in a folder of its own."""
    record["parameters"]["out"] = "o/sweeps/s/x"
    return next(iter(record["models"])), record


CORE = [TEACHER, distilled("50m"), distilled("pick", 2), distilled("scratch", ce_weight=1.0)]


# --- effects


def seeded() -> verdict.Trial:
    """Base, scratch, 55m, and adapters, with seeds 1, 3 and 4; the picker, and what it made."""
    results = [*CORE, replayed("hard"), replayed("random", windows="random"),
               replayed("of-pick", 2, base="pick"),
               distilled("55m", shape="student-55m-small")]  # fmt: skip
    means = {"teacher": 0, "50m": 0.6, "pick": 9, "scratch": 0.9, "hard-merged": 0.54,
             "random-merged": 0.57, "of-pick-merged": 5, "55m": 0.51}  # fmt: skip
    points = {}
    for s, more in ((3, 0.03), (4, 0.06)):
        points |= {f"s{s} 50m": point(distilled("50m", s)),
                   f"s{s} hard": point(replayed("hard", s))}  # fmt: skip
        means |= {f"s{s} 50m": 0.6 + more, f"s{s} hard": 0.54 - more}
    points["s3 random"] = point(replayed("random", 3, windows="random"))
    return trial(results, means | {"s3 random": 0.6}, points)


def test_an_effect_is_one_minus_the_other_whichever_has_more_seeds():
    t = seeded()
    mean = 4 / 3  # of 1 and, on a third of the windows, 2
    wanted = [(0.54 - 0.6) * mean, (0.51 - 0.63) * mean, (0.48 - 0.66) * mean]
    (one,), (other,) = (
        evidence.effect(t, *pair) for pair in (("hard-merged", "50m"), ("50m", "hard-merged"))
    )
    assert one.value == pytest.approx(wanted[0]) and one.seeds == pytest.approx(wanted)
    assert other.value == pytest.approx(-one.value)
    assert other.seeds == pytest.approx([-s for s in one.seeds])
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low))
    assert one.low <= one.value <= one.high < 0
    assert (one.what, other.what) == ("adapter on hard − 50m", "50m − adapter on hard")
    (hard,) = evidence.effect(t, "hard-merged", "50m", "part", "hard", plan=[-0.5, -0.1])
    assert hard.value == pytest.approx(2 * (0.54 - 0.6)) and hard.what.endswith("on hard text")
    assert (hard.role, hard.plan) == ("part", (-0.5, -0.1))


def test_the_interval_over_documents_is_that_of_their_means():
    """Documents of equal length: about Student's t interval of the document means."""
    results, rng = [*CORE, distilled("a")], np.random.default_rng(1)
    t = trial(results, {"teacher": 0, "50m": 0, "scratch": 0, "pick": 0})
    t.losses["scratch"] = t.losses["50m"] + 0.1 + rng.normal(0, 0.2, D)[DOCUMENT_N]
    (found,) = evidence.effect(t, "50m", "scratch")
    each_D = (t.losses["50m"] - t.losses["scratch"]).reshape(D, -1).mean(1)
    low, high = stats.t.interval(0.95, D - 1, each_D.mean(), stats.sem(each_D))
    assert found.value == pytest.approx(each_D.mean())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_seeds_are_paired_by_the_bases_seed_and_only_where_both_have_it():
    t = seeded()
    (one,) = evidence.effect(t, "hard-merged", "random-merged")
    assert one.seeds == pytest.approx([(0.54 - 0.57) * 4 / 3, (0.51 - 0.6) * 4 / 3])
    (one,) = evidence.effect(t, "55m", "hard-merged")  # the 55m has one seed
    assert one.seeds == pytest.approx([(0.51 - 0.54) * 4 / 3])
    (one,) = evidence.effect(t, "50m", "scratch")
    assert len(one.seeds) == 1


def test_the_model_that_picks_and_what_it_made_are_in_no_effect():
    t = seeded()
    for pair in (("hard-merged", "50m"), ("50m", "scratch"), ("hard-merged", "random-merged")):
        for e in evidence.effect(t, *pair):
            assert all(abs(s) < 1 for s in e.seeds)  # they are far away
    dev = dict.fromkeys(t.arms, 0.0) | {"of-pick-merged": -9.0}
    assert evidence.tuned(t, dev, True, "hard") == "hard-merged"
    assert "pick" not in evidence.students(t).values()


@pytest.mark.parametrize("pair", [("50m", None), (None, "50m"), ("50m", "nothing"), (None, None)])
def test_no_effect_of_what_was_not_run(pair):
    assert evidence.effect(seeded(), *pair) == []


# --- roles


def rates() -> tuple[verdict.Trial, dict[str, float]]:
    """Adapters on hard windows at four rates, and others that are no candidates; all of these are
    better on development than the one that is."""
    results = [*CORE, replayed("hard"), replayed("of-pick", base="pick"),
               replayed("on", trains="weights", ce_weight=0.5, windows="all")]  # fmt: skip
    points = {f"lr{r}": point(replayed("hard", learning_rate=r)) for r in (5e-4, 2e-3, 5e-3)}
    points |= {
        "rank": point(replayed("hard", rank=8)), "clip": point(replayed("hard")),
        "random": point(replayed("hard", windows="random")),
        "text": point(replayed("hard", ce_weight=0.5)),
        "on2": point(replayed("on", trains="weights", ce_weight=0.1, windows="all")),
    }  # fmt: skip
    dev = {"teacher": 1, "50m": 6, "pick": 6, "scratch": 7, "hard-merged": 5.3, "lr0.0005": 5.4,
           "lr0.002": 5.1, "lr0.005": 5.2, "rank": 4.0, "clip": 4.1, "random": 4.2, "text": 4.3,
           "of-pick-merged": 4.4, "on": 4.6, "on2": 4.5}  # fmt: skip
    # on the text that judges the order is another
    means = dev | {"hard-merged": 3.0, "lr0.005": 2.0, "lr0.002": 5.9, "on": 1.0}
    return trial(results, means, points, mixed=["clip"]), dev


def test_the_rate_is_the_one_that_development_prefers_of_the_same_arm():
    t, dev = rates()
    assert t.arms["of-pick-merged"].base == "pick"
    assert evidence.tuned(t, dev, True, "hard") == "lr0.002"
    assert evidence.tuned(t, dev, True, "random") == "random"
    assert evidence.tuned(t, dev, True, "easiest") is None
    assert evidence.tuned(t, dev, False, "all") == "on2"  # ce_weight is tuned too
    assert evidence.tuned(t, dev | {"lr0.0005": 0.0}, True, "hard") == "lr0.0005"
    del t.losses["lr0.002"]
    assert evidence.tuned(t, dev, True, "hard") == "lr0.005"
    assert evidence.tuned(trial(CORE, dev), dev, True, "hard") is None


def test_every_arm_is_tuned_before_the_claim_on_the_adapter_is_judged():
    t, dev = rates()
    told = {"plan": [-0.5, -0.1]}
    effects, notes = evidence.adapter(t, evidence.students(t), dev, told)
    found = {(e.role, e.what): e.value for e in effects}
    assert found["claim", "adapter on hard − 50m"] == pytest.approx((3 - 6) * 4 / 3)
    best = "adapter on hard (rate 0.002)"  # a point of a sweep; against the others, the controls
    assert found["part", f"{best} − 50m"] == pytest.approx((5.9 - 6) * 4 / 3)
    controls = {e.what: e.value for e in effects if e.role == "control"}
    assert all(what.startswith(f"{best} − ") for what in controls) and len(controls) == 2
    (random,) = (v for what, v in controls.items() if "adapter on random" in what)
    (weights,) = (v for what, v in controls.items() if "weights on all" in what)
    assert (random, weights) == pytest.approx((1.7 * 4 / 3, 1.4 * 4 / 3))
    assert best in notes[-1]


def test_the_adapter_on_random_windows_beside_the_claims_own_is_a_control_with_its_seeds():
    told, of = {"plan": [-0.5, -0.1]}, dict.fromkeys(["stretched", "55m", "120m"])
    means = {"teacher": 0, "50m": 0.6, "pick": 9, "scratch": 0.9, "hard-merged": 0.54, "fast": 0.5,
             "random-merged": 0.57, "s3 50m": 0.63, "s3 hard": 0.51, "s3 random": 0.6}  # fmt: skip
    faster = point(replayed("random", windows="random", learning_rate=9e-4))
    for more in ({}, {"fast": faster}):
        results = [*CORE, replayed("hard"), replayed("random", windows="random")]
        points = {"s3 50m": point(distilled("50m", 3)), "s3 hard": point(replayed("hard", 3)),
                  "s3 random": point(replayed("random", 3, windows="random"))} | more  # fmt: skip
        now = trial(results, means, points)
        dev = dict.fromkeys(now.arms, 6.0) | {"fast": 5.0}
        effects = evidence.adapter(now, of, dev, told)[0]
        own = [e for e in effects if e.what == "adapter on hard − adapter on random"]
        assert [(e.role, len(e.seeds)) for e in own] == [("control", 2)]
        assert own[0].seeds == pytest.approx([(0.54 - 0.57) * 4 / 3, (0.51 - 0.6) * 4 / 3])
        best = [e.what for e in effects if e.what.endswith("adapter on random (rate 0.0009)")]
        assert best == ["adapter on hard − adapter on random (rate 0.0009)"] * bool(more)


NAMES = {"longer-a": "epochs", "longer-b": "fresh", "x1": "55m", "x2": "80m", "x3": "120m"}


def test_students_are_found_by_parameters_not_by_names():
    of = dict(shape="student-120m-small")
    results = [
        *CORE, distilled("longer-a", tokens=2000, ce_weight=1.0, distinct_tokens=1000),
        distilled("longer-b", tokens=2000, ce_weight=1.0, distinct_tokens=0),
        distilled("x0", tokens=2500, token_limit=2500), distilled("x3", **of),
        distilled("120m", **of, ce_weight=1.0), distilled("120m-cold", **of, temperature=1.0),
        distilled("120m-sliced", **of, init="teacher"),
        distilled("x1", shape="student-55m"), distilled("x2", shape="student-80m-tiny"),
        distilled("75m-long", tokens=3000, shape="student-75m-small"),
        dict(notebook="05_progressive", parameters=dict(run="05", seed=1), remembered={},
             models={"150m": {}, "75m": {}, "75m-direct": {}}),
    ]  # fmt: skip
    names = [name for r in results for name in r["models"]]
    found = evidence.students(trial(results, dict.fromkeys(names, 1.0)))
    assert found == {role: name for name, role in NAMES.items()} | {
        "stretched": "x0", "75m": "75m-long", "progressive": "75m", "direct": "75m-direct",
    }  # fmt: skip
    found = evidence.students(trial(CORE, dict.fromkeys(names[:4], 1.0)))
    assert set(found.values()) == {None}


def test_of_a_role_with_several_seeds_the_bases_own_is_taken_and_no_point():
    results = [*CORE, distilled("a", 3, shape="student-80m"), distilled("b", shape="student-80m")]
    points = {"0": point(distilled("0", shape="student-55m"))}
    means = dict.fromkeys(["50m", "pick", "scratch", "teacher", "a", "b", "0"], 1.0)
    found = evidence.students(trial(results, means, points))
    assert found["80m"] == "b" and found["55m"] is None


def grid() -> tuple[verdict.Trial, dict[str, float]]:
    own = dict(learning_rate=2e-3, distinct_tokens=0)
    results = [TEACHER, *(distilled(n, s, **own) for n, s in (("50m", 1), ("pick", 2))),
               distilled("scratch", **own, ce_weight=1.0),
               distilled("slow", **own | {"learning_rate": 1e-3})]  # fmt: skip
    points = {
        "t4": point(distilled("50m", **own, temperature=4.0)),
        "t1": point(distilled("50m", **own, temperature=1.0)),
        "low": point(distilled("50m", **own, ce_weight=0.1, cached_draws=12)),
        "seed3": point(distilled("50m", 3, **own, ce_weight=0.1)),
        "sliced": point(distilled("50m", **own, init="teacher")),
        "long": point(distilled("50m", **own, epochs=4.0)),
    }  # fmt: skip
    dev = {"teacher": 1, "50m": 6.0, "pick": 0, "scratch": 7, "slow": 0, "t4": 5.9, "t1": 6.2,
           "low": 5.8, "seed3": 0, "sliced": 0, "long": 0}  # fmt: skip
    means = {n: 1.0 for n in dev} | {"t4": 1.2, "50m": 0.5, "low": 1.5, "t1": 0.1}
    return trial(results, means, points), dev


def test_settings_differ_from_the_base_in_ce_weight_and_temperature_alone():
    t, dev = grid()
    assert evidence.settings(t).keys() == {"50m", "scratch", "t4", "t1", "low"}
    cells = [(0.1, 2, 5.8), (0.5, 1, 6.2), (0.5, 2, 6.0), (0.5, 4, 5.9), (1.0, 2, 7)]
    assert sorted(evidence.grid(t, dev)) == cells


def test_settings_are_chosen_on_development_and_read_on_the_text_that_judges():
    t, dev = grid()
    (effect,), notes = evidence.loss_settings(t, dev)
    assert effect.what == "t4 − low"  # not 50m and t1, which are better there
    assert effect.value == pytest.approx((1.2 - 1.5) * 4 / 3)
    assert "Of 5 settings the best on development is low" in notes[0]
    assert evidence.loss_settings(t, dev | {"50m": 0.0})[0][0].what == "50m − low"
    alone = trial(CORE[:2], {"teacher": 0, "50m": 1})
    assert evidence.loss_settings(alone, dev) == ((), ())


def test_the_students_at_their_best_rates_stand_beside_the_claim():
    own = dict(learning_rate=2e-3, distinct_tokens=0)
    points = {
        "fast": point(distilled("50m", **own | {"learning_rate": 4e-3})),
        "alone": point(distilled("50m", **own | {"learning_rate": 1e-3}, ce_weight=1.0)),
        "seed3": point(distilled("50m", 3, **own | {"learning_rate": 4e-3})),
        "sliced": point(distilled("50m", **own | {"learning_rate": 4e-3}, init="teacher")),
    }
    results = [TEACHER, *(distilled(n, s, **own) for n, s in (("50m", 1), ("pick", 2))),
               distilled("scratch", **own, ce_weight=1.0)]  # fmt: skip
    means = {"teacher": 0, "pick": 0, "50m": 0.6, "scratch": 0.9, "fast": 0.5, "alone": 0.7}
    t = trial(results, means | {"seed3": 0, "sliced": 0}, points)
    told = {"plan": (-0.5, -0.3)}

    def effects(**dev: float) -> list:
        dev = dict.fromkeys(t.arms, 9.0) | dev
        return evidence.distilled(t, {"fresh": None, "epochs": None}, dev, told, {})[0]

    assert [e.what for e in effects(**{"50m": 5, "scratch": 6})] == ["50m − scratch"]
    both = effects(fast=5, alone=6, seed3=0, sliced=0, pick=0)
    assert [(e.what, e.role) for e in both] == [("50m − scratch", "claim"),
                                                ("fast − alone", "part")]  # fmt: skip
    assert both[1].value == pytest.approx((0.5 - 0.7) * 4 / 3)
    one = effects(**{"fast": 5, "scratch": 6})
    assert one[1].what == "fast − scratch"


# --- speeds, files, merging


def timed(shape: str, **changed: float) -> dict:
    """At the plan's lower numbers, of every phase the quickest way, and another that is slower."""
    plan = estimates.PLAN[shape]
    speed = {"raw": plan["raw"][0], "KV": 1e9, "KV + INT8": plan["phase1"][0] - 5,
             "KV + INT8 + compile": plan["phase1"][0], "Q4_0_DEFAULT": 1.0,
             "Q4_0": plan["phase2"][0], "Q8_0": 1e9} | changed  # fmt: skip
    megabytes = speed.pop("megabytes", 1.1 * plan["megabytes"][0])
    rows = [{"way": way, "decode": float(n), "threads": 1} for way, n in speed.items()]
    return {"rows": rows, "bytes": {"Q4_0": round(1e6 * megabytes), "Q8_0": 10**9}}


@pytest.mark.parametrize("shape", ["student-50m", "student-120m", "teacher-plan"])
def test_the_plans_lower_number_is_reached_or_missed_in_every_phase(shape):
    found = evidence.speeds(shape, timed(shape))
    assert len(found) == 4 and all(held for _, held in found)
    low, high = estimates.PLAN[shape]["phase2"]
    assert any(f"{shape}, Q4_0: {low:,.0f} tokens/s" in s and f"{low:g}–{high:g}" in s
               for s, _ in found)  # fmt: skip
    for missed in ("raw", "KV + INT8 + compile", "Q4_0"):
        found = evidence.speeds(shape, timed(shape, **{missed: 0.5}))
        assert [held for _, held in found].count(False) == 1, missed
    found = evidence.speeds(
        shape, timed(shape, megabytes=1.2 * estimates.PLAN[shape]["megabytes"][0])
    )
    assert next(s for s, held in found if not held).startswith(f"{shape}, Q4_0: ")


def test_of_a_shape_that_the_plan_gives_no_numbers_nothing_is_missed():
    assert evidence.speeds("student-80m", timed("student-50m")) == []


def shipping(folder: Path, rows: list[dict], shapes_: dict) -> SimpleNamespace:
    (folder / "tables").mkdir(), (folder / "results").mkdir()
    pd.DataFrame(rows).to_csv(folder / "tables/04_merge_eval-merged.csv", index=False)
    record = dict(notebook="06_inference", models={}, parameters={},
                  remembered={f"shape {name}": t for name, t in shapes_.items()})  # fmt: skip
    (folder / "results/06_inference.json").write_text(json.dumps(record))
    return SimpleNamespace(out=folder, run="07_evidence", parameters={})


MERGED = {"adapter": "a", "weights": "32,608", "weights of the base": "32,608",
          "largest logit difference": "8.0e-05", "of logits up to": "0.845"}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "held"),
    [({}, True), ({"largest logit difference": "8.5e-05"}, False), ({"weights": "35,168"}, False)],
)
def test_merging_is_free_where_no_logit_and_no_weight_changes(tmp_path, changed, held):
    this = shipping(tmp_path, [MERGED | changed], {})
    ((said, found),) = evidence.merges(this)
    assert found == held and said.startswith("a merged: logits up to 0.845 apart by 8")


def test_shipping_holds_in_part_or_fails_by_how_much_is_missed(tmp_path):
    slow = dict.fromkeys(["raw", "KV + INT8", "KV + INT8 + compile", "Q4_0"], 0.1)
    for i, (changed, merged, verdict_) in enumerate([
        ({}, MERGED, claims.HOLDS), ({"Q4_0": 1.0}, MERGED, claims.PART),
        (slow | {"megabytes": 99}, MERGED | {"weights": "1"}, claims.FAILS),
    ]):  # fmt: skip
        (folder := tmp_path / str(i)).mkdir()
        this = shipping(folder, [merged], {"student-50m": timed("student-50m", **changed)})
        result, why, said = evidence.shipped(this)
        assert result == verdict_ and len(said) == 5
        assert [s[0] for s in said].count("✗") == {0: 0, 1: 1, 2: 5}[i]
        assert (why == "every number is reached") == (i == 0)
    (folder := tmp_path / "untimed").mkdir()
    assert evidence.shipped(shipping(folder, [MERGED], {}))[0] == claims.UNDECIDED


# --- on the smoke book


def test_a_confirmation_text_without_a_target_judges_nothing():
    def windows(mask: np.ndarray) -> data.Windows:
        return data.Windows(np.arange(33, dtype="<u4"), 4, mask)

    hidden, some = np.zeros(33, "u1"), np.ones(33, "u1")
    some[5:13] = 0  # the second and the third of eight
    documents = np.arange(8)
    tokens = SimpleNamespace(val=windows(some), documents=lambda split: (documents, []))
    tokens.confirm = windows(hidden)
    assert evidence.split_of(tokens) == ("val", tokens.val)
    said = evidence.judged_on(tokens)
    assert "no other was put aside that has a target: 6 of 8 windows, which have a target," in said
    tokens.confirm = windows(some)
    assert evidence.split_of(tokens) == ("confirm", tokens.confirm)
    assert evidence.judged_on(tokens).endswith("which have a target, of 6 documents.")


@pytest.fixture
def started(out, tmp_path, monkeypatch):
    """Begins 07 on a copy of the smoke book, in which nothing has read the confirmation text."""
    monkeypatch.setattr(running, "_latest", None)
    monkeypatch.chdir(ROOT)
    copied = tmp_path / "smoke"
    for name in ("models", "adapters", "tokens", "results", "hashes", "tables", "sweeps"):
        shutil.copytree(out / name, copied / name, symlinks=True)
    shutil.copytree(out / "scores/val", copied / "scores/val")
    begun = []

    def begin(**more) -> tuple[Run, data.Tokens]:
        given = yaml.safe_load((ROOT / "params/smoke/07_evidence.yaml").read_text("utf-8"))
        given |= {"out": str(copied), "sweeps": "share", "redo": True, "device": "cpu"} | more
        begun.append(running.start("07_evidence", given))
        return begun[-1], token_files.open_tokens(copied / "tokens")

    yield begin
    for this in begun:
        this.detach()


def by_hand(model, path: Path) -> torch.Tensor:
    """Loss of every token of all windows of a raw file, (N, T), in float64."""
    ids = torch.from_numpy(np.fromfile(path, dtype="<u4").astype(np.int64))
    n, t = divmod(len(ids) - 1, 32)[0], 32
    ids_NT, targets_NT = ids[: n * t].view(n, t), ids[1 : n * t + 1].view(n, t)
    with torch.no_grad():
        logits_NTV = model.double()(ids_NT).logits
    return torch.nn.functional.cross_entropy(
        logits_NTV.flatten(0, 1), targets_NT.flatten(), reduction="none"
    ).view(n, t)


def forbid(monkeypatch) -> None:
    def refuse(*_):
        raise AssertionError("a model was read again")

    monkeypatch.setattr(Llama, "load", refuse)


def watch(monkeypatch) -> list[str]:
    """The names of the models that are read from now on."""
    load, seen = Llama.load, []
    monkeypatch.setattr(
        Llama, "load", lambda path, *more: seen.append(path.name) or load(path, *more)
    )
    return seen


def test_losses_are_those_of_transformers_and_peft_on_every_confirmation_window(started):
    this, tokens = started()
    found = evidence.Losses(this, tokens)
    text, models = this.out / "tokens/confirm.bin", this.out / "models"
    net = AutoModelForCausalLM.from_pretrained(models / "50m")
    loss_NT = by_hand(net, text)
    np.testing.assert_allclose(found["50m"], loss_NT.mean(1).numpy(), atol=1e-5)
    rows = evaluate.fixed_rows(tokens.confirm, this.parameters["fixed_windows"])
    assert set(found.whole) == {"teacher", "50m", "50m-scratch", "50m-seed2"}
    np.testing.assert_allclose(found.tokens("50m"), loss_NT[rows].numpy(), atol=1e-4)
    place = this.out / "sweeps/share/share0.5/adapters/50m-hard"
    adapted = by_hand(PeftModel.from_pretrained(net.float(), place), text).mean(1).numpy()
    np.testing.assert_allclose(found["share0.5"], adapted, atol=1e-5)
    assert np.abs(adapted - loss_NT.mean(1).numpy()).max() > 1e-4  # it is not the base's
    assert list(found) == list(comparison.arms_of(this)) and {"share0.2", "75m"} < found.keys()
    assert "nothing" not in found and None not in found
    assert evidence.judged_on(tokens).startswith("Judged on the confirmation text, which no choice")
    assert f"{len(loss_NT)} windows" in evidence.judged_on(tokens)


def test_a_model_is_read_when_it_is_asked_for_and_never_again(started, monkeypatch):
    this, tokens = started()
    seen = watch(monkeypatch)
    first = evidence.Losses(this, tokens)
    kept = {name: first[name] for name in ("50m", "75m", "50m", "share0.2")}
    told = first.tokens("50m")
    assert seen == ["50m", "75m", "50m"]  # and the base of share0.2, beside its adapter
    forbid(monkeypatch)
    again = evidence.Losses(this, tokens)
    assert all(np.array_equal(again[name], loss_N) for name, loss_N in kept.items())
    assert np.array_equal(again.tokens("50m"), told)
    with pytest.raises(AssertionError, match="a model was read again"):
        again["150m"]


def rehash(path: Path, name: str) -> None:
    kept = json.loads(path.read_text())
    kept["outputs"][name]["sha256"] = "f" * 64
    path.write_text(json.dumps(kept))


def test_a_model_is_read_again_where_its_hash_the_text_or_what_is_asked_changed(
    started, monkeypatch
):
    def ask(**more) -> list[str]:
        """What is read for the losses of three models."""
        this, tokens = started(sweeps="", **more)
        found = evidence.Losses(this, tokens)
        seen.clear()
        assert all(len(found[name]) == len(tokens.confirm) for name in names)
        assert len(found.tokens("50m")) == more.get("fixed_windows", 32)
        return sorted(seen)

    seen, names = watch(monkeypatch), ["50m", "75m", "teacher"]
    hashed = started(sweeps="")[0].out / "hashes"
    assert ask() == names and ask() == []
    rehash(hashed / "01_distill-50m.json", "models/50m")
    assert ask() == ["50m"] and ask() == []
    rehash(hashed / "00_teacher.json", "tokens")  # beside which a given teacher stays the same
    assert ask() == names and ask() == []
    assert ask(fixed_windows=5) == names


def test_without_a_confirmation_split_the_validation_text_judges_and_that_is_said(started):
    this, _ = started(sweeps="")
    (this.out / "tokens/confirm.bin").unlink()
    tokens = token_files.open_tokens(this.out / "tokens")
    assert evidence.split_of(tokens) == ("val", tokens.val)
    assert evidence.judged_on(tokens).startswith(
        "Judged on ⚠ the validation text, on which choices"
    )
    t = evidence.trial(this, tokens)
    for name in ("teacher", "50m", "50m-hard-merged"):  # as their own runs left them
        np.testing.assert_allclose(
            t.losses[name], np.load(this.out / f"scores/val/{name}.npy"), atol=1e-5
        )
    assert len(t.document_N) == len(tokens.val) == len(t.hard_N)


def test_what_is_kept_and_lost_is_the_lag_in_a_bucket_beyond_that_elsewhere(started):
    this, tokens = started(sweeps="")
    t = evidence.trial(this, tokens)
    effects, _ = evidence.kept(this, tokens, t)
    found = {e.what: e for e in effects}
    text, models = this.out / "tokens/confirm.bin", this.out / "models"
    base, teacher = (by_hand(AutoModelForCausalLM.from_pretrained(models / n), text).numpy()
                     for n in ("50m", "teacher"))  # fmt: skip
    rows = np.unique(np.linspace(0, len(base) - 1, 32).round().astype(int))
    lag_MT = (base - teacher)[rows]
    ids = np.fromfile(text, dtype="<u4").tolist()
    read = np.fromfile(this.out / "tokens/train.bin", dtype="<u4").tolist()
    pairs = set(itertools.pairwise(read))
    never_MT = np.array([[(ids[i * 32 + j], ids[i * 32 + j + 1]) not in pairs for j in range(32)]
                         for i in rows])  # fmt: skip
    late_MT = np.broadcast_to(np.arange(32) >= 24, never_MT.shape)
    for what, in_MT in (("never (pair seen in training)", never_MT),
                        ("4th (place in the window)", late_MT)):  # fmt: skip
        e = found[f"{what}, 50m"]
        assert e.value == pytest.approx(lag_MT[in_MT].mean() - lag_MT[~in_MT].mean(), abs=1e-4)
        assert (e.role, e.claimed, len(e.seeds)) == ("claim", 1, 1)
        assert found[f"{what}, 50m-scratch"].role == "part"
    assert found["final (place in the word), 50m"].claimed == -1


def test_every_kind_of_token_that_the_claim_names_is_one_that_is_cut(started):
    _, tokens = started(sweeps="")
    labels = kept_and_lost.cuts(tokens, np.arange(3))
    for cut, bucket in [*evidence.KEPT, *evidence.LOST]:
        assert bucket in labels[cut][0], (cut, bucket)


def test_the_page_of_the_smoke_book_gives_every_claim_one_of_four_verdicts(out):
    told = yaml.safe_load(evidence.CLAIMS.read_text("utf-8"))
    assert [claim["key"] for claim in told if not claim.get("every", True)] == ["hard", "kept"]
    found = pd.read_csv(out / "tables/07_evidence-claims.csv").set_index("key")
    assert list(found.index) == [claim["key"] for claim in told]
    assert set(found["verdict"]) <= {claims.HOLDS, claims.PART, claims.FAILS, claims.UNDECIDED}
    assert found.loc["rank", "verdict"] == claims.UNDECIDED  # named before any run
    models = pd.read_csv(out / "tables/07_evidence-models.csv").set_index("model")
    for run in (out / "results").glob("0[01]_*.json"):
        for name, row in json.loads(run.read_text("utf-8"))["models"].items():
            assert models.loc[name, "development"] == pytest.approx(row["loss"], abs=1e-6)
    effects = pd.read_csv(out / "tables/07_evidence-effects.csv").set_index("effect")
    apart = models["confirmation"]["50m"] - models["confirmation"]["50m-scratch"]
    assert effects.loc["50m − 50m-scratch", "value"] == pytest.approx(apart, abs=1e-5)
    shown = (out / "07_evidence.ipynb").read_text("utf-8")
    lines = re.findall(r"step \d+ of .*? · [^\"\\]*", shown)
    assert lines and all(" · took " in line for line in lines), lines  # nothing is left


def test_the_recipe_is_read_against_the_adapter_that_development_prefers(started):
    this, tokens = started(recipe="share")
    t = evidence.trial(this, tokens)
    dev = evidence.development(this, t)
    effects, one = evidence.recipe(this, t, dev)
    assert one == "share0.2" and [e.role for e in effects] == ["claim", "part", "part", "part"]
    apart_N = t.losses["share0.2"] - t.losses["50m-hard-merged"]
    assert effects[0].value == pytest.approx(apart_N.mean(), abs=1e-7)
    assert effects[0].what == "recipe − adapter on hard"
    assert effects[1].value == pytest.approx(apart_N[t.hard_N].mean(), abs=1e-7)
    assert effects[3].what == "recipe − 50m"
    said = evidence.recipe_in_words(effects, comparison.made(this, tokens), one, t, dev)
    assert effects[0].words() in said and "share0.2: training, FLOP" in said
    this, tokens = started(recipe="")
    assert evidence.recipe(this, t, dev) == ([], None)
    assert evidence.recipe_in_words([], {}, None, t, dev).startswith("No recipe was run here")
