"""What the inputs of each matrix weigh ("imatrix"): an error in a weight whose input is large costs
more. llama.cpp's quantizer minimises Σ w (x − x̂)² over a block, w the mean square of the input.
Legend: T tokens of a window, I inputs of a matrix.
"""

from functools import partial

import numpy as np
import torch
from torch import nn

from tdlib import data, evaluate, weights
from tdlib.model import Llama

# 4 or 256 give nearly the same KL (bench/imatrix.py): 64 see many documents and take little time
WINDOWS = 64


@torch.no_grad()
def mean_squares(model: Llama, windows: data.Windows, count: int = WINDOWS) -> dict:
    """Hugging Face's name of a matrix → mean square of each of its inputs, (I,) float32, over
    `count` windows spread evenly. An embedding that is not the head has none: it is no factor."""
    sums_I, device = {}, str(model.head.device)

    def add(name: str, _, inputs: tuple, output=None) -> None:
        x_TI = (inputs[0] if output is None else output)[0].float()
        sums_I[name] = sums_I.get(name, 0) + x_TI.square().sum(0).cpu().double()

    linear = ((n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear))
    hooks = [m.register_forward_pre_hook(partial(add, f"model.{n}.weight")) for n, m in linear]
    head = weights.TIED[not model.config.tied]  # no module multiplies by it
    hooks.append(model.norm.register_forward_hook(partial(add, head)))
    rows = evaluate.fixed_rows(windows, count)
    try:
        for row in rows:
            model.hidden(windows.batch([row], device)[0])
    finally:
        for hook in hooks:
            hook.remove()
    tokens = len(rows) * windows.context
    return {name: (s / tokens).numpy().astype(np.float32) for name, s in sums_I.items()}
