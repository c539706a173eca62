"""The calls of 00, 01, 03 and 05: text in, a teacher in, what a run adds to a training, and what an
adapter replays and how; and an adapter's merging in 04.

The method is in the notebooks: the model, its first weights, its recipe and its targets.
"""

import contextlib
import html
import json
import secrets
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.utils.parametrize import cached

from tdbook.book import common
from tdbook.corpus import text, token_files
from tdbook.corpus.prepare import prepare
from tdbook.report import words
from tdbook.runs import hooks, parameters, sweeps
from tdbook.runs.machine import peak_memory_mib
from tdbook.runs.running import Run
from tdbook.training import cache, worker
from tdlib import checkpoint, data, evaluate, files, hard_set, lora, train
from tdlib.model import Llama

SUBSET = 64  # validation windows looked at during training


def text_into_tokens(this: Run, teacher: Llama | None) -> tuple[str, str]:
    """What was prepared, in words, and what the finding must say of text that is missing."""
    account, p = text.Account(), this.parameters
    made = partial(prepare, p, this.path("tokens"), teacher, account)
    summary = this.once("text", lambda: words.say("text", p=p, account=account, **made()))
    more = {"told": account.notes(), "missing": account.missing()}
    return summary, this.once("account", lambda: vars(account) | more)["missing"]


def imported(this: Run, teacher: Llama, tokens: data.Tokens) -> Llama:
    """Saves a teacher made elsewhere as models/teacher."""
    teacher.config = replace(teacher.config, eos_id=tokens.eos)
    path = Path(this.parameters["teacher"])
    this.once("saved", common.save, teacher, this.path("models", "teacher"), tokens, path)
    return teacher


