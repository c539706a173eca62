"""README says what is published, from its numbers alone; and a second run is held against it."""

from pathlib import Path

import pandas as pd
import pytest

from tdbook.__main__ import main
from tdbook.report import published
from tdbook.runs import parameters

CLAIMS = """key,claim,verdict,because,against
distilled,"It beats scratch, by 0.3–0.5",holds in part,base − scratch is smaller (and 1 more),–
sizes,Larger is better,fails,clear in the other direction,nothing
rank,Rank 16 suffices,not decidable here,an eighth,"rank, scale"
"""
EFFECTS = """claim,effect,role,value,low,high,seeds,\
mean of seeds,half-width over seeds,plan from,plan to
distilled,base − fresh,control,0.15,0.125,0.175,1,,,,
distilled,base − scratch,claim,-0.25,-0.275,-0.225,3,-0.2625,0.05,-0.5,-0.3
sizes,120m − 80m,claim,0.0625,0.03125,0.09375,1,,,,
recipe,recipe − adapter,claim,-1.5,-1.75,-1.25,2,-1.5625,0.25,,
"""
CHOICES = """model,init,ce_weight,temperature,learning_rate,development,against the recipe
t4,teacher,0.1,4.0,0.002,5.2,"+0.100 [+0.090, +0.110]"
best,teacher,0.1,2.0,0.002,5.1,the recipe
"""
OLD = f"# Name\n\nbefore\n\n{published.BEGIN}\n\n| old |\n\n{published.END}\n\nafter\n"


def tables(folder: Path, **changed: str) -> Path:
    (folder / "tables").mkdir(parents=True)
    texts = {"claims": CLAIMS, "effects": EFFECTS, "choices": CHOICES} | changed
    for name, text in texts.items():
        (folder / f"tables/07_evidence-{name}.csv").write_text(text, "utf-8")
    return folder


@pytest.fixture
def readme(tmp_path, monkeypatch) -> Path:
    """README of a repository, with words before and after an old table."""
    monkeypatch.setattr(parameters, "ROOT", tmp_path)
    folder = tables(tmp_path / "outputs/published/evidence")
    monkeypatch.setattr(published, "EVIDENCE", folder)
    (tmp_path / "README.md").write_text(OLD, "utf-8")
    return tmp_path / "README.md"


def test_the_headline_has_a_row_a_claim_with_the_effect_that_it_rests_on(tmp_path):
    lines = published.headline(tables(tmp_path / "a")).splitlines()
    assert lines == [
        "| claim of the plan | verdict | because | measured | the plan |",
        "|---|---|---|---|---|",
        "| It beats scratch, by 0.3–0.5 | holds in part | base − scratch is smaller (and 1 more) | "
        "base − scratch: −0.250 [−0.275, −0.225]; 3 seeds −0.263 ± 0.050 | −0.5 to −0.3 |",
        "| Larger is better | fails | clear in the other direction | "
        "120m − 80m: +0.062 [+0.031, +0.094]; one seed | – |",
        "| Rank 16 suffices | not decidable here | an eighth | – | – |",
        "",
        "The better recipe ([init teacher, ce_weight 0.1, temperature 2.0, learning_rate 0.002]"
        "(params/b200/recommended/README.md)) against the plan's own 50M + LoRA: "
        "recipe − adapter: −1.500 [−1.750, −1.250]; 2 seeds −1.562 ± 0.250.",
    ]
    without = EFFECTS.partition("recipe,")[0]
    assert published.headline(tables(tmp_path / "b", effects=without)).splitlines() == lines[:5]


def test_only_what_lies_between_the_marks_is_written_and_a_second_time_nothing(readme, capsys):
    assert not published.readme(check=True) and readme.read_text("utf-8") == OLD
    assert main(["published", "readme"]) == 0
    table = published.headline(published.EVIDENCE)
    assert readme.read_text("utf-8") == OLD.replace("| old |", table)
    written = readme.stat().st_mtime_ns
    assert published.readme(check=True) and main(["published", "readme"]) == 0
    assert readme.stat().st_mtime_ns == written
    assert capsys.readouterr().out.splitlines()[-1] == "README has what is published"
    readme.write_text("# Name\n")
    assert main(["published", "readme"]) == 1
    line = capsys.readouterr().out
    assert "README.md" in line and published.BEGIN in line and line.count("\n") == 1


def test_a_folder_agrees_with_itself_and_with_numbers_within_the_intervals(tmp_path):
    old = tables(tmp_path / "old")
    for i, (published_as, here) in enumerate([
        ("-0.25,-0.275", "-0.27,-0.275"),
        ("0.0625,0.03125,0.09375,1", "0.5,0.0,1.0,1"),  # one value in the other's interval suffices
        # and so does one within that over seeds: −0.2625 ± 0.05
        ("-0.25,-0.275,-0.225,3,-0.2625,0.05", "-0.3,-0.305,-0.295,1,,"),
        ("0.0625,0.03125,0.09375", "0.0625,,"),  # of one document
    ]):  # fmt: skip
        new = tables(tmp_path / str(i), effects=EFFECTS.replace(published_as, here))
        assert published.compare(new, old) == published.compare(new, new) == []


def test_what_does_not_agree_or_is_not_there_is_named_with_both_numbers(readme, capsys):
    rows = EFFECTS.splitlines(keepends=True)
    other = "".join(rows[:3]) + rows[3].replace("0.0625,0.03125,0.09375", "-0.5,-0.6,-0.4")
    verdicts = CLAIMS.replace("holds in part", "holds")
    tables(readme.parent / "outputs/small", effects=other, claims=verdicts)
    assert main(["published", "compare", "outputs/small"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "120m − 80m (sizes) is -0.5000 here, published +0.0625 [+0.0312, +0.0938]",
        "recipe − adapter (recipe) is published and not here",
        "distilled: 'holds' here, 'holds in part' published",
    ]
    assert main(["published", "compare", "outputs/published/evidence"]) == 0
    assert "agrees with outputs/published/evidence" in capsys.readouterr().out
    (published.EVIDENCE / "tables/07_evidence-claims.csv").unlink()
    assert main(["published", "compare", "outputs/published/evidence"]) == 1
    assert "is not there: `make evidence`, then `make publish`" in capsys.readouterr().out
    assert main(["published", "what"]) == 2


def test_readme_says_what_is_published():
    """Of this repository itself: `make publish OUT=outputs/small NAME=evidence`, then
    `python -m tdbook published readme`; and in its three sentences on what was found, the seeds'
    mean and half-width of rows of 07's effects."""
    assert published.readme(check=True)
    effects = pd.read_csv(published.EVIDENCE / "tables/07_evidence-effects.csv")
    effects = effects.drop_duplicates("effect").set_index("effect")
    readme = (parameters.ROOT / "README.md").read_text("utf8")
    found = " ".join(readme.split("**What was found**")[1].split("make book")[0].split())
    adapter = ("adapter on hard − 50m", "adapter on hard − adapter on random")
    for effect in ("50m − 50m-scratch", *adapter, "recipe − adapter on hard"):
        row = effects.loc[effect]
        assert row["seeds"] >= 3
        mean, half = abs(row["mean of seeds"]), row["half-width over seeds"]
        assert f"{mean:.3f} ± {half:.3f}" in found, effect
