"""What a reader can touch: texts coloured token by token, and the explorer of the hard set.

difference = student loss − teacher loss of a token, in nats; difficulty is its mean over a window.
Whatever a slider can show is counted here once, so that a move costs the same on any number of
windows. Legend: T tokens of a text, N windows, S stops of a slider.
"""

import html
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import anywidget
import numpy as np
import traitlets
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import nonsingular

from tdlib import choice, hard_set, report
from tdlib.plots import LISTED

LEVELS = (0.25, 0.75, 1.5, 3.0)  # nats; from these on a deeper ground, a thicker line: widgets.css
SHOWN = 3  # texts on each side of the line
BINS, SIDE = 60, 30  # bars of the histogram; cells on a side of student against teacher
EMBEDDED = 200_000  # characters of text in the mailed report, at most, a report being under 1 MB


def text_html(pieces: list[str], difference_T: np.ndarray | None = None) -> str:
    """SentencePiece pieces as text, each on a ground of its own difference, with a legend line.

    Red over a solid line where the student is worse, blue over a dotted one where it is better.
    No space, border or padding between two pieces: a Telugu syllable cut in two is still shaped as
    one. Bytes are joined into their character, whose difference is their sum.
    """
    differences_T = np.zeros(len(pieces)) if difference_T is None else np.asarray(difference_T)
    body = "".join(_span(text, d) for text, d in _characters(pieces, differences_T.tolist()))
    body = f'<div lang="te" style="white-space:pre-wrap">{body}</div>'
    return body if difference_T is None else body + LEGEND


def _characters(pieces: list[str], differences: list[float]) -> list[tuple[str, float]]:
    texts, held, owed = [], b"", 0.0
    parts = [
        (part, d if i == 0 else 0.0)  # a token of several bytes or characters: its difference once
        for piece, d in zip(pieces, differences, strict=True)
        for i, part in enumerate(filter(None, re.split("(<0x[0-9A-F]{2}>)", piece)))
    ]
    for piece, d in [*parts, ("", 0.0)]:
        if len(piece) == 6 and piece.startswith("<0x"):
            held, owed = held + bytes([int(piece[3:5], 16)]), owed + d
            try:
                texts.append((held.decode(), owed))
            except UnicodeDecodeError:
                continue  # its other bytes follow
        else:
            if held:  # cut off, at the edge of a window
                texts.append(("�", owed))
            texts.append((piece.replace("▁", " ").replace("<eos>", "¶\n"), d))
        held, owed = b"", 0.0
    return texts[:-1]


def _span(text: str, difference: float) -> str:
    level = int(np.searchsorted(LEVELS, abs(difference), side="right"))
    if level == 0 or np.isnan(difference):
        return html.escape(text)
    kind = f"{'w' if difference > 0 else 'b'}{level}"  # short, since a report holds thousands
    return f'<i class="{kind}" title="{difference:+.2f}">{html.escape(text)}</i>'


LEGEND = (
    '<p class="legend"><small>student against teacher, nats per token: '
    + " ".join(_span(f"\u00a0{x:g}\u00a0", x) for x in LEVELS) + " and more worse (solid line), "
    + " ".join(_span(f"\u00a0{x:g}\u00a0", -x) for x in LEVELS) + " and more better (dotted), "
    f"plain: less than {LEVELS[0]:g} apart</small></p><style>{report.WIDGETS_CSS}</style>"
)  # fmt: skip


def _order(difficulty_N: np.ndarray) -> np.ndarray:
    """Window numbers from easy to hard, without those that have no difficulty."""
    return np.argsort(difficulty_N, kind="stable")[: np.isfinite(difficulty_N).sum()]


def _near(order_N: np.ndarray, count: int, shown: int) -> tuple[np.ndarray, np.ndarray]:
    """The windows next to the line, above and below it, nearest first; `count` of all are hard."""
    line = len(order_N) - count
    return order_N[line : line + shown], order_N[max(0, line - shown) : line][::-1]


def _card(i: int, difficulty: float, text: str) -> str:
    return f"<p><small>window {i:,}, difficulty {difficulty:+.4f}</small></p>{text}"


def _in_words(count: int, windows: int, threshold: float) -> str:
    share = f"{count:,} of {windows:,} windows ({100 * count / windows:.1f}%)"
    return f"{share} are at least {threshold:.9g} nats harder for the student"


