"""Long loops that try to break a training: `make stress`. What they found goes to LOG.md by hand.

A child trains a small model with a teacher, keeping a checkpoint after every few steps; it is
killed with SIGKILL at a random moment of its life, started again with the same command, and must
end with the bits of one that nobody disturbed.
"""

import hashlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from tdlib import data, train
from tdlib.model import Llama, LlamaConfig

ROOT = Path(__file__).parents[1]


def child(folder: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = dict(vocab_size=500, layers=2, heads=2, context=32)
    teacher = Llama(LlamaConfig(dim=64, mlp_dim=160, **shape))
    student = Llama(LlamaConfig(dim=32, mlp_dim=96, **shape))
    ids = np.random.default_rng(0).integers(0, 500, 32 * 400 + 1).astype("<u4")
    recipe = train.Recipe(epochs=3.0, batch_tokens=128, micro_windows=2, checkpoint_minutes=1e-3)
    train.fit(student, data.Windows(ids, 32), recipe, teacher=teacher, folder=Path(folder))
    digest = hashlib.sha256()
    for name, weight in student.state_dict().items():
        digest.update(name.encode() + weight.numpy().tobytes())
    print(digest.hexdigest())


def start(folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.stress", "child", str(folder)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def killed_and_resumed(times: int, seed: int = 0) -> int:
    """How many of that many trainings, killed once each, end with the undisturbed one's weights."""
    rng, identical = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as place:
        began = time.monotonic()
        wanted = start(Path(place) / "whole").communicate()[0]
        whole_s = time.monotonic() - began
        for i in range(times):
            folder, moment = Path(place) / str(i), rng.uniform(0, whole_s)
            process = start(folder)
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                process.kill()
            process.communicate()
            kept = sorted(path.name for path in folder.glob("*")) if folder.exists() else []
            found = start(folder).communicate()[0]
            identical += found == wanted and len(found) == 65
            said = "the same" if found == wanted else "DIFFERENT"
            print(f"killed after {moment:.2f} of {whole_s:.2f} s, found "
                  f"{', '.join(kept) or 'nothing'}: {said}", flush=True)  # fmt: skip
    return identical


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["child"]:
        child(arguments[1])
        return 0
    times = int(arguments[0]) if arguments else 30
    identical = killed_and_resumed(times)
    print(f"{identical} of {times} ended with the weights of the undisturbed training")
    return 0 if identical == times else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
