"""The verdict: which models of a run folder a claim means, how they differ, and what follows.

claims.yaml names models by role ("adapter on hard") and says what a role's parameters are. A change
is loss − loss of another model, nats per token, with its 95 % interval over documents. Parts of the
text: "hard", the windows where a student outside the comparison fell furthest behind, "easy", the
others, and "all". The rules were written before the runs (params/small/README.md). N windows.
"""

import itertools
import math
import operator
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from tdbook.analysis import intervals
from tdbook.analysis.intervals import Interval
from tdbook.runs import parameters
from tdbook.runs.notebooks import LORA, PROGRESSIVE, TEACHER, TRAINING
from tdbook.runs.sweeps import Folder
from tdlib.hard_set import known_mean

CLAIMS = yaml.safe_load(Path(__file__).with_name("claims.yaml").read_text("utf-8"))
ROLES = CLAIMS["models"]
HOLDS, PART, FAILS, UNDECIDED = "holds", "holds in part", "fails", "not decidable here"
FREE = parameters.LABELS | parameters.VOLATILE  # they make no difference between two models
LONGER = 1.01  # times the tokens of another model


@dataclass(frozen=True)
class Effect:
    """A difference of loss, or of a share."""

    what: str
    change: Interval  # of the first seed, over documents
    seeds: tuple[float, ...] = ()  # the same difference with every seed, the first among them
    role: str = "claim"  # or control, or part: shown, and not judged
    plan: tuple[float, float] | None = None  # the plan's own range of this difference
    claimed: int = -1  # the plan's direction: −1 is below 0

    @property
    def over_seeds(self) -> tuple[float, float] | None:
        """Mean and half-width of the t interval; None for one seed."""
        return intervals.over_seeds(self.seeds) if len(self.seeds) > 1 else None

    @property
    def both(self) -> list[Interval]:
        """The interval over documents and, of several seeds, that over seeds."""
        over = [self.over_seeds] if self.over_seeds else []
        return [self.change, *(Interval(mean, mean - half, mean + half) for mean, half in over)]

    @property
    def clear(self) -> int:
        """1 where both intervals lie on the claimed side of 0, −1 on the other, else 0."""
        signs = {interval.clear for interval in self.both}
        return signs.pop() * self.claimed if len(signs) == 1 else 0

    @property
    def misses_plan(self) -> str:
        """ "smaller" or "larger"; "" where an interval meets the plan's range, or is not known."""
        low, high = min(i.low for i in self.both), max(i.high for i in self.both)
        if not self.plan or not (low > self.plan[1] or self.plan[0] > high):
            return ""
        nearest = min(abs(end) for interval in self.both for end in interval[1:])
        return "smaller" if nearest < min(map(abs, self.plan)) else "larger"

    @property
    def spread(self) -> str:
        """ "over 3 seeds −0.030 ± 0.005"."""
        if not self.over_seeds:
            return "one seed"
        mean, half = self.over_seeds
        return f"over {len(self.seeds)} seeds {mean:+.3f} ± {half:.3f}".replace("-", "−")

    def words(self) -> str:
        plan = " (the plan: {:+.1f} to {:+.1f})".format(*self.plan) if self.plan else ""
        return f"{self.what}: {self.change}, {self.spread}{plan.replace('-', '−')}"


def judge(effects: Sequence[Effect], every: bool = True) -> tuple[str, str]:
    """The verdict on the effects whose role is "claim", and why. `every`: the claim needs all of
    them; otherwise some make it hold in part even where others go against it."""
    mains = [e for e in effects if e.role == "claim"]
    right, wrong, unclear = ([e for e in mains if e.clear == sign] for sign in (1, -1, 0))
    one_seed = any(len(e.seeds) < 2 for e in mains)
    if not mains:
        return UNDECIDED, "it was not run"
    if wrong and (every or not right):
        names = ", ".join(e.what for e in wrong)
        return FAILS, f"clear in the other direction: {names}{' (one seed)' * one_seed}"
    if not right and all(e.misses_plan for e in mains):
        return FAILS, "not clear, and the plan's smallest size lies outside the intervals"
    if not right:
        return UNDECIDED, "no effect is clear over documents and seeds"
    controls = [e for e in effects if e.role == "control" and e.clear != 1]
    reserves = [f"{e.what} is not clear" for e in unclear]
    reserves += [f"{e.what} goes the other way" for e in wrong]
    reserves += [f"{e.what} is {e.misses_plan} than the plan says" for e in right if e.misses_plan]
    reserves += [f"no better than a control: {e.what}" for e in controls]
    reserves += ["one seed"] * one_seed
    return (PART, "; ".join(reserves)) if reserves else (HOLDS, "clear over documents and seeds")


