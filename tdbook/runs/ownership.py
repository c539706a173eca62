"""Whose a path in a run folder is, and what earlier runs left there.

The book removes and replaces only what it made itself. A folder says inside what the book wrote
into it (tdlib.files); what else a run writes was free, or the book's, when it began there first:
.claims/<run>.json keeps which. What a killed process had begun is removed; what a finished run
made, and a checkpoint that fits no more, go to old/.
"""

import contextlib
import datetime
import json
import os
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from tdbook.runs import hashes, heartbeat, notebooks, parameters
from tdlib import files

CLAIMS = ".claims"
PAGES = ("index.html", "compare.html", "morning.md")
# what every run writes under its own name
RECORDS = "results/{}.json hashes/{}.json state/{}.json checkpoints/{} {}.html .done/{}".split()
BY_A_RUN = r"by [\w.+-]+'s parameters"  # how a hard set's words begin where a run chose it
SHOWN = ("figures", "tables", "logs")  # and, in these, <run>-*
# in checkpoints/<run> while it trains
KEPT = "state.pt trunk.pt made_from.json weights.bin wandb.id rounded-?.safetensors .*.begun"


def claim(out: Path, run: str, values: dict, notebook: bool = False) -> None:
    """From now on all that the run will write is its own. FileExistsError names what is another's
    or read by this run. `notebook`: <run>.ipynb too, which under papermill is the user's."""
    writes, reads = hashes.outputs(out, run, values), hashes.inputs(out, run, values)
    for read, path in reads.items():
        for written, place in writes.items():
            # what is read, or a file in it, lies at or below what is written; through links too
            paths = [path, *(path.iterdir() if path.is_dir() else ())]
            place = place.resolve()
            if place.exists() and any(p.resolve().is_relative_to(place) for p in paths):
                fault = f"{run} reads {read} and would replace {written} in {out}"
                raise FileExistsError(f"{fault}: give another path or name, or change out (OUT=)")
    if foreign := not_ours(out, run, [*writes], notebook):
        raise FileExistsError(refusal(foreign))
    before = files.whole(kept := out / CLAIMS / f"{run}.json", kind=list) or []
    claimed = sorted({*before, *writes, *notebooks.losses(writes)})
    files.write_whole(kept, json.dumps(claimed))


def refusal(foreign: list[Path]) -> str:
    what = ", ".join(dict.fromkeys(map(parameters.shown, foreign)))
    remedy = "move what is there away, or give another run folder (OUT=)"
    return f"{what}: not the book's and would be replaced: {remedy}"


def not_ours(out: Path, run: str, writes: list[str], notebook: bool = False) -> list[Path]:
    """What stands in the way of a run and was made by another."""
    foreign = [out / page for page in PAGES if not is_book(out) and os.path.lexists(out / page)]
    if not (out / CLAIMS / f"{run}.json").exists() and not hashes.load(out, run):
        foreign += [*named(out, run), *sorted(out.glob(f"{run}.ipynb")) * notebook]
    made = hashes.makers(out)
    claims = [files.whole(path, kind=list) or [] for path in (out / CLAIMS).glob("*.json")]
    ours = {*made, *notebooks.losses(made)}.union(*claims)
    others = [out / path for path in (*writes, *notebooks.losses(writes)) if path not in ours]
    return foreign + [path for path in others if not files.free(path)]


def named(out: Path, run: str) -> list[Path]:
    """All in a run folder that bears a run's name, and not the longer one of another."""
    paths = [out / record.format(run) for record in RECORDS]
    shown = [path for kind in SHOWN for path in sorted((out / kind).glob(f"{run}-*"))]
    paths += [path for path in shown if run_of(path, out) in (run, "")]
    return [path for path in paths if os.path.lexists(path)]


def run_of(path: Path, out: Path) -> str:
    """01_distill-50m-scratch-curve.png is of 01_distill-50m-scratch, not of 01_distill-50m."""
    runs = (record.stem for kind in ("results", "state") for record in (out / kind).glob("*.json"))
    return max((run for run in runs if path.name.startswith(f"{run}-")), key=len, default="")


def is_book(out: Path) -> bool:
    """Whether a run has begun in this folder, or one of a sweep's points in it."""
    states = (files.whole(path, "run", "state") for path in (out / "state").glob("*.json"))
    return (out / CLAIMS).is_dir() or (out / "points.json").is_file() or any(states)


def put_away(out: Path, run: str, values: dict, inputs: dict[str, dict], why: str) -> None:
    """Move all that a finished run made to old/, and say so. A hard set chosen by hand stays, if
    its tokens did not change and nobody asked for a redo."""
    kept = hashes.load(out, run) or hashes.EMPTY
    outputs = [*(kept["outputs"] or hashes.outputs(out, run, values))]
    own = [str(path.relative_to(out)) for path in named(out, run)]
    own = [name for name in own if not name.startswith(("state/", ".done/"))]
    names = {*own, f"{run}.ipynb", *outputs, *notebooks.losses(outputs)}
    note = "what it made before is in"
    if hashes.HARD_SET in names and by_hand(out / hashes.HARD_SET):
        tokens = {made.get("tokens", {}).get("sha256") for made in (kept["inputs"], inputs)}
        stays = not values["redo"] and len(tokens) == 1
        note = f"the hard set chosen by hand {'stays' if stays else 'goes too'}; {note}"
        names -= {hashes.HARD_SET} if stays else set()
    old = _move(out, names, run)
    print(f"{why}: {note} {parameters.shown(old)}")


