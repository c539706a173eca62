"""Hooks and Weights & Biases: whatever they do, a run is as it would be without them."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tdbook.book import students
from tdbook.corpus import token_files, writer
from tdbook.runs import hashes, heartbeat, hooks, parameters
from tdbook.runs.parameters import ParameterError
from tdbook.runs.running import Run, start
from tdbook.workflow import execute
from tdlib import train
from tdlib.files import write_whole as write
from tests import helpers, small_book
from tests.tdbook.runs.test_parameters import CASES


def about(out: Path, state: str = "done") -> dict:
    return hooks.told(out, "01_distill-a", state, "the loss is 3")


@pytest.mark.parametrize("command, says", CASES["hooks"])
def test_a_hook_ends_in_time_says_how_and_leaves_nothing_running(tmp_path, capsys, command, says):
    limit = 0.5 if "0.5 s" in says else 20
    said = hooks.call("after_run", command, about(tmp_path), tmp_path, limit)
    assert re.match(rf"01_distill-a · after_run {says}.* \(\d\.\d s\)$", said), said
    small_book.wait_for(lambda: not small_book.processes_of(tmp_path), 5)  # by what they heard
    assert capsys.readouterr().out == said + "\n"
    log = (tmp_path / "logs/hooks.log").read_text()
    assert log.endswith(f" {said}\n") and log.count("\n") == 1


def test_a_hook_that_cannot_even_be_called_or_logged_is_a_line(tmp_path):
    (tmp_path / "logs").write_text("a file where the folder should be")
    wanted = {"true": "ok", "a\0b": "not be called: embedded null byte", "x" * 2**21: "too long"}
    for command, says in wanted.items():
        assert says in hooks.call("after_run", command, about(tmp_path), tmp_path)
    assert "is left to itself" in hooks.call("after_run", "sleep 0.1", about(tmp_path), tmp_path, 0)


def test_checkpoints_are_told_one_at_a_time_and_the_last_one_always(tmp_path, monkeypatch):
    monkeypatch.setattr(hooks, "LOOK_S", 0.02)
    write(kept := tmp_path / "state.pt", "of before")
    command = "echo begins >> said; cat state.pt >> said; sleep 0.2; echo ends >> said"
    with hooks.beside(command, tmp_path, tmp_path, lambda: about(tmp_path, "running")):
        for step in range(12):
            write(kept, f"{step}\n")
            time.sleep(0.03)
    said = (tmp_path / "said").read_text().split()
    assert said[::3] == ["begins"] * (len(said) // 3) and said[2::3] == ["ends"] * (len(said) // 3)
    assert 2 <= len(said) / 3 < 12  # some were skipped
    assert said[-2] == "11" and "before" not in said
    with pytest.raises(KeyboardInterrupt), hooks.beside("sleep 9", tmp_path, tmp_path, dict):
        began = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - began < 2  # a training that was stopped does not wait


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    """A run folder with tokens and a teacher, as 00 would leave it."""
    out = tmp_path_factory.mktemp("made") / "book"
    documents = writer.write(30_000, 5)
    splits = {"train": documents[2:], "val": documents[:2]}
    token_files.write_tokens(out / "tokens", splits, tokenizer, 32)
    (out / "models/teacher").mkdir(parents=True)
    return out


def trained(folder: Path, steps: int = 18, anew: bool = True, **given) -> tuple[dict, list]:
    """A training as 01 does it, with parameters that change no result: weights and log."""
    own = {"run": "01_distill-a", "profile": "smoke", "out": str(folder), "device": "cpu"}
    own |= {"ce_weight": 1.0, "batch_tokens": 64, "token_limit": 64 * steps, "seed": 7}
    if anew:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    this = start("01_distill", own | given)
    try:
        tokens = token_files.open_tokens(folder / "tokens")
        net = helpers.tiny_model(1, vocab=tokens.vocab_size, context=32).requires_grad_(True)
        log = students.Training(this, "a", tokens).fit(net, train.recipe(this.parameters))
        timed = ("train/tokens_per_sec", "train/peak_memory_mib")
        rows = [{k: v for k, v in row.items() if k not in timed} for row in log]
        return helpers.weights_of(net), rows
    finally:
        this.detach()


def same(a: tuple, b: tuple) -> bool:
    return helpers.same(a[0], b[0]) and a[1] == b[1]


@pytest.fixture(scope="module")
def alone(folder) -> tuple[dict, list]:
    return trained(folder)


HARMLESS = [({"after_checkpoint": command}, "failed") for command in ("exit 1", "sleep 999", "yes")]
HARMLESS += [({"wandb": "telugu"}, "W&B: 01_distill-a a is not logged there: UsageError")]


@pytest.mark.parametrize("given, says", HARMLESS)
def test_no_hook_changes_a_bit(folder, alone, offline, monkeypatch, capsys, given, says):
    import wandb

    def fails(**_) -> None:
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", fails)
    monkeypatch.setattr(hooks, "LOOK_S", 0.01)
    monkeypatch.setattr(hooks, "LIMIT_S", 0.3)
    assert same(trained(folder, checkpoint_minutes=1e-9, **given), alone)
    assert says in capsys.readouterr().out
    if "wandb" not in given:
        lines = (folder / "logs/hooks.log").read_text().splitlines()
        assert "01_distill-a · after_checkpoint failed" in lines[-1]


def test_hooks_and_wandb_rerun_nothing_and_their_commands_are_in_no_record(folder):
    more = {"after_run": "mail me@home", "after_checkpoint": "up", "wandb": "a-project"}
    values = parameters.check("01_distill", {})
    assert hashes.decisive(values) == hashes.decisive(values | more)
    this = start("01_distill", {"run": "01_distill-b", "out": str(folder), **more})
    record = this.provenance()
    state = json.loads((folder / "state/01_distill-b.json").read_text())
    this.detach()
    for shown in (record["parameters"], state["changed"]):
        assert (shown["after_run"], shown["after_checkpoint"]) == ("set", "set")
    assert "me@home" not in json.dumps([record, state])


HEAR = 'env | grep ^TDLIB_ > heard; wc -c < "$TDLIB_PAGE" >> heard; exit 1'


@pytest.fixture
def distill(root) -> Callable:
    """The YAML of a run of 01 whose hook tells what it heard, with all that it reads."""
    for name in ("tokens/a", "models/teacher/w"):
        write(root / "outputs/tiny" / name, "w")
    return lambda student: small_book.yaml(root, "01_distill-a", student=student, after_run=HEAR)


ENDS = {"done": "01_distill-a is done.", "interrupted": "stopped"}


@pytest.mark.parametrize("state", ENDS)
def test_after_run_comes_after_the_page(state, root, distill, monkeypatch, capsys):
    out = root / "outputs/tiny"
    kept, page = out / "checkpoints/01_distill-a", out / "01_distill-a.html"

    def made(source: str, to: str, given: dict, **_) -> None:
        shutil.copy(source, to)
        this = start("01_distill", given | {"after_run": ""})  # a kernel leaves it to the book
        if state != "done":
            write(kept / "a/state.pt", "")
            this.detach()
            raise KeyboardInterrupt
        small_book.finish(this)

    monkeypatch.setattr("papermill.execute_notebook", made)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv(heartbeat.DIE_WITH, "")
    assert execute.execute(distill("a"), out, {}) == (state != "done")
    *lines, size = (root / "heard").read_text().splitlines()
    heard = dict(line.removeprefix("TDLIB_").split("=", 1) for line in lines)
    assert int(size) == page.stat().st_size
    wanted = {"RUN": "01_distill-a", "OUT": out, "STATE": state, "FINDING": ENDS[state]}
    wanted |= {"PAGE": page, "CHECKPOINT": "" if state == "done" else kept}
    assert {name: heard[name] for name in wanted} == {n: str(x) for n, x in wanted.items()}
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("01_distill-a · after_run failed: exit 1")  # and changes nothing
    assert heartbeat.state(out, "01_distill-a")["state"] == state


def test_plain_papermill_calls_after_run_from_the_kernel_after_a_failure(root, distill):
    notebook, out = root / "notebooks/01_distill.ipynb", root / "outputs/tiny"
    command = [sys.executable, "-m", "papermill", notebook, out / "01_distill-a.ipynb"]
    command += ["-f", distill("bad"), "-k", "python3"]
    done = subprocess.run(command, cwd=small_book.REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    small_book.wait_for(lambda: not small_book.processes_of(root), 9)  # which waits for no hook
    assert (out / "logs/hooks.log").read_text().count("after_run") == 1
    told = (root / "heard").read_text()
    assert "TDLIB_STATE=failed" in told and "TDLIB_FINDING=ValueError: the loss is nan" in told


def test_a_run_in_a_script_calls_after_run_once_when_it_is_made_and_not_when_it_is_read(root):
    for _ in range(2):
        this = start("00_teacher", {"run": "00_teacher", "after_run": "env >> heard"})
        small_book.finish(this)
        this._left()  # a signal, or two, right after it
    told = (root / "heard").read_text()
    assert told.count("TDLIB_STATE=done") == told.count("TDLIB_FINDING=00_teacher is done.") == 1


@pytest.fixture
def offline(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))


def test_wandb_gets_the_rows_and_what_goes_on_is_the_same_run(folder, alone, offline, monkeypatch):
    import wandb

    given = {"wandb": "telugu", "checkpoint_minutes": 1e-9, "after_run": "up"}
    init, abouts, rows, progress = wandb.init, [], [], Run.progress

    def spied(**about) -> SimpleNamespace:
        """wandb itself, and what it was told."""
        run, own = init(**about), {}
        abouts.append(about)
        rows.append(own)
        log = lambda row, step: (own.update({step: row}), run.log(row, step=step))  # noqa: E731
        return SimpleNamespace(log=log, finish=run.finish)

    def stopped(this, step: int, steps: int, message: str = "") -> None:
        progress(this, step, steps, message)
        if step == 14:
            raise KeyboardInterrupt

    monkeypatch.setattr(wandb, "init", spied)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Run, "progress", stopped)
        trained(folder, **given)
    kept = (folder / "checkpoints/01_distill-a/a/wandb.id").read_text()
    assert same(trained(folder, anew=False, **given), alone)
    names = [path.name for path in folder.glob("wandb/offline-run-*/*.wandb")]
    assert names == [f"run-{kept}.wandb"] * 2 and not (small_book.REPOSITORY / "wandb").exists()
    for about in abouts:
        assert (about["project"], about["id"], about["group"]) == ("telugu", kept, "book")
        assert about["config"]["learning_rate"] == 2e-3 and "after_run" not in about["config"]
    log = [json.loads(line) for line in (folder / "logs/01_distill-a-a.jsonl").open()]
    both = rows[0] | rows[1]
    assert both.keys() == {row["step"] for row in log} and min(rows[1]) == 14
    for row in log[-4:]:
        for name in ("train/loss", "train/lr", "train/tokens_per_sec", "val/loss"):
            assert both[row["step"]].get(name) == row.get(name)
    assert log[-1]["val/samples"][0].split()[0] in both[log[-1]["step"]]["val/samples"].html
    trained(folder, steps=2, **given)
    assert (folder / "checkpoints/01_distill-a/a/wandb.id").read_text() != kept  # another run


def test_wandb_that_is_not_installed_is_one_line_before_anything_else(monkeypatch):
    monkeypatch.setattr(parameters.importlib.util, "find_spec", lambda name: None)
    with helpers.refused("wandb = 'x' needs", "-m pip install wandb", error=ParameterError):
        parameters.check("01_distill", {"wandb": "x"})
    parameters.check("01_distill", {"wandb": ""})
