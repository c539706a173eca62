"""Figures: each function draws one claim from arrays and returns the Figure.

It never saves, shows or loads. The title states the finding with a number computed from what was
given; a model has one colour and one marker everywhere. Losses are nats per token.
Legend: N windows.
"""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from tdbook.report import figures


def learning_curves(
    curves: Mapping[str, Mapping], baseline: Mapping[str, float] | None = None
) -> Figure:
    """Validation loss over training tokens, {name: {"tokens", "loss"}}; baselines are levels."""
    ends = {name: c["loss"][-1] for name, c in curves.items()}
    best = min(ends, key=ends.get)
    title = f"{best} ends {'lowest, ' if len(ends) > 1 else ''}at {ends[best]:.3f} nats per token"
    levels = baseline or {}
    title += "".join(f", {figures._apart(ends[best] - y)} {name}" for name, y in levels.items())
    ax = figures._figure(title)
    for i, (name, c) in enumerate(curves.items()):
        every = max(1, len(c["loss"]) // 8)
        ax.plot(c["tokens"], c["loss"], linewidth=1.8, markevery=every, **figures._line(name, i))
    for name, y in levels.items():
        ax.axhline(y, color=figures.colour(name), linestyle=(0, (6, 2)), linewidth=1.4, label=name)
    ax.xaxis.set_major_formatter(figures._count)
    ax.set_xlim(left=0)
    return figures._labelled(ax, "training tokens", "validation loss\n(nats per token)")


def difficulty(student_loss_N: np.ndarray, teacher_loss_N: np.ndarray, threshold: float) -> Figure:
    """How many windows have which difficulty; those at or above the threshold are the hard set."""
    difficulty_N = np.asarray(student_loss_N) - np.asarray(teacher_loss_N)
    known_N = difficulty_N[~np.isnan(difficulty_N)]
    hard_N = known_N >= threshold
    title = f"{hard_N.mean():.1%} of windows ({hard_N.sum():,} of {len(known_N):,}) are at least"
    ax = figures._figure(f"{title} {threshold:.3f} nats harder for the student")
    low, high = np.quantile(known_N, [0.001, 0.999])
    width = max((high - low) / 60, 1e-6)
    # the line is an edge between two bins, so that the colours are exact; tails join the last bins
    line = np.clip(threshold, low, high)
    first, last = (np.floor((x - line) / width) for x in (low, high))
    edges = line + width * np.arange(min(first, -1), max(last, 0) + 2)
    bars_N = known_N.clip(edges[0], edges[-1])
    ax.hist(
        [bars_N[~hard_N], bars_N[hard_N]], edges, stacked=True, color=[figures.EASY, figures.HARD]
    )
    ax.set_ylim(0, ax.get_ylim()[1] * 1.3)
    limit = np.quantile(ax.get_xlim(), 0.7)
    better = f"← student better: {(known_N < 0).mean():.1%}"
    hard = f"hard set: {hard_N.mean():.1%} →"
    for x, y, text, dash in ((threshold, 0.98, hard, "-"), (0, 0.87, better, ":")):
        ax.axvline(x, color="black", linewidth=1.3, linestyle=dash)
        side, to = ("left", 5) if x < limit else ("right", -5)
        form = {
            "xycoords": ("data", "axes fraction"),
            "textcoords": "offset points",
            "bbox": figures.BOX,
        }
        ax.annotate(text, (x, y), (to, 0), va="top", ha=side, **form)
    ax.set(xlabel="difficulty: student loss − teacher loss (nats per token)", ylabel="windows")
    ax.yaxis.set_major_formatter(figures._count)
    return ax.figure


def teacher_against_student(
    student_loss_N: np.ndarray, teacher_loss_N: np.ndarray, hard_N: np.ndarray
) -> Figure:
    """Every window by both models' loss."""
    points = pd.DataFrame({"teacher": teacher_loss_N, "student": student_loss_N})
    lags = (points["student"] - points["teacher"]).groupby(hard_N).mean()
    hard, rest = (figures._apart(lags[part]) if part in lags else "–" for part in (True, False))
    title = f"On {np.sum(hard_N):,} hard windows the student is {hard} its teacher"
    ax = figures._figure(f"{title}, on the others {rest}", height=3.6)
    step = -(-len(points) // figures.DRAWN)
    for label, part_N, ink, form in (
        ("others", ~hard_N, figures.DOTS, "o"),
        ("hard", hard_N, figures.HARD, "^"),
    ):
        look = {"marker": form, "linewidth": 0, "alpha": 0.55, "rasterized": True, "label": label}
        ax.scatter(*points[part_N][::step].to_numpy().T, s=11, color=ink, **look)
    ends = [points["teacher"].min(), points["teacher"].max()]
    ax.plot(ends, ends, label="both the same", **figures.EVEN)
    drawn = f"; every {step}th window" if step > 1 else ""
    x, y = f"teacher loss (nats per token{drawn})", "student loss (nats per token)"
    return figures._labelled(ax, x, y, markerscale=1.8)


def share_by_source(
    sources: Sequence[str], share_hard: Sequence[float], counts: Sequence[int]
) -> Figure:
    """The hard share of each source beside that of all windows; of many, the largest sources."""
    names = [figures._printable(str(source)) for source in sources]
    table = pd.DataFrame({"windows": list(counts), "hard": list(share_hard)}, index=names)
    overall = np.average(table["hard"], weights=table["windows"])
    shown = table.nlargest(figures.LISTED, "windows").sort_values("hard", ascending=False)
    title = f"{shown['hard'].iloc[0]:.1%} of {shown.index[0]} is hard, {overall:.1%} of all windows"
    ax = figures._figure(title, rows=len(shown))
    _shares(ax, shown, overall)
    which = (
        f"; the {figures.LISTED} largest of {len(table)} sources"
        if len(table) > figures.LISTED
        else ""
    )
    ax.set_xlabel(f"share of windows that are hard (dashed: of all{which})")
    return ax.figure


def share_by_cut(by_cut: Mapping[str, pd.DataFrame]) -> Figure:
    """The hard share of every group beside that of all windows, a panel a cut of tables.by_cut. The
    title names the group that departs most; one with less than 1 % of the windows is paler."""
    every = pd.concat(by_cut, names=["cut", "group"])
    count, hard = next(iter(by_cut.values()))[["windows", "hard windows"]].sum()
    overall, least = hard / count, 0.01 * count
    shares = every.loc[every["windows"] >= least, "hard"]
    cut, group = most = (shares - overall).abs().idxmax()
    title = (
        f"{shares[most]:.1%} of windows are hard where the {figures.CUTS.get(cut, cut)} is {group}"
    )
    heights = [
        1.6 if len(table) > figures.LISTED else 0.5 + 0.24 * len(table) for table in by_cut.values()
    ]
    figure, axes = figures._panels(f"{title}, {overall:.1%} of all", heights, 0.9)
    for ax, (name, table) in zip(axes.flat, by_cut.items(), strict=True):
        ax.set_title(figures._printable(figures.CUTS.get(name, name)), loc="left")
        _shares(ax, table, overall, least)
    axes[-1, 0].set_xlabel("share of a group's windows that are hard (dashed: of all windows)")
    return figure


def _shares(ax: Axes, table: pd.DataFrame, overall: float, least: float = 0) -> None:
    """Bars of the hard share of each group, red above that of all, paler of fewer than `least`
    windows; upright where a row each would be too many."""
    inks = [
        mpl.colors.to_rgba(
            figures.HARD if row.hard > overall else figures.EASY, 1 if row.windows >= least else 0.4
        )
        for row in table.itertuples()
    ]
    names = [figures._printable(str(group)) for group in table.index]
    limit, across = max(table["hard"].max(), overall, 0.01), range(len(table))
    if len(table) > figures.LISTED:
        ax.bar(across, table["hard"], color=inks, width=0.8)
        ax.axhline(overall, color="black", linewidth=1.3, linestyle="--")
        every = len(table) // 5
        ax.set_xticks(across[::every], names[::every])
        ax.grid(axis="x", visible=False)
        ax.set(ylabel="share hard", ylim=(0, 1.1 * limit))
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        return
    ax.barh(across, table["hard"], color=inks, height=0.7)
    ax.axvline(overall, color="black", linewidth=1.3, linestyle="--")
    for i, row in enumerate(table.itertuples()):
        figures._value(ax, row.hard, i, f"{row.hard:.1%} of {row.windows:,}")
    figures._list(ax, names)
    ax.set_xlim(0, 1.35 * limit)
    ax.xaxis.set_major_formatter(PercentFormatter(1))


def agreement(rows: figures.Rows, base: str) -> Figure:
    """How far others' hard sets are the base's, and what chance would give: rows of with, jaccard,
    chance."""
    best = max(rows, key=lambda row: row["jaccard"] - row["chance"])
    title = f"{base}'s hard set is most like that by {best['with']}: Jaccard {best['jaccard']:.2f}"
    ax = figures._figure(f"{title}, where chance gives {best['chance']:.2f}", 1.6, rows=len(rows))
    for i, row in enumerate(rows):
        ax.barh(
            i,
            row["jaccard"],
            color=figures.HARD if "student_better" in row else figures.EASY,
            height=0.6,
        )
        ax.plot([row["chance"]] * 2, [i - 0.4, i + 0.4], color="black", linewidth=1.6)
        figures._value(ax, max(row["jaccard"], row["chance"]), i, f"{row['jaccard']:.2f}")
    figures._list(ax, [textwrap.fill(figures._printable(str(row["with"])), 26) for row in rows])
    ax.set_xlim(0, 1.05)
    ax.set_xlabel("Jaccard of the hard sets: 1 is the same (black: by chance; red: a student)")
    return ax.figure


def cumulative_difficulty(difficulty_N: np.ndarray, hard_N: np.ndarray) -> Figure:
    """What share of all that the student lost the hardest windows hold, from none to all."""
    known_N = np.isfinite(difficulty_N)
    lost_N = np.sort(np.fmax(difficulty_N[known_N], 0, dtype=np.float64))[::-1]
    total = lost_N.sum() or 1
    share, held = hard_N.sum() / len(lost_N), np.fmax(difficulty_N[hard_N], 0).sum() / total
    title = f"The hard set, {share:.1%} of the windows, holds {held:.1%} of all that was lost"
    ax = figures._figure(title)
    at = np.linspace(0, len(lost_N), 401).astype(int)
    held_N = np.concatenate([[0], lost_N.cumsum()])[at] / total
    ax.plot(at / len(lost_N), held_N, color=figures.HARD, linewidth=2)
    ax.plot([0, 1], [0, 1], **figures.EVEN)
    ax.annotate("were it spread evenly", (0.62, 0.5), color="#555555", fontsize=8.5)
    ax.axvline(share, color="black", linewidth=1.3)
    ax.plot(share, held, "^", color=figures.HARD, markersize=8, markeredgecolor="black")
    figures._value(ax, share, held - 0.06, f"{held:.1%}")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    ax.set(xlabel="share of the windows, the hardest first", xlim=(0, 1), ylim=(0, 1.02))
    ax.set_ylabel("share of all that was lost\n(nats where the student is behind)")
    return ax.figure


def quality(rows: figures.Rows, teacher: str = "teacher") -> Figure:
    """Validation loss and 95 % interval of every model: rows of name, loss, low, high."""
    loss = {row["name"]: row["loss"] for row in rows}
    best = min((name for name in loss if name != teacher), key=loss.get, default=teacher)
    title = f"{best} has the lowest loss of the students: {loss[best]:.3f} nats per token"
    if teacher in loss:
        title += f", {figures._apart(loss[best] - loss[teacher])} the teacher"
    rows = sorted(rows, key=lambda row: row["loss"])
    ax = _losses(title, [(r["name"], r["loss"], r["low"], r["high"]) for r in rows])
    if teacher in loss:
        ax.axvline(loss[teacher], color=figures.colour(teacher), linewidth=1.2, linestyle="--")
    return ax.figure


def progressive(versus: Mapping) -> Figure:
    """Two routes to one size: "losses" and "intervals" by name, "difference" (first − second) with
    its "low" and "high"."""
    one, other = versus["losses"]
    low, high = versus["low"], versus["high"]
    size = f"{versus['difference']:+.3f} nats [{low:+.3f}, {high:+.3f}]"
    title = f"{one} ends {'better' if high < 0 else 'worse'} than {other}: {size}"
    if low <= 0 <= high:
        title = f"No clear difference between {one} and {other}: {size}"
    rows = [(name, versus["losses"][name], *versus["intervals"][name]) for name in (one, other)]
    return _losses(title, rows).figure


def _losses(title: str, rows: Sequence[tuple[str, float, float, float]]) -> Axes:
    """Models from top to bottom: name, loss and its interval."""
    ax = figures._figure(title, 2.2, rows=len(rows))
    figures._forest(ax, [figures._mark(row[0], *row, note=f"{row[1]:.3f}") for row in rows])
    ax.margins(x=0.12)
    ax.set_xlabel(f"{figures.LOSS[:-1]}; bars: 95 % interval)")
    return ax


def hard_and_easy(parts: pd.DataFrame) -> Figure:
    """Change of loss against the base on hard and on easy windows, with 95 % intervals: a row a
    model, columns "hard change", "hard low", "hard high" and the same for easy. The title names
    the merged model that gains most on the hard part, if there is one."""
    parts = parts.sort_values("hard change")
    best = ([name for name in parts.index if name.endswith("-merged")] or [*parts.index])[0]
    hard, easy = (parts.loc[best, f"{part} change"] for part in ("hard", "easy"))
    title = f"{best} changes the loss on hard windows by {hard:+.3f} nats, on easy by {easy:+.3f}"
    ax = figures._figure(title, rows=1.5 * len(parts))
    marks = []
    for name, row in parts.iterrows():
        for part, look in (("hard", {"form": "^"}), ("easy", {"filled": False})):
            span = (row[f"{part} {key}"] for key in ("change", "low", "high"))
            marks.append(figures.Mark(name, *span, figures.colour(name), **look))
    figures._forest(ax, marks, line=0)
    ax.set_xlabel("change of loss against the base (nats per token; left is better)")
    figures._legend(
        ax.figure,
        [
            figures._key("hard windows", figures.GREY, "^"),
            figures._key("easy windows", figures.GREY, filled=False),
        ],
    )
    return ax.figure


def kept_and_lost(cuts: figures.ByCut, base: str, teacher: str = "teacher") -> Figure:
    """How far behind the teacher by kind of token, {cut: {bucket: {model: loss}}}, a panel a cut.
    Drawn are the base and the models whose names begin with it; the table has the others."""
    behind = {(cut, b): m[base] - m[teacher] for cut, bs in cuts.items() for b, m in bs.items()}
    cut, bucket = max(behind, key=behind.get)
    title = f"{base} is furthest behind its teacher at “{bucket}” ({cut})"
    title += f": {behind[cut, bucket]:+.3f} nats per token"
    some = next(iter(next(iter(cuts.values())).values()))
    names = [name for name in some if name.startswith(f"{base}-")] + [base]  # the base on top
    marks = {
        cut: [figures._mark(b, n, m[n] - m[teacher]) for b, m in bs.items() for n in names]
        for cut, bs in cuts.items()
    }
    return _cuts(marks, names, title, "loss − teacher's (nats)", spread=0)


def won_back(cuts: figures.ByCut, base: str) -> Figure:
    """Change of the loss against the base by kind of token, {cut: {bucket: {model: (change, low,
    high)}}}, a panel a cut; left of the line is better, bars are 95 % intervals."""
    each = [(m[n], n, b, cut) for cut, bs in cuts.items() for b, m in bs.items() for n in m]
    (value, low, high), name, bucket, cut = min(each, key=lambda one: one[0][2])
    title = f"No kind of token is clearly better than with {base}"
    if high < 0:
        title = f"{name} wins back most surely at “{bucket}” ({cut}): {value:+.3f} nats "
        title += f"[{low:+.3f}, {high:+.3f}] against {base}"
    marks = {
        cut: [figures._mark(b, n, *m[n]) for b, m in bs.items() for n in m]
        for cut, bs in cuts.items()
    }
    names = list(dict.fromkeys(n for _, n, _, _ in each))
    return _cuts(marks, names, title, f"loss − {base}'s (nats)")


def _cuts(
    cuts: Mapping[str, Sequence], names: Sequence[str], title: str, unit: str, spread: float = 0.7
) -> Figure:
    """A panel of marks a cut, two beside each other and narrow, for a phone."""
    each = 0.08 + 0.11 * len(names) if spread else 0.21  # inches of a bucket
    counts = [len({mark.row for mark in marks}) for marks in cuts.values()]
    heights = [max(counts[i : i + 2]) * each + 0.35 for i in range(0, len(cuts), 2)]
    room = 1.5 + 0.2 * -(-len(names) // 2)
    figure, axes = figures._panels(title, heights, room, 2, len(cuts), figures.PHONE, sharex=True)
    for i, (ax, (cut, marks)) in enumerate(zip(axes.flat, cuts.items(), strict=False)):
        ax.set_title(cut, loc="left")
        figures._forest(ax, marks, spread, line=0)
        if i >= len(cuts) - 2:  # the lowest of its column
            ax.tick_params(labelbottom=True)
            ax.set_xlabel(unit)
    figures._legend(
        figure,
        [figures._key(name, figures.colour(name), figures.marker(name)) for name in names[::-1]],
    )
    return figure


def effects(rows: figures.Rows, title: str) -> Figure:
    """Differences with both intervals (evidence.Effect as dictionaries, with "over_seeds"): a point
    and bar over documents, a diamond and bar over seeds below it, the plan's range as a band."""
    names = [textwrap.fill(figures._printable(row["what"]), 30) for row in rows]
    height = sum(0.3 + 0.18 * name.count("\n") for name in names)
    figure, ((ax,),) = figures._panels(title, [height], 1.7, width=figures.PHONE)
    marks, ends, bands, roles = [], [0], {}, {}
    for i, (name, row) in enumerate(zip(names, rows, strict=True)):
        ink, _ = roles[row["role"]] = figures.ROLES[row["role"]]
        marks.append(figures.Mark(name, row["value"], row["low"], row["high"], ink))
        bands[name] = row["plan"] or ()
        ends += [row["low"], row["high"], *bands[name]]
        if row["over_seeds"]:
            mean, half = row["over_seeds"]
            marks.append(figures.Mark(name, mean, mean - half, mean + half, ink, "D", filled=False))
            # the interval of two seeds may be wider than all else: it leaves the axes
            ends += [mean - half, mean + half] if len(row["seeds"]) > 2 else [mean]
        text = f"{row['value']:+.3f}".replace("-", "−")  # beside the axes, where no band is
        ax.annotate(text, (1.02, i), xycoords=("axes fraction", "data"), va="center", fontsize=8.5)
    figures._forest(ax, marks, bands=bands, line=0)
    ax.tick_params(axis="y", labelsize=8.5)
    ends = np.array(ends)[np.isfinite(ends)]
    room = 0.08 * (np.ptp(ends) or 1)
    ax.set_xlim(ends.min() - room, ends.max() + room)
    ax.set_xlabel("nats per token (or share); bars: 95 %")
    keys = [
        figures._key("documents", figures.GREY),
        figures._key("seeds", figures.GREY, "D", filled=False),
    ]
    keys += [figures._key(words, ink, "") for ink, words in roles.values()]
    keys += [mpl.patches.Patch(color=figures.PLAN, label="the plan")] * any(bands.values())
    figures._legend(figure, keys, 3)
    return figure


def speeds(found: Mapping[str, figures.Rows]) -> Figure:
    """Tokens a second of every way with one thread (rows of inference.with_plan), a panel a model,
    logarithmic; the plan's estimate as a band."""
    models = {m: [row for row in ways if row["threads"] == 1] for m, ways in found.items()}
    each = [(row["decode"], row["way"], model) for model, rows in models.items() for row in rows]
    most, way, model = max(each, key=lambda one: one[0])
    title = f"{way} is the fastest: {most:,.0f} tokens a second of {model}, one thread"
    heights = [0.35 + 0.28 * len(rows) for rows in models.values()]
    figure, axes = figures._panels(title, heights, 1.0, sharex=True)
    for ax, (name, rows) in zip(axes.flat, models.items(), strict=True):
        ax.set_title(name, loc="left")
        marks = [
            figures._mark(
                r["way"], name, r["decode"], r["low"], r["high"], note=f"{r['decode']:,.0f}"
            )
            for r in rows
        ]
        figures._forest(ax, marks, bands={row["way"]: row["plan"] for row in rows})
        figures._logarithmic(ax, [1])
        ax.margins(x=0.15)
    axes[-1, 0].set_xlabel("tokens a second while decoding (logarithmic; shaded: the plan)")
    return figure


def sensitivity(rows: figures.Rows, hints: figures.Hints) -> Figure:
    """Two of share, rank and scale against each other, of all three a map a scale, on hard and on
    easy text: difference from the base (rows of book.sweep_rows, every setting in "varied"), one
    scale of colours. Of several seeds the mean, and their spread. A frame: what the plan says."""
    varied = [name for name in ("share", "rank", "lora_scale") if name in rows[0]["varied"]]
    (down, across), third = varied[:2], "".join(varied[2:])
    frame = pd.DataFrame([row["varied"] | {p: row[p][0] for p in ("hard", "easy")} for row in rows])
    cells = frame.assign(**{third: frame.get(third, 0)}).groupby([third, down, across])
    means, spreads = cells[["hard", "easy"]].mean(), cells[["hard", "easy"]].std()
    best, most = means["hard"].idxmin(), means.abs().max(axis=None)
    named = [
        f"{n.replace('lora_', '')} {x:g}" for n, x in zip(means.index.names, best, strict=True)
    ]
    hard, easy = means.loc[best]
    title = f"Hard text gains most at {', '.join(named if third else named[1:])}: {hard:+.3f} nats"
    maps = means.index.levels[0]
    heights = [0.4 + 0.36 * len(means.index.levels[1])] * len(maps)
    shared = {"sharex": True, "sharey": True}
    title = f"{title}, easy text {easy:+.3f}"
    figure, axes = figures._panels(title, heights, 1.9, 2, 2 * len(maps), figures.PHONE, **shared)
    for value, pair in zip(maps, axes, strict=True):
        for part, ax in zip(("hard", "easy"), pair, strict=True):
            mean, spread = (found.loc[value, part].unstack() for found in (means, spreads))
            colours = _map(ax, mean, spread, most, hints)
            star = " *" * figures._within(value, hints.get(third))
            scale = f", {third.replace('lora_', '')} {value:g}{star}" if third else ""
            ax.set_title(part + scale, loc="left")
    for ax in axes[-1]:
        ax.set_xlabel(across.replace("lora_", ""))
    figure.supylabel("share of windows that are hard" if down == "share" else down, fontsize=9.5)
    bar = figure.colorbar(colours, ax=axes, location="bottom", fraction=0.04, aspect=40)
    star = ", *: and its scale" if third in hints else ""
    bar.set_label(f"loss − base's (nats; blue is better)\nframe: the plan's values{star}")
    return figure


def _map(
    ax: Axes, mean: pd.DataFrame, spread: pd.DataFrame, most: float, hints: Mapping
) -> mpl.collections.QuadMesh:
    """Colour and number of each pair of settings, the spread over seeds below it; a frame around
    those that lie within what the plan says of both."""
    edges = (np.arange(n + 1) - 0.5 for n in mean.shape[::-1])
    colours = ax.pcolormesh(*edges, mean, cmap=figures.GAINS, vmin=-most, vmax=most)
    for (y, x), value in np.ndenumerate(mean):
        if np.isfinite(value):
            ink, sd = "white" if abs(value) > 0.7 * most else "black", spread.iloc[y, x]
            text = f"{value:+.3f}".replace("-", "−") + (f"\n±{sd:.3f}" if np.isfinite(sd) else "")
            ax.text(x, y, text, ha="center", va="center", fontsize=7.5, color=ink)
    inside = []
    for axis, values in ((ax.xaxis, mean.columns), (ax.yaxis, mean.index)):
        form = "{:.0%}" if values.name == "share" else "{:g}"
        axis.set_ticks(range(len(values)), map(form.format, values))
        plan = hints.get(values.name)
        inside.append([i for i, value in enumerate(values) if figures._within(value, plan)])
    x, y = inside
    if x and y:
        form = {"fill": False, "edgecolor": "black", "linewidth": 1.8, "zorder": 3}
        corner = x[0] - 0.5, y[0] - 0.5
        ax.add_patch(mpl.patches.Rectangle(corner, len(x), len(y), **form))
    ax.set(xlim=(-0.55, mean.shape[1] - 0.45), ylim=(len(mean) - 0.45, -0.55))
    ax.grid(visible=False)
    return colours


def calibration(bins: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Accuracy against confidence, {model: {"confidence", "accuracy", "share"}}, by bins.
    The number is the expected calibration error, Σ share · |accuracy − confidence|."""
    frames = {name: pd.DataFrame(b).query("share > 0") for name, b in bins.items()}
    errors = {n: (b.share * (b.accuracy - b.confidence).abs()).sum() for n, b in frames.items()}
    words = ", ".join(f"{name} {error:.3f}" for name, error in errors.items())
    ax = figures._figure(f"Calibration error (0 is perfect): {words}", height=3.4)
    ax.plot([0, 1], [0, 1], label="perfect", **figures.EVEN)
    for i, (name, b) in enumerate(frames.items()):
        look = figures._line(name, i)
        ax.plot(b.confidence, b.accuracy, look.pop("linestyle"), color=look["color"], linewidth=1.2)
        ax.scatter(b.confidence, b.accuracy, 15 + 150 * b.share, **look)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    x = "confidence in the likeliest token (size: share of tokens)"
    return figures._labelled(ax, x, "how often it is right")


def sizes(
    names: Sequence[str], parameters: Sequence[int], loss: Sequence[float], teacher: str = "teacher"
) -> Figure:
    """Validation loss against the number of weights, every model by name."""
    points = {n: (float(p), float(y)) for n, p, y in zip(names, parameters, loss, strict=True)}
    best = min((n for n in points if n != teacher), key=lambda n: points[n][1], default=teacher)
    title = f"{best} has {figures._count(points[best][0])} weights and {points[best][1]:.3f} nats"
    if teacher in points:
        title += f", the teacher {figures._count(points[teacher][0])} and {points[teacher][1]:.3f}"
    ax = figures._figure(title, height=3.8)
    by_loss = sorted(points, key=lambda n: -points[n][1])
    for name, height in zip(by_loss, np.linspace(1, 0, len(points) + 1), strict=False):
        form = {"color": figures.colour(name), "markersize": 8, "markeredgecolor": "white"}
        ax.plot(*points[name], figures.marker(name), **form)
        line = {
            "arrowstyle": "-",
            "color": figures.colour(name),
            "lw": 0.6,
            "alpha": 0.6,
            "shrinkB": 4,
        }
        form = {"textcoords": "axes fraction", "va": "center", "arrowprops": line}
        ax.annotate(name, points[name], (1.04, height), **form)
    figures._logarithmic(ax, [1, 1.5, 2, 3, 5, 7])
    ax.set(xlabel="weights (logarithmic)", ylabel=figures.LOSS)
    return ax.figure


def settings(rows: Sequence[tuple[float, float, float]]) -> Figure:
    """Loss over ce_weight, a line a temperature: rows of ce_weight, temperature, loss; at ce_weight
    1 there is no temperature, so that point ends every line. Stars: what the plan names."""
    weight, temperature, lowest = min(rows, key=lambda row: row[2])
    ends = [(w, loss) for w, _, loss in rows if w == 1]
    plans = [(loss, w) for w, t, loss in rows if w == 0.5 and 2 <= t <= 4]
    way = f", T {temperature:g}" if weight < 1 else ", from the text alone"
    title = f"Lowest at ce_weight {weight:g}{way}: {lowest:.3f} nats"
    if plans:
        title += f", the plan's best setting {min(plans)[0] - lowest:.3f} above"
    ax = figures._figure(title)
    temperatures = sorted({t for w, t, _ in rows if w < 1})
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.8, len(temperatures)))
    for i, temperature in enumerate(temperatures):
        line = sorted([(w, loss) for w, t, loss in rows if t == temperature and w < 1] + ends)
        form = {"marker": "os^Dv"[i % 5], "linestyle": figures.LINES[i % 4], "color": shades[i]}
        ax.plot(*zip(*line, strict=True), label=f"T {temperature:g}", **form)
    for loss, w in plans:
        ax.plot(w, loss, "*", color="black", markersize=11)
    x = "ce_weight: share of the true next token in the loss (1: from the text alone)"
    return figures._labelled(ax, x, "development loss\n(nats per token)")


def sweep(rows: figures.Rows, hints: figures.Hints) -> Figure:
    """What each setting changes, a panel a setting: difference from the base on hard and on easy
    text (rows of book.sweep_rows), the mean over all else as a line, single points faint."""
    best = min(rows, key=lambda row: row["loss"])
    value, low, high = best["all"]
    title = f"Lowest of {len(rows)}: {best['point']}, {value:+.3f} nats on all text "
    title += f"[{low:+.3f}, {high:+.3f}] against the base"
    names = list(dict.fromkeys(name for row in rows for name in row["varied"])) or ["point"]
    heights = [2.0] * -(-len(names) // 2)
    figure, axes = figures._panels(title, heights, 1.3, min(2, len(names)), len(names), sharey=True)
    for ax, name in zip(axes.flat, names, strict=False):
        _setting(ax, rows, name, hints.get(name))
    for ax in axes[:, 0]:
        ax.set_ylabel("loss − base's\n(nats per token)")
    figures._legend(figure, axes.flat[0].get_legend_handles_labels()[0], 3)
    return figure


def _setting(ax: Axes, rows: figures.Rows, name: str, plan: tuple | None) -> None:
    """One panel of `sweep`: the values of one setting, evenly spaced in order."""
    values = [row["varied"].get(name, "–") for row in rows]
    numbers = {v for v in values if isinstance(v, int | float) and not isinstance(v, bool)}
    order = sorted(numbers) + [v for v in dict.fromkeys(values) if v not in numbers]
    x = np.array([order.index(value) for value in values])
    for part, ink, line, shift in (
        ("hard", figures.HARD, "-o", -0.06),
        ("easy", figures.GREY, "--s", 0.06),
    ):
        y = np.array([row[part][0] for row in rows])
        ax.scatter(x + shift, y, 12, color=ink, alpha=0.35, linewidths=0)
        means = [y[x == i].mean() for i in range(len(order))]
        form = {"color": ink, "label": f"{part} text", "markersize": 5, "linewidth": 1.4}
        ax.plot(np.arange(len(order)) + shift, means, line, **form)
    inside = [i for i, v in enumerate(order) if v in numbers and figures._within(v, plan)]
    if inside:
        ax.axvspan(
            inside[0] - 0.4, inside[-1] + 0.4, color=figures.PLAN, zorder=0, label="the plan"
        )
    ax.axhline(0, color="black", linewidth=0.8)
    texts = [f"{v:g}" if v in numbers else str(v) for v in order]
    ax.set_xticks(range(len(order)), texts, rotation=20 if max(map(len, texts)) > 7 else 0)
    ax.set_xlim(-0.6, len(order) - 0.4)
    ax.set_title(name.replace("_", " "), loc="left")


def quantization(found: Mapping[str, figures.Rows]) -> Figure:
    """Loss against bytes, a line a model through its formats (rows of inference.costs)."""
    frames = {name: pd.DataFrame(rows) for name, rows in found.items()}
    losses = {n: f.set_index("format")["loss"] for n, f in frames.items()}
    changes = pd.concat({name: loss - loss.iloc[0] for name, loss in losses.items()})
    model, form = changes.idxmax()
    ax = figures._figure(f"{form} costs {model} the most: {changes.max():+.3f} nats", height=3.4)
    for i, (name, frame) in enumerate(frames.items()):
        ax.plot(
            *frame.sort_values("bytes")[["bytes", "loss"]].to_numpy().T, **figures._line(name, i)
        )
    for row in next(iter(frames.values())).itertuples():
        form = {"textcoords": "offset points", "fontsize": 8, "rotation": 30}
        ax.annotate(row.format, (row.bytes, row.loss), (2, 5), **form)
    figures._logarithmic(ax, [1, 2, 5])
    ax.margins(x=0.1, y=0.15)
    return figures._labelled(ax, "bytes (logarithmic)", figures.LOSS)