@dataclass(frozen=True)
class Training:
    """A model's training within a run, which gives back what it made once it is finished."""

    this: Run
    name: str  # of the model
    tokens: data.Tokens
    shorter: str = ""  # the model whose trunk this training begins with

    def ends(self, recipe: train.Recipe) -> list[tuple["Training", train.Recipe]]:
        """This training, and before it those that cool its trunk down earlier (`cooldowns`), each a
        model. The warm-up is a share of the shortest."""
        given = parameters.tokens_of(self.this.parameters["cooldowns"]).items()
        lengths = {f"{self.name}-{name}": n for name, n in given} | {self.name: recipe.token_limit}
        shortest, ends = min(lengths.values()), []
        for name, length in lengths.items():
            share = recipe.warmup_share * shortest / length if shortest else recipe.warmup_share
            before = ends[-1][0].name if ends else ""
            training = Training(self.this, name, self.tokens, before)
            ends.append((training, replace(recipe, token_limit=length, warmup_share=share)))
        return ends

    def targets(self, teacher, ce_weight: float, temperature: float, draws: int, by="teacher"):
        """The teacher's half of the loss, opened by `fit`: none at ce_weight 1; the teacher, which
        reads every batch; with `draws` so many ids a token, drawn from it and kept."""
        kept = kept_targets(self.this, self.tokens, teacher, temperature, draws, by)
        return kept if ce_weight < 1 else contextlib.nullcontext()

    def windows(self, recipe: train.Recipe) -> np.ndarray:
        """Numbers of the windows it reads: all but the fold `left_out`; of `distinct_tokens`, those
        with which a training of one epoch with this seed begins."""
        p, tokens, rows = self.this.parameters, self.tokens, np.arange(len(self.tokens.train))
        rows = rows[~token_files.fold(tokens, p["left_out"])] if p["left_out"] else rows
        if p["distinct_tokens"]:
            once = replace(recipe, epochs=1.0, token_limit=p["distinct_tokens"])
            rows = np.concatenate(train.order(rows, once, tokens.context))
        return rows

    def fit(self, net: Llama, recipe: train.Recipe, targets=None, rows=None) -> list[dict]:
        """`tdlib.train.fit` on the training windows, or on some `rows` of them; the log's rows."""
        return self.this.once(f"log of {self.name}", self._fit, net, recipe, targets, rows)

    def _fit(self, net: Llama, recipe: train.Recipe, targets, rows) -> list[dict]:
        this, p = self.this, self.this.parameters
        folder = this.path("checkpoints", this.run, self.name)
        if self.shorter and not (folder / checkpoint.TRUNK).exists():
            trunk = this.path("checkpoints", this.run, self.shorter, checkpoint.TRUNK)
            files.write_whole(folder / checkpoint.TRUNK, trunk.read_bytes())
        settings = {name: x for name, x in p.items() if name not in parameters.VOLATILE}
        about = dict(project=p["wandb"], dir=this.out, group=this.out.name, config=settings)
        about |= {"name": f"{this.run} {self.name}"}
        board = contextlib.closing(dashboard(about, folder / "wandb.id"))
        told = partial(this.told, folder)
        hook = hooks.beside(p["after_checkpoint"], folder, parameters.ROOT, told)
        with targets or contextlib.nullcontext() as teacher, hook, board as sent:
            next(sent, None)
            log = Log(this, self.name, sent.send)
            how = dict(teacher=teacher, rows=rows, device=this.device, folder=folder)
            how |= dict(progress=log.progress, record=log.record)
            if (n := p["processes"]) > 1:
                return worker.fit(net, self.tokens, recipe, processes=n, evaluate=validation, **how)
            validate = validation(self.tokens, this.device)
            return train.fit(net, self.tokens.train, recipe, evaluate=validate, **how)

    def stop_on_validation(self, net: Llama, log: list[dict], of: str = "epoch") -> str:
        """Gives the model the weights that validate best: of the end, and of each epoch's end or of
        each quarter of the rounded steps (`of` "rounded"); the log's last row says which."""
        log[-1] |= (stopped := self.this.once("stopped", self._best, net, of))
        losses = ", ".join(f"{when} {loss:.3f}" for when, loss in stopped["at_epochs"].items())
        return f"Kept are the weights of {stopped['kept']}, which validate best ({losses})."

    def _best(self, net: Llama, of: str) -> dict:
        device, count = self.this.device, self.this.parameters["fixed_windows"]
        folder = self.this.path("checkpoints", self.this.run, self.name)
        kept = {p.stem: p for p in sorted(folder.glob(f"{of}-*.safetensors"))}
        # cached: a rounded matrix is made once
        loss = cached()(evaluate.on_subset(self.tokens.val, count, device))
        last, losses = {k: w.clone() for k, w in net.state_dict().items()}, {}

        def load(when: str) -> None:  # a file holds those that trained
            weights = load_file(kept[when], device=device) if when in kept else last
            net.load_state_dict(weights, strict=False)

        for when in ("the end", *kept):
            load(when)
            losses[when] = loss(net)["val/loss"]
        load(best := min(losses, key=losses.get))
        return {"kept": best, "at_epochs": losses}

    def save(self, net: Llama, base: str = "") -> Llama:
        """Saves models/<name>, or adapters/<name> beside the `base` that 03 trained on, and reads
        it back, so that what is measured is what was saved."""
        this, name = self.this, self.name
        if lora.adapters(net):
            this.once("saved", lora.save, net, this.path("adapters", name), f"models/{base}")
            return load_adapter(this, name, base)
        folder, key = this.path("models", name), "saved" if base else f"saved {name}"
        like = this.path("models", this.parameters["teacher"])
        this.once(key, common.save, net, folder, self.tokens, like)
        return Llama.load(folder, this.device).eval().requires_grad_(False)


@contextlib.contextmanager
def kept_targets(this: Run, tokens, teacher, temperature, draws, by="teacher", fill=True):
    """A cache that all runs of the folder share, of a teacher `by` name and a temperature. The
    teacher itself where nothing is drawn, or none is there and none may be made."""
    folder = this.out / "cache" / f"{by}-T{temperature:g}-K{draws}-seed1"
    how = dict(temperature=temperature, draws=draws, read_only=sweeps.parent(this.out) is not None)
    if not draws or (not folder.exists() and (how["read_only"] or not fill)):
        yield teacher
        return
    with cache.Cache(folder, teacher, tokens.train, **how) as kept:
        mib = (kept.rows.nbytes + kept.valid.nbytes) / 2**20  # once it is full
        there = f"{int(kept.valid.sum()):,} of {len(tokens.train):,} windows are there already"
        print(f"Targets at T {temperature:g}, {draws} a token: {mib:,.1f} MiB in {folder}; {there}")
        yield kept


