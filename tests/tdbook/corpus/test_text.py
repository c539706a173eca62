"""Text in: every kind of file gives the same documents, and near-duplicates share a side."""

import functools
import json
import lzma
import os
import re
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from scipy.sparse.csgraph import connected_components

from tdbook.book import students
from tdbook.corpus import prepare, text, token_files, writer
from tdbook.corpus.text import Document
from tdbook.runs import hashes, parameters, running
from tdbook.runs.running import start
from tests import spoil
from tests.helpers import cases, refused
from tests.spoil import write as put

PACK = {"": bytes, ".xz": lzma.compress} | spoil.PACK
A, B, C = "అమ్మ ఇంట్లో ఉంది.", "నాన్న ఊరికి వెళ్ళాడు.", "వాన కురుస్తోంది."


@pytest.fixture(scope="module")
def real(shared):
    """The documents of a real text, read once."""
    return functools.cache(lambda name: text.read([shared / f"data/telugu/{name}.txt.xz"]))


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


def lines_of(folder: Path, account: text.Account | None = None) -> list[str]:
    return [line for d in text.read([folder], account) for line in d.lines]


@pytest.mark.parametrize("kind", text.KINDS)
def test_every_kind_and_every_packing_gives_the_same_documents(real, tmp_path, kind):
    documents = real("wikipedia_paragraphs")[:300]
    for ending, pack in PACK.items():
        path = tmp_path / f"wikipedia_paragraphs{kind}{ending}"
        path.write_bytes(pack(in_kind(documents, kind)))
        assert text.read([path]) == documents, path.name


def test_only_bom_line_ends_trailing_blanks_and_empty_lines_are_lost(tmp_path):
    inner = "  క\u200cష  é e\u0301\u2028ట"  # leading blanks, joiners, both é, a line separator
    content = json.dumps({"text": f"{inner} \t\r\n\n{B}"}, ensure_ascii=False)
    two = PACK[".zst"](f"{A}\n\n".encode()) * 2
    put(tmp_path, {"a.txt": f"\ufeff{inner} \t\r\n{B}\r\n \t\r\n\r\n{C}"})
    put(tmp_path, {"b.jsonl": f"\ufeff{content}\n\n", "c.txt.zst": two})
    assert text.read([tmp_path / "a.txt"]) == [Document((inner, B), "a"), Document((C,), "a")]
    assert text.read([str(tmp_path / "b.jsonl")]) == [Document((inner, B), "b")]
    assert lines_of(tmp_path / "c.txt.zst") == [A, A]  # of both frames
    put(tmp_path / "few", {"a.txt": "once\n\nupon\n", "b.txt": "అ\n"})
    assert lines_of(tmp_path / "few") == ["once", "upon", "అ"]  # one Telugu letter is enough


def test_the_text_column_of_a_parquet_may_be_of_any_string_type(tmp_path):
    texts = pyarrow.array([A, None, B, ""])
    for column in (texts, texts.cast(pyarrow.large_string()), texts.dictionary_encode()):
        content = table({"text": column, "title": ["x", "y", "z", "z"]})
        assert lines_of(put(tmp_path, {"a.parquet": content})) == [A, B]


def test_a_folder_gives_its_texts_in_order_and_the_account_names_what_it_leaves(tmp_path):
    rows = "".join(json.dumps({"text": t}) + "\n" for t in (B, None, " \n"))
    put(tmp_path, {"2/b.txt": C, "1/b.jsonl.gz": PACK[".gz"](rows.encode()), "1/a.v2.TXT": A})
    put(tmp_path, {"README.md": A * 3, ".d.txt": A, ".tool/notes": A})  # hidden texts are told, too
    os.mkfifo(tmp_path / "e.txt")
    account = text.Account()
    with pytest.warns(UserWarning, match=r"3 files not read, .* \(.d.txt, README.md, e.txt\)"):
        documents = text.read([tmp_path], account)
    assert documents == [Document((A,), "a.v2"), Document((B,), "1/b"), Document((C,), "2/b")]
    size = account.characters
    assert size == len(A + B + C) and account.there == size + len((A * 4).encode()) // 3
    assert (account.files, account.documents) == (3, 3)
    assert "1 files with 66.7% of the rows empty (b.jsonl.gz)" in account.notes()
    half = text.Account()
    lines_of(put(tmp_path / "half", {"a.txt": A + "\ufffd"}), half)
    assert half.told == {text.DAMAGED: ["a.txt"]}
    share = (account.there - size) / account.there
    assert account.missing() == f" Missing of the text given: 3 files not read ({share:.2%})."
    for there, said in ((100_000, ""), (100_101, "1 files not read (0.10%)")):  # from a thousandth
        account = text.Account(1, 5, 100_000, there, told={text.UNREAD: ["secret.md"]})
        assert said in account.missing() and bool(said) == bool(account.missing())
        assert "secret" not in account.missing()  # a finding may be published
    assert not text.Account().missing()  # nothing was read: the book's own text, or tokens
    once = text.read([tmp_path / "2", tmp_path / "2" / "b.txt"])
    assert [d.source for d in once] == ["b"]  # named twice, read once


