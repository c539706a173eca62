"""The page that compares runs: its curves are the logs, its rows and differences are by hand."""

import json
import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from tdbook.workflow import run_pages
from tdlib.files import write_whole
from tests.helpers import refused

HOSTILE = "</script><script>document.title = 'hacked'</script><b>"
LONG = np.linspace(6, 4, 1001) + np.random.default_rng(0).normal(0, 0.05, 1001)
SWEPT = [f"rank{rank}-seed{seed}" for rank, seed in product((4, 16, 64), (1, 2))]


def write(out: Path, run: str, loss: float, log: list, **values) -> None:
    """A record; of a run without losses, and so without a model, too."""
    log = [{"tokens": 1000 * i, "val/loss": x, "val/samples": [HOSTILE]} for i, x in enumerate(log)]
    one = {"run": run, "notebook": run.split("-")[0], "parameters": {"device": "cpu"} | values}
    model = re.sub(r"\d", "m", run[-1])  # a sweep's is one
    one["models"] = {model: {"loss": loss, "agreement": 0.5}} if loss else {}
    one["remembered"] = {f"log of {model}": [*log, {"tokens": 9, "val/loss": None}]}
    write_whole(out / f"results/{run}.json", json.dumps(one))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("compare") / "tiny"
    write(out, "01_distill-a", 4.5, LONG, rate=0.001, note=HOSTILE, seed=1)
    write(out, "01_distill-b", 4.25, [6, 4.0, 4.125], rate=0.01, note="", seed=1)
    write(out, "02_hard_set", 0, [], share=0.2)
    for point in SWEPT:
        rank, seed = map(int, re.findall(r"\d+", point))
        loss, place = 3.9 + rank.bit_length() / 10 + seed / 100, out / f"sweeps/rank/{point}"
        write(place, f"03_lora-{point}", loss, [5], rank=rank, seed=seed)
        (place / "results/00_teacher.json").symlink_to(out / "results/01_distill-a.json")
    return run_pages.compare([out]).parent


def test_curves_are_the_logs(folder):
    curves = {record["run"]: record["curves"] for record in run_pages.records(folder)}
    assert len(curves) == 9 and curves["02_hard_set"] == {}  # no link among them
    assert curves["01_distill-b"]["b"] == [(0, 6), (1000, 4.0), (2000, 4.125)]
    assert curves["01_distill-a"]["a"] == [(1000 * i, x) for i, x in enumerate(LONG)]


def test_a_browser_filters_sorts_overlays_and_diffs_the_rows(browser, folder):
    (tab := browser.new_page()).goto((folder / "compare.html").as_uri())
    points = [f"rank/{point}" for point in SWEPT]
    by_loss = [*points[:2], "b", *points[2:4], "a", *points[4:], "02_hard_set"]
    wanted = {"rank>=16 seed=1 loss<4.5": ["rank16-seed1"], "rank=4": SWEPT[:2], "nonesuch=1": []}
    for words, names in (wanted | {"": by_loss}).items():
        tab.locator("[name=filter]").fill(words)
        assert tab.locator("#runs tbody label").all_inner_texts() == names
    tab.locator("#runs thead button").nth(1).click()  # now the largest first
    assert tab.locator("#runs tbody label").first.inner_text() == points[-1]
    tab.get_by_role("button", name="untick all").click()
    for label in ("from the first step on", "a", "b"):
        tab.get_by_label(label, exact=True).check()

    def drawn(path: str) -> np.ndarray:
        d = tab.locator(path).get_attribute("d")
        return np.array(re.findall(r"([\d.]+) ([\d.]+)", d), float)

    first, low, last = drawn(".curve >> nth=1")[:, 1]  # in pixels, to a tenth
    assert low - last == pytest.approx((low - first) / 16, abs=0.11)
    lines = [line.split("\t") for line in tab.inner_text("#diff tbody").split("\n")]
    assert lines[0] == ["loss", "4.500", "4.250", "−0.250"]
    assert lines[-2:] == [["rate", "0.001", "0.01", ""], ["note", HOSTILE, "none", ""]]
    assert tab.inner_text("#alike") == "2 other parameters are the same."
    assert "hacked" not in tab.title() and tab.locator("main b").count() == 0
    assert tab.locator("#response .lines").get_attribute("d").count("M") == 2  # a line a seed
    steps = np.diff(drawn("#response .lines"), axis=0)  # straight by log rank
    assert steps[[0, 3]] == pytest.approx(steps[[1, 4]], abs=0.3) and steps[0] @ [1, -1] > 20


def test_it_asks_for_nothing_is_whole_on_a_phone_and_takes_several_folders(folder, faults):
    write(other := folder.with_name("other"), "01_distill-a", 4.0, [5, 4], rate=0.1)
    page = run_pages.compare([folder, other])
    assert page == folder / "compare-other.html" and f"{other}" in page.read_text("utf8")
    assert faults(folder / "compare.html") + faults(page) == []
    page.write_text("of somebody else")
    with refused("compare-other.html", "was not made by the book", error=FileExistsError):
        run_pages.compare([folder, other])
    with refused("nothing holds no run", "give OUT="):
        run_pages.compare([folder.with_name("nothing")])