def effects_table(effects: Mapping[str, Sequence[Effect]]) -> pd.DataFrame:
    """Every effect as numbers, key of the claim → effects."""
    rows, unknown = [], (math.nan, math.nan)
    for key, e in ((key, e) for key, listed in effects.items() for e in listed):
        row = [key, e.what, e.role, *e.change, max(1, len(e.seeds))]
        rows.append([*row, *(e.over_seeds or unknown), *(e.plan or unknown)])
    return pd.DataFrame(rows, columns=CLAIMS["columns"].split(", "))


@dataclass(frozen=True)
class Model:
    """A trained model and how it was made."""

    name: str  # in the comparison; of an adapter, that of the merged model
    notebook: str
    p: dict  # parameters of its run
    tokens: int  # of its training, 0 where that is not known
    seeds: tuple[int, ...]  # its base's, where it has one, then its own
    settings: tuple  # all that decides it but seeds and names: equal in another seed
    own: bool  # in this run folder, not in one of a sweep's points
    base: str | None = None  # of a model of 03, the name of what it was made from

    @property
    def adapter(self) -> bool:
        return self.p.get("trains") == "adapter"

    @property
    def kind(self) -> str:
        """What it is, in the cell of a table."""
        if self.base:
            rounded = ", rounded to four bits" if self.p.get("rounding") else ""
            return f"{self.p['trains']} on {self.p['windows']} windows{rounded}"
        if self.notebook == TEACHER:
            return "the teacher"
        if self.notebook == PROGRESSIVE and self.name == "75m":
            return "distilled from 150m"
        begun = ", begun from the teacher" if self.p.get("init") == "teacher" else ""
        begun += ", ending in four bits" if self.p.get("four_bit_share") else ""
        return ("from scratch" if self.p.get("ce_weight") == 1 else "distilled") + begun

    @property
    def label(self) -> str:
        """In an effect: its role and a point's rate; of another point what varies."""
        if self.base:
            rate = "" if self.own else f" (rate {self.p['learning_rate']:g})"
            return f"{self.p['trains']} on {self.p['windows']}{rate}"
        point = self.name.rpartition("/")[2]
        return point if self.own else re.sub(r"([a-z_]{4,})([\d.]+)-?", r"\1 \2 ", point).strip()

    def same_but(self, other: "Model", names: set[str]) -> bool:
        """Whether the other was made with the same parameters, but for these."""
        fixed = self.p.keys() - FREE - names - {"cached_draws"}
        same = all(other.p.get(name) == self.p[name] for name in fixed)
        return same and other.notebook == self.notebook


def models(folder: Folder) -> dict[str, Model]:
    """Every trained model of a folder and of its sweeps' points, by its name in the comparison."""
    rows = [(name, name, r, True) for r in folder.records.values() for name in r["models"]]
    rows += [(label, point.model, point.record, False) for label, point in folder.points.items()]
    rows = [row for row in rows if row[2]["notebook"] in TRAINING]
    made: dict[str, Model] = {}
    for label, name, record, own in sorted(rows, key=lambda row: row[2]["notebook"] == LORA):
        p, notebook, base = record["parameters"], record["notebook"], None  # bases come first
        if notebook == LORA:
            beside = label.removesuffix(name) + p["base"]  # of the same point
            base = beside if beside in made else p["base"]
            label += "-merged" if own and p["trains"] == "adapter" else ""
        decides = repr(sorted((key, value) for key, value in p.items() if key not in FREE))
        settings = (notebook, name if notebook == PROGRESSIVE else "", decides)
        seeds, log = (p["seed"],), record.get("remembered", {}).get(f"log of {name}") or [{}]
        if base in made:
            settings, seeds = settings + made[base].settings, made[base].seeds + seeds
        tokens = log[-1].get("tokens", 0)
        made[label] = Model(label, notebook, p, tokens, seeds, settings, own, base)
    return made


