"""Is difficulty real? Would another student, a simple number, or a teacher that never read these
windows call the same ones hard; and how much of the teacher's lead on them is memory?

Jaccard = |A ∩ B| / |A ∪ B| of two hard sets; by chance, sets of A and B windows share A·B/N of N.
Legend: N windows, K models, R resamples.
"""

import numpy as np
import pandas as pd

from tdbook.analysis import intervals
from tdbook.analysis.intervals import Interval
from tdbook.book import common, comparison
from tdbook.corpus import origins
from tdbook.runs.running import Run
from tdlib import data, hard_set
from tdlib.model import Llama

FEW = 5  # documents; sources with fewer in either split count together, or they had no interval
RESAMPLES = 1000  # of an interval
AT_ONCE = 100  # resamples; a large corpus has 100,000 documents
FORMS = dict(windows=",d", jaccard=".3f", chance=".3f", rank="+.3f", student_better=".1%")
COLUMNS = "judged by, windows, hard by both (Jaccard), by chance, rank correlation, "
COLUMNS += "better than its teacher on"


def look(
    this: Run, tokens: data.Tokens, scores: hard_set.Scores, found_N: np.ndarray, hard_N: np.ndarray
) -> dict:
    """All that the section shows. Each calls as many windows hard as `hard_N` are; junk (in
    `found_N`, features) that was left out counts nowhere."""
    p, unseen, judges = this.parameters, this.parameters["unseen_teacher"], {}
    compare = [name for name in dict.fromkeys(p["compare"].split()) if name != unseen]
    own_N = np.where((found_N["junk"] > 0) & p["leave_out_junk"], np.nan, scores.difficulty_N)
    share = max(1, hard_N.sum()) / np.isfinite(own_N).sum()
    for name in compare:
        judges[name] = loss_of(this, name, tokens, scores) - scores.teacher_loss_N
    judges["teacher loss alone"] = scores.teacher_loss_N
    if found_N["characters"].any():
        judges["shortness of the text"] = -found_N["characters"].astype(np.float32)
    if unseen:
        unseen_N = loss_of(this, unseen, tokens, scores, fold_without(this, unseen))
        judges[f"a teacher that never read them, {unseen}"] = scores.student_loss_N - unseen_N
    rows = [{"with": name} | agreement(own_N, x_N, share) for name, x_N in judges.items()]
    for row in rows[: len(compare)]:
        x_N = judges[row["with"]]
        row["student_better"] = float((x_N[np.isfinite(x_N)] < 0).mean())
    losses, documents = _both_splits(this, tokens, scores)
    mean = float(np.nanmean(scores.difficulty_N, dtype=np.float64))
    return {"rows": rows, "memory": memory(losses, documents, RESAMPLES), "mean": mean}


def loss_of(this: Run, name: str, tokens: data.Tokens, scores: hard_set.Scores, fold: str = ""):
    """The loss of another model on the windows that 02 scored, or on those of a fold, (N,)."""
    path, at_N = this.path("scores", f"{this.run}-{name}.npy"), np.isfinite(scores.difficulty_N)
    rows = np.flatnonzero(at_N & origins.fold(tokens, fold) if fold else at_N)

    def score() -> None:
        net, done = Llama.load(this.path("models", name), this.device), 0
        with hard_set.new_scores(path, len(tokens.train)) as loss_2N:
            loss_2N[1] = scores.teacher_loss_N  # is known already
            for rows_B in tokens.train.batches(rows, max(64, len(rows) // 1000)):
                loss_2N[0, rows_B] = hard_set.window_loss(net, tokens.train, rows_B, this.device)
                this.progress(done := done + len(rows_B), len(rows), f"windows scored with {name}")

    this.once(f"scored {name}", score)
    return hard_set.load_scores(path).student_loss_N


def fold_without(this: Run, name: str) -> str:
    """The fold of documents that a model was trained without."""
    for record in common.folder_of(this).makers(name):
        if fold := record["parameters"].get("left_out"):
            return fold
    fault = f"unseen_teacher = {name!r} was trained on all of the text"
    raise ValueError(f'{fault}: make it by 01 with left_out: "1/10", or give ""')


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


def _both_splits(this: Run, tokens: data.Tokens, scores: hard_set.Scores) -> tuple[dict, dict]:
    """What `memory` compares: losses of teacher and base, their difficulty, and documents."""
    base, teacher = this.parameters["base"], this.parameters["teacher"]
    train = {teacher: scores.teacher_loss_N, base: scores.student_loss_N}
    losses = {"train": train, "val": comparison.window_losses(this, [teacher, base])}
    for loss_N in losses.values():
        loss_N["difficulty"] = loss_N[base] - loss_N[teacher]
    documents = {split: origins.of(tokens, split) for split in losses}
    if not {*documents["train"][1]} & {*documents["val"][1]}:  # only one split names its sources
        documents = {split: (of_N, ["all"] * len(x)) for split, (of_N, x) in documents.items()}
    return losses, documents


def memory(losses: dict[str, dict], documents: dict[str, tuple], resamples: int) -> list[dict]:
    """How much better each model is on training windows than on validation windows of the same
    sources, which count as often as they occur there: rows of name, gap, low, high, nats, with 95 %
    intervals over documents. Of "train" and "val", losses are name → (N,), documents origins.of."""
    loss_KN, document_N, source_N = {}, {}, {}
    for split, models in losses.items():
        x_KN, (of_N, names) = np.stack(list(models.values())), documents[split]
        known_N = np.isfinite(x_KN).all(0)
        loss_KN[split], document_N[split] = x_KN[:, known_N], of_N[known_N]
        source_N[split] = pd.Series(names, dtype=object)[document_N[split]].to_numpy()
    count = {s: pd.Series(document_N[s]).groupby(source_N[s]).nunique() for s in losses}
    fewest = pd.DataFrame(count).dropna().min(axis=1)  # documents of each source in both splits
    few = fewest.index[fewest < FEW]
    sources = {*fewest.index.difference(few), *["others"] * bool(len(few))}
    gap_K, gap_RK, windows = 0, 0, 0
    for source in sorted(sources):
        mean, draws = {}, {}
        for split, x_KN in loss_KN.items():
            named_N = np.where(np.isin(source_N[split].astype(str), few), "others", source_N[split])
            at_N = named_N == source
            mean[split] = x_KN[:, at_N].mean(1, dtype=np.float64)
            draws[split] = _draws(x_KN[:, at_N], document_N[split][at_N], resamples)
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


def table(result: dict) -> pd.DataFrame:
    """One row a comparison."""
    rows = []
    for row in result["rows"]:
        numbers = [intervals.number(row.get(key), form) for key, form in FORMS.items()]
        rows.append([row["with"], *numbers])
    return pd.DataFrame(rows, columns=COLUMNS.split(", "))


def in_words(result: dict, base: str, teacher: str) -> str:
    """How much of the teacher's lead is memory."""
    gaps = {row["name"]: Interval(row["gap"], row["low"], row["high"]) for row in result["memory"]}
    if not gaps:
        return ""
    lead, change = result["mean"], gaps["difficulty"]
    text = (
        f"Validation windows of the same sources cost the teacher {gaps[teacher]} nats more "
        f"than the training windows it has read, and {base} {gaps[base]}. So on unread text "
        f"difficulty goes from {lead:+.3f} to {lead + change.value:+.3f} nats: {change}."
    )
    if 0 < -change.value < lead:
        text += f" {-change.value / lead:.0%} of it is memory of the training text."
    return text.replace("-0.", "−0.")
