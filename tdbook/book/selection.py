"""The calls of 02, and of 03 where it reads 02's choice: scores, is difficulty real, the hard set.

Is what is hard for the student easy for its teacher? What does another student, or a teacher that
never read these windows, measure on them; and how much of the teacher's lead on them is memory?
Legend: N windows.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from tdbook.analysis import intervals
from tdbook.book import common, comparison
from tdbook.corpus import token_files
from tdbook.report import widgets, words
from tdbook.runs import notebooks, units
from tdbook.runs.running import Run
from tdlib import data, evaluate, hard_set
from tdlib.model import Llama

FEW = 5  # documents; sources with fewer in either split count together, or they had no interval


def score(path: Path, net: Llama, teacher, windows, device, progress, limit=0, **how) -> dict:
    """Scores the training windows into `path`: all, or, spread evenly, those of `limit` tokens.
    `how`: hard_set.score's products and compile; on a GPU what they change is told."""
    count = min(limit // windows.context or len(windows), len(windows))
    rows = evaluate.fixed_rows(windows, count) if count < len(windows) else np.arange(len(windows))
    how |= dict(rows=rows, device=device, progress=progress)
    with hard_set.new_scores(path, len(windows)) as loss_2N:
        scores = hard_set.score(net, teacher, windows, into=loss_2N, **how)
        masked = int((~windows.known_N[rows]).sum())
        known = scores.difficulty_N[~np.isnan(scores.difficulty_N)]
        if not len(known):
            raise ValueError("no training window was scored that has a target: raise token_limit")
        mean, better = float(known.mean(dtype=np.float64)), float((known < 0).mean())
        short = {"windows": len(windows), "mean": mean, "student_better": better}
        if "cuda" in device:
            few = evaluate.fixed_rows(windows, 16)
            few = few[np.isfinite(scores.difficulty_N[few])]
            exactly = dict(rows=few, device=device, products="float32")
            exact = hard_set.score(net, teacher, windows, **exactly)
            off_N = np.abs(scores.difficulty_N - exact.difficulty_N)[few]
            short["rounding"] = float(off_N.mean()) if len(few) else 0.0
    return short | {"scored": count / len(windows)} | ({"masked": masked} if masked else {})


def coloured_texts(net: Llama, teacher: Llama, tokens: data.Tokens, device) -> Callable[[int], str]:
    """Window number → its text as HTML, each piece coloured by its own difficulty."""

    def text_of(window: int) -> str:
        batch = tokens.train.batch([window], device)
        student_T, teacher_T = (hard_set.token_losses(m, *batch)[0].cpu() for m in (net, teacher))
        targets_T = batch[1][0].cpu()
        known_T = targets_T != data.IGNORE
        pieces = tokens.tokenizer.pieces(targets_T[known_T].tolist())
        return widgets.text_html(pieces, (student_T - teacher_T)[known_T].numpy())

    return text_of


def parts(difficulty_N: np.ndarray, chosen: hard_set.HardSet, junk_N: np.ndarray) -> tuple:
    """Which windows are in because they are hard, and which are the rest, below the threshold, (N,)
    bool each. Junk and the very hardest, where they were left out, are in neither."""
    chosen_N = np.isin(np.arange(len(difficulty_N)), chosen.windows_K)
    rest_N = (difficulty_N < chosen.threshold) & ~((junk_N > 0) & chosen.rule.leave_out_junk)
    return chosen_N & (difficulty_N >= chosen.threshold), rest_N


def ease(tokens: data.Tokens, scores: hard_set.Scores, chosen: hard_set.HardSet, found_N) -> dict:
    """Which `share` of windows is hard, and what share of all difficulty above 0 they hold; how
    difficulty goes with either model's loss and with length; and in words whether the teacher's
    loss on hard windows is clearly other, by its interval over documents, than on the rest."""
    difficulty_N, document_N = scores.difficulty_N, token_files.origins(tokens, "train")[0]
    by = hard_N, rest_N = parts(difficulty_N, chosen, found_N["junk"])
    others = {"teacher": scores.teacher_loss_N, "student": scores.student_loss_N}
    others["length"] = found_N["characters"]
    found = {name: remeasured(difficulty_N, x_N, *by) for name, x_N in others.items()}
    lost_N = np.fmax(difficulty_N, 0, dtype=np.float64)
    found["held"] = lost_N[hard_N].sum() / (lost_N.sum() or 1)
    found["share"] = hard_N.sum() / np.isfinite(difficulty_N).sum()
    teacher_N = np.where(hard_N | rest_N, scores.teacher_loss_N, np.nan)
    apart = intervals.beyond(teacher_N[None], hard_N[None], document_N)
    return found | {"kind": words.SENTENCES["kinds"][apart.clear]}


def reality(this: Run, tokens: data.Tokens, scores: hard_set.Scores, chosen, junk_N) -> dict:
    """What others measure on the windows that the base picked, and how much of it is memory."""
    p, unseen, own_N = this.parameters, this.parameters["unseen_teacher"], scores.difficulty_N
    judges = {p["base"]: own_N}
    for name in p["compare"].split():
        if name not in (p["base"], unseen):
            judges[name] = _loss_of(this, name, tokens, scores) - scores.teacher_loss_N
    if unseen:
        records = [r for r in common.folder_of(this).records.values() if unseen in r["models"]]
        fold = next(filter(None, (r["parameters"].get("left_out") for r in records)), "")
        if not fold:
            fault = f"unseen_teacher = {unseen!r} was not trained on a part of the text"
            raise ValueError(f'{fault}: make it by 01 with left_out: "1/10", or give ""')
        unseen_N = _loss_of(this, unseen, tokens, scores, fold)
        judges[f"a teacher that never read them, {unseen}"] = scores.student_loss_N - unseen_N
    by = parts(own_N, chosen, junk_N)
    rows = [{"with": name} | remeasured(own_N, x_N, *by) for name, x_N in judges.items()]
    losses = {p["teacher"]: scores.teacher_loss_N, p["base"]: scores.student_loss_N}
    losses = {"train": losses, "val": comparison.window_losses(this, [*losses])}
    for loss_N in losses.values():
        loss_N["difficulty"] = loss_N[p["base"]] - loss_N[p["teacher"]]
    mean = float(np.nanmean(own_N, dtype=np.float64))
    documents = {split: token_files.origins(tokens, split) for split in losses}
    return {"rows": rows, "memory": memory(losses, documents), "mean": mean}


def _loss_of(this: Run, name: str, tokens: data.Tokens, scores: hard_set.Scores, fold: str = ""):
    """The loss of another model on the windows that 02 scored, or on those of a fold, (N,)."""
    path, at_N = this.path("scores", f"{this.run}-{name}.npy"), np.isfinite(scores.difficulty_N)
    rows = np.flatnonzero(at_N & token_files.fold(tokens, fold) if fold else at_N)

    def score() -> None:
        net, done = Llama.load(this.path("models", name), this.device), 0
        with hard_set.new_scores(path, len(tokens.train)) as loss_2N:
            loss_2N[1] = scores.teacher_loss_N  # is known already
            for rows_B in tokens.train.batches(rows, max(64, len(rows) // 1000)):
                loss_2N[0, rows_B] = hard_set.window_loss(net, tokens.train, rows_B, this.device)
                this.progress(done := done + len(rows_B), len(rows), f"windows scored with {name}")

    this.once(f"scored {name}", score)
    return hard_set.load_scores(path).student_loss_N


def remeasured(one_N: np.ndarray, other_N: np.ndarray, hard_N, rest_N) -> dict:
    """Means of another measure on the windows that are hard by one and on the rest, and its rank
    correlation with one (Spearman). `shrinkage`, of another difficulty: which share of one's
    difference it does not find (regression to the mean), 0 of what is the text's, 1 of noise."""
    pair = pd.DataFrame({"hard": hard_N, "one": one_N, "other": other_N})[hard_N | rest_N].dropna()
    hard_2, rest_2 = pair.groupby("hard").mean().reindex([True, False]).to_numpy(float)
    row = {"windows": len(pair), "hard": hard_2[1], "rest": rest_2[1]}
    one, other = hard_2 - rest_2
    return row | {"shrinkage": 1 - other / one, "rank": pair.corr("spearman").at["one", "other"]}


def memory(losses: dict[str, dict], documents: dict[str, tuple]) -> list[dict]:
    """How much better each model is on training windows than on validation windows of the same
    sources, which count as often as they occur there: rows of name, gap, low, high, nats, with 95 %
    intervals over documents. Of "train" and "val", losses are name → (N,), documents their origins.
    Where the splits have no source in common, since one names none, all are of one source."""
    common = {*documents["train"][1]} & {*documents["val"][1]}
    tables, about = [], []
    for split, (of_N, names) in documents.items():
        source_N = np.array(names, dtype=str)[of_N] if common else "all"
        tables.append(pd.DataFrame(losses[split]))
        about.append(pd.DataFrame({"split": split, "source": source_N, "document": of_N}))
    loss, of = (pd.concat(parts, ignore_index=True) for parts in (tables, about))
    of = of[loss.notna().all(axis=1)]
    count = of.groupby(["source", "split"]).document.nunique().unstack().reindex(columns=[*losses])
    fewest = count.dropna().min(axis=1)  # documents of each source that is in both
    of = of[of.source.isin(fewest.index)]
    of["source"] = of.source.where(of.source.map(fewest) >= FEW, "others")
    by, unread_N = of.groupby(["split", "source"]), of.split == "val"
    each_N = of.source.map(of.source[unread_N].value_counts()) / by.document.transform("size")
    weight_N, rows = np.where(unread_N, 1, -each_N) / max(1, unread_N.sum()), []
    document_N = of.groupby(["split", "document"]).ngroup()
    for name, loss_N in loss.loc[of.index].items() if len(of) else ():
        apart_N = weight_N * (loss_N - loss_N.groupby([of.split, of.source]).transform("mean"))
        linear_N = weight_N @ loss_N + len(of) * apart_N  # its mean is the gap
        found = intervals.of_seeds(linear_N.to_numpy()[None], document_N, unread_N.to_numpy())
        rows.append(dict(zip(("name", "gap", "low", "high"), (name, *found), strict=True)))
    return rows


def what_02_counted(this: Run) -> str:
    """Whether difficulty means anything, from the record of 02, for what is built on it."""
    base, records = this.parameters["base"], common.folder_of(this).of(notebooks.HARD_SET)
    for record in records:
        if record["parameters"]["base"] == base:
            return words.difficulty(base, record["remembered"]["short"])
    return f"No record of 02 says on how many windows {base} is better than its teacher."


def replays(this: Run) -> str:
    """What reads the hard set, and so runs again once another is kept, in words."""
    again = [r for r in common.folder_of(this).of(notebooks.LORA) if "hard_set.json" in r["inputs"]]
    told = (f"{r['run']} ({units.duration(r['seconds'])})" for r in again)
    return f"`make book` then runs again: {', '.join(told)}." if again else "03 reads it."


def chosen_for_03(this: Run) -> tuple[hard_set.HardSet, str]:
    """What an adapter replays, and in words: 02's choice, or the hardest `share` of its scores."""
    p = this.parameters
    if p["share"] is None:
        path = this.path(p["hard_set"])
        return hard_set.load(path), _words_of(path)
    scores = hard_set.load_scores(this.path("scores", p["scores"]))
    chosen = hard_set.choose(scores.difficulty_N, hard_set.Rule(share=p["share"]))
    return chosen, "by `share`, not by 02: " + words.say("choice", chosen=chosen, base=p["base"])


def choice_in_force(path: Path, chosen: hard_set.HardSet) -> str:
    """Which hard set 03 will read, where it is not the one chosen here too."""
    other = not np.array_equal(hard_set.load(path).windows_K, chosen.windows_K)
    own = words.say("choice", chosen=chosen, base="the base") if other else ""
    return words.say("in_force", kept=_words_of(path), own=own)


def _words_of(path: Path) -> str:
    """How the hard set in a file was chosen: by a run's parameters, by hand …"""
    return json.loads(path.read_text(encoding="utf8")).get("words", "outside the book")
