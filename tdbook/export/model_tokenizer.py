"""The tokenizer beside a model, as transformers has it: written, found, and what it puts around.

Where AutoTokenizer cannot make the same ids, its file gets a name that AutoTokenizer leaves alone.
"""

import json
import random
import re
import warnings
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers

from tdbook.corpus import tokenizer_files as corpus
from tdbook.corpus.tokenizer import HIDDEN, Tokenizer, read_json
from tdbook.corpus.tokenizer_files import CONFIGS, NAMED
from tdbook.export import cards
from tdbook.export.turns import Turns

# AutoTokenizer takes the first that is there, and leaves the last two alone
FILES = ("tokenizer.json", "tokenizer.model", "sentencepiece.model", "morfessor.json")
# what normalising, trimming or reading special tokens would change
EDGES = ["", " ", "  a  b ", "\ta", "<eos>", "<unk>", "<0x41>", "క్\u200cష\u200d ౨౪", "ﬁ½Ａe\u0301"]


def tokenizer_files(tokenizer: Tokenizer, folder: Path, context: int, like="") -> dict[str, Path]:
    """Name in the released folder → where it is (Llama.save's files), what is new in `folder`. The
    chat template and the ids that end a text are those of the model `like`, where it has some."""
    if tokenizer.kind == "Morfessor":
        return {"morfessor.json": tokenizer.path}
    if tokenizer.kind == "Hugging Face":
        files = {"tokenizer.json": tokenizer.path}
        if tokenizer.joined:  # AutoTokenizer's decode joins by it
            decoder = {"decoder": cards.templates("release.yaml")["joins"][tokenizer.marked]}
            files["tokenizer.json"] = folder / "tokenizer.json"
            files["tokenizer.json"].write_text(json.dumps(read_json(tokenizer.path) | decoder))
    elif (converted := _converted(tokenizer)) is None:
        return {"sentencepiece.model": tokenizer.path}
    else:
        files = {"tokenizer.json": folder / "tokenizer.json", "tokenizer.model": tokenizer.path}
        converted.save(str(files["tokenizer.json"]))
    for name, content in _configs(tokenizer, context, Path(like or tokenizer.path.parent)).items():
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
    """Lines that tell tokenizers apart: edges, random pieces, all Telugu, emoji, added words."""
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


def _configs(tokenizer: Tokenizer, context: int, like: Path) -> dict[str, dict]:
    """The files beside tokenizer.json: what came with it, and what transformers must know. Warns
    where `like` ends a text with ids of no piece: of its template they are a part, and both go."""
    model, ours, eos = tokenizer.model, tokenizer.kind != "Hugging Face", tokenizer.eos
    config, special = ({} if ours else read_config(tokenizer.path.parent, n) for n in CONFIGS)
    ids = dict.fromkeys(("bos", "eos", "pad"), eos) | {"unk": tokenizer.unk}
    ids |= {"pad": model.pad_id()} if ours and model.pad_id() >= 0 else {}
    piece = model.id_to_piece if ours else model.id_to_token
    named = {f"{key}_token": piece(i) for key, i in ids.items() if i is not None}
    named = {n: text.removeprefix(HIDDEN) for n, text in named.items() if not config.get(n)}
    special, stops = named | special, _stops(like, eos)
    settings = cards.templates("release.yaml")["tokenizer_config"]
    config = special | settings["defaults"] | config | settings["ours"]
    config.pop("auto_map", None)  # names code that is not in the folder
    if odd := [i for i in stops if not 0 <= i < tokenizer.size]:
        fault = f"{like}: its eos_token_id {odd} are no pieces of {tokenizer.path}, so that it is"
        warnings.warn(f"{fault} no chat model here: give its own tokenizer", stacklevel=4)
    elif template := read_template(like) or config.get("chat_template"):
        config |= {"chat_template": template, "split_special_tokens": False}  # it spells them
    files = {CONFIGS[0]: config | {"model_max_length": context}, CONFIGS[1]: special}
    ends = {"eos_token_id": [eos, *stops]} | dict.fromkeys(("bos_token_id", "pad_token_id"), eos)
    return files | ({"generation_config.json": ends} if stops and not odd else {})


def read_template(folder: Path) -> str:
    """A model's chat template, the default one of several, as transformers has it; "" for none."""
    if (path := folder / "chat_template.jinja").is_file():
        return path.read_text("utf8")
    found = read_config(folder, CONFIGS[0]).get("chat_template") or ""
    named = {x["name"]: x["template"] for x in found} if isinstance(found, list) else {}
    return named.get("default", "") if named else found


@dataclass(frozen=True)
class Beside:
    """What the files beside a model say of its text."""

    tokenizer: Tokenizer
    files: list[Path]  # each form of it, the one that AutoTokenizer takes first, and the CONFIGS
    begin: tuple[int, ...]  # ids before a text
    end: tuple[int, ...]  # after it
    stops: list[int]  # that end a text which the model writes, besides <eos>
    turns: Turns | None  # of a chat model