def by_hand(path: Path) -> bool:
    """Whether a person chose a hard set, in the explorer or elsewhere."""
    choice = hashes.chosen(path)
    return choice is not None and not re.match(BY_A_RUN, choice.get("words", ""))


def keep_hard_set(hard_set, path: Path, words: str) -> None:
    """`tdlib.hard_set.keep`, unless this is a run's choice and a person's stands there."""
    from tdlib.hard_set import keep  # needs torch

    if re.match(BY_A_RUN, words) and by_hand(path):
        print(f"{path.name} was chosen by hand and stays: REDO={notebooks.HARD_SET} replaces it")
    else:
        keep(hard_set, path, words)


def keep_checkpoint(out: Path, run: str, values: dict, inputs: dict[str, dict], code: str) -> None:
    """A checkpoint of other inputs, or in quick profiles of other code, goes to old/. Another
    parameter may be a slip, which must not cost a night: ValueError. `redo` starts over once."""
    folder = out / (place := f"checkpoints/{run}")
    before = files.whole(folder / "made_from.json", "parameters", "redo") or {"redo": False}
    now = {"parameters": hashes.decisive(values), "redo": values["redo"] or before["redo"]}
    now["inputs"] = {name: fingerprint["sha256"] for name, fingerprint in inputs.items()}
    now["code"] = code if values["profile"] in hashes.QUICK else ""
    changed = [key for key in now if now[key] != before.get(key)]
    if changed == ["parameters"] and any(folder.rglob("state.pt")):
        was, value = before["parameters"], now["parameters"]
        name = next(name for name in was | value if was.get(name) != value.get(name))
        was, value = was.get(name), value.get(name)
        fault = f"{run} has a checkpoint made with {name} = {was!r}, now it is {value!r}"
        remedy = f"put it back to go on, or start over with redo = True (REDO={run})"
        raise ValueError(f"{fault}: {remedy}")
    if changed and {p.name for p in folder.rglob("*.*")} - {"made_from.json"}:
        old = _move(out, [place], run)
        print(f"{run} starts over; its checkpoint is in {parameters.shown(old)}")
    files.write_whole(folder / "made_from.json", json.dumps(now))


def _move(out: Path, names: Iterable[str], run: str) -> Path:
    """Move what is there into a new folder old/<run>-<now, in UTC>."""
    old = out / "old" / f"{run}-{datetime.datetime.now(datetime.UTC):%Y%m%d%H%M%S%f}"
    for name in names:
        if os.path.lexists(out / name):
            (old / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(out / name, old / name)
    return old


def clear(out: Path) -> None:
    """Remove begun files, and checkpoints of finished trainings; weights of epochs stay."""
    for folder in (out, *out.glob("*/"), out / "scores/val"):
        clear_begun(folder)
    for folder in (out / "checkpoints").glob("*/"):
        if heartbeat.recorded(out, folder.name):
            clear_checkpoint(folder)


def clear_begun(folder: Path) -> None:
    """Remove what killed processes of this machine left unfinished there."""
    for path in folder.glob(".*.begun"):
        number = path.name.split(".")[-2]
        with contextlib.suppress(OSError):
            # on a cluster it may be another machine's process
            old = "SLURM_JOB_ID" not in os.environ or time.time() - path.lstat().st_mtime > 600
            if old and number.isdigit() and not psutil.pid_exists(int(number[:9])):
                files.remove(path)


def clear_checkpoint(folder: Path) -> None:
    """Remove what a run keeps while it trains."""
    for path in folder.rglob(f"workers/{files.MARK}"):
        shutil.rmtree(path.parent, ignore_errors=True)
    for path in [*sorted(folder.rglob("*"), reverse=True), folder]:
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):  # not empty: another's, or an epoch's
                path.rmdir()
        elif any(map(path.match, KEPT.split())):
            path.unlink(missing_ok=True)


def clean_cache(out: Path) -> list[str]:
    """Remove kept targets, unless others put files beside; returns the files that stay."""
    cache = out / "cache"
    if cache.is_symlink():  # a sweep's point has its parent's
        cache.unlink()
    for key in sorted(cache.glob("*/key.json")):
        names = {p.name for p in key.parent.iterdir() if not p.name.startswith(".key")}
        ours = '"draws"' in key.read_text("utf8", "replace")
        if ours and names <= {"key.json", "rows.bin", "valid.bin"}:
            shutil.rmtree(key.parent)
    return sorted(str(path.relative_to(out)) for path in cache.rglob("*") if not path.is_dir())
