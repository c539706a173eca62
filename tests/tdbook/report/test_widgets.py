"""Coloured texts say their differences; the explorers agree with numpy to the window."""

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bs4 import BeautifulSoup

from tdbook.report import counts, figures, pages, widgets
from tdlib import hard_set
from tdlib.hard_set import Rule, Scores

R, N = np.random.default_rng(0), 2060
TEACHER_N = R.gamma(30, 0.13, N).astype(np.float32)
SCORES = Scores(TEACHER_N + R.normal(0.22, 0.12, N).astype(np.float32), TEACHER_N)
D_N = SCORES.difficulty_N
CUTS = {
    "source": (["prose", "<verse> & co", "wiki"], np.sort(R.integers(0, 3, N))),
    "place in the corpus": ([f"part {i}" for i in range(20)], np.arange(N) * 20 // N),
    "script": (["under 5 %", "5 % and more"], R.integers(0, 2, N).astype(np.uint8)),
}
JUNK_N = (R.integers(1, 16, N) * (R.random(N) < 0.07)).astype(np.uint8)
BEGUN = widgets.Explored(SCORES, CUTS, JUNK_N, "<u>{}</u>".format, Rule(0.31))


def numbers_of(live: bool = True, **changed) -> dict:
    return counts.numbers(replace(BEGUN, **changed), live)[0]


def small(difficulty, names=("only",), group_N=None) -> dict:
    """Of other scores, without junk and with one cut."""
    n, nothing_N = len(difficulty), np.zeros(len(difficulty), np.uint8)
    cuts = {"source": (list(names), nothing_N if group_N is None else group_N)}
    return dict(scores=Scores(np.array(difficulty), np.zeros(n)), cuts=cuts, junk_N=nothing_N)


def kept_by(widget, path: Path, at: list | None = None) -> dict:
    """What a click on "keep" writes."""
    widget._handle_custom_msg(at or widget.at, [])
    return json.loads(path.read_text("utf8"))


def embedded(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.S)[1])


def plain(page: str) -> str:
    return BeautifulSoup(page, "html.parser").div.get_text()


def test_a_coloured_text_is_the_text_and_its_bytes_are_characters_with_their_sum():
    pieces = ["▁క", "్ష", "▁<", "&", "<0xE0>", "<0xB0>", "<0x95>", "<eos>", "<0xF0>", "<0x9F>", "a"]
    page = widgets.text_html(pieces, np.linspace(-4, 4, len(pieces)))
    assert plain(page) == " క్ష <&క¶\n�a"
    assert plain(widgets.text_html(pieces)) == plain(page)
    assert 'title="+1.60"' in widgets.text_html(pieces[4:7], np.array([0.5, 0.5, 0.6]))
    assert plain(widgets.text_html(pieces[8:10])) == "�"  # cut off at the edge of a window
    several = widgets.text_html(["<0xE0><0xB0><0x95>b"], np.array([0.5]))  # one token, once
    assert 'title="+0.50">కb<' in several


def test_worse_and_better_tokens_differ_without_colour_and_equal_ones_are_plain(browser):
    page = browser.new_page()
    page.set_content(widgets.text_html(["a", "b", "c", "d"], np.array([2.0, -0.3, 0.1, np.nan])))
    style = "el => [getComputedStyle(el).borderBottomStyle, getComputedStyle(el).borderBottomWidth]"
    worse, better = page.locator("[lang=te] i").all()
    assert (worse.text_content(), worse.get_attribute("title")) == ("a", "+2.00")
    assert (better.text_content(), better.get_attribute("title")) == ("b", "-0.30")
    assert (worse.evaluate(style), better.evaluate(style)) == (["solid", "3px"], ["dotted", "1px"])
    page.close()
    assert figures.HARD in pages.WIDGETS_CSS and figures.EASY in pages.WIDGETS_CSS


