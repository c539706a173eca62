"""Several processes against one: the same weights, one writer, and nothing left when one is killed.

python -m …test_worker team RANK FOLDER   one of two processes that train all CASES
python -m …test_worker notebook FOLDER N  a notebook's process, for tests to end
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tdbook.corpus import token_files
from tdbook.training import cache, worker
from tdlib import data, evaluate, lora, train
from tdlib.model import Llama
from tdlib.team import ALONE, Team
from tdlib.train import Recipe
from tests.helpers import distance, tiny_model

VOCAB, T, WINDOWS = 61, 12, 24
STARTS_S = 120  # torch is imported by four processes, on a machine that does other things too
PROCESSES = 2


def tiny(seed=0, adapters=False, **change) -> Llama:
    model = tiny_model(seed, VOCAB, T, 4.0, **change)
    return lora.attach(model, 4, 2.0) if adapters else model


def wider() -> Llama:
    return tiny(9, dim=48, heads=4, kv_heads=2, tied=False)


def some_ids(windows=WINDOWS) -> np.ndarray:
    return np.random.default_rng(3).integers(0, VOCAB, windows * T + 1).astype("<u4")


def some_windows(mask=False) -> data.Windows:
    """With a mask from hardly a target to nearly all, window by window; one has none at all."""
    ids = some_ids()
    if not mask:
        return data.Windows(ids, T)
    share = np.repeat(np.linspace(0.05, 0.95, WINDOWS + 1), T)[: len(ids)]
    mask = (np.random.default_rng(4).random(len(ids)) < share).astype("u1")
    mask[5 * T + 1 : 6 * T + 1] = 0
    return data.Windows(ids, T, mask)


def quick(windows=4, of=WINDOWS, **change) -> Recipe:
    """Ten steps, of four windows each."""
    options = dict(learning_rate=3e-3, epochs=10 * windows / of, batch_tokens=windows * T)
    options |= dict(micro_windows=2, warmup_share=0.2, checkpoint_minutes=1e-9)
    return Recipe(**options | change)


CASES = {
    "cross-entropy alone": dict(recipe=quick(ce_weight=1.0)),
    "an adapter": dict(recipe=quick(of=17, ce_weight=0.0), adapters=True, rows=np.arange(3, 20)),
    "five windows, three and two": dict(recipe=quick(5), mask=True),
    "one window, one and none": dict(recipe=quick(1), mask=True),
    "one at a time": dict(
        recipe=quick(8, micro_windows=1, activation_checkpointing=True), mask=True
    ),
    "clipped and skipped": dict(recipe=quick(clip=0.1, spike=-0.05, max_skipped=9), mask=True),
    "cached": dict(recipe=quick(micro_windows=1, epochs=2.0), cached=True),
    "stopped in one": dict(recipe=quick()),
    "stopped in two": dict(recipe=quick()),
}
STOP = 6  # the step after whose update, and before whose checkpoint, a training is stopped


class Stopped(Exception):
    pass


def fit_case(name: str, team: Team, folder: Path, stop=0) -> tuple[dict, list[dict]]:
    """Weights and log of a case; its checkpoint, and what it cached, are in the folder."""
    case = CASES[name]
    student, windows = tiny(adapters=case.get("adapters")), some_windows(case.get("mask"))

    def progress(step, *_):
        if step == stop:
            raise Stopped

    teacher = wider()
    if case.get("cached"):
        teacher = cache.Cache(folder / "cache", teacher, windows, temperature=2.0, draws=5)
    log = None
    try:
        log = train.fit(
            student, windows, case["recipe"], teacher=teacher, rows=case.get("rows"), team=team,
            folder=folder / ("kept" if team.rank == 0 else f"kept by {team.rank}"),
            progress=progress, evaluations=10,
        )  # fmt: skip
    except Stopped:
        pass
    if case.get("cached"):
        teacher.sync()
    return {name: w.detach() for name, w in student.state_dict().items()}, log


def team(rank: int, place: Path) -> None:
    dist.init_process_group("gloo", f"file://{place}/meet", rank=rank, world_size=PROCESSES)
    for name in CASES:
        folder = place / name
        if name == "stopped in one" and rank:  # whose checkpoint lies where process 0 keeps its
            (folder / "kept by 1").symlink_to(folder / "kept")
        found = fit_case(name, Team(rank, PROCESSES), folder, STOP * (name == "stopped in two"))
        torch.save(found, place / f"{name} {rank}.pt")
        dist.barrier()
    dist.destroy_process_group()
    if rank == 1:  # and as a worker whose job cannot be done
        os.environ |= {worker.LAUNCHER: str(os.getppid()), "RANK": "1", "WORLD_SIZE": "2"}
        job = place / "failing"
        job.mkdir()
        (job / "job.json").write_text(json.dumps({"device": "cpu", "recipe": {"steps": 3}}))
        assert worker._work(job) == 1


def again(*arguments: str | Path, stdout=None) -> subprocess.Popen:
    """This file, as a program."""
    command = [sys.executable, "-m", "tests.tdbook.training.test_worker", *arguments]
    return subprocess.Popen(command, cwd=worker.ROOT, stdout=stdout, text=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Where two processes have trained every case, and left what came of it."""
    place = tmp_path_factory.mktemp("team")
    for name in CASES:
        (place / name).mkdir()
    fit_case("stopped in one", ALONE, place / "stopped in one", stop=STOP)
    started = [again("team", str(rank), place) for rank in range(PROCESSES)]
    assert [one.wait(STARTS_S) for one in started] == [0] * PROCESSES
    return place


