"""Text in: files of many kinds → documents → groups of near-duplicates → splits.

Nothing is normalised: the text that is read is the text that is trained on. Near-duplicates stay on
one side of a split, since a copy in training flatters the validation loss.
Legend: N documents, G groups of near-duplicates, L lines of a document.
"""

import bz2
import gzip
import json
import lzma
import os
import re
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow.parquet

from tdbook.runs.machine import below
from tdlib.files import refused

TELUGU = re.compile("[\u0c00-\u0c7f]")
KINDS = (".txt", ".jsonl", ".parquet")
STRINGS = re.compile(r"text \(((large_)?string|dictionary<values=(large_)?string)")
PACKED = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
PACKED[".zst"] = lambda path, mode: pyarrow.input_stream(str(path), compression="zstd")
READABLE = f"{', '.join(KINDS)} (plain or {', '.join(PACKED)})"
# of documents; the share of them that is of one line, and that of larger gaps: see _txt
FEWEST, SINGLE, LARGER = 6, 0.8, 0.002
UNREAD = f"not read, being hidden or no {READABLE}"  # what an account is told of files
JOINED = "in which a blank line ends a paragraph, and a larger gap a document"
APART = "in which each blank line ends a document: put two between them if one ends a paragraph"
DAMAGED = "with characters that were lost before (U+FFFD)"
ALIKE, AT_LEAST = 0.05, 10  # share and number of common four-word sequences: see near_duplicates
HASHES, FAMILY = 128, 200  # of a MinHash; members of a group that newcomers are compared with


@dataclass(frozen=True)
class Document:
    lines: tuple[str, ...]  # paragraphs, none empty; each will end in <eos> in the tokens
    source: str  # the file's stem, or "written/<topic>"
    work: int = 0  # of a section, the number of the document it was cut from


@dataclass
class Account:
    """What `read` found and what it left. An unread file counts a third of its bytes."""

    files: int = 0
    documents: int = 0
    characters: int = 0  # read
    there: int = 0  # about
    told: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # names of files

    def notes(self) -> list[str]:
        few = {note: ", ".join([*some[:3], "…"][: len(some)]) for note, some in self.told.items()}
        return [f"{len(self.told[note]):,} files {note} ({names})" for note, names in few.items()]

    def missing(self) -> str:
        """What a finding must say, without names; "" where no more than 0.1 % is missing."""
        share, unread = 1 - self.characters / max(1, self.there), len(self.told.get(UNREAD, []))
        missing = f" Missing of the text given: {unread:,} files not read ({share:.2%})."
        return missing if self.there and share > 0.001 else ""


def read(paths: list[str | Path], account: Account | None = None) -> list[Document]:
    """Documents of files, and of folders with what these link to, of KINDS, each also packed. Only
    BOM, trailing blanks and empty lines go; `account` notes what is not read."""
    account = account or Account()
    files = {}  # each once, however many links lead to it
    for path in (file for given in paths for file in _files(Path(given), account)):
        files.setdefault(os.path.realpath(path), path)
    names, documents = Counter(_name(path)[0] for path in files.values()), []
    for path in files.values():
        source, parent = _name(path)[0], path.absolute().parent.name
        source = f"{parent}/{source}" if names[source] > 1 else source
        rows = [*_documents(path, account)]
        if not any(rows):
            raise ValueError(f"{path} is empty: give a file with text, or leave it out")
        if empty := rows.count(()):
            account.told[f"with {empty / len(rows):.1%} of the rows empty"].append(path.name)
        if any("\ufffd" in line for row in rows for line in row):
            account.told[DAMAGED].append(path.name)
        documents += [Document(row, source) for row in rows if row]
    lines = [line for document in documents for line in document.lines]
    if not any(map(TELUGU.search, lines)):
        given = ", ".join(map(str, paths)) or "no file"
        raise ValueError(f"no Telugu (U+0C00–U+0C7F) in {given}: give Telugu text in UTF-8")
    size = sum(map(len, lines))
    account.files, account.documents = len(files), len(documents)
    account.characters += size
    account.there += size
    if notes := account.notes():
        warnings.warn("; ".join(notes), stacklevel=2)
    return documents


