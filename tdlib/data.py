"""Tokens and windows: what every notebook trains on, scores and evaluates.

A folder of tokens holds train.bin, val.bin (and confirm.bin where asked), raw little-endian ids,
and meta.json, all as upstream writes and reads them; beside them documents.tsv (where each document
starts) and the tokenizer; rare.tsv, where the text came with known rare constructions, says where
their sentences lie. A reader may put sources.tsv there, which names the sources of train.bin: a
line each, the number of its first token, a tab, its name. Each line of text ends in <eos>.
Window i is tokens [i·T, i·T + T + 1): T inputs and their T targets, shifted by one. Windows are
numbered once and for all, so a difficulty means the same thing in every notebook.
Legend: B windows of a batch, T tokens of a window (the context), N windows of a split.
"""

import csv
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

import tdlib.tokenizer
from tdlib.files import whole_folder, write_whole
from tdlib.tokenizer import BOS, EOS, PAD, UNK, Tokenizer

# and what is defined here
__all__ = ["BOS", "EOS", "PAD", "UNK", "Tokenizer", "whole_folder", "write_whole"]

IGNORE = -100
BLOCK = 2**18  # bytes read at once where ids are looked at
WHOLE = 2**30  # bytes of a file whose ids are all looked at when it is linked; of a larger one some
UNKNOWN = 0.1  # share of <unk> from which on a tokenizer does not know the text
MORE = "give more text, or a shorter context"


