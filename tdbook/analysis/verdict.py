"""The verdict on the plan's claim, in words computed from intervals: does an adapter on the hard
windows win back what the student lost, and more than the same spent on anything else?

An arm is a model of the comparison with what its results file says of how it was made; roles are
found from that, never from names. A change is loss − loss of another model, nats per token, with
its 95 % interval over documents: (value, low, high), below 0 is better. Parts of the validation
text: "hard", the windows where a student outside the comparison fell furthest behind, "easy", the
others, and "all". Legend: N validation windows.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tdbook.analysis import intervals
from tdbook.runs import rules
from tdbook.runs.notebooks import DISTILL, LORA, PROGRESSIVE, TEACHER, TRAINING
from tdlib import hard_set

ENOUGH = 0.15  # nats that a teacher must be better than the base for the trial to mean something
SETS = {"hard": "the hard set", "random": "a random set", "easiest": "the easiest windows",
        "all": "all windows"}  # fmt: skip
# what the plan's claim needs beside the adapter on the hard set
NEEDED = ("adapter on random", "adapter on easiest", "adapter on all", "weights on hard",
          "weights on random", "weights on all", "a stretched schedule", "student-55m",
          "student-120m")  # fmt: skip
RIVALS = ("student-55m", "student-120m")  # shapes, of whichever profile

Change = tuple[float, float, float]


@dataclass(frozen=True)
class Arm:
    """A model and how it was made."""

    name: str  # in the comparison; of an adapter, that of the merged model
    notebook: str
    p: dict  # parameters of its run
    tokens: int  # of its training, 0 where that is not known
    seeds: tuple[int, ...]  # its base's, where it has one, then its own
    settings: tuple  # all that decides it but seeds and names: equal in another seed
    own: bool  # in this run folder, not in one of a sweep's points
    base: str | None = None  # of an arm of 03, the name of what it was made from

    @property
    def adapter(self) -> bool:
        return self.base is not None and self.p.get("trains", "adapter") == "adapter"

    @property
    def windows(self) -> str:
        return self.p.get("windows", "hard")

    @property
    def shape(self) -> str:
        return self.p.get("shape", "")

    def in_words(self) -> str:
        """What it is; the name stands in brackets, since there may be several."""
        if not self.base:
            return self.name
        what = "the adapter on" if self.adapter else "the whole base trained on"
        return f"{what} {SETS[self.windows]} ({self.name})"

    def kind(self) -> str:
        """What it is, in the cell of a table."""
        if self.base:
            return f"{'adapter' if self.adapter else 'weights trained'} on {SETS[self.windows]}"
        if self.notebook == TEACHER:
            return "the teacher"
        if self.notebook == PROGRESSIVE:
            return "distilled from 150m" if self.name == "75m" else "distilled"
        begun = ", begun from the teacher" if self.p.get("init") == "teacher" else ""
        return ("from scratch" if self.p.get("ce_weight") == 1 else "distilled") + begun


def arms(results: Iterable[dict], points: Mapping[str, tuple[str, dict]]) -> dict[str, Arm]:
    """Every trained model that a results file names, by its name in the comparison; `points`:
    label → model and record of a sweep's point."""
    found: dict[str, Arm] = {}
    given = [(name, name, r, True) for r in results for name in r["models"]]
    given += [(label, name, r, False) for label, (name, r) in points.items()]
    given = [one for one in given if one[2]["notebook"] in TRAINING]
    for label, name, r, own in sorted(given, key=lambda one: one[2]["notebook"] == LORA):
        p, replay = r["parameters"], r["notebook"] == LORA
        if own and replay and p.get("trains", "adapter") == "adapter":
            label = f"{name}-merged"
        base = p["base"] if replay else None
        if replay and (beside := label.removesuffix(name) + base) in found:
            base = beside  # of the same point
        before = found.get(base)
        shown = {k: v for k, v in p.items() if k not in rules.LABELS | rules.VOLATILE}
        role = name if r["notebook"] == PROGRESSIVE else ""
        settings = (r["notebook"], role, repr(sorted(shown.items())))
        log = r.get("remembered", {}).get(f"log of {name}") or [{}]
        found[label] = Arm(
            label, r["notebook"], p, log[-1].get("tokens", 0),
            (*(before.seeds if before else ()), p["seed"]),
            (*settings, *(before.settings if before else ())), own, base,
        )  # fmt: skip
    return found


