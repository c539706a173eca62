"""What a training costs: FACTS.md's arithmetic, and memory as it is."""

import pytest

from tdlib import cost
from tdlib.model import SHAPES, LlamaConfig


def config(name: str, **change) -> LlamaConfig:
    return LlamaConfig(**dict(vocab_size=51_800, **SHAPES[name]) | change)


def without_attention(name: str) -> float:
    return cost.forward_flop(config(name), 0)


def test_flop_are_those_of_the_facts():
    """Section 2: without attention scores, teacher forward 517 and 620 MFLOP, student step 313."""
    assert without_attention("teacher-plan") == pytest.approx(517e6, rel=1e-3)
    assert without_attention("teacher-300m") == pytest.approx(620e6, rel=1e-3)
    assert 3 * without_attention("student-50m") == pytest.approx(313e6, abs=0.5e6)
    # 3.7 billion tokens × 3 epochs online, 16 layers: 9.2e18, of which attention is a tenth
    student, teacher = config("student-50m"), config("teacher-plan")
    assert cost.step_flop(student, teacher, 0) * 11.1e9 == pytest.approx(9.2e18, rel=0.01)
    online, alone = (cost.step_flop(student, t, 2048) for t in (teacher, None))
    assert 0.60 < 1 - alone / online < 0.66
    assert cost.step_flop(student, None, 2048, frozen=True) == pytest.approx(alone * 2 / 3)


def test_attention_is_half_a_square_and_an_untied_head_costs_no_look_up():
    small = config("student-small-smoke", vocab_size=100)
    # scores and their sum over values: 2 · 2 · T/2 · width a layer
    assert cost.forward_flop(small, 64) - cost.forward_flop(small, 0) == 2 * 64 * 32 * 1
    untied = config("student-small-smoke", vocab_size=100, tied=False)
    assert cost.forward_flop(untied, 64) == cost.forward_flop(small, 64)


def test_activations_grow_by_the_same_with_every_layer_and_by_the_tokens():
    four = config("teacher-smoke", layers=4)
    assert cost.activation_bytes(four, 3, 32) == cost._kept(four, 3, 32, "cpu")
    one, two = (cost.activation_bytes(four, n, 32) for n in (8, 16))
    assert two == pytest.approx(2 * one, rel=0.01)


def test_a_machine_reaches_a_peak():
    assert 1e8 < cost.peak_flop("cpu") < 1e15
