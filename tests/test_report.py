"""Reports: one file each, nothing asked for from outside, its own Telugu font, data never runs."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from fontTools.ttLib import TTFont
from nbformat import v4

from tdlib import report

TELUGU = "స్వాతంత్ర్యం వచ్చిన తరువాత శ్రీకృష్ణుని ఊళ్ళో పాఠశాల కట్టారు"
ATTACK = "<script>document.title = 'hacked'</script><img src=x onerror=\"document.title='hacked'\">"
PIXEL = (  # a PNG of one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
LAST_LINE = "RuntimeError: the loss is nan at step 120 with lr 0.5: use a smaller lr"
RECORD = {
    "run": "01_distill-50m",
    "notebook": "01_distill",
    "profile": "tiny",
    "parameters": {"student": "50m", "steps": 400, "cache": None, "note": ATTACK},
    "changed": ["student"],
    "seed": 1,
    "commit": "abc1234",
    "dirty": True,
    "code": "0f" * 32,
    "versions": {"python": "3.11.2", "torch": "2.13.0"},
    "device": "cpu, 1 thread",
    "inputs": {"tokens": "ab" * 32},
    "reads": {"00_teacher": "cd" * 32},
    "started": "2026-11-24T11:36:38+00:00",
    "seconds": 3731.2,
    "tokens_per_second": 5230.0,
    "peak_memory_mib": 812.0,
    "finding": "The student closes 41 % of the gap.",
    "models": {},
}


def code(source: str, *outputs: nbformat.NotebookNode, tags: tuple[str, ...] = ()):
    return v4.new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags)})


def shown(**data: str) -> nbformat.NotebookNode:
    return v4.new_output("display_data", data={k.replace("_", "/", 1): v for k, v in data.items()})


def notebook() -> nbformat.NotebookNode:
    """One of everything that a run leaves behind, an attack in every place that data reaches."""
    frame = pd.DataFrame({"model": ["50m", "80m"], "loss": [4.42, 4.33], "text": [TELUGU, ATTACK]})
    wide = pd.DataFrame([range(10_000, 10_030)])
    figure = shown(image_png=PIXEL, text_plain="<Figure size 6x3>")
    figure.metadata["alt"] = "The loss falls to 4.42"
    view = "application/vnd.jupyter.widget-view+json"
    widget = v4.new_output("display_data", {view: {"model_id": "1"}, "text/plain": "IntSlider()"})
    style = '<style>@import "https://example.org/x.css";</style><b>kept</b>'
    svg = f"<svg xmlns='http://www.w3.org/2000/svg'>{ATTACK}</svg>"
    formulas = "with $\\alpha T^2$ and\n\n$$\\sum_{v=1}^V p_v \\log q_v$$\n\nbut not $\\left( x$"
    links = "![](https://example.org/a.png) [there](javascript:alert(1))"
    banner = {"tags": ["papermill-error-cell-tag"]}
    traceback = [f"\x1b[31mline 88\x1b[39m {ATTACK}", LAST_LINE]
    cells = [
        v4.new_markdown_cell(f"# A student\n\n{formulas}\n\n{TELUGU}"),
        v4.new_markdown_cell(f"{ATTACK}\n\n{links}"),
        code("secret_default = 1", tags=("parameters",)),
        code("secret_injected = 2", tags=("injected-parameters",)),
        code("train(student)", v4.new_output("stream", text=f"10 %\r50 %\r100 %\n{ATTACK}\n")),
        code("figure", figure),
        code(
            "table", shown(text_html=frame.to_html(escape=False)), shown(text_html=wide.to_html())
        ),
        code("style", shown(text_html=style)),
        code("script", shown(application_javascript="document.title = 'hacked'")),
        code("svg", shown(**{"image_svg+xml": svg})),
        code("explorer", widget),
        v4.new_markdown_cell("An Exception was encountered", metadata=banner),
        code("fail()", v4.new_output("error", ename="E", evalue="nan", traceback=traceback)),
    ]
    return v4.new_notebook(cells=cells)


def written(folder: Path, record: dict | None = RECORD, state: dict | None = None) -> str:
    nbformat.write(notebook(), folder / "01_distill-50m.ipynb")
    report.page(folder / "01_distill-50m.ipynb", folder / "01_distill-50m.html", record, state)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    return (folder / "01_distill-50m.html").read_text("utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    return written(tmp_path_factory.mktemp("page"))


def put(out: Path, record: dict | None = None, state: dict | None = None) -> None:
    for folder, content in (("results", record), ("state", state)):
        (out / folder).mkdir(parents=True, exist_ok=True)
        if content:
            (out / folder / f"{content['run']}.json").write_text(json.dumps(content), "utf-8")


def state(run: str, word: str, pid: int | str = "self", **more: object) -> dict:
    """A state file whose process is `pid`: our own lives, a finished child's is gone."""
    alive = pid == "self"
    ticks = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19] if alive else 1
    return {
        "run": run,
        "notebook": run.split("-")[0],
        "state": word,
        "pid": os.getpid() if alive else pid,
        "pid_started": int(ticks),
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "host": os.uname().nodename,
        "heartbeat": 1795520000,
        "step": 120,
        "steps": 400,
        "message": "loss 4.32",
        "left_s": 31,
        "error": [],
        **more,
    }


