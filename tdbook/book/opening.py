"""What the notebooks share: the steps of a run, and what a run folder holds, as plain calls.

`this` is the `runs.Run` of the notebook that asks. Training, loss and hard set are in their own
modules; here they are put together, recorded, and said in words computed from numbers.
"""

import contextlib
import math
import tempfile
from pathlib import Path

import numpy as np

from tdbook.corpus import text, token_files, tokenizer, tokenizer_files, writer
from tdbook.export import cards
from tdbook.runs import notebooks, units
from tdbook.runs.folder import Folder
from tdbook.runs.parameters import texts
from tdbook.runs.running import Run
from tdbook.workflow import plan
from tdlib import data, evaluate, files, generate
from tdlib.files import write_whole as write
from tdlib.model import Llama
from tdlib.teacher import cut_spare_rows

SUBSET = 64  # validation windows looked at during training


def folder_of(this: Run) -> Folder:
    """What the run folder holds, read once for each run that asks."""
    if "folder" not in vars(this):
        this.folder = Folder(this.out, this.run, this.parameters.get("sweeps", ""))
    return this.folder


def opened(this: Run) -> data.Tokens:
    """The folder's tokens. Prints an estimate of what this run will cost, and records it."""
    tokens = token_files.open_tokens(this.path("tokens"))
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
    given = tokenizer_files.open(p["tokenizer"], p["segmenter"]) if p["tokenizer"] else None
    if p["tokens"]:
        return _linked(p, folder, given, teacher)
    cut = cut_spare_rows(teacher, given.size) if given and teacher else ""
    size = _vocabulary(p, teacher, *((given.size, f"{given.path}'s") if given else ()))
    rares, account = [], text.Account() if account is None else account
    if p["text"]:
        documents = text.read(texts(p["text"]), account)
    else:
        documents, rares = writer.write(p["text_characters"], p["text_seed"])
    rare = rare_lines(documents, rares)
    documents = text.section(documents, p["section_characters"])
    groups_N = text.near_duplicates(documents)
    splits = _split(p, documents, groups_N)
    lines = (line for d in splits["train"] for line in d.lines)
    with tempfile.TemporaryDirectory() as place:
        fresh = given or tokenizer_files.train(lines, p["vocab_size"], Path(place, "model"))
        token_files.write_tokens(folder, splits, fresh, p["context"], rare, size)
    tokens, sources = token_files.open_tokens(folder), sorted({d.source for d in documents})
    said = [
        str(account) if p["text"] else "",
        f"{len(documents):,} documents (long works cut into sections) from {len(sources)} sources: "
        f"{', '.join(sources[:12])}. Groups of near-duplicates: {len(np.unique(groups_N)):,}.",
        f"{_sizes(tokens)} Vocabulary {tokens.vocab_size:,}; {tokens.bytes_per_token():.2f} bytes "
        "a token.",
        f"Rare constructions, at known places: {len(rares):,} sentences." if rares else "",
        cut,
    ]
    return " ".join(filter(None, said)) + token_files.loss(tokens.meta)


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
    documents: list[text.Document], rares: list[writer.Rare]
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
    theirs = token_files.open_tokens(source, context)
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
    token_files.link_tokens(source, folder, tokenizer=given, vocab_size=size, context=context,
                     every_id=p["check_every_id"])  # fmt: skip
    tokens = token_files.open_tokens(folder)
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
        files = cards.tokenizer_files(tokens.tokenizer, Path(place), net.config.context)
        net.save(folder, files)


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
        text = cards.adapter_card(folder, base, tokens, row, record, row_of(this, p["base"]))
    else:
        folder, records = this.path("models", name), folder_of(this).of(notebooks.LORA)
        merged = (r for r in records if f"{r['parameters']['adapter']}-merged" == name)
        teacher = None if this.notebook == notebooks.TEACHER else row_of(this, p["teacher"])
        text = cards.card(folder, tokens, row, next(merged, record), teacher)
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
    lines = (cards.upload_command(folder) for folder in folders if folder.is_dir())
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
