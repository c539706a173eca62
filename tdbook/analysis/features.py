"""What can be said of a window without any model: junk, script, rare pieces, length, place.

Two passes over the memory-mapped tokens, some windows at a time, so memory is the same for any
number of them: the first counts pieces and n-grams, the second looks at each window. N-grams are
counted by hash in a table of fixed size, and where there are too many, some of them, the same ones
everywhere. Legend: N windows, R of them at once, T tokens of a window (its targets), V vocabulary.
"""

import contextlib
import io
import json
import os
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from tdbook.corpus import origins
from tdbook.corpus.tokenizer import BYTE, TELUGU
from tdlib import data
from tdlib.data import UNK
from tdlib.files import write_whole

DAMAGED = (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile)  # numpy's words for it
# Kinds of junk, bit flags of `junk_N`; limits as tried on 8 million tokens of verse, prose and
# Wikipedia.
JUNK = {
    1: "single-character pieces",  # text that was never segmented, or in letters of another script
    2: "<unk>",
    4: r"literal \n",  # a document whose line breaks were escaped
    8: "template repeats",  # stubs made by a program: the same sentences with other numbers in them
}
# of the way from what is usual in these tokens to all: a small vocabulary has many single letters
SINGLE = 0.5
UNKNOWN = 0.01  # of a window's tokens; one unknown name makes no junk of 2,048 tokens
ESCAPED = 0.005  # text has a line break every 15 to 60 tokens, so where they are escaped, more
# Stubs of villages had half to all of their 8-grams in five windows or more; a refrain comes back
# in one or two windows of its own poem, and 2 in 10,000 windows of verse had half (colophons).
GRAM, WINDOWS, REPEATED = 8, 5, 0.5
GRAM_CHARACTERS = 22  # of 8 pieces, as usual; where a piece is half a character, a gram has more
LOOKED_AT = 8  # n-grams of a window that are enough to say so
DISTINCT = 0.5  # of a window's own 8-grams; a refrain leaves two thirds, and a loop next to none
# Of the tokens: the rarest pieces that make up so much are rare. ("Seen under 100 times" depends on
# the corpus: 0.04 % of 8 million tokens are, and next to none of 3.7 billion.)
RARE = 0.05
SLOTS = 2**27  # bytes of the table of n-grams, at most, and twice the n-grams looked at
PIECE = 2**19  # tokens at once
PLACES = 20  # of the corpus


@dataclass(frozen=True)
class Features:
    """Of every training window, a few bytes each."""

    junk_N: np.ndarray  # uint8, flags of JUNK, 0: clean
    foreign_N: np.ndarray  # float16, share of tokens not in Telugu; NaN without a tokenizer
    rare_N: np.ndarray  # float16, share of rare tokens
    characters_N: np.ndarray  # uint16, of its text; 0 without a tokenizer


def of(
    tokens: data.Tokens,
    folder: Path | None = None,
    progress: Callable[[int, int, str], None] = lambda done, all, message: None,
) -> Features:
    """The features of all training windows; kept in `folder`, where asking again is free for as
    long as the tokens are the same. Without a tokenizer, what ids alone can say."""
    path, key = folder and folder / "features.npz", _key(tokens)
    free = path and not os.path.lexists(path)
    if path and path.is_file():
        with contextlib.suppress(*DAMAGED), np.load(path) as stored:
            free = "key" in stored  # else another's, and stays
            if free and str(stored["key"]) == key:
                return Features(*(stored[field.name] for field in fields(Features)))
    features = _look(tokens, progress)
    if free:
        file = io.BytesIO()
        np.savez(file, key=key, **asdict(features))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, file.getvalue())
    return features


def _key(tokens: data.Tokens) -> str:
    """What features depend on: the tokens' file, the windows, the tokenizer, and the limits."""
    stat = (tokens.folder / "train.bin").resolve().stat()
    limits = (SINGLE, UNKNOWN, ESCAPED, GRAM, WINDOWS, REPEATED, DISTINCT, RARE, SLOTS)
    tokenizer = tokens.tokenizer
    key = [stat.st_size, stat.st_mtime_ns, tokens.context, tokenizer is not None, *limits]
    bytewise = tokenizer is not None and (tokenizer.parts_V == 2).any()
    return json.dumps(key + ["by characters"] * bool(bytewise))


