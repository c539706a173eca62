"""Four bits: Q4_0, the format of the file that ships, and training through its rounding.

A row of a matrix is cut into blocks of 32. A block is one 16-bit scale d and 32 integers q in
−8 … 7, and stands for q · d. llama.cpp's plain rule (ggml, quantize_row_q4_0_ref) takes the d that
makes −8 · d of the value furthest from 0.

    attach(model)  ──train──▶  merge(model)      plain weights, of which each is its own Q4_0

Between the two the model reads the rounded matrices wherever it would read the matrices, and what
trains is W, straight through the rounding (Bengio et al. 2013, arXiv 1308.3432), and a factor on
each block's scale; or the factors alone.
Legend: O rows, I columns, B blocks of 32 in a matrix.
"""

import torch
from torch import Tensor

BLOCK = 32
LARGEST = 65504.0  # that 16 bits hold


def blocks(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Integers (B, 32), int8, and scales (B,), float16, by the plain rule, to the bit as llama.cpp
    writes them. ValueError: a row is no multiple of 32."""
    x_BN, d_B = _plain(weight_OI)
    return _integers(x_BN, d_B), d_B.half()


def dequantize(q_BN: Tensor, d_B: Tensor, shape: torch.Size) -> Tensor:
    """The matrix, float32, that a file with these blocks holds; exact, since q · d has 15 bits."""
    return (q_BN * d_B.float()[:, None]).view(shape)


def own_blocks(weight_OI: Tensor) -> tuple[Tensor, Tensor] | None:
    """Blocks that dequantize to exactly this matrix; None where there are none. Their largest
    integer need not be −8: then the plain rule would find another scale, and round again."""
    x_BN = weight_OI.float().reshape(-1, BLOCK)
    furthest_B = x_BN.gather(1, x_BN.abs().argmax(1, keepdim=True))[:, 0]
    q_BN, d_B = torch.zeros_like(x_BN, dtype=torch.int8), torch.zeros_like(furthest_B).half()
    left_B = furthest_B != 0
    for level in (-8, *range(7, 0, -1)):  # the integer of the value furthest from 0
        d = (furthest_B / level).half()
        q = (x_BN / d.float()[:, None]).nan_to_num().round().clamp(-8, 7)
        same_B = left_B & (q * d.float()[:, None] == x_BN).all(1)
        q_BN[same_B], d_B[same_B] = q[same_B].to(torch.int8), d[same_B]
        left_B &= ~same_B
    return None if left_B.any() else (q_BN, d_B)


def _plain(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Values by block, and the plain rule's scales before they are rounded to 16 bits."""
    if weight_OI.shape[-1] % BLOCK:
        fault = f"a matrix {tuple(weight_OI.shape)} has rows of {weight_OI.shape[-1]} weights"
        raise ValueError(f"{fault}, Q4_0 needs multiples of {BLOCK}: leave it in 16 bits")
    x_BN = weight_OI.float().reshape(-1, BLOCK)
    furthest_B1 = x_BN.gather(1, x_BN.abs().argmax(1, keepdim=True))
    return x_BN, furthest_B1[:, 0] / -8


def _integers(x_BN: Tensor, d_B: Tensor) -> Tensor:
    inverse_B = torch.where(d_B == 0, 0.0, 1 / d_B)
    return (x_BN * inverse_B[:, None] + 8.5).clamp(0, 15.5).to(torch.int8) - 8
