"""One run executed by papermill, with GPUs of its own on any number of books at once, and its page.

A GPU is held by a lock on a file in the system's temporary folder, and the lock goes with the
process that took it, however that ends. GPU_RUNS=2 lets two runs share one. Where SLURM gives out
the GPUs, what it gave is taken.
"""

import contextlib
import fcntl
import itertools
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

import psutil

from tdbook.runs import hashes, heartbeat, hooks, notebooks, ownership, parameters, sweeps, units
from tdbook.workflow import graph, status
from tdlib import files

VISIBLE, RUNS = "CUDA_VISIBLE_DEVICES", "GPU_RUNS"
_held = []  # open files, for as long as the process lives


def execute(yaml: Path, out: Path, overrides: dict) -> int:
    """Run one YAML's notebook, and write its page after a failure too; returns the exit code."""
    run, out = yaml.stem, parameters.ROOT / out
    try:
        values = graph.check_yaml(yaml, overrides | {"out": parameters.shown(out)})
        if sweeps.parent(out):
            sweeps.link(out, notebooks.reads(run, values, []))
        heartbeat.wait_until_free(out, run)
        if not hashes.why(out, run, values):
            print(f"{run} · is done already", flush=True)
            return 0
        ownership.claim(out, run, values, notebook=True)
        gpus = take_gpus(values["device"], values.get("processes", 1))
    except (ValueError, RuntimeError, OSError) as error:
        print(f"{run} · failed: {error}", flush=True)
        return 1
    print(f"{run} · started{gpus and f' on GPU {gpus}'}", flush=True)
    began = time.monotonic()
    # what the notebook is told: the names of the YAML, with values that are already converted
    given = {name: values[name] for name in parameters.read(yaml) | overrides}
    error = _papermill(run, out, {"out": values["out"]} | given)
    state = _settled(out, run, error)
    page(out, run)
    done, took = state["state"] == "done", units.duration(time.monotonic() - began)
    result = status.row(out, run)["record"]["finding"] if done else last_words(state)
    print(f"{run} · {f'done in {took} ·' if done else state['state'] + ':'} {result}", flush=True)
    if command := values.get("after_run"):
        signal.alarm(0)  # of a stop; the hook has a limit of its own
        limit = heartbeat.STOP_S if error == "stopped" else hooks.LIMIT_S
        told = hooks.told(out, run, state["state"], result)
        hooks.call("after_run", command, told, parameters.ROOT, limit)
    return 0 if done else 1


def _papermill(run: str, out: Path, given: dict) -> str | None:
    """Execute; what went wrong in one line, or None."""
    import papermill
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient.exceptions import DeadKernelError

    # papermill empties its file before it saves; and the run puts an earlier notebook away
    beside = out / f".{run}.ipynb"
    paths = (parameters.ROOT / "notebooks" / f"{notebooks.notebook_of(run)}.ipynb", beside)
    paths = (str(path).replace("{", "{{").replace("}", "}}") for path in paths)  # it formats them
    # a kernel of this interpreter, whatever Jupyter's paths hold under the name python3
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = KernelSpec(argv=argv, display_name="Python 3", language="python")
    ours = type("OurKernel", (AsyncKernelManager,), {"kernel_spec": spec})
    how = dict(progress_bar=False, coalesce_streams=True, cwd=parameters.ROOT)
    how |= dict(kernel_name="python3", kernel_manager_class=ours)
    heartbeat.write_state(out, run, "running", message="starting")
    os.environ[heartbeat.DIE_WITH] = str(os.getpid())
    stopping = _stop_on_signals(out, run)
    threading.Thread(target=_show_progress, args=(out, run), daemon=True).start()
    try:
        papermill.execute_notebook(*paths, given, **how)
    except BaseException as error:  # any: a kernel that does not start must not look like running
        if stopping.is_set() or isinstance(error, SystemExit | KeyboardInterrupt):
            return "stopped"
        if isinstance(error, DeadKernelError):
            return "the kernel died; where memory is short, fewer micro_windows need less"
        name = getattr(error, "ename", type(error).__name__)  # papermill has the cell's
        return f"{name}: {getattr(error, 'evalue', error)}"
    finally:
        with contextlib.suppress(FileNotFoundError):  # no kernel, nothing written
            os.replace(beside, out / f"{run}.ipynb")
    return None


def _show_progress(out: Path, run: str) -> None:
    time.sleep(15)
    while (state := heartbeat.state(out, run))["state"] == "running":
        print(f"{run} · {heartbeat.progress(state)}", flush=True)
        time.sleep(15)


