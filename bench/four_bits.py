"""What training into four bits takes back. `python -m bench.four_bits FOLDER MODEL… [--tokens N]`

FOLDER is a run folder with a teacher, tokens and these models; FOLDER/four_bits.jsonl gets a row a
model and arm as each is done, and the same command goes on from there. On the confirmation windows
(validation where there are none): loss minus that of the float model, and KL to it, with
paired 95 % intervals over documents; how often the likeliest piece is the same; acceptance by the
teacher. Arms:

    plain           Q4_0 by llama.cpp's plain rule
    nearest         the scales with the least squared error
    self, scales    scales alone, from the model's own float distribution
    self            weights and scales, from the model's own float distribution
    teacher         weights and scales, from the teacher's distribution
    control         as many tokens from the teacher in float, then plain

`python -m bench.four_bits --shape student-50m` measures a step and its memory, float and rounded.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.utils.parametrize import cached

from tdbook.analysis import intervals
from tdbook.corpus import token_files
from tdlib import data, evaluate, hard_set, quantize, train
from tdlib.model import SHAPES, Llama, LlamaConfig

WINDOWS = 800  # of the split, spread evenly
ARMS = "plain", "nearest", "self, scales", "self", "teacher", "control"


def plain(net: Llama) -> Llama:
    with torch.no_grad():
        for weight in (w for w in net.parameters() if w.ndim == 2 and w.shape[-1] % 32 == 0):
            weight.copy_(quantize.dequantize(*quantize.blocks(weight), weight.shape))
    return net


def trained(arm: str, net: Llama, by: Llama, tokens, count: int, rate: float, seed: int) -> Llama:
    """`net` after an arm; of a rounded one the quarter that validates best."""
    rounded = arm != "control"
    if rounded:
        quantize.attach(net, scales_alone="scales" in arm)
    recipe = train.Recipe(
        learning_rate=rate, epochs=1, token_limit=count, batch_tokens=1024, warmup_share=0.1,
        weight_decay=0.0, ce_weight=0.0, temperature=1.0, seed=seed, four_bit_share=float(rounded),
    )  # fmt: skip
    rows = evaluate.fixed_rows(tokens.val, 256)
    with tempfile.TemporaryDirectory() as place:
        train.fit(net, tokens.train, recipe, teacher=by, folder=Path(place))
        last = {k: w.clone() for k, w in net.state_dict().items()}
        kept = [last, *(load_file(p) for p in sorted(Path(place).glob("rounded-*")))]
    losses = []
    for weights in kept if rounded else ():
        net.load_state_dict(weights, strict=False)
        with cached():
            losses.append(hard_set.known_mean(hard_set.window_loss(net, tokens.val, rows, "cpu")))
    if rounded:
        net.load_state_dict(kept[int(np.argmin(losses))], strict=False)
        return quantize.merge(net)
    return plain(net)


@torch.no_grad()
def measure(net: Llama, floats: Llama, teacher: Llama, windows, rows_M) -> np.ndarray:
    """(4, M): loss, KL to the float model, the same likeliest, acceptance; means of each window."""
    rows = []
    for n in rows_M:
        ids, (y_T,) = windows.batch([n])
        log_q, log_p, log_t = (m(ids)[0].log_softmax(-1) for m in (net, floats, teacher))
        loss = torch.nn.functional.nll_loss(log_q, y_T)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        same = (log_p.argmax(-1) == log_q.argmax(-1)).float().mean()
        accepted = torch.minimum(log_q.exp(), log_t.exp()).sum(-1).mean()
        rows.append([float(x) for x in (loss, kl, same, accepted)])
    return np.array(rows).T


def main(folder: Path, names: list[str], arms: list, count: int, rate: float, seed: int) -> None:
    tokens = token_files.open_tokens(folder / "tokens")
    windows, split = (tokens.confirm, "confirm") if tokens.confirm else (tokens.val, "val")
    rows_M = evaluate.fixed_rows(windows, WINDOWS)
    document_M = token_files.origins(tokens, split)[0][rows_M]
    teacher = Llama.load(folder / "models/teacher").requires_grad_(False)
    path, done = folder / "four_bits.jsonl", set()
    if path.exists():
        rows = map(json.loads, path.read_text().splitlines())
        done = {(r["model"], r["arm"], r["tokens"], r["rate"], r["seed"]) for r in rows}
    for name in names:
        floats = Llama.load(folder / "models" / name).requires_grad_(False)
        before = None
        for arm in arms:
            spent = count if arm not in ("plain", "nearest") else 0
            if (name, arm, spent, rate, seed) in done:
                continue
            before = measure(floats, floats, teacher, windows, rows_M) if before is None else before
            net, began = Llama.load(folder / "models" / name), time.monotonic()
            if arm == "plain":
                net = plain(net)
            elif arm == "nearest":
                quantize.attach(net)
                quantize.switch(net, True, anew=True)
                net = quantize.merge(net)
            else:
                by = floats if "self" in arm else teacher
                net = trained(arm, net, by, tokens, count, rate, seed)
            seconds = time.monotonic() - began
            after = measure(net.requires_grad_(False), floats, teacher, windows, rows_M)
            cost = intervals.change(after[0], before[0], document_M)
            kl = intervals.of_seeds(after[1:2], document_M)
            row = {"model": name, "arm": arm, "tokens": spent, "rate": rate, "seed": seed}
            row |= {"split": split, "windows": len(rows_M), "float_loss": before[0].mean()}
            row |= {"cost": [*cost], "kl": [*kl]}
            row |= {"same": after[2].mean(), "acceptance": after[3].mean()}
            row |= {"float_acceptance": before[3].mean(), "seconds": seconds}
            with path.open("a") as file:
                print(json.dumps(row), file=file, flush=True)
            kl, same, accepted = row["kl"][0], row["same"], row["acceptance"]
            line = f"{name} · {arm} · cost {cost:.4f} · KL {kl:.4f} · same {same:.1%} · acceptance "
            print(
                f"{line}{accepted:.3f} ({row['float_acceptance']:.3f}) · {seconds:.0f} s",
                flush=True,
            )


def step(shape: str, rounded: str) -> None:
    """Seconds of a step of 2,048 tokens and the process's peak memory; a process for each."""
    torch.manual_seed(0)
    config = LlamaConfig(51_800, context=2048, **SHAPES[shape])
    net = Llama(config)
    if rounded != "float":
        quantize.attach(net, scales_alone=rounded == "scales")
    ids = np.random.default_rng(0).integers(0, 51_800, 4 * 2048 + 1).astype("<u4")
    share = float(rounded != "float")
    recipe = train.Recipe(batch_tokens=2048, ce_weight=1.0, epochs=1, four_bit_share=share)
    times = [time.perf_counter()]
    tick = lambda *_: times.append(time.perf_counter())  # noqa: E731
    train.fit(net, data.Windows(ids, 2048), recipe, evaluations=1, progress=tick)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    steps = np.diff(times)[1:]
    print(f"{shape} {rounded}: {np.median(steps):.2f} s a step, {peak:,.0f} MiB at the most")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--tokens", type=int, default=300_000)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shape", default="")
    parser.add_argument("--rounded", default="float", choices=["float", "weights", "scales"])
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.shape:
        step(asked.shape, asked.rounded)
    else:
        main(asked.folder, asked.models, asked.arms, asked.tokens, asked.rate, asked.seed)
