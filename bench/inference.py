"""How fast the 50M shape writes, each way against llama.cpp and against the others, in turns.

    python -m bench.inference       three minutes on one core

Random weights, vocabulary 51,800, a prompt of 32 tokens and 64 new ones, one thread, CPU time of
one process. llama.cpp runs the same weights as Q4_0 throughout.
"""

import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from bench.export import VOCABULARY, folder_of
from tdbook.export import gguf_file, llama_cpp, speed
from tdbook.export.decoder import Decoder
from tdlib import generate
from tdlib.model import Llama

PROMPT, NEW = 32, 64


@lru_cache(1)
def seconds(repeats: int = 7) -> dict[str, speed.Seconds]:
    torch.set_num_threads(1)
    ids = np.random.default_rng(0).integers(4, VOCABULARY, PROMPT).tolist()
    with tempfile.TemporaryDirectory() as root:
        folder, path = folder_of("student-50m", Path(root)), Path(root) / "q4_0.gguf"
        gguf_file.to_gguf(folder, path, "Q4_0")
        model, llama = Llama.load(folder), llama_cpp.Model(path, context=PROMPT + NEW + 1)
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
    return speed.measure(ways, NEW, repeats)


def _times(slow: np.ndarray, fast: np.ndarray) -> str:
    middle, low, high = speed.ratio(slow, fast)
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def to_llama_cpp() -> str:
    found = seconds()
    theirs = found["llama.cpp Q4_0"].decode_cpu_R
    return "; ".join(_times(theirs, found[way].decode_cpu_R) for way in ("KV", "KV + INT8"))


def among_ours() -> str:
    whole = {way: s.whole_cpu_R for way, s in seconds().items()}
    pairs = (("raw", "KV"), ("KV", "KV + INT8"))
    return "; ".join(f"{_times(whole[slow], whole[fast])} ×" for slow, fast in pairs)


def main() -> None:
    rows = [
        {"way": way, "prompt, tokens/s": PROMPT / np.median(s.prompt_cpu_R),
         "decoding, tokens/s": s.tokens_per_second,
         "to llama.cpp": _times(seconds()["llama.cpp Q4_0"].decode_cpu_R, s.decode_cpu_R)}
        for way, s in seconds().items()
    ]  # fmt: skip
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".3g"))
    print(f"\ndecoding to llama.cpp, KV; KV + INT8: {to_llama_cpp()}")
    print(f"{PROMPT} + {NEW} tokens, KV to raw; INT8 to KV: {among_ours()}")


if __name__ == "__main__":
    main()
