"""The plan's tables with our measurement beside them, never in one column; columns: tables.yaml.

Loss is nats per token. Quality is a formula, printed in 04: teacher loss / student loss.
The plan gives percentages without a formula, so the formula is applied to the plan's losses too.
"""

import string
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
import yaml

from tdbook.analysis import features, intervals
from tdbook.analysis.intervals import Interval
from tdbook.export import inference
from tdbook.runs import notebooks
from tdbook.runs.units import Q4_LIMIT, minus, of_plan, q4_0_bytes, span
from tdlib.shapes import LlamaConfig

COLUMNS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
FEW = 100  # tokens of a kind; of fewer nothing is claimed
KIND = ["cut", "bucket", "tokens"]  # of a row by kind of token


class _Cell(string.Formatter):
    """str.format, with "–" for a number that is not known, or that an older record lacks; "M"
    before a form: in millions."""

    def get_value(self, key: str, args: tuple, row: Mapping) -> object:
        return row.get(key)

    def format_field(self, value: object, form: str) -> str:
        if form.startswith("M"):
            value, form = value / 1e6, form[1:]
        if isinstance(value, list):  # of a record
            value = Interval(*value)
        number = value is None or isinstance(value, float)
        return minus(intervals.number(value, form)) if number else format(value, form)


def written(table: str, rows: Iterable[Mapping]) -> pd.DataFrame:
    """Rows of numbers as a table to read, the first column its index. Where windows without a
    target were left out, the last column says how many."""
    cell, columns, rows = _Cell().vformat, COLUMNS[table], list(rows)
    if any(row.get("windows_left_out") for row in rows):
        columns = columns | {"windows left out": "{windows_left_out:,}"}
        rows = [{"windows_left_out": 0} | row for row in rows]
    written = [{cell(n, (), r): cell(form, (), r) for n, form in columns.items()} for r in rows]
    return pd.DataFrame(written).set_index(next(iter(columns)))


def quality(metrics: dict, losses: dict, document_N, rounding, base, scratch, teacher="teacher"):
    """One row a model: `metrics` (evaluate.Evaluation.row with "parameters"), `losses` of windows,
    `rounding` (comparison.rounding). Differences are against `base`."""
    rows = []
    for name, m in metrics.items():
        change = intervals.change(losses[name], losses[base], document_N)
        gap = (losses[n][None] for n in (scratch, name, teacher))
        row = {"model": name, "base": base, "quality": metrics[teacher]["loss"] / m["loss"]}
        row |= {"against": "baseline" if name == base else change}
        row |= {"gap": intervals.gap_share(*gap, document_N)}
        low, high = of_plan(name, "loss")
        if name in rounding:
            row["as_q4"] = f"{m['loss'] + rounding[name][0]:.3f} ({Interval(*rounding[name]):.4f})"
        row["plan_loss"], row["plan_formula"] = span(low, high), span(258 / high, 258 / low, 1)
        rows.append(m | row | {"plan_quality": span(*of_plan(name, "quality"), 0)})
    return written("quality", rows)


def cost(results: dict[str, dict]) -> pd.DataFrame:
    """Hours of every run, measured here, beside the plan's estimate for a B200."""
    rows, of_notebook = [], {notebooks.HARD_SET: "scores", notebooks.PROGRESSIVE: "75m"}
    for run, result in results.items():
        names = [*result.get("models", {}), result["parameters"].get("adapter", "")]
        hours = span(*of_plan(of_notebook.get(result["notebook"], names[0]), "hours"), 0)
        rows.append(result | {"run": run, "minutes": result["seconds"] / 60, "hours": hours})
    return written("cost", rows)


def sizes(shapes: dict[str, LlamaConfig], teacher: str) -> pd.DataFrame:
    """Real sizes before a run; `body` is compression without the embedding."""
    rows, largest = [], shapes[teacher]
    for name, c in shapes.items():
        body, whole = (x.parameters - x.embedding_parameters for x in (c, largest))
        row = {"shape": name, "c": c, "compression": largest.parameters / c.parameters}
        row |= {"q4": q4_0_bytes(c), "body": whole / body}
        rows.append(row | {"passes": "yes" if row["q4"] <= Q4_LIMIT else "no"})
    return written("sizes", rows)


def metrics(rows: dict[str, dict]) -> pd.DataFrame:
    """Every metric of some models, the first one the baseline, with the difference in loss."""
    first, base = next(iter(rows.items()))
    named = (row | {"first": first, "model": name} for name, row in rows.items())
    return written("metrics", [row | {"change": row["loss"] - base["loss"]} for row in named])


def kept_and_lost(rows: Iterable[Mapping], base: str, teacher: str) -> pd.DataFrame:
    """Per kind of token: the teacher's loss, how far the base is behind it, and its retention."""
    kept = []
    for row in rows:
        unigram, student, loss = (row[name] for name in ("unigram", base, teacher))
        more = {"lag": student - loss, "retention": features.retention(unigram, student, loss)}
        kept.append(row | more | {"loss": loss, "base": base, "teacher": teacher})
    return written("kept_and_lost", kept)


def speeds(by_model: dict[str, list[dict]]) -> pd.DataFrame:
    """Model → rows of inference.speeds beside the plan's: a row a model, way and threads."""
    rows = []
    for model, ways in by_model.items():
        first = {row["threads"]: row["decode"] for row in ways if row["way"] == inference.RAW}
        for row in ways:
            name, phase = model.partition(" (random")[0], inference.PHASES.get(row["way"], "")
            plan = of_plan(name, phase)
            more = {"times": row["decode"] / first[row["threads"]], "plan": span(*plan, 0)}
            rows.append(row | more | {"model": model})
    return written("speeds", rows)


def quantization(by_model: dict, repeated: dict, speeds: dict, bandwidth: float) -> pd.DataFrame:
    """Model → rows of export.ship (inference.in_words), model → way → inference.repetition, model →
    rows of inference.speeds; and bytes a second that a core reads."""
    rows = []
    for model, formats in by_model.items():
        one_thread = {row["way"]: row["decode"] for row in speeds[model] if row["threads"] == 1}
        for row in formats:
            way = inference.WAYS.get(row["format"], row["format"])
            each = repeated[model][way] | {"share": row["bytes"] * one_thread[way] / bandwidth}
            changes = {name: Interval(*x) for name, x in row["changes"].items()}
            cells = inference.in_words(row | {"changes": changes})
            plan = span(*of_plan(model, "megabytes"), 0) if row["format"] == "Q4_0" else "–"
            rows.append(each | cells | {"model": model, "bytes": row["bytes"], "plan": plan})
    return written("quantization", rows)
