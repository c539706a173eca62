"""Coloured texts say their differences; the explorers agree with numpy to the window."""

import json
import re

import numpy as np
import pytest
from bs4 import BeautifulSoup

from tdlib import hard_set, plots, report, widgets
from tdlib.hard_set import Scores

SOURCES = ["prose", "<verse> & co", "prose", "wiki", "verse"]
TEXT = "<u>{}</u>".format


@pytest.fixture(scope="module")
def scores() -> Scores:
    r = np.random.default_rng(0)
    teacher_N = r.gamma(30, 0.13, 2060).astype(np.float32)
    return Scores(teacher_N + r.normal(0.22, 0.12, 2060).astype(np.float32), teacher_N)


@pytest.fixture(scope="module")
def documents() -> tuple[np.ndarray, list[str]]:
    return np.sort(np.random.default_rng(1).integers(0, len(SOURCES), 2060)), SOURCES


def rounded(scores: Scores, kind: type, decimals: int) -> Scores:
    """The same difficulties with ties among them."""
    return Scores(scores.difficulty_N.astype(kind).round(decimals), np.zeros(2060, kind))


# --- texts


def plain(page: str) -> str:
    text = re.search(r"<div[^>]*>(.*?)</div>", page, re.S)[1]
    return re.sub(r"<[^>]*>", "", text).replace("&lt;", "<").replace("&amp;", "&")


def test_a_coloured_text_is_the_text_and_its_bytes_are_characters():
    pieces = ["▁క", "్ష", "▁<", "&", "<0xE0>", "<0xB0>", "<0x95>", "<eos>", "<0xF0>", "<0x9F>", "a"]
    page = widgets.text_html(pieces, np.linspace(-4, 4, len(pieces)))
    assert plain(page) == " క్ష <&క¶\n�a"
    assert plain(widgets.text_html(pieces)) == plain(page)


def test_worse_and_better_tokens_differ_without_colour_and_equal_ones_are_plain(browser):
    page = browser.new_page()
    page.set_content(widgets.text_html(["a", "b", "c", "d"], np.array([2.0, -0.3, 0.1, np.nan])))
    style = "el => [getComputedStyle(el).borderBottomStyle, getComputedStyle(el).borderBottomWidth]"
    worse, better = page.locator("[lang=te] i").all()
    assert (worse.text_content(), worse.get_attribute("title")) == ("a", "+2.00")
    assert (better.text_content(), better.get_attribute("title")) == ("b", "-0.30")
    assert worse.evaluate(style) == ["solid", "3px"]
    assert better.evaluate(style) == ["dotted", "1px"]
    page.close()


def test_the_bytes_of_a_character_share_the_sum_of_their_differences():
    page = widgets.text_html(["<0xE0>", "<0xB0>", "<0x95>"], np.array([0.5, 0.5, 0.6]))
    assert 'title="+1.60"' in page


def test_the_style_sheet_has_the_colours_of_the_figures():
    assert plots.HARD in report.WIDGETS_CSS and plots.EASY in report.WIDGETS_CSS


# --- explorers


def embedded(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.S)[1])


@pytest.mark.parametrize("kind,decimals", [(np.float32, 3), (np.float32, 7), (np.float64, 9)])
def test_every_stop_has_as_many_windows_as_numpy_counts_also_by_source(
    scores, documents, kind, decimals
):
    scores = rounded(scores, kind, decimals)
    numbers = embedded(widgets.offline_explorer(scores, documents, TEXT, 0.31))
    source_N = np.array(SOURCES)[documents[0]]
    names = [BeautifulSoup(name, "html.parser").get_text() for name, _ in numbers["sources"]]
    assert sorted(names) == sorted(set(SOURCES))
    for slider in ("threshold", "share"):
        assert len(numbers["stops"][slider]) > 80
        for threshold, count, by_source in numbers["stops"][slider]:
            hard_N = scores.difficulty_N >= threshold
            assert count == hard_N.sum()
            assert by_source == [(hard_N & (source_N == name)).sum() for name in names]


def test_each_half_percent_is_a_stop_with_the_windows_that_this_share_selects(scores, documents):
    numbers = embedded(widgets.offline_explorer(scores, documents, TEXT, 0.31))
    counts = {count for _, count, _ in numbers["stops"]["share"]}
    for share in np.arange(1, 201) / 200:
        assert len(hard_set.select(scores.difficulty_N, share=share).windows_K) in counts


