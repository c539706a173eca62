"""Before a night is paid for: what each run of a profile costs, in bytes, hours and money.

`make plan` prints it; with DRY=1 a command says what it would run, and why. Imports torch only
where this machine's own speed is asked for.
"""

import shutil
import textwrap
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tdbook.runs import hashes, parameters, units
from tdbook.runs.notebooks import HARD_SET, TEACHER, notebook_of
from tdbook.runs.parameters import ParameterError
from tdbook.runs.sweeps import Folder
from tdbook.workflow import graph, status, workload
from tdbook.workflow.workload import Size, Work
from tdlib import files, shapes
from tdlib.shapes import LlamaConfig

NOMINAL = 3_700_000_000  # training tokens, by the count of the teacher's owner
META = ("vocab_size", "block_size", "train_tokens", "val_tokens")


@dataclass(frozen=True)
class Asked:
    runs: list[graph.BookRun]
    out: Path
    tokens: Path | None  # the folder, where there is one
    size: Size
    teacher: LlamaConfig
    works: list[Work]  # of each run


def asked(wanted: graph.Wanted) -> Asked:
    """A command's runs and what they need, with its text and teacher as far as they are there."""
    jobs = graph.jobs(wanted.config, paths=False)
    if TEACHER not in jobs:
        raise ParameterError(f"params/{wanted.profile} has no {TEACHER}.yaml: add one")
    p, out = jobs[TEACHER].parameters, parameters.ROOT / wanted.out
    shares = [one.parameters["share"] for one in jobs.values() if one.notebook == HARD_SET]
    teacher = _teacher(p, out, jobs[TEACHER].given.get("teacher"))
    tokens = parameters.ROOT / (p["tokens"] or out / "tokens")
    tokens = tokens if p["tokens"] or (tokens / "meta.json").is_file() else None
    size = size_of(tokens, out, *shares[:1]) if tokens else _guessed(p, teacher, *shares[:1])
    teacher = teacher or size.shape(p["shape"])
    if size.vocab_size < teacher.vocab_size < 2 * size.vocab_size:  # 00 cuts rows of no piece
        teacher = replace(teacher, vocab_size=size.vocab_size)
    if teacher.vocab_size != size.vocab_size:
        both = f"{teacher.vocab_size:,}, the tokens' {size.vocab_size:,}"
        raise ParameterError(f"the teacher's vocabulary is {both}: give its own tokens (TOKENS=)")
    if teacher.context < size.context:
        both = f"{teacher.context:,}, the tokens' {size.context:,}"
        raise ParameterError(f"the teacher's context is {both}: give a shorter block_size")
    made, works = {"models/teacher": teacher}, {}
    for one in jobs.values():
        works[one.name] = work = workload.of_run(one.parameters, size, teacher, made)
        made |= work.made
    names = graph.targets_of(wanted, jobs)
    for name in names:  # it grows
        names += [need for need in jobs[name].needs if need in jobs and need not in names]
    names = [name for name in jobs if name in names]
    runs, works = ([each[name] for name in names] for each in (jobs, works))
    return Asked(runs, out, tokens, size, teacher, works)


def size_of(folder: Path, out: Path, share: float = 0.2) -> Size:
    """How much a folder of tokens holds; the hard set is the run folder's, or a share."""
    if (meta := files.record(folder / "meta.json", *META)) is None:
        fault = f"{folder}/meta.json is not there"
        raise FileNotFoundError(f"{fault}: give a folder of tokens (TOKENS=)")
    size = _size(*(int(meta[name]) for name in META), share, f"in {folder}")
    chosen = hashes.chosen(out / hashes.HARD_SET)
    return size if chosen is None else replace(size, hard=len(chosen["windows_K"]))


def _guessed(p: dict, teacher: LlamaConfig | None, share: float = 0.2) -> Size:
    """Before there are tokens: those of the text that 00 writes, by its length, or the nominal."""
    # with vocabularies of 600, 2,048 and 8,192 a token has 2.05, 3.56 and 5.83 characters
    vocab_size = teacher.vocab_size if teacher else p["vocab_size"]
    written = p["text_characters"] / (0.162 * vocab_size**0.4)
    train = round(written * (1 - p["val_share"]) or NOMINAL)
    val = round(train * p["val_share"] / (1 - p["val_share"]))
    how = "about, by the length of the text" if written else "nominal"
    return _size(vocab_size, p["context"], train, val, share, f"{how}: no tokens yet (TOKENS=)")


