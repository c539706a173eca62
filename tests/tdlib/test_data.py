"""Tokens against numpy: the raw format of upstream's files, the numbered windows, and what a folder
that cannot be right is told."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tdbook.corpus import origins
from tdbook.corpus.token_files import open_tokens
from tdlib import data
from tdlib.data import Windows
from tests.tdbook.corpus.test_token_files import T, raw


@pytest.fixture
def upstream(tmp_path) -> Path:
    """A folder as upstream makes it: two files and meta.json, nothing else."""
    return raw(tmp_path / "elsewhere", np.arange(1000) % 50, np.arange(100) % 50)


def test_window_i_is_tokens_from_i_t_on_and_its_targets_are_the_next_ones(upstream):
    windows, ids = open_tokens(upstream).train, np.fromfile(upstream / "train.bin", "<u4")
    rows = [5, 0, len(windows) - 1, 5, 2]
    for i, ids_T, targets_T in zip(rows, *windows.batch(rows), strict=True):
        assert ids_T.tolist() == ids[i * T : i * T + T].tolist()
        assert targets_T.tolist() == ids[i * T + 1 : i * T + T + 1].tolist()
        assert ids_T.dtype == targets_T.dtype == torch.int64
    before = windows.batch([0])
    for tensor in windows.batch([0]):
        tensor.fill_(1)  # writes nothing into the file
    assert all(map(torch.equal, before, windows.batch([0])))


@pytest.mark.parametrize("n", [17, 32, 33, 34, 48, 49, 1000])
def test_there_are_n_minus_1_over_t_windows_and_the_dropped_are_counted(n):
    windows = Windows(np.arange(n, dtype="<u4"), T)
    assert len(windows) == len([i for i in range(0, n, T) if i + T + 1 <= n]) == (n - 1) // T
    last_used = windows.batch([len(windows) - 1])[1][0, -1]
    assert windows.dropped == n - 1 - last_used


@pytest.mark.parametrize("mask", [False, True])
def test_a_stream_gives_the_same_batches_and_reads_at_most_two_ahead(mask):
    ids = np.arange(101, dtype="<u4")
    windows = Windows(ids, 4, (ids % 3 > 0).astype("u1") if mask else None)
    asked, plan = [], [*windows.batches([3, 0, 24, 7, 8, 9, 1], 2)]
    assert [len(rows) for rows in plan] == [2, 2, 2, 1]
    stream = windows.stream((asked.append(rows) or rows for rows in plan), "cpu")
    for i, (rows, batch) in enumerate(zip(plan, stream, strict=True)):
        assert all(map(torch.equal, batch, windows.batch(rows)))
        assert windows.targets(rows) == int((batch[1] != data.IGNORE).sum())
        assert len(asked) <= i + 2
    with pytest.raises(IndexError):
        list(windows.stream([[0], [99]]))


def test_a_mask_beside_the_ids_hides_targets_and_no_input(upstream):
    mask = np.random.default_rng(0).integers(0, 2, 1000).astype("u1")
    plain = open_tokens(upstream).train.batch(range(62))
    mask.tofile(upstream / "train.mask.bin")
    ids_BT, targets_BT = open_tokens(upstream).train.batch(range(62))
    assert torch.equal(ids_BT, plain[0])
    shown_BT = torch.from_numpy(mask[1 : 62 * T + 1].reshape(62, T)) > 0
    assert torch.equal(targets_BT, torch.where(shown_BT, plain[1], -100))


def memory(which: str) -> int:
    """Bytes of this process, mapped files among them: VmRSS now, VmHWM at its highest."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{which}:\s+(\d+) kB", status)[1]) * 1024


def test_four_gigabytes_are_opened_and_read_without_being_in_memory(tmp_path):
    folder = raw(tmp_path / "big", [0], np.zeros(100), train_tokens=2**30)
    with open(folder / "train.bin", "r+b") as f:
        f.truncate(2**32)  # a sparse file: it takes no room on the disk
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    before = memory("VmRSS")
    train = open_tokens(folder, 33).train
    train.batch([0, 2**20, len(train) - 1])
    assert len(train) == (2**30 - 1) // 33  # another context may be asked for
    # 64 blocks of 256 KiB are looked at, in turn; a whole read would be 4096 MiB
    assert memory("VmHWM") - before < 32 * 2**20


def test_without_documents_sixteen_neighbours_stand_for_one(upstream):
    document_N, sources = origins.of(open_tokens(upstream), "train")
    assert document_N.tolist() == [i // 16 for i in range(62)]  # (1000 − 1) // 16 windows
    assert sources == ["unknown"] * 4


DOCUMENTS = [
    ("train\t0\t9\ta\ntrain\t1000\t9\ta\n", "begins at 1,000, .* before 1,000"),
    ("train\t1000000000000\t9\ta\n", "begins at 1,000,000,000,000, the first"),
    ("train\t5\t995\ta\n", "a begins at 5, the first must begin at 0"),
    ("train\t0\t9\ta\ntrain\t9\t9\ta\ntrain\t4\t996\ta\n", "begins at 4, .* after 9"),
    ("train\tx\t9\ta\n", r"\['train', 'x', '9', 'a'\] is no row of it"),
    ("train\t0\t500\ta\ntrain\t50", "is no row of it, it must be split, start"),
    ("train\t0\t500\ta\n", "end at 500 of 1,000 tokens, it was cut short: copy it"),
    ("", "is no row of it"),  # emptied
]


@pytest.mark.parametrize(("rows", "said"), DOCUMENTS)
def test_documents_tsv_of_other_tokens_is_told(upstream, rows, said):
    table = f"split\tstart\ttokens\tsource\n{rows}" if rows else ""
    (upstream / "documents.tsv").write_text(table)
    with pytest.raises(ValueError, match=rf"documents.tsv:? .*{said}"):
        origins.of(open_tokens(upstream), "train")


def test_weights_beside_the_ids_are_a_file_of_as_many_bytes_that_can_be_filled(upstream, tmp_path):
    path, tokens = tmp_path / "weights.bin", open_tokens(upstream)
    new = data.weighted(tokens, path, new=True)
    assert path.read_bytes() == bytes(1000)
    new.train.weights[5] = 2
    new.train.weights.flush()
    back = data.weighted(tokens, path)
    assert back.train.weights.sum() == back.train.weights[5] == 2 and back.val.weights is None
    assert back.train.weights_of([0]).tolist() == [[0.0] * 4 + [2.0] + [0.0] * (T - 5)]
    path.write_bytes(b"1" * 999)
    with pytest.raises(ValueError, match="has 999 bytes, it must have one for each of the 1,000 t"):
        data.weighted(tokens, path)
