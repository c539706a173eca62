"""Shapes of models: the plan's by name, and how Hugging Face's config.json writes one.

Needs no torch, so that a run's parameters can be checked, and its cost told, before torch is there.
"""

import json
import math
from collections.abc import Container, Iterator
from dataclasses import MISSING, dataclass, field, fields
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

# What is above these is no model but a broken file: refused before room is made for it.
MOST = {"layers": 1024, "vocab_size": 2**24}
MOST |= dict.fromkeys(("heads", "dim", "mlp_dim", "context", "kv_heads", "head_dim"), 2**20)
TABLE, JSON_BYTES, SHARDS = 2**27, 2**24, 1000  # context · head_dim; bytes of JSON; files
# Options of config.json that change numbers → the value that does not. One that is neither here
# nor in KNOWN is refused, unless it is null, false, 0 or empty.
NEUTRAL = {"hidden_act": "silu", "is_causal": True, "use_rope": True}
NEUTRAL |= dict.fromkeys(("attention_bias", "mlp_bias"), False)
NEUTRAL |= dict.fromkeys(
    """partial_rotary_factor rotary_pct factor attention_factor logits_scaling logit_scale
    residual_multiplier embedding_multiplier""".split(),
    1,
)
# What read_config reads; how a model was trained or is stored, and what transformers writes into
# every config; how text is drawn, which the book sets itself.
KNOWN = frozenset(
    """model_type rope_type type rope_parameters rope_scaling rope_theta layer_types vocab_size
    tie_word_embeddings sliding_window use_sliding_window num_hidden_layers num_attention_heads
    hidden_size intermediate_size max_position_embeddings num_key_value_heads head_dim rms_norm_eps

    architectures attention_dropout attn_implementation attn_pdrop bos_token_id
    chunk_size_feed_forward decoder_start_token_id dropout dtype embd_pdrop eos_token_id
    finetuning_task hidden_dropout id2label initializer_range is_decoder is_llama_config
    keys_to_ignore_at_inference label2id max_sequence_length max_window_layers model_max_length
    original_max_position_embeddings output_attentions output_hidden_states pad_token_id prefix
    pretraining_tp problem_type resid_pdrop return_dict sep_token_id task_specific_params
    tokenizer_class torch_dtype torchscript transformers.js_config transformers_version
    unsloth_fixed unsloth_version use_bfloat16 use_cache _attn_implementation
    _attn_implementation_autoset _attn_implementation_internal attention_probs_dropout_prob
    _commit_hash _flash_attn_2_enabled _name_or_path gradient_checkpointing hidden_dropout_prob

    cache_implementation do_sample early_stopping length_penalty max_length max_new_tokens min_p
    num_beam_groups num_beams num_return_sequences output_scores return_dict_in_generate temperature
    repetition_penalty encoder_repetition_penalty top_k top_p typical_p
    _from_model_config""".split()
)
# LlamaConfig's names → config.json's, in the order in which they are written
HF = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "mlp_dim": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "context": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tied": "tie_word_embeddings",
}


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
    # ends each line of its text, and generation begins after it; no part of the shape
    eos_id: int = field(default=3, compare=False)

    def __post_init__(self):
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise ValueError(f"{name} is {getattr(self, name):,}, at most {most:,} are read")
        if not (0 < self.rope_theta < math.inf and 0 <= self.norm_eps < math.inf):
            fault = f"rope_theta {self.rope_theta} and norm_eps {self.norm_eps} must be finite"
            raise ValueError(f"{fault}, and the first above 0")
        if not self.head_dim and self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is no multiple of heads {self.heads}: give head_dim")
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        object.__setattr__(self, "head_dim", self.head_dim or self.dim // self.heads)
        if self.heads % self.kv_heads or self.head_dim % 2:
            fault = f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}"
            raise ValueError(f"{fault}, and head_dim {self.head_dim} even")
        if (table := self.context * self.head_dim) > TABLE:
            raise ValueError(f"context times head_dim is {table:,}, at most {TABLE:,} are read")

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
    llama = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    shape = {theirs: getattr(config, ours) for ours, theirs in HF.items()}
    neutral = {name: NEUTRAL[name] for name in ("hidden_act", "attention_bias", "mlp_bias")}
    theta = {"rope_theta": config.rope_theta}
    ropes = theta | {"rope_parameters": {"rope_type": "default"} | theta}
    dtypes = {"torch_dtype": dtype, "dtype": dtype}
    return generation(config) | llama | shape | neutral | ropes | dtypes


