"""Text from a model, one token at a time, over a cache of keys and values.

A model here is a Llama, or a Decoder of one, which is several times as fast on a CPU: both have
`config`, `embedding_VD` and `next_logits`. Legend: V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

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
        for name, sound, rule in (
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
        ):
            if not sound:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be {rule}")


def generate(
    model: Llama,
    ids: list[int],
    tokens: int,
    *,
    seed: int = 0,
    stop: int | None = None,
    cached: bool = True,
    **sampling: float,
) -> list[int]:
    """Up to `tokens` new ids after the prompt (empty: begins after <eos>); ends after the id
    `stop`. Sampling has the other parameters; draws come from a generator of their own. Not
    `cached`: every step computes the whole text again. ValueError: more than the context."""
    new = []
    for i in steps(model, ids, tokens, Sampling(**sampling), seed, cached):
        new.append(i)
        if i == stop:
            break
    return new


@torch.inference_mode()
def steps(
    model: Llama, ids: list[int], tokens: int, sampling: Sampling, seed: int, cached: bool = True
) -> Iterator[int]:
    """The next id, `tokens` times."""
    text, config, like = list(ids) or [model.config.eos_id], model.config, model.embedding_VD
    if (length := len(text) + tokens) > config.context:
        fault = f"{len(text)} + {tokens} tokens are more than the context of {config.context}"
        raise ValueError(f"{fault}: shorten the prompt, or ask for fewer")
    if odd := [i for i in text if not 0 <= i < (v := config.vocab_size)]:
        fault = f"the prompt's id {odd[0]:,} is not in the model's vocabulary of {v:,}"
        raise ValueError(f"{fault}: give its own tokenizer")
    generator = torch.Generator(like.device).manual_seed(seed)
    cache, seen = Cache(config, 1, length, like) if cached else None, 0
    for _ in range(tokens):
        ids_1T = torch.tensor([text[seen:]], device=like.device)
        new = _pick(model.next_logits(ids_1T, cache)[0], text, sampling, generator)
        yield new
        seen = len(text) if cached else 0
        text.append(new)


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
        sorted_V, order_V = p_V.sort(descending=True)
        likelier_V = sorted_V.cumsum(0, dtype=torch.float64) - sorted_V
        kept_N = order_V[likelier_V < sampling.top_p]
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