def _look(tokens: data.Tokens, progress: Callable) -> Features:
    n, t = len(tokens.train), tokens.context
    by_text, gram = _in_parts(tokens)
    grams = n * max(0, t - gram + 1)
    bits = min(int(np.log2(SLOTS)), max(10, int(np.ceil(np.log2(2 * grams + 1)))))
    share = min(1.0, 2**bits / 2 / max(1, grams))  # of the n-grams is looked at
    table, count_V, singles = np.zeros(2**bits, np.uint8), np.zeros(tokens.vocab_size, np.int64), 0
    for first, ids_RT in _pieces_of(tokens.train):
        count_V += np.bincount(ids_RT.ravel(), minlength=len(count_V))
        singles += _of_text(tokens, first, ids_RT)["single"].sum() if by_text else 0
        slots, times = np.unique(_grams(ids_RT, bits, share, gram)[1], return_counts=True)
        table[slots] = np.minimum(table[slots] + times, 255)
        progress(first + len(ids_RT), 2 * n, "windows looked at")
    of_V = _of_pieces(tokens, count_V)
    singles = float((singles if by_text else (of_V["single"] * count_V).sum()) / count_V.sum())
    limit = singles + SINGLE * (1 - singles)
    if by_text:  # where most pieces are, chance alone comes near to all
        limit = max(limit, singles + 4 * np.sqrt(singles * (1 - singles) / t))
    unknown = tokens.tokenizer.unk if tokens.tokenizer else UNK
    unknown = -1 if unknown is None else unknown
    features = Features(*(np.zeros(n, kind) for kind in ("u1", "f2", "f2", "u2")))
    for first, ids_RT in _pieces_of(tokens.train):
        rows = slice(first, first + len(ids_RT))
        of_RT = {name: of_V[name][ids_RT] for name in ("single", "foreign", "characters")}
        of_RT = _of_text(tokens, first, ids_RT) if by_text else of_RT
        flags = (
            of_RT["single"].mean(1) >= limit,
            (ids_RT == unknown).mean(1) >= UNKNOWN,
            _escaped(tokens, of_V, ids_RT) >= ESCAPED * t,
            _template(table, *_grams(ids_RT, bits, share, gram), t - gram + 1),
        )
        features.junk_N[rows] = sum(f * flag for flag, f in zip(JUNK, flags, strict=True))
        features.foreign_N[rows] = of_RT["foreign"].mean(1)
        features.rare_N[rows] = of_V["rare"][ids_RT].mean(1)
        features.characters_N[rows] = np.minimum(of_RT["characters"].sum(1).round(), 2**16 - 1)
        progress(n + rows.stop, 2 * n, "windows looked at")
    return features


def _template(
    table: np.ndarray, row: np.ndarray, slots: np.ndarray, gram_R: np.ndarray, most: int
) -> np.ndarray:
    """Which windows are of n-grams that are in many windows, or that come again and again, (R,)."""
    distinct_R = np.bincount(row, minlength=len(gram_R))
    often_R = np.bincount(row[table[slots] >= WINDOWS], minlength=len(gram_R))
    repeated_R = (often_R >= REPEATED * distinct_R) | (distinct_R < DISTINCT * gram_R)
    return repeated_R & (gram_R >= max(1, min(LOOKED_AT, most)))


