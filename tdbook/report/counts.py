"""What the explorer shows at every stop of its sliders, counted once when it opens, so that a move
costs the same on any number of windows and is no more than a look into these arrays.

A view is one setting of the switches that change what is counted: junk left out or not, and how
many of the hardest are dropped as noise. A stop is a threshold; `line` windows of a view lie below
it, and those from there to `left` are hard.
Legend: N windows, M of them in a view from easy to hard, S stops, G groups of all cuts.
"""

import numpy as np
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import nonsingular

from tdbook.report.figures import CUTS, LISTED
from tdlib import hard_set

SHARES = np.arange(1, 201) / 200  # positions of the slider of shares
PRESETS = {"median": 0.5, "15 %": 0.15, "20 %": 0.2, "25 %": 0.25}
OPTIONS = {  # of the switches, the first of which changes nothing
    "clip": (0.0, 0.005, 0.01, 0.02),
    "easy_share": (0.0, 0.05, 0.1, 0.2),
    "token_share": (1.0, 0.6, 0.4, 0.2),
}
BINS = 60  # bars of the histogram
GROUPS = 20  # of a cut, at most; of more, the largest and the others as one
Cuts = dict[str, tuple[list[str], np.ndarray]]  # name → names of its groups, the group of each (N,)


def numbers(
    scores: hard_set.Scores,
    cuts: Cuts,
    junk_N: np.ndarray,
    kinds: dict[int, str],
    rule: hard_set.Rule,
    live: bool,
) -> tuple[dict, list[np.ndarray]]:
    """All numbers of the explorer, which starts with `rule`; and the windows from easy to hard, of
    all and without junk. What changes only what is kept can be set only where it is `live`."""
    difficulty_N, n = scores.difficulty_N, len(scores.difficulty_N)
    known = np.argsort(difficulty_N, kind="stable")[: np.isfinite(difficulty_N).sum()]
    orders, wholes = [known.astype(np.min_scalar_type(n))], (n, n - np.count_nonzero(junk_N))
    known_M, junk_M = difficulty_N[known], junk_N[known]
    if 0 < np.count_nonzero(junk_M) < len(junk_M):
        orders.append(orders[0][junk_M == 0])
    line = int(np.searchsorted(known_M, known_M.dtype.type(rule.threshold)))
    start = _shortest(known_M, line) if line < len(known_M) else float(rule.threshold)
    grid = _ticks(known_M, 200)
    thresholds = sorted({*grid, start})
    options = _options(rule, live)
    largest = {CUTS.get(name, name): _largest(*cut, known) for name, cut in cuts.items()}
    kind = "windows" if len(known) == n else "scored windows"
    views, pictures = [], []
    for order_M, whole in zip(orders, wholes, strict=False):
        in_M, junk = difficulty_N[order_M], len(known) - len(order_M)
        groups = [(len(names), group_N[order_M]) for names, group_N in largest.values()]
        views.append([])
        for clip in options["clip"]:
            view = _view(in_M, whole, clip, thresholds)
            view |= _tally(view, in_M, groups)
            views[-1].append(view | _words(view, kind, junk, clip, options["easy_share"]))
        pictures.append(_histogram(in_M, grid[0], grid[-1]))
    at = ["threshold", thresholds.index(start), int(rule.leave_out_junk and len(views) > 1)]
    return {
        "junk": [[kind, int((junk_M & flag != 0).sum())] for flag, kind in kinds.items()],
        "options": options,
        "tokens": [_tokens(share) for share in options["token_share"]],
        "presets": {name: round(200 * share) - 1 for name, share in PRESETS.items()},
        "cuts": [[name, names] for name, (names, _) in largest.items()],
        "views": views,
        "pictures": pictures,
        "at": at + [options[name].index(getattr(rule, name)) for name in options],
    }, orders


def _options(rule: hard_set.Rule, live: bool) -> dict[str, list[float]]:
    """What can be chosen of each switch; that of the rule is always among it."""
    options = {}
    for name, values in OPTIONS.items():
        among = {*(values if live else values[:1]), getattr(rule, name)}
        options[name] = sorted(among, reverse=name == "token_share")
    return options


def shown(numbers: dict, at: list) -> dict:
    """What the page shows where the line and the switches are `at`: slider, its position, junk left
    out, and the numbers of clip, easy windows and tokens among their options."""
    slider, position, junk, clip, easy, tokens = at
    view, options = numbers["views"][junk][clip], numbers["options"]
    stop = view[slider][position]
    rule = {"threshold": view["stops"][stop], "leave_out_junk": bool(junk)}
    rule |= {name: options[name][i] for name, i in zip(options, at[3:], strict=True)}
    words = view["words"][stop] + view["tail"] + view["easy"][easy][stop]
    return {
        "rule": rule,
        "words": words + numbers["tokens"][tokens],
        "count": view["left"] - view["line"][stop],
        "line": view["line"][stop],
        "left": view["left"],
        "cap": view["cap"],
        "lost": view["lost"][stop],
        "groups": np.sum(view["groups"][stop:], 0, dtype=int).tolist(),
        "all": view["all"],
    }


