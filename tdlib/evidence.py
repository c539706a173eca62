"""Does the plan hold? Each claim of the plan against text that no choice has looked at.

Differences of loss, nats per token, are read on the confirmation split (the validation split where
there is none). Roles are found from parameters, never from names, so that any run folder can be
judged. Words and ranges of the claims lie in claims.yaml, the rules in claims.py.

Legend: N windows, M of them fixed (for what is told token by token), T tokens of a window.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from tdlib import book, data, evaluate, hard_set, hashes, inference, lora, plots, tables, verdict
from tdlib.claims import FAILS, HOLDS, PART, UNDECIDED, Claim, Effect, judge
from tdlib.model import Llama
from tdlib.runs import Run
from tdlib.shapes import Q4_LIMIT, of_plan
from tdlib.verdict import Arm, Trial

CLAIMS = Path(__file__).with_name("claims.yaml")
# kinds of token that the plan says are kept (the lag is smaller there than elsewhere) or lost
KEPT = [("place in the word", "inner"), ("place in the word", "final"),
        ("token seen in training", "≥ 1,000")]  # fmt: skip
LOST = [("pair seen in training", "never"), ("pair seen in training", "1–9"), ("script", "Latin"),
        ("script", "digits"), ("place in the window", "4th")]  # fmt: skip
CHOSEN = (
    "learning_rate",
    "temperature",
    "ce_weight",
    "weight_decay",
)  # what arms may be tuned in, each alike


# --- losses on the text that judges


def split_of(tokens: data.Tokens) -> tuple[str, data.Windows]:
    """The split that verdicts are read on; validation where nothing else has a target."""
    confirm = tokens.confirm and tokens.confirm.known_N.any()
    return ("confirm", tokens.confirm) if confirm else ("val", tokens.val)


def judged_on(tokens: data.Tokens) -> str:
    name, windows = split_of(tokens)
    said = {
        "confirm": "the confirmation text, which no choice has looked at",
        "val": "⚠ the validation text, on which choices were made: no other was put aside"
        + " that has a target" * bool(tokens.confirm),
    }
    documents = len(np.unique(tokens.documents(name)[0][windows.known_N]))
    n, left = len(windows), int(windows.known_N.sum())
    count = f"{n:,} windows" if left == n else f"{left:,} of {n:,} windows, which have a target,"
    return f"Judged on {said[name]}: {count} of {documents:,} documents."


class Losses(Mapping):
    """Model → its loss of every window that judges, (N,): read when it is asked for, so that the
    confirmation text is read by no model that no verdict needs. Kept in scores/<split>/ under the
    hash of model and text; of `detailed` ones also token by token."""

    def __init__(self, this: Run, tokens: data.Tokens):
        self.this, (self.split, self.windows) = this, split_of(tokens)
        self.arms, self.points = book.arms_of(this), book.swept(this)
        self.whole, self.read = detailed(this, self.arms), {}

    def __iter__(self):
        return iter(self.arms)

    def __len__(self) -> int:
        return len(self.arms)

    def __contains__(self, label: object) -> bool:
        return label in self.arms

    def __getitem__(self, label: str) -> np.ndarray:
        if label not in self.read:
            path = self._path(label)
            if not path.exists():
                self._look(label, path)
            self.read[label] = np.load(path)
        return self.read[label]

    def tokens(self, label: str) -> np.ndarray:
        """Of one of `whole`, the loss of every token of the fixed windows, (M, T)."""
        path = self._path(label).with_suffix(".npz")
        if not path.exists():
            self._look(label, path.with_suffix(".npy"))
        return np.load(path)["token_loss_MT"]

    def _path(self, label: str) -> Path:
        out, path = _place(self.this, label, self.arms[label], self.points)
        read = [hashes.made_by_others(where, "")[name]["sha256"]
                for where, name in ((out, path), (self.this.out, "tokens"))]  # fmt: skip
        # the text too, and how much of it is told: a given teacher stays the same beside another
        kept = hashes.of([*read, self.this.parameters["fixed_windows"]])
        name = re.sub(r"[^\w.+-]+", "_", label) + f"-{kept[:8]}.npy"
        return self.this.path("scores", self.split, name)

    def _look(self, label: str, path: Path) -> None:
        whole, count = label in self.whole, self.this.parameters["fixed_windows"]
        out, place = _place(self.this, label, self.arms[label], self.points)
        net = _load(out, place, self.arms[label].p.get("base", ""), self.this.device)
        found = evaluate.evaluate(
            net, self.windows, fixed=count if whole else 1, device=self.this.device
        )
        found.save(path.parent, path.stem, whole)
        self.this.progress(len(self.read) + 1, len(self), f"models on {self.split}: {label}")


def detailed(this: Run, arms: Mapping[str, Arm]) -> list[str]:
    """The models that are looked at token by token: teacher, base and scratch with every seed."""
    p = this.parameters
    of = [arms[name] for name in (p["base"], p["scratch"]) if name in arms]
    same = [a.name for a in arms.values() if any(a.settings == o.settings for o in of)]
    return [p["teacher"], *same]


def _place(this: Run, label: str, arm: Arm, points: dict) -> tuple[Path, str]:
    """The folder a model lies in, and its path in there."""
    if label not in points:
        return this.out, f"models/{label}"
    kind = "adapters" if arm.adapter else "models"
    return points[label].out, f"{kind}/{points[label].model}"


def _load(out: Path, place: str, base: str, device: str) -> Llama:
    """A model, or an adapter beside its base."""
    if not place.startswith("adapters"):
        return Llama.load(out / place, device).eval()
    return lora.load(Llama.load(out / "models" / base, device), out / place).eval()


# --- roles, and effects of one against the other


def effect(
    t: Trial, one: str | None, other: str | None, role: str = "claim", part: str = "all",
    plan: tuple[float, float] | None = None,
) -> list[Effect]:  # fmt: skip
    """Loss of one minus that of the other; nothing where one of them was not run."""
    if one not in t.losses or other not in t.losses:
        return []
    a, b = t.arms[one], t.arms[other]
    turned = len(a.seeds) < len(b.seeds)  # an adapter has two, and is asked first
    c = t.compare("", *((b, a) if turned else (a, b)))
    value, low, high = c.changes[part]
    seeds = tuple(pair[part] for pair in c.seeds)
    if turned:
        value, low, high, seeds = -value, -high, -low, tuple(-s for s in seeds)
    where = "" if part == "all" else f" on {part} text"
    what = f"{_short(a)} − {_short(b)}{where}"
    return [Effect(what, value, low, high, seeds, role, plan and tuple(plan))]


def _short(arm: Arm) -> str:
    """An arm as a reader would say it: a point of a sweep by what varies."""
    if arm.base:
        rate = "" if arm.own else f" (rate {arm.p['learning_rate']:g})"
        return f"{'adapter' if arm.adapter else 'weights'} on {arm.windows}{rate}"
    point = arm.name.rpartition("/")[2]
    return point if arm.own else re.sub(r"([a-z_]{4,})([\d.]+)-?", r"\1 \2 ", point).strip()


def own_adapter(t: Trial, windows: str = "hard") -> str | None:
    """The folder's own adapter on the hard set (or others), which further seeds repeat."""
    return first(t, lambda a: a.base == t.base and a.adapter and a.windows == windows)


