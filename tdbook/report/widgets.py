"""What a reader can touch: texts coloured token by token, and the explorer of the hard set.

difference = student loss − teacher loss of a token, in nats; difficulty is its mean over a window.
What the explorer shows at every stop of its sliders is counted once, when it opens: a move is no
more than a look into arrays, on any number of windows. A view is one setting of the two switches:
junk left out or not, and how many of the hardest are dropped as noise. A stop is a threshold;
`line` windows of a view lie below it, those from there to `left` are hard. Legend: T tokens of a
text, N windows, M in a view from easy to hard, S stops, G groups.
"""

import codecs
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import anywidget
import numpy as np
import torch
import traitlets
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import nonsingular

from tdbook.corpus.tokenizer import Tokenizer
from tdbook.export import inference, llama_cpp
from tdbook.report import pages, words
from tdlib import generate, hard_set
from tdlib.model import Llama

LEVELS = (0.25, 0.75, 1.5, 3.0)  # nats; from these on a deeper ground, a thicker line: widgets.css
BYTE = re.compile(b"<0x([0-9A-F]{2})>")  # a piece, or part of one
LISTED = 20  # groups of a cut; of more, the largest
SHOWN = 3  # texts on each side of the line
CLIPS = (0.005, 0.01, 0.02)  # of the switch in JupyterLab
EMBEDDED = 200_000  # characters of text in the mailed report, at most, a report being under 1 MB
SHARES = np.arange(1, 201) / 200  # positions of the slider of shares


def text_html(pieces: list[str], difference_T: np.ndarray) -> str:
    """SentencePiece pieces as text, each on a ground of its own difference, with a legend line.
    Nothing stands between two pieces: a Telugu syllable cut in two is still shaped as one."""
    spans = _characters(pieces, difference_T.tolist())
    return COLOURED.render(spans=spans, levels=LEVELS) + LEGEND


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


COLOURED = pages.environment().get_template("coloured.html.j2")
LEGEND = pages.environment().get_template("legend.html.j2").render(levels=LEVELS)


@torch.no_grad()
def rounding(model: Llama, path: Path, lines: list, tokenizer: Tokenizer, new: int) -> str:
    """HTML: lines of ids, under each where the likeliest next piece of a model and of its file are
    not the same, with the probabilities by both; and `new` greedy tokens after the first line's."""
    file, start, shown = llama_cpp.Model(path), lines[0][:8], []
    for ids in lines:
        p_TV, q_TV = np.exp(inference.log_p(model, ids[:-1])), np.exp(file.logprobs(ids[:-1]))
        top_T2 = np.stack([p_TV.argmax(1), q_TV.argmax(1)], 1)
        changed_T, pieces, rows = np.diff(top_T2)[:, 0] != 0, tokenizer.pieces(ids), []
        for t in np.flatnonzero(changed_T):
            word = "".join(pieces[: t + 1]).rpartition("▁")[2]
            picks = [(tokenizer.pieces([ids[t], k])[-1], p_TV[t, k], q_TV[t, k]) for k in top_T2[t]]
            rows.append((word, pieces[t + 1], picks))
        shown.append(([*_characters(pieces, [0, *changed_T])], rows, len(changed_T)))
    texts = [start + generate.generate(model, start, new), start + file.generate(start, new)]
    apart_T = np.not_equal(*texts).cumsum()
    texts = [_characters(tokenizer.pieces(ids), apart_T) for ids in texts]
    return pages.environment().get_template("rounding.html.j2").render(lines=shown, texts=texts)


@dataclass(frozen=True)
class Explored:
    """What an explorer is of, and the rule that it starts with."""

    scores: hard_set.Scores
    cuts: dict[str, tuple[list[str], np.ndarray]]  # name → names of its groups, each window's group
    junk_N: np.ndarray  # not 0: a window that may be left out
    text_of: Callable[[int], str]  # a window as HTML
    rule: hard_set.Rule


