"""Junk put into clean text is found, nothing else is; shares and cuts against counting by hand."""

import re
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tdbook.analysis import features
from tdbook.corpus import token_files, writer
from tdbook.corpus.text import Document
from tdlib import data
from tests.helpers import token_folder
from tests.tdbook.export.test_release import hugging_face

T = 64


def folder_of(folder: Path, ids, tokenizer=None, context: int = T, vocab_size: int = 700) -> Path:
    """A folder of tokens from ids, as one made elsewhere."""
    meta = dict(vocab_size=vocab_size, block_size=context)
    token_folder(folder, ids, ids[: 2 * context + 1], **meta)
    if tokenizer:
        (folder / tokenizer.path.name).write_bytes(tokenizer.path.read_bytes())
    return folder


def tokens_of(tmp_path: Path, windows, tokenizer) -> data.Tokens:
    return token_files.open_tokens(folder_of(tmp_path / "t", [3, *windows.ravel()], tokenizer))


def look(tokens: data.Tokens) -> np.ndarray:
    features.save(path := tokens.folder / "features.npy", tokens, lambda *_: None)
    return np.load(path)


@pytest.fixture(scope="module")
def clean(tokenizer) -> np.ndarray:
    """A thousand windows of written text."""
    lines = [line for document in writer.write(260_000, 11) for line in document.lines]
    ids = np.concatenate([[*line, tokenizer.eos] for line in tokenizer.encode(lines)])
    return ids[1 : 1000 * T + 1].reshape(-1, T)


