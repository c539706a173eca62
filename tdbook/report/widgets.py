"""What a reader can touch: texts coloured token by token, and the explorer of the hard set.

difference = student loss − teacher loss of a token, in nats; difficulty is its mean over a window.
What a slider can show was counted before, in counts.py. Legend: T tokens of a text, N windows.
"""

import codecs
import html
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anywidget
import numpy as np
import traitlets

from tdbook.report import counts, pages
from tdbook.report.counts import Explored
from tdbook.runs import choice
from tdlib import hard_set

LEVELS = (0.25, 0.75, 1.5, 3.0)  # nats; from these on a deeper ground, a thicker line: widgets.css
BYTE = re.compile(b"<0x([0-9A-F]{2})>")  # a piece, or part of one
SHOWN = 3  # texts on each side of the line
CLIPS = (0.005, 0.01, 0.02)  # of the switch in JupyterLab
EMBEDDED = 200_000  # characters of text in the mailed report, at most, a report being under 1 MB


def text_html(pieces: list[str], difference_T: np.ndarray | None = None) -> str:
    """SentencePiece pieces as text, each on a ground of its own difference, with a legend line.
    Nothing stands between two pieces: a Telugu syllable cut in two is still shaped as one."""
    differences_T = np.zeros(len(pieces)) if difference_T is None else np.asarray(difference_T)
    body = "".join(_span(text, d) for text, d in _characters(pieces, differences_T.tolist()))
    body = f'<div lang="te" style="white-space:pre-wrap">{body}</div>'
    return body if difference_T is None else body + LEGEND


def _characters(pieces: list[str], differences: list[float]) -> Iterator[tuple[str, float]]:
    """Whole characters, each with the sum of its bytes' differences; � where bytes are missing."""
    decoder, total = codecs.getincrementaldecoder("utf-8")("replace"), 0.0
    for piece, difference in zip(pieces, differences, strict=True):
        total += difference
        raw = piece.replace("▁", " ").replace("<eos>", "¶\n").encode()
        text = decoder.decode(BYTE.sub(lambda byte: bytes.fromhex(byte[1].decode()), raw))
        if text:
            yield text, total
            total = 0.0
    yield decoder.decode(b"", final=True), total


def _span(text: str, difference: float) -> str:
    level = int(np.searchsorted(LEVELS, abs(difference), side="right"))
    if level == 0 or np.isnan(difference):
        return html.escape(text)
    kind = f"{'w' if difference > 0 else 'b'}{level}"  # short, since a report holds thousands
    return f'<i class="{kind}" title="{difference:+.2f}">{html.escape(text)}</i>'


LEGEND = pages.environment().get_template("legend.html.j2").render(levels=LEVELS)


def _card(i: int, explored: Explored) -> str:
    difficulty = explored.scores.student_loss_N[i] - explored.scores.teacher_loss_N[i]
    head = f"<p><small>window {i:,}, difficulty {difficulty:+.4f}</small></p>"
    return head + explored.text_of(i).replace(LEGEND, "")


class Explorer(anywidget.AnyWidget):
    """The explorer in JupyterLab, as explorer.js has it. (A subclass is the way to make one.)"""

    _esm = f"{pages.SCRIPT}\nexport default {{render: hardSetInJupyter}};"
    _css = traitlets.Unicode().tag(sync=True)
    html = traitlets.Unicode().tag(sync=True)
    at = traitlets.List().tag(sync=True)  # where line and switches are, as counts.shown takes it
    near = traitlets.Dict().tag(sync=True)  # the texts beside the line
    done = traitlets.Unicode().tag(sync=True)  # what came of "keep"


def explorer(explored: Explored, path: Path) -> Explorer:
    """The explorer in JupyterLab; "keep" writes the choice to `path`."""
    numbers, orders = counts.numbers(explored, CLIPS)
    # JupyterLab has the fonts of the reader's machine alone, and there may be none for Telugu
    css = f"{pages.FONT_FACE} [lang=te] {{font: 1.1em/1.8 'Report Telugu', sans-serif}}"
    # thousands of coloured pieces: laid out only where they are seen, or a move would wait for them
    css += ".explorer .card {content-visibility: auto; contain-intrinsic-height: auto 10em}"
    widget = Explorer(_css=css, html=_page(numbers, [], {}), at=numbers["at"])

    def moved(_: dict | None = None) -> None:
        now, order_M = counts.shown(numbers, widget.at), orders[widget.at[2]]
        line = now["line"]
        above = order_M[line : min(line + SHOWN, now["left"])]
        sides = {"above": above, "below": order_M[max(0, line - SHOWN) : line][::-1]}
        cards = {side: [_card(i, explored) for i in some.tolist()] for side, some in sides.items()}
        widget.near = cards | {"at": widget.at}

    def keep(_: Explorer, at: list, buffers: list) -> None:
        widget.done = ""  # or the same words again would be no news to the page
        now = counts.shown(numbers, at)
        rule = replace(explored.rule, share=None, **now["rule"])
        chosen = hard_set.choose(explored.scores.difficulty_N, rule, explored.junk_N)
        words = f"by hand, by {at[0]}: {now['words']}"
        try:
            choice.keep(chosen, path, words)
            widget.done = f"kept in {path.name}: {words}"
        except OSError as error:  # or the reader would believe it kept
            widget.done = f"not kept: {error}"

    widget.observe(moved, "at")
    widget.on_msg(keep)
    moved()
    return widget


def offline_explorer(explored: Explored) -> str:
    """The same as HTML that needs no kernel, with the texts of some windows."""
    numbers, orders = counts.numbers(explored)
    now, order_M = counts.shown(numbers, numbers["at"]), orders[numbers["at"][2]]
    m, line = len(order_M), now["line"]
    near = [i for k in range(3 * SHOWN) for i in (line + k, line - 1 - k) if 0 <= i < now["left"]]
    # in no order, so that those left out for want of room are from everywhere
    spread = np.random.default_rng(0).permutation(np.linspace(m // 2, m - 1, 24).astype(int))
    cards = {}  # by place
    for i in [*near[: 2 * SHOWN], *spread.tolist(), *near[2 * SHOWN :]]:
        if sum(map(len, cards.values())) < EMBEDDED:
            cards[i] = _card(order_M[i], explored)
    texts = []  # the place of each among all, and among those without junk: −1 where it is junk
    for i, card in sorted(cards.items()):
        places = (np.flatnonzero(each_M == order_M[i]).tolist() for each_M in orders)
        texts.append([[[*place, -1][0] for place in places], card])
    sides = {"above": range(line, line + SHOWN), "below": range(line - 1, line - 1 - SHOWN, -1)}
    beside = {side: [cards[i] for i in places if i in cards] for side, places in sides.items()}
    return _page(numbers, texts, beside)


def _page(numbers: dict, texts: list, beside: dict[str, list[str]]) -> str:
    """The explorer as HTML; `texts`: places and card of each, `beside`: cards of the start."""
    embedded = {name: numbers[name] for name in ("views", "at")}
    start = {"shown": counts.shown(numbers, numbers["at"]), "beside": beside, "legend": LEGEND}
    template = pages.environment().get_template("explorer.html.j2")
    return template.render(n=numbers, embedded=embedded | {"texts": texts}, **start)
