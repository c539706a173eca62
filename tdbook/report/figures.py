"""What all figures share: a model's look, axes under a title, and the forest plot.

A figure is 4.5 inches wide, so that a phone shows its text large enough. pyplot does not know it,
so that a notebook shows it only once.
"""

import re
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

from tdbook.runs.units import minus

TELUGU = str(fontpkg.path("Noto Sans Telugu"))
font_manager.fontManager.addfont(TELUGU)
FONTS = [font_manager.get_font(path) for path in (TELUGU, font_manager.findfont("DejaVu Sans"))]
style.use(Path(__file__).with_name("figures.mplstyle"))
# matplotlib leaves out a sign that no font has, with only a warning
warnings.filterwarnings("error", message=r"Glyph \d+ .* missing from")
DATA = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
LOOKS, ROLES, CUTS, PARTS = DATA.values()
HARD, EASY, GREY, DOTS = "#c8371b", "#c3c8ce", "#5f6770", "#8f969e"  # windows, not models
PLAN = "#f3dfa2"  # the ground of what the plan says
BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.7}
LISTED = 20  # groups of a cut; of more, the largest
WIDTH = 4.5  # inches


def look(name: str) -> dict[str, str]:
    """Colour and marker of a model; one not listed has a shade of its family, always the same."""
    if name in LOOKS:
        return LOOKS[name]
    shade, family = zlib.crc32(name.encode()), name.split("-")[0]
    if name.endswith("-merged"):
        family = "50m-hard-merged"
    elif re.search("lora|adapter|-(hard|random)$", name):
        family = "50m-hard"
    ink = LOOKS[family]["ink"] if family in LOOKS else mpl.colormaps["tab10"](shade % 10)
    rgb = np.array(mpl.colors.to_rgb(ink))
    lighter = mpl.colors.to_hex(rgb + (1 - rgb) * (20 + shade % 41) / 100)  # by 20 to 60 %
    return {"ink": lighter, "form": "oXPDpdhv^><H"[shade % 12]}


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


def key(label: str, ink: str, form: str = "o", filled: bool = True) -> Line2D:
    """A marker, or a line, for a legend."""
    shape = {"marker": form, "linestyle": ""} if form else {"linewidth": 2}
    return Line2D([], [], color=ink, label=label, markerfacecolor=ink if filled else "w", **shape)


def forest(title: str, panels: Mapping, xlabel: str, keys=(), line=None, columns=1) -> Figure:
    """A figure of panels, {title: [marks in rows of their names, from the top]}. Marks of one row
    that have intervals lie below each other. `line`: where to draw one in every panel."""
    heights = []
    for marks in panels.values():
        rows = Counter(mark.row for mark in marks)
        each = 0.15 + 0.11 * (max(rows.values()) if _stacked(marks) else 1)
        heights.append(0.4 + sum(each + 0.15 * (len(row) // 30) for row in rows))
    heights = [max(heights[i : i + columns]) for i in range(0, len(panels), columns)]
    figure = _titled(title, sum(heights) + 0.8 + 0.25 * -(-len(keys) // 2))
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
        ax.set_xlabel(textwrap.fill(xlabel, 44 if columns == 1 else 22))
    if keys:
        figure.legend(handles=keys, loc="outside lower center", ncols=2)
    return figure


def _stacked(marks: Sequence[Mark]) -> bool:
    return any(np.isfinite(mark.low) for mark in marks)


def _rows(ax: Axes, marks: Sequence[Mark]) -> None:
    rows, spread = list(dict.fromkeys(mark.row for mark in marks)), 0.7 * _stacked(marks)
    for i, row in enumerate(rows):
        in_row = [mark for mark in marks if mark.row == row]
        for k, mark in enumerate(in_row):
            y = i + spread * (k - (len(in_row) - 1) / 2) / len(in_row)
            dash, fill, edge = ("-", mark.ink, "w") if mark.filled else (":", "w", mark.ink)
            ax.plot([mark.low, mark.high], [y, y], dash, color=mark.ink, linewidth=2)
            face = {"markersize": 7, "markerfacecolor": fill, "markeredgecolor": edge}
            ax.plot(mark.value, y, mark.form, **face)
            if mark.plan and np.isfinite(mark.plan[0]):
                low, high = mark.plan
                ax.barh(i, high - low, 0.9, low, color=PLAN, zorder=0)
            if mark.note:
                place = {"textcoords": "offset points", "va": "center", "bbox": BOX}
                ax.annotate(minus(mark.note), (np.fmax(mark.value, mark.high), y), (5, 0), **place)
    ax.set_yticks(range(len(rows)), [textwrap.fill(printable(row), 30) for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.margins(x=0.14)  # room for notes
    ax.grid(axis="y", visible=False)


def _titled(title: str, height: float) -> Figure:
    """A figure with so many inches below its title."""
    text = textwrap.fill(printable(title), 54, break_on_hyphens=False)
    figure = Figure(figsize=(WIDTH, height + 0.2 * (text.count("\n") + 1)), layout="constrained")
    figure.suptitle(text, x=0.01, ha="left", linespacing=1.15)
    return figure


def single(title: str, x: str, y: str) -> Axes:
    """The axes of a figure of one panel, with their labels."""
    ax = _titled(title, 3.1).subplots()
    ax.set(xlabel=textwrap.fill(x, 44), ylabel=y)
    return ax


def apart(difference: float) -> str:
    return f"{abs(difference):.3f} nats {'above' if difference >= 0 else 'below'}"


def printable(text: object) -> str:
    """Text with "?" for a sign that no font here has: a name from outside is no reason to stop."""
    drawn = (c if any(f.get_char_index(ord(c)) for f in FONTS) else "?" for c in str(text))
    return minus("".join(drawn))
