"""The whole book on next to nothing: every notebook runs, and what it recorded is true."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from bs4 import BeautifulSoup
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tdbook.corpus import token_files
from tdbook.runs import running
from tdbook.training import from_teacher
from tdbook.workflow import graph, plan, status
from tests.test_notebooks import cells

ROOT = Path(__file__).parents[1]
RUNS = sorted(path.stem for path in (ROOT / "params/smoke").glob("*.yaml"))
MODELS = "teacher 50m 50m-scratch 50m-seed2 50m-sliced 50m-sliced-2k 50m-on 50m-four-bits"
MODELS = f"{MODELS} 150m 75m 75m-direct".split()
MERGED = ["50m-hard-merged", "50m-random-merged"]
POINTS = ["share0.2", "share0.5"]  # of the sweep that 04's YAML names


@pytest.fixture(scope="session")
def results(out) -> dict[str, dict]:
    return {run: json.loads((out / "results" / f"{run}.json").read_text()) for run in RUNS}


def windows_of(out: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """All windows of a split and their targets."""
    windows = getattr(token_files.open_tokens(out / "tokens"), split)
    return windows.batch(range(len(windows)))


def reference_loss(out: Path, name: str, ids_NT, targets_NT) -> torch.Tensor:
    """Loss of every token in float64, of a saved model as transformers reads it, (N, T)."""
    model = AutoModelForCausalLM.from_pretrained(out / "models" / name).double()
    with torch.no_grad():
        logits_NVT = model(ids_NT).logits.transpose(1, 2)
    return torch.nn.functional.cross_entropy(logits_NVT, targets_NT, reduction="none")


def difficulty_of(out: Path) -> np.ndarray:
    student_N, teacher_N = np.load(out / "scores/02_hard_set.npy")[:2]
    return student_N - teacher_N


def table_of(out: Path, name: str, index: str = "model") -> pd.DataFrame:
    return pd.read_csv(out / f"tables/{name}.csv").set_index(index)


def soup_of(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text("utf-8"), "html.parser")


def log_of(record: dict) -> list[dict]:
    *_, log = (log for key, log in record["remembered"].items() if key.startswith("log"))
    return log


def test_every_run_leaves_a_record_a_state_and_a_page_that_leads_with_its_finding(out, results):
    for run, record in results.items():
        assert record["finding"] and record["seconds"] > 0 and record["inputs"] is not None
        assert record["versions"]["torch"] == torch.__version__
        state = json.loads((out / "state" / f"{run}.json").read_text())
        assert state["state"] == "done" and [*state["changed"]] == record["changed"]
        assert (out / f"{run}.html").stat().st_size < 1_000_000
        soup = soup_of(out / f"{run}.html")
        rows = {row.th.get_text(): row.td.get_text() for row in soup.select(".provenance tr")}
        told = [{*rows.get(of, "").split(", ")} - {""} for of in ("made from", "used by")]
        users = {name for name, other in results.items() if run in other["reads"]}
        assert told == [set(record["reads"]), users]
        assert soup.select("header a, footer a") == []  # of one mailed page they would be dead
        below = [tag.name for tag in soup.h1.find_next_siblings()][:2]
        assert soup.select_one(".finding").get_text() == record["finding"] and below[0] == "p"
    assert len(list((out / "figures").glob("*.png"))) >= 12


@pytest.mark.parametrize("name", MODELS + MERGED)
def test_the_recorded_loss_is_that_of_transformers_on_the_saved_model(out, results, name):
    row = next(r["models"][name] for r in results.values() if name in r["models"])
    loss_NT = reference_loss(out, name, *windows_of(out, "val"))
    assert row["loss"] == pytest.approx(float(loss_NT.mean()), abs=1e-5)
    assert row["perplexity"] == pytest.approx(float(loss_NT.mean().exp()), rel=1e-4)
    kept_N = np.load(out / "scores/val" / f"{name}.npy")
    np.testing.assert_allclose(kept_N, loss_NT.mean(1).numpy(), atol=1e-5)


def test_difficulty_is_two_bare_forwards_apart_and_the_hardest_fifth_is_hard(out, results):
    difficulty_N, (ids_NT, targets_NT) = difficulty_of(out), windows_of(out, "train")
    assert len(difficulty_N) == len(ids_NT)
    some = [0, 7, len(ids_NT) - 1]
    asked = ids_NT[some], targets_NT[some]
    student, teacher = (reference_loss(out, name, *asked) for name in ("50m", "teacher"))
    assert difficulty_N[some] == pytest.approx((student - teacher).mean(1).numpy(), abs=1e-5)
    windows_K = json.loads((out / "hard_set.json").read_text())["windows_K"]
    k = round(0.2 * len(difficulty_N))
    assert len(windows_K) == k and {*windows_K} == {*np.argsort(-difficulty_N)[:k].tolist()}
    hard, random = (log_of(results[f"03_lora-{kind}"])[-1] for kind in ("hard", "random"))
    assert hard["tokens"] == random["tokens"]


def test_every_model_is_in_the_tables_and_no_cell_is_empty(out, results):
    assert len(results["03_lora-four-bits"]["remembered"]["stopped"]["at_epochs"]) > 1  # rounded
    for path in (out / "tables").glob("*.csv"):
        table = pd.read_csv(path, keep_default_na=False)
        known = table  # of effects, what one document or one text alone does not tell
        if path.stem.endswith("-effects"):
            known = table[["claim", "effect", "role", "seeds", "verdict"]]
        assert len(table) and not (known == "").any().any(), path
        assert not table.isin(["nan", "NaN"]).any().any(), path
    quality = table_of(out, "04_merge_eval-quality")
    assert {*quality.index} == {*MODELS, *MERGED, *POINTS}
    assert {*quality.index[-len(POINTS) - 1 :]} == {"50m-sliced-2k", *POINTS}  # an earlier end
    table = pd.read_csv(out / "tables/04_merge_eval-merged.csv")
    assert (table["largest logit difference"].astype(float) <= 1e-5).all()
    assert (table["weights"] == table["weights of the base"]).all()
    kept = table_of(out, "04_merge_eval-kept-lost", "cut").loc["place in the window", "tokens"]
    fixed = [set(np.load(path)["rows_M"]) for path in out.glob("scores/val/*.npz")]  # 20 or 32
    assert sum(map(int, kept)) == 32 * len(set.intersection(*fixed)) < 32 * 20
    assert quality.loc["50m-four-bits", "as Q4_0"].endswith("(+0.0000 [+0.0000, +0.0000])")
    assert quality.loc["50m", "as Q4_0"] != "–" and quality.loc["50m", "plan: loss"] == "3.00–3.30"


def test_the_table_of_04_says_what_each_model_is_and_what_it_cost(out, results):
    """FLOP from the plan's formula: 6 a weight and token of training, attention beside."""
    weights = table_of(out, "04_merge_eval-quality")["parameters"].str.replace(",", "").astype(int)
    made = table_of(out, "04_merge_eval-made")
    assert {*made.index} == {*weights.index}
    said = {"teacher": "the teacher", "50m": "distilled", "50m-scratch": "from scratch"}
    said |= dict.fromkeys(["50m-sliced", "50m-sliced-2k"], "distilled, begun from the teacher")
    said |= {"50m-four-bits": "scales on all windows, rounded to four bits"}
    said |= dict(zip(MERGED, ["adapter on hard windows", "adapter on random windows"], strict=True))
    assert made["made"][[*said]].to_dict() == said
    attention = {"50m": 2 * 32 * 32, "teacher": 2 * 32 * 64 * 2}  # 2 T · width, a layer
    forward = {n: 2 * int(weights[n]) + attention[n] for n in attention}
    # the run's 4,096 tokens, of which the cache asked the teacher for each window once
    seen = json.loads((out / "tokens/meta.json").read_text())["train_tokens"]
    training, scored = made["training, FLOP"].astype(float), made["scoring, FLOP"]
    assert training["50m"] == pytest.approx(4096 * 3 * forward["50m"], rel=0.05)
    asked = float(made.loc["50m", "teacher, FLOP"])
    assert asked == pytest.approx(min(4096, seen) * forward["teacher"], rel=0.05)
    windows = results["02_hard_set"]["remembered"]["short"]["windows"]
    scoring = windows * 32 * sum(forward.values())
    assert float(scored["50m-hard-merged"]) == pytest.approx(scoring, rel=0.05)
    assert scored[["50m", "50m-random-merged"]].tolist() == ["–", "–"]
    assert training["50m-hard-merged"] > training["50m"] == training["50m-scratch"]


