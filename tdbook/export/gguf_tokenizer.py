"""How a GGUF file holds a model's tokenizer.

llama.cpp repeats SentencePiece BPE with byte fallback ("llama") and BPE over bytes ("gpt2"), which
is tried on a thousand lines. Of any other kind, every @@ vocabulary among them, a file holds the
pieces, so that ids become text, and takes ids alone; run_gguf.py beside it makes them.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import gguf
from gguf import TokenType

from tdbook.corpus.tokenizer import BYTE, HIDDEN, Tokenizer
from tdbook.export import cards, llama_cpp, model_tokenizer
from tdlib.shapes import LlamaConfig

PRE = ("gpt-2", "llama-bpe", "qwen2", "default")  # llama.cpp's ways to cut text before BPE
SCRIPT = "run_gguf.py"


@dataclass(frozen=True, eq=False)
class Vocabulary:
    beside: model_tokenizer.Beside
    bos: int  # a prompt's first id, or what the config names so where it begins with none
    model: str  # llama.cpp's name of the kind: "llama" or "gpt2"
    pieces: list[str]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    pre: str = "default"
    space: bool = False  # a space is put before the text
    trims: bool = False  # spaces are put together
    why: str = ""  # the file takes no raw text; "" where it makes the tokenizer's own ids

    @property
    def stops(self) -> list[int]:
        """The ids that end a text besides <eos>."""
        return [i for i in self.beside.stops if i != self.beside.tokenizer.eos]

    @property
    def types(self) -> list[int]:
        one, byte = self.beside.tokenizer, [TokenType.NORMAL, TokenType.BYTE][self.model == "llama"]
        types = [byte if BYTE.fullmatch(p) else TokenType.NORMAL for p in self.pieces]
        kinds = dict.fromkeys(model_tokenizer.added_words(one), TokenType.USER_DEFINED)
        kinds |= dict.fromkeys(one.silent | {one.eos}, TokenType.CONTROL)
        kinds |= {} if one.unk is None else {one.unk: TokenType.UNKNOWN}
        return [kinds.get(i, kind) for i, kind in enumerate(types)]


def candidates(folder: Path, shape: LlamaConfig) -> list[Vocabulary]:
    """Forms of a model folder's own, to be tried in turn; one alone where it takes no raw text.
    ValueError: a tokenizer with more pieces than the embedding."""
    beside = model_tokenizer.open_beside(folder, rows=shape.vocab_size)
    begin, one = beside.begin, beside.tokenizer
    bos = model_tokenizer.read_config(folder, "config.json").get("bos_token_id")
    bos = begin[0] if begin else shape.eos_id if bos is None else bos
    forms = {"Morfessor": _joined, "SentencePiece": _sentencepiece, "Hugging Face": _json}
    return [Vocabulary(beside, bos, **form) for form in forms[one.kind](one)]


def _joined(tokenizer: Tokenizer) -> list[dict]:
    """x@@ → x and x → x▁, so that joining the pieces is the text."""
    special = tokenizer.silent | {tokenizer.eos, tokenizer.unk}
    pairs = enumerate(zip(tokenizer.shown_V, tokenizer.opens_V, strict=True))
    pieces = [p + "▁" if ends and i not in special else p for i, (p, ends) in pairs]
    why = "its pieces are joined by @@, and text is segmented before it is encoded"
    return [dict(model="llama", pieces=pieces, why=why)]


def _sentencepiece(tokenizer: Tokenizer) -> list[dict]:
    sp, V = tokenizer.model, range(tokenizer.size)
    form = dict(pieces=[*map(sp.id_to_piece, V)], scores=[*map(sp.get_score, V)])
    form |= dict(space=sp.encode("a", out_type=str)[0].startswith("▁"))
    return [form | dict(model="llama", trims=sp.encode("a  a") == sp.encode("a a"))]


def _json(tokenizer: Tokenizer) -> list[dict]:
    inner = json.loads(tokenizer.path.read_bytes())["model"]
    ids = {p.removeprefix(HIDDEN): i for p, i in tokenizer.model.get_vocab().items()}
    pieces = sorted(ids, key=ids.get)
    merges = [m if isinstance(m, str) else " ".join(m) for m in inner.get("merges", [])]
    if not tokenizer.marked:
        return [dict(model="gpt2", pieces=pieces, merges=merges, pre=pre) for pre in PRE]
    before = tokenizer.encode(["a"])[0]
    for i in model_tokenizer.added_words(tokenizer):  # with the space that it brings
        pieces[i] = tokenizer.line_text([*before, i]).removeprefix(tokenizer.line_text(before))
    # a piece's score, as SentencePiece has it: the earlier its merge the better
    rank = {m.replace(" ", ""): -float(i) for i, m in reversed([*enumerate(merges, 1)])}
    scores = [rank.get(p, -1e6) for p in pieces]
    return [dict(model="llama", pieces=pieces, scores=scores, space=True)]


def add(writer: gguf.GGUFWriter, words: Vocabulary, rows: int) -> None:
    """The tokenizer's part of a GGUF's metadata, for an embedding of so many rows."""
    spare, one = rows - len(words.pieces), words.beside.tokenizer
    pad = 0 if one.kind != "Hugging Face" and 0 in one.silent else None
    about = dict(tokenizer_model=words.model, tokenizer_pre=words.pre)
    about |= dict(token_list=[*words.pieces, *(f"[PAD{i}]" for i in range(spare))])
    about |= dict(token_types=[*words.types, *[TokenType.UNUSED] * spare])
    about |= dict(token_scores=words.scores and [*words.scores, *[-1e6] * spare])
    about |= dict(token_merges=words.merges, bos_token_id=words.bos, eos_token_id=one.eos)
    about |= dict(unk_token_id=one.unk, pad_token_id=pad, add_bos_token=bool(words.beside.begin))
    about |= dict(add_eos_token=bool(words.beside.end), add_space_prefix=words.space)
    about |= dict(remove_extra_whitespaces=words.trims)
    for name, value in about.items():
        if value not in (None, []):
            getattr(writer, f"add_{name}")(value)
    for key, i in zip(("eot", "eom"), words.stops, strict=False):
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", i)
    writer.add_bool(llama_cpp.RAW_TEXT, not words.why)


def script(words: Vocabulary) -> str:
    """run_gguf.py, which needs xllamacpp, the tokenizer's package and its file beside it alone."""
    tokenizer, parts = words.beside.tokenizer, cards.templates("export.yaml")
    name = released_name(tokenizer)
    way = cards.templates("release.yaml")["ways"][name]
    code = way["tokenizer"].partition("\n")[2]  # without the line that asks the Hub
    values = {"code": code, "begin": words.beside.begin, "eos": tokenizer.eos}
    return cards.fill(parts["script"], values | parts["ways"][name])


def released_name(tokenizer: Tokenizer) -> str:
    names = {"Morfessor": "morfessor.json", "SentencePiece": "sentencepiece.model"}
    return names.get(tokenizer.kind, "tokenizer.json")
