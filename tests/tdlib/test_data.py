"""Tokens against numpy and a bare SentencePieceProcessor: the raw format of upstream's files, the
numbered windows, and what a folder that cannot be right is told."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tdbook.corpus import token_files
from tdlib import data
from tdlib.data import Windows
from tdlib.files import write_whole
from tests.tdbook.corpus.test_token_files import T, raw


@pytest.fixture
def upstream(tmp_path) -> Path:
    """A folder as upstream makes it: two files and meta.json, nothing else."""
    return raw(tmp_path / "elsewhere", np.arange(1000) % 50, np.arange(100) % 50)


def test_without_documents_sixteen_neighbours_stand_for_one(upstream):
    document_N, sources = token_files.open_tokens(upstream).documents("train")
    assert document_N.tolist() == [i // 16 for i in range(62)]  # (1000 − 1) // 16 windows
    assert sources == ["unknown"] * 4


# windows


def test_window_i_is_tokens_from_i_t_on_and_its_targets_are_the_next_ones(upstream):
    windows, ids = (
        token_files.open_tokens(upstream).train,
        np.fromfile(upstream / "train.bin", "<u4"),
    )
    for i in (0, 1, 7, len(windows) - 1):
        ids_BT, targets_BT = windows.batch([i])
        assert ids_BT.tolist() == [ids[i * T : i * T + T].tolist()]
        assert targets_BT.tolist() == [ids[i * T + 1 : i * T + T + 1].tolist()]
        assert ids_BT.dtype == targets_BT.dtype == torch.int64


def test_windows_are_the_same_alone_in_a_batch_and_in_another_opening(upstream):
    windows, again = (token_files.open_tokens(upstream).train for _ in range(2))
    rows = [5, 0, 9, 5, 2]
    ids_BT, targets_BT = windows.batch(rows)
    for b, row in enumerate(rows):
        for one_1T, all_BT in zip(again.batch([row]), (ids_BT, targets_BT), strict=True):
            assert torch.equal(one_1T[0], all_BT[b])


@pytest.mark.parametrize("n", [17, 32, 33, 34, 48, 49, 1000])
def test_there_are_n_minus_1_over_t_windows_and_the_dropped_are_counted(n):
    windows = Windows(np.arange(n, dtype="<u4"), T)
    starts = [i for i in range(0, n, T) if i + T + 1 <= n]
    assert len(windows) == len(starts) == (n - 1) // T
    last_used = windows.batch([len(windows) - 1])[1][0, -1]
    assert windows.dropped == n - 1 - last_used


def test_batches_give_every_row_once_in_order():
    windows, rows = Windows(np.arange(1000), T), [4, 2, 9, 1, 7, 3, 0]
    parts = list(windows.batches(rows, 3))
    assert [len(p) for p in parts] == [3, 3, 1]
    assert list(itertools.chain(*parts)) == rows


@pytest.mark.parametrize("mask", [False, True])
def test_a_stream_gives_the_same_batches_and_reads_at_most_two_ahead(mask):
    ids = np.arange(101, dtype="<u4")
    windows = data.Windows(ids, 4, (ids % 3 > 0).astype("u1") if mask else None)
    asked = []
    plan = [[3], [0, 24], [7, 8, 9], [1]]
    stream = windows.stream((asked.append(rows) or rows for rows in plan), "cpu")
    for i, (rows, batch) in enumerate(zip(plan, stream, strict=True)):
        assert all(map(torch.equal, batch, windows.batch(rows)))
        assert windows.targets(rows) == int((batch[1] != data.IGNORE).sum())
        assert len(asked) <= i + 2


def test_what_goes_wrong_in_reading_ahead_is_raised():
    with pytest.raises(IndexError):
        list(data.Windows(np.arange(9, dtype="<u4"), 4).stream([[0], [99]]))


def test_a_training_step_cannot_write_into_the_tokens(upstream):
    windows = token_files.open_tokens(upstream).val
    before = windows.batch([0])
    for tensor in windows.batch([0]):
        tensor.fill_(1)
    assert all(torch.equal(a, b) for a, b in zip(before, windows.batch([0]), strict=True))


def test_a_mask_beside_the_ids_hides_targets_and_no_input(upstream):
    mask = np.random.default_rng(0).integers(0, 2, 1000).astype("u1")
    plain = token_files.open_tokens(upstream).train.batch(range(62))
    mask.tofile(upstream / "train.mask.bin")
    ids_BT, targets_BT = token_files.open_tokens(upstream).train.batch(range(62))
    assert torch.equal(ids_BT, plain[0])
    shown_BT = torch.from_numpy(mask[1 : 62 * T + 1].reshape(62, T)) > 0
    assert torch.equal(targets_BT, torch.where(shown_BT, plain[1], -100))


def test_uint16_files_hold_the_same_windows(tmp_path):
    train, val = np.arange(5000) * 13 % 40_000, np.arange(100)
    wide = token_files.open_tokens(raw(tmp_path / "w", train, val, vocab_size=65_536))
    narrow = token_files.open_tokens(raw(tmp_path / "n", train, val, "uint16", vocab_size=65_536))
    assert narrow.train.ids.dtype.itemsize == 2
    for a, b in zip(wide.train.batch(range(300)), narrow.train.batch(range(300)), strict=True):
        assert torch.equal(a, b)


def test_another_context_may_be_asked_for(upstream):
    assert token_files.open_tokens(upstream).context == T
    assert len(token_files.open_tokens(upstream, 33).train) == 999 // 33


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
    tokens = token_files.open_tokens(folder)
    tokens.train.batch([0, 2**20, len(tokens.train) - 1])
    assert len(tokens.train) == (2**30 - 1) // T
    # 64 blocks of 256 KiB are looked at, in turn; a whole read would be 4096 MiB
    assert memory("VmHWM") - before < 32 * 2**20


# what cannot be right gets one line


DOCUMENTS = {
    "beyond the end": ("train\t0\t9\ta\ntrain\t1000\t9\ta\n", "1 of train begins at 1,000, .*befo"),
    "a start of 10^12": ("train\t1000000000000\t9\ta\n", "begins at 1,000,000,000,000, it must be"),
    "not from 0": ("train\t5\t995\ta\n", "document 0 of train begins at 5, it must be 0: copy t"),
    "no order": (
        "train\t0\t9\ta\ntrain\t9\t9\ta\ntrain\t4\t996\ta\n", "begins at 4, it must be after 9 and"
    ),
    "words": ("train\tx\t9\ta\n", r"row 0 of train is \['train', 'x', '9', 'a'\], it must be"),
    "cut in a row": ("train\t0\t500\ta\ntrain\t50", "row 1 of train is .*: copy the one"),
    "cut in half": ("train\t0\t500\ta\n", "end at 500 of 1,000 tokens, it was cut short: copy t"),
}  # fmt: skip


@pytest.mark.parametrize("why", DOCUMENTS)
def test_documents_tsv_of_other_tokens_is_told(upstream, why):
    rows, said = DOCUMENTS[why]
    (upstream / "documents.tsv").write_text(f"split\tstart\ttokens\tsource\n{rows}")
    with pytest.raises(ValueError, match=rf"documents.tsv: .*{said}"):
        token_files.open_tokens(upstream).documents("train")


def test_a_table_that_was_emptied_or_cut_is_told(upstream):
    (upstream / "documents.tsv").write_text("")
    with pytest.raises(ValueError, match=r"documents.tsv has no heading with split: copy it again"):
        token_files.open_tokens(upstream).documents("val")


def test_weights_of_another_length_are_told(upstream, tmp_path):
    (tmp_path / "w").write_bytes(b"1" * 999)
    with pytest.raises(ValueError, match="has 999 bytes, it must have one for each of the 1,000 t"):
        data.weighted(token_files.open_tokens(upstream), tmp_path / "w")


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.json"
    write_whole(path, b"old")
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]
    with pytest.raises(TypeError):
        write_whole(path, 5)
    assert [p.read_bytes() for p in path.parent.iterdir()] == [b"old"]
