"""One training by several processes of this machine, each with a copy of the student on a GPU of
its own (on a CPU: on some of its threads).

    fit, in the notebook  ──▶  torch's launcher  ──▶  N workers: train.fit, as one team

The job is a folder beside the checkpoint: what to train and how (job.json), weights of student and
teacher, numbers of the windows. Worker 0 alone keeps the checkpoint, evaluates, and writes to
told.jsonl how far it is; weights and log come back the same way. A process that is killed takes
those below it along, and one that fails ends all. The weights' files are safetensors under another
name: what is left of a killed job is then removed with the checkpoint once the run is done.
"""

import contextlib
import importlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist

from tdbook.corpus import token_files
from tdbook.runs import heartbeat, provenance
from tdbook.training import cache
from tdlib import checkpoint, data, lora, train
from tdlib.files import AWAY, MARK, write_whole
from tdlib.model import Llama, LlamaConfig
from tdlib.targets import Targets, as_targets
from tdlib.team import Team

ROOT = Path(__file__).parents[2]
LAUNCHER = "TDLIB_LAUNCHER"  # in the environment: the process a worker must not outlive
TELL_S = 0.2  # how often progress is written, and read
WAIT = timedelta(hours=2)  # of the others, while worker 0 evaluates or a model is compiled
CLOSED_S = 40  # the launcher gives workers 30 s to end by themselves, once one has failed


def fit(
    student: Llama,
    tokens: data.Tokens,
    recipe: train.Recipe,
    *,
    processes: int,
    folder: Path,
    teacher: Llama | Targets | None = None,
    rows: np.ndarray | None = None,
    device: str = "cpu",
    evaluate: Callable[[data.Tokens, str], Callable[[Llama], dict]] | None = None,
    record: Callable[[dict], None] = lambda row: None,
    progress: Callable[[int, int, str], None] = lambda step, steps, message: None,
) -> list[dict]:
    """`train.fit` on tokens.train in so many processes; the weights are the same but for rounding.
    `evaluate` makes there what train.fit takes under that name: a function at the top of a module.

    A checkpoint may come from another number of processes. SIGTERM and Ctrl-C keep the state first.
    ValueError: fewer GPUs than processes. RuntimeError: one failed; its traceback is printed.
    """
    gpus = torch.cuda.device_count() if "cuda" in device else processes
    if processes > gpus:
        fault = f"processes is {processes}, torch sees {gpus} GPUs"
        raise ValueError(f"{fault}: ask for one on each at most")
    job = folder.resolve() / "workers"
    if os.path.lexists(job) and not (job / MARK).is_file() and not (job / "job.json").is_file():
        raise FileExistsError(f"{job} is there and was not made by the book: {AWAY}")
    shutil.rmtree(job, ignore_errors=True)  # of a process that was killed
    job.mkdir(parents=True)
    (job / MARK).touch()
    options = {"folder": str(job.parent), "device": "cuda" if "cuda" in device else "cpu"}
    options["evaluate"] = [evaluate.__module__, evaluate.__name__] if evaluate else None
    try:
        _write(job, student, tokens, recipe, teacher, rows, options)
        log, weights = _run(job, processes, record, progress), dict(student.named_parameters())
        with torch.no_grad():
            for name, weight in safetensors.torch.load_file(job / "trained.weights").items():
                weights[name].copy_(weight)
        return log
    finally:
        shutil.rmtree(job, ignore_errors=True)


def _write(job: Path, student: Llama, tokens: data.Tokens, recipe, teacher, rows, options) -> None:
    """The job's folder; `options` go into it as they are."""
    content = options | {"recipe": asdict(recipe), "teacher": None, "cache": None}
    content |= {"tokens": str(tokens.folder.resolve()), "context": tokens.context}
    content["student"] = _pack(student, job / "student.weights")
    if recipe.ce_weight < 1:
        targets = as_targets(teacher)
        if isinstance(targets, cache.Cache):
            key = {name: targets.key[name] for name in ("temperature", "draws", "seed")}
            content["cache"] = key | {"folder": str(targets.folder.resolve())}
        teacher = targets.teacher
        if not isinstance(teacher, Llama):
            fault = f"ce_weight {recipe.ce_weight} below 1 needs a teacher, and several processes"
            raise ValueError(f"{fault} a Llama or its cache, not {teacher!r}")
        content["teacher"] = _pack(teacher, job / "teacher.weights")
    if rows is not None:
        np.save(job / "rows.npy", rows)
    weights = tokens.train.weights
    content["weights"] = None if weights is None else str(Path(weights.filename).resolve())
    (job / "job.json").write_text(json.dumps(content), encoding="utf8")


