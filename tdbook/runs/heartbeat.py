"""The state of a run, written while it lives; who runs it, and whether it is gone."""

import ctypes
import datetime
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from tdbook.runs.notebooks import notebook_of
from tdbook.runs.units import duration
from tdlib import files

HEARTBEAT_S = 5
STOP_S = 30  # that a stopped run gets to end its step, keep its state and write its page
LOST_S = 120  # without a heartbeat, where the process cannot be looked at
DIE_WITH = "TDLIB_PARENT"  # in the environment: the process a kernel must not outlive


def state(out: Path, run: str) -> dict:
    """state/<run>.json; "lost" if its process is gone, "done" if its records stand."""
    path = out / "state" / f"{run}.json"
    current = files.whole(path, "run", "state")
    if current is None:  # emptied: the power was cut between its name and its content
        current = {"run": run, "state": "lost" if path.exists() else "not run", "heartbeat": 0.0}
    if current["state"] == "running" and gone(current):
        current |= {"state": "lost"}
    if current["state"] in ("lost", "interrupted") and recorded(out, run):
        current |= {"state": "done"}
    return current


def recorded(out: Path, run: str) -> bool:
    return all((out / kind / f"{run}.json").exists() for kind in ("hashes", "results"))


def states(out: Path) -> list[dict]:
    return [state(out, path.stem) for path in sorted((out / "state").glob("*.json"))]


def write_state(out: Path, run: str, word: str, **more: object) -> None:
    """`word` is running, done, failed or interrupted; this process is the one that says so."""
    about = {"run": run, "notebook": notebook_of(run), "state": word} | who()
    content = json.dumps(about | {"heartbeat": time.time()} | more)
    files.write_whole(out / "state" / f"{run}.json", content, lasting=word != "running")


def wait_until_free(out: Path, run: str) -> None:
    """RuntimeError while another process runs it; one that was just stopped gets STOP_S to end."""
    began, here = time.monotonic(), socket.gethostname()
    ours = (os.getpid(), os.getppid())  # papermill's process speaks for a kernel until it starts
    while (other := state(out, run))["state"] == "running" and other["pid"] not in ours:
        if time.monotonic() - began > STOP_S + (LOST_S if other["host"] != here else 0):
            who = f"process {other['pid']} on {other['host']}"
            raise RuntimeError(f"{run} is already being run by {who}: wait for it, or end it")
        time.sleep(0.2)


def who() -> dict:
    """This process, so that another can tell whether it lives."""
    pid, host = os.getpid(), socket.gethostname()
    return {"pid": pid, "pid_started": started(pid), "boot": _boot(), "host": host}


def gone(process: dict) -> bool:
    """Whether the process is gone; by its heartbeat alone on another machine or without /proc."""
    if process["host"] != socket.gethostname() or not _boot():
        return time.time() - process.get("heartbeat", time.time()) > LOST_S
    return process["boot"] != _boot() or process["pid_started"] != started(process["pid"])


def _boot() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def started(pid: int) -> int | None:
    """When a process began, in ticks since boot, as numbers are used again; None for a dead one."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # a program's name may hold spaces
    return None if fields[0] in "ZX" else int(fields[19])


def die_with_parent(how: int = signal.SIGTERM) -> None:
    """Ask Linux for a signal when the parent is gone, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, how)  # 1: PR_SET_PDEATHSIG


def as_json(value: object) -> str:
    """null for a number that is not known: NaN is no JSON."""
    known = json.loads(json.dumps(value, default=plain), parse_constant=lambda nan: None)
    return json.dumps(known, indent=1, ensure_ascii=False)


def plain(value: object):
    if hasattr(value, "tolist"):  # numpy's numbers and arrays, tensors
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be remembered: return numbers, text or lists")


def word(row: dict) -> str:
    """The state of one of status.rows, or "stale"."""
    return "stale" if row["older"] else row["state"]["state"]


def progress(state: dict) -> str:
    """How far a run that is not done has come: step 120 of 400 · loss 4.32 · about 31 s left."""
    parts = [state.get("message"), "its process is gone" if state["state"] == "lost" else ""]
    if state.get("steps"):
        parts.insert(0, f"step {state.get('step') or 0:,} of {state['steps']:,}")
    if state["state"] == "running" and state.get("left_s") is not None:
        parts.append(f"about {duration(state['left_s'])} left")
    elif state["state"] != "running" and state.get("heartbeat"):
        parts.append(f"last heard of {date(state['heartbeat'])}")
    return " · ".join(filter(None, parts))


def date(moment: str | float) -> str:
    """2026-11-24T11:36:38+00:00, or unix seconds, → 24 Nov 2026, 11:36 UTC."""
    if isinstance(moment, str):
        moment = datetime.datetime.fromisoformat(moment).timestamp()
    when = datetime.datetime.fromtimestamp(moment, datetime.UTC)
    return f"{when.day} {when:%b %Y, %H:%M} UTC"
