"""What can be said without any model of a window (junk, script, rare pieces, length, place) and of
a token (how often it was seen, script, place in the word); and losses by kind of token.

Two passes look at all windows, some at a time, so that memory does not grow with them: the first
counts pieces and n-grams, the second looks at each window. N-grams are counted by hash in a table
of fixed size; where there are too many, some of them, the same ones everywhere.
Legend: N windows, R of them at once, M those looked at token by token, T tokens of a window (its
targets), S those and the token before, V vocabulary.
"""

import math
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import yaml

from tdbook.analysis import intervals
from tdbook.corpus import token_files
from tdbook.corpus.tokenizer import BYTE, TELUGU, Tokenizer
from tdlib import data, files
from tdlib.hard_set import known_mean

JUNK, LIMITS, SCRIPTS, FREQUENT_ENDINGS, COUNTS, PLACES, SHARES = yaml.safe_load(
    Path(__file__).with_suffix(".yaml").read_text("utf-8")
).values()
SLOTS = 2**27  # bytes of the table of n-grams, at most, and twice the n-grams looked at
PIECE = 2**19  # tokens at once
# of a window: flags of JUNK, 0 is clean; shares of tokens not in Telugu (in Latin or digits, where
# pieces cut characters) and of rare ones; length of its text
KINDS = [("junk", "u1"), ("foreign", "f2"), ("rare", "f2"), ("characters", "u2")]

Labels = dict[str, tuple[Sequence[str], np.ndarray]]  # cut → its buckets, each token's, (M, T)


