"""The distillation loss, from hidden states and heads, without ever holding all logits.

    loss = ce_weight · CE + (1 − ce_weight) · T² · KL(teacher ‖ student at temperature T)

(Hinton et al. 2015, arXiv 1503.02531; T² keeps the gradient's size when T changes.) Logits are made
chunk by chunk, and each chunk's gradient is computed at once and takes the place of its logits:

    d loss / d logits = w/Σw · [ ce_weight · (softmax(s) − onehot) + (1 − ce_weight) · T · (q − p) ]

p, q the teacher's and the student's probabilities at T. Backward only hands out what forward kept.
Legend: N tokens (flattened), D student width, E teacher width, V vocabulary, K draws a token.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

COMPILE_FROM = 2**23  # logits a chunk; below, compiling (tens of seconds) is never won back
BLOCK = 2**18  # logits a thread at a time, so that a core's passes stay within a CPU's cache


@dataclass(frozen=True)
class Loss:
    loss: Tensor  # differentiable scalar, nats per token
    ce: Tensor  # mean cross-entropy, detached
    kl: Tensor  # mean KL(teacher ‖ student) at T, without the factor T²; NaN without a teacher
    count: Tensor  # Σw over the targets that count: micro-batches combine as Σ loss·count / Σ count


def distillation_loss(
    student_hidden_ND: Tensor,
    student_head_VD: Tensor,
    targets_N: Tensor,
    *,
    teacher_hidden_NE: Tensor | None = None,
    teacher_head_VE: Tensor | None = None,
    teacher_ids_NK: Tensor | None = None,
    teacher_probs_NK: Tensor | None = None,
    ce_weight: float,
    temperature: float,
    ignore_index: int = -100,
    weights_N: Tensor | None = None,
    chunk: int | None = None,
) -> Loss:
    """The loss above: the mean Σwl / Σw over targets that are not ignore_index.

    The teacher is given whole, by its hidden states and its head, or by K independent draws at T
    (repeats kept) with its probability of each: KL ≈ mean over draws of log p − log q, unbiased in
    value and gradient ("Sparse Logit Sampling", arXiv 2503.16870; a top-k would be biased). At
    ce_weight 1 it is never touched (its arguments may be None) and `.kl` is NaN. With every target
    ignored the loss is 0 and so are its gradients. A head that needs no gradient costs none.
    ValueError: two vocabularies, a missing teacher, a weight or temperature out of range.
    """
    student = student_hidden_ND, student_head_VD, targets_N
    whole, drawn = (teacher_hidden_NE, teacher_head_VE), (teacher_ids_NK, teacher_probs_NK)
    teacher = None if ce_weight == 1 else _teacher(ce_weight, *student[1:], *whole, *drawn)
    return _loss(*student, teacher, ce_weight, temperature, ignore_index, weights_N, chunk)


sampled_distillation_loss = distillation_loss  # its name where the teacher is given by draws


def token_loss(hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, chunk: int = 0) -> Tensor:
    """Cross-entropy of each token, (N,) float32, never all logits at once; for scoring."""
    chunk = chunk or default_chunk(hidden_ND.device.type)
    pairs = zip(hidden_ND.split(chunk), targets_N.split(chunk), strict=True)
    parts = [cross_entropy((h @ head_VD.T).float(), y, reduction="none") for h, y in pairs]
    return torch.cat(parts)


def default_chunk(device: str) -> int:
    # Each chunk streams both heads again, so small ones are slow; a GPU wants larger products.
    return 512 if device == "cpu" else 4096


def _teacher(ce_weight, student_head_VD, targets_N, hidden_NE, head_VE, ids_NK, probs_NK):
    """A function that gives what a core takes of the teacher, for a part of the tokens."""

    head = functools.cache(lambda dtype: head_VE.detach().to(dtype))  # once, not for every chunk

    def logits(part: slice, w_N: Tensor, dtype: torch.dtype) -> tuple[Tensor]:
        h_NE = torch.where(w_N[:, None] > 0, hidden_NE.detach()[part], 0)
        return (h_NE.to(dtype) @ head(dtype).T,)

    def draws(part: slice, w_N: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return ids_NK[part].long(), probs_NK[part].float().log()

    if hidden_NE is not None and head_VE is not None:
        if (v := len(head_VE)) != len(student_head_VD):
            fault = f"the teacher's vocabulary is {v:,}, the student's {len(student_head_VD):,}"
            raise ValueError(f"{fault}: both must come from the same tokenizer")
        return logits
    if ids_NK is None or probs_NK is None:
        needed = "teacher_hidden_NE and teacher_head_VE, or teacher_ids_NK and teacher_probs_NK"
        raise ValueError(f"ce_weight {ce_weight} below 1 needs {needed}")
    if ids_NK.shape != probs_NK.shape or len(ids_NK) != len(targets_N):
        fault = f"teacher_ids_NK {tuple(ids_NK.shape)}, teacher_probs_NK {tuple(probs_NK.shape)}"
        raise ValueError(f"{fault}: both must be ({len(targets_N)}, K)")
    return draws


def _loss(
    hidden_ND, head_VD, targets_N, teacher, ce_weight, temperature, ignore_index, weights_N, chunk
) -> Loss:
    if hidden_ND.ndim != 2 or len(hidden_ND) != len(targets_N):
        fault = f"hidden states {tuple(hidden_ND.shape)} and targets {tuple(targets_N.shape)}"
        raise ValueError(f"{fault} must be (N, D) and (N,): flatten batch and time first")
    if not 0 <= ce_weight <= 1:
        raise ValueError(f"ce_weight {ce_weight} is not within 0 … 1")
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} is not above 0")
    w_N = torch.ones_like(targets_N, dtype=torch.float32) if weights_N is None else weights_N
    w_N = torch.where(targets_N != ignore_index, w_N.float(), 0.0)
    total = w_N.sum()
    mean_N = w_N / torch.where(total > 0, total, 1.0)
    if not torch.is_grad_enabled():  # or the gradients would be computed and thrown away
        hidden_ND, head_VD = hidden_ND.detach(), head_VD.detach()
    targets_N = torch.where(w_N > 0, targets_N, 0)  # an ignored one is no id
    device = hidden_ND.device.type
    # matrix products are made in autocast's type where it is on, all else in float32
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else head_VD.dtype
    how = (float(ce_weight), float(temperature), teacher, chunk or default_chunk(device), dtype)
    with torch.autocast(device, enabled=False):
        loss, sums = _Head.apply(hidden_ND, head_VD, targets_N, mean_N, *how)
    ce, kl = sums[1].float(), sums[2].float()
    return Loss(loss, ce, kl if teacher else torch.full_like(kl, torch.nan), total)


class _Head(torch.autograd.Function):
    """Forward computes loss and gradients chunk by chunk; backward scales and returns them."""

    @staticmethod
    def forward(ctx, hidden_ND, head_VD, targets_N, w_N, ce_weight, t, teacher, chunk, dtype):
        need_hidden, need_head = ctx.needs_input_grad[:2]
        ctx.dtypes = hidden_ND.dtype, head_VD.dtype
        hidden_ND, head_VD = hidden_ND.to(dtype), head_VD.to(dtype)
        d_hidden = torch.zeros_like(hidden_ND) if need_hidden else None
        d_head = torch.zeros_like(head_VD, dtype=torch.float32) if need_head else None
        sums = hidden_ND.new_zeros(3, dtype=torch.float64)  # loss, ce, kl
        for i in range(0, len(targets_N), chunk):
            part = slice(i, i + chunk)
            y_N, w = targets_N[part], w_N[part]
            # an ignored token may carry inf or NaN, and 0 · NaN would spoil sums and gradients
            h_ND = torch.where(w[:, None] > 0, hidden_ND[part], 0)
            soft = teacher(part, w, dtype) if teacher else ()
            gradient_NV = h_ND @ head_VD.T  # the logits, until the core has run
            run = _in_one_pass if gradient_NV.is_cuda else _in_blocks
            gradient_NV, ce_N, kl_N = run(gradient_NV, y_N, w, ce_weight, t, soft)
            each = torch.stack([ce_weight * ce_N + (1 - ce_weight) * t * t * kl_N, ce_N, kl_N])
            sums += torch.where(w > 0, each * w, 0.0).double().sum(1)
            if need_hidden:
                d_hidden[part] = gradient_NV @ head_VD
            if need_head and dtype == torch.float32:
                d_head.addmm_(gradient_NV.T, h_ND)  # no second array of the head's size
            elif need_head:
                d_head += gradient_NV.T @ h_ND
            del soft, gradient_NV  # or the next chunk would be made beside this one
        ctx.save_for_backward(d_hidden, d_head)
        ctx.mark_non_differentiable(sums)
        return sums[0].float(), sums

    @staticmethod
    def backward(ctx, scale, _):
        whole = not scale.is_cuda and float(scale) == 1  # no copy; looking makes CUDA wait
        gradients = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        scaled = (None if d is None else (d if whole else d * scale).to(t) for d, t in gradients)
        return *scaled, *[None] * 7


def _in_blocks(s_NV: Tensor, y_N: Tensor, w_N: Tensor, ce_weight: float, t: float, teacher: tuple):
    """Gradient, cross-entropy and KL of a chunk by _core, for a CPU: blocks that fit its cache take
    a third of the time of a compiled core, which passes through memory."""
    dtype, s_NV = s_NV.dtype, s_NV.float()
    teacher = teacher if len(teacher) == 2 else tuple(g_NV.float() for g_NV in teacher)
    rows = max(1, BLOCK * torch.get_num_threads() // s_NV.shape[1])
    blocks = zip(*(x.split(rows) for x in (s_NV, y_N, w_N, *teacher)), strict=True)
    each = (_core(s, y, w, ce_weight, t, *more) for s, y, w, *more in blocks)
    ce_N, kl_N = map(torch.cat, zip(*each, strict=True))
    _add(s_NV, y_N[:, None], (-ce_weight * w_N)[:, None])
    if len(teacher) == 2:
        share_N1 = (-w_N * (1 - ce_weight) * t / teacher[0].shape[1])[:, None]
        _add(s_NV, teacher[0], share_N1.expand(teacher[0].shape))
    return s_NV.to(dtype), ce_N, kl_N


def _in_one_pass(s_NV: Tensor, y_N: Tensor, w_N: Tensor, ce_weight, t, teacher: tuple):
    """The same for a GPU, whose memory is what the core waits for: logits come and go in the type
    of the products. One compilation serves chunks of any length; the rest is known to it."""
    if len(teacher) == 2:  # how often each id was drawn, exact in 16 bits up to 2,048 draws
        ids_NK, logp_NK = teacher
        counts_NV = torch.zeros_like(s_NV, dtype=torch.float16)
        _add(counts_NV, ids_NK, counts_NV.new_ones(()).expand(ids_NK.shape))
        teacher = counts_NV, ids_NK, logp_NK
    if s_NV.numel() < COMPILE_FROM:
        return _fused(s_NV, y_N, w_N, ce_weight, t, *teacher)
    for x in (s_NV, y_N, w_N, *teacher):
        torch._dynamo.maybe_mark_dynamic(x, 0)
    return _compiled()(s_NV, y_N, w_N, ce_weight, t, *teacher)


_compiled = functools.cache(lambda: compiled(_fused))


def compiled(function: Callable) -> Callable:
    """torch.compile, with room for the shapes of a whole night: by default a function's ninth would
    run uncompiled without a word."""
    torch._dynamo.config.recompile_limit = 256
    return torch.compile(function)


def _fused(
    s_NV: Tensor, y_N: Tensor, w_N: Tensor, ce_weight: float, t: float, *teacher: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Written so that Inductor makes one kernel with two loops over the vocabulary, 10 bytes a
    logit in bfloat16: one loop for all Σ exp, one for the rest (a gradient that overwrites the
    logits takes a third). `teacher`: empty, its logits, or counts, ids and log p of draws."""
    s = s_NV.float()
    logz = _log_sum_exp(s)
    ce_N = (logz - s.gather(-1, y_N[:, None])).squeeze(-1)
    hot = torch.arange(s.shape[1], device=s.device)[None] == y_N[:, None]
    gradient = (ce_weight * w_N)[:, None] * ((s - logz).exp() - torch.where(hot, 1.0, 0.0))
    if not teacher:
        return gradient.to(s_NV.dtype), ce_N, torch.zeros_like(ce_N)
    logz_t = logz if t == 1 else _log_sum_exp(s / t)
    q = (s / t - logz_t).exp()
    if len(teacher) == 1:
        g = teacher[0].float()
        teacher_logz = _log_sum_exp(g / t)
        p = (g / t - teacher_logz).exp()
        # Σ(q − p) is 0 but for rounding, as in _core
        kl_N = (p * ((g - s) / t - (teacher_logz - logz_t)) + (q - p)).sum(-1)
    else:
        counts, ids_NK, logp_NK = teacher
        p = counts.float() / ids_NK.shape[1]
        kl_N = (logp_NK - s.gather(-1, ids_NK) / t + logz_t).mean(-1)
    gradient = gradient + ((1 - ce_weight) * t * w_N)[:, None] * (q - p)
    return gradient.to(s_NV.dtype), ce_N, kl_N


