"""The calls of 04 to 07: all models of a folder side by side."""

import numpy as np

from tdbook.analysis import intervals
from tdbook.analysis import kept_and_lost as buckets
from tdbook.analysis import trial as trials
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


def sweep_rows(
    this: Run, sweep: str, losses: dict, hard_N: np.ndarray, document_N: np.ndarray, base: str
) -> list[dict]:
    """A row a model of a sweep: what varies, its loss, its differences from the base on all, hard
    and easy text with their intervals, KL and minutes."""
    rows, parts = [], {"all": np.ones_like(hard_N), "hard": hard_N, "easy": ~hard_N}
    for name, point in common.folder_of(this).points.items():
        if point.sweep != sweep:
            continue
        record, metrics = point.record, point.metrics
        row = {"point": name, "varied": point.varied, "minutes": record["seconds"] / 60}
        row |= {"loss": metrics["loss"], "kl": metrics["kl"]}
        for part, at_N in parts.items():
            pair = (losses[name][at_N], losses[base][at_N], document_N[at_N])
            row[part] = intervals.change(*pair, this.parameters["resamples"])
        rows.append(row)
    return rows


def show_sweep(this: Run, sweep: str, rows: list[dict], base: str) -> str:
    """A sweep's table and figures; where settings have several seeds, those together. Its best
    point, with its interval, in a sentence."""
    if not rows:
        return f"No point of the sweep {sweep} is done."
    notebook = sweeps.listed(this.out, sweep)["notebook"]
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
        f"{best['all']} against {base}; the best of many looks better "
        "than it is."
    )


def resample(
    losses: dict[str, np.ndarray], document_N: np.ndarray, resamples: int, seed: int
) -> dict[str, np.ndarray]:
    """Bootstrapped mean losses of all models over the same documents, {name: (resamples,)}."""
    losses_KN = np.stack(list(losses.values())).astype(np.float64)
    means_RK = intervals.resampled_means(losses_KN, document_N, resamples, seed)
    return dict(zip(losses, means_RK.T, strict=True))


def difference(this: Run, one: str, other: str, tokens: data.Tokens, resamples: int) -> dict:
    """Loss of `one` minus loss of `other`, with its interval over documents."""
    losses = window_losses(this, [one, other])
    resampled = resample(losses, origins.of(tokens, "val")[0], resamples, this.parameters["seed"])
    low, high = intervals.interval(resampled[one] - resampled[other])
    known_N = ~np.isnan(list(losses.values())).any(0)
    means = {name: float(loss_N[known_N].mean()) for name, loss_N in losses.items()}
    change = {"difference": means[one] - means[other], "low": low, "high": high}
    change |= {"masked": int((~known_N).sum()), "windows": len(known_N)}
    each = {name: intervals.interval(values_R) for name, values_R in resampled.items()}
    return change | {"losses": means, "intervals": each}


def hard_windows(losses: dict, picked_by: str, teacher: str, share: float) -> np.ndarray:
    """Which validation windows are hard, (N,) bool: where `picked_by` fell furthest behind, the
    share of those that have a target."""
    difficulty_N = losses[picked_by] - losses[teacher]  # NaN, masked whole, is never hard
    return difficulty_N >= hard_set.choose(difficulty_N, hard_set.Rule(share=share)).threshold


def side_by_side(
    this: Run, names: list[str], tokens: data.Tokens, new: int, seed: int, beginnings: int = 20
) -> dict[str, dict]:
    """Per model one generated text and how much twenty of them repeat themselves."""
    t, rows = tokens.context, evaluate.fixed_rows(tokens.val, beginnings)
    prompts = [tokens.val.ids[i * t :][:8].tolist() for i in rows]
    columns = {}
    for name in names:
        net = Llama.load(this.path("models", name), this.device)
        new = min(new, t - 8)
        texts = [
            generate.generate(net, ids, new, temperature=0.8, seed=seed + i)
            for i, ids in enumerate(prompts)
        ]
        first = tokens.tokenizer.decode(prompts[0] + texts[0])
        columns[name] = {"text": first} | inference.repetition(texts)
    return columns


def kept_and_lost(
    this: Run, names: list[str], tokens: data.Tokens, judged: list[str]
) -> tuple[list[dict], list[dict]]:
    """By kind of token, on the fixed windows, rows for tables and plots: every model's loss; and
    the change of the `judged` against the base, with intervals."""
    arrays = {name: np.load(this.path("scores", "val", f"{name}.npz")) for name in names}
    rows_M, base = arrays[names[0]]["rows_M"], this.parameters["base"]
    losses = {name: array["token_loss_MT"] for name, array in arrays.items()}
    labels, document_M = buckets.cuts(tokens, rows_M), origins.of(tokens, "val")[0][rows_M]
    some = {name: losses[name] for name in [base, *judged]}
    won = buckets.won_back(some, labels, base, document_M, this.parameters["resamples"])
    return buckets.kept_and_lost(losses, labels), won


