"""The plan's tables with our measurement beside them, never in one column.

Loss is nats per token. Quality is a formula, printed in 04: teacher loss / student loss.
The plan gives percentages without a formula, so the formula is applied to the plan's losses too.
"""

import math
import re
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import torch

from tdbook.analysis import intervals
from tdbook.analysis.intervals import Interval
from tdbook.runs import notebooks, rules
from tdbook.runs.estimates import Q4_LIMIT, describe, of_plan, span
from tdlib import hard_set
from tdlib.shapes import LlamaConfig

FEW = 100  # tokens of a bucket; smaller ones are listed in the table but not drawn
KIND = ["cut", "bucket", "tokens"]  # of a row by kind of token
LEFT_OUT = "windows left out"  # since none of their tokens is a target


def _written(rows: Iterable[Mapping], columns: str) -> pd.DataFrame:
    """Rows of numbers as a table to read. `columns`: the name of each, then how it is written, as
    str.format takes it, parted by |."""
    forms = [
        re.split(r" (?=\{)", " ".join(column.split()), maxsplit=1) for column in columns.split("|")
    ]
    return pd.DataFrame([{name: form.format(**row) for name, form in forms} for row in rows])


def _of_models(by_model: Mapping[str, list[dict]]) -> list[dict]:
    """Model → rows, as rows that name their model, with megabytes."""
    rows = [{"model": model} | row for model, rows in by_model.items() for row in rows]
    return [row | {"megabytes": row.get("bytes", 0) / 1e6} for row in rows]


def quality(
    metrics: dict[str, dict],
    resampled: dict[str, np.ndarray],
    base: str,
    scratch: str | None,
    teacher: str = "teacher",
) -> pd.DataFrame:
    """One row a model: `metrics` (evaluate.Evaluation.row with "parameters"), `resampled` its
    bootstrapped losses, drawn together. Differences are against `base`, with 95 % intervals."""
    rows = []
    for name, m in metrics.items():
        change = m["loss"] - metrics[base]["loss"]
        ends = intervals.interval(resampled[name] - resampled[base])
        low, high = of_plan(name, "loss")
        row = m | {"model": name, "quality": metrics[teacher]["loss"] / m["loss"]}
        row["against"] = "baseline" if name == base else f"{Interval(change, *ends)}"
        row["gap"] = _gap(metrics, resampled, name, scratch, teacher)
        row["plan_loss"], row["plan_formula"] = span(low, high), span(258 / high, 258 / low, 1)
        rows.append(row | {"plan_quality": span(*of_plan(name, "quality"), 0)})
    columns = """model {model} | parameters {parameters:,} | loss {loss:.3f} | against {against} |
        640 windows {loss_fixed:.3f} | perplexity {perplexity:.3g} | bits/byte {bits_per_byte:.3f} |
        KL to teacher {kl:.3f} | agreement {agreement:.1%} |
        calibration error {calibration_error:.1%} | gap closed {gap} | quality {quality:.1%} |
        plan: loss {plan_loss} | plan's loss, our formula {plan_formula} |
        plan: quality % {plan_quality}"""
    table = _written(rows, columns).rename(columns={"against": f"against {base}"})
    table = table.set_index("model")
    if any(left_out := [m.get("windows_left_out", 0) for m in metrics.values()]):
        table[LEFT_OUT] = left_out
    return table


def _gap(metrics: dict, resampled: dict, name: str, scratch: str | None, teacher: str) -> str:
    if scratch is None or name in (scratch, teacher):
        return "–" if scratch is None else "0" if name == scratch else "1"
    values_R = intervals.gap_closed(*(resampled[n] for n in (scratch, name, teacher)))
    if not np.isfinite(values_R).any():
        return "undefined"
    low, middle, high = (metrics[n]["loss"] for n in (teacher, name, scratch))
    return f"{Interval((high - middle) / (high - low), *intervals.interval(values_R)):.2f}"


