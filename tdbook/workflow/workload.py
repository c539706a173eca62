"""What every run of a profile does: its trainings, forward passes and files, counted beforehand."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from tdbook.runs import notebooks
from tdbook.runs.notebooks import notebook_of
from tdbook.runs.parameters import ParameterError, nearest
from tdbook.workflow import cost, graph
from tdbook.workflow.cost import Device
from tdlib.shapes import SHAPES, LlamaConfig

BEGIN_S = (5.0, 20.0)  # a kernel, its imports, figures and the page, low and high
TIMED_S = (8.0, 40.0)  # 06 on a model: each way is timed for a while, each file is run
COMPILE_S = 180.0  # torch.compile of both models, at most
PROCESS = 495 * 2**20  # bytes of a notebook's process on a CPU, with figures, tables and scores
SCORING = (0.85, 0.3)  # share of a device's peak that scoring reaches, for low and high
MODELS = ("models/", "adapters/")
SCORED = 16  # windows at once in scoring and evaluation


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
    def steps(self) -> int:
        return math.ceil(self.windows / self.batch)

    @property
    def rank(self) -> int:
        return self.parameters["rank"] if self.path.startswith("adapters/") else 0

    @property
    def kept_epochs(self) -> int:
        """epoch-1.safetensors …: whole epochs before the end."""
        return math.ceil(self.windows / self.epoch) - 1

    @property
    def taught(self) -> float:
        """Share of its tokens that the teacher itself sees: with a cache those of one epoch."""
        if not self.teacher:
            return 0.0
        return min(1.0, self.epoch / self.windows) if self.parameters.get("cached_draws") else 1.0

    @property
    def flop(self) -> float:
        context = self.student.context
        flop = cost.step_flop(self.student, None, context, frozen=bool(self.rank))
        flop += 6 * cost.adapter_parameters(self.student, self.rank)
        if self.parameters["activation_checkpointing"]:
            flop += cost.forward_flop(self.student, context)
        if self.teacher:
            flop += self.taught * cost.forward_flop(self.teacher, context)
        return flop * self.windows * context

    def seconds(self, device: Device) -> tuple[float, float]:
        """Low and high."""
        peak, compiles = self.flop / device.flop, self.parameters["compile"]
        compiling = COMPILE_S if compiles and device.kind == "cuda" else 0
        return peak / device.high, peak / device.low + compiling

    def memory(self, kind: str) -> int:
        """Bytes at the most, above what the process had before."""
        at_once = min(self.parameters["micro_windows"], self.batch, self.windows)
        again = self.parameters["activation_checkpointing"]
        shapes = self.student, self.teacher
        return cost.training_bytes(*shapes, at_once, self.student.context, kind, self.rank, again)


@dataclass
class Work:
    """What one run does, what it leaves, and what it needs meanwhile."""

    run: str
    context: int
    teacher: LlamaConfig
    trainings: list[Training]
    made: dict[str, LlamaConfig]  # by path
    forwards: list[tuple[LlamaConfig, int]] = field(default_factory=list)  # a model, and windows
    timed: int = 0  # models whose speed is measured
    disk: int = 0  # bytes that stay
    disk_meanwhile: int = 0  # and that go again: a checkpoint, and the next one beside it

    @property
    def tokens(self) -> int:
        return self.context * sum(t.windows for t in self.trainings)

    @property
    def steps(self) -> int:
        return sum(t.steps for t in self.trainings)

    @property
    def scoring_flop(self) -> float:
        """Of scoring and evaluation."""
        rows = ((cost.forward_flop(shape, self.context), n) for shape, n in self.forwards)
        return self.context * sum(flop * n for flop, n in rows)

    @property
    def flop(self) -> float:
        return sum(t.flop for t in self.trainings) + self.scoring_flop

    def seconds(self, device: Device) -> tuple[float, float]:
        """Low and high."""
        scoring = [self.scoring_flop / (share * device.forward_flop) for share in SCORING]
        timed = [self.timed * seconds for seconds in TIMED_S]
        return total([BEGIN_S, timed, scoring, *(t.seconds(device) for t in self.trainings)])

    def memory(self, kind: str) -> int:
        """Bytes at the most: on a CPU the process's own too."""
        shapes = {shape for shape, _ in self.forwards}
        layer = max((cost.layer_bytes(c, SCORED * self.context) for c in shapes), default=0)
        logits = 6 * 4 * self.context * self.teacher.vocab_size  # six arrays of one window
        most = sum(4 * shape.parameters for shape in shapes) + layer + logits
        for t in self.trainings:  # the folder's teacher is loaded, whoever teaches
            loaded = 0 if t.teacher == self.teacher else 4 * self.teacher.parameters
            most = max(most, t.memory(kind) + loaded)
        return most + (PROCESS if kind == "cpu" else 0)


