"""How much sooner a student that starts from its teacher is where a random start ends.

    python -m tests.measure_start <run folder> <results.jsonl> <shape>/<arm>/<rate>/<tokens>/<seed>

A run is the tiny recipe with a validation loss every 2 % of the steps; a line a run, and a run that
has its line is not repeated. Arms: random, teacher.
"""

import json
import sys
import time
from pathlib import Path

import torch

from tdlib import data, evaluate, start, train
from tdlib.model import SHAPES, Llama, LlamaConfig

torch.set_num_threads(1)
folder, results, names = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
tokens = data.open_tokens(folder / "tokens")
teacher = Llama.load(folder / "models" / "teacher").eval().requires_grad_(False)
validate = evaluate.on_subset(tokens.val, 128)
done = [json.loads(x)["name"] for x in results.read_text().splitlines()] if results.exists() else []
for name in [name for name in names if name not in done]:
    shape, arm, rate, limit, seed = name.split("/")
    recipe = train.Recipe(
        learning_rate=float(rate), epochs=2.0, token_limit=int(limit), batch_tokens=256,
        warmup_share=0.15, ce_weight=0.5, temperature=1.0, seed=int(seed),
    )  # fmt: skip
    config = LlamaConfig(tokens.vocab_size, context=tokens.context, **SHAPES[shape])
    torch.manual_seed(recipe.seed)
    seconds = time.process_time()
    if arm == "random":
        student = Llama(config)
    else:
        student = start.from_teacher(teacher, config, tokens.train)
    log = train.fit(student, tokens.train, recipe, teacher=teacher, evaluate=validate,
                    evaluations=50)  # fmt: skip
    row = {"name": name, "steps": [r["step"] for r in log], "loss": [r["val/loss"] for r in log],
           "cpu_seconds": time.process_time() - seconds}  # fmt: skip
    with open(results, "a") as f:
        print(json.dumps(row), file=f)
    print(name, [round(x, 3) for x in row["loss"][::10]], round(row["cpu_seconds"]), flush=True)
