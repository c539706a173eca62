"""Hooks: the user's own commands, called after a checkpoint and after a run, which harm neither.

A hook is a line for the shell: an upload, a mail. Its environment says what happened (`commands` in
parameters.yaml). It has nothing to read, LIMIT_S, and room for MOST bytes of output. What it left
running in its process group ends with it. How it went is one line, also in logs/hooks.log.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tdbook.runs import parameters

LIMIT_S = 600  # of a call, and of what a run waits for hooks at its end
LOOK_S = 1  # between looks for a new checkpoint
MOST = 2**24  # bytes of output, far above any progress bar's


def hidden(values: dict) -> dict:
    """Parameters as records and pages show them: a command may hold a key or an address."""
    return values | {name: "set" for name in parameters.COMMANDS if values.get(name)}


def told(out: Path, run: str, state: str, finding: str, checkpoint: Path | None = None) -> dict:
    """The environment of a hook."""
    page, folder = out / f"{run}.html", checkpoint or out / "checkpoints" / run
    env = {"TDLIB_RUN": run, "TDLIB_OUT": out, "TDLIB_STATE": state, "TDLIB_FINDING": finding}
    env["TDLIB_PAGE"] = page if page.exists() else ""
    return env | {"TDLIB_CHECKPOINT": folder if any(folder.rglob("state.pt")) else ""}


def call(hook: str, command: str, told: dict, root: Path, limit: float | None = None) -> str:
    """Call a hook and wait for it; print and return how it went. A limit of 0 does not wait."""
    env = os.environ | {name: str(value).replace("\0", " ") for name, value in told.items()}
    began = time.monotonic()
    try:
        result = _run(command, env, root, LIMIT_S if limit is None else limit)
    except (OSError, ValueError) as error:
        result = f"could not be called: {error}"
    line = f"{env['TDLIB_RUN']} · {hook} {result} ({time.monotonic() - began:.1f} s)"
    with contextlib.suppress(OSError, RuntimeError):  # a signal that came in the middle of a print
        print(line, flush=True)
    with contextlib.suppress(OSError):
        (log := Path(env["TDLIB_OUT"]) / "logs/hooks.log").parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf8") as file:
            file.write(f"{time.strftime('%FT%TZ', time.gmtime())} {line}\n")
    return line


def _run(command: str, env: dict, root: Path, limit: float) -> str:
    with tempfile.TemporaryFile() as output:
        pipes = dict(stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        own = dict(cwd=root, env=env, shell=True, start_new_session=True)
        child, end, size = subprocess.Popen(command, **own, **pipes), time.monotonic() + limit, 0
        if not limit:
            return "was called, and is left to itself"
        while (code := child.poll()) is None and size <= MOST and time.monotonic() < end:
            time.sleep(0.02)
            size = os.fstat(output.fileno()).st_size
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)  # also what it left behind
        child.wait()
        output.seek(max(0, os.fstat(output.fileno()).st_size - 2000))
        lines = output.read(2000).decode("utf8", "replace").strip().splitlines()
    if code == 0:
        return "ok"
    fault = f"did not end within {limit:g} s" if code is None else f"exit {code}"
    fault = f"wrote more than {MOST // 2**20} MiB and was ended" if size > MOST else fault
    return f"failed: {fault}: {(lines or ['without a word'])[-1][:200]}"


@contextlib.contextmanager
def beside(command: str, folder: Path, root: Path, told: Callable[[], dict]) -> Iterator[None]:
    """Inside, a thread calls after_checkpoint for new ones, one call at a time; the last always."""
    kept, ended = folder / "state.pt", threading.Event()
    before = kept.stat().st_mtime_ns if kept.exists() else 0

    def watch(seen: int) -> None:
        last = not command
        while not last:
            last = ended.wait(LOOK_S)
            if kept.exists() and (now := kept.stat().st_mtime_ns) != seen:
                seen = now
                call(parameters.COMMANDS[0], command, told(), root)

    thread = threading.Thread(target=watch, args=(before,), daemon=True)
    thread.start()
    try:
        yield
        ended.set()
        thread.join(LIMIT_S)
    finally:  # a training that fails or is stopped does not wait
        ended.set()
