"""Text in: every kind of file gives the same documents, and near-duplicates share a side."""

import bz2
import gzip
import json
import lzma
import os
import re
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from scipy.sparse.csgraph import connected_components

from tdlib import telugu, text
from tdlib.text import Document

SHARED = Path(os.environ.get("SHARED") or Path(__file__).parents[2] / "shared") / "data/telugu"
PACK = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
A, B, C = "అమ్మ ఇంట్లో ఉంది.", "నాన్న ఊరికి వెళ్ళాడు.", "వాన కురుస్తోంది."
BODY = "".join(f"{A}\n{B}\n\n{C} {i}\n\n" for i in range(400)).encode()


@pytest.fixture(scope="module")
def shared():
    """The documents of a real text, read once; a missing one fails under CI."""
    if not SHARED.is_dir() and os.environ.get("CI") != "true":
        pytest.skip(f"no real text in {SHARED}: set SHARED to the folder that holds data/telugu")
    known = {}
    return lambda name: known.setdefault(name, text.read([SHARED / f"{name}.txt.xz"]))


def table(content: dict) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(content), sink)
    return sink.getvalue().to_pybytes()


def in_kind(documents: list[Document], kind: str) -> bytes:
    texts = ["\n".join(d.lines) for d in documents]
    if kind == ".parquet":
        return table({"text": texts, "url": ["x"] * len(texts)})
    if kind == ".jsonl":
        return "".join(json.dumps({"id": 1, "text": t}) + "\n" for t in texts).encode()
    return "\n\n".join(texts).encode()


@pytest.mark.parametrize("kind", text.KINDS)
def test_every_kind_and_every_packing_gives_the_same_documents(shared, tmp_path, kind):
    documents = shared("wikipedia_paragraphs")
    for ending, pack in PACK.items():
        path = tmp_path / f"wikipedia_paragraphs{kind}{ending}"
        path.write_bytes(pack(in_kind(documents, kind)))
        assert text.read([path]) == documents, path.name


def test_a_text_is_its_file_cut_at_blank_lines(shared):
    raw = lzma.open(SHARED / "wikipedia_articles.txt.xz").read().decode()
    documents = shared("wikipedia_articles")
    assert len(documents) == 299 == len(raw.strip().split("\n\n"))
    joined = "\n\n".join("\n".join(d.lines) for d in documents)
    assert joined == re.sub(r"[^\S\n]+$", "", raw, flags=re.M).strip()
    assert {d.source for d in documents} == {"wikipedia_articles"}


def test_only_bom_line_ends_trailing_blanks_and_empty_lines_are_lost(tmp_path):
    inner = "  క\u200cష  é e\u0301\u2028ట"  # leading blanks, joiners, both é, a line separator
    (tmp_path / "a.txt").write_bytes(f"\ufeff{inner} \t\r\n{B}\r\n \t\r\n\r\n{C}".encode())
    content = json.dumps({"text": f"{inner} \t\r\n\n{B}"}, ensure_ascii=False)
    (tmp_path / "b.jsonl").write_text(f"\ufeff{content}\n\n", encoding="utf-8", newline="")
    assert text.read([tmp_path / "a.txt"]) == [Document((inner, B), "a"), Document((C,), "a")]
    assert text.read([str(tmp_path / "b.jsonl")]) == [Document((inner, B), "b")]


def test_a_zst_of_several_frames_is_read_to_its_end(tmp_path):
    path = tmp_path / "a.txt.zst"
    path.write_bytes(PACK[".zst"](A.encode() + b"\n\n") + PACK[".zst"](B.encode()))
    assert [d.lines for d in text.read([path])] == [(A,), (B,)]


@pytest.mark.parametrize(
    "columns",
    [
        {"body": [A, None, B], "n": [1, 2, 3]},
        {"text": [A, "", B], "title": ["x", "y", "z"]},
        {"text": pyarrow.array([A, None, B], pyarrow.large_string())},
        {"text": pyarrow.array([A, None, B]).dictionary_encode(), "title": ["x", "y", "z"]},
    ],
)
def test_the_text_column_of_a_parquet_is_found(tmp_path, columns):
    (tmp_path / "a.parquet").write_bytes(table(columns))
    assert [d.lines for d in text.read([tmp_path / "a.parquet"])] == [(A,), (B,)]


