"""What a model is worth: loss on the validation split, against the teacher, by kind of text.

Losses are nats per token. Differences between models are paired, window by window, and their 95 %
intervals come from resampling whole documents, since neighbouring windows are not independent.
Legend: N windows of the split, M of them fixed (evenly spread), T tokens of a window, V vocabulary.
"""

import io
import math
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from tdlib import data, hard_set
from tdlib.hard_set import known_mean
from tdlib.model import Llama
from tdlib.tokenizer import Tokenizer

SCRIPTS = ("Telugu", "Latin", "digits", "other")
BINS = 15  # of the calibration error (Guo et al. 2017, section 2)


@dataclass(frozen=True)
class Evaluation:
    """One model on one split."""

    window_loss_N: np.ndarray  # every window
    rows_M: np.ndarray  # the fixed windows' numbers
    token_loss_MT: np.ndarray  # every token of those
    calibration: dict[str, list[float]]  # per bin of confidence: "confidence", "accuracy", "share"
    kl: float  # KL(teacher ‖ model) at temperature 1 over the fixed windows; NaN without a teacher
    agreement: float  # share of tokens where both would choose the same next one

    def row(self, bytes_per_token: float) -> dict[str, float]:
        """Every metric that is one number."""
        loss = known_mean(self.window_loss_N)
        confidence, accuracy, share = (np.asarray(x) for x in self.calibration.values())
        row = {
            "loss": loss,
            "loss_fixed": known_mean(self.token_loss_MT),
            "perplexity": math.exp(loss),
            "bits_per_byte": loss / math.log(2) / bytes_per_token,
            "kl": self.kl,
            "agreement": self.agreement,
            "calibration_error": float((share * np.abs(accuracy - confidence)).sum()),
        }
        left_out = int(np.isnan(self.window_loss_N).sum())  # none has a target
        return row | ({"windows_left_out": left_out} if left_out else {})

    def save(self, folder: Path, name: str, whole: bool = True) -> None:
        """scores/val/<name>.npy and .npz, which 04 reads instead of running the model again;
        without `whole` the .npy alone."""
        windows, fixed = io.BytesIO(), io.BytesIO()
        np.save(windows, self.window_loss_N.astype(np.float32))
        np.savez(fixed, rows_M=self.rows_M, token_loss_MT=self.token_loss_MT, **self.calibration)
        data.write_whole(folder / f"{name}.npy", windows.getvalue())
        if whole:
            data.write_whole(folder / f"{name}.npz", fixed.getvalue())


def fixed_rows(windows: data.Windows, count: int) -> np.ndarray:
    """`count` windows, or all, spread evenly over a split; where none has a target, others."""
    rows = np.unique(np.linspace(0, len(windows) - 1, count).round().astype(int))
    return hard_set.with_targets(windows, rows)


@torch.no_grad()
def evaluate(
    model: Llama,
    windows: data.Windows,
    teacher: Llama | None = None,
    *,
    fixed: int = 640,
    device: str = "cpu",
    progress: Callable[[int, int, str], None] = lambda done, all, message: None,
) -> Evaluation:
    """Loss on every window; on `fixed` ones calibration and, with a teacher, KL and agreement."""
    rows_M = fixed_rows(windows, fixed)
    rest = np.setdiff1d(np.arange(len(windows)), rows_M)
    loss_N, done = np.full(len(windows), np.nan, np.float32), 0
    for rows in windows.batches(rest, 128):
        loss_N[rows] = hard_set.window_loss(model, windows, rows, device)
        progress(done := done + len(rows), len(windows), "windows evaluated")
    parts = []
    for rows in windows.batches(rows_M, 8):
        parts += _compare(model, teacher, *windows.batch(rows, device))
        progress(done := done + len(rows), len(windows), "windows evaluated")
    each = _joined(parts, teacher)
    loss_MT = each["loss_MT"].cpu().numpy()
    loss_N[rows_M] = known_mean(loss_MT, axis=1)
    calibration = _calibration(each["confidence"], each["right"])
    kl, agreement = (float(each[key].mean()) for key in ("kl", "same"))
    return Evaluation(loss_N, rows_M, loss_MT, calibration, kl, agreement)


