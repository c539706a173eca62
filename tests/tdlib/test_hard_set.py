"""Difficulty against two bare forwards, the choice against sorting by hand, and what is kept."""

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tdbook.book import selection
from tdbook.report import words
from tdlib import hard_set
from tdlib.data import Windows

T, V = 12, 97
NAN = float("nan")


@pytest.fixture(scope="module")
def models(tiny_llama):
    return tiny_llama(1, V, T, dim=16, layers=1), tiny_llama(2, V, T, kv_heads=1, tied=False)


def some_windows(count=70, mask_share=0.0) -> Windows:
    rng = np.random.default_rng(0)
    n = count * T + 5
    mask = (rng.random(n) >= mask_share).astype("u1") if mask_share else None
    return Windows(rng.integers(0, V, n).astype("<u4"), T, mask)


def by_hand(model, windows: Windows, i: int) -> float:
    """One window alone, in float64: logits, torch's own loss, the mean over what is not masked."""
    ids = torch.from_numpy(windows.ids[i * T : i * T + T + 1].astype(np.int64))
    targets = ids[1:].clone()
    if windows.mask is not None:
        targets[torch.from_numpy(windows.mask[i * T + 1 : i * T + T + 1] == 0)] = -100
    with torch.no_grad():
        return float(F.cross_entropy(model(ids[None, :-1])[0].double(), targets))


@pytest.mark.parametrize("mask_share", [0.0, 0.6])
def test_a_windows_difficulty_is_two_bare_forwards(models, mask_share):
    windows = some_windows(mask_share=mask_share)
    scores = hard_set.score(*models, windows)
    losses = np.array([[by_hand(m, windows, i) for i in range(len(windows))] for m in models])
    assert losses.std() > 0.3  # the windows do differ
    # float32 logits of size 10, over a mean of 12 tokens
    np.testing.assert_allclose(scores.student_loss_N, losses[0], rtol=2e-6)
    np.testing.assert_allclose(scores.teacher_loss_N, losses[1], rtol=2e-6)
    np.testing.assert_allclose(scores.difficulty_N, losses[0] - losses[1], atol=2e-5)


def test_a_window_without_a_target_has_no_loss(models):
    windows = some_windows(3)
    mask = np.ones(len(windows.ids), "u1")
    mask[T + 1 : 2 * T + 1] = 0  # all targets of window 1
    scores = hard_set.score(*models, Windows(windows.ids, T, mask))
    assert np.isnan(scores.difficulty_N).tolist() == [False, True, False]


def test_some_windows_have_the_losses_they_have_among_all_and_the_others_none(models, tmp_path):
    windows, rows = some_windows(), np.array([0, 8, 9, 69])
    every, some = (hard_set.score(*models, windows, rows=r) for r in (None, rows))
    for full_N, part_N in ((every.student_loss_N, some.student_loss_N),
                           (every.teacher_loss_N, some.teacher_loss_N)):  # fmt: skip
        np.testing.assert_allclose(part_N[rows], full_N[rows], rtol=2e-6)
        assert np.isnan(np.delete(part_N, rows)).all()
    path, told = tmp_path / "scores.npy", []
    short = selection.score(path, *models, windows, "cpu", lambda *said: told.append(said), 7 * T)
    difficulty_N = hard_set.load_scores(path).difficulty_N
    assert np.isfinite(difficulty_N).sum() == 7 and short["scored"] == 0.1
    assert np.isfinite(difficulty_N)[[0, 69]].all() and told[-1][:2] == (7, 7)
    chosen = hard_set.select(difficulty_N, share=0.3 * short["scored"])  # as 02 does
    assert len(chosen.windows_K) == 2  # three tenths of the seven


