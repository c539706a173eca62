"""02 in a real JupyterLab: sliders moved by key and mouse, a choice kept, the page loaded again."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.helpers import fonts_of
from tests.small_book import wait_for

ROOT = Path(__file__).parents[1]
TOKEN = "test"
expect.set_options(timeout=20_000)  # ms; texts are computed beside whatever else is tested


@pytest.fixture(scope="module")
def folder(out, tmp_path_factory) -> Path:
    """A run folder of our own, and 02 with its parameters set to it as a reader would."""
    folder = tmp_path_factory.mktemp("lab")
    # hidden: what another process writes just now
    shutil.copytree(out, folder / "out", ignore=shutil.ignore_patterns(".*"))
    notebook = nbformat.read(ROOT / "notebooks/02_hard_set.ipynb", as_version=4)
    cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    for default, ours in (('"tiny"', '"smoke"'), ('"outputs/tiny"', f'"{folder / "out"}"')):
        assert default in cell.source
        cell.source = cell.source.replace(default, ours)
    (folder / "notebooks").mkdir()
    nbformat.write(notebook, folder / "notebooks/02_hard_set.ipynb")
    return folder


@pytest.fixture(scope="module")
def difficulty_N(folder) -> np.ndarray:
    student_loss_N, teacher_loss_N = np.load(folder / "out/scores/02_hard_set.npy")
    return student_loss_N - teacher_loss_N


@pytest.fixture(scope="module")
def server(folder) -> Iterator[str]:
    """Address of a JupyterLab that has nothing of the user's: settings, kernels, workspaces."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    own = [f"JUPYTER_{name}_DIR" for name in ("CONFIG", "DATA", "RUNTIME")]
    own += [f"JUPYTERLAB_{name}_DIR" for name in ("SETTINGS", "WORKSPACES")]
    options = f"lab --no-browser --allow-root --ip=127.0.0.1 --port={port}"
    options += f" --ServerApp.port_retries=0 --IdentityProvider.token={TOKEN}"
    command = [sys.executable, "-m", "jupyter", *options.split()]
    command += [f"--ServerApp.root_dir={folder}/notebooks", "--LabApp.extension_manager=readonly"]
    with (folder / "lab.log").open("w") as log:
        env = os.environ | {name: str(folder / name) for name in own}
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: kernels(address) is not None)
        yield address
    finally:
        process.terminate()
        process.wait(20)
        print((folder / "lab.log").read_text()[-2000:])


def kernels(server: str) -> list[tuple[str, int]] | None:
    """State of each and how many pages it is connected to; None while the server is not up."""
    try:
        with urllib.request.urlopen(f"{server}/api/kernels?token={TOKEN}") as answer:
            return [(k["execution_state"], k["connections"]) for k in json.load(answer)]
    except OSError:
        return None


def run_all(page: Page, server: str) -> None:
    """Run All Cells, once a kernel is connected (which the page's own "idle" does not tell), until
    the last of them is done."""
    page.locator(".jp-Notebook").wait_for()
    wait_for(lambda: kernels(server) == [("idle", 1)])
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    last = page.locator(".jp-CodeCell").last.locator(".jp-InputPrompt")
    expect(last).to_have_text("[*]:")
    expect(last).to_have_text(re.compile(r"\[\d+\]:"), timeout=90_000)


@pytest.fixture(scope="module")
def lab(server, browser):
    """02 as run in JupyterLab: its `page` and `explorer`. No other machine is asked anything."""
    page, asked = browser.new_page(viewport={"width": 1280, "height": 900}), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server}/lab/tree/02_hard_set.ipynb?token={TOKEN}")
    run_all(page, server)
    yield SimpleNamespace(page=page, explorer=page.locator(".explorer").first)
    page.close()
    assert [url for url in asked if not url.startswith((server, "data:", "blob:"))] == []


def slider(lab, name: str):
    return lab.explorer.get_by_role("slider", name=name, exact=True)


def place(slider) -> float:
    """0 at its left end, 1 at its right."""
    return int(slider.input_value()) / int(slider.get_attribute("max"))


def number(text: str) -> float:
    return float(text.replace(",", ""))


