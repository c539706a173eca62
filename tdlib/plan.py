"""Before a night is paid for: what each run of a profile costs, in bytes, hours and money.

    python -m tdlib.plan plan PROFILE=b200 [DEVICE=b200 PRICE_PER_HOUR=4.5 VOCAB=51800]
    python -m tdlib.plan doctor PROFILE=b200     (see doctor)
    both: OUT= (the run folder), TOKENS= and TEACHER= (paths)

Imports torch only where this machine's own speed is asked for.
"""

import difflib
import json
import math
import sys
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

from tabulate import tabulate

from tdlib import cost, files, graph, hashes, shapes, units, workload
from tdlib.parameters import ROOT, ParameterError, notebook_of
from tdlib.shapes import Q4_LIMIT, SHAPES, VOCABULARIES, LlamaConfig
from tdlib.workload import DEVICES, Device, Size, Work

NOMINAL = 3_700_000_000  # training tokens, by the count of the teacher's owner
NIGHT_H = 10


def estimate(p: dict, out: Path, device: str) -> dict:
    """What a run that begins now will cost, from what its run folder holds (tokens; for all but 00
    the teacher): to be recorded, and later set beside the truth. Seconds low and high, memory as
    peak_memory_mib counts it, FLOP, tokens, steps."""
    size = size_of(out / "tokens", out)
    name = p.get("teacher", "teacher")  # in models/; for 00 a path, or nothing
    path = ROOT / name if notebook_of(p["run"]) == "00_teacher" else out / "models" / name
    one = workload.of_run(p, size, _teacher(p, path, size), _in_folder(out, size.context))
    need = workload.memory(one, device[:4])
    if device == "cpu":  # this process is not as large as a notebook's usually is, or larger
        need += workload.status("VmRSS", workload.PROCESS) - workload.PROCESS
    low, high = workload.seconds(one, workload.here(device))
    return {"seconds_low": low, "seconds_high": high, "peak_memory_mib": need / 2**20,
            "flop": one.flop, "tokens": one.tokens, "steps": one.steps}  # fmt: skip


def _in_folder(out: Path, context: int) -> dict[str, tuple]:
    """What a run folder holds, as workload.of_run takes it."""
    found = {path.parent.name: (replace(shapes.read_config(path.parent), context=context), 1.0)
             for path in sorted((out / "models").glob("[!.]*/config.json"))}  # fmt: skip
    for path in sorted((out / "adapters").glob("[!.]*/adapter_config.json")):
        base = Path((files.whole(path) or {}).get("base_model_name_or_path", "")).name
        found |= {path.parent.name: (found[base][0], None)} if base in found else {}
    return found


# --- what is at hand


