"""What goes on in a run folder, from its files and the processes that live: for `make status`, the
index and the morning report alike.

A run is queued, running, done, failed, interrupted (it said so itself), lost (its process is gone
without a word) or not run. A done one is stale where other code than today's made it, outdated
where the next `make book` makes it again, damaged where its files are not as it wrote them.
Papermill's metadata is not used: it is wrong after a kill. Imports no torch.
"""

import contextlib
import itertools
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

from tdbook.runs import hashes, heartbeat, parameters, sweeps
from tdbook.runs.hashes import older_code
from tdbook.runs.notebooks import notebook_of
from tdbook.workflow import graph, sessions
from tdlib import files


def live(out: Path) -> dict | None:
    """The session that makes this folder now, if its process lives."""
    last = (sessions.sessions(out) or [None])[-1]
    return last if last and not last["ended"] and not heartbeat.gone(last) else None


def hours(out: Path) -> float:
    """What this folder's sessions took in all. A killed one ended with the last heartbeat."""
    places = [out, *(path.parent for path in out.glob(f"sweeps/*/*/{sweeps.PARENT}"))]
    beats = [s.get("heartbeat", 0) for place in places for s in heartbeat.states(place)]
    made, total = sessions.sessions(out), 0.0
    for one, following in itertools.pairwise([*made, {"began": time.time()}]):
        until = following["began"]
        seen = [beat for beat in beats if one["began"] <= beat <= until]
        end = one["ended"] or (until if one == live(out) else max(seen, default=one["began"]))
        total += end - one["began"]
    return total / 3600


def rows(out: Path, look: bool = True, full: bool = False) -> list[dict]:
    """Every run of a folder, or of a sweep's: those asked for last, and all that left a trace.
    Without a `look` the done ones are not judged; a `full` one reads all that they wrote."""
    above = sweeps.parent(out) or out
    asked = (sessions.sessions(above) or [{"targets": []}])[-1]["targets"]
    runs, last = [(out, run) for run in _traces(out)], []
    sweep = out.name if (out / sweeps.POINTS).is_file() else ""
    if sweep:
        listed = sweeps.listed(above, sweep)
        for point, names in listed["runs"].items():
            runs += [(out / point, run) for run in names]
        page = (out, sweeps.page(sweep))  # comes after its points
        last = [page] if listed["notebook"] or page in runs else []
    else:
        runs += [(out, name) for name in asked if "/" not in name]
    wanted = set(asked) if live(above) else set()
    ordered = [*sorted({*runs} - {*last}), *last]
    found = [row(folder, run, wanted) for folder, run in ordered]
    return _judged(above, sweep, found, full) if look else found


def _judged(out: Path, sweep: str, found: list[dict], full: bool) -> list[dict]:
    """Rows, of which those done get the word "damaged" or "outdated" where that is true of them: by
    what the last command was told and its profile as that is today; a run that these do not know,
    by its own record."""
    config = files.whole(out / graph.CONFIG, "profile", "given")
    own = {"redo": [], "before": [], "sweeps": [sweep] if sweep else []}
    jobs: dict = {}
    if config:
        with contextlib.suppress(ValueError):  # of params/: `make check` tells
            jobs = graph.jobs(config | own | {"out_dir": parameters.shown(out)}, paths=False)
    names = {(one.out.resolve(), one.run): name for name, one in jobs.items()}
    done = {}  # name of a job → its row
    for one in (one for one in found if one["state"]["state"] == "done"):
        folder, run = one["folder"].resolve(), one["run"]
        name = names.get((folder, run), str(folder / run))
        if name not in jobs and (folder / "hashes" / f"{run}.json").exists():
            jobs[name] = _by_record(folder, run)
        done |= {name: one} if name in jobs else {}
    reasons, damaged = hashes.judge(jobs, done, (), full)
    for name, one in done.items():
        why = reasons.get(name, "")
        if name in damaged:
            one |= {"older": False, "state": {"state": "damaged", "error": damaged[name]}}
        elif why and why != hashes.OLDER:
            error = [f"{why}: the next `make book` makes it again"]
            one |= {"older": False, "state": {"state": "outdated", "error": error}}
    return found


def _by_record(out: Path, run: str) -> SimpleNamespace:
    """A run as `hashes.judge` takes it, with the parameters that it was made with."""
    notebook, kept = notebook_of(run), hashes.load(out, run) or hashes.EMPTY
    record = files.whole(out / "results" / f"{run}.json", "parameters") or {"parameters": {}}
    values: dict = {}
    with contextlib.suppress(ValueError):  # a folder that is looked at without its notebooks
        values = parameters.declared(notebook)
    values |= record["parameters"] | {"redo": False}
    made = hashes.makers(out)
    needs = {str(out / made[name][0]) for name in kept["inputs"] if name in made}
    return SimpleNamespace(
        out=out,
        run=run,
        parameters=values,
        sweep="",
        compares=False,
        writes=[*kept["outputs"]],
        needs=sorted(needs - {str(out / run)}),
    )


def _traces(out: Path) -> list[str]:
    """Runs with a state or a record of their own; those that are links are the parent's."""
    found = (path for part in ("results", "state") for path in (out / part).glob("*.json"))
    return sorted({path.stem for path in found if not path.is_symlink()})