def generation(config: LlamaConfig) -> dict:
    """generation_config.json: it begins after <eos>, for <bos> never occurs in the tokens."""
    eos = config.eos_id
    return {"bos_token_id": eos, "eos_token_id": eos, "pad_token_id": 0 if eos == 3 else eos}


def read_json(path: Path) -> dict:
    """The table in a file of JSON. ValueError: none, broken, or above JSON_BYTES."""
    if (size := path.stat().st_size) > JSON_BYTES:
        raise ValueError(f"it has {size:,} bytes, at most {JSON_BYTES:,} are read")
    try:
        content = json.loads(path.read_text(encoding="utf8"))
    except RecursionError:
        raise ValueError("its lists lie too deep in each other") from None
    if not isinstance(content, dict):
        raise ValueError("it holds no table of names")
    return content


def odd_options(given: dict, neutral: dict, known: Container[str] = KNOWN) -> Iterator[str]:
    """Each option that changes numbers in a way that is not supported, or may, being unknown."""
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
    try:
        c = read_json(path)
        # the older name goes first, as in transformers
        ropes = [dict(c.get(name) or {}) for name in ("rope_scaling", "rope_parameters")]
        if odd := next(_odd_in_config(c, ropes), ""):
            raise ValueError(odd)
        return LlamaConfig(**_shape(c, ropes))
    except (ValueError, TypeError) as error:
        fault = f"{path} describes no Llama for this book ({error})"
        raise ValueError(f"{fault}: copy it again, or give another model") from None


def _shape(c: dict, ropes: list[dict]) -> dict:
    """LlamaConfig's values out of a config.json; those that it lacks keep their default."""
    thetas = (x["rope_theta"] for x in (*ropes, c) if x.get("rope_theta") is not None)
    eos = c.get("eos_token_id")
    eos = eos[0] if isinstance(eos, list) and eos else eos
    c = c | {"rope_theta": next(thetas, None), "eos_token_id": eos}
    shape = {"tied": c.get("tie_word_embeddings") is True}
    for f in (f for f in fields(LlamaConfig) if f.name != "tied"):
        name = HF.get(f.name, {"eos_id": "eos_token_id"}.get(f.name, f.name))
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
    for name, values, only in (
        ("model_type", [c.get("model_type")], "llama"),
        ("RoPE scaling", kinds, "default"),
        ("one of layer_types", c.get("layer_types") or [], "full_attention"),
        ("tie_word_embeddings", [tied], tied is True),
    ):
        odd = (value for value in values if value != only)
        yield from (f"{name} is {value!r}, only {only!r} is supported here" for value in odd)
    window, context = c.get("sliding_window"), c.get("max_position_embeddings") or 2048
    if window and c.get("use_sliding_window", True) and not window >= context:
        yield f"sliding_window is {window!r}, less than the context: only a whole one is read here"
    for options in (c, *ropes):
        yield from odd_options(options, NEUTRAL)


def weight_files(folder: Path) -> list[Path]:
    """As transformers chooses them: model.safetensors, or else what the index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        fault = f"{folder} holds no .safetensors by the name of model"
        raise FileNotFoundError(f"{fault}: save the model in that format")
    try:
        names = set(read_json(index)["weight_map"].values())
        if len(names) > SHARDS:
            raise ValueError(f"it names {len(names):,} files, at most {SHARDS:,} are read")
        files = [folder / Path(name).name for name in sorted(names)]
        gone = [path for path in files if not path.is_file()]
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise ValueError(f"{index} is no index of shards ({error!r:.200}): copy it again") from None
    if gone:
        raise FileNotFoundError(f"{gone[0]} is not there, {index.name} names it: copy it too")
    return files
