"""Does the plan hold? Each claim of the plan against text that no training has seen.

claims.yaml has the claims and what they compare, analysis.verdict the rules of a verdict.
Legend: N windows of a split, M of them fixed (told token by token), T tokens of each, S seeds.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from tdbook.analysis import features, intervals, verdict
from tdbook.analysis.verdict import FAILS, HOLDS, ROWS, TOPICS, UNDECIDED, Effect, Trial, Verdict
from tdbook.book import common, comparison
from tdbook.corpus import token_files
from tdbook.export import inference
from tdbook.report import plots, tables, words
from tdbook.runs import hashes, notebooks
from tdbook.runs.running import Run
from tdbook.runs.units import Q4_LIMIT, of_plan
from tdlib import checkpoint, data, evaluate, lora
from tdlib.hard_set import known_mean
from tdlib.model import Llama

ARMS = ("adapter on hard", "adapter on random", "weights on hard", "weights on random")
WAYS = (*(f"best {arm}" for arm in ARMS), "the longer training")


def split_of(tokens: data.Tokens) -> str:
    """The split that verdicts are read on: the first of these that has a target."""
    splits = {name: getattr(tokens, name) for name in ("works", "confirm", "val")}
    return next(name for name, x in splits.items() if name == "val" or (x and x.known_N.any()))


def judged_on(tokens: data.Tokens) -> str:
    """Which text judges, and how much of it, in a sentence."""
    windows = getattr(tokens, name := split_of(tokens))
    documents = len(np.unique(token_files.origins(tokens, name)[0][windows.known_N]))
    count = dict(known=windows.known_N.sum(), windows=len(windows), documents=documents)
    return words.say("judged_on", split=name, **count)


class Losses(dict):
    """Model → its loss of every window of a split, (N,). A model is run when it is first asked
    for: none that no verdict needs reads this text. Kept in scores/<split>/ under the hash of model
    and text, and of the fixed windows token by token."""

    def __init__(self, this: Run, tokens: data.Tokens, split: str):
        super().__init__()
        self.this, self.split, self.windows = this, split, getattr(tokens, split)
        self.folder = common.folder_of(this)
        self.models = verdict.models(self.folder)

    def __missing__(self, name: str) -> np.ndarray:
        return self.setdefault(name, np.load(self._path(name, "npy")))

    def tokens(self, name: str) -> np.ndarray:
        """A model's loss of every token of the fixed windows, (M, T)."""
        return np.load(self._path(name, "npz"))["token_loss_MT"]

    def _path(self, name: str, kind: str) -> Path:
        """A file of a model's losses, made where it is not there."""
        this, (out, model) = self.this, self.folder.place(name)
        adapter = name in self.folder.points and self.models[name].adapter
        place = f"{'adapters' if adapter else 'models'}/{model}"
        # the text too, and how much of it is told: a given teacher stays the same beside another
        files = ((out, place), (this.out, "tokens"))
        read = [hashes.made_by_others(where, "")[what]["sha256"] for where, what in files]
        fixed = this.parameters["fixed_windows"]
        stem = re.sub(r"[^\w.+-]+", "_", name) + f"-{hashes.of([*read, fixed])[:8]}"
        path = this.path("scores", self.split, f"{stem}.{kind}")
        if not path.exists():
            base = f"models/{self.models[name].p['base']}" if adapter else place
            net = Llama.load(out / base, this.device)
            net = lora.load(net, out / place) if adapter else net
            found = evaluate.evaluate(net.eval(), self.windows, fixed=fixed, device=this.device)
            found.save(path.parent, stem)
            this.progress(len(self) + 1, len(self.models), f"models on {self.split}: {name}")
        return path


def trial(this: Run, tokens: data.Tokens) -> Trial:
    """What all claims read: every model and its losses of the text that judges."""
    losses = Losses(this, tokens, split_of(tokens))
    models, points = losses.models, losses.folder.points
    # made from another hard set than 02's own, which their own parameters do not say
    mixed = {n for n, p in points.items() if p.varied.keys() - p.record["parameters"]}
    models = {n: m for n, m in models.items() if not (m.base and n in mixed)}
    development = {name: common.row_of(this, name)["loss"] for name in models}
    more = dict(models=models, development=development)
    return comparison.trial(this, losses, token_files.origins(tokens, losses.split)[0], **more)


def judged(this: Run, tokens: data.Tokens, t: Trial) -> list[Verdict]:
    """Every row of claims.yaml with its verdict."""
    measured, verdicts = hard_text(this, tokens, t) | kept(this, tokens, t), []
    for key, row in ROWS.items():
        if key in measured:
            verdicts.append(Verdict(key, measured[key], *verdict.judge(measured[key])))
        elif "ship" in row:
            verdicts.append(Verdict(key, [], *shipped(this, row["ship"])))
        else:
            verdicts.append(t.judged(key))
    return verdicts


