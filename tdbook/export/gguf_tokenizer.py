"""Which tokenizer is a model's (`beside`), and how a GGUF file holds it.

llama.cpp repeats SentencePiece BPE with byte fallback ("llama") and BPE over bytes ("gpt2"), which
is tried on a thousand lines. Of any other kind, every @@ vocabulary among them, a file holds the
pieces, so that ids become text, and takes ids alone; run_gguf.py beside it makes them.
"""

import json
import re
import tempfile
import warnings
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
from gguf import TokenType

import tdbook.corpus.tokenizer
import tdbook.corpus.tokenizer_files
from tdbook.corpus.hugging_face import CONFIGS
from tdbook.corpus.tokenizer import BYTE, HIDDEN, Tokenizer
from tdbook.export import cards, llama_cpp
from tdlib.shapes import LlamaConfig, read_config

# transformers' AutoTokenizer takes the first that is there, and leaves the last two alone
FILES = ("tokenizer.json", "tokenizer.model", "sentencepiece.model", "morfessor.json")
PRE = ("gpt-2", "llama-bpe", "qwen2", "default")  # llama.cpp's ways to cut text before BPE
SCRIPT = "run_gguf.py"


@dataclass(frozen=True, eq=False)
class Vocabulary:
    tokenizer: Tokenizer
    model: str  # llama.cpp's name of the kind: "llama" or "gpt2"
    pieces: list[str]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    pre: str = "default"
    space: bool = False  # a space is put before the text
    trims: bool = False  # spaces are put together
    begin: tuple[int, ...] = ()  # ids that a prompt begins with
    end: tuple[int, ...] = ()  # ids that transformers puts after a text
    bos: int = 0  # a prompt's first id, or what the config names so where it begins with none
    stops: tuple[int, ...] = ()  # ids that end a text besides <eos>
    why: str = ""  # in what it fails on raw text; "" where it makes the tokenizer's own ids

    @property
    def types(self) -> list[int]:
        byte = TokenType.BYTE if self.model == "llama" else TokenType.NORMAL
        types = [byte if BYTE.fullmatch(p) else TokenType.NORMAL for p in self.pieces]
        for i in _words(self.tokenizer):
            types[i] = TokenType.USER_DEFINED
        for i in self.tokenizer.silent | {self.tokenizer.eos}:
            types[i] = TokenType.CONTROL
        if self.tokenizer.unk is not None:
            types[self.tokenizer.unk] = TokenType.UNKNOWN
        return types


def beside(folder: Path, segmenter: str = "", rows: int = 0) -> Tokenizer:
    """The tokenizer of the model in a folder: the one AutoTokenizer takes there, of those with at
    most as many pieces as the embedding has `rows` (0: not known); its SentencePiece model, where
    that makes the same ids. Warns of another one there. ValueError: all have more pieces, or words
    were added to it in a file of their own."""
    tokenizers = _all(folder, segmenter)
    first = next((t for t in tokenizers if not rows or t.size <= rows), None)
    if first is None:
        raise ValueError(f"{tokenizers[0].path} has {tokenizers[0].size:,} pieces, the embedding "
                         f"{rows:,} rows: give the model's own tokenizer")  # fmt: skip
    if words := _added(first):
        raise ValueError(
            f"{folder}: {first.path.name} lacks {len(words):,} words that files beside it add "
            f"({words[0]!r}): write one file with all, AutoTokenizer.from_pretrained(folder)"
            ".save_pretrained(folder) of transformers does it"
        )
    reason = f"for the embedding has {rows:,} rows"
    reason = "as AutoTokenizer does" if first is tokenizers[0] else reason
    for other in tokenizers:
        if wrong := _differ(first, other):
            warnings.warn(
                f"{folder} holds two tokenizers, {first.path.name} and {other.path.name}, with "
                f"other ids for {wrong:,} lines: the first is taken, {reason}",
                stacklevel=3,
            )
    return next((t for t in same(folder, first) if t.kind == "SentencePiece"), first)


