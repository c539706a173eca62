"""The calls of 04, 05 and 07: all models of a folder side by side, and 04's verdict in words."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from tdbook.analysis import intervals, verdict
from tdbook.analysis import kept_and_lost as buckets
from tdbook.analysis.verdict import CLAIMS, Model, Trial
from tdbook.book import common
from tdbook.corpus import origins
from tdbook.export import inference
from tdbook.report import plots, tables
from tdbook.runs import notebooks, rules, sweeps
from tdbook.runs.folder import Folder
from tdbook.runs.running import Run
from tdbook.workflow import workload
from tdlib import data, evaluate, generate, hard_set
from tdlib.model import Llama

WORDS = CLAIMS["words"]
COST = ["training tokens", "training, FLOP", "teacher, FLOP", "scoring, FLOP"]
ENOUGH = 0.15  # nats that a teacher must be better than the base for the trial to mean something
MAIN = "adapter on hard against adapter on random"  # what the plan stands or falls with
NOTHING = "nothing: another seed of the base"
PARTS = ("hard", "easy", "all")


def models_of(this: Run) -> list[str]:
    """Every model the folder's results name, largest first; merged models for their adapters."""
    folder = common.folder_of(this)
    names = {name for record in folder.records.values() for name in record["models"]}
    names = (names | this.models.keys() | folder.points.keys()) - folder.adapters.keys()
    return sorted(names, key=lambda name: (-common.row_of(this, name)["parameters"], name))


def window_losses(this: Run, names: list[str]) -> dict[str, np.ndarray]:
    """Each model's loss of every validation window, as its own run left it."""
    places = {name: common.folder_of(this).place(name) for name in names}
    paths = {name: out / f"scores/val/{model}.npy" for name, (out, model) in places.items()}
    losses = {name: np.load(path) for name, path in paths.items()}
    masked_N = np.isnan(list(losses.values())).all(0)  # without a target, for every model
    for name, loss_N in losses.items():
        if not np.isfinite(loss_N[~masked_N]).all():
            raise ValueError(f"{paths[name]} holds losses that are not finite: {hard_set.BROKEN}")
    return losses


def resample(losses: dict, document_N: np.ndarray, resamples: int, seed: int) -> dict:
    """Bootstrapped mean losses of all models over the same documents, {name: (resamples,)}."""
    losses_KN = np.stack(list(losses.values())).astype(np.float64)
    means_RK = intervals.resampled_means(losses_KN, document_N, resamples, seed)
    return dict(zip(losses, means_RK.T, strict=True))


def difference(this: Run, one: str, other: str, tokens: data.Tokens) -> dict:
    """Loss of `one` minus loss of `other`, with its interval over documents."""
    p, losses = this.parameters, window_losses(this, [one, other])
    drawn = resample(losses, origins.of(tokens, "val")[0], p["resamples"], p["seed"])
    low, high = intervals.interval(drawn[one] - drawn[other])
    known_N = ~np.isnan(list(losses.values())).any(0)
    means = {name: float(loss_N[known_N].mean()) for name, loss_N in losses.items()}
    each = {name: intervals.interval(drawn_R) for name, drawn_R in drawn.items()}
    change = {"difference": means[one] - means[other], "low": low, "high": high}
    change |= {"masked": int((~known_N).sum()), "windows": len(known_N)}
    return change | {"losses": means, "intervals": each}


def hard_windows(losses: Mapping, picked_by: str, teacher: str, share: float) -> np.ndarray:
    """Which windows are hard, (N,) bool: the share of those that have a target on which `picked_by`
    fell furthest behind."""
    difficulty_N = losses[picked_by] - losses[teacher]  # NaN, masked whole, is never hard
    return difficulty_N >= hard_set.choose(difficulty_N, hard_set.Rule(share=share)).threshold


def trial(this: Run, losses: Mapping, document_N: np.ndarray, **more) -> Trial:
    """What a verdict reads: the models, or those that losses are of, and which windows are hard."""
    p, models = this.parameters, verdict.models(common.folder_of(this))
    hard_N = hard_windows(losses, p["picked_by"], p["teacher"], p["hard_share"])
    given = {name: p[name] for name in ("base", "scratch", "teacher", "picked_by", "resamples")}
    given |= {"models": {n: m for n, m in models.items() if n in losses}} | more
    return Trial(losses=losses, hard_N=hard_N, document_N=document_N, **given)


