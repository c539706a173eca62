"""Long loops that try to break a training: `make stress`. What they found goes to LOG.md by hand.

A child trains a small model with a teacher, keeping a checkpoint after every few steps; it is
killed with SIGKILL at a random moment of its life, started again with the same command, and must
end with the bits of one that nobody disturbed. The same where the teacher's targets are kept in a
cache that it fills, and where two children, each with windows of its own, fill one together: then
the cache must end with the same bytes too.
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

from tdlib import cache, data, train
from tdlib.model import Llama, LlamaConfig

ROOT = Path(__file__).parents[1]


def child(folder: Path, part: int, parts: int) -> None:
    """Child `part` of `parts` that fill a cache; 0 parts: there is none."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = dict(vocab_size=500, layers=2, heads=2, context=32)
    teacher = Llama(LlamaConfig(dim=64, mlp_dim=160, **shape))
    student = Llama(LlamaConfig(dim=32, mlp_dim=96, **shape))
    ids = np.random.default_rng(0).integers(0, 500, 32 * 400 + 1).astype("<u4")
    windows, rows = data.Windows(ids, 32), np.arange(part, 400, max(1, parts))
    recipe = train.Recipe(epochs=3.0, batch_tokens=128, micro_windows=2, checkpoint_minutes=1e-3)
    cache.SYNC_S = 0.1
    with cache.Cache(folder / "cache", teacher, windows, temperature=2.0) as targets:
        train.fit(student, windows, recipe, teacher=targets if parts else teacher, rows=rows,
                  folder=folder / str(part))  # fmt: skip
    digest = hashlib.sha256()
    for name, weight in student.state_dict().items():
        digest.update(name.encode() + weight.numpy().tobytes())
    print(digest.hexdigest())


def run(folder: Path, parts: int, moment: float | None = None) -> list[str]:
    """What the children say, and the cache's files; killed after that many seconds, if any."""
    command = [sys.executable, "-m", "tests.stress", "child", str(folder)]
    children = [
        subprocess.Popen([*command, str(part), str(parts)], cwd=ROOT, stdout=subprocess.PIPE)
        for part in range(max(1, parts))
    ]
    try:
        children[0].wait(moment)
    except subprocess.TimeoutExpired:
        for each in children:
            each.kill()
    said = [each.communicate()[0].decode().strip() for each in children]
    files = sorted(folder.glob("cache/*.bin"))
    return said + [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


def killed_and_resumed(times: int, parts: int, seed: int = 0) -> int:
    """How many of that many trainings, killed once each, end as the undisturbed one did."""
    rng, identical = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as place:
        began = time.monotonic()
        wanted = run(Path(place) / "whole", parts)
        whole_s = time.monotonic() - began
        for i in range(times):
            folder, moment = Path(place) / str(i), rng.uniform(0, whole_s)
            run(folder, parts, moment)
            kept = sorted(str(path.relative_to(folder)) for path in folder.glob("*/*"))
            valid = folder / "cache" / "valid.bin"
            rows = valid.read_bytes().count(1) if valid.exists() else 0
            found = run(folder, parts)
            identical += found == wanted and all(len(hash_) == 64 for hash_ in found)
            said = "the same" if found == wanted else "DIFFERENT"
            print(f"{parts} filling, killed after {moment:.2f} of {whole_s:.2f} s, found "
                  f"{rows} rows, {', '.join(kept) or 'nothing'}: {said}", flush=True)  # fmt: skip
    return identical


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["child"]:
        child(Path(arguments[1]), *map(int, arguments[2:]))
        return 0
    times = int(arguments[0]) if arguments else 30
    identical = [killed_and_resumed(times, parts) for parts in (0, 1, 2)]
    print(f"{identical} of {times} each ended as the undisturbed training, without a cache, and "
          "with one filled by one and by two processes")  # fmt: skip
    return 0 if identical == 3 * [times] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
