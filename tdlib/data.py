"""Tokens and windows: what every notebook trains on, scores and evaluates.

A folder of tokens holds train.bin, val.bin (and confirm.bin where asked), raw little-endian ids,
and meta.json, all as upstream writes and reads them; beside them documents.tsv (where each document
starts) and, for tokens made here, tokenizer.model; rare.tsv, where the text came with known rare
constructions, says where their sentences lie. Each line of text ends in <eos>.
Window i is tokens [i·T, i·T + T + 1): T inputs and their T targets, shifted by one. Windows are
numbered once and for all, so a difficulty means the same thing in every notebook.
Legend: B windows of a batch, T tokens of a window (the context), N windows of a split.
"""

import contextlib
import csv
import io
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tdlib.files import replacing

PAD, UNK, BOS, EOS = 0, 1, 2, 3  # then the 256 byte pieces, 4–259
IGNORE = -100
BLOCK = 2**18  # bytes read at once where ids are checked
MORE = "give more text, or a shorter context"


class Tokenizer:
    """A SentencePiece model: text ↔ ids. Prompts begin after <eos>; no <bos> in the tokens."""

    def __init__(self, path: str | Path):
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"{path} is not there: put a SentencePiece .model there, or give one as tokenizer"
            )
        self.path = Path(path)
        try:
            self.model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except RuntimeError:
            raise ValueError(
                f"{path} is not a SentencePiece .model: train one, or copy it again"
            ) from None
        self.size = self.model.vocab_size()
        if self.model.eos_id() != EOS:
            raise ValueError(f"<eos> of {path} is id {self.model.eos_id()}, it must be {EOS}: "
                             "train one with pad_id 0, unk_id 1, bos_id 2, eos_id 3")  # fmt: skip

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """The ids of each line, without <eos>."""
        return self.model.encode(list(lines))

    def decode(self, ids: Iterable[int]) -> str:
        """Text; <eos> becomes a line break, half a character at the end is dropped."""
        lines = [[]]
        for i in ids:
            lines.append([]) if i == EOS else lines[-1].append(int(i))
        return "\n".join(self.model.decode(line) for line in lines).rstrip("�")

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Each token as it is written in the vocabulary: "▁" begins a word, <0xE0> is a byte."""
        return [self.model.id_to_piece(int(i)) for i in ids]


def train_tokenizer(lines: Iterable[str], vocab_size: int, path: Path) -> Tokenizer:
    """SentencePiece BPE with byte fallback, no normalisation: the kind llama.cpp repeats."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, model_type="bpe",
            vocab_size=vocab_size, byte_fallback=True, normalization_rule_name="identity",
            remove_extra_whitespaces=False, character_coverage=0.9999, max_sentence_length=10**6,
            pad_id=PAD, unk_id=UNK, bos_id=BOS, eos_id=EOS, pad_piece="<pad>", unk_piece="<unk>",
            bos_piece="<bos>", eos_piece="<eos>", minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].rpartition("] ")[2].strip() or "it is empty"
        remedy = "raise it" if "smaller" in reason else "lower it, or give more text"
        raise ValueError(
            f"vocab_size {vocab_size} does not fit this text ({reason}): {remedy}"
        ) from None
    write_whole(path, model.getvalue())
    return Tokenizer(path)


def write_whole(path: Path, content: bytes) -> None:
    """A file appears whole or not at all, and for good."""
    beside = path.with_name(f".{path.name}.new")
    with replacing(path, beside), open(beside, "wb") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())  # or a power cut may leave the new name with nothing in it


