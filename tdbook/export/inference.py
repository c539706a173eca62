"""How fast, how small, how good: every way that a model can write, beside the plan's estimates.

Ways: raw (every token computes the whole text again), KV (a cache of keys and values), KV + INT8,
KV + INT8 + compile, and the GGUF formats in llama.cpp.
Legend: R repeats, T tokens of a window, K of them with a target, V vocabulary, M prompts.
"""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from tdbook.export import gguf_file, llama_cpp, model_tokenizer
from tdbook.export.decoder import Decoder
from tdlib import data, evaluate, generate
from tdlib.model import SHAPES, Llama, LlamaConfig
from tdlib.shapes import weight_files

RAW, KV, INT8, COMPILED = "raw", "KV", "KV + INT8", "KV + INT8 + compile"
PHASES = {RAW: "raw", INT8: "phase1", COMPILED: "phase1"}  # of the plan
PHASES |= {"Q4_0": "phase2", "Q4_0_DEFAULT": "phase2"}
LEAST_S = 0.1  # that is timed at once: a clock's own step and a neighbour's burst are small in it
Write = Callable[[Sequence[int], int], list[int]]  # prompt, how many new ids → those


def ways(model: Llama, files: dict[str, Path], compiled: bool = False) -> dict[str, Write]:
    """A model's ways of writing what is likeliest; `files`: format → GGUF of the same model."""
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


def speeds(write: dict[str, Write], prompt, tokens: int, repeats: int, threads: int) -> list[dict]:
    """A row a way, in tokens a second; by CPU time with one thread, else by the wall's clock."""
    before, clock = torch.get_num_threads(), time.perf_counter if threads > 1 else time.process_time
    for way in write.values():
        if isinstance(file := getattr(way, "__self__", None), llama_cpp.Model):
            file.threads(threads)
    timed = {name: partial(way, prompt) for name, way in write.items()}
    torch.set_num_threads(threads)
    try:
        seconds = measure(timed, tokens, repeats, clock)
    finally:
        torch.set_num_threads(before)
    rows = []
    for name, (prompt_R, decode_R) in seconds.items():
        row = {"way": name, "threads": threads, "prompt": len(prompt) / float(np.median(prompt_R))}
        for key, of in (("decode", np.median), ("low", np.min), ("high", np.max)):
            row[key] = float(of(tokens / decode_R))
        rows.append(row)
    return rows


def measure(write: dict, tokens: int, repeats: int, clock: Callable) -> dict[str, np.ndarray]:
    """Seconds of a prompt, T(1), and of `tokens` after it, T(1 + tokens) − T(1), (2, R) a way. All
    take turns, after a run of each that is not counted; a quick one repeats many times."""
    seconds, loops = {name: [] for name in write}, {}
    for name, way in write.items():
        way(2)
        began = time.perf_counter()
        way(1 + tokens)
        loops[name] = math.ceil(LEAST_S / max(time.perf_counter() - began, 1e-6))
    for name, way in list(write.items()) * repeats:
        times = [clock()]
        for count in (1, 1 + tokens):
            for _ in range(loops[name]):
                way(count)
            times.append(clock())
        prompt, both = np.diff(times) / loops[name]
        seconds[name].append((prompt, both - prompt))
    return {name: np.array(pairs).T for name, pairs in seconds.items()}


def speculative(*given) -> dict:
    """`_speculative` in a process of its own: the server keeps threads, and may end its process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_speculative, *given).result()


def _speculative(teacher: Path, student: Path, prompts_MT: list, tokens: int, repeats: int) -> dict:
    """Rows of `speeds`: a teacher's file alone and with a student's drafts, in llama.cpp's server;
    the share of drafted tokens that it `accepted`; how many of M greedy texts are the `same`."""
    drafts = {"Q4_0 in the server": None, f"Q4_0, drafted by {student.parent.name}": student}
    m, t = np.shape(prompts_MT)
    write = {way: _server(teacher, draft, t + tokens + 1) for way, draft in drafts.items()}
    times = {"prompt": t, "decode": m, "low": m, "high": m}  # tokens of each prompt, texts
    rows = speeds(write, prompts_MT, tokens, repeats, threads=1)
    rows = [row | {key: row[key] * count for key, count in times.items()} for row in rows]
    alone, drafted = (way(prompts_MT, tokens) for way in write.values())
    same = sum(a["choices"] == b["choices"] for a, b in zip(alone, drafted, strict=True))
    if not (count := sum(a["timings"].get("draft_n", 0) for a in drafted)):
        fault = f"llama.cpp does not let {student} draft for {teacher}"
        raise ValueError(f"{fault}: name models of one vocabulary")
    accepted = sum(a["timings"]["draft_n_accepted"] for a in drafted) / count
    return {"rows": rows, "accepted": accepted, "same": same, "texts": m}


def _server(path: Path, draft: Path | None, context: int) -> Callable[[list, int], list[dict]]:
    """Prompts, number of tokens → llama.cpp's answers; drafts are as long as it makes them."""
    import xllamacpp

    p = xllamacpp.CommonParams()
    p.model.path, p.n_ctx, p.n_parallel, p.cache_ram_mib, p.verbosity = str(path), context, 1, 0, -1
    if draft:
        p.speculative.types = [xllamacpp.common_speculative_type(1)]  # DRAFT_SIMPLE
        p.speculative.draft.mparams.path = str(draft)
    for part in (p, p.speculative.draft):
        part.cpuparams.n_threads = part.cpuparams_batch.n_threads = 1
    ask, more = xllamacpp.Server(p).handle_completions, {"temperature": 0, "cache_prompt": False}
    more["ignore_eos"] = True  # or texts would not be equally long
    return lambda prompts, n: [ask({"prompt": ids, "n_predict": n} | more) for ids in prompts]


