"""What all figures share: colours, markers, forest plots, sizes."""

import textwrap
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import fontpkg
import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

TELUGU = str(fontpkg.path("Noto Sans Telugu"))
font_manager.fontManager.addfont(TELUGU)
# a sign that no font has would be left out with only a warning
warnings.filterwarnings("error", message=r"Glyph \d+ .* missing from")
mpl.rcParams.update({
    "font.family": ["Noto Sans Telugu", "DejaVu Sans"], "font.size": 9.5, "figure.titlesize": 11,
    "axes.titlesize": 9.5, "legend.fontsize": 9, "legend.frameon": False, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#e3e3e3", "axes.edgecolor": "#555555",
    "text.parse_math": False,  # a source may be called "$5 and $6"
})  # fmt: skip


FONTS = [font_manager.get_font(path) for path in (TELUGU, font_manager.findfont("DejaVu Sans"))]

# The first five, most often compared, lie at least 10 of 100 steps of lightness (CIELAB L*) apart,
# so that they differ in grey too. Markers differ as well.
COLOURS = {
    "teacher": "#000000", "50m": "#1b75bc", "50m-scratch": "#8c8c8c", "50m-hard": "#f0a01e",
    "50m-hard-merged": "#5b2a86", "50m-random": "#f6c57a", "50m-random-merged": "#a98ac8",
    "50m-seed2": "#7fbbe6", "55m": "#8c510a", "80m": "#2f8f6b", "120m": "#0b5a36",
    "150m": "#004d47", "75m": "#14988a", "75m-direct": "#7ccbbf",
}  # fmt: skip
MARKERS = dict(zip(COLOURS, "soXPDpdhv^>8<H", strict=True))
LINES = ["-", "--", "-.", ":"]
HARD, EASY, GREY, DOTS = "#c8371b", "#c3c8ce", "#5f6770", "#8f969e"  # windows, not models
PLAN = "#f3dfa2"  # the ground of what the plan says
BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.7}
EVEN = {"color": "#777777", "linewidth": 1, "linestyle": "--"}  # a line to compare with
DRAWN = 20_000  # points of a cloud; of more windows, every k-th is drawn
LISTED = 16  # rows of a list in one figure
CUTS = {  # of windows (features.cuts), where the groups' names do not say of what they are
    "script": "share of tokens not in Telugu", "rare tokens": "share of rare tokens",
}  # fmt: skip
PHONE = 4.5  # inches: where panels hold much text, narrow enough for a phone to show it large
GAINS = "RdBu_r"  # blue below 0, which is better; safe for colour-blind eyes
Rows = Sequence[Mapping]
Hints = Mapping[str, tuple[float, float]]  # setting → what the plan says of it, from and to
ByCut = Mapping[str, Mapping[str, Mapping]]  # cut → bucket → model → its value
LOSS = "validation loss (nats per token)"
ROLES = {  # of an effect: colour, and words in the legend
    "claim": ("#1b75bc", "the claim"), "control": ("#c8371b", "a control"),
    "part": ("#777777", "shown besides"),
}  # fmt: skip


def colour(name: str) -> str:
    """The colour of a model; of one not listed, a shade of its kind or family, always the same."""
    if name in COLOURS:
        return COLOURS[name]
    shade, kind = zlib.crc32(name.encode()), name.split("-")[0]
    if name.endswith("-merged"):
        kind = "50m-hard-merged"
    elif "lora" in name or "adapter" in name or name.endswith(("-hard", "-random")):
        kind = "50m-hard"
    base = COLOURS.get(kind) or mpl.colors.to_hex(mpl.colormaps["tab10"](shade % 10))
    rgb = np.array(mpl.colors.to_rgb(base))
    return mpl.colors.to_hex(rgb + (1 - rgb) * (20 + shade % 41) / 100)  # 20 to 60 % lighter


def marker(name: str) -> str:
    """The marker of a model, which tells it apart where colours are not printed."""
    return MARKERS.get(name) or "oXPDpdhv^><H"[zlib.crc32(name.encode()) % 12]


def _within(value: float, plan: tuple[float, float] | None) -> bool:
    return plan is not None and plan[0] <= value <= plan[1]


@dataclass(frozen=True)
class Mark:
    """A value with its interval, in the row of its name."""

    row: str
    value: float
    low: float
    high: float
    ink: str
    form: str = "o"
    filled: bool = True  # or hollow, its bar dotted
    note: str = ""  # beside it


def _mark(row: str, model: str, value: float, *span: float, note: str = "") -> Mark:
    return Mark(row, value, *(span or [value] * 2), colour(model), marker(model), note=note)


