"""Models out: what makes models/<name> and adapters/<name> folders to release.

tokenizer_files: the tokenizer as transformers' AutoTokenizer loads it, to the same ids; where that
cannot be, under a name that it leaves alone, and the card says how to use it.
card, adapter_card: README.md, with measured numbers; what only the owner knows is left open.
upload_command: a line for the owner to type. Nothing here asks the network.
"""

import json
import random
import re
import shlex
from pathlib import Path

import tokenizers
import yaml
from jinja2 import Environment, StrictUndefined
from safetensors import safe_open
from tokenizers import decoders, models, normalizers

from tdbook.corpus.hugging_face import CONFIGS
from tdbook.corpus.tokenizer import Tokenizer
from tdbook.runs import notebooks, rules
from tdlib import data
from tdlib.shapes import read_config

OWNER = "YOUR-NAME"  # on the Hub
# what normalising, trimming or reading special tokens would change
EDGES = ["", " ", "  a  b ", "\ta", "<eos>", "<unk>", "<0x41>", "క్\u200cష\u200d ౨౪", "ﬁ½Ａe\u0301"]


def tokenizer_files(tokenizer: Tokenizer, folder: Path, context: int) -> dict[str, Path]:
    """Name in the released folder → where it is, for `Llama.save(files=…)`; what is new is written
    into `folder`. A SentencePiece model without the same ids as a tokenizer.json, and upstream's
    file, get names that AutoTokenizer leaves alone: sentencepiece.model, morfessor.json."""
    if tokenizer.kind == "Morfessor":
        return {"morfessor.json": tokenizer.path}
    if tokenizer.kind == "Hugging Face":
        files = {"tokenizer.json": tokenizer.path}
    elif (converted := _converted(tokenizer)) is None:
        return {"sentencepiece.model": tokenizer.path}
    else:
        files = {"tokenizer.json": folder / "tokenizer.json", "tokenizer.model": tokenizer.path}
        converted.save(str(files["tokenizer.json"]))
    return files | _configs(tokenizer, folder, context)


def _converted(tokenizer: Tokenizer) -> tokenizers.Tokenizer | None:
    """A SentencePiece BPE that neither normalises nor trims; None for any other, which would not
    get the same ids (a Unigram takes text that spells a special token, or a byte, for one)."""
    sp, V = tokenizer.model, range(tokenizer.size)
    pieces = [sp.id_to_piece(i) for i in V]
    special = [i for i in V if sp.is_control(i) or sp.is_unknown(i)]
    bytes_ = [i for i in V if sp.is_byte(i)]
    text = {pieces[i]: i for i in sorted({*V} - {*special, *bytes_})}
    # SentencePiece joins the pair whose whole has the best score, so any two halves of a piece are
    # a merge of that piece's rank
    merges = sorted(
        (-sp.get_score(i), i, piece[:at], piece[at:])
        for piece, i in text.items()
        for at in range(1, len(piece))
        if piece[:at] in text and piece[at:] in text
    )
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges, unk = [(a, b) for *_, a, b in merges], pieces[sp.unk_id()]
    bpe = models.BPE(vocabulary, merges, unk_token=unk, fuse_unk=True, byte_fallback=bool(bytes_))
    converted = tokenizers.Tokenizer(bpe)
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    converted.normalizer = normalizers.Sequence(spaces)
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    converted.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)])
    converted.add_special_tokens([pieces[i] for i in special])
    converted.encode_special_tokens = True  # text that spells one stays text
    lines = trial(list(text))
    ids = [x.ids for x in converted.encode_batch(lines, add_special_tokens=False)]
    return converted if ids == tokenizer.encode(lines) else None


def trial(pieces: list[str]) -> list[str]:
    """Lines on which two tokenizers of one vocabulary would differ, if anywhere: its pieces at
    random, where every seam is a chance for another cut."""
    draw = random.Random(0)
    return EDGES + ["".join(draw.choices(pieces, k=24)).replace("▁", " ") for _ in range(1000)]


def _configs(tokenizer: Tokenizer, folder: Path, context: int) -> dict[str, Path]:
    """The files beside tokenizer.json: what came with it, and what transformers needs to know."""
    if tokenizer.kind == "Hugging Face":
        given = (tokenizer.path.with_name(name) for name in CONFIGS)
        config, special = (json.loads(p.read_bytes()) if p.is_file() else {} for p in given)
        pad, piece = -1, tokenizers.Tokenizer.from_file(str(tokenizer.path)).id_to_token
    else:
        config, special = {}, {}
        pad, piece = tokenizer.model.pad_id(), tokenizer.model.id_to_piece
    eos = piece(tokenizer.eos)
    named = {"bos_token": eos, "eos_token": eos, "pad_token": eos if pad < 0 else piece(pad)}
    named |= {} if tokenizer.unk is None else {"unk_token": piece(tokenizer.unk)}
    special = named | special
    config = special | {
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # text that spells one stays text
        "model_input_names": ["input_ids", "attention_mask"],  # Llama takes no token types
        "padding_side": "left",  # or batches would be continued after their padding
    } | config  # fmt: skip
    # any other class would build a pipeline of its own, not the one in tokenizer.json
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context}
    config.pop("auto_map", None)  # names code that is not in the folder
    for name, content in zip(CONFIGS, (config, special), strict=True):
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (folder / name).write_text(text, encoding="utf8")
    return {name: folder / name for name in CONFIGS}


