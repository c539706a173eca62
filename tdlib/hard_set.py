"""The hard set: the windows on which a student fell furthest behind its teacher.

difficulty = student loss − teacher loss, nats per token, mean over a window; negative where the
student is better. Legend: N windows of the training tokens, K of them kept.
"""

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tdlib import data, files, losses
from tdlib.model import Llama
from tdlib.team import compiled

BROKEN = "the model's weights or its scores are damaged: make them again (REDO= of that run)"
REMAKE = "run 02_hard_set again"
Progress = Callable[[int, int, str], None]  # done, of how many, of what
PRECISIONS = ("float32", "tf32", "bfloat16")  # of products on a GPU: 23, 10, 7 bits a factor


@dataclass(frozen=True)
class Scores:
    student_loss_N: np.ndarray  # float32, nats per token; NaN where a window was not scored
    teacher_loss_N: np.ndarray

    @property
    def difficulty_N(self) -> np.ndarray:
        return self.student_loss_N - self.teacher_loss_N


@dataclass(frozen=True)
class Rule:
    """What makes a choice, under the names of 02's parameters; hard_set.json holds it."""

    threshold: float | None = None  # smallest difficulty let in, nats; given, it replaces `share`
    clip: float = 0.0  # share of the very hardest that is left out as noise
    leave_out_junk: bool = False
    easy_share: float = 0.0  # easy windows mixed in, for each hard one
    token_share: float = 1.0  # of a window's tokens, the hardest, that count in training
    seed: int = 1  # draws the easy windows
    share: float | None = None  # how many of the scored windows, junk left out, are hard

    @staticmethod
    def of(parameters: dict) -> "Rule":
        """The rule among a notebook's parameters, or in a file; a missing one has its default."""
        names = {f.name for f in fields(Rule)}
        return Rule(**{name: value for name, value in parameters.items() if name in names})


@dataclass(frozen=True)
class HardSet:
    windows_K: np.ndarray  # window numbers, ascending
    threshold: float  # smallest difficulty let in, nats per token
    share: float  # K / N
    easy: int = 0  # how many of the K lie below the threshold, mixed in
    rule: Rule = Rule()


def known_mean(loss: np.ndarray, axis: int | None = None) -> np.ndarray | float:
    """Mean of the losses that are not NaN (NaN: every target masked); NaN where none is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        mean = np.nanmean(loss, axis)
    return float(mean) if axis is None else mean


def _checked(loss_B: np.ndarray, windows: data.Windows, rows_B: np.ndarray) -> np.ndarray:
    """The same losses. ValueError: one is not finite, though its window has a target."""
    if len(bad := np.asarray(rows_B)[~np.isfinite(loss_B)]):
        masked_B = (windows.batch(bad)[1] == data.IGNORE).all(1).numpy()
        if not masked_B.all():
            raise ValueError(f"the loss of window {bad[~masked_B][0]:,} is not finite: {BROKEN}")
    return loss_B


def with_targets(windows: data.Windows, rows: np.ndarray) -> np.ndarray:
    """The rows; if none of them has a target, as many other rows that have one, evenly spread."""
    if windows.mask is None or windows.targets(rows) or not windows.known_N.any():
        return rows
    usable = np.flatnonzero(windows.known_N)
    return usable[np.unique(np.linspace(0, len(usable) - 1, len(rows)).round().astype(int))]


@torch.no_grad()
def token_losses(model: Llama, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Loss of every token, (B, T), in nats; 0 where the target is masked."""
    hidden_ND = model.hidden(ids_BT).flatten(0, 1)
    return losses.token_loss(hidden_ND, model.head, targets_BT.flatten()).view_as(targets_BT)


@contextlib.contextmanager
def precision(name: str, device: str) -> Iterator[None]:
    """Matrix products in one of PRECISIONS: of what is measured over many windows alone, never of
    starting weights, merging or what is held against another program. A CPU's are float32."""
    before, gpu = torch.get_float32_matmul_precision(), "cuda" in device
    if gpu:
        torch.set_float32_matmul_precision("highest" if name == "float32" else "high")
    try:
        with torch.autocast("cuda", torch.bfloat16, enabled=gpu and name == "bfloat16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def window_loss(
    model: Llama, windows: data.Windows, rows: np.ndarray, device: str, products: str = "tf32"
) -> np.ndarray:
    """Mean loss of each of some windows, in nats per token; NaN where every target is masked.
    ValueError: a loss is not finite, though its window has a target."""
    means = []
    with precision(products, device):
        for rows_B in windows.batches(rows, 16):
            ids_BT, targets_BT = windows.batch(rows_B, device)
            sums_B = token_losses(model, ids_BT, targets_BT).sum(1)
            means.append(sums_B / (targets_BT != data.IGNORE).sum(1))
    return _checked(torch.cat(means).cpu().numpy(), windows, rows)