class Explorer(anywidget.AnyWidget):
    """The explorer in JupyterLab, as explorer.js has it. (A subclass is the way to make one.)"""

    _esm = f"{report.SCRIPT}\nexport default {{render: hardSetInJupyter}};"
    _css = traitlets.Unicode().tag(sync=True)
    html = traitlets.Unicode().tag(sync=True)
    at = traitlets.List().tag(sync=True)  # where the line is: slider, number of its stop
    near = traitlets.Dict().tag(sync=True)  # the texts beside it
    done = traitlets.Unicode().tag(sync=True)  # what came of "keep"


def explorer(
    scores: hard_set.Scores,
    documents: tuple[np.ndarray, list[str]],
    text_of: Callable[[int], str],
    threshold: float,
    path: Path,
) -> Explorer:
    """A threshold and a share that move together, starting at `threshold`: number of windows, their
    distribution, share by source, texts on both sides of the line; "keep" writes the choice to
    `path`. `documents` are those of data.Tokens, `text_of` gives a window as HTML."""
    difficulty_N, order_N = scores.difficulty_N, _order(scores.difficulty_N)
    numbers = _numbers(scores, documents, threshold)
    stops = numbers["stops"]
    html_of = lru_cache(maxsize=64)(lambda i: text_of(i).replace(LEGEND, ""))
    # JupyterLab has the fonts of the reader's machine alone, and there may be none for Telugu
    font = f"{report.font_face()} [lang=te] {{font: 1.1em/1.8 'Report Telugu', sans-serif}}"
    shown = Explorer(_css=font, html=report.explorer(numbers), at=numbers["at"])

    def moved(_: dict | None = None) -> None:
        name, stop = shown.at
        above, below = (
            [_card(i, difficulty_N[i], html_of(i)) for i in side.tolist()]
            for side in _near(order_N, stops[name][stop][1], SHOWN)
        )
        shown.near = {"at": shown.at, "above": above, "below": below}

    def keep(_: Explorer, at: list, buffers: list) -> None:
        shown.done = ""  # or the same words again would be no news to the page
        name, stop = at
        threshold, count, _ = stops[name][stop]
        words = f"by hand, by {name}: {_in_words(count, len(difficulty_N), threshold)}"
        try:
            choice.keep(hard_set.select(difficulty_N, threshold=threshold), path, words)
            shown.done = f"kept in {path.name}: {words}"
        except OSError as error:  # or the reader would believe it kept
            shown.done = f"not kept: {error}"

    shown.observe(moved, "at")
    shown.on_msg(keep)
    moved()
    return shown