def test_the_verdict_is_in_the_page_and_in_its_table(out):
    verdicts = table_of(out, "04_merge_eval-verdict", "key")
    assert verdicts.loc["adapter", "verdict"] == "not decidable here (one seed)"
    effects = table_of(out, "04_merge_eval-effects", "effect")
    assert effects.loc["adapter on hard − adapter on random", "role"] == "mechanism"
    page = soup_of(out / "04_merge_eval.html").get_text()
    assert "Not decided: the adapter on the hard set, merged, ends " in page
    assert "has 52.2M as its base has, not 55M" in page


def test_a_finished_run_opened_again_makes_nothing_anew(out, results, tmp_path, monkeypatch):
    """The cells of 01, of a student begun from its teacher, with slicing forbidden."""
    place, run = tmp_path / "out", "01_distill-50m-sliced"
    path = place / "models/50m-sliced/model.safetensors"
    shutil.copytree(out, place, symlinks=True, ignore=shutil.ignore_patterns("sweeps", ".*"))
    monkeypatch.setattr(running, "_latest", None)
    monkeypatch.setattr(from_teacher, "from_teacher", None)
    given = yaml.safe_load((ROOT / f"params/smoke/{run}.yaml").read_text()) | {"out": str(place)}
    this = running.start("01_distill", given)
    space = this.parameters | {"this": this}
    before = path.stat().st_mtime_ns
    for cell in cells(ROOT / "notebooks/01_distill.ipynb")[2:]:
        exec(cell.source, space)
    assert space["init"] == "teacher" and space["log"] == log_of(results[run])
    norm = load_file(path)["model.norm.weight"]
    assert torch.equal(space["net"].norm.weight.cpu(), norm) and path.stat().st_mtime_ns == before
    assert json.loads((place / f"results/{run}.json").read_text()) == results[run]


