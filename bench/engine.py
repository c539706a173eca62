"""Benchmarks of the engine, each a ratio of two things timed in turns in one run: `make bench`.

Time is CPU time of one process, so that a busy machine moves it little; memory is the peak of a
process of its own over what it had before. The table goes to the screen and, dated, to the end of
LOG.md. Names as arguments run these alone: python -m bench.engine head memory.
"""

import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from bench import explorer, inference, plan
from tdbook.training import cache
from tdbook.workflow import workload
from tdlib import data, hard_set, losses, train
from tdlib.model import SHAPES, Llama, LlamaConfig
from tdlib.shapes import to_hf

ROOT = Path(__file__).parents[1]
V, T = 51_800, 2048
MIB = 2**20
ONE_WINDOW = dict(epochs=1.0, token_limit=0, batch_tokens=T, micro_windows=1)
ONE_WINDOW |= dict(activation_checkpointing=False)
THREADS = int(os.environ.get("THREADS", "1"))


def cpu(function) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began


def ratio(function, against, repeats: int = 5) -> tuple[float, float, float]:
    """Median of function's CPU time over its partner's, and the range; the two in turns."""
    function(), against()
    found = sorted(cpu(function) / cpu(against) for _ in range(repeats))
    return statistics.median(found), found[0], found[-1]


def span(found: tuple[float, float, float], digits: int = 2) -> str:
    return f"{found[0]:.{digits}f} ({found[1]:.{digits}f}–{found[2]:.{digits}f})"


def config(name: str, **more) -> LlamaConfig:
    return LlamaConfig(vocab_size=V, context=T, **SHAPES[name], **more)


def some_windows(count: int) -> data.Windows:
    return data.Windows(np.random.default_rng(0).integers(0, V, count * T + 1).astype("<u4"), T)


def head_case(n: int):
    g = torch.Generator().manual_seed(0)
    normal = lambda *size: torch.randn(*size, generator=g)  # noqa: E731
    return (normal(n, 512), normal(V, 512) * 0.05, torch.randint(V, (n,), generator=g),
            normal(n, 1024), normal(V, 1024) * 0.05)  # fmt: skip


def our_head(case, chunk=None) -> None:
    hidden, head, targets, teacher_hidden, teacher_head = case
    hidden, head = (x.detach().requires_grad_() for x in (hidden, head))
    losses.distillation_loss(
        hidden, head, targets, teacher_hidden_NE=teacher_hidden, teacher_head_VE=teacher_head,
        ce_weight=0.5, temperature=2.0, chunk=chunk,
    ).loss.backward()  # fmt: skip


def plain_loss(s_NV, g_NV, targets_N):
    q, p = (s_NV / 2).log_softmax(-1), (g_NV / 2).log_softmax(-1)
    kl = F.kl_div(q, p, reduction="batchmean", log_target=True)
    return 0.5 * F.cross_entropy(s_NV, targets_N) + 0.5 * 4 * kl


def plain_head(case) -> None:
    hidden, head, targets, teacher_hidden, teacher_head = case
    hidden, head = (x.detach().requires_grad_() for x in (hidden, head))
    plain_loss(hidden @ head.T, teacher_hidden @ teacher_head.T, targets).backward()


def four_products(case) -> None:
    hidden, head, _, teacher_hidden, teacher_head = case
    logits, _ = hidden @ head.T, teacher_hidden @ teacher_head.T
    logits @ head
    logits.T @ hidden


# --- memory: a process of its own measures one thing


def status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / MIB