def first(t: Trial, wanted) -> str | None:
    """The model of the run folder itself that fits, with the base's seed."""
    found = [a for a in t.arms.values() if a.own and a.name in t.losses and wanted(a)]
    return (
        min(found, key=lambda a: (a.seeds != t.arms[t.base].seeds, a.name)).name if found else None
    )


def students(t: Trial) -> dict[str, str | None]:
    """Role → model, of the students."""
    base, scratch = t.arms[t.base], t.arms.get(t.scratch)
    more = scratch.tokens * 1.01 if scratch else math.inf

    def shaped(a: Arm, size: str) -> bool:
        return a.notebook == "01_distill" and a.shape.startswith(f"student-{size}")

    def as_base(a: Arm) -> bool:
        return all(a.p.get(k) == base.p.get(k) for k in ("ce_weight", "temperature", "init"))

    def longer(a: Arm, again: bool) -> bool:
        same = a.notebook == "01_distill" and a.shape == base.shape and a.p["ce_weight"] == 1
        return same and a.tokens > more and bool(a.p.get("distinct_tokens")) == again

    stretched = [a.name for a in verdict.stretched(t)]
    return {
        "fresh": first(t, lambda a: longer(a, False)),
        "epochs": first(t, lambda a: longer(a, True)),
        "stretched": stretched[0] if stretched else None,
        **{size: first(t, lambda a, s=size: shaped(a, s) and as_base(a) and a.name != t.picked_by)
           for size in ("55m", "80m", "120m", "75m")},
        "progressive": first(t, lambda a: a.notebook[:2] == "05" and a.name == "75m"),
        "direct": first(t, lambda a: a.notebook[:2] == "05" and a.name == "75m-direct"),
    }  # fmt: skip


