"""Does the plan hold? Each claim of the plan against text that no choice has looked at.

Differences of loss, nats per token, are read on the confirmation split (the validation split where
there is none). claims.yaml has the claims and what they compare, analysis.claims the rules; here is
what those rest on: losses, and what is measured in other ways.

Legend: N windows, M of them fixed (for what is told token by token), T tokens of a window.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from tdbook.analysis import intervals, kept_and_lost, verdict
from tdbook.analysis.claims import FAILS, HOLDS, PART, UNDECIDED, Claim, Effect, judge
from tdbook.analysis.trial import CLAIMS, Model, Trial
from tdbook.book import comparison, opening
from tdbook.export import inference
from tdbook.report import plots, tables
from tdbook.runs import hashes
from tdbook.runs.running import Run
from tdlib import data, evaluate, hard_set, lora
from tdlib.model import Llama
from tdlib.shapes import Q4_LIMIT, of_plan

TRIED = ("init", "ce_weight", "temperature", "learning_rate", "warmup_share")  # by the recipe
COST = ["made", "training, FLOP", "teacher, FLOP", "scoring, FLOP"]  # a table of their own


def split_of(tokens: data.Tokens) -> tuple[str, data.Windows]:
    """The split that verdicts are read on; validation where nothing else has a target."""
    confirm = tokens.confirm and tokens.confirm.known_N.any()
    return ("confirm", tokens.confirm) if confirm else ("val", tokens.val)


def judged_on(tokens: data.Tokens) -> str:
    """Which text judges, and how much of it, in a sentence."""
    name, windows = split_of(tokens)
    text = "the confirmation text, which no choice has looked at"
    if name == "val":
        text = "⚠ the validation text, on which choices were made: no other was put aside"
        text += " that has a target" * bool(tokens.confirm)
    documents = len(np.unique(tokens.documents(name)[0][windows.known_N]))
    n, left = len(windows), int(windows.known_N.sum())
    count = f"{n:,} windows" if left == n else f"{left:,} of {n:,} windows, which have a target,"
    return f"Judged on {text}: {count} of {documents:,} documents."


class Losses(Mapping):
    """Model → its loss of every window that judges, (N,). A model is run when it is first asked
    for, so that none that no verdict needs reads the confirmation text. Kept in scores/<split>/
    under the hash of model and text; of teacher, base and scratch, with every seed, also token by
    token (`whole`)."""

    def __init__(self, this: Run, tokens: data.Tokens):
        self.this, (self.split, self.windows) = this, split_of(tokens)
        self.models, self.folder = comparison.trained(this), opening.folder_of(this)
        self.read: dict[str, np.ndarray] = {}
        p = this.parameters
        some = [self.models[p[name]] for name in ("base", "scratch") if p[name] in self.models]
        settings = [model.settings for model in some]
        seeds = [name for name, model in self.models.items() if model.settings in settings]
        self.whole = [p["teacher"], *seeds]

    def __iter__(self):
        return iter(self.models)

    def __len__(self) -> int:
        return len(self.models)

    def __contains__(self, name: object) -> bool:
        return name in self.models

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.read:
            self.read[name] = np.load(self._path(name, "npy"))
        return self.read[name]

    def tokens(self, name: str) -> np.ndarray:
        """Of one of `whole`, the loss of every token of the fixed windows, (M, T)."""
        return np.load(self._path(name, "npz"))["token_loss_MT"]

    def _path(self, name: str, kind: str) -> Path:
        """A file of a model's losses, made where it is not there."""
        this, (out, model) = self.this, self.folder.place(name)
        adapter = name in self.folder.points and self.models[name].adapter
        place = f"{'adapters' if adapter else 'models'}/{model}"
        made = hashes.made_by_others
        read = [made(out, "")[place]["sha256"], made(this.out, "")["tokens"]["sha256"]]
        # the text too, and how much of it is told: a given teacher stays the same beside another
        fixed = this.parameters["fixed_windows"]
        stem = re.sub(r"[^\w.+-]+", "_", name) + f"-{hashes.of([*read, fixed])[:8]}"
        path = this.path("scores", self.split, f"{stem}.{kind}")
        if not path.exists():
            base = out / "models" / self.models[name].p["base"] if adapter else out / place
            net = Llama.load(base, this.device)
            net = lora.load(net, out / place) if adapter else net
            whole = name in self.whole
            fixed = fixed if whole else 1
            found = evaluate.evaluate(net.eval(), self.windows, fixed=fixed, device=this.device)
            found.save(path.parent, stem, whole)
            this.progress(len(self.read) + 1, len(self), f"models on {self.split}: {name}")
        return path


