"""What a run of the book does and what that costs: weights, FLOP, bytes and seconds, beforehand.

A run is trainings and forward passes. Hours are FLOP over the share of a device's peak that is
reached; what exactly a step takes, `make doctor` tries.
"""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from tdbook.runs import notebooks
from tdbook.runs.notebooks import notebook_of
from tdbook.runs.parameters import ParameterError, nearest
from tdbook.workflow import cost, graph
from tdlib.shapes import SHAPES, LlamaConfig

BEGIN_S = (5.0, 20.0)  # a kernel, its imports, figures and the page, low and high
COMPILE_S = 180.0  # torch.compile of both models, at most
PROCESS = 440 * 2**20  # bytes of a notebook's process on a CPU before it trains
FIGURES = 55 * 2**20  # and what figures, tables and scores bring in
FORWARD = (0.3, 0.85)  # share of that peak which scoring reaches, low and high


@dataclass(frozen=True)
class Device:
    """What hours are computed with. FLOP a second, dense (no sparsity), published or measured."""

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
    name: str  # of the model or adapter
    student: LlamaConfig
    teacher: LlamaConfig | None
    temperature: float
    windows: int  # in all
    steps: int
    parameters: dict  # of its run

    @property
    def rank(self) -> int:
        adapter = self.parameters.get("trains", "adapter") == "adapter"
        return self.parameters.get("rank", 0) if adapter else 0

    @property
    def at_once(self) -> int:
        """Windows of a micro-batch."""
        batch = self.parameters["batch_tokens"] // self.student.context
        return max(1, min(self.parameters["micro_windows"], batch, self.windows))


@dataclass
class Work:
    """What one run does, what it leaves, and what it needs meanwhile."""

    run: str
    context: int
    teacher: LlamaConfig
    trainings: list[Training] = field(default_factory=list)
    forwards: list[tuple[LlamaConfig, int]] = field(default_factory=list)  # a model, and windows
    made: dict[str, LlamaConfig] = field(default_factory=dict)
    loaded: int = 0  # weights in memory that its trainings do not have
    disk: int = 0  # bytes that stay
    disk_meanwhile: int = 0  # and that go again: a checkpoint, and the next one beside it

    @property
    def tokens(self) -> int:
        return self.context * sum(t.windows for t in self.trainings)

    @property
    def steps(self) -> int:
        return sum(t.steps for t in self.trainings)

    @property
    def flop(self) -> float:
        forwards = sum(cost.forward_flop(c, self.context) * n for c, n in self.forwards)
        return sum(map(training_flop, self.trainings)) + self.context * forwards


