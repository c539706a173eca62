"""What the notebooks share: the steps of a run, and what a run folder holds, as plain calls.

`this` is the `runs.Run` of the notebook that asks. Training, loss and hard set are in their own
modules; here they are put together, recorded, and said in words computed from numbers.
"""

import contextlib
import copy
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from tdlib import (
    cache,
    choice,
    cost,
    dashboard,
    data,
    evaluate,
    files,
    generate,
    hard_set,
    hashes,
    hooks,
    inference,
    lora,
    parameters,
    plan,
    plots,
    release,
    start,
    sweeps,
    tables,
    telugu,
    text,
    tokenizer,
    train,
    units,
    verdict,
    widgets,
    worker,
)
from tdlib.folder import Folder
from tdlib.model import Llama, LlamaConfig
from tdlib.parameters import ROOT, texts
from tdlib.runs import Run, peak_memory_mib, write
from tdlib.teacher import cut_spare_rows

SUBSET = 64  # validation windows looked at during training


def folder_of(this: Run) -> Folder:
    """What the run folder holds, read once for each run that asks."""
    if "folder" not in vars(this):
        this.folder = Folder(this.out, this.run, this.parameters.get("sweeps", ""))
    return this.folder


def opened(this: Run) -> data.Tokens:
    """The folder's tokens. Prints an estimate of what this run will cost, and records it."""
    tokens = data.open_tokens(this.path("tokens"))
    estimate = this.once("estimate", plan.estimate, this.parameters, this.out, this.device)
    span = units.duration(estimate["seconds_low"], estimate["seconds_high"])
    memory, flop = estimate["peak_memory_mib"], estimate["flop"]
    print(f"Estimated: {span}, {memory:,.0f} MiB at most, {flop:.2g} FLOP.")
    return tokens


def text_into_tokens(this: Run, teacher: Llama | None) -> tuple[str, str]:
    """`prepare`'s summary, and what the finding must say of text that is missing."""
    account = text.Account()
    summary = this.once("text", prepare, this.parameters, this.path("tokens"), teacher, account)
    more = {"told": account.notes(), "missing": account.missing()}
    return summary, this.once("account", lambda: vars(account) | more)["missing"]


def prepare(
    p: dict, folder: Path, teacher: Llama | None = None, account: text.Account | None = None
) -> str:
    """Text (given, or written) → split, tokenizer, tokens in `folder`; or token files used as they
    are. `p` are 00's parameters; `account` counts what was read. Returns a summary."""
    if teacher and teacher.config.context < p["context"]:
        raise ValueError(
            f"the context of {p['teacher']} is {teacher.config.context:,}, the windows' is "
            f"{p['context']:,}: give a shorter context"
        )
    given = tokenizer.open(p["tokenizer"], p["segmenter"]) if p["tokenizer"] else None
    if p["tokens"]:
        return _linked(p, folder, given, teacher)
    cut = cut_spare_rows(teacher, given.size) if given and teacher else ""
    size = _vocabulary(p, teacher, *((given.size, f"{given.path}'s") if given else ()))
    rares, account = [], text.Account() if account is None else account
    if p["text"]:
        documents = text.read(texts(p["text"]), account)
    else:
        documents, rares = telugu.write(p["text_characters"], p["text_seed"])
    rare = rare_lines(documents, rares)
    documents = text.section(documents, p["section_characters"])
    groups_N = text.near_duplicates(documents)
    splits = _split(p, documents, groups_N)
    lines = (line for d in splits["train"] for line in d.lines)
    with tempfile.TemporaryDirectory() as place:
        fresh = given or tokenizer.train(lines, p["vocab_size"], Path(place, "model"))
        data.write_tokens(folder, splits, fresh, p["context"], rare, size)
    tokens, sources = data.open_tokens(folder), sorted({d.source for d in documents})
    said = [
        str(account) if p["text"] else "",
        f"{len(documents):,} documents (long works cut into sections) from {len(sources)} sources: "
        f"{', '.join(sources[:12])}. Groups of near-duplicates: {len(np.unique(groups_N)):,}.",
        f"{_sizes(tokens)} Vocabulary {tokens.vocab_size:,}; {tokens.bytes_per_token():.2f} bytes "
        "a token.",
        f"Rare constructions, at known places: {len(rares):,} sentences." if rares else "",
        cut,
    ]
    return " ".join(filter(None, said)) + data.loss(tokens.meta)


def _split(p: dict, documents: list[text.Document], groups_N: np.ndarray) -> dict[str, list]:
    sides = text.split(documents, groups_N, val_share=p["val_share"],
                       confirm_share=p["confirm_share"], seed=p["split_seed"])  # fmt: skip
    names = ("train", "val", "confirm") if p["confirm_share"] else ("train", "val")
    return {name: [d for d, side in zip(documents, sides, strict=True) if side == name]
            for name in names}  # fmt: skip


