"""The calls of 04, 05 and 07: all models of a folder side by side, and 04's verdict in words."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from tdbook.analysis import features, intervals, verdict
from tdbook.analysis.intervals import Interval
from tdbook.analysis.verdict import Model, Trial, Verdict
from tdbook.book import common
from tdbook.corpus import token_files
from tdbook.export import gguf_file, inference
from tdbook.export.decoder import Decoder
from tdbook.report import plots, tables, words
from tdbook.runs import notebooks
from tdbook.runs.running import Run
from tdbook.runs.sweeps import Folder
from tdbook.workflow import workload
from tdlib import checkpoint, data, evaluate, generate, hard_set
from tdlib.model import Llama

WORDS = verdict.CLAIMS["words"]
JUDGED = ("distilled", "distilled_t1", "adapter", "gap")  # rows of claims.yaml that 04 judges
FLOP = dict.fromkeys(["training, FLOP", "teacher, FLOP", "scoring, FLOP"], ".2g")
COST = {"training tokens": ",.0f"} | FLOP  # column → form
ROUNDED = 64  # windows on which a model is measured as its four-bit file; 04 says so
ENOUGH = 0.15  # nats that a teacher must be better than the base for the trial to mean something


def models_of(this: Run) -> list[str]:
    """Every model the folder's results name, largest first, merged models for their adapters. Last
    come points of sweeps, and other seeds and earlier ends of a training with a trunk."""
    models, first = verdict.models(common.folder_of(this)), []
    for model in sorted((m for m in models.values() if m.own), key=lambda m: (m.seeds, -m.tokens)):
        trunks = (m for m in first if m.p.get("schedule") == "wsd")
        again = any(m.same_but(model, {"seed", *checkpoint.LENGTH}) for m in trunks)
        first += [] if again and model.name != this.parameters["base"] else [model]
    size = {name: common.row_of(this, name)["parameters"] for name in models}
    return sorted(models, key=lambda name: (models[name] not in first, -size[name], name))


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


def difference(this: Run, one: str, other: str, tokens: data.Tokens) -> tuple[Interval, np.ndarray]:
    """Loss of `one` minus loss of `other` over documents, and which windows have a target, (N,)."""
    pair = window_losses(this, [one, other]).values()
    return intervals.change(*pair, token_files.origins(tokens, "val")[0]), ~np.isnan(sum(pair))


def rounding(this: Run, losses: Mapping, tokens: data.Tokens) -> dict[str, Interval]:
    """How each model's loss changes with the weights that its Q4_0 file holds, on ROUNDED windows,
    with its interval over documents; exactly 0 where they are its own. An adapter makes no file."""
    rows_W, changes = evaluate.fixed_rows(tokens.val, ROUNDED), {}
    document_W = token_files.origins(tokens, "val")[0][rows_W]
    for name, loss_N in losses.items():
        out, model = common.folder_of(this).place(name)
        if not (folder := out / "models" / model).is_dir():
            continue
        net, own_W = Llama.load(folder, this.device), loss_N[rows_W]
        as_q4 = gguf_file.rounded(net, inference.mean_squares(net, tokens.train))
        same = all(map(torch.equal, net.parameters(), as_q4.parameters()))
        loss_W = own_W if same else hard_set.window_loss(as_q4, tokens.val, rows_W, this.device)
        changes[name] = intervals.change(loss_W, own_W, document_W)
    return changes


def hard_windows(losses: Mapping, picked_by: str, teacher: str, share: float) -> np.ndarray:
    """Windows that `picked_by` is furthest behind on, a share of those with a target, (N,)."""
    difficulty_N = losses[picked_by] - losses[teacher]  # NaN, masked whole, is never hard
    return difficulty_N >= hard_set.choose(difficulty_N, hard_set.Rule(share=share)).threshold


def trial(this: Run, losses: Mapping, document_N: np.ndarray, **more) -> Trial:
    """What a verdict reads: the models, or those that losses are of, and the notebook's roles."""
    p, models = this.parameters, verdict.models(common.folder_of(this))
    given = {name: p[name] for name in ("base", "scratch", "teacher", "picked_by")}
    given |= {"models": {n: m for n, m in models.items() if n in losses}} | more
    return Trial(losses=losses, document_N=document_N, **given)


def side_by_side(this: Run, names: list[str], tokens: data.Tokens) -> list[dict]:
    """A row a model: one generated text, and how much twenty of them repeat themselves."""
    p, t, rows, how = this.parameters, tokens.context, [], {"temperature": 0.8}
    new = min(p["sample_tokens"], t - 8)
    prompts = [tokens.val.ids[i * t :][:8].tolist() for i in evaluate.fixed_rows(tokens.val, 20)]
    for name in names:
        net = Decoder(Llama.load(this.path("models", name), this.device))
        seeded = enumerate(prompts, start=p["seed"])
        texts = [generate.generate(net, x, new, seed=seed, **how) for seed, x in seeded]
        first = tokens.tokenizer.decode(prompts[0] + texts[0])
        row = {"model": name, "text": first.replace("\n", " ¶ ")}  # a row of Markdown is one line
        rows.append(row | how | inference.repetition(texts))
    return rows


