"""Intervals against their analytical values, and how often they cover the truth."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from bench import intervals as bench
from tdbook.analysis import intervals
from tdbook.analysis.intervals import Interval, change, resampled_means, stretch
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
        assert np.isnan(intervals.beyond(change_N[None], hard_N[None], np.arange(4))).all()
    assert np.isnan(intervals.of_seeds(np.full((2, 4), np.nan), np.arange(4))).all()
    found = intervals.of_seeds(change_N[None], np.zeros(4))
    assert found.value == pytest.approx(0.15) and np.isnan(found[1:]).all()
    assert intervals.of_seeds(np.full((2, 4), 0.25), np.arange(4)) == (0.25, 0.25, 0.25)
    with pytest.raises(ValueError, match="a loss is infinite"):
        intervals.of_seeds(one_N[None], np.arange(4))


def by_hand(change_SN: np.ndarray, documents: list, counts: list) -> tuple[float, float, float]:
    """Mean and interval of seeds' differences, in loops; `counts`: what each document tells."""
    known = [i for i in range(len(documents)) if not any(math.isnan(row[i]) for row in change_SN)]
    seeds = [sum(float(row[i]) for i in known) / len(known) for row in change_SN]
    mean, s, d = sum(seeds) / len(seeds), len(seeds), len(counts)
    a = sum((x - mean) ** 2 for x in seeds) / (s - 1) / s if s > 1 else 0.0
    residuals = dict.fromkeys((documents[i] for i in known), 0.0)
    for i in known:
        residuals[documents[i]] += sum(float(row[i]) for row in change_SN) / s - mean
    b = d / (d - 1) * sum(x**2 for x in residuals.values()) / len(known) ** 2
    n = sum(counts) ** 2 / sum(x**2 for x in counts)
    freedom = (a + b) ** 2 / ((a**2 / (s - 1) if s > 1 else 0) + b**2 / (n - 1))
    half = stats.t.ppf(0.975, freedom) * math.sqrt(a + b)
    return mean, mean - half, mean + half


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_the_seeds_mean_has_one_interval_of_seeds_and_documents(seeds):
    """Of unequal documents, some windows of which a seed does not know."""
    rng = np.random.default_rng(seeds)
    sizes = rng.integers(1, 9, 12)
    document_N = np.repeat(np.arange(12) * 3, sizes)
    for noise in (0.0, 0.02, 1.0):  # of the seeds, beside that of documents
        change_SN = rng.normal(0, 0.1, (seeds, sizes.sum())) + noise * rng.normal(size=(seeds, 1))
        change_SN += rng.normal(-0.1, 0.2, 12).repeat(sizes)
        change_SN[rng.integers(seeds), [3, 7]] = np.nan
        found, left = intervals.of_seeds(change_SN, document_N), np.delete(document_N, [3, 7])
        wanted = by_hand(change_SN, document_N.tolist(), np.unique(left, return_counts=True)[1])
        assert found == pytest.approx(wanted, rel=1e-9)
        order = rng.permutation(len(document_N))
        turned = intervals.of_seeds(-change_SN[::-1, order], document_N[order])
        assert turned == pytest.approx((-found[0], -found[2], -found[1]))


def test_the_share_of_a_gap_has_the_delta_methods_interval_and_needs_a_gap():
    """Variances and covariances of seeds and of documents, by hand; one window a document."""
    rng, d, s = np.random.default_rng(5), 40, 4
    base_SN = rng.normal(5, 0.3, d) + rng.normal(0, 0.02, (s, d)) + rng.normal(0, 0.02, (s, 1))
    won_SN, gap_SN = rng.normal(0.1, 0.1, (s, d)), rng.normal(0.4, 0.1, (s, d))
    one_SN, rival_SN = base_SN - won_SN, base_SN - gap_SN
    share = won_SN.mean() / gap_SN.mean()

    def variance(cov_22: np.ndarray) -> float:
        return (
            cov_22[0, 0] - 2 * share * cov_22[0, 1] + share**2 * cov_22[1, 1]
        ) / gap_SN.mean() ** 2

    a = variance(np.cov(won_SN.mean(1), gap_SN.mean(1))) / s
    b = variance(np.cov(won_SN.mean(0), gap_SN.mean(0))) / d
    freedom = (a + b) ** 2 / (a**2 / (s - 1) + b**2 / (d - 1))
    half = stats.t.ppf(0.975, freedom) * math.sqrt(a + b)
    found = intervals.gap_share(base_SN, one_SN, rival_SN, np.arange(d))
    assert found == pytest.approx((share, share - half, share + half))
    whole = intervals.gap_share(base_SN, rival_SN, rival_SN, np.arange(d))
    assert whole == pytest.approx((1, 1, 1))
    for gone in (base_SN + 0.1, base_SN + rng.normal(0, 0.5, (s, d))):  # worse, or not clear
        assert np.isnan(intervals.gap_share(base_SN, one_SN, gone, np.arange(d))).all()


def test_hard_beyond_easy_has_students_t_interval_of_the_documents_differences():
    """Of a document one window is hard and one easy; of three seeds the second picks the other."""
    rng = np.random.default_rng(3)
    apart_SD, easy_SD = rng.normal(0.1, 0.2, (3, 60)), rng.normal(0, 1, (3, 60))
    value_SN = np.stack([easy_SD + apart_SD, easy_SD], 2).reshape(3, -1)
    part_SN = np.tile([True, False], (3, 60))
    value_SN[1], part_SN[1] = value_SN[1].reshape(-1, 2)[:, ::-1].ravel(), ~part_SN[1]
    document_N = np.repeat(np.arange(60), 2)
    for seeds in (slice(1, 2), slice(None)):
        found = intervals.beyond(value_SN[seeds], part_SN[seeds], document_N)
        assert found == pytest.approx(by_hand(apart_SD[seeds], list(range(60)), [1] * 60))


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
    this = SimpleNamespace(out=tmp_path, run="x", path=tmp_path.joinpath, parameters={})
    monkeypatch.setattr(token_files, "origins", lambda tokens, split: (document_N, []))
    return this, {n: x[known_N] for n, x in losses.items()}, document_N[known_N], known_N


def test_the_difference_of_two_routes_leaves_masked_windows_out_and_says_so(two):
    this, left, document_N, known_N = two
    found, where_N = comparison.difference(this, "a", "b", None)
    change_N = np.subtract(left["a"], left["b"], dtype=float)
    counts = np.unique(document_N, return_counts=True)[1]
    assert found == pytest.approx(by_hand(change_N[None], document_N.tolist(), counts))
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
