"""The verdict: which models of a run folder a claim means, how they differ, and what follows.

claims.yaml names models by role ("adapter on hard") and says what a role's parameters are. An
effect is loss − loss of another model, nats per token: the mean over seeds, with one 95 % interval
for seeds and documents. Legend: N windows of the text that judges, S seeds.
"""

import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from tdbook.analysis import intervals
from tdbook.analysis.intervals import Interval
from tdbook.runs import parameters
from tdbook.runs.notebooks import LORA, PROGRESSIVE, TRAINING
from tdbook.runs.sweeps import Folder
from tdbook.runs.units import minus

CLAIMS = yaml.safe_load(Path(__file__).with_name("claims.yaml").read_text("utf-8"))
ROLES, TOPICS = CLAIMS["models"], CLAIMS["topics"]
ROWS = {key: row for topic in TOPICS.values() for key, row in topic["rows"].items()}
HOLDS, FAILS, UNDECIDED = "holds", "fails as stated", "not decidable here"
ANSWERS = {HOLDS: "Yes", FAILS: "No", UNDECIDED: "Not decided"}
COST = {HOLDS: "wins", FAILS: "loses", UNDECIDED: "undecided"}  # at equal cost
JUDGED = ("effect", "mechanism")  # roles of effects; cost and also are shown
SEEDS = 3  # that a verdict needs
FREE = parameters.LABELS | parameters.VOLATILE  # they make no difference between two models
LONGER = 1.01  # times the tokens of another model
AS = {"as_base": "its base", "as_scratch": "scratch"}  # key of a role → what it is otherwise like
LIKE = {"made_from": "adapter on hard"} | AS  # and what the best of a role is otherwise like
BESIDE = ("longer_than", "as_long_as", *LIKE)  # keys that hold a model beside another role's
OLD_RULES = "rules of 2026-11-28"  # a column: the verdict that was published then
DECISIVE = ["claim", "verdict", "measured", "the plan", "at equal cost"]  # shown; files have all
SURE = ["seeds", "resolves", OLD_RULES]
NUMBERS = ["effect", "value", "low", "high", "seeds"]


def judge_one(interval: Interval, least: float = 0.0, claimed: int = -1) -> tuple[str, str]:
    """The verdict on an effect that must reach `least`, and where its interval lies. `claimed`:
    the direction, −1 is below 0."""
    low, high = sorted(claimed * end for end in interval[1:])
    if not math.isfinite(low + high):
        return UNDECIDED, "interval unknown"
    where = f"{'right' if low > 0 else 'opposite' if high < 0 else 'no clear'} direction"
    if low > 0 and low >= claimed * least:
        return HOLDS, where
    if high < claimed * least:
        return FAILS, f"{where}, smaller" if low > 0 else where
    return UNDECIDED, f"{where}, size open" if low > 0 else where


@dataclass(frozen=True)
class Effect:
    """A difference of loss, or of a share."""

    what: str
    interval: Interval  # of the seeds' mean; of one seed over documents alone
    seeds: int = 0  # 0: it was not run
    role: str = "effect"  # or mechanism, cost, also
    least: float = 0.0  # δ, in the claimed direction
    claimed: int = -1  # the plan's direction
    plan: tuple[float, float] | None = None  # the plan's own range
    pairs: tuple[tuple[str, ...], ...] = ()  # the models that are compared, of each seed

    @property
    def verdict(self) -> tuple[str, str]:
        """Its own verdict, and why. Fewer than SEEDS never decide."""
        if self.seeds < SEEDS:
            return UNDECIDED, count(self.seeds)
        return judge_one(self.interval, self.least, self.claimed)


def count(seeds: int) -> str:
    return ("not run", "one seed", f"{seeds} seeds")[min(seeds, 2)]


def judge(effects: Sequence[Effect]) -> tuple[str, str]:
    """The verdict on effects and their mechanism, and why: it fails where one of them fails, and
    holds where all hold."""
    judged = [e for e in effects if e.role in JUDGED]
    if not judged:
        return UNDECIDED, "not run"
    results, whys = zip(*(e.verdict for e in judged), strict=True)
    result = next((word for word in (FAILS, UNDECIDED) if word in results), HOLDS)
    more = (f"{e.what}: {why}" for e, why in zip(judged, whys, strict=True) if why != whys[0])
    return result, "; ".join([whys[0], *more])