def side_by_side(this: Run, names: list[str], tokens: data.Tokens) -> dict[str, dict]:
    """Per model one generated text and how much twenty of them repeat themselves."""
    p, t, columns = this.parameters, tokens.context, {}
    new, rows = min(p["sample_tokens"], t - 8), evaluate.fixed_rows(tokens.val, 20)
    prompts = [tokens.val.ids[i * t :][:8].tolist() for i in rows]
    for name in names:
        net, how = Llama.load(this.path("models", name), this.device), dict(temperature=0.8)
        seeded = enumerate(prompts, start=p["seed"])
        texts = [generate.generate(net, ids, new, seed=seed, **how) for seed, ids in seeded]
        first = tokens.tokenizer.decode(prompts[0] + texts[0])
        columns[name] = {"text": first} | inference.repetition(texts)
    return columns


def kept_and_lost(this: Run, names: list[str], tokens: data.Tokens, judged: list[str]) -> tuple:
    """By kind of token, on the fixed windows, rows of every model's loss; and of the change of the
    `judged` against the base, with intervals."""
    arrays, p = [np.load(this.path("scores", "val", f"{n}.npz")) for n in names], this.parameters
    losses = {name: array["token_loss_MT"] for name, array in zip(names, arrays, strict=True)}
    rows_M = arrays[0]["rows_M"]
    labels, document_M = buckets.cuts(tokens, rows_M), origins.of(tokens, "val")[0][rows_M]
    asked = p["base"], judged, document_M, p["resamples"]
    return buckets.kept_and_lost(losses, labels, *asked)


def show_sweep(this: Run, sweep: str, t: Trial) -> str:
    """A sweep's table and figures, and those of seeds together. Its best point in a sentence."""
    points = {n: p for n, p in common.folder_of(this).points.items() if p.sweep == sweep}
    if not points:
        return f"No point of the sweep {sweep} is done."
    rows, notebook = [], sweeps.listed(this.out, sweep)["notebook"]
    for name, point in points.items():
        row = point.metrics | {"point": name, "varied": point.varied}
        row |= {"parameters": point.record["parameters"], "minutes": point.record["seconds"] / 60}
        rows.append(row | {part: t.change(name, t.base, part) for part in PARTS})
    this.table(f"sweep-{sweep}", tables.sweep(rows, notebook))
    names = {name for row in rows for name in row["varied"]}
    hints = {name: hint for name in names if (hint := rules.plan(notebook, name))}
    alt = f"Difference from the base at every point of the sweep {sweep}, by setting"
    this.figure(f"sweep-{sweep}", plots.sweep(rows, hints), alt)
    if len(together := tables.seeds(rows)):
        this.table(f"sweep-{sweep}-seeds", together)
    best = min(rows, key=lambda row: row["loss"])
    lowest = f"{best['point']} has the lowest loss: {best['all']} against {t.base}"
    warning = "the best of many looks better than it is"
    return f"Of {len(rows)} models of the sweep {sweep}, {lowest}; {warning}."


def made(this: Run, tokens: data.Tokens) -> dict[str, dict[str, str]]:
    """What each model is, and its cost: tokens and FLOP of its own training (with its base's), FLOP
    of its teachers' forwards, and of scoring the windows where it replays scores."""
    folder, rows = common.folder_of(this), {}
    models, context = verdict.models(folder), tokens.context
    shorts = (record["remembered"].get("short") for record in folder.of(notebooks.HARD_SET))
    short = next(filter(None, shorts), {"windows": 0})
    scored = short["windows"] * short.get("scored", 1) * context
    for name, model in models.items():
        replays = model.base and model.p["windows"] in ("hard", "easiest")
        readers = (model.base, model.p["teacher"]) if replays else ()
        scoring = scored * sum(workload.forward_flop(folder.shape(n), context) for n in readers)
        trained, *flop = _cost(folder, model, models, tokens)
        numbers = f"{trained:,.0f}", *(f"{n:.2g}" for n in (*flop, scoring))
        written = [number if float(number.replace(",", "")) else "–" for number in numbers]
        rows[name] = {"made": model.kind} | dict(zip(COST, written, strict=True))
    return rows