def peak_of(function) -> float:
    """MiB above what was there before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    function()
    return status("VmHWM") - before


def alone(name: str, *arguments, **environment) -> dict:
    """`measure_<name>` in a process of its own."""
    words = [sys.executable, "-m", "bench.engine", "measure", name, *map(str, arguments)]
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, env=os.environ | environment
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def measure_head(n: str) -> dict:
    case = head_case(int(n))
    our_head(head_case(8), 256)
    return {"mib": peak_of(lambda: our_head(case, 256))}


def measure_step(who: str, repeats: str = "2") -> dict:
    """Seconds and memory of optimiser steps of two windows, teacher-plan → student-50m."""
    torch.manual_seed(0)
    shapes = config("student-50m"), config("teacher-plan")
    windows = some_windows(2)
    seconds = []
    if who == "ours":
        student, teacher = (Llama(shape) for shape in shapes)
        teacher.requires_grad_(False)
        recipe = train.Recipe(batch_tokens=2 * T, micro_windows=2, epochs=float(repeats))

        def run():
            began = []
            train.fit(student, windows, recipe, teacher=teacher, evaluations=1,
                      progress=lambda *_: began.append(time.process_time()))  # fmt: skip
            seconds.extend(np.diff(began).tolist())
    else:
        import transformers

        student, teacher = (
            transformers.LlamaForCausalLM(transformers.LlamaConfig(**to_hf(shape)))
            for shape in shapes
        )
        optimizer = torch.optim.AdamW(student.parameters(), lr=5e-4, betas=(0.9, 0.95))

        def run():
            for _ in range(int(repeats)):
                began = time.process_time()
                ids, targets = windows.batch([0, 1])
                with torch.no_grad():
                    g = teacher(ids).logits.flatten(0, 1)
                plain_loss(student(ids).logits.flatten(0, 1), g, targets.flatten()).backward()
                torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                seconds.append(time.process_time() - began)

    memory = peak_of(run)
    return {"mib": memory, "seconds": seconds[-max(1, len(seconds) - 1) :]}


def measure_three_steps() -> dict:
    """The plan's teacher and its smallest student, three steps of one window each."""
    torch.manual_seed(0)
    shapes = config("student-50m"), config("teacher-plan")
    weights = 4 * sum(shape.parameters for shape in shapes)
    told = workload.training("a", *shapes, 3, ONE_WINDOW)
    predicted = (told.memory["cpu"] + weights) / MIB
    recipe = train.Recipe(batch_tokens=T, micro_windows=1, epochs=1.0)
    rows = []

    def run():
        student, teacher = (Llama(shape) for shape in shapes)
        train.fit(student, some_windows(3), recipe, teacher=teacher, record=rows.append)

    return {
        "mib": peak_of(run),
        "predicted": predicted,
        "losses": [r["train/loss"] for r in rows[1:]],
    }


BENCHES = {}


def bench(row: str, wanted: str):
    def add(function):
        BENCHES[function.__name__] = (row, wanted, function)
        return function

    return add


@bench("loss head, forward + backward, 512 tokens, to its four matrix products", "≤ 1.20; 1.10")
def head():
    case = head_case(512)
    plain = ratio(lambda: plain_head(case), lambda: four_products(case), 3)
    ours = ratio(lambda: our_head(case), lambda: four_products(case), 9)
    return f"{span(ours)}; plain PyTorch {span(plain)}"


@bench("its peak memory, 2,048 tokens, chunk 256; growth at 8,192", "≤ 340 MiB, ≤ 10 %; 310, 0")
def memory():
    small, large = (alone("head", n)["mib"] for n in (2048, 8192))
    return f"{small:.0f} MiB; {large:.0f} MiB, {large / small - 1:+.1%}"


