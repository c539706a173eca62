"""The tables' numbers by hand: the plan's columns and ours, gap closed, sizes, hard and easy."""

import json
import math

import numpy as np
import pytest

from tdbook.analysis import intervals
from tdbook.report import tables, words
from tdbook.runs import heartbeat
from tdlib.shapes import SHAPES, LlamaConfig
from tests.helpers import cases

CASES = cases(__file__, "test_tables.yaml")
QUALITY = CASES.pop("quality, by hand")


def quality(loss_N: dict, document_N: np.ndarray) -> dict[str, list]:
    more = dict(parameters=52_200_000, kl=0.1234, agreement=0.6543, calibration_error=0.0321)
    losses = {name: x_N.mean() for name, x_N in loss_N.items()}
    rows = {name: more | dict(loss=x, loss_fixed=x + 0.01) for name, x in losses.items()}
    for row in rows.values():
        row |= dict(perplexity=math.exp(row["loss"]), bits_per_byte=row["loss"] / 6)
    rounding = {"mine": [0.0123, 0.01, 0.0151]}
    table = tables.quality(rows, loss_N, document_N, rounding, "50m", "50m-scratch")
    return table.to_dict("list")


def test_the_quality_table_has_paired_intervals_gap_closed_and_the_plan_apart():
    shift_N, document_N = np.linspace(-0.1, 0.1, 100), np.arange(100)  # all move together
    losses = {"teacher": 2.0, "50m": 2.5, "50m-scratch": 3.0}
    losses = {name: loss + shift_N for name, loss in losses.items()}
    losses["mine"] = 2.4 + 2 * shift_N  # alone, its difference to the base moves
    table = quality(losses, document_N)
    own = table["gap closed"].pop()
    assert {name: table[name] for name in QUALITY} == QUALITY and own.startswith("+0.60 [+0.5")
    noise = np.random.default_rng(0).normal(0, 0.1, (3, 100))  # scratch is as good as the teacher
    losses = dict(zip(("teacher", "50m", "50m-scratch"), 3 + noise, strict=True))
    assert quality(losses, document_N)["gap closed"] == ["undefined"] * 3


def test_a_number_that_is_not_known_is_null_in_a_record():
    text = heartbeat.as_json({"a": [1.5, np.nan, {"b": np.array([np.inf])}]})
    assert text.split() == '{ "a": [ 1.5, null, { "b": [ null ] } ] }'.split()


def test_sizes_are_those_of_the_facts():
    """FACTS.md section 2, worked out apart from this code. 18 bytes for 32 weights; FACTS measured
    30.5 MB with the tokenizer in the file, and 39 with the published vocabulary."""
    plan, published = {}, {}
    for found, size in ((plan, 51_800), (published, 86_071)):
        shapes = {name: LlamaConfig(vocab_size=size, **shape) for name, shape in SHAPES.items()}
        found |= tables.sizes(shapes, "teacher-plan").to_dict("index")
    assert published["student-120m"]["parameters"] == "151.1 M"
    # 258.6 / 52.2; 205,554,688 / 25,698,816
    wanted = ["52.2 M", "4.95×", f"{52.2 * 18 / 32:.1f} MB", "yes", "26.5 M", "8.00×", "51,800"]
    assert [*plan["student-50m"].values()] == wanted
    _, _, q4, passes, *_ = published["student-50m"].values()
    assert float(q4.split()[0]) > 39 and passes == "no"


def test_hard_and_easy_are_means_of_their_windows_and_changes_against_the_base():
    losses = {"base": np.array([4.0, 2, 6, 2]), "adapter": np.array([3.0, 3, 5, 2])}
    hard_N = np.array([True, False, True, False])
    parts, document_N = {"hard": hard_N, "easy": ~hard_N}, np.array([0, 0, 1, 1])
    rows = intervals.by_part(losses, parts, document_N, "base")
    (*_, hard, hard_change, easy, easy_change), base = rows[1].values(), [*rows[0].values()]
    assert base == ["base", "base", 5, (0, 0, 0), 2, (0, 0, 0)]
    # both documents gain 1 on their hard window; one loses 1 on its easy window, one nothing
    assert (hard, hard_change, easy) == (4.0, (-1, -1, -1), 2.5)
    far = 0.5 * 12.7062  # Student's t of two documents
    assert easy_change == pytest.approx((0.5, 0.5 - far, 0.5 + far), rel=1e-4)
    written = "4.000|−1.000 [−1.000, −1.000]|2.500|+0.500 [−5.853, +6.853]"
    found = tables.written("hard_and_easy", json.loads(json.dumps(rows)))  # as in a record
    assert found.loc["adapter"].tolist() == written.split("|")


@pytest.mark.parametrize("table", CASES)
def test_numbers_are_written_with_their_units_beside_the_plans(table):
    make = getattr(tables, table, lambda rows: tables.written(table, rows))
    found = make(*CASES[table]["given"]).reset_index()
    wanted = CASES[table]["columns"]
    assert {name: found[name].tolist() for name in wanted} == wanted


def test_a_sweeps_table_tells_which_parameters_have_a_value_that_the_plan_names():
    values = {"rank": 16, "learning_rate": 1e-4, "share": None, "windows": "hard", "seed": 1}
    assert words.planned("03_lora", values) == "rank, learning_rate"
    assert words.planned("01_distill", values) == "rank"  # its rate is another