def test_a_dry_run_of_a_finished_book_says_that_all_is_done(out):
    words = plan.dry(graph.wanted("book", {"PROFILE": "smoke", "OUT": str(out)}))
    assert words.endswith("All of them are done.") and words.count("is done") == len(RUNS)


def test_every_page_shows_all_of_itself_on_screens_and_paper_and_asks_for_nothing(out, faults):
    pages, sweep = sorted(out.glob("*.html")), out / "sweeps/share"
    assert len(pages) == len(RUNS) + 2  # index.html and compare.html
    pages += [sweep / "index.html", sweep / "share0.5/03_lora-share0.5.html"]
    for page in pages:
        judged = page.stem in ("index", "02_hard_set", "04_merge_eval")
        assert (page, faults(page, axe=judged, paper=True)) == (page, [])
    assert len(soup_of(out / "04_merge_eval.html").select("details")) > 5  # open on paper


def test_the_teachers_targets_are_kept_once_for_all_that_ask_for_them(out, results):
    """Two students, 02 and two adapters share one folder; 05's student in between has its own."""
    folders = {path.name: path for path in (out / "cache").iterdir()}
    assert set(folders) == {"teacher-T1-K8-seed1", "150m-T1-K8-seed1"}
    valid_N = np.fromfile(folders["teacher-T1-K8-seed1"] / "valid.bin", "u1")
    trained = results["01_distill-50m"]["parameters"]["token_limit"] // 32  # windows of 32 tokens
    assert len(valid_N) == len(difficulty_of(out))
    assert trained <= valid_N.sum() <= len(valid_N)


def test_a_sweeps_points_train_on_their_share_and_04_compares_them(out, results):
    sweep, base_N = out / "sweeps/share", np.load(out / "scores/val/50m.npy")
    table = pd.read_csv(out / "tables/04_merge_eval-sweep-share.csv")
    assert [*table["as the plan has it"]] == [*np.where(table["point"] == "share0.2", "share", "–")]
    assert table["loss"].is_monotonic_increasing
    for share in (0.2, 0.5):
        point = sweep / f"share{share}"
        record = json.loads((point / f"results/03_lora-share{share}.json").read_text())
        assert log_of(record)[-1]["tokens"] == round(share * len(difficulty_of(out))) * 32
        assert set(record["reads"]) == {"00_teacher", "01_distill-50m", "02_hard_set"}
        assert (point / "cache").is_symlink() and not (point / "adapters").is_symlink()
        change = float(np.load(point / "scores/val/50m-hard.npy").mean() - base_N.mean())
        row = table.set_index("point").loc[f"share{share}"]
        assert row["loss − base's"].startswith(f"{change:+.3f} [".replace("-", "−"))
        if share == 0.2:  # the same as the book's own adapter
            own, other = results["03_lora-hard"]["models"], record["models"]
            assert other["50m-hard"]["loss"] == own["50m-hard"]["loss"]
    best, loss = table["point"][0], table["loss"][0]
    said = status.sweeps_of(out)["share"]["finding"]
    assert said == f"03_lora-{best} has the lowest loss, {loss:.3f}."


def test_the_script_of_the_readme_runs(out):
    script = (ROOT / "README.md").read_text("utf8").split("In a bare script:\n")[1]
    script = re.sub(r"(?m)^    ", "", script.split("\nExperiments")[0])
    changes = {"outputs/tiny": str(out), "-50m-tiny": "-small-smoke", "=128": "=32"}
    for theirs, ours in changes.items():
        assert theirs in script
        script = script.replace(theirs, ours)
    exec(script, space := {})
    assert space["log"][-1]["step"] > 1
