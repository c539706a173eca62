"""Released folders as their readers meet them: transformers, the Hub's own card reader."""

import contextlib
import io
import json
import logging
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import sentencepiece
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

from tdbook.corpus import token_files, tokenizer_files
from tdbook.corpus.tokenizer import Tokenizer
from tdbook.export import cards, model_tokenizer
from tdlib import data
from tests.helpers import cases, tiny_model, trained_sentencepiece

CASES = cases(__file__)
CONTEXT = 24
EDGES = CASES["edges"]


@pytest.fixture(scope="module")
def tokens(tokenizer, tmp_path_factory) -> data.Tokens:
    folder = tmp_path_factory.mktemp("tokens") / "tokens"
    line = "ఆ ఊరిలో ఒక రాజు ఉండేవాడు, అతనికి ముగ్గురు కొడుకులు."
    documents = [SimpleNamespace(lines=[line] * 40, source="test")]
    token_files.write_tokens(folder, {"train": documents, "val": documents}, tokenizer, CONTEXT)
    return token_files.open_tokens(folder)


def released(tokenizer, folder: Path) -> Path:
    """A small model's folder with a tokenizer's files."""
    (folder / "made").mkdir(parents=True)
    files = model_tokenizer.tokenizer_files(tokenizer, folder / "made", CONTEXT)
    shape = dict(heads=2, dim=16, mlp_dim=24, context=CONTEXT, eos_id=tokenizer.eos)
    tiny_model(0, tokenizer.size, **shape).save(folder / "50m", files)
    return folder / "50m"


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory) -> Path:
    """That of the book's own kind; only to be read."""
    return released(tokenizer, tmp_path_factory.mktemp("released"))


# that somebody else trained
trained = partial(trained_sentencepiece, vocab_size=900, pad_id=0, unk_id=1, bos_id=2, eos_id=3)


def test_auto_tokenizer_gives_our_ids_text_special_tokens_and_context(lines, tmp_path):
    ours = tokenizer_files.train(lines, 3000, tmp_path / "tokenizer.model")
    theirs = transformers.AutoTokenizer.from_pretrained(released(ours, tmp_path))
    assert (theirs.eos_token, theirs.bos_token, theirs.eos_token_id) == ("<eos>", "<eos>", 3)
    assert (theirs.pad_token_id, theirs.unk_token_id, len(theirs)) == (0, 1, ours.size)
    assert theirs.model_max_length == CONTEXT and theirs.convert_ids_to_tokens([2]) == ["<bos>"]
    assert theirs(["ఒక", "ఒక ఊరిలో"], padding=True).attention_mask[0][0] == 0  # before the text
    judge = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    texts = lines + EDGES
    wanted = judge.encode(texts)
    assert theirs(texts).input_ids == wanted == ours.encode(texts)
    ended = [[*ids, 3] for ids in wanted]
    assert theirs.batch_decode(ended, skip_special_tokens=True) == texts


@pytest.mark.parametrize("name", CASES["sentencepiece"])
def test_another_sentencepiece_model_keeps_its_ids_or_is_left_to_its_package(name, lines, tmp_path):
    options, converted = CASES["sentencepiece"][name]
    ours = trained(tmp_path / "theirs.model", lines[::4], **options)
    if not converted:
        files = model_tokenizer.tokenizer_files(ours, tmp_path, CONTEXT)
        assert files == {"sentencepiece.model": ours.path}
        return
    theirs = transformers.AutoTokenizer.from_pretrained(released(ours, tmp_path))
    assert theirs(lines[::5] + EDGES).input_ids == ours.encode(lines[::5] + EDGES)
    assert theirs.eos_token_id == ours.eos


def hugging_face(lines, folder: Path, config, over_bytes=True, regex=True, size=800) -> Tokenizer:
    """Over bytes, as GPT-2's and Llama 3's; or with "▁" in place of each space and nowhere else."""
    folder.mkdir(exist_ok=True)
    made = tokenizers.Tokenizer(models.BPE(unk_token="<|endoftext|>"))
    if over_bytes:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
        made.decoder, alphabet = decoders.ByteLevel(), pre_tokenizers.ByteLevel.alphabet()
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        made.decoder, alphabet = decoders.Metaspace(prepend_scheme="never"), []
    options = dict(special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, **options)
    made.train_from_iterator(lines, trainer)
    made.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer_files.open(folder / "tokenizer.json")


