"""Does the plan hold? Each claim of the plan against text that no choice has looked at.

Differences of loss, nats per token, are read on the confirmation split (the validation split where
there is none). Roles are found from parameters, never from names, so that any run folder can be
judged. Words and ranges of the claims lie in claims.yaml, the rules in claims.py.

Legend: N windows, M of them fixed (for what is told token by token), T tokens of a window.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from tdbook.analysis import intervals, kept_and_lost, verdict
from tdbook.analysis.claims import FAILS, HOLDS, PART, UNDECIDED, Claim, Effect, judge
from tdbook.analysis.verdict import Arm, Trial
from tdbook.book import common, comparison
from tdbook.export import inference
from tdbook.report import plots, tables
from tdbook.runs import hashes
from tdbook.runs.estimates import Q4_LIMIT, of_plan
from tdbook.runs.running import Run
from tdlib import data, evaluate, hard_set, lora
from tdlib.model import Llama

CLAIMS = Path(__file__).with_name("claims.yaml")
# kinds of token that the plan says are kept (the lag is smaller there than elsewhere) or lost
KEPT = [("place in the word", "inner"), ("place in the word", "final"),
        ("token seen in training", "≥ 1,000")]  # fmt: skip
LOST = [("pair seen in training", "never"), ("pair seen in training", "1–9"), ("script", "Latin"),
        ("script", "digits"), ("place in the window", "4th")]  # fmt: skip
TUNED = {"learning_rate", "temperature", "ce_weight", "weight_decay"}  # of each arm alike
TRIED = ("init", "ce_weight", "temperature", "learning_rate", "warmup_share")  # by the recipe
COST = ["made", "training, FLOP", "teacher, FLOP", "scoring, FLOP"]  # a table of their own

Effects = tuple[Sequence[Effect], Sequence[str]]  # of a claim, and what else was measured
Development = Mapping[str, float]  # model → loss on the validation split, where choices are made


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
    """Model → its loss of every window that judges, (N,). A model is run when it is first asked
    for, so that none that no verdict needs reads the confirmation text. Kept in scores/<split>/
    under the hash of model and text; of teacher, base and scratch, with every seed, also token by
    token (`whole`)."""

    def __init__(self, this: Run, tokens: data.Tokens):
        self.this, (self.split, self.windows) = this, split_of(tokens)
        self.arms, self.folder, self.read = comparison.arms_of(this), common.folder_of(this), {}
        p, arms = this.parameters, self.arms.values()
        some = [self.arms[p[role]].settings for role in ("base", "scratch") if p[role] in self.arms]
        self.whole = [p["teacher"], *(arm.name for arm in arms if arm.settings in some)]

    def __iter__(self):
        return iter(self.arms)

    def __len__(self) -> int:
        return len(self.arms)

    def __contains__(self, label: object) -> bool:
        return label in self.arms

    def __getitem__(self, label: str) -> np.ndarray:
        if label not in self.read:
            self.read[label] = np.load(self._path(label, "npy"))
        return self.read[label]

    def tokens(self, label: str) -> np.ndarray:
        """Of one of `whole`, the loss of every token of the fixed windows, (M, T)."""
        return np.load(self._path(label, "npz"))["token_loss_MT"]

    def _path(self, label: str, kind: str) -> Path:
        """A file of a model's losses, made where it is not there."""
        this, (out, model) = self.this, self.folder.place(label)
        adapter = label in self.folder.points and self.arms[label].adapter
        place = f"{'adapters' if adapter else 'models'}/{model}"
        read = [hashes.made_by_others(where, "")[name]["sha256"]
                for where, name in ((out, place), (this.out, "tokens"))]  # fmt: skip
        # the text too, and how much of it is told: a given teacher stays the same beside another
        key = hashes.of([*read, this.parameters["fixed_windows"]])
        name = re.sub(r"[^\w.+-]+", "_", label) + f"-{key[:8]}"
        path = this.path("scores", self.split, f"{name}.{kind}")
        if not path.exists():
            base = out / "models" / self.arms[label].p["base"] if adapter else out / place
            net = Llama.load(base, this.device)
            net = lora.load(net, out / place) if adapter else net
            whole = label in self.whole
            count = this.parameters["fixed_windows"] if whole else 1
            found = evaluate.evaluate(net.eval(), self.windows, fixed=count, device=this.device)
            found.save(path.parent, name, whole)
            this.progress(len(self.read) + 1, len(self), f"models on {self.split}: {label}")
        return path


