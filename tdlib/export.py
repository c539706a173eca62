"""A model folder → GGUF files that llama.cpp runs, and exports/<model>/ to ship.

to_gguf: one file, written tensor by tensor. Q and K go in with NEIGHBOURING pairs of RoPE, as
llama.cpp's "llama" turns them; a folder of Hugging Face's layout has halves.
A file takes raw text by itself where llama.cpp makes the tokenizer's own ids; that is tried on a
thousand lines before anything is written. Where it does not (every @@ vocabulary), a warning says
so first, and run_gguf.py beside the file encodes.
check, costs: what llama.cpp says against the model in PyTorch.
Legend: N prompts or windows, T tokens, V vocabulary, O rows and D columns of a matrix.
"""

import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import gguf
import numpy as np
import torch
import yaml
from gguf import GGMLQuantizationType as Kind
from gguf import LlamaFileType, TokenType
from safetensors import safe_open

import tdlib.tokenizer
from tdlib import data, llama_cpp, release, teacher
from tdlib.files import replacing
from tdlib.model import Llama
from tdlib.shapes import LlamaConfig, read_config
from tdlib.tokenizer import BYTE, BYTE_OF, HIDDEN, Tokenizer

# of the matrices, of the head (and the embedding, where it is the head), and GGUF's number for both
QUANTIZATIONS = {
    "F16": (Kind.F16, Kind.F16, LlamaFileType.MOSTLY_F16),
    "Q8_0": (Kind.Q8_0, Kind.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "Q4_0": (Kind.Q4_0, Kind.Q4_0, LlamaFileType.MOSTLY_Q4_0),  # 4-bit throughout
    "Q4_0_DEFAULT": (Kind.Q4_0, Kind.Q6_K, LlamaFileType.MOSTLY_Q4_0),  # as llama-quantize makes it
}
TOKENIZERS = ("tokenizer.model", "sentencepiece.model", "morfessor.json", "tokenizer.json")
PRE = ("gpt-2", "llama-bpe", "qwen2", "default")  # llama.cpp's ways to cut text before BPE
SCRIPT = "run_gguf.py"


def to_gguf(folder: str | Path, path: str | Path, quantization: str) -> None:
    """One GGUF file of a Llama folder (ours, or Hugging Face's: tied or not, grouped heads, shards),
    whole or not at all; holds one tensor at a time. `quantization`: a name in QUANTIZATIONS. Norms
    stay float32; a width that is no multiple of a block is kept in Q8_0 or F16, as llama.cpp does.
    Warns before it writes where the file will take ids alone, and puts run_gguf.py beside it."""
    folder, path = Path(folder), Path(path)
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"quantization {quantization!r} is unknown: give one of "
                         f"{', '.join(QUANTIZATIONS)}")  # fmt: skip
    config = read_config(folder)
    where, words = _weights(folder, config), vocabulary(folder)
    if words.why:
        warnings.warn(f"{path.name} takes ids, no raw text ({words.why}): {SCRIPT} beside it "
                      "encodes and decodes", stacklevel=2)  # fmt: skip
    beside = path.with_name(f".{path.name}.new")
    with replacing(path, beside):
        writer = gguf.GGUFWriter(beside, "llama")
        _describe(writer, folder, config, quantization)
        _add_vocabulary(writer, words, config.vocab_size, _ids(folder, config))
        kinds = _kinds(where, config, quantization)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.layers)
        for name, (_, shape) in where.items():
            size = int(np.prod(shape)) // gguf.GGML_QUANT_SIZES[kinds[name]][0]
            size *= gguf.GGML_QUANT_SIZES[kinds[name]][1]
            theirs = names.get_name(name, (".weight",))
            writer.add_tensor_info(theirs, shape, np.dtype(np.float32), size, kinds[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, (file, _) in where.items():
            writer.write_tensor_data(_tensor(file, name, config, kinds[name]))
        writer.close()
    if words.why:
        for name, source in _beside(words).items():
            shutil.copy(source, path.with_name(name))
        path.with_name(SCRIPT).write_text(_script(words), encoding="utf8")


# --- weights


def _weights(folder: Path, config: LlamaConfig) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """Hugging Face's name of each weight → its file and shape, checked; nothing is read yet."""
    with torch.device("meta"):
        model = Llama(config)
    expected = {
        n if n.startswith("lm_head") else f"model.{n}": tuple(x.shape)
        for n, x in model.named_parameters()
    }
    files = {}
    for path in data.weight_files(folder):
        with _open(path) as f:
            files |= {name: (path, tuple(f.get_slice(name).get_shape())) for name in f.keys()}
    left_out = {"lm_head.weight"} - expected.keys()  # a tied head stored twice
    files = {name: found for name, found in files.items()
             if name not in left_out and not name.endswith("rotary_emb.inv_freq")}  # fmt: skip
    shapes = {name: torch.empty(shape, device="meta") for name, (_, shape) in files.items()}
    data.check_shapes(folder, shapes, expected)
    return {name: files[name] for name in expected}


def _open(path: Path):
    try:
        return safe_open(path, "pt")
    except Exception as error:  # SafetensorError, OSError
        raise ValueError(f"{path} cannot be read ({error}): copy it again") from None


def _kinds(where: dict, config: LlamaConfig, quantization: str) -> dict[str, Kind]:
    """How each weight is kept, with llama.cpp's own ways out where blocks do not fit a row."""
    body, head, _ = QUANTIZATIONS[quantization]
    head_name = "model.embed_tokens.weight" if config.tied else "lm_head.weight"
    kinds = {}
    for name, (_, shape) in where.items():
        kind = Kind.F32 if len(shape) == 1 else head if name == head_name else body
        if kind == Kind.Q6_K and shape[-1] % 256:
            kind = Kind.Q8_0
        if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            kind = Kind.F16
        kinds[name] = kind
    return kinds


def _tensor(path: Path, name: str, config: LlamaConfig, kind: Kind) -> np.ndarray:
    with _open(path) as f:  # opened for each: a mapped file counts as memory while it is open
        weight = f.get_tensor(name)
    if not weight.is_floating_point():
        dtype = str(weight.dtype).removeprefix("torch.")
        raise ValueError(f"{path}: {name} is {dtype}, a weight must be a float: give the model "
                         "before it was quantized")  # fmt: skip
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = config.heads if name.endswith("q_proj.weight") else config.kv_heads
        weight = teacher.neighbours(weight, heads)
    if kind == Kind.F16:
        largest = float(weight.abs().max())
        found = weight.half().numpy()
    else:
        found = weight.float().numpy()
        largest = 0.0 if np.isfinite(np.dot(found.ravel(), found.ravel())) else np.inf
    if not largest <= 65504:
        raise ValueError(f"{path}: {name} holds {largest}, which {kind.name} cannot: give an "
                         "earlier checkpoint")  # fmt: skip
    return found if kind in (Kind.F16, Kind.F32) else llama_cpp.quantize(found, kind)


# --- metadata


def _metadata(folder: Path, config: LlamaConfig) -> gguf.Metadata:
    """Name, licence, base model and so on, from the folder's card."""
    card = gguf.Metadata.load_model_card(folder)
    path = folder / "README.md"
    text = path.read_text(encoding="utf8") if path.is_file() else ""
    title = re.search(r"^# (\S+)$", text, re.MULTILINE)
    name = Path(title[1] if title else folder.resolve().name)
    found = gguf.Metadata.apply_metadata_heuristic(
        gguf.Metadata(), card, None, name, config.parameters
    )
    found.size_label = gguf.size_label(config.parameters, 0, 0, 0)
    return found


def file_name(folder: Path, quantization: str) -> str:
    """By gguf.naming_convention: "telugu-52M-merged-Q4_0.gguf"."""
    m = _metadata(folder, read_config(folder))
    return gguf.naming_convention(
        m.name, m.basename, m.finetune, m.version, m.size_label, quantization
    ) + ".gguf"  # fmt: skip


def _describe(
    writer: gguf.GGUFWriter, folder: Path, config: LlamaConfig, quantization: str
) -> None:
    writer.add_type("model")
    _metadata(folder, config).set_gguf_meta_model(writer)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(QUANTIZATIONS[quantization][2])
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


# --- the tokenizer


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What GGUF says of a tokenizer. `why` it makes no right ids of raw text; "" where it does."""

    tokenizer: Tokenizer
    model: str  # llama.cpp's name of the kind: "llama" (SentencePiece), "gpt2" (bytes), "t5"
    pieces: list[str]
    types: list[int]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    pre: str = "default"
    space: bool = False  # a space is put before the text
    trims: bool = False  # spaces are put together
    why: str = ""


def vocabulary(folder: Path) -> Vocabulary:
    """The tokenizer of a model folder as GGUF can say it, tried in llama.cpp."""
    path = next((folder / name for name in TOKENIZERS if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder} holds no tokenizer ({', '.join(TOKENIZERS)}): copy the "
                                "one the model was trained with into it")  # fmt: skip
    config = read_config(folder)
    found = _vocabulary(path, path.stat().st_mtime_ns, config.eos_id)
    if found.tokenizer.size > config.vocab_size:
        raise ValueError(f"{path} has {found.tokenizer.size:,} pieces, the embedding "
                         f"{config.vocab_size:,} rows: give the model's own tokenizer")  # fmt: skip
    return found


@lru_cache(4)
def _vocabulary(path: Path, changed: int, eos: int) -> Vocabulary:
    tokenizer = tdlib.tokenizer.open(path)
    if tokenizer.kind == "Morfessor":
        return _joined(tokenizer)
    candidates = _sentencepiece(tokenizer) if tokenizer.kind == "SentencePiece" else _json(tokenizer)
    lines, said = trial(tokenizer), ""
    wanted = tokenizer.encode(lines)
    for candidate in candidates:
        with tempfile.TemporaryDirectory() as folder:
            stub = Path(folder) / "stub.gguf"
            _write_stub(stub, candidate, eos)
            found = llama_cpp.ids_elsewhere(stub, lines)
        if found == wanted:
            return candidate
        wrong = len(lines) if found is None else sum(
            a != b for a, b in zip(found, wanted, strict=True)
        )  # fmt: skip
        said = said or f"llama.cpp makes other ids of {wrong:,} of {len(lines):,} trial lines"
    said = said or "llama.cpp knows no tokenizer of its kind"
    return Vocabulary(**vars(candidates[0]) | {"why": said})


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
    ids, join = range(tokenizer.size), tokenizer.model.separator
    special = tokenizer.silent | {tokenizer.eos, tokenizer.unk}
    shown = tokenizer.shown_V
    names = json.loads(tokenizer.path.read_bytes())["token_to_id"]
    joins = {i for piece, i in names.items() if piece.endswith(join)}
    pieces = [shown[i] + ("" if i in joins | special else "▁") for i in ids]
    return Vocabulary(
        tokenizer, "llama", pieces, _types(tokenizer, pieces), [0.0] * tokenizer.size,
        why="its vocabulary joins pieces by @@, and text is segmented before it is encoded",
    )  # fmt: skip


def _sentencepiece(tokenizer: Tokenizer) -> list[Vocabulary]:
    sp = tokenizer.model
    pieces = [sp.id_to_piece(i) for i in range(tokenizer.size)]
    types = _types(tokenizer, pieces)
    scores = [sp.get_score(i) for i in range(tokenizer.size)]
    space = sp.encode("a", out_type=str)[0].startswith("▁")
    trims = sp.encode("a  a") == sp.encode("a a")
    return [
        Vocabulary(tokenizer, model, pieces, types, scores, space=space, trims=trims)
        for model in ("llama", "t5")
    ]


def _json(tokenizer: Tokenizer) -> list[Vocabulary]:
    inner = json.loads(tokenizer.path.read_bytes())["model"]
    ids = {p.removeprefix(HIDDEN): i for p, i in tokenizer.model.get_vocab().items()}
    pieces = sorted(ids, key=ids.get)
    types, space = _types(tokenizer, pieces), tokenizer.marked
    if isinstance(inner["vocab"], list):  # Unigram
        scores = [score for _, score in inner["vocab"]]
        scores += [0.0] * (len(pieces) - len(scores))
        return [Vocabulary(tokenizer, "t5", pieces, types, scores, space=space)]
    merges = [m if isinstance(m, str) else " ".join(m) for m in inner["merges"]]
    if not tokenizer.marked:
        types = [TokenType.NORMAL if t == TokenType.BYTE else t for t in types]
        return [Vocabulary(tokenizer, "gpt2", pieces, types, merges=merges, pre=p) for p in PRE]
    rank = {m.replace(" ", ""): -float(i) for i, m in reversed([*enumerate(merges, 1)])}
    scores = [rank.get(p, -1e6) for p in pieces]
    return [Vocabulary(tokenizer, "llama", pieces, types, scores, space=space)]


def _ids(folder: Path, config: LlamaConfig) -> dict[str, int]:
    """The special ids; a prompt begins after "bos", which is <eos> in ours."""
    given = json.loads((folder / "config.json").read_bytes())
    bos = given.get("bos_token_id")
    return {"bos": config.eos_id if bos is None else bos, "eos": config.eos_id}


def _add_vocabulary(
    writer: gguf.GGUFWriter, words: Vocabulary, rows: int, ids: dict[str, int]
) -> None:
    spare = rows - len(words.pieces)  # rows of the embedding that no piece has
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list([*words.pieces, *(f"[PAD{i}]" for i in range(spare))])
    writer.add_token_types([*words.types, *[TokenType.UNUSED] * spare])
    if words.scores:
        writer.add_token_scores([*words.scores, *[-1e6] * spare])
    if words.merges:
        writer.add_token_merges(words.merges)
    writer.add_bos_token_id(ids["bos"])
    writer.add_eos_token_id(ids["eos"])
    if words.tokenizer.unk is not None:
        writer.add_unk_token_id(words.tokenizer.unk)
    if words.tokenizer.kind != "Hugging Face" and 0 in words.tokenizer.silent:
        writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(words.space)
    writer.add_remove_extra_whitespaces(words.trims)
    writer.add_bool(llama_cpp.RAW, not words.why)


def _write_stub(path: Path, words: Vocabulary, eos: int) -> None:
    """As small a model as can be, of zeros, to try a vocabulary with."""
    rows, writer = len(words.pieces), gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-6)
    _add_vocabulary(writer, words, rows, {"bos": eos, "eos": eos})
    writer.add_tensor("token_embd.weight", np.zeros((rows, 32), np.float16))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((32, 32), np.float16))
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
