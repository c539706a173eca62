"""What a training costs before it is started: arithmetic, memory and time, from the shapes alone.

FLOP count matrix products (a multiply and an add are two) and attention over half the context, as
it is causal; what is left out (norms, softmax, the optimiser) is a few per cent. Imports torch only
where something is measured.
Legend: B windows at once, T tokens of a window, N = B·T, P weights, V vocabulary, D width, F MLP
width, A and G the widths of all queries and of all keys.
"""

import time
from dataclasses import replace

from tdbook.runs.estimates import describe
from tdlib.shapes import LlamaConfig

CHUNK = {"cpu": 512, "cuda": 4096}  # losses.default_chunk
LIBRARIES = 95 * 2**20  # bytes of torch's own that a first step on a CPU brings in
PIECES = 1.25  # activations on a CPU: a quarter more lies in pieces between, or is a gradient


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
    import torch

    cuda = "cuda" in device
    n = 8192 if cuda else 1536
    dtype = torch.bfloat16 if cuda else torch.float32
    a, b = (torch.ones(n, n, device=device, dtype=dtype) for _ in range(2))
    best, end = 0.0, time.monotonic() + seconds
    while not best or time.monotonic() < end:
        began = time.perf_counter()
        a @ b
        if cuda:
            torch.cuda.synchronize()
        best = max(best, 2 * n**3 / (time.perf_counter() - began))
    return best


def adapter_parameters(config: LlamaConfig, rank: int) -> int:
    """Weights of LoRA on all seven linears."""
    d, a, g = config.dim, config.heads * config.head_dim, config.kv_heads * config.head_dim
    return config.layers * rank * (2 * (d + a) + 2 * (d + g) + 3 * (d + config.mlp_dim))


def activation_bytes(config: LlamaConfig, windows: int, context: int, device: str = "cpu") -> int:
    """What one forward keeps for its backward, in float32 on a CPU; on CUDA under autocast, where
    each linear keeps a bfloat16 copy of its input and of its weight."""
    d, a, g = config.dim, config.heads * config.head_dim, config.kv_heads * config.head_dim
    tokens, norm = windows * context, 4 * (2 * config.dim + 1)  # its input, and that normalised
    if "cuda" in device:
        layer = 2 * norm + 2 * (5 * d + 2 * a + 2 * g + 4 * config.mlp_dim) + 4 * config.heads
        weights = 2 * (config.parameters - config.embedding_parameters)
        return tokens * (config.layers * layer + norm + 8) + weights
    layer = 2 * (norm + 4 * d) + 4 * (2 * a + 2 * g + config.heads + 4 * config.mlp_dim)
    return tokens * (config.layers * layer + norm + 8)


def training_bytes(
    student: LlamaConfig,
    teacher: LlamaConfig | None,
    windows: int,
    context: int,
    device: str = "cpu",
    rank: int = 0,
    checkpointing: bool = False,
) -> int:
    """Peak of a training with `windows` at once, above what the process had before: weights of both
    and AdamW's two means in float32, activations, the loss head's gradient and chunks of logits,
    and the other gradients; with a `rank` an adapter's alone. They are added up though not all are
    there at once: what is freed lies in pieces between them. On CUDA: not tried."""
    tokens, embedding = windows * context, 4 * student.embedding_parameters
    trained = 4 * (adapter_parameters(student, rank) if rank else student.parameters)
    weights = 4 * student.parameters + (trained if rank else 0)
    kept = weights + 2 * trained + (trained if rank else trained - embedding)
    held = activation_bytes(student, windows, context, device)
    if checkpointing:  # each layer's input, and one layer made again
        one = activation_bytes(replace(student, layers=1), windows, context, device)
        held = one + 4 * tokens * student.dim * student.layers
    if teacher:  # its weights, and what one of its layers holds at once
        kept += 4 * (teacher.parameters + tokens * (4 * teacher.mlp_dim + 6 * teacher.dim))
    chunk = min(tokens, CHUNK["cuda" if "cuda" in device else "cpu"])
    head = 0 if rank else embedding
    logits = (2 if teacher else 1) * 4 * chunk * student.vocab_size
    if "cuda" in device:  # bfloat16 beside float32: logits, both heads
        both = student.embedding_parameters + (teacher.embedding_parameters if teacher else 0)
        return kept + held + head + logits * 3 // 2 + 2 * both
    return int(kept + PIECES * held + head + max(logits, head) + LIBRARIES)


def state_bytes(config: LlamaConfig, rank: int = 0) -> int:
    """A checkpoint: what trains and AdamW's two means, in float32."""
    return 12 * (adapter_parameters(config, rank) if rank else config.parameters)


def file_bytes(config: LlamaConfig) -> int:
    """A GGUF file in Q4_0 throughout: its weights, and about 21 bytes a piece of the vocabulary."""
    return describe(config)["q4_0_bytes"] + 21 * config.vocab_size


def cache_bytes(windows: int, context: int, vocab_size: int, draws: int = 12) -> int:
    """The teacher's targets of one temperature, as cache.size: ids and float16 probabilities, and
    a loss and a mark a window."""
    return windows * (context * draws * ((2 if vocab_size <= 2**16 else 4) + 2) + 5)