def effect(
    t: Trial, one: str | None, other: str | None, role: str = "claim", part: str = "all",
    plan: tuple[float, float] | None = None,
) -> list[Effect]:  # fmt: skip
    """Loss of one minus that of the other; nothing where one of them was not run."""
    if one not in t.losses or other not in t.losses:
        return []
    a, b = t.arms[one], t.arms[other]
    sign = -1 if len(a.seeds) < len(b.seeds) else 1  # an adapter has two, and is asked first
    c = t.compare("", *(a, b)[::sign])
    value, *ends = (sign * x for x in c.changes[part])
    where = "" if part == "all" else f" on {part} text"
    seeds = tuple(sign * pair[part] for pair in c.seeds)
    what = f"{_short(a)} − {_short(b)}{where}"
    return [Effect(what, value, *ends[::sign], seeds, role, plan and tuple(plan))]


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


def first(t: Trial, wanted: Callable[[Arm], bool]) -> str | None:
    """The model of the run folder itself that fits, with the base's seed."""
    found = [a for a in t.arms.values() if a.own and a.name in t.losses and wanted(a)]
    order = sorted(found, key=lambda a: (a.seeds != t.arms[t.base].seeds, a.name))
    return order[0].name if order else None


def students(t: Trial) -> dict[str, str | None]:
    """Role → model, of the students."""
    base, scratch = t.arms[t.base], t.arms.get(t.scratch)
    more = scratch.tokens * 1.01 if scratch else math.inf

    def as_base(a: Arm, size: str) -> bool:
        same = all(a.p.get(k) == base.p.get(k) for k in ("ce_weight", "temperature", "init"))
        shaped = a.notebook == "01_distill" and a.shape.startswith(f"student-{size}")
        return same and shaped and a.name != t.picked_by

    def longer(a: Arm, again: bool) -> bool:
        same = a.notebook == "01_distill" and a.shape == base.shape and a.p["ce_weight"] == 1
        return same and a.tokens > more and bool(a.p.get("distinct_tokens")) == again

    def progressive(a: Arm, name: str) -> bool:
        return a.notebook == "05_progressive" and a.name == name

    return {
        "fresh": first(t, lambda a: longer(a, False)),
        "epochs": first(t, lambda a: longer(a, True)),
        "stretched": next((a.name for a in verdict.stretched(t)), None),
        **{s: first(t, lambda a, s=s: as_base(a, s)) for s in ("55m", "80m", "120m", "75m")},
        "progressive": first(t, lambda a: progressive(a, "75m")),
        "direct": first(t, lambda a: progressive(a, "75m-direct")),
    }  # fmt: skip


def tuned(t: Trial, dev: Development, adapter: bool, windows: str) -> str | None:
    """What was made from the base on those windows, at that learning rate, of all that were tried,
    which has the lowest loss on development."""
    own = own_adapter_of_base(t)
    if own is None:
        return None
    free = verdict.NAMES | hashes.VOLATILE | TUNED | {"windows", "trains"}
    tried = [
        a.name for a in t.arms.values()
        if a.base == t.base and (a.adapter, a.windows) == (adapter, windows) and a.name in t.losses
        and all(a.p.get(k) == v for k, v in own.p.items() if k not in free)
        and (not adapter or a.p["ce_weight"] == own.p["ce_weight"]) and a.name not in t.mixed
    ]  # fmt: skip
    return min(tried, key=dev.get, default=None)


def own_adapter_of_base(t: Trial) -> Arm | None:
    return next((a for a in t.arms.values() if a.own and a.base == t.base and a.adapter
                 and a.windows == "hard"), None)  # fmt: skip


def trial(this: Run, tokens: data.Tokens) -> Trial:
    """What all claims read: every model, its losses, and which windows are hard."""
    p, losses = this.parameters, Losses(this, tokens)
    hard_N = comparison.hard_windows(losses, p["picked_by"], p["teacher"], p["hard_share"])
    t = comparison.trial(this, losses, hard_N, tokens.documents(losses.split)[0])
    points = common.folder_of(this).points.items()
    mixed = {n for n, point in points if set(point.varied) - set(point.record["parameters"])}
    return replace(t, mixed=frozenset(mixed))


