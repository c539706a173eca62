"""Coloured texts say their differences; the explorers agree with numpy to the window."""

import itertools
import json
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from bs4 import BeautifulSoup

from tdbook.export import inference, llama_cpp
from tdbook.export.gguf_file import to_gguf
from tdbook.report import pages, plots, widgets
from tdlib import hard_set
from tdlib.hard_set import Rule, Scores
from tests.helpers import tiny_model

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


def small(difficulty, names=("only",), group_N=None) -> dict:
    """Of other scores, without junk and with one cut."""
    none_N = np.zeros(len(difficulty), np.uint8)
    cuts = {"source": (list(names), none_N if group_N is None else group_N)}
    return dict(scores=Scores(np.array(difficulty), 0.0 * none_N), cuts=cuts, junk_N=none_N)


soup = partial(BeautifulSoup, features="html.parser")


def embedded(page: str) -> dict:
    return json.loads(soup(page).find(type="application/json").string)


def test_a_coloured_text_is_the_text_and_its_bytes_are_characters_with_their_sum():
    pieces = ["▁క", "్ష", "▁<", "&", "<0xE0>", "<0xB0>", "<0x95>", "<eos>", "<0xF0>", "<0x9F>", "a"]
    page = widgets.text_html(pieces, np.linspace(-4, 4, len(pieces)))
    text = soup(page).div.get_text()
    assert text == " క్ష <&క¶\n�a"
    assert 'title="+1.60"' in widgets.text_html(pieces[4:7], np.array([0.5, 0.5, 0.6]))
    # cut off at the edge of a window
    assert soup(widgets.text_html(pieces[8:10], np.ones(2))).div.get_text() == "�"
    several = widgets.text_html(["<0xE0><0xB0><0x95>b"], np.array([0.5]))  # one token, once
    assert 'title="+0.50">కb<' in several
    levels = soup(widgets.text_html([*"abcde"], np.array([0.2, 0.3, -0.8, 1.5, 9]))).div("i")
    assert [mark["class"] for mark in levels] == [["w1"], ["b2"], ["w3"], ["w4"]]


def test_worse_and_better_tokens_differ_without_colour_and_equal_ones_are_plain(tab):
    tab.set_content(widgets.text_html(["a", "b", "c", "d"], np.array([2.0, -0.3, 0.1, np.nan])))
    style = "el => [getComputedStyle(el).borderBottomStyle, getComputedStyle(el).borderBottomWidth]"
    worse, better = tab.locator("[lang=te] i").all()
    assert (worse.text_content(), worse.get_attribute("title")) == ("a", "+2.00")
    assert (better.text_content(), better.get_attribute("title")) == ("b", "-0.30")
    assert (worse.evaluate(style), better.evaluate(style)) == (["solid", "3px"], ["dotted", "1px"])
    assert plots.HARD in pages.WIDGETS_CSS and plots.EASY in pages.WIDGETS_CSS


@pytest.mark.parametrize(("kind", "decimals"), [(np.float32, 3), (np.float32, 7), (np.float64, 9)])
def test_every_stop_is_the_choice_of_its_threshold_or_share_with_every_switch(kind, decimals):
    d_N = D_N.astype(kind).round(decimals)
    begun = replace(BEGUN, scores=Scores(d_N, np.zeros(N, kind)), rule=Rule(0.4, clip=0.03))
    numbers, _ = widgets.numbers_of(begun, widgets.CLIPS)
    assert numbers["clips"] == [0, 0.005, 0.01, 0.02, 0.03]
    lost_N = d_N.astype(np.float64).clip(0)
    sliders = ("share", "threshold")
    for slider, i, junk, clip in itertools.product(sliders, range(0, 200, 7), (0, 1), range(5)):
        i = min(i, len(numbers["views"][junk][clip][slider]) - 1)
        now = widgets.shown(numbers, [slider, i, junk, clip])
        rule = Rule(**now["rule"])
        hard_K = hard_set.choose(d_N, rule, JUNK_N).windows_K
        assert now["left"] - now["line"] == len(hard_K)
        by_group = [np.bincount(group_N[hard_K], minlength=len(g)) for g, group_N in CUTS.values()]
        assert now["groups"] == np.concatenate(by_group).tolist()
        held = lost_N[hard_K].sum() / lost_N[(JUNK_N == 0) | (not junk)].sum()
        assert now["lost"] == pytest.approx(held, abs=2e-5)  # rounded
        if slider == "share":
            rule = replace(rule, threshold=None, share=(i + 1) / 200)
            assert hard_set.choose(d_N, rule, JUNK_N).windows_K.tolist() == hard_K.tolist()


@pytest.mark.parametrize("at", [None, ["share", 0, 0, 0], ["threshold", 90, 1, 0],
                                ["share", 29, 1, 3], ["threshold", 3, 0, 1]])  # fmt: skip
