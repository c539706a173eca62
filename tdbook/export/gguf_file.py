"""A model folder → GGUF files that llama.cpp runs, and exports/<model>/ to ship.

to_gguf: one file. Q and K go in with NEIGHBOURING pairs of RoPE, as llama.cpp's "llama" turns them;
a folder of Hugging Face's layout has halves. Where llama.cpp does not make the tokenizer's own ids
of raw text (every @@ vocabulary), a warning says so first, and run_gguf.py beside the file encodes.
ship: a folder with all formats, each run in llama.cpp and held against PyTorch, and a card.
"""

import json
import math
import re
import shutil
import sys
import warnings
from importlib import metadata
from pathlib import Path

import gguf
import numpy as np
import torch
import yaml
from gguf import GGMLQuantizationType as Kind
from gguf import LlamaFileType
from tabulate import tabulate

from tdbook.corpus import token_files
from tdbook.corpus.hugging_face import CONFIGS
from tdbook.export import cards, gguf_check, gguf_tokenizer, llama_cpp
from tdbook.export.gguf_tokenizer import SCRIPT, Vocabulary
from tdbook.runs import parameters
from tdbook.runs.parameters import nearest
from tdlib import data, shapes, teacher, weights
from tdlib.files import AWAY, own, replacing, sign, whole_folder, write_whole
from tdlib.model import Llama
from tdlib.shapes import LlamaConfig, read_config, weight_files

# of the matrices, of the head (and the embedding, where it is the head), and GGUF's number for both
QUANTIZATIONS = {
    "F16": (Kind.F16, Kind.F16, LlamaFileType.MOSTLY_F16),
    "Q8_0": (Kind.Q8_0, Kind.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "Q4_0": (Kind.Q4_0, Kind.Q4_0, LlamaFileType.MOSTLY_Q4_0),  # 4-bit throughout
    "Q4_0_DEFAULT": (Kind.Q4_0, Kind.Q6_K, LlamaFileType.MOSTLY_Q4_0),  # as llama-quantize makes it
}
# of generation_config.json, what changes a text that is drawn; of these 1 changes nothing
ONE = frozenset(
    """temperature top_p typical_p repetition_penalty encoder_repetition_penalty length_penalty
    num_beams num_beam_groups guidance_scale""".split()
)
SILENT = shapes.KNOWN - ONE - {"top_k", "min_p", "early_stopping"}
WINDOWS = 32  # on which what a file costs is measured before it is shipped


def to_gguf(folder: str | Path, path: str | Path, quantization: str) -> None:
    """One GGUF file of a Llama folder (ours or Hugging Face's: tied or not, grouped heads, shards),
    whole or not at all, one tensor in memory at a time. `quantization`: a name in QUANTIZATIONS.
    Norms stay float32; a row that is no multiple of a block stays Q8_0 or F16, as in llama.cpp.
    Warns before it writes where the file will take ids alone, and puts run_gguf.py beside it."""
    folder, path = Path(folder), Path(path)
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"{quantization!r} is unknown: give one of {', '.join(QUANTIZATIONS)}")
    own(path)
    if path.exists() and path.open("rb").read(4) != b"GGUF":
        raise FileExistsError(f"{path} is there and was not made by the book as a GGUF: {AWAY}")
    (config, words, where), helpers = _read(folder, path.name, quantization), {}
    if words.why:
        tokenizer = path.with_name(gguf_tokenizer.released_name(words.tokenizer))
        script = gguf_tokenizer.script(words).encode()
        helpers = {tokenizer: words.tokenizer.path.read_bytes(), path.with_name(SCRIPT): script}
    for file, content in helpers.items():
        own(file, content)
    with replacing(path) as beside:
        writer = gguf.GGUFWriter(beside, "llama")
        writer.add_type("model")
        _metadata(folder, config).set_gguf_meta_model(writer)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_file_type(QUANTIZATIONS[quantization][2])
        gguf_tokenizer.add_shape(writer, config)
        gguf_tokenizer.add(writer, words, config.vocab_size)
        _write(writer, where, config, quantization)
    new = [at for at in helpers if not at.exists() or at.read_bytes() != helpers[at]]
    for file in new:
        write_whole(file, helpers[file])
    sign(path, *new)


def _read(folder: Path, name: str, quantization: str) -> tuple[LlamaConfig, Vocabulary, dict]:
    """A model folder but for the weights themselves; warns of what its files will not hold."""
    config, words = read_config(folder), gguf_tokenizer.vocabulary(folder)
    where = _weights(folder, config)
    ids = f"takes ids, no raw text ({words.why}): {SCRIPT} beside it encodes and decodes"
    coarse = _coarse(where, config, quantization)
    for remark in filter(None, (ids if words.why else "", _asked(folder, words), coarse)):
        warnings.warn(f"{name}: {remark}", stacklevel=3)
    return config, words, where