def save(path: Path, tokens: data.Tokens, progress: Callable) -> None:
    """The features of all training windows, (N,) of KINDS, as a file of numpy's."""
    n, t, tokenizer = len(tokens.train), tokens.context, tokens.tokenizer
    in_parts = cuts_characters(tokens)
    gram = LIMITS["gram in parts" if in_parts else "gram"]
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
    # the first piece, from the rarest on, with which they would make up more is no longer rare
    ascending_V = np.sort(count_V)
    few = LIMITS["rare"] * count_V.sum()
    often = ascending_V[np.searchsorted(np.cumsum(ascending_V), few, "right")]
    found = np.zeros(n, KINDS)
    for rows, ids_RT in _parts_of(tokens.train):
        flags = (
            of_V["single"][ids_RT].mean(1) >= singles + LIMITS["single"] * (1 - singles),
            (ids_RT == tokenizer.unk).mean(1) >= LIMITS["unknown"],
            _escaped(tokenizer, of_V["slash"], ids_RT) >= LIMITS["escaped"] * t,
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
    with files.replacing(path) as beside, beside.open("wb") as file:
        np.save(file, found)


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
    often_R = np.bincount(row[table[slots] >= LIMITS["windows"]], minlength=len(gram_R))
    repeated_R = often_R >= LIMITS["repeated"] * distinct_R
    repeated_R |= distinct_R < LIMITS["distinct"] * gram_R
    return repeated_R & (gram_R >= max(1, min(LIMITS["looked at"], most)))


def _of_pieces(tokenizer: Tokenizer, v: int) -> np.ndarray:
    """What every piece of the vocabulary says, (V,)."""
    special, rows = {*tokenizer.silent, tokenizer.eos, tokenizer.unk}, []
    for i, (piece, shown) in enumerate(zip(tokenizer.vocabulary(), tokenizer.shown_V, strict=True)):
        byte = bool(BYTE.fullmatch(piece))
        letter = len(piece) == 1 and unicodedata.category(piece)[0] in "LM"
        foreign = any(map(str.isalnum, piece)) and not TELUGU.search(piece)
        length = 1 / 3 if byte else len(piece) + (shown[:1] == "▁" and len(shown) > 1)
        row = (letter or byte, foreign, length) if i not in special else (False, False, 0)
        rows.append((*row, "\\" in shown or shown == "<0x5C>"))
    kinds = [("single", bool), ("foreign", "f4"), ("characters", "f4"), ("slash", bool)]
    of_V = np.array(rows[:v], kinds)
    of_V["characters"][tokenizer.eos] = 1
    return of_V


def _escaped(tokenizer: Tokenizer, slash_V: np.ndarray, ids_RT: np.ndarray) -> np.ndarray:
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
    flags_N = [found_N["junk"] & flag > 0 for flag in JUNK]  # of several the first counts
    some, kind_N = np.unique(np.select(flags_N, range(1, len(JUNK) + 1)), return_inverse=True)
    cuts["junk"] = [["none", *JUNK.values()][i] for i in some], kind_N.astype(np.uint8)
    for cut, (kind, steps) in SHARES.items():
        between = [f"{a}–{b} %" for a, b in pairwise(steps)]
        names = [f"under {steps[0]} %", *between, f"{steps[-1]} % and more"]
        group_N = np.digitize(found_N[kind], [step / 100 for step in steps])
        cuts[cut] = names, group_N.astype(np.uint8)
    return cuts


def frequency(train: data.Windows, vocab_size: int) -> np.ndarray:
    """How often each id occurs in the training tokens, (V,)."""
    parts = (train.ids[i : i + PIECE] for i in range(0, len(train.ids), PIECE))
    return sum(np.bincount(part, minlength=vocab_size) for part in parts)


def unigram_loss(tokens: data.Tokens, rows_M: Sequence[int]) -> np.ndarray:
    """Loss of each target, (M, T), of a guess without context: its count in training, plus 1."""
    count_V = frequency(tokens.train, tokens.vocab_size) + 1
    targets_MT = replace(tokens.val, mask=None).batch(rows_M)[1].numpy()
    return np.log(count_V.sum() / count_V)[targets_MT]


def retention(unigram: float, student: float, teacher: float) -> float:
    """Of what the teacher gains on that guess the share that the student gains: 1 as the teacher,
    below 0 worse than the guess; NaN where the teacher gains nothing."""
    return (unigram - student) / (unigram - teacher) if teacher < unigram else math.nan


def pair_frequency(train: data.Windows, previous: np.ndarray, this: np.ndarray) -> np.ndarray:
    """How often each (previous, this) pair occurs in the training tokens, in the shape given."""
    keys, where = np.unique(previous.astype(np.int64) << 32 | this, return_inverse=True)
    counts = np.zeros(len(keys), np.int64)
    for i in range(0, len(train.ids), PIECE):
        part = np.asarray(train.ids[i : i + PIECE + 1])
        pairs = part[:-1].astype(np.int64) << 32 | part[1:]
        at = np.searchsorted(keys, pairs).clip(max=len(keys) - 1)
        counts += np.bincount(at[keys[at] == pairs], minlength=len(keys))
    return counts[where].reshape(this.shape)


def token_cuts(tokens: data.Tokens, rows_M: np.ndarray) -> Labels:
    """For each cut its buckets' names and each token's bucket, (M, T), −1 where none."""
    masked_MT = tokens.val.batch(rows_M)[1].numpy() == data.IGNORE
    ids_MT, targets_MT = (x.numpy() for x in replace(tokens.val, mask=None).batch(rows_M))
    count_MT = frequency(tokens.train, tokens.vocab_size)[targets_MT]
    pairs_MT = pair_frequency(tokens.train, ids_MT, targets_MT)
    t = targets_MT.shape[1]
    quarter_MT = np.broadcast_to(np.arange(t) * 4 // t, targets_MT.shape)
    labels = {
        "token seen in training": (COUNTS, np.digitize(count_MT, [1, 10, 100, 1000])),
        "pair seen in training": (COUNTS, np.digitize(pairs_MT, [1, 10, 100, 1000])),
        "place in the window": (["1st quarter", "2nd", "3rd", "4th"], quarter_MT),
    }
    labels |= _places(tokens.tokenizer, np.concatenate([ids_MT[:, :1], targets_MT], axis=1))
    labels["script"] = SCRIPTS, scripts(tokens, tokens.val, rows_M)
    return {k: (names, np.where(masked_MT, -1, at_MT)) for k, (names, at_MT) in labels.items()}


def _places(tokenizer: Tokenizer, ids_MS: np.ndarray) -> Labels:
    """Of each target its place in the word, and which of FREQUENT_ENDINGS it is."""
    pieces_V, targets_MT = np.array(tokenizer.vocabulary(), dtype=object), ids_MS[:, 1:]
    # "." and the like are pieces of their own: a word ends before one, and none is part of a word
    mark_V = np.array([unicodedata.category(piece[:1] or "x")[0] == "P" for piece in pieces_V])
    mark_V[tokenizer.eos] = True
    mark_MS, word_MT = mark_V[ids_MS], tokenizer.begins(ids_MS)[:, 1:]
    begins_MT, stops_MT = word_MT | mark_MS[:, :-1], word_MT | mark_MS[:, 1:]
    ends_MT = np.roll(stops_MT, -1, axis=1)
    place_MT = np.where(begins_MT, np.where(ends_MT, 0, 1), np.where(ends_MT, 3, 2))
    place_MT[:, -1] = -1  # whether the word goes on after the window is not known
    place_MT[mark_MS[:, 1:]] = -1
    endings = FREQUENT_ENDINGS
    ending_V = np.array([endings.index(x) if x in endings else -1 for x in pieces_V])
    ending_MT = np.where(place_MT == 3, ending_V[targets_MT], -1)
    names = ["whole", "first", "inner", "final"]
    return {"place in the word": (names, place_MT), "frequent endings": (endings, ending_MT)}


def cuts_characters(tokens: data.Tokens) -> bool:
    """Whether pieces of a sample often cut characters (BPE over bytes): the text tells of them."""
    shown_V = tokens.tokenizer.shown_V
    some = tokens.train.ids[:: max(1, len(tokens.train.ids) // 2**20)]
    byte_V = np.array([bool(BYTE.fullmatch(piece)) for piece in shown_V])
    parts = any(BYTE.search(p) and not BYTE.fullmatch(p) for p in shown_V)
    return parts or bool(byte_V[some].mean() > LIMITS["bytes"])


def of_text(tokenizer: Tokenizer, windows: data.Windows, rows_M: Sequence[int]) -> tuple:
    """Of each target, (M, T) each: its script, by the first character that it holds a part of, and
    how many characters begin in it."""
    t = windows.context
    at_MX = np.asarray(rows_M)[:, None] * t + np.arange(-3, t + 5)  # a character has 4 bytes
    ids_MX = windows.ids[at_MX.clip(0, len(windows.ids) - 1)]
    ids_S = np.pad(ids_MX, ((0, 0), (0, 1)), constant_values=tokenizer.eos).ravel()
    text, place_B, token_B = tokenizer.characters(ids_S)
    kinds = {c: SCRIPTS.index(script(c)) for c in {*text} - {" ", "\n"}}
    kind_B = np.array([kinds.get(c, -1) for c in text])[place_B]
    token, first = np.unique(token_B[kind_B >= 0], return_index=True)
    script_S = np.full(len(ids_S), SCRIPTS.index("other"))
    script_S[token] = kind_B[kind_B >= 0][first]
    begins_C = np.unique(place_B, return_index=True)[1]
    count_S = np.bincount(token_B[begins_C], minlength=len(ids_S))
    return tuple(x_S.reshape(len(ids_MX), -1)[:, 4:-5] for x_S in (script_S, count_S))


def scripts(tokens: data.Tokens, windows: data.Windows, rows_M: Sequence[int]) -> np.ndarray:
    """Which of SCRIPTS each target of some windows is of, (M, T)."""
    if cuts_characters(tokens):
        return of_text(tokens.tokenizer, windows, rows_M)[0]
    of_V = np.array([SCRIPTS.index(script(piece)) for piece in tokens.tokenizer.vocabulary()])
    return of_V[replace(windows, mask=None).batch(rows_M)[1].numpy()]


def script(piece: str) -> str:
    """Telugu, Latin, digits or other, by the piece's first character but ▁ and space."""
    first = piece.lstrip("▁ ")[:1]
    if "\u0c00" <= first <= "\u0c7f":
        return "Telugu"
    if first.isdigit():
        return "digits"
    return "Latin" if first.isalpha() and first.isascii() and piece[0] != "<" else "other"


def kept_and_lost(losses: dict, labels: Labels, base: str, judged, document_M) -> tuple:
    """Rows of cut, bucket, tokens and one key a model, its mean loss (`losses` are (M, T)); and the
    same of the `judged` models' change against the base, with its interval over documents."""
    kept, won, base_MT = [], [], losses[base]
    document_MT = np.broadcast_to(np.asarray(document_M)[:, None], base_MT.shape)
    for cut, (names, label_MT) in labels.items():
        for i, name in enumerate(names):
            if not (in_MT := label_MT == i).any():
                continue
            row = {"cut": cut, "bucket": name, "tokens": int(in_MT.sum())}
            kept.append(row | {m: known_mean(loss_MT[in_MT]) for m, loss_MT in losses.items()})
            at = base_MT[in_MT], document_MT[in_MT]
            won.append(row | {m: intervals.change(losses[m][in_MT], *at) for m in judged})
    return kept, won
