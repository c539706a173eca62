"""Training: AdamW over the numbered windows in a seeded order, by one of two schedules.

One function, `fit`, trains the teacher, the students and the adapters; what differs is the recipe,
the targets and the windows. What it should do besides (evaluate, log, show how far it is) are
functions it is given. Nothing is read back from the device but where a row is logged. A step that
is not finite, or whose loss jumps, is skipped. With a folder, the same call goes on from where it
was stopped, to the same weights (see checkpoint). Legend: B windows of a batch, T tokens, N = B·T.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.parametrize import cached

from tdlib import checkpoint, data, losses, quantize
from tdlib.model import Llama
from tdlib.team import ALONE, Team

LOGGED = 200  # rows of a training


@dataclass(frozen=True)
class Recipe:
    """How to train. The defaults are the plan's and upstream's; b200's YAML repeats them."""

    learning_rate: float = 5e-4  # the peak
    epochs: float = 3.0  # passes over the windows
    token_limit: int = 0  # stop after that many tokens, the schedule shortened to fit (0: no limit)
    batch_tokens: int = 262_144  # tokens a step
    micro_windows: int = 16  # windows at once: memory, never the result
    warmup_share: float = 0.01  # of all steps
    schedule: str = "cosine"  # to a tenth of the peak; or "wsd": stable, then a cooldown to 0
    cooldown_share: float = 0.2  # of all steps, the last, of wsd
    averaged_share: float = 0.0  # of all steps, the last: the mean of their weights is the result
    optimizer: str = "adamw"  # or "muon": for the matrices within layers, AdamW for the rest
    weight_decay: float = 0.1  # on matrices, the tied embedding included; none on vectors
    clip: float = 1.0  # of the gradient's norm
    spike: float = 3.0  # a step whose loss is that much above the usual one is skipped, nats
    max_skipped: int = 20  # steps, of all; then training stops
    ce_weight: float = 0.5
    temperature: float = 2.0
    four_bit_share: float = 0.0  # of the steps, the last, a model by quantize.attach is rounded in
    seed: int = 1  # of the order of the windows
    compile: bool = False  # torch.compile of both models
    activation_checkpointing: bool = False  # a third more work for a fraction of the memory
    deterministic: bool = False  # on CUDA the same bits again, more slowly; a CPU gives them anyway
    checkpoint_minutes: float = 10.0

    def in_float(self, steps: int) -> int:
        """Of so many steps, those before the rounded ones."""
        return steps - round(self.four_bit_share * steps)

    def last_averaged(self, step: int, steps: int) -> int:
        """How many steps' weights the mean holds after a step (Izmailov et al. 2018, SWA)."""
        return max(0, step - steps + round(self.averaged_share * steps))

    def stable(self, steps: int) -> int:
        """Of so many steps, those before the cooldown: a longer training begins with them too. 0 by
        the cosine, whose every step depends on where it ends."""
        return steps - round(self.cooldown_share * steps) if self.schedule == "wsd" else 0


def recipe(parameters: dict) -> Recipe:
    """The recipe among a notebook's parameters; what they do not name keeps its default."""
    names = {f.name for f in fields(Recipe)}
    return Recipe(**{name: value for name, value in parameters.items() if name in names})


