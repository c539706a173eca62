"""Tokenizers: each kind against the package that it comes from, upstream's against examples worked
by hand on its own file."""

import json
import lzma
import os
import pickle
import random
import sys
import time
from itertools import pairwise
from pathlib import Path

import morfessor
import numpy as np
import pytest
import regex
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from tdbook.corpus import tokenizer, tokenizer_files
from tests.helpers import one_line

SPECIALS = ["<pad>", "<unk>", "<s>", "</s>"]


@pytest.fixture(scope="module")
def lines(shared) -> list[str]:
    text = lzma.open(shared / "data/telugu/wikipedia_paragraphs.txt.xz").read().decode()
    return [line for line in text.split("\n") if line][:300]


@pytest.fixture(scope="module")
def upstream(shared) -> tokenizer.Tokenizer:
    return tokenizer_files.open(shared / "data/upstream_tokenizer/tokenizer.json")


@pytest.fixture(scope="module")
def table(upstream) -> dict:
    return json.loads(upstream.path.read_text())


def marked(lines: list[str]) -> tokenizers.Tokenizer:
    """As Llama 2's: BPE with ▁, bytes for the rest; in training <s> begins a text."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 2)])
    options = dict(special_tokens=SPECIALS + [f"<0x{byte:02X}>" for byte in range(256)])
    trainer = trainers.BpeTrainer(vocab_size=1200, show_progress=False, **options)
    made.train_from_iterator(lines, trainer)
    return made


def over_bytes(lines: list[str], spaced: bool = False) -> tokenizers.Tokenizer:
    """As GPT-2's and Llama 3's; `spaced`: with a space put before each line."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    options = dict(special_tokens=["<|endoftext|>", "<|pad|>"], show_progress=False)
    options |= dict(initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=700, **options))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    return made


def spaced(lines: list[str]) -> tokenizers.Tokenizer:
    return over_bytes(lines, spaced=True)


def unigram(lines: list[str]) -> tokenizers.Tokenizer:
    """As T5's: its special tokens are pieces among the others."""
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    options = dict(special_tokens=SPECIALS, unk_token="<unk>", show_progress=False)
    trainer = trainers.UnigramTrainer(vocab_size=1200, **options)
    made.train_from_iterator([*lines, "< | > / _ k x"], trainer)
    return made


@pytest.fixture(scope="module")
def kinds(lines, upstream, tmp_path_factory) -> dict[str, tokenizer.Tokenizer]:
    folder = tmp_path_factory.mktemp("kinds")
    opened = {"SentencePiece": tokenizer_files.train(lines, 1200, folder / "t.model")}
    for make in (marked, over_bytes, spaced, unigram):
        (folder / make.__name__).mkdir()
        make(lines).save(str(folder / make.__name__ / "tokenizer.json"))
        opened[make.__name__] = tokenizer_files.open(folder / make.__name__ / "tokenizer.json")
    return opened | {"Morfessor": upstream}


KINDS = ("SentencePiece", "marked", "over_bytes", "spaced", "unigram", "Morfessor")
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_real_lines_come_back_as_they_were(kinds, lines, kind):
    one = kinds[kind]
    for line, ids in zip(lines, one.encode(lines), strict=True):
        assert one.decode(ids) == (" ".join(line.split()) if kind == "Morfessor" else line)
        assert not {*one.silent, one.eos, one.unk} & set(ids)


@every_kind
def test_eos_is_a_line_break_padding_is_nothing_and_each_piece_has_its_id(kinds, kind):
    one = kinds[kind]
    first, second = one.encode(["తెలుగు భాష", "ఒక దేశం"])
    silent = sorted(one.silent)
    assert silent and one.eos not in silent
    ids = [*silent, *first, one.eos, *second, one.eos, *silent]
    assert one.decode(ids) == "తెలుగు భాష\nఒక దేశం\n"
    assert one.pieces([one.eos]) == ["<eos>"] and one.pieces([one.eos, *second])[1][0] == "▁"
    assert one.decode([]) == "" and one.pieces([]) == []
    assert one.begins(np.array([[first[-1], one.eos, second[0]]]))[0, 1:].all()
    bare = one.vocabulary()
    assert len(bare) == one.size and bare[one.eos] == "<eos>"
    assert not [p for p in bare if p.startswith("▁") or (p.endswith("@@") and p != "@@@")]
    assert "".join(bare[i] for i in first) == "తెలుగుభాష"
    for ids in ([one.size], [-1]):
        for show in (one.decode, one.pieces, lambda ids: list(one.running(iter([5, *ids])))):
            with pytest.raises(ValueError, match=r"id -?[\d,]+ is none of the [\d,]+ pieces"):
                show(ids)