def test_what_is_kept_and_shown_is_what_the_same_parameters_choose_in_words_too(at, tmp_path):
    path, begun = tmp_path / "hard_set.json", Rule(0.4, easy_share=0.1, token_share=0.6, seed=5)
    widget, news = widgets.explorer(replace(BEGUN, rule=begun), path, "THEN"), []
    widget.at = at = at or widget.at
    widget._handle_custom_msg(at, [])
    kept, (slider, _, junk, clip) = json.loads(path.read_text("utf8")), at
    switches = {"leave_out_junk": bool(junk), "clip": (0, *widgets.CLIPS)[clip]}
    rule = replace(begun, threshold=kept["threshold"], **switches)
    chosen = hard_set.choose(D_N, rule, JUNK_N)
    assert kept["windows_K"] == chosen.windows_K.tolist() and kept["easy"] == chosen.easy > 0
    assert hard_set.load(path).rule == chosen.rule == rule
    in_M = np.argsort(D_N, kind="stable")
    in_M = in_M[JUNK_N[in_M] == 0] if junk else in_M
    hard, of, noise = len(chosen.windows_K) - chosen.easy, len(in_M), round(rule.clip * len(in_M))
    line = f"{hard:,} of {of:,} windows ({hard / of:.1%}) are at least {rule.threshold:.9g} nats"
    numbers, _ = widgets.numbers_of(replace(BEGUN, rule=begun), widgets.CLIPS)
    assert widgets.shown(numbers, at)["words"] == f"{line} harder for the student"
    words = f"by hand, by {slider}: the hardest {hard / N:.1%} of the student's windows, "
    words += f"{rule.threshold:.4f} nats and more".replace("-", "−")
    words += f", less the very hardest {rule.clip:.1%}" * (clip > 0) + ", without junk" * junk
    words += f", and {chosen.easy:,} easy ones; of each the hardest 60% of its tokens"
    assert kept["words"] == words
    # the texts are of the three windows next to the line on each side, without the noisy extreme
    in_M = in_M[: of - noise]
    line = (D_N[in_M] < np.float32(rule.threshold)).sum()
    beside = {"above": in_M[line : line + 3], "below": in_M[max(0, line - 3) : line][::-1]}
    for side, wanted in beside.items():
        assert re.findall(r"<u>(\d+)</u>", "".join(widget.near[side])) == [*map(str, wanted)]
    assert widget.near["at"] == at  # or the page would take them for those of another line
    widget.observe(lambda change: news.append(change["new"]), "done")
    widget._handle_custom_msg(at, [])  # told again, or a second click would seem to do nothing
    half = "More than half of the windows are hardly a hard set: the plan takes 15–25 %. "
    half *= hard / N > 0.5
    assert news == ["", f"kept in hard_set.json: {words}. {half}THEN"]
    widget = widgets.explorer(BEGUN, path / "hard_set.json", "")  # cannot be written
    widget._handle_custom_msg(widget.at, [])
    assert widget.done.startswith("not kept: ") and path.is_file()


@pytest.mark.parametrize("difficulty", [[0.5] * 6, [0.3], [0.1, np.nan, 0.1, 0.9], [-3e-9, 2e-9]])
def test_the_explorers_stand_ties_unknown_and_few_windows(difficulty, tmp_path):
    begun = replace(BEGUN, **small(difficulty), rule=Rule(0.2))
    widget, page = widgets.explorer(begun, tmp_path / "k.json", ""), widgets.offline_explorer(begun)
    ((view,),), known = embedded(page)["views"], np.isfinite(difficulty).sum()
    for slider, stop in (("share", len(view["share"]) - 1), ("threshold", 0), ("share", 0)):
        widget.at = [slider, stop, 0, 0]
    assert view["line"][view["share"][-1]] == 0
    for threshold, line in zip(view["stops"], view["line"], strict=True):
        assert known - line == (begun.scores.difficulty_N >= threshold).sum()
    scored = "scored windows" if known < len(difficulty) else "windows"
    assert f" of {known} {scored}" in soup(page).output.get_text()
    assert not soup(page).table  # one source says nothing
    assert not soup(page).find("input", {"name": "junk"}) and "No junk" in soup(page).get_text()


def test_a_page_is_small_with_many_sources_and_long_texts_from_all_of_the_harder_half():
    group_N = R.geometric(0.1, 30_000).clip(max=40) - 1
    many = small(R.normal(size=30_000), [f"s{i}" for i in range(40)], group_N)
    many = replace(BEGUN, **many, rule=Rule(-99.0))
    numbers, _ = widgets.numbers_of(many)
    ((_, names),), now = numbers["cuts"], widgets.shown(numbers, numbers["at"])
    assert len(names) == widgets.LISTED + 1 and names[-1].endswith(" others")
    assert now["all"][:-1] == sorted(now["all"][:-1], reverse=True)
    assert now["groups"] == now["all"] and sum(now["all"]) == 30_000  # none is lost
    page = widgets.offline_explorer(many)
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
    coloured = widgets.text_html(pieces, np.array([2.0, 0.0]))
    begun = replace(BEGUN, cuts=cuts, text_of=lambda window: coloured)
    tab.set_content(widgets.offline_explorer(begun))
    tab.locator("summary").last.click()
    tab.get_by_role("button", name="median").click()
    assert tab.title() == "" and tab.locator("img, [onclick], [onerror]").count() == 0
    assert tab.locator("script").count() == 2
    for part in ("details:last-of-type", ".texts"):
        assert attack in tab.locator(part).inner_text()


