"""The plan's tables with our measurement beside them, never in one column; columns: tables.yaml.

Loss is nats per token. Quality is a formula, printed in 04: teacher loss / student loss.
The plan gives percentages without a formula, so the formula is applied to the plan's losses too.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml

from tdbook.analysis import intervals
from tdbook.analysis.intervals import Interval
from tdbook.export import inference
from tdbook.report import words
from tdbook.runs import notebooks, rules
from tdbook.runs.units import Q4_LIMIT, of_plan, q4_0_bytes, span
from tdlib import hard_set
from tdlib.shapes import LlamaConfig

COLUMNS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
FEW = 100  # tokens of a bucket; smaller ones are listed in the table but not drawn
KIND = ["cut", "bucket", "tokens"]  # of a row by kind of token


def _written(table: str, rows: Iterable[Mapping]) -> pd.DataFrame:
    """Rows of numbers as a table to read, the first column its index. Where some windows were left
    out, since none of their tokens is a target, the last column says how many."""
    columns, rows = COLUMNS[table], list(rows)
    written = [{name.format(**r): form.format(**r) for name, form in columns.items()} for r in rows]
    frame = pd.DataFrame(written).set_index(next(iter(columns)))
    if any(left_out := [row.get("windows_left_out", 0) for row in rows]):
        frame["windows left out"] = [f"{count:,}" for count in left_out]
    return frame


def quality(
    metrics: dict, resampled: dict, base: str, scratch: str | None, teacher: str = "teacher"
) -> pd.DataFrame:
    """One row a model: `metrics` (evaluate.Evaluation.row with "parameters"), `resampled` its
    bootstrapped losses, drawn together. Differences are against `base`, with 95 % intervals."""
    rows = []
    for name, m in metrics.items():
        ends = intervals.interval(resampled[name] - resampled[base])
        change, (low, high) = m["loss"] - metrics[base]["loss"], of_plan(name, "loss")
        row = {"model": name, "base": base, "quality": metrics[teacher]["loss"] / m["loss"]}
        row["against"] = "baseline" if name == base else f"{Interval(change, *ends)}"
        row["gap"] = _gap(metrics, resampled, name, scratch, teacher)
        row["plan_loss"], row["plan_formula"] = span(low, high), span(258 / high, 258 / low, 1)
        rows.append(m | row | {"plan_quality": span(*of_plan(name, "quality"), 0)})
    return _written("quality", rows)


def _gap(metrics: dict, resampled: dict, name: str, scratch: str | None, teacher: str) -> str:
    if scratch is None or name in (scratch, teacher):
        return "–" if scratch is None else "0" if name == scratch else "1"
    order = (scratch, name, teacher)
    high, middle, low = (metrics[n]["loss"] for n in order)
    ends = intervals.interval(intervals.gap_closed(*(resampled[n] for n in order)))
    gap = (high - middle) / (high - low) if np.isfinite(ends[0]) else math.nan
    return f"{Interval(gap, *ends):.2f}"


def made(metrics: dict[str, dict], how: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """One row a model, as in `quality`: its loss, what it is, and its cost (book.made)."""
    rows = {name: {"loss": f"{m['loss']:.3f}"} | how.get(name, {}) for name, m in metrics.items()}
    return pd.DataFrame(rows).T.fillna("–").rename_axis("model")


def hard_and_easy(
    losses: dict, hard_N: np.ndarray, document_N: np.ndarray, base: str, resamples: int
) -> pd.DataFrame:
    """Each model's loss on the hard and on the other validation windows, and its change against
    `base` with a 95 % interval over documents; numbers, for a figure and a table alike."""
    rows = {name: {} for name in losses}
    for name, loss_N in losses.items():
        for part, in_N in (("hard", hard_N), ("easy", ~hard_N)):
            pair = loss_N[in_N], losses[base][in_N]
            rows[name][f"loss, {part}"] = hard_set.known_mean(pair[0])
            rows[name][f"change, {part}"] = intervals.change(*pair, document_N[in_N], resamples)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def cost(results: dict[str, dict]) -> pd.DataFrame:
    """Hours of every run, measured here, beside the plan's estimate for a B200."""
    rows, keys = [], {notebooks.HARD_SET: "scores", notebooks.PROGRESSIVE: "75m"}
    for run, result in results.items():
        names = list(result.get("models", {})) or [result["parameters"].get("adapter", "")]
        hours = span(*of_plan(keys.get(result["notebook"], names[0]), "hours"), 0)
        speed = intervals.number(result["tokens_per_second"] or None, ",.0f")
        row = {"run": run, "device": result["device"], "minutes": result["seconds"] / 60}
        rows.append(row | {"speed": speed, "hours": hours})
    return _written("cost", rows)


