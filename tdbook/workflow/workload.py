"""What every run of a profile does, counted from shapes alone: FLOP, bytes and hours.

FLOP count matrix products (a multiply and an add are two) and causal attention over half the
context; norms, softmax and the optimiser are a few per cent more. Hours are FLOP over the share of
a device's peak that is reached. Memory and disk are bounds; `make doctor` tries what a step takes.
Imports torch only to measure this machine.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from tdbook.runs import hashes, notebooks
from tdbook.runs.notebooks import COMPARISON, EVIDENCE, HARD_SET, INFERENCE, TEACHER, notebook_of
from tdbook.runs.parameters import ParameterError, nearest
from tdbook.workflow import graph
from tdlib.shapes import SHAPES, LlamaConfig

MODELS = ("models/", "adapters/")
_TABLE = yaml.safe_load(Path(__file__).with_name("workload.yaml").read_text("utf8"))
BEGIN_S, TIMED_S, TRAINING, SCORING, SCORED, CHUNK, PROCESS, RECORDS, TRAINED = (
    _TABLE[name]
    for name in "begin timed training scoring scored chunk process records trained".split()
)


@dataclass(frozen=True)
class Device:
    name: str
    flop: float  # a second, dense: bfloat16 on a GPU, float32 on a CPU
    bytes: float  # of its memory
    kind: str = "cuda"  # or cpu


DEVICES = {name: Device(*row) for name, row in _TABLE["devices"].items()}


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
        return Device(gpu.name, peak / 0.75, gpu.total_memory)
    name = f"this CPU, threads: {torch.get_num_threads()}"
    return Device(name, peak, psutil.virtual_memory().total, "cpu")


def peak_flop(device: str) -> float:
    """FLOP a second of a large matrix product here and now: float32 on a CPU with torch's threads,
    bfloat16 on CUDA. Best of a tenth of a second."""
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


def step_flop(config: LlamaConfig, context: int, frozen: bool = False) -> float:
    """A token of training: forward, and twice that backward; once where the base is frozen and only
    a small adapter trains."""
    return (2 if frozen else 3) * forward_flop(config, context)


def adapter_parameters(config: LlamaConfig, rank: int) -> int:
    """Weights of LoRA on all seven linears."""
    heads = 2 * config.head_dim * (config.heads + config.kv_heads)
    return config.layers * rank * (7 * config.dim + heads + 3 * config.mlp_dim)


def layer_bytes(config: LlamaConfig, kind: str = "cpu") -> int:
    """What one layer keeps of a token for its backward, at most: norms in float32, the inputs of
    its linears in float32 on a CPU and bfloat16 on CUDA."""
    heads = 2 * config.head_dim * (config.heads + config.kv_heads)
    linears = 6 * config.dim + heads + 4 * config.mlp_dim
    return 16 * config.dim + (2 if kind == "cuda" else 4) * linears


@dataclass(frozen=True)
class Size:
    """How much text a run has."""

    vocab_size: int
    context: int
    train: int  # windows
    val: int
    hard: int  # windows of the hard set
    source: str  # where that is known from


@dataclass(frozen=True)
class Training:
    path: str  # models/<name> or adapters/<name>
    student: LlamaConfig
    teacher: LlamaConfig | None
    epoch: int  # windows that it reads once an epoch
    parameters: dict  # of its run

    @property
    def windows(self) -> int:
        """In all, as train.order counts them."""
        windows = max(1, round(self.parameters["epochs"] * self.epoch))
        limit = self.parameters["token_limit"] // self.student.context
        return min(windows, max(1, limit)) if self.parameters["token_limit"] else windows

    @property
    def batch(self) -> int:
        """Windows of a step."""
        return max(1, self.parameters["batch_tokens"] // self.student.context)

    @property
    def rank(self) -> int:
        return self.parameters["rank"] if self.path.startswith("adapters/") else 0

    @property
    def weights(self) -> int:
        """Those that are trained."""
        student, rank = self.student, self.rank
        return adapter_parameters(student, rank) if rank else student.parameters

    @property
    def flop(self) -> float:
        p, context = self.parameters, self.student.context
        flop = step_flop(self.student, context, frozen=bool(self.rank))
        flop += 6 * self.weights if self.rank else 0
        flop += forward_flop(self.student, context) if p["activation_checkpointing"] else 0
        if self.teacher:  # with a cache it sees the tokens of one epoch
            share = min(1.0, self.epoch / self.windows) if p.get("cached_draws") else 1.0
            flop += share * forward_flop(self.teacher, context)
        return flop * self.windows * context

    def memory(self, kind: str) -> int:
        """Bytes at the most, above what the process had before: weights, gradients and AdamW's two
        means of what trains, activations, and one chunk of logits of both models. With
        activation_checkpointing each layer keeps its input alone, and one is made again."""
        p, student, teacher = self.parameters, self.student, self.teacher
        tokens = min(p["micro_windows"], self.batch, self.windows) * student.context
        each = 6 if kind == "cuda" else 4  # there weights and logits are in bfloat16 too
        weights = each * (student.parameters + self.weights * bool(self.rank)) + 12 * self.weights
        layers = 1 if p["activation_checkpointing"] else student.layers
        kept = layers * layer_bytes(student, kind) + 4 * student.dim * (student.layers + 1)
        logits = each * min(tokens, CHUNK[kind]) * student.vocab_size
        if teacher:
            weights, logits = weights + each * teacher.parameters, 2 * logits
            kept += layer_bytes(teacher)
        return weights + tokens * kept + logits


@dataclass(frozen=True)
class Work:
    """What one run does, and what it leaves."""

    run: str
    context: int
    trainings: list[Training]
    made: dict[str, LlamaConfig]  # by path
    forwards: list[tuple[LlamaConfig, int]]  # a model, and windows
    timed: int  # models whose speed is measured
    disk: int  # bytes that stay

    @property
    def tokens(self) -> int:
        return self.context * sum(t.windows for t in self.trainings)

    @property
    def scoring_flop(self) -> float:
        """Of scoring and evaluation."""
        return self.context * sum(forward_flop(c, self.context) * n for c, n in self.forwards)

    @property
    def flop(self) -> float:
        return sum(t.flop for t in self.trainings) + self.scoring_flop

    def seconds(self, device: Device) -> tuple[float, float]:
        """Low and high."""
        training, scoring = self.flop - self.scoring_flop, self.scoring_flop
        shares = zip(TRAINING[device.kind], SCORING[device.kind], strict=True)
        busy = [(training / share + scoring / other) / device.flop for share, other in shares]
        return total([BEGIN_S[device.kind], [self.timed * each for each in TIMED_S], busy])

    def memory(self, kind: str) -> int:
        """Bytes at the most: all models of the run, and beside them what scoring or a training
        takes; on a CPU the process's own too."""
        shapes = {shape for shape, _ in self.forwards}
        # a layer, and six arrays of one window's logits
        scoring = [SCORED * layer_bytes(c) + 24 * c.vocab_size for c in shapes]
        needs = [sum(4 * c.parameters for c in shapes) + self.context * max(scoring, default=0)]
        for t in self.trainings:
            others = shapes - {t.student, t.teacher}
            needs.append(t.memory(kind) + sum(4 * c.parameters for c in others))
        return max(needs) + (PROCESS if kind == "cpu" else 0)


