"""Difficulty against two bare forwards, the choice against a sorted list, and what is kept."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from tdbook.book import selection
from tdbook.report import words
from tdlib import hard_set
from tdlib.data import Windows
from tests.helpers import masked, refused, some_windows, tiny_model
from tests.tdlib.test_evaluate import dense
from tests.tdlib.test_model import CASES

T, V = 12, 97
NAN = float("nan")
RARE = range(90, 97)  # tokens that a student does not know


@pytest.fixture(scope="module")
def models():
    return tiny_model(1, V, T, dim=16, layers=1), tiny_model(2, V, T, kv_heads=1, tied=False)


@pytest.mark.parametrize("mask_share", [0.0, 0.6])
def test_a_windows_difficulty_is_two_bare_forwards(models, mask_share):
    windows = some_windows(count=70, mask_share=mask_share)
    scores = hard_set.score(*models, windows)
    losses = np.array([dense(m, m, windows, range(70))["loss_B"] for m in models])
    assert losses.std() > 0.3  # the windows do differ
    # float32 logits of size 10, over a mean of 12 tokens
    np.testing.assert_allclose(scores.student_loss_N, losses[0], rtol=2e-6)
    np.testing.assert_allclose(scores.teacher_loss_N, losses[1], rtol=2e-6)
    np.testing.assert_allclose(scores.difficulty_N, losses[0] - losses[1], atol=2e-5)
    rows = np.array([0, 8, 9, 69])
    some = hard_set.score(*models, windows, rows=rows)
    np.testing.assert_allclose(some.difficulty_N[rows], scores.difficulty_N[rows], atol=2e-5)
    assert np.isnan(np.delete(some.difficulty_N, rows)).all()


@pytest.mark.parametrize("difficulty, how, wanted", CASES["chosen"], ids=str)
def test_a_threshold_lets_in_what_is_at_or_above_it(difficulty, how, wanted):
    """Equal ones come along."""
    chosen = hard_set.select(np.array(difficulty), **how)
    assert chosen.windows_K.tolist() == wanted
    assert chosen.share == len(wanted) / 5  # what was taken, not what was asked
    assert chosen.threshold == how.get("threshold", chosen.threshold)


@pytest.mark.parametrize("options, says", CASES["chooses nothing"])
def test_what_chooses_nothing_is_refused(options, says):
    with refused(says):
        hard_set.select(np.arange(5.0), **options)
    with refused("no window is left to choose from"):
        hard_set.select(np.arange(5.0), share=0.2, left_out_N=np.ones(5, bool))


@pytest.mark.parametrize("seed", range(12))
def test_clip_junk_and_easy_ones_are_a_sorted_list_cut_at_both_ends(seed):
    rng = np.random.default_rng(seed)
    difficulty_N = rng.normal(size=211).astype(np.float32)
    difficulty_N[rng.random(211) < 0.1 * (seed % 2)] = NAN  # not scored
    junk_N = (rng.random(211) < rng.choice([0, 0.3])) * 8
    share, clip, easy = rng.uniform(0.05, 0.6), rng.choice([0, 0.02, 0.2]), rng.choice([0, 0.25, 3])
    share = {0: 0.001, 2: 0.999, 4: 1.0}.get(seed, share)
    how = dict(clip=clip, leave_out_junk=True, token_share=0.3)
    rule = hard_set.Rule(share=share, easy_share=easy, seed=seed, **how)
    chosen = hard_set.choose(difficulty_N, rule, junk_N)
    known = [i for i in range(211) if not junk_N[i] and difficulty_N[i] == difficulty_N[i]]
    left = sorted(known, key=lambda i: -difficulty_N[i])[round(clip * len(known)) :]
    k = min(max(1, round(share * len(known))), len(left))
    hard = set(left[:k])
    rows_K = chosen.windows_K
    assert hard == {*rows_K[difficulty_N[rows_K] >= chosen.threshold]}
    assert hard <= set(chosen.windows_K.tolist()) <= set(left)
    assert chosen.easy == len(chosen.windows_K) - k == min(round(easy * k), len(left) - k)
    assert (np.diff(chosen.windows_K) > 0).all() and chosen.windows_K.dtype == np.int64
    assert chosen.threshold == difficulty_N[left[k - 1]]  # the smallest let in
    assert chosen.share == len(chosen.windows_K) / np.isfinite(difficulty_N).sum()
    assert chosen.rule == replace(rule, share=None, threshold=chosen.threshold)
    by_line = hard_set.choose(difficulty_N, hard_set.Rule(chosen.threshold, **how), junk_N)
    assert set(by_line.windows_K.tolist()) == hard


def test_easy_ones_are_drawn_by_the_seed_from_everywhere_below_the_line():
    difficulty_N = np.random.default_rng(3).normal(size=2000)
    how = dict(share=0.1, easy_share=1.0)
    drawn = [hard_set.select(difficulty_N, **how, seed=s).windows_K for s in (1, 1, 2)]
    assert drawn[0].tolist() == drawn[1].tolist() != drawn[2].tolist()
    easy = np.setdiff1d(drawn[0], hard_set.select(difficulty_N, share=0.1).windows_K)
    rank = difficulty_N.argsort().argsort()[easy] / 1800  # 0 … 1 below the line
    assert len(easy) == 200 and rank.max() < 1 and abs(rank.mean() - 0.5) < 0.08  # four of its se


def test_a_kept_choice_is_loaded_as_it_was(tmp_path):
    difficulty_N = np.random.default_rng(5).normal(size=300).astype(np.float32)
    chosen, path = hard_set.select(difficulty_N, share=0.17), tmp_path / "hard_set.json"
    rule = hard_set.Rule(chosen.threshold, token_share=0.4, clip=0.1)
    chosen = replace(chosen, easy=4, rule=rule)
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
    for broken in (b"", b"{", b"[1, 2]", b'{"windows_K": ["x"]}', b"\xff"):
        path.write_bytes(broken)
        with refused("hard_set.json is no hard set", "run 02_hard_set"):
            hard_set.load(path)


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
    # not finite is damage unless masked
    for student, teacher in ((NAN, NAN), (2.0, NAN), (np.inf, 1.0), (2.0, -np.inf)):
        with hard_set.new_scores(path, 2) as loss_2N:
            loss_2N[:] = np.array([[2.0, student], [1.0, teacher]])
        if student is NAN:
            assert np.isnan(hard_set.load_scores(path).difficulty_N).tolist() == [False, True]
            continue
        with refused("run.npy holds no scores (a loss is not finite): run"):
            hard_set.load_scores(path)


def test_02_says_how_many_windows_it_could_not_score_and_scores_a_part(models, tmp_path):
    def score(windows: Windows, *limit: int) -> tuple[dict, np.ndarray]:
        given = (*models, windows, "cpu", lambda *x: told.append(x[:2]))
        short = selection.score(tmp_path / "a", *given, *limit)
        return short, hard_set.load_scores(tmp_path / "a").difficulty_N

    told = []
    short, difficulty_N = score(masked(some_windows(count=20), [1, 2, 3]))
    assert (short["masked"], short["windows"]) == (3, 20)
    assert np.isnan(difficulty_N).nonzero()[0].tolist() == [1, 2, 3]
    assert short["mean"] == pytest.approx(np.nanmean(difficulty_N), rel=1e-6)
    assert short["student_better"] == pytest.approx((difficulty_N < 0).sum() / 17)
    assert "of 20 windows but for 3, which have no target" in words.difficulty("50m", short)
    rounded = words.difficulty("50m", short | {"rounding": 0.012})
    assert "moves a window's difficulty by 0.012 nats" in rounded
    assert "0.012" not in words.difficulty("50m", short)
    with refused("no training window was scored that has a target"):
        score(masked(some_windows(count=2), [0, 1]))
    short, difficulty_N = score(some_windows(count=70), 7 * T)
    assert np.isfinite(difficulty_N).sum() == 7 and short["scored"] == 0.1
    assert np.isfinite(difficulty_N)[[0, 69]].all() and told[-1] == (7, 7)
    chosen = hard_set.select(difficulty_N, share=0.3 * short["scored"])  # as 02 does
    assert len(chosen.windows_K) == 2  # three tenths of the seven


def spoken(teacher, t=16, count=400) -> Windows:
    """Text that the teacher speaks; in every tenth window, at some place, a rare token."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    ids_NT = torch.from_numpy(rng.integers(0, RARE.start, (count, 1)))
    place_N = np.where(np.arange(count) % 10 == 0, rng.integers(1, t // 2, count), -1)
    for place in range(1, t):
        logits_NV = teacher(ids_NT)[:, -1]
        logits_NV[:, RARE.start :] = -torch.inf
        new_N = torch.multinomial(logits_NV.softmax(1), 1).squeeze(1)
        rare_N = torch.from_numpy(rng.choice(RARE, count))
        new_N = torch.where(torch.from_numpy(place_N == place), rare_N, new_N)
        ids_NT = torch.cat([ids_NT, new_N[:, None]], 1)
    return Windows(np.append(ids_NT.numpy(), 0).astype("<u4"), t)


def test_the_hard_set_is_the_windows_of_what_the_student_does_not_know():
    teacher = tiny_model(seed=3, tied=False).requires_grad_(False)
    student, windows = copy.deepcopy(teacher), spoken(teacher)
    torch.manual_seed(1)
    rows = student.embed_tokens.weight[RARE.start : RARE.stop]
    rows.copy_(torch.randn_like(rows) * rows.std())
    scores = hard_set.score(student, teacher, windows)
    holds_N = np.arange(len(windows)) % 10 == 0
    chosen = hard_set.select(scores.difficulty_N, share=0.08)
    assert len(chosen.windows_K) == 32 and holds_N[chosen.windows_K].all()
    # the chance that a window with a rare token scores above one without; 0.5 is chance
    pairs = ((s[holds_N], s[~holds_N]) for s in (scores.difficulty_N, scores.teacher_loss_N))
    ours, alone = (stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)) for a, b in pairs)
    assert ours > 0.8 and alone < 0.7  # the teacher's loss alone does not tell
    assert np.abs(hard_set.score(teacher, teacher, windows).difficulty_N).max() < 1e-5