@pytest.mark.parametrize(("kind", "decimals"), [(np.float32, 3), (np.float32, 7), (np.float64, 9)])
def test_every_stop_is_the_choice_of_its_threshold_or_share_with_every_switch(kind, decimals):
    d_N = D_N.astype(kind).round(decimals)
    numbers = numbers_of(scores=Scores(d_N, np.zeros(N, kind)), rule=Rule(0.4, clip=0.03))
    lost_N, clips = d_N.astype(np.float64).clip(0), range(len(numbers["options"]["clip"]))
    switches = itertools.product(("share", "threshold"), range(0, 200, 7), (0, 1), clips)
    for slider, i, junk, clip in switches:
        i = min(i, len(numbers["views"][junk][clip][slider]) - 1)
        now = counts.shown(numbers, [slider, i, junk, clip, 0, 0])
        rule = Rule(**now["rule"])
        hard_K = hard_set.choose(d_N, rule, JUNK_N).windows_K
        assert now["left"] - now["line"] == len(hard_K)
        by_group = [np.bincount(group_N[hard_K], minlength=len(g)) for g, group_N in CUTS.values()]
        assert now["groups"] == np.concatenate(by_group).tolist()
        held = lost_N[hard_K].sum() / lost_N[(JUNK_N == 0) | (not junk)].sum()
        assert now["lost"] == pytest.approx(held, abs=2e-5)  # rounded
        if slider == "share":
            by_share = hard_set.choose(
                d_N, replace(rule, threshold=None, share=(i + 1) / 200), JUNK_N
            )
            assert by_share.windows_K.tolist() == hard_K.tolist()


def test_the_texts_are_of_the_three_windows_next_to_the_line_on_each_side(tmp_path):
    widget, numbers = widgets.explorer(BEGUN, tmp_path / "k.json"), numbers_of()
    order = np.argsort(D_N, kind="stable")
    stops = ("share", 50, 0, 0), ("threshold", 3, 1, 2), ("share", 0, 1, 1)
    for at in (widget.at, *([*stop, 0, 0] for stop in stops)):
        widget.at = at
        now, in_M = counts.shown(numbers, at), order[JUNK_N[order] == 0] if at[2] else order
        in_M = in_M[D_N[in_M] <= now["cap"]]  # without the noisy extreme
        line = (D_N[in_M] < np.float32(now["rule"]["threshold"])).sum()
        beside = {"above": in_M[line : line + 3], "below": in_M[max(0, line - 3) : line][::-1]}
        for side, wanted in beside.items():
            assert re.findall(r"<u>(\d+)</u>", "".join(widget.near[side])) == [*map(str, wanted)]
        assert widget.near["at"] == at  # or the page would take them for those of another line


@pytest.mark.parametrize("at", [
    ["share", 30, 0, 0, 0, 0], ["threshold", 90, 1, 0, 0, 0], ["share", 29, 1, 3, 2, 1],
    ["threshold", 100, 0, 1, 3, 3],
])  # fmt: skip
def test_what_is_kept_is_what_the_same_parameters_choose_in_words_too(at, tmp_path):
    path, begun = tmp_path / "hard_set.json", replace(BEGUN, rule=Rule(0.4, seed=5))
    widget, news = widgets.explorer(begun, path), []
    kept = kept_by(widget, path, at)
    _, _, junk, clip, easy, token = at
    rule = Rule(threshold=kept["threshold"], leave_out_junk=bool(junk), seed=5)
    for name, i in (("clip", clip), ("easy_share", easy), ("token_share", token)):
        rule = replace(rule, **{name: counts.OPTIONS[name][i]})
    chosen = hard_set.choose(D_N, rule, JUNK_N)
    assert kept["windows_K"] == chosen.windows_K.tolist() and kept["easy"] == chosen.easy
    assert hard_set.load(path).rule == chosen.rule == rule
    count, of, words = len(chosen.windows_K) - chosen.easy, N, kept["words"]
    of -= junk * (JUNK_N != 0).sum()
    assert words.startswith(f"by hand, by {at[0]}: {count:,} of {of:,} windows ({count / of:.1%})")
    assert f"are at least {rule.threshold} nats harder for the student" in words
    parts = {f"; {N - of} junk windows are left out": junk, "are dropped as noise": clip,
             f"; {chosen.easy} easier windows are mixed in": easy,
             "% of their tokens count": token}  # fmt: skip
    assert {part for part in parts if part in words} == {p for p, on in parts.items() if on}
    widget.observe(lambda change: news.append(change["new"]), "done")
    kept_by(widget, path, at)  # told again, or a second click would seem to do nothing
    assert news == ["", f"kept in hard_set.json: {words}"]
    again = widgets.explorer(replace(begun, rule=hard_set.load(path).rule), path)
    # it opens on the choice in force, and would keep that
    assert kept_by(again, path)["windows_K"] == kept["windows_K"]


