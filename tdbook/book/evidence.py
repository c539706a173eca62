"""Does the plan hold? Each claim of the plan against text that no choice has looked at.

Differences of loss, nats per token, are read on the confirmation split (the validation split where
there is none). claims.yaml has the claims and what they compare, analysis.verdict the rules of a
verdict. Legend: N windows, M of them fixed (told token by token), T tokens of each, V vocabulary.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from tdbook.analysis import features, intervals, verdict
from tdbook.analysis.verdict import CLAIMS, FAILS, HOLDS, PART, UNDECIDED, Effect, Trial, judge
from tdbook.book import common, comparison
from tdbook.book.comparison import COST, WORDS
from tdbook.corpus import token_files
from tdbook.export import inference
from tdbook.report import plots, tables, words
from tdbook.runs import hashes, notebooks
from tdbook.runs.parameters import TRIED
from tdbook.runs.running import Run
from tdbook.runs.units import Q4_LIMIT, of_plan
from tdlib import data, evaluate, lora
from tdlib.hard_set import known_mean
from tdlib.model import Llama

Measured = tuple[list[Effect], list[str]]  # more effects of a claim, and measurements in words
KINDS = CLAIMS["claims"]["kept"]["kinds"]


def split_of(tokens: data.Tokens) -> tuple[str, data.Windows]:
    """The split that verdicts are read on; validation where nothing else has a target."""
    confirm = tokens.confirm and tokens.confirm.known_N.any()
    return ("confirm", tokens.confirm) if confirm else ("val", tokens.val)


def judged_on(tokens: data.Tokens) -> str:
    """Which text judges, and how much of it, in a sentence."""
    name, windows = split_of(tokens)
    documents = len(np.unique(token_files.origins(tokens, name)[0][windows.known_N]))
    count = dict(known=int(windows.known_N.sum()), windows=len(windows), documents=documents)
    return WORDS[name].format(**count)


class Losses(dict):
    """Model → its loss of every window that judges, (N,). A model is run when it is first asked
    for: none that no verdict needs reads the confirmation text. Kept in scores/<split>/ under the
    hash of model and text; of teacher, base and scratch, with every seed, token by token too."""

    def __init__(self, this: Run, tokens: data.Tokens):
        super().__init__()
        self.this, (self.split, self.windows) = this, split_of(tokens)
        self.folder, p = common.folder_of(this), this.parameters
        self.models = models = verdict.models(self.folder)
        settings = [models[p[role]].settings for role in ("base", "scratch") if p[role] in models]
        self.whole = [p["teacher"], *(n for n, m in models.items() if m.settings in settings)]

    def __missing__(self, name: str) -> np.ndarray:
        return self.setdefault(name, np.load(self._path(name, "npy")))

    def tokens(self, name: str) -> np.ndarray:
        """Of one of `whole`, the loss of every token of the fixed windows, (M, T)."""
        return np.load(self._path(name, "npz"))["token_loss_MT"]

    def _path(self, name: str, kind: str) -> Path:
        """A file of a model's losses, made where it is not there."""
        this, (out, model) = self.this, self.folder.place(name)
        adapter = name in self.folder.points and self.models[name].adapter
        place = f"{'adapters' if adapter else 'models'}/{model}"
        # the text too, and how much of it is told: a given teacher stays the same beside another
        files = ((out, place), (this.out, "tokens"))
        read = [hashes.made_by_others(where, "")[what]["sha256"] for where, what in files]
        fixed, whole = this.parameters["fixed_windows"], name in self.whole
        stem = re.sub(r"[^\w.+-]+", "_", name) + f"-{hashes.of([*read, fixed])[:8]}"
        path = this.path("scores", self.split, f"{stem}.{kind}")
        if not path.exists():
            base = f"models/{self.models[name].p['base']}" if adapter else place
            net = Llama.load(out / base, this.device)
            net = lora.load(net, out / place) if adapter else net
            how = dict(fixed=fixed if whole else 1, device=this.device)
            evaluate.evaluate(net.eval(), self.windows, **how).save(path.parent, stem, whole)
            this.progress(len(self) + 1, len(self.models), f"models on {self.split}: {name}")
        return path