def tuned(t: Trial, dev: Mapping[str, float], adapter: bool, windows: str) -> str | None:
    """What was made from the base on those windows, at that learning rate, of all that were tried,
    which has the lowest loss on development."""
    own = [a for a in t.arms.values() if a.own and a.base == t.base and a.adapter]
    hard = next((a for a in own if a.windows == "hard"), None)
    if hard is None:
        return None
    free = verdict.NAMES | hashes.VOLATILE | {*CHOSEN, "windows", "trains"}
    tried = [
        a.name for a in t.arms.values()
        if a.base == t.base and (a.adapter, a.windows) == (adapter, windows) and a.name in t.losses
        and all(a.p.get(k) == v for k, v in hard.p.items() if k not in free)
        and (not adapter or a.p["ce_weight"] == hard.p["ce_weight"]) and a.name not in t.mixed
    ]  # fmt: skip
    return min(tried, key=dev.get) if tried else None


@dataclass(frozen=True)
class Judged(Trial):
    """A trial on the text that judges, and what was chosen elsewhere."""

    mixed: frozenset[str] = frozenset()  # made from another hard set than 02's own


def trial(this: Run, tokens: data.Tokens) -> Judged:
    """What all claims read: every model, its losses, and which windows are hard."""
    p, name, found = this.parameters, split_of(tokens)[0], Losses(this, tokens)
    hard_N = book.hard_windows(found, p["picked_by"], p["teacher"], p["hard_share"])
    t = book.trial(this, found, hard_N, tokens.documents(name)[0])
    mixed = {label for label, point in book.swept(this).items()
             if set(point.varied) - set(point.record["parameters"])}  # fmt: skip
    return Judged(**{f: getattr(t, f) for f in Trial.__dataclass_fields__}, mixed=frozenset(mixed))


# --- the claims


def judged(this: Run, tokens: data.Tokens, t: Judged) -> list[Claim]:
    """Every claim with its verdict, in the plan's order."""
    dev = development(this, t)
    of = students(t)
    found = {
        "distilled": lambda told: distilled(t, of, dev, told, book.costs(this, tokens)),
        "loss": lambda told: loss_settings(t, dev),
        "sizes": lambda told: sizes(t, of, told),
        "progressive": lambda told: progressive(t, of, told),
        "hard": lambda told: hard_text(this, tokens, t),
        "adapter": lambda told: adapter(t, of, dev, told),
        "rank": lambda told: ((), True, rank_notes(this, tokens, t)),
        "kept": lambda told: kept(this, tokens, t),
        "ship": lambda told: ((), True, ()),
    }
    said = []
    for told in yaml.safe_load(CLAIMS.read_text("utf-8")):
        effects, every, notes = found[told["key"]](told)
        how = shipped(this) if told["key"] == "ship" else (*judge(effects, every), ())
        result, why, more = how
        if "undecidable" in told:
            result, why = UNDECIDED, told["undecidable"]
        shown = {k: " ".join(told[k].split()) for k in ("claim", "control", "change")}
        said.append(Claim(told["key"], verdict=result, why=why, effects=tuple(effects),
                          notes=(*notes, *more), **shown))  # fmt: skip
    return said


def development(this: Run, t: Trial) -> dict[str, float]:
    """Every model's loss on the validation split, where choices are made."""
    return {name: book.row_of(this, name)["loss"] for name in t.arms}


