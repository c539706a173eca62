"""The metrics against dense float64, intervals against their analytical values, and the labels of
what is kept and lost by hand."""

import copy
import json
import math
from dataclasses import replace
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from bench import intervals
from tdbook.analysis import kept_and_lost
from tdbook.analysis.intervals import (
    beyond,
    change,
    gap_closed,
    interval,
    over_seeds,
    resampled_means,
    stretch,
)
from tdbook.book import adapters, comparison
from tdbook.corpus import token_files
from tdbook.report import tables, words
from tdlib import data, evaluate
from tdlib.data import IGNORE, Windows

T, V = 12, 97


@pytest.fixture(scope="module")
def models(tiny_llama):
    return tiny_llama(1, V, T, dim=16, layers=1), tiny_llama(2, V, T)


def some_windows(count=30, mask_share=0.0, seed=0) -> Windows:
    rng = np.random.default_rng(seed)
    n = count * T + 3
    mask = (rng.random(n) >= mask_share).astype("u1") if mask_share else None
    return Windows(rng.integers(0, V, n).astype("<u4"), T, mask)


def dense(model, teacher, windows: Windows, rows) -> dict[str, np.ndarray]:
    """Everything of some windows' unmasked tokens at once, in float64."""
    ids_BT, targets_BT = windows.batch(rows)
    with torch.no_grad():
        q_BTV, p_BTV = (m(ids_BT).double().log_softmax(-1) for m in (model, teacher))
    counts_BT = targets_BT != IGNORE
    loss_BT = F.cross_entropy(q_BTV.transpose(1, 2), targets_BT, reduction="none")
    return {
        "loss_B": (loss_BT.sum(1) / counts_BT.sum(1)).numpy(),
        "loss": loss_BT[counts_BT].numpy(),
        "kl": F.kl_div(q_BTV, p_BTV, reduction="none", log_target=True).sum(-1)[counts_BT].numpy(),
        "same": (q_BTV.argmax(-1) == p_BTV.argmax(-1))[counts_BT].numpy(),
        "confidence": q_BTV.exp().amax(-1)[counts_BT].numpy(),
        "right": (q_BTV.argmax(-1) == targets_BT)[counts_BT].numpy(),
    }


@pytest.mark.parametrize(("mask_share", "fixed"), [(0.0, 30), (0.0, 7), (0.4, 7)])
def test_every_metric_is_that_of_dense_float64(models, mask_share, fixed):
    windows = some_windows(mask_share=mask_share)
    found = evaluate.evaluate(models[0], windows, models[1], fixed=fixed)
    whole = dense(*models, windows, range(30))
    some = dense(*models, windows, found.rows_M)
    row = found.row(bytes_per_token=5.0)
    np.testing.assert_allclose(found.window_loss_N, whole["loss_B"], rtol=5e-6)
    assert row["loss"] == pytest.approx(whole["loss_B"].mean(), rel=5e-6)
    assert row["loss_fixed"] == pytest.approx(some["loss"].mean(), rel=5e-6)
    assert row["kl"] == pytest.approx(some["kl"].mean(), rel=5e-5)
    assert row["agreement"] == pytest.approx(some["same"].mean())
    assert row["perplexity"] == pytest.approx(math.exp(whole["loss_B"].mean()), rel=1e-4)
    assert row["bits_per_byte"] == pytest.approx(whole["loss_B"].mean() * math.log2(math.e) / 5)
    # 15 bins of equal width; each weighs as many tokens as it holds
    bin_N = np.minimum((some["confidence"] * 15).astype(int), 14)
    gaps = [
        (bin_N == b).mean() * abs((some["right"] - some["confidence"])[bin_N == b].mean())
        for b in set(bin_N.tolist())
    ]
    assert row["calibration_error"] == pytest.approx(sum(gaps), rel=1e-5)


