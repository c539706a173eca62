"""Figures: each function draws one claim from arrays and returns the Figure.

It never saves, shows or loads. The title states the finding with a number computed from what was
given; a model has one colour and one marker everywhere. Losses are nats per token.
Legend: N windows.
"""

import textwrap
import warnings
import zlib
from collections.abc import Mapping, Sequence

import fontpkg
import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter

TELUGU = str(fontpkg.path("Noto Sans Telugu"))
font_manager.fontManager.addfont(TELUGU)
FONTS = [font_manager.get_font(path) for path in (TELUGU, font_manager.findfont("DejaVu Sans"))]
# a sign that no font has would be left out with only a warning
warnings.filterwarnings("error", message=r"Glyph \d+ .* missing from")
mpl.rcParams.update({
    "font.family": ["Noto Sans Telugu", "DejaVu Sans"], "font.size": 9.5, "figure.titlesize": 11,
    "axes.titlesize": 9.5, "legend.fontsize": 9, "legend.frameon": False, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#e3e3e3", "axes.edgecolor": "#555555",
    "text.parse_math": False,  # a source may be called "$5 and $6"
})  # fmt: skip

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
HARD, EASY = "#c8371b", "#c3c8ce"  # windows, not models
BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.7}
DRAWN = 20_000  # points of a cloud; of more windows, every k-th is drawn
LISTED = 16  # sources in one figure
CUTS = {  # of windows (features.cuts), where the groups' names do not say of what they are
    "script": "share of tokens not in Telugu", "rare tokens": "share of rare tokens",
}  # fmt: skip
PHONE = 4.5  # inches: where panels hold much text, narrow enough for a phone to show it large
GAINS = "RdBu_r"  # blue below 0, which is better; safe for colour-blind eyes


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


def learning_curves(
    curves: Mapping[str, Mapping[str, Sequence[float]]], baseline: Mapping[str, float] | None = None
) -> Figure:
    """Validation loss over training tokens, {name: {"tokens", "loss"}}; baselines are levels."""
    ends = {name: c["loss"][-1] for name, c in curves.items()}
    best = min(ends, key=ends.get)
    title = f"{best} ends {'lowest, ' if len(ends) > 1 else ''}at {ends[best]:.3f} nats per token"
    for name, level in (baseline or {}).items():
        title += f", {_apart(ends[best] - level)} {name}"
    figure, ax = _figure(title)
    for i, (name, c) in enumerate(curves.items()):
        form = {"color": colour(name), "marker": marker(name), "linestyle": LINES[i % 4]}
        every = max(1, len(c["loss"]) // 8)
        ax.plot(c["tokens"], c["loss"], label=name, linewidth=1.8, markevery=every, **form)
    for name, level in (baseline or {}).items():
        ax.axhline(level, color=colour(name), linestyle=(0, (6, 2)), linewidth=1.4, label=name)
    ax.xaxis.set_major_formatter(_count)
    ax.set(xlabel="training tokens", ylabel="validation loss\n(nats per token)")
    ax.set_xlim(left=0)
    ax.legend()
    return figure


def difficulty(student_loss_N: np.ndarray, teacher_loss_N: np.ndarray, threshold: float) -> Figure:
    """How many windows have which difficulty; those at or above the threshold are the hard set."""
    difficulty_N = np.asarray(student_loss_N) - np.asarray(teacher_loss_N)
    known_N = difficulty_N[~np.isnan(difficulty_N)]
    count = (known_N >= threshold).sum()
    share = count / len(known_N)
    title = f"{share:.1%} of windows ({count:,} of {len(known_N):,}) are at least"
    figure, ax = _figure(f"{title} {threshold:.3f} nats harder for the student")
    low, high = np.quantile(known_N, [0.001, 0.999])
    width = max((high - low) / 60, 1e-6)
    # the line is an edge between two bins, so that the colours are exact; tails join the last bins
    line = np.clip(threshold, low, high)
    first, last = (np.floor((x - line) / width) for x in (low, high))
    edges = line + width * np.arange(min(first, -1), max(last, 0) + 2)
    import seaborn as sns  # here, since it takes a second and no other figure needs it

    sns.histplot(
        x=known_N.clip(edges[0], edges[-1]), hue=known_N >= threshold, bins=edges, ax=ax,
        multiple="stack", palette={False: EASY, True: HARD}, alpha=1, linewidth=0.3, legend=False,
    )  # fmt: skip
    ax.set_ylim(0, ax.get_ylim()[1] * 1.3)
    limit = np.quantile(ax.get_xlim(), 0.7)
    better = f"← student better: {(known_N < 0).mean():.1%}"
    for x, y, text in ((threshold, 0.98, f"hard set: {share:.1%} →"), (0, 0.87, better)):
        ax.axvline(x, color="black", linewidth=1.3, linestyle="-" if x == threshold else ":")
        side, to = ("left", 5) if x < limit else ("right", -5)
        form = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "bbox": BOX}
        ax.annotate(text, (x, y), (to, 0), va="top", ha=side, **form)
    ax.set(xlabel="difficulty: student loss − teacher loss (nats per token)", ylabel="windows")
    ax.yaxis.set_major_formatter(_count)
    return figure


