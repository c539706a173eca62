"""A tokenizer opened, by what its file holds, or trained. Of Hugging Face's tokenizer.json each
option is understood, or refused by name; upstream's is in morfessor."""

import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
import tokenizers
from tokenizers import pre_tokenizers

from tdbook.corpus import morfessor
from tdbook.corpus.tokenizer import BYTE, HIDDEN, KEYS, Tokenizer, by_id, read_json, refuse_unknown
from tdlib.files import mark, own, refused, write_whole

EOS_NAMES, CONFIGS, NAMED, FLAGS = (tuple(names.split()) for names in KEYS["names"].values())

# GPT-2's alphabet: a byte that prints stands for itself, the others for characters from 256 on.
_PRINTED = sorted(ord(c) for c in pre_tokenizers.ByteLevel.alphabet() if ord(c) < 256)
BYTE_OF = {chr(byte): byte for byte in _PRINTED}
BYTE_OF |= {chr(256 + i): b for i, b in enumerate(sorted({*range(256)} - {*_PRINTED}))}


def open(path: str | Path, segmenter: str | Path = "") -> Tokenizer:
    """The tokenizer in a file. `segmenter`, a Morfessor .bin, segments raw text for upstream's."""
    path = Path(path)
    with path.open("rb") as file:
        content = read_json(path) if file.read(99).lstrip()[:1] == b"{" else None
    upstream = content is not None and content.get("type") in morfessor.TYPES
    if segmenter and not upstream:
        fault = f"segmenter = {str(segmenter)!r} is for upstream's tokenizer.json alone"
        raise ValueError(f"{fault}, which {path} is not: leave it empty")
    if content is None:
        return _sentencepiece(path)
    if upstream:
        return morfessor.open_json(path, content, segmenter)
    if isinstance(content.get("model"), dict):
        return _hugging_face(path, content)
    fault = f"{path} has no `model`, as Hugging Face's has, and the `type` {content.get('type')!r}"
    raise ValueError(f"{fault:.300}, not {' or '.join(morfessor.TYPES)}: give one of these")


def files(tokenizer: Tokenizer) -> dict[str, Path]:
    """Where its files are, by the names that they have beside tokens and models."""
    beside = _config_files(tokenizer.path) if tokenizer.kind == "Hugging Face" else []
    name = "tokenizer.model" if tokenizer.kind == "SentencePiece" else "tokenizer.json"
    return {name: tokenizer.path} | {path.name: path for path in beside}


def _config_files(path: Path) -> list[Path]:
    return [file for name in CONFIGS if (file := path.with_name(name)).is_file()]


def _sentencepiece(path: Path) -> Tokenizer:
    fault = f"{path} is not a SentencePiece .model, nor a tokenizer.json"
    with refused(fault, "train one, or copy it again", RuntimeError):
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    eos = model.eos_id()
    if eos < 0:
        fault = f"{path} has no <eos>, which ends each line of text"
        raise ValueError(f"{fault}: train one with pad_id 0, unk_id 1, bos_id 2, eos_id 3")
    V = range(model.vocab_size())
    control_V = np.array([model.is_control(i) for i in V])
    known = dict(kind="SentencePiece", path=path, eos=eos, unk=model.unk_id(), marked=True)
    known |= dict(silent=frozenset(np.flatnonzero(control_V).tolist()) - {eos}, opens_V=control_V)
    known |= dict(shown_V=["<eos>" if i == eos else model.id_to_piece(i) for i in V], model=model)
    return Tokenizer(**known, encode=lambda lines: model.encode([*lines]), line_text=model.decode)


