"""The plan's tables with our measurement beside them, never in one column.

Loss is nats per token. Quality is a formula, printed in 04: teacher loss / student loss.
The plan gives percentages without a formula, so the formula is applied to the plan's losses too.
"""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from tdbook.analysis import intervals
from tdbook.runs import notebooks, rules
from tdbook.runs.estimates import Q4_LIMIT, describe, of_plan, span
from tdlib import generate, hard_set
from tdlib.shapes import LlamaConfig

FEW = 100  # tokens of a bucket; smaller ones are listed in the table but not drawn


KIND = ["cut", "bucket", "tokens"]  # of a row by kind of token
LEFT_OUT = "windows left out"  # since none of their tokens is a target


def quality(
    metrics: dict[str, dict], resampled: dict[str, np.ndarray], base: str, scratch: str | None,
    teacher: str = "teacher",
) -> pd.DataFrame:  # fmt: skip
    """One row a model: `metrics` (evaluate.Evaluation.row with "parameters"), `resampled` its
    bootstrapped losses, drawn together. Differences are against `base`, with 95 % intervals."""
    rows = []
    for name, m in metrics.items():
        span_of_change = intervals.interval(resampled[name] - resampled[base])
        change = intervals.with_interval(m["loss"] - metrics[base]["loss"], *span_of_change)
        low, high = of_plan(name, "loss")
        rows.append({
            "model": name, "parameters": f"{m['parameters']:,}", "loss": f"{m['loss']:.3f}",
            f"against {base}": "baseline" if name == base else change,
            "640 windows": f"{m['loss_fixed']:.3f}", "perplexity": f"{m['perplexity']:.3g}",
            "bits/byte": f"{m['bits_per_byte']:.3f}", "KL to teacher": f"{m['kl']:.3f}",
            "agreement": f"{m['agreement']:.1%}",
            "calibration error": f"{m['calibration_error']:.1%}",
            "gap closed": _gap(metrics, resampled, name, scratch, teacher),
            "quality": f"{metrics[teacher]['loss'] / m['loss']:.1%}",
            "plan: loss": span(low, high),
            "plan's loss, our formula": span(258 / high, 258 / low, 1),
            "plan: quality %": span(*of_plan(name, "quality"), 0),
        })  # fmt: skip
    table = pd.DataFrame(rows).set_index("model")
    if any(left_out := [m.get("windows_left_out", 0) for m in metrics.values()]):
        table[LEFT_OUT] = left_out
    return table


def made(metrics: dict[str, dict], how: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """One row a model, as in `quality`: its loss, what it is, and its cost (book.made)."""
    rows = {name: {"loss": f"{m['loss']:.3f}"} | how.get(name, {}) for name, m in metrics.items()}
    return pd.DataFrame(rows).T.fillna("–").rename_axis("model")


def _gap(metrics: dict, resampled: dict, name: str, scratch: str | None, teacher: str) -> str:
    if scratch is None or name in (scratch, teacher):
        return "–" if scratch is None else "0" if name == scratch else "1"
    values_R = intervals.gap_closed(*(resampled[n] for n in (scratch, name, teacher)))
    if not np.isfinite(values_R).any():
        return "undefined"
    low, middle, high = (metrics[n]["loss"] for n in (teacher, name, scratch))
    return intervals.with_interval((high - middle) / (high - low), *intervals.interval(values_R), 2)


def hard_and_easy(
    window_loss: dict[str, np.ndarray], hard_N: np.ndarray, document_N: np.ndarray, base: str,
    resamples: int,
) -> pd.DataFrame:  # fmt: skip
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


def cost(results: dict[str, dict]) -> pd.DataFrame:
    """Hours of every run, measured here, beside the plan's estimate for a B200."""
    rows = []
    for run, result in results.items():
        names = list(result.get("models", {})) or [result["parameters"].get("adapter", "")]
        keys = {notebooks.HARD_SET: "scores", notebooks.PROGRESSIVE: "75m"}
        key = keys.get(result["notebook"], names[0])
        rows.append({
            "run": run, "device": result["device"], "minutes": f"{result['seconds'] / 60:.2f}",
            "tokens/s": f"{speed:,.0f}" if (speed := result["tokens_per_second"]) else "–",
            "plan: hours on a B200": span(*of_plan(key, "hours"), 0),
        })  # fmt: skip
    return pd.DataFrame(rows).set_index("run")


def sizes(
    shapes: dict[str, dict | LlamaConfig], vocab_sizes: list[int], teacher: str
) -> pd.DataFrame:
    """Real sizes before a run: parameters, of which embedding, compression against the teacher with
    and without the embedding, and the 4-bit file and whether it passes for the plan's 30 MB."""
    rows = {}
    for v in vocab_sizes:
        configs = {
            name: s if isinstance(s, LlamaConfig) else LlamaConfig(vocab_size=v, **s)
            for name, s in shapes.items()
        }
        for name, config in configs.items():
            (all_, part, q4), (of_all, of_part, _) = (
                (d["parameters"], d["embedding_parameters"], d["q4_0_bytes"])
                for d in map(describe, (config, configs[teacher]))
            )
            rows[f"{v:,}", name] = {
                "parameters": f"{all_ / 1e6:.1f} M", "of which embedding": f"{part / 1e6:.1f} M",
                "compression": f"{of_all / all_:.2f}×",
                "without embedding": f"{(of_all - of_part) / (all_ - part):.2f}×",
                "Q4_0 file": f"{q4 / 1e6:.1f} MB",
                "passes 33 MB": "yes" if q4 <= Q4_LIMIT else "no",
            }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["vocabulary", "shape"])


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
    for t in dict.fromkeys(temperatures):
        top = generate.likeliest(model, ids, 5, t)
        pieces = [tokenizer.pieces([ids[-1], i])[-1] for i in top]  # each as the next one
        columns |= {f"piece at T = {t:g}": [p.replace("▁", " ") for p in pieces]}
        columns |= {f"probability at T = {t:g}": [f"{p:.1%}" for p in top.values()]}
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


