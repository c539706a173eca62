"""Reports: one file each, nothing asked for from outside, its own Telugu font, data never runs."""

import base64
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from tdbook.runs import hashes, heartbeat
from tdbook.workflow import run_pages
from tdlib import files
from tests.helpers import fonts_of
from tests.small_book import DEAD

PLACE = Path(__file__).with_name("page")  # of one of everything that a run leaves behind
TELUGU = "స్వాతంత్ర్యంశ్రీకృష్ణునిఊళ్ళోపాఠశాల"
ATTACK = "<script>document.title = 'hacked'</script><img src=x onerror=\"document.title='hacked'\">"
LAST_LINE = "RuntimeError: the loss is nan at step 120 with lr 0.5: use a smaller lr"
RECORD = json.loads((PLACE / "record.json").read_text("utf-8"))


def notebook(name: str) -> nbformat.NotebookNode:
    """An attack in every place that data reaches; the table's as pandas writes it."""
    read = nbformat.read(PLACE / f"{name}.json", 4)
    columns = {"model": ["50m", "80m", "–"], "loss": [*"––", 4.42], "text": [TELUGU, ATTACK, ""]}
    frame = pd.DataFrame(columns)
    for cell in read.cells:
        if cell.source == "table":
            cell.outputs[0].data["text/html"] = frame.to_html()
    return read


def written(out: Path, record: dict | None, state: dict | None = None, name="notebook") -> str:
    """The page of a run, the whole record or state of which is given."""
    run = (record or state)["run"]
    for folder, content in (("results", record), ("state", state)):
        if content:
            files.write_whole(out / folder / f"{run}.json", json.dumps(content))
    nbformat.write(notebook(name), out / f"{run}.ipynb")
    run_pages.page(out, run)
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    return (out / f"{run}.html").read_text("utf-8")


def state(run: str, word: str, pid: int = os.getpid(), **more: object) -> dict:
    """A state file whose process is `pid`: our own lives, that of DEAD is gone."""
    one = heartbeat.who() | dict(run=run, notebook=run.split("-")[0], state=word, pid=pid)
    one |= dict(heartbeat=1795520000, step=120, steps=400, message="loss 4.32", left_s=31, error=[])
    return one | more


@pytest.fixture(scope="module")
def every_state(tmp_path_factory) -> Path:
    """A run folder with a run in each state, each with a page, and one that is not run."""
    out = tmp_path_factory.mktemp("states")
    written(out, RECORD, state("01_distill-50m", "done", DEAD))
    trouble = {"error": [ATTACK + "train" * 40, LAST_LINE], "changed": {"rate": "0.5" * 40}}
    written(out, None, state("02_hard_set", "failed", **trouble))
    written(out, None, state("03_lora-hard", "running", DEAD))
    written(out, None, state("03_lora-random", "running"))
    written(out, RECORD | {"run": "04_merge_eval"}, state("04_merge_eval", "interrupted"))
    (out / "state/05_progressive.json").write_text('{"run": "05_progressive", "state": "not run"}')
    row = ["a, b", TELUGU, ATTACK, *(f"{i:.9f}" for i in range(20))]
    frame = pd.DataFrame([row], columns=[f"c{i}" for i in range(23)])
    table = frame.to_markdown(index=False, disable_numparse=True)
    files.write_whole(out / "tables/04_merge_eval-quality.md", table)
    files.write_whole(out / "figures/02_hard_set-difficulty.svg", "<svg/>")
    run_pages.refresh(out)
    return out


@pytest.fixture(scope="module")
def parsed(every_state) -> Callable[[str], tuple[str, BeautifulSoup]]:
    """A page of that folder, as written and as understood."""
    pages = {page.stem: page.read_text("utf-8") for page in every_state.glob("*.html")}
    return lambda run: (pages[run], BeautifulSoup(pages[run], "html.parser"))