def outside_requests(html: str) -> list[str]:
    """What a browser would fetch for this page: sources, style sheets, url(…) and @import."""
    soup = BeautifulSoup(html, "html.parser")
    asked = [tag["src"] for tag in soup.find_all(src=True)]
    asked += [tag["href"] for tag in soup.find_all(href=True) if tag.name != "a"]
    asked += [tag["data"] for tag in soup.find_all("object")]
    styles = [tag.get_text() for tag in soup.find_all("style")]
    styles += [tag["style"] for tag in soup.find_all(style=True)]
    asked += [
        address for style in styles for address in re.findall(r"url\(['\"]?([^)'\"]*)", style)
    ]
    asked += [style for style in styles if "@import" in style]
    return [address[:60] for address in asked if not address.startswith("data:")]


def font_of(html: str) -> TTFont:
    data = re.search(r"data:font/woff2;base64,([A-Za-z0-9+/=]+)", html)[1]
    return TTFont(io.BytesIO(base64.b64decode(data)))


def test_a_page_asks_for_nothing_outside_itself_and_is_under_a_megabyte(page):
    assert outside_requests(page) == []
    assert len(page.encode()) < 1_000_000


def test_no_data_becomes_a_script_or_a_handler(page):
    soup = BeautifulSoup(page, "html.parser")
    assert soup.find_all(["script", "iframe", "object", "embed", "link", "form", "base"]) == []
    assert [
        name for tag in soup.find_all(True) for name in tag.attrs if name.startswith("on")
    ] == []
    assert [a["href"] for a in soup.find_all("a", href=True) if "script:" in a["href"]] == []
    assert "default-src 'none'" in page  # the browser's own guard, behind the cleaning
    # in text it stays readable
    assert ATTACK in soup.select_one(".output_stream").get_text()
    assert ATTACK in soup.select_one(".parameters").get_text()


def test_the_font_inside_holds_every_telugu_letter_and_shapes_conjuncts(page):
    font = font_of(page)
    letters = {ord(letter) for letter in re.findall("[\u0c00-\u0c7f]", page)}
    assert letters and letters <= font.getBestCmap().keys()
    assert ord("A") not in font.getBestCmap()
    # స్త్ర needs glyphs that no letter maps to: below-base forms, reached by GSUB alone
    assert len(font.getGlyphOrder()) > 2 * len(font.getBestCmap())
    features = {record.FeatureTag for record in font["GSUB"].table.FeatureList.FeatureRecord}
    assert features >= {"akhn", "blwf", "psts"}
    assert "Copyright" in font["name"].getDebugName(0)  # the licence asks for it


def test_formulas_are_mathml_and_what_is_no_formula_is_shown_as_written(page):
    soup = BeautifulSoup(page, "html.parser")
    assert len(soup.find_all("math")) == 2
    assert soup.select_one("math[display=block]").find("mo", string="∑")
    assert any(tag.get_text() == "\\left( x" for tag in soup.find_all("code"))


def test_provenance_comes_first_and_marks_what_differs_from_the_default(page):
    soup = BeautifulSoup(page, "html.parser")
    assert soup.select_one(".finding").get_text() == RECORD["finding"]
    head = soup.select_one("header details[open]")
    assert [tag.get_text() for tag in head.select(".changed code")] == ["student"]
    text = head.get_text()
    hashes, versions = "abababababab", "python 3.11.2 · torch 2.13.0"
    times = ("24 Nov 2026, 11:36 UTC", "1 h 2 min")
    for expected in ("abc1234 + uncommitted changes", hashes, versions, *times, "1 thread", "null"):
        assert expected in text
    assert "ab" * 7 not in text
    links = [a["href"] for a in soup.select("header a")]
    assert links == ["index.html", "00_teacher.html"]


def test_code_is_folded_and_parameter_cells_are_not_shown_as_code(page):
    soup = BeautifulSoup(page, "html.parser")
    folded = [tag.get_text() for tag in soup.select("details.code:not([open])")]
    assert any("train" in text for text in folded)
    assert "secret_default" not in page and "secret_injected" not in page


def test_outputs_are_readable_without_a_kernel(page):
    soup = BeautifulSoup(page, "html.parser")
    assert soup.select_one("figure img")["alt"] == "The loss falls to 4.42"
    assert all(img.get("alt") for img in soup.select("figure img"))
    assert "interactive in JupyterLab" in page and "IntSlider" not in page
    assert soup.select_one(".output_stream pre").get_text().split("\n")[0] == "100 %"
    assert all("scroll" in table.parent["class"] for table in soup.find_all("table"))
    cells = {td.get_text(): td.get("class", []) for td in soup.select("main td")}
    assert "num" in cells["4.42"] and "num" not in cells["50m"]