def _run(job: Path, processes: int, record: Callable, progress: Callable) -> list[dict]:
    """Start the launcher, pass on what worker 0 tells, and end all of them in order."""
    log = asked = None
    with (
        checkpoint.Signals(True) as signals,
        open(job / "output.txt", "a+", encoding="utf8", errors="replace") as output,
        open(job / "told.jsonl", "a+", encoding="utf8") as told,
    ):
        child = _start(job, processes)
        rest, first, ended = "", child.pid, False
        try:
            while not ended:
                ended = child.poll() is not None  # before the last look
                print(output.read(), end="", flush=True)
                *lines, rest = (rest + told.read()).split("\n")
                for what, value in map(json.loads, lines):
                    match what:
                        case "pid":
                            first = value
                        case "progress":
                            progress(*value)
                        case "record":
                            record(value)
                        case "log":
                            log = value
                if signals.caught and asked != first:  # worker 0 may tell its number after that
                    asked = first
                    with contextlib.suppress(ProcessLookupError):  # it just ended
                        os.kill(first, signal.SIGTERM)  # ends its step and keeps its state first
                time.sleep(0 if ended else TELL_S / 2)
        finally:
            child.kill()
            child.wait()
        if signals.caught:
            shutil.rmtree(job, ignore_errors=True)  # the process may end here
            signals.reraise(f"the {processes} processes have ended")
    if log is None:  # told last of all, so that gloo may abort while it closes
        raise RuntimeError(_why(job, processes, child.returncode))
    return log


