"""Files and folders appear whole or not at all, and take no one else's place.

What is new is made beside its place, then renamed. A folder holds a mark of what was written into
it: that alone is ever replaced. Where there is no room a line says so. Imports no torch.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

MARK = ".made.json"  # in a folder: the names and stamps of what the book wrote there
MANIFEST = "manifest.json"  # says the same of what is published
# where the programs below write in a HOME, by the variable that leads them elsewhere
HOMES = {
    "JUPYTER_RUNTIME_DIR": ".local/share/jupyter/runtime",
    "IPYTHONDIR": ".ipython",
    "MPLCONFIGDIR": ".config/matplotlib",
    "XDG_CACHE_HOME": ".cache",
}
# what `replacing` calls a file or folder before it is whole: by its process, and no other's name
BEGUN = re.compile(r"\..+\.(\d+)\.begun|\.key-(\d+)\.new")
AWAY = "move it away, or give another place (OUT=)"
OTHER = "give a run folder on another disk (out, OUT=)"


@contextlib.contextmanager
def replacing(path: Path, beside: Path | None = None, lasting: bool = True) -> Iterator[Path]:
    """Inside, a file or folder is made at `beside`, whose name is given; after it, it is at `path`.
    After a failure what was at `path` is as it was and nothing is left beside; OSError says where
    there was no room. `lasting`: so it is after a power cut too. FileExistsError: a folder that
    another made stands at `path`, or files of the same names in one that was made here."""
    beside = beside or temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        if lasting:
            _keep(beside)
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
    """A folder appears whole or not at all: filled beside, then renamed; what was the book's in the
    old one goes last. What others put into it moves over; FileExistsError as in `replacing`."""
    _finish(folder)
    theirs(folder)
    with replacing(folder) as beside:
        beside.mkdir()
        yield beside


def record(path: Path, *keys: str, kind: type = dict):
    """A record's JSON; None where there is none. ValueError names one that a failure of power or
    disk emptied or cut, or that lacks one of `keys`."""
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


def write_whole(path: Path, content: str | bytes, lasting: bool = True) -> None:
    """A file, whole or not at all; where it is `lasting`, a power cut too leaves it so."""
    with replacing(path, lasting=lasting) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


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


def temporary(path: Path) -> Path:
    """Where what is new is made: beside, under a name that no one else gives."""
    return path.with_name(f".{path.name}.{os.getpid()}.begun")


def mark_of(folder: Path) -> dict[str, str] | None:
    """What the book wrote into a folder: name → stamp; {} where a mark does not say (as after a
    power cut); None where there is no mark, and so the folder is another's."""
    for path in (folder / MARK, folder / MANIFEST):
        if path.is_file():
            try:
                found = dict(json.loads(path.read_text("utf8"))["files"])
                return found | ({MANIFEST: ""} if path.name == MANIFEST else {})
            except (ValueError, KeyError, TypeError):
                return {}
    return None


def mark(folder: Path, names: Iterable[str] | None = None) -> None:
    """Say in a folder which files the book wrote: `names`, or all that are there."""
    names = sorted(_names(folder) if names is None else names)
    stamps = {name: stamp(folder / name) for name in names}
    (folder / MARK).write_text(json.dumps({"files": stamps}, indent=0), encoding="utf8")


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
    own = {name for name in stamps if not stamps[name] or _same(folder / name, stamps[name])}
    others = _names(folder) - (own if stamps else {*new})
    if both := ", ".join(sorted(others & {*new})):
        what = f"{both} in {folder} was not made by the book, or changed since"
        raise FileExistsError(f"{what}: {AWAY}")
    return others


def free(path: Path) -> bool:
    """Whether nothing is there, or an empty folder."""
    folder = path.is_dir() and not path.is_symlink()
    return not os.path.lexists(path) or (folder and not any(path.iterdir()))


def stamp(path: Path) -> str:
    """By which a file is known again: its hash, of a large one its size and three parts of it."""
    if path.is_symlink():
        return f"-> {os.readlink(path)}"
    size, part = path.stat().st_size, 2**19
    if size <= 2 * part:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for at in (0, (size - part) // 2, size - part):
            file.seek(at)
            digest.update(file.read(part))
    return f"{size}:{digest.hexdigest()}"


def own(path: Path, other: bytes | None = None) -> None:
    """FileExistsError where a file stands at `path` that the book did not write there, or one that
    was changed since; `other`: what it may hold besides."""
    if os.path.lexists(path):
        mine = (mark_of(path.parent) or {}).get(path.name, "")
        same = other is not None and path.is_file() and path.read_bytes() == other
        if not same and not (mine and _same(path, mine)):
            raise FileExistsError(f"{path} is there and was not made by the book: {AWAY}")


def sign(*paths: Path) -> None:
    """Say in a folder that the book wrote these files of it."""
    folder = paths[0].parent
    stamps = {n: s for n, s in (mark_of(folder) or {}).items() if n != MANIFEST}
    stamps |= {path.name: stamp(path) for path in paths}
    write_whole(folder / MARK, json.dumps({"files": stamps}, indent=0))


def _same(path: Path, known: str) -> bool:
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
    """A folder takes its place, and what others put into the old one moves over."""
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
    """What a process began that was killed: the old folder is back where no new one is; of one that
    was replaced goes what was the book's, and the rest moves over."""
    rule = re.compile(rf"\.{re.escape(folder.name)}(\.\d+)?\.old")
    for old in [p for p in folder.parent.glob(".*.old") if rule.fullmatch(p.name)]:
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
                line = f"{place} cannot be written, and {spare} is another user's"
                raise OSError(f"{line}: give {name}= a folder of yours, or HOME=") from None
            os.environ[name] = str(spare / usual)


def clear(folder: Path) -> None:
    """Remove what processes of this machine had begun there when they were killed."""
    for path in folder.glob(".*"):
        if not (name := BEGUN.fullmatch(path.name)):
            continue
        with contextlib.suppress(OSError):
            try:
                os.kill(int(name[1] or name[2]), 0)
            except (ProcessLookupError, OverflowError):  # on a cluster it may be another machine's
                if "SLURM_JOB_ID" not in os.environ or time.time() - path.stat().st_mtime > 600:
                    _remove(path)


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
        room = shutil.disk_usage(next(p for p in path.parents if p.exists())).free / 2**20
        need = f"{room:,.1f} MiB are free, more is needed"
        return f"no room for {path}: {need}; make room, or {OTHER}"
    return ""


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
