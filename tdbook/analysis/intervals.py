"""95 % intervals: bootstrap over documents, t over seeds."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special  # scipy.stats takes a second to import

from tdlib import hard_set
from tdlib.hard_set import known_mean


class Interval(NamedTuple):
    """A value and its 95 % interval, NaN where not known. Below 0 a change of loss is better."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def clear(self) -> int:
        """−1 or 1 where the whole interval lies on that side of 0, else 0."""
        return (self.low > 0) - (self.high < 0)

    def __format__(self, spec: str) -> str:
        """ "−0.220 [−0.224, −0.215]", "−0.220 [unknown]" of one document, or "undefined"."""
        value, low, high = (number(x, f"+{spec or '.3f'}") for x in self)
        span = "unknown" if low == "–" else f"{low}, {high}"
        return "undefined" if value == "–" else f"{value} [{span}]".replace("-", "−")


def number(value: float | None, form: str) -> str:
    """A number; "–" where it is not known (NaN, null in a record)."""
    return format(value, form) if value is not None and math.isfinite(value) else "–"


def resampled_means(loss_KN: np.ndarray, document_N: np.ndarray, resamples: int, seed: int = 0):
    """Means of K models' window losses under a bootstrap over documents, (resamples, K), the same
    for all, so that differences are paired. A window without a loss (NaN) counts for no model; one
    document says nothing: NaN. Draws lie `stretch` times as far out, as they vary in truth."""
    if np.isinf(loss_KN).any():
        raise ValueError(f"a loss is infinite: {hard_set.BROKEN}")
    known_N = ~np.isnan(loss_KN).any(axis=0)
    loss_KN, document_N = np.asarray(loss_KN)[:, known_N], np.asarray(document_N)[known_N]
    documents = np.unique(document_N, return_inverse=True)[1]
    sums_KD = np.stack([np.bincount(documents, row) for row in loss_KN])
    size_D = np.bincount(documents)
    if (d := len(size_D)) < 2:
        return np.full((resamples, len(loss_KN)), np.nan)
    draws_RD = _draws(d, resamples, seed).astype(float)  # products of whole numbers are slow
    means_RK = (draws_RD @ sums_KD.T) / (draws_RD @ size_D)[:, None]
    mean_K = sums_KD.sum(axis=1) / size_D.sum()
    return mean_K + stretch(size_D) * (means_RK - mean_K)


def _draws(documents: int, resamples: int, seed: int = 0) -> np.ndarray:
    """How often each document is drawn, (resamples, documents)."""
    shares_D = np.full(documents, 1 / documents)
    return np.random.default_rng(seed).multinomial(documents, shares_D, size=resamples)


def stretch(size_D: np.ndarray) -> float:
    """t / z · √(n / (n − 1)), where n = (Σ size)² / Σ size² is how many documents of equal size
    tell as much (Kish 1965). Hesterberg 2015 widens the percentile interval so; bench/intervals.py
    measures that the middle 95 % then cover the truth in 95 of 100 cases."""
    if np.count_nonzero(size_D) < 2:
        return math.nan
    n = size_D.sum() ** 2 / (size_D.astype(float) ** 2).sum()
    return special.stdtrit(n - 1, 0.975) / special.ndtri(0.975) * math.sqrt(n / (n - 1))


def interval(values_R: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of resampled values; NaN where there are none."""
    if not np.isfinite(values_R).any():
        return math.nan, math.nan
    return tuple(map(float, np.nanquantile(values_R, [0.025, 0.975])))


def change(one_N: np.ndarray, other_N: np.ndarray, document_N: np.ndarray, resamples: int):
    """Mean loss of one model minus another's, over the windows both know."""
    pair_2N = np.stack([one_N, other_N]).astype(np.float64)
    means_R2 = resampled_means(pair_2N, document_N, resamples)
    value = known_mean(pair_2N[0] - pair_2N[1])
    return Interval(value, *interval(means_R2[:, 0] - means_R2[:, 1]))


def beyond(change_N: np.ndarray, hard_N: np.ndarray, document_N: np.ndarray, resamples: int):
    """Mean change on the hard windows minus that on the others, drawn with their documents."""
    known_N = ~np.isnan(change_N)
    change_N, hard_N, document_N = (x[known_N] for x in (change_N, hard_N, document_N))
    if not 0 < hard_N.sum() < len(hard_N):  # one side has no window with a target
        return Interval(math.nan)
    documents = np.unique(document_N, return_inverse=True)[1]
    d, apart_R, value = documents.max() + 1, 0.0, 0.0
    draws_RD = _draws(d, resamples)
    for sign, chosen_N in ((1, hard_N), (-1, ~hard_N)):
        size_D = np.bincount(documents[chosen_N], minlength=d).astype(float)
        sums_D = np.bincount(documents[chosen_N], change_N[chosen_N], minlength=d)
        with np.errstate(invalid="ignore"):  # a draw without any hard window says nothing
            apart_R = apart_R + sign * (draws_RD @ sums_D) / (draws_RD @ size_D)
        value += sign * sums_D.sum() / size_D.sum()
    wide = stretch(np.bincount(documents[hard_N]).astype(float))
    return Interval(float(value), *interval(value + wide * (apart_R - value)))


def over_seeds(change_S: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % t interval over the differences of several seeds."""
    s = len(change_S)
    half = special.stdtrit(s - 1, 0.975) * np.std(change_S, ddof=1) / math.sqrt(s)
    return float(np.mean(change_S)), float(half)


def gap_closed(scratch_R, student_R, teacher_R) -> np.ndarray:
    """(scratch − student) / (scratch − teacher); all NaN where scratch is not clearly worse."""
    gap_R = np.subtract(scratch_R, teacher_R)
    if not interval(gap_R)[0] > 0:
        return np.full_like(gap_R, np.nan)
    return np.subtract(scratch_R, student_R) / gap_R
