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

from tdbook.book import students
from tdbook.corpus import text, writer
from tdbook.corpus.text import Document
from tdbook.runs import hashes, running
from tdbook.runs.running import start

SHARED = Path(os.environ.get("SHARED") or Path(__file__).parents[4] / "shared") / "data/telugu"
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
    documents = shared("wikipedia_paragraphs")[:300]
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
    names = [d.lines[0].removesuffix(A) for d in documents]
    assert names == ["1/a.v2.TXT", "1/b.jsonl.gz", "2/b.txt"]
    once = text.read([tmp_path / "2", tmp_path / "2" / "b.txt"])
    assert [d.source for d in once] == ["b"]  # named twice, read once


def lines_of(folder: Path, account: text.Account | None = None) -> list[str]:
    return [line for d in text.read([folder], account) for line in d.lines]


def test_a_linked_folder_or_file_is_read_once_and_loops_end(tmp_path):
    for name, line in {"given/a.txt": A, "far/deep/b.txt": B, "far/c.txt": C}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(line, encoding="utf-8")
    given, account = tmp_path / "given", text.Account()
    (given / "loop").symlink_to(".")
    (given / "link").symlink_to("../far")
    (given / "same").symlink_to("../far/deep")
    (tmp_path / "far/deep/back").symlink_to("../../given")
    (tmp_path / "far/0f3a").symlink_to("c.txt")  # as in a hub's cache
    os.link(tmp_path / "far/c.txt", given / "d.txt")
    assert lines_of(given, account) == [A, C, B] and not account.told and account.files == 3
    before = hashes.fingerprint(given)["sha256"]
    (tmp_path / "far/deep/b.txt").write_text(A, encoding="utf-8")
    assert hashes.fingerprint(given)["sha256"] != before  # so that its run is made again
    (given / "up").symlink_to("..")
    with pytest.warns(UserWarning, match=r"1 files not read \(up\)"):
        assert lines_of(given) == [A, C, A]


def test_an_account_is_told_of_all_that_is_not_read(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": t}) + "\n" for t in (A, None, " \n", B + "\ufffd"))
    )
    (tmp_path / "b.parquet").write_bytes(table({"text": [C, None, "", None]}))
    (tmp_path / "c.md").write_text(A * 2, encoding="utf-8")
    (tmp_path / ".d.txt").write_text(A, encoding="utf-8")
    (tmp_path / ".git").write_bytes(bytes(99))  # a tool's, and no text
    os.mkfifo(tmp_path / "e.txt")
    account = text.Account()
    with pytest.warns(UserWarning, match=r"2 files not read \(c.md, e.txt\).*1 hidden .*\(.d.txt"):
        assert lines_of(tmp_path, account) == [A, B + "\ufffd", C]
    size = len(A + B + C) + 1
    assert account.characters == size and account.there == size + len((A * 3).encode()) // 3
    assert (account.files, account.documents, account.empty_rows) == (2, 3, 5)
    assert f"2 files, 3 documents, {size} of {account.there} characters; 5 rows without" in str(
        account
    )
    share = (account.there - size) / account.there
    assert account.missing().startswith(
        f" Missing of the text given: 3 files not read ({share:.2%}), 5 of 8 rows without text "
        "(62.50%), 1 characters damaged before (U+FFFD) ("
    )


def test_what_is_missing_is_for_the_finding_above_a_thousandth():
    for there, said in ((100_000, ""), (100_101, "1 files not read (0.10%)")):
        account = text.Account(1, 5, 100_000, there, told={"other": ["secret.md"]})
        assert said in account.missing() and bool(said) == bool(account.missing())
        assert "secret" not in account.missing()  # a finding may be published
    assert "1 of 900 rows" in text.Account(1, 899, 9, 9, empty_rows=1).missing()
    assert not text.Account(1, 1_000, 9, 9, empty_rows=1).missing()
    assert not text.Account().missing()  # nothing was read: the book's own text, or tokens


def test_the_account_of_a_text_is_in_the_summary_and_in_the_record(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "_latest", None)
    documents = writer.write(30_000, 5)
    body = in_kind(documents, ".txt").decode()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text(body, encoding="utf-8")
    (tmp_path / "texts/b.rst").write_text(body[:999], encoding="utf-8")
    small = {"profile": "smoke", "shape": "teacher-smoke", "vocab_size": 500, "context": 32}
    given = small | {"text": str(tmp_path / "texts"), "out": str(tmp_path / "out")}
    this = start("00_teacher", given)
    with pytest.warns(UserWarning, match=r"1 files not read \(b.rst\)"):
        summary, missing = students.text_into_tokens(this, None)
    kept = this._remembered["account"]
    assert kept["characters"] == len(body.replace("\n", "")) < kept["there"]
    assert f"{kept['characters']:,} of {kept['there']:,} characters; 1 files not" in summary
    assert missing == kept["missing"] != "" and missing.count("b.rst") == 0
    this.detach()
    notebook = Path(students.__file__).parents[2] / "notebooks/00_teacher.ipynb"
    assert "bits per byte.{missing}" in notebook.read_text("utf-8")


