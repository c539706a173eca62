"""The loss head against the loss written out densely in float64: value, parts and gradients."""

import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tdlib import losses
from tests.helpers import near, one_line


def case(n=37, d=24, v=101, e=40, seed=0, spread=2.0, weights=False, ignored=0.0):
    """One problem, logits with a standard deviation of `spread`."""
    g = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=g)

    c = SimpleNamespace(
        hidden=normal(n, d).requires_grad_(),
        head=(normal(v, d) * spread / d**0.5).requires_grad_(),
        targets=torch.randint(v, (n,), generator=g),
        teacher_hidden=normal(n, e),
        teacher_head=normal(v, e) * spread / e**0.5,
        weights=torch.rand(n, generator=g) * 3 if weights else None,
    )
    c.targets[torch.rand(n, generator=g) < ignored] = -100
    return c


def ours(c, **options):
    """Our loss of a case, whose gradients start anew."""
    c.hidden.grad = c.head.grad = None
    return losses.distillation_loss(
        c.hidden, c.head, c.targets, weights_N=c.weights,
        teacher_hidden_NE=c.teacher_hidden, teacher_head_VE=c.teacher_head, **options,
    )  # fmt: skip


def dense(c, ce_weight, temperature, p=None):
    """The same by the definition, in float64 with all logits: loss, ce, kl, count, gradients."""
    hidden = c.hidden.detach().double().requires_grad_()
    head = c.head.detach().double().requires_grad_()
    s = hidden @ head.T
    if p is None:
        p = (c.teacher_hidden.double() @ c.teacher_head.double().T / temperature).exp()
        p = p / p.sum(1, keepdim=True)
    q = (s / temperature).exp()
    q = q / q.sum(1, keepdim=True)
    kl = (torch.xlogy(p, p) - p * q.log()).sum(1)
    counts = c.targets != -100
    soft = s.exp() / s.exp().sum(1, keepdim=True)
    ce = -soft[torch.arange(len(s)), c.targets.clamp(min=0)].log()
    w = counts.double() * (1.0 if c.weights is None else c.weights.double())
    ce, kl = (ce * w).sum() / w.sum(), (kl * w).sum() / w.sum()
    loss = ce_weight * ce + (1 - ce_weight) * temperature**2 * kl
    loss.backward()
    return SimpleNamespace(loss=loss, ce=ce, kl=kl, count=w.sum(), d=(hidden.grad, head.grad))


def agree(c, ce_weight, temperature, **options):
    found = ours(c, ce_weight=ce_weight, temperature=temperature, **options)
    found.loss.backward()
    wanted = dense(c, ce_weight, temperature)
    near(found.loss, wanted.loss)
    near(found.ce, wanted.ce)
    near(found.count, wanted.count)
    if ce_weight < 1:
        near(found.kl, wanted.kl)
    else:
        assert found.kl.isnan()
    near(c.hidden.grad, wanted.d[0])
    near(c.head.grad, wanted.d[1])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("ce_weight", [0, 0.1, 0.5, 1])
def test_loss_parts_and_gradients_are_those_of_dense_float64(temperature, ce_weight):
    agree(case(weights=True, ignored=0.3), ce_weight, temperature, chunk=8)


@pytest.mark.parametrize("n, d, v, e", [(1, 1, 2, 1), (64, 8, 3, 5), (7, 96, 1000, 32)])
@pytest.mark.parametrize("chunk", [None, 1, 16, 10_000])
def test_no_shape_and_no_chunk_size_changes_the_loss(n, d, v, e, chunk):
    agree(case(n, d, v, e), 0.3, 1.5, chunk=chunk)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("ignored", [0.0, 0.2, 0.9])
def test_masks_and_weights_are_those_of_dense_float64(weights, ignored):
    agree(case(weights=weights, ignored=ignored, seed=1), 0.5, 2.0, chunk=5)


def test_large_logits_lose_no_precision():
    agree(case(spread=15.0, v=400), 0.5, 2.0)
    agree(case(spread=15.0, v=400), 0.5, 1.0)