def test_a_failed_run_shows_its_state_its_last_lines_and_its_traceback(tmp_path):
    failed = state("01_distill-50m", "failed", error=["in train", LAST_LINE])
    soup = BeautifulSoup(written(tmp_path, None, failed), "html.parser")
    head = soup.header.get_text()
    assert "failed" in head and "step 120 of 400" in head and LAST_LINE in head
    traceback = soup.select_one(".output_error").get_text()
    assert "line 88" in traceback and LAST_LINE in traceback and "\x1b" not in traceback
    assert "An Exception was encountered" not in soup.get_text()


def test_the_index_tells_each_run_with_its_true_state(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    put(tmp_path, RECORD, state("01_distill-50m", "done", gone.pid))
    put(tmp_path, None, state("02_hard_set", "running"))
    put(tmp_path, None, state("03_lora", "running", gone.pid))
    put(tmp_path, None, state("04_merge_eval", "failed", gone.pid, error=[ATTACK, LAST_LINE]))
    (tmp_path / "01_distill-50m.html").write_text("")
    path = report.index(tmp_path)
    assert path == tmp_path / "index.html" and sorted(tmp_path.glob(".*")) == []
    soup = BeautifulSoup(path.read_text("utf-8"), "html.parser")
    rows = {row["id"]: row for row in soup.select(".runs > li")}
    assert {run: row.select_one(".state").get_text() for run, row in rows.items()} == {
        "01_distill-50m": "done",
        "02_hard_set": "running",
        "03_lora": "lost",
        "04_merge_eval": "failed",
    }
    done = rows["01_distill-50m"].get_text()
    assert RECORD["finding"] in done and "1 h 2 min" in done and "student 50m" in done
    assert rows["01_distill-50m"].a["href"] == "01_distill-50m.html"
    assert rows["02_hard_set"].a is None and "about 31 s left" in rows["02_hard_set"].get_text()
    assert LAST_LINE in rows["04_merge_eval"].get_text() and soup.script is None


@pytest.mark.parametrize("kind", ["md", "csv"])
def test_the_index_opens_with_the_quality_table_and_the_difficulty_plot(tmp_path, kind):
    put(tmp_path, RECORD)
    for folder in ("tables", "figures"):
        (tmp_path / folder).mkdir()
    frame = pd.DataFrame({"model": ["50m", TELUGU], "loss": [4.42, 4.33], "note": ["a, b", ATTACK]})
    text = frame.to_markdown(index=False) if kind == "md" else frame.to_csv(index=False)
    (tmp_path / f"tables/04_merge_eval-quality.{kind}").write_text(text, "utf-8")
    (tmp_path / "figures/02_hard_set-difficulty.png").write_bytes(base64.b64decode(PIXEL))
    html = report.index(tmp_path).read_text("utf-8")
    soup = BeautifulSoup(html, "html.parser")
    cells = [td.get_text() for td in soup.select("table td")]
    assert "4.42" in cells and "a, b" in cells and TELUGU in cells
    assert soup.select_one("figure img")["src"].endswith(PIXEL)
    assert html.index("<table") < html.index("<figure") < html.index('class="runs"')
    assert outside_requests(html) == [] and soup.script is None


def test_an_index_of_nothing_says_so(tmp_path):
    assert "No run has left a record" in report.index(tmp_path).read_text("utf-8")


CHROMIUM = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --disable-dev-shm-usage"
).split()


@pytest.fixture(scope="module")
def browser():
    program = shutil.which("chromium")
    if program is None:
        remedy = "no chromium here: apt-get install -y --no-install-recommends chromium"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(remedy)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=CHROMIUM)
        yield opened
        opened.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_without_network_shows_all_of_it_within_its_width(browser, tmp_path, width):
    written(tmp_path)
    put(tmp_path, RECORD, state("04_merge_eval", "failed", error=[LAST_LINE]))
    report.index(tmp_path)
    context = browser.new_context(viewport={"width": width, "height": 800}, offline=True)
    tab = context.new_page()
    requests, complaints = [], []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    for name in ("01_distill-50m.html", "index.html"):
        tab.goto((tmp_path / name).as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert "hacked" not in tab.title()
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert complaints == []
    context.close()


def test_telugu_is_drawn_with_the_font_inside_the_page(browser, tmp_path):
    written(tmp_path)
    tab = browser.new_page()
    tab.goto((tmp_path / "01_distill-50m.html").as_uri())
    tab.evaluate("document.fonts.ready.then(() => 0)")
    session = tab.context.new_cdp_session(tab)
    for method in ("DOM.enable", "CSS.enable"):
        session.send(method)
    root = session.send("DOM.getDocument")["root"]["nodeId"]
    last = {"nodeId": root, "selector": "main .text_cell:first-child p:last-child"}
    node = session.send("DOM.querySelector", last)["nodeId"]
    fonts = session.send("CSS.getPlatformFontsForNode", {"nodeId": node})["fonts"]
    telugu = [font for font in fonts if font["isCustomFont"]]
    # a conjunct is one glyph cluster: shaped, the text takes fewer glyphs than it has characters
    assert 0 < sum(font["glyphCount"] for font in telugu) < len(TELUGU.replace(" ", ""))
    tab.close()
