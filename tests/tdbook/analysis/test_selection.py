"""What 02 counts against numbers made by hand; folds of documents; what a training reads."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import save_file
from scipy.stats import spearmanr

from tdbook.analysis import features
from tdbook.book import selection, students
from tdbook.corpus import token_files
from tdbook.report import words
from tdbook.runs import notebooks, parameters
from tdlib import data, evaluate, hard_set, train
from tests.helpers import same, some_windows, tiny_model, weights_of
from tests.tdbook.analysis.test_features import T, folder_of

NAN = float("nan")


@pytest.mark.parametrize("r", [0.0, 0.5, 1.0])
def test_what_a_seed_picks_by_noise_is_gone_by_another_and_what_is_the_texts_stays(r):
    """Of two seeds that share r of their variance, 1 − r of the difference is gone (Galton)."""
    text_N, *own_2N = np.random.default_rng(2).normal(size=(3, 40_000))
    one_N, other_N = (np.sqrt(r) * text_N + np.sqrt(1 - r) * own_N for own_N in own_2N)
    hard_N, other_N[::9] = one_N >= np.quantile(one_N, 0.8), NAN  # a fold alone
    found = selection.remeasured(one_N, other_N + 3, hard_N, ~hard_N)
    assert found["shrinkage"] == pytest.approx(1 - r, abs=0.02)
    assert found["rest"] == pytest.approx(3 + np.nanmean(other_N[~hard_N]))
    assert found["windows"] == np.isfinite(other_N).sum()


EASE = {-1: "easier for the teacher", 0: "neither clearly", 1: "harder than the rest"}


@pytest.mark.parametrize("slope", EASE)
def test_whether_the_teacher_finds_hard_windows_easy_is_said_by_the_numbers(tokens, slope):
    rng, found_N = np.random.default_rng(0), np.zeros(400, features.KINDS)
    teacher_N, noise_N = rng.integers(-9, 10, (2, 400)) / 8  # ties, and exact sums
    difficulty_N = 0.5 + slope * teacher_N + noise_N
    difficulty_N[rng.random(400) < 0.1], found_N["junk"][:40] = NAN, 1
    scores, junk_N = hard_set.Scores(teacher_N + difficulty_N, teacher_N), found_N["junk"]
    chosen = hard_set.choose(difficulty_N, hard_set.Rule(share=0.2, leave_out_junk=True), junk_N)
    found = selection.ease(tokens, scores, chosen, found_N)
    clean_N = np.isfinite(difficulty_N) & (junk_N == 0)
    rest_N = clean_N & (difficulty_N < chosen.threshold)
    for name, loss_N in (("teacher", teacher_N), ("student", scores.student_loss_N)):
        rank = spearmanr(difficulty_N[clean_N], loss_N[clean_N])[0]
        wanted = rank, loss_N[chosen.windows_K].mean(), loss_N[rest_N].mean()
        assert [found[name][k] for k in ("rank", "hard", "rest")] == pytest.approx(wanted)
    lost_N = np.nan_to_num(difficulty_N).clip(0)
    assert found["held"] == pytest.approx(lost_N[chosen.windows_K].sum() / lost_N.sum())
    text = words.difficulty("50m", {"windows": 400, "mean": 0.4, "student_better": 0.2}, found)
    assert f"of the windows are {EASE[slope]}" in text and "⚠" not in text
    real = {"mean": 0.4, "memory": [{"name": "difficulty", "gap": -0.1, "high": -0.05}]}
    better = "50m is BETTER than its teacher on 72% of windows. Yes: the hardest "
    for share, held, first in ((0.72, 0.6, better), (0.2, 0.3, "No: the hardest ")):
        asked = {"student_better": share}, chosen, found | {"held": held}, real
        text = words.hard_windows("50m", *asked)
        assert text.startswith(first) and f"They are {EASE[slope]}" in text
    assert "25% of that lag is memory" in text and text.endswith("(One student, one seed.)")


def memory(train, val, documents: dict) -> dict:
    losses = {"train": {"m": np.asarray(train)}, "val": {"m": np.asarray(val)}}
    (row,) = selection.memory(losses, documents)
    return row


def test_the_gap_between_splits_is_paired_by_source_and_weighed_by_validation(monkeypatch):
    rng = np.random.default_rng(3)
    train, val = rng.normal(size=40), rng.normal(size=40) + 1
    names = [f"s{i}" for i in range(20)]  # each source is one document: they count together
    documents = {s: (np.arange(40) // 2, names) for s in ("train", "val")}
    row = memory(train, val, documents)
    assert row["gap"] == pytest.approx(val.mean() - train.mean())
    assert row["low"] < row["gap"] - 0.1 < row["gap"] + 0.1 < row["high"]
    unnamed = documents | {"val": (documents["val"][0], ["unknown"] * 20)}  # as if all were of one
    assert memory(train, val, unnamed) == row
    monkeypatch.setattr(selection, "FEW", 1)
    # a: 1 → 1.5 twice; b: 3 → 4 four times; c is in training text alone
    train, val = [1.0, 1, 1, 3, 3, 3, 7], [1.5, 1.5, 4, 4, 4, 4]
    documents = {"train": (np.arange(7), [*"aaabbbc"]), "val": (np.arange(6), [*"aabbbb"])}
    gap = pytest.approx((2 * 0.5 + 4 * 1) / 6)
    row = memory(train, val, documents)
    assert row == {"name": "m", "gap": gap, "low": gap, "high": gap}  # nothing varies


def test_the_gap_has_the_interval_of_its_documents_and_one_of_0_holds_0():
    """Ten windows a document, their losses around a level of its own; two sources."""
    rng, held, widths = np.random.default_rng(4), 0, []
    count = {"train": 40, "val": 12}
    names = {split: ["3"] * n + ["5"] * n for split, n in count.items()}
    documents = {split: (np.arange(20 * n) // 10, names[split]) for split, n in count.items()}
    for _ in range(60):
        level = {split: np.repeat([3.0, 5.0], n) for split, n in count.items()}
        losses = {s: np.repeat(rng.normal(0, 0.1, len(x)) + x, 10) for s, x in level.items()}
        row = memory(losses["train"], losses["val"], documents)
        held += row["low"] < 0 < row["high"]
        widths.append(row["high"] - row["low"])
    # two sources of 12 and 40 documents: Student's t of 24 documents, two standard errors
    wanted = 2 * 2.0687 * 0.1 * np.sqrt((1 / 12 + 1 / 40) / 2)
    assert np.mean(widths) == pytest.approx(wanted, rel=0.1)
    assert held >= 50


def test_the_words_are_those_of_the_numbers():
    gaps = {"teacher": 0.2, "50m": 0.05, "difficulty": -0.15}
    memory = [{"name": n, "gap": g, "low": g - 0.01, "high": g + 0.01} for n, g in gaps.items()]
    result = {"memory": memory, "mean": 0.4}
    text = words.memory(result, "50m", "teacher")
    assert "cost the teacher +0.200 [+0.190, +0.210] nats more" in text
    assert "from +0.400 to +0.250 nats: −0.150 [−0.160, −0.140]. 37% of the difficulty" in text
    assert words.memory(result | {"memory": []}, "50m", "teacher") == ""


def test_03_repeats_what_02_counted_before_anything_else(tmp_path):
    short = {"windows": 100, "mean": -0.03, "student_better": 0.72}
    record = {"notebook": "02_hard_set", "parameters": {"base": "50m"}, "models": {}}
    (tmp_path / "results").mkdir()
    path = tmp_path / "results/02_hard_set.json"
    path.write_text(json.dumps(record | {"remembered": {"short": short}}))
    this = SimpleNamespace(out=tmp_path, run="03_lora-hard", parameters={"base": "50m"})
    assert "**⚠ 50m is better than its teacher on 72.0%" in selection.what_02_counted(this)
    this.parameters = {"base": "80m"}
    assert "No record of 02" in selection.what_02_counted(this)
    values = {"teacher": "teacher", "base": "50m", "compare": "a b", "unseen_teacher": "c"}
    found = notebooks.reads("02_hard_set", values, [])
    assert {"models/a", "models/b", "models/c", "models/50m"} < set(found)


@pytest.fixture
def tokens(tmp_path) -> data.Tokens:
    """400 windows, of 128 documents."""
    rng = np.random.default_rng(0)
    folder = folder_of(tmp_path / "t", rng.integers(4, 700, 400 * T + 1))
    rows = "".join(f"train\t{i * 200}\t{200 + (i == 127)}\ta\n" for i in range(128))
    (folder / "documents.tsv").write_text(f"split\tstart\ttokens\tsource\n{rows}val\t0\t99\ta\n")
    return token_files.open_tokens(folder)


def test_folds_are_whole_documents_each_window_in_one(tokens):
    document_N = token_files.origins(tokens, "train")[0]
    folds = np.stack([token_files.fold(tokens, f"{k}/5") for k in range(1, 6)])
    assert (folds.sum(0) == 1).all() and 60 < folds[0].sum() < 100
    assert np.unique(document_N[folds[0]]).tolist() == list(range(0, 128, 5))


@pytest.mark.parametrize("left_out", ["", "1/4"])
@pytest.mark.parametrize("distinct", [20 * T + 5, 3, 0])
def test_distinct_tokens_are_those_of_a_shorter_training_in_every_epoch(tokens, distinct, left_out):
    def read(**more) -> list[int]:
        """The windows of a training, in its order."""
        p = {"left_out": left_out, "seed": 5, "ce_weight": 1.0, "token_limit": 0} | more
        p = parameters.check("01_distill", p, paths=False)
        recipe = train.recipe(p)
        rows = students.Training(SimpleNamespace(parameters=p), "x", tokens).windows(recipe)
        return np.concatenate(train.order(rows, recipe, T)).tolist()

    once = read(token_limit=distinct, epochs=1.0)
    rows = read(distinct_tokens=distinct, epochs=3.0)
    left = np.flatnonzero(~token_files.fold(tokens, left_out)) if left_out else range(400)
    n = max(1, distinct // T) if distinct else len(left)
    assert len(once) == len(set(once)) == n and set(rows) == set(once) <= set(left)
    epochs = [rows[e * n : (e + 1) * n] for e in range(3)]
    assert len(rows) == 3 * n and all(sorted(each) == sorted(once) for each in epochs)
    assert n == 1 or len({tuple(each) for each in epochs}) == 3
    # a limit ends it where it says, whatever is distinct
    few = read(distinct_tokens=distinct, token_limit=2 * T, epochs=3.0)
    assert len(few) == 2 and set(few) <= set(once)


def test_of_a_teacher_the_weights_that_validate_best_are_kept_and_named(tmp_path):
    windows, folder = some_windows(), tmp_path / "checkpoints/00_teacher/teacher"
    loss = evaluate.on_subset(windows, 9, "cpu")
    nets = sorted((tiny_model(i) for i in range(3)), key=lambda net: -loss(net)["val/loss"])
    folder.mkdir(parents=True)
    for i, net in ((1, nets[2]), (2, nets[1])):  # the first epoch's end is the best
        save_file(weights_of(net), folder / f"epoch-{i}.safetensors")
    this = SimpleNamespace(run="00_teacher", device="cpu", parameters={"fixed_windows": 9})
    this.path, this.once = tmp_path.joinpath, lambda name, function, *given: function(*given)
    training, log = students.Training(this, "teacher", SimpleNamespace(val=windows)), [{}]
    each = "the end {:.3f}, epoch-1 {:.3f}, epoch-2 {:.3f}"
    each = each.format(*(loss(nets[i])["val/loss"] for i in (0, 2, 1)))
    text = training.stop_on_validation(nets[0], log)
    assert text == f"Kept are the weights of epoch-1, which validate best ({each})."
    assert log[0]["kept"] == "epoch-1" and same(weights_of(nets[0]), weights_of(nets[2]))
