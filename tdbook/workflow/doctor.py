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
from tdbook.workflow import cost, plan, workload
from tdlib import data, lora, train
from tdlib.model import Llama, LlamaConfig

LIMIT_S = 240  # that the two steps may take
ROOM = 0.9  # share of the free memory that is asked for


def examine(pairs: dict[str, str]) -> int:
    """Print the lines; 1 where one fails. `pairs`: PROFILE, OUT, TOKENS, TEACHER."""
    of = plan.asked(pairs)
    works, device = of.works(), "cuda" if torch.cuda.is_available() else "cpu"
    room, failed = _room(device), 0
    checks = {
        "torch": (_torch, any(one.parameters.get("compile") for one in of.runs)),
        "tokens": (_tokens, of),
        "run folder": (_writable, of.out),
        "disk": (_disk, of.out, works),
        "memory": (_memory, works, device, room),
    }
    for names, t in _distinct(works).items():
        checks[f"two steps of {names}"] = (_tried, t, device, of.tokens, room)
    for what, (check, *about) in checks.items():
        try:
            line = f"✓ {what}: {check(*about)}"
        except subprocess.TimeoutExpired:
            line = f"– {what}: not tried to the end, more than {LIMIT_S} s here"
        except (ValueError, OSError) as error:
            line, failed = f"✗ {what}: {error}", 1
        print(line, flush=True)
    return failed


# Each check returns what is well in words. ValueError or OSError: what is not, and what to do.


def _torch(compiles: bool) -> str:
    build, version = torch.version.cuda, torch.__version__
    if not Path("/dev/nvidia0").exists():
        return f"{version}, no GPU here, threads: {torch.get_num_threads()}"
    install = "install torch for it (pytorch.org), then make clean setup"
    if not build:
        raise ValueError(f"{version} is a build without CUDA, and a GPU is here: {install}")
    if not torch.cuda.is_available():
        raise ValueError(f"{version} needs a driver for CUDA {build}: update it, or {install}")
    major, minor = torch.cuda.get_device_capability()
    built, gpu = torch.cuda.get_arch_list(), f"{torch.cuda.get_device_name()} (sm_{major}{minor})"
    if not covers(built, major, minor):
        fault = f"{version} has no code for {gpu}, only {', '.join(built)}"
        raise ValueError(f"{fault}: install a newer torch")
    if compiles and not (shutil.which("gcc") or shutil.which("cc")):
        raise ValueError("compile: true needs a C compiler: apt-get install gcc, or compile: false")
    return f"{version}, CUDA {build}, {gpu}"


def covers(built: list[str], major: int, minor: int) -> bool:
    """Whether code for these architectures (sm_90, sm_90a, compute_80) runs on a GPU: binary code
    on later minor versions of its major one, an "a" on that alone, compute_ on all later ones."""
    for kind, _, number in (arch.partition("_") for arch in built):
        its = divmod(int(number.rstrip("af")), 10)
        other = number.endswith("a") and its != (major, minor)
        if its <= (major, minor) and not other and (kind == "compute" or its[0] == major):
            return True
    return False


def _tokens(of: plan.Asked) -> str:
    """The files, a sample of their ids, and the teacher's context beside theirs; its vocabulary was
    looked at before."""
    p, teacher = of.runs[0].parameters, of.teachers[0]
    if of.tokens is None and not (p["text_characters"] or p["text"]):
        raise ValueError("none yet, and this profile writes no text of its own: give TOKENS=folder")
    if of.tokens is None:
        return f"{TEACHER} makes them from text"
    tokens = token_files.open_tokens(of.tokens)
    if teacher.context < tokens.context:
        both = f"the teacher's context is {teacher.context:,}, theirs is {tokens.context:,}"
        raise ValueError(f"{both}: a shorter block_size in their meta.json")
    return f"{of.sizes[0].source}; vocabulary {tokens.vocab_size:,}, as the teacher's"


def _writable(out: Path) -> str:
    folder = _existing(out)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        fault = f"{folder} cannot be written ({error.strerror})"
        raise ValueError(f"{fault}: chmod, or another one (OUT=)") from None
    return f"{out} can be written"