def of_shape(name: str, vocab_size: int, prompt, tokens, repeats, compiled, tokenizer) -> dict:
    """Speeds, on one thread, and file sizes of one of SHAPES with random weights."""
    torch.manual_seed(0)
    model = Llama(LlamaConfig(vocab_size, context=2048, **SHAPES[name])).eval()
    ids = np.random.default_rng(0).integers(4, vocab_size, prompt).tolist()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, name)
        model.save(folder, model_tokenizer.tokenizer_files(tokenizer, Path(place), 2048))
        source = gguf_file.read(folder)
        files = {q: Path(place, f"{q}.gguf") for q in gguf_file.formats(model.config)}
        for quantization, path in files.items():
            gguf_file.write(source, path, quantization)
        sizes = {q: path.stat().st_size for q, path in files.items()}
        rows = speeds(ways(model, files, compiled), ids, tokens, repeats, 1)
    return {"parameters": model.config.parameters, "bytes": sizes, "rows": rows}


def log_p(model: Llama, ids: Sequence[int]) -> np.ndarray:
    return model(torch.tensor([list(ids)]))[0].log_softmax(-1).numpy()


@torch.no_grad()
def file_costs(folder: Path, files: dict, windows: data.Windows, count: int) -> list[dict]:
    """What each file (format → path) loses against the model it was made of, on `count` windows
    spread evenly: rows of format, bytes, loss (nats per token), kl (‖ of the file, nats per token)
    and agreement, the model itself first. The distributions of one window are held at a time."""
    model, size = Llama.load(folder).eval(), sum(p.stat().st_size for p in weight_files(folder))
    opened = [llama_cpp.Model(path, threads=torch.get_num_threads()) for path in files.values()]
    rows = [{"format": "PyTorch float32", "file": folder.name, "bytes": size}]
    for name, path in files.items():
        rows.append({"format": name, "file": path.name, "bytes": path.stat().st_size})
    sums, tokens = np.zeros((len(rows), 3)), 0
    for window in evaluate.fixed_rows(windows, count):
        (ids_T,), (targets_T,) = (x.numpy() for x in windows.batch([window]))
        at_K = np.flatnonzero(targets_T != data.IGNORE)
        tokens += len(at_K)
        log_p_KV = log_p(model, ids_T)[at_K]
        for i, file in enumerate([None, *opened]):
            log_q_KV = file.logprobs(ids_T.tolist())[at_K] if file else log_p_KV
            loss = -log_q_KV[np.arange(len(at_K)), targets_T[at_K]].sum(dtype=np.float64)
            same = (log_q_KV.argmax(1) == log_p_KV.argmax(1)).sum()
            kl = np.einsum("kv,kv", np.exp(log_p_KV), log_p_KV - log_q_KV) if file else 0.0
            sums[i] += loss, kl, same
    for row, (loss, kl, same) in zip(rows, (sums / tokens).tolist(), strict=True):
        row |= {"loss": loss, "kl": kl, "agreement": same}
    return rows


def costs(folder: Path, files: dict, windows, count: int, write: dict, tokens: int) -> list[dict]:
    """The rows of file_costs and one of PyTorch's INT8, each with the repetition of its texts."""
    rows = file_costs(folder, files, windows, count)
    rows.insert(1, int8_cost(folder, windows, count))
    starts = evaluate.fixed_rows(windows, 10) * windows.context
    way_of = {"PyTorch float32": KV, "PyTorch INT8": INT8} | {name: name for name in files}
    for row in rows:
        way = write[way_of[row["format"]]]
        row |= repetition([way(windows.ids[i:][:8].tolist(), tokens) for i in starts])
    return rows


def repetition(texts: list[list[int]]) -> dict[str, float]:
    """The share of 4-grams already seen in the same text, and distinct bigrams over all bigrams."""
    fours = [[tuple(ids[i : i + 4]) for i in range(len(ids) - 3)] for ids in texts]
    twos = [tuple(ids[i : i + 2]) for ids in texts for i in range(len(ids) - 1)]
    count, different = sum(map(len, fours)), sum(len(set(grams)) for grams in fours)
    repeated = (count - different) / count if count else np.nan
    distinct = len(set(twos)) / len(twos) if twos else np.nan
    return {"repeated_4grams": repeated, "distinct_2grams": distinct}


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
