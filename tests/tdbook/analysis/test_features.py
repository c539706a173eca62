"""Junk put into clean text is found, and nothing else is; shares and cuts against counting by hand;
sources by name; memory that does not grow with the windows."""

import json
import re
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

import tdbook.corpus.tokenizer_files
from tdbook.analysis import features, kept_and_lost
from tdbook.corpus import origins, token_files, writer
from tdbook.corpus.text import Document
from tdlib import data, hard_set

T = 64


def folder_of(folder: Path, ids, tokenizer=None, context: int = T, vocab_size: int = 700) -> Path:
    """A folder of tokens from ids, as one made elsewhere."""
    folder.mkdir()
    for split, part in (("train", np.asarray(ids)), ("val", np.asarray(ids)[: 2 * context + 1])):
        part.astype("<u4").tofile(folder / f"{split}.bin")
    meta = {"vocab_size": vocab_size, "block_size": context, "dtype": "uint32"}
    (folder / "meta.json").write_text(json.dumps(meta))
    if tokenizer:
        (folder / tokenizer.name).write_bytes(tokenizer.path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def clean(tokenizer) -> np.ndarray:
    """A thousand windows of written text, whole windows."""
    documents = writer.write(260_000, 11)
    lines = [line for document in documents for line in document.lines]
    ids = np.concatenate([[*line, tokenizer.eos] for line in tokenizer.encode(lines)])
    return ids[1 : 1000 * T + 1].reshape(-1, T)


def junk(tokenizer, kind: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Windows of one kind of junk, (count, T)."""
    if kind == 1:  # as where a document was never segmented: each letter alone
        vocabulary = tokenizer.vocabulary()
        letters = [i for i, p in enumerate(vocabulary) if len(p) == 1 and "అ" <= p <= "హ"]
        return rng.choice(letters, (count, T))
    documents = writer.write(40_000, 12)
    lines = [line for document in documents for line in document.lines]
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
    """Twelve windows of each kind of junk among the clean ones; tokens, and the kind of each."""
    rng = np.random.default_rng(5)
    parts, kinds = [clean], [np.zeros(len(clean), int)]
    for kind in features.JUNK:
        parts.append(junk(tokenizer, kind, 12, rng))
        kinds.append(np.full(12, kind))
    order = rng.permutation(sum(map(len, kinds)))
    ids = np.concatenate([[tokenizer.eos], np.concatenate(parts)[order].ravel()])
    folder = folder_of(tmp_path_factory.mktemp("spoilt") / "tokens", ids, tokenizer)
    return token_files.open_tokens(folder), np.concatenate(kinds)[order]


def test_each_kind_of_junk_is_found_and_clean_text_is_not(spoilt):
    tokens, kind_N = spoilt
    junk_N = features.of(tokens).junk_N
    assert junk_N.dtype == np.uint8 and set(features.JUNK) == {1, 2, 4, 8}
    for kind in features.JUNK:
        flagged_N = (junk_N & kind) > 0
        assert flagged_N[kind_N == kind].all(), features.JUNK[kind]
        assert not flagged_N[kind_N == 0].any(), features.JUNK[kind]


def test_the_switch_leaves_junk_out_of_the_hard_set_and_rare_text_in(spoilt):
    tokens, kind_N = spoilt
    rng = np.random.default_rng(1)
    rare_N = (kind_N == 0) & (rng.random(len(kind_N)) < 0.02)
    difficulty_N = rng.normal(0, 0.1, len(kind_N)) + rare_N + 3.0 * (kind_N > 0)  # junk looks hard
    left_out_N = features.of(tokens).junk_N > 0
    with_junk = hard_set.select(difficulty_N, share=0.1)
    without = hard_set.select(difficulty_N, share=0.1, left_out_N=left_out_N)
    assert (kind_N[with_junk.windows_K] > 0).sum() == 48
    assert not kind_N[without.windows_K].any()
    assert rare_N[without.windows_K].sum() == rare_N.sum() > 10


def test_a_refrain_is_no_template_and_a_loop_is(clean, tokenizer, tmp_path):
    """Verse: a line of a quarter of the window comes back twice in each of two windows."""
    ids = clean[:300].copy()
    for i in (100, 101):
        ids[i, :16] = ids[i, 24:40] = ids[100, :16]
    ids[200] = np.tile(ids[200, :9], 8)[:T]  # one phrase, seven times
    tokens = token_files.open_tokens(folder_of(tmp_path / "t", [3, *ids.ravel()], tokenizer))
    flagged_N = features.of(tokens).junk_N == 8
    assert np.flatnonzero(flagged_N).tolist() == [200]


def test_where_ngrams_are_sampled_templates_are_still_told_apart(spoilt, monkeypatch):
    tokens, kind_N = spoilt
    monkeypatch.setattr(features, "SLOTS", 2**15)  # for 60,000 n-grams: a quarter is looked at
    template_N = (features.of(tokens).junk_N & 8) > 0
    assert template_N[kind_N == 8].mean() > 0.9 and template_N[kind_N == 0].mean() < 0.01


def test_shares_and_length_are_those_counted_by_hand(spoilt):
    tokens, _ = spoilt
    found = features.of(tokens)
    ids_NT = tokens.train.batch(range(len(tokens.train)))[1].numpy()
    count = Counter(ids_NT.ravel().tolist())
    seen = list(count.values())  # no longer rare: the count with which they would make up over 5 %
    limit = min(c for c in seen if sum(x for x in seen if x <= c) > 0.05 * ids_NT.size)
    for i in (0, 17, 500, 1000):
        ids = ids_NT[i].tolist()
        rare = np.mean([count[j] < limit for j in ids])
        assert found.rare_N[i] == pytest.approx(rare, abs=1e-3)
        pieces = [tokens.tokenizer.vocabulary()[j] for j in ids]
        foreign = [
            any(c.isalnum() for c in p)
            and not any("\u0c00" <= c <= "\u0c7f" for c in p)
            and p != "<eos>"
            for p in pieces
        ]
        assert found.foreign_N[i] == pytest.approx(np.mean(foreign), abs=1e-3)
        assert abs(int(found.characters_N[i]) - len(tokens.tokenizer.decode(ids))) <= 2  # its ends


# tokenizers that cut characters


def over_bytes(lines: list[str]) -> tokenizers.Tokenizer:
    """As GPT-2's and Llama 3's: next to no letter of Telugu is a piece."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        ["the king went to the river", *lines[:40]],
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<eos>"],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return made


def few_letters(lines: list[str]) -> tokenizers.Tokenizer:
    """As Llama 2's: most letters of Telugu are three bytes."""
    names = ["<unk>", "<s>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = [*names, "▁", "అ", "మ", *"abcdefghijklmnopqrstuvwxyz"]
    made = tokenizers.Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True
        )
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return made


def in_tokens(make, folder: Path, lines: list[str]) -> data.Tokens:
    folder.mkdir()
    make(lines).save(str(folder / "tokenizer.json"))
    one = tdbook.corpus.tokenizer_files.open(folder / "tokenizer.json")
    parts = {"train": lines[20:], "val": lines[:20]}
    documents = {k: [Document(tuple(part), "a")] for k, part in parts.items()}
    token_files.write_tokens(folder / "t", documents, one, T)
    return token_files.open_tokens(folder / "t")


@pytest.mark.parametrize("make", [over_bytes, few_letters])
def test_shares_and_length_are_those_of_the_text_where_pieces_cut_characters(make, tmp_path):
    documents = writer.write(60_000, 3)
    lines = [re.sub("[0-9a-zA-Z]+", "", line) for d in documents for line in d.lines]
    lines[100:160] = ["the king went to the river and the sea"] * 60
    tokens = in_tokens(make, tmp_path / "x", lines)
    found = features.of(tokens)
    english_N, junk = np.zeros(len(tokens.train), bool), 0
    for i in range(len(tokens.train)):
        ids = tokens.train.ids[i * T + 1 : (i + 1) * T + 1]
        shown = "".join(tokens.tokenizer.shown_V[j] for j in ids)
        shown = re.sub("<0x(..)>", lambda x: chr(int(x[1], 16)), shown.replace("<eos>", "¶"))
        parts = [
            c.encode("latin-1" if "\x80" <= c <= "\xff" and c != "¶" else "utf8") for c in shown
        ]
        text = b"".join(parts).decode(errors="ignore")
        english_N[i] = bool(re.search("[a-z]", text))
        assert abs(int(found.characters_N[i]) - len(text)) <= 2  # its ends
        if not english_N[i]:
            assert found.foreign_N[i] == 0 and not found.junk_N[i] & 1
        junk += not english_N[i] and bool(found.junk_N[i] & 8)
    assert found.foreign_N[english_N].max() > 0.7 and junk < 0.01 * len(english_N)
    assert (found.junk_N[english_N] & 8).any()  # the same line sixty times
    names, script_MT = kept_and_lost.cuts(tokens, np.arange(len(tokens.val)))["script"]
    shown = tokens.tokenizer.decode(tokens.val.ids)
    assert names[0] == "Telugu" and not (script_MT == 1).any()
    others = sum(c in "\n .,;:!?-—()“”‘’\"'" for c in shown) / len(tokens.val.ids)
    assert (script_MT == 3).mean() <= others + 0.02


def test_a_few_bytes_leave_the_numbers_to_the_pieces(clean, tokenizer, tmp_path):
    """Of finished runs: in a vocabulary of its own text rare characters alone are bytes."""
    ids = clean[:100].copy()
    ids[7, 5:9] = tokenizer.encode(["😀"])[0][-4:]
    tokens = token_files.open_tokens(folder_of(tmp_path / "t", [3, *ids.ravel()], tokenizer))
    assert features._in_parts(tokens) == (False, features.GRAM)
    before = features.of(tokens)
    assert "by characters" not in features._key(tokens)
    clean_N = np.arange(100) != 7  # where every piece is whole both ways say the same
    said_N = features._of_text(tokens, 0, ids)["foreign"].mean(1)
    np.testing.assert_allclose(before.foreign_N[clean_N], said_N[clean_N], atol=1e-3)


def test_rare_pieces_put_into_a_window_are_found(clean, tokenizer, tmp_path):
    seen = np.bincount(clean.ravel(), minlength=700)
    rarest = np.flatnonzero(seen == 0)[:6]
    ids = clean[:400].copy()
    ids[123, 10:40] = np.resize(rarest, 30)
    tokens = token_files.open_tokens(folder_of(tmp_path / "t", [3, *ids.ravel()], tokenizer))
    found = features.of(tokens)
    assert found.rare_N.argmax() == 123 and found.rare_N[123] >= 30 / T
    names, group_N = features.cuts(tokens, found)["rare tokens"]
    assert names[group_N[123]] == "20 % and more" and np.mean(group_N == 4) < 0.1


def test_token_files_without_a_tokenizer_get_what_ids_can_say(spoilt, tmp_path):
    tokens, _ = spoilt
    folder = folder_of(tmp_path / "t", np.asarray(tokens.train.ids))
    bare = token_files.open_tokens(folder)
    assert bare.tokenizer is None
    found, known = features.of(bare), features.of(tokens)
    for kind in (2, 8):
        np.testing.assert_array_equal(found.junk_N & kind, known.junk_N & kind)
    np.testing.assert_array_equal(found.rare_N, known.rare_N)
    assert not (found.junk_N & 5).any() and np.isnan(found.foreign_N).all()
    assert not found.characters_N.any()
    cuts = features.cuts(bare, found)
    assert set(cuts) == {"source", "place in the corpus", "rare tokens"}
    assert cuts["source"][0] == ["unknown"]


def test_asking_again_is_free_until_the_tokens_change(spoilt, tmp_path, monkeypatch):
    tokens, _ = spoilt
    first = features.of(tokens, tmp_path / "scores")
    looked = []
    looking = features._look
    monkeypatch.setattr(features, "_look", lambda *x: looked.append(1) or looking(*x))
    again = features.of(tokens, tmp_path / "scores")
    assert not looked
    for name in ("junk_N", "foreign_N", "rare_N", "characters_N"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    wider = replace(tokens, train=replace(tokens.train, context=2 * T))
    assert len(features.of(wider, tmp_path / "scores").junk_N) == len(wider.train) and looked


def test_cuts_are_small_numbers_that_name_each_windows_group(spoilt):
    tokens, _ = spoilt
    found, n = features.of(tokens), len(tokens.train)
    cuts = features.cuts(tokens, found)
    assert set(cuts) == {"source", "place in the corpus", "script", "rare tokens"}
    for names, group_N in cuts.values():
        assert group_N.shape == (n,) and group_N.dtype == np.uint8 and group_N.max() < len(names)
    names, place_N = cuts["place in the corpus"]
    assert names[0] == "0–5 %" and names[-1] == "95–100 %"
    assert np.bincount(place_N).tolist() == [
        sum(20 * i // n == k for i in range(n)) for k in range(20)
    ]
    names, script_N = cuts["script"]
    assert names == ["under 1 %", "1–5 %", "5–20 %", "20–50 %", "50 % and more"]
    share_N = found.foreign_N.astype(float)
    assert script_N.tolist() == [sum(x >= step for step in (0.01, 0.05, 0.2, 0.5)) for x in share_N]


# sources.tsv


def named(tmp_path, clean, lines: str, documents: bool = False) -> data.Tokens:
    folder = folder_of(tmp_path / "t", [3, *clean[:100].ravel()])
    (folder / "sources.tsv").write_text(lines, encoding="utf8")
    if documents:
        rows = "".join(f"train\t{i * 500}\t500\tfile\n" for i in range(13))
        (folder / "documents.tsv").write_text(
            f"split\tstart\ttokens\tsource\n{rows}val\t0\t9\tfile\n"
        )
    return token_files.open_tokens(folder)


@pytest.mark.parametrize("heading", ["", "first token\tname\n"])
def test_sources_are_those_of_sources_tsv_and_no_block_is_of_two(tmp_path, clean, heading):
    tokens = named(tmp_path, clean, f"{heading}0\tనవల\n1000\tnews\n4000\twiki\n")
    names, group_N = features.cuts(tokens, features.of(tokens))["source"]
    middle_N = np.arange(100) * T + T // 2
    wanted = ["నవల" if m < 1000 else "news" if m < 4000 else "wiki" for m in middle_N]
    assert [names[g] for g in group_N] == wanted
    document_N, sources = origins.of(tokens, "train")
    assert [sources[d] for d in document_N] == wanted
    assert np.bincount(document_N).max() <= 16 and (np.diff(document_N) >= 0).all()
    assert len(sources) == document_N[-1] + 1 == len(np.unique(document_N))
    assert origins.of(tokens, "val")[1] == ["unknown"]  # they name those of train.bin


def test_documents_keep_their_places_and_get_the_sources_of_sources_tsv(tmp_path, clean):
    tokens = named(tmp_path, clean, "0\ta\n1700\tb\n", documents=True)
    token_files.link_tokens(tokens.folder, tmp_path / "run/tokens")  # comes along
    for folder in (tokens.folder, tmp_path / "run/tokens"):
        document_N, sources = origins.of(token_files.open_tokens(folder), "train")
        assert sources == ["a"] * 4 + ["b"] * 9  # document 3 begins at 1,500
        assert document_N.tolist() == [(i * T + T // 2) // 500 for i in range(100)]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("0 a\n", r"\['0 a'\] is no row of it"),
        ("0\ta\nx\tb\n", "'x', 'b'. is no row of it"),
        ("0\ta\n100\t\n", "is no row of it, it must be start, name"),
        ("5\ta\n", "a begins at 5, it must be 0"),
        ("", "is no row of it"),
        ("0\ta\n200\tb\n100\tc\n", "c begins at 100, it must be after 200 and before 6,401"),
        ("0\ta\n6401\tb\n", "b begins at 6,401, it must be after 0 and before 6,401"),
    ],
)
def test_a_wrong_sources_tsv_is_said_in_one_line(tmp_path, clean, lines, said):
    with pytest.raises(ValueError, match=said) as error:
        named(tmp_path, clean, lines)
    assert "sources.tsv" in str(error.value) and len(str(error.value).splitlines()) == 1


# size


def test_memory_does_not_grow_with_the_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "SLOTS", 2**18)
    monkeypatch.setattr(features, "PIECE", 2**16)
    peaks = []
    for name, count in (("some", 2**18), ("many", 2**20)):
        ids = np.random.default_rng(0).integers(4, 700, count, dtype=np.uint32)
        tokens = token_files.open_tokens(folder_of(tmp_path / name, ids, context=2048))
        tracemalloc.start()  # what numpy allocates; the tokens themselves are mapped
        features.of(tokens)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 2**20, peaks  # and what is kept of a window is 9 bytes