def test_calibration_error_is_that_of_fifteen_equal_bins():
    """Right and confident by chance, so bins err in both directions and their width matters."""
    rng = np.random.default_rng(7)
    confidence_N, right_N = rng.random(400).astype(np.float32), rng.random(400) < 0.5
    edges = np.linspace(0, 1, 16)
    gaps = [
        abs((right_N[inside] - confidence_N[inside].astype(float)).sum()) / 400
        for low, high in pairwise(edges)
        if (inside := (confidence_N >= low) & (confidence_N < high)).any()
    ]
    bins = evaluate._calibration(torch.from_numpy(confidence_N), torch.from_numpy(right_N).float())
    found = evaluate.Evaluation(np.ones(1), np.arange(1), np.ones((1, 1)), bins, 0.0, 1.0)
    assert found.row(1.0)["calibration_error"] == pytest.approx(sum(gaps), rel=1e-5)


def test_what_storing_weights_as_bfloat16_changes_is_that_of_dense_float64(models):
    merged, windows = models[1], some_windows()
    tokens = SimpleNamespace(val=windows)
    said = adapters.drift(merged, merged, tokens, "cpu")
    for key in ("loss", "KL"):  # given the merged model twice
        assert said[f"bf16 base + adapter: {key}"] == said[f"bf16 merged: {key}"]
    rounded = copy.deepcopy(merged)
    for weight in rounded.parameters():  # to 8 bits of mantissa, the nearest, ties to even
        mantissa, exponent = np.frexp(weight.detach().numpy().astype(np.float64))
        weight.data = torch.from_numpy(np.ldexp(np.round(mantissa * 256) / 256, exponent)).float()
    stored, whole = (dense(model, merged, windows, range(30)) for model in (rounded, merged))
    loss, kl = (float(said[f"bf16 merged: {key}"]) for key in ("loss", "KL"))
    assert loss == pytest.approx(stored["loss"].mean() - whole["loss"].mean(), rel=0.06)
    assert kl == pytest.approx(stored["kl"].mean(), rel=0.06) and kl > 0


def test_the_teacher_against_itself_is_at_no_distance(models):
    found = evaluate.evaluate(models[1], some_windows(), models[1], fixed=10)
    assert (found.kl, found.agreement) == (0, 1)


def test_without_a_teacher_kl_and_agreement_are_unknown(models):
    found = evaluate.evaluate(models[0], some_windows(), fixed=10)
    assert np.isnan([found.kl, found.agreement]).all()
    assert np.isfinite(found.window_loss_N).all()


@pytest.mark.parametrize(("count", "asked"), [(1000, 640), (640, 640), (30, 640), (7, 3), (5, 1)])
def test_fixed_windows_are_spread_evenly_or_are_all(count, asked):
    rows = evaluate.fixed_rows(some_windows(count), asked)
    assert len(rows) == min(count, asked)
    assert (np.diff(rows) > 0).all() and rows[0] == 0
    if 1 < asked <= count:
        assert rows[-1] == count - 1
        assert np.ptp(np.diff(rows)) <= 1


def test_what_is_saved_is_what_was_found_and_nothing_beside_it(models, tmp_path):
    found = evaluate.evaluate(models[0], some_windows(), models[1], fixed=5)
    found.save(tmp_path, "50m")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["50m.npy", "50m.npz"]
    np.testing.assert_array_equal(np.load(tmp_path / "50m.npy"), found.window_loss_N)
    with np.load(tmp_path / "50m.npz") as f:
        np.testing.assert_array_equal(f["rows_M"], found.rows_M)
        np.testing.assert_array_equal(f["token_loss_MT"], found.token_loss_MT)
        assert f["share"].sum() == pytest.approx(1)


# differences and their intervals


def test_resampled_means_have_the_mean_and_spread_of_independent_documents():
    """Documents of like size: the spread of the bootstrap is s/√D, s over documents with 1/D."""
    d, r = 200, 4000
    loss_D = np.random.default_rng(0).normal(3, 0.5, d)
    means_R = resampled_means(loss_D[None], np.arange(d), r)[:, 0]
    spread = loss_D.std() / math.sqrt(d)
    # a mean of r draws within 4 of its deviations, a deviation within 4 of spread/√2r
    assert abs(means_R.mean() - loss_D.mean()) < 4 * spread / math.sqrt(r)
    assert abs(means_R.std() - spread) < 4 * spread / math.sqrt(2 * r)
    low, high = interval(means_R)
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.1)


