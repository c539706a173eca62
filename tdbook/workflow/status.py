"""What goes on in a run folder, from its files and the processes that live: for `make status`, the
index and the morning report alike.

A run is queued, running, done, failed, interrupted (it said so itself), lost (its process is gone
without a word) or not run. A done one is stale where other code than today's made it, outdated
where the next `make book` makes it again, damaged where its files are not as it wrote them.
Papermill's metadata is not used: it is wrong after a kill. Imports no torch.
"""

import contextlib
import itertools
import json
import math
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tdbook.runs import hashes, heartbeat, machine, parameters, sweeps
from tdbook.workflow import graph
from tdlib import files

SESSIONS = ".sessions.json"  # each `make book` and `make sweep`: when, what, and by which process
BAD = ("failed", "lost", "interrupted", "damaged")


@contextlib.contextmanager
def session(
    out: Path, targets: list[str], command: str, price: float | None
) -> Iterator[Callable[[int], None]]:
    """Keeps that this process makes these runs now; gives a function for the exit code."""
    own = {"began": time.time(), "ended": None, "code": None, "targets": targets}
    own |= {"command": command, "price": price, **heartbeat.who()}
    machine.set_aside(out / SESSIONS, list)
    earlier = sessions(out)[-99:]
    files.write_whole(out / SESSIONS, json.dumps([*earlier, own]))
    try:
        yield lambda code: own.update(code=code)
    finally:
        own["ended"] = time.time()
        with contextlib.suppress(OSError):  # a full disk
            files.write_whole(out / SESSIONS, json.dumps([*earlier, own]))


def sessions(out: Path) -> list[dict]:
    return files.whole(out / SESSIONS, kind=list) or []


def began_of(out: Path, command: str) -> float:
    """When a command that has not come to its end yet was given first; ∞ for a new one."""
    began = math.inf
    for one in reversed(sessions(out)):
        if one["command"] != command or one["code"] == 0:
            break
        began = one["began"]
    return began


def live(out: Path) -> dict | None:
    """The session that makes this folder now, if its process lives."""
    last = (sessions(out) or [None])[-1]
    return last if last and not last["ended"] and not heartbeat.gone(last) else None


def hours(out: Path) -> float:
    """What this folder's sessions took in all. A killed one ended with the last heartbeat."""
    places = [out, *(path.parent for path in out.glob(f"sweeps/*/*/{sweeps.PARENT}"))]
    beats = [s.get("heartbeat", 0) for place in places for s in heartbeat.states(place)]
    made, total = sessions(out), 0.0
    for one, following in itertools.pairwise([*made, {"began": time.time()}]):
        until = following["began"]
        seen = [beat for beat in beats if one["began"] <= beat <= until]
        end = one["ended"] or (until if one == live(out) else max(seen, default=one["began"]))
        total += end - one["began"]
    return total / 3600


def rows(out: Path, full: bool = False) -> list[dict]:
    """Every run of a folder, or of a sweep's: those asked for last, and all that left a trace."""
    above, sweep = sweeps.parent(out) or out, ""
    asked = (sessions(above) or [{"targets": []}])[-1]["targets"]
    if (out / sweeps.POINTS).is_file():
        sweep, listed = out.name, sweeps.listed(above, out.name)
        several, page = not listed["notebook"], sweeps.page(sweep)
        places = {
            f"{sweep}/{point}/{run}" if several else f"{sweep}/{run}": (out / point, run)
            for point, runs in sorted(listed["runs"].items())
            for run in runs
        }
        places |= {} if several else {f"{sweep}/{page}": (out, page)}
    else:
        also = [name for name in asked if "/" not in name] if above == out else []
        places = {run: (out, run) for run in sorted({*traces(out), *also})}
    session_ = live(above)
    waiting = set(session_["targets"]) if session_ else set()
    found = {}
    for name, (folder, run) in places.items():
        waits = name in waiting and not (folder / ".done" / run).exists()
        waits &= heartbeat.state(folder, run).get("heartbeat", 0) < (session_ or {}).get("began", 0)
        found[name] = row(folder, run, waits) | {"name": name.removeprefix(f"{sweep}/")}
    return _judged(above, sweep, found, full)


def traces(out: Path) -> list[str]:
    """Runs with a state or a record of their own; those that are links are the parent's."""
    paths = (path for part in ("results", "state") for path in (out / part).glob("*.json"))
    return sorted({path.stem for path in paths if not path.is_symlink()})


def row(out: Path, run: str, waits: bool = False) -> dict:
    """One run. `waits`: it is still to be made by what goes on now; `older`: done, by other code
    than today's; `changed`: parameters; `record`: {} without one."""
    record = files.whole(out / "results" / f"{run}.json", "parameters") or {}
    state = heartbeat.state(out, run)
    if record and not (out / "state" / f"{run}.json").exists():
        state = {"run": run, "state": "done"}
    if state["state"] != "running" and waits:
        state |= {"state": "queued", "error": []}
    elif state["state"] == "queued":
        state |= {"state": "not run"}
    done, changed = state["state"] == "done", state.get("changed", {})
    if done:
        changed = {key: record["parameters"][key] for key in record.get("changed", [])}
    about = {"run": run, "name": run, "folder": out, "record": record, "state": state}
    return about | {"changed": changed, "older": done and hashes.older_code(out, run)}


