"""Shapes of models: the plan's by name, and how Hugging Face's config.json writes one.

Needs no torch, so that a run's parameters can be checked, and its cost told, before torch is there.
"""

import json
import math
import tomllib
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

from tdlib.files import refused

TABLES = tomllib.loads(Path(__file__).with_name("shapes.toml").read_text(encoding="utf8"))
SHAPES: dict[str, dict[str, int]] = TABLES["shapes"]  # layers, heads, dim, mlp_dim by name
OPTIONS = TABLES["options"]  # of files from elsewhere: which are read, and which change nothing
HF: dict[str, str] = TABLES["hugging_face"]  # LlamaConfig's names → config.json's
FAMILIES: dict[str, str] = TABLES["families"]  # model_type → options known there alone
# What is above these is no model but a broken file: refused before room is made for it.
MOST = {"layers": 1024, "vocab_size": 2**24}
MOST |= dict.fromkeys(("heads", "dim", "mlp_dim", "context", "kv_heads", "head_dim"), 2**20)
TABLE, JSON_BYTES = 2**27, 2**24  # numbers in a table of RoPE, bytes in a file of JSON


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a model. `kv_heads` and `head_dim` follow `heads` and `dim` unless given.
    ValueError: what no model can be, or a number above MOST."""

    vocab_size: int
    layers: int
    heads: int
    dim: int
    mlp_dim: int
    context: int = 2048
    kv_heads: int = 0  # 0: as many as heads; fewer is grouped-query attention
    head_dim: int = 0  # 0: dim / heads
    tied: bool = True  # the head is the embedding
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    qk_norm: bool = False  # each head's queries and keys have a norm before RoPE, as in Qwen3
    # ends each line of its text, and generation begins after it; no part of the shape
    eos_id: int = field(default=3, compare=False)

    def __post_init__(self):
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise ValueError(f"{name} is {getattr(self, name):,}, at most {most:,} are read")
        if not (0 < (theta := self.rope_theta) < math.inf and 0 <= self.norm_eps < math.inf):
            raise ValueError(f"rope_theta {theta} and norm_eps {self.norm_eps} must be above 0")
        if not self.head_dim and self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is no multiple of heads {self.heads}: give head_dim")
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        object.__setattr__(self, "head_dim", self.head_dim or self.dim // self.heads)
        if self.heads % self.kv_heads or self.head_dim % 2:
            fault = f"heads {self.heads}, kv_heads {self.kv_heads}, head_dim {self.head_dim}"
            raise ValueError(f"{fault}: heads must be a multiple of kv_heads, head_dim even")
        if (table := self.context * self.head_dim) > TABLE:
            raise ValueError(f"context times head_dim is {table:,}, at most {TABLE:,} are read")

    @property
    def parameters(self) -> int:
        """Number of weights, a tied head counted once."""
        heads = 2 * (self.heads + self.kv_heads) * self.head_dim
        layer = self.dim * (heads + 3 * self.mlp_dim + 2) + self.qk_norm * 2 * self.head_dim
        return (1 if self.tied else 2) * self.embedding_parameters + self.layers * layer + self.dim

    @property
    def embedding_parameters(self) -> int:
        return self.vocab_size * self.dim

    def student(self, shape: str, **size: int) -> "LlamaConfig":
        """A shape (`sized`) for a student of this teacher, with its vocabulary, context and eos
        unless given, RoPE theta and norm eps. A teacher with QK norms gives these and its head
        width, for they are over a whole head; the heads together are about as wide as in the
        shape."""
        names = ("vocab_size", "context", "eos_id", "rope_theta", "norm_eps", "qk_norm")
        own = {name: getattr(self, name) for name in names} | sized(shape) | size
        if self.qk_norm:
            heads = max(1, round(own["dim"] / self.head_dim))
            own |= {"head_dim": self.head_dim, "heads": heads}
        return LlamaConfig(**own)


def sized(shape: str) -> dict[str, int]:
    """One of SHAPES, or four numbers: "layers=6 heads=6 dim=384 mlp_dim=1024"."""
    pairs = (pair.split("=") for pair in shape.split() if shape not in SHAPES)
    return SHAPES.get(shape) or {name: int(number) for name, number in pairs}


def to_hf(config: LlamaConfig, dtype: str = "float32") -> dict:
    """config.json, with rope and dtype in the spellings of transformers 4 and 5."""
    name, bias = ("Qwen3", "use_sliding_window") if config.qk_norm else ("Llama", "mlp_bias")
    c = generation(config) | {"architectures": [f"{name}ForCausalLM"], "model_type": name.lower()}
    c |= {theirs: getattr(config, ours) for ours, theirs in HF.items()}
    c |= {"hidden_act": "silu", "attention_bias": False, bias: False}
    theta = {"rope_theta": config.rope_theta}
    c |= theta | {"rope_parameters": {"rope_type": "default"} | theta}
    return c | {"torch_dtype": dtype, "dtype": dtype}


def generation(config: LlamaConfig) -> dict:
    """generation_config.json: it begins after <eos>, for <bos> never occurs in the tokens."""
    eos = config.eos_id
    return {"bos_token_id": eos, "eos_token_id": eos, "pad_token_id": 0 if eos == 3 else eos}


def read_json(path: Path, most: int = JSON_BYTES) -> dict:
    """The table in a file of JSON. ValueError: none, broken, or above `most` bytes."""
    errors = OSError, ValueError, TypeError, RecursionError
    with refused(f"{path} is no table in JSON", "copy it again", *errors):
        if (size := path.stat().st_size) > most:
            raise ValueError(f"it has {size:,} bytes, at most {most:,} are read")
        return dict(json.loads(path.read_text(encoding="utf8")))


def odd_options(given: dict, kind: str) -> Iterator[str]:
    """Each option that changes numbers in a way that is not supported, or may, being unknown.
    `kind` is a table of shapes.toml."""
    neutral, known = OPTIONS[kind]["neutral"], OPTIONS[kind]["known"].split()
    for name, value in given.items():
        if name in neutral:
            if value is not None and value != neutral[name]:
                yield f"{name} is {value!r:.60}, only {neutral[name]!r} is supported here"
        elif name not in known and value not in (None, False, "", [], {}):
            fault = f"{name} is {value!r:.60}, unknown here, and may change numbers"
            yield f"{fault}; take it out if it changes none"


def read_config(folder: Path) -> LlamaConfig:
    """The shape in a Hugging Face config.json; what this model cannot do is refused by name."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: give a folder with a Hugging Face Llama")
    c, remedy = read_json(path), "copy it again, or give another model"
    with refused(f"{path} describes no Llama for this book", remedy, ValueError, TypeError):
        # the older name goes first, as in transformers
        ropes = [dict(c.get(name) or {}) for name in ("rope_scaling", "rope_parameters")]
        if odd := next(_odd_in_config(c, ropes), ""):
            raise ValueError(odd)
        return LlamaConfig(**_shape(c, ropes))