def test_copies_of_a_window_in_its_document_add_no_certainty():
    """Eight equal windows a document are one observation: the interval is √8 times as wide as
    that of windows taken for independent (the design effect 1 + (m − 1)ρ at ρ = 1)."""
    loss_D = np.random.default_rng(1).normal(3, 0.5, 100)
    loss_N, document_N = np.repeat(loss_D, 8), np.repeat(np.arange(100), 8)
    by_document = resampled_means(loss_N[None], document_N, 4000).std()
    by_window = resampled_means(loss_N[None], np.arange(800), 4000).std()
    # two deviations of 4000 draws each: 4 · √(2 / 8000) = 6 %
    assert by_document / by_window == pytest.approx(math.sqrt(8), rel=0.06)


def test_models_are_resampled_together():
    rng = np.random.default_rng(2)
    loss_N, document_N = rng.normal(3, 0.5, 300), np.arange(300) // 3
    means_R3 = resampled_means(np.stack([loss_N, loss_N, loss_N + 0.1]), document_N, 500)
    assert (means_R3[:, 0] == means_R3[:, 1]).all()
    np.testing.assert_allclose(means_R3[:, 2] - means_R3[:, 0], 0.1, atol=1e-12)


def test_a_mean_weighs_documents_by_their_windows():
    loss_N, document_N = np.array([1.0, 1.0, 1.0, 5.0]), np.array([4, 4, 4, 9])
    means_R = resampled_means(loss_N[None], document_N, 300)[:, 0]
    # twice the first, each once, twice the second: 1, 2, 5, stretched about the mean, 2
    steps = sorted(set(((means_R - 2) / stretch(np.array([3, 1]))).round(9)))
    assert steps == [-1, 0, 3]


def test_a_window_without_a_loss_is_left_out_of_every_mean():
    loss_N, document_N = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0, 0, 1, 2])
    other_N = np.array([1.0, np.nan, 3.0, 4.0])
    found = resampled_means(np.stack([loss_N, other_N]), document_N, 50)
    wanted = resampled_means(loss_N[None, [0, 2, 3]], document_N[[0, 2, 3]], 50)
    np.testing.assert_array_equal(found, np.repeat(wanted, 2, axis=1))


def test_the_same_seed_draws_the_same_documents():
    loss_1N, document_N = np.random.default_rng(3).normal(size=(1, 50)), np.arange(50)
    a, b, c = (resampled_means(loss_1N, document_N, 20, seed) for seed in (1, 1, 2))
    assert (a == b).all() and (a != c).any()


def test_gap_closed_is_nothing_at_scratch_and_all_at_the_teacher():
    noise_R = np.random.default_rng(4).normal(0, 0.01, 1000)
    scratch_R, teacher_R = 5.0 + noise_R, 4.0 + 2 * noise_R
    assert (gap_closed(scratch_R, scratch_R, teacher_R) == 0).all()
    assert (gap_closed(scratch_R, teacher_R, teacher_R) == 1).all()
    half_R = (scratch_R + teacher_R) / 2
    np.testing.assert_allclose(gap_closed(scratch_R, half_R, teacher_R), 0.5)


@pytest.mark.parametrize("gap", [-1.0, 0.0, 0.015])
def test_gap_closed_is_undefined_where_scratch_is_not_clearly_worse(gap):
    scratch_R = 4 + gap + np.random.default_rng(5).normal(0, 0.01, 1000)  # 1.5 deviations at best
    assert np.isnan(gap_closed(scratch_R, scratch_R, np.full(1000, 4.0))).all()


@pytest.mark.parametrize(("sizes", "documents"), [([7] * 20, 20), ([9] + [1] * 27, 12)])
def test_draws_are_stretched_to_students_t_of_the_documents_that_count(sizes, documents):
    """Tables: t is 2.093 with 19 degrees of freedom, 2.201 with 11. 9 and 27 times 1: 36² / 108."""
    t = {20: 2.0930, 12: 2.2010}[documents]
    wanted = t / 1.95996 * math.sqrt(documents / (documents - 1))
    assert stretch(np.array(sizes)) == pytest.approx(wanted, rel=1e-4)