def test_it_starts_on_just_the_windows_of_the_choice_it_is_given(tmp_path):
    given = [hard_set.select(D_N, share=share).threshold for share in (1 / N, 0.0034, 0.2533, 1.0)]
    for threshold in (99.0, *given):
        widget = widgets.explorer(replace(BEGUN, rule=Rule(threshold)), tmp_path / "k.json")
        kept = kept_by(widget, tmp_path / "k.json")["windows_K"]
        assert kept == np.flatnonzero(threshold <= D_N).tolist()
    widget = widgets.explorer(BEGUN, tmp_path / "k.json/hard_set.json")  # cannot be written
    with pytest.raises(NotADirectoryError):
        kept_by(widget, tmp_path / "k.json/hard_set.json")
    assert widget.done.startswith("not kept: ")


@pytest.mark.parametrize("difficulty", [[0.5] * 6, [0.3], [0.1, np.nan, 0.1, 0.9], [-3e-9, 2e-9]])
def test_the_explorers_stand_ties_unknown_and_few_windows(difficulty, tmp_path):
    begun, known = (
        replace(BEGUN, **small(difficulty), rule=Rule(0.2)),
        np.isfinite(difficulty).sum(),
    )
    widget, page = widgets.explorer(begun, tmp_path / "k.json"), widgets.offline_explorer(begun)
    ((view,),) = embedded(page)["views"]
    for slider, stop in (("share", len(view["share"]) - 1), ("threshold", 0), ("share", 0)):
        widget.at = [slider, stop, 0, 0, 0, 0]
    assert view["line"][view["share"][-1]] == 0
    for threshold, line in zip(view["stops"], view["line"], strict=True):
        assert known - line == (begun.scores.difficulty_N >= threshold).sum()
    soup = BeautifulSoup(page, "html.parser")
    scored = "scored windows" if known < len(difficulty) else "windows"
    assert f" of {known} {scored}" in soup.output.get_text()
    assert not soup.table  # one source says nothing
    assert not soup.find("input", {"name": "junk"}) and "No junk" in soup.get_text()


def test_of_many_sources_the_small_ones_are_one_and_none_is_lost():
    group_N = R.geometric(0.1, 3000).clip(max=40) - 1
    many = small(R.normal(size=3000), [f"s{i}" for i in range(40)], group_N)
    numbers = numbers_of(live=False, **many, rule=Rule(-99.0))
    ((_, names),), now = numbers["cuts"], counts.shown(numbers, numbers["at"])
    assert len(names) == figures.LISTED + 1 and names[-1].endswith(" others")
    assert now["all"][:-1] == sorted(now["all"][:-1], reverse=True)
    assert now["groups"] == now["all"] and sum(now["all"]) == 3000


