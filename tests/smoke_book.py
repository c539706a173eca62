"""The smoke book, made in one process: each notebook's cells one after the other, as a kernel under
papermill runs them. `python -m tests.smoke_book FOLDER` makes it and a sweep. And the real command.
"""

import atexit
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import nbformat
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from nbformat import v4
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from traitlets.config import Config

from tdbook.runs import notebooks, parameters, running, sweeps
from tdbook.workflow import graph, run_pages, scheduler

ROOT = Path(__file__).parents[1]


def new_shell() -> InteractiveShell:
    """An IPython without a memory of what ran before."""
    InteractiveShell.clear_instance()
    quiet = Config({"HistoryManager": {"enabled": False}})  # keeps In, writes no database
    shell = InteractiveShell.instance(colors="nocolor", config=quiet)
    atexit.unregister(shell.atexit_operations)  # a third of a second for each
    return shell


def execute(out: Path, run: str, given: dict) -> None:
    """Run a notebook with parameters to its end; leaves <run>.ipynb and its page."""
    read = load_notebook_node(str(ROOT / f"notebooks/{parameters.notebook_of(run)}.ipynb"))
    notebook = parameterize_notebook(read, given, kernel_name="python3", language="python")
    shell, results, running._latest = new_shell(), [], None
    shell.displayhook.write_output_prompt = lambda: None
    shell.displayhook.write_format_data = lambda *shown: results.append(shown)
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        results.clear()
        with capture_output() as shown:
            done = shell.run_cell(cell.source, store_history=True)
        done.raise_error()
        if shown.stdout:
            cell.outputs.append(v4.new_output("stream", text=shown.stdout))
        for data, metadata in [*((o.data, o.metadata) for o in shown.outputs), *results]:
            cell.outputs.append(v4.new_output("display_data", data, metadata=metadata or {}))
        cell.execution_count = done.execution_count
    InteractiveShell.clear_instance()
    nbformat.write(notebook, out / f"{run}.ipynb")
    run_pages.page(out, run)


def make(folder: Path) -> None:
    """Every run of the smoke book and of a sweep, one after the other."""
    words = {"PROFILE": "smoke", "OUT": str(folder), "NAME": "share"}
    runs = scheduler.prepare(graph.wanted("sweep", words).config)
    needs = {one.name: {*one.needs} for one in runs.values()}
    needs["04_merge_eval"] |= {name for name in runs if "/" in name}  # its YAML names the sweep
    for one in (runs[name] for name in TopologicalSorter(needs).static_order()):
        if one.sweep:
            sweeps.link(one.out, notebooks.reads(one.run, one.parameters, []))
        execute(one.out, one.run, one.parameters)
    for place in (folder / "sweeps/share", folder):
        run_pages.refresh(place)


def command(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """`make book PROFILE=smoke`."""
    words = [sys.executable, "-m", "tdbook", "book", "PROFILE=smoke", f"OUT={folder}", *words]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=400)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
