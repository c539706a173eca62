"""Is difficulty real? Would another student, a simple number, or a teacher that never read these
windows call the same ones hard; and how much of the teacher's lead on them is memory?

Jaccard = |A ∩ B| / |A ∪ B| of two hard sets. Two sets of A and B windows that have nothing to do
with one another share A·B/N of all N, which is the value by chance. R² is that of a linear
regression, judged on documents it has not seen. Legend: N windows, F features, R resamples.
"""

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from tdlib import book, choice, data, evaluate, features, hard_set, tables
from tdlib.model import Llama
from tdlib.runs import Run

MOST = 200_000  # windows of a regression; more tell no more, and take memory
FOLDS = 10
RIDGE = 10.0  # windows' worth of "nothing matters": keeps few windows from being learnt by heart
FEW = 5  # documents; sources with fewer in either split count together, or they had no interval
RESAMPLES = 1000  # of an interval
LISTED = 30  # sources, the largest, that a regression knows by name
AT_ONCE = 100  # resamples; a large corpus has 100,000 documents


# --- numbers


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


def explained(y_N: np.ndarray, x_NF: np.ndarray, document_N: np.ndarray, seed: int = 0) -> float:
    """R² of a linear regression, each window predicted by one that saw none of its document; 0 or
    less where the features say nothing."""
    known_N = np.isfinite(y_N)
    y, x, document = y_N[known_N].astype(np.float64), x_NF[known_N], document_N[known_N]
    x = x[:, x.std(0) > 0]
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float64)
    _, document = np.unique(document, return_inverse=True)
    fold = (np.random.default_rng(seed).permutation(document.max() + 1) % FOLDS)[document]
    error = total = 0.0
    for k in np.unique(fold):
        seen, kept = fold != k, fold == k
        if not seen.any():
            continue
        # about the mean of what is seen: a source that is only in what is kept gets no weight
        x_mean, y_mean = x[seen].mean(0), y[seen].mean()
        about = x[seen] - x_mean
        gram = about.T @ about + RIDGE * np.eye(x.shape[1])
        weights = np.linalg.solve(gram, about.T @ (y[seen] - y_mean))
        error += ((y[kept] - y_mean - (x[kept] - x_mean) @ weights) ** 2).sum()
        total += ((y[kept] - y_mean) ** 2).sum()
    return float(1 - error / total) if total else float("nan")


