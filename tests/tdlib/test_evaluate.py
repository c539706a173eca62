"""The metrics against dense float64."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tdbook.report import tables
from tdlib import evaluate
from tdlib.data import IGNORE, Windows
from tests.helpers import masked, refused, some_windows, tiny_model

T, V = 12, 97


@pytest.fixture(scope="module")
def models():
    return tiny_model(1, V, T, dim=16, layers=1), tiny_model(2, V, T)


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
        "apart": (q_BTV.exp() - p_BTV.exp()).abs().sum(-1)[counts_BT].numpy() / 2,
        "confidence": q_BTV.exp().amax(-1)[counts_BT].numpy(),
        "right": (q_BTV.argmax(-1) == targets_BT)[counts_BT].numpy(),
    }


@pytest.mark.parametrize(("mask_share", "fixed"), [(0.0, 30), (0.0, 7), (0.4, 7)])
def test_every_metric_is_that_of_dense_float64(models, mask_share, fixed):
    windows = some_windows(mask_share=mask_share)
    found = evaluate.evaluate(models[0], windows, models[1], fixed=fixed)
    whole = dense(*models, windows, range(30))
    some = dense(*models, windows, found.rows_M)
    row, loss = found.row(5.0, 2.0), whole["loss_B"].mean()
    for model in (None, models[0]):  # without a teacher, and by itself
        other = evaluate.evaluate(models[0], windows, model, fixed=fixed)
        np.testing.assert_equal([other.kl, other.agreement], [0, 1] if model else [np.nan] * 2)
        alone = pytest.approx(1 if model else np.nan, abs=1e-6, nan_ok=True)
        assert other.acceptance == alone
        np.testing.assert_allclose(other.window_loss_N, whole["loss_B"], rtol=5e-6)
    np.testing.assert_allclose(found.window_loss_N, whole["loss_B"], rtol=5e-6)
    assert row["loss"] == pytest.approx(loss, rel=5e-6)
    assert row["loss_fixed"] == pytest.approx(some["loss"].mean(), rel=5e-6)
    assert row["kl"] == pytest.approx(some["kl"].mean(), rel=5e-5)
    assert row["agreement"] == pytest.approx(some["same"].mean())
    assert row["acceptance"] == pytest.approx(1 - some["apart"].mean(), rel=5e-6)  # Σ min(p, q)
    assert row["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    bits = pytest.approx(loss * math.log2(math.e))
    assert row["bits_per_byte"] * 5 == bits == row["bits_per_character"] * 2


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
    found = evaluate.Evaluation(np.ones(1), np.arange(1), np.ones((1, 1)), bins, 0.0, 1.0, 1.0)
    assert found.row(1.0)["calibration_error"] == pytest.approx(sum(gaps), rel=1e-5)


@pytest.mark.parametrize(("count", "asked"), [(1000, 640), (640, 640), (30, 640), (7, 3), (5, 1)])
def test_fixed_windows_are_spread_evenly_or_are_all(count, asked):
    rows = evaluate.fixed_rows(some_windows(count=count), asked)
    assert len(rows) == min(count, asked) and (np.diff(rows) > 0).all() and rows[0] == 0
    if 1 < asked <= count:
        assert rows[-1] == count - 1 and np.ptp(np.diff(rows)) <= 1


@pytest.mark.parametrize("rows, fixed", [([3, 4], 30), ([0, 7, 29], 4), ([*range(30)][1:], 7)])
def test_a_window_without_a_target_is_in_no_number(models, rows, fixed):
    model, teacher = models
    windows, known = some_windows(), np.setdiff1d(np.arange(30), rows)
    found = evaluate.evaluate(model, masked(windows, rows), teacher, fixed=fixed)
    row = found.row(7.0, 3.0)
    wanted = dense(model, teacher, windows, known)
    assert np.isnan(found.window_loss_N).nonzero()[0].tolist() == sorted(rows)
    assert row["loss"] == pytest.approx(wanted["loss_B"].mean(), rel=1e-5)
    assert row["windows_left_out"] == len(rows) and all(map(math.isfinite, row.values()))
    seen = dense(model, teacher, windows, np.intersect1d(found.rows_M, known))
    assert row["kl"] == pytest.approx(seen["kl"].mean(), rel=1e-4)
    shown = tables.metrics({"a": {"parameters": 1} | row})
    assert shown["windows left out"].tolist() == [str(len(rows))]
    assert not evaluate.evaluate(model, windows, fixed=3).row(7.0)["windows_left_out"]


def test_where_all_fixed_windows_are_masked_others_stand_for_them(models):
    windows, one = some_windows(), masked(some_windows(), range(30))
    hidden = masked(windows, set(range(30)) - {8, 13, 21})
    assert evaluate.fixed_rows(windows, 4).tolist() == [0, 10, 19, 29]
    assert evaluate.fixed_rows(hidden, 4).tolist() == [8, 13, 21]
    loss = evaluate.on_subset(hidden, 4)(models[0])["val/loss"]
    assert loss == pytest.approx(dense(*models, windows, [8, 13, 21])["loss_B"].mean(), rel=1e-5)
    one.mask[5] = 1  # a single target in all
    assert evaluate.evaluate(models[0], one, fixed=4).row(1.0)["windows_left_out"] == 29


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_no_mask_and_refused(models, value):
    broken, windows = copy.deepcopy(models[0]), masked(some_windows(), [3])
    next(broken.parameters()).data[0] = value  # what id 0 comes from
    windows.ids[2 * T] = 0
    for pair in ((broken, None), (models[0], broken)):
        with refused("not finite: ", "damaged: make them again"):
            evaluate.evaluate(pair[0], windows, pair[1])
    with refused("window ", " is not finite"):
        evaluate.evaluate(broken, windows, fixed=1)
