"""Telugu that a model gets right: minimal pairs of sentences, and the last word of a sentence.

    python -m bench.probes outputs/small [MODEL …]    a table, the first model (teacher) leading

A pair is two sentences of one construction that differ in one form, one right and one wrong; of a
last word there are four, the document's own and three others of it. A model is right where the
right text has the highest log-probability, the sum over its tokens.

Pairs come from the writer's paradigms (corpus.grammar) by a seed, of each kind as many:
person    నేను … వెళ్లాను, not వెళ్లావు: the verb of another person, of the same number
gender    ఆమె … వెళ్లింది, not వెళ్లాడు: the verb of the other gender
plural    పిల్లల కోసం, not పిల్లలు కోసం: the nominative before a postposition or its suffix
case      బడికి వెళ్లాడు, not బడిని వెళ్లాడు: accusative for dative, or the other way round
harmony   తమ్ముడికి, not తమ్ముడికు; తమ్ముడిని, not తమ్ముడిను
What is wrong has no other right reading. An adverb follows the subject: ఆమె పొలానికి వెళ్లాడు is "he
went to her field". The wrong verb is not that which honours the subject (-ఆరు). Of plural and of
harmony the wrong form is none of the noun's paradigm; of case it is another one, and the frame's
verb governs one alone (probes.yaml). Harmony goes one way, since good prose has రైతుకి and ఆమెని
beside రైతుకు and ఆమెను: a model that writes కి and ని everywhere gets all of it right.
"""

import re
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import yaml
from torch.nn.utils.rnn import pad_sequence

from tdbook.analysis import intervals
from tdbook.corpus import grammar, token_files
from tdbook.corpus.grammar import NOUNS, conjugate, decline
from tdlib import data, hard_set
from tdlib.model import Llama

DATA = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf8"))
SUBJECTS, TIMES, WRONG, FRAMES = (DATA[name] for name in ("subjects", "times", "wrong", "frames"))
KINDS = ("person", "gender", "plural", "case", "harmony")  # of pairs
LAST = "last word"
COUNT, EACH = 1000, 20  # pairs, and last words at most; of those a document's
ENDING = 3  # characters
WORD = "[\u0c00-\u0c7f\u200c]+"


class Item(NamedTuple):
    kind: str  # one of KINDS, or LAST
    group: int  # of a last word its document, of a pair its own
    texts: tuple[str, ...]  # C of them, the right one first
    ids: tuple[tuple[int, ...], ...] = ()  # of each text, after <eos>


def pairs(count: int = COUNT, seed: int = 1) -> list[Item]:
    """So many pairs, no two alike, the kinds in turn."""
    rng, found = Random(seed), {}
    while len(found) < count:
        kind = KINDS[len(found) % len(KINDS)]
        if texts := _pair(rng, kind):
            found.setdefault(texts, Item(kind, len(found), texts))
    return [*found.values()]


def _pair(rng: Random, kind: str) -> tuple[str, str] | None:
    """A right sentence and a wrong one; None where the words drawn make none."""
    wrong = WRONG.get(kind, WRONG["person"])
    person, (form, times) = rng.choice([*wrong]), rng.choice([*TIMES.items()])
    subject, time = (rng.choice(words.split()) for words in (SUBJECTS[person], times))
    frame = rng.choice(FRAMES.get(kind) or FRAMES["case"] + FRAMES["plural"])
    slot, *rest, verb = grammar.expand(rng, frame).split()
    name, many, case = grammar.NOUN.fullmatch(slot).groups()
    noun, person_2 = rng.choice(NOUNS[name]), rng.choice(wrong[person].split())
    one, own = decline(noun, case, many), conjugate(verb, form, person)
    others = {
        "plural": noun.plural + one.removeprefix(noun.plural[:-1]),
        "case": decline(noun, "d" if case == "a" else "a", many),
        "harmony": re.sub("(?<=[ిీ])([కన])ి$", r"\1ు", one),
    }
    two = (others[kind], own) if kind in others else (one, conjugate(verb, form, person_2))
    forms = {decline(noun, c, m) for c in "nadtlfgkmvx" for m in ("", "+")}
    in_use = kind in ("plural", "harmony") and two[0] in forms
    doubtful = noun.word in subject or noun.word.endswith("ెం")  # పాలెం: పాలానికి or పాలేనికి
    if two == (one, own) or in_use or doubtful:
        return None
    return tuple(" ".join([subject, time, n, *rest, v]) + "." for n, v in ((one, own), two))