def ends(table: pd.DataFrame) -> tuple[str, str]:
    """The groups of a cut with the smallest and the largest hard share; those with less than 1 % of
    the windows say too little, unless there are no others."""
    some = table[table["windows"] >= 0.01 * table["windows"].sum()]
    return some["hard"].idxmin(), some["hard"].idxmax()


def texts(found: dict[str, dict]) -> pd.DataFrame:
    """Generated texts side by side, and how much each model repeats itself."""
    frame = pd.DataFrame(found).T.rename_axis("model")
    frame["text"] = frame["text"].str.replace("\n", " ¶ ")  # a row of Markdown is one line
    shares = {"repeated_4grams": "repeated 4-grams", "distinct_2grams": "distinct bigrams"}
    for column in shares:
        frame[column] = [intervals.number(share, ".1%") for share in frame[column]]
    return frame.rename(columns=shares)


def hard_and_easy_words(parts: pd.DataFrame) -> pd.DataFrame:
    """The numbers of hard_and_easy as a table to read."""
    columns = {}
    for part in ("hard", "easy"):
        spans = parts[[f"{part} {key}" for key in ("change", "low", "high")]].to_numpy()
        columns[f"loss, {part}"] = parts[part].map("{:.3f}".format)
        columns[f"change, {part}"] = [intervals.with_interval(*row) for row in spans]
    return pd.DataFrame(columns, index=parts.index)


def quality_points(metrics: dict[str, dict], resampled: dict[str, np.ndarray]) -> list[dict]:
    """Loss and interval of each model, as plots.quality takes them."""
    return [
        {"name": name, "loss": m["loss"]}
        | dict(zip(("low", "high"), intervals.interval(resampled[name]), strict=True))
        for name, m in metrics.items()
    ]


def kept_and_lost(rows: list[dict], teacher: str, names: list[str]) -> pd.DataFrame:
    """Per kind of token: how many, the teacher's loss, and how far each model is behind it."""
    return pd.DataFrame([
        {key: row[key] for key in KIND} | {teacher: f"{row[teacher]:.3f}"}
        | {f"{n} − {teacher}": f"{row[n] - row[teacher]:+.3f}" for n in names if n in row}
        for row in rows
    ]).set_index(KIND[:2])  # fmt: skip


def won_back(rows: list[dict]) -> pd.DataFrame:
    """Per kind of token how many, and each model's change against the base with its interval."""
    table = [
        {k: v if k in KIND else intervals.with_interval(*v) for k, v in row.items()} for row in rows
    ]
    return pd.DataFrame(table).set_index(KIND[:2])


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
        plan = {"progressive": "75m"}.get(name, "75m-direct")
        rows.append({
            "route": name, "students": len(logs), "tokens": f"{sum(r['tokens'] for r in ends):,}",
            "minutes": f"{seconds / 60:.2f}",
            "plan: hours on a B200": span(*of_plan(plan, "hours"), 0),
        })  # fmt: skip
    return pd.DataFrame(rows).set_index("route")