def calibrations(this: Run, names: list[str]) -> dict[str, dict]:
    """Per model its bins of confidence, accuracy and share."""
    arrays = {name: np.load(this.path("scores", "val", f"{name}.npz")) for name in names}
    keys = ("confidence", "accuracy", "share")
    return {name: {k: array[k].tolist() for k in keys} for name, array in arrays.items()}


def trained(this: Run) -> dict[str, trials.Model]:
    """Every trained model of the folder and of the sweeps that are named, and how it was made."""
    folder = common.folder_of(this)
    points = {label: (point.model, point.record) for label, point in folder.points.items()}
    return trials.models(folder.records.values(), points)


def trial(
    this: Run,
    losses: dict[str, np.ndarray],
    hard_N: np.ndarray,
    document_N: np.ndarray,
    models: dict[str, trials.Model] | None = None,
) -> trials.Trial:
    """What a verdict reads: the models given, or those that losses are of."""
    names = ("base", "scratch", "teacher", "picked_by", "resamples")
    given = {name: this.parameters[name] for name in names}
    models = models or {name: m for name, m in trained(this).items() if name in losses}
    return trials.Trial(models, losses, hard_N, document_N, **given)


def made(this: Run, tokens: data.Tokens) -> dict[str, dict[str, str]]:
    """What each model is and what it cost, for the quality table."""
    arms = trained(this)
    return {
        name: {"made": arms[name].kind}
        | {f"{what}, FLOP": f"{n:.2g}" if n else "–" for what, n in spent.items()}
        for name, spent in costs(this, tokens).items()
    }


def costs(this: Run, tokens: data.Tokens) -> dict[str, dict[str, float]]:
    """FLOP of every model: of its own training (with its base's), of its teachers' forwards, and of
    scoring the windows where it replays scores."""
    folder, arms, rows = common.folder_of(this), trained(this), {}
    shorts = (record["remembered"].get("short") for record in folder.of(notebooks.HARD_SET))
    short = next(filter(None, shorts), {"windows": 0})
    scored = short["windows"] * short.get("scored", 1) * tokens.context
    for name, arm in arms.items():
        training, teacher = _flop(folder, arm, arms, tokens)
        rows[name] = {"training": training, "teacher": teacher, "scoring": 0.0}
        if arm.base and arm.p["windows"] in ("hard", "easiest"):
            shapes = [folder.shape(model) for model in (arm.base, arm.p["teacher"])]
            forward = sum(workload.forward_flop(shape, tokens.context) for shape in shapes)
            rows[name]["scoring"] = scored * forward
    return rows


def _flop(folder: Folder, arm: trials.Model, arms: dict, tokens: data.Tokens) -> tuple:
    """FLOP of training an arm and of its teachers' forwards, those of what it began from too."""
    p, context = arm.p, tokens.context
    config = folder.shape(arm.base if arm.adapter else arm.name)
    flop = workload.step_flop(config, context, frozen=arm.adapter)
    flop += 6 * workload.adapter_parameters(config, p["rank"]) if arm.adapter else 0
    middle = arm.notebook == notebooks.PROGRESSIVE and arm.name.endswith("75m")
    by, asked = arm.name.removesuffix("75m") + "150m" if middle else "", 0.0
    if p.get("ce_weight", 1) < 1:  # 00 has no such parameter
        read = p.get("distinct_tokens") or len(tokens.train.ids)
        seen = min(arm.tokens, read) if p.get("cached_draws") else arm.tokens
        asked = seen * workload.forward_flop(folder.shape(by or p["teacher"]), context)
    before = arms.get(by or arm.base)
    rest = _flop(folder, before, arms, tokens) if before else (0.0, 0.0)
    return arm.tokens * flop + rest[0], asked + rest[1]


def written(write: dict, tokens: data.Tokens, prompt: list[int], new: int) -> dict[str, str]:
    """One text a way, after the same beginning."""
    return {
        way: tokens.tokenizer.decode([*prompt, *each(prompt, new)]) for way, each in write.items()
    }


def speeds(
    write: dict, prompt: list[int], new: int, repeats: int, threads: list[int]
) -> list[dict]:
    """Every way with each number of threads."""
    return [row for n in threads for row in inference.speeds(write, prompt, new, repeats, n)]
