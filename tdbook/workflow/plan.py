"""Before a night is paid for: what each run of a profile costs, in bytes, hours and money.

`make plan` prints it. Imports torch only where this machine's own speed is asked for.
"""

import json
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

from tabulate import tabulate

from tdbook.runs import hashes, parameters, units
from tdbook.runs.estimates import Q4_LIMIT, VOCABULARIES
from tdbook.runs.parameters import ParameterError, nearest, notebook_of
from tdbook.workflow import cost, graph, workload
from tdbook.workflow.workload import DEVICES, Device, Size, Work
from tdlib import files, shapes
from tdlib.shapes import SHAPES, LlamaConfig

NOMINAL = 3_700_000_000  # training tokens, by the count of the teacher's owner
NIGHT_H = 10


def estimate(p: dict, out: Path, device: str) -> dict:
    """What a run that begins now will cost, from what its run folder holds (tokens; for all but 00
    the teacher): to be recorded, and later set beside the truth. Seconds low and high, memory as
    peak_memory_mib counts it, FLOP, tokens, steps."""
    size = size_of(out / "tokens", out)
    name = p.get("teacher", "teacher")  # in models/; for 00 a path, or nothing
    path = (
        parameters.ROOT / name if notebook_of(p["run"]) == "00_teacher" else out / "models" / name
    )
    one = workload.of_run(p, size, _teacher(p, path, size), _in_folder(out, size.context))
    need = workload.memory(one, device[:4])
    if device == "cpu":  # this process is not as large as a notebook's usually is, or larger
        need += workload.status("VmRSS", workload.PROCESS) - workload.PROCESS
    low, high = workload.seconds(one, workload.here(device))
    known = {"seconds_low": low, "seconds_high": high, "peak_memory_mib": need / 2**20}
    return known | {"flop": one.flop, "tokens": one.tokens, "steps": one.steps}


def _in_folder(out: Path, context: int) -> dict[str, tuple]:
    """What a run folder holds, as workload.of_run takes it."""
    made = {}
    for path in sorted((out / "models").glob("[!.]*/config.json")):
        made[path.parent.name] = (replace(shapes.read_config(path.parent), context=context), 1.0)
    for path in sorted((out / "adapters").glob("[!.]*/adapter_config.json")):
        base = Path((files.whole(path) or {}).get("base_model_name_or_path", "")).name
        made |= {path.parent.name: (made[base][0], None)} if base in made else {}
    return made


def size_of(folder: Path, out: Path, share: float = 0.2, scored: int = 0) -> Size:
    """How much a folder of tokens holds; the hard set is the run folder's, or that share of the
    windows of `scored` tokens (0: of all)."""
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf8"))
        names = ("vocab_size", "block_size", "train_tokens", "val_tokens")
        counts = [int(meta[name]) for name in names]
        size = _size(*counts, share, scored, f"in {folder}")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is not there: give a folder of tokens (TOKENS=)") from None
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{path} does not tell of tokens ({error!r}): copy it again") from None
    chosen = hashes.chosen(out / "hard_set.json")
    return size if chosen is None else replace(size, hard=len(chosen["windows_K"]))


