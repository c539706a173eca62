"""The loss head against the loss written out densely in float64: value, parts and gradients."""

import functools
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tdlib import losses
from tests.helpers import cases, near, refused

CASES = cases(__file__)
HALF = dict(ce_weight=0.5, temperature=2.0)
CORES = ["in blocks, for a CPU", "in one pass, for a GPU"]
one_core = pytest.mark.parametrize("core", CORES[1:], indirect=True)  # of one, or of neither


@pytest.fixture(autouse=True, params=CORES)
def core(request, monkeypatch):
    """Every property holds for both."""
    if "GPU" in request.param:
        monkeypatch.setattr(losses, "_in_blocks", losses._in_one_pass)


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


def ours(c, **how):
    """Our loss of a case, whose gradients start anew; from draws where it has some."""
    c.hidden.grad = c.head.grad = None
    student = (c.hidden, c.head, c.targets)
    if hasattr(c, "ids"):
        how |= dict(teacher_ids_NK=c.ids, teacher_probs_NK=c.probs)
        return losses.sampled_distillation_loss(*student, weights_N=c.weights, **how)
    how |= dict(teacher_hidden_NE=c.teacher_hidden, teacher_head_VE=c.teacher_head)
    return losses.distillation_loss(*student, weights_N=c.weights, **how)


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


def agree(c, ce_weight, temperature, p=None, **how):
    found = ours(c, ce_weight=ce_weight, temperature=temperature, **how)
    found.loss.backward()
    wanted = dense(c, ce_weight, temperature, p)
    for name in ("loss", "ce", "count", *["kl"] * (ce_weight < 1)):
        near(getattr(found, name), getattr(wanted, name))
    assert found.kl.isnan() == (ce_weight == 1)
    assert found.loss.requires_grad and found.loss.ndim == 0
    assert not (found.ce.requires_grad or found.kl.requires_grad or found.count.requires_grad)
    near(c.hidden.grad, wanted.d[0])
    near(c.head.grad, wanted.d[1])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("ce_weight", [0, 0.1, 0.5, 1])
def test_loss_parts_and_gradients_are_those_of_dense_float64(ce_weight, temperature, monkeypatch):
    agree(case(weights=True, ignored=0.3), ce_weight, temperature, chunk=8)
    agree(case(ignored=0.9, seed=1), ce_weight, temperature, chunk=5)
    agree(case(spread=15.0, v=400), ce_weight, max(1.0, temperature))  # large logits
    for block in (1, 101 * 8, 101 * 36):  # of the core on a CPU
        monkeypatch.setattr(losses, "BLOCK", block)
        agree(case(weights=True, ignored=0.2), ce_weight, temperature)
    for shape in ((1, 1, 2, 1), (64, 8, 3, 5), (7, 96, 1000, 32)):
        for chunk in (None, 1, 16, 10_000):
            agree(case(*shape), ce_weight, temperature, chunk=chunk)


def test_the_upstream_gradient_scales_and_a_second_backward_adds_the_same():
    c = case(weights=True)
    wanted, loss = dense(c, 0.5, 2.0), ours(c, **HALF, chunk=16).loss
    for scale, total in ((3, 3), (1, 4)):
        (scale * loss).backward(retain_graph=True)
        near(c.hidden.grad, total * wanted.d[0])
        near(c.head.grad, total * wanted.d[1])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_kl_is_zero_when_the_student_is_the_teacher_which_gets_no_gradient(temperature):
    c = case(spread=6.0, v=500)
    c.teacher_hidden = c.hidden.detach().clone().requires_grad_()
    c.teacher_head = c.head.detach().clone().requires_grad_()
    found = ours(c, ce_weight=0, temperature=temperature)
    found.loss.backward()
    assert found.kl == found.loss == 0 and not c.hidden.grad.any() and not c.head.grad.any()
    assert c.teacher_hidden.grad is None and c.teacher_head.grad is None


