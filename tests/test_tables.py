"""The tables' numbers by hand: the plan's columns and ours, gap closed, sizes, hard and easy."""

import math

import numpy as np
import pandas as pd
import pytest

from tdbook.analysis import intervals
from tdbook.report import tables, words
from tdbook.runs import heartbeat
from tdlib import hard_set
from tdlib.shapes import SHAPES

NAN = float("nan")


def row(loss, parameters=52_200_000) -> dict:
    return dict(
        parameters=parameters, loss=loss, loss_fixed=loss + 0.01, perplexity=math.exp(loss),
        bits_per_byte=loss / 6, kl=0.1234, agreement=0.6543, calibration_error=0.0321,
    )  # fmt: skip


@pytest.fixture
def table() -> pd.DataFrame:
    """Losses 2.0, 2.5, 3.0; each resampled a hundred times, all moving together."""
    losses = {"teacher": 2.0, "50m": 2.5, "50m-scratch": 3.0, "mine": 2.4}
    metrics = {name: row(loss) for name, loss in losses.items()}
    shift_R = np.linspace(-0.1, 0.1, 101)
    resampled = {name: loss + shift_R for name, loss in losses.items()}
    resampled["mine"] = 2.4 + 2 * shift_R  # alone, its difference to the base moves by ± 0.1
    return tables.quality(metrics, resampled, "50m", "50m-scratch")


def test_a_difference_is_against_the_base_with_its_paired_interval(table):
    assert table["against 50m"].to_dict() == {
        "teacher": "−0.500 [−0.500, −0.500]",
        "50m": "baseline",
        "50m-scratch": "+0.500 [+0.500, +0.500]",
        "mine": "−0.100 [−0.195, −0.005]",  # the middle 95 % of −0.2 … 0.0
    }


def test_gap_closed_is_nothing_for_scratch_half_for_the_middle_all_for_the_teacher(table):
    gap = table["gap closed"]
    assert (gap["teacher"], gap["50m-scratch"]) == ("1", "0")
    assert gap["50m"] == "+0.50 [+0.50, +0.50]"
    assert gap["mine"].startswith("+0.60 [+0.5")


def test_gap_closed_is_undefined_where_scratch_is_as_good_as_the_teacher():
    losses = {"teacher": 3.0, "50m": 2.9, "50m-scratch": 3.0}
    noise = {n: loss + np.random.default_rng(i).normal(0, 0.1, 99)
             for i, (n, loss) in enumerate(losses.items())}  # fmt: skip
    found = tables.quality({n: row(x) for n, x in losses.items()}, noise, "50m", "50m-scratch")
    assert found.loc["50m", "gap closed"] == "undefined"


def test_without_a_scratch_student_there_is_no_gap():
    losses = {"teacher": 2.0, "50m": 2.5}
    resampled = {name: np.full(9, loss) for name, loss in losses.items()}
    found = tables.quality({n: row(x) for n, x in losses.items()}, resampled, "50m", None)
    assert found["gap closed"].tolist() == ["–", "–"]


def test_quality_is_teacher_over_student_and_the_plans_numbers_stand_apart(table):
    assert table["quality"].tolist() == ["100.0%", "80.0%", "66.7%", "83.3%"]
    plan = table[["plan: loss", "plan's loss, our formula", "plan: quality %"]]
    # 2.58 / 3.3 = 78.2 %, 2.58 / 3.0 = 86.0 %; 2.58 / 3.8 = 67.9 %, 2.58 / 3.5 = 73.7 %
    assert plan.loc["50m"].tolist() == ["3.00–3.30", "78.2–86.0", "75–80"]
    assert plan.loc["50m-scratch"].tolist() == ["3.50–3.80", "67.9–73.7", "60–65"]
    assert plan.loc["teacher"].tolist() == ["2.58", "100.0", "100"]
    assert plan.loc["mine"].tolist() == ["–", "–", "–"]


