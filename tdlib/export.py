"""A model folder → GGUF files that llama.cpp runs, and exports/<model>/ to ship.

to_gguf: one file, written tensor by tensor. Q and K go in with NEIGHBOURING pairs of RoPE, as
llama.cpp's "llama" turns them; a folder of Hugging Face's layout has halves.
A file takes raw text by itself where llama.cpp makes the tokenizer's own ids; that is tried on a
thousand lines before anything is written. Where it does not (every @@ vocabulary), a warning says
so first, and run_gguf.py beside the file encodes.
ship: a folder with all formats, each run in llama.cpp and held against PyTorch, and a card.
"""

import difflib
import json
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
from jinja2 import Environment, StrictUndefined
from safetensors import SafetensorError, safe_open
from tabulate import tabulate

from tdlib import data, gguf_check, gguf_tokenizer, llama_cpp, teacher
from tdlib.files import AWAY, own, replacing, sign, write_whole
from tdlib.gguf_tokenizer import SCRIPT, Vocabulary
from tdlib.model import Llama
from tdlib.parameters import ROOT
from tdlib.shapes import LlamaConfig, read_config
from tdlib.tokenizer import CONFIGS

# of the matrices, of the head (and the embedding, where it is the head), and GGUF's number for both
QUANTIZATIONS = {
    "F16": (Kind.F16, Kind.F16, LlamaFileType.MOSTLY_F16),
    "Q8_0": (Kind.Q8_0, Kind.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "Q4_0": (Kind.Q4_0, Kind.Q4_0, LlamaFileType.MOSTLY_Q4_0),  # 4-bit throughout
    "Q4_0_DEFAULT": (Kind.Q4_0, Kind.Q6_K, LlamaFileType.MOSTLY_Q4_0),  # as llama-quantize makes it
}
# of generation_config.json: what a file holds, or what changes no text
SILENT = frozenset(
    """bos_token_id eos_token_id pad_token_id max_length max_new_tokens use_cache do_sample
    cache_implementation return_dict_in_generate num_return_sequences transformers_version
    output_scores output_logits output_attentions output_hidden_states _from_model_config""".split()
)
# of these 1 changes nothing; of all others null, false, 0 or nothing
ONE = frozenset(
    """temperature top_p typical_p repetition_penalty encoder_repetition_penalty length_penalty
    num_beams num_beam_groups guidance_scale""".split()
)
WINDOWS = 32  # on which what a file costs is measured before it is shipped


def to_gguf(folder: str | Path, path: str | Path, quantization: str) -> None:
    """One GGUF file of a Llama folder (ours or Hugging Face's: tied or not, grouped heads, shards),
    whole or not at all, one tensor in memory at a time. `quantization`: a name in QUANTIZATIONS.
    Norms stay float32; a row that is no multiple of a block stays Q8_0 or F16, as in llama.cpp.
    Warns before it writes where the file will take ids alone, and puts run_gguf.py beside it."""
    folder, path = Path(folder), Path(path)
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"quantization {quantization!r} is unknown: give one of "
                         f"{', '.join(QUANTIZATIONS)}")  # fmt: skip
    own(path)
    if path.exists() and path.open("rb").read(4) != b"GGUF":
        raise FileExistsError(f"{path} is there and was not made by the book as a GGUF: {AWAY}")
    config = read_config(folder)
    where, words = _weights(folder, config), gguf_tokenizer.vocabulary(folder)
    for remark in filter(None, (_asked(folder, words), _coarse(where, config, quantization))):
        warnings.warn(f"{path.name}: {remark}", stacklevel=2)
    beside_it = {}
    if words.why:
        name = gguf_tokenizer.released_name(words.tokenizer)
        script = gguf_tokenizer.script(words).encode()
        beside_it = {name: words.tokenizer.path.read_bytes(), SCRIPT: script}
        for name, content in beside_it.items():
            own(path.with_name(name), content)
        warnings.warn(f"{path.name} takes ids, no raw text ({words.why}): {SCRIPT} beside it "
                      "encodes and decodes", stacklevel=2)  # fmt: skip
    with replacing(path) as beside:
        writer = gguf.GGUFWriter(beside, "llama")
        _describe(writer, folder, config, quantization)
        gguf_tokenizer.add(writer, words, config.vocab_size, _bos(folder, config))
        kinds = _kinds(where, config, quantization)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.layers)
        for name, (_, shape) in where.items():
            size = int(np.prod(shape)) // gguf.GGML_QUANT_SIZES[kinds[name]][0]
            size *= gguf.GGML_QUANT_SIZES[kinds[name]][1]
            theirs = names.get_name(name, (".weight",))
            writer.add_tensor_info(theirs, shape, np.dtype(np.float32), size, kinds[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, (file, _) in where.items():
            writer.write_tensor_data(_tensor(file, name, config, kinds[name]))
        writer.close()
    new = {path.with_name(name): content for name, content in beside_it.items()}
    new = {at: content for at, content in new.items() if not at.exists()
           or at.read_bytes() != content}  # fmt: skip
    for at, content in new.items():
        write_whole(at, content)
    sign(path, *new)


def _bos(folder: Path, config: LlamaConfig) -> int:
    bos = json.loads((folder / "config.json").read_bytes()).get("bos_token_id")
    return config.eos_id if bos is None else bos


# --- weights


def _weights(folder: Path, config: LlamaConfig) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """Hugging Face's name of each weight → its file and shape, checked; nothing is read yet."""
    with torch.device("meta"):
        model = Llama(config)
    expected = {
        n if n.startswith("lm_head") else f"model.{n}": tuple(x.shape)
        for n, x in model.named_parameters()
    }
    files = {}
    for path in data.weight_files(folder):
        with _open(path) as f:
            files |= {name: (path, tuple(f.get_slice(name).get_shape())) for name in f.keys()}
    left_out = {"lm_head.weight"} - expected.keys()  # a tied head stored twice
    files = {name: found for name, found in files.items()
             if name not in left_out and not name.endswith("rotary_emb.inv_freq")}  # fmt: skip
    shapes = {name: torch.empty(shape, device="meta") for name, (_, shape) in files.items()}
    data.check_shapes(folder, shapes, expected)
    return {name: files[name] for name in expected}


def _open(path: Path):
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): copy it again") from None


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
    sizes = {name: int(np.prod(shape)) for name, (_, shape) in where.items() if len(shape) > 1}
    wide = sorted({where[name][1][-1] for name in sizes if where[name][1][-1] % block})
    if not wide:
        return ""
    share = sum(n for name, n in sizes.items() if kinds[name] == kind) / sum(sizes.values())
    begins = f"{share:.1%} of {quantization} is" if share else f"Nothing in {quantization} is"
    rows = " and ".join(map(str, wide))
    return (f"{begins} in {4 if kind == Kind.Q4_0 else 8} bits: rows of {rows} weights are no "
            f"multiple of {block}, and stay in 16 bits")  # fmt: skip


def _in_words(where: dict, config: LlamaConfig) -> str:
    """What is in the files, by how each weight is kept."""
    kinds = {q: _kinds(where, config, q) for q in QUANTIZATIONS}
    said = [f"{_coarse(where, config, 'Q4_0') or 'Q4_0 is 4-bit throughout'}."]
    if kinds["Q4_0_DEFAULT"] != kinds["Q4_0"]:
        head = "embedding" if config.tied else "head"
        said.append(f"Q4_0_DEFAULT keeps the {head} finer, as `llama-quantize` does.")
    for first in QUANTIZATIONS:
        same = [q for q in QUANTIZATIONS if kinds[q] == kinds[first]]
        if same[0] == first != same[-1]:
            said.append(f"The weights of {', '.join(same)} are the same.")
    return " ".join(said)


def _asked(folder: Path, words: Vocabulary) -> str:
    """What generation_config.json asks for and no file holds; "" for nothing."""
    found = gguf_tokenizer.config(folder, "generation_config.json")
    odd = [f"{name} {json.dumps(value):.40}" for name, value in found.items() if name not in SILENT
           and value not in (None, "", [], {}, int(name in ONE))]  # fmt: skip
    odd += [f"eos_token_id {i}" for i in words.stops[2:]]
    asked = f"generation_config.json asks for {', '.join(odd)}, which no GGUF file holds: set it"
    return f"{asked} in the program that runs it" if odd else ""


def _tensor(path: Path, name: str, config: LlamaConfig, kind: Kind) -> np.ndarray:
    with _open(path) as f:  # opened for each: a mapped file counts as memory while it is open
        weight = f.get_tensor(name)
    if not weight.is_floating_point():
        dtype = str(weight.dtype).removeprefix("torch.")
        raise ValueError(f"{path}: {name} is {dtype}, a weight must be a float: give the model "
                         "before it was quantized")  # fmt: skip
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = config.heads if name.endswith("q_proj.weight") else config.kv_heads
        weight = teacher.neighbours(weight, heads)
    if kind == Kind.F16:
        largest = float(weight.abs().max())
        found = weight.half().numpy()
    else:
        found = weight.float().numpy()
        largest = 0.0 if np.isfinite(np.dot(found.ravel(), found.ravel())) else np.inf
    if not largest <= 65504:
        raise ValueError(f"{path}: {name} holds {largest}, which {kind.name} cannot: give an "
                         "earlier checkpoint")  # fmt: skip
    return found if kind in (Kind.F16, Kind.F32) else llama_cpp.quantize(found, kind)


# --- metadata


def _metadata(folder: Path, config: LlamaConfig) -> gguf.Metadata:
    """Name, licence, base model and so on, from the folder's card."""
    card = gguf.Metadata.load_model_card(folder)
    path = folder / "README.md"
    text = path.read_text(encoding="utf8") if path.is_file() else ""
    title = re.search(r"^# (\S+)$", text, re.MULTILINE)
    name = Path(title[1] if title else folder.resolve().name)
    found = gguf.Metadata.apply_metadata_heuristic(
        gguf.Metadata(), card, None, name, config.parameters
    )
    if not found.basename:  # a name such as "50m" has no parts to be told apart
        found.finetune = None
    found.size_label = gguf.size_label(config.parameters, 0, 0, 0)
    return found


def file_name(folder: Path, quantization: str) -> str:
    """By gguf.naming_convention: "telugu-52M-merged-Q4_0.gguf"."""
    m = _metadata(folder, read_config(folder))
    return gguf.naming_convention(
        m.name, m.basename, m.finetune, m.version, m.size_label, quantization
    ) + ".gguf"  # fmt: skip


def _describe(
    writer: gguf.GGUFWriter, folder: Path, config: LlamaConfig, quantization: str
) -> None:
    writer.add_type("model")
    _metadata(folder, config).set_gguf_meta_model(writer)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(QUANTIZATIONS[quantization][2])
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.mlp_dim)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)


