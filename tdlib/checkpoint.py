"""What changes while a model trains, and how it is kept, so that nothing is lost.

state.pt is kept every checkpoint_minutes, at an epoch's end, and before SIGTERM or Ctrl-C end the
training; trunk.pt, the state before a cooldown, is for a longer training. epoch-1.safetensors …
stay, and of a training into four bits rounded-1.safetensors …; a file appears whole or not at all,
knows what it was made with, and a full disk leaves the one before. Nothing is ever executed.
"""

import hashlib
import io
import math
import signal
import threading
import time
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from tdlib import data
from tdlib.files import write_whole
from tdlib.team import Team

TRUNK = "trunk.pt"  # the state before the cooldown of a stable schedule
EMA = 32  # steps that the mean of the loss looks back
# these change no result, so they may change when a training goes on from its checkpoint
FREE = ("micro_windows", "max_skipped", "activation_checkpointing", "checkpoint_minutes")
# what an older checkpoint, which does not name them, was made with
NEW = {"four_bit_share": 0.0, "schedule": "cosine", "cooldown_share": 0.2, "optimizer": "adamw"}
NEW |= {"averaged_share": 0.0}
LENGTH = ("token_limit", "warmup_share")  # in which trainings with one trunk may differ


class Meter:
    """Sums since the last row, kept on the device: reading them is what synchronises."""

    def __init__(self, device: str):
        self.sums = torch.zeros(4, device=device)  # loss, ce, kl (each times its count), count
        self.norm, self.tokens, self.began = torch.zeros(()), 0, time.monotonic()

    @property
    def speed(self) -> float:
        return self.tokens / (time.monotonic() - self.began)

    def row(self) -> dict:
        loss, ce, kl, count = self.sums.tolist()
        count = count or math.nan  # every target masked: no loss either
        row = {"loss": loss / count, "ce": ce / count, "kl": kl / count}
        row |= {"grad_norm": float(self.norm), "tokens_per_sec": self.speed}
        return {f"train/{k}": v for k, v in row.items() if math.isfinite(v)}  # kl: with a teacher


