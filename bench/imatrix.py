"""Plain rounding against rounding by an imatrix, in every four-bit format of a trained model.

    python -m bench.imatrix outputs/tiny/models/50m outputs/tiny/tokens 64

KL(float ‖ file) and loss in nats per token, on so many validation windows, with the paired 95 %
interval of the change over documents; decoding speed by CPU time on one thread, in turns. Then how
far KL with fewer and more windows for the imatrix lies from that.
Legend: N validation windows, R repeats, K places of a window that have a target.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from tdbook.analysis import intervals
from tdbook.corpus import token_files
from tdbook.export import gguf_file, inference, llama_cpp
from tdlib import data, evaluate
from tdlib.model import Llama

FORMATS = ("Q4_0", "Q4_0_DEFAULT", "IQ4_NL", "Q4_K")
OTHER_COUNTS = (4, 16, 256)  # of windows for the imatrix
NEW, REPEATS = 64, 25


@torch.no_grad()
def losses(model: Llama, files: dict, windows: data.Windows, rows_N: np.ndarray) -> dict:
    """Name of a file → loss and KL of each window, (2, N)."""
    found = {name: [] for name in files}
    for row in rows_N:
        (ids_T,), (targets_T,) = (x.numpy() for x in windows.batch([row]))
        at_K = np.flatnonzero(targets_T != data.IGNORE)
        log_p_KV = inference.log_p(model, ids_T.tolist()).numpy()[at_K]
        for name, file in files.items():
            log_q_KV = file.logprobs(ids_T.tolist())[at_K]
            loss = -log_q_KV[np.arange(len(at_K)), targets_T[at_K]].mean(dtype=np.float64)
            kl = np.einsum("kv,kv", np.exp(log_p_KV), log_p_KV - log_q_KV) / len(at_K)
            found[name].append((loss, kl))
    return {name: np.array(pairs).T for name, pairs in found.items()}


def speed(plain: llama_cpp.Model, other: llama_cpp.Model, prompt: list[int]) -> str:
    """Median of plain, and how much faster the other is, with a 95 % interval over repeats."""
    ways = {0: lambda n: plain.generate(prompt, n), 1: lambda n: other.generate(prompt, n)}
    seconds = inference.measure(ways, NEW, REPEATS, time.process_time)
    plain_R, other_R = seconds[0][1], seconds[1][1]
    times_R = plain_R / other_R
    error = 1.96 * times_R.std(ddof=1) / REPEATS**0.5
    return f"{NEW / np.median(plain_R):,.0f}; × {times_R.mean():.3f} ± {error:.3f}"


def main(folder: str, tokens_folder: str, count: int = 64) -> None:
    torch.set_num_threads(1)
    tokens, source = token_files.open_tokens(Path(tokens_folder)), gguf_file.read(Path(folder))
    model, windows = Llama.load(folder).eval(), tokens.val
    rows_N = evaluate.fixed_rows(windows, count)
    document_N = token_files.origins(tokens, "val")[0][rows_N]
    prompt, table, began = windows.ids[:32].tolist(), [], time.process_time()
    importance = {n: inference.mean_squares(model, tokens.train, n) for n in (64, *OTHER_COUNTS)}
    names = [name for name in FORMATS if name in gguf_file.formats(source.config)]
    with tempfile.TemporaryDirectory() as place:
        files = {}
        for name in names:
            for n in (0, 64, *OTHER_COUNTS) if name == "Q4_0" else (0, 64):
                path = Path(place, f"{name}-{n}.gguf")
                gguf_file.write(source, path, name, importance.get(n))
                files[name, n] = llama_cpp.Model(path)
        found = losses(model, files, windows, rows_N)
        for name in names:
            (plain_N, plain_kl_N), (loss_N, kl_N) = found[name, 0], found[name, 64]
            change = intervals.change(loss_N, plain_N, document_N)
            change_kl = intervals.change(kl_N, plain_kl_N, document_N)
            row = {"format": name, "MB": files[name, 0].path.stat().st_size / 1e6}
            row |= {"KL": plain_kl_N.mean(), "imatrix KL": kl_N.mean(), "ΔKL": f"{change_kl:.5f}"}
            row |= {"loss": plain_N.mean(), "Δloss": f"{change:.5f}"}
            table.append(row | {"tokens/s": speed(files[name, 0], files[name, 64], prompt)})
    print(f"{folder}, {len(rows_N)} windows of {len(np.unique(document_N))} documents")
    print(tabulate(table, headers="keys", tablefmt="github", floatfmt=".5f"))
    for n in OTHER_COUNTS:
        other = intervals.change(found["Q4_0", n][1], found["Q4_0", 64][1], document_N)
        print(f"Q4_0, imatrix of {n} windows against 64: KL {other:.5f}")
    print(f"{time.process_time() - began:.0f} s of CPU time")


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:4]))
