"""Text from a model, one token at a time, over a cache of keys and values.

A model here is a Llama, or a Decoder of one, which is several times as fast on a CPU: both have
`config`, `embedding_VD` and `next_logits`. Legend: V vocabulary.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from tdlib.model import Cache, Llama


def generate(
    model: Llama,
    ids: list[int],
    tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    stop: int | None = None,
    cached: bool = True,
) -> list[int]:
    """Up to `tokens` new ids after the prompt (empty: begins after <eos>); ends after the id
    `stop`. Temperature 0 takes the likeliest; draws come from a generator of their own. Not
    `cached`: every step computes the whole text again. ValueError: more than the context."""
    new = []
    for i in steps(model, ids, tokens, temperature, seed, cached):
        new.append(i)
        if i == stop:
            break
    return new


@torch.inference_mode()
def steps(
    model: Llama, ids: list[int], tokens: int, temperature: float, seed: int, cached: bool = True
) -> Iterator[int]:
    """The next id, `tokens` times."""
    text, config, like = list(ids) or [model.config.eos_id], model.config, model.embedding_VD
    if (length := len(text) + tokens) > config.context:
        fault = f"{len(text)} + {tokens} tokens are more than the context of {config.context}"
        raise ValueError(f"{fault}: shorten the prompt, or ask for fewer")
    if odd := [i for i in text if not 0 <= i < (v := config.vocab_size)]:
        fault = f"the prompt's id {odd[0]:,} is not in the model's vocabulary of {v:,}"
        raise ValueError(f"{fault}: give its own tokenizer")
    if not temperature >= 0:
        raise ValueError(f"temperature is {temperature}, it must be 0 or more")
    generator = torch.Generator(like.device).manual_seed(seed)
    cache, seen = Cache(config, 1, length, like) if cached else None, 0
    for _ in range(tokens):
        ids_1T = torch.tensor([text[seen:]], device=like.device)
        new = _pick(model.next_logits(ids_1T, cache)[0], temperature, generator)
        yield new
        seen = len(text) if cached else 0
        text.append(new)


def _pick(logits_V: Tensor, temperature: float, generator: torch.Generator) -> int:
    if not temperature:
        return int(logits_V.argmax())
    # a draw by the sums so far, in double: torch.multinomial takes a third of an INT8 token's time
    p_V = (logits_V.float() / temperature).softmax(-1)
    sums_V = p_V.cumsum(0, dtype=torch.float64)
    at = torch.rand((), generator=generator, device=sums_V.device, dtype=torch.float64)
    return int(torch.searchsorted(sums_V, at * sums_V[-1], right=True))
