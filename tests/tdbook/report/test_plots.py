"""Figures say what their arrays say."""

import importlib
import io
import itertools
import unicodedata
import warnings

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from tdbook.analysis.intervals import Interval
from tdbook.report import figures, plots, tables

NAMES = "teacher 50m 50m-seed2 50m-scratch 80m 120m 55m 50m-hard-merged 50m-random-merged".split()
LOSS = dict(zip(NAMES, [3.9, 4.15, 4.16, 4.31, 4.08, 4.02, 4.14, 4.13, 4.149], strict=True))
DIFFICULTY_N = np.random.default_rng(0).normal(0.22, 0.12, 2060).astype(np.float32)


def title(figure: Figure) -> str:
    """Of a figure that was drawn without a warning (a missing glyph, too little room), with nothing
    beyond its edges."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO(), format="png", dpi=40)
    drawn = figure.get_tightbbox()
    assert drawn.x0 >= 0 and drawn.y0 >= 0, drawn
    assert drawn.x1 <= figure.get_figwidth() and drawn.y1 <= figure.get_figheight(), drawn
    return figure.get_suptitle().replace("\n", " ")


def labels(ax) -> list[str]:
    return [text.get_text() for text in ax.get_yticklabels()]


def values(ax) -> list[float]:
    """The points of a forest plot, from the top."""
    return [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 1]


def test_difficulty_counts_the_windows_at_or_above_the_line_and_paints_just_them_red():
    threshold, lost_N = float(np.sort(DIFFICULTY_N)[-412]), DIFFICULTY_N.astype(float).clip(0)
    figure = plots.difficulty(DIFFICULTY_N, threshold)
    held = lost_N[threshold <= DIFFICULTY_N].sum() / lost_N.sum()
    assert title(figure) == (
        f"20.0% of windows (412 of 2,060) are at least {threshold:.3f} nats harder for the student;"
        f" they hold {held:.1%} of all that was lost"
    )
    bars = [(mpl.colors.to_hex(p.get_facecolor()), p.get_height()) for p in figure.axes[0].patches]
    assert sum(height for _, height in bars) == 2060
    assert sum(height for ink, height in bars if ink == figures.HARD) == 412
    for few, line in itertools.product([[0] * 5, [-1], [0, np.nan, 2]], (0.0, -1e6, 1e6)):
        assert "nats harder" in title(plots.difficulty(np.array(few, float), line))


def test_learning_curves_name_the_lowest_end_and_its_distance_to_the_baseline():
    curve = {"tokens": [0, 5e5, 1e6], "loss": [7.0, 4.6, 4.31]}
    one = title(plots.learning_curves({"50m": curve}, {"teacher": 4.06}))
    assert one == "50m ends at 4.310 nats per token, 0.250 nats above teacher"
    both = plots.learning_curves({"150m": curve, "75m": {"tokens": [0], "loss": [4.2]}})
    assert title(both) == "75m ends lowest, at 4.200 nats per token"


def test_hard_shares_name_the_group_that_departs_most_and_has_some_windows():
    hard_N, every_N, n = np.zeros(2000, bool), np.ones(2000, bool), np.arange(2000)
    hard_N[:300] = hard_N[1995:] = True
    cuts = {"place in the corpus": ([f"p{i}" for i in range(20)], n * 20 // 2000),
            "script": (["నది $5 $", "漢 more", "none"], n // 1995)}  # fmt: skip
    figure = plots.hard_shares(tables.by_cut(hard_N, every_N, cuts))
    # all five of the last group are hard, but five say too little
    words = title(figure)
    assert words.startswith("100.0% of windows are hard where the place in the corpus is p")
    assert words.endswith(", 15.2% of all")
    places, scripts = figure.axes
    assert values(places) == [1] * 3 + [0] * 16 + [0.05]
    assert labels(scripts) == ["నది $5 $", "? more"]  # no font has it
    assert [t.get_text() for t in scripts.texts] == ["15.0% of 1,995", "100.0% of 5"]
    assert [x.get_markerfacecolor() for x in scripts.lines[1:-1:2]] == [figures.DOTS, "w"]  # hollow
    assert scripts.get_title(loc="left") == "share of tokens not in Telugu"
    # of many groups, each with few windows, the largest
    groups, many_N = [f"s{i}" for i in range(200)], np.repeat(n[:200], n[:200] // 20 + 1)
    many = tables.by_cut(many_N == 7, many_N >= 0, {"source": (groups, many_N)})
    assert labels(plots.hard_shares(many).axes[0]) == groups[180:]


def test_comparisons_of_models_name_the_best_and_the_merged_one_that_gains_most_on_hard_text():
    resampled = {n: np.linspace(y - 0.05, y + 0.05, 1001) for n, y in LOSS.items()}
    figure = plots.quality({n: {"loss": y} for n, y in LOSS.items()}, resampled)
    words, (ax,) = title(figure), figure.axes
    assert words.startswith("120m has the lowest loss of the students: 4.020 nats per token")
    assert words.endswith("0.120 nats above the teacher")
    assert labels(ax) == sorted(NAMES, key=LOSS.get) and values(ax) == sorted(LOSS.values())
    assert [*ax.lines[0].get_xdata()] == pytest.approx([3.8525, 3.9475])
    change = {name: Interval(y - 4.15, y - 4.17, y - 4.13) for name, y in LOSS.items()}
    parts = pd.DataFrame({"change, hard": change, "change, easy": change}).drop(index="50m")
    figure = plots.hard_and_easy(parts)
    words = "50m-hard-merged changes the loss on hard windows by −0.020 nats, on easy by −0.020"
    assert title(figure) == words
    wanted = sorted(x.value for name, x in change.items() if name != "50m")
    assert values(figure.axes[0])[::2] == values(figure.axes[0])[1::2] == wanted


def kind(cut: str, bucket: str, values: dict, tokens: int = 100) -> dict:
    return {"cut": cut, "bucket": bucket, "tokens": tokens} | values


def test_kinds_of_tokens_are_named_by_what_was_lost_most_and_won_back_most_surely():
    lost = {"లో": 0.1, "కు": 0.2, "ను": 0.9, "లు": 0.3}
    rows = [kind("frequent endings", b, LOSS | {"50m": 4.15 + x}) for b, x in lost.items()]
    rows += [kind("script", "Telugu", LOSS), kind("script", "digits", LOSS | {"50m": 9}, 99)]
    figure = plots.kept_and_lost([*rows, kind("place", "first", LOSS)], "50m")
    assert title(figure) == (
        "50m is furthest behind its teacher at “ను” (frequent endings): +1.150 nats per token"
    )
    endings, script, _ = figure.axes
    assert labels(endings) == list(lost) and labels(script) == ["Telugu"]  # the others are few
    assert values(endings)[-1] == pytest.approx(4.15 + 0.3 - 3.9)
    assert len(values(script)) == 5  # models from the base
    unsure = kind("script", "Telugu", {"50m-hard-merged": Interval(-0.1, -0.3, 0.1)})
    sure = kind("script", "digits", {"50m-hard-merged": Interval(-0.05, -0.06, -0.04)})
    words = title(plots.won_back([unsure, sure], "50m"))
    assert words.startswith("50m-hard-merged wins back most surely at “digits” (script): −0.050")
    assert title(plots.won_back([unsure], "50m")).startswith("No kind of token is clearly better")


def test_speeds_and_quantization_name_the_fastest_way_and_the_dearest_format():
    row = {"threads": 1, "low": 1, "plan": (np.nan, np.nan), "high": 999}
    ways = [row | {"way": "raw", "decode": 40, "plan": (30, 60)}, row | {"way": "Q4", "decode": 90}]
    more = [*ways, row | {"threads": 2, "way": "raw", "decode": 99}]
    figure = plots.speeds({"50m": more, "80m": ways[:1]})
    assert title(figure) == "Q4 is the fastest: 90 tokens a second of 50m, one thread"
    assert values(figure.axes[0]) == [40, 90]
    assert [p.get_width() for p in figure.axes[0].patches] == [30]  # what the plan says
    f16, q4 = {"format": "F16", "bytes": 2e8, "loss": 4.0}, {"format": "Q4", "bytes": 5e7}
    costs = {n: [f16, q4 | {"loss": y}] for n, y in (("50m", 4.1), ("80m", 3.98))}
    figure = plots.quantization(costs)
    assert title(figure) == "Q4 costs 50m the most: +0.100 nats"
    small = figure.axes[1]
    assert labels(small) == ["Q4, 50 MB", "F16, 200 MB"]
    assert [t.get_text() for t in small.texts] == ["−0.0200", "+0.0000"]
    assert values(small) == pytest.approx([-0.02, 0])


def lightness(name: str) -> float:
    rgb = np.array(mpl.colors.to_rgb(figures.look(name)["ink"]))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return 116 * np.cbrt(y) - 16 if y > 0.008856 else 903.3 * y


def test_the_main_models_differ_in_grey_every_model_by_its_marker_and_others_by_family():
    main = ["teacher", "50m", "50m-scratch", "50m-hard", "50m-hard-merged"]
    assert np.diff(sorted(map(lightness, main))).min() >= 10
    inks, forms = zip(*(known.values() for known in figures.LOOKS.values()), strict=True)
    assert len({*inks}) == len({*forms}) == len(figures.LOOKS)
    families = {"50m-t4": "50m", "50m-a-merged": "50m-hard-merged", "x-lora": "50m-hard"}
    for pair in families.items():
        colours = [figures.look(name)["ink"] for name in pair]
        hues = [mpl.colors.rgb_to_hsv(mpl.colors.to_rgb(ink))[0] for ink in colours]
        assert abs(hues[0] - hues[1]) < 0.02 and colours[0] not in inks
    assert figures.look("nobody") == figures.look("nobody")


def test_every_sign_of_telugu_is_drawn_and_a_missing_one_is_an_error():
    telugu = [chr(c) for c in range(0x0C00, 0x0C80) if unicodedata.name(chr(c), "")]
    figure = Figure(figsize=(18, 3))
    figure.text(0.01, 0.5, " ".join(telugu) + " స్త్రీ క్ష్మి − ≥ → ← “” 2,060 %")
    title(figure)
    figure.text(0, 0, chr(0x905))
    with warnings.catch_warnings():  # pytest has filters of its own
        warnings.simplefilter("ignore")
        importlib.reload(figures)
        with pytest.raises(UserWarning, match="DEVANAGARI LETTER A"):
            figure.savefig(io.BytesIO())


def test_a_panel_of_a_sweep_has_mean_and_span_of_each_value_of_hard_and_of_easy_text():
    """Hard text gains 0.001 · rank · scale at share 0.15, half of it at 0.5; easy text loses."""
    rows, more = [], {"easy": Interval(0.01), "all": Interval(-0.1, -0.2, 0)}
    for i, point in enumerate(itertools.product((0.15, 0.5), (8, 32), (0.5, 1.0))):
        share, rank, scale = point
        gain = Interval(-0.001 * rank * scale * (1 if share < 0.2 else 0.5))
        varied = dict(zip(("share", "rank", "lora_scale"), point, strict=True))
        rows.append(more | {"varied": varied, "hard": gain, "point": f"p{i}", "loss": 5 - i})
    figure = plots.sweep(rows, {"rank": (16, 32)})
    assert title(figure) == "Lowest of 8: p7, −0.100 [−0.200, +0.000] nats against the base"
    panel = figure.axes[1]
    assert (panel.get_title(loc="left"), labels(panel)) == ("rank", ["8", "32 *"])  # the plan's
    assert values(panel) == pytest.approx([-0.0045, 0.01, -0.018, 0.01])
    assert [*panel.lines[0].get_xdata()] == pytest.approx([-0.008, -0.002])
    assert {line.get_marker() for line in panel.lines[1:-1:2]} == {"^", "o"}


def test_the_seeds_of_an_effect_lie_on_the_axis_and_of_two_the_mean():
    row = dict(what="a − b", value=0.2, low=0.1, high=0.3, role="claim", plan=(-0.5, -0.3))
    for seeds, half, inside in (((0.2, 0.8, 0.8), 0.7, True), ((0.2, 1.0), 5.0, False)):
        figure = plots.effects([row | {"seeds": seeds, "over_seeds": (0.6, half)}], "title")
        assert title(figure) == "title" and values(figure.axes[0]) == [0.2, 0.6]
        low, high = figure.axes[0].get_xlim()
        assert low < -0.5 and high > 0.6
        assert (high > 0.6 + half) == inside