def test_each_metric_is_in_its_own_column(table):
    wanted = {"parameters": "52,200,000", "loss": "2.500", "640 windows": "2.510",
              "perplexity": "12.2", "bits/byte": "0.417", "KL to teacher": "0.123",
              "agreement": "65.4%", "calibration error": "3.2%"}  # fmt: skip
    assert table.loc["50m", list(wanted)].to_dict() == wanted


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ((3, 3.3), "3.00–3.30"),
        ((2.58, 2.58), "2.58"),
        ((75, 80, 0), "75–80"),
        ((NAN, NAN), "–"),
        ((1.0, NAN), "–"),
    ],
)
def test_a_span_is_two_numbers_or_one_or_none(args, text):
    assert tables.span(*args) == text


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ((-0.22, -0.2241, -0.2149), "−0.220 [−0.224, −0.215]"),
        ((0.5, -1, 2, 1), "+0.5 [−1.0, +2.0]"),
        ((NAN, 0, 0), "undefined"),
        ((math.inf, 0, 0), "undefined"),
        ((-0.5, NAN, NAN), "−0.500 [unknown]"),
    ],
)
def test_an_interval_has_signs_and_true_minuses(args, text):
    assert intervals.with_interval(*args) == text
    assert "-" not in intervals.with_interval(*args)


# sizes


@pytest.fixture(scope="module")
def sizes() -> pd.DataFrame:
    return tables.sizes(SHAPES, [51_800, 86_071], "teacher-plan")


def column(sizes, vocabulary: str, name: str) -> dict:
    return sizes.xs(vocabulary, level="vocabulary")[name].to_dict()


def test_sizes_are_those_of_the_facts(sizes):
    """FACTS.md section 2, worked out apart from this code."""
    found = column(sizes, "51,800", "parameters")
    facts = {"teacher-300m": 310.0, "teacher-plan": 258.6, "student-120m": 124.7,
             "student-80m": 84.0, "student-55m": 55.3, "student-50m": 52.2}  # fmt: skip
    for name, millions in facts.items():
        # both are rounded or cut to a tenth
        assert float(found[name].split()[0]) == pytest.approx(millions, abs=0.101), name
    of_which = column(sizes, "51,800", "of which embedding")
    assert (of_which["teacher-plan"], of_which["student-50m"]) == ("53.0 M", "26.5 M")
    larger = column(sizes, "86,071", "parameters")
    assert (larger["student-50m"], larger["student-120m"]) == ("69.8 M", "151.1 M")
    assert 145 <= float(found["student-150m"].split()[0]) <= 158
    assert 70 <= float(found["student-75m"].split()[0]) <= 79


def test_the_50m_passes_for_30_mb_with_the_plans_vocabulary_and_not_with_the_published(sizes):
    assert column(sizes, "51,800", "passes 33 MB")["student-50m"] == "yes"
    assert column(sizes, "86,071", "passes 33 MB")["student-50m"] == "no"
    # 18 bytes for 32 weights; FACTS measured 30.5 with the tokenizer in the file, and 39
    assert column(sizes, "51,800", "Q4_0 file")["student-50m"] == f"{52.2 * 18 / 32:.1f} MB"
    assert float(column(sizes, "86,071", "Q4_0 file")["student-50m"].split()[0]) > 39


def test_compression_is_told_with_and_without_the_embedding(sizes):
    fifty = sizes.loc[("51,800", "student-50m")]
    assert fifty["compression"] == "4.95×"  # 258.6 / 52.2
    assert fifty["without embedding"] == "8.00×"  # 205,554,688 / 25,698,816
    assert sizes.loc[("51,800", "teacher-plan"), "compression"] == "1.00×"


# hard and easy, and the rest


