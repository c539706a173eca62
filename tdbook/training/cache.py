"""The teacher's targets, stored: it runs once, and its answers are read from then on.

A row is a window, by its number: for each position K ids drawn from the teacher at a temperature
and the log-probability of each, and the window's mean loss (nats per token, temperature 1, the true
next token). The k-th draw comes from the k-th of K equal parts of the teacher's distribution,

    id_k = F⁻¹((k + u) / K),   u uniform in [0, 1),   F the cumulated probabilities,

so that a mean over the draws is unbiased, with a smaller variance than K draws from all of it. u
depends on seed, window and position alone. What is written is what is used, so that a training
that was stopped goes on to the same bits. A folder holds key.json (what the rows were made from),
rows.bin and valid.bin, a byte a row, which becomes 1 after the row has reached the disk: no power
cut leaves a row that counts and is not whole. Several processes may fill one cache.
Legend: B windows of a batch, T tokens, N = B·T, E teacher width, V vocabulary, K draws a token.
"""

import errno
import hashlib
import itertools
import json
import os
import shutil
import time
import warnings
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tdbook.runs.ownership import clear_begun
from tdlib import data, losses
from tdlib.files import AWAY, refused, replacing
from tdlib.model import Llama

FORMAT = 1  # of the files
SYNC_S = 5.0  # seconds of work that a kill may undo
WIDTH = 128  # ids searched one by one, after a search among the sums of as many
BELOW_1 = 1 - 2**-50
HASHED = 2**30  # bytes; of a larger array 64 MiB are hashed
REMEDY = "`make clean-cache` removes it"


def row_type(context: int, draws: int, vocab_size: int) -> np.dtype:
    ids = "<u2" if vocab_size <= 2**16 else "<u4"
    # a float16's error is at most 0.004 nats where p > e⁻¹⁶, either way: see tests/test_cache.py
    shape = (context, draws)
    return np.dtype([("ids", ids, shape), ("logp", "<f2", shape), ("loss", "<f4")])


def uniform(seed: int, rows_B: Iterable[int], context: int, draws: int) -> Tensor:
    """Where F is asked, (N, K) float64: one number in each K-th of 0 … 1."""
    each = [np.random.default_rng((seed, int(row))).random((context, draws)) for row in rows_B]
    return torch.from_numpy((np.concatenate(each) + np.arange(draws)) / draws).clamp_(max=BELOW_1)


def draw(p_NV: Tensor, u_NK: Tensor) -> Tensor:
    """The ids at which the cumulated probabilities pass u, (N, K); never one of probability 0.
    First among sums of WIDTH ids, then within one."""
    vocab_size = p_NV.shape[1]
    whole = vocab_size // WIDTH * WIDTH
    parts_NSW = p_NV[:, :whole].view(len(p_NV), -1, WIDTH)
    sums_NS = _counts(torch.cat([parts_NSW.sum(-1), p_NV[:, whole:].sum(1, keepdim=True)], 1))
    until_NS = sums_NS.cumsum(1)
    at_NK = (u_NK * until_NS[:, -1:]).long()
    part_NK = torch.searchsorted(until_NS, at_NK, right=True).clamp_(max=sums_NS.shape[1] - 1)
    before_NK, sum_NK = (x.gather(1, part_NK) for x in (until_NS - sums_NS, sums_NS))
    share_NK = (at_NK - before_NK).double() / sum_NK
    ids_NKW = part_NK[..., None] * WIDTH + torch.arange(WIDTH, device=p_NV.device)
    p_NKW = p_NV.gather(1, ids_NKW.clamp(max=vocab_size - 1).flatten(1)).view(ids_NKW.shape)
    until_NKW = _counts(torch.where(ids_NKW < vocab_size, p_NKW, 0)).cumsum(-1)
    at_NK1 = (share_NK[..., None] * until_NKW[..., -1:]).long()
    place_NK = torch.searchsorted(until_NKW, at_NK1, right=True).squeeze(-1)
    return (part_NK * WIDTH + place_NK).clamp_(0, vocab_size - 1)  # a NaN is anywhere


def _counts(p: Tensor) -> Tensor:
    """Probabilities as whole numbers, of which sums are exact, and the same on every device."""
    return (p.double() * 2**52).long()