def _view(known_M: np.ndarray, whole: int, clip: float, thresholds: list[float]) -> dict:
    """Stops and positions of both sliders, where the windows of `known_M`, from easy to hard, are
    those of `whole` that were scored."""
    m = len(known_M)
    # as hard_set.select has it: of the hardest, all that are as hard as one that stays, stay
    cap = known_M[m - 1 - min(round(clip * m), m - 1)]
    left = int(np.searchsorted(known_M, cap, "right"))
    kept_M = known_M[:left]
    # the same to the last bit as hard_set.choose has it
    hardest = np.round(m / whole * SHARES * whole).astype(int).clip(1, left)
    by_share = np.searchsorted(kept_M, kept_M[left - hardest]).tolist()
    by_threshold = np.searchsorted(kept_M, np.array(thresholds, kept_M.dtype)).tolist()
    threshold_at = {line: _shortest(kept_M, line) for line in {*by_share}}
    threshold_at |= dict(zip(by_threshold, thresholds, strict=True))
    shares = [threshold_at[line] for line in by_share]
    stops = sorted({*thresholds, *shares})
    line_S = np.searchsorted(kept_M, np.array(stops, kept_M.dtype))
    lost_M = np.fmax(known_M, 0, dtype=np.float64)
    lost_S = lost_M[:left].sum() - np.concatenate([[0], lost_M[:left].cumsum()])[line_S]
    apart = np.abs(np.subtract.outer(stops, thresholds))
    half_percents = np.round(200 * (left - line_S) / m).astype(int)
    return {
        "windows": m,
        "left": left,
        "cap": float(cap),
        "stops": stops,
        "line": line_S.tolist(),
        "lost": (lost_S / (lost_M.sum() or 1)).clip(0).round(5).tolist(),
        "threshold": [stops.index(threshold) for threshold in thresholds],
        "share": [stops.index(threshold) for threshold in shares],
        # where each slider stands when the other is moved
        "near": {
            "threshold": apart.argmin(1).tolist(),
            "share": (half_percents.clip(1, 200) - 1).tolist(),
        },
    }


def _tally(view: dict, known_M: np.ndarray, groups: list[tuple[int, np.ndarray]]) -> dict:
    """How many windows of each group come in at a stop, beside those of the next; and all of it."""
    stops, tables, totals = view["stops"], [], []
    bin_M = np.searchsorted(np.array(stops, known_M.dtype), known_M, "right")
    for size, group_M in groups:
        flat_M = (bin_M * size + group_M)[: view["left"]]
        count = np.bincount(flat_M, minlength=(len(stops) + 1) * size)
        tables.append(count.reshape(-1, size)[1:])
        totals += np.bincount(group_M, minlength=size).tolist()
    empty = np.zeros((len(stops), 0), int)
    return {"groups": np.concatenate([empty, *tables], 1).tolist(), "all": totals}


def _words(view: dict, kind: str, junk: int, clip: float, easy_shares: list[float]) -> dict:
    """What each stop and each switch chooses, in words that follow one another."""
    m, left, words, easy = view["windows"], view["left"], [], [[] for _ in easy_shares]
    for threshold, line in zip(view["stops"], view["line"], strict=True):
        count = left - line
        share = f"{count:,} of {m:,} {kind} ({100 * count / m:.1f}%)"
        words.append(f"{share} are at least {threshold:.9g} nats harder for the student")
        for each, share in zip(easy, easy_shares, strict=True):
            added = min(round(share * count), line)
            each.append(f"; {added:,} easier windows are mixed in" if share else "")
    tail = f"; {junk:,} junk windows are left out" if junk else ""
    if clip:
        tail += f"; the hardest {100 * clip:g}%, {m - left:,} windows, are dropped as noise"
    return {"words": words, "tail": tail, "easy": easy}


def _tokens(share: float) -> str:
    return f"; the hardest {100 * share:g}% of their tokens count" if share < 1 else ""


def _ticks(values_M: np.ndarray, count: int) -> list[float]:
    """Round numbers, `count` or fewer, over all values but 1 in 1,000 on each side."""
    ends = nonsingular(*np.quantile(values_M, [0.001, 0.999]), expander=0.1, tiny=1e-5)
    return [float(f"{x:.9g}") for x in MaxNLocator(count).tick_values(*ends)]


def _shortest(known_M: np.ndarray, line: int) -> float:
    """The shortest decimal that has the same windows at or above it as the difficulty there."""
    value = float(known_M[line])
    decimals = (round(value, digits) for digits in range(3, 9))
    same = (x for x in decimals if np.searchsorted(known_M, known_M.dtype.type(x)) == line)
    return next(same, value)


def _largest(names: list[str], group_N: np.ndarray, order_M: np.ndarray) -> tuple:
    """A cut of many groups with the LISTED largest of them, and the others as one."""
    if len(names) <= GROUPS:
        return names, group_N
    size_G = np.bincount(group_N[order_M], minlength=len(names))
    largest = np.argsort(-size_G, kind="stable")[:LISTED]
    new_G = np.full(len(names), LISTED)
    new_G[largest] = np.arange(LISTED)
    others = f"{len(names) - LISTED} others"
    return [*(names[i] for i in largest), others], new_G.astype(np.uint8)[group_N]


def _histogram(known_M: np.ndarray, low: float, high: float) -> dict:
    """Bars of equal width: their heights and the difficulty in the middle of each. What lies
    outside is in the last ones. The line of a threshold stands `zero` + threshold · `nat` bars from
    the left."""
    counts, edges = np.histogram(known_M.clip(low, high), BINS, (low, high))
    middles = (edges[:-1] + edges[1:]) / 2
    return {
        "heights": (counts / counts.max()).round(3).tolist(),
        "middles": [float(f"{x:.5g}") for x in middles],
        "ends": [low, high],
        "zero": -low * BINS / (high - low),
        "nat": BINS / (high - low),
    }