def judged(this: Run, tokens: data.Tokens, t: Trial) -> list[Claim]:
    """Every claim with its verdict, in the plan's order."""
    dev, of, found = development(this, t), students(t), []
    effects_of: dict[str, Callable[[dict], Effects]] = {
        "distilled": lambda told: distilled(t, of, dev, told, comparison.costs(this, tokens)),
        "loss": lambda told: loss_settings(t, dev),
        "sizes": lambda told: sizes(t, of, told),
        "progressive": lambda told: progressive(t, of, told),
        "hard": lambda told: hard_text(this, tokens, t),
        "adapter": lambda told: adapter(t, of, dev, told),
        "rank": lambda told: ((), rank_notes(this, tokens, t)),
        "kept": lambda told: kept(this, tokens, t),
    }
    for told in yaml.safe_load(CLAIMS.read_text("utf-8")):
        if told["key"] == "ship":
            result, why, notes = shipped(this)
            effects = ()
        else:
            effects, notes = effects_of[told["key"]](told)
            result, why = judge(effects, told.get("every", True))
        if "undecidable" in told:
            result, why = UNDECIDED, told["undecidable"]
        shown = {k: " ".join(told[k].split()) for k in ("claim", "control", "change")}
        found.append(Claim(told["key"], verdict=result, why=why, effects=tuple(effects),
                           notes=tuple(notes), **shown))  # fmt: skip
    return found


def development(this: Run, t: Trial) -> dict[str, float]:
    """Every model's loss on the validation split, where choices are made."""
    return {name: common.row_of(this, name)["loss"] for name in t.arms}


def distilled(
    t: Trial, of: dict, dev: Development, told: dict, spent: Mapping[str, dict]
) -> Effects:
    """The base against the scratch student; and each at the learning rate of its own that
    development chose."""
    effects = effect(t, t.base, t.scratch, plan=told["plan"])
    best = tuple(at_best_rate(t, dev, name) for name in (t.base, t.scratch))
    if best != (t.base, t.scratch):
        effects += effect(t, *best, "part")
    for name in (of["fresh"], of["epochs"]):
        effects += effect(t, t.base, name, "control")
    if t.scratch not in spent or t.teacher not in spent:
        return effects, ()
    alone, base = spent[t.scratch]["training"], spent[t.base]
    reads, trained = base["training"] + base["teacher"], spent[t.teacher]["training"]
    return effects, [
        f"Cost: the base and its teacher's reading {reads:.2g} FLOP, {reads / alone:.2f} times the "
        f"scratch student's; with the teacher's own training ({trained:.2g}) "
        f"{(reads + trained) / alone:.0f} times: a student from scratch for that much was not run."
    ]


def loss_settings(t: Trial, dev: Development) -> Effects:
    """The plan's best setting against the best of all others, both chosen on development."""
    tried = settings(t)
    ours = [n for n, a in tried.items() if a.p["ce_weight"] == 0.5 and 2 <= a.p["temperature"] <= 4]
    others = [n for n in tried if n not in ours]
    if not ours or not others:
        return (), ()
    one, other, best = (min(names, key=dev.get) for names in (ours, others, tried))
    p = tried[other].p
    return effect(t, one, other), [
        f"Of {len(tried)} settings the best on development is {_short(t.arms[best])}; of the "
        f"plan's, {one} ({dev[one]:.3f}); of the others ce_weight {p['ce_weight']:g}, T "
        f"{p['temperature']:g} ({dev[other]:.3f})."
    ]


def settings(t: Trial) -> dict[str, Arm]:
    """The students that differ from the base in ce_weight and temperature alone."""
    return alike(t, t.base, {"ce_weight", "temperature"})


def at_best_rate(t: Trial, dev: Development, name: str) -> str | None:
    """Of a student and those that differ from it in learning rate alone the best on development."""
    return min(alike(t, name, {"learning_rate"}), key=dev.get) if name in t.arms else None


def alike(t: Trial, name: str, but: set[str]) -> dict[str, Arm]:
    """A student, and those of its seed that differ from it in these parameters alone."""
    like, free = t.arms[name], verdict.NAMES | hashes.VOLATILE | {"cached_draws"} | but
    return {
        n: a for n, a in t.arms.items()
        if a.notebook == like.notebook and a.seeds == like.seeds and n != t.picked_by
        and all(a.p.get(k) == v for k, v in like.p.items() if k not in free)
    }  # fmt: skip


def sizes(t: Trial, of: dict, told: dict) -> Effects:
    effects = effect(t, of["120m"], of["80m"], plan=told["plan"]["120m"])
    return effects + effect(t, of["80m"], t.base, plan=told["plan"]["80m"]), ()


