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

from tdlib import cost, data, lora, plan, runs, train, units, workload
from tdlib.model import Llama, LlamaConfig

LIMIT_S = 240  # that the two steps may take
ROOM = 0.9  # share of the free memory that is asked for


def examine(pairs: dict[str, str]) -> int:
    """Print the lines; 1 where one fails. `pairs`: PROFILE, OUT, TOKENS, TEACHER."""
    of = plan.asked(pairs)
    works, failed = of.works(), 0

    def say(what: str, fault: str, good: str) -> None:
        nonlocal failed
        failed += bool(fault)
        print(f"{'✗' if fault else '✓'} {what}: {fault or good}", flush=True)

    compiles = any(one.parameters.get("compile") for one in of.runs)
    say("torch", *_torch(compiles))
    say("tokens", *_tokens(of))
    say("run folder", *_writable(of.out))
    say("disk", *_disk(of.out, works))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    room = _room(device)
    say("memory", *_memory(works, device, room))
    for names, t in _distinct(works).items():
        what = f"two steps of {names}"
        need = cost.training_bytes(t.student, t.teacher, 1, t.student.context, device, t.rank)
        need += workload.PROCESS if device == "cpu" else 0
        if need > room:
            sizes = f"one window needs {units.si(need, 'B')}, {units.si(room, 'B')} are free"
            say(what, f"not tried: {sizes}; activation_checkpointing: true, or another machine", "")
        elif (step := _tried(t, device, of.tokens)) is None:
            print(f"– {what}: not tried to the end, more than {LIMIT_S} s here", flush=True)
        else:
            say(what, step.get("error", ""), step.get("said", ""))
    return 1 if failed else 0


def _torch(compiles: bool) -> tuple[str, str]:
    """What is wrong with this build of torch on this machine, and what it is."""
    build, version = torch.version.cuda, torch.__version__
    if not Path("/dev/nvidia0").exists():
        return "", f"{version}, no GPU here, threads: {torch.get_num_threads()}"
    if not build:
        return f"{version} is a build without CUDA, and a GPU is here: install torch for its " \
               "driver (pytorch.org), then make clean setup", ""  # fmt: skip
    if not torch.cuda.is_available():
        return f"{version} is built for CUDA {build}, the GPU's driver is older: a newer driver, " \
               "or torch for an older CUDA", ""  # fmt: skip
    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    built = torch.cuda.get_arch_list()
    if not covers(built, major, minor):
        return f"{version} has no code for {name} (sm_{major}{minor}), only {', '.join(built)}: " \
               "install a newer torch", ""  # fmt: skip
    if compiles and not (shutil.which("gcc") or shutil.which("cc")):
        return "compile: true needs a C compiler: apt-get install gcc, or compile: false", ""
    return "", f"{version}, CUDA {build}, {name} (sm_{major}{minor})"


def covers(built: list[str], major: int, minor: int) -> bool:
    """Whether code for these architectures (sm_90, sm_90a, compute_80) runs on a GPU: binary code
    on later minor versions of its major one, an "a" on that alone, compute_ on all later ones."""
    for arch in built:
        kind, _, number = arch.partition("_")
        digits = number.rstrip("af")
        its = int(digits[:-1]), int(digits[-1])
        exact = number.endswith("a") and its != (major, minor)
        if its <= (major, minor) and not exact and (kind == "compute" or its[0] == major):
            return True
    return False


def _tokens(of: plan.Asked) -> tuple[str, str]:
    """The files, a sample of their ids, and the teacher's context beside theirs; its vocabulary was
    looked at before."""
    p, teacher = of.runs[0].parameters, of.teachers[0]
    if of.tokens is None and not (p["text_characters"] or p["text"]):
        return "none yet, and this profile writes no text of its own: give TOKENS=folder", ""
    if of.tokens is None:
        return "", "00_teacher makes them from text"
    try:
        tokens = data.open_tokens(of.tokens)
    except (ValueError, OSError) as error:
        return str(error), ""
    if teacher.context < tokens.context:
        return f"the teacher's context is {teacher.context:,}, theirs is {tokens.context:,}: a " \
               "shorter block_size in their meta.json", ""  # fmt: skip
    return "", f"{of.sizes[0].said}; vocabulary {tokens.vocab_size:,}, as the teacher's"


