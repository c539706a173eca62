"""What all figures share: a model's look, forest plots, panels and axes.

A figure is 6 inches wide, narrower where it holds much text. pyplot does not know it, so that a
notebook shows it only once.
"""

import textwrap
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import fontpkg
import matplotlib as mpl
import numpy as np
from matplotlib import font_manager, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter

TELUGU = str(fontpkg.path("Noto Sans Telugu"))
font_manager.fontManager.addfont(TELUGU)
FONTS = [font_manager.get_font(path) for path in (TELUGU, font_manager.findfont("DejaVu Sans"))]
style.use(Path(__file__).with_name("figures.mplstyle"))
# matplotlib leaves out a sign that no font has, with only a warning
warnings.filterwarnings("error", message=r"Glyph \d+ .* missing from")

# Colour and marker of a model. The first five, most often compared, lie at least 10 of 100 steps of
# lightness (CIELAB L*) apart, so that they differ in grey too.
LOOKS = {
    "teacher": ("#000000", "s"),
    "50m": ("#1b75bc", "o"),
    "50m-scratch": ("#8c8c8c", "X"),
    "50m-hard": ("#f0a01e", "P"),
    "50m-hard-merged": ("#5b2a86", "D"),
    "50m-random": ("#f6c57a", "p"),
    "50m-random-merged": ("#a98ac8", "d"),
    "50m-seed2": ("#7fbbe6", "h"),
    "55m": ("#8c510a", "v"),
    "80m": ("#2f8f6b", "^"),
    "120m": ("#0b5a36", ">"),
    "150m": ("#004d47", "8"),
    "75m": ("#14988a", "<"),
    "75m-direct": ("#7ccbbf", "H"),
}
LINES = ["-", "--", "-.", ":"]
HARD, EASY, GREY, DOTS = "#c8371b", "#c3c8ce", "#5f6770", "#8f969e"  # windows, not models
PLAN = "#f3dfa2"  # the ground of what the plan says
BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.7}
EVEN = {"color": "#777777", "linewidth": 1, "linestyle": "--"}  # a line to compare with
ROLES = {  # of an effect: colour, and words in the legend
    "claim": ("#1b75bc", "the claim"),
    "control": (HARD, "a control"),
    "part": ("#777777", "shown besides"),
}
DRAWN = 20_000  # points of a cloud; of more windows, every k-th is drawn
LISTED = 16  # rows of a list in one figure
# cuts of windows (features.cuts) whose groups' names do not say of what they are
CUTS = {"script": "share of tokens not in Telugu", "rare tokens": "share of rare tokens"}
PHONE = 4.5  # inches: where panels hold much text, narrow enough for a phone to show it large
LOSS = "validation loss (nats per token)"
Rows = Sequence[Mapping]
ByCut = Mapping[str, Mapping[str, Mapping]]  # cut → bucket → model → its value
Hints = Mapping[str, tuple[float, float]]  # setting → what the plan says of it, from and to


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


def of_model(model: str, value: float, low=np.nan, high=np.nan, *, row="", note="") -> Mark:
    """A value of a model, in its look."""
    return Mark(row or model, value, low, high, colour(model), marker(model), note=note)


