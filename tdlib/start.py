"""A student made of its teacher: some of its layers, heads and MLP units, in fewer directions of
its residual stream, instead of random weights (Minitron, 2407.14679; subcloning, 2312.09299).

    stream: x_student ≈ x_teacher P        reads: W' ≈ W P        writes: W' ≈ Pᵀ W

P (D, E) is orthonormal and one for all layers, embedding and head: the E directions that hold most
of what the norms give out, turned as near to E of the teacher's own dimensions as they can be, so
that dimensions which are never used are simply left out. Layer by layer, every weight is then moved
by least squares from its slice towards what the teacher does on some training windows. Where
nothing is left out nothing moves: equal size gives the teacher back, bit for bit.
Legend: D teacher's width, E student's, O outputs of a weight, I its inputs, N tokens; H query
heads, G key/value heads, R query heads of one, K head width, each the student's.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from tdlib import data
from tdlib.model import Llama, LlamaConfig, RMSNorm

RIDGE = 1e-2  # pull back to the slice, as a share of the inputs' mean square


def config_for(teacher: LlamaConfig, config: LlamaConfig) -> LlamaConfig:
    """The student's shape with what its weights inherit: the teacher's RoPE, norm eps and eos."""
    inherited = ("rope_theta", "norm_eps", "eos_id")
    return replace(config, **{name: getattr(teacher, name) for name in inherited})


@torch.no_grad()
def from_teacher(
    teacher: Llama, config: LlamaConfig, windows: data.Windows, *, count: int = 64, device="cpu"
) -> Llama:
    """A student of `config`'s shape (see `config_for`) out of the teacher's weights, by what they
    do on `count` windows spread evenly. Nothing is drawn: same inputs, same bits. Both models are
    on `device`. ValueError: an axis of the student is larger than the teacher's."""
    old = teacher.config
    config = config_for(old, config)
    _check(old, config)
    rows = np.unique(np.linspace(0, len(windows) - 1, count).astype(int))
    ids_BT = windows.batch(rows, device)[0]
    with torch.random.fork_rng(devices=[]):  # every weight it draws is replaced
        student = Llama(config).to(device)
    p_DE = directions(teacher, ids_BT, config.dim)
    student.embed_tokens.weight.copy_(teacher.embed_tokens.weight @ p_DE)
    x_BTD, x_BTE = teacher.embed_tokens(ids_BT), student.embed_tokens(ids_BT)
    ropes = [(m.cos_SK[: ids_BT.shape[1]], m.sin_SK[: ids_BT.shape[1]]) for m in (teacher, student)]
    kept = kept_layers(old.layers, config.layers)
    for layer, at, after in zip(student.layers, kept, [*kept[1:], old.layers], strict=True):
        of = teacher.layers[at]
        n_BTD, n_BTE = _norm(layer.input_layernorm, of.input_layernorm, x_BTD, x_BTE, p_DE)
        a, b = of.self_attn, layer.self_attn
        y_BTI, out = _into(a.o_proj, lambda a=a, n=n_BTD: a(n, ropes[0], None))
        x_BTD = x_BTD + out
        q, k, v, o = _heads(_strength(a.o_proj, y_BTI), old, config)
        _read(b.q_proj, a.q_proj.weight[q] * math.sqrt(config.head_dim / old.head_dim),
              n_BTD, n_BTE, p_DE)  # fmt: skip
        _read(b.k_proj, a.k_proj.weight[k], n_BTD, n_BTE, p_DE)
        _read(b.v_proj, a.v_proj.weight[v], n_BTD, n_BTE, p_DE)
        y_BTI, _ = _into(b.o_proj, lambda b=b, n=n_BTE: b(n, ropes[1], None))
        x_BTE = _write(b.o_proj, a.o_proj.weight[:, o], y_BTI, x_BTE, x_BTD, p_DE)

        n_BTD, n_BTE = _norm(
            layer.post_attention_layernorm, of.post_attention_layernorm, x_BTD, x_BTE, p_DE
        )
        a, b = of.mlp, layer.mlp
        y_BTI, out = _into(a.down_proj, lambda a=a, n=n_BTD: a(n))
        x_BTD = x_BTD + out
        units = _largest(_strength(a.down_proj, y_BTI), config.mlp_dim)
        _read(b.gate_proj, a.gate_proj.weight[units], n_BTD, n_BTE, p_DE)
        _read(b.up_proj, a.up_proj.weight[units], n_BTD, n_BTE, p_DE)
        y_BTI, _ = _into(b.down_proj, lambda b=b, n=n_BTE: b(n))
        for skipped in teacher.layers[at + 1 : after]:  # what they add is asked of this MLP too
            x_BTD = skipped(x_BTD, ropes[0], None)
        x_BTE = _write(b.down_proj, a.down_proj.weight[:, units], y_BTI, x_BTE, x_BTD, p_DE)
    n_BTD, n_BTE = _norm(student.norm, teacher.norm, x_BTD, x_BTE, p_DE)
    if config.tied:
        student.embed_tokens.weight.copy_(teacher.head @ p_DE)
    else:
        _read(student.lm_head, teacher.head, n_BTD, n_BTE, p_DE)
    return student


