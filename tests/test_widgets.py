"""Coloured texts say their differences; the explorers agree with numpy to the window."""

import json
import re

import numpy as np
import pytest
from bs4 import BeautifulSoup

from tdbook.report import counts, figures, pages, widgets
from tdlib import hard_set
from tdlib.hard_set import Scores

TEXT = "<u>{}</u>".format


@pytest.fixture(scope="module")
def scores() -> Scores:
    r = np.random.default_rng(0)
    teacher_N = r.gamma(30, 0.13, 2060).astype(np.float32)
    return Scores(teacher_N + r.normal(0.22, 0.12, 2060).astype(np.float32), teacher_N)


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
    assert figures.HARD in pages.WIDGETS_CSS and figures.EASY in pages.WIDGETS_CSS


# --- explorers


KINDS = {1: "single-character pieces", 2: "<unk>", 4: r"literal \n", 8: "template repeats"}


def rule(threshold: float, **more) -> hard_set.Rule:
    return hard_set.Rule(threshold, **more)


RULES = [  # of 02's parameters
    rule(0.31), rule(0.31, clip=0.02), rule(0.31, leave_out_junk=True, easy_share=0.1),
    rule(0.2, clip=0.005, leave_out_junk=True, easy_share=0.2, token_share=0.4, seed=7),
    rule(0.4, clip=0.03, token_share=0.5),
]  # fmt: skip


@pytest.fixture(scope="module")
def cuts() -> dict:
    r = np.random.default_rng(1)
    return {
        "source": (["prose", "<verse> & co", "wiki"], np.sort(r.integers(0, 3, 2060))),
        "place in the corpus": ([f"part {i}" for i in range(20)], np.arange(2060) * 20 // 2060),
        "script": (["under 5 %", "5 % and more"], r.integers(0, 2, 2060).astype(np.uint8)),
    }


@pytest.fixture(scope="module")
def junk_N() -> np.ndarray:
    r = np.random.default_rng(3)
    return (r.integers(1, 16, 2060) * (r.random(2060) < 0.07)).astype(np.uint8)


def none(scores: Scores) -> np.ndarray:
    return np.zeros(len(scores.difficulty_N), np.uint8)


def offline(scores, cuts, junk_N, text_of=TEXT, rule=RULES[0]) -> str:
    return widgets.offline_explorer(scores, cuts, junk_N, KINDS, text_of, rule)


def embedded(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.S)[1])


def explored(scores, cuts, junk_N, rule, path):
    shown = widgets.explorer(scores, cuts, junk_N, KINDS, TEXT, rule, path)
    return shown, embedded(shown.html)


def click_keep(shown, at: list) -> None:
    shown._handle_custom_msg(at, [])


@pytest.mark.parametrize("kind,decimals", [(np.float32, 3), (np.float32, 7), (np.float64, 9)])
@pytest.mark.parametrize("rule", RULES)
def test_every_stop_has_as_many_windows_as_numpy_counts_and_by_every_cut(
    scores, cuts, junk_N, kind, decimals, rule
):
    scores = rounded(scores, kind, decimals)
    d_N = scores.difficulty_N
    numbers, _ = counts.every(scores, cuts, junk_N, KINDS, rule, live=True)
    for junk, left_N in enumerate((np.ones(2060, bool), junk_N == 0)):
        mode = numbers["modes"][junk]
        for clip, part in enumerate(numbers["options"]["clip"]):
            dropped = round(part * left_N.sum())
            cap = np.sort(d_N[left_N])[::-1][dropped]  # as hard as this one, and none is dropped
            stops = [("share", i) for i in range(0, len(mode["share"][clip]), 7)]
            stops += [("threshold", i) for i in range(0, len(mode["threshold"]), 7)]
            assert len(stops) > 40 or decimals == 3
            for slider, i in stops:
                now = counts.shown(numbers, [slider, i, junk, clip, 0, 0])
                hard_N = (d_N >= d_N.dtype.type(now["rule"]["threshold"])) & (d_N <= cap) & left_N
                assert now["count"] == hard_N.sum()
                assert now["groups"] == [
                    (hard_N & (group_N == g)).sum()
                    for names, group_N in cuts.values()
                    for g in range(len(names))
                ]
                lost_N = d_N.astype(np.float64).clip(0)
                held = lost_N[hard_N].sum() / lost_N[left_N].sum()
                assert now["lost"] == pytest.approx(held, abs=2e-5)  # each end is rounded


