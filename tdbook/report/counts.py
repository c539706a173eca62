"""What the explorer can show, counted once when it opens, so that a move costs the same on any
number of windows.

Counts are kept at U lines: `counts` windows lie at or above each, hardest first, and how many of
each group came in since the line before. A stop of a slider is [threshold, number of its line]. The
hardest windows dropped as noise (`clip`) are those above a line too, so what is left between the
two is a difference. All this twice where there is junk: of all windows, and without it.
Legend: N windows, M of them scored (and, the second time, no junk), U lines, G groups of a cut.
"""

import html

import numpy as np
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import nonsingular

from tdbook.report.figures import CUTS, LISTED
from tdlib import hard_set

SHARES = np.arange(1, 201) / 200  # stops of the slider of shares
PRESETS = {"median": 0.5, "15 %": 0.15, "20 %": 0.2, "25 %": 0.25}
OPTIONS = {  # of the switches, the first of which changes nothing
    "clip": (0.0, 0.005, 0.01, 0.02), "easy_share": (0.0, 0.05, 0.1, 0.2),
    "token_share": (1.0, 0.6, 0.4, 0.2),
}  # fmt: skip
BINS, SIDE = 60, 30  # bars of the histogram; cells on a side of student against teacher
GROUPS = 20  # of a cut, at most; of more, the largest and the others as one
Cuts = dict[str, tuple[list[str], np.ndarray]]  # name → names of its groups, the group of each (N,)


def every(
    scores: hard_set.Scores, cuts: Cuts, junk_N: np.ndarray, kinds: dict[int, str],
    rule: hard_set.Rule, live: bool,
) -> tuple[dict, list[np.ndarray]]:  # fmt: skip
    """All numbers of the explorer, which starts with `rule`; and the
    windows from easy to hard, of all and without junk. What changes nothing but what is kept can be
    set only where it is `live`."""
    difficulty_N, n = scores.difficulty_N, len(scores.difficulty_N)
    order_M = np.argsort(difficulty_N, kind="stable")[: np.isfinite(difficulty_N).sum()]
    orders = [order_M.astype(np.min_scalar_type(n))]
    known_M, junk_M = difficulty_N[order_M], junk_N[order_M]
    if 0 < np.count_nonzero(junk_M) < len(junk_M):
        orders.append(orders[0][junk_M == 0])
    line = int(np.searchsorted(known_M, known_M.dtype.type(rule.threshold)))
    start = _shortest(known_M, line) if line < len(known_M) else float(rule.threshold)
    grid = _ticks(known_M, 200)
    thresholds = sorted({*grid, start})
    options = {
        name: sorted(
            {*(values if live else values[:1]), getattr(rule, name)}, reverse=name == "token_share"
        )
        for name, values in OPTIONS.items()
    }
    largest = {
        html.escape(CUTS.get(name, name)): _largest(*cut, orders[0]) for name, cut in cuts.items()
    }
    firsts = np.cumsum([0, *(len(names) for names, _ in largest.values())]).tolist()  # in `groups`
    modes = [
        _mode(scores, each_M, list(largest.values()), thresholds, options["clip"], whole, grid)
        for each_M, whole in zip(orders, (n, n - np.count_nonzero(junk_N)), strict=False)
    ]
    at = ["threshold", thresholds.index(start), int(rule.leave_out_junk and len(modes) > 1)]
    at += [options[name].index(getattr(rule, name)) for name in options]
    numbers = {
        "windows": n,
        "of": "windows" if len(known_M) == n else "scored windows",
        "junk": [[html.escape(kind), int((junk_M & flag != 0).sum())]
                 for flag, kind in kinds.items()],
        "options": options,
        "presets": {name: round(200 * share) - 1 for name, share in PRESETS.items()},
        "cuts": [[name, first, [html.escape(group) for group in names]]
                 for (name, (names, _)), first in zip(largest.items(), firsts, strict=False)],
        "modes": modes,
        "at": at,
    }  # fmt: skip
    return numbers | {"start": shown(numbers, at)}, orders