def distilled(
    t: Judged, of: dict, dev: Mapping[str, float], told: dict, spent: Mapping[str, dict]
) -> tuple:
    """The base against the scratch student; and each at the learning rate of its own that
    development chose."""
    effects = effect(t, t.base, t.scratch, plan=told["plan"])
    best = tuple(at_best_rate(t, dev, name) for name in (t.base, t.scratch))
    if best != (t.base, t.scratch):
        effects += effect(t, *best, "part")
    for name in (of["fresh"], of["epochs"]):
        effects += effect(t, t.base, name, "control")
    if t.scratch not in spent or t.teacher not in spent:
        return effects, True, ()
    alone, base = spent[t.scratch]["training"], spent[t.base]
    reads, trained = base["training"] + base["teacher"], spent[t.teacher]["training"]
    note = (
        f"Cost: the base and its teacher's reading {reads:.2g} FLOP, {reads / alone:.2f} times the "
        f"scratch student's; with the teacher's own training ({trained:.2g}) "
        f"{(reads + trained) / alone:.0f} times: a student from scratch for that much was not run."
    )
    return effects, True, (note,)


def loss_settings(t: Judged, dev: Mapping[str, float]) -> tuple:
    """The plan's best setting against the best of all others, both chosen on development."""
    grid = settings(t)
    ours = {
        n: a for n, a in grid.items() if a.p["ce_weight"] == 0.5 and 2 <= a.p["temperature"] <= 4
    }
    others = {n: a for n, a in grid.items() if n not in ours}
    if not ours or not others:
        return (), True, ()
    one, other = (min(names, key=dev.get) for names in (ours, others))
    a, best = grid[other], min(grid, key=dev.get)
    note = (
        f"Of {len(grid)} settings the best on development is {_short(t.arms[best])}; of the "
        f"plan's, {one} ({dev[one]:.3f}); of the others ce_weight {a.p['ce_weight']:g}, T "
        f"{a.p['temperature']:g} ({dev[other]:.3f})."
    )
    return effect(t, one, other), True, (note,)


def settings(t: Judged) -> dict[str, Arm]:
    """The students that differ from the base in ce_weight and temperature alone."""
    return alike(t, t.base, {"ce_weight", "temperature"})


def at_best_rate(t: Judged, dev: Mapping[str, float], name: str) -> str | None:
    """Of a student and those that differ from it in learning rate alone the best on development."""
    return min(alike(t, name, {"learning_rate"}), key=dev.get) if name in t.arms else None


def alike(t: Judged, name: str, but: set[str]) -> dict[str, Arm]:
    """A student, and those of its seed that differ from it in these parameters alone."""
    like, free = t.arms[name], verdict.NAMES | hashes.VOLATILE | {"cached_draws"} | but
    return {
        n: a for n, a in t.arms.items()
        if a.notebook == like.notebook and a.seeds == like.seeds and n != t.picked_by
        and all(a.p.get(k) == v for k, v in like.p.items() if k not in free)
    }  # fmt: skip


def sizes(t: Judged, of: dict, told: dict) -> tuple:
    effects = effect(t, of["120m"], of["80m"], plan=told["plan"]["120m"])
    return effects + effect(t, of["80m"], t.base, plan=told["plan"]["80m"]), True, ()


def progressive(t: Judged, of: dict, told: dict) -> tuple:
    effects = effect(t, of["progressive"], of["direct"], plan=told["plan"])
    return effects + effect(t, of["progressive"], of["75m"], "control"), True, ()