def design(tokens: data.Tokens, found: features.Features, rows: np.ndarray) -> np.ndarray:
    """The features of some windows as numbers, float32 (n, F)."""
    columns = [found.rare_N, found.unigram_N]
    columns += [found.foreign_N, found.characters_N] if tokens.tokenizer else []
    columns = [x[rows].astype(np.float32) for x in columns]
    columns += [(found.junk_N[rows] & flag) > 0 for flag in features.JUNK]
    for name, (_, group_N) in features.cuts(tokens, found).items():
        if name in ("source", "place in the corpus"):
            groups = np.argsort(-np.bincount(group_N), kind="stable")[:LISTED]
            columns += [group_N[rows] == group for group in groups]
    return np.column_stack(columns).astype(np.float32)


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
    both = np.intersect1d(*(sources[s][known[s]].astype(str) for s in losses))
    few = [
        source
        for source in both
        if min(len(np.unique(documents[s][0][known[s] & (sources[s] == source)])) for s in losses)
        < FEW
    ]
    for s in losses:
        sources[s][np.isin(sources[s].astype(str), few)] = "others"
    both = {*both} - {*few} | ({"others"} if few else set())
    gap_K, gap_RK, windows = 0, 0, 0
    for source in sorted(both):
        means, drawn = {}, {}
        for s, loss_KN in losses.items():
            chosen_N = known[s] & (sources[s] == source)
            if not chosen_N.any():  # read in one split alone
                break
            means[s] = loss_KN[:, chosen_N].mean(1, dtype=np.float64)
            part = (loss_KN[:, chosen_N], documents[s][0][chosen_N])
            drawn[s] = np.concatenate([evaluate.resampled_means(*part, AT_ONCE, seed)
                                       for seed in range(-(-resamples // AT_ONCE))])  # fmt: skip
        if len(means) == 2:
            count = chosen_N.sum()
            gap_K = gap_K + count * (means["val"] - means["train"])
            gap_RK = gap_RK + count * (drawn["val"] - drawn["train"])
            windows += count
    if not windows:
        return []
    spans = [evaluate.interval(gap_R / windows) for gap_R in np.transpose(gap_RK)]
    return [{"name": name, "gap": float(gap / windows), "low": low, "high": high}
            for name, gap, (low, high) in zip(train, gap_K, spans, strict=True)]  # fmt: skip


# --- of a run of 02


def fold_of(this: Run, name: str) -> str:
    """The fold of documents that a model was trained without."""
    for result in book.results_of(this).values():
        if name in result["models"] and result["parameters"].get("left_out"):
            return result["parameters"]["left_out"]
    raise ValueError(
        f"unseen_teacher = {name!r}: no results file of {this.out} trained it without a fold: make "
        'it by 01 with left_out: "1/10", or give ""'
    )


def other_scores(
    this: Run, tokens: data.Tokens, scores: hard_set.Scores
) -> dict[str, hard_set.Scores]:
    """Further students, and a teacher that never saw a fold, on the windows that 02 scored (of
    which the last one, only its fold): name → its loss beside that of 02's teacher."""
    p = this.parameters
    asked = dict.fromkeys(p["compare"].split())
    asked |= (
        {p["unseen_teacher"]: fold_of(this, p["unseen_teacher"])} if p["unseen_teacher"] else {}
    )
    found = {}
    for name, left_out in asked.items():
        known_N = np.isfinite(scores.difficulty_N)
        known_N &= tokens.fold(left_out) if left_out else True
        path = this.path("scores", f"{this.run}-{name}.npy")
        this.once(
            f"scored {name}", _score, this, name, tokens, scores, np.flatnonzero(known_N), path
        )
        found[name] = choice.load_scores(path)
    return found


def _score(this: Run, name: str, tokens, scores, rows: np.ndarray, path) -> None:
    net = Llama.load(this.path("models", name), this.device)
    with choice.new_scores(path, len(tokens.train)) as loss_2N:
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
    others = other_scores(this, tokens, scores)
    p, base = this.parameters, this.parameters["base"]
    in_N = found.junk_N == 0 if p["leave_out_junk"] else np.ones(len(found.junk_N), bool)
    own_N = np.where(in_N, scores.difficulty_N, np.nan)
    share = max(1, hard_N.sum()) / np.isfinite(own_N).sum()
    rows = []
    for name, other in others.items():
        if name != p["unseen_teacher"]:
            better = float((other.difficulty_N[np.isfinite(other.difficulty_N)] < 0).mean())
            rows.append({"with": name, "student_better": better})
            rows[-1] |= agreement(own_N, other.difficulty_N, share)
    rows.append({"with": "teacher loss alone"} | agreement(own_N, scores.teacher_loss_N, share))
    if tokens.tokenizer:
        short_N = -found.characters_N.astype(np.float32)
        rows.append({"with": "shortness of the text"} | agreement(own_N, short_N, share))
    if unseen := others.get(p["unseen_teacher"]):
        by_unseen_N = scores.student_loss_N - unseen.student_loss_N
        rows.append({"with": f"a teacher that never read them, {p['unseen_teacher']}"}
                    | agreement(own_N, by_unseen_N, share))  # fmt: skip
    document_N, _ = tokens.documents("train")
    some = np.flatnonzero(np.isfinite(own_N))
    some = some[np.unique(np.linspace(0, len(some) - 1, MOST).astype(int))]
    x_NF, of_N = design(tokens, found, some), document_N[some]
    told = {"difficulty": scores.difficulty_N, f"{base}'s loss": scores.student_loss_N}
    result = {
        "rows": rows,
        "r2": {name: explained(y_N[some], x_NF, of_N) for name, y_N in told.items()},
        "memory": _memory(this, tokens, scores),
        "mean": float(np.nanmean(scores.difficulty_N, dtype=np.float64)),
    }
    if unseen := others.get(p["unseen_teacher"]):
        result["unseen"] = _unseen(this, tokens, scores, unseen)
    return result


def _memory(this: Run, tokens: data.Tokens, scores: hard_set.Scores) -> list[dict]:
    base, teacher = this.parameters["base"], this.parameters["teacher"]
    train = {teacher: scores.teacher_loss_N, base: scores.student_loss_N,
             "difficulty": scores.difficulty_N}  # fmt: skip
    val = book.window_losses(this, [teacher, base])
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
    losses = book.window_losses(this, [p["unseen_teacher"], p["teacher"]])
    ahead = {"train": ahead_N[fold_N], "val": losses[p["unseen_teacher"]] - losses[p["teacher"]]}
    documents = {"train": tokens.documents("train")[0][fold_N], "val": tokens.documents("val")[0]}
    drawn = {
        s: np.concatenate([evaluate.resampled_means(x[None], documents[s], AT_ONCE, seed)
                           for seed in range(RESAMPLES // AT_ONCE)])[:, 0]
        for s, x in ahead.items()
    }  # fmt: skip
    low, high = evaluate.interval(drawn["train"] - drawn["val"])
    fold, val = map(hard_set.known_mean, ahead.values())
    return {"fold": fold, "val": val, "extra": fold - val, "low": low, "high": high}


# --- for a reader


def table(result: dict) -> pd.DataFrame:
    """One row a comparison."""
    return pd.DataFrame([
        {
            "the same windows, judged by": row["with"], "windows": f"{row['windows']:,}",
            "hard by both (Jaccard)": f"{row['jaccard']:.3f}", "by chance": f"{row['chance']:.3f}",
            "rank correlation": tables.number(row["rank"], "+.3f"),
            "better than its teacher on": f"{row['student_better']:.1%}"
            if "student_better" in row else "–",
        }
        for row in result["rows"]
    ])  # fmt: skip


def in_words(result: dict, base: str, teacher: str) -> str:
    """What the table says, what simple features predict, and what is memory, in one paragraph."""
    said = []
    for row in result["rows"]:
        expected = 2 * row["chance"] / (1 + row["chance"])
        both = 2 * row["jaccard"] / (1 + row["jaccard"])  # of as many hard windows each
        said.append(f"{both:.0%} by {row['with']} ({expected:.0%} would be by chance)")
    text = f"Of the windows that are hard for {base}, so many are hard too: {'; '.join(said)}. "
    own, loss = (tables.number(r2, ".0%", 0.0) for r2 in result["r2"].values())
    text += (
        f"Features that need no model (junk, script, rare pieces, length, source, place) explain "
        f"{own} of difficulty, and {loss} of {base}'s own loss. "
    )
    if found := {row["name"]: row for row in result["memory"]}:
        t, b, d = (_nats(found[name]) for name in (teacher, base, "difficulty"))
        text += (
            f"Validation windows of the same sources cost the teacher {t} nats more than the "
            f"training windows it has read, and {base} {b}; so on windows "
            f"that neither has read difficulty is other by {d} nats than its mean here, "
            f"{result['mean']:+.3f}. "
        )
    if unseen := result.get("unseen"):
        text += (
            f"On a fold that it has read, the teacher is {unseen['fold']:+.3f} nats ahead of one "
            f"that has not, on validation text {unseen['val']:+.3f}: {_nats(unseen, 'extra')} "
            "of its lead there is memory. "
        )
    return text.replace("-0.", "−0.").strip()


def _nats(row: dict, name: str = "gap") -> str:
    return tables.with_interval(row[name], row["low"], row["high"])
