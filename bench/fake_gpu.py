"""A GPU that is not there: the real code on `cuda:0`, with shapes and dtypes but without values.

    python -m bench.fake_gpu        one step of the plan's 50M: its waits, kernels, FLOP and memory

A small library (fake_gpu.cpp, built once into the system's cache) makes the CPU build of torch take
tensors on cuda:0; inside `device()` they are torch's fake tensors, so that the plan's own shapes
run in seconds. A wrong device or dtype raises as it would on a GPU, and a Recorder counts what a
GPU would do. What is compiled runs uncompiled. Import this before torch, in a process of its own.
Numbers that are read back are 0 and False, but all is finite and a mask selects everything.
"""

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import subprocess
import sys
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from unittest import mock


def shim() -> Path:
    """The library, built where there is none of this torch and this source yet."""
    source, torch_ = Path(__file__).with_suffix(".cpp"), Path(_torch())
    name = f"{version('torch')}-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}.so"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "telugu-fake-gpu")
    if not (path := cache / name).exists():
        cache.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        command = ["g++", "-std=c++20", "-shared", "-fPIC", str(source), "-o", str(beside)]
        command += [f"-I{torch_}/include", f"-I{torch_}/include/torch/csrc/api/include"]
        subprocess.run([*command, f"-L{torch_}/lib", "-lc10", "-ltorch_cpu"], check=True)
        beside.replace(path)  # whole, even where two processes build it
    return path


def _torch() -> str:
    return importlib.util.find_spec("torch").submodule_search_locations[0]


if "torch" in sys.modules:
    raise ImportError("bench.fake_gpu must come before torch: import it first in a new process")
_libraries = Path(_torch(), "lib")
for _library in (*sorted(_libraries.glob("libgomp*")), "libc10.so", "libtorch_cpu.so", shim()):
    ctypes.CDLL(str(_libraries / _library), ctypes.RTLD_GLOBAL)

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from tdlib import checkpoint, data, train
from tdlib.model import Llama
from tdlib.shapes import SHAPES, LlamaConfig

DEVICE, VOCABULARY, CONTEXT = "cuda:0", 51_800, 2048
BOOK = ("/tdlib/", "/tdbook/")
# the host waits for the device: it needs a value, or the size of a result
READS = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "bincount", "_unique2"}
# https://docs.pytorch.org/docs/2.13/generated/torch.use_deterministic_algorithms.html: what raises
NOT_DETERMINISTIC = {
    "bincount": lambda x, weights=None, minlength=0: weights is not None,
    "cumsum": lambda x, dim, dtype=None: x.is_floating_point(),
}
NOT_DETERMINISTIC |= dict.fromkeys(("histc", "median", "put_", "nll_loss2d_forward"), lambda *_: 1)
# made without a kernel
FREE = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "detach"}
FREE |= {"lift_fresh", "alias", "_unsafe_view", "_reshape_alias"}


