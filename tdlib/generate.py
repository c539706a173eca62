"""Text from a model, one token at a time, over a cache of keys and values."""

import numpy as np
import torch

from tdlib.model import Cache, Llama


@torch.no_grad()
def generate(
    model: Llama,
    ids: list[int],
    tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    seed: int = 0,
    stop: int | None = None,
) -> list[int]:
    """Up to `tokens` new ids after the prompt (empty: begins after <eos>). Temperature 0 takes the
    likeliest; `top_k` keeps that many (0: all); ends after the id `stop`. The draws come from a
    generator of their own. ValueError: prompt and new tokens are more than the context."""
    prompt = list(ids) or [model.config.eos_id]
    device = model.head.device
    if len(prompt) + tokens > model.config.context:
        raise ValueError(
            f"{len(prompt)} + {tokens} tokens are more than the context of {model.config.context}"
        )
    generator = torch.Generator(device).manual_seed(seed)
    cache = Cache(model.config, 1, len(prompt) + tokens, model.head)
    new, following = [], torch.tensor([prompt], device=device)
    for _ in range(tokens):
        logits_V = model.head @ model.hidden(following, cache)[0, -1]
        new.append(_pick(logits_V, temperature, top_k, generator))
        if new[-1] == stop:
            break
        following = torch.tensor([new[-1:]], device=device)
    return new


def _pick(logits_V: torch.Tensor, temperature: float, top_k: int, generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    logits_V = logits_V.float() / temperature
    if top_k:
        smallest = logits_V.topk(min(top_k, len(logits_V))).values[-1]
        logits_V = logits_V.masked_fill(logits_V < smallest, -torch.inf)
    return int(torch.multinomial(logits_V.softmax(-1), 1, generator=generator))


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
