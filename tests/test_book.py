"""The whole book on next to nothing: every notebook runs, and what it recorded is true."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from bs4 import BeautifulSoup
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tdbook.report import words
from tdbook.runs import running
from tdbook.training import from_teacher
from tdbook.workflow import graph, plan
from tdlib import hard_set
from tests import smoke_book

ROOT = Path(__file__).parents[1]
RUNS = sorted(path.stem for path in (ROOT / "params/smoke").glob("*.yaml"))
MODELS = """teacher 50m 50m-scratch 50m-seed2 50m-sliced 50m-on 150m 75m 75m-direct""".split()
MERGED = ["50m-hard-merged", "50m-random-merged"]


@pytest.fixture(scope="session")
def results(out) -> dict[str, dict]:
    return {run: json.loads((out / "results" / f"{run}.json").read_text()) for run in RUNS}


def val_windows(out: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """All validation windows, cut by hand from the raw file."""
    ids = torch.from_numpy(np.fromfile(out / "tokens/val.bin", dtype="<u4").astype(np.int64))
    t = json.loads((out / "tokens/meta.json").read_text())["block_size"]
    n = (len(ids) - 1) // t
    return ids[: n * t].view(n, t), ids[1 : n * t + 1].view(n, t)


def reference_loss(model, ids_NT, targets_NT) -> torch.Tensor:
    """Loss of every token in float64, by a model of transformers."""
    with torch.no_grad():
        logits_NTV = model.double()(ids_NT).logits
    return torch.nn.functional.cross_entropy(
        logits_NTV.flatten(0, 1), targets_NT.flatten(), reduction="none"
    ).view_as(targets_NT)


def difficulty_of(out: Path) -> np.ndarray:
    student_N, teacher_N = np.load(out / "scores/02_hard_set.npy")[:2]
    return student_N - teacher_N


def soup_of(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text("utf-8"), "html.parser")


def test_every_run_leaves_a_record_a_report_and_a_state(out, results):
    for run in RUNS:
        record = results[run]
        assert record["finding"] and record["seconds"] > 0 and record["inputs"] is not None
        assert record["versions"]["torch"] == torch.__version__
        assert (out / f"{run}.html").stat().st_size < 1_000_000
        state = json.loads((out / "state" / f"{run}.json").read_text())
        assert state["state"] == "done" and [*state["changed"]] == record["changed"]
    assert (out / "index.html").exists()
    assert len(list((out / "figures").glob("*.png"))) >= 12


@pytest.mark.parametrize("name", MODELS + MERGED)
def test_the_recorded_loss_is_that_of_transformers_on_the_saved_model(out, results, name):
    row = next(r["models"][name] for r in results.values() if name in r["models"])
    model = AutoModelForCausalLM.from_pretrained(out / "models" / name)
    loss_NT = reference_loss(model, *val_windows(out))
    assert row["loss"] == pytest.approx(float(loss_NT.mean()), abs=1e-5)
    assert row["perplexity"] == pytest.approx(float(loss_NT.mean().exp()), rel=1e-4)
    kept_N = np.load(out / "scores/val" / f"{name}.npy")
    np.testing.assert_allclose(kept_N, loss_NT.mean(1).numpy(), atol=1e-5)


def test_difficulty_is_the_difference_of_two_bare_forwards(out):
    difficulty_N = difficulty_of(out)
    ids = np.fromfile(out / "tokens/train.bin", dtype="<u4").astype(np.int64)
    t = json.loads((out / "tokens/meta.json").read_text())["block_size"]
    assert len(difficulty_N) == (len(ids) - 1) // t
    models = [AutoModelForCausalLM.from_pretrained(out / "models" / n) for n in ("50m", "teacher")]
    for i in (0, 7, len(difficulty_N) - 1):
        window = torch.from_numpy(ids[i * t : i * t + t + 1])[None]
        student, teacher = (reference_loss(m, window[:, :-1], window[:, 1:]) for m in models)
        assert difficulty_N[i] == pytest.approx(float((student - teacher).mean()), abs=1e-5)


def test_the_hard_set_holds_the_hardest_fifth_and_the_control_as_many(out, results):
    difficulty_N = difficulty_of(out)
    chosen = json.loads((out / "hard_set.json").read_text())
    k = len(chosen["windows_K"])
    assert k == round(0.2 * len(difficulty_N))
    assert set(chosen["windows_K"]) == set(np.argsort(-difficulty_N)[:k].tolist())
    trained = [results[f"03_lora-{kind}"]["remembered"] for kind in ("hard", "random")]
    tokens = [log[-1]["tokens"] for r in trained for key, log in r.items() if key.startswith("log")]
    assert tokens[0] == tokens[1]


def test_a_merged_model_is_its_base_with_the_adapter_as_peft_reads_it(out):
    ids_NT, _ = val_windows(out)
    for name in ("50m-hard", "50m-random"):
        base = AutoModelForCausalLM.from_pretrained(out / "models/50m")
        merged = AutoModelForCausalLM.from_pretrained(out / "models" / f"{name}-merged")
        shapes = {k: v.shape for k, v in base.state_dict().items()}
        assert {k: v.shape for k, v in merged.state_dict().items()} == shapes
        with torch.no_grad():
            adapted = PeftModel.from_pretrained(base, out / "adapters" / name)(ids_NT[:4]).logits
            torch.testing.assert_close(merged(ids_NT[:4]).logits, adapted, atol=1e-5, rtol=1e-5)


def test_every_model_is_in_the_tables_and_no_cell_is_empty(out):
    quality = pd.read_csv(out / "tables/04_merge_eval-quality.csv")
    assert set(quality["model"]) == {*MODELS, *MERGED}
    for path in (out / "tables").glob("*.csv"):
        table = pd.read_csv(path, keep_default_na=False)
        known = table  # in 07's, what one seed or no plan does not tell, and what no verdict asked
        if path.stem == "07_evidence-effects":
            known = table.loc[:, :"seeds"]
        if path.stem == "07_evidence-models":
            known = table.drop(columns="confirmation")
        assert len(table) and not (known == "").any().any(), path
        assert not table.isin(["nan", "NaN"]).any().any(), path
    row = quality.set_index("model").loc["50m"]
    assert row["plan: loss"] == "3.00–3.30" and row["plan: quality %"] == "75–80"


def test_the_quality_table_says_what_each_model_is_and_what_it_cost(out, results):
    """FLOP from the plan's formula: 6 a weight and token of training, attention beside."""
    parameters = pd.read_csv(out / "tables/04_merge_eval-quality.csv").set_index("model")
    quality = pd.read_csv(out / "tables/04_merge_eval-made.csv").set_index("model")
    assert set(quality.index) == set(parameters.index)
    assert quality["made"][["teacher", "50m", "50m-scratch", "50m-sliced"]].tolist() == [
        "the teacher", "distilled", "from scratch", "distilled, begun from the teacher",
    ]  # fmt: skip
    assert quality.loc[MERGED, "made"].tolist() == [
        "adapter on hard windows", "adapter on random windows",
    ]  # fmt: skip
    weights = {n: int(parameters.loc[n, "parameters"].replace(",", "")) for n in ("50m", "teacher")}
    attention = {"50m": 2 * 32 * 32, "teacher": 2 * 32 * 64 * 2}  # 2 T · width, a layer
    forward = {n: 2 * weights[n] + attention[n] for n in weights}
    # the run's 4,096 tokens, of which the cache asked the teacher for each window once
    seen = json.loads((out / "tokens/meta.json").read_text())["train_tokens"]
    assert quality.loc["50m", "training, FLOP"] == pytest.approx(
        4096 * 3 * forward["50m"], rel=0.05
    )
    asked = min(4096, seen) * forward["teacher"]
    assert float(quality.loc["50m", "teacher, FLOP"]) == pytest.approx(asked, rel=0.05)
    windows = results["02_hard_set"]["remembered"]["short"]["windows"]
    scoring = windows * 32 * sum(forward.values())
    scored = quality["scoring, FLOP"]
    assert float(scored["50m-hard-merged"]) == pytest.approx(scoring, rel=0.05)
    assert scored[["50m", "50m-random-merged"]].tolist() == ["–", "–"]
    more = quality["training, FLOP"].astype(float)
    assert more["50m-hard-merged"] > more["50m"] and more["50m-scratch"] == more["50m"]