@dataclass(frozen=True)
class Verdict:
    """A row of claims.yaml, judged."""

    key: str
    effects: list[Effect]
    result: str
    why: str
    measured: str = ""  # where that is no effect

    def cells(self) -> dict[str, object]:
        """A row of the table of verdicts."""
        row, mains = ROWS[self.key], [e for e in self.effects if e.role == "effect" and e.seeds]
        plan = row.get("plan")
        sizes = (f"{e.what}: " * (len(mains) > 1) + f"{e.interval}" for e in mains)
        # half an interval is the size that so many seeds can tell from 0
        halves = ((e.interval.high - e.interval.low) / 2 for e in mains if e.seeds > 1)
        costs = (e for e in self.effects if e.role == "cost")
        cost = next((COST[e.verdict[0]] if e.seeds else "not run" for e in costs), "–")
        return {
            "claim": row["claim"],
            "verdict": f"{self.result} ({self.why})",
            "measured": self.measured or "; ".join(sizes) or "–",
            "the plan": minus("{:+g} to {:+g}".format(*plan)) if plan else "–",
            "seeds": min((e.seeds for e in mains), default="–"),
            "resolves": max((intervals.number(x, ".3f") for x in halves), default="–"),
            "at equal cost": cost,
            OLD_RULES: row.get("was", "–"),
        }


def table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    return pd.DataFrame([{"key": v.key} | v.cells() for v in verdicts])


