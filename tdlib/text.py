"""Text in: files of many kinds → documents → groups of near-duplicates → splits.

A document is a list of lines (paragraphs) and the source it came from. Nothing is normalised: the
text that is read is the text that is trained on. Whole documents are split, never lines, and
near-duplicates stay on one side, since a copy in training flatters the validation loss.
Legend: N documents, G groups of near-duplicates, L lines of a document.
"""

import bz2
import codecs
import gzip
import io
import json
import lzma
import os
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

import numpy as np

TELUGU = re.compile("[\u0c00-\u0c7f]")
KINDS = (".txt", ".jsonl", ".parquet")
TEXT = re.compile("(large_)?string|dictionary<values=(large_)?string")  # kinds of a column
PACKED = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open, ".zst": None}  # .zst: see _open
ALIKE, AT_LEAST = 0.05, 10  # share and number of common four-word sequences: see near_duplicates
HASHES, FAMILY = 128, 200  # of a MinHash; members of a group that newcomers are compared with


@dataclass(frozen=True)
class Document:
    lines: tuple[str, ...]  # paragraphs, none empty; each will end in <eos> in the tokens
    source: str  # the file's stem, or "written/<topic>"


def read(paths: list[str | Path]) -> list[Document]:
    """Documents of files and folders: .txt (a paragraph a line, a blank line between documents),
    .jsonl (field "text"), .parquet (column "text", or the only one with text), each also as .gz,
    .xz, .bz2, .zst; of a folder, those it holds. Only BOM, trailing blanks and empty lines go.
    ValueError or FileNotFoundError: one line that names file, fault and remedy."""
    files = list(dict.fromkeys(file for path in paths for file in _files(Path(path))))
    names = [_name(file)[0] for file in files]
    documents = []
    for file, name in zip(files, names, strict=True):
        source = name if names.count(name) == 1 else f"{file.absolute().parent.name}/{name}"
        found = [Document(lines, source) for lines in _documents(file) if lines]
        if not found:
            raise ValueError(f"{file} is empty: give a file with text, or leave it out")
        documents += found
    if not any(TELUGU.search(line) for d in documents for line in d.lines):
        given = ", ".join(map(str, paths)) or "no file"
        raise ValueError(f"no Telugu (U+0C00–U+0C7F) in {given}: give Telugu text in UTF-8")
    return documents


def _files(path: Path) -> list[Path]:
    known = f"{', '.join(KINDS)} (plain or {', '.join(PACKED)})"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: correct the path of the text")
    if path.is_file():
        if _name(path)[1] not in KINDS:
            raise ValueError(f"{path} is no {known}: convert it, or correct its name")
        return [path]
    if not path.is_dir():  # a pipe would be waited for
        raise ValueError(f"{path} is neither a file nor a folder: give one of the two")
    # A name that begins with a dot is a tool's, such as .ipynb_checkpoints/copy.txt.
    every = (Path(at, name) for at, _, names in os.walk(path, onerror=_closed) for name in names)
    found = [p for p in sorted(every) if (p.is_file() or p.is_symlink())  # a broken link is told of
             and not any(part.startswith(".") for part in p.relative_to(path).parts)]  # fmt: skip
    files = [p for p in found if _name(p)[1] in KINDS]
    if not files:
        raise ValueError(f"the folder {path} holds no text: put {known} into it")
    if other := sorted(p.name for p in set(found) - set(files)):
        names = ", ".join(other[:3]) + (", …" if other[3:] else "")
        warnings.warn(f"{path}: {len(other)} files not read ({names}): no {known}", stacklevel=4)
    return files


def _closed(error: OSError) -> None:
    raise ValueError(f"{error.filename} cannot be read ({error.strerror}): allow it, chmod -R a+rX")


def _name(path: Path) -> tuple[str, str]:
    """What a file is called and its kind, packed or not."""
    plain = path.with_suffix("") if path.suffix.lower() in PACKED else path
    return plain.stem, plain.suffix.lower()


def _open(path: Path) -> BinaryIO:
    if path.suffix.lower() != ".zst":
        return PACKED.get(path.suffix.lower(), open)(path, "rb")
    import pyarrow  # unlike zstandard's reader it reads every frame and notices a file cut short

    return pyarrow.input_stream(str(path), compression="zstd")


def _documents(path: Path) -> Iterator[tuple[str, ...]]:
    try:
        with _open(path) as file:
            parse = {".txt": _txt, ".jsonl": _jsonl, ".parquet": _parquet}[_name(path)[1]]
            yield from parse(path, file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} {_not_utf8(path, error.reason)}") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"{path} cannot be read ({why}): copy or pack it again") from None


