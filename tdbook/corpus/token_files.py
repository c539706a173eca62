"""A folder of tokens: opened, written from text, or linked from elsewhere; and whose they are.

As upstream writes and reads them: train.bin, val.bin (confirm.bin and works.bin where asked) are
raw little-endian ids; beside them lie meta.json, the tokenizer, and perhaps masks, a byte a token.
documents.tsv lies beside tokens that were made here, and says where each document starts;
train.offsets.json beside those for instruction tuning, where each example does. A reader may put
sources.tsv there, which names the sources of train.bin: a line each, the number of its first token,
a tab, its name. Legend: N windows of a split, D documents, S sources.
"""

import csv
import json
import os
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tdbook.corpus import tokenizer_files
from tdbook.corpus.tokenizer import Tokenizer, read_json
from tdlib.data import EOS, IGNORE, UNK, Tokens, Windows
from tdlib.files import whole_folder

FULL_LOOK = 2**30  # bytes of a file of which every id is looked at when it is linked
MOST_UNKNOWN = 0.1  # share of <unk> from which on a tokenizer does not know the text
BLOCK = 2**18  # bytes read at once where ids are looked at
VOCABULARY = 2**24  # pieces, at most; the largest in public have a million
COLUMNS = ("split", "start", "tokens", "source")  # of documents.tsv
EXAMPLE = r'{"start": (\w+), "length": (\w+)}'  # of offsets.json
NEIGHBOURS = 16  # windows that stand for a document where none is known
# of meta.json: upstream's names in a folder for instruction tuning; what to do without a name
OTHER_NAMES = {"vocab_size_with_special": "vocab_size", "max_seq_len": "block_size"}
ABSENT = {"vocab_size": "add it, the rows of the embedding", "block_size": "give a context"}
COUNTS = "vocab_size|block_size|pieces|(train|val|confirm|works)_(tokens|bytes|characters)"