def made(metrics: dict[str, dict], how: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """One row a model, as in `quality`: its loss, what it is, and its cost (book.made)."""
    rows = {name: {"loss": f"{m['loss']:.3f}"} | how.get(name, {}) for name, m in metrics.items()}
    return pd.DataFrame(rows).T.fillna("–").rename_axis("model")


def quality_points(metrics: dict[str, dict], resampled: dict[str, np.ndarray]) -> list[dict]:
    """Loss and interval of each model, as plots.quality takes them."""
    rows = []
    for name, m in metrics.items():
        low, high = intervals.interval(resampled[name])
        rows.append({"name": name, "loss": m["loss"], "low": low, "high": high})
    return rows


def hard_and_easy(
    window_loss: dict[str, np.ndarray],
    hard_N: np.ndarray,
    document_N: np.ndarray,
    base: str,
    resamples: int,
) -> pd.DataFrame:
    """Each model's loss on the hard and on the other validation windows, and its change against
    `base` with a 95 % interval over documents; numbers, for a figure and a table alike."""
    rows = {name: {} for name in window_loss}
    for name, loss_N in window_loss.items():
        for part, in_N in (("hard", hard_N), ("easy", ~hard_N)):
            pair = loss_N[in_N], window_loss[base][in_N]
            change = intervals.change(*pair, document_N[in_N], resamples)
            keys = part, f"{part} change", f"{part} low", f"{part} high"
            rows[name] |= zip(keys, (hard_set.known_mean(pair[0]), *change), strict=True)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def hard_and_easy_words(parts: pd.DataFrame) -> pd.DataFrame:
    """The numbers of hard_and_easy as a table to read."""
    columns = {}
    for part in ("hard", "easy"):
        changes = parts[[f"{part} {key}" for key in ("change", "low", "high")]].to_numpy()
        columns[f"loss, {part}"] = parts[part].map("{:.3f}".format)
        columns[f"change, {part}"] = [f"{Interval(*row)}" for row in changes]
    return pd.DataFrame(columns, index=parts.index)


def cost(results: dict[str, dict]) -> pd.DataFrame:
    """Hours of every run, measured here, beside the plan's estimate for a B200."""
    rows, keys = [], {notebooks.HARD_SET: "scores", notebooks.PROGRESSIVE: "75m"}
    for run, result in results.items():
        names = list(result.get("models", {})) or [result["parameters"].get("adapter", "")]
        key = keys.get(result["notebook"], names[0])
        speed = intervals.number(result["tokens_per_second"] or None, ",.0f")
        row = {"run": run, "device": result["device"], "minutes": result["seconds"] / 60}
        rows.append(row | {"speed": speed, "hours": span(*of_plan(key, "hours"), 0)})
    columns = """run {run} | device {device} | minutes {minutes:.2f} | tokens/s {speed} |
        plan: hours on a B200 {hours}"""
    return _written(rows, columns).set_index("run")


def sizes(
    shapes: dict[str, dict | LlamaConfig], vocab_sizes: list[int], teacher: str
) -> pd.DataFrame:
    """Real sizes before a run: parameters, of which embedding, compression against the teacher with
    and without the embedding, and the 4-bit file and whether it passes for the plan's 30 MB."""
    rows = []
    for v in vocab_sizes:
        configs = {
            name: s if isinstance(s, LlamaConfig) else LlamaConfig(vocab_size=v, **s)
            for name, s in shapes.items()
        }
        largest = configs[teacher]
        for name, c in configs.items():
            row = {"vocab_size": v, "shape": name, "all": c.parameters / 1e6}
            row |= {
                "embedding": c.embedding_parameters / 1e6,
                "q4": describe(c)["q4_0_bytes"] / 1e6,
            }
            row["compression"] = largest.parameters / c.parameters
            bodies = [x.parameters - x.embedding_parameters for x in (largest, c)]
            row["body"] = bodies[0] / bodies[1]
            rows.append(row | {"passes": "yes" if row["q4"] * 1e6 <= Q4_LIMIT else "no"})
    columns = """vocabulary {vocab_size:,} | shape {shape} | parameters {all:.1f} M |
        of which embedding {embedding:.1f} M | compression {compression:.2f}× |
        without embedding {body:.2f}× | Q4_0 file {q4:.1f} MB | passes 33 MB {passes}"""
    return _written(rows, columns).set_index(["vocabulary", "shape"])


def metrics(rows: dict[str, dict]) -> pd.DataFrame:
    """Every metric of some models, the first one the baseline, with the difference in loss."""
    frame = pd.DataFrame(rows).T.rename_axis("model")
    names = {"loss_fixed": "loss, fixed windows", "kl": "KL to teacher"}
    frame = frame.rename(columns={"windows_left_out": LEFT_OUT} | names)
    first = next(iter(rows))
    frame.insert(1, f"loss − {first}'s", frame["loss"] - rows[first]["loss"])
    if LEFT_OUT in frame:
        frame[LEFT_OUT] = frame.pop(LEFT_OUT).fillna(0)  # the last column
    whole = frame.columns.isin(["parameters", LEFT_OUT])
    for column, form in zip(frame, np.where(whole, "{:,.0f}", "{:.4f}"), strict=True):
        frame[column] = frame[column].map(form.format)
    return frame


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


def by_source(hard_N: np.ndarray, document_N: np.ndarray, sources: list[str]) -> pd.DataFrame:
    """Per source its windows, and the share of them that is hard."""
    source_N = pd.Series(np.array(sources, dtype=object)[document_N], name="source")
    table = pd.Series(hard_N).groupby(source_N).agg(["size", "sum", "mean"])
    table.columns = ["windows", "hard windows", "hard"]
    return table.sort_values("hard", ascending=False)  # "hard" is a share, for the figure too


def by_cut(
    hard_N: np.ndarray, scored_N: np.ndarray, cuts: dict[str, tuple[list[str], np.ndarray]]
) -> dict[str, pd.DataFrame]:
    """Cut (features.cuts) → its groups that have windows, in order: how many of those were scored,
    and the share of them that is hard."""
    tables = {}
    for cut, (names, group_N) in cuts.items():
        count, hard = (
            np.bincount(group_N[in_N], minlength=len(names)) for in_N in (scored_N, hard_N)
        )
        columns = {"windows": count, "hard windows": hard, "hard": hard / count.clip(1)}
        tables[cut] = pd.DataFrame(columns, index=np.array(names, dtype=object))[count > 0]
    return tables


def texts(found: dict[str, dict]) -> pd.DataFrame:
    """Generated texts side by side, and how much each model repeats itself."""
    frame = pd.DataFrame(found).T.rename_axis("model")
    frame["text"] = frame["text"].str.replace("\n", " ¶ ")  # a row of Markdown is one line
    shares = {"repeated_4grams": "repeated 4-grams", "distinct_2grams": "distinct bigrams"}
    for column in shares:
        frame[column] = [intervals.number(share, ".1%") for share in frame[column]]
    return frame.rename(columns=shares)


def kept_and_lost(rows: list[dict], teacher: str, names: list[str]) -> pd.DataFrame:
    """Per kind of token: how many, the teacher's loss, and how far each model is behind it."""
    table = pd.DataFrame(rows).set_index(KIND[:2])
    columns = {"tokens": table["tokens"], teacher: table[teacher].map("{:.3f}".format)}
    for name in (name for name in names if name in table):
        columns[f"{name} − {teacher}"] = (table[name] - table[teacher]).map("{:+.3f}".format)
    return pd.DataFrame(columns)


def won_back(rows: list[dict]) -> pd.DataFrame:
    """Per kind of token how many, and each model's change against the base with its interval."""
    table = pd.DataFrame(rows).set_index(KIND)
    written = table.map(lambda change: f"{Interval(*change)}")
    return written.reset_index("tokens")


def nested(rows: list[dict]) -> dict[str, dict[str, dict]]:
    """Rows of kept-and-lost or won-back as cut → bucket → model → its value there, for a figure:
    without buckets so small that they would stretch its axis and say nothing."""
    cuts = {}
    for row in rows:
        if row["tokens"] >= FEW:
            values = {key: value for key, value in row.items() if key not in KIND}
            cuts.setdefault(row["cut"], {})[row["bucket"]] = values
    return cuts


def route_cost(routes: dict[str, list[list[dict]]]) -> pd.DataFrame:
    """Tokens and minutes of training of each route, from the logs of its students."""
    rows = []
    for name, logs in routes.items():
        ends = [log[-1] for log in logs]
        seconds = sum(r["tokens"] / r.get("train/tokens_per_sec", math.nan) for r in ends)
        plan = span(*of_plan({"progressive": "75m"}.get(name, "75m-direct"), "hours"), 0)
        row = {"route": name, "students": len(logs), "tokens": sum(r["tokens"] for r in ends)}
        rows.append(row | {"minutes": seconds / 60, "hours": plan})
    columns = """route {route} | students {students} | tokens {tokens:,} | minutes {minutes:.2f} |
        plan: hours on a B200 {hours}"""
    return _written(rows, columns).set_index("route")


def sweep(rows: list[dict], notebook: str) -> pd.DataFrame:
    """One row a model, best first (see book.sweep_rows). * marks a value that the plan names."""

    def value(row: dict, name: str) -> str:
        x = row["varied"].get(name, "–")
        if not isinstance(x, int | float) or isinstance(x, bool):
            return str(x)
        low, high = rules.plan(notebook, name) or (math.inf, -math.inf)
        return f"{x:g}" + " *" * (low <= x <= high)

    rows = sorted(rows, key=lambda row: row["loss"])
    table = {"point": [row["point"] for row in rows]}
    for name in dict.fromkeys(name for row in rows for name in row["varied"]):
        table[name] = [value(row, name) for row in rows]
    table["loss"] = [f"{row['loss']:.3f}" for row in rows]
    for part in ("all", "hard", "easy"):
        table[f"{part} text"] = [f"{Interval(*row[part])}" for row in rows]
    table["KL to teacher"] = [f"{row['kl']:.3f}" for row in rows]
    table["minutes"] = [f"{row['minutes']:.1f}" for row in rows]
    return pd.DataFrame(table)


def seeds(rows: list[dict]) -> pd.DataFrame:
    """A row a setting that has several seeds: the mean loss with its 95 % t interval over them;
    empty where none has."""
    losses: dict[str, list[float]] = {}
    for row in rows:
        same = [f"{name} {value}" for name, value in row["varied"].items() if name != "seed"]
        setting = ", ".join([*same, row["point"].partition(" ")[2]]).rstrip(", ") or "as it is"
        losses.setdefault(setting, []).append(row["loss"])
    table = []
    for setting, values in losses.items():
        if len(values) > 1:
            mean, half = intervals.over_seeds(np.array(values))
            table.append((setting, len(values), f"{mean:.3f} ± {half:.3f}"))
    return pd.DataFrame(table, columns=["setting", "seeds", "loss"])


def speeds(found: dict[str, list[dict]]) -> pd.DataFrame:
    """Model → rows of inference.speeds with the plan's estimate: a row a model, way and threads;
    times of the first way (raw) is the last column of ours."""
    rows = []
    for model, ways in found.items():
        first = {row["threads"]: row["decode"] for row in reversed(ways)}
        first |= {row["threads"]: row["decode"] for row in ways if row["way"] == "raw"}
        for row in ways:
            more = {"times": row["decode"] / first[row["threads"]], "plan": span(*row["plan"], 0)}
            rows.append(row | more | {"model": model})
    columns = """model {model} | way {way} | threads {threads} | prompt, tokens/s {prompt:,.0f} |
        decoding, tokens/s {decode:,.0f} [{low:,.0f}, {high:,.0f}] | to raw {times:.1f} × |
        plan: tokens/s {plan}"""
    return _written(rows, columns)


def quantization(found: dict[str, list[dict]]) -> pd.DataFrame:
    """Model → rows of inference.costs, each against the model itself."""
    rows = _of_models(found)
    for row in rows:
        plan = span(*of_plan(row["model"], "megabytes"), 0)
        row["plan"] = plan if row["format"] == "Q4_0" else "–"
        row["change"] = row["loss"] - found[row["model"]][0]["loss"]
        row["repeated"] = intervals.number(row["repeated_4grams"], ".1%")
    columns = """model {model} | format {format} | MB {megabytes:.3g} | plan: MB {plan} |
        loss {loss:.4f} | against itself {change:+.4f} | KL {kl:.2g} | agreement {agreement:.2%} |
        repeated 4-grams {repeated}"""
    return _written(rows, columns)


def files(shipped: dict[str, list[dict]]) -> pd.DataFrame:
    """Model → rows of export.ship."""
    columns = """model {model} | format {format} | file {file} | MB {megabytes:.3g} |
        same likeliest {likeliest:.2%} |
        log-probabilities apart {mean:.2g}, at most {largest:.2g}"""
    return _written(_of_models(shipped), columns)


def shape_files(timed: dict[str, dict]) -> pd.DataFrame:
    """Shape → what inference.of_shape gives: megabytes of every format, the plan's beside Q4_0."""
    rows = []
    for name, shape in timed.items():
        row = {"shape": f"{name} (random weights)", "weights": f"{shape['parameters'] / 1e6:.1f} M"}
        row |= {f"{form}, MB": f"{size / 1e6:.1f}" for form, size in shape["bytes"].items()}
        rows.append(row | {"plan: MB": span(*of_plan(name, "megabytes"), 0)})
    return pd.DataFrame(rows)


def written(texts: dict[str, str]) -> pd.DataFrame:
    """Way → text."""
    return pd.DataFrame([{"way": way, "text": text} for way, text in texts.items()])
