"""Is difficulty real? Would another student, a simple number, or a teacher that never read these
windows call the same ones hard; and how much of the teacher's lead on them is memory?

Jaccard = |A ∩ B| / |A ∪ B| of two hard sets. Two sets of A and B windows that have nothing to do
with one another share A·B/N of all N, which is the value by chance. Legend: N windows, K models, R
resamples.
"""

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from tdbook.analysis import features, intervals
from tdbook.book import common, comparison
from tdbook.runs.running import Run
from tdlib import data, hard_set
from tdlib.model import Llama

FEW = 5  # documents; sources with fewer in either split count together, or they had no interval
RESAMPLES = 1000  # of an interval
AT_ONCE = 100  # resamples; a large corpus has 100,000 documents


def agreement(one_N: np.ndarray, other_N: np.ndarray, share: float) -> dict:
    """Of windows that both know: how far their hardest shares are the same, what chance would give,
    and the rank correlation (Spearman)."""
    known_N = np.isfinite(one_N) & np.isfinite(other_N)
    one, other = np.asarray(one_N[known_N]), np.asarray(other_N[known_N])
    a, b = (hard_set.select(x, share=share).windows_K for x in (one, other))
    same, chance = len(np.intersect1d(a, b)), len(a) * len(b) / len(one)
    return {
        "windows": len(one), "jaccard": same / (len(a) + len(b) - same),
        "chance": chance / (len(a) + len(b) - chance), "rank": float(spearmanr(one, other)[0]),
    }  # fmt: skip


def memory(
    train: dict[str, np.ndarray], val: dict[str, np.ndarray], documents: dict[str, tuple],
    resamples: int,
) -> list[dict]:  # fmt: skip
    """How much better each model is on training windows than on validation windows of the same
    sources, which count as often as they occur there: rows of name, gap, low, high, nats, with 95 %
    intervals over documents. {name: (N,)} of both splits; `documents` as data.Tokens has them."""
    losses = {"train": np.stack(list(train.values())), "val": np.stack(list(val.values()))}
    known = {s: np.isfinite(x).all(0) for s, x in losses.items()}
    sources = {s: np.array(names, dtype=object)[of_N] for s, (of_N, names) in documents.items()}

    def count(source: str) -> int:
        at = {s: known[s] & (sources[s] == source) for s in losses}
        return min(len(np.unique(documents[s][0][at_N])) for s, at_N in at.items())

    both = {*np.intersect1d(*(sources[s][known[s]].astype(str) for s in losses))}
    few = [source for source in both if count(source) < FEW]
    for s in losses:
        sources[s][np.isin(sources[s].astype(str), few)] = "others"
    gap_K, gap_RK, windows = 0, 0, 0
    for source in sorted(both - {*few} | {"others"} if few else both):
        mean, draws = {}, {}
        for s, loss_KN in losses.items():
            at_N = known[s] & (sources[s] == source)
            mean[s] = loss_KN[:, at_N].mean(1, dtype=np.float64)
            draws[s] = _draws(loss_KN[:, at_N], documents[s][0][at_N], resamples)
        weight = at_N.sum()  # of the validation split, the last
        gap_K = gap_K + weight * (mean["val"] - mean["train"])
        gap_RK = gap_RK + weight * (draws["val"] - draws["train"])
        windows += weight
    if not windows:
        return []
    spans = [intervals.interval(gap_R / windows) for gap_R in np.transpose(gap_RK)]
    return [{"name": name, "gap": float(gap / windows), "low": low, "high": high}
            for name, gap, (low, high) in zip(train, gap_K, spans, strict=True)]  # fmt: skip


