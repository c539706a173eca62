"""The Telugu distillation book: model, loss, hard set, LoRA replay, four bits and their records."""

import ctypes as _ctypes
import os as _os
import sys as _sys

# Settings of the C libraries, before torch is loaded. Waiting threads turn a thousand times, then
# sleep: where they never turn, small steps take a quarter longer; where they go on turning and
# another process wants the core, training is ten times slower. Arrays that every step makes stay
# with the process: given back to the system each time, they make element-wise operations four times
# slower (glibc's own MALLOC_… variables go before). And what `deterministic` asks of CUDA.
_os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
_os.environ.setdefault("GOMP_SPINCOUNT", "1000")
_os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
_own = any(name.startswith("MALLOC_") for name in _os.environ)
if _sys.platform == "linux" and hasattr(_ctypes.CDLL(None), "mallopt") and not _own:
    _mallopt = _ctypes.CDLL(None).mallopt
    _mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD, the largest it takes
    _mallopt(-1, 2**30)  # M_TRIM_THRESHOLD
