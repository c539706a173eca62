"""The calls of 02, and of 03 where it reads 02's choice: scores, and the hard set in words."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tdbook.book import common
from tdbook.report import widgets
from tdbook.runs.running import Run
from tdlib import data, evaluate, hard_set
from tdlib.model import Llama


def score(
    path: Path, net: Llama, teacher, windows: data.Windows, device: str, progress, limit: int = 0
) -> dict:
    """Scores the training windows with both models into `path`: all, or, spread evenly, those of
    some `limit` tokens. Returns `hard_set.in_short`, and the share of the windows scored."""
    count = min(limit // windows.context or len(windows), len(windows))
    rows = evaluate.fixed_rows(windows, count) if count < len(windows) else np.arange(len(windows))
    how = dict(rows=rows, device=device, progress=progress)
    with hard_set.new_scores(path, len(windows)) as loss_2N:
        scores = hard_set.score(net, teacher, windows, into=loss_2N, **how)
        masked = int((~windows.known_N[rows]).sum())
        short = hard_set.in_short(scores) | {"scored": count / len(windows)}
        return short | ({"masked": masked} if masked else {})


def does_difficulty_mean_anything(base: str, short: dict) -> str:
    """The sentence that 02 puts before anything else."""
    better = short["student_better"]
    counts = f"{base} is better than its teacher on {better:.1%} of {short['windows']:,} windows"
    if short.get("scored", 1) < 1:
        counts += f" (of which {short['scored']:.1%}, spread evenly, were scored)"
    if short.get("masked"):
        counts += f" but for {short['masked']:,}, which have no target"
    if better > 0.5:
        return (
            f"**⚠ {counts}: most of them. Difficulty is then mostly noise, and a hard set and an "
            "adapter built on it mean nothing here. Train a better teacher, or longer, first.**"
        )
    return f"{counts}. Its mean gap of {short['mean']:+.3f} nats measures what it lacks."


def what_02_counted(this: Run) -> str:
    """That sentence again, from the record of 02, for what is built on difficulty."""
    base = this.parameters["base"]
    for record in common.folder_of(this).of("02_hard_set"):
        if record["parameters"]["base"] == base:
            return does_difficulty_mean_anything(base, record["remembered"]["short"])
    return f"No record of 02 says on how many windows {base} is better than its teacher."


def coloured_texts(net: Llama, teacher: Llama, tokens: data.Tokens, device) -> Callable[[int], str]:
    """Window number → its text as HTML, each piece coloured by its own difficulty."""

    def text_of(window: int) -> str:
        ids_BT, targets_BT = tokens.train.batch([window], device)
        student_T, teacher_T = (
            hard_set.token_losses(m, ids_BT, targets_BT)[0].cpu() for m in (net, teacher)
        )
        known_T = (targets_BT[0] != data.IGNORE).cpu()
        pieces = tokens.tokenizer.pieces(targets_BT[0].cpu()[known_T].tolist())
        return widgets.text_html(pieces, (student_T - teacher_T)[known_T].numpy())

    return text_of


def chosen_for_03(this: Run) -> tuple[hard_set.HardSet, str]:
    """What an adapter replays, and that in words: 02's choice, or the hardest `share` of its
    scores."""
    p = this.parameters
    if p["share"] is None:
        path = this.path(p["hard_set"])
        return hard_set.load(path), words_of(path)
    scores = hard_set.load_scores(this.path("scores", p["scores"]))
    chosen = hard_set.made(scores.difficulty_N, {"share": p["share"]})
    return chosen, (
        f"the hardest {chosen.share:.1%} by `share`, {chosen.threshold:.4f} nats and more; what 02 "
        "chose is not used"
    )


def words_of(path: Path) -> str:
    """How the hard set in a file was chosen."""
    return json.loads(path.read_text(encoding="utf8")).get("words", "a choice made elsewhere")


def choice_in_force(path: Path, chosen: hard_set.HardSet) -> str:
    """Which hard set 03 will read, where it is not the one chosen here too."""
    if np.array_equal(hard_set.load(path).windows_K, chosen.windows_K):
        return f"In force, for 03: {words_of(path)}."
    return (
        f"**In force, for 03: {words_of(path)}.** The figures above show the parameters' choice: "
        f"{len(chosen.windows_K):,} windows, {chosen.threshold:.4f} nats and more."
    )


def finding(base: str, short: dict, chosen: hard_set.HardSet, difficulty_N: np.ndarray) -> str:
    """How much of what was lost the hard set holds."""
    hard_N, lost_N = hard_set.hard(chosen, difficulty_N), hard_set.lost(difficulty_N)
    held = lost_N[hard_N].sum() / (lost_N.sum() or 1)
    share, better = hard_N.sum() / max(1, np.isfinite(difficulty_N).sum()), short["student_better"]
    warning = f"{base} is BETTER than its teacher on {better:.0%} of windows. "
    easy = f" {chosen.easy:,} easy windows are mixed in."
    return (
        f"{warning * (better > 0.5)}The hardest {share:.1%} of the windows "
        f"({chosen.threshold:.3f} nats and more) hold {held:.0%} of what {base} lost; the plan's "
        f"claim is most of it.{easy * (chosen.easy > 0)}"
    )