def validation(tokens: data.Tokens, device: str) -> Callable[[Llama], dict]:
    """What a student is asked while it trains: its validation loss, and a text."""
    loss = evaluate.on_subset(tokens.val, SUBSET, device)
    return lambda net: loss(net) | {"val/samples": common.samples(net, tokens, 1, 24)}


def dashboard(about: dict, run_id: Path) -> Generator[None, dict, None]:
    """Is sent the rows of a training as they stand in logs/, for Weights & Biases where a run names
    a project (`wandb login`, WANDB_MODE and WANDB_ENTITY are its own); else, and where W&B fails,
    it ends. The run's id lies beside the checkpoint: a training that goes on from there goes on in
    W&B too."""
    if not about["project"]:
        return
    try:
        import wandb

        if not run_id.exists():
            files.write_whole(run_id, secrets.token_hex(8))
        quiet = wandb.Settings(console="off", silent=True, save_code=False, disable_git=True)
        run = wandb.init(**about, id=run_id.read_text(), resume="allow", settings=quiet)
        try:
            while row := (yield):
                if texts := row.get("val/samples"):
                    text = html.escape("\n".join(texts))
                    row = row | {"val/samples": wandb.Html(f"<pre>{text}")}
                run.log({n: value for n, value in row.items() if n != "step"}, step=row["step"])
        except GeneratorExit:
            run.finish()
    except Exception as error:  # any: wandb's share no base, and none may end a training
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        line = f"W&B: {about['name']} is not logged there: {why}; logs/ has every row"
        print(f"{line}, the training goes on", flush=True)


@dataclass
class Log:
    """The rows of a training: sent on, and kept in logs/<run>-<name>.jsonl by upstream's names."""

    this: Run
    name: str
    send: Callable[[dict], None]
    loss: str = ""  # the last one, beside the progress
    lines: list[str] | None = None  # of the file

    def record(self, row: dict) -> None:
        row = {"train/peak_memory_mib": peak_memory_mib()} | row  # a worker's row has its own
        self.loss = f"loss {row['train/loss']:.3f} · " if "train/loss" in row else ""
        with contextlib.suppress(StopIteration):  # nothing is sent, or no more
            self.send(row)
        path = self.this.path("logs", f"{self.this.run}-{self.name}.jsonl")
        if self.lines is None:  # a resumed training writes its own rows again
            old = path.read_text("utf-8").splitlines() if path.exists() else []
            self.lines = [line for line in old if json.loads(line)["step"] < row["step"]]
        self.lines.append(json.dumps(row, ensure_ascii=False))
        with contextlib.suppress(OSError):  # a disk that is full for a minute ends no training
            files.write_whole(path, "\n".join([*self.lines, ""]), lasting=False)

    def progress(self, step: int, steps: int, message: str) -> None:
        self.this.progress(step, steps, self.loss + message)


def log_of(this: Run, name: str) -> list[dict]:
    """The log of another student of this folder."""
    for record in common.folder_of(this).records.values():
        if log := record["remembered"].get(f"log of {name}"):
            return log
    raise ValueError(f"no results file of {this.out} trained {name}: correct beside")


def windows_replayed(this: Run, chosen: hard_set.HardSet, tokens: data.Tokens) -> np.ndarray:
    """Numbers of the windows that 03 trains on; of those without a target nothing is learnt."""
    p, k, known = this.parameters, len(chosen.windows_K), np.flatnonzero(tokens.train.known_N)
    if p["windows"] == "random":
        drawn = np.random.default_rng(p["seed"]).choice(len(known), k, replace=False)
        return known[np.sort(drawn)]
    if p["windows"] != "easiest":
        return chosen.windows_K if p["windows"] == "hard" else known
    difficulty_N = hard_set.load_scores(this.path("scores", p["scores"])).difficulty_N
    if np.isfinite(difficulty_N).sum() < k:
        raise ValueError(f"windows 'easiest' needs {k:,} windows that were scored")
    return np.sort(np.argsort(difficulty_N, kind="stable")[:k])  # NaN comes last