def explored(scores, documents, threshold, path):
    shown = widgets.explorer(scores, documents, TEXT, threshold, path)
    return shown, embedded(shown.html)["stops"]


def test_the_texts_are_of_the_three_windows_next_to_the_line_on_each_side(
    scores, documents, tmp_path
):
    shown, stops = explored(scores, documents, 0.4, tmp_path / "k.json")
    order = np.argsort(scores.difficulty_N, kind="stable")
    for at in (shown.at, ["share", 50], ["threshold", 3], ["share", 0]):
        shown.at = at
        line = (scores.difficulty_N < np.float32(stops[at[0]][at[1]][0])).sum()
        for side, wanted in (
            ("above", order[line : line + 3]), ("below", order[max(0, line - 3) : line][::-1])
        ):  # fmt: skip
            assert re.findall(r"<u>(\d+)</u>", "".join(shown.near[side])) == [*map(str, wanted)]
        assert shown.near["at"] == at  # or the page would take them for those of another line


def click_keep(shown, at: list) -> None:
    shown._handle_custom_msg(at, [])


def test_keep_writes_the_line_it_is_told_in_words_too_and_says_so(scores, documents, tmp_path):
    path = tmp_path / "hard_set.json"
    shown, stops = explored(scores, documents, 0.4, path)
    click_keep(shown, ["share", 30])
    threshold, count, _ = stops["share"][30]
    kept = json.loads(path.read_text("utf8"))
    assert kept["windows_K"] == np.flatnonzero(scores.difficulty_N >= threshold).tolist()
    assert kept["words"] == (
        f"by hand, by share: {count} of 2,060 windows ({count / 2060:.1%}) are at least "
        f"{threshold} nats harder for the student"
    )
    assert shown.done == f"kept in hard_set.json: {kept['words']}"
    said = []
    shown.observe(lambda change: said.append(change["new"]), "done")
    click_keep(shown, ["share", 30])
    assert said == ["", shown.done]  # told again, or a second click would seem to do nothing


def test_a_choice_that_cannot_be_written_is_said_not_to_be_kept(scores, documents, tmp_path):
    (tmp_path / "file").touch()
    shown, _ = explored(scores, documents, 0.4, tmp_path / "file" / "hard_set.json")
    click_keep(shown, ["share", 30])
    assert shown.done.startswith("not kept: ")


@pytest.mark.parametrize("share", [None, 1 / 2060, 0.0034, 0.2, 0.2533, 1.0])
def test_it_starts_on_just_the_windows_of_the_choice_it_is_given(
    scores, documents, share, tmp_path
):
    given = 99.0 if share is None else hard_set.select(scores.difficulty_N, share=share).threshold
    shown, stops = explored(scores, documents, given, tmp_path / "k.json")
    name, stop = shown.at
    assert stops[name][stop][1] == (scores.difficulty_N >= given).sum()
    click_keep(shown, shown.at)  # and it is what would be kept
    kept = json.loads((tmp_path / "k.json").read_text("utf8"))
    assert kept["windows_K"] == np.flatnonzero(scores.difficulty_N >= given).tolist()


@pytest.mark.parametrize("difficulty", [[0.5] * 6, [0.3], [0.1, np.nan, 0.1, 0.9], [-3e-9, 2e-9]])
def test_the_explorers_stand_ties_unknown_and_few_windows(difficulty, tmp_path):
    scores, n = Scores(np.array(difficulty), np.zeros(len(difficulty))), len(difficulty)
    documents = np.zeros(n, int), ["only"]
    shown, stops = explored(scores, documents, 0.2, tmp_path / "k.json")
    known = np.isfinite(scores.difficulty_N).sum()
    for at in (["share", len(stops["share"]) - 1], ["threshold", 0], ["share", 0]):
        shown.at = at
        assert stops["share"][-1][1] == known
        for threshold, count, _ in stops[at[0]]:
            assert count == (scores.difficulty_N >= threshold).sum()
    soup = BeautifulSoup(widgets.offline_explorer(scores, documents, TEXT, 0.2), "html.parser")
    assert f" of {n} windows" in soup.output.get_text()
    assert not soup.table  # one source says nothing


