"""Text ↔ ids by three kinds of tokenizer, told apart by what the file holds, used in one way.

SentencePiece .model: "▁" begins a word; the kind that `train` makes.
Hugging Face tokenizer.json: BPE or Unigram, with "▁" or over bytes (GPT-2's alphabet).
Morfessor, upstream's tokenizer.json of type "morfessor_bpe_telugu": a piece that ends in "@@" joins
to the next one, and text is segmented before it is encoded (see `_Morphs`).
Each line of text becomes ids without <eos>; no special token is added, and text that spells one
("<eos>") stays text.
Legend: V vocabulary; M windows, S tokens of each.
"""

import heapq
import io
import json
import pickle
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import sentencepiece
import tokenizers

from tdlib.files import own, sign, write_whole

PAD, UNK, BOS, EOS = 0, 1, 2, 3  # upstream's, and of those trained here: then 256 byte pieces
EOS_NAMES = ("<eos>", "</s>", "<|endoftext|>", "<|end_of_text|>")
CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")  # beside a Hugging Face tokenizer
BYTE = re.compile("<0x[0-9A-F]{2}>")
PARTS = 0.01  # of the tokens; below it bytes are rare characters, and pieces tell of the text
HIDDEN = "\uffff"  # no character: no text has it
TELUGU = re.compile("[\u0c00-\u0c7f]")
RUNS = re.compile("[\u0c00-\u0c7f]+|[^\u0c00-\u0c7f]+")
LARGEST = 2**28  # bytes of a tokenizer's file; public ones have up to 40 million
LONGEST = 10**6  # bytes of a line that SentencePiece's trainer reads; it leaves longer ones out
# What may stand in the files of a Hugging Face tokenizer. `_unlike` and `_named` look at what
# changes ids or text; the rest concerns padding, cutting, chats and special tokens, which nothing
# here adds, nor those that a config names (see SPECIAL). Any other key is refused by name.
KEYS = {
    "tokenizer.json": """version truncation padding added_tokens normalizer pre_tokenizer
        post_processor decoder model""",
    "upstream's": "version type vocab_size separator special_tokens token_to_id bpe_merges",
    "its model": """type vocab merges unk_token unk_id byte_fallback fuse_unk ignore_merges dropout
        continuing_subword_prefix end_of_word_suffix max_input_chars_per_word""",
    "a config": """
        additional_special_tokens extra_special_tokens model_specific_special_tokens
        added_tokens_decoder add_prefix_space do_lower_case sp_model_kwargs add_bos_token
        add_eos_token add_special_tokens legacy split_special_tokens
        clean_up_tokenization_spaces spaces_between_special_tokens errors trim_offsets
        chat_template default_chat_template use_default_system_prompt response_schema
        tokenizer_class processor_class auto_map name_or_path special_tokens_map_file
        tokenizer_file vocab_file merges_file from_slow use_fast is_local local_files_only
        backend model_max_length max_length max_len model_input_names padding_side
        pad_to_multiple_of pad_token_type_id truncation_side truncation_strategy stride
        return_token_type_ids transformers_version _commit_hash trust_remote_code extra_ids""",
}
SPECIAL = re.compile(".*_token(_id)?")