def test_a_folder_gives_its_texts_in_order_and_names_what_it_leaves(tmp_path):
    for name in ("2/b.txt", "1/b.jsonl.gz", "1/a.v2.TXT", ".ipynb_checkpoints/a.txt", "README.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        content = json.dumps({"text": name + A}) if "jsonl" in name else name + A
        path.write_bytes(gzip.compress(content.encode()) if "gz" in name else content.encode())
    with pytest.warns(UserWarning, match=r"1 files not read \(README.md\)"):
        documents = text.read([tmp_path])
    assert [d.source for d in documents] == ["a.v2", "1/b", "2/b"]
    assert [d.lines[0].removesuffix(A) for d in documents] == [
        "1/a.v2.TXT", "1/b.jsonl.gz", "2/b.txt",
    ]  # fmt: skip
    once = text.read([tmp_path / "2", tmp_path / "2" / "b.txt"])
    assert [d.source for d in once] == ["b"]  # named twice, read once


def test_one_telugu_letter_anywhere_is_enough(tmp_path):
    (tmp_path / "a.txt").write_text("once\n\nupon\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("అ\n", encoding="utf-8")
    assert len(text.read([tmp_path])) == 3


def test_sections_keep_every_line_and_are_about_as_long_as_asked(shared):
    documents = shared("wikipedia_articles")
    sections = text.section(documents, 2_000)
    assert [x for d in sections for x in d.lines] == [x for d in documents for x in d.lines]
    longest = max(len(line) for d in documents for line in d.lines)
    size_N = np.array([sum(map(len, d.lines)) for d in sections])
    assert size_N.max() <= 2_000 + longest
    assert len(sections) >= size_N.sum() / (2_000 + longest)
    short = [d for d in documents if sum(map(len, d.lines)) <= 2_000]
    assert set(short) <= set(sections)  # none is cut that need not be


def test_a_works_sections_are_of_like_length():
    work = Document(tuple(["మాట " * 10] * 101), "s")  # 101 lines of 40 characters
    sections = text.section([work], 1_000)
    assert [len(d.lines) for d in sections] == [20, 20, 21, 20, 20]  # no last one of a line
    assert {d.source for d in sections} == {"s"}


def stubs(documents: list[Document]) -> list[int]:
    """Wikipedia's village stubs: the articles that name a village's location code of the census."""
    return [i for i, d in enumerate(documents) if "లొకేషన్ కోడ్" in " ".join(d.lines)]


def test_the_village_stubs_are_one_group_and_nothing_else_is_in_it(shared):
    documents = shared("wikipedia_articles") + shared("narrative_prose")
    group_N = text.near_duplicates(documents)
    stub_K = stubs(documents)
    assert len(stub_K) == 108  # data/README.md counts them
    assert set(np.flatnonzero(group_N == group_N[stub_K[0]])) == set(stub_K)
    assert np.bincount(group_N).max() == 108


def test_sections_of_prose_and_written_texts_stay_apart(shared):
    for documents in (shared("narrative_prose"), telugu.write(100_000, 1)[0]):
        assert len(set(text.near_duplicates(documents))) == len(documents) > 30


def word_sequences(document: Document) -> set[tuple[str, ...]]:
    words = re.sub(r"\d+(?:[.,]\d+)*", "0", " ".join(document.lines)).split()
    return {tuple(words[i : i + 4]) for i in range(max(1, len(words) - 3))}


def test_groups_are_what_comparing_every_pair_gives(shared):
    documents = shared("wikipedia_articles")[:180]
    sets = [word_sequences(document) for document in documents]
    linked_NN = np.zeros((len(sets), len(sets)))
    for i, a in enumerate(sets):
        for j, b in enumerate(sets[:i]):
            common = len(a & b)
            enough = common >= 10 or common >= min(len(a), len(b)) / 2
            linked_NN[i, j] = enough and common >= 0.05 * len(a | b)
    exact_N = connected_components(linked_NN, directed=False)[1]
    group_N = text.near_duplicates(documents)
    assert len(set(exact_N)) == len(set(group_N)) == len(set(zip(exact_N, group_N, strict=True)))


def test_copies_meet_however_short_and_a_refrain_links_no_poems():
    def poem(i: int) -> str:
        return " ".join(chr(0x0C15 + i) + chr(0x0C15 + j) for j in range(12))

    refrain = "విశ్వదాభిరామ వినుర వేమ అనగ వినుము"
    lines = [f"{poem(i)} {refrain}" for i in range(6)] + [poem(0) + " " + refrain, "అ", "ఆ", "అ"]
    lines += ["మార్చి 7 సంవత్సరములో 66వ రోజు", "మార్చి 19 సంవత్సరములో 1,078వ రోజు"]
    group_N = text.near_duplicates([Document((line,), "s") for line in lines])
    same = {(i, j) for j in range(12) for i in range(j) if group_N[i] == group_N[j]}
    assert same == {(0, 6), (7, 9), (10, 11)}


def test_a_split_keeps_groups_whole_and_meets_its_shares(shared):
    documents = text.section(shared("wikipedia_articles") + shared("narrative_prose"), 5_000)
    group_N = text.near_duplicates(documents)
    size_N = np.array([sum(map(len, d.lines)) for d in documents])
    for seed in range(8):
        sides = text.split(documents, group_N, val_share=0.1, confirm_share=0.05, seed=seed)
        assert {sides[i] for i in stubs(documents)} == {"train"}  # 28 % of the text, over twice 0.1
        for group in set(group_N):
            assert len({sides[i] for i in np.flatnonzero(group_N == group)}) == 1
        for side, share in (("val", 0.1), ("confirm", 0.05)):
            taken_N = size_N[np.array(sides) == side]
            # The last group taken was more than half wanted, or small ones would have filled up.
            assert abs(taken_N.sum() - share * size_N.sum()) <= taken_N.max() / 2


def test_the_largest_group_is_always_trained_on(shared):
    documents = shared("wikipedia_articles")
    group_N = text.near_duplicates(documents)
    for seed in range(20):  # a third of the text, it would fit
        sides = text.split(documents, group_N, val_share=0.4, seed=seed)
        assert {sides[i] for i in stubs(documents)} == {"train"}


def test_a_split_follows_its_seed_and_val_does_not_depend_on_confirm(shared):
    documents = shared("narrative_prose")
    group_N = np.arange(len(documents))

    def val(seed: int, confirm: float = 0.0) -> list[bool]:
        sides = text.split(documents, group_N, val_share=0.1, confirm_share=confirm, seed=seed)
        return [side == "val" for side in sides]

    assert val(1) == val(1) == val(1, 0.1)
    assert val(1) != val(2)


def test_two_documents_are_enough_and_training_keeps_the_larger():
    documents = [Document(("అ" * size,), "s") for size in (100, 900)]
    for seed in range(5):
        assert text.split(documents, np.arange(2), val_share=0.1, seed=seed) == ["val", "train"]
