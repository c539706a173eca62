"""Which document, and which source, each window is of.

documents.tsv lies beside tokens that were made here, and says where each document starts. A reader
may put sources.tsv there, which names the sources of train.bin: a line each, the number of its
first token, a tab, its name. Legend: N windows of a split, D documents, S sources.
"""

import csv
from pathlib import Path

import numpy as np

from tdlib import data

COLUMNS = ("split", "start", "tokens", "source")  # of documents.tsv
AGAIN = "copy the one made with these tokens again, or take it away"
NEIGHBOURS = 16  # windows that stand for a document where none is known


def of(tokens: data.Tokens, split: str) -> tuple[np.ndarray, list[str]]:
    """The number of the document in each window's middle, (N,), and each document's source.
    Where documents are unknown, 16 neighbouring windows of one source stand for one."""
    windows = getattr(tokens, split)
    documents = _documents(tokens.folder / "documents.tsv", split, len(windows.ids))
    named = sources(tokens) if split == "train" else []
    first_S, names = np.array([first for first, _ in named]), [name for _, name in named]
    middle_N = np.arange(len(windows)) * windows.context + windows.context // 2
    if documents:
        start_D = np.array([start for start, _ in documents])
        document_N = np.searchsorted(start_D, middle_N, side="right") - 1
        source_D = np.searchsorted(first_S, start_D, "right") - 1
        return document_N, [names[i] for i in source_D] if named else [x for _, x in documents]
    source_N = np.searchsorted(first_S, middle_N, side="right") - 1  # −1 where none is named
    block_N = np.arange(len(windows)) // NEIGHBOURS
    begins_N = np.diff(block_N, prepend=0) | np.diff(source_N, prepend=source_N[0])
    document_N = np.cumsum(begins_N != 0)
    source_D = source_N[np.unique(document_N, return_index=True)[1]]
    return document_N, [names[i] if named else "unknown" for i in source_D]


def fold(tokens: data.Tokens, part: str) -> np.ndarray:
    """Which training windows are of fold "k/n", (N,) bool: those of every n-th document."""
    k, n = map(int, part.split("/"))
    return of(tokens, "train")[0] % n == k - 1


def sources(tokens: data.Tokens) -> list[tuple[int, str]]:
    """sources.tsv: first token and name of each source, in order; a heading is passed over.
    [] where there is no such file."""
    if not (path := tokens.folder / "sources.tsv").is_file():
        return []
    lines = path.read_text(encoding="utf8").splitlines()
    rows = [line.split("\t") for line in lines if line.strip()]
    rows = rows[1:] if rows and not rows[0][0][:1].isdecimal() else rows
    for row in rows:
        if len(row) != 2 or not row[0].strip().isdecimal() or not row[1].strip():
            remedy = "a line is the number of its first token, a tab, its name"
            raise ValueError(f"{path}: {chr(9).join(row)!r} is no source: {remedy}")
    named = [(int(first), name.strip()) for first, name in rows]
    if not named or named[0][0]:
        raise ValueError(f"{path} names no source for token 0: the first begins there")
    _check(path, named, len(tokens.train.ids), "sort or correct it")
    return named


def _documents(path: Path, split: str, size: int) -> list[tuple[int, str]]:
    """Start and source of the documents of one split of so many tokens, in order; [] where there
    is no documents.tsv."""
    if not path.is_file():
        return []
    with open(path, encoding="utf8", newline="") as f:
        table = csv.DictReader(f, delimiter="\t")
        if not {*COLUMNS} <= {*(table.fieldnames or ())}:
            raise ValueError(f"{path} has no heading with {', '.join(COLUMNS)}: {AGAIN}")
        rows = [[row[name] for name in COLUMNS] for row in table if row["split"] == split]
    for i, (_, start, count, source) in enumerate(rows):
        if not (str(start).isdecimal() and str(count).isdecimal() and source is not None):
            fault = f"row {i} of {split} is {rows[i]}, it must be {', '.join(COLUMNS)}"
            raise ValueError(f"{path}: {fault}: {AGAIN}")
    if rows:
        _check(path, [(int(row[1]), f"a document of {split}") for row in rows], size, AGAIN)
        if (end := int(rows[-1][1]) + int(rows[-1][2])) < size:
            fault = f"the documents of {split} end at {end:,} of {size:,} tokens"
            raise ValueError(f"{path}: {fault}, it was cut short: {AGAIN}")
    return [(int(start), source) for _, start, _, source in rows]


def _check(path: Path, starts: list[tuple[int, str]], size: int, remedy: str) -> None:
    """ValueError: the starts do not ascend from 0, or leave the tokens."""
    last = -1
    for start, name in starts:
        if not last < start < (size if last >= 0 else 1):
            where = f"after {last:,} and before {size:,}" if last >= 0 else "0"
            raise ValueError(f"{path}: {name} begins at {start:,}, it must be {where}: {remedy}")
        last = start
