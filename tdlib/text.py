"""Text in: files of many kinds → documents → groups of near-duplicates → splits.

A document is a list of lines (paragraphs) and the source it came from. Nothing is normalised: the
text that is read is the text that is trained on. Whole documents are split, never lines, and
near-duplicates stay on one side, since a copy in training flatters the validation loss.
"""

import bz2
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TELUGU = re.compile("[\u0c00-\u0c7f]")
KINDS = (".txt", ".jsonl", ".parquet")
PACKED = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open, ".zst": None}  # .zst: see _bytes


@dataclass(frozen=True)
class Document:
    lines: tuple[str, ...]  # paragraphs, none empty; each will end in <eos> in the tokens
    source: str  # the file's stem, or "written/<topic>"


def read(paths: Iterable[str | Path]) -> list[Document]:
    """Documents of files and folders: .txt (a paragraph a line, a blank line between documents),
    .jsonl (field "text"), .parquet (column "text"), each also as .gz, .xz, .bz2, .zst; of a folder,
    those it holds. ValueError or FileNotFoundError: one line that names file, fault and remedy."""
    files = [file for path in paths for file in _files(Path(path))]
    names = [_stem(file) for file in files]
    documents = []
    for file, name in zip(files, names, strict=True):
        source = name if names.count(name) == 1 else f"{file.parent.name}/{name}"
        texts = _texts(file)
        found = [Document(lines, source) for text in texts if (lines := _lines(text))]
        if not found:
            raise ValueError(f"{file} holds no text: give a file with some, or leave it out")
        documents += found
    if not any(TELUGU.search(line) for d in documents for line in d.lines):
        raise ValueError(
            f"no Telugu (U+0C00–U+0C7F) in {', '.join(map(str, files[:3]))}: is it the right text, "
            "and is it UTF-8?"
        )
    return documents


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: correct the path of the text")
    known = ", ".join(KINDS)
    if path.is_dir():
        found = [p for p in sorted(path.rglob("*")) if p.is_file() and _kind(p) in KINDS]
        if not found:
            raise ValueError(f"the folder {path} holds no text: put {known} files into it")
        return found
    if _kind(path) not in KINDS:
        raise ValueError(f"{path} is none of {known} (or .gz, .xz, .bz2, .zst of one): convert it")
    return [path]


def _kind(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in PACKED else path.suffix


def _stem(path: Path) -> str:
    return path.name.removesuffix(path.suffix if path.suffix in PACKED else "").rpartition(".")[0]


def _texts(path: Path) -> Iterable[str]:
    content = _bytes(path)
    if not content:
        raise ValueError(f"{path} is empty: give a file with text")
    if _kind(path) == ".parquet":
        return _parquet(path, content)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {error.start:,}): convert it, for example with iconv"
        ) from None
    return _jsonl(path, text) if _kind(path) == ".jsonl" else re.split(r"\n\s*\n", text)


def _bytes(path: Path) -> bytes:
    try:
        if path.suffix == ".zst":
            import zstandard

            with path.open("rb") as file:
                return zstandard.ZstdDecompressor().stream_reader(file).read()
        with PACKED.get(path.suffix, open)(path, "rb") as file:
            return file.read()
    except Exception as error:  # each packer has an exception of its own
        raise ValueError(f"{path} cannot be unpacked ({error}): copy it again") from None


def _jsonl(path: Path, text: str) -> Iterable[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'{path}, line {number}: {error!r}; each line must be {{"text": "…"}}'
            ) from None
        if not isinstance(found, str):
            raise ValueError(f'{path}, line {number}: "text" is {found!r}, it must be text')
        yield found


def _parquet(path: Path, content: bytes) -> list[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(io.BytesIO(content))
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is no readable parquet ({reason}): write it again") from None
    texts = [f.name for f in table.schema if pyarrow.types.is_large_string(f.type)
             or pyarrow.types.is_string(f.type)]  # fmt: skip
    column = "text" if "text" in texts else texts[0] if len(texts) == 1 else None
    if column is None:
        raise ValueError(f'{path} has columns {table.column_names}: name the one with text "text"')
    return [text for text in table.column(column).to_pylist() if text]


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line for raw in text.splitlines() if (line := raw.strip()))


def section(documents: Iterable[Document], characters: int = 20_000) -> list[Document]:
    """Works longer than `characters` cut at line ends into sections of about that length, so that a
    split by documents has something to choose from."""
    sections = []
    for document in documents:
        lines, size = [], 0
        for line in document.lines:
            if lines and size + len(line) > characters:
                sections.append(Document(tuple(lines), document.source))
                lines, size = [], 0
            lines.append(line)
            size += len(line)
        sections.append(Document(tuple(lines), document.source))
    return sections


def near_duplicates(documents: list[Document], similarity: float = 0.3) -> np.ndarray:
    """A group number a document, (N,): equal where two share at least about `similarity` of their
    three-word sequences (Jaccard, by MinHash), or are linked by others that do. Numbers count as
    one word, so that a template filled with other figures meets itself. Nothing is dropped."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=similarity, num_perm=64)
    group_N = np.arange(len(documents))

    def root(i: int) -> int:
        while group_N[i] != i:
            i = group_N[i]
        return i

    for i, document in enumerate(documents):
        shingles = _shingles(document)
        if not shingles:
            continue
        sketch = MinHash(num_perm=64, hashfunc=int)
        sketch.update_batch(shingles)
        for j in index.query(sketch):
            group_N[root(j)] = root(i)
        index.insert(i, sketch)
    return np.array([root(i) for i in range(len(documents))])


def _shingles(document: Document) -> list[int]:
    words = re.sub(r"\d+", "0", " ".join(document.lines)).split()
    hashes = [zlib.crc32(" ".join(words[i : i + 3]).encode()) for i in range(len(words) - 2)]
    kept = [h for h in hashes if h % 8 == 0]  # an eighth is enough for a long text
    return kept if len(kept) > 100 else hashes


def split(
    documents: list[Document],
    group_N: np.ndarray,
    *,
    val_share: float,
    confirm_share: float = 0.0,
    seed: int,
) -> list[str]:
    """Each document's side: train, val or confirm. Whole groups go to one side, in a seeded order,
    until a side has its share of the characters; a group over twice a side's share stays in train.
    ValueError where the text is one group, or nothing is small enough for a side."""
    size_N = np.array([sum(map(len, d.lines)) for d in documents])
    groups, member_N = np.unique(group_N, return_inverse=True)
    if len(groups) < 2:
        raise ValueError(
            f"the text is {len(documents)} document(s) that are all alike: a split needs at least "
            "two different ones; give more text, or put blank lines between documents"
        )
    size_G = np.bincount(member_N, size_N)
    side_G = np.full(len(groups), "train", dtype=object)
    waiting = list(np.random.default_rng(seed).permutation(len(groups)))
    for side, share in (("val", val_share), ("confirm", confirm_share)):
        wanted, have = share * size_N.sum(), 0
        for g in list(waiting):
            if have < wanted and size_G[g] <= 2 * wanted and len(waiting) > 1:
                side_G[g], have = side, have + size_G[g]
                waiting.remove(g)
        if share and not have:
            raise ValueError(
                f"no group of documents is small enough for a {side} share of {share:g}: "
                "give more documents, shorter sections, or a larger share"
            )
    return side_G[member_N].tolist()
