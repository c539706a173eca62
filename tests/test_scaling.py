"""Scaling laws on paper: worked by hand from the papers' constants, and as the papers describe."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tdlib import plots, scaling, tables
from tdlib.scaling import STUDENTS, Assumed, distilled, loss, supervised


def test_the_laws_give_what_the_constants_give_by_hand():
    """N = 10⁸, D = 10¹⁰: powers of ten, so that each term is a power of ten too."""
    assert supervised(1e8, 1e10, "hoffmann") == pytest.approx(1.69 + 0.77432 + 0.65092, abs=2e-4)
    reducible = 3355 * 10**-3.264 + 18186 * 10**-4.31  # 1.8266 + 0.8907
    assert reducible == pytest.approx(2.7174, abs=1e-3)
    own = 1.220 + math.exp(0.452 * math.log(2.7174))  # 1.220 + 1.5712
    assert supervised(1e8, 1e10) == pytest.approx(own, abs=1e-3) == pytest.approx(2.7912, abs=1e-3)
    # a teacher d₁ times as bad as the student's own law: the break's bracket is 1 + 1
    teacher = 1.315 * supervised(1e8, 1e10)
    mimic = (2243 * 10**-2.568 + 24181 * 10**-6.37) ** 0.764
    hand = teacher + teacher**-2.549 * 2 ** -(522.6 * 0.090) * mimic
    assert distilled(1e8, 1e10, teacher) == pytest.approx(hand, abs=1e-12)


@pytest.mark.parametrize("law", scaling.LAWS)
def test_more_weights_and_more_tokens_never_harm(law):
    sizes = [1e7, 3e7, 1e8, 1e9, 1e11]
    for f in (lambda n, d: supervised(n, d, law), lambda n, d: distilled(n, d, 2.6)):
        by_n, by_d = [f(n, 1e10) for n in sizes], [f(3e7, 20 * n) for n in sizes]
        assert by_n == sorted(by_n, reverse=True) and by_d == sorted(by_d, reverse=True)


def test_a_student_has_the_limits_that_the_paper_asks_of_its_law():
    """Section 4.3: endless capacity models any teacher, a random teacher makes random students, and
    a teacher may be too good (the capacity gap)."""
    assert distilled(1e14, 1e16, 2.6) == pytest.approx(2.6, abs=1e-3)
    assert distilled(3e7, 1e10, 10.8) == pytest.approx(10.8, abs=1e-6)
    teachers = [1.4 + 0.05 * i for i in range(40)]
    ends = [distilled(3e7, 1e10, t) for t in teachers]
    assert all(end > t for end, t in zip(ends, teachers, strict=True))
    assert 0 < ends.index(min(ends)) < 39


def test_a_token_read_three_times_is_worth_nearly_three_and_at_most_sixteen():
    assert scaling.effective(1.0, 1) == 1
    assert 2.8 < scaling.effective(1.0, 3) < 3
    assert scaling.effective(1.0, 1e6) == pytest.approx(1 + 15.39)


@pytest.mark.parametrize("law", scaling.LAWS)
@pytest.mark.parametrize("teacher_loss", [2.48, 2.58, 2.68])
def test_the_law_passes_through_the_teacher(law, teacher_loss, monkeypatch):
    for embedding in (False, True):
        assumed = Assumed(law, embedding, "teacher-300m", teacher_loss=teacher_loss)
        monkeypatch.setitem(scaling.SHAPES, "student-50m", scaling.SHAPES["teacher-300m"])
        assert loss("50m-scratch", assumed) == pytest.approx(teacher_loss, abs=1e-12)


def test_weights_are_those_of_the_facts_with_and_without_embedding():
    """Section 2: 310.0M and 52.2M, of which embedding 53.0M and 26.5M."""
    whole, core = Assumed(embedding=True), Assumed()
    for shape, all_, table in (("teacher-300m", 310.0, 53.0), ("student-50m", 52.2, 26.5)):
        assert scaling._weights(shape, whole) / 1e6 == pytest.approx(all_, abs=0.06)
        assert scaling._weights(shape, core) / 1e6 == pytest.approx(all_ - table, abs=0.1)


def test_a_higher_floor_brings_students_nearer_to_the_teacher():
    gaps = [loss("50m", replace(Assumed(), floor=f)) for f in (0.61, 1.22, 1.83)]
    assert gaps == sorted(gaps, reverse=True)


def test_a_band_is_the_whole_range_with_the_middle_inside():
    for row, name in zip(scaling.rows({}), STUDENTS, strict=True):
        assert row["name"] == name and math.isnan(row["measured"])
        assert row["loss"][0] < row["loss"][1] == loss(name, Assumed()) < row["loss"][2]
        assert row["gap"][0] < row["gap"][1] < row["gap"][2]
        each = list(scaling.assumptions(name))
        assert Assumed() in each and len(each) == len(set(each))
        for a in each:
            assert row["loss"][0] <= loss(name, a) <= row["loss"][2]
            assert name == "50m-scratch" or loss(name, replace(a, misfit=0.0)) > a.teacher_loss


@pytest.fixture(scope="module")
def rows():
    measured = {"teacher": 3.9, "50m-scratch": 4.31, "50m": 4.15, "another": 1.0}
    return SimpleNamespace(some=scaling.rows(measured), none=scaling.rows({"50m": 4.15}))


def test_plan_law_and_measurement_stand_in_columns_of_their_own(rows):
    table = tables.scaling(rows.some)
    assert list(table["plan: loss"]) == ["3.50–3.80", "3.00–3.30", "2.80–3.00", "2.70–2.80"]
    assert list(table["gap here"]) == ["0.410", "0.250", "not run", "not run"]
    assert set(tables.scaling(rows.none)["gap here"]) == {"not run"}
    assert table.loc["120m", "plan: gap"] == "0.12–0.22"


def test_the_sentence_and_the_title_hold_the_numbers_they_are_given(rows):
    said = scaling.in_words(rows.some)
    assert "(the plan: 3.50–3.80)" in said and said.endswith("+0.160 here, at another size.")
    assert scaling.in_words(rows.none).endswith("not run here.")
    saved = loss("50m-scratch", Assumed()) - loss("50m", Assumed())
    title = plots.scaling(rows.some).get_suptitle().replace("\n", " ")
    assert title.startswith(f"On paper, distilling 50m saves {saved:.2f} nats (the plan: 0.50)")


@pytest.mark.parametrize("which", ["some", "none"])
def test_only_what_was_measured_is_drawn_and_only_as_a_gap(rows, which):
    losses, gaps = plots.scaling(getattr(rows, which)).axes
    drawn = [[line for line in ax.lines if line.get_label() == "measured here"]
             for ax in (losses, gaps)]  # fmt: skip
    assert [len(each) for each in drawn] == [0, 2 if which == "some" else 0]
