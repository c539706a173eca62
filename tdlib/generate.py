"""Text from a model, one token at a time, over a cache of keys and values.

A model here is a Llama, or a Decoder of one, which is several times as fast on a CPU: both have
`config`, `embedding_VD`, `next_logits`, and `pads`: whether rows may be padded on their left.
Legend: B texts written together, V vocabulary.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor

from tdlib.model import Cache, Llama


@dataclass(frozen=True)
class Sampling:
    """How the next id is chosen; the defaults take the likeliest. Each step as in transformers, and
    in its order, which is that of the fields (llama.cpp has temperature last, and its penalty sees
    the last 64 tokens only)."""

    # divides the logits of ids seen, prompt too (× below 0); 1: off
    repetition_penalty: float = 1.0
    temperature: float = 0.0  # divides the logits; 0: the likeliest, and nothing below applies
    top_k: int = 0  # keeps that many, and what equals the last of them; 0: all
    top_p: float = 1.0  # keeps the likeliest until together they have this probability; 1: all
    min_p: float = 0.0  # keeps those with this share of the likeliest one's probability; 0: all

    def __post_init__(self):
        for name, rule, fine in (
            ("repetition_penalty", "above 0", self.repetition_penalty > 0),
            ("temperature", "0 or more", self.temperature >= 0),
            ("top_k", "0 or more", self.top_k >= 0),
            ("top_p", "above 0 and at most 1", 0 < self.top_p <= 1),
            ("min_p", "from 0 to 1", 0 <= self.min_p <= 1),
        ):
            if not fine:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be {rule}")


def generate(
    model: Llama,
    ids: list[int],
    tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop: int | None = None,
    cached: bool = True,
) -> list[int]:
    """Up to `tokens` new ids after the prompt (empty: begins after <eos>); ends after the id
    `stop`. Sampling's fields say how they are chosen; the draws come from a generator of their own.
    Not `cached`: every step computes the whole text again. ValueError: prompt and new tokens are
    more than the context."""
    sampling = Sampling(repetition_penalty, temperature, top_k, top_p, min_p)
    return _texts(model, [ids], tokens, sampling, seed, stop, cached)[0]


def batch(
    model: Llama,
    prompts: Sequence[list[int]],
    tokens: int,
    sampling: Sampling = Sampling(),
    *,
    seed: int = 0,
    stop: int | None = None,
) -> list[list[int]]:
    """What `generate` gives for each prompt, the i-th with seed + i. A Decoder writes all at once
    (in INT8 texts touch each other a little: one scale for all), a Llama one after another."""
    if model.pads:
        return _texts(model, prompts, tokens, sampling, seed, stop)
    each = enumerate(prompts, seed)
    return [_texts(model, [ids], tokens, sampling, i, stop)[0] for i, ids in each]


def _texts(model, prompts, tokens, sampling, seed, stop, cached=True) -> list[list[int]]:
    rows = []
    for new_B in _steps(model, prompts, tokens, sampling, seed, cached):
        rows.append(new_B)
        if stop is not None and all(stop in text for text in zip(*rows, strict=True)):
            break
    texts = [list(text) for text in zip(*rows, strict=True)] or [[] for _ in prompts]
    return [text[: text.index(stop) + 1] if stop in text else text for text in texts]


@torch.inference_mode()
def _steps(
    model: Llama,
    prompts: Sequence[list[int]],
    tokens: int,
    sampling: Sampling,
    seed: int,
    cached: bool = True,
) -> Iterator[list[int]]:
    """The next id of every text, `tokens` times. Shorter prompts are padded on their left."""
    texts = [list(ids) or [model.config.eos_id] for ids in prompts]
    longest = max(map(len, texts))
    if longest + tokens > model.config.context:
        raise ValueError(
            f"{longest} + {tokens} tokens are more than the context of {model.config.context}: "
            "shorten the prompt, or ask for fewer"
        )
    vocab_size = model.config.vocab_size
    if odd := [i for text in texts for i in text if not 0 <= i < vocab_size]:
        raise ValueError(
            f"the prompt's id {odd[0]:,} is not in the model's vocabulary of {vocab_size:,}: give "
            "its own tokenizer"
        )
    like = model.embedding_VD
    generators = [torch.Generator(like.device).manual_seed(seed + i) for i in range(len(texts))]
    ids_BT = torch.tensor([[0] * (longest - len(x)) + x for x in texts], device=like.device)
    padding_B = torch.tensor([longest - len(x) for x in texts], device=like.device)
    padding_B = padding_B if padding_B.any() else None
    cache = Cache(model.config, len(texts), longest + tokens, like) if cached else None
    for _ in range(tokens):
        logits_BV = model.next_logits(ids_BT, cache, padding_B)
        rows = zip(logits_BV, texts, generators, strict=True)
        new_B = [_pick(logits_V, text, sampling, g) for logits_V, text, g in rows]
        yield new_B
        for text, i in zip(texts, new_B, strict=True):
            text.append(i)
        new_B1 = torch.tensor(new_B, device=like.device)[:, None]
        ids_BT = new_B1 if cached else torch.cat([ids_BT, new_B1], dim=1)


def _pick(logits_V: Tensor, text: list[int], sampling: Sampling, generator) -> int:
    if not sampling.temperature:
        return int(_penalised(logits_V, text, sampling.repetition_penalty).argmax())
    # a draw by the sums so far, in double: torch.multinomial takes a third of an INT8 token's time
    sums_V = probabilities(logits_V, text, sampling).cumsum(0, dtype=torch.float64)
    at = torch.rand((), generator=generator, device=sums_V.device, dtype=torch.float64)
    return int(torch.searchsorted(sums_V, at * sums_V[-1], right=True))


def probabilities(logits_V: Tensor, text: list[int], sampling: Sampling) -> Tensor:
    """(V,): how likely each id is drawn after a text, at a temperature above 0."""
    logits_V = _penalised(logits_V.float(), text, sampling.repetition_penalty)
    p_V = (logits_V / sampling.temperature).softmax(-1)
    if 0 < sampling.top_k < len(p_V):
        p_V = p_V * (p_V >= p_V.topk(sampling.top_k).values[-1])
        p_V = p_V / p_V.sum()
    if sampling.top_p < 1:
        # only these are worth sorting: all the others together have less than 1 − top_p
        likely_N = (p_V > (1 - sampling.top_p) / len(p_V)).nonzero()[:, 0]
        p_N, order_N = p_V[likely_N].sort(descending=True)
        likelier_N = p_N.cumsum(0, dtype=torch.float64) - p_N
        kept_N = likely_N[order_N[likelier_N < sampling.top_p]]
        p_V = torch.zeros_like(p_V).index_copy(0, kept_N, p_V[kept_N])
    p_V = p_V * (p_V >= sampling.min_p * p_V.max())
    return p_V / p_V.sum()


def _penalised(logits_V: Tensor, text: list[int], penalty: float) -> Tensor:
    """Keskar et al. 2019, section 4.1; each id once, however often it came."""
    if penalty == 1:
        return logits_V
    seen_N = torch.tensor(sorted(set(text)), device=logits_V.device)
    seen = logits_V[seen_N]
    return logits_V.index_copy(0, seen_N, torch.where(seen < 0, seen * penalty, seen / penalty))


def stream(
    model: Llama,
    tokenizer,
    prompt: str | list[int],
    tokens: int | None = None,
    sampling: Sampling = Sampling(),
    *,
    seed: int = 0,
    stop: Collection[int] = (),
) -> Iterator[str]:
    """The text after a prompt (text begins after <eos>), in pieces as `Tokenizer.running` shows
    them, until <eos> or an id of `stop`, `tokens` new ones or (None) the end of the context.
    ValueError: the prompt fills the context."""
    if isinstance(prompt, str):
        lines = tokenizer.encode(prompt.split("\n"))
        prompt = [i for line in lines for i in (tokenizer.eos, *line)]
    prompt, context = prompt or [tokenizer.eos], model.config.context
    if len(prompt) >= context:
        raise ValueError(
            f"the prompt's {len(prompt)} tokens leave no room in the model's context of {context}: "
            "shorten it"
        )
    tokens = context - len(prompt) if tokens is None else tokens
    new = (i for (i,) in _steps(model, [prompt], tokens, sampling, seed))
    return tokenizer.running(takewhile(lambda i: i != tokenizer.eos and i not in stop, new), prompt)


@torch.no_grad()
def likeliest(model: Llama, ids: list[int], k: int, temperature: float = 1.0) -> dict[int, float]:
    """The k likeliest next ids and their probabilities at a temperature."""
    logits_V = model(torch.tensor([ids], device=model.head.device))[0, -1].float()
    top = (logits_V / temperature).softmax(-1).topk(k)
    return dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def repetition(texts: list[list[int]]) -> dict[str, float]:
    """How much generated texts repeat themselves: the share of 4-grams already seen in the same
    text (0: never), and distinct bigrams over all bigrams (1: none twice)."""
    fours = [[tuple(ids[i : i + 4]) for i in range(len(ids) - 3)] for ids in texts]
    twos = [tuple(ids[i : i + 2]) for ids in texts for i in range(len(ids) - 1)]
    count = sum(map(len, fours))
    seen_twice = count - sum(len(set(grams)) for grams in fours)
    return {
        "repeated_4grams": seen_twice / count if count else np.nan,
        "distinct_2grams": len(set(twos)) / len(twos) if twos else np.nan,
    }