def trial(this: Run, tokens: data.Tokens) -> Trial:
    """What all claims read: every model, its losses, and which windows are hard."""
    p, losses, points = this.parameters, Losses(this, tokens), opening.folder_of(this).points
    hard_N = comparison.hard_windows(losses, p["picked_by"], p["teacher"], p["hard_share"])
    t = comparison.trial(this, losses, hard_N, tokens.documents(losses.split)[0])
    varied = {
        name: set(point.varied) - point.record["parameters"].keys()
        for name, point in points.items()
    }
    swept = [t.models[name] for name, point in points.items() if point.sweep == p["recipe"]]
    last = [model for model in swept if model.name not in [m.base for m in swept]]
    recipe = min(last, key=lambda model: model.seeds, default=None)
    return replace(
        t,
        development={name: opening.row_of(this, name)["loss"] for name in t.models},
        mixed=frozenset(name for name, others in varied.items() if others),
        recipe=recipe.name if recipe else "",
    )


def judged(this: Run, tokens: data.Tokens, t: Trial) -> list[Claim]:
    """Every claim with its verdict, in the plan's order."""
    claims = []
    for row in CLAIMS["claims"]:
        effects, notes = t.effects(row.get("effects", ())), []
        if measure := MEASURED.get(row["key"]):
            measured, notes = measure(this, tokens, t)
            effects += measured
        result, why = judge(effects, row.get("every", True))
        if row["key"] == "ship":
            result, why, notes = shipped(this)
        if "undecidable" in row:
            result, why = UNDECIDED, row["undecidable"]
        words = {key: " ".join(row[key].split()) for key in ("claim", "control", "change")}
        given = dict(effects=tuple(effects), notes=tuple(notes))
        claims.append(Claim(row["key"], verdict=result, why=why, **words, **given))
    return claims


Measured = tuple[list[Effect], list[str]]  # of a claim: effects, and what else was measured


def cost(this: Run, tokens: data.Tokens, t: Trial) -> Measured:
    """What distilling costs beside training alone."""
    spent = comparison.costs(this, tokens)
    if t.scratch not in spent or t.teacher not in spent:
        return [], []
    alone, base = spent[t.scratch]["training"], spent[t.base]
    reads, trained = base["training"] + base["teacher"], spent[t.teacher]["training"]
    return [], [
        f"Cost: the base and its teacher's reading {reads:.2g} FLOP, {reads / alone:.2f} times the "
        f"scratch student's; with the teacher's own training ({trained:.2g}) "
        f"{(reads + trained) / alone:.0f} times: a student from scratch for that much was not run."
    ]


def loss_settings(this: Run, tokens: data.Tokens, t: Trial) -> Measured:
    """The plan's best setting against the best of all others, both chosen on development."""
    order = sorted(settings(t), key=lambda m: t.development[m.name])
    ours = [m for m in order if m.p["ce_weight"] == 0.5 and 2 <= m.p["temperature"] <= 4]
    others = [m for m in order if m not in ours]
    if not ours or not others:
        return [], []
    one, other = ours[0], others[0]
    return [t.effect(one, other)], [
        f"Of {len(order)} settings the best on development is {order[0].label}; of the plan's, "
        f"{one.name} ({t.development[one.name]:.3f}); of the others ce_weight "
        f"{other.p['ce_weight']:g}, T {other.p['temperature']:g} ({t.development[other.name]:.3f})."
    ]


def settings(t: Trial) -> list[Model]:
    """The students that differ from the base in ce_weight and temperature alone."""
    return t.alike(t.models[t.base], {"ce_weight", "temperature"})


