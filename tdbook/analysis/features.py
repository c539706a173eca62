"""What can be said of a window without any model: junk, script, rare pieces, length, place.

Two passes over the tokens, some windows at a time, so that memory does not grow with them: the
first counts pieces and n-grams, the second looks at each window. N-grams are counted by hash in a
table of fixed size; where there are too many, some of them, the same ones everywhere.
Legend: N windows, R of them at once, T tokens of a window (its targets), V vocabulary.
"""

import contextlib
import io
import os
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from tdbook.analysis.kept_and_lost import SCRIPTS, cuts_characters, of_text
from tdbook.corpus import token_files
from tdbook.corpus.tokenizer import BYTE, TELUGU, Tokenizer
from tdlib import data
from tdlib.data import UNK
from tdlib.files import write_whole

DAMAGED = (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile)  # numpy's words for it
JUNK = {  # kinds, bit flags; limits as tried on 8 million tokens of verse, prose and Wikipedia
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
GRAM_IN_PARTS = 66  # 22 characters, as 8 pieces usually have, where a token may be one byte
LOOKED_AT = 8  # n-grams of a window that are enough to say so
DISTINCT = 0.5  # of a window's own 8-grams; a refrain leaves two thirds, and a loop next to none
RARE = 0.05  # of the tokens: the rarest pieces that make up so much are rare
SLOTS = 2**27  # bytes of the table of n-grams, at most, and twice the n-grams looked at
PIECE = 2**19  # tokens at once
PLACES = 20  # of the corpus
# of a window: flags of JUNK, 0 is clean; shares of tokens not in Telugu (in Latin or digits, where
# pieces cut characters) and of rare ones; length of its text. Without a tokenizer NaN and 0
KINDS = [("junk", "u1"), ("foreign", "f2"), ("rare", "f2"), ("characters", "u2")]


def of(tokens: data.Tokens, folder: Path, progress=lambda *_: None) -> np.ndarray:
    """The features of all training windows, (N,) of KINDS; kept in `folder` for these tokens."""
    path, key = folder / "features.npz", _key(tokens)
    free = not os.path.lexists(path)
    with contextlib.suppress(*DAMAGED), np.load(path) as stored:
        free = "key" in stored  # else another's, and stays
        if free and str(stored["key"]) == key:
            return stored["windows"]
    windows = _look(tokens, progress)
    if free:
        np.savez(file := io.BytesIO(), key=key, windows=windows)
        write_whole(path, file.getvalue())
    return windows


def _key(tokens: data.Tokens) -> str:
    """What features depend on: the tokens' file, the windows, the tokenizer, and the limits."""
    stat = (tokens.folder / "train.bin").resolve().stat()
    limits = (SINGLE, UNKNOWN, ESCAPED, GRAM, WINDOWS, REPEATED, DISTINCT, RARE, SLOTS)
    own = (stat.st_size, stat.st_mtime_ns, tokens.context, tokens.tokenizer is not None)
    return f"{own + limits}"


def _look(tokens: data.Tokens, progress: Callable) -> np.ndarray:
    n, t, tokenizer = len(tokens.train), tokens.context, tokens.tokenizer
    in_parts = cuts_characters(tokens)
    gram = GRAM_IN_PARTS if in_parts else GRAM
    grams = n * max(0, t - gram + 1)
    bits = min(int(np.log2(SLOTS)), max(10, int(np.ceil(np.log2(2 * grams + 1)))))
    share = min(1.0, 2**bits / 2 / max(1, grams))  # of the n-grams is looked at
    table, count_V = np.zeros(2**bits, np.uint8), np.zeros(tokens.vocab_size, np.int64)
    for rows, ids_RT in _parts_of(tokens.train):
        count_V += np.bincount(ids_RT.ravel(), minlength=len(count_V))
        slots, times = np.unique(_grams(ids_RT, bits, share, gram)[1], return_counts=True)
        table[slots] = np.minimum(table[slots] + times, 255)
        progress(rows.stop, 2 * n, "windows looked at")
    of_V = _of_pieces(tokenizer, len(count_V))
    of_V["single"] &= not in_parts
    singles = float((of_V["single"] * count_V).sum() / count_V.sum())
    unknown = tokenizer.unk if tokenizer else UNK
    # the first piece, from the rarest on, with which they would make up more than RARE is no longer
    # rare, nor are others as frequent
    ascending_V = np.sort(count_V)
    often = ascending_V[np.searchsorted(np.cumsum(ascending_V), RARE * count_V.sum(), "right")]
    found = np.zeros(n, KINDS)
    for rows, ids_RT in _parts_of(tokens.train):
        flags = (
            of_V["single"][ids_RT].mean(1) >= singles + SINGLE * (1 - singles),
            (ids_RT == (-1 if unknown is None else unknown)).mean(1) >= UNKNOWN,
            _escaped(tokenizer, of_V["slash"], ids_RT) >= ESCAPED * t,
            _template(table, t - gram + 1, *_grams(ids_RT, bits, share, gram)),
        )
        found["junk"][rows] = sum(f * flag for flag, f in zip(JUNK, flags, strict=True))
        foreign_RT, characters_RT = of_V["foreign"][ids_RT], of_V["characters"][ids_RT]
        if in_parts:
            script_RT, characters_RT = of_text(tokenizer, tokens.train, range(n)[rows])
            foreign_RT = np.isin(script_RT, [SCRIPTS.index("Latin"), SCRIPTS.index("digits")])
        found["foreign"][rows] = foreign_RT.mean(1)
        found["rare"][rows] = (count_V < often)[ids_RT].mean(1)
        found["characters"][rows] = np.minimum(characters_RT.sum(1).round(), 2**16 - 1)
        progress(n + rows.stop, 2 * n, "windows looked at")
    return found


def _parts_of(windows: data.Windows) -> Iterator[tuple[slice, np.ndarray]]:
    """Numbers of some windows, and their targets, (R, T)."""
    t, size = windows.context, max(1, PIECE // windows.context)
    for first in range(0, len(windows), size):
        rows = slice(first, min(first + size, len(windows)))
        yield rows, np.asarray(windows.ids[rows.start * t + 1 : rows.stop * t + 1]).reshape(-1, t)


def _grams(ids_RT: np.ndarray, bits: int, share: float, gram: int) -> tuple[np.ndarray, ...]:
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


def _template(table: np.ndarray, most: int, row, slots, gram_R) -> np.ndarray:
    """Which windows are of n-grams that are in many windows, or that come again and again, (R,)."""
    distinct_R = np.bincount(row, minlength=len(gram_R))
    often_R = np.bincount(row[table[slots] >= WINDOWS], minlength=len(gram_R))
    repeated_R = (often_R >= REPEATED * distinct_R) | (distinct_R < DISTINCT * gram_R)
    return repeated_R & (gram_R >= max(1, min(LOOKED_AT, most)))


def _of_pieces(tokenizer: Tokenizer | None, v: int) -> dict[str, np.ndarray]:
    """What every piece of the vocabulary says, (V,) each."""
    no_V, rows = np.zeros(v, bool), []
    if tokenizer is None:
        unknown_V = np.full(v, np.nan, np.float32)
        return {"single": no_V, "foreign": unknown_V, "characters": no_V, "slash": no_V}
    special = {*tokenizer.silent, tokenizer.eos, tokenizer.unk}
    for i, (piece, shown) in enumerate(zip(tokenizer.vocabulary(), tokenizer.shown_V, strict=True)):
        byte = bool(BYTE.fullmatch(piece))
        letter = len(piece) == 1 and unicodedata.category(piece)[0] in "LM"
        foreign = any(map(str.isalnum, piece)) and not TELUGU.search(piece)
        length = 1 / 3 if byte else len(piece) + (shown[:1] == "▁" and len(shown) > 1)
        row = (letter or byte, foreign, length) if i not in special else (False, False, 0)
        rows.append((*row, "\\" in shown or shown == "<0x5C>"))
    single_V, foreign_V, length_V, slash_V = (np.array(x[:v]) for x in zip(*rows, strict=True))
    length_V[tokenizer.eos] = 1
    foreign_V, length_V = foreign_V.astype(np.float32), length_V.astype(np.float32)
    return {"single": single_V, "foreign": foreign_V, "characters": length_V, "slash": slash_V}


def _escaped(tokenizer: Tokenizer | None, slash_V: np.ndarray, ids_RT: np.ndarray) -> np.ndarray:
    """How many literal \\n each window holds, (R,): only text with a backslash is decoded."""
    count_R = np.zeros(len(ids_RT))
    for row in np.flatnonzero(slash_V[ids_RT].any(1)):
        count_R[row] = tokenizer.decode(ids_RT[row]).count(r"\n")
    return count_R


def cuts(tokens: data.Tokens, found_N: np.ndarray) -> dict[str, tuple[list[str], np.ndarray]]:
    """Cut → the names of its groups, and each window's group, a small whole number, (N,)."""
    document_N, sources = token_files.origins(tokens, "train")
    names, of_D = np.unique(sources, return_inverse=True)
    n = len(document_N)
    parts = [f"{100 * i // PLACES}–{100 * (i + 1) // PLACES} %" for i in range(PLACES)]
    cuts = {
        "source": (names.tolist(), of_D.astype(np.min_scalar_type(len(names)))[document_N]),
        "place in the corpus": (parts, (np.arange(n) * PLACES // n).astype(np.uint8)),
    }
    shares = {"rare tokens": ("rare", (2, 5, 10, 20)), "script": ("foreign", (1, 5, 20, 50))}
    for cut, (kind, steps) in shares.items():
        if np.isfinite(found_N[kind]).any():
            between = [f"{a}–{b} %" for a, b in pairwise(steps)]
            names = [f"under {steps[0]} %", *between, f"{steps[-1]} % and more"]
            group_N = np.digitize(found_N[kind], [step / 100 for step in steps])
            cuts[cut] = names, group_N.astype(np.uint8)
    return cuts


def junk_table(tokens: data.Tokens, junk_N, difficulty_N, hard_N) -> pd.DataFrame:
    """Each kind of junk: its windows, those that would be hard (`hard_N`), text of the hardest."""
    rows, t = [], tokens.context
    for flag, kind in JUNK.items():
        at, text = np.flatnonzero(junk_N & flag), "–"
        if len(at):
            hardest = at[np.argmax(np.nan_to_num(difficulty_N[at], nan=-np.inf))]
            ids = tokens.train.ids[hardest * t + 1 :][:t].tolist()
            text = tokens.tokenizer.decode(ids) if tokens.tokenizer else " ".join(map(str, ids))
        share, hard = f"{len(at) / len(hard_N):.2%}", f"{hard_N[at].sum():,}"
        rows.append((kind, f"{len(at):,}", share, hard, text.replace("\n", " ¶ ")[:120]))
    return pd.DataFrame(rows, columns=["junk", "windows", "of all", "of them hard", "an example"])
