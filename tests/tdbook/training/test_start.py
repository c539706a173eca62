"""A start from the teacher: what stays exact, what is kept, what is moved, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tdbook.training import from_teacher
from tdlib import data
from tdlib.model import Llama
from tests.helpers import cases, near, refused, same, tiny_model

CASES = cases(__file__)
WINDOWS = data.Windows(np.random.default_rng(0).integers(0, 97, 24 * 16 + 1), 16)
IDS = WINDOWS.batch(range(24))[0]


def teacher(seed=0, **shape) -> Llama:
    """Of three layers, whose every part matters for the logits."""
    shape = dict(layers=3, heads=4, dim=32, mlp_dim=48) | shape
    return tiny_model(seed, scale=6.0, **shape).requires_grad_(False)


def made(old: Llama, windows=WINDOWS, **shape) -> Llama:
    """A student of the teacher's shape but for some axes."""
    return from_teacher.from_teacher(old, replace(old.config, **shape), windows)


@torch.no_grad()
def logits(model: Llama) -> torch.Tensor:
    return model(IDS)


@pytest.mark.parametrize("shape", CASES["equal"], ids=str)
def test_equal_size_gives_the_teacher_back_bit_for_bit_with_rope_eps_and_eos(shape):
    old = teacher(**shape, rope_theta=500.0, norm_eps=1e-5, eos_id=7)
    new = made(old, rope_theta=1e4, norm_eps=1e-6, eos_id=3, qk_norm=False)
    assert torch.equal(logits(new), logits(old)) and same(new.state_dict(), old.state_dict())
    assert new.config == old.config and new.layers[0].input_layernorm.eps == 1e-5