def read(place: Path, name: str, rank: int = 0) -> tuple[dict, list[dict]]:
    return torch.load(place / f"{name} {rank}.pt", weights_only=True)


def assert_the_same(found, wanted, name) -> None:
    start = tiny(adapters=CASES[name].get("adapters")).state_dict()
    assert distance(found[0], wanted[0]) < 1e-5
    # of what they moved by; Adam divides by a gradient's own size, however small, so rounding shows
    # more: 2e-5 at most between micro-batches of 1 to 5 windows in one process (measured)
    moved = [{key: w[key] - start[key] for key in start} for w in (found[0], wanted[0])]
    assert distance(*moved) < 1e-4
    for row, other in zip(found[1], wanted[1], strict=True):
        row, other = (
            {k: v for k, v in r.items() if k != "train/tokens_per_sec"} for r in (row, other)
        )
        assert row == pytest.approx(other, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", [name for name in CASES if name != "stopped in two"])
def test_two_processes_train_to_the_weights_of_one(name, place, tmp_path):
    wanted = fit_case(name, ALONE, tmp_path)
    assert wanted[1][-1]["step"] >= 10
    assert_the_same(read(place, name), wanted, name)
    if name == "clipped and skipped":
        assert 2 <= wanted[1][-1]["train/skipped"] <= 8
    if name != "stopped in one":  # process 0 alone writes
        assert (place / name / "kept" / "state.pt").exists()
        assert not (place / name / "kept by 1").exists()


@pytest.mark.parametrize("name", CASES)
def test_all_processes_hold_the_same_bits(name, place):
    (mine, _), (other, _) = (read(place, name, rank) for rank in range(PROCESSES))
    assert all(torch.equal(mine[key], other[key]) for key in mine)


def test_what_two_processes_began_one_ends(place, tmp_path):
    name = "stopped in two"
    assert torch.load(place / name / "kept" / "state.pt", weights_only=True)["step"] == STOP - 1
    wanted = fit_case(name, ALONE, tmp_path)
    assert_the_same(fit_case(name, ALONE, place / name), wanted, name)


def test_each_process_keeps_the_targets_of_its_windows(place):
    windows = some_windows()
    made = cache.Cache(place / "cached" / "cache", wider(), windows, temperature=2.0, draws=5)
    assert made.there(np.arange(WINDOWS)).all()


@pytest.mark.parametrize("windows, size, shares", [
    (7, 2, [4, 3]), (8, 3, [3, 3, 2]), (1, 3, [1, 0, 0]), (5, 1, [5]),
])  # fmt: skip
def test_each_window_of_a_step_is_one_processs(windows, size, shares):
    rows = np.arange(windows) * 10
    each = [list(Team(rank, size).micro_batches(rows, 2)) for rank in range(size)]
    assert [sum(map(len, micros)) for micros in each] == shares
    assert np.concatenate([np.concatenate(micros) for micros in each]).tolist() == rows.tolist()
    assert all(len(micros) >= 1 and max(map(len, micros)) <= 2 for micros in each)


# the whole way: notebook, launcher, workers


def look(tokens: data.Tokens, device: str):
    return evaluate.on_subset(tokens.val, 8, device)


def look_and_end_badly(tokens: data.Tokens, device: str):
    """As gloo does now and then when the processes of a training take it down."""
    torch.distributed.destroy_process_group = os.abort
    return look(tokens, device)


def some_tokens(folder: Path, windows=WINDOWS) -> data.Tokens:
    folder.mkdir()
    meta = dict(block_size=T, vocab_size=VOCAB, dtype="uint32")
    for split in ("train", "val"):
        ids = some_ids(windows)
        ids.tofile(folder / f"{split}.bin")
        meta[f"{split}_tokens"] = len(ids)
    (folder / "meta.json").write_text(json.dumps(meta))
    return token_files.open_tokens(folder)


LONG, MANY = quick(epochs=1.0, checkpoint_minutes=60.0), 800  # windows: 200 steps


def notebook(place: Path, count: int) -> None:
    tokens = token_files.open_tokens(place / "tokens")
    how = dict(teacher=wider(), progress=lambda step, *_: print(step, flush=True))
    worker.fit(tiny(), tokens, LONG, processes=count, folder=place / "kept", **how)


def start(place: Path, count: int) -> subprocess.Popen:
    """A notebook's process, when its workers have made their first steps."""
    some_tokens(place / "tokens", MANY)
    process = again("notebook", place, str(count), stdout=subprocess.PIPE)
    assert process.stdout.readline().strip().isdigit()
    assert len(processes(place)) == 2 + count
    return process


def processes(place: Path) -> dict[int, str]:
    """All whose command names a folder: pid → rank, "" for notebook and launcher."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if str(place) in (path / "cmdline").read_text():
                environment = (path / "environ").read_text().split("\0")
                ranks = [x.removeprefix("RANK=") for x in environment if x.startswith("RANK=")]
                found[int(path.name)] = "".join(ranks)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def assert_none_is_left(place: Path, seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while processes(place) and time.monotonic() < end:
        time.sleep(0.05)
    assert not processes(place)


def test_a_training_by_workers_is_that_of_this_process(monkeypatch, tmp_path):
    """Also where a process crashes once all is done."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    tokens, kept = some_tokens(tmp_path / "tokens"), tmp_path / "kept"
    rows, recipe = np.arange(2, 22), quick(ce_weight=0.0, epochs=2.0)
    alone, student, told, recorded = tiny(adapters=True), tiny(adapters=True), [], []
    targets = cache.Cache(tmp_path / "cache", wider(), tokens.train, temperature=2.0, draws=5)
    how = dict(teacher=targets, rows=rows)
    wanted = train.fit(alone, tokens.train, recipe, evaluate=look(tokens, "cpu"), **how)
    targets.sync()
    how |= dict(record=recorded.append, progress=lambda *x: told.append(x), folder=kept)
    how |= dict(processes=PROCESSES, evaluate=look_and_end_badly)
    log = worker.fit(student, tokens, recipe, **how)
    weights = [dict(net.named_parameters()) for net in (student, alone)]
    assert distance(*weights) < 1e-5
    assert distance(*({n: w[n] for n in w if "lora" in n} for w in weights)) < 1e-4
    assert [row["step"] for row in log] == [row["step"] for row in wanted]
    for row, other in zip(log, wanted, strict=True):
        assert row["val/loss"] == pytest.approx(other["val/loss"], rel=1e-5)
    assert [row["step"] for row in recorded] == list(range(11))  # every step, and before the first
    assert all(row["train/peak_memory_mib"] > 50 for row in recorded)
    assert told[-1][:2] == (10, 10)
    assert {path.name for path in kept.iterdir()} == {"state.pt", "epoch-1.safetensors"}
    assert_none_is_left(tmp_path)


def test_a_worker_that_is_killed_ends_all_and_is_named(tmp_path):
    killed = []

    def kill(step, *_):
        pids = {rank: pid for pid, rank in processes(tmp_path / "kept").items()}
        killed.append(killed or os.kill(pids["1"], signal.SIGKILL))

    tokens, recipe = some_tokens(tmp_path / "tokens", MANY), replace(LONG, ce_weight=1.0)
    how = dict(processes=PROCESSES, folder=tmp_path / "kept", progress=kill)
    with pytest.raises(RuntimeError, match="process 1 of 2 failed: signal SIGKILL; "):
        worker.fit(tiny(), tokens, recipe, **how)
    assert_none_is_left(tmp_path)


FAILED = {  # rank, exit code, seconds after the error; of all, the one that was first is named
    "an error": ([[0, -15, 0], [1, 1, 0]], "process 1 of 2 failed: TypeError: .*'steps'$"),
    "a kill before it": ([[1, 1, 0], [0, -9, 10]], "process 0 of 2 failed: signal SIGKILL; where"),
    "none": ([], "^their launcher ended with exit code 7$"),
}


@pytest.mark.parametrize("why", FAILED)
def test_a_workers_error_is_the_notebooks_with_its_traceback_on_the_page(place, why, capsys):
    (failed, wanted), job = FAILED[why], place / "failing"
    when = json.loads((job / "error-1.json").read_text())[0]
    failed = [(rank, code, when + later) for rank, code, later in failed]
    (job / "failed.json").write_text(json.dumps(failed))
    assert re.search(wanted, worker._why(job, 2, 7))
    trace = capsys.readouterr().out
    assert trace.count("Traceback") == trace.count("in _train") == (why == "an error")


def test_sigterm_keeps_the_state_leaves_no_process_and_one_process_goes_on(tmp_path):
    process, windows = (
        start(tmp_path, PROCESSES),
        token_files.open_tokens(tmp_path / "tokens").train,
    )
    launcher = [pid for pid, rank in processes(tmp_path / "kept").items() if not rank]
    for pid in [*launcher, process.pid]:  # a cluster tells the launcher too
        os.kill(pid, signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == -signal.SIGTERM
    assert_none_is_left(tmp_path, 0)
    step = torch.load(tmp_path / "kept" / "state.pt", weights_only=True)["step"]
    assert f"stopped after step {step} of 200" in said and 0 < step < 200
    assert not (tmp_path / "kept" / "workers").exists()
    found, wanted = tiny(5), tiny()
    train.fit(found, windows, LONG, teacher=wider(), folder=tmp_path / "kept")
    train.fit(wanted, windows, LONG, teacher=wider())
    assert distance(found.state_dict(), wanted.state_dict()) < 1e-4  # after 200 steps


LAUNCHER = """#!{python}
import json, os, signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM}})
open("{place}/started", "w").close()
if not os.fork():
    signal.alarm(20)
    time.sleep(0.5)
    with open(sys.argv[3] + "/told.jsonl", "a") as told:
        print(json.dumps(["pid", os.getpid()]), file=told)
    signal.sigwait({{signal.SIGTERM}})
    open("{place}/stopped", "w").close()
    os._exit(0)
os.wait()
"""


def test_sigterm_before_a_worker_has_told_its_number_is_passed_on_once_it_has(
    tmp_path, monkeypatch
):
    """The launcher is deaf to it: workers would be ended in mid-step."""
    launcher, job = tmp_path / "python", tmp_path / "job"
    launcher.write_text(LAUNCHER.format(python=sys.executable, place=tmp_path))
    launcher.chmod(0o755)
    job.mkdir()
    monkeypatch.setattr(worker.sys, "executable", str(launcher))

    def terminate():
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    def heard(*_):
        raise InterruptedError

    before = signal.signal(signal.SIGTERM, heard)
    try:
        threading.Thread(target=terminate, daemon=True).start()
        with pytest.raises(InterruptedError):
            worker._run(job, 2, lambda row: None, lambda *_: None)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (tmp_path / "stopped").exists()


def test_a_notebook_that_is_killed_takes_launcher_and_workers_along(tmp_path):
    process = start(tmp_path, 1)
    process.kill()
    process.communicate()
    assert_none_is_left(tmp_path)


def test_more_processes_than_gpus_are_refused(tmp_path):
    with pytest.raises(ValueError, match="processes is 99, torch sees "):
        how = dict(processes=99, device="cuda", folder=tmp_path / "kept")
        worker.fit(tiny(), some_tokens(tmp_path / "tokens"), quick(), **how)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["team", rank, place]:
            team(int(rank), Path(place))
        case ["notebook", place, count]:
            notebook(Path(place), int(count))
