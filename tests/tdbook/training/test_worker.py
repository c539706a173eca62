"""Several processes against one: the same weights, one writer, nothing left where one is killed."""

import multiprocessing
import os
import re
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from tdbook.corpus import token_files
from tdbook.training import cache, worker
from tdlib import data, evaluate, lora, quantize, train
from tdlib.model import Llama
from tdlib.train import Recipe
from tests import helpers
from tests.helpers import Stopped, distance, stop_at, token_folder
from tests.tdlib import test_train
from tests.tdlib.test_train import VOCAB, T, wider

WINDOWS, PROCESSES = 24, 2


@pytest.fixture(autouse=True)
def quick_start(request, monkeypatch):
    """Workers forked from this process, but where a test is named after the spawning of them: a
    fresh Python imports torch for three seconds. Where torch has seen a GPU none can be forked."""
    if not torch.cuda.is_available() and "spawned" not in request.node.name:
        start = partial(worker.start_processes, start_method="fork")
        monkeypatch.setattr(worker, "start_processes", start)


def tiny(seed=0, adapters=False, **change) -> Llama:
    model = test_train.tiny(seed, **change)
    return lora.attach(model, 4, 2.0) if adapters else model


def quick(windows=4, of=WINDOWS, **change) -> Recipe:
    """Ten steps, of four windows each."""
    return helpers.quick(**dict(epochs=10 * windows / of, batch_tokens=windows * T) | change)


def look(tokens: data.Tokens, device: str):
    return evaluate.on_subset(tokens.val, 8, device)


def look_and_end_badly(tokens: data.Tokens, device: str):
    """As gloo does now and then when the processes of a training take it down."""
    torch.distributed.destroy_process_group = lambda: os.kill(os.getpid(), signal.SIGKILL)
    return look(tokens, device)


def look_in_vain(tokens: data.Tokens, device: str):
    raise TypeError("there is nothing to look at")


def some_tokens(folder: Path, windows=WINDOWS) -> data.Tokens:
    ids = np.random.default_rng(3).integers(0, VOCAB, windows * T + 1)
    return token_files.open_tokens(token_folder(folder, ids, ids, block_size=T, vocab_size=VOCAB))


LONG, MANY = quick(epochs=1.0, checkpoint_minutes=60.0), 640  # windows: 160 steps


def notebook(place: Path, count: int) -> None:
    sys.stdout = open(place / "said.txt", "w", buffering=1)
    tokens = token_files.open_tokens(place / "tokens")
    how = dict(teacher=wider(), progress=lambda step, *_: print(step, flush=True), evaluate=look)
    worker.fit(tiny(), tokens, LONG, processes=count, folder=place / "kept", **how)


def start(place: Path, count: int) -> tuple[multiprocessing.Process, list[psutil.Process]]:
    """A notebook's process whose workers have made their first steps; it and all below it."""
    some_tokens(place / "tokens", MANY)
    process = multiprocessing.get_context("fork").Process(target=notebook, args=(place, count))
    process.start()
    said, until = place / "said.txt", time.monotonic() + 60
    while not (said.is_file() and said.stat().st_size) and time.monotonic() < until:
        time.sleep(0.01)
    assert said.read_text().split("\n")[0].isdigit()
    below = psutil.Process(process.pid).children(recursive=True)
    assert len(below) >= count
    return process, below


def assert_ended(process: multiprocessing.Process, below: list[psutil.Process], code: int) -> None:
    process.join(60)
    assert process.exitcode == -code and not psutil.wait_procs(below, 5)[1]


def assert_the_same(student: Llama, log: list[dict], other: Llama, wanted: list[dict]) -> None:
    start = tiny(adapters=bool(lora.adapters(other))).state_dict()
    weights = [net.state_dict() for net in (student, other)]
    assert distance(*weights) < 1e-5
    # of what they moved by; Adam divides by a gradient's own size, however small, so rounding shows
    # more: 2e-5 at most between micro-batches of 1 to 5 windows in one process (measured)
    assert distance(*({key: w[key] - start[key] for key in start} for w in weights)) < 1e-4
    for rows in zip(log, wanted, strict=True):
        row, same = ({k: v for k, v in x.items() if "per_sec" not in k} for x in rows)
        assert row == pytest.approx(same, rel=1e-5, abs=1e-7)


SKIPS = dict(clip=0.1, spike=0.02, max_skipped=9, activation_checkpointing=True)
RECIPES = {
    "one window a step, so none for the other; clipped and skipped": quick(1, **SKIPS),
    "three windows and two, by targets that each keeps; begun in one": quick(5, micro_windows=1),
}


