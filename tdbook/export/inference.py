"""How fast, how small, how good: every way that a model can write, beside the plan's estimates.

Ways: raw (every token computes the whole text again), KV (a cache of keys and values), KV + INT8,
KV + INT8 + compile, and the GGUF formats in llama.cpp.
Legend: R repeats, M prompts, W windows of T tokens, K of them with a target, V vocabulary, I inputs
of a matrix.
"""

import contextlib
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
from torch import Tensor, nn

from tdbook.export import gguf_file, llama_cpp, model_tokenizer
from tdbook.export.decoder import Decoder
from tdlib import data, evaluate, generate, weights
from tdlib.model import SHAPES, Llama, LlamaConfig

RAW, KV, INT8, COMPILED = "raw", "KV", "KV + INT8", "KV + INT8 + compile"
PHASES = {RAW: "raw", INT8: "phase1", COMPILED: "phase1"}  # of the plan
PHASES |= {"Q4_0": "phase2", "Q4_0_DEFAULT": "phase2"}
FLOAT, IN_INT8 = "PyTorch float32", "PyTorch INT8"
WAYS = {FLOAT: KV, IN_INT8: INT8}  # format → way; a file's has its name
FORMS = {"loss": ".4f", "kl": ".4f", "agreement": ".1%", "acceptance": ".2%"}  # of qualities
WEIGHING = 64  # windows of mean_squares: 4 or 256 give nearly the same KL (bench/imatrix.py)
LEAST_S = 0.05  # that is timed at once: a clock's own step and a neighbour's burst are small in it
Write = Callable[[Sequence[int], int], list[int]]  # prompt, how many new ids → those


def ways(model: Llama, files: dict[str, Path], compiled: bool = False) -> dict[str, Write]:
    """A model's ways of writing what is likeliest; `files`: format → GGUF of the same model."""
    decoders = {KV: Decoder(model), INT8: Decoder(model, int8=True)}
    if compiled:
        decoders[COMPILED] = quick = Decoder(model, int8=True)
        quick.hidden = torch.compile(quick.hidden, dynamic=True)
    write = {RAW: partial(generate.generate, decoders[KV], cached=False)}
    write |= {name: partial(generate.generate, decoder) for name, decoder in decoders.items()}
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
    rows, parts = [], {"decode": np.median, "low": np.min, "high": np.max}
    for name, (prompt_R, decode_R) in seconds.items():
        row = {"way": name, "threads": threads, "prompt": len(prompt) / float(np.median(prompt_R))}
        rows.append(row | {key: float(of(tokens / decode_R)) for key, of in parts.items()})
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
    config = LlamaConfig(max(vocab_size, tokenizer.size), context=2048, **SHAPES[name])
    model = Llama(config).eval()
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


def log_p(way: Llama | Decoder | llama_cpp.Model, ids: list[int]) -> Tensor:
    """Logarithms of the distributions after each token of a text, (T, V)."""
    if isinstance(way, llama_cpp.Model):
        return torch.from_numpy(way.logprobs(ids))
    return way(torch.tensor([ids]))[0].log_softmax(-1)


@torch.no_grad()
def qualities(
    folder: Path, files: dict, windows: data.Windows, rows_W: np.ndarray, teacher: Llama | None
) -> dict[str, dict[str, np.ndarray]]:
    """Of a model in PyTorch, in float32 and INT8, and of its files (format → path), by window: loss
    and kl (model ‖ format) in nats per token, agreement with the model on the likeliest, acceptance
    by the teacher, (W,) each. NaN: every target is masked, or no teacher of this vocabulary."""
    model, threads = Llama.load(folder).eval(), torch.get_num_threads()
    if teacher is not None and teacher.config.vocab_size != model.config.vocab_size:
        teacher = None
    ways = {FLOAT: model, IN_INT8: Decoder(model, int8=True)}
    ways |= {name: llama_cpp.Model(path, threads=threads) for name, path in files.items()}
    found = {name: {metric: np.full(len(rows_W), np.nan) for metric in FORMS} for name in ways}
    for w, row in enumerate(rows_W):
        (ids_T,), (y_T,) = (x.tolist() for x in windows.batch([row]))
        if not (at_K := [t for t, y in enumerate(y_T) if y != data.IGNORE]):
            continue
        log_p_KV = log_p(model, ids_T)[at_K]
        log_t_KV = None if teacher is None else log_p(teacher, ids_T)[at_K]
        for name, way in ways.items():
            log_q_KV = log_p_KV if way is model else log_p(way, ids_T)[at_K]
            each = {"loss": -log_q_KV[range(len(at_K)), [y_T[t] for t in at_K]]}
            each["kl"] = log_p_KV.exp().mul_(log_p_KV - log_q_KV).sum(1, dtype=torch.float64)
            each["agreement"] = log_q_KV.argmax(1) == log_p_KV.argmax(1)
            if log_t_KV is not None:
                kept_KV = torch.minimum(log_t_KV, log_q_KV).exp_()
                each["acceptance"] = kept_KV.sum(1, dtype=torch.float64)
            for metric, x in each.items():
                found[name][metric][w] = float(x.double().mean())
    return found


