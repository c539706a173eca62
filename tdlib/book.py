"""What the notebooks share: the steps of a run, and what a run folder holds, as plain calls.

`this` is the `runs.Run` of the notebook that asks. Training, loss and hard set are below, in their
own modules; here they are only put together, recorded, and said in words computed from numbers.
"""

import contextlib
import copy
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
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
    shapes,
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
from tdlib.model import Llama, LlamaConfig
from tdlib.parameters import ROOT, texts
from tdlib.runs import Run, peak_memory_mib, write
from tdlib.teacher import cut_spare_rows

SUBSET = 64  # validation windows looked at during training


def opened(this: Run) -> data.Tokens:
    """The folder's tokens; and says what this run will cost, which is kept to be compared."""
    tokens = data.open_tokens(this.path("tokens"))
    found = this.once("estimate", plan.estimate, this.parameters, this.out, this.device)
    span = units.duration(found["seconds_low"], found["seconds_high"])
    print(
        f"Estimated: {span}, {found['peak_memory_mib']:,.0f} MiB at most, {found['flop']:.2g} FLOP."
    )
    return tokens


# --- 00: text and teacher


def text_into_tokens(this: Run, teacher: Llama | None) -> tuple[str, str]:
    """`prepare`'s summary, and what the finding must say of text that is missing; both are kept,
    with the account."""
    account = text.Account()
    summary = this.once("text", prepare, this.parameters, this.path("tokens"), teacher, account)
    kept = vars(account) | {"told": account.notes(), "missing": account.missing()}
    return summary, this.once("account", lambda: kept)["missing"]


def prepare(
    p: dict, folder: Path, teacher: Llama | None = None, account: text.Account | None = None
) -> str:
    """Text (given, or written) → split, tokenizer, tokens in `folder`; or token files used as they
    are. `p` are 00's parameters, `teacher` is the one given, `account` is told what was read.
    Returns a summary for the reader."""
    given = tokenizer.open(p["tokenizer"], p["segmenter"]) if p["tokenizer"] else None
    size = _fits(p, teacher)
    if p["tokens"]:
        return _linked(p, folder, given, size, teacher)
    cut = cut_spare_rows(teacher, given.size) if given and teacher else ""
    size = given.size if cut else size
    if given and size > given.size:
        raise ValueError(
            f"the vocabulary of {p['teacher']} is {size:,}, {given.path} has {given.size:,} "
            "pieces: give the tokenizer that the teacher was made with"
        )
    rares, account = [], text.Account() if account is None else account
    if p["text"]:
        documents = text.read(texts(p["text"]), account)
    else:
        documents, rares = telugu.write(p["text_characters"], p["text_seed"])
    rare = rare_lines(documents, rares)
    documents = text.section(documents, p["section_characters"])
    groups_N = text.near_duplicates(documents)
    sides = text.split(
        documents, groups_N, val_share=p["val_share"], confirm_share=p["confirm_share"],
        seed=p["split_seed"],
    )  # fmt: skip
    splits = {
        side: [d for d, s in zip(documents, sides, strict=True) if s == side]
        for side in ("train", "val", *(["confirm"] if p["confirm_share"] else []))
    }
    lines = (line for d in splits["train"] for line in d.lines)
    with tempfile.TemporaryDirectory() as place:
        made = given or tokenizer.train(lines, p["vocab_size"], Path(place, "model"))
        data.write_tokens(folder, splits, made, p["context"], rare, size)
    tokens = data.open_tokens(folder)
    sources = sorted({d.source for d in documents})
    known = f" Rare constructions, at known places: {len(rares):,} sentences." if rares else ""
    read = f"{account} " if p["text"] else ""
    return (
        f"{read}{len(documents):,} documents (long works cut into sections) from "
        f"{len(sources)} sources: "
        f"{', '.join(sources[:12])}. {len(set(groups_N.tolist())):,} groups after near-duplicates "
        f"are put together. Training: {tokens.meta['train_tokens']:,} tokens, "
        f"{len(tokens.train):,} windows of {tokens.context}; validation: "
        f"{tokens.meta['val_tokens']:,} tokens, {len(tokens.val):,} windows. Vocabulary "
        f"{tokens.vocab_size:,}; {tokens.bytes_per_token():.2f} bytes a token."
        f"{known}{cut and f' {cut}'}{data.loss(tokens.meta)}"
    )


def rare_lines(
    documents: list[text.Document], rares: list[telugu.Rare]
) -> dict[str, dict[str, str]]:
    """The lines with a rare construction → its sentence → its kind, as data.write_tokens takes
    them. By line, since sections and splits move lines about and never cut one."""
    lines = {}
    for rare in rares:
        line = documents[rare.document].lines[rare.line]
        lines.setdefault(line, {})[rare.text] = rare.kind
    return lines


def _fits(p: dict, teacher: Llama | None) -> int:
    """The vocabulary of the teacher that was given, 0 without one. Refused where its context is
    shorter than the windows."""
    if teacher is None:
        return 0
    if teacher.config.context < p["context"]:
        raise ValueError(
            f"the context of {p['teacher']} is {teacher.config.context:,}, the windows' is "
            f"{p['context']:,}: give a shorter context"
        )
    return teacher.config.vocab_size


