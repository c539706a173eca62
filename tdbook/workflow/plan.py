"""Before a night is paid for: what each run of a profile costs, in bytes, hours and money.

`make plan` prints it; with DRY=1 a command says what it would run, and why. Imports torch only
where this machine's own speed is asked for.
"""

import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

from tabulate import tabulate

from tdbook.runs import hashes, parameters, units
from tdbook.runs.folder import Folder
from tdbook.runs.notebooks import HARD_SET, TEACHER, notebook_of
from tdbook.runs.parameters import ParameterError
from tdbook.runs.units import Q4_LIMIT
from tdbook.workflow import graph, request, workload
from tdbook.workflow.workload import Device, Size, Work, total
from tdlib import files, shapes
from tdlib.shapes import SHAPES, LlamaConfig

NOMINAL = 3_700_000_000  # training tokens, by the count of the teacher's owner


@dataclass(frozen=True)
class Asked:
    """What a command line asks about."""

    runs: list[graph.BookRun]
    out: Path
    tokens: Path | None  # the folder, where there is one
    size: Size
    teacher: LlamaConfig
    vocabularies: tuple[int, ...]  # several where it is not known
    works: list[Work]  # of each run


def asked(wanted: graph.Wanted, vocabulary: int = 0) -> Asked:
    """A command's runs, with its text and teacher as far as they are there."""
    jobs = graph.jobs(wanted.config, paths=False)
    if TEACHER not in jobs:
        raise ParameterError(f"params/{wanted.profile} has no {TEACHER}.yaml: add one")
    p, out = jobs[TEACHER].parameters, parameters.ROOT / wanted.out
    for name in ("tokens", "teacher"):
        if p[name] and not (parameters.ROOT / p[name]).exists():
            raise ParameterError(f"{name.upper()}={p[name]} is not there: correct the path")
    scoring = [one.parameters for one in jobs.values() if one.notebook == HARD_SET]
    share = scoring[0]["share"] if scoring else 0.2
    teacher = _teacher(parameters.ROOT / (p["teacher"] or out / "models/teacher"))
    tokens, vocabularies = parameters.ROOT / (p["tokens"] or out / "tokens"), ()
    if p["tokens"] or (tokens / "meta.json").is_file():
        size = size_of(tokens, out, share)
    else:
        vocabularies = (p["vocab_size"],) if p["text_characters"] else units.VOCABULARIES
        given = vocabulary or (teacher and teacher.vocab_size)
        vocabularies = (given,) if given else vocabularies
        tokens, size = None, _guessed(p, vocabularies[0], share)
    teacher = teacher or LlamaConfig(size.vocab_size, **SHAPES[p["shape"]], context=size.context)
    if teacher.vocab_size != size.vocab_size:
        both = f"{teacher.vocab_size:,}, the tokens' {size.vocab_size:,}"
        remedy = "give the tokens that it was made with (TOKENS=, VOCAB=)"
        raise ParameterError(f"the teacher's vocabulary is {both}: {remedy}")
    sizes, works = vocabularies or (size.vocab_size,), workload.of_profile(jobs, size, teacher)
    return Asked([*jobs.values()], out, tokens, size, teacher, sizes, works)


def size_of(folder: Path, out: Path, share: float = 0.2) -> Size:
    """How much a folder of tokens holds; the hard set is the run folder's, or a share."""
    names = ("vocab_size", "block_size", "train_tokens", "val_tokens")
    meta = files.record(folder / "meta.json", *names)
    if meta is None:
        path = folder / "meta.json"
        raise FileNotFoundError(f"{path} is not there: give a folder of tokens (TOKENS=)")
    size = _size(*(int(meta[name]) for name in names), share, f"in {folder}")
    chosen = hashes.chosen(out / hashes.HARD_SET)
    return size if chosen is None else replace(size, hard=len(chosen["windows_K"]))


def _guessed(p: dict, vocab_size: int, share: float) -> Size:
    """Before there are tokens: those of the text that 00 writes, by its length, or the nominal."""
    # written text at vocabularies of 600, 2,048 and 8,192 has 2.05, 3.56 and 5.83 characters each
    written = p["text_characters"] / (0.162 * vocab_size**0.4)
    train = round(written * (1 - p["val_share"]) or NOMINAL)
    val = round(train * p["val_share"] / (1 - p["val_share"]))
    how = "about, by the length of the text" if written else "nominal"
    return _size(vocab_size, p["context"], train, val, share, f"{how}: no tokens yet (TOKENS=)")


