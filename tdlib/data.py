"""Tokens and windows: what every notebook trains on, scores and evaluates.

A folder of tokens holds train.bin, val.bin (and confirm.bin where asked), raw little-endian ids,
and meta.json, all as upstream writes and reads them; beside them documents.tsv (where each document
starts) and the tokenizer. A reader may put sources.tsv there, which names the sources of train.bin:
a line each, the number of its first token, a tab, its name. Each line of text ends in <eos>.
Window i is tokens [i·T, i·T + T + 1): T inputs and their T targets, shifted by one. Windows are
numbered once and for all, so a difficulty means the same thing in every notebook.
Legend: B windows of a batch, T tokens of a window (the context), N windows of a split.
"""

import contextlib
import csv
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PAD, UNK, BOS, EOS = 0, 1, 2, 3  # upstream's, and of those trained here: then 256 byte pieces
IGNORE = -100
BLOCK = 2**18  # bytes read at once where ids are looked at
VOCABULARY = 2**24  # pieces, at most; the largest in public have a million
MORE = "give more text, or a shorter context"
AGAIN = "copy the one made with these tokens again, or take it away"
DOCUMENT = ("start", "tokens", "source")  # columns of documents.tsv, after the split
COUNTS = re.compile("vocab_size|block_size|pieces|(train|val|confirm)_(tokens|bytes)")


@dataclass(frozen=True)
class Windows:
    """The numbered windows of one split, memory-mapped: 3.7 billion tokens stay on the disk."""

    ids: np.ndarray  # the whole split's ids, a memory map
    context: int  # T
    mask: np.ndarray | None = None  # beside the ids, 0 where a token is no target
    # beside the ids, how often a target counts in training: whole numbers; None: each once
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return (len(self.ids) - 1) // self.context

    @property
    def known_N(self) -> np.ndarray:
        """Which windows have a target: of the others nothing can be measured, (N,) bool."""
        if self.mask is None:
            return np.ones(len(self), bool)
        return self.mask[1 : len(self) * self.context + 1].reshape(-1, self.context).any(1)

    @property
    def dropped(self) -> int:
        """Tokens after the last whole window."""
        return len(self.ids) - 1 - len(self) * self.context

    def batch(self, rows_B: Sequence[int], device: str = "cpu") -> tuple[Tensor, Tensor]:
        """ids_BT and targets_BT of some windows, int64; a masked target is IGNORE."""
        at_BT = np.asarray(rows_B)[:, None] * self.context + np.arange(self.context + 1)
        ids = self.ids[at_BT].astype(np.int64)
        targets = ids[:, 1:]
        if self.mask is not None:
            targets = np.where(self.mask[at_BT[:, 1:]] > 0, targets, IGNORE)
        return torch.from_numpy(ids[:, :-1].copy()).to(device), torch.from_numpy(targets).to(device)

    def targets(self, rows_B: Sequence[int]) -> int:
        """How many targets of some windows are not masked, each as often as it counts."""
        if self.mask is None and self.weights is None:
            return len(rows_B) * self.context
        return int(self.weights_of(rows_B).sum())

    def weights_of(self, rows_B: Sequence[int]) -> np.ndarray:
        """How often each target counts, (B, T) float32; 0 where it is masked."""
        at_BT = np.asarray(rows_B)[:, None] * self.context + np.arange(1, self.context + 1)
        weights_BT = np.ones(at_BT.shape, np.float32)
        if self.weights is not None:
            weights_BT *= self.weights[at_BT]
        return weights_BT if self.mask is None else weights_BT * (self.mask[at_BT] > 0)

    def batches(self, rows: Sequence[int], size: int) -> Iterable[Sequence[int]]:
        return (rows[i : i + size] for i in range(0, len(rows), size))

    def stream(
        self,
        batches: Iterable,
        device: str = "cpu",
        more: Callable[[Sequence[int]], tuple[Tensor, ...]] = lambda rows_B: (),
    ) -> Iterator[tuple[Tensor, ...]]:
        """`batch` of each, and `more` of it, one ahead: a thread reads the next while this one is
        used; for CUDA it is pinned, and copied without waiting."""

        def read(rows_B: Sequence[int]) -> list[Tensor]:
            tensors = (*self.batch(rows_B), *more(rows_B))
            return [x.pin_memory() if "cuda" in device else x for x in tensors]

        with ThreadPoolExecutor(1) as pool:
            ahead = None
            for rows_B in itertools.chain(batches, [None]):
                coming = None if rows_B is None else pool.submit(read, rows_B)
                if ahead:
                    yield tuple(x.to(device, non_blocking=True) for x in ahead.result())
                ahead = coming


