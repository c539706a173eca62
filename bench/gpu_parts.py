"""The parts of bench/gpu.py: what each measures, as rows. Times are medians by CUDA events, after
warm-up, on random data and on the plan's own shapes.

Legend: B windows, T tokens of a window, N tokens of a micro-batch, V vocabulary, H heads, K head
width, D student width, E teacher width.
"""

import contextlib
import functools
import gc
import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench import gpu_carry
from tdlib import data, evaluate, hard_set, lora, losses, train
from tdlib.model import Llama
from tdlib.shapes import SHAPES, LlamaConfig

ROOT = Path(__file__).parents[1]
BF16, F32 = torch.bfloat16, torch.float32
# dense bfloat16 a second, by NVIDIA's data sheets: shares are of these
PUBLISHED = {"H200": 989e12, "H100": 989e12, "B200": 2250e12, "A100": 312e12}
BACKENDS = {"flash": "FLASH_ATTENTION", "cuDNN": "CUDNN_ATTENTION", "plain products": "MATH"}


def row(what: str, value: float | None = None, note: str = "", detail: bool = False) -> dict:
    value = None if value is None or not math.isfinite(value) else float(value)
    return {"what": what, "value": value, "note": note, "detail": detail}


@dataclass
class Gpu:
    """The device, real (cuda), not there (fake), or this CPU instead (cpu), and how to time on it.

    What is not there has the plan's shapes but for one layer, few repeats, and neither times nor
    values. A CPU has small shapes."""

    kind: str
    recorder: object = None  # of bench/fake_gpu.py
    until: float = math.inf  # when the part must be over

    def __post_init__(self):
        self.name = "cpu" if self.kind == "cpu" else "cuda:0"
        self.type = self.name.split(":")[0]
        self.real = self.kind == "cuda"
        small = self.kind == "cpu"
        self.v, self.t, self.b = (500, 64, 2) if small else (51_800, 2048, 16)
        self.micros = self.many(8, 1)  # micro-batches a step: the plan's 262,144 tokens

    def many(self, real: int, few: int) -> int:
        return real if self.real else few

    def size(self, real: int, small: int) -> int:
        return small if self.kind == "cpu" else real

    def randn(self, *size: int, dtype: torch.dtype = F32) -> Tensor:
        return torch.randn(*size, device=self.name, dtype=dtype)

    def llama(self, name: str) -> Llama:
        tiny = name.replace("-plan", "") + "-tiny" if self.kind == "cpu" else name
        shape = dict(vocab_size=self.v, context=self.t) | SHAPES[tiny]
        shape |= {} if self.real else {"layers": 1}
        with torch.device(self.name):
            return Llama(LlamaConfig(**shape))

    def pair(self) -> tuple[Llama, Llama]:
        """The plan's smallest student and its teacher, whose logits are as wide as trained ones."""
        torch.manual_seed(0)
        student, teacher = self.llama("student-50m"), self.llama("teacher-plan")
        with torch.no_grad():
            for model in (student, teacher):
                model.embed_tokens.weight.mul_(4)
        return student, teacher.requires_grad_(False).eval()

    def windows(self, count: int) -> data.Windows:
        """Ids of which some are far more frequent than others, as in text."""
        uniform = np.random.default_rng(0).random(count * self.t + 1)
        return data.Windows((self.v * uniform**4).astype("<u4"), self.t)

    def sync(self) -> None:
        if self.real:
            torch.cuda.synchronize()

    def mark(self):
        """A moment: of the device, where there is one."""
        if not self.real:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, marks: list) -> list[float]:
        """Milliseconds from each mark to the next."""
        self.sync()
        if self.real:
            return [a.elapsed_time(b) for a, b in itertools.pairwise(marks)]
        unknown = math.nan if self.kind == "fake" else 1
        return [unknown * 1000 * (b - a) for a, b in itertools.pairwise(marks)]

    def ms(self, function: Callable, repeats: int = 10, warm: int = 3) -> float:
        """Median milliseconds of a call."""
        for _ in range(self.many(warm, 0)):
            function()
        self.sync()
        marks = [self.mark()]
        for _ in range(self.many(repeats, 1)):
            function()
            marks.append(self.mark())
        return statistics.median(self.between(marks))

    def forget(self) -> None:
        """What is no longer used is free, and the peak of memory starts anew."""
        gc.collect()
        if self.real:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        elif self.recorder:
            self.recorder.clear()

    def peak_gb(self) -> float:
        return torch.cuda.max_memory_allocated() / 1e9 if self.real else math.nan

    def number(self, x: Tensor) -> float:
        return math.nan if self.kind == "fake" else x.item()

    def tried(
        self, what: str, function: Callable[[], Iterator[dict]], seconds: float = 0
    ) -> Iterator[dict]:
        """The rows of a function that may take so long. What it raises becomes a row, and costs
        only what is left of it."""
        if time.monotonic() + seconds > self.until:
            yield row(what, note="✗ skipped, no time left")
            return
        try:
            yield from function()
        except Exception as error:  # a fault of any kind is a result here
            traceback.print_exc()
            yield row(what, note=f"✗ {told(error)}")

    def cast(self, dtype: torch.dtype | None = BF16):
        return torch.autocast(self.type, dtype, enabled=dtype is not None)

    @contextlib.contextmanager
    def waits(self) -> Iterator[Counter]:
        """Where the host waits for the device meanwhile: "file:line" → how often."""
        found: Counter[str] = Counter()
        if self.recorder:
            self.recorder.clear()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            if self.real:
                torch.cuda.set_sync_debug_mode("warn")
            try:
                yield found
            finally:
                if self.real:
                    torch.cuda.set_sync_debug_mode("default")
        for one in told:
            if "synchroniz" in str(one.message):
                found[f"{Path(one.filename).name}:{one.lineno}"] += 1
        if self.recorder:
            found |= self.recorder.waits