@every_kind
def test_text_that_spells_a_special_token_stays_text(kinds, kind):
    one = kinds[kind]
    for name in ("<eos>", "</s>", "<|endoftext|>", "<pad>", "<unk>", "<bos>"):
        for line in (name, f"తెలుగు {name} భాష", f"భాష{name}"):
            ids = one.encode([line])[0]
            assert not {*one.silent, one.eos} & set(ids)
            assert one.decode(ids) == line


def joined(pieces: list[str]) -> str:
    """Pieces as they are read one after the other, bytes as the character that they make."""
    parts = tokenizer.BYTE.split("".join(pieces))
    raw = [bytes([int(b[3:5], 16)]) for b in tokenizer.BYTE.findall("".join(pieces))] + [b""]
    return b"".join(p.encode() + b for p, b in zip(parts, raw, strict=True)).decode()


@every_kind
def test_pieces_beginnings_of_words_and_characters_are_those_of_the_decoded_text(
    kinds, lines, kind
):
    one = kinds[kind]
    for ids in one.encode([*lines[:12], "ఊరు 😀 Zürich ½ 2024లో"]):
        assert joined(one.pieces(ids)).replace("▁", " ") == " " + one.decode(ids)
        code, begins, token = one.characters(np.array([*ids, one.eos]))
        expected = one.decode([i for i in [*ids, one.eos] if i != one.unk])
        if kind == "Morfessor":  # between words it has no space
            expected = "".join(expected.split(" "))
        assert "".join(map(chr, code[begins])).removeprefix(" ") == expected.removeprefix(" ")
        assert (np.diff(token) >= 0).all() and token[-1] == len(ids)
        text, ids = one.decode(ids), ids[:150]
        start = [len(one.decode(ids[:j])) for j in range(len(ids))]
        expected = [j == 0 or text[at : at + 1] == " " for j, at in enumerate(start)]
        assert one.begins(np.array([ids]))[0].tolist() == expected


@every_kind
def test_running_text_is_the_decoded_text_less_bytes_of_no_character(kinds, lines, kind):
    """Of real lines, and of ids at random."""
    one, rng = kinds[kind], np.random.default_rng(0)
    for first, second in pairwise(lines[:9]):
        ids = [i for line in one.encode([first, second]) for i in (*line[:200], one.eos)]
        prompt, new = np.split(ids, rng.integers(0, len(ids), 1))
        pieces = list(one.running(iter(new), prompt))
        assert "".join(pieces) == one.decode(ids)[len(one.decode(prompt)) :]
        assert len(pieces) > len(new) / 4 and all(pieces)
    # of bytes that make no character Hugging Face's ByteFallback takes the good ones beside them
    odd = {"marked": "<0x", "Morfessor": "@"}.get(kind, "\uffff")  # "@" is a part of the mark
    ids = [i for i, p in enumerate(one.shown_V) if odd not in p]
    for _ in range(50):
        prompt, new = rng.choice(ids, (2, 30))
        whole = one.decode([*prompt, *new])[len(one.decode(prompt)) :]
        assert "".join(one.running(new, prompt)) == whole.replace("\ufffd", "")
        assert "@@" not in whole or kind != "Morfessor"