def grid(t: Trial) -> list[tuple[float, float, float]]:
    """ce_weight, temperature and loss on development of those."""
    return [(m.p["ce_weight"], m.p["temperature"], t.development[m.name]) for m in settings(t)]


def rates(this: Run, tokens: data.Tokens, t: Trial) -> Measured:
    """How much of the gap to 120M the adapter closes, and the rate of everything 03 trained."""
    best = t.first(f"best {verdict.ADAPTER}")
    if not best:
        return [], []
    rival = t.first(verdict.RIVAL)
    notes = [verdict.gap_in_words(t, best, rival)] if rival else []
    roles = [role for role, rule in CLAIMS["models"].items() if "windows" in rule]
    chosen = [model for model in (t.first(f"best {role}") for role in roles) if model]
    chosen.sort(key=lambda model: not model.own)
    words = (m.label + f", rate {m.p['learning_rate']:g}" * m.own for m in chosen)
    return [], [*notes, f"What development chose of each arm: {'; '.join(words)}."]


def hard_text(this: Run, tokens: data.Tokens, t: Trial) -> Measured:
    """What the hardest windows hold against the rest: rare tokens, pairs never seen, other scripts;
    each seed of the base picks its own. And whether the seeds pick the same."""
    _, windows = split_of(tokens)
    share, rows = this.parameters["hard_share"], np.arange(len(windows))
    ids_NT, y_NT = (x.numpy() for x in replace(windows, mask=None).batch(rows))
    count_V = kept_and_lost.frequency(tokens.train, tokens.vocab_size)
    order = np.argsort(count_V, kind="stable")
    rare_V = np.zeros(len(count_V), bool)
    rare_V[order[np.cumsum(count_V[order]) <= 0.05 * count_V.sum()]] = True
    kinds = {
        "rare tokens": rare_V[y_NT],
        "pairs never seen": kept_and_lost.pair_frequency(tokens.train, ids_NT, y_NT) == 0,
    }
    if tokens.tokenizer:
        kinds["tokens not in Telugu"] = kept_and_lost.scripts(tokens.tokenizer, windows, rows) != 0
    seeds = t.seeds_of(t.models[t.base])
    hard = [comparison.hard_windows(t.losses, m.name, t.teacher, share) for m in seeds]
    effects, masked_N = [], np.isnan(t.losses[t.teacher])  # these are in neither part
    for kind, in_NT in kinds.items():
        share_N = np.where(masked_N, np.nan, in_NT.mean(1))
        what = f"share of {kind}, hardest {share:.0%} − the rest"
        effects.append(_beyond(t, what, [(share_N, hard_N, t.document_N) for hard_N in hard], 1))
    lag_N = np.fmax(t.losses[t.base] - t.losses[t.teacher], 0)
    held = lag_N[hard[0]].sum() / (lag_N.sum() or 1)
    notes = [f"The hardest {share:.0%} hold {held:.0%} of all that {t.base} lost."]
    if len(hard) > 1:
        same = [(h & hard[0]).sum() / (h | hard[0]).sum() for h in hard[1:]]
        notes.append(
            f"Hard sets of {len(hard)} seeds share {min(same):.2f} to {max(same):.2f} (Jaccard; "
            f"{share / (2 - share):.2f} by chance)."
        )
    return effects, notes + memory(this)


def memory(this: Run) -> list[str]:
    """The teacher's memory of its text, as 02 measured it."""
    records = opening.folder_of(this).of("02_hard_set")
    gaps = [row for r in records for row in r["remembered"].get("reality", {}).get("memory", [])]
    return [
        "The teacher's lead on text it has read is larger by "
        f"{intervals.Interval(row['gap'], row['low'], row['high'])} nats than on other text of "
        "the same sources: so much is memory."
        for row in gaps
        if row["name"] == this.parameters["teacher"]
    ]


def _beyond(t: Trial, what: str, seeds: Sequence[tuple], claimed: int, role="claim") -> Effect:
    """The mean in one part beyond that in the other, of each seed's (values, part, documents)."""
    each = [intervals.beyond(*one, t.resamples) for one in seeds]
    return Effect(what, each[0], tuple(e.value for e in each), role, claimed=claimed)