def open_beside(folder: Path, segmenter: str = "", rows: int = 0) -> Beside:
    """The tokenizer that AutoTokenizer takes; its SentencePiece model, where that makes the same
    ids. Warns of another one there. ValueError: it has more pieces than the embedding has `rows`
    (0: unknown), or files beside it add words that it lacks."""
    paths = [folder / name for name in FILES if (folder / name).is_file()]
    if not paths:
        fault = f"{folder} holds no tokenizer ({', '.join(FILES)})"
        raise FileNotFoundError(f"{fault}: copy the one the model was trained with into it")
    first, *others = (corpus.open(path, segmenter) for path in paths)
    if rows and first.size > rows:
        fault = f"{first.path} has {first.size:,} pieces, the embedding {rows:,} rows"
        raise ValueError(f"{fault}: give the model's own tokenizer")
    if words := _missing_words(first):
        fault = f"{first.path} lacks {len(words):,} words that files beside it add ({words[0]!r})"
        remedy = "AutoTokenizer.from_pretrained(folder).save_pretrained(folder) of transformers"
        raise ValueError(f"{fault}: write one file with all, {remedy} does it")
    equal, lines = [first], trial_lines(first)
    for other in others:
        if other.size == first.size and other.encode(lines) == first.encode(lines):
            equal.append(other)
        else:
            fault = f"{other.path} makes other ids than {first.path.name} beside it"
            warnings.warn(f"{fault}, which is taken, as AutoTokenizer does", stacklevel=3)
    tokenizer = next((t for t in equal if t.kind == "SentencePiece"), first)
    configs = [folder / name for name in CONFIGS if (folder / name).is_file()]
    files = [*(t.path for t in equal), *configs]
    turns, stops = _turns(first), _stops(folder, tokenizer.eos)
    # a template says what stands around a text; llama.cpp would add <bos> to it again
    around = ((), ()) if turns else _around(folder, tokenizer, first)
    return Beside(tokenizer, files, *around, stops, turns)


def _turns(tokenizer: Tokenizer) -> Turns | None:
    """Of a chat model, by its template and tokenizer.json, as transformers applies both."""
    folder = tokenizer.path.parent
    if tokenizer.kind != "Hugging Face" or not (template := read_template(folder)):
        return None
    own = tokenizers.Tokenizer.from_file(str(tokenizer.path))
    own.no_truncation()
    own.no_padding()

    def tokenize(text: str, special: bool) -> list[int]:
        bare = special and own.encode(text, add_special_tokens=False)
        return bare.ids if bare else tokenizer.encode([text])[0]

    settings = read_config(folder, CONFIGS[0])
    named = {k: t["content"] if isinstance(t, dict) else t for k in NAMED if (t := settings.get(k))}
    return Turns(template, named, tokenize)


def read_config(folder: Path, name: str) -> dict:
    """A file of JSON beside a model, {} where it is not there."""
    path = folder / name
    return read_json(path) if path.is_file() else {}


def _missing_words(tokenizer: Tokenizer) -> list[str]:
    """Words that files beside a tokenizer add to it, as transformers reads them, and it lacks."""
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


def _around(folder: Path, tokenizer: Tokenizer, first: Tokenizer) -> tuple[tuple, tuple]:
    """The ids before and after a text: by a tokenizer.json's post-processor, by its config where
    there is a tokenizer.model alone. A model of this book begins after <eos>, whatever these say:
    that is its <bos>, and its tokenizer splits special tokens (or is none of AutoTokenizer's)."""
    settings = read_config(folder, CONFIGS[0])
    ours = settings.get("split_special_tokens") or not (settings or first.kind == "Hugging Face")
    ours = ours and read_config(folder, "config.json").get("bos_token_id") == tokenizer.eos
    if ours or first.kind == "Morfessor" or first.path.name == "sentencepiece.model":
        return (tokenizer.eos,), ()
    if first.kind == "Hugging Face":
        bare, whole = (first.model.encode("a", add_special_tokens=x).ids for x in (False, True))
        at = next(i for i in range(len(whole) + 1) if whole[i : i + len(bare)] == bare)
        return tuple(whole[:at]), tuple(whole[at + len(bare) :])
    begin_end = []
    for key, token in (("bos", tokenizer.model.bos_id()), ("eos", tokenizer.eos)):
        name = settings.get(f"{key}_token")
        name = name.get("content") if isinstance(name, dict) else name
        token = tokenizer.model.piece_to_id(name) if name else token
        asked = settings.get(f"add_{key}_token") and token >= 0
        begin_end.append((token,) if asked else ())
    return tuple(begin_end)


def _stops(folder: Path, eos: int) -> list[int]:
    """Besides <eos>, by generation_config.json, or by config.json where there is none."""
    name = "generation_config.json"
    name = name if (folder / name).is_file() else "config.json"
    ids = read_config(folder, name).get("eos_token_id")
    ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if odd := [i for i in ids if type(i) is not int]:
        raise ValueError(f"{folder}: eos_token_id holds {odd[0]!r}, it must be ids: correct it")
    return [i for i in ids if i != eos]
