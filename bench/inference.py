"""How fast the 50M shape writes, each way against llama.cpp and against the others, in turns.

    python -m bench.inference       three minutes on one core

Random weights, vocabulary 51,800, a prompt of 32 tokens and 64 new ones, one thread, CPU time of
one process. llama.cpp runs the same weights as Q4_0 throughout.
"""

import tempfile
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from bench.export import VOCABULARY, folder_of
from tdbook.export import gguf_file, inference, llama_cpp
from tdbook.export.decoder import Decoder
from tdlib import generate
from tdlib.model import Llama

PROMPT, NEW = 32, 64


@lru_cache(1)
def seconds(repeats: int = 7) -> dict[str, np.ndarray]:
    """Way → seconds of the prompt and of what is written after it, (2, repeats)."""
    torch.set_num_threads(1)
    ids = np.random.default_rng(0).integers(4, VOCABULARY, PROMPT).tolist()
    with tempfile.TemporaryDirectory() as root:
        folder, path = folder_of("student-50m", Path(root)), Path(root) / "q4_0.gguf"
        gguf_file.to_gguf(folder, path, "Q4_0")
        model, llama = Llama.load(folder), llama_cpp.Model(path)
    decoder, int8, compiled = Decoder(model), Decoder(model, int8=True), Decoder(model, int8=True)
    compiled.hidden = torch.compile(compiled.hidden, dynamic=True)
    ways = {
        "raw": lambda n: generate.generate(decoder, ids, n, cached=False),
        "KV": lambda n: generate.generate(decoder, ids, n),
        "KV + INT8": lambda n: generate.generate(int8, ids, n),
        "KV + INT8 + compile": lambda n: generate.generate(compiled, ids, n),
        "KV, the model itself": lambda n: generate.generate(model, ids, n),
        "llama.cpp Q4_0": lambda n: llama.generate(ids, n),
    }
    return inference.measure(ways, NEW, repeats, time.process_time)


def _times(slow: np.ndarray, fast: np.ndarray) -> str:
    """The median of slow over fast, repeat by repeat, and the smallest and largest."""
    times_R = slow / fast
    return f"{np.median(times_R):.2f} ({times_R.min():.2f}–{times_R.max():.2f})"


def to_llama_cpp() -> str:
    found = seconds()
    _, theirs_R = found["llama.cpp Q4_0"]
    return "; ".join(_times(theirs_R, found[way][1]) for way in ("KV", "KV + INT8"))


def among_ours() -> str:
    whole = {way: prompt_R + decode_R for way, (prompt_R, decode_R) in seconds().items()}
    pairs = (("raw", "KV"), ("KV", "KV + INT8"))
    return "; ".join(f"{_times(whole[slow], whole[fast])} ×" for slow, fast in pairs)


def main() -> None:
    _, theirs_R = seconds()["llama.cpp Q4_0"]
    rows = [
        {
            "way": way,
            "prompt, tokens/s": PROMPT / np.median(prompt_R),
            "decoding, tokens/s": NEW / np.median(decode_R),
            "to llama.cpp": _times(theirs_R, decode_R),
        }
        for way, (prompt_R, decode_R) in seconds().items()
    ]
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".3g"))
    print(f"\ndecoding to llama.cpp, KV; KV + INT8: {to_llama_cpp()}")
    print(f"{PROMPT} + {NEW} tokens, KV to raw; INT8 to KV: {among_ours()}")


if __name__ == "__main__":
    main()