def test_no_data_becomes_html(parsed):
    page, soup = parsed("01_distill-50m")
    assert len(page.encode()) < 1_000_000
    assert soup.find_all(["script", "iframe", "object", "embed", "link", "form", "base"]) == []
    assert not any(name.startswith("on") for tag in soup.find_all(True) for name in tag.attrs)
    assert not soup.select('a[href*="script:"]')
    # it stays readable: in a paragraph, what a cell printed, a table, and among the parameters
    for place in ("main p", ".output_stream", "td", "details .parameters"):
        assert ATTACK in "".join(tag.get_text() for tag in soup.select(place)), place
    # formulas are MathML, and what is no formula is shown as written
    assert len(soup.find_all("math")) == 2
    assert soup.select_one("math[display=block]").find("mo", string="∑")
    assert any(tag.get_text() == "\\left( x" for tag in soup.find_all("code"))


def test_a_browser_runs_no_script_and_asks_for_nothing_that_was_not_escaped(browser, tmp_path):
    """What a cell put out as HTML of its own, and the policy of the page is all there is."""
    written(tmp_path, RECORD, name="hostile")
    tab, answered = browser.new_page(), []
    tab.route("https://**", lambda route: answered.append(route.request.url) or route.abort())
    tab.goto((tmp_path / "01_distill-50m.html").as_uri())
    tab.get_by_role("link", name="there").click()
    tab.wait_for_timeout(200)
    assert "hacked" not in tab.title() and answered == []
    assert tab.locator("main b").inner_text() == "seen"
    tab.close()


def test_the_finding_leads_then_the_first_figure_and_provenance_is_folded_below(parsed):
    page, soup = parsed("01_distill-50m")
    block, below = soup.select_one("main + details.provenance:not([open])"), soup.h1.next_siblings
    answer, figure = [tag for tag in below if tag.name][:2]
    assert answer.get_text() == RECORD["finding"] and figure.name == "figure"
    assert page.count(RECORD["finding"]) == 1
    marked = [tag.get_text() for tag in block.select(".changed code")]
    assert marked == ["student", "student"]  # by itself, and among all
    assert [tag.get_text() for tag in block.details.select(".parameters code")] == [
        *RECORD["parameters"]
    ]
    text = re.sub(r"\s+", " ", block.get_text())
    times = ("24 Nov 2026, 11:36 UTC", "62 min", "5,230 tokens/s", "812 MiB", "30–60 min")
    made = ("abc1234 + uncommitted changes", "abababababab", "python 3.11.2 · torch 2.13.0")
    assert all(expected in text for expected in (*made, *times, "1 thread", "null"))
    assert "ab" * 7 not in text


def test_a_page_says_that_its_code_is_older_who_used_it_and_that_it_is_practice(parsed, tmp_path):
    assert "made by older code" in parsed("01_distill-50m")[1].header.get_text()
    current = RECORD | {"code": hashes.of_code("01_distill"), "profile": "b200"}
    first = written(tmp_path, current, state("01_distill-50m", "done", DEAD))
    assert "made by older code" not in first and "Practice" not in first
    # the code changes, the page is there already
    (tmp_path / "results/01_distill-50m.json").write_text(json.dumps(RECORD | {"profile": "tiny"}))
    teacher = {"run": "00_teacher", "reads": {}}
    teacher["parameters"] = RECORD["parameters"] | {"text": "te.txt", "tokens": ""}
    written(tmp_path, RECORD | teacher)
    written(tmp_path, RECORD | {"run": "04_merge_eval", "reads": {"01_distill-50m": "ef" * 32}})
    (tmp_path / "mine.html").write_text("a page of somebody else")
    run_pages.refresh(tmp_path)
    again = (tmp_path / "01_distill-50m.html").read_text("utf-8")
    assert "made by older code" in again and "used by</th><td>04_merge_eval<" in again
    assert "240 times smaller than the plan's, on text that was given." in again
    assert again.partition("<main>")[2].startswith(first.partition("<main>")[2].split("</main>")[0])
    assert (tmp_path / "mine.html").read_text() == "a page of somebody else"


