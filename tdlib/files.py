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
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

MARK = ".made.json"  # in a folder: name → stamp of what the book wrote there
MANIFEST = "manifest.json"  # says the same of what is published
AWAY = "move it away, or give another place (OUT=)"


@contextlib.contextmanager
def replacing(path: Path, lasting: bool = True) -> Iterator[Path]:
    """Gives a name beside `path`; what is made there is then renamed to `path`, or, after a
    failure, removed. OSError says where there was no room, FileExistsError what is another's.
    `lasting`: a power cut undoes nothing."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.begun")
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
    except BaseException as error:
        remove(beside)  # what it took counts as free
        if line := _no_room(path, error):
            raise OSError(line) from None
        raise


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """The same for a folder. What the book wrote into an old one goes, what others did stays."""
    _finish(folder)
    theirs(folder)
    with replacing(folder) as beside:
        beside.mkdir()
        yield beside


def write_whole(path: Path, content: str | bytes, lasting: bool = True) -> None:
    with replacing(path, lasting) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


def record(path: Path, *keys: str, kind: type = dict):
    """A record's JSON; None without a file. ValueError: broken, as after a power cut, or one of
    `keys` is not in it."""
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
    with contextlib.suppress(ValueError):
        return record(path, *keys, kind=kind)


@contextlib.contextmanager
def refused(what: str, remedy: str, *errors: type[Exception]) -> Iterator[None]:
    """Any of these errors becomes a ValueError of one line: what a file is not, why, the remedy."""
    try:
        yield
    except errors as error:
        why = repr(error) if isinstance(error, KeyError) else str(error)
        why = getattr(error, "strerror", None) or why
        raise ValueError(f"{what} ({why:.200}): {remedy}") from None


def mark_of(folder: Path) -> dict[str, str] | None:
    """What the book wrote into a folder: name → stamp. {} where the mark is broken, as after a
    power cut; None where there is none, so that the folder is another's."""
    for path in (folder / MARK, folder / MANIFEST):
        if path.is_file():
            try:
                stamps = dict(json.loads(path.read_text("utf8"))["files"])
                return stamps if path.name == MARK else stamps | {MANIFEST: next(_stamps(path))}
            except (ValueError, KeyError, TypeError):
                return {}
    return None


def mark(folder: Path, *names: str) -> None:
    """Say in a folder that the book wrote these files too, or, of a new one, all that are there."""
    stamps = (mark_of(folder) or {}) if names else {}
    stamps |= {name: next(_stamps(folder / name)) for name in sorted(names or _names(folder))}
    write = write_whole if names else Path.write_text
    write(folder / MARK, json.dumps({"files": stamps}, indent=0))


def theirs(folder: Path, new: Collection[str] = ()) -> set[str]:
    """The files in a folder that the book did not write, or that were changed since.
    FileExistsError: the folder is not the book's, or one of them has the name of a `new` file."""
    stamps = {} if free(folder) else mark_of(folder)
    if stamps is None:
        raise FileExistsError(f"{folder} is there and was not made by the book: {AWAY}")
    if folder.is_symlink():
        return set()  # the link goes, what it points at stays
    names = _names(folder)
    ours = {n for n in names & stamps.keys() if stamps[n] in _stamps(folder / n)}
    others = names - (ours if stamps else {*new})
    if both := ", ".join(sorted(others & {*new})):
        fault = f"{both} in {folder} was not made by the book, or changed since"
        raise FileExistsError(f"{fault}: {AWAY}")
    return others


def own(path: Path) -> None:
    """FileExistsError: the file at `path` is not the book's, or was changed since."""
    known = (mark_of(path.parent) or {}).get(path.name)
    if os.path.lexists(path) and (path.is_dir() or known not in _stamps(path)):
        raise FileExistsError(f"{path} is there and was not made by the book: {AWAY}")


def free(path: Path) -> bool:
    """Whether nothing is there, or an empty folder."""
    folder = path.is_dir() and not path.is_symlink()
    return not os.path.lexists(path) or (folder and not any(path.iterdir()))


def _stamps(path: Path) -> Iterator[str]:
    """How a file is known again: the hash of all of it; of a large one, first, its size and the
    hash of three parts; of a link its target alone."""
    if path.is_symlink():
        yield f"-> {os.readlink(path)}"
        return
    size, part, digest = path.stat().st_size, 2**19, hashlib.sha256()
    with path.open("rb") as file:
        if size > 2 * part:
            for start in (0, (size - part) // 2, size - part):
                file.seek(start)
                digest.update(file.read(part))
            yield f"{size}:{digest.hexdigest()}"
            file.seek(0)
        yield hashlib.file_digest(file, "sha256").hexdigest()


def _names(folder: Path) -> set[str]:
    """All files and links below, but for the book's own mark."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {str(path.relative_to(folder)) for path in paths} - {MARK}


def _put(beside: Path, folder: Path) -> None:
    """A new folder takes its place."""
    if not (beside / MANIFEST).is_file():
        mark(beside)
    theirs(folder, _names(beside))
    if os.path.lexists(folder):
        os.rename(folder, folder.with_name(f".{folder.name}.{os.getpid()}.old"))
    try:
        os.replace(beside, folder)
    finally:
        _finish(folder)


def _finish(folder: Path) -> None:
    """Ends what `_put` began: the old folder comes back where there is no new one; else what others
    put into it moves over, and it goes."""
    for old in folder.parent.glob(".*.old"):
        if not re.fullmatch(rf"\.{re.escape(folder.name)}(\.\d+)?\.old", old.name):
            continue
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
    for part in [path, *path.rglob("*")]:
        if part.is_file() and not part.is_symlink():
            with open(part, "rb") as file:
                os.fsync(file.fileno())


def _no_room(path: Path, error: BaseException) -> str:
    """One line for a full disk, or a limit on files; "" for any other error."""
    number = re.search(r"os error (\d+)", str(error))  # safetensors tells it in words alone
    number = int(number[1]) if number else getattr(error, "errno", None)
    if number not in (errno.EFBIG, errno.ENOSPC, errno.EDQUOT):
        return ""
    remedy = "make room, or give a run folder on another disk (out, OUT=)"
    return f"no room for {path} ({os.strerror(number)}): {remedy}"


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