def score(
    student: Llama,
    teacher: Llama | data.Targets,
    windows: data.Windows,
    *,
    rows: np.ndarray | None = None,
    device: str = "cpu",
    progress: Progress = lambda done, all, message: None,
    into: np.ndarray | None = None,
    products: str = "tf32",
    compile: bool = False,
) -> Scores:
    """The loss of both models on every window, or on some `rows`, NaN elsewhere. Where Targets
    store the teacher's losses, they are read. `into` is a (2, N) array to fill: with a memory map,
    nothing of the size of N is held. `products`: one of PRECISIONS."""
    source = data.as_targets(teacher)
    source.check(windows)
    rows = range(len(windows)) if rows is None else rows
    loss_2N, done = np.full((2, len(windows)), np.nan, np.float32) if into is None else into, 0
    models = [compiled(m) if compile and m else m for m in (student, source.teacher)]
    for rows_B in windows.batches(rows, min(max(64, len(rows) // 1000), 2048)):
        loss_2N[0, rows_B] = window_loss(models[0], windows, rows_B, device, products)
        if (loss_B := source.losses(rows_B)) is None:
            loss_B = window_loss(models[1], windows, rows_B, device, products)
        loss_2N[1, rows_B] = _checked(loss_B, windows, rows_B)
        progress(done := done + len(rows_B), len(rows), "windows scored")
    return Scores(*loss_2N)


def select(difficulty_N: np.ndarray, left_out_N: np.ndarray | None = None, **rule) -> HardSet:
    """The windows at or above a threshold, or the hardest share; one of the two is given, and what
    else a Rule has. The share is of all N windows but those left out (junk), which never get in.
    `clip` is the share of the hardest that is dropped as noise (MiniPLM, 2410.17215). `easy_share`
    times as many windows as are hard, drawn by `seed` from below the threshold, are added."""
    rule = Rule(**rule)
    share, threshold, clip, easy_share = rule.share, rule.threshold, rule.clip, rule.easy_share
    if (share is None) == (threshold is None):
        raise ValueError(f"give share or threshold, one of the two: {share=}, {threshold=}")
    if not (0 <= clip < 1 and easy_share >= 0 and (share is None or 0 < share <= 1)):
        raise ValueError(f"{clip=} and {share=} must be within 0 … 1 and {easy_share=} not below 0")
    in_N = np.ones(len(difficulty_N), bool) if left_out_N is None else ~left_out_N
    count, in_N = np.count_nonzero(in_N), in_N & ~np.isnan(difficulty_N)  # NaN: not scored
    scored = difficulty_N[in_N]
    if not len(scored):
        raise ValueError("no window is left to choose from: none is scored, or all are left out")
    if cut := min(round(clip * len(scored)), len(scored) - 1):
        in_N &= difficulty_N <= np.partition(scored, -cut - 1)[-cut - 1]
        scored = difficulty_N[in_N]
    if threshold is None:
        # the K-th hardest, and no interpolation: the threshold is a difficulty that occurs
        k = min(max(1, round(share * count)), len(scored))
        threshold = float(np.partition(scored, -k)[-k])
    hard_K = np.flatnonzero(in_N & (difficulty_N >= threshold))
    below = np.flatnonzero(in_N & (difficulty_N < threshold))
    easy = min(round(easy_share * len(hard_K)), len(below))
    drawn = np.random.default_rng(rule.seed).choice(below, easy, replace=False)
    windows_K = np.sort(np.concatenate([hard_K, drawn]))
    return HardSet(windows_K, float(threshold), len(windows_K) / len(difficulty_N), easy)


def choose(difficulty_N: np.ndarray, rule: Rule, junk_N: np.ndarray | None = None) -> HardSet:
    """The choice by a rule. Its `share` counts only scored windows: select's counts all, so it is
    converted. `junk_N` is above 0 where a window is junk. The result's rule says the threshold."""
    scored_N = np.isfinite(difficulty_N)
    left_out_N = junk_N > 0 if rule.leave_out_junk else np.zeros(len(difficulty_N), bool)
    how = {name: getattr(rule, name) for name in ("threshold", "clip", "easy_share", "seed")}
    if rule.threshold is None:
        how["share"] = rule.share * (0 if left_out_N.all() else scored_N[~left_out_N].mean())
    chosen = select(difficulty_N, left_out_N=left_out_N, **how)
    share = len(chosen.windows_K) / int(scored_N.sum())
    return replace(chosen, share=share, rule=replace(rule, share=None, threshold=chosen.threshold))


@contextlib.contextmanager
def new_scores(path: Path, windows: int) -> Iterator[np.ndarray]:
    """An array for the losses of so many windows, NaN at first; the file appears on leaving."""
    with files.replacing(path) as beside:
        loss_2N = np.lib.format.open_memmap(beside, "w+", np.float32, (2, windows))
        loss_2N[:] = np.nan
        yield loss_2N
        loss_2N.flush()


def load_scores(path: Path) -> Scores:
    """What 02 scored, as a memory map. ValueError: another file, an infinite loss, or a student's
    loss without its teacher's."""
    with files.refused(f"{path} holds no scores", REMAKE, ValueError, TypeError, EOFError):
        loss_2N = np.load(path, mmap_mode="r")
        student_N, teacher_N = loss_2N
        if np.isinf(loss_2N).any() or np.isfinite(student_N)[np.isnan(teacher_N)].any():
            raise ValueError("a loss is not finite")
    return Scores(student_N, teacher_N)


def keep(chosen: HardSet, path: Path, words: str) -> None:
    """hard_set.json, whole or not at all: the choice, in words too, and the rule that made it."""
    content = {"windows_K": chosen.windows_K.tolist(), "threshold": chosen.threshold}
    content |= {"share": chosen.share, "token_share": chosen.rule.token_share}
    rule = asdict(chosen.rule) | {"threshold": chosen.threshold}
    del rule["share"]  # the threshold says it
    content |= {"easy": chosen.easy, "words": words, "rule": rule}
    files.write_whole(path, json.dumps(content, ensure_ascii=False))


def load(path: Path) -> HardSet:
    """The kept choice. A file without a rule gets one from its threshold. ValueError: no choice."""
    with files.refused(f"{path} is no hard set", REMAKE, ValueError, KeyError, TypeError):
        content = json.loads(path.read_text(encoding="utf8"))
        windows_K = np.asarray(content["windows_K"], dtype=np.int64)
        threshold, share = float(content["threshold"]), float(content["share"])
        rule = {"threshold": threshold} | content.get("rule", {})
        rule["token_share"] = float(content.get("token_share", 1.0))
        return HardSet(windows_K, threshold, share, int(content.get("easy", 0)), Rule.of(rule))