def order(rows: np.ndarray, recipe: Recipe, context: int) -> list[np.ndarray]:
    """The windows of each step: a seeded permutation an epoch, one after the other."""
    whole = math.ceil(recipe.epochs)
    epochs = [np.random.default_rng((recipe.seed, e)).permutation(rows) for e in range(whole)]
    windows = max(1, round(recipe.epochs * len(rows)))
    if recipe.token_limit:
        windows = min(windows, max(1, recipe.token_limit // context))
    step = max(1, recipe.batch_tokens // context)
    return np.split(np.concatenate(epochs)[:windows], range(step, windows, step))


def learning_rate(step: int, steps: int, recipe: Recipe) -> float:
    """Linear warm-up; then a cosine down to a tenth of the peak, or the peak and at last
    1 − √ of what is done of the cooldown (Hägele et al. 2024, arXiv 2405.18392, section 3)."""
    warmup, stable = max(1, round(recipe.warmup_share * steps)), recipe.stable(steps)
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    if recipe.schedule == "wsd":
        done = max(0, step - stable) / max(1, steps - stable)
        return recipe.learning_rate * (1 - math.sqrt(done))
    done = (step - warmup) / max(1, steps - warmup)
    return recipe.learning_rate * (0.55 + 0.45 * math.cos(math.pi * done))


def batch_loss(
    student: Llama,
    targets: data.Targets,
    ids_BT: Tensor,
    targets_BT: Tensor,
    recipe: Recipe,
    rows_B: Sequence[int] = (),
    stored: Sequence[Tensor] = (),
    weights_BT: Tensor | None = None,
) -> losses.Loss:
    """The distillation loss of one micro-batch, of whose windows `targets` had `stored`."""
    with torch.no_grad():  # the teacher first: its layers' memory is free again for the student
        how = targets.arguments(rows_B, ids_BT, targets_BT, stored)
    how |= {"weights_N": None if weights_BT is None else weights_BT.flatten()}
    how |= {"ce_weight": recipe.ce_weight, "temperature": recipe.temperature}
    hidden_ND = student.hidden(ids_BT).flatten(0, 1)
    return losses.distillation_loss(hidden_ND, student.head, targets_BT.flatten(), **how)


def fit(
    student: Llama,
    windows: data.Windows,
    recipe: Recipe,
    *,
    teacher: Llama | data.Targets | None = None,
    rows: np.ndarray | None = None,
    device: str = "cpu",
    evaluate: Callable[[Llama], dict] = lambda student: {},
    evaluations: int = 8,
    record: Callable[[dict], None] = lambda row: None,
    progress: Callable[[int, int, str], None] = lambda step, steps, message: None,
    folder: Path | None = None,
    team: Team = ALONE,
) -> list[dict]:
    """Train in place what requires a gradient, on some `rows` (all); a row for each evaluation.

    `teacher` is anything with .hidden and .head, or other Targets; at ce_weight 1 it is not asked.
    `evaluate(student)` adds its dict to a row: before the first step, after the last and evenly
    between. `record` gets these rows and some 200 more, with the mean loss since the one before.
    All processes of a team call `fit` alike, and any number of them ends with the same weights.
    ValueError: no teacher, a short context, another checkpoint. RuntimeError: steps skipped."""
    targets = data.as_targets(teacher if recipe.ce_weight < 1 else None)
    targets.check(windows, recipe.temperature)
    rows = np.arange(len(windows)) if rows is None else rows
    steps = order(rows, recipe, windows.context)
    key = checkpoint.key(student, recipe, rows, windows, targets)
    state = checkpoint.State(student, recipe, device, key)
    keeper = checkpoint.Keeper(folder, state, len(rows), steps, team)
    evaluate = cached()(evaluate)  # a rounded matrix is made once, not whenever it is read
    if not keeper.restore():
        state.log.append({"step": 0, "tokens": 0} | evaluate(student))
        record(state.log[0])
    evaluated = {round(i * len(steps) / evaluations) for i in range(evaluations + 1)}
    with checkpoint.Signals(folder is not None) as signals, _deterministic(recipe.deterministic):
        for step in _updates(student, targets, windows, state, steps, device, team):
            progress(step, len(steps), f"{state.meter.speed:,.0f} tokens/s")
            if step in evaluated or step % max(1, len(steps) // LOGGED) == 0:
                row = state.row(sum(map(len, steps[:step])) * windows.context)
                if step in evaluated:
                    state.log.append(row := row | evaluate(student))
                record(row)
                state.meter = checkpoint.Meter(device)
            keeper.after(step, signals, targets)
    return state.log


@contextlib.contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """For as long as it trains: what comes after must not raise for want of such an algorithm."""
    change = wanted and not torch.are_deterministic_algorithms_enabled()
    if change:  # else not: the call imports torch's compiler
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        if change:
            torch.use_deterministic_algorithms(False)


def _updates(student, targets, windows, state, steps, device, team) -> Iterator[int]:
    """Makes the steps that are left, and gives the number of each."""

    def read(rows_B: Sequence[int]) -> tuple[Tensor, ...]:
        return torch.from_numpy(windows.weights_of(rows_B)), *targets.read(rows_B)

    recipe, left = state.recipe, steps[state.step :]
    parts = (team.micro_batches(rows_B, recipe.micro_windows) for rows_B in left)
    stream = windows.stream(itertools.chain.from_iterable(parts), device, read)
    student.activation_checkpointing = recipe.activation_checkpointing
    step_module = team.wrap(batch_loss, student, targets, recipe.compile)
    for step, rows_B in enumerate(left, state.step + 1):
        rounded = step - recipe.in_float(len(steps))
        quantize.switch(student, rounded > 0, anew=rounded == 1)
        loss = _accumulate(step_module, windows, rows_B, recipe, state.meter, stream, team)
        state.update(step, learning_rate(step - 1, len(steps), recipe), loss)
        state.average(recipe.last_averaged(step, len(steps)), step == len(steps))
        yield step


def _accumulate(step_module, windows, rows_B, recipe, meter, stream, team) -> Tensor:
    """Gradients and mean loss of one step's windows, the same however they are split."""
    mine, device = list(team.micro_batches(rows_B, recipe.micro_windows)), meter.sums.device
    total = torch.full((), max(1, windows.targets(rows_B)), device=device)  # a copy would wait
    # bf16 on CUDA; on a CPU it gains nothing
    cast = torch.autocast("cuda", torch.bfloat16, enabled=meter.sums.is_cuda)
    before = meter.sums.clone()
    for i, rows in enumerate(mine, 1):
        ids_BT, targets_BT, weights_BT, *stored = next(stream)
        step_module.require_backward_grad_sync = i == len(mine)  # of all ranks: once
        with cast, cached():
            parts = step_module(ids_BT, targets_BT, recipe, rows, stored, weights_BT)
        # the mean over ranks is taken
        (parts.loss * (parts.count * team.size / total)).backward()
        each = torch.stack([parts.loss.detach(), parts.ce, parts.kl, torch.ones_like(parts.ce)])
        meter.sums += each * parts.count
    meter.sums = team.all_reduce(before, meter.sums)
    meter.tokens += len(rows_B) * windows.context
    return (meter.sums - before)[0] / total