@bench(
    "whole step, 4,096 tokens, tokens/s and memory to transformers with all logits",
    "≥ 1.15 ×, ≤ 0.5 ×; 1.3, 0.35",
)
def step():
    plain = {"MALLOC_ARENA_TEST": "8"}  # glibc's default: tdlib then leaves malloc as it is
    ours, theirs, tuned = [], [], []
    for _ in range(2):
        ours.append(alone("step", "ours"))
        theirs.append(alone("step", "theirs", **plain))
        tuned.append(alone("step", "theirs"))

    def versus(others: list[dict]) -> str:
        pairs = zip(others, ours, strict=True)
        speeds = sorted(b["seconds"][-1] / a["seconds"][-1] for b, a in pairs)
        memory = max(a["mib"] for a in ours) / max(b["mib"] for b in others)
        return f"{statistics.mean(speeds):.2f} × ({speeds[0]:.2f}–{speeds[-1]:.2f}), {memory:.2f} ×"

    return (
        f"{versus(theirs)} ({ours[0]['mib']:,.0f} to {theirs[0]['mib']:,.0f} MiB, weights left "
        f"out); with our malloc settings for both {versus(tuned)}"
    )


@bench(
    "share of the measured matrix peak, student-50m step from the text alone, 2,048 tokens",
    "–; 70 %",
)
def peak():
    shape, windows = config("student-50m"), some_windows(4)
    student, shares = Llama(shape), []
    recipe = train.Recipe(batch_tokens=T, micro_windows=1, ce_weight=1.0, epochs=1.0)
    times = []
    train.fit(student, windows, recipe, progress=lambda *_: times.append(time.process_time()))
    for seconds in np.diff(times):
        shares.append(workload.step_flop(shape, T) * T / seconds / workload.peak_flop("cpu"))
    return span((statistics.median(shares), min(shares), max(shares)))


@bench("scoring two windows with teacher-plan and student-50m, to two bare forwards", "≥ 0.95; –")
def scoring():
    windows = some_windows(2)
    models = [Llama(config(name)).eval() for name in ("student-50m", "teacher-plan")]

    def bare():
        with torch.no_grad():
            for model in models:
                for row in range(2):
                    model(windows.batch([row])[0])

    found = ratio(bare, lambda: hard_set.score(*models, windows), 3)
    return span(found)


@bench(
    "teacher-plan → student-50m, three steps of one window: memory to the predicted", "± 10 %; –"
)
def three_steps():
    found = alone("three_steps")
    return (
        f"{found['mib'] / found['predicted']:.2f} ({found['mib']:,.0f} MiB, predicted "
        f"{found['predicted']:,.0f}); losses {', '.join(f'{x:.2f}' for x in found['losses'])}"
    )


@bench(
    "targets online to cached, teacher-plan → student-50m: a student's step; 3 epochs, the first "
    "of which fills the cache",
    "≥ 2.2 ×, ≥ 1.5 ×; 2.4, 1.6",
)
def cached():
    teacher, windows = Llama(config("teacher-plan")).eval(), some_windows(1)
    recipe = train.Recipe(batch_tokens=T, micro_windows=1, epochs=3.0)

    def seconds(source) -> np.ndarray:
        """CPU time of each of three steps, one window each, always the same."""
        torch.manual_seed(0)
        times = [time.process_time()]
        train.fit(
            Llama(config("student-50m")), windows, recipe, teacher=source, evaluations=1,
            evaluate=lambda _: times.append(time.process_time()) or {},
            progress=lambda *_: times.append(time.process_time()),
        )  # fmt: skip
        return np.diff(times)[1:4]

    steps, runs = [], []
    for _ in range(3):
        online_3 = seconds(teacher)
        with tempfile.TemporaryDirectory() as folder:
            with cache.Cache(Path(folder), teacher, windows, temperature=2.0) as targets:
                cached_3 = seconds(targets)
        steps += (online_3 / cached_3)[1:].tolist()
        runs.append(online_3.sum() / cached_3.sum())
    step, run = (span((statistics.median(x), min(x), max(x))) for x in (steps, runs))
    return f"{step} ×; {run} ×"


