"""What a training costs: FLOP, bytes and time, from the shapes alone.

FLOP count matrix products (a multiply and an add are two) and causal attention over half the
context; norms, softmax and the optimiser are a few per cent more. Hours are FLOP over the share of
a device's peak that is reached. Memory is a bound; `make doctor` tries what a step takes. Imports
torch only to measure this machine.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from tdbook.runs import hashes
from tdbook.runs.estimates import describe
from tdbook.runs.parameters import ParameterError, nearest
from tdlib.shapes import LlamaConfig

CHUNK = {"cpu": 512, "cuda": 4096}  # losses.default_chunk
PROCESS = 590 * 2**20  # bytes of a notebook's process on a CPU: torch, figures, tables, scores


@dataclass(frozen=True)
class Device:
    name: str
    flop: float  # a second, dense: bfloat16 on a GPU, float32 on a CPU; published or measured
    bytes: float  # of its memory
    low: float = (
        0.20  # share of `flop` that a training reaches: a model of width 512 that waits for
    )
    high: float = 0.45  # kernels and memory; a well-tuned training (PaLM 540B: 46 %)
    kind: str = "cuda"  # or cpu


# NVIDIA's data sheets (HGX B200, H100 SXM, A100 80 GB, L4). The plan's own hours for 50m and 120m
# are 33 to 46 % of a B200.
DEVICES = {
    "b200": Device("B200", 2.25e15, 180e9),
    "h100": Device("H100", 989e12, 80e9),
    "a100": Device("A100", 312e12, 80e9),
    "l4": Device("L4", 121e12, 24e9),
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
    if "cuda" in device:  # a measured peak is some three quarters of a published one
        gpu = torch.cuda.get_device_properties(device)
        return Device(gpu.name, peak, gpu.total_memory, 0.27, 0.6)
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # a model of width 64 spends most of its time between products
    return Device(f"this CPU, threads: {torch.get_num_threads()}", peak, ram, 0.2, 0.9, "cpu")


def peak_flop(device: str) -> float:
    """FLOP a second of a large matrix product here and now, in a tenth of a second: float32 on a
    CPU with torch's threads, bfloat16 on CUDA. Best of a few."""
    import torch

    n, dtype = (8192, torch.bfloat16) if "cuda" in device else (1536, torch.float32)
    a, b = (torch.ones(n, n, device=device, dtype=dtype) for _ in range(2))
    seconds, end = [], time.monotonic() + 0.1
    while not seconds or time.monotonic() < end:
        began = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - began)
    return 2 * n**3 / min(seconds)


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
    heads = 2 * config.head_dim * (config.heads + config.kv_heads)
    return config.layers * rank * (7 * config.dim + heads + 3 * config.mlp_dim)


def layer_bytes(config: LlamaConfig, tokens: int, device: str = "cpu") -> int:
    """What one layer keeps for its backward, at most: norms in float32, the inputs of its linears
    in float32 on a CPU and bfloat16 on CUDA."""
    heads = 2 * config.head_dim * (config.heads + config.kv_heads)
    linears = 6 * config.dim + heads + 4 * config.mlp_dim
    return tokens * (16 * config.dim + (2 if "cuda" in device else 4) * linears)


def training_bytes(
    student: LlamaConfig,
    teacher: LlamaConfig | None,
    windows: int,
    context: int,
    device: str = "cpu",
    rank: int = 0,
    checkpointing: bool = False,
) -> int:
    """A bound of a training with `windows` at once, above what the process had before: weights,
    gradients and AdamW's two means of what trains (with a `rank` the adapter), activations, and one
    chunk of logits of both models. With `checkpointing` each layer keeps its input alone, and one
    is made again."""
    cuda, tokens = "cuda" in device, windows * context
    each = 6 if cuda else 4  # on CUDA weights and logits are there in bfloat16 too
    adapter = adapter_parameters(student, rank) if rank else 0
    weights = each * (student.parameters + adapter) + 3 * 4 * (adapter or student.parameters)
    kept = (1 if checkpointing else student.layers) * layer_bytes(student, tokens, device)
    inputs = 4 * tokens * student.dim * (student.layers + 1)
    taught = each * teacher.parameters + layer_bytes(teacher, tokens) if teacher else 0
    chunk = min(tokens, CHUNK["cuda" if cuda else "cpu"])
    logits = each * chunk * student.vocab_size * (2 if teacher else 1)
    return weights + kept + inputs + taught + logits


def file_bytes(config: LlamaConfig) -> int:
    """A GGUF file in Q4_0 throughout: its weights, and about 21 bytes a piece of the vocabulary."""
    return describe(config)["q4_0_bytes"] + 21 * config.vocab_size


def cache_bytes(windows: int, context: int, vocab_size: int, draws: int = 12) -> int:
    """The teacher's targets of one temperature, as cache.size: ids and float16 probabilities, and
    a loss and a mark a window."""
    return windows * (context * draws * ((2 if vocab_size <= 2**16 else 4) + 2) + 5)