@dataclass(frozen=True, eq=False, repr=False)  # of a whole vocabulary
class Tokenizer:
    """An opened tokenizer of any kind. Prompts begin after <eos>; no <bos> in the tokens."""

    kind: str  # "SentencePiece", "Hugging Face" or "Morfessor"
    path: Path
    eos: int  # ends each line of text
    unk: int | None  # stands for text that it has no piece for; None where there is no such token
    silent: frozenset[int]  # <pad>, <bos> and the like: nothing in a text
    shown_V: list[str]  # each piece for display, by itself
    marked: bool  # "▁" on a piece says that it begins a word; else the piece before says it too
    model: object  # of the package that reads this kind, or _Morphs
    lines_ids: Callable[[list[str]], list[list[int]]]
    line_text: Callable[[list[int]], str]

    @property
    def name(self) -> str:
        """The file's name beside tokens and models."""
        return "tokenizer.model" if self.kind == "SentencePiece" else "tokenizer.json"

    @property
    def size(self) -> int:
        return len(self.shown_V)

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """The ids of each line, without <eos>."""
        return self.lines_ids(list(lines))

    def decode(self, ids: Iterable[int]) -> str:
        """Text; <eos> becomes a line break, half a character at the end is dropped."""
        lines = [[]]
        for i in self._checked(ids):
            if i == self.eos:
                lines.append([])
            elif i not in self.silent:
                lines[-1].append(i)
        return "\n".join(map(self.line_text, lines)).rstrip("�")

    def running(self, ids: Iterable[int], prompt: Iterable[int] = ()) -> Iterator[str]:
        """The text of ids as they come, after that of a prompt: no half characters, and a letter
        only when no vowel sign, virama or half of a conjunct can follow it. Together the pieces are
        decode's text, less bytes that make no character."""
        # What a token adds is told by those shown just before: whether it brings a space, joins, or
        # ends a character. So the text of `line` from `begun` on is made anew, never that of the
        # whole line. `shown`: tokens that end in a whole character; `out`: characters given out.
        line, held = [], ""
        for i in self._checked(prompt):
            line = [] if i == self.eos else [*line, i]
        text = self.line_text(line)
        begun, out = 0, len(text.rstrip("�"))
        shown = 0 if text.endswith("�") else len(line)
        for i in ids:
            if self._checked([i]) == [self.eos]:
                line, begun, shown, out, held = [], 0, 0, 0, held + "\n"
            elif i not in self.silent:
                line.append(int(i))
                text = self.line_text(line[begun:])
                whole = text.rstrip("�")
                held += whole[out:].replace("�", "")
                if whole == text:
                    begun, shown = shown, len(line)
                    out = len(self.line_text(line[begun:]))
                else:  # half a character: wait for the rest
                    out = max(out, len(whole))
            if settled := _settled(held):
                yield held[:settled]
                held = held[settled:]
        if held:
            yield held

    def plain(self, line: str) -> str:
        """The text that a line is, where lines come as segmented without the marks of that."""
        if self.kind != "Morfessor" or self.model.segment:
            return line
        return line.replace(f"{self.model.separator} ", "").removesuffix(self.model.separator)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Tokens of a running text for display: "▁" begins a word, <0xE0> is a byte."""
        ids = self._checked(ids)
        pieces = [self.shown_V[i] for i in ids]
        if self.marked or not ids:
            return pieces
        begins_S = self.begins(np.array([ids]))[0] & ~np.isin(ids, self._special)
        marks = ("▁" if begins else "" for begins in begins_S)
        return [mark + p.removeprefix(mark) for mark, p in zip(marks, pieces, strict=True)]

    def vocabulary(self) -> list[str]:
        """The bare text of each piece, without the marks of a word's beginning or going on."""
        return [piece.lstrip("▁").replace("▁", " ") for piece in self.shown_V]

    def begins(self, ids_MS: np.ndarray) -> np.ndarray:
        """Whether each token begins a word, given the one before it, (M, S). In the first column,
        where a piece itself does not say so, True."""
        begins_MS = self._begins_V[ids_MS]
        begins_MS[:, 1:] |= self.opens_V[ids_MS[:, :-1]]
        begins_MS[:, :1] |= not self.marked
        return begins_MS

    @cached_property
    def opens_V(self) -> np.ndarray:
        """Whether a word begins after each piece, whatever comes."""
        if self.kind == "Morfessor":
            return ~self.model.joins_V
        return np.isin(np.arange(self.size), self._special)

    @cached_property
    def parts_V(self) -> np.ndarray:
        """1 for a piece that is one byte of a character (byte fallback), 2 for one that holds more
        and cuts a character (BPE over bytes), else 0."""
        return np.array([2 * bool(BYTE.search(p)) - bool(BYTE.fullmatch(p)) for p in self.shown_V])

    def in_parts(self, count_V: np.ndarray) -> bool:
        """Whether pieces, by their counts, often cut characters: numbers of characters then need
        the text. True for any BPE over bytes, and for many bytes."""
        bytes_ = count_V[np.flatnonzero(self.parts_V[: len(count_V)] == 1)].sum()
        return bool((self.parts_V == 2).any() or bytes_ > PARTS * count_V.sum())

    def characters(self, ids_S: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each byte of a running text the code point that it is of, whether it is the first of
        its character, and the place of its token, (bytes,) each. A byte of no character is a
        surrogate; special tokens have no bytes, <eos> is a line break."""
        texts_S = [self._bytes_V[i] for i in np.asarray(ids_S).tolist()]
        token_B = np.repeat(np.arange(len(texts_S)), [len(text) for text in texts_S])
        text = b"".join(texts_S).decode(errors="surrogateescape")
        code_C = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        width_C = 1 + (code_C > 0x7F).astype(int) + (code_C > 0x7FF) + (code_C > 0xFFFF)
        width_C[(code_C >= 0xD800) & (code_C < 0xE000)] = 1
        begins_B = np.zeros(len(token_B), bool)
        begins_B[np.cumsum(width_C) - width_C] = True
        return np.repeat(code_C, width_C), begins_B, token_B

    @cached_property
    def _bytes_V(self) -> list[bytes]:
        texts_V = [b"\n" if i == self.eos else _spelt(p) for i, p in enumerate(self.shown_V)]
        for i in {*self.silent, self.unk} - {None}:
            texts_V[i] = b""
        return texts_V

    @cached_property
    def _begins_V(self) -> np.ndarray:
        return np.array([p.startswith("▁") or i == self.eos for i, p in enumerate(self.shown_V)])

    @property
    def _special(self) -> list[int]:
        return [*self.silent, self.eos]

    def _checked(self, ids: Iterable[int]) -> list[int]:
        ids = [int(i) for i in ids]
        if odd := [i for i in ids if not 0 <= i < self.size]:
            fault = f"id {odd[0]:,} is none of the {self.size:,} pieces of {self.path}"
            raise ValueError(f"{fault}: give the tokenizer that the tokens were made with")
        return ids


def _spelt(piece: str) -> bytes:
    """The bytes that a piece stands for as it is shown: "▁" a space, <0xE0> a byte."""
    parts = re.split("<0x([0-9A-F]{2})>", piece.replace("▁", " "))
    return b"".join(bytes.fromhex(p) if i % 2 else p.encode() for i, p in enumerate(parts))


def _settled(text: str) -> int:
    """How much of a text no character to come can change: all before its last letter with its
    signs. A virama (combining class 9) and ZERO WIDTH JOINER bind the letter after them too."""
    for end in range(len(text) - 1, 0, -1):
        sign = unicodedata.category(text[end])[0] == "M" or text[end] in "\u200c\u200d"
        bound = unicodedata.combining(text[end - 1]) == 9 or text[end - 1] == "\u200d"
        if not sign and not bound:
            return end
    return 0


def open(path: str | Path, segmenter: str | Path = "") -> Tokenizer:
    """The tokenizer in a file, of whichever kind. `segmenter` is the Morfessor .bin that segments
    raw text for upstream's; without one, text for that kind is taken as segmented already."""
    path = Path(path)
    if not path.is_file():
        remedy = "put a SentencePiece .model there, or give one, or a tokenizer.json, as tokenizer"
        raise FileNotFoundError(f"{path} is not there: {remedy}")
    content = _read_json(path) if _bounded(path).lstrip()[:1] == b"{" else None
    upstream = content is not None and content.get("type") == "morfessor_bpe_telugu"
    if segmenter and not upstream:
        fault = f"segmenter = {str(segmenter)!r} is for upstream's tokenizer.json alone"
        raise ValueError(f"{fault}, which {path} is not: leave it empty")
    if content is None:
        return _sentencepiece(path)
    if upstream:
        return _morfessor(path, content, segmenter)
    if isinstance(content.get("model"), dict):
        return _hugging_face(path, content)
    fault = f"{path} is neither a Hugging Face tokenizer.json (with `model`) nor upstream's"
    raise ValueError(f"{fault} (`type` morfessor_bpe_telugu): give one of them")


def files(tokenizer: Tokenizer) -> dict[str, Path]:
    """Where its files are, by the names that they have beside tokens and models."""
    beside = _configs(tokenizer.path) if tokenizer.kind == "Hugging Face" else []
    return {tokenizer.name: tokenizer.path} | {path.name: path for path in beside}


def _bounded(path: Path) -> bytes:
    if (size := path.stat().st_size) > LARGEST:
        fault = f"{path} has {size:,} bytes, a tokenizer's file has at most {LARGEST:,}"
        raise ValueError(f"{fault}: give the tokenizer, no weights or text")
    return path.read_bytes()


def _read_json(path: Path) -> dict:
    content = _bounded(path)
    try:
        content = json.loads(content)
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply for a tokenizer: copy it again") from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): copy it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not {content!r:.40}: copy it again")
    return content