def test_one_document_says_nothing():
    found = change(np.array([1.0, 2]), np.array([2.0, 2]), np.array([3, 3]), 100)
    assert found[0] == -0.5 and np.isnan(found[1:]).all()


def test_a_change_is_over_the_windows_that_both_have_a_loss_of():
    one_N, other_N = np.array([1.0, np.nan, 2, 3]), np.array([2.0, 1, np.nan, 5])
    value, low, high = change(one_N, other_N, np.array([0, 0, 1, 2]), 200)
    assert value == -1.5 and low < -1.5 < high


def masked(windows: Windows, rows, but: int = 0) -> Windows:
    """The windows with every target of some rows masked, but for the first `but` of each."""
    mask = np.ones(len(windows.ids), "u1")
    for i in rows:
        mask[i * T + 1 + but : (i + 1) * T + 1] = 0
    return replace(windows, mask=mask)


@pytest.mark.parametrize("rows, fixed", [([3, 4], 30), ([0, 7, 29], 4), ([*range(30)][1:], 7)])
def test_a_window_without_a_target_is_in_no_number(models, rows, fixed):
    model, teacher = models
    windows, known = some_windows(), np.setdiff1d(np.arange(30), rows)
    found = evaluate.evaluate(model, masked(windows, rows), teacher, fixed=fixed)
    row = found.row(7.0)
    wanted = dense(model, teacher, windows, known)
    assert np.isnan(found.window_loss_N).nonzero()[0].tolist() == sorted(rows)
    assert row["loss"] == pytest.approx(wanted["loss_B"].mean(), rel=1e-5)
    assert row["windows_left_out"] == len(rows) and all(map(math.isfinite, row.values()))
    seen = dense(model, teacher, windows, np.intersect1d(found.rows_M, known))
    assert row["kl"] == pytest.approx(seen["kl"].mean(), rel=1e-4)
    shown = tables.metrics({"a": {"parameters": 1} | row})
    assert shown["windows left out"].tolist() == [str(len(rows))]
    assert "windows_left_out" not in evaluate.evaluate(model, windows, fixed=3).row(7.0)


def test_where_all_fixed_windows_are_masked_others_stand_for_them(models):
    windows = some_windows()
    hidden = masked(windows, set(range(30)) - {8, 13, 21})
    assert evaluate.fixed_rows(windows, 4).tolist() == [0, 10, 19, 29]
    assert evaluate.fixed_rows(hidden, 4).tolist() == [8, 13, 21]
    loss = evaluate.on_subset(hidden, 4)(models[0])["val/loss"]
    assert loss == pytest.approx(dense(*models, windows, [8, 13, 21])["loss_B"].mean(), rel=1e-5)
    one = masked(windows, range(30))
    one.mask[5] = 1  # a single target in all
    assert evaluate.evaluate(models[0], one, fixed=4).row(1.0)["windows_left_out"] == 29


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_no_mask_and_refused(models, value):
    broken, windows = copy.deepcopy(models[0]), masked(some_windows(), [3])
    next(broken.parameters()).data[0] = value  # what id 0 comes from
    windows.ids[2 * T] = 0
    for pair in ((broken, None), (models[0], broken)):
        with pytest.raises(ValueError, match=r"not finite: .*damaged: make them again"):
            evaluate.evaluate(pair[0], windows, pair[1])
    with pytest.raises(ValueError, match=r"window \d+ is not finite"):
        evaluate.evaluate(broken, windows, fixed=1)


def test_an_infinite_loss_is_in_no_interval():
    one_N, other_N = np.array([1.0, 2, np.inf, 3]), np.array([1.0, 2, np.inf, 3])
    with pytest.raises(ValueError, match="a loss is infinite"):
        change(one_N, other_N, np.arange(4), 100)