def numbers_of(explored: Explored, clips: tuple = ()) -> tuple[dict, list[np.ndarray]]:
    """All numbers of the explorer; and the windows from easy to hard, of all and without junk."""
    difficulty_N, rule = explored.scores.difficulty_N, explored.rule
    known = np.argsort(difficulty_N, kind="stable")[: np.isfinite(difficulty_N).sum()]
    known_M, clean_M = difficulty_N[known], explored.junk_N[known] == 0
    orders = [known, known[clean_M]] if 0 < clean_M.sum() < len(clean_M) else [known]
    ends = nonsingular(*np.quantile(known_M, [0.001, 0.999]), expander=0.1, tiny=1e-5)
    grid = [float(f"{x:.9g}") for x in MaxNLocator(200).tick_values(*ends)]  # round numbers
    thresholds, clips = sorted({*grid, rule.threshold}), sorted({0.0, *clips, rule.clip})
    cuts = {name: _largest(*cut, known) for name, cut in explored.cuts.items()}
    kind = "windows" if len(known) == len(difficulty_N) else "scored windows"
    low, high, views, pictures = grid[0], grid[-1], [], []
    for order_M in orders:  # what lies outside is in the picture's last bars
        counts, _ = np.histogram(difficulty_N[order_M].clip(low, high), 60, (low, high))
        heights = (counts / counts.max()).round(3).tolist()
        pictures.append({"heights": heights, "low": low, "high": high})
        groups = [(len(names), group_N[order_M]) for names, group_N in cuts.values()]
        given = thresholds, groups, kind
        views.append([_view(difficulty_N[order_M], clip, *given) for clip in clips])
    switches = [int(rule.leave_out_junk and len(views) > 1), clips.index(rule.clip)]
    numbers = {"clips": clips, "cuts": [[name, names] for name, (names, _) in cuts.items()]}
    numbers |= {"views": views, "pictures": pictures}
    return numbers | {"at": ["threshold", thresholds.index(rule.threshold), *switches]}, orders


def shown(numbers: dict, at: list) -> dict:
    """What is shown `at` a slider, its position, junk left out (0 or 1), number of the clip."""
    slider, position, junk, clip = at
    view = numbers["views"][junk][clip]
    stop = view[slider][position]
    rule = {"threshold": view["stops"][stop], "leave_out_junk": bool(junk), "clip": view["clip"]}
    now = {name: view[name][stop] for name in ("line", "lost", "words")}
    now |= {"rule": rule, "groups": np.sum(view["groups"][stop:], 0, dtype=int).tolist()}
    return now | {name: view[name] for name in ("left", "cap", "all")}


def _view(known_M: np.ndarray, clip: float, thresholds: list, groups: list, kind: str) -> dict:
    """Stops, positions of both sliders, and counts, of windows from easy to hard."""
    m = len(known_M)
    # as hard_set.select has it: of the hardest, all that are as hard as one that stays, stay
    cap = known_M[m - 1 - min(round(clip * m), m - 1)]
    left = int(np.searchsorted(known_M, cap, "right"))
    hardest = np.round(SHARES * m).astype(int).clip(1, left)
    shares = known_M[left - hardest].tolist()
    stops = sorted({*thresholds, *shares})
    line_S = np.searchsorted(known_M[:left], np.array(stops, known_M.dtype))
    lost_M = np.fmax(known_M, 0, dtype=np.float64)
    lost_S = lost_M[:left].sum() - np.concatenate([[0], lost_M[:left].cumsum()])[line_S]
    hard_S = left - line_S
    text = "{:,} of {:,} {} ({:.1%}) are at least {:.9g} nats harder for the student"
    half_percents = np.round(200 * hard_S / m).astype(int).clip(1, 200)
    apart = np.abs(np.subtract.outer(stops, thresholds))
    places = [np.flatnonzero(of_M == g) for size, of_M in groups for g in range(size)]
    hard_SG = np.array([np.searchsorted(p, left) - np.searchsorted(p, line_S) for p in places]).T
    return {
        **{"windows": m, "clip": clip, "left": left, "cap": float(cap), "stops": stops},
        "line": line_S.tolist(),
        "words": [text.format(k, m, kind, k / m, x) for k, x in zip(hard_S, stops, strict=True)],
        "lost": (lost_S / (lost_M.sum() or 1)).clip(0).round(5).tolist(),
        "threshold": [stops.index(threshold) for threshold in thresholds],
        "share": [stops.index(threshold) for threshold in shares],
        # where each slider stands when the other is moved
        "near": {"threshold": apart.argmin(1).tolist(), "share": (half_percents - 1).tolist()},
        # of each group's windows, those that a stop has and the next has not: small numbers
        "groups": (-np.diff(hard_SG, axis=0, append=0)).tolist(),
        "all": [len(place) for place in places],
    }


def _largest(names: list[str], group_N: np.ndarray, order_M: np.ndarray) -> tuple:
    """A cut of many groups with the largest of them, and the others as one."""
    if len(names) <= LISTED:
        return names, group_N
    size_G = np.bincount(group_N[order_M], minlength=len(names))
    largest = np.argsort(-size_G, kind="stable")[:LISTED]
    new_G = np.full(len(names), LISTED, np.uint8)
    new_G[largest] = np.arange(LISTED)
    return [*(names[i] for i in largest), f"{len(names) - LISTED} others"], new_G[group_N]


