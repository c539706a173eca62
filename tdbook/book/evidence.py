"""Does the plan hold? Each claim of the plan against text that no choice has looked at.

Differences of loss, nats per token, are read on the confirmation split (the validation split where
there is none). claims.yaml has the claims and what they compare, analysis.claims the rules of a
verdict, book.measured what a claim needs besides losses. Legend: N windows, M of them fixed (for
what is told token by token), T tokens of a window.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from tdbook.analysis import intervals, verdict
from tdbook.analysis.claims import FAILS, HOLDS, PART, UNDECIDED, Claim, Effect, judge
from tdbook.analysis.trial import CLAIMS, Model, Trial
from tdbook.book import common, comparison, measured
from tdbook.corpus import origins
from tdbook.report import plots
from tdbook.runs import hashes
from tdbook.runs.rules import TRIED
from tdbook.runs.running import Run
from tdlib import data, evaluate, lora
from tdlib.hard_set import known_mean
from tdlib.model import Llama

COST = ["made", "training, FLOP", "teacher, FLOP", "scoring, FLOP"]  # a table of their own


def judged_on(tokens: data.Tokens) -> str:
    """Which text judges, and how much of it, in a sentence."""
    name, windows = measured.split_of(tokens)
    text = "the confirmation text, which no choice has looked at"
    if name == "val":
        text = "⚠ the validation text, on which choices were made: no other was put aside"
        text += " that has a target" * bool(tokens.confirm)
    documents = len(np.unique(origins.of(tokens, name)[0][windows.known_N]))
    n, left = len(windows), int(windows.known_N.sum())
    count = f"{n:,} windows" if left == n else f"{left:,} of {n:,} windows, which have a target,"
    return f"Judged on {text}: {count} of {documents:,} documents."


class Losses(dict):
    """Model → its loss of every window that judges, (N,). A model is run when it is first asked
    for, so that none that no verdict needs reads the confirmation text. Kept in scores/<split>/
    under the hash of model and text; of teacher, base and scratch, with every seed, also token by
    token (`whole`)."""

    def __init__(self, this: Run, tokens: data.Tokens):
        super().__init__()
        self.this, (self.split, self.windows) = this, measured.split_of(tokens)
        self.models, self.folder = comparison.trained(this), common.folder_of(this)
        p, models = this.parameters, self.models
        settings = [models[p[role]].settings for role in ("base", "scratch") if p[role] in models]
        self.whole = [p["teacher"], *(n for n, m in models.items() if m.settings in settings)]

    def __missing__(self, name: str) -> np.ndarray:
        self[name] = np.load(self._path(name, "npy"))
        return self[name]

    def tokens(self, name: str) -> np.ndarray:
        """Of one of `whole`, the loss of every token of the fixed windows, (M, T)."""
        return np.load(self._path(name, "npz"))["token_loss_MT"]

    def _path(self, name: str, kind: str) -> Path:
        """A file of a model's losses, made where it is not there."""
        this, (out, model) = self.this, self.folder.place(name)
        adapter = name in self.folder.points and self.models[name].adapter
        place = f"{'adapters' if adapter else 'models'}/{model}"
        # the text too, and how much of it is told: a given teacher stays the same beside another
        read = [
            hashes.made_by_others(folder, "")[path]["sha256"]
            for folder, path in ((out, place), (this.out, "tokens"))
        ]
        fixed = this.parameters["fixed_windows"]
        stem = re.sub(r"[^\w.+-]+", "_", name) + f"-{hashes.of([*read, fixed])[:8]}"
        path = this.path("scores", self.split, f"{stem}.{kind}")
        if not path.exists():
            base = out / "models" / self.models[name].p["base"] if adapter else out / place
            net, whole = Llama.load(base, this.device), name in self.whole
            net = lora.load(net, out / place) if adapter else net
            count = fixed if whole else 1
            losses = evaluate.evaluate(net.eval(), self.windows, fixed=count, device=this.device)
            losses.save(path.parent, stem, whole)
            text = f"models on {self.split}: {name}"
            this.progress(len(self) + 1, len(self.models), text)
        return path


def trial(this: Run, tokens: data.Tokens) -> Trial:
    """What all claims read: every model, its losses, and which windows are hard."""
    p, losses, points = this.parameters, Losses(this, tokens), common.folder_of(this).points
    hard_N = comparison.hard_windows(losses, p["picked_by"], p["teacher"], p["hard_share"])
    t = comparison.trial(this, losses, hard_N, origins.of(tokens, losses.split)[0], losses.models)
    odd = {name: point.varied.keys() - point.record["parameters"] for name, point in points.items()}
    swept = [t.models[name] for name, point in points.items() if point.sweep == p["recipe"]]
    bases = {model.base for model in swept}
    last = [model for model in sorted(swept, key=lambda m: m.seeds) if model.name not in bases]
    return replace(
        t,
        development={name: common.row_of(this, name)["loss"] for name in t.models},
        mixed=frozenset(name for name, others in odd.items() if others),
        recipe=last[0].name if last else "",
    )