class Recorder(TorchDispatchMode):
    """Counts what a GPU and its host would do, since `clear`."""

    def __init__(self):
        super().__init__()
        self.live = 0  # bytes on the device now
        self.fused = False  # within something compiled: only results of products are stored there
        self._storages: dict[int, int] = {}
        self.clear()

    def clear(self) -> None:
        self.waits: Counter[str] = Counter()  # of the host: "train.py:12 fit: why" → how often
        self.kernels: Counter[str] = Counter()
        self.flop = 0.0  # of products and attention, without what is made again
        self.peak = self.live
        # what is compiled → a row for each time that it would be: shapes, dtypes, numbers
        self.compilations: dict[Callable, set] = defaultdict(set)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled within, and that guard takes a third of the time

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func._schema.name.removeprefix("aten::"), kwargs or {}
        given = _tensors((args, kwargs))
        on_gpu = any(x.is_cuda for x in given)
        if on_gpu:
            odd = NOT_DETERMINISTIC.get(name)
            if odd and torch.are_deterministic_algorithms_enabled() and odd(*args, **kwargs):
                raise RuntimeError(f"{name} has no deterministic implementation on CUDA")
            if name in READS:
                self._wait(name)
        if name in ANSWERS and (name != "_local_scalar_dense" or _unknown(given[0])):
            return ANSWERS[name](*args, **kwargs)
        if name in ("index", "index_put", "index_put_"):
            args = (args[0], self._indices(args[1], on_gpu), *args[2:])
        out = func(*args, **kwargs)
        made = _tensors(out)
        if name in ("_to_copy", "copy_"):
            self._copy(made[0], given[-1], kwargs.get("non_blocking") or True in args[2:])
        for x in made:
            if name in ("all", "sum", "index", "_to_copy") and (true := _true(given[0])):
                x.true = x.numel() if x.dtype == torch.bool else true
            if x.is_cuda:
                self._keep(x.untyped_storage())
        if not self.fused or func._overloadpacket in flop_registry:
            self.peak = max(self.peak, self.live)
        if any(x.is_cuda for x in made) and not func.is_view and name not in FREE:
            self.kernels[name] += 1
            if count := flop_registry.get(func._overloadpacket):
                flop = count(*args, **kwargs, out_val=out)
                self.flop += flop * _counted(name)
        return out

    def _copy(self, made: Tensor, source: Tensor, non_blocking: bool) -> None:
        if made.is_cuda and not source.is_cuda:
            if not (non_blocking and getattr(source, "pinned", False)):
                self._wait("copy from the host")
        elif source.is_cuda and not made.is_cuda and not non_blocking:
            self._wait("copy to the host")

    def _indices(self, indices: list[Tensor | None], on_gpu: bool) -> list[Tensor | None]:
        """The same; a mask as indices, of all."""
        plain = []
        for index in indices:
            if on_gpu and index is not None and not index.is_cuda:
                self._wait("indices on the CPU")
            if index is not None and index.dtype == torch.bool:
                if on_gpu:
                    self._wait("a mask as an index")
                every = torch.zeros(index.numel(), dtype=torch.int64, device=index.device)
                plain += [every] * index.ndim
            else:
                plain.append(index)
        return plain

    def _keep(self, storage: torch.UntypedStorage) -> None:
        if (key := storage._cdata) not in self._storages:
            self._storages[key] = storage.nbytes()
            self.live += storage.nbytes()
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.live -= self._storages.pop(key)

    def _wait(self, why: str) -> None:
        self.waits[f"{place()}: {why}"] += 1


def place() -> str:
    """The line of the book that runs now, and its function."""
    frame = sys._getframe()
    while frame and not any(folder in frame.f_code.co_filename for folder in BOOK):
        frame = frame.f_back
    if frame is None:
        return "outside the book"
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"


def _counted(name: str) -> float:
    """Share of an operation's FLOP: a causal attention takes half, and of the five products of its
    backward one makes the scores again."""
    return (0.4 if "backward" in name else 0.5) if "attention" in name else 1.0


def _tensors(tree) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


# --- values that are read back ---


def _unknown(x: Tensor) -> bool:
    """Whether its value is; that of a number that the host made is known."""
    return x.is_cuda or getattr(x, "constant", x) is None


def _true(x: Tensor) -> int:
    """How many elements are True, where that is known (see _isfinite); else 0."""
    return getattr(x, "true", 0)


def _number(x: Tensor) -> float | int | bool:
    kind = bool if x.dtype == torch.bool else float if x.is_floating_point() else int
    return kind(_true(x))


def _every(x: Tensor) -> Tensor:
    return torch.zeros(x.numel(), x.ndim, dtype=torch.int64, device=x.device)


def _bins(x: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    dtype = torch.int64 if weights is None else torch.float64
    return torch.zeros(minlength, dtype=dtype, device=x.device)


ANSWERS = {"_local_scalar_dense": _number, "nonzero": _every, "bincount": _bins}


def _isfinite(x: Tensor) -> Tensor:
    yes = torch.ones_like(x, dtype=torch.bool)
    yes.true = yes.numel()
    return yes


def _numpy(x: Tensor, **_: object) -> np.ndarray:
    if not isinstance(x, FakeTensor):
        return REAL_NUMPY(x)
    if x.is_cuda:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    return np.zeros(tuple(x.shape), str(x.dtype).removeprefix("torch."))


def _pin_memory(x: Tensor) -> Tensor:
    x.pinned = True
    return x


def _attention(q, k, v, attn_mask=None, is_causal=False, enable_gqa=False) -> Tensor:
    """The kernel that a GPU takes: flash in bfloat16, else the memory-efficient one, else plain
    products. torch's own choice needs a device."""
    aten = torch.ops.aten
    if torch.is_autocast_enabled("cuda"):
        q, k, v = (x.to(torch.get_autocast_dtype("cuda")) for x in (q, k, v))
    if attn_mask is None and q.dtype == torch.bfloat16:
        return aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal)[0]
    if attn_mask is None and not enable_gqa:
        how = None, torch.is_grad_enabled(), 0.0, is_causal
        return aten._scaled_dot_product_efficient_attention(q, k, v, *how)[0]
    how = dict(attn_mask=attn_mask, is_causal=is_causal, enable_gqa=enable_gqa)
    return aten._scaled_dot_product_attention_math(q, k, v, **how)[0]


