"""What goes on in a run folder, by its files and the processes that live.

A run is queued, running, done, failed, interrupted (it said so itself), lost (its process is gone
without a word) or not run. A done one is stale where other code than today's made it, outdated
where the next `make book` makes it again, damaged where its files are not as it wrote them.
Papermill's metadata is not used: it is wrong after a kill. Imports no torch.
"""

import contextlib
import itertools
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jinja2
from tabulate import tabulate

from tdbook.runs import hashes, heartbeat, parameters, sweeps
from tdbook.workflow import graph
from tdlib import files

SESSIONS = ".sessions.json"  # each `make book` and `make sweep`: when, what, and by which process
BAD = ("failed", "lost", "interrupted", "damaged")


@contextlib.contextmanager
def session(out: Path, targets: list[str], command: str, price: float | None) -> Iterator[dict]:
    """Keeps that this process makes these runs now; what it gives takes the exit code."""
    own = {"began": time.time(), "ended": None, "code": None, "targets": targets}
    own |= {"command": command, "price": price, **heartbeat.who()}
    earlier = sessions(out)[-99:]
    files.write_whole(out / SESSIONS, json.dumps([*earlier, own]))
    try:
        yield own
    finally:
        own["ended"] = time.time()
        with contextlib.suppress(OSError):  # a full disk
            files.write_whole(out / SESSIONS, json.dumps([*earlier, own]))


def sessions(out: Path) -> list[dict]:
    return files.whole(out / SESSIONS, kind=list) or []


def live(out: Path) -> dict | None:
    """The session that makes this folder now, if its process lives."""
    last = (sessions(out) or [None])[-1]
    return last if last and not last["ended"] and not heartbeat.gone(last) else None


def hours(out: Path) -> float:
    """What this folder's sessions took in all. A killed one ended with the last heartbeat."""
    places = [out, *(path.parent for path in out.glob(f"sweeps/*/*/{sweeps.PARENT}"))]
    beats = [s.get("heartbeat", 0) for place in places for s in heartbeat.states(place)]
    now, total = {"began": time.time()}, 0.0
    for one, following in itertools.pairwise([*sessions(out), now]):
        last = max((beat for beat in beats if beat <= following["began"]), default=0.0)
        end = now["began"] if one == live(out) else max(last, one["began"])
        total += (one["ended"] or end) - one["began"]
    return total / 3600


def rows(out: Path, full: bool = False) -> list[dict]:
    """Every run of a folder, or of a sweep's: those asked for last, and all that left a trace."""
    above, sweep = sweeps.parent(out) or out, ""
    last = (sessions(above) or [{"targets": [], "began": 0.0}])[-1]
    if (out / sweeps.POINTS).is_file():
        sweep, listed = f"{out.name}/", sweeps.listed(above, out.name)
        pairs = [(point, run) for point, runs in sorted(listed["runs"].items()) for run in runs]
        places = {run if listed["notebook"] else f"{p}/{run}": (out / p, run) for p, run in pairs}
        # what an older book made of the points, in the sweep's folder itself
        places |= {run: (out, run) for run in traces(out) if hashes.load(out, run)}
    else:
        asked = [name for name in last["targets"] if "/" not in name] if above == out else []
        places = {run: (out, run) for run in sorted({*traces(out), *asked})}
    waiting = {*last["targets"]} if live(above) else set()
    found = {}
    for name, (folder, run) in places.items():
        found[f"{sweep}{name}"] = one = row(folder, run) | {"name": name}
        one["older"] &= not sweep or folder != out  # nothing makes that again
        began = one["state"].get("heartbeat", 0) >= last["began"]
        made = began or (folder / ".done" / run).exists() or one["state"]["state"] == "running"
        if f"{sweep}{name}" in waiting and not made:
            one |= {"older": False, "state": one["state"] | {"state": "queued", "error": []}}
    return _judged(above, sweep.strip("/"), found, full)


def traces(out: Path) -> list[str]:
    """Runs with a state or a record of their own; those that are links are the parent's."""
    paths = (path for part in ("results", "state") for path in (out / part).glob("*.json"))
    return sorted({path.stem for path in paths if not path.is_symlink()})


