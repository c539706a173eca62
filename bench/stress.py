"""Long loops that try to break a training, the book, and it on a cluster: `make stress`. What they
found goes to LOG.md by hand; `python -m bench.stress book 10 kills` runs a part alone.

A child trains a small model with a teacher, keeping a checkpoint after every few steps; it is
killed with SIGKILL at a random moment of its life, started again with the same command, and must
end with the bits of one that nobody disturbed. The same where the teacher's targets are kept in a
cache that it fills, and where two children, each with windows of its own, fill one together: then
the cache must end with the same bytes too. Last, one training by two processes that fill a
cache. After the kills: how often intervals cover the truth.
"""

import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bench import intervals, stress_book, stress_slurm
from tdbook.corpus import token_files
from tdbook.training import cache, worker
from tdlib import data, train
from tdlib.files import whole_folder
from tdlib.model import Llama, LlamaConfig

ROOT = Path(__file__).parents[1]


def child(folder: Path, part: int, parts: int, processes: int) -> None:
    """Child `part` of `parts` that fill a cache, in so many processes; 0 parts: there is none."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = dict(vocab_size=500, layers=2, heads=2, context=32)
    teacher = Llama(LlamaConfig(dim=64, mlp_dim=160, **shape))
    student = Llama(LlamaConfig(dim=32, mlp_dim=96, **shape))
    ids = np.random.default_rng(0).integers(0, 500, 32 * 400 + 1).astype("<u4")
    tokens = some_tokens(folder / str(part) / "tokens", ids)
    windows, rows = tokens.train, np.arange(part, 400, max(1, parts))
    recipe = train.Recipe(epochs=3.0, batch_tokens=128, micro_windows=2, checkpoint_minutes=1e-3)
    cache.SYNC_S = 0.1
    with cache.Cache(folder / "cache", teacher, windows, temperature=2.0) as targets:
        how = dict(teacher=targets if parts else teacher, rows=rows, folder=folder / str(part))
        if processes > 1:
            worker.fit(student, tokens, recipe, processes=processes, **how)
        else:
            train.fit(student, windows, recipe, **how)
    digest = hashlib.sha256()
    for name, weight in student.state_dict().items():
        digest.update(name.encode() + weight.numpy().tobytes())
    print(digest.hexdigest())


def some_tokens(folder: Path, ids: np.ndarray) -> data.Tokens:
    with whole_folder(folder) as beside:
        for split in ("train", "val"):
            ids.tofile(beside / f"{split}.bin")
        (beside / "meta.json").write_text(json.dumps({"block_size": 32, "vocab_size": 500}))
    return token_files.open_tokens(folder)


def run(folder: Path, parts: int, processes: int, moment: float | None = None) -> list[str]:
    """What the children say, and the cache's files; killed after that many seconds, if any."""
    command = [sys.executable, "-m", "bench.stress", "child", str(folder)]
    children = [
        subprocess.Popen(
            [*command, *map(str, (part, parts, processes))], cwd=ROOT, stdout=subprocess.PIPE
        )
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


def killed_and_resumed(times: int, parts: int, processes: int, seed: int = 0) -> int:
    """How many of that many trainings, killed once each, end as the undisturbed one did."""
    rng, identical = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as place:
        began = time.monotonic()
        wanted = run(Path(place) / "whole", parts, processes)
        whole_s = time.monotonic() - began
        for i in range(times):
            folder, moment = Path(place) / str(i), rng.uniform(0, whole_s)
            run(folder, parts, processes, moment)
            kept = sorted(str(path.relative_to(folder)) for path in folder.glob("*/*"))
            valid = folder / "cache" / "valid.bin"
            rows = valid.read_bytes().count(1) if valid.exists() else 0
            found = run(folder, parts, processes)
            identical += found == wanted and all(len(hash_) == 64 for hash_ in found)
            said = "the same" if found == wanted else "DIFFERENT"
            print(f"{parts} filling, {processes} at it, killed after {moment:.2f} of "
                  f"{whole_s:.2f} s, found {rows} rows, {', '.join(kept) or 'nothing'}: {said}",
                  flush=True)  # fmt: skip
    return identical


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["child"]:
        child(Path(arguments[1]), *map(int, arguments[2:]))
        return 0
    if arguments[:1] == ["book"]:
        held, of = stress_book.main(int((arguments[1:] or ["10"])[0]), arguments[2:])
        return 0 if held == of else 1
    times = int(arguments[0]) if arguments else 30
    identical = [killed_and_resumed(times, *how) for how in ((0, 1), (1, 1), (2, 1), (1, 2))]
    print(f"{identical} of {times} each ended as the undisturbed training: without a cache, with "
          "one filled by one and by two trainings, and by one in two processes")  # fmt: skip
    held, of = stress_book.main(10, [])
    submitted, jobs = stress_slurm.main([])
    covered = intervals.main(2000)
    as_wanted = identical == 4 * [times] and (held, submitted) == (of, jobs) and covered
    return 0 if as_wanted else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