def test_hard_and_easy_are_means_of_their_windows_and_changes_against_the_base():
    losses = {"base": np.array([4.0, 2, 6, 2]), "adapter": np.array([3.0, 3, 5, 2])}
    hard_N = np.array([True, False, True, False])
    parts = tables.hard_and_easy(losses, hard_N, np.array([0, 0, 1, 1]), "base", 200)
    assert parts.loc["adapter", ["hard", "hard change"]].tolist() == [4.0, -1.0]
    assert parts.loc["adapter", ["easy", "easy change"]].tolist() == [2.5, 0.5]
    assert parts.loc["base", ["hard", "easy", "hard change", "easy change"]].tolist() == [
        5,
        2,
        0,
        0,
    ]
    # both documents gain 1 on their hard window; one loses 1 on its easy window, one nothing
    assert parts.loc["adapter", ["hard low", "hard high"]].tolist() == [-1, -1]
    # 0, 0.5 or 1, stretched about 0.5 by t / z · √2 of two documents: 12.706 / 1.960 · 1.414
    far = 0.5 * 12.706 / 1.95996 * math.sqrt(2)
    found = parts.loc["adapter", ["easy low", "easy high"]].tolist()
    assert found == pytest.approx([0.5 - far, 0.5 + far], rel=1e-4)
    words = tables.hard_and_easy_words(parts)
    assert words.loc["adapter"].tolist() == [
        "4.000", "−1.000 [−1.000, −1.000]", "2.500", "+0.500 [−4.084, +5.084]",
    ]  # fmt: skip


def test_shares_by_source_are_counted_by_window():
    hard_N, document_N = np.array([True, False, True, True, False]), np.array([0, 0, 1, 2, 2])
    found = tables.by_source(hard_N, document_N, ["wiki", "verse", "wiki"])
    assert found.loc["verse"].tolist() == [1, 1, 1.0]
    assert found.loc["wiki"].tolist() == [4, 2, 0.5]
    assert found.index.tolist() == ["verse", "wiki"]  # the hardest first


def test_kept_and_lost_says_how_far_each_model_is_behind_the_teacher():
    kept = [{"cut": "script", "bucket": "Latin", "tokens": 1200, "teacher": 2.0, "50m": 2.25}]
    found = tables.kept_and_lost(kept, "teacher", ["50m", "not run"])
    assert found.loc[("script", "Latin")].tolist() == [1200, "2.000", "+0.250"]
    assert tables.nested(kept) == {"script": {"Latin": {"teacher": 2.0, "50m": 2.25}}}


def test_the_difference_is_against_the_first_of_the_metrics():
    found = tables.metrics({"teacher": row(2.0), "50m": row(2.5)})
    assert found["loss − teacher's"].tolist() == ["0.0000", "0.5000"]


def test_costs_stand_beside_the_plans_hours():
    result = dict(device="cpu", seconds=90, tokens_per_second=1234.5, parameters={})
    found = tables.cost({
        "01_distill-50m": result | dict(notebook="01_distill", models={"50m": {}}),
        "02_hard_set": result | dict(notebook="02_hard_set", tokens_per_second=None),
        "03_lora-hard": result | dict(notebook="03_lora", parameters={"adapter": "50m-hard"}),
    })  # fmt: skip
    assert found.loc["01_distill-50m"].tolist() == ["cpu", "1.50", "1,234", "3–4"]
    assert found.loc["02_hard_set"].tolist() == ["cpu", "1.50", "–", "2–3"]
    assert found.loc["03_lora-hard", "plan: hours on a B200"] == "1–2"


def test_a_routes_cost_is_the_sum_of_its_students():
    log = [
        {"tokens": 1, "train/tokens_per_sec": 9.0},
        {"tokens": 6000, "train/tokens_per_sec": 50.0},
    ]
    found = tables.route_cost({"progressive": [log, log], "direct": [log]})
    assert found.loc["progressive"].tolist() == [2, "12,000", "4.00", "10–12"]
    assert found.loc["direct", ["students", "minutes"]].tolist() == [1, "2.00"]


