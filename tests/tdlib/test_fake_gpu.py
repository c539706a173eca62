"""Every kind of training and scoring, as bench/fake_runs.py ran them on a GPU that is not there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tdlib import train
from tests.helpers import some_windows, tiny_model


@pytest.fixture(scope="module")
def results() -> dict:
    """In a process of its own, for the fake GPU comes before torch."""
    command = [sys.executable, "-m", "bench.fake_runs"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_all_run_with_every_tensor_where_it_belongs(results):
    every = [pair for kind in results.values() for pair in kind.items()]
    assert {name: r["error"] for name, r in every if "error" in r} == {}
    assert len(results["trainings"]) == 8
    assert results["trainings"]["resumed"]["steps"] == 3  # of four


def test_the_host_never_waits_within_a_step_and_all_is_compiled_once(results):
    """But where targets are stored: they are on the disk before the step ends. A training's last
    micro-batch, which is smaller, runs uncompiled."""
    trainings = results["trainings"]
    assert {name: r["last"] for name, r in trainings.items()} == {name: {} for name in trainings}
    filling = trainings["stored targets"]["filling"]
    assert filling and all(place.startswith("cache.py") for place in filling)
    assert sum(results["scorings"]["score"]["waits"].values()) == 2  # each model's losses
    compiled = {name: r["compiled"] for name, r in trainings.items()}
    assert compiled.pop("text alone") == [1, 1]  # no teacher
    assert compiled == {name: [1, 1, 1] for name in compiled}
    assert not any(r["deterministic"] for r in trainings.values())  # any more


def test_flop_and_memory_are_what_plan_says(results):
    for name, result in results["planned"].items():
        assert result["flop"] == pytest.approx(1, rel=0.02), name
        assert 0.85 <= result["memory"] <= 1, name  # it is a bound


def test_dynamo_compiles_each_of_many_models_once(monkeypatch):
    """Its own count, on the CPU; past a limit of 8 it would run the rest uncompiled."""
    graphs, compile_ = [], torch.compile
    backend = {"backend": lambda graph, _: graphs.append(graph) or graph.forward}
    monkeypatch.setattr(torch, "compile", lambda function: compile_(function, **backend))
    torch._dynamo.reset()
    recipe = train.Recipe(epochs=1.0, batch_tokens=36, micro_windows=2, compile=True)
    for i in range(1, 6):
        student, teacher = (tiny_model(layers=1, mlp_dim=16 * i + j) for j in (0, 8))
        train.fit(student, some_windows(count=7), recipe, teacher=teacher)
        assert len(graphs) == 2 * i


def test_what_a_lent_gpu_would_run_is_ready(tmp_path):
    """The parts that take seconds; `python -m bench.gpu --dry` runs all."""
    parts, out = ["machine", "waits", "scoring", "flash"], tmp_path / "gpu.json"
    command = [sys.executable, "-m", "bench.gpu", "--dry", "--parts", ",".join(parts)]
    subprocess.run([*command, "--out", out], cwd=Path(__file__).parents[2], check=True)
    told = json.loads(out.read_text("utf8"))
    assert {name: part["fault"] for name, part in told["parts"].items()} == dict.fromkeys(parts, "")
    assert [row for row in told["rows"] if "✗" in row["note"]] == []
    waits = [row["value"] for row in told["rows"] if row["what"].startswith("waits")]
    assert waits == [0]