def _linked(
    p: dict, folder: Path, given: tokenizer.Tokenizer | None, size: int, teacher: Llama | None
) -> str:
    source = Path(p["tokens"])
    known = given or data.open_tokens(source, p["context"]).tokenizer
    if known is None:
        raise FileNotFoundError(
            f"{source / 'tokenizer.model'} is not there: put the tokens' tokenizer there (.model, "
            "or tokenizer.json), or give it as tokenizer"
        )
    theirs = data.read_meta(source / "meta.json", p["context"])
    pieces, masks = theirs["vocab_size"], masks_in_words(data.open_tokens(source, p["context"]))
    cut = cut_spare_rows(teacher, pieces) if teacher and known.size <= pieces else ""
    size = pieces if cut else size
    if size > pieces:
        raise ValueError(
            f"the vocabulary of {p['teacher']} is {size:,}, the tokens' is {pieces:,}: give the "
            "tokens or the tokenizer that the teacher was made with"
        )
    data.link_tokens(
        source, folder, tokenizer=given, vocab_size=size, context=p["context"],
        every_id=p["check_every_id"],
    )  # fmt: skip
    tokens = data.open_tokens(folder)
    said = [
        f"Token files used as they are: `{p['tokens']}`, nothing copied. Training: "
        f"{len(tokens.train.ids):,} tokens, {len(tokens.train):,} windows of {tokens.context}; "
        f"validation: {len(tokens.val.ids):,} tokens, {len(tokens.val):,} windows. Tokenizer: "
        f"{tokens.tokenizer.kind}, {tokens.tokenizer.size:,} pieces."
    ]
    if theirs.get("block_size", tokens.context) != tokens.context:
        said.append(f"Their block_size of {theirs['block_size']:,} is not used, `context` is.")
    said += [masks] if masks else []
    if tokens.vocab_size < tokens.tokenizer.size:
        said.append(
            f"The teacher's vocabulary is {tokens.vocab_size:,}: the tokenizer's last "
            f"{tokens.tokenizer.size - tokens.vocab_size:,} pieces occur nowhere in the tokens."
        )
    return " ".join([*said, *filter(None, [cut])])