def test_each_half_percent_is_the_choice_of_that_share_with_every_switch(scores, cuts, junk_N):
    numbers, _ = counts.every(scores, cuts, junk_N, KINDS, RULES[0], live=True)
    for junk in (0, 1):
        for clip, part in enumerate(numbers["options"]["clip"]):
            for half, stop in enumerate(numbers["modes"][junk]["steps"][clip]):
                now = counts.shown(numbers, ["share", stop, junk, clip, 0, 0])
                chosen = hard_set.select(
                    scores.difficulty_N, share=(half + 1) / 200, clip=part,
                    left_out_N=junk_N != 0 if junk else None,
                )  # fmt: skip
                assert now["count"] == len(chosen.windows_K)
    assert [numbers["presets"][p] for p in ("15 %", "20 %", "25 %", "median")] == [29, 39, 49, 99]


@pytest.mark.parametrize("many", [999, 30_000])
def test_the_page_grows_little_with_the_number_of_windows(many):
    r = np.random.default_rng(4)
    scores = Scores(r.normal(size=many), np.zeros(many))
    cuts = {"source": (["a", "b"], r.integers(0, 2, many))}
    numbers = embedded(offline(scores, cuts, none(scores)))
    assert len(numbers["modes"][0]["threshold"]) <= 202
    assert len(numbers["modes"][0]["share"][0]) <= 201
    assert len(numbers["modes"][0]["counts"]) <= 404


def test_the_texts_are_of_the_three_windows_next_to_the_line_on_each_side(
    scores, cuts, junk_N, tmp_path
):
    shown, _ = explored(scores, cuts, junk_N, RULES[0], tmp_path / "k.json")
    numbers, _ = counts.every(scores, cuts, junk_N, KINDS, RULES[0], live=True)
    order = np.argsort(scores.difficulty_N, kind="stable")
    for at in (
        shown.at, ["share", 50, 0, 0, 0, 0], ["threshold", 3, 1, 2, 0, 0], ["share", 0, 1, 1, 0, 0]
    ):  # fmt: skip
        shown.at = at
        now = counts.shown(numbers, at)
        own = order[junk_N[order] == 0] if at[2] else order
        own = own[: len(own) - now["out"]]  # without the noisy extreme
        line = (scores.difficulty_N[own] < np.float32(now["rule"]["threshold"])).sum()
        for side, wanted in (
            ("above", own[line : line + 3]), ("below", own[max(0, line - 3) : line][::-1])
        ):  # fmt: skip
            assert re.findall(r"<u>(\d+)</u>", "".join(shown.near[side])) == [*map(str, wanted)]
        assert shown.near["at"] == at  # or the page would take them for those of another line


@pytest.mark.parametrize("at", [
    ["share", 30, 0, 0, 0, 0], ["threshold", 90, 1, 0, 0, 0], ["share", 29, 1, 3, 2, 1],
    ["threshold", 100, 0, 1, 3, 3],
])  # fmt: skip
def test_what_is_kept_is_what_the_same_parameters_choose_in_words_too(
    scores, cuts, junk_N, at, tmp_path
):
    path = tmp_path / "hard_set.json"
    shown, numbers = explored(scores, cuts, junk_N, rule(0.4, seed=5), path)
    click_keep(shown, at)
    kept = json.loads(path.read_text("utf8"))
    p, o = kept["rule"], numbers["options"]
    assert (p["clip"], p["easy_share"]) == (o["clip"][at[3]], o["easy_share"][at[4]])
    assert (p["leave_out_junk"], p["seed"]) == (bool(at[2]), 5)
    chosen = hard_set.select(
        scores.difficulty_N, threshold=p["threshold"], clip=p["clip"], easy_share=p["easy_share"],
        left_out_N=junk_N != 0 if at[2] else None, seed=5,
    )  # fmt: skip
    assert kept["windows_K"] == chosen.windows_K.tolist() and kept["easy"] == chosen.easy
    assert kept["token_share"] == p["token_share"] == o["token_share"][at[5]]
    count, of = len(chosen.windows_K) - chosen.easy, 2060 - at[2] * (junk_N != 0).sum()
    words = kept["words"]
    assert words.startswith(f"by hand, by {at[0]}: {count:,} of {of:,} windows ({count / of:.1%})")
    assert f"are at least {p['threshold']} nats harder for the student" in words
    assert (f"; {2060 - of} junk windows are left out" in words) == bool(at[2])
    assert (f"; {chosen.easy} easier windows are mixed in" in words) == bool(at[4])
    assert ("% of their tokens count" in words) == bool(at[5])
    assert ("are dropped as noise" in words) == bool(at[3])
    assert shown.done == f"kept in hard_set.json: {words}"
    said = []
    shown.observe(lambda change: said.append(change["new"]), "done")
    click_keep(shown, at)
    assert said == ["", shown.done]  # told again, or a second click would seem to do nothing
    again, _ = explored(scores, cuts, junk_N, hard_set.load(path).rule, path)
    click_keep(again, again.at)  # it opens on the choice in force, and would keep that
    assert json.loads(path.read_text("utf8"))["windows_K"] == kept["windows_K"]