def test_of_many_sources_the_small_ones_are_one_and_none_is_lost():
    r = np.random.default_rng(2)
    scores = Scores(r.normal(size=3000), np.zeros(3000))
    sources = [f"s{i}" for i in range(40)]
    documents = r.geometric(0.1, 3000).clip(max=40) - 1, sources
    numbers = embedded(widgets.offline_explorer(scores, documents, TEXT, 0.5))
    assert len(numbers["sources"]) == plots.LISTED + 1
    assert numbers["sources"][-1][0].endswith(" others")
    assert sum(windows for _, windows in numbers["sources"]) == 3000
    for _, count, by_source in numbers["stops"]["threshold"]:
        assert sum(by_source) == count


def test_texts_that_find_no_room_are_from_all_of_the_harder_half(scores, documents):
    long = ("<u>{}</u>" + "అ" * (widgets.EMBEDDED // 15)).format
    page = widgets.offline_explorer(scores, documents, long, 0.31)
    ranks = np.array([rank for rank, _ in embedded(page)["texts"]])
    line = (scores.difficulty_N < 0.31).sum()
    assert {*range(line - 3, line + 3)} <= {*ranks.tolist()}  # first of all those beside the line
    assert len(ranks) < 20 and ranks.max() > 1900 and ranks.min() < 1300
    assert len(page) < 1.5 * widgets.EMBEDDED + 100_000


def test_a_report_builds_the_explorer_anew_and_lets_no_text_run(scores, documents):
    attack = "<script>document.title = 'hacked'</script><img src=x onerror=alert(1)><u>{}</u>"
    page = widgets.offline_explorer(scores, documents, attack.format, 0.31)
    clean = report._output_html(page)
    soup = BeautifulSoup(clean, "html.parser")
    ours, numbers = soup.find_all("script")[::-1]
    assert ours.get_text() == report.SCRIPT and numbers["type"] == "application/json"
    for text in (str(soup.section), *(text for _, text in embedded(clean)["texts"])):
        assert "onerror" not in text and "hacked" not in text
    assert embedded(clean)["stops"] == embedded(page)["stops"]
    assert soup.output.get_text() == BeautifulSoup(page, "html.parser").output.get_text()


def test_the_sliders_show_numpys_counts_sources_and_texts_in_a_browser(scores, documents, browser):
    page_html = widgets.offline_explorer(
        scores, documents, "<u>{}</u> <!-- </script> -->".format, 0.31
    )
    source_N, order = (
        np.array(SOURCES)[documents[0]],
        np.argsort(scores.difficulty_N, kind="stable"),
    )
    page, problems = browser.new_page(), []
    page.on("pageerror", lambda error: problems.append(error))
    page.set_content(page_html)
    said = page.locator("output")

    def agreed() -> int:
        threshold = np.float32(re.search(r"at least (\S+) nats", said.inner_text())[1])
        hard_N = scores.difficulty_N >= threshold
        count = int(hard_N.sum())
        assert said.inner_text().startswith(f"{count:,} of 2,060 windows ({count / 2060:.1%})")
        for row in page.locator("tbody tr").all():
            name, told, share = row.locator("td").all_inner_texts()
            own_N = source_N == name
            assert told == f"{(hard_N & own_N).sum():,} of {own_N.sum():,}"
            assert share.strip() == f"{hard_N[own_N].mean():.1%}"
        share = page.get_by_role("slider", name="share")
        assert int(share.input_value()) / int(share.get_attribute("max")) == pytest.approx(
            count / 2060, abs=0.01
        )
        return count

    line = 2060 - agreed()
    assert line == (scores.difficulty_N < np.float32(0.31)).sum()
    windows = [int(x) for x in page.locator(".texts u").all_inner_texts()]
    assert windows == [*order[line : line + 3], *order[line - 3 : line][::-1]]
    for name, keys in (("threshold", ["ArrowRight"] * 3), ("share", ["End", "PageDown", "Home"])):
        for key in keys:
            page.get_by_role("slider", name=name).press(key)
            agreed()
    assert agreed() == 10  # half a percent
    assert not problems
    page.close()
