"""Telugu that a reader trusts: minimal pairs, and a sentence's last word among four.

A minimal pair is a right sentence and one that is wrong in one word (BLiMP: Warstadt et al. 2020,
arXiv 1912.00582). A model is right where the right one has the larger log-probability, summed over
the whole sentence and the <eos> that ends it, after an <eos>: the two may differ in tokens.
Five kinds, on rules without exception in standard modern Telugu, of the writer's words:
    person   the verb has the person and number of a pronoun: నేను వచ్చాను, *నేను వచ్చాడు
    gender   it has those of a noun: a man -డు, a woman or a thing -ది, people -రు, things -యి
    plural   -లు is -ల before a postposition or a case ending: పిల్లల కోసం, *పిల్లలు కోసం
    case     giving, telling and ailing take -కు, calling, praising and beating take -ను
    harmony  after ి come -కి, -ని (నదికి, *నదికు); before -లు it is ు (నదులకు, *నదిలకు)
What is said and written too is left out (అమ్మకి, చెట్టుని): probes.yaml says what and why.
Legend: I items, C texts of one, the right one first; N texts, B of a batch, S tokens.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch.nn.utils.rnn import pad_sequence

from tdbook.corpus import token_files
from tdbook.corpus.grammar import NOUN, NOUNS, Noun, conjugate, decline
from tdlib.data import Tokens
from tdlib.model import Llama

DATA = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
TIMES, SUBJECTS, THINGS, FRAMES = DATA.values()
PAIRS, CLOZE, BEFORE = 1000, 300, 32  # pairs; last words, and tokens that each is read after
BATCH = 1024  # tokens at once: their logits take 0.2 GB with a vocabulary of 51.8K


class Item(NamedTuple):
    group: str | int  # the kind of a pair; the document of a last word
    texts: list[tuple[list[int], int]]  # C, the right one first: ids, and from which on they count


def spoiled(kind: str, noun: Noun, case: str, many: str) -> str:
    """A noun in the form that is wrong there; the right one where the kind's rule is silent."""
    right, stem = decline(noun, case, many), noun.word.removesuffix("ి")
    if kind == "case":
        return decline(noun, {"a": "d", "d": "a"}[case], many)
    if kind == "plural":
        return noun.plural + right.removeprefix(noun.plural[:-1])
    return right.replace(f"{stem}ుల", f"{stem}ిల") if many else re.sub("(?<=ి[కన])ి$", "ు", right)


def pair(rng: Random, kind: str) -> tuple[str, str]:
    """A right sentence and a wrong one; equal where the words drawn do not suit the kind."""
    *args, verb = rng.choice(FRAMES[kind] + FRAMES["person"] * (kind == "gender")).split()
    who, words = rng.choice(SUBJECTS.get(kind, SUBJECTS[""])), []
    for arg in args:
        form = NOUN.fullmatch(arg.strip("~!"))
        noun = form and rng.choice(NOUNS[form[1]])
        told = decline(noun, form[3], form[2]) if form else arg
        words.append((told, spoiled(kind, noun, form[3], form[2]) if arg[-1] == "!" else told))
        if args[0][0] == "~" and form[3] == "n":  # the verb agrees with it
            who = {"words": [""], "person": "3q" if told == noun.plural else "3n", "wrong": THINGS}
    tense = rng.choice(who.get("tenses", [*TIMES]))
    begin = f"{rng.choice(who['words'])} {rng.choice(TIMES[tense])}".replace("_", " ").strip()
    wrong = rng.choice([who["person"]] if "!" in "".join(args) else who["wrong"])
    ends = [f"{conjugate(verb, tense, code)}." for code in (who["person"], wrong)]
    return tuple(map(" ".join, zip([begin] * 2, *words, ends, strict=True)))


def pairs(count: int = PAIRS, seed: int = 0) -> list[tuple[str, str, str]]:
    """(kind, right, wrong), as many of each kind, no right sentence twice."""
    rng, found = Random(seed), {}
    for n, kind in enumerate(FRAMES, start=1):
        while len(found) < n * count // len(FRAMES):
            right, wrong = pair(rng, kind)
            if right != wrong:
                found.setdefault(right, (kind, right, wrong))
    return [*found.values()]