def test_the_verdict_is_in_the_page_and_in_its_table(out):
    table = pd.read_csv(out / "tables/04_merge_eval-verdict.csv").set_index("difference")
    assert table.loc["adapter on hard − adapter on random", "claim"] == "adapter"
    page = soup_of(out / "04_merge_eval.html").get_text()
    assert "adapter on hard − adapter on random on hard text: " in page
    assert "a third seed of 50m, since 50m-seed2 picks the hard windows" in page
    merged = pd.read_csv(out / "tables/04_merge_eval-merged.csv")
    assert (merged["largest logit difference"].astype(float) <= 1e-5).all()
    assert (merged["weights"] == merged["weights of the base"]).all()
    assert "has 52.2M as its base has, not 55M" in page


def test_a_finished_run_begun_from_its_teacher_slices_nothing_when_opened(
    out, results, tmp_path, monkeypatch
):
    """The cells of 01 up to its training, with slicing forbidden."""
    place, run = tmp_path / "out", "01_distill-50m-sliced"
    shutil.copytree(out, place, symlinks=True, ignore=shutil.ignore_patterns("sweeps", ".*"))
    monkeypatch.setattr(running, "_latest", None)
    monkeypatch.setattr(from_teacher, "from_teacher", None)
    given = yaml.safe_load((ROOT / f"params/smoke/{run}.yaml").read_text()) | {"out": str(place)}
    this = running.start("01_distill", given)
    space = this.parameters | {"this": this}
    _, _, *cells = [c.source for c in nbformat.read(ROOT / "notebooks/01_distill.ipynb", 4).cells
                    if c.cell_type == "code"]  # fmt: skip
    for cell in cells[: next(i for i, c in enumerate(cells) if "training.fit(" in c) + 1]:
        exec(cell, space)
    this.detach()
    assert space["init"] == "teacher"
    assert space["log"] == results[run]["remembered"]["log of 50m-sliced"]
    saved = load_file(out / "models/50m-sliced/model.safetensors")
    assert torch.equal(space["net"].norm.weight.cpu(), saved["model.norm.weight"])


