"""The decoder against transformers' Llama of the same weights, and its INT8 against float64."""

import numpy as np
import pytest
import torch

from tdbook.export.decoder import Decoder, _int8, _overflows
from tdlib import lora
from tdlib.model import Cache
from tests.tdlib.test_model import CONFIGS, near, some_ids, tiny, twin

# the plan's widths that are no multiple of 256, the block of llama.cpp's K-quants
SHAPES = CONFIGS | {
    "MLP of 1408": dict(mlp_dim=1408),
    "width 640, grouped, untied": dict(dim=640, heads=10, kv_heads=5, tied=False, layers=1),
}


@pytest.mark.parametrize("change", SHAPES.values(), ids=SHAPES)
def test_logits_are_those_of_transformers_whole_and_in_pieces_over_a_cache(change):
    model, ids_BT = tiny(**change), some_ids(length=40)
    decoder, cache = Decoder(model), Cache(model.config, 2, 40, model.head)
    parts = ids_BT.split([7, 1, 1, 12, 1, 18], dim=1)
    with torch.no_grad():
        wanted = twin(model)(ids_BT).logits
    near(decoder(ids_BT), wanted)
    near(torch.cat([decoder(part, cache) for part in parts], dim=1), wanted)


def test_what_it_cannot_decode_is_refused():
    model = tiny()
    decoder, cache = Decoder(model), Cache(model.config, 2, 200, model.head)
    decoder(some_ids(length=96), cache)
    with pytest.raises(ValueError, match="97 tokens are more than the model's context of 96"):
        decoder(some_ids(length=1), cache)
    with pytest.raises(ValueError, match=r"lora.* is an adapter's weight: call lora.merge"):
        Decoder(lora.attach(tiny(), 2, 1.0))
    with pytest.raises(ValueError, match=r"int8 is for float32 on a CPU, .*bfloat16 on cpu"):
        Decoder(model.bfloat16(), int8=True)


def rounded(x, low, step, levels):
    return np.clip(np.round(x / step) + np.round(-low / step), 0, levels) - np.round(-low / step)


@pytest.mark.parametrize("rows", [1, 5])
def test_an_int8_product_is_the_sum_over_rounded_numbers(rows):
    """Against the same arithmetic in float64, row by row; rows of weights and of x whose sizes lie
    a thousandfold apart, so that one scale for all would lose the small ones."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(48, 64)) * 10 ** rng.uniform(-3, 0, (48, 1))
    x = rng.normal(size=(rows, 64)) * 10 ** rng.uniform(-3, 0, (rows, 1))
    y = _int8(torch.tensor(weight).float())(torch.tensor(x).float()).double().numpy()
    weight_step = np.abs(weight).max(1, keepdims=True) / 127
    levels = 127 if _overflows() else 255
    exact = x @ weight.T
    size = np.abs(x).max(1, keepdims=True) if rows > 1 else 1
    low, high = (x / size).min(), (x / size).max()
    step = (high - low) / levels
    wanted = rounded(x / size, low, step, levels) @ np.round(weight / weight_step).T
    wanted = wanted * step * size * weight_step.T
    norms = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(weight, axis=1)
    # a number on the edge of a step may round the other way in float32: one step of 64 terms
    assert (np.abs(y - wanted) / norms).max() < 2e-3
    assert (np.abs(y - exact) / norms).max() < (2e-2 if _overflows() else 1e-2)


@pytest.mark.parametrize("change", [{}, dict(kv_heads=1, tied=False)], ids=["tied", "grouped"])
def test_int8_loses_little(change):
    """With weights so large that the rest of the model multiplies what each product loses."""
    model, ids_BT = tiny(scale=6.0, **change), some_ids(8)
    with torch.no_grad():
        p, q = (x(ids_BT).double().log_softmax(-1) for x in (model, Decoder(model, int8=True)))
    kl = (p.exp() * (p - q)).sum(-1).mean()
    entropy = -(p.exp() * p).sum(-1).mean()
    assert entropy < np.log(211) - 0.2  # the model has opinions to lose
    assert 0 < kl < (3e-3 if _overflows() else 1e-3)