def progressive(t: Trial, of: dict, told: dict) -> Effects:
    effects = effect(t, of["progressive"], of["direct"], plan=told["plan"])
    return effects + effect(t, of["progressive"], of["75m"], "control"), ()


def adapter(t: Trial, of: dict, dev: Development, told: dict) -> Effects:
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
    rivals = [tuned(t, dev, *each) for each in others]
    for other in [*rivals, of["stretched"], of["55m"]]:
        effects += effect(t, best, other, "control")
    for part in ("hard", "easy"):
        effects += effect(t, own, t.base, "part", part)
        effects += effect(t, best, rivals[0], "part", part)
    if not best:
        return effects, ()
    notes = []
    if of["120m"] in t.losses:
        pair = (t.arms[name] for name in (best, of["120m"]))
        notes.append(verdict.gap_in_words(t, verdict.Comparison("", *pair, {}, (), [])))
    chosen = sorted((t.arms[n] for n in [best, *rivals] if n), key=lambda a: not a.own)
    words = (_short(a) + f", rate {a.p['learning_rate']:g}" * a.own for a in chosen)
    return effects, [*notes, f"What development chose of each arm: {'; '.join(words)}."]


def hard_text(this: Run, tokens: data.Tokens, t: Trial) -> Effects:
    """What the hardest windows hold: rare tokens, pairs never seen, other scripts, against the
    rest; each seed of the base picks its own. And whether the seeds pick the same."""
    _, windows = split_of(tokens)
    share, rows = this.parameters["hard_share"], np.arange(len(windows))
    ids_NT, y_NT = (x.numpy() for x in replace(windows, mask=None).batch(rows))
    count_V = kept_and_lost.frequency(tokens.train, tokens.vocab_size)
    order = np.argsort(count_V, kind="stable")
    rare_V = np.zeros(len(count_V), bool)
    rare_V[order[np.cumsum(count_V[order]) <= 0.05 * count_V.sum()]] = True
    kinds = {
        "rare tokens": rare_V[y_NT],
        "pairs never seen": kept_and_lost.pair_frequency(tokens.train, ids_NT, y_NT) == 0,
    }
    if tokens.tokenizer:
        kinds["tokens not in Telugu"] = kept_and_lost.scripts(tokens.tokenizer, windows, rows) != 0
    twins = t.twins(t.arms[t.base])
    hard = [comparison.hard_windows(t.losses, a.name, t.teacher, share) for a in twins]
    effects, masked_N = [], np.isnan(t.losses[t.teacher])  # these are in neither part
    for what, kind_NT in kinds.items():
        x_N = np.where(masked_N, np.nan, kind_NT.mean(1))
        each = [intervals.beyond(x_N, h_N, t.document_N, t.resamples) for h_N in hard]
        effects.append(Effect(f"share of {what}, hardest {share:.0%} − the rest", *each[0],
                              tuple(e[0] for e in each), claimed=1))  # fmt: skip
    lag_N = np.fmax(t.losses[t.base] - t.losses[t.teacher], 0)
    held = lag_N[hard[0]].sum() / (lag_N.sum() or 1)
    notes = [f"The hardest {share:.0%} hold {held:.0%} of all that {t.base} lost."]
    if len(hard) > 1:
        same = [(h & hard[0]).sum() / (h | hard[0]).sum() for h in hard[1:]]
        notes.append(f"Hard sets of {len(hard)} seeds share {min(same):.2f} to {max(same):.2f} "
                     f"(Jaccard; {share / (2 - share):.2f} by chance).")  # fmt: skip
    for record in common.folder_of(this).of("02_hard_set"):
        notes += [f"The teacher's lead on text it has read is larger by "
                  f"{intervals.with_interval(row['gap'], row['low'], row['high'])} nats than on "
                  "other text of the same sources: so much is memory."
                  for row in record["remembered"].get("reality", {}).get("memory", [])
                  if row["name"] == t.teacher]  # fmt: skip
    return effects, notes