def test_a_finished_book_starts_no_kernel_and_a_dry_run_says_that_all_is_done(out):
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.ipynb")}
    done = smoke_book.command(out)
    assert done.returncode == 0 and "started" not in done.stdout, done.stdout
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.ipynb")} == before
    words = plan.dry(graph.wanted("book", {"PROFILE": "smoke", "OUT": str(out)}))
    assert words.endswith("All of them are done.") and words.count("is done") == len(RUNS)


def test_plain_papermill_reloads_a_finished_run_and_its_numbers_stay(out, results, tmp_path):
    before = (out / "models/50m/model.safetensors").stat().st_mtime_ns
    command = [
        sys.executable,
        "-m",
        "papermill",
        "notebooks/01_distill.ipynb",
        tmp_path / "o.ipynb",
    ]
    command += ["-f", "params/smoke/01_distill-50m.yaml", "-p", "out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (out / "models/50m/model.safetensors").stat().st_mtime_ns == before
    record = json.loads((out / "results/01_distill-50m.json").read_text())
    assert record == results["01_distill-50m"]


@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_shows_all_of_itself_in_a_browser_and_asks_for_nothing(out, faults, width):
    pages, sweep = sorted(out.glob("*.html")), out / "sweeps/share"
    assert len(pages) == len(RUNS) + 1
    pages += [sweep / "index.html", sweep / "04_merge_eval-share.html"]
    pages += [sweep / "share0.5/03_lora-share0.5.html"]
    for page in pages:
        judged = width == 390 and page.stem in ("index", "02_hard_set", "04_merge_eval")
        assert (page, faults(page, width, axe=judged)) == (page, [])
        soup = soup_of(page)
        assert not soup.find_all(["link", "iframe", "object"])
        assert all(tag["src"].startswith("data:") for tag in soup.find_all(src=True))
        links = [a["href"].partition("#")[0] for a in soup.select("a") if "://" not in a["href"]]
        assert all((page.parent / link).exists() for link in links)


def test_every_page_prints_with_no_table_cut_and_what_is_folded_open(out, faults, browser):
    pages, a4 = sorted(out.glob("*.html")), 673  # pixels between the margins
    found = {page.name: faults(page, a4, media="print", axe=False) for page in pages}
    assert {name: lines for name, lines in found.items() if lines} == {}
    paper = browser.new_page(viewport={"width": a4, "height": 800})
    paper.emulate_media(media="print")
    paper.goto((out / "04_merge_eval.html").as_uri())
    folded = "[...document.querySelectorAll('details > :not(summary)')]"
    shown = paper.evaluate(f"{folded}.map(el => el.checkVisibility())")
    assert len(shown) > 5 and all(shown)
    paper.close()


def test_every_slider_fold_link_and_scrolling_box_is_reached_by_tab_and_shows_it(out, browser):
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto((out / "02_hard_set.html").as_uri())
    page.evaluate("""() => {
      for (const el of document.querySelectorAll("body *")) {
        const scrolls = /auto|scroll/.test(getComputedStyle(el).overflowX)
          && el.scrollWidth > el.clientWidth;
        if (scrolls || el.matches("a, summary, input") && el.checkVisibility())
          el.dataset.wanted = el.matches("div") ? "box" : el.localName;
      }
    }""")
    reached = []
    focused = """() => { const el = document.activeElement;
      return [el.localName, el.dataset.wanted, getComputedStyle(el).outlineStyle]; }"""
    for _ in range(200):
        page.keyboard.press("Tab")
        tag, wanted, outline = page.evaluate(focused)
        if tag == "body":
            break
        assert outline not in ("none", ""), (tag, wanted)
        reached += [wanted] if wanted else []
    assert len(reached) == page.locator("[data-wanted]").count()
    assert {*reached} >= {"a", "summary", "input"}
    page.close()


def test_pages_link_the_runs_they_were_made_from_and_those_that_use_them(out, results):
    for run, record in results.items():
        soup = soup_of(out / f"{run}.html")
        rows = {row.th.get_text(): row for row in soup.select(".provenance tr")}
        linked = {
            title: {a.get_text() for a in rows[title].select("a")} if title in rows else set()
            for title in ("made from", "used by")
        }
        users = {name for name, other in results.items() if run in other["reads"]}
        assert linked == {"made from": set(record["reads"]), "used by": users}
        assert all((out / a["href"]).exists() for a in soup.select("header a, footer a"))


def test_without_javascript_the_mailed_report_shows_where_its_sliders_start(out, browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((out / "02_hard_set.html").as_uri())
    difficulty_N = difficulty_of(out)
    k = round(0.2 * len(difficulty_N))
    said = page.locator(".explorer output").inner_text()
    assert said.startswith(f"{k} of {len(difficulty_N)} windows (20.0%) are at least ")
    order = np.argsort(difficulty_N, kind="stable")
    near = [*order[-k:][:3], *order[:-k][:-4:-1]]
    shown = re.findall(r"window (\d+),", page.locator(".explorer .texts").inner_text())
    assert [int(window) for window in shown] == near
    controls = page.locator(".explorer :is(input, select, button)").all()
    assert controls and all(each.is_hidden() for each in controls)  # they would move nothing
    context.close()


def test_the_teachers_targets_are_kept_once_for_all_that_ask_for_them(out, results):
    """Two students, 02 and two adapters share one folder; 05's student in between has its own."""
    folders = {path.name: path for path in (out / "cache").iterdir()}
    assert set(folders) == {"teacher-T1-K8-seed1", "150m-T1-K8-seed1"}
    valid_N = np.fromfile(folders["teacher-T1-K8-seed1"] / "valid.bin", "u1")
    trained = results["01_distill-50m"]["parameters"]["token_limit"] // 32  # windows of 32 tokens
    assert len(valid_N) == np.load(out / "scores/02_hard_set.npy").shape[1]
    assert trained <= valid_N.sum() <= len(valid_N)


# --- a sweep of the same folder


def test_a_sweeps_points_train_on_their_own_share_and_leave_the_parent_alone(out, results):
    scores = np.load(out / "scores/02_hard_set.npy")
    count = scores.shape[1]
    for share in (0.2, 0.5):
        point = out / f"sweeps/share/share{share}"
        record = json.loads((point / f"results/03_lora-share{share}.json").read_text())
        (log,) = [log for key, log in record["remembered"].items() if key.startswith("log")]
        assert log[-1]["tokens"] == round(share * count) * 32
        assert set(record["reads"]) == {"00_teacher", "01_distill-50m", "02_hard_set"}
        assert (point / "cache").is_symlink() and not (point / "adapters").is_symlink()
        if share == 0.2:  # the same as the book's own adapter
            own, other = results["03_lora-hard"]["models"], record["models"]
            assert other["50m-hard"]["loss"] == own["50m-hard"]["loss"]
    assert len(list((out / "cache").iterdir())) == 2


def test_a_sweeps_page_has_every_point_beside_the_base_with_its_interval(out):
    table = pd.read_csv(out / "sweeps/share/tables/04_merge_eval-share-sweep-share.csv")
    assert list(table["share"].astype(str)) in (["0.2 *", "0.5"], ["0.5", "0.2 *"])
    losses = {}
    for name, folder in (("50m", out), ("share0.5", out / "sweeps/share/share0.5")):
        file = "50m" if name == "50m" else "50m-hard"
        losses[name] = np.load(folder / f"scores/val/{file}.npy")
    row = table.set_index("point").loc["share0.5"]
    change = float(losses["share0.5"].mean() - losses["50m"].mean())
    assert row["all text"].startswith(f"{change:+.3f} [".replace("-", "−"))
    quality = pd.read_csv(out / "sweeps/share/tables/04_merge_eval-share-quality.csv")
    assert {"teacher", "50m", "share0.2", "share0.5"} <= set(quality["model"])


def test_a_student_better_than_its_teacher_on_most_windows_is_said_before_anything_else():
    short = {"windows": 1000, "mean": -0.03, "student_better": 0.72}
    line = words.difficulty("50m", short)
    assert "better than its teacher on 72.0% of 1,000 windows: most of them" in line
    difficulty_N = np.linspace(1, -1, 1000)  # the hardest 200 hold 0.36 of what is lost
    chosen = hard_set.HardSet(np.arange(200), -0.01, 0.2)
    finding = words.hard_windows("50m", short, chosen, difficulty_N)
    assert finding.startswith("50m is BETTER than its teacher on 72% of windows")
    short["student_better"] = 0.4
    assert "most of them" not in words.difficulty("50m", short)
    finding = words.hard_windows("50m", short, chosen, difficulty_N)
    assert finding.startswith("The hardest 20.0% of the windows (−0.010 nats and more) hold 64% of")


def test_the_script_of_the_readme_runs(out):
    script = (ROOT / "README.md").read_text("utf8").split("In a bare script:\n")[1]
    script = re.sub(r"(?m)^    ", "", script.split("\nExperiments")[0])
    for theirs, ours in (
        ("outputs/tiny", str(out)),
        ("-50m-tiny", "-small-smoke"),
        ("=128", "=32"),
    ):
        assert theirs in script
        script = script.replace(theirs, ours)
    exec(script, space := {})
    assert space["log"][-1]["step"] > 1
