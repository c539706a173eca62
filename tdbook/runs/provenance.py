"""Where a result comes from: commit, versions, device, memory."""

import os
import platform
import re
import resource
import subprocess
import sys
from pathlib import Path

from tdbook.runs import parameters


def commit() -> tuple[str | None, bool | None]:
    """The commit, and whether anything differs from it; None where there is no git."""
    # without its lock, which would stay if this process were killed, and stop the user's own git
    git = ["git", "--no-optional-locks", "-C", str(parameters.ROOT)]
    try:
        head, changed = (
            subprocess.check_output([*git, *words], stderr=subprocess.DEVNULL, text=True).strip()
            for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return head, bool(changed)


def versions() -> dict[str, str]:
    packages = ("torch", "numpy", "sentencepiece", "pandas", "matplotlib")
    loaded = {p: sys.modules[p].__version__ for p in packages if p in sys.modules}
    return {"python": platform.python_version()} | loaded


def device_name(wanted: str) -> str:
    torch = sys.modules.get("torch")
    if torch and wanted != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads() if torch else os.cpu_count()
    cpuinfo = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*:\s*(.*)", cpuinfo.read_text() if cpuinfo.exists() else "")
    cpu = name[1].strip() if name else platform.machine()
    return f"cpu, {threads} thread{'s' * (threads > 1)}, {cpu}"


def peak_memory_mib() -> float:
    """Of the GPU where one was used, else of the process."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
