"""The verdict says what simulated losses hold, whose truth is known; roles come from results."""

import re
from dataclasses import replace

import numpy as np
import pytest

from tdbook.analysis import intervals, verdict
from tdbook.book import comparison

D, N = 60, 1200  # documents, validation windows
SEED = 0.04  # nats that another seed moves a window, on both sides
P01 = dict(profile="small", out="o", shape="student-50m-small", ce_weight=0.5, init="random",
           temperature=2.0, epochs=2.0, token_limit=0)  # fmt: skip
P03 = dict(profile="small", out="o", base="50m", rank=16, learning_rate=1e-3, ce_weight=0.0,
           windows="hard", trains="adapter")  # fmt: skip


def distilled(name: str, seed: int = 1, tokens: int = 1000, **changed) -> dict:
    p = P01 | dict(run=f"01_distill-{name}", student=name, seed=seed) | changed
    log = [{"tokens": 0}, {"tokens": tokens}]
    return dict(notebook="01_distill", parameters=p, models={name: {}},
                remembered={f"log of {name}": log})  # fmt: skip


def replayed(name: str, seed: int = 1, **changed) -> dict:
    p = P03 | dict(run=f"03_lora-{name}", adapter=name, seed=seed) | changed
    return dict(notebook="03_lora", parameters=p, models={name: {}},
                remembered={f"log of {name}": [{"tokens": 200}]})  # fmt: skip


TEACHER = dict(notebook="00_teacher", parameters=dict(run="00_teacher", seed=1),
               models={"teacher": {}}, remembered={})  # fmt: skip
CORE = [TEACHER, distilled("50m"), distilled("pick", 2), distilled("third", 3),
        distilled("scratch", ce_weight=1.0)]  # fmt: skip
DOCUMENT_N = np.arange(N) // (N // D)


def losses(**added: tuple[float, float]) -> tuple[dict, np.ndarray]:
    """Window losses by name and which are hard, as `pick` has it. Each model is the student's truth
    plus what is given for the hard fifth (of that truth) and for the rest, plus a seed's noise."""
    rng = np.random.default_rng(0)
    teacher_N = 4 + 0.4 * rng.normal(size=D)[DOCUMENT_N] + 0.3 * rng.normal(size=N)
    lag_N = np.clip(0.3 + 0.1 * rng.normal(size=D)[DOCUMENT_N] + 0.1 * rng.normal(size=N), 0, 1)
    truly_N = lag_N >= np.quantile(lag_N, 0.8)
    found = {"teacher": teacher_N}
    for name, (hard, easy) in added.items():
        own_N = SEED * rng.normal(size=N)
        found[name] = teacher_N + lag_N + np.where(truly_N, hard, easy) + own_N
    return found, comparison.hard_windows(found, "pick", "teacher", 0.2)


def trial(results: list[dict], found: tuple, points: dict | None = None, **changed) -> tuple:
    names = dict(base="50m", scratch="scratch", teacher="teacher", picked_by="pick", resamples=400)
    t = verdict.Trial(verdict.arms(results, points or {}), *found, DOCUMENT_N, **names | changed)
    return t, verdict.comparisons(t)


EVERY = {
    "hard-merged": replayed("hard"), "random-merged": replayed("random", windows="random"),
    "easiest-merged": replayed("easiest", windows="easiest"),
    "all-merged": replayed("all", windows="all"),
    "on-hard": replayed("on-hard", trains="weights"),
    "on-random": replayed("on-random", trains="weights", windows="random"),
    "on": replayed("on", trains="weights", windows="all"),
    "long": distilled("long", tokens=1400, epochs=2.8),
    "55m": distilled("55m", shape="student-55m-small"),
    "big": distilled("big", shape="student-120m-small"),
}  # fmt: skip
EQUAL = (0.0, 0.0)


