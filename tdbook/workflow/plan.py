"""Before a night is paid for: what each run of a profile costs, in bytes, hours and money.

`make plan` prints it. Imports torch only where this machine's own speed is asked for.
"""

import json
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

from tdbook.runs import hashes, parameters, settings, units
from tdbook.runs.estimates import Q4_LIMIT, VOCABULARIES
from tdbook.runs.notebooks import HARD_SET, TEACHER, notebook_of
from tdbook.runs.parameters import ParameterError
from tdbook.workflow import cost, graph, request, workload
from tdbook.workflow.cost import Device
from tdbook.workflow.workload import Size, Work, total
from tdlib import files, shapes
from tdlib.shapes import SHAPES, LlamaConfig

NOMINAL = 3_700_000_000  # training tokens, by the count of the teacher's owner
NIGHT_H = 10


@dataclass(frozen=True)
class Asked:
    """What a command line asks about."""

    runs: list[graph.BookRun]
    out: Path
    tokens: Path | None  # the folder, where there is one
    size: Size
    teacher: LlamaConfig
    vocabularies: tuple[int, ...]  # several where it is not known

    def works(self) -> list[Work]:
        return workload.of_profile(self.runs, self.size, self.teacher)

    def with_vocabulary(self, size: int) -> "Asked":
        sized = (replace(one, vocab_size=size) for one in (self.size, self.teacher))
        return replace(self, **dict(zip(("size", "teacher"), sized, strict=True)))


def asked(wanted: graph.Wanted, vocabulary: int = 0) -> Asked:
    """A command's runs, with its text and teacher as far as they are there. ParameterError: a path
    that is not there, or a teacher of another vocabulary."""
    for name in ("tokens", "teacher"):
        path = wanted.given.get(name)
        if path and not (parameters.ROOT / path).exists():
            raise ParameterError(f"{name.upper()}={path} is not there: correct the path")
    jobs = graph.jobs(wanted.config, paths=False)
    if TEACHER not in jobs:
        raise ParameterError(f"params/{wanted.profile} has no {TEACHER}.yaml: add one")
    p, out = jobs[TEACHER].parameters, parameters.ROOT / wanted.out
    folder = parameters.ROOT / p["tokens"] if p["tokens"] else out / "tokens"
    path = parameters.ROOT / p["teacher"] if p["teacher"] else out / "models/teacher"
    known = bool(p["tokens"]) or (folder / "meta.json").is_file()
    if known:
        size = size_of(folder, out)
        vocabularies = (size.vocab_size,)
    else:
        vocabularies = (vocabulary,) if vocabulary else _vocabularies(p, path)
        size = _guessed(p, vocabularies[0])
    scoring = next((one.parameters for one in jobs.values() if one.notebook == HARD_SET), None)
    if scoring and hashes.chosen(out / hashes.HARD_SET) is None:
        scored = scoring["token_limit"] // size.context or size.train
        size = replace(size, hard=round(scoring["share"] * min(size.train, scored)))
    teacher = _teacher(p, path, size)
    if teacher.vocab_size != size.vocab_size:
        both = f"{teacher.vocab_size:,}, the tokens' {size.vocab_size:,}"
        remedy = "give the tokens that it was made with (TOKENS=, VOCAB=)"
        raise ParameterError(f"the teacher's vocabulary is {both}: {remedy}")
    tokens = folder if known else None
    return Asked([*jobs.values()], out, tokens, size, teacher, vocabularies)


def _vocabularies(p: dict, teacher: Path) -> tuple[int, ...]:
    """Their sizes before there are tokens; both of the plan's where nothing says which."""
    if p["teacher"]:
        return (_teacher(p, teacher, Size(0, 0, 0, 0, 0, "")).vocab_size,)
    return (p["vocab_size"],) if p["text_characters"] else VOCABULARIES


def size_of(folder: Path, out: Path) -> Size:
    """How much a folder of tokens holds; the hard set is the run folder's, or a fifth."""
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf8"))
        names = ("vocab_size", "block_size", "train_tokens", "val_tokens")
        size = _size(*(int(meta[name]) for name in names), f"in {folder}")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is not there: give a folder of tokens (TOKENS=)") from None
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{path} does not tell of tokens ({error!r}): copy it again") from None
    chosen = hashes.chosen(out / hashes.HARD_SET)
    return size if chosen is None else replace(size, hard=len(chosen["windows_K"]))


