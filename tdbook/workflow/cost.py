"""What a training costs: FLOP, bytes and time, from the shapes alone.

FLOP count matrix products (a multiply and an add are two) and causal attention over half the
context; norms, softmax and the optimiser are a few per cent more. Hours are FLOP over the share of
a device's peak that is reached. `make doctor` tries what a step takes.
Legend: N tokens at once, V vocabulary. Imports torch only to measure this machine.
"""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from tdbook.runs import hashes
from tdbook.runs.estimates import describe
from tdbook.runs.parameters import ParameterError, nearest
from tdlib.shapes import LlamaConfig

CHUNK = {"cpu": 512, "cuda": 4096}  # losses.default_chunk
LIBRARIES = 95 * 2**20  # bytes of torch's own that a first step on a CPU brings in
FRAGMENTATION = 1.25  # activations on a CPU: a quarter more lies in pieces between


@dataclass(frozen=True)
class Device:
    """FLOP a second, dense (no sparsity), published or measured."""

    name: str
    flop: float  # of a training: bfloat16 on a GPU, float32 on a CPU
    forward_flop: float  # scoring and evaluation: TF32 on a GPU, float32 on a CPU
    bytes: float  # of its memory
    low: float  # share of `flop` that a training reaches
    high: float
    kind: str = "cuda"  # or cpu


# NVIDIA's data sheets (HGX B200, H100 SXM, A100 80 GB, L4). Shares: 20 % is a model of width 512
# that waits for kernels and memory, 45 % a well-tuned training (PaLM 540B: 46 %). The plan's own
# hours for 50m and 120m are 33 to 46 % of a B200.
DEVICES = {
    "b200": Device("B200", 2.25e15, 1.1e15, 180e9, 0.20, 0.45),
    "h100": Device("H100", 989e12, 494e12, 80e9, 0.20, 0.45),
    "a100": Device("A100", 312e12, 156e12, 80e9, 0.25, 0.50),
    "l4": Device("L4", 121e12, 60e12, 24e9, 0.25, 0.50),
}


def device_of(name: str, profile: str) -> tuple[Device, str]:
    """The device that hours are given for, and where its numbers are from."""
    if not name and profile.startswith("b200") and not Path("/dev/nvidia0").exists():
        return DEVICES["b200"], "published (no GPU here; DEVICE=here for this machine)"
    if name in DEVICES:
        return DEVICES[name], "published"
    if name not in ("", "here", "cpu"):
        remedy = nearest(name.lower(), [*DEVICES, "cpu", "here"], cutoff=0.3)
        raise ParameterError(f"DEVICE={name} is not known: {remedy}")
    import torch

    if profile in hashes.ONE_THREAD:  # as the book runs them
        torch.set_num_threads(1)
    return here("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"), "measured now"


def here(device: str) -> Device:
    """This machine's CPU or GPU, its peak measured now."""
    import torch

    peak = peak_flop(device)
    if "cuda" in device:
        gpu = torch.cuda.get_device_properties(device)
        # a measured peak is some three quarters of a published one
        return Device(gpu.name, peak, peak / 2, gpu.total_memory, 0.27, 0.6)
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    name = f"this CPU, threads: {torch.get_num_threads()}"
    # 0.9 is a model of width 512 and more; one of width 64 spends most of its time between products
    return Device(name, peak, peak, ram, 0.2, 0.9, "cpu")


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


def forward_flop(config: LlamaConfig, context: int) -> float:
    """A token, forward, the head included: two a weight, and attention in every layer."""
    look_up = 0 if config.tied else config.embedding_parameters
    attention = 2 * context * config.heads * config.head_dim * config.layers
    return 2 * (config.parameters - look_up) + attention


def step_flop(
    student: LlamaConfig, teacher: LlamaConfig | None, context: int, frozen: bool = False
) -> float:
    """A token of training: forward, twice that backward (once where the base is frozen and only a
    small adapter trains), and the teacher's forward."""
    taught = forward_flop(teacher, context) if teacher else 0.0
    return (2 if frozen else 3) * forward_flop(student, context) + taught


def adapter_parameters(config: LlamaConfig, rank: int) -> int:
    """Weights of LoRA on all seven linears."""
    dim, queries, keys = _widths(config)
    attention, mlp = 4 * dim + 2 * queries + 2 * keys, 3 * (dim + config.mlp_dim)
    return config.layers * rank * (attention + mlp)


def activation_bytes(config: LlamaConfig, windows: int, context: int, device: str = "cpu") -> int:
    """What one forward keeps for its backward: in float32 on a CPU; on CUDA under autocast, where
    each linear keeps a bfloat16 copy of its input and of its weight."""
    dim, queries, keys = _widths(config)
    norm = 4 * (2 * dim + 1)  # its input, and that normalised
    if "cuda" in device:
        copies = 2 * (5 * dim + 2 * queries + 2 * keys + 4 * config.mlp_dim)
        layer = 2 * norm + copies + 4 * config.heads
        weights = 2 * (config.parameters - config.embedding_parameters)
    else:
        vectors = 2 * (dim + queries + keys) + config.heads + 4 * config.mlp_dim
        layer, weights = 2 * norm + 4 * vectors, 0
    return windows * context * (config.layers * layer + norm + 8) + weights


def _widths(config: LlamaConfig) -> tuple[int, int, int]:
    """Of the model, of all queries, of all keys."""
    return config.dim, config.heads * config.head_dim, config.kv_heads * config.head_dim


def layer_bytes(config: LlamaConfig, tokens: int) -> int:
    """What one layer holds at once where nothing is kept for a backward."""
    return 4 * tokens * (4 * config.mlp_dim + 6 * config.dim)


def training_bytes(
    student: LlamaConfig,
    teacher: LlamaConfig | None,
    windows: int,
    context: int,
    device: str = "cpu",
    rank: int = 0,
    checkpointing: bool = False,
) -> int:
    """Peak of a training with `windows` at once, above what the process had before: weights in
    float32, gradients and AdamW's two means of what trains (with a `rank` the adapter), the
    activations, and one chunk of logits of both models. With `checkpointing` each layer keeps its
    input alone, and one is made again."""
    cuda, tokens = "cuda" in device, windows * context
    adapter = adapter_parameters(student, rank) if rank else 0
    weights = 4 * (student.parameters + adapter)
    optimizer = 3 * 4 * (adapter or student.parameters)
    kept = activation_bytes(student, windows, context, device)
    if checkpointing:
        one = activation_bytes(replace(student, layers=1), windows, context, device)
        kept = one + 4 * tokens * student.dim * student.layers
    taught = 4 * teacher.parameters + layer_bytes(teacher, tokens) if teacher else 0
    chunk = min(tokens, CHUNK["cuda" if cuda else "cpu"])
    # on CUDA each logit is there in bfloat16 too
    logits = (6 if cuda else 4) * chunk * student.vocab_size * (2 if teacher else 1)
    if not cuda:
        kept = int(FRAGMENTATION * kept) + LIBRARIES
    return weights + optimizer + kept + taught + logits


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