def offline_explorer(
    scores: hard_set.Scores,
    documents: tuple[np.ndarray, list[str]],
    text_of: Callable[[int], str],
    threshold: float,
) -> str:
    """The same as HTML that needs no kernel, with the texts of some windows, more of them near
    `threshold`. Its counts agree with numpy to the window."""
    difficulty_N, order_N = scores.difficulty_N, _order(scores.difficulty_N)
    numbers, m = _numbers(scores, documents, threshold), len(order_N)
    name, stop = numbers["at"]
    nearest, near = (
        np.concatenate(_near(np.arange(m), numbers["stops"][name][stop][1], shown)).tolist()
        for shown in (SHOWN, 3 * SHOWN)
    )
    # in no order, so that those left out for want of room are from everywhere
    spread = np.random.default_rng(0).permutation(np.linspace(m // 2, m - 1, 24).astype(int))
    cards = {}
    for rank in [*nearest, *spread.tolist(), *near]:
        i = int(order_N[rank])
        if sum(map(len, cards.values())) < EMBEDDED:
            cards[rank] = _card(i, difficulty_N[i], text_of(i).replace(LEGEND, ""))
    return report.explorer(numbers | {"texts": sorted(cards.items())})


def _numbers(
    scores: hard_set.Scores, documents: tuple[np.ndarray, list[str]], threshold: float
) -> dict:
    """What the explorer shows. A stop is [threshold, windows at or above it, how many of those are
    of each source]; `at` is the stop that `threshold` has. `known` windows have a difficulty."""
    order_N, n = _order(scores.difficulty_N), len(scores.difficulty_N)
    known_N, m = scores.difficulty_N[order_N], len(order_N)
    line = int(np.searchsorted(known_N, known_N.dtype.type(threshold)))
    start = _shortest(known_N, line) if line < m else float(threshold)
    hardest = np.clip(np.round(np.arange(1, 201) / 200 * n).astype(int), 1, m)  # 0.5 %, 1 % …
    # windows equally difficult are on one side of the line
    lines = np.unique(np.searchsorted(known_N, known_N[m - hardest]))
    shares = sorted({*(_shortest(known_N, i) for i in lines), start}, reverse=True)
    grid = _ticks(known_N, 200)
    thresholds = sorted({*grid, start})
    sources = _by_source(order_N, *documents)
    return {
        "stops": {
            "threshold": _stops(known_N, thresholds, sources),
            "share": _stops(known_N, shares, sources),
        },
        "at": ["threshold", thresholds.index(start)],
        "said": _in_words(m - line, n, start),
        "windows": n,
        "known": m,
        "sources": [[html.escape(name), len(ranks)] for name, ranks in sources.items()],
        "pictures": [
            _histogram(known_N, grid[0], grid[-1]),
            _square(scores.teacher_loss_N[order_N], scores.student_loss_N[order_N]),
        ],
        "legend": LEGEND,
        "texts": [],
    }


def _ticks(values_N: np.ndarray, count: int) -> list[float]:
    """Round numbers, `count` or fewer, over all values but 1 in 1,000 on each side."""
    ends = nonsingular(*np.quantile(values_N, [0.001, 0.999]), expander=0.1, tiny=1e-5)
    return [float(f"{x:.9g}") for x in MaxNLocator(count).tick_values(*ends)]


def _stops(known_N: np.ndarray, thresholds_S: list[float], sources: dict) -> list[list]:
    lines_S = np.searchsorted(known_N, np.array(thresholds_S, known_N.dtype))
    counts_S = (len(known_N) - lines_S).tolist()
    by_source = [(len(r) - np.searchsorted(r, lines_S)).tolist() for r in sources.values()]
    return [
        list(stop)
        for stop in zip(thresholds_S, counts_S, np.transpose(by_source).tolist(), strict=True)
    ]


def _histogram(known_N: np.ndarray, low: float, high: float) -> dict:
    """Bars as [x, y, height, ink, difficulty in the middle]; the line at a threshold is `line`,
    moved by `zero` + threshold · `nat`. What lies outside is in the last bars."""
    counts, _ = np.histogram(known_N.clip(low, high), BINS, (low, high))
    width, heights = (high - low) / BINS, (counts / counts.max()).round(3).tolist()
    return {
        "size": [BINS, 1],
        "rects": [[i, 1 - h, h, 1, low + width * (i + 0.5)] for i, h in enumerate(heights)],
        "line": "M0 0V1",
        "zero": [-low / width, 0],
        "nat": [1 / width, 0],
        "name": "histogram of difficulty, with the threshold as a line",
        "below": [low, "difficulty, nats per token", high],
    }


def _square(teacher_N: np.ndarray, student_N: np.ndarray) -> dict:
    """Windows by the loss of each model, darker where there are many; above the line, hard ones."""
    (t, *_, t_end), (s, *_, s_end) = _ticks(teacher_N, 10), _ticks(student_N, 10)
    across, up = (t_end - t) / SIDE, (s_end - s) / SIDE
    clipped = teacher_N.clip(t, t_end), student_N.clip(s, s_end)
    count, *_ = np.histogram2d(*clipped, SIDE, [(t, t_end), (s, s_end)])
    ink = (0.3 + 0.7 * np.log1p(count) / np.log1p(count.max())).round(2)
    return {
        "size": [SIDE, SIDE],
        "rects": [
            [x, SIDE - 1 - y, 1, ink[x, y], s + up * (y + 0.5) - t - across * (x + 0.5)]
            for x, y in np.argwhere(count).tolist()
        ],
        "line": f"M0 {SIDE - (t - s) / up}L{SIDE} {SIDE - (t_end - s) / up}",
        "zero": [0, 0],
        "nat": [0, -1 / up],
        "name": "student's loss against teacher's, hard windows above the line",
        "below": [f"loss: teacher’s {t}–{t_end} →", f"student’s {s}–{s_end} ↑"],
    }


def _by_source(
    order_N: np.ndarray, document_N: np.ndarray, sources: list[str]
) -> dict[str, np.ndarray]:
    """Source → the ranks of its windows, from easy to hard; the largest, and the others as one."""
    names, source_D = np.unique(sources, return_inverse=True)
    source_N = source_D[document_N][order_N]
    largest = np.argsort(-np.bincount(source_N), kind="stable")
    found = {str(names[i]): np.flatnonzero(source_N == i) for i in largest[:LISTED]}
    rest = np.flatnonzero(np.isin(source_N, largest[LISTED:]))
    return found | ({f"{len(largest) - LISTED} others": rest} if len(rest) else {})


def _shortest(known_N: np.ndarray, line: int) -> float:
    """The shortest decimal that has the same windows at or above it as the difficulty there."""
    value = float(known_N[line])
    decimals = (round(value, digits) for digits in range(3, 9))
    same = (x for x in decimals if np.searchsorted(known_N, known_N.dtype.type(x)) == line)
    return next(same, value)