def maturity(t: Trial) -> tuple[pd.DataFrame, dict[str, dict[str, intervals.Interval]]]:
    """What each way to go on wins back, of the base's loss and of the gap to the largest student of
    as many tokens, for bases that are ends of one training: a table, and the shares in percent."""
    base, rows, shares, length = t.models[t.base], [], {}, {*checkpoint.LENGTH}
    ends = (m for m in t.models.values() if m.seeds == base.seeds and base.same_but(m, length))
    for end in sorted(ends, key=lambda m: m.tokens):
        at, tokens = replace(t, base=end.name), f"{end.tokens / 1e6:.3g} million tokens"
        arms = [m for m in t.models.values() if t.made_from(m, end)]
        for way in WAYS if arms else ():
            gain = at.effect(f"{way} − its base")
            share = at.effect(["its base", way, "student-120m"])
            row = {"base": tokens, "way": way.removeprefix("best ")}
            row["loss − the base's"] = f"{gain.interval}" if gain.seeds else "not run"
            percent = intervals.Interval(*(100 * x for x in share.interval))
            row["share of the gap, %"] = f"{percent:.1f}" if share.seeds else "not run"
            rows.append(row | {"seeds": f"{gain.seeds}; {share.seeds}"})
            if share.seeds:
                shares.setdefault(tokens, {})[row["way"]] = percent
    return pd.DataFrame(rows), shares


def centre(this: Run, shares: dict[str, dict[str, intervals.Interval]]) -> str:
    """The plan's centre in one sentence, and its figure."""
    if shares:
        figure = plots.maturity(shares, "What wins back how much of the gap from 50M to 120M?")
        alt = "Share of the gap to 120M, by tokens of the base and way"
        this.figure("maturity", figure, alt=alt)
    return words.say("centre", shares=shares)


def hard_text(this: Run, tokens: data.Tokens, t: Trial) -> dict[str, list[Effect]]:
    """Row of claims.yaml → whether the hardest windows, as each seed of the base picks them, hold
    more of a kind of token."""
    windows, rows = t.losses.windows, np.arange(len(t.document_N))
    ids_NT, y_NT = (x.numpy() for x in replace(windows, mask=None).batch(rows))
    count_V = features.frequency(tokens.train, tokens.vocab_size)
    order = np.argsort(count_V, kind="stable")
    rare = order[np.cumsum(count_V[order]) <= 0.05 * count_V.sum()]
    pairs_NT = features.pair_frequency(tokens.train, ids_NT, y_NT)
    kinds = {"rare tokens": np.isin(y_NT, rare), "pairs never seen": pairs_NT == 0}
    kinds["tokens not in Telugu"] = features.scripts(tokens, windows, rows) != 0
    seeds, share = [m.name for m in t.role("its base")], this.parameters["hard_share"]
    hard_SN = np.stack([comparison.hard_windows(t.losses, n, t.teacher, share) for n in seeds])
    measured, masked_N = {}, np.isnan(t.losses[t.teacher])  # these are in neither part
    for key, kind in ((key, row["hard"]) for key, row in ROWS.items() if "hard" in row):
        share_SN = np.broadcast_to(np.where(masked_N, np.nan, kinds[kind].mean(1)), hard_SN.shape)
        apart = intervals.beyond(share_SN, hard_SN, t.document_N)
        what = f"share of {kind}, hardest {share:.0%} − the rest"
        measured[key] = [Effect(what, apart, len(seeds), claimed=1)]
    return measured


def kept(this: Run, tokens: data.Tokens, t: Trial) -> dict[str, list[Effect]]:
    """Row of claims.yaml → how much further behind the teacher the base is in buckets of tokens
    than elsewhere; above 0: lost. K tokens."""
    rows_M = evaluate.fixed_rows(t.losses.windows, this.parameters["fixed_windows"])
    labels = features.token_cuts(replace(tokens, val=t.losses.windows), rows_M)
    seeds, teacher_MT = [m.name for m in t.role("its base")], t.losses.tokens(t.teacher)
    lag_SK = np.stack([(t.losses.tokens(name) - teacher_MT).ravel() for name in seeds])
    document_K = np.repeat(t.document_N[rows_M], teacher_MT.shape[1])
    kinds = [(key, *kind) for key, row in ROWS.items() for kind in row.get("kinds", ())]
    measured: dict[str, list[Effect]] = {key: [] for key, *_ in kinds}
    for key, cut, bucket, claimed in kinds:
        names, at_MT = labels.get(cut, ([], None))
        in_K = at_MT.ravel() == names.index(bucket) if bucket in names else np.zeros(1, bool)
        if in_K.sum() >= tables.FEW:
            apart = intervals.beyond(lag_SK, np.broadcast_to(in_K, lag_SK.shape), document_K)
            effect = Effect(f"{bucket} ({cut})", apart, len(seeds), claimed=claimed)
            measured[key].append(effect)
    return measured


