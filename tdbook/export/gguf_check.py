"""What a GGUF file says in llama.cpp, against the model it was made of in PyTorch.

check: the same next tokens, and log-probabilities how far apart? other_weight: are its weights the
folder's? costs: what a format loses on text. check and costs take llama.cpp's whole distributions.
Legend: T tokens of a prompt or window, K of them with a target, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors import safe_open

from tdbook.export import llama_cpp
from tdlib import data, evaluate
from tdlib.model import Llama
from tdlib.shapes import LlamaConfig, weight_files


def prompts(config: LlamaConfig, tokens: data.Tokens | None, count: int = 200) -> list[list[int]]:
    """Prompts of many lengths, from one token to the whole context, the shorter the more often:
    parts of the validation text, or, without tokens, ids at random. Each begins after <eos>."""
    draw, prompts = np.random.default_rng(0), []
    stream = tokens.val.ids if tokens else draw.integers(0, config.vocab_size, 2**16)
    for length in np.geomspace(1, config.context, count).round().astype(int):
        at = draw.integers(0, max(1, len(stream) - length))
        prompts.append([config.eos_id, *stream[at : at + length].tolist()][:length])
    return prompts


@torch.no_grad()
def check(folder: Path, path: Path, prompts: Sequence[list[int]]) -> dict[str, float]:
    """After every token of the prompts: `likeliest`, how often both expect the same next token;
    `mean` and `largest` |log p − log q| over the vocabulary. The model's matrices are rounded to 16
    bits first: what an F16 file then differs by is the program's own arithmetic."""
    model = Llama.load(folder).eval()
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.copy_(weight.half())
    file = llama_cpp.Model(path, threads=torch.get_num_threads(), exact=True)
    same, total, largest = 0, 0.0, 0.0
    for ids in prompts:
        log_p_TV, log_q_TV = _log_p(model, ids), file.logprobs(ids)
        same += int((log_p_TV.argmax(1) == log_q_TV.argmax(1)).sum())
        difference_TV = np.abs(log_q_TV - log_p_TV)
        total += float(difference_TV.sum(dtype=np.float64))
        largest = max(largest, float(difference_TV.max()))
    count = sum(map(len, prompts))
    mean = total / count / model.config.vocab_size
    return {"likeliest": same / count, "mean": mean, "largest": largest}


def other_weight(folder: Path, path: Path) -> str:
    """The first tensor of a folder's safetensors that an F16 file made of it does not hold; "" for
    none. By name from one file to the other, past all that reads models here."""
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, len(tensors) // 9)
    for file in weight_files(folder):
        with safe_open(file, "pt") as stored:
            for name in (n for n in stored.keys() if not n.endswith("rotary_emb.inv_freq")):
                tied = name == "lm_head.weight" and "output.weight" not in tensors
                in_gguf = "token_embd.weight" if tied else names.get_name(name, (".weight",))
                if (written := tensors.get(in_gguf)) is None:
                    return name
                weight = stored.get_tensor(name).half().numpy()
                if name.endswith(("q_proj.weight", "k_proj.weight")):  # their rows are turned
                    weight, written = np.sort(weight, axis=0), np.sort(written, axis=0)
                if not np.array_equal(weight, written.astype(np.float16)):
                    return name
    return ""


def _log_p(model: Llama, ids: Sequence[int]) -> np.ndarray:
    return model(torch.tensor([list(ids)]))[0].log_softmax(-1).numpy()


@torch.no_grad()
def costs(folder: Path, files: dict[str, Path], windows: data.Windows, count: int) -> list[dict]:
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
        log_p_KV = _log_p(model, ids_T)[at_K]
        for i, file in enumerate([None, *opened]):
            log_q_KV = file.logprobs(ids_T.tolist())[at_K] if file else log_p_KV
            loss = -log_q_KV[np.arange(len(at_K)), targets_T[at_K]].sum(dtype=np.float64)
            same = (log_q_KV.argmax(1) == log_p_KV.argmax(1)).sum()
            kl = np.einsum("kv,kv", np.exp(log_p_KV), log_p_KV - log_q_KV) if file else 0.0
            sums[i] += loss, kl, same
    for row, (loss, kl, same) in zip(rows, (sums / tokens).tolist(), strict=True):
        row |= {"loss": loss, "kl": kl, "agreement": same}
    return rows