def open_tokens(folder: str | Path, context: int = 0, given: Tokenizer | None = None) -> Tokens:
    """A folder of tokens and its tokenizer; what meta.json does not say comes from the files."""
    folder = Path(folder)
    for name in ("meta.json", "train.bin", "val.bin"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is not there: give a folder of tokens")
    paths = [folder / name for name in ("tokenizer.model", "tokenizer.json")]
    path = next((path for path in paths if path.is_file()), None)
    tokenizer = given or (tokenizer_files.open(path) if path else None)
    meta = {"block_size": context, "eos_id": tokenizer.eos if tokenizer else EOS}
    # null is not there, nor need block_size be with a `context`
    told = {name: n for name, n in read_json(folder / "meta.json").items() if n is not None}
    told = {OTHER_NAMES.get(name, name): n for name, n in told.items()}
    needed = {"vocab_size"} if context else {"vocab_size", "block_size"}
    for name in sorted(needed | {name for name in told if re.fullmatch(COUNTS, name)}):
        count, most = told.get(name), VOCABULARY if name in ("vocab_size", "pieces") else 2**63
        if type(count) is not int or not 1 <= count <= most:
            fault = f"{folder / 'meta.json'}: {name} is {json.dumps(count)}, it must be a whole"
            remedy = "copy or correct it" if name in told else ABSENT[name]
            raise ValueError(f"{fault} number above 0, at most {most:,}: {remedy}")
    meta |= {"dtype": "uint32"} | told
    paths = (folder / f"{name}.bin" for name in ("train", "val", "confirm", "works"))
    opened = {path.stem: _open_split(path, meta, context) for path in paths if path.is_file()}
    meta = {f"{name}_tokens": len(windows.ids) for name, windows in opened.items()} | meta
    tokens = Tokens(folder, meta, **opened, tokenizer=tokenizer)
    sources(tokens)  # what is wrong is said early
    size = meta.get("pieces", tokens.vocab_size)
    own = tokenizer and (tokenizer.eos, tokenizer.size) == (tokens.eos, size)
    if tokenizer and not (own and size >= tokens.vocab_size):
        fault = f"{tokenizer.path} has {tokenizer.size:,} pieces and <eos> is id {tokenizer.eos}"
        fault += f", the tokens' vocab_size is {tokens.vocab_size:,} and <eos> is {tokens.eos}"
        remedy = "correct meta.json" if tokenizer.size > size else "the file with the added pieces"
        raise ValueError(f"{fault}: give theirs, or {remedy}")
    return tokens


def _open_split(path: Path, meta: dict, context: int) -> Windows:
    dtype = {"uint32": "<u4", "uint16": "<u2"}.get(str(meta["dtype"]))
    if dtype is None:
        raise ValueError(f"{path}: dtype {meta['dtype']!r} in meta.json must be uint16 or uint32")
    mask, width = path.with_suffix(".mask.bin"), int(dtype[-1])
    stored = meta.get(f"{path.stem}_tokens", -(-path.stat().st_size // width))
    for file, each in [(path, width), *[(mask, 1)] * mask.is_file()]:
        if (size := file.stat().st_size) != stored * each:
            fault = f"{file} has {size:,} bytes, by meta.json {stored:,} tokens of {each}: the file"
            raise ValueError(f"{fault} was cut short or its dtype is another; copy it again")
    context = context or meta["block_size"]
    _check_count(f"{path} has", stored, context)
    look(path, dtype, meta)
    mask_S = np.memmap(mask, "u1", "r") if mask.is_file() else None
    return Windows(np.memmap(path, dtype, "r"), context, mask_S)


def _check_count(whose: str, count: int, context: int) -> None:
    if count < context + 1:
        fault = f"{whose} {count:,} tokens, too few for one window of {context:,} + 1"
        raise ValueError(f"{fault}: give more text, or a shorter context")


def look(path: Path, dtype: str | np.dtype, meta: dict, every_id: bool = False) -> Counter:
    """How often each id is in some 64 blocks of a file, or in all. Read, not mapped: around a
    touched page the system maps 15 more, soon all of the file."""
    block, count_V = BLOCK // np.dtype(dtype).itemsize, np.zeros(meta["vocab_size"], int)
    size = path.stat().st_size
    for start in range(0, size, BLOCK if every_id else BLOCK * max(1, size // (64 * BLOCK))):
        ids = np.fromfile(path, dtype, block, offset=start)
        if (largest := int(ids.max())) >= len(count_V):
            fault = f"{path} holds id {largest:,}, the vocabulary has {len(count_V):,}"
            remedy = "correct meta.json, or give the teacher's own tokenizer"
            if "pieces" in meta:
                remedy = f"the teacher has no more rows, this tokenizer {meta['pieces']:,} pieces: "
                remedy += "give the teacher's own"
            raise ValueError(f"{fault}: {remedy}")
        count_V += np.bincount(ids, minlength=len(count_V))
    return Counter(dict(enumerate(count_V.tolist())))


def write_tokens(folder, splits: dict, tokenizer: Tokenizer, context: int, vocab_size=0) -> None:
    """Documents by split → a folder of tokens, whole or not at all. `vocab_size` is the teacher's
    where that has fewer pieces. Of text that the tokenizer loses a warning and meta.json tell."""
    vocab_size = vocab_size or tokenizer.size
    meta = {"vocab_size": vocab_size, "block_size": context, "dtype": "uint32", "total_tokens": 0}
    meta["eos_id"] = tokenizer.eos
    meta |= {"pieces": tokenizer.size} if tokenizer.size != vocab_size else {}
    rows, lost, unknown = [COLUMNS], Counter(), 0
    with whole_folder(folder) as beside:
        for split, documents in splits.items():
            start, sizes, path = 0, Counter(), beside / f"{split}.bin"
            with open(path, "wb") as f:
                for document in documents:
                    ids = _encode(document.lines, tokenizer, sizes, lost)
                    f.write(np.asarray(ids, dtype="<u4").tobytes())  # tofile hides a full disk
                    rows.append((split, start, len(ids), document.source))
                    start += len(ids)
            _check_count(f"the text for {split} makes", start, context)
            unknown += look(path, "<u4", meta, every_id=True)[tokenizer.unk]
            meta |= {f"{split}_tokens": start} | {f"{split}_{k}": n for k, n in sizes.items()}
            meta["total_tokens"] += start
        meta["unk_rate"] = unknown / max(1, meta["total_tokens"])
        _check_unknown(tokenizer, meta["unk_rate"])
        if lost["lines"]:
            shares = {name: lost[name] / lost[f"of_{name}"] for name in ("lines", "characters")}
            meta["lost"] = {"of_lines": lost["of_lines"], **shares}
            warnings.warn(f"{tokenizer.path}:{loss(meta)}", stacklevel=2)
        with open(beside / "documents.tsv", "w", encoding="utf8", newline="") as f:
            csv.writer(f, delimiter="\t").writerows(rows)
        for name, path in tokenizer_files.files(tokenizer).items():
            shutil.copy(path, beside / name)
        (beside / "meta.json").write_text(json.dumps(meta, indent=2))


def _encode(lines: Sequence[str], tokenizer: Tokenizer, sizes: Counter, lost: Counter) -> list[int]:
    """A document's ids; `sizes` counts the text that comes back, `lost` what does not."""
    ids = []
    for line, line_ids in zip(lines, tokenizer.encode(lines), strict=True):
        ids += [*line_ids, tokenizer.eos]
        text = tokenizer.plain(line)
        kept = tokenizer.decode(i for i in line_ids if i != tokenizer.unk)
        sizes.update(bytes=len(kept.encode()) + 1, characters=len(kept) + 1)
        lost.update(of_lines=1, of_characters=len(text), lines=kept != text)
        lost["characters"] += (Counter(text) - Counter(kept)).total() if kept != text else 0
    return ids


def loss(meta: dict) -> str:
    """A sentence, after a space, of what a text's tokens do not keep by their meta.json; or ""."""
    lost = "{lines:.1%} of {of_lines:,} lines come back changed, {characters:.2%} of all characters"
    words = f" The tokenizer does not keep all text: {lost} are lost; bits are of what comes back."
    return words.format(**meta["lost"]) if "lost" in meta else ""


def link_tokens(
    source: Path, folder: Path, *, tokenizer=None, vocab_size=0, context=0, every_id=False
) -> None:
    """Use a folder of tokens made elsewhere as it is: links, and a meta.json of its own. A given
    `tokenizer` takes the place of theirs; beyond a GiB only some ids are looked at."""
    if source.resolve() == folder.resolve():
        raise ValueError(f"{source} is the run's own folder: leave tokens empty, or change out")
    tokens = open_tokens(source, context, tokenizer)
    meta, words = tokens.meta | {"block_size": tokens.context}, tokens.tokenizer
    if vocab_size and vocab_size < tokens.vocab_size:
        meta |= {"vocab_size": vocab_size, "pieces": tokens.vocab_size}
        every_id = True
    for split in ("train", "val"):
        path, windows = source / f"{split}.bin", getattr(tokens, split)
        if not windows.known_N.any():
            mask = source / f"{split}.mask.bin"
            raise ValueError(f"{mask} masks every target (with 0): correct it, or take it away")
        counts = look(path, windows.ids.dtype, meta, every_id or path.stat().st_size <= FULL_LOOK)
        if not counts[tokens.eos]:
            fault = f"{path} holds no <eos> (id {tokens.eos}), which ends each line of text"
            raise ValueError(f"{fault}: name the id that does as eos_id in meta.json")
        _check_unknown(words, counts[words.unk if words else UNK] / counts.total())
        origins(tokens, split)  # what is wrong is said early
        if words and f"{split}_characters" not in meta:
            meta = {f"{split}_{k}": n for k, n in _sizes(windows, words).items()} | meta
    # Hidden files, the book's mark among them, are of that folder alone.
    files = {path.name: path for path in source.iterdir() if not path.name.startswith(".")}
    if tokenizer:
        files = {n: p for n, p in files.items() if not n.startswith(("tokenizer", "special_tok"))}
        files |= tokenizer_files.files(tokenizer)
    del files["meta.json"]
    with whole_folder(folder) as beside:
        for name, path in files.items():
            os.symlink(path.resolve(), beside / name)
        (beside / "meta.json").write_text(json.dumps(meta, indent=2), encoding="utf8")


def _check_unknown(tokenizer: Tokenizer | None, share: float) -> None:
    if share > MOST_UNKNOWN:
        fault = f"{tokenizer.path} makes" if tokenizer else "the tokens hold"
        fault += f" {share:.0%} of this text <unk>"
        raise ValueError(f"{fault}: give the tokenizer of the teacher, or text of its language")


def _sizes(windows: Windows, tokenizer: Tokenizer, count: int = 256) -> dict[str, int]:
    """Of a split's text, were all of it as the targets of windows spread evenly over it."""
    known = np.flatnonzero(windows.known_N)
    rows = known[np.unique(np.linspace(0, len(known) - 1, count).astype(int))]
    targets, share = windows.batch(rows)[1], windows.targets(rows) / len(windows.ids)
    text = "".join(tokenizer.decode(y_T[y_T != IGNORE].tolist()) for y_T in targets)
    sizes = {"bytes": len(text.encode()), "characters": len(text)}
    return {unit: max(1, round(size / share)) for unit, size in sizes.items()}


def documents(tokens: Tokens, split: str) -> tuple[list[int], list[str]]:
    """First token and source of each document. Where they are unknown, 16 neighbouring windows of
    one source stand for one, from the middle of the first."""
    windows, named = getattr(tokens, split), sources(tokens) if split == "train" else []
    known = _starts(tokens.folder / "documents.tsv", COLUMNS, len(windows.ids), split)
    path = tokens.folder / f"{split}.offsets.json"
    known = known or _starts(path, COLUMNS, len(windows.ids), split)
    first_S = [start for start, _ in named]
    if not known:
        middle_N = _middles(windows)
        source_N = np.searchsorted(first_S, middle_N, side="right")
        begins_N = np.diff(source_N, prepend=source_N[0]) != 0
        begins_N[::NEIGHBOURS] = True
        known = [(middle, "unknown") for middle in middle_N[begins_N]]
    start_D, source_D = map(list, zip(*known, strict=True))
    if named:
        source_D = [named[i - 1][1] for i in np.searchsorted(first_S, start_D, side="right")]
    return start_D, source_D


def origins(tokens: Tokens, split: str) -> tuple[np.ndarray, list[str]]:
    """The number of the document in each window's middle, (N,), and each document's source."""
    start_D, source_D = documents(tokens, split)
    return np.searchsorted(start_D, _middles(getattr(tokens, split)), side="right") - 1, source_D


def _middles(windows: Windows) -> np.ndarray:
    return np.arange(len(windows)) * windows.context + windows.context // 2


def fold(tokens: Tokens, part: str) -> np.ndarray:
    """Which training windows are of fold "k/n", (N,) bool: those of every n-th document."""
    k, n = map(int, part.split("/"))
    return origins(tokens, "train")[0] % n == k - 1


def sources(tokens: Tokens) -> list[tuple[int, str]]:
    """First token and name of each source in sources.tsv, in order; [] without such a file."""
    return _starts(tokens.folder / "sources.tsv", ("start", "name"), len(tokens.train.ids))


def _starts(path: Path, columns: tuple, size: int, split: str = "") -> list[tuple[int, str]]:
    """First token and name of each row, [] without the file. ValueError: a row is cut or odd."""
    if not path.is_file():
        return []
    quoting = csv.QUOTE_MINIMAL if split else csv.QUOTE_NONE  # sources.tsv is typed by hand
    with open(path, encoding="utf8", newline="") as f:
        examples = re.findall(EXAMPLE, f.read()) if path.suffix == ".json" else []
        lines = [f"{split}\t{start}\t{length}\tunknown" for start, length in examples] or f
        rows = [row for row in csv.reader(lines, "excel-tab", quoting=quoting) if row]
    heading = rows and not any(cell[:1].isdecimal() for cell in rows[0])
    at, starts, last, end = columns.index("start"), [], -1, size
    for row in rows[bool(heading) :] or [[]]:
        numbers = row[at:-1]
        if len(row) != len(columns) or not all(row) or not all(map(str.isdecimal, numbers)):
            wanted = ", ".join(columns) if path.suffix == ".tsv" else '{"start": 0, "length": 9}'
            fault = f"{path}: {row} is no row of it, it must be {wanted}"
            raise ValueError(f"{fault}: copy it again, or take it away")
        if split in ("", row[0]):
            start, end = int(numbers[0]), sum(map(int, numbers)) if split else size
            if not last < start < (size if starts else 1):
                fault = f"{path}: {row[-1]} begins at {start:,}, the first must begin at 0, each"
                raise ValueError(f"{fault} other after {last:,} and before {size:,}: copy it again")
            starts.append((last := start, row[-1]))
    if end < size:
        fault = f"{path}: the documents of {split} end at {end:,} of {size:,} tokens"
        raise ValueError(f"{fault}, it was cut short: copy it again, or take it away")
    return starts