def same(folder: Path, tokenizer: Tokenizer) -> list[Tokenizer]:
    """All that a folder holds of one tokenizer, in several forms; AutoTokenizer takes the first."""
    if tokenizer.kind == "Morfessor":
        return [tokenizer]
    return [other for other in _all(folder) if not _differ(other, tokenizer)]


def _all(folder: Path, segmenter: str = "") -> list[Tokenizer]:
    paths = [folder / name for name in FILES if (folder / name).is_file()]
    if not paths:
        raise FileNotFoundError(f"{folder} holds no tokenizer ({', '.join(FILES)}): copy the "
                                "one the model was trained with into it")  # fmt: skip
    return [_opened(path, path.stat().st_mtime_ns, segmenter) for path in paths]


@lru_cache(8)
def _opened(path: Path, changed: int, segmenter: str) -> Tokenizer:
    return tdbook.corpus.tokenizer_files.open(path, segmenter)


@lru_cache(8)
def _differ(one: Tokenizer, other: Tokenizer) -> int:
    """On how many trial lines two tokenizers make other ids; 0: they are one."""
    if one is other:
        return 0
    lines = trial(one)
    wrong = [a != b for a, b in zip(one.encode(lines), other.encode(lines), strict=True)]
    return sum(wrong) or int(one.size != other.size)


def config(folder: Path, name: str) -> dict:
    """A file of JSON beside a model, {} where it is not there."""
    path = folder / name
    return tdbook.corpus.tokenizer.read_json(path) if path.is_file() else {}


def _added(tokenizer: Tokenizer) -> list[str]:
    """Words that files beside a tokenizer add to it, as transformers reads them, and it does not
    hold. Special tokens that it does not hold occur in no text."""
    if tokenizer.kind == "Morfessor":
        return []
    folder = tokenizer.path.parent
    entries = config(folder, CONFIGS[0]).get("added_tokens_decoder")
    words = {t["content"] for t in (entries or {}).values() if not t.get("special")}
    if entries is None:
        special = json.dumps([config(folder, name) for name in CONFIGS])
        words = {w for w in config(folder, "added_tokens.json") if json.dumps(w) not in special}
    own = tokenizer.model.get_vocab() if tokenizer.kind == "Hugging Face" else tokenizer.shown_V
    return sorted(w for w in words - {*own} if not re.fullmatch(r"<.*>|\[[A-Z]+\]", w))


def vocabulary(folder: Path) -> Vocabulary:
    """That of a model folder. ValueError: a tokenizer with more pieces than the embedding."""
    shape = read_config(folder)
    tokenizer = beside(folder, rows=shape.vocab_size)
    words, (begin, end) = _vocabulary(tokenizer), around(folder, tokenizer)
    why = words.why
    if not why and (len(begin) > 1 or end not in ((), (tokenizer.eos,))):
        why = f"its texts stand between the special tokens {[*begin]} and {[*end]}"
    bos = config(folder, "config.json").get("bos_token_id")
    bos = begin[0] if begin else shape.eos_id if bos is None else bos
    others = tuple(i for i in stops(folder) if i != tokenizer.eos)
    return replace(words, begin=begin, end=end, bos=bos, stops=others, why=why)


