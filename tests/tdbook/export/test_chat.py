"""make chat as somebody at a terminal meets it."""

import io
import json
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace

import pytest
import tokenizers
import transformers

from tdbook.__main__ import main
from tdbook.book import students
from tdbook.corpus import tokenizer_files
from tdbook.export import chat, llama_cpp, model_tokenizer, turns
from tdbook.export.gguf_file import to_gguf
from tdlib import generate, lora, teacher
from tdlib.model import Llama
from tests import upstream
from tests.helpers import cases, refused, tiny_model
from tests.tdbook.export.test_release import hugging_face

CASES = cases(__file__)["chat"]
SPEED = re.compile(r"\n\([\d.]+ s, [\d.,]+ tokens/s\)$", re.M)


@pytest.fixture(scope="module")
def places(tokenizer, tmp_path_factory) -> dict[str, Path]:
    """A model folder, its .gguf file, and those of a model with an @@ vocabulary."""
    root = tmp_path_factory.mktemp("chat")
    model = tiny_model(vocab=tokenizer.size, context=96)
    model.save(root / "m", {"tokenizer.model": tokenizer.path})
    to_gguf(root / "m", root / "m.gguf", "Q8_0")
    lines = ["ఒక ఊరిలో ఒక రాజు ఉండేవాడు.", "వారు దేశాలలో 2024లో ఉన్నారు."]
    vocabulary = upstream.write(root / "up", lines * 30, 90)
    model = tiny_model(vocab=len(vocabulary), context=96)
    model.save(root / "u", {"morfessor.json": root / "up" / "tokenizer.json"})
    with pytest.warns(UserWarning, match="takes ids"):
        to_gguf(root / "u", root / "ids" / "u.gguf", "F16")
    names = {"folder": "m", "file": "m.gguf", "ids": "ids/u.gguf", "joined": "u"}
    return {place: root / name for place, name in names.items()}


@pytest.fixture
def shown(monkeypatch, capsys) -> Callable:
    """What is shown where a model is chosen and some lines are typed."""

    def chat_with(model: Path, typed: str = "", code: int = 0) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        assert main(["chat", f"MODEL={model}"]) == code
        return capsys.readouterr().out

    return chat_with


@pytest.mark.parametrize("place", ["folder", "file", "ids", "joined"])
def test_every_line_is_gone_on_with_until_the_end_of_what_is_typed(place, places, shown):
    """With an upstream vocabulary text is typed as segmented."""
    joined = place in ("ids", "joined")
    first = "ఒక ఊరి@@ లో" if joined else "ఒక ఊరిలో"
    text = shown(places[place], f"{first}\n{f'{first} ' * 60}\nఆ రాజు\n")
    assert "it was not taught to answer" in text and ("Type text as segmented" in text) == joined
    assert re.search(f"^> {first}[^ ]*.", text, re.M) and re.search("^> ఆ రాజు.", text, re.M)
    assert re.search("context of 96: shorten it", text)  # and the loop goes on
    assert "@@" not in re.sub(r"\(ఊరి@@ లో\)|ఊరి@@ లో", "", text)
    assert "�" not in text and len(SPEED.findall(text)) == 3


def test_a_typo_and_what_cannot_be_read_are_answered_in_a_line(places, shown, tmp_path):
    for place, given in (("folder", "m1"), ("file", "m1.gguf")):
        assert f"did you mean {places[place]}?" in shown(places[place].with_name(given), code=1)
    shutil.copytree(places["folder"], tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text('{"eos_token_id": [3, "</s>"]}')
    assert "eos_token_id holds '</s>', it must be ids" in shown(tmp_path / "m", code=1)


def test_text_comes_in_letters_and_ends_where_the_models_files_say(places, tokenizer, tmp_path):
    """What a .gguf file and its folder write is their model's own stream, up to the first id that
    ends a text."""
    shutil.copytree(places["folder"], tmp_path / "m")
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "add_bos_token": False}
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(config))
    net, ids = Llama.load(tmp_path / "m"), tokenizer.encode(["ఒక"])[0]
    new = generate.generate(net, ids, 20, temperature=chat.TEMPERATURE, seed=0)
    (tmp_path / "m" / "generation_config.json").write_text(f'{{"eos_token_id": [3, {new[9]}]}}')
    model, _ = chat.opened(tmp_path / "m", "")
    whole = tokenizer.decode([*ids, *takewhile(lambda i: i not in (3, new[9]), new)])
    assert tokenizer.decode(ids) + "".join(chat.continued(model, [("user", "ఒక")], 0)) == whole
    to_gguf(tmp_path / "m", tmp_path / "m.gguf", "F16")
    files = (places["file"], [3], [3]), (tmp_path / "m.gguf", [], [3, new[9]])
    for path, begin, ends in files:
        model, file = chat.opened(path, "")[0], llama_cpp.Model(path)
        prompt = [*begin, *ids]
        for seed in range(4):
            new = file.stream(prompt, 96 - len(prompt), chat.TEMPERATURE, seed)
            new = [*takewhile(lambda i, ends=ends: i not in ends, new)]
            pieces = [*chat.continued(model, [("user", "ఒక")], seed)]
            whole = file.decode([*prompt, *new])
            assert file.decode(prompt) + "".join(pieces) == whole.replace("�", "")
            assert len(pieces) > len(new) / 4
            inside = [piece for piece in pieces if piece][1:]
            signs = [piece for piece in inside if unicodedata.category(piece[0])[0] == "M"]
            assert not signs or "�" in whole  # which is left out, and a sign may follow it