def _guessed(p: dict, vocab_size: int) -> Size:
    """Before there are tokens: those of the text that 00 writes, by its length, or the nominal."""
    # written text at vocabularies of 600, 2,048 and 8,192 has 2.05, 3.56 and 5.83 characters each
    written = p["text_characters"] / (0.162 * vocab_size**0.4)
    train = round(written * (1 - p["val_share"]) or NOMINAL)
    val = round(train * p["val_share"] / (1 - p["val_share"]))
    how = "about, by the length of the text" if written else "nominal"
    return _size(vocab_size, p["context"], train, val, f"{how}: no tokens yet (TOKENS=)")


def _size(vocab_size: int, context: int, train: int, val: int, where: str) -> Size:
    windows, checked = (train - 1) // context, (val - 1) // context
    source = f"{units.si(train)} for training, {units.si(val)} for validation, {where}"
    return Size(vocab_size, context, windows, checked, round(0.2 * windows), source)


def _teacher(p: dict, path: Path, size: Size) -> LlamaConfig:
    """The shape of the teacher at a path (a Llama folder, upstream's file), else 00's to train."""
    if path.is_file():
        from tdlib import teacher  # imports torch

        return teacher.load(path).config
    if (path / "config.json").is_file():
        return shapes.read_config(path)
    if notebook_of(p["run"]) != TEACHER or p["teacher"]:
        raise FileNotFoundError(f"{path} is no teacher: give a Llama folder or a .pt file")
    return LlamaConfig(size.vocab_size, **SHAPES[p["shape"]], context=size.context)


def estimate(p: dict, out: Path, device: str) -> dict:
    """What a run that begins now will cost, from what its run folder holds: to be recorded, and
    later set beside the truth. Seconds low and high, memory as peak_memory_mib counts it."""
    size = size_of(out / "tokens", out)
    name = p.get("teacher", "teacher")  # in models/; for 00 a path, or nothing
    begins = notebook_of(p["run"]) == TEACHER
    path = parameters.ROOT / name if begins else out / "models" / name
    work = workload.of_run(p, size, _teacher(p, path, size), _in_folder(out, size.context))
    low, high = work.seconds(cost.here(device))
    return {
        "seconds_low": low,
        "seconds_high": high,
        "peak_memory_mib": work.memory(device[:4]) / 2**20,
        "flop": work.flop,
        "tokens": work.tokens,
        "steps": work.steps,
    }


def _in_folder(out: Path, context: int) -> dict[str, LlamaConfig]:
    """What a run folder holds, as workload.of_run takes it."""
    made = {}
    for path in sorted((out / "models").glob("[!.]*/config.json")):
        shape = shapes.read_config(path.parent)
        made[f"models/{path.parent.name}"] = replace(shape, context=context)
    for path in sorted((out / "adapters").glob("[!.]*/adapter_config.json")):
        base = Path((files.whole(path) or {}).get("base_model_name_or_path", "")).name
        if f"models/{base}" in made:
            made[f"adapters/{path.parent.name}"] = made[f"models/{base}"]
    return made


def plan(pairs: dict[str, str]) -> str:
    """All in plain text of 80 columns: what is at hand, what matters, the sizes, every run."""
    wanted = request.wanted("plan", pairs)
    device, source = cost.device_of(pairs.get("DEVICE", ""), wanted.profile)
    vocabulary = int(units.number(pairs, "VOCAB", 300, 51800)) if pairs.get("VOCAB") else 0
    of = asked(wanted, vocabulary)
    works = of.works()
    rows = _head(wanted, of, device, source) | _verdict(of, works, device, wanted.price)
    lines = [
        textwrap.fill(f"{name:14}{text}", 80, subsequent_indent=" " * 14)
        for name, text in rows.items()
    ]
    sizes = [_sizes(of.with_vocabulary(size)) for size in of.vocabularies]
    return "\n\n".join(["\n".join(lines), *sizes, _runs(works, device, wanted.price)])


def _head(wanted: graph.Wanted, of: Asked, device: Device, source: str) -> dict[str, str]:
    precision = "TF32" if device.kind == "cuda" else "float32"
    changed = f", with SET={settings.in_words(wanted.settings)}" if wanted.settings else ""
    several = ", both, as there are no tokens yet (VOCAB=)" if len(of.vocabularies) > 1 else ""
    return {
        "profile": f"{wanted.profile}, {len(of.runs)} runs{changed}",
        "device": f"{device.name}, {device.flop:.3g} FLOP/s, {source}; {device.low:.0%} to "
        f"{device.high:.0%} of it reached in training; scoring and evaluation "
        f"{device.forward_flop:.2g} ({precision})",
        "tokens": of.size.source,
        "vocabulary": " and ".join(f"{size:,}" for size in of.vocabularies) + several,
    }