@every_kind
def test_half_a_character_is_never_shown_nor_half_a_letter_of_telugu(kinds, kind):
    """Every code point of the block, between, before and after others: each piece ends where the
    package regex ends a letter too (\\X, Unicode's extended grapheme clusters)."""
    one = kinds[kind]
    texts = [f"{a}{chr(c)}{b}" for c in range(0x0C00, 0x0C80) for a, b in ("కక", "క్", "1 ", " ్")]
    for text in [*texts, "క్ష్మీ స్త్రీ క్‍ష క్‌ష తెలుగుఁ", "కృత్స్నం"]:
        ids = one.encode([text])[0]
        pieces = list(one.running(ids))
        assert "".join(pieces) == one.decode(ids)
        if kind != "Morfessor":  # spaces and a few characters that it does not have
            assert "".join(pieces).strip() == text.strip() or one.unk in ids
        ends = np.cumsum([len(letter) for letter in regex.findall(r"\X", "".join(pieces))])
        assert set(np.cumsum([len(piece) for piece in pieces])) <= set(ends)
        assert "\ufffd" not in "".join(pieces)


@every_kind
def test_emoji_come_whole_even_where_they_are_bytes(kinds, kind):
    one = kinds[kind]
    for ids in one.encode(["😀", "a👩‍👩‍👧‍👦b", "👍🏽 🇮🇳", "తెలుగు😀లో", "❤️‍🔥"]):
        assert "".join(one.running(ids)) == one.decode(ids) and "\ufffd" not in one.decode(ids)
        for cut in range(len(ids)):  # a text may end in the middle of one
            begun = one.decode(ids[:cut])
            assert begun + "".join(one.running(ids[cut:], ids[:cut])) == one.decode(ids)
            shown = "".join(one.running(ids[:cut]))
            # Hugging Face's ByteFallback drops the whole characters beside half of one as well
            assert one.decode(ids).startswith(shown) if kind == "marked" else shown == begun


def test_sentencepiece_does_as_the_package(kinds, lines):
    one = kinds["SentencePiece"]
    bare = sentencepiece.SentencePieceProcessor(model_file=str(one.path))
    assert one.encode(lines) == [bare.encode(line) for line in lines]
    ids = one.encode(lines[:1])[0]
    assert one.pieces(ids) == bare.encode(lines[0], out_type=str)
    assert one.decode(ids) == bare.decode(ids)
    assert (one.eos, one.unk, one.name, one.kind) == (3, 1, "tokenizer.model", "SentencePiece")


def test_a_sentencepiece_model_with_other_ids_keeps_them(lines, tmp_path):
    def trained(**ids) -> Path:
        with open(tmp_path / "t", "wb") as model:
            ids |= dict(sentence_iterator=iter(lines), model_writer=model, vocab_size=500)
            ids |= dict(model_type="bpe", character_coverage=1.0, minloglevel=2)
            sentencepiece.SentencePieceTrainer.train(**ids)
        return tmp_path / "t"

    llama = tokenizer_files.open(trained(unk_id=0, bos_id=1, eos_id=2))
    assert (llama.eos, llama.unk, llama.silent) == (2, 0, {1})
    assert llama.decode([1, *llama.encode(["భాష"])[0], 2]) == "భాష\n"
    with pytest.raises(ValueError, match="has no <eos>, which ends each line of text: train one"):
        tokenizer_files.open(trained(eos_id=-1))


def test_lines_too_long_for_the_trainer_are_cut_for_it(tmp_path, monkeypatch):
    words, rng = ["ప్రభుత్వం", "ఆరోగ్యం", "అమ్మ", "ఊరు", "నది"], random.Random(0)
    short = [" ".join(rng.choices(words[2:], k=6)) for _ in range(200)]
    long, word = " ".join(rng.choices(words[:2], k=900)), "క" * 4_000
    whole = tokenizer_files.train([*short, long], 300, tmp_path / "b")
    monkeypatch.setattr(tokenizer_files, "LONGEST", 3_000)
    for lines in ([*short, long], [*short, *[long] * 3], [f"{long} "]):
        one = tokenizer_files.train(lines, 285 if len(lines) == 1 else 300, tmp_path / "d")
        assert len(one.encode(["ప్రభుత్వం ఆరోగ్యం"])[0]) < 12, "nothing of the long line was seen"
    assert [*tokenizer_files._cut([*short, ""], [])] == [*short, ""]
    parts = [*tokenizer_files._cut([long, word], [])]
    assert max(len(part.encode()) for part in parts) <= 3_000
    assert " ".join(parts) == f"{long} {' '.join([word[:750]] * 5)} {word[:250]}"
    one = tokenizer_files.train([*short, long], 300, tmp_path / "e")
    assert one.vocabulary()[259:] == whole.vocabulary()[259:]
    with pytest.raises(ValueError, match=r"1 lines are too long, over 3,000 bytes, and were cut"):
        tokenizer_files.train([long], 5_000, tmp_path / "f")


