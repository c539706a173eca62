"""The calls of 03 and 04: training on the hard set, merging."""

import copy

import numpy as np
import torch

from tdbook.book import opening, students
from tdbook.runs.running import Run
from tdlib import data, evaluate, files, hard_set, lora, train
from tdlib.model import Llama


def replayed(this: Run, chosen: hard_set.HardSet, tokens: data.Tokens) -> np.ndarray:
    """The windows that 03 trains on: "hard", the chosen ones; as many "random" or "easiest" ones;
    or "all". Of those without a target nothing is learnt."""
    p, k = this.parameters, len(chosen.windows_K)
    known = np.flatnonzero(tokens.train.known_N)
    match p["windows"]:
        case "hard":
            return chosen.windows_K
        case "random":
            drawn = np.random.default_rng(p["seed"]).choice(len(known), k, replace=False)
            return known[np.sort(drawn)]
        case "all":
            return known
    difficulty_N = hard_set.load_scores(this.path("scores", p["scores"])).difficulty_N
    if np.isfinite(difficulty_N).sum() < k:
        raise ValueError(f"windows 'easiest' needs {k:,} windows that were scored")
    return np.sort(np.argsort(difficulty_N, kind="stable")[:k])  # NaN comes last


def weighed(
    this: Run, chosen: hard_set.HardSet, rows_K: np.ndarray, tokens: data.Tokens, net: Llama,
    teacher: Llama,
) -> data.Tokens:  # fmt: skip
    """The tokens, with weights beside them where only a share of a window's tokens counts: that of
    the parameter `token_share`, or the one in the choice."""
    share = this.parameters["token_share"] or chosen.token_share
    if share == 1 or this.current:
        return tokens
    path = this.path("checkpoints", this.run, "weights.bin")
    with files.replacing(path) as beside:
        weights = data.weighted(tokens, beside, new=True).train.weights
        hard_set.weigh(net, teacher, tokens.train, rows_K, share, weights, this.device,
                       this.progress)  # fmt: skip
        weights.flush()
    return data.weighted(tokens, path)


def trainable(this: Run, net: Llama) -> int:
    """Freeze the base and put the adapter beside it, or, where `trains` is "weights", let the base
    itself train. Returns how many weights do."""
    p = this.parameters
    if p["trains"] == "adapter":
        targets = lora.TARGETS if p["targets"] == "all" else tuple(p["targets"].split())
        lora.attach(net, p["rank"], p["lora_scale"], targets, seed=p["seed"])
    else:
        net.requires_grad_(True)
    return sum(w.numel() for w in net.parameters() if w.requires_grad)


def replay_recipe(this: Run, chosen: hard_set.HardSet, tokens: data.Tokens) -> train.Recipe:
    """03's recipe: at the temperature of the run that made the base unless another is given, and
    for as many steps on all windows as on the hard ones."""
    p = this.parameters
    limit = round(p["epochs"] * len(chosen.windows_K)) * tokens.context
    if p["windows"] != "all" or 0 < p["token_limit"] < limit:
        limit = p["token_limit"]
    softened = temperature_of(this, p["base"]) if p["temperature"] is None else p["temperature"]
    return train.recipe(p | {"temperature": softened, "token_limit": limit})


def temperature_of(this: Run, base: str) -> float:
    """The temperature of the run that made a model; of one trained on by 03, that of its base."""
    for record in opening.folder_of(this).makers(base):
        if "temperature" in (p := record["parameters"]):
            given = p["temperature"]
            return temperature_of(this, p["base"]) if given is None else float(given)
    raise ValueError(f"no results file of {this.out} says how {base} was made: set temperature")


def saved(this: Run, net: Llama, tokens: data.Tokens) -> Llama:
    """What 03 trained, saved (the adapter alone, or the whole model) and read back."""
    p = this.parameters
    if p["trains"] == "weights":
        return students._saved(this, "saved", p["adapter"], net, tokens)
    folder = this.path("adapters", p["adapter"])
    this.once("saved", lora.save, net, folder, f"models/{p['base']}")
    return lora.load(Llama.load(this.path("models", p["base"]), this.device), folder)


@torch.no_grad()
def merge(this: Run, adapter: str, base: str, tokens: data.Tokens, teacher: Llama) -> dict:
    """models/<adapter>-merged: base and adapter as one model, measured like every other. Returns
    what merging changed: weights, and the largest logit difference on some validation windows; and
    what storing the weights as bfloat16 would change."""
    name, folder = f"{adapter}-merged", this.path("models", f"{adapter}-merged")
    net = lora.load(Llama.load(this.path("models", base), this.device),
                    this.path("adapters", adapter))  # fmt: skip
    ids_BT, _ = tokens.val.batch(evaluate.fixed_rows(tokens.val, 8), this.device)
    apart_BTV, halved = net(ids_BT), _stored_as_bfloat16(net)
    this.once(f"saved {name}", opening.save, lora.merge(net), folder, tokens)
    net = Llama.load(folder, this.device)
    row = opening.measure(this, name, net, tokens, teacher)
    return {
        "weights": f"{row['parameters']:,}",
        "weights of the base": f"{opening.row_of(this, base)['parameters']:,}",
        "largest logit difference": f"{float((net(ids_BT) - apart_BTV).abs().max()):.1e}",
        "of logits up to": f"{float(apart_BTV.abs().max()):.3g}",
    } | this.once(f"drift of {name}", drift, net, halved, tokens, this.device)


def _stored_as_bfloat16(net: Llama) -> Llama:
    """A copy with its weights rounded; the tables of RoPE, which no file holds, as they are."""
    net = copy.deepcopy(net)
    for weight in net.parameters():
        weight.data = weight.bfloat16().float()
    return net


def drift(net: Llama, halved: Llama, tokens: data.Tokens, device: str) -> dict[str, str]:
    """What storing weights as bfloat16 changes against the merged model in float32, on some fixed
    windows: of the merged model, and of base and adapter side by side (`halved`). All is computed
    in float32, so that only the storage differs."""
    rows, stored = evaluate.fixed_rows(tokens.val, 64), _stored_as_bfloat16(net)
    own, _ = evaluate.apart(net, net, tokens.val, rows, device)
    changes = {}
    for name, model in (("bf16 merged", stored), ("bf16 base + adapter", halved)):
        loss, kl = evaluate.apart(model, net, tokens.val, rows, device)
        changes |= {f"{name}: loss": f"{loss - own:+.1e}", f"{name}: KL": f"{kl:.1e}"}
    return changes
