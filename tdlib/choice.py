"""Scores and the choice of a hard set, as files: scores/<run>.npy and hard_set.json; and what a
replay makes of it.

The scores are one float32 array, (2, N): loss of student and teacher on every training window, in
nats per token, NaN where a window was not scored. It is mapped, never read whole: N can be
millions.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from tdlib import files, hard_set, hashes
from tdlib.hard_set import HardSet, Scores

# what makes a choice beside its threshold, under the names of 02's parameters
RULE = {"clip": 0.0, "leave_out_junk": False, "easy_share": 0.0, "token_share": 1.0, "seed": 1}


@contextlib.contextmanager
def new_scores(path: Path, windows: int) -> Iterator[np.ndarray]:
    """An array for the losses of so many windows, NaN at first, to be filled in place; the file is
    there, whole, only once that has gone well."""
    with files.replacing(path) as beside:
        loss_2N = np.lib.format.open_memmap(beside, "w+", np.float32, (2, windows))
        loss_2N[:] = np.nan
        yield loss_2N
        loss_2N.flush()


def load_scores(path: Path) -> Scores:
    """What 02 scored, as a memory map. ValueError where the file is something else, or holds a loss
    that is not finite: of the student beside none of the teacher, or infinite."""
    try:
        loss_2N = np.load(path, mmap_mode="r")
        student_N, teacher_N = loss_2N
        if np.isinf(loss_2N).any() or np.isfinite(student_N)[np.isnan(teacher_N)].any():
            raise ValueError("a loss is not finite")
        return Scores(student_N, teacher_N)
    except (ValueError, TypeError, EOFError) as error:
        raise ValueError(f"{path} holds no scores ({error}): run 02_hard_set again") from None


def in_short(scores: Scores) -> dict:
    """How many windows were scored, their mean difficulty, and on which share of them the student
    is better than its teacher."""
    difficulty_N = scores.difficulty_N
    known_N = difficulty_N[~np.isnan(difficulty_N)]
    if not len(known_N):
        raise ValueError("no training window was scored that has a target: raise token_limit")
    return {
        "windows": len(difficulty_N),
        "mean": float(known_N.mean(dtype=np.float64)),
        "student_better": float((known_N < 0).mean()),
    }


def replayed(
    chosen: HardSet, windows: str, count: int, seed: int, difficulty_N: np.ndarray | None = None
) -> np.ndarray:
    """What a replay trains on: "hard", the chosen windows; as many of all `count`, "random" or, by
    their difficulty, "easiest"; or "all". ValueError: another word, or too few with a difficulty.
    """
    k = len(chosen.windows_K)
    match windows:
        case "hard":
            return chosen.windows_K
        case "random":
            return np.sort(np.random.default_rng(seed).choice(count, k, replace=False))
        case "all":
            return np.arange(count)
        case "easiest" if difficulty_N is not None and np.isfinite(difficulty_N).sum() >= k:
            return np.sort(np.argsort(difficulty_N, kind="stable")[:k])  # NaN comes last
        case "easiest":
            raise ValueError(f"windows 'easiest' needs {k:,} windows that were scored")
    raise ValueError(f"windows {windows!r} must be 'hard', 'random', 'easiest' or 'all'")


def made(difficulty_N: np.ndarray, p: dict, junk_N: np.ndarray | None = None) -> HardSet:
    """The choice by a run's parameters, of which `share` is of the windows that were scored and are
    not left out; `leave_out_junk` leaves out those of `junk_N` (features) that are not 0."""
    rule, scored_N = RULE | p, np.isfinite(difficulty_N)
    left_out_N = junk_N > 0 if rule["leave_out_junk"] else np.zeros(len(difficulty_N), bool)
    by = {"left_out_N": left_out_N, "threshold": rule.get("threshold")}
    if by["threshold"] is None:
        by["share"] = rule["share"] * (0 if left_out_N.all() else scored_N[~left_out_N].mean())
    by |= {name: rule[name] for name in ("clip", "easy_share", "seed")}
    chosen = hard_set.select(difficulty_N, **by)
    share = len(chosen.windows_K) / int(scored_N.sum())
    return replace(chosen, share=share, token_share=rule["token_share"])


def hard(chosen: HardSet, difficulty_N: np.ndarray) -> np.ndarray:
    """Which windows are in because they are hard, (N,) bool; easy ones mixed in are not."""
    hard_N = np.zeros(len(difficulty_N), bool)
    hard_N[chosen.windows_K] = True
    return hard_N & (difficulty_N >= chosen.threshold)


def in_words(chosen: HardSet, p: dict) -> str:
    """What was chosen, for hard_set.json: of the hardest, what was left out and what joined."""
    k = len(chosen.windows_K)
    share = chosen.share * (k - chosen.easy) / max(1, k)
    words = [f"the hardest {share:.1%} of {p['base']}'s windows"]
    words += [f"{chosen.threshold:.4f} nats and more"]
    words += [f"less the very hardest {p['clip']:.1%}"] if p["clip"] else []
    words += ["without junk"] if p["leave_out_junk"] else []
    words += [f"and {chosen.easy:,} easy ones"] if chosen.easy else []
    tokens = f"; of each the hardest {chosen.token_share:.0%} of its tokens"
    return ", ".join(words) + (tokens if chosen.token_share < 1 else "")


def lost(difficulty_N: np.ndarray) -> np.ndarray:
    """What the student lost on each window, (N,) float64: its difficulty; 0 where it is not behind,
    or where that is not known."""
    return np.fmax(difficulty_N, 0, dtype=np.float64)


def keep(chosen: HardSet, path: Path, words: str, p: dict | None = None) -> None:
    """hard_set.json, whole or not at all, with the choice in words and the parameters that make it
    again. A run leaves one that was chosen by hand."""
    if re.match(hashes.BY_A_RUN, words) and hashes.by_hand(path):
        print(f"{path.name} was chosen by hand and stays: REDO=02_hard_set replaces it")
        return
    content = asdict(chosen) | {"windows_K": chosen.windows_K.tolist(), "words": words}
    own = {name: value for name, value in (p or {}).items() if name in RULE}
    content["rule"] = {"threshold": chosen.threshold} | RULE | own
    files.write_whole(path, json.dumps(content, ensure_ascii=False).encode())


def load(path: Path) -> HardSet:
    """The kept choice. ValueError where the file is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf8"))
        windows_K = np.asarray(content["windows_K"], dtype=np.int64)
        threshold, share = (float(content[name]) for name in ("threshold", "share"))
        token_share, easy = float(content.get("token_share", 1.0)), int(content.get("easy", 0))
        return HardSet(windows_K, threshold, share, token_share, easy)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no hard set ({error!r}): run 02_hard_set again after deleting it"
        ) from None


def rule_of(path: Path) -> dict:
    """The parameters that make the kept choice again; of one made elsewhere, its threshold."""
    content = hashes.chosen(path) or {"threshold": load(path).threshold}
    return {"threshold": float(content["threshold"])} | RULE | content.get("rule", {})