@pytest.fixture(scope="module")
def whole() -> tuple:
    """Of everything one: the adapter gains 0.05 on hard text and loses 0.02 on easy text."""
    truth = dict.fromkeys(["50m", "pick", "third", *EVERY], EQUAL) | {"scratch": (0.2, 0.2)}
    found = losses(**truth | {"hard-merged": (-0.05, 0.02), "big": (-0.1, -0.1)})
    return trial([*CORE, *EVERY.values()], found)


def test_every_comparison_of_the_claim_is_found_by_parameters_not_names(whole):
    found = {c.what: (c.one.name, c.other.name) for c in whole[1]}
    against = "adapter on hard against "
    assert found == {
        "distilled against scratch": ("50m", "scratch"),
        f"{against}its base": ("hard-merged", "50m"),
        f"{against}adapter on random": ("hard-merged", "random-merged"),
        f"{against}adapter on easiest": ("hard-merged", "easiest-merged"),
        f"{against}adapter on all": ("hard-merged", "all-merged"),
        f"{against}weights on hard": ("hard-merged", "on-hard"),
        f"{against}weights on random": ("hard-merged", "on-random"),
        f"{against}weights on all": ("hard-merged", "on"),
        f"{against}a stretched schedule": ("hard-merged", "long"),
        f"{against}student-55m": ("hard-merged", "55m"),
        f"{against}student-120m": ("hard-merged", "big"),
        "nothing: another seed of the base": ("third", "50m"),
    }


def test_the_sentences_hold_the_true_gains_and_their_own_intervals(whole):
    t, found = whole
    said = verdict.sentences(t, found)
    line = next(s for s in said if "the one on a random set" in s)
    number = r"(\d\.\d{3}) ± (\d\.\d{3}) nats \[(\d\.\d{3}), (\d\.\d{3})\]"
    parts = re.match(
        r"On the hard part the adapter on the hard set \(hard-merged\) beats the one on a random "
        rf"set \(random-merged\) by {number}; on the easy part it loses {number}; on all text it "
        rf"loses {number}; one seed\.",
        line,
    )
    assert parts, line
    numbers = np.array([float(x) for x in parts.groups()]).reshape(3, 4)
    # a part of the picked fifth is easy in truth: between 0.02 lost and 0.05 gained
    assert 0.02 < numbers[0, 0] < 0.05 and numbers[1, 0] == pytest.approx(0.02, abs=0.01)
    for value, half, low, high in numbers:
        assert low < value < high and half == pytest.approx((high - low) / 2, abs=0.0011)
    # the same from the arrays, without the module
    gain_N = t.losses["random-merged"] - t.losses["hard-merged"]
    assert numbers[:, 0] == pytest.approx(
        [gain_N[t.hard_N].mean(), -gain_N[~t.hard_N].mean(), -gain_N.mean()], abs=6e-4
    )
    assert verdict.headline(t, found) == line


def test_windows_without_a_target_change_no_word_of_the_verdict_but_the_one_that_says_so(whole):
    t, compared = whole
    at = np.flatnonzero(np.arange(N) % 7 == 0)  # a new one before each seventh window, and a whole
    at = np.concatenate([at, np.full(9, N)])  # document of them
    document_N = np.insert(t.document_N, at, [*t.document_N[at[:-9]], *[D] * 9])
    found = {n: np.insert(x, at, np.nan) for n, x in t.losses.items()}
    hard_N = comparison.hard_windows(found, "pick", "teacher", 0.2)
    masked = replace(t, losses=found, hard_N=hard_N, document_N=document_N)
    said = verdict.sentences(masked, verdict.comparisons(masked))
    own = f"{len(at):,} of {N + len(at):,} windows have no target (a mask): they are neither hard "
    assert [s for s in said if s.startswith(own)] and not any("nan" in s for s in said)
    assert [s for s in said if not s.startswith(own)] == verdict.sentences(t, compared)