def _sizes(tokens: data.Tokens) -> str:
    train, val = (f"{len(w.ids):,} tokens, {len(w):,} windows" for w in (tokens.train, tokens.val))
    return f"Training: {train} of {tokens.context}; validation: {val}."


def rare_lines(
    documents: list[text.Document], rares: list[telugu.Rare]
) -> dict[str, dict[str, str]]:
    """Line with a rare construction → its sentence → its kind, as data.write_tokens takes them. By
    line, since sections and splits move lines about and never cut one."""
    lines = {}
    for rare in rares:
        line = documents[rare.document].lines[rare.line]
        lines.setdefault(line, {})[rare.text] = rare.kind
    return lines


def _vocabulary(p: dict, teacher: Llama | None, most: float = math.inf, whose: str = "") -> int:
    """The size of the teacher's vocabulary, 0 without one. ValueError: it is above `most`."""
    size = teacher.config.vocab_size if teacher else 0
    if size > most:
        raise ValueError(
            f"the vocabulary of {p['teacher']} is {size:,}, {whose} is {most:,}: give the tokens "
            "or the tokenizer that the teacher was made with"
        )
    return size


def _linked(p: dict, folder: Path, given: tokenizer.Tokenizer | None, teacher: Llama | None) -> str:
    source, context = Path(p["tokens"]), p["context"]
    theirs = data.open_tokens(source, context)
    words = given or theirs.tokenizer
    if words is None:
        raise FileNotFoundError(
            f"{source / 'tokenizer.model'} is not there: put the tokens' tokenizer there (.model, "
            "or tokenizer.json), or give it as tokenizer"
        )
    meta = data.read_meta(source / "meta.json", context)
    pieces, masks = meta["vocab_size"], masks_in_words(theirs)
    cut = cut_spare_rows(teacher, pieces) if teacher and words.size <= pieces else ""
    size = _vocabulary(p, teacher, pieces, "the tokens'")
    data.link_tokens(source, folder, tokenizer=given, vocab_size=size, context=context,
                     every_id=p["check_every_id"])  # fmt: skip
    tokens = data.open_tokens(folder)
    block, spare = meta.get("block_size", context), tokens.tokenizer.size - tokens.vocab_size
    said = [
        f"Token files used as they are: `{p['tokens']}`, nothing copied. {_sizes(tokens)} "
        f"Tokenizer: {tokens.tokenizer.kind}, {tokens.tokenizer.size:,} pieces.",
        f"Their block_size of {block:,} is not used, `context` is." if block != context else "",
        masks,
        f"The teacher's vocabulary is {tokens.vocab_size:,}: the tokenizer's last {spare:,} pieces "
        "occur nowhere in the tokens." if spare > 0 else "",
        cut,
    ]  # fmt: skip
    return " ".join(filter(None, said))


def masks_in_words(tokens: data.Tokens) -> str:
    """How many windows the masks beside the tokens leave without a target; "" without masks.
    ValueError where no window of training or validation has one."""
    said = []
    for split in ("train", "val", "confirm"):
        windows = getattr(tokens, split)
        if windows is None or windows.mask is None:
            continue
        left, n = int(windows.known_N.sum()), len(windows)
        if not left and split != "confirm":
            raise ValueError(
                f"{tokens.folder / f'{split}.mask.bin'} masks every target (0 where a token is "
                "none): correct it, or take it away"
            )
        said.append(f"{n - left:,} of {n:,} windows of {split}")
    return f"Masked whole, without a target, and in no mean: {', '.join(said)}." if said else ""


def save(net: Llama, folder: Path, tokens: data.Tokens) -> None:
    """A folder to release: the model, and a tokenizer that transformers loads where it can."""
    with tempfile.TemporaryDirectory() as place:
        files = release.tokenizer_files(tokens.tokenizer, Path(place), net.config.context)
        net.save(folder, files)


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
    this.once("saved", save, model, this.path("models", "teacher"), tokens)
    loss = evaluate.on_subset(tokens.val, SUBSET, this.device)(model)
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
        config = {n: value for n, value in p.items() if n not in hashes.VOLATILE}
        board = (p.get("wandb"), this.out, f"{this.run} {name}", folder, config)
        hook = (p.get("after_checkpoint"), folder, ROOT, lambda: this.told(folder))
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
    on_subset = evaluate.on_subset(tokens.val, SUBSET, device)
    return lambda student: on_subset(student) | {"val/samples": samples(student, tokens, 1, 24)}


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
        net = start.from_teacher(teacher, config, tokens.train, count=count, device=this.device)
    else:
        net = Llama(config).to(this.device)
    rows = np.flatnonzero(~tokens.fold(p["left_out"])) if p.get("left_out") else None
    if distinct := p.get("distinct_tokens"):
        rows = np.arange(len(tokens.train)) if rows is None else rows
        once = replace(recipe, epochs=1.0, token_limit=distinct)
        rows = np.concatenate(train.order(rows, once, tokens.context))
    log = fit(this, name, net, tokens, recipe, teacher, rows, cache_name)
    if this.notebook == "00_teacher":
        log[-1] |= this.once("stopped", stop_on_validation, this, name, net, tokens)
    return _saved(this, f"saved {name}", name, net, tokens), log