def adapter(t: Judged, of: dict, dev: Mapping[str, float], told: dict) -> tuple:
    """The folder's own adapter on the hard set against its base; and against the controls: the one
    on random windows beside it (which has as many seeds), and at the best rate that was tried every
    other arm at its own best rate."""
    own, best = own_adapter(t), tuned(t, dev, True, "hard")
    effects = effect(t, own, t.base, plan=told["plan"])
    random = own_adapter(t, "random")
    if own != best:
        effects += effect(t, best, t.base, "part")
    if (own, random) != (best, tuned(t, dev, True, "random")):
        effects += effect(t, own, random, "control")
    others = [(a, w) for a in (True, False) for w in verdict.SETS if (a, w) != (True, "hard")]
    arms_ = [tuned(t, dev, *each) for each in others]
    for other in [*arms_, of["stretched"], of["55m"]]:
        effects += effect(t, best, other, "control")
    for part in ("hard", "easy"):
        effects += effect(t, own, t.base, "part", part)
        effects += effect(t, best, arms_[0], "part", part)
    notes = []
    if best and of["120m"] in t.losses:
        pair = (t.arms[name] for name in (best, of["120m"]))
        notes.append(verdict.gap_in_words(t, verdict.Comparison("", *pair, {}, (), [])))
    chosen = [f"{_short(t.arms[n])}, rate {t.arms[n].p['learning_rate']:g}"
              for n in [best, *arms_] if n and t.arms[n].own]  # fmt: skip
    chosen += [_short(t.arms[n]) for n in [best, *arms_] if n and not t.arms[n].own]
    notes.append(f"What development chose of each arm: {'; '.join(chosen)}.")
    return effects, True, tuple(notes if best else [])


def hard_text(this: Run, tokens: data.Tokens, t: Judged) -> tuple:
    """What the hardest windows hold: rare tokens, pairs never seen, other scripts, against the
    rest; each seed of the base picks its own. And whether the seeds pick the same."""
    _, windows = split_of(tokens)
    share, document_N = this.parameters["hard_share"], t.document_N
    rows = np.arange(len(windows))
    ids_NT, y_NT = (x.numpy() for x in replace(windows, mask=None).batch(rows))
    count_V = evaluate.frequency(tokens.train, tokens.vocab_size)
    order = np.argsort(count_V, kind="stable")
    rare_V = np.zeros(len(count_V), bool)
    rare_V[order[np.cumsum(count_V[order]) <= 0.05 * count_V.sum()]] = True
    never_NT = evaluate.pair_frequency(tokens.train, ids_NT, y_NT) == 0
    told = {"rare tokens": rare_V[y_NT].mean(1), "pairs never seen": never_NT.mean(1)}
    if tokens.tokenizer:
        told["tokens not in Telugu"] = (
            evaluate.scripts(tokens.tokenizer, windows, rows) != 0
        ).mean(1)
    twins = t.twins(t.arms[t.base])
    hard = [book.hard_windows(t.losses, a.name, t.teacher, share) for a in twins]
    effects = []
    for what, x_N in told.items():
        x_N = np.where(np.isnan(t.losses[t.teacher]), np.nan, x_N)  # masked: neither part
        each = [evaluate.beyond(x_N, h_N, document_N, t.resamples) for h_N in hard]
        effects.append(Effect(f"share of {what}, hardest {share:.0%} − the rest", *each[0],
                              tuple(e[0] for e in each), claimed=1))  # fmt: skip
    lag_N = np.fmax(t.losses[t.base] - t.losses[t.teacher], 0)
    held = lag_N[hard[0]].sum() / (lag_N.sum() or 1)
    notes = [f"The hardest {share:.0%} hold {held:.0%} of all that "
             f"{t.base} lost."]  # fmt: skip
    if len(hard) > 1:
        same = [(h & hard[0]).sum() / (h | hard[0]).sum() for h in hard[1:]]
        notes.append(f"Hard sets of {len(hard)} seeds share {min(same):.2f} to {max(same):.2f} "
                     f"(Jaccard; {share / (2 - share):.2f} by chance).")  # fmt: skip
    for record in book.results_of(this).values():
        if found := record.get("remembered", {}).get("reality"):
            r2 = next(iter(found["r2"].values()))
            notes.append(f"Features that need no model explain {tables.number(r2, '.0%', 0.0)} of "
                         "difficulty.")  # fmt: skip
            notes += [f"The teacher's lead on text it has read is larger by "
                      f"{tables.with_interval(row['gap'], row['low'], row['high'])} nats than on "
                      "other text of the same sources: so much is memory."
                      for row in found["memory"] if row["name"] == t.teacher]  # fmt: skip
    return effects, False, tuple(notes)


