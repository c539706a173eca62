"""What goes on is told from files and living processes; a GPU belongs to one run at a time."""

import functools
import json
import multiprocessing
import os
import select
import sys
import time
from multiprocessing.process import BaseProcess
from types import SimpleNamespace

import pytest

from tdbook.runs import heartbeat
from tdbook.workflow import execute, run_pages, status
from tdlib.files import write_whole as write
from tests.helpers import cases

A, B, C, D, E, F = (f"01_distill-{letter}" for letter in "abcdef")


def record(out, run: str, **more) -> None:
    content = {"run": run, "notebook": "01_distill", "profile": "night", "code": "other"}
    content |= {"changed": [], "parameters": {}, "finding": f"{run} keeps 4.5.", "seconds": 60.0}
    content |= {"models": {}, "started": "2026-11-24T03:00:00+00:00"}
    write(out / "results" / f"{run}.json", json.dumps(content | more))


def session(out, **more) -> None:
    own = {"began": 1000.0, "ended": None, "code": None, "targets": [], "command": "make book"}
    own |= {"price": None, **heartbeat.who()}
    write(out / status.SESSIONS, json.dumps([*status.sessions(out), own | more]))


def words(out) -> dict[str, str]:
    return {one["run"]: heartbeat.word(one) for one in status.rows(out)}


def test_every_run_has_the_word_that_is_true_of_it(tmp_path):
    now, say = time.time(), functools.partial(heartbeat.write_state, tmp_path)
    session(tmp_path, targets=[A, B, C, D, E], began=now)
    say(B, "running", step=3, steps=9, left_s=60.0)
    say(C, "failed", error=["ValueError: no"])
    say(D, "failed", error=["old"], heartbeat=now - 60)
    record(tmp_path, E)
    say(E, "done")
    write(tmp_path / ".done" / E, "")
    say(F, "running", boot="another")
    found = {A: "queued", B: "running", C: "failed", D: "queued", E: "stale", F: "lost"}
    assert words(tmp_path) == found
    session(tmp_path, targets=[*found][:5], began=now, pid_started=1)  # whoever made it is gone
    assert words(tmp_path) == found | {A: "not run", D: "failed"}
    said = status.text(tmp_path)
    assert "step 3 of 9 · about 60 s left" in said and "failed       " in said
    assert "its process is gone: the same command goes on" in said
    assert f"REDO={E} repeats it" in said


def test_the_morning_report_says_what_failed_what_came_out_and_what_it_cost(tmp_path):
    session(tmp_path, began=1000.0, ended=4600.0, code=1, price=4.5, command="make book PROFILE=b")
    record(tmp_path, A, models={"50m": {"loss": 3.21, "parameters": 1}})
    heartbeat.write_state(tmp_path, A, "done")
    lines = ["Traceback", "torch.OutOfMemoryError: CUDA out of memory"]
    heartbeat.write_state(tmp_path, B, "failed", error=lines, step=120, steps=400)
    run_pages.index(tmp_path)
    said = (tmp_path / "morning.md").read_text("utf8")
    for text in cases(__file__)["morning"]:
        assert text in said, text
    page = (tmp_path / "index.html").read_text("utf8")
    assert "What needs a look" in page and lines[1] in page and "4.50 at 4.5 an hour" in page


def test_hours_are_those_of_all_sessions_and_a_killed_one_ended_with_the_last_heartbeat(tmp_path):
    session(tmp_path, began=1000.0, ended=4600.0)
    session(tmp_path, began=10_000.0, pid_started=1)
    heartbeat.write_state(tmp_path, A, "running", pid_started=1, heartbeat=11_800.0)
    assert status.hours(tmp_path) == pytest.approx(1.5)
    session(tmp_path, began=time.time() - 3600)  # lives
    assert status.hours(tmp_path) == pytest.approx(2.5, abs=0.01)
    with status.session(tmp_path, [A], "make book", 3.0) as own:
        assert status.live(tmp_path)["targets"] == [A]
        own["code"] = 1
    *_, last = status.sessions(tmp_path)
    assert last["code"] == 1 and last["ended"] >= last["began"] and status.live(tmp_path) is None


def holder(out: int, count: int) -> None:
    sys.stdout = os.fdopen(out, "w", buffering=1)
    print(execute.take_gpus("auto", count))
    time.sleep(60)


@pytest.fixture
def take(tmp_path, monkeypatch):
    """Starts a process that takes some of two GPUs, and looks often; ends all of them."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    often = {"sleep": lambda seconds: time.sleep(seconds / 4)}
    monkeypatch.setattr(execute, "time", SimpleNamespace(**vars(time) | often))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,GPU-b")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    started = []

    def start(count: int = 1) -> BaseProcess:
        read, write = os.pipe()
        process = multiprocessing.get_context("fork").Process(target=holder, args=(write, count))
        process.start()
        os.close(write)
        process.out = os.fdopen(read)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def said(process: BaseProcess) -> str:
    return process.out.readline().strip()


def test_two_runs_never_share_a_gpu_a_killed_one_gives_it_back_and_one_of_two_waits_for_both(take):
    first, second = take(), take()
    names = {said(first), said(second)}
    assert names == {"0", "GPU-b"}
    third = take()
    assert said(third) == "waits for a free GPU"
    first.kill()
    assert said(third) in names
    both = take(2)
    assert said(both) == "waits for a free GPU"
    third.kill(), third.join()
    other = take()  # what the two wait for is not held by them
    assert said(other) in names
    second.kill()
    assert select.select([both.out], [], [], 1)[0] == []  # one is not enough
    other.kill()
    assert said(both) == "0,GPU-b"


def test_two_runs_share_a_gpu_where_that_is_told(take, monkeypatch):
    monkeypatch.setenv("GPU_RUNS", "2")
    assert sorted(said(take()) for _ in range(4)) == ["0", "0", "GPU-b", "GPU-b"]
    monkeypatch.setenv("GPU_RUNS", "none")
    with pytest.raises(ValueError, match="GPU_RUNS=none must be a number"):
        execute.take_gpus("auto", 1)


def test_nothing_is_taken_on_a_cpu_or_where_slurm_gives_them_out(take, monkeypatch):
    with pytest.raises(ValueError, match="processes = 3, and this machine has 2 GPUs"):
        execute.take_gpus("auto", 3)
    assert execute.take_gpus("cpu", 1) == "" and os.environ["CUDA_VISIBLE_DEVICES"] == "0,GPU-b"
    for name, value in (("SLURM_JOB_ID", "7"), ("CUDA_VISIBLE_DEVICES", "")):
        with monkeypatch.context() as patched:
            patched.setenv(name, value)
            assert execute.take_gpus("auto", 1) == ""
