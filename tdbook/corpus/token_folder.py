"""A folder of tokens, opened without its tokenizer: meta.json and the files of ids, checked.

As upstream writes and reads them: train.bin, val.bin (and confirm.bin where asked) are raw
little-endian ids; beside them may lie masks of labels, a byte a token.
"""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np

from tdlib.data import EOS, UNK, Tokens, Windows, byte_each
from tdlib.shapes import read_json

BLOCK = 2**18  # bytes read at once where ids are looked at
VOCABULARY = 2**24  # pieces, at most; the largest in public have a million
MORE = "give more text, or a shorter context"
COUNTS = re.compile("vocab_size|block_size|pieces|(train|val|confirm)_(tokens|bytes)")


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
    mask_S = byte_each(mask, stored) if mask.is_file() else None
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