def record(
    model: Llama,
    tokens: data.Tokens,
    teacher: Llama | None,
    folder: Path,
    name: str,
    *,
    fixed: int = 640,
    device: str = "cpu",
    progress: Callable[[int, int, str], None] = lambda done, all, message: None,
) -> dict[str, float]:
    """Evaluate on the validation split, leave the arrays in `folder`, return the row of metrics."""
    found = evaluate(model, tokens.val, teacher, fixed=fixed, device=device, progress=progress)
    found.save(folder, name)
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters} | found.row(tokens.bytes_per_token())


def _compare(model: Llama, teacher: Llama | None, ids_BT: Tensor, targets_BT: Tensor) -> list[dict]:
    """Per token of each of some windows, one window's logits at a time: loss_1T, NaN where masked;
    of the tokens that are not masked, the rest."""
    parts = []
    for ids_1T, y_T in zip(ids_BT.split(1), targets_BT, strict=True):
        log_q_TV, counts_T = model(ids_1T)[0].float().log_softmax(-1), y_T != data.IGNORE
        loss_T = -log_q_TV.gather(-1, y_T.clamp(min=0)[:, None])[:, 0]
        top = log_q_TV.max(-1)
        kl_T = same_T = torch.full_like(loss_T, torch.nan)
        if teacher is not None:
            log_p_TV = teacher(ids_1T)[0].float().log_softmax(-1)
            kl_T = (log_p_TV.exp() * (log_p_TV - log_q_TV)).sum(-1)
            same_T = (log_p_TV.argmax(-1) == top.indices).float()
        right_T = (top.indices == y_T).float()
        part = dict(confidence=top.values.exp(), right=right_T, kl=kl_T, same=same_T)
        part = {name: x_T[counts_T] for name, x_T in part.items()}
        parts.append(part | {"loss_1T": torch.where(counts_T, loss_T, torch.nan)[None]})
    return parts


def _joined(parts: list[dict], teacher: Llama | None) -> dict[str, Tensor]:
    """All windows together. ValueError: a value is not finite; a mean without it hides a fault."""
    each = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    each["loss_MT"] = each.pop("loss_1T")
    if int(each["loss_MT"].isfinite().sum()) != len(each["right"]):
        raise ValueError(f"the loss of a token is not finite: {hard_set.BROKEN}")
    if teacher is not None and not each["kl"].isfinite().all():
        raise ValueError(f"the teacher's KL of a token is not finite: {hard_set.BROKEN}")
    return each


@torch.no_grad()
def apart(
    model: Llama, other: Llama, windows: data.Windows, rows: np.ndarray, device: str = "cpu"
) -> tuple[float, float]:
    """Loss of a model on some windows, and KL(other ‖ model) there."""
    batches = (windows.batch(rows_B, device) for rows_B in windows.batches(rows, 8))
    each = _joined([part for batch in batches for part in _compare(model, other, *batch)], other)
    return tuple(float(each[name].nanmean()) for name in ("loss_MT", "kl"))


def _calibration(confidence_N: Tensor, right_N: Tensor) -> dict[str, list[float]]:
    bin_N = (confidence_N * BINS).long().clamp(max=BINS - 1)
    count = torch.bincount(bin_N, minlength=BINS).clamp(min=1)
    sums = {
        "confidence": torch.bincount(bin_N, confidence_N, minlength=BINS) / count,
        "accuracy": torch.bincount(bin_N, right_N, minlength=BINS) / count,
        "share": torch.bincount(bin_N, minlength=BINS) / max(1, len(bin_N)),
    }
    return {k: v.tolist() for k, v in sums.items()}


def on_subset(windows: data.Windows, count: int, device: str = "cpu") -> Callable[[Llama], dict]:
    """What `train.fit` is given: the validation loss on a few fixed windows."""
    rows = fixed_rows(windows, count)
    return lambda m: {"val/loss": known_mean(hard_set.window_loss(m, windows, rows, device))}