def read_weights(folder: Path, expected: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors (one file, or the shards of its index), in float32,
    checked against their shapes. A head where none is expected, it being tied, and the tables of
    RoPE that old exports hold are left out."""
    weights = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, "pt") as f:
                found = {name: f.get_tensor(name) for name in f.keys()}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read ({error}): copy it again") from None
        if odd := [name for name, x in found.items() if not x.is_floating_point()]:
            dtype = str(found[odd[0]].dtype).removeprefix("torch.")
            raise ValueError(f"{path}: {odd[0]} is {dtype}, a weight must be a float: "
                             "give the model before it was quantized")  # fmt: skip
        weights |= {name: x.float() for name, x in found.items()}
    left_out = {"lm_head.weight"} - expected.keys()
    weights = {name: x for name, x in weights.items()
               if name not in left_out and not name.endswith("rotary_emb.inv_freq")}  # fmt: skip
    check_shapes(folder, weights, expected)
    return weights


def _weight_files(folder: Path) -> list[Path]:
    """As transformers chooses them: model.safetensors, or else what the index names."""
    one, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if one.is_file():
        return [one]
    if not index.is_file():
        raise FileNotFoundError(f"{folder} holds no .safetensors by the name of model: save the "
                                "model in that format")  # fmt: skip
    try:
        names = json.loads(index.read_text(encoding="utf8"))["weight_map"].values()
        files = [folder / Path(name).name for name in sorted(set(names))]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{index} is no index of shards ({error!r}): copy it again") from None
    if gone := [path for path in files if not path.is_file()]:
        raise FileNotFoundError(f"{gone[0]} is not there, {index.name} names it: copy it too")
    return files


def check_shapes(folder: Path, tensors: dict[str, Tensor], expected: dict[str, tuple]) -> None:
    for name in sorted(expected.keys() | tensors.keys()):
        found = tuple(tensors[name].shape) if name in tensors else "missing"
        wanted = tuple(expected[name]) if name in expected else "unknown to this model"
        if found != wanted:
            raise ValueError(f"{folder}: {name} is {found}, by its config it must be {wanted}: "
                             "weights and config are of two models, copy both again")  # fmt: skip


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder appears whole or not at all: filled beside, then renamed; the old one goes last."""
    beside = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
    with replacing(folder, beside):
        beside.mkdir()
        yield beside


def write_tokens(
    folder: Path,
    splits: dict[str, list],
    tokenizer: Tokenizer,
    context: int,
    rare: dict[str, dict[str, str]] | None = None,
) -> None:
    """Documents (`.lines`, `.source`) by split → a folder of tokens, whole or not at all. `rare`:
    line → the sentences in it that hold a rare construction → the kind of each."""
    with whole_folder(folder) as beside:
        meta = {
            "vocab_size": tokenizer.size,
            "block_size": context,
            "dtype": "uint32",
            "total_tokens": 0,
        }
        rows, rare_rows, unknown = [], [], 0
        for split, documents in splits.items():
            start = 0
            with open(beside / f"{split}.bin", "wb") as f:
                for document in documents:
                    ids = []
                    for line, line_ids in zip(
                        document.lines, tokenizer.encode(document.lines), strict=True
                    ):
                        at = start + len(ids)
                        for first, end, kind in _spans(line, (rare or {}).get(line, {}), tokenizer):
                            rare_rows.append((split, at + first, at + end, kind))
                        ids += [*line_ids, EOS]
                    f.write(np.asarray(ids, dtype="<u4").tobytes())  # tofile hides a full disk
                    rows.append((split, start, len(ids), document.source))
                    unknown += ids.count(UNK)
                    start += len(ids)
            if start < context + 1:
                raise ValueError(f"the text for {split} makes {start:,} tokens, too few for one "
                                 f"window of {context:,} + 1: {MORE}")  # fmt: skip
            text_bytes = sum(len(line.encode()) + 1 for d in documents for line in d.lines)
            meta |= {f"{split}_tokens": start, f"{split}_bytes": text_bytes}
            meta["total_tokens"] += start
        meta["unk_rate"] = unknown / max(1, meta["total_tokens"])
        _write_table(beside / "documents.tsv", [("split", "start", "tokens", "source"), *rows])
        if rare:
            _write_table(beside / "rare.tsv", [("split", "first", "end", "kind"), *rare_rows])
        shutil.copy(tokenizer.path, beside / "tokenizer.model")
        (beside / "meta.json").write_text(json.dumps(meta, indent=2))


def _spans(
    line: str, kinds: dict[str, str], tokenizer: Tokenizer
) -> Iterator[tuple[int, int, str]]:
    """First token, one past the last, and kind of each of some sentences of a line. No piece
    crosses a space, so the beginning of a line has alone the tokens that it has in it."""
    for sentence, kind in kinds.items():
        at = f" {line}".index(f" {sentence}")
        before, through = tokenizer.encode([line[:at].rstrip(), line[: at + len(sentence)]])
        yield len(before), len(through), kind


def _write_table(path: Path, rows: list[tuple]) -> None:
    with open(path, "w", encoding="utf8", newline="") as f:
        csv.writer(f, delimiter="\t").writerows(rows)


def _read_table(path: Path, split: str) -> list[dict[str, str]]:
    """The rows of one split, none where there is no such file."""
    if not path.is_file():
        return []
    with open(path, encoding="utf8", newline="") as f:
        return [row for row in csv.DictReader(f, delimiter="\t") if row["split"] == split]


def link_tokens(source: Path, folder: Path, tokenizer: Path | None = None) -> None:
    """Use a folder of tokens made elsewhere as it is: links, no copy, nothing of it touched; with a
    `tokenizer` from another place, where one is given. Here, once, each of its ids is checked."""
    if source.resolve() == folder.resolve():
        raise ValueError(f"{source} is the run's own folder: leave tokens empty, or change out")
    tokens, files = open_tokens(source), {path.name: path for path in source.iterdir()}
    if tokenizer:
        files |= {"tokenizer.model": _tokenizer(tokenizer, tokens.vocab_size).path}
    for split in ("train", "val"):
        path = source / f"{split}.bin"
        if not _check_ids(path, getattr(tokens, split).ids.dtype, tokens.vocab_size):
            raise ValueError(f"{path} holds no <eos> (id {EOS}), which ends each line of text: it "
                             "is damaged or made otherwise; copy it, or make it again")  # fmt: skip
    with whole_folder(folder) as beside:
        for name, path in files.items():
            os.symlink(path.resolve(), beside / name)


@dataclass(frozen=True)
class Windows:
    """The numbered windows of one split, memory-mapped: 3.7 billion tokens stay on the disk."""

    ids: np.ndarray  # the whole split's ids, a memory map
    context: int  # T
    mask: np.ndarray | None = None  # beside the ids, 0 where a token is no target

    def __len__(self) -> int:
        return (len(self.ids) - 1) // self.context

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
        """How many targets of some windows are not masked."""
        if self.mask is None:
            return len(rows_B) * self.context
        at_BT = np.asarray(rows_B)[:, None] * self.context + np.arange(1, self.context + 1)
        return int(np.count_nonzero(self.mask[at_BT]))

    def batches(self, rows: Sequence[int], size: int) -> Iterable[Sequence[int]]:
        return (rows[i : i + size] for i in range(0, len(rows), size))

    def stream(self, batches: Iterable, device: str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        """`batch` of each, one ahead: a thread reads the next while this one is used; for CUDA it
        is pinned, and copied without waiting."""

        def read(rows_B: Sequence[int]) -> list[Tensor]:
            return [x.pin_memory() if "cuda" in device else x for x in self.batch(rows_B)]

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
    tokenizer: Tokenizer | None

    @property
    def vocab_size(self) -> int:
        return self.meta["vocab_size"]

    @property
    def context(self) -> int:
        return self.train.context

    def bytes_per_token(self, split: str = "val") -> float:
        """UTF-8 bytes of text a token, NaN where unknown (token files made elsewhere)."""
        return self.meta.get(f"{split}_bytes", np.nan) / self.meta[f"{split}_tokens"]

    def documents(self, split: str) -> tuple[np.ndarray, list[str]]:
        """For each window of a split the number of the document in its middle, (N,), and for each
        document its source. Where documents are unknown, 16 neighbouring windows stand for one."""
        windows = getattr(self, split)
        rows = _read_table(self.folder / "documents.tsv", split)
        if not rows:
            block_N = np.arange(len(windows)) // 16
            return block_N, ["unknown"] * (int(block_N[-1]) + 1)
        starts = np.array([int(r["start"]) for r in rows])
        middle_N = np.arange(len(windows)) * windows.context + windows.context // 2
        return np.searchsorted(starts, middle_N, side="right") - 1, [r["source"] for r in rows]

    def rare(self, split: str) -> dict[str, np.ndarray]:
        """Kind of rare construction → which windows of a split hold one, (N,) bool: the middle
        token of its sentence is among their targets. Empty where none is known."""
        windows, holds = getattr(self, split), {}
        for row in _read_table(self.folder / "rare.tsv", split):
            holds_N = holds.setdefault(row["kind"], np.zeros(len(windows), bool))
            middle = (int(row["first"]) + int(row["end"])) // 2
            holds_N[(middle - 1) // windows.context :][:1] = True  # none after the last window
        return holds


def open_tokens(folder: str | Path, context: int = 0) -> Tokens:
    """A folder of tokens, made here or upstream; `context` overrides the stored one."""
    folder = Path(folder)
    if not (folder / "meta.json").is_file():
        raise FileNotFoundError(
            f"{folder / 'meta.json'} is not there: give a folder of tokens; 00_teacher makes one"
        )
    meta = _read_meta(folder / "meta.json")
    splits = {
        split: _open_split(folder / f"{split}.bin", meta, context or meta["block_size"])
        for split in ("train", "val", "confirm")
        if split != "confirm" or (folder / "confirm.bin").is_file()
    }
    path = folder / "tokenizer.model"
    tokenizer = _tokenizer(path, meta["vocab_size"]) if path.is_file() else None
    return Tokens(folder, meta, splits["train"], splits["val"], splits.get("confirm"), tokenizer)


def _read_meta(path: Path) -> dict:
    try:
        meta = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): copy it again") from None
    meta = meta if isinstance(meta, dict) else {}
    counts = {name: meta.get(name) for name in ("block_size", "vocab_size")}
    counts |= {n: meta[n] for n in ("train_tokens", "val_tokens", "confirm_tokens") if n in meta}
    for name, count in counts.items():
        if type(count) is not int or count < 1:
            raise ValueError(f"{path}: {name} is {json.dumps(count)}, it must be a whole number "
                             "above 0: copy or correct it")  # fmt: skip
    return meta


def _tokenizer(path: Path, vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(path)
    if tokenizer.size != vocab_size:
        raise ValueError(f"{path} has {tokenizer.size:,} pieces, the tokens' vocab_size is "
                         f"{vocab_size:,}: give the one they were made with")  # fmt: skip
    return tokenizer


def _open_split(path: Path, meta: dict, context: int) -> Windows:
    dtype = {"uint32": "<u4", "uint16": "<u2"}.get(meta.get("dtype", "uint32"))
    if dtype is None:
        raise ValueError(f"{path}: dtype {meta['dtype']!r} in meta.json must be uint16 or uint32: "
                         "make the tokens again as one of them")  # fmt: skip
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: a folder of tokens holds it")
    size, width = path.stat().st_size, int(dtype[-1])
    stored = meta.get(f"{path.stem}_tokens", -(-size // width))
    if size != stored * width:
        raise ValueError(
            f"{path} has {size:,} bytes, by meta.json {stored * width:,} ({stored:,} tokens of "
            f"{width}): the file was cut short or its dtype is another; copy it again"
        )
    if stored < context + 1:
        raise ValueError(
            f"{path} has {stored:,} tokens, too few for one window of {context:,} + 1: {MORE}"
        )
    _check_ids(path, dtype, meta["vocab_size"], every=max(1, size // (64 * BLOCK)))
    mask = path.with_suffix(".mask.bin")
    if mask.is_file() and mask.stat().st_size != stored:
        raise ValueError(f"{mask} has {mask.stat().st_size:,} bytes, it must have one for each of "
                         f"the {stored:,} tokens: make it again")  # fmt: skip
    return Windows(
        np.memmap(path, dtype, "r"), context, np.memmap(mask, "u1", "r") if mask.is_file() else None
    )


def _check_ids(path: Path, dtype: str | np.dtype, vocab_size: int, every: int = 1) -> bool:
    """No id of every so many blocks is beyond the vocabulary; returns whether one is <eos>. Read,
    not mapped: around a touched page the system maps 15 more, so looking here and there would map
    all of the file."""
    count, ended = BLOCK // np.dtype(dtype).itemsize, False
    for start in range(0, path.stat().st_size, every * BLOCK):
        ids = np.fromfile(path, dtype, count, offset=start)
        ended = ended or EOS in ids
        if (largest := int(ids.max())) >= vocab_size:
            raise ValueError(f"{path} holds id {largest:,}, the vocabulary has {vocab_size:,}: "
                             "copy the file and its meta.json again")  # fmt: skip
    return ended