def pair_items(tokens: Tokens) -> list[Item]:
    """Pairs that the tokenizer keeps and the context holds; what both begin with cancels out."""
    words, found = tokens.tokenizer, []
    plain = words and (words.kind != "Morfessor" or words.model)  # encodes text as it is written
    for kind, *sentences in pairs() if plain else ():
        one, two = ([words.eos, *ids, words.eos] for ids in words.encode(sentences))
        start = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), 0)
        held = max(len(one), len(two)) <= tokens.context + 1
        if start and held and words.unk not in one + two and max(one + two) < tokens.vocab_size:
            found.append(Item(kind, [(one, start), (two, start)]))
    return found


def cloze_items(tokens: Tokens, seed: int = 0) -> list[Item]:
    """Last words of sentences of the validation text, each and three other words of its document
    that are as long (± 1 character) and have the same two last characters."""
    rng, t, document_N = Random(seed), tokens.context, token_files.origins(tokens, "val")[0]
    _, first_D, size_D = np.unique(document_N, return_index=True, return_counts=True)
    found, most = [], max(3, -(-CLOZE // len(first_D)))
    for d in rng.sample(range(len(first_D)), min(len(first_D), CLOZE)) * bool(tokens.tokenizer):
        # between the middles of its first and last window all is of this document
        ids = tokens.val.ids[first_D[d] * t + t // 2 :][: (size_D[d] - 1) * t + 1].tolist()
        found += [Item(d, texts) for texts in islice(_last_words(tokens, ids, rng), most)]
    return found[:CLOZE]


def _last_words(tokens: Tokens, ids: list[int], rng: Random) -> Iterator[list]:
    """Texts of each item of whole lines, none where the tokenizer would cut the line otherwise."""
    words, starts = tokens.tokenizer, [n + 1 for n, i in enumerate(ids) if i == tokens.eos]
    lines = {a: words.decode(ids[a : b - 1]) for a, b in pairwise(starts)}
    others = sorted({w.strip(".,?!;“”") for text in lines.values() for w in text.split()})
    last = [(a, m) for a in lines for m in re.finditer(r" (\S{4,})([.?!])(?!\S)", lines[a])]
    for a, match in rng.sample(last, len(last)):
        word, mark, start = *match.groups(), match.string[: match.start()]
        near = range(len(word) - 1, len(word) + 2)
        alike = [w for w in others if len(w) in near and w[-2:] == word[-2:] and w != word]
        four = [word, *rng.sample(alike, min(3, len(alike)))]
        head, *coded = words.encode([start, *(f"{start} {w}{mark}" for w in four)])
        n, half, v = len(head), tokens.context // 2, tokens.vocab_size
        before = ids[: a + n][-min(BEFORE, half) :]
        fits = all(c[:n] == head and len(c) - n <= half and max(c) < v for c in coded)
        if fits and len(four) == 4 and ids[a:][: len(coded[0])] == coded[0]:
            yield [(before + c[n:], len(before)) for c in coded]


@torch.no_grad()
def log_p(model: Llama, texts: Sequence[tuple[list[int], int]], device: str = "cpu") -> np.ndarray:
    """Of (ids, start): Σ log p of the ids from `start` on, each given all before, nats, (N,)."""
    sums_N, size_N = np.zeros(len(texts)), np.array([len(ids) for ids, _ in texts], int)
    size = max(1, BATCH // size_N.max(initial=1))
    for rows in np.split(np.argsort(size_N), range(size, len(texts), size)) if texts else ():
        some = [texts[n] for n in rows]
        ids_BS = pad_sequence([torch.tensor(ids) for ids, _ in some], batch_first=True)
        counts_BS = pad_sequence([torch.arange(1, len(ids)) >= at for ids, at in some], True)
        inner_ND = model.hidden(ids_BS[:, :-1].to(device))[counts_BS.to(device)]
        logits_NV, y_N = F.linear(inner_ND, model.head).float(), ids_BS[:, 1:][counts_BS]
        loss_N = F.cross_entropy(logits_NV, y_N.to(device), reduction="none").double().cpu()
        loss_BS = torch.zeros(counts_BS.shape).double().masked_scatter(counts_BS, loss_N)
        sums_N[rows] = -loss_BS.sum(1)
    return sums_N


def right(model: Llama, items: Sequence[Item], device: str = "cpu") -> str:
    """A 1 for each item of which the model finds the right text the likeliest, else a 0."""
    p_N = log_p(model, [text for item in items for text in item.texts], device)
    p_IC = p_N.reshape(-1, len(items[0].texts) if items else 2)
    return "".join("01"[x] for x in (p_IC[:, 0] > p_IC[:, 1:].max(1, initial=-np.inf)).tolist())