def kept(this: Run, tokens: data.Tokens, t: Trial) -> Measured:
    """How much further behind the teacher the base is in a bucket than on all other tokens: below 0
    is kept, above is lost. The scratch student by the same cuts is shown, not judged."""
    _, windows = split_of(tokens)
    rows_M = evaluate.fixed_rows(windows, this.parameters["fixed_windows"])
    labels, effects = kept_and_lost.cuts(replace(tokens, val=windows), rows_M), []
    loss_MT = {name: t.losses.tokens(name) for name in t.losses.whole if name in t.losses}
    document_MT = np.broadcast_to(t.document_N[rows_M][:, None], loss_MT[t.teacher].shape)
    roles = {
        name: role for name, role in ((t.base, "claim"), (t.scratch, "part")) if name in loss_MT
    }
    for cut, bucket, claimed in kinds():
        names, at_MT = labels.get(cut, ([], None))
        in_MT = at_MT == names.index(bucket) if bucket in names else np.zeros(1, bool)
        if in_MT.sum() < tables.FEW:
            continue
        for name, role in roles.items():
            seeds = [m.name for m in t.seeds_of(t.models[name]) if m.name in loss_MT]
            lags = [loss_MT[seed] - loss_MT[t.teacher] for seed in seeds]
            each = [(lag_MT.ravel(), in_MT.ravel(), document_MT.ravel()) for lag_MT in lags]
            effects.append(_beyond(t, f"{bucket} ({cut}), {name}", each, claimed, role))
    return effects, diversity(this)


def kinds() -> list[tuple[str, str, int]]:
    """Cut and bucket of each kind of token that the claim names, and the sign that it claims."""
    claim = next(row for row in CLAIMS["claims"] if row["key"] == "kept")
    signs = ((-1, claim["kept"]), (1, claim["lost"]))
    return [(cut, b, sign) for sign, cuts in signs for cut, some in cuts.items() for b in some]


def diversity(this: Run) -> list[str]:
    """How much generated texts repeat themselves, as 04 counted it."""
    roles, notes = [this.parameters[name] for name in ("base", "teacher")], []
    for record in opening.folder_of(this).of("04_merge_eval"):
        texts = record["remembered"].get("texts", {})
        if all(name in texts for name in roles):  # null where a text is too short to have any
            two = [intervals.number(texts[name]["distinct_2grams"], ".0%") for name in roles]
            four = [intervals.number(texts[name]["repeated_4grams"], ".1%") for name in roles]
            notes.append(
                f"Diversity, of twenty generated texts: distinct bigrams {two[0]} (teacher "
                f"{two[1]}), repeated 4-grams {four[0]} ({four[1]}); no interval."
            )
    return notes


def sensitivity(this: Run, tokens: data.Tokens, t: Trial) -> Measured:
    """The sensitivity sweep in words: the change of loss on development at each value."""
    val = comparison.window_losses(this, [name for name in t.models if name in t.losses])
    document_N, notes = tokens.documents("val")[0], []
    own, points = t.first(verdict.ADAPTER), opening.folder_of(this).points.items()
    for key in ("share", "rank", "lora_scale"):
        names = {point.varied[key]: n for n, point in points if set(point.varied) == {key}}
        if own:
            given = own.p.get(key)
            names[this.parameters["hard_share"] if given is None else given] = own.name
        if len(names) > 1:
            base_N = val[t.base]
            words = [
                f"{value:g}: {intervals.change(val[name], base_N, document_N, t.resamples)}"
                for value, name in sorted(names.items())
            ]
            notes.append(f"{key} {'; '.join(words)} nats against the base, on development.")
    return [], notes


# key of a claim → what is measured for it besides the effects in claims.yaml
MEASURED = dict(
    distilled=cost, loss=loss_settings, hard=hard_text, adapter=rates, rank=sensitivity, kept=kept
)


