"""Sentences computed from numbers: what notebooks, records and pages say, each in one place."""

from collections.abc import Mapping
from pathlib import Path

import jinja2
import numpy as np
import yaml

from tdbook.analysis import verdict
from tdbook.analysis.intervals import Interval
from tdbook.runs import parameters
from tdbook.runs.units import minus, span
from tdlib import hard_set

SENTENCES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
ENGINE = jinja2.Environment(undefined=jinja2.StrictUndefined)
ENGINE.filters["f"] = format


def say(name: str, /, **values: object) -> str:
    """The sentences of a name in words.yaml, with their numbers."""
    return minus(ENGINE.from_string(SENTENCES[name]).render(values))


def difficulty(base: str, short: dict, found: dict | None = None) -> str:
    """What 02 says before anything else; `found`: selection.ease."""
    return say("difficulty", **short | (found or {}), base=base)


def memory(real: dict, base: str, teacher: str) -> str:
    """How much of the teacher's lead is memory, from what selection.reality counted."""
    gaps = {row["name"]: Interval(row["gap"], row["low"], row["high"]) for row in real["memory"]}
    values = dict(gaps=gaps, mean=real["mean"], base=base, teacher=teacher, read=_read(real))
    return say("memory", **values) if gaps else ""


def _read(real: dict) -> float:
    """The share of difficulty that is gone on unread text; 0 where that is not clear, or all."""
    change = next((row for row in real["memory"] if row["name"] == "difficulty"), {"high": 0.0})
    clear = change["high"] < 0 and -change["gap"] < real["mean"]
    return -change["gap"] / real["mean"] if clear else 0.0


def hard_windows(base: str, short: dict, chosen: hard_set.HardSet, found: dict, real: dict) -> str:
    """02's result: whether loss is concentrated, what the hard windows are to the teacher, and how
    much is memory; from selection.ease and selection.reality."""
    return say("hard_windows", **short | found, easy=chosen.easy, base=base, read=_read(real))


def outcome(one: str, other: str, size: Interval, known_N: np.ndarray, plan=()) -> str:
    """How `one` ends beside `other`, by one seed; with a `plan` whether that reaches it."""
    answer = verdict.ANSWERS[verdict.judge_one(size, min(plan, key=abs, default=0.0))[0]]
    hoped, masked = span(*sorted(map(abs, plan))) if plan else "", (~known_N).sum()
    values = dict(one=one, other=other, size=size, plan=plan, answer=answer, hoped=hoped)
    return say("outcome", **values, masked=masked, windows=len(known_N))


def planned(notebook: str, values: Mapping[str, object]) -> str:
    """Which of a notebook's parameters have a value that the plan names."""
    plan = {name.removeprefix(f"{notebook}."): ends for name, ends in parameters.PLAN.items()}
    named = (n for n, x in values.items() if n in plan and plan[n][0] <= (x or 0) <= plan[n][1])
    return ", ".join(named) or "–"
