"""Hooks: the user's own commands, called after a checkpoint and after a run, which harm neither.

A hook is a line for the shell: an upload, a mail. Its environment says what happened:

    TDLIB_RUN, TDLIB_OUT  the run's name, its folder
    TDLIB_STATE           running (a checkpoint), done, failed, interrupted or lost
    TDLIB_FINDING         what came out; of a run that is not done, how far it is or what failed
    TDLIB_PAGE            the report; "" where there is none yet
    TDLIB_CHECKPOINT      the folder that holds state.pt; "" where there is none

It has nothing to read, LIMIT_S, and room for MOST bytes of output. A supervisor process ends all
that it started when it ends, or the run does. How it went is one line, also in logs/hooks.log.
"""

import contextlib
import ctypes
import datetime
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tdbook.runs import heartbeat, rules

LIMIT_S = 600  # of a call, and of what a run waits for hooks at its end
SOON_S = 3  # that a process waits for a hook when it must end itself
LOOK_S = 1  # between looks for a new checkpoint
MOST = 2**24  # bytes of output, far above any progress bar's
CODE = Path(__file__).parents[2]
_watches: list[threading.Thread] = []
_one_at_a_time = threading.Lock()


def hidden(values: dict) -> dict:
    """Parameters as records and pages show them: a command may hold a key or an address."""
    shown = {name: "set" for name in rules.COMMANDS if values.get(name)}
    return {name: shown.get(name, value) for name, value in values.items()}


def told(out: Path, run: str, state: str, finding: str, checkpoint: Path | None = None) -> dict:
    """The environment of a hook."""
    page, folder = out / f"{run}.html", checkpoint or out / "checkpoints" / run
    return {
        "TDLIB_RUN": run,
        "TDLIB_OUT": out,
        "TDLIB_STATE": state,
        "TDLIB_FINDING": finding,
        "TDLIB_PAGE": page if page.exists() else "",
        "TDLIB_CHECKPOINT": folder if any(folder.rglob("state.pt")) else "",
    }


def call(
    hook: str, command: str, told: dict, root: Path, limit: float | None = None, leave: float = 0
) -> str:
    """Call a hook and wait for it, LIMIT_S by default; print and return how it went. With `leave`,
    after so many seconds it is left to end by itself, for a process that may not wait."""
    limit = LIMIT_S if limit is None else limit
    env = os.environ | {name: str(value).replace("\0", " ") for name, value in told.items()}
    words = [hook, command, str(root), str(limit), "0" if leave else str(os.getpid())]
    words = [sys.executable, "-m", "tdbook.runs.hooks", *words]
    try:
        process = _popen(words, cwd=CODE, env=env, stderr=subprocess.DEVNULL)
        line = process.communicate(timeout=leave or limit + 10)[0].decode("utf8", "replace").strip()
    except subprocess.TimeoutExpired:
        line = f"{hook} is still running; logs/hooks.log will say how it went"
        if not leave:  # it should have ended itself
            process.kill()
    except (OSError, ValueError) as error:
        line = f"{hook} could not be called: {error}"
    line = f"{env['TDLIB_RUN']} · {line or f'{hook} was ended'}"
    with contextlib.suppress(OSError, RuntimeError):  # a signal that came in the middle of a print
        print(line, flush=True)
    return line


def _popen(words: list[str], **more: object) -> subprocess.Popen:
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    return subprocess.Popen(words, start_new_session=True, **pipes, **more)


@contextlib.contextmanager
def beside(command: str, folder: Path, root: Path, told: Callable[[], dict]) -> Iterator[None]:
    """Inside, a thread calls after_checkpoint whenever folder/state.pt is a new one. One call at a
    time: after it, one for all checkpoints kept meanwhile, so the last is always told. `settle`
    waits for that."""
    if not command:
        yield
        return
    ended, seen = threading.Event(), _stamp(folder)

    def watch() -> None:
        nonlocal seen
        last = False
        while not last:
            last = ended.wait(LOOK_S)
            if (now := _stamp(folder)) not in (None, seen):
                seen = now
                with _one_at_a_time:
                    call(rules.COMMANDS[0], command, told(), root)

    _watches.append(threading.Thread(target=watch, daemon=True))
    _watches[-1].start()
    try:
        yield
    finally:
        ended.set()


def settle() -> None:
    """Wait, LIMIT_S at most, until no after_checkpoint is left to be called."""
    end = time.monotonic() + LIMIT_S
    while _watches:
        _watches.pop().join(max(0, end - time.monotonic()))


def _stamp(folder: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        stat = (folder / "state.pt").stat()
        return stat.st_mtime_ns, stat.st_ino
    return None


def _supervise(command: str, root: str, limit: float, caller: int) -> str:
    """Run a command; how it went. Everything it started has ended then."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a KeyboardInterrupt, see below
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: what it leaves behind is ours
    if caller:
        heartbeat.die_with_parent()
    child = _popen(["/bin/sh", "-c", command], cwd=root, stderr=subprocess.STDOUT)
    output, size, end, code = b"", 0, time.monotonic() + limit, None
    try:
        if caller and os.getppid() != caller:
            raise KeyboardInterrupt  # it was gone before
        while code is None and size <= MOST and time.monotonic() < end:
            code = child.poll()
            if select.select([child.stdout], [], [], 0.02)[0]:
                chunk = os.read(child.stdout.fileno(), 2**16)  # all that a pipe holds
                time.sleep(0 if chunk else 0.02)  # nothing: it has closed its output
                output, size = (output + chunk)[-2000:], size + len(chunk)
        result = "" if code == 0 else f"signal {-code}" if code and code < 0 else f"exit {code}"
        if size > MOST:
            result = f"wrote more than {MOST // 2**20} MiB and was ended"
        elif code is None:
            result = f"did not end within {limit:g} s"
    except KeyboardInterrupt:
        result = "was ended with its run"
    _end_all(child.pid)
    lines = [" ".join(line.split()) for line in output.decode("utf8", "replace").splitlines()]
    last = next(filter(None, reversed(lines)), "without a word")[:200]
    return f"failed: {result}: {last}" if result else "ok"


def _end_all(group: int) -> None:
    for _ in range(20):  # what starts others faster than they can be ended is rare enough
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
        if not (left := psutil.Process().children(recursive=True)):
            return
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=0.5)


def _main(hook: str, command: str, root: str, limit: str, caller: str) -> None:
    began = time.monotonic()
    result = _supervise(command, root, float(limit), int(caller))
    line = f"{hook} {result} ({time.monotonic() - began:.1f} s)"
    with contextlib.suppress(OSError):  # the caller may be gone
        print(line, flush=True)
    log = Path(os.environ["TDLIB_OUT"]) / "logs" / "hooks.log"
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with contextlib.suppress(OSError):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf8") as file:
            file.write(f"{now} {os.environ['TDLIB_RUN']} · {line}\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