@pytest.mark.parametrize("kind", ["marked", "over_bytes", "spaced", "unigram"])
def test_a_hugging_face_tokenizer_does_as_transformers(kinds, lines, kind):
    from transformers import PreTrainedTokenizerFast

    judge = PreTrainedTokenizerFast(tokenizer_file=str(kinds[kind].path))
    found = kinds[kind].encode(lines)
    assert found == judge(lines, add_special_tokens=False)["input_ids"]
    for ids in found[:50]:
        text = judge.decode(ids, clean_up_tokenization_spaces=False)
        assert kinds[kind].decode(ids) == (text[1:] if kind == "spaced" else text)


def test_telugu_over_bytes_is_shown_as_telugu_and_a_cut_character_as_bytes(kinds):
    one = kinds["over_bytes"]
    ids = one.encode(["తెలుగు 😀"])[0]
    pieces = one.pieces(ids)
    assert joined(pieces) == "▁తెలుగు▁😀" and set("తెలుగు") <= set("".join(pieces))
    assert pieces[-1] == "<0x80>"
    assert [one.decode(ids[:-cut]) for cut in (1, 2, 3)] == ["తెలుగు "] * 3


def saved(folder: Path, lines: list[str], change=lambda content: None, **beside: dict) -> Path:
    """A tokenizer.json, changed, with the JSON files named beside it."""
    content = json.loads(marked(lines[:30]).to_str())
    change(content)
    for name, value in ({"tokenizer": content} | beside).items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder / "tokenizer.json"


def test_eos_is_what_the_files_beside_say(lines, tmp_path):
    assert tokenizer_files.open(saved(tmp_path, lines)).eos == 3  # </s> by its name
    beside = {"tokenizer_config": {"eos_token": {"content": "<s>"}, "unk_token": "<s>"}}
    beside |= {"special_tokens_map": {"eos_token": "<unk>"}}
    one = tokenizer_files.open(saved(tmp_path, lines, **beside))
    assert (one.eos, one.unk, one.silent) == (2, None, {0, 1, 3})
    assert [*tokenizer_files.files(one)] == [f"{name}.json" for name in ("tokenizer", *beside)]


def test_special_tokens_after_the_vocabulary_and_plain_added_ones_keep_their_ids(lines, tmp_path):
    def change(content):
        added = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        size = len(content["model"]["vocab"])
        end = added | {"id": size, "content": "<|end_of_text|>", "special": True}
        content["added_tokens"] += [end, added | {"id": size + 1, "content": "నమస్తే"}]
        cut = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
        content["truncation"] = cut

    path = saved(tmp_path, lines, change, tokenizer_config={"eos_token": "<|end_of_text|>"})
    one, judge = tokenizer_files.open(path), tokenizers.Tokenizer.from_file(str(path))
    assert one.size == judge.get_vocab_size()
    assert one.eos == judge.token_to_id("<|end_of_text|>")
    ids = one.encode(["నమస్తే <|end_of_text|> తెలుగు"])[0]
    assert judge.token_to_id("నమస్తే") in ids and one.eos not in ids
    assert one.decode(ids) == "నమస్తే <|end_of_text|> తెలుగు"


# Morfessor: each rule worked by hand; the pieces are those of the published file

