"""Telugu that a model gets right: minimal pairs of sentences, and the last word of a sentence.

A pair is two sentences that differ in one form, one right and one wrong: pairs.tsv, made by
bench/probes.py, which says how. A last word is one of four: the document's own and three others of
it. A model is right where the right text has the highest log-probability, the sum over its tokens.
Legend: I items, C texts of an item, R of several, T tokens.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from tdbook.analysis import intervals
from tdbook.corpus import token_files
from tdlib import data, hard_set
from tdlib.model import Llama

PAIRS = Path(__file__).with_name("pairs.tsv")
KINDS, LAST = ("person", "gender", "plural", "case", "harmony"), "last word"
COUNT, EACH = 1000, 20  # last words at most, and of those a document's
ENDING, BATCH = 3, 16  # characters; items
WORD = "[\u0c00-\u0c7f\u200c]+"


class Item(NamedTuple):
    kind: str  # one of KINDS, or LAST
    group: int  # of a last word its document, of a pair its own
    texts: tuple[str, ...]  # C of them, the right one first
    ids: tuple[tuple[int, ...], ...] = ()  # of each text, after <eos>


def measure(folder: Path, names: list[str], tokens: data.Tokens, base: str, device: str) -> dict:
    """How many pairs were `made` and `asked`, how many `last` words. `rows`: by intervals.by_part
    the share that models of a folder get right, of "pairs", of each of KINDS, and of LAST; changes
    have intervals over pairs, or over documents."""
    made, right = pairs(), {}
    asked, last = ([*encoded(x, tokens)] for x in (made, islice(last_words(tokens), COUNT)))
    items = sorted(asked + last, key=lambda item: len(item.ids[0]))  # little padding in a batch
    batches = [items[i : i + BATCH] for i in range(0, len(items), BATCH)]
    parts = {k: [i for i, x in enumerate(items) if x.kind == k] for k in (*KINDS, LAST)}
    parts["pairs"] = [i for i, x in enumerate(items) if x.kind != LAST]
    for name in names:
        net = Llama.load(folder / name, device)
        logp_IC = (logp_C for batch in batches for logp_C in log_probabilities(net, batch))
        right[name] = np.array([float(logp_C[0] > max(logp_C[1:])) for logp_C in logp_IC])
    group_I = np.array([item.group for item in items], int)
    rows = intervals.by_part(right, parts, group_I, base)
    return {"made": len(made), "asked": len(asked), "last": len(last), "rows": rows}


def pairs() -> list[Item]:
    """Those of pairs.tsv, whose first line says what made them."""
    rows = (line.split("\t") for line in PAIRS.read_text("utf8").splitlines()[1:])
    return [Item(kind, i, tuple(texts)) for i, (kind, *texts) in enumerate(rows)]


def last_words(tokens: data.Tokens, seed: int = 1) -> Iterator[Item]:
    """Last words of sentences, each after its line, and three words of as many characters and the
    same ending from the same development document, where it has three; of one at most EACH."""
    rng, ids = Random(seed), tokens.val.ids
    spans = [*pairwise([*token_files.documents(tokens, "val")[0], len(ids)])]
    for document in rng.sample(range(len(spans)), len(spans)):
        text = tokens.tokenizer.decode(ids[slice(*spans[document])])
        alike, own = defaultdict(list), []
        for word in sorted({*re.findall(WORD, text)}):
            alike[len(word), word[-ENDING:]].append(word)
        for last in re.finditer(rf"(?<=\S )({WORD})([.?!])", text):
            line, (word, end) = text[: last.start()].rpartition("\n")[2], last.groups()
            if len(others := [w for w in alike[len(word), word[-ENDING:]] if w != word]) > 2:
                texts = tuple(line + w + end for w in (word, *rng.sample(others, 3)))
                own.append(Item(LAST, document, texts))
        yield from rng.sample(own, min(EACH, len(own)))


def encoded(items: Iterable[Item], tokens: data.Tokens) -> Iterator[Item]:
    """With ids, cut on the left to fit the context; without those of which two texts have the same
    ids, or differ in what is cut. None where the tokenizer takes segmented text."""
    for item in [] if tokens.tokenizer.joined else items:
        ids_C = [(tokens.eos, *ids) for ids in tokens.tokenizer.encode(item.texts)]
        cut = max(0, max(map(len, ids_C)) - tokens.context - 1)
        if len({*ids_C}) == len(ids_C) and len({ids[: cut + 1] for ids in ids_C}) == 1:
            yield item._replace(ids=tuple(ids[cut:] for ids in ids_C))


@torch.no_grad()
def log_probabilities(net: Llama, items: list[Item]) -> list[np.ndarray]:
    """Of the texts of each item, (C,) float64, in nats. What pads them comes last, where no token
    before it sees it."""
    ids_R = [torch.tensor(ids) for item in items for ids in item.ids]
    ids_RT = pad_sequence(ids_R, True, data.IGNORE).to(net.head.device)
    loss_RT = hard_set.token_losses(net, ids_RT[:, :-1].clamp(min=0), ids_RT[:, 1:])
    ends_I = np.cumsum([len(item.ids) for item in items])
    return np.split(-loss_RT.double().sum(1).cpu().numpy(), ends_I[:-1])
