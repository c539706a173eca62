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
from tdbook.runs import hashes
from tdlib import hard_set

CLAIMS = yaml.safe_load(Path(__file__).with_name("claims.yaml").read_text("utf-8"))
SETS = {
    "hard": "the hard set",
    "random": "a random set",
    "easiest": "the easiest windows",
    "all": "all windows",
}
# parameters that make no difference between two models
FREE = hashes.VOLATILE | set(
    "run profile seed student adapter base beside hard_set scores fixed_windows".split()
)
TUNED = {"learning_rate", "temperature", "ce_weight", "weight_decay"}  # of what 03 trains
MORE = 1.01  # times the tokens of another model: trained for longer


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
        return self.base is not None and self.trains == "adapter"

    @property
    def trains(self) -> str:
        return self.p.get("trains", "adapter")

    @property
    def windows(self) -> str:
        return self.p.get("windows", "hard")

    @property
    def kind(self) -> str:
        """What it is, in the cell of a table."""
        if self.base:
            return f"{'adapter' if self.adapter else 'weights trained'} on {SETS[self.windows]}"
        if self.notebook == "00_teacher":
            return "the teacher"
        if self.notebook == "05_progressive":
            return "distilled from 150m" if self.name == "75m" else "distilled"
        begun = ", begun from the teacher" if self.p.get("init") == "teacher" else ""
        return ("from scratch" if self.p.get("ce_weight") == 1 else "distilled") + begun

    @property
    def label(self) -> str:
        """In an effect: the role of what 03 made, with the rate of a sweep's point; of another
        point what varies ("ce_weight 0.1 temperature 1")."""
        if self.base:
            rate = "" if self.own else f" (rate {self.p['learning_rate']:g})"
            return f"{self.trains} on {self.windows}{rate}"
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
    named = [(name, name, record, True) for record in records for name in record["models"]]
    named += [(label, name, record, False) for label, (name, record) in points.items()]
    trained = [row for row in named if row[2]["notebook"][:2] in ("00", "01", "03", "05")]
    bases_first = sorted(trained, key=lambda row: row[2]["notebook"] == "03_lora")
    made: dict[str, Model] = {}
    for label, name, record, own in bases_first:
        p, base = record["parameters"], None
        if record["notebook"] == "03_lora":
            beside = label.removesuffix(name) + p["base"]  # of the same point
            base = beside if beside in made else p["base"]
            merged = own and p.get("trains", "adapter") == "adapter"
            label = f"{name}-merged" if merged else label
        made[label] = _model(label, name, record, own, base, made.get(base))
    return made