EXAMPLES = {
    # looked up as they are
    "చేయ@@ లేదు": "చేయ@@ లేదు",
    'the .\\n"@@ x': 'the .\\n"@@ x',
    # Telugu that is not there: characters; all parts but the last join, and the last where it did
    "కూడాకూ": "క@@ ూ@@ డ@@ ా@@ క@@ ూ",
    "కూడాకూ@@ లో": "క@@ ూ@@ డ@@ ా@@ క@@ ూ@@ లో",
    # other script that is not there: merges
    "international": "inter@@ national",
    "international@@ లో": "inter@@ national@@ లో",
    "WAx": "WA@@ x",
    # what the merges make of it has no piece: characters
    "estival": "e@@ s@@ t@@ i@@ v@@ a@@ l",
    "estivalx": "e@@ s@@ t@@ i@@ v@@ a@@ l@@ x",
    # script and marks part words before that
    "2024లో": "2024@@ లో",
    "ఉంది.": "ఉంది@@ .",
    "(లో)": "(@@ లో@@ )",
    "ఉంది.@@ the": "ఉంది@@ .@@ the",
    "ఉంది.\\nఈ": "ఉంది@@ .\\n@@ ఈ",
    # no piece at all
    "ꙮ": "<unk>",
    "aꙮb": "a@@ <unk> b",
    # the mark alone is text
    "@@": "@@@ @",
    "": "",
}


def test_segmented_text_is_encoded_by_the_rules(upstream, table):
    for line, pieces in EXAMPLES.items():
        assert upstream.encode([line]) == [[table["token_to_id"][p] for p in pieces.split()]], line
    whole = [
        (piece, i)
        for piece, i in table["token_to_id"].items()
        if len(tokenizer.RUNS.findall(piece.removesuffix("@@"))) == 1 and piece[:1] != " "
    ]
    special = table["special_tokens"].values()
    wanted = {piece: [i] for piece, i in whole if i not in special}  # of one script: its own id
    assert dict(zip(wanted, upstream.encode([*wanted]), strict=True)) == wanted


def merged_slowly(ranks: dict, text: str) -> list[str]:
    """GPT-2's own way: the best pair everywhere, then all pairs again."""
    parts = list(text)
    while ranked := [(ranks[p], p) for p in pairwise(parts) if p in ranks]:
        first, second = min(ranked)[1]
        merged, i = [], 0
        while i < len(parts):
            both = parts[i : i + 2] == [first, second]
            merged.append(first + second if both else parts[i])
            i += 2 if both else 1
        parts = merged
    return parts


def test_merges_are_those_of_the_slow_way(upstream, table, tmp_path):
    ranks = {tuple(pair): rank for rank, pair in enumerate(table["bpe_merges"])}
    words = [p.removesuffix("@@") for p in table["token_to_id"] if not tokenizer.TELUGU.search(p)]
    for word in [*words[::9], "photosynthesis", "https://te.wikipedia.org/wiki", "1947-08-15é"]:
        assert upstream.model.merge(word) == merged_slowly(ranks, word)
    rng = random.Random(0)
    for _ in range(60):
        have, merges = list("ab@"), []
        for _ in range(rng.randrange(14)):
            merges.append([rng.choice(have), rng.choice(have)])
            have.append("".join(merges[-1]))
        merges = [pair for n, pair in enumerate(merges) if pair not in merges[:n]]
        ranks = {tuple(pair): rank for rank, pair in enumerate(merges)}
        one = tokenizer_files.open(small(tmp_path, bpe_merges=merges))
        for size in (1, 2, 7, 40):
            word = "".join(rng.choices("ab@x", [5, 5, 1, 0.3], k=size))
            assert one.model.merge(word) == merged_slowly(ranks, word), (merges, word)