@contextlib.contextmanager
def products(precision: str) -> Iterator[None]:
    """How products of float32 are made: "highest" in float32, "high" in TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def uncompiled():
    return torch.compiler.set_stance("force_eager")


def backend(name: str):
    return sdpa_kernel(getattr(SDPBackend, BACKENDS[name]))


def told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def forward_flop(config: LlamaConfig) -> float:
    """A token, forward: two a weight, and attention over half the context."""
    attention = 2 * config.context * config.heads * config.head_dim * config.layers
    return 2 * config.parameters + attention


class Enough(Exception):
    """Ends a training that has told what was asked."""


def fit(
    gpu: Gpu,
    student: Llama,
    count: int,
    *,
    teacher: Llama | data.Targets | None = None,
    windows: data.Windows | None = None,
    micros: int = 0,
    at: Callable[[int], None] = lambda step: None,
    **recipe: object,
) -> list[float]:
    """Milliseconds of each of `count` optimiser steps of train.fit, which is made to believe in a
    long training: it logs seldom, as in a night. `at` is called after each step."""
    micros = micros or gpu.micros
    windows, marks = windows or gpu.windows(micros * gpu.b), [gpu.mark()]

    def progress(step: int, steps: int, message: str) -> None:
        marks.append(gpu.mark())
        at(step)
        if step == count:
            raise Enough

    how = dict(batch_tokens=micros * gpu.b * gpu.t, micro_windows=gpu.b, epochs=4000.0)
    how |= dict(ce_weight=1.0 if teacher is None else 0.5)
    where = dict(teacher=teacher, device=gpu.name, progress=progress)
    with contextlib.suppress(Enough):
        train.fit(student, windows, train.Recipe(**how | recipe), **where)
    return gpu.between(marks)


# --- the parts


def machine(gpu: Gpu) -> Iterator[dict]:
    """Versions, the ceilings of products and memory, and attention's backends."""
    yield row("torch", note=f"{torch.__version__}, CUDA {torch.version.cuda}")
    if gpu.real:
        with contextlib.suppress(ImportError):
            import triton

            yield row("triton", note=triton.__version__)
        about = torch.cuda.get_device_properties(0)
        memory = f"{about.total_memory / 1e9:.0f} GB, sm_{about.major}{about.minor}"
        yield row("GPU", note=f"{about.name}, {about.multi_processor_count} SMs, {memory}")
        yield row("cuDNN", torch.backends.cudnn.version())
        ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        yield from gpu.tried("driver", lambda: iter([row("driver", note=_said(ask))]))

    def product(m: int, k: int, n: int, dtype: torch.dtype, make: Callable) -> float:
        a, b = (make(*size, device=gpu.name, dtype=dtype) for size in ((m, k), (k, n)))
        return 2 * m * k * n / gpu.ms(lambda: a @ b) / 1e9

    n = gpu.size(8192, 256)
    for name, make in (("random", torch.randn), ("zeros", torch.zeros)):
        what = f"product of bfloat16, {name}, TFLOP/s"
        yield row(what, product(n, n, n, BF16, make))
    for name, precision in (("TF32", "high"), ("float32", "highest")):
        with products(precision):
            yield row(
                f"product in {name}, TFLOP/s", product(n // 2, n // 2, n // 2, F32, torch.randn)
            )
    tokens = gpu.b * gpu.t
    for name, size in {
        "teacher's MLP": (tokens, 1024, 2816),
        "student's MLP": (tokens, 512, 1408),
        "teacher's head": (4096, 1024, gpu.v),
        "student's head": (4096, 512, gpu.v),
    }.items():
        size = size if gpu.kind != "cpu" else (64, 64, 64)
        yield row(f"{name}, bfloat16, TFLOP/s", product(*size, BF16, torch.randn))
    yield row("copy, TB/s", copy_speed(gpu))
    for who, heads in (("student", 8), ("teacher", 16)):
        yield from attention_speed(gpu, who, heads)


def copy_speed(gpu: Gpu) -> float:
    """TB a second, read and written."""
    source = gpu.randn(gpu.size(2**29, 2**16))
    place = torch.empty_like(source)
    return 8 * len(source) / gpu.ms(lambda: place.copy_(source)) / 1e9


def attention_speed(gpu: Gpu, who: str, heads: int) -> Iterator[dict]:
    q, k, v = (gpu.randn(gpu.b, heads, gpu.t, 64, dtype=BF16) for _ in range(3))
    if gpu.real:
        name = SDPBackend(torch._fused_sdp_choice(q, k, v, is_causal=True)).name
        yield row(f"{who}'s attention by default", note=name)
    flop = 2 * gpu.b * heads * gpu.t**2 * 64  # causal: half

    def forward() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def both() -> None:
        y = forward()
        torch.autograd.grad(y, (q, k, v), y.detach())

    def timed(name: str) -> Iterator[dict]:
        what = f"{who}'s attention, {name}"
        with backend(name):
            [x.requires_grad_(False) for x in (q, k, v)]
            speed = flop / gpu.ms(forward) / 1e9
            yield row(f"{what}, TFLOP/s", speed, detail=who == "student")
            if who == "student":
                [x.requires_grad_() for x in (q, k, v)]
                yield row(f"{what}, with backward, TFLOP/s", 3.5 * flop / gpu.ms(both) / 1e9)

    for name in ("flash", "cuDNN") if gpu.real else ("flash",):
        yield from gpu.tried(f"{who}'s attention, {name}", lambda n=name: timed(n))


def _said(words: list[str]) -> str:
    return subprocess.run(
        words, capture_output=True, text=True, timeout=10, check=True
    ).stdout.strip()


@dataclass(frozen=True)
class Way:
    """How a loss is made: in which type, and by which attention."""

    cast: torch.dtype | None = None  # of products; None: float32
    precision: str = "highest"  # of products in float32
    compiled: bool = False
    backend: str = ""  # of attention; "": torch's choice

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        nothing = contextlib.nullcontext()
        stance = nothing if self.compiled else uncompiled()
        attention = backend(self.backend) if self.backend else nothing
        with products(self.precision), stance, attention:
            yield


WAYS = {
    "float32": Way(),
    "TF32": Way(precision="high"),
    "bfloat16, flash": Way(BF16, backend="flash"),
}
WAYS |= {"bfloat16, cuDNN": Way(BF16, backend="cuDNN")}
COMPILED = {"bfloat16, compiled": Way(BF16, compiled=True), "float32, compiled": Way(compiled=True)}


def numbers(gpu: Gpu) -> Iterator[dict]:
    """Losses and gradients, against float64 on a CPU. The file has every case, the table the worst
    of each way to make them, beside what a CPU made of that case in float32 or bfloat16."""
    carried = gpu_carry.load()
    heads, models = list(gpu_carry.HEADS), list(gpu_carry.MODELS)
    if not gpu.real:
        heads, models = heads[::3], models[::3]
    for name in heads:
        if gpu_carry.head_case(name)[2] != carried[name]["hash"]:
            raise ValueError(f"{name} has other inputs here than where it was carried from")

    def head(name: str, way: Way) -> dict:
        return gpu_carry.head_loss(name, gpu.name, way.cast)

    def model(name: str, way: Way) -> dict:
        compile = torch.compile if way.compiled else lambda function: function
        return gpu_carry.model_loss(name, gpu.name, way.cast, compile)

    for name, way in WAYS.items():
        if way.backend != "cuDNN":  # there is no attention in it
            yield from compared(f"head, {name.partition(',')[0]}", way, heads, head, carried)
        if way.backend != "cuDNN" or gpu.real:
            yield from compared(f"model, {name}", way, models, model, carried)
    yield from gpu.tried("attention", lambda: attention_numbers(gpu))
    for name, way in COMPILED.items():  # each case some seconds
        few = way.cast is None
        yield from compared(f"head, {name}", way, heads[:: 3 if few else 1], head, carried)
        yield from compared(f"model, {name}", way, models[: 1 if few else 5], model, carried)


def compared(
    what: str, way: Way, names: list[str], make: Callable, carried: dict
) -> Iterator[dict]:
    """A row for each case, then one for the worst, by what a CPU made of it in the same type."""
    worst = None
    for name in names:
        try:
            with way.on():
                found = gpu_carry.errors(make(name, way), carried[name])
        except Exception as error:  # as in `tried`
            traceback.print_exc()
            yield row(f"{what}: {name}", note=f"✗ {told(error)}")
            continue
        yield row(f"{what}: {name}: gradient", found[1], detail=True)
        yield row(f"{what}: {name}: loss", found[0], detail=True)
        expected = carried[name]["cpu"][0 if way.cast is None else 1][1]
        ratio = found[1] / expected if math.isfinite(found[1]) else math.inf
        if worst is None or ratio > worst[0]:
            worst = ratio, name, *found, expected
    if worst:
        _, name, loss, gradient, expected = worst
        note = f"({name}; a CPU: {expected:.1e}; of the loss {loss:.1e})"
        note += "" if math.isfinite(gradient) else " ✗ not finite"
        yield row(f"{what}: error of the gradient, worst case", gradient, note)


def attention_numbers(gpu: Gpu) -> Iterator[dict]:
    """The gradients of attention by its backends on the plan's shape, against float32 products."""
    for heads, groups in ((16, 16), (16, 4)):
        torch.manual_seed(0)
        sizes = [(2, h, gpu.t, 64) for h in (heads, groups, groups)]
        x = [gpu.randn(*size) for size in sizes]
        upstream = gpu.randn(*sizes[0])

        def gradients(dtype: torch.dtype, name: str, x=x, groups=groups, upstream=upstream):
            # the same numbers for all: those that bfloat16 has
            q, k, v = (t.bfloat16().to(dtype).requires_grad_() for t in x)
            with backend(name):
                grouped = {"enable_gqa": True} if groups < 16 else {}
                y = F.scaled_dot_product_attention(q, k, v, is_causal=True, **grouped)
            all_ = torch.autograd.grad(y, (q, k, v), upstream.to(dtype))
            return [t.float() for t in (y, *all_)]

        with products("highest"):
            right = gradients(F32, "plain products")
        for name in ("flash", "cuDNN") if gpu.real else ("flash",):
            what = f"attention of {heads} heads, {groups} of keys, {name}: worst error"

            def one(name=name, right=right, what=what, gradients=gradients):
                found = zip(gradients(BF16, name), right, strict=True)
                each = [gpu.number((a - b).norm() / b.norm()) for a, b in found]
                parts = zip(("output", "q", "k", "v"), each, strict=True)
                yield row(what, max(each), ", ".join(f"{k} {x:.1e}" for k, x in parts))

            yield from gpu.tried(what, one)


def waits(gpu: Gpu) -> Iterator[dict]:
    """Where the host waits for the device in the third step of the plan, uncompiled."""
    student, teacher = gpu.pair()
    found = []

    def at(step: int) -> None:
        if step == 2:
            found.append(stack.enter_context(gpu.waits()))
        elif step == 3:
            stack.close()

    with contextlib.ExitStack() as stack:
        fit(gpu, student, 3, teacher=teacher, at=at)
    places = ", ".join(f"{n} × {place}" for place, n in found[0].most_common(6))
    yield row("waits of the host in a step", found[0].total(), places)


def head(gpu: Gpu) -> Iterator[dict]:
    """The loss from hidden states of one micro-batch, with its gradients: products and the rest."""
    n, d, e = gpu.b * gpu.t, gpu.size(512, 32), gpu.size(1024, 64)
    torch.manual_seed(0)
    hidden, hidden_teacher = gpu.randn(n, d), gpu.randn(n, e)
    head_VD, head_VE = gpu.randn(gpu.v, d) / d**0.5, gpu.randn(gpu.v, e) / e**0.5
    y_N = torch.randint(gpu.v, (n,), device=gpu.name)
    drawn = dict(teacher_ids_NK=torch.randint(gpu.v, (n, 12), device=gpu.name, dtype=torch.int32))
    drawn |= dict(teacher_probs_NK=torch.rand(n, 12, device=gpu.name).clamp(min=1e-6))
    whole = dict(teacher_hidden_NE=hidden_teacher, teacher_head_VE=head_VE)
    leaves = hidden.requires_grad_(), head_VD.requires_grad_()

    def ms(repeats: int = 5, **more: object) -> float:
        how = dict(ce_weight=0.5, temperature=2.0) | more

        def once():
            with gpu.cast():
                loss = losses.distillation_loss(*leaves, y_N, **how).loss
            torch.autograd.grad(loss, leaves)

        return gpu.ms(once, repeats, warm=2)

    gpu.forget()
    all_ms = ms(**whole)
    yield row("head: all, ms", all_ms)
    yield row("head: memory, GB", gpu.peak_gb())
    low = [x.detach().bfloat16() for x in (hidden, head_VD, hidden_teacher, head_VE)]
    chunk = losses.default_chunk(gpu.type)
    only = gpu.ms(lambda: four_products(*low, chunk), 5, warm=2)
    yield row("head: products, ms", only)
    yield row("head: element-wise, ms", all_ms - only)
    yield row("head: text alone, ms", ms(ce_weight=1.0))
    yield row("head: 12 draws, ms", ms(**drawn))
    yield row("head: T 1, ms", ms(**whole | dict(temperature=1.0)))
    for size in (2048, 8192, 16_384):
        yield row(f"head: chunks of {size:,}, ms", ms(**whole, chunk=size))
    with uncompiled():
        yield row("head: uncompiled, ms", ms(2, **whole))
    before = "head: element-wise with the core before, ms"
    yield from gpu.tried(before, lambda: core_before(gpu, low))


def four_products(hidden, head_VD, hidden_teacher, head_VE, chunk: int) -> Tensor:
    """What no loss from these can do without, chunk by chunk."""
    total = torch.zeros_like(head_VD, dtype=F32)
    for h_ND, h_NE in zip(hidden.split(chunk), hidden_teacher.split(chunk), strict=True):
        h_NE @ head_VE.T
        s_NV = h_ND @ head_VD.T
        s_NV @ head_VD
        total += s_NV.T @ h_ND
    return total


def core_before(gpu: Gpu, low: list[Tensor]) -> Iterator[dict]:
    """The element-wise half as it was at first: logits in float32, one compilation for all sizes,
    six passes over them, casts and the one-hot parts apart."""
    hidden, head_VD, hidden_teacher, head_VE = low
    n = min(4096, len(hidden))
    s_low, g_low = hidden[:n] @ head_VD.T, hidden_teacher[:n] @ head_VE.T
    w_N, first_N = (
        torch.full((n,), 1 / n, device=gpu.name),
        torch.arange(n, device=gpu.name) * gpu.v,
    )
    y_N = torch.randint(gpu.v, (n,), device=gpu.name)
    a, t = (torch.full((), x, device=gpu.name) for x in (0.5, 2.0))

    def softmax(s):
        p = s.softmax(-1)
        return p, s.amax(-1, keepdim=True) - p.amax(-1, keepdim=True).log()

    def core(s, g, y_N, w_N, a, t):
        p1, logz = softmax(s)
        ce_N = (logz - s.gather(-1, y_N[:, None])).squeeze(-1)
        q, logz = softmax(s.div_(t))
        p, teacher_logz = softmax(g.div_(t))
        g.sub_(s).sub_(teacher_logz - logz)
        kl_N = (p * g).sum(-1)
        torch.sub(q, p, out=g)
        kl_N += g.sum(-1)
        torch.mul(g, ((1 - a) * t * w_N)[:, None], out=s)
        s.addcmul_(p1, (a * w_N)[:, None])
        return ce_N, kl_N

    compiled = torch.compile(core, dynamic=True)

    def once():
        s, g = s_low.float(), g_low.float()
        compiled(s, g, y_N, w_N, a, t)
        s.view(-1).scatter_add_(0, first_N + y_N, -0.5 * w_N)
        s.to(BF16)

    chunks = gpu.b * gpu.t / n
    yield row("head: element-wise with the core before, ms", chunks * gpu.ms(once, 5, warm=2))


def step(gpu: Gpu) -> Iterator[dict]:
    """The plan's steps by train.fit: tokens a second, memory, and the longest kernels."""
    student, teacher = gpu.pair()
    tokens = gpu.micros * gpu.b * gpu.t
    peak = next(
        (f for n, f in PUBLISHED.items() if gpu.real and n in torch.cuda.get_device_name()), 0
    )

    def measure(name: str, model: Llama, of=None, count: int = 4, **recipe: object):
        gpu.forget()
        began = time.monotonic()
        first, *rest = fit(gpu, model, gpu.many(count, 2), teacher=of, **recipe)
        ms = statistics.median(rest)
        yield row(f"{name}, tokens/s", 1000 * tokens / ms)
        yield row(f"{name}, ms a micro-batch", ms / gpu.micros, detail=name != "50m")
        plain = name in ("50m uncompiled", "50m, text alone")
        yield row(f"{name}, memory, GB", gpu.peak_gb(), detail=plain)
        frozen = forward_flop(model.config) * (not all(p.requires_grad for p in model.parameters()))
        each = 3 * forward_flop(model.config) - frozen + (forward_flop(of.config) if of else 0)
        if peak:
            share = each * 1000 * tokens / ms / peak
            yield row(f"{name}, share of the published peak", share, detail=name != "50m")
        spread = ", ".join(f"{x:.0f}" for x in [first, *rest])
        took = f"steps of {spread} ms, {time.monotonic() - began:.0f} s in all"
        yield row(f"{name}, steps", note=took, detail=True)

    fast = dict(compile=gpu.real)
    yield from gpu.tried("50m", lambda: measure("50m", student, teacher, **fast))
    yield from gpu.tried("50m, kernels", lambda: kernels(gpu, student, teacher, fast))
    yield from gpu.tried("50m", lambda: measure("50m uncompiled", student, teacher, 3))
    yield from gpu.tried("text alone", lambda: measure("50m, text alone", student, None, **fast))
    for name in ("80m", "120m"):
        model = gpu.llama(f"student-{name}")
        yield from gpu.tried(name, lambda n=name, m=model: measure(n, m, teacher, **fast), 40)
        del model

    def adapter() -> Iterator[dict]:
        base = lora.attach(student, 16)
        yield from measure("adapter", base, teacher, ce_weight=0.0, **fast)

    yield from gpu.tried("adapter", adapter, 40)


def flash(gpu: Gpu) -> Iterator[dict]:
    """The plan's step with flash attention, whatever torch would choose. A model compiles a backend
    in, so what was compiled is forgotten: after the other parts."""
    student, teacher = gpu.pair()
    if gpu.real:
        torch.compiler.reset()
    with backend("flash"):
        ms = fit(gpu, student, gpu.many(4, 2), teacher=teacher, compile=gpu.real)
    tokens = gpu.micros * gpu.b * gpu.t
    yield row("50m, flash, tokens/s", 1000 * tokens / statistics.median(ms[1:]))


# what a kernel does, by its name; those of Inductor are named after what they replace, so first
KERNELS = {"compiled, with sums": r"^triton_(red|per)", "compiled, without": r"^triton"}
KERNELS |= {"attention": r"fmha|flash|sdpa|attention", "product": r"gemm|nvjet|cutlass|xmma|splitK"}


def kernels(gpu: Gpu, student: Llama, teacher: Llama, recipe: dict) -> Iterator[dict]:
    """Milliseconds a micro-batch of the fifteen longest kernels, and of each kind of kernel."""
    if gpu.kind == "fake":
        return
    steps, kinds, activity = 3, Counter(), torch.profiler.ProfilerActivity
    activities = [activity.CUDA if gpu.real else activity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        fit(gpu, student, steps, teacher=teacher, micros=1, **recipe)
    each = {}
    for event in profile.key_averages():
        if not getattr(event, "is_user_annotation", False):  # a span of kernels, not one
            us = event.self_device_time_total or event.self_cpu_time_total * (not gpu.real)
            each[event.key] = us / 1000 / steps
    for name, ms in each.items():
        found = (kind for kind, pattern in KERNELS.items() if re.search(pattern, name, re.I))
        kinds[next(found, "other")] += ms
    for kind, ms in kinds.most_common():
        yield row(f"50m, {kind} kernels, ms a micro-batch", ms)
    for i, name in enumerate(sorted(each, key=each.get, reverse=True)[:15], 1):
        yield row(f"50m, kernel {i}, ms a micro-batch", each[name], name[:100], detail=True)


def scoring(gpu: Gpu) -> Iterator[dict]:
    """Notebook 02's scoring with both models: speed, and how far from float32 its difficulties."""
    student, teacher = (model.requires_grad_(False).eval() for model in gpu.pair())
    windows = gpu.windows(gpu.many(64, 4))
    tokens, exact = len(windows) * gpu.t, None
    ways = {"float32": "float32", "TF32": "tf32", "bfloat16": "bfloat16"}
    for way, kind in (ways | {"bfloat16, compiled": "bfloat16"}).items():
        how = dict(device=gpu.name, products=kind, compile=gpu.real and "compiled" in way)
        ask = functools.partial(hard_set.score, student, teacher, windows, **how)
        found, ms = ask().difficulty_N, gpu.ms(ask, 3, warm=1)
        yield row(f"02 in {way}, tokens/s", 1000 * tokens / ms)
        if exact is None:
            exact = found
        else:
            apart, spread = np.abs(found - exact), exact.std()
            note = f"(at most {apart.max():.1e}; windows differ by {spread:.1e})"
            yield row(f"02 in {way}: mean error of difficulty, nats", apart.mean(), note)


def cache(gpu: Gpu) -> Iterator[dict]:
    """A training with kept targets: the epoch that fills them, and one that reads them."""
    from tdbook.training import cache as kept

    student, teacher = gpu.pair()
    micros, fast = gpu.many(2, 1), dict(compile=gpu.real)
    windows = gpu.windows(gpu.many(4, 1) * micros * gpu.b)
    epoch = len(windows) // (micros * gpu.b)
    with tempfile.TemporaryDirectory() as folder:
        with kept.Cache(Path(folder, "cache"), teacher, windows, temperature=2.0) as targets:
            how = dict(teacher=targets, windows=windows, micros=micros) | fast
            ms = fit(gpu, student, 3 * epoch, **how)
            filled = float(targets.there(range(len(windows))).mean())
    tokens = 1000 * micros * gpu.b * gpu.t
    # the first steps of either also compile
    for name, part in (("filling", ms[1:epoch] or ms), ("reading", ms[epoch + 1 :])):
        yield row(f"50m, targets kept, {name}, tokens/s", tokens / statistics.median(part))
    yield row("share of the targets that were kept", filled)
    n, e = gpu.size(512, 16), gpu.size(1024, 32)
    hidden_NE, head_VE = gpu.randn(n, e), gpu.randn(gpu.v, e) * (2 / e**0.5)
    u_NK = kept.uniform(1, [0], n, 12)
    given = [hidden_NE, head_VE, torch.zeros(n, dtype=torch.int64, device=gpu.name), u_NK]
    with products("highest"):
        there = kept.targets(*(x.to(gpu.name) for x in given), 2.0)
        here = kept.targets(*(x.cpu() for x in given), 2.0)
    alike = gpu.number((there[0].cpu() == here[0]).double().mean())
    yield row("draws that a GPU and a CPU make alike, share", alike)


def tiny(gpu: Gpu) -> Iterator[dict]:
    """A tiny training of 470 steps: in bfloat16 here, in float32 where it was carried from."""
    carried = gpu_carry.load()
    steps = gpu.many(gpu_carry.STEPS, 4)
    right, moved = carried["tiny"], carried["tiny, moved"]
    began = time.monotonic()
    found = gpu_carry.tiny(gpu.name, steps=steps)
    yield row("tiny: seconds", time.monotonic() - began)
    if str(found["hash"]) != str(right["hash"]):
        raise ValueError("the tiny text is another here than where it was carried from")
    yield row("tiny: validation loss, float32, nats", right["val"])
    if steps < gpu_carry.STEPS:
        return
    note = f"(a start moved by 1e-3: {moved['val'] - right['val']:+.4f})"
    yield row("tiny: validation loss, bfloat16 − float32, nats", found["val"] - right["val"], note)
    last = slice(-len(right["loss"]) // 4, None)
    apart, noise = (np.abs(x["loss"] - right["loss"])[last].mean() for x in (found, moved))
    yield row("tiny: loss of a step, mean distance, nats", apart, f"(a moved start: {noise:.4f})")


def deterministic(gpu: Gpu) -> Iterator[dict]:
    """30 steps in one go, and 15, a stop, and the rest: the same bits? Then an evaluation."""
    steps, per_step = gpu.many(30, 2), 2
    student, teacher = gpu.pair()
    windows = gpu.windows(steps // 2 * per_step)
    start = {k: v.clone() for k, v in student.state_dict().items()}
    recipe = train.Recipe(epochs=2.0, batch_tokens=per_step * gpu.t, micro_windows=1)
    recipe = replace(recipe, deterministic=True)

    def stop(step: int, *_: object) -> None:
        if step == steps // 2 + 1:
            raise Enough

    try:
        with tempfile.TemporaryDirectory() as folder:
            runs = {"one go": None, "a stop": Path(folder, "kept")}
            ended = {}
            for name, kept in runs.items():
                student.load_state_dict(start)
                how = dict(teacher=teacher, device=gpu.name, folder=kept)
                if kept:
                    with contextlib.suppress(Enough):
                        train.fit(student, windows, recipe, progress=stop, **how)
                    student.load_state_dict(start)  # what is kept must do
                train.fit(student, windows, recipe, **how)
                ended[name] = {k: v.detach().clone() for k, v in student.state_dict().items()}
        first, second = ended.values()
        apart = sum(bool((first[k] != second[k]).any()) for k in first)
        yield row("parts of 30 steps that differ after a stop", apart, f"of {len(first)}")
        left_on = torch.are_deterministic_algorithms_enabled()
        yield row("deterministic is left on after a training", float(left_on))

        def evaluated() -> Iterator[dict]:
            found = evaluate.evaluate(student, windows, teacher, fixed=2, device=gpu.name)
            yield row("evaluation after it: calibration error", found.row(1.0)["calibration_error"])

        yield from gpu.tried("evaluation after it", evaluated)
    finally:
        torch.use_deterministic_algorithms(False)


def book(gpu: Gpu) -> Iterator[dict]:
    """What plan says of this machine, and doctor's two steps of some models."""
    asked = {"plan": ["plan", "PROFILE=b200-night", "DEVICE=here" if gpu.real else "DEVICE=b200"]}
    if gpu.real:
        asked["doctor"] = ["doctor", "PROFILE=b200-night", "SET=compile=false"]
    for name, words in asked.items():
        began = time.monotonic()
        said, fault = _lines([sys.executable, "-m", "tdbook", *words], 25)
        yield row(f"{name}, seconds", time.monotonic() - began, fault)
        for i, line in enumerate(said):
            yield row(
                f"{name}, line {i + 1}",
                note=line[:100],
                detail=not line.startswith(("all ", "✓", "✗")),
            )


def _lines(words: list[str], seconds: int) -> tuple[list[str], str]:
    """What a program prints within some seconds, and how it failed."""
    with tempfile.TemporaryFile("w+") as file:
        process = subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=file)
        try:
            code = process.wait(seconds)
            fault = f"✗ ended with {code}" if code else ""
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            fault = f"✗ stopped after {seconds} s"
        file.seek(0)
        return file.read().splitlines(), fault


PARTS = [machine, numbers, step, head, waits, deterministic, scoring, cache, tiny, flash, book]


def run(names: list[str], kind: str, limits: dict[str, int], until: float) -> None:
    """The parts of these names, their rows as lines of JSON; all else that is printed is no row."""
    rows = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    parts = {part.__name__: part for part in PARTS}
    if kind == "cuda":  # of some thirty models, one after the other, none may run uncompiled
        torch._dynamo.config.recompile_limit = 256
    with contextlib.ExitStack() as stack:
        gpu = Gpu(kind)
        if kind == "fake":
            from bench import fake_gpu

            gpu.recorder = stack.enter_context(fake_gpu.device())
            stack.enter_context(fake_gpu.checkpoints_in_memory())
        elif kind == "cpu":
            stack.enter_context(uncompiled())
        for name in names:
            print(json.dumps({"begin": name}), file=rows)
            gpu.until = min(time.monotonic() + limits[name], until)
            fault = ""
            try:
                for one in parts[name](gpu):
                    print(json.dumps({"row": one}), file=rows)
                gpu.forget()
                gpu.sync()
            except Exception as error:  # it costs this part alone
                traceback.print_exc()
                fault = f"✗ {told(error)}"
            print(json.dumps({"end": fault}), file=rows)
            gpu.sync()  # where the device can no longer be used, this ends the process
        if kind == "fake":
            os._exit(0)  # without an end in order, which its library does not know
