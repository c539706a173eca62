"""What a training costs before it is started: arithmetic and memory, from the shapes alone.

FLOP count matrix products (a multiply and an add are two) and attention over half the context, as
it is causal; what is left out (norms, softmax, the optimiser) is a few per cent.
Legend: B windows at once, T tokens of a window, P weights, V vocabulary, D width, F MLP width.
"""

import time
from dataclasses import replace

import torch
from torch import Tensor

from tdlib import losses
from tdlib.model import Llama, LlamaConfig


def forward_flop(config: LlamaConfig, context: int) -> float:
    """A token, forward, the head included: 2 P (embedding once) and 2 T · heads · K a layer."""
    head = config.embedding_parameters
    products = config.parameters - (0 if config.tied else head)
    return 2 * products + 2 * context * config.heads * config.head_dim * config.layers


def step_flop(
    student: LlamaConfig, teacher: LlamaConfig | None, context: int, frozen: bool = False
) -> float:
    """A token of training: forward, twice that backward (once where the base is frozen and only a
    small adapter trains), and the teacher's forward."""
    asked = forward_flop(teacher, context) if teacher else 0.0
    return (2 if frozen else 3) * forward_flop(student, context) + asked


def peak_flop(device: str, seconds: float = 0.1) -> float:
    """FLOP a second of a large matrix product on this machine now: float32 on a CPU with torch's
    threads, bfloat16 on CUDA. Measured, best of a few."""
    cuda = "cuda" in device
    n = 8192 if cuda else 1536
    a, b = (torch.randn(n, n, device=device).to(torch.bfloat16 if cuda else torch.float32)
            for _ in range(2))  # fmt: skip
    best, end = 0.0, time.monotonic() + seconds
    while not best or time.monotonic() < end:
        began = time.perf_counter()
        a @ b
        if cuda:
            torch.cuda.synchronize()
        best = max(best, 2 * n**3 / (time.perf_counter() - began))
    return best


def activation_bytes(config: LlamaConfig, windows: int, context: int, device: str = "cpu") -> int:
    """What one forward keeps for its backward. Counted on models of one and two layers, since
    attention keeps other things on other devices."""
    one, two = (_kept(replace(config, vocab_size=8, layers=n), windows, context, device)
                for n in (1, 2))  # fmt: skip
    return one + (config.layers - 1) * (two - one)


def _kept(config: LlamaConfig, windows: int, context: int, device: str) -> int:
    model = Llama(config).to(device)
    ids_BT = torch.zeros(windows, context, dtype=torch.long, device=device)
    own = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}
    kept = {}

    def count(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, so that none is counted under another's name
        return x

    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        with torch.autocast("cuda", torch.bfloat16, enabled="cuda" in device):
            model.hidden(ids_BT)
    return sum(storage.nbytes() for storage in kept.values())


def training_bytes(
    student: LlamaConfig,
    teacher: LlamaConfig | None,
    windows: int,
    context: int,
    device: str = "cpu",
) -> int:
    """Peak of a training with `windows` at once: weights of both and AdamW's two means in float32,
    activations, the loss head's gradient and chunks of logits, and the other gradients. They are
    added up though not all are there at once: what is freed lies in pieces between them."""
    embedding, tokens = 4 * student.embedding_parameters, windows * context
    kept = 12 * student.parameters + activation_bytes(student, windows, context, device)
    kept += 4 * student.parameters - embedding
    chunk = min(tokens, losses.default_chunk(device))
    if teacher:  # its weights, and what one of its layers holds at once
        kept += 4 * (teacher.parameters + tokens * (4 * teacher.mlp_dim + 6 * teacher.dim))
    logits = (2 if teacher else 1) * 4 * chunk * student.vocab_size
    return kept + embedding + max(logits, embedding)
