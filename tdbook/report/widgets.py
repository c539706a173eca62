"""What a reader can touch: texts coloured token by token, and the explorer of the hard set.

difference = student loss − teacher loss of a token, in nats; difficulty is its mean over a window.
What a slider can show was counted before, in counts.py. Legend: T tokens of a text, N windows.
"""

import html
import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import anywidget
import numpy as np
import traitlets

from tdbook.report import counts, pages
from tdbook.report.counts import Cuts
from tdbook.runs import choice
from tdlib import hard_set

LEVELS = (0.25, 0.75, 1.5, 3.0)  # nats; from these on a deeper ground, a thicker line: widgets.css
SHOWN = 3  # texts on each side of the line
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
    texts, begun, total = [], b"", 0.0  # bytes of a character that are here, their difference
    parts = [
        (part, d if i == 0 else 0.0)  # a token of several bytes or characters: its difference once
        for piece, d in zip(pieces, differences, strict=True)
        for i, part in enumerate(filter(None, re.split("(<0x[0-9A-F]{2}>)", piece)))
    ]
    for piece, d in [*parts, ("", 0.0)]:
        if len(piece) == 6 and piece.startswith("<0x"):
            begun, total = begun + bytes([int(piece[3:5], 16)]), total + d
            try:
                texts.append((begun.decode(), total))
            except UnicodeDecodeError:
                continue  # its other bytes follow
        else:
            if begun:  # cut off, at the edge of a window
                texts.append(("�", total))
            texts.append((piece.replace("▁", " ").replace("<eos>", "¶\n"), d))
        begun, total = b"", 0.0
    return texts[:-1]


def _span(text: str, difference: float) -> str:
    level = int(np.searchsorted(LEVELS, abs(difference), side="right"))
    if level == 0 or np.isnan(difference):
        return html.escape(text)
    kind = f"{'w' if difference > 0 else 'b'}{level}"  # short, since a report holds thousands
    return f'<i class="{kind}" title="{difference:+.2f}">{html.escape(text)}</i>'


WORSE, BETTER = (
    " ".join(_span(f"\u00a0{x:g}\u00a0", sign * x) for x in LEVELS) for sign in (1, -1)
)
LEGEND = (
    f'<p class="legend"><small>student against teacher, nats per token: {WORSE} and more worse '
    f"(solid line), {BETTER} and more better (dotted), plain: less than {LEVELS[0]:g} apart"
    f"</small></p><style>{pages.WIDGETS_CSS}</style>"
)


def _beside(order_M: np.ndarray, line: int, left: int, shown: int) -> tuple[list, list]:
    """The windows next to the line, above and below it, nearest first."""
    above, below = order_M[line : min(line + shown, left)], order_M[max(0, line - shown) : line]
    return above.tolist(), below[::-1].tolist()


def _card(i: int, scores: hard_set.Scores, text_of: Callable[[int], str]) -> str:
    difficulty = scores.student_loss_N[i] - scores.teacher_loss_N[i]  # of this window alone
    head = f"<p><small>window {i:,}, difficulty {difficulty:+.4f}</small></p>"
    return head + text_of(i).replace(LEGEND, "")


class Explorer(anywidget.AnyWidget):
    """The explorer in JupyterLab, as explorer.js has it. (A subclass is the way to make one.)"""

    _esm = f"{pages.SCRIPT}\nexport default {{render: hardSetInJupyter}};"
    _css = traitlets.Unicode().tag(sync=True)
    html = traitlets.Unicode().tag(sync=True)
    at = traitlets.List().tag(sync=True)  # where line and switches are, as counts.shown takes it
    near = traitlets.Dict().tag(sync=True)  # the texts beside the line
    done = traitlets.Unicode().tag(sync=True)  # what came of "keep"