def kept_and_lost(this: Run, names: list[str], tokens: data.Tokens, judged: list[str]) -> tuple:
    """By kind of token, on windows fixed in every run: models' losses, changes of the `judged`."""
    arrays = {name: np.load(this.path("scores", "val", f"{name}.npz")) for name in names}
    rows_M = sorted(set.intersection(*(set(array["rows_M"]) for array in arrays.values())))
    losses = {n: a["token_loss_MT"][np.isin(a["rows_M"], rows_M)] for n, a in arrays.items()}
    labels = features.token_cuts(tokens, rows_M)
    losses["unigram"] = features.unigram_loss(tokens, rows_M)
    document_M = token_files.origins(tokens, "val")[0][rows_M]
    return features.kept_and_lost(losses, labels, this.parameters["base"], judged, document_M)


def show_sweep(this: Run, sweep: str, losses: Mapping, document_N: np.ndarray) -> str:
    """A sweep's table; its best point in a sentence."""
    points = {n: p for n, p in common.folder_of(this).points.items() if p.sweep == sweep}
    if not points:
        return f"No point of the sweep {sweep} is done."
    rows, p = [], this.parameters
    for name, point in points.items():
        change = intervals.change(losses[name], losses[p["base"]], document_N)
        planned = words.planned(point.record["notebook"], point.varied)
        rows.append(point.metrics | {"point": name, "change": change, "planned": planned})
    rows.sort(key=lambda row: row["loss"])
    this.table(f"sweep-{sweep}", tables.written("sweep", rows))
    return WORDS["sweep"].format(count=len(rows), sweep=sweep, best=rows[0], base=p["base"])


def made(this: Run, tokens: data.Tokens) -> dict[str, dict[str, str]]:
    """What each model is, and its cost (COST), with its base's; scoring where it replays scores."""
    folder, rows = common.folder_of(this), {}
    models, context = verdict.models(folder), tokens.context
    shorts = (record["remembered"].get("short") for record in folder.of(notebooks.HARD_SET))
    short = next(filter(None, shorts), {"windows": 0})
    scored = short["windows"] * short.get("scored", 1) * context
    for name, model in models.items():
        replays = model.base and model.p["windows"] in ("hard", "easiest")
        readers = (model.base, model.p["teacher"]) if replays else ()
        scoring = scored * sum(workload.forward_flop(folder.shape(n), context) for n in readers)
        cost = zip(COST.items(), (*_cost(folder, model, models, tokens), scoring), strict=True)
        written = {name: format(n, form) if n else "–" for (name, form), n in cost}
        rows[name] = {"made": words.say("made", m=model, p=model.p, notebooks=notebooks)} | written
    return rows


def _cost(folder: Folder, model: Model, models: dict, tokens: data.Tokens) -> np.ndarray:
    """Tokens and FLOP of a training, FLOP of its teachers' forwards, with its base's; (3,)."""
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


def show_effects(this: Run, name: str, title: str, verdicts: Sequence[Verdict]) -> None:
    """A figure of the effects that were run, where they are two or more."""
    effects = [e for v in verdicts for e in v.effects if math.isfinite(e.interval.low)]
    drawn = [e for e in effects if len(next(iter(e.pairs), ())) < 3]  # a share has its own scale
    if len(drawn) > 1:
        figure = plots.effects(drawn, title)
        this.figure(name, figure, alt=f"{title}: every effect with its interval")


def limits(t: Trial, verdicts: Sequence[Verdict]) -> list[str]:
    """What limits the comparison, most important first."""
    pairs = [(t.base, t.teacher)] if t.teacher in t.models else []
    behind = verdict.measure(t.losses, pairs, t.document_N) if pairs else None
    missing = [e.what for v in verdicts for e in v.effects if not e.seeds]
    return words.say("limits", t=t, behind=behind, enough=ENOUGH, missing=missing).splitlines()


def headline(t: Trial, verdicts: Sequence[Verdict]) -> str:
    """Does the adapter on hard windows bring the base near the largest student? In two sentences,
    after what makes the question void."""
    void = [x.replace("**", "") for x in limits(t, verdicts) if x.startswith("**⚠")]
    answer = next(verdict.ANSWERS[v.result] for v in verdicts if v.key == "adapter")
    run = {(v.key, e.role): e for v in verdicts for e in v.effects if e.seeds}
    one, other = (run.get(("adapter", role)) for role in verdict.JUDGED)
    gap = run.get(("gap", "effect"))
    share = gap and Interval(*(100 * x for x in gap.interval))
    values = dict(void=void, answer=answer, one=one, other=other, share=share)
    return words.say("headline", **values, count=verdict.count)
