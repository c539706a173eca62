"""Tokens against numpy and a bare SentencePieceProcessor: the raw format of upstream's files, the
numbered windows, and what a folder that cannot be right is told."""

import csv
import itertools
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch

from tdlib import data, telugu
from tdlib.data import Windows
from tdlib.text import Document

T = 16


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Document]]:
    documents, _ = telugu.write(40_000, 5)
    odd = Document(("ఇది  రెండు ఖాళీలు 😀", " ముందు ఖాళీ", "క\u200cష ABC ౧౨"), 'odd/one, "two"')
    return {"train": [*documents[4:], odd], "val": documents[1:4], "confirm": documents[:1]}


@pytest.fixture(scope="module")
def folder(splits, tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "tokens"
    data.write_tokens(folder, splits, tokenizer, T)
    return folder


@pytest.fixture
def upstream(tmp_path) -> Path:
    """A folder as upstream makes it: two files and meta.json, nothing else."""
    return raw(tmp_path / "elsewhere", np.arange(1000) % 50, np.arange(100) % 50)


def raw(folder: Path, train, val, dtype="uint32", **change) -> Path:
    folder.mkdir()
    for name, ids in (("train", train), ("val", val)):
        np.asarray(ids, dtype=dtype).tofile(folder / f"{name}.bin")
    meta = dict(vocab_size=50, block_size=T, dtype=dtype, unk_rate=0.0, total_tokens=7)
    meta |= dict(train_tokens=len(train), val_tokens=len(val))
    (folder / "meta.json").write_text(json.dumps(meta | change))
    return folder


# the raw format


def test_a_file_is_each_line_encoded_and_eos_as_bare_uint32(folder, splits):
    bare = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for split, documents in splits.items():
        ids = [i for d in documents for line in d.lines for i in [*bare.encode(line), 3]]
        assert (folder / f"{split}.bin").read_bytes() == np.array(ids, "<u4").tobytes()


def test_counts_in_meta_are_bytes_over_four_and_text_bytes_those_of_the_lines(folder, splits):
    meta = json.loads((folder / "meta.json").read_text())
    for split, documents in splits.items():
        size = (folder / f"{split}.bin").stat().st_size
        assert meta[f"{split}_tokens"] == size / 4
        text = "".join(line + "\n" for d in documents for line in d.lines)
        assert meta[f"{split}_bytes"] == len(text.encode())
        per_token = data.open_tokens(folder).bytes_per_token(split)
        assert per_token == pytest.approx(len(text.encode()) / (size / 4))
    assert (meta["block_size"], meta["vocab_size"], meta["dtype"]) == (T, 700, "uint32")


def test_bos_never_occurs_and_nothing_is_unknown(folder):
    ids = np.concatenate([np.fromfile(path, "<u4") for path in folder.glob("*.bin")])
    assert not np.isin([data.PAD, data.UNK, data.BOS], ids).any()
    assert json.loads((folder / "meta.json").read_text())["unk_rate"] == 0


def test_documents_start_where_documents_tsv_says(folder, splits, tokenizer):
    with open(folder / "documents.tsv", encoding="utf8", newline="") as f:
        rows = list(csv.DictReader(f, delimiter="\t"))
    documents = [(split, d) for split, ds in splits.items() for d in ds]
    assert len(rows) == len(documents)
    for row, (split, document) in zip(rows, documents, strict=True):
        assert (row["split"], row["source"]) == (split, document.source)
        start, count = int(row["start"]), int(row["tokens"])
        ids = np.fromfile(folder / f"{split}.bin", "<u4")[start : start + count]
        assert tokenizer.decode(ids) == "\n".join(document.lines) + "\n"


def test_a_window_belongs_to_the_document_in_its_middle(folder, splits, tokenizer):
    tokens = data.open_tokens(folder)
    of_token = [
        number
        for number, document in enumerate(splits["val"])
        for ids in tokenizer.encode(document.lines)
        for _ in range(len(ids) + 1)
    ]
    document_N, sources = tokens.documents("val")
    assert document_N.tolist() == [of_token[i * T + T // 2] for i in range(len(tokens.val))]
    assert len(set(document_N.tolist())) == 3
    assert sources == [d.source for d in splits["val"]]


def test_without_documents_sixteen_neighbours_stand_for_one(upstream):
    document_N, sources = data.open_tokens(upstream).documents("train")
    assert document_N.tolist() == [i // 16 for i in range(62)]  # (1000 − 1) // 16 windows
    assert sources == ["unknown"] * 4


# windows


def test_window_i_is_tokens_from_i_t_on_and_its_targets_are_the_next_ones(folder):
    windows, ids = data.open_tokens(folder).train, np.fromfile(folder / "train.bin", "<u4")
    for i in (0, 1, 7, len(windows) - 1):
        ids_BT, targets_BT = windows.batch([i])
        assert ids_BT.tolist() == [ids[i * T : i * T + T].tolist()]
        assert targets_BT.tolist() == [ids[i * T + 1 : i * T + T + 1].tolist()]
        assert ids_BT.dtype == targets_BT.dtype == torch.int64


def test_windows_are_the_same_alone_in_a_batch_and_in_another_opening(folder):
    windows, again = (data.open_tokens(folder).train for _ in range(2))
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


def test_a_training_step_cannot_write_into_the_tokens(folder):
    windows = data.open_tokens(folder).val
    before = windows.batch([0])
    for tensor in windows.batch([0]):
        tensor.fill_(1)
    assert all(torch.equal(a, b) for a, b in zip(before, windows.batch([0]), strict=True))


def test_a_mask_beside_the_ids_hides_targets_and_no_input(upstream):
    mask = np.random.default_rng(0).integers(0, 2, 1000).astype("u1")
    plain = data.open_tokens(upstream).train.batch(range(62))
    mask.tofile(upstream / "train.mask.bin")
    ids_BT, targets_BT = data.open_tokens(upstream).train.batch(range(62))
    assert torch.equal(ids_BT, plain[0])
    shown_BT = torch.from_numpy(mask[1 : 62 * T + 1].reshape(62, T)) > 0
    assert torch.equal(targets_BT, torch.where(shown_BT, plain[1], -100))


def test_uint16_files_hold_the_same_windows(tmp_path):
    train, val = np.arange(5000) * 13 % 40_000, np.arange(100)
    wide = data.open_tokens(raw(tmp_path / "w", train, val, vocab_size=65_536))
    narrow = data.open_tokens(raw(tmp_path / "n", train, val, "uint16", vocab_size=65_536))
    assert narrow.train.ids.dtype.itemsize == 2
    for a, b in zip(wide.train.batch(range(300)), narrow.train.batch(range(300)), strict=True):
        assert torch.equal(a, b)


def test_another_context_may_be_asked_for(upstream):
    assert data.open_tokens(upstream).context == T
    assert len(data.open_tokens(upstream, 33).train) == 999 // 33


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
    tokens = data.open_tokens(folder)
    tokens.train.batch([0, 2**20, len(tokens.train) - 1])
    assert len(tokens.train) == (2**30 - 1) // T
    # 64 blocks of 256 KiB are looked at, in turn; a whole read would be 4096 MiB
    assert memory("VmHWM") - before < 32 * 2**20


# the tokenizer


def test_a_trained_vocabulary_begins_with_four_specials_and_256_bytes(tokenizer):
    pieces = tokenizer.pieces(range(260))
    assert pieces[:4] == ["<pad>", "<unk>", "<bos>", "<eos>"]
    assert pieces[4:] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert tokenizer.size == 700


ANY = [
    "అమ్మ ఇంట్లో ఉంది.", "  ముందు  రెండు ఖాళీలు  ", "😀 🧑‍🌾 👩🏽‍🚀", "క్‌ష క్‍ష", "౦౧౨౩౪౫ 2024లో",
    "a\tb", "é e\u0301 ﬁ ½ ²", "नमस्ते 中文 العربية", "x\x00y", "\u2028\ufeff\u00a0", "<eos> <0xE0>",
    "",
]  # fmt: skip


@pytest.mark.parametrize("line", ANY)
def test_any_text_comes_back_as_it_was(tokenizer, line):
    ids = tokenizer.encode([line])[0]
    assert tokenizer.decode(ids) == line
    assert not {data.UNK, data.BOS, data.EOS} & set(ids)


def test_real_text_comes_back_as_it_was(shared, tokenizer):
    import lzma

    text = lzma.open(shared / "data/telugu/wikipedia_paragraphs.txt.xz").read().decode()
    lines = [line for line in text.split("\n") if line][:300]
    for line, ids in zip(lines, tokenizer.encode(lines), strict=True):
        assert tokenizer.decode(ids) == line


def test_eos_is_a_line_break_and_half_a_character_is_hidden(tokenizer):
    first, second = tokenizer.encode(["అమ్మ", "ఊరు 😀"])
    assert tokenizer.decode([*first, data.EOS, *second]) == "అమ్మ\nఊరు 😀"
    assert all(i < 260 for i in second[-4:])  # the four bytes of the face
    for cut in (1, 2, 3):
        assert tokenizer.decode(second[:-cut]) == "ఊరు "


# what cannot be right gets one line, and nothing is left half made


def test_one_wrong_id_among_millions_is_found_when_tokens_are_linked(tmp_path):
    train = np.zeros(9_000_000, "<u4")
    train[7_654_321] = 1_000
    folder = raw(tmp_path / "elsewhere", train, np.zeros(100))
    with pytest.raises(ValueError, match=r"holds id 1,000, the vocabulary has 50"):
        data.link_tokens(folder, tmp_path / "tokens")


def test_a_document_that_fails_in_the_middle_leaves_no_folder(tokenizer, tmp_path):
    def documents():
        yield Document(("అమ్మ",), "a")
        raise OSError("the cable was pulled")

    class Failing(list):
        def __iter__(self):
            return documents()

    with pytest.raises(OSError, match="cable"):
        data.write_tokens(tmp_path / "tokens", {"train": Failing()}, tokenizer, T)
    assert not list(tmp_path.iterdir())


def test_writing_again_leaves_nothing_of_the_first_time(splits, tokenizer, tmp_path):
    for kept in (splits, {k: splits[k] for k in ("train", "val")}):
        data.write_tokens(tmp_path / "tokens", kept, tokenizer, T)
    assert not (tmp_path / "tokens" / "confirm.bin").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.json"
    data.write_whole(path, b"old")
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]
    with pytest.raises(TypeError):
        data.write_whole(path, "no bytes")
    assert [p.read_bytes() for p in path.parent.iterdir()] == [b"old"]


def test_linked_tokens_are_the_same_files_and_survive_the_link(upstream, tmp_path):
    folder = tmp_path / "run" / "tokens"
    data.link_tokens(upstream, folder)
    data.link_tokens(upstream, folder)
    for path in upstream.iterdir():
        assert (folder / path.name).is_symlink()
        assert os.path.samefile(path, folder / path.name)
    assert len(data.open_tokens(folder).train) == 62
    shutil.rmtree(folder)
    assert len(list(upstream.iterdir())) == 3


def test_linked_tokens_take_another_context_and_the_owners_meta_json_stays(upstream, tmp_path):
    before = (upstream / "meta.json").read_bytes()
    data.link_tokens(upstream, tmp_path / "tokens", context=33)
    tokens = data.open_tokens(tmp_path / "tokens")
    assert (tokens.context, len(tokens.train)) == (33, 999 // 33)
    assert (upstream / "meta.json").read_bytes() == before
    assert os.path.samefile(upstream / "train.bin", tmp_path / "tokens/train.bin")


def test_a_teacher_with_fewer_pieces_decides_where_no_token_is_beyond_them(tmp_path):
    folder = raw(tmp_path / "elsewhere", np.arange(1000) % 40, np.arange(100) % 40)
    data.link_tokens(folder, tmp_path / "tokens", vocab_size=40)
    assert data.open_tokens(tmp_path / "tokens").vocab_size == 40
    with pytest.raises(
        ValueError, match=r"train.bin holds id 39, the vocabulary has 39: .*teacher"
    ):
        data.link_tokens(folder, tmp_path / "others", vocab_size=39)
    assert not (tmp_path / "others").exists()


def test_every_id_of_a_large_file_is_looked_at_where_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "WHOLE", 2**20)
    train = np.full(9_000_000, 3, "<u4")
    train[data.BLOCK // 4 + 5] = 1_000  # in the second block: every other one is looked at
    folder = raw(tmp_path / "elsewhere", train, np.full(100, 3))
    data.link_tokens(folder, tmp_path / "tokens")
    with pytest.raises(ValueError, match=r"holds id 1,000, the vocabulary has 50"):
        data.link_tokens(folder, tmp_path / "others", every_id=True)


def test_tokens_that_are_mostly_unknown_are_refused(tmp_path):
    train = np.where(np.arange(1000) % 10 < 2, 1, np.arange(1000) % 50)
    folder = raw(tmp_path / "elsewhere", train, np.arange(100) % 50)
    share = (train == 1).mean()
    with pytest.raises(ValueError, match=f"the tokens hold {share:.0%} of this text <unk>"):
        data.link_tokens(folder, tmp_path / "tokens")


def test_total_tokens_is_never_compared(tmp_path):
    for i, total in enumerate((0, 10**9, None)):
        folder = raw(tmp_path / f"{i}", np.arange(1000) % 50, np.arange(100), total_tokens=total,
                     vocab_size=100)  # fmt: skip
        data.link_tokens(folder, tmp_path / f"tokens{i}")


def test_our_files_are_read_by_upstreams_rules(folder, splits):
    """As its training does: raw uint32, counts that are bytes / 4, windows drawn anywhere."""
    meta = json.loads((folder / "meta.json").read_text())
    for split in ("train", "val"):
        ids = np.memmap(folder / f"{split}.bin", np.uint32, "r")
        assert len(ids) == meta[f"{split}_tokens"] and int(ids.max()) < meta["vocab_size"]
        assert (ids == 3).sum() == sum(len(d.lines) for d in splits[split])
    assert meta["dtype"] == "uint32" and meta["block_size"] == T