W = [f"మాట{i} {A}" for i in range(60)]
SHAPES = {  # what lies between lines, and every fifth line → documents of these 60, what is told
    "lines": ("\n", "\n\n", 12, None),
    "lines, sloppy": ("\n", "\n\n\n", 12, None),
    "paragraphs": ("\n\n", "\n\n\n", 12, "joined"),
    "paragraphs far apart": ("\n\n\n", "\n\n\n\n\n", 12, "joined"),
    "paragraphs, blank lines with blanks": ("\n \n", "\n\t\n \n", 12, "joined"),
    "paragraphs, CR CR LF": ("\r\r\n", "\r\r\n\r\r\n", 12, "joined"),
    "paragraphs with form feeds": ("\n\n", "\n\n\f\n\n", 12, "joined"),
    "no larger gap": ("\n\n", "\n\n", 60, "single"),
    "CR CR LF without one": ("\r\r\n", "\r\r\n", 60, "single"),
    "other separators": ("\u2028", "\u0085", 1, None),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_documents_are_told_apart_by_the_shape_of_the_file(tmp_path, shape):
    between, apart, count, told = SHAPES[shape]
    works = [between.join(W[i : i + 5]) for i in range(0, 60, 5)]
    (tmp_path / "a.txt").write_bytes(apart.join(works).encode())
    account = text.Account()
    documents = text.read([tmp_path], account)
    assert len(documents) == account.documents == count and list(account.told) == [told] * bool(
        told
    )
    assert [w for d in documents for line in d.lines for w in re.split("[\u2028\x85]", line)] == W
    if count == 12:
        assert [list(d.lines) for d in documents] == [W[i : i + 5] for i in range(0, 60, 5)]


def test_wrapped_paragraphs_under_larger_gaps_get_a_hint_and_a_stray_gap_changes_nothing(tmp_path):
    wrapped = "\n\n".join("\n".join(W[i : i + 3]) for i in range(0, 30, 3))
    (tmp_path / "a.txt").write_text(f"{wrapped}\n\n\n\n{wrapped}", encoding="utf-8")
    with pytest.warns(UserWarning, match="gaps of several sizes"):
        assert len(text.read([tmp_path])) == 20
    stray = "\n\n".join([*W * 10, "", *W])
    (tmp_path / "a.txt").write_text(stray, encoding="utf-8")
    with pytest.warns(UserWarning, match="each document is one line"):
        assert len(text.read([tmp_path])) == 660


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet"])
@pytest.mark.parametrize("ending", [".gz", ".zst", ""])
def test_an_archive_is_read_no_further_than_its_bound(tmp_path, monkeypatch, kind, ending):
    monkeypatch.setattr(text, "SMALL", 1_000_000)
    path = tmp_path / f"a{kind}{ending}"
    one = A + "x" * 9_480
    rows = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 99, "int32"), [one])
    path.write_bytes(PACK[ending](in_kind([Document((one,), "s")] * 99, kind)))
    if kind == ".parquet":
        path.write_bytes(PACK[ending](table({"text": rows})))
    assert len(text.read([path])) == 99
    monkeypatch.setattr(text, "SMALL", 900_000)
    if kind == ".parquet" or ending:
        with pytest.raises(ValueError, match="unpacks to more than 900,000 characters"):
            text.read([path])
    else:
        assert len(text.read([path])) == 99  # it is as large as it looks


def test_a_line_beyond_its_bound_is_refused_by_number(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "LONGEST", 5_000)
    for kind in (".txt", ".jsonl"):
        path = tmp_path / f"a{kind}"
        path.write_bytes(in_kind([Document((A,), "s"), Document(("క" * 5_001,), "s")], kind))
        with pytest.raises(ValueError, match=rf"a{kind}: line \d has more than 5,000 characters"):
            text.read([path])


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
    for documents in (shared("narrative_prose"), writer.write(100_000, 1)):
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
    for seed in range(4):
        sides = text.split(documents, group_N, val_share=0.1, confirm_share=0.05, seed=seed)
        assert {sides[i] for i in stubs(documents)} == {"train"}  # 28 % of the text, over twice 0.1
        for group in set(group_N):
            assert len({sides[i] for i in np.flatnonzero(group_N == group)}) == 1
        for side, share in (("val", 0.1), ("confirm", 0.05)):
            taken_N = size_N[np.array(sides) == side]
            # The last group taken was more than half wanted, or small ones would have filled up.
            assert abs(taken_N.sum() - share * size_N.sum()) <= taken_N.max() / 2
        # The largest group is always trained on, also where it would fit.
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