def trial(this: Run, tokens: data.Tokens) -> Trial:
    """What all claims read: every model, its losses, and which windows are hard."""
    losses = Losses(this, tokens)
    models, points = losses.models, losses.folder.points
    swept = [models[name] for name, p in points.items() if p.sweep == this.parameters["recipe"]]
    last = {m.name for m in swept} - {m.base for m in swept}  # the others are what it was made from
    recipe = min((m for m in swept if m.name in last), key=lambda m: m.seeds, default=None)
    more = dict(models=models, recipe=recipe.name if recipe else "")
    more["development"] = {name: common.row_of(this, name)["loss"] for name in models}
    more["mixed"] = {n for n, p in points.items() if p.varied.keys() - p.record["parameters"]}
    return comparison.trial(this, losses, token_files.origins(tokens, losses.split)[0], **more)


def judged(this: Run, tokens: data.Tokens, t: Trial) -> list[dict]:
    """The rows of claims.yaml, each with verdict, why, effects, and notes in sentences."""
    claims = []
    for key, row in CLAIMS["claims"].items():
        listed, measure = row.get("effects", ()), MEASURES.get(key)
        more, notes = measure(this, tokens, t) if measure else ([], [])
        effects = t.effects(listed) + more
        result, why = judge(effects, row.get("every", True))
        if key == "ship":
            result, why, notes = shipped(this)
        if "undecidable" in row:
            result, why = UNDECIDED, row["undecidable"]
        first = re.sub("; .*", " (and more)", why)  # a claim's own section has all of them
        told = dict(verdict=result, because=first, why=why, effects=effects, notes=notes)
        claims.append({"key": key} | row | told)
    return claims


def recipe(this: Run, tokens: data.Tokens, t: Trial) -> tuple[list[Effect], str]:
    """The recipe against the plan's own route: the effects, and in words with both routes' cost."""
    effects = t.effects(CLAIMS["recipe"])
    if not effects:
        return [], "No recipe was run here: no point of the sweep that `recipe` names is done."
    (result, why), made, costs = judge(effects[:1]), comparison.made(this, tokens), []
    for name in (t.recipe, t.first("best adapter on hard").name):
        costs.append(f"{name}: {', '.join(f'{key} {made[name][key]}' for key in COST)}")
    words = f"That the recipe beats the plan's 50M + LoRA: **{result}** ({why})"
    return effects, f"{words}. {effects[0].words()}. Costs: {'; '.join(costs)}."


def models_table(this: Run, tokens: data.Tokens, t: Trial) -> pd.DataFrame:
    """Every model: seeds, losses, difference from the base on the text that judges, and cost."""
    rows = []
    for name, made in comparison.made(this, tokens).items():
        *others, seed = t.models[name].seeds
        row = {"model": name, "seed": seed, "base's seed": " ".join(map(str, others)) or "–"}
        read = name in t.losses  # no verdict needs the others
        row["development"] = t.development[name]
        row["confirmation"] = known_mean(t.losses[name]) if read else math.nan
        change = f"{t.change(name, t.base)}" if read else "–"
        row[f"against {t.base}"] = "baseline" if name == t.base else change
        rows.append(row | made)
    return pd.DataFrame(rows)


def choices_table(this: Run, tokens: data.Tokens, t: Trial) -> pd.DataFrame:
    """Every student of the base's shape, seed and tokens, best on development first, each against
    the one with the recipe's settings, or else the best."""
    tried = t.alike(t.models[t.base], set(TRIED))
    # a setting once, though two sweeps have it: the first
    models = {m.name: m.p for m in {m.settings: m for m in reversed(tried)}.values()}
    val = comparison.window_losses(this, [*models])
    document_N = token_files.origins(tokens, "val")[0]
    loss = {name: known_mean(loss_N) for name, loss_N in val.items()}
    order = sorted(loss, key=loss.get)
    # the recipe's own run may be longer than what it was chosen from
    wanted = t.models[t.recipe].p if t.recipe else {}
    same = [n for n in order if all(models[n][key] == wanted.get(key) for key in TRIED)]
    chosen, word, rows = (same or order)[0], "the recipe" if same else "the best", []
    for name in order:
        row = {key: models[name][key] for key in TRIED} | {"development": round(loss[name], 4)}
        row["temperature"] = "–" if row["ce_weight"] == 1 else row["temperature"]
        change = intervals.change(val[name], val[chosen], document_N, t.resamples)
        rows.append(row | {f"against {word}": word if name == chosen else f"{change}"})
    return pd.DataFrame(rows)