def targets(hidden_NE, head_VE, targets_N, u_NK, temperature: float) -> tuple[Tensor, ...]:
    """Ids drawn from the teacher and their log-probabilities at a temperature, (N, K); its loss of
    each token at temperature 1, (N,), 0 where masked. Never all logits at once."""
    chunk, results = losses.default_chunk(hidden_NE.device.type), []
    parts = (x.split(chunk) for x in (hidden_NE, targets_N, u_NK))
    for h_NE, y_N, u_NK in zip(*parts, strict=True):
        g_NV = (h_NE @ head_VE.T).float()
        loss_N = F.cross_entropy(g_NV, y_N, reduction="none", ignore_index=data.IGNORE)
        p_NV = g_NV.div_(temperature).softmax(1)
        ids_NK = draw(p_NV, u_NK)
        results.append((ids_NK, p_NV.gather(1, ids_NK).log(), loss_N))
        del g_NV, p_NV  # or the next chunk's would be made beside them
    return tuple(map(torch.cat, zip(*results, strict=True)))


class Cache(data.Targets, AbstractContextManager):
    """The teacher's targets of a training split's windows. As `targets` of train.fit and
    hard_set.score it takes the teacher's place, and asks it where a row is not there yet."""

    def __init__(
        self,
        folder: Path,
        teacher: Llama,
        windows: data.Windows,
        *,
        temperature: float,
        draws: int = 12,
        seed: int = 1,
        read_only: bool = False,
    ):
        """Opens a folder, or makes it, sparse; `read_only`: it is another run's, as in a sweep's
        point. OSError: no room. ValueError: of something else."""
        self.folder, self.windows, self.read_only = Path(folder), windows, read_only
        self.teacher, self.hidden, self.head = teacher, teacher.hidden, teacher.head
        self.sampling = f"{draws} draws, seed {seed}"
        self.options = {"temperature": float(temperature), "draws": draws, "seed": seed}
        weights = (w.detach().cpu().numpy() for w in teacher.state_dict().values())
        config = repr(teacher.config).replace(", qk_norm=False", "")  # which older caches lack
        config = np.frombuffer(config.encode(), "u1")
        self.key = {"format": FORMAT, "teacher": _sha256(itertools.chain([config], weights))}
        self.key |= {"tokens": _hash_of_text(windows), "windows": len(windows)}
        self.key |= {"context": windows.context, "vocab_size": len(teacher.head)} | self.options
        self.options |= {"folder": self.folder.resolve(), "read_only": read_only}
        self.row = row_type(windows.context, draws, len(teacher.head))
        rows, valid = (self.folder / name for name in ("rows.bin", "valid.bin"))
        files = {rows: len(windows) * self.row.itemsize, valid: len(windows)}
        _open(self.folder / "key.json", self.key, files)
        # read through maps, written by calls: where a disk is full a map would end the process
        self.rows, self.valid = np.memmap(rows, self.row, "r"), np.memmap(valid, "u1", "r")
        self.files = [os.open(file, os.O_RDONLY if read_only else os.O_WRONLY) for file in files]
        self.pending: list[int] = []  # rows written, but perhaps not on the disk yet
        self.synced = time.monotonic()

    def __exit__(self, *_: object) -> None:
        """Until then, up to SYNC_S seconds of rows do not count yet for other processes."""
        self.sync()
        for file in self.files:
            os.close(file)

    def check(self, windows: data.Windows, temperature: float | None = None) -> None:
        """ValueError where these are other windows, or another temperature is asked for."""
        asked = {"temperature": self.key["temperature"] if temperature is None else temperature}
        if windows is not self.windows:
            asked |= {"tokens": _hash_of_text(windows), "context": windows.context}
        _compare(self.folder, self.key, asked)

    def there(self, rows_B: Sequence[int]) -> np.ndarray:
        """Which rows can be read, (B,) bool."""
        return (self.valid[rows_B] == 1) | np.isin(rows_B, self.pending)

    def losses(self, rows_B: Sequence[int]) -> np.ndarray | None:
        """(B,) float32, NaN where every target is masked; None where a row is not there."""
        return self.rows["loss"][rows_B].copy() if self.there(rows_B).all() else None

    def read(self, rows_B: Sequence[int]) -> tuple[Tensor, ...]:
        """Ids and probabilities of the draws, (N, K) each; nothing where a row is not there."""
        return self._tensors(self.rows[rows_B]) if self.there(rows_B).all() else ()

    def draws(self, rows_B, ids_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The same, of windows of which a row was not there: the teacher reads them, all of them,
        so that its batch, and with it its rounding, is what it was before a stop."""
        rows_B, device = np.asarray(rows_B), ids_BT.device
        if stored := self.read(rows_B):  # come meanwhile: it was looked for one batch ahead
            return tuple(x.to(device) for x in stored)
        u_NK = uniform(self.key["seed"], rows_B, *self.row["ids"].shape).to(device)
        hidden_NE, temperature = self.hidden(ids_BT).flatten(0, 1), self.key["temperature"]
        results = targets(hidden_NE, self.head, targets_BT.flatten(), u_NK, temperature)
        ids_NK, logp_NK, loss_N = (x.cpu() for x in results)
        content = np.empty(len(rows_B), self.row)
        content["ids"] = ids_NK.view(content["ids"].shape)
        content["logp"] = logp_NK.view(content["ids"].shape)
        counts_B = (targets_BT.cpu() != data.IGNORE).sum(1)
        content["loss"] = loss_N.view(ids_BT.shape).sum(1) / counts_B
        there_B = self.there(rows_B)
        content[there_B] = self.rows[rows_B[there_B]]
        self._write(rows_B[~there_B], content[~there_B])
        return tuple(x.to(device) for x in self._tensors(content))

    def arguments(self, rows_B, ids_BT, targets_BT, stored) -> dict[str, Tensor]:
        ids_NK, probs_NK = stored or self.draws(rows_B, ids_BT, targets_BT)
        return dict(teacher_ids_NK=ids_NK, teacher_probs_NK=probs_NK)

    def sync(self) -> None:
        """The disk has the rows; only then is it told that they count."""
        self._write([], [], sync=True)

    def _write(self, rows_B: Sequence[int], content: Sequence, sync: bool = False) -> None:
        """A full disk must not end hours of training: nothing more is written then."""
        try:
            for row, values in zip(rows_B, content, strict=True):
                if self.read_only:
                    return
                done = os.pwrite(self.files[0], values.tobytes(), row * self.row.itemsize)
                if done < self.row.itemsize:
                    raise OSError(errno.ENOSPC, "the disk took a part of a row")
                self.pending.append(row)
            if self.pending and (sync or time.monotonic() - self.synced > SYNC_S):
                os.fsync(self.files[0])
                for row in self.pending:
                    os.pwrite(self.files[1], b"\1", row)
                self.pending, self.synced = [], time.monotonic()
        except OSError as error:
            self.read_only = True
            line = f"{self.folder} takes no more rows, its teacher goes on: {error}"
            warnings.warn(line, stacklevel=3)

    def _tensors(self, content: np.ndarray) -> tuple[Tensor, Tensor]:
        ids_NK = content["ids"].astype(np.int32).reshape(-1, self.key["draws"])
        probs_NK = np.exp(content["logp"].astype(np.float32)).reshape(ids_NK.shape)
        return torch.from_numpy(ids_NK), torch.from_numpy(probs_NK)


def _open(path: Path, key: dict, files: dict[Path, int]) -> None:
    """Files of so many bytes and their key: made, all zeros, or checked; by several at once too."""
    if not path.is_file():
        clear_begun(path.parent)
        for file in files:  # of a process killed here: zeros, as far as the first MiB tells
            if os.path.lexists(file) and any(file.open("rb").read(2**20)) and not path.is_file():
                raise FileExistsError(f"{file} holds what the book did not write: {AWAY}")
        needed = sum(files.values()) / 2**20
        free = shutil.disk_usage(next(p for p in path.parents if p.exists())).free / 2**20
        if needed > free:
            fault = f"no room for {path.parent}: it takes {needed:,.1f} MiB more, {free:,.1f} are"
            raise OSError(f"{fault} free; make room, or go without a cache")
        with replacing(path) as beside:
            for file, size in files.items():
                with open(file, "ab") as f:
                    f.truncate(size)
            beside.write_text(json.dumps(key, indent=1), encoding="utf8")
    with refused(f"{path} is damaged", REMEDY, ValueError, TypeError):
        old = dict(json.loads(path.read_text(encoding="utf8")))
    _compare(path.parent, old, key)
    for file, size in files.items():
        if not file.is_file() or file.stat().st_size != size:
            raise ValueError(f"{file} must have {size:,} bytes and has not: {REMEDY}")


def _compare(folder: Path, old: dict, new: dict) -> None:
    for name, value in new.items():
        if old.get(name) != value:
            fault = f"{folder} was made with {name} {old.get(name)!r}, now it is {value!r}"
            raise ValueError(f"{fault}: {REMEDY}, or each needs a cache of its own")


def _hash_of_text(windows: data.Windows) -> str:
    return _sha256([x for x in (windows.ids, windows.mask) if x is not None])


def _sha256(arrays: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for x in arrays:
        digest.update(f"{x.dtype} {x.shape}".encode())
        content = np.ascontiguousarray(x).reshape(-1).view("u1")
        pieces = [content]
        if content.size > HASHED:
            pieces = [content[i * (content.size - 2**20) // 63 :][: 2**20] for i in range(64)]
        for piece in pieces:
            digest.update(piece)
    return digest.hexdigest()
