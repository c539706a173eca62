"""What torch.compile makes of the loss core for a GPU, without one: `make gpu-code`.

    python -m bench.gpu_code [sm_100 sm_90]

For each target and kind of loss a row: kernels, loops over the vocabulary, bytes read and written a
logit (counted in Inductor's Triton code), and what ptxas made of it: registers, bytes spilled, and
how many of the loads that are in the loops are 128 bits wide. Needs the package triton, which the
CUDA builds of torch bring; nothing is run.
"""

import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

from bench import fake_gpu  # before torch

import torch  # isort: skip
import triton
from torch._dynamo import device_interface
from torch._inductor import config
from torch._inductor.fx_passes import fuse_attention, misc_patterns, pad_mm
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_helpers, triton_heuristics
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tdlib import losses

CHUNK, VOCABULARY, DRAWS = 4096, 51_800, 50
PROCESSORS = {"sm_100": 148, "sm_90": 132}
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "i64": 8}
KINDS = {"KL and text, T 2": (0.5, 2.0), "KL and text, T 1": (0.1, 1.0), "text alone": (1.0, 1.0)}
KINDS |= {"KL alone (LoRA)": (0.0, 2.0), "draws, T 2": (0.5, 2.0)}
LOADED = rf"tl\.(load|store)\((\w+ptr\d+) \+ \(r0_1 \+ {VOCABULARY}"  # of a whole row
WARPS, BLOCK = 8, 2048  # as Inductor tries them for rows of this length


class Generated(BaseException):
    """The code, thrown past all that would run it."""


def pretend(target: str) -> None:
    """torch and triton take the target for this machine's GPU."""
    major, count = int(target[3:]) // 10, PROCESSORS[target]
    gpu = SimpleNamespace(
        name=target, major=major, minor=0, multi_processor_count=count, warp_size=32,
        regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, gcnArchName="",
        max_threads_per_block=1024, total_memory=2**37, L2_cache_size=2**26, uuid="",
        shared_memory_per_block=49152, shared_memory_per_block_optin=232448,
        shared_memory_per_multiprocessor=233472,
    )  # fmt: skip
    cuda, interface = torch.cuda, device_interface.CudaInterface
    for name, value in dict(
        is_available=True, device_count=1, current_device=0, get_device_properties=gpu,
        get_device_capability=(major, 0), get_device_name=target, synchronize=None,
        _lazy_init=None, is_initialized=True, _exchange_device=0, _maybe_exchange_device=0,
        set_device=None, get_rng_state=torch.zeros(16, dtype=torch.uint8), set_rng_state=None,
    ).items():  # fmt: skip
        setattr(cuda, name, lambda *_, value=value, **__: value)
    for place, name, value in (
        (interface.Worker, "get_device_properties", gpu), (interface.Worker, "current_device", 0),
        (interface, "get_device_properties", gpu), (interface, "is_available", True),
        (interface, "get_compute_capability", int(target[3:])), (interface, "current_device", 0),
        (interface, "is_triton_capable", True), (interface, "get_raw_stream", 0),
        (interface, "raise_if_triton_unavailable", None), (interface, "is_bf16_supported", True),
    ):  # fmt: skip
        setattr(place, name, staticmethod(lambda *_, value=value, **__: value))
    torch.version.cuda, config.compile_threads = "13.0", 1
    config.joint_graph_constant_folding = False
    for place, name in (
        (fuse_attention, "_sfdp_init"), (pad_mm, "_pad_mm_init"),
        (misc_patterns, "_misc_patterns_init"), (triton_helpers, "set_driver_to_gpu"),
    ):  # fmt: skip
        setattr(place, name, lambda *_, **__: None)
    limits = dict(max_shared_mem=232448, max_num_regs=65536, multiprocessor_count=count)
    limits |= dict(warpSize=32, sm_clock_rate=1, mem_clock_rate=1, mem_bus_width=1)
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", int(target[3:]), 32),
        get_current_device=lambda: 0, get_current_stream=lambda *_: 0, is_active=lambda: True,
        get_active_torch_device=lambda: torch.device("cuda", 0),
        utils=SimpleNamespace(get_device_properties=lambda _: limits),
    )  # fmt: skip
    triton.runtime.driver.set_active(driver)

    codegen = GraphLowering.codegen

    def stop(self, *args, **kwargs):
        code = codegen(self, *args, **kwargs)[0]
        raise Generated(getattr(code, "value", code))

    GraphLowering.codegen = stop


