"""How much sooner a student that starts from its teacher is where a random start ends.

    python -m bench.start RUN_FOLDER RESULTS.jsonl SHAPE/ARM/RATE/TOKENS/SEED …

A run is the tiny recipe with a validation loss every 2 % of the steps; it becomes a line of the
results and is not repeated. Arms: random, teacher. At the end, for each shape, rate and number of
tokens: the teacher start against the random start at the same rate for the most tokens, by seed,
as a share of the latter's steps: when it first is at or below the final loss, and from when on it
stays there.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from tdbook.corpus import token_files
from tdbook.training import from_teacher
from tdlib import evaluate, train
from tdlib.model import Llama


def run(folder: Path, name: str) -> dict:
    tokens = token_files.open_tokens(folder / "tokens")
    teacher = Llama.load(folder / "models" / "teacher").eval().requires_grad_(False)
    shape, arm, rate, limit, seed = name.split("/")
    recipe = train.Recipe(
        learning_rate=float(rate), epochs=2.0, token_limit=int(limit), batch_tokens=256,
        warmup_share=0.15, ce_weight=0.5, temperature=1.0, seed=int(seed),
    )  # fmt: skip
    config = teacher.config.student(shape, context=tokens.context)
    torch.manual_seed(recipe.seed)
    seconds = time.process_time()
    if arm == "random":
        student = Llama(config)
    else:
        student = from_teacher.from_teacher(teacher, config, tokens.train)
    validate = evaluate.on_subset(tokens.val, 128)
    log = train.fit(student, tokens.train, recipe, teacher=teacher, evaluate=validate,
                    evaluations=50)  # fmt: skip
    return {"name": name, "steps": [row["step"] for row in log],
            "loss": [row["val/loss"] for row in log],
            "cpu_seconds": time.process_time() - seconds}  # fmt: skip


def summary(rows: list[dict]) -> None:
    runs = {tuple(row["name"].split("/")): row for row in rows}
    for shape, rate, limit in sorted({(k[0], k[2], k[3]) for k in runs if k[1] == "teacher"}):
        found = []
        for seed in "123":
            of = runs.get((shape, "teacher", rate, limit, seed))
            whole = max((int(k[3]) for k in runs if k[:3] == (shape, "random", rate)), default=0)
            random = runs.get((shape, "random", rate, str(whole), seed))
            if not of or not random:
                continue
            loss, final = np.array(of["loss"]), random["loss"][-1]
            share = np.append(np.array(of["steps"]) / random["steps"][-1], np.nan)  # nan: never
            first = share[np.append(np.flatnonzero(loss <= final), len(loss))[0]]
            stays = share[np.append(-1, np.flatnonzero(loss > final))[-1] + 1]
            both = (random["loss"][0], loss[0], final, loss[-1], loss[-1] - final)
            found.append((*both, first, stays))
        names = ("random before", "teacher before", "random after", "teacher after", "difference",
                 "first at", "stays from")  # fmt: skip
        print(f"{shape}, rate {rate}, {int(limit):,} tokens, {len(found)} seeds")
        for name, values in zip(names, np.array(found).T, strict=True) if found else ():
            half = 0.0
            if len(values) > 1:
                half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
            print(f"  {name:15} {values.mean():.4f} ± {half:.4f}  {values.round(4).tolist()}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = Path(sys.argv[2])
    results.touch()
    for name in sys.argv[3:]:
        rows = [json.loads(line) for line in results.read_text().splitlines()]
        if name not in [row["name"] for row in rows]:
            with open(results, "a") as f:
                print(json.dumps(run(Path(sys.argv[1]), name)), file=f)
            print(name, flush=True)
    summary([json.loads(line) for line in results.read_text().splitlines()])