def masks_in_words(tokens: data.Tokens) -> str:
    """How many windows the masks beside the tokens leave without a target; "" without one.
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
    said = (
        f"Loaded from `{path}`: {c.layers} layers, {c.heads} heads ({c.kv_heads} of keys), width "
        f"{c.dim}, MLP {c.mlp_dim}, vocabulary {c.vocab_size:,}, context {c.context:,}."
    )
    rows = f" The last {cut:,} rows of its embedding were zeros, padding, and are cut."
    return said + (rows if cut else "")


def imported(this: Run, model: Llama, tokens: data.Tokens) -> list[dict]:
    """A teacher made elsewhere, saved as models/teacher; its log is one point."""
    model.config = replace(model.config, eos_id=tokens.eos)
    this.once("saved", save, model, this.path("models", "teacher"), tokens)
    loss = evaluate.on_subset(tokens.val, SUBSET, this.device)(model)
    return this.once("log", lambda: [{"step": 0, "tokens": 0} | loss])


# --- 01, 03, 05: training and measuring


@contextlib.contextmanager
def targets(
    this: Run, teacher: Llama, tokens: data.Tokens, temperature: float, fill: bool = True,
    name: str = "teacher",
):  # fmt: skip
    """Where a training's targets come from: the teacher itself, or, by `cached_draws`, a cache that
    all runs of the folder share, one for each teacher's name and temperature. Without `fill`, only
    one that is there."""
    draws = this.parameters.get("cached_draws", 0)
    folder = this.out / "cache" / cache.name(name, temperature, draws, 1)
    borrowed = sweeps.parent(this.out) is not None  # a sweep's point reads, and never writes
    if not draws or not ((fill and not borrowed) or folder.exists()):
        yield teacher
        return
    windows, v = tokens.train, len(teacher.head)
    mib = cache.size(len(windows), tokens.context, draws, v) / 2**20
    print(
        f"Targets of the teacher at T {temperature:g}, {draws} a token: {mib:,.1f} MiB in {folder}"
    )
    with cache.Cache(folder, teacher, windows, temperature=temperature, draws=draws) as kept:
        kept.full = borrowed
        print(f"{int(kept.valid.sum()):,} of {len(windows):,} windows are there already")
        yield kept


def fit(
    this: Run, name: str, net: Llama, tokens: data.Tokens, recipe, teacher, rows=None,
    kept_as: str = "teacher",
):  # fmt: skip
    """`train.fit` with this run's progress, checkpoint, validation and log, in as many `processes`
    as the parameter says; its rows, or the kept ones. `kept_as` names its teacher in the cache;
    one without a name is always asked anew."""
    processes = this.parameters.get("processes", 1)

    def trained() -> list[dict]:
        asked = contextlib.nullcontext(teacher)
        if recipe.ce_weight < 1 and kept_as:
            asked = targets(this, teacher, tokens, recipe.temperature, name=kept_as)
        p, folder = this.parameters, this.path("checkpoints", this.run, name)
        config = {n: value for n, value in p.items() if n not in hashes.VOLATILE}
        board = (p.get("wandb"), this.out, f"{this.run} {name}", folder, config)
        told = (p.get("after_checkpoint"), folder, ROOT, lambda: this.told(folder))
        with asked as source, hooks.beside(*told), dashboard.logging(*board) as send:
            keep, latest = _log(this, name, net, teacher, tokens.context, recipe, send), [""]

            def record(row: dict) -> None:
                latest[0] = f"loss {row['train/loss']:.3f} · " if "train/loss" in row else ""
                keep(row)

            def progress(step: int, steps: int, message: str) -> None:
                this.progress(step, steps, latest[0] + message)

            how = dict(
                teacher=source, rows=rows, device=this.device, progress=progress, record=record,
                folder=folder,
            )  # fmt: skip
            if processes > 1:
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
    """Keeps rows as logs/<run>-<name>.jsonl under upstream's names, with the share of what this
    machine's matrix products reach, and memory; and sends them. A resumed training writes its own
    rows again."""
    path = this.path("logs", f"{this.run}-{name}.jsonl")
    online = recipe.ce_weight < 1 and not this.parameters.get("cached_draws")
    asked = teacher.config if online else None
    flop = cost.step_flop(net.config, asked, context, frozen=bool(lora.adapters(net)))
    peak = None

    def record(row: dict) -> None:
        nonlocal peak
        gpus = this.parameters.get("processes", 1) if "cuda" in this.device else 1
        peak = peak or cost.peak_flop(this.device) * gpus
        speed = row.get("train/tokens_per_sec")
        row = row | ({"train/peak_share": speed * flop / peak} if speed else {})
        row = {"train/peak_memory_mib": peak_memory_mib()} | row  # a worker tells its own
        send(row)
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] < row["step"]]
        with contextlib.suppress(OSError):  # a disk that is full for a minute ends no training
            write(path, "\n".join([*kept, json.dumps(row, ensure_ascii=False), ""]))

    return record


def student(
    this: Run,
    name: str,
    config: LlamaConfig,
    tokens: data.Tokens,
    recipe,
    teacher: Llama | None,
    kept_as: str = "teacher",
) -> tuple[Llama, list[dict]]:
    """Train a model, save it as models/<name> and read it back, so that what is measured is what
    was saved. Where the run is finished, only read it back. It begins with random weights, or, by
    the parameter `init`, with slices of its teacher's; the fold `left_out` is not read, and of
    the rest only `distinct_tokens`, if given: what a shorter training of this seed begins with."""
    torch.manual_seed(recipe.seed)
    config = replace(config, eos_id=tokens.eos)
    if this.parameters.get("init") == "teacher":
        looked_at = max(8, 2**13 // tokens.context)  # windows: some 8,000 to 16,000 tokens
        net = start.from_teacher(teacher, config, tokens.train, count=looked_at, device=this.device)
    else:
        net = Llama(config).to(this.device)
    left_out = this.parameters.get("left_out")
    rows = np.flatnonzero(~tokens.fold(left_out)) if left_out else None
    if distinct := this.parameters.get("distinct_tokens"):
        rows = np.arange(len(tokens.train)) if rows is None else rows
        once = replace(recipe, epochs=1.0, token_limit=distinct)
        rows = np.concatenate(train.order(rows, once, tokens.context))
    log = fit(this, name, net, tokens, recipe, teacher, rows, kept_as)
    if this.notebook == "00_teacher":
        log[-1] |= this.once("stopped", stop_on_validation, this, name, net, tokens)
    folder = this.path("models", name)
    this.once(f"saved {name}", save, net, folder, tokens)
    return Llama.load(folder, this.device).eval().requires_grad_(False), log


def stop_on_validation(this: Run, name: str, net: Llama, tokens: data.Tokens) -> dict:
    """Give a trained model the weights of that epoch's end which validates best; a longer training
    may end worse than it was. Returns the loss on the fixed windows at each."""
    rows = evaluate.fixed_rows(tokens.val, this.parameters["fixed_windows"])

    def loss() -> float:
        return hard_set.known_mean(hard_set.window_loss(net, tokens.val, rows, this.device))

    ends = sorted(this.path("checkpoints", this.run, name).glob("epoch-*.safetensors"))
    last = {key: weight.clone() for key, weight in net.state_dict().items()}
    found = {"the end": loss()}
    for path in ends:
        net.load_state_dict(load_file(path, device=this.device))
        found[path.stem] = loss()
    best = min(found, key=found.get)
    by = {path.stem: path for path in ends}
    net.load_state_dict(load_file(by[best], device=this.device) if best in by else last)
    return {"kept": best, "at_epochs": found}


def stop_in_words(log: list[dict]) -> str:
    """Which weights of the teacher's training were kept, in a sentence."""
    last = log[-1]
    losses = ", ".join(f"{when} {loss:.3f}" for when, loss in last["at_epochs"].items())
    return f"Stopped on validation: the weights of {last['kept']} are kept ({losses})."


def curve(log: list[dict]) -> dict[str, list[float]]:
    """A training log as plots.learning_curves takes it."""
    return {"tokens": [r["tokens"] for r in log], "loss": [r["val/loss"] for r in log]}


def logs_beside(this: Run, name: str, log: list[dict], beside: str) -> dict[str, list[dict]]:
    """The log of a student, and before it that of another one that this folder holds, if named."""
    others = [r["remembered"].get(f"log of {beside}") for r in results_of(this).values()]
    if beside and not any(others):
        raise ValueError(f"no results file of {this.out} trained {beside}: correct beside")
    return {beside: next(filter(None, others)), name: log} if beside else {name: log}


def reached_in_words(logs: dict[str, list[dict]]) -> str:
    """When the last curve came to where the first one ends; "" for one curve alone."""
    if len(logs) < 2:
        return ""
    (other, first), *_, (name, own) = logs.items()
    last = first[-1]["val/loss"]
    at = next((row["tokens"] for row in own if row["val/loss"] <= last), None)
    if at is None:
        return f" {name} never came to the {last:.3f} where {other} ends."
    share = f"{at / own[-1]['tokens']:.0%} of its training" if at else "its first step"
    return (
        f" {name} was at the {last:.3f} where {other} ends {'after' if at else 'before'} {share}."
    )