def resampled_means(loss_KN: np.ndarray, document_N: np.ndarray, resamples: int, seed: int = 0):
    """Means of K models' window losses under a bootstrap over documents, (resamples, K). All models
    share the documents drawn, so differences are paired. `document_N`: each window's document. A
    window without a loss (NaN: every target masked) counts for no model.

    Few documents of unequal length vary less in a bootstrap than in truth, so the draws lie
    `stretch` times as far from the mean: the middle 95 % of them cover the truth in 95 of 100 cases
    (bench/intervals.py). One document alone says nothing: NaN."""
    if np.isinf(loss_KN).any():
        raise ValueError(f"a loss is infinite: {hard_set.BROKEN}")
    known_N = ~np.isnan(loss_KN).any(axis=0)
    loss_KN, document_N = np.asarray(loss_KN)[:, known_N], np.asarray(document_N)[known_N]
    documents = np.unique(document_N, return_inverse=True)[1]
    sums_KD = np.stack([np.bincount(documents, row) for row in loss_KN])
    size_D = np.bincount(documents)
    if (d := len(size_D)) < 2:
        return np.full((resamples, len(loss_KN)), np.nan)
    draws_RD = np.random.default_rng(seed).multinomial(d, np.full(d, 1 / d), size=resamples)
    draws_RD = draws_RD.astype(float)  # products of whole numbers are slow
    means_RK = (draws_RD @ sums_KD.T) / (draws_RD @ size_D)[:, None]
    mean_K = sums_KD.sum(axis=1) / size_D.sum()
    return mean_K + stretch(size_D) * (means_RK - mean_K)


def stretch(size_D: np.ndarray) -> float:
    """t / z · √(n / (n − 1)): quantiles of Student's t instead of the normal's and a spread with
    1 / (n − 1), where n = (Σ size)² / Σ size² is how many documents of equal size tell as much
    (Kish 1965). Hesterberg 2015 widens the percentile interval so, for equal sizes."""
    if np.count_nonzero(size_D) < 2:
        return math.nan
    n = size_D.sum() ** 2 / (size_D.astype(float) ** 2).sum()
    return stats.t.ppf(0.975, n - 1) / stats.norm.ppf(0.975) * math.sqrt(n / (n - 1))


