"""Several processes against one: the same weights, one writer, and nothing left when one is killed.

python -m …test_worker FOLDER PROCESSES   a notebook's process, for tests to end
"""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
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
PROCESSES = 2
ROOT = Path(__file__).parents[3]


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


ALONG = dict(micro_windows=1, activation_checkpointing=True)
CASES = {
    "cross-entropy alone": dict(recipe=quick(ce_weight=1.0)),
    "an adapter": dict(recipe=quick(of=17, ce_weight=0.0), adapters=True, rows=np.arange(3, 20)),
    "five windows, three and two": dict(recipe=quick(5), mask=True),
    "one window, one and none": dict(recipe=quick(1), mask=True),
    "one at a time": dict(recipe=quick(8, **ALONG), mask=True),
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
    case, log = CASES[name], None
    student, windows = tiny(adapters=case.get("adapters")), some_windows(case.get("mask"))

    def progress(step, *_):
        if step == stop:
            raise Stopped

    teacher = wider()
    if case.get("cached"):
        teacher = cache.Cache(folder / "cache", teacher, windows, temperature=2.0, draws=5)
    how = dict(rows=case.get("rows"), team=team, progress=progress, evaluations=10)
    how["folder"] = folder / ("kept" if team.rank == 0 else f"kept by {team.rank}")
    try:
        log = train.fit(student, windows, case["recipe"], teacher=teacher, **how)
    except Stopped:
        pass
    if case.get("cached"):
        teacher.sync()
    return {name: w.detach() for name, w in student.state_dict().items()}, log


def train_all(rank: int, place: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{place}/meet", rank=rank, world_size=PROCESSES)
    for name in CASES:
        folder = place / name
        if name == "stopped in one" and rank:  # whose checkpoint lies where process 0 keeps its
            (folder / "kept by 1").symlink_to(folder / "kept")
        found = fit_case(name, Team(rank, PROCESSES), folder, STOP * (name == "stopped in two"))
        torch.save(found, place / f"{name} {rank}.pt")
        dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Where two processes have trained every case, and left what came of it."""
    place = tmp_path_factory.mktemp("team")
    for name in CASES:
        (place / name).mkdir()
    fit_case("stopped in one", ALONE, place / "stopped in one", stop=STOP)
    torch.multiprocessing.spawn(train_all, (place,), PROCESSES)
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
        row, other = ({k: v for k, v in x.items() if "per_sec" not in k} for x in (row, other))
        assert row == pytest.approx(other, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_to_the_weights_of_one_and_hold_the_same_bits(name, place, tmp_path):
    (mine, log), (other, _) = (read(place, name, rank) for rank in range(PROCESSES))
    assert all(torch.equal(mine[key], other[key]) for key in mine)
    wanted = fit_case(name, ALONE, tmp_path)
    if name == "stopped in two":  # one process ends what two began
        state = torch.load(place / name / "kept" / "state.pt", weights_only=True)
        assert state["step"] == STOP - 1
        mine, log = fit_case(name, ALONE, place / name)
    assert wanted[1][-1]["step"] >= 10
    assert_the_same((mine, log), wanted, name)
    if name == "clipped and skipped":
        assert 2 <= wanted[1][-1]["train/skipped"] <= 8
    if name == "cached":  # each process kept the targets of its windows
        how = dict(temperature=2.0, draws=5)
        targets = cache.Cache(place / name / "cache", wider(), some_windows(), **how)
        assert targets.there(np.arange(WINDOWS)).all()
    if name != "stopped in one":  # process 0 alone writes
        assert (place / name / "kept" / "state.pt").exists()
        assert not (place / name / "kept by 1").exists()


SHARES = [(7, 2, [4, 3]), (8, 3, [3, 3, 2]), (1, 3, [1, 0, 0]), (5, 1, [5])]


@pytest.mark.parametrize("windows, size, shares", SHARES)
def test_each_window_of_a_step_is_one_processs(windows, size, shares):
    rows = np.arange(windows) * 10
    each = [list(Team(rank, size).micro_batches(rows, 2)) for rank in range(size)]
    assert [sum(map(len, micros)) for micros in each] == shares
    assert np.concatenate([np.concatenate(micros) for micros in each]).tolist() == rows.tolist()
    assert all(len(micros) >= 1 and max(map(len, micros)) <= 2 for micros in each)


# the whole way: notebook and workers


def look(tokens: data.Tokens, device: str):
    return evaluate.on_subset(tokens.val, 8, device)


def look_and_end_badly(tokens: data.Tokens, device: str):
    """As gloo does now and then when the processes of a training take it down."""
    torch.distributed.destroy_process_group = os.abort
    return look(tokens, device)


def look_in_vain(tokens: data.Tokens, device: str):
    raise TypeError("there is nothing to look at")


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


def start(place: Path, count: int) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """A notebook's process whose workers have made their first steps; it and all below it."""
    some_tokens(place / "tokens", MANY)
    command = [sys.executable, "-m", "tests.tdbook.training.test_worker", place, str(count)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip().isdigit()
    below = psutil.Process(process.pid).children(recursive=True)
    assert len(below) >= count
    return process, below


def assert_ended(processes: list[psutil.Process], seconds: float = 5) -> None:
    assert not psutil.wait_procs(processes, seconds)[1]


def workers() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]


def test_a_training_by_workers_is_that_of_this_process(tmp_path):
    """Also where a process crashes once all is done, and where no row may be kept."""
    tokens, kept = some_tokens(tmp_path / "tokens"), tmp_path / "kept"
    rows, recipe = np.arange(2, 22), quick(ce_weight=0.0, epochs=2.0)
    alone, student, told, recorded = tiny(adapters=True), tiny(adapters=True), [], []
    how = dict(temperature=2.0, draws=5)
    with cache.Cache(tmp_path / "cache", wider(), tokens.train, **how) as targets:
        look_at = look(tokens, "cpu")
        wanted = train.fit(
            alone, tokens.train, recipe, evaluate=look_at, teacher=targets, rows=rows
        )
    (tmp_path / "cache" / "valid.bin").write_bytes(bytes(WINDOWS))
    targets = cache.Cache(tmp_path / "cache", wider(), tokens.train, read_only=True, **how)
    how = dict(record=recorded.append, progress=lambda *x: told.append(x), folder=kept)
    how |= dict(processes=PROCESSES, evaluate=look_and_end_badly, teacher=targets, rows=rows)
    log = worker.fit(student, tokens, recipe, **how)
    assert not targets.valid.any()
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
    assert not workers()


def test_a_worker_that_is_killed_or_fails_ends_all_and_is_named_in_a_line(tmp_path, capsys):
    killed = []

    def kill(step, *_):
        if not killed:
            killed.append(max(workers(), key=lambda process: process.pid))
            killed[0].kill()

    tokens, recipe = some_tokens(tmp_path / "tokens", MANY), replace(LONG, ce_weight=1.0)
    how = dict(processes=PROCESSES, folder=tmp_path / "kept")
    line = "^process 1 terminated with signal SIGKILL; where memory is short"
    with pytest.raises(RuntimeError, match=line):
        worker.fit(tiny(), tokens, recipe, progress=kill, **how)
    line = "^Process 0 terminated .*: TypeError: there is nothing to look at$"
    with pytest.raises(RuntimeError, match=line):
        worker.fit(tiny(), tokens, recipe, evaluate=look_in_vain, **how)
    assert re.search("Traceback.*in _train.*TypeError: there is", capsys.readouterr().out, re.S)
    assert not workers() and not (tmp_path / "kept" / "workers").exists()


def test_sigterm_keeps_the_state_leaves_no_process_and_one_process_goes_on(tmp_path):
    process, below = start(tmp_path, PROCESSES)
    for one in [*below, process]:  # a cluster tells the workers too
        one.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == -signal.SIGTERM
    assert_ended(below)
    step = torch.load(tmp_path / "kept" / "state.pt", weights_only=True)["step"]
    assert f"stopped after step {step} of 200" in said and 0 < step < 200
    assert not (tmp_path / "kept" / "workers").exists()
    found, wanted = tiny(5), tiny()
    windows = token_files.open_tokens(tmp_path / "tokens").train
    train.fit(found, windows, LONG, teacher=wider(), folder=tmp_path / "kept")
    train.fit(wanted, windows, LONG, teacher=wider())
    assert distance(found.state_dict(), wanted.state_dict()) < 1e-4  # after 200 steps


def test_a_notebook_that_is_killed_takes_its_workers_along(tmp_path):
    process, below = start(tmp_path, 1)
    process.kill()
    process.communicate()
    assert_ended(below)


def test_more_processes_than_gpus_are_refused(tmp_path):
    with pytest.raises(ValueError, match="processes is 99, torch sees "):
        how = dict(processes=99, device="cuda", folder=tmp_path / "kept")
        worker.fit(tiny(), some_tokens(tmp_path / "tokens"), quick(), **how)


if __name__ == "__main__":
    notebook(Path(sys.argv[1]), int(sys.argv[2]))
