"""What every run of a profile does, counted from shapes alone: FLOP, bytes and hours.

FLOP count matrix products (a multiply and an add are two) and causal attention over half the
context; norms, softmax and the optimiser are a few per cent more. Hours are FLOP over the share of
a device's peak that is reached. Memory and disk are bounds; `make doctor` tries what a step takes.
Imports torch only to measure this machine.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from tdbook.runs import hashes, notebooks
from tdbook.runs.notebooks import COMPARISON, EVIDENCE, HARD_SET, INFERENCE, TEACHER, notebook_of
from tdbook.runs.parameters import ParameterError, nearest, tokens_of
from tdbook.workflow import execute
from tdlib.shapes import LlamaConfig, sized

MODELS = ("models/", "adapters/")
_TABLE = yaml.safe_load(Path(__file__).with_name("workload.yaml").read_text("utf8"))
BEGIN_S, TIMED_S, REACHED, TRAINED = (_TABLE[k] for k in ("begin", "timed", "reached", "trained"))
CHUNK, SCORED, PROCESS, RECORDS = (_TABLE[k] for k in "chunk scored process records".split())


@dataclass(frozen=True)
class Device:
    name: str
    flop: float  # a second, dense: bfloat16 on a GPU, float32 on a CPU
    bytes: float  # of its memory
    kind: str = "cuda"  # or cpu


DEVICES = {name: Device(*row) for name, row in _TABLE["devices"].items()}


def device_of(name: str, profile: str) -> tuple[Device, str]:
    """The device that hours are given for, and where its numbers are from."""
    if not name and profile.startswith("b200") and not execute.gpus():
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
        return Device(gpu.name, peak / 0.75, gpu.total_memory)  # an H200: 788 of 989 TFLOP/s
    name = f"this CPU, threads: {torch.get_num_threads()}"
    return Device(name, peak, psutil.virtual_memory().total, "cpu")


def peak_flop(device: str) -> float:
    """FLOP a second of the fastest large product of random numbers (ones would be faster)."""
    import torch
    from torch.utils.benchmark import Timer

    n, dtype = (8192, torch.bfloat16) if "cuda" in device else (1536, torch.float32)
    own = torch.Generator(device).manual_seed(0)  # the draws of the run that asks stay as they are
    how = {"globals": {"a": torch.randn(n, n, device=device, dtype=dtype, generator=own)}}
    timer = Timer("(a @ a)[0, 0].item()", **how, num_threads=torch.get_num_threads())
    return 2 * n**3 / min(timer.blocked_autorange(min_run_time=0.1).times)


def forward_flop(config: LlamaConfig, context: int) -> float:
    """A token, forward, the head included: two a weight, and attention in every layer."""
    look_up = 0 if config.tied else config.embedding_parameters
    attention = 2 * context * config.heads * config.head_dim * config.layers
    return 2 * (config.parameters - look_up) + attention


def step_flop(config: LlamaConfig, context: int, frozen: bool = False) -> float:
    """A token of training: forward, and twice that backward; of frozen weights once."""
    return 3 * forward_flop(config, context) - frozen * forward_flop(config, 0)


def adapter_parameters(config: LlamaConfig, rank: int) -> int:
    """Weights of LoRA on all seven linears."""
    heads = 2 * config.head_dim * (config.heads + config.kv_heads)
    return config.layers * rank * (7 * config.dim + heads + 3 * config.mlp_dim)


def layer_bytes(config: LlamaConfig, kind: str = "cpu") -> int:
    """Of a token, for the backward: norms in float32, inputs of linears (on CUDA in bfloat16)."""
    heads = 2 * config.head_dim * (config.heads + config.kv_heads)
    linears = 6 * config.dim + heads + 4 * config.mlp_dim
    normed = 2 * config.dim + config.qk_norm * heads // 2  # two norms, and those of Q and K
    return 8 * normed + (2 if kind == "cuda" else 4) * linears


@dataclass(frozen=True)
class Size:
    vocab_size: int
    context: int
    train: int  # windows
    val: int
    hard: int  # windows of the hard set
    source: str  # where that is known from

    def shape(self, name: str, teacher: LlamaConfig | None = None) -> LlamaConfig:
        size = {"vocab_size": self.vocab_size, "context": self.context}
        return teacher.student(name, **size) if teacher else LlamaConfig(**size, **sized(name))


@dataclass(frozen=True)
class Training:
    path: str  # models/<name> or adapters/<name>
    student: LlamaConfig
    teacher: LlamaConfig | None
    parameters: dict  # of its run
    rank: int  # of an adapter; else 0
    weights: int  # that are trained
    windows: int  # in all, as train.order counts them
    steps: int
    flop: float
    memory: dict[str, int]  # cpu, cuda → bytes at the most, beside the weights of both models


def training(path: str, student: LlamaConfig, teacher, epoch: int, p: dict) -> Training:
    """A training by a run with these parameters that reads `epoch` windows once an epoch."""
    context, rank = student.context, p["rank"] if path.startswith("adapters/") else 0
    weights = adapter_parameters(student, rank) if rank else student.parameters
    windows, limit = max(1, round(p["epochs"] * epoch)), p["token_limit"]
    windows = min(windows, max(1, limit // context)) if limit else windows
    batch, models = max(1, p["batch_tokens"] // context), [student, *([teacher] if teacher else [])]
    flop = step_flop(student, context, frozen=bool(rank)) + (6 * weights if rank else 0)
    head = 2 * student.embedding_parameters
    flop += forward_flop(student, context) - head if p["activation_checkpointing"] else 0
    if teacher:  # with a cache it sees the tokens of one epoch
        share = min(1.0, epoch / windows) if p.get("cached_draws") else 1.0
        flop += share * forward_flop(teacher, context)
    # gradients and AdamW's two means of what trains, activations (with activation_checkpointing of
    # one layer), and of both models a chunk of logits; on CUDA those in bfloat16, as a copy
    # of what trains, and a chunk's gradient beside its logits; a frozen norm keeps no input there
    memory, tokens = {}, min(p["micro_windows"], batch, windows) * context
    rounded = 5 * into_four_bits(p)  # q · d, and q in 8 bits
    layers = 1 if p["activation_checkpointing"] else student.layers
    for kind, half, chunks in (("cpu", 0, len(models)), ("cuda", 2, len(models) + 1)):
        kept = layers * layer_bytes(student, kind) + 4 * student.dim * (student.layers + 1)
        kept -= 4 * half * student.dim * layers if rank else 0
        if teacher:  # its last hidden states; a CPU's memory has holes where its layers were
            kept += 4 * teacher.dim if half else layer_bytes(teacher)
        logits = (4 - half) * min(tokens, CHUNK[kind]) * student.vocab_size * chunks
        memory[kind] = (12 + half + rounded) * weights + tokens * kept + logits
    steps, flop = math.ceil(windows / batch), flop * windows * context
    return Training(path, student, teacher, p, rank, weights, windows, steps, flop, memory)


def into_four_bits(p: dict) -> bool:
    """Whether a training with these parameters reads rounded matrices, at its end at least."""
    return bool(p.get("rounding") or p.get("four_bit_share"))


@dataclass(frozen=True)
class Work:
    """What one run does, and what it leaves."""

    run: str
    context: int
    trainings: list[Training]
    made: dict[str, LlamaConfig]  # by path
    forwards: list[tuple[LlamaConfig, int]]  # of scoring and evaluation: a model, and windows
    timed: int  # models whose speed is measured
    disk: int  # bytes that stay

    @property
    def tokens(self) -> int:
        return self.context * sum(t.windows for t in self.trainings)

    @property
    def flop(self) -> float:
        scoring = sum(forward_flop(c, self.context) * n for c, n in self.forwards)
        return sum(t.flop for t in self.trainings) + self.context * scoring

    def seconds(self, device: Device) -> tuple[float, float]:
        """Low and high."""
        spans = zip(BEGIN_S[device.kind], TIMED_S, REACHED[device.kind], strict=True)
        busy = self.flop / device.flop
        return tuple(begin + self.timed * each + busy / share for begin, each, share in spans)

    def memory(self, kind: str) -> int:
        """Bytes at the most: all models of the run, and beside them what scoring or a training
        takes; on a CPU the process's own too."""
        shapes = {shape for shape, _ in self.forwards}
        # of scoring a layer, and six arrays of one window's logits
        needs = [self.context * (SCORED * layer_bytes(c) + 24 * c.vocab_size) for c in shapes]
        needs += [t.memory[kind] for t in self.trainings]
        weights = sum(4 * shape.parameters for shape in shapes)
        return weights + max(needs, default=0) + PROCESS * (kind == "cpu")


