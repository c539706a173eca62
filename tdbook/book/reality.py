"""Is difficulty real? Would another student, a simple number, or a teacher that never read these
windows call the same ones hard; and how much of the teacher's lead on them is memory?

Jaccard = |A ∩ B| / |A ∪ B| of two hard sets. Two sets of A and B windows that have nothing to do
with one another share A·B/N of all N, which is the value by chance. Legend: N windows, K models, R
resamples.
"""

import numpy as np
import pandas as pd

from tdbook.analysis import intervals
from tdbook.analysis.features import Features
from tdbook.analysis.intervals import Interval
from tdbook.book import common, comparison
from tdbook.corpus import origins
from tdbook.runs.running import Run
from tdlib import data, hard_set
from tdlib.model import Llama

FEW = 5  # documents; sources with fewer in either split count together, or they had no interval
RESAMPLES = 1000  # of an interval
AT_ONCE = 100  # resamples; a large corpus has 100,000 documents


def agreement(one_N: np.ndarray, other_N: np.ndarray, share: float) -> dict:
    """Of windows that both know: how far their hardest shares are the same, what chance would give,
    and the rank correlation (Spearman)."""
    from scipy.stats import spearmanr  # takes a second to import

    known_N = np.isfinite(one_N) & np.isfinite(other_N)
    one, other = np.asarray(one_N[known_N]), np.asarray(other_N[known_N])
    a, b = (hard_set.select(x, share=share).windows_K for x in (one, other))
    n, same, rank = len(one), len(np.intersect1d(a, b)), float(spearmanr(one, other)[0])
    chance = len(a) * len(b) / n
    jaccard, by_chance = (both / (len(a) + len(b) - both) for both in (same, chance))
    return {"windows": n, "jaccard": jaccard, "chance": by_chance, "rank": rank}


def memory(
    losses: dict[str, dict[str, np.ndarray]], documents: dict[str, tuple], resamples: int
) -> list[dict]:
    """How much better each model is on training windows than on validation windows of the same
    sources, which count as often as they occur there: rows of name, gap, low, high, nats, with 95 %
    intervals over documents. Losses: "train" and "val" → name → (N,); `documents` of both splits as
    data.Tokens has them."""
    loss_KN = {split: np.stack(list(models.values())) for split, models in losses.items()}
    known = {split: np.isfinite(x).all(0) for split, x in loss_KN.items()}
    sources = {
        split: np.array(names, dtype=object)[of_N] for split, (of_N, names) in documents.items()
    }

    def count(source: str) -> int:
        """Its documents, in the split that has fewer."""
        at = {split: known[split] & (sources[split] == source) for split in losses}
        return min(len(np.unique(documents[split][0][at_N])) for split, at_N in at.items())

    both = {*np.intersect1d(*(sources[split][known[split]].astype(str) for split in losses))}
    few = [source for source in both if count(source) < FEW]
    for split in losses:
        sources[split][np.isin(sources[split].astype(str), few)] = "others"
    gap_K, gap_RK, windows = 0, 0, 0
    for source in sorted(both - {*few} | ({"others"} if few else set())):
        mean, draws = {}, {}
        for split, x_KN in loss_KN.items():
            at_N = known[split] & (sources[split] == source)
            mean[split] = x_KN[:, at_N].mean(1, dtype=np.float64)
            draws[split] = _draws(x_KN[:, at_N], documents[split][0][at_N], resamples)
        weight = at_N.sum()  # of the validation split, the last
        gap_K = gap_K + weight * (mean["val"] - mean["train"])
        gap_RK = gap_RK + weight * (draws["val"] - draws["train"])
        windows += weight
    rows = []
    for k, name in enumerate(losses["train"] if windows else ()):
        low, high = intervals.interval(gap_RK[:, k] / windows)
        rows.append({"name": name, "gap": float(gap_K[k] / windows), "low": low, "high": high})
    return rows


def _draws(loss_KN: np.ndarray, document_N: np.ndarray, resamples: int) -> np.ndarray:
    """intervals.resampled_means in parts, (R, K)."""
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


