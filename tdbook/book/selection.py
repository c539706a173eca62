"""The calls of 02, and of 03 where it reads 02's choice: scores, and the hard set in words."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tdbook.book import common
from tdbook.report import widgets, words
from tdbook.runs import notebooks
from tdbook.runs.running import Run
from tdlib import data, evaluate, hard_set
from tdlib.model import Llama


def score(
    path: Path, net: Llama, teacher, windows: data.Windows, device: str, progress, limit: int = 0
) -> dict:
    """Scores the training windows with both models into `path`: all, or, spread evenly, those of
    some `limit` tokens. Returns how many there are, what share was scored, and what was found."""
    count = min(limit // windows.context or len(windows), len(windows))
    rows = evaluate.fixed_rows(windows, count) if count < len(windows) else np.arange(len(windows))
    how = dict(rows=rows, device=device, progress=progress)
    with hard_set.new_scores(path, len(windows)) as loss_2N:
        scores = hard_set.score(net, teacher, windows, into=loss_2N, **how)
        masked = int((~windows.known_N[rows]).sum())
        known = scores.difficulty_N[~np.isnan(scores.difficulty_N)]
        if not len(known):
            raise ValueError("no training window was scored that has a target: raise token_limit")
        mean, better = known.mean(dtype=np.float64), (known < 0).mean()
        short = {"windows": len(windows), "mean": float(mean), "student_better": float(better)}
        short["scored"] = count / len(windows)
        return short | ({"masked": masked} if masked else {})


def what_02_counted(this: Run) -> str:
    """That sentence again, from the record of 02, for what is built on difficulty."""
    base, records = this.parameters["base"], common.folder_of(this).of(notebooks.HARD_SET)
    for record in records:
        if record["parameters"]["base"] == base:
            return words.difficulty(base, record["remembered"]["short"])
    return f"No record of 02 says on how many windows {base} is better than its teacher."


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


def chosen_for_03(this: Run) -> tuple[hard_set.HardSet, str]:
    """What an adapter replays, and in words: 02's choice, or the hardest `share` of its scores."""
    p = this.parameters
    if p["share"] is None:
        path = this.path(p["hard_set"])
        return hard_set.load(path), words_of(path)
    scores = hard_set.load_scores(this.path("scores", p["scores"]))
    chosen = hard_set.choose(scores.difficulty_N, hard_set.Rule(share=p["share"]))
    share, least = f"{chosen.share:.1%}", f"{chosen.threshold:.4f} nats and more"
    return chosen, f"by `share` here, not by 02: the hardest {share}, {least}"


def words_of(path: Path) -> str:
    """How the hard set in a file was chosen: by a run's parameters, by hand …"""
    return json.loads(path.read_text(encoding="utf8")).get("words", "outside the book")


def choice_in_force(path: Path, chosen: hard_set.HardSet) -> str:
    """Which hard set 03 will read, where it is not the one chosen here too."""
    if np.array_equal(hard_set.load(path).windows_K, chosen.windows_K):
        return f"In force, for 03: {words_of(path)}."
    parameters = f"{len(chosen.windows_K):,} windows, {chosen.threshold:.4f} nats and more"
    return f"**In force, for 03: {words_of(path)}.** The figures show the parameters' {parameters}."