def _saved(this: Run, once: str, name: str, net: Llama, tokens: data.Tokens) -> Llama:
    folder = this.path("models", name)
    this.once(once, save, net, folder, tokens)
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
    for record in folder_of(this).records.values():
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


def measure(this: Run, name: str, net: Llama, tokens: data.Tokens, teacher: Llama) -> dict:
    """Every metric of one model on the validation split, recorded; arrays go to scores/val."""
    row = this.once(
        f"row of {name}", evaluate.record, net, tokens, teacher, this.path("scores", "val"), name,
        fixed=this.parameters["fixed_windows"], device=this.device, progress=this.progress,
    )  # fmt: skip
    this.model(name, row)
    this.once(f"card of {name}", _card, this, name, tokens, row)
    return row


def _card(this: Run, name: str, tokens: data.Tokens, row: dict) -> None:
    """README.md of a model or an adapter, beside its weights."""
    p, record = this.parameters, this.provenance()
    if p.get("adapter") == name and p.get("trains", "adapter") == "adapter":
        folder, base = this.path("adapters", name), this.path("models", p["base"])
        text = release.adapter_card(folder, base, tokens, row, record, row_of(this, p["base"]))
    else:
        folder, records = this.path("models", name), folder_of(this).of("03_lora")
        merged = (r for r in records if f"{r['parameters']['adapter']}-merged" == name)
        teacher = None if this.notebook == "00_teacher" else row_of(this, p["teacher"])
        text = release.card(folder, tokens, row, next(merged, record), teacher)
    path = folder / "README.md"
    with contextlib.suppress(FileExistsError):  # the owner's own card stays
        files.own(path)
        write(path, text)
        files.sign(path)


def row_of(this: Run, name: str) -> dict:
    """The metrics of a model, from this run or the one that made it."""
    return this.models[name] if name in this.models else folder_of(this).metrics(name)


def to_take_away(this: Run) -> str:
    """The folders that this run made, each with the command that would upload it."""
    folders = [this.out / kind / name for name in this.models for kind in ("models", "adapters")]
    lines = (release.upload_command(folder) for folder in folders if folder.is_dir())
    return "\n".join(["Nothing is sent. To upload, fill in the cards (README.md), then:", *lines])


