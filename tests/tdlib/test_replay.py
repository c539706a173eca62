"""What a replay trains on, and how often each token counts in it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tdbook.book import adapters
from tdlib import checkpoint, data, hard_set, train
from tdlib.hard_set import HardSet
from tdlib.targets import Online
from tests.helpers import refused, tiny_model

V, T = 40, 8
NAN = float("nan")
RECIPE = train.Recipe(
    learning_rate=1e-2, epochs=1.0, batch_tokens=4 * T, micro_windows=4, ce_weight=0.3,
    temperature=2.0, warmup_share=0.1,
)  # fmt: skip


def model(seed: int, dim: int = 16):
    return tiny_model(seed, V, T, 8, layers=1, dim=dim, mlp_dim=24)


def windows(weights=None, mask=None) -> data.Windows:
    ids = np.random.default_rng(0).integers(0, V, 12 * T + 1).astype("<u4")
    return data.Windows(ids, T, mask, weights)


def some_weights(seed: int = 1, most: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, most + 1, 12 * T + 1).astype("u1")


def trained(given: data.Windows, recipe: train.Recipe = RECIPE) -> torch.Tensor:
    net = model(1)
    train.fit(net, given, recipe, teacher=model(2, 24), evaluations=1)
    return torch.cat([w.detach().flatten() for w in net.parameters()])


def test_a_token_of_weight_two_is_the_token_counted_twice():
    student, teacher, weighted = model(1), model(2, 24), windows(some_weights())
    rows = np.arange(12)
    ids_BT, targets_BT = weighted.batch(rows)
    times_BT = torch.from_numpy(weighted.weights_of(rows))
    given = (student, Online(teacher), ids_BT, targets_BT, RECIPE)
    found = train.batch_loss(*given, weights_BT=times_BT)
    found.loss.backward()
    own = [w.grad.clone() for w in student.parameters()]
    student.zero_grad()
    # by hand: every token as often as its weight says, in a plain mean
    logits_NV, teacher_NV = (m(ids_BT).flatten(0, 1).double() for m in (student, teacher))
    times_N, each = times_BT.flatten().long(), (logits_NV, teacher_NV, targets_BT.flatten())
    s_NV, t_NV, y_N = (x.repeat_interleave(times_N, dim=0) for x in each)
    log_q, log_p = (x.div(2).log_softmax(-1) for x in (s_NV, t_NV.detach()))
    kl = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean()
    by_hand = 0.3 * F.cross_entropy(s_NV, y_N) + 0.7 * 4 * kl
    by_hand.backward()
    assert found.loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert found.count.item() == times_N.sum() == weighted.targets(rows)
    for mine, weight in zip(own, student.parameters(), strict=True):
        torch.testing.assert_close(mine, weight.grad, rtol=1e-4, atol=1e-6)


def test_weights_of_nought_and_one_train_as_a_mask_does_and_equal_ones_change_nothing():
    weights, how = some_weights(most=1), dict(rtol=1e-5, atol=1e-7)
    by_weight, plain = trained(windows(weights)), trained(windows())
    torch.testing.assert_close(by_weight, trained(windows(mask=weights)), **how)
    assert not torch.equal(by_weight, plain)
    torch.testing.assert_close(trained(windows(np.full(12 * T + 1, 2, "u1"))), plain, **how)
    given = windows(some_weights())  # nor does how a step is split
    split = trained(given, replace(RECIPE, micro_windows=3))
    torch.testing.assert_close(split, trained(given), rtol=1e-3, atol=1e-5)
    mask = some_weights(2, most=1)  # a masked token has no weight
    weights_BT = replace(given, mask=mask).weights_of(np.arange(12))
    np.testing.assert_array_equal(weights_BT.ravel(), (some_weights() * (mask > 0))[1:])


def test_token_mode_takes_those_tokens_of_a_window_on_which_the_student_is_furthest_behind():
    student, teacher, given = model(1), model(2, 24), windows()
    weights, rows = np.zeros(len(given.ids), "u1"), np.array([1, 4, 11])
    adapters.weigh(student, teacher, given, rows, 0.375, weights, "cpu")
    ids_BT, targets_BT = given.batch(np.arange(12))
    with torch.no_grad():
        logits = [m(ids_BT).transpose(1, 2) for m in (student, teacher)]
        s_BT, t_BT = (F.cross_entropy(x, targets_BT, reduction="none") for x in logits)
    wanted = np.zeros((12, T), "u1")
    for row in rows:
        wanted[row, np.argsort((t_BT - s_BT)[row].numpy())[:3]] = 1  # 3 of 8
    np.testing.assert_array_equal(weights[1:].reshape(12, T), wanted)
    given, weights = windows(mask=some_weights(5, most=1)), np.zeros(len(given.ids), "u1")
    adapters.weigh(student, teacher, given, np.arange(12), 0.125, weights, "cpu")
    assert (weights * (given.mask == 0)).sum() == 0 and weights.sum() == 12  # no masked one


def test_weights_beside_the_ids_are_a_file_of_zeros_that_can_be_filled(tmp_path):
    tokens = data.Tokens(tmp_path, {"vocab_size": V}, windows(), windows())
    new = data.weighted(tokens, tmp_path / "weights.bin", new=True)
    assert (tmp_path / "weights.bin").stat().st_size == 12 * T + 1
    new.train.weights[5] = 2
    new.train.weights.flush()
    back = data.weighted(tokens, tmp_path / "weights.bin")
    assert back.train.weights.sum() == back.train.weights[5] == 2 and back.val.weights is None


def test_what_is_replayed_is_as_much_as_the_hard_set_or_all_that_has_a_target(tmp_path):
    mask = np.ones(12 * T + 1, "u1")
    mask[: 2 * T + 1] = 0  # the first two windows
    tokens = SimpleNamespace(train=windows(mask=mask))
    loss_N = np.array([NAN, NAN, 0.1, 0.3, -1.0, 0.5, 0.0, 2.0, -0.5, 1.0, NAN, 0.2])
    with hard_set.new_scores(tmp_path / "a.npy", 12) as loss_2N:
        loss_2N[:] = loss_N, np.zeros(12)

    def rows(how: str, k: int = 3, seed: int = 1) -> list[int]:
        p = {"windows": how, "seed": seed, "scores": "a.npy"}
        this = SimpleNamespace(parameters=p, path=lambda *names: tmp_path / names[-1])
        chosen = HardSet(np.arange(12 - k, 12), 0.1, 0.1)
        return adapters.windows_replayed(this, chosen, tokens).tolist()

    assert rows("hard") == [9, 10, 11] and rows("easiest") == [4, 6, 8]
    assert rows("all") == list(range(2, 12))
    drawn = [rows("random", seed=s) for s in range(40)]
    assert all(r == sorted({*r}) and len(r) == 3 and r[0] >= 2 for r in drawn)
    assert drawn[3] == rows("random", seed=3) and {*np.ravel(drawn)} == {*range(2, 12)}
    with refused("'easiest' needs 10 windows that were scored"):
        rows("easiest", 10)


def test_steps_without_a_target_do_not_make_the_next_ones_look_like_a_jump():
    state = checkpoint.State(model(1), RECIPE, "cpu", {})
    for step, loss in enumerate([0.0, *[5.0] * 3, *[0.0] * 200, 5.0], 1):
        state.update(step, 1e-3, torch.tensor(loss))
    assert not state.skipped and state.loss_ema == 5
