"""What a model is worth: loss on the validation split, against the teacher, by kind of text.

Losses are nats per token. Differences between models are paired, window by window, and their 95 %
intervals come from resampling whole documents, since neighbouring windows are not independent.
Legend: N windows of the split, M of them fixed (evenly spread), T tokens of a window, V vocabulary.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdlib import data, hard_set
from tdlib.files import write_whole
from tdlib.hard_set import known_mean
from tdlib.model import Llama

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
    acceptance: float  # how often the teacher would keep what the model drafts (2211.17192)

    def row(self, bytes_per_token: float, characters_per_token: float = math.nan) -> dict:
        """Every metric that is one number; NaN: unknown."""
        loss = known_mean(self.window_loss_N)
        confidence, accuracy, share = (np.asarray(x) for x in self.calibration.values())
        return {
            "loss": loss,
            "loss_fixed": known_mean(self.token_loss_MT),
            "perplexity": math.exp(loss),
            "bits_per_byte": loss / math.log(2) / bytes_per_token,
            "bits_per_character": loss / math.log(2) / characters_per_token,
            "kl": self.kl,
            "agreement": self.agreement,
            "acceptance": self.acceptance,
            "calibration_error": float((share * np.abs(accuracy - confidence)).sum()),
            "windows_left_out": int(np.isnan(self.window_loss_N).sum()),  # none has a target
        }

    def save(self, folder: Path, name: str) -> None:
        """scores/val/<name>.npy and .npz, which 04 reads instead of running the model again."""
        windows, fixed = io.BytesIO(), io.BytesIO()
        np.save(windows, self.window_loss_N.astype(np.float32))
        np.savez(fixed, rows_M=self.rows_M, token_loss_MT=self.token_loss_MT, **self.calibration)
        write_whole(folder / f"{name}.npy", windows.getvalue())
        write_whole(folder / f"{name}.npz", fixed.getvalue())


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
    progress: hard_set.Progress = lambda done, all, message: None,
) -> Evaluation:
    """Loss on every window; on `fixed` ones calibration, and against a teacher the rest."""
    rows_M, done = fixed_rows(windows, fixed), 0
    rest, loss_N = np.setdiff1d(np.arange(len(windows)), rows_M), np.empty(len(windows), np.float32)
    for rows in windows.batches(rest, 128):
        loss_N[rows] = hard_set.window_loss(model, windows, rows, device)
        progress(done := done + len(rows), len(windows), "windows evaluated")
    with hard_set.precision("tf32", device):
        each = _compare(model, teacher, windows, rows_M, device, progress)
    loss_MT = each["loss_MT"].cpu().numpy()
    loss_N[rows_M] = known_mean(loss_MT, axis=1)
    # on the CPU: on CUDA a weighted bincount is not deterministic, and may be forbidden
    calibration = _calibration(each["confidence"].cpu(), each["right"].cpu())
    means = (float(each[key].mean()) for key in ("kl", "same", "kept"))
    return Evaluation(loss_N, rows_M, loss_MT, calibration, *means)


def _compare(model, teacher, windows, rows_M, device, progress) -> dict[str, Tensor]:
    """Per token of some windows, one window's logits at a time: loss_MT, NaN where masked; of the
    tokens that are not masked, the rest. ValueError: a value is not finite, a fault that a mean
    would hide."""
    parts, count = [], len(windows)  # all but these are done
    for done, row in enumerate(rows_M, count - len(rows_M) + 1):
        ids_1T, (y_T,) = windows.batch([row], device)
        log_q_TV, counts_T = model(ids_1T)[0].float().log_softmax(-1), y_T != data.IGNORE
        loss_T = -log_q_TV.gather(-1, y_T.clamp(min=0)[:, None])[:, 0]
        top = log_q_TV.max(-1)
        kl_T = same_T = kept_T = torch.full_like(loss_T, torch.nan)
        if teacher is not None:
            log_p_TV = teacher(ids_1T)[0].float().log_softmax(-1)
            kl_T = (log_p_TV.exp() * (log_p_TV - log_q_TV)).sum(-1)
            same_T = (log_p_TV.argmax(-1) == top.indices).float()
            kept_T = torch.minimum(log_p_TV, log_q_TV).exp_().sum(-1)
        right_T = (top.indices == y_T).float()
        part = dict(confidence=top.values.exp(), right=right_T, kl=kl_T, same=same_T, kept=kept_T)
        part = {name: x_T[counts_T] for name, x_T in part.items()}
        parts.append(part | {"loss_MT": torch.where(counts_T, loss_T, torch.nan)[None]})
        progress(done, count, "windows evaluated")
    each = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    finite = int(each["loss_MT"].isfinite().sum()) == len(each["right"])
    if not finite or (teacher is not None and not each["kl"].isfinite().all()):
        raise ValueError(f"a token's loss or KL is not finite: {hard_set.BROKEN}")
    return each


def _calibration(confidence_N: Tensor, right_N: Tensor) -> dict[str, list[float]]:
    bin_N = (confidence_N * BINS).long().clamp(max=BINS - 1)
    count = torch.bincount(bin_N, minlength=BINS)
    sums = (torch.bincount(bin_N, x_N, BINS) for x_N in (confidence_N, right_N))
    confidence, accuracy = ((x / count.clamp(min=1)).tolist() for x in sums)
    share = (count / max(1, len(bin_N))).tolist()
    return {"confidence": confidence, "accuracy": accuracy, "share": share}


def on_subset(windows: data.Windows, count: int, device: str = "cpu") -> Callable[[Llama], dict]:
    """What `train.fit` is given: the validation loss on a few fixed windows."""
    rows = fixed_rows(windows, count)
    return lambda m: {"val/loss": known_mean(hard_set.window_loss(m, windows, rows, device))}