def test_token_losses_are_zero_where_masked_and_nats_elsewhere(models):
    ids_BT, targets_BT = some_windows(5, 0.5).batch(range(5))
    loss_BT = hard_set.token_losses(models[0], ids_BT, targets_BT)
    log_q_BTV = models[0](ids_BT).double().log_softmax(-1)
    wanted_BT = -log_q_BTV.gather(-1, targets_BT.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(
        loss_BT.double(), torch.where(targets_BT == -100, 0.0, wanted_BT), rtol=2e-5, atol=2e-5
    )


def test_scoring_into_a_memory_map_holds_nothing_of_the_size_of_n(models, tmp_path):
    def peak(count: int) -> int:
        told.clear()
        ids = np.random.default_rng(0).integers(0, V, count * T + 1).astype("<u4")
        ids.tofile(tmp_path / "ids")
        windows = Windows(np.memmap(tmp_path / "ids", "<u4"), T)
        with hard_set.new_scores(tmp_path / "scores.npy", count) as loss_2N:
            tracemalloc.start()
            hard_set.score(*models, windows, into=loss_2N, progress=lambda *x: told.append(x[:2]))
            found = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert np.isfinite(loss_2N).all()
        return found

    told = []
    peak(70)
    assert told == [(64, 70), (70, 70)]
    # an array of N would add 2,880 × 4 bytes at least; what is there is one batch's, and Python's
    assert peak(3200) - peak(320) < 2880 * 2


@pytest.mark.parametrize("share", [0.01, 0.2, 0.25, 0.5, 0.999, 1.0])
def test_a_share_is_the_hardest_of_the_sorted(share):
    difficulty_N = np.random.default_rng(1).normal(size=137).astype(np.float32)
    chosen = hard_set.select(difficulty_N, share=share)
    order = sorted(range(137), key=lambda i: -difficulty_N[i])
    k = max(1, round(137 * share))
    assert chosen.windows_K.tolist() == sorted(order[:k])
    assert chosen.threshold == difficulty_N[order[k - 1]]  # the smallest let in
    assert chosen.share == k / 137
    again = hard_set.select(difficulty_N, threshold=chosen.threshold)
    assert again.windows_K.tolist() == chosen.windows_K.tolist()


def test_a_threshold_lets_in_what_is_at_or_above_it():
    difficulty_N = np.array([0.5, -1.0, 0.25, 2.0, 0.2499])
    chosen = hard_set.select(difficulty_N, threshold=0.25)
    assert chosen.windows_K.tolist() == [0, 2, 3]
    assert (chosen.threshold, chosen.share) == (0.25, 3 / 5)
    assert hard_set.select(difficulty_N, threshold=9.0).windows_K.tolist() == []


def test_windows_equal_to_the_last_one_let_in_come_along():
    chosen = hard_set.select(np.array([1.0, 3.0, 1.0, 1.0, 0.0]), share=0.4)
    assert chosen.windows_K.tolist() == [0, 1, 2, 3]
    assert chosen.share == 0.8  # what was taken, not what was asked


def test_a_window_without_a_difficulty_is_never_hard():
    difficulty_N = np.array([NAN, NAN, 2.0, -1.0, 3.0])
    for share, wanted in ((0.4, [2, 4]), (0.9, [2, 3, 4]), (1.0, [2, 3, 4])):
        assert hard_set.select(difficulty_N, share=share).windows_K.tolist() == wanted
    for threshold, wanted in ((-np.inf, [2, 3, 4]), (2.5, [4])):
        assert hard_set.select(difficulty_N, threshold=threshold).windows_K.tolist() == wanted


NONE = np.ones(5, bool)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(), "give share or threshold, one of the two"),
        (dict(share=0.2, threshold=0.1), "give share or threshold, one of the two"),
        (dict(share=0, threshold=0), "give share or threshold, one of the two"),
        (dict(share=0.0), "share 0.0 is not within 0 … 1"),
        (dict(share=1.5), "share 1.5 is not within 0 … 1"),
        (dict(share=NAN), "share nan is not within 0 … 1"),
        (dict(share=0.2, clip=1.0), "clip=1.0 must be within 0 … 1"),
        (dict(share=0.2, clip=-0.1), "clip=-0.1 must be within 0 … 1"),
        (dict(share=0.2, easy_share=-1.0), "easy_share=-1.0 not below 0"),
        (dict(share=0.2, left_out_N=NONE), "no window is left to choose from"),
    ],
)
def test_what_chooses_nothing_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        hard_set.select(np.arange(5.0), **options)


@pytest.mark.parametrize("seed", range(10))
def test_clip_junk_and_easy_ones_are_a_sorted_list_cut_at_both_ends(seed):
    rng = np.random.default_rng(seed)
    difficulty_N = rng.normal(size=211).astype(np.float32)
    difficulty_N[rng.random(211) < 0.1] = NAN  # not scored
    left_out_N = rng.random(211) < rng.choice([0, 0.3])
    share, clip, easy = rng.uniform(0.05, 0.6), rng.choice([0, 0.02, 0.2]), rng.choice([0, 0.25, 3])
    chosen = hard_set.select(
        difficulty_N, share=share, clip=clip, left_out_N=left_out_N, easy_share=easy, seed=seed
    )
    left = [i for i in range(211) if not left_out_N[i] and difficulty_N[i] == difficulty_N[i]]
    left = sorted(left, key=lambda i: -difficulty_N[i])
    left = left[round(clip * len(left)) :]
    k = min(round(share * (211 - sum(left_out_N))), len(left))
    hard = set(left[:k])
    assert hard <= set(chosen.windows_K.tolist()) <= set(left)
    assert chosen.easy == len(chosen.windows_K) - k == min(round(easy * k), len(left) - k)
    assert (np.diff(chosen.windows_K) > 0).all() and chosen.windows_K.dtype == np.int64
    assert chosen.threshold == difficulty_N[left[k - 1]]
    assert chosen.share == len(chosen.windows_K) / 211
    by_line = hard_set.select(
        difficulty_N, threshold=chosen.threshold, clip=clip, left_out_N=left_out_N
    )
    assert set(by_line.windows_K.tolist()) == hard


