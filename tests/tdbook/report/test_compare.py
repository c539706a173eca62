"""The page that compares runs: curves are the logs; filter, differences and response are by hand."""

import json
import math
import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from tdbook.report import compare
from tdbook.workflow import run_pages
from tdlib.files import write_whole
from tests.helpers import refused

HOSTILE = "</script><script>document.title = 'hacked'</script><b>"
LONG = np.linspace(6, 4, 1001) + np.random.default_rng(0).normal(0, 0.05, 1001)


def write(out: Path, run: str, model: str, loss: float, log: list, **values) -> None:
    """The record of a run with one model, or none."""
    log = [{"tokens": 1000 * i, "val/loss": x, "val/samples": [HOSTILE]} for i, x in enumerate(log)]
    one = {"run": run, "notebook": run.split("-")[0], "parameters": {"device": "cpu"} | values}
    one["models"] = {model: {"loss": loss, "kl": loss / 10, "agreement": 0.5}} if model else {}
    one["remembered"] = {f"log of {model}": [*log, {"tokens": 9}, {"tokens": 9, "val/loss": None}]}
    write_whole(out / f"results/{run}.json", json.dumps(one))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two trainings, a run without a model, and a sweep of rank × seed."""
    out = tmp_path_factory.mktemp("compare") / "tiny"
    write(out, "01_distill-a", "a", 4.5, LONG, rate=0.001, note=HOSTILE, seed=1)
    write(out, "01_distill-b", "b", 4.25, [6, 4.0, 4.125], rate=0.01, note="", seed=1)
    write(out, "02_hard_set", "", 0, [], share=0.2)
    for rank, seed in product((4, 16, 64), (1, 2)):
        place, run = out / f"sweeps/rank/rank{rank}-seed{seed}", f"03_lora-rank{rank}-seed{seed}"
        write(place, run, "m", 4 + math.log2(rank) / 10 + seed / 100, [5], rank=rank, seed=seed)
        (place / "results/00_teacher.json").symlink_to(out / "results/01_distill-a.json")
    return run_pages.compare([out]).parent


def test_curves_are_the_logs_and_a_long_one_keeps_its_ends_and_its_lowest(folder):
    records = {record["run"]: record for record in compare.records(folder)}
    assert len(records) == 9 and records["02_hard_set"]["curves"] == {}  # no link among them
    assert records["01_distill-b"]["curves"]["b"] == [(0, 6), (1000, 4.0), (2000, 4.125)]
    kept = dict(records["01_distill-a"]["curves"]["a"])
    assert all(loss == LONG[tokens // 1000] for tokens, loss in kept.items())
    assert {0, 1_000_000, 1000 * int(LONG.argmin())} <= kept.keys() and 100 < len(kept) < 125


def test_a_browser_filters_sorts_overlays_and_diffs_the_rows(browser, folder):
    tab = browser.new_page(viewport={"width": 1200, "height": 800})
    tab.goto((folder / "compare.html").as_uri())
    rows, heads = tab.locator("#runs tbody label"), tab.locator("#runs thead button")
    xy = lambda path: [[*map(float, at)] for at in re.findall(r"([\d.]+) ([\d.]+)", path)]  # noqa: E731

    def asked(words: str) -> list[str]:
        tab.locator("[name=filter]").fill(words)
        return rows.all_inner_texts()

    swept = [f"rank/rank{rank}-seed{seed}" for rank, seed in product((4, 16, 64), (1, 2))]
    assert asked("") == [*swept[:2], "b", *swept[2:4], "a", *swept[4:], "02_hard_set"]
    tab.get_by_role("button", name="untick all").click()
    for label in ("from the first step on", "a", "b"):
        tab.get_by_label(label, exact=True).check()
    a, b = (xy(path.get_attribute("d")) for path in tab.locator(".curve").all())
    (x0, y0), (x1, y1), (x2, y2) = b  # 6, 4, 4.125: the ends of the axis are those of both logs
    assert (x2 - x1, (y1 - y2) / (y1 - y0)) == pytest.approx((x1 - x0, 0.0625), abs=0.11)
    assert len(a) > 100 and "b: 4.125 after 0.00 M tokens, lowest 4.000" in tab.inner_text(
        "#legend"
    )
    loss, *_, rate, note = (x.inner_text().split("\t") for x in tab.locator("#diff tbody tr").all())
    assert loss == ["loss", "4.500", "4.250", "−0.250"]
    assert (rate, note) == (["rate", "0.001", "0.01", ""], ["note", HOSTILE, "none", ""])
    assert tab.inner_text("#alike") == "2 other parameters are the same."
    assert "hacked" not in tab.title() and tab.locator("main b").count() == 0
    lines, dots = (tab.locator("#response path").nth(i).get_attribute("d") for i in (1, 2))
    assert (lines.count("M"), lines.count("L"), dots.count("M")) == (2, 4, 6)  # a line a seed
    steps = np.diff(xy(lines)[:3], axis=0)  # the loss grows by the logarithm of the rank
    assert steps[0] == pytest.approx(steps[1], abs=0.3) and (steps * [1, -1] > 5).all()
    assert asked("rank>=16 seed=1 loss<4.5") == ["rank16-seed1"]
    assert asked("rank=4") == ["rank4-seed1", "rank4-seed2"]
    assert heads.all_inner_texts() == ["name", "loss ▴", "seed"]
    heads.nth(1).click()
    assert rows.all_inner_texts() == ["rank4-seed2", "rank4-seed1"]
    assert asked("nonesuch=1") == [] and "nonesuch=1: no row" in tab.inner_text("#count")
    tab.close()


def test_it_asks_for_nothing_is_whole_on_a_phone_and_takes_several_folders(folder, faults):
    write(other := folder.with_name("other"), "01_distill-a", "a", 4.0, [5, 4], rate=0.1)
    page = run_pages.compare([folder, other])
    assert page == folder / "compare-other.html" and f"{other}" in page.read_text("utf8")
    assert faults(folder / "compare.html") + faults(page) == []
    page.write_text("a page of somebody else")
    with refused("compare-other.html", "was not made by the book", error=FileExistsError):
        run_pages.compare([folder, other])
    with refused("nothing holds no run", "give OUT="):
        run_pages.compare([folder, folder.with_name("nothing")])