def _model(
    label: str, name: str, record: dict, own: bool, base: str | None, before: Model | None
) -> Model:
    p, notebook = record["parameters"], record["notebook"]
    log = record.get("remembered", {}).get(f"log of {name}") or [{}]
    decides = {k: v for k, v in p.items() if k not in FREE}
    settings = (
        notebook,
        name if notebook == "05_progressive" else "",
        repr(sorted(decides.items())),
    )
    seeds = (p["seed"],)
    if before:
        settings, seeds = settings + before.settings, before.seeds + seeds
    return Model(label, notebook, p, log[-1].get("tokens", 0), seeds, settings, own, base)


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

    def part(self, name: str) -> np.ndarray:
        """Which windows are of a part, (N,)."""
        every_N = np.ones_like(self.hard_N)
        return {"hard": self.hard_N, "easy": ~self.hard_N, "all": every_N}[name]

    def change(self, one: str, other: str, part: str = "all") -> Interval:
        at_N = self.part(part)
        pair = (self.losses[name][at_N] for name in (one, other))
        return intervals.change(*pair, self.document_N[at_N], self.resamples)

    def of(self, role: str, seeds: tuple = ()) -> list[Model]:
        """The folder's own models of a role, one of each setting: that with these seeds (the
        base's, where none are given), or else with the lowest."""
        if named := CLAIMS["models"][role].get("is"):
            return [m for m in self.models.values() if m.name == getattr(self, named)]
        seeds = seeds or self.models[self.base].seeds
        own = [m for m in self.models.values() if m.own and m.name in self.losses]
        first: dict[tuple, Model] = {}
        for m in sorted(own, key=lambda m: (m.seeds != seeds[: len(m.seeds)], m.seeds, m.name)):
            if self._means(role, m):
                first.setdefault(m.settings, m)
        return list(first.values())

    def _means(self, role: str, model: Model) -> bool:
        """Whether a model is what claims.yaml means; the one that picks the windows never is."""
        base = self.models[self.base]
        own = {"notebook": model.notebook, "name": model.name, "windows": model.windows}
        own |= {"trains": model.trains, "made_from": "base" if model.base == self.base else None}
        fits = [model.name != self.picked_by]
        for key, wanted in CLAIMS["models"][role].items():
            if key == "longer_than":
                other = self.models.get(getattr(self, wanted))
                fits.append(other is not None and model.tokens > MORE * other.tokens)
            elif key == "but":
                fits.append(base.same_but(model, {*wanted}))
            else:
                wanted = base.p.get(key) if wanted == "the base's" else wanted
                fits.append(_fits((model.p | own).get(key), wanted))
        return all(fits)

    def best(self, role: str) -> Model | None:
        """A model of a role, at that of the learning rates tried which development prefers. What 03
        trains is compared with the adapter on hard windows, and may be tuned in more than that."""
        rule, tuned = CLAIMS["models"][role], {"learning_rate"}
        like = self.first("adapter on hard" if "windows" in rule else role)
        if "windows" in rule:
            tuned = TUNED | {"trains", "windows"}
            tuned -= {"ce_weight"} if rule["trains"] == "adapter" else set()
        tried = self.alike(like, tuned) if like else []
        tried = [m for m in tried if "windows" not in rule or self._means(role, m)]
        return min(tried, key=lambda m: self.development[m.name], default=None)

    def alike(self, model: Model, but: set[str]) -> list[Model]:
        """A model, and those of its seeds that differ from it in these parameters alone."""
        left_out = {self.picked_by, *self.mixed}
        same = [m for m in self.models.values() if m.seeds == model.seeds and m.name in self.losses]
        return [m for m in same if m.name not in left_out and model.same_but(m, but)]

    def first(self, words: str) -> Model | None:
        """The model that an effect in claims.yaml names: a role, or "best" and a role."""
        role = words.removeprefix("best ")
        return self.best(role) if role != words else next(iter(self.of(role)), None)

    def seeds_of(self, model: Model) -> list[Model]:
        """It, and the same with other seeds; but the one that picks, and what was made from it."""
        same = [m for m in self.models.values() if m.settings == model.settings]
        same = [m for m in same if self.picked_by not in (m.name, m.base) and m.name in self.losses]
        return [model, *{m.seeds: m for m in same if m.seeds != model.seeds}.values()]

    def effect(
        self, one: Model, other: Model, role: str = "claim", part: str = "all", plan=None
    ) -> Effect:
        """Loss of one minus that of the other, and the same of every pair of their seeds."""
        turned = len(one.seeds) < len(other.seeds)  # seeds are paired from the side that has more
        a, b = (other, one) if turned else (one, other)
        change = self.change(a.name, b.name, part)
        seeds = [self.losses[x.name] - self.losses[y.name] for x, y in self._pairs(a, b)]
        seeds = [hard_set.known_mean(apart_N[self.part(part)]) for apart_N in seeds]
        if turned:
            change, seeds = -change, [-mean for mean in seeds]
        labels = ("recipe" if m.name == self.recipe else m.label for m in (one, other))
        what = " − ".join(labels) + (f" on {part} text" if part != "all" else "")
        return Effect(what, change, tuple(seeds), role, plan and tuple(plan))

    def _pairs(self, one: Model, other: Model) -> list[tuple[Model, Model]]:
        """Their seed replicates, paired by seed; of a model of 03 its base's seed decides."""
        return [
            (x, y)
            for x in self.seeds_of(one)
            for y in self.seeds_of(other)
            if y.seeds == x.seeds[: len(y.seeds)] and y.settings != x.settings
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


def _fits(value: object, wanted: object) -> bool:
    """claims.yaml: true and false are any value and none, "*" ends what a text begins with."""
    if isinstance(wanted, bool):
        return bool(value) == wanted
    if isinstance(wanted, str) and wanted.endswith("*"):
        return str(value).startswith(wanted[:-1])
    return value == wanted