def _files(path: Path, account: Account) -> list[Path]:
    if path.is_file():
        if _name(path)[1] not in KINDS:
            raise ValueError(f"{path} is no {READABLE}: convert it, or correct its name")
        return [path]
    if not path.is_dir():  # a pipe would be waited for
        raise ValueError(f"{path} is neither a file nor a folder: give one of the two")
    every = sorted(below(path, _unreadable))
    # A name that begins with a dot is a tool's, such as .ipynb_checkpoints/copy.txt.
    shown = [p for p in every if "/." not in f"/{p.relative_to(path)}"]
    # A link that leads nowhere is refused when it is opened.
    texts = [p for p in every if _name(p)[1] in KINDS and (p.is_file() or not p.exists())]
    files = sorted({*texts} & {*shown})
    if not files:
        raise ValueError(f"the folder {path} holds no text: put {READABLE} into it")
    given = {*map(os.path.realpath, files)}  # a hub's cache has links beside what they lead to
    if left := [p for p in sorted({*texts, *shown}) if os.path.realpath(p) not in given]:
        account.told[UNREAD] += [p.name for p in left]
        account.there += sum(p.stat().st_size for p in left if p.is_file()) // 3
    return files


def _unreadable(error: OSError) -> None:
    raise ValueError(f"{error.filename} cannot be read ({error.strerror}): allow it, chmod -R a+rX")


def _name(path: Path) -> tuple[str, str]:
    """What a file is called and its kind, packed or not."""
    plain = path.with_suffix("") if path.suffix.lower() in PACKED else path
    return plain.stem, plain.suffix.lower()


def _documents(path: Path, account: Account) -> Iterator[tuple[str, ...]]:
    """The lines of each document; none for a row without text."""
    parse = {".txt": _txt, ".jsonl": _jsonl, ".parquet": _parquet}[_name(path)[1]]
    errors = OSError, EOFError, lzma.LZMAError, zlib.error
    with refused(f"{path} cannot be read", "copy or pack it again", *errors):
        with PACKED.get(path.suffix.lower(), open)(path, "rb") as file:
            yield from parse(path, file, account)


def _content(path: Path, file: BinaryIO) -> bytes:
    """All of a file; a packed one may be made to hold far more than memory."""
    most = left = max(2**26, 100 * path.stat().st_size)
    parts = []
    while part := file.read(2**20):
        if (left := left - len(part)) < 0:
            fault = f"{path} unpacks to more than {most:,} bytes, 100 times its size"
            raise ValueError(f"{fault}: unpack it, in parts")
        parts.append(part)
    return b"".join(parts)


def _lines_of(path: Path, file: BinaryIO) -> list[str]:
    """The lines of a file of UTF-8, whatever ends them."""
    content = _content(path, file)
    try:
        bad, text = content.find(0), content.decode()
    except UnicodeDecodeError as error:
        bad = error.start
    if bad >= 0:
        fault = f"{path} is not UTF-8 (byte {bad:,}; UTF-16 has zero bytes, so have damaged files)"
        raise ValueError(f"{fault}: convert it, iconv -f ITS_ENCODING -t UTF-8, or copy it again")
    return re.split("\r\n?|\n", text.removeprefix("\ufeff"))


def _txt(path: Path, file: BinaryIO, account: Account) -> list[tuple[str, ...]]:
    """Blank lines end a document. Where nearly every one would then be a single line, and larger
    gaps are there, blank lines end paragraphs and the larger gaps documents."""
    text = "\n".join(map(str.rstrip, _lines_of(path, file))).strip("\n")
    pieces = re.split("\n(\n+)", text)  # every other one is a gap
    documents, gaps = [tuple(part.split("\n")) for part in pieces[::2] if part], pieces[1::2]
    count, least = len(documents), min(gaps, default="")
    single, larger = sum(len(d) == 1 for d in documents), sum(gap > least for gap in gaps)
    lone, many = single >= SINGLE * count, larger >= max(1, LARGER * count)
    if count >= FEWEST and (lone or (many and larger <= count / 2)):
        account.told[JOINED if lone and many else APART].append(path.name)
        if lone and many:
            parts = re.split(rf"\n{{{len(least) + 2},}}", text)
            return [tuple(filter(None, part.split("\n"))) for part in parts]
    return documents


def _jsonl(path: Path, file: BinaryIO, account: Account) -> Iterator[tuple[str, ...]]:
    for number, line in enumerate(_lines_of(path, file), 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
            ("" if text is None else text).encode()  # it is text, without half a surrogate pair
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            fault = f"{path}: line {number} is {line.lstrip()[:40].rstrip()!r}"
            raise ValueError(f'{fault}, it must be like {{"text": "…"}}') from None
        yield _lines(text or "")


def _parquet(path: Path, file: BinaryIO, account: Account) -> Iterator[tuple[str, ...]]:
    try:
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(_content(path, file)))
        columns = [f"{field.name} ({field.type})" for field in table.schema_arrow]
        if [bool(STRINGS.match(c)) for c in columns if c.startswith("text (")] != [True]:
            fault = f"{path} has no string column called text, it has {', '.join(columns)}"
            raise ValueError(f'{fault}: call the one with the text "text", as strings')
        yield from (_lines(row or "") for row in table.read(["text"])["text"].to_pylist())
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise OSError(str(error).splitlines()[0]) from None


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line for raw in re.split(r"[\r\n]+", text) if (line := raw.rstrip()))