def line_agreed(lab, difficulty_N) -> tuple[float, int]:
    """Threshold and number of windows shown, once everything shown is what numpy says."""
    expect(lab.explorer.locator(".texts")).to_have_attribute("aria-busy", "false")
    said = lab.explorer.locator("output").text_content()
    line = r"([\d,]+) of ([\d,]+) windows \((\S+)%\) are at least (\S+) nats harder for the student"
    count, of, share, threshold = map(number, re.fullmatch(line, said).groups())
    hard_N = difficulty_N >= np.float32(threshold)
    assert (count, of) == (hard_N.sum(), len(hard_N))
    assert abs(share - 100 * hard_N.mean()) <= 0.05 + 1e-9  # rounded to 0.1
    order, line = np.argsort(difficulty_N, kind="stable"), (~hard_N).sum()
    beside = [*order[line : line + 3], *order[max(0, line - 3) : line][::-1]]
    texts = lab.explorer.locator(".texts").text_content()
    assert [number(window) for window in re.findall(r"window ([\d,]+),", texts)] == beside
    # stops of the share slider are half a percent apart
    assert abs(place(slider(lab, "share")) - hard_N.mean()) < 0.01
    for name in ("threshold", "share"):
        assert slider(lab, name).get_attribute("aria-valuetext") == said
    return threshold, int(count)


def test_sliders_start_on_the_choice_in_force_and_move_all_that_is_shown(lab, difficulty_N):
    seen = {line_agreed(lab, difficulty_N)}
    assert {count for _, count in seen} == {round(0.2 * len(difficulty_N))}
    expect(lab.page.get_by_text("In force, for 03: by 02_hard_set's parameters")).to_have_count(1)
    for name, keys in (("threshold", "ArrowLeft PageDown"), ("share", "PageUp ArrowRight")):
        for key in keys.split():
            slider(lab, name).press(key)
            seen.add(line_agreed(lab, difficulty_N))
    assert len(seen) == 5
    slider(lab, "threshold").press("End")
    assert line_agreed(lab, difficulty_N)[1] <= 1
    slider(lab, "threshold").press("Home")
    box = slider(lab, "threshold").bounding_box()
    y = box["y"] + box["height"] / 2
    lab.page.mouse.move(box["x"] + 8, y)  # half a thumb
    lab.page.mouse.down()
    lab.page.mouse.move(box["x"] + 0.6 * box["width"], y, steps=10)
    lab.page.mouse.up()
    assert place(slider(lab, "threshold")) == pytest.approx(0.6, abs=0.03)
    line_agreed(lab, difficulty_N)


def test_the_texts_are_drawn_with_the_books_own_telugu_font_and_axe_finds_nothing_serious(lab):
    used = fonts_of(lab.page, ".explorer [lang=te]")
    telugu = max(used, key=lambda font: font["glyphCount"])
    assert telugu["familyName"] == "Noto Sans Telugu" and telugu["isCustomFont"]
    violations = Axe().run(lab.page, context=".explorer").response["violations"]
    serious = [v for v in violations if v["impact"] in ("serious", "critical")]
    assert [(v["id"], v["nodes"][0]["html"]) for v in serious] == []


def test_a_kept_choice_is_numpys_and_still_there_after_a_reload(lab, difficulty_N, folder, server):
    kept, notebook = folder / "out/hard_set.json", folder / "notebooks/02_hard_set.ipynb"
    slider(lab, "share").press("Home")
    for _ in range(60):
        slider(lab, "share").press("ArrowRight")
    threshold, count = line_agreed(lab, difficulty_N)
    told = lab.explorer.locator("[role=status]")
    lab.explorer.get_by_role("button", name="keep").press("Enter")
    expect(told).to_contain_text("kept in hard_set.json")
    written = json.loads(kept.read_text("utf8"))
    assert written["windows_K"] == np.flatnonzero(difficulty_N >= np.float32(threshold)).tolist()
    assert written["words"].startswith("by hand, by share: the hardest ")
    lab.page.keyboard.press("Control+s")  # the button has the focus, and must leave it to Lab
    wait_for(lambda: "In force, for 03" in notebook.read_text("utf8"))

    lab.page.reload()  # its kernel lives on
    expect(told).to_contain_text(written["words"])
    assert line_agreed(lab, difficulty_N) == (threshold, count)
    slider(lab, "threshold").press("ArrowLeft")
    assert line_agreed(lab, difficulty_N) != (threshold, count)
    expect(told).to_have_text("")  # this line is not kept

    run_all(lab.page, server)
    assert json.loads(kept.read_text("utf8")) == written
    expect(lab.page.get_by_text(f"In force, for 03: {written['words']}")).to_have_count(1)
    assert line_agreed(lab, difficulty_N) == (threshold, count)
