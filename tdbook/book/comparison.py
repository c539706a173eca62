"""The calls of 04, 05 and 07: all models of a folder side by side."""

from collections.abc import Mapping

import numpy as np

from tdbook.analysis import intervals, verdict
from tdbook.analysis import kept_and_lost as buckets
from tdbook.analysis.verdict import Model, Trial
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
    """Which validation windows are hard, (N,) bool: where `picked_by` fell furthest behind, the
    share of those that have a target."""
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
        net = Llama.load(this.path("models", name), this.device)
        texts = [
            generate.generate(net, ids, new, temperature=0.8, seed=p["seed"] + i)
            for i, ids in enumerate(prompts)
        ]
        first = tokens.tokenizer.decode(prompts[0] + texts[0])
        columns[name] = {"text": first} | inference.repetition(texts)
    return columns


def kept_and_lost(this: Run, names: list[str], tokens: data.Tokens, judged: list[str]) -> tuple:
    """By kind of token, on the fixed windows, rows of every model's loss; and of the change of the
    `judged` against the base, with intervals."""
    arrays = {name: np.load(this.path("scores", "val", f"{name}.npz")) for name in names}
    rows_M, base = arrays[names[0]]["rows_M"], this.parameters["base"]
    losses = {name: array["token_loss_MT"] for name, array in arrays.items()}
    labels, document_M = buckets.cuts(tokens, rows_M), origins.of(tokens, "val")[0][rows_M]
    some = {name: losses[name] for name in [base, *judged]}
    won = buckets.won_back(some, labels, base, document_M, this.parameters["resamples"])
    return buckets.kept_and_lost(losses, labels), won


def show_sweep(this: Run, sweep: str, t: Trial) -> str:
    """A sweep's table and figures, and those of seeds together. Its best point in a sentence."""
    points = {n: p for n, p in common.folder_of(this).points.items() if p.sweep == sweep}
    if not points:
        return f"No point of the sweep {sweep} is done."
    rows, notebook = [], sweeps.listed(this.out, sweep)["notebook"]
    for name, point in points.items():
        row = point.metrics | {"point": name, "varied": point.varied}
        row |= {"parameters": point.record["parameters"], "minutes": point.record["seconds"] / 60}
        rows.append(row | {part: t.change(name, t.base, part) for part in ("all", "hard", "easy")})
    this.table(f"sweep-{sweep}", tables.sweep(rows, notebook))
    names = {name for row in rows for name in row["varied"]}
    hints = {name: hint for name in names if (hint := rules.plan(notebook, name))}
    alt = f"Difference from the base at every point of the sweep {sweep}, by setting"
    this.figure(f"sweep-{sweep}", plots.sweep(rows, hints), alt)
    if len(together := tables.seeds(rows)):
        this.table(f"sweep-{sweep}-seeds", together)
    best = min(rows, key=lambda row: row["loss"])
    return (
        f"Of {len(rows)} models of the sweep {sweep}, {best['point']} has the lowest loss: "
        f"{best['all']} against {t.base}; the best of many looks better than it is."
    )


def made(this: Run, tokens: data.Tokens) -> dict[str, dict[str, str]]:
    """What each model is, and its FLOP: of its own training (with its base's), of its teachers'
    forwards, and of scoring the windows where it replays scores."""
    folder, rows = common.folder_of(this), {}
    models, context = verdict.models(folder), tokens.context
    shorts = (record["remembered"].get("short") for record in folder.of(notebooks.HARD_SET))
    short = next(filter(None, shorts), {"windows": 0})
    scored = short["windows"] * short.get("scored", 1) * context
    for name, model in models.items():
        training, teacher = _flop(folder, model, models, tokens)
        replays = model.base and model.p["windows"] in ("hard", "easiest")
        readers = (model.base, model.p["teacher"]) if replays else ()
        scoring = scored * sum(workload.forward_flop(folder.shape(n), context) for n in readers)
        flop = {"training": training, "teacher": teacher, "scoring": scoring}
        written = {f"{what}, FLOP": f"{n:.2g}" if n else "–" for what, n in flop.items()}
        rows[name] = {"made": model.kind} | written
    return rows


def _flop(folder: Folder, model: Model, models: dict, tokens: data.Tokens) -> tuple[float, float]:
    """FLOP of a training and of its teachers' forwards, those of what it began from too."""
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
    before = models.get(by or model.base)
    rest = _flop(folder, before, models, tokens) if before else (0.0, 0.0)
    return model.tokens * flop + rest[0], asked + rest[1]
