"""A repository in small: notebooks that read and write what the book's do, without any model."""

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import psutil
from nbformat import v4
from yaml import safe_load

from tdbook.runs import heartbeat, notebooks, running

REPOSITORY = Path(__file__).parents[1]
DEAD = 2**22 + 1  # no process of Linux has this number
NOTEBOOKS = safe_load(Path(__file__).with_name("small_notebooks.yaml").read_text("utf8"))
COMMON, OWN, BODY, END = (NOTEBOOKS[part] for part in ("common", "own", "body", "end"))


def yaml(root: Path, stem: str, **given) -> Path:
    return write(root / f"params/tiny/{stem}.yaml", {"run": stem} | given)


def write(path: Path, content: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in content.items()))
    return path


def called(root: Path, out: str = "outputs/tiny") -> list[str]:
    path = root / out / "calls"
    return sorted(path.read_text().split()) if path.exists() else []


def repository(root: Path) -> None:
    """Its notebooks, 00's YAML, and the Snakefile of this one."""
    for notebook, own in OWN.items():
        tagged = v4.new_code_cell(COMMON.format(notebook=notebook) + own)
        tagged.metadata["tags"] = ["parameters"]
        begin = f'from tdbook.runs import running\nthis = running.start("{notebook}")'
        cells = [tagged, *map(v4.new_code_cell, (begin, BODY[notebook], END))]
        (root / "notebooks").mkdir(exist_ok=True)
        written = v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})
        nbformat.write(written, root / f"notebooks/{notebook}.ipynb")
    yaml(root, "00_teacher")
    for name in ("Snakefile", "profiles"):
        os.symlink(REPOSITORY / name, root / name)


def make(notebook: str, given: dict, text: str = "w", once: Callable = list) -> bool:
    """Make a run in this process, as its notebook would; whether it was not done already."""
    this = running.start(notebook, given)
    this.once("once", once)
    finish(this, text)
    return not this.current


def finish(this: running.Run, text: str = "w") -> None:
    """Write all that a run must write, and its records."""
    for path in notebooks.writes(this.run, this.parameters, []) if not this.current else ():
        this.path(*(path, "w")[: 1 + ("." not in path)]).write_text(text)
    this.finding(f"{this.run} is done.")
    this.finish()


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def alive(pid: int) -> bool:
    return heartbeat.started(pid) is not None


def processes_of(root: Path) -> list[str]:
    """Command lines of living processes that work in the tests' repository."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # gone meanwhile, or another user's
            if str(root) in str(process.environ()) and alive(process.pid):
                found.append(" ".join(process.cmdline()))
    return [line for line in found if "pytest" not in line and "execnet" not in line]