@pytest.mark.parametrize("ce_weight", [0, 0.5, 1])
def test_an_ignored_row_counts_for_nothing_whatever_it_holds(ce_weight):
    how, results = dict(ce_weight=ce_weight, temperature=2.0, chunk=8), []
    for bad, index in ((0, -100), (math.nan, 100_000), (math.inf, 100_000)):
        c = case(ignored=0.3)
        rows = c.targets == -100
        c.targets[rows] = index
        c.hidden.data[rows] = c.teacher_hidden[rows] = bad
        found = ours(c, **how, ignore_index=index)
        found.loss.backward()
        results.append((found.loss, found.ce, found.count, c.hidden.grad, c.head.grad))
    for result in results[1:]:
        for one, wanted in zip(result, results[0], strict=True):
            near(one, wanted)
    c = case(ignored=1.1, weights=True)  # all of them
    found = ours(c, **how)
    found.loss.backward()
    assert found.loss == found.ce == found.count == 0
    assert not c.hidden.grad.any() and not c.head.grad.any()


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
@pytest.mark.parametrize("kind", ["dense", "text alone", "sampled", "token"])
def test_no_array_is_larger_than_a_chunk_of_logits(n, chunk, rows, kind):
    c = case(n=n, d=8, v=300, e=16)
    if kind == "sampled":
        c.ids, c.probs = torch.zeros(n, 4, dtype=torch.long), torch.full((n, 4), 0.5)
    with Work() as work:
        if kind == "token":
            losses.token_loss(c.hidden.detach(), c.head.detach(), c.targets, chunk=chunk)
        else:
            how = dict(ce_weight=1 if kind == "text alone" else 0.5, temperature=2.0)
            ours(c, **how, chunk=chunk).loss.backward()
    assert work.largest == rows * 300


def test_a_head_that_does_not_learn_gets_no_gradient():
    c = case()
    wanted = dense(c, 0.5, 2.0)
    c.head.requires_grad_(False)
    ours(c, **HALF).loss.backward()
    near(c.hidden.grad, wanted.d[0])
    assert c.head.grad is None


def test_autocast_makes_products_in_bfloat16_and_adds_up_the_heads_gradient_in_float32():
    found = []
    for chunk in (512, 8):
        c = case(n=512, d=64, v=700, spread=1.0)
        with torch.autocast("cpu", torch.bfloat16), Work() as work:
            loss = ours(c, **HALF, chunk=chunk)
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


@pytest.mark.parametrize("temperature, ce_weight", [(1.0, 0), (2.0, 0.5), (0.5, 0.1), (4.0, 0)])
def test_the_sampled_loss_is_unbiased_in_value_and_gradient(temperature, ce_weight):
    """All pairs of draws, each as often as the teacher draws it, have the dense loss as mean."""
    c = case(n=11, d=8, v=6, weights=True, ignored=0.3)
    p_V, mean = torch.tensor([4, 0, 1, 3, 6, 2]) / 16, 0
    for pair in itertools.product(p_V.nonzero()[:, 0].tolist(), repeat=2):
        c.ids, c.probs = (x.expand(11, 2) for x in (torch.tensor(pair), p_V[list(pair)]))
        found = ours(c, ce_weight=ce_weight, temperature=temperature, chunk=4)
        found.loss.backward()
        parts = (found.loss, found.kl, found.ce, c.hidden.grad, c.head.grad)
        mean += p_V[list(pair)].prod() * torch.cat([x.detach().double().ravel() for x in parts])
    wanted = dense(c, ce_weight, temperature, p_V.double().expand(11, 6))
    parts = (wanted.loss, wanted.kl, wanted.ce, *wanted.d)
    near(mean, torch.cat([x.detach().ravel() for x in parts]))


class Untouchable:
    def __getattribute__(self, name):
        raise AssertionError(f"the teacher was touched: {name}")


def test_at_ce_weight_one_the_teacher_is_never_touched():
    for given in (None, Untouchable()):
        for names in (("teacher_hidden", "teacher_head"), ("ids", "probs")):
            vars(c := case()).update(dict.fromkeys(names, given))
            near(ours(c, ce_weight=1, temperature=2.0).loss, dense(c, 1, 2, torch.tensor(0.5)).loss)


