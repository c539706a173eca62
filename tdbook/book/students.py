"""The calls of 00, 01 and 05: a training with its targets, log and curve."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from safetensors.torch import load_file

from tdbook.book import opening
from tdbook.runs import hooks, notebooks, parameters, rules, sweeps
from tdbook.runs.provenance import peak_memory_mib
from tdbook.runs.running import Run
from tdbook.training import cache, dashboard, from_teacher, worker
from tdbook.workflow import cost
from tdlib import data, evaluate, hard_set, lora, train
from tdlib.files import write_whole as write
from tdlib.model import Llama, LlamaConfig


def given_in_words(path: str, teacher: Llama) -> str:
    """What was loaded, and what was repaired on the way."""
    c, cut = teacher.config, teacher.cut_rows
    rows = (
        f" The last {cut:,} rows of its embedding were zeros, padding, and are cut." if cut else ""
    )
    shape = f"{c.layers} layers, {c.heads} heads ({c.kv_heads} of keys), width {c.dim}"
    return f"Loaded from `{path}`: {shape}, MLP {c.mlp_dim}, context {c.context:,}.{rows}"


def imported(this: Run, model: Llama, tokens: data.Tokens) -> list[dict]:
    """A teacher made elsewhere, saved as models/teacher; its log is one point."""
    model.config = replace(model.config, eos_id=tokens.eos)
    this.once("saved", opening.save, model, this.path("models", "teacher"), tokens)
    loss = evaluate.on_subset(tokens.val, opening.SUBSET, this.device)(model)
    return this.once("log", lambda: [{"step": 0, "tokens": 0} | loss])


@contextlib.contextmanager
def targets(
    this: Run, teacher: Llama, tokens: data.Tokens, temperature: float, fill: bool = True,
    name: str = "teacher",
):  # fmt: skip
    """Where a training's targets come from: the teacher itself or, with `cached_draws`, a cache
    that all runs of the folder share, one for each teacher's name and temperature. Without `fill`,
    and in a sweep's point, a cache is only read where it is there."""
    draws = this.parameters.get("cached_draws", 0)
    folder = this.out / "cache" / cache.name(name, temperature, draws, 1)
    read_only = sweeps.parent(this.out) is not None
    if not draws or not ((fill and not read_only) or folder.exists()):
        yield teacher
        return
    windows = tokens.train
    mib = cache.size(len(windows), tokens.context, draws, len(teacher.head)) / 2**20
    print(f"Targets at T {temperature:g}, {draws} a token: {mib:,.1f} MiB in {folder}")
    with cache.Cache(folder, teacher, windows, temperature=temperature, draws=draws) as kept:
        kept.full = read_only
        print(f"{int(kept.valid.sum()):,} of {len(windows):,} windows are there already")
        yield kept


def fit(
    this: Run, name: str, net: Llama, tokens: data.Tokens, recipe, teacher, rows=None,
    cache_name: str = "teacher",
):  # fmt: skip
    """`train.fit` with this run's progress, checkpoint, validation, log and number of `processes`;
    returns the log's rows, remembered ones where the run is finished. `cache_name` names the
    teacher in the cache; "" asks the teacher in every epoch."""
    p = this.parameters

    def trained() -> list[dict]:
        folder = this.path("checkpoints", this.run, name)
        source = contextlib.nullcontext(teacher)
        if recipe.ce_weight < 1 and cache_name:
            source = targets(this, teacher, tokens, recipe.temperature, name=cache_name)
        config = {n: value for n, value in p.items() if n not in rules.VOLATILE}
        board = (p.get("wandb"), this.out, f"{this.run} {name}", folder, config)
        hook = (p.get("after_checkpoint"), folder, parameters.ROOT, lambda: this.told(folder))
        with source as asked, hooks.beside(*hook), dashboard.logging(*board) as send:
            keep, latest = _log(this, name, net, teacher, tokens.context, recipe, send), [""]

            def record(row: dict) -> None:
                latest[0] = f"loss {row['train/loss']:.3f} · " if "train/loss" in row else ""
                keep(row)

            def progress(step: int, steps: int, message: str) -> None:
                this.progress(step, steps, latest[0] + message)

            how = dict(teacher=asked, rows=rows, device=this.device, progress=progress,
                       record=record, folder=folder)  # fmt: skip
            if (processes := p.get("processes", 1)) > 1:
                return worker.fit(net, tokens, recipe, processes=processes, evaluate=look, **how)
            return train.fit(net, tokens.train, recipe, evaluate=look(tokens, this.device), **how)

    return this.once(f"log of {name}", trained)


def look(tokens: data.Tokens, device: str) -> Callable[[Llama], dict]:
    """What is asked of a student while it trains: its validation loss, and a text."""
    on_subset = evaluate.on_subset(tokens.val, opening.SUBSET, device)
    return lambda student: (
        on_subset(student) | {"val/samples": opening.samples(student, tokens, 1, 24)}
    )


def _log(
    this: Run, name: str, net: Llama, teacher, context: int, recipe, send: Callable[[dict], None]
) -> Callable:  # fmt: skip
    """Sends rows, and keeps them as logs/<run>-<name>.jsonl under upstream's names, with memory and
    the share of what this machine's matrix products reach. A resumed training writes its own rows
    again."""
    path, peak = this.path("logs", f"{this.run}-{name}.jsonl"), None
    online = recipe.ce_weight < 1 and not this.parameters.get("cached_draws")
    asked = teacher.config if online else None
    flop = cost.step_flop(net.config, asked, context, frozen=bool(lora.adapters(net)))

    def record(row: dict) -> None:
        nonlocal peak
        gpus = this.parameters.get("processes", 1) if "cuda" in this.device else 1
        peak = peak or cost.peak_flop(this.device) * gpus
        if speed := row.get("train/tokens_per_sec"):
            row = row | {"train/peak_share": speed * flop / peak}
        row = {"train/peak_memory_mib": peak_memory_mib()} | row  # a worker tells its own
        send(row)
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        before = [line for line in lines if json.loads(line)["step"] < row["step"]]
        with contextlib.suppress(OSError):  # a disk that is full for a minute ends no training
            write(path, "\n".join([*before, json.dumps(row, ensure_ascii=False), ""]))

    return record