def test_hard_beyond_easy_is_undefined_where_a_side_has_no_target():
    change_N = np.array([0.1, 0.2, np.nan, np.nan])
    for hard_N in (np.array([1, 1, 0, 0]) > 0, np.array([0, 0, 1, 1]) > 0, np.ones(4, bool)):
        assert np.isnan(beyond(change_N, hard_N, np.arange(4), 100)).all()
    assert np.isnan(beyond(np.full(4, np.nan), hard_N, np.arange(4), 100)).all()


@pytest.fixture
def two(tmp_path):
    """A run whose folder holds two models' losses; every third window and a whole document of
    them without a target. And the same losses with these windows taken away."""
    rng, document_N = np.random.default_rng(8), np.arange(120) // 6
    losses = {n: rng.normal(5, 0.1, 120).astype(np.float32) for n in ("a", "b")}
    known_N = (np.arange(120) % 3 > 0) & (document_N != 4)
    (tmp_path / "scores/val").mkdir(parents=True)
    for name, loss_N in losses.items():
        np.save(tmp_path / f"scores/val/{name}.npy", np.where(known_N, loss_N, np.float32("nan")))
    this = SimpleNamespace(out=tmp_path, run="x", parameters={"seed": 1}, path=tmp_path.joinpath)
    tokens = SimpleNamespace(documents=lambda split: (document_N, []))
    return this, tokens, {n: x[known_N] for n, x in losses.items()}, document_N[known_N], known_N


def test_the_difference_of_two_routes_leaves_masked_windows_out_and_says_so(two):
    this, tokens, left, document_N, known_N = two
    found = comparison.difference(this, "a", "b", tokens, 500)
    wanted = change(left["a"], left["b"], document_N, 500, seed=1)
    assert found["difference"] == pytest.approx(wanted[0], abs=1e-6)
    assert (found["low"], found["high"]) == pytest.approx(wanted[1:])
    assert found["losses"]["a"] == float(left["a"].mean())
    assert words.difference("A", "B", found).endswith(
        f"one seed; {120 - known_N.sum()} of 120 windows have no target and are left out."
    )


def test_hard_windows_are_a_share_of_those_with_a_target(two):
    this, _, left, _, known_N = two
    hard_N = comparison.hard_windows(comparison.window_losses(this, ["a", "b"]), "a", "b", 0.25)
    assert hard_N.sum() == round(0.25 * known_N.sum()) and not hard_N[~known_N].any()
    np.testing.assert_array_equal(hard_N[known_N], comparison.hard_windows(left, "a", "b", 0.25))


def test_scores_of_a_model_that_lack_what_another_has_are_refused(two):
    this, path = two[0], two[0].path("scores/val/b.npy")
    loss_N = np.load(path)
    for value in (np.nan, np.inf):
        loss_N[1] = value
        np.save(path, loss_N)
        with pytest.raises(ValueError, match=r"b.npy holds losses that are not finite"):
            comparison.window_losses(this, ["a", "b"])


def test_95_percent_intervals_cover_the_truth_in_95_of_100_cases():
    """200 simulations a case; where each of them held with 95 %, fewer than 180 or more than 199
    would be seen once in a thousand times and more. `make stress` has 2,000."""
    for documents in (20, 150):
        found = intervals.coverage(200, documents, 0.45, resamples=200)
        low, high = stats.binom.ppf([0.0005, 0.9995], 200, 0.95) / 200
        assert all(low <= share <= high for share in found.values()), (documents, found)


def test_a_t_interval_over_seeds_is_that_of_a_table():
    mean, half = over_seeds([-0.03, -0.01, -0.02])  # deviation 0.01, t 4.3027 with 2
    assert (mean, half) == (pytest.approx(-0.02), pytest.approx(4.3027 * 0.01 / math.sqrt(3), 1e-4))


# frequencies