def last_words(tokens: data.Tokens, count: int = COUNT, seed: int = 1) -> list[Item]:
    """Last words of sentences, each after its line, and three words of as many characters and the
    same ending from the same development document, where it has three. Documents are drawn until
    there are `count`, and of each at most EACH."""
    rng, items, ids = Random(seed), [], tokens.val.ids
    spans = [*pairwise([*token_files.documents(tokens, "val")[0], len(ids)])]
    for document in rng.sample(range(len(spans)), len(spans)):
        text, alike, own = (
            tokens.tokenizer.decode(ids[slice(*spans[document])]),
            defaultdict(list),
            [],
        )
        for word in sorted({*re.findall(WORD, text)}):
            alike[len(word), word[-ENDING:]].append(word)
        for last in re.finditer(rf"(?<=\S )({WORD})([.?!])", text):
            word, end = last.groups()
            line = text[text.rfind("\n", 0, last.start()) + 1 : last.start()]
            if len(others := [w for w in alike[len(word), word[-ENDING:]] if w != word]) > 2:
                texts = tuple(line + w + end for w in (word, *rng.sample(others, 3)))
                own.append(Item(LAST, document, texts))
        items += rng.sample(own, min(EACH, len(own), count - len(items)))
        if len(items) == count:
            break
    return items


def encoded(items: list[Item], tokens: data.Tokens) -> list[Item]:
    """With ids, cut on the left to fit the context. Left out are items of which two texts have the
    same ids, since the tokenizer loses what differs, or of which the cut would reach that."""
    kept = []
    for item in items:
        ids_C = [(tokens.eos, *ids) for ids in tokens.tokenizer.encode(item.texts)]
        cut = max(0, max(map(len, ids_C)) - tokens.context - 1)
        if len({*ids_C}) == len(ids_C) and len({ids[: cut + 1] for ids in ids_C}) == 1:
            kept.append(item._replace(ids=tuple(ids[cut:] for ids in ids_C)))
    return kept


@torch.no_grad()
def log_probabilities(net: Llama, items: list[Item], batch: int = 64) -> list[np.ndarray]:
    """Of the texts of each item, (C,) float64, in nats."""
    ids_R = [torch.tensor(ids) for item in items for ids in item.ids]
    logp_R, order_R = np.zeros(len(ids_R)), np.argsort([*map(len, ids_R)])
    for part in (order_R[i : i + batch] for i in range(0, len(order_R), batch)):
        # what pads comes last, so no token before it sees it
        ids_BT = pad_sequence([ids_R[r] for r in part], True, data.IGNORE).to(net.head.device)
        loss_BT = hard_set.token_losses(net, ids_BT[:, :-1].clamp(min=0), ids_BT[:, 1:])
        logp_R[part] = -loss_BT.double().sum(1).cpu()
    ends_I = np.cumsum([len(item.ids) for item in items])
    return np.split(logp_R, ends_I[:-1])[: len(items)]


def table(folder: Path, names: list[str]) -> pd.DataFrame:
    """Per model the share of pairs and of last words that it gets right, with the change against
    the first model: by pairs, and by the documents of last words."""
    tokens, rows, own = token_files.open_tokens(folder / "tokens"), [], {}
    items = [*encoded(pairs(), tokens), *encoded(last_words(tokens), tokens)]
    kind_I, group_I = (np.array([item[i] for item in items]) for i in (0, 1))
    parts = {"pairs": kind_I != LAST, LAST: kind_I == LAST} | {k: kind_I == k for k in KINDS}
    for name in names:
        logp_IC = log_probabilities(Llama.load(folder / "models" / name), items)
        own[name] = x_I = np.array([float(logp_C[0] > max(logp_C[1:])) for logp_C in logp_IC])
        row = {"model": name}
        for part, at_I in parts.items():
            change = intervals.change(x_I[at_I], own[names[0]][at_I], group_I[at_I])
            row[part] = f"{x_I[at_I].mean():.1%} ({change:.1%})"
        rows.append(row | {"pairs asked": (kind_I != LAST).sum(), "last": (kind_I == LAST).sum()})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    place, *models = sys.argv[1:]
    models = models or sorted(x.name for x in Path(place, "models").iterdir())
    print(table(Path(place), models).to_markdown(index=False))
