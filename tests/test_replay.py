"""What a replay trains on, and how often each token counts in it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tdbook.book import adapters
from tdlib import checkpoint, data, hard_set, lora, losses, train
from tdlib.hard_set import HardSet
from tdlib.model import Llama, LlamaConfig

V, T = 40, 8
RECIPE = train.Recipe(
    learning_rate=1e-2, epochs=1.0, batch_tokens=4 * T, micro_windows=4, ce_weight=0.3,
    temperature=2.0, warmup_share=0.1,
)  # fmt: skip


def model(seed: int, dim: int = 16) -> Llama:
    torch.manual_seed(seed)
    net = Llama(LlamaConfig(V, layers=1, heads=2, dim=dim, mlp_dim=24, context=T))
    with torch.no_grad():
        [w.mul_(8) for w in net.parameters() if w.ndim > 1]
    return net


def windows(count: int = 12) -> data.Windows:
    ids = np.random.default_rng(0).integers(0, V, count * T + 1).astype("<u4")
    return data.Windows(ids, T)


def some_weights(seed: int = 1, most: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, most + 1, 12 * T + 1).astype("u1")


def trained(given: data.Windows, recipe: train.Recipe = RECIPE) -> torch.Tensor:
    net = model(1)
    train.fit(net, given, recipe, teacher=model(2, 24), evaluations=1)
    return torch.cat([w.detach().flatten() for w in net.parameters()])


def test_a_token_of_weight_two_is_the_token_counted_twice():
    student, teacher = model(1), model(2, 24)
    weighted = replace(windows(), weights=some_weights())
    rows = np.arange(12)
    ids_BT, targets_BT = weighted.batch(rows)
    times_BT = torch.from_numpy(weighted.weights_of(rows))
    found = train.batch_loss(
        student, teacher, ids_BT, targets_BT, RECIPE, weights_BT=times_BT
    )  # fmt: skip
    found.loss.backward()
    own = [w.grad.clone() for w in student.parameters()]
    student.zero_grad()
    # by hand: every token as often as its weight says, in a plain mean
    logits_NV, teacher_NV = (m(ids_BT).flatten(0, 1).double() for m in (student, teacher))
    times_N = times_BT.flatten().long()
    s_NV, t_NV, y_N = (
        x.repeat_interleave(times_N, dim=0) for x in (logits_NV, teacher_NV, targets_BT.flatten())
    )
    log_q, log_p = (x.div(2).log_softmax(-1) for x in (s_NV, t_NV.detach()))
    kl = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean()
    by_hand = 0.3 * F.cross_entropy(s_NV, y_N) + 0.7 * 4 * kl
    by_hand.backward()
    assert found.loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert found.count.item() == times_N.sum() == weighted.targets(rows)
    for mine, weight in zip(own, student.parameters(), strict=True):
        torch.testing.assert_close(mine, weight.grad, rtol=1e-4, atol=1e-6)


def test_weights_of_nought_and_one_train_as_a_mask_does():
    weights = some_weights(most=1)
    torch.testing.assert_close(
        trained(replace(windows(), weights=weights)), trained(replace(windows(), mask=weights)),
        rtol=1e-5, atol=1e-7,
    )  # fmt: skip
    assert not torch.equal(trained(replace(windows(), weights=weights)), trained(windows()))


def test_equal_weights_change_nothing_and_a_masked_token_has_none():
    same = trained(replace(windows(), weights=np.full(12 * T + 1, 2, "u1")))
    torch.testing.assert_close(same, trained(windows()), rtol=1e-5, atol=1e-7)
    mask = some_weights(2, most=1)
    both = replace(windows(), mask=mask, weights=some_weights(3))
    np.testing.assert_array_equal(
        both.weights_of(np.arange(12)).ravel(), (some_weights(3) * (mask > 0))[1:]
    )


@pytest.mark.parametrize("micro_windows", [1, 3])
def test_how_a_step_is_split_does_not_matter_to_weighted_tokens(micro_windows):
    given = replace(windows(), weights=some_weights())
    torch.testing.assert_close(
        trained(given, replace(RECIPE, micro_windows=micro_windows)), trained(given),
        rtol=1e-3, atol=1e-5,
    )  # fmt: skip


def test_token_mode_takes_those_tokens_of_a_window_on_which_the_student_is_furthest_behind():
    student, teacher, given = model(1), model(2, 24), windows()
    weights, rows = np.zeros(len(given.ids), "u1"), np.array([1, 4, 11])
    hard_set.weigh(student, teacher, given, rows, 0.375, weights)
    ids_BT, targets_BT = given.batch(np.arange(12))
    with torch.no_grad():
        s_BT, t_BT = (
            F.cross_entropy(m(ids_BT).transpose(1, 2), targets_BT, reduction="none")
            for m in (student, teacher)
        )
    wanted = np.zeros((12, T), "u1")
    for row in rows:
        wanted[row, np.argsort((t_BT - s_BT)[row].numpy())[:3]] = 1  # 3 of 8
    np.testing.assert_array_equal(weights[1:].reshape(12, T), wanted)


def test_token_mode_never_takes_a_masked_token_while_others_are_left():
    given = replace(windows(), mask=some_weights(5, most=1))
    weights = np.zeros(len(given.ids), "u1")
    hard_set.weigh(model(1), model(2, 24), given, np.arange(12), 0.125, weights)
    assert (weights * (given.mask == 0)).sum() == 0 and weights.sum() == 12


def test_weights_beside_the_ids_are_a_file_of_zeros_that_can_be_filled(tmp_path):
    meta = {"vocab_size": V, "block_size": T}
    tokens = data.Tokens(tmp_path, meta, windows(), windows(), None, None)
    new = data.weighted(tokens, tmp_path / "weights.bin", new=True)
    assert (tmp_path / "weights.bin").stat().st_size == 12 * T + 1
    new.train.weights[5] = 2
    new.train.weights.flush()
    back = data.weighted(tokens, tmp_path / "weights.bin")
    assert back.train.weights.sum() == back.train.weights[5] == 2 and back.val.weights is None


def test_what_is_replayed_is_as_much_as_the_hard_set_or_all():
    difficulty_N = np.array([0.1, np.nan, -1.0, 0.5, 0.0, 2.0, -0.5, np.nan])
    chosen = hard_set.select(difficulty_N, threshold=0.4)
    given = {
        w: hard_set.replayed(chosen, w, 8, 1, difficulty_N) for w in ("hard", "easiest", "all")
    }
    assert given["hard"].tolist() == [3, 5] and given["easiest"].tolist() == [2, 6]
    assert given["all"].tolist() == list(range(8))
    with pytest.raises(ValueError, match="'easiest' needs 7 windows that were scored"):
        hard_set.replayed(HardSet(np.arange(7), 0.0, 0.9), "easiest", 8, 1, difficulty_N)


def test_a_replay_of_random_windows_has_as_many_targets_as_one_of_hard_ones():
    given, mask = windows(12), np.ones(len(windows(12).ids), "u1")
    t = given.context
    mask[: 9 * t + 1] = 0  # the first nine windows
    tokens = SimpleNamespace(train=replace(given, mask=mask))
    for how, wanted in (("random", 2), ("all", 3)):
        this = SimpleNamespace(parameters={"windows": how, "seed": 3})
        rows = adapters.windows_replayed(this, HardSet(np.array([9, 11]), 0.1, 0.1), tokens)
        assert len(set(rows.tolist())) == wanted and rows.min() >= 9


def test_steps_without_a_target_do_not_make_the_next_ones_look_like_a_jump():
    given, mask = windows(12), np.ones(len(windows(12).ids), "u1")
    mask[: 6 * given.context + 1] = 0
    state = checkpoint.State(model(1), RECIPE, "cpu", {})
    for step, loss in enumerate([0.0, *[5.0] * 3, *[0.0] * 200, 5.0], 1):
        state.update(step, 1e-3, torch.tensor(loss))
    assert not state.skipped and state.usual == 5


def test_an_adapter_can_sit_beside_some_linears_alone():
    net = lora.attach(model(1), 2, targets=("q_proj", "down_proj"))
    assert {name.rpartition(".")[2] for name in lora.adapters(net)} == {"q_proj", "down_proj"}


def test_cached_draws_are_weighed_alike():
    torch.manual_seed(0)
    hidden_ND, head_VD = torch.randn(6, 5), torch.randn(V, 5)
    targets_N, ids_NK = torch.randint(0, V, (6,)), torch.randint(0, V, (6, 4))
    probs_NK, times_N = torch.rand(6, 4), torch.tensor([2, 0, 1, 3, 1, 0])
    how = dict(ce_weight=0.4, temperature=2.0)
    one = losses.sampled_distillation_loss(
        hidden_ND, head_VD, targets_N, teacher_ids_NK=ids_NK, teacher_probs_NK=probs_NK,
        weights_N=times_N, **how,
    )  # fmt: skip
    h, y, i, p = (
        x.repeat_interleave(times_N, dim=0) for x in (hidden_ND, targets_N, ids_NK, probs_NK)
    )
    many = losses.sampled_distillation_loss(
        h, head_VD, y, teacher_ids_NK=i, teacher_probs_NK=p, **how
    )
    assert one.loss.item() == pytest.approx(many.loss.item(), rel=1e-5)
    assert one.kl.item() == pytest.approx(many.kl.item(), rel=1e-5)