def test_what_one_document_shows_is_never_clear_and_its_lag_has_no_interval(whole):
    t, _ = whole
    alone = replace(t, document_N=np.zeros(N, int))
    said = verdict.sentences(alone, verdict.comparisons(alone))
    assert not any("is clear:" in s or "nan" in s for s in said)
    assert "nats, of one document behind its teacher" in said[0]
    gap = verdict.gap_in_words(alone, alone.compare("", *map(t.arms.get, ("hard-merged", "big"))))
    assert gap.endswith("closes: undefined, since one document has no interval.")


def test_a_part_without_a_target_is_undefined_and_says_why(whole):
    t, _ = whole
    found = {n: np.where(t.hard_N, np.nan, x) for n, x in t.losses.items()}
    blind = replace(t, losses=found)
    said = verdict.in_words(blind.compare("x", *map(t.arms.get, ("hard-merged", "50m"))))
    assert "undefined: no window there has a target" in said and "nan" not in said


def test_a_difference_that_may_be_nothing_is_no_finding(whole):
    t, found = whole
    line = next(s for s in verdict.sentences(t, found) if "(on)" in s or "(55m)" in s)
    assert "beats" in line
    same = t.compare("x", t.arms["55m"], t.arms["50m"])
    said = verdict.in_words(same)
    assert "55m is not clearly apart from 50m (" in said and "they are not apart (" in said


def test_what_is_not_run_is_said(whole):
    t, found = whole
    assert not any("Not run" in s for s in verdict.sentences(t, found))
    some = losses(**{n: EQUAL for n in ("50m", "pick", "scratch", "hard-merged")})
    said = verdict.sentences(*trial([*CORE[:3], CORE[4], EVERY["hard-merged"]], some))
    assert said[-2] == f"Not run, so not compared: {', '.join(verdict.NEEDED)}."
    assert said[-1].endswith("third seed of 50m, since pick picks the hard windows.")
    said = verdict.sentences(*trial(CORE, losses(**{n: EQUAL for n in ("50m", "pick", "third")})))
    assert any("No adapter on the hard set of 50m is here" in s for s in said)


# --- null row, seeds, warnings


def test_two_seeds_show_no_gain_on_the_hard_part_when_a_third_picks(whole):
    """They would if the base picked: windows on which it did badly flatter every other."""
    t, found = whole
    value, low, high = next(c for c in found if c.what.startswith("nothing")).changes["hard"]
    assert low < 0 < high and abs(value) < 0.01
    # a seed that is better everywhere has no gain of its own on the hard part
    everywhere_N = t.losses["third"] - t.losses["50m"] - 0.04
    value, low, high = intervals.beyond(everywhere_N, t.hard_N, DOCUMENT_N, 400)
    assert low < 0 < high and value == pytest.approx(
        everywhere_N[t.hard_N].mean() - everywhere_N[~t.hard_N].mean()
    )
    assert any("is not clearly apart from nothing" in s for s in verdict.sentences(t, found))
    hard_N = comparison.hard_windows(t.losses, "50m", "teacher", 0.2)
    flattered = intervals.change(t.losses["third"][hard_N], t.losses["50m"][hard_N],
                                DOCUMENT_N[hard_N], 400)  # fmt: skip
    assert flattered[2] < 0


def test_several_seeds_have_a_t_interval_of_their_paired_differences():
    results = [*CORE, replayed("hard"), replayed("random", windows="random")]
    truth = {"50m": EQUAL, "pick": EQUAL, "scratch": EQUAL, "third": EQUAL,
             "hard-merged": (-0.06, 0), "random-merged": EQUAL, "s4 x": (-0.05, 0), "s4 r": EQUAL,
             "s5 x": (-0.04, 0), "s5 r": EQUAL}  # fmt: skip
    points = {f"s{s} {w[0].replace('h', 'x')}": (w, replayed(w, s, windows=w, out="point"))
              for s in (4, 5) for w in ("hard", "random")}  # fmt: skip
    t, found = trial(results, losses(**truth), points)
    c = next(c for c in found if c.what.endswith("adapter on random"))
    pairs = [("hard-merged", "random-merged"), ("s4 x", "s4 r"), ("s5 x", "s5 r")]
    each = [(t.losses[a] - t.losses[b])[t.hard_N].mean() for a, b in pairs]
    assert [pair["hard"] for pair in c.seeds] == pytest.approx(each)
    half = 4.3027 * np.std(each, ddof=1) / np.sqrt(3)
    wanted = f"over 3 seeds (t interval of the change): hard {np.mean(each):+.3f} ± {half:.3f}"
    assert wanted.replace("-", "−") in verdict.in_words(c)
    assert (
        verdict.table(found).set_index("question").loc[c.what, "seeds, hard part"].startswith("3: ")
    )
    # one base, three adapters: no other seed of a rival, and a point is no favourite of its own
    assert sum(c.what.endswith("its base") for c in found) == 1


