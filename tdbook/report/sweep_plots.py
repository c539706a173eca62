"""Figures of settings: what each changes, alone or two by two. Losses are nats per token."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tdbook.report import figures, words
from tdbook.report.figures import PARTS, Mark
from tdbook.report.plots import Hints, Rows


def sweep(rows: Rows, hints: Hints) -> Figure:
    """What each setting changes, a panel a setting: the mean difference from the base on hard and
    on easy text (rows of book.sweep_rows), the bar over all else that varied. *: as the plan."""
    best = min(rows, key=lambda row: row["loss"])
    value, low, high = best["all"]
    title = f"Lowest of {len(rows)}: {best['point']}, {value:+.3f} nats on all text "
    title += f"[{low:+.3f}, {high:+.3f}] against the base"
    marks = {}
    for name in dict.fromkeys(name for row in rows for name in row["varied"]):
        values = [row["varied"].get(name, "–") for row in rows]
        numbers = sorted({value for value in values if isinstance(value, int | float)})
        for value in dict.fromkeys([*numbers, *values]):
            for part, look in PARTS.items():
                same = [row[part][0] for row, v in zip(rows, values, strict=True) if v == value]
                ends = (np.mean(same), min(same), max(same))
                mark = Mark(words.setting(value, hints.get(name)), *ends, **look)
                marks.setdefault(name.replace("_", " "), []).append(mark)
    x, columns = "loss − base's (nats; *: the plan)", min(2, len(marks))
    return figures.forest(title, marks, x, figures.PART_KEYS, line=0, columns=columns)


def sensitivity(rows: Rows, hints: Hints) -> Figure:
    """Two of share, rank and scale against each other, of all three a map a scale, on hard and on
    easy text: difference from the base (rows of book.sweep_rows, every setting in "varied"), one
    scale of colours. Of several seeds the mean, and their spread. *: as the plan has it."""
    varied = [name for name in ("share", "rank", "lora_scale") if name in rows[0]["varied"]]
    (down, across), third = varied[:2], "".join(varied[2:])
    frame = pd.DataFrame([{"": 0} | row["varied"] | {p: row[p][0] for p in PARTS} for row in rows])
    cells = frame.groupby([third, down, across])[[*PARTS]]
    means, spreads = cells.mean(), cells.std()
    best, limit = means["hard"].idxmin(), means.abs().max(axis=None)
    values = zip(means.index.names, best, strict=True)
    named = ", ".join(f"{_short(n)} {x:g}" for n, x in values if n)
    hard, easy = means.loc[best]
    title = f"Hard text gains most at {named}: {hard:+.3f} nats, easy text {easy:+.3f}"
    maps, height = means.index.levels[0], 0.4 + 0.36 * len(means.index.levels[1])
    layout = {"ncols": 2, "sharex": True, "sharey": True, "width": figures.PHONE}
    figure = figures.panels(title, [height] * len(maps), 1.4, 2 * len(maps), **layout)
    axes = np.reshape(figure.axes, (-1, 2))
    for value, pair in zip(maps, axes, strict=True):
        scale = f", {_short(third)} {words.setting(value, hints.get(third))}" if third else ""
        for part, ax in zip(PARTS, pair, strict=True):
            mean, spread = (found.loc[value, part].unstack() for found in (means, spreads))
            colours = _map(ax, mean, spread, limit, hints)
            ax.set_title(part + scale, loc="left")
    for ax in axes[-1]:
        ax.set_xlabel(_short(across))
    figure.supylabel("share of windows that are hard" if down == "share" else down, fontsize=9.5)
    bar = figure.colorbar(colours, ax=axes, location="bottom", fraction=0.04, aspect=40)
    bar.set_label("loss − base's (nats; blue is better)\n* a value that the plan names")
    return figure


def _short(name: str) -> str:
    return name.replace("lora_", "")


def _map(
    ax: Axes, mean: pd.DataFrame, spread: pd.DataFrame, limit: float, hints: Hints
) -> mpl.collections.QuadMesh:
    """Colour and number of each pair of settings, the spread over seeds below it."""
    edges = (np.arange(n + 1) - 0.5 for n in mean.shape[::-1])
    # blue below 0, which is better; safe for colour-blind eyes
    colours = ax.pcolormesh(*edges, mean, cmap="RdBu_r", vmin=-limit, vmax=limit)
    for (y, x), value in np.ndenumerate(mean):
        if np.isfinite(value):
            ink, sd = "white" if abs(value) > 0.7 * limit else "black", spread.iloc[y, x]
            text = figures.signed(value) + (f"\n±{sd:.3f}" if np.isfinite(sd) else "")
            ax.text(x, y, text, ha="center", va="center", fontsize=7.5, color=ink)
    for axis, values in ((ax.xaxis, mean.columns), (ax.yaxis, mean.index)):
        form, plan = "{:.0%}" if values.name == "share" else "{:g}", hints.get(values.name)
        axis.set_ticks(range(len(values)), [words.setting(v, plan, form) for v in values])
    ax.set_ylim(len(mean) - 0.5, -0.5)
    ax.grid(visible=False)
    return colours