def test_the_likeliest_pieces_are_those_of_the_model(tiny_llama, tokenizer):
    model = tiny_llama(1, tokenizer.size, 8)
    found = tables.likeliest(model, tokenizer, [5, 6], (1, 2.0, 1))
    assert found.shape == (5, 4)  # a temperature asked twice is shown once
    import torch

    with torch.no_grad():
        p_V = (model(torch.tensor([[5, 6]]))[0, -1] / 2).softmax(-1)
    top = p_V.topk(5)
    pieces = [tokenizer.model.id_to_piece(i).replace("▁", " ") for i in top.indices.tolist()]
    assert found["piece at T = 2"].tolist() == pieces
    assert found["probability at T = 2"].tolist() == [f"{p:.1%}" for p in top.values.tolist()]


# --- sentences computed from results


def test_a_curve_is_told_by_its_ends_and_whether_it_still_falls():
    said = words.curves({"a": [{"val/loss": x} for x in (5.0, 4.0, 3.9)]})
    assert said == "In the last of 2 parts the loss of a still fell by 0.100: train longer."
    assert words.curves({"given": [{"val/loss": 5.0}]}) == ""
    flat = words.curves({"a": [{"val/loss": x} for x in (5.0, 4.0, 3.99)]})
    assert flat.endswith("the loss of a changed by -0.010.")


def test_the_finding_of_02_says_what_the_hard_windows_hold():
    difficulty_N = np.array([0.1, 0.1, 0.2, 1.0, np.nan])  # the last two hold 1.2 of 1.4
    chosen = hard_set.select(difficulty_N, threshold=0.15)
    found = words.hard_windows("a", {"student_better": 0}, chosen, difficulty_N)
    assert found.startswith("The hardest 50.0% of the windows (0.150 nats and more) hold 86% of")


def test_a_number_that_is_not_known_is_a_dash_also_as_null_of_a_record():
    assert [intervals.number(x, ".0%", 0.0) for x in (0.25, -0.1, NAN, None)] == [
        "25%",
        "0%",
        *"––",
    ]
    assert intervals.with_interval(None, None, None) == "undefined"
    assert intervals.with_interval(0.5, None, None) == "+0.500 [unknown]"
    assert heartbeat.as_json({"a": [1.5, NAN, {"b": np.array([np.inf])}]}).split() == (
        '{ "a": [ 1.5, null, { "b": [ null ] } ] }'.split()
    )


def test_where_one_curve_meets_the_end_of_another_is_said():
    def log(*losses):
        return [{"tokens": 100 * i, "val/loss": x} for i, x in enumerate(losses)]

    first = log(6.0, 5.0, 4.0)
    others = {"after 50%": (5.5, 4.0, 3.0), "after 0%": (3.9, 3.8), "never": (6.0, 5.0, 4.1)}
    for when, losses in others.items():
        said = words.curves({"50m": first, "other": log(*losses)})
        assert f"other reached the 4.000 where 50m ends {when}" in said


def test_cuts_count_only_what_was_scored_and_their_ends_have_some_windows():
    r = np.random.default_rng(0)
    hard_N, scored_N = r.random(3000) < 0.2, r.random(3000) < 0.7
    hard_N &= scored_N
    group_N = r.choice(4, 3000, p=[0.5, 0.496, 0, 0.004]).astype(np.uint8)
    table = tables.by_cut(hard_N, scored_N, {"x": (list("abcd"), group_N)})["x"]
    assert table.index.tolist() == ["a", "b", "d"]  # none is in c
    for name, row in table.iterrows():
        own_N = scored_N & (group_N == "abcd".index(name))
        assert (row["windows"], row["hard windows"]) == (own_N.sum(), (hard_N & own_N).sum())
        assert row["hard"] == hard_N[own_N].mean()
    assert {*tables.ends(table)} == {"a", "b"}
