"""Intervals against their analytical values, and how often they cover the truth."""

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from bench import intervals as bench
from tdbook.analysis import intervals
from tdbook.analysis.intervals import Interval, change
from tdbook.book import comparison
from tdbook.corpus import token_files
from tdbook.report import words
from tests.tdbook.analysis.test_judge import CASES


@pytest.mark.parametrize(("values", "text", "clear"), CASES["intervals"])
def test_an_interval_has_signs_and_true_minuses_and_is_clear_beside_0(values, text, clear):
    interval = Interval(*values)
    assert f"{interval}" == text and interval.clear == clear


def test_one_document_or_a_side_without_a_target_says_nothing_and_infinity_is_refused():
    found = change(np.array([1.0, 2]), np.array([2.0, 2]), np.array([3, 3]))
    assert found.value == -0.5 and np.isnan(found[1:]).all()
    one_N = np.array([1.0, 2, np.inf, 3])
    with pytest.raises(ValueError, match="a loss is infinite"):
        change(one_N, one_N, np.arange(4))
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
        own = cov_22[0, 0] - 2 * share * cov_22[0, 1] + share**2 * cov_22[1, 1]
        return own / gap_SN.mean() ** 2

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
        held = bench.coverage(200, documents, 0.45)
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
    end = f"(one seed; {120 - known_N.sum()} of 120 windows have no target and are left out)."
    assert words.outcome("A", "B", found, where_N).endswith(end)


def test_an_outcome_answers_the_plan_and_says_which_way_and_how_sure():
    known_N = np.ones(3, bool)
    by = partial(words.outcome, "A", "B", known_N=known_N)
    said = by(Interval(-0.012, -0.017, -0.007), plan=[-0.5, -0.1])
    wanted = "No: A ends 0.012 nats lower than B [0.007 to 0.017] (one seed)"
    assert said == f"{wanted}; the plan hopes for 0.10–0.50 lower."
    assert by(Interval(-0.3, -0.4, -0.2), plan=[-0.5, -0.1]).startswith("Yes: A ends 0.300 nats lo")
    assert by(Interval(-0.1, -0.2, 0.0), plan=[-0.5, -0.1]).startswith("Not decided: A ends 0.100")
    unsure = by(Interval(0.002, -0.001, 0.005))
    assert (
        unsure
        == "A ends 0.0020 nats higher than B [−0.0010 to 0.0050], which may be chance (one seed)."
    )


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
