"""Can this machine run the profile? A line for each thing a run could fail at: `make doctor`.

✓ it can; ✗ it cannot, and what to do. For every distinct pair of student and teacher, a process of
its own makes two real steps. `make plan` tells memory and disk of whole runs.
"""

import math
import os
import shutil
import sysconfig
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from tdbook.corpus import token_files
from tdbook.runs import machine, units
from tdbook.workflow import execute, graph, plan
from tdbook.workflow.workload import Training, into_four_bits
from tdlib import data, lora, quantize, train
from tdlib.model import Llama, LlamaConfig

APART = 0.05  # of a gradient's norm; rounding to bfloat16 makes a hundredth
FLASH = [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]  # the first that a GPU has
CUDNN = [SDPBackend.CUDNN_ATTENTION, *FLASH]


def examine(pairs: dict[str, str]) -> int:
    """Print what each check returns, or the error that it raises; 1 where there is one."""
    wanted, failed = graph.wanted("doctor", pairs), 0
    of, device = plan.asked(wanted), "cuda" if torch.cuda.is_available() else "cpu"
    checks, distinct = {"torch": _torch}, {}
    checks["paths"] = lambda: f"those of {len(graph.jobs(wanted.config))} runs can be used"
    checks["tokens"] = partial(_tokens, of)
    for t in (t for work in of.works for t in work.trainings):
        distinct.setdefault((t.student, t.teacher, t.rank, t.parameters["compile"]), t)
    for t in distinct.values():
        checks[f"two steps of {Path(t.path).name}"] = partial(_alone, t, device)
    print(f"{len(checks)} checks; two steps of a shape take about a minute or two", flush=True)
    for what, check in checks.items():
        try:
            line = f"✓ {what}: {check()}"
        except (ValueError, OSError, RuntimeError) as error:
            line, failed = f"✗ {what}: {error}", 1
        print(line, flush=True)
    return failed


def _torch() -> str:
    version = f"{torch.__version__} (CUDA {torch.version.cuda})"
    if torch.cuda.is_available():
        header = Path(sysconfig.get_paths()["include"]) / "Python.h"
        compiler = shutil.which(os.environ.get("CC", "gcc")) or shutil.which("clang")
        needed = {"triton": find_spec("triton"), "gcc": compiler, str(header): header.exists()}
        if missing := [name for name, there in needed.items() if not there]:
            fault = f"no {', no '.join(missing)}, and the loss is compiled, whatever `compile` is"
            raise ValueError(f"{fault}: apt-get install gcc python3-dev, or torch for CUDA")
        return f"{version}, {torch.cuda.get_device_name()}"
    if execute.gpus():  # built without CUDA, or for a newer driver
        remedy = "install torch for it and its driver (pytorch.org), then make clean setup"
        raise ValueError(f"{version} cannot use the GPU here: {remedy}")
    return f"{version}, no GPU here, threads: {torch.get_num_threads()}"


def _tokens(of: plan.Asked) -> str:
    if of.tokens:
        token_files.open_tokens(of.tokens)  # looks at the files, and at a sample of their ids
    return of.size.source


def _alone(t: Training, device: str) -> str:
    """Two steps in a process of its own, which the system may end."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(two_steps, t, device).result()
        except (BrokenProcessPool, torch.OutOfMemoryError):
            remedy = "fewer micro_windows, activation_checkpointing: true, or a larger machine"
            raise ValueError(f"memory ran out, or the process was killed: {remedy}") from None


def attention_gap(c: LlamaConfig, windows: int, device: str, kernels=(FLASH, CUDNN)) -> float:
    """How far two kernels' gradients of attention are apart, as a share of their norm."""
    heads, grouped, found = (c.heads, c.kv_heads, c.kv_heads, c.heads), c.kv_heads < c.heads, []
    drawn = [torch.randn(windows, c.context, n, c.head_dim, device=device) for n in heads]
    *qkv, y_BHTK = (x.bfloat16().transpose(1, 2).requires_grad_() for x in drawn)  # as the model's
    for order in kernels:
        with sdpa_kernel(order, set_priority=True):
            z_BHTK = scaled_dot_product_attention(*qkv, is_causal=True, enable_gqa=grouped)
        found.append(torch.autograd.grad(z_BHTK, qkv, y_BHTK))
    return max(float(torch.dist(a, b) / a.norm()) for a, b in zip(*found, strict=True))


def two_steps(t: Training, device: str) -> str:
    """Two steps on random ids, as train.fit makes them in the book; what they took."""
    if (priority := Path("/proc/self/oom_score_adj")).exists():
        priority.write_text("1000")  # where memory runs out, the system ends this process first
    torch.manual_seed(0)
    student, teacher = (c and Llama(c).to(device) for c in (t.student, t.teacher))
    if t.rank:
        lora.attach(student, t.rank)
    if rounded := into_four_bits(t.parameters):
        quantize.attach(student, t.parameters.get("trains") == "scales")
    context, gpu = t.student.context, torch.cuda.is_available()
    own = t.parameters | {"temperature": t.parameters.get("temperature") or 1.0}
    recipe = train.recipe(own | ({} if teacher else {"ce_weight": 1.0}))
    # another shape than the training's would be compiled anew; a CPU would take minutes for it
    each = (gpu and min(recipe.micro_windows, recipe.batch_tokens // context)) or 1
    recipe = replace(recipe, batch_tokens=each * context, epochs=1.0, token_limit=0)
    recipe = replace(recipe, four_bit_share=float(rounded))
    ids = np.random.default_rng(0).integers(0, t.student.vocab_size, 2 * each * context + 1)
    windows = data.Windows(ids.astype(np.uint32), context)
    gap = attention_gap(t.student, each, device) if gpu else 0.0
    if not gap < APART and os.environ.get(machine.FLASH_FIRST) != "1":  # NaN is not below
        remedy = f"export {machine.FLASH_FIRST}=1 before the night"
        raise ValueError(f"flash's and cuDNN's gradients are {gap:.2g} apart: {remedy}")

    last = train.fit(student, windows, recipe, teacher=teacher, device=device)[-1]
    if not math.isfinite(loss := last.get("train/loss", math.nan)):
        raise ValueError(f"the loss is {loss}: try compile: false, and device: cpu")
    seconds, peak = each * context / last["train/tokens_per_sec"], machine.peak_memory_mib() * 2**20
    return f"{seconds:.2g} s a step, windows: {each}, {units.si(peak, 'B')} at most"
