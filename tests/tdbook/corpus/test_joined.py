"""Pieces joined by "@@", to the one before or after, against a plain reader of the rules written
here: upstream's two tables, and Hugging Face's WordLevel of either."""

import importlib.util
import json
import random
import re
from collections import Counter
from pathlib import Path

import morfessor
import pytest
import tokenizers
import transformers
from tokenizers import models, pre_tokenizers, processors

from tdbook.corpus import tokenizer_files
from tdbook.corpus.tokenizer import Tokenizer
from tdbook.export import chat, gguf_file, llama_cpp, model_tokenizer
from tests import upstream
from tests.helpers import tiny_model
from tests.tdbook.corpus import test_tokenizer
from tests.tdbook.corpus.test_tokenizer import merged_slowly

SPECIAL = {"<pad>": 0, "<unk>": 1, "<bos>": 2, "<eos>": 3, "<|end|>": 4}
MERGES = [["t", "h"], ["th", "e"], ["1", "9"], ["i", "n"], ["in", "g"], [".", "."]]
segmenter = test_tokenizer.segmenter  # a fixture
FORMS = ("v4", "WordLevel v4", "WordLevel", "table")  # the last two: a piece joins to the next one


@pytest.fixture(scope="module")
def given(lines) -> dict[bool, list[str]]:
    """Segmented text of both forms: a thousand lines, all Telugu, digits, Latin, punctuation."""
    telugu = [chr(i) for i in range(0x0C00, 0x0C80)]
    odd = [*telugu, *(f"క{c} {c}@@ @@{c}" for c in telugu), *map(chr, range(33, 127))]
    odd += ["the 1947 thing... @@the theing@@ ꙮ aꙮb <eos> <|end|> క<pad> @@ @@@ @@@@ 2024లో ఉంది."]
    after = [" ".join(upstream.segmented(line)) for line in lines]
    return {False: after + odd, True: [line.replace("@@ ", " @@") for line in after] + odd}


def table(lines: list[str], before: bool) -> dict[str, int]:
    """Most pieces of the text, not the rare ones; bare characters; some ASCII is missing."""
    counts = Counter(p for line in lines for p in line.split() if "ꙮ" not in p)
    letters = [chr(i) for i in (*range(33, 120), *range(0x0C00, 0x0C80))]
    letters += [] if before else [f"{c}@@" for c in letters]
    known = [piece for piece, n in counts.most_common() if n > 1]
    names = dict.fromkeys([*SPECIAL, *known, *letters, "the", "ing", "th@@", ".."])
    return {piece: i for i, piece in enumerate(names)}


def opened(folder: Path, form: str, ids: dict) -> Tokenizer:
    path = folder / "tokenizer.json"
    if form.startswith("WordLevel"):
        made = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        made.post_processor = processors.TemplateProcessing("<bos> $A", None, [("<bos>", 2)])
        made.add_special_tokens([*SPECIAL])
        made.save(str(path))
        config = {"model_type": "pothana", "eos_token": "<eos>", "extra_info": {"type": form}}
        path.with_name("tokenizer_config.json").write_text(json.dumps(config))
    else:
        kind = "morfessor_bpe_telugu" + "_v4" * (form == "v4")
        content = {"type": kind, "special_tokens": SPECIAL, "token_to_id": ids}
        content |= {"bpe_merges": MERGES} | ({} if form == "v4" else {"separator": "@@"})
        path.write_text(json.dumps(content))
    return tokenizer_files.open(path)


def slowly(form: str, ids: dict, line: str) -> list[int]:
    """Word after word by the rules, nothing remembered."""
    ids, found = {p: i for p, i in ids.items() if p not in SPECIAL}, []
    ranks = {tuple(pair): i for i, pair in enumerate(MERGES)}

    def cut(text: str, mark: str) -> list[str]:  # all but the last carry the mark
        parts = [*text] if re.search("[\u0c00-\u0c7f]", text) else merged_slowly(ranks, text)
        pairs = ((p, p + mark * (i < len(parts))) for i, p in enumerate(parts, 1))
        known = (p if p[-2:] != mark and whole in ids else "" for p, whole in pairs)
        return [c for p, k in zip(parts, known, strict=True) for c in ([k] if k else p)]

    for word in line.split():
        if form.startswith("WordLevel") or (word in ids and form == "v4"):
            found.append(ids.get(word, 1))
        elif form == "v4":
            rest = word.removeprefix("@@")
            found += [ids.get(piece, 1) for piece in (cut(rest, "") if rest else [])]
        else:
            joins = word.endswith("@@") and word != "@@"
            runs = re.findall("[\u0c00-\u0c7f]+|[^\u0c00-\u0c7f]+", word[: -2 if joins else None])
            for i, run in enumerate(runs, 1):
                mark = "@@" * (i < len(runs) or joins)
                if run[-2:] != "@@" and run + mark in ids:
                    found.append(ids[run + mark])
                    continue
                *inner, last = cut(run, "@@")
                found += [ids.get(f"{piece}@@", 1) for piece in inner]
                found.append(ids.get(last + mark, ids.get(last, 1)))
    return found