def _forest(
    ax: Axes, marks: Sequence[Mark], spread: float = 0.7, bands: Mapping | None = None,
    line: float | None = None,
) -> None:  # fmt: skip
    """Marks in rows of their names, from the top; those of one row below each other, over `spread`
    of its height. `bands`: what the plan says of a row."""
    rows = list(dict.fromkeys(mark.row for mark in marks))
    for row, band in (bands or {}).items():
        if band and np.isfinite(band[0]):
            ax.barh(rows.index(row), band[1] - band[0], 0.9, band[0], color=PLAN, zorder=0)
    for i, row in enumerate(rows):
        own = [mark for mark in marks if mark.row == row]
        for k, mark in enumerate(own):
            y = i + spread * (k - (len(own) - 1) / 2) / len(own)
            fill, edge, dash = mark.ink, "white", "-"
            if not mark.filled:
                fill, edge, dash = "white", mark.ink, ":"
            ax.plot([mark.low, mark.high], [y, y], dash, color=mark.ink, linewidth=2)
            form = {"markersize": 7, "markerfacecolor": fill, "markeredgecolor": edge}
            ax.plot(mark.value, y, mark.form, **form)
            if mark.note:
                _value(ax, np.fmax(mark.value, mark.high), y, mark.note)
    if line is not None:
        ax.axvline(line, color="black", linewidth=1.2)
    _list(ax, rows)


def _key(label: str, ink: str, form: str = "o", filled: bool = True) -> Line2D:
    """A marker, or a line, for a legend."""
    look = {"marker": form, "linestyle": ""} if form else {"linewidth": 2}
    return Line2D(
        [], [], color=ink, label=label, markerfacecolor=ink if filled else "white", **look
    )


def _legend(figure: Figure, keys: Sequence, columns: int = 2) -> None:
    figure.legend(handles=keys, loc="outside lower center", ncols=columns)


def _figure(title: str, height: float = 3.0, rows: float = 0) -> Axes:
    """The axes of a figure of 6 inches, high enough for a list of `rows`."""
    return _panels(title, [max(height, 1.2 + 0.26 * rows)])[1][0, 0]


def _panels(
    title: str, heights: Sequence[float], room: float = 0, columns: int = 1, count: int = 0,
    width: float = 6, **shared: bool,
) -> tuple[Figure, np.ndarray]:  # fmt: skip
    """Rows of axes of these heights, `count` of them, and `room` for title and legend. pyplot does
    not know the figure, so that a notebook shows it only once."""
    figure = Figure(figsize=(width, room + sum(heights)), layout="constrained")
    most = 76 if width > PHONE else 54
    lines = -(-len(title) // most)  # as even as they come
    width = most if lines == 1 else min(most, len(title) // lines + 9)
    text = textwrap.fill(title, width, break_on_hyphens=False)
    figure.suptitle(text, x=0.01, ha="left", linespacing=1.15)
    axes = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights, **shared)
    for ax in axes.flat[count or axes.size :]:
        ax.remove()
    return figure, axes


def _list(ax: Axes, names: Sequence[str]) -> None:
    """Rows of these names, the first on top."""
    ax.set_yticks(range(len(names)), list(names))
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)


def _line(name: str, i: int) -> dict:
    """The look of a model's line, the i-th of a figure."""
    look = {"color": colour(name), "marker": marker(name), "linestyle": LINES[i % 4]}
    return look | {"label": name}


def _labelled(ax: Axes, x: str, y: str, **legend: float) -> Figure:
    """The figure with its axes labelled and a legend."""
    ax.set(xlabel=x, ylabel=y)
    ax.legend(**legend)
    return ax.figure


def _value(ax: Axes, x: float, y: float, text: str) -> None:
    form = {"textcoords": "offset points", "va": "center", "fontsize": 8.5, "bbox": BOX}
    ax.annotate(text, (x, y), (5, 0), **form)


def _logarithmic(ax: Axes, ticks: Sequence[float]) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(_count)


def _apart(difference: float) -> str:
    return f"{abs(difference):.3f} nats {'above' if difference >= 0 else 'below'}"


def _count(x: float, _: int = 0) -> str:
    """1,200,000 as 1.2M; a tick formatter too."""
    size, unit = next((s for s in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if abs(x) >= s[0]), (1, ""))
    return f"{x / size:.3g}{unit}"


def _printable(name: str) -> str:
    """A name from outside, with "?" for a sign that no font here has: no reason to stop a run."""
    return "".join(c if any(f.get_char_index(ord(c)) for f in FONTS) else "?" for c in name)