def effects_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Every effect that was run, in numbers, with its own verdict."""
    pairs = ((v.key, e) for v in verdicts for e in v.effects if e.seeds)
    rows = [(key, e.what, e.role, *e.interval, e.seeds, ": ".join(e.verdict)) for key, e in pairs]
    columns = ["claim", "effect", "role", "value", "low", "high", "seeds", "verdict"]
    return pd.DataFrame(rows, columns=columns)


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
        log = record.get("remembered", {}).get(f"log of {name}") or [{}]
        tokens = log[-1].get("tokens", 0)
        if p.get("schedule") == "wsd":  # one training, a model at each of several lengths
            p = p | {"token_limit": tokens, "cooldowns": ""}
        if notebook == LORA:
            beside = label.removesuffix(name) + p["base"]  # of the same point
            base = beside if beside in made else p["base"]
            label += "-merged" if own and p["trains"] == "adapter" else ""
        decides = repr(sorted((key, value) for key, value in p.items() if key not in FREE))
        settings = (notebook, name if notebook == PROGRESSIVE else "", decides)
        seeds = (p["seed"],)
        if base in made:
            settings, seeds = settings + made[base].settings, made[base].seeds + seeds
        made[label] = Model(label, notebook, p, tokens, seeds, settings, own, base)
    return made


def measure(losses: Mapping, pairs: Sequence[tuple[str, ...]], document_N, at_N=...) -> Interval:
    """Of pairs of models, one a seed, how their losses differ on some windows; of three models,
    which share of the way from the first to the third the second goes."""
    names, document_N = zip(*pairs, strict=True), document_N[at_N]
    each_SN = [np.stack([losses[name][at_N] for name in of_S]) for of_S in names]
    if len(each_SN) == 3:
        return intervals.gap_share(*each_SN, document_N)
    return intervals.of_seeds(np.subtract(*each_SN, dtype=np.float64), document_N)


@dataclass(frozen=True)
class Trial:
    """The models that are compared, their losses on the text that judges, and what roles mean.
    For another base: dataclasses.replace."""

    models: dict[str, Model]
    losses: Mapping[str, np.ndarray]  # of every window, (N,)
    document_N: np.ndarray
    base: str
    scratch: str
    teacher: str
    picked_by: str  # with its seed choices are made: it picks hard windows, and rates
    development: Mapping[str, float] = field(default_factory=dict)  # loss where choices are made

    @property
    def chooses(self) -> int | None:
        """The seed that chooses, and is in no comparison; None where it is the base's."""
        picker = self.models.get(self.picked_by)
        return picker.seeds[0] if picker and picker.seeds[0] != self._seed else None

    def seeds_of(self, model: Model | None) -> list[Model]:
        """A model's settings with every seed, the base's first; but not with the one that chooses.
        Two of the same seeds: the given one, then the folder's own, counts."""
        if not model:
            return []
        same = [m for m in self.models.values() if m.settings == model.settings]
        same = sorted(same, key=lambda m: (m == model, m.own))  # the last of the same seeds stays
        read = {m.seeds: m for m in same if m.seeds[0] != self.chooses}
        return sorted(read.values(), key=self._order)

    @property
    def _seed(self) -> int:
        return self.models[self.base].seeds[0]

    def _order(self, model: Model) -> tuple:
        return model.seeds[0] != self._seed, model.seeds, model.tokens, model.name

    def preferred(self, tried: list[Model]) -> list[Model]:
        """The seeds of the settings that development prefers, with the seed that chooses or, where
        that did not try two of them, with the base's."""
        two, own = ([m for m in tried if m.seeds[0] == s] for s in (self.chooses, self._seed))
        some = two if len(two) > 1 else own or two
        best = min(some, key=lambda m: self.development[m.name], default=None)
        return self.seeds_of(best)

    def made_from(self, model: Model, base: Model | None) -> bool:
        """Whether 03 made a model from a base, or from the same with another seed."""
        own = self.models.get(model.base)
        return own is not None and base is not None and own.settings == base.settings

    def role(self, words: str) -> list[Model]:
        """The models that a role of claims.yaml means, one a seed; none where it was not run. Of a
        role the folder's own settings count; of "best" and a role, the preferred."""
        role = words.removeprefix("best ")
        if role != words and self.development:
            return self._best(role)
        return self.seeds_of(self.first(role))

    def first(self, role: str) -> Model | None:
        """A role's model, of the base's seed where there is one; the folder's own before points."""
        if named := ROLES[role].get("is"):
            return self.models.get(getattr(self, named))
        read = (m for m in self.models.values() if m.seeds[0] != self.chooses)
        fits = (m for m in read if self._means(role, m))
        return min(fits, key=lambda m: (not m.own, *self._order(m)), default=None)

    def _best(self, role: str) -> list[Model]:
        keys = ROLES[role]
        like = self.first(next((LIKE[key] for key in keys if key in LIKE), role))
        tuned = {"learning_rate"}.union(*(keys.get(key, ()) for key in AS))
        tuned |= parameters.TUNED | keys.keys() if "made_from" in keys else set()
        tried = [m for m in self.models.values() if like and like.same_but(m, tuned)]
        return self.preferred([m for m in tried if "is" in keys or self._means(role, m, tuned)])

    def _means(self, role: str, model: Model, but: set[str] = frozenset()) -> bool:
        return all(self._fits(model, key, wanted, but) for key, wanted in ROLES[role].items())

    def _fits(self, model: Model, key: str, wanted, but: set[str]) -> bool:
        base, value = self.models[self.base], getattr(model, key, model.p.get(key))
        other = self.first(AS.get(key, wanted)) if key in BESIDE else None
        match key:
            case "made_from":
                return self.made_from(model, other)
            case "longer_than":
                return other is not None and model.tokens > LONGER * other.tokens
            case "as_long_as":
                short, long = sorted((model.tokens, other.tokens if other else 0))
                return 0 < long < LONGER * short
            case "as_base" | "as_scratch":
                return other is not None and other.same_but(model, {*wanted} | but)
            case "not":
                return all(model.p.get(name) != other for name, other in wanted.items())
        if isinstance(wanted, bool):
            return bool(value) == wanted
        if isinstance(wanted, list):
            return wanted[0] <= value <= wanted[1]
        wanted = base.p.get(key) if wanted == "the base's" else wanted
        return value == wanted or fnmatchcase(f"{value}", f"{wanted}")

    def effect(self, words: str | Sequence[str], **more) -> Effect:
        """Of "one − other" the difference, of three roles the share of the gap."""
        roles = words.split(" − ") if isinstance(words, str) else words
        if not all(groups := [self.role(role) for role in roles]):  # one was not run
            return Effect(" − ".join(roles), Interval(math.nan), **more)
        names = [self._named(*pair) for pair in zip(roles, groups, strict=True)]
        share = "share of the gap from {0} to {2} that {1} closes"
        what = share.format(*names) if len(names) == 3 else " − ".join(names)
        pairs = []
        for together in itertools.product(*groups):  # the seeds with which all were run
            # of a model of 03 and one of 01 the base's seed decides
            same = all(all(map(operator.eq, together[0].seeds, m.seeds)) for m in together)
            if same and len({m.settings for m in together}) == len(together):
                pairs.append(tuple(m.name for m in together))
        found = measure(self.losses, pairs, self.document_N) if pairs else Interval(math.nan)
        return Effect(what, found, len(pairs), pairs=tuple(pairs), **more)

    def _named(self, words: str, seeds: list[Model]) -> str:
        """A role in an effect; of the best what was tuned."""
        role = words.removeprefix("best ")
        if role == words or not self.development:
            return role
        tuned = [*itertools.chain(*(ROLES[role].get(key, ()) for key in AS)), "learning_rate"]
        values = ", ".join(f"{name} {seeds[0].p[name]:g}" for name in dict.fromkeys(tuned))
        return f"{role} ({values})"

    def judged(self, key: str) -> Verdict:
        """A row of claims.yaml whose effects are differences between models."""
        row, effects = ROWS[key], {}
        plan = row.get("plan")
        least = min(plan, key=abs) if plan else row.get("least", 0.0)
        main = dict(least=least, plan=plan and tuple(plan), claimed=row.get("claimed", -1))
        asked = [(role, row[role]) for role in (*JUDGED, "cost") if role in row]
        for role, words in [*asked, *(("also", words) for words in row.get("also", ()))]:
            e = self.effect(words, role=role, **(main if role == "effect" else {}))
            effects.setdefault(e.pairs or e.what, e)  # none twice: the best may be the folder's own
        return Verdict(key, [*effects.values()], *judge([*effects.values()]))
