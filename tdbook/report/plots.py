"""Figures: each function draws one claim from arrays and returns the Figure.

It never saves, shows or loads. The title states the finding with a number computed from what was
given; a model has one colour and marker everywhere. Losses: nats per token. Legend: N windows.
"""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tdbook.report import figures
from tdbook.report.figures import DRAWN, EASY, GREY, HARD, LOSS, ROLES, ByCut, Mark, Rows


def learning_curves(
    curves: Mapping[str, Mapping], baseline: Mapping[str, float] | None = None
) -> Figure:
    """Validation loss over training tokens, {name: {"tokens", "loss"}}; baselines are levels."""
    ends = {name: curve["loss"][-1] for name, curve in curves.items()}
    best, levels = min(ends, key=ends.get), baseline or {}
    title = f"{best} ends {'lowest, ' if len(ends) > 1 else ''}at {ends[best]:.3f} nats per token"
    title += "".join(f", {figures.apart(ends[best] - y)} {name}" for name, y in levels.items())
    ax = figures.single(title)
    for i, (name, curve) in enumerate(curves.items()):
        look = figures.model_line(name, i) | {"markevery": max(1, len(curve["loss"]) // 8)}
        ax.plot(curve["tokens"], curve["loss"], linewidth=1.8, **look)
    for name, y in levels.items():
        ax.axhline(y, color=figures.colour(name), linestyle=(0, (6, 2)), linewidth=1.4, label=name)
    ax.xaxis.set_major_formatter(figures.count)
    ax.set_xlim(left=0)
    return figures.labelled(ax, "training tokens", "validation loss\n(nats per token)")


def difficulty(student_loss_N: np.ndarray, teacher_loss_N: np.ndarray, threshold: float) -> Figure:
    """How many windows have which difficulty; those at or above the threshold are the hard set."""
    difficulty_N = np.asarray(student_loss_N) - np.asarray(teacher_loss_N)
    known_N = difficulty_N[~np.isnan(difficulty_N)]
    hard_N = known_N >= threshold
    title = f"{hard_N.mean():.1%} of windows ({hard_N.sum():,} of {len(known_N):,}) are at least"
    ax = figures.single(f"{title} {threshold:.3f} nats harder for the student")
    low, high = np.quantile(known_N, [0.001, 0.999])
    width = max((high - low) / 60, 1e-6)
    # the line is an edge between two bins, so that the colours are exact; tails join the last bins
    line = np.clip(threshold, low, high)
    first, last = (np.floor((x - line) / width) for x in (low, high))
    edges = line + width * np.arange(min(first, -1), max(last, 0) + 2)
    bars_N = known_N.clip(edges[0], edges[-1])
    parts = [bars_N[~hard_N], bars_N[hard_N]]
    ax.hist(parts, edges, stacked=True, color=[EASY, HARD])
    ax.set_ylim(0, ax.get_ylim()[1] * 1.3)
    right = np.quantile(ax.get_xlim(), 0.7)
    better = f"← student better: {(known_N < 0).mean():.1%}"
    hard = f"hard set: {hard_N.mean():.1%} →"
    for x, y, text, dash in ((threshold, 0.98, hard, "-"), (0, 0.87, better, ":")):
        ax.axvline(x, color="black", linewidth=1.3, linestyle=dash)
        side = "left" if x < right else "right"
        place = {"xycoords": ("data", "axes fraction"), "va": "top", "fontsize": 9.5}
        figures.note(ax, x, y, text, side, **place)
    ax.set(xlabel="difficulty: student loss − teacher loss (nats per token)", ylabel="windows")
    ax.yaxis.set_major_formatter(figures.count)
    return ax.figure


def teacher_against_student(
    student_loss_N: np.ndarray, teacher_loss_N: np.ndarray, hard_N: np.ndarray
) -> Figure:
    """Every window by both models' loss."""
    points = pd.DataFrame({"teacher": teacher_loss_N, "student": student_loss_N})
    lags = (points["student"] - points["teacher"]).groupby(hard_N).mean()
    hard, rest = (figures.apart(lags[part]) if part in lags else "–" for part in (True, False))
    title = f"On {np.sum(hard_N):,} hard windows the student is {hard} its teacher"
    ax = figures.single(f"{title}, on the others {rest}", height=3.6)
    step = -(-len(points) // DRAWN)
    look = {"s": 11, "linewidth": 0, "alpha": 0.55, "rasterized": True}
    parts = (("others", ~hard_N, figures.DOTS, "o"), ("hard", hard_N, HARD, "^"))
    for label, part_N, ink, form in parts:
        xy = points[part_N][::step].to_numpy().T
        ax.scatter(*xy, color=ink, marker=form, label=label, **look)
    ends = [points["teacher"].min(), points["teacher"].max()]
    ax.plot(ends, ends, label="both the same", **figures.EVEN)
    x = f"teacher loss (nats per token{f'; every {step}th window' * (step > 1)})"
    return figures.labelled(ax, x, "student loss (nats per token)", markerscale=1.8)


def cumulative_difficulty(difficulty_N: np.ndarray, hard_N: np.ndarray) -> Figure:
    """What share of all that the student lost the hardest windows hold, from none to all."""
    known_N = np.isfinite(difficulty_N)
    lost_N = np.sort(np.fmax(difficulty_N[known_N], 0, dtype=np.float64))[::-1]
    total = lost_N.sum() or 1
    share, held = hard_N.sum() / len(lost_N), np.fmax(difficulty_N[hard_N], 0).sum() / total
    title = f"The hard set, {share:.1%} of the windows, holds {held:.1%} of all that was lost"
    ax = figures.single(title)
    at = np.linspace(0, len(lost_N), 401).astype(int)
    held_N = np.concatenate([[0], lost_N.cumsum()])[at] / total
    ax.plot(at / len(lost_N), held_N, color=HARD, linewidth=2)
    ax.plot([0, 1], [0, 1], **figures.EVEN)
    ax.annotate("were it spread evenly", (0.62, 0.5), color="#555555", fontsize=8.5)
    ax.axvline(share, color="black", linewidth=1.3)
    ax.plot(share, held, "^", color=HARD, markersize=8, markeredgecolor="black")
    figures.note(ax, share, held - 0.06, f"{held:.1%}")
    figures.percent(ax.xaxis, ax.yaxis)
    y = "share of all that was lost\n(nats where the student is behind)"
    ax.set(xlabel="share of the windows, the hardest first", ylabel=y, xlim=(0, 1), ylim=(0, 1.02))
    return ax.figure


def share_by_source(
    sources: Sequence[str], share_hard: Sequence[float], counts: Sequence[int]
) -> Figure:
    """The hard share of each source beside that of all windows; of many, the largest sources."""
    columns = {"windows": list(counts), "hard": list(share_hard)}
    table = pd.DataFrame(columns, index=map(figures.printable, sources))
    overall = np.average(table["hard"], weights=table["windows"])
    listed = table.nlargest(figures.LISTED, "windows").sort_values("hard", ascending=False)
    highest = f"{listed['hard'].iloc[0]:.1%} of {listed.index[0]} is hard"
    ax = figures.single(f"{highest}, {overall:.1%} of all windows", rows=len(listed))
    _shares(ax, listed, overall)
    largest = f"; the {len(listed)} largest of {len(table)} sources" * (len(table) > len(listed))
    ax.set_xlabel(f"share of windows that are hard (dashed: of all{largest})")
    return ax.figure


def share_by_cut(by_cut: Mapping[str, pd.DataFrame]) -> Figure:
    """The hard share of every group beside that of all windows, a panel a cut of tables.by_cut. The
    title names the group that departs most; one with less than 1 % of the windows is hollow."""
    every = pd.concat(by_cut, names=["cut", "group"])
    count, hard = next(iter(by_cut.values()))[["windows", "hard windows"]].sum()
    overall, least = hard / count, 0.01 * count
    shares = every.loc[every["windows"] >= least, "hard"]
    cut, group = most = (shares - overall).abs().idxmax()
    where = f"where the {figures.CUTS.get(cut, cut)} is {group}"
    title = f"{shares[most]:.1%} of windows are hard {where}, {overall:.1%} of all"
    heights = [0.5 + 0.24 * len(table) for table in by_cut.values()]
    figure, axes = figures.panels(title, heights, 0.9)
    for ax, (name, table) in zip(axes.flat, by_cut.items(), strict=True):
        ax.set_title(figures.printable(figures.CUTS.get(name, name)), loc="left")
        _shares(ax, table, overall, least)
    axes[-1, 0].set_xlabel("share of a group's windows that are hard (dashed: of all windows)")
    return figure


def _shares(ax: Axes, table: pd.DataFrame, overall: float, least: float = 0) -> None:
    """The hard share of each group, red above that of all, hollow of fewer than `least` windows."""
    marks = []
    for group, row in table.iterrows():
        ink = HARD if row["hard"] > overall else figures.DOTS
        words = f"{row['hard']:.1%} of {row['windows']:,.0f}"
        interval, filled = (0, row["hard"]), row["windows"] >= least
        marks.append(Mark(group, row["hard"], *interval, ink, filled=filled, note=words))
    figures.forest(ax, marks)
    ax.axvline(overall, color="black", linestyle="--")
    ax.set_xlim(0, 1.35 * max(table["hard"].max(), overall, 0.01))
    figures.percent(ax.xaxis)


def agreement(rows: Rows, base: str) -> Figure:
    """How far others' hard sets are the base's, and what chance would give: rows of with, jaccard,
    chance."""
    best = max(rows, key=lambda row: row["jaccard"] - row["chance"])
    title = f"{base}'s hard set is most like that by {best['with']}: Jaccard {best['jaccard']:.2f}"
    ax = figures.single(f"{title}, where chance gives {best['chance']:.2f}", 1.6, rows=len(rows))
    marks = []
    for row in rows:
        ink, number = HARD if "student_better" in row else GREY, f"{row['jaccard']:.2f}"
        marks.append(Mark(row["with"], row["chance"], ink="black", form="D", filled=False))
        marks.append(Mark(row["with"], row["jaccard"], 0, row["jaccard"], ink, note=number))
    figures.forest(ax, marks, spread=0)
    ax.set_xlim(0, 1.05)
    ax.set_xlabel("Jaccard of the hard sets: 1 is the same (hollow: by chance; red: a student)")
    return ax.figure


def quality(rows: Rows, teacher: str = "teacher") -> Figure:
    """Validation loss and 95 % interval of every model: rows of name, loss, low, high."""
    rows = sorted(rows, key=lambda row: row["loss"])
    loss = {row["name"]: row["loss"] for row in rows}
    best = next((name for name in loss if name != teacher), teacher)
    title = f"{best} has the lowest loss of the students: {loss[best]:.3f} nats per token"
    if teacher in loss:
        title += f", {figures.apart(loss[best] - loss[teacher])} the teacher"
    return _losses(title, rows, loss.get(teacher))


def progressive(versus: Mapping) -> Figure:
    """Two routes to one size: "losses" and "intervals" by name, "difference" (first − second) with
    its "low" and "high"."""
    one, other = versus["losses"]
    low, high = versus["low"], versus["high"]
    size = f"{versus['difference']:+.3f} nats [{low:+.3f}, {high:+.3f}]"
    title = f"{one} ends {'better' if high < 0 else 'worse'} than {other}: {size}"
    if low <= 0 <= high:
        title = f"No clear difference between {one} and {other}: {size}"
    ends = pd.DataFrame(versus["intervals"], index=["low", "high"]).T
    rows = ends.assign(name=ends.index, loss=versus["losses"]).to_dict("records")
    return _losses(title, rows)


def _losses(title: str, rows: Rows, line: float | None = None) -> Figure:
    """Models from top to bottom: rows of name, loss, low, high."""
    ax = figures.single(title, 2.2, rows=len(rows))
    marks = []
    for row in rows:
        loss = (row["loss"], row["low"], row["high"])
        marks.append(figures.of_model(row["name"], *loss, note=f"{row['loss']:.3f}"))
    figures.forest(ax, marks, line=line)
    ax.margins(x=0.12)
    ax.set_xlabel(f"{LOSS[:-1]}; bars: 95 % interval)")
    return ax.figure


def hard_and_easy(parts: pd.DataFrame) -> Figure:
    """Change of loss against the base on hard and on easy windows, with 95 % intervals: a row a
    model, columns "hard change", "hard low", "hard high" and the same for easy. The title names
    the merged model that gains most on the hard part, if there is one."""
    parts = parts.sort_values("hard change")
    best = next((n for n in parts.index if n.endswith("-merged")), parts.index[0])
    hard, easy = (parts.loc[best, f"{part} change"] for part in ("hard", "easy"))
    title = f"{best} changes the loss on hard windows by {hard:+.3f} nats, on easy by {easy:+.3f}"
    ax = figures.single(title, rows=1.5 * len(parts))
    marks = []
    for name, row in parts.iterrows():
        for part, form, filled in (("hard", "^", True), ("easy", "o", False)):
            change = (row[f"{part} {key}"] for key in ("change", "low", "high"))
            marks.append(Mark(name, *change, figures.colour(name), form, filled))
    figures.forest(ax, marks, line=0)
    ax.set_xlabel("change of loss against the base (nats per token; left is better)")
    keys = figures.key("hard windows", GREY, "^"), figures.key("easy windows", GREY, filled=False)
    figures.legend(ax.figure, keys)
    return ax.figure


def kept_and_lost(cuts: ByCut, base: str, teacher: str = "teacher") -> Figure:
    """How far behind the teacher by kind of token, {cut: {bucket: {model: loss}}}, a panel a cut.
    Drawn are the base and the models whose names begin with it; the table has the others."""
    behind = {(cut, b): m[base] - m[teacher] for cut, bs in cuts.items() for b, m in bs.items()}
    cut, bucket = max(behind, key=behind.get)
    title = f"{base} is furthest behind its teacher at “{bucket}” ({cut})"
    title += f": {behind[cut, bucket]:+.3f} nats per token"
    models = next(iter(next(iter(cuts.values())).values()))
    names = [name for name in models if name.startswith(f"{base}-")] + [base]  # the base on top
    marks = {
        cut: [figures.of_model(n, m[n] - m[teacher], row=b) for b, m in bs.items() for n in names]
        for cut, bs in cuts.items()
    }
    return _by_kind(marks, names, title, "loss − teacher's (nats)", spread=0)


def won_back(cuts: ByCut, base: str) -> Figure:
    """Change of the loss against the base by kind of token, {cut: {bucket: {model: (change, low,
    high)}}}, a panel a cut; left of the line is better, bars are 95 % intervals."""
    changes = {(cut, b, n): m[n] for cut, bs in cuts.items() for b, m in bs.items() for n in m}
    cut, bucket, name = surest = min(changes, key=lambda place: changes[place][2])
    value, low, high = changes[surest]
    title = f"No kind of token is clearly better than with {base}"
    if high < 0:
        title = f"{name} wins back most surely at “{bucket}” ({cut}): {value:+.3f} nats "
        title += f"[{low:+.3f}, {high:+.3f}] against {base}"
    marks: dict[str, list[Mark]] = {}
    for (cut, bucket, name), change in changes.items():
        marks.setdefault(cut, []).append(figures.of_model(name, *change, row=bucket))
    names = list(dict.fromkeys(name for _, _, name in changes))
    return _by_kind(marks, names, title, f"loss − {base}'s (nats)")


def _by_kind(
    cuts: Mapping[str, Sequence], names: Sequence[str], title: str, unit: str, spread: float = 0.7
) -> Figure:
    """A panel of marks a cut, two beside each other and narrow, for a phone."""
    each = 0.08 + 0.11 * len(names) if spread else 0.21  # inches of a bucket
    counts = [len({mark.row for mark in marks}) for marks in cuts.values()]
    heights = [max(counts[i : i + 2]) * each + 0.35 for i in range(0, len(cuts), 2)]
    room, layout = 1.5 + 0.2 * -(-len(names) // 2), {"ncols": 2, "sharex": True}
    figure, axes = figures.panels(title, heights, room, len(cuts), width=figures.PHONE, **layout)
    for i, (ax, (cut, marks)) in enumerate(zip(axes.flat, cuts.items(), strict=False)):
        ax.set_title(cut, loc="left")
        figures.forest(ax, marks, spread=spread, line=0)
        if i >= len(cuts) - 2:  # the lowest of its column
            ax.tick_params(labelbottom=True)
            ax.set_xlabel(unit)
    looks = ((name, figures.colour(name), figures.marker(name)) for name in names[::-1])
    figures.legend(figure, [figures.key(*look) for look in looks])
    return figure


def effects(rows: Rows, title: str) -> Figure:
    """Differences with both intervals (evidence.Effect as dictionaries, with "over_seeds"): a point
    and bar over documents, a diamond and bar over seeds below it, the plan's range as a band."""
    height = sum(0.3 + 0.18 * (len(row["what"]) // 30) for row in rows)
    figure, ((ax,),) = figures.panels(title, [height], 1.7, width=figures.PHONE)
    marks, ends = [], [0]
    for i, row in enumerate(rows):
        name, ink = row["what"], ROLES[row["role"]][0]
        marks.append(Mark(name, row["value"], row["low"], row["high"], ink))
        ends += [row["low"], row["high"], *(row["plan"] or ())]
        if row["over_seeds"]:
            mean, half = row["over_seeds"]
            marks.append(Mark(name, mean, mean - half, mean + half, ink, "D", filled=False))
            # the interval of two seeds may be wider than all else: it leaves the axes
            ends += [mean - half, mean + half] if len(row["seeds"]) > 2 else [mean]
        place = {"xycoords": ("axes fraction", "data"), "bbox": None}  # beside, where no band is
        figures.note(ax, 1.01, i, figures.signed(row["value"]), **place)
    bands = {
        row["what"]: row["plan"] for row in rows if row["plan"] and np.isfinite(row["plan"][0])
    }
    figures.forest(ax, marks, bands=bands, line=0)
    ax.tick_params(axis="y", labelsize=8.5)
    ends = np.array(ends)[np.isfinite(ends)]
    room = 0.08 * (np.ptp(ends) or 1)
    ax.set_xlim(ends.min() - room, ends.max() + room)
    ax.set_xlabel("nats per token (or share); bars: 95 %")
    keys = [figures.key("documents", GREY), figures.key("seeds", GREY, "D", filled=False)]
    roles = dict.fromkeys(ROLES[row["role"]] for row in rows)
    keys += [figures.key(words, ink, "") for ink, words in roles]
    keys += [mpl.patches.Patch(color=figures.PLAN, label="the plan")] * bool(bands)
    figures.legend(figure, keys, 3)
    return figure


def speeds(found: Mapping[str, Rows]) -> Figure:
    """Tokens a second of every way with one thread (rows of inference.with_plan), a panel a model,
    logarithmic; the plan's estimate as a band."""
    models = {m: [row for row in ways if row["threads"] == 1] for m, ways in found.items()}
    each = [(row["decode"], row["way"], model) for model, rows in models.items() for row in rows]
    most, way, model = max(each, key=lambda speed: speed[0])
    title = f"{way} is the fastest: {most:,.0f} tokens a second of {model}, one thread"
    heights = [0.35 + 0.28 * len(rows) for rows in models.values()]
    figure, axes = figures.panels(title, heights, 1.0, sharex=True)
    for ax, (name, rows) in zip(axes.flat, models.items(), strict=True):
        ax.set_title(name, loc="left")
        marks = []
        for row in rows:
            speed, words = (row["decode"], row["low"], row["high"]), f"{row['decode']:,.0f}"
            marks.append(figures.of_model(name, *speed, row=row["way"], note=words))
        bands = {row["way"]: row["plan"] for row in rows if np.isfinite(row["plan"][0])}
        figures.forest(ax, marks, bands=bands)
        figures.logarithmic(ax, [1])
        ax.margins(x=0.15)
    axes[-1, 0].set_xlabel("tokens a second while decoding (logarithmic; shaded: the plan)")
    return figure


def sizes(
    names: Sequence[str], parameters: Sequence[int], loss: Sequence[float], teacher: str = "teacher"
) -> Figure:
    """Validation loss against the number of weights, every model by name."""
    points = {n: (float(p), float(y)) for n, p, y in zip(names, parameters, loss, strict=True)}
    by_loss = sorted(points, key=lambda name: -points[name][1])
    best = next((name for name in by_loss[::-1] if name != teacher), teacher)
    title = f"{best} has {figures.count(points[best][0])} weights and {points[best][1]:.3f} nats"
    if teacher in points:
        title += f", the teacher {figures.count(points[teacher][0])} and {points[teacher][1]:.3f}"
    ax = figures.single(title, height=3.8)
    for name, height in zip(by_loss, np.linspace(1, 0, len(points) + 1), strict=False):
        ink = figures.colour(name)
        ax.plot(*points[name], figures.marker(name), color=ink, markersize=8, markeredgecolor="w")
        arrow = {"arrowstyle": "-", "color": ink, "lw": 0.6, "alpha": 0.6, "shrinkB": 4}
        place = {"textcoords": "axes fraction", "va": "center", "arrowprops": arrow}
        ax.annotate(name, points[name], (1.04, height), **place)
    figures.logarithmic(ax, [1, 1.5, 2, 3, 5, 7])
    ax.set(xlabel="weights (logarithmic)", ylabel=LOSS)
    return ax.figure


def calibration(bins: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Accuracy against confidence, {model: {"confidence", "accuracy", "share"}}, by bins.
    The number is the expected calibration error, Σ share · |accuracy − confidence|."""
    frames = {name: pd.DataFrame(b).query("share > 0") for name, b in bins.items()}
    errors = {n: (b.share * (b.accuracy - b.confidence).abs()).sum() for n, b in frames.items()}
    words = ", ".join(f"{name} {error:.3f}" for name, error in errors.items())
    ax = figures.single(f"Calibration error (0 is perfect): {words}", height=3.4)
    ax.plot([0, 1], [0, 1], label="perfect", **figures.EVEN)
    for i, (name, b) in enumerate(frames.items()):
        look = figures.model_line(name, i)
        ax.plot(b.confidence, b.accuracy, look.pop("linestyle"), color=look["color"], linewidth=1.2)
        ax.scatter(b.confidence, b.accuracy, 15 + 150 * b.share, **look)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    x = "confidence in the likeliest token (size: share of tokens)"
    return figures.labelled(ax, x, "how often it is right")


def quantization(found: Mapping[str, Rows]) -> Figure:
    """Loss against bytes, a line a model through its formats (rows of inference.costs)."""
    frames = {name: pd.DataFrame(rows) for name, rows in found.items()}
    losses = {n: f.set_index("format")["loss"] for n, f in frames.items()}
    changes = pd.concat({name: loss - loss.iloc[0] for name, loss in losses.items()})
    model, form = changes.idxmax()
    ax = figures.single(f"{form} costs {model} the most: {changes.max():+.3f} nats", height=3.4)
    for i, (name, frame) in enumerate(frames.items()):
        points = frame.sort_values("bytes")[["bytes", "loss"]]
        ax.plot(*points.to_numpy().T, **figures.model_line(name, i))
    for row in next(iter(frames.values())).itertuples():
        look = {"textcoords": "offset points", "fontsize": 8, "rotation": 30}
        ax.annotate(row.format, (row.bytes, row.loss), (2, 5), **look)
    figures.logarithmic(ax, [1, 2, 5])
    ax.margins(x=0.1, y=0.15)
    return figures.labelled(ax, "bytes (logarithmic)", LOSS)
