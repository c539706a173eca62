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
    documents = _starts(tokens.folder / "documents.tsv", COLUMNS, len(windows.ids), split)
    middle_N = np.arange(len(windows)) * windows.context + windows.context // 2
    first_S = [start for start, _ in named]
    if not documents:
        source_N = np.searchsorted(first_S, middle_N, side="right")
        begins_N = np.diff(source_N, prepend=source_N[0]) != 0
        begins_N[::NEIGHBOURS] = True
        documents = [(middle, "unknown") for middle in middle_N[begins_N]]
    start_D, source_D = map(list, zip(*documents, strict=True))
    if named:
        source_D = [named[i - 1][1] for i in np.searchsorted(first_S, start_D, side="right")]
    return np.searchsorted(start_D, middle_N, side="right") - 1, source_D


def fold(tokens: data.Tokens, part: str) -> np.ndarray:
    """Which training windows are of fold "k/n", (N,) bool: those of every n-th document."""
    k, n = map(int, part.split("/"))
    return of(tokens, "train")[0] % n == k - 1


def sources(tokens: data.Tokens) -> list[tuple[int, str]]:
    """First token and name of each source in sources.tsv, in order; [] without such a file."""
    return _starts(tokens.folder / "sources.tsv", ("start", "name"), len(tokens.train.ids))


def _starts(path: Path, columns: tuple, size: int, split: str = "") -> list[tuple[int, str]]:
    """First token and name of each row, [] without the file. ValueError: a row is cut or odd."""
    if not path.is_file():
        return []
    quoting = csv.QUOTE_MINIMAL if split else csv.QUOTE_NONE  # sources.tsv is typed by hand
    with open(path, encoding="utf8", newline="") as f:
        rows = [row for row in csv.reader(f, "excel-tab", quoting=quoting) if row]
    heading = rows and not any(cell[:1].isdecimal() for cell in rows[0])
    at, starts, last, end = columns.index("start"), [], -1, size
    for row in rows[bool(heading) :] or [[]]:
        numbers = row[at:-1]
        if len(row) != len(columns) or not all(row) or not all(map(str.isdecimal, numbers)):
            fault = f"{path}: {row} is no row of it, it must be {', '.join(columns)}"
            raise ValueError(f"{fault}: copy it again, or take it away")
        if split in ("", row[0]):
            start, end = int(numbers[0]), sum(map(int, numbers)) if split else size
            if not last < start < (size if starts else 1):
                fault = f"{path}: {row[-1]} begins at {start:,}, the first must begin at 0, each"
                where = f"other one after {last:,} and before {size:,}"
                raise ValueError(f"{fault} {where}: copy it again, correct it, or take it away")
            starts.append((last := start, row[-1]))
    if end < size:
        fault = f"{path}: the documents of {split} end at {end:,} of {size:,} tokens"
        raise ValueError(f"{fault}, it was cut short: copy it again, or take it away")
    return starts
