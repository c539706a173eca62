"""The book's figures: each function draws one claim from arrays and returns the Figure.

It never saves, shows or loads. The title states the finding with a number computed from what was
given; a model has one colour and marker everywhere. Losses: nats per token. Legend: N windows.
"""

import itertools
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator, PercentFormatter

from tdbook.analysis import intervals
from tdbook.analysis.intervals import Interval
from tdbook.report import figures
from tdbook.report.figures import DOTS, EASY, GREY, HARD, PARTS, ROLES, Mark, look
from tdbook.report.tables import FEW, KIND
from tdbook.report.words import setting

Rows = Sequence[Mapping]


def learning_curves(curves: Mapping[str, Mapping], baseline: Mapping | None = None) -> Figure:
    """Validation loss over training tokens, {name: {"tokens", "loss"}}; baselines are levels."""
    ends = {name: curve["loss"][-1] for name, curve in curves.items()}
    best, levels = min(ends, key=ends.get), baseline or {}
    title = f"{best} ends {'lowest, ' if len(ends) > 1 else ''}at {ends[best]:.3f} nats per token"
    title += "".join(f", {figures.apart(ends[best] - y)} {name}" for name, y in levels.items())
    ax = figures.single(title, "training tokens", "validation loss\n(nats per token)")
    for (name, curve), dash in zip(curves.items(), itertools.cycle(["-", "--", "-.", ":"])):
        ink, form = look(name).values()
        line = {"color": ink, "marker": form, "linestyle": dash, "linewidth": 1.8}
        line["markevery"] = max(1, len(curve["loss"]) // 8)
        ax.plot(curve["tokens"], curve["loss"], label=name, **line)
    for name, y in levels.items():
        ax.axhline(y, color=look(name)["ink"], linestyle=(0, (6, 2)), linewidth=1.4, label=name)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.set_xlim(left=0)
    ax.figure.legend(loc="outside lower center", ncols=3)
    return ax.figure


def difficulty(difficulty_N: np.ndarray, threshold: float) -> Figure:
    """How many windows have which difficulty; those at or above the threshold are the hard set."""
    known_N = difficulty_N[~np.isnan(difficulty_N)]
    hard_N, lost_N = known_N >= threshold, np.fmax(known_N, 0, dtype=np.float64)
    share, held = f"{hard_N.mean():.1%} of windows", lost_N[hard_N].sum() / (lost_N.sum() or 1)
    title = f"{share} ({hard_N.sum():,} of {len(known_N):,}) are at least {threshold:.3f} nats "
    title += f"harder for the student; they hold {held:.1%} of all that was lost"
    x = "difficulty: student loss − teacher loss (nats per token)"
    ax = figures.single(title, x, "windows")
    low, high = np.quantile(known_N, [0.001, 0.999])
    width, line = max((high - low) / 60, 1e-6), np.clip(threshold, low, high)
    # the line is an edge between two bins, so that the colours are exact; tails join the last bins
    first, last = (np.floor((x - line) / width) for x in (low, high))
    edges = line + width * np.arange(min(first, -1), max(last, 0) + 2)
    bars_N = known_N.clip(edges[0], edges[-1])
    ax.hist([bars_N[~hard_N], bars_N[hard_N]], edges, stacked=True, color=[EASY, HARD])
    ax.axvline(threshold, color="black", linewidth=1.3, label=f"right of it: {share}, the hard set")
    better = f"left of it: {(known_N < 0).mean():.1%}, where the student is better"
    ax.axvline(0, color="black", linewidth=1.3, linestyle=":", label=better)
    ax.yaxis.set_major_formatter(EngFormatter(sep=""))
    ax.figure.legend(loc="outside lower center")
    return ax.figure


def hard_shares(by_cut: Mapping[str, pd.DataFrame]) -> Figure:
    """The hard share of the largest groups of every cut (tables.by_cut) beside that of all windows.
    Those with less than 1 % of the windows are hollow, and never named in the title."""
    every = pd.concat(by_cut, names=["cut", "group"]).rename(index=figures.CUTS, level="cut")
    size, (count, hard) = every["windows"], next(iter(by_cut.values())).iloc[:, :2].sum()
    overall, least = hard / count, min(0.01 * count, size.max())
    cut, group = most = (every["hard"][size >= least] - overall).abs().idxmax()
    title = f"{every['hard'][most]:.1%} of windows are hard where the {cut} is {group}"
    rank, marks = size.groupby(level="cut").rank(method="first", ascending=False), {}
    for (cut, group), row in every[rank <= figures.LISTED].iterrows():
        how = {"ink": HARD if row["hard"] > overall else DOTS, "filled": row["windows"] >= least}
        how |= {"note": f"{row['hard']:.1%} of {row['windows']:,.0f}"}
        marks.setdefault(cut, []).append(Mark(str(group), row["hard"], 0, row["hard"], **how))
    x = "share of a group's windows that are hard (line: of all windows)"
    figure = figures.forest(f"{title}, {overall:.1%} of all", marks, x, line=overall)
    figure.axes[0].set_xlim(0, 1.5 * max(every["hard"].max(), 0.01))
    figure.axes[0].xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def losses(title: str, models: Mapping[str, Interval]) -> Figure:
    """Validation loss and 95 % interval of models, the best on top; a line at the teacher's."""
    order = sorted(models.items(), key=lambda model: model[1][0])
    marks = [Mark(name, *loss, **look(name), note=f"{loss[0]:.3f}") for name, loss in order]
    line = models["teacher"][0] if "teacher" in models else None
    x = "validation loss (nats per token; bars: 95 %)"
    return figures.forest(title, {"": marks}, x, line=line)


def quality(metrics: Mapping, resampled: Mapping, teacher: str = "teacher") -> Figure:
    """Validation loss and 95 % interval of every model, as tables.quality takes them."""
    loss = {name: row["loss"] for name, row in metrics.items()}
    best = min(loss.keys() - {teacher} or loss, key=loss.get)
    title = f"{best} has the lowest loss of the students: {loss[best]:.3f} nats per token"
    if teacher in loss:
        title += f", {figures.apart(loss[best] - loss[teacher])} the teacher"
    return losses(title, {n: (loss[n], *intervals.interval(resampled[n])) for n in loss})


def hard_and_easy(parts: pd.DataFrame) -> Figure:
    """Change of loss against the base on hard and on easy windows (see tables.hard_and_easy). The
    title names the merged model that gains most on the hard part."""
    parts = parts.sort_values("change, hard")
    best = next((n for n in parts.index if n.endswith("-merged")), parts.index[0])
    hard, easy = (parts.loc[best, f"change, {part}"].value for part in PARTS)
    title = f"{best} changes the loss on hard windows by {hard:+.3f} nats, on easy by {easy:+.3f}"
    rows = {n: {part: row[f"change, {part}"] for part in PARTS} for n, row in parts.iterrows()}
    return _parts(title, {"": rows}, "loss − base's (nats; left is better)")


def _parts(title: str, panels: Mapping[str, Mapping], xlabel: str) -> Figure:
    """Changes on hard and on easy text, {panel: {row: {"hard": interval, "easy": interval}}}."""
    marks = {
        panel: [Mark(row, *change[p], **PARTS[p]) for row, change in rows.items() for p in PARTS]
        for panel, rows in panels.items()
    }
    keys = [figures.key(f"{part} text", **how) for part, how in PARTS.items()]
    return figures.forest(title, marks, xlabel, keys, line=0, columns=min(2, len(marks)))


def kept_and_lost(rows: Rows, base: str, teacher: str = "teacher") -> Figure:
    """How far the base, and models named after it, are behind the teacher by kind of token."""
    rows = [row for row in rows if row["tokens"] >= FEW]
    worst = max(rows, key=lambda row: row[base] - row[teacher])
    title = f"{base} is furthest behind its teacher at “{worst['bucket']}” ({worst['cut']})"
    title += f": {worst[base] - worst[teacher]:+.3f} nats per token"
    names = [name for name in rows[0] if name.startswith(f"{base}-")] + [base]  # the base on top
    lags = [row | {name: (row[name] - row[teacher],) for name in names} for row in rows]
    return _by_kind(title, lags, names, "loss − teacher's (nats)")


def won_back(rows: Rows, base: str) -> Figure:
    """Change of the loss against the base by kind of token, a panel a cut; bars: 95 %."""
    rows = [row for row in rows if row["tokens"] >= FEW]
    names = [name for name in rows[0] if name not in KIND]
    row, name = min(itertools.product(rows, names), key=lambda pair: pair[0][pair[1]][2])
    change, title = Interval(*row[name]), f"No kind of token is clearly better than with {base}"
    if change.high < 0:
        title = f"{name} wins back most surely at “{row['bucket']}” ({row['cut']}): {change:.3f} "
        title += f"nats against {base}"
    return _by_kind(title, rows, names, f"loss − {base}'s (nats)")


def _by_kind(title: str, rows: Rows, names: Sequence[str], unit: str) -> Figure:
    """A panel a cut of kinds of token, two beside each other."""
    marks = {row["cut"]: [] for row in rows}
    for row in rows:
        marks[row["cut"]] += [Mark(row["bucket"], *row[name], **look(name)) for name in names]
    keys = [figures.key(name, **look(name)) for name in names[::-1]]
    return figures.forest(title, marks, unit, keys, line=0, columns=min(2, len(marks)))


def effects(rows: Rows, title: str) -> Figure:
    """Differences with both intervals (evidence.Effect as dictionaries, with "over_seeds"): a point
    and bar over documents, a diamond and bar over seeds below it, the plan's range as a band."""
    marks, ends = [], [0]
    for row in rows:
        name, ink, interval = row["what"], ROLES[row["role"]][0], (row["low"], row["high"])
        how = {"plan": row["plan"], "note": f"{row['value']:+.3f}"}
        marks.append(Mark(name, row["value"], *interval, ink, **how))
        ends += [*interval, *(row["plan"] or ())]
        if row["over_seeds"]:
            mean, half = row["over_seeds"]
            marks.append(Mark(name, mean, mean - half, mean + half, ink, "D", filled=False))
            # the interval of two seeds may be wider than all else: it leaves the axes
            ends += [mean - half, mean + half] if len(row["seeds"]) > 2 else [mean]
    keys = [figures.key("documents", GREY), figures.key("seeds", GREY, "D", filled=False)]
    roles = dict.fromkeys(tuple(ROLES[row["role"]]) for row in rows)
    keys += [figures.key(words, ink, "") for ink, words in roles]
    keys.append(mpl.patches.Patch(color=figures.PLAN, label="the plan"))
    figure = figures.forest(title, {"": marks}, "nats (or share); bars: 95 %", keys, line=0)
    ends = np.array(ends)[np.isfinite(ends)]
    room = 0.08 * (np.ptp(ends) or 1)
    figure.axes[0].set_xlim(ends.min() - room, ends.max() + 2 * room)
    return figure


def speeds(by_model: Mapping[str, Rows]) -> Figure:
    """Tokens a second of every way with one thread (rows of inference.with_plan)."""
    marks = {model: [] for model in by_model}
    ways = [(m, row) for m, rows in by_model.items() for row in rows if row["threads"] == 1]
    for model, row in ways:
        how = look(model) | {"note": f"{row['decode']:,.0f}", "plan": row["plan"]}
        marks[model] += [Mark(row["way"], row["decode"], row["low"], row["high"], **how)]
    model, row = max(ways, key=lambda way: way[1]["decode"])
    title = f"{row['way']} is the fastest: {row['decode']:,.0f} tokens a second of {model}"
    x = "tokens a second while decoding (logarithmic; shaded: the plan)"
    figure = figures.forest(f"{title}, one thread", marks, x)
    for ax in figure.axes:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=[1, 3]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    return figure


def sweep(rows: Rows, hints: Mapping[str, tuple[float, float]]) -> Figure:
    """What each setting changes, a panel a setting: the mean difference from the base on hard and
    on easy text (rows of book.sweep_rows), the bar over all else that varied. *: as the plan."""
    best = min(rows, key=lambda row: row["loss"])
    title = f"Lowest of {len(rows)}: {best['point']}, {best['all']} nats against the base"
    panels: dict[str, dict] = {}
    for name in dict.fromkeys(name for row in rows for name in row["varied"]):
        values = [row["varied"].get(name, "–") for row in rows]
        numbers = sorted({value for value in values if isinstance(value, int | float)})
        for value in dict.fromkeys([*numbers, *values]):
            same = [row for row, v in zip(rows, values, strict=True) if v == value]
            change = {part: [row[part][0] for row in same] for part in PARTS}
            ends = {part: (np.mean(x), min(x), max(x)) for part, x in change.items()}
            panels.setdefault(name.replace("_", " "), {})[setting(value, hints.get(name))] = ends
    return _parts(title, panels, "loss − base's (nats; *: the plan)")