def kept(this: Run, tokens: data.Tokens, t: Judged) -> tuple:
    """How much further behind the teacher the base is in a bucket than on all other tokens: below 0
    is kept, above is lost. The scratch student by the same cuts is shown, not judged."""
    _, windows = split_of(tokens)
    rows_M = evaluate.fixed_rows(windows, this.parameters["fixed_windows"])
    labels = evaluate.cuts(replace(tokens, val=windows), rows_M)
    effects = []
    loss_MT = {n: t.losses.tokens(n) for n in t.losses.whole if n in t.losses}
    document_MT = np.broadcast_to(t.document_N[rows_M][:, None], loss_MT[t.teacher].shape)
    for cut, bucket in [*KEPT, *LOST]:
        names, at_MT = labels.get(cut, ([], None))
        in_MT = at_MT == names.index(bucket) if bucket in names else np.zeros(1, bool)
        if in_MT.sum() < tables.FEW:
            continue
        for model, role in ((t.base, "claim"), (t.scratch, "part")):
            if model not in loss_MT:
                continue
            lags = [loss_MT[a.name] - loss_MT[t.teacher] for a in t.twins(t.arms[model])
                    if a.name in loss_MT]  # fmt: skip
            flat = in_MT.ravel(), document_MT.ravel()
            each = [evaluate.beyond(lag_MT.ravel(), *flat, t.resamples) for lag_MT in lags]
            effects.append(Effect(
                f"{bucket} ({cut}), {model}", *each[0], tuple(e[0] for e in each), role,
                claimed=-1 if (cut, bucket) in KEPT else 1,
            ))  # fmt: skip
    notes = []
    for record in book.results_of(this).values():
        texts = record.get("remembered", {}).get("texts", {})
        if record["notebook"][:2] == "04" and t.base in texts and t.teacher in texts:
            (two, twos), (four, fours) = (  # null where a text is too short to have any
                [tables.number(texts[n][key], form) for n in (t.base, t.teacher)]
                for key, form in (("distinct_2grams", ".0%"), ("repeated_4grams", ".1%"))
            )
            notes.append(f"Diversity, of twenty generated texts: distinct bigrams {two} (teacher "
                         f"{twos}), repeated 4-grams {four} ({fours}); no interval.")  # fmt: skip
    return effects, False, tuple(notes)


def rank_notes(this: Run, tokens: data.Tokens, t: Judged) -> tuple[str, ...]:
    """The sensitivity sweep in words: the change of loss on development at each value."""
    val = book.window_losses(this, [n for n in t.arms if n in t.losses])
    points, said = book.swept(this), []
    document_N = tokens.documents("val")[0]
    hard = [
        n
        for n, a in t.arms.items()
        if a.own and a.base == t.base and a.adapter and a.windows == "hard"
    ]
    for key in ("share", "rank", "lora_scale"):
        found = {point.varied[key]: n for n, point in points.items() if set(point.varied) == {key}}
        for name in hard[:1]:
            record = t.arms[name].p
            own = record[key] if record.get(key) is not None else this.parameters["hard_share"]
            found |= {own: name}
        if len(found) > 1:
            each = {v: evaluate.change(val[n], val[t.base], document_N, t.resamples)
                    for v, n in sorted(found.items())}  # fmt: skip
            words = (f"{v:g}: {tables.with_interval(*c)}" for v, c in each.items())
            said.append(f"{key} {'; '.join(words)} nats against the base, on development.")
    return tuple(said)


def shipped(this: Run) -> tuple[str, str, tuple[str, ...]]:
    """Merging, speeds and file sizes against the plan's numbers, from the records of 04 and 06."""
    timed = [
        (key.removeprefix("shape "), found)
        for record in book.results_of(this).values() if record["notebook"][:2] == "06"
        for key, found in record["remembered"].items() if key.startswith("shape ")
    ]  # fmt: skip
    checks = merges(this) + [check for shape, found in timed for check in speeds(shape, found)]
    missed = [what for what, held in checks if not held]
    said = tuple(f"{'✓' if held else '✗'} {what}." for what, held in checks)
    if not timed:
        return UNDECIDED, "no speeds of the plan's own shapes were measured (06, shapes)", said
    if not missed:
        return HOLDS, "every number is reached", said
    return (PART if len(missed) < len(checks) else FAILS), f"missed: {'; '.join(missed)}", said