def sizes(shapes: dict[str, LlamaConfig], teacher: str) -> pd.DataFrame:
    """Real sizes before a run: parameters, of which embedding, compression against the teacher with
    and without the embedding, and the 4-bit file and whether it passes for the plan's 30 MB."""
    rows, largest = [], shapes[teacher]
    whole, body = largest.parameters, largest.parameters - largest.embedding_parameters
    for name, c in shapes.items():
        size, embedding, q4 = c.parameters, c.embedding_parameters, q4_0_bytes(c)
        row = {
            "shape": name,
            "vocab_size": c.vocab_size,
            "passes": "yes" if q4 <= Q4_LIMIT else "no",
        }
        row |= {"parameters": size / 1e6, "embedding": embedding / 1e6, "q4": q4 / 1e6}
        rows.append(row | {"compression": whole / size, "body": body / (size - embedding)})
    return _written("sizes", rows)


def metrics(rows: dict[str, dict]) -> pd.DataFrame:
    """Every metric of some models, the first one the baseline, with the difference in loss."""
    first, *_ = rows
    base = {"first": first, "lost": rows[first]["loss"]}
    named = (row | base | {"model": name} for name, row in rows.items())
    return _written("metrics", [row | {"change": row["loss"] - row["lost"]} for row in named])


def likeliest(model, tokenizer, ids: list[int], temperatures: tuple[float, ...]) -> pd.DataFrame:
    """The five likeliest next pieces after some ids, at several temperatures."""
    columns = {}
    with torch.no_grad():
        logits_V = model(torch.tensor([ids], device=model.head.device))[0, -1].float()
    for t in dict.fromkeys(temperatures):
        top = (logits_V / t).softmax(-1).topk(5)
        pieces = [tokenizer.pieces([ids[-1], i])[-1] for i in top.indices.tolist()]  # as the next
        columns |= {f"piece at T = {t:g}": [p.replace("▁", " ") for p in pieces]}
        columns |= {f"probability at T = {t:g}": [f"{p:.1%}" for p in top.values.tolist()]}
    return pd.DataFrame(columns, index=pd.RangeIndex(1, 6, name="rank"))


def by_cut(hard_N: np.ndarray, scored_N: np.ndarray, cuts: dict[str, tuple]) -> dict:
    """Cut (features.cuts) → its groups that have windows, in order: how many of those were scored,
    and the share of them that is hard."""
    tables = {}
    for cut, (names, group_N) in cuts.items():
        count, hard = (np.bincount(group_N[x], minlength=len(names)) for x in (scored_N, hard_N))
        columns = {"windows": count, "hard windows": hard, "hard": hard / count.clip(1)}
        table = pd.DataFrame(columns, index=pd.Index(names, dtype=object, name=cut))
        tables[cut] = table[count > 0]
    return tables


def texts(by_model: dict[str, dict]) -> pd.DataFrame:
    """Generated texts side by side, and how much each model repeats itself."""
    frame = pd.DataFrame(by_model).T.rename_axis("model")
    frame["text"] = frame["text"].str.replace("\n", " ¶ ")  # a row of Markdown is one line
    shares = {"repeated_4grams": "repeated 4-grams", "distinct_2grams": "distinct bigrams"}
    frame[[*shares]] = frame[[*shares]].map(lambda share: intervals.number(share, ".1%"))
    return frame.rename(columns=shares)


def kept_and_lost(rows: list[dict], teacher: str, names: list[str]) -> pd.DataFrame:
    """Per kind of token: how many, the teacher's loss, and how far each model is behind it."""
    table = pd.DataFrame(rows).set_index(KIND)
    lags = table[[name for name in names if name in table]].sub(table[teacher], axis=0)
    lags = lags.map("{:+.3f}".format).add_suffix(f" − {teacher}")
    lags.insert(0, teacher, table[teacher].map("{:.3f}".format))
    return lags.reset_index("tokens")