def total(spans: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """The sums of (low, high)."""
    low, high = zip(*spans, strict=True)
    return sum(low), sum(high)


def of_profile(jobs: dict[str, graph.BookRun], size: Size, teacher: LlamaConfig) -> list[Work]:
    """The work of every run, in the order of the book, sweeps after it: a point finds what the book
    made and what its own earlier runs did; the page of a sweep merges nothing."""
    made, points, works = {"models/teacher": teacher}, {}, []
    for one in jobs.values():
        before = points.setdefault(one.out, dict(made)) if one.sweep else made
        works.append(of_run(one.parameters, size, teacher, {} if one.compares else before))
        before |= works[-1].made
    return works


def of_run(p: dict, size: Size, teacher: LlamaConfig, made: dict[str, LlamaConfig]) -> Work:
    """What a run with these parameters does. `made`: path → shape of what is there; an adapter has
    its base's."""
    run, notebook = p["run"], notebook_of(p["run"])
    writes = [path for path in notebooks.writes(run, p, [*made]) if path.startswith(MODELS)]
    shapes = _shapes(p, size, teacher, made)
    models = {path: shape for path, (shape, _) in zip(writes, shapes, strict=True)}
    trainings, disk = [], RECORDS + 8 * size.train
    if notebook in TRAINED and not (notebook == TEACHER and p["teacher"]):
        for path, (shape, by) in zip(writes, shapes, strict=True):
            by = None if p.get("ce_weight") == 1 else by
            trainings.append(Training(path, shape, by, _epoch(p, size), p))
    scored = {  # windows that the models that it reads go over
        HARD_SET: min(size.train, p.get("token_limit", 0) // size.context or size.train),
        INFERENCE: 8 * p.get("quality_windows", 0),
        EVIDENCE: size.val,
    }
    reads = notebooks.reads(run, p, [*made]) if notebook in scored else []
    read = [made.get(path, teacher) for path in reads if path.startswith(MODELS)]
    forwards = [(shape, scored[notebook]) for shape in read]
    fixed = min(size.val, p.get("fixed_windows", 0))
    for shape in models.values():
        forwards += [(shape, size.val + fixed), (teacher, fixed)]
    # the weights of every epoch, and two checkpoints while the next one is written
    kept = [t.weights * (math.ceil(t.windows / t.epoch) + 6) for t in trainings]
    disk += 4 * sum(kept or (shape.parameters for shape in models.values()))
    timed = len(read) if notebook == INFERENCE else 0
    disk += round(4.4 * sum(shape.parameters for shape in read)) if timed else 0  # four files
    own = notebook == TEACHER and not p["tokens"]
    disk += 4 * size.context * (size.train + size.val) if own else 0
    return Work(run, size.context, trainings, models, forwards, timed, disk)


def _shapes(p: dict, size: Size, teacher: LlamaConfig, made: dict) -> list[tuple]:
    """The shape of each model or adapter that a run makes, and of who teaches it, or None."""

    def of(name: str) -> LlamaConfig | None:
        known = {"": None, "teacher": teacher, "base": made.get(f"models/{p.get('base')}", teacher)}
        if name in known:
            return known[name]
        return LlamaConfig(size.vocab_size, **SHAPES[p[name]], context=size.context)

    if notebook_of(p["run"]) == COMPARISON:  # every adapter merged
        return [(shape, None) for path, shape in made.items() if path.startswith("adapters/")]
    pairs = TRAINED.get(notebook_of(p["run"]), "").split()
    return [tuple(of(name) for name in pair.partition("<")[::2]) for pair in pairs]


def _epoch(p: dict, size: Size) -> int:
    """Windows that a training reads once an epoch."""
    if notebook_of(p["run"]) == notebooks.LORA:
        return round(p["share"] * size.train) if p["share"] else size.hard
    windows = size.train
    if p.get("left_out"):
        windows -= windows // int(p["left_out"].split("/")[1])
    distinct = max(1, p.get("distinct_tokens", 0) // size.context)
    return min(windows, distinct) if p.get("distinct_tokens") else windows