def _existing(out: Path) -> Path:
    return next(path for path in (out, *out.parents) if path.is_dir())


def _disk(out: Path, works: list[workload.Work]) -> str:
    free, need = shutil.disk_usage(_existing(out)).free, sum(plan.disk(works))
    sizes = f"{units.si(free, 'B')} free, {units.si(need, 'B')} needed"
    if need > free:
        raise ValueError(f"{sizes}: make room, or a run folder elsewhere (OUT=)")
    return sizes


def _room(device: str) -> int:
    """Bytes that a training may take here."""
    if device == "cuda":
        return int(ROOM * torch.cuda.mem_get_info()[0])
    ram = int(workload.here("cpu").bytes)
    return int(ROOM * workload.status("MemAvailable", ram, "/proc/meminfo"))


def _memory(works: list[workload.Work], device: str, room: int) -> str:
    need = {one.run: workload.memory(one, device) for one in works}
    free = f"{units.si(room, 'B')} may be used"
    if large := [f"{run} {units.si(size, 'B')}" for run, size in need.items() if size > room]:
        remedy = "fewer micro_windows need less, or activation_checkpointing: true"
        raise ValueError(f"too little for {', '.join(large)}; {free}: {remedy}")
    most = max(need, key=need.get)
    return f"at most {units.si(need[most], 'B')} ({most}); {free}"


def _distinct(works: list[workload.Work]) -> dict[str, workload.Training]:
    """One training of each pair of shapes, by the names of all that have it."""
    pairs = {}
    for t in (t for one in works for t in one.trainings):
        pairs.setdefault((t.student, t.teacher, t.rank, t.parameters["compile"]), []).append(t)
    return {", ".join(t.name for t in same): same[0] for same in pairs.values()}


def _tried(t: workload.Training, device: str, tokens: Path | None, room: int) -> str:
    """Two steps in a process of its own."""
    need = cost.training_bytes(t.student, t.teacher, 1, t.student.context, device, t.rank)
    need += workload.PROCESS if device == "cpu" else 0
    if need > room:
        sizes = f"one window needs {units.si(need, 'B')}, {units.si(room, 'B')} are free"
        remedy = "activation_checkpointing: true, or another machine"
        raise ValueError(f"not tried: {sizes}; {remedy}")
    words = {"student": asdict(t.student), "teacher": t.teacher and asdict(t.teacher)}
    words |= {"rank": t.rank, "recipe": t.parameters | {"temperature": t.temperature}}
    words |= {"device": device, "tokens": str(tokens or "")}
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
    student, teacher = (c and LlamaConfig(**c) for c in (words["student"], words["teacher"]))
    device, context, ended = words["device"], student.context, []
    torch.manual_seed(0)
    net, asked = (Llama(c).to(device) if c else None for c in (student, teacher))
    if words["rank"]:
        lora.attach(net, words["rank"])
    if words["tokens"]:
        windows = token_files.open_tokens(words["tokens"]).train
    else:
        ids = np.random.default_rng(0).integers(0, student.vocab_size, 2 * context + 1)
        windows = data.Windows(ids.astype(np.uint32), context)
    recipe = train.recipe(words["recipe"] | ({} if teacher else {"ce_weight": 1.0}))
    recipe = replace(recipe, batch_tokens=context, epochs=1.0, token_limit=0)

    def tick(*_: object) -> None:
        if device == "cuda":
            torch.cuda.synchronize()
        ended.append(time.monotonic())

    rows = np.arange(2)
    log = train.fit(net, windows, recipe, teacher=asked, rows=rows, device=device, progress=tick)
    if not math.isfinite(loss := log[-1].get("train/loss", math.nan)):
        raise ValueError(f"the loss is {loss}: look at the tokens")
    seconds, memory = ended[1] - ended[0], provenance.peak_memory_mib() * 2**20
    return f"{seconds:.2g} s a window, {units.si(memory, 'B')} at most"


if __name__ == "__main__":
    print(step(json.loads(sys.argv[1])))
