"""The book's figures: each function draws one claim from arrays and returns the Figure.

It never saves, shows or loads. The title states the finding with a number computed from what was
given; a model has one colour and marker everywhere. Losses: nats per token. Legend: N windows.
A figure is 4.5 inches wide, so that a phone shows its text large enough. pyplot does not know it,
so that a notebook shows it only once. First what all share: a model's look, axes, the forest plot.
"""

import itertools
import textwrap
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import fontpkg
import matplotlib as mpl
import numpy as np
import yaml
from matplotlib import font_manager, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from tdbook.analysis import intervals
from tdbook.analysis.verdict import Effect
from tdbook.runs.units import minus

font_manager.fontManager.addfont(str(fontpkg.path("Noto Sans Telugu")))
style.use(Path(__file__).with_suffix(".mplstyle"))
DATA = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
LOOKS, ROLES, INKS, BOX = DATA.values()
HARD, EASY, GREY, PLAN = INKS.values()
WIDTH = 4.5  # inches


def look(name: str) -> dict[str, str]:
    """Colour and marker of a model; one not listed has its own, always the same."""
    number = zlib.crc32(name.encode())
    ink = mpl.colors.to_hex(mpl.colormaps["tab20"](number % 20))
    return LOOKS.get(name, {"ink": ink, "form": "oXPDpdhv^><H"[number % 12]})


@dataclass(frozen=True)
class Mark:
    """A value with its 95 % interval, in the row of its name."""

    row: str
    value: float
    low: float
    high: float
    ink: str
    form: str = "o"
    filled: bool = True  # or hollow, its bar dotted
    note: str = ""  # beside it
    plan: tuple[float, float] | None = None  # from and to: the ground of its row


