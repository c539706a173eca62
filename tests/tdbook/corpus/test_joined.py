"""Pieces joined by "@@" as the owner has them today, against a plain reader of the rules: the table
of type …_v4, and Hugging Face's WordLevel of either form."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import morfessor
import pytest
import transformers

from tdbook.corpus import tokenizer_files
from tdbook.corpus.tokenizer import Tokenizer
from tdbook.export import chat, gguf_file, llama_cpp, model_tokenizer
from tests import upstream
from tests.helpers import tiny_model
from tests.tdbook.corpus import test_tokenizer
from tests.tdbook.corpus.test_tokenizer import merged_slowly

CASES = test_tokenizer.CASES["joined"]
SPECIAL = CASES["v4"]["special_tokens"]
RANKS = {tuple(pair): i for i, pair in enumerate(CASES["v4"]["bpe_merges"])}
segmenter = test_tokenizer.segmenter  # a fixture


def segmented(lines: list[str], before: bool) -> tuple[list[str], dict[str, int]]:
    """A thousand lines, all Telugu, digits, Latin, punctuation; and a table of most of its pieces:
    some ASCII is missing."""
    text = [" ".join(upstream.segmented(line)) for line in lines]
    text = [line.replace("@@ ", " @@" if before else "@@ ") for line in text]
    telugu = [chr(i) for i in range(0x0C00, 0x0C80)]
    text += [*telugu, *(f"క{c} {c}@@ @@{c}" for c in telugu), *map(chr, range(33, 127))]
    text += ["the 1947 thing... @@the theing@@ ꙮ aꙮb <eos> <|end|> క<pad> @@ @@@ @@@@ 2024లో ఉంది."]
    counts = Counter(piece for line in text for piece in line.split() if "ꙮ" not in piece)
    names = [*SPECIAL, *(piece for piece, n in counts.most_common() if n > 1), "ing", ".."]
    names += [*map(chr, range(33, 120)), *telugu]
    return text, {name: i for i, name in enumerate(dict.fromkeys(names))}


def opened(folder: Path, form: str, ids: dict) -> Tokenizer:
    content, words = CASES["v4"] | {"token_to_id": ids}, CASES["words"]
    if form != "v4":
        content = words | {"model": words["model"] | {"vocab": ids}}
    for name, part in (("tokenizer.json", content), ("tokenizer_config.json", CASES["config"])):
        (folder / name).write_text(json.dumps(part))
    return tokenizer_files.open(folder / "tokenizer.json")


def slowly(form: str, ids: dict, word: str) -> list[int]:
    """A word by the rules: of v4 what is not in the table goes into characters, or through BPE."""
    rest = word.removeprefix("@@")
    if word in ids or form != "v4":
        return [ids.get(word, 1)]
    parts = [*rest] if re.search("[\u0c00-\u0c7f]", rest) else merged_slowly(RANKS, rest)
    return [ids.get(c, 1) for part in parts for c in ([part] if part in ids else part)]


def read(pieces: list[str], before: bool) -> str:
    """Piece after piece, a joint with its space taken out."""
    return re.sub("(^|\n)@@" if before else "@@(\n|$)", "", "\n".join(pieces)).replace("\n", " ")


@pytest.mark.parametrize("form", ["v4", "WordLevel v4", "WordLevel"])
def test_ids_and_text_are_the_plain_reader_s_here_and_in_what_is_released(lines, tmp_path, form):
    before = form.endswith("v4")
    text, table = segmented(lines, before)
    one, names = opened(tmp_path, form, table), [*table]
    assert (one.eos, one.unk, one.silent, one.size) == (3, 1, {0, 2, 4}, len(table))
    bare = {piece: i for piece, i in table.items() if piece not in SPECIAL}
    words = {word: slowly(form, bare, word) for word in {*" ".join(text).split()}}
    ids = one.encode(text)
    assert ids == [[i for word in line.split() for i in words[word]] for line in text]
    assert {i for x in ids for i in x} & {0, 1, 2, 3, 4} == {1}
    order = random.Random(1).sample(range(len(ids)), len(ids))  # no cache changes an id
    assert opened(tmp_path, form, table).encode([text[i] for i in order]) == [ids[i] for i in order]
    assert [one.decode(x) for x in ids] == [read([names[i] for i in x], before) for x in ids]
    for x in ids[:300:9]:  # a joiner at a cut is hidden, and text comes as it is decoded
        whole, head = one.decode(x), one.decode(x[:7])
        assert "@@" not in head and "@@" not in one.decode(x[7:]) and whole.startswith(head)
        assert "".join(chat.follow(iter(x[7:]), x[:7], one.decode)) == whole[len(head) :]
        assert "".join(one.pieces(x)).replace("▁", " ").removeprefix(" ") == whole
        assert one.decode([0, 2, *x, 3, 4, *x, 0, 3]) == f"{whole}\n{whole}\n"
    (folder := tmp_path / "made").mkdir()
    model = tiny_model(vocab=one.size, layers=1, dim=32, mlp_dim=32, context=48)
    model.save(tmp_path / "m", model_tokenizer.tokenizer_files(one, folder, 48))
    with pytest.warns(UserWarning, match="takes ids, no raw text .its pieces are joined by @@"):
        gguf_file.to_gguf(tmp_path / "m", folder / "x.gguf", "F16")
    known, file = [x for x in ids if 1 not in x], llama_cpp.Model(folder / "x.gguf")
    whole = [one.decode(x) for x in known]
    assert [file.decode([3, *x]).strip(" ") for x in known[::5]] == whole[::5]
    if form == "v4":
        script = {"__name__": "", "__file__": folder / "run_gguf.py"}
        exec(script["__file__"].read_text(), script)
        assert [script["encode"](line) for line in text[:-1]] == ids[:-1]
        assert [script["decode"](x) for x in known] == whole
    else:
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
        assert theirs(text[:-1], add_special_tokens=False).input_ids == ids[:-1]
        more = [[2, *x, 3] for x in known]
        assert theirs.batch_decode(more, skip_special_tokens=True) == whole


def test_a_segmenter_s_morphs_join_where_the_table_has_such_a_piece(lines, segmenter, tmp_path):
    judge = morfessor.MorfessorIO().read_binary_model_file(str(segmenter))
    plain = opened(tmp_path, "v4", table := segmented(lines, True)[1])
    raw = tokenizer_files.open(plain.path, segmenter)
    for line in [*lines[:60], "లో 2024లో IPL నగరంలో"]:
        runs = re.findall("[\u0c00-\u0c7f]+|[^\u0c00-\u0c7f\\s]+", line)
        cut = (judge.viterbi_segment(run)[0] if run > "ఀ" else [run] for run in runs)
        parts = (f"@@{m}" if i and f"@@{m}" in table else m for p in cut for i, m in enumerate(p))
        assert raw.encode([line]) == plain.encode([" ".join(parts)])
    assert raw.decode(raw.encode(["@@IPL"])[0]).count("@") == 2  # text, no mark