def row(out: Path, run: str, wanted: set[str] = frozenset()) -> dict:
    """One run: `run`, `name` (also its point's, where a point has several), `folder`, `record` ({}
    without one), `state` with its word, `changed` parameters, `older`: done, by other code than
    today's. `wanted`: what is being made now."""
    record = files.whole(out / "results" / f"{run}.json", "parameters") or {}
    name = f"{out.name}/{run}" if _several(out) else run
    state = heartbeat.state(out, run)
    if record and not (out / "state" / f"{run}.json").exists():
        state = {"run": run, "state": "done"}
    if state["state"] != "running" and _waits(out, run, name, wanted):
        state |= {"state": "queued", "error": []}
    elif state["state"] == "queued":
        state |= {"state": "not run"}
    done, changed = state["state"] == "done", state.get("changed", {})
    if done:
        changed = {key: record["parameters"][key] for key in record.get("changed", [])}
    about = {"run": run, "name": name, "folder": out, "record": record, "state": state}
    return about | {"changed": changed, "older": done and older_code(out, run)}


def _waits(out: Path, run: str, name: str, wanted: set[str]) -> bool:
    """Whether a run is still to be made by what goes on now, and has not been tried by it yet."""
    above = sweeps.parent(out)
    if above:
        name = f"{(out if (out / sweeps.POINTS).is_file() else out.parent).name}/{name}"
    if name not in wanted or (out / ".done" / run).exists():
        return False
    began = (live(above or out) or {"began": 0})["began"]
    return heartbeat.state(out, run).get("heartbeat", 0) < began


def _several(out: Path) -> bool:
    """Whether this is the folder of a sweep's point that has several runs."""
    listed = out.parent / sweeps.POINTS
    return not (files.whole(listed, "notebook") or {"notebook": "one"})["notebook"]


def sweeps_of(out: Path) -> dict[str, dict]:
    """A folder's sweeps → `counts` of its points by state, and the `finding` of its page."""
    found = {}
    for path in sorted(out.glob(f"sweeps/*/{sweeps.POINTS}")):
        listed = files.whole(path, "notebook", "question", "points")
        if listed is None:
            points, question = [], ""
            finding = f"{path} is broken: `make sweep NAME={path.parent.name}` writes it again"
        else:
            points, question = rows(path.parent), listed["question"]
            page = points.pop() if listed["notebook"] else {"record": {}}
            finding = page["record"].get("finding", "")
        own = {"counts": heartbeat.counts(points), "finding": finding, "question": question}
        found[path.parent.name] = own
    return found


def text(out: Path, full: bool = False) -> str:
    """For a terminal: a line a run, then the sweeps, then who makes it; `full` reads what the runs
    wrote, all of it."""

    found = rows(out, full=full)
    if not found:
        return f"{out}: no run has left a trace here: `make book` makes one"
    width = max(len(one["run"]) for one in found)
    lines = [f"{one['run']:<{width}}  {heartbeat.word(one):11}  {_news(one)}" for one in found]
    for name, sweep in sweeps_of(out).items():
        lines.append(f"sweep {name}: {heartbeat.in_words(sweep['counts']) or sweep['finding']}")
    for path in (out / sessions.SESSIONS, out / graph.CONFIG):
        if path.exists() and files.whole(path, kind=object) is None:
            lines.append(f"{path} is broken: the next command begins a new one")
    last = (sessions.sessions(out) or [{"ended": True}])[-1]
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
    found, made = rows(out), sessions.sessions(out)
    last = made[-1] if made else {"command": f"make book OUT={out}", "began": 0}
    places = [path.parent for path in out.glob(f"sweeps/*/{sweeps.POINTS}") if files.whole(path)]
    every = [*found, *(one for place in places for one in rows(place))]
    bad = ("failed", "lost", "interrupted", "damaged")
    trouble = [one for one in every if heartbeat.word(one) in bad]
    undone = [one for one in found if heartbeat.word(one) not in ("done", "stale")]
    price = next((one["price"] for one in reversed(made) if one["price"] is not None), None)
    took, now = hours(out), live(out)
    return {
        "counts": heartbeat.counts(found),
        "ended": [one for one in found if one["state"]["state"] == "done"],
        "running": [one for one in every if one["state"]["state"] == "running"],
        "trouble": trouble,
        "sweeps": sweeps_of(out),
        "live": now,
        "began": last["began"],
        "hours": took,
        "money": None if price is None else price * took,
        "price": price,
        "disk": disk(out),
        "free": shutil.disk_usage(out).free,
        "next": _next(out, last, now, trouble, undone),
        "rows": found,
    }


def _next(out: Path, last: dict, now: dict | None, trouble: list, undone: list) -> str:
    if now:
        return f"`{now['command']}` is at work; `make status` follows it"
    if redo := [one["run"] for one in trouble if heartbeat.word(one) == "damaged"]:
        return f"`{last['command']} REDO={','.join(redo)}` makes again what is damaged"
    if trouble or undone:
        return f"`{last['command']}` goes on where it stopped"
    what = f"OUT={parameters.shown(out)}"
    return f"all is done: `make publish {what}` keeps the results, `make zip {what}` mails them"


def disk(out: Path) -> dict[str, int]:
    """Folder → bytes in it, largest first; links count where they lead to something."""
    parts = {path.name: _bytes(path) for path in out.iterdir() if path.is_dir()}
    return dict(sorted(parts.items(), key=lambda part: -part[1]))


def _bytes(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # gone in the meantime
                found = os.lstat(os.path.join(place, name))
                total += min(found.st_size, found.st_blocks * 512)  # a cache may be sparse
    return total
