"""Intervals against their analytical values, and how often they cover the truth."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from bench import intervals as bench
from tdbook.analysis import intervals
from tdbook.analysis.intervals import Interval, beyond, change, gap_closed, resampled_means, stretch
from tdbook.book import comparison
from tdbook.corpus import token_files
from tdbook.report import words
from tests.tdbook.analysis.test_judge import CASES


@pytest.mark.parametrize(("values", "text", "clear"), CASES["intervals"])
def test_an_interval_has_signs_and_true_minuses_and_is_clear_beside_0(values, text, clear):
    interval = Interval(*values)
    assert f"{interval}" == text and interval.clear == clear


def test_resampled_means_have_the_mean_and_spread_of_independent_documents():
    """Documents of like size: the spread of the bootstrap is s/√D, s over documents with 1/D."""
    d, r = 200, 4000
    loss_D = np.random.default_rng(0).normal(3, 0.5, d)
    means_R = resampled_means(loss_D[None], np.arange(d), r)[:, 0]
    spread = loss_D.std() / math.sqrt(d)
    # a mean of r draws within 4 of its deviations, a deviation within 4 of spread/√2r
    assert abs(means_R.mean() - loss_D.mean()) < 4 * spread / math.sqrt(r)
    assert abs(means_R.std() - spread) < 4 * spread / math.sqrt(2 * r)
    low, high = intervals.interval(means_R)
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.1)


def test_models_are_resampled_together_and_documents_weigh_by_their_windows():
    rng = np.random.default_rng(2)
    loss_N, document_N = rng.normal(3, 0.5, 300), np.arange(300) // 3
    loss_3N = np.stack([loss_N, loss_N, loss_N + 0.1])
    means_R3, again_R3, other_R3 = (resampled_means(loss_3N, document_N, 500, s) for s in (1, 1, 2))
    assert (means_R3[:, 0] == means_R3[:, 1]).all()
    np.testing.assert_allclose(means_R3[:, 2] - means_R3[:, 0], 0.1, atol=1e-12)
    assert (means_R3 == again_R3).all() and (means_R3 != other_R3).any()  # a seed draws the same
    loss_N, document_N = np.array([1.0, 1.0, 1.0, 5.0]), np.array([4, 4, 4, 9])
    means_R = resampled_means(loss_N[None], document_N, 300)[:, 0]
    # twice the first, each once, twice the second: 1, 2, 5, stretched about the mean, 2
    steps = sorted(set(((means_R - 2) / stretch(np.array([3, 1]))).round(9)))
    assert steps == [-1, 0, 3]


def test_a_window_without_a_loss_is_left_out_of_every_mean():
    loss_N, document_N = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0, 0, 1, 2])
    other_N = np.array([1.0, np.nan, 3.0, 4.0])
    means_R2 = resampled_means(np.stack([loss_N, other_N]), document_N, 50)
    wanted = resampled_means(loss_N[None, [0, 2, 3]], document_N[[0, 2, 3]], 50)
    np.testing.assert_array_equal(means_R2, np.repeat(wanted, 2, axis=1))
    one_N, other_N = np.array([1.0, np.nan, 2, 3]), np.array([2.0, 1, np.nan, 5])
    value, low, high = change(one_N, other_N, document_N, 200)
    assert value == -1.5 and low < -1.5 < high


def test_gap_closed_is_nothing_at_scratch_and_all_at_the_teacher():
    noise_R = np.random.default_rng(4).normal(0, 0.01, 1000)
    scratch_R, teacher_R = 5.0 + noise_R, 4.0 + 2 * noise_R
    assert (gap_closed(scratch_R, scratch_R, teacher_R) == 0).all()
    assert (gap_closed(scratch_R, teacher_R, teacher_R) == 1).all()
    half_R = (scratch_R + teacher_R) / 2
    np.testing.assert_allclose(gap_closed(scratch_R, half_R, teacher_R), 0.5)
    for gap in (-1.0, 0.0, 0.015):  # not clearly worse: 1.5 deviations at best
        scratch_R = 4 + gap + noise_R
        assert np.isnan(gap_closed(scratch_R, scratch_R, np.full(1000, 4.0))).all()


@pytest.mark.parametrize(("sizes", "documents"), [([7] * 20, 20), ([9] + [1] * 27, 12)])
def test_draws_are_stretched_to_students_t_of_the_documents_that_count(sizes, documents):
    """Tables: t is 2.093 with 19 degrees of freedom, 2.201 with 11. 9 and 27 times 1: 36² / 108."""
    t = {20: 2.0930, 12: 2.2010}[documents]
    wanted = t / 1.95996 * math.sqrt(documents / (documents - 1))
    assert stretch(np.array(sizes)) == pytest.approx(wanted, rel=1e-4)


def test_one_document_or_a_side_without_a_target_says_nothing_and_infinity_is_refused():
    found = change(np.array([1.0, 2]), np.array([2.0, 2]), np.array([3, 3]), 100)
    assert found.value == -0.5 and np.isnan(found[1:]).all()
    one_N = np.array([1.0, 2, np.inf, 3])
    with pytest.raises(ValueError, match="a loss is infinite"):
        change(one_N, one_N, np.arange(4), 100)
    change_N = np.array([0.1, 0.2, np.nan, np.nan])
    for hard_N in (np.array([1, 1, 0, 0]) > 0, np.array([0, 0, 1, 1]) > 0, np.ones(4, bool)):
        assert np.isnan(beyond(change_N, hard_N, np.arange(4), 100)).all()
    assert np.isnan(beyond(np.full(4, np.nan), hard_N, np.arange(4), 100)).all()


def test_hard_beyond_easy_has_students_t_interval_of_the_documents_differences():
    """Of a document one window is hard and one is easy."""
    apart_D = np.random.default_rng(3).normal(0.1, 0.2, 60)
    easy_D = np.random.default_rng(4).normal(0, 1, 60)
    change_N, hard_N = np.stack([easy_D + apart_D, easy_D], 1).ravel(), np.tile([True, False], 60)
    found = beyond(change_N, hard_N, np.repeat(np.arange(60), 2), 2000)
    low, high = stats.t.interval(0.95, 59, apart_D.mean(), stats.sem(apart_D))
    assert found.value == pytest.approx(apart_D.mean())
    assert found[1:] == pytest.approx((low, high), abs=0.08 * (high - low))


def test_95_percent_intervals_cover_the_truth_in_95_of_100_cases():
    """200 simulations a case; where each of them held with 95 %, fewer than 180 or more than 199
    would be seen once in a thousand times and more. `make stress` has 2,000."""
    for documents in (20, 150):
        held = bench.coverage(200, documents, 0.45, resamples=200)
        low, high = stats.binom.ppf([0.0005, 0.9995], 200, 0.95) / 200
        assert all(low <= share <= high for share in held.values()), (documents, held)


@pytest.fixture
def two(tmp_path, monkeypatch):
    """A run whose folder holds two models' losses; every third window and a whole document of
    them without a target. And the same losses with these windows taken away."""
    rng, document_N = np.random.default_rng(8), np.arange(120) // 6
    losses = {n: rng.normal(5, 0.1, 120).astype(np.float32) for n in ("a", "b")}
    known_N = (np.arange(120) % 3 > 0) & (document_N != 4)
    (tmp_path / "scores/val").mkdir(parents=True)
    for name, loss_N in losses.items():
        np.save(tmp_path / f"scores/val/{name}.npy", np.where(known_N, loss_N, np.float32("nan")))
    this = SimpleNamespace(out=tmp_path, run="x", path=tmp_path.joinpath)
    this.parameters = {"seed": 1, "resamples": 500}
    monkeypatch.setattr(token_files, "origins", lambda tokens, split: (document_N, []))
    return this, {n: x[known_N] for n, x in losses.items()}, document_N[known_N], known_N


def test_the_difference_of_two_routes_leaves_masked_windows_out_and_says_so(two):
    this, left, document_N, known_N = two
    found, where_N = comparison.difference(this, "a", "b", None)
    pair_2N = np.stack([left["a"], left["b"]]).astype(float)
    drawn_R2 = resampled_means(pair_2N, document_N, 500, seed=1)
    ends = intervals.interval(drawn_R2[:, 0] - drawn_R2[:, 1])
    assert found.value == pytest.approx(float(np.subtract(*pair_2N).mean()), abs=1e-6)
    assert found[1:] == pytest.approx(ends)
    end = f"one seed; {120 - known_N.sum()} of 120 windows have no target and are left out."
    assert words.difference("A", "B", found, where_N).endswith(end)


def test_hard_windows_are_a_share_of_those_with_a_target_and_no_loss_may_lack(two):
    this, left, _, known_N = two
    hard_N = comparison.hard_windows(comparison.window_losses(this, ["a", "b"]), "a", "b", 0.25)
    assert hard_N.sum() == round(0.25 * known_N.sum()) and not hard_N[~known_N].any()
    np.testing.assert_array_equal(hard_N[known_N], comparison.hard_windows(left, "a", "b", 0.25))
    loss_N = np.load(path := this.path("scores/val/b.npy"))
    for value in (np.nan, np.inf):  # where the other has a number
        loss_N[1] = value
        np.save(path, loss_N)
        with pytest.raises(ValueError, match=r"b.npy holds losses that are not finite"):
            comparison.window_losses(this, ["a", "b"])
