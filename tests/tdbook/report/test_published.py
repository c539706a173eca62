"""README says what is published, from its numbers alone; and a second run is held against it."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from bench import published
from tdbook.runs import parameters

PLACE = Path(__file__).with_name("evidence")  # tables of 07, and what README says of them
WANTED = (PLACE / "headline.md").read_text("utf-8").strip()
OLD = f"# Name\n\nbefore\n\n{published.BEGIN}\n\n| old |\n\n{published.END}\n\nafter\n"
TABLE = "tables/07_evidence-{}.csv"
EFFECTS, CLAIMS = ((PLACE / TABLE.format(x)).read_text("utf-8") for x in ("effects", "claims"))


def tables(folder: Path, **changed: str) -> Path:
    shutil.copytree(PLACE, folder)
    for name, text in changed.items():
        (folder / TABLE.format(name)).write_text(text, "utf-8")
    return folder


@pytest.fixture
def readme(tmp_path, monkeypatch) -> Path:
    """README of a repository, with words before and after an old table."""
    monkeypatch.setattr(parameters, "ROOT", tmp_path)
    folder = tables(tmp_path / "outputs/published/evidence")
    monkeypatch.setattr(published, "EVIDENCE", folder)
    (tmp_path / "README.md").write_text(OLD, "utf-8")
    return tmp_path / "README.md"


def test_a_row_a_claim_is_written_between_the_marks_and_a_second_time_nothing(readme, capsys):
    assert not published.readme(check=True) and readme.read_text("utf-8") == OLD
    assert published.main(["readme"]) == 0
    assert readme.read_text("utf-8") == OLD.replace("| old |", WANTED)
    written = readme.stat().st_mtime_ns
    assert published.readme(check=True) and published.main(["readme"]) == 0
    assert readme.stat().st_mtime_ns == written
    assert capsys.readouterr().out.splitlines()[-1] == "README has what is published"
    readme.write_text("# Name\n")
    assert published.main(["readme"]) == 1
    line = capsys.readouterr().out
    assert "README.md" in line and published.BEGIN in line and line.count("\n") == 1


def test_a_folder_agrees_with_itself_and_with_numbers_within_the_intervals(tmp_path):
    old = tables(tmp_path / "old")
    for i, (published_as, here) in enumerate([
        ("-0.25,-0.24,-0.275", "-0.27,,-0.275"),
        ("0.0625,,0.03125,0.09375,3", "0.5,,0.0,1.0,3"),  # one in the other's interval suffices
        ("0.0625,,0.03125,0.09375", "0.0625,,,"),  # of one document
    ]):  # fmt: skip
        new = tables(tmp_path / str(i), effects=EFFECTS.replace(published_as, here))
        assert published.compare(new, old) == published.compare(new, new) == []


def test_what_does_not_agree_or_is_not_there_is_named_with_both_numbers(readme, capsys):
    rows = EFFECTS.splitlines(keepends=True)
    other = "".join(rows[:3]) + rows[3].replace("0.0625,,0.03125,0.09375", "-0.5,,-0.6,-0.4")
    verdicts = CLAIMS.replace("fails as stated (right", "holds (right")
    tables(readme.parent / "outputs/small", effects=other, claims=verdicts)
    assert published.main(["compare", "outputs/small"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "120m − 80m (size_120m) is -0.5000 here, published +0.0625 [+0.0312, +0.0938]",
        "recipe − adapter (recipe) is published and not here",
        "distilled: 'holds' here, 'fails as stated' published",
    ]
    assert published.main(["compare", "outputs/published/evidence"]) == 0
    assert "agrees with outputs/published/evidence" in capsys.readouterr().out
    (published.EVIDENCE / TABLE.format("claims")).unlink()
    assert published.main(["compare", "outputs/published/evidence"]) == 1
    assert "is not there: `make evidence`, then `make publish`" in capsys.readouterr().out
    assert published.main(["what"]) == 2


def test_readme_says_what_is_published():
    """Of this repository itself: the table, of at most 12 lines, and in its sentences on what was
    found the seeds' mean and half-width of rows of 07's effects."""
    assert published.readme(check=True)
    effects = pd.read_csv(published.EVIDENCE / "tables/07_evidence-effects.csv")
    effects = effects.drop_duplicates(["claim", "role"]).set_index(["claim", "role"])
    readme = (parameters.ROOT / "README.md").read_text("utf8")
    table = readme.split(published.BEGIN)[1].split(published.END)[0]
    assert table.count("\n|") <= 12
    found = " ".join(readme.split("**What was found**")[1].split("make book")[0].split())
    for claim in ("distilled", "recipe", "gap"):
        seeds, value, low, high = effects.loc[(claim, "effect"), ["seeds", "value", "low", "high"]]
        size, form = (100, ".1f") if claim == "gap" else (1, ".3f")  # a share is in percent
        told = f"{size * abs(value):{form}} ± {size * (high - low) / 2:{form}}"
        assert seeds >= 3 and told in found, claim
