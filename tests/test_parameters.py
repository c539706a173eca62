"""Parameters: what is wrong with them is said in one line, in time, and nothing false is said."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbformat import v4

from tdlib import parameters
from tdlib.parameters import ParameterError, check

REPOSITORY = Path(__file__).parents[1]

# notebook, what is given → what the one line must say: the value, the rule, the remedy
BAD = [
    # names
    ("01_distill", {"temprature": 2.0}, r"no parameter temprature: did you mean temperature\?"),
    ("01_distill", {"lr": 1e-3}, r"no parameter lr: "),
    ("01_distill", {"ce_wieght": "x"}, r"no parameter ce_wieght: did you mean ce_weight\?"),
    ("01_distill", {"run": "02_hard_set", "share": 3}, r"a run of 02_hard_set, this is 01_distill"),
    # types
    ("01_distill", {"learning_rate": "fast"}, r"learning_rate = 'fast' is not a number: .*rate: 0"),
    ("01_distill", {"batch_tokens": 2048.5}, r"batch_tokens = 2048\.5 is not a whole number"),
    ("01_distill", {"batch_tokens": "2k"}, r"batch_tokens = '2k' is not a number"),
    ("01_distill", {"seed": True}, r"seed = True is not a number"),
    ("01_distill", {"epochs": None}, r"epochs = None is not a number"),
    ("01_distill", {"epochs": float("inf")}, r"epochs = inf is not a number"),
    ("01_distill", {"epochs": [1]}, r"epochs = \[1\] is not a number"),
    ("01_distill", {"student": 50}, r"student = 50 is not text: put it in quotes"),
    ("01_distill", {"student": False}, r"student = False is not text: put it in quotes"),
    ("01_distill", {"redo": 1}, r"redo = 1 is not true or false: for example redo: false"),
    # values
    ("02_hard_set", {"share": 1.5}, r"share = 1\.5 must be above 0 and below 1: .*share: 0"),
    ("02_hard_set", {"share": 0}, r"share = 0\.0 must be above 0"),
    ("01_distill", {"temperature": 0}, r"temperature = 0\.0 must be above 0 and at most 100: for"),
    ("01_distill", {"ce_weight": -0.1}, r"ce_weight = -0\.1 must be at least 0 and at most 1"),
    ("01_distill", {"seed": -1}, r"seed = -1 must be at least 0"),
    ("01_distill", {"shape": "student-50"}, r"shape = 'student-50' must be .*did you mean stude"),
    ("01_distill", {"device": "gpu"}, r"device = 'gpu' must be auto, cpu, cuda"),
    ("01_distill", {"student": "../50m"}, r"student = '\.\./50m' must be a name of"),
    ("01_distill", {"student": "teacher"}, r"student = 'teacher' is the teacher's name too"),
    ("01_distill", {"out": " "}, r"out = ' ' must be the path of a run folder"),
    ("00_teacher", {"context": 4}, r"context = 4 must be at least 8"),
    ("00_teacher", {"vocab_size": 100}, r"vocab_size = 100 must be at least 300"),
    ("00_teacher", {"val_share": 0.5}, r"val_share = 0\.5 must be above 0 and below 0\.5"),
    ("00_teacher", {"tokenizer": "a.json"}, r"tokenizer = 'a\.json' must be .*ends in \.model"),
    ("03_lora", {"hard_set": "../a.json"}, r"hard_set = '\.\./a\.json' must be the name of"),
    ("03_lora", {"windows": "rand"}, r"windows = 'rand' must be .*did you mean random\?"),
    ("03_lora", {"rank": 0}, r"rank = 0 must be at least 1"),
    ("03_lora", {"lora_scale": 32, "rank": 16}, r"= 32 at rank .*lora_alpha 512.*lora_scale: 2,"),
    ("04_merge_eval", {"resamples": 10}, r"resamples = 10 must be at least 100"),
    # paths
    ("00_teacher", {"text": "nowhere.txt"}, r"text = 'nowhere\.txt' must be .*nowhere\.txt is not"),
    ("00_teacher", {"text": "README.md nowhere.txt"}, r"nowhere\.txt is not there"),
    ("00_teacher", {"tokens": "README.md"}, r"tokens = 'README\.md' must be an existing folder"),
    ("00_teacher", {"teacher": "no.pt"}, r"teacher = 'no\.pt' must be an existing Llama folder"),
    ("00_teacher", {"tokenizer": "no.model"}, r"tokenizer = 'no\.model' must be an existing"),
    ("00_teacher", {"text_characters": 0}, r"text_characters = 0 and no text or tokens: give one"),
    ("01_distill", {"out": "README.md"}, r"out = 'README\.md' must be a folder"),
]  # fmt: skip


@pytest.mark.parametrize("notebook, given, says", BAD, ids=lambda v: str(v)[:40])
def test_what_is_wrong_is_said_in_one_line(notebook, given, says):
    with pytest.raises(ParameterError) as error:
        check(notebook, given)
    assert re.search(says, str(error.value))
    assert "\n" not in str(error.value)


def test_names_come_before_types_before_values_before_paths():
    wrong = {"txt": 1, "seed": "x", "context": 1, "text": "nowhere.txt"}
    said = []
    for name in list(wrong):
        with pytest.raises(ParameterError) as error:
            check("00_teacher", wrong)
        said.append(str(error.value))
        del wrong[name]
    assert [line.split(" = ")[0].split()[-1].strip("?") for line in said] == [
        "text", "seed", "context", "text",
    ]  # fmt: skip
    with pytest.raises(ParameterError, match=r"context = .*\nseed = .*"):
        check("00_teacher", {"context": "a", "seed": "b"})  # two of one class: a line each


@pytest.mark.parametrize(
    "name, given, meant",
    [
        ("learning_rate", "5e-4", 5e-4),  # what YAML 1.1 makes of 5e-4
        ("learning_rate", "1e-3", 1e-3),
        ("epochs", 3, 3.0),
        ("batch_tokens", 50.0, 50),
        ("batch_tokens", "5e1", 50),
        ("batch_tokens", "262_144", 262_144),
        ("seed", "9007199254740993", 9007199254740993),  # 2^53 + 1, no float
        ("redo", "true", True),
        ("student", "50m", "50m"),
    ],
)
def test_a_value_arrives_as_its_kind(name, given, meant):
    found = check("01_distill", {name: given})[name]
    assert found == meant and type(found) is type(meant)


def test_5e_4_in_a_yaml_is_a_number(tmp_path):
    path = tmp_path / "01_distill-a.yaml"
    path.write_text("run: 01_distill-a\nlearning_rate: 5e-4\nbatch_tokens: 262_144\n")
    found = check("01_distill", parameters.read(path))
    assert (found["learning_rate"], found["batch_tokens"]) == (5e-4, 262_144)


def test_a_list_left_as_text_is_a_list():
    rule = parameters.Rule(list)
    assert parameters.convert(rule, "[1, 2]") == parameters.convert(rule, [1, 2]) == [1, 2]
    with pytest.raises(TypeError):
        parameters.convert(rule, "1")


@pytest.mark.parametrize(
    "text, says",
    [("seed: 1\nseed: 2\n", "seed twice"), ("a b\n", "name: value"), ("a: [1\n", "no YAML")],
)
def test_a_yaml_that_cannot_be_meant_is_refused(tmp_path, text, says):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ParameterError, match=says):
        parameters.read(tmp_path / "a.yaml")


def test_none_is_allowed_only_where_it_means_something():
    assert check("03_lora", {"temperature": None})["temperature"] is None
    assert check("02_hard_set", {"threshold": -0.5})["threshold"] == -0.5
    with pytest.raises(ParameterError, match="not a number"):
        check("01_distill", {"temperature": None})


def test_a_large_lora_scale_is_let_through_when_it_is_meant():
    assert check("03_lora", {"lora_scale": 32, "allow_large_scale": True})["lora_scale"] == 32
    assert check("03_lora", {"lora_scale": 8})["lora_scale"] == 8


def test_every_parameter_of_every_notebook_has_a_rule_a_good_default_and_a_comment():
    notebooks = sorted(path.stem for path in (REPOSITORY / "notebooks").glob("*.ipynb"))
    assert notebooks
    for notebook in notebooks:
        check(notebook, {})
        assert parameters.comments(notebook).keys() == parameters.declared(notebook).keys()


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("params/*/*.yaml")), ids=str)
def test_every_yaml_of_the_repository_passes_and_bears_its_name(path):
    given = parameters.read(path)
    found = check(parameters.notebook_of(path.stem), given, paths=False)
    assert found["run"] == path.stem
    assert found["profile"] == path.parent.name


def test_the_check_needs_no_torch():
    code = "import sys\nfrom tdlib import runs, graph\nprint([m for m in sys.modules if m in "
    code += "('torch', 'pandas', 'matplotlib', 'numpy', 'IPython', 'papermill')])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


# --- names come from the cells that were run

CELL = 'run = "01_distill-a"  # name\nprofile = "tiny"\nout = "outputs/none"\n'


@pytest.fixture
def shell():
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    shell.history_manager.enabled = False  # keeps In, writes no database
    yield lambda source: shell.run_cell(source, store_history=True).raise_error()
    InteractiveShell.clear_instance()


def found():
    return parameters.from_cells("01_distill")


def test_a_mistyped_name_in_the_parameter_cell_is_found(shell):
    shell(CELL + "temprature = 4.0")
    with pytest.raises(ParameterError, match="did you mean temperature"):
        found()


def test_a_name_that_was_corrected_is_not_reported_again(shell):
    shell(CELL + "temprature = 4.0")
    shell(CELL + "temperature = 4.0")
    assert found()["temperature"] == 4.0


def test_a_cell_run_twice_reports_nothing_false(shell):
    shell(CELL + "temperature = 4")
    assert found() == found()
    shell("model, run_id, steps = 1, 2, 3")  # what else is in the namespace does not matter
    shell(CELL + "temperature = 4")
    assert found()["temperature"] == 4.0


def test_papermills_cell_counts_when_it_came_last(shell):
    shell(CELL + "temperature = 4.0")
    shell('# Parameters\ntemperature = "5e-1"\nce_wieght = 1\n')
    with pytest.raises(ParameterError, match="did you mean ce_weight"):
        found()
    shell('# Parameters\ntemperature = "5e-1"\nce_weight = 1\n')
    assert found()["temperature"] == 0.5
    shell(CELL + "temperature = 4.0")
    assert found()["temperature"] == 4.0


def test_values_are_those_of_the_namespace_and_come_back_converted(shell):
    shell(CELL + 'learning_rate = 1e-3\nce_weight = 0.5\nstudent = "x"')
    shell('learning_rate = "5e-4"')  # a cell of the reader's own
    found()
    shell("assert learning_rate == 5e-4 and isinstance(learning_rate, float), learning_rate")
    default = parameters.declared("01_distill")["epochs"]
    shell(f"assert epochs == {default}, epochs")  # that no cell set


def test_without_a_parameter_cell_the_remedy_is_said(shell):
    shell("run = 3")
    with pytest.raises(ParameterError, match="run its cell of parameters first"):
        found()


def test_papermill_stops_at_a_mistyped_name_before_torch_is_imported(tmp_path):
    """The real thing: a notebook whose cell after the parameters begins the run."""
    notebook = nbformat.read(REPOSITORY / "notebooks/01_distill.ipynb", as_version=4)
    cells = [c for c in notebook.cells if c.cell_type == "code"][:2]
    path = tmp_path / "01.ipynb"
    nbformat.write(v4.new_notebook(cells=cells, metadata=notebook.metadata), path)
    command = [sys.executable, "-m", "papermill", path, tmp_path / "out.ipynb", "-k", "python3"]
    command += ["-p", "temprature", "4", "-p", "out", tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "did you mean temperature?" in done.stderr
    assert not (tmp_path / "run").exists()
    executed = json.loads((tmp_path / "out.ipynb").read_text())
    assert "temprature" in json.dumps(executed["cells"])
