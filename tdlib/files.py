"""Files and folders appear whole or not at all, and take no one else's place.

What is new is made beside its place, then renamed. A folder holds a mark of what the book wrote
into it: that alone is ever replaced. Imports no torch.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import resource
import shutil
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

MARK = ".made.json"  # in a folder: name → stamp of what the book wrote there
MANIFEST = "manifest.json"  # says the same of what is published
# names of what is not whole yet, each with the number of its process
BEGUN = re.compile(r"\..+\.(\d+)\.begun|\.key-(\d+)\.new")
AWAY = "move it away, or give another place (OUT=)"
OTHER = "give a run folder on another disk (out, OUT=)"


@contextlib.contextmanager
def replacing(path: Path, beside: Path | None = None, lasting: bool = True) -> Iterator[Path]:
    """Makes a file or folder at `beside`, whose name is given, and then renames it to `path`.
    After a failure `path` is as it was and nothing is left beside; OSError says where there was no
    room. `lasting`: a power cut undoes nothing. FileExistsError: something of others is there."""
    beside = beside or temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        if lasting:
            _sync(beside)
        if beside.is_dir():
            _put(beside, path)
        elif beside.exists() and path.is_dir():
            raise FileExistsError(f"{path} is a folder, a file is to stand there: {AWAY}")
        else:
            os.replace(beside, path)
    except Exception as error:
        _remove(beside)  # what it took counts as free
        if line := _no_room(path, error):
            raise OSError(line) from None
        raise
    finally:
        _remove(beside)


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder, whole or not at all. It replaces what the book wrote in an old one; what others put
    there moves over. FileExistsError as in `replacing`."""
    _finish(folder)
    theirs(folder)
    with replacing(folder) as beside:
        beside.mkdir()
        yield beside


def write_whole(path: Path, content: str | bytes, lasting: bool = True) -> None:
    with replacing(path, lasting=lasting) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


def temporary(path: Path) -> Path:
    """Where what is new is made: beside, under a name that no one else gives."""
    return path.with_name(f".{path.name}.{os.getpid()}.begun")


def record(path: Path, *keys: str, kind: type = dict):
    """A record's JSON; None without a file. ValueError: it was emptied or cut by a failure of power
    or disk, or lacks one of `keys`."""
    try:
        content = json.loads(path.read_bytes())
        if isinstance(content, kind) and (kind is not dict or content.keys() >= {*keys}):
            return content
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError):
        pass
    raise ValueError(f"{path} is broken, emptied or cut: `make book` makes its run again")


def whole(path: Path, *keys: str, kind: type = dict):
    """`record`, and None for a broken one: the caller tells of it, or makes it again."""
    try:
        return record(path, *keys, kind=kind)
    except ValueError:
        return None


def mark_of(folder: Path) -> dict[str, str] | None:
    """What the book wrote into a folder: name → stamp. {} where the mark is broken, as after a
    power cut; None where there is none, so that the folder is another's."""
    for path in (folder / MARK, folder / MANIFEST):
        if path.is_file():
            try:
                stamps = dict(json.loads(path.read_text("utf8"))["files"])
                return stamps | ({MANIFEST: ""} if path.name == MANIFEST else {})
            except (ValueError, KeyError, TypeError):
                return {}
    return None


def mark(folder: Path, names: Iterable[str] | None = None) -> None:
    """Say in a folder which files the book wrote: `names`, or all that are there."""
    names = sorted(_names(folder) if names is None else names)
    stamps = {name: stamp(folder / name) for name in names}
    (folder / MARK).write_text(json.dumps({"files": stamps}, indent=0), encoding="utf8")


def sign(*paths: Path) -> None:
    """Add files of one folder to its mark."""
    folder = paths[0].parent
    stamps = {name: s for name, s in (mark_of(folder) or {}).items() if name != MANIFEST}
    stamps |= {path.name: stamp(path) for path in paths}
    write_whole(folder / MARK, json.dumps({"files": stamps}, indent=0))


def theirs(folder: Path, new: Collection[str] = ()) -> set[str]:
    """The files in a folder that the book did not write, or that were changed since.
    FileExistsError: the folder is not the book's, or one of them has the name of a `new` file."""
    if free(folder):
        return set()
    stamps = mark_of(folder) if folder.is_dir() else None
    if stamps is None:
        raise FileExistsError(f"{folder} is there and was not made by the book: {AWAY}")
    if folder.is_symlink():
        return set()  # the link goes, what it points at stays
    ours = {name for name in stamps if not stamps[name] or _unchanged(folder / name, stamps[name])}
    others = _names(folder) - (ours if stamps else {*new})
    if both := ", ".join(sorted(others & {*new})):
        fault = f"{both} in {folder} was not made by the book, or changed since"
        raise FileExistsError(f"{fault}: {AWAY}")
    return others


