"""Hooks: the user's own commands, called after a checkpoint and after a run, which harm neither.

A hook is a line for the shell: an upload, a mail. It is told by its environment what happened:

    TDLIB_RUN, TDLIB_OUT  the run's name, its folder
    TDLIB_STATE           running (a checkpoint), done, failed, interrupted or lost
    TDLIB_FINDING         what came out; of a run that is not done, how far it is or what failed
    TDLIB_PAGE            the report; "" where there is none yet
    TDLIB_CHECKPOINT      the folder that holds state.pt; "" where there is none

It has nothing to read, LIMIT_S, and room for MOST bytes of output. What it leaves running is ended
with it, and all of it ends with the process that called. How it went is one line, also in
logs/hooks.log. Imports no torch.
"""

import contextlib
import ctypes
import datetime
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

NAMES = ("after_checkpoint", "after_run")  # the parameters; records do not show their values
LIMIT_S = 600  # of a call, and of what a run waits for hooks at its end
SOON_S = 3  # that a process waits for a hook when it must end itself
LOOK_S = 1  # how often it is looked whether there is a new checkpoint
MOST = 2**24  # bytes of output, far above any progress bar's
CODE = Path(__file__).parents[2]
_watches: list[threading.Thread] = []
_one_at_a_time = threading.Lock()


def hidden(values: dict) -> dict:
    """Parameters as records and pages show them: a command may hold a key or an address."""
    return {name: "set" if name in NAMES and value else value for name, value in values.items()}


def told(out: Path, run: str, state: str, finding: str, checkpoint: Path | None = None) -> dict:
    """What a hook's environment says."""
    page, kept = out / f"{run}.html", checkpoint or out / "checkpoints" / run
    kept = kept if any(kept.rglob("state.pt")) else ""
    return {
        "TDLIB_RUN": run, "TDLIB_OUT": out, "TDLIB_STATE": state, "TDLIB_FINDING": finding,
        "TDLIB_PAGE": page if page.exists() else "", "TDLIB_CHECKPOINT": kept,
    }  # fmt: skip


def call(
    hook: str, command: str, told: dict, root: Path, limit: float | None = None, leave: float = 0
) -> str:
    """Call a hook and wait for it, LIMIT_S unless told; print and return how it went. With `leave`,
    after so many seconds it is left to end by itself, for a process that may not wait."""
    limit = LIMIT_S if limit is None else limit
    told = {name: str(value).replace("\0", " ") for name, value in told.items()}
    words = [hook, command, str(root), str(limit), "0" if leave else str(os.getpid())]
    try:
        one = subprocess.Popen(
            [sys.executable, "-m", "tdbook.runs.hooks", *words], cwd=CODE, env=os.environ | told,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True, encoding="utf8", errors="replace",
        )  # fmt: skip
        said = one.communicate(timeout=leave or limit + 10)[0].strip()
    except subprocess.TimeoutExpired:
        said = f"{hook} is still running; logs/hooks.log will say how it went"
        if not leave:  # it should have ended itself
            one.kill()
    except (OSError, ValueError) as error:
        said = f"{hook} could not be called: {error}"
    said = f"{told['TDLIB_RUN']} · {said or f'{hook} was ended'}"
    with contextlib.suppress(OSError, RuntimeError):  # a signal that came in the middle of a print
        print(said, flush=True)
    return said


@contextlib.contextmanager
def beside(command: str, folder: Path, root: Path, told: Callable[[], dict]) -> Iterator[None]:
    """Inside, after_checkpoint is called, in a thread, when folder/state.pt is a new one. Never two
    calls at once: for the checkpoints kept meanwhile there is one call after it, so that of the
    last one is always told; `settle` waits for that."""
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
                    call("after_checkpoint", command, told(), root)

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


def _supervise(hook: str, command: str, root: str, limit: float, caller: int) -> str:
    """Run a command; how it went. Everything it started has ended then."""
    signal.signal(signal.SIGTERM, _stop)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: what it leaves behind becomes ours
        if caller:
            libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    began, said, size = time.monotonic(), b"", 0
    child = subprocess.Popen(
        ["/bin/sh", "-c", command], cwd=root, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip

    def read() -> None:
        nonlocal said, size
        while (chunk := child.stdout.read1()) and size <= MOST:
            said, size = (said + chunk)[-2000:], size + len(chunk)
        if size > MOST:  # no longer read, so it waits: end it
            _end_all(child.pid)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        if caller and os.getppid() != caller:
            raise KeyboardInterrupt  # it was gone before
        code = child.wait(limit)
        how = f"exit {code}" if code > 0 else f"signal {-code}" if code else ""
    except subprocess.TimeoutExpired:
        how = f"did not end within {limit:g} s"
    except KeyboardInterrupt:
        how = "was ended with its run"
    _end_all(child.pid)
    reader.join(1)
    if size > MOST:
        how = f"wrote more than {MOST // 2**20} MiB and was ended"
    lines = [" ".join(line.split()) for line in said.decode("utf8", "replace").splitlines()]
    last = ([line for line in lines if line] or ["without a word"])[-1][:200]
    how = f"failed: {how}: {last}" if how else "ok"
    return f"{hook} {how} ({time.monotonic() - began:.1f} s)"


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def _end_all(group: int) -> None:
    for _ in range(20):  # what starts others faster than they can be ended is rare enough
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
        if not (left := psutil.Process().children(recursive=True)):
            return
        for one in left:
            with contextlib.suppress(psutil.Error):
                one.kill()
        psutil.wait_procs(left, timeout=0.5)


def _main(hook: str, command: str, root: str, limit: str, caller: str) -> None:
    line = _supervise(hook, command, root, float(limit), int(caller))
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