def kept(this: Run, tokens: data.Tokens, t: Trial) -> Effects:
    """How much further behind the teacher the base is in a bucket than on all other tokens: below 0
    is kept, above is lost. The scratch student by the same cuts is shown, not judged."""
    _, windows = split_of(tokens)
    rows_M = evaluate.fixed_rows(windows, this.parameters["fixed_windows"])
    labels, effects = kept_and_lost.cuts(replace(tokens, val=windows), rows_M), []
    loss_MT = {n: t.losses.tokens(n) for n in t.losses.whole if n in t.losses}
    document_MT = np.broadcast_to(t.document_N[rows_M][:, None], loss_MT[t.teacher].shape)
    for cut, bucket in [*KEPT, *LOST]:
        names, at_MT = labels.get(cut, ([], None))
        in_MT = at_MT == names.index(bucket) if bucket in names else np.zeros(1, bool)
        if in_MT.sum() < tables.FEW:
            continue
        at = in_MT.ravel(), document_MT.ravel(), t.resamples
        for model, role in ((t.base, "claim"), (t.scratch, "part")):
            twins = t.twins(t.arms[model]) if model in loss_MT else []
            each = [intervals.beyond((loss_MT[a.name] - loss_MT[t.teacher]).ravel(), *at)
                    for a in twins if a.name in loss_MT]  # fmt: skip
            claimed = -1 if (cut, bucket) in KEPT else 1
            effects += [Effect(f"{bucket} ({cut}), {model}", *each[0], tuple(e[0] for e in each),
                               role, claimed=claimed)] if each else []  # fmt: skip
    notes = []
    for record in common.folder_of(this).of("04_merge_eval"):
        texts = record["remembered"].get("texts", {})
        if t.base in texts and t.teacher in texts:
            (two, twos), (four, fours) = (  # null where a text is too short to have any
                [intervals.number(texts[n][key], form) for n in (t.base, t.teacher)]
                for key, form in (("distinct_2grams", ".0%"), ("repeated_4grams", ".1%"))
            )
            notes.append(f"Diversity, of twenty generated texts: distinct bigrams {two} (teacher "
                         f"{twos}), repeated 4-grams {four} ({fours}); no interval.")  # fmt: skip
    return effects, notes


def rank_notes(this: Run, tokens: data.Tokens, t: Trial) -> list[str]:
    """The sensitivity sweep in words: the change of loss on development at each value."""
    val = comparison.window_losses(this, [n for n in t.arms if n in t.losses])
    document_N, said = tokens.documents("val")[0], []
    own = own_adapter_of_base(t)
    for key in ("share", "rank", "lora_scale"):
        points = common.folder_of(this).points.items()
        names = {point.varied[key]: n for n, point in points if set(point.varied) == {key}}
        if own:
            given = own.p.get(key)
            names[this.parameters["hard_share"] if given is None else given] = own.name
        if len(names) > 1:
            changes = {v: intervals.change(val[n], val[t.base], document_N, t.resamples)
                       for v, n in sorted(names.items())}  # fmt: skip
            words = (f"{v:g}: {intervals.with_interval(*c)}" for v, c in changes.items())
            said.append(f"{key} {'; '.join(words)} nats against the base, on development.")
    return said