def _by_id(path: Path, ids: dict[str, int]) -> list[str]:
    """The pieces in the order of their ids, which run from 0 without gaps or doubles."""
    if odd := [f"{piece!r}: {i!r}" for piece, i in ids.items() if type(i) is not int]:
        raise ValueError(f"{path}: {odd[0]} in its vocabulary, no whole number: copy it again")
    pieces = sorted(ids, key=lambda piece: (ids[piece], piece))
    for i, piece in enumerate(pieces):
        if ids[piece] != i:
            fault = f"{path}: the id of {piece!r} is {ids[piece]:,} where {i:,} is next"
            raise ValueError(f"{fault}, ids run from 0 without gaps or doubles: copy it again")
    return pieces


# --- SentencePiece


def _sentencepiece(path: Path) -> Tokenizer:
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except RuntimeError:
        fault = f"{path} is not a SentencePiece .model, nor a tokenizer.json"
        raise ValueError(f"{fault}: train one, or copy it again") from None
    eos = model.eos_id()
    if eos < 0:
        fault = f"{path} has no <eos>, which ends each line of text"
        raise ValueError(f"{fault}: train one with pad_id 0, unk_id 1, bos_id 2, eos_id 3")
    shown_V = [model.id_to_piece(i) for i in range(model.vocab_size())]
    shown_V[eos] = "<eos>"
    silent = frozenset(i for i in range(len(shown_V)) if model.is_control(i) and i != eos)
    kind, encode, decode = "SentencePiece", model.encode, model.decode
    return Tokenizer(kind, path, eos, model.unk_id(), silent, shown_V, True, model, encode, decode)