def test_the_upstream_gradient_scales_and_a_second_backward_adds_the_same():
    c = case(weights=True)
    wanted = dense(c, 0.5, 2.0)
    loss = ours(c, ce_weight=0.5, temperature=2.0, chunk=16).loss
    (3 * loss).backward(retain_graph=True)
    near(c.hidden.grad, 3 * wanted.d[0])
    near(c.head.grad, 3 * wanted.d[1])
    loss.backward()
    near(c.hidden.grad, 4 * wanted.d[0])
    near(c.head.grad, 4 * wanted.d[1])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_kl_is_zero_when_the_student_is_the_teacher(temperature):
    c = case(spread=6.0, v=500)
    c.teacher_hidden, c.teacher_head = c.hidden, c.head
    found = ours(c, ce_weight=0, temperature=temperature)
    found.loss.backward()
    assert found.kl == 0 and found.loss == 0
    assert not c.hidden.grad.any() and not c.head.grad.any()


@pytest.mark.parametrize("ce_weight", [0, 0.5, 1])
def test_with_every_target_ignored_the_loss_and_its_gradients_are_zero(ce_weight):
    c = case(ignored=1.1, weights=True)
    found = ours(c, ce_weight=ce_weight, temperature=2.0)
    found.loss.backward()
    assert found.loss == found.ce == found.count == 0
    assert not c.hidden.grad.any() and not c.head.grad.any()


def test_another_ignore_index_is_obeyed():
    c = case(ignored=0.4)
    wanted = ours(c, ce_weight=0.5, temperature=2.0)
    c.targets[c.targets == -100] = 100_000
    found = ours(c, ce_weight=0.5, temperature=2.0, ignore_index=100_000)
    assert found.loss == wanted.loss and found.count == wanted.count