@dataclass(frozen=True)
class Trial:
    """The models that are compared, their losses on the text that judges, and what roles mean."""

    models: dict[str, Model]
    losses: Mapping[str, np.ndarray]  # of every window, (N,)
    hard_N: np.ndarray
    document_N: np.ndarray
    base: str
    scratch: str
    teacher: str
    picked_by: str  # the student that picks the hard windows
    resamples: int
    development: Mapping[str, float] = field(default_factory=dict)  # loss where choices are made
    mixed: Collection[str] = ()  # models made from another hard set than 02's own
    recipe: str = ""  # the model of the better recipe

    @property
    def parts(self) -> dict[str, np.ndarray]:
        return {"hard": self.hard_N, "easy": ~self.hard_N, "all": self.hard_N | True}

    def first(self, words: str) -> Model | None:
        """The model that an effect of claims.yaml names: of a role the folder's own, one with the
        base's seed before others; of "best" and a role, the one that development prefers."""
        role = words.removeprefix("best ")
        if role != words and self.development:
            return self._best(role)
        if named := ROLES[role].get("is"):
            return self.models.get(getattr(self, named))
        own = [m for m in self.models.values() if m.own and self._means(role, m)]
        seed = self.models[self.base].seeds[0]
        return min(own, key=lambda m: (m.seeds[0] != seed, m.seeds, m.name), default=None)

    def _means(self, role: str, model: Model) -> bool:
        """Whether a model is what claims.yaml means; the one that picks the windows never is."""
        fits = all(self._fits(model, *pair) for pair in ROLES[role].items())
        return fits and model.name != self.picked_by

    def _fits(self, model: Model, key: str, wanted) -> bool:
        base, value = self.models[self.base], getattr(model, key, model.p.get(key))
        match key:
            case "made_from":
                return model.base == getattr(self, wanted)
            case "longer_than":
                other = self.models.get(getattr(self, wanted))
                return other is not None and model.tokens > LONGER * other.tokens
            case "but":
                return base.same_but(model, {*wanted})
        if isinstance(wanted, bool):
            return bool(value) == wanted
        wanted = base.p.get(key) if wanted == "the base's" else wanted
        return value == wanted or fnmatchcase(f"{value}", f"{wanted}")

    def _best(self, role: str) -> Model | None:
        """A role's model at the best of the learning rates tried; of what 03 trains, at the best of
        all that is tuned, compared with the adapter on hard windows."""
        like, tuned, trains = role, {"learning_rate"}, ROLES[role].get("trains")
        if trains:
            like, tuned = "adapter on hard", parameters.TUNED | {"trains", "windows"}
            tuned -= {"ce_weight"} if trains == "adapter" else set()
        like = self.first(like)
        tried = self.alike(like, tuned) if like else []
        tried = [m for m in tried if not trains or self._means(role, m)]
        return min(tried, key=lambda m: self.development[m.name], default=None)

    def alike(self, model: Model, but: set[str]) -> list[Model]:
        """A model, and those of its seeds that differ from it in these parameters alone."""
        same = [m for m in self.models.values() if m.seeds == model.seeds]
        left_out = {self.picked_by, *self.mixed}
        return [m for m in same if m.name not in left_out and model.same_but(m, but)]

    def seeds_of(self, model: Model) -> list[Model]:
        """It, and the same with other seeds; but the one that picks, and what was made from it."""
        same = [m for m in self.models.values() if m.settings == model.settings]
        same = [m for m in same if self.picked_by not in (m.name, m.base)]
        return [model, *{m.seeds: m for m in same if m.seeds != model.seeds}.values()]

    def change(self, one: str, other: str, part: str = "all") -> Interval:
        """Mean loss of one minus that of the other on a part of the text."""
        at_N = self.parts[part]
        pair = (self.losses[name][at_N] for name in (one, other))
        return intervals.change(*pair, self.document_N[at_N], self.resamples)

    def effect(self, one: Model, other: Model, role="claim", part="all", plan=None) -> Effect:
        """Loss of one minus that of the other, and the same of every pair of their seeds."""
        change, seeds = self.change(one.name, other.name, part), []
        for x, y in itertools.product(self.seeds_of(one), self.seeds_of(other)):
            # of a model of 03 and one of 01 the base's seed decides
            if x.settings != y.settings and all(map(operator.eq, x.seeds, y.seeds)):
                change_N = self.losses[x.name] - self.losses[y.name]
                seeds.append(known_mean(change_N[self.parts[part]]))
        labels = ("recipe" if m.name == self.recipe else m.label for m in (one, other))
        what = " − ".join(labels) + (f" on {part} text" if part != "all" else "")
        return Effect(what, change, tuple(seeds), role, plan and tuple(plan))

    def effects(self, listed: Iterable[dict]) -> list[Effect]:
        """The effects that claims.yaml lists; none twice, where the best rate is the one given."""
        effects: dict[tuple, Effect] = {}
        for row in listed:
            role, words = next(iter(row.items()))
            one, other = map(self.first, words.split(" − "))
            if not one or not other:  # it was not run
                continue
            part = row.get("text", "all")
            key = one.name, other.name, part
            if role == "gap":
                effects[*key, role] = self.gap(one, other)
            elif not {(*key, role), (*key, "claim" if role == "part" else role)} & effects.keys():
                effects[*key, role] = self.effect(one, other, role, part, row.get("plan"))
        return list(effects.values())

    def gap(self, one: Model, rival: Model) -> Effect:
        """Which share of the way from the base to a larger rival a model goes."""
        losses_3N = np.stack([self.losses[name] for name in (self.base, one.name, rival.name)])
        means_R3 = intervals.resampled_means(losses_3N, self.document_N, self.resamples)
        ends = intervals.interval(intervals.gap_closed(*means_R3.T))
        base, adapted, large = known_mean(losses_3N, axis=1)
        closed = (base - adapted) / (base - large) if np.isfinite(ends[0]) else math.nan
        what = f"share of the gap from {self.base} to {rival.name} that {one.label} closes"
        return Effect(what, Interval(closed, *ends), role="part")
