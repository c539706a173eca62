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
NEIGHBOURS = 16  # windows that stand for a document where none is known


def of(tokens: data.Tokens, split: str) -> tuple[np.ndarray, list[str]]:
    """The number of the document in each window's middle, (N,), and each document's source.
    Where documents are unknown, 16 neighbouring windows of one source stand for one."""
    windows, named = getattr(tokens, split), sources(tokens) if split == "train" else []
    path, size = tokens.folder / "documents.tsv", len(windows.ids)
    rows = [row for row in _rows(path, COLUMNS) if row[0] == split]
    if rows and (end := int(rows[-1][1]) + int(rows[-1][2])) < size:
        fault = f"{path}: the documents of {split} end at {end:,} of {size:,} tokens"
        raise ValueError(f"{fault}, it was cut short: copy it again, or take it away")
    documents = _checked(path, [(row[1], row[3]) for row in rows], size)
    middle_N = np.arange(len(windows)) * windows.context + windows.context // 2
    first_S = [start for start, _ in named]
    if not documents:
        source_N = np.searchsorted(first_S, middle_N, side="right")
        begins_N = np.diff(source_N, prepend=source_N[0]) != 0
        begins_N[::NEIGHBOURS] = True
        documents = [(middle, "unknown") for middle in middle_N[begins_N]]
    start_D = [start for start, _ in documents]
    source_D = [source for _, source in documents]
    if named:
        source_D = [named[i - 1][1] for i in np.searchsorted(first_S, start_D, side="right")]
    return np.searchsorted(start_D, middle_N, side="right") - 1, source_D


def fold(tokens: data.Tokens, part: str) -> np.ndarray:
    """Which training windows are of fold "k/n", (N,) bool: those of every n-th document."""
    k, n = map(int, part.split("/"))
    return of(tokens, "train")[0] % n == k - 1


def sources(tokens: data.Tokens) -> list[tuple[int, str]]:
    """First token and name of each source in sources.tsv, in order; [] without such a file."""
    path, size = tokens.folder / "sources.tsv", len(tokens.train.ids)
    return _checked(path, _rows(path, ("start", "name"), csv.QUOTE_NONE), size)


def _rows(path: Path, columns: tuple[str, ...], quoting: int = csv.QUOTE_MINIMAL) -> list[list]:
    """The rows of a table, if it is there, but for its heading. ValueError: one is cut or odd."""
    if not path.is_file():
        return []
    with open(path, encoding="utf8", newline="") as f:
        rows = [row for row in csv.reader(f, "excel-tab", quoting=quoting) if row]
    heading = rows and not any(cell[:1].isdecimal() for cell in rows[0])
    numbers = [i for i, name in enumerate(columns) if name in ("start", "tokens")]
    for row in (rows := rows[bool(heading) :]) or [[]]:
        whole = len(row) == len(columns) and all(row)
        if not whole or not all(row[i].isdecimal() for i in numbers):
            fault = f"{path}: {row} is no row of it, it must be {', '.join(columns)}"
            raise ValueError(f"{fault}: copy it again, or take it away")
    return rows


def _checked(path: Path, rows: list, size: int) -> list[tuple[int, str]]:
    """Starts as numbers. ValueError: they do not ascend from 0, or leave the tokens."""
    starts, last = [(int(start), name) for start, name in rows], -1
    for start, name in starts:
        if not last < start < (size if last >= 0 else 1):
            where = f"after {last:,} and before {size:,}" if last >= 0 else "0"
            fault = f"{path}: {name} begins at {start:,}, it must be {where}"
            raise ValueError(f"{fault}: copy it again, correct it, or take it away")
        last = start
    return starts
