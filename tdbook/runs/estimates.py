"""What the plan expects of each model (plan.yaml), and what a shape costs before it is trained."""

import math
from dataclasses import asdict
from pathlib import Path

import yaml

from tdlib.shapes import LlamaConfig

VOCABULARIES = (51_800, 86_071)  # the plan's, and that of the published tokenizer
Q4_LIMIT = 33e6  # bytes: what still passes for the plan's "~30 MB"
PLAN: dict[str, dict[str, tuple[float, float]]] = {}
for _names, _row in yaml.safe_load(Path(__file__).with_name("plan.yaml").read_text("utf8")).items():
    for _name in _names.split():
        PLAN[_name] = PLAN.get(_name, {}) | {key: tuple(span) for key, span in _row.items()}


def describe(config: LlamaConfig) -> dict:
    """What a shape costs: weights, how many are embedding, and bytes as Q4_0 throughout (18 a block
    of 32 weights; norms stay float32)."""
    norms = config.dim * (2 * config.layers + 1)
    return asdict(config) | {
        "parameters": config.parameters,
        "embedding_parameters": config.embedding_parameters,
        "q4_0_bytes": (config.parameters - norms) * 18 // 32 + 4 * norms,
    }


def file_bytes(config: LlamaConfig) -> int:
    """A GGUF file in Q4_0 throughout: its weights, and about 21 bytes a piece of the vocabulary."""
    return describe(config)["q4_0_bytes"] + 21 * config.vocab_size


def span(low: float, high: float, digits: int = 2) -> str:
    """ "3.00–3.30", or one number where both are the same, or "–" where the plan gives none."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "–"
    return f"{low:.{digits}f}" if low == high else f"{low:.{digits}f}–{high:.{digits}f}"


def of_plan(name: str, key: str) -> tuple[float, float]:
    return PLAN.get(name, {}).get(key, (math.nan, math.nan))
