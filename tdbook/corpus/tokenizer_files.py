"""A tokenizer opened, by what its file holds, or trained."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import sentencepiece

from tdbook.corpus import hugging_face, morfessor
from tdbook.corpus.tokenizer import Tokenizer, read_json
from tdlib import data
from tdlib.files import mark, own, write_whole

LONGEST = 10**6  # bytes of a line that SentencePiece's trainer reads; it leaves longer ones out


def open(path: str | Path, segmenter: str | Path = "") -> Tokenizer:
    """The tokenizer in a file. `segmenter`, a Morfessor .bin, segments raw text for upstream's."""
    path = Path(path)
    with path.open("rb") as file:
        content = read_json(path) if file.read(99).lstrip()[:1] == b"{" else None
    upstream = content is not None and content.get("type") == "morfessor_bpe_telugu"
    if segmenter and not upstream:
        fault = f"segmenter = {str(segmenter)!r} is for upstream's tokenizer.json alone"
        raise ValueError(f"{fault}, which {path} is not: leave it empty")
    if content is None:
        return _sentencepiece(path)
    if upstream:
        return morfessor.open_json(path, content, segmenter)
    if isinstance(content.get("model"), dict):
        return hugging_face.open_json(path, content)
    fault = f"{path} is neither a Hugging Face tokenizer.json (with `model`) nor upstream's"
    raise ValueError(f"{fault} (`type` morfessor_bpe_telugu): give one of them")


def files(tokenizer: Tokenizer) -> dict[str, Path]:
    """Where its files are, by the names that they have beside tokens and models."""
    beside = hugging_face.config_files(tokenizer.path) if tokenizer.kind == "Hugging Face" else []
    name = "tokenizer.model" if tokenizer.kind == "SentencePiece" else "tokenizer.json"
    return {name: tokenizer.path} | {path.name: path for path in beside}


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
    V = range(model.vocab_size())
    control_V = np.array([model.is_control(i) for i in V])
    known = dict(kind="SentencePiece", path=path, eos=eos, unk=model.unk_id(), marked=True)
    known |= dict(silent=frozenset(np.flatnonzero(control_V).tolist()) - {eos}, opens_V=control_V)
    known |= dict(shown_V=["<eos>" if i == eos else model.id_to_piece(i) for i in V], model=model)
    return Tokenizer(**known, encode=lambda lines: model.encode([*lines]), line_text=model.decode)


def train(lines: Iterable[str], vocab_size: int, path: Path) -> Tokenizer:
    """SentencePiece BPE with byte fallback, no normalisation: the kind llama.cpp repeats."""
    own(path)
    model, trainer = io.BytesIO(), sentencepiece.SentencePieceTrainer
    ids = {"pad": data.PAD, "unk": data.UNK, "bos": data.BOS, "eos": data.EOS}
    options = {f"{name}_id": i for name, i in ids.items()}
    options |= {f"{name}_piece": f"<{name}>" for name in ids}
    options |= dict(model_type="bpe", vocab_size=vocab_size, byte_fallback=True, minloglevel=2)
    options |= dict(normalization_rule_name="identity", remove_extra_whitespaces=False)
    options |= dict(character_coverage=0.9999, max_sentence_length=LONGEST)
    try:
        trainer.train(sentence_iterator=_cut(lines), model_writer=model, **options)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].rpartition("] ")[2].strip() or "it is empty"
        remedy = "raise it" if "smaller" in reason else "lower it, or give more text"
        fault = f"vocab_size {vocab_size} does not fit this text ({reason})"
        raise ValueError(f"{fault}: {remedy}") from None
    write_whole(path, model.getvalue())
    mark(path.parent, path.name)
    return _sentencepiece(path)


def _cut(lines: Iterable[str]) -> Iterator[str]:
    """The lines, but word by word where one is too long for the trainer."""
    most = LONGEST // 4  # a character has at most 4 bytes
    for line in lines:
        if len(line.encode()) <= LONGEST:
            yield line
        else:
            for word in line.split(" "):
                yield from (word[i : i + most] for i in range(0, len(word), most))
