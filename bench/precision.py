"""Does training in bfloat16 end where float32 does? `python -m bench.precision FOLDER [seeds]`

FOLDER is a run folder with a teacher and tokens (outputs/tiny). For each seed the profile's 50m is
trained three times: in float32, in float32 from weights moved by 1e-3 (normal), and as on a GPU, by
bfloat16 autocast with the core of the loss in one pass. Validation losses, a row a seed.
"""

import contextlib
import json
import sys
from pathlib import Path
from unittest import mock

import torch

from tdbook.corpus import token_files
from tdlib import evaluate, hard_set, losses, train
from tdlib.model import SHAPES, Llama, LlamaConfig


@contextlib.contextmanager
def as_on_a_gpu():
    cast = torch.autocast

    def autocast(device: str, dtype: torch.dtype | None = None, enabled: bool = True):
        return cast("cpu", torch.bfloat16, enabled=device == "cuda" or enabled)

    with (
        mock.patch.object(losses, "_in_blocks", losses._in_one_pass),
        mock.patch.object(torch, "autocast", autocast),
    ):
        yield


def main(folder: str, seeds: str = "4") -> None:
    out = Path(folder)
    tokens = token_files.open_tokens(out / "tokens")
    teacher = Llama.load(out / "models/teacher").eval().requires_grad_(False)
    asked = json.loads((out / "results/01_distill-50m.json").read_text())["parameters"]
    config = LlamaConfig(tokens.vocab_size, context=tokens.context, **SHAPES[asked["shape"]])
    for seed in range(1, int(seeds) + 1):
        row = [f"seed {seed}"]
        for how in ("float32", "moved by 1e-3", "bfloat16"):
            torch.manual_seed(seed)
            student = Llama(config)
            if "moved" in how:
                with torch.no_grad():
                    for weight in student.parameters():
                        weight += 1e-3 * torch.randn_like(weight)
            recipe = train.recipe(asked | {"seed": seed})
            with as_on_a_gpu() if how == "bfloat16" else contextlib.nullcontext():
                train.fit(student, tokens.train, recipe, teacher=teacher, evaluations=1)
            loss = hard_set.known_mean(evaluate.evaluate(student, tokens.val).window_loss_N)
            row.append(f"{how} {loss:.4f}")
        print(" · ".join(row), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