# --- exports/<model>


def ship(folder: str | Path, out: str | Path, tokens: data.Tokens | None = None) -> list[dict]:
    """`out`, whole or not at all: all four files of a model folder, each run in llama.cpp and held
    against PyTorch (on `tokens`, where there are some), the tokenizer's files and a card. Returns a
    row a file. ValueError where F16 is another model than the folder's."""
    folder, out = Path(folder), Path(out)
    source, place = folder.resolve(), out.resolve()
    if source.is_relative_to(place) or (place.exists() and place.is_relative_to(source)):
        raise ValueError(f"{out} is, or holds, the model itself ({folder}): give another OUT=")
    config, words = read_config(folder), gguf_tokenizer.vocabulary(folder)
    if words.why:
        warnings.warn(f"these files take ids, no raw text ({words.why}): {SCRIPT} beside them "
                      "encodes and decodes", stacklevel=2)  # fmt: skip
    where = _weights(folder, config)
    for remark in filter(None, (_asked(folder, words), _coarse(where, config, "Q4_0"))):
        warnings.warn(f"{folder}: {remark}", stacklevel=2)
    tried, rows = gguf_check.prompts(config, tokens), []
    with data.whole_folder(out) as beside, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said above
        for quantization in QUANTIZATIONS:
            path = beside / file_name(folder, quantization)
            to_gguf(folder, path, quantization)
            exact = quantization == "F16"
            if exact and (other := gguf_check.other_weights(folder, path)):
                raise ValueError(f"{path.name} has not the {other} that {folder} holds: nothing is "
                                 "shipped, report it")  # fmt: skip
            found = gguf_check.check(folder, path, tried if exact else tried[::4])
            if exact and found.agreement < 0.99 and found.largest > 0.02:
                raise ValueError(f"{path.name} agrees with {folder} on {found.agreement:.1%} of "
                                 "next tokens alone: nothing is shipped, report it")  # fmt: skip
            rows.append({
                "format": quantization, "file": path.name, "bytes": path.stat().st_size,
                "likeliest": found.agreement, "mean": found.mean, "largest": found.largest,
            })  # fmt: skip
        if tokens:
            files = [beside / row["file"] for row in rows]
            _, *cost = gguf_check.costs(folder, files, tokens.val, WINDOWS)
            rows = [row | {"loss": c["loss"], "kl": c["kl"]}
                    for row, c in zip(rows, cost, strict=True)]  # fmt: skip
        one = words.tokenizer.path.name  # and none of another tokenizer
        for name in (one, *CONFIGS, *gguf_tokenizer.FILES[: one == "tokenizer.model"]):
            if (folder / name).is_file():
                shutil.copy(folder / name, beside / name)
        (beside / "README.md").write_text(
            _card(folder, config, words, rows, tried, tokens), encoding="utf8"
        )
    return rows