def _size(vocab_size: int, context: int, train: int, val: int, share: float, where: str) -> Size:
    windows, checked = (train - 1) // context, (val - 1) // context
    source = f"{units.si(train)} for training, {units.si(val)} for validation, {where}"
    return Size(vocab_size, context, windows, checked, round(share * windows), source)


def _teacher(path: Path) -> LlamaConfig | None:
    """The shape of a Llama folder or of upstream's file; None for a run folder's, not yet there."""
    if path.is_file():
        from tdlib import teacher  # imports torch

        return teacher.load(path).config
    if path.is_dir() and not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path} is no teacher: give a Llama folder or a .pt file")
    return shapes.read_config(path) if path.is_dir() else None


def estimate(p: dict, out: Path, device: str) -> dict:
    """What a run that begins now will cost, from what its run folder holds: to be recorded, and
    later set beside the truth. Seconds low and high, memory as peak_memory_mib counts it."""
    size, made = size_of(out / "tokens", out), {}
    for path in sorted((out / "models").glob("[!.]*/config.json")):
        shape = shapes.read_config(path.parent)
        made[f"models/{path.parent.name}"] = replace(shape, context=size.context)
    for adapter, base in Folder(out, p["run"]).adapters.items():
        made[f"adapters/{adapter}"] = made[f"models/{base}"]
    if notebook_of(p["run"]) != TEACHER:
        teacher = _teacher(out / "models" / p.get("teacher", "teacher"))
    elif not (teacher := p["teacher"] and _teacher(parameters.ROOT / p["teacher"])):
        teacher = LlamaConfig(size.vocab_size, **SHAPES[p["shape"]], context=size.context)
    work, kind = workload.of_run(p, size, teacher, made), device[:4]
    low, high = work.seconds(workload.here(device))
    steps = sum(-(-t.windows // t.batch) for t in work.trainings)
    cost = {"seconds_low": low, "seconds_high": high, "peak_memory_mib": work.memory(kind) / 2**20}
    return cost | {"flop": work.flop, "tokens": work.tokens, "steps": steps}


def plan(pairs: dict[str, str]) -> str:
    """All in plain text of 80 columns: what is at hand and what matters, the sizes, every run."""
    wanted = request.wanted("plan", pairs)
    device, source = workload.device_of(pairs.get("DEVICE", ""), wanted.profile)
    vocabulary = int(units.number(pairs, "VOCAB", 300, 51800)) if pairs.get("VOCAB") else 0
    of = asked(wanted, vocabulary)
    works, models = of.works, {}
    for path, shape in ((path, shape) for work in works for path, shape in work.made.items()):
        if path.startswith("models/"):  # every shape → the shortest name that has it
            name = path.removeprefix("models/")
            models[shape] = min(models.get(shape, name), name, key=len)
    high, low = workload.TRAINING[device.kind]
    changed = f", with SET={parameters.in_words(wanted.settings)}" if wanted.settings else ""
    several = ", both, as there are no tokens yet (VOCAB=)" if len(of.vocabularies) > 1 else ""
    sizes = sorted((units.file_bytes(shape), name) for shape, name in models.items())
    within = [f"{name} {units.si(size, 'B')}" for size, name in sizes if size <= Q4_LIMIT]
    smallest = f"NONE; the smallest is {sizes[0][1]}, {units.si(sizes[0][0], 'B')}"
    need, most = max((work.memory(device.kind), work.run) for work in works)
    enough = "fits" if need < device.bytes else "DOES NOT FIT, fewer micro_windows need less"
    # as cache.size: of 12 draws a token ids and float16 probabilities, of a window five bytes
    cache = of.size.context * 12 * ((2 if of.size.vocab_size <= 2**16 else 4) + 2) + 5
    rows = {
        "profile": f"{wanted.profile}, {len(of.runs)} runs{changed}",
        "device": f"{device.name}, {device.flop:.3g} FLOP/s, {source}; a training reaches "
        f"{low:.0%} to {high:.0%} of it",
        "tokens": of.size.source,
        "vocabulary": " and ".join(f"{size:,}" for size in of.vocabularies) + several,
        "within 33 MB": ", ".join(within) or smallest,
        "memory": f"{units.si(need, 'B')} of {units.si(device.bytes, 'B')} ({most}): {enough}",
        "cache": f"{units.si(of.size.train * cache, 'B')} a temperature where it is on (12 draws)",
    }
    indent = " " * 14
    lines = [textwrap.fill(f"{k:14}{v}", 80, subsequent_indent=indent) for k, v in rows.items()]
    tables = [_sizes(models, of.teacher, size) for size in of.vocabularies]
    return "\n\n".join(["\n".join(lines), *tables, _runs(works, device, wanted.price)])


def _sizes(models: dict[LlamaConfig, str], teacher: LlamaConfig, vocab_size: int) -> str:
    rows, teacher = [], replace(teacher, vocab_size=vocab_size)
    layers = teacher.parameters - teacher.embedding_parameters
    for shape, name in models.items():
        shape = replace(shape, vocab_size=vocab_size)
        size, own = units.file_bytes(shape), shape.parameters - shape.embedding_parameters
        row = [name, f"{shape.parameters / 1e6:.1f} M", f"{shape.embedding_parameters / 1e6:.1f} M"]
        row += [f"{teacher.parameters / shape.parameters:.1f} ×", f"{layers / own:.1f} ×"]
        rows.append([*row, f"{size / 1e6:.1f} MB", "within" if size <= Q4_LIMIT else "ABOVE"])
    names = ["model", "weights", "embedding", "smaller", "without it", "Q4_0 file", "33 MB"]
    return f"SIZES, vocabulary {vocab_size:,}\n{_table(names, rows)}"


def _runs(works: list[Work], device: Device, price: float | None) -> str:
    rows, spans = [], [work.seconds(device) for work in works]
    for work, span in zip(works, spans, strict=True):
        sizes = [units.si(size, "B") for size in (work.memory(device.kind), work.disk)]
        rows.append(
            [work.run, units.si(work.tokens), f"{work.flop:.2g}", *sizes, *_time(span, price)]
        )
    disk = units.si(sum(work.disk for work in works), "B")
    rows.append(["all", "", "", "", disk, *_time(total(spans), price)])
    names = ["run", "tokens", "FLOP", "memory", "disk", "time", "cost"]
    return f"RUNS, one after the other\n{_table(names[: len(rows[0])], rows)}"


def _time(span: tuple[float, float], price: float | None) -> list[str]:
    return [units.duration(*span), *([units.money(span, price)] if price else [])]


def _table(names: list[str], rows: list[list[str]]) -> str:
    """The first column to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    lines = []
    for first, *cells in (names, ["-" * width for width in widths], *rows):
        pairs = zip(cells, widths[1:], strict=True)
        lines.append("  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in pairs)]))
    return "\n".join(lines)


def dry(wanted: graph.Wanted) -> str:
    """What a command would run, why, how long it takes and what it costs. Nothing is written."""
    reasons = graph.judged(wanted, graph.jobs(wanted.config))
    times, source = seconds(wanted)
    todo = [times[name] for name, reason in reasons.items() if reason]
    rows = [
        [name, reason or "is done", *(_time(times[name], wanted.price) if reason else ["–"])]
        for name, reason in reasons.items()
    ]
    names = ["run", "why", "time", "cost"][: 4 if wanted.price else 3]
    table = tabulate(rows, names, maxcolwidths=[None, 60])
    if not todo:
        return f"{table}\n\nAll of them are done."
    took = ", for ".join(_time(total(todo), wanted.price))
    return f"{table}\n\n{len(todo)} of {len(rows)} would run: {took}; on {source}. Nothing was run."


def seconds(wanted: graph.Wanted) -> tuple[dict[str, tuple[float, float]], str]:
    """Of every run, low and high; and on which device."""
    of, (device, source) = asked(wanted), workload.device_of("", wanted.profile)
    spans = [work.seconds(device) for work in of.works]
    names = [one.name for one in of.runs]
    return dict(zip(names, spans, strict=True)), f"{device.name}, {source}"
