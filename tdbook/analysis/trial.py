"""The models of a run folder: how each was made, which of them a claim means, how two differ.

claims.yaml names models by role ("adapter on hard") and says what a role's parameters are; what a
model is called means nothing. A change is loss − loss of another model, nats per token, with its
95 % interval over documents. Parts of the text: "hard", the windows where a student outside the
comparison fell furthest behind, "easy", the others, and "all". Legend: N windows.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import yaml

from tdbook.analysis import intervals
from tdbook.analysis.claims import Effect
from tdbook.analysis.intervals import Interval
from tdbook.runs import rules
from tdbook.runs.folder import Folder
from tdbook.runs.notebooks import LORA, PROGRESSIVE, TEACHER, TRAINING
from tdlib.hard_set import known_mean

CLAIMS = yaml.safe_load(Path(__file__).with_name("claims.yaml").read_text("utf-8"))
SETS = dict(hard="the hard set", random="a random set", easiest="the easiest windows")
SETS["all"] = "all windows"
WORDS = CLAIMS["words"]
FREE = rules.LABELS | rules.VOLATILE  # parameters that make no difference between two models
LONGER = 1.01  # times the tokens of another model


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
            trained = "adapter" if self.adapter else "weights trained"
            return f"{trained} on {SETS[self.p['windows']]}"
        if self.notebook == TEACHER:
            return "the teacher"
        if self.notebook == PROGRESSIVE and self.name == "75m":
            return "distilled from 150m"
        begun = ", begun from the teacher" if self.p.get("init") == "teacher" else ""
        return ("from scratch" if self.p.get("ce_weight") == 1 else "distilled") + begun

    @property
    def label(self) -> str:
        """In an effect: the role of what 03 made, with the rate of a sweep's point; of another
        point what varies ("ce_weight 0.1 temperature 1")."""
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
    mixed: frozenset[str] = frozenset()  # models made from another hard set than 02's own
    recipe: str = ""  # the model of the better recipe

    # which models

    def first(self, words: str) -> Model | None:
        """The model that an effect of claims.yaml names: a role, of whose models the folder's own
        with the base's seeds goes before others; or "best" and a role, where there is a development
        loss to choose by."""
        role = words.removeprefix("best ")
        if role != words and self.development:
            return self._best(role)
        if named := CLAIMS["models"][role].get("is"):
            return self.models.get(getattr(self, named))
        seeds = self.models[self.base].seeds
        own = [m for m in self.models.values() if m.own and self._means(role, m)]
        own.sort(key=lambda m: (m.seeds != seeds[: len(m.seeds)], m.seeds, m.name))
        return next(iter(own), None)

    def _means(self, role: str, model: Model) -> bool:
        """Whether a model is what claims.yaml means; the one that picks the windows never is."""
        base, fits = self.models[self.base], [model.name != self.picked_by]
        p = model.p | {"notebook": model.notebook, "name": model.name}
        p["made_from"] = "base" if model.base == self.base else None
        for key, wanted in CLAIMS["models"][role].items():
            if key == "longer_than":
                other = self.models.get(getattr(self, wanted))
                fits.append(other is not None and model.tokens > LONGER * other.tokens)
            elif key == "but":
                fits.append(base.same_but(model, {*wanted}))
            elif isinstance(wanted, bool):
                fits.append(bool(p.get(key)) == wanted)
            else:
                value, wanted = p.get(key), base.p.get(key) if wanted == "the base's" else wanted
                fits.append(value == wanted or fnmatchcase(f"{value}", f"{wanted}"))
        return all(fits)

    def _best(self, role: str) -> Model | None:
        """A model of a role, at that of the learning rates tried which development prefers. What 03
        trains is compared with the adapter on hard windows, and may be tuned in more than that."""
        rule, like, tuned = CLAIMS["models"][role], role, {"learning_rate"}
        if "windows" in rule:
            like, tuned = "adapter on hard", rules.TUNED | {"trains", "windows"}
            tuned -= {"ce_weight"} if rule["trains"] == "adapter" else set()
        like = self.first(like)
        tried = self.alike(like, tuned) if like else []
        tried = [m for m in tried if "windows" not in rule or self._means(role, m)]
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

    # how they differ

    def change(self, one: str, other: str, part: str = "all") -> Interval:
        """Mean loss of one minus that of the other on a part of the text."""
        at_N = self._part(part)
        pair = (self.losses[name][at_N] for name in (one, other))
        return intervals.change(*pair, self.document_N[at_N], self.resamples)

    def _part(self, name: str) -> np.ndarray:
        return {"hard": self.hard_N, "easy": ~self.hard_N, "all": self.hard_N | True}[name]

    def effect(
        self, one: Model, other: Model, role: str = "claim", part: str = "all", plan=None
    ) -> Effect:
        """Loss of one minus that of the other, and the same of every pair of their seeds."""
        turned = len(one.seeds) < len(other.seeds)  # seeds are paired from the side that has more
        a, b = (other, one) if turned else (one, other)
        change, at_N = self.change(a.name, b.name, part), self._part(part)
        apart = [
            self.losses[x.name] - self.losses[y.name]
            for x in self.seeds_of(a)
            for y in self.seeds_of(b)  # of a model of 03 its base's seed decides
            if x.seeds[: len(y.seeds)] == y.seeds and x.settings != y.settings
        ]
        seeds = [known_mean(apart_N[at_N]) for apart_N in apart]
        if turned:
            change, seeds = -change, [-mean for mean in seeds]
        labels = ("recipe" if m.name == self.recipe else m.label for m in (one, other))
        what = " − ".join(labels) + (f" on {part} text" if part != "all" else "")
        return Effect(what, change, tuple(seeds), role, plan and tuple(plan))

    def pairs(self, listed: Iterable[dict]) -> Iterator[tuple[dict, str, Model, Model]]:
        """The rows of claims.yaml, each with its role, of the models that were run."""
        for row in listed:
            role, words = next(iter(row.items()))
            one, other = map(self.first, words.split(" − "))
            if one and other:
                yield row, role, one, other

    def effects(self, listed: Iterable[dict]) -> list[Effect]:
        """The effects that claims.yaml lists, of the models that were run; none twice, where the
        best rate is the one given."""
        effects: dict[tuple, Effect] = {}
        for row, role, one, other in self.pairs(listed):
            part = row.get("text", "all")
            key = one.name, other.name, part
            known = role == "gap" or (role == "part" and (*key, "claim") in effects)
            if not known and (*key, role) not in effects:
                effects[*key, role] = self.effect(one, other, role, part, row.get("plan"))
        return list(effects.values())