def merges(this: Run) -> list[tuple[str, bool]]:
    """Per adapter whether merging changed nothing but its last digits, and added no weights."""
    path, checks = this.out / "tables/04_merge_eval-merged.csv", []
    for row in pd.read_csv(path).to_dict("records") if path.exists() else []:
        apart, most = (float(row[k]) for k in ("largest logit difference", "of logits up to"))
        same = str(row["weights"]) == str(row["weights of the base"])
        said = f"{row['adapter']} merged: logits up to {most:g} apart by {apart:.1e}"
        said += f", {row['weights']} weights, its base {row['weights of the base']}"
        checks.append((said, same and apart <= 1e-4 * most))
    return checks


def speeds(shape: str, timed: dict) -> list[tuple[str, bool]]:
    """Of a shape's ways of writing, the quickest of each of the plan's phases, and the 4-bit file:
    is the plan's lower number reached?"""
    best: dict[str, dict] = {}
    for row in inference.with_plan(shape, timed["rows"]):
        phase = inference.PHASES.get(row["way"])
        if phase and row["decode"] > best.get(phase, {"decode": 0})["decode"]:
            best[phase] = row
    told = [(row, row["plan"]) for row in best.values() if not math.isnan(row["plan"][0])]
    checks = [
        (f"{shape}, {row['way']}: {row['decode']:,.0f} tokens/s on one thread "
         f"(the plan: {low:g}–{high:g})", row["decode"] >= low)
        for row, (low, high) in told
    ]  # fmt: skip
    size, (low, _) = timed["bytes"]["Q4_0"] / 1e6, of_plan(shape, "megabytes")
    if math.isnan(low):
        return checks
    limit = Q4_LIMIT / 1e6 * low / 30  # as 33 MB for the plan's "~30 MB"
    return [*checks, (f"{shape}, Q4_0: {size:.1f} MB (the plan: ~{low:g})", size <= limit)]


# --- the better recipe


def recipe(this: Run, t: Judged, dev: Mapping[str, float]) -> tuple[list[Effect], str | None]:
    """The recipe of the sweep `recipe` against the plan's own route, with the folder's own adapter
    and with that of the best rate, and the name of the first seed's; nothing where it was not run.
    """
    of = [n for n, point in book.swept(this).items() if point.sweep == this.parameters["recipe"]]
    last = [n for n in of if not any(t.arms[m].base == n for m in of)]
    one = min(last, key=lambda n: t.arms[n].seeds, default=None)
    own, best = own_adapter(t), tuned(t, dev, True, "hard")
    effects = effect(t, one, own)
    if own != best:
        effects += effect(t, one, best, "part")
    for part in ("hard", "easy"):
        effects += effect(t, one, own, "part", part)
    effects += effect(t, one, t.base, "part")
    if (rate := at_best_rate(t, dev, t.base)) != t.base:
        effects += effect(t, one, rate, "part")
    return [replace(e, what=f"recipe − {e.what.split(' − ')[1]}") for e in effects], one


def recipe_in_words(
    effects: Sequence[Effect], cost: Mapping[str, dict], one: str | None, t: Judged,
    dev: Mapping[str, float],
) -> str:  # fmt: skip
    """Whether it beats the plan's route, at which cost of each."""
    if not effects:
        return "No recipe was run here: the sweep that `recipe` names has no point that is done."
    result, why = judge(effects[:1])
    how = {HOLDS: "**beats**", PART: "beats, with a reserve,", FAILS: "**loses to**"}.get(
        result, "is not clearly better than"
    )
    shown = {n: ", ".join(f"{k} {v}" for k, v in cost[n].items() if k != "made")
             for n in (one, tuned(t, dev, True, "hard")) if n in cost}  # fmt: skip
    return (f"The recipe {how} the plan's 50M + LoRA: {effects[0].words()} ({why}). Costs: "
            + "; ".join(f"{n}: {c}" for n, c in shown.items()) + ".")  # fmt: skip


# --- tables