def read_weights(folder: Path, expected: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors (one file, or the shards of its index), in float32,
    checked against their shapes. A head where none is expected, it being tied, and the tables of
    RoPE that old exports hold are left out."""
    weights = {}
    for path in weight_files(folder):
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


def weight_files(folder: Path) -> list[Path]:
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


def write_tokens(
    folder: Path,
    splits: dict[str, list],
    tokenizer: Tokenizer,
    context: int,
    rare: dict[str, dict[str, str]] | None = None,
    vocab_size: int = 0,
) -> None:
    """Documents (`.lines`, `.source`) by split → a folder of tokens, whole or not at all. `rare`:
    line → the sentences in it that hold a rare construction → the kind of each. `vocab_size` is the
    teacher's where that has fewer pieces than the tokenizer."""
    with whole_folder(folder) as beside:
        vocab_size = vocab_size or tokenizer.size
        meta = {
            "vocab_size": vocab_size,
            "block_size": context,
            "dtype": "uint32",
            "total_tokens": 0,
            "eos_id": tokenizer.eos,
        }
        meta |= {"pieces": tokenizer.size} if tokenizer.size != vocab_size else {}
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
                        ids += [*line_ids, tokenizer.eos]
                    if (largest := max(ids)) >= vocab_size:
                        raise ValueError(f"{tokenizer.path} makes id {largest:,} of this text, the "
                                         f"teacher's vocabulary has {vocab_size:,}: give the "
                                         "teacher's own tokenizer")  # fmt: skip
                    f.write(np.asarray(ids, dtype="<u4").tobytes())  # tofile hides a full disk
                    rows.append((split, start, len(ids), document.source))
                    unknown += 0 if tokenizer.unk is None else ids.count(tokenizer.unk)
                    start += len(ids)
            if start < context + 1:
                raise ValueError(f"the text for {split} makes {start:,} tokens, too few for one "
                                 f"window of {context:,} + 1: {MORE}")  # fmt: skip
            text_bytes = sum(len(line.encode()) + 1 for d in documents for line in d.lines)
            meta |= {f"{split}_tokens": start, f"{split}_bytes": text_bytes}
            meta["total_tokens"] += start
        meta["unk_rate"] = unknown / max(1, meta["total_tokens"])
        _check_unknown(tokenizer, meta["unk_rate"])
        _write_table(beside / "documents.tsv", [("split", "start", "tokens", "source"), *rows])
        if rare:
            _write_table(beside / "rare.tsv", [("split", "first", "end", "kind"), *rare_rows])
        for name, path in tdlib.tokenizer.files(tokenizer).items():
            shutil.copy(path, beside / name)
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


def link_tokens(
    source: Path,
    folder: Path,
    *,
    tokenizer: Tokenizer | None = None,
    vocab_size: int = 0,
    context: int = 0,
    every_id: bool = False,
) -> None:
    """Use a folder of tokens made elsewhere as it is: links, no copy, nothing of it touched. Only
    meta.json is written anew where something in it is another: windows of another `context`; the
    `vocab_size` of a teacher that has fewer pieces than the tokenizer; a tokenizer from elsewhere.
    Ids are looked at here and there in a file beyond a GiB, unless `every_id` is asked for."""
    if source.resolve() == folder.resolve():
        raise ValueError(f"{source} is the run's own folder: leave tokens empty, or change out")
    tokens, files = open_tokens(source, context), _seen(source)
    meta, fewer = dict(tokens.meta), vocab_size and vocab_size < tokens.vocab_size
    if tokenizer:
        _check_tokenizer(tokenizer, meta)
        files = {n: p for n, p in files.items() if not n.startswith(("tokenizer", "special_tok"))}
        files |= tdlib.tokenizer.files(tokenizer)
    meta |= {"block_size": context} if context else {}
    meta |= {"vocab_size": vocab_size, "pieces": tokens.vocab_size} if fewer else {}
    for split in ("train", "val"):
        path, windows = source / f"{split}.bin", getattr(tokens, split)
        every = 1 if every_id or fewer or path.stat().st_size <= WHOLE else _every(path)
        known = tokenizer or tokens.tokenizer
        seen = _look(path, windows.ids.dtype, meta, every, known.unk if known else UNK)
        if not seen["eos"]:
            raise ValueError(f"{path} holds no <eos> (id {tokens.eos}), which ends each line of "
                             "text: it is damaged or made otherwise; copy it, or make it "
                             "again")  # fmt: skip
        _check_unknown(known, seen["unknown"] / seen["tokens"])
        if known and f"{split}_bytes" not in meta:
            meta[f"{split}_bytes"] = _bytes_of_text(windows, known)
    with whole_folder(folder) as beside:
        for name, path in files.items():
            if name != "meta.json" or meta == tokens.meta:
                os.symlink(path.resolve(), beside / name)
        if meta != tokens.meta:
            (beside / "meta.json").write_text(json.dumps(meta, indent=2), encoding="utf8")


def _seen(folder: Path) -> dict[str, Path]:
    """Its files by name; hidden ones, the book's mark among them, are of that folder alone."""
    return {path.name: path for path in folder.iterdir() if not path.name.startswith(".")}


def _check_unknown(tokenizer: Tokenizer | None, share: float) -> None:
    if share > UNKNOWN:
        whose = f"{tokenizer.path} makes" if tokenizer else "the tokens hold"
        raise ValueError(f"{whose} {share:.0%} of this text <unk>: give the tokenizer of the "
                         "teacher, or text of its language")  # fmt: skip


def _bytes_of_text(windows: "Windows", tokenizer: Tokenizer, count: int = 256) -> int:
    """How long the text of a split is, from windows spread evenly over it."""
    rows = np.unique(np.linspace(0, len(windows) - 1, count).astype(int))
    t = windows.context
    texts = (tokenizer.decode(windows.ids[i * t : (i + 1) * t].tolist()) for i in rows)
    return round(sum(len(x.encode()) for x in texts) / (len(rows) * t) * len(windows.ids))


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
        for each, counts in ((self.weights, lambda w: w), (self.mask, lambda m: m > 0)):
            weights_BT *= 1 if each is None else counts(each[at_BT])
        return weights_BT

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
            found = (*self.batch(rows_B), *more(rows_B))
            return [x.pin_memory() if "cuda" in device else x for x in found]

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

    @property
    def eos(self) -> int:
        return self.meta.get("eos_id", EOS)

    def bytes_per_token(self, split: str = "val") -> float:
        """UTF-8 bytes of text a token, NaN where unknown (token files made elsewhere)."""
        return self.meta.get(f"{split}_bytes", np.nan) / self.meta[f"{split}_tokens"]

    def documents(self, split: str) -> tuple[np.ndarray, list[str]]:
        """For each window of a split the number of the document in its middle, (N,), and for each
        document its source. Where documents are unknown, 16 neighbouring windows of one source
        stand for one."""
        windows = getattr(self, split)
        rows = _read_table(self.folder / "documents.tsv", split)
        named = read_sources(self.folder / "sources.tsv", self.train) if split == "train" else []
        first_S, names = np.array([first for first, _ in named]), [name for _, name in named]
        middle_N = np.arange(len(windows)) * windows.context + windows.context // 2
        if rows:
            starts = np.array([int(r["start"]) for r in rows])
            document_N = np.searchsorted(starts, middle_N, side="right") - 1
            if not named:
                return document_N, [r["source"] for r in rows]
            return document_N, [names[i] for i in np.searchsorted(first_S, starts, "right") - 1]
        source_N = np.searchsorted(first_S, middle_N, side="right") - 1  # −1 where none is named
        block_N = np.arange(len(windows)) // 16
        begins_N = np.diff(block_N, prepend=0) | np.diff(source_N, prepend=source_N[0])
        document_N = np.cumsum(begins_N != 0)
        of_D = source_N[np.unique(document_N, return_index=True)[1]]
        return document_N, [names[i] if named else "unknown" for i in of_D]

    def fold(self, part: str) -> np.ndarray:
        """Which training windows are of fold "k/n", (N,) bool: those of every n-th document."""
        k, n = map(int, part.split("/"))
        return self.documents("train")[0] % n == k - 1

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
    meta = read_meta(folder / "meta.json")
    splits = {
        split: _open_split(folder / f"{split}.bin", meta, context or meta["block_size"])
        for split in ("train", "val", "confirm")
        if split != "confirm" or (folder / "confirm.bin").is_file()
    }
    read_sources(folder / "sources.tsv", splits["train"])  # what is wrong is said early
    paths = [folder / name for name in ("tokenizer.model", "tokenizer.json")]
    path = next((path for path in paths if path.is_file()), None)
    tokenizer = _check_tokenizer(tdlib.tokenizer.open(path), meta) if path else None
    return Tokens(folder, meta, splits["train"], splits["val"], splits.get("confirm"), tokenizer)


def weighted(tokens: Tokens, path: Path, new: bool = False) -> Tokens:
    """The same tokens, with the weights in a file beside their training ids, one byte each; `new`:
    the file is made, all zero, and may be filled."""
    if new:
        with open(path, "wb") as file:
            file.truncate(len(tokens.train.ids))  # a hole: only what is written takes room
    weights = np.memmap(path, "u1", "r+" if new else "r")
    return replace(tokens, train=replace(tokens.train, weights=weights))


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
    found = [(int(first), name.strip()) for first, name in rows]
    if not found or found[0][0] != 0:
        raise ValueError(f"{path} names no source for token 0: {remedy}, and the first begins at 0")
    for (before, _), (first, name) in itertools.pairwise(found):
        if not before < first < len(train.ids):
            raise ValueError(f"{path}: {name} begins at {first:,}, it must be after {before:,} and "
                             f"before {len(train.ids):,}: sort or correct it")  # fmt: skip
    return found


def read_meta(path: Path) -> dict:
    """meta.json, its counts checked."""
    try:
        meta = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): copy it again") from None
    meta = meta if isinstance(meta, dict) else {}
    counts = {name: meta.get(name) for name in ("block_size", "vocab_size")}
    optional = ("train_tokens", "val_tokens", "confirm_tokens", "pieces")
    counts |= {name: meta[name] for name in optional if name in meta}
    for name, count in counts.items():
        if type(count) is not int or count < 1:
            raise ValueError(f"{path}: {name} is {json.dumps(count)}, it must be a whole number "
                             "above 0: copy or correct it")  # fmt: skip
    return meta


