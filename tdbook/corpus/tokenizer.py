"""Text ↔ ids by three kinds of tokenizer, told apart by what the file holds, used in one way.

SentencePiece .model: "▁" begins a word; the kind that is trained here.
Hugging Face tokenizer.json: BPE or Unigram, with "▁" or over bytes (GPT-2's alphabet); WordLevel.
Morfessor, upstream's tokenizer.json: "@@" joins a piece to the next or the last, as in a WordLevel.
No special token is added, and text that spells one ("<eos>") stays text.
Legend: V vocabulary; M windows, S tokens of each.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import yaml

from tdlib import shapes

BYTE = re.compile("<0x[0-9A-F]{2}>")
HIDDEN = "\uffff"  # no character: no text has it
TELUGU = re.compile("[\u0c00-\u0c7f]")
RUNS = re.compile("[\u0c00-\u0c7f]+|[^\u0c00-\u0c7f]+")
# a tokenizer's file may be large; public ones have up to 40 million bytes
read_json = partial(shapes.read_json, most=2**28)
KEYS = yaml.safe_load(Path(__file__).with_name("tokenizer_keys.yaml").read_text("utf8"))


@dataclass(frozen=True, eq=False, repr=False)  # of a whole vocabulary
class Tokenizer:
    """An opened tokenizer of any kind. Prompts begin after <eos>; no <bos> in the tokens."""

    kind: str  # "SentencePiece", "Hugging Face" or "Morfessor"
    path: Path
    eos: int  # ends each line of text
    unk: int | None  # stands for text that it has no piece for; None where there is no such token
    silent: frozenset[int]  # <pad>, <bos> and the like: nothing in a text
    shown_V: list[str]  # each piece for display, by itself
    marked: bool  # "▁" on a piece says that it begins a word; else the piece before says it too
    opens_V: np.ndarray  # whether a word begins after each piece, whatever comes
    model: object  # of the package that reads this kind; Morfessor's segmenter, or None
    encode: Callable[[Sequence[str]], list[list[int]]]  # the ids of each line, without <eos>
    line_text: Callable[[list[int]], str]
    plain: Callable[[str], str] = str  # a line without the marks that it was segmented with
    joined: bool = False  # by "@@", in text that comes segmented

    @property
    def size(self) -> int:
        return len(self.shown_V)

    def decode(self, ids: Iterable[int]) -> str:
        """Text; <eos> becomes a line break, half a character at the end is dropped."""
        lines = [[]]
        for i in map(int, ids):
            if i == self.eos:
                lines.append([])
            elif i not in self.silent:
                lines[-1].append(i)
        return "\n".join(map(self.line_text, lines)).rstrip("�")

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Tokens of a running text for display: "▁" begins a word, <0xE0> is a byte."""
        ids = [*map(int, ids)]
        begins_S = self.begins(np.array([ids], int))[0] & ~np.isin(ids, [*self.silent, self.eos])
        pairs = ((self.shown_V[i], begins) for i, begins in zip(ids, begins_S, strict=True))
        return [f"▁{piece.removeprefix('▁')}" if begins else piece for piece, begins in pairs]

    def vocabulary(self) -> list[str]:
        """The bare text of each piece, without the marks of a word's beginning or going on."""
        return [piece.lstrip("▁").replace("▁", " ") for piece in self.shown_V]

    def begins(self, ids_MS: np.ndarray) -> np.ndarray:
        """Whether each token begins a word, (M, S): by its "▁", or by the token before it."""
        begins_MS = self._begins_V[ids_MS]
        begins_MS[:, 1:] |= self.opens_V[ids_MS[:, :-1]]
        begins_MS[:, :1] |= not self.marked
        return begins_MS

    def characters(self, ids_S: np.ndarray) -> tuple[str, np.ndarray, np.ndarray]:
        """A running text, and of each of its bytes the places of its character and of its token. A
        byte of no character is a surrogate; special tokens have none, <eos> is a line break."""
        texts_S = [self._bytes_V[i] for i in np.asarray(ids_S).tolist()]
        text = b"".join(texts_S).decode(errors="surrogateescape")
        size_C = [len(c.encode(errors="surrogateescape")) for c in text]
        token_B = np.repeat(np.arange(len(texts_S)), [*map(len, texts_S)])
        return text, np.repeat(np.arange(len(text)), size_C), token_B

    @cached_property
    def _bytes_V(self) -> list[bytes]:
        """What each piece stands for: "▁" is a space, <0xE0> a byte, <eos> a line break."""
        coded_V = [piece.replace("▁", " ").encode() for piece in self.shown_V]
        byte = re.compile(rb"<0x([0-9A-F]{2})>")
        texts_V = [byte.sub(lambda match: bytes([int(match[1], 16)]), text) for text in coded_V]
        for i in {*self.silent, self.unk} - {None}:
            texts_V[i] = b""
        texts_V[self.eos] = b"\n"
        return texts_V

    @cached_property
    def _begins_V(self) -> np.ndarray:
        return np.array([p.startswith("▁") or i == self.eos for i, p in enumerate(self.shown_V)])


def by_id(path: Path, ids: dict[str, int]) -> list[str]:
    """The pieces in the order of their ids."""
    pieces = {i: piece for piece, i in ids.items() if type(i) is int}
    if gap := [i for i in range(len(ids)) if i not in pieces]:
        fault = f"{path}: no piece has the id {gap[0]:,}, they run from 0 without gaps or doubles"
        raise ValueError(f"{fault}: copy it again")
    return [pieces[i] for i in range(len(ids))]


def refuse_unknown(path: Path, content: dict, kind: str) -> None:
    """ValueError: a key that is not understood, and so perhaps an option of the ids."""
    known, empty = (KEYS[kind][name].split() for name in ("known", "empty"))
    for key, value in content.items():
        special = key.endswith("_token") or key.endswith("_token_id")
        named = kind == "config" and special and not isinstance(value, bool)
        if not (key in known or named or (key in empty and not value)):
            fault = f"{path}: what {key!r} ({value!r:.40}) does is not known here, it might change"
            raise ValueError(f"{fault} ids or text: copy it without that key if it does not")
