"""A model folder → a GGUF file that llama.cpp runs.

Q and K go in with NEIGHBOURING pairs of RoPE, as llama.cpp's "llama" turns them; a folder of
Hugging Face's layout has halves. Where llama.cpp does not make the tokenizer's own ids of raw text
(every @@ vocabulary), a warning says so first, and run_gguf.py beside the file encodes.
"""

import math
import tempfile
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import LlamaFileType

from tdbook.export import gguf_tokenizer, llama_cpp, model_tokenizer
from tdbook.export.gguf_tokenizer import SCRIPT, Vocabulary
from tdlib import shapes, teacher, weights
from tdlib.files import AWAY, mark, own, replacing, write_whole
from tdlib.model import Llama, stored_shapes
from tdlib.shapes import LlamaConfig

# of the matrices, of the head (and the embedding, where it is the head), and GGUF's number for both
QUANTIZATIONS = {
    "F16": (Kind.F16, Kind.F16, LlamaFileType.MOSTLY_F16),
    "Q8_0": (Kind.Q8_0, Kind.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "Q4_0": (Kind.Q4_0, Kind.Q4_0, LlamaFileType.MOSTLY_Q4_0),  # 4-bit throughout
    "Q4_0_DEFAULT": (Kind.Q4_0, Kind.Q6_K, LlamaFileType.MOSTLY_Q4_0),  # as llama-quantize makes it
}
# GGUF's keys of a shape, and ours
SHAPE = """vocab_size=vocab_size context_length=context embedding_length=dim block_count=layers
    feed_forward_length=mlp_dim head_count=heads head_count_kv=kv_heads key_length=head_dim
    value_length=head_dim rope_dimension_count=head_dim rope_freq_base=rope_theta
    layer_norm_rms_eps=norm_eps"""
LARGEST = 65504  # that 16 bits hold
HELD = shapes.KNOWN - {"repetition_penalty", "encoder_repetition_penalty"}  # or no matter


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

    @property
    def not_held(self) -> str:
        """What generation_config.json asks for and no GGUF file holds; "" for nothing."""
        options = model_tokenizer.read_config(self.folder, "generation_config.json").items()
        lost = [(n, v) for n, v in options if n not in HELD and v not in (None, "", [], {}, 0, 1)]
        lost += [("eos_token_id", i) for i in self.vocabulary.stops[2:]]
        asks = ", ".join(f"{name} {value!r:.40}" for name, value in lost)
        return f"generation_config.json asks for {asks}: set it where the file runs" if lost else ""


def read(folder: Path) -> Source:
    """ValueError: weights that are not those of the config, or a tokenizer that does not fit."""
    config = weights.stored_config(folder)
    words = vocabulary(folder, config)
    with torch.device("meta"):
        expected = stored_shapes(Llama(config))
    return Source(folder, config, words, weights.locate(folder, expected))


def vocabulary(folder: Path, config: LlamaConfig) -> Vocabulary:
    """The first of the candidates that makes the tokenizer's own ids in llama.cpp; else the first
    of all, and why not."""
    candidates = gguf_tokenizer.candidates(folder, config)
    first, whys = candidates[0], []
    tokenizer, begin, end = first.beside.tokenizer, first.beside.begin, first.beside.end
    if first.why:
        return first
    lines = model_tokenizer.trial_lines(tokenizer)
    wanted = tokenizer.encode(lines)
    for candidate in candidates:
        try:
            ids = _trial_ids(candidate, lines)
        except ValueError:
            whys.append("text that it has no piece for ends llama.cpp's process")
            continue
        if ids == wanted:
            between = f"its texts stand between the special tokens {[*begin]} and {[*end]}"
            plain = len(begin) <= 1 and end in ((), (tokenizer.eos,))
            return candidate if plain else replace(candidate, why=between)
        wrong = sum(a != b for a, b in zip(ids, wanted, strict=True))
        whys.append(f"llama.cpp makes other ids of {wrong:,} of {len(lines):,} trial lines")
    if added := len(model_tokenizer.added_words(tokenizer)):
        whys[0] += f"; {added:,} of its pieces are words added to it"
    return replace(first, why=whys[0])


def _trial_ids(candidate: Vocabulary, lines: list[str]) -> list[list[int]]:
    """llama.cpp's ids of lines, by a file of as small a model as can be."""
    rows = len(candidate.pieces)
    shape = LlamaConfig(rows, layers=1, heads=1, dim=32, mlp_dim=32, context=64)
    with tempfile.TemporaryDirectory() as place, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, folder, path = Llama(shape), Path(place, "trial"), Path(place, "trial.gguf")
        model.save(folder)
        places = weights.locate(folder, stored_shapes(model))
        _write_model(path, Source(folder, shape, candidate, places), "F16")
        return llama_cpp.ids_of(path, lines)


def to_gguf(folder: str | Path, path: str | Path, quantization: str) -> None:
    """One GGUF file of a Llama folder (ours or Hugging Face's), whole or not at all, one tensor in
    memory at a time. Norms stay float32; a row that is no multiple of a block stays Q8_0 or F16, as
    in llama.cpp. Warns first where the file will take ids alone, and puts run_gguf.py beside it."""
    path = Path(path)
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"{quantization!r} is unknown: give one of {', '.join(QUANTIZATIONS)}")
    own(path)
    if path.exists() and path.open("rb").read(4) != b"GGUF":
        raise FileExistsError(f"{path} is there and was not made by the book as a GGUF: {AWAY}")
    model = read(Path(folder))
    warn(model, path.name, quantization)
    write(model, path, quantization)


