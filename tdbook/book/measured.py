"""What notebook 07's claims need besides differences of loss: what hard windows hold, which kinds
of token are kept, settings and rates that development chose, speeds and files.

A function of a claim returns its effects, and in sentences what else was measured.
Legend: N windows, M of them fixed, T tokens of a window, V vocabulary.
"""

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from tdbook.analysis import intervals, kept_and_lost
from tdbook.analysis.claims import FAILS, HOLDS, PART, UNDECIDED, Effect
from tdbook.analysis.trial import CLAIMS, Model, Trial
from tdbook.book import common, comparison, reality
from tdbook.export import inference
from tdbook.report import tables
from tdbook.runs import notebooks
from tdbook.runs.estimates import Q4_LIMIT, of_plan
from tdbook.runs.running import Run
from tdlib import data, evaluate

Measured = tuple[list[Effect], list[str]]


def split_of(tokens: data.Tokens) -> tuple[str, data.Windows]:
    """The split that verdicts are read on; validation where nothing else has a target."""
    confirm = tokens.confirm and tokens.confirm.known_N.any()
    return ("confirm", tokens.confirm) if confirm else ("val", tokens.val)


def settings(t: Trial) -> list[Model]:
    """The students that differ from the base in ce_weight and temperature alone."""
    return t.alike(t.models[t.base], {"ce_weight", "temperature"})


def loss_settings(this: Run, tokens: data.Tokens, t: Trial) -> Measured:
    """The plan's best setting against the best of all others, both chosen on development."""
    order = sorted(settings(t), key=lambda m: t.development[m.name])
    ours = [m for m in order if m.p["ce_weight"] == 0.5 and 2 <= m.p["temperature"] <= 4]
    others = [m for m in order if m not in ours]
    if not ours or not others:
        return [], []
    one, other = ours[0], others[0]
    return [t.effect(one, other)], [
        f"Of {len(order)} settings the best on development is {order[0].label}; of the plan's, "
        f"{one.name} ({t.development[one.name]:.3f}); of the others ce_weight "
        f"{other.p['ce_weight']:g}, T {other.p['temperature']:g} ({t.development[other.name]:.3f})."
    ]


def hard_text(this: Run, tokens: data.Tokens, t: Trial) -> Measured:
    """What the hardest windows hold against the rest: rare tokens, pairs never seen, other scripts;
    each seed of the base picks its own."""
    _, windows = split_of(tokens)
    p, share, rows = this.parameters, this.parameters["hard_share"], np.arange(len(windows))
    ids_NT, y_NT = (x.numpy() for x in replace(windows, mask=None).batch(rows))
    count_V = kept_and_lost.frequency(tokens.train, tokens.vocab_size)
    order = np.argsort(count_V, kind="stable")
    rare_V = np.zeros(len(count_V), bool)
    rare_V[order[np.cumsum(count_V[order]) <= 0.05 * count_V.sum()]] = True
    pairs_NT = kept_and_lost.pair_frequency(tokens.train, ids_NT, y_NT)
    kinds = {"rare tokens": rare_V[y_NT], "pairs never seen": pairs_NT == 0}
    if tokenizer := kept_and_lost.readable(tokens):
        kinds["tokens not in Telugu"] = kept_and_lost.scripts(tokenizer)[y_NT] != 0
    seeds = t.seeds_of(t.models[t.base])
    hard = [comparison.hard_windows(t.losses, m.name, t.teacher, share) for m in seeds]
    effects, masked_N = [], np.isnan(t.losses[t.teacher])  # these are in neither part
    for kind, in_NT in kinds.items():
        share_N = np.where(masked_N, np.nan, in_NT.mean(1))
        each = [(share_N, hard_N, t.document_N) for hard_N in hard]
        effects.append(_beyond(t, f"share of {kind}, hardest {share:.0%} − the rest", each, 1))
    lag_N = np.fmax(t.losses[t.base] - t.losses[t.teacher], 0)
    held = lag_N[hard[0]].sum() / (lag_N.sum() or 1)
    notes = [f"The hardest {share:.0%} hold {held:.0%} of all that {t.base} lost."]
    records = [record["remembered"] for record in common.folder_of(this).of(notebooks.HARD_SET)]
    found = [record["reality"] for record in records if "reality" in record]
    return effects, notes + [reality.in_words(x, p["base"], p["teacher"]) for x in found]


def _beyond(t: Trial, what: str, seeds: Iterable[tuple], claimed: int, role="claim") -> Effect:
    """The mean in one part beyond that in the other, of each seed's (values, part, documents)."""
    each = [intervals.beyond(*seed, t.resamples) for seed in seeds]
    return Effect(what, each[0], tuple(e.value for e in each), role, claimed=claimed)


