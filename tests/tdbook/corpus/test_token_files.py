"""Folders of tokens and their windows, against numpy and a bare SentencePieceProcessor."""

import csv
import json
import re
import shutil
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch

from tdbook.corpus import token_files, tokenizer_files, writer
from tdbook.corpus.text import Document
from tdlib import data, evaluate, train
from tests import upstream as upstreams
from tests.helpers import tiny_model, token_folder, trained_sentencepiece
from tests.tdbook.corpus.test_tokenizer import CASES

T = 16


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Document]]:
    documents = writer.write(40_000, 5)
    odd = Document(("ఇది  రెండు ఖాళీలు 😀", " ముందు ఖాళీ", "క\u200cష ABC ౧౨"), 'odd/one, "two"')
    return {"train": [*documents[4:], odd], "val": documents[1:4], "confirm": documents[:1]}


@pytest.fixture(scope="module")
def folder(splits, tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "tokens"
    token_files.write_tokens(folder, splits, tokenizer, T)
    return folder


def raw(folder: Path, train, val, dtype="uint32", **change) -> Path:
    meta = dict(vocab_size=50, block_size=T, unk_rate=0.0, total_tokens=7)
    meta |= dict(train_tokens=len(train), val_tokens=len(val))
    return token_folder(folder, train, val, dtype, **meta | change)


def test_a_file_is_each_line_encoded_and_eos_as_bare_uint32(folder, splits):
    """And counts in meta.json are as upstream's rules want them: bytes / 4, uint32, no <bos>."""
    bare = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    meta, tokens = json.loads((folder / "meta.json").read_text()), token_files.open_tokens(folder)
    known = [meta[name] for name in ("block_size", "vocab_size", "dtype", "unk_rate")]
    assert known == [T, 700, "uint32", 0]
    with open(folder / "documents.tsv", encoding="utf8", newline="") as f:
        rows = csv.DictReader(f, delimiter="\t")
        for split, documents in splits.items():
            ids, document_S = [], []
            for i, document in enumerate(documents):  # and each starts where documents.tsv says
                own = [i for line in document.lines for i in [*bare.encode(line), 3]]
                row = [split, str(len(ids)), str(len(own)), document.source]
                assert [*next(rows).values()] == row
                ids, document_S = ids + own, document_S + [i] * len(own)
            assert (folder / f"{split}.bin").read_bytes() == np.array(ids, "<u4").tobytes()
            assert not {data.PAD, data.UNK, data.BOS} & set(ids) and max(ids) < 700
            text = "".join(f"{line}\n" for d in documents for line in d.lines)
            size, sizes = len(text.encode()), ("tokens", "bytes", "characters")
            assert [meta[f"{split}_{n}"] for n in sizes] == [len(ids), size, len(text)]
            assert tokens.bytes_per_token(split) == pytest.approx(size / len(ids))
            # of the token in a window's middle
            document_N, sources = token_files.origins(tokens, split)
            assert document_N.tolist() == document_S[T // 2 : len(document_N) * T : T]
            assert sources == [d.source for d in documents]
        assert not [*rows]


@pytest.mark.parametrize("kind", CASES["loses"])
def test_what_a_tokenizer_loses_is_told_and_bytes_are_those_that_are_kept(splits, tmp_path, kind):
    options, odd = CASES["loses"][kind]
    lines = [line for d in splits["val"] for line in d.lines]
    lines = [line for line in lines if not re.search("[A-Zఔ]", line)]
    options = options | dict(pad_id=0, unk_id=1, bos_id=2, eos_id=3, character_coverage=1.0)
    one = trained_sentencepiece(tmp_path / "t.model", [*lines, *["ABC abc fi 1 2"] * 9], **options)
    sound = {"train": [Document(tuple(lines), "a")], "val": [Document(tuple(lines[:9]), "a")]}
    with warnings.catch_warnings(action="error"):
        token_files.write_tokens(tmp_path / "sound", sound, one, T)
    meta = token_files.open_tokens(tmp_path / "sound").meta
    assert "lost" not in meta and meta["val_bytes"] == len("\n".join(lines[:9]).encode()) + 1
    spoilt = {"train": [Document((*lines, odd), "a")], "val": [Document((odd,) * 20, "a")]}
    with pytest.warns(UserWarning, match=r"t.model: The tokenizer does not keep all text: \d") as w:
        token_files.write_tokens(tmp_path / "spoilt", spoilt, one, T)
    tokens = token_files.open_tokens(tmp_path / "spoilt")
    assert len(w) == 1 and token_files.loss(tokens.meta) in str(w[0].message)
    kept, lost = one.decode(i for i in tokens.val.ids if i != one.unk), tokens.meta["lost"]
    assert tokens.meta["val_bytes"] == len(kept.encode()) and kept != f"{odd}\n" * 20
    assert tokens.meta["val_characters"] == len(kept)
    assert lost["lines"] == pytest.approx(21 / (len(lines) + 21)) and 0 < lost["characters"] < 0.5


def test_text_that_comes_segmented_loses_nothing_by_its_marks(shared):
    one = tokenizer_files.open(shared / "data/upstream_tokenizer/tokenizer.json")
    lines = ("చేయ@@ లేదు the inter@@ national", "కూడాకూ@@ లో")
    for given, changed in ((lines * 9, 0), ((f"{lines[0]}  x", "ꙮ"), 2)):
        token_files._encode(given, one, sizes := Counter(), lost := Counter())
        assert (lost["lines"], lost["of_lines"]) == (changed, len(given))
        plain = "".join(f"{line}\n" for line in given).replace("@@ ", "").replace("  ", " ")
        assert sizes["characters"] == len(plain.replace("ꙮ", ""))


@pytest.mark.parametrize("dtype", ["uint32", "uint16"])
def test_what_meta_json_does_not_say_comes_from_the_files(tmp_path, dtype):
    """As others write it: vocab_size alone, or with words of their own."""
    ids = np.arange(1000) % 50
    full = token_files.open_tokens(raw(tmp_path / "full", ids, ids, dtype)).train.batch(range(9))
    folder = raw(tmp_path / "few", ids, ids, dtype)
    few = {"vocab_size": 50, "total_tokens": 2000, "tokenizer_type": "bpe", "block_size": None}
    few |= {"dtype": dtype} if dtype == "uint16" else {}
    (folder / "meta.json").write_text(json.dumps(few))
    with pytest.raises(ValueError, match=r"block_size is null, .*: give a context"):
        token_files.open_tokens(folder)
    token_files.link_tokens(folder, tmp_path / "run", context=T)
    tokens = token_files.open_tokens(tmp_path / "run")
    assert (tokens.meta["train_tokens"], tokens.context, tokens.eos) == (1000, T, 3)
    assert (tokens.meta["val_tokens"], tokens.meta["tokenizer_type"]) == (1000, "bpe")
    assert all(map(torch.equal, tokens.train.batch(range(9)), full))
    assert np.isnan(tokens.bytes_per_token())


def test_eos_is_the_tokenizer_s_where_meta_json_names_none(splits, tmp_path):
    lines, tokens = [line for d in splits["val"] for line in d.lines], tmp_path / "tokens"
    one = trained_sentencepiece(tmp_path / "t.model", lines)
    token_files.write_tokens(tokens, {k: splits[k] for k in ("train", "val")}, one, T)
    meta = json.loads((tokens / "meta.json").read_text())
    assert meta.pop("eos_id") == 2 == one.eos
    (tokens / "meta.json").write_text(json.dumps(meta))
    for given in (None, one):
        token_files.link_tokens(tokens, tmp_path / "linked", tokenizer=given)
        assert token_files.open_tokens(tmp_path / "linked").eos == 2
        (tokens / "tokenizer.model").unlink(missing_ok=True)
    ids = np.arange(1000) % 50
    folder = raw(tmp_path / "e", ids[ids != 3], ids[ids != 3])  # no tokenizer, and no 3
    with pytest.raises(ValueError, match=r"<eos> \(id 3\), .*: name the id that does as eos_id in"):
        token_files.link_tokens(folder, tmp_path / "x")


def test_ids_beyond_the_vocabulary_and_many_unknown_are_refused(tmp_path, monkeypatch):
    train = np.full(9_000_000, 3, "<u4")
    train[token_files.BLOCK // 4 + 5] = 1_000  # in the second block
    folder = raw(tmp_path / "elsewhere", train, np.full(100, 3))
    with pytest.raises(ValueError, match=r"holds id 1,000, the vocabulary has 50"):
        token_files.link_tokens(folder, tmp_path / "tokens")
    monkeypatch.setattr(token_files, "FULL_LOOK", 2**20)
    token_files.link_tokens(folder, tmp_path / "tokens")  # every other block is looked at
    with pytest.raises(ValueError, match=r"holds id 1,000, the vocabulary has 50"):
        token_files.link_tokens(folder, tmp_path / "others", every_id=True)
    train = np.where(np.arange(1000) % 10 < 2, 1, np.arange(1000) % 50)
    folder = raw(tmp_path / "unknown", train, np.arange(100) % 50)
    with pytest.raises(ValueError, match=f"the tokens hold {(train == 1).mean():.0%} of this text"):
        token_files.link_tokens(folder, tmp_path / "tokens")


def test_a_folder_is_whole_and_keeps_nothing_of_an_earlier_one(splits, tokenizer, tmp_path):
    def failing():
        yield Document(("అమ్మ",), "a")
        raise OSError("the cable was pulled")

    with pytest.raises(OSError, match="cable"):
        token_files.write_tokens(tmp_path / "tokens", {"train": failing()}, tokenizer, T)
    assert not list(tmp_path.iterdir())
    for kept in (splits, {k: splits[k] for k in ("train", "val")}):
        token_files.write_tokens(tmp_path / "tokens", kept, tokenizer, T)
    assert not (tmp_path / "tokens" / "confirm.bin").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]


def test_linked_tokens_are_the_same_files_and_a_teacher_with_fewer_pieces_decides(tmp_path):
    ids, folder = np.arange(1000) % 40, tmp_path / "run" / "tokens"
    upstream = raw(tmp_path / "elsewhere", ids, ids[:100], total_tokens=10**9)  # never compared
    before = (upstream / "meta.json").read_bytes()
    for context in (T, T, 33):
        token_files.link_tokens(upstream, folder, context=context)
        tokens = token_files.open_tokens(folder)
        assert (tokens.context, len(tokens.train)) == (context, 999 // context)
        for path in upstream.glob("*.bin"):
            assert (folder / path.name).is_symlink() and path.samefile(folder / path.name)
    token_files.link_tokens(upstream, folder, vocab_size=40)  # of 50
    assert token_files.open_tokens(folder).vocab_size == 40
    with pytest.raises(ValueError, match=r"id 39, .* has no more rows, this tokenizer 50 pieces"):
        token_files.link_tokens(upstream, tmp_path / "others", vocab_size=39)
    assert not (tmp_path / "others").exists()
    shutil.rmtree(folder)
    assert len(list(upstream.iterdir())) == 3 and (upstream / "meta.json").read_bytes() == before


@pytest.fixture
def upstream(tmp_path) -> Path:
    """A folder as upstream makes it: two files and meta.json, nothing else."""
    return raw(tmp_path / "elsewhere", np.arange(1000) % 50, np.arange(100) % 50)


def test_window_i_is_tokens_from_i_t_on_and_its_targets_are_the_next_ones(upstream):
    ids = np.fromfile(upstream / "train.bin", "<u4")
    windows = token_files.open_tokens(upstream).train
    rows = [5, 0, len(windows) - 1, 5, 2]
    for i, ids_T, targets_T in zip(rows, *windows.batch(rows), strict=True):
        assert ids_T.tolist() == ids[i * T : i * T + T].tolist()
        assert targets_T.tolist() == ids[i * T + 1 : i * T + T + 1].tolist()
        assert ids_T.dtype == targets_T.dtype == torch.int64
    before = windows.batch([0])
    for tensor in windows.batch([0]):
        tensor.fill_(1)  # writes nothing into the file
    assert all(map(torch.equal, before, windows.batch([0])))
    for n in (17, 32, 33, 34, 48, 49, 1000):
        windows = data.Windows(np.arange(n, dtype="<u4"), T)
        assert len(windows) == len([i for i in range(0, n, T) if i + T + 1 <= n])
        assert windows.batch([len(windows) - 1])[1][0, -1] == (n - 1) // T * T


@pytest.mark.parametrize("mask", [False, True])
def test_a_stream_gives_the_same_batches_and_reads_at_most_two_ahead(mask):
    ids = np.arange(101, dtype="<u4")
    windows = data.Windows(ids, 4, (ids % 3 > 0).astype("u1") if mask else None)
    asked, plan = [], [*windows.batches([3, 0, 24, 7, 8, 9, 1], 2)]
    assert [len(rows) for rows in plan] == [2, 2, 2, 1]
    stream = windows.stream((asked.append(rows) or rows for rows in plan), "cpu")
    for i, (rows, batch) in enumerate(zip(plan, stream, strict=True)):
        assert all(map(torch.equal, batch, windows.batch(rows)))
        assert windows.targets(rows) == int((batch[1] != data.IGNORE).sum())
        assert len(asked) <= i + 2
    with pytest.raises(IndexError):
        list(windows.stream([[0], [99]]))


def test_a_folder_for_instruction_tuning_is_read_as_upstream_writes_it(tokenizer, lines, tmp_path):
    """Losses are masked means by hand; bits are of the text that is learnt."""
    parts = (tokenizer.encode(part) for part in (lines[:40], lines[40:65]))
    given = ([i for line in part for i in [*line, 3]] for part in parts)
    upstreams.questions(folder := token_folder(tmp_path / "given", *given), 700, 64)
    assert token_files.open_tokens(folder).context == 64
    token_files.link_tokens(folder, tmp_path / "tokens", tokenizer=tokenizer, context=T)
    tokens, rows = token_files.open_tokens(tmp_path / "tokens"), (folder / "val.offsets.json")
    ids, mask = np.fromfile(folder / "val.bin", "<i4"), np.fromfile(folder / "val.mask.bin", "u1")
    assert (tokens.vocab_size, tokens.context, len(tokens.val.ids)) == (700, T, len(ids))
    rows, example_N = json.loads(rows.read_text()), token_files.origins(tokens, "val")[0]
    middles = range(T // 2, len(example_N) * T, T)
    assert [sum(row["start"] <= at for row in rows) - 1 for at in middles] == example_N.tolist()
    model, means, nats, size = tiny_model(vocab=700, context=T), [], [], 0
    for at in (np.arange(i, i + T) for i in range(0, len(example_N) * T, T)):
        with torch.no_grad():
            logp_TV = model(torch.from_numpy(ids[at])[None])[0].double().log_softmax(-1)
        each = [-float(logp_TV[j, ids[k + 1]]) for j, k in enumerate(at) if mask[k + 1]]
        means, nats = [*means, np.mean(each) if each else np.nan], nats + each
        size += len(tokenizer.decode(ids[at + 1][mask[at + 1] > 0]))
    assert tokens.bytes_per_token("val", "characters") == pytest.approx(size / len(nats), rel=1e-3)
    found = evaluate.evaluate(model, tokens.val, model, fixed=20)
    np.testing.assert_allclose(found.window_loss_N, means, rtol=1e-5)
    row = found.row(tokens.bytes_per_token(), 2.0)
    assert row["windows_left_out"] == sum(np.isnan(means)) > 2 and all(np.isfinite([*row.values()]))
    recipe = train.Recipe(ce_weight=1.0, epochs=1, batch_tokens=len(ids))
    train.fit(model, tokens.val, recipe, record=(log := {}).update)
    assert log["train/loss"] == pytest.approx(np.mean(nats), rel=1e-5)  # of all targets


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
    train = token_files.open_tokens(folder, 33).train
    train.batch([0, 2**20, len(train) - 1])
    assert len(train) == (2**30 - 1) // 33  # another context may be asked for
    # 64 blocks of 256 KiB are looked at, in turn; a whole read would be 4096 MiB
    assert memory("VmHWM") - before < 32 * 2**20


def test_without_documents_sixteen_neighbours_stand_for_one(upstream):
    document_N, sources = token_files.origins(token_files.open_tokens(upstream), "train")
    assert document_N.tolist() == [i // 16 for i in range(62)]  # (1000 − 1) // 16 windows
    assert sources == ["unknown"] * 4


@pytest.mark.parametrize(("rows", "said"), CASES["documents"])
def test_documents_of_other_tokens_are_told_when_tokens_are_linked(upstream, tmp_path, rows, said):
    name = "train.offsets.json" if rows[:1] == "[" else "documents.tsv"
    heading = "split\tstart\ttokens\tsource\n" if rows[:1] == "t" else ""
    (upstream / name).write_text(heading + rows)
    with pytest.raises(ValueError, match=rf"{name}:? .*{said}"):
        token_files.link_tokens(upstream, tmp_path / "run")


def test_weights_lie_in_a_file_with_one_for_each_training_id(upstream, tmp_path):
    weights = np.zeros(1000, "u1")
    weights[5] = 2
    np.save(tmp_path / "weights.npy", weights)
    back = data.weighted(token_files.open_tokens(upstream), tmp_path / "weights.npy")
    assert back.val.weights is None and isinstance(back.train.weights, np.memmap)
    assert back.train.weights_of([0]).tolist() == [[0.0] * 4 + [2.0] + [0.0] * (T - 5)]
