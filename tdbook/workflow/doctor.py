"""Can this machine run the profile? A line for each thing a run could fail at: `make doctor`.

✓ it can; ✗ it cannot, and what to do. Of every distinct pair of shapes two real steps of one window
are made, each in a process of its own.
"""

import math
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import torch

from tdbook.corpus import token_files
from tdbook.runs import machine, units
from tdbook.runs.notebooks import TEACHER
from tdbook.workflow import plan, request
from tdbook.workflow.workload import Training, Work
from tdlib import data, lora, train
from tdlib.model import Llama

ROOM = 0.9  # share of the free memory that a run may take
LESS = "fewer micro_windows need less, or activation_checkpointing: true"


def examine(pairs: dict[str, str]) -> int:
    """Print what each check returns, or the error that it raises; 1 where there is one."""
    of = plan.asked(request.wanted("doctor", pairs))
    works, device, failed = of.works, "cuda" if torch.cuda.is_available() else "cpu", 0
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
    checks = {
        "torch": (_torch,),
        "tokens": (tokens_of, of),
        "run folder": (run_folder, of.out, works),
        "memory": (memory, works, device, ROOM * free),
    }
    same: dict[tuple, list[Training]] = {}
    for t in (t for work in works for t in work.trainings):
        same.setdefault((t.student, t.teacher, t.rank, t.parameters["compile"]), []).append(t)
    for trainings in same.values():
        names = ", ".join(Path(t.path).name for t in trainings)
        checks[f"two steps of {names}"] = (_alone, trainings[0], device, of.tokens)
    for what, (check, *about) in checks.items():
        try:
            line = f"✓ {what}: {check(*about)}"
        except (ValueError, OSError, RuntimeError) as error:
            line, failed = f"✗ {what}: {error}", 1
        print(line, flush=True)
    return failed


def _torch() -> str:
    version = torch.__version__
    if not Path("/dev/nvidia0").exists():
        return f"{version}, no GPU here, threads: {torch.get_num_threads()}"
    if not torch.cuda.is_available():  # built without CUDA, or for a newer driver
        fault = f"{version} (CUDA {torch.version.cuda}) cannot use the GPU here"
        remedy = "install torch for it and its driver (pytorch.org), then make clean setup"
        raise ValueError(f"{fault}: {remedy}")
    return f"{version}, CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}"


def tokens_of(of: plan.Asked) -> str:
    """The files, a sample of their ids, and the teacher's context beside theirs."""
    p = of.runs[0].parameters
    if of.tokens is None and not (p["text_characters"] or p["text"]):
        raise ValueError("none yet, and this profile writes no text of its own: give TOKENS=folder")
    if of.tokens is None:
        return f"{TEACHER} makes them from text"
    tokens = token_files.open_tokens(of.tokens)
    if of.teacher.context < tokens.context:
        both = f"the teacher's context is {of.teacher.context:,}, theirs is {tokens.context:,}"
        raise ValueError(f"{both}: a shorter block_size in their meta.json")
    return f"{of.size.source}; vocabulary {tokens.vocab_size:,}, as the teacher's"


def run_folder(out: Path, works: list[Work]) -> str:
    """It can be written, and has room for all."""
    there = next(path for path in (out, *out.parents) if path.is_dir())
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        fault = f"{there} cannot be written ({error.strerror})"
        raise ValueError(f"{fault}: chmod, or another one (OUT=)") from None
    free, need = shutil.disk_usage(there).free, sum(work.disk for work in works)
    sizes = f"{units.si(free, 'B')} free, {units.si(need, 'B')} needed"
    if need > free:
        raise ValueError(f"{sizes}: make room, or a run folder elsewhere (OUT=)")
    return f"{out}, {sizes}"


def memory(works: list[Work], device: str, room: float) -> str:
    need = {work.run: work.memory(device) for work in works}
    free = f"{units.si(room, 'B')} may be used"
    if large := [f"{run} {units.si(size, 'B')}" for run, size in need.items() if size > room]:
        raise ValueError(f"perhaps too little for {', '.join(large)}; {free}: {LESS}")
    most = max(need, key=need.get)
    return f"at most {units.si(need[most], 'B')} ({most}); {free}"


def _alone(t: Training, device: str, tokens: Path | None) -> str:
    """Two steps in a process of its own, which the system may end."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(two_steps, t, device, tokens).result()
        except BrokenProcessPool:
            raise ValueError(f"the process was killed, for its memory perhaps: {LESS}") from None


def two_steps(t: Training, device: str, tokens: Path | None) -> str:
    """Two steps of one window each, as train.fit makes them in the book; what they took."""
    priority = Path("/proc/self/oom_score_adj")
    if priority.exists():
        priority.write_text("1000")  # where memory runs out, the system ends this process first
    torch.manual_seed(0)
    student, teacher = (c and Llama(c).to(device) for c in (t.student, t.teacher))
    if t.rank:
        lora.attach(student, t.rank)
    context, ended = t.student.context, []
    ids = np.random.default_rng(0).integers(0, t.student.vocab_size, 2 * context + 1)
    windows = data.Windows(ids.astype(np.uint32), context)
    if tokens:
        windows = token_files.open_tokens(tokens).train
    own = t.parameters | {"temperature": t.parameters.get("temperature") or 1.0}
    recipe = train.recipe(own | ({} if teacher else {"ce_weight": 1.0}))
    recipe = replace(recipe, batch_tokens=context, epochs=1.0, token_limit=0)

    def tick(*_: object) -> None:
        if device == "cuda":
            torch.cuda.synchronize()
        ended.append(time.monotonic())

    more = {"rows": np.arange(2), "device": device, "progress": tick}
    log = train.fit(student, windows, recipe, teacher=teacher, **more)
    if not math.isfinite(loss := log[-1].get("train/loss", math.nan)):
        raise ValueError(f"the loss is {loss}: look at the tokens")
    peak = machine.peak_memory_mib() * 2**20
    return f"{ended[1] - ended[0]:.2g} s a window, {units.si(peak, 'B')} at most"