def _check_tokenizer(tokenizer: Tokenizer, meta: dict) -> Tokenizer:
    size, eos = meta.get("pieces", meta["vocab_size"]), meta.get("eos_id", EOS)
    if tokenizer.eos != eos:
        raise ValueError(f"<eos> of {tokenizer.path} is id {tokenizer.eos}, it must be {eos}: "
                         "give the one the tokens were made with")  # fmt: skip
    if tokenizer.size != size or size < meta["vocab_size"]:
        raise ValueError(f"{tokenizer.path} has {tokenizer.size:,} pieces, the tokens' vocab_size "
                         f"is {meta['vocab_size']:,}: give theirs")  # fmt: skip
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
    _look(path, dtype, meta, _every(path))
    mask = path.with_suffix(".mask.bin")
    if mask.is_file() and mask.stat().st_size != stored:
        raise ValueError(f"{mask} has {mask.stat().st_size:,} bytes, it must have one for each of "
                         f"the {stored:,} tokens: make it again")  # fmt: skip
    return Windows(
        np.memmap(path, dtype, "r"), context, np.memmap(mask, "u1", "r") if mask.is_file() else None
    )


def _every(path: Path) -> int:
    """How many blocks on the next one is, where some 64 are to be looked at."""
    return max(1, path.stat().st_size // (64 * BLOCK))


def _look(
    path: Path, dtype: str | np.dtype, meta: dict, every: int = 1, unknown: int | None = UNK
) -> dict[str, int]:
    """Every so many blocks: no id is beyond the vocabulary; counts <eos>, <unk> and all tokens.
    Read, not mapped: around a touched page the system maps 15 more, so looking here and there would
    map all of the file."""
    count, seen = BLOCK // np.dtype(dtype).itemsize, {"eos": 0, "unknown": 0, "tokens": 0}
    for start in range(0, path.stat().st_size, every * BLOCK):
        ids = np.fromfile(path, dtype, count, offset=start)
        if (largest := int(ids.max())) >= meta["vocab_size"]:
            raise ValueError(f"{path} holds id {largest:,}, the vocabulary has "
                             f"{meta['vocab_size']:,}: copy the file and its meta.json again, or "
                             "give the tokens the teacher was made with")  # fmt: skip
        seen["eos"] += int(np.count_nonzero(ids == meta.get("eos_id", EOS)))
        seen["unknown"] += int(np.count_nonzero(ids == unknown))
        seen["tokens"] += len(ids)
    return seen
