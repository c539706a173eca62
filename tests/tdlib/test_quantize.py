"""Four bits as gguf's own code and llama.cpp write and read them."""

from ctypes import c_int64, c_void_p

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from tdbook.export import llama_cpp
from tdlib import quantize
from tdlib.model import SHAPES

WIDTHS = {shape[key] for shape in SHAPES.values() for key in ("dim", "mlp_dim")}


@pytest.mark.parametrize("rows, width", [*((11, w) for w in sorted(WIDTHS)), (51_800, 32)])
def test_blocks_are_those_of_gguf_and_llama_cpp_to_the_bit(rows, width):
    draw = torch.Generator().manual_seed(width)
    weight = torch.randn(rows, width, generator=draw)
    weight *= torch.randn(rows, 1, generator=draw).exp()  # trained rows are of unlike size
    weight[0], weight[1] = 0, weight[1] * 2e-6  # a scale that is subnormal in 16 bits
    weight[2] = torch.randint(-16, 16, (width,), generator=draw) / 2  # halfway between integers
    integers, scales = quantize.blocks(weight)
    ours = quantize.dequantize(integers, scales, weight.shape).numpy().view(np.int32)
    theirs = gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), Kind.Q4_0), Kind.Q4_0)
    assert (ours == theirs.view(np.int32)).all()
    blocks, back = llama_cpp.quantize(weight.numpy(), Kind.Q4_0), np.empty_like(theirs)
    places = c_void_p(blocks.ctypes.data), c_void_p(back.ctypes.data)
    llama_cpp.library().dequantize_row_q4_0(*places, c_int64(back.size))
    assert (ours == back.view(np.int32)).all()