def forest(title: str, marks: Sequence[Mark], xlabel: str, keys=(), line=None) -> Figure:
    """Marks in the rows of their names, from the top, those of one row below each other."""
    rows: dict[str, list[Mark]] = {}
    for mark in marks:
        rows.setdefault(mark.row, []).append(mark)
    each = 0.15 + 0.11 * max(map(len, rows.values()))  # inches
    height = 0.4 + sum(each + 0.15 * (len(row) // 30) for row in rows)
    ax = _titled(title, height + 0.8 + 0.25 * -(-len(keys) // 2)).subplots()
    for i, in_row in enumerate(rows.values()):
        for k, mark in enumerate(in_row):
            _mark(ax, mark, i, i + 0.7 * (k - (len(in_row) - 1) / 2) / len(in_row))
    ax.set_yticks(range(len(rows)), [textwrap.fill(minus(row), 30) for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.margins(x=0.14)  # room for notes
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(textwrap.fill(xlabel, 44))
    if line is not None:
        ax.axvline(line, color="black", linewidth=1.2)
    if keys:
        ax.figure.legend(handles=keys, loc="outside lower center", ncols=2)
    return ax.figure


def _mark(ax: Axes, mark: Mark, row: int, y: float) -> None:
    dash, fill, edge = ("-", mark.ink, "w") if mark.filled else (":", "w", mark.ink)
    ax.plot([mark.low, mark.high], [y, y], dash, color=mark.ink, linewidth=2)
    ax.plot(mark.value, y, mark.form, markersize=7, markerfacecolor=fill, markeredgecolor=edge)
    if mark.plan:
        ax.barh(row, np.ptp(mark.plan), 0.9, min(mark.plan), color=PLAN, zorder=0)
    if mark.note:
        place = {"textcoords": "offset points", "va": "center", "bbox": BOX}
        ax.annotate(minus(mark.note), (np.fmax(mark.value, mark.high), y), (5, 0), **place)


def _titled(title: str, height: float) -> Figure:
    """A figure with so many inches below its title."""
    text = textwrap.fill(minus(title), 54, break_on_hyphens=False)
    figure = Figure(figsize=(WIDTH, height + 0.2 * (text.count("\n") + 1)), layout="constrained")
    figure.suptitle(text, x=0.01, ha="left", linespacing=1.15)
    return figure


def single(title: str, x: str, y: str) -> Axes:
    """The axes of a figure of one panel, with their labels."""
    ax = _titled(title, 3.1).subplots()
    ax.set(xlabel=textwrap.fill(x, 44), ylabel=y)
    return ax


def learning_curves(logs: Mapping[str, Sequence[Mapping]], baseline: dict | None = None) -> Figure:
    """Validation loss over training tokens, {name: rows of its log}; baselines are levels."""
    ends = {name: log[-1]["val/loss"] for name, log in logs.items()}
    best, levels = min(ends, key=ends.get), baseline or {}
    title = f"{best} ends {'lowest, ' if len(ends) > 1 else ''}at {ends[best]:.3f} nats per token"
    title += "".join(f", {ends[best] - y:+.3f} against {name}" for name, y in levels.items())
    ax = single(title, "training tokens", "validation loss\n(nats per token)")
    for (name, log), dash in zip(logs.items(), itertools.cycle(["-", "--", "-.", ":"])):
        ink, form = look(name).values()
        line = {"color": ink, "marker": form, "linestyle": dash, "linewidth": 1.8}
        line["markevery"] = max(1, len(log) // 8)
        points = [row["tokens"] for row in log], [row["val/loss"] for row in log]
        ax.plot(*points, label=name, **line)
    for name, y in levels.items():
        ax.axhline(y, color=look(name)["ink"], linestyle=(0, (6, 2)), linewidth=1.4, label=name)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.set_xlim(left=0)
    ax.figure.legend(loc="outside lower center", ncols=3)
    return ax.figure


def difficulty(teacher_N: np.ndarray, difficulty_N, threshold: float, found: Mapping) -> Figure:
    """How many windows lie where, by the teacher's loss and by difficulty; from the threshold on
    they are hard. `found`: selection.ease."""
    title = "Rank correlation {teacher[rank]:+.2f}: the hardest {share:.0%} of windows cost the "
    title += "teacher {teacher[hard]:.3f} nats per token, the rest {teacher[rest]:.3f}"
    ax = single(title.format(**found), "teacher's loss (nats per token)", "difficulty (nats)")
    both_2N = np.stack([teacher_N, difficulty_N])[:, ~np.isnan(difficulty_N)].astype(float)
    hard_N = both_2N[1] >= threshold
    low_2, high_2 = np.quantile(both_2N, [0.001, 0.999], axis=1)  # beyond them: at the edge
    both_2N = both_2N.clip(low_2[:, None], high_2[:, None])
    how = {"extent": np.stack([low_2 - 1e-6, high_2 + 1e-6], 1).ravel(), "gridsize": (36, 12)}
    inks = {"hard": ["#f3b5a8", HARD], "rest": [EASY, "black"]}
    for part, in_N in {"hard": hard_N, "rest": ~hard_N}.items():
        how["cmap"] = mpl.colors.LinearSegmentedColormap.from_list("", inks[part])
        ax.hexbin(*both_2N[:, in_N], bins="log", mincnt=1, **how)
        line = {"color": inks[part][1], "linestyle": "--", "label": f"{part}: the mean"}
        ax.axvline(found["teacher"][part], **line)
    ax.figure.legend(loc="outside lower center", ncols=2)
    return ax.figure


def quality(losses: Mapping, document_N: np.ndarray, teacher: str = "teacher") -> Figure:
    """Validation loss and 95 % interval of every model, by its losses of windows."""
    sizes = {name: intervals.of_seeds([loss_N], document_N) for name, loss_N in losses.items()}
    loss = {name: size.value for name, size in sizes.items()}
    best = min(loss.keys() - {teacher} or loss, key=loss.get)
    title = f"{best} has the lowest loss of the students: {loss[best]:.3f} nats per token"
    if teacher in loss:
        title += f", {loss[best] - loss[teacher]:+.3f} against the teacher"
    order = sorted(loss, key=loss.get)  # the best on top, and a line at the teacher's
    marks = [Mark(n, *sizes[n], **look(n), note=f"{loss[n]:.3f}") for n in order]
    x = "validation loss (nats per token; bars: 95 %)"
    return forest(title, marks, x, line=loss.get(teacher))


def maturity(shares: Mapping[str, Mapping[str, intervals.Interval]], title: str) -> Figure:
    """Which share of a gap each way closes, percent, by the length of the base's training; hollow:
    on windows drawn by chance."""
    marks, keys, inks = [], {}, {"adapter": "50m-hard", "weights": "teacher", "the": "50m"}
    for length, ways in shares.items():
        for way, x in ways.items():
            ink, filled = look(inks[way.split()[0]])["ink"], "random" not in way
            marks.append(Mark(length, *x, ink=ink, filled=filled))
            how = dict(color=ink, linestyle="", mfc=ink if filled else "w")
            keys[way] = Line2D([], [], marker="o", label=way, **how)
    x = "share of the gap to 120M that is closed, %; bars: 95 %"
    return forest(title, marks, x, [*keys.values()], line=0)


def effects(effects: Sequence[Effect], title: str) -> Figure:
    """A point and bar for the seeds' mean and its interval, the plan's range as a band."""
    how = [{"ink": ROLES[e.role][0], "plan": e.plan, "filled": e.seeds > 1} for e in effects]
    pairs = zip(effects, how, strict=True)
    marks = [Mark(e.what, *e.interval, **x, note=f"{e.interval.value:+.3f}") for e, x in pairs]
    inks = dict(map(ROLES.get, dict.fromkeys(e.role for e in effects))) | {PLAN: "the plan"}
    keys = [mpl.patches.Patch(color=ink, label=words) for ink, words in inks.items()]
    keys.append(Line2D([], [], marker="o", color=GREY, linestyle="", mfc="w", label="one seed"))
    return forest(title, marks, "nats (or share); bars: 95 %", keys, line=0)
