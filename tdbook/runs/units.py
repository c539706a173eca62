"""Hours, money, bytes and signs in words: spans of seconds, a price an hour, powers of 1,000."""

import math
import re

from tdbook.runs.parameters import ParameterError


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


def duration(low: float, high: float) -> str:
    """ "3.1–6.9 h", "12–15 min", "20 s"."""
    unit, size = next((u, s) for u, s in (("h", 3600), ("min", 60), ("s", 0.01)) if high >= 1.5 * s)
    size = max(size, 1)
    a, b = (f"{x / size:.2g}" if x < 10 * size else f"{x / size:,.0f}" for x in (low, high))
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