def counts(rows: int, p: dict, context: int) -> tuple[int, int]:
    """Windows and steps of a training on so many windows, as train.order counts them."""
    windows = max(1, round(p["epochs"] * rows))
    if p["token_limit"]:
        windows = min(windows, max(1, p["token_limit"] // context))
    return windows, math.ceil(windows / max(1, p["batch_tokens"] // context))


def distinct(p: dict, context: int) -> int:
    """Windows that a training reads again and again, 0 where that is all."""
    return max(1, p["distinct_tokens"] // context) if p.get("distinct_tokens") else 0


def _read(p: dict, size: Size) -> int:
    """Windows that a training reads once an epoch."""
    match notebook_of(p["run"]):
        case notebooks.DISTILL:
            fold = int(p["left_out"].split("/")[1]) if p.get("left_out") else 0
            rest = size.train - (size.train // fold if fold else 0)
            return min(rest, distinct(p, size.context) or rest)
        case notebooks.LORA:
            return round(p["share"] * size.train) if p.get("share") else size.hard
    return size.train


def of_run(p: dict, size: Size, teacher: LlamaConfig, made: dict[str, tuple]) -> Work:
    """What a run with these parameters does. `made`: what is there before it, by name → shape and
    temperature; an adapter has its base's shape and no temperature."""
    work = Work(p["run"], size.context, teacher)
    _train(work, p, size, made)
    _score(work, p, size, made)
    fixed = min(size.val, p.get("fixed_windows", 640))
    trained = [t.student for t in work.trainings if t.name not in work.made]
    for shape in [*work.made.values(), *trained]:
        work.forwards += [(shape, size.val + fixed), (teacher, fixed)]
        work.disk += 4 * (size.val + size.context * fixed)
    work.disk += sum(4 * shape.parameters for shape in work.made.values())
    rows = size.hard if notebook_of(p["run"]) == notebooks.LORA else _read(p, size)
    for t in work.trainings:
        work.forwards.append((t.student, 9 * min(64, size.val)))  # while it trains
        state = cost.state_bytes(t.student, t.rank)
        work.disk += state // 3 * epochs_kept(t, rows)
        work.disk_meanwhile = max(work.disk_meanwhile, 2 * state)
    return work


def _train(work: Work, p: dict, size: Size, made: dict[str, tuple]) -> None:
    """The trainings of 00, 01, 03 and 05, and what they make."""
    teacher = work.teacher

    def of(shape: str) -> LlamaConfig:
        return LlamaConfig(size.vocab_size, **SHAPES[shape], context=size.context)

    def train(name: str, student: LlamaConfig, by: LlamaConfig) -> None:
        by = None if p.get("ce_weight", 1.0) == 1 else by
        ahead = counts(_read(p, size), p, size.context)
        work.trainings.append(Training(name, student, by, _temperature(p, made), *ahead, p))
        if not work.trainings[-1].rank:
            work.made[name] = student

    match notebook_of(p["run"]):
        case notebooks.TEACHER:
            if not p["teacher"]:
                train("teacher", teacher, teacher)
            work.made["teacher"] = teacher
            work.disk = 0 if p["tokens"] else 4 * size.context * (size.train + size.val)
        case notebooks.DISTILL:
            train(p["student"], of(p["shape"]), teacher)
            work.loaded = teacher.parameters if work.trainings[0].teacher is None else 0
        case notebooks.LORA:
            base = _base(p, made)
            train(p["adapter"], base, teacher)
            work.disk = 4 * cost.adapter_parameters(base, work.trainings[0].rank)
        case notebooks.PROGRESSIVE:
            middle, small = of(p["middle_shape"]), of(p["small_shape"])
            train("150m", middle, teacher)
            train("75m", small, middle)
            train("75m-direct", small, teacher)
            work.loaded = teacher.parameters + small.parameters


def _score(work: Work, p: dict, size: Size, made: dict[str, tuple]) -> None:
    """The forward passes of 02, 06 and 07; 04 merges the adapters."""
    match notebook_of(p["run"]):
        case notebooks.HARD_SET:
            base, scored = _base(p, made), p.get("token_limit", 0) // size.context or size.train
            others = p.get("compare", "").split() + p.get("unseen_teacher", "").split()
            # a folder may not hold them yet: then as large as the base
            shapes = [base, work.teacher, *(made.get(name, (base,))[0] for name in others)]
            work.forwards = [(shape, min(size.train, scored)) for shape in shapes]
            work.disk = 8 * (size.train + size.hard)
        case notebooks.COMPARISON:
            adapters = {name: shape for name, (shape, softened) in made.items() if softened is None}
            work.made = {f"{name}-merged": shape for name, shape in adapters.items()}
        case notebooks.INFERENCE:  # each format on some windows; raw text computes more than once
            shapes = [made.get(name, (work.teacher,))[0] for name in p["models"].split()]
            whole = p["new_tokens"] * (p["prompt_tokens"] + p["new_tokens"]) // 2
            rows = 8 * p["quality_windows"] + 4 * p["repeats"] * whole // size.context
            work.forwards = [(shape, rows) for shape in shapes]
            work.disk = sum(round(4.4 * shape.parameters) for shape in shapes)  # four files
        case notebooks.EVIDENCE:  # every model reads the text that judges
            work.forwards = [(shape, size.val) for shape, _ in made.values()]


def _temperature(p: dict, made: dict) -> float:
    """A training's own, or that of its base."""
    return p.get("temperature") or made.get(p.get("base"), (None, 1.0))[1]


def _base(p: dict, made: dict) -> LlamaConfig:
    if p["base"] not in made:
        remedy = nearest(p["base"], made, "add one that does")
        raise ParameterError(f"{p['run']}: no run makes its base {p['base']}: {remedy}")
    return made[p["base"]][0]


def epochs_kept(t: Training, rows: int) -> int:
    """epoch-1.safetensors …: whole epochs that end before the last step does."""
    step = max(1, t.parameters["batch_tokens"] // t.student.context)
    ends = {math.ceil(e * rows / step) for e in range(1, int(t.parameters["epochs"]) + 1)}
    return sum(end < t.steps for end in ends)


def of_profile(runs: list[graph.BookRun], size: Size, teacher: LlamaConfig) -> list[Work]:
    """The work of every run, in the order of the book, sweeps after it: a point finds what the book
    made and what its own earlier runs did; the page of a sweep merges nothing."""
    made, points, works = {"teacher": (teacher, 1.0)}, {}, []
    for one in runs:
        p = one.parameters
        before = points.setdefault(one.out, dict(made)) if one.sweep else made
        works.append(of_run(p, size, teacher, {} if one.compares else before))
        temperature = _temperature(p, before)
        before |= {name: (shape, temperature) for name, shape in works[-1].made.items()}
        for t in (t for t in works[-1].trainings if t.rank):
            before |= {t.name: (t.student, None), f"{t.name}-merged": before[p["base"]]}
    return works


def training_flop(t: Training, taught: float = 1.0) -> float:
    """Of a whole training; `taught` is the share of its tokens that the teacher itself sees."""
    context = t.student.context
    flop = cost.step_flop(t.student, None, context, frozen=bool(t.rank))
    flop += 6 * cost.adapter_parameters(t.student, t.rank)
    if t.parameters["activation_checkpointing"]:
        flop += cost.forward_flop(t.student, context)
    if t.teacher:
        flop += taught * cost.forward_flop(t.teacher, context)
    return flop * t.windows * context


def cached_shares(works: list[Work], train: int) -> dict[str, float]:
    """Training → share of its tokens that the teacher sees where its targets are cached: at each
    temperature the first training fills the cache in its first epoch, others only read; those that
    a token_limit ends before an epoch share it where they meet the same windows. 05's middle model
    is asked online. "scores": 0 where a whole epoch has left the teacher's losses for 02."""
    filled, shares = set(), {"scores": 1.0}
    for t in (t for one in works for t in one.trainings if t.teacher == works[0].teacher):
        few, p = distinct(t.parameters, t.student.context), t.parameters
        whole = t.windows >= train and not few
        met = (t.temperature,) if whole else (t.temperature, p["seed"], p.get("windows"))
        read = {met, (t.temperature,)} & filled
        shares[t.name] = 0.0 if read else min(1.0, min(train, few or train) / t.windows)
        shares["scores"] *= not whole
        filled.add(met)
    return shares


def seconds(one: Work, device: Device, shares: dict | None = None) -> tuple[float, float]:
    """Low and high of a run; with `shares` (see cached_shares) from a cache."""
    low, high = BEGIN_S
    for t in one.trainings:
        quick, slow = training_seconds(t, device, (shares or {}).get(t.name, 1.0))
        low, high = low + quick, high + slow
    if notebook_of(one.run) == notebooks.INFERENCE:  # each way is timed, each file is run
        low, high = low + 8 * len(one.forwards), high + 40 * len(one.forwards)
    scored = shares and not shares["scores"] and notebook_of(one.run) == notebooks.HARD_SET
    forwards = [(c, n) for c, n in one.forwards if not (scored and c == one.teacher)]
    flop = sum(cost.forward_flop(c, one.context) * one.context * n for c, n in forwards)
    quick, slow = (flop / (share * device.forward_flop) for share in reversed(FORWARD))
    return low + quick, high + slow


def training_seconds(t: Training, device: Device, taught: float) -> tuple[float, float]:
    flop = training_flop(t, taught) / device.flop
    compiling = COMPILE_S if t.parameters["compile"] and device.kind == "cuda" else 0
    return flop / device.high, flop / device.low + compiling


def memory(one: Work, kind: str) -> int:
    """Bytes at the most: on a CPU the process's own too."""
    scored = {shape for shape, _ in one.forwards}
    most = sum(4 * shape.parameters for shape in scored)
    # what a layer of 16 windows holds at once, and six arrays of one window's logits
    held = (16 * (4 * c.mlp_dim + 6 * c.dim) for c in scored)
    most += 4 * one.context * max(held, default=0)
    most += 24 * one.context * one.teacher.vocab_size
    for t in one.trainings:
        again = t.parameters["activation_checkpointing"]
        sizes = (t.student, t.teacher, t.at_once, one.context, kind, t.rank, again)
        most = max(most, cost.training_bytes(*sizes) + 4 * one.loaded)
    return most + (PROCESS + FIGURES if kind == "cpu" else 0)


def here(device: str) -> Device:
    """This machine's CPU or GPU, its peak measured now."""
    import torch

    peak = cost.peak_flop(device)
    if "cuda" in device:
        properties = torch.cuda.get_device_properties(device)
        # a measured peak is some three quarters of a published one
        return Device(properties.name, peak, peak / 2, properties.total_memory, 0.27, 0.6)
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    name = f"this CPU, threads: {torch.get_num_threads()}"
    # 0.9 is a model of width 512 and more; one of width 64 spends most of its time between products
    return Device(name, peak, peak, ram, 0.2, 0.9, "cpu")


def status(name: str, otherwise: int, path: str = "/proc/self/status") -> int:
    """Bytes that a line of Linux's tells; `otherwise` elsewhere."""
    lines = Path(path).read_text().splitlines() if Path(path).exists() else []
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith(name)), otherwise)
