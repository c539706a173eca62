"""What all figures share: a model's look, and two forms, forest plots and lines.

A figure is 6 inches wide, narrower where it holds much text. pyplot does not know it, so that a
notebook shows it only once.
"""

import textwrap
import warnings
import zlib
from collections import Counter
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
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

TELUGU = str(fontpkg.path("Noto Sans Telugu"))
font_manager.fontManager.addfont(TELUGU)
FONTS = [font_manager.get_font(path) for path in (TELUGU, font_manager.findfont("DejaVu Sans"))]
style.use(Path(__file__).with_name("figures.mplstyle"))
# matplotlib leaves out a sign that no font has, with only a warning
warnings.filterwarnings("error", message=r"Glyph \d+ .* missing from")
DATA = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
LOOKS, ROLES, CUTS, PARTS = DATA.values()
LINES = ["-", "--", "-.", ":"]
HARD, EASY, GREY, DOTS = "#c8371b", "#c3c8ce", "#5f6770", "#8f969e"  # windows, not models
PLAN = "#f3dfa2"  # the ground of what the plan says
EVEN = {"color": "#777777", "linewidth": 1, "linestyle": "--"}  # a line to compare with
BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.7}
NOTE = {"va": "center", "fontsize": 8.5, "bbox": BOX}
LISTED = 20  # groups of a cut; of more, the largest
PHONE = 4.5  # inches: where panels hold much text, narrow enough for a phone to show it large
LOSS = "validation loss (nats per token)"


def colour(name: str) -> str:
    """The colour of a model; of one not listed, a shade of its kind or family, always the same."""
    if name in LOOKS:
        return LOOKS[name][0]
    shade, kind = zlib.crc32(name.encode()), name.split("-")[0]
    if name.endswith("-merged"):
        kind = "50m-hard-merged"
    elif "lora" in name or "adapter" in name or name.endswith(("-hard", "-random")):
        kind = "50m-hard"
    base, _ = LOOKS.get(kind) or (mpl.colormaps["tab10"](shade % 10), "")
    rgb = np.array(mpl.colors.to_rgb(base))
    return mpl.colors.to_hex(rgb + (1 - rgb) * (20 + shade % 41) / 100)  # 20 to 60 % lighter


def marker(name: str) -> str:
    """The marker of a model, which tells it apart where colours are not printed."""
    return LOOKS[name][1] if name in LOOKS else "oXPDpdhv^><H"[zlib.crc32(name.encode()) % 12]


@dataclass(frozen=True)
class Mark:
    """A value with its 95 % interval, in the row of its name."""

    row: str
    value: float
    low: float = np.nan
    high: float = np.nan
    ink: str = GREY
    form: str = "o"
    filled: bool = True  # or hollow, its bar dotted
    note: str = ""  # beside it
    plan: tuple[float, float] | None = None  # from and to: the ground of its row


def of_model(model: str, value: float, low=np.nan, high=np.nan, *, row="", **more) -> Mark:
    """A value of a model, in its look."""
    return Mark(row or model, value, low, high, colour(model), marker(model), **more)


def key(label: str, ink: str, form: str = "o", filled: bool = True) -> Line2D:
    """A marker, or a line, for a legend."""
    look = {"marker": form, "linestyle": ""} if form else {"linewidth": 2}
    return Line2D([], [], color=ink, label=label, markerfacecolor=ink if filled else "w", **look)


Panels = Mapping[str, Sequence[Mark]]  # title → marks in rows of their names, from the top


def forest(
    title: str, panels: Panels, xlabel: str, keys: Sequence = (), line=None, columns=1, width=6.0
) -> Figure:
    """A figure of panels. Marks of one row that have intervals lie below each other."""
    heights = []
    for marks in panels.values():
        rows, stacked = (
            Counter(mark.row for mark in marks),
            np.isfinite([m.low for m in marks]).any(),
        )
        each = 0.15 + 0.11 * (max(rows.values()) if stacked else 1)
        heights.append(0.4 + sum(each + 0.15 * (len(row) // 30) for row in rows))
    heights = [max(heights[i : i + columns]) for i in range(0, len(panels), columns)]
    figure = titled(title, sum(heights) + 0.5 + 0.25 * -(-len(keys) // 2), width)
    layout = {"squeeze": False, "sharex": True, "height_ratios": heights}
    for ax in figure.subplots(len(heights), columns, **layout).flat[len(panels) :]:
        ax.remove()
    for ax, (name, marks) in zip(figure.axes, panels.items(), strict=True):
        ax.set_title(printable(name), loc="left")
        _rows(ax, marks)
        if line is not None:
            ax.axvline(line, color="black", linewidth=1.2)
    for ax in figure.axes[-columns:]:  # the lowest of each column
        ax.tick_params(labelbottom=True)
        ax.set_xlabel(xlabel)
    if keys:
        figure.legend(handles=keys, loc="outside lower center", ncols=2)
    return figure


def _rows(ax: Axes, marks: Sequence[Mark]) -> None:
    rows = list(dict.fromkeys(mark.row for mark in marks))
    spread = 0.7 * np.isfinite([mark.low for mark in marks]).any()
    for i, row in enumerate(rows):
        in_row = [mark for mark in marks if mark.row == row]
        for k, mark in enumerate(in_row):
            y = i + spread * (k - (len(in_row) - 1) / 2) / len(in_row)
            dash, fill, edge = ("-", mark.ink, "w") if mark.filled else (":", "w", mark.ink)
            ax.plot([mark.low, mark.high], [y, y], dash, color=mark.ink, linewidth=2)
            look = {"markersize": 7, "markerfacecolor": fill, "markeredgecolor": edge}
            ax.plot(mark.value, y, mark.form, **look)
            if mark.plan and np.isfinite(mark.plan[0]):
                low, high = mark.plan
                ax.barh(i, high - low, 0.9, low, color=PLAN, zorder=0)
            if mark.note:
                at = (np.fmax(mark.value, mark.high), y)
                ax.annotate(mark.note, at, (5, 0), textcoords="offset points", **NOTE)
    ax.set_yticks(range(len(rows)), [textwrap.fill(printable(row), 30) for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.margins(x=0.14)  # room for notes
    ax.grid(axis="y", visible=False)


def titled(title: str, height: float, width: float = 6) -> Figure:
    """A figure with so many inches below its title."""
    text = textwrap.fill(title, 76 if width > PHONE else 54, break_on_hyphens=False)
    height += 0.2 * (text.count("\n") + 1)
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(text, x=0.01, ha="left", linespacing=1.15)
    return figure


def single(title: str, x: str, y: str, height: float = 2.8) -> Axes:
    """The axes of a figure of one panel, with their labels."""
    ax = titled(title, height).subplots()
    ax.set(xlabel=x, ylabel=y)
    return ax


def lines(ax: Axes, points: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """A line a model in its look, {name: (x, y)}."""
    for i, (name, (x, y)) in enumerate(points.items()):
        look = {"color": colour(name), "marker": marker(name), "linestyle": LINES[i % 4]}
        ax.plot(x, y, label=name, linewidth=1.8, markevery=max(1, len(x) // 8), **look)


def logarithmic(ax: Axes) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=[1, 2, 5]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))


def apart(difference: float) -> str:
    return f"{abs(difference):.3f} nats {'above' if difference >= 0 else 'below'}"


def printable(name: object) -> str:
    """A name from outside, with "?" for a sign that no font here has: no reason to stop a run."""
    drawn = (c if any(f.get_char_index(ord(c)) for f in FONTS) else "?" for c in str(name))
    return "".join(drawn)