def shown(numbers: dict, at: list) -> dict:
    """What the page shows where the line and the switches are `at`: slider, stop, junk left out,
    and the numbers of clip, easy windows and tokens among their options."""
    slider, stop, junk, clip, *_ = at
    mode, options = numbers["modes"][junk], numbers["options"]
    threshold, line = (mode["share"][clip] if slider == "share" else mode["threshold"])[stop]
    out = mode["out"][clip]
    above_G, dropped_G = (np.sum(mode["groups"][: u + 1], 0, dtype=int) for u in (line, out))
    above, dropped = mode["counts"][line], mode["counts"][out]
    count = max(0, above - dropped)
    rule = {"threshold": threshold, "leave_out_junk": bool(junk)}
    rule |= {name: options[name][i] for name, i in zip(options, at[3:], strict=True)}
    added = min(round(rule["easy_share"] * count), mode["windows"] - dropped - count)
    return {
        "rule": rule,
        "count": count,
        "above": above,
        "out": dropped,
        "cap": mode["cap"][clip],
        "lost": max(0.0, mode["lost"][line] - mode["lost"][out]),
        "groups": np.maximum(0, above_G - dropped_G).tolist(),
        "all": np.sum(mode["groups"], 0, dtype=int).tolist(),
        "said": in_words(numbers, rule, count, mode, dropped, added),
    }


def in_words(numbers: dict, rule: dict, count: int, mode: dict, dropped: int, added: int) -> str:
    """A rule and what it chooses, in a sentence; explorer.js says the same."""
    n, kind = mode["windows"], numbers["of"]
    words = f"{count:,} of {n:,} {kind} ({100 * count / n:.1f}%) are at least "
    words += f"{rule['threshold']:.9g} nats harder for the student"
    if rule["leave_out_junk"]:
        words += f"; {numbers['modes'][0]['windows'] - n:,} junk windows are left out"
    if rule["clip"]:
        words += f"; the hardest {100 * rule['clip']:g}%, {dropped:,} windows, are dropped as noise"
    if rule["easy_share"]:
        words += f"; {added:,} easier windows are mixed in"
    if rule["token_share"] < 1:
        words += f"; the hardest {100 * rule['token_share']:g}% of their tokens count"
    return words


def _mode(
    scores: hard_set.Scores, order_M: np.ndarray, cuts: list[tuple], thresholds: list[float],
    clips: list[float], whole: int, grid: list[float],
) -> dict:  # fmt: skip
    """Stops, lines and pictures of windows from easy to hard: those of `whole` that were scored."""
    known_M, m = scores.difficulty_N[order_M], len(order_M)
    hardest = m / whole * SHARES * whole  # the same to the last bit as hard_set.choose has it
    above = lambda x, side="left": m - np.searchsorted(known_M, known_M.dtype.type(x), side)  # noqa: E731
    at_T = [int(above(t)) for t in thresholds]
    # as hard_set.select has it
    cap = [float(known_M[m - 1 - min(round(clip * m), m - 1)]) for clip in clips]
    out = [int(above(c, "right")) for c in cap]
    shares, steps = [], []
    for dropped in out:
        k = np.clip(np.round(hardest).astype(int), 1, m - dropped)
        # windows equally difficult are on one side of the line
        own = above(known_M[m - dropped - k])
        stops = {int(a): _shortest(known_M, m - a) for a in np.unique(own)}
        stops |= {a: t for t, a in zip(thresholds, at_T, strict=True) if a in stops}
        shares.append(sorted([t, a] for a, t in stops.items())[::-1])
        steps.append([[a for _, a in shares[-1]].index(a) for a in own.tolist()])
    counts_U = np.unique([0, m, *at_T, *out, *(a for each in shares for _, a in each)])
    line_of = {int(a): u for u, a in enumerate(counts_U)}
    since_M = np.repeat(np.arange(len(counts_U)), np.diff(counts_U, prepend=0))
    tables = [np.zeros((len(counts_U), 0), int)]
    for names, group_N in cuts:
        flat_M = since_M * len(names) + group_N[order_M][::-1]
        count = np.bincount(flat_M, minlength=len(counts_U) * len(names))
        tables.append(count.reshape(-1, len(names)))
    lost_U = np.bincount(
        since_M, np.fmax(known_M[::-1], 0, dtype=np.float64), len(counts_U)
    ).cumsum()
    lost_U = (lost_U / (lost_U[-1] or 1)).round(5)
    return {
        "windows": m,
        "counts": counts_U.tolist(),
        "groups": np.concatenate(tables, 1).tolist(),
        "lost": lost_U.tolist(),
        "threshold": [[t, line_of[a]] for t, a in zip(thresholds, at_T, strict=True)],
        "share": [[[t, line_of[a]] for t, a in each] for each in shares],
        "steps": steps,  # of each half percent, its stop
        "out": [line_of[a] for a in out],
        "cap": cap,
        "pictures": [
            _histogram(known_M, grid[0], grid[-1]),
            _square(scores.teacher_loss_N[order_M], scores.student_loss_N[order_M]),
            _curve(counts_U / m, lost_U),
        ],
    }


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
    """Bars as [x, y, height, ink, difficulty in the middle]; the line at a threshold is `line`,
    moved by `zero` + threshold · `nat`. What lies outside is in the last bars."""
    counts, _ = np.histogram(known_M.clip(low, high), BINS, (low, high))
    width, heights = (high - low) / BINS, (counts / counts.max()).round(3).tolist()
    return {
        "size": [BINS, 1],
        "rects": [[i, round(1 - h, 3), h, 1, _short(low + width * (i + 0.5))]
                  for i, h in enumerate(heights)],
        "line": "M0 0V1",
        "zero": [-low / width, 0],
        "nat": [1 / width, 0],
        "name": "histogram of difficulty, with the threshold as a line",
        "below": [low, "difficulty, nats per token", high],
    }  # fmt: skip