def curve_in_words(logs: dict[str, list[dict]]) -> str:
    """What was seen in a figure of learning curves: where each began and ended, and whether its
    last part still fell."""
    said = []
    for name, log in logs.items():
        loss = [row["val/loss"] for row in log]
        line = f"{name}: {loss[0]:.3f} before the first step, {loss[-1]:.3f} after the last"
        if len(loss) > 2:
            line += f"; the last of {len(loss) - 1} parts changed it by {loss[-1] - loss[-2]:+.3f}"
            line += ", so more training would still help" if loss[-1] - loss[-2] < -0.03 else ""
        said.append(f"{line}.")
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
    adapter = p.get("adapter") == name and p.get("trains", "adapter") == "adapter"
    folder = this.path("adapters" if adapter else "models", name)
    if adapter:
        base = this.path("models", p["base"])
        text = release.adapter_card(folder, base, tokens, row, record, row_of(this, p["base"]))
    else:
        merged_from = [r for r in results_of(this).values()
                       if f"{r['parameters'].get('adapter')}-merged" == name]  # fmt: skip
        of = None if this.notebook == "00_teacher" else row_of(this, p["teacher"])
        text = release.card(folder, tokens, row, (merged_from or [record])[0], of)
    path = folder / "README.md"
    with contextlib.suppress(FileExistsError):  # the owner's own card stays
        files.own(path)
        write(path, text)
        files.sign(path)


def to_take_away(this: Run) -> str:
    """The folders that this run made, each with the command that would upload it."""
    folders = [this.out / kind / name for name in this.models for kind in ("models", "adapters")]
    lines = (release.upload_command(folder) for folder in folders if folder.is_dir())
    return "\n".join(["Nothing is sent. To upload, fill in the cards (README.md), then:", *lines])


def samples(net: Llama, tokens: data.Tokens, count: int = 3, length: int = 0) -> list[str]:
    """Texts after the beginnings of validation windows, the same for every model, half a window
    long. Drawn by a generator of their own: training draws the same numbers with and without."""
    beginnings = [
        tokens.val.ids[i * tokens.context :][:8] for i in (1, 5, 9)[:count] if i < len(tokens.val)
    ]
    texts, length = [], length or tokens.context // 2
    for i, ids in enumerate(beginnings):
        new = generate.generate(net, ids.tolist(), length, temperature=0.8, seed=i)
        begun, whole = (tokens.tokenizer.decode(x) for x in (ids, [*ids, *new]))
        texts.append(f"{begun} ▸ {whole[len(begun) :].strip()}")
    return texts


# --- 02: the hard set


def score(
    path: Path, net: Llama, teacher: Llama, windows: data.Windows, device, progress, limit: int = 0
) -> dict:
    """Score the training windows with both models into `path`, all or, spread evenly, those of some
    `limit` tokens; what came out, in short, and the share of the windows that was scored."""
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
    return f"{counts}; mean difficulty {short['mean']:+.3f} nats. Difficulty can be read as a lag."


def said_by_02(this: Run) -> str:
    """That sentence again, for what is built on difficulty, from the record of 02."""
    base = this.parameters["base"]
    for result in results_of(this).values():
        if result["notebook"] == "02_hard_set" and result["parameters"]["base"] == base:
            return does_difficulty_mean_anything(base, result["remembered"]["short"])
    return f"No record of 02 says on how many windows {base} is better than its teacher."


def coloured_texts(net: Llama, teacher: Llama, tokens: data.Tokens, device) -> Callable[[int], str]:
    """Window number → its text as HTML, each piece coloured by its own difference."""

    def text_of(window: int) -> str:
        ids_BT, targets_BT = tokens.train.batch([window], device)
        targets_T = targets_BT[0]
        each = [
            hard_set.token_losses(m, ids_BT, targets_BT)[0].cpu().numpy() for m in (net, teacher)
        ]
        known = targets_T != data.IGNORE
        pieces = tokens.tokenizer.pieces(targets_T[known].tolist())
        return widgets.text_html(pieces, (each[0] - each[1])[known.cpu().numpy()])

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
        found = data.weighted(tokens, beside, new=True)
        weights = found.train.weights
        hard_set.weigh(net, teacher, tokens.train, rows_K, share, weights, this.device,
                       this.progress)  # fmt: skip
        weights.flush()
    return data.weighted(tokens, path)


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


def saved(this: Run, net: Llama, tokens: data.Tokens) -> Llama:
    """What 03 trained, saved (the adapter alone, or the whole model) and read back."""
    p, base = this.parameters, this.path("models", this.parameters["base"])
    if p["trains"] == "adapter":
        folder = this.path("adapters", p["adapter"])
        this.once("saved", lora.save, net, folder, f"models/{p['base']}")
        return lora.load(Llama.load(base, this.device), folder)
    folder = this.path("models", p["adapter"])
    this.once("saved", save, net, folder, tokens)
    return Llama.load(folder, this.device).eval().requires_grad_(False)


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
    kept = choice.load(path)
    words = json.loads(path.read_text(encoding="utf8")).get("words", "a choice made elsewhere")
    if np.array_equal(kept.windows_K, chosen.windows_K):
        return f"In force, for 03: {words}."
    return (
        f"**In force, for 03: {words}.** The figures above show the parameters' choice: "
        f"{len(chosen.windows_K):,} windows, {chosen.threshold:.4f} nats and more."
    )