def _stop_on_signals(out: Path, run: str) -> threading.Event:
    """Pass a SIGTERM on to the kernel, which keeps its state; later an alarm ends this process."""
    stopping = threading.Event()

    def stop(number: int, _) -> None:
        if stopping.is_set() and number == signal.SIGTERM:
            return  # a cluster sends it more than once, and to the kernel too
        stopping.set()
        kernel = heartbeat.state(out, run)["pid"]
        if kernel == os.getpid() or number == signal.SIGALRM:
            sys.exit(143)
        with contextlib.suppress(ProcessLookupError):
            os.kill(kernel, signal.SIGTERM)
        signal.alarm(heartbeat.STOP_S - 5)  # before those who wait, or a cluster, lose patience

    for caught in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(caught, stop)
    return stopping


def _settled(out: Path, run: str, error: str | None) -> dict:
    """The state after the kernel is gone; this process speaks for a kernel that could not."""
    state = heartbeat.state(out, run)
    if state["state"] in ("done", "failed"):
        return state
    if error == "stopped" or (error and state["state"] == "interrupted"):  # it said so itself
        state |= {"state": "interrupted", "error": ["stopped"]}
    elif state["state"] == "lost":
        state |= {"error": [error or "its process is gone"]}
    else:
        error = error or "the notebook ended without this.finish(): add it as its last call"
        state |= {"state": "failed", "error": [error]}
    files.write_whole(out / "state" / f"{run}.json", json.dumps(state))
    return state


def last_words(state: dict) -> str:
    return (state.get("error") or ["no word of why"])[-1]


def page(out: Path, run: str) -> None:
    """The run's page and the index. What goes wrong here must not cost hours of training."""
    from tdbook.workflow import run_pages  # slow to import

    try:
        if (out / f"{run}.ipynb").exists():
            run_pages.page(out, run)
        run_pages.index(out)
    except Exception as error:  # any: the run itself is done and recorded
        print(f"{run} · its page failed: {type(error).__name__}: {error}", flush=True)


def page_after(papermill: int, out: Path, run: str, notebook: Path) -> None:
    """The page of a notebook that plain papermill, a process by its number, writes at its end."""
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(papermill).wait()
    if notebook.resolve() != (out / f"{run}.ipynb").resolve():
        shutil.copy(notebook, out / f"{run}.ipynb")
    page(out, run)


def pages(out: Path, again: bool = False) -> None:
    """The pages that a kill, or plain papermill, left unwritten; or all of them `again`."""
    for state in heartbeat.states(out):
        run, beside = state["run"], out / f".{state['run']}.ipynb"
        notebook, html = (out / f"{run}.{kind}" for kind in ("ipynb", "html"))
        if state["state"] != "running" and files.whole(beside, "cells"):
            os.replace(beside, notebook)
        written = html.stat().st_mtime if html.exists() else 0
        if notebook.exists() and (again or notebook.stat().st_mtime > written):
            page(out, run)


def gpus() -> list[str]:
    """The GPUs that this process may use, by the names CUDA gives them."""
    if VISIBLE in os.environ:
        return [name for name in os.environ[VISIBLE].split(",") if name.strip()]
    return [str(number) for number in range(len([*Path("/dev").glob("nvidia[0-9]*")]))]


def slots() -> list[tuple[int, str]]:
    """Room for runs of one GPU each: number, and GPU."""
    each = int(units.number(os.environ, RUNS, 1, 2)) if os.environ.get(RUNS) else 1
    return [*itertools.product(range(each), gpus())]


def take_gpus(device: str, count: int) -> str:
    """Wait for `count` free GPUs and let CUDA see those alone; "" where none is to be taken."""
    names = gpus()
    if not names or device == "cpu" or "SLURM_JOB_ID" in os.environ:
        return ""
    if count > len(names):
        raise ValueError(f"processes = {count}, and this machine has {len(names)} GPUs: give fewer")
    folder, chosen = Path(tempfile.gettempdir()) / f"tdlib-gpus-{os.getuid()}", {}
    folder.mkdir(exist_ok=True)
    for tried in itertools.count():
        for slot, name in slots():
            if name not in chosen and len(chosen) < count:
                file = locked(folder / f"{re.sub(r'[^-.0-9A-Za-z]', '_', name)}.{slot}")
                chosen |= {name: file} if file else {}
        if len(chosen) == count:
            break
        for file in chosen.values():  # two that each hold one of two would wait for ever
            file.close()
        chosen.clear()
        print("waits for a free GPU\n" * (not tried), end="", flush=True)
        time.sleep(1 + os.getpid() % 7 / 10)
    _held.extend(chosen.values())
    os.environ[VISIBLE] = ",".join(chosen)
    return os.environ[VISIBLE]


def locked(path: Path) -> IO | None:
    """A file, locked for as long as it is open; None where another process has it."""
    file = path.open("a")
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    file.close()