@pytest.mark.parametrize("config, over_bytes", CASES["hugging_face"], ids=str)
def test_a_hugging_face_tokenizer_is_released_as_it_is(config, over_bytes, lines, tmp_path):
    ours = hugging_face(lines, tmp_path / "given", config, over_bytes)
    folder = released(ours, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert theirs(lines[::5] + EDGES).input_ids == ours.encode(lines[::5] + EDGES)
    assert theirs.eos_token_id == ours.eos == 0 and theirs.model_max_length == CONTEXT
    assert (folder / "tokenizer.json").read_bytes() == ours.path.read_bytes()
    assert theirs.chat_template == (config or {}).get("chat_template")


ROW, RECORD = CASES["row"], CASES["record"] | {"parameters": CASES["parameters"]}


def program(card: str, folder: Path) -> str:
    """The card's only program, with `name = "YOUR-NAME/…"` turned into a folder."""
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    code, count = re.subn('^name = ".*?"', f"name = {str(folder)!r}", code, flags=re.M)
    assert count == 1
    return code


def run(code: str, caplog) -> dict:
    """What a program leaves behind; it must print a text, and transformers must have no remark."""
    transformers.logging.enable_propagation()
    left, printed = {}, io.StringIO()
    with caplog.at_level(logging.WARNING), contextlib.redirect_stdout(printed):
        exec(code, left)
    transformers.logging.disable_propagation()
    assert printed.getvalue().strip() and not caplog.records, caplog.records
    return left


def test_the_program_of_the_card_goes_on_with_a_text(tokenizer, lines, tokens, tmp_path, caplog):
    odd = dict(eos_id=2, bos_id=3, model_type="unigram")  # of no AutoTokenizer
    other = trained(tmp_path / "theirs.model", lines, **odd)
    for ours, eos in ((tokenizer, 3), (other, 2)):
        folder = released(ours, tmp_path / str(eos))
        left = run(
            program(cards.card(folder, tokens, {folder.name: ROW}, RECORD, {}), folder), caplog
        )
        assert left["beginning"].tolist() == [[eos, *ours.encode(["ఒక ఊరిలో"])[0]]]
    with pytest.raises(ValueError):
        transformers.AutoTokenizer.from_pretrained(folder)


def test_that_for_upstreams_vocabulary_encodes_as_we_do(shared, lines, tokens, tmp_path, caplog):
    ours = tokenizer_files.open(shared / "data" / "upstream_tokenizer" / "tokenizer.json")
    folder = released(ours, tmp_path)
    assert (folder / "morfessor.json").read_bytes() == ours.path.read_bytes()
    assert not [*folder.glob("tokenizer*")] and not [*(tmp_path / "made").iterdir()]
    card = cards.card(folder, tokens, {folder.name: ROW}, RECORD, {})
    left = run(program(card, folder), caplog)
    texts = [*lines, "విద్యార్థు@@ ల@@ కు 2024లో Wikipedia@@ లో ఉంది. a1b2,c3 అఖ్ఖ్ఖ్@@ ల"]
    texts += ["☃ x☃@@ y", "festival chandrababu traind@@ lo"]
    odd = map(chr, [*range(33, 127), *range(0x0C00, 0x0C80)])
    texts += [f"{c} {c}@@ క{c} x{c}@@ {c}ల" for c in odd]
    texts += ["కూడాకూ కూడాకూ@@ x కూడాకూ international@@ y international zzq@@ z zzq"]  # no cache
    wanted = ours.encode(texts)
    assert [left["encode"](text) for text in texts] == wanted
    assert [left["decode"](ids) for ids in wanted] == [ours.decode(ids) for ids in wanted]


def test_the_card_tells_numbers_run_and_origin_and_no_path(tokens, base, tmp_path):
    better = dict.fromkeys(ROW, 0.5) | dict(parameters=99_000, kl=float("nan"))
    better.pop("acceptance")  # of an older record
    rows = {base.name: ROW, "teacher": better, "scratch": ROW | {"loss": 6.02459}}
    written = {base.name: ["ఒక ▸ రాజు\nఉన్నాడు"], "teacher": ["ఒక ▸ ఊరు"]}
    text = cards.card(base, tokens, rows, RECORD, written)
    assert not [part for part in CASES["told"] if part not in text]
    assert "secret" not in text and "device: auto" not in text
    card = huggingface_hub.ModelCard(text)
    assert card.text.count("TODO") == 3  # licence, data, teacher: nothing is made up
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == ROW  # as the Hub reads it
    about = card.data.to_dict()
    assert (about["language"], about["library_name"]) == ("te", "transformers")
    assert about["tags"] == ["telugu", "llama"] and "license" not in about
    for name, notebook, change, origin in CASES["origins"]:
        (folder := tmp_path / name).symlink_to(base)
        record = RECORD | dict(notebook=notebook, parameters=CASES["parameters"] | change)
        assert origin in cards.card(folder, tokens, {folder.name: ROW}, record, {})
    (folder := tmp_path / "a run's 50m+x").symlink_to(base)
    card = cards.card(folder, tokens, {folder.name: ROW}, RECORD, {})
    (name,) = re.findall('^name = "(YOUR-NAME/.*?)"', card, re.M)  # the Hub takes it
    huggingface_hub.utils.validate_repo_id(name)
