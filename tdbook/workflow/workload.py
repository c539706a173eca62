"""What every run of a profile does: its trainings, forward passes and files, counted beforehand."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from tdbook.runs import notebooks
from tdbook.runs.notebooks import EVIDENCE, HARD_SET, INFERENCE, TEACHER, notebook_of
from tdbook.workflow import cost, graph
from tdbook.workflow.cost import Device
from tdlib.shapes import SHAPES, LlamaConfig

# seconds, low and high: a kernel, its imports, figures and the page, on a GPU torch.compile too;
# and in 06 each model, every way of which is timed for a while
BEGIN_S, TIMED_S = {"cpu": (5.0, 20.0), "cuda": (5.0, 200.0)}, (8.0, 40.0)
# share of a device's peak that scoring and evaluation reach, low and high; on a GPU in TF32
SCORING = {"cpu": (0.85, 0.3), "cuda": (0.42, 0.15)}
MODELS = ("models/", "adapters/")
SCORED = 16  # windows at once in scoring and evaluation
RECORDS = 5_000_000  # bytes of a run's notebook, page, figures and tables
# notebook → what it trains, in the order in which it writes it: whose shape (the teacher's, its
# base's, or that of a parameter), and after "<" who teaches it
TRAINED = {
    TEACHER: "teacher",
    notebooks.DISTILL: "shape<teacher",
    notebooks.LORA: "base<teacher",
    notebooks.PROGRESSIVE: "middle_shape<teacher small_shape<middle_shape small_shape<teacher",
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
    def steps(self) -> int:
        batch = max(1, self.parameters["batch_tokens"] // self.student.context)
        return math.ceil(self.windows / batch)

    @property
    def rank(self) -> int:
        return self.parameters["rank"] if self.path.startswith("adapters/") else 0

    @property
    def weights(self) -> int:
        """Those that are trained."""
        student, rank = self.student, self.rank
        return cost.adapter_parameters(student, rank) if rank else student.parameters

    @property
    def flop(self) -> float:
        p, context = self.parameters, self.student.context
        flop = cost.step_flop(self.student, None, context, frozen=bool(self.rank))
        flop += 6 * self.weights if self.rank else 0
        flop += cost.forward_flop(self.student, context) if p["activation_checkpointing"] else 0
        if self.teacher:  # with a cache it sees the tokens of one epoch
            share = min(1.0, self.epoch / self.windows) if p.get("cached_draws") else 1.0
            flop += share * cost.forward_flop(self.teacher, context)
        return flop * self.windows * context

    def memory(self, kind: str) -> int:
        """Bytes at the most, above what the process had before."""
        p, context = self.parameters, self.student.context
        at_once = min(p["micro_windows"], max(1, p["batch_tokens"] // context), self.windows)
        more = kind, self.rank, p["activation_checkpointing"]
        return cost.training_bytes(self.student, self.teacher, at_once, context, *more)


@dataclass(frozen=True)
class Work:
    """What one run does, what it leaves, and what it needs meanwhile."""

    run: str
    context: int
    trainings: list[Training]
    made: dict[str, LlamaConfig]  # by path
    forwards: list[tuple[LlamaConfig, int]]  # a model, and windows
    timed: int  # models whose speed is measured
    disk: int  # bytes that stay

    @property
    def disk_meanwhile(self) -> int:
        """Bytes of a checkpoint, AdamW's two means in it, and of the next one beside it."""
        return max((2 * 12 * t.weights for t in self.trainings), default=0)

    @property
    def tokens(self) -> int:
        return self.context * sum(t.windows for t in self.trainings)

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
        training = sum(t.flop for t in self.trainings)
        shares = zip((device.high, device.low), SCORING[device.kind], strict=True)
        spent = [training / share + self.scoring_flop / scoring for share, scoring in shares]
        timed = [self.timed * seconds for seconds in TIMED_S]
        return total([BEGIN_S[device.kind], timed, [flop / device.flop for flop in spent]])

    def memory(self, kind: str) -> int:
        """Bytes at the most: all models of the run, and beside them what scoring or a training
        takes; on a CPU the process's own too."""
        shapes, tokens = {shape for shape, _ in self.forwards}, SCORED * self.context
        # six arrays of one window's logits, and a layer
        scoring = [cost.layer_bytes(c, tokens) + 24 * self.context * c.vocab_size for c in shapes]
        needs = [sum(4 * c.parameters for c in shapes) + max(scoring, default=0)]
        for t in self.trainings:
            others = shapes - {t.student, t.teacher}
            needs.append(t.memory(kind) + sum(4 * c.parameters for c in others))
        return max(needs) + (cost.PROCESS if kind == "cpu" else 0)


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
    run, notebook = p["run"], notebook_of(p["run"])
    writes = [path for path in notebooks.writes(run, p, [*made]) if path.startswith(MODELS)]
    models = dict(zip(writes, _shapes(p, size, teacher, made), strict=True))
    trainings = [
        Training(path, shape, None if p.get("ce_weight") == 1 else by, _epoch(p, size), p)
        for path, (shape, by) in models.items()
        if notebook in TRAINED and not (notebook == TEACHER and p["teacher"])
    ]
    scored = {  # windows that the models that it reads go over
        HARD_SET: min(size.train, p.get("token_limit", 0) // size.context or size.train),
        INFERENCE: 8 * p.get("quality_windows", 0),
        EVIDENCE: size.val,
    }
    reads = notebooks.reads(run, p, [*made]) if notebook in scored else []
    read = [made.get(path, teacher) for path in reads if path.startswith(MODELS)]
    forwards, disk = [(shape, scored[notebook]) for shape in read], RECORDS + 8 * size.train
    fixed = min(size.val, p.get("fixed_windows", 640))
    for shape, _ in models.values():
        forwards += [(shape, size.val + fixed), (teacher, fixed)]
    # a training leaves the weights of every whole epoch, any other model its own
    kept = [t.weights * math.ceil(t.windows / t.epoch) for t in trainings]
    disk += 4 * sum(kept or (shape.parameters for shape, _ in models.values()))
    if notebook == INFERENCE:  # four files
        disk += round(4.4 * sum(shape.parameters for shape in read))
    if notebook == TEACHER and not p["tokens"]:
        disk += 4 * size.context * (size.train + size.val)
    shapes = {path: shape for path, (shape, _) in models.items()}
    timed = len(read) if notebook == INFERENCE else 0
    return Work(run, size.context, trainings, shapes, forwards, timed, disk)


def _shapes(p: dict, size: Size, teacher: LlamaConfig, made: dict) -> list[tuple]:
    """The shape of each model or adapter that a run makes, and of who teaches it, or None."""

    def of(name: str) -> LlamaConfig | None:
        if name in ("teacher", "base"):
            return made.get(f"models/{p['base']}", teacher) if name == "base" else teacher
        return (
            LlamaConfig(size.vocab_size, **SHAPES[p[name]], context=size.context) if name else None
        )

    if notebook_of(p["run"]) == notebooks.COMPARISON:  # every adapter merged
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