def _writable(out: Path) -> tuple[str, str]:
    folder = _existing(out)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        return f"{folder} cannot be written ({error.strerror}): chmod, or another one (OUT=)", ""
    return "", f"{out} can be written"


def _existing(out: Path) -> Path:
    return next(path for path in (out, *out.parents) if path.is_dir())


def _disk(out: Path, works: list[workload.Work]) -> tuple[str, str]:
    free, need = shutil.disk_usage(_existing(out)).free, sum(plan.disk(works))
    said = f"{units.si(free, 'B')} free, {units.si(need, 'B')} needed"
    return (
        (f"{said}: make room, or a run folder elsewhere (OUT=)", "") if need > free else ("", said)
    )


def _room(device: str) -> int:
    """Bytes that a training may take here."""
    if device == "cuda":
        return int(ROOM * torch.cuda.mem_get_info()[0])
    return int(
        ROOM * workload.status("MemAvailable", int(workload.here("cpu").bytes), "/proc/meminfo")
    )


def _memory(works: list[workload.Work], device: str, room: int) -> tuple[str, str]:
    need = {one.run: workload.memory(one, device) for one in works}
    free = f"{units.si(room, 'B')} may be used"
    if large := [f"{run} {units.si(size, 'B')}" for run, size in need.items() if size > room]:
        return f"too little for {', '.join(large)}; {free}: fewer micro_windows need less, or " \
               "activation_checkpointing: true", ""  # fmt: skip
    most = max(need, key=need.get)
    return "", f"at most {units.si(need[most], 'B')} ({most}); {free}"


def _distinct(works: list[workload.Work]) -> dict[str, workload.Training]:
    """One training of each pair of shapes, by the names of all that have it."""
    found = {}
    for t in (t for one in works for t in one.trainings):
        key = t.student, t.teacher, t.rank, t.parameters["compile"]
        found.setdefault(key, []).append(t)
    return {", ".join(t.name for t in same): same[0] for same in found.values()}


def _tried(t: workload.Training, device: str, tokens: Path | None) -> dict[str, str] | None:
    """{"said": …} or {"error": …}; None where it takes too long."""
    words = {"student": asdict(t.student), "teacher": t.teacher and asdict(t.teacher),
             "rank": t.rank, "recipe": t.parameters | {"temperature": t.temperature},
             "device": device, "tokens": str(tokens or "")}  # fmt: skip
    command = [sys.executable, "-m", "tdlib.doctor", json.dumps(words)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode == 0:
        return {"said": done.stdout.splitlines()[-1]}
    last = (done.stderr.strip().splitlines() or ["no word; killed for its memory?"])[-1]
    return {"error": f"{last} (exit {done.returncode}): run this shape alone, ONLY=, to see it all"}


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
        windows = data.open_tokens(words["tokens"]).train
    else:
        ids = np.random.default_rng(0).integers(0, student.vocab_size, 2 * context + 1)
        windows = data.Windows(ids.astype(np.uint32), context)
    recipe = train.recipe(words["recipe"] | ({} if teacher else {"ce_weight": 1.0}))
    recipe = replace(recipe, batch_tokens=context, epochs=1.0, token_limit=0)

    def tick(*_: object) -> None:
        if device == "cuda":
            torch.cuda.synchronize()
        ended.append(time.monotonic())

    log = train.fit(net, windows, recipe, teacher=asked, rows=np.arange(2), device=device,
                    progress=tick)  # fmt: skip
    if not math.isfinite(loss := log[-1].get("train/loss", math.nan)):
        raise ValueError(f"the loss is {loss}: look at the tokens")
    seconds, memory = ended[1] - ended[0], runs.peak_memory_mib() * 2**20
    return f"{seconds:.2g} s a window, {units.si(memory, 'B')} at most"


if __name__ == "__main__":
    print(step(json.loads(sys.argv[1])))
