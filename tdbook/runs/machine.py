"""This machine: its disk, HOME, commit, versions, device and memory."""

import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tdbook.runs import parameters

FLASH_FIRST = "TORCH_CUDNN_SDPA_DEPRIORITIZED"  # =1, says torch, puts cuDNN's attention last
# where programs write in a HOME, by the variable that leads them elsewhere
HOMES = {"JUPYTER_RUNTIME_DIR": ".local/share/jupyter/runtime", "IPYTHONDIR": ".ipython"}
HOMES |= {"MPLCONFIGDIR": ".config/matplotlib", "XDG_CACHE_HOME": ".cache"}


def below(folder: Path, onerror: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """Every file below a folder, through links too, once; of a link to a folder above, the link."""
    root, todo, seen = os.path.realpath(folder), [folder], set()
    for top in todo:  # it grows
        for at, folders, names in os.walk(top, onerror=onerror):
            real = os.path.realpath(at)
            if real in seen or (seen and os.path.commonpath([root, real]) == real):
                folders.clear()
                names = [] if real in seen else [""]
            seen.add(real)
            yield from (Path(at, name) for name in names)
            todo += [Path(at, name) for name in sorted(folders) if os.path.islink(f"{at}/{name}")]


def find_homes() -> None:
    """Where HOME cannot be written, let this command's programs write in a temporary folder."""
    if not os.environ.get("HOME"):
        os.environ.pop("HOME", None)  # empty, it would be the working directory
    try:
        tempfile.TemporaryFile(dir=os.path.expanduser("~")).close()
    except OSError:
        unset = [name for name in HOMES if not os.environ.get(name)]  # none, below `make book`
        spare = tempfile.mkdtemp(prefix="tdlib-home-") if unset else ""
        os.environ |= {name: f"{spare}/{HOMES[name]}" for name in unset}


def commit() -> tuple[str | None, bool | None]:
    """The commit, and whether anything differs from it; None where there is no git."""
    # without its lock, which would stay if this process were killed, and stop the user's own git
    git = ["git", "--no-optional-locks", "-C", parameters.ROOT, "status", "--porcelain=v2"]
    try:
        said = subprocess.check_output([*git, "--branch"], stderr=subprocess.DEVNULL, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None, None
    head = said.split()[2]  # "# branch.oid 1234567…", then the name of the branch, then changes
    return head[:7], any(not line.startswith("#") for line in said.splitlines())


def versions() -> dict[str, str]:
    packages = ("torch", "numpy", "sentencepiece", "pandas", "matplotlib")
    loaded = {p: sys.modules[p].__version__ for p in packages if p in sys.modules}
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():  # what decides which of its kernels attention takes
        on = ["cudnn", "flash", "mem_efficient", "math"]
        on = [k for k in on if getattr(torch.backends.cuda, f"{k}_sdp_enabled")()]
        on += [FLASH_FIRST] if os.environ.get(FLASH_FIRST) == "1" else []
        loaded["attention"] = f"{' '.join(on)}, cuDNN {torch.backends.cudnn.version()}"
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
