"""Shapes of models: the plan's by name, and how Hugging Face's config.json writes one.

Needs no torch, so that a run's parameters can be checked, and its cost told, before torch is there.
"""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

# layers, heads, dim, mlp_dim: the vocabulary (and the context, where it is not 2048) is passed in.
# 150m and 75m, which the plan leaves open, keep its head width of 64 and its MLP ratio of 2.75.
SHAPES = {
    "teacher-plan": dict(layers=16, heads=16, dim=1024, mlp_dim=2816),
    "teacher-300m": dict(layers=20, heads=16, dim=1024, mlp_dim=2816),
    "student-150m": dict(layers=13, heads=13, dim=832, mlp_dim=2304),
    "student-120m": dict(layers=12, heads=12, dim=768, mlp_dim=2048),
    "student-80m": dict(layers=10, heads=10, dim=640, mlp_dim=1792),
    "student-75m": dict(layers=8, heads=10, dim=640, mlp_dim=1792),
    "student-55m": dict(layers=8, heads=8, dim=512, mlp_dim=1664),
    "student-50m": dict(layers=8, heads=8, dim=512, mlp_dim=1408),
    # the same order for two cores (tiny), as near to the proportions as multiples of 32 allow
    "teacher-tiny": dict(layers=4, heads=4, dim=128, mlp_dim=352),
    "student-150m-tiny": dict(layers=4, heads=3, dim=96, mlp_dim=256),
    "student-120m-tiny": dict(layers=3, heads=3, dim=96, mlp_dim=256),
    "student-80m-tiny": dict(layers=2, heads=3, dim=96, mlp_dim=256),
    "student-75m-tiny": dict(layers=2, heads=3, dim=96, mlp_dim=224),
    "student-55m-tiny": dict(layers=2, heads=2, dim=64, mlp_dim=224),
    "student-50m-tiny": dict(layers=2, heads=2, dim=64, mlp_dim=192),
    # the plan's, depth and width a quarter (small): with a vocabulary of 51,800 / 16 every part,
    # the embedding too, has a 64th of the weights
    "teacher-small": dict(layers=4, heads=8, dim=256, mlp_dim=704),
    "student-150m-small": dict(layers=3, heads=7, dim=224, mlp_dim=576),
    "student-120m-small": dict(layers=3, heads=6, dim=192, mlp_dim=512),
    "student-80m-small": dict(layers=3, heads=5, dim=160, mlp_dim=416),
    "student-75m-small": dict(layers=2, heads=5, dim=160, mlp_dim=448),
    "student-55m-small": dict(layers=2, heads=4, dim=128, mlp_dim=416),
    "student-50m-small": dict(layers=2, heads=4, dim=128, mlp_dim=352),
    # as small as a model can be, for the tests
    "teacher-smoke": dict(layers=2, heads=2, dim=64, mlp_dim=160),
    "student-large-smoke": dict(layers=2, heads=2, dim=32, mlp_dim=96),
    "student-small-smoke": dict(layers=1, heads=2, dim=32, mlp_dim=96),
}


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a model. `kv_heads` and `head_dim` follow `heads` and `dim` unless given."""

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
    # ends each line of its text, and generation begins after it; no part of the shape
    eos_id: int = field(default=3, compare=False)

    def __post_init__(self):
        if not self.head_dim and self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is no multiple of heads {self.heads}: give head_dim")
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        object.__setattr__(self, "head_dim", self.head_dim or self.dim // self.heads)
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise ValueError(
                f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}, "
                f"and head_dim {self.head_dim} even"
            )

    @property
    def parameters(self) -> int:
        """Number of weights, a tied head counted once."""
        heads = 2 * (self.heads + self.kv_heads) * self.head_dim
        layer = self.dim * (heads + 3 * self.mlp_dim + 2)
        return (1 if self.tied else 2) * self.embedding_parameters + self.layers * layer + self.dim

    @property
    def embedding_parameters(self) -> int:
        return self.vocab_size * self.dim


def to_hf(config: LlamaConfig, dtype: str = "float32") -> dict:
    """config.json, with rope and dtype in the spellings of transformers 4 and 5."""
    return generation(config) | {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "vocab_size": config.vocab_size, "hidden_size": config.dim,
        "intermediate_size": config.mlp_dim, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads, "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim, "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps, "tie_word_embeddings": config.tied, "hidden_act": "silu",
        "attention_bias": False, "mlp_bias": False, "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "torch_dtype": dtype, "dtype": dtype,
    }  # fmt: skip


def generation(config: LlamaConfig) -> dict:
    """generation_config.json: it begins after <eos>, for <bos> never occurs in the tokens."""
    eos = config.eos_id
    return {"bos_token_id": eos, "eos_token_id": eos, "pad_token_id": 0 if eos == 3 else eos}


def read_config(folder: Path) -> LlamaConfig:
    """The shape in a Hugging Face config.json; what this model cannot do is refused by name."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: give a folder with a Hugging Face Llama")
    try:
        c = json.loads(path.read_text(encoding="utf8"))
        rope = {**(c.get("rope_scaling") or {}), **(c.get("rope_parameters") or {})}
    except (ValueError, TypeError, AttributeError) as error:  # no JSON, or not a table of names
        raise ValueError(f"{path} is no config ({error}): copy the file again") from None
    kind = rope.get("rope_type", rope.get("type", "default"))
    for what, found, wanted in (
        ("model_type", c.get("model_type"), "llama"),
        ("hidden_act", c.get("hidden_act", "silu"), "silu"),
        ("attention_bias", c.get("attention_bias", False), False),
        ("mlp_bias", c.get("mlp_bias", False), False),
        ("RoPE scaling", kind, "default"),
        ("partial_rotary_factor", {**c, **rope}.get("partial_rotary_factor", 1), 1),
    ):
        if found != wanted:
            raise ValueError(f"{path}: {what} is {found!r}, only {wanted!r} is supported here")

    def number(name: str, otherwise: float | None = None, kind: type = int) -> int | float:
        value = otherwise if c.get(name) is None else c[name]
        whole = isinstance(value, int | float) and (kind is float or value == int(value))
        if not whole or isinstance(value, bool) or value < 0 or (not value and otherwise is None):
            fault = "missing, it is needed" if value is None else f"{value!r}, no size of a model"
            raise ValueError(f"{path}: {name} is {fault}: copy the file again")
        return kind(value)

    theta, eos = rope.get("rope_theta", c.get("rope_theta")), c.get("eos_token_id")
    c |= {"rope_theta": theta, "eos_token_id": eos[0] if isinstance(eos, list) and eos else eos}
    try:
        return LlamaConfig(
            vocab_size=number("vocab_size"),
            layers=number("num_hidden_layers"),
            heads=number("num_attention_heads"),
            dim=number("hidden_size"),
            mlp_dim=number("intermediate_size"),
            context=number("max_position_embeddings", 2048),
            kv_heads=number("num_key_value_heads", 0),
            head_dim=number("head_dim", 0),
            tied=bool(c.get("tie_word_embeddings", False)),
            rope_theta=number("rope_theta", 10000.0, float),
            norm_eps=number("rms_norm_eps", 1e-6, float),
            eos_id=number("eos_token_id", 3),
        )
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None