def grown(small: Llama, **shape) -> Llama:
    """A larger teacher that computes what a small one does. At scattered places it has dimensions
    that nobody writes, heads and units that add nothing, a second layer that adds nothing; in a
    head, RoPE pairs that the small one lacks."""
    c, rng = small.config, np.random.default_rng(1)
    torch.manual_seed(1)
    big = Llama(replace(c, **shape)).requires_grad_(False)
    b = big.config

    def places(of: int, count: int) -> list[int]:
        return sorted(rng.choice(of, count, replace=False).tolist())

    def at(heads: list[int], inside: list[int]) -> list[int]:
        return [h * b.head_dim + i for h in heads for i in inside]

    def drawn() -> dict[str, tuple]:
        keys, share, half = places(b.kv_heads, c.kv_heads), b.heads // b.kv_heads, b.head_dim // 2
        heads = [k * share + i for k in keys for i in places(share, c.heads // c.kv_heads)]
        step, value = b.head_dim // c.head_dim, places(b.head_dim, c.head_dim)
        turned = [*range(0, half, step), *range(half, 2 * half, step)]
        units = places(b.mlp_dim, c.mlp_dim)
        rows = {"q_proj": at(heads, turned), "k_proj": at(keys, turned), "v_proj": at(keys, value)}
        rows |= {"gate_proj": units, "up_proj": units}
        rows |= dict.fromkeys(("embed_tokens", "lm_head"), range(c.vocab_size))
        reads = {name: (places, dims) for name, places in rows.items()}
        return reads | {"o_proj": (dims, at(heads, value)), "down_proj": (dims, units)}

    dims = places(b.dim, c.dim)
    axes = [drawn(), drawn()]
    for name, weight in small.named_parameters():
        new = big.get_parameter(name.replace("layers.1.", "layers.2."))
        if weight.ndim == 1:  # the mean square is over more dimensions
            head = len(weight) == len(new)  # of QK norms it is the same
            new[slice(None) if head else dims] = weight * (1 if head else c.dim / b.dim) ** 0.5
            continue
        part = name.split(".")[-2]
        new.zero_()
        scale = (b.head_dim / c.head_dim) ** 0.5 if part == "q_proj" else 1.0
        new[np.ix_(*axes["layers.1." in name][part])] = weight * scale
    for linear in (big.layers[1].self_attn.o_proj, big.layers[1].mlp.down_proj):
        linear.weight.zero_()
    return big


@pytest.mark.parametrize("head_dim, keys, tied, qk_norm", CASES["inert"])
def test_what_is_inert_is_left_out_and_the_logits_stay(head_dim, keys, tied, qk_norm):
    """Groups of one head or of two, among groups of one or of three. The norms' eps is as good as
    none, for it is added to a mean square that is another over more dimensions."""
    few, many = keys
    shape = dict(layers=2, heads=2, kv_heads=few, head_dim=8, dim=24, mlp_dim=40, qk_norm=qk_norm)
    small = teacher(**shape, tied=tied, norm_eps=1e-12)
    more = dict(layers=3, heads=many if few == 2 else 3 * many, kv_heads=many, dim=40, mlp_dim=56)
    big = grown(small, **more, head_dim=head_dim)
    near(logits(big), logits(small), 1e-5)
    near(logits(from_teacher.from_teacher(big, small.config, WINDOWS)), logits(small), 1e-5)


def test_the_same_inputs_give_the_same_bits_and_the_random_numbers_stay():
    old, shape = teacher(), dict(layers=2, heads=2, kv_heads=2, dim=24, mlp_dim=30)
    torch.manual_seed(1)
    first = made(old, **shape)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)
    assert same(made(old, **shape).state_dict(), first.state_dict())
    assert all(weight.requires_grad for weight in first.parameters())


def test_directions_are_orthonormal_hold_the_most_and_stay_near_the_teachers_own():
    moment_DD, _ = from_teacher.look(teacher(), IDS)
    p_DE = from_teacher.directions(moment_DD, 20).double()
    torch.testing.assert_close(p_DE.T @ p_DE, torch.eye(20).double(), rtol=0, atol=1e-6)
    most = np.linalg.eigvalsh(moment_DD.numpy())[-20:].sum()
    assert torch.trace(p_DE.T @ moment_DD @ p_DE).item() == pytest.approx(most, rel=1e-6)
    best = p_DE[p_DE.square().sum(1).topk(20).indices.sort().values]  # nearest: symmetric, positive
    torch.testing.assert_close(best, best.T, rtol=0, atol=1e-6)
    assert np.linalg.eigvalsh(best.numpy()).min() > 0
    assert torch.equal(from_teacher.directions(moment_DD, 32), torch.eye(32))


@pytest.mark.parametrize("theirs, ours", CASES["forms"])
def test_a_tied_head_and_shared_keys_are_the_students_own_choice(theirs, ours):
    """Where one matrix must serve for two, the head's."""
    old = teacher(**theirs)
    new = made(old, **ours)
    assert ("lm_head.weight" in dict(new.named_parameters())) == (not ours.get("tied", True))
    assert torch.equal(new.head, old.head) and new.config.kv_heads == 4
    if ours.get("tied", False) == theirs.get("tied", False) or not ours["tied"]:
        near(logits(new), logits(old), 1e-5)


def test_norms_and_writing_weights_are_least_squares_of_the_teachers_stream():
    """By the conditions of the minimum, for each input. One layer of three is kept, whose MLP is
    asked for what the two others add."""
    old = teacher()
    new = made(old, layers=1, dim=24, mlp_dim=30)
    moment_DD, strength = from_teacher.look(old, IDS)
    p_DE = from_teacher.directions(moment_DD, 24)
    units = strength[old.layers[0].mlp.down_proj].topk(30).indices.sort().values
    seen = {}
    for m, which in ((old, "old"), (new, "new")):
        for name, module in m.named_modules():
            note = lambda _, x, y, key=(which, name): seen.update({key: (x[0], y)})  # noqa: E731
            module.register_forward_hook(note)
        logits(m)

    y_NI = seen["new", "layers.0.mlp.down_proj"][0].flatten(0, 1).double()
    stream = seen["new", "norm"][0].flatten(0, 1).double()  # of the student, after its last part
    lacks_NE = (seen["old", "norm"][0] @ p_DE).flatten(0, 1).double() - stream
    pull = from_teacher.RIDGE * y_NI.square().sum(0).mean()
    before = p_DE.T @ old.layers[0].mlp.down_proj.weight[:, units]
    moved = new.layers[0].mlp.down_proj.weight - before
    assert moved.abs().max() > 0.01
    torch.testing.assert_close(lacks_NE.T @ y_NI, pull * moved.double(), rtol=1e-3, atol=1e-3)

    for name in ("layers.0.input_layernorm", "layers.0.post_attention_layernorm", "norm"):
        out = seen["new", name][1].flatten(0, 1)
        lacks = (seen["old", name][1] @ p_DE).flatten(0, 1) - out
        plain = out / new.get_submodule(name).weight
        rest, size = (plain * lacks).sum(0), (plain * out).sum(0)
        assert (rest.abs() < 1e-3 * size.abs()).all(), name


@pytest.mark.parametrize("said, shape", CASES["starts"].items())
def test_what_the_teacher_has_not_is_refused_in_one_line_with_the_remedy(said, shape):
    with refused(said, "set init: random"):
        made(teacher(qk_norm=shape.get("qk_norm", False)), **shape)
