"""The plan against the truth: memory and seconds of five shapes, predicted and then measured.

    python -m bench.plan       a quarter of an hour on one core

Both sides run in a fresh process each, on one thread; seconds are CPU time, so that a busy machine
moves them little. Memory is what a training adds to its process.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from tdbook.workflow import workload
from tdlib import data, train
from tdlib.model import SHAPES, Llama, LlamaConfig

ROOT = Path(__file__).parents[1]
SMALL = {"student": dict(layers=4, heads=4, dim=256, mlp_dim=704),
         "teacher": dict(layers=6, heads=6, dim=384, mlp_dim=1056)}  # fmt: skip
# name → vocabulary, context, windows at once, student, teacher
CASES = {
    "teacher-tiny": (2048, 128, 4, SHAPES["teacher-tiny"], None),
    "50m-tiny": (2048, 128, 2, SHAPES["student-50m-tiny"], SHAPES["teacher-tiny"]),
    "6 × 384 → 4 × 256": (8192, 256, 8, SMALL["student"], SMALL["teacher"]),
    "75m, no teacher": (16384, 512, 2, SHAPES["student-75m"], None),
    "teacher-plan → 50m": (51_800, 2048, 1, SHAPES["student-50m"], SHAPES["teacher-plan"]),
}


def configs(name: str) -> tuple[LlamaConfig, LlamaConfig | None, int]:
    vocab_size, context, windows, *shapes = CASES[name]
    made = (s and LlamaConfig(vocab_size, **s, context=context) for s in shapes)
    return *made, windows


def recipe(student: LlamaConfig, teacher: LlamaConfig | None, windows: int) -> dict:
    return dict(batch_tokens=windows * student.context, micro_windows=windows, epochs=1.0,
                ce_weight=0.5 if teacher else 1.0)  # fmt: skip


def measure_plan(name: str) -> dict:
    student, teacher, windows = configs(name)
    steps = 100
    p = recipe(student, teacher, windows)
    p |= dict(compile=False, activation_checkpointing=False, token_limit=0)
    one = workload.training("models/a", student, teacher, steps * windows, p)
    device = workload.here("cpu")
    low, high = (one.flop / device.flop / x / steps for x in workload.REACHED["cpu"])
    weights = 4 * sum(model.parameters for model in (student, teacher) if model)
    return {"mib": (one.memory["cpu"] + weights) / 2**20, "low": low, "high": high}


def measure_truth(name: str) -> dict:
    student, teacher, windows = configs(name)
    torch.manual_seed(0)
    steps = 4 if student.vocab_size > 10_000 else 30
    tokens = steps * windows * student.context
    ids = np.random.default_rng(0).integers(0, student.vocab_size, tokens + 1).astype("<u4")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, times = linux_bytes("VmRSS"), []
    net, asked = (Llama(c) if c else None for c in (student, teacher))
    train.fit(
        net, data.Windows(ids, student.context), train.Recipe(**recipe(student, teacher, windows)),
        teacher=asked, progress=lambda *_: times.append(time.process_time()),
    )  # fmt: skip
    memory = linux_bytes("VmHWM") - before
    return {"mib": memory / 2**20, "seconds": float(np.median(np.diff(times)))}


def linux_bytes(name: str) -> int:
    """Bytes of this process, as Linux tells them: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def alone(what: str, name: str) -> dict:
    command = [sys.executable, "-m", "bench.plan", what, name]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def against_truth() -> str:
    """For every shape: measured memory to the predicted; seconds a step beside the span told."""
    said = []
    for name in CASES:
        told, true = alone("plan", name), alone("truth", name)
        said.append(
            f"{name}: memory {true['mib'] / told['mib']:.2f} ({true['mib']:,.0f} MiB), seconds "
            f"{true['seconds']:.3g} (told {told['low']:.3g}–{told['high']:.3g})"
        )
        print(said[-1], flush=True)
    return "; ".join(said)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:]:
        print(json.dumps({"plan": measure_plan, "truth": measure_truth}[sys.argv[1]](sys.argv[2])))
    else:
        against_truth()