def scores_of(
    this: Run, name: str, tokens: data.Tokens, scores: hard_set.Scores
) -> hard_set.Scores:
    """The loss of another model on the windows that 02 scored, beside that of 02's teacher; of a
    teacher that never saw a fold, on that fold alone."""
    path, scored_N = this.path("scores", f"{this.run}-{name}.npy"), np.isfinite(scores.difficulty_N)
    if name == this.parameters["unseen_teacher"]:
        scored_N &= origins.fold(tokens, fold_of(this, name))
    rows = np.flatnonzero(scored_N)

    def score() -> None:
        net = Llama.load(this.path("models", name), this.device)
        with hard_set.new_scores(path, len(tokens.train)) as loss_2N:
            loss_2N[1] = scores.teacher_loss_N  # is known already
            done = 0
            for rows_B in tokens.train.batches(rows, max(64, len(rows) // 1000)):
                loss_2N[0, rows_B] = hard_set.window_loss(net, tokens.train, rows_B, this.device)
                this.progress(done := done + len(rows_B), len(rows), f"windows scored with {name}")

    this.once(f"scored {name}", score)
    return hard_set.load_scores(path)


def look(
    this: Run, tokens: data.Tokens, scores: hard_set.Scores, features: Features, hard_N: np.ndarray
) -> dict:
    """All that the section shows. As many windows are called hard by each as `hard_N` are; junk
    that was left out counts nowhere."""
    p = this.parameters
    names = filter(None, [*p["compare"].split(), p["unseen_teacher"]])
    others = {name: scores_of(this, name, tokens, scores) for name in dict.fromkeys(names)}
    in_N = features.junk_N == 0 if p["leave_out_junk"] else np.ones(len(features.junk_N), bool)
    own_N = np.where(in_N, scores.difficulty_N, np.nan)
    share = max(1, hard_N.sum()) / np.isfinite(own_N).sum()
    unseen = others.pop(p["unseen_teacher"], None)
    judges = {name: other.difficulty_N for name, other in others.items()}
    judges["teacher loss alone"] = scores.teacher_loss_N
    if tokens.tokenizer:
        judges["shortness of the text"] = -features.characters_N.astype(np.float32)
    if unseen:
        name = f"a teacher that never read them, {p['unseen_teacher']}"
        judges[name] = scores.student_loss_N - unseen.student_loss_N
    rows = []
    for name, x_N in judges.items():
        row = {"with": name}
        if name in others:
            row["student_better"] = float((x_N[np.isfinite(x_N)] < 0).mean())
        rows.append(row | agreement(own_N, x_N, share))
    mean = float(np.nanmean(scores.difficulty_N, dtype=np.float64))
    result = {"rows": rows, "memory": _memory(this, tokens, scores), "mean": mean}
    return result | ({"unseen": _unseen(this, tokens, scores, unseen)} if unseen else {})


def _memory(this: Run, tokens: data.Tokens, scores: hard_set.Scores) -> list[dict]:
    base, teacher = this.parameters["base"], this.parameters["teacher"]
    train = {teacher: scores.teacher_loss_N, base: scores.student_loss_N}
    losses = {"train": train, "val": comparison.window_losses(this, [teacher, base])}
    losses["train"]["difficulty"] = scores.difficulty_N
    losses["val"]["difficulty"] = losses["val"][base] - losses["val"][teacher]
    documents = {split: origins.of(tokens, split) for split in losses}
    if not {*documents["train"][1]} & {*documents["val"][1]}:  # only one split names its sources
        documents = {
            split: (of_N, ["all"] * len(names)) for split, (of_N, names) in documents.items()
        }
    return memory(losses, documents, RESAMPLES)


def _unseen(
    this: Run, tokens: data.Tokens, scores: hard_set.Scores, unseen: hard_set.Scores
) -> dict:
    """How much further the teacher is ahead of one that never read the fold, on the fold, than it
    is on validation text that neither has read."""
    ahead_N = unseen.student_loss_N - scores.teacher_loss_N
    at_N = np.isfinite(ahead_N)
    other, own = comparison.window_losses(
        this, [this.parameters["unseen_teacher"], this.parameters["teacher"]]
    ).values()
    ahead = {"train": ahead_N[at_N], "val": other - own}
    documents = {"train": origins.of(tokens, "train")[0][at_N], "val": origins.of(tokens, "val")[0]}
    drawn = {s: _draws(x[None], documents[s], RESAMPLES)[:, 0] for s, x in ahead.items()}
    low, high = intervals.interval(drawn["train"] - drawn["val"])
    fold, val = map(hard_set.known_mean, ahead.values())
    return {"fold": fold, "val": val, "extra": fold - val, "low": low, "high": high}


def table(result: dict) -> pd.DataFrame:
    """One row a comparison."""
    rows = []
    for row in result["rows"]:
        shown = {"the same windows, judged by": row["with"], "windows": f"{row['windows']:,}"}
        shown["hard by both (Jaccard)"] = f"{row['jaccard']:.3f}"
        shown["by chance"] = f"{row['chance']:.3f}"
        shown["rank correlation"] = intervals.number(row["rank"], "+.3f")
        better = intervals.number(row.get("student_better"), ".1%")
        rows.append(shown | {"better than its teacher on": better})
    return pd.DataFrame(rows)


def in_words(result: dict, base: str, teacher: str) -> str:
    """How much of the teacher's lead is memory."""
    text = ""
    if gaps := {row["name"]: Interval(*list(row.values())[1:]) for row in result["memory"]}:
        lead, change = result["mean"], gaps["difficulty"]
        text = (
            f"Validation windows of the same sources cost the teacher {gaps[teacher]} nats more "
            f"than the training windows it has read, and {base} {gaps[base]}. So on unread text "
            f"difficulty goes from {lead:+.3f} to {lead + change.value:+.3f} nats, a change of "
            f"{change}. "
        )
        if 0 < -change.value < lead:
            text += f"{-change.value / lead:.0%} of it is memory of the training text. "
    if unseen := result.get("unseen"):
        extra = Interval(unseen["extra"], unseen["low"], unseen["high"])
        text += (
            f"On a fold that it has read, the teacher is {unseen['fold']:+.3f} nats ahead of one "
            f"that has not, on validation text {unseen['val']:+.3f}: {extra} of its lead there is "
            "memory. "
        )
    return text.replace("-0.", "−0.").strip()