def difficulty_in_words(scores: hard_set.Scores, chosen: hard_set.HardSet) -> str:
    """What the figures of 02 show: how uneven difficulty is, and how it goes with loss."""
    d_N = scores.difficulty_N
    known_N = np.isfinite(d_N)
    hard_N = choice.hard(chosen, d_N)
    lost_N = choice.lost(d_N)
    held, share = lost_N[hard_N].sum() / (lost_N.sum() or 1), hard_N[known_N].mean()
    own, with_teacher = (
        np.corrcoef(x[known_N], scores.teacher_loss_N[known_N])[0, 1]
        for x in (scores.student_loss_N, d_N)
    )
    return (
        f"Half of the windows lie above {np.median(d_N[known_N]):+.3f} nats. The hardest "
        f"{share:.1%} begin at {chosen.threshold:+.3f} and hold {held:.0%} of all that the "
        f"student lost. Both models' losses have a correlation of {own:.2f}; difficulty and "
        f"teacher loss, of {with_teacher:+.2f}."
    )


def sources_in_words(by_source) -> str:
    """Which source holds more, and which less, than its share of the hard windows."""
    if len(by_source) < 2:
        return "All windows come from one source."
    ordered, overall = by_source["hard"].sort_values(), by_source["hard"]
    overall = (overall * by_source["windows"]).sum() / by_source["windows"].sum()
    least, most = ordered.index[0], ordered.index[-1]
    return (
        f"Most in {most}: {ordered.iloc[-1]:.1%} of its windows; least in {least}: "
        f"{ordered.iloc[0]:.1%}; {overall:.1%} of all."
    )


def cuts_in_words(by_cut: dict) -> str:
    """The two ends of each cut of tables.by_cut, beside all windows."""
    said = []
    for cut, table in by_cut.items():
        low, high = tables.ends(table)
        said.append(
            f"By {cut}, from {table.loc[low, 'hard']:.1%} ({low}) to {table.loc[high, 'hard']:.1%} "
            f"({high})."
        )
    every = next(iter(by_cut.values()))
    overall = every["hard windows"].sum() / every["windows"].sum()
    return " ".join([*said, f"Of all windows {overall:.1%} are hard."])


def hard_set_finding(base: str, short: dict, chosen: hard_set.HardSet) -> str:
    said = (
        f"{len(chosen.windows_K):,} windows ({chosen.share:.1%}) are at least "
        f"{chosen.threshold:.3f} nats harder for {base} than for its teacher."
    )
    if chosen.easy:
        said = f"{said[:-1]}, but for {chosen.easy:,} easy ones mixed in."
    if short["student_better"] > 0.5:
        return (
            f"{base} is BETTER than its teacher on {short['student_better']:.0%} of windows. {said}"
        )
    return said


# --- 03: what made the base


def temperature_of(this: Run, base: str) -> float:
    """The temperature of the run that made a model of this folder."""
    for result in results_of(this).values():
        if base in result["models"] and "temperature" in (p := result["parameters"]):
            # of a base trained on by 03, that of its own base
            found = p["temperature"]
            return float(temperature_of(this, p["base"]) if found is None else found)
    raise ValueError(f"no results file of {this.out} made {base}: set temperature")


# --- 04, 05: what a run folder holds


def results_of(this: Run) -> dict[str, dict]:
    """The records of the folder's other finished runs, by name, in the order of the book."""
    paths = sorted((this.out / "results").glob("*.json"))
    found = {p.stem: files.record(p, "parameters", "models") for p in paths}
    return {run: result for run, result in found.items() if run != this.run}


@dataclass(frozen=True)
class Swept:
    """A model of a sweep's point."""

    sweep: str
    out: Path  # the point's folder
    model: str  # its name in there
    varied: dict
    record: dict


def swept(this: Run) -> dict[str, Swept]:
    """The models of the finished points of the sweeps that 04 and 07 are told, by point; where two
    sweeps have points of one name, by sweep and point."""
    labelled: list[tuple[str, Swept]] = []
    for key, path in sweeps.results(this.out, this.parameters.get("sweeps", "")).items():
        _, name, point, *several = key.split("/")
        record = files.record(path, "parameters", "models")
        varied = sweeps.listed(this.out, name)["points"][point]
        for model in record["models"]:
            alone = len(record["models"]) == 1 and not several
            label = point if alone else f"{point} {model}"
            labelled.append((label, Swept(name, path.parents[1], model, varied, record)))
    times = Counter(label for label, _ in labelled)
    return {label if times[label] == 1 else f"{one.sweep}/{label}": one for label, one in labelled}


def row_of(this: Run, name: str) -> dict:
    """The metrics of a model, from this run, the one that made it, or a sweep's point."""
    if name in this.models:
        return this.models[name]
    for result in results_of(this).values():
        if name in result["models"]:
            return result["models"][name]
    if name in (points := swept(this)):
        return points[name].record["models"][points[name].model]
    raise ValueError(
        f"no results file of {this.out} names the model {name}: run what makes it first"
    )


def adapters_of(this: Run) -> dict[str, str]:
    """The folder's adapters → their base."""
    found = (r["parameters"] for r in results_of(this).values() if r["notebook"] == "03_lora")
    return {p["adapter"]: p["base"] for p in found if p.get("trains", "adapter") == "adapter"}