@dataclass(frozen=True)
class Tokens:
    """An opened folder of tokens."""

    folder: Path
    meta: dict
    train: Windows
    val: Windows
    confirm: Windows | None
    tokenizer: object | None  # of tdbook.corpus.tokenizer, where one is there

    @property
    def vocab_size(self) -> int:
        return self.meta["vocab_size"]

    @property
    def context(self) -> int:
        return self.train.context

    @property
    def eos(self) -> int:
        return self.meta.get("eos_id", EOS)

    def bytes_per_token(self, split: str = "val") -> float:
        """UTF-8 bytes of the text that is kept, a token; NaN where unknown (files from
        elsewhere)."""
        return self.meta.get(f"{split}_bytes", np.nan) / self.meta[f"{split}_tokens"]

    def documents(self, split: str) -> tuple[np.ndarray, list[str]]:
        """The number of the document in each window's middle, (N,), and each document's source.
        Where documents are unknown, 16 neighbouring windows of one source stand for one."""
        windows = getattr(self, split)
        rows = _read_documents(self.folder / "documents.tsv", split, len(windows.ids))
        named = read_sources(self.folder / "sources.tsv", self.train) if split == "train" else []
        first_S, names = np.array([first for first, _ in named]), [name for _, name in named]
        middle_N = np.arange(len(windows)) * windows.context + windows.context // 2
        if rows:
            starts = np.array([start for start, _, _ in rows])
            document_N = np.searchsorted(starts, middle_N, side="right") - 1
            source_D = np.searchsorted(first_S, starts, "right") - 1
            sources = [names[i] for i in source_D] if named else [source for _, _, source in rows]
            return document_N, sources
        source_N = np.searchsorted(first_S, middle_N, side="right") - 1  # −1 where none is named
        block_N = np.arange(len(windows)) // 16
        begins_N = np.diff(block_N, prepend=0) | np.diff(source_N, prepend=source_N[0])
        document_N = np.cumsum(begins_N != 0)
        source_D = source_N[np.unique(document_N, return_index=True)[1]]
        return document_N, [names[i] if named else "unknown" for i in source_D]

    def fold(self, part: str) -> np.ndarray:
        """Which training windows are of fold "k/n", (N,) bool: those of every n-th document."""
        k, n = map(int, part.split("/"))
        return self.documents("train")[0] % n == k - 1


def open_ids(folder: Path, context: int = 0, eos: int = EOS) -> Tokens:
    """A folder of tokens, made here or upstream, without its tokenizer; `context` overrides the
    stored one, `eos` counts where none is stored. Other gaps of meta.json the files fill."""
    if not (folder / "meta.json").is_file():
        fault = f"{folder / 'meta.json'} is not there"
        raise FileNotFoundError(f"{fault}: give a folder of tokens; 00_teacher makes one")
    meta = read_meta(folder / "meta.json", context)
    meta = {"block_size": context, "eos_id": eos} | meta
    meta["dtype"] = meta.get("dtype") or _dtype(folder / "train.bin", meta)
    splits = {
        split: _open_split(folder / f"{split}.bin", meta, context or meta["block_size"])
        for split in ("train", "val", "confirm")
        if split != "confirm" or (folder / "confirm.bin").is_file()
    }
    meta = {f"{split}_tokens": len(windows.ids) for split, windows in splits.items()} | meta
    read_sources(folder / "sources.tsv", splits["train"])  # what is wrong is said early
    return Tokens(folder, meta, splits["train"], splits["val"], splits.get("confirm"), None)