def test_a_page_is_small_and_texts_that_find_no_room_are_from_all_of_the_harder_half():
    page = widgets.offline_explorer(replace(BEGUN, **small(R.normal(size=30_000))))
    ((view,),) = embedded(page)["views"]
    assert len(view["threshold"]) <= 202 and len(view["stops"]) <= 402 and len(page) < 250_000
    text_of = ("<u>{}</u>" + "అ" * (widgets.EMBEDDED // 15)).format
    page = widgets.offline_explorer(replace(BEGUN, text_of=text_of))
    ranks = np.array([places[0] for places, _ in embedded(page)["texts"]])
    line = (D_N < 0.31).sum()
    assert {*range(line - 3, line + 3)} <= {*ranks.tolist()}  # first of all those beside the line
    assert len(ranks) < 20 and ranks.max() > 1900 and ranks.min() < 1300
    assert len(page) < 1.5 * widgets.EMBEDDED + 250_000


@pytest.fixture
def tab(browser):
    page, problems = browser.new_page(), []
    page.on("pageerror", lambda error: problems.append(error))
    yield page
    assert not problems
    page.close()


def test_no_text_and_no_name_becomes_html(tab):
    attack = "</script><script>document.title = 'hacked'</script><img src=x onerror=alert(1)>"
    pieces = [attack, "</u><b onclick=alert(1)>"]
    cuts = CUTS | {attack: ([attack, "b"], CUTS["script"][1])}
    text_of = lambda i: widgets.text_html(pieces, np.array([2.0, 0.0]))  # noqa: E731
    tab.set_content(widgets.offline_explorer(replace(BEGUN, cuts=cuts, text_of=text_of)))
    tab.locator("summary").last.click()
    tab.get_by_role("button", name="median").click()
    assert tab.title() == "" and tab.locator("img, [onclick], [onerror]").count() == 0
    assert tab.locator("script").count() == 2
    for part in ("details:last-of-type", ".texts"):
        assert attack in tab.locator(part).inner_text()


def test_a_page_shows_in_a_browser_what_was_counted(tab):
    text_of = "<u>{}</u> <!-- </script> -->".format
    begun = Rule(0.31, clip=0.01, easy_share=0.1, token_share=0.6)
    explored = replace(BEGUN, text_of=text_of, rule=begun)
    numbers, (order, clean) = counts.numbers(explored, live=False)
    page = widgets.offline_explorer(explored)
    without_script = [
        int(x.get_text()) for x in BeautifulSoup(page, "html.parser").select(".texts u")
    ]
    tab.set_content(page)
    for fold in tab.locator("summary").all():
        fold.click()

    def agreed(slider: str, junk: int = 0, clip: int = 1) -> dict:
        at = int(tab.get_by_role("slider", name=slider).input_value())
        now = counts.shown(numbers, [slider, at, junk, clip, *numbers["at"][4:]])
        assert tab.locator("output").inner_text() == now["words"]
        told = tab.locator("tbody td:nth-child(2)").all_inner_texts()
        pairs = zip(now["groups"], now["all"], strict=True)
        assert told == [f"{hard:,} of {every:,}" for hard, every in pairs]
        assert tab.locator(".lost").inner_text() == f"{now['lost']:.1%}"
        red = tab.locator(f".picture >> nth={junk} >> rect.hard").all()
        threshold = now["rule"]["threshold"]
        assert all(float(r.get_attribute("data-difficulty")) >= threshold for r in red[::9])
        return now

    line = agreed("threshold")["line"]
    windows = [int(x) for x in tab.locator(".texts u").all_inner_texts()]
    assert windows == without_script == [*order[line : line + 3], *order[line - 3 : line][::-1]]
    for name, keys in (("threshold", ["ArrowRight"]), ("share", ["End", "PageDown", "Home"])):
        for key in keys:
            tab.get_by_role("slider", name=name).press(key)
            now = agreed(name)
    assert now["left"] - now["line"] == 10  # half a percent
    for name, share in (("15 %", 0.15), ("median", 0.5), ("20 %", 0.2)):
        tab.get_by_role("button", name=name).click()
        now = agreed("share")
        assert now["left"] - now["line"] == len(
            hard_set.select(D_N, share=share, clip=0.01).windows_K
        )
    tab.get_by_role("checkbox", name="junk").check()
    agreed("share", junk=1)
    tab.get_by_role("combobox", name="noise").select_option("0 %")
    now = agreed("share", junk=1, clip=0)
    assert now["left"] - now["line"] == round(0.2 * len(clean))  # still a fifth, of fewer