def test_micro_batches_combine_exactly_through_their_counts():
    c = case(n=60, weights=True, ignored=0.4)
    wanted = dense(c, 0.5, 2.0)
    parts = []
    for rows in (slice(0, 7), slice(7, 40), slice(40, 60)):
        part = SimpleNamespace(**vars(c))
        part.hidden, part.targets = c.hidden[rows], c.targets[rows]
        part.teacher_hidden, part.weights = c.teacher_hidden[rows], c.weights[rows]
        parts.append(ours(part, ce_weight=0.5, temperature=2.0))
    count = sum(part.count for part in parts)
    near(count, wanted.count)
    for name in ("ce", "kl"):
        near(sum(getattr(x, name) * x.count for x in parts) / count, getattr(wanted, name))
    loss = sum(part.loss * part.count for part in parts) / count
    loss.backward()
    near(loss, wanted.loss)
    near(c.hidden.grad, wanted.d[0])
    near(c.head.grad, wanted.d[1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("ce_weight", [0.5, 1])
def test_a_nan_in_an_ignored_row_spoils_nothing(bad, ce_weight):
    c = case(ignored=0.3)
    rows = c.targets == -100
    wanted = ours(c, ce_weight=ce_weight, temperature=2.0, chunk=8)
    wanted.loss.backward()
    d_hidden, d_head = c.hidden.grad, c.head.grad
    with torch.no_grad():
        c.hidden[rows] = bad
        c.teacher_hidden[rows] = bad
    found = ours(c, ce_weight=ce_weight, temperature=2.0, chunk=8)
    found.loss.backward()
    assert found.loss == wanted.loss and found.ce == wanted.ce
    assert torch.equal(c.hidden.grad, d_hidden)
    near(c.head.grad, d_head)


def test_only_the_loss_carries_a_gradient_and_the_teacher_gets_none():
    c = case()
    c.teacher_hidden.requires_grad_()
    c.teacher_head.requires_grad_()
    found = ours(c, ce_weight=0.5, temperature=2.0)
    assert found.loss.requires_grad and found.loss.ndim == 0
    assert not (found.ce.requires_grad or found.kl.requires_grad or found.count.requires_grad)
    found.loss.backward()
    assert c.teacher_hidden.grad is None and c.teacher_head.grad is None


class Work(TorchDispatchMode):
    """What torch does meanwhile: the largest array it makes, the types of its matrix products."""

    def __init__(self):
        super().__init__()
        self.largest, self.products = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm_.default):
            self.products.append(args[-1].dtype)
        return out


@pytest.mark.parametrize("n, chunk, rows", [(512, 32, 32), (1500, None, 512)])
@pytest.mark.parametrize("ce_weight", [0.5, 1])
def test_no_array_is_larger_than_a_chunk_of_logits(n, chunk, rows, ce_weight):
    c = case(n=n, d=16, v=300, e=16)
    with Work() as work:
        ours(c, ce_weight=ce_weight, temperature=2.0, chunk=chunk).loss.backward()
    assert work.largest == rows * 300


@pytest.mark.parametrize("chunk, rows", [(32, 32), (None, 512)])
def test_no_array_of_the_sampled_or_the_token_loss_is_larger_than_a_chunk_of_logits(chunk, rows):
    c = case(n=1100, d=8, v=300)
    ids, probs = torch.zeros(1100, 4, dtype=torch.long), torch.full((1100, 4), 0.5)
    with Work() as work:
        losses.sampled_distillation_loss(
            c.hidden, c.head, c.targets, teacher_ids_NK=ids, teacher_probs_NK=probs,
            ce_weight=0.5, temperature=2.0, chunk=chunk,
        ).loss.backward()  # fmt: skip
    assert work.largest == rows * 300
    with Work() as work, torch.no_grad():
        losses.token_loss(c.hidden, c.head, c.targets, chunk=chunk)
    assert work.largest == rows * 300


def test_a_gradient_that_is_not_wanted_is_not_computed():
    c = case()
    wanted = dense(c, 0.5, 2.0)
    c.head.requires_grad_(False)
    with Work() as work:
        ours(c, ce_weight=0.5, temperature=2.0).loss.backward()
    near(c.hidden.grad, wanted.d[0])
    assert c.head.grad is None
    assert len(work.products) == 3  # both logits, the gradient of the hidden states
    with Work() as work, torch.no_grad():
        found = ours(case(), ce_weight=0.5, temperature=2.0)
    near(found.loss, wanted.loss)
    assert len(work.products) == 2  # both logits


def test_autocast_makes_products_in_bfloat16_and_adds_up_the_heads_gradient_in_float32():
    found = []
    for chunk in (512, 8):
        c = case(n=512, d=64, v=700, spread=1.0)
        with torch.autocast("cpu", torch.bfloat16), Work() as work:
            loss = ours(c, ce_weight=0.5, temperature=2.0, chunk=chunk)
        assert work.products == 4 * 512 // chunk * [torch.bfloat16]
        loss.loss.backward()
        found.append(c.head.grad)
        want = dense(c, 0.5, 2.0)
        near(loss.loss, want.loss, 3e-3)  # bfloat16 carries 4e-3 a number, averaged over many
        for x, d in zip((c.hidden, c.head), want.d, strict=True):
            assert x.grad.dtype == torch.float32
            near(x.grad, d, 2e-2)
    # 64 chunks whose sum is kept in bfloat16 would be off by several 4e-3
    near(found[1], found[0], 4e-3)


def test_bfloat16_inputs_stay_near_the_float32_result():
    c = case(n=200)
    with torch.no_grad():
        for x in (c.hidden, c.head, c.teacher_hidden, c.teacher_head):
            x.copy_(x.bfloat16())
    wanted = dense(c, 0.5, 2.0)
    for name in ("hidden", "head"):
        setattr(c, name, getattr(c, name).detach().bfloat16().requires_grad_())
    c.teacher_hidden, c.teacher_head = c.teacher_hidden.bfloat16(), c.teacher_head.bfloat16()
    found = ours(c, ce_weight=0.5, temperature=2.0, chunk=32)
    found.loss.backward()
    assert found.loss.dtype == torch.float32
    # a logit rounds to 8 bits, 1/256 of itself at most; these errors average out over tokens
    near(found.loss, wanted.loss, 2e-3)
    near(found.kl, wanted.kl, 2e-3)
    assert c.hidden.grad.dtype == c.head.grad.dtype == torch.bfloat16
    near(c.hidden.grad, wanted.d[0], 1e-2)
    near(c.head.grad, wanted.d[1], 1e-2)


def sampled(c, ids, probs, **options):
    c.hidden.grad = c.head.grad = None
    found = losses.sampled_distillation_loss(
        c.hidden, c.head, c.targets, weights_N=c.weights,
        teacher_ids_NK=ids, teacher_probs_NK=probs, **options,
    )  # fmt: skip
    found.loss.backward()
    return found


@pytest.mark.parametrize("temperature, ce_weight", [(1.0, 0), (2.0, 0.5), (0.5, 0.1), (4.0, 0)])
def test_draws_in_exact_proportion_give_the_dense_loss(temperature, ce_weight):
    c = case(n=11, d=8, v=6, weights=True, ignored=0.3)
    p = torch.tensor([[4, 0, 1, 3, 6, 2]]) / 16
    ids = torch.tensor([0] * 4 + [2] + [3] * 3 + [4] * 6 + [5] * 2)
    wanted = dense(c, ce_weight, temperature, p=p.double().expand(11, 6))
    ids_NK, probs_NK = ids.expand(11, 16), p[0][ids].expand(11, 16)
    found = sampled(c, ids_NK, probs_NK, ce_weight=ce_weight, temperature=temperature, chunk=4)
    for name in ("loss", "ce", "kl", "count"):
        near(getattr(found, name), getattr(wanted, name))
    near(c.hidden.grad, wanted.d[0])
    near(c.head.grad, wanted.d[1])


@pytest.mark.parametrize("temperature, ce_weight", [(1.0, 0), (2.0, 0.3)])
def test_the_sampled_loss_is_unbiased_in_value_and_gradient(temperature, ce_weight):
    """The mean over many draws meets the dense loss within 5 of its own standard errors: the
    largest of 149 normal numbers passes that once in 10,000 seeds."""
    c = case(n=4, d=4, v=32, e=6, spread=1.5, weights=True)
    logits = c.teacher_hidden.double() @ c.teacher_head.double().T
    p_NV = (logits / temperature).softmax(1)
    wanted = dense(c, ce_weight, temperature)
    g = torch.Generator().manual_seed(2)
    draws = []
    for _ in range(800):
        ids = torch.multinomial(p_NV, 3, replacement=True, generator=g)
        found = sampled(c, ids, p_NV.gather(1, ids), ce_weight=ce_weight, temperature=temperature)
        draws.append(torch.cat([found.loss[None], found.kl[None], c.hidden.grad.ravel(),
                                c.head.grad.ravel()]).detach().double())  # fmt: skip
    draws = torch.stack(draws)
    dense_ = torch.cat([wanted.loss[None], wanted.kl[None], *(x.ravel() for x in wanted.d)])
    error = draws.std(0) / len(draws) ** 0.5
    z = (draws.mean(0) - dense_) / (error + 1e-6)
    assert z.abs().max() < 5
    # and the trial is sharp: its errors are small beside what it measures
    assert error[0] < 0.02 * wanted.loss
    assert error[2:].norm() < 0.05 * dense_[2:].norm()


def test_token_loss_is_the_cross_entropy_of_each_token():
    c = case(n=37)
    found = losses.token_loss(c.hidden.detach(), c.head.detach(), c.targets, chunk=8)
    s = (c.hidden.double() @ c.head.double().T).detach()
    wanted = s.logsumexp(1) - s[torch.arange(37), c.targets]
    assert found.dtype == torch.float32 and found.shape == (37,)
    near(found, wanted)


class Untouchable:
    def __getattribute__(self, name):
        raise AssertionError(f"the teacher was touched: {name}")


def test_at_ce_weight_one_the_teacher_is_never_touched():
    c = case()
    wanted = dense(c, 1, 2.0)
    for teacher in (None, Untouchable()):
        found = losses.distillation_loss(
            c.hidden, c.head, c.targets, teacher_hidden_NE=teacher, teacher_head_VE=teacher,
            ce_weight=1, temperature=2.0,
        )  # fmt: skip
        near(found.loss, wanted.loss)
        assert found.kl.isnan()
        found = sampled(c, teacher, teacher, ce_weight=1, temperature=2.0)
        near(found.loss, wanted.loss)
        assert found.kl.isnan()


IDS = torch.zeros(37, 3, dtype=torch.long)


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (dict(teacher_head=torch.ones(1300, 40)), {}, ["101", "1,300", "tokenizer"]),
        (dict(teacher_head=None), {}, ["0.5", "teacher_head_VE"]),
        (dict(teacher_hidden=None), {}, ["0.5", "teacher_hidden_NE"]),
        ({}, dict(ce_weight=-0.1), ["-0.1"]),
        ({}, dict(ce_weight=1.5), ["1.5"]),
        ({}, dict(temperature=0), ["0 is not above"]),
        (dict(hidden=torch.ones(1, 37, 24)), {}, ["(1, 37, 24)", "flatten"]),
        (dict(hidden=torch.ones(5, 24)), {}, ["(5, 24)", "flatten"]),
        (dict(head=torch.ones(101, 23)), {}, ["24", "23"]),
        (dict(ids=None), {}, ["teacher_ids_NK", "teacher_probs_NK"]),
        (dict(ids=IDS, probs=torch.ones(37, 4)), {}, ["teacher_ids_NK", "(37, 4)"]),
        (dict(ids=IDS[:5], probs=torch.ones(5, 3)), {}, ["(5, 3)", "(37, K)"]),
    ],
)
def test_what_fits_no_loss_is_refused(change, options, words):
    c, how = case(), dict(ce_weight=0.5, temperature=2.0) | options
    vars(c).update(change)
    with pytest.raises(ValueError) as error:
        sampled(c, c.ids, change.get("probs"), **how) if "ids" in change else ours(c, **how)
    one_line(error, *words)