VOCABULARIES = (51_800, 86_071)  # the plan's, and that of the published tokenizer
Q4_LIMIT = 33e6  # bytes: what still passes for the plan's "~30 MB"


def in_words(name: str, vocab_size: int) -> str:
    """One line on a shape: weights, of which embedding, and whether its 4-bit file passes."""
    d = describe(LlamaConfig(vocab_size=vocab_size, **SHAPES[name]))
    size = d["q4_0_bytes"]
    return (
        f"{name}, vocabulary {vocab_size:,}: {d['parameters'] / 1e6:.1f} M weights, of which "
        f"{d['embedding_parameters'] / 1e6:.1f} M embedding; Q4_0 {size / 1e6:.1f} MB, "
        f"{'within' if size <= Q4_LIMIT else 'ABOVE'} 33 MB"
    )


def describe(config: LlamaConfig) -> dict:
    """What a shape costs: weights, how many are embedding, and bytes as Q4_0 throughout (18 a block
    of 32 weights; norms stay float32)."""
    norms = config.dim * (2 * config.layers + 1)
    return asdict(config) | {
        "parameters": config.parameters,
        "embedding_parameters": config.embedding_parameters,
        "q4_0_bytes": (config.parameters - norms) * 18 // 32 + 4 * norms,
    }


# Tokens a second on a CPU, as the plan has them: raw, with cache, INT8 and compile, as Q4 in
# llama.cpp; and the megabytes of that file.
_LARGE = dict(raw=(5, 10), phase1=(60, 120), phase2=(150, 300), megabytes=(150, 150))
_MIDDLE = dict(raw=(15, 25), phase1=(150, 250), phase2=(300, 500), megabytes=(60, 60))
_SMALL = dict(raw=(30, 60), phase1=(300, 500), phase2=(500, 1000), megabytes=(30, 30))
# The plan's estimates: validation loss (low, high), its quality in percent, hours on a B200, and
# the above.
PLAN = {
    "teacher": dict(loss=(2.58, 2.58), quality=(100, 100), **_LARGE),
    "120m": dict(loss=(2.7, 2.8), quality=(90, 93), hours=(5, 6), **_MIDDLE),
    "80m": dict(loss=(2.8, 3.0), quality=(85, 88), hours=(4, 5)),
    "50m": dict(loss=(3.0, 3.3), quality=(75, 80), hours=(3, 4), **_SMALL),
    "50m-scratch": dict(loss=(3.5, 3.8), quality=(60, 65)),
    "50m-hard-merged": dict(loss=(2.8, 2.9), quality=(87, 90), hours=(7, 10), **_SMALL),
    "150m": dict(hours=(5, 6)),
    "75m": dict(loss=(2.8, 2.9), quality=(87, 90), hours=(10, 12)),
    "75m-direct": dict(loss=(2.9, 3.1), quality=(82, 85)),
    "scores": dict(hours=(2, 3)),
    "50m-hard": dict(hours=(1, 2)),
    # shapes with random weights, timed without being trained
    "teacher-plan": _LARGE,
    "teacher-300m": _LARGE,
    "student-120m": _MIDDLE,
    "student-50m": _SMALL,
    "student-55m": _SMALL,
}


def span(low: float, high: float, digits: int = 2) -> str:
    """ "3.00–3.30", or one number where both are the same, or "–" where the plan gives none."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "–"
    return f"{low:.{digits}f}" if low == high else f"{low:.{digits}f}–{high:.{digits}f}"


def of_plan(name: str, key: str) -> tuple[float, float]:
    return PLAN.get(name, {}).get(key, (math.nan, math.nan))