def test_a_linked_folder_or_file_is_read_once_and_loops_end(tmp_path):
    put(tmp_path, {"given/a.txt": A, "far/deep/b.txt": B, "far/c.txt": C})
    given, account = tmp_path / "given", text.Account()
    links = {"given/loop": ".", "given/link": "../far", "given/same": "../far/deep"}
    links |= {"far/deep/back": "../../given", "far/0f3a": "c.txt", "given/again.txt": "a.txt"}
    for link, target in links.items():
        (tmp_path / link).symlink_to(target)
    assert lines_of(given, account) == [A, C, B] and not account.told and account.files == 3
    before = hashes.fingerprint(given)["sha256"]
    put(tmp_path, {"far/deep/b.txt": A})
    assert hashes.fingerprint(given)["sha256"] != before  # so that its run is made again
    (given / "up").symlink_to("..")
    with pytest.warns(UserWarning, match=r"1 files not read, .* \(up\)"):
        assert lines_of(given) == [A, C, A]


def test_the_account_of_a_text_is_in_the_summary_and_in_the_record(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "_latest", None)
    body = in_kind(writer.write(30_000, 5), ".txt").decode()
    given = {"text": str(put(tmp_path / "texts", {"a.txt": body, "b.rst": body[:999]}))}
    given |= {"profile": "smoke", "shape": "teacher-smoke", "vocab_size": 500, "context": 32}
    this = start("00_teacher", given | {"out": str(tmp_path / "out")})
    with pytest.warns(UserWarning, match=r"1 files not read, .* \(b.rst\)"):
        summary, missing = students.text_into_tokens(this, None)
    kept = this._remembered["account"]
    assert kept["characters"] == len(body.replace("\n", "")) < kept["there"]
    assert f"{kept['characters']:,} of {kept['there']:,} characters; 1 files not" in summary
    assert missing == kept["missing"] != "" and missing.count("b.rst") == 0
    this.detach()


def test_blank_lines_end_documents_and_a_hint_tells_where_they_may_not(tmp_path):
    lines = [f"మాట{i} {A}" for i in range(60)]
    for between, apart, count, *told in cases(__file__)["blank lines"]:
        works, account = [between.join(lines[i : i + 5]) for i in range(0, 60, 5)], text.Account()
        documents = text.read([put(tmp_path, {"a.txt": apart.join(works)})], account)
        told = [getattr(text, name) for name in told]
        assert len(documents) == account.documents == count and [*account.told] == told
        read = [line for d in documents for line in d.lines]
        assert [x.strip() for line in read for x in re.split("[\u2028\x85]", line)] == lines
        assert count != 12 or [len(d.lines) for d in documents] == [5] * 12
    wrapped = "\n\n".join("\n".join(lines[i : i + 3]) for i in range(0, 30, 3))
    assert len(text.read([put(tmp_path, {"a.txt": f"{wrapped}\n\n\n\n{wrapped}"})], account)) == 20
    assert account.told[text.APART] == ["a.txt"]


def test_sections_keep_every_line_and_are_about_as_long_as_asked(real):
    documents = real("wikipedia_articles")
    sections = text.section(documents, 2_000)
    assert [x for d in sections for x in d.lines] == [x for d in documents for x in d.lines]
    longest = max(len(line) for d in documents for line in d.lines)
    assert max(sum(map(len, d.lines)) for d in sections) <= 2_000 + longest
    short = {d.lines for d in documents if sum(map(len, d.lines)) <= 2_000}
    assert short <= {d.lines for d in sections}  # none is cut that need not be
    work = Document(tuple(["మాట " * 10] * 101), "s")  # 101 lines of 40 characters
    sections = text.section([work], 1_000)
    assert [len(d.lines) for d in sections] == [20, 20, 21, 20, 20]  # no last one of a line
    assert {d.source for d in sections} == {"s"}


