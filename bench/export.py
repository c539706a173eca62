"""GGUF at the plan's own sizes, with random weights: bytes, memory, and agreement with PyTorch.

    python -m bench.export       some minutes on one core, 3 GB of temporary disk

Each to_gguf runs in a fresh process. Memory is that process's largest resident size, Python and
torch included, over the model's float32 bytes.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tabulate import tabulate

from tdbook.export import gguf_file, shipping
from tdlib.model import SHAPES, Llama, LlamaConfig

VOCABULARY = 51_800
CASES = {"teacher-300m": ("Q4_0", "F16"), "student-50m": tuple(gguf_file.QUANTIZATIONS)}
MAKE = """
import pathlib, re, sys, warnings
warnings.simplefilter("ignore")
from tdbook.export import gguf_file
gguf_file.to_gguf(*sys.argv[1:])
# not ru_maxrss, which a child has from its parent
status = pathlib.Path("/proc/self/status").read_text()
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024)
"""


def folder_of(name: str, root: Path) -> Path:
    """A model of random weights, large enough for a wrong order of RoPE to be seen; with an @@
    vocabulary, since nothing here reads text."""
    torch.manual_seed(0)
    model = Llama(LlamaConfig(VOCABULARY, context=2048, **SHAPES[name]))
    with torch.no_grad():
        for part, weight in model.named_parameters():
            if weight.ndim == 2:
                weight.normal_(0, (1.5 if "_proj" in part else 0.5) / weight.shape[1] ** 0.5)
    special = {"<pad>": 0, "<unk>": 1, "<bos>": 2, "<eos>": 3}
    table = special | {f"p{i}": i for i in range(4, VOCABULARY)}
    (root / "morfessor.json").write_text(json.dumps({
        "type": "morfessor_bpe_telugu", "separator": "@@", "bpe_merges": [],
        "special_tokens": special, "token_to_id": table,
    }))  # fmt: skip
    model.save(root / name, {"morfessor.json": root / "morfessor.json"})
    return root / name


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for name, quantizations in CASES.items():
            folder = folder_of(name, root)
            parameters = LlamaConfig(VOCABULARY, **SHAPES[name]).parameters
            config = LlamaConfig(VOCABULARY, context=512, **SHAPES[name])
            for quantization in quantizations:
                path = root / f"{name}-{quantization}.gguf"
                began = time.process_time()
                command = [sys.executable, "-c", MAKE, str(folder), str(path), quantization]
                peak = int(subprocess.run(command, check=True, capture_output=True).stdout)
                row = {"model": name, "file": quantization, "MB": path.stat().st_size / 1e6,
                       "memory / float32": peak / (4 * parameters)}  # fmt: skip
                if name != "teacher-300m":
                    count = 200 if quantization == "F16" else 20
                    prompts = shipping.draw_prompts(config, None, count)
                    row |= shipping.check(folder, path, prompts) | {"prompts": count}
                print(row, f"{time.process_time() - began:.0f} s", flush=True)
                rows.append(row)
                path.unlink()
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".3g"))


if __name__ == "__main__":
    main()
