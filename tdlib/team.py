"""The processes that train one model together: each reads its share of a step's windows.

A step's gradient is Σ over processes of their Σ w·gradient / Σw, with Σw that of the whole step, so
it is the same for any number of processes but for the order of float32 sums. One process is a team
too, and changes nothing. Legend: B windows of a step, T tokens.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

from tdlib import losses


@dataclass(frozen=True)
class Team:
    rank: int = 0  # of this process; 0 alone writes
    size: int = 1

    def micro_batches(self, rows_B: np.ndarray, size: int) -> Iterator[np.ndarray]:
        """This rank's windows of a step, `size` at once; without any, one empty batch: every rank
        must come to where gradients are summed."""
        mine = np.array_split(rows_B, self.size)[self.rank]
        return (mine[i : i + size] for i in range(0, max(1, len(mine)), size))

    def wrap(self, loss: Callable, student: nn.Module, targets, fast: bool) -> nn.Module:
        """`loss(student, targets, …)` as one module; `fast`: both compiled. Its backward leaves the
        mean of all ranks' gradients, or, with `require_backward_grad_sync` False, its own."""
        step = _Step(loss, *(compiled(x) if fast and x.hidden else x for x in (student, targets)))
        return step if self.size == 1 else DDP(step, gradient_as_bucket_view=True)

    def all_reduce(self, before: Tensor, mine: Tensor) -> Tensor:
        """`before`, the same on all ranks, and what each rank's `mine` has more than it."""
        if self.size == 1:
            return mine
        more = mine - before
        torch.distributed.all_reduce(more)
        return before + more

    def any_rank(self, here: bool) -> bool:
        """True if any rank says so. Also a barrier."""
        somewhere = torch.tensor(int(here))
        if self.size > 1:
            torch.distributed.all_reduce(somewhere, torch.distributed.ReduceOp.MAX)
        return bool(somewhere)


ALONE = Team()


class _Step(nn.Module):
    """Student and loss: DDP looks for gradients in what its forward did."""

    def __init__(self, loss: Callable, student: nn.Module, targets):
        super().__init__()
        self.loss, self.student, self.targets = loss, student, targets

    def forward(self, ids_BT: Tensor, *more) -> losses.Loss:
        if len(ids_BT):
            return self.loss(self.student, self.targets, ids_BT, *more)
        # No window: zero, with gradients of zero. Not every kernel takes an empty batch.
        zero = sum(p.flatten()[:0].sum() for p in self.parameters() if p.requires_grad)
        return losses.Loss(zero, *[zero.detach()] * 3)


def compiled(model):
    """The same, compiled for batches of the first one's shape: another, as the last of a training,
    would cost minutes of compiling. The model itself, which writes samples, stays."""
    fast, other, first = losses.compiled(model.hidden), model.hidden, None

    def hidden(ids_BT: Tensor) -> Tensor:
        nonlocal first
        first = first or ids_BT.shape
        return fast(ids_BT) if ids_BT.shape == first else other(ids_BT)

    twin = copy.copy(model)
    twin.hidden = hidden
    return twin