class State:
    """Weights, optimiser and position, as one object."""

    def __init__(self, student: nn.Module, recipe, device: str, key: dict):
        self.trained = {n: p for n, p in student.named_parameters() if p.requires_grad}
        self.recipe, self.key, self.step, self.log = recipe, key, 0, []
        self.meter = Meter(device)
        averaged = self.trained.items() if recipe.averaged_share else ()
        self.mean = {name: torch.zeros_like(weight) for name, weight in averaged}
        self.loss_ema = torch.full((), math.inf, device=device)  # an exponential moving average
        self.skipped = torch.zeros((), device=device)
        muon = {n for n, p in self.trained.items() if p.ndim == 2 and "layers" in n}
        muon = muon if recipe.optimizer == "muon" else set()
        inner, rest = ([p for n, p in self.trained.items() if (n in muon) == m] for m in (1, 0))
        parts = ([p for p in rest if (p.ndim < 2) == vectors] for vectors in (False, True))
        decays = (recipe.weight_decay, 0.0)  # of matrices, of vectors
        groups = [{"params": p, "weight_decay": d} for p, d in zip(parts, decays, strict=True)]
        # fused: a seventh of the time on a CPU too, and it can leave a step out, see `update`
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
        # Moonlight's scale (arXiv 2502.16982, section 2.2): AdamW's learning rate fits
        how = dict(weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw")
        self.muon = torch.optim.Muon(inner, **how) if inner else None

    def update(self, step: int, rate: float, loss: Tensor) -> None:
        """A step of the optimiser, or none where loss or gradient are out of the ordinary; decided
        on the device, so that nothing waits."""
        self.meter.norm = nn.utils.clip_grad_norm_(self.trained.values(), self.recipe.clip)
        bad = ~(self.meter.norm.isfinite() & (loss < self.loss_ema + self.recipe.spike))
        self.optimizer.found_inf = bad.float()  # the fused kernel then leaves all as it is
        for optimizer in filter(None, (self.optimizer, self.muon)):
            for group in optimizer.param_groups:
                group["lr"] = rate
            if optimizer is self.optimizer or not bad:  # Muon cannot leave a step out: this waits
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        ema = torch.where(self.loss_ema.isinf(), loss, self.loss_ema.lerp(loss, 1 / EMA))
        # exactly 0 is a step without any target: it says nothing
        self.loss_ema = torch.where(bad | (loss == 0), self.loss_ema, ema)
        self.skipped += bad
        self.step = step

    @torch.no_grad()
    def average(self, count: int, last: bool) -> None:
        """Take the weights into the mean of `count` steps; after the last, it is the weights."""
        for name, mean in self.mean.items() if count else ():
            mean.lerp_(self.trained[name], 1 / count)
            if last:
                self.trained[name].copy_(mean)

    def row(self, tokens: int) -> dict:
        """What is logged after so many tokens. RuntimeError: too many steps were skipped."""
        if self.skipped > self.recipe.max_skipped:
            fault = f"{int(self.skipped)} steps were skipped, {self.recipe.max_skipped} may be: not"
            fault += f" finite, or {self.recipe.spike} nats above the usual {self.loss_ema:.3f}"
            remedy = "lower learning_rate, or look at the text; on a GPU where no loss is finite,"
            raise RuntimeError(f"{fault}; {remedy} set TORCH_CUDNN_SDPA_DEPRIORITIZED=1")
        row = {"step": self.step, "tokens": tokens}
        row |= {"train/lr": self.optimizer.param_groups[0]["lr"]} | self.meter.row()
        return row | ({"train/skipped": int(self.skipped)} if self.skipped else {})

    def weights(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in self.trained.items()}

    def content(self) -> dict:
        """What a checkpoint holds."""
        content = {"key": self.key, "step": self.step, "log": self.log, "weights": self.weights()}
        content |= {"usual": self.loss_ema, "skipped": self.skipped, "sums": self.meter.sums}
        content |= {"muon": self.muon.state_dict()} if self.muon else {}
        content |= {"mean": self.mean} if self.mean else {}
        return content | {"random": torch.get_rng_state(), "optimizer": self.optimizer.state_dict()}

    def restore(self, content: dict) -> None:
        own = self.content()
        for name in ("usual", "skipped", "sums"):
            own[name].copy_(content[name])
        for part in ("weights", *["mean"] * bool(self.mean)):
            for name, weight in own[part].items():
                weight.copy_(content[part][name])
        self.optimizer.load_state_dict(content["optimizer"])
        if self.muon:
            self.muon.load_state_dict(content["muon"])
        self.step, self.log = content["step"], content["log"]
        torch.set_rng_state(content["random"])


class Keeper:
    """Keeps a training in a folder: state.pt, and the weights at the end of each epoch and each
    quarter of the rounded steps, but at the training's end. Without a folder it does nothing."""

    def __init__(self, folder: Path | None, state: State, windows: int, steps: list, team: Team):
        """`windows` of an epoch; `steps`: the windows of each."""
        self.folder, self.state, self.steps, self.team = folder, state, len(steps), team
        epochs = range(1, int(state.recipe.epochs) + 1)
        self.kept = {math.ceil(e * windows / len(steps[0])): f"epoch-{e}" for e in epochs}
        in_float, end = state.recipe.in_float(len(steps)), len(steps)
        quarters = {(in_float * (4 - i) + end * i) // 4: f"rounded-{i}" for i in (1, 2, 3)}
        self.kept |= {step: name for step, name in quarters.items() if step > in_float}
        recipe, end = state.recipe, len(steps)  # a longer one goes on before the cooldown, the mean
        self.trunk = min(recipe.stable(end), end - round(recipe.averaged_share * end))
        self.saved = time.monotonic()

    def restore(self) -> bool:
        """Whether there is a state to go on from: its own, or a shorter training's trunk."""
        places = [self.folder / name for name in ("state.pt", TRUNK)] if self.folder else []
        contents = (load(place, self.state.key) for place in places)
        if not (content := next(filter(None, contents), None)):
            return False
        self.state.restore(content)
        self._save_weights(self.state.step)  # not there after a full disk, or older code
        return True

    def after(self, step: int, signals: "Signals", targets: data.Targets) -> None:
        """Keeps what is due after a step; after a signal, ends the process as it would have."""
        if not self.folder:
            return
        due, last = time.monotonic() - self.saved, step == self.steps
        due = due > 60 * self.state.recipe.checkpoint_minutes
        # a cluster's signal reaches all ranks, at any moment
        stop = self.team.any_rank(signals.caught > 0)
        if self.team.any_rank(due or last or step in (*self.kept, self.trunk)) or stop:
            targets.sync()  # no checkpoint is ahead of the rows that led to it
            self._save_weights(step)  # first: from the state on, nothing would write it again
            if self.team.any_rank(True) and self.team.rank == 0:  # all have come so far
                for name in ("state.pt", *[TRUNK] * (step == self.trunk)):
                    save(self.folder / name, self.state.content())
            self.saved = time.monotonic()
        if stop or (last and signals.caught):  # else not kept: after the next
            line = f"stopped after step {step:,} of {self.steps:,}, kept in {self.folder}: "
            signals.reraise("" if self.team.rank else line + "the same command goes on from there")

    def _save_weights(self, step: int) -> None:
        if self.team.rank == 0 and step in self.kept and step < self.steps:
            save(self.folder / f"{self.kept[step]}.safetensors", self.state.weights())


def key(student: nn.Module, recipe, rows: np.ndarray, windows: data.Windows, targets) -> dict:
    """What a training must have in common with the one whose checkpoint it goes on from."""
    key = {name: value for name, value in asdict(recipe).items() if name not in FREE}
    shapes = [(n, *weight.shape) for n, weight in student.named_parameters()]
    hashed = {"shapes": repr(shapes).encode(), "windows": np.ascontiguousarray(rows).tobytes()}
    key |= {name: hashlib.sha256(content).hexdigest() for name, content in hashed.items()}
    key |= {"windows_in_all": len(windows), "context": windows.context}
    if windows.weights is not None:
        weights = hashlib.sha256()
        for rows_B in windows.batches(rows, 4096):
            weights.update(windows.weights_of(rows_B).tobytes())
        key["weights"] = weights.hexdigest()
    return key | {"targets": targets.sampling}


def save(path: Path, content: dict) -> None:
    """A dict of tensors (.safetensors) or of tensors and plain values. A full disk is a warning: it
    must not end hours of training."""
    file = io.BytesIO()
    if path.suffix == ".safetensors":
        tensors = {name: x.cpu().contiguous() for name, x in content.items()}
        file.write(safetensors.torch.save(tensors))
    else:
        torch.save(content, file)
    try:
        write_whole(path, file.getbuffer())
    except OSError as error:
        warnings.warn(f"{path} is not written, the one before stays: {error}", stacklevel=2)


def load(path: Path, key: dict) -> dict | None:
    """The state, None where there is none. ValueError names the first difference to its `key`."""
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        old = state["key"]
    except Exception as error:  # torch's errors share no base
        why = type(error).__name__
        raise ValueError(f"{path} is no checkpoint ({why}): set redo to start over") from None
    for name in key.keys() - {*LENGTH} if path.name == TRUNK else key:
        if key[name] != (before := old.get(name, NEW.get(name))):
            fault = f"{path} was made with {name} {before!r}, now it is {key[name]!r}"
            raise ValueError(f"{fault}: put it back to go on, or set redo to start over")
    return state


class Signals:
    """SIGTERM and Ctrl-C wait for the end of a step, where a checkpoint can be kept; `caught` is
    the signal's number, 0 for none. A second Ctrl-C does not wait."""

    def __init__(self, active: bool):
        self.caught, self.before = 0, {}
        self.active = active and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "Signals":
        for number in (signal.SIGTERM, signal.SIGINT) if self.active else ():
            self.before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: object) -> None:
        self.caught = number
        signal.signal(signal.SIGINT, self.before[signal.SIGINT])

    def reraise(self, line: str) -> None:
        """Print a line, then let the signal do what it would have done; SIGTERM where another
        process got one."""
        self.__exit__()
        print(line, end="\n" * bool(line), flush=True)
        signal.raise_signal(self.caught or signal.SIGTERM)
