"""A Llama in the form that writes text fastest on a CPU: the same model, its weights laid out anew.

A new token's time is the reading of all weights and the number of calls. Hence q, k, v are one
product and gate, up another; float weights lie transposed, (in, out), since torch's product of a
matrix and a vector reads them twice as fast so; and in INT8 they are a quarter of the bytes:

    y = s_out · s · W₈ (x₈ − z),  W₈ = round(W / s_out) in ±127, one s_out for each row of W

with s and z of x found anew in every call (torch's dynamic quantization).
Legend as in model.
"""

import warnings
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from tdlib.model import Attention, Cache, Llama, LlamaConfig, RMSNorm

Product = Callable[[Tensor], Tensor]


def _float(weight: Tensor) -> Product:
    transposed = weight.T.contiguous()
    return lambda x: x @ transposed


def _int8(weight: Tensor) -> Product:
    packed = _packed(weight)

    def product(x: Tensor) -> Tensor:
        if x.shape[:-1].numel() == 1:
            return torch.ops.quantized.linear_dynamic(x, packed, reduce_range=_overflows())
        size = x.abs().amax(-1, keepdim=True).clamp(min=1e-12)  # as if each row had its own scale
        y = torch.ops.quantized.linear_dynamic(x / size, packed, reduce_range=_overflows())
        return y.mul_(size)

    return product