def test_a_word_of_sixteen_thousand_characters_takes_no_time(upstream):
    word = "".join(random.Random(0).choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/", k=16_000))
    began = time.process_time()
    ids = upstream.encode([word])[0]
    assert time.process_time() - began < 2, "it took 30 s and more"
    assert upstream.decode(ids) == word


def test_a_word_s_ids_never_depend_on_the_words_before(upstream, lines):
    words = sorted({w for line in lines[:15] for w in line.split()})
    words += ["international", "international@@", "కూడాకూ", "కూడాకూ@@", "zzzq@@", "zzzq"] * 2
    alone = {word: upstream.encode([word])[0] for word in words}
    fresh = tokenizer_files.open(upstream.path)
    random.Random(0).shuffle(words)
    assert fresh.encode([" ".join(words)])[0] == [i for word in words for i in alone[word]]
    assert {word: fresh.encode([word])[0] for word in reversed(words)} == alone


def test_joined_pieces_are_decoded_by_the_rules(upstream, table):
    for pieces, text in {
        "చేయ@@ లేదు the": "చేయలేదు the",
        "inter@@ national@@": "international",  # a mark at the cut is hidden
        "చేయ@@ <eos> చేయ@@ లేదు <eos>": "చేయ\nచేయలేదు\n",
        "<bos> లో <pad> <pad>": "లో",
        "a@@ <unk> b": "a<unk> b",
        "@@@ @": "@@",
        '.\\n"@@ ఉంది. .\\n': '.\\n"ఉంది. .\\n',
    }.items():
        ids = [table["token_to_id"][piece] for piece in pieces.split()]
        assert upstream.decode(ids) == text
        shown = "".join(upstream.pieces(ids)).replace("▁", " ").replace("<eos>", "\n")
        assert shown.replace("\n ", "\n").replace("<bos>", "").replace("<pad>", "") == " " + text


def small(folder: Path, **change) -> Path:
    """A table in upstream's format with a few pieces."""
    names = ["<pad>", "<unk>", "<bos>", "<eos>", "క", "ల@@", "a", "b", "b@@"]
    ids = {name: i for i, name in enumerate(names)}
    content = {"type": "morfessor_bpe_telugu", "separator": "@@", "bpe_merges": []}
    content |= {"special_tokens": {name: ids[name] for name in names[:4]}, "token_to_id": ids}
    (folder / "small.json").write_text(json.dumps(content | change))
    return folder / "small.json"


def test_where_a_variant_is_missing_an_inner_part_is_unknown_and_the_last_one_bare(tmp_path):
    words = {"కల": [1, 1], "కక": [1, 4], "కక@@": [1, 4], "aa": [1, 6], "aa@@": [1, 6]}
    words["ab@@"] = [1, 8]
    assert tokenizer_files.open(small(tmp_path)).encode([*words]) == [*words.values()]


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
    raw = tokenizer_files.open(upstream.path, segmenter)
    judge = morfessor.MorfessorIO().read_binary_model_file(str(segmenter))

    def cut(*words: str) -> str:
        parts = [m for w in words for m in (judge.viterbi_segment(w)[0] if w > "ఀ" else [w])]
        return "@@ ".join(parts)

    examples = {
        "హైదరాబాదు నగరంలో": f"{cut('హైదరాబాదు')} {cut('నగరంలో')}",
        "2024లో ఉంది.": f"{cut('2024', 'లో')} {cut('ఉంది', '.')}",
        "IPL the": "IPL the",
    }
    assert raw.encode([*examples]) == upstream.encode([*examples.values()])
    assert "@@" in examples["హైదరాబాదు నగరంలో"]
    some = lines[:60]
    assert [raw.decode(ids) for ids in raw.encode(some)] == [" ".join(x.split()) for x in some]
    assert raw.decode(raw.encode(["a@@ చేయ@@ లేదు @@"])[0]) == "a@@ చేయ@@ లేదు @@"  # text, no marks


class Hostile:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def pickles(folder: Path, good: bytes) -> dict[str, bytes]:
    def named(module: str, name: str, value: str) -> bytes:
        texts = [b"\x8c" + bytes([len(x.encode())]) + x.encode() for x in (module, name, value)]
        return b"\x80\x04" + b"".join(texts[:2]) + b"\x93" + texts[2] + b"\x85R."  # name(value)

    command = f"touch {folder}/ran"
    return {
        "a command": pickle.dumps(Hostile(folder / "ran")),
        "a command in a model": good[:-1] + pickle.dumps(Hostile(folder / "ran"))[2:],
        "a command of protocol 0": f"cos\nsystem\n(S'{command}'\ntR.".encode(),
        "eval": pickle.dumps(eval),
        "a path in the module": named("morfessor.baseline", "logging.os.system", command),
        "another class of the package": named("morfessor.io", "MorfessorIO", "utf8"),
        "half a model": good[: len(good) // 2],
        "no pickle": b"morfessor",
        "nothing": b"",
        "a list": pickle.dumps([1, 2]),
        "a bare class": pickle.dumps(morfessor.BaselineModel),
        "an untrained model": pickle.dumps(morfessor.BaselineModel()),
    }


def test_a_hostile_or_damaged_segmenter_does_nothing_and_gets_one_line(
    segmenter, tmp_path, monkeypatch
):
    for content in pickles(tmp_path, segmenter.read_bytes()).values():
        (tmp_path / "m.bin").write_bytes(content)
        with pytest.raises(ValueError) as error:
            tokenizer_files.open(small(tmp_path), tmp_path / "m.bin")
        one_line(error, "is no Morfessor baseline model", "give the .bin")
    assert {path.name for path in tmp_path.iterdir()} == {"m.bin", "small.json"}
    monkeypatch.setitem(sys.modules, "morfessor", None)  # as where it is not installed
    with pytest.raises(ValueError, match=r"not installed: pip install morfessor$"):
        tokenizer_files.open(small(tmp_path), segmenter)
    tokenizer_files.open(small(tmp_path))


# What is refused: what is said → what was done


def renamed(content):
    content["model"]["vocab"].pop("</s>")
    content["added_tokens"].pop(3)


def no_eos(content):
    content["model"]["vocab"]["<end>"] = content["model"]["vocab"].pop("</s>")
    content["added_tokens"][3]["content"] = "<end>"


def word_piece(content):
    model = {"type": "WordPiece", "vocab": {"<unk>": 0, "</s>": 1, "x": 2, "##y": 3}}
    model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 9}
    content |= {"model": model | {"unk_token": "<unk>"}, "added_tokens": []}


def lower_cased(content):
    content["normalizer"] = {"type": "Lowercase"}


def panics(content):  # its own package has no error for it
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}


