"""Llama: a residual stream to which every layer adds attention (RoPE) and a gated MLP (SwiGLU).

    x = x + attention(rms_norm(x));  x = x + down(silu(gate(rms_norm(x))) · up(rms_norm(x)))

Modules carry Hugging Face's names, so a saved state dict is one of theirs, and RoPE rotates the two
HALVES of a head (0, K/2), (1, K/2 + 1), … as theirs does. With `qk_norm` it is a Qwen3: each head's
queries and keys go through an RMSNorm before RoPE.
Legend: B batch, T tokens, S tokens so far (with a cache), D model width, H query heads, G key/value
heads, K head width, F MLP width, V vocabulary.
"""

import json
import math
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tdlib.files import whole_folder
from tdlib.shapes import SHAPES, LlamaConfig, generation, to_hf
from tdlib.weights import read_weights, stored_config

__all__ = ["SHAPES", "Cache", "Llama", "LlamaConfig"]


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x_BTD: Tensor) -> Tensor:
        # in float32 whatever the input is, as upstream and Hugging Face do
        x = x_BTD.float()
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * x.to(x_BTD.dtype)


class Cache:
    """Keys and values of the tokens seen so far, preallocated; `length` of them are filled."""

    def __init__(self, config: LlamaConfig, batch: int, size: int, like: Tensor):
        shape = (config.layers, batch, config.kv_heads, size, config.head_dim)
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.length = 0

    def add(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values of one layer; returns all of it, (B, G, S, K) each."""
        end = self.length + k_BGTK.shape[2]
        self.keys[layer][:, :, self.length : end] = k_BGTK
        self.values[layer][:, :, self.length : end] = v_BGTK
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


def rope_table(config: LlamaConfig, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of RoPE (Su et al. 2021), (length, K) each: pair i turns by position ·
    theta^(−2i/K); each half of a head carries the same angles."""
    k = config.head_dim
    frequency = config.rope_theta ** (-torch.arange(0, k, 2, dtype=torch.float32) / k)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), frequency)
    angle_SK = torch.cat([angle, angle], dim=-1)
    return angle_SK.cos(), angle_SK.sin()


def rotate(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    a, b = x_BHTK.chunk(2, dim=-1)
    return x_BHTK * cos_TK + torch.cat([-b, a], dim=-1) * sin_TK


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        d, k = config.dim, config.head_dim
        self.layer, self.head_dim = layer, k
        self.grouped = config.kv_heads < config.heads
        self.q_proj = nn.Linear(d, config.heads * k, bias=False)
        self.k_proj = nn.Linear(d, config.kv_heads * k, bias=False)
        self.v_proj = nn.Linear(d, config.kv_heads * k, bias=False)
        self.o_proj = nn.Linear(config.heads * k, d, bias=False)
        if config.qk_norm:
            self.q_norm, self.k_norm = (RMSNorm(k, config.norm_eps) for _ in "qk")
        else:
            self.q_norm = self.k_norm = nn.Identity()

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], cache: Cache | None) -> Tensor:
        b, t, _ = x_BTD.shape

        def heads(y: Tensor) -> Tensor:
            return y.view(b, t, -1, self.head_dim).transpose(1, 2)

        cos_TK, sin_TK = (table.to(x_BTD.dtype) for table in rope)
        q_BHTK = rotate(self.q_norm(heads(self.q_proj(x_BTD))), cos_TK, sin_TK)
        k_BGTK = rotate(self.k_norm(heads(self.k_proj(x_BTD))), cos_TK, sin_TK)
        v_BGTK = heads(self.v_proj(x_BTD))
        seen, mask = cache.length if cache else 0, None
        if cache:
            k_BGTK, v_BGTK = cache.add(self.layer, k_BGTK, v_BGTK)
        if seen and t > 1:  # several new tokens after old ones: the causal triangle is shifted
            mask = x_BTD.new_ones(t, seen + t, dtype=torch.bool).tril(seen)
        y_BHTK = F.scaled_dot_product_attention(
            q_BHTK, k_BGTK, v_BGTK, attn_mask=mask, is_causal=not seen, enable_gqa=self.grouped
        )
        return self.o_proj(y_BHTK.transpose(1, 2).reshape(b, t, -1))