def _log_sum_exp(x_NV: Tensor) -> Tensor:
    largest_N1 = x_NV.amax(-1, keepdim=True)
    return largest_N1 + (x_NV - largest_N1).exp().sum(-1, keepdim=True).log()


def _core(s_NV: Tensor, y_N: Tensor, w_N: Tensor, ce_weight, t, *teacher) -> tuple[Tensor, Tensor]:
    """Cross-entropy and KL of each token of one chunk. Overwrites the logits by their gradient
    without its one-hot parts (target, draws), which _Head subtracts later. `teacher`: empty, its
    logits (overwritten too), or its draws and their log-probabilities; `t` is the temperature."""
    p1_NV, logz_N1 = _softmax(s_NV)  # at temperature 1, for the cross-entropy
    ce_N = (logz_N1 - s_NV.gather(-1, y_N[:, None])).squeeze(-1)
    if not teacher:
        torch.mul(p1_NV, (ce_weight * w_N)[:, None], out=s_NV)
        return ce_N, torch.zeros_like(ce_N)
    q_NV, logz_N1 = _softmax(s_NV.div_(t))
    share_N1 = ((1 - ce_weight) * t * w_N)[:, None]
    if len(teacher) == 1:
        (g_NV,) = teacher
        p_NV, teacher_logz_N1 = _softmax(g_NV.div_(t))
        g_NV.sub_(s_NV).sub_(teacher_logz_N1 - logz_N1)  # log p − log q
        kl_N = (p_NV * g_NV).sum(-1)
        torch.sub(q_NV, p_NV, out=g_NV)
        # Σ(q − p) is 0 but for rounding; added, it cancels the rounding of both log Σ exp in the KL
        kl_N += g_NV.sum(-1)
        torch.mul(g_NV, share_N1, out=s_NV)
    else:
        ids_NK, logp_NK = teacher
        kl_N = (logp_NK - s_NV.gather(-1, ids_NK) + logz_N1).mean(-1)
        torch.mul(q_NV, share_N1, out=s_NV)
    s_NV.addcmul_(p1_NV, (ce_weight * w_N)[:, None])
    return ce_N, kl_N


def _softmax(s_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities, and log Σ exp (N, 1) = largest logit − log of the largest probability."""
    p_NV = s_NV.softmax(-1)
    return p_NV, s_NV.amax(-1, keepdim=True) - p_NV.amax(-1, keepdim=True).log()


def _add(gradient_NV: Tensor, ids_NK: Tensor, values_NK: Tensor) -> None:
    """gradient[n, ids[n, k]] += values[n, k]. Flattened: only so is it deterministic on CUDA."""
    first_N1 = torch.arange(len(ids_NK), device=ids_NK.device)[:, None] * gradient_NV.shape[1]
    gradient_NV.view(-1).scatter_add_(0, (first_N1 + ids_NK).flatten(), values_NK.flatten())
