"""The models of a run folder: how each was made, which of them a claim means, how two differ; and
notebook 04's verdict on the adapter.

claims.yaml names models by role ("adapter on hard") and says what a role's parameters are; what a
model is called means nothing. A change is loss − loss of another model, nats per token, with its
95 % interval over documents. Parts of the text: "hard", the windows where a student outside the
comparison fell furthest behind, "easy", the others, and "all". Legend: N windows.
"""

import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from tdbook.analysis import intervals
from tdbook.analysis.claims import Effect
from tdbook.analysis.intervals import Interval
from tdbook.runs import rules
from tdbook.runs.folder import Folder
from tdbook.runs.notebooks import LORA, PROGRESSIVE, TEACHER, TRAINING
from tdlib.hard_set import known_mean

CLAIMS = yaml.safe_load(Path(__file__).with_name("claims.yaml").read_text("utf-8"))
ROLES, WORDS = CLAIMS["models"], CLAIMS["words"]
SETS = dict(hard="the hard set", random="a random set", easiest="the easiest windows")
SETS["all"] = "all windows"
FREE = rules.LABELS | rules.VOLATILE  # parameters that make no difference between two models
LONGER = 1.01  # times the tokens of another model
ENOUGH = 0.15  # nats that a teacher must be better than the base for the trial to mean something
NOTHING = "nothing: another seed of the base"
PARTS = ("hard", "easy", "all")


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

    def first(self, words: str) -> Model | None:
        """The model that an effect of claims.yaml names: a role, of whose models the folder's own
        with the base's seeds goes before others; or "best" and a role, where there is a development
        loss to choose by."""
        role = words.removeprefix("best ")
        if role != words and self.development:
            return self._best(role)
        if named := ROLES[role].get("is"):
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
        for key, wanted in ROLES[role].items():
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
        like, tuned, replays = role, {"learning_rate"}, "windows" in ROLES[role]
        if replays:
            like, tuned = "adapter on hard", rules.TUNED | {"trains", "windows"}
            tuned -= {"ce_weight"} if ROLES[role]["trains"] == "adapter" else set()
        like = self.first(like)
        tried = self.alike(like, tuned) if like else []
        tried = [m for m in tried if not replays or self._means(role, m)]
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
        at_N = self._part(part)
        pair = (self.losses[name][at_N] for name in (one, other))
        return intervals.change(*pair, self.document_N[at_N], self.resamples)

    def _part(self, name: str) -> np.ndarray:
        return {"hard": self.hard_N, "easy": ~self.hard_N, "all": self.hard_N | True}[name]

    def effect(
        self, one: Model, other: Model, role: str = "claim", part: str = "all", plan=None
    ) -> Effect:
        """Loss of one minus that of the other, and the same of every pair of their seeds."""
        change, at_N = self.change(one.name, other.name, part), self._part(part)
        pairs = ((x, y) for x in self.seeds_of(one) for y in self.seeds_of(other))
        seeds = [
            known_mean((self.losses[x.name] - self.losses[y.name])[at_N])
            for x, y in pairs  # of a model of 03 and one of 01 the base's seed decides
            if x.settings != y.settings and all(map(operator.eq, x.seeds, y.seeds))
        ]
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
        """The effects that claims.yaml lists; none twice, where the best rate is the one given."""
        effects: dict[tuple, Effect] = {}
        for row, role, one, other in self.pairs(listed):
            part = row.get("text", "all")
            key = one.name, other.name, part
            known = role == "gap" or (role == "part" and (*key, "claim") in effects)
            if not known and (*key, role) not in effects:
                effects[*key, role] = self.effect(one, other, role, part, row.get("plan"))
        return list(effects.values())

    def gaps(self, listed: Iterable[dict]) -> list[str]:
        """In a sentence, how much of the way from the base to a larger rival a model goes."""
        return [self._gap(*pair) for _, role, *pair in self.pairs(listed) if role == "gap"]

    def _gap(self, one: Model, rival: Model) -> str:
        losses_3N = np.stack([self.losses[name] for name in (self.base, one.name, rival.name)])
        means_R3 = intervals.resampled_means(losses_3N, self.document_N, self.resamples)
        closed_R = intervals.gap_closed(*means_R3.T)
        base, adapted, large = known_mean(losses_3N, axis=1)
        closed = Interval((base - adapted) / (base - large), *intervals.interval(closed_R))
        undefined = "undefined, since the base is not clearly worse"
        size = undefined if np.isnan(closed_R).all() else f"{closed:.2f}"
        return f"Share of the gap from {self.base} to {rival.name} that {one.name} closes: {size}."


