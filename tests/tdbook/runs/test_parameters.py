"""Parameters: what is wrong with them is said in one line, in time, and nothing false is said."""

import math
import re
import subprocess
import sys

import pytest

from tdbook.runs import parameters
from tdbook.runs.notebooks import BOOK
from tdbook.runs.parameters import ParameterError, check
from tests.helpers import cases

CASES = cases(__file__)


def test_names_come_before_values_before_paths_a_line_each():
    wrong = {"text": "nowhere.txt"}
    for more, says in CASES["first"]:
        wrong |= more
        with pytest.raises(ParameterError, match=says) as error:
            check("00_teacher", wrong)
        assert str(error.value).count("\n") == says.count(r"\n")


@pytest.mark.parametrize("name, given, meant", CASES["kinds"])
def test_a_value_arrives_as_its_kind(name, given, meant):
    notebook, _, name = name.rpartition(".")
    found = check(notebook or "01_distill", {name: given})[name]
    assert found == meant and type(found) is type(meant)


@pytest.mark.parametrize("name, typed, says", CASES["papermill"])
def test_what_papermill_makes_of_a_value_works_or_has_a_remedy_it_can_take(name, typed, says):
    from papermill.cli import _resolve_type

    value = _resolve_type(typed)
    if not says:
        assert str(check("01_distill", {name: value})[name]).lower() in (typed, "1000")
        return
    with pytest.raises(ParameterError, match=says) as error:
        check("01_distill", {name: value})
    if "-r, not -p" in (told := str(error.value)):
        assert check("01_distill", {name: typed})[name] == typed
    else:
        example = re.search(rf"for example {name}: (\S+)$", told)[1].strip('"')
        check("01_distill", {name: _resolve_type(example)})


@pytest.mark.parametrize("line, meant", CASES["sixties"])
def test_a_number_that_yaml_counts_in_eights_or_sixties_is_refused(tmp_path, line, meant):
    (tmp_path / "a.yaml").write_text(line)
    with pytest.raises(ParameterError, match=f"is read as {meant}: write {meant}, or put it in qu"):
        parameters.read(tmp_path / "a.yaml")
    name, _, typed = line.partition(": ")
    for remedy in (str(meant), f'"{typed}"'):
        (tmp_path / "a.yaml").write_text(f"{name}: {remedy}\nlearning_rate: 0.05\nhard_share: 0")
        assert str(parameters.read(tmp_path / "a.yaml")[name]) == remedy.strip('"')


@pytest.mark.parametrize("text, says", CASES["yamls"])
def test_a_yaml_that_cannot_be_meant_is_refused(tmp_path, text, says):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ParameterError, match=says):
        parameters.read(tmp_path / "a.yaml")


def test_a_large_scale_is_allowed_where_it_is_meant():
    assert check("03_lora", {"lora_scale": 32, "allow_large_scale": True})["lora_scale"] == 32
    assert check("03_lora", {"lora_scale": 8, "targets": "q_proj v_proj"})["lora_scale"] == 8


def test_every_name_in_the_tables_is_a_parameter_of_a_notebook():
    declared = {n: parameters.declared(n) for n in BOOK}
    names = {name for notebook in declared for name in declared[notebook]}
    assert all(check(n, {}, paths=False).keys() == declared[n].keys() for n in declared)
    roles = " ".join(parameters.TABLE["roles"].values()).split()
    assert {*roles, *parameters.SOURCES} <= names
    for key in (*parameters.PARAMETERS, *parameters.PLAN):
        notebook, _, name = key.rpartition(".")
        assert name in (declared[notebook] if notebook else names), key
    told = re.findall(r"{(\w+)}", " ".join(f"{n.reads} {n.writes}" for n in BOOK.values()))
    assert {*told} <= names


def test_a_rule_says_the_bounds_that_it_has():
    for name, rule in parameters.PARAMETERS.items():
        bounds = {rule.get(bound) for bound in "least above below most also".split()} - {None}
        said = re.findall(r"\d[\d,.]*", rule.get("says", "") if "kind" in rule else "")
        said = {float(number.replace(",", "")) for number in said}
        assert said == {float(bound) for bound in bounds if math.isfinite(bound)}, name


def test_the_check_needs_no_torch():
    heavy = "('torch', 'pandas', 'matplotlib', 'numpy', 'IPython', 'papermill')"
    code = "import sys; from tdbook.runs import running; from tdbook.workflow import graph; "
    code += f"print([m for m in sys.modules if m in {heavy}])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


CELL = 'run = "01_distill-a"  # name\nprofile = "tiny"\nout = "outputs/none"\n'


@pytest.fixture
def cell(shell):
    return lambda source: shell(source).raise_error()


def found():
    return parameters.from_cells("01_distill")


def test_names_are_those_typed_last_and_values_those_of_the_namespace_come_back_converted(cell):
    cell("run = 3")
    with pytest.raises(ParameterError, match="run its cell of parameters first"):
        found()
    cell(CELL + "temprature = 4.0")
    with pytest.raises(ParameterError, match="did you mean temperature"):
        found()
    cell(CELL + "temperature = 4\nlearning_rate = 1e-3")
    cell("model, run_id, steps = 1, 2, 3")  # what else is in the namespace does not matter
    assert found() == found() and found()["temperature"] == 4.0
    cell('learning_rate = "5e-4"')  # a cell of the reader's own
    found()
    cell("assert learning_rate == 5e-4 and isinstance(learning_rate, float), learning_rate")
    default = parameters.declared("01_distill")["epochs"]
    cell(f"assert epochs == {default}, epochs")  # that no cell set


def test_papermills_cell_counts_when_it_came_last(cell):
    cell(CELL + "temperature = 4.0")
    cell('# Parameters\ntemperature = "5e-1"\nce_wieght = 1\n')
    with pytest.raises(ParameterError, match="did you mean ce_weight"):
        found()
    cell('# Parameters\ntemperature = "5e-1"\nce_weight = 1\n')
    assert found()["temperature"] == 0.5
    cell(CELL + "temperature = 4.0")
    assert found()["temperature"] == 4.0