def weighted(tokens: Tokens, path: Path, new: bool = False) -> Tokens:
    """The same tokens, with the weights in a file beside their training ids, one byte each; `new`:
    the file is made, all zero, and may be filled."""
    if new:
        with open(path, "wb") as file:
            file.truncate(len(tokens.train.ids))  # a hole: only what is written takes room
    weights = _byte_each(path, len(tokens.train.ids), "r+" if new else "r")
    return replace(tokens, train=replace(tokens.train, weights=weights))


def _byte_each(path: Path, count: int, mode: str = "r") -> np.memmap:
    """A file with a byte for each of so many tokens."""
    if (size := path.stat().st_size) != count:
        fault = f"{path} has {size:,} bytes, it must have one for each of the {count:,} tokens"
        raise ValueError(f"{fault}: make it again")
    return np.memmap(path, "u1", mode)


def read_sources(path: Path, train: Windows) -> list[tuple[int, str]]:
    """sources.tsv: first token and name of each source, in order; a heading is passed over.
    [] where there is no such file."""
    if not path.is_file():
        return []
    remedy = "a line is the number of its first token, a tab, its name"
    lines = path.read_text(encoding="utf8").splitlines()
    rows = [line.split("\t") for line in lines if line.strip()]
    rows = rows[1:] if rows and not rows[0][0][:1].isdecimal() else rows
    for row in rows:
        if len(row) != 2 or not row[0].strip().isdecimal() or not row[1].strip():
            raise ValueError(f"{path}: {chr(9).join(row)!r} is no source: {remedy}")
    sources = [(int(first), name.strip()) for first, name in rows]
    if not sources or sources[0][0] != 0:
        raise ValueError(f"{path} names no source for token 0: {remedy}, and the first begins at 0")
    _check_starts(path, sources, len(train.ids), "sort or correct it")
    return sources


def _read_documents(path: Path, split: str, size: int) -> list[tuple[int, int, str]]:
    """Start, tokens and source of the documents of one split of so many tokens, in order; [] where
    there is no documents.tsv."""
    if not path.is_file():
        return []
    with open(path, encoding="utf8", newline="") as f:
        table = csv.DictReader(f, delimiter="\t")
        if "split" not in (table.fieldnames or ()):
            raise ValueError(f"{path} has no heading with split: copy it again, or take it away")
        rows = [row for row in table if row["split"] == split]
    documents = []
    for i, row in enumerate(rows):
        start, tokens, source = (row.get(column) for column in DOCUMENT)
        if not (str(start).isdecimal() and str(tokens).isdecimal() and source is not None):
            fault = f"{path}: row {i} of {split} is {[*row.values()]}, it must be split"
            raise ValueError(f"{fault}, {', '.join(DOCUMENT)}: {AGAIN}")
        documents.append((int(start), int(tokens), source))
    starts = [(row[0], f"document {i} of {split}") for i, row in enumerate(documents)]
    _check_starts(path, starts, size, AGAIN)
    if documents and (end := sum(documents[-1][:2])) < size:
        fault = f"the documents of {split} end at {end:,} of {size:,} tokens"
        raise ValueError(f"{path}: {fault}, it was cut short: {AGAIN}")
    return documents


def _check_starts(path: Path, starts: list[tuple[int, str]], size: int, remedy: str) -> None:
    """ValueError: the starts do not ascend from 0, or leave the tokens."""
    last = -1
    for start, name in starts:
        if not last < start < (size if last >= 0 else 1):
            where = f"after {last:,} and before {size:,}" if last >= 0 else "0"
            raise ValueError(f"{path}: {name} begins at {start:,}, it must be {where}: {remedy}")
        last = start


