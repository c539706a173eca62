"""Sentences computed from numbers: what notebooks, records and pages say, each in one place."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from tdbook.analysis import verdict
from tdbook.analysis.intervals import Interval
from tdbook.runs import parameters
from tdbook.runs.units import minus, span
from tdlib import hard_set

SENTENCES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))


def _say(parts: Mapping[str, object], values: Mapping[str, object]) -> str:
    """Those of the sentences that apply, {name: whether it does}, with their numbers."""
    return minus("".join(SENTENCES[name].format(**values) for name, so in parts.items() if so))


def trial(trial: dict) -> str:
    """What `teacher.check` measured."""
    return _say({"trial": True, "untrained": trial["loss"] >= trial["entropy"]}, trial)


def curves(logs: dict[str, list[dict]]) -> str:
    """Whether the last part of each curve still fell."""
    sentences = []
    for name, log in logs.items():
        if len(log) > 2:
            fall = log[-2]["val/loss"] - log[-1]["val/loss"]
            values = {"parts": len(log) - 1, "name": name, "fall": fall, "change": -fall}
            sentences.append(_say({"falls": fall > 0.03, "settled": fall <= 0.03}, values))
    return " ".join(sentences)


def difficulty(base: str, short: dict, found: dict | None = None) -> str:
    """What 02 says before anything else; `found`: selection.ease."""
    parts = {"counted": True, "sampled": short.get("scored", 1) < 1, "no_target": "masked" in short}
    values = short | (found or {}) | {"base": base}
    counted, noise = _say(parts, values), short["student_better"] > 0.5
    parts = {"noise": noise, "gap": not noise, "rounding": "rounding" in short, "ease": found}
    return _say(parts, values | {"counted": counted})


def memory(real: dict, base: str, teacher: str) -> str:
    """How much of the teacher's lead is memory, from what selection.reality counted."""
    gaps = {row["name"]: Interval(row["gap"], row["low"], row["high"]) for row in real["memory"]}
    if not gaps:
        return ""
    lead, change = real["mean"], gaps["difficulty"]
    values = {"name": base, "base": gaps[base], "teacher": gaps[teacher], "change": change}
    values |= {"lead": lead, "unread": lead + change.value, "read": _read(real)}
    return _say({"unread": True, "memorised": _read(real)}, values)


def _read(real: dict) -> float:
    """The share of difficulty that is gone on unread text; 0 where there is none, or all of it."""
    change = {row["name"]: row["gap"] for row in real["memory"]}.get("difficulty", 0.0)
    return -change / real["mean"] if 0 < -change < real["mean"] else 0.0


def choice(chosen: hard_set.HardSet, base: str) -> str:
    """What was chosen, for hard_set.json: of the hardest, what was left out and what joined."""
    k, rule = len(chosen.windows_K), chosen.rule
    parts = {"hardest": True, "clipped": rule.clip, "clean": rule.leave_out_junk}
    parts |= {"easy": chosen.easy, "hardest_tokens": rule.token_share < 1}
    hardest = chosen.share * (k - chosen.easy) / max(1, k)
    return _say(parts, vars(rule) | vars(chosen) | {"hardest": hardest, "base": base})


def hard_windows(base: str, short: dict, chosen: hard_set.HardSet, found: dict, real: dict) -> str:
    """02's result: whether loss is concentrated, what the hard windows are to the teacher, and how
    much is memory; from selection.ease and selection.reality."""
    much, read = found["held"] > 0.5, _read(real)
    parts = {"better": short["student_better"] > 0.5, "concentrated": much, "spread": not much}
    parts |= {"hold": True, "memorised": read, "mixed_in": chosen.easy}
    return _say(parts, vars(chosen) | short | found | {"base": base, "read": read})


def outcome(one: str, other: str, size: Interval, known_N: np.ndarray, plan=()) -> str:
    """How `one` ends beside `other`, by one seed; with a `plan` whether that reaches it."""
    least = min(plan, key=abs, default=0.0)
    answer = f"{verdict.ANSWERS[verdict.judge_one(size, least)[0]]}: " if plan else ""
    hoped = f"; the plan hopes for {span(*sorted(map(abs, plan)))} lower" if plan else ""
    masked = (~known_N).sum()
    left_out = f"; {masked:,} of {len(known_N):,} windows have no target and are left out"
    return f"{answer}{one} ends {size.than(other)} (one seed{left_out * bool(masked)}){hoped}."


def planned(notebook: str, values: Mapping[str, object]) -> str:
    """Which of a notebook's parameters have a value that the plan names."""
    plan = {name.removeprefix(f"{notebook}."): ends for name, ends in parameters.PLAN.items()}
    named = (n for n, x in values.items() if n in plan and plan[n][0] <= (x or 0) <= plan[n][1])
    return ", ".join(named) or "–"