def train(lines: Iterable[str], vocab_size: int, path: Path) -> Tokenizer:
    """SentencePiece BPE with byte fallback, no normalisation: the kind llama.cpp repeats."""
    own(path)
    model, cut = io.BytesIO(), []
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_cut(lines, cut), model_writer=model, model_type="bpe",
            vocab_size=vocab_size, byte_fallback=True, normalization_rule_name="identity",
            remove_extra_whitespaces=False, character_coverage=0.9999, max_sentence_length=LONGEST,
            pad_id=PAD, unk_id=UNK, bos_id=BOS, eos_id=EOS, pad_piece="<pad>", unk_piece="<unk>",
            bos_piece="<bos>", eos_piece="<eos>", minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].rpartition("] ")[2].strip() or "it is empty"
        remedy = "raise it" if "smaller" in reason else "lower it, or give more text"
        if cut:
            reason += f"; {len(cut):,} lines are too long, over {LONGEST:,} bytes, and were cut"
            remedy += ", with line ends between paragraphs"
        fault = f"vocab_size {vocab_size} does not fit this text ({reason})"
        raise ValueError(f"{fault}: {remedy}") from None
    write_whole(path, model.getvalue())
    sign(path)
    return _sentencepiece(path)


def _cut(lines: Iterable[str], cut: list[int]) -> Iterator[str]:
    """Lines that are too long for the trainer in parts, at spaces, between which it sees no pair
    anyway; what has none in a quarter of a million characters, anywhere. `cut` gets their sizes."""
    most = LONGEST // 4  # a character has at most 4 bytes
    for line in lines:
        if len(line) <= most or len(line.encode()) <= LONGEST:
            yield line
            continue
        cut.append(len(line))
        start = 0
        while len(line) - start > most:
            space = line.rfind(" ", start + 1, start + most)
            end = space if space > 0 else start + most
            yield line[start:end]
            start = end + (space > 0)
        yield line[start:]