def test_easy_ones_are_drawn_by_the_seed_from_everywhere_below_the_line():
    difficulty_N = np.random.default_rng(3).normal(size=2000)
    drawn = [
        hard_set.select(difficulty_N, share=0.1, easy_share=1.0, seed=s).windows_K
        for s in (1, 1, 2)
    ]
    assert drawn[0].tolist() == drawn[1].tolist() != drawn[2].tolist()
    easy = np.setdiff1d(drawn[0], hard_set.select(difficulty_N, share=0.1).windows_K)
    rank = difficulty_N.argsort().argsort()[easy] / 1800  # 0 … 1 below the line
    assert len(easy) == 200 and rank.max() < 1 and abs(rank.mean() - 0.5) < 0.08  # four of its se


def test_a_kept_choice_is_loaded_as_it_was(tmp_path):
    difficulty_N = np.random.default_rng(5).normal(size=300).astype(np.float32)
    chosen, path = hard_set.select(difficulty_N, share=0.17), tmp_path / "hard_set.json"
    chosen = replace(chosen, easy=4, rule=replace(chosen.rule, token_share=0.4, clip=0.1))
    hard_set.keep(chosen, path, "the hardest 17 %, శాతం")
    back = hard_set.load(path)
    assert back.windows_K.tolist() == chosen.windows_K.tolist()
    assert back.windows_K.dtype == np.int64
    assert replace(back, windows_K=0) == replace(chosen, windows_K=0)  # to the last bit
    content = json.loads(path.read_text(encoding="utf8"))
    assert content["words"] == "the hardest 17 %, శాతం" and content["token_share"] == 0.4
    rule = {"threshold": chosen.threshold, "clip": 0.1, "leave_out_junk": False}
    assert content["rule"] == rule | {"easy_share": 0.0, "token_share": 0.4, "seed": 1}
    path.write_text('{"windows_K": [1, 5], "threshold": 0.5, "share": 0.1}')  # made elsewhere
    assert hard_set.load(path).rule == hard_set.Rule(0.5)
    assert [p.name for p in tmp_path.iterdir()] == ["hard_set.json"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1, 2]", b'{"windows_K": [1]}', b'{"windows_K": ["x"]}', b"\xff"]
)
def test_a_broken_choice_gets_one_line(tmp_path, content):
    (tmp_path / "hard_set.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"hard_set.json is no hard set .*: run 02_hard_set") as e:
        hard_set.load(tmp_path / "hard_set.json")
    assert "\n" not in str(e.value)


def test_scores_come_back_and_a_failure_leaves_the_old_ones(tmp_path):
    student_N, teacher_N = np.float32([1, 2, 4, NAN]), np.float32([2, 1, 1, 1])
    path = tmp_path / "scores" / "run.npy"
    with hard_set.new_scores(path, 4) as loss_2N:
        assert np.isnan(loss_2N).all() and not path.exists()
        loss_2N[:] = student_N, teacher_N
    with pytest.raises(RuntimeError), hard_set.new_scores(path, 4) as loss_2N:
        loss_2N[:] = 2
        raise RuntimeError
    back = hard_set.load_scores(path)
    np.testing.assert_array_equal(back.student_loss_N, student_N)
    np.testing.assert_array_equal(back.difficulty_N, student_N - teacher_N)


@pytest.mark.parametrize(
    "student, teacher, sound",
    [(NAN, NAN, 1), (NAN, 1.0, 1), (2.0, NAN, 0), (np.inf, 1.0, 0), (2.0, -np.inf, 0)],
)
def test_scores_that_are_not_finite_are_damage_unless_masked(student, teacher, sound, tmp_path):
    path = tmp_path / "run.npy"
    with hard_set.new_scores(path, 2) as loss_2N:
        loss_2N[:] = np.array([[2.0, student], [1.0, teacher]])
    if sound:
        assert np.isnan(hard_set.load_scores(path).difficulty_N).tolist() == [False, True]
        return
    with pytest.raises(ValueError, match=r"run.npy holds no scores \(a loss is not finite\): run"):
        hard_set.load_scores(path)


def test_02_says_how_many_windows_it_could_not_score(models, tmp_path):
    windows = some_windows(20)
    mask = np.ones(len(windows.ids), "u1")
    mask[T + 1 : 4 * T + 1] = 0  # windows 1, 2 and 3
    short = selection.score(
        tmp_path / "a.npy", *models, Windows(windows.ids, T, mask), "cpu", lambda *told: None
    )
    assert (short["masked"], short["windows"]) == (3, 20)
    difficulty_N = hard_set.load_scores(tmp_path / "a.npy").difficulty_N
    assert short["mean"] == pytest.approx(np.nanmean(difficulty_N), rel=1e-6)
    assert short["student_better"] == pytest.approx((difficulty_N < 0).sum() / 17)
    said = words.difficulty("50m", short)
    assert "of 20 windows but for 3, which have no target" in said
    mask[:] = 0
    with pytest.raises(ValueError, match="no training window was scored that has a target"):
        selection.score(tmp_path / "b.npy", *models, Windows(windows.ids, T, mask), "cpu", print)