def _check(old: LlamaConfig, new: LlamaConfig) -> None:
    for axis in ("layers", "heads", "head_dim", "kv_heads", "dim", "mlp_dim"):
        limit = old.heads if axis == "kv_heads" else getattr(old, axis)
        if getattr(new, axis) > limit:
            raise ValueError(f"the student's {axis} is {getattr(new, axis):,}, the teacher's "
                             f"{limit:,}: a start from the teacher can only be smaller, set "
                             "init: random")  # fmt: skip
    if new.vocab_size != old.vocab_size:
        raise ValueError(f"the student's vocabulary is {new.vocab_size:,}, the teacher's "
                         f"{old.vocab_size:,}: use its tokens, or set init: random")  # fmt: skip
    share, per = old.heads // old.kv_heads, new.heads // new.kv_heads
    if old.kv_heads * (share // per) < new.kv_heads:
        raise ValueError(f"{per} of the student's heads share a key, {share} of the teacher's, "
                         f"which has {old.kv_heads} keys: give the student other kv_heads, or set "
                         "init: random")  # fmt: skip


def kept_layers(layers: int, keep: int) -> list[int]:
    """Evenly, the first and the last among them."""
    return np.linspace(0, layers - 1, keep).round().astype(int).tolist()


def directions(teacher: Llama, ids_BT: Tensor, dim: int) -> Tensor:
    """P (D, E): the principal directions of all norms' outputs and of the head's rows, each of
    these with the same weight; turned, by a rotation among themselves, as near as possible to the E
    dimensions that lie most within them (orthogonal Procrustes)."""
    head_VD = teacher.head.double()
    if dim == head_VD.shape[1]:
        return torch.eye(dim, device=head_VD.device)
    moment_DD = head_VD.T @ head_VD / head_VD.pow(2).sum()

    def add(_: nn.Module, __: tuple, out_BTD: Tensor) -> None:
        x_ND = out_BTD.flatten(0, 1).double()
        moment_DD.add_(x_ND.T @ x_ND / x_ND.pow(2).sum())

    norms = [m for m in teacher.modules() if isinstance(m, RMSNorm)]
    hooks = [norm.register_forward_hook(add) for norm in norms]
    teacher.hidden(ids_BT)
    for hook in hooks:
        hook.remove()
    top_DE = torch.linalg.eigh(moment_DD)[1][:, -dim:]
    dims_E = _largest(top_DE.pow(2).sum(1), dim)
    left, _, right = torch.linalg.svd(top_DE[dims_E])
    return (top_DE @ (left @ right).T).float()


def _largest(strength: Tensor, count: int) -> Tensor:
    """Where the largest are, ascending; of equals the first."""
    return strength.argsort(descending=True, stable=True)[:count].sort().values


def _strength(linear: nn.Linear, y_BTI: Tensor) -> Tensor:
    """Of each input of a residual output: the mean square of what it adds to the stream."""
    return y_BTI.flatten(0, 1).double().pow(2).mean(0) * linear.weight.double().pow(2).sum(0)


def _heads(strength_I: Tensor, old: LlamaConfig, new: LlamaConfig) -> list[Tensor]:
    """Rows of Q, K, V and columns of O that the student keeps. Query heads are chosen in groups as
    large as the student's, of those that share a key. RoPE's pairs are those of the frequencies
    the student has; the dimensions of V are the strongest."""
    width, share, per = old.head_dim, old.heads // old.kv_heads, new.heads // new.kv_heads
    strength_GSK = strength_I.view(old.kv_heads, share, width)
    order_GS = strength_GSK.sum(-1).argsort(dim=1, descending=True, stable=True)
    order_GS = order_GS + share * torch.arange(old.kv_heads, device=order_GS.device)[:, None]
    group_XR = order_GS[:, : share // per * per].reshape(-1, per).sort(dim=1).values
    group_XR = group_XR[group_XR[:, 0].argsort()]
    strength_XK = strength_I.view(old.heads, width)[group_XR].sum(1)
    chosen_G = _largest(strength_XK.sum(1), new.kv_heads)
    heads_GR, strength_GK = group_XR[chosen_G], strength_XK[chosen_G]

    pairs = (torch.arange(new.head_dim // 2) * (width / new.head_dim)).round().long()
    turned_K = torch.cat([pairs, pairs + width // 2]).to(strength_I.device)
    value_GK = torch.stack([_largest(s, new.head_dim) for s in strength_GK])
    first_GR1, key_G1 = heads_GR[..., None] * width, heads_GR[:, :1] // share * width
    rows = [first_GR1 + turned_K, key_G1 + turned_K, key_G1 + value_GK]
    return [x.flatten() for x in (*rows, first_GR1 + value_GK[:, None])]


def _into(linear: nn.Linear, run: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """What a linear is given while something runs, and what that returns."""
    given = []
    hook = linear.register_forward_pre_hook(lambda _, x: given.append(x[0]))
    out = run()
    hook.remove()
    return given[0], out


def _norm(new: RMSNorm, old: RMSNorm, x_BTD: Tensor, x_BTE: Tensor, p_DE: Tensor):
    """Sets the scales of a norm, which sees E dimensions and their mean square instead of D;
    returns what both norms give out."""
    new.weight.fill_(1.0)
    plain_NE = new(x_BTE).flatten(0, 1)
    new.weight.copy_(old.weight @ p_DE.square())
    n_BTD = old(x_BTD)
    missing_NE = (n_BTD @ p_DE - new(x_BTE)).flatten(0, 1)
    new.weight += (plain_NE * missing_NE).sum(0) / plain_NE.square().sum(0).clamp_min(1e-12)
    return n_BTD, new(x_BTE)


def _read(linear: nn.Linear, weight_OD: Tensor, n_BTD: Tensor, n_BTE: Tensor, p_DE: Tensor) -> None:
    old_ND, new_NE = n_BTD.flatten(0, 1).double(), n_BTE.flatten(0, 1).double()
    linear.weight.copy_(weight_OD @ p_DE)
    missing_OE = weight_OD.double() @ (old_ND.T @ new_NE)  # of all tokens, against each input
    missing_OE -= linear.weight.double() @ (new_NE.T @ new_NE)
    _move(linear, new_NE, missing_OE)


def _write(linear: nn.Linear, weight_DI: Tensor, y_BTI: Tensor, x_BTE, x_BTD, p_DE) -> Tensor:
    """Returns the student's stream with what the linear adds to it."""
    linear.weight.copy_(p_DE.T @ weight_DI)
    missing_NE = (x_BTD @ p_DE - (x_BTE + linear(y_BTI))).flatten(0, 1).double()
    y_NI = y_BTI.flatten(0, 1).double()
    _move(linear, y_NI, missing_NE.T @ y_NI)
    return x_BTE + linear(y_BTI)


def _move(linear: nn.Linear, x_NI: Tensor, missing_OI: Tensor) -> None:
    """Ridge regression of what is missing on the inputs: a change of 0 where nothing is."""
    gram_II = x_NI.T @ x_NI
    gram_II.diagonal().add_(RIDGE * gram_II.diagonal().mean().clamp_min(1e-12))
    linear.weight += torch.linalg.solve(gram_II, missing_OI.T).T