def shipped(this: Run) -> tuple[str, str, list[str]]:
    """Merging, speeds and file sizes against the plan's numbers, from the records of 04 and 06."""
    timed = {
        key.removeprefix("shape "): rows
        for record in opening.folder_of(this).of("06_inference")
        for key, rows in record["remembered"].items()
        if key.startswith("shape ")
    }
    checks = merges(this)
    for shape, rows in timed.items():
        checks += speeds(shape, rows)
    missed = [what for what, held in checks if not held]
    notes = [f"{'✓' if held else '✗'} {what}." for what, held in checks]
    if not timed:
        return UNDECIDED, "no speeds of the plan's own shapes were measured (06, shapes)", notes
    if not missed:
        return HOLDS, "every number is reached", notes
    return (PART if len(missed) < len(checks) else FAILS), f"missed: {'; '.join(missed)}", notes


def merges(this: Run) -> list[tuple[str, bool]]:
    """Per adapter whether merging changed nothing but its last digits, and added no weights."""
    path, checks = this.out / "tables/04_merge_eval-merged.csv", []
    for row in pd.read_csv(path).to_dict("records") if path.exists() else []:
        apart, most = (float(row[k]) for k in ("largest logit difference", "of logits up to"))
        weights, base = row["weights"], row["weights of the base"]
        what = f"{row['adapter']} merged: logits up to {most:g} apart by {apart:.1e}"
        what += f", {weights} weights, its base {base}"
        checks.append((what, str(weights) == str(base) and apart <= 1e-4 * most))
    return checks


def speeds(shape: str, timed: dict) -> list[tuple[str, bool]]:
    """Of a shape's ways of writing, the quickest of each of the plan's phases, and the 4-bit file:
    is the plan's lower number reached?"""
    best: dict[str, dict] = {}
    for row in inference.with_plan(shape, timed["rows"]):
        phase = inference.PHASES.get(row["way"])
        if phase and row["decode"] > best.get(phase, {"decode": 0})["decode"]:
            best[phase] = row
    checks = []
    for row in best.values():
        low, high = row["plan"]
        what = f"{shape}, {row['way']}: {row['decode']:,.0f} tokens/s on one thread "
        if not math.isnan(low):
            checks.append((f"{what}(the plan: {low:g}–{high:g})", row["decode"] >= low))
    size, (low, _) = timed["bytes"]["Q4_0"] / 1e6, of_plan(shape, "megabytes")
    if math.isnan(low):
        return checks
    limit = Q4_LIMIT / 1e6 * low / 30  # as 33 MB for the plan's "~30 MB"
    return [*checks, (f"{shape}, Q4_0: {size:.1f} MB (the plan: ~{low:g})", size <= limit)]


def recipe(this: Run, tokens: data.Tokens, t: Trial) -> tuple[list[Effect], str]:
    """The recipe against the plan's own route: the effects, and in words with both routes' cost."""
    effects = t.effects(CLAIMS["recipe"])
    if not effects:
        return (
            [],
            "No recipe was run here: the sweep that `recipe` names has no point that is done.",
        )
    result, why = judge(effects[:1])
    how = {HOLDS: "**beats**", PART: "beats, with a reserve,", FAILS: "**loses to**"}
    verb, spent = how.get(result, "is not clearly better than"), comparison.made(this, tokens)
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
        if name in t.losses.read:  # no verdict needs the others
            loss, change = hard_set.known_mean(t.losses[name]), f"{t.change(name, t.base)}"
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
    models = {model.name: model for model in tried.values()}
    val, document_N = comparison.window_losses(this, [*models]), tokens.documents("val")[0]
    loss = {name: hard_set.known_mean(loss_N) for name, loss_N in val.items()}
    order = sorted(loss, key=loss.get)
    # the recipe's own run may be longer than what it was chosen from
    wanted = t.models[t.recipe or order[0]].p
    same = (n for n in order if all(models[n].p[key] == wanted.get(key) for key in TRIED))
    chosen, rows = next(same, order[0]), []
    for name in order:
        row = {key: models[name].p[key] for key in TRIED}
        if row["ce_weight"] == 1:
            row["temperature"] = "–"
        change = intervals.change(val[name], val[chosen], document_N, t.resamples)
        against = "the recipe" if name == chosen else f"{change}"
        rows.append(row | {"development": round(loss[name], 4), "against the recipe": against})
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