def warn(model: Source, name: str, quantization: str) -> None:
    """Of what a file will not hold, or not as its name says."""
    why = model.vocabulary.why
    ids = f"takes ids, no raw text ({why}): {SCRIPT} beside it encodes and decodes" if why else ""
    for remark in filter(None, (ids, model.not_held, coarse(model, quantization))):
        warnings.warn(f"{name}: {remark}", stacklevel=3)


def write(model: Source, path: Path, quantization: str) -> None:
    """The file, and what it needs beside it."""
    helpers, tokenizer = {}, model.vocabulary.beside.tokenizer
    if model.vocabulary.why:
        name = gguf_tokenizer.released_name(tokenizer)
        helpers[path.with_name(name)] = tokenizer.path.read_bytes()
        helpers[path.with_name(SCRIPT)] = gguf_tokenizer.script(model.vocabulary).encode()
    new = [file for file in helpers if not file.exists() or file.read_bytes() != helpers[file]]
    for file in new:
        own(file)
    with replacing(path) as beside:
        _write_model(beside, model, quantization)
    for file in new:
        write_whole(file, helpers[file])
    mark(path.parent, path.name, *(file.name for file in new))


def _write_model(path: Path, model: Source, quantization: str) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("model")
    model.metadata.set_gguf_meta_model(writer)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(QUANTIZATIONS[quantization][2])
    for key, name in (pair.split("=") for pair in SHAPE.split()):
        getattr(writer, f"add_{key}")(getattr(model.config, name))
    gguf_tokenizer.add(writer, model.vocabulary, model.config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.layers)
    kind_of = kinds(model, quantization)
    for name, (_, shape) in model.weights.items():
        block, width = gguf.GGML_QUANT_SIZES[kind_of[name]]
        size, theirs = math.prod(shape) // block * width, names.get_name(name, (".weight",))
        writer.add_tensor_info(theirs, shape, np.dtype(np.float32), size, kind_of[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in model.weights:
        writer.write_tensor_data(_content(model, name, kind_of[name]))
    writer.close()


def kinds(model: Source, quantization: str) -> dict[str, Kind]:
    """How each weight is kept, with llama.cpp's own choice where blocks do not fit a row."""
    body, head, _ = QUANTIZATIONS[quantization]
    head_name = "model.embed_tokens.weight" if model.config.tied else "lm_head.weight"
    kind_of = {}
    for name, (_, shape) in model.weights.items():
        kind = Kind.F32 if len(shape) == 1 else head if name == head_name else body
        if kind == Kind.Q6_K and shape[-1] % 256:
            kind = Kind.Q8_0
        if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            kind = Kind.F16
        kind_of[name] = kind
    return kind_of


def coarse(model: Source, quantization: str) -> str:
    """How much of a file is not in the blocks that it is named after; "" for nothing."""
    kind, kind_of = QUANTIZATIONS[quantization][0], kinds(model, quantization)
    block = gguf.GGML_QUANT_SIZES[kind][0]
    matrices = {name: shape for name, (_, shape) in model.weights.items() if len(shape) > 1}
    widths = sorted({shape[-1] for shape in matrices.values() if shape[-1] % block})
    inside = sum(math.prod(shape) for name, shape in matrices.items() if kind_of[name] == kind)
    share, bits = inside / sum(map(math.prod, matrices.values())), 4 if kind == Kind.Q4_0 else 8
    rows = f"rows of {' and '.join(map(str, widths))} weights are no multiple of {block}"
    words = f"{share:.1%} of {quantization} is in {bits} bits: {rows}, and stay in 16 bits"
    return words if widths else ""


def _content(model: Source, name: str, kind: Kind) -> np.ndarray:
    path, config = model.weights[name][0], model.config
    with weights.open_weights(path) as f:  # anew: a mapped file counts as memory while it is open
        weight = weights.read_weight(f, path, name)
    low, high = map(float, weight.aminmax())
    if not max(-low, high) <= (np.finfo(np.float32).max if kind == Kind.F32 else LARGEST):
        value = f"{path}: {name} holds {max(-low, high)}"
        raise ValueError(f"{value}, which {kind.name} cannot: give an earlier checkpoint")
    for letter, heads in (("q", config.heads), ("k", config.kv_heads)):
        if name.endswith(f"{letter}_proj.weight"):
            weight = teacher.neighbours(weight, heads)
    if kind == Kind.F16:
        return weight.half().numpy()
    weight = weight.float().numpy()
    return weight if kind == Kind.F32 else llama_cpp.quantize(weight, kind)