@pytest.mark.parametrize("shapes, options, words", CASES["fits no loss"], ids=str)
def test_what_fits_no_loss_is_refused(shapes, options, words):
    vars(c := case()).update({name: shape and torch.ones(shape) for name, shape in shapes.items()})
    with refused(*words):
        ours(c, **HALF | options)


KINDS = {"text alone": (), "dense": (1,), "sampled": (50,)}


@one_core
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype, bound", [(torch.bfloat16, 3e-3), (torch.float32, 5e-6)])
def test_in_one_pass_errs_by_no_more_than_the_rounding_of_its_result(kind, dtype, bound):
    """Against float64 on the same logits: losses relative, gradients by their norm."""
    for t, a in itertools.product((1.0, 2.0, 4.0), (0, 0.1, 0.5, 1) if KINDS[kind] else (1,)):
        g = torch.Generator().manual_seed(3)
        s, p = (torch.randn(40, 3000, generator=g).mul(4).to(dtype) for _ in range(2))
        y, w = torch.randint(3000, (40,), generator=g), torch.rand(40, generator=g)
        w[::7] = 0
        soft, s64, q64 = (p,), s.double(), (s.double() / t).softmax(-1)
        p64 = (p.double() / t).softmax(-1)
        kl = (p64 * (p64.log() - q64.log())).sum(-1)
        if kind == "sampled":
            ids = p64.multinomial(50, replacement=True, generator=g)
            logp = p64.gather(1, ids).log()
            kl = (logp - q64.gather(1, ids).log()).mean(-1)
            p64 = torch.zeros_like(p64).scatter_add_(1, ids, torch.full_like(logp, 1 / 50))
            soft = ids, logp.float()
        hot = torch.nn.functional.one_hot(y, 3000)
        wanted = a * (s64.softmax(-1) - hot) + (1 - a) * t * (q64 - p64)
        found, ce, its_kl = losses._in_one_pass(s, y, w, a, t, soft if KINDS[kind] else ())
        wanted *= w[:, None]
        assert found.dtype == dtype and (found - wanted).norm() <= bound * wanted.norm()
        near(ce, -s64.log_softmax(-1).gather(1, y[:, None])[:, 0], 1e-6)
        if KINDS[kind]:
            near(its_kl, kl, 5e-6)


@one_core
def test_a_small_kl_is_not_lost_in_the_rounding_of_two_large_sums():
    g = torch.Generator().manual_seed(3)
    s = 4 * torch.randn(40, 3000, generator=g)
    p = s + 0.1 * torch.randn(40, 3000, generator=g)
    y, w, p64 = torch.zeros(40, dtype=torch.long), torch.ones(40), p.double().softmax(-1)
    wanted = (p64 * (p64.log() - s.double().log_softmax(-1))).sum(-1)
    near(losses._in_one_pass(s, y, w, 0.5, 1.0, (p,))[2], wanted, 1e-4)


@one_core
@pytest.mark.parametrize("kind", KINDS)
def test_in_one_pass_is_compiled_once_for_chunks_of_any_length(kind, monkeypatch):
    """By a backend that makes no machine code of the graph: that part is torch's own."""
    backend = dict(backend="aot_eager_decomp_partition")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, **backend))
    monkeypatch.setattr(losses, "_compiled", functools.cache(losses._compiled.__wrapped__))
    torch._dynamo.reset()
    counters.clear()
    for n in (64, 37, 8):
        g, found = torch.Generator().manual_seed(n), []
        s_NV, g_NV = (4 * torch.randn(n, 333, generator=g) for _ in range(2))
        y_N, w_N = torch.randint(333, (n,), generator=g), torch.rand(n, generator=g)
        draws = torch.randint(333, (n, 50), generator=g), torch.rand(n, 50, generator=g).log()
        soft = {0: (), 1: (g_NV,), 50: draws}[sum(KINDS[kind])]
        for least in (0, math.inf):
            monkeypatch.setattr(losses, "COMPILE_FROM", least)
            found.append(losses._in_one_pass(s_NV.clone(), y_N, w_N, 0.5, 2.0, soft))
        for compiled, eager in zip(*found, strict=True):
            near(compiled, eager)
    assert counters["stats"]["unique_graphs"] == 1
