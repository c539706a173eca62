"""The calls of 02: scores, difficulty and the hard set."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tdbook.book import opening
from tdbook.report import widgets
from tdbook.runs import notebooks
from tdbook.runs.running import Run
from tdlib import data, evaluate, hard_set
from tdlib.model import Llama


def score(
    path: Path, net: Llama, teacher: Llama, windows: data.Windows, device, progress, limit: int = 0
) -> dict:
    """Score the training windows with both models into `path`: all, or, spread evenly, those of
    some `limit` tokens. Returns `choice.in_short` and the share of the windows that was scored."""
    count = min(limit // windows.context or len(windows), len(windows))
    rows = evaluate.fixed_rows(windows, count) if count < len(windows) else None
    with hard_set.new_scores(path, len(windows)) as loss_2N:
        scores = hard_set.score(
            net, teacher, windows, rows=rows, device=device, progress=progress, into=loss_2N
        )
        asked_N = windows.known_N if rows is None else windows.known_N[rows]
        masked = int((~asked_N).sum())
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


def said_by_02(this: Run) -> str:
    """That sentence again, for what is built on difficulty, from the record of 02."""
    base = this.parameters["base"]
    for record in opening.folder_of(this).of(notebooks.HARD_SET):
        if record["parameters"]["base"] == base:
            return does_difficulty_mean_anything(base, record["remembered"]["short"])
    return f"No record of 02 says on how many windows {base} is better than its teacher."


def coloured_texts(net: Llama, teacher: Llama, tokens: data.Tokens, device) -> Callable[[int], str]:
    """Window number → its text as HTML, each piece coloured by its own difference."""

    def text_of(window: int) -> str:
        ids_BT, targets_BT = tokens.train.batch([window], device)
        student_T, teacher_T = (
            hard_set.token_losses(m, ids_BT, targets_BT)[0].cpu() for m in (net, teacher)
        )
        known_T = (targets_BT[0] != data.IGNORE).cpu()
        pieces = tokens.tokenizer.pieces(targets_BT[0].cpu()[known_T].tolist())
        return widgets.text_html(pieces, (student_T - teacher_T)[known_T].numpy())

    return text_of


def hard_set_of(this: Run) -> hard_set.HardSet:
    """What an adapter replays: 02's choice, or the hardest `share` of its scores."""
    p = this.parameters
    if p["share"] is None:
        return hard_set.load(this.path(p["hard_set"]))
    scores = hard_set.load_scores(this.path("scores", p["scores"]))
    return hard_set.made(scores.difficulty_N, {"share": p["share"]})


def choice_in_words(this: Run, chosen: hard_set.HardSet) -> str:
    """How the hard set of 03 was chosen."""
    if this.parameters["share"] is None:
        return choice_in_force(this.path(this.parameters["hard_set"]), chosen)
    return (
        f"The hardest {chosen.share:.1%} by `share`, {chosen.threshold:.4f} nats and more; what 02 "
        "chose is not used."
    )


def choice_in_force(path: Path, chosen: hard_set.HardSet) -> str:
    """Which hard set 03 will read, in words, where it is not the parameters' own too."""
    words = json.loads(path.read_text(encoding="utf8")).get("words", "a choice made elsewhere")
    if np.array_equal(hard_set.load(path).windows_K, chosen.windows_K):
        return f"In force, for 03: {words}."
    return (
        f"**In force, for 03: {words}.** The figures above show the parameters' choice: "
        f"{len(chosen.windows_K):,} windows, {chosen.threshold:.4f} nats and more."
    )


def difficulty_in_words(scores: hard_set.Scores) -> str:
    """How difficulty goes with loss."""
    d_N, teacher_N = scores.difficulty_N, scores.teacher_loss_N
    known_N = np.isfinite(d_N)
    own, gap = (
        np.corrcoef(x[known_N], teacher_N[known_N])[0, 1] for x in (scores.student_loss_N, d_N)
    )
    return (
        f"Half of the windows lie above {np.median(d_N[known_N]):+.3f} nats. The student's loss "
        f"has a correlation of {own:.2f} with its teacher's; difficulty, of {gap:+.2f}."
    )


def hard_set_finding(
    base: str, short: dict, chosen: hard_set.HardSet, difficulty_N: np.ndarray
) -> str:
    """How much of what was lost the hard set holds."""
    hard_N, lost_N = hard_set.hard(chosen, difficulty_N), hard_set.lost(difficulty_N)
    held = lost_N[hard_N].sum() / (lost_N.sum() or 1)
    share = hard_N.sum() / max(1, np.isfinite(difficulty_N).sum())
    said = (
        f"The hardest {share:.1%} of the windows ({chosen.threshold:.3f} nats and more) hold "
        f"{held:.0%} of what {base} lost; the plan's claim is most of it."
    )
    said += f" {chosen.easy:,} easy windows are mixed in." if chosen.easy else ""
    if (better := short["student_better"]) > 0.5:
        return f"{base} is BETTER than its teacher on {better:.0%} of windows. {said}"
    return said
