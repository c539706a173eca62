"""Notebooks and parameter files: thin, without outputs, and true to what they declare."""

import ast
import itertools
import re
from pathlib import Path

import nbformat
import pytest
import yaml

from tdbook.runs import notebooks, parameters
from tdbook.workflow import graph

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
YAMLS = sorted((ROOT / "params").glob("*/*.yaml"))


def cells(path: Path) -> list[nbformat.NotebookNode]:
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_thin_with_prose_before_every_code_cell_and_no_traces_of_a_run(path):
    notebook = nbformat.read(path, as_version=4)
    assert "papermill" not in notebook.metadata
    for before, cell in itertools.pairwise(notebook.cells):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown"
            assert cell.outputs == [] and cell.execution_count is None
    for cell in cells(path):
        if "parameters" not in cell.metadata.get("tags", []):
            statements = ast.walk(ast.parse(cell.source))
            assert not any(isinstance(s, ast.FunctionDef | ast.ClassDef) for s in statements)
            assert len(cell.source.splitlines()) <= 15, cell.source


METHOD = yaml.safe_load(Path(__file__).with_name("method.yaml").read_text("utf8"))


@pytest.mark.parametrize("stem", METHOD)
def test_a_notebook_shows_the_method(stem):
    calls = []
    for cell in cells(ROOT / f"notebooks/{stem}.ipynb"):
        nodes = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call)]
        nodes.sort(key=lambda node: (node.lineno, node.col_offset))
        for node in nodes:
            name = ast.unparse(node.func)
            calls.append(ast.unparse(node.args[1]) if name == "this.once" else name)
    places = [calls.index(name) for name in METHOD[stem].split()]
    assert places == sorted(places)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_parameter_has_a_comment_and_a_rule_and_its_default_passes(path):
    declared = parameters.declared(path.stem)
    (cell,) = (c for c in cells(path) if "parameters" in c.metadata.get("tags", []))
    assert re.findall(r"^(\w+) = .*?  # .", cell.source, re.M) == [*declared]
    assert next(iter(declared)) == "run"
    assert parameters.check(path.stem, {}) == declared


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_yaml_carries_its_own_name_and_profile_and_only_known_parameters(path):
    values, profile = graph.check_yaml(path, {}, paths=False), path.parent.name
    told = [values[name] for name in ("run", "profile", "out")]
    assert told == [path.stem, profile, f"outputs/{profile}"]


@pytest.mark.parametrize("profile", sorted({path.parent.name for path in YAMLS}))
def test_a_profile_makes_one_book_in_which_every_input_has_a_maker(profile):
    runs = {one.run: one for one in graph.book(profile, paths=False)}
    made = {path for one in runs.values() for path in one.writes}
    assert all({*notebooks.reads(run, one.parameters, [])} <= made for run, one in runs.items())
    # the evidence is that of small; smoke tries it; a night has no room for 05
    left = {"small": set(), "smoke": set(), "b200-night": {"05_progressive", "07_evidence"}}
    left = left.get(profile, {"07_evidence"})
    assert {one.notebook for one in runs.values()} == {path.stem for path in NOTEBOOKS} - left


def test_the_default_parameters_are_those_of_the_tiny_profile():
    for path in (ROOT / "params/tiny").glob("*.yaml"):
        if path.stem in {"00_teacher", "01_distill-50m", "02_hard_set", "03_lora-hard"}:
            values = graph.check_yaml(path, {}, paths=False)
            assert values == parameters.declared(parameters.notebook_of(path.stem)), path


def rows() -> list[list[str]]:
    text = (ROOT / "params/b200/README.md").read_text(encoding="utf8")
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("row", rows(), ids=lambda r: f"{r[3]}-{r[2]}")
def test_the_b200_table_says_what_its_yaml_says(row):
    _, _, parameter, run, ours, same, why = row
    values = graph.check_yaml(ROOT / "params/b200" / f"{run}.yaml", {}, paths=False)
    assert str(values[parameter]) == ours
    assert same in ("same", "changed") and (why or same == "same")
