"""Which GPU a run of the book gets: one of its own, on any number of books at once.

A GPU is held by a lock on a file in the system's temporary folder, and the lock goes with the
process that took it, however that ends. GPU_RUNS=2 lets two runs share one. Where SLURM gives out
the GPUs, what it gave is taken.
"""

import fcntl
import itertools
import os
import re
import tempfile
import time
from pathlib import Path

VISIBLE, RUNS = "CUDA_VISIBLE_DEVICES", "GPU_RUNS"
_held = []  # open files, for as long as the process lives


def there() -> list[str]:
    """The GPUs that this process may use, by the names CUDA gives them."""
    if VISIBLE in os.environ:
        return [name for name in os.environ[VISIBLE].split(",") if name.strip()]
    return [str(number) for number in range(len([*Path("/dev").glob("nvidia[0-9]*")]))]


def runs_each() -> int:
    """How many runs may share one."""
    given = os.environ.get(RUNS) or "1"
    if not given.isdigit() or not int(given):
        raise ValueError(f"{RUNS}={given} must be a whole number, at least 1: for example {RUNS}=2")
    return int(given)


def slots() -> int:
    """How many runs of one GPU each there is room for; 0 without a GPU."""
    return len(there()) * runs_each()


def take(device: str, count: int) -> str:
    """Wait for `count` free GPUs, let CUDA see those alone, and return their names; "" where there
    is nothing to take. ValueError: more than there are."""
    names = there()
    if not names or device == "cpu" or "SLURM_JOB_ID" in os.environ:
        return ""
    if count > len(names):
        raise ValueError(f"processes = {count}, and this machine has {len(names)} GPUs: give fewer")
    folder = Path(tempfile.gettempdir()) / f"tdlib-gpus-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    chosen = {}
    for tried in itertools.count():
        for slot, name in itertools.product(range(runs_each()), names):
            if name not in chosen and len(chosen) < count:
                file = (folder / f"{re.sub(r'[^-.0-9A-Za-z]', '_', name)}.{slot}").open("a")
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    chosen[name] = file
                except BlockingIOError:
                    file.close()
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