@pytest.mark.parametrize("size", [2**22, 1, 2, 7, 499, 500, 501])
@pytest.mark.parametrize("dtype", ["<u4", "<u2"])
def test_frequencies_are_those_of_counting_one_by_one(monkeypatch, size, dtype):
    ids = np.random.default_rng(6).zipf(1.4, 500).clip(max=29).astype(dtype)
    monkeypatch.setattr(kept_and_lost, "_parts_of", partial(kept_and_lost._parts_of, size=size))
    train, listed = Windows(ids, T), ids.tolist()
    assert kept_and_lost.frequency(train, 31).tolist() == [listed.count(i) for i in range(31)]
    previous, this = np.meshgrid(np.arange(31), np.arange(31))  # never-seen ids among them
    pairs = list(pairwise(listed))
    wanted = [[pairs.count((a, b)) for a in range(31)] for b in range(31)]
    assert kept_and_lost.pair_frequency(train, previous, this).tolist() == wanted


# what is kept and what is lost


WRITTEN = "▁ఇంట్ లో . ▁ఊరు ▁ఇంట్ లు కు , ▁( లో ) ▁TV ▁2024 - లో <eos> ▁ఊరు ను <0xE0> ▁a".split()
WINDOW = 10  # two windows: inputs 0–9 and 10–19; targets 1–10 and 11–20
LABELS = {  # of every target of WRITTEN, then of one more "▁ఊరు"
    "place in the word": "final – whole first inner final – – whole – "
    "whole whole – whole – first inner final whole –",
    "frequent endings": "లో – – – – కు – – – – – – – – – – – – – –",
    "script": "Telugu other Telugu Telugu Telugu Telugu other other Telugu other "
    "Latin digits other Telugu other Telugu Telugu other Latin Telugu",
    "place in the window": "1st_quarter 1st_quarter 1st_quarter 2nd 2nd 3rd 3rd 3rd 4th 4th " * 2,
}


class Pieces:
    """A vocabulary written out by hand, so that every token's place is known."""

    names = ("<pad>", "<unk>", "<bos>", "<eos>", *sorted(set(WRITTEN) - {"<eos>"}))
    size, eos = len(names), 3

    def vocabulary(self):
        return [name.removeprefix("▁") for name in self.names]

    def begins(self, ids_MS):
        return np.array([name[0] == "▁" for name in self.names])[ids_MS]


@pytest.fixture
def written(tmp_path) -> data.Tokens:
    """Validation is WRITTEN; training has 1 ఇంట్-లో, 9 or 10 or 1000 of some others."""
    at = {p: i for i, p in enumerate(Pieces.names)}
    val = np.array([at[p] for p in [*WRITTEN, "▁ఊరు"]], "<u4")
    train = [at["▁ఇంట్"], at["లో"]] + [at["▁ఊరు"], at["ను"]] * 10 + [at["▁TV"]] * 1000
    train += [at["కు"], at[","]] * 9 + [at["."]] * 99 + [at["▁a"]] * 100
    for split, ids in (("train", np.array(train, "<u4")), ("val", val)):
        ids.tofile(tmp_path / f"{split}.bin")
    meta = {"vocab_size": Pieces.size, "block_size": WINDOW}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    return replace(token_files.open_tokens(tmp_path), tokenizer=Pieces())


def named(label: tuple) -> list[str]:
    names, label_MT = label
    return ["–" if i < 0 else names[i] for i in label_MT.flatten()]


@pytest.mark.parametrize("cut", LABELS)
def test_each_token_is_where_a_reader_puts_it(written, cut):
    found = named(kept_and_lost.cuts(written, np.arange(2))[cut])
    assert found == [word.replace("_", " ") for word in LABELS[cut].split()]


def test_tokens_and_pairs_are_put_by_how_often_they_were_seen(written):
    labels = kept_and_lost.cuts(written, np.arange(2))
    token, pair = (named(labels[f"{x} seen in training"]) for x in ("token", "pair"))
    where = {p: i - 1 for i, p in enumerate(WRITTEN)}  # of its last occurrence, as a target
    seen = {"లో": "1–9", ".": "10–99", "కు": "1–9", "ను": "10–99", "▁a": "100–999", "(": None,
            "▁TV": "≥ 1,000", "▁2024": "never", "<eos>": "never", "▁ఊరు": "10–99"}  # fmt: skip
    assert {p: token[where[p]] for p in seen if p in where} == {
        p: bucket for p, bucket in seen.items() if p in where
    }
    assert pair[0] == "1–9"  # ఇంట్-లో, once
    assert pair[where["ను"]] == "10–99"  # ఊరు-ను, ten times
    assert pair[where[","]] == "1–9"  # కు-, nine times
    assert pair[where["▁("]] == "never"