@bench("share of the measured matrix peak, teacher-plan's forward, 2,048 tokens", "≥ 80 %; –")
def teacher_peak():
    teacher, (ids_BT, _) = Llama(config("teacher-plan")).eval(), some_windows(1).batch([0])
    square, times = torch.randn(1536, 1536), 20

    def products():
        for _ in range(times):
            square @ square

    with torch.no_grad():
        found = ratio(products, lambda: teacher(ids_BT), 3)
    share = workload.forward_flop(teacher.config, T) * T / (2 * 1536**3 * times)
    return span(tuple(share * x for x in found))


@bench(
    "02 with the teacher to 02 from the cache; largest difference of difficulty", "≥ 2 ×, ≤ 1e-5"
)
def scoring_cached():
    windows = some_windows(2)
    student, teacher = (Llama(config(name)).eval() for name in ("student-50m", "teacher-plan"))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        with cache.Cache(Path(folder), teacher, windows, temperature=2.0) as targets:
            for row in range(2):
                targets.draws([row], *windows.batch([row]))
            ask = [lambda x=x: hard_set.score(student, x, windows) for x in (teacher, targets)]
            apart = np.abs(ask[0]().difficulty_N - ask[1]().difficulty_N).max()
            return f"{span(ratio(*ask, 3))} ×, {apart:.0e}"


@bench("1 micro-batch to 4, relative difference of the weights after 10 steps", "≤ 1e-5; –")
def micro_batches():
    ids = np.random.default_rng(0).integers(0, 500, 32 * 160 + 1).astype("<u4")
    found = []
    for size in (16, 4):
        torch.manual_seed(0)
        shape = dict(vocab_size=500, layers=2, heads=2, context=32)
        teacher, student = (Llama(LlamaConfig(dim=dim, mlp_dim=160, **shape)) for dim in (64, 32))
        recipe = train.Recipe(batch_tokens=16 * 32, micro_windows=size, epochs=1.0)
        train.fit(student, data.Windows(ids, 32), recipe, teacher=teacher)
        found.append(torch.cat([w.flatten() for w in student.state_dict().values()]).double())
    return f"{float((found[1] - found[0]).norm() / found[0].norm()):.1e}"


@bench(
    "50M writes, decoding alone, to llama.cpp Q4_0 throughout: KV float32; KV + INT8",
    "≥ 0.13, ≥ 0.30; 0.18, 0.45",
)
def decoding():
    return inference.to_llama_cpp()


@bench("50M writes 64 tokens after 32: KV to raw; KV + INT8 to KV", "≥ 3.0 ×, ≥ 2.0 ×; 3.5, 2.5")
def writing():
    return inference.among_ours()


@bench("plan against truth, five shapes: memory, seconds", "± 10 %, within; –")
def planned():
    return plan.against_truth()


@bench("explorer over 1.8 million windows: a move to the painted page", "≤ 50 ms, ≤ 200 ms; –")
def explorer_moves():
    return explorer.redraws()


def main(names: list[str]) -> None:
    torch.set_num_threads(THREADS)
    if names[:1] == ["measure"]:
        print(json.dumps(globals()[f"measure_{names[1]}"](*names[2:])))
        return
    if not {*names} <= BENCHES.keys():  # --help too
        print(
            __doc__, "\n".join(f"{name}: {what}" for name, (what, *_) in BENCHES.items()), sep="\n"
        )
        return
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(x.partition(": ")[2] for x in cpuinfo if x.startswith("model name"))
    top = [
        f"## {datetime.date.today()} · make bench · {model}, threads: {THREADS}, torch "
        f"{torch.__version__}, load {os.getloadavg()[0]:.1f} at the start",
        "", "| what | must; goal | measured |", "|---|---|---|",
    ]  # fmt: skip
    print("\n".join(top), flush=True)
    rows = []
    for name in names or BENCHES:
        what, wanted, function = BENCHES[name]
        rows.append(f"| {what} | {wanted} | {function()} |")
        print(rows[-1], flush=True)
    with (ROOT / "LOG.md").open("a") as log:
        log.write("\n".join(["", *top, *rows, ""]))


if __name__ == "__main__":
    main(sys.argv[1:])