# --- Hugging Face

# GPT-2's alphabet: a byte that prints stands for itself, the others for characters from 256 on.
_PRINTED = {*range(33, 127), *range(161, 173), *range(174, 256)}
BYTE_OF = {chr(b): b for b in sorted(_PRINTED)}
BYTE_OF |= {chr(256 + i): b for i, b in enumerate(sorted({*range(256)} - _PRINTED))}


def _hugging_face(path: Path, content: dict) -> Tokenizer:
    configs = {file: _read_json(file) for file in _configs(path)}
    try:
        _check_keys(path, content, configs)
        named = _named(configs)
        special, hidden = _hide_special(content, set(named.values()))
        model = tokenizers.Tokenizer.from_str(json.dumps(hidden))
        ids = {piece.removeprefix(HIDDEN): i for piece, i in model.get_vocab().items()}
        for file, config in configs.items():
            for fault in _unlike(config, content, ids):
                fault = f"{file}: {fault} {path.name}, which alone makes ids here"
                raise ValueError(f"{fault}: make both say what the model was trained with")
    except (ValueError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the package raises nothing narrower, and its panics are none
        fault = f"{path} cannot be read by the package tokenizers ({error})"
        raise ValueError(f"{fault}: copy it again, or update the package") from None
    model.no_truncation()
    model.no_padding()
    model.encode_special_tokens = True  # as the text that it is
    shown_V = _by_id(path, ids)
    name = named.get("eos_token") or next((n for n in EOS_NAMES if n in ids), None)
    if name not in ids:
        fault = f"{path} has no end-of-text token {name or EOS_NAMES}"
        raise ValueError(f"{fault}: name one as eos_token in tokenizer_config.json beside it")
    eos, inner = ids[name], content["model"]
    unk = inner.get("unk_id", ids.get(named.get("unk_token") or inner.get("unk_token")))
    unk = None if unk == eos else unk  # GPT-2 names <|endoftext|> for all it has no piece for
    silent = frozenset(ids[s] for s in special & ids.keys()) - {eos, unk}
    over_bytes = '"ByteLevel"' in json.dumps([content.get("pre_tokenizer"), content.get("decoder")])
    if over_bytes:
        added = model.get_added_tokens_decoder()
        shown_V = [p if i in added else _bytes_text(p) for i, p in enumerate(shown_V)]
    elif not any(piece.startswith("▁") for piece in shown_V):
        fault = f"{path} has no piece with ▁ and is not over bytes: where words begin is not known"
        raise ValueError(f"{fault}: give a BPE or Unigram that tells")
    shown_V[eos] = "<eos>"
    encode, text = _functions(model)
    kind, marked = "Hugging Face", not over_bytes
    return Tokenizer(kind, path, eos, unk, silent, shown_V, marked, model, encode, text)


def _functions(model: tokenizers.Tokenizer) -> tuple[Callable, Callable]:
    """Lines → ids, and ids of a line → its text."""

    def encode(lines: list[str]) -> list[list[int]]:
        return [line.ids for line in model.encode_batch(lines, add_special_tokens=False)]

    extra = " " if model.decode(encode(["a"])[0]).startswith(" ") else ""  # put before each line

    def text(ids: list[int]) -> str:
        whole = model.decode(ids, skip_special_tokens=False)
        return whole.replace(HIDDEN, "").removeprefix(extra)

    return encode, text


def _configs(path: Path) -> list[Path]:
    return [file for name in CONFIGS if (file := path.with_name(name)).is_file()]


def _named(configs: dict[Path, dict]) -> dict[str, str]:
    """The special tokens that the files beside a tokenizer.json name: "eos_token" → "</s>"."""
    named = {}
    for config in reversed(configs.values()):  # the first has the last word
        for key in ("eos_token", "bos_token", "pad_token", "unk_token"):
            token = config.get(key)
            if token := token.get("content") if isinstance(token, dict) else token:
                named[key] = token
    return named


def _check_keys(path: Path, content: dict, configs: dict[Path, dict]) -> None:
    """ValueError: a key that is not known here, or one that makes ids vary."""
    inner = content["model"]
    _refuse_unknown(path, content, "tokenizer.json")
    _refuse_unknown(path, inner, "its model")
    for file, config in configs.items():
        _refuse_unknown(file, config, "a config")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if inner.get(key) and inner.get("type") != "WordPiece":
            fault = f"{path}: {key} is {inner[key]!r} in its model, it must be null"
            raise ValueError(f"{fault}: with it text does not come back, or its ids vary")


def _unlike(config: dict, content: dict, ids: dict[str, int]) -> Iterator[str]:
    """What in a file beside would change ids or text, were it obeyed: tokenizer.json alone is."""
    added = {token["content"]: token for token in content.get("added_tokens") or []}
    flags = ("lstrip", "rstrip", "normalized", "single_word")
    for i, token in (config.get("added_tokens_decoder") or {}).items():
        piece, plain = token.get("content"), not token.get("special")
        ours = added.get(piece, {})
        same = ours and all(token.get(flag, ours.get(flag)) == ours.get(flag) for flag in flags)
        if str(ids.get(piece, "" if plain else i)) != i or (plain and not same):
            yield f"added_tokens_decoder has {piece!r} (id {i}) otherwise than"
    ways = json.dumps([content.get("normalizer"), content.get("pre_tokenizer")])
    if config.get("do_lower_case") and not re.search("Lowercase|BertNormalizer", ways):
        yield "do_lower_case is true, it is not in"
    space = bool(re.search('_space": true|"prepend_scheme": "[fa]|"Prepend"', ways))
    if config.get("add_prefix_space") not in (None, space):
        yield f"add_prefix_space is {json.dumps(not space)}, it is {json.dumps(space)} in"
    if (config.get("sp_model_kwargs") or {}).get("enable_sampling"):
        yield "sp_model_kwargs draw ids at random, unlike"


def _refuse_unknown(path: Path, content: dict, where: str) -> None:
    for key, value in content.items():
        special = where == "a config" and SPECIAL.fullmatch(key) and not isinstance(value, bool)
        if key not in KEYS[where].split() and not special:
            fault = f"{path}: what {key!r} does is not known here, it might change ids or text"
            raise ValueError(f"{fault}: copy it without that key if it does not")


def _hide_special(content: dict, named: set[str]) -> tuple[set[str], dict]:
    """The special tokens, and a content in which text that spells one does not become it: those in
    the vocabulary that text is cut into have a name that no text has, the others are marked."""
    model, added = content["model"], content.get("added_tokens") or []
    special = named | {token["content"] for token in added if token["special"]}
    special = {piece for piece in special if not BYTE.fullmatch(piece)}
    scored = isinstance(model["vocab"], list)  # Unigram's
    names = {entry[0] if scored else entry for entry in model["vocab"]}
    names = {piece: HIDDEN + piece for piece in special & names}
    if scored:
        vocab = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        vocab = {names.get(piece, piece): i for piece, i in model["vocab"].items()}
    model = model | {"vocab": vocab}
    if unk := model.get("unk_token"):
        model["unk_token"] = names.get(unk, unk)
    added = [t for t in added if t["content"] not in names and not BYTE.fullmatch(t["content"])]
    added = [token | {"special": token["content"] in special} for token in added]
    return special, content | {"model": model, "added_tokens": added}


def _bytes_text(piece: str) -> str:
    """A piece in GPT-2's alphabet as text: whole characters, "▁" for a space, <0xE0> for bytes of
    a character that is cut."""
    if not BYTE_OF.keys() >= {*piece}:
        return piece
    text = bytes(BYTE_OF[c] for c in piece).decode(errors="surrogateescape").replace(" ", "▁")
    return re.sub("[\udc80-\udcff]", lambda c: f"<0x{ord(c[0]) - 0xDC00:02X}>", text)


# --- Morfessor


def _morfessor(path: Path, content: dict, segmenter: str | Path) -> Tokenizer:
    ids = _field(path, content, "token_to_id", dict, "a JSON object")
    special = _field(path, content, "special_tokens", dict, "a JSON object")
    separator = _field(path, content, "separator", str, "text such as '@@'")
    pieces = _by_id(path, ids)
    _refuse_unknown(path, content, "upstream's")
    for name in ("<pad>", "<unk>", "<bos>", "<eos>", *special):
        if special.get(name) is None or special[name] != ids.get(name):
            both = f"{special.get(name)} in special_tokens and {ids.get(name)} in token_to_id"
            raise ValueError(f"{path}: {name} is {both}, both must give one id: copy it again")
    merges = content.get("bpe_merges")
    pairs = merges if isinstance(merges, list) else [merges]
    if odd := [p for p in pairs if not (isinstance(p, list) and [*map(type, p)] == [str, str])]:
        raise ValueError(f"{path}: {odd[0]!r} in bpe_merges, each must be two texts: copy it again")
    model = _Morphs(
        ids={piece: i for piece, i in ids.items() if piece not in special},
        unk=ids["<unk>"],
        separator=separator,
        joins_V=np.array([piece.endswith(separator) for piece in pieces]),
        ranks={(a, b): rank for rank, (a, b) in enumerate(pairs)},
        segment=_segment(Path(segmenter)) if segmenter else None,
    )

    def encode(lines: list[str]) -> list[list[int]]:
        return [model.encode(line) for line in lines]

    def text(ids: list[int]) -> str:
        joined = " ".join(pieces[i] for i in ids).replace(f"{separator} ", "")
        return joined[: -len(separator)] if ids and model.joins_V[ids[-1]] else joined

    eos, unk, kind = ids["<eos>"], ids["<unk>"], "Morfessor"
    silent = frozenset(special.values()) - {eos, unk}
    shown_V = [piece.removesuffix(separator) for piece in pieces]
    return Tokenizer(kind, path, eos, unk, silent, shown_V, False, model, encode, text)


def _field(path: Path, content: dict, name: str, kind: type, what: str) -> object:
    value = content.get(name)
    if not isinstance(value, kind) or value == "":
        raise ValueError(f"{path}: {name} is {value!r:.40}, it must be {what}: copy it again")
    return value


@dataclass(frozen=True, eq=False, repr=False)
class _Morphs:
    """Encodes as upstream does, but for its cache: a word's ids never depend on the words before.

    1. A word (between spaces) is cut where Telugu and other script or marks meet, and with a
       segmenter each Telugu run into morphs; all parts but the last join to the next. Without one,
       a word that ends in the separator joins to the next itself: విద్యార్థు@@ ల@@ కు. So no text
       becomes one of the pieces that hold both ("ఉంది."), which documents left uncut put there.
    2. A part is looked up, with "@@" where it joins.
    3. One that is not there goes, if it has Telugu, into characters; if not, through the BPE
       merges, lowest rank first (GPT-2), and of their results those not in the table again into
       characters. All but the last carry "@@", the last where the part joins and there is such a
       piece. A character that has no piece is <unk>. Merges may name what is not in the table.
    """

    ids: dict[str, int]  # but for the special ones
    unk: int
    separator: str
    joins_V: np.ndarray
    ranks: dict[tuple[str, str], int]
    segment: Callable[[str], list[str]] | None

    @cached_property
    def word(self) -> Callable[[str], list[int]]:
        return lru_cache(2**18)(self._word)

    def encode(self, line: str) -> list[int]:
        return [i for word in line.split() for i in self.word(word)]

    def _word(self, word: str) -> list[int]:
        joins = not self.segment and word.endswith(self.separator) and word != self.separator
        parts = RUNS.findall(word.removesuffix(self.separator) if joins else word)
        if self.segment:
            parts = [m for p in parts for m in (self.segment(p) if TELUGU.match(p) else [p])]
        inner = [i for part in parts[:-1] for i in self._part(part, True)]
        return inner + self._part(parts[-1], joins)

    def _part(self, part: str, joins: bool) -> list[int]:
        if (whole := self._find(part, joins)) is not None:
            return [whole]
        pieces = list(part)
        if not TELUGU.search(part):
            *inner, last = self._merged(part)
            pieces = [c for p in inner for c in (p if self._find(p, True) is None else [p])]
            pieces += last if self._find(last, False) is None else [last]
        ids = [self._find(piece, True) for piece in pieces]
        if not joins or ids[-1] is None:
            ids[-1] = self._find(pieces[-1], False)
        return [self.unk if i is None else i for i in ids]

    def _find(self, text: str, joins: bool) -> int | None:
        if text.endswith(self.separator):  # of the text itself: no sign that it joins
            return None
        return self.ids.get(text + self.separator if joins else text)

    def _merged(self, text: str) -> list[str]:
        """The pair of lowest rank is joined everywhere, from left to right, before the next is
        looked for. A heap of the pairs' ranks and a list of neighbours: n log n steps."""
        parts, n = list(text), len(text)
        after, before = [*range(1, n + 1)], [*range(-1, n - 1)]  # a part joined to another is ""

        def rank(i: int) -> int | None:
            known = 0 <= i and parts[i] and after[i] < n
            return self.ranks.get((parts[i], parts[after[i]])) if known else None

        heap = [(r, i) for i in range(n) if (r := rank(i)) is not None]
        heapq.heapify(heap)
        while heap:
            lowest, new = heap[0][0], []
            while heap and heap[0][0] == lowest:
                i = heapq.heappop(heap)[1]
                if rank(i) != lowest:  # one of the two is part of another by now
                    continue
                gone = after[i]
                parts[i], parts[gone], after[i] = parts[i] + parts[gone], "", after[gone]
                if after[i] < n:
                    before[after[i]] = i
                new += [before[i], i]
            for i in new:
                if (r := rank(i)) is not None:
                    heapq.heappush(heap, (r, i))
        return [part for part in parts if part]


# What a Morfessor model is made of; a pickle can name anything else, and run it.
_SAFE = {"BaselineModel", "ConstrNode", "LexiconEncoding", "CorpusEncoding", "FixedCorpusWeight"}
_SAFE |= {"AnnotatedCorpusEncoding", "AnnotationCorpusWeight", "MorphLengthCorpusWeight"}
_SAFE = {("morfessor.baseline", name) for name in (*_SAFE, "NumMorphCorpusWeight")}
_SAFE |= {("collections", "Counter")}


class _Unpickler(pickle.Unpickler):  # the package's way to say what may be loaded
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _SAFE:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _segment(path: Path) -> Callable[[str], list[str]]:
    """What cuts a Telugu word into morphs: a Morfessor model, a pickle of which only Morfessor's
    own classes are loaded."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: give a Morfessor .bin as segmenter")
    try:
        import morfessor  # only here: nothing else needs it
    except ModuleNotFoundError:
        fault = f"segmenter = {str(path)!r} needs the package morfessor, which is not installed"
        raise ValueError(f"{fault}: pip install morfessor") from None
    try:
        model = _Unpickler(io.BytesIO(_bounded(path))).load()
        if type(model) is not morfessor.BaselineModel:
            raise ValueError(f"it is a {type(model).__name__}")
        model.viterbi_segment("తెలుగు")
    except Exception as error:  # a damaged pickle raises almost anything
        fault = f"{path} is no Morfessor baseline model ({error})"
        raise ValueError(f"{fault}: give the .bin that Morfessor wrote") from None
    return lambda word: model.viterbi_segment(word)[0]