def test_a_masked_target_is_in_no_bucket(written):
    mask = np.ones(len(written.val.ids), "u1")
    mask[[1, 4, 20]] = 0
    hidden = replace(written, val=replace(written.val, mask=mask))
    plain, found = (kept_and_lost.cuts(t, np.arange(2)) for t in (written, hidden))
    for cut, (_, label_MT) in found.items():
        assert (label_MT.flatten()[[0, 3, 19]] == -1).all()
        others = np.setdiff1d(np.arange(20), [0, 3, 19])
        np.testing.assert_array_equal(label_MT.flatten()[others], plain[cut][1].flatten()[others])


def test_token_files_without_a_tokenizer_have_the_cuts_that_need_none(written):
    labels = kept_and_lost.cuts(replace(written, tokenizer=None), np.arange(2))
    assert set(labels) == {"token seen in training", "pair seen in training", "place in the window"}


def test_kept_and_lost_is_the_table_made_by_hand():
    labels = {
        "x": (["a", "b", "never there"], np.array([[0, 1, -1], [1, 1, 0]])),
        "y": (["c"], np.array([[-1, -1, 0], [-1, -1, -1]])),
    }
    losses = {"one": np.array([[1.0, 2, 30], [3, 4, 5]]), "two": np.array([[0.0, 0, 7], [0, 3, 1]])}
    assert kept_and_lost.kept_and_lost(losses, labels) == [
        {"cut": "x", "bucket": "a", "tokens": 2, "one": 3.0, "two": 0.5},
        {"cut": "x", "bucket": "b", "tokens": 3, "one": 3.0, "two": 1.0},
        {"cut": "y", "bucket": "c", "tokens": 1, "one": 30.0, "two": 7.0},
    ]


@pytest.mark.parametrize(
    ("script", "pieces"),
    [
        ("Telugu", ["▁ఊరు", "లో", "ా", "్", "౨౦"]),
        ("Latin", ["▁TV", "a"]),
        ("digits", ["▁2024", "7", "▁७"]),
        ("other", [".", "▁(", "▁", "", "<0xE0>", "<eos>", "é", "नमः", "😀", "\u200c"]),
    ],
)
def test_a_piece_is_of_the_script_of_its_first_character(script, pieces):
    assert {piece: kept_and_lost.script(piece) for piece in pieces} == dict.fromkeys(pieces, script)


# --- ten windows in which every bucket of every cut is known by hand

TEN = """▁ఇంట్ లో ▁TV లు    కు . ▁ఊరు ను    ▁2024 లో . ▁TV    ▁ఇంట్ లు కు <eos>    ▁ఊరు లో ▁a b
 c ▁7 లు ,    ను ▁( లో )    ▁TV ▁TV కు ▁ఊరు    లు ను <eos> ▁b    ▁ఇంట్ . లో <eos>"""
HELD = {  # of every target; "–": of no bucket, as the last of a window, whose word may go on
    "place in the word": """first final first –    final – first –    first final – –
        first inner final –    first final first –    final first final –    whole – whole –
        whole first final –    inner final – –    whole – whole –""",
    "frequent endings": """– లో – –    కు – – –    – లో – –    – – కు –    – లో – –
        – – లు –    – – – –    – – కు –    – ను – –    – – – –""",
    "script": """Telugu Telugu Latin Telugu    Telugu other Telugu Telugu
        digits Telugu other Latin    Telugu Telugu Telugu other    Telugu Telugu Latin Latin
        Latin digits Telugu other    Telugu other Telugu other    Latin Latin Telugu Telugu
        Telugu Telugu other Latin    Telugu other Telugu other""",
    "place in the window": "1st_quarter 2nd 3rd 4th " * 10,
    # seen: TV 1,001 times, లో 110, ఊరు 100, ఇంట్ 10, కు and . 9, the others never
    "token seen in training": """10–99 100–999 ≥_1,000 never    1–9 1–9 100–999 never
        never 100–999 1–9 ≥_1,000    10–99 never 1–9 never    100–999 100–999 never never
        never never never never    never never 100–999 never    ≥_1,000 ≥_1,000 1–9 100–999
        never never never never    10–99 1–9 100–999 never""",
    # TV TV 1,000 times, ఊరు లో 100, ఇంట్ లో 10, కు . 9; no other pair of the ten windows
    "pair seen in training": "never 10–99 never never    never 1–9 never never " + "never " * 9
    + "100–999 " + "never " * 11 + "≥_1,000 " + "never " * 10,
}  # fmt: skip