def judged(this: Run, tokens: data.Tokens, t: Trial) -> list[Claim]:
    """Every claim with its verdict, in the plan's order."""
    claims = []
    for row in CLAIMS["claims"]:
        key, effects, notes = row["key"], t.effects(row.get("effects", ())), []
        if key in measured.MEASURES:
            more, notes = measured.MEASURES[key](this, tokens, t)
            effects += more
        result, why = judge(effects, row.get("every", True))
        if key == "ship":
            result, why, notes = measured.shipped(this)
        if "undecidable" in row:
            result, why = UNDECIDED, row["undecidable"]
        claim, control, change = (" ".join(row[k].split()) for k in ("claim", "control", "change"))
        rest = (tuple(effects), tuple(notes))
        claims.append(Claim(key, claim, result, why, control, change, *rest))
    return claims


def recipe(this: Run, tokens: data.Tokens, t: Trial) -> tuple[list[Effect], str]:
    """The recipe against the plan's own route: the effects, and in words with both routes' cost."""
    effects = t.effects(CLAIMS["recipe"])
    none = "No recipe was run here: the sweep that `recipe` names has no point that is done."
    if not effects:
        return [], none
    result, why = judge(effects[:1])
    how = {HOLDS: "**beats**", PART: "beats, with a reserve,", FAILS: "**loses to**"}
    verb = how.get(result, "is not clearly better than")
    spent = comparison.made(this, tokens)
    names = [t.recipe, t.first(f"best {verdict.ADAPTER}").name]
    costs = [f"{n}: {', '.join(f'{k} {spent[n][k]}' for k in COST[1:])}" for n in names]
    words = f"The recipe {verb} the plan's 50M + LoRA: {effects[0].words()} ({why})."
    return effects, f"{words} Costs: {'; '.join(costs)}."


def models_table(this: Run, tokens: data.Tokens, t: Trial) -> pd.DataFrame:
    """Every model: what it is, seeds, tokens, loss on development and on the text that judges, its
    difference from the base there, and what it cost."""
    rows = []
    for name, made in comparison.made(this, tokens).items():
        model, loss, change = t.models[name], math.nan, "–"
        if name in t.losses:  # no verdict needs the others
            loss, change = known_mean(t.losses[name]), f"{t.change(name, t.base)}"
        row = {"model": name, "made": made["made"], "seeds": " ".join(map(str, model.seeds))}
        row |= {"training tokens": model.tokens, "development": t.development[name]}
        row |= {"confirmation": loss, f"against {t.base}": "baseline" if name == t.base else change}
        rows.append(row | {key: made[key] for key in COST[1:]})
    return pd.DataFrame(rows)


def choices_table(this: Run, tokens: data.Tokens, t: Trial) -> pd.DataFrame:
    """What the recipe was chosen from: every student of the base's shape, seed and tokens, best on
    development first, each against the recipe (the best, where none was run) with its interval over
    development documents."""
    tried: dict[tuple, Model] = {}
    for model in t.alike(t.models[t.base], set(TRIED)):  # a setting once, though two sweeps have it
        tried.setdefault(model.settings, model)
    models = {model.name: model.p for model in tried.values()}
    val, document_N = comparison.window_losses(this, [*models]), origins.of(tokens, "val")[0]
    loss = {name: known_mean(loss_N) for name, loss_N in val.items()}
    order = sorted(loss, key=loss.get)
    # the recipe's own run may be longer than what it was chosen from
    wanted = t.models[t.recipe or order[0]].p
    same = (n for n in order if all(models[n][key] == wanted.get(key) for key in TRIED))
    chosen, rows = next(same, order[0]), []
    for name in order:
        row = {key: models[name][key] for key in TRIED} | {"development": round(loss[name], 4)}
        row["temperature"] = "–" if row["ce_weight"] == 1 else row["temperature"]
        change = intervals.change(val[name], val[chosen], document_N, t.resamples)
        rows.append(row | {"against the recipe": "the recipe" if name == chosen else f"{change}"})
    return pd.DataFrame(rows)


def show(this: Run, claim: Claim) -> None:
    """A claim as a section: verdict, figure, every effect and note in words, what would change our
    mind."""
    from IPython.display import Markdown, display

    display(Markdown(f"## {claim.claim}\n\n**Verdict: {claim.verdict}** — {claim.why}."))
    if claim.effects:
        title = f"{claim.verdict}: {claim.effects[0].words()}"
        figure = plots.effects([e.row for e in claim.effects], title)
        this.figure(claim.key, figure, alt=f"{claim.claim}: every effect")
    lines = [f"- {e.words()}{' (control)' * (e.role == 'control')}" for e in claim.effects]
    lines += [f"- {note}" for note in claim.notes]
    change = f"*What would change our mind at 300M:* {claim.change}"
    display(Markdown("\n".join([*lines, f"\n*Compared with* {claim.control}. {change}"])))


def in_short(claims: Sequence[Claim], recipe: str) -> str:
    """The page in one sentence."""
    verdicts = [claim.verdict for claim in claims]
    order = [v for v in (HOLDS, PART, FAILS, UNDECIDED) if v in verdicts]
    counts = ", ".join(f"{verdicts.count(v)} × {v}" for v in order)
    return f"{len(claims)} claims: {counts}. {recipe.partition(' Costs:')[0].replace('**', '')}"
