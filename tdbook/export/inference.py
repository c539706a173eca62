"""How fast and how small: every way that a model can write, in turns, beside the plan's estimates.

Ways: raw (every token computes the whole text again), KV (a cache of keys and values), KV + INT8,
KV + INT8 + compile, and the GGUF formats in llama.cpp. With one thread the clock is CPU time, which
a busy machine moves little; with several it is the wall's.
"""

import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from tdbook.corpus.tokenizer import Tokenizer
from tdbook.export import cards, gguf_check, gguf_file, llama_cpp, speed
from tdbook.export.decoder import Decoder
from tdbook.runs.estimates import of_plan
from tdlib import data, evaluate, generate
from tdlib.model import SHAPES, Llama, LlamaConfig

RAW, KV, INT8, COMPILED = "raw", "KV", "KV + INT8", "KV + INT8 + compile"
PHASES = {RAW: "raw", INT8: "phase1", COMPILED: "phase1", "Q4_0": "phase2"}
PHASES |= {"Q4_0_DEFAULT": "phase2"}
Write = Callable[[Sequence[int], int], list[int]]  # prompt, how many new ids → those


def ways(model: Llama, files: dict[str, Path], compiled: bool = False) -> dict[str, Write]:
    """A model's ways of writing, by name; `files`: format → GGUF of the same model. All write what
    is likeliest, so that they have the same work."""
    decoder, int8 = Decoder(model), Decoder(model, int8=True)
    write = {
        RAW: lambda ids, n: generate.generate(decoder, ids, n, cached=False),
        KV: lambda ids, n: generate.generate(decoder, ids, n),
        INT8: lambda ids, n: generate.generate(int8, ids, n),
    }
    if compiled:
        quick = Decoder(model, int8=True)
        quick.hidden = torch.compile(quick.hidden, dynamic=True)
        write[COMPILED] = lambda ids, n: generate.generate(quick, ids, n)
    for name, path in files.items():
        write[name] = llama_cpp.Model(path, threads=torch.get_num_threads()).generate
    return write


def speeds(
    write: dict[str, Write], prompt: Sequence[int], tokens: int, repeats: int, threads: int
) -> list[dict]:
    """A row a way: tokens a second of the prompt and of the decoding, and the smallest and largest
    of that. `threads` are set here, for PyTorch and llama.cpp alike."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    for each in write.values():
        if isinstance(file := getattr(each, "__self__", None), llama_cpp.Model):
            file.threads(threads)
    try:
        timed = {name: (lambda n, w=each: w(prompt, n)) for name, each in write.items()}
        seconds = speed.measure(timed, tokens, repeats)
    finally:
        torch.set_num_threads(before)
    return [_row(name, s, len(prompt), threads) for name, s in seconds.items()]


def _row(name: str, s: speed.Seconds, prompt: int, threads: int) -> dict:
    clock = "cpu" if threads == 1 else "wall"
    prompt_R, decode_R = getattr(s, f"prompt_{clock}_R"), getattr(s, f"decode_{clock}_R")
    each_R = s.tokens / decode_R
    middle, low, high = float(np.median(each_R)), float(each_R.min()), float(each_R.max())
    row = {"way": name, "threads": threads, "prompt": float(prompt / np.median(prompt_R))}
    return row | {"decode": middle, "low": low, "high": high}


def with_plan(model: str, rows: list[dict]) -> list[dict]:
    """The same, each with what the plan estimates for a model of that name, from and to."""
    return [row | {"plan": of_plan(model, PHASES.get(row["way"], ""))} for row in rows]


def every_thread() -> list[int]:
    """One thread, and all of this machine's."""
    return sorted({1, len(os.sched_getaffinity(0))})


def of_shape(
    name: str, vocab_size: int, prompt: int, tokens: int, repeats: int, compiled: bool,
    tokenizer: Tokenizer,
) -> dict:  # fmt: skip
    """Speeds and file sizes of one of SHAPES with random weights: what is timed is real, what is
    written means nothing. One thread. The pieces are the tokenizer's, and short names for what the
    vocabulary has beyond them: the words of as many real ones take up to a megabyte more."""
    torch.manual_seed(0)
    model = Llama(LlamaConfig(vocab_size, context=2048, **SHAPES[name])).eval()
    ids = np.random.default_rng(0).integers(4, vocab_size, prompt).tolist()
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it takes ids alone
        Path(place, "words").mkdir()
        words = cards.tokenizer_files(tokenizer, Path(place, "words"), model.config.context)
        model.save(Path(place, name), words)
        files = {q: Path(place, f"{q}.gguf") for q in gguf_file.QUANTIZATIONS}
        for quantization, path in files.items():
            gguf_file.to_gguf(Path(place, name), path, quantization)
        sizes = {q: path.stat().st_size for q, path in files.items()}
        rows = speeds(ways(model, files, compiled), ids, tokens, repeats, 1)
    return {"parameters": model.config.parameters, "bytes": sizes, "rows": rows}


def costs(
    folder: Path,
    files: dict[str, Path],
    windows: data.Windows,
    count: int,
    write: dict[str, Write],
    tokens: int,
) -> list[dict]:
    """A row a format, the model itself first, PyTorch's INT8 too: bytes, loss, KL ‖ to the model
    itself, agreement on the likeliest (gguf_check.costs), and how much written texts repeat."""
    first, *others = gguf_check.costs(folder, list(files.values()), windows, count)
    named = [row | {"format": name} for name, row in zip(files, others, strict=True)]
    rows = [first, int8_cost(folder, windows, count), *named]
    at = evaluate.fixed_rows(windows, 10)
    prompts = [windows.ids[i * windows.context :][:8].tolist() for i in at]
    by = {"PyTorch float32": KV, "PyTorch INT8": INT8}
    for row in rows:
        texts = [write[by.get(row["format"], row["format"])](ids, tokens) for ids in prompts]
        row |= generate.repetition(texts)
    return rows


@torch.no_grad()
def int8_cost(folder: Path, windows: data.Windows, count: int) -> dict:
    """The same row for PyTorch's INT8; its bytes are one a weight, the embedding's four."""
    model = Llama.load(folder).eval()
    int8, loss, kl, same, n = Decoder(model, int8=True), 0.0, 0.0, 0, 0
    for row in evaluate.fixed_rows(windows, count):
        ids_BT, (targets_T,) = windows.batch([row])
        known_T = targets_T != data.IGNORE
        log_p_KV, log_q_KV = (m(ids_BT)[0][known_T].log_softmax(-1) for m in (model, int8))
        loss -= float(log_q_KV.gather(1, targets_T[known_T][:, None]).sum(dtype=torch.float64))
        kl += float((log_p_KV.exp() * (log_p_KV - log_q_KV)).sum(dtype=torch.float64))
        same += int((log_p_KV.argmax(1) == log_q_KV.argmax(1)).sum())
        n += len(log_p_KV)
    c = model.config
    size = c.parameters + (4 if c.tied else 3) * c.embedding_parameters
    means = {"loss": loss / n, "kl": kl / n, "agreement": same / n}
    return {"format": "PyTorch INT8", "file": "–", "bytes": size} | means