def sweep(rows: list[dict], notebook: str) -> pd.DataFrame:
    """One row a model, best first (see book.sweep_rows). * marks a value that the plan names."""

    def shown(name: str, value: object) -> str:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return str(value)
        low, high = rules.plan(notebook, name) or (math.inf, -math.inf)
        return f"{value:g}" + " *" * (low <= value <= high)

    columns = list(dict.fromkeys(name for row in rows for name in row["varied"]))
    return pd.DataFrame([
        {"point": row["point"]}
        | {name: shown(name, row["varied"].get(name, "–")) for name in columns}
        | {"loss": f"{row['loss']:.3f}"}
        | {f"{part} text": intervals.with_interval(*row[part]) for part in ("all", "hard", "easy")}
        | {"KL to teacher": f"{row['kl']:.3f}", "minutes": f"{row['minutes']:.1f}"}
        for row in sorted(rows, key=lambda row: row["loss"])
    ])  # fmt: skip


def seeds(rows: list[dict]) -> pd.DataFrame:
    """A row a setting that has several seeds: the mean loss with its 95 % t interval over them;
    empty where none has."""
    losses: dict[str, list[float]] = {}
    for row in rows:
        same = [f"{name} {value}" for name, value in row["varied"].items() if name != "seed"]
        setting = ", ".join([*same, row["point"].partition(" ")[2]]).rstrip(", ") or "as it is"
        losses.setdefault(setting, []).append(row["loss"])
    table = [
        (setting, len(values), "{:.3f} ± {:.3f}".format(*intervals.over_seeds(np.array(values))))
        for setting, values in losses.items() if len(values) > 1
    ]  # fmt: skip
    return pd.DataFrame(table, columns=["setting", "seeds", "loss"])


def speeds(found: dict[str, list[dict]]) -> pd.DataFrame:
    """Model → rows of inference.speeds with the plan's estimate: a row a model, way and threads;
    times of the first way (raw) is the last column of ours."""
    rows = []
    for model, ways in found.items():
        first = {row["threads"]: row["decode"] for row in reversed(ways)}
        first |= {row["threads"]: row["decode"] for row in ways if row["way"] == "raw"}
        rows += [
            {"model": model, "way": row["way"], "threads": row["threads"],
             "prompt, tokens/s": f"{row['prompt']:,.0f}",
             "decoding, tokens/s": f"{row['decode']:,.0f} [{row['low']:,.0f}, {row['high']:,.0f}]",
             "to raw": f"{row['decode'] / first[row['threads']]:.1f} ×",
             "plan: tokens/s": span(*row["plan"], 0)}
            for row in ways
        ]  # fmt: skip
    return pd.DataFrame(rows)


def quantization(found: dict[str, list[dict]]) -> pd.DataFrame:
    """Model → rows of inference.costs, each against the model itself."""
    rows = []
    for model, formats in found.items():
        loss = formats[0]["loss"]
        rows += [
            {"model": model, "format": row["format"], "MB": f"{row['bytes'] / 1e6:.3g}",
             "plan: MB": span(*of_plan(model, "megabytes"), 0) if row["format"] == "Q4_0" else "–",
             "loss": f"{row['loss']:.4f}", "against itself": f"{row['loss'] - loss:+.4f}",
             "KL": f"{row['kl']:.2g}", "agreement": f"{row['agreement']:.2%}",
             "repeated 4-grams": intervals.number(row["repeated_4grams"], ".1%")}
            for row in formats
        ]  # fmt: skip
    return pd.DataFrame(rows)


def files(shipped: dict[str, list[dict]]) -> pd.DataFrame:
    """Model → rows of export.ship."""
    return pd.DataFrame([
        {"model": model, "format": row["format"], "file": row["file"],
         "MB": f"{row['bytes'] / 1e6:.3g}", "same likeliest": f"{row['likeliest']:.2%}",
         "log-probabilities apart": f"{row['mean']:.2g}, at most {row['largest']:.2g}"}
        for model, rows in shipped.items() for row in rows
    ])  # fmt: skip


def shape_files(timed: dict[str, dict]) -> pd.DataFrame:
    """Shape → what inference.of_shape gives: megabytes of every format, the plan's beside Q4_0."""
    return pd.DataFrame([
        {"shape": f"{name} (random weights)", "weights": f"{found['parameters'] / 1e6:.1f} M"}
        | {f"{form}, MB": f"{size / 1e6:.1f}" for form, size in found["bytes"].items()}
        | {"plan: MB": span(*of_plan(name, "megabytes"), 0)}
        for name, found in timed.items()
    ])  # fmt: skip


def written(texts: dict[str, str]) -> pd.DataFrame:
    """Way → text."""
    return pd.DataFrame([{"way": way, "text": text} for way, text in texts.items()])