def _draws(loss_KN: np.ndarray, document_N: np.ndarray, resamples: int) -> np.ndarray:
    """evaluate.resampled_means in parts, (R, K)."""
    seeds = range(-(-resamples // AT_ONCE))
    parts = [intervals.resampled_means(loss_KN, document_N, AT_ONCE, seed) for seed in seeds]
    return np.concatenate(parts)


def fold_of(this: Run, name: str) -> str:
    """The fold of documents that a model was trained without."""
    for record in common.folder_of(this).records.values():
        if name in record["models"] and record["parameters"].get("left_out"):
            return record["parameters"]["left_out"]
    raise ValueError(
        f"unseen_teacher = {name!r}: no results file of {this.out} trained it without a fold: make "
        'it by 01 with left_out: "1/10", or give ""'
    )


def other_scores(
    this: Run, tokens: data.Tokens, scores: hard_set.Scores
) -> dict[str, hard_set.Scores]:
    """Name → its loss on the windows that 02 scored, beside that of 02's teacher: of further
    students, and of a teacher that never saw a fold, on that fold alone."""
    unseen, found = this.parameters["unseen_teacher"], {}
    names = [*this.parameters["compare"].split(), unseen]
    for name in dict.fromkeys(filter(None, names)):
        known_N = np.isfinite(scores.difficulty_N)
        known_N &= tokens.fold(fold_of(this, name)) if name == unseen else True
        path, rows = this.path("scores", f"{this.run}-{name}.npy"), np.flatnonzero(known_N)
        this.once(f"scored {name}", _score, this, name, tokens, scores, rows, path)
        found[name] = hard_set.load_scores(path)
    return found


def _score(this: Run, name: str, tokens, scores, rows: np.ndarray, path) -> None:
    net = Llama.load(this.path("models", name), this.device)
    with hard_set.new_scores(path, len(tokens.train)) as loss_2N:
        loss_2N[1] = scores.teacher_loss_N  # is known already
        done = 0
        for rows_B in tokens.train.batches(rows, max(64, len(rows) // 1000)):
            loss_2N[0, rows_B] = hard_set.window_loss(net, tokens.train, rows_B, this.device)
            this.progress(done := done + len(rows_B), len(rows), f"windows scored with {name}")


def look(
    this: Run, tokens: data.Tokens, scores: hard_set.Scores, found: features.Features,
    hard_N: np.ndarray,
) -> dict:  # fmt: skip
    """All that the section shows. As many windows are called hard by each as `hard_N` are; junk
    that was left out counts nowhere."""
    p, others = this.parameters, other_scores(this, tokens, scores)
    in_N = found.junk_N == 0 if p["leave_out_junk"] else np.ones(len(found.junk_N), bool)
    own_N = np.where(in_N, scores.difficulty_N, np.nan)
    share, rows = max(1, hard_N.sum()) / np.isfinite(own_N).sum(), []

    def row(name: str, other_N: np.ndarray, **more: float) -> None:
        rows.append({"with": name} | more | agreement(own_N, other_N, share))

    unseen = others.pop(p["unseen_teacher"], None)
    for name, other in others.items():
        d_N = other.difficulty_N
        row(name, d_N, student_better=float((d_N[np.isfinite(d_N)] < 0).mean()))
    row("teacher loss alone", scores.teacher_loss_N)
    if tokens.tokenizer:
        row("shortness of the text", -found.characters_N.astype(np.float32))
    if unseen:
        by_unseen_N = scores.student_loss_N - unseen.student_loss_N
        row(f"a teacher that never read them, {p['unseen_teacher']}", by_unseen_N)
    mean = float(np.nanmean(scores.difficulty_N, dtype=np.float64))
    result = {"rows": rows, "memory": _memory(this, tokens, scores), "mean": mean}
    return result | ({"unseen": _unseen(this, tokens, scores, unseen)} if unseen else {})


def _memory(this: Run, tokens: data.Tokens, scores: hard_set.Scores) -> list[dict]:
    base, teacher = this.parameters["base"], this.parameters["teacher"]
    train = {teacher: scores.teacher_loss_N, base: scores.student_loss_N,
             "difficulty": scores.difficulty_N}  # fmt: skip
    val = comparison.window_losses(this, [teacher, base])
    val["difficulty"] = val[base] - val[teacher]
    return memory(train, val, {s: _named(tokens, s) for s in ("train", "val")}, RESAMPLES)


def _named(tokens: data.Tokens, split: str) -> tuple[np.ndarray, list[str]]:
    """Documents; where only one split names its sources, both are taken as a whole."""
    document_N, sources = tokens.documents(split)
    both = {s: {*tokens.documents(s)[1]} for s in ("train", "val")}
    return document_N, sources if both["train"] & both["val"] else ["all"] * len(sources)


def _unseen(this: Run, tokens, scores: hard_set.Scores, unseen: hard_set.Scores) -> dict:
    """How much further the teacher is ahead of one that never read the fold, on the fold, than it
    is on validation text that neither has read."""
    p = this.parameters
    ahead_N = unseen.student_loss_N - scores.teacher_loss_N
    fold_N = np.isfinite(ahead_N)
    losses = comparison.window_losses(this, [p["unseen_teacher"], p["teacher"]])
    ahead = {"train": ahead_N[fold_N], "val": losses[p["unseen_teacher"]] - losses[p["teacher"]]}
    documents = {"train": tokens.documents("train")[0][fold_N], "val": tokens.documents("val")[0]}
    drawn = {s: _draws(x[None], documents[s], RESAMPLES)[:, 0] for s, x in ahead.items()}
    low, high = intervals.interval(drawn["train"] - drawn["val"])
    fold, val = map(hard_set.known_mean, ahead.values())
    return {"fold": fold, "val": val, "extra": fold - val, "low": low, "high": high}


def table(result: dict) -> pd.DataFrame:
    """One row a comparison."""
    return pd.DataFrame([
        {
            "the same windows, judged by": row["with"], "windows": f"{row['windows']:,}",
            "hard by both (Jaccard)": f"{row['jaccard']:.3f}", "by chance": f"{row['chance']:.3f}",
            "rank correlation": intervals.number(row["rank"], "+.3f"),
            "better than its teacher on": f"{row['student_better']:.1%}"
            if "student_better" in row else "–",
        }
        for row in result["rows"]
    ])  # fmt: skip


def in_words(result: dict, base: str, teacher: str) -> str:
    """How much of the teacher's lead is memory."""
    text = ""
    if gaps := {row["name"]: row for row in result["memory"]}:
        here, change = result["mean"], gaps["difficulty"]
        t, b, d = (_nats(gaps[name]) for name in (teacher, base, "difficulty"))
        text = (
            f"Validation windows of the same sources cost the teacher {t} nats more than the "
            f"training windows it has read, and {base} {b}. So on unread text difficulty goes from "
            f"{here:+.3f} to {here + change['gap']:+.3f} nats, a change of {d}. "
        )
        if 0 < -change["gap"] < here:
            text += f"{-change['gap'] / here:.0%} of it is memory of the training text. "
    if unseen := result.get("unseen"):
        text += (
            f"On a fold that it has read, the teacher is {unseen['fold']:+.3f} nats ahead of one "
            f"that has not, on validation text {unseen['val']:+.3f}: {_nats(unseen, 'extra')} "
            "of its lead there is memory. "
        )
    return text.replace("-0.", "−0.").strip()


def _nats(row: dict, name: str = "gap") -> str:
    return intervals.with_interval(row[name], row["low"], row["high"])