def _apply(module: nn.Module, change: Callable, recurse: bool = True) -> nn.Module:
    """As of nn.Module, by new parameters: a fake one cannot change its device."""
    for part in module.modules():
        for name, x in part._parameters.items():
            if x is not None:
                part._parameters[name] = nn.Parameter(change(x.detach()), x.requires_grad)
        for name, x in part._buffers.items():
            part._buffers[name] = change(x)
    return module


def _compile(function: Callable, *, dynamic: bool = False) -> Callable:
    """The function as it is; the Recorder notes what it would be compiled for: each size that is
    not dynamic, each dtype, each number."""

    def call(*args, **kwargs):
        recorder = _get_current_dispatch_mode()
        rows = [torch.is_grad_enabled()]
        for x in tree_leaves((args, kwargs)):
            rows.append((x.dtype, _sizes(x, dynamic)) if isinstance(x, Tensor) else repr(x))
        recorder.compilations[function].add(tuple(rows))
        before, recorder.fused = recorder.fused, True
        try:
            return function(*args, **kwargs)
        finally:
            recorder.fused = before
            recorder.peak = max(recorder.peak, recorder.live)

    return call


def _sizes(x: Tensor, dynamic: bool) -> tuple:
    marked = getattr(x, "_dynamo_weak_dynamic_indices", ())
    return tuple("any" if dynamic or i in marked else n for i, n in enumerate(x.shape))


REAL_NUMPY, REAL_COMPILE = Tensor.numpy, torch.compile
Tensor.numpy, Tensor.pin_memory, torch.compile = _numpy, _pin_memory, _compile
FakeTensor.tolist = lambda x: x.cpu().numpy().tolist()
Tensor.isfinite = torch.isfinite = _isfinite
F.scaled_dot_product_attention = _attention
torch.cuda.amp.common.amp_definitely_not_available = lambda: False
torch.cuda.is_bf16_supported = lambda *_, **__: True
nn.Module._apply = _apply


@contextlib.contextmanager
def device() -> Iterator[Recorder]:
    with FakeTensorMode(allow_non_fake_inputs=True), Recorder() as recorder:
        yield recorder


# --- what runs on it ---


def llama(name: str, **shape: int) -> Llama:
    """A model of the plan on the device; `shape` changes some of its sizes."""
    config = dict(vocab_size=VOCABULARY, context=CONTEXT) | SHAPES[name] | shape
    with torch.device(DEVICE):
        return Llama(LlamaConfig(**config))


def windows(count: int, *, masked: bool = False, weighted: bool = False) -> data.Windows:
    ids = np.zeros(count * CONTEXT + 1, "<u4")
    mask, weights = (np.ones(len(ids), "u1") if on else None for on in (masked, weighted))
    return data.Windows(ids, CONTEXT, mask, weights)


@contextlib.contextmanager
def checkpoints_in_memory() -> Iterator[dict]:
    """Fake tensors cannot be written: path → content."""
    kept = {}

    def save(path: Path, content: dict) -> None:
        kept[path] = tree_map(lambda x: x.cpu() if isinstance(x, Tensor) else x, content)

    load = {"load": lambda path, key: kept.get(path)}
    with mock.patch.multiple(checkpoint, save=save, **load):
        yield kept


def main() -> None:
    with device() as recorder:
        student, teacher = llama("student-50m"), llama("teacher-plan").requires_grad_(False)
        recorder.clear()
        recipe = train.Recipe(epochs=1.0, batch_tokens=16 * CONTEXT, compile=True)
        train.fit(student, windows(16), recipe, teacher=teacher, device=DEVICE)
        print(f"{recorder.flop / 1e12:.1f} TFLOP, at most {recorder.peak / 1e9:.1f} GB")
        print(f"{recorder.kernels.total():,} kernels uncompiled:", recorder.kernels.most_common(8))
        print("the host waits:", *recorder.waits.most_common(), sep="\n  ")
        for function, rows in recorder.compilations.items():
            print(f"{function.__qualname__} is compiled {len(rows)} times")


if __name__ == "__main__":
    main()