def _cost(folder: Folder, model: Model, models: dict, tokens: data.Tokens) -> np.ndarray:
    """Tokens and FLOP of a training, and FLOP of its teachers' forwards; (3,), those of what it
    began from too."""
    p, context = model.p, tokens.context
    config = folder.shape(model.base if model.adapter else model.name)
    flop = workload.step_flop(config, context, frozen=model.adapter)
    flop += 6 * workload.adapter_parameters(config, p["rank"]) if model.adapter else 0
    middle = model.notebook == notebooks.PROGRESSIVE and model.name.endswith("75m")
    by, asked = model.name.removesuffix("75m") + "150m" if middle else "", 0.0
    if p.get("ce_weight", 1) < 1:  # 00 has no such parameter
        read = p.get("distinct_tokens") or len(tokens.train.ids)
        seen = min(model.tokens, read) if p.get("cached_draws") else model.tokens
        asked = seen * workload.forward_flop(folder.shape(by or p["teacher"]), context)
    own, before = np.array([model.tokens, model.tokens * flop, asked]), by or model.base
    return own + (_cost(folder, models[before], models, tokens) if before in models else 0)


# the verdict of 04: what claims.yaml lists of two claims, each of hard, easy and all text


def _listed(key: str) -> dict[str, dict]:
    """Question ("adapter on hard against its base") → row of claims.yaml; in 04 the folder's own
    model stands for the best."""
    rows = next(claim["effects"] for claim in CLAIMS["claims"] if claim["key"] == key)
    rows = [(next(iter(row.values())), row) for row in rows if not row.keys() & {"part", "text"}]
    return {words.replace("best ", "").replace("−", "against"): row for words, row in rows}


def comparisons(t: Trial) -> dict[str, tuple[Model, Model]]:
    """Question → the two models, of all that is there."""
    rows = _listed("distilled") | _listed("adapter")
    pairs = {question: pair for question, row in rows.items() for _, _, *pair in t.pairs([row])}
    base, *seeds = t.seeds_of(t.models[t.base])
    seeds = [model for model in seeds if model.own] or seeds
    return pairs | ({NOTHING: (seeds[0], base)} if seeds else {})


def verdict_table(t: Trial) -> pd.DataFrame:
    """The comparisons: changes of loss with their intervals, and over seeds."""
    rows, how = [], {-1: "better", 0: "not clearly apart", 1: "worse"}
    for question, (one, other) in comparisons(t).items():
        effects = {part: t.effect(one, other, part=part) for part in PARTS}
        row = {"question": question, "model": one.name, "against": other.name + _also(one, other)}
        for part, effect in effects.items():
            row[f"{part} text"] = f"{how[effect.change.clear]}, {effect.change}"
        rows.append(row | {"seeds, hard text": effects["hard"].spread})
    return pd.DataFrame(rows)


def limits(t: Trial) -> list[str]:
    """What limits the comparison, most important first, and how much of the gap is closed."""
    rows = _listed("adapter")
    pairs = [q.split(" against ") for q, row in rows.items() if row.get("needed", True)]
    roles = dict.fromkeys(role for pair in pairs for role in pair)
    missing = ", ".join(role for role in roles if not t.first(role))
    lines = warnings(t) + t.gaps(rows.values())
    lines += [f"Not run, so not compared: {missing}."] * bool(missing)
    return lines + [WORDS["chance"].format(t=t)] * (NOTHING not in comparisons(t))


def warnings(t: Trial) -> list[str]:
    """What makes the trial mean little, said before it."""
    lines = []
    if t.teacher in t.models:
        behind = t.change(t.base, t.teacher)
        words = WORDS["lag" if behind.value >= ENOUGH else "little"]
        lines.append(words.format(t=t, behind=behind, enough=ENOUGH))
    made = [model.name for model in t.models.values() if model.base == t.picked_by]
    if t.picked_by in (t.base, t.scratch, t.teacher) or made:
        lines.append(WORDS["picker"].format(t=t, made=", ".join(made)))
    return lines


def headline(t: Trial) -> str:
    """The comparison that decides the plan's claim, or the first there is, after what warns."""
    lines = [line.replace("**", "") for line in warnings(t) if line.startswith("**⚠")]
    rows = verdict_table(t).to_dict("records")
    rows = [row for row in rows if row["question"] == MAIN] or rows[:1]
    return " ".join(lines + [WORDS["headline"].format(**row) for row in rows])


def _also(one: Model, other: Model) -> str:
    """What two models of 03 differ in besides the windows and what trains."""
    names = (*rules.ADAPTERS, *rules.REPLAYS) if one.adapter == other.adapter else rules.REPLAYS
    values = [[name, *(m.p.get(name) for m in (one, other))] for name in names]
    # null is what 02's choice, or the run that made the base, has
    odd = [
        ["inherited" if v is None else f"{v}" for v in row] for row in values if row[1] != row[2]
    ]
    words = ", ".join(f"{name} {a} against {b}" for name, a, b in odd)
    return f" ({words})" if odd and one.base and other.base else ""
