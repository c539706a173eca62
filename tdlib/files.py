"""Files and folders appear whole or not at all; where there is no room for one, a line says so.

What is new is made beside its place, then renamed. Imports no torch.
"""

import contextlib
import errno
import json
import os
import re
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# where the programs below write in a HOME, by the variable that leads them elsewhere
HOMES = {
    "JUPYTER_RUNTIME_DIR": ".local/share/jupyter/runtime",
    "IPYTHONDIR": ".ipython",
    "MPLCONFIGDIR": ".config/matplotlib",
    "XDG_CACHE_HOME": ".cache",
}
# what runs.write and a cache's key are called before they are whole, by the number of a process
BEGUN = re.compile(r"\.key-(\d+)\.new|\..+\.(?:jsonl?|ipynb|html|md|csv|svg|png)\.(\d+)")
OTHER = "give a run folder on another disk (out, OUT=)"


@contextlib.contextmanager
def replacing(path: Path, beside: Path, lasting: bool = True) -> Iterator[None]:
    """Inside, a file or folder is made at `beside`; after it, it is at `path`. After a failure what
    was at `path` is as it was and nothing is left beside; OSError says where there was no room.
    `lasting`: so it is after a power cut too."""
    old = path.with_name(f".{path.name}.old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
        if lasting:
            _keep(beside)
        if path.is_dir():  # nothing is renamed over a folder: the old one goes last
            _remove(old)
            os.rename(path, old)
        os.replace(beside, path)
        _remove(old)
    except Exception as error:
        _remove(beside)  # what it took counts as free
        if said := _no_room(path, error):
            raise OSError(said) from None
        raise
    finally:
        if old.exists() and not path.exists():
            os.rename(old, path)
        _remove(beside)


def write_whole(path: Path, content: bytes) -> None:
    """A file appears whole or not at all, and for good."""
    beside = path.with_name(f".{path.name}.new")
    with replacing(path, beside):
        beside.write_bytes(content)


def below(folder: Path, onerror: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """Every file below a folder; those of folders that are links follow, each folder once. A link
    to a folder that holds this one is itself given, unfollowed."""
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


def in_order(content: bytes) -> bytes:
    """A safetensors file with its header sorted: the package writes two words about the whole in
    either order, and what is the same must have the same hash."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":"))
    return content[:8] + header.encode().ljust(end - 8) + content[end:]


def find_homes() -> None:
    """Lead the programs below, where they cannot write in HOME, to a folder of this user in the
    system's temporary one. OSError: that one is somebody else's."""
    if not os.environ.get("HOME"):
        os.environ.pop("HOME", None)  # empty, it would be the working directory
    if not os.path.isabs(home := os.path.expanduser("~")):
        os.environ["HOME"] = home = os.devnull  # nothing can be written there
    for name, usual in HOMES.items():
        try:
            place = Path(os.environ.get(name) or os.path.join(home, usual))
            place.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=place).close()
        except OSError:
            spare = Path(tempfile.gettempdir()) / f"tdlib-home-{os.getuid()}"
            spare.mkdir(mode=0o700, exist_ok=True)
            if spare.is_symlink() or spare.stat().st_uid != os.getuid():
                said = f"{place} cannot be written, and {spare} is another user's"
                raise OSError(f"{said}: give {name}= a folder of yours, or HOME=") from None
            os.environ[name] = str(spare / usual)


def clear(folder: Path) -> None:
    """Remove the files that processes of this machine had begun there when they were killed."""
    for path in folder.glob(".*"):
        if not (found := BEGUN.fullmatch(path.name)):
            continue
        with contextlib.suppress(OSError):
            try:
                os.kill(int(found[1] or found[2]), 0)
            except (ProcessLookupError, OverflowError):  # on a cluster it may be another machine's
                if "SLURM_JOB_ID" not in os.environ or time.time() - path.stat().st_mtime > 600:
                    path.unlink()


def _keep(path: Path) -> None:
    """Onto the disk, or a power cut may leave a new name with nothing in it."""
    for one in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if one.is_file() and not one.is_symlink():
            with open(one, "rb") as file:
                os.fsync(file.fileno())


def _no_room(path: Path, error: Exception) -> str:
    """One line where an error is that of a full disk, or of a limit; "" for any other."""
    number = re.search(r"os error (\d+)", str(error))  # safetensors tells it in words alone
    number = int(number[1]) if number else getattr(error, "errno", None)
    if number == errno.EFBIG:
        most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        limit = f"{most:,} bytes (ulimit -f)" if most >= 0 else "its disk allows"
        return f"no room for {path}: no file may be larger than {limit}; raise it, or {OTHER}"
    if number in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(next(p for p in path.parents if p.exists())).free / 2**20
        return (
            f"no room for {path}: {free:,.1f} MiB are free, more is needed; make room, or {OTHER}"
        )
    return ""


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
