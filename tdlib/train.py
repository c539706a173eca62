"""Training: AdamW over the numbered windows in a seeded order, warm-up, then cosine to a tenth.

One function, `fit`, trains the teacher, the students and the adapters; what differs is the recipe,
the teacher it is given (or none) and the windows. What it should do besides (evaluate, show how far
it is) are functions it is given. Legend: B windows of a batch, T tokens, N = B·T.
"""

import hashlib
import io
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tdlib import data, losses
from tdlib.model import Llama


@dataclass(frozen=True)
class Recipe:
    """How to train. The defaults are the plan's and upstream's; b200's YAML repeats them."""

    learning_rate: float = 5e-4  # the peak
    epochs: float = 3.0  # passes over the windows
    token_limit: int = 0  # stop after that many tokens, the schedule shortened to fit (0: no limit)
    batch_tokens: int = 262_144  # tokens a step
    micro_windows: int = 16  # windows at once: memory, never the result
    warmup_share: float = 0.01  # of all steps
    weight_decay: float = 0.1  # on matrices, the tied embedding included; none on vectors
    clip: float = 1.0  # of the gradient's norm
    ce_weight: float = 0.5
    temperature: float = 2.0
    seed: int = 1  # of the order of the windows
    checkpoint_minutes: float = 10.0


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
    """Linear warm-up, then a cosine down to a tenth of the peak."""
    warmup = max(1, round(recipe.warmup_share * steps))
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return recipe.learning_rate * (0.55 + 0.45 * math.cos(math.pi * done))


def batch_loss(
    student: Llama, teacher, ids_BT: Tensor, targets_BT: Tensor, recipe: Recipe
) -> losses.Loss:
    """The distillation loss of one micro-batch; `teacher` is anything with .hidden and .head."""
    hidden_ND = student.hidden(ids_BT).flatten(0, 1)
    known = {}
    if recipe.ce_weight < 1:
        with torch.no_grad():
            hidden_NE = teacher.hidden(ids_BT).flatten(0, 1)
        known = dict(teacher_hidden_NE=hidden_NE, teacher_head_VE=teacher.head)
    return losses.distillation_loss(
        hidden_ND, student.head, targets_BT.flatten(), **known,
        ce_weight=recipe.ce_weight, temperature=recipe.temperature, ignore_index=data.IGNORE,
    )  # fmt: skip


class _Meter:
    """Sums since the last log row, kept on the device: reading them is what synchronises."""

    def __init__(self, device: str):
        self.sums = torch.zeros(4, device=device)  # loss, ce, kl (each times its count), count
        self.norm, self.tokens, self.began = torch.zeros(()), 0, time.monotonic()

    @property
    def speed(self) -> float:
        return self.tokens / (time.monotonic() - self.began)

    def row(self) -> dict:
        loss, ce, kl, count = self.sums.tolist()
        count = count or math.nan  # every target masked: no loss either
        row = {"train/loss": loss / count, "train/ce": ce / count, "train/kl": kl / count}
        row |= {"train/grad_norm": float(self.norm), "train/tokens_per_sec": self.speed}
        return {k: v for k, v in row.items() if math.isfinite(v)}  # without a teacher no kl