def row(out: Path, run: str) -> dict:
    """One run. `older`: done, by other code than today's; `record`: {} without one."""
    record = files.whole(out / "results" / f"{run}.json", "parameters") or {}
    state, published = heartbeat.state(out, run), not (out / "state" / f"{run}.json").exists()
    if record and published:
        state = {"run": run, "state": "done"}
    done, changed = state["state"] == "done", state.get("changed", {})
    if done:
        changed = {key: record["parameters"][key] for key in record.get("changed", [])}
    older = done and "code" in record and record["code"] != hashes.of_code(record["notebook"])
    about = {"run": run, "name": run, "folder": out, "record": record, "state": state}
    return about | {"changed": changed, "older": older and not published}


def _judged(out: Path, sweep: str, found: dict[str, dict], full: bool) -> list[dict]:
    """Rows; those done are "damaged" or "outdated" where the last command would say so today."""
    config, jobs = files.whole(out / graph.CONFIG, "profile", "given"), {}
    own = {"redo": [], "sweeps": sweep.split(), "out": parameters.shown(out)}
    with contextlib.suppress(ValueError):  # of params/: `make plan` tells
        jobs = graph.jobs(config | own, paths=False) if config else {}
    done = {name: one for name, one in found.items() if one["state"]["state"] == "done"}
    reasons = hashes.judge(jobs, done.keys() & jobs.keys())
    for name, one in done.items():
        why = reasons.get(name, hashes.OLDER)
        if hurt := hashes.damage(one["folder"], one["run"], full):
            one |= {"older": False, "state": {"state": "damaged", "error": hurt}}
        elif why not in ("", hashes.OLDER):
            error = [f"{why}: the next `make book` makes it again"]
            one |= {"older": False, "state": {"state": "outdated", "error": error}}
    return [*found.values()]


def sweeps_of(out: Path) -> dict[str, dict]:
    """A folder's sweeps → their `rows`, `counts` of the points by state, and `finding`: the lowest
    loss, or what is wrong with the list of points."""
    found = {}
    for path in sorted(out.glob(f"sweeps/*/{sweeps.POINTS}")):
        try:
            every, finding = rows(path.parent), ""
        except ValueError as error:
            every, finding = [], str(error)
        points = [one for one in every if one["folder"] != path.parent]
        counts = Counter(map(heartbeat.word, points))
        models = ((m, one) for one in points for m in one["record"].get("models", {}).values())
        if losses := [(m["loss"], one["name"]) for m, one in models if "loss" in m]:
            finding = "{1} has the lowest loss, {0:.3f}.".format(*min(losses))
        found[path.parent.name] = {"rows": every, "counts": counts, "finding": finding}
    return found


def text(out: Path, full: bool = False) -> str:
    """For a terminal: a line a run, then the sweeps, then who makes it."""
    paths = [path for path in (out / SESSIONS, out / graph.CONFIG) if path.exists()]
    content = morning(out, full) | {"out": out, "heartbeat": heartbeat}
    content["last"] = (sessions(out) or [None])[-1]
    content["broken"] = [path for path in paths if files.whole(path, kind=object) is None]
    return filled("status", **content)


def filled(name: str, **content: object) -> str:
    """A .txt.j2 of this folder as text; its filter `table` has lines with | between their cells."""
    engine = jinja2.Environment(trim_blocks=True)
    engine.filters["table"] = _table
    template = Path(__file__).with_name(f"{name}.txt.j2").read_text("utf8")
    lines = engine.from_string(template).render(content).splitlines()
    return "\n".join(line.rstrip() for line in lines)


def _table(text: str) -> str:
    """Numbers to the right: all but the first cell, and the last where its heading is "why"."""
    rows = [line.split(" | ") for line in text.splitlines()]
    align = ["left", *("left" if name == "why" else "right" for name in rows[0][1:])]
    return tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=align)


def morning(out: Path, full: bool = False) -> dict:
    """What status, the morning report and the head of the index say of a run folder."""
    found, made, swept, now = rows(out, full), sessions(out), sweeps_of(out), live(out)
    every = [*found, *(one for sweep in swept.values() for one in sweep["rows"])]
    trouble = [one for one in every if heartbeat.word(one) in BAD]
    price = next((x["price"] for x in reversed(made) if x["price"] is not None), None)
    free = shutil.disk_usage(out).free if out.exists() else 0
    running = [one for one in every if one["state"]["state"] == "running"]
    about = {"rows": found, "counts": Counter(map(heartbeat.word, found)), "running": running}
    about |= {"trouble": trouble, "sweeps": swept, "live": now, "out": parameters.shown(out)}
    about["command"] = made[-1]["command"] if made else f"make book OUT={out}"
    return about | {"hours": hours(out), "price": price, "free": free}
