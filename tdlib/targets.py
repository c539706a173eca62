"""Where a training's targets come from: the text alone, or a teacher too.

A teacher is asked online, on every batch, or once, and its answers are stored: see
tdbook.training.cache. Legend: B windows of a batch, T tokens.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from tdlib import data


class Targets:
    """The text alone, which suffices at ce_weight 1. The others override what differs."""

    teacher = None  # a model, or anything with .hidden and .head
    hidden = None  # the teacher's
    sampling: str | None = None  # how its distribution was sampled; None: it is given whole

    def check(self, windows: data.Windows, temperature: float | None = None) -> None:
        """ValueError: not made for these windows, or for another temperature."""

    def losses(self, rows_B: Sequence[int]) -> np.ndarray | None:
        """The teacher's stored mean loss of each window, (B,); None unless all are stored."""

    def read(self, rows_B: Sequence[int]) -> tuple[Tensor, ...]:
        """What is stored of some windows; () unless it is there for all of them."""
        return ()

    def arguments(self, rows_B, ids_BT: Tensor, targets_BT: Tensor, stored) -> dict[str, Tensor]:
        """What the loss takes of the teacher for a batch, of which `read` gave `stored`."""
        return {}

    def sync(self) -> None:
        """Returns once all that was stored is on the disk."""


class Online(Targets):
    """A teacher that reads every batch beside the student."""

    def __init__(self, teacher):
        self.teacher, self.hidden = teacher, teacher.hidden

    def arguments(self, rows_B, ids_BT, targets_BT, stored) -> dict[str, Tensor]:
        hidden_NE = self.hidden(ids_BT).flatten(0, 1)
        return dict(teacher_hidden_NE=hidden_NE, teacher_head_VE=self.teacher.head)


def as_targets(teacher) -> Targets:
    """Targets as they are; those of a teacher, asked online; without one, the text alone."""
    if teacher is None:
        return Targets()
    return teacher if isinstance(teacher, Targets) else Online(teacher)