@dataclass(frozen=True)
class Comparison:
    what: str  # the question, in a few words
    one: Arm
    other: Arm
    changes: dict[str, Change]  # by part
    beyond: Change  # on the hard part minus on the easy one
    seeds: list[dict[str, float]]  # the difference of every pair of seeds, by part

    def over_seeds(self, part: str) -> str:
        """The t interval over seeds, or that there is one."""
        if len(self.seeds) < 2:
            return "one seed"
        return "{:+.3f} ± {:.3f}".format(*intervals.over_seeds([pair[part] for pair in self.seeds]))


@dataclass(frozen=True)
class Trial:
    """What all comparisons read."""

    arms: dict[str, Arm]
    losses: Mapping[str, np.ndarray]
    hard_N: np.ndarray
    document_N: np.ndarray
    base: str
    scratch: str
    teacher: str
    picked_by: str
    resamples: int
    mixed: frozenset[str] = frozenset()  # arms made from another hard set than 02's own

    def part(self, name: str) -> np.ndarray:
        every_N = np.ones_like(self.hard_N)
        return {"hard": self.hard_N, "easy": ~self.hard_N, "all": every_N}[name]

    def change(self, one: str, other: str, part: str) -> Change:
        chosen_N = self.part(part)
        pair = (self.losses[name][chosen_N] for name in (one, other))
        return intervals.change(*pair, self.document_N[chosen_N], self.resamples)

    def own(self) -> list[Arm]:
        """The folder's own models that may be compared."""
        return [a for a in self.arms.values()
                if a.own and a.name in self.losses and a.name != self.picked_by]  # fmt: skip

    def twins(self, arm: Arm) -> list[Arm]:
        """It, and the same with other seeds; but the one that picks, and what was made from it."""
        same = [a for a in self.arms.values() if a.settings == arm.settings and a.name != arm.name]
        same = [a for a in same if self.picked_by not in (a.name, a.base) and a.name in self.losses]
        return [arm, *{a.seeds: a for a in same if a.seeds != arm.seeds}.values()]

    def compare(self, what: str, one: Arm, other: Arm) -> Comparison:
        changes = {p: self.change(one.name, other.name, p) for p in ("hard", "easy", "all")}
        apart_N = self.losses[one.name] - self.losses[other.name]
        beyond = intervals.beyond(apart_N, self.hard_N, self.document_N, self.resamples)
        others, seeds = self.twins(other), []
        for twin in self.twins(one):
            partner = [a for a in others if a.seeds == twin.seeds[: len(a.seeds)]]
            if partner and partner[0].settings != twin.settings:
                apart_N = self.losses[twin.name] - self.losses[partner[0].name]
                seeds.append({p: hard_set.known_mean(apart_N[self.part(p)]) for p in changes})
        return Comparison(what, one, other, changes, beyond, seeds)


def _first_of_each(found: Iterable[Arm], seeds: tuple = ()) -> list[Arm]:
    """One arm of each setting: with the seeds given, or else the lowest."""
    order = sorted(found, key=lambda a: (a.seeds != seeds, a.seeds, a.name))
    return list({a.settings: a for a in reversed(order)}.values())[::-1]


def comparisons(t: Trial) -> list[Comparison]:
    """Every comparison that the plan's claim needs, of the models that are there."""
    base, own, found = t.arms[t.base], t.own(), []
    if t.scratch in t.arms and t.scratch in t.losses:
        found.append(t.compare("distilled against scratch", base, t.arms[t.scratch]))
    of_base = [a for a in own if a.base == t.base]
    for one in _first_of_each(a for a in of_base if a.adapter and a.windows == "hard"):
        found.append(t.compare("adapter on hard against its base", one, base))
        rivals = {
            f"{'adapter' if adapter else 'weights'} on {windows}":
            (one.seeds, [a for a in of_base if (a.adapter, a.windows) == (adapter, windows)])
            for adapter in (True, False) for windows in SETS if not adapter or windows != "hard"
        }  # fmt: skip
        rivals["a stretched schedule"] = one.seeds[:1], stretched(t)
        for shape in RIVALS:
            rivals[shape] = one.seeds[:1], [
                a for a in own if a.notebook == DISTILL and a.p["ce_weight"] < 1
                and a.shape.startswith(shape) and a.name != t.base
            ]  # fmt: skip
        found += [t.compare(f"adapter on hard against {what}", one, rival)
                  for what, (seeds, some) in rivals.items()
                  for rival in _first_of_each(some, seeds)]  # fmt: skip
    seeds = t.twins(base)[1:]  # those of a sweep where the folder itself has none
    found += [t.compare("nothing: another seed of the base", a, base)
              for a in [a for a in seeds if a.own] or seeds]  # fmt: skip
    return found


