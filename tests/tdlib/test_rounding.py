"""Training into four bits: gradients, scales at their limits, resumption, and what is merged."""

import copy

import pytest
import torch

from tdlib import checkpoint, hard_set, quantize, train
from tdlib.model import Llama
from tests import helpers
from tests.helpers import Stopped, refused, same, some_windows, stop_at, tiny_model, weights_of

T = 12
WINDOWS = some_windows(97, T, 24)
TEACHER = tiny_model(3, scale=4.0).requires_grad_(False)
STOPS = [(0.5, False, 4), (0.5, False, 6), (0.5, False, 9), (1, True, 5)]


def tiny() -> Llama:
    return tiny_model(scale=4.0, mlp_dim=64)


def rounded(scales_alone=False) -> Llama:
    quantize.attach(model := tiny(), scales_alone)
    quantize.switch(model, True)
    return model


def quick(share=1.0, **change) -> train.Recipe:
    """Twelve steps of four windows."""
    how = dict(epochs=2.0, ce_weight=0.5, warmup_share=0.01, micro_windows=4, four_bit_share=share)
    return helpers.quick(**how | change)


def fit(model, recipe, **how):
    return train.fit(model, WINDOWS, recipe, teacher=TEACHER, **how)


def shifts(model) -> list:
    return [m.parametrizations.weight.original1 for m in quantize.parts(model)]


def test_gradients_are_those_of_the_dequantized_forward_where_integers_stay():
    """A shift's against finite differences of q · d in float64, d before its 16 bits; W's is the
    gradient of the rounded matrix itself."""
    torch.manual_seed(0)
    weight, shift = torch.randn(6, 64), torch.randn(12) * 1e-3
    part, upstream = quantize.Rounding(weight, False), torch.randn(6, 64)
    part.on = True
    weight.requires_grad_(), shift.requires_grad_()
    (part(weight, shift) * upstream).sum().backward()
    assert torch.equal(weight.grad, upstream)
    q_BN, _ = quantize.blocks(weight.detach(), shift.detach())
    x_BN = weight.detach().double().reshape(-1, 32)
    plain_B = x_BN.gather(1, x_BN.abs().argmax(1, keepdim=True))[:, 0] / -8

    def value(shift_B):
        return (q_BN * ((1 + quantize.GAIN * shift_B) * plain_B)[:, None]).view(6, 64)

    for b in range(12):
        step = torch.zeros(12, dtype=torch.float64)
        step[b] = 1e-4
        near = [value(shift.detach().double() + sign * step) for sign in (1, -1)]
        wanted = ((near[0] - near[1]) * upstream.double()).sum() / 2e-4
        assert float(shift.grad[b]) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("factor", [0.0, -1.0, 1e12, 1e-9])
def test_scales_that_end_at_zero_negative_or_too_large_are_held_by_16_bits(factor):
    model = tiny()
    model.embed_tokens.weight.data[:3] = 0  # blocks of zeros
    quantize.attach(model, scales_alone=True)
    quantize.switch(model, True)
    for shift_B in shifts(model):
        shift_B.data.fill_((factor - 1) / quantize.GAIN)
    read = [module.weight.detach() for module in quantize.parts(model)]
    for before, (name, weight) in zip(read, matrices(quantize.merge(model)), strict=True):
        assert torch.equal(before, weight) and weight.isfinite().all(), name
        assert (weight == 0).all() == (factor in (0.0, 1e-9)), name
        assert quantize.own_blocks(weight) is not None


def matrices(model) -> list:
    return [(name, w.detach()) for name, w in model.named_parameters() if w.ndim == 2]