def teacher_against_student(
    student_loss_N: np.ndarray, teacher_loss_N: np.ndarray, hard_N: np.ndarray
) -> Figure:
    """Every window by both models' loss."""
    student_N, teacher_N, hard_N = map(np.asarray, (student_loss_N, teacher_loss_N, hard_N))
    parts = {"others": (~hard_N, "#8f969e", "o"), "hard": (hard_N, HARD, "^")}
    lag_N = student_N - teacher_N
    hard, rest = (lag_N[c_N & ~np.isnan(lag_N)] for c_N in (hard_N, ~hard_N))
    hard, rest = (_apart(lags.mean()) if len(lags) else "–" for lags in (hard, rest))
    title = (
        f"On {hard_N.sum():,} hard windows the student is {hard} its teacher, on the others {rest}"
    )
    figure, ax = _figure(title, height=3.6)
    step = -(-len(student_N) // DRAWN)
    for name, (chosen_N, ink, form) in parts.items():
        xy = teacher_N[chosen_N][::step], student_N[chosen_N][::step]
        look = {"marker": form, "linewidth": 0, "alpha": 0.55, "rasterized": True}
        ax.scatter(*xy, s=11, color=ink, label=name, **look)
    ends = [np.nanmin(teacher_N), np.nanmax(teacher_N)]
    ax.plot(ends, ends, color="black", linewidth=1, linestyle="--", label="both the same")
    drawn = f"; every {step}th window" if step > 1 else ""
    ax.set(xlabel=f"teacher loss (nats per token{drawn})", ylabel="student loss (nats per token)")
    ax.legend(markerscale=1.8)
    return figure


def share_by_source(
    sources: Sequence[str], share_hard: Sequence[float], counts: Sequence[int]
) -> Figure:
    """The hard share of each source beside that of all windows; of many, the largest sources."""
    names = [_printable(str(s)) for s in sources]
    all_ = pd.DataFrame({"name": names, "hard": list(share_hard), "windows": list(counts)})
    overall = np.average(all_["hard"], weights=all_["windows"])
    shown = all_.nlargest(LISTED, "windows").sort_values("hard")
    top = shown.iloc[-1]
    title = f"{top['hard']:.1%} of {top['name']} is hard, {overall:.1%} of all windows"
    figure, ax = _figure(title, rows=len(shown))
    inks = np.where(shown["hard"] > overall, HARD, EASY)
    ax.barh(range(len(shown)), shown["hard"], color=inks, height=0.7)
    ax.axvline(overall, color="black", linewidth=1.3, linestyle="--")
    for i, row in enumerate(shown.itertuples()):
        _value(ax, row.hard, i, f"{row.hard:.1%} of {row.windows:,}")
    _list(ax, shown["name"])
    ax.set_xlim(0, max(shown["hard"].max(), overall, 0.01) * 1.3)
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    which = f"; the {LISTED} largest of {len(all_)} sources" if len(all_) > LISTED else ""
    ax.set_xlabel(f"share of windows that are hard (dashed: of all{which})")
    return figure


def agreement(rows: Sequence[Mapping[str, float | str]], base: str) -> Figure:
    """How far others' hard sets are the base's, and what chance would give: rows of with, jaccard,
    chance."""
    best = max(rows, key=lambda row: row["jaccard"] - row["chance"])
    title = (
        f"{base}'s hard set is most like that by {best['with']}: Jaccard {best['jaccard']:.2f}, "
    )
    figure, ax = _figure(f"{title}where chance gives {best['chance']:.2f}", 1.6, rows=len(rows))
    for i, row in enumerate(reversed(rows)):
        ax.barh(i, row["jaccard"], color=HARD if "student_better" in row else EASY, height=0.6)
        ax.plot([row["chance"]] * 2, [i - 0.4, i + 0.4], color="black", linewidth=1.6)
        _value(ax, max(row["jaccard"], row["chance"]), i, f"{row['jaccard']:.2f}")
    _list(ax, [textwrap.fill(_printable(str(row["with"])), 26) for row in reversed(rows)])
    ax.set_xlim(0, 1.05)
    ax.set_xlabel("Jaccard of the hard sets: 1 is the same (black: by chance; red: a student)")
    return figure


def cumulative_difficulty(difficulty_N: np.ndarray, hard_N: np.ndarray) -> Figure:
    """What share of all that the student lost the hardest windows hold, from none to all."""
    known_N = np.isfinite(difficulty_N)
    lost_N = np.sort(np.fmax(difficulty_N[known_N], 0, dtype=np.float64))[::-1]
    total = lost_N.sum() or 1
    share, held = hard_N.sum() / len(lost_N), np.fmax(difficulty_N[hard_N], 0).sum() / total
    title = f"The hard set, {share:.1%} of the windows, holds {held:.1%} of all that was lost"
    figure, ax = _figure(title)
    at = np.linspace(0, len(lost_N), 401).astype(int)
    held_N = np.concatenate([[0], lost_N.cumsum()])[at] / total
    ax.plot(at / len(lost_N), held_N, color=HARD, linewidth=2)
    ax.plot([0, 1], [0, 1], color="#777777", linewidth=1, linestyle="--")
    ax.annotate("were it spread evenly", (0.62, 0.5), color="#555555", fontsize=8.5)
    ax.axvline(share, color="black", linewidth=1.3)
    ax.plot(share, held, "^", color=HARD, markersize=8, markeredgecolor="black")
    _value(ax, share, held - 0.06, f"{held:.1%}")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    ax.set(xlabel="share of the windows, the hardest first", xlim=(0, 1), ylim=(0, 1.02))
    ax.set_ylabel("share of all that was lost\n(nats where the student is behind)")
    return figure


def share_by_cut(by_cut: Mapping[str, pd.DataFrame]) -> Figure:
    """The hard share of every group beside that of all windows, a panel a cut of tables.by_cut. The
    title names the group that departs most; one with less than 1 % of the windows is paler."""
    every = pd.concat(by_cut, names=["cut", "group"])
    one = next(iter(by_cut.values()))
    overall, count = one["hard windows"].sum() / one["windows"].sum(), one["windows"].sum()
    sure = every[every["windows"] >= 0.01 * count]
    cut, group = (sure["hard"] - overall).abs().idxmax()
    title = f"{every.loc[(cut, group), 'hard']:.1%} of windows are hard where the"
    title = f"{title} {CUTS.get(cut, cut)} is {group}, {overall:.1%} of all"
    heights = [1.6 if len(table) > 8 else 0.5 + 0.24 * len(table) for table in by_cut.values()]
    figure = Figure(figsize=(6, 0.9 + sum(heights)), layout="constrained")
    _title(figure, title)
    axes = figure.subplots(len(by_cut), squeeze=False, height_ratios=heights)[:, 0]
    for ax, (name, table) in zip(axes, by_cut.items(), strict=True):
        ax.set_title(_printable(CUTS.get(name, name)), loc="left")
        inks = np.where(table["hard"] > overall, HARD, EASY)
        alpha = np.where(table["windows"] >= 0.01 * count, 1, 0.4)
        inks = [mpl.colors.to_rgba(ink, a) for ink, a in zip(inks, alpha, strict=True)]
        limit = max(table["hard"].max(), overall, 0.01)
        if len(table) > 8:  # a row each would be too many
            ax.bar(range(len(table)), table["hard"], color=inks, width=0.8)
            ax.axhline(overall, color="black", linewidth=1.3, linestyle="--")
            ticks = range(0, len(table), max(1, len(table) // 5))
            ax.set_xticks(ticks, [_printable(str(table.index[i])) for i in ticks])
            ax.grid(axis="x", visible=False)
            ax.set(ylabel="share hard", ylim=(0, 1.1 * limit))
            ax.yaxis.set_major_formatter(PercentFormatter(1))
            continue
        ax.barh(range(len(table)), table["hard"], color=inks, height=0.7)
        ax.axvline(overall, color="black", linewidth=1.3, linestyle="--")
        for i, row in enumerate(table.itertuples()):
            _value(ax, row.hard, i, f"{row.hard:.1%} of {row.windows:,}")
        _list(ax, [_printable(str(group)) for group in table.index])
        ax.invert_yaxis()
        ax.set_xlim(0, 1.35 * limit)
        ax.xaxis.set_major_formatter(PercentFormatter(1))
    axes[-1].set_xlabel("share of a group's windows that are hard (dashed: of all windows)")
    return figure


def quality(rows: Sequence[Mapping[str, float | str]], teacher: str = "teacher") -> Figure:
    """Validation loss and 95 % interval of every model: rows of name, loss, low, high."""
    rows = sorted(rows, key=lambda r: -r["loss"])
    loss = {r["name"]: r["loss"] for r in rows}
    best = ([name for name in loss if name != teacher] or [teacher])[-1]
    title = f"{best} has the lowest loss of the students: {loss[best]:.3f} nats per token"
    if teacher in loss:
        title += f", {_apart(loss[best] - loss[teacher])} the teacher"
    figure, ax = _figure(title, rows=len(rows))
    if teacher in loss:
        ax.axvline(loss[teacher], color=colour(teacher), linewidth=1.2, linestyle="--")
    _intervals(ax, [(r["name"], r["loss"], r["low"], r["high"]) for r in rows])
    ax.set_xlabel("validation loss (nats per token; bars: 95 % interval)")
    return figure


def hard_and_easy(parts: pd.DataFrame) -> Figure:
    """Change of loss against the base on hard and on easy windows, with 95 % intervals.

    One row a model, named by the index; columns "hard change", "hard low", "hard high" and the same
    for easy. The title names the merged model that gains most on the hard part, if there is one.
    """
    parts = parts.sort_values("hard change", ascending=False)
    merged = [name for name in parts.index if name.endswith("-merged")]
    told = parts.loc[merged or list(parts.index), "hard change"].idxmin()
    hard, easy = (parts.loc[told, f"{part} change"] for part in ("hard", "easy"))
    title = f"{told} changes the loss on hard windows by {hard:+.3f} nats, on easy by {easy:+.3f}"
    figure, ax = _figure(title, rows=1.5 * len(parts))
    ax.axvline(0, color="black", linewidth=1.2)
    for part, up, form, line in (("hard", 0.17, "^", "-"), ("easy", -0.17, "o", ":")):
        columns = [f"{part} {key}" for key in ("change", "low", "high")]
        for i, (name, *row) in enumerate(parts[columns].itertuples()):
            ink, fill = colour(name), colour(name) if part == "hard" else "white"
            ax.plot(row[1:], [i + up] * 2, color=ink, linewidth=2, linestyle=line)
            ax.plot(row[0], i + up, form, color=ink, markersize=7, markerfacecolor=fill)
        fill = "#444444" if part == "hard" else "white"
        ax.plot([], [], form, color="#444444", markerfacecolor=fill, label=f"{part} windows")
    _list(ax, parts.index)
    ax.set_xlabel("change of loss against the base (nats per token; left is better)")
    figure.legend(loc="outside lower right", ncols=2)
    return figure


def kept_and_lost(
    cuts: Mapping[str, Mapping[str, Mapping[str, float]]], base: str, teacher: str = "teacher"
) -> Figure:
    """How far behind the teacher by kind of token, {cut: {bucket: {model: loss}}}, a panel a cut.

    Drawn are the base and what was made from it or beside it (names that begin with the base's and
    a hyphen); other sizes are in the table.
    """
    behind = {(cut, b): m[base] - m[teacher] for cut, bs in cuts.items() for b, m in bs.items()}
    cut, bucket = max(behind, key=behind.get)
    title = f"{base} is furthest behind its teacher at “{bucket}” ({cut})"
    some = next(iter(next(iter(cuts.values())).values()))
    names = [name for name in some if name == base or name.startswith(f"{base}-")]
    points = {
        cut: {b: {n: (m[n] - m[teacher],) * 3 for n in names} for b, m in buckets.items()}
        for cut, buckets in cuts.items()
    }
    figure_title = f"{title}: {behind[cut, bucket]:+.3f} nats per token"
    order = sorted(names, key=base.__eq__)  # the base last, on top
    return _panels(points, order, figure_title, "loss − teacher's (nats)", spread=0)


def won_back(
    cuts: Mapping[str, Mapping[str, Mapping[str, tuple[float, float, float]]]], base: str
) -> Figure:
    """Change of the loss against the base by kind of token, {cut: {bucket: {model: (change, low,
    high)}}}, a panel a cut; left of the line is better, bars are 95 % intervals."""
    each = [(m[n], n, b, cut) for cut, bs in cuts.items() for b, m in bs.items() for n in m]
    (value, low, high), name, bucket, cut = min(each, key=lambda one: one[0][2])
    title = f"No kind of token is clearly better than with {base}"
    if high < 0:
        title = f"{name} wins back most surely at “{bucket}” ({cut}): {value:+.3f} nats "
        title += f"[{low:+.3f}, {high:+.3f}] against {base}"
    names = list(dict.fromkeys(n for _, n, _, _ in each))
    return _panels(cuts, names, title, f"loss − {base}'s (nats)", spread=0.6)


def _panels(cuts: Mapping, names: Sequence[str], title: str, unit: str, spread: float) -> Figure:
    """A panel a cut, two beside each other and narrow, for a phone; a line of its own for each
    model in a bucket where `spread` is above 0."""
    pairs = [list(cuts)[i : i + 2] for i in range(0, len(cuts), 2)]
    a_line = 0.21 if not spread else 0.08 + 0.11 * len(names)
    heights = [max(len(cuts[cut]) for cut in pair) * a_line + 0.35 for pair in pairs]
    figure = Figure(
        figsize=(PHONE, 1.5 + 0.2 * -(-len(names) // 2) + sum(heights)), layout="constrained"
    )
    _title(figure, title, 54)
    axes = figure.subplots(len(pairs), 2, sharex=True, squeeze=False, height_ratios=heights).ravel()
    shifts = np.linspace(-spread / 2, spread / 2, len(names)) if spread else np.zeros(len(names))
    for ax, (cut, buckets) in zip(axes, cuts.items(), strict=False):
        ax.set_title(cut, loc="left")
        ax.axvline(0, color="black", linewidth=1.2)
        for name, shift in zip(names, shifts, strict=True):
            form = {"color": colour(name), "markersize": 6, "markeredgecolor": "white"}
            for i, m in enumerate(buckets.values()):
                value, low, high = m[name]
                ax.plot([low, high], [i + shift] * 2, color=colour(name), linewidth=1.5)
                ax.plot(value, i + shift, marker(name), label=name if i == 0 else None, **form)
        _list(ax, buckets)
        ax.invert_yaxis()
    for ax in axes[len(cuts) :]:
        ax.remove()
    for ax in axes[max(0, len(cuts) - 2) : len(cuts)]:
        ax.tick_params(labelbottom=True)
        ax.set_xlabel(unit)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=2)
    return figure


def sensitivity(rows: Sequence[Mapping], hints: Mapping[str, tuple[float, float]]) -> Figure:
    """Two of share, rank and scale against each other, of all three a map a scale, on hard and on
    easy text: difference from the base (rows of book.sweep_rows, every setting in "varied"), one
    scale of colours. Of several seeds the mean, and their spread. A frame: what the plan says."""
    varied = [name for name in ("share", "rank", "lora_scale") if name in rows[0]["varied"]]
    (down, across), third = varied[:2], "".join(varied[2:])
    held = {name: sorted({row["varied"][name] for row in rows}) for name in varied}
    cells: dict[tuple, list] = {}
    for row in rows:
        key = tuple(row["varied"].get(name) for name in (third, down, across))
        cells.setdefault(key, []).append((row["hard"][0], row["easy"][0]))
    means = {key: np.mean(values, axis=0) for key, values in cells.items()}
    best, most = min(means, key=lambda key: means[key][0]), np.abs(list(means.values())).max()
    told = zip((third, down, across), best, strict=True)
    said = ", ".join(f"{name.replace('lora_', '')} {value:g}" for name, value in told if name)
    (hard, easy), maps = means[best], held.get(third, [None])
    size = (PHONE, 1.9 + len(maps) * (0.4 + 0.36 * len(held[down])))
    figure = Figure(figsize=size, layout="constrained")
    _title(figure, f"Hard text gains most at {said}: {hard:+.3f} nats, easy text {easy:+.3f}", 54)
    axes = figure.subplots(len(maps), 2, sharex=True, sharey=True, squeeze=False)
    for value, pair in zip(maps, axes, strict=True):
        for j, ax in enumerate(pair):
            for (of, y, x), found in cells.items():
                if of == value:
                    place = held[across].index(x), held[down].index(y)
                    _cell(ax, *place, np.array(found)[:, j], most)
            name = f", {third.replace('lora_', '')} {value:g}" if third else ""
            plan = third and _within(value, hints.get(third))
            ax.set_title(("hard", "easy")[j] + name + " *" * bool(plan), loc="left")
            _frame(ax, held[across], held[down], hints.get(across), hints.get(down))
            for axis, setting in ((ax.xaxis, across), (ax.yaxis, down)):
                form = "{:.0%}" if setting == "share" else "{:g}"
                axis.set_ticks(range(len(held[setting])), map(form.format, held[setting]))
            ax.set(xlim=(-0.55, len(held[across]) - 0.45), ylim=(len(held[down]) - 0.45, -0.55))
            ax.grid(visible=False)
    for ax in axes[-1]:
        ax.set_xlabel(across.replace("lora_", ""))
    figure.supylabel("share of windows that are hard" if down == "share" else down, fontsize=9.5)
    colours = mpl.cm.ScalarMappable(mpl.colors.Normalize(-most, most), GAINS)
    bar = figure.colorbar(colours, ax=axes, location="bottom", fraction=0.04, aspect=40)
    star = ", *: and its scale" if third in hints else ""
    bar.set_label(f"loss − base's (nats; blue is better)\nframe: the plan's values{star}")
    return figure


def _within(value: float, said: tuple[float, float] | None) -> bool:
    return said is not None and said[0] <= value <= said[1]


def _cell(ax: Axes, x: int, y: int, values_S: np.ndarray, most: float) -> None:
    """One setting of `sensitivity`: its colour and number, and the spread over seeds."""
    mean = values_S.mean()
    shade = mpl.colormaps[GAINS]((mean / most + 1) / 2)
    ax.add_patch(mpl.patches.Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=shade, linewidth=0))
    text = f"{mean:+.3f}" + (f"\n±{values_S.std(ddof=1):.3f}" if len(values_S) > 1 else "")
    ink = "white" if abs(mean) > 0.7 * most else "black"
    ax.text(x, y, text.replace("-", "−"), ha="center", va="center", fontsize=7.5, color=ink)


def _frame(ax: Axes, across: Sequence, down: Sequence, *said: tuple | None) -> None:
    """Around the cells of `sensitivity` that lie within what the plan says of both settings."""
    x, y = ([i for i, value in enumerate(values) if _within(value, plan)]
            for values, plan in zip((across, down), said, strict=True))  # fmt: skip
    if x and y:
        form = {"fill": False, "edgecolor": "black", "linewidth": 1.8, "zorder": 3}
        corner, size = (x[0] - 0.5, y[0] - 0.5), (len(x), len(y))
        ax.add_patch(mpl.patches.Rectangle(corner, *size, **form))


def calibration(bins: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Accuracy against confidence, {model: {"confidence", "accuracy", "share"}}, by bins.
    The number is the expected calibration error, Σ share · |accuracy − confidence|."""
    frames = {name: pd.DataFrame(b).query("share > 0") for name, b in bins.items()}
    told = {n: (b.share * (b.accuracy - b.confidence).abs()).sum() for n, b in frames.items()}
    said = ", ".join(f"{name} {error:.3f}" for name, error in told.items())
    figure, ax = _figure(f"Calibration error (0 is perfect): {said}", height=3.4)
    ax.plot([0, 1], [0, 1], color="#777777", linewidth=1, linestyle="--", label="perfect")
    for i, (name, b) in enumerate(frames.items()):
        ax.plot(b.confidence, b.accuracy, LINES[i % 4], color=colour(name), linewidth=1.2)
        form = {"color": colour(name), "marker": marker(name), "label": name}
        ax.scatter(b.confidence, b.accuracy, 15 + 150 * b.share, **form)
    ax.set(xlabel="confidence in the likeliest token (size: share of tokens)")
    ax.set(ylabel="how often it is right", xlim=(0, 1), ylim=(0, 1))
    ax.legend()
    return figure


def sizes(
    names: Sequence[str], parameters: Sequence[int], loss: Sequence[float], teacher: str = "teacher"
) -> Figure:
    """Validation loss against the number of weights, every model by name."""
    points = {n: (float(p), float(y)) for n, p, y in zip(names, parameters, loss, strict=True)}
    best = min((n for n in points if n != teacher), key=lambda n: points[n][1], default=teacher)
    title = f"{best} has {_count(points[best][0])} weights and {points[best][1]:.3f} nats"
    if teacher in points:
        title += f", the teacher {_count(points[teacher][0])} and {points[teacher][1]:.3f}"
    figure, ax = _figure(title, height=3.8)
    by_loss = sorted(points, key=lambda n: -points[n][1])
    for name, height in zip(by_loss, np.linspace(1, 0, len(points) + 1), strict=False):
        form = {"color": colour(name), "markersize": 8, "markeredgecolor": "white"}
        ax.plot(*points[name], marker(name), **form)
        line = {"arrowstyle": "-", "color": colour(name), "lw": 0.6, "alpha": 0.6, "shrinkB": 4}
        form = {"textcoords": "axes fraction", "va": "center", "arrowprops": line}
        ax.annotate(name, points[name], (1.04, height), **form)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=[1, 1.5, 2, 3, 5, 7]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(_count)
    ax.set(xlabel="weights (logarithmic)", ylabel="validation loss (nats per token)")
    return figure


def progressive(versus: Mapping) -> Figure:
    """Two routes to one size: "losses" and "intervals" by name, "difference" (first − second) with
    its "low" and "high"."""
    one, other = versus["losses"]
    low, high = versus["low"], versus["high"]
    size = f"{versus['difference']:+.3f} nats [{low:+.3f}, {high:+.3f}]"
    title = f"{one} ends {'better' if high < 0 else 'worse'} than {other}: {size}"
    if low <= 0 <= high:
        title = f"No clear difference between {one} and {other}: {size}"
    figure, ax = _figure(title, height=2.2)
    _intervals(ax, [(n, versus["losses"][n], *versus["intervals"][n]) for n in (other, one)])
    ax.set_xlabel("validation loss (nats per token; bars: 95 % interval)")
    return figure


def settings(rows: Sequence[tuple[float, float, float]]) -> Figure:
    """Loss over ce_weight, a line a temperature: rows of ce_weight, temperature, loss; at ce_weight
    1 there is no temperature, so that point ends every line. Stars: what the plan names."""
    best = min(rows, key=lambda row: row[2])
    alone = [(w, loss) for w, _, loss in rows if w == 1]
    title = f"Lowest at ce_weight {best[0]:g}"
    title += f", T {best[1]:g}" if best[0] < 1 else ", from the text alone"
    plans = [loss for w, t, loss in rows if w == 0.5 and 2 <= t <= 4]
    title += f": {best[2]:.3f} nats"
    title += f", the plan's best setting {min(plans) - best[2]:.3f} above" if plans else ""
    figure, ax = _figure(title)
    temperatures = sorted({t for w, t, _ in rows if w < 1})
    for i, temperature in enumerate(temperatures):
        line = sorted([(w, loss) for w, t, loss in rows if t == temperature and w < 1] + alone)
        shade = mpl.colormaps["viridis"](0.8 * i / max(1, len(temperatures) - 1))
        ax.plot(*zip(*line, strict=True), marker="os^Dv"[i % 5], linestyle=LINES[i % 4],
                color=shade, label=f"T {temperature:g}")  # fmt: skip
    for w, t, loss in rows:
        if w == 0.5 and 2 <= t <= 4:
            ax.plot(w, loss, "*", color="black", markersize=11)
    ax.set(xlabel="ce_weight: share of the true next token in the loss (1: from the text alone)")
    ax.set_ylabel("development loss\n(nats per token)")
    ax.legend()
    return figure


ROLES = {"claim": "#1b75bc", "control": "#c8371b", "part": "#777777"}  # of an effect


def effects(rows: Sequence[Mapping], title: str) -> Figure:
    """Differences with both intervals (evidence.Effect as dictionaries, with "over_seeds"): a point
    and bar over documents, a diamond and bar over seeds below it, the plan's range as a band."""
    names = [textwrap.fill(_printable(row["what"]), 30) for row in rows]
    lines = [name.count("\n") + 1 for name in names]
    figure = Figure(
        figsize=(PHONE, 1.7 + sum(0.12 + 0.18 * n for n in lines)), layout="constrained"
    )
    _title(figure, title, 54)
    ax = figure.add_subplot()
    ax.axvline(0, color="black", linewidth=1.2)
    for i, row in enumerate(rows[::-1]):
        ink = ROLES[row["role"]]
        if row["plan"]:
            low, high = row["plan"]
            ax.fill_betweenx([i - 0.45, i + 0.45], low, high, color="#f3dfa2", linewidth=0)
        ax.plot([row["low"], row["high"]], [i + 0.14] * 2, color=ink, linewidth=2)
        ax.plot(row["value"], i + 0.14, "o", color=ink, markersize=5)
        if row["over_seeds"]:
            mean, half = row["over_seeds"]
            ax.plot([mean - half, mean + half], [i - 0.16] * 2, color=ink, linewidth=1.2)
            ax.plot(mean, i - 0.16, "D", color=ink, markersize=4.5, markerfacecolor="white")
    _list(ax, names[::-1])
    ax.tick_params(axis="y", labelsize=8.5)
    ends = [x for row in rows for x in (row["low"], row["high"], *(row["plan"] or ()))]
    for row in rows:
        if row["over_seeds"]:  # of two seeds the interval may be wider than all else: it leaves
            mean, half = row["over_seeds"]
            ends += [mean - half, mean + half] if len(row["seeds"]) > 2 else [mean]
    ends = [x for x in [*ends, 0] if np.isfinite(x)]
    room = 0.08 * (max(ends) - min(ends) or 1)
    ax.set_xlim(min(ends) - room, max(ends) + room)
    ax.set_xlabel("nats per token (or share); bars: 95 %")
    for i, row in enumerate(rows[::-1]):  # beside the axes: a band may leave a bar no width
        said = f"{row['value']:+.3f}".replace("-", "−")
        ax.annotate(said, (1.02, i), xycoords=("axes fraction", "data"), va="center", fontsize=8.5)
    for label, form in (("documents", "o"), ("seeds", "D")):
        ax.plot([], [], form, color="#444444", label=label,
                markerfacecolor="white" if form == "D" else "#444444")  # fmt: skip
    for role in dict.fromkeys(row["role"] for row in rows):
        words = {"claim": "the claim", "control": "a control", "part": "shown besides"}[role]
        ax.plot([], [], color=ROLES[role], linewidth=2, label=words)
    if any(row["plan"] for row in rows):
        ax.fill_betweenx([], [], color="#f3dfa2", label="the plan")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def sweep(rows: Sequence[Mapping], hints: Mapping[str, tuple[float, float]]) -> Figure:
    """What each setting changes, a panel a setting: difference from the base on hard and on easy
    text (rows of book.sweep_rows), the mean over all else as a line, single points faint. `hints`:
    setting → what the plan says of it, from and to, shaded."""
    best = min(rows, key=lambda row: row["loss"])
    value, low, high = best["all"]
    figure_title = f"Lowest of {len(rows)}: {best['point']}, {value:+.3f} nats on all text "
    figure_title += f"[{low:+.3f}, {high:+.3f}] against the base"
    names = list(dict.fromkeys(name for row in rows for name in row["varied"])) or ["point"]
    figure = Figure(figsize=(6, 1.3 + 2.0 * -(-len(names) // 2)), layout="constrained")
    _title(figure, figure_title)
    axes = figure.subplots(-(-len(names) // 2), min(2, len(names)), sharey=True, squeeze=False)
    for ax, name in zip(axes.flat, names, strict=False):
        _setting(ax, rows, name, hints.get(name))
    for ax in axes.flat[len(names) :]:
        ax.remove()
    for ax in axes[:, 0]:
        ax.set_ylabel("loss − base's\n(nats per token)")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _setting(ax: Axes, rows: Sequence[Mapping], name: str, said: tuple | None) -> None:
    """One panel of `sweep`: the values of one setting, evenly spaced in order."""
    values = list(dict.fromkeys(row["varied"].get(name, "–") for row in rows))
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    order = sorted(numbers) + [v for v in values if v not in numbers]
    place = {value: i for i, value in enumerate(order)}
    for part, shade, line, shift in (("hard", HARD, "-o", -0.06), ("easy", "#5f6770", "--s", 0.06)):
        x = np.array([place[row["varied"].get(name, "–")] for row in rows])
        y = np.array([row[part][0] for row in rows])
        ax.scatter(x + shift, y, 12, color=shade, alpha=0.35, linewidths=0)
        means = [y[x == i].mean() for i in range(len(order))]
        ax.plot(np.arange(len(order)) + shift, means, line, color=shade, label=f"{part} text",
                markersize=5, linewidth=1.4)  # fmt: skip
    inside = [place[v] for v in numbers if said and said[0] <= v <= said[1]]
    if inside:
        ax.axvspan(
            min(inside) - 0.4, max(inside) + 0.4, color="#f1e9c9", zorder=0, label="the plan"
        )
    ax.axhline(0, color="black", linewidth=0.8)
    texts = [f"{v:g}" if v in numbers else str(v) for v in order]
    ax.set_xticks(range(len(order)), texts, rotation=20 if max(map(len, texts)) > 7 else 0)
    ax.set_xlim(-0.6, len(order) - 0.4)
    ax.set_title(name.replace("_", " "), loc="left")


def speeds(found: Mapping[str, Sequence[Mapping]]) -> Figure:
    """Tokens a second of every way with one thread (rows of inference.with_plan), a panel a model,
    logarithmic; the plan's estimate as a band."""
    rows = {m: [row for row in ways if row["threads"] == 1] for m, ways in found.items()}
    model, best = max(((m, r) for m, each in rows.items() for r in each),
                      key=lambda pair: pair[1]["decode"])  # fmt: skip
    title = f"{best['way']} is the fastest: {best['decode']:,.0f} tokens a second of {model}"
    count = sum(map(len, rows.values()))
    figure = Figure(figsize=(6, 1.0 + 0.28 * count + 0.35 * len(rows)), layout="constrained")
    _title(figure, f"{title}, one thread")
    heights = [len(each) for each in rows.values()]
    axes = figure.subplots(len(rows), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for ax, (name, each) in zip(axes, rows.items(), strict=True):
        ax.set_title(name, loc="left")
        for i, row in enumerate(each):
            if np.isfinite(row["plan"][0]):
                low, high = row["plan"]
                ax.barh(i, high - low, 0.9, low, color="#f1e9c9")
            ax.plot([row["low"], row["high"]], [i, i], color=colour(name), linewidth=2)
            ax.plot(row["decode"], i, marker(name), color=colour(name), markersize=7)
            _value(ax, row["high"], i, f"{row['decode']:,.0f}")
        _list(ax, [row["way"] for row in each])
        ax.invert_yaxis()
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(_count)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.margins(x=0.15)
    axes[-1].set_xlabel("tokens a second while decoding (logarithmic; shaded: the plan)")
    return figure


def quantization(found: Mapping[str, Sequence[Mapping]]) -> Figure:
    """Loss against bytes, a line a model through its formats (rows of inference.costs)."""
    changes = [(row["loss"] - rows[0]["loss"], row["format"], m)
               for m, rows in found.items() for row in rows]  # fmt: skip
    most, form, model = max(changes)
    figure, ax = _figure(f"{form} costs {model} the most: {most:+.3f} nats", height=3.4)
    for i, (name, rows) in enumerate(found.items()):
        order = sorted(rows, key=lambda row: row["bytes"])
        x, y = ([row[key] for row in order] for key in ("bytes", "loss"))
        ax.plot(x, y, LINES[i % 4], color=colour(name), marker=marker(name), label=name)
        if i == 0:
            for row in order:
                form = {"textcoords": "offset points", "fontsize": 8, "rotation": 30}
                ax.annotate(row["format"], (row["bytes"], row["loss"]), (2, 5), **form)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=[1, 2, 5]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(_count)
    ax.margins(x=0.1, y=0.15)
    ax.set(xlabel="bytes (logarithmic)", ylabel="validation loss (nats per token)")
    ax.legend()
    return figure


# --- shared


def _figure(title: str, height: float = 3.0, rows: float = 0) -> tuple[Figure, Axes]:
    """6 inches wide, and high enough for a list of `rows`. pyplot does not know it, so that a
    notebook shows it only once."""
    figure = Figure(figsize=(6, max(height, 1.2 + 0.26 * rows)), layout="constrained")
    _title(figure, title)
    return figure, figure.add_subplot()


def _title(figure: Figure, text: str, most: int = 76) -> None:
    lines = -(-len(text) // most)  # as even as they come
    width = most if lines == 1 else min(most, len(text) // lines + 9)
    text = textwrap.fill(text, width, break_on_hyphens=False)
    figure.suptitle(text, x=0.01, ha="left", linespacing=1.15)


def _list(ax: Axes, names: Sequence[str]) -> None:
    ax.set_yticks(range(len(names)), list(names))
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.grid(axis="y", visible=False)


def _value(ax: Axes, x: float, y: float, text: str) -> None:
    form = {"textcoords": "offset points", "va": "center", "fontsize": 8.5, "bbox": BOX}
    ax.annotate(text, (x, y), (5, 0), **form)


def _intervals(ax: Axes, rows: Sequence[tuple[str, float, float, float]]) -> None:
    for i, (name, value, low, high) in enumerate(rows):
        ax.plot([low, high], [i, i], color=colour(name), linewidth=2.2, solid_capstyle="butt")
        ax.plot(value, i, marker(name), color=colour(name), markersize=8, markeredgecolor="white")
        _value(ax, max(value, high), i, f"{value:.3f}")
    _list(ax, [name for name, *_ in rows])
    ax.margins(x=0.12)


def _apart(difference: float) -> str:
    return f"{abs(difference):.3f} nats {'above' if difference >= 0 else 'below'}"


def _count(x: float, _: int = 0) -> str:
    """1,200,000 as 1.2M; a tick formatter too."""
    size, unit = next((s for s in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if abs(x) >= s[0]), (1, ""))
    return f"{x / size:.3g}{unit}"


def _printable(name: str) -> str:
    """A name from outside, with "?" for a sign that no font here has: no reason to stop a run."""
    return "".join(c if any(f.get_char_index(ord(c)) for f in FONTS) else "?" for c in name)
