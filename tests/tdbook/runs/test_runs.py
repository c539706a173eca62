"""Runs: what is done is not done again, what could have changed is, and a state is always true."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from nbclient.exceptions import DeadKernelError

from tdbook.__main__ import main
from tdbook.runs import heartbeat, machine, notebooks, parameters, running
from tdbook.runs.ownership import clear
from tdbook.runs.parameters import ParameterError
from tdbook.runs.running import start
from tdbook.workflow import execute, graph, status
from tdlib.files import write_whole as write
from tests import small_book
from tests.helpers import refused
from tests.small_book import COMMON, DEAD, OWN, REPOSITORY, alive, called, processes_of, wait_for
from tests.small_book import yaml as run_yaml
from tests.tdbook.runs.test_parameters import CASES


def distill(**given) -> bool:
    """Whether 01, made in this process as its notebook would, called what it need not repeat."""
    calls, row = [], {"loss": np.float64(4.5), "spans": (1, 2)}
    given = {"run": "01_distill-a"} | given
    small_book.make("01_distill", given, once=lambda: calls.append(1) or row)
    return bool(calls)


def teach(weights="w", **given) -> None:
    small_book.make("00_teacher", {"run": "00_teacher"} | given, weights)


@pytest.fixture
def made(root):
    """The run folder after 00, its files written by hand, and 01."""
    teach()
    assert distill()
    return root / "outputs/tiny"


def test_a_run_is_repeated_for_what_changes_its_result_and_its_record_says_where_from(made):
    path = made / "results/01_distill-a.json"
    before = json.loads(path.read_text())
    assert not distill() and json.loads(path.read_text()) == before
    assert before["remembered"]["once"] == {"loss": 4.5, "spans": [1, 2]}
    assert not distill(checkpoint_minutes=1.0, device="auto")
    assert distill(learning_rate="2e-3") and not distill(learning_rate=2e-3)
    record = json.loads(path.read_text())
    assert record["parameters"]["learning_rate"] == 2e-3
    assert record["changed"] == ["run", "learning_rate"]
    assert record["inputs"].keys() == {"tokens", "models/teacher"}
    assert record["reads"].keys() == {"00_teacher"} and record["versions"]["python"]
    assert record["device"].startswith("cpu, ") and record["finding"] == "01_distill-a is done."
    assert record["seconds"] >= 0 and record["peak_memory_mib"] > 10
    assert distill(redo=True, learning_rate=2e-3) and not distill(learning_rate=2e-3)
    path = parameters.ROOT / "notebooks/01_distill.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.cells[2] |= {"outputs": [], "metadata": {"collapsed": True}}
    nbformat.write(notebook, path)
    assert not distill(learning_rate=2e-3)


def test_what_was_stopped_or_writes_not_all_that_it_must_is_not_done_and_remembers_nothing(made):
    this = start("01_distill", {"run": "01_distill-a", "seed": 2})
    this.once("row", lambda: 1)
    with pytest.raises(TypeError, match="Figure cannot be remembered"):
        this.once("figure", Figure)
    this.detach()
    assert heartbeat.state(made, "01_distill-a")["state"] == "interrupted"
    assert distill()  # its parameters are those of before, its outputs may not be
    this = start("01_distill", {"run": "01_distill-b", "student": "b"})
    with pytest.raises(FileNotFoundError, match="models/b"):
        this.finish()
    records = [made / f"{kind}/01_distill-b.json" for kind in ("hashes", "results")]
    assert not any(path.exists() for path in records)


def test_a_checkpoint_outlives_only_a_stop_and_a_broken_note_of_it(made):
    kept = made / "checkpoints/01_distill-a/a/state.pt"

    def stopped_at_a_checkpoint(**given):
        this = start("01_distill", {"run": "01_distill-a", "seed": 2} | given)
        found = kept.exists()
        write(kept, "half")
        this.detach()
        return found

    assert not stopped_at_a_checkpoint()
    assert stopped_at_a_checkpoint()
    assert stopped_at_a_checkpoint(checkpoint_minutes=1.0)
    with refused("learning_rate = 0.001, now it is 0.5: put it back"):
        stopped_at_a_checkpoint(learning_rate=0.5)
    assert kept.read_text() == "half"
    (kept.parents[1] / "made_from.json").write_text("")  # it loses its place, not its files
    assert not stopped_at_a_checkpoint()
    aside = "old/*/checkpoints/01_distill-a/a/state.pt"
    assert [path.read_text() for path in made.glob(aside)] == ["half"]
    assert not stopped_at_a_checkpoint(learning_rate=0.5, redo=True)
    teach("another teacher", seed=2)
    assert not stopped_at_a_checkpoint(learning_rate=0.5)
    assert len([*made.glob(aside)]) == 3
    (kept.parent / "epoch-1.safetensors").write_text("for good")
    distill(learning_rate=0.5, seed=2)
    assert [path.name for path in kept.parent.iterdir()] == ["epoch-1.safetensors"]


def test_asking_git_leaves_its_index_alone(tmp_path, monkeypatch):
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b"]
    (path := tmp_path / "a").write_text("a")
    for what in ("init -q", "add a", "commit -qm a"):
        subprocess.run([*git, *what.split()], check=True)
    os.utime(path, (1, 1))  # `git status` alone would now write the index
    before = (tmp_path / ".git/index").read_bytes()
    monkeypatch.setattr(parameters, "ROOT", tmp_path)
    head = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True)
    assert machine.commit() == (head[:7], False)
    assert (tmp_path / ".git/index").read_bytes() == before
    (tmp_path / "b").write_text("b")
    assert machine.commit() == (head[:7], True)


SCRIPT = """import sys, time
from tdbook.runs import running
from tests import small_book
this = running.start("00_teacher", {"run": "00_teacher"})
this.progress(1, 2, "loss 4")
print("ready", flush=True)
if sys.argv[1] == "wait":
    time.sleep(60)
