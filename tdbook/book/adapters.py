"""The calls of 03 and 04: what an adapter replays and how, and its merging."""

import copy

import numpy as np
import torch

from tdbook.book import common, students
from tdbook.runs.running import Run
from tdlib import data, evaluate, files, hard_set, lora, train
from tdlib.model import Llama


def windows_replayed(this: Run, chosen: hard_set.HardSet, tokens: data.Tokens) -> np.ndarray:
    """Numbers of the windows that 03 trains on; of those without a target nothing is learnt."""
    p, k, known = this.parameters, len(chosen.windows_K), np.flatnonzero(tokens.train.known_N)
    if p["windows"] == "random":
        drawn = np.random.default_rng(p["seed"]).choice(len(known), k, replace=False)
        return known[np.sort(drawn)]
    if p["windows"] != "easiest":
        return chosen.windows_K if p["windows"] == "hard" else known
    difficulty_N = hard_set.load_scores(this.path("scores", p["scores"])).difficulty_N
    if np.isfinite(difficulty_N).sum() < k:
        raise ValueError(f"windows 'easiest' needs {k:,} windows that were scored")
    return np.sort(np.argsort(difficulty_N, kind="stable")[:k])  # NaN comes last


def weighed(this: Run, share: float, rows_K, tokens: data.Tokens, net, teacher) -> data.Tokens:
    """The tokens; of a `share` below 1 with weights: 1 where the net is furthest behind."""
    if share == 1 or this.current:
        return tokens
    path = this.path("checkpoints", this.run, "weights.bin")
    with files.replacing(path) as beside:
        weights, done = data.weighted(tokens, beside, new=True).train.weights, 0
        for rows_B in tokens.train.batches(rows_K, 16):
            weigh(net, teacher, tokens.train, rows_B, share, weights, this.device)
            this.progress(done := done + len(rows_B), len(rows_K), "windows weighed")
        weights.flush()
    return data.weighted(tokens, path)


def weigh(student, teacher, windows, rows_B, share: float, weights, device: str) -> None:
    """Token mode (Rho-1, arXiv 2404.07965, within a window): sets data.Windows.weights to 1 at the
    `share` of a window's targets on which the student fell furthest behind its teacher."""
    ids_BT, targets_BT = windows.batch(rows_B, device)
    s_BT, t_BT = (hard_set.token_losses(model, ids_BT, targets_BT) for model in (student, teacher))
    behind_BT = torch.where(targets_BT != data.IGNORE, s_BT - t_BT, -torch.inf)
    at_BK = behind_BT.topk(max(1, round(share * windows.context)), dim=1).indices.cpu().numpy()
    weights[np.asarray(rows_B)[:, None] * windows.context + 1 + at_BK] = 1


def recipe(this: Run, chosen: hard_set.HardSet, tokens: data.Tokens) -> train.Recipe:
    """03's recipe, at the base's temperature unless given; "all" takes as many steps as "hard"."""
    p = this.parameters
    limit = round(p["epochs"] * len(chosen.windows_K)) * tokens.context
    if p["windows"] != "all" or 0 < p["token_limit"] < limit:
        limit = p["token_limit"]
    temperature = temperature_of(this, p["base"]) if p["temperature"] is None else p["temperature"]
    return train.recipe(p | {"temperature": temperature, "token_limit": limit})


def temperature_of(this: Run, base: str) -> float:
    """The temperature of the run that made a model; of one trained on by 03, that of its base."""
    for record in common.folder_of(this).records.values():
        if base in record["models"] and "temperature" in (p := record["parameters"]):
            given = p["temperature"]
            return temperature_of(this, p["base"]) if given is None else float(given)
    raise ValueError(f"no results file of {this.out} says how {base} was made: set temperature")


def save(training: students.Training, net: Llama, base: str) -> Llama:
    """Saves what 03 trained, the adapter alone or the whole model, and reads it back."""
    this, name = training.this, training.name
    if not lora.adapters(net):
        return training.save(net, "saved")
    this.once("saved", lora.save, net, this.path("adapters", name), f"models/{base}")
    return load(this, name, base)


def load(this: Run, adapter: str, base: str) -> Llama:
    """The base with an adapter beside its weights."""
    net = Llama.load(this.path("models", base), this.device)
    return lora.load(net, this.path("adapters", adapter))


@torch.no_grad()
def measure_merged(this: Run, adapter: str, apart: Llama, merged: Llama, tokens, teacher) -> dict:
    """Saves models/<adapter>-merged and measures it; logits beside those of base and adapter."""
    name = f"{adapter}-merged"
    merged = students.Training(this, name, tokens).save(merged)
    row = common.measure(this, name, merged, tokens, teacher)
    ids_BT, _ = tokens.val.batch(evaluate.fixed_rows(tokens.val, 8), this.device)
    apart_BTV = apart(ids_BT)
    base = common.row_of(this, common.folder_of(this).adapters[adapter])
    return {
        "weights": f"{row['parameters']:,}",
        "weights of the base": f"{base['parameters']:,}",
        "largest logit difference": f"{float((merged(ids_BT) - apart_BTV).abs().max()):.1e}",
        "of logits up to": f"{float(apart_BTV.abs().max()):.3g}",
    } | this.once(f"drift of {name}", drift, merged, apart, tokens, this.device)


def drift(merged: Llama, apart: Llama, tokens: data.Tokens, device: str) -> dict[str, str]:
    """What storing the merged model, or base and adapter `apart`, as bfloat16 changes on some fixed
    windows. All is computed in float32."""
    rows, changes = evaluate.fixed_rows(tokens.val, 64), {}
    loss, _ = evaluate.apart(merged, merged, tokens.val, rows, device)
    for name, net in (("bf16 merged", merged), ("bf16 base + adapter", apart)):
        net = copy.deepcopy(net)
        for weight in net.parameters():  # RoPE's tables, which no file holds, stay as they are
            weight.data = weight.bfloat16().float()
        rounded, kl = evaluate.apart(net, merged, tokens.val, rows, device)
        changes |= {f"{name}: loss": f"{rounded - loss:+.1e}", f"{name}: KL": f"{kl:.1e}"}
    return changes