def _packed(weight: Tensor) -> torch.ScriptObject:
    scale = weight.float().abs().amax(1).clamp(min=1e-12) / 127
    zero = torch.zeros(len(weight), dtype=torch.long)
    with warnings.catch_warnings():  # that a later torch will not have it: _int_mm, which stays, is
        warnings.simplefilter("ignore")  # half as fast with AVX-512 and a quarter with AVX2
        rows = torch.quantize_per_channel(weight.float(), scale.double(), zero, 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(rows, None)


@lru_cache
def _overflows() -> bool:
    """Whether two products of 8 bits are too much for this CPU's 16-bit sums, as without VNNI: then
    x has 7 bits, and four times the KL."""
    ones = torch.ones(1, 64)
    return torch.ops.quantized.linear_dynamic(ones, _packed(ones), reduce_range=False).item() < 63


def _scales(attention: Attention, config: LlamaConfig) -> Tensor | None:
    """√K · the weights of its QK norms, (H + G, K), for each head; None without norms."""
    if not config.qk_norm:
        return None
    counts = (attention.q_norm, config.heads), (attention.k_norm, config.kv_heads)
    each = [norm.weight.detach().expand(count, -1) for norm, count in counts]
    return torch.cat(each) * config.head_dim**0.5


class Decoder:
    """Called as a Llama is, ids_BT → logits_BTV, without gradients. It holds a copy of the weights
    but for the embedding, so later changes of the model do not reach it. `int8`: all products in
    INT8, a tied head's own copy too; float32 on a CPU only."""

    @torch.no_grad()
    def __init__(self, model: Llama, int8: bool = False):
        like, self.config = model.head, model.config
        if int8 and (like.dtype, like.device.type) != (torch.float32, "cpu"):
            fault = f"int8 is for float32 on a CPU, the model is {like.dtype} on {like.device}"
            raise ValueError(f"{fault}: give model.float().cpu()")
        if odd := [name for name, _ in model.named_parameters() if "lora" in name]:
            raise ValueError(f"{odd[0]} is an adapter's weight: call lora.merge(model) before")
        product, size = _int8 if int8 else _float, self.config.dim**0.5

        def after(norm: RMSNorm, *weights: Tensor) -> Product:
            return product(torch.cat(weights) * (norm.weight * size))

        self.embedding_VD, self.layers = model.embed_tokens.weight.detach(), []
        for layer in model.layers:
            a, m = layer.self_attn, layer.mlp
            qkv = after(layer.input_layernorm, a.q_proj.weight, a.k_proj.weight, a.v_proj.weight)
            gate_up = after(layer.post_attention_layernorm, m.gate_proj.weight, m.up_proj.weight)
            out, down = product(a.o_proj.weight), product(m.down_proj.weight)
            self.layers.append((qkv, _scales(a, self.config), out, gate_up, down))
        self.head = after(model.norm, model.head)  # hidden_BTD → logits_BTV
        self.cos_S1K = model.cos_SK[:, None].to(like)
        first, second = model.sin_SK[:, None].to(like).chunk(2, dim=-1)
        self.sin_S1K = torch.cat([-first, second], dim=-1)
        least = torch.tensor(self.config.norm_eps) ** 0.5
        self.least = (least * size).to(like.device)
        self.least_head = (least * self.config.head_dim**0.5).to(like.device)

    def __call__(self, ids_BT: Tensor, cache: Cache | None = None) -> Tensor:
        with torch.inference_mode():
            return self.head(self.hidden(ids_BT, cache))

    def next_logits(self, ids_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """(B, V) after the last id of every row."""
        return self.head(self.hidden(ids_BT, cache)[:, -1])

    @torch.inference_mode()
    def hidden(self, ids_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """(B, T, D), what `head` takes (not what Llama's does). With a cache, ids are the next."""
        start = cache.length if cache is not None else 0
        end = start + ids_BT.shape[1]
        if end > self.config.context:
            fault = f"{end} tokens are more than the model's context of {self.config.context}"
            raise ValueError(f"{fault}: shorten the prompt")
        mask, caches = None, [None] * len(self.layers)
        if start and end > start + 1:
            places = torch.arange(end, device=ids_BT.device)
            mask = places <= places[start:, None]
        if cache is not None:  # of each layer the places of the new keys and values, and all so far
            parts = [(x, begin) for begin in (start, 0) for x in (cache.keys, cache.values)]
            caches = zip(*(x[..., begin:end, :].unbind() for x, begin in parts), strict=True)
        rope = self.cos_S1K[start:end], self.sin_S1K[start:end]
        x_BTD = self.embedding_VD[ids_BT]
        for (qkv, scales, out, gate_up, down), cached in zip(self.layers, caches, strict=True):
            x_BTD = x_BTD + out(self._attend(qkv(self._norm(x_BTD)), scales, rope, mask, cached))
            gate, up = gate_up(self._norm(x_BTD)).chunk(2, dim=-1)
            x_BTD = x_BTD + down(F.silu(gate).mul_(up))
        if cache is not None:
            cache.length = end
        return self._norm(x_BTD)

    def _norm(self, x_BTD: Tensor) -> Tensor:
        """x / √(|x|² + D · eps): RMSNorm but for √D and its weights, which the next product has."""
        length = torch.linalg.vector_norm(x_BTD, dim=-1, keepdim=True, dtype=torch.float32)
        return (x_BTD / torch.hypot(length, self.least)).to(x_BTD.dtype)

    def _attend(self, qkv_BTX, scales, rope, mask, cached) -> Tensor:
        """Attention of a layer, (B, T, H · K). New keys and values go into the cached ones."""
        c, (b, t, _) = self.config, qkv_BTX.shape
        cos_T1K, sin_T1K = rope
        qkv_BTHK = qkv_BTX.view(b, t, -1, c.head_dim)
        qk_BTHK = qkv_BTHK[:, :, : c.heads + c.kv_heads]  # turned in place: model.rotate
        if scales is not None:
            length = torch.linalg.vector_norm(qk_BTHK, dim=-1, keepdim=True, dtype=torch.float32)
            qk_BTHK.div_(torch.hypot(length, self.least_head)).mul_(scales)
        swapped = qk_BTHK.roll(c.head_dim // 2, -1)
        qk_BTHK.mul_(cos_T1K).addcmul_(swapped, sin_T1K)
        q, k, v = qkv_BTHK.transpose(1, 2).split((c.heads, c.kv_heads, c.kv_heads), dim=1)
        if cached is not None:
            new_k, new_v, all_k, all_v = cached
            new_k.copy_(k)
            new_v.copy_(v)
            k, v = all_k, all_v
        how = dict(attn_mask=mask, is_causal=mask is None and k.shape[2] == t)
        y_BHTK = F.scaled_dot_product_attention(q, k, v, enable_gqa=c.kv_heads < c.heads, **how)
        return y_BHTK.transpose(1, 2).reshape(b, t, -1)