def read(before: bool, names: list[str], ids: list[int]) -> str:
    """Piece after piece."""
    text, joins = "", True
    for piece in (names[i] for i in ids):
        joins = joins or (before and piece[:2] == "@@")
        text += (" " if not joins else "") + (piece.removeprefix if before else piece.removesuffix)(
            "@@"
        )
        joins = not before and piece[-2:] == "@@"
    return text


@pytest.mark.parametrize("form", FORMS)
def test_ids_and_text_are_those_of_the_plain_reader(given, tmp_path, form):
    before = form.endswith("v4")
    ids = table(given[before], before)
    one, names = opened(tmp_path, form, ids), [*ids]
    assert (one.eos, one.unk, one.silent, one.size) == (3, 1, {0, 2, 4}, len(ids))
    found, wanted = one.encode(given[before]), [slowly(form, ids, x) for x in given[before]]
    assert found == wanted
    assert any(1 in x for x in found) and not {0, 2, 3, 4} & {i for x in found for i in x}
    shuffled = random.Random(1).sample(range(len(found)), len(found))  # no cache changes an id
    again = opened(tmp_path, form, ids).encode([given[before][i] for i in shuffled])
    assert again == [found[i] for i in shuffled]
    for x in found:
        assert one.decode(x) == read(before, names, x)
        assert "".join(one.pieces(x)).replace("▁", " ").strip(" ") == one.decode(x)
    for x in found[:300:9]:  # a joiner at a cut is hidden, and text comes as it is decoded
        whole, shown = one.decode(x), one.characters([*x, 3])[0]
        for at in range(0, len(x), 7):
            head, tail = one.decode(x[:at]), one.decode(x[at:])
            assert "@@" not in head + tail and whole.startswith(head) and whole.endswith(tail)
            assert "".join(chat.follow(iter(x[at:]), x[:at], one.decode)) == whole[len(head) :]
        known = one.decode(i for i in [*x, 3] if i != 1)
        assert shown.removeprefix(" ") == (known if before else known.replace(" ", ""))
        assert one.decode([0, 2, *x, 3, 4, *x, 0, 3]) == f"{whole}\n{whole}\n"


@pytest.mark.parametrize("form", FORMS[:3])
def test_a_released_folder_and_a_file_of_llama_cpp_make_the_same(given, tmp_path, form):
    ours = opened(tmp_path, form, table(given[form[-2:] == "v4"], form[-2:] == "v4"))
    (folder := tmp_path / "made").mkdir()
    beside = model_tokenizer.tokenizer_files(ours, folder, 48)
    shape = dict(layers=1, heads=4, dim=64, mlp_dim=96, context=48)
    tiny_model(vocab=ours.size, **shape).save(tmp_path / "m", beside)
    with pytest.warns(UserWarning, match="takes ids, no raw text .its pieces are joined by @@"):
        gguf_file.to_gguf(tmp_path / "m", folder / "x.gguf", "F16")
    some = [x for x in given[ours.marked][::5] if "<" not in x]
    ids, file = ours.encode(some), llama_cpp.Model(folder / "x.gguf")
    known = [x for x in ids if 1 not in x]
    assert [file.decode([3, *x]).strip(" ") for x in known] == [ours.decode(x) for x in known]
    if form == "v4":
        source = importlib.util.spec_from_file_location("run_gguf", folder / "run_gguf.py")
        source.loader.exec_module(script := importlib.util.module_from_spec(source))
        assert [script.encode(x) for x in some] == ids
        assert [script.decode(x) for x in known] == [ours.decode(x) for x in known]
    else:
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
        assert theirs(some, add_special_tokens=False).input_ids == ids
        texts = theirs.batch_decode([[2, *x, 3] for x in known], skip_special_tokens=True)
        assert texts == [ours.decode(x) for x in known]


def test_a_segmenter_s_morphs_join_where_the_table_has_such_a_piece(
    given, lines, segmenter, tmp_path
):
    cut, judge = re.compile("[\u0c00-\u0c7f]+|[^\u0c00-\u0c7f\\s]+"), morfessor.MorfessorIO()
    judge, ids = judge.read_binary_model_file(str(segmenter)), table(given[True], True)
    opened(tmp_path, "v4", ids)
    one = tokenizer_files.open(tmp_path / "tokenizer.json", segmenter)
    for line in [*lines[:60], "2024లో IPL @@ నగరంలో"]:
        parts = []
        for run in cut.findall(line):
            first, *rest = (
                judge.viterbi_segment(run)[0] if "\u0c00" <= run[0] <= "\u0c7f" else [run]
            )
            parts += [first, *(f"@@{m}" if f"@@{m}" in ids else m for m in rest)]
        text = " ".join(p for p in parts if p != "@@")
        assert [i for i in one.encode([line])[0] if i != ids["@"]] == slowly("v4", ids, text)