def table(rows: list[dict]) -> list[dict[str, str]]:
    """The rows of `ship` in words."""
    said = {
        "bytes": lambda x: f"{x / 1e6:.1f} MB", "likeliest": "{:.2%}".format,
        "mean": "{:.2g}".format, "largest": "{:.2g}".format, "loss": "{:.4f}".format,
        "kl": "{:.2g}".format,
    }  # fmt: skip
    return [{k: said[k](v) if k in said else v for k, v in row.items()} for row in rows]


def _card(
    folder: Path, config: LlamaConfig, words: Vocabulary, rows: list[dict],
    tried: list[list[int]], tokens: data.Tokens | None,
) -> str:  # fmt: skip
    texts = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf8"))
    theirs = gguf.Metadata.load_model_card(folder)
    kept = ("license", "license_name", "license_link", "base_model", "datasets")
    front = {"language": "te", "pipeline_tag": "text-generation", "tags": ["telugu", "gguf"]}
    front |= {name: theirs[name] for name in kept if name in theirs}
    text = "parts of the validation text" if tokens else "prompts of ids at random"
    how = f"on {len(tried)} {text}, from 1 token to {max(map(len, tried)):,} (F16; the others on a "
    how += "quarter of them)"
    own = "Licence, data and base model are in the card of the model these files were made of."
    open_ = "Its licence and data are for the owner to fill in: TODO."
    way = texts["ways"][gguf_tokenizer.released_name(words.tokenizer)]
    bos = words.begin[0] if words.begin else _bos(folder, config)
    known = {
        "front": yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(),
        "name": _metadata(folder, config).name, "parameters": config.parameters,
        "files": tabulate(table(rows), headers="keys", tablefmt="github", disable_numparse=True),
        "how": how, "why": words.why, "kept": _in_words(_weights(folder, config), config),
        "asked": _asked(folder, words), "begins": bool(words.begin),
        "windows": WINDOWS if tokens else 0, "best": rows[2]["file"], "script": SCRIPT,
        "packages": way["packages"], "example": way["example"], "bos": words.pieces[bos],
        "lines": f"{len(gguf_tokenizer.trial(words.tokenizer)):,}",
        "own": own if "license" in theirs else open_,
    }  # fmt: skip
    engine = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return engine.from_string(texts["card"]).render(known)


