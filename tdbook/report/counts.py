"""What the explorer shows at every stop of its sliders, counted once when it opens: a move is no
more than a look into these arrays, on any number of windows.

A view is one setting of the two switches: junk left out or not, and how many of the hardest are
dropped as noise. A stop is a threshold; `line` windows of a view lie below it, those from there to
`left` are hard. Legend: N windows, M in a view from easy to hard, S stops, G groups.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import nonsingular

from tdbook.report.figures import CUTS, LISTED
from tdlib import hard_set

SHARES = np.arange(1, 201) / 200  # positions of the slider of shares


@dataclass(frozen=True)
class Explored:
    """What an explorer is of, and the rule that it starts with."""

    scores: hard_set.Scores
    cuts: dict[str, tuple[list[str], np.ndarray]]  # name → names of its groups, each window's group
    junk_N: np.ndarray  # not 0: a window that may be left out
    text_of: Callable[[int], str]  # a window as HTML
    rule: hard_set.Rule


def numbers(explored: Explored, clips: tuple = ()) -> tuple[dict, list[np.ndarray]]:
    """All numbers of the explorer; and the windows from easy to hard, of all and without junk."""
    difficulty_N, rule = explored.scores.difficulty_N, explored.rule
    known = np.argsort(difficulty_N, kind="stable")[: np.isfinite(difficulty_N).sum()]
    known_M, clean_M = difficulty_N[known], explored.junk_N[known] == 0
    orders = [known, known[clean_M]] if 0 < clean_M.sum() < len(clean_M) else [known]
    ends = nonsingular(*np.quantile(known_M, [0.001, 0.999]), expander=0.1, tiny=1e-5)
    grid = [float(f"{x:.9g}") for x in MaxNLocator(200).tick_values(*ends)]  # round numbers
    start = _shortest(known_M, rule.threshold)
    thresholds, clips = sorted({*grid, start}), sorted({0.0, *clips, rule.clip})
    cuts = {CUTS.get(name, name): _largest(*cut, known) for name, cut in explored.cuts.items()}
    kind, views = "windows" if len(known) == len(difficulty_N) else "scored windows", []
    for order_M in orders:
        groups = [(len(names), group_N[order_M]) for names, group_N in cuts.values()]
        left_out = len(known) - len(order_M)
        junk = f"; {left_out:,} junk windows are left out" * (left_out > 0)
        each = [_view(difficulty_N[order_M], clip, thresholds, groups) for clip in clips]
        views.append([view | _words(view, kind, junk, rule) for view in each])
    junk_left_out = int(rule.leave_out_junk and len(views) > 1)
    return {
        "clips": clips,
        "cuts": [[name, names] for name, (names, _) in cuts.items()],
        "views": views,
        "pictures": [_histogram(difficulty_N[order_M], grid[0], grid[-1]) for order_M in orders],
        "at": ["threshold", thresholds.index(start), junk_left_out, clips.index(rule.clip)],
    }, orders


def shown(numbers: dict, at: list) -> dict:
    """What is shown `at` a slider, its position, junk left out (0 or 1), number of the clip."""
    slider, position, junk, clip = at
    view = numbers["views"][junk][clip]
    stop = view[slider][position]
    rule = {"threshold": view["stops"][stop], "leave_out_junk": bool(junk), "clip": view["clip"]}
    groups = np.sum(view["groups"][stop:], 0, dtype=int).tolist()
    now = {"rule": rule, "groups": groups, "words": view["words"][stop] + view["tail"]}
    now |= {name: view[name][stop] for name in ("line", "lost")}
    return now | {name: view[name] for name in ("left", "cap", "all")}


def _view(known_M: np.ndarray, clip: float, thresholds: list[float], groups: list[tuple]) -> dict:
    """Stops, positions of both sliders, and counts, of windows from easy to hard."""
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
    places = [np.flatnonzero(of_M == g) for size, of_M in groups for g in range(size)]
    hard_SG = np.array([np.searchsorted(p, left) - np.searchsorted(p, line_S) for p in places]).T
    return {
        **{"windows": m, "clip": clip, "left": left, "cap": float(cap), "stops": stops},
        "line": line_S.tolist(),
        "lost": (lost_S / (lost_M.sum() or 1)).clip(0).round(5).tolist(),
        "threshold": [stops.index(threshold) for threshold in thresholds],
        "share": [stops.index(threshold) for threshold in shares],
        # where each slider stands when the other is moved
        "near": {"threshold": apart.argmin(1).tolist(), "share": (half_percents - 1).tolist()},
        # of each group's windows, those that a stop has and the next has not: small numbers
        "groups": (-np.diff(hard_SG, axis=0, append=0)).tolist(),
        "all": [len(place) for place in places],
    }


def _words(view: dict, kind: str, junk: str, rule: hard_set.Rule) -> dict:
    """What each stop chooses; and what follows, the same for all of them."""
    m, words, tail = view["windows"], [], junk
    if clip := view["clip"]:
        tail += f"; the hardest {100 * clip:g}%, {m - view['left']:,} windows, are dropped as noise"
    if rule.token_share < 1:
        tail += f"; the hardest {100 * rule.token_share:g}% of their tokens count"
    for threshold, line in zip(view["stops"], view["line"], strict=True):
        count = view["left"] - line
        chosen = f"{count:,} of {m:,} {kind} ({100 * count / m:.1f}%) are at least {threshold:.9g}"
        easy = f"; {min(round(rule.easy_share * count), line):,} easier windows are mixed in"
        words.append(f"{chosen} nats harder for the student{easy * (rule.easy_share > 0)}")
    return {"words": words, "tail": tail}


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