def shipped(this: Run, what: str) -> tuple[str, str, str]:
    """Whether merging, speeds or file sizes reach the plan's numbers, by the records of 04 and 06:
    the verdict, why, and what was measured."""
    records = [record["remembered"] for record in common.folder_of(this).of(notebooks.INFERENCE)]
    timed = [(key, x) for record in records for key, x in record.items() if key[:6] == "shape "]
    checks = merges(this) if what == "merge" else []
    for shape, x in ((key[6:], x) for key, x in timed):
        (low, high), limit = of_plan(shape, what), Q4_LIMIT / 30  # as 33 MB for the plan's "~30 MB"
        if what == "megabytes" and not math.isnan(low):
            size = x["bytes"]["Q4_0"]
            checks.append((f"{shape}: {size / 1e6:.1f} MB (~{low:g})", size <= limit * low))
        rows = [row for row in x["rows"] if inference.PHASES.get(row["way"]) == what]
        if rows and not math.isnan(low):
            best = max(rows, key=lambda row: row["decode"])
            speed = f"{shape}, {best['way']}: {best['decode']:,.0f} tokens/s ({low:g}–{high:g})"
            checks.append((speed, best["decode"] >= low))
    if not checks:
        return UNDECIDED, "not run", ""
    reached = sum(good for _, good in checks)
    told = min(checks, key=lambda check: check[1])[0]  # the first that is missed
    return (HOLDS if reached == len(checks) else FAILS), f"{reached} of {len(checks)} reached", told


def merges(this: Run) -> list[tuple[str, bool]]:
    """Per adapter whether merging changed nothing but its last digits, and added no weights."""
    path, checks = this.out / f"tables/{notebooks.COMPARISON}-merged.csv", []
    for row in pd.read_csv(path, dtype=str).to_dict("records") if path.exists() else []:
        apart, most = (float(row[k]) for k in ("largest logit difference", "of logits up to"))
        what = f"{row['adapter']}: logits up to {most:g} apart by {apart:.1e}"
        same = row["weights"] == row["weights of the base"]
        checks.append((what, same and apart <= 1e-4 * most))
    return checks


def effects_table(this: Run, tokens: data.Tokens, t: Trial, verdicts: Sequence[Verdict]):
    """Every effect; where works judge, beside it the seeds' mean on sections, whose works training
    has read other parts of."""
    table = verdict.effects_table(verdicts)
    if t.losses.split == "works" and tokens.confirm and tokens.confirm.known_N.any():
        losses = Losses(this, tokens, "confirm")
        document_N = token_files.origins(tokens, "confirm")[0]
        pairs = (e.pairs for v in verdicts for e in v.effects if e.seeds)
        values = [verdict.measure(losses, x, document_N).value if x else math.nan for x in pairs]
        table.insert(table.columns.get_loc("seeds"), "on sections", values)
    return table


def by_source(tokens: data.Tokens, t: Trial, verdicts: Iterable[Verdict]) -> pd.DataFrame:
    """The effects that are judged, by the source of the text that judges."""
    document_N, source_D = token_files.origins(tokens, t.losses.split)
    source_N, rows = np.array(source_D)[document_N], []
    for e in (e for v in verdicts for e in v.effects if e.role in verdict.JUDGED and e.pairs):
        each = {s: np.flatnonzero(source_N == s) for s in dict.fromkeys(source_D)}
        sizes = {s: verdict.measure(t.losses, e.pairs, document_N, at) for s, at in each.items()}
        rows.append({"effect": e.what} | {s: f"{size}" for s, size in sizes.items()})
    return pd.DataFrame(rows)


def models_table(this: Run, tokens: data.Tokens, t: Trial) -> pd.DataFrame:
    """Every model that a verdict rests on: what it is, seeds, losses, cost."""
    rows = []
    for name, made in comparison.made(this, tokens).items():
        if name in t.losses:
            row = {"model": name, "seeds": " ".join(map(str, t.models[name].seeds))}
            row |= {"development": t.development[name], t.losses.split: known_mean(t.losses[name])}
            rows.append(row | made)
    return pd.DataFrame(rows)


def topics(this: Run, verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Of each topic what was not run, what 02 found of it, and what would change our mind."""
    findings, rows = [r["finding"] for r in common.folder_of(this).of(notebooks.HARD_SET)], []
    for topic, about in TOPICS.items():
        effects = (e for v in verdicts if v.key in about["rows"] for e in v.effects)
        found = findings if any("hard" in row for row in about["rows"].values()) else []
        row = {"topic": topic, "not run": "; ".join(e.what for e in effects if not e.seeds) or "–"}
        row |= {"what 02 found": " ".join(found) or "–"}
        rows.append(row | {"what would change our mind": about["change"]})
    return pd.DataFrame(rows)