@pytest.mark.parametrize("block", [1, 101 * 8, 101 * 36])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_size_of_the_cores_blocks_changes_nothing(monkeypatch, block, temperature):
    found = []
    for size in (2**30, block):
        monkeypatch.setattr(losses, "BLOCK", size)
        c = case(weights=True, ignored=0.2)
        loss = ours(c, ce_weight=0.5, temperature=temperature)
        loss.loss.backward()
        found.append([loss.loss, loss.ce, loss.kl, c.hidden.grad, c.head.grad])
    for blocks, whole in zip(*found, strict=True):
        near(blocks, whole, 1e-6)


@pytest.mark.skipif(
    shutil.which("g++") is None and os.environ.get("CI") != "true",
    reason="torch.compile needs g++; under CI its absence is a failure",
)
@pytest.mark.parametrize("core", ["dense", "sampled"])
def test_a_core_is_compiled_once_for_all_shapes_and_gives_the_eager_numbers(core):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    losses._compiled.cache_clear()
    counters.clear()
    for temperature, ce_weight, n, v in (
        (2.0, 0.5, 37, 101),
        (1.0, 0.0, 70, 333),
        (0.5, 0.9, 8, 9),
    ):
        g = torch.Generator().manual_seed(n)
        s_NV, g_NV = (4 * torch.randn(n, v, generator=g) for _ in range(2))
        y_N, w_N = torch.randint(v, (n,), generator=g), torch.rand(n, generator=g)
        draws = torch.randint(v, (n, 5), generator=g), torch.rand(n, 5, generator=g).log()
        found = []
        for call, a, t in (
            (losses._compiled(), torch.tensor(ce_weight), torch.tensor(temperature)),
            (losses._core, ce_weight, temperature),
        ):
            gradient_NV = s_NV.clone()
            known = {"dense": (g_NV.clone(),), "sampled": draws}[core]
            found.append([*call(gradient_NV, y_N, w_N, a, t, *known), gradient_NV])
        for compiled, eager in zip(*found, strict=True):
            near(compiled, eager)
    assert counters["stats"]["unique_graphs"] == 1
