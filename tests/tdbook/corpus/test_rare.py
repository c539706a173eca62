"""What a teacher knows and its student does not is what the hard set finds."""

import copy

import numpy as np
import torch
from scipy import stats

from tdlib import data, hard_set
from tests.helpers import tiny_model

T, WINDOWS, RARE = 16, 400, range(90, 97)  # tokens that the student does not know


def spoken(teacher) -> data.Windows:
    """Text that the teacher speaks; in every tenth window, at some place, a rare token."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    ids_NT = torch.from_numpy(rng.integers(0, RARE.start, (WINDOWS, 1)))
    place_N = np.where(np.arange(WINDOWS) % 10 == 0, rng.integers(1, T // 2, WINDOWS), -1)
    for place in range(1, T):
        logits_NV = teacher(ids_NT)[:, -1]
        logits_NV[:, RARE.start :] = -torch.inf
        new_N = torch.multinomial(logits_NV.softmax(1), 1).squeeze(1)
        rare_N = torch.from_numpy(rng.choice(RARE, WINDOWS))
        new_N = torch.where(torch.from_numpy(place_N == place), rare_N, new_N)
        ids_NT = torch.cat([ids_NT, new_N[:, None]], 1)
    return data.Windows(np.append(ids_NT.numpy(), 0).astype("<u4"), T)


def test_the_hard_set_is_the_windows_of_what_the_student_does_not_know():
    teacher = tiny_model(seed=3, tied=False).requires_grad_(False)
    student, windows = copy.deepcopy(teacher), spoken(teacher)
    torch.manual_seed(1)
    rows = student.embed_tokens.weight[RARE.start : RARE.stop]
    rows.copy_(torch.randn_like(rows) * rows.std())
    scores = hard_set.score(student, teacher, windows)
    holds_N = np.arange(WINDOWS) % 10 == 0
    chosen = hard_set.select(scores.difficulty_N, share=0.08)
    assert len(chosen.windows_K) == 32 and holds_N[chosen.windows_K].all()
    # the chance that a window with a rare token scores above one without; 0.5 is chance
    pairs = ((s[holds_N], s[~holds_N]) for s in (scores.difficulty_N, scores.teacher_loss_N))
    ours, alone = (stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)) for a, b in pairs)
    assert ours > 0.8 and alone < 0.7  # the teacher's loss alone does not tell
    assert np.abs(hard_set.score(teacher, teacher, windows).difficulty_N).max() < 1e-5