def explorer(
    scores: hard_set.Scores,
    cuts: Cuts,
    junk_N: np.ndarray,
    kinds: dict[int, str],
    text_of: Callable[[int], str],
    rule: hard_set.Rule,
    path: Path,
) -> Explorer:
    """A threshold and a share that move together, starting with `rule`, and its other parameters:
    number of windows, their distribution, share in every group of `cuts`, texts on both sides of
    the line; "keep" writes the choice to `path`. `text_of` gives a window as HTML, `kinds` are
    the flags of `junk_N`."""
    numbers, orders = counts.numbers(scores, cuts, junk_N, kinds, rule, live=True)
    html_of = lru_cache(maxsize=64)(lambda i: _card(i, scores, text_of))
    # JupyterLab has the fonts of the reader's machine alone, and there may be none for Telugu
    css = f"{pages.font_face()} [lang=te] {{font: 1.1em/1.8 'Report Telugu', sans-serif}}"
    # thousands of coloured pieces: laid out only where they are seen, or a move would wait for them
    css += ".explorer .card {content-visibility: auto; contain-intrinsic-height: auto 10em}"
    widget = Explorer(_css=css, html=_page(numbers, [], {}), at=numbers["at"])

    def moved(_: dict | None = None) -> None:
        now, order_M = counts.shown(numbers, widget.at), orders[widget.at[2]]
        above, below = _beside(order_M, now["line"], now["left"], SHOWN)
        cards = {"above": [*map(html_of, above)], "below": [*map(html_of, below)]}
        widget.near = cards | {"at": widget.at}

    def keep(_: Explorer, at: list, buffers: list) -> None:
        widget.done = ""  # or the same words again would be no news to the page
        now = counts.shown(numbers, at)
        chosen_by = replace(rule, share=None, **now["rule"])
        words = f"by hand, by {at[0]}: {now['words']}"
        try:
            choice.keep(hard_set.choose(scores.difficulty_N, chosen_by, junk_N), path, words)
            widget.done = f"kept in {path.name}: {words}"
        except OSError as error:  # or the reader would believe it kept
            widget.done = f"not kept: {error}"

    widget.observe(moved, "at")
    widget.on_msg(keep)
    moved()
    return widget


def offline_explorer(
    scores: hard_set.Scores,
    cuts: Cuts,
    junk_N: np.ndarray,
    kinds: dict[int, str],
    text_of: Callable[[int], str],
    rule: hard_set.Rule,
) -> str:
    """The same as HTML that needs no kernel, with the texts of some windows, more of them near the
    line of `rule`. Its counts agree with numpy to the window."""
    numbers, orders = counts.numbers(scores, cuts, junk_N, kinds, rule, live=False)
    now, order_M = counts.shown(numbers, numbers["at"]), orders[numbers["at"][2]]
    above, below = _beside(order_M, now["line"], now["left"], SHOWN)
    near = itertools.chain(*_beside(order_M, now["line"], now["left"], 3 * SHOWN))
    m = len(order_M)
    spread = order_M[np.linspace(m // 2, m - 1, 24).astype(int)]
    # in no order, so that those left out for want of room are from everywhere
    spread = np.random.default_rng(0).permutation(spread).tolist()
    cards = {}
    for i in [*above, *below, *spread, *near]:
        if sum(map(len, cards.values())) < EMBEDDED:
            cards[i] = _card(i, scores, text_of)
    # the place of each among all, and among those without junk: −1 where it is junk
    places = []
    for order_M in orders:
        at = np.flatnonzero(np.isin(order_M, [*cards]))
        places.append(dict(zip(order_M[at].tolist(), at.tolist(), strict=True)))
    texts = sorted([[each.get(i, -1) for each in places], card] for i, card in cards.items())
    sides = {"above": above, "below": below}
    beside = {side: [cards[i] for i in some if i in cards] for side, some in sides.items()}
    return _page(numbers, texts, beside)


def _page(numbers: dict, texts: list, beside: dict[str, list[str]]) -> str:
    """The explorer as HTML; `texts`: places and card of each, `beside`: cards of the start."""
    embedded = {name: numbers[name] for name in ("views", "tokens", "presets", "at")}
    start = {"shown": counts.shown(numbers, numbers["at"]), "legend": LEGEND, "beside": beside}
    return pages.explorer(numbers | start, embedded | {"texts": texts})