def merged(adapters: dict[str, str]) -> list[str]:
    return [f"{adapter}-merged" for adapter in adapters]


@torch.no_grad()
def merge(this: Run, adapter: str, base: str, tokens: data.Tokens, teacher: Llama) -> dict:
    """models/<adapter>-merged: base and adapter as one model, measured like every other. Returns
    what merging changed: weights, and the largest logit difference on some validation windows; and
    what storing the weights as bfloat16 would change."""
    name, folder = f"{adapter}-merged", this.path("models", f"{adapter}-merged")
    net = lora.load(Llama.load(this.path("models", base), this.device),
                    this.path("adapters", adapter))  # fmt: skip
    rows = evaluate.fixed_rows(tokens.val, 8)
    ids_BT, _ = tokens.val.batch(rows, this.device)
    apart_BTV, halved = net(ids_BT), _stored_as_bfloat16(net)
    this.once(f"saved {name}", save, lora.merge(net), folder, tokens)
    net = Llama.load(folder, this.device)
    row = measure(this, name, net, tokens, teacher)
    largest = float((net(ids_BT) - apart_BTV).abs().max())
    drifted = this.once(f"drift of {name}", drift, net, halved, tokens, this.device)
    return {
        "weights": f"{row['parameters']:,}",
        "weights of the base": f"{row_of(this, base)['parameters']:,}",
        "largest logit difference": f"{largest:.1e}", "of logits up to":
        f"{float(apart_BTV.abs().max()):.3g}",
    } | drifted  # fmt: skip


def _stored_as_bfloat16(net: Llama) -> Llama:
    """A copy with its weights rounded; the tables of RoPE, which no file holds, as they are."""
    net = copy.deepcopy(net)
    for weight in net.parameters():
        weight.data = weight.bfloat16().float()
    return net


def drift(net: Llama, halved: Llama, tokens: data.Tokens, device: str) -> dict[str, str]:
    """What weights stored as bfloat16 change against the merged model in float32, on some fixed
    windows: those of the merged model, and those of base and adapter side by side (`halved`). They
    are computed with in float32, so that it is the storage alone that tells."""
    rows, stored = evaluate.fixed_rows(tokens.val, 64), _stored_as_bfloat16(net)
    own, _ = evaluate.apart(net, net, tokens.val, rows, device)
    said = {}
    for name, model in (("bf16 merged", stored), ("bf16 base + adapter", halved)):
        loss, kl = evaluate.apart(model, net, tokens.val, rows, device)
        said |= {f"{name}: loss": f"{loss - own:+.1e}", f"{name}: KL": f"{kl:.1e}"}
    return said


def merged_in_words(checks: dict[str, dict]) -> str:
    """How many weights a merged model has, here and in the plan's shape."""
    if not checks:
        return "No adapter is here, so nothing was merged."
    plans = LlamaConfig(shapes.VOCABULARIES[0], **shapes.SHAPES["student-50m"]).parameters
    here = "; ".join(
        f"{name}-merged has {c['weights']}, its base {c['weights of the base']}"
        for name, c in checks.items()
    )
    return (
        f"Merging adds no weights: {here}. So the plan's merged model, in its shape and with its "
        f"51.8K vocabulary, has {plans / 1e6:.1f}M as its base has, not 55M."
    )


def models_of(this: Run) -> list[str]:
    """Every model the folder's results name, largest first; merged models for their adapters."""
    adapters = adapters_of(this)
    names = [name for r in results_of(this).values() for name in r["models"]] + list(this.models)
    names += swept(this)
    names = [name for name in dict.fromkeys(names) if name not in adapters]
    return sorted(names, key=lambda name: (-row_of(this, name)["parameters"], name))


def window_losses(this: Run, names: list[str]) -> dict[str, np.ndarray]:
    """Each model's loss of every validation window, as its own run left it."""
    points = swept(this)
    files = {
        name: points[name].out / "scores/val" / f"{points[name].model}.npy"
        if name in points
        else this.path("scores", "val", f"{name}.npy")
        for name in names
    }
    losses = {name: np.load(path) for name, path in files.items()}
    masked_N = np.isnan(list(losses.values())).all(0)  # without a target, for every model
    for name, loss_N in losses.items():
        if not np.isfinite(loss_N[~masked_N]).all():
            raise ValueError(f"{files[name]} holds losses that are not finite: {hard_set.BROKEN}")
    return losses


def sweep_rows(
    this: Run, sweep: str, losses: dict, hard_N: np.ndarray, document_N: np.ndarray, base: str
) -> list[dict]:
    """A row a model of a sweep: what varies, its loss, its differences from the base on all, hard
    and easy text with their intervals, KL and minutes."""
    rows = []
    for name, point in swept(this).items():
        if point.sweep != sweep:
            continue
        m, p = point.record["models"][point.model], point.record["parameters"]
        row = {"point": name, "varied": point.varied, "parameters": p, "loss": m["loss"],
               "kl": m["kl"], "minutes": point.record["seconds"] / 60}  # fmt: skip
        parts = {"all": np.ones_like(hard_N), "hard": hard_N, "easy": ~hard_N}
        for part, chosen_N in parts.items():
            pair = (losses[n][chosen_N] for n in (name, base))
            resamples = this.parameters["resamples"]
            row[part] = evaluate.change(*pair, document_N[chosen_N], resamples)
        rows.append(row)
    return rows