def _pieces_of(windows: data.Windows) -> Iterator[tuple[int, np.ndarray]]:
    """Number of the first window, and the targets of some, (R, T)."""
    t, size = windows.context, max(1, PIECE // windows.context)
    for first in range(0, len(windows), size):
        rows = min(size, len(windows) - first)
        yield first, np.asarray(windows.ids[first * t + 1 :][: rows * t]).reshape(rows, t)


def _in_parts(tokens: data.Tokens) -> tuple[bool, int]:
    """Whether characters are cut into pieces, as BPE over bytes does, by a look at some tokens; and
    how many pieces make an n-gram."""
    tokenizer, ids = tokens.tokenizer, tokens.train.ids
    some = np.asarray(ids[:: max(1, len(ids) // 2**20)])
    if tokenizer is None or not tokenizer.in_parts(np.bincount(some, minlength=tokens.vocab_size)):
        return False, GRAM
    some = np.asarray(ids[: 2**16])
    return True, max(GRAM, int(GRAM_CHARACTERS * len(some) / tokenizer.characters(some)[1].sum()))


def _of_text(tokens: data.Tokens, first: int, ids_RT: np.ndarray) -> dict[str, np.ndarray]:
    """What `_of_pieces` says of whole characters, from those of the text: a token is of each
    character that it holds a part of, (R, T) each. `first` is the number of the first window."""
    windows, count = tokens.train, ids_RT.size
    begin = first * windows.context + 1
    more = min(4, begin)  # tokens on either side: the parts of a character that is cut there
    ids_S = np.asarray(windows.ids[begin - more : begin + count + 4])
    code_B, begins_B, token_B = tokens.tokenizer.characters(ids_S)
    codes, at_B = np.unique(code_B, return_inverse=True)
    kinds = np.array([unicodedata.category(chr(code))[0] for code in codes])
    telugu_B = ((codes >= 0x0C00) & (codes < 0x0C80))[at_B]
    shown_B = (begins_B | (np.diff(token_B, prepend=-1) > 0)) & ~np.isin(kinds, ["Z", "C"])[at_B]

    def count_of(chosen_B: np.ndarray) -> np.ndarray:
        count_S = np.bincount(token_B[chosen_B], minlength=len(ids_S))
        return count_S[more : more + count].reshape(ids_RT.shape)

    letter_RT = count_of(shown_B & np.isin(kinds, ["L", "M"])[at_B])
    says_RT = count_of(np.isin(kinds, ["L", "N"])[at_B])
    return {
        "single": (letter_RT == 1) & (count_of(shown_B) == 1),
        "foreign": (says_RT > 0) & (count_of(telugu_B) == 0),
        "characters": count_of(begins_B),
    }


def _grams(
    ids_RT: np.ndarray, bits: int, share: float, gram: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and slot of each n-gram that is looked at, once for each window that it is in; and how
    many each window has, those that come again counted again, (R,)."""
    r, t = ids_RT.shape
    count = max(0, t - gram + 1)
    hash_RG = np.zeros((r, count), np.uint64)
    for j in range(gram if count else 0):
        hash_RG *= np.uint64(0x9E3779B97F4A7C15)
        hash_RG += ids_RT[:, j : j + count].astype(np.uint64) + np.uint64(1)
    hash_RG ^= hash_RG >> np.uint64(31)
    hash_RG *= np.uint64(0xBF58476D1CE4E5B9)  # splitmix64: so that all bits depend on all ids
    chosen_RG = hash_RG & np.uint64(2**24 - 1) < np.uint64(share * 2**24)
    row = np.nonzero(chosen_RG)[0]
    key = row.astype(np.uint64) << np.uint64(bits) | hash_RG[chosen_RG] >> np.uint64(64 - bits)
    key = np.unique(key)
    own, slots = key >> np.uint64(bits), key & np.uint64(2**bits - 1)
    return own.astype(np.int64), slots.astype(np.int64), np.bincount(row, minlength=r)


def _of_pieces(tokens: data.Tokens, count_V: np.ndarray) -> dict[str, np.ndarray]:
    """What can be said of every piece of the vocabulary, (V,) each."""
    v, tokenizer = len(count_V), tokens.tokenizer
    # The first piece, from the rarest on, with which they would make up more is no longer rare, nor
    # are others as frequent.
    ascending_V = np.sort(count_V)
    limit = ascending_V[np.searchsorted(np.cumsum(ascending_V), RARE * count_V.sum(), "right")]
    of_V = {"rare": count_V < limit}
    if tokenizer is None:
        nothing_V = np.zeros(v, bool)
        unknown_V = np.full(v, np.nan, np.float32)
        return of_V | {"single": nothing_V, "foreign": unknown_V, "characters": nothing_V}
    bare = tokenizer.vocabulary()[:v]
    byte_V = np.array([bool(BYTE.fullmatch(piece)) for piece in bare])
    kinds = [[unicodedata.category(c)[0] for c in piece] for piece in bare]
    special = [*tokenizer.silent, tokenizer.eos, tokenizer.unk]
    special_V = np.isin(np.arange(v), [i for i in special if i is not None])
    single_V = np.array([len(kind) == 1 and kind[0] in "LM" for kind in kinds])
    telugu_V = np.array([bool(TELUGU.search(piece)) for piece in bare])
    says_V = np.array([bool({"L", "N"} & {*kind}) for kind in kinds]) & ~special_V
    length_V = np.array([len(piece) for piece in bare], np.float32)
    length_V += [piece[:1] == "▁" and len(piece) > 1 for piece in tokenizer.shown_V[:v]]
    length_V[byte_V], length_V[special_V], length_V[tokenizer.eos] = 1 / 3, 0, 1
    return of_V | {
        "single": (single_V | byte_V) & ~special_V,
        "foreign": (says_V & ~telugu_V).astype(np.float32),
        "characters": length_V,
        "escaped": np.array([r"\n" in piece for piece in bare]),
        "backslash": np.array([piece.endswith("\\") or piece == "<0x5C>" for piece in bare]),
        "n": np.array([piece.startswith("n") or piece == "<0x6E>" for piece in bare]),
    }


def _escaped(tokens: data.Tokens, of_V: dict[str, np.ndarray], ids_RT: np.ndarray) -> np.ndarray:
    """How many literal \\n each window holds, in one piece or in two that join, (R,)."""
    if "escaped" not in of_V:
        return np.zeros(len(ids_RT))
    count_R = of_V["escaped"][ids_RT].sum(1)
    row, at = np.nonzero(of_V["backslash"][ids_RT[:, :-1]])
    if len(row):
        pair_P2 = np.stack([ids_RT[row, at], ids_RT[row, at + 1]], 1)
        joined = of_V["n"][pair_P2[:, 1]] & ~tokens.tokenizer.begins(pair_P2)[:, 1]
        count_R = count_R + np.bincount(row[joined], minlength=len(ids_RT))
    return count_R


def cuts(tokens: data.Tokens, features: Features) -> dict[str, tuple[list[str], np.ndarray]]:
    """Cut → the names of its groups, and each window's group, a small whole number, (N,)."""
    document_N, sources = origins.of(tokens, "train")
    names, of_D = np.unique(sources, return_inverse=True)
    n = len(document_N)
    parts = [f"{100 * i // PLACES}–{100 * (i + 1) // PLACES} %" for i in range(PLACES)]
    cuts = {
        "source": (names.tolist(), of_D.astype(np.min_scalar_type(len(names)))[document_N]),
        "place in the corpus": (parts, (np.arange(n) * PLACES // n).astype(np.uint8)),
        "rare tokens": _steps(features.rare_N, (0.02, 0.05, 0.1, 0.2)),
    }
    if tokens.tokenizer:
        cuts["script"] = _steps(features.foreign_N, (0.01, 0.05, 0.2, 0.5))
    return cuts


def junk_table(
    tokens: data.Tokens, features: Features, difficulty_N: np.ndarray, hard_N: np.ndarray
) -> pd.DataFrame:
    """Each kind of junk: its windows, how many of them the choice would call hard were it not left
    out (`hard_N`), and the text of the hardest."""
    rows, t = [], tokens.context
    for flag, kind in JUNK.items():
        at, text = np.flatnonzero(features.junk_N & flag), "–"
        if len(at):
            hardest = at[np.argmax(np.nan_to_num(difficulty_N[at], nan=-np.inf))]
            ids = tokens.train.ids[hardest * t + 1 :][:t].tolist()
            text = tokens.tokenizer.decode(ids) if tokens.tokenizer else " ".join(map(str, ids))
        share, hard = f"{len(at) / len(hard_N):.2%}", f"{hard_N[at].sum():,}"
        rows.append((kind, f"{len(at):,}", share, hard, text.replace("\n", " ¶ ")[:120]))
    return pd.DataFrame(rows, columns=["junk", "windows", "of all", "of them hard", "an example"])


def _steps(share_N: np.ndarray, steps: tuple[float, ...]) -> tuple[list[str], np.ndarray]:
    percent = [f"{100 * step:g}" for step in steps]
    between = [f"{a}–{b} %" for a, b in pairwise(percent)]
    names = [f"under {percent[0]} %", *between, f"{percent[-1]} % and more"]
    return names, np.digitize(share_N, steps).astype(np.uint8)
