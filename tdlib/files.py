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
from collections.abc import Iterator
from pathlib import Path

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


def record(path: Path, *keys: str, kind: type = dict):
    """A record's JSON; None where there is none. ValueError names one that a failure of power or
    disk emptied or cut, or that lacks one of `keys`."""
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found, kind) and (kind is not dict or found.keys() >= {*keys}):
            return found
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError):
        pass
    raise ValueError(f"{path} is broken, emptied or cut: `make book` makes its run again")


def whole(path: Path, *keys: str, kind: type = dict):
    """The same, and None for one that is broken: who asks tells of it, or makes it again."""
    try:
        return record(path, *keys, kind=kind)
    except ValueError:
        return None


def set_aside(path: Path, kind: type = dict) -> None:
    """A broken record is told of and kept beside, as .broken, so that a new one can begin."""
    if path.exists() and whole(path, kind=kind) is None:
        os.replace(path, beside := path.with_name(f"{path.name}.broken"))
        print(f"{path} is broken: kept as {beside.name}, a new one is begun", flush=True)


def write_whole(path: Path, content: bytes) -> None:
    """A file appears whole or not at all, and for good."""
    beside = path.with_name(f".{path.name}.new")
    with replacing(path, beside):
        beside.write_bytes(content)


def in_order(content: bytes) -> bytes:
    """A safetensors file with its header sorted: the package writes two words about the whole in
    either order, and what is the same must have the same hash."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":"))
    return content[:8] + header.encode().ljust(end - 8) + content[end:]


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