def stretched(t: Trial) -> list[Arm]:
    """Students like the base that were trained on more tokens from the start."""
    base, free = t.arms[t.base], rules.LABELS | rules.VOLATILE | {"epochs", "token_limit"}

    def like(a: Arm) -> dict:
        return {k: v for k, v in a.p.items() if k not in free}

    longer = [a for a in t.own() if a.tokens > 1.01 * base.tokens]
    return [a for a in longer if a.notebook == base.notebook and like(a) == like(base)]


def sentences(t: Trial, found: list[Comparison]) -> list[str]:
    """The verdict, most important first: whether the trial means anything, then every comparison,
    what was not run, and what another seed of the base seems to gain."""
    said = [*warnings(t), *map(in_words, found)]
    if left_out := int(np.isnan(t.losses[t.base]).sum()):
        said.append(f"{left_out:,} of {len(t.hard_N):,} windows have no target (a mask): they are "
                    "neither hard nor easy, and in no mean and no interval.")  # fmt: skip
    said += [gap_in_words(t, c) for c in found if c.what.endswith("student-120m")]
    there = {c.what.removeprefix("adapter on hard against ") for c in found}
    if "its base" not in there:
        said.append(f"No adapter on the hard set of {t.base} is here, so the claim is not tried.")
    elif missing := [needed for needed in NEEDED if needed not in there]:
        said.append(f"Not run, so not compared: {', '.join(missing)}.")
    if not any(c.what.startswith("nothing") for c in found):
        said.append(
            f"We cannot say how much of this is chance: that needs a third seed of {t.base}, since "
            f"{t.picked_by} picks the hard windows."
        )
    return said


def headline(t: Trial, found: list[Comparison]) -> str:
    """What the plan stands or falls with: hard windows against random ones, or what there is."""
    wanted = [c for c in found if c.what == "adapter on hard against adapter on random"]
    warned = [w.replace("**", "") for w in warnings(t) if w.startswith("**⚠")]
    return " ".join([*warned, *map(in_words, wanted or found[:1])]) or "Nothing to compare."


def warnings(t: Trial) -> list[str]:
    """What makes the trial mean little, said before it."""
    said = []
    if t.teacher in t.losses:
        value, low, high = change = t.change(t.base, t.teacher, "all")
        ahead = f"{value:+.3f} ± {(high - low) / 2:.3f} nats [{low:+.3f}, {high:+.3f}]"
        ahead = _verb(change)[1] if math.isnan(low) else ahead
        said.append(
            f"{t.base} is {ahead} behind its teacher: there is a lag to win back."
            if value >= ENOUGH else
            f"**⚠ This trial means little**: {t.base} is only {ahead} behind its teacher, and it "
            f"takes {ENOUGH} for a lag to win back. Train a better teacher first."
        )  # fmt: skip
    compared = t.picked_by in (t.base, t.scratch, t.teacher)
    made_of = [a.name for a in t.arms.values() if a.base == t.picked_by]
    if compared or made_of:
        why = "it is in the comparison" if compared else f"{made_of[0]} was made from it"
        said.append(
            f"**⚠ {t.picked_by} picks the hard windows, and {why}**: windows picked because one "
            "model did badly there flatter every other. Name another seed as picked_by."
        )
    return [_minus(s) for s in said]


