"""The tokenizer beside a model, as transformers has it: written, found, and what it puts around.

Where AutoTokenizer cannot make the same ids, its file gets a name that AutoTokenizer leaves alone.
"""

import json
import random
import re
import warnings
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers

import tdbook.corpus.tokenizer_files
from tdbook.corpus.hugging_face import CONFIGS
from tdbook.corpus.tokenizer import Tokenizer, read_json
from tdbook.export import cards

# AutoTokenizer takes the first that is there, and leaves the last two alone
FILES = ("tokenizer.json", "tokenizer.model", "sentencepiece.model", "morfessor.json")
# what normalising, trimming or reading special tokens would change
EDGES = ["", " ", "  a  b ", "\ta", "<eos>", "<unk>", "<0x41>", "క్\u200cష\u200d ౨౪", "ﬁ½Ａe\u0301"]


def tokenizer_files(tokenizer: Tokenizer, folder: Path, context: int) -> dict[str, Path]:
    """Name in the released folder → where it is, for `Llama.save(files=…)`; what is new is written
    into `folder`. A SentencePiece model without the same ids as a tokenizer.json becomes
    sentencepiece.model, upstream's file morfessor.json."""
    if tokenizer.kind == "Morfessor":
        return {"morfessor.json": tokenizer.path}
    if tokenizer.kind == "Hugging Face":
        files = {"tokenizer.json": tokenizer.path}
    elif (converted := _converted(tokenizer)) is None:
        return {"sentencepiece.model": tokenizer.path}
    else:
        files = {"tokenizer.json": folder / "tokenizer.json", "tokenizer.model": tokenizer.path}
        converted.save(str(files["tokenizer.json"]))
    for name, content in zip(CONFIGS, _configs(tokenizer, context), strict=True):
        files[name] = folder / name
        files[name].write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf8")
    return files


def _converted(tokenizer: Tokenizer) -> tokenizers.Tokenizer | None:
    """A SentencePiece BPE that neither normalises nor trims; None for any other, which would not
    get the same ids (a Unigram takes text that spells a special token, or a byte, for one)."""
    sp, V = tokenizer.model, range(tokenizer.size)
    vocabulary = {sp.id_to_piece(i): i for i in V}
    special = [piece for piece, i in vocabulary.items() if sp.is_control(i) or sp.is_unknown(i)]
    bytes_ = {piece for piece, i in vocabulary.items() if sp.is_byte(i)}
    plain = vocabulary.keys() - bytes_ - {*special}
    # SentencePiece joins the pair whose whole has the best score, so any two halves of a piece are
    # a merge of that piece's rank
    merges = sorted(
        (-sp.get_score(vocabulary[piece]), vocabulary[piece], piece[:at], piece[at:])
        for piece in plain
        for at in range(1, len(piece))
        if piece[:at] in plain and piece[at:] in plain
    )
    options = dict(unk_token=sp.id_to_piece(sp.unk_id()), byte_fallback=bool(bytes_), fuse_unk=True)
    converted = tokenizers.Tokenizer(models.BPE(vocabulary, [m[2:] for m in merges], **options))
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    converted.normalizer = normalizers.Sequence(spaces)
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    converted.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)])
    converted.add_special_tokens(special)
    converted.encode_special_tokens = True  # text that spells one stays text
    lines = trial_lines(tokenizer)
    ids = [line.ids for line in converted.encode_batch(lines, add_special_tokens=False)]
    return converted if ids == tokenizer.encode(lines) else None


