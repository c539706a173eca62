"""What the explorer shows at every stop of its sliders, counted once when it opens: a move is no
more than a look into these arrays, on any number of windows.

A view is one setting of the switches that change what is counted: junk left out or not, and how
many of the hardest are dropped as noise. A stop is a threshold; `line` windows of a view lie below
it, those from there to `left` are hard. Legend: N windows, M in a view from easy to hard, S stops.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import nonsingular

from tdbook.report.figures import CUTS, LISTED
from tdlib import hard_set

SHARES = np.arange(1, 201) / 200  # positions of the slider of shares
OPTIONS = {  # of the switches, the first of which changes nothing
    "clip": (0.0, 0.005, 0.01, 0.02),
    "easy_share": (0.0, 0.05, 0.1, 0.2),
    "token_share": (1.0, 0.6, 0.4, 0.2),
}


@dataclass(frozen=True)
class Explored:
    """What an explorer is of, and the rule that it starts with."""

    scores: hard_set.Scores
    cuts: dict[str, tuple[list[str], np.ndarray]]  # name → names of its groups, each window's group
    junk_N: np.ndarray  # not 0: a window that may be left out
    text_of: Callable[[int], str]  # a window as HTML
    rule: hard_set.Rule


def numbers(explored: Explored, live: bool) -> tuple[dict, list[np.ndarray]]:
    """All numbers of the explorer; and the windows from easy to hard, of all and without junk. What
    changes only what is kept can be set only where it is `live`."""
    difficulty_N, rule = explored.scores.difficulty_N, explored.rule
    known = np.argsort(difficulty_N, kind="stable")[: np.isfinite(difficulty_N).sum()]
    n, known_M, clean_M = len(difficulty_N), difficulty_N[known], explored.junk_N[known] == 0
    orders = [known]
    if 0 < clean_M.sum() < len(clean_M):
        orders.append(known[clean_M])
    ends = nonsingular(*np.quantile(known_M, [0.001, 0.999]), expander=0.1, tiny=1e-5)
    grid = [float(f"{x:.9g}") for x in MaxNLocator(200).tick_values(*ends)]  # round numbers
    start = _shortest(known_M, rule.threshold)
    thresholds, options = sorted({*grid, start}), {}
    for name, values in OPTIONS.items():
        among = {*(values if live else values[:1]), getattr(rule, name)}
        options[name] = sorted(among, reverse=name == "token_share")
    cuts = {CUTS.get(name, name): _largest(*cut, known) for name, cut in explored.cuts.items()}
    kind, views = "windows" if len(known) == n else "scored windows", []
    for order_M in orders:
        in_M, junk = difficulty_N[order_M], len(known) - len(order_M)
        groups = [(len(names), group_N[order_M]) for names, group_N in cuts.values()]
        each = [_view(in_M, clip, thresholds) for clip in options["clip"]]
        views.append([v | _tally(v, in_M, groups) | _words(v, kind, junk, options) for v in each])
    at = ["threshold", thresholds.index(start), int(rule.leave_out_junk and len(views) > 1)]
    return {
        "options": options,
        "tokens": [f"; the hardest {100 * share:g}% of their tokens count" if share < 1 else ""
                   for share in options["token_share"]],
        "cuts": [[name, names] for name, (names, _) in cuts.items()],
        "views": views,
        "pictures": [_histogram(difficulty_N[order_M], grid[0], grid[-1]) for order_M in orders],
        "at": at + [options[name].index(getattr(rule, name)) for name in options],
    }, orders  # fmt: skip


def shown(numbers: dict, at: list) -> dict:
    """What the page shows where the line and the switches are `at`: slider, its position, junk left
    out, and the numbers of clip, easy windows and tokens among their options."""
    slider, position, junk, clip, easy, tokens = at
    view, options = numbers["views"][junk][clip], numbers["options"].items()
    stop = view[slider][position]
    rule = {name: values[i] for (name, values), i in zip(options, at[3:], strict=True)}
    rule |= {"threshold": view["stops"][stop], "leave_out_junk": bool(junk)}
    words = view["words"][stop] + view["tail"] + view["easy"][easy][stop]
    now = {"rule": rule, "words": words + numbers["tokens"][tokens]}
    now |= {"groups": np.sum(view["groups"][stop:], 0, dtype=int).tolist()}
    now |= {name: view[name][stop] for name in ("line", "lost")}
    return now | {name: view[name] for name in ("left", "cap", "all")}


def _view(known_M: np.ndarray, clip: float, thresholds: list[float]) -> dict:
    """Stops, and positions of both sliders, of windows from easy to hard."""
    m = len(known_M)
    # as hard_set.select has it: of the hardest, all that are as hard as one that stays, stay
    cap = known_M[m - 1 - min(round(clip * m), m - 1)]
    left = int(np.searchsorted(known_M, cap, "right"))
    hardest = np.round(SHARES * m).astype(int).clip(1, left)
    shares = [_shortest(known_M[:left], threshold) for threshold in known_M[left - hardest]]
    stops = sorted({*thresholds, *shares})
    line_S = np.searchsorted(known_M[:left], np.array(stops, known_M.dtype))
    lost_M = np.fmax(known_M, 0, dtype=np.float64)
    lost_S = lost_M[:left].sum() - np.concatenate([[0], lost_M[:left].cumsum()])[line_S]
    half_percents = np.round(200 * (left - line_S) / m).astype(int).clip(1, 200)
    apart = np.abs(np.subtract.outer(stops, thresholds))
    return {
        **{"windows": m, "clip": clip, "left": left, "cap": float(cap), "stops": stops},
        "line": line_S.tolist(),
        "lost": (lost_S / (lost_M.sum() or 1)).clip(0).round(5).tolist(),
        "threshold": [stops.index(threshold) for threshold in thresholds],
        "share": [stops.index(threshold) for threshold in shares],
        # where each slider stands when the other is moved
        "near": {"threshold": apart.argmin(1).tolist(), "share": (half_percents - 1).tolist()},
    }


def _tally(view: dict, known_M: np.ndarray, groups: list[tuple[int, np.ndarray]]) -> dict:
    """How many windows of each group come in at a stop, beside those of the next; and all of it."""
    bins = len(view["stops"]) + 1
    bin_M = np.searchsorted(np.array(view["stops"], known_M.dtype), known_M, "right")
    tables, totals = [np.zeros((bins, 0), int)], []
    for size, group_M in groups:
        flat_M = (bin_M * size + group_M)[: view["left"]]
        tables.append(np.bincount(flat_M, minlength=bins * size).reshape(-1, size))
        totals += np.bincount(group_M, minlength=size).tolist()
    return {"groups": np.concatenate(tables, 1)[1:].tolist(), "all": totals}


def _words(view: dict, kind: str, junk: int, options: dict) -> dict:
    """What each stop and each switch chooses, in words that follow one another."""
    m, words, easy = view["windows"], [], [[] for _ in options["easy_share"]]
    for threshold, line in zip(view["stops"], view["line"], strict=True):
        count = view["left"] - line
        share = f"{count:,} of {m:,} {kind} ({100 * count / m:.1f}%)"
        words.append(f"{share} are at least {threshold:.9g} nats harder for the student")
        for each, share in zip(easy, options["easy_share"], strict=True):
            added = min(round(share * count), line)
            each.append(f"; {added:,} easier windows are mixed in" if share else "")
    tail = f"; {junk:,} junk windows are left out" if junk else ""
    if clip := view["clip"]:
        out = m - view["left"]
        tail += f"; the hardest {100 * clip:g}%, {out:,} windows, are dropped as noise"
    return {"words": words, "tail": tail, "easy": easy}


def _shortest(known_M: np.ndarray, threshold: float) -> float:
    """The shortest decimal that has the same windows at or above it."""
    decimals = [round(float(threshold), digits) for digits in range(3, 9)]
    lines = np.searchsorted(known_M, np.array([threshold, *decimals], known_M.dtype))
    same = (x for x, line in zip(decimals, lines[1:], strict=True) if line == lines[0])
    return next(same, float(threshold))


def _largest(names: list[str], group_N: np.ndarray, order_M: np.ndarray) -> tuple:
    """A cut of many groups with the largest of them, and the others as one."""
    if len(names) <= LISTED:
        return names, group_N
    size_G = np.bincount(group_N[order_M], minlength=len(names))
    largest = np.argsort(-size_G, kind="stable")[:LISTED]
    new_G = np.full(len(names), LISTED, np.uint8)
    new_G[largest] = np.arange(LISTED)
    return [*(names[i] for i in largest), f"{len(names) - LISTED} others"], new_G[group_N]


def _histogram(known_M: np.ndarray, low: float, high: float) -> dict:
    """Heights of bars of equal width; what lies outside is in the last ones."""
    counts, _ = np.histogram(known_M.clip(low, high), 60, (low, high))
    return {"heights": (counts / counts.max()).round(3).tolist(), "low": low, "high": high}
