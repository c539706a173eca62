"""Hours, money, bytes, spans and signs in words; what plan.yaml expects; the bytes of a shape."""

import math
import re
from pathlib import Path

import yaml

from tdbook.runs.parameters import ParameterError
from tdlib.shapes import LlamaConfig

Q4_LIMIT = 33e6  # bytes: what still passes for the plan's "~30 MB"
PLAN = yaml.safe_load(Path(__file__).with_name("plan.yaml").read_text("utf8"))


def number(pairs: dict[str, str], name: str, least: float, example: float) -> float:
    """A number of a command line; commas may part its thousands."""
    try:
        value = float(re.sub(r",(?=\d{3}(\D|$))", "", pairs[name]))
    except ValueError:
        value = math.nan
    if not least <= value < math.inf:
        fault = f"{name}={pairs[name]} must be a number, at least {least:g}"
        raise ParameterError(f"{fault}: for example {name}={example:g}")
    return value


def duration(low: float, high: float | None = None) -> str:
    """ "3.1–6.9 h", "12–15 min", "20 s"."""
    high = low if high is None else high
    unit, size = next((u for u in (("h", 3600), ("min", 60)) if high >= 1.5 * u[1]), ("s", 1))
    ends = (x / size for x in (low, high))
    a, b = (f"{round(x, 3):.2g}" if x < 10 else f"{x:,.0f}" for x in ends)
    return f"{a} {unit}" if a == b else f"{a}–{b} {unit}"


def money(span: tuple[float, float], price: float) -> str:
    low, high = (x / 3600 * price for x in span)
    return f"{low:,.1f}–{high:,.1f}" if high < 10 else f"{low:,.0f}–{high:,.0f}"


def si(value: float, unit: str = "") -> str:
    """ "3.7 G", "178 GB", "–" for nothing."""
    letters = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))
    size, letter = next(((s, c) for s, c in letters if value >= s), (1, ""))
    return f"{value / size:.3g} {letter}{unit}".strip() if value else "–"


def minus(text: str) -> str:
    """A text with the sign − before its numbers; the hyphen of a name stays."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", text)


def q4_0_bytes(config: LlamaConfig) -> int:
    """A shape's weights in Q4_0 throughout: 18 bytes a block of 32; norms are float32."""
    norms = config.dim * (2 * config.layers + 1)
    norms += config.qk_norm * 2 * config.head_dim * config.layers
    return (config.parameters - norms) * 18 // 32 + 4 * norms


def span(low: float, high: float, digits: int = 2) -> str:
    """ "3.00–3.30", or one number where both are the same, or "–" where the plan gives none."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "–"
    return f"{low:.{digits}f}" if low == high else f"{low:.{digits}f}–{high:.{digits}f}"


def of_plan(name: str, key: str) -> tuple[float, float]:
    return tuple(PLAN.get(name, {}).get(key, (math.nan, math.nan)))
