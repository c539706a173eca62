"""A tokenizer as GGUF says it, tried in llama.cpp on a thousand lines before it is believed.

llama.cpp repeats SentencePiece BPE with byte fallback ("llama") and BPE over bytes ("gpt2"). Of any
other kind, every @@ vocabulary among them, a file holds the pieces, so that ids become text, and
takes ids alone; run_gguf.py beside it makes them.
"""

import json
import re
import tempfile
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import gguf
import numpy as np
import yaml
from gguf import TokenType
from jinja2 import Environment, StrictUndefined

import tdlib.tokenizer
from tdlib import llama_cpp, release
from tdlib.shapes import read_config
from tdlib.tokenizer import BYTE, HIDDEN, Tokenizer

FILES = ("tokenizer.model", "sentencepiece.model", "morfessor.json", "tokenizer.json")
PRE = ("gpt-2", "llama-bpe", "qwen2", "default")  # llama.cpp's ways to cut text before BPE
SCRIPT = "run_gguf.py"


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """`why`: in what it fails on raw text; "" where it makes the tokenizer's own ids."""

    tokenizer: Tokenizer
    model: str  # llama.cpp's name of the kind: "llama" or "gpt2"
    pieces: list[str]
    types: list[int]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    pre: str = "default"
    space: bool = False  # a space is put before the text
    trims: bool = False  # spaces are put together
    why: str = ""


def vocabulary(folder: Path) -> Vocabulary:
    """That of a model folder. ValueError: a tokenizer with more pieces than the embedding."""
    path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder} holds no tokenizer ({', '.join(FILES)}): copy the "
                                "one the model was trained with into it")  # fmt: skip
    rows, found = read_config(folder).vocab_size, _vocabulary(path, path.stat().st_mtime_ns)
    if found.tokenizer.size > rows:
        raise ValueError(f"{path} has {found.tokenizer.size:,} pieces, the embedding "
                         f"{rows:,} rows: give the model's own tokenizer")  # fmt: skip
    return found


@lru_cache(4)
def _vocabulary(path: Path, changed: int) -> Vocabulary:
    tokenizer = tdlib.tokenizer.open(path)
    if tokenizer.kind == "Morfessor":
        return _joined(tokenizer)
    candidates = (
        _sentencepiece(tokenizer) if tokenizer.kind == "SentencePiece" else _json(tokenizer)
    )
    lines = trial(tokenizer)
    wanted, said = tokenizer.encode(lines), ""
    for candidate in candidates:
        with tempfile.TemporaryDirectory() as folder:
            _write_stub(Path(folder) / "stub.gguf", candidate)
            found = llama_cpp.ids_elsewhere(Path(folder) / "stub.gguf", lines)
        if found == wanted:
            return candidate
        if found is None:
            said = said or "text that it has no piece for ends llama.cpp's process"
        else:
            wrong = sum(a != b for a, b in zip(found, wanted, strict=True))
            said = said or f"llama.cpp makes other ids of {wrong:,} of {len(lines):,} trial lines"
    return replace(candidates[0], why=said)


def trial(tokenizer: Tokenizer) -> list[str]:
    """Lines that tell two tokenizers apart: pieces at random, edges, every Telugu code point, emoji
    and what has no piece."""
    pieces = [p for p in tokenizer.vocabulary() if p and not re.search("<0x..>|�", p)]
    telugu = [chr(i) for i in range(0x0C00, 0x0C80)]
    emoji = ["👍🏽 😀", "👨‍👩‍👧", *map(chr, range(0x1F600, 0x1F650)), "中文 ꙮ"]
    return [*release._trial(pieces), *telugu, *(f"క{c}" for c in telugu), *emoji]


def _types(tokenizer: Tokenizer, pieces: list[str]) -> list[int]:
    types = [TokenType.BYTE if BYTE.fullmatch(p) else TokenType.NORMAL for p in pieces]
    for i in tokenizer.silent | {tokenizer.eos}:
        types[i] = TokenType.CONTROL
    if tokenizer.unk is not None:
        types[tokenizer.unk] = TokenType.UNKNOWN
    return types


def _joined(tokenizer: Tokenizer) -> Vocabulary:
    """x@@ → x and x → x▁, so that joining the pieces is the text."""
    special = tokenizer.silent | {tokenizer.eos, tokenizer.unk}
    pieces = [
        piece + "▁" if ends and i not in special else piece
        for i, (piece, ends) in enumerate(zip(tokenizer.shown_V, tokenizer.opens_V, strict=True))
    ]
    return Vocabulary(
        tokenizer, "llama", pieces, _types(tokenizer, pieces),
        why="its pieces are joined by @@, and text is segmented before it is encoded",
    )  # fmt: skip


