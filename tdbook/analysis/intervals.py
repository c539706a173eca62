"""95 % intervals of a mean over seeds and documents.

Legend: S seeds, N windows, D documents.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import special  # scipy.stats takes a second to import

from tdlib import hard_set


class Interval(NamedTuple):
    """A value and its 95 % interval, NaN where not known. Below 0 a change of loss is better."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def clear(self) -> int:
        """−1 or 1 where the whole interval lies on that side of 0, else 0."""
        return (self.low > 0) - (self.high < 0)

    def than(self, other: str) -> str:
        """A difference of loss in words: "0.378 nats higher than 75m [0.357 to 0.398]"."""
        sign = math.copysign(1, self.value)
        low, high = sorted(sign * end for end in self[1:])
        form = f".{3 + (abs(self.value) < 0.01)}f"
        words = f"{abs(self.value):{form}} nats {'lower' if sign < 0 else 'higher'} than {other}"
        words += f" [{low:{form}} to {high:{form}}]" if math.isfinite(low) else ""
        return words.replace("-", "−") + ", which may be chance" * (not self.clear)

    def __format__(self, spec: str) -> str:
        """ "−0.220 [−0.224, −0.215]", "−0.220 [unknown]" of one document, or "undefined"."""
        value, low, high = (number(x, f"+{spec or '.3f'}") for x in self)
        span = "unknown" if low == "–" else f"{low}, {high}"
        return "undefined" if value == "–" else f"{value} [{span}]".replace("-", "−")


def number(value: float | None, form: str) -> str:
    """A number; "–" where it is not known (NaN, null in a record)."""
    return format(value, form) if value is not None and math.isfinite(value) else "–"


def change(one_N: np.ndarray, other_N: np.ndarray, document_N: np.ndarray) -> Interval:
    """Mean loss of one model minus another's, over the windows both know."""
    if np.isinf([one_N, other_N]).any():  # two would make a NaN, which is a window without a target
        raise ValueError(f"a loss is infinite: {hard_set.BROKEN}")
    return of_seeds(np.subtract(one_N, other_N, dtype=np.float64)[None], document_N)


def by_part(values: Mapping, parts: Mapping, document_N: np.ndarray, base: str) -> list[dict]:
    """Model → its values of windows, (N,), and name → which of these are a part, as a row a model:
    of each part the mean, and as "… more" the change against the base with its interval."""
    rows = []
    for name, value_N in values.items():
        row = {"model": name, "base": base}
        for part, in_N in parts.items():
            more = change(value_N[in_N], values[base][in_N], document_N[in_N])
            row |= {part: hard_set.known_mean(value_N[in_N]), f"{part} more": more}
        rows.append(row)
    return rows


def of_seeds(value_SN: np.ndarray, document_N: np.ndarray, size_N=None) -> Interval:
    """Mean of S seeds' values of every window ± t √(a + b): a, the variance of the seeds' means / S
    (one seed: 0, so documents alone); b, that of the windows' mean over D documents, from the sums
    of each document's residuals, D / (D − 1) Σ sums² / N². Degrees of freedom: Satterthwaite 1946,
    from S − 1 and n − 1, where n counts documents by `size_N`, how much a window tells. Windows
    that a seed does not know (NaN) count nowhere."""
    value_SN = np.asarray(value_SN, np.float64)
    known_N = ~np.isnan(value_SN).any(0)
    mean_N, documents = value_SN[:, known_N].mean(0), np.asarray(document_N)[known_N]
    value, s = hard_set.known_mean(mean_N), len(value_SN)
    if np.isinf(value):
        raise ValueError(f"a loss is infinite: {hard_set.BROKEN}")
    documents = np.unique(documents, return_inverse=True)[1]
    size_D = np.bincount(documents, None if size_N is None else size_N[known_N])
    if np.count_nonzero(size_D) < 2:
        return Interval(value)
    sum_D = np.bincount(documents, mean_N - value) / len(mean_N)
    d = len(size_D)
    n = size_D.sum() ** 2 / (size_D.astype(float) ** 2).sum()  # of equal size (Kish 1965)
    a = float(np.var(value_SN[:, known_N].mean(1), ddof=1)) / s if s > 1 else 0.0
    b = d / (d - 1) * float(sum_D @ sum_D)
    if a + b == 0:
        return Interval(value, value, value)
    freedom = (a + b) ** 2 / (a**2 / max(1, s - 1) + b**2 / (n - 1))
    half = float(special.stdtrit(freedom, 0.975)) * math.sqrt(a + b)
    return Interval(value, value - half, value + half)


def gap_share(base_SN, one_SN, rival_SN, document_N: np.ndarray) -> Interval:
    """(base − one) / (base − rival), means over paired seeds, by the delta method: the interval of
    the ratio's linear part. NaN where the rival is not clearly better than the base."""
    won_SN, gap_SN = (np.subtract(base_SN, x, dtype=np.float64) for x in (one_SN, rival_SN))
    if of_seeds(gap_SN, document_N).clear != 1:
        return Interval(math.nan)
    known_N = ~np.isnan(won_SN + gap_SN).any(0)
    won, gap = won_SN[:, known_N].mean(), gap_SN[:, known_N].mean()
    return of_seeds(won / gap + (won_SN - won / gap * gap_SN) / gap, document_N)


def beyond(value_SN: np.ndarray, part_SN: np.ndarray, document_N: np.ndarray) -> Interval:
    """Mean of a part of the windows minus that of the others, of seeds with a part each."""
    known_SN = ~np.isnan(value_SN)
    linear_SN, total = np.where(known_SN, 0.0, np.nan), known_SN.sum(1, keepdims=True)
    for sign, in_SN in ((1, part_SN & known_SN), (-1, ~part_SN & known_SN)):
        count_S1 = in_SN.sum(1, keepdims=True)
        if not count_S1.all():  # one side has no window with a target
            return Interval(math.nan)
        mean_S1 = np.where(in_SN, value_SN, 0).sum(1, keepdims=True) / count_S1
        linear_SN += sign * (mean_S1 + (value_SN - mean_S1) * in_SN * total / count_S1)
    return of_seeds(linear_SN, document_N, part_SN.mean(0))
