"""Figures say what their arrays say."""

import io
import itertools
import unicodedata
import warnings

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from tdbook.analysis.intervals import Interval
from tdbook.analysis.verdict import Effect
from tdbook.report import plots
from tests.helpers import cases

CASES = cases(__file__, "test_plots.yaml")
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


def panel(ax) -> dict[str, object]:
    """What a forest plot shows, from the top."""
    lines = [[*line.get_xdata()] for line in ax.lines]
    return {
        "labels": [text.get_text() for text in ax.get_yticklabels()],
        "values": pytest.approx([xs[0] for xs in lines if len(xs) == 1]),
        "bars": pytest.approx([x for xs in lines if len(xs) == 2 for x in xs]),
        "notes": [text.get_text() for text in ax.texts],
        "axis": pytest.approx(ax.get_xlim()),
        "widths": pytest.approx([patch.get_width() for patch in ax.patches]),
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["figure"])
def test_a_figures_title_rows_points_and_bars_are_those_of_its_arrays(case):
    first, *others = case["given"]
    if case["figure"] == "effects":
        first = [Effect(**row | {"interval": Interval(*row["interval"])}) for row in first]
    figure = getattr(plots, case["figure"])(first, *others)
    assert title(figure) == case["title"]
    found, wanted = panel(figure.axes[0]), case.get("panel", {})
    assert wanted == {key: found[key] for key in wanted}


def test_difficulty_paints_red_where_windows_are_at_or_above_the_line():
    threshold = float(np.sort(DIFFICULTY_N)[-412])
    found = {"share": 0.2, "teacher": {"rank": -0.5, "hard": 4.2, "rest": 4.6}}
    figure = plots.difficulty(4.5 - DIFFICULTY_N, DIFFICULTY_N, threshold, found)
    cost = "the hardest 20% of windows cost the teacher 4.200 nats per token, the rest 4.600"
    assert title(figure) == f"Rank correlation −0.50: {cost}"
    hard, rest = figure.axes[0].collections
    assert hard.get_array().sum() == 412 and rest.get_array().sum() == 2060 - 412
    assert mpl.colors.to_hex(hard.cmap(1.0)) == plots.HARD
    for few, line in itertools.product([[0] * 5, [-1], [0, np.nan, 2]], (0.0, -1e6, 1e6)):
        assert "nats per token" in title(plots.difficulty(*np.array([few] * 2, float), line, found))


def test_every_model_has_a_marker_and_a_colour_of_its_own():
    inks, forms = zip(*(known.values() for known in plots.LOOKS.values()), strict=True)
    assert len({*inks}) == len({*forms}) == len(plots.LOOKS)
    for name in ("50m-t4", "50m-a-merged", "x-lora", "nobody"):
        assert plots.look(name) == plots.look(name) and plots.look(name)["ink"] not in inks


def test_every_sign_of_telugu_is_drawn():
    telugu = [chr(c) for c in range(0x0C00, 0x0C80) if unicodedata.name(chr(c), "")]
    figure = Figure(figsize=(18, 3))
    figure.text(0.01, 0.5, " ".join(telugu) + " స్త్రీ క్ష్మి − ≥ → ← “” 2,060 %")
    title(figure)


def test_the_text_of_a_figure_has_10_px_or_more_on_a_phone():
    """A figure takes the whole width of a page of 390 px; a point is a 72nd of an inch."""
    log = [{"tokens": n, "val/loss": 4.0} for n in (0, 9)]
    mark = plots.Mark("a", 1, 0, 2, "red", note="b")
    for figure in (plots.learning_curves({"a": log}), plots.forest("title", [mark], "x")):
        figure.draw_without_rendering()
        sizes = [text.get_fontsize() for text in figure.findobj(mpl.text.Text) if text.get_text()]
        assert min(sizes) * 390 / 72 / figure.get_figwidth() >= 10
