"""What the plan expects of each model, and what a shape costs before it is trained."""

import math
from dataclasses import asdict

from tdlib.shapes import SHAPES, LlamaConfig

VOCABULARIES = (51_800, 86_071)  # the plan's, and that of the published tokenizer
Q4_LIMIT = 33e6  # bytes: what still passes for the plan's "~30 MB"


def in_words(name: str, vocab_size: int) -> str:
    """One line on a shape: weights, of which embedding, and whether its 4-bit file passes."""
    d = describe(LlamaConfig(vocab_size=vocab_size, **SHAPES[name]))
    size = d["q4_0_bytes"]
    return (
        f"{name}, vocabulary {vocab_size:,}: {d['parameters'] / 1e6:.1f} M weights, of which "
        f"{d['embedding_parameters'] / 1e6:.1f} M embedding; Q4_0 {size / 1e6:.1f} MB, "
        f"{'within' if size <= Q4_LIMIT else 'ABOVE'} 33 MB"
    )


def describe(config: LlamaConfig) -> dict:
    """What a shape costs: weights, how many are embedding, and bytes as Q4_0 throughout (18 a block
    of 32 weights; norms stay float32)."""
    norms = config.dim * (2 * config.layers + 1)
    return asdict(config) | {
        "parameters": config.parameters,
        "embedding_parameters": config.embedding_parameters,
        "q4_0_bytes": (config.parameters - norms) * 18 // 32 + 4 * norms,
    }


# Tokens a second on a CPU, as the plan has them: raw, with cache, INT8 and compile, as Q4 in
# llama.cpp; and the megabytes of that file.
_LARGE = dict(raw=(5, 10), phase1=(60, 120), phase2=(150, 300), megabytes=(150, 150))
_MIDDLE = dict(raw=(15, 25), phase1=(150, 250), phase2=(300, 500), megabytes=(60, 60))
_SMALL = dict(raw=(30, 60), phase1=(300, 500), phase2=(500, 1000), megabytes=(30, 30))
# The plan's estimates: validation loss (low, high), its quality in percent, hours on a B200, and
# the above.
PLAN = {
    "teacher": dict(loss=(2.58, 2.58), quality=(100, 100), **_LARGE),
    "120m": dict(loss=(2.7, 2.8), quality=(90, 93), hours=(5, 6), **_MIDDLE),
    "80m": dict(loss=(2.8, 3.0), quality=(85, 88), hours=(4, 5)),
    "50m": dict(loss=(3.0, 3.3), quality=(75, 80), hours=(3, 4), **_SMALL),
    "50m-scratch": dict(loss=(3.5, 3.8), quality=(60, 65)),
    "50m-hard-merged": dict(loss=(2.8, 2.9), quality=(87, 90), hours=(7, 10), **_SMALL),
    "150m": dict(hours=(5, 6)),
    "75m": dict(loss=(2.8, 2.9), quality=(87, 90), hours=(10, 12)),
    "75m-direct": dict(loss=(2.9, 3.1), quality=(82, 85)),
    "scores": dict(hours=(2, 3)),
    "50m-hard": dict(hours=(1, 2)),
    # shapes with random weights, timed without being trained
    "teacher-plan": _LARGE,
    "teacher-300m": _LARGE,
    "student-120m": _MIDDLE,
    "student-50m": _SMALL,
    "student-55m": _SMALL,
}


def span(low: float, high: float, digits: int = 2) -> str:
    """ "3.00–3.30", or one number where both are the same, or "–" where the plan gives none."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "–"
    return f"{low:.{digits}f}" if low == high else f"{low:.{digits}f}–{high:.{digits}f}"


def of_plan(name: str, key: str) -> tuple[float, float]:
    return PLAN.get(name, {}).get(key, (math.nan, math.nan))