def test_a_page_shows_in_a_browser_what_was_counted(tab, browser):
    rule = Rule(0.31, clip=0.01, easy_share=0.1, token_share=0.6)
    explored = replace(BEGUN, text_of="<u>{}</u> <!-- </script> -->".format, rule=rule)
    numbers, (order, clean) = widgets.numbers_of(explored)
    tab.set_content(page := widgets.offline_explorer(explored))
    without_script = [int(text.get_text()) for text in soup(page).select(".texts u")]
    said = soup(page).output.get_text()
    with browser.new_context(java_script_enabled=False) as plain:
        still = plain.new_page()
        still.set_content(page)
        controls = still.locator(".explorer :is(input, select, button)").all()
        assert controls and all(each.is_hidden() for each in controls)  # they would move nothing
    for fold in tab.locator("summary").all():
        fold.click()

    def agreed(slider: str, junk: int = 0, clip: int = 1) -> dict:
        at = int(tab.get_by_role("slider", name=slider).input_value())
        now = widgets.shown(numbers, [slider, at, junk, clip])
        assert tab.locator("output").inner_text() == now["words"]
        told = tab.locator("tbody td:nth-child(2)").all_inner_texts()
        pairs = zip(now["groups"], now["all"], strict=True)
        assert told == [f"{hard:,} of {every:,}" for hard, every in pairs]
        assert tab.locator(".lost").inner_text() == f"{now['lost']:.1%}"
        red = tab.locator(f".picture >> nth={junk} >> rect.hard").all()
        threshold = now["rule"]["threshold"]
        assert all(float(r.get_attribute("data-difficulty")) >= threshold for r in red[::9])
        return now

    line = (first := agreed("threshold"))["line"]
    assert first["words"] == said
    windows = [int(x) for x in tab.locator(".texts u").all_inner_texts()]
    assert windows == without_script == [*order[line : line + 3], *order[line - 3 : line][::-1]]
    for press in ("threshold ArrowRight", "share End", "share PageDown", "share Home"):
        name, key = press.split()
        tab.get_by_role("slider", name=name).press(key)
        now = agreed(name)
    assert now["left"] - now["line"] == 10  # half a percent
    for name, share in (("15 %", 0.15), ("median", 0.5), ("20 %", 0.2)):
        tab.get_by_role("button", name=name).click()
        now, chosen = agreed("share"), hard_set.select(D_N, share=share, clip=0.01)
        assert now["left"] - now["line"] == len(chosen.windows_K)
    tab.get_by_role("checkbox", name="junk").check()
    agreed("share", junk=1)
    tab.get_by_role("combobox", name="noise").select_option("0 %")
    now = agreed("share", junk=1, clip=0)
    assert now["left"] - now["line"] == round(0.2 * len(clean))  # still a fifth, of fewer


def test_a_sentence_shows_every_place_that_rounding_changes(tokenizer, lines, tmp_path):
    """With both probabilities."""
    model = tiny_model(vocab=tokenizer.size, context=48, dim=64, mlp_dim=96).requires_grad_(False)
    model.save(tmp_path, {tokenizer.path.name: tokenizer.path})
    to_gguf(tmp_path, path := tmp_path / "x.gguf", "Q4_0")
    ids = [line[:40] for line in tokenizer.encode(lines[:3])]
    page = soup(widgets.rounding(model, path, ids, tokenizer, 9))
    file, wanted = llama_cpp.Model(path), []
    for line in ids:
        both = [np.exp(x(line[:-1])) for x in (partial(inference.log_p, model), file.logprobs)]
        for t in range(len(line) - 1):
            picks = [x[t].argmax() for x in both]
            if picks[0] != picks[1]:
                wanted.append([[f"{100 * x[t, k]:.1f}" for x in both] for k in picks])
    places = sum(map(len, ids)) - len(ids)
    assert len(wanted) > 5
    assert f"At {len(wanted)} of {places} places" in page.b.text
    told = [[re.findall(r"\d+\.\d", c.small.text) for c in row("td")[1:]] for row in page("tr")]
    assert [row for row in told if row] == wanted
    shown = [text.get_text() for text in page("div", lang="te")]
    assert [text.strip(" ¶\n") for text in shown[:3]] == [tokenizer.decode(x).strip() for x in ids]
    cells = [row.td.span.get_text() for row in page("tr") if row.td]
    assert all("<0x" in cell or cell in "".join(shown) for cell in cells)
    marks = [mark.get_text().rstrip("\n") for mark in page.select("div i.w1")]
    whole = [mark for row in page("tr") if row.td and "<0x" not in (mark := row.td.i.get_text())]
    assert len(marks) <= len(wanted) and {*whole} <= {*marks}  # bytes of a character are one mark
    assert page.find(string=re.compile("<0x"))  # escaped where it is HTML