def _hugging_face(path: Path, content: dict) -> Tokenizer:
    model, ids, special, named = _read(path, content)

    def encode(lines: Sequence[str]) -> list[list[int]]:
        return [line.ids for line in model.encode_batch([*lines], add_special_tokens=False)]

    def text(ids: list[int]) -> str:
        return model.decode(ids, skip_special_tokens=False).replace(HIDDEN, "").removeprefix(extra)

    eos, unk = _ends(path, named, ids, content["model"])
    controls = {ids[piece] for piece in special & {*ids}} - {unk} | {eos}
    known = dict(kind="Hugging Face", path=path, eos=eos, unk=unk, model=model, encode=encode)
    known["silent"] = frozenset(controls - {eos})
    if content["model"].get("type") == "WordLevel":  # makes controls of text that spells one
        known["encode"] = lambda x: [[unk if i in controls else i for i in y] for y in encode(x)]
        return Tokenizer(**known, **_words(path, content, by_id(path, ids), controls, unk))
    extra = " " if model.decode(encode(["a"])[0]).startswith(" ") else ""  # put before each line
    over_bytes = '"ByteLevel"' in json.dumps([content.get("pre_tokenizer"), content.get("decoder")])
    known["shown_V"] = _shown(path, model, ids, over_bytes)
    known["shown_V"][eos] = "<eos>"
    known |= dict(marked=not over_bytes, opens_V=np.isin(np.arange(len(ids)), [*controls]))
    return Tokenizer(**known, line_text=text)