def size_of(folder: Path, out: Path, share: float = 0.2, scored: int = 0) -> Size:
    """How much a folder of tokens holds; the hard set is the run folder's, or that share of the
    windows of `scored` tokens (0: of all)."""
    path, kept = folder / "meta.json", out / "hard_set.json"
    try:
        meta = json.loads(path.read_text(encoding="utf8"))
        names = ("vocab_size", "block_size", "train_tokens", "val_tokens")
        vocab_size, context, train, val = (int(meta[name]) for name in names)
        windows = (train - 1) // context
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is not there: give a folder of tokens (TOKENS=)") from None
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{path} does not tell of tokens ({error!r}): copy it again") from None
    hard = share * min(windows, scored // context or windows)
    if (chosen := hashes.chosen(kept)) is not None:
        hard = len(chosen["windows_K"])
    said = f"{units.si(train)} for training, {units.si(val)} for validation, in {folder}"
    return Size(vocab_size, context, windows, (val - 1) // context, round(hard), said)


def _guessed(p: dict, vocab_size: int, share: float, scored: int) -> Size:
    """Before there are tokens: those of the text that 00 writes, by its length, or the nominal."""
    # written text at vocabularies of 600, 2,048 and 8,192 has 2.05, 3.56 and 5.83 characters each
    written = p["text_characters"] / (0.162 * vocab_size**0.4)
    train = written * (1 - p["val_share"]) or NOMINAL
    val = train * p["val_share"] / (1 - p["val_share"])
    how = "about, by the length of the text" if written else "nominal"
    said = f"{units.si(train)} for training, {units.si(val)} for validation: {how}, no tokens yet "
    said += "(TOKENS=)"
    windows, val = round(train / p["context"]), round(val / p["context"])
    hard = share * min(windows, scored // p["context"] or windows)
    return Size(vocab_size, p["context"], windows, val, round(hard), said)


def _teacher(p: dict, path: Path, size: Size) -> LlamaConfig:
    """The shape of the teacher at a path (a Llama folder, upstream's file), else 00's to train."""
    if path.is_file():
        from tdlib import teacher

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
        if not (ROOT / path).exists():
            raise ParameterError(f"{name.upper()}={path} is not there: correct the path")
    profile = pairs.get("PROFILE") or "tiny"
    runs = graph.book(profile, pairs.get("OUT") or None, given, paths=False)
    by = {one.run: one.parameters for one in runs}
    if "00_teacher" not in by:
        raise ParameterError(f"params/{profile} has no 00_teacher.yaml: add one")
    p, out = by["00_teacher"], ROOT / by["00_teacher"]["out"]
    of_02 = next((q for run, q in by.items() if run.startswith("02")), {})
    share, scored = of_02.get("share", 0.2), of_02.get("token_limit", 0)
    folder = ROOT / p["tokens"] if p["tokens"] else out / "tokens"
    path = ROOT / p["teacher"] if p["teacher"] else out / "models/teacher"
    known = bool(p["tokens"]) or (folder / "meta.json").is_file()
    if known:
        sizes = [size_of(folder, out, share, scored)]
    else:
        vocabularies = VOCABULARIES
        if pairs.get("VOCAB"):
            vocabularies = (int(number(pairs, "VOCAB", 300, 51800)),)
        elif p["teacher"]:
            vocabularies = (_teacher(p, path, Size(0, 0, 0, 0, 0, "")).vocab_size,)
        elif p["text_characters"]:
            vocabularies = (p["vocab_size"],)
        sizes = [_guessed(p, size, share, scored) for size in vocabularies]
    teachers = [_teacher(p, path, size) for size in sizes]
    for size, teacher in zip(sizes, teachers, strict=True):
        if teacher.vocab_size != size.vocab_size:
            raise ParameterError(
                f"the teacher's vocabulary is {teacher.vocab_size:,}, the tokens' "
                f"{size.vocab_size:,}: give the tokens that it was made with (TOKENS=, VOCAB=)"
            )
    return Asked(profile, runs, out, folder if known else None, sizes, teachers)


def number(pairs: dict[str, str], name: str, least: float, example: float) -> float:
    try:
        value = float(pairs[name].replace(",", ""))
    except ValueError:
        value = math.nan
    if not least <= value < math.inf:
        raise ParameterError(f"{name}={pairs[name]} must be a number, at least {least:g}: for "
                             f"example {name}={example:g}")  # fmt: skip
    return value


def device_of(wanted: str, profile: str) -> tuple[Device, str]:
    """The device that hours are told for, and where its figures are from."""
    if not wanted and profile.startswith("b200") and not Path("/dev/nvidia0").exists():
        return DEVICES["b200"], "published (no GPU here; DEVICE=here for this machine)"
    if wanted in DEVICES:
        return DEVICES[wanted], "published"
    if wanted not in ("", "here", "cpu"):
        known = [*DEVICES, "cpu", "here"]
        near = difflib.get_close_matches(wanted.lower(), known, 1, 0.3)
        remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise ParameterError(f"DEVICE={wanted} is not known: {remedy}")
    import torch

    if profile in hashes.ONE_THREAD:  # as the book runs them
        torch.set_num_threads(1)
    return workload.here(
        "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
    ), "measured now"


# --- in words


def plan(pairs: dict[str, str]) -> str:
    """All of it in plain text of 80 columns: what is at hand, what matters, then three tables."""
    of = asked(pairs)
    price = pairs.get("PRICE_PER_HOUR") and number(pairs, "PRICE_PER_HOUR", 0, 4.5)
    device, source = device_of(pairs.get("DEVICE", ""), of.profile)
    works, train = of.works(), of.sizes[0].train
    online = {one.run: workload.seconds(one, device) for one in works}
    cached = {
        one.run: workload.seconds(one, device, workload.cached_shares(works, train))
        for one in works
    }
    parts = [_head(of, device, source), _verdict(of, works, device, online, cached, price)]
    for i, size in enumerate(of.sizes):
        parts.append(f"SIZES, vocabulary {size.vocab_size:,}\n{_sizes(of.works(i))}")
    parts += [f"WORK\n{_work_table(works, device)}", f"TIME{' AND COST' if price else ''}\n"
              f"{_time_table(online, cached, price)}"]  # fmt: skip
    for i, size in list(enumerate(of.sizes))[1:]:
        more = total({one.run: workload.seconds(one, device) for one in of.works(i)})
        parts.append(
            f"With a vocabulary of {size.vocab_size:,} all take {units.duration(*more)} online."
        )
    return "\n\n".join(parts)


def total(spans: dict[str, tuple[float, float]]) -> tuple[float, float]:
    return sum(low for low, _ in spans.values()), sum(high for _, high in spans.values())


def _head(of: Asked, device: Device, source: str) -> str:
    reached = f"{device.low:.0%} to {device.high:.0%} of it reached in training"
    several = " and ".join(f"{size.vocab_size:,}" for size in of.sizes)
    several += ", both, as there are no tokens yet (VOCAB=)" if len(of.sizes) > 1 else ""
    rows = {
        "profile": f"{of.profile}, {len(of.runs)} runs",
        "device": f"{device.name}, {device.flop:.3g} FLOP/s, {source}; {reached}; scoring and "
        f"evaluation {device.forward_flop:.2g} ({'TF32' if device.kind == 'cuda' else 'float32'})",
        "tokens": of.sizes[0].said,
        "vocabulary": several,
    }
    if of.profile in hashes.ONE_THREAD and device.kind == "cpu":
        rows["threads"] = "one a run; the book runs as many runs at once as there are cores"
    return _lines(rows)


def _verdict(of: Asked, works: list[Work], device: Device, online, cached, price) -> str:
    """What is read in ten seconds."""
    rows = {"time": f"{units.duration(*total(online))}; with the teacher's targets cached "
            f"{units.duration(*total(cached))}"}  # fmt: skip
    if price:
        rows["cost"] = (
            f"{units.money(total(online), price)}; cached {units.money(total(cached), price)}"
        )
    longest = max(online, key=lambda run: online[run][1])
    over = [run for run, (_, high) in online.items() if high > NIGHT_H * 3600]
    fits = f"{len(over)} of {len(works)} may take longer" if over else "each run fits"
    rows[f"{NIGHT_H} h night"] = (
        f"{fits}; the longest is {longest}, {units.duration(*online[longest])}"
    )
    files = sorted((cost.file_bytes(shape), name) for shape, name in _models(works).items())
    passing = [f"{name} {units.si(size, 'B')}" for size, name in files if size <= Q4_LIMIT]
    smallest = f"NONE; the smallest is {files[0][1]}, {units.si(files[0][0], 'B')}"
    rows["within 33 MB"] = ", ".join(passing) or smallest
    need, most = max((workload.memory(one, device.kind), one.run) for one in works)
    enough = "fits" if need < device.bytes else "DOES NOT FIT, fewer micro_windows need less"
    rows["memory"] = f"{units.si(need, 'B')} of {units.si(device.bytes, 'B')} ({most}): {enough}"
    stays, goes = disk(works)
    rows["disk"] = f"{units.si(stays, 'B')} stay, {units.si(goes, 'B')} more while training"
    if asked_at := sorted({t.temperature for one in works for t in one.trainings if t.teacher}):
        size = of.sizes[0]
        each = cost.cache_bytes(size.train, size.context, size.vocab_size)
        rows["cache"] = (
            f"{units.si(each, 'B')} a temperature, 12 draws a token, where it is on; here "
        )
        rows["cache"] += f"T = {', '.join(f'{t:g}' for t in asked_at)}"
    return _lines(rows)


def disk(works: list[Work]) -> tuple[int, int]:
    """Bytes that all runs leave, and the most that goes again."""
    return sum(one.disk for one in works), max(one.disk_meanwhile for one in works)


def _models(works: list[Work]) -> dict[LlamaConfig, str]:
    """Every shape → the shortest name of those that have it."""
    found = {}
    for name, shape in ((n, c) for one in works for n, c in one.made.items()):
        found[shape] = min(found.get(shape, name), name, key=len)
    return found


def _sizes(works: list[Work]) -> str:
    def layers(shape: LlamaConfig) -> int:
        return shape.parameters - shape.embedding_parameters

    teacher, rows = works[0].teacher, []
    for shape, name in _models(works).items():
        size = cost.file_bytes(shape)
        rows.append({
            "model": name, "weights": f"{shape.parameters / 1e6:.1f} M",
            "embedding": f"{shape.embedding_parameters / 1e6:.1f} M",
            "smaller": f"{teacher.parameters / shape.parameters:.1f} ×",
            "without it": f"{layers(teacher) / layers(shape):.1f} ×",
            "Q4_0 file": f"{size / 1e6:.1f} MB", "33 MB": "within" if size <= Q4_LIMIT else "ABOVE",
        })  # fmt: skip
    return _table(rows)


def _work_table(works: list[Work], device: Device) -> str:
    rows = [{
        "run": one.run, "tokens": units.si(one.tokens), "steps": f"{one.steps:,}",
        "FLOP": f"{one.flop:.2g}", "memory": units.si(workload.memory(one, device.kind), "B"),
        "disk": units.si(one.disk, "B"), "in work": units.si(one.disk_meanwhile, "B"),
    } for one in works]  # fmt: skip
    stays, goes = disk(works)
    rows.append({
        "run": "all", "tokens": units.si(sum(one.tokens for one in works)),
        "steps": f"{sum(one.steps for one in works):,}",
        "FLOP": f"{sum(one.flop for one in works):.2g}", "memory": "",
        "disk": units.si(stays, "B"), "in work": units.si(goes, "B"),
    })  # fmt: skip
    return _table(rows)


def _time_table(online: dict, cached: dict, price: float | None) -> str:
    rows = []
    for run in [*online, "all"]:
        a, b = (spans.get(run) or total(spans) for spans in (online, cached))
        row = {"run": run, "teacher online": units.duration(*a), "cached": units.duration(*b)}
        costs = (
            {"cost": units.money(a, price), "cost, cached": units.money(b, price)} if price else {}
        )
        rows.append(row | costs)
    return _table(rows)


def _table(rows: list[dict]) -> str:
    align = ["left"] + ["right"] * (len(rows[0]) - 1)
    return tabulate(rows, headers="keys", colalign=align, disable_numparse=True)


def _lines(rows: dict[str, str]) -> str:
    return "\n".join(
        textwrap.fill(what, 80, initial_indent=f"{name:14}", subsequent_indent=" " * 14)
        for name, what in rows.items()
    )


def main(arguments: list[str]) -> int:
    what, *rest = arguments or ["help"]
    pairs = dict(pair.split("=", 1) for pair in rest if "=" in pair)
    try:
        if what == "plan":
            print(plan(pairs))
            return 0
        if what == "doctor":
            from tdlib import doctor

            return doctor.examine(pairs)
    except (ValueError, FileNotFoundError) as error:
        print(error)
        return 1
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