def show_sweep(this: Run, sweep: str, rows: list[dict]) -> None:
    """A sweep's table and figure, and, where settings have several seeds, those together."""
    notebook = sweeps.listed(this.out, sweep)["notebook"]
    this.table(f"sweep-{sweep}", tables.sweep(rows, notebook))
    hints = {name: tables.hint(notebook, name) for row in rows for name in row["varied"]}
    hints = {name: said for name, said in hints.items() if said}
    this.figure(
        f"sweep-{sweep}", plots.sweep(rows, hints),
        alt=f"Difference from the base at every point of the sweep {sweep}, by setting",
    )  # fmt: skip
    varied = {name for row in rows for name in row["varied"]} - {"seed"}
    full = [row | {"varied": {name: row["parameters"][name] for name in varied}} for row in rows]
    if len(varied) > 1 and varied <= {"share", "rank", "lora_scale"}:
        this.figure(
            f"sensitivity-{sweep}", plots.sensitivity(full, hints),
            alt="Loss on hard and on easy text by share, rank and scale, against the base",
        )  # fmt: skip
    if len(together := tables.seeds(rows)):
        this.table(f"sweep-{sweep}-seeds", together)


def sweep_in_words(sweep: str, rows: list[dict], base: str) -> str:
    """The best point of a sweep, in a sentence, with its interval."""
    if not rows:
        return f"No point of the sweep {sweep} is done."
    best = min(rows, key=lambda row: row["loss"])
    change = tables.with_interval(*best["all"])
    return (
        f"Of {len(rows)} models of the sweep {sweep}, {best['point']} has the lowest loss, "
        f"{best['loss']:.3f}: {change} against {base}. The best of many on the text that judges "
        "them is flattered by it."
    )


def resample(
    losses: dict[str, np.ndarray], document_N: np.ndarray, resamples: int, seed: int
) -> dict[str, np.ndarray]:
    """Bootstrapped mean losses of all models over the same documents, {name: (resamples,)}."""
    means_RK = evaluate.resampled_means(
        np.stack(list(losses.values())).astype(np.float64), document_N, resamples, seed
    )
    return dict(zip(losses, means_RK.T, strict=True))


def difference(this: Run, one: str, other: str, tokens: data.Tokens, resamples: int) -> dict:
    """Loss of `one` minus loss of `other`, with its interval over documents."""
    losses = window_losses(this, [one, other])
    resampled = resample(losses, tokens.documents("val")[0], resamples, this.parameters["seed"])
    low, high = evaluate.interval(resampled[one] - resampled[other])
    known_N = ~np.isnan(list(losses.values())).any(0)
    means = {name: float(loss_N[known_N].mean()) for name, loss_N in losses.items()}
    spans = {name: evaluate.interval(r) for name, r in resampled.items()}
    return {
        "losses": means, "intervals": spans, "difference": means[one] - means[other],
        "low": low, "high": high, "masked": int((~known_N).sum()), "windows": len(known_N),
    }  # fmt: skip


def clearly(low: float, high: float) -> bool:
    """Whether an interval leaves out 0."""
    return low > 0 or high < 0


def difference_in_words(one: str, other: str, d: dict) -> str:
    """A sentence: that `one` is better or worse than `other`, or not clearly different, with the
    difference in loss and its interval."""
    size = tables.with_interval(d["difference"], d["low"], d["high"])
    how = "better" if d["high"] < 0 else "WORSE"
    found = f"is {how} than" if clearly(d["low"], d["high"]) else "is not clearly different from"
    left_out = f"; {d['masked']:,} of {d['windows']:,} windows have no target and are left out"
    return f"{one} {found} {other}: {size} nats, one seed{left_out if d.get('masked') else ''}."


def hard_windows(losses: dict, picked_by: str, teacher: str, share: float) -> np.ndarray:
    """Which validation windows are hard, (N,) bool: where `picked_by` fell furthest behind, the
    share of those that have a target."""
    difficulty_N = losses[picked_by] - losses[teacher]  # NaN, masked whole, is never hard
    return difficulty_N >= choice.made(difficulty_N, {"share": share}).threshold


def side_by_side(
    this: Run, names: list[str], tokens: data.Tokens, new: int, seed: int, beginnings: int = 20
) -> dict[str, dict]:
    """Per model one generated text and how much twenty of them repeat themselves."""
    rows = evaluate.fixed_rows(tokens.val, beginnings)
    prompts = [tokens.val.ids[i * tokens.context :][:8].tolist() for i in rows]
    new = min(new, tokens.context - 8)
    found = {}
    for name in names:
        net = Llama.load(this.path("models", name), this.device)
        texts = [
            generate.generate(net, ids, new, temperature=0.8, seed=seed + i)
            for i, ids in enumerate(prompts)
        ]
        text_ = tokens.tokenizer.decode(prompts[0] + texts[0])
        found[name] = {"text": text_} | generate.repetition(texts)
    return found


def kept_and_lost(
    this: Run, names: list[str], tokens: data.Tokens, judged: list[str]
) -> tuple[list[dict], list[dict]]:
    """By kind of token, on the fixed windows, rows for tables and plots: every model's loss; and
    the change of the `judged` against the base, with intervals."""
    files = {name: np.load(this.path("scores", "val", f"{name}.npz")) for name in names}
    rows_M = next(iter(files.values()))["rows_M"]
    token_loss = {name: f["token_loss_MT"] for name, f in files.items()}
    labels, base = evaluate.cuts(tokens, rows_M), this.parameters["base"]
    some = {name: token_loss[name] for name in [base, *judged]}
    document_M = tokens.documents("val")[0][rows_M]
    won = evaluate.won_back(some, labels, base, document_M, this.parameters["resamples"])
    return evaluate.kept_and_lost(token_loss, labels), won