def show(this: Run, claim: dict) -> None:
    """A claim as a section: verdict, figure, every effect and note, what would change our mind."""
    from IPython.display import Markdown, display

    effects, result = claim["effects"], claim["verdict"]
    display(Markdown(f"## {claim['claim']}\n\n**Verdict: {result}** — {claim['why']}."))
    if known := [e for e in effects if math.isfinite(e.change.value)]:
        figure = plots.effects(known, f"{result}: {effects[0].words()}")
        this.figure(claim["key"], figure, alt=f"{claim['claim']}: every effect")
    lines = [f"- {e.words()}{' (control)' * (e.role == 'control')}" for e in effects]
    lines += [f"- {note}" for note in claim["notes"]]
    change = "\n*Compared with* {control}. *What would change our mind at 300M:* {change}"
    display(Markdown("\n".join([*lines, change.format(**claim)])))


def in_short(claims: Sequence[dict], recipe: str) -> str:
    """The page in one sentence."""
    verdicts = Counter(claim["verdict"] for claim in claims).most_common()
    counts = ", ".join(f"{count} × {verdict}" for verdict, count in verdicts)
    return f"{len(claims)} claims: {counts}. {recipe.partition(' Costs:')[0].replace('**', '')}"


def loss_settings(this: Run, tokens: data.Tokens, t: Trial) -> Measured:
    """The plan's best ce_weight and temperature against the best others, on development."""
    tried = t.alike(t.models[t.base], {"ce_weight", "temperature"})
    order = sorted(tried, key=lambda m: t.development[m.name])
    ours = [m for m in order if m.p["ce_weight"] == 0.5 and 2 <= m.p["temperature"] <= 4]
    others = [m for m in order if m not in ours]
    pairs = zip(ours[:1], others[:1], strict=False)  # none where one of them was not run
    return [t.effect(*pair) for pair in pairs], []


def hard_text(this: Run, tokens: data.Tokens, t: Trial) -> Measured:
    """Do the hardest windows, as each seed of the base picks them, hold more of what is rare?"""
    _, windows = split_of(tokens)
    p, share, rows = this.parameters, this.parameters["hard_share"], np.arange(len(windows))
    ids_NT, y_NT = (x.numpy() for x in replace(windows, mask=None).batch(rows))
    count_V = features.frequency(tokens.train, tokens.vocab_size)
    order = np.argsort(count_V, kind="stable")
    rare = order[np.cumsum(count_V[order]) <= 0.05 * count_V.sum()]
    pairs_NT = features.pair_frequency(tokens.train, ids_NT, y_NT)
    kinds = {"rare tokens": np.isin(y_NT, rare), "pairs never seen": pairs_NT == 0}
    kinds["tokens not in Telugu"] = features.scripts(tokens, windows, rows) != 0
    seeds = t.seeds_of(t.models[t.base])
    hard = [comparison.hard_windows(t.losses, m.name, t.teacher, share) for m in seeds]
    effects, masked_N = [], np.isnan(t.losses[t.teacher])  # these are in neither part
    for kind, in_NT in kinds.items():
        share_N = np.where(masked_N, np.nan, in_NT.mean(1))
        each = [(share_N, hard_N, t.document_N) for hard_N in hard]
        effects.append(_beyond(t, f"share of {kind}, hardest {share:.0%} − the rest", each, 1))
    lag_N = np.fmax(t.losses[t.base] - t.losses[t.teacher], 0)
    held = lag_N[hard[0]].sum() / (lag_N.sum() or 1)
    notes = [f"The hardest {share:.0%} hold {held:.0%} of all that {t.base} lost."]
    for record in common.folder_of(this).of(notebooks.HARD_SET):
        if found := record["remembered"].get("reality"):
            notes.append(words.memory(found, p["base"], p["teacher"]))
    return effects, notes


def _beyond(t: Trial, what: str, seeds: Iterable[tuple], claimed: int, role="claim") -> Effect:
    """The mean in one part beyond that in the other, of each seed's (values, part, documents)."""
    each = [intervals.beyond(*seed, t.resamples) for seed in seeds]
    return Effect(what, each[0], tuple(e.value for e in each), role, claimed=claimed)