class MLP(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.mlp_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.mlp_dim, bias=False)
        self.down_proj = nn.Linear(config.mlp_dim, config.dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class Layer(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], cache: Cache | None) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), rope, cache)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Llama(nn.Module):
    """ids_BT → logits_BTV. Start: 0.02 everywhere, residual outputs 0.02/√(2·layers)."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.activation_checkpointing = False  # hidden states inside a layer made again in backward
        device, size = torch.get_default_device(), (config.vocab_size, config.dim)
        meta = device.type == "meta"  # nothing drawn or computed: torch would import its compiler
        self.embed_tokens = nn.Embedding(*size, _weight=torch.empty(size) if meta else None)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        if not config.tied:
            self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        with torch.device("cpu" if meta else device):
            cos, sin = rope_table(config, config.context)
        self.register_buffer("cos_SK", cos, persistent=False)
        self.register_buffer("sin_SK", sin, persistent=False)
        for name, weight in self.named_parameters():
            if weight.ndim == 2 and not meta:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = math.sqrt(2 * config.layers) if residual else 1.0
                nn.init.normal_(weight, std=0.02 / scale)

    @property
    def head(self) -> Tensor:
        """(V, D): logits are hidden @ head.T."""
        return self.embed_tokens.weight if self.config.tied else self.lm_head.weight

    @property
    def embedding_VD(self) -> Tensor:
        return self.embed_tokens.weight

    def next_logits(self, ids_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """(B, V) after the last id of every row."""
        return F.linear(self.hidden(ids_BT, cache)[:, -1], self.head)

    def hidden(self, ids_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """(B, T, D) after the last norm, ready for the head. With a cache, ids are the next."""
        start = cache.length if cache else 0
        end = start + ids_BT.shape[1]
        if end > self.config.context:
            fault = f"{end} tokens are more than the model's context of {self.config.context}"
            raise ValueError(f"{fault}: shorten the window or the prompt")
        rope = self.cos_SK[start:end], self.sin_SK[start:end]
        again = self.activation_checkpointing and torch.is_grad_enabled()
        x_BTD = self.embed_tokens(ids_BT)
        for layer in self.layers:
            if again:
                x_BTD = checkpoint(layer, x_BTD, rope, None, use_reentrant=False)
            else:
                x_BTD = layer(x_BTD, rope, cache)
        if cache:
            cache.length = end
        return self.norm(x_BTD)

    def forward(self, ids_BT: Tensor, cache: Cache | None = None) -> Tensor:
        return F.linear(self.hidden(ids_BT, cache), self.head)

    def save(self, folder: str | Path, files: dict[str, str | Path] | None = None) -> None:
        """A Hugging Face folder (Llama, or Qwen3), whole or not at all; `files` (name → path) are
        copied in, a tokenizer for instance. Adapters must be merged first."""
        config = to_hf(self.config, str(self.head.dtype).removeprefix("torch."))
        tensors = {_hf_name(k): v.contiguous().cpu() for k, v in self.state_dict().items()}
        for kind, remedy in (("lora", "lora.merge"), ("parametrizations", "quantize.merge")):
            if odd := next((name for name in tensors if kind in name), ""):
                raise ValueError(f"{odd} is no weight of a Llama: call {remedy}(model) before save")
        records = {"config.json": config, "generation_config.json": generation(self.config)}
        with whole_folder(Path(folder)) as beside:
            for name, content in records.items():
                (beside / name).write_text(json.dumps(content, indent=2))
            for name, path in (files or {}).items():
                shutil.copy(path, beside / name)
            save_file(tensors, beside / "model.safetensors", metadata={"format": "pt"})

    @staticmethod
    def load(folder: str | Path, device: str | torch.device = "cpu") -> "Llama":
        """A Hugging Face Llama folder, in float32. ValueError names what does not fit."""
        folder = Path(folder)
        config = stored_config(folder)
        with torch.device("meta"):
            model = Llama(config)
        stored = read_weights(folder, stored_shapes(model)).items()
        model.load_state_dict({k.removeprefix("model."): v for k, v in stored}, assign=True)
        return model.to(device)


def stored_shapes(model: Llama) -> dict[str, tuple[int, ...]]:
    """Hugging Face's name of each weight → its shape."""
    return {_hf_name(name): tuple(weight.shape) for name, weight in model.named_parameters()}


def _hf_name(name: str) -> str:
    return name if name.startswith("lm_head") else f"model.{name}"
