"""The distillation loss, from hidden states and heads, without ever holding all logits.

    loss = ce_weight · CE + (1 − ce_weight) · T² · KL(teacher ‖ student at temperature T)

(Hinton et al. 2015, arXiv 1503.02531; T² keeps the gradient's size when T changes.) Logits are made
chunk by chunk, and each chunk's gradient is computed on the spot, in its logits' own memory:

    d loss / d logits = w/Σw · [ ce_weight · (softmax(s) − onehot) + (1 − ce_weight) · T · (q − p) ]

p, q the teacher's and the student's probabilities at T. Backward only hands out what forward kept.
Legend: N tokens (flattened), D student width, E teacher width, V vocabulary, K draws a token.
"""

import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


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
    ce_weight: float,
    temperature: float,
    ignore_index: int = -100,
    weights_N: Tensor | None = None,
    chunk: int | None = None,
) -> Loss:
    """The loss of the module's first line, mean Σwl / Σw over targets that are not ignore_index.

    At ce_weight 1 the teacher is never touched (its arguments may be None) and `.kl` is NaN. With
    every target ignored the loss is 0 and so are its gradients. A head that needs no gradient costs
    none. ValueError: two vocabularies, a missing teacher, a weight or temperature out of range.
    """
    _check(student_hidden_ND, student_head_VD, targets_N, ce_weight, temperature)
    if ce_weight == 1:
        core, teacher = "plain", lambda part: ()
    elif teacher_hidden_NE is None or teacher_head_VE is None:
        raise ValueError(f"ce_weight {ce_weight} below 1 needs teacher_hidden_NE, teacher_head_VE")
    elif len(teacher_head_VE) != len(student_head_VD):
        raise ValueError(
            f"the teacher's vocabulary is {len(teacher_head_VE):,}, the student's "
            f"{len(student_head_VD):,}: both must come from the same tokenizer"
        )
    else:
        hidden_NE, head_VE = teacher_hidden_NE.detach(), teacher_head_VE.detach()
        core = "dense"

        def teacher(part: slice) -> tuple[Tensor]:
            counts_N1 = (targets_N[part] != ignore_index)[:, None]
            return ((torch.where(counts_N1, hidden_NE[part], 0) @ head_VE.T).float(),)

    return _run(
        student_hidden_ND, student_head_VD, targets_N, core, teacher,
        ce_weight, temperature, ignore_index, weights_N, chunk,
    )  # fmt: skip


def sampled_distillation_loss(
    student_hidden_ND: Tensor,
    student_head_VD: Tensor,
    targets_N: Tensor,
    *,
    teacher_ids_NK: Tensor | None = None,
    teacher_probs_NK: Tensor | None = None,
    ce_weight: float,
    temperature: float,
    ignore_index: int = -100,
    weights_N: Tensor | None = None,
    chunk: int | None = None,
) -> Loss:
    """The same from K independent draws of the teacher at T (repeats kept) and the teacher's
    probability of each: KL ≈ mean over draws of log p − log q, unbiased in value and gradient
    ("Sparse Logit Sampling", arXiv 2503.16870; a top-k would be biased)."""
    _check(student_hidden_ND, student_head_VD, targets_N, ce_weight, temperature)
    if ce_weight == 1:
        core, teacher = "plain", lambda part: ()
    elif teacher_ids_NK is None or teacher_probs_NK is None:
        raise ValueError(f"ce_weight {ce_weight} below 1 needs teacher_ids_NK, teacher_probs_NK")
    elif teacher_ids_NK.shape != teacher_probs_NK.shape or len(teacher_ids_NK) != len(targets_N):
        raise ValueError(
            f"teacher_ids_NK {tuple(teacher_ids_NK.shape)} and teacher_probs_NK "
            f"{tuple(teacher_probs_NK.shape)} must both be ({len(targets_N)}, K)"
        )
    else:
        core = "sampled"

        def teacher(part: slice) -> tuple[Tensor, Tensor]:
            return teacher_ids_NK[part].long(), teacher_probs_NK[part].float().log()

    return _run(
        student_hidden_ND, student_head_VD, targets_N, core, teacher,
        ce_weight, temperature, ignore_index, weights_N, chunk,
    )  # fmt: skip