def student(
    this: Run, name: str, config: LlamaConfig, tokens: data.Tokens, recipe, teacher: Llama | None,
    cache_name: str = "teacher",
) -> tuple[Llama, list[dict]]:  # fmt: skip
    """Train a model, save it as models/<name> and read it back, so that what is measured is what
    was saved; a finished run only reads it back. With `init` "teacher" its first weights are slices
    of the teacher's. The fold `left_out` is not read, and of the rest only `distinct_tokens`, if
    given: those a shorter training with this seed begins with."""
    torch.manual_seed(recipe.seed)
    p, config = this.parameters, replace(config, eos_id=tokens.eos)
    if p.get("init") == "teacher":
        count = max(8, 2**13 // tokens.context)  # windows: some 8,000 to 16,000 tokens
        net = from_teacher.from_teacher(
            teacher, config, tokens.train, count=count, device=this.device
        )
    else:
        net = Llama(config).to(this.device)
    rows = np.flatnonzero(~tokens.fold(p["left_out"])) if p.get("left_out") else None
    if distinct := p.get("distinct_tokens"):
        rows = np.arange(len(tokens.train)) if rows is None else rows
        once = replace(recipe, epochs=1.0, token_limit=distinct)
        rows = np.concatenate(train.order(rows, once, tokens.context))
    log = fit(this, name, net, tokens, recipe, teacher, rows, cache_name)
    if this.notebook == notebooks.TEACHER:
        log[-1] |= this.once("stopped", stop_on_validation, this, name, net, tokens)
    return _saved(this, f"saved {name}", name, net, tokens), log


def _saved(this: Run, once: str, name: str, net: Llama, tokens: data.Tokens) -> Llama:
    folder = this.path("models", name)
    this.once(once, opening.save, net, folder, tokens)
    return Llama.load(folder, this.device).eval().requires_grad_(False)


def stop_on_validation(this: Run, name: str, net: Llama, tokens: data.Tokens) -> dict:
    """Give a trained model the weights of that epoch's end which validates best; a longer training
    may end worse than it was. Returns the loss on the fixed windows at each."""
    rows = evaluate.fixed_rows(tokens.val, this.parameters["fixed_windows"])

    def loss() -> float:
        return hard_set.known_mean(hard_set.window_loss(net, tokens.val, rows, this.device))

    folder = this.path("checkpoints", this.run, name)
    ends = {path.stem: path for path in sorted(folder.glob("epoch-*.safetensors"))}
    last = {key: weight.clone() for key, weight in net.state_dict().items()}
    losses = {"the end": loss()}
    for epoch, path in ends.items():
        net.load_state_dict(load_file(path, device=this.device))
        losses[epoch] = loss()
    best = min(losses, key=losses.get)
    net.load_state_dict(load_file(ends[best], device=this.device) if best in ends else last)
    return {"kept": best, "at_epochs": losses}


def stop_in_words(log: list[dict]) -> str:
    """Which weights of the teacher's training were kept."""
    last = log[-1]
    losses = ", ".join(f"{when} {loss:.3f}" for when, loss in last["at_epochs"].items())
    return f"Stopped on validation: the weights of {last['kept']} are kept ({losses})."


def curve(log: list[dict]) -> dict[str, list[float]]:
    """A training log as plots.learning_curves takes it."""
    return {"tokens": [r["tokens"] for r in log], "loss": [r["val/loss"] for r in log]}


def logs_beside(this: Run, name: str, log: list[dict], beside: str) -> dict[str, list[dict]]:
    """The log of a student, and before it that of another one that this folder holds, if named."""
    if not beside:
        return {name: log}
    for record in opening.folder_of(this).records.values():
        if other := record["remembered"].get(f"log of {beside}"):
            return {beside: other, name: log}
    raise ValueError(f"no results file of {this.out} trained {beside}: correct beside")


def reached_in_words(logs: dict[str, list[dict]]) -> str:
    """When the last curve came to where the first one ends; "" for one curve alone."""
    if len(logs) < 2:
        return ""
    (other, first), *_, (name, own) = logs.items()
    last = first[-1]["val/loss"]
    at = next((row["tokens"] for row in own if row["val/loss"] <= last), None)
    if at is None:
        return f" {name} never came to the {last:.3f} where {other} ends."
    when = f"after {at / own[-1]['tokens']:.0%} of its training" if at else "before its first step"
    return f" {name} was at the {last:.3f} where {other} ends {when}."


def curve_in_words(logs: dict[str, list[dict]]) -> str:
    """Whether the last part of each curve still fell."""
    said = []
    for name, log in logs.items():
        if len(log) > 2:
            fall = log[-2]["val/loss"] - log[-1]["val/loss"]
            line = f"In the last of {len(log) - 1} parts the loss of {name}"
            said.append(f"{line} still fell by {fall:.3f}: train longer." if fall > 0.03
                        else f"{line} changed by {-fall:+.3f}.")  # fmt: skip
    return " ".join(said)
