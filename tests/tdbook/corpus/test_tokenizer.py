"""Tokenizers: each kind against the package that it comes from, upstream's against examples worked
by hand on its own file."""

import functools
import json
import operator
import os
import pickle
import random
import sys
from itertools import pairwise, product
from pathlib import Path

import morfessor
import numpy as np
import pytest
import regex
import sentencepiece
import tokenizers
from tokenizers import pre_tokenizers, trainers

from tdbook.corpus import morfessor as upstreams
from tdbook.corpus import tokenizer, tokenizer_files
from tdbook.export import chat
from tests.helpers import cases, refused, trained_sentencepiece

CASES = cases(__file__, "tokenizer_cases.yaml")


@pytest.fixture(scope="module")
def upstream(shared) -> tokenizer.Tokenizer:
    return tokenizer_files.open(shared / "data/upstream_tokenizer/tokenizer.json")


def trained(kind: str, lines: list[str]) -> tokenizers.Tokenizer:
    special, options = ["<pad>", "<unk>", "<s>", "</s>"], dict(vocab_size=1200, show_progress=False)
    if kind == "unigram":
        trainer = trainers.UnigramTrainer(special_tokens=special, unk_token="<unk>", **options)
        letters = " ".join(sorted({*"".join(lines)}))  # of a few lines: it takes seconds
        lines = [*lines[::5], letters, "< | > / _ k x"]
    elif kind == "marked":
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(special_tokens=special, **options)
    else:
        options |= dict(vocab_size=700, special_tokens=["<|endoftext|>", "<|pad|>"])
        options |= dict(initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(**options)
    made = tokenizers.Tokenizer.from_str(json.dumps(CASES["kinds"][kind]))
    made.train_from_iterator(lines, trainer)
    return made


@pytest.fixture(scope="module")
def kinds(lines, upstream, tmp_path_factory) -> dict[str, tokenizer.Tokenizer]:
    folder = tmp_path_factory.mktemp("kinds")
    opened = {"SentencePiece": tokenizer_files.train(lines, 1200, folder / "t.model")}
    for kind in CASES["kinds"]:
        (folder / kind).mkdir()
        trained(kind, lines).save(str(folder / kind / "tokenizer.json"))
        opened[kind] = tokenizer_files.open(folder / kind / "tokenizer.json")
    return opened | {"Morfessor": upstream}


KINDS = ("SentencePiece", "marked", "over_bytes", "spaced", "unigram", "Morfessor")
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_ids_are_the_package_s_own_and_special_tokens_in_a_text_stay_text(kinds, lines, kind):
    from transformers import PreTrainedTokenizerFast

    one, names = kinds[kind], ("<eos>", "</s>", "<|endoftext|>", "<pad>", "<unk>", "<bos>")
    spelt = [line for n in names for line in (n, f"తెలుగు {n} భాష", f"భాష{n}")]
    for line, ids in zip(given := [*lines, *spelt], one.encode(given), strict=True):
        assert one.decode(ids) == (" ".join(line.split()) if kind == "Morfessor" else line)
        assert not {*one.silent, one.eos} & set(ids)
        assert one.unk not in ids or "<" in line
    if kind == "SentencePiece":
        judge = sentencepiece.SentencePieceProcessor(model_file=str(one.path))
        assert one.encode(lines) == judge.encode(lines)
        assert one.pieces(one.encode(lines[:1])[0]) == judge.encode(lines[0], out_type=str)
    elif kind != "Morfessor":
        judge = PreTrainedTokenizerFast(tokenizer_file=str(one.path))
        assert one.encode(lines) == judge(lines, add_special_tokens=False)["input_ids"]
        for ids in one.encode(lines[:50]):
            text = judge.decode(ids, clean_up_tokenization_spaces=False)
            assert one.decode(ids) == (text.removeprefix(" ") if kind == "spaced" else text)


@every_kind
def test_eos_is_a_line_break_and_padding_is_nothing(kinds, kind):
    one = kinds[kind]
    first, second = one.encode(["తెలుగు భాష", "ఒక దేశం"])
    silent, bare = sorted(one.silent), one.vocabulary()
    assert silent and one.eos not in silent and one.decode([]) == "" and one.pieces([]) == []
    ids = [*silent, *first, one.eos, *second, one.eos, *silent]
    assert one.decode(ids) == "తెలుగు భాష\nఒక దేశం\n"
    assert one.pieces([one.eos]) == ["<eos>"] and one.pieces([one.eos, *second])[1][0] == "▁"
    assert one.begins(np.array([[first[-1], one.eos, second[0]]]))[0, 1:].all()
    assert len(bare) == one.size and "".join(bare[i] for i in first) == "తెలుగుభాష"
    assert not [p for p in bare if p.startswith("▁") or (p.endswith("@@") and p != "@@@")]


def joined(pieces: list[str]) -> str:
    """Pieces as they are read one after the other, bytes as the character that they make."""
    parts = tokenizer.BYTE.split("".join(pieces))
    raw = [bytes([int(b[3:5], 16)]) for b in tokenizer.BYTE.findall("".join(pieces))] + [b""]
    return b"".join(p.encode() + b for p, b in zip(parts, raw, strict=True)).decode()


@every_kind
def test_pieces_words_and_characters_are_those_of_the_decoded_text(kinds, lines, kind):
    one = kinds[kind]
    for ids in one.encode([*lines[:12], "ఊరు 😀 Zürich ½ 2024లో"]):
        assert joined(one.pieces(ids)).replace("▁", " ") == " " + one.decode(ids)
        shown, place, token = one.characters(np.array([*ids, one.eos]))
        expected = one.decode([i for i in [*ids, one.eos] if i != one.unk])
        if kind == "Morfessor":  # between words it has no space
            expected = "".join(expected.split(" "))
        assert shown.removeprefix(" ") == expected.removeprefix(" ")
        assert np.bincount(place).tolist() == [len(c.encode()) for c in shown]
        assert (np.diff(token) >= 0).all() and token[-1] == len(ids)
        text, ids = one.decode(ids), ids[:150]
        start = [len(one.decode(ids[:j])) for j in range(len(ids))]
        expected = [j == 0 or text[at : at + 1] == " " for j, at in enumerate(start)]
        assert one.begins(np.array([ids]))[0].tolist() == expected


@every_kind
def test_text_that_comes_id_by_id_is_the_decoded_text_in_whole_letters(kinds, lines, kind):
    """Letters end where the package regex ends them (\\X, Unicode's grapheme clusters)."""
    one, rng = kinds[kind], np.random.default_rng(0)
    # of bytes that make no character Hugging Face's ByteFallback takes the good ones beside them
    odd = {"marked": "<0x", "Morfessor": "@"}.get(kind, "\uffff")  # "@" is a part of the mark
    pieces = [i for i, p in enumerate(one.shown_V) if odd not in p]
    texts = [line[:300] for line in lines[:9]]
    texts += ["క్ష్మీ స్త్రీ క్‍ష క్‌ష తెలుగుఁ", "a👩‍👩‍👧‍👦b 👍🏽 🇮🇳 తెలుగు😀లో"]
    for ids in [*one.encode(texts), *rng.choice(pieces, (50, 60)).tolist()]:
        cut = int(rng.integers(0, len(ids)))
        shown = [*chat.follow(iter(ids[cut:]), ids[:cut], one.decode)]
        assert "".join(shown) == one.decode(ids)[len(one.decode(ids[:cut])) :].replace("\ufffd", "")
        shown = [*chat.follow(iter(ids), [], one.decode)]
        ends = np.cumsum([len(letter) for letter in regex.findall(r"\X", "".join(shown))])
        assert {*np.cumsum([*map(len, shown)])} <= {0, *ends} and "@@" not in "".join(shown)
        assert len([*filter(None, shown)]) > "".join(shown).strip().count(" ")  # word by word


def test_a_sentencepiece_model_with_other_ids_keeps_them(lines, tmp_path):
    llama = trained_sentencepiece(tmp_path / "t", lines[:200])
    assert (llama.eos, llama.unk, llama.silent) == (2, 0, {1})
    assert llama.decode([1, *llama.encode(["భాష"])[0], 2]) == "భాష\n"
    with pytest.raises(ValueError, match="has no <eos>, which ends each line of text: train one"):
        trained_sentencepiece(tmp_path / "t", lines, eos_id=-1)


def test_no_line_is_too_long_for_the_trainer(tmp_path):
    words, rng = ["ప్రభుత్వం", "ఆరోగ్యం", "అమ్మ", "ఊరు", "నది"], random.Random(0)
    short = [" ".join(rng.choices(words[2:], k=6)) for _ in range(200)]
    long = [" ".join(rng.choices(words[:2], k=9)) for _ in range(9_000)]  # 1.6 MB
    parts = tokenizer_files.train([*short, *long], 300, tmp_path / "a")
    whole = tokenizer_files.train([*short, " ".join(long)], 300, tmp_path / "b")
    assert whole.vocabulary()[259:] == parts.vocabulary()[259:]
    assert "కక" in tokenizer_files.train([*short, "క" * 10**6], 300, tmp_path / "c").vocabulary()


def saved(folder: Path, lines: list[str], changes: dict | None = None, **beside) -> Path:
    """A tokenizer.json, changed in some places, with the JSON files named beside it."""
    content = json.loads(trained("marked", lines[:30]).to_str())
    for place, value in (changes or {}).items():
        *way, last = [int(key) if key.isdecimal() else key for key in place.split()]
        inner = functools.reduce(operator.getitem, way, content)
        inner[last] = value
        if value == "GONE":
            del inner[last]
    for name, value in ({"tokenizer": content} | beside).items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder / "tokenizer.json"


def test_eos_is_what_the_files_beside_say_and_added_tokens_keep_their_ids(lines, tmp_path):
    assert tokenizer_files.open(saved(tmp_path, lines)).eos == 3  # </s> by its name
    beside = {"tokenizer_config": {"eos_token": {"content": "<s>"}, "unk_token": "<s>"}}
    beside |= {"special_tokens_map": {"eos_token": "<unk>"}}
    one = tokenizer_files.open(saved(tmp_path, lines, **beside))
    assert (one.eos, one.unk, one.silent) == (2, None, {0, 1, 3})
    assert [*tokenizer_files.files(one)] == [f"{name}.json" for name in ("tokenizer", *beside)]
    path = saved(tmp_path, lines, tokenizer_config={"eos_token": "<|end_of_text|>"})
    judge = tokenizers.Tokenizer.from_file(str(path))
    judge.add_special_tokens(["<|end_of_text|>"])
    judge.add_tokens(["నమస్తే"])
    judge.enable_truncation(2)
    judge.save(str(path))
    one = tokenizer_files.open(path)
    added = [judge.token_to_id(name) for name in ("<|end_of_text|>", "నమస్తే")]
    assert one.size == judge.get_vocab_size() and one.eos == added[0]
    ids = one.encode(["నమస్తే <|end_of_text|> తెలుగు"])[0]
    assert added[1] in ids and one.eos not in ids
    assert one.decode(ids) == "నమస్తే <|end_of_text|> తెలుగు"


def test_segmented_text_is_encoded_and_decoded_by_the_rules(upstream, tmp_path):
    table, words = json.loads(upstream.path.read_text()), CASES["small"]
    assert tokenizer_files.open(small(tmp_path)).encode([*words]) == [*words.values()]
    for pieces, text in CASES["decoded"].items():
        ids = [table["token_to_id"][piece] for piece in pieces.split()]
        assert upstream.decode(ids) == text
        shown = "".join(upstream.pieces(ids)).replace("▁", " ").replace("<eos>", "\n")
        assert shown.replace("\n ", "\n").replace("<bos>", "").replace("<pad>", "") == " " + text
    for line, pieces in CASES["encoded"].items():
        assert upstream.encode([line]) == [[table["token_to_id"][p] for p in pieces.split()]], line
    special, runs = table["special_tokens"], tokenizer.RUNS
    for piece, i in table["token_to_id"].items():  # of one script: its own id
        if len(runs.findall(piece.removesuffix("@@"))) == 1 and piece not in {" ", *special}:
            assert upstream.encode([piece]) == [[i]] or piece[:1] == " "


def merged_slowly(ranks: dict, text: str) -> list[str]:
    """The pair learnt first, where it comes first; then all pairs again."""
    parts = list(text)
    while ranked := [(ranks[p], i) for i, p in enumerate(pairwise(parts)) if p in ranks]:
        i = min(ranked)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def test_merges_are_those_of_the_slow_way(upstream):
    table = json.loads(upstream.path.read_text())
    words = [p.removesuffix("@@") for p in table["token_to_id"] if not tokenizer.TELUGU.search(p)]
    words = [*words[::9], "photosynthesis", "https://te.wikipedia.org/wiki", "1947-08-15é"]
    short = ["".join(letters) for letters in product("ab@x", repeat=6)]
    cases = [(table["bpe_merges"], words), ([["a", "b"], ["b", "a"], ["ab", "ab"]], short)]
    for merges, given in [*cases, ([["b", "@"], ["a", "a"], ["aa", "b@"]], short)]:
        ranks, merge = {tuple(pair): i for i, pair in enumerate(merges)}, upstreams._bpe(merges)
        for word in given:
            assert merge(word) == merged_slowly(ranks, word), (merges, word)


def small(folder: Path, **change) -> Path:
    """A table in upstream's format with a few pieces."""
    (folder / "small.json").write_text(json.dumps(CASES["small_table"] | change))
    return folder / "small.json"


@pytest.fixture(scope="module")
def segmenter(lines, tmp_path_factory) -> Path:
    words = [run for line in lines[:40] for run in tokenizer.RUNS.findall(line)]
    words = [word for word in words if tokenizer.TELUGU.match(word)]
    model = morfessor.BaselineModel()
    model.load_data([(1, word) for word in words])
    random.seed(0)
    model.train_batch(max_epochs=2)
    path = tmp_path_factory.mktemp("morfessor") / "m.bin"
    morfessor.MorfessorIO().write_binary_model_file(str(path), model)
    return path


def test_raw_text_is_segmented_by_the_model_between_script_and_marks(upstream, segmenter, lines):
    raw, some = tokenizer_files.open(upstream.path, segmenter), [*lines[:60], "2024లో ఉంది. IPL the"]
    judge = morfessor.MorfessorIO().read_binary_model_file(str(segmenter))

    def segmented(word: str) -> str:
        runs = regex.findall(r"\p{Block=Telugu}+|\P{Block=Telugu}+", word)
        parts = [m for r in runs for m in (judge.viterbi_segment(r)[0] if r > "ఀ" else [r])]
        return "@@ ".join(parts)

    assert raw.encode(some) == upstream.encode([" ".join(map(segmented, x.split())) for x in some])
    assert "@@" in segmented("నగరంలో") and segmented("2024లో").startswith("2024@@ ")
    assert [raw.decode(ids) for ids in raw.encode(some)] == [" ".join(x.split()) for x in some]
    assert raw.decode(raw.encode(["a@@ చేయ@@ లేదు @@"])[0]) == "a@@ చేయ@@ లేదు @@"  # text, no marks


def test_a_hostile_or_damaged_segmenter_does_nothing(segmenter, tmp_path, monkeypatch):
    names = ("morfessor.baseline", "logging.os.system", "touch ran")  # module, name, argument
    texts = [b"\x8c" + bytes([len(name)]) + name.encode() for name in names]
    by_path = b"\x80\x04" + texts[0] + texts[1] + b"\x93" + texts[2] + b"\x85R."
    command, good = b"cos\nsystem\n(S'touch ran'\ntR.", segmenter.read_bytes()
    untrained = pickle.dumps(morfessor.BaselineModel())
    monkeypatch.chdir(tmp_path)
    for content in (command, good[:-1] + command, by_path, good[: len(good) // 2], untrained):
        (tmp_path / "m.bin").write_bytes(content)
        with refused("is no Morfessor baseline model", "give the .bin"):
            tokenizer_files.open(small(tmp_path), tmp_path / "m.bin")
    assert {path.name for path in tmp_path.iterdir()} == {"m.bin", "small.json"}
    monkeypatch.setitem(sys.modules, "morfessor", None)  # as where it is not installed
    with refused("pip install morfessor"):
        tokenizer_files.open(small(tmp_path), segmenter)


@pytest.mark.parametrize("said", [*CASES["changed"], *CASES["config"], *CASES["table"]])
def test_a_broken_tokenizer_gets_one_line(lines, tmp_path, said):
    """A Hugging Face one, by its tokenizer.json or the file beside; upstream's."""
    if said in CASES["table"]:
        path = small(tmp_path, **CASES["table"][said])
    else:
        config = CASES["config"].get(said, {"eos_token": "<s>"} if said.endswith("id 3") else {})
        path = saved(tmp_path, lines, CASES["changed"].get(said, {}), tokenizer_config=config)
    with refused(tmp_path) as error:
        tokenizer_files.open(path)
    assert regex.search(said, str(error.value))


def test_keys_that_change_no_ids_are_read_over_and_those_that_agree_are_fine(lines, tmp_path):
    one = tokenizer_files.open(saved(tmp_path, lines, tokenizer_config=CASES["agreeing"]))
    judge, some = tokenizers.Tokenizer.from_file(str(one.path)), [*lines[:20], "ABC <image> x"]
    assert one.encode(some) == [judge.encode(x, add_special_tokens=False).ids for x in some]


def test_the_kind_is_told_by_content_and_what_is_of_none_is_refused(kinds, tmp_path):
    (tmp_path / "large").write_bytes(b"{")
    os.truncate(tmp_path / "large", 2**38)  # a hole takes no room
    with refused("has 274,877,906,"):
        tokenizer_files.open(tmp_path / "large")
    for kind, name in (("SentencePiece", "a.json"), ("marked", "b.model"), ("Morfessor", "c.txt")):
        (tmp_path / name).write_bytes(kinds[kind].path.read_bytes())
        found = tokenizer_files.open(tmp_path / name)
        assert found.kind == kinds[kind].kind
        ending = "model" if kind == "SentencePiece" else "json"
        assert tokenizer_files.files(found) == {f"tokenizer.{ending}": tmp_path / name}
        if kind != "Morfessor":
            with refused("segmenter = 'm.bin' is for upstream's"):
                tokenizer_files.open(tmp_path / name, "m.bin")