def _card(i: int, explored: Explored) -> str:
    difficulty = explored.scores.student_loss_N[i] - explored.scores.teacher_loss_N[i]
    head = f"<p><small>window {i:,}, difficulty {difficulty:+.4f}</small></p>"
    return head + explored.text_of(i).replace(LEGEND, "")


class Explorer(anywidget.AnyWidget):
    """The explorer in JupyterLab, as explorer.js has it. (A subclass is the way to make one.)"""

    _esm = f"{pages.SCRIPT}\nexport default {{render: hardSetInJupyter}};"
    _css = traitlets.Unicode().tag(sync=True)
    html = traitlets.Unicode().tag(sync=True)
    at = traitlets.List().tag(sync=True)  # where line and switches are, as `shown` takes it
    near = traitlets.Dict().tag(sync=True)  # the texts beside the line
    done = traitlets.Unicode().tag(sync=True)  # what came of "keep"


def explorer(explored: Explored, path: Path, then: str) -> Explorer:
    """The explorer in JupyterLab; "keep" writes the choice to `path`; `then` is what is due."""
    numbers, orders = numbers_of(explored, CLIPS)
    # JupyterLab has the fonts of the reader's machine alone, and there may be none for Telugu
    css = f"{pages.FONT_FACE} [lang=te] {{font: 1.1em/1.8 'Report Telugu', sans-serif}}"
    # thousands of coloured pieces: laid out only where they are seen, or a move would wait for them
    css += ".explorer .card {content-visibility: auto; contain-intrinsic-height: auto 10em}"
    widget = Explorer(_css=css, html=_page(numbers, [], {}), at=numbers["at"])

    def moved(_: dict | None = None) -> None:
        now, order_M = shown(numbers, widget.at), orders[widget.at[2]]
        line = now["line"]
        above = order_M[line : min(line + SHOWN, now["left"])]
        sides = {"above": above, "below": order_M[max(0, line - SHOWN) : line][::-1]}
        cards = {side: [_card(i, explored) for i in some.tolist()] for side, some in sides.items()}
        widget.near = cards | {"at": widget.at}

    def keep(_: Explorer, at: list, buffers: list) -> None:
        widget.done = ""  # or the same words again would be no news to the page
        now = shown(numbers, at)
        rule = replace(explored.rule, share=None, **now["rule"])
        chosen = hard_set.choose(explored.scores.difficulty_N, rule, explored.junk_N)
        how = f"by hand, by {at[0]}: {words.say('choice', chosen=chosen, base='the student')}"
        try:
            hard_set.keep(chosen, path, how)
            most = "More than half of the windows are hardly a hard set: the plan takes 15–25 %. "
            widget.done = f"kept in {path.name}: {how}. {most * (chosen.share > 0.5)}{then}"
        except OSError as error:  # or the reader would believe it kept
            widget.done = f"not kept: {error}"

    widget.observe(moved, "at")
    widget.on_msg(keep)
    moved()
    return widget


def offline_explorer(explored: Explored) -> str:
    """The same as HTML that needs no kernel, with the texts of some windows."""
    numbers, orders = numbers_of(explored)
    now, order_M = shown(numbers, numbers["at"]), orders[numbers["at"][2]]
    m, line = len(order_M), now["line"]
    near = range(max(0, line - SHOWN), min(line + SHOWN, now["left"]))
    # in no order, so that those left out for want of room are from everywhere
    spread = np.random.default_rng(0).permutation(np.linspace(m // 2, m - 1, 24).astype(int))
    cards = {}  # by place
    for i in [*near, *spread.tolist()]:
        if sum(map(len, cards.values())) < EMBEDDED:
            cards[i] = _card(order_M[i], explored)
    texts = []  # the place of each among all, and among those without junk: −1 where it is junk
    for i, card in sorted(cards.items()):
        places = (np.flatnonzero(each_M == order_M[i]).tolist() for each_M in orders)
        texts.append([[[*place, -1][0] for place in places], card])
    sides = {"above": range(line, line + SHOWN), "below": range(line - 1, line - 1 - SHOWN, -1)}
    beside = {side: [cards[i] for i in places if i in cards] for side, places in sides.items()}
    return f'<div class="offline">{_page(numbers, texts, beside)}</div>'


def _page(numbers: dict, texts: list, beside: dict[str, list[str]]) -> str:
    """The explorer as HTML; `texts`: places and card of each, `beside`: cards of the start."""
    embedded = {name: numbers[name] for name in ("views", "at")}
    start = {"shown": shown(numbers, numbers["at"]), "beside": beside, "legend": LEGEND}
    template = pages.environment().get_template("explorer.html.j2")
    return template.render(n=numbers, embedded=embedded | {"texts": texts}, **start)