def won_back(rows: list[dict]) -> pd.DataFrame:
    """Per kind of token how many, and each model's change against the base with its interval."""
    return pd.DataFrame(rows).set_index(KIND).map("{:.3f}".format).reset_index("tokens")


def route_cost(routes: dict[str, list[list[dict]]]) -> pd.DataFrame:
    """Tokens and minutes of training of each route, from the logs of its students."""
    rows = []
    for name, logs in routes.items():
        ends, plan = [log[-1] for log in logs], {"progressive": "75m"}.get(name, "75m-direct")
        seconds = sum(r["tokens"] / r.get("train/tokens_per_sec", math.nan) for r in ends)
        row = {"route": name, "students": len(logs), "tokens": sum(r["tokens"] for r in ends)}
        rows.append(row | {"minutes": seconds / 60, "hours": span(*of_plan(plan, "hours"), 0)})
    return _written("route_cost", rows)


def sweep(rows: list[dict], notebook: str) -> pd.DataFrame:
    """One row a model, best first (see book.sweep_rows). * marks a value that the plan names."""
    rows = sorted(rows, key=lambda row: row["loss"])
    numbers = _written("sweep", rows)
    table = {"point": [row["point"] for row in rows]}
    for name in dict.fromkeys(name for row in rows for name in row["varied"]):
        plan = rules.plan(notebook, name)
        table[name] = [words.setting(row["varied"].get(name, "–"), plan) for row in rows]
    return pd.concat([pd.DataFrame(table), numbers.reset_index()], axis=1)


def seeds(rows: list[dict]) -> pd.DataFrame:
    """A row a setting that has several seeds: the mean loss with its 95 % t interval over them;
    empty where none has."""
    losses: dict[str, list[float]] = {}
    for row in rows:
        same = [f"{name} {value}" for name, value in row["varied"].items() if name != "seed"]
        setting = ", ".join([*same, row["point"].partition(" ")[2]]).rstrip(", ") or "as it is"
        losses.setdefault(setting, []).append(row["loss"])
    several = [(setting, np.array(x)) for setting, x in losses.items() if len(x) > 1]
    table = [(s, len(x), "{:.3f} ± {:.3f}".format(*intervals.over_seeds(x))) for s, x in several]
    return pd.DataFrame(table, columns=["setting", "seeds", "loss"])


def speeds(by_model: dict[str, list[dict]]) -> pd.DataFrame:
    """Model → rows of inference.speeds with the plan's estimate: a row a model, way and threads."""
    rows = []
    for model, ways in by_model.items():
        first = {row["threads"]: row["decode"] for row in ways if row["way"] == inference.RAW}
        for row in ways:
            more = {"times": row["decode"] / first[row["threads"]], "plan": span(*row["plan"], 0)}
            rows.append(row | more | {"model": model})
    return _written("speeds", rows)


def quantization(by_model: dict[str, list[dict]]) -> pd.DataFrame:
    """Model → rows of inference.costs, each against the model itself."""
    rows = []
    for model, costs in by_model.items():
        plan = {"Q4_0": span(*of_plan(model, "megabytes"), 0)}
        for row in costs:
            row = row | {"model": model, "plan": plan.get(row["format"], "–")}
            row |= {"change": row["loss"] - costs[0]["loss"], "megabytes": row["bytes"] / 1e6}
            rows.append(row | {"repeated": intervals.number(row["repeated_4grams"], ".1%")})
    return _written("quantization", rows)


def files(shipped: dict[str, list[dict]]) -> pd.DataFrame:
    """Model → rows of export.ship."""
    rows = ({"model": model} | row for model, rows in shipped.items() for row in rows)
    return _written("files", [row | {"megabytes": row["bytes"] / 1e6} for row in rows])


def shape_files(timed: dict[str, dict]) -> pd.DataFrame:
    """Shape → what inference.of_shape gives: megabytes of every format, the plan's beside Q4_0."""
    rows = []
    for name, shape in timed.items():
        row = {"shape": f"{name} (random weights)", "weights": f"{shape['parameters'] / 1e6:.1f} M"}
        row |= {f"{form}, MB": f"{size / 1e6:.1f}" for form, size in shape["bytes"].items()}
        rows.append(row | {"plan: MB": span(*of_plan(name, "megabytes"), 0)})
    return pd.DataFrame(rows)
