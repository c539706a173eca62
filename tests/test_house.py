"""The house: budgets of lines, the order of imports, no circle, and a tdlib that needs little.

A budget counts what ruff leaves, docstrings and blank lines included. It only goes down.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
from importlinter import cli

from tdbook.runs import notebooks, parameters

ROOT = Path(__file__).parents[1]
TDLIB, BOTH, TESTS = 2_736, 13_000, 12_000  # lines
FILE, FUNCTION, SKIPS, QUOTED = 400, 45, 60, 6
REGISTRY = "tdbook/runs/notebooks.py"  # where a notebook's number may be spelled


def sources(*places: str) -> dict[str, str]:
    """The Python files of some folders: {path: text}."""
    paths = [path for place in places for path in sorted((ROOT / place).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): path.read_text("utf8") for path in paths}


def lines(*places: str) -> int:
    return sum(len(text.splitlines()) for text in sources(*places).values())


def test_the_house_is_within_its_budgets():
    assert lines("tdlib") <= TDLIB
    assert lines("tdlib", "tdbook") <= BOTH
    assert lines("tests") <= TESTS
    skips = sum(text.count("# fmt: skip") for text in sources("tdlib", "tdbook").values())
    assert skips <= SKIPS
    assert {str(Path(path).parent) for path in sources("tdlib")} == {"tdlib"}


def test_no_file_and_no_function_is_long():
    for path, text in sources("tdlib", "tdbook").items():
        assert len(text.splitlines()) <= FILE, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < FUNCTION, f"{path}:{node.name}"


def test_a_notebooks_number_is_spelled_in_the_registry_alone():
    for path, text in sources("tdlib", "tdbook").items():
        if path != REGISTRY:
            assert not re.findall(r"startswith\([\"']0\d|[=!]= [\"']0\d_\w+[\"']", text), path


def test_a_parameter_is_quoted_in_few_modules():
    """Those of two words; one alone, and vocab_size in meta.json, mean other things too."""
    declared = {name for stem in notebooks.BOOK for name in parameters.declared(stem)}
    declared.remove("vocab_size")
    quoted = Counter()
    for text in sources("tdlib", "tdbook").values():
        quoted.update(set(re.findall(r"[\"'](\w+_\w+)[\"']", text)) & declared)
    assert {name for name, count in quoted.items() if count > QUOTED} == set()


def test_imports_run_one_way(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert cli.lint_imports() == 0


def test_there_is_no_import_circle():
    graph = grimp.build_graph("tdlib", "tdbook", cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    TopologicalSorter(imports).prepare()  # CycleError


def test_tdlib_needs_torch_numpy_safetensors_and_no_more():
    graph = grimp.build_graph("tdlib", include_external_packages=True, cache_dir=None)
    others = {name for name in graph.modules if name.partition(".")[0] != "tdlib"}
    assert others - sys.stdlib_module_names == {"torch", "numpy", "safetensors"}


def test_make_book_installs_no_package_of_the_tests():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]
    lists = project["dependencies"], project["optional-dependencies"]["test"]
    book, tests = ({re.split(r"[^\w-]", name)[0] for name in names} for names in lists)
    assert not book & tests - {"tdlib"}


def test_ruff_finds_nothing():
    places = ["tdlib", "tdbook", "tests", "bench", "notebooks"]
    for what in (["check"], ["format", "--check"]):
        subprocess.run([sys.executable, "-m", "ruff", *what, "-q", *places], cwd=ROOT, check=True)