def forest(
    ax: Axes,
    marks: Sequence[Mark],
    *,
    spread: float = 0.7,
    bands: Mapping[str, Sequence[float]] | None = None,
    line: float | None = None,
) -> None:
    """Marks in rows of their names, from the top; those of one row below each other, over `spread`
    of its height. `bands`: what the plan says of a row, from and to."""
    rows = list(dict.fromkeys(mark.row for mark in marks))
    for row, (low, high) in (bands or {}).items():
        ax.barh(rows.index(row), high - low, 0.9, low, color=PLAN, zorder=0)
    for i, row in enumerate(rows):
        in_row = [mark for mark in marks if mark.row == row]
        for k, mark in enumerate(in_row):
            y = i + spread * (k - (len(in_row) - 1) / 2) / len(in_row)
            dash, fill, edge = "-", mark.ink, "white"
            if not mark.filled:
                dash, fill, edge = ":", "white", mark.ink
            ax.plot([mark.low, mark.high], [y, y], dash, color=mark.ink, linewidth=2)
            look = {"markersize": 7, "markerfacecolor": fill, "markeredgecolor": edge}
            ax.plot(mark.value, y, mark.form, **look)
            note(ax, np.fmax(mark.value, mark.high), y, mark.note)
    if line is not None:
        ax.axvline(line, color="black", linewidth=1.2)
    ax.set_yticks(range(len(rows)), [textwrap.fill(printable(row), 30) for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)


def note(ax: Axes, x: float, y: float, text: str, side: str = "left", **look: object) -> None:
    """A word beside a point."""
    if text:
        look = {"va": "center", "ha": side, "fontsize": 8.5, "bbox": BOX} | look
        to = (5 if side == "left" else -5, 0)
        ax.annotate(text, (x, y), to, textcoords="offset points", **look)


def key(label: str, ink: str, form: str = "o", filled: bool = True) -> Line2D:
    """A marker, or a line, for a legend."""
    look = {"marker": form, "linestyle": ""} if form else {"linewidth": 2}
    fill = ink if filled else "white"
    return Line2D([], [], color=ink, label=label, markerfacecolor=fill, **look)


def legend(figure: Figure, keys: Sequence, columns: int = 2) -> None:
    figure.legend(handles=keys, loc="outside lower center", ncols=columns)


def panels(
    title: str, heights: Sequence[float], room: float = 0, count: int = 0, **layout: object
) -> tuple[Figure, np.ndarray]:
    """Rows of axes of these heights in inches, `count` axes in all, and `room` for title and
    legend. `layout`: ncols, sharex, sharey; width in inches."""
    width = layout.pop("width", 6)
    figure = Figure(figsize=(width, room + sum(heights)), layout="constrained")
    most = 76 if width > PHONE else 54  # letters in a line of the title
    lines = -(-len(title) // most)
    letters = most if lines == 1 else min(most, len(title) // lines + 9)  # as even as they come
    text = textwrap.fill(title, letters, break_on_hyphens=False)
    figure.suptitle(text, x=0.01, ha="left", linespacing=1.15)
    axes = figure.subplots(len(heights), squeeze=False, height_ratios=heights, **layout)
    for ax in axes.flat[count or axes.size :]:
        ax.remove()
    return figure, axes


def single(title: str, height: float = 3.0, rows: float = 0) -> Axes:
    """The axes of a figure of one panel, high enough for a list of `rows`."""
    return panels(title, [max(height, 1.2 + 0.26 * rows)])[1][0, 0]


def model_line(name: str, i: int) -> dict:
    """The look of a model's line, the i-th of a figure."""
    look = {"color": colour(name), "marker": marker(name), "linestyle": LINES[i % 4]}
    return look | {"label": name}


def labelled(ax: Axes, x: str, y: str, **form: float) -> Figure:
    """The figure with its axes labelled and a legend."""
    ax.set(xlabel=x, ylabel=y)
    ax.legend(**form)
    return ax.figure


def logarithmic(ax: Axes, ticks: Sequence[float]) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(count)


def percent(*axes) -> None:
    for axis in axes:
        axis.set_major_formatter(PercentFormatter(1))


def apart(difference: float) -> str:
    return f"{abs(difference):.3f} nats {'above' if difference >= 0 else 'below'}"


def signed(value: float) -> str:
    """ "−0.016", with a true minus sign."""
    return f"{value:+.3f}".replace("-", "−")


def count(x: float, _: int = 0) -> str:
    """1,200,000 as 1.2M; a tick formatter too."""
    size, unit = next((s for s in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if abs(x) >= s[0]), (1, ""))
    return f"{x / size:.3g}{unit}"


def printable(name: object) -> str:
    """A name from outside, with "?" for a sign that no font here has: no reason to stop a run."""
    drawn = (c if any(f.get_char_index(ord(c)) for f in FONTS) else "?" for c in str(name))
    return "".join(drawn)
