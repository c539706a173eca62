"""Every kind of training and scoring on a GPU that is not there, as JSON: half a minute.

    python -m bench.fake_runs

trainings: where the host waits in the second step (`filling`, of stored targets) and in the last,
how often each compiled function is, whether determinism is still asked for after it. planned: FLOP
and peak memory at the plan's shapes, as a share of what `make plan` says. scorings: their waits,
under deterministic, where most may raise. What raises says its error.
"""

import contextlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from bench import fake_gpu as gpu  # before torch

import numpy as np  # isort: skip
import torch

from tdbook.book import students
from tdbook.training.cache import Cache
from tdbook.training.from_teacher import from_teacher
from tdbook.workflow import workload
from tdlib import evaluate, hard_set, lora, teacher, train
from tdlib.model import Llama

TRAININGS = {  # what differs from training online on whole windows
    "online": {},
    "text alone": {"ce_weight": 1.0},
    "stored targets": {"stored": True, "epochs": 2.0},  # filled, then read
    "adapter": {"rank": 16, "ce_weight": 0.0},
    "from the teacher": {"from_teacher": True},
    "resumed": {"resumed": True, "epochs": 2.0},
    "activation checkpointing": {"activation_checkpointing": True},
}
# what changes neither the steps nor what a host may wait for: in one training, for its seconds
MASKED = {"masked": True, "weighted": True, "shape": {"kv_heads": 1}, "deterministic": True}
TRAININGS["masked, weighted, grouped heads, deterministic"] = MASKED
PLANNED = ("online", "adapter", "activation checkpointing")
CUDA = {"device": gpu.DEVICE}


def models(student="student-small-smoke", by="teacher-smoke", **shape: int) -> tuple[Llama, Llama]:
    return gpu.llama(student, **shape), gpu.llama(by, **shape).requires_grad_(False)


def training(recorder: gpu.Recorder, o: dict) -> dict:
    """Two steps an epoch, of a micro-batch and a smaller one."""
    windows = gpu.windows(6, masked="masked" in o, weighted="weighted" in o)
    small = {"epochs": 1.0, "batch_tokens": 3 * gpu.CONTEXT, "micro_windows": 2, "compile": True}
    recipe, waits = train.recipe(small | o), []
    how = CUDA | {"evaluate": evaluate.on_subset(windows, 2, **CUDA), "evaluations": 1}
    student, by = models(**o.get("shape", {}))
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if "from_teacher" in o:
            student = from_teacher(by, student.config, windows, **CUDA)
        if "rank" in o:
            lora.attach(student, o["rank"])
        if "stored" in o:
            by = stack.enter_context(Cache(root / "cache", by, windows, temperature=2.0))
        if "resumed" in o:
            stack.enter_context(gpu.checkpoints_in_memory())
            stop = {"progress": lambda step, *_: 1 / (2 - step), "folder": root}
            with contextlib.suppress(ZeroDivisionError):  # in the second step
                often = train.recipe(small | o | {"checkpoint_minutes": 0.0})
                train.fit(student, windows, often, teacher=by, **how | stop)
            student, how["folder"] = models()[0], root
        recorder.clear()
        how["progress"] = lambda *_: waits.append(recorder.waits.copy())
        train.fit(student, windows, recipe, teacher=by, **how)
    result = {"filling": waits[1] - waits[0], "last": waits[-1] - waits[-2], "steps": len(waits)}
    result["compiled"] = [*map(len, recorder.compilations.values())]
    return result | {"deterministic": torch.are_deterministic_algorithms_enabled()}


def planned(recorder: gpu.Recorder, o: dict) -> dict:
    """One micro-batch of the plan's, with the gradients and means that a later step finds."""
    recipe = {"epochs": 1.0, "batch_tokens": 16 * gpu.CONTEXT, "compile": True, "rank": 0} | o
    student, by = models("student-50m", "teacher-plan")
    by = None if o.get("ce_weight") == 1 else by
    if "rank" in o:
        lora.attach(student, o["rank"])
    trained = [weight for weight in student.parameters() if weight.requires_grad]
    for weight in trained:
        weight.grad = torch.empty_like(weight)
    means = [torch.empty_like(weight) for weight in (*trained, *trained)]
    recorder.clear()
    train.fit(student, gpu.windows(16), train.recipe(recipe), teacher=by, evaluations=1, **CUDA)
    del means
    path, configs = "adapters/a" if "rank" in o else "models/m", (student.config, by and by.config)
    plan = workload.training(path, *configs, 16, asdict(train.Recipe()) | recipe)
    bound = plan.memory["cuda"] + sum(4 * config.parameters for config in configs if config)
    return {"flop": recorder.flop / plan.flop, "memory": recorder.peak / bound}


def scorings() -> dict[str, Callable[[], object]]:
    (student, by), windows = models(), gpu.windows(20, masked=True)
    weights = np.zeros(len(windows.ids), "u1")
    return {
        "score": lambda: hard_set.score(student, by, windows, **CUDA),
        "evaluate": lambda: evaluate.evaluate(student, windows, by, fixed=4, **CUDA),
        "weigh": lambda: students.weigh(student, by, windows, range(9), 0.4, weights, **CUDA),
        "check": lambda: teacher.check(by, windows, count=4, **CUDA),
    }


def scoring(recorder: gpu.Recorder, name: str) -> dict:
    run = scorings()[name]
    recorder.clear()
    torch.use_deterministic_algorithms(True)
    run()
    return {"waits": recorder.waits}


def result_of(run: Callable[[gpu.Recorder, object], dict], what: object) -> dict:
    torch.use_deterministic_algorithms(False)
    with gpu.device() as recorder:
        try:
            return run(recorder, what)
        except Exception as error:  # which is what is looked for
            return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    train.LOGGED = 1  # no row but after the last step: the others are as most steps are
    results = {
        "trainings": {name: result_of(training, o) for name, o in TRAININGS.items()},
        "planned": {name: result_of(planned, TRAININGS[name]) for name in PLANNED},
        "scorings": {
            name: result_of(scoring, name) for name in ("score", "evaluate", "weigh", "check")
        },
    }
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