def test_code_is_folded_parameters_are_not_shown_as_code_and_outputs_need_no_kernel(parsed):
    page, soup = parsed("01_distill-50m")
    assert "train" in "".join(tag.get_text() for tag in soup.select("details.code:not([open])"))
    assert "secret_default" not in page and "secret_injected" not in page
    assert soup.select_one("figure img")["alt"] == "The loss falls to 4.42"
    assert "interactive in JupyterLab" in page and "IntSlider" not in page
    assert soup.select_one(".output_stream pre").get_text().split("\n")[0] == "100 %"
    assert all("scroll" in table.parent["class"] for table in soup.main.find_all("table"))
    cells = {td.get_text(): td.get("class", []) for td in soup.select("main td")}
    assert "num" in cells["4.42"] and "num" not in cells["50m"]
    long = f"<table>{'<tr><td>1</td></tr>' * 40}</table>"  # its first row is the head
    html = run_pages._with_readable_tables(BeautifulSoup(f"{long}<details>{long}", "html.parser"))
    assert html.count('<tr class="more">') == 40 - 1 - run_pages.ROWS


def test_a_failed_run_shows_its_state_its_last_lines_and_its_traceback(parsed):
    page, soup = parsed("02_hard_set")
    head = soup.header.get_text()
    assert "failed" in head and "step 120 of 400" in head and LAST_LINE in head
    assert "rate 0.50.5" in head and "secret_injected" in page  # no record shows them
    traceback = soup.select_one(".output_error").get_text()
    assert "line 88" in traceback and LAST_LINE in traceback and "\x1b" not in traceback
    assert "An Exception was encountered" not in soup.get_text()


def test_the_index_tells_each_run_with_its_true_state_below_table_and_plot(parsed, tmp_path):
    html, soup = parsed("index")
    rows = {row["id"]: row for row in soup.select(".runs > li")}
    states = ["done", "failed", "lost", "running", "interrupted", "not run"]
    assert [row.select_one(".state").get_text() for row in rows.values()] == states
    done = rows["01_distill-50m"].get_text()
    assert RECORD["finding"] in done and "62 min" in done and "student 50m" in done
    assert rows["01_distill-50m"].a["href"] == "01_distill-50m.html"
    assert rows["05_progressive"].a is None
    assert "about 31 s left" in rows["03_lora-random"].get_text()
    assert LAST_LINE in rows["02_hard_set"].get_text()
    cells = [td.get_text() for td in soup.select(".scroll td")]
    assert {"a, b", TELUGU, ATTACK, "1.000000000"} <= {*cells}
    assert soup.select_one("figure img")["src"].endswith(base64.b64encode(b"<svg/>").decode())
    places = [html.index(place) for place in ("a, b", "<figure", 'class="runs"')]
    assert places == sorted(places)
    assert soup.script is None
    assert "No run has left a record" in run_pages.index(tmp_path).read_text("utf-8")


def test_a_browser_shows_all_of_every_page_on_a_phone_and_asks_for_nothing(every_state, faults):
    pages = sorted(every_state.glob("*.html"))
    assert len(pages) == 7
    assert {page.name: found for page in pages if (found := faults(page))} == {}


def test_telugu_and_the_bar_between_pieces_are_drawn_with_the_font_inside(browser, every_state):
    tab = browser.new_page()
    tab.goto((every_state / "01_distill-50m.html").as_uri())
    tab.evaluate("document.fonts.ready.then(() => 0)")
    fonts = fonts_of(tab, "main .text_cell:first-child p:last-child")
    assert all(font["isCustomFont"] for font in fonts)
    # a conjunct is one glyph cluster: shaped, the text takes fewer glyphs than it has characters
    assert 0 < sum(font["glyphCount"] for font in fonts) < len(TELUGU)
    tab.close()
