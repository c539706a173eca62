"""What a reader can touch: texts coloured token by token, and the explorers of the hard set.

difference = student loss − teacher loss of a token, in nats; difficulty is its mean over a window.
Legend: T tokens of a text, N windows.
"""

import html
from collections.abc import Callable
from functools import lru_cache

import ipywidgets as w
import numpy as np

from tdlib import hard_set, report
from tdlib.plots import EASY, HARD

# From these differences on, in nats: a deeper ground and a thicker line. Below the first, plain.
LEVELS = (0.25, 0.75, 1.5, 3.0)
WORSE = ("#fbe3dc", "#f7c4b5", "#f19f88", "#ea7c5f")  # black on the deepest: contrast 6.8
BETTER = ("#deebf7", "#bcd9ee", "#92c2e2", "#6aabd5")
SHOWN = 3  # texts on each side of the line
STOPS = 500  # places of the offline slider
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
    for piece, d in zip([*pieces, ""], [*differences, 0.0], strict=True):
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
    grounds, ink, line = (WORSE, HARD, "solid") if difference > 0 else (BETTER, "#1b5e8c", "dotted")
    style = f"color:#111;background-color:{grounds[level - 1]};border-bottom:{level}px {line} {ink}"
    return f'<span style="{style}" title="{difference:+.2f}">{html.escape(text)}</span>'


LEGEND = (
    '<p style="margin:.3em 0;opacity:.85"><small>student against teacher, nats per token: '
    + " ".join(_span(f"\u00a0{x:g}\u00a0", x) for x in LEVELS) + " and more worse (solid line), "
    + " ".join(_span(f"\u00a0{x:g}\u00a0", -x) for x in LEVELS) + " and more better (dotted), "
    f"plain: less than {LEVELS[0]:g} apart</small></p>"
)  # fmt: skip


def _order(difficulty_N: np.ndarray) -> np.ndarray:
    """Window numbers from easy to hard, without those that have no difficulty."""
    return np.argsort(difficulty_N, kind="stable")[: np.isfinite(difficulty_N).sum()]


