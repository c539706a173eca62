"""Can this machine run the profile? A line for each thing a run could fail at: `make doctor`.

✓ it can; ✗ it cannot, and what to do; – it was not tried. Of every distinct pair of shapes two real
steps of one window are made, each in a process of its own.
"""

import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from tdbook.corpus import token_files
from tdbook.runs import provenance, units
from tdbook.runs.notebooks import TEACHER
from tdbook.workflow import cost, plan, request
from tdbook.workflow.workload import PROCESS, Training, Work
from tdlib import data, lora, train
from tdlib.model import Llama, LlamaConfig

LIMIT_S = 240  # that the two steps may take
ROOM = 0.9  # share of the free memory that is asked for


def examine(pairs: dict[str, str]) -> int:
    """Print the lines; 1 where one fails. Each check returns what is well in words; its ValueError
    or OSError says what is not, and what to do."""
    of = plan.asked(request.wanted("doctor", pairs))
    works, device = of.works(), "cuda" if torch.cuda.is_available() else "cpu"
    room, failed = free_bytes(device), 0
    checks = {
        "torch": (_torch,),
        "tokens": (tokens_of, of),
        "run folder": (writable, of.out),
        "disk": (disk, of.out, works),
        "memory": (memory, works, device, room),
    }
    same: dict[tuple, list[Training]] = {}
    for t in (t for work in works for t in work.trainings):
        key = t.student, t.teacher, t.rank, t.parameters["compile"]
        same.setdefault(key, []).append(t)
    for trainings in same.values():
        names = ", ".join(Path(t.path).name for t in trainings)
        checks[f"two steps of {names}"] = (_tried, trainings[0], device, of.tokens, room)
    for what, (check, *about) in checks.items():
        try:
            line = f"✓ {what}: {check(*about)}"
        except subprocess.TimeoutExpired:
            line = f"– {what}: not tried to the end, more than {LIMIT_S} s here"
        except (ValueError, OSError) as error:
            line, failed = f"✗ {what}: {error}", 1
        print(line, flush=True)
    return failed


def _torch() -> str:
    version = torch.__version__
    if not Path("/dev/nvidia0").exists():
        return f"{version}, no GPU here, threads: {torch.get_num_threads()}"
    try:  # it may be built without CUDA, for a newer driver, or before this GPU
        ones = torch.ones(8, 8, device="cuda")
        (ones @ ones).sum().item()
    except (RuntimeError, AssertionError) as error:
        fault = f"{version} (CUDA {torch.version.cuda}) cannot use the GPU here: {error}"
        remedy = "install torch for it and its driver (pytorch.org), then make clean setup"
        raise ValueError(f"{fault.splitlines()[0]}: {remedy}") from None
    return f"{version}, CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}"


def tokens_of(of: plan.Asked) -> str:
    """The files, a sample of their ids, and the teacher's context beside theirs; its vocabulary was
    looked at before."""
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


def writable(out: Path) -> str:
    folder = _existing(out)
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        fault = f"{folder} cannot be written ({error.strerror})"
        raise ValueError(f"{fault}: chmod, or another one (OUT=)") from None
    return f"{out} can be written"


def _existing(out: Path) -> Path:
    return next(path for path in (out, *out.parents) if path.is_dir())


def disk(out: Path, works: list[Work]) -> str:
    free, need = shutil.disk_usage(_existing(out)).free, sum(plan.disk(works))
    sizes = f"{units.si(free, 'B')} free, {units.si(need, 'B')} needed"
    if need > free:
        raise ValueError(f"{sizes}: make room, or a run folder elsewhere (OUT=)")
    return sizes


def free_bytes(device: str) -> int:
    """What a training may take here."""
    if device == "cuda":
        return int(ROOM * torch.cuda.mem_get_info()[0])
    table = Path("/proc/meminfo")
    lines = table.read_text().splitlines() if table.exists() else []
    free = [int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable")]
    return int(ROOM * (free[0] if free else cost.here("cpu").bytes))


def memory(works: list[Work], device: str, room: int) -> str:
    need = {work.run: work.memory(device) for work in works}
    free = f"{units.si(room, 'B')} may be used"
    if large := [f"{run} {units.si(size, 'B')}" for run, size in need.items() if size > room]:
        remedy = "fewer micro_windows need less, or activation_checkpointing: true"
        raise ValueError(f"too little for {', '.join(large)}; {free}: {remedy}")
    most = max(need, key=need.get)
    return f"at most {units.si(need[most], 'B')} ({most}); {free}"


def _tried(t: Training, device: str, tokens: Path | None, room: int) -> str:
    """Two steps in a process of its own."""
    need = replace(t, parameters=t.parameters | {"micro_windows": 1}).memory(device)
    need += PROCESS if device == "cpu" else 0
    if need > room:
        sizes = f"one window needs {units.si(need, 'B')}, {units.si(room, 'B')} are free"
        remedy = "activation_checkpointing: true, or another machine"
        raise ValueError(f"not tried: {sizes}; {remedy}")
    words = {"student": asdict(t.student), "teacher": t.teacher and asdict(t.teacher)}
    words |= {"rank": t.rank, "recipe": t.parameters, "device": device, "tokens": str(tokens or "")}
    command = [sys.executable, "-m", "tdbook.workflow.doctor", json.dumps(words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    if done.returncode == 0:
        return done.stdout.splitlines()[-1]
    last = (done.stderr.strip().splitlines() or ["no word; killed for its memory?"])[-1]
    raise ValueError(f"{last} (exit {done.returncode}): run this shape alone, ONLY=, to see it all")


def step(words: dict) -> str:
    """Two steps of one window each, as train.fit makes them in the book; what they took."""
    priority = Path("/proc/self/oom_score_adj")
    if priority.exists():
        priority.write_text("1000")  # where memory runs out, the system ends this process first
    shapes = [c and LlamaConfig(**c) for c in (words["student"], words["teacher"])]
    device, context, ended = words["device"], shapes[0].context, []
    torch.manual_seed(0)
    student, teacher = (c and Llama(c).to(device) for c in shapes)
    if words["rank"]:
        lora.attach(student, words["rank"])
    if words["tokens"]:
        windows = token_files.open_tokens(words["tokens"]).train
    else:
        ids = np.random.default_rng(0).integers(0, shapes[0].vocab_size, 2 * context + 1)
        windows = data.Windows(ids.astype(np.uint32), context)
    own = words["recipe"] | {"temperature": words["recipe"].get("temperature") or 1.0}
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
    peak = provenance.peak_memory_mib() * 2**20
    return f"{ended[1] - ended[0]:.2g} s a window, {units.si(peak, 'B')} at most"


if __name__ == "__main__":
    print(step(json.loads(sys.argv[1])))