def shipped(this: Run) -> tuple[str, str, tuple[str, ...]]:
    """Merging, speeds and file sizes against the plan's numbers, from the records of 04 and 06."""
    timed = [
        (key.removeprefix("shape "), found)
        for record in common.folder_of(this).of("06_inference")
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
    checks = []
    for row in best.values():
        low, high = row["plan"]
        said = f"{shape}, {row['way']}: {row['decode']:,.0f} tokens/s on one thread "
        if not math.isnan(low):
            checks.append((f"{said}(the plan: {low:g}–{high:g})", row["decode"] >= low))
    size, (low, _) = timed["bytes"]["Q4_0"] / 1e6, of_plan(shape, "megabytes")
    if math.isnan(low):
        return checks
    limit = Q4_LIMIT / 1e6 * low / 30  # as 33 MB for the plan's "~30 MB"
    return [*checks, (f"{shape}, Q4_0: {size:.1f} MB (the plan: ~{low:g})", size <= limit)]


def recipe(this: Run, t: Trial, dev: Development) -> tuple[list[Effect], str | None]:
    """The recipe of the sweep `recipe` against the plan's own route, with the folder's own adapter
    and with that of the best rate, and the name of the first seed's; nothing where it was not run.
    """
    points = common.folder_of(this).points.items()
    of = [n for n, point in points if point.sweep == this.parameters["recipe"]]
    last = [n for n in of if not any(t.arms[m].base == n for m in of)]
    one = min(last, key=lambda n: t.arms[n].seeds, default=None)
    own, best = own_adapter(t), tuned(t, dev, True, "hard")
    effects = effect(t, one, own)
    if own != best:
        effects += effect(t, one, best, "part")
    for part in ("hard", "easy"):
        effects += effect(t, one, own, "part", part)
    for base in dict.fromkeys([t.base, at_best_rate(t, dev, t.base)]):
        effects += effect(t, one, base, "part")
    return [replace(e, what=f"recipe − {e.what.split(' − ')[1]}") for e in effects], one


def recipe_in_words(
    effects: Sequence[Effect], cost: Mapping[str, dict], one: str | None, t: Trial,
    dev: Development,
) -> str:  # fmt: skip
    """Whether it beats the plan's route, at which cost of each."""
    if not effects:
        return "No recipe was run here: the sweep that `recipe` names has no point that is done."
    result, why = judge(effects[:1])
    how = {HOLDS: "**beats**", PART: "beats, with a reserve,", FAILS: "**loses to**"}.get(
        result, "is not clearly better than"
    )
    said = f"The recipe {how} the plan's 50M + LoRA: {effects[0].words()} ({why}). Costs: "
    names = [n for n in (one, tuned(t, dev, True, "hard")) if n in cost]
    spent = (f"{n}: {', '.join(f'{k} {cost[n][k]}' for k in COST[1:])}" for n in names)
    return said + "; ".join(spent) + "."


def models_table(this: Run, tokens: data.Tokens, t: Trial, dev: Development) -> pd.DataFrame:
    """Every model: what it is, seeds, tokens, loss on development and on the text that judges, its
    difference from the base there, and what it cost."""
    rows = []
    for name, made in comparison.made(this, tokens).items():
        arm, loss, change = t.arms[name], math.nan, "–"
        if name in t.losses.read:  # no verdict needs the others
            loss = hard_set.known_mean(t.losses[name])
            change = intervals.with_interval(*t.change(name, t.base, "all"))
        rows.append({
            "model": name, "made": made["made"], "seeds": " ".join(map(str, arm.seeds)),
            "training tokens": arm.tokens, "development": dev[name], "confirmation": loss,
            f"against {t.base}": "baseline" if name == t.base else change,
        } | {k: made[k] for k in COST[1:]})  # fmt: skip
    return pd.DataFrame(rows)


def choices_table(this: Run, tokens: data.Tokens, t: Trial, recipe_: str | None) -> pd.DataFrame:
    """What the recipe was chosen from: every student of the base's shape, seed and tokens, best on
    development first, each against the recipe (the best, where none was run) with its interval over
    development documents."""
    tried: dict[tuple, str] = {}
    for n, a in alike(t, t.base, set(TRIED)).items():  # a setting once, though two sweeps have it
        tried.setdefault(a.settings, n)
    val, document_N = (
        comparison.window_losses(this, list(tried.values())),
        tokens.documents("val")[0],
    )
    loss = {n: hard_set.known_mean(loss_N) for n, loss_N in val.items()}
    order = sorted(loss, key=loss.get)
    # the recipe's own run may be longer than what it was chosen from
    wanted = t.arms[recipe_ or order[0]].p
    same = (n for n in order if all(t.arms[n].p[k] == wanted[k] for k in TRIED))
    chosen, rows = next(same, order[0]), []
    for name in order:
        p, apart = t.arms[name].p, intervals.change(val[name], val[chosen], document_N, t.resamples)
        rows.append({k: p[k] for k in TRIED} | {
            "temperature": "–" if p["ce_weight"] == 1 else p["temperature"],
            "development": round(loss[name], 4),
            "against the recipe":
            "the recipe" if name == chosen else intervals.with_interval(*apart),
        })  # fmt: skip
    return pd.DataFrame(rows)


def grid(t: Trial, dev: Development) -> list[tuple[float, float, float]]:
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
    change = f"*What would change our mind at 300M:* {claim.change}"
    display(Markdown("\n".join([*lines, f"\n*Compared with* {claim.control}. {change}"])))


def in_short(found: Sequence[Claim], better: str) -> str:
    """The page in one sentence."""
    verdicts = [claim.verdict for claim in found]
    order = [v for v in (HOLDS, PART, FAILS, UNDECIDED) if v in verdicts]
    counts = ", ".join(f"{verdicts.count(v)} × {v}" for v in order)
    better = better.partition(" Costs:")[0].replace("**", "")
    return f"{len(found)} claims: {counts}. {better}"