def token_loss(
    hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, chunk: int | None = None
) -> Tensor:
    """Cross-entropy of each token, (N,) float32, never all logits at once; for scoring."""
    chunk = chunk or _chunk(hidden_ND.device)
    parts = [
        torch.nn.functional.cross_entropy((h @ head_VD.T).float(), y, reduction="none")
        for h, y in zip(hidden_ND.split(chunk), targets_N.split(chunk), strict=True)
    ]
    return torch.cat(parts)


def _check(hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, ce_weight: float, t: float):
    if hidden_ND.ndim != 2 or len(hidden_ND) != len(targets_N):
        raise ValueError(
            f"hidden states {tuple(hidden_ND.shape)} and targets {tuple(targets_N.shape)} "
            "must be (N, D) and (N,): flatten batch and time first"
        )
    if hidden_ND.shape[1] != head_VD.shape[1]:
        raise ValueError(f"hidden width {hidden_ND.shape[1]} is not the head's {head_VD.shape[1]}")
    if not 0 <= ce_weight <= 1:
        raise ValueError(f"ce_weight {ce_weight} is not within 0 … 1")
    if not t > 0:
        raise ValueError(f"temperature {t} is not above 0")


def _chunk(device: torch.device) -> int:
    # Each chunk streams both heads again, so small ones are slow; a GPU wants larger products.
    return 512 if device.type == "cpu" else 4096


# --- element-wise cores: logits of one chunk → ce and kl of each token, and the gradient but for
# --- its one-hot parts (target, draws), which _Head subtracts by index


def _plain_core(s_NV: Tensor, targets_N: Tensor, w_N: Tensor, a: Tensor, t: Tensor):
    log_s_NV = s_NV.log_softmax(-1)
    ce_N = -log_s_NV.gather(-1, targets_N[:, None]).squeeze(-1)
    return ce_N, torch.zeros_like(ce_N), log_s_NV.exp_().mul_((a * w_N)[:, None])


def _dense_core(s_NV: Tensor, targets_N: Tensor, w_N: Tensor, a: Tensor, t: Tensor, g_NV: Tensor):
    log_s_NV = s_NV.log_softmax(-1)
    ce_N = -log_s_NV.gather(-1, targets_N[:, None]).squeeze(-1)
    log_q_NV, log_p_NV = (s_NV / t).log_softmax(-1), (g_NV / t).log_softmax(-1)
    p_NV, ahead_NV = log_p_NV.exp(), log_q_NV.exp()
    ahead_NV -= p_NV  # q − p
    # Σ(q − p) is 0 but for rounding, and takes the normalisers' rounding out of the KL
    kl_N = (p_NV * (log_p_NV - log_q_NV)).sum(-1) + ahead_NV.sum(-1)
    gradient_NV = ahead_NV.mul_((1 - a) * t).add_(log_s_NV.exp_().mul_(a))
    return ce_N, kl_N, gradient_NV.mul_(w_N[:, None])


def _sampled_core(
    s_NV: Tensor,
    targets_N: Tensor,
    w_N: Tensor,
    a: Tensor,
    t: Tensor,
    ids_NK: Tensor,
    logp_NK: Tensor,
):
    log_s_NV = s_NV.log_softmax(-1)
    ce_N = -log_s_NV.gather(-1, targets_N[:, None]).squeeze(-1)
    log_q_NV = (s_NV / t).log_softmax(-1)
    kl_N = (logp_NK - log_q_NV.gather(-1, ids_NK)).mean(-1)
    gradient_NV = log_q_NV.exp_().mul_((1 - a) * t).add_(log_s_NV.exp_().mul_(a))
    return ce_N, kl_N, gradient_NV.mul_(w_N[:, None])


CORES = {"plain": _plain_core, "dense": _dense_core, "sampled": _sampled_core}
COMPILE_FROM = 2**23  # logits a chunk; below, compiling (tens of seconds) is never won back