def total(spans: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """The sums of (low, high)."""
    low, high = zip(*spans, strict=True)
    return sum(low), sum(high)


def of_profile(runs: list[graph.BookRun], size: Size, teacher: LlamaConfig) -> list[Work]:
    """The work of every run, in the order of the book, sweeps after it: a point finds what the book
    made and what its own earlier runs did; the page of a sweep merges nothing."""
    made, points, works = {"models/teacher": teacher}, {}, []
    for one in runs:
        before = points.setdefault(one.out, dict(made)) if one.sweep else made
        works.append(of_run(one.parameters, size, teacher, {} if one.compares else before))
        before |= works[-1].made
    return works


def of_run(p: dict, size: Size, teacher: LlamaConfig, made: dict[str, LlamaConfig]) -> Work:
    """What a run with these parameters does. `made`: path → shape of what is there before it; an
    adapter has its base's."""
    shapes = _shapes(p, size, teacher, made)
    paths = [path for path in notebooks.writes(p["run"], p, [*made]) if path.startswith(MODELS)]
    named = dict(zip(paths, (shape for shape, _ in shapes), strict=True))
    work = Work(p["run"], size.context, teacher, [], named)
    imports = notebook_of(p["run"]) == notebooks.TEACHER and p["teacher"]
    if notebooks.of(p["run"]).trains and not imports:
        alone, epoch = p.get("ce_weight") == 1, _epoch(p, size)
        for path, (shape, by) in zip(paths, shapes, strict=True):
            work.trainings.append(Training(path, shape, None if alone else by, epoch, p))
    _score(work, p, size, made)
    fixed = min(size.val, p.get("fixed_windows", 640))
    for path, shape in named.items():
        rank = p["rank"] if path.startswith("adapters/") else 0
        work.disk += cost.state_bytes(shape, rank) // 3 + 4 * (size.val + size.context * fixed)
        work.forwards += [(shape, size.val + fixed), (teacher, fixed)]
    for t in work.trainings:
        work.forwards.append((t.student, 9 * min(64, size.val)))  # while it trains
        state = cost.state_bytes(t.student, t.rank)
        work.disk += state // 3 * t.kept_epochs
        work.disk_meanwhile = max(work.disk_meanwhile, 2 * state)
    return work


def _shapes(p: dict, size: Size, teacher: LlamaConfig, made: dict) -> list[tuple]:
    """The shape of each model or adapter that a run makes, and of who teaches it."""

    def of(name: str) -> LlamaConfig:
        return LlamaConfig(size.vocab_size, **SHAPES[p[name]], context=size.context)

    match notebook_of(p["run"]):
        case notebooks.TEACHER:
            return [(teacher, None)]
        case notebooks.DISTILL:
            return [(of("shape"), teacher)]
        case notebooks.LORA:
            return [(_base(p, made), teacher)]
        case notebooks.COMPARISON:  # every adapter merged
            return [(shape, None) for path, shape in made.items() if path.startswith("adapters/")]
        case notebooks.PROGRESSIVE:
            middle, small = of("middle_shape"), of("small_shape")
            return [(middle, teacher), (small, middle), (small, teacher)]
    return []


def _epoch(p: dict, size: Size) -> int:
    """Windows that a training reads once an epoch."""
    windows = size.train
    match notebook_of(p["run"]):
        case notebooks.DISTILL:
            if p["left_out"]:
                windows -= windows // int(p["left_out"].split("/")[1])
            distinct = max(1, p["distinct_tokens"] // size.context)
            return min(windows, distinct) if p["distinct_tokens"] else windows
        case notebooks.LORA:
            return round(p["share"] * windows) if p["share"] else size.hard
    return windows


def _base(p: dict, made: dict[str, LlamaConfig]) -> LlamaConfig:
    if (path := f"models/{p['base']}") not in made:
        names = [path.removeprefix("models/") for path in made]
        remedy = nearest(p["base"], names, "add one that does")
        raise ParameterError(f"{p['run']}: no run makes its base {p['base']}: {remedy}")
    return made[path]


def _score(work: Work, p: dict, size: Size, made: dict[str, LlamaConfig]) -> None:
    """What a run scores, times and writes besides models."""
    windows, shapes = size.val, []
    match notebook_of(p["run"]):
        case notebooks.TEACHER:
            work.disk = 0 if p["tokens"] else 4 * size.context * (size.train + size.val)
        case notebooks.HARD_SET:  # a folder may not hold others yet: then as large as the base
            base, others = _base(p, made), f"{p['compare']} {p['unseen_teacher']}".split()
            shapes = [base, work.teacher, *(made.get(f"models/{name}", base) for name in others)]
            windows = min(size.train, p["token_limit"] // size.context or size.train)
            work.disk = 8 * (size.train + size.hard)
        case notebooks.INFERENCE:
            shapes = [made.get(f"models/{name}", work.teacher) for name in p["models"].split()]
            windows, work.timed = 8 * p["quality_windows"], len(shapes)
            work.disk = sum(round(4.4 * shape.parameters) for shape in shapes)  # four files
        case notebooks.EVIDENCE:  # every model reads the text that judges
            shapes = [*made.values()]
    work.forwards = [(shape, windows) for shape in shapes]