def _verdict(of: Asked, works: list[Work], device: Device, price: float | None) -> dict[str, str]:
    """What is read in ten seconds."""
    spans = {work.run: work.seconds(device) for work in works}
    low, high = total(spans.values())
    rows = {"time": f"{units.duration(low, high)}, one run after the other"}
    if price:
        rows["cost"] = units.money((low, high), price)
    longest = max(spans, key=lambda run: spans[run][1])
    over = [run for run, (_, high) in spans.items() if high > NIGHT_H * 3600]
    fits = f"{len(over)} of {len(works)} may take longer" if over else "each run fits"
    longest = f"{longest}, {units.duration(*spans[longest])}"
    rows[f"{NIGHT_H} h night"] = f"{fits}; the longest is {longest}"
    sizes = sorted((cost.file_bytes(shape), name) for shape, name in _models(works).items())
    named = [f"{name} {units.si(size, 'B')}" for size, name in sizes]
    within = [text for text, (size, _) in zip(named, sizes, strict=True) if size <= Q4_LIMIT]
    rows["within 33 MB"] = ", ".join(within) or f"NONE; the smallest is {named[0]}"
    need, most = max((work.memory(device.kind), work.run) for work in works)
    enough = "fits" if need < device.bytes else "DOES NOT FIT, fewer micro_windows need less"
    rows["memory"] = f"{units.si(need, 'B')} of {units.si(device.bytes, 'B')} ({most}): {enough}"
    stays, goes = disk(works)
    rows["disk"] = f"{units.si(stays, 'B')} stay, {units.si(goes, 'B')} more while training"
    cache = cost.cache_bytes(of.size.train, of.size.context, of.size.vocab_size)
    rows["cache"] = f"{units.si(cache, 'B')} a temperature, 12 draws a token, where it is on"
    return rows


def disk(works: list[Work]) -> tuple[int, int]:
    """Bytes that all runs leave, and the most that goes again."""
    return sum(work.disk for work in works), max(work.disk_meanwhile for work in works)


def _models(works: list[Work]) -> dict[LlamaConfig, str]:
    """Every shape → the shortest name of the models that have it."""
    names: dict[LlamaConfig, str] = {}
    for path, shape in ((path, shape) for work in works for path, shape in work.made.items()):
        if path.startswith("models/"):
            name = path.removeprefix("models/")
            names[shape] = min(names.get(shape, name), name, key=len)
    return names


def _sizes(of: Asked) -> str:
    rows, teacher = [], of.teacher
    layers = teacher.parameters - teacher.embedding_parameters
    for shape, name in _models(of.works()).items():
        size, own = cost.file_bytes(shape), shape.parameters - shape.embedding_parameters
        row = [name, f"{shape.parameters / 1e6:.1f} M", f"{shape.embedding_parameters / 1e6:.1f} M"]
        row += [f"{teacher.parameters / shape.parameters:.1f} ×", f"{layers / own:.1f} ×"]
        rows.append([*row, f"{size / 1e6:.1f} MB", "within" if size <= Q4_LIMIT else "ABOVE"])
    names = ["model", "weights", "embedding", "smaller", "without it", "Q4_0 file", "33 MB"]
    return _table(f"SIZES, vocabulary {of.size.vocab_size:,}", names, rows)


def _runs(works: list[Work], device: Device, price: float | None) -> str:
    rows, spans = [], [work.seconds(device) for work in works]
    for work, span in zip(works, spans, strict=True):
        row = [work.run, units.si(work.tokens), f"{work.flop:.2g}"]
        row += [units.si(size, "B") for size in (work.memory(device.kind), work.disk)]
        rows.append([*row, units.duration(*span), units.money(span, price or 0)])
    span = total(spans)
    rows.append(["all", "", "", "", "", units.duration(*span), units.money(span, price or 0)])
    names = ["run", "tokens", "FLOP", "memory", "disk", "time", "cost"]
    last = None if price else -1
    return _table("RUNS", names[:last], [row[:last] for row in rows])


def _table(title: str, names: list[str], rows: list[list[str]]) -> str:
    """The first column to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    lines = []
    for row in (names, ["-" * width for width in widths], *rows):
        first, *cells = (f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join([row[0].ljust(len(first)), *cells]))
    return "\n".join([title, *lines])