def read_meta(path: Path, context: int = 0) -> dict:
    """meta.json, its counts checked; what is null counts as not there, and block_size need not be
    where a `context` is given."""
    try:
        meta = json.loads(path.read_text(encoding="utf8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}): copy it again") from None
    if not isinstance(meta, dict):
        remedy = "give one with vocab_size, block_size and dtype"
        raise ValueError(f"{path} must hold a JSON object, not {meta!r:.40}: {remedy}")
    meta = {name: value for name, value in meta.items() if value is not None}
    needed = {"vocab_size"} if context else {"vocab_size", "block_size"}
    for name in sorted(needed | {name for name in meta if COUNTS.fullmatch(name)}):
        count = meta.get(name)
        if type(count) is not int or count < 1:
            fault = f"{path}: {name} is {json.dumps(count)}, it must be a whole number above 0"
            raise ValueError(f"{fault}: copy or correct it")
    most, eos = max(meta["vocab_size"], meta.get("pieces", 1)), meta.get("eos_id", 0)
    if most > VOCABULARY:
        fault = f"{path}: vocab_size is {most:,}, it may be at most {VOCABULARY:,}"
        raise ValueError(f"{fault}: correct it")
    if type(eos) is not int or not 0 <= eos < most:
        fault = f"{path}: eos_id is {json.dumps(eos)}, it must be an id below {most:,}"
        raise ValueError(f"{fault}: correct it, or leave it out where the tokenizer lies beside")
    return meta


def _dtype(path: Path, meta: dict) -> str:
    """The dtype of train.bin where meta.json does not name it: by its size where that is promised,
    else uint32, upstream's, where all ids that are looked at then are in the vocabulary."""
    size = path.stat().st_size if path.is_file() else 0
    if size and size == 2 * meta.get("train_tokens", 0):
        return "uint16"
    with contextlib.suppress(ValueError):
        if size % 4 == 0:
            look(path, "<u4", meta)
            return "uint32"
    fault = f"{path.with_name('meta.json')} has no dtype, and as uint32 {path.name} is wrong"
    raise ValueError(f'{fault}: add "dtype": "uint16" where it was so written')


def _open_split(path: Path, meta: dict, context: int) -> Windows:
    dtype = {"uint32": "<u4", "uint16": "<u2"}.get(str(meta["dtype"]))
    if dtype is None:
        fault = f"{path}: dtype {meta['dtype']!r} in meta.json must be uint16 or uint32"
        raise ValueError(f"{fault}: make the tokens again as one of them")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: a folder of tokens holds it")
    size, width = path.stat().st_size, int(dtype[-1])
    stored = meta.get(f"{path.stem}_tokens", -(-size // width))
    if size != stored * width:
        fault = f"{path} has {size:,} bytes, by meta.json {stored * width:,}"
        why = f"({stored:,} tokens of {width}): the file was cut short or its dtype is another"
        other = "uint16" if width == 4 else "uint32"
        fits = f" ({other} fits its size)" if size == stored * (6 - width) else ""
        raise ValueError(f"{fault} {why}; copy it again, or correct meta.json{fits}")
    # No context is shorter than 8.
    check_count(f"{path} has", stored, context, MORE if stored > 8 else "copy it again")
    look(path, dtype, meta)
    mask = path.with_suffix(".mask.bin")
    mask_S = _byte_each(mask, stored) if mask.is_file() else None
    return Windows(np.memmap(path, dtype, "r"), context, mask_S)


def check_count(whose: str, count: int, context: int, remedy: str = MORE) -> None:
    if count < context + 1:
        fault = f"{whose} {count:,} tokens, too few for one window of {context:,} + 1"
        raise ValueError(f"{fault}: {remedy}")


def look(
    path: Path, dtype: str | np.dtype, meta: dict, every_id: bool = False, unknown: int | None = UNK
) -> Counter:
    """Some 64 blocks, or all: no id is beyond the vocabulary; counts <eos>, <unk> and all tokens.
    Read, not mapped: around a touched page the system maps 15 more, soon all of the file."""
    count, seen = BLOCK // np.dtype(dtype).itemsize, Counter()
    size = path.stat().st_size if path.is_file() else 0
    for start in range(0, size, BLOCK if every_id else BLOCK * max(1, size // (64 * BLOCK))):
        ids = np.fromfile(path, dtype, count, offset=start)
        if (largest := int(ids.max())) >= meta["vocab_size"]:
            fault = f"{path} holds id {largest:,}, the vocabulary has {meta['vocab_size']:,}"
            remedy = "copy the file and its meta.json again, correct vocab_size or dtype in that"
            raise ValueError(f"{fault}: {remedy}, or give the tokens the teacher was made with")
        eos = np.count_nonzero(ids == meta.get("eos_id", EOS))
        seen.update(eos=int(eos), unknown=int(np.count_nonzero(ids == unknown)), tokens=len(ids))
    return seen