def around(folder: Path, tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids before and after a text as transformers has them: by the post-processor of a
    tokenizer.json, by tokenizer_config.json where there is a tokenizer.model alone. A model of this
    book begins after <eos>, whatever these say: its config has it as <bos>, and its tokenizer
    splits special tokens (or is none of AutoTokenizer's)."""
    settings, first = config(folder, CONFIGS[0]), same(folder, tokenizer)[0]
    ours = settings.get("split_special_tokens") or not (settings or first.kind == "Hugging Face")
    ours = ours and config(folder, "config.json").get("bos_token_id") == tokenizer.eos
    if ours or first.kind == "Morfessor" or first.path.name in FILES[2:]:
        return (tokenizer.eos,), ()
    if first.kind == "Hugging Face":
        bare, whole = (first.model.encode("a", add_special_tokens=x).ids for x in (False, True))
        at = next(i for i in range(len(whole) + 1) if whole[i : i + len(bare)] == bare)
        return tuple(whole[:at]), tuple(whole[at + len(bare) :])
    ids = []
    for key, otherwise in (("bos", tokenizer.model.bos_id()), ("eos", tokenizer.eos)):
        name = settings.get(f"{key}_token")
        name = name.get("content") if isinstance(name, dict) else name
        token = tokenizer.model.piece_to_id(name) if name else otherwise
        ids.append((token,) if settings.get(f"add_{key}_token") and token >= 0 else ())
    return ids[0], ids[1]


def stops(folder: Path) -> list[int]:
    """The ids that end a text, by generation_config.json, or config.json where there is none."""
    name = "generation_config.json"
    ids = config(folder, name if (folder / name).is_file() else "config.json").get("eos_token_id")
    ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if odd := [i for i in ids if type(i) is not int]:
        raise ValueError(f"{folder}: eos_token_id holds {odd[0]!r}, it must be ids: correct it")
    return ids


@lru_cache(4)
def _vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    if tokenizer.kind == "Morfessor":
        return _joined(tokenizer)
    made = _sentencepiece if tokenizer.kind == "SentencePiece" else _json
    candidates, lines, why = made(tokenizer), trial(tokenizer), ""
    wanted = tokenizer.encode(lines)
    for candidate in candidates:
        with tempfile.TemporaryDirectory() as folder:
            _write_stub(stub := Path(folder) / "stub.gguf", candidate)
            ids = llama_cpp.ids_elsewhere(stub, lines)
        if ids == wanted:
            return candidate
        if ids is None:
            why = why or "text that it has no piece for ends llama.cpp's process"
        else:
            wrong = sum(a != b for a, b in zip(ids, wanted, strict=True))
            why = why or f"llama.cpp makes other ids of {wrong:,} of {len(lines):,} trial lines"
    if added := len(_words(tokenizer)):
        why += f"; {added:,} of its pieces are words added to it"
    return replace(candidates[0], why=why)


def trial(tokenizer: Tokenizer) -> list[str]:
    """Lines that tell two tokenizers apart: pieces at random, edges, every Telugu code point,
    emoji, what has no piece, and each word that was added to it."""
    pieces = [p for p in tokenizer.vocabulary() if p and not re.search("<0x..>|�", p)]
    telugu = [chr(i) for i in range(0x0C00, 0x0C80)]
    emoji = ["👍🏽 😀", "👨‍👩‍👧", *map(chr, range(0x1F600, 0x1F650)), "中文 ꙮ"]
    words = [t for i, t in sorted(_words(tokenizer).items())][:1000]
    added = [f"{w} {w}{w} క{w}క  {w}. {v}{w}" for v, w in pairwise([*words[-1:], *words])]
    return [*cards.trial(pieces), *telugu, *(f"క{c}" for c in telugu), *emoji, *added]


def _words(tokenizer: Tokenizer) -> dict[int, str]:
    """The words added to a tokenizer.json, which text is cut at first."""
    added = tokenizer.model.get_added_tokens_decoder() if tokenizer.kind == "Hugging Face" else {}
    special = tokenizer.silent | {tokenizer.eos, tokenizer.unk}
    return {i: t.content for i, t in added.items() if i not in special}


def _joined(tokenizer: Tokenizer) -> Vocabulary:
    """x@@ → x and x → x▁, so that joining the pieces is the text."""
    special = tokenizer.silent | {tokenizer.eos, tokenizer.unk}
    pieces = [
        piece + "▁" if ends and i not in special else piece
        for i, (piece, ends) in enumerate(zip(tokenizer.shown_V, tokenizer.opens_V, strict=True))
    ]
    why = "its pieces are joined by @@, and text is segmented before it is encoded"
    return Vocabulary(tokenizer, "llama", pieces, why=why)


def _sentencepiece(tokenizer: Tokenizer) -> list[Vocabulary]:
    sp = tokenizer.model
    pieces = [sp.id_to_piece(i) for i in range(tokenizer.size)]
    scores = [sp.get_score(i) for i in range(tokenizer.size)]
    space = sp.encode("a", out_type=str)[0].startswith("▁")
    trims = sp.encode("a  a") == sp.encode("a a")
    return [Vocabulary(tokenizer, "llama", pieces, scores, space=space, trims=trims)]


def _json(tokenizer: Tokenizer) -> list[Vocabulary]:
    inner = json.loads(tokenizer.path.read_bytes())["model"]
    ids = {p.removeprefix(HIDDEN): i for p, i in tokenizer.model.get_vocab().items()}
    pieces = sorted(ids, key=ids.get)
    unigram = isinstance(inner["vocab"], list)  # of which llama.cpp makes other ids
    if not tokenizer.marked and not unigram:
        merges = [m if isinstance(m, str) else " ".join(m) for m in inner["merges"]]
        return [Vocabulary(tokenizer, "gpt2", pieces, merges=merges, pre=pre) for pre in PRE]
    before = tokenizer.encode(["a"])[0]
    for i in _words(tokenizer):  # with the space that it brings
        pieces[i] = tokenizer.line_text([*before, i]).removeprefix(tokenizer.line_text(before))
    if unigram:
        scores = [score for _, score in inner["vocab"]]
        scores += [0.0] * (len(pieces) - len(scores))
    else:  # a piece's score, as SentencePiece has it: the earlier its merge the better
        merges = [m.replace(" ", "") if isinstance(m, str) else "".join(m) for m in inner["merges"]]
        rank = {m: -float(i) for i, m in reversed([*enumerate(merges, 1)])}
        scores = [rank.get(p, -1e6) for p in pieces]
    return [Vocabulary(tokenizer, "llama", pieces, scores, space=tokenizer.marked)]


def add(writer: gguf.GGUFWriter, words: Vocabulary, rows: int) -> None:
    """The tokenizer's part of a GGUF's metadata."""
    spare = rows - len(words.pieces)  # rows of the embedding that no piece has
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list([*words.pieces, *(f"[PAD{i}]" for i in range(spare))])
    writer.add_token_types([*words.types, *[TokenType.UNUSED] * spare])
    if words.scores:
        writer.add_token_scores([*words.scores, *[-1e6] * spare])
    if words.merges:
        writer.add_token_merges(words.merges)
    writer.add_bos_token_id(words.bos)
    writer.add_eos_token_id(words.tokenizer.eos)
    if words.tokenizer.unk is not None:
        writer.add_unk_token_id(words.tokenizer.unk)
    if words.tokenizer.kind != "Hugging Face" and 0 in words.tokenizer.silent:
        writer.add_pad_token_id(0)
    for key, i in zip(("eot", "eom"), words.stops, strict=False):
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", i)
    writer.add_add_bos_token(bool(words.begin))
    writer.add_add_eos_token(bool(words.end))
    writer.add_add_space_prefix(words.space)
    writer.add_remove_extra_whitespaces(words.trims)
    writer.add_bool(llama_cpp.RAW, not words.why)


def add_shape(writer: gguf.GGUFWriter, config: LlamaConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.mlp_dim)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)


def _write_stub(path: Path, words: Vocabulary) -> None:
    """As small a model as can be, of zeros, to try a vocabulary with."""
    rows, writer = len(words.pieces), gguf.GGUFWriter(path, "llama")
    add_shape(writer, LlamaConfig(rows, layers=1, heads=1, dim=32, mlp_dim=32, context=64))
    add(writer, words, rows)
    writer.add_tensor("token_embd.weight", np.zeros((rows, 32), np.float16))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((32, 32), np.float16))
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def script(words: Vocabulary) -> str:
    """run_gguf.py: text → ids → llama.cpp → text, with no more than xllamacpp and the tokenizer's
    package installed, and the tokenizer's file beside."""
    name, parts = released_name(words.tokenizer), cards.texts("export.yaml")
    way = cards.texts("release.yaml")["ways"][name]
    code = way["tokenizer"].partition("\n")[2]  # without the line that asks the Hub
    known = {"code": code, "begin": words.begin, "eos": words.tokenizer.eos} | parts["ways"][name]
    return cards.fill(parts["script"], known)


def released_name(tokenizer: Tokenizer) -> str:
    names = {"Morfessor": "morfessor.json", "SentencePiece": "sentencepiece.model"}
    return names.get(tokenizer.kind, "tokenizer.json")
