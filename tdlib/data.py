"""Tokens, windows and targets: what every notebook trains on, scores and evaluates.

A folder of tokens, opened by tdbook.corpus.token_files, holds raw little-endian ids and meta.json
as upstream writes and reads them. Each line of text ends in <eos>.
Window i is tokens [i·T, i·T + T + 1): T inputs and their T targets, shifted by one. Windows are
numbered once and for all, so a difficulty means the same thing in every notebook.
Targets say what a training learns of each: the text alone, or what a teacher makes of it too, asked
online, on every batch, or once, its answers stored (see tdbook.training.cache).
Legend: B windows of a batch, T tokens of a window (the context), N windows of a split.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PAD, UNK, BOS, EOS = 0, 1, 2, 3  # upstream's, and of those trained here: then 256 byte pieces
IGNORE = -100


@dataclass(frozen=True)
class Windows:
    """The numbered windows of one split, memory-mapped: 3.7 billion tokens stay on the disk."""

    ids: np.ndarray  # the whole split's ids, a memory map
    context: int  # T
    mask: np.ndarray | None = None  # beside the ids, 0 where a token is no target
    # beside the ids, how often a target counts in training: whole numbers; None: each once
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return (len(self.ids) - 1) // self.context

    @property
    def known_N(self) -> np.ndarray:
        """Which windows have a target: of the others nothing can be measured, (N,) bool."""
        if self.mask is None:
            return np.ones(len(self), bool)
        return self.mask[1 : len(self) * self.context + 1].reshape(-1, self.context).any(1)

    def batch(self, rows_B: Sequence[int], device: str = "cpu") -> tuple[Tensor, Tensor]:
        """ids_BT and targets_BT of some windows, int64; a masked target is IGNORE."""
        at_BT = np.asarray(rows_B)[:, None] * self.context + np.arange(self.context + 1)
        ids = self.ids[at_BT].astype(np.int64)
        targets = ids[:, 1:]
        if self.mask is not None:
            targets = np.where(self.mask[at_BT[:, 1:]] > 0, targets, IGNORE)
        pair = torch.from_numpy(ids[:, :-1].copy()), torch.from_numpy(targets)
        return tuple(_pinned(x, device).to(device, non_blocking=True) for x in pair)

    def targets(self, rows_B: Sequence[int]) -> int:
        """How many targets of some windows are not masked, each as often as it counts."""
        return int(self.weights_of(rows_B).sum(dtype=np.float64))

    def weights_of(self, rows_B: Sequence[int]) -> np.ndarray:
        """How often each target counts, (B, T) float32; 0 where it is masked."""
        at_BT = np.asarray(rows_B)[:, None] * self.context + np.arange(1, self.context + 1)
        weights_BT = np.ones(at_BT.shape, np.float32)
        if self.weights is not None:
            weights_BT *= self.weights[at_BT]
        return weights_BT if self.mask is None else weights_BT * (self.mask[at_BT] > 0)

    def batches(self, rows: Sequence[int], size: int) -> Iterable[Sequence[int]]:
        return (rows[i : i + size] for i in range(0, len(rows), size))

    def stream(
        self, batches: Iterable, device: str = "cpu", more: Callable = lambda rows_B: ()
    ) -> Iterator[tuple[Tensor, ...]]:
        """`batch` of each, and the tensors of `more`, one ahead: a thread reads the next while this
        one is used; for CUDA it is pinned, and copied without waiting."""

        def read(rows_B: Sequence[int]) -> list[Tensor]:
            tensors = (*self.batch(rows_B), *more(rows_B))
            return [_pinned(x, device) for x in tensors]

        with ThreadPoolExecutor(1) as pool:
            ahead = None
            for rows_B in itertools.chain(batches, [None]):
                coming = None if rows_B is None else pool.submit(read, rows_B)
                if ahead:
                    yield tuple(x.to(device, non_blocking=True) for x in ahead.result())
                ahead = coming


@dataclass(frozen=True)
class Tokens:
    """An opened folder of tokens."""

    folder: Path
    meta: dict
    train: Windows
    val: Windows
    confirm: Windows | None = None  # documents that no choice has looked at
    works: Windows | None = None  # whole works, of which nothing is in another split
    tokenizer: object | None = None  # of tdbook.corpus.tokenizer, where one is there

    @property
    def vocab_size(self) -> int:
        return self.meta["vocab_size"]

    @property
    def context(self) -> int:
        return self.train.context

    @property
    def eos(self) -> int:
        return self.meta.get("eos_id", EOS)

    def bytes_per_token(self, split: str = "val", unit: str = "bytes") -> float:
        """UTF-8 bytes, or "characters", of the text that is kept, a token; NaN: unknown."""
        return self.meta.get(f"{split}_{unit}", np.nan) / self.meta[f"{split}_tokens"]


def _pinned(x: Tensor, device: str) -> Tensor:
    """In memory from which CUDA copies while the host goes on."""
    return x.pin_memory() if "cuda" in device else x


def weighted(tokens: Tokens, path: Path) -> Tokens:
    """The same tokens, with the weights in a file of NumPy's, one for each training id."""
    weights = np.load(path, mmap_mode="r")
    return replace(tokens, train=replace(tokens.train, weights=weights))


class Targets:
    """A teacher that reads every batch beside the student, a model or anything with .hidden and
    .head; without one the text alone, which suffices at ce_weight 1."""

    sampling: str | None = None  # how its distribution was sampled; None: it is given whole

    def __init__(self, teacher=None):
        self.teacher, self.hidden = teacher, None if teacher is None else teacher.hidden

    def check(self, windows: Windows, temperature: float | None = None) -> None:
        """ValueError: not made for these windows, or for another temperature."""

    def losses(self, rows_B: Sequence[int]) -> np.ndarray | None:
        """The teacher's stored mean loss of each window, (B,); None unless all are stored."""

    def read(self, rows_B: Sequence[int]) -> tuple[Tensor, ...]:
        """What is stored of some windows; () unless it is there for all of them."""
        return ()

    def arguments(self, rows_B, ids_BT: Tensor, targets_BT: Tensor, stored) -> dict[str, Tensor]:
        """What the loss takes of the teacher for a batch, of which `read` gave `stored`."""
        if self.teacher is None:
            return {}
        hidden_NE = self.hidden(ids_BT).flatten(0, 1)
        return dict(teacher_hidden_NE=hidden_NE, teacher_head_VE=self.teacher.head)

    def sync(self) -> None:
        """Returns once all that was stored is on the disk."""


def as_targets(teacher) -> Targets:
    return teacher if isinstance(teacher, Targets) else Targets(teacher)
