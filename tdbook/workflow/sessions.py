"""Each `make book` and `make sweep`: when, what, and by which process."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tdbook.runs import disk, heartbeat
from tdlib import files
from tdlib.files import write_whole as write

SESSIONS = ".sessions.json"  # each `make book` and `make sweep`: when, what, and by which process


@contextlib.contextmanager
def session(
    out: Path, targets: list[str], command: str, price: float | None
) -> Iterator[Callable[[int], None]]:
    """Keeps that this process makes these runs now, and when and how it ended: it gives a function
    that takes the exit code."""
    own = {"began": time.time(), "ended": None, "code": None, "targets": targets}
    own |= {"command": command, "price": price, **heartbeat.who()}
    disk.set_aside(out / SESSIONS, list)
    earlier = sessions(out)[-99:]
    write(out / SESSIONS, json.dumps([*earlier, own]))
    try:
        yield lambda code: own.update(code=code)
    finally:
        own["ended"] = time.time()
        with contextlib.suppress(OSError):  # a full disk
            write(out / SESSIONS, json.dumps([*earlier, own]))


def began_of(out: Path, command: str) -> float:
    """When a command that has not come to its end yet was given first; ∞ for a new one."""
    began = math.inf
    for one in reversed(sessions(out)):
        if one["command"] != command or one["code"] == 0:
            break
        began = one["began"]
    return began


def sessions(out: Path) -> list[dict]:
    return files.whole(out / SESSIONS, kind=list) or []
