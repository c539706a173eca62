"""One training by several processes of this machine, each with a copy of the student on a GPU of
its own (on a CPU: on some of its threads).

    fit, in the notebook  ──▶  torch.multiprocessing  ──▶  N workers: train.fit, as one team

Worker 0 alone keeps the checkpoint, evaluates, and writes to told.jsonl how far it is. Weights go
and come as files, in a folder beside the checkpoint. Workers die with the notebook's process, and
one that fails ends all.
"""

import contextlib
import copy
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, start_processes

from tdbook.corpus import token_files
from tdbook.runs import heartbeat, machine
from tdbook.training import cache
from tdlib import checkpoint, data, quantize, train
from tdlib.files import MARK, replacing, theirs
from tdlib.model import Llama
from tdlib.team import Team

TRAINED = "trained.pt"  # log and weights of worker 0, once all is done
TELL_S = 0.1  # how often progress is read
WAIT = timedelta(hours=2)  # of the others, while worker 0 evaluates or a model is compiled
CLOSED_S = 30  # that the others get to end by themselves, once one has failed


def fit(
    student: Llama,
    tokens: data.Tokens,
    recipe: train.Recipe,
    *,
    processes: int,
    folder: Path,
    teacher: Llama | data.Targets | None = None,
    rows: np.ndarray | None = None,
    device: str = "cpu",
    evaluate: Callable[[data.Tokens, str], Callable[[Llama], dict]] | None = None,
    record: Callable[[dict], None] = lambda row: None,
    progress: Callable[[int, int, str], None] = lambda step, steps, message: None,
) -> list[dict]:
    """`train.fit` on tokens.train in so many processes; the weights are the same but for rounding.
    `evaluate` makes there what train.fit takes under that name: a function at the top of a module.
    ValueError: fewer GPUs than processes. RuntimeError: one failed, its traceback is printed."""
    if processes > (gpus := torch.cuda.device_count() if "cuda" in device else processes):
        fault = f"processes is {processes}, torch sees {gpus} GPUs"
        raise ValueError(f"{fault}: ask for one on each at most")
    theirs(job := folder.resolve() / "workers")  # FileExistsError: it is another's
    shutil.rmtree(job, ignore_errors=True)  # what a killed process left
    job.mkdir(parents=True)
    (job / MARK).touch()
    try:
        targets = data.as_targets(None if recipe.ce_weight == 1 else teacher)
        models = {"student": student, "teacher": targets.teacher}
        models = {n: _pack(net, job / f"{n}.weights") if net else None for n, net in models.items()}
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        threads = max(1, torch.get_num_threads() // processes)
        given = dict(processes=processes, port=store.port, threads=threads, evaluate=evaluate)
        given |= dict(tokens=(tokens.folder.resolve(), tokens.context), recipe=recipe, rows=rows)
        given |= dict(weights=getattr(tokens.train.weights, "filename", None))
        given |= dict(device="cuda" if "cuda" in device else "cpu")
        given |= models | dict(kept=targets.options if isinstance(targets, cache.Cache) else None)
        _run(job, processes, given, record, progress)
        trained = torch.load(job / TRAINED, map_location="cpu", weights_only=True)
        assert not student.load_state_dict(trained["weights"], strict=False).unexpected_keys
        return trained["log"]
    finally:
        shutil.rmtree(job, ignore_errors=True)


def _run(job: Path, processes: int, given: dict, record, progress) -> None:
    """Start the workers, pass on what worker 0 tells, and end all of them in order."""
    rest, failure, ended, asked = "", "the workers end without a word", False, False
    with (
        checkpoint.Signals(True) as signals,
        open(job / "output.txt", "a+", encoding="utf8", errors="replace") as output,
        open(job / "told.jsonl", "a+", encoding="utf8") as told,
    ):
        context = start_processes(_work, (os.getpid(), job, given), processes, join=False)
        try:
            while not ended:
                dead = [n for n, p in enumerate(context.processes) if p.exitcode == -signal.SIGKILL]
                try:
                    ended = context.join(TELL_S, grace_period=CLOSED_S)  # ends all once one fails
                except (ProcessRaisedException, ProcessExitedException) as error:
                    first = f"process {dead[0]} terminated with signal SIGKILL" if dead else error
                    failure, ended = str(first).strip(), True  # its neighbours fail too
                print(output.read(), end="", flush=True)
                *lines, rest = (rest + told.read()).split("\n")
                for what, value in map(json.loads, lines):
                    record(value) if what == "record" else progress(*value)
                if signals.caught and not asked:
                    asked = True
                    for process in context.processes:  # they end their step and keep the state
                        process.terminate()
        finally:
            for process in context.processes:
                process.kill()
                process.join()
        if signals.caught:
            shutil.rmtree(job, ignore_errors=True)  # the process may end here
            signals.reraise(f"the {processes} processes have ended")
    if not (job / TRAINED).is_file():  # once it is there gloo may abort while it closes
        print(failure, flush=True)
        lines = failure.strip("- ").splitlines()
        more = "; where memory is short, fewer micro_windows need less" * ("SIGKILL" in failure)
        raise RuntimeError(" ".join(dict.fromkeys((lines[0], lines[-1]))) + more)


def _pack(model: Llama, path: Path) -> tuple[Path, Llama, list[bool]]:
    """Its weights in a file, the model without them, and, where it is rounded, how: the parts of a
    rounded model are not pickled, a worker attaches its own."""
    torch.save(model.state_dict(), path)
    if rounded := quantize.parts(model):
        with torch.device("meta"):
            model = Llama(model.config)
    bare = {id(w): nn.Parameter(w.to("meta"), w.requires_grad) for w in model.parameters()}
    bare |= {id(table): table.cpu() for table in model.buffers()}
    kept = [part.parametrizations.weight[0].kept_BN is not None for part in rounded[:1]]
    return path, copy.deepcopy(model, bare), kept


def _unpack(path: Path, model: Llama, rounded: list[bool]) -> Llama:
    if rounded:
        quantize.attach(model, *rounded)
    content = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(content, assign=True)
    return model


def _work(rank: int, parent: int, job: Path, given: dict) -> None:
    heartbeat.die_with_parent(signal.SIGKILL)  # nothing may be left that holds a GPU
    if os.getppid() != parent:  # it was gone before
        sys.exit(1)
    os.setsid()  # Ctrl-C is for the notebook's process alone
    output = os.open(job / "output.txt", os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    _train(Team(rank, given["processes"]), job, given)


def _train(team: Team, job: Path, given: dict) -> None:
    device, recipe = given["device"], given["recipe"]
    torch.set_num_threads(given["threads"])
    if device == "cuda":
        device = f"cuda:{team.rank}"
        torch.cuda.set_device(device)
    if sys.platform == "linux":  # a host's name need not lead to an address of it
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend, store = "gloo", dist.TCPStore("127.0.0.1", given["port"])
    backend = backend if device == "cpu" else "cpu:gloo,cuda:nccl"
    where = dict(store=store, rank=team.rank, world_size=team.size)
    dist.init_process_group(backend, timeout=WAIT, **where)
    if recipe.compile:  # whole, as in one process; in pieces it takes no activation_checkpointing
        torch._dynamo.config.optimize_ddp = False
    tokens = token_files.open_tokens(*given["tokens"])
    tokens = data.weighted(tokens, given["weights"]) if given["weights"] else tokens
    student = _unpack(*given["student"]).to(device)
    teacher = given["teacher"] and _unpack(*given["teacher"]).to(device)
    options = {"folder": job.parent, "device": device, "team": team, "rows": given["rows"]}
    if team.rank == 0:
        told, memory = open(job / "told.jsonl", "a", encoding="ascii"), machine.peak_memory_mib
        tell = lambda *what: print(json.dumps(what), file=told, flush=True)  # noqa: E731
        options["record"] = lambda row: tell("record", row | {"train/peak_memory_mib": memory()})
        options["progress"] = lambda *step: tell("progress", step)
        if given["evaluate"]:
            options["evaluate"] = given["evaluate"](tokens, device)
    if given["kept"]:
        teacher = cache.Cache(teacher=teacher, windows=tokens.train, **given["kept"])
    with teacher if given["kept"] else contextlib.nullcontext():
        log = train.fit(student, tokens.train, recipe, teacher=teacher, **options)
    if team.rank == 0:
        weights = {n: w.detach() for n, w in student.named_parameters() if w.requires_grad}
        with replacing(job / TRAINED) as beside:  # a full disk is an error here
            torch.save({"log": log, "weights": weights}, beside)
    team.any_rank(True)  # no process leaves before worker 0, which had more to do
    dist.destroy_process_group()