def _sentencepiece(tokenizer: Tokenizer) -> list[Vocabulary]:
    sp = tokenizer.model
    pieces = [sp.id_to_piece(i) for i in range(tokenizer.size)]
    scores = [sp.get_score(i) for i in range(tokenizer.size)]
    space = sp.encode("a", out_type=str)[0].startswith("▁")
    trims = sp.encode("a  a") == sp.encode("a a")
    types = _types(tokenizer, pieces)
    return [Vocabulary(tokenizer, "llama", pieces, types, scores, space=space, trims=trims)]


def _json(tokenizer: Tokenizer) -> list[Vocabulary]:
    inner = json.loads(tokenizer.path.read_bytes())["model"]
    ids = {p.removeprefix(HIDDEN): i for p, i in tokenizer.model.get_vocab().items()}
    pieces = sorted(ids, key=ids.get)
    types, space = _types(tokenizer, pieces), tokenizer.marked
    if isinstance(inner["vocab"], list):  # Unigram, of which llama.cpp makes other ids
        scores = [score for _, score in inner["vocab"]]
        scores += [0.0] * (len(pieces) - len(scores))
        return [Vocabulary(tokenizer, "llama", pieces, types, scores, space=space)]
    merges = [m if isinstance(m, str) else " ".join(m) for m in inner["merges"]]
    if not tokenizer.marked:
        types = [TokenType.NORMAL if t == TokenType.BYTE else t for t in types]
        return [Vocabulary(tokenizer, "gpt2", pieces, types, merges=merges, pre=p) for p in PRE]
    # a piece's score, as SentencePiece has it: the earlier its merge the better
    rank = {m.replace(" ", ""): -float(i) for i, m in reversed([*enumerate(merges, 1)])}
    scores = [rank.get(p, -1e6) for p in pieces]
    return [Vocabulary(tokenizer, "llama", pieces, types, scores, space=space)]


def add(writer: gguf.GGUFWriter, words: Vocabulary, rows: int, bos: int) -> None:
    """The tokenizer's part of a GGUF's metadata. Prompts begin after `bos`, in ours <eos>."""
    spare = rows - len(words.pieces)  # rows of the embedding that no piece has
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list([*words.pieces, *(f"[PAD{i}]" for i in range(spare))])
    writer.add_token_types([*words.types, *[TokenType.UNUSED] * spare])
    if words.scores:
        writer.add_token_scores([*words.scores, *[-1e6] * spare])
    if words.merges:
        writer.add_token_merges(words.merges)
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(words.tokenizer.eos)
    if words.tokenizer.unk is not None:
        writer.add_unk_token_id(words.tokenizer.unk)
    if words.tokenizer.kind != "Hugging Face" and 0 in words.tokenizer.silent:
        writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(words.space)
    writer.add_remove_extra_whitespaces(words.trims)
    writer.add_bool(llama_cpp.RAW, not words.why)


def _write_stub(path: Path, words: Vocabulary) -> None:
    """As small a model as can be, of zeros, to try a vocabulary with."""
    rows, writer = len(words.pieces), gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-6)
    add(writer, words, rows, words.tokenizer.eos)
    writer.add_tensor("token_embd.weight", np.zeros((rows, 32), np.float16))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((32, 32), np.float16))
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# --- beside a file that takes ids alone


def script(words: Vocabulary) -> str:
    """run_gguf.py: text → ids → llama.cpp → text, with no more than xllamacpp and the tokenizer's
    package installed, and the tokenizer's file beside."""
    name = released_name(words.tokenizer)
    texts = yaml.safe_load(Path(__file__).with_name("export.yaml").read_text(encoding="utf8"))
    way = release.ways()[name]
    code = way["tokenizer"].partition("\n")[2]  # without the line that asks the Hub
    engine = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    known = {"code": code} | texts["ways"][name] | {"eos": words.tokenizer.eos}
    return engine.from_string(texts["script"]).render(known)


def released_name(tokenizer: Tokenizer) -> str:
    kinds = {"Morfessor": "morfessor.json", "SentencePiece": "sentencepiece.model"}
    return kinds.get(tokenizer.kind, "tokenizer.json")