def weighed(this: Run, share: float, rows_K, tokens: data.Tokens, net, teacher) -> data.Tokens:
    """The tokens; of a `share` below 1 with weights: 1 where the net is furthest behind."""
    if share == 1 or this.current:
        return tokens
    path, done = this.path("checkpoints", this.run, "weights.bin"), 0
    with files.replacing(path) as beside:
        weights = np.lib.format.open_memmap(beside, "w+", np.uint8, tokens.train.ids.shape)
        for rows_B in tokens.train.batches(rows_K, 16):
            weigh(net, teacher, tokens.train, rows_B, share, weights, this.device)
            this.progress(done := done + len(rows_B), len(rows_K), "windows weighed")
        weights.flush()
    return data.weighted(tokens, path)


def weigh(student, teacher, windows, rows_B, share: float, weights, device: str) -> None:
    """Token mode (Rho-1, arXiv 2404.07965, within a window): sets data.Windows.weights to 1 at the
    `share` of a window's targets on which the student fell furthest behind its teacher."""
    ids_BT, targets_BT = windows.batch(rows_B, device)
    s_BT, t_BT = (hard_set.token_losses(model, ids_BT, targets_BT) for model in (student, teacher))
    behind_BT = torch.where(targets_BT != data.IGNORE, s_BT - t_BT, -torch.inf)
    at_BK = behind_BT.topk(max(1, round(share * windows.context)), dim=1).indices.cpu().numpy()
    weights[np.asarray(rows_B)[:, None] * windows.context + 1 + at_BK] = 1


def replay_recipe(this: Run, chosen: hard_set.HardSet, tokens: data.Tokens) -> train.Recipe:
    """03's recipe, at the base's temperature unless given; "all" takes as many steps as "hard", and
    what is rounded is so from the first step."""
    p = this.parameters
    limit = round(p["epochs"] * len(chosen.windows_K)) * tokens.context
    if p["windows"] != "all" or 0 < p["token_limit"] < limit:
        limit = p["token_limit"]
    temperature = temperature_of(this, p["base"]) if p["temperature"] is None else p["temperature"]
    p = p | {"temperature": temperature, "token_limit": limit}
    return train.recipe(p | {"four_bit_share": float(bool(p["rounding"]))})


def temperature_of(this: Run, base: str) -> float:
    """The temperature of the run that made a model; of one trained on by 03, that of its base."""
    for record in common.folder_of(this).records.values():
        if base in record["models"] and "temperature" in (p := record["parameters"]):
            given = p["temperature"]
            return temperature_of(this, p["base"]) if given is None else float(given)
    raise ValueError(f"no results file of {this.out} says how {base} was made: set temperature")


def load_adapter(this: Run, adapter: str, base: str) -> Llama:
    """The base with an adapter beside its weights."""
    net = Llama.load(this.path("models", base), this.device)
    return lora.load(net, this.path("adapters", adapter))


@torch.no_grad()
def measure_merged(this: Run, adapter: str, apart: Llama, merged: Llama, tokens, teacher) -> dict:
    """Saves models/<adapter>-merged and measures it; logits beside those of base and adapter."""
    name = f"{adapter}-merged"
    merged = Training(this, name, tokens).save(merged)
    row = common.measure(this, name, merged, tokens, teacher)
    ids_BT, _ = tokens.val.batch(evaluate.fixed_rows(tokens.val, 8), this.device)
    apart_BTV = apart(ids_BT)
    base = common.row_of(this, common.folder_of(this).adapters[adapter])
    return {
        "weights": f"{row['parameters']:,}",
        "weights of the base": f"{base['parameters']:,}",
        "largest logit difference": f"{float((merged(ids_BT) - apart_BTV).abs().max()):.1e}",
        "of logits up to": f"{float(apart_BTV.abs().max()):.3g}",
    }