def _weights(folder: Path, config: LlamaConfig) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """Hugging Face's name of each weight → its file and shape, checked; nothing is read yet."""
    with torch.device("meta"):
        model = Llama(config)
    expected = {
        n if n.startswith("lm_head") else f"model.{n}": tuple(x.shape)
        for n, x in model.named_parameters()
    }
    left_out, files, sizes = {"lm_head.weight"} - expected.keys(), {}, {}  # a tied head, twice
    for path in weight_files(folder):
        with weights.open_weights(path) as f:
            for name in f.keys():
                if name not in left_out and not name.endswith("rotary_emb.inv_freq"):
                    files[name], sizes[name] = path, tuple(f.get_slice(name).get_shape())
    weights.check_shapes(folder, sizes, expected)
    return {name: (files[name], sizes[name]) for name in expected}


def _write(writer: gguf.GGUFWriter, where: dict, config: LlamaConfig, quantization: str) -> None:
    kinds = _kinds(where, config, quantization)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.layers)
    for name, (_, shape) in where.items():
        block, width = gguf.GGML_QUANT_SIZES[kinds[name]]
        size, theirs = math.prod(shape) // block * width, names.get_name(name, (".weight",))
        writer.add_tensor_info(theirs, shape, np.dtype(np.float32), size, kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, (file, _) in where.items():
        writer.write_tensor_data(_tensor(file, name, config, kinds[name]))
    writer.close()


def _kinds(where: dict, config: LlamaConfig, quantization: str) -> dict[str, Kind]:
    """How each weight is kept, with llama.cpp's own ways out where blocks do not fit a row."""
    body, head, _ = QUANTIZATIONS[quantization]
    head_name = "model.embed_tokens.weight" if config.tied else "lm_head.weight"
    kinds = {}
    for name, (_, shape) in where.items():
        kind = Kind.F32 if len(shape) == 1 else head if name == head_name else body
        if kind == Kind.Q6_K and shape[-1] % 256:
            kind = Kind.Q8_0
        if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            kind = Kind.F16
        kinds[name] = kind
    return kinds


def _coarse(where: dict, config: LlamaConfig, quantization: str) -> str:
    """How much of a file is not in the blocks that it is named after, its rows being no multiple of
    one; "" where nothing is."""
    kind, kinds = QUANTIZATIONS[quantization][0], _kinds(where, config, quantization)
    block = gguf.GGML_QUANT_SIZES[kind][0]
    matrices = {name: shape for name, (_, shape) in where.items() if len(shape) > 1}
    widths = sorted({shape[-1] for shape in matrices.values() if shape[-1] % block})
    if not widths:
        return ""
    inside = sum(math.prod(shape) for name, shape in matrices.items() if kinds[name] == kind)
    share = inside / sum(map(math.prod, matrices.values()))
    amount = f"{share:.1%} of {quantization} is" if share else f"Nothing in {quantization} is"
    return (f"{amount} in {4 if kind == Kind.Q4_0 else 8} bits: rows of "
            f"{' and '.join(map(str, widths))} weights are no multiple of {block}, and stay in "
            "16 bits")  # fmt: skip


def _in_words(where: dict, config: LlamaConfig) -> str:
    """What is in the files, by how each weight is kept."""
    kinds = {q: _kinds(where, config, q) for q in QUANTIZATIONS}
    text = f"{_coarse(where, config, 'Q4_0') or 'Q4_0 is 4-bit throughout'}."
    if kinds["Q4_0_DEFAULT"] != kinds["Q4_0"]:
        head = "embedding" if config.tied else "head"
        text += f" Q4_0_DEFAULT keeps the {head} finer, as `llama-quantize` does."
    for first in QUANTIZATIONS:
        same = [q for q in QUANTIZATIONS if kinds[q] == kinds[first]]
        if same[0] == first != same[-1]:
            text += f" The weights of {', '.join(same)} are the same."
    return text


def _asked(folder: Path, words: Vocabulary) -> str:
    """What generation_config.json asks for and no file holds; "" for nothing."""
    wanted = gguf_tokenizer.config(folder, "generation_config.json")
    odd = {n: x for n, x in wanted.items() if x not in (None, "", [], {}, int(n in ONE))}
    odd = [f"{name} {json.dumps(x):.40}" for name, x in odd.items() if name not in SILENT]
    odd += [f"eos_token_id {i}" for i in words.stops[2:]]
    asked = f"generation_config.json asks for {', '.join(odd)}, which no GGUF file holds: set it"
    return f"{asked} in the program that runs it" if odd else ""


def _tensor(path: Path, name: str, config: LlamaConfig, kind: Kind) -> np.ndarray:
    with weights.open_weights(path) as f:  # anew: a mapped file counts as memory while it is open
        weight = f.get_tensor(name)
    if not weight.is_floating_point():
        dtype = str(weight.dtype).removeprefix("torch.")
        raise ValueError(f"{path}: {name} is {dtype}, a weight must be a float: give the model "
                         "before it was quantized")  # fmt: skip
    for kind_of, heads in (("q", config.heads), ("k", config.kv_heads)):
        if name.endswith(f"{kind_of}_proj.weight"):
            weight = teacher.neighbours(weight, heads)
    if kind == Kind.F16:
        largest, weight = float(weight.abs().max()), weight.half().numpy()
    else:
        weight = weight.float().numpy()
        largest = 0.0 if np.isfinite(np.dot(weight.ravel(), weight.ravel())) else np.inf
    if not largest <= 65504:
        raise ValueError(f"{path}: {name} holds {largest}, which {kind.name} cannot: give an "
                         "earlier checkpoint")  # fmt: skip
    return weight if kind in (Kind.F16, Kind.F32) else llama_cpp.quantize(weight, kind)


def _metadata(folder: Path, config: LlamaConfig) -> gguf.Metadata:
    """Name, licence, base model and so on, from the folder's card."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf8") if readme.is_file() else ""
    title = re.search(r"^# (\S+)$", text, re.MULTILINE)
    name, card = title[1] if title else folder.resolve().name, gguf.Metadata.load_model_card(folder)
    guess = gguf.Metadata.apply_metadata_heuristic
    values = guess(gguf.Metadata(), card, None, Path(name), config.parameters)
    if not values.basename:  # a name such as "50m" has no parts to be told apart
        values.finetune = None
    values.size_label = gguf.size_label(config.parameters, 0, 0, 0)
    return values


def file_name(folder: Path, quantization: str) -> str:
    """By gguf.naming_convention: "telugu-52M-merged-Q4_0.gguf"."""
    m = _metadata(folder, read_config(folder))
    parts = m.name, m.basename, m.finetune, m.version, m.size_label, quantization
    return f"{gguf.naming_convention(*parts)}.gguf"


def ship(folder: str | Path, out: str | Path, tokens: data.Tokens | None = None) -> list[dict]:
    """`out`, whole or not at all: all four files of a model folder, each run in llama.cpp and held
    against PyTorch (on `tokens`, where there are some), the tokenizer's files and a card. Returns a
    row a file. ValueError where F16 is another model than the folder's."""
    folder, out = Path(folder), Path(out)
    source, place = folder.resolve(), out.resolve()
    if source.is_relative_to(place) or (place.exists() and place.is_relative_to(source)):
        raise ValueError(f"{out} is, or holds, the model itself ({folder}): give another OUT=")
    config, words, where = _read(folder, str(folder), "Q4_0")
    prompts, rows = gguf_check.prompts(config, tokens), []
    with whole_folder(out) as beside, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said above
        for quantization in QUANTIZATIONS:
            path = beside / file_name(folder, quantization)
            to_gguf(folder, path, quantization)
            row = {"format": quantization, "file": path.name, "bytes": path.stat().st_size}
            rows.append(row | _checked(folder, path, prompts, quantization == "F16"))
        if tokens:
            files = [beside / row["file"] for row in rows]
            _, *costs = gguf_check.costs(folder, files, tokens.val, WINDOWS)
            for row, cost in zip(rows, costs, strict=True):
                row |= {"loss": cost["loss"], "kl": cost["kl"]}
        paths = [tokenizer.path for tokenizer in gguf_tokenizer.same(folder, words.tokenizer)]
        for path in (*paths, *(folder / name for name in CONFIGS)):
            if path.is_file():
                shutil.copy(path, beside)
        card = _card(folder, where, config, words, rows, prompts, tokens)
        (beside / "README.md").write_text(card, encoding="utf8")
    return rows


def _checked(folder: Path, path: Path, prompts: list[list[int]], exact: bool) -> dict[str, float]:
    """How a file in llama.cpp agrees with the model in PyTorch; an `exact` one must."""
    if exact and (other := gguf_check.other_weights(folder, path)):
        raise ValueError(f"{path.name} has not the {other} that {folder} holds: nothing is "
                         "shipped, report it")  # fmt: skip
    check = gguf_check.check(folder, path, prompts if exact else prompts[::4])
    if exact and check.agreement < 0.99 and check.largest > 0.02:
        raise ValueError(f"{path.name} agrees with {folder} on {check.agreement:.1%} of "
                         "next tokens alone: nothing is shipped, report it")  # fmt: skip
    return {"likeliest": check.agreement, "mean": check.mean, "largest": check.largest}


def table(rows: list[dict]) -> list[dict[str, str]]:
    """The rows of `ship` in words."""
    forms = {"likeliest": ".2%", "mean": ".2g", "largest": ".2g", "loss": ".4f", "kl": ".2g"}
    rows = [row | {"bytes": f"{row['bytes'] / 1e6:.1f} MB"} for row in rows]
    return [{name: format(x, forms.get(name, "")) for name, x in row.items()} for row in rows]


def _card(
    folder: Path, where: dict, config: LlamaConfig, words: Vocabulary, rows: list[dict],
    prompts: list[list[int]], tokens: data.Tokens | None,
) -> str:  # fmt: skip
    parts, theirs = cards.texts("export.yaml"), gguf.Metadata.load_model_card(folder)
    names = ("license", "license_name", "license_link", "base_model", "datasets")
    front = {"language": "te", "pipeline_tag": "text-generation", "tags": ["telugu", "gguf"]}
    front |= {name: theirs[name] for name in names if name in theirs}
    way = parts["ways"][gguf_tokenizer.released_name(words.tokenizer)]
    return cards.fill(parts["card"], way | {
        "front": yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(),
        "name": _metadata(folder, config).name, "parameters": config.parameters,
        "files": tabulate(table(rows), headers="keys", tablefmt="github", disable_numparse=True),
        "prompts": len(prompts), "longest": max(map(len, prompts)), "why": words.why,
        "weights": _in_words(where, config), "asked": _asked(folder, words),
        "begins": bool(words.begin), "windows": WINDOWS if tokens else 0, "best": rows[2]["file"],
        "script": SCRIPT, "bos": words.pieces[words.bos], "licensed": "license" in theirs,
        "lines": len(gguf_tokenizer.trial(words.tokenizer)),
    })  # fmt: skip


def find(given: str) -> Path:
    """What MODEL= means: a model folder, or a .gguf file. FileNotFoundError with the nearest that
    is there."""
    path = Path(given).expanduser()
    path = path if path.is_absolute() or path.exists() else parameters.ROOT / path
    what, mark = "folder with a config.json", path / "config.json"
    places = [path.parent, path.parent.parent, *parameters.ROOT.glob("outputs/*/models")]
    if path.suffix == ".gguf":
        what, mark = "file that is there", path
        places = [
            path.parent,
            *parameters.ROOT.glob("exports/*"),
            *parameters.ROOT.glob("outputs/*/exports/*"),
        ]
    if mark.is_file():
        if mark is path:
            llama_cpp.look(path)
        return path
    pattern = "*.gguf" if mark is path else "*/config.json"
    known = {p if mark is path else p.parent for place in places for p in place.glob(pattern)}
    names = sorted(
        str(p.relative_to(parameters.ROOT) if p.is_relative_to(parameters.ROOT) else p)
        for p in known
    )
    same = [name for name in names if Path(name).name == path.name]
    remedy = nearest(given, names, f"did you mean {same[0]}?" if same else "", 0.5)
    raise FileNotFoundError(f"MODEL={given} is no {what}: {remedy}")


def _tokens(folder: Path, given: str, config: LlamaConfig) -> data.Tokens | None:
    """TOKENS=, or those of the run folder that a model lies in; None where they are another's."""
    path = Path(given) if given else folder.resolve().parents[1] / "tokens"
    if not given and not (path / "meta.json").is_file():
        return None
    tokens = token_files.open_tokens(path)
    if tokens.vocab_size == config.vocab_size and tokens.context <= config.context:
        return tokens
    if given:
        theirs = f"a vocabulary of {tokens.vocab_size:,} and windows of {tokens.context}"
        ours = f"{config.vocab_size:,} and {config.context}"
        raise ValueError(f"{path} has {theirs}, the model {ours}: give its own tokens")
    return None


def main(arguments: list[str]) -> int:
    pairs = dict(pair.split("=", 1) for pair in arguments if "=" in pair)
    if not pairs.get("MODEL"):
        print("give a model folder: make export MODEL=outputs/tiny/models/50m")
        return 2
    try:
        folder = find(pairs["MODEL"])
        config = read_config(folder)
        tokens = _tokens(folder, pairs.get("TOKENS", ""), config)
        words = gguf_tokenizer.vocabulary(folder)
        takes = f"token ids alone ({words.why}); {SCRIPT} encodes" if words.why else "raw text"
        print(f"{folder}: {config.parameters:,} weights; its files take {takes}", flush=True)
        out = Path(pairs.get("OUT") or parameters.ROOT / "exports") / folder.resolve().name
        rows = ship(folder, out, tokens)
    except (ValueError, OSError) as error:
        print(error)
        return 1
    print(tabulate(table(rows), headers="keys", disable_numparse=True))
    print(f"{out}: checked in llama.cpp {metadata.version('xllamacpp')}, ready to ship")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