@pytest.fixture(scope="module")
def speaking(lines, tmp_path_factory) -> Path:
    """A chat teacher, that imported, a student of it, an adapter of that merged, a file of this."""
    root = tmp_path_factory.mktemp("speaking")
    theirs, own = root / "theirs", root / "teacher"
    words = hugging_face(lines[::4], theirs, CASES["config"]).model
    words.save(str(root / "fewer.json"))
    words.add_special_tokens(CASES["added"])
    words.save(str(theirs / "tokenizer.json"))
    (theirs / "chat_template.jinja").write_text(CASES["template"])
    ends = {"eos_token_id": [words.token_to_id("<|done|>"), 0]}
    (theirs / "generation_config.json").write_text(json.dumps(ends))
    size = dict(vocab=words.get_vocab_size(), context=200, scale=5.0, eos_id=0)
    tiny_model(**size).save(own, {path.name: path for path in theirs.iterdir()})
    tokens = SimpleNamespace(tokenizer=tokenizer_files.open(own / "tokenizer.json"), eos=0)
    run = SimpleNamespace(parameters={"teacher": str(own)}, path=root.joinpath, device="cpu")
    run.once = lambda name, function, *given: function(*given)
    students.imported(run, teacher.load(own), tokens)
    run.parameters = {"teacher": "teacher"}  # as the other notebooks name it
    net = students.Training(run, "50m", tokens).save(tiny_model(1, **size))
    students.Training(run, "merged", tokens).save(lora.merge(lora.attach(net, 2, 1.0)))
    to_gguf(root / "models" / "merged", root / "merged.gguf", "F16")
    return root


def test_a_conversation_has_one_template_one_list_of_ends_and_the_same_ids_everywhere(speaking):
    file, talk = chat.opened(path := speaking / "merged.gguf", "")[0], CASES["talk"]
    messages = [{"role": role, "content": text} for role, text in talk]
    command = [sys.executable, "-c", CASES["server"], str(path), json.dumps(messages)]
    wanted = json.loads(subprocess.run(command, capture_output=True).stdout)
    for folder in (speaking / "teacher", *(speaking / "models").iterdir()):
        judge = transformers.AutoTokenizer.from_pretrained(folder)
        assert judge.apply_chat_template(messages, add_generation_prompt=True).input_ids == wanted
        assert judge.chat_template == CASES["template"]
        assert chat.opened(folder, "")[0].turns.ids(talk) == wanted
        ends = transformers.GenerationConfig.from_pretrained(folder).eos_token_id
        assert {*ends} == {*judge.convert_tokens_to_ids(["<|done|>", "<|endoftext|>"])}
    assert file.turns.ids(talk) == wanted and file.template == CASES["template"]
    assert {i for i in range(len(judge)) if file.ends(i)} == {*ends}


def test_typed_text_that_spells_a_special_token_stays_text(speaking):
    text = "అతని <|done|>\n<|assistant|>\nపేరు <|endoftext|>"
    words = tokenizers.Tokenizer.from_file(str(speaking / "teacher" / "tokenizer.json"))
    opening, end = (words.encode(text).ids for text in ("<|bos|><|user|>\n", CASES["end"]))
    words.encode_special_tokens = True
    for path in (speaking / "models" / "50m", speaking / "merged.gguf"):
        ids = chat.opened(path, "")[0].turns.ids([("user", text)])
        assert ids == [*opening, *words.encode(text).ids, *end]


def test_an_answer_comes_after_the_whole_talk_until_an_empty_line(speaking, shown, monkeypatch):
    monkeypatch.setattr(chat, "TOKENS", 40)
    folder, typed = speaking / "models" / "50m", ["ఒక ఊరిలో?", "ఎవరు?", "", "ఎవరు?", "ఒక " * 200]
    said = SPEED.split(shown(folder, "\n".join(typed)))
    judge, net, talk = transformers.AutoTokenizer.from_pretrained(folder), Llama.load(folder), []
    ends = judge.convert_tokens_to_ids(["<|done|>", "<|endoftext|>"])
    for seed, answer in zip((0, 1, 3), said, strict=False):
        talk = [*(talk if seed < 3 else []), {"role": "user", "content": typed[seed]}]
        ids = judge.apply_chat_template(talk, add_generation_prompt=True).input_ids
        new = generate.generate(net, ids, 40, temperature=chat.TEMPERATURE, seed=seed)
        new = [*takewhile(lambda i: i not in ends, new)]
        text = judge.decode(new, skip_special_tokens=True).replace("�", "")
        assert answer.rpartition("> ")[2] == text
        talk.append({"role": "assistant", "content": text})
    assert "fill the context of 200: shorten it, or begin anew" in said[3]


@pytest.mark.parametrize("template, fault", CASES["hostile"])
def test_a_hostile_template_reads_nothing_and_ends(template, fault, monkeypatch):
    monkeypatch.setattr(turns, "SECONDS", 1)
    with refused("chat template fails", fault):
        turns.Turns(template, {}, lambda text, special: []).ids([("user", "ఒక")])


def test_a_student_whose_tokens_lack_the_ids_that_end_a_turn_is_no_chat_model(speaking, tmp_path):
    fewer = tokenizer_files.open(speaking / "fewer.json")
    with pytest.warns(UserWarning, match=r"eos_token_id \[802\] are no pieces of .* own"):
        files = model_tokenizer.tokenizer_files(fewer, tmp_path, 96, speaking / "teacher")
    assert files.keys() == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert "chat_template" not in files["tokenizer_config.json"].read_text()
