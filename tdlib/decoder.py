"""A Llama in the form that writes text fastest on a CPU: the same model, its weights laid out anew.

Each new token is multiplied by every weight once, so its time is the reading of the weights and the
number of calls. Hence q, k, v are one product and gate, up another; float weights lie transposed,
(in, out), since torch's product of a matrix and a vector reads them twice as fast so; and in INT8
they are a quarter of the bytes:

    y = s_out · s · W₈ (x₈ − z),  W₈ = round(W / s_out) in ±127, one s_out for each row of W

with s and z of x found anew in every call (torch's dynamic quantization).
Legend as in model.
"""

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tdlib.model import Cache, Llama

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


class _Layer(NamedTuple):
    norm_D: Tensor
    qkv: Product
    out: Product
    mlp_norm_D: Tensor
    gate_up: Product
    down: Product


class Decoder:
    """Called as a Llama is, ids_BT → logits_BTV, without gradients. It holds a copy of the weights
    but for the embedding, so later changes of the model do not reach it. `int8`: all products in
    INT8, a tied head's own copy too; CPU only. Float weights keep the model's device and dtype."""

    @torch.no_grad()
    def __init__(self, model: Llama, int8: bool = False):
        product = _int8 if int8 else _float
        self.config = model.config
        self.embedding_VD = model.embed_tokens.weight.detach()
        self.layers = []
        for layer in model.layers:
            a, m = layer.self_attn, layer.mlp
            qkv = torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight])
            gate_up = torch.cat([m.gate_proj.weight, m.up_proj.weight])
            self.layers.append(
                _Layer(
                    layer.input_layernorm.weight.detach(), product(qkv), product(a.o_proj.weight),
                    layer.post_attention_layernorm.weight.detach(), product(gate_up),
                    product(m.down_proj.weight),
                )
            )  # fmt: skip
        self.norm_D = model.norm.weight.detach()
        self.head = product(model.head)  # hidden_BTD → logits_BTV
        like = self.embedding_VD
        self.cos_S1K = model.cos_SK[:, None].to(like)
        sin_S1K = model.sin_SK[:, None].to(like)
        half = self.config.head_dim // 2
        self.sin_S1K = torch.cat([-sin_S1K[..., :half], sin_S1K[..., half:]], dim=-1)

    def __call__(self, ids_BT: Tensor, cache: Cache | None = None) -> Tensor:
        with torch.inference_mode():
            return self.head(self.hidden(ids_BT, cache))

    @torch.inference_mode()
    def hidden(
        self, ids_BT: Tensor, cache: Cache | None = None, padding_B: Tensor | None = None
    ) -> Tensor:
        """(B, T, D) after the last norm. With a cache, ids are the next. `padding_B`: how many ids
        at the left of each row are none of its text; RoPE sees differences of positions alone."""
        c, (b, t) = self.config, ids_BT.shape
        start = cache.length if cache is not None else 0
        end = start + t
        if end > c.context:
            raise ValueError(f"{end} tokens are more than the model's context of {c.context}: "
                             "shorten the prompt")  # fmt: skip
        cos_T1K, sin_T1K = self.cos_S1K[start:end], self.sin_S1K[start:end]
        mask = None
        if padding_B is not None or (start and t > 1):
            column, row_T1 = (torch.arange(n, end, device=ids_BT.device) for n in (0, start))
            row_T1 = row_T1[:, None]
            mask = column <= row_T1
            if padding_B is not None:  # padding sees itself, lest it become NaN
                mask = mask & (column >= padding_B[:, None, None, None]) | (column == row_T1)
        x_BTD = self.embedding_VD[ids_BT]
        for i, layer in enumerate(self.layers):
            y_BTD = F.rms_norm(x_BTD, (c.dim,), layer.norm_D, c.norm_eps)
            qkv_BTHK = layer.qkv(y_BTD).view(b, t, -1, c.head_dim)
            qk_BTHK = qkv_BTHK[:, :, : c.heads + c.kv_heads]  # turned in place: model.rotate
            swapped = qk_BTHK.roll(c.head_dim // 2, -1)
            qk_BTHK.mul_(cos_T1K).addcmul_(swapped, sin_T1K)
            q, k, v = qkv_BTHK.transpose(1, 2).split((c.heads, c.kv_heads, c.kv_heads), dim=1)
            if cache is not None:
                k, v = cache.add(i, k, v)
            y_BHTK = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None and not start,
                enable_gqa=c.kv_heads < c.heads,
            )  # fmt: skip
            x_BTD = x_BTD + layer.out(y_BHTK.transpose(1, 2).reshape(b, t, -1))
            y_BTD = F.rms_norm(x_BTD, (c.dim,), layer.mlp_norm_D, c.norm_eps)
            gate, up = layer.gate_up(y_BTD).chunk(2, dim=-1)
            x_BTD = x_BTD + layer.down(F.silu(gate).mul_(up))
        if cache is not None:
            cache.length = end
        return F.rms_norm(x_BTD, (c.dim,), self.norm_D, c.norm_eps)