def models_table(
    this: Run, tokens: data.Tokens, t: Judged, dev: Mapping[str, float]
) -> pd.DataFrame:
    """Every model: what it is, seeds, tokens, loss on development and on the text that judges, its
    difference from the base there, and what it cost."""
    cost, rows = book.made(this, tokens), []
    for name, arm in t.arms.items():
        seen = name in t.losses.read  # no verdict needs the others
        mean, *span = t.change(name, t.base, "all") if seen else (math.nan,) * 3
        rows.append({
            "model": name, "made": arm.kind(), "seeds": " ".join(map(str, arm.seeds)),
            "training tokens": arm.tokens, "development": dev[name],
            "confirmation": hard_set.known_mean(t.losses[name]) if seen else math.nan,
            f"against {t.base}":
            "baseline" if name == t.base else tables.with_interval(mean, *span) if seen else "–",
        } | {k: v for k, v in cost[name].items() if k != "made"})  # fmt: skip
    return pd.DataFrame(rows)


COST = ["made", "training, FLOP", "teacher, FLOP", "scoring, FLOP"]  # a table of their own
TRIED = ("init", "ce_weight", "temperature", "learning_rate", "warmup_share")


def choices_table(this: Run, tokens: data.Tokens, t: Judged, recipe_: str | None) -> pd.DataFrame:
    """What the recipe was chosen from: every student of the base's shape, seed and tokens, best on
    development first, each against the recipe (the best, where none was run) with its interval over
    development documents."""
    tried: dict[tuple, str] = {}
    for n, a in alike(t, t.base, set(TRIED)).items():  # a setting once, though two sweeps have it
        tried.setdefault(a.settings, n)
    names = list(tried.values())
    val, document_N = book.window_losses(this, names), tokens.documents("val")[0]
    order = sorted(names, key=lambda n: hard_set.known_mean(val[n]))
    # the recipe's own run may be longer than what it was chosen from
    wanted = t.arms[recipe_ or order[0]].p
    same = (n for n in order if all(t.arms[n].p[k] == wanted[k] for k in TRIED))
    chosen = next(same, order[0])
    rows = []
    for name in order:
        p = t.arms[name].p
        told = {k: p[k] for k in TRIED} | ({"temperature": "–"} if p["ce_weight"] == 1 else {})
        apart = evaluate.change(val[name], val[chosen], document_N, t.resamples)
        rows.append(told | {
            "development": round(hard_set.known_mean(val[name]), 4),
            "against the recipe":
            "the recipe" if name == chosen else tables.with_interval(*apart),
        })  # fmt: skip
    return pd.DataFrame(rows)


def grid(t: Judged, dev: Mapping[str, float]) -> list[tuple[float, float, float]]:
    """ce_weight, temperature and loss on development of the students that differ in these alone."""
    return [(a.p["ce_weight"], a.p["temperature"], dev[n]) for n, a in settings(t).items()]


def show(this: Run, claim: Claim) -> None:
    """A claim as a section: verdict, figure, every effect and note in words, what would change our
    mind."""
    from IPython.display import Markdown, display

    display(Markdown(f"## {claim.claim}\n\n**Verdict: {claim.verdict}** — {claim.why}."))
    if claim.effects:
        rows = [asdict(e) | {"over_seeds": e.over_seeds} for e in claim.effects]
        title = f"{claim.verdict}: {claim.effects[0].words()}"
        this.figure(claim.key, plots.effects(rows, title), alt=f"{claim.claim}: every effect")
    lines = [f"- {e.words()}{' (control)' * (e.role == 'control')}" for e in claim.effects]
    lines += [f"- {note}" for note in claim.notes]
    lines.append(
        f"\n*Compared with* {claim.control}. *What would change our mind at 300M:* {claim.change}"
    )
    display(Markdown("\n".join(lines)))


def in_short(found: Sequence[Claim], better: str) -> str:
    """The page in one sentence."""
    counts = {v: sum(c.verdict == v for c in found) for v in (HOLDS, PART, FAILS, UNDECIDED)}
    said = ", ".join(f"{n} × {v}" for v, n in counts.items() if n)
    better = better.partition(" Costs:")[0].replace("**", "")
    return f"{len(found)} claims: {said}. {better}"