def generated(kind: str) -> str:
    """Inductor's code for one chunk of logits."""
    torch._dynamo.reset()
    losses._compiled.cache_clear()
    torch.compile = fake_gpu.REAL_COMPILE
    ce_weight, temperature = KINDS[kind]
    with FakeTensorMode(allow_non_fake_inputs=True):

        def some(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(CHUNK, *shape, device=fake_gpu.DEVICE, dtype=dtype)

        logits = dict(dtype=torch.bfloat16)
        teacher = (some(VOCABULARY, **logits),)
        if "draws" in kind:
            teacher = some(DRAWS, dtype=torch.long), some(DRAWS)
        student = some(VOCABULARY, **logits), some(dtype=torch.long), some()
        try:
            teacher = () if ce_weight == 1 else teacher
            losses._in_one_pass(*student, ce_weight, temperature, teacher)
        except Generated as code:
            return code.args[0]
    raise RuntimeError(f"{kind}: nothing was compiled")


def row(kind: str, target: str) -> str:
    """What is in the code, and in ptxas's code of its largest kernel."""
    kernels = re.findall(r"async_compile\.triton\('(\w+)', '''(.*?)'''", generated(kind), re.S)
    moved, loops = {"load": 0, "store": 0}, 0
    for _, source in kernels:
        types = dict(re.findall(r"'(\w+ptr\d+)': '\*(\w+)'", source))
        if re.search(LOADED, source):
            loops += source.count("for r0_offset in")
        for what, name in re.findall(LOADED, source):
            moved[what] += BYTES[types[name]]
    if "draws" in kind:  # the counts of draws are set to 0 before
        moved["store"] += BYTES["fp16"]
    name, source = max(kernels, key=lambda kernel: len(re.findall(LOADED, kernel[1])))
    total = sum(moved.values())
    return (
        f"{target:7} {kind:18} {len(kernels)} kernels, {loops} loops, {moved['load']} B read + "
        f"{moved['store']} B written = {total} B a logit; {machine_code(name, source, target)}"
    )


def machine_code(name: str, source: str, target: str) -> str:
    """Registers, spills and the widths of loads, by triton's own ptxas."""
    caught = {}

    def keep(**how):
        caught.update(how)
        return lambda function: function

    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder, "kernel.py")).write_text(source)
        triton_heuristics.reduction = keep
        spec = importlib.util.spec_from_file_location(name, path)
        spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
        meta = caught["triton_meta"]
        constants = meta["constants"] | {"XBLOCK": 1, "R0_BLOCK": BLOCK}
        signature = meta["signature"] | dict.fromkeys(constants, "constexpr")
        kernel = ASTSource(getattr(module, name), signature, constants, meta["configs"][0])
        gpu = GPUTarget("cuda", int(target[3:]), 32)
        built = triton.compile(kernel, gpu, options=dict(num_warps=WARPS, num_stages=1))
        (cubin := Path(folder, "kernel.cubin")).write_bytes(built.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        ask = [[tool, what, cubin] for what in ("--dump-resource-usage", "-sass")]
        usage, sass = (subprocess.run(a, capture_output=True, text=True).stdout for a in ask)
    registers, local = re.search(r"REG:(\d+).*?LOCAL:(\d+)", usage).groups()
    wide, loads = (len(re.findall(rf"LDG\.E\S*{width}", sass)) for width in (r"\.128", ""))
    spilled = len(re.findall(r"\bSTL\b", sass))
    made = f"{registers} registers, {local} B local, {spilled} spills"
    return f"{made}, {wide} of {loads} loads 128 bits"


def main() -> None:
    for target in sys.argv[1:] or PROCESSORS:
        if len(sys.argv) != 2:  # torch keeps what it knows of a GPU: a process each
            subprocess.run([sys.executable, "-m", "bench.gpu_code", target], check=True)
            continue
        pretend(target)
        for kind in KINDS:
            print(row(kind, target), flush=True)


if __name__ == "__main__":
    main()
