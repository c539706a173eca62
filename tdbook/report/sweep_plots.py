"""Figures of settings: what each changes, alone or two by two. Losses are nats per token."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tdbook.report import figures
from tdbook.report.figures import GREY, HARD, Hints, Rows


def settings(rows: Sequence[tuple[float, float, float]]) -> Figure:
    """Loss over ce_weight, a line a temperature: rows of ce_weight, temperature, loss; at ce_weight
    1 there is no temperature, so that point ends every line. Stars: what the plan names."""
    weight, temperature, lowest = min(rows, key=lambda row: row[2])
    way = f", T {temperature:g}" if weight < 1 else ", from the text alone"
    title = f"Lowest at ce_weight {weight:g}{way}: {lowest:.3f} nats"
    plans = [(loss, w) for w, t, loss in rows if w == 0.5 and 2 <= t <= 4]
    if plans:
        title += f", the plan's best setting {min(plans)[0] - lowest:.3f} above"
    ax = figures.single(title)
    frame = pd.DataFrame(rows, columns=["weight", "temperature", "loss"]).sort_values("weight")
    ends, taught = frame[frame["weight"] == 1], frame[frame["weight"] < 1]
    groups = taught.groupby("temperature")
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.8, groups.ngroups))
    for i, (temperature, line) in enumerate(groups):
        look = {"marker": "os^Dv"[i % 5], "linestyle": figures.LINES[i % 4], "color": shades[i]}
        line = pd.concat([line, ends])
        ax.plot(line["weight"], line["loss"], label=f"T {temperature:g}", **look)
    for loss, w in plans:
        ax.plot(w, loss, "*", color="black", markersize=11)
    x = "ce_weight: share of the true next token in the loss (1: from the text alone)"
    return figures.labelled(ax, x, "development loss\n(nats per token)")


def sweep(rows: Rows, hints: Hints) -> Figure:
    """What each setting changes, a panel a setting: difference from the base on hard and on easy
    text (rows of book.sweep_rows), the mean over all else as a line, single points faint."""
    best = min(rows, key=lambda row: row["loss"])
    value, low, high = best["all"]
    title = f"Lowest of {len(rows)}: {best['point']}, {value:+.3f} nats on all text "
    title += f"[{low:+.3f}, {high:+.3f}] against the base"
    names = list(dict.fromkeys(name for row in rows for name in row["varied"])) or ["point"]
    heights, layout = [2.0] * -(-len(names) // 2), {"ncols": min(2, len(names)), "sharey": True}
    figure, axes = figures.panels(title, heights, 1.3, len(names), **layout)
    for ax, name in zip(axes.flat, names, strict=False):
        _setting(ax, rows, name, hints.get(name))
    for ax in axes[:, 0]:
        ax.set_ylabel("loss − base's\n(nats per token)")
    figures.legend(figure, axes.flat[0].get_legend_handles_labels()[0], 3)
    return figure


def _setting(ax: Axes, rows: Rows, name: str, plan: tuple | None) -> None:
    """One panel of `sweep`: the values of one setting, evenly spaced in order."""
    values = [row["varied"].get(name, "–") for row in rows]
    numbers = {v for v in values if isinstance(v, int | float) and not isinstance(v, bool)}
    order = sorted(numbers) + [v for v in dict.fromkeys(values) if v not in numbers]
    x, across = np.array([order.index(value) for value in values]), np.arange(len(order))
    for part, ink, line, shift in (("hard", HARD, "-o", -0.06), ("easy", GREY, "--s", 0.06)):
        y = np.array([row[part][0] for row in rows])
        ax.scatter(x + shift, y, 12, color=ink, alpha=0.35, linewidths=0)
        means = [y[x == i].mean() for i in across]
        look = {"color": ink, "label": f"{part} text", "markersize": 5, "linewidth": 1.4}
        ax.plot(across + shift, means, line, **look)
    if inside := [i for i, v in enumerate(order) if v in numbers and _within(v, plan)]:
        ground = {"color": figures.PLAN, "zorder": 0, "label": "the plan"}
        ax.axvspan(inside[0] - 0.4, inside[-1] + 0.4, **ground)
    ax.axhline(0, color="black", linewidth=0.8)
    texts = [f"{v:g}" if v in numbers else str(v) for v in order]
    ax.set_xticks(across, texts, rotation=20 if max(map(len, texts)) > 7 else 0)
    ax.set_xlim(-0.6, len(order) - 0.4)
    ax.set_title(name.replace("_", " "), loc="left")


def _within(value: float, plan: tuple[float, float] | None) -> bool:
    return plan is not None and plan[0] <= value <= plan[1]


def sensitivity(rows: Rows, hints: Hints) -> Figure:
    """Two of share, rank and scale against each other, of all three a map a scale, on hard and on
    easy text: difference from the base (rows of book.sweep_rows, every setting in "varied"), one
    scale of colours. Of several seeds the mean, and their spread. *: as the plan has it."""
    varied = [name for name in ("share", "rank", "lora_scale") if name in rows[0]["varied"]]
    (down, across), third = varied[:2], "".join(varied[2:])
    frame = pd.DataFrame([row["varied"] | {p: row[p][0] for p in ("hard", "easy")} for row in rows])
    cells = frame.assign(**{third: frame.get(third, 0)}).groupby([third, down, across])
    means, spreads = cells[["hard", "easy"]].mean(), cells[["hard", "easy"]].std()
    best, limit = means["hard"].idxmin(), means.abs().max(axis=None)
    values = zip(means.index.names, best, strict=True)
    named = ", ".join(f"{n.replace('lora_', '')} {x:g}" for n, x in values if n)
    hard, easy = means.loc[best]
    title = f"Hard text gains most at {named}: {hard:+.3f} nats, easy text {easy:+.3f}"
    maps = means.index.levels[0]
    heights = [0.4 + 0.36 * len(means.index.levels[1])] * len(maps)
    layout = {"ncols": 2, "sharex": True, "sharey": True, "width": figures.PHONE}
    figure, axes = figures.panels(title, heights, 1.9, **layout)
    for value, pair in zip(maps, axes, strict=True):
        star = " *" * _within(value, hints.get(third))
        scale = f", {third.replace('lora_', '')} {value:g}{star}" if third else ""
        for part, ax in zip(("hard", "easy"), pair, strict=True):
            mean, spread = (found.loc[value, part].unstack() for found in (means, spreads))
            colours = _map(ax, mean, spread, limit, hints)
            ax.set_title(part + scale, loc="left")
    for ax in axes[-1]:
        ax.set_xlabel(across.replace("lora_", ""))
    figure.supylabel("share of windows that are hard" if down == "share" else down, fontsize=9.5)
    bar = figure.colorbar(colours, ax=axes, location="bottom", fraction=0.04, aspect=40)
    bar.set_label("loss − base's (nats; blue is better)\n* a value that the plan names")
    return figure


def _map(
    ax: Axes, mean: pd.DataFrame, spread: pd.DataFrame, limit: float, hints: Hints
) -> mpl.collections.QuadMesh:
    """Colour and number of each pair of settings, the spread over seeds below it. * marks a value
    that the plan names."""
    edges = (np.arange(n + 1) - 0.5 for n in mean.shape[::-1])
    # blue below 0, which is better; safe for colour-blind eyes
    colours = ax.pcolormesh(*edges, mean, cmap="RdBu_r", vmin=-limit, vmax=limit)
    for (y, x), value in np.ndenumerate(mean):
        if np.isfinite(value):
            ink, sd = "white" if abs(value) > 0.7 * limit else "black", spread.iloc[y, x]
            text = figures.signed(value) + (f"\n±{sd:.3f}" if np.isfinite(sd) else "")
            ax.text(x, y, text, ha="center", va="center", fontsize=7.5, color=ink)
    for axis, values in ((ax.xaxis, mean.columns), (ax.yaxis, mean.index)):
        form = "{:.0%}" if values.name == "share" else "{:g}"
        plan = hints.get(values.name)
        texts = [form.format(value) + " *" * _within(value, plan) for value in values]
        axis.set_ticks(range(len(values)), texts)
    ax.set(xlim=(-0.55, mean.shape[1] - 0.45), ylim=(len(mean) - 0.45, -0.55))
    ax.grid(visible=False)
    return colours
