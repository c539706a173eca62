"""Upstream's pieces joined by "@@", and the Morfessor model that segments raw text for them."""

import io
import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from tokenizers import models

from tdbook.corpus.tokenizer import RUNS, TELUGU, Tokenizer, by_id, read_bounded, refuse_unknown

FIELDS = {"token_to_id": dict, "special_tokens": dict, "separator": str, "bpe_merges": list}
# What a Morfessor model is made of; a pickle can name anything else, and run it.
SAFE = """BaselineModel ConstrNode LexiconEncoding CorpusEncoding FixedCorpusWeight
    AnnotatedCorpusEncoding AnnotationCorpusWeight MorphLengthCorpusWeight NumMorphCorpusWeight"""


def open_json(path: Path, content: dict, segmenter: str | Path) -> Tokenizer:
    """The tokenizer of upstream's tokenizer.json; `segmenter` is a Morfessor .bin, or ""."""
    _check(path, content)
    ids, special, separator = (content[f] for f in ("token_to_id", "special_tokens", "separator"))
    pieces = by_id(path, ids)
    for name in ("<pad>", "<unk>", "<bos>", "<eos>", *special):
        if special.get(name) is None or special[name] != ids.get(name):
            both = f"{special.get(name)} in special_tokens and {ids.get(name)} in token_to_id"
            raise ValueError(f"{path}: {name} is {both}, both must give one id: copy it again")
    model = Morphs(
        ids={piece: i for piece, i in ids.items() if piece not in special},
        unk=ids["<unk>"],
        separator=separator,
        joins_V=np.array([piece.endswith(separator) for piece in pieces]),
        merge=_bpe(content["bpe_merges"]),
        segment=_segmenter(Path(segmenter)) if segmenter else None,
    )

    def text(ids: list[int]) -> str:
        joined = " ".join(pieces[i] for i in ids).replace(f"{separator} ", "")
        return joined[: -len(separator)] if ids and model.joins_V[ids[-1]] else joined

    eos, unk, kind, encode = ids["<eos>"], ids["<unk>"], "Morfessor", model.encode
    silent = frozenset(special.values()) - {eos, unk}
    shown_V = [piece.removesuffix(separator) for piece in pieces]
    return Tokenizer(kind, path, eos, unk, silent, shown_V, False, model, encode, text)


def _check(path: Path, content: dict) -> None:
    refuse_unknown(path, content, content["type"])
    for name, kind in FIELDS.items():
        value = content.get(name)
        if not isinstance(value, kind) or value == "":
            what = {dict: "a JSON object", str: "text such as '@@'", list: "a list of pairs"}[kind]
            raise ValueError(f"{path}: {name} is {value!r:.40}, it must be {what}: copy it again")
    for pair in content["bpe_merges"]:
        if not (isinstance(pair, list) and [*map(type, pair)] == [str, str]):
            raise ValueError(f"{path}: {pair!r} in bpe_merges is no pair of texts: copy it again")


@dataclass(frozen=True, eq=False, repr=False)
class Morphs:
    """Encodes as upstream does, but for its cache: a word's ids never depend on the words before.

    1. A word (between spaces) is cut where Telugu and other script or marks meet, and with a
       segmenter each Telugu run into morphs; all parts but the last join to the next. Without one,
       a word that ends in the separator joins to the next itself: విద్యార్థు@@ ల@@ కు. So no text
       becomes one of the pieces that hold both ("ఉంది."), which documents left uncut put there.
    2. A part is looked up, with "@@" where it joins.
    3. One that is not there goes, if it has Telugu, into characters; if not, through the BPE
       merges, lowest rank first (GPT-2), and of their results those not in the table again into
       characters. All but the last carry "@@", the last where the part joins and there is such a
       piece. A character that has no piece is <unk>. Merges may name what is not in the table.
    """

    ids: dict[str, int]  # but for the special ones
    unk: int
    separator: str
    joins_V: np.ndarray
    merge: Callable[[str], list[str]]
    segment: Callable[[str], list[str]] | None

    @cached_property
    def word(self) -> Callable[[str], list[int]]:
        return lru_cache(2**18)(self._word)

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        return [[i for word in line.split() for i in self.word(word)] for line in lines]

    def _word(self, word: str) -> list[int]:
        joins = not self.segment and word.endswith(self.separator) and word != self.separator
        parts = RUNS.findall(word.removesuffix(self.separator) if joins else word)
        if self.segment:
            parts = [m for p in parts for m in (self.segment(p) if TELUGU.match(p) else [p])]
        inner = [i for part in parts[:-1] for i in self._part(part, True)]
        return inner + self._part(parts[-1], joins)

    def _part(self, part: str, joins: bool) -> list[int]:
        if (whole := self._find(part, joins)) is not None:
            return [whole]
        pieces = list(part)
        if not TELUGU.search(part):
            *inner, last = self.merge(part)
            pieces = [c for p in inner for c in (p if self._find(p, True) is None else [p])]
            pieces += last if self._find(last, False) is None else [last]
        ids = [self._find(piece, True) for piece in pieces]
        if not joins or ids[-1] is None:
            ids[-1] = self._find(pieces[-1], False)
        return [self.unk if i is None else i for i in ids]

    def _find(self, text: str, joins: bool) -> int | None:
        if text.endswith(self.separator):  # of the text itself: no sign that it joins
            return None
        return self.ids.get(text + self.separator if joins else text)


def _bpe(merges: list[list[str]]) -> Callable[[str], list[str]]:
    """What joins the characters of a text by merges, those learnt first first."""
    parts = {part for a, b in merges for part in (a, b, a + b, *a, *b)}
    model = models.BPE({part: i for i, part in enumerate(sorted(parts))}, [*map(tuple, merges)])
    letters = re.escape("".join(part for part in parts if len(part) == 1))
    runs = re.compile(f"[{letters}]+|." if letters else ".", re.DOTALL)

    def merge(text: str) -> list[str]:  # a character that is in no merge stays one
        tokens = ((run, model.tokenize(run)) for run in runs.findall(text))
        return [part for run, merged in tokens for part in [t.value for t in merged] or [run]]

    return merge


class _Unpickler(pickle.Unpickler):  # the package's way to say what may be loaded
    def find_class(self, module: str, name: str) -> object:
        ours = module == "morfessor.baseline" and name in SAFE.split()
        if not ours and (module, name) != ("collections", "Counter"):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _segmenter(path: Path) -> Callable[[str], list[str]]:
    """What cuts a Telugu word into morphs: a Morfessor model, a pickle of which only Morfessor's
    own classes are loaded."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: give a Morfessor .bin as segmenter")
    try:
        import morfessor  # only here: nothing else needs it

        model = _Unpickler(io.BytesIO(read_bounded(path))).load()
        if type(model) is not morfessor.BaselineModel:
            raise TypeError(f"it is a {type(model).__name__}")
        model.viterbi_segment("తెలుగు")
    except ModuleNotFoundError:
        fault = f"segmenter = {str(path)!r} needs the package morfessor, which is not installed"
        raise ValueError(f"{fault}: pip install morfessor") from None
    except Exception as error:  # a damaged pickle raises almost anything
        fault = f"{path} is no Morfessor baseline model ({error})"
        raise ValueError(f"{fault}: give the .bin that Morfessor wrote") from None
    return lambda word: model.viterbi_segment(word)[0]
