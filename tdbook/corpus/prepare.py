"""A run's text into tokens: read or written, split by documents, cut into pieces of a vocabulary;
or token files made elsewhere, used as they are."""

import tempfile
from pathlib import Path

import numpy as np

from tdbook.corpus import text, token_files, tokenizer_files, writer
from tdbook.corpus.tokenizer import Tokenizer
from tdbook.runs.parameters import texts
from tdlib.model import Llama
from tdlib.teacher import keep_rows


def prepare(p: dict, folder: Path, teacher: Llama | None = None, account=None) -> dict:
    """Tokens in `folder` by 00's parameters `p`, for the vocabulary of a teacher, if one is given;
    `account` counts what was read. Returns what `text` in words.yaml says of them."""
    if teacher and teacher.config.context < p["context"]:
        fault = f"the context of {p['teacher']} is {teacher.config.context:,}, the windows' is"
        raise ValueError(f"{fault} {p['context']:,}: give a shorter context")
    given = tokenizer_files.open(p["tokenizer"], p["segmenter"]) if p["tokenizer"] else None
    if p["tokens"]:  # made elsewhere, used as they are
        found = token_files.open_tokens(p["tokens"], p["context"], given)
        if not found.tokenizer:
            fault = f"{found.folder / 'tokenizer.model'} is not there: put the tokens' tokenizer"
            raise FileNotFoundError(f"{fault} there (.model, or .json), or give it as tokenizer")
        cut = cut_spare_rows(teacher, found.vocab_size, p["teacher"])
        how = dict(tokenizer=given, context=p["context"], every_id=p["check_every_id"] or bool(cut))
        how["vocab_size"] = teacher.config.vocab_size if teacher else 0
        token_files.link_tokens(found.folder, folder, **how)
        made = {"cut": cut}
    else:
        made = _write(p, folder, given, teacher, account or text.Account())
    tokens = token_files.open_tokens(folder)
    return made | {"tokens": tokens, "loss": token_files.loss(tokens.meta)}


def _write(p: dict, folder: Path, given: Tokenizer | None, teacher, account: text.Account) -> dict:
    """Tokens of a text, which is read, or written where none is given."""
    cut = cut_spare_rows(teacher, given.size, p["teacher"]) if given else ""
    written = [] if p["text"] else writer.write(p["text_characters"], p["text_seed"])
    documents = written or text.read(texts(p["text"]), account)
    documents, held_out = _mixture(documents, p)
    works, judging = documents, text.drawn(documents, held_out, p["split_seed"])
    documents = text.section(works, p["section_characters"])
    groups_N = text.near_duplicates(documents)
    held_N = judging[[document.work for document in documents]]
    like_N = np.isin(groups_N, groups_N[held_N])  # what is like a work that judges is left out
    rest = [document for document, like in zip(documents, like_N, strict=True) if not like]
    shares = {name: p[name] for name in ("val_share", "confirm_share")}
    sides = text.split(rest, groups_N[~like_N], **shares, seed=p["split_seed"])
    splits = {"train": [], "val": []} | ({"confirm": []} if p["confirm_share"] else {})
    for document, side in zip(rest, sides, strict=True):
        splits[side].append(document)
    if held_out:
        splits["works"] = [work for work, judges in zip(works, judging, strict=True) if judges]
    lines = (line for document in splits["train"] for line in document.lines)
    with tempfile.TemporaryDirectory() as place:
        pieces = given or tokenizer_files.train(lines, p["vocab_size"], Path(place, "model"))
        size = teacher.config.vocab_size if teacher else 0
        token_files.write_tokens(folder, splits, pieces, p["context"], size)
    made = {"documents": len(documents), "groups": len(np.unique(groups_N)), "cut": cut}
    made |= {"sources": sorted({document.source for document in documents})}
    made |= {"held_out": [*held_out], "works": judging.sum(), "left_out": (like_N & ~held_N).sum()}
    return made


def _mixture(documents: list[text.Document], p: dict) -> tuple[list, dict[str, float]]:
    """Of each source no more than `source_limit` characters, in whole documents; and `held_out` as
    source → share of it, in whole documents, that is put aside to judge by."""
    if limit := p["source_limit"]:
        sources = dict.fromkeys(document.source for document in documents)
        keep_N = text.drawn(documents, dict.fromkeys(sources, limit), p["split_seed"])
        documents = [d for d, keep in zip(documents, keep_N, strict=True) if keep]
    pairs = (word.partition(":") for word in p["held_out"].split())
    return documents, {source: float(share or 1) for source, _, share in pairs}


def cut_spare_rows(teacher: Llama | None, pieces: int, path: str = "the teacher") -> str:
    """Cut, in place, a teacher's rows beyond the pieces of its tokenizer, whatever is in them: no
    text has their ids, and every id of token files is looked at. What was done, in words, or "".
    ValueError: they are as many as the pieces, so that the tokenizer is another's; where it is one
    of nearly as many, the teacher's trial tells."""
    size = teacher.config.vocab_size if teacher else 0
    if (spare := size - pieces) <= 0:
        return ""
    if spare >= pieces:
        fault = f"the vocabulary of {path} is {size:,}, the tokens' is {pieces:,}"
        raise ValueError(f"{fault}: give the tokens or the tokenizer that it was made with")
    keep_rows(teacher, pieces)
    cut = f"the last {spare:,} are of no piece, which no text ever predicts, and are cut"
    rows = f" The teacher's embedding has {size:,} rows for {pieces:,} pieces"
    return f"{rows}: {cut}, so that its loss is a little lower than with them."