def _start(job: Path, processes: int) -> subprocess.Popen:
    """The launcher, in a session of its own: Ctrl-C is for this process alone, which ends the
    others in order."""
    command = [sys.executable, "-m", "tdbook.training.worker", str(job), str(processes)]
    threads = max(1, torch.get_num_threads() // processes)
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with open(job / "output.txt", "ab") as output:
        how = dict(cwd=ROOT, env=env, stdout=output, stderr=output, start_new_session=True)
        return subprocess.Popen([*command, str(os.getpid())], **how)


def _why(job: Path, processes: int, code: int) -> str:
    """Which worker failed first, and its last line; its traceback is printed."""
    failures = []  # time, line, traceback
    path = job / "failed.json"
    for rank, exit_code, when in json.loads(path.read_text("utf8")) if path.is_file() else ():
        error = job / f"error-{rank}.json"
        line, trace = _code(exit_code), ""
        if error.is_file():
            when, line, trace = json.loads(error.read_text("utf8"))
        elif exit_code == -signal.SIGTERM:
            when += 2 * CLOSED_S  # by the launcher, after another failed
        elif exit_code < 0:  # seen some time after the errors that it caused in others
            when -= CLOSED_S / 2
            line += "; where memory is short, fewer micro_windows need less"
        failures.append((when, f"process {rank} of {processes} failed: {line}", trace))
    _, line, trace = min(failures or [(0.0, f"their launcher ended with {_code(code)}", "")])
    print(trace, end="", flush=True)
    return line


def _code(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _pack(model: Llama, path: Path) -> dict:
    """Its weights into a file; and what else it takes to build it again."""
    weights = {name: w.cpu().contiguous() for name, w in model.state_dict().items()}
    write_whole(path, safetensors.torch.save(weights))
    adapters, shape = lora.adapters(model), None
    if adapters:
        adapter = next(iter(adapters.values()))
        targets = sorted({name.rpartition(".")[2] for name in adapters})
        shape = {"rank": len(adapter.lora_A), "scale": adapter.scale, "targets": targets}
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    return {"config": asdict(model.config), "lora": shape, "trained": trained}


def _unpack(packed: dict | None, path: Path, device: str) -> Llama | None:
    if packed is None:
        return None
    model = Llama(LlamaConfig(**packed["config"]))
    if packed["lora"]:
        lora.attach(model, **packed["lora"])
    model.load_state_dict(safetensors.torch.load_file(path))
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in packed["trained"])
    return model.to(device)


def _die_with(parent: int) -> None:
    """Killed as soon as the parent is gone: nothing may be left that holds a GPU."""
    heartbeat.die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before
        sys.exit(1)


def _launch(job: Path, processes: int, parent: int) -> int:
    """torch's launcher; leaves in failed.json who failed."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    _die_with(parent)
    os.environ[LAUNCHER] = str(os.getpid())
    if sys.platform == "linux":  # a host's name need not lead to an address of it
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    logging.disable(logging.ERROR)  # the notebook says it in a line
    # a cluster tells every process of a job; the launcher would end the workers in mid-step
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    options = ["--standalone", f"--nproc-per-node={processes}", f"--log-dir={job}"]
    try:
        run.main([*options, "-m", "tdbook.training.worker", str(job)])
    except ChildFailedError as error:
        failed = [(rank, f.exitcode, f.timestamp) for rank, f in error.failures.items()]
        (job / "failed.json").write_text(json.dumps(failed), encoding="utf8")
        return 1
    except SignalException:
        return 1
    return 0


def _work(job: Path) -> int:
    _die_with(int(os.environ[LAUNCHER]))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # the launcher's is inherited
    team = Team(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    try:
        _train(job, json.loads((job / "job.json").read_text(encoding="utf8")), team)
    except Exception as error:  # any: the notebook will say it
        line = traceback.format_exception_only(error)[-1].strip()
        report = [time.time(), line, traceback.format_exc()]
        write_whole(job / f"error-{team.rank}.json", json.dumps(report))
        return 1
    return 0


def _train(job: Path, given: dict, team: Team) -> None:
    device, recipe = given["device"], train.Recipe(**given["recipe"])
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl", timeout=WAIT)
    if recipe.compile:  # whole, as in one process; in pieces it takes no activation_checkpointing
        from torch import _dynamo

        _dynamo.config.optimize_ddp = False
    tokens = token_files.open_tokens(given["tokens"], given["context"])
    if given["weights"]:
        tokens = data.weighted(tokens, Path(given["weights"]))
    student = _unpack(given["student"], job / "student.weights", device)
    teacher = _unpack(given["teacher"], job / "teacher.weights", device)
    tell = _teller(job / "told.jsonl") if team.rank == 0 else None
    options = {"folder": Path(given["folder"]), "device": device, "team": team}
    if (job / "rows.npy").is_file():
        options["rows"] = np.load(job / "rows.npy")
    if tell:
        options |= _reports(given["evaluate"], tokens, device, tell)
    with contextlib.ExitStack() as stack:
        if key := given["cache"]:
            targets = cache.Cache(teacher=teacher, windows=tokens.train, **key)
            teacher = stack.enter_context(targets)
        log = train.fit(student, tokens.train, recipe, teacher=teacher, **options)
    if tell:
        trained = {n: w.detach().cpu() for n, w in student.named_parameters() if w.requires_grad}
        write_whole(job / "trained.weights", safetensors.torch.save(trained))
    team.any_rank(True)  # no process leaves before worker 0, which had more to do
    if tell:
        tell("log", log)  # nothing is left to do in any of them
    dist.destroy_process_group()


def _teller(path: Path) -> Callable[[str, object], None]:
    """Adds a line to what the notebook reads, and first of all the number of this process."""
    out = open(path, "a", encoding="ascii")

    def tell(what: str, value: object) -> None:
        out.write(json.dumps([what, value]) + "\n")
        out.flush()

    tell("pid", os.getpid())
    return tell


def _reports(evaluate: list[str] | None, tokens: data.Tokens, device: str, tell: Callable) -> dict:
    """What worker 0 alone does during a training."""
    last = 0.0

    def progress(step: int, steps: int, message: str) -> None:
        nonlocal last
        if step == steps or time.monotonic() - last > TELL_S:
            tell("progress", (step, steps, message))
            last = time.monotonic()

    def record(row: dict) -> None:
        tell("record", row | {"train/peak_memory_mib": provenance.peak_memory_mib()})

    reports = {"progress": progress, "record": record}
    if evaluate:
        module, name = evaluate
        reports["evaluate"] = getattr(importlib.import_module(module), name)(tokens, device)
    return reports


if __name__ == "__main__":
    job, *launched = sys.argv[1:]
    sys.exit(_launch(Path(job), *map(int, launched)) if launched else _work(Path(job)))