def test_a_choice_that_cannot_be_written_is_said_not_to_be_kept(scores, cuts, junk_N, tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "hard_set.json"
    shown, _ = explored(scores, cuts, junk_N, RULES[0], path)
    click_keep(shown, ["share", 30, 0, 0, 0, 0])
    assert shown.done.startswith("not kept: ")


@pytest.mark.parametrize("share", [None, 1 / 2060, 0.0034, 0.2, 0.2533, 1.0])
def test_it_starts_on_just_the_windows_of_the_choice_it_is_given(
    scores, cuts, junk_N, share, tmp_path
):
    given = 99.0 if share is None else hard_set.select(scores.difficulty_N, share=share).threshold
    shown, numbers = explored(scores, cuts, junk_N, rule(given), tmp_path / "k.json")
    assert numbers["start"]["count"] == (scores.difficulty_N >= given).sum()
    click_keep(shown, shown.at)  # and it is what would be kept
    kept = json.loads((tmp_path / "k.json").read_text("utf8"))
    assert kept["windows_K"] == np.flatnonzero(scores.difficulty_N >= given).tolist()


@pytest.mark.parametrize("difficulty", [[0.5] * 6, [0.3], [0.1, np.nan, 0.1, 0.9], [-3e-9, 2e-9]])
def test_the_explorers_stand_ties_unknown_and_few_windows(difficulty, tmp_path):
    scores, n = Scores(np.array(difficulty), np.zeros(len(difficulty))), len(difficulty)
    cuts = {"source": (["only"], np.zeros(n, int))}
    shown, numbers = explored(scores, cuts, none(scores), rule(0.2), tmp_path / "k.json")
    known, mode = np.isfinite(scores.difficulty_N).sum(), numbers["modes"][0]
    for slider, stop in (("share", len(mode["share"][0]) - 1), ("threshold", 0), ("share", 0)):
        shown.at = [slider, stop, 0, 0, 0, 0]
        assert mode["counts"][mode["share"][0][-1][1]] == known
        for threshold, line in mode["share"][0] if slider == "share" else mode["threshold"]:
            assert mode["counts"][line] == (scores.difficulty_N >= threshold).sum()
    soup = BeautifulSoup(offline(scores, cuts, none(scores), rule=rule(0.2)), "html.parser")
    scored = "scored windows" if known < n else "windows"
    assert f" of {known} {scored}" in soup.output.get_text()
    assert not soup.table  # one source says nothing
    assert not soup.find("input", {"name": "junk"}) and "No junk" in soup.get_text()


def test_of_many_sources_the_small_ones_are_one_and_none_is_lost():
    r = np.random.default_rng(2)
    scores = Scores(r.normal(size=3000), np.zeros(3000))
    cuts = {"source": ([f"s{i}" for i in range(40)], r.geometric(0.1, 3000).clip(max=40) - 1)}
    numbers = embedded(offline(scores, cuts, none(scores), rule=rule(0.5)))
    (_, _, names), mode, all_ = numbers["cuts"][0], numbers["modes"][0], numbers["start"]["all"]
    assert len(names) == figures.LISTED + 1 and names[-1].endswith(" others")
    assert all_[:-1] == sorted(all_[:-1], reverse=True)
    assert np.sum(mode["groups"]) == 3000
    assert np.cumsum(np.sum(mode["groups"], 1)).tolist() == mode["counts"]


def test_texts_that_find_no_room_are_from_all_of_the_harder_half(scores, cuts, junk_N):
    long = ("<u>{}</u>" + "అ" * (widgets.EMBEDDED // 15)).format
    page = offline(scores, cuts, junk_N, long)
    ranks = np.array([places[0] for places, _ in embedded(page)["texts"]])
    line = (scores.difficulty_N < 0.31).sum()
    assert {*range(line - 3, line + 3)} <= {*ranks.tolist()}  # first of all those beside the line
    assert len(ranks) < 20 and ranks.max() > 1900 and ranks.min() < 1300
    assert len(page) < 1.5 * widgets.EMBEDDED + 150_000


def test_a_report_builds_the_explorer_anew_and_lets_no_text_run(scores, cuts, junk_N):
    attack = "<script>document.title = 'hacked'</script><img src=x onerror=alert(1)><u>{}</u>"
    cuts = cuts | {"<img src=x onerror=alert(1)>": (["hacked<script>", "b"], cuts["script"][1])}
    page = offline(scores, cuts, junk_N, attack.format)
    clean = pages._output_html(page)
    soup = BeautifulSoup(clean, "html.parser")
    ours, numbers = soup.find_all("script")[::-1]
    assert ours.get_text() == pages.SCRIPT and numbers["type"] == "application/json"
    assert len(soup.find_all("script")) == 2
    assert all("onerror" not in tag.attrs for tag in soup.find_all("img"))
    assert not soup.details.find("img")
    for _, text in embedded(clean)["texts"]:
        assert "onerror" not in text and "hacked" not in text
    assert embedded(clean)["modes"] == embedded(page)["modes"]
    assert soup.output.get_text() == BeautifulSoup(page, "html.parser").output.get_text()


def test_the_sliders_and_switches_show_numpys_counts_cuts_and_texts_in_a_browser(
    scores, cuts, junk_N, browser
):
    text = "<u>{}</u> <!-- </script> -->".format
    own = rule(0.31, clip=0.01, easy_share=0.1, token_share=0.6)
    page_html, d_N = offline(scores, cuts, junk_N, text, own), scores.difficulty_N
    order = np.argsort(d_N, kind="stable")
    page, problems = browser.new_page(), []
    page.on("pageerror", lambda error: problems.append(error))
    page.set_content(page_html)
    said = page.locator("output")
    for fold in page.locator("summary").all():
        fold.click()

    def agreed(junk: bool = False, clip: float = 0.01) -> int:
        text = said.inner_text()
        threshold = np.float32(re.search(r"at least (\S+) nats", text)[1])
        left_N = junk_N == 0 if junk else np.ones(2060, bool)
        cap = np.sort(d_N[left_N])[::-1][round(clip * left_N.sum())]
        hard_N, of = (d_N >= threshold) & (d_N <= cap) & left_N, left_N.sum()
        count = int(hard_N.sum())
        assert text.startswith(f"{count:,} of {of:,} windows ({count / of:.1%})")
        easy = min(round(0.1 * count), int(((d_N < threshold) & left_N).sum()))
        assert f"; {easy} easier windows are mixed in; the hardest 60% of their tokens" in text
        assert ("junk windows are left out" in text) == junk
        dropped = f"; the hardest 1%, {19 if junk else 21} windows, are dropped as noise"
        assert (dropped in text) == (clip > 0)
        for i, (names, group_N) in enumerate(cuts.values()):
            each = page.locator("table").nth(i).locator("tbody tr").all()
            for g, (name, row) in enumerate(zip(names, each, strict=True)):
                own_N = (group_N == g) & left_N
                told = (name, f"{(hard_N & own_N).sum():,} of {own_N.sum():,}")
                share = f"{(hard_N & own_N).sum() / own_N.sum():.1%}"
                found = row.locator("td").all_inner_texts()
                assert (*told, share) == (found[0], found[1], found[2].strip())
        lost_N = d_N.astype(np.float64).clip(0)
        held = 100 * lost_N[hard_N].sum() / lost_N[left_N].sum()
        shown = re.search(r"They hold (\S+)%", page.locator(".pictures b").inner_text())[1]
        assert float(shown) == pytest.approx(held, abs=0.06)
        return count

    count = agreed()
    line = (d_N < np.float32(0.31)).sum()
    windows = [int(x) for x in page.locator(".texts u").all_inner_texts()]
    assert windows == [*order[line : line + 3], *order[line - 3 : line][::-1]]
    for name, keys in (("threshold", ["ArrowRight"] * 3), ("share", ["End", "PageDown", "Home"])):
        for key in keys:
            page.get_by_role("slider", name=name).press(key)
            agreed()
    assert agreed() == 10  # half a percent
    for name, share in (("15 %", 0.15), ("25 %", 0.25), ("median", 0.5), ("20 %", 0.2)):
        page.get_by_role("button", name=name).click()
        assert agreed() == len(hard_set.select(d_N, share=share, clip=0.01).windows_K)
    page.get_by_role("checkbox", name="junk").check()
    count, left = agreed(junk=True), junk_N != 0  # still a fifth, of fewer
    assert count == len(hard_set.select(d_N, share=0.2, clip=0.01, left_out_N=left).windows_K)
    page.get_by_role("combobox", name="noise").select_option("0 %")
    assert agreed(junk=True, clip=0) == round(0.2 * (~left).sum())
    for kind, flag in (("single-character pieces", 1), ("<unk>", 2), ("template repeats", 8)):
        assert f"{kind} {(junk_N & flag != 0).sum()}" in page.locator(".finer").inner_text()
    assert not problems
    page.close()


def test_the_page_says_the_sentence_that_is_kept(scores, cuts, junk_N, browser):
    """explorer.js and counts.py each make the sentence."""
    numbers, _ = counts.every(scores, cuts, junk_N, KINDS, RULES[3], live=False)
    page = browser.new_page()
    page.set_content(offline(scores, cuts, junk_N, rule=RULES[3]))
    assert page.locator("output").text_content() == numbers["start"]["said"]
    page.close()