def find(given: str) -> Path:
    """What MODEL= means: a model folder, or a .gguf file. FileNotFoundError with the nearest that
    is there."""
    path = Path(given).expanduser()
    path = path if path.is_absolute() or path.exists() else ROOT / path
    file = path.suffix == ".gguf"
    if path.is_file() if file else (path / "config.json").is_file():
        if file:
            llama_cpp.look(path)
        return path
    if file:
        known = {*path.parent.glob("*.gguf"), *ROOT.glob("exports/*/*.gguf"),
                 *ROOT.glob("outputs/*/exports/*/*.gguf")}  # fmt: skip
    else:
        known = {*path.parent.glob("*/config.json"), *path.parent.parent.glob("*/config.json"),
                 *ROOT.glob("outputs/*/models/*/config.json")}  # fmt: skip
        known = {found.parent for found in known}
    names = sorted(str(p.relative_to(ROOT) if p.is_relative_to(ROOT) else p) for p in known)
    close = [*difflib.get_close_matches(given, names, 1, 0.5),
             *(name for name in names if Path(name).name == path.name)]  # fmt: skip
    remedy = f"did you mean {close[0]}?" if close else f"there are {', '.join(names) or 'none yet'}"
    what = "file that is there" if file else "folder with a config.json"
    raise FileNotFoundError(f"MODEL={given} is no {what}: {remedy}")


def _tokens(folder: Path, given: str, config: LlamaConfig) -> data.Tokens | None:
    """TOKENS=, or those of the run folder that a model lies in; None where they are another's."""
    path = Path(given) if given else folder.resolve().parents[1] / "tokens"
    if not given and not (path / "meta.json").is_file():
        return None
    tokens = data.open_tokens(path)
    if tokens.vocab_size == config.vocab_size and tokens.context <= config.context:
        return tokens
    if given:
        raise ValueError(f"{path} has a vocabulary of {tokens.vocab_size:,} and windows of "
                         f"{tokens.context}, the model {config.vocab_size:,} and "
                         f"{config.context}: give its own tokens")  # fmt: skip
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
        out = Path(pairs.get("OUT") or ROOT / "exports") / folder.resolve().name
        rows = ship(folder, out, tokens)
    except (ValueError, OSError) as error:
        print(error)
        return 1
    print(tabulate(table(rows), headers="keys", disable_numparse=True))
    print(f"{out}: checked in llama.cpp {metadata.version('xllamacpp')}, ready to ship")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