def in_words(c: Comparison) -> str:
    """One comparison: hard part, easy part, all, and over seeds."""
    parts = {part: _verb(change) for part, change in c.changes.items()}
    one, other = c.one.in_words(), c.other.in_words()
    if c.one.adapter and c.other.adapter:
        other = other.replace("the adapter", "the one", 1)
    how, size = parts["hard"]
    said = f"On the hard part {one} is not clearly apart from {other} ({size})"
    if how:
        verb = {"gains": "beats", "loses": "loses to"}[how]
        said = f"On the hard part {one} {verb} {other} by {size}"
    for part, where in (("easy", "on the easy part"), ("all", "on all text")):
        how, size = parts[part]
        said += f"; {where} it {how} {size}" if how else f"; {where} they are not apart ({size})"
    said += f"; {seeds_in_words(c)}."
    if odd := _also(c.one, c.other):
        said += f" They also differ in {odd}."
    if c.what.startswith("nothing"):
        clear = c.beyond[1] > 0 or c.beyond[2] < 0  # an end that is not known makes nothing clear
        how = "is clear" if clear else "is not clearly apart from nothing"
        said = f"What nothing at all 'gains', read in the same way: {said[0].lower()}{said[1:]}"
        said += f" Its change on the hard part beyond that on the easy one {how}: "
        said += f"{_verb(c.beyond)[1]}."
    return _minus(said)


def _verb(change: Change) -> tuple[str | None, str]:
    """ "gains" or "loses" with the size as a positive number, or None with the signed change."""
    value, low, high = change
    if math.isnan(value):
        return None, "undefined: no window there has a target"
    if math.isnan(low):
        return None, f"{value:+.3f} nats, of one document"
    half, d = (high - low) / 2, 3 if max(map(abs, change)) >= 0.001 else 5  # of hardly anything
    if low > 0 or high < 0:
        least, most = sorted((abs(low), abs(high)))
        size = f"{abs(value):.{d}f} ± {half:.{d}f} nats [{least:.{d}f}, {most:.{d}f}]"
        return "loses" if low > 0 else "gains", size
    return None, f"{value:+.{d}f} ± {half:.{d}f} nats [{low:+.{d}f}, {high:+.{d}f}]"


def seeds_in_words(c: Comparison) -> str:
    if len(c.seeds) < 2:
        return "one seed"
    each = ", ".join(f"{part} {c.over_seeds(part)}" for part in ("hard", "easy"))
    return f"over {len(c.seeds)} seeds (t interval of the change): {each}"


def _also(one: Arm, other: Arm) -> str:
    """What two arms of 03 differ in besides the windows and what trains."""
    if not (one.base and other.base):
        return ""
    both = one.adapter == other.adapter
    names = (*rules.ADAPTERS, *rules.REPLAYS) if both else rules.REPLAYS  # weights have no rank
    pairs = ((k, one.p.get(k), other.p.get(k)) for k in names)
    return ", ".join(f"{k} ({a} against {b})" for k, a, b in pairs if a != b)


def gap_in_words(t: Trial, c: Comparison) -> str:
    """How much of the way from the base to the larger rival the adapter goes, on all text."""
    losses_3N = np.stack([t.losses[name] for name in (t.base, c.one.name, c.other.name)])
    means_R3 = intervals.resampled_means(losses_3N, t.document_N, t.resamples)
    closed_R = intervals.gap_closed(*means_R3.T)
    base, one, rival = hard_set.known_mean(losses_3N, axis=1)
    size = "undefined, since the base is not clearly worse"
    if np.isnan(means_R3).any():
        size = "undefined, since one document has no interval"
    if np.isfinite(closed_R).any():
        size = intervals.with_interval(
            (base - one) / (base - rival), *intervals.interval(closed_R), 2
        )
    return f"Share of the gap from {t.base} to {c.other.name} that {c.one.name} closes: {size}."


def _minus(text: str) -> str:
    return text.replace("+-", "−").replace(" -", " −").replace("[-", "[−").replace("(-", "(−")


def table(found: list[Comparison]) -> pd.DataFrame:
    """The comparisons as a table: changes of loss with their intervals, and over seeds."""
    columns = ["question", "model", "against", "hard part", "easy part", "hard beyond easy",
               "all text", "seeds, hard part"]  # fmt: skip
    rows = []
    for c in found:
        changes = (c.changes["hard"], c.changes["easy"], c.beyond, c.changes["all"])
        seeds = f"{len(c.seeds)}: " * (len(c.seeds) > 1) + c.over_seeds("hard").replace("-", "−")
        rows.append([c.what, c.one.name, c.other.name,
                     *(intervals.with_interval(*change) for change in changes), seeds])  # fmt: skip
    return pd.DataFrame(rows, columns=columns)
