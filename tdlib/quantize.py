"""Four bits: Q4_0, the format of the file that ships, and training through its rounding.

A row of a matrix is cut into blocks of 32. A block is one 16-bit scale d and 32 integers q in
−8 … 7, and stands for q · d. llama.cpp's plain rule (ggml, quantize_row_q4_0_ref) takes the d that
makes −8 · d of the value furthest from 0.

    attach(model)  ──train──▶  merge(model)      plain weights, of which each is its own Q4_0

Between the two, once switched on, the model reads rounded matrices, the embedding too. What trains
is W, straight through the rounding (Bengio et al. 2013, arXiv 1308.3432), and a factor on each
block's plain scale; or the factors alone, while the integers stay.
Legend: O rows, I columns, B blocks in a matrix.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tdlib.model import Llama

BLOCK, LARGEST = 32, 65504.0  # weights; what 16 bits hold
GAIN = 32  # a factor is 1 + GAIN · shift: some 32 times a weight, it has to move that much faster


def blocks(weight_OI: Tensor, shift_B: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """Integers (B, 32), int8, and scales (B,), 16 bits in float32; llama.cpp's without a shift."""
    if weight_OI.shape[-1] % BLOCK:
        raise ValueError(f"rows of {tuple(weight_OI.shape)} are no multiple of 32: leave 16 bits")
    x_BN = weight_OI.float().reshape(-1, BLOCK)
    furthest_B1 = x_BN.gather(1, x_BN.abs().argmax(1, keepdim=True))
    d_B = (furthest_B1[:, 0] / -8 * (1 + GAIN * shift_B)).clamp(-LARGEST, LARGEST)
    inverse_B1 = torch.where(d_B == 0, 0.0, 1 / d_B)[:, None]
    q_BN = (x_BN * inverse_B1 + 8.5).clamp(0, 15.5).to(torch.int8) - 8
    through_B = d_B - d_B.detach() if d_B.requires_grad else -0.0  # straight to the shift
    return q_BN, d_B.detach().half().float() + through_B


def dequantize(q_BN: Tensor, d_B: Tensor, shape: torch.Size) -> Tensor:
    """The matrix, float32, that a file with these blocks holds; exact, since q · d has 15 bits."""
    return (q_BN * d_B[:, None]).view(shape)


def own_blocks(weight_OI: Tensor) -> tuple[Tensor, Tensor] | None:
    """Blocks that are exactly this matrix, or None; the plain rule finds those that reach −8."""
    if len(weight_OI) > BLOCK and own_blocks(weight_OI[:BLOCK]) is None:  # most are told by a part
        return None
    (q_BN, d_B), x_BN = blocks(weight_OI), weight_OI.float().reshape(-1, BLOCK)
    for level in (8, -8, *range(7, 0, -1)):  # the largest integer, up to its sign
        d_B1 = (x_BN.abs().amax(1, keepdim=True) / level).half().float()
        q = (x_BN / d_B1).nan_to_num().round().clamp(-8, 7).to(torch.int8)
        other_B = (q_BN * d_B[:, None] != x_BN).any(1)
        q_BN[other_B], d_B[other_B] = q[other_B], d_B1[other_B, 0]
    return (q_BN, d_B) if torch.equal(q_BN * d_B[:, None], x_BN) else None


def _nearest(weight_OI: Tensor) -> Tensor:
    """The shift (B,) whose scale has the least squared error in its block."""
    x_BN, best_B, least_B = weight_OI.float().reshape(-1, BLOCK), 0.0, torch.inf
    for factor in (20, *range(16, 24), *range(-22, -15)):  # in 20ths; 20 is the plain rule
        q_BN, d_B = blocks(weight_OI, shift := (factor / 20 - 1) / GAIN)
        error_B = (x_BN - q_BN * d_B[:, None]).square().sum(1)
        best_B, least_B = torch.where(error_B < least_B, shift, best_B), error_B.clamp(max=least_B)
    return best_B


class Rounding(nn.Module):
    """W, one shift a block → q · d; W has its gradient, a shift the exact one while q stays."""

    def __init__(self, weight_OI: Tensor, scales_alone: bool):
        super().__init__()
        zeros_B = weight_OI.new_zeros(weight_OI.numel() // BLOCK)
        self.on, self.shift_B = False, _nearest(weight_OI) if scales_alone else zeros_B
        kept_BN = blocks(weight_OI, self.shift_B)[0] if scales_alone else None
        self.register_buffer("kept_BN", kept_BN)

    def forward(self, weight_OI: Tensor, shift_B: Tensor) -> Tensor:
        if not self.on:  # with a gradient of 0 to shifts: DDP waits for one of each
            return weight_OI + shift_B[:0].sum()
        q_BN, d_B = blocks(weight_OI.detach(), shift_B)
        q_BN = q_BN if self.kept_BN is None else self.kept_BN
        return dequantize(q_BN, d_B, weight_OI.shape) + (weight_OI - weight_OI.detach())

    def right_inverse(self, weight_OI: Tensor) -> tuple[Tensor, Tensor]:
        return weight_OI, self.shift_B


def attach(model: Llama, scales_alone: bool = False) -> list[str]:
    """Round every matrix, in place. Returns the names of those left: rows of no whole blocks."""
    if parts(model):
        raise ValueError("the model is rounded already: merge it first")
    matrices = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Embedding)}
    left = [name for name, m in matrices.items() if m.weight.shape[-1] % BLOCK]
    for module in (m for name, m in matrices.items() if name not in left):
        rounding = Rounding(module.weight.detach(), scales_alone)
        parametrize.register_parametrization(module, "weight", rounding, unsafe=True)
    for name, weight in model.named_parameters():
        weight.requires_grad_(not scales_alone or name.endswith("original1"))
    return left


def parts(model: nn.Module) -> list[nn.Module]:
    """The modules whose matrix is rounded."""
    return [m for m in model.modules() if parametrize.is_parametrized(m, "weight")]


@torch.no_grad()
def switch(model: nn.Module, on: bool, anew: bool = False) -> None:
    """Whether the model reads rounded matrices, or W; `anew` by scales of the least error now."""
    for pair in (module.parametrizations.weight for module in parts(model)):
        pair[0].on = on
        if anew and pair[0].kept_BN is None:
            pair.original1.copy_(_nearest(pair.original0))


def merge(model: Llama) -> Llama:
    """The rounded matrices for good, in place: plain weights, of which each is its own Q4_0."""
    switch(model, True)
    for module in parts(model):
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return model.requires_grad_(True)