def _near(order_N: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The windows next to the line, above and below it, nearest first; `count` of all are hard."""
    line = len(order_N) - count
    return order_N[line : line + SHOWN], order_N[max(0, line - SHOWN) : line][::-1]


def _card(i: int, difficulty: float, text: str) -> str:
    return f"<p><small>window {i:,}, difficulty {difficulty:+.4f}</small></p>{text}"


def _in_words(count: int, windows: int, threshold: float) -> str:
    share = f"{count:,} of {windows:,} windows ({100 * count / windows:.1f}%)"
    return f"{share} are at least {threshold:g} nats harder for the student"


def explorer(
    student_loss_N: np.ndarray,
    teacher_loss_N: np.ndarray,
    text_of: Callable[[int], str],
    keep: Callable[[hard_set.HardSet], None],
    share: float = 0.2,
) -> w.VBox:
    """A threshold and a share that move together, the distribution, and the texts on both sides of
    the line. `text_of` gives a window as HTML; `keep` is called with the choice by the button."""
    difficulty_N = np.asarray(student_loss_N) - np.asarray(teacher_loss_N)
    order_N = _order(difficulty_N)
    known_N = difficulty_N[order_N].astype(float)
    step = float(10.0 ** np.floor(np.log10(max(np.ptp(known_N), 1e-6) / 100)))
    low, high = round(known_N[0] // step * step, 12), round((known_N[-1] // step + 1) * step, 12)
    form = {"continuous_update": False, "layout": w.Layout(width="95%")}
    by_threshold = w.FloatSlider(
        low, min=low, max=high, step=step, description="threshold", readout_format=".4f", **form
    )
    by_share = w.FloatSlider(
        share, min=0.005, max=1, step=0.005, description="share", readout_format=".1%", **form
    )
    picture, said, texts, done = (w.HTML() for _ in range(4))
    button = w.Button(description="keep", tooltip="write this choice for 03")
    bins = np.histogram(known_N.clip(*np.quantile(known_N, [0.001, 0.999])), bins=60)
    html_of = lru_cache(maxsize=64)(lambda i: text_of(i).replace(LEGEND, ""))
    state = {"chosen": None, "moving": False}

    def moved(change: dict) -> None:
        if state["moving"]:
            return
        if change["owner"] is by_share:
            chosen = hard_set.select(difficulty_N, share=by_share.value)
            other, value = by_threshold, chosen.threshold
        else:
            chosen = hard_set.select(difficulty_N, threshold=by_threshold.value)
            other, value = by_share, chosen.share
        # the moved slider stays where it is, or its keys would be stuck between two windows
        state.update(chosen=chosen, moving=True)
        other.value = value
        state["moving"] = False
        count = len(chosen.windows_K)
        picture.value = _histogram(*bins, chosen.threshold)
        said.value = f"<b>{_in_words(count, len(difficulty_N), chosen.threshold)}</b>"
        texts.value = LEGEND + "".join(
            f"<p><b>Just {side} the line</b></p>"
            + "".join(_card(i, difficulty_N[i], html_of(i)) for i in near.tolist())
            for side, near in zip(("above", "below"), _near(order_N, count), strict=True)
        )
        done.value, button.disabled = "", count == 0

    def kept(_: w.Button) -> None:
        try:
            keep(state["chosen"])
            done.value = f"kept: {said.value}"
        except OSError as error:  # or the reader would believe it kept
            done.value = f"<b>not kept: {html.escape(str(error))}</b>"

    for slider in (by_threshold, by_share):
        slider.observe(moved, "value")
    button.on_click(kept)
    moved({"owner": by_share})
    return w.VBox([by_threshold, by_share, picture, said, w.HBox([button, done]), texts])


def _histogram(counts: np.ndarray, edges: np.ndarray, threshold: float) -> str:
    """60 bins as SVG, cheap to draw again: all of them, and over them those right of the line."""
    x = min(max(600 * (threshold - edges[0]) / max(edges[-1] - edges[0], 1e-9), 0), 600)
    bars = "".join(
        f'<rect x="{10 * i}" y="{105 - h:.1f}" width="9.6" height="{h:.1f}"/>'
        for i, h in enumerate(100 * counts / max(1, counts.max()))
    )
    right = f'x="{x:.1f}" width="{600 - x:.1f}" height="126" viewBox="{x:.1f} 0 {600 - x:.1f} 126"'
    return (
        '<svg viewBox="-2 0 604 126" role="img" fill="currentColor" font-size="12" width="100%" '
        f'style="max-width:600px" aria-label="windows by difficulty, line at {threshold:.4f} nats">'
        f'<g fill="{EASY}">{bars}</g><svg {right} fill="{HARD}">{bars}</svg>'
        f'<path d="M{x:.1f} 0V108" stroke="currentColor" stroke-width="2"/>'
        f'<text y="122">{edges[0]:.3f}</text><text x="300" y="122" text-anchor="middle">difficulty '
        f'(nats per token)</text><text x="600" y="122" text-anchor="end">{edges[-1]:.3f}</text>'
        "</svg>"
    )


def offline_explorer(
    difficulty_N: np.ndarray, text_of: Callable[[int], str], threshold: float
) -> str:
    """A threshold slider as HTML that needs no kernel: counts that agree with numpy to the window,
    and the texts of some windows, more of them near `threshold`, where it starts."""
    difficulty_N = np.asarray(difficulty_N)
    order_N = _order(difficulty_N)
    known_N, m = difficulty_N[order_N], len(order_N)
    # a stop is the first rank of its hard side; windows equally difficult are on one side
    start = min(np.searchsorted(known_N, known_N.dtype.type(threshold)), m - 1)
    ranks = [*np.linspace(0, m - 1, STOPS).astype(int), start]
    lines = np.unique(np.searchsorted(known_N, known_N[ranks]))
    at = int(np.searchsorted(lines, start, side="right")) - 1
    stops = [[_shortest(known_N, line), m - int(line)] for line in lines]
    near = np.concatenate(_near(np.arange(m), stops[at][1])).tolist()
    cards = {}
    for rank in [*near, *np.linspace(m // 2, m - 1, 24).astype(int).tolist()]:
        i = int(order_N[rank])
        if sum(map(len, cards.values())) < EMBEDDED:
            cards[rank] = _card(i, difficulty_N[i], text_of(i).replace(LEGEND, ""))
    return report.explorer(stops, sorted(cards.items()), len(difficulty_N), m, at, LEGEND)


def _shortest(known_N: np.ndarray, line: int) -> float:
    """The shortest decimal that has the same windows at or above it as the difficulty there."""
    value = float(known_N[line])
    decimals = (round(value, digits) for digits in range(3, 9))
    same = (x for x in decimals if np.searchsorted(known_N, known_N.dtype.type(x)) == line)
    return next(same, value)