CHANGED = {  # to tokenizer.json
    "no piece with ▁ and is not over bytes": word_piece,
    "cannot be read by the package": lambda c: c["model"].pop("vocab"),
    "no piece has the id 3": renamed,
    "no piece has the id 5": lambda c: c["model"]["vocab"].update({"<0x01>": 4}),
    r"has no end-of-text token \('<eos>', .* as eos_token in tokenizer_co": no_eos,
    "dropout is 0.1 in its model, it must be null": lambda c: c["model"].update(dropout=0.1),
    "end_of_word_suffix": lambda c: c["model"].update(end_of_word_suffix="</w>"),
    "what 'case' does is not known here": lambda c: c.update(case="low"),
    "what 'cache' does is not known here": lambda c: c["model"].update(cache=1),
    "cannot be read by the package tokenizers .*charsmap": panics,
    "cannot be read by the package tokenizers": lambda c: c.update(added_tokens=5),
}


def unlike(**options) -> dict:
    token = {"content": "<0x01>", "special": False, "normalized": False} | options
    return {"added_tokens_decoder": {"5": token}}


CONFIGS = {  # in tokenizer_config.json
    "has no .* token <end>: name": {"eos_token": "<end>"},
    "what 'strip_accents' does": {"strip_accents": True},
    "what 'fix_mistral_regex' does": {"fix_mistral_regex": True},
    "what 'merge_tokens_first' does": {"merge_tokens_first": True},
    "what 'normalizer_file' does": {"normalizer_file": "nfkc.json"},
    "what 'add_space_token' does": {"add_space_token": True},
    "do_lower_case is true": {"do_lower_case": True},
    "add_prefix_space is false, it is": {"add_prefix_space": False},
    "sp_model_kwargs draw": {"sp_model_kwargs": {"enable_sampling": True}},
    r"added_tokens_decoder has 'నమస్తే' \(id 5": unlike(content="నమస్తే"),
    r"decoder has '<s>' \(id 5\) otherwise": unlike(content="<s>", special=True),
    "added_tokens_decoder has": unlike(content="<s>", rstrip=True),
    "cannot be read": {"added_tokens_decoder": 5},
    "config.json must hold a JSON object, not": [1],
}


@pytest.mark.parametrize("said", [*CHANGED, *CONFIGS])
def test_a_broken_hugging_face_tokenizer_gets_one_line(lines, tmp_path, said):
    beside = {"tokenizer_config": CONFIGS[said]} if said in CONFIGS else {}
    if said.endswith("id 3"):
        beside = {"tokenizer_config": {"eos_token": "<s>"}}
    path = saved(tmp_path, lines, CHANGED.get(said, lambda content: None), **beside)
    with pytest.raises(ValueError, match=said) as error:
        tokenizer_files.open(path)
    one_line(error, tmp_path)


