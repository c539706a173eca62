"""This machine's disk: files below a folder, broken records, and where HOME cannot be written."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tdlib import files

# where programs write in a HOME, by the variable that leads them elsewhere
HOMES = {
    "JUPYTER_RUNTIME_DIR": ".local/share/jupyter/runtime",
    "IPYTHONDIR": ".ipython",
    "MPLCONFIGDIR": ".config/matplotlib",
    "XDG_CACHE_HOME": ".cache",
}


def set_aside(path: Path, kind: type = dict) -> None:
    """A broken record is told of and kept beside, as .broken, so that a new one can begin."""
    if path.exists() and files.whole(path, kind=kind) is None:
        os.replace(path, beside := path.with_name(f"{path.name}.broken"))
        print(f"{path} is broken: kept as {beside.name}, a new one is begun", flush=True)


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


def find_homes() -> None:
    """Lead programs, where HOME cannot be written, to a folder of this user in the system's
    temporary one. OSError: that one is somebody else's."""
    if not os.environ.get("HOME"):
        os.environ.pop("HOME", None)  # empty, it would be the working directory
    home = os.path.expanduser("~")
    try:
        tempfile.TemporaryFile(dir=home).close()
    except OSError:
        spare = Path(tempfile.gettempdir()) / f"tdlib-home-{os.getuid()}"
        spare.mkdir(mode=0o700, exist_ok=True)
        if spare.is_symlink() or spare.stat().st_uid != os.getuid():
            line = f"HOME={home} cannot be written, and {spare} is another user's"
            raise OSError(f"{line}: give HOME= a folder of yours") from None
        for name, usual in HOMES.items():
            os.environ[name] = os.environ.get(name) or str(spare / usual)
