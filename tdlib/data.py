"""Tokens and windows: what every notebook trains on, scores and evaluates.

A folder of tokens holds train.bin, val.bin (and confirm.bin where asked), raw little-endian ids,
and meta.json, all as upstream writes and reads them. Each line of text ends in <eos>.
Window i is tokens [i·T, i·T + T + 1): T inputs and their T targets, shifted by one. Windows are
numbered once and for all, so a difficulty means the same thing in every notebook.
Legend: B windows of a batch, T tokens of a window (the context), N windows of a split.
"""

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

from tdlib.shapes import read_json

PAD, UNK, BOS, EOS = 0, 1, 2, 3  # upstream's, and of those trained here: then 256 byte pieces
IGNORE = -100
BLOCK = 2**18  # bytes read at once where ids are looked at
VOCABULARY = 2**24  # pieces, at most; the largest in public have a million
MORE = "give more text, or a shorter context"
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
    confirm: Windows | None = None
    tokenizer: object | None = None  # of tdbook.corpus.tokenizer, where one is there

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
        """UTF-8 bytes of the text that is kept, a token; NaN where that is unknown."""
        return self.meta.get(f"{split}_bytes", np.nan) / self.meta[f"{split}_tokens"]


def open_ids(folder: Path, context: int = 0, eos: int = EOS) -> Tokens:
    """A folder of tokens, made here or upstream, without its tokenizer; `context` overrides the
    stored one, `eos` counts where none is stored. Other gaps of meta.json the files fill."""
    if not (folder / "meta.json").is_file():
        fault = f"{folder / 'meta.json'} is not there"
        raise FileNotFoundError(f"{fault}: give a folder of tokens; 00_teacher makes one")
    meta = {"block_size": context, "eos_id": eos} | read_meta(folder / "meta.json", context)
    train, promised = folder / "train.bin", meta.get("train_tokens", 0)
    narrow = train.is_file() and train.stat().st_size == 2 * promised > 0
    meta = {"dtype": "uint16" if narrow else "uint32"} | meta  # upstream's is uint32
    names = ("train", "val", *["confirm"] * (folder / "confirm.bin").is_file())
    opened = [_open_split(folder / f"{name}.bin", meta, context) for name in names]
    meta = {f"{n}_tokens": len(w.ids) for n, w in zip(names, opened, strict=True)} | meta
    return Tokens(folder, meta, *opened)


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


def read_meta(path: Path, context: int = 0) -> dict:
    """meta.json, its counts checked; what is null counts as not there, and block_size need not be
    where a `context` is given."""
    try:
        meta = {name: value for name, value in read_json(path).items() if value is not None}
    except ValueError as error:
        raise ValueError(f"{path} is no table in JSON ({error}): copy it again") from None
    needed = {"vocab_size"} if context else {"vocab_size", "block_size"}
    for name in sorted(needed | {name for name in meta if COUNTS.fullmatch(name)}):
        count, most = meta.get(name), VOCABULARY if name in ("vocab_size", "pieces") else 2**63
        if type(count) is not int or not 1 <= count <= most:
            fault = f"{path}: {name} is {json.dumps(count)}, it must be a whole number above 0"
            raise ValueError(f"{fault}, at most {most:,}: copy or correct it")
    eos, most = meta.get("eos_id", 0), max(meta["vocab_size"], meta.get("pieces", 1))
    if type(eos) is not int or not 0 <= eos < most:
        fault = f"{path}: eos_id is {json.dumps(eos)}, it must be an id below {most:,}"
        raise ValueError(f"{fault}: correct it, or leave it out where the tokenizer lies beside")
    return meta


def _open_split(path: Path, meta: dict, context: int) -> Windows:
    dtype = {"uint32": "<u4", "uint16": "<u2"}.get(str(meta["dtype"]))
    if dtype is None:
        fault = f"{path}: dtype {meta['dtype']!r} in meta.json must be uint16 or uint32"
        raise ValueError(f"{fault}: make the tokens again")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: a folder of tokens holds it")
    size, width = path.stat().st_size, int(dtype[-1])
    stored = meta.get(f"{path.stem}_tokens", -(-size // width))
    if size != stored * width:
        fault = f"{path} has {size:,} bytes, by meta.json {stored * width:,} ({stored:,} tokens of"
        why = f"{width}): the file was cut short or its dtype is another"
        raise ValueError(f"{fault} {why}; copy it again, or correct meta.json")
    context = context or meta["block_size"]
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
    size = path.stat().st_size
    for start in range(0, size, BLOCK if every_id else BLOCK * max(1, size // (64 * BLOCK))):
        ids = np.fromfile(path, dtype, count, offset=start)
        if (largest := int(ids.max())) >= meta["vocab_size"]:
            fault = f"{path} holds id {largest:,}, the vocabulary has {meta['vocab_size']:,}"
            remedy = "copy the file and its meta.json again, correct vocab_size or dtype in that"
            raise ValueError(f"{fault}: {remedy}, or give the tokens the teacher was made with")
        eos = np.count_nonzero(ids == meta.get("eos_id", EOS))
        seen.update(eos=int(eos), unknown=int(np.count_nonzero(ids == unknown)), tokens=len(ids))
    return seen
