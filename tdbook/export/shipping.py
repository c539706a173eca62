"""exports/<model>/: a model in every format, each run in llama.cpp and held against PyTorch, and a
card with what was measured. Legend: T tokens of a prompt, V vocabulary."""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path

import gguf
import numpy as np
import torch
import yaml
from safetensors import safe_open
from tabulate import tabulate

from tdbook.corpus import token_files
from tdbook.export import cards, gguf_file, inference, llama_cpp, model_tokenizer
from tdbook.export.gguf_file import SCRIPT, Source
from tdbook.runs.parameters import ROOT, nearest, shown
from tdlib import data
from tdlib.files import whole_folder
from tdlib.model import Llama
from tdlib.shapes import LlamaConfig, read_config, weight_files

WINDOWS = 32  # on which what a file costs is measured
FORMS = {"format": "", "file": "", "MB": ".1f", "likeliest": ".2%", "mean": ".2g", "largest": ".2g"}


def export(pairs: dict[str, str], costs: Callable[..., list[dict]]) -> None:
    """MODEL=folder [OUT= TOKENS=] of the command line. `costs`: book.common.file_costs."""
    folder = find(pairs.get("MODEL", ""))
    tokens = _tokens(folder, pairs.get("TOKENS", ""))
    out = Path(pairs.get("OUT") or ROOT / "exports") / folder.resolve().name
    print(f"{folder}: each format is written and run in llama.cpp", flush=True)
    how = partial(costs, tokens=tokens, count=WINDOWS) if tokens else None
    rows = ship(folder, out, tokens, how)
    print(f"{folder}: in rounding {_rounding(tokens)}")
    takes = f"token ids alone; {SCRIPT} encodes" if (out / SCRIPT).is_file() else "raw text"
    for table in _tables(rows):
        print(tabulate(table, headers="keys", disable_numparse=True))
    print(f"{out}: checked in llama.cpp {metadata.version('xllamacpp')}; its files take {takes}")


def find(given: str) -> Path:
    """A model folder, or a .gguf file. FileNotFoundError names the nearest that is there."""
    if not given:
        raise ValueError("MODEL is not given: a model folder, as MODEL=outputs/tiny/models/50m")
    path = Path(given).expanduser()
    path = path if path.is_absolute() or path.exists() else ROOT / path
    if (path if path.suffix == ".gguf" else path / "config.json").is_file():
        return path
    near = (*path.parent.glob("*"), *path.glob("*"))
    others = [shown(p) for p in near if p.suffix == ".gguf" or (p / "config.json").is_file()]
    remedy = nearest(given, others, "see outputs/*/models and exports/*", 0.5)
    raise FileNotFoundError(f"MODEL={given} is no model folder and no .gguf file: {remedy}")


def _tokens(folder: Path, given: str) -> data.Tokens | None:
    """TOKENS=, or those of the run folder that a model lies in; None where they are another's."""
    path = Path(given or folder.resolve().parents[1] / "tokens")
    if not given and not (path / "meta.json").is_file():
        return None
    tokens, config = token_files.open_tokens(path), read_config(folder)
    fits = tokens.vocab_size == config.vocab_size and tokens.context <= config.context
    if given and not fits:
        theirs = f"{path} has {tokens.vocab_size:,} pieces and windows of {tokens.context}"
        ours = f"the model {config.vocab_size:,} and {config.context}"
        raise ValueError(f"{theirs}, {ours}: give its own tokens")
    return tokens if fits else None


def ship(folder: str | Path, out: str | Path, tokens=None, costs: Callable | None = None):
    """Makes `out`, whole or not at all: files, the tokenizer's and a card. With `tokens` they are
    rounded by an imatrix, and tried on validation text. A row a file; with `costs` (see `export`)
    what each costs too, and two of PyTorch first. ValueError: F16 is not the folder's model."""
    folder, out = Path(folder), Path(out)
    model_place, place = folder.resolve(), out.resolve()
    if model_place.is_relative_to(place) or (place.exists() and place.is_relative_to(model_place)):
        raise ValueError(f"{out} is, or holds, the model itself ({folder}): give another OUT=")
    model = gguf_file.read(folder)
    gguf_file.warn(model, str(folder), "Q4_0")
    prompts = draw_prompts(model.config, tokens)
    with whole_folder(out) as beside:
        trained = tokens and inference.mean_squares(Llama.load(folder), tokens.train)
        names = gguf_file.formats(model.config)
        rows = [_write_checked(model, beside, name, prompts, trained) for name in names]
        if costs:
            measured = costs(folder, {row["format"]: beside / row["file"] for row in rows})
            rows = inference.in_pytorch(model.config) + rows
            rows = [row | cost for row, cost in zip(rows, measured, strict=True)]
        for path in model.vocabulary.beside.files:
            shutil.copy(path, beside)
        (beside / "README.md").write_text(_card(model, rows, prompts, tokens), encoding="utf8")
    return rows


def _rounding(tokens: data.Tokens | None) -> str:
    count = min(inference.WEIGHING, len(tokens.train)) if tokens else 0
    return cards.fill(cards.templates("export.yaml")["rounding"], {"count": count})


def _write_checked(model: Source, place: Path, quantization: str, prompts: list, importance):
    """The row of a file. F16 alone must be the model itself; the others lose what they lose."""
    exact, path = quantization == "F16", place / model.file_name(quantization)
    gguf_file.write(model, path, quantization, importance)
    other = exact and other_weight(model.folder, path)
    row = {"format": quantization, "file": path.name, "bytes": path.stat().st_size}
    row |= check(model.folder, path, prompts if exact else prompts[::4])
    if other or (exact and row["likeliest"] < 0.99 and row["largest"] > 0.02):
        share = f"agrees with {model.folder} on {row['likeliest']:.1%} of next tokens alone"
        fault = f"has not the {other} that {model.folder} holds" if other else share
        raise ValueError(f"{path.name} {fault}: nothing is shipped, report it")
    return row


def draw_prompts(config: LlamaConfig, tokens, count: int = 200) -> list[list[int]]:
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
        log_p_TV, log_q_TV = (inference.log_p(way, ids).numpy() for way in (model, file))
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
    names = gguf.get_tensor_name_map(gguf_file.NAMES, len(tensors) // 9)
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


def _tables(rows: list[dict]) -> list[list[dict[str, str]]]:
    """Of the files, and of what each format costs, where that was measured."""
    sized = [row | {"MB": row["bytes"] / 1e6} for row in rows if row["file"]]
    files = [{n: format(row[n], form) for n, form in FORMS.items() if n in row} for row in sized]
    costs = [inference.in_words(row) for row in rows if "changes" in row]
    return [files, costs] if costs else [files]


def _card(model: Source, rows: list[dict], prompts: list[list[int]], tokens) -> str:
    parts, tokenizer = cards.templates("export.yaml"), model.vocabulary.beside.tokenizer
    given = gguf.Metadata.load_model_card(model.folder)
    front = parts["front"] | {name: given[name] for name in parts["kept"] if name in given}
    front = yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip()
    form = dict(headers="keys", tablefmt="github", disable_numparse=True)
    files, *costs = (tabulate(table, **form) for table in _tables(rows))
    values = dict(front=front, model=model, rows=rows, files=files, costs=costs, text=tokens)
    values |= dict(coarse=partial(gguf_file.coarse, model), prompts=prompts, script=SCRIPT)
    values |= dict(lines=len(model_tokenizer.trial_lines(tokenizer)), rounding=_rounding(tokens))
    return cards.fill(parts["card"], values | parts["ways"][tokenizer.kind])
