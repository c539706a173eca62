"""What a replay trains on: which windows, and which of their tokens."""

from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

from tdbook.book import students
from tdlib import hard_set
from tdlib.hard_set import HardSet
from tests.helpers import masked, refused, some_windows, tiny_model

T = 12
NAN = float("nan")


def test_token_mode_takes_those_tokens_of_a_window_on_which_the_student_is_furthest_behind():
    models = tiny_model(1, context=T, dim=16, layers=1), tiny_model(2, context=T)
    windows, rows = some_windows(count=12), np.array([1, 4, 11])
    weights, wanted = np.zeros(len(windows.ids), "u1"), np.zeros((12, T), "u1")
    students.weigh(*models, windows, rows, 1 / 3, weights, "cpu")
    ids_BT, targets_BT = windows.batch(range(12))
    with torch.no_grad():
        logits = (m(ids_BT).transpose(1, 2) for m in models)
        s_BT, t_BT = (F.cross_entropy(x, targets_BT, reduction="none").numpy() for x in logits)
    for row in rows:
        wanted[row, np.argsort((t_BT - s_BT)[row])[:4]] = 1  # of 12
    np.testing.assert_array_equal(weights[1 : 12 * T + 1].reshape(12, T), wanted)
    windows, weights = some_windows(count=12, mask_share=0.5), np.zeros(len(windows.ids), "u1")
    students.weigh(*models, windows, np.arange(12), 0.1, weights, "cpu")
    assert (weights * (windows.mask == 0)).sum() == 0 and weights.sum() == 12  # no masked one


def test_what_is_replayed_is_as_much_as_the_hard_set_or_all_that_has_a_target(tmp_path):
    tokens = SimpleNamespace(train=masked(some_windows(count=12), [0, 1]))
    loss_N = np.array([NAN, NAN, 0.1, 0.3, -1.0, 0.5, 0.0, 2.0, -0.5, 1.0, NAN, 0.2])
    with hard_set.new_scores(tmp_path / "a.npy", 12) as loss_2N:
        loss_2N[:] = loss_N, np.zeros(12)

    def rows(how: str, k: int = 3, seed: int = 1) -> list[int]:
        p = {"windows": how, "seed": seed, "scores": "a.npy"}
        this = SimpleNamespace(parameters=p, path=lambda *names: tmp_path / names[-1])
        chosen = HardSet(np.arange(12 - k, 12), 0.1, 0.1)
        return students.windows_replayed(this, chosen, tokens).tolist()

    assert rows("hard") == [9, 10, 11] and rows("easiest") == [4, 6, 8]
    assert rows("all") == list(range(2, 12))
    drawn = [rows("random", seed=s) for s in range(40)]
    assert all(r == sorted({*r}) and len(r) == 3 and r[0] >= 2 for r in drawn)
    assert drawn[3] == rows("random", seed=3) and {*np.ravel(drawn)} == {*range(2, 12)}
    with refused("'easiest' needs 10 windows that were scored"):
        rows("easiest", 10)