def _size(vocab_size: int, context: int, train: int, val: int, share: float, where: str) -> Size:
    windows, checked = (train - 1) // context, (val - 1) // context
    source = f"{units.si(train)} for training, {units.si(val)} for validation, {where}"
    return Size(vocab_size, context, windows, checked, round(share * windows), source)


def _teacher(p: dict, out: Path, told: str | None = None) -> LlamaConfig | None:
    """The shape of 00's teacher, or the run folder's; None: not there, nor `told` by a command."""
    given = p["teacher"] if notebook_of(p["run"]) == TEACHER else ""
    path = parameters.ROOT / given if given else out / "models" / (p.get("teacher") or "teacher")
    if path.is_file():
        from tdlib import teacher  # imports torch

        return teacher.load(path).config
    return shapes.read_config(path) if told or path.is_dir() else None


def estimate(p: dict, out: Path, device: str) -> dict:
    """What a run that begins now will cost, by what its run folder holds: recorded with it."""
    size, models = size_of(out / "tokens", out), sorted((out / "models").glob("[!.]*/config.json"))
    made = {f"models/{path.parent.name}": shapes.read_config(path.parent) for path in models}
    made = {path: replace(shape, context=size.context) for path, shape in made.items()}
    for adapter, base in Folder(out, p["run"]).adapters.items():
        if f"models/{base}" in made:  # it is being made again: its adapters are older than it
            made[f"adapters/{adapter}"] = made[f"models/{base}"]
    work = workload.of_run(p, size, _teacher(p, out) or size.shape(p["shape"]), made)
    low, high = work.seconds(workload.here(device))
    cost = {"flop": work.flop, "tokens": work.tokens, "seconds_low": low, "seconds_high": high}
    cost["steps"] = sum(training.steps for training in work.trainings)
    return cost | {"peak_memory_mib": work.memory(device[:4]) / 2**20}


def plan(pairs: dict[str, str]) -> str:
    """All in plain text of 80 columns: what is at hand and what matters, the sizes, every run."""
    wanted = graph.wanted("plan", pairs)
    device, source = workload.device_of(pairs.get("DEVICE", ""), wanted.profile)
    of, reached = asked(wanted), workload.REACHED[device.kind]
    need, most = max((work.memory(device.kind), work.run) for work in of.works)
    free = shutil.disk_usage(next(p for p in (of.out, *of.out.parents) if p.is_dir())).free
    # as training/cache: of 12 draws a token ids and float16 probabilities, of a window five bytes
    cache = of.size.context * 12 * ((2 if of.size.vocab_size <= 2**16 else 4) + 2) + 5
    content = {"wanted": wanted, "device": device, "source": source, "of": of, "reached": reached}
    content |= {"need": need, "most": most, "free": free, "cache": of.size.train * cache}
    content |= {"models": _models(of.works), "spans": [work.seconds(device) for work in of.works]}
    content |= {"time": partial(_time, price=wanted.price), "units": units}
    head, tables = status.filled("plan", **content).split("\n\n", 1)
    lines = (textwrap.fill(line, 80, subsequent_indent=" " * 12) for line in head.splitlines())
    return "\n".join([*lines, "", tables])


def _models(works: list[Work]) -> dict[LlamaConfig, str]:
    """Every shape that is made, with the shortest name that has it."""
    models: dict[LlamaConfig, str] = {}
    for path, shape in ((path, shape) for work in works for path, shape in work.made.items()):
        if path.startswith("models/"):
            name = path.removeprefix("models/")
            models[shape] = min(models.get(shape, name), name, key=len)
    return models


def _time(spans: list[tuple[float, float]], price: float | None) -> list[str]:
    """Of spans of seconds together: how long, and for how much where a price is known."""
    low, high = map(sum, zip(*spans, strict=True))
    return [units.duration(low, high), *([units.money((low, high), price)] if price else [])]


def dry(wanted: graph.Wanted) -> str:
    """What a command would run, why, how long it takes and what it costs. Nothing is written."""
    reasons = graph.judged(wanted, graph.jobs(wanted.config))
    of, (device, source) = asked(wanted), workload.device_of("", wanted.profile)
    times = {one.name: work.seconds(device) for one, work in zip(of.runs, of.works, strict=True)}
    content = {"wanted": wanted, "reasons": reasons, "times": times, "device": device}
    content |= {"todo": [times[name] for name, reason in reasons.items() if reason]}
    return status.filled("dry", time=partial(_time, price=wanted.price), source=source, **content)
