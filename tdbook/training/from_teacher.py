"""A student made of its teacher instead of random weights: some of its layers, heads and MLP units,
in fewer directions of its residual stream (after Minitron, 2407.14679, and 2312.09299).

    stream: x_student ≈ x_teacher P     reading weights: W P     writing weights: Pᵀ W, then moved

P (D, E) is orthonormal and one for all layers, embedding and head: the E directions that hold most
of what the norms give out, turned as near to E of the teacher's own dimensions as they can be.
Layer by layer, norm scales and writing weights are then moved by least squares towards what the
teacher's stream is on some training windows. Where nothing is left out nothing moves: equal size
gives the teacher back, bit for bit.
Legend: B windows, T tokens, N = B·T; D teacher's width, E student's; I inputs of a weight; H query
heads, G key/value heads, R query heads of one, K head width, X groups to choose from.
"""

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from tdlib.model import Llama, LlamaConfig, RMSNorm

RIDGE = 1e-2  # pull back to where a weight was, as a share of its inputs' mean square
RULE = "a start from the teacher has its vocabulary and is no larger, set init: random"
SMALLER = ("layers", "heads", "head_dim", "dim", "mlp_dim")  # along these, or equal


@torch.no_grad()
def from_teacher(teacher: Llama, config: LlamaConfig, windows, *, device: str = "cpu") -> Llama:
    """A student of `config`'s shape, with the teacher's RoPE, norms, norm eps and eos, out of its
    weights, by what they do on windows of some 8,000 to 16,000 tokens, spread evenly. Nothing is
    drawn: same inputs, same bits. ValueError: larger than the teacher, of another vocabulary, or,
    with QK norms, of another head width."""
    old = teacher.config
    own = {name: getattr(old, name) for name in ("rope_theta", "norm_eps", "eos_id", "qk_norm")}
    config = replace(config, **own)
    _check(old, config)
    count = max(8, 2**13 // windows.context)
    rows = np.unique(np.linspace(0, len(windows) - 1, count).astype(int))
    ids_BT = windows.batch(rows, device)[0]
    with torch.random.fork_rng(devices=[]):  # what it draws is replaced, each weight of it
        student = Llama(config).to(device)
    moment_DD, strength = look(teacher, ids_BT)
    p_DE = directions(moment_DD, config.dim)
    # where one matrix must serve for two, the head's: as an embedding it does less harm
    table_VD = teacher.head if config.tied else teacher.embed_tokens.weight
    student.embed_tokens.weight.copy_(table_VD @ p_DE)
    if not config.tied:
        student.lm_head.weight.copy_(teacher.head @ p_DE)
    kept = np.linspace(0, old.layers - 1, config.layers).round().astype(int).tolist()
    for new, layer in zip(student.layers, (teacher.layers[i] for i in kept), strict=True):
        was, part = layer.self_attn, new.self_attn
        q, k, v, o = _heads(strength[was.o_proj], old, config)
        scale = math.sqrt(config.head_dim / old.head_dim)  # scores are divided by √K
        part.q_proj.weight.copy_(was.q_proj.weight[q] @ p_DE * scale)
        part.k_proj.weight.copy_(was.k_proj.weight[k] @ p_DE)
        part.v_proj.weight.copy_(was.v_proj.weight[v] @ p_DE)
        part.o_proj.weight.copy_(p_DE.T @ was.o_proj.weight[:, o])
        if old.qk_norm:  # over a whole head: it stays as it is
            part.q_norm.load_state_dict(was.q_norm.state_dict())
            part.k_norm.load_state_dict(was.k_norm.state_dict())
        was, part = layer.mlp, new.mlp
        units = _largest(strength[was.down_proj], config.mlp_dim)
        part.gate_proj.weight.copy_(was.gate_proj.weight[units] @ p_DE)
        part.up_proj.weight.copy_(was.up_proj.weight[units] @ p_DE)
        part.down_proj.weight.copy_(p_DE.T @ was.down_proj.weight[:, units])
    _move(student, teacher, kept, ids_BT, p_DE)
    return student


def _check(old: LlamaConfig, new: LlamaConfig) -> None:
    sizes = {axis: (getattr(new, axis), getattr(old, axis)) for axis in (*SMALLER, "vocab_size")}
    per = new.heads // new.kv_heads
    groups = old.kv_heads * (old.heads // old.kv_heads // per)
    sizes[f"number of {per} heads that share a key"] = new.kv_heads, groups
    for axis, (ours, theirs) in sizes.items():
        if ours > theirs or (ours < theirs and axis == "vocab_size"):
            raise ValueError(f"the student's {axis} is {ours:,}, the teacher's {theirs:,}: {RULE}")
    if old.qk_norm and new.head_dim != old.head_dim:
        fault = f"the student's head_dim is {new.head_dim}, the teacher's {old.head_dim}, with QK"
        raise ValueError(f"{fault} norms over a whole head: give head_dim, or set init: random")


def look(teacher: Llama, ids_BT: Tensor) -> tuple[Tensor, dict[nn.Linear, Tensor]]:
    """Second moments (D, D) of all that the norms give out and of the head's rows, each with the
    same weight; and of each input of a writing weight, the mean square of what it adds."""
    head_VD, strength, hooks = teacher.head.double(), {}, []
    moment_DD = head_VD.T @ head_VD / head_VD.square().sum()

    def add(_: nn.Module, __: tuple, out_BTD: Tensor) -> None:
        x_ND = out_BTD.flatten(0, 1).double()
        moment_DD.add_(x_ND.T @ x_ND / x_ND.square().sum().clamp_min(1e-12))

    def weigh(linear: nn.Linear, given: tuple) -> None:
        written_I = linear.weight.double().square().sum(0)
        strength[linear] = given[0].flatten(0, 1).double().square().mean(0) * written_I

    for name, module in teacher.named_modules():
        if isinstance(module, RMSNorm) and not name.endswith(("q_norm", "k_norm")):
            hooks.append(module.register_forward_hook(add))
        elif name.endswith(("o_proj", "down_proj")):
            hooks.append(module.register_forward_pre_hook(weigh))
    teacher.hidden(ids_BT)
    for hook in hooks:
        hook.remove()
    return moment_DD, strength


def directions(moment_DD: Tensor, dim: int) -> Tensor:
    """P (D, E): the principal directions, turned by a rotation among themselves as near as can be
    to the E dimensions that lie most within them (orthogonal Procrustes)."""
    if dim == len(moment_DD):
        return torch.eye(dim, device=moment_DD.device)
    top_DE = torch.linalg.eigh(moment_DD)[1][:, -dim:]  # ascending: the last are the largest
    left, _, right = torch.linalg.svd(top_DE[_largest(top_DE.square().sum(1), dim)])
    return (top_DE @ (left @ right).T).float()


def _largest(strength: Tensor, count: int) -> Tensor:
    """Where the largest are, ascending; of equals the first."""
    return strength.argsort(descending=True, stable=True)[:count].sort().values


def _heads(strength_I: Tensor, old: LlamaConfig, new: LlamaConfig) -> list[Tensor]:
    """Rows of Q, K, V and columns of O that the student keeps: the strongest groups of query heads,
    as large as the student's, among those that share a key; of RoPE's pairs those that turn at
    the student's frequencies; of V the strongest dimensions."""
    width, share, per = old.head_dim, old.heads // old.kv_heads, new.heads // new.kv_heads
    strength_HK = strength_I.view(old.heads, width)
    order_GR = strength_HK.sum(1).view(-1, share).argsort(dim=1, descending=True, stable=True)
    order_GR = order_GR + torch.arange(0, old.heads, share, device=order_GR.device)[:, None]
    groups_XR = order_GR[:, : share // per * per].reshape(-1, per).sort(dim=1).values
    heads_GR = groups_XR[_largest(strength_HK[groups_XR].sum((1, 2)), new.kv_heads)]
    value_GK = torch.stack([_largest(s, new.head_dim) for s in strength_HK[heads_GR].sum(1)])
    pairs = (torch.arange(new.head_dim // 2) * (width / new.head_dim)).round().long()
    turned_K = torch.cat([pairs, pairs + width // 2]).to(strength_I.device)
    query_GR1, key_G1 = heads_GR[..., None] * width, heads_GR[:, :1] // share * width
    rows = query_GR1 + turned_K, key_G1 + turned_K, key_G1 + value_GK
    return [x.flatten() for x in (*rows, query_GR1 + value_GK[:, None])]


def _move(student: Llama, teacher: Llama, kept: list[int], ids_BT: Tensor, p_DE: Tensor) -> None:
    """Both models side by side, layer by layer: the student's stream moved towards x_BTD P."""
    x_BTD, x_BTE = teacher.embed_tokens(ids_BT), student.embed_tokens(ids_BT)
    t = ids_BT.shape[1]
    old_rope, rope = ((m.cos_SK[:t], m.sin_SK[:t]) for m in (teacher, student))
    for new, at, after in zip(student.layers, kept, [*kept[1:], len(teacher.layers)], strict=True):
        old, norm = teacher.layers[at], new.input_layernorm
        n_BTD, n_BTE = _norm(old.input_layernorm, norm, x_BTD, x_BTE, p_DE)
        x_BTD = x_BTD + old.self_attn(n_BTD, old_rope, None)
        part = new.self_attn
        x_BTE = _write(part, part.o_proj, (n_BTE, rope, None), x_BTE, x_BTD @ p_DE)
        norm = new.post_attention_layernorm
        n_BTD, n_BTE = _norm(old.post_attention_layernorm, norm, x_BTD, x_BTE, p_DE)
        x_BTD = x_BTD + old.mlp(n_BTD)
        for skipped in teacher.layers[at + 1 : after]:  # the MLP is to add what they do as well
            x_BTD = skipped(x_BTD, old_rope, None)
        x_BTE = _write(new.mlp, new.mlp.down_proj, (n_BTE,), x_BTE, x_BTD @ p_DE)
    _norm(teacher.norm, student.norm, x_BTD, x_BTE, p_DE)


def _norm(old: RMSNorm, new: RMSNorm, x_BTD, x_BTE, p_DE) -> tuple[Tensor, Tensor]:
    """Sets a norm's scales, for it sees the mean square of E dimensions; what both give out."""
    new.weight.fill_(1.0)
    plain_NE = new(x_BTE).flatten(0, 1)
    new.weight.copy_(old.weight @ p_DE.square())
    n_BTD = old(x_BTD)
    lacks_NE = (n_BTD @ p_DE - new(x_BTE)).flatten(0, 1)
    new.weight += (plain_NE * lacks_NE).sum(0) / plain_NE.square().sum(0).clamp_min(1e-12)
    return n_BTD, new(x_BTE)


def _write(part: nn.Module, linear: nn.Linear, given: tuple, x_BTE, wanted_BTE) -> Tensor:
    """Moves the writing weight of a part by ridge regression of what the stream lacks on the
    weight's inputs, by 0 where it lacks nothing; the stream with what the part adds."""
    seen = []
    with linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        lacks_NE = (wanted_BTE - (x_BTE + part(*given))).flatten(0, 1).double()
    y_NI = seen[0].flatten(0, 1).double()
    gram_II = y_NI.T @ y_NI
    gram_II.diagonal().add_(RIDGE * gram_II.diagonal().mean().clamp_min(1e-12))
    linear.weight += torch.linalg.solve(gram_II, y_NI.T @ lacks_NE).T
    return x_BTE + linear(seen[0])