def trial_lines(tokenizer: Tokenizer) -> list[str]:
    """Lines that tell two tokenizers apart: edges, pieces at random, every Telugu code point,
    emoji, what has no piece, and each word that was added to it."""
    pieces = [p for p in tokenizer.vocabulary() if p and not re.search("<0x..>|�", p)]
    draw = random.Random(0)
    drawn = ["".join(draw.choices(pieces, k=24)).replace("▁", " ") for _ in range(1000)]
    telugu = [chr(i) for i in range(0x0C00, 0x0C80)]
    emoji = ["👍🏽 😀", "👨‍👩‍👧", *map(chr, range(0x1F600, 0x1F650)), "中文 ꙮ"]
    words = [word for _, word in sorted(added_words(tokenizer).items())][:1000]
    added = [f"{w} {w}{w} క{w}క  {w}. {v}{w}" for v, w in pairwise([*words[-1:], *words])]
    return [*EDGES, *drawn, *telugu, *(f"క{c}" for c in telugu), *emoji, *added]


def added_words(tokenizer: Tokenizer) -> dict[int, str]:
    """The words added to a tokenizer.json, at which text is cut first."""
    added = tokenizer.model.get_added_tokens_decoder() if tokenizer.kind == "Hugging Face" else {}
    special = tokenizer.silent | {tokenizer.eos, tokenizer.unk}
    return {i: token.content for i, token in added.items() if i not in special}


def _configs(tokenizer: Tokenizer, context: int) -> tuple[dict, dict]:
    """The CONFIGS beside tokenizer.json: what came with it, and what transformers must know."""
    config, special, pad = {}, {}, -1
    if tokenizer.kind == "Hugging Face":
        config, special = (read_config(tokenizer.path.parent, name) for name in CONFIGS)
        piece = tokenizers.Tokenizer.from_file(str(tokenizer.path)).id_to_token
    else:
        pad, piece = tokenizer.model.pad_id(), tokenizer.model.id_to_piece
    eos = piece(tokenizer.eos)
    named = {"bos_token": eos, "eos_token": eos, "pad_token": eos if pad < 0 else piece(pad)}
    named |= {} if tokenizer.unk is None else {"unk_token": piece(tokenizer.unk)}
    special = named | special
    settings = cards.templates("release.yaml")["tokenizer_config"]
    config = special | settings["defaults"] | config | settings["ours"]
    config.pop("auto_map", None)  # names code that is not in the folder
    return config | {"model_max_length": context}, special


def open_beside(folder: Path, segmenter: str = "", rows: int = 0) -> Tokenizer:
    """The tokenizer of the model in a folder: the one AutoTokenizer takes, of those with at most as
    many pieces as the embedding has `rows` (0: unknown); its SentencePiece model, where that makes
    the same ids. Warns of another tokenizer there. ValueError: all have more pieces, or files
    beside it add words that it lacks."""
    found = _open_all(folder, segmenter)
    first = next((t for t in found if not rows or t.size <= rows), None)
    if first is None:
        fault = f"{found[0].path} has {found[0].size:,} pieces, the embedding {rows:,}"
        raise ValueError(f"{fault} rows: give the model's own tokenizer")
    if words := _missing_words(first):
        fault = f"{first.path} lacks {len(words):,} words that files beside it add ({words[0]!r})"
        remedy = "AutoTokenizer.from_pretrained(folder).save_pretrained(folder) of transformers"
        raise ValueError(f"{fault}: write one file with all, {remedy} does it")
    for other in found:
        if lines := _different_lines(first, other):
            both = f"{folder} holds two tokenizers, {first.path.name} and {other.path.name}"
            remark = f"{both}, with other ids for {lines:,} lines: the first is taken"
            fits = f"for the embedding has {rows:,} rows"
            remark += f", {'as AutoTokenizer does' if first is found[0] else fits}"
            warnings.warn(remark, stacklevel=3)
    return next((t for t in equals(folder, first) if t.kind == "SentencePiece"), first)


def equals(folder: Path, tokenizer: Tokenizer) -> list[Tokenizer]:
    """A tokenizer in every form that a folder holds; AutoTokenizer takes the first."""
    if tokenizer.kind == "Morfessor":
        return [tokenizer]
    return [other for other in _open_all(folder) if not _different_lines(other, tokenizer)]