if sys.argv[1] == "done":
    small_book.finish(this)
"""


@pytest.mark.parametrize("mode, number, says", CASES["ends"])
def test_however_a_process_ends_its_state_is_true(root, mode, number, says):
    command = [sys.executable, "-c", SCRIPT, mode]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, stdout=-1, stderr=-3, env=env)
    process.stdout.readline()
    if number:
        assert heartbeat.state(root / "outputs/tiny", "00_teacher")["state"] == "running"
        process.send_signal(number)
    process.wait(10)
    state = heartbeat.state(root / "outputs/tiny", "00_teacher")
    assert (state["state"], state["step"], state["message"]) == (says, 1, "loss 4")
    assert [s["state"] for s in heartbeat.states(root / "outputs/tiny")] == [says]


@pytest.mark.parametrize("changed, says", CASES["others"])
def test_a_process_that_is_not_the_same_is_lost(tmp_path, changed, says):
    heartbeat.write_state(tmp_path, "00_teacher", "running", **changed or {})
    if changed is None:
        (tmp_path / "state/00_teacher.json").write_text("")
        heartbeat.wait_until_free(tmp_path, "00_teacher")
    assert heartbeat.state(tmp_path, "00_teacher")["state"] == says
    assert f"00_teacher  {says}" in status.text(tmp_path)


@pytest.mark.parametrize("says", ["running", "interrupted", "lost", ""])
def test_a_run_whose_records_stand_is_done_whatever_its_state_says(made, says, monkeypatch):
    """Killed, or without power, before its last word; what it left goes at the next look."""
    run, results = "01_distill-a", made / "results"
    here, begun = made / f"checkpoints/{run}/a", results / f".{run}.json.{DEAD}.begun"
    heartbeat.write_state(made, run, says, pid=DEAD, step=3)
    if not says:
        (made / f"state/{run}.json").write_text("")
    left = [here / "state.pt", here / f".state.pt.{DEAD}.begun", here.parent / "weights.bin", begun]
    stays = [here / "epoch-1.safetensors", here / "notes.txt"]
    stays += [results / f".{run}.json.{os.getppid()}.begun"]
    stays += [made / name for name in (".profile.7", f".env.{DEAD}", "tables/.x.7.csv", ".new")]
    for path in (*left, *stays):
        write(path, "something")
    assert heartbeat.state(made, run)["state"] == "done"
    assert f"{run}  done" in status.text(made)
    assert not distill()
    assert not any(path.exists() for path in left) and all(path.exists() for path in stays)
    (made / f"hashes/{run}.json").unlink()  # begun anew, perhaps by another machine
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    for path in (left[0], begun):
        write(path, "something")
    clear(made)
    assert begun.exists() and left[0].exists()
    os.utime(begun, (0, 0))
    clear(made)
    assert left[0].exists() and not begun.exists()


@pytest.mark.parametrize("error", [RuntimeError("Kernel died before replying"), DeadKernelError()])
@pytest.mark.parametrize("asked", [True, False])
def test_a_kernel_that_dies_has_failed_if_no_stop_was_asked(made, monkeypatch, error, asked):
    run = "01_distill-a"  # which is done already, with other parameters

    def dies(*_, **__):
        heartbeat.write_state(made, run, "running", **({"pid": DEAD} if asked else {}))
        if asked:
            signal.raise_signal(signal.SIGTERM)
            heartbeat.write_state(made, run, "running")
        raise error

    monkeypatch.setattr("papermill.execute_notebook", dies)
    state = execute._settled(made, run, execute._papermill(run, made, {}))
    assert state["state"] == ("interrupted" if asked else "failed")
    assert state["error"] == ["stopped"] or not asked
    (made / "hashes/01_distill-a.json").unlink()
    for own in ("the kernel died", "KeyboardInterrupt: ", "stopped"):
        heartbeat.write_state(made, run, "interrupted", pid=DEAD)  # by the kernel, of a SIGTERM
        assert execute._settled(made, run, own)["state"] == "interrupted"


def test_the_heart_beats_while_nothing_is_said(root, monkeypatch):
    monkeypatch.setattr(heartbeat, "HEARTBEAT_S", 0.05)
    this = start("00_teacher", {"run": "00_teacher"})
    first = heartbeat.state(this.out, this.run)["heartbeat"]
    wait_for(lambda: heartbeat.state(this.out, this.run)["heartbeat"] > first, 5)
    this.detach()


def test_a_run_is_refused_while_another_process_runs_it(root, monkeypatch):
    monkeypatch.setattr(heartbeat, "STOP_S", 0.1)
    monkeypatch.setattr(heartbeat, "LOST_S", 0.5)
    out = root / "outputs/tiny"
    with subprocess.Popen(["sleep", "60"]) as other:
        started = heartbeat.started(other.pid)
        heartbeat.write_state(out, "00_teacher", "running", pid=other.pid, pid_started=started)
        with pytest.raises(RuntimeError, match=f"process {other.pid}"):
            start("00_teacher", {"run": "00_teacher"})
        other.kill()
    heartbeat.wait_until_free(out, "00_teacher")
    there = {"host": "another", "pid": 1, "heartbeat": time.time() + 60}
    heartbeat.write_state(out, "00_teacher", "running", **there)
    with pytest.raises(RuntimeError, match="by process 1 on another: "):
        heartbeat.wait_until_free(out, "00_teacher")


def test_a_cell_that_fails_is_told_and_the_next_one_runs_on(root, shell, capsys):
    shell(COMMON.format(notebook="00_teacher") + OWN["00_teacher"])
    shell('from tdbook.runs import running\nthis = running.start("00_teacher")')
    out = root / "outputs/tiny"
    assert heartbeat.state(out, "00_teacher")["state"] == "running"
    shell('raise ValueError("the loss is nan")')
    state = heartbeat.state(out, "00_teacher")
    assert (state["state"], state["error"][-1]) == ("failed", "ValueError: the loss is nan")
    shell("from tdbook.runs import heartbeat\nseen = heartbeat.state(this.out, this.run)")
    assert running._latest.parameters["run"] == "00_teacher"
    state = heartbeat.state(out, "00_teacher")
    assert (state["state"], state["error"]) == ("running", [])
    shell("raise KeyboardInterrupt")
    assert heartbeat.state(out, "00_teacher")["state"] == "interrupted"
    shell('this = running.start("00_teacher")')  # once more, in the same kernel
    shell("from tests import small_book\nsmall_book.finish(this)")
    shell('raise ValueError("after the end")')
    assert heartbeat.state(out, "00_teacher")["state"] == "done"


def test_figures_and_tables_are_files_too(root):
    this = start("00_teacher", {"run": "00_teacher"})
    (figure := Figure()).subplots().plot([1, 2])
    this.figure("curve", figure, alt="a line")
    svg = (this.out / "figures/00_teacher-curve.svg").read_text()
    this.figure("curve", figure, alt="a line")
    assert "<svg" in svg and (this.out / "figures/00_teacher-curve.svg").read_text() == svg
    assert (this.out / "figures/00_teacher-curve.png").read_bytes()[:4] == b"\x89PNG"
    this.table("rows", pd.DataFrame({"loss": [4.123456]}, index=pd.Index(["50m"], name="model")))
    this.table("small", pd.DataFrame({"loss": [0.00412345]}))
    this.detach()
    tables = {p.name[11:]: p.read_text() for p in (this.out / "tables").iterdir()}
    assert tables["rows.csv"] == "model,loss\n50m,4.123456\n"
    assert tables["small.csv"] == "loss\n0.00412345\n" and "| 0.00412 |" in tables["small.md"]
    assert re.search(r"\| 50m +\| +4\.123 +\|", tables["rows.md"])


def test_04_merges_every_adapter_and_compares_every_model_and_07_comes_last():
    found = {one.run: one for one in graph.book("smoke", paths=False)}
    last, verdict = found.pop("07_evidence"), found["04_merge_eval"]
    assert set(verdict.needs) == found.keys() - {"04_merge_eval", "06_inference"}
    assert "models/50m-hard-merged" in verdict.writes
    assert "04_merge_eval" in found["06_inference"].needs  # which makes what it ships
    assert {"00_teacher", "01_distill-50m", "02_hard_set"} <= {*found["03_lora-hard"].needs}
    assert set(last.needs) == found.keys() and last.writes == ()
    made = [path for one in found.values() for path in one.writes]
    models = {path for path in made if path.startswith(("models/", "adapters/"))}
    assert models | {"tokens"} == {*notebooks.reads("07_evidence", last.parameters, made)}


def test_plain_papermill_leaves_a_page_too_wherever_it_writes(root):
    words = ["notebooks/00_teacher.ipynb", "written.ipynb", "-k", "python3", "--no-progress-bar"]
    subprocess.run([sys.executable, "-m", "papermill", *words], check=True, capture_output=True)
    page = root / "outputs/tiny/00_teacher.html"
    small_book.wait_for(page.with_name("index.html").exists)  # after the page
    assert "00_teacher is done." in page.read_text("utf-8")
    assert page.with_suffix(".ipynb").read_bytes() == (root / "written.ipynb").read_bytes()


BOOK = [sys.executable, "-m", "tdbook", "book", "PROFILE=tiny"]


@pytest.fixture
def elsewhere(root, monkeypatch):
    """No HOME to write in, and another kernel by the name of ours."""
    kernel = root / "jupyter/kernels/python3/kernel.json"
    kernel.parent.mkdir(parents=True)
    argv = ["/bin/false", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": argv, "display_name": "3", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(root / "jupyter"))
    for name in machine.HOMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/dev/null")


BAD, SLOW = "01_distill-bad", "01_distill-slow"
ODD = '-it\'s {a} {} [1]* $HOME #%20 "é", x=y, కథ'  # in the name of a file or folder


def test_the_book_runs_what_is_needed_and_only_that(root, elsewhere):
    words, out = root / f"{ODD}\n.txt", f"outputs/{ODD}"
    words.write_text("తెలుగు")
    teach(out=out, text=str(words))
    shutil.copy(root / "notebooks/00_teacher.ipynb", root / out)  # and was killed before its page
    for run, given in {"01_distill-a": {}, BAD: {"student": "bad"}, "04_merge_eval": {}}.items():
        run_yaml(root, run, **given)
    done = subprocess.run([*BOOK, f"TEXT={words}", f"OUT={out}"], capture_output=True, text=True)
    assert done.returncode == 1  # one failed; what does not need it was run all the same
    assert called(root, out) == ["01_distill-a"]
    assert "01_distill-a is done." in done.stdout and (root / out / "00_teacher.html").exists()
    *_, failed, waiting, count = done.stdout.splitlines()
    last = "ValueError: the loss is nan at step 3: use a smaller learning_rate"
    assert failed.startswith(f"{BAD} · failed: {last}") and failed.endswith(f"{BAD}.html")
    assert (waiting, count) == ("not run: 04_merge_eval", f"2 of 4 runs done · {out}/index.html")
    state = heartbeat.state(root / out, BAD)
    assert (state["state"], state["error"][-1]) == ("failed", last)
    assert last in (root / out / f"{BAD}.html").read_text()
    assert BAD in (root / out / "index.html").read_text()
    assert not (root / out / f"hashes/{BAD}.json").exists()
    cells = nbformat.read(root / out / f"{BAD}.ipynb", 4).cells
    shown = [o for c in cells for o in c.get("outputs", []) if o.output_type == "display_data"]
    (line,) = (output.data["text/plain"] for output in shown)
    assert line.startswith("step 3 of 3 · loss 4.32 · took")
    assert not (root / ".snakemake").exists()  # the repository may be somebody else's


def test_a_killed_book_leaves_no_process_and_goes_on(root, capsys):
    teach()
    run_yaml(root, SLOW, student="slow")
    out = root / "outputs/tiny"
    for how in (signal.SIGINT, signal.SIGKILL):
        process = subprocess.Popen(BOOK, stdout=-3)
        wait_for(lambda: heartbeat.state(out, SLOW).get("step") == 3)
        if how == signal.SIGINT:
            assert main(BOOK[3:]) == 1 and f"process {process.pid}" in capsys.readouterr().out
        kernel = heartbeat.state(out, SLOW)["pid"]
        process.send_signal(how)
        process.wait(60)
        wait_for(lambda kernel=kernel: not alive(kernel))
        assert heartbeat.state(out, SLOW)["state"] in ("interrupted", "lost")
        assert "the same command goes on" in status.text(out) or how == signal.SIGINT
        wait_for(lambda: not processes_of(root))
        assert called(root) == []
        (out / f"state/{SLOW}.json").unlink()


@pytest.mark.parametrize("home", ["/dev/null", "/proc/nowhere", "", "mine"])
def test_where_home_cannot_be_written_what_runs_below_writes_elsewhere(tmp_path, monkeypatch, home):
    write(tmp_path / "mine/x", "")
    write(tmp_path / "spare/x", "")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spare"))
    for name in machine.HOMES:
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("HOME", str(tmp_path / home) if home == "mine" else home)
    monkeypatch.setattr("os.path.expanduser", lambda path: os.environ.get("HOME", "~"))
    machine.find_homes()
    places = [os.environ[name] for name in machine.HOMES]
    assert all(place.startswith(str(tmp_path / "spare")) == (home != "mine") for place in places)
    machine.find_homes()  # a child's: it has its parent's
    assert [os.environ[name] for name in machine.HOMES] == places


def test_a_run_folder_has_the_whole_name_of_its_text(root):
    for text, name in CASES["texts"].items():
        assert graph.default_out("tiny", text) == f"outputs/{name}"
    for name in ("my book.txt", "a.txt", "b.txt"):
        (root / name).touch()
    lists = {"my book.txt": ["my book.txt"], "a.txt b.txt": ["a.txt", "b.txt"], "": []}
    assert {text: parameters.texts(text) for text in lists} == lists  # a path may have a space
    assert graph.default_out("tiny", "my book.txt") == "outputs/tiny-my_book"
    texts = " ".join(f"కథలు/తెలుగు_కథలు_భాగం_{i}.txt" for i in range(40))
    found = [graph.default_out("tiny", given) for given in (texts, texts.replace("_39", "_40"))]
    assert len(set(found)) == 2  # which differ in their last letter alone
    for out in found:
        (root / out).mkdir(parents=True)  # the system takes them


def test_another_text_of_the_same_name_does_not_take_the_folder_of_the_first(root):
    def given(text, out=None):
        out = out or graph.default_out("tiny", text)
        write(root / out / graph.CONFIG, json.dumps({"given": {"text": text}}))
        return out

    assert given("a/te.txt") == "outputs/tiny-te"
    assert graph.default_out("tiny", f"{root}/b/../a/te.txt") == "outputs/tiny-te"
    for other in ("b/te.txt", "a/te.jsonl", "te.txt"):
        with pytest.raises(ParameterError, match="outputs/tiny-te was made of text"):
            graph.wanted("book", {"TEXT": other, "ONLY": "00_teacher"})
    asked = {"TEXT": "b/te.txt", "OUT": "outputs/tiny-te"}
    assert graph.wanted("book", asked).out == "outputs/tiny-te"  # the remedy helps
    (root / "outputs/tiny-te" / graph.CONFIG).write_text("")  # of a power cut
    assert graph.default_out("tiny", "te.txt") == "outputs/tiny-te"


def test_make_passes_on_what_was_typed_as_it_was_typed(tmp_path):
    """Whatever make, or the shell, would make of it."""
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    write(python := tmp_path / ".venv/bin/python", "#!/bin/sh\nprintf '%s|' \"$@\"\n")
    python.chmod(0o755)
    (tmp_path / ".venv/made").touch()
    odd = ODD + " `touch ran` $(shell touch ran)"

    def said(*words: str) -> list[str]:
        return subprocess.check_output(["make", *words], cwd=tmp_path, text=True).split("|")

    assert f"TEXT={odd}" in said("book", f"TEXT={odd}")
    assert {f"MODEL={odd}", "OUT="} <= {*said("export", f"MODEL={odd}")}
    assert said("publish", "NAME=it's", "PROFILE=small")[3:5] == ["outputs/small", "it's"]
    assert said("clean-cache", f"OUT={odd}")[3] == odd and not (tmp_path / "ran").exists()
