"""Upstream's pieces joined by "@@", and the Morfessor model that segments raw text for them.

Two forms: విద్యార్థు@@ ల@@ కు (a suffix: a piece joins to the next) and, of type …_v4, విద్యార్థు @@ల @@కు
(a prefix: it joins to the one before). A joiner at the edge of what is decoded is not shown.
"""

import pickle
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import models

from tdbook.corpus.tokenizer import RUNS, TELUGU, Tokenizer, by_id, refuse_unknown
from tdlib.files import refused

FIELDS = {"token_to_id": (dict, "a JSON object"), "special_tokens": (dict, "a JSON object")}
FIELDS |= {"separator": (str, "text such as '@@'"), "bpe_merges": (list, "a list of pairs")}
SUFFIX, PREFIX = TYPES = ("morfessor_bpe_telugu", "morfessor_bpe_telugu_v4")
# What a Morfessor model is made of; a pickle can name anything else, and run it.
SAFE = """BaselineModel ConstrNode LexiconEncoding CorpusEncoding FixedCorpusWeight
    AnnotatedCorpusEncoding AnnotationCorpusWeight MorphLengthCorpusWeight NumMorphCorpusWeight"""
SAFE = {("morfessor.baseline", name) for name in SAFE.split()} | {("collections", "Counter")}


def open_json(path: Path, content: dict, segmenter: str | Path) -> Tokenizer:
    """The tokenizer of upstream's tokenizer.json; `segmenter` is a Morfessor .bin, or ""."""
    refuse_unknown(path, content, SUFFIX)
    content = {"separator": "@@"} | content
    for name, (kind, what) in FIELDS.items():
        if not isinstance(value := content.get(name), kind) or value == "":
            raise ValueError(f"{path}: {name} is {value!r:.40}, it must be {what}: copy it again")
    ids, special, joiner = (content[f] for f in ("token_to_id", "special_tokens", "separator"))
    pieces, prefix = by_id(path, ids), content["type"] == PREFIX
    for name in ("<pad>", "<unk>", "<bos>", "<eos>", *special):
        if special.get(name) is None or special[name] != ids.get(name):
            fault = f"{path}: {name} is {special.get(name)} in special_tokens, it must be"
            raise ValueError(f"{fault} {ids.get(name)}, as in token_to_id: copy it again")
    with refused(f"{path}: bpe_merges are no pairs", "copy it again", TypeError, ValueError):
        merge = _bpe(content["bpe_merges"])
    eos, unk, segment = ids["<eos>"], ids["<unk>"], _segmenter(segmenter) if segmenter else None
    bare = {piece: i for piece, i in ids.items() if piece not in special}
    known = form(pieces, {*special.values()} - {unk}, joiner, prefix)
    known |= {"plain": str, "joined": False} if segment else {}
    known["silent"] = frozenset(special.values()) - {eos, unk}
    known["encode"] = _encoder(bare, unk, joiner, prefix, merge, segment)
    return Tokenizer(kind="Morfessor", path=path, eos=eos, unk=unk, model=segment, **known)


def form(pieces: list[str], controls: set[int], joiner: str, prefix: bool) -> dict:
    """What a Tokenizer knows of pieces that join by a mark: by a prefix "▁" shows where none joins;
    by a suffix the piece before says it."""

    def plain(line: str) -> str:
        if prefix:
            return f" {line}".replace(f" {joiner}", "").removeprefix(" ")
        return f"{line} ".replace(f"{joiner} ", "").removesuffix(" ")

    shown_V, each = [piece.removesuffix(joiner) for piece in pieces], [*enumerate(pieces)]
    if prefix:
        shown_V = [p if i in controls else f"▁{p}".removeprefix(f"▁{joiner}") for i, p in each]
    opens_V = np.array([i in controls if prefix else not p.endswith(joiner) for i, p in each])
    known = dict(marked=prefix, joined=True, plain=plain, shown_V=shown_V, opens_V=opens_V)
    return known | {"line_text": lambda ids: plain(" ".join(pieces[i] for i in ids))}


def _encoder(ids: dict[str, int], unk: int, joiner: str, prefix: bool, merge, segment) -> Callable:
    """Encodes as upstream does, but for its cache: a word's ids never depend on the words before.

    1. A word is cut where Telugu and other script or marks meet, and with a segmenter each Telugu
       run into morphs; all parts but the last join to the next. Without one a word that ends in the
       joiner joins to the next itself: విద్యార్థు@@ ల@@ కు.
    2. A part is looked up, with "@@" where it joins. One that is not there goes, if it has Telugu,
       into characters; if not, through the BPE merges, and of their results those not in the table
       again into characters. All but the last carry "@@", the last where the part joins and there
       is such a piece. A character that has no piece is <unk>.
    By a prefix a word is not cut but by a segmenter, of whose morphs the later ones have a joiner
    where there is such a piece. What goes into characters has none: its spaces come back.
    """

    def find(text: str, joins: bool) -> int | None:
        if text.endswith(joiner) and not prefix:  # of the text itself: no sign that it joins
            return None
        return ids.get(text + joiner if joins and not prefix else text)

    def part_ids(part: str, joins: bool) -> list[int]:
        if (whole := find(part, joins)) is not None:
            return [whole]
        part = part.removeprefix(joiner) if prefix and not segment else part
        cut = [*enumerate(part if TELUGU.search(part) else merge(part), 1)]
        known = (p if find(p, i < len(cut)) is None else [p] for i, p in cut)
        pieces = [piece for parts in known for piece in parts]
        found = [find(piece, True) for piece in pieces]
        if pieces and (not joins or found[-1] is None):
            found[-1] = find(pieces[-1], False)
        return [unk if i is None else i for i in found]

    def parts_of(word: str) -> Iterator[str]:
        for run in [word] if prefix and not segment else RUNS.findall(word):
            for i, morph in enumerate(segment(run) if segment and TELUGU.match(run) else [run]):
                yield joiner + morph if prefix and i and joiner + morph in ids else morph

    @lru_cache(2**18)
    def word_ids(word: str) -> list[int]:
        joins = not (segment or prefix) and word.endswith(joiner) and word != joiner
        *inner, last = parts_of(word.removesuffix(joiner) if joins else word)
        return [i for part in inner for i in part_ids(part, True)] + part_ids(last, joins)

    return lambda lines: [[i for word in line.split() for i in word_ids(word)] for line in lines]


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
        if (module, name) in SAFE:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _segmenter(path: str | Path) -> Callable[[str], list[str]]:
    """What cuts a Telugu word into morphs: a Morfessor model, of whose pickle nothing else runs."""
    fault = f"{path} is no Morfessor baseline model that can be read"
    remedy = "give the .bin that Morfessor wrote, and pip install morfessor"
    with refused(fault, remedy, Exception), open(path, "rb") as file:  # it may raise anything
        import morfessor  # only here: nothing else needs it

        model = _Unpickler(file).load()
        if type(model) is not morfessor.BaselineModel:
            raise TypeError(f"it is a {type(model).__name__}")
        model.viterbi_segment("తెలుగు")
    return lambda word: model.viterbi_segment(word)[0]
