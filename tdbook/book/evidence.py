"""Does the plan hold? Each claim of the plan against text that no choice has looked at.

Differences of loss, nats per token, are read on the confirmation split (the validation split where
there is none). claims.yaml has the claims and what they compare, analysis.claims the rules of a
verdict, book.measured what a claim needs besides losses. Legend: N windows, M of them fixed (for
what is told token by token), T tokens of a window.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from tdbook.analysis import intervals, verdict
from tdbook.analysis import trial as trials
from tdbook.analysis.claims import FAILS, HOLDS, PART, UNDECIDED, Effect, judge
from tdbook.analysis.trial import CLAIMS, Model, Trial
from tdbook.book import common, comparison, measured
from tdbook.report import plots
from tdbook.runs import hashes
from tdbook.runs.rules import TRIED
from tdbook.runs.running import Run
from tdlib import data, evaluate, lora
from tdlib.hard_set import known_mean
from tdlib.model import Llama


def judged_on(tokens: data.Tokens) -> str:
    """Which text judges, and how much of it, in a sentence."""
    name, windows = measured.split_of(tokens)
    text = "the confirmation text, which no choice has looked at"
    if name == "val":
        text = "⚠ the validation text, on which choices were made: no other was put aside"
    documents = len(np.unique(tokens.documents(name)[0][windows.known_N]))
    count = f"{int(windows.known_N.sum()):,} of {len(windows):,} windows have a target"
    return f"Judged on {text}: {count}, of {documents:,} documents."


class Losses(dict):
    """Model → its loss of every window that judges, (N,). A model is run when it is first asked
    for, so that none that no verdict needs reads the confirmation text. Kept in scores/<split>/
    under the hash of model and text; of teacher, base and scratch, with every seed, also token by
    token (`whole`)."""

    def __init__(self, this: Run, tokens: data.Tokens):
        super().__init__()
        self.this, (self.split, self.windows) = this, measured.split_of(tokens)
        self.folder, p = common.folder_of(this), this.parameters
        self.models = models = trials.models(self.folder)
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
        fixed, whole = this.parameters["fixed_windows"], name in self.whole
        stem = re.sub(r"[^\w.+-]+", "_", name) + f"-{hashes.of([*read, fixed])[:8]}"
        path = this.path("scores", self.split, f"{stem}.{kind}")
        if not path.exists():
            base = out / "models" / self.models[name].p["base"] if adapter else out / place
            net = Llama.load(base, this.device)
            net = lora.load(net, out / place) if adapter else net
            how = dict(fixed=fixed if whole else 1, device=this.device)
            evaluate.evaluate(net.eval(), self.windows, **how).save(path.parent, stem, whole)
            text = f"models on {self.split}: {name}"
            this.progress(len(self) + 1, len(self.models), text)
        return path


def trial(this: Run, tokens: data.Tokens) -> Trial:
    """What all claims read: every model, its losses, and which windows are hard."""
    losses = Losses(this, tokens)
    models, points = losses.models, losses.folder.points
    odd = {name: point.varied.keys() - point.record["parameters"] for name, point in points.items()}
    swept = [models[name] for name, p in points.items() if p.sweep == this.parameters["recipe"]]
    last = {m.name for m in swept} - {m.base for m in swept}  # the others are what it was made from
    recipe = min((m for m in swept if m.name in last), key=lambda m: m.seeds, default=None)
    return comparison.trial(
        this,
        losses,
        tokens.documents(losses.split)[0],
        models=models,
        development={name: common.row_of(this, name)["loss"] for name in models},
        mixed=frozenset(name for name, others in odd.items() if others),
        recipe=recipe.name if recipe else "",
    )


def judged(this: Run, tokens: data.Tokens, t: Trial) -> list[dict]:
    """The rows of claims.yaml, each with its verdict, why, effects, and notes in sentences."""
    claims = []
    for row in CLAIMS["claims"]:
        listed = row.get("effects", ())
        effects, gaps = (
            t.effects(listed),
            (pair for _, role, *pair in t.pairs(listed) if role == "gap"),
        )
        notes = [verdict.gap_in_words(t, *pair) for pair in gaps]
        if measure := measured.MEASURES.get(row["key"]):
            more, said = measure(this, tokens, t)
            effects, notes = effects + more, notes + said
        result, why = judge(effects, row.get("every", True))
        if row["key"] == "ship":
            result, why, notes = measured.shipped(this)
        if "undecidable" in row:
            result, why = UNDECIDED, row["undecidable"]
        claims.append(row | dict(verdict=result, why=why, effects=effects, notes=notes))
    return claims


def recipe(this: Run, tokens: data.Tokens, t: Trial) -> tuple[list[Effect], str]:
    """The recipe against the plan's own route: the effects, and in words with both routes' cost."""
    effects = t.effects(CLAIMS["recipe"])
    if not effects:
        return [], "No recipe was run here: no point of the sweep that `recipe` names is done."
    result, why = judge(effects[:1])
    how = {HOLDS: "**beats**", PART: "beats, with a reserve,", FAILS: "**loses to**"}
    verb = how.get(result, "is not clearly better than")
    words, made = f"The recipe {verb} the plan's 50M + LoRA", comparison.made(this, tokens)
    costs = []
    for name in (t.recipe, t.first("best adapter on hard").name):
        spent = [f"{key} {n}" for key, n in made[name].items() if key != "made"]
        costs.append(f"{name}: {', '.join(spent)}")
    return effects, f"{words}: {effects[0].words()} ({why}). Costs: {'; '.join(costs)}."


def grid(t: Trial) -> list[tuple[float, float, float]]:
    """ce_weight, temperature and loss on development of the students that differ in these alone."""
    models = measured.settings(t)
    return [(m.p["ce_weight"], m.p["temperature"], t.development[m.name]) for m in models]


def choices_table(this: Run, tokens: data.Tokens, t: Trial) -> pd.DataFrame:
    """What the recipe was chosen from: every student of the base's shape, seed and tokens, best on
    development first, each against the recipe (the best, where none was run) with its interval over
    development documents."""
    tried: dict[tuple, Model] = {}
    for model in t.alike(t.models[t.base], set(TRIED)):  # a setting once, though two sweeps have it
        tried.setdefault(model.settings, model)
    models = {model.name: model.p for model in tried.values()}
    val, document_N = comparison.window_losses(this, [*models]), tokens.documents("val")[0]
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


def show(this: Run, claim: dict) -> None:
    """A claim as a section: verdict, figure, every effect and note in words, what would change our
    mind."""
    from IPython.display import Markdown, display

    effects, result = claim["effects"], claim["verdict"]
    display(Markdown(f"## {claim['claim']}\n\n**Verdict: {result}** — {claim['why']}."))
    if effects:
        figure = plots.effects([e.row for e in effects], f"{result}: {effects[0].words()}")
        this.figure(claim["key"], figure, alt=f"{claim['claim']}: every effect")
    lines = [f"- {e.words()}{' (control)' * (e.role == 'control')}" for e in effects]
    lines += [f"- {note}" for note in claim["notes"]]
    change = f"*What would change our mind at 300M:* {claim['change']}"
    display(Markdown("\n".join([*lines, f"\n*Compared with* {claim['control']}. {change}"])))


def in_short(claims: Sequence[dict], recipe: str) -> str:
    """The page in one sentence."""
    verdicts = [claim["verdict"] for claim in claims]
    order = [v for v in (HOLDS, PART, FAILS, UNDECIDED) if v in verdicts]
    counts = ", ".join(f"{verdicts.count(v)} × {v}" for v in order)
    return f"{len(claims)} claims: {counts}. {recipe.partition(' Costs:')[0].replace('**', '')}"