@pytest.fixture
def ten(tmp_path, monkeypatch) -> data.Tokens:
    pieces = TEN.split()
    names = ("<pad>", "<unk>", "<bos>", "<eos>", *sorted({*pieces} - {"<eos>"}))
    monkeypatch.setattr(Pieces, "names", names)
    train = ["▁TV"] * 1001 + ["▁ఊరు", "లో"] * 100 + ["▁ఇంట్", "లో"] * 10 + ["కు", "."] * 9
    for split, these in (("train", train), ("val", ["<eos>", *pieces])):
        np.array([names.index(w) for w in these], "<u4").tofile(tmp_path / f"{split}.bin")
    meta = {"vocab_size": len(names), "block_size": 4}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    return replace(token_files.open_tokens(tmp_path), tokenizer=Pieces())


def test_every_bucket_of_every_cut_holds_the_tokens_that_it_holds_by_hand(ten):
    """Each token has a loss of its own, so a mean tells which tokens are in it."""
    loss_MT = np.arange(40.0).reshape(10, 4) ** 2
    labels = kept_and_lost.cuts(ten, np.arange(10))
    assert labels.keys() == HELD.keys()
    found = kept_and_lost.kept_and_lost({"50m": loss_MT, "teacher": -loss_MT}, labels)
    wanted = []
    for cut, (names, _) in labels.items():
        each = [word.replace("_", " ") for word in HELD[cut].split()]
        assert len(each) == 40 and {*each} <= {*names, "–"}
        for name in names:
            if at := [i for i, bucket in enumerate(each) if bucket == name]:
                mean = sum(i * i for i in at) / len(at)
                wanted.append([cut, name, len(at), pytest.approx(mean), pytest.approx(-mean)])
    assert [list(row.values()) for row in found] == wanted
    # and some of it without any program: కు ends a word at places 4, 14 and 30, ను at 33 alone
    rows = {(row["cut"], row["bucket"]): (row["tokens"], row["50m"]) for row in found}
    assert rows["frequent endings", "కు"] == (3, (16 + 196 + 900) / 3)
    assert rows["frequent endings", "ను"] == (1, 33**2)
    assert rows["pair seen in training", "≥ 1,000"] == (1, 29**2)
    assert rows["pair seen in training", "never"][0] == 36
    assert rows["script", "digits"] == (2, (64 + 441) / 2)


def test_what_was_won_back_is_a_change_against_the_base_over_documents(ten):
    """కు gets 0.2 better, all else 0.2 worse; without spread an interval is a point."""
    labels = kept_and_lost.cuts(ten, np.arange(10))
    names, ending_MT = labels["frequent endings"]
    base_MT = np.random.default_rng(0).random((10, 4))
    new_MT = base_MT + np.where(ending_MT == names.index("కు"), -0.2, 0.2)
    document_M = np.arange(10) // 2
    found = kept_and_lost.won_back({"50m": base_MT, "new": new_MT}, labels, "50m", document_M, 200)
    rows = {(row["cut"], row["bucket"]): row for row in found}
    assert rows["frequent endings", "కు"]["new"] == pytest.approx((-0.2,) * 3)
    assert rows["frequent endings", "లో"]["new"] == pytest.approx((0.2,) * 3)
    mixed, low, high = rows["place in the word", "final"]["new"]
    assert mixed == pytest.approx((3 * -0.2 + 6 * 0.2) / 9) and low < mixed < high
    assert "50m" not in rows["script", "digits"] and rows["script", "digits"]["tokens"] == 2