def samples(net: Llama, tokens: data.Tokens, count: int = 3, length: int = 0) -> list[str]:
    """Texts after the beginnings of validation windows, the same for every model, half a window
    long. Drawn by a generator of their own: training draws the same numbers with and without."""
    t, texts = tokens.context, []
    for i, window in enumerate(w for w in (1, 5, 9)[:count] if w < len(tokens.val)):
        ids = tokens.val.ids[window * t :][:8].tolist()
        new = generate.generate(net, ids, length or t // 2, temperature=0.8, seed=i)
        begun, whole = (tokens.tokenizer.decode(x) for x in (ids, [*ids, *new]))
        texts.append(f"{begun} ▸ {whole[len(begun) :].strip()}")
    return texts


def score(
    path: Path, net: Llama, teacher: Llama, windows: data.Windows, device, progress, limit: int = 0
) -> dict:
    """Score the training windows with both models into `path`: all, or, spread evenly, those of
    some `limit` tokens. Returns `choice.in_short` and the share of the windows that was scored."""
    count = min(limit // windows.context or len(windows), len(windows))
    rows = evaluate.fixed_rows(windows, count) if count < len(windows) else None
    with choice.new_scores(path, len(windows)) as loss_2N:
        scores = hard_set.score(
            net, teacher, windows, rows=rows, device=device, progress=progress, into=loss_2N
        )
        asked_N = windows.known_N if rows is None else windows.known_N[rows]
        masked = int((~asked_N).sum())
        short = choice.in_short(scores) | {"scored": count / len(windows)}
        return short | ({"masked": masked} if masked else {})


def does_difficulty_mean_anything(base: str, short: dict) -> str:
    """The sentence that 02 puts before anything else."""
    better = short["student_better"]
    counts = f"{base} is better than its teacher on {better:.1%} of {short['windows']:,} windows"
    if short.get("scored", 1) < 1:
        counts += f" (of which {short['scored']:.1%}, spread evenly, were scored)"
    if short.get("masked"):
        counts += f" but for {short['masked']:,}, which have no target"
    if better > 0.5:
        return (
            f"**⚠ {counts}: most of them. Difficulty is then mostly noise, and a hard set and an "
            "adapter built on it mean nothing here. Train a better teacher, or longer, first.**"
        )
    return f"{counts}. Its mean gap of {short['mean']:+.3f} nats measures what it lacks."


def said_by_02(this: Run) -> str:
    """That sentence again, for what is built on difficulty, from the record of 02."""
    base = this.parameters["base"]
    for record in folder_of(this).of("02_hard_set"):
        if record["parameters"]["base"] == base:
            return does_difficulty_mean_anything(base, record["remembered"]["short"])
    return f"No record of 02 says on how many windows {base} is better than its teacher."


def coloured_texts(net: Llama, teacher: Llama, tokens: data.Tokens, device) -> Callable[[int], str]:
    """Window number → its text as HTML, each piece coloured by its own difference."""

    def text_of(window: int) -> str:
        ids_BT, targets_BT = tokens.train.batch([window], device)
        student_T, teacher_T = (
            hard_set.token_losses(m, ids_BT, targets_BT)[0].cpu() for m in (net, teacher)
        )
        known_T = (targets_BT[0] != data.IGNORE).cpu()
        pieces = tokens.tokenizer.pieces(targets_BT[0].cpu()[known_T].tolist())
        return widgets.text_html(pieces, (student_T - teacher_T)[known_T].numpy())

    return text_of


def hard_set_of(this: Run) -> hard_set.HardSet:
    """What an adapter replays: 02's choice, or the hardest `share` of its scores."""
    p = this.parameters
    if p["share"] is None:
        return choice.load(this.path(p["hard_set"]))
    scores = choice.load_scores(this.path("scores", p["scores"]))
    return choice.made(scores.difficulty_N, {"share": p["share"]})


def replayed(this: Run, chosen: hard_set.HardSet, tokens: data.Tokens) -> np.ndarray:
    """The windows that 03 trains on, by its parameter `windows`."""
    p, difficulty_N = this.parameters, None
    if p["windows"] == "easiest":
        difficulty_N = choice.load_scores(this.path("scores", p["scores"])).difficulty_N
    known = np.flatnonzero(tokens.train.known_N)  # of the others nothing is learnt
    if p["windows"] in ("random", "all") and len(known) < len(tokens.train):
        return known[choice.replayed(chosen, p["windows"], len(known), p["seed"])]
    return choice.replayed(chosen, p["windows"], len(tokens.train), p["seed"], difficulty_N)


def weighed(
    this: Run, chosen: hard_set.HardSet, rows_K: np.ndarray, tokens: data.Tokens, net: Llama,
    teacher: Llama,
) -> data.Tokens:  # fmt: skip
    """The tokens, with weights beside them where only a share of a window's tokens counts: that of
    the parameter `token_share`, or the one in the choice."""
    share = this.parameters["token_share"] or chosen.token_share
    if share == 1 or this.current:
        return tokens
    path = this.path("checkpoints", this.run, "weights.bin")
    with files.replacing(path) as beside:
        weights = data.weighted(tokens, beside, new=True).train.weights
        hard_set.weigh(net, teacher, tokens.train, rows_K, share, weights, this.device,
                       this.progress)  # fmt: skip
        weights.flush()
    return data.weighted(tokens, path)


def choice_in_words(this: Run, chosen: hard_set.HardSet) -> str:
    """How the hard set of 03 was chosen."""
    if this.parameters["share"] is None:
        return choice_in_force(this.path(this.parameters["hard_set"]), chosen)
    return (
        f"The hardest {chosen.share:.1%} by `share`, {chosen.threshold:.4f} nats and more; what 02 "
        "chose is not used."
    )


def choice_in_force(path: Path, chosen: hard_set.HardSet) -> str:
    """Which hard set 03 will read, in words, where it is not the parameters' own too."""
    words = json.loads(path.read_text(encoding="utf8")).get("words", "a choice made elsewhere")
    if np.array_equal(choice.load(path).windows_K, chosen.windows_K):
        return f"In force, for 03: {words}."
    return (
        f"**In force, for 03: {words}.** The figures above show the parameters' choice: "
        f"{len(chosen.windows_K):,} windows, {chosen.threshold:.4f} nats and more."
    )


def difficulty_in_words(scores: hard_set.Scores) -> str:
    """How difficulty goes with loss."""
    d_N, teacher_N = scores.difficulty_N, scores.teacher_loss_N
    known_N = np.isfinite(d_N)
    own, gap = (
        np.corrcoef(x[known_N], teacher_N[known_N])[0, 1] for x in (scores.student_loss_N, d_N)
    )
    return (
        f"Half of the windows lie above {np.median(d_N[known_N]):+.3f} nats. The student's loss "
        f"has a correlation of {own:.2f} with its teacher's; difficulty, of {gap:+.2f}."
    )


def hard_set_finding(
    base: str, short: dict, chosen: hard_set.HardSet, difficulty_N: np.ndarray
) -> str:
    """How much of what was lost the hard set holds."""
    hard_N, lost_N = choice.hard(chosen, difficulty_N), choice.lost(difficulty_N)
    held = lost_N[hard_N].sum() / (lost_N.sum() or 1)
    share = hard_N.sum() / max(1, np.isfinite(difficulty_N).sum())
    said = (
        f"The hardest {share:.1%} of the windows ({chosen.threshold:.3f} nats and more) hold "
        f"{held:.0%} of what {base} lost; the plan's claim is most of it."
    )
    said += f" {chosen.easy:,} easy windows are mixed in." if chosen.easy else ""
    if (better := short["student_better"]) > 0.5:
        return f"{base} is BETTER than its teacher on {better:.0%} of windows. {said}"
    return said


def trainable(this: Run, net: Llama) -> int:
    """Freeze the base and put the adapter beside it, or, where `trains` is "weights", let the base
    itself train. Returns how many weights do."""
    p = this.parameters
    if p["trains"] == "adapter":
        targets = lora.TARGETS if p["targets"] == "all" else tuple(p["targets"].split())
        lora.attach(net, p["rank"], p["lora_scale"], targets, seed=p["seed"])
    else:
        net.requires_grad_(True)
    return sum(w.numel() for w in net.parameters() if w.requires_grad)


def replay_recipe(this: Run, chosen: hard_set.HardSet, tokens: data.Tokens) -> train.Recipe:
    """03's recipe: at the temperature of the run that made the base unless another is given, and
    for as many steps on all windows as on the hard ones."""
    p = this.parameters
    limit = round(p["epochs"] * len(chosen.windows_K)) * tokens.context
    if p["windows"] != "all" or 0 < p["token_limit"] < limit:
        limit = p["token_limit"]
    softened = temperature_of(this, p["base"]) if p["temperature"] is None else p["temperature"]
    return train.recipe(p | {"temperature": softened, "token_limit": limit})


def temperature_of(this: Run, base: str) -> float:
    """The temperature of the run that made a model; of one trained on by 03, that of its base."""
    for record in folder_of(this).makers(base):
        if "temperature" in (p := record["parameters"]):
            given = p["temperature"]
            return temperature_of(this, p["base"]) if given is None else float(given)
    raise ValueError(f"no results file of {this.out} says how {base} was made: set temperature")


def saved(this: Run, net: Llama, tokens: data.Tokens) -> Llama:
    """What 03 trained, saved (the adapter alone, or the whole model) and read back."""
    p = this.parameters
    if p["trains"] == "weights":
        return _saved(this, "saved", p["adapter"], net, tokens)
    folder = this.path("adapters", p["adapter"])
    this.once("saved", lora.save, net, folder, f"models/{p['base']}")
    return lora.load(Llama.load(this.path("models", p["base"]), this.device), folder)


@torch.no_grad()
def merge(this: Run, adapter: str, base: str, tokens: data.Tokens, teacher: Llama) -> dict:
    """models/<adapter>-merged: base and adapter as one model, measured like every other. Returns
    what merging changed: weights, and the largest logit difference on some validation windows; and
    what storing the weights as bfloat16 would change."""
    name, folder = f"{adapter}-merged", this.path("models", f"{adapter}-merged")
    net = lora.load(Llama.load(this.path("models", base), this.device),
                    this.path("adapters", adapter))  # fmt: skip
    ids_BT, _ = tokens.val.batch(evaluate.fixed_rows(tokens.val, 8), this.device)
    apart_BTV, halved = net(ids_BT), _stored_as_bfloat16(net)
    this.once(f"saved {name}", save, lora.merge(net), folder, tokens)
    net = Llama.load(folder, this.device)
    row = measure(this, name, net, tokens, teacher)
    return {
        "weights": f"{row['parameters']:,}",
        "weights of the base": f"{row_of(this, base)['parameters']:,}",
        "largest logit difference": f"{float((net(ids_BT) - apart_BTV).abs().max()):.1e}",
        "of logits up to": f"{float(apart_BTV.abs().max()):.3g}",
    } | this.once(f"drift of {name}", drift, net, halved, tokens, this.device)


def _stored_as_bfloat16(net: Llama) -> Llama:
    """A copy with its weights rounded; the tables of RoPE, which no file holds, as they are."""
    net = copy.deepcopy(net)
    for weight in net.parameters():
        weight.data = weight.bfloat16().float()
    return net


def drift(net: Llama, halved: Llama, tokens: data.Tokens, device: str) -> dict[str, str]:
    """What storing weights as bfloat16 changes against the merged model in float32, on some fixed
    windows: of the merged model, and of base and adapter side by side (`halved`). All is computed
    in float32, so that only the storage differs."""
    rows, stored = evaluate.fixed_rows(tokens.val, 64), _stored_as_bfloat16(net)
    own, _ = evaluate.apart(net, net, tokens.val, rows, device)
    changes = {}
    for name, model in (("bf16 merged", stored), ("bf16 base + adapter", halved)):
        loss, kl = evaluate.apart(model, net, tokens.val, rows, device)
        changes |= {f"{name}: loss": f"{loss - own:+.1e}", f"{name}: KL": f"{kl:.1e}"}
    return changes


def models_of(this: Run) -> list[str]:
    """Every model the folder's results name, largest first; merged models for their adapters."""
    folder = folder_of(this)
    names = [name for record in folder.records.values() for name in record["models"]]
    names = dict.fromkeys([*names, *this.models, *folder.points])
    names = [name for name in names if name not in folder.adapters]
    return sorted(names, key=lambda name: (-row_of(this, name)["parameters"], name))


def window_losses(this: Run, names: list[str]) -> dict[str, np.ndarray]:
    """Each model's loss of every validation window, as its own run left it."""
    places = {name: folder_of(this).place(name) for name in names}
    paths = {name: out / f"scores/val/{model}.npy" for name, (out, model) in places.items()}
    losses = {name: np.load(path) for name, path in paths.items()}
    masked_N = np.isnan(list(losses.values())).all(0)  # without a target, for every model
    for name, loss_N in losses.items():
        if not np.isfinite(loss_N[~masked_N]).all():
            raise ValueError(f"{paths[name]} holds losses that are not finite: {hard_set.BROKEN}")
    return losses


def sweep_rows(
    this: Run, sweep: str, losses: dict, hard_N: np.ndarray, document_N: np.ndarray, base: str
) -> list[dict]:
    """A row a model of a sweep: what varies, its loss, its differences from the base on all, hard
    and easy text with their intervals, KL and minutes."""
    rows, parts = [], {"all": np.ones_like(hard_N), "hard": hard_N, "easy": ~hard_N}
    for name, point in folder_of(this).points.items():
        if point.sweep != sweep:
            continue
        row = {"point": name, "varied": point.varied, "parameters": point.record["parameters"],
               "loss": point.metrics["loss"], "kl": point.metrics["kl"],
               "minutes": point.record["seconds"] / 60}  # fmt: skip
        for part, at_N in parts.items():
            pair = (losses[name][at_N], losses[base][at_N], document_N[at_N])
            row[part] = evaluate.change(*pair, this.parameters["resamples"])
        rows.append(row)
    return rows


def show_sweep(this: Run, sweep: str, rows: list[dict]) -> None:
    """A sweep's table and figure, and, where settings have several seeds, those together."""
    notebook = sweeps.listed(this.out, sweep)["notebook"]
    this.table(f"sweep-{sweep}", tables.sweep(rows, notebook))
    names = {name for row in rows for name in row["varied"]}
    hints = {name: hint for name in names if (hint := tables.hint(notebook, name))}
    this.figure(
        f"sweep-{sweep}", plots.sweep(rows, hints),
        alt=f"Difference from the base at every point of the sweep {sweep}, by setting",
    )  # fmt: skip
    varied = names - {"seed"}
    if len(varied) > 1 and varied <= {"share", "rank", "lora_scale"}:
        full = [row | {"varied": {n: row["parameters"][n] for n in varied}} for row in rows]
        this.figure(
            f"sensitivity-{sweep}", plots.sensitivity(full, hints),
            alt="Loss on hard and on easy text by share, rank and scale, against the base",
        )  # fmt: skip
    if len(together := tables.seeds(rows)):
        this.table(f"sweep-{sweep}-seeds", together)


def sweep_in_words(sweep: str, rows: list[dict], base: str) -> str:
    """The best point of a sweep, with its interval."""
    if not rows:
        return f"No point of the sweep {sweep} is done."
    best = min(rows, key=lambda row: row["loss"])
    return (
        f"Of {len(rows)} models of the sweep {sweep}, {best['point']} has the lowest loss: "
        f"{tables.with_interval(*best['all'])} against {base}, and that flatters the best of many."
    )


def resample(
    losses: dict[str, np.ndarray], document_N: np.ndarray, resamples: int, seed: int
) -> dict[str, np.ndarray]:
    """Bootstrapped mean losses of all models over the same documents, {name: (resamples,)}."""
    losses_KN = np.stack(list(losses.values())).astype(np.float64)
    means_RK = evaluate.resampled_means(losses_KN, document_N, resamples, seed)
    return dict(zip(losses, means_RK.T, strict=True))


def difference(this: Run, one: str, other: str, tokens: data.Tokens, resamples: int) -> dict:
    """Loss of `one` minus loss of `other`, with its interval over documents."""
    losses = window_losses(this, [one, other])
    resampled = resample(losses, tokens.documents("val")[0], resamples, this.parameters["seed"])
    low, high = evaluate.interval(resampled[one] - resampled[other])
    known_N = ~np.isnan(list(losses.values())).any(0)
    means = {name: float(loss_N[known_N].mean()) for name, loss_N in losses.items()}
    return {
        "losses": means, "intervals": {n: evaluate.interval(r) for n, r in resampled.items()},
        "difference": means[one] - means[other], "low": low, "high": high,
        "masked": int((~known_N).sum()), "windows": len(known_N),
    }  # fmt: skip


def difference_in_words(one: str, other: str, d: dict) -> str:
    """That `one` is better or worse than `other`, or not clearly different, with the interval."""
    size = tables.with_interval(d["difference"], d["low"], d["high"])
    how = "is better than" if d["high"] < 0 else "is not clearly different from"
    how = "is WORSE than" if d["low"] > 0 else how
    left_out = f"; {d['masked']:,} of {d['windows']:,} windows have no target and are left out"
    return f"{one} {how} {other}: {size} nats, one seed{left_out if d.get('masked') else ''}."


def hard_windows(losses: dict, picked_by: str, teacher: str, share: float) -> np.ndarray:
    """Which validation windows are hard, (N,) bool: where `picked_by` fell furthest behind, the
    share of those that have a target."""
    difficulty_N = losses[picked_by] - losses[teacher]  # NaN, masked whole, is never hard
    return difficulty_N >= choice.made(difficulty_N, {"share": share}).threshold


def side_by_side(
    this: Run, names: list[str], tokens: data.Tokens, new: int, seed: int, beginnings: int = 20
) -> dict[str, dict]:
    """Per model one generated text and how much twenty of them repeat themselves."""
    t, rows = tokens.context, evaluate.fixed_rows(tokens.val, beginnings)
    prompts = [tokens.val.ids[i * t :][:8].tolist() for i in rows]
    columns = {}
    for name in names:
        net = Llama.load(this.path("models", name), this.device)
        texts = [generate.generate(net, ids, min(new, t - 8), temperature=0.8, seed=seed + i)
                 for i, ids in enumerate(prompts)]  # fmt: skip
        first = tokens.tokenizer.decode(prompts[0] + texts[0])
        columns[name] = {"text": first} | generate.repetition(texts)
    return columns


def kept_and_lost(
    this: Run, names: list[str], tokens: data.Tokens, judged: list[str]
) -> tuple[list[dict], list[dict]]:
    """By kind of token, on the fixed windows, rows for tables and plots: every model's loss; and
    the change of the `judged` against the base, with intervals."""
    arrays = {name: np.load(this.path("scores", "val", f"{name}.npz")) for name in names}
    rows_M, base = arrays[names[0]]["rows_M"], this.parameters["base"]
    losses = {name: array["token_loss_MT"] for name, array in arrays.items()}
    labels, document_M = evaluate.cuts(tokens, rows_M), tokens.documents("val")[0][rows_M]
    some = {name: losses[name] for name in [base, *judged]}
    won = evaluate.won_back(some, labels, base, document_M, this.parameters["resamples"])
    return evaluate.kept_and_lost(losses, labels), won


def calibrations(this: Run, names: list[str]) -> dict[str, dict]:
    """Per model its bins of confidence, accuracy and share."""
    arrays = {name: np.load(this.path("scores", "val", f"{name}.npz")) for name in names}
    keys = ("confidence", "accuracy", "share")
    return {name: {k: array[k].tolist() for k in keys} for name, array in arrays.items()}


def arms_of(this: Run) -> dict[str, verdict.Arm]:
    """Every trained model of the folder and of the sweeps that are named, and how it was made."""
    folder = folder_of(this)
    points = {label: (point.model, point.record) for label, point in folder.points.items()}
    return verdict.arms(folder.records.values(), points)


def trial(
    this: Run, losses: dict[str, np.ndarray], hard_N: np.ndarray, document_N: np.ndarray
) -> verdict.Trial:
    """What the verdict reads."""
    names = ("base", "scratch", "teacher", "picked_by", "resamples")
    given = {name: this.parameters[name] for name in names}
    return verdict.Trial(arms_of(this), losses, hard_N, document_N, **given)


def made(this: Run, tokens: data.Tokens) -> dict[str, dict[str, str]]:
    """What each model is and what it cost, for the quality table."""
    arms = arms_of(this)
    return {
        name: {"made": arms[name].kind()}
        | {f"{what}, FLOP": f"{n:.2g}" if n else "–" for what, n in spent.items()}
        for name, spent in costs(this, tokens).items()
    }


def costs(this: Run, tokens: data.Tokens) -> dict[str, dict[str, float]]:
    """FLOP of every model: of its own training (with its base's), of its teachers' forwards, and of
    scoring the windows where it replays scores."""
    folder, arms, rows = folder_of(this), arms_of(this), {}
    shorts = (record["remembered"].get("short") for record in folder.of("02_hard_set"))
    short = next(filter(None, shorts), {"windows": 0})
    scored = short["windows"] * short.get("scored", 1) * tokens.context
    for name, arm in arms.items():
        training, teacher = _flop(folder, arm, arms, tokens)
        rows[name] = {"training": training, "teacher": teacher, "scoring": 0.0}
        if arm.base and arm.windows in ("hard", "easiest"):
            shapes = [folder.shape(model) for model in (arm.base, arm.p["teacher"])]
            forward = sum(cost.forward_flop(shape, tokens.context) for shape in shapes)
            rows[name]["scoring"] = scored * forward
    return rows


def _flop(folder: Folder, arm: verdict.Arm, arms: dict, tokens: data.Tokens) -> tuple:
    """FLOP of training an arm and of its teachers' forwards, those of what it began from too."""
    p, context = arm.p, tokens.context
    config = folder.shape(arm.base if arm.adapter else arm.name)
    flop = cost.step_flop(config, None, context, frozen=arm.adapter)
    flop += 6 * cost.adapter_parameters(config, p["rank"]) if arm.adapter else 0
    middle = arm.notebook == "05_progressive" and arm.name.endswith("75m")
    by, asked = arm.name.removesuffix("75m") + "150m" if middle else "", 0.0
    if p.get("ce_weight", 1) < 1:  # 00 has no such parameter
        read = p.get("distinct_tokens") or len(tokens.train.ids)
        seen = min(arm.tokens, read) if p.get("cached_draws") else arm.tokens
        asked = seen * cost.forward_flop(folder.shape(by or p["teacher"]), context)
    before = arms.get(by or arm.base)
    rest = _flop(folder, before, arms, tokens) if before else (0.0, 0.0)
    return arm.tokens * flop + rest[0], asked + rest[1]


def to_run(this: Run, name: str, rows: list[dict]) -> str:
    """Commands that run a model's 4-bit file."""
    file = next(row["file"] for row in rows if row["format"] == "Q4_0")
    path = parameters.shown(this.path("exports", name, file))
    return f"make chat MODEL={path}\nllama-cli -m {path} -p 'తెలుగు'   # llama.cpp's own program"


def written(write: dict, tokens: data.Tokens, prompt: list[int], new: int) -> dict[str, str]:
    """One text a way, after the same beginning."""
    return {
        way: tokens.tokenizer.decode([*prompt, *each(prompt, new)]) for way, each in write.items()
    }


def speeds(
    write: dict, prompt: list[int], new: int, repeats: int, threads: list[int]
) -> list[dict]:
    """Every way with each number of threads."""
    return [row for n in threads for row in inference.speeds(write, prompt, new, repeats, n)]


def speed_finding(name: str, shipped: list[dict], rows: list[dict], costs: list[dict]) -> str:
    """The 4-bit file in one sentence: bytes, tokens a second, and what it costs."""
    file, cost = (next(row for row in some if row["format"] == "Q4_0") for some in (shipped, costs))
    by = {row["way"]: row["decode"] for row in rows if row["threads"] == 1}
    return (
        f"{name} as Q4_0 is {file['bytes'] / 1e6:.3g} MB and writes {by['Q4_0']:,.0f} tokens a "
        f"second on one thread, {by['Q4_0'] / by[inference.RAW]:.1f} × plain PyTorch; 4 bits cost "
        f"{cost['loss'] - costs[0]['loss']:+.4f} nats."
    )