def junk(tokenizer, kind: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Windows of one kind of junk, (count, T)."""
    if kind == 1:  # as where a document was never segmented: each letter alone
        vocabulary = tokenizer.vocabulary()
        letters = [i for i, p in enumerate(vocabulary) if len(p) == 1 and "అ" <= p <= "హ"]
        return rng.choice(letters, (count, T))
    lines = [line for document in writer.write(40_000, 12) for line in document.lines]
    if kind == 2:
        ids = np.concatenate(tokenizer.encode(lines))[: count * T].reshape(count, T)
        ids[:, rng.choice(T, 3, replace=False)] = tokenizer.unk
        return ids
    if kind == 4:
        short = [" ".join(line.split()[:4]) for line in lines]
        pages = (r"\n".join(short[i : i + 40]) for i in range(count))
        return np.array([ids[:T] for ids in tokenizer.encode(list(pages))])
    numbers = rng.integers(100, 10_000, (count, 3))  # a stub, its numbers other ones each time
    words = " {} ".join(lines[:4]) + f" {lines[4]}"
    stubs = (words.format(*some) for some in numbers)
    return np.array([(tokenizer.encode([stub])[0] * 2)[:T] for stub in stubs])


@pytest.fixture(scope="module")
def spoilt(clean, tokenizer, tmp_path_factory):
    """Tokens with twelve windows of each kind of junk, the kind of each window, features."""
    rng = np.random.default_rng(5)
    parts, kinds = [clean], [np.zeros(len(clean), int)]
    for kind in features.JUNK:
        parts.append(junk(tokenizer, kind, 12, rng))
        kinds.append(np.full(12, kind))
    order = rng.permutation(sum(map(len, kinds)))
    ids = np.concatenate([[tokenizer.eos], np.concatenate(parts)[order].ravel()])
    folder = folder_of(tmp_path_factory.mktemp("spoilt") / "tokens", ids, tokenizer)
    tokens = token_files.open_tokens(folder)
    return tokens, np.concatenate(kinds)[order], look(tokens)


def test_each_kind_of_junk_is_found_and_clean_text_is_not_also_by_some_ngrams(spoilt, monkeypatch):
    tokens, kind_N, found_N = spoilt
    assert found_N["junk"].dtype == np.uint8 and set(features.JUNK) == {1, 2, 4, 8}
    for kind in features.JUNK:
        flagged_N = (found_N["junk"] & kind) > 0
        assert flagged_N[kind_N == kind].all(), features.JUNK[kind]
        assert not flagged_N[kind_N == 0].any(), features.JUNK[kind]
    monkeypatch.setattr(features, "SLOTS", 2**15)  # for 60,000 n-grams: a quarter is looked at
    template_N = (look(tokens)["junk"] & 8) > 0
    assert template_N[kind_N == 8].mean() > 0.9 and template_N[kind_N == 0].mean() < 0.01


def test_a_refrain_is_no_template_a_loop_is_and_rare_pieces_are_found(clean, tokenizer, tmp_path):
    """Verse: a line of a quarter of the window comes back twice in each of two windows."""
    ids = clean[:400].copy()
    for i in (100, 101):
        ids[i, :16] = ids[i, 24:40] = ids[100, :16]
    ids[200] = np.tile(ids[200, :9], 8)[:T]  # one phrase, seven times
    rarest = np.flatnonzero(np.bincount(clean.ravel(), minlength=700) == 0)[:6]
    ids[323, 10:40] = np.resize(rarest, 30)
    tokens = tokens_of(tmp_path, ids, tokenizer)
    found_N = look(tokens)
    assert np.flatnonzero(found_N["junk"] == 8).tolist() == [200]
    assert found_N["rare"].argmax() == 323 and found_N["rare"][323] >= 30 / T
    names, group_N = features.cuts(tokens, found_N)["share of rare tokens"]
    assert names[group_N[323]] == "20 % and more" and np.mean(group_N == 4) < 0.1


def test_shares_and_length_are_those_counted_by_hand_and_cuts_name_each_windows_group(spoilt):
    tokens, _, found_N = spoilt
    n, ids_NT = len(tokens.train), tokens.train.batch(range(len(tokens.train)))[1].numpy()
    count = Counter(ids_NT.ravel().tolist())
    seen = list(count.values())  # no longer rare: the count with which they would make up over 5 %
    limit = min(c for c in seen if sum(x for x in seen if x <= c) > 0.05 * ids_NT.size)
    for i in (0, 17, 500, 1000):
        ids = ids_NT[i].tolist()
        rare = np.mean([count[j] < limit for j in ids])
        assert found_N["rare"][i] == pytest.approx(rare, abs=1e-3)
        pieces = [tokens.tokenizer.vocabulary()[j].replace("<eos>", "") for j in ids]
        telugu = [any("\u0c00" <= c <= "\u0c7f" for c in piece) for piece in pieces]
        says = [any(c.isalnum() for c in piece) for piece in pieces]
        foreign = np.mean([a and not b for a, b in zip(says, telugu, strict=True)])
        assert found_N["foreign"][i] == pytest.approx(foreign, abs=1e-3)
        length = int(found_N["characters"][i]) - len(tokens.tokenizer.decode(ids))
        assert abs(length) <= 2  # its ends
    cuts = features.cuts(tokens, found_N)
    shares = {"share of rare tokens", "share of tokens not in Telugu"}
    assert set(cuts) == {"source", "place in the corpus", "junk"} | shares
    for names, group_N in cuts.values():
        assert group_N.shape == (n,) and group_N.dtype == np.uint8 and group_N.max() < len(names)
    names, place_N = cuts["place in the corpus"]
    assert names[0] == "0–5 %" and names[-1] == "95–100 %"
    assert place_N.tolist() == [20 * i // n for i in range(n)]
    names, script_N = cuts["share of tokens not in Telugu"]
    assert names == ["under 1 %", "1–5 %", "5–20 %", "20–50 %", "50 % and more"]
    steps = (0.01, 0.05, 0.2, 0.5)
    assert script_N.tolist() == [sum(float(x) >= s for s in steps) for x in found_N["foreign"]]


def test_shares_and_length_are_those_of_the_text_where_pieces_cut_characters(tmp_path):
    """BPE over bytes, as GPT-2's and Llama 3's: next to no letter of Telugu is a piece."""
    lines = [line for document in writer.write(60_000, 3) for line in document.lines]
    lines = [re.sub("[0-9a-zA-Z]+", "", line) for line in lines]
    lines[100:160] = ["the king went to the river and the sea"] * 60
    one = hugging_face(lines[:140], tmp_path, None, size=300)
    parts = {"train": lines[20:], "val": lines[:20]}
    documents = {name: [Document(tuple(part), "a")] for name, part in parts.items()}
    token_files.write_tokens(tmp_path / "t", documents, one, 2 * T)
    tokens = token_files.open_tokens(tmp_path / "t")
    found_N, english = look(tokens), 0
    for i, window in enumerate(found_N):
        text = tokens.tokenizer.decode(tokens.train.ids[2 * i * T + 1 :][: 2 * T])
        assert abs(int(window["characters"]) - len(text)) <= 2 and not window["junk"] & 1
        letters = len(re.findall("[a-z]", text))
        assert (window["foreign"] > 0) == (letters > 0)
        english += letters > 30 and window["foreign"] > 0.7 and window["junk"] == 8
    assert english > 3  # the same line sixty times
    names, script_MT = features.token_cuts(tokens, np.arange(len(tokens.val)))["script"]
    shown = tokens.tokenizer.decode(tokens.val.ids)
    others = sum(c in "\n .,;:!?-—()“”‘’\"'" for c in shown) / len(tokens.val.ids)
    assert names[0] == "Telugu" and not np.isin(script_MT, [1, 2]).any()
    assert (script_MT == 3).mean() <= others + 0.02


def named(tmp_path, lines: str, rows: str = "") -> data.Tokens:
    folder = folder_of(tmp_path / "t", np.arange(100 * T + 1) % 700)
    (folder / "sources.tsv").write_text(lines, encoding="utf8")
    if rows:
        (folder / "documents.tsv").write_text(f"split\tstart\ttokens\tsource\n{rows}")
    return token_files.open_tokens(folder)


def test_sources_are_those_of_sources_tsv_and_no_block_is_of_two(tmp_path):
    tokens = named(tmp_path, "first token\tname\n0\tనవల\n1000\tnews\n4000\twiki\n")
    found_N = np.zeros(100, features.KINDS)
    found_N["junk"][[3, 5, 9]] = 8, 2, 9  # of several kinds the first counts
    cuts = features.cuts(tokens, found_N)
    kinds, kind_N = cuts["junk"]
    shown = [kinds[i] for i in kind_N[[0, 3, 5, 9]]]
    assert shown == ["none", "template repeats", "<unk>", "single-character pieces"]
    names, group_N = cuts["source"]
    middle_N = np.arange(100) * T + T // 2
    wanted = ["నవల" if m < 1000 else "news" if m < 4000 else "wiki" for m in middle_N]
    assert [names[g] for g in group_N] == wanted
    document_N, sources = token_files.origins(tokens, "train")
    assert [sources[d] for d in document_N] == wanted
    assert np.bincount(document_N).max() <= 16 and (np.diff(document_N) >= 0).all()
    assert len(sources) == document_N[-1] + 1 == len(np.unique(document_N))
    assert token_files.origins(tokens, "val")[1] == ["unknown"]  # they name those of train.bin


def test_documents_keep_their_places_and_get_the_sources_of_sources_tsv(tmp_path):
    rows = "".join(f"train\t{i * 500}\t500\tfile\n" for i in range(13))
    tokens = named(tmp_path, "0\ta\n1700\tb\n", f"{rows}val\t0\t129\tfile\n")
    token_files.link_tokens(tokens.folder, tmp_path / "run/tokens")  # comes along
    for folder in (tokens.folder, tmp_path / "run/tokens"):
        document_N, sources = token_files.origins(token_files.open_tokens(folder), "train")
        assert sources == ["a"] * 4 + ["b"] * 9  # document 3 begins at 1,500
        assert document_N.tolist() == [(i * T + T // 2) // 500 for i in range(100)]


def test_memory_does_not_grow_with_the_windows(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "SLOTS", 2**18)
    monkeypatch.setattr(features, "PIECE", 2**16)
    peaks = []
    for name, count in (("some", 2**20), ("many", 2**21)):
        ids = np.random.default_rng(0).integers(300, 700, count, dtype=np.uint32)
        tokens = token_files.open_tokens(folder_of(tmp_path / name, ids, tokenizer, 2048))
        tracemalloc.start()  # what numpy allocates; the tokens themselves are mapped
        look(tokens)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 2**20, peaks  # and what is kept of a window is 9 bytes