def section(documents: Iterable[Document], characters: int = 20_000) -> list[Document]:
    """Longer works, cut at line ends into equal sections of about so many characters."""
    sections = []
    for work, document in enumerate(documents):
        size_L = np.array([len(line) for line in document.lines])
        count = -(-size_L.sum() // characters)  # rounded up
        middle_L = np.cumsum(size_L) - size_L / 2  # a line is where its middle is
        starts = np.unique(middle_L * count // size_L.sum(), return_index=True)[1]
        for lines in np.split(np.array(document.lines, dtype=object), starts[1:]):
            sections.append(Document(tuple(lines), document.source, work))
    return sections


def drawn(documents: list[Document], wanted: Mapping[str, float], seed: int) -> np.ndarray:
    """Whole documents in a seeded order, of each source until it has about so many characters, or,
    below 1, that share of them; (N,) bool. Of a source that is not wanted: none."""
    size_N = np.array([sum(map(len, d.lines)) for d in documents])
    source_N, drawn_N = np.array([d.source for d in documents]), np.zeros(len(documents), bool)
    order_N = np.random.default_rng(seed).permutation(len(documents))
    for source, most in wanted.items():
        have, rows = 0, order_N[source_N[order_N] == source]
        limit = most if most > 1 else most * size_N[rows].sum()
        for i in rows:
            if have + size_N[i] / 2 < limit:
                drawn_N[i], have = True, have + size_N[i]
        if not have:
            there = ", ".join(sorted({*source_N}))
            fault = f"no document of {source} can be put aside: the sources are {there}"
            raise ValueError(f"{fault}; correct held_out, or leave it empty")
    return drawn_N


def near_duplicates(documents: list[Document]) -> np.ndarray:
    """A group number a document, (N,): equal where two share 5 % of their four-word sequences
    (Jaccard) and 10 of them (or half of a text that has fewer than 20), or are linked by others
    that do. Numbers count as one word, so that templates meet. MinHash finds who is compared."""
    from datasketch import MinHash, MinHashLSH
    from scipy.cluster.hierarchy import DisjointSet

    shingles = [_shingles(document) for document in documents]
    sketches = MinHash.bulk(shingles, num_perm=HASHES, hashfunc=int)
    index = MinHashLSH(num_perm=HASHES, params=(HASHES, 1))  # one common hash makes a candidate
    groups = DisjointSet(range(len(documents)))
    for i, sketch in enumerate(sketches):
        for j in index.query(sketch):
            if groups.connected(i, j) or sketch.jaccard(sketches[j]) < 2 / HASHES:
                continue
            common = len(np.intersect1d(shingles[i], shingles[j], assume_unique=True))
            a, b = len(shingles[i]), len(shingles[j])
            if common >= max(ALIKE * (a + b - common), min(AT_LEAST, a / 2, b / 2)):
                groups.merge(i, j)
        if groups.subset_size(i) <= FAMILY:  # else thousands of stubs would all meet each other
            index.insert(i, sketch)
    return np.array([groups[i] for i in range(len(documents))], dtype=int)


def _shingles(document: Document) -> np.ndarray:
    """32-bit hashes of the four-word sequences, ascending; a shorter text is one sequence."""
    words = re.sub(r"\d+(?:[.,]\d+)*", "0", " ".join(document.lines)).split()
    texts = (" ".join(words[i : i + 4]) for i in range(max(1, len(words) - 3)))
    return np.unique([zlib.crc32(text.encode()) for text in texts])


def split(documents, group_N, *, val_share: float, confirm_share: float = 0, seed: int) -> list:
    """Each document's side: train, val or confirm. In a seeded order a group joins, as a whole, a
    side that it brings nearer to its share of the characters; the largest group stays in train."""
    size_N = np.array([sum(map(len, d.lines)) for d in documents])
    groups, member_N = np.unique(group_N, return_inverse=True)
    size_G = np.bincount(member_N, size_N)
    side_G = np.full(len(groups), "train", dtype=object)
    order_G = np.random.default_rng(seed).permutation(np.argsort(size_G)[:-1])  # largest: train
    for side, share in (("val", val_share), ("confirm", confirm_share)):
        wanted, have = share * size_N.sum(), 0
        for g in order_G[side_G[order_G] == "train"]:
            if have + size_G[g] / 2 < wanted:
                side_G[g], have = side, have + size_G[g]
        if share and not have:
            fault = f"{side}_share {share:g} of the text cannot be put aside: it is {len(size_N)} "
            fault += f"documents in {len(groups)} groups of near-duplicates, all too large"
            raise ValueError(f"{fault}: give more documents, or a smaller section_characters")
    return side_G[member_N].tolist()