def _not_utf8(path: Path, reason: str) -> str:
    with _open(path) as file:  # once more, for the error counts from the block it was in
        content = file.read()
    good = re.split("[\udc80-\udcff]", content.decode(errors="surrogateescape"))[0]
    byte = f"byte {len(good.encode()):,}"
    if reason == "unexpected end of data":
        return f"ends within a character ({byte}): it was cut short, copy it again"
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "UTF-16" if wide else "ITS_ENCODING"
    return f"is not UTF-8 ({byte}): convert it, iconv -f {encoding} -t UTF-8"


def _txt(path: Path, file: BinaryIO) -> Iterator[tuple[str, ...]]:
    def lines() -> Iterator[str]:
        for number, line in enumerate(io.TextIOWrapper(file, encoding="utf-8-sig"), 1):
            if "\0" in line:
                raise ValueError(f"{path}: line {number} holds zero bytes, as UTF-16 and damaged "
                                 "files do: convert it with iconv, or copy it again")  # fmt: skip
            yield line.rstrip()

    return (tuple(document) for filled, document in groupby(lines(), bool) if filled)


def _jsonl(path: Path, file: BinaryIO) -> Iterator[tuple[str, ...]]:
    for number, line in enumerate(io.TextIOWrapper(file, encoding="utf-8-sig"), 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
            text.encode()  # it is text, without half a surrogate pair
        except (ValueError, KeyError, TypeError, AttributeError):
            fault = f"line {number} is {line.strip()[:40]!r}"
            raise ValueError(f'{path}: {fault}, it must be like {{"text": "…"}}') from None
        yield _lines(text)


def _parquet(path: Path, file: BinaryIO) -> Iterator[tuple[str, ...]]:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(file.read()))
        kinds = {field.name: str(field.type) for field in table.schema_arrow}
        texts = [name for name, kind in kinds.items() if TEXT.match(kind)]
        column = "text" if "text" in texts else texts[0] if len(texts) == 1 else None
        if not column:
            found = ", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or "none"
            raise ValueError(f'{path} has the columns {found}: call the one with the text "text"')
        for batch in table.iter_batches(columns=[column]):
            yield from (_lines(text or "") for text in batch.column(0).to_pylist())
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise OSError(str(error).splitlines()[0]) from None


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line for raw in re.split(r"[\r\n]+", text) if (line := raw.rstrip()))


def section(documents: Iterable[Document], characters: int = 20_000) -> list[Document]:
    """Works longer than `characters` are cut at line ends into equal sections of at most about that
    length, so that a split by documents has something to choose from. Sources are kept."""
    sections = []
    for document in documents:
        size_L = np.array([len(line) for line in document.lines])
        count = -(-size_L.sum() // characters)  # rounded up
        middle_L = np.cumsum(size_L) - size_L / 2  # a line is where its middle is
        starts = np.unique(middle_L * count // size_L.sum(), return_index=True)[1]
        for lines in np.split(np.array(document.lines, dtype=object), starts[1:]):
            sections.append(Document(tuple(lines), document.source))
    return sections


def near_duplicates(documents: list[Document]) -> np.ndarray:
    """A group number a document, (N,): equal where two share 5 % of their four-word sequences
    (Jaccard) and 10 of them (or half of a text that has fewer than 20), or are linked by others
    that do. Numbers count as one word, so that templates with other figures meet; a refrain alone
    links no poems. Nothing is dropped: copies are grouped too. MinHash finds who is compared."""
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


def split(
    documents: list[Document],
    group_N: np.ndarray,
    *,
    val_share: float,
    confirm_share: float = 0.0,
    seed: int,
) -> list[str]:
    """Each document's side: train, val or confirm. In a seeded order, a whole group joins a side
    where that brings it nearer to its share of the characters; so one of twice the share or more
    stays in train, and the largest does. ValueError where a side finds none."""
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
            least = size_G[side_G == "train"].min() / size_N.sum()
            raise ValueError(
                f"{side}_share {share:g} of the text cannot be put aside: it is {len(documents)} "
                f"documents in {len(groups)} groups of near-duplicates, the smallest left is "
                f"{least:.0%} of it; give more documents (in .txt a blank line ends one), a larger "
                f"{side}_share or a smaller section_characters"
            )
    return side_G[member_N].tolist()