def stubs(documents: list[Document]) -> list[int]:
    """Wikipedia's village stubs, which name a village's location code of the census."""
    return [i for i, d in enumerate(documents) if "లొకేషన్ కోడ్" in " ".join(d.lines)]


def test_the_village_stubs_are_one_group_and_works_stay_apart(real):
    documents = real("wikipedia_articles") + real("narrative_prose")
    group_N, stub_K = text.near_duplicates(documents), stubs(documents)
    assert len(stub_K) == 108 == np.bincount(group_N).max()  # data/README.md counts them
    assert set(np.flatnonzero(group_N == group_N[stub_K[0]])) == set(stub_K)
    for documents in (real("narrative_prose"), writer.write(100_000, 1)):
        assert len(set(text.near_duplicates(documents))) == len(documents) > 30


def test_groups_are_what_comparing_every_pair_gives(real):
    documents, sets = real("wikipedia_articles")[:180], []
    for document in documents:
        words = re.sub(r"\d+(?:[.,]\d+)*", "0", " ".join(document.lines)).split()
        sets.append({tuple(words[i : i + 4]) for i in range(max(1, len(words) - 3))})
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


def test_a_split_keeps_groups_whole_meets_its_shares_and_follows_its_seed(real):
    documents = text.section(real("wikipedia_articles") + real("narrative_prose"), 5_000)
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
    documents = real("narrative_prose")
    how = dict(group_N=np.arange(len(documents)), val_share=0.1)
    first, again, other = (text.split(documents, **how, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    also = text.split(documents, **how, confirm_share=0.1, seed=1)  # takes from train alone
    assert [side == "val" for side in also] == [side == "val" for side in first]
    documents = [Document(("అ" * size,), "s") for size in (100, 900)]  # two are enough
    for seed in range(5):
        assert text.split(documents, np.arange(2), val_share=0.1, seed=seed) == ["val", "train"]


def test_memory_of_a_work_flatters_what_is_judged_on_sections_and_not_on_whole_works(tmp_path):
    """Each work has words of its own in every section. A memory of training's words knows those of
    the validation split, of which other sections were trained on, and none of the works' split."""
    rng, syllables = np.random.default_rng(0), "క గ చ జ ట డ త ద న ప బ మ య ర ల వ స హ".split()
    words = [dict.fromkeys("".join(rng.choice(syllables, n)) for _ in range(3000)) for n in (2, 4)]
    shared, own = [*words[0]], [*words[1]][:900]
    works = []
    for source in ("verse", "tales"):
        works = works[:1] if source == "tales" else []  # one tale is a verse, again
        for i in range(15):
            names = own[30 * i + 450 * (source == "verse") :][:30]
            lines = [rng.choice(shared + names * 20, 12) for _ in range(60)]
            works.append("\n".join(map(" ".join, lines)))
        put(tmp_path / "given", {f"{source}.txt": "\n\n".join(works)})
    p = parameters.declared("00_teacher") | {"text": str(tmp_path / "given"), "context": 16}
    p |= dict(section_characters=1000, vocab_size=700, held_out="tales:0.3 verse", val_share=0.2)
    made = prepare.prepare(p, tmp_path / "tokens")
    tokens = token_files.open_tokens(tmp_path / "tokens")
    seen = {}
    for split in ("train", "val", "works"):
        text_of = tokens.tokenizer.decode(getattr(tokens, split).ids.tolist())
        seen[split] = {word for word in re.findall(r"\w+", text_of) if word in own}
    assert len(seen["val"] & seen["train"]) > 0.9 * len(seen["val"]) > 100
    assert not seen["works"] & seen["train"] and not seen["works"] & seen["val"]
    assert seen["works"] > {*own[450:]}  # a whole source, and some tales
    count = 15 + round(len(seen["works"] - {*own[450:]}) / 30)
    assert len(token_files.origins(tokens, "works")[1]) == count  # each is one document
    assert (made["works"], made["held_out"], made["left_out"]) == (count, ["tales", "verse"], 4)
    with refused("poems", "tales", "verse"):
        prepare.prepare(p | {"held_out": "poems"}, tmp_path / "none")
    prepare.prepare(p | {"source_limit": 20_000, "held_out": ""}, tmp_path / "limited")
    bytes_of = json.loads((tmp_path / "limited/meta.json").read_text())
    assert 2 * 2.5 * 18_000 < bytes_of["train_bytes"] + bytes_of["val_bytes"] < 2 * 3 * 22_000