def _open_all(folder: Path, segmenter: str = "") -> list[Tokenizer]:
    paths = [folder / name for name in FILES if (folder / name).is_file()]
    if paths:
        return [_open(path, path.stat().st_mtime_ns, segmenter) for path in paths]
    fault = f"{folder} holds no tokenizer ({', '.join(FILES)})"
    raise FileNotFoundError(f"{fault}: copy the one the model was trained with into it")


@lru_cache(8)
def _open(path: Path, changed: int, segmenter: str) -> Tokenizer:
    return tdbook.corpus.tokenizer_files.open(path, segmenter)


@lru_cache(8)
def _different_lines(one: Tokenizer, other: Tokenizer) -> int:
    """Trial lines of which two tokenizers make other ids; 0: they are one."""
    lines = trial_lines(one)
    different = [a != b for a, b in zip(one.encode(lines), other.encode(lines), strict=True)]
    return sum(different) or int(one.size != other.size)


def read_config(folder: Path, name: str) -> dict:
    """A file of JSON beside a model, {} where it is not there."""
    path = folder / name
    return read_json(path) if path.is_file() else {}


def _missing_words(tokenizer: Tokenizer) -> list[str]:
    """Words that files beside a tokenizer add to it, as transformers reads them, and it lacks.
    Special tokens that it lacks occur in no text."""
    if tokenizer.kind == "Morfessor":
        return []
    folder = tokenizer.path.parent
    entries = read_config(folder, CONFIGS[0]).get("added_tokens_decoder")
    words = {t["content"] for t in (entries or {}).values() if not t.get("special")}
    if entries is None:
        special = json.dumps([read_config(folder, name) for name in CONFIGS])
        added = read_config(folder, "added_tokens.json")
        words = {word for word in added if json.dumps(word) not in special}
    own = tokenizer.model.get_vocab() if tokenizer.kind == "Hugging Face" else tokenizer.shown_V
    return sorted(w for w in words - {*own} if not re.fullmatch(r"<.*>|\[[A-Z]+\]", w))


def around(folder: Path, tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids before and after a text: by the post-processor of a tokenizer.json, by
    tokenizer_config.json where there is a tokenizer.model alone. A model of this book begins after
    <eos>, whatever these say: its config has it as <bos>, and its tokenizer splits special tokens
    (or is none of AutoTokenizer's)."""
    settings, first = read_config(folder, CONFIGS[0]), equals(folder, tokenizer)[0]
    ours = settings.get("split_special_tokens") or not (settings or first.kind == "Hugging Face")
    ours = ours and read_config(folder, "config.json").get("bos_token_id") == tokenizer.eos
    if ours or first.kind == "Morfessor" or first.path.name in FILES[2:]:
        return (tokenizer.eos,), ()
    if first.kind == "Hugging Face":
        bare, whole = (first.model.encode("a", add_special_tokens=x).ids for x in (False, True))
        at = next(i for i in range(len(whole) + 1) if whole[i : i + len(bare)] == bare)
        return tuple(whole[:at]), tuple(whole[at + len(bare) :])

    def asked(key: str, token: int) -> tuple[int, ...]:
        name = settings.get(f"{key}_token")
        name = name.get("content") if isinstance(name, dict) else name
        token = tokenizer.model.piece_to_id(name) if name else token
        return (token,) if settings.get(f"add_{key}_token") and token >= 0 else ()

    return asked("bos", tokenizer.model.bos_id()), asked("eos", tokenizer.eos)


def stops(folder: Path) -> list[int]:
    """The ids that end a text, by generation_config.json, or config.json where there is none."""
    name = "generation_config.json"
    name = name if (folder / name).is_file() else "config.json"
    ids = read_config(folder, name).get("eos_token_id")
    ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if odd := [i for i in ids if type(i) is not int]:
        raise ValueError(f"{folder}: eos_token_id holds {odd[0]!r}, it must be ids: correct it")
    return ids
