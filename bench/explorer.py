"""The explorer of 02 over 1.8 million windows, in a real JupyterLab and browser.

    python -m bench.explorer       a minute; prints what opening costs, and 200 moves

A move's time runs from the slider's event to the page being painted: the first message that is
served after the frame that the event asked for. Texts of 2,048 tokens beside the line come from the
kernel meanwhile. Milliseconds are wall clock, as a reader has them: see the load beside them.
"""

import os
import random
import re
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import nbformat
import numpy as np
from playwright.sync_api import sync_playwright

from tdbook.corpus import writer
from tdbook.report import widgets
from tdlib import hard_set

ROOT = Path(__file__).parents[1]
WINDOWS, MOVES = 1_800_000, 200
TIMED = """() => {
  window.moves = [];
  window.addEventListener("input", event => {
    const began = event.timeStamp, {port1, port2} = new MessageChannel();
    port1.onmessage = () => window.moves.push(performance.now() - began);
    requestAnimationFrame(() => port2.postMessage(0));
  }, true);
}"""


def shown():
    """The explorer of made-up scores in a notebook; prints what opening it took."""
    from bench import engine

    path, r = Path("scores.npy"), np.random.default_rng(0)
    with hard_set.new_scores(path, WINDOWS) as loss_2N:
        loss_2N[1] = r.gamma(30, 0.13, WINDOWS)
        loss_2N[0] = loss_2N[1] + r.normal(0.22, 0.12, WINDOWS)
    n = np.arange(WINDOWS)
    cuts = {
        "source": ([f"source {i}" for i in range(30)], (n % 30).astype(np.uint8)),
        "place in the corpus": ([f"part {i}" for i in range(20)], (n * 20 // WINDOWS).astype("u1")),
        "script": ([f"step {i}" for i in range(5)], r.integers(0, 5, WINDOWS).astype("u1")),
        "rare tokens": ([f"step {i}" for i in range(5)], r.integers(0, 5, WINDOWS).astype("u1")),
    }
    junk_N = (r.integers(1, 16, WINDOWS) * (r.random(WINDOWS) < 0.02)).astype(np.uint8)
    documents = writer.write(60_000, 1)
    words = " ".join(line for d in documents for line in d.lines).split()

    def text_of(i: int) -> str:
        at = (np.arange(2048) + i) % len(words)
        return widgets.text_html([f"▁{words[j]}" for j in at], r.normal(0.2, 1, 2048))

    text_of(0)  # not to be timed
    scores, rule = hard_set.load_scores(path), hard_set.Rule(0.31)
    explored = widgets.Explored(scores, cuts, junk_N, text_of, rule)
    found, began = [], time.process_time()
    mib = engine.peak_of(lambda: found.append(widgets.explorer(explored, Path("hard_set.json"))))
    seconds = time.process_time() - began
    print(f"opened in {seconds:.1f} s CPU, {mib:.0f} MiB at the peak, "
          f"{len(found[0].html) / 1000:.0f} kB of page")  # fmt: skip
    return found[0]


def moved(page) -> list[float]:
    """Milliseconds of 200 moves by key, at random, faster and slower than the texts come."""
    page.evaluate(TIMED)
    r = random.Random(0)
    for i in range(MOVES):
        slider = page.locator(".explorer input[type=range]").nth(r.randrange(2))
        at = int(slider.input_value()) / int(slider.get_attribute("max"))
        up = at < 0.15 or (at < 0.85 and r.random() < 0.5)  # at an end a key would move nothing
        slider.press(r.choice(["ArrowRight", "PageUp"] if up else ["ArrowLeft", "PageDown"]))
        page.wait_for_function("count => window.moves.length === count", arg=i + 1)
        page.wait_for_timeout(r.choice([0, 30, 100, 250, 500]))
    return page.evaluate("() => window.moves")


def redraws() -> str:
    """Opening, then median and worst of 200 moves, in words."""
    from tests import test_lab

    os.environ["PYTHONPATH"] = str(ROOT)  # for the kernel
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        folder = Path(place)
        (folder / "notebooks").mkdir()
        source = "from bench.explorer import shown\n\nshown()"
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(notebook, folder / "notebooks/explorer.ipynb")
        chrome = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = chrome.new_page(viewport={"width": 1280, "height": 900})
        with test_lab.serving(folder) as server:
            page.goto(f"{server}/lab/tree/explorer.ipynb?token={test_lab.TOKEN}")
            test_lab.run_all(page, server)
            page.locator('.explorer .texts[aria-busy="false"]').wait_for(timeout=60_000)
            opened = re.search(r"opened in .*", page.locator(".jp-OutputArea").inner_text())[0]
            times = moved(page)
        chrome.close()
    return (
        f"median {statistics.median(times):.0f}, worst of {len(times)} {max(times):.0f} ms; "
        f"{opened}; load {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    print(redraws())