def _shape(c: dict, ropes: list[dict]) -> dict:
    """LlamaConfig's values out of a config.json; those that it lacks keep their default."""
    thetas = (x["rope_theta"] for x in (*ropes, c) if x.get("rope_theta") is not None)
    eos = c.get("eos_token_id")
    eos = eos[0] if isinstance(eos, list) and eos else eos
    c = c | {"rope_theta": next(thetas, None), "eos_token_id": eos}
    shape = {"tied": c.get("tie_word_embeddings") is True}
    shape["qk_norm"] = c["model_type"] != "llama" and c.get("use_qk_norm") is not False
    for f in (f for f in fields(LlamaConfig) if f.name not in shape):
        name = "eos_token_id" if f.name == "eos_id" else HF.get(f.name, f.name)
        value, needed = c.get(name), f.default is MISSING
        if value is None and not needed:
            continue
        sound = type(value) in (int, float) and 0 <= value < 2**63
        sound = sound and (f.type is float or value == int(value))
        if not sound or (needed and not value):
            fault = "missing, it is needed" if value is None else f"{value!r:.60}, no size of one"
            raise ValueError(f"{name} is {fault}: copy the file again")
        shape[f.name] = f.type(value)
    return shape


def _odd_in_config(c: dict, ropes: list[dict]) -> Iterator[str]:
    tied = c.get("tie_word_embeddings") or False
    kinds = [x.get("rope_type") or x.get("type") or "default" for x in ropes]
    if (family := c.get("model_type")) not in [*FAMILIES]:
        yield f"model_type is {family!r}, only {' or '.join(FAMILIES)} is supported here"
    for name, values, only in (
        ("RoPE scaling", kinds, "default"),
        ("one of layer_types", c.get("layer_types") or [], "full_attention"),
        ("tie_word_embeddings", [tied], tied is True),
    ):
        odd = (value for value in values if value != only)
        yield from (f"{name} is {value!r}, only {only!r} is supported here" for value in odd)
    window, context = c.get("sliding_window"), c.get("max_position_embeddings") or 2048
    slides = c.get("use_sliding_window", family == "llama")
    if window and slides and not window >= context:
        yield f"sliding_window is {window!r}, less than the context: only a whole one is read here"
    own = FAMILIES.get(family, "").split()
    for options in ({name: value for name, value in c.items() if name not in own}, *ropes):
        yield from odd_options(options, "config")


def weight_files(folder: Path) -> list[Path]:
    """As transformers chooses them: model.safetensors, or else what the index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        fault = f"{folder} holds no .safetensors by the name of model"
        raise FileNotFoundError(f"{fault}: save the model in that format")
    content, errors = read_json(index), (TypeError, KeyError, AttributeError)
    with refused(f"{index} is no index of shards", "copy it again", *errors):
        return [folder / Path(name).name for name in sorted({*content["weight_map"].values()})]