def _judged(out: Path, sweep: str, found: dict[str, dict], full: bool) -> list[dict]:
    """Rows; those done are "damaged" or "outdated" where the last command would say so today."""
    config = files.whole(out / graph.CONFIG, "profile", "given")
    own = {"redo": [], "before": [], "sweeps": [sweep] if sweep else []}
    jobs: dict = {}
    if config:
        with contextlib.suppress(ValueError):  # of params/: `make check` tells
            jobs = graph.jobs(config | own | {"out_dir": parameters.shown(out)}, paths=False)
    done = {name: one for name, one in found.items() if one["state"]["state"] == "done"}
    reasons, damaged = hashes.judge(jobs, [name for name in done if name in jobs], (), full)
    for name, one in done.items():
        why = reasons.get(name, "")
        hurt = damaged.get(name) if name in jobs else hashes.damage(one["folder"], one["run"], full)
        if hurt:
            one |= {"older": False, "state": {"state": "damaged", "error": hurt}}
        elif why and why != hashes.OLDER:
            error = [f"{why}: the next `make book` makes it again"]
            one |= {"older": False, "state": {"state": "outdated", "error": error}}
    return [*found.values()]


def sweeps_of(out: Path) -> dict[str, dict]:
    """A folder's sweeps → their `rows`, `counts` of the points by state, `finding` of the page."""
    found = {}
    for path in sorted(out.glob(f"sweeps/*/{sweeps.POINTS}")):
        listed, own = files.whole(path, "notebook", "points"), {"rows": [], "counts": {}}
        finding = f"{path} is broken: `make sweep NAME={path.parent.name}` writes it again"
        if listed:
            own["rows"] = points = rows(path.parent)
            page = [points[-1]] if listed["notebook"] else []
            finding = page[0]["record"].get("finding", "") if page else ""
            own["counts"] = heartbeat.counts(points[: len(points) - len(page)])
        found[path.parent.name] = own | {"finding": finding}
    return found


def text(out: Path, full: bool = False) -> str:
    """For a terminal: a line a run, then the sweeps, then who makes it."""
    found = rows(out, full)
    if not found:
        return f"{out}: no run has left a trace here: `make book` makes one"
    width = max(len(one["run"]) for one in found)
    lines = [f"{one['run']:<{width}}  {heartbeat.word(one):11}  {_news(one)}" for one in found]
    for name, sweep in sweeps_of(out).items():
        lines.append(f"sweep {name}: {heartbeat.in_words(sweep['counts']) or sweep['finding']}")
    for path in (out / SESSIONS, out / graph.CONFIG):
        if path.exists() and files.whole(path, kind=object) is None:
            lines.append(f"{path} is broken: the next command begins a new one")
    last = (sessions(out) or [{"ended": True}])[-1]
    if not last["ended"]:
        began = f"`{last['command']}` began {heartbeat.date(last['began'])}"
        works = f"process {last['pid']} is at work" if live(out) else ""
        lines.append(f"{began}; {works or 'its process is gone: the same command goes on'}")
    return "\n".join(line.rstrip() for line in lines)


def _news(one: dict) -> str:
    """How far a run has come, or what came out."""
    state = one["state"]
    if heartbeat.word(one) == "stale":
        when = heartbeat.date(one["record"]["started"])
        return f"made by older code, {when}: REDO={one['run']} repeats it"
    if state["state"] == "done":
        return one["record"].get("finding", "")
    how_far = [heartbeat.progress(state)] if state["state"] != "queued" else []
    errors = (state.get("error") or [])[-3 if state["state"] == "damaged" else -1 :]
    return " · ".join(filter(None, how_far + errors))


def morning(out: Path) -> dict:
    """What a morning report says, for its Markdown and the index's head."""
    found, made, swept, now = rows(out), sessions(out), sweeps_of(out), live(out)
    command = made[-1]["command"] if made else f"make book OUT={out}"
    every = [*found, *(one for sweep in swept.values() for one in sweep["rows"])]
    trouble = [one for one in every if heartbeat.word(one) in BAD]
    redo = [one["run"] for one in trouble if heartbeat.word(one) == "damaged"]
    what = f"OUT={parameters.shown(out)}"
    then = f"all is done: `make publish {what}` keeps the results, `make zip {what}` mails them"
    if now:
        then = f"`{now['command']}` is at work; `make status` follows it"
    elif redo:
        then = f"`{command} REDO={','.join(redo)}` makes again what is damaged"
    elif trouble or any(heartbeat.word(one) not in ("done", "stale") for one in found):
        then = f"`{command}` goes on where it stopped"
    return {
        "rows": found,
        "counts": heartbeat.counts(found),
        "running": [one for one in every if one["state"]["state"] == "running"],
        "trouble": trouble,
        "sweeps": swept,
        "live": now,
        "hours": hours(out),
        "price": next((x["price"] for x in reversed(made) if x["price"] is not None), None),
        "disk": sizes(out),
        "free": shutil.disk_usage(out).free,
        "next": then,
    }


def sizes(out: Path) -> dict[str, int]:
    """Folder → bytes in it, largest first."""
    lines = subprocess.run(["du", "-kd1", out], capture_output=True, text=True).stdout.splitlines()
    pairs = (line.split("\t") for line in lines[:-1])  # the last is the whole
    parts = {Path(path).name: int(size) * 1024 for size, path in pairs}
    return dict(sorted(parts.items(), key=lambda part: -part[1]))