def test_seeds_of_what_the_picker_made_do_not_count():
    results = [*CORE, replayed("hard"), replayed("hard2", 2, base="pick")]
    truth = dict.fromkeys(["50m", "pick", "third", "scratch", "hard-merged", "hard2-merged"], EQUAL)
    t, found = trial(results, losses(**truth))
    assert next(c for c in found if c.what.endswith("its base")).seeds[1:] == []
    assert any("pick picks the hard windows, and hard2-merged was made from it" in s
               for s in verdict.warnings(t))  # fmt: skip


@pytest.mark.parametrize("picks", ["50m", "scratch"])
def test_a_picker_in_the_comparison_is_said_first(whole, picks):
    t, _ = trial([*CORE, *EVERY.values()], (whole[0].losses, whole[0].hard_N), picked_by=picks)
    assert any("picks the hard windows, and it is in the comparison" in s for s in
               verdict.warnings(t)[:2])  # fmt: skip


@pytest.mark.parametrize(("lag", "little"), [(-0.2, True), (0.0, False)])
def test_a_teacher_that_is_hardly_better_is_said_before_anything_else(lag, little):
    """The mean lag is 0.3, or 0.1 with 0.2 less."""
    names = ("50m", "pick", "scratch", "hard-merged", "random-merged")
    found = losses(**{n: (lag, lag) for n in names})
    t, c = trial([*CORE, EVERY["hard-merged"], EVERY["random-merged"]], found)
    said = verdict.sentences(t, c)
    assert ("This trial means little" in said[0]) == little
    assert re.search(r"\+0\.[13]\d\d ± 0\.0\d\d nats \[", said[0])
    assert verdict.headline(t, c).startswith("⚠ This trial") == little


def test_the_gap_to_the_larger_rival_is_a_share_with_an_interval_or_undefined(whole):
    t, found = whole
    c = next(c for c in found if c.what.endswith("120m"))
    base, one, rival = (t.losses[n].mean() for n in ("50m", "hard-merged", "big"))
    said = verdict.gap_in_words(t, c)
    assert said.startswith("Share of the gap from 50m to big that hard-merged closes: ")
    assert f"{(base - one) / (base - rival):+.2f} [".replace("-", "−") in said
    t.losses["big"] = t.losses["third"]
    assert verdict.gap_in_words(t, c).endswith("undefined, since the base is not clearly worse.")
    del t.losses["big"]


def test_results_without_the_newer_keys_are_adapters_on_hard_windows():
    old = replayed("old")
    for key in ("windows", "trains"):
        del old["parameters"][key]
    arm = verdict.arms([*CORE, old], {})["old-merged"]
    assert (arm.adapter, arm.windows, arm.kind()) == (True, "hard", "adapter on the hard set")
    assert (arm.seeds, arm.tokens) == ((1, 1), 200)


def test_other_differences_of_two_arms_are_told():
    one, other = (verdict.arms([*CORE, replayed("a", **p)], {})["a-merged"]
                  for p in ({}, {"windows": "random", "rank": 4}))  # fmt: skip
    found = losses(**{"50m": EQUAL, "pick": EQUAL, "a-merged": EQUAL})
    t = trial(CORE, found)[0]
    assert "They also differ in rank (16 against 4)." in verdict.in_words(
        t.compare("x", one, other)
    )