def _size(
    vocab_size: int, context: int, train: int, val: int, share: float, scored: int, where: str
) -> Size:
    windows = (train - 1) // context
    hard = round(share * min(windows, scored // context or windows))
    source = f"{units.si(train)} for training, {units.si(val)} for validation, {where}"
    return Size(vocab_size, context, windows, (val - 1) // context, hard, source)


def _guessed(p: dict, vocab_size: int, share: float, scored: int) -> Size:
    """Before there are tokens: those of the text that 00 writes, by its length, or the nominal."""
    # written text at vocabularies of 600, 2,048 and 8,192 has 2.05, 3.56 and 5.83 characters each
    written = p["text_characters"] / (0.162 * vocab_size**0.4)
    train = written * (1 - p["val_share"]) or NOMINAL
    val = round(train * p["val_share"] / (1 - p["val_share"]))
    how = "about, by the length of the text" if written else "nominal"
    where = f"{how}: no tokens yet (TOKENS=)"
    return _size(vocab_size, p["context"], round(train), val, share, scored, where)


def _teacher(p: dict, path: Path, size: Size) -> LlamaConfig:
    """The shape of the teacher at a path (a Llama folder, upstream's file), else 00's to train."""
    if path.is_file():
        from tdlib import teacher  # imports torch

        return teacher.load(path).config
    if (path / "config.json").is_file():
        return shapes.read_config(path)
    if notebook_of(p["run"]) != "00_teacher" or p["teacher"]:
        raise FileNotFoundError(f"{path} is no teacher: give a Llama folder or a .pt file")
    return LlamaConfig(size.vocab_size, **SHAPES[p["shape"]], context=size.context)


@dataclass(frozen=True)
class Asked:
    """What a command line asked about."""

    profile: str
    runs: list[graph.BookRun]
    out: Path
    tokens: Path | None  # the folder, where there is one
    sizes: list[Size]  # one a vocabulary, where it is not known
    teachers: list[LlamaConfig]

    def works(self, i: int = 0) -> list[Work]:
        return workload.of_profile(self.runs, self.sizes[i], self.teachers[i])


def asked(pairs: dict[str, str]) -> Asked:
    """What PROFILE, OUT, TOKENS, TEACHER and VOCAB mean. ParameterError: a name, path or number
    that means nothing, or a teacher of another vocabulary."""
    given = {name: pairs[name.upper()] for name in ("tokens", "teacher") if pairs.get(name.upper())}
    for name, path in given.items():
        if not (parameters.ROOT / path).exists():
            raise ParameterError(f"{name.upper()}={path} is not there: correct the path")
    profile = pairs.get("PROFILE") or "tiny"
    runs = graph.book(profile, pairs.get("OUT") or None, given, paths=False)
    by_run = {one.run: one.parameters for one in runs}
    if "00_teacher" not in by_run:
        raise ParameterError(f"params/{profile} has no 00_teacher.yaml: add one")
    p, out = by_run["00_teacher"], parameters.ROOT / by_run["00_teacher"]["out"]
    of_02 = next((q for run, q in by_run.items() if run.startswith("02")), {})
    choice = of_02.get("share", 0.2), of_02.get("token_limit", 0)
    folder = parameters.ROOT / p["tokens"] if p["tokens"] else out / "tokens"
    path = parameters.ROOT / p["teacher"] if p["teacher"] else out / "models/teacher"
    known = bool(p["tokens"]) or (folder / "meta.json").is_file()
    if known:
        sizes = [size_of(folder, out, *choice)]
    else:
        sizes = [_guessed(p, size, *choice) for size in _vocabularies(pairs, p, path)]
    teachers = [_teacher(p, path, size) for size in sizes]
    for size, teacher in zip(sizes, teachers, strict=True):
        if teacher.vocab_size != size.vocab_size:
            both = f"{teacher.vocab_size:,}, the tokens' {size.vocab_size:,}"
            remedy = "give the tokens that it was made with (TOKENS=, VOCAB=)"
            raise ParameterError(f"the teacher's vocabulary is {both}: {remedy}")
    return Asked(profile, runs, out, folder if known else None, sizes, teachers)


def _vocabularies(pairs: dict[str, str], p: dict, teacher: Path) -> tuple[int, ...]:
    """Their sizes before there are tokens; both of the plan's where nothing says which."""
    if pairs.get("VOCAB"):
        return (int(units.number(pairs, "VOCAB", 300, 51800)),)
    if p["teacher"]:
        return (_teacher(p, teacher, Size(0, 0, 0, 0, 0, "")).vocab_size,)
    return (p["vocab_size"],) if p["text_characters"] else VOCABULARIES


def device_of(wanted: str, profile: str) -> tuple[Device, str]:
    """The device that hours are told for, and where its figures are from."""
    if not wanted and profile.startswith("b200") and not Path("/dev/nvidia0").exists():
        return DEVICES["b200"], "published (no GPU here; DEVICE=here for this machine)"
    if wanted in DEVICES:
        return DEVICES[wanted], "published"
    if wanted not in ("", "here", "cpu"):
        remedy = nearest(wanted.lower(), [*DEVICES, "cpu", "here"], cutoff=0.3)
        raise ParameterError(f"DEVICE={wanted} is not known: {remedy}")
    import torch

    if profile in hashes.ONE_THREAD:  # as the book runs them
        torch.set_num_threads(1)
    kind = "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
    return workload.here(kind), "measured now"


def plan(pairs: dict[str, str]) -> str:
    """All of it in plain text of 80 columns: what is at hand, what matters, then three tables."""
    of = asked(pairs)
    price = units.number(pairs, "PRICE_PER_HOUR", 0, 4.5) if pairs.get("PRICE_PER_HOUR") else None
    device, source = device_of(pairs.get("DEVICE", ""), of.profile)
    works = of.works()
    shares = workload.cached_shares(works, of.sizes[0].train)
    online, cached = (
        {one.run: workload.seconds(one, device, given) for one in works} for given in (None, shares)
    )
    parts = [_lines(_head(of, device, source))]
    parts += [_lines(_verdict(of, works, device, online, cached, price))]
    for i, size in enumerate(of.sizes):
        parts.append(f"SIZES, vocabulary {size.vocab_size:,}\n{_sizes(of.works(i))}")
    parts.append(f"WORK\n{_work_table(works, device)}")
    parts.append(f"TIME{' AND COST' if price else ''}\n{_time_table(online, cached, price)}")
    for i, size in list(enumerate(of.sizes))[1:]:
        span = units.duration(*total({w.run: workload.seconds(w, device) for w in of.works(i)}))
        parts.append(f"With a vocabulary of {size.vocab_size:,} all take {span} online.")
    return "\n\n".join(parts)


def total(spans: dict[str, tuple[float, float]]) -> tuple[float, float]:
    return sum(low for low, _ in spans.values()), sum(high for _, high in spans.values())


def _head(of: Asked, device: Device, source: str) -> dict[str, str]:
    precision = "TF32" if device.kind == "cuda" else "float32"
    both = ", both, as there are no tokens yet (VOCAB=)" if len(of.sizes) > 1 else ""
    rows = {
        "profile": f"{of.profile}, {len(of.runs)} runs",
        "device": f"{device.name}, {device.flop:.3g} FLOP/s, {source}; {device.low:.0%} to "
        f"{device.high:.0%} of it reached in training; scoring and evaluation "
        f"{device.forward_flop:.2g} ({precision})",
        "tokens": of.sizes[0].source,
        "vocabulary": " and ".join(f"{size.vocab_size:,}" for size in of.sizes) + both,
    }
    if of.profile in hashes.ONE_THREAD and device.kind == "cpu":
        rows["threads"] = "one a run; the book runs as many runs at once as there are cores"
    return rows


def _verdict(of: Asked, works: list[Work], device: Device, online, cached, price) -> dict[str, str]:
    """What is read in ten seconds."""
    sums, duration = [total(online), total(cached)], units.duration
    times = [duration(*span) for span in sums]
    rows = {"time": f"{times[0]}; with the teacher's targets cached {times[1]}"}
    if price:
        rows["cost"] = "; cached ".join(units.money(span, price) for span in sums)
    longest = max(online, key=lambda run: online[run][1])
    over = [run for run, (_, high) in online.items() if high > NIGHT_H * 3600]
    fits = f"{len(over)} of {len(works)} may take longer" if over else "each run fits"
    rows[f"{NIGHT_H} h night"] = f"{fits}; the longest is {longest}, {duration(*online[longest])}"
    files = sorted((cost.file_bytes(shape), name) for shape, name in _models(works).items())
    passing = [f"{name} {units.si(size, 'B')}" for size, name in files if size <= Q4_LIMIT]
    smallest = f"NONE; the smallest is {files[0][1]}, {units.si(files[0][0], 'B')}"
    rows["within 33 MB"] = ", ".join(passing) or smallest
    need, most = max((workload.memory(one, device.kind), one.run) for one in works)
    enough = "fits" if need < device.bytes else "DOES NOT FIT, fewer micro_windows need less"
    rows["memory"] = f"{units.si(need, 'B')} of {units.si(device.bytes, 'B')} ({most}): {enough}"
    stays, goes = disk(works)
    rows["disk"] = f"{units.si(stays, 'B')} stay, {units.si(goes, 'B')} more while training"
    if temperatures := sorted({t.temperature for one in works for t in one.trainings if t.teacher}):
        size = of.sizes[0]
        each = units.si(cost.cache_bytes(size.train, size.context, size.vocab_size), "B")
        here = ", ".join(f"{t:g}" for t in temperatures)
        rows["cache"] = f"{each} a temperature, 12 draws a token, where it is on; here T = {here}"
    return rows


def disk(works: list[Work]) -> tuple[int, int]:
    """Bytes that all runs leave, and the most that goes again."""
    return sum(one.disk for one in works), max(one.disk_meanwhile for one in works)


def _models(works: list[Work]) -> dict[LlamaConfig, str]:
    """Every shape → the shortest name of those that have it."""
    names = {}
    for name, shape in ((n, c) for one in works for n, c in one.made.items()):
        names[shape] = min(names.get(shape, name), name, key=len)
    return names


def _sizes(works: list[Work]) -> str:
    def layers(shape: LlamaConfig) -> int:
        return shape.parameters - shape.embedding_parameters

    rows, teacher = [], works[0].teacher
    for shape, name in _models(works).items():
        size = cost.file_bytes(shape)
        weights, embedding = shape.parameters / 1e6, shape.embedding_parameters / 1e6
        row = [name, f"{weights:.1f} M", f"{embedding:.1f} M"]
        row.append(f"{teacher.parameters / shape.parameters:.1f} ×")
        row.append(f"{layers(teacher) / layers(shape):.1f} ×")
        rows.append([*row, f"{size / 1e6:.1f} MB", "within" if size <= Q4_LIMIT else "ABOVE"])
    names = ["model", "weights", "embedding", "smaller", "without it", "Q4_0 file", "33 MB"]
    return _table(names, rows)


def _work_table(works: list[Work], device: Device) -> str:
    rows = []
    for one in works:
        sizes = (workload.memory(one, device.kind), one.disk, one.disk_meanwhile)
        row = [one.run, units.si(one.tokens), f"{one.steps:,}", f"{one.flop:.2g}"]
        rows.append([*row, *(units.si(size, "B") for size in sizes)])
    return _table(["run", "tokens", "steps", "FLOP", "memory", "disk", "in work"], rows)


def _time_table(online: dict, cached: dict, price: float | None) -> str:
    names, rows = ["run", "teacher online", "cached"], []
    for run in [*online, "all"]:
        spans = [spans.get(run) or total(spans) for spans in (online, cached)]
        rows.append([run, *(units.duration(*span) for span in spans)])
        rows[-1] += [units.money(span, price) for span in spans] if price else []
    return _table(names + (["cost", "cost, cached"] if price else []), rows)


def _table(names: list[str], rows: list[list[str]]) -> str:
    align = ["left"] + ["right"] * (len(names) - 1)
    return tabulate(rows, names, colalign=align, disable_numparse=True)


def _lines(rows: dict[str, str]) -> str:
    return "\n".join(
        textwrap.fill(what, 80, initial_indent=f"{name:14}", subsequent_indent=" " * 14)
        for name, what in rows.items()
    )
