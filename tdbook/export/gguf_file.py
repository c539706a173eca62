"""A model folder → a GGUF file that llama.cpp runs.

Q and K go in with NEIGHBOURING pairs of RoPE, as llama.cpp's "llama" turns them; a folder of
Hugging Face's layout has halves. llama.cpp repeats SentencePiece BPE with byte fallback ("llama"),
its Unigram without, where spaces are put together ("t5"), and BPE over bytes ("gpt2"): tried on a
thousand lines. Of any other tokenizer, every @@ vocabulary among them, a file holds the pieces, so
that ids become text, and takes ids alone: a warning says so, and run_gguf.py beside it encodes.
"""

import copy
import json
import math
import tempfile
import warnings
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import LlamaFileType, TokenType
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from tdbook.corpus.tokenizer import BYTE, HIDDEN, Tokenizer
from tdbook.export import cards, llama_cpp, model_tokenizer
from tdbook.export.turns import TRIAL
from tdlib import quantize, teacher, weights
from tdlib.files import AWAY, mark, own, replacing, write_whole
from tdlib.model import Llama, stored_shapes
from tdlib.shapes import LlamaConfig

_TABLE = cards.templates("export.yaml")["quantizations"]
QUANTIZATIONS = {n: (Kind[a], Kind[b], LlamaFileType[c]) for n, (a, b, c) in _TABLE.items()}
COARSER = {Kind.Q4_K: Kind.Q5_0, Kind.Q6_K: Kind.Q8_0}  # where 256 does not divide a row
PRE = ("gpt-2", "llama-bpe", "qwen2", "default")  # llama.cpp's ways to cut text before BPE
SCRIPT = "run_gguf.py"
NAMES = gguf.MODEL_ARCH.QWEN3  # whose tensors are a Llama's and the QK norms
BITS = {k: 8 * size // block for k, (block, size) in gguf.GGML_QUANT_SIZES.items()}  # of a weight
LARGEST = 65504  # that 16 bits hold
# Hugging Face's name of a matrix → see llama_cpp.quantize; None: all weights count the same
Importance = dict[str, np.ndarray] | None


@dataclass(frozen=True, eq=False)
class Vocabulary:
    beside: model_tokenizer.Beside
    bos: int  # a prompt's first id, or what the config names so where it begins with none
    model: str  # llama.cpp's name of the kind: "llama", "gpt2", or "t5", a Unigram
    pieces: list[str]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    pre: str = "default"
    space: bool = False  # a space is put before the text
    trims: bool = False  # spaces are put together
    charsmap: bytes = b""  # how SentencePiece normalises
    why: str = ""  # the file takes no raw text; "" where it makes the tokenizer's own ids

    @property
    def types(self) -> list[int]:
        one, byte = self.beside.tokenizer, [TokenType.NORMAL, TokenType.BYTE][self.model == "llama"]
        types = [byte if BYTE.fullmatch(p) else TokenType.NORMAL for p in self.pieces]
        kinds = dict.fromkeys(model_tokenizer.added_words(one), TokenType.USER_DEFINED)
        kinds |= dict.fromkeys(one.silent | {one.eos}, TokenType.CONTROL)
        kinds |= {} if one.unk is None else {one.unk: TokenType.UNKNOWN}
        return [kinds.get(i, kind) for i, kind in enumerate(types)]


@dataclass(frozen=True)
class Source:
    """A model folder, read once but for the values of its weights."""

    folder: Path
    config: LlamaConfig
    vocabulary: Vocabulary
    weights: dict[str, tuple[Path, tuple[int, ...]]]  # Hugging Face's name → its file and shape

    @cached_property
    def metadata(self) -> gguf.Metadata:
        size, card = self.config.parameters, gguf.Metadata.load_model_card(self.folder)
        guess = gguf.Metadata.apply_metadata_heuristic
        metadata = guess(gguf.Metadata(), card, None, self.folder.resolve(), size)
        if not metadata.basename:  # a name such as "50m" has no parts to be told apart
            metadata.finetune = None
        metadata.size_label = gguf.size_label(size, 0, 0, 0)
        return metadata

    def file_name(self, quantization: str) -> str:
        """By gguf.naming_convention: "50m-Merged-52M-Q4_0.gguf"."""
        m = self.metadata
        parts = m.name, m.basename, m.finetune, m.version, m.size_label, quantization
        return f"{gguf.naming_convention(*parts)}.gguf"


def formats(config: LlamaConfig) -> list[str]:
    """Of QUANTIZATIONS, those that a model of this shape is written in."""
    return [name for name in QUANTIZATIONS if name != "Q4_K" or not config.dim % 256]


def read(folder: Path) -> Source:
    """ValueError: weights that are not those of the config, or a tokenizer that does not fit."""
    config = weights.stored_config(folder)
    words = vocabulary(folder, config)
    with torch.device("meta"):
        expected = stored_shapes(Llama(config))
    return Source(folder, config, words, weights.locate(folder, expected))


def vocabulary(folder: Path, config: LlamaConfig) -> Vocabulary:
    """The first form that makes the tokenizer's ids in llama.cpp; else the first, and why not."""
    beside = model_tokenizer.open_beside(folder, rows=config.vocab_size)
    begin, end, tokenizer, whys = beside.begin, beside.end, beside.tokenizer, []
    bos = model_tokenizer.read_config(folder, "config.json").get("bos_token_id")
    bos = begin[0] if begin else config.eos_id if bos is None else bos
    if (turns := beside.turns) and (name := turns.named.get("bos_token")):
        bos = turns.tokenize(name, True)[0]  # which llama.cpp gives the template by that name
    forms = {"SentencePiece": _sentencepiece, "Hugging Face": _json}
    make = _joined if tokenizer.joined else forms[tokenizer.kind]
    candidates = [Vocabulary(beside, bos, **form) for form in make(tokenizer)]
    if candidates[0].why:
        return candidates[0]
    lines = model_tokenizer.trial_lines(tokenizer)
    wanted, texts = tokenizer.encode(lines), [(line, False) for line in lines]
    if turns:
        texts.append((turns.text(TRIAL), True))
        wanted.append(turns.tokenize(*texts[-1]))
    for candidate in candidates:
        try:
            ids = _trial_ids(candidate, texts)
        except ValueError:
            whys.append("text that it has no piece for ends llama.cpp's process")
            continue
        if ids == wanted:
            between = f"its texts stand between the special tokens {[*begin]} and {[*end]}"
            plain = len(begin) <= 1 and end in ((), (tokenizer.eos,))
            return candidate if plain else replace(candidate, why=between)
        wrong = sum(a != b for a, b in zip(ids, wanted, strict=True))
        whys.append(f"llama.cpp makes other ids of {wrong:,} of {len(texts):,} trial lines")
    if added := len(model_tokenizer.added_words(tokenizer)):
        whys[0] += f"; {added:,} of its pieces are words added to it"
    return replace(candidates[0], why=whys[0])


def _trial_ids(candidate: Vocabulary, texts: list[tuple[str, bool]]) -> list[list[int]]:
    """llama.cpp's ids of texts (see ids_of), by a file of as small a model as can be."""
    shape = LlamaConfig(len(candidate.pieces), layers=1, heads=1, dim=32, mlp_dim=32, context=64)
    with tempfile.TemporaryDirectory() as place, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, folder, path = Llama(shape), Path(place, "trial"), Path(place, "trial.gguf")
        model.save(folder)
        places = weights.locate(folder, stored_shapes(model))
        _write_model(path, Source(folder, shape, candidate, places), "F16")
        return llama_cpp.ids_of(path, texts)


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
    spec = ModelProto.FromString(tokenizer.path.read_bytes()).normalizer_spec
    form |= dict(space=spec.add_dummy_prefix, trims=spec.remove_extra_whitespaces)
    return [form | dict(model="llama"), form | dict(model="t5", charsmap=spec.precompiled_charsmap)]


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


def to_gguf(folder: str | Path, path: str | Path, quantization: str, importance=None) -> None:
    """One GGUF file of a Llama folder (ours or Hugging Face's), whole or not at all, one tensor in
    memory at a time. A matrix that is Q4_0 already (tdlib.quantize) is written as it is. Warns
    first where the file will take ids alone, and puts run_gguf.py beside it."""
    path, model = Path(path), read(Path(folder))
    if quantization not in (known := formats(model.config)):
        fault = f"{quantization!r} is unknown: give one of {', '.join(known)}"
        raise ValueError(fault + "; Q4_K needs a width that 256 divides" * ("Q4_K" not in known))
    own(path)
    if path.exists() and path.open("rb").read(4) != b"GGUF":
        raise FileExistsError(f"{path} is there and was not made by the book as a GGUF: {AWAY}")
    warn(model, path.name, quantization)
    write(model, path, quantization, importance)


def warn(model: Source, name: str, quantization: str) -> None:
    """Of what a file will not hold, or not as its name says."""
    why = model.vocabulary.why
    ids = f"takes ids, no raw text ({why}): {SCRIPT} beside it encodes and decodes" if why else ""
    lost = model.vocabulary.beside.stops[2:]
    stops = f"stops at three ids, not at {lost} of generation_config.json" if lost else ""
    for remark in filter(None, (ids, stops, coarse(model, quantization))):
        warnings.warn(f"{name}: {remark}", stacklevel=3)


def write(model: Source, path: Path, quantization: str, importance: Importance = None) -> None:
    """The file, and what it needs beside it."""
    helpers, tokenizer = {}, model.vocabulary.beside.tokenizer
    if model.vocabulary.why:
        name = cards.templates("export.yaml")["ways"][tokenizer.kind]["file"]
        helpers[path.with_name(name)] = tokenizer.path.read_bytes()
        helpers[path.with_name(SCRIPT)] = script(model.vocabulary).encode()
    new = [file for file in helpers if not file.exists() or file.read_bytes() != helpers[file]]
    for file in new:
        own(file)
    with replacing(path) as beside:
        _write_model(beside, model, quantization, importance)
    for file in new:
        write_whole(file, helpers[file])
    mark(path.parent, path.name, *(file.name for file in new))


def _write_model(path: Path, model: Source, quantization: str, importance=None) -> None:
    writer = gguf.GGUFWriter(path, "qwen3" if model.config.qk_norm else "llama")
    writer.add_type("model")
    model.metadata.set_gguf_meta_model(writer)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(QUANTIZATIONS[quantization][2])
    for key, name in cards.templates("export.yaml")["shape"].items():
        getattr(writer, f"add_{key}")(getattr(model.config, name))
    _add_vocabulary(writer, model.vocabulary, model.config.vocab_size)
    names = gguf.get_tensor_name_map(NAMES, model.config.layers)
    kind_of = kinds(model, quantization)
    for name, (_, shape) in model.weights.items():
        block, width = gguf.GGML_QUANT_SIZES[kind_of[name]]
        about = shape, np.dtype(np.float32), math.prod(shape) // block * width, kind_of[name]
        writer.add_tensor_info(names.get_name(name, (".weight",)), *about)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in model.weights:
        writer.write_tensor_data(_content(model, name, kind_of[name], (importance or {}).get(name)))
    writer.close()


def _add_vocabulary(writer: gguf.GGUFWriter, words: Vocabulary, rows: int) -> None:
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
    about |= dict(remove_extra_whitespaces=words.trims, precompiled_charsmap=words.charsmap)
    about |= dict(chat_template=words.beside.turns and words.beside.turns.template)
    for name, value in about.items():
        if value not in (None, [], b""):
            getattr(writer, f"add_{name}")(value)
    for key, i in zip(("eot", "eom"), words.beside.stops, strict=False):
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", i)
    writer.add_bool(llama_cpp.RAW_TEXT, not words.why)


def kinds(model: Source, quantization: str) -> dict[str, Kind]:
    """How each weight is kept, with llama.cpp's own choice where blocks do not fit a row."""
    body, head, _ = QUANTIZATIONS[quantization]
    head_name = "model.embed_tokens.weight" if model.config.tied else "lm_head.weight"
    kind_of = {}
    for name, (_, shape) in model.weights.items():
        kind = Kind.F32 if len(shape) == 1 else head if name == head_name else body
        if shape[-1] % 256:
            kind = COARSER.get(kind, kind)
        if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            kind = Kind.F16
        kind_of[name] = kind
    return kind_of


def coarse(model: Source, quantization: str) -> str:
    """How much of a file is not in the blocks that it is named after; "" for nothing."""
    kind, kind_of = QUANTIZATIONS[quantization][0], kinds(model, quantization)
    matrices = {name: shape for name, (_, shape) in model.weights.items() if len(shape) > 1}
    block = gguf.GGML_QUANT_SIZES[kind][0]
    inside = sum(math.prod(shape) for name, shape in matrices.items() if kind_of[name] == kind)
    odd = {shape[-1]: BITS[kind_of[n]] for n, shape in matrices.items() if shape[-1] % block}
    widths, bits = (" and ".join(map(str, sorted(xs))) for xs in (odd, {*odd.values()}))
    share = f"{inside / sum(map(math.prod, matrices.values())):.1%} of {quantization}"
    rows = f"rows of {widths} weights are no multiple of {block}, and stay in {bits} bits"
    return f"{share} is in {BITS[kind]} bits: {rows}" if odd else ""


def _content(model: Source, name: str, kind: Kind, importance_I: np.ndarray | None) -> np.ndarray:
    path, config = model.weights[name][0], model.config
    weight = weights.read_weight(path, name)
    low, high = map(float, weight.aminmax())
    if not max(-low, high) <= (np.finfo(np.float32).max if kind == Kind.F32 else LARGEST):
        value = f"{path}: {name} holds {max(-low, high)}"
        raise ValueError(f"{value}, which {kind.name} cannot: give an earlier checkpoint")
    for letter, heads in (("q", config.heads), ("k", config.kv_heads)):
        # "qwen3", which a model with QK norms is, turns halves too
        if name.endswith(f"{letter}_proj.weight") and not config.qk_norm:
            weight = teacher.neighbours(weight, heads)
    if kind == Kind.F16:
        return weight.half().numpy()
    return weight.float().numpy() if kind == Kind.F32 else _rounded(weight, kind, importance_I)


def _rounded(weight_OI: torch.Tensor, kind: Kind, importance_I: np.ndarray | None = None):
    """The blocks of a matrix, (O, bytes of a row): its own where it is Q4_0 already."""
    own = quantize.own_blocks(weight_OI) if kind == Kind.Q4_0 else None
    if own is None:
        return llama_cpp.quantize(weight_OI.float().numpy(), kind, importance_I)
    low_BN, high_BN = (own[0] + 8).to(torch.uint8).chunk(2, 1)
    parts = own[1].half()[:, None].numpy().view(np.uint8), (low_BN | high_BN << 4).numpy()
    return np.concatenate(parts, axis=1).reshape(len(weight_OI), -1)


@torch.no_grad()
def rounded(model: Llama, importance: Importance = None) -> Llama:
    """A copy with the weights that the model's Q4_0 file holds, float32, on its device: what the
    file loses can be measured in PyTorch. Rows that are no multiple of 32 have 16 bits there."""
    copied = copy.deepcopy(model)
    for name, weight in zip(stored_shapes(copied), copied.float().parameters(), strict=True):
        if weight.ndim == 2 and weight.shape[1] % quantize.BLOCK:
            weight.copy_(weight.half())
        elif weight.ndim == 2:
            blocks = _rounded(weight.detach().cpu(), Kind.Q4_0, (importance or {}).get(name))
            weight.copy_(torch.from_numpy(gguf.quants.dequantize(blocks, Kind.Q4_0)))
    return copied


def script(words: Vocabulary) -> str:
    """run_gguf.py, which needs xllamacpp, the tokenizer's package and its file beside it alone."""
    parts, tokenizer = cards.templates("export.yaml"), words.beside.tokenizer
    way = parts["ways"][tokenizer.kind]
    code = cards.templates("release.yaml")["ways"][way["file"]]["tokenizer"]
    code = code.partition("\n")[2]  # without the line that asks the Hub
    values = {"code": code, "begin": words.beside.begin, "eos": tokenizer.eos}
    return cards.fill(parts["script"], values | way)
