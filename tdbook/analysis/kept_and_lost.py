"""What a student keeps and loses, by kind of token.

Legend: M windows, T tokens of each (its targets), S those and the token before, V vocabulary.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from tdbook.analysis import intervals
from tdbook.corpus.tokenizer import Tokenizer
from tdlib import data
from tdlib.hard_set import known_mean

SCRIPTS = ("Telugu", "Latin", "digits", "other")
FREQUENT_ENDINGS = ("లో", "కు", "ను", "లు")
COUNTS = ["never", "1–9", "10–99", "100–999", "≥ 1,000"]  # how often something was seen

Labels = dict[str, tuple[Sequence[str], np.ndarray]]  # cut → its buckets, each token's, (M, T)


def frequency(train: data.Windows, vocab_size: int) -> np.ndarray:
    """How often each id occurs in the training tokens, (V,)."""
    return sum(np.bincount(part, minlength=vocab_size) for part in _parts_of(train.ids))


def pair_frequency(train: data.Windows, previous: np.ndarray, this: np.ndarray) -> np.ndarray:
    """How often each (previous, this) pair occurs in the training tokens, in the shape given."""
    keys, where = np.unique(previous.astype(np.int64) << 32 | this, return_inverse=True)
    counts = np.zeros(len(keys), np.int64)
    for part in _parts_of(train.ids, overlap=1):
        pairs = part[:-1].astype(np.int64) << 32 | part[1:]
        at = np.searchsorted(keys, pairs).clip(max=len(keys) - 1)
        counts += np.bincount(at[keys[at] == pairs], minlength=len(keys))
    return counts[where].reshape(this.shape)


def _parts_of(ids: np.ndarray, size: int = 2**22, overlap: int = 0) -> Iterator[np.ndarray]:
    return (np.asarray(ids[i : i + size + overlap]) for i in range(0, len(ids), size))


def cuts(tokens: data.Tokens, rows_M: np.ndarray) -> Labels:
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
    if tokens.tokenizer:
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
    endings = list(FREQUENT_ENDINGS)
    ending_V = np.array([endings.index(x) if x in endings else -1 for x in pieces_V])
    ending_MT = np.where(place_MT == 3, ending_V[targets_MT], -1)
    names = ["whole", "first", "inner", "final"]
    return {"place in the word": (names, place_MT), "frequent endings": (endings, ending_MT)}


def cuts_characters(tokens: data.Tokens) -> bool:
    """Whether pieces of a sample often cut characters (BPE over bytes): the text tells of them."""
    if tokens.tokenizer is None:
        return False
    some = np.asarray(tokens.train.ids[:: max(1, len(tokens.train.ids) // 2**20)])
    return tokens.tokenizer.in_parts(np.bincount(some, minlength=tokens.vocab_size))


def of_text(tokenizer: Tokenizer, windows: data.Windows, rows_M: Sequence[int]) -> tuple:
    """Of each target, (M, T) each: its script, by the first character that it holds a part of, and
    how many characters begin in it."""
    t = windows.context
    at_MX = np.asarray(rows_M)[:, None] * t + np.arange(-3, t + 5)  # a character has 4 bytes
    ids_MX = windows.ids[at_MX.clip(0, len(windows.ids) - 1)]
    ids_S = np.pad(ids_MX, ((0, 0), (0, 1)), constant_values=tokenizer.eos).ravel()
    code_B, begins_B, token_B = tokenizer.characters(ids_S)
    shown_B = ~np.isin(code_B, [10, 32])
    token, first = np.unique(token_B[shown_B], return_index=True)
    codes, at = np.unique(code_B[shown_B][first], return_inverse=True)
    script_S = np.full(len(ids_S), SCRIPTS.index("other"))
    script_S[token] = np.array([SCRIPTS.index(script(chr(code))) for code in codes], int)[at]
    count_S = np.bincount(token_B[begins_B], minlength=len(ids_S))
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


def kept_and_lost(losses: dict, labels: Labels, base: str, judged, document_M, draws) -> tuple:
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
            at = base_MT[in_MT], document_MT[in_MT], draws
            won.append(row | {m: intervals.change(losses[m][in_MT], *at) for m in judged})
    return kept, won