def kept(this: Run, tokens: data.Tokens, t: Trial) -> Measured:
    """How much further behind the teacher the base is in a bucket than elsewhere; above 0: lost."""
    _, windows = split_of(tokens)
    rows_M = evaluate.fixed_rows(windows, this.parameters["fixed_windows"])
    labels, effects = features.token_cuts(replace(tokens, val=windows), rows_M), []
    loss_MT = {name: t.losses.tokens(name) for name in t.losses.whole if name in t.models}
    document_MT = np.broadcast_to(t.document_N[rows_M][:, None], loss_MT[t.teacher].shape)
    for cut, bucket, claimed in KINDS:
        names, at_MT = labels.get(cut, ([], None))
        in_MT = at_MT == names.index(bucket) if bucket in names else np.zeros(1, bool)
        for name, role in ((t.base, "claim"), (t.scratch, "part")):
            if name in loss_MT and in_MT.sum() >= tables.FEW:
                seeds = [m.name for m in t.seeds_of(t.models[name]) if m.name in loss_MT]
                lags = [loss_MT[seed] - loss_MT[t.teacher] for seed in seeds]
                each = [(lag_MT.ravel(), in_MT.ravel(), document_MT.ravel()) for lag_MT in lags]
                effects.append(_beyond(t, f"{bucket} ({cut}), {name}", each, claimed, role))
    return effects, []


# key of a claim → what it needs besides the effects that claims.yaml lists
MEASURES = dict(loss=loss_settings, hard=hard_text, kept=kept)


def shipped(this: Run) -> tuple[str, str, list[str]]:
    """Merging, speeds and file sizes against the plan's numbers, from the records of 04 and 06."""
    records = [record["remembered"] for record in common.folder_of(this).of(notebooks.INFERENCE)]
    timed = [(key, x) for record in records for key, x in record.items() if key[:6] == "shape "]
    reached = [check for key, x in timed for check in speeds(key[6:], x)]
    checks = merges(this) + reached
    missed = [what for what, held in checks if not held]
    notes = [f"{'✓' if held else '✗'} {what}." for what, held in checks]
    if not reached:
        return UNDECIDED, "no speeds of the plan's own shapes were measured (06, shapes)", notes
    if not missed:
        return HOLDS, "every number is reached", notes
    return (PART if len(missed) < len(checks) else FAILS), f"missed: {'; '.join(missed)}", notes


def merges(this: Run) -> list[tuple[str, bool]]:
    """Per adapter whether merging changed nothing but its last digits, and added no weights."""
    path, checks = this.out / f"tables/{notebooks.COMPARISON}-merged.csv", []
    for row in pd.read_csv(path, dtype=str).to_dict("records") if path.exists() else []:
        apart, most = (float(row[k]) for k in ("largest logit difference", "of logits up to"))
        what = f"{row['adapter']} merged: logits up to {most:g} apart by {apart:.1e}, "
        what += f"{row['weights']} weights, its base {row['weights of the base']}"
        same = row["weights"] == row["weights of the base"]
        checks.append((what, same and apart <= 1e-4 * most))
    return checks


def speeds(shape: str, timed: dict) -> list[tuple[str, bool]]:
    """Whether the quickest way of each phase of the plan, and the 4-bit file, reach its number."""
    checks = []
    for phase in dict.fromkeys(inference.PHASES.values()):
        rows = [row for row in timed["rows"] if inference.PHASES.get(row["way"]) == phase]
        low, high = of_plan(shape, phase)
        if rows and not math.isnan(low):
            best = max(rows, key=lambda row: row["decode"])
            what = f"{shape}, {best['way']}: {best['decode']:,.0f} tokens/s on one thread "
            checks.append((f"{what}(the plan: {low:g}–{high:g})", best["decode"] >= low))
    size, (low, _) = timed["bytes"]["Q4_0"] / 1e6, of_plan(shape, "megabytes")
    if not math.isnan(low):
        limit = Q4_LIMIT / 1e6 * low / 30  # as 33 MB for the plan's "~30 MB"
        checks.append((f"{shape}, Q4_0: {size:.1f} MB (the plan: ~{low:g})", size <= limit))
    return checks
