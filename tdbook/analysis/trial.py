"""The models of a run folder: how each was made, which of them a claim means, how two differ.

claims.yaml names models by role ("adapter on hard") and says what a role's parameters are; what a
model is called means nothing. A change is loss − loss of another model, nats per token, with its
95 % interval over documents. Parts of the text: "hard", the windows where a student outside the
comparison fell furthest behind, "easy", the others, and "all". Legend: N windows.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from tdbook.analysis import intervals
from tdbook.analysis.claims import Effect
from tdbook.analysis.intervals import Interval
from tdbook.runs import rules
from tdbook.runs.notebooks import LORA, PROGRESSIVE, TEACHER, TRAINING
from tdlib.hard_set import known_mean

CLAIMS = yaml.safe_load(Path(__file__).with_name("claims.yaml").read_text("utf-8"))
SETS = dict(hard="the hard set", random="a random set", easiest="the easiest windows")
SETS["all"] = "all windows"
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
            return (
                f"{'adapter' if self.adapter else 'weights trained'} on {SETS[self.p['windows']]}"
            )
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


def models(records: Iterable[dict], points: Mapping[str, tuple[str, dict]]) -> dict[str, Model]:
    """Every trained model that a results file names, by its name in the comparison; `points`:
    label → model and record of a sweep's point."""
    rows = [(name, name, record, True) for record in records for name in record["models"]]
    rows += [(label, name, record, False) for label, (name, record) in points.items()]
    trained = [row for row in rows if row[2]["notebook"] in TRAINING]
    trained.sort(key=lambda row: row[2]["notebook"] == LORA)  # bases first
    made: dict[str, Model] = {}
    for label, name, record, own in trained:
        p, notebook, base = record["parameters"], record["notebook"], None
        if notebook == LORA:  # older records lack these parameters
            p = {"windows": "hard", "trains": "adapter"} | p
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

    def of(self, role: str, seeds: tuple = ()) -> list[Model]:
        """The folder's own models of a role, one of each setting: that with these seeds (the
        base's, where none are given), or else with the lowest."""
        if named := CLAIMS["models"][role].get("is"):
            return [m for m in self.models.values() if m.name == getattr(self, named)]
        seeds = seeds or self.models[self.base].seeds
        own = [m for m in self.models.values() if m.own and self._means(role, m)]
        own.sort(key=lambda m: (m.seeds != seeds[: len(m.seeds)], m.seeds, m.name))
        first: dict[tuple, Model] = {}
        for model in own:
            first.setdefault(model.settings, model)
        return list(first.values())

    def _means(self, role: str, model: Model) -> bool:
        """Whether a model is what claims.yaml means; the one that picks the windows never is."""
        base, fits = self.models[self.base], [model.name != self.picked_by]
        made_from = "base" if model.base == self.base else None
        p = model.p | dict(notebook=model.notebook, name=model.name, made_from=made_from)
        for key, wanted in CLAIMS["models"][role].items():
            if key == "longer_than":
                other = self.models.get(getattr(self, wanted))
                fits.append(other is not None and model.tokens > LONGER * other.tokens)
            elif key == "but":
                fits.append(base.same_but(model, {*wanted}))
            elif isinstance(wanted, bool):
                fits.append(bool(p.get(key)) == wanted)
            elif str(wanted).endswith("*"):
                fits.append(str(p.get(key)).startswith(wanted[:-1]))
            else:
                fits.append(p.get(key) == (base.p.get(key) if wanted == "the base's" else wanted))
        return all(fits)

    def first(self, words: str) -> Model | None:
        """The model that an effect of claims.yaml names: a role, or "best" and a role."""
        role = words.removeprefix("best ")
        return self._best(role) if role != words else next(iter(self.of(role)), None)

    def _best(self, role: str) -> Model | None:
        """A model of a role, at that of the learning rates tried which development prefers. What 03
        trains is compared with the adapter on hard windows, and may be tuned in more than that."""
        rule, tuned = CLAIMS["models"][role], {"learning_rate"}
        if "windows" in rule:
            tuned = (rules.TUNED | {"trains", "windows"}) - {"ce_weight"}
            tuned |= {"ce_weight"} if rule["trains"] == "weights" else set()
        like = self.first("adapter on hard" if "windows" in rule else role)
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

    def part(self, name: str) -> np.ndarray:
        """Which windows are of a part, (N,)."""
        every_N = np.ones_like(self.hard_N)
        return {"hard": self.hard_N, "easy": ~self.hard_N, "all": every_N}[name]

    def change(self, one: str, other: str, part: str = "all") -> Interval:
        at_N = self.part(part)
        pair = (self.losses[name][at_N] for name in (one, other))
        return intervals.change(*pair, self.document_N[at_N], self.resamples)

    def effect(
        self, one: Model, other: Model, role: str = "claim", part: str = "all", plan=None
    ) -> Effect:
        """Loss of one minus that of the other, and the same of every pair of their seeds."""
        turned = len(one.seeds) < len(other.seeds)  # seeds are paired from the side that has more
        a, b = (other, one) if turned else (one, other)
        change, at_N = self.change(a.name, b.name, part), self.part(part)
        apart = [self.losses[x.name] - self.losses[y.name] for x, y in self._pairs(a, b)]
        seeds = [known_mean(apart_N[at_N]) for apart_N in apart]
        if turned:
            change, seeds = -change, [-mean for mean in seeds]
        labels = ("recipe" if m.name == self.recipe else m.label for m in (one, other))
        what = " − ".join(labels) + (f" on {part} text" if part != "all" else "")
        return Effect(what, change, tuple(seeds), role, plan and tuple(plan))

    def _pairs(self, one: Model, other: Model) -> list[tuple[Model, Model]]:
        """Their seed replicates, paired by seed; of a model of 03 its base's seed decides."""
        pairs = ((x, y) for x in self.seeds_of(one) for y in self.seeds_of(other))
        return [
            (x, y)
            for x, y in pairs
            if x.seeds[: len(y.seeds)] == y.seeds and x.settings != y.settings
        ]

    def effects(self, listed: Iterable[dict]) -> list[Effect]:
        """The effects that claims.yaml lists, of the models that were run; none twice, where the
        best rate is the one given."""
        effects: dict[tuple, Effect] = {}
        for row in listed:
            role, part = next(iter(row)), row.get("text", "all")
            one, other = map(self.first, row[role].split(" − "))
            if role == "gap" or not one or not other:
                continue
            key = one.name, other.name, part
            if (*key, role) not in effects and not (role == "part" and (*key, "claim") in effects):
                effects[*key, role] = self.effect(one, other, role, part, row.get("plan"))
        return list(effects.values())
