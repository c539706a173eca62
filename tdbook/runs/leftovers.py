"""What earlier runs left in a run folder: begun files, checkpoints, the results of a finished run.

What a killed process had begun is removed, what a finished run made goes to old/ before it is made
anew, and a checkpoint goes on only with what it was made from.
"""

import contextlib
import itertools
import json
import os
import re
import shutil
import time
from pathlib import Path

import psutil

from tdbook.runs import choice, hashes, heartbeat, ownership, parameters
from tdlib import files

# in checkpoints/<run>, while it trains; and for good
KEPT, EPOCH = r"state\.pt|made_from\.json|weights\.bin|wandb\.id", r"epoch-\d+\.safetensors"


def clear_begun(folder: Path) -> None:
    """Remove what killed processes of this machine left unfinished there."""
    for path in folder.glob(".*.begun"):
        number = path.name.split(".")[-2]
        with contextlib.suppress(OSError):
            # on a cluster it may be another machine's process
            old = "SLURM_JOB_ID" not in os.environ or time.time() - path.lstat().st_mtime > 600
            if old and number.isdigit() and not psutil.pid_exists(int(number[:9])):
                files.remove(path)


def clear(out: Path, ended: str = "") -> None:
    """Remove begun files, and the checkpoints of trainings that are done, of the run `ended` among
    them. The weights of every epoch stay."""
    for folder in (out, *out.glob("*/"), out / "scores/val"):
        clear_begun(folder)
    for folder in (out / "checkpoints").glob("*/"):
        if folder.name == ended or heartbeat.recorded(out, folder.name):
            clear_checkpoint(folder)


def clear_checkpoint(folder: Path) -> None:
    """Remove what a run keeps while it trains."""
    own = rf"{KEPT}|\.({KEPT}|{EPOCH})\.[\w.]+"  # .state.pt.123.begun
    for path in folder.rglob(f"workers/{files.MARK}"):
        shutil.rmtree(path.parent, ignore_errors=True)
    for path in [*sorted(folder.rglob("*"), reverse=True), folder]:
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):  # not empty: another's, or an epoch's
                path.rmdir()
        elif re.fullmatch(own, path.name):
            path.unlink(missing_ok=True)


def put_away(out: Path, run: str, values: dict, inputs: dict[str, dict], why: str) -> str:
    """All that a finished run made goes to old/, before it is made anew; returns a note. A hard set
    chosen by hand stays where it is, if its tokens do and nobody asked for a redo."""
    kept = hashes.load(out, run) or hashes.EMPTY
    record = files.whole(out / f"results/{run}.json", "started", "models")
    record = record or {"started": "", "models": {}}
    outputs = [*(kept["outputs"] or hashes.outputs(out, run, values))]
    losses = ownership.losses([*outputs, *(f"models/{name}" for name in record["models"])])
    names = [str(path.relative_to(out)) for path in ownership.named(out, run)]
    names = [name for name in names if not name.startswith(("state/", ".done/"))]
    places = {name: name for name in (*names, *outputs, *losses)}
    # execute puts the finished notebook aside before papermill writes a new one
    aside, notebook = f".{run}.ipynb", f"{run}.ipynb"
    places[aside if (out / aside).exists() else notebook] = notebook
    note = "what it made before is in"
    if choice.HARD_SET in places and choice.by_hand(out / choice.HARD_SET):
        tokens = {made.get("tokens", {}).get("sha256") for made in (kept["inputs"], inputs)}
        stays = not values["redo"] and len(tokens) == 1
        note = f"the hard set chosen by hand {'stays' if stays else 'goes too'}; {note}"
        if stays:
            del places[choice.HARD_SET]
    old = _move(out, places, run, record["started"])
    print(note := f"{why}: {note} {parameters.shown(old)}")
    return note


def keep_or_refuse_checkpoint(
    out: Path, run: str, values: dict, inputs: dict[str, dict], code: str
) -> None:
    """A checkpoint goes on only with what it was made from. Where that has other inputs or, in
    quick profiles, other code, or is not known, it goes to old/; other parameters may be a slip,
    which must not cost a night. `redo` starts over once: what that began goes on after a stop."""
    folder, place = out / "checkpoints" / run, f"checkpoints/{run}"
    before = {"redo": False, "parameters": {}} | (files.whole(folder / "made_from.json") or {})
    now = {
        "parameters": hashes.decisive(values),
        "inputs": {name: fingerprint["sha256"] for name, fingerprint in inputs.items()},
        "code": code if values["profile"] in hashes.QUICK else "",
        "redo": values["redo"] or before["redo"],
    }
    fits = all(now[key] == before.get(key) for key in ("inputs", "code", "redo"))
    if fits and any(folder.rglob("state.pt")):
        for name, value in now["parameters"].items():
            if (was := before["parameters"].get(name)) != value:
                raise ValueError(
                    f"{run} has a checkpoint made with {name} = {was!r}, now it is {value!r}: put "
                    f"it back to go on, or start over with redo = True (make book REDO={run})"
                )
    elif any(path.is_file() for path in folder.rglob("*") if path.name != "made_from.json"):
        old = _move(out, {place: place}, run, "")
        print(f"{run} starts over; its checkpoint is in {parameters.shown(old)}")
    files.write_whole(folder / "made_from.json", json.dumps(now))


def _move(out: Path, places: dict[str, str], run: str, started: str) -> Path:
    """Move what is there to its places in old/<run>-<when it was started>, a new folder: two of one
    second are told apart."""
    when = re.sub(r"\D", "", started)[:14] or f"{time.time():.0f}"
    names = (f"{run}-{when}{f'-{more}' * (more > 1)}" for more in itertools.count(1))
    old = next(path for name in names if not (path := out / "old" / name).exists())
    for name, place in places.items():
        if os.path.lexists(out / name):
            (old / place).parent.mkdir(parents=True, exist_ok=True)
            os.replace(out / name, old / place)
    return old