def fit(
    student: Llama,
    windows: data.Windows,
    recipe: Recipe,
    *,
    teacher=None,
    rows: np.ndarray | None = None,
    device: str = "cpu",
    evaluate: Callable[[Llama], dict] = lambda student: {},
    evaluations: int = 8,
    progress: Callable[[int, int, str], None] = lambda step, steps, message: None,
    folder: Path | None = None,
    resume: bool = True,
) -> list[dict]:
    """Train in place those weights that require a gradient; returns the log, a row an evaluation.

    `rows` are the windows to train on (all). `evaluate(student)` adds its dict to a row: before the
    first step, after the last and evenly between. With a `folder`, a checkpoint is kept there and
    the same call goes on from it. ValueError: no teacher though ce_weight < 1, a context shorter
    than the tokens', a checkpoint of another recipe.
    """
    _check(student, teacher, windows, recipe)
    rows = np.arange(len(windows)) if rows is None else rows
    steps = order(rows, recipe, windows.context)
    marks = {round(i * len(steps) / evaluations) for i in range(evaluations + 1)}
    trained = {n: p for n, p in student.named_parameters() if p.requires_grad}
    optimizer = _optimizer(trained, recipe, device)
    first, log, meter = 0, [], _Meter(device)
    if folder and resume and (folder / "state.pt").is_file():
        first, log, sums = _resume(folder / "state.pt", recipe, rows, trained, optimizer)
        meter.sums += sums.to(device)
    if not log:
        log.append({"step": 0, "tokens": 0} | evaluate(student))
    saved = time.monotonic()
    for step, rows_B in enumerate(steps[first:], first + 1):
        rate = learning_rate(step - 1, len(steps), recipe)
        for group in optimizer.param_groups:
            group["lr"] = rate
        _accumulate(student, teacher, windows, rows_B, recipe, device, meter)
        meter.norm = nn.utils.clip_grad_norm_(trained.values(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress(step, len(steps), f"{meter.speed:,.0f} tokens/s")
        if step in marks:
            tokens = sum(map(len, steps[:step])) * windows.context
            row = {"step": step, "tokens": tokens, "train/lr": rate} | meter.row()
            log.append(row | evaluate(student))
            meter = _Meter(device)
        if folder and time.monotonic() - saved > 60 * recipe.checkpoint_minutes:
            path = folder / "state.pt"
            _checkpoint(path, step, log, meter.sums, recipe, rows, trained, optimizer)
            saved = time.monotonic()
    return log


def _check(student: Llama, teacher, windows: data.Windows, recipe: Recipe) -> None:
    if teacher is None and recipe.ce_weight < 1:
        raise ValueError(f"ce_weight {recipe.ce_weight} below 1 needs a teacher")
    for name, model in (("student", student), ("teacher", teacher)):
        if isinstance(model, Llama) and model.config.context < windows.context:
            raise ValueError(
                f"the {name}'s context is {model.config.context}, the tokens' is "
                f"{windows.context}: prepare tokens with a shorter context"
            )


def _optimizer(trained: dict[str, Tensor], recipe: Recipe, device: str) -> torch.optim.AdamW:
    groups = [
        {
            "params": [p for p in trained.values() if p.ndim >= 2],
            "weight_decay": recipe.weight_decay,
        },
        {"params": [p for p in trained.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused="cuda" in device or None)


def _accumulate(student, teacher, windows, rows_B, recipe, device, meter) -> None:
    """Gradients of one step's windows, the same however they are split into micro-batches."""
    total = (windows.batch(rows_B)[1] != data.IGNORE).sum().clamp(min=1).to(device)
    # bf16 on CUDA; on a CPU it gains nothing
    cast = torch.autocast("cuda", torch.bfloat16, enabled="cuda" in device)
    for micro in windows.batches(rows_B, recipe.micro_windows):
        ids_BT, targets_BT = windows.batch(micro, device)
        with cast:
            parts = batch_loss(student, teacher, ids_BT, targets_BT, recipe)
        (parts.loss * (parts.count / total)).backward()
        each = torch.stack([parts.loss.detach(), parts.ce, parts.kl, torch.ones_like(parts.ce)])
        meter.sums += each * parts.count
    meter.tokens += len(rows_B) * windows.context


def _key(recipe: Recipe, rows: np.ndarray) -> dict:
    # micro-batches and the interval of checkpoints change no result, so they may change on resume
    free = {"micro_windows", "checkpoint_minutes"}
    key = {name: value for name, value in asdict(recipe).items() if name not in free}
    return key | {"windows": hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()}


def _checkpoint(path: Path, step: int, log, sums, recipe, rows, trained, optimizer) -> None:
    state = {
        "step": step,
        "log": log,
        "sums": sums,
        "key": _key(recipe, rows),
        "optimizer": optimizer.state_dict(),
    }
    content = io.BytesIO()
    torch.save(state | {"weights": {n: p.detach() for n, p in trained.items()}}, content)
    data.write_whole(path, content.getvalue())


def _resume(path: Path, recipe, rows, trained, optimizer) -> tuple[int, list[dict], Tensor]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    key = _key(recipe, rows)
    for name in key:
        if key[name] != state["key"].get(name):
            raise ValueError(
                f"{path} was made with {name} {state['key'].get(name)!r}, now it is {key[name]!r}: "
                "put it back to go on, or set redo to start over"
            )
    for name, weight in trained.items():
        weight.data.copy_(state["weights"][name])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["log"], state["sums"]