def kept(this: Run, tokens: data.Tokens, t: Trial) -> Measured:
    """How much further behind the teacher the base is in a bucket than on all other tokens: below 0
    is kept, above is lost. The scratch student by the same cuts is shown, not judged."""
    _, windows = split_of(tokens)
    rows_M = evaluate.fixed_rows(windows, this.parameters["fixed_windows"])
    labels, effects = kept_and_lost.cuts(replace(tokens, val=windows), rows_M), []
    loss_MT = {name: t.losses.tokens(name) for name in t.losses.whole if name in t.models}
    document_MT = np.broadcast_to(t.document_N[rows_M][:, None], loss_MT[t.teacher].shape)
    for cut, bucket, claimed in kinds():
        names, at_MT = labels.get(cut, ([], None))
        in_MT = at_MT == names.index(bucket) if bucket in names else np.zeros(1, bool)
        if in_MT.sum() < tables.FEW:
            continue
        for name, role in ((t.base, "claim"), (t.scratch, "part")):
            if name in loss_MT:
                seeds = [m.name for m in t.seeds_of(t.models[name]) if m.name in loss_MT]
                lags = [loss_MT[seed] - loss_MT[t.teacher] for seed in seeds]
                each = [(lag_MT.ravel(), in_MT.ravel(), document_MT.ravel()) for lag_MT in lags]
                effects.append(_beyond(t, f"{bucket} ({cut}), {name}", each, claimed, role))
    return effects, []


def kinds() -> list[tuple[str, str, int]]:
    """Cut and bucket of each kind of token that the claim names, and the sign that it claims."""
    claim = next(row for row in CLAIMS["claims"] if row["key"] == "kept")
    signs = ((-1, claim["kept"]), (1, claim["lost"]))
    return [(cut, b, sign) for sign, cuts in signs for cut, some in cuts.items() for b in some]


# key of a claim → what it needs besides the effects that claims.yaml lists
MEASURES = dict(loss=loss_settings, hard=hard_text, kept=kept)


def shipped(this: Run) -> tuple[str, str, list[str]]:
    """Merging, speeds and file sizes against the plan's numbers, from the records of 04 and 06."""
    records = [record["remembered"] for record in common.folder_of(this).of(notebooks.INFERENCE)]
    timed = [(key, x) for record in records for key, x in record.items() if key[:6] == "shape "]
    checks = merges(this) + [check for key, x in timed for check in speeds(key[6:], x)]
    missed = [what for what, held in checks if not held]
    notes = [f"{'✓' if held else '✗'} {what}." for what, held in checks]
    if not timed:
        return UNDECIDED, "no speeds of the plan's own shapes were measured (06, shapes)", notes
    if not missed:
        return HOLDS, "every number is reached", notes
    return (PART if len(missed) < len(checks) else FAILS), f"missed: {'; '.join(missed)}", notes


def merges(this: Run) -> list[tuple[str, bool]]:
    """Per adapter whether merging changed nothing but its last digits, and added no weights."""
    path, checks = this.out / f"tables/{notebooks.COMPARISON}-merged.csv", []
    for row in pd.read_csv(path, dtype=str).to_dict("records") if path.exists() else []:
        apart, most = (float(row[k]) for k in ("largest logit difference", "of logits up to"))
        weights, base = row["weights"], row["weights of the base"]
        what = f"{row['adapter']} merged: logits up to {most:g} apart by {apart:.1e}, "
        what += f"{weights} weights, its base {base}"
        checks.append((what, weights == base and apart <= 1e-4 * most))
    return checks


def speeds(shape: str, timed: dict) -> list[tuple[str, bool]]:
    """Of a shape's ways of writing, the quickest of each of the plan's phases, and the 4-bit file:
    is the plan's lower number reached?"""
    checks, best = [], {}
    for row in inference.with_plan(shape, timed["rows"]):
        phase = inference.PHASES.get(row["way"])
        if phase and row["decode"] > best.get(phase, {"decode": 0})["decode"]:
            best[phase] = row
    for row in best.values():
        low, high = row["plan"]
        what = f"{shape}, {row['way']}: {row['decode']:,.0f} tokens/s on one thread "
        if not math.isnan(low):
            checks.append((f"{what}(the plan: {low:g}–{high:g})", row["decode"] >= low))
    size, (low, _) = timed["bytes"]["Q4_0"] / 1e6, of_plan(shape, "megabytes")
    if not math.isnan(low):
        limit = Q4_LIMIT / 1e6 * low / 30  # as 33 MB for the plan's "~30 MB"
        checks.append((f"{shape}, Q4_0: {size:.1f} MB (the plan: ~{low:g})", size <= limit))
    return checks