def _read(path: Path, content: dict) -> tuple[tokenizers.Tokenizer, dict, set, dict]:
    """The package's tokenizer, ids of its pieces, its special ones, and what files beside name."""
    configs = {file: read_json(file) for file in _config_files(path)}
    try:
        refuse_unknown(path, content, "tokenizer.json")
        refuse_unknown(path, content["model"], "model")
        named = {}  # "eos_token" → "</s>"
        for file, config in reversed(configs.items()):  # the first has the last word
            refuse_unknown(file, config, "config")
            tokens = ((key, config[key]) for key in NAMED if config.get(key))
            named |= {key: t["content"] if isinstance(t, dict) else t for key, t in tokens}
        special, hidden = _hide_special(content, {*named.values()})
        model = tokenizers.Tokenizer.from_str(json.dumps(hidden))
        ids = {piece.removeprefix(HIDDEN): i for piece, i in model.get_vocab().items()}
        for file, config in configs.items():
            if fault := _unlike(config, content, ids):
                fault = f"{file}: {fault} in {path.name}, which alone makes ids here"
                raise ValueError(f"{fault}: make both say what the model was trained with")
    except (ValueError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the package raises nothing narrower, and its panics are none
        fault = f"{path} cannot be read by the package tokenizers ({error})"
        raise ValueError(f"{fault}: copy it again, or update the package") from None
    model.no_truncation()
    model.no_padding()
    model.encode_special_tokens = True  # as the text that it is
    return model, ids, special, named


def _words(path: Path, content: dict, pieces: list[str], controls: set[int], unk) -> dict:
    """What a Tokenizer knows of a WordLevel, whose pieces join by "@@" as upstream's do."""
    more = sum(piece.startswith("@@") - piece.endswith("@@") for piece in pieces)
    ways = {name: content.get(name) for name in ("normalizer", "pre_tokenizer")}
    if [*ways.values()] != [None, {"type": "WhitespaceSplit"}] or unk is None or not more:
        fault = f"{path} is a WordLevel over other text than is cut at spaces and joined by @@: "
        fault += f"{ways}, unk_token's id {unk}, {more} more pieces begin than end with @@"
        raise ValueError(f"{fault}: give upstream's own tokenizer.json")
    return morfessor.form(pieces, controls, "@@", prefix=more > 0)


def _ends(path: Path, named: dict, ids: dict, model: dict) -> tuple[int, int | None]:
    """The ids of <eos> and <unk>."""
    name = named.get("eos_token") or next((n for n in EOS_NAMES if n in ids), None)
    if name not in ids:
        fault = f"{path} has no end-of-text token {name or EOS_NAMES}"
        raise ValueError(f"{fault}: name one as eos_token in tokenizer_config.json beside it")
    unk = model.get("unk_id", ids.get(named.get("unk_token") or model.get("unk_token")))
    # GPT-2 names <|endoftext|> for all it has no piece for
    return ids[name], None if unk == ids[name] else unk


def _unlike(config: dict, content: dict, ids: dict[str, int]) -> str:
    """What in a file beside would change ids, were it obeyed: tokenizer.json alone is."""
    added = {token["content"]: token for token in content.get("added_tokens") or []}
    for i, token in (config.get("added_tokens_decoder") or {}).items():
        piece, ours = token["content"], added.get(token["content"])
        same = ours and all(token.get(flag, ours[flag]) == ours[flag] for flag in FLAGS)
        if str(ids.get(piece, i)) != i or not (same or token.get("special")):
            return f"added_tokens_decoder has {piece!r} (id {i}) otherwise than it is"
    ways = json.dumps([content.get("normalizer"), content.get("pre_tokenizer")])
    space = bool(re.search('_space": true|"prepend_scheme": "[fa]|"Prepend"', ways))
    if config.get("add_prefix_space") not in (None, space):
        return f"add_prefix_space is {json.dumps(not space)}, it is {json.dumps(space)}"
    return ""


def _hide_special(content: dict, named: set[str]) -> tuple[set[str], dict]:
    """The special tokens, and a content in which text that spells one does not become it: Unigram,
    which would take them for words, gets names for them that no text has; the others are marked."""
    model, added = content["model"], content.get("added_tokens") or []
    special = named | {token["content"] for token in added if token["special"]}
    special = {piece for piece in special if not BYTE.fullmatch(piece)}
    hidden = {row[0] for row in model["vocab"] if isinstance(row, list)} & special
    if hidden:
        rows = [[HIDDEN + p if p in hidden else p, score] for p, score in model["vocab"]]
        model = model | {"vocab": rows}
    left = [t for t in added if t["content"] not in hidden and not BYTE.fullmatch(t["content"])]
    left = [token | {"special": token["content"] in special} for token in left]
    return special, content | {"model": model, "added_tokens": left}


def _shown(path: Path, model: tokenizers.Tokenizer, ids: dict, over_bytes: bool) -> list[str]:
    """Each piece for display; over bytes "▁" is a space, <0xE0> a byte of a cut character."""
    pieces_V, added = by_id(path, ids), model.get_added_tokens_decoder()
    if not over_bytes and not any(piece.startswith("▁") for piece in pieces_V):
        fault = f"{path} has no piece with ▁ and is not over bytes: where words begin is not known"
        raise ValueError(f"{fault}: give a BPE or Unigram that tells")
    for i, piece in enumerate(pieces_V):
        if over_bytes and i not in added and BYTE_OF.keys() >= {*piece}:
            text = bytes(BYTE_OF[c] for c in piece).decode(errors="surrogateescape")
            escaped = re.sub("[\udc80-\udcff]", lambda c: f"<0x{ord(c[0]) - 0xDC00:02X}>", text)
            pieces_V[i] = escaped.replace(" ", "▁")
    return pieces_V


def train(lines: Iterable[str], vocab_size: int, path: Path) -> Tokenizer:
    """SentencePiece BPE with byte fallback, no normalisation: the kind llama.cpp repeats."""
    own(path)
    model, trainer = io.BytesIO(), sentencepiece.SentencePieceTrainer
    options = KEYS["train"] | {"vocab_size": vocab_size}
    try:
        trainer.train(sentence_iterator=iter(lines), model_writer=model, **options)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].rpartition("] ")[2].strip() or "it is empty"
        remedy = "raise it" if "smaller" in reason else "lower it, or give more text"
        fault = f"vocab_size {vocab_size} does not fit this text ({reason})"
        raise ValueError(f"{fault}: {remedy}") from None
    write_whole(path, model.getvalue())
    mark(path.parent, path.name)
    return _sentencepiece(path)