def interval(values_R: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of resampled values; NaN where there are none."""
    if not np.isfinite(values_R).any():
        return math.nan, math.nan
    return tuple(map(float, np.nanquantile(values_R, [0.025, 0.975])))


def change(
    one_N: np.ndarray, other_N: np.ndarray, document_N: np.ndarray, resamples: int, seed: int = 0
) -> tuple[float, float, float]:
    """Mean loss of one model minus another's, and its interval, over the windows both know."""
    pair_2N = np.stack([one_N, other_N]).astype(np.float64)
    means_R2 = resampled_means(pair_2N, document_N, resamples, seed)
    return known_mean(pair_2N[0] - pair_2N[1]), *interval(means_R2[:, 0] - means_R2[:, 1])


def beyond(
    change_N: np.ndarray, hard_N: np.ndarray, document_N: np.ndarray, resamples: int, seed: int = 0
) -> tuple[float, float, float]:
    """Mean change on the hard windows minus that on the others, and its interval: what a model
    gains there beyond being better everywhere. Both parts of a document are drawn together."""
    known_N = ~np.isnan(change_N)
    change_N, hard_N, document_N = (x[known_N] for x in (change_N, hard_N, document_N))
    if not 0 < hard_N.sum() < len(hard_N):  # one side has no window with a target
        return math.nan, math.nan, math.nan
    documents = np.unique(document_N, return_inverse=True)[1]
    d, apart, value = documents.max() + 1, 0.0, 0.0
    draws_RD = np.random.default_rng(seed).multinomial(d, np.full(d, 1 / d), size=resamples)
    for sign, chosen_N in ((1, hard_N), (-1, ~hard_N)):
        size_D = np.bincount(documents[chosen_N], minlength=d).astype(float)
        sums_D = np.bincount(documents[chosen_N], change_N[chosen_N], minlength=d)
        with np.errstate(invalid="ignore"):  # a draw without any hard window says nothing
            apart = apart + sign * (draws_RD @ sums_D) / (draws_RD @ size_D)
        value += sign * sums_D.sum() / size_D.sum()
    wide = stretch(np.bincount(documents[hard_N]).astype(float))
    return float(value), *interval(value + wide * (apart - value))


def over_seeds(change_S: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % t interval over the differences of several seeds."""
    s = len(change_S)
    half = stats.t.ppf(0.975, s - 1) * np.std(change_S, ddof=1) / math.sqrt(s)
    return float(np.mean(change_S)), float(half)


def gap_closed(scratch_R, student_R, teacher_R) -> np.ndarray:
    """(scratch − student) / (scratch − teacher): 0 is no better than scratch, 1 is the teacher.
    All NaN ("undefined") where scratch is not clearly worse than the teacher."""
    gap_R = np.subtract(scratch_R, teacher_R)
    if not interval(gap_R)[0] > 0:
        return np.full_like(gap_R, np.nan)
    return np.subtract(scratch_R, student_R) / gap_R


def frequency(train: data.Windows, vocab_size: int) -> np.ndarray:
    """How often each id occurs in the training tokens, (V,)."""
    return sum(np.bincount(part, minlength=vocab_size) for part in _parts_of(train.ids))


def pair_frequency(train: data.Windows, previous: np.ndarray, this: np.ndarray) -> np.ndarray:
    """How often each (previous, this) pair occurs in the training tokens, in the shape given."""
    keys, where = np.unique(previous.astype(np.int64) << 32 | this, return_inverse=True)
    counts = np.zeros(len(keys), np.int64)
    for part in _parts_of(train.ids, overlap=1):
        pairs = part[:-1].astype(np.int64) << 32 | part[1:]
        at = np.searchsorted(keys, pairs).clip(max=len(keys) - 1)
        counts += np.bincount(at[keys[at] == pairs], minlength=len(keys))
    return counts[where].reshape(this.shape)


def _parts_of(ids: np.ndarray, size: int = 2**22, overlap: int = 0) -> Iterator[np.ndarray]:
    return (np.asarray(ids[i : i + size + overlap]) for i in range(0, len(ids), size))


FREQUENT_ENDINGS = ("లో", "కు", "ను", "లు")


def cuts(tokens: data.Tokens, rows_M: np.ndarray) -> dict[str, tuple[list[str], np.ndarray]]:
    """For each cut its buckets' names and each token's bucket, (M, T), −1 where none."""
    masked_MT = tokens.val.batch(rows_M)[1].numpy() == data.IGNORE
    ids_MT, targets_MT = (x.numpy() for x in replace(tokens.val, mask=None).batch(rows_M))
    count_MT = frequency(tokens.train, tokens.vocab_size)[targets_MT]
    pairs_MT = pair_frequency(tokens.train, ids_MT, targets_MT)
    t = targets_MT.shape[1]
    quarter_MT = np.broadcast_to(np.arange(t) * 4 // t, targets_MT.shape)
    labels = {
        "token seen in training": _by_count(count_MT),
        "pair seen in training": _by_count(pairs_MT),
        "place in the window": (["1st quarter", "2nd", "3rd", "4th"], quarter_MT),
    }
    if tokens.tokenizer is not None:
        ids_MS = np.concatenate([ids_MT[:, :1], targets_MT], axis=1)
        labels |= _by_piece(tokens.tokenizer, ids_MS)
        labels["script"] = list(SCRIPTS), scripts(tokens.tokenizer, tokens.val, rows_M)
    return {k: (names, np.where(masked_MT, -1, at_MT)) for k, (names, at_MT) in labels.items()}


def _by_count(count_MT: np.ndarray) -> tuple[list[str], np.ndarray]:
    at_MT = np.digitize(count_MT, [1, 10, 100, 1000])
    return ["never", "1–9", "10–99", "100–999", "≥ 1,000"], at_MT


def _by_piece(tokenizer: Tokenizer, ids_MS: np.ndarray) -> dict:
    """S is the T targets and the token before them."""
    pieces_V, targets_MT = np.array(tokenizer.vocabulary(), dtype=object), ids_MS[:, 1:]
    # "." and the like are pieces of their own: a word ends before one, and none is part of a word
    mark_V = np.array([unicodedata.category(piece[:1] or "x")[0] == "P" for piece in pieces_V])
    mark_V[tokenizer.eos] = True
    mark_MS, word_MT = mark_V[ids_MS], tokenizer.begins(ids_MS)[:, 1:]
    begins_MT, stops_MT = word_MT | mark_MS[:, :-1], word_MT | mark_MS[:, 1:]
    ends_MT = np.roll(stops_MT, -1, axis=1)
    place_MT = np.where(begins_MT, np.where(ends_MT, 0, 1), np.where(ends_MT, 3, 2))
    place_MT[:, -1] = -1  # whether the word goes on after the window is not known
    place_MT[mark_MS[:, 1:]] = -1
    endings = list(FREQUENT_ENDINGS)
    ending_V = np.array([endings.index(x) if x in endings else -1 for x in pieces_V])
    ending_MT = np.where(place_MT == 3, ending_V[targets_MT], -1)
    return {
        "place in the word": (["whole", "first", "inner", "final"], place_MT),
        "frequent endings": (endings, ending_MT),
    }


def scripts(tokenizer: Tokenizer, windows: data.Windows, rows_M: Sequence[int]) -> np.ndarray:
    """Which of SCRIPTS each target of some windows is of, (M, T), by its first character; of a
    token that holds but a part of one, by that."""
    t = windows.context
    at_MX = np.asarray(rows_M)[:, None] * t + np.arange(-3, t + 5)  # a character has 4 bytes
    ids_MX = windows.ids[at_MX.clip(0, len(windows.ids) - 1)]
    # a vocabulary alone knows of no parts
    if not hasattr(tokenizer, "in_parts") or not tokenizer.in_parts(np.bincount(ids_MX.ravel())):
        of_V = np.array([SCRIPTS.index(script(piece)) for piece in tokenizer.vocabulary()])
        return of_V[ids_MX[:, 4:-4]]
    ids_S = np.pad(ids_MX, ((0, 0), (0, 1)), constant_values=tokenizer.eos).ravel()
    code_B, _, token_B = tokenizer.characters(ids_S)
    shown_B = ~np.isin(code_B, [10, 32])
    token, first = np.unique(token_B[shown_B], return_index=True)
    codes, at = np.unique(code_B[shown_B][first], return_inverse=True)
    script_S = np.full(len(ids_S), SCRIPTS.index("other"))
    script_S[token] = np.array([SCRIPTS.index(script(chr(code))) for code in codes], int)[at]
    return script_S.reshape(len(ids_MX), -1)[:, 4:-5]


def script(piece: str) -> str:
    """Telugu, Latin, digits or other, by the piece's first character but ▁ and space."""
    first = piece.lstrip("▁ ")[:1]
    if "\u0c00" <= first <= "\u0c7f":
        return "Telugu"
    if first.isdigit():
        return "digits"
    return "Latin" if first.isalpha() and first.isascii() and piece[0] != "<" else "other"


def kept_and_lost(
    token_loss: dict[str, np.ndarray], labels: dict[str, tuple[Sequence[str], np.ndarray]]
) -> list[dict]:
    """Mean loss of each model in each bucket: rows of cut, bucket, tokens and one key a model."""
    rows = []
    for row, in_MT in _buckets(labels):
        means = {model: known_mean(loss[in_MT]) for model, loss in token_loss.items()}
        rows.append(row | means)
    return rows


def won_back(
    token_loss: dict[str, np.ndarray],
    labels: dict[str, tuple[Sequence[str], np.ndarray]],
    base: str,
    document_M: np.ndarray,
    resamples: int,
) -> list[dict]:
    """The same of each model's change against the base, with its interval over documents."""
    rows, base_MT = [], token_loss[base]
    document_MT = np.broadcast_to(np.asarray(document_M)[:, None], base_MT.shape)
    for row, in_MT in _buckets(labels):
        for model in (name for name in token_loss if name != base):
            pair = token_loss[model][in_MT], base_MT[in_MT]
            row[model] = change(*pair, document_MT[in_MT], resamples)
        rows.append(row)
    return rows


def _buckets(labels: dict) -> Iterator[tuple[dict, np.ndarray]]:
    """A row for each bucket that holds tokens, and which they are, (M, T)."""
    for cut, (names, label_MT) in labels.items():
        for i, name in enumerate(names):
            if (in_MT := label_MT == i).any():
                yield {"cut": cut, "bucket": name, "tokens": int(in_MT.sum())}, in_MT