def judged(arms: dict[str, verdict.Arm], base: str, names: list[str]) -> list[str]:
    """What was made from the base: adapters merged, and the base trained on."""
    return [name for name in names if name in arms and arms[name].base == base]


def calibrations(this: Run, names: list[str]) -> dict[str, dict]:
    """Per model its bins of confidence, accuracy and share."""
    keys = ("confidence", "accuracy", "share")
    files = {name: np.load(this.path("scores", "val", f"{name}.npz")) for name in names}
    return {name: {k: f[k].tolist() for k in keys} for name, f in files.items()}


def arms_of(this: Run) -> dict[str, verdict.Arm]:
    """Every trained model of the folder, and of the sweeps that 04 is told, and how it was made."""
    points = {label: (point.model, point.record) for label, point in swept(this).items()}
    return verdict.arms(results_of(this).values(), points)


def trial(
    this: Run, losses: dict[str, np.ndarray], hard_N: np.ndarray, document_N: np.ndarray
) -> verdict.Trial:
    """What the verdict reads."""
    p = this.parameters
    names = {k: p[k] for k in ("base", "scratch", "teacher", "picked_by", "resamples")}
    return verdict.Trial(arms_of(this), losses, hard_N, document_N, **names)


def made(this: Run, tokens: data.Tokens) -> dict[str, dict[str, str]]:
    """What each model is and what it cost, for the quality table."""
    found, spent = arms_of(this), costs(this, tokens)
    return {
        name: {"made": arm.kind()}
        | {f"{what}, FLOP": f"{n:.2g}" if n else "–" for what, n in spent[name].items()}
        for name, arm in found.items()
    }


def costs(this: Run, tokens: data.Tokens) -> dict[str, dict[str, float]]:
    """FLOP of every model: of its own training (with its base's), of its teachers' forwards, and of
    scoring the windows where it replays scores."""
    found, points, results = arms_of(this), swept(this), results_of(this)
    shorts = [r["remembered"]["short"] for r in results.values()
              if r["notebook"] == "02_hard_set" and "short" in r["remembered"]]  # fmt: skip
    scored = shorts[0]["windows"] * shorts[0].get("scored", 1) if shorts else 0
    rows = {}
    for name, arm in found.items():
        own, scores = _flop(this, arm, points, found, tokens), 0.0
        if arm.base and arm.windows in ("hard", "easiest"):
            forward = sum(cost.forward_flop(_shape(this, n, points), tokens.context)
                          for n in (arm.base, arm.p["teacher"]))  # fmt: skip
            scores = scored * tokens.context * forward
        rows[name] = dict(zip(("training", "teacher", "scoring"), (*own, scores), strict=True))
    return rows


def _shape(this: Run, name: str, points: dict) -> LlamaConfig:
    """Of a model of the folder, or of a sweep's point."""
    point = points.get(name)
    out, model = (point.out, point.model) if point else (this.out, name)
    return shapes.read_config(out / "models" / model)


def _flop(this: Run, arm: verdict.Arm, points: dict, found: dict, tokens: data.Tokens) -> tuple:
    """FLOP of training an arm and of its teachers' forwards, those of what it began from too."""
    p, context = arm.p, tokens.context
    config = _shape(this, arm.base if arm.adapter else arm.name, points)
    flop = cost.step_flop(config, None, context, frozen=arm.adapter)
    flop += 6 * cost.adapter_parameters(config, p["rank"]) if arm.adapter else 0
    middle = arm.notebook == "05_progressive" and arm.name.endswith("75m")
    by, asked = arm.name.removesuffix("75m") + "150m" if middle else "", 0.0
    if p.get("ce_weight", 1) < 1:  # 00 has no such parameter
        teacher = _shape(this, by or p["teacher"], points)
        read = p.get("distinct_tokens") or len(tokens.train.ids)
        seen = min(arm.tokens, read) if p.get("cached_draws") else arm.tokens
        asked = seen * cost.forward_flop(teacher, context)
    before = found.get(by or arm.base)
    rest = _flop(this, before, points, found, tokens) if before else (0.0, 0.0)
    return arm.tokens * flop + rest[0], asked + rest[1]


# --- 06: files and speed


def files_of(this: Run, shipped: dict[str, list[dict]]) -> dict[str, dict[str, Path]]:
    """Model → format → its GGUF, as export.ship left them."""
    return {
        name: {row["format"]: this.path("exports", name, row["file"]) for row in rows}
        for name, rows in shipped.items()
    }


def to_run(this: Run, name: str, rows: list[dict]) -> str:
    """Commands that run a model's 4-bit file."""
    path = parameters.shown(
        this.path("exports", name, next(r["file"] for r in rows if r["format"] == "Q4_0"))
    )
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
    file = next(row for row in shipped if row["format"] == "Q4_0")
    by = {row["way"]: row["decode"] for row in rows if row["threads"] == 1}
    cost = next(row for row in costs if row["format"] == "Q4_0")
    return (
        f"{name} as Q4_0 is {file['bytes'] / 1e6:.3g} MB and writes {by['Q4_0']:,.0f} tokens a "
        f"second on one thread, {by['Q4_0'] / by[inference.RAW]:.1f} × plain PyTorch; 4 bits cost "
        f"{cost['loss'] - costs[0]['loss']:+.4f} nats."
    )