def card(
    folder: Path, tokens: data.Tokens, row: dict, record: dict, teacher: dict | None = None
) -> str:
    """README.md of models/<name>, whose other files are there already. `row`: the model's metrics
    (evaluate.record); `record`: results/<run>.json of the run that trained it, of a merged model
    that of 03; `teacher`: the teacher's row, None where there is none."""
    rows = {folder.name: row} | ({"teacher": teacher} if teacher else {})
    return _render(folder, folder, tokens, rows, record, {"adapter": None})


def adapter_card(
    folder: Path, base: Path, tokens: data.Tokens, row: dict, record: dict, before: dict
) -> str:
    """README.md of adapters/<name>, made for the model in the folder `base`. `row`: the metrics
    with it, `before`: those of the base alone; `record`: results/<run>.json of its run."""
    rows = {folder.name: row, f"{base.name} alone": before}
    with safe_open(folder / "adapter_model.safetensors", "pt") as f:
        sha256 = f.metadata()["base_sha256"]
    more = {"base": base.name, "base_sha256": sha256, "base_repository": _repository(base)}
    more |= {"adapter": json.loads((folder / "adapter_config.json").read_bytes())}
    return _render(folder, base, tokens, rows, record, more)


def upload_command(folder: Path) -> str:
    """What the owner types to put a folder on the Hub (`hf`, of huggingface_hub 0.34 and later), in
    a repository that nobody else sees until its card is filled in. It is only printed."""
    where = [_repository(folder), str(folder), "."]
    return shlex.join(["hf", "upload", *where, "--repo-type", "model", "--private"])


def _repository(folder: Path) -> str:
    return f"{OWNER}/telugu-" + re.sub("[^A-Za-z0-9.]+", "-", folder.name)


def texts(file: str) -> dict:
    """The templates in a .yaml beside this module, and for each file of a tokenizer its way."""
    return yaml.safe_load(Path(__file__).with_name(file).read_text(encoding="utf8"))


def fill(template: str, known: dict) -> str:
    engine = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return engine.from_string(template).render(known)


def _render(
    folder: Path, model: Path, tokens: data.Tokens, rows: dict, record: dict, more: dict
) -> str:
    parts = texts("release.yaml")
    way = next((way for name, way in parts["ways"].items() if (model / name).is_file()), None)
    if way is None:
        raise FileNotFoundError(f"{model} holds none of {', '.join(parts['ways'])}: save the model "
                                "with files=release.tokenizer_files(…)")  # fmt: skip
    config = read_config(model)
    known = more | {
        "repository": _repository(folder), "config": config, "way": way, "record": record,
        "remark": " " * bool(way["remark"]) + way["remark"], "rows": rows,
        "windows": len(tokens.val), "context": tokens.context, "tokenizer": tokens.tokenizer,
        "training": len(tokens.train.ids), "parameters": _parameters(record),
        "origin": _origin(folder.name, record), "new_tokens": min(60, config.context // 2),
    }  # fmt: skip
    known |= {"program": fill(parts["program"], known), "metrics": parts["metrics"]}
    return fill(parts["card"], known)


def _parameters(record: dict) -> str:
    """Those that change a result; no paths, which would tell where the owner keeps things."""
    telling = {
        name: value
        for name, value in record["parameters"].items()
        if name not in rules.VOLATILE and value not in ("", None) and "/" not in str(value)
    }
    return yaml.safe_dump(telling, sort_keys=False, allow_unicode=True).rstrip()


def _origin(name: str, record: dict) -> str:
    """How it came to be, from its run's parameters."""
    p = record["parameters"]
    if record["notebook"] == notebooks.TEACHER:
        here = "trained here from random weights, on text alone"
        return f"It was {'made elsewhere' if p['teacher'] else here}."
    loss, ce = "cross-entropy with the true next token", p["ce_weight"]
    if ce < 1:
        t = f"{p['temperature']:g}" if p["temperature"] else "that of the base's run"
        loss = f"{ce:g} · {loss} + {1 - ce:g} · " if ce else ""
        loss += f"T² · KL(teacher ‖ model), T {t}"
    if record["notebook"] == notebooks.LORA:
        made = f"trained on the {p['windows']} windows, its base frozen"
        if p.get("trains") == "weights":
            made = f"`{p['base']}`, all its weights trained on for a while, {p['windows']} windows"
        elif name != p["adapter"]:
            both = f"`{p['base']}` and the adapter `{p['adapter']}`"
            made = f"{both} merged into one; that was {made}"
    else:
        teacher = "150m" if name == "75m" else p["teacher"]  # 05's last stage
        made = f"a student of `{teacher}`" if ce < 1 else "trained on text, without a teacher"
        start = "slices of its teacher's" if p.get("init") == "teacher" else "random"
        made = f"{made}, begun from {start} weights"
    return f"It is {made}. Loss: {loss}."