def in_pytorch(config: LlamaConfig) -> list[dict]:
    """Rows of the two formats of PyTorch; of INT8 a byte a weight, and the embedding's four."""
    both = config.parameters + (4 if config.tied else 3) * config.embedding_parameters
    sizes = {FLOAT: 4 * config.parameters, IN_INT8: both}
    return [{"format": name, "file": "", "bytes": size} for name, size in sizes.items()]


def in_words(row: dict) -> dict[str, str]:
    """A format's metrics: the model's own as they are, of others how much they change."""
    shown = row if row["format"] == FLOAT else row["changes"]
    known = {name for name in FORMS if row[name] is not None and not math.isnan(row[name])}
    cells = {n: format(shown[n], form) if n in known else "–" for n, form in FORMS.items()}
    return {"format": row["format"]} | cells


def read_bandwidth() -> float:
    """Bytes a second that one core reads: the best of five products of 512 MiB of float32 with a
    vector, by CPU time. A floor: what lies in its cache, as a tiny model does, comes faster."""
    before, matrix_IO = torch.get_num_threads(), torch.ones(2**17, 2**10)
    torch.set_num_threads(1)
    seconds = []
    for _ in range(5):
        began = time.process_time()
        matrix_IO @ matrix_IO[0]
        seconds.append(time.process_time() - began)
    torch.set_num_threads(before)
    return matrix_IO.nbytes / min(seconds)


def repetitions(write: dict[str, Write], windows: data.Windows, tokens: int) -> dict[str, dict]:
    """Way of a format → repetition of ten texts of so many tokens."""
    starts = evaluate.fixed_rows(windows, 10) * windows.context
    prompts = [windows.ids[i:][:8].tolist() for i in starts]
    ways = {name: way for name, way in write.items() if name not in (RAW, COMPILED)}
    return {name: repetition([way(ids, tokens) for ids in prompts]) for name, way in ways.items()}


def repetition(texts: list[list[int]]) -> dict[str, float]:
    """The share of 4-grams already seen in the same text, and distinct bigrams over all bigrams."""
    fours = [[tuple(ids[i : i + 4]) for i in range(len(ids) - 3)] for ids in texts]
    twos = [tuple(ids[i : i + 2]) for ids in texts for i in range(len(ids) - 1)]
    count, different = sum(map(len, fours)), sum(len(set(grams)) for grams in fours)
    repeated = (count - different) / count if count else np.nan
    distinct = len(set(twos)) / len(twos) if twos else np.nan
    return {"repeated_4grams": repeated, "distinct_2grams": distinct}


@torch.no_grad()
def mean_squares(model: Llama, windows: data.Windows, count: int = WEIGHING) -> dict:
    """What the inputs of each matrix weigh ("imatrix"): Hugging Face's name → mean square of each,
    (I,) float32, over `count` windows spread evenly. An embedding that is not the head has none.
    llama.cpp's quantizer minimises Σ w (x − x̂)² over a block, w that mean square."""
    sums_I, device = {}, str(model.head.device)

    def add(name: str, _, inputs: tuple, output=None) -> None:
        x_TI = (inputs[0] if output is None else output)[0].float()
        sums_I[name] = sums_I.get(name, 0) + x_TI.square().sum(0).cpu().double()

    rows, head = evaluate.fixed_rows(windows, count), weights.TIED[not model.config.tied]
    with contextlib.ExitStack() as hooks:
        for name, part in model.named_modules():
            if isinstance(part, nn.Linear):
                hook = part.register_forward_pre_hook(partial(add, f"model.{name}.weight"))
                hooks.enter_context(hook)
        # no module multiplies by the head
        hooks.enter_context(model.norm.register_forward_hook(partial(add, head)))
        for row in rows:
            model.hidden(windows.batch([row], device)[0])
    tokens = len(rows) * windows.context
    return {name: (s / tokens).numpy().astype(np.float32) for name, s in sums_I.items()}