@functools.cache
def _compiled(name: str) -> Callable:
    # dynamic=True: once for all shapes; a and T come as tensors, so once for all of them too
    return torch.compile(CORES[name], dynamic=True)


def _core(name: str, logits: int, device: torch.device) -> Callable:
    can = device.type == "cuda" or shutil.which("g++") is not None
    return _compiled(name) if can and logits >= COMPILE_FROM else CORES[name]


class _Head(torch.autograd.Function):
    """Forward computes loss and gradients chunk by chunk; backward scales and returns them."""

    @staticmethod
    def forward(ctx, hidden_ND, head_VD, targets_N, w_N, a, t, core, teacher, chunk):
        chunk = min(chunk, max(1, len(targets_N)))
        need_hidden, need_head = ctx.needs_input_grad[:2]
        d_hidden = torch.zeros_like(hidden_ND) if need_hidden else None
        d_head = torch.zeros_like(head_VD, dtype=torch.float32) if need_head else None
        sums = hidden_ND.new_zeros(3, dtype=torch.float64)  # loss, ce, kl
        for i in range(0, len(targets_N), chunk):
            part = slice(i, i + chunk)
            y_N, w = targets_N[part], w_N[part]
            # an ignored token may carry inf or NaN, and 0 · NaN would spoil sums and gradients
            h_ND = torch.where(w[:, None] > 0, hidden_ND[part], 0)
            known = teacher(part)
            # chosen by this chunk's own size: torch compiles anew for a last chunk of one token
            step = _core(core, len(y_N) * len(head_VD), hidden_ND.device)
            ce_N, kl_N, gradient_NV = step((h_ND @ head_VD.T).float(), y_N, w, a, t, *known)
            each = torch.stack([a * ce_N + (1 - a) * t * t * kl_N, ce_N, kl_N])
            sums += torch.where(w > 0, each * w, 0.0).double().sum(1)
            if not (need_hidden or need_head):
                continue
            gradient_NV.scatter_add_(1, y_N[:, None], (-a * w)[:, None])
            if core == "sampled":
                share_N1 = (-w * (1 - a) * t / known[0].shape[1])[:, None]
                gradient_NV.scatter_add_(1, known[0], share_N1.expand(known[0].shape))
            gradient_NV = gradient_NV.to(hidden_ND.dtype)
            if need_hidden:
                d_hidden[part] = gradient_NV @ head_VD
            if need_head:
                d_head += gradient_NV.T @ h_ND
        ctx.save_for_backward(d_hidden, d_head)
        ctx.head_dtype = head_VD.dtype
        ctx.mark_non_differentiable(sums)
        return sums[0].float(), sums

    @staticmethod
    def backward(ctx, scale, _):
        d_hidden, d_head = ctx.saved_tensors
        d_hidden = None if d_hidden is None else d_hidden * scale.to(d_hidden.dtype)
        d_head = None if d_head is None else (d_head * scale).to(ctx.head_dtype)
        return d_hidden, d_head, None, None, None, None, None, None, None


def _run(
    hidden_ND, head_VD, targets_N, core, teacher, a, t, ignore_index, weights_N, chunk
) -> Loss:
    counts_N = targets_N != ignore_index
    w_N = counts_N.float() if weights_N is None else torch.where(counts_N, weights_N.float(), 0.0)
    total = w_N.sum()
    mean_N = w_N / torch.where(total > 0, total, 1.0)
    if not torch.is_grad_enabled():  # or the gradients would be computed and thrown away
        hidden_ND, head_VD = hidden_ND.detach(), head_VD.detach()
    a, t = (hidden_ND.new_tensor(x, dtype=torch.float32) for x in (a, t))
    loss, sums = _Head.apply(
        hidden_ND, head_VD, torch.where(counts_N, targets_N, 0), mean_N, a, t, core, teacher,
        chunk or _chunk(hidden_ND.device),
    )  # fmt: skip
    ce, kl = sums[1].float(), sums[2].float()
    return Loss(loss, ce, torch.full_like(kl, torch.nan) if core == "plain" else kl, total)