def test_keys_that_change_no_ids_are_read_over_and_those_that_agree_are_fine(lines, tmp_path):
    config = {
        "add_bos_token": True, "add_eos_token": False, "legacy": False, "chat_template": "{{x}}",
        "add_prefix_space": True, "split_special_tokens": False, "model_max_length": 10**30,
        "clean_up_tokenization_spaces": True, "image_token": "<image>", "sp_model_kwargs": {},
        "additional_special_tokens": ["<x>"], "tokenizer_class": "LlamaTokenizer",
        "do_lower_case": True, "pad_token": None, "mask_token": {"content": "<m>"},
        "added_tokens_decoder": {
            "2": {"content": "<s>", "special": True, "lstrip": True},
            "99999": {"content": "<image>", "special": True},
        },
    }  # fmt: skip
    one = tokenizer_files.open(saved(tmp_path, lines, lower_cased, tokenizer_config=config))
    judge = tokenizers.Tokenizer.from_file(str(one.path))
    for line in (*lines[:20], "ABC <image> x"):
        assert one.encode([line])[0] == judge.encode(line, add_special_tokens=False).ids


IDS = {"<pad>": 0, "<unk>": 1, "<bos>": 2, "<eos>": 3}
MORFESSOR = {
    "no piece has the id 4": {"token_to_id": IDS | {"a": 3}},
    "no piece has the id 4,": {"token_to_id": IDS | {"a": "4"}},
    "<eos> is None in spec": {"special_tokens": {"<pad>": 0, "<unk>": 1, "<bos>": 2}},
    "separator is '', it must be text such as '@@'": {"separator": ""},
    r"\['a', 'b', 'c'\] in bpe_merges": {"bpe_merges": [["a", "b", "c"]]},
    "bpe_merges is None": {"bpe_merges": None},
    "is neither a Hugging Face tokenizer.json .* nor upstream's": {"type": "bpe"},
}


@pytest.mark.parametrize("said", MORFESSOR)
def test_a_broken_table_of_upstream_s_gets_one_line(tmp_path, said):
    with pytest.raises(ValueError, match=said) as error:
        tokenizer_files.open(small(tmp_path, **MORFESSOR[said]))
    one_line(error, tmp_path)


def test_what_is_no_tokenizer_is_refused_before_it_is_read_and_the_kind_told_by_content(
    kinds, tmp_path
):
    (tmp_path / "half").write_bytes(kinds["SentencePiece"].path.read_bytes()[:9_000])
    (tmp_path / "brace").write_bytes(b"{\xff}")
    for name, said in (("half", "is not a SentencePiece .model, nor"), ("brace", "is no JSON")):
        with pytest.raises(ValueError, match=said):
            tokenizer_files.open(tmp_path / name)
    for name, head in (("t.model", b"\n"), ("t.json", b"{"), ("m.bin", b"\x80")):
        (tmp_path / name).write_bytes(head)
        os.truncate(tmp_path / name, 2**38)  # a hole: it takes no room
    upstream, large = kinds["Morfessor"].path, "has 274,877,906,944 bytes, a tokenizer's .* at most"
    for given in ((tmp_path / "t.model",), (tmp_path / "t.json",), (upstream, tmp_path / "m.bin")):
        with pytest.raises(ValueError, match=large):
            tokenizer_files.open(*given)
    for given in ((tmp_path / "no.model",), (upstream, tmp_path / "no.bin")):
        with pytest.raises(FileNotFoundError, match=r"no\.\w+ is not there: "):
            tokenizer_files.open(*given)
    for kind, name in (("SentencePiece", "a.json"), ("marked", "b.model"), ("Morfessor", "c.txt")):
        (tmp_path / name).write_bytes(kinds[kind].path.read_bytes())
        found = tokenizer_files.open(tmp_path / name)
        assert found.kind == kinds[kind].kind
        assert tokenizer_files.files(found) == {kinds[kind].name: tmp_path / name}
        if kind != "Morfessor":
            with pytest.raises(ValueError, match=r"segmenter = 'm\.bin' is for upstream's"):
                tokenizer_files.open(tmp_path / name, "m.bin")