@pytest.mark.parametrize("scales_alone", [False, True])
def test_a_rounded_training_ends_in_weights_that_are_their_own_q4_0(scales_alone, tmp_path):
    """Near the float model it began from, nearer than plain rounding by what was trained on."""
    model, floats = rounded(scales_alone), tiny().requires_grad_(False)
    plain = copy.deepcopy(floats)
    with torch.no_grad():
        for _, weight in matrices(plain):
            weight.copy_(quantize.dequantize(*quantize.blocks(weight), weight.shape))
    kept = {name: w.clone() for name, w in model.named_parameters() if not w.requires_grad}
    integers = [name for name, _ in model.named_buffers() if name.endswith("kept_BN")]
    assert len(integers) == scales_alone * len(quantize.parts(model))  # and go to its device
    recipe = quick(epochs=8.0, learning_rate=3e-4, ce_weight=0.0, temperature=1.0)
    train.fit(model, WINDOWS, recipe, teacher=floats)
    assert all(torch.equal(w, kept[n]) for n, w in model.named_parameters() if n in kept)
    moved = any(shift_B.any() for shift_B in shifts(model))
    merged = quantize.merge(model)
    assert merged.state_dict().keys() == floats.state_dict().keys() and moved
    for _, weight in matrices(merged):
        assert torch.equal(quantize.dequantize(*quantize.own_blocks(weight), weight.shape), weight)
    ids, _ = WINDOWS.batch(range(24))
    log_p = floats(ids).log_softmax(-1)
    kls = [(log_p.exp() * (log_p - m(ids).log_softmax(-1))).sum(-1).mean() for m in (merged, plain)]
    assert kls[0] < 0.7 * kls[1]
    merged.save(tmp_path / "m")
    assert same(weights_of(Llama.load(tmp_path / "m")), weights_of(merged))


@pytest.mark.parametrize("share, scales_alone, stop", STOPS)
def test_killed_and_resumed_it_ends_with_the_same_bits(share, scales_alone, stop, tmp_path):
    """Before, at and after the step that rounding begins with; with activation checkpointing from
    there on, which changes no result."""
    recipe, straight = quick(share), rounded(scales_alone)
    wanted = fit(straight, recipe, evaluations=4, evaluate=loss)
    with pytest.raises(Stopped):
        fit(rounded(scales_alone), recipe, folder=tmp_path, progress=stop_at(stop))
    again = rounded(scales_alone)
    recipe = quick(share, activation_checkpointing=True)
    log = fit(again, recipe, folder=tmp_path, evaluations=4, evaluate=loss)
    assert same(weights_of(again), weights_of(straight))
    assert log[-1]["val/loss"] == wanted[-1]["val/loss"]


def loss(model) -> dict:
    return {"val/loss": hard_set.known_mean(hard_set.window_loss(model, WINDOWS, range(8), "cpu"))}


def test_training_begins_in_float_and_its_last_share_is_rounded():
    """The first half is a float training (up to the last bits, in which an AVX2 machine
    goes by where memory begins); then the rounded model is evaluated, far enough off to be told."""
    model, plain = rounded(), tiny()
    quantize.switch(model, False)
    half = fit(plain, quick(0.0), evaluations=12, evaluate=loss)
    log = fit(model, quick(0.5), evaluations=12, evaluate=loss)
    for row, other in zip(log[:7], half, strict=False):
        assert row["val/loss"] == pytest.approx(other["val/loss"], rel=1e-6)
    assert log[7]["val/loss"] != pytest.approx(half[7]["val/loss"], rel=1e-4)
    assert log[-1]["val/loss"] == pytest.approx(loss(quantize.merge(model))["val/loss"], rel=1e-6)
    fit(still := rounded(), quick(0.5, learning_rate=1e-15))  # its scales are those of W then
    for module in quantize.parts(still):
        weight, shift_B = module.parametrizations.weight.parameters()
        assert torch.allclose(shift_B, quantize._nearest(weight.detach())) and shift_B.any()


def test_quarters_of_the_rounded_steps_are_kept(tmp_path):
    fit(rounded(), quick(0.5), folder=tmp_path)
    kept = {"state", "epoch-1", "rounded-1", "rounded-2", "rounded-3"}
    assert {p.stem for p in tmp_path.iterdir()} == kept
    fit(rounded(), quick(0.25), folder=tmp_path / "three")  # steps: the first quarter is in float
    names = {p.stem for p in (tmp_path / "three").glob("rounded-*")}
    assert names == {"rounded-2", "rounded-3"}
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert {n for n in state["weights"] if "original" in n}
    older = {name: value for name, value in state["key"].items() if name != "four_bit_share"}
    with refused("four_bit_share", "0.0", "0.5"):
        torch.save(state | {"key": older}, tmp_path / "state.pt")
        checkpoint.load(tmp_path / "state.pt", state["key"])


def test_rows_of_no_whole_blocks_stay_and_are_named():
    model = tiny_model(mlp_dim=40)
    assert quantize.attach(model) == [f"layers.{i}.mlp.down_proj" for i in range(2)]
    with refused("(32, 40)", "32", "16 bits"):
        quantize.blocks(torch.zeros(32, 40))
    with refused("merge"):
        quantize.attach(model)
    with refused("parametrizations", "quantize.merge"):
        model.save("/nowhere")