def own(path: Path, other: bytes | None = None) -> None:
    """FileExistsError: the file at `path` is not the book's, or was changed since, and does not
    hold `other` either."""
    if os.path.lexists(path):
        known = (mark_of(path.parent) or {}).get(path.name, "")
        same = other is not None and path.is_file() and path.read_bytes() == other
        if not same and not (known and _unchanged(path, known)):
            raise FileExistsError(f"{path} is there and was not made by the book: {AWAY}")


def free(path: Path) -> bool:
    """Whether nothing is there, or an empty folder."""
    folder = path.is_dir() and not path.is_symlink()
    return not os.path.lexists(path) or (folder and not any(path.iterdir()))


def stamp(path: Path) -> str:
    """The hash of a file; of a large one its size and the hash of three parts of it."""
    if path.is_symlink():
        return f"-> {os.readlink(path)}"
    size, part = path.stat().st_size, 2**19
    if size <= 2 * part:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for start in (0, (size - part) // 2, size - part):
            file.seek(start)
            digest.update(file.read(part))
    return f"{size}:{digest.hexdigest()}"


def in_order(content: bytes) -> bytes:
    """A safetensors file with its header sorted: the package writes metadata in any order, and the
    same weights must have the same hash."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":"))
    return content[:8] + header.encode().ljust(end - 8) + content[end:]


def clear(folder: Path) -> None:
    """Remove what killed processes of this machine left unfinished there."""
    for path in folder.glob(".*"):
        if not (name := BEGUN.fullmatch(path.name)):
            continue
        with contextlib.suppress(OSError):
            try:
                os.kill(int(name[1] or name[2]), 0)
            except (ProcessLookupError, OverflowError):  # on a cluster it may be another machine's
                if "SLURM_JOB_ID" not in os.environ or time.time() - path.stat().st_mtime > 600:
                    _remove(path)


def _unchanged(path: Path, known: str) -> bool:
    if not os.path.lexists(path) or (path.is_dir() and not path.is_symlink()):
        return False
    if not path.is_symlink() and ":" not in known and not known.startswith("->"):
        with path.open("rb") as file:  # of a manifest: the hash of all of it
            return hashlib.file_digest(file, "sha256").hexdigest() == known
    return stamp(path) == known


def _names(folder: Path) -> set[str]:
    """All files and links below, but for the book's own mark."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {str(path.relative_to(folder)) for path in paths} - {MARK}


def _put(beside: Path, folder: Path) -> None:
    """A new folder takes its place, and what others put into the old one moves over."""
    if not (beside / MANIFEST).is_file():
        mark(beside)
    theirs(folder, _names(beside))
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if os.path.lexists(folder):
        os.rename(folder, old)
    try:
        os.replace(beside, folder)
    finally:
        _finish(folder)


def _finish(folder: Path) -> None:
    """Ends what `_put` began: the old folder comes back where there is no new one; else what others
    put into it moves over, and it goes."""
    rule = re.compile(rf"\.{re.escape(folder.name)}(\.\d+)?\.old")
    for old in [path for path in folder.parent.glob(".*.old") if rule.fullmatch(path.name)]:
        if mark_of(old) is None:  # another's, or older than marks: perhaps the only copy
            continue
        if not os.path.lexists(folder):
            os.rename(old, folder)
        elif old.is_symlink():
            old.unlink()
        else:
            for name in theirs(old, _names(folder)):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.rename(old / name, folder / name)
            shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Onto the disk, or a power cut may leave a new name with nothing in it."""
    for part in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if part.is_file() and not part.is_symlink():
            with open(part, "rb") as file:
                os.fsync(file.fileno())


def _no_room(path: Path, error: Exception) -> str:
    """One line for a full disk, or a limit on files; "" for any other error."""
    number = re.search(r"os error (\d+)", str(error))  # safetensors tells it in words alone
    number = int(number[1]) if number else getattr(error, "errno", None)
    if number == errno.EFBIG:
        most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        limit = f"{most:,} bytes (ulimit -f)" if most >= 0 else "its disk allows"
        return f"no room for {path}: no file may be larger than {limit}; raise it, or {OTHER}"
    if number in (errno.ENOSPC, errno.EDQUOT):
        room = shutil.disk_usage(next(p for p in path.parents if p.exists())).free / 2**20
        need = f"{room:,.1f} MiB are free, more is needed"
        return f"no room for {path}: {need}; make room, or {OTHER}"
    return ""


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