def of_run(p: dict, size: Size, teacher: LlamaConfig, made: dict[str, LlamaConfig]) -> Work:
    """What a run does. `made`: path → shape of what is there, of an adapter its base's."""
    run, notebook = p["run"], notebook_of(p["run"])
    writes = [path for path in notebooks.writes(run, p, [*made]) if path.startswith(MODELS)]
    pairs = dict(zip(writes, _shapes(p, size, teacher, made), strict=True))
    cooldowns = tokens_of(p.get("cooldowns", ""))
    trainings, shapes = [], {path: shape for path, (shape, _) in pairs.items()}
    if notebook in TRAINED and not (notebook == TEACHER and p["teacher"]):
        for path, (shape, by) in pairs.items():
            by = None if p.get("ce_weight") == 1 else by
            length = cooldowns.get(path.rpartition("-")[2])  # of a trunk only the cooldown is more
            more = {"token_limit": round(p["cooldown_share"] * length)} if length else {}
            trainings.append(training(path, shape, by, _epoch(p, size), p | more))
    # windows that the models that it reads go over
    scored = {EVIDENCE: size.val, COMPARISON: _TABLE["probed"] // size.context}
    scored[INFERENCE] = 8 * p.get("quality_windows", 0)
    scored[HARD_SET] = min(size.train, p.get("token_limit", 0) // size.context or size.train)
    read = notebooks.reads(run, p, [*made]) if notebook in scored else []
    forwards = [(made.get(x, teacher), scored[notebook]) for x in read if x.startswith(MODELS)]
    fixed = min(size.val, p.get("fixed_windows", 0))
    for shape in shapes.values():
        forwards += [(shape, size.val + fixed), (teacher, fixed)]
    names = p["models"].split() if notebook == INFERENCE else []
    timed = [made.get(f"models/{name}", teacher) for name in names]
    # the weights of every epoch, and two checkpoints while the next one is written; three quarters
    more = 6 + 3 * into_four_bits(p)
    kept = [t.weights * (math.ceil(t.windows / _epoch(p, size)) + more) for t in trainings]
    disk = 4 * sum(kept or (shape.parameters for shape in shapes.values()))
    disk += round(4.4 * sum(shape.parameters for shape in timed))  # four files
    own = notebook == TEACHER and not p["tokens"]
    disk += RECORDS + 8 * size.train + 4 * size.context * (size.train + size.val) * own
    return Work(run, size.context, trainings, shapes, forwards, len(timed), disk)


def _shapes(p: dict, size: Size, teacher: LlamaConfig, made: dict) -> list[tuple]:
    """The shape of each model or adapter that a run makes, and of who teaches it, or None."""
    known = {"": None, "teacher": teacher, "base": made.get(f"models/{p.get('base')}", teacher)}
    if notebook_of(p["run"]) == COMPARISON:  # every adapter merged
        return [(shape, None) for path, shape in made.items() if path.startswith("adapters/")]
    pairs = [pair.partition("<")[::2] for pair in TRAINED.get(notebook_of(p["run"]), "").split()]
    known |= {n: size.shape(p[n], teacher) for pair in pairs for n in pair if n not in known}
    ends = 1 + len(p.get("cooldowns", "").split())
    return [tuple(map(known.get, pair)) for pair in pairs] * ends


def _epoch(p: dict, size: Size) -> int:
    """Windows that a training reads once an epoch."""
    if notebook_of(p["run"]) == notebooks.LORA:
        return round(p["share"] * size.train) if p["share"] else size.hard
    folds = int((p.get("left_out") or "0/0").split("/")[1])
    windows = size.train - (size.train // folds if folds else 0)
    distinct = p.get("distinct_tokens", 0)
    return min(windows, max(1, distinct // size.context)) if distinct else windows