@pytest.mark.parametrize("scales_alone, share", [(False, 0.5), (True, 1.0)])
def test_a_rounded_student_trains_in_two_spawned_processes_as_in_one(scales_alone, share, tmp_path):
    """Its parts are not pickled: each worker attaches its own. Sums of another order flip few."""
    tokens, recipe = some_tokens(tmp_path / "tokens"), quick(four_bit_share=share, ce_weight=0)
    nets = [tiny(mlp_dim=64) for _ in range(2)]
    for net in nets:
        quantize.attach(net, scales_alone)
    wanted = train.fit(nets[0], tokens.train, recipe, teacher=wider())
    how = dict(teacher=wider(), folder=tmp_path / "kept")
    log = worker.fit(nets[1], tokens, recipe, processes=PROCESSES, **how)
    assert log[-1]["train/kl"] == pytest.approx(wanted[-1]["train/kl"], rel=1e-3)
    alone, both = (quantize.merge(net).state_dict() for net in nets)
    assert distance(both, alone) < 0.02


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_train_to_the_weights_of_one(name, tmp_path):
    tokens, recipe, begun = some_tokens(tmp_path / "tokens"), RECIPES[name], "begun" in name
    alone, student, folder, teachers = tiny(), tiny(), tmp_path / "kept", [wider()] * 2
    if begun:
        drawn, places = dict(temperature=2.0, draws=5), (tmp_path / "one", tmp_path / "two")
        teachers = [cache.Cache(place, wider(), tokens.train, **drawn) for place in places]
    wanted = train.fit(alone, tokens.train, recipe, teacher=teachers[0])
    how = dict(teacher=teachers[1], folder=folder)
    if begun:
        with pytest.raises(Stopped):
            train.fit(tiny(), tokens.train, recipe, progress=stop_at(4), **how)
        assert torch.load(folder / "state.pt", weights_only=True)["step"] == 3
    log = worker.fit(student, tokens, recipe, processes=PROCESSES, **how)
    assert_the_same(student, log, alone, wanted)
    assert teachers[1].valid.all() if begun else 2 <= wanted[-1]["train/skipped"] <= 8


def test_a_training_by_workers_of_an_adapter_by_kept_targets_is_that_of_this_process(tmp_path):
    """Also where a process crashes once all is done, and where no row may be kept; its tokens count
    unlike each other."""
    tokens, kept = some_tokens(tmp_path / "tokens"), tmp_path / "kept"
    np.save(tmp_path / "weights.npy", np.arange(WINDOWS * T + 1, dtype="u1") % 3)
    tokens = data.weighted(tokens, tmp_path / "weights.npy")
    rows, recipe = np.arange(2, 22), quick(ce_weight=0.0, epochs=2.0)
    alone, student, told, recorded = tiny(adapters=True), tiny(adapters=True), [], []
    drawn, place = dict(temperature=2.0, draws=5), (tmp_path / "cache", wider(), tokens.train)
    how = dict(rows=rows, evaluate=look(tokens, "cpu"))
    with cache.Cache(*place, **drawn) as targets:
        wanted = train.fit(alone, tokens.train, recipe, teacher=targets, **how)
    (tmp_path / "cache" / "valid.bin").write_bytes(bytes(WINDOWS))
    how = dict(record=recorded.append, progress=lambda *x: told.append(x), folder=kept, rows=rows)
    how |= dict(processes=PROCESSES, evaluate=look_and_end_badly)
    targets = cache.Cache(*place, **drawn, read_only=True)
    log = worker.fit(student, tokens, recipe, teacher=targets, **how)
    assert_the_same(student, log, alone, wanted)
    assert not targets.valid.any()
    assert [row["step"] for row in recorded] == list(range(11))  # every step, and before the first
    assert all(row["train/peak_memory_mib"] > 50 for row in recorded)
    assert told[-1][:2] == (10, 10) and not multiprocessing.active_children()
    assert {path.name for path in kept.iterdir()} == {"state.pt", "epoch-1.safetensors"}


def test_a_worker_that_is_killed_or_fails_ends_all_and_is_named_in_a_line(tmp_path, capsys):
    killed = []

    def kill(step, *_):
        if not killed:
            killed.append(max(multiprocessing.active_children(), key=lambda process: process.pid))
            killed[0].kill()

    tokens, recipe = some_tokens(tmp_path / "tokens", MANY), replace(LONG, ce_weight=1.0)
    how = dict(processes=PROCESSES, folder=tmp_path / "kept")
    with pytest.raises(ValueError, match="processes is 99, torch sees "):
        worker.fit(tiny(), tokens, recipe, **how | dict(processes=99, device="cuda"))
    line = "^process 1 terminated with signal SIGKILL; where memory is short"
    with pytest.raises(RuntimeError, match=line):
        worker.fit(tiny(), tokens, recipe, progress=kill, **how)
    line = "^Process 0 terminated .*: TypeError: there is nothing to look at$"
    with pytest.raises(RuntimeError, match=line):
        worker.fit(tiny(), tokens, recipe, evaluate=look_in_vain, **how)
    assert re.search("Traceback.*in _train.*TypeError: there is", capsys.readouterr().out, re.S)
    assert not multiprocessing.active_children() and not (tmp_path / "kept" / "workers").exists()


def test_sigterm_to_spawned_workers_keeps_the_state_and_one_process_goes_on(tmp_path):
    process, below = start(tmp_path, PROCESSES)
    for one in (*below, psutil.Process(process.pid)):  # a cluster tells the workers too
        one.send_signal(signal.SIGTERM)
    assert_ended(process, below, signal.SIGTERM)
    step = torch.load(tmp_path / "kept" / "state.pt", weights_only=True)["step"]
    assert f"stopped after step {step} of 160" in (tmp_path / "said.txt").read_text()
    assert 0 < step < 160 and not (tmp_path / "kept" / "workers").exists()
    found, wanted = tiny(5), tiny()
    windows = token_files.open_tokens(tmp_path / "tokens").train
    train.fit(found, windows, LONG, teacher=wider(), folder=tmp_path / "kept")
    train.fit(wanted, windows, LONG, teacher=wider())
    assert distance(found.state_dict(), wanted.state_dict()) < 1e-4  # after 160 steps


def test_a_notebook_that_is_killed_takes_its_workers_along(tmp_path):
    process, below = start(tmp_path, 1)
    process.kill()
    assert_ended(process, below, signal.SIGKILL)