# notebook 04: what claims.yaml lists for the claims `distilled` and `adapter`, on all parts of the
# text; where it lists models at their best rate, the folder's own


def listed(*keys: str) -> dict[str, dict]:
    """Question ("adapter on hard against its base") → row of claims.yaml."""
    rows = [row for claim in CLAIMS["claims"] if claim["key"] in keys for row in claim["effects"]]
    rows = [(next(iter(row.values())), row) for row in rows if not row.keys() & {"part", "text"}]
    return {words.replace("best ", "").replace("−", "against"): row for words, row in rows}


def comparisons(t: Trial) -> dict[str, tuple[Model, Model]]:
    """Question → the two models, of all that is there."""
    rows = listed("distilled", "adapter")
    pairs = {q: pair for q, row in rows.items() for _, _, *pair in t.pairs([row])}
    base, *seeds = t.seeds_of(t.models[t.base])
    seeds = [model for model in seeds if model.own] or seeds
    return pairs | ({NOTHING: (seeds[0], base)} if seeds else {})


def table(t: Trial) -> pd.DataFrame:
    """The comparisons: changes of loss with their intervals, and over seeds."""
    rows = []
    for question, (one, other) in comparisons(t).items():
        row = {"question": question, "model": one.name, "against": other.name + _also(one, other)}
        effects = {part: t.effect(one, other, part=part) for part in PARTS}
        row |= {f"{part} text": f"{effect.change}" for part, effect in effects.items()}
        rows.append(row | {"seeds, hard text": effects["hard"].spread})
    return pd.DataFrame(rows)


def limits(t: Trial) -> list[str]:
    """What limits the comparison, most important first, and how much of the gap is closed."""
    there, needed = comparisons(t), listed("adapter")
    lines = warnings(t) + t.gaps(needed.values())
    missing = [q for q, row in needed.items() if row.get("needed", True) and q not in there]
    lines += [f"Not run, so not compared: {', '.join(missing)}."] * bool(missing)
    return lines + [WORDS["chance"].format(t=t)] * (NOTHING not in there)


def warnings(t: Trial) -> list[str]:
    """What makes the trial mean little, said before it."""
    lines = []
    if t.teacher in t.models:
        behind = t.change(t.base, t.teacher)
        words = WORDS["lag" if behind.value >= ENOUGH else "little"]
        lines.append(words.format(t=t, behind=behind, enough=ENOUGH))
    made = [model.name for model in t.models.values() if model.base == t.picked_by]
    if t.picked_by in (t.base, t.scratch, t.teacher) or made:
        lines.append(WORDS["picker"].format(t=t, made=", ".join(made)))
    return lines


def headline(t: Trial) -> str:
    """What the plan stands or falls with: hard windows against random ones, or what there is."""
    warned = [line.replace("**", "") for line in warnings(t) if line.startswith("**⚠")]
    compared = comparisons(t)
    main = compared.get("adapter on hard against adapter on random")
    lines = [in_words(t, *pair) for pair in ([main] if main else [*compared.values()][:1])]
    return " ".join([*warned, *lines]) or "Nothing to compare."


def in_words(t: Trial, one: Model, other: Model) -> str:
    """One comparison: hard, easy and all text, over seeds, and what else differs."""
    names = [f"the {m.kind} ({m.name})" if m.base else m.name for m in (one, other)]
    effects, parts = {part: t.effect(one, other, part=part) for part in PARTS}, []
    for part, effect in effects.items():
        how = {-1: "better", 0: "not clearly apart", 1: "worse"}[effect.change.clear]
        digits = ".3f" if abs(effect.change.value) >= 0.0005 else ".5f"
        parts.append(f"on {part} text {how}, {effect.change:{digits}} nats")
    hard = effects["hard"]
    parts.append(hard.spread + " on hard text" * (len(hard.seeds) > 1))
    return f"Loss of {names[0]} against {names[1]}{_also(one, other)}: {'; '.join(parts)}."


def _also(one: Model, other: Model) -> str:
    """What two models of 03 differ in besides the windows and what trains."""
    names = (*rules.ADAPTERS, *rules.REPLAYS) if one.adapter == other.adapter else rules.REPLAYS
    pairs = [(name, one.p.get(name), other.p.get(name)) for name in names]
    odd = ", ".join(f"{name} {a} against {b}" for name, a, b in pairs if a != b)
    return f" ({odd})" if odd and one.base and other.base else ""