def _square(teacher_M: np.ndarray, student_M: np.ndarray) -> dict:
    """Windows by the loss of each model, darker where there are many; above the line, hard ones."""
    (t, *_, t_end), (s, *_, s_end) = _ticks(teacher_M, 10), _ticks(student_M, 10)
    across, up = (t_end - t) / SIDE, (s_end - s) / SIDE
    column_M, row_M = (
        ((values - low) / step).clip(0, SIDE - 1).astype(int)
        for values, low, step in ((teacher_M, t, across), (student_M, s, up))
    )
    count = np.bincount(column_M * SIDE + row_M, minlength=SIDE * SIDE).reshape(SIDE, SIDE)
    ink = (0.3 + 0.7 * np.log1p(count) / np.log1p(count.max())).round(2).tolist()
    return {
        "size": [SIDE, SIDE],
        "rects": [
            [x, SIDE - 1 - y, 1, ink[x][y], _short(s + up * (y + 0.5) - t - across * (x + 0.5))]
            for x, y in np.argwhere(count).tolist()
        ],
        "line": f"M0 {SIDE - (t - s) / up}L{SIDE} {SIDE - (t_end - s) / up}",
        "zero": [0, 0],
        "nat": [0, -1 / up],
        "name": "student's loss against teacher's, hard windows above the line",
        "below": [f"loss: teacher’s {t}–{t_end} →", f"student’s {s}–{s_end} ↑"],
    }


def _curve(share_U: np.ndarray, lost_U: np.ndarray) -> dict:
    """What the hardest windows hold of all that was lost; dashed, were it spread evenly."""
    some = np.unique(np.searchsorted(share_U, np.arange(101) / 100).clip(max=len(share_U) - 1))
    points = "L".join(f"{share_U[u]:.4g} {1 - lost_U[u]:.4g}" for u in some)
    return {
        "size": [1, 1],
        "rects": [],
        "curve": f"M{points}",
        "line": "M0 0V1",
        "name": "cumulative share of difficulty: what the hardest windows hold of all lost",
        "below": ["hardest windows, 0–100% →", "lost, 0–100% ↑"],
    }  # fmt: skip


def _short(x: float) -> float:
    return float(f"{x:.5g}")
