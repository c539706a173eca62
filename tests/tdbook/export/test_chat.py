"""make chat as somebody at a terminal meets it."""

import io
import json
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import pytest

from tdbook.__main__ import main
from tdbook.export import chat, llama_cpp
from tdbook.export.gguf_file import to_gguf
from tdlib import generate
from tdlib.model import Llama
from tests import upstream
from tests.helpers import tiny_model


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
    assert "�" not in text and len(re.findall(r"^\([\d.]+ s\)$", text, re.MULTILINE)) == 3


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
    assert tokenizer.decode(ids) + "".join(chat.continued(model, "ఒక", 0)) == whole
    to_gguf(tmp_path / "m", tmp_path / "m.gguf", "F16")
    files = (places["file"], [3], [3]), (tmp_path / "m.gguf", [], [3, new[9]])
    for path, begin, ends in files:
        model, file = chat.opened(path, "")[0], llama_cpp.Model(path)
        prompt = [*begin, *ids]
        for seed in range(4):
            new = file.stream(prompt, 96 - len(prompt), chat.TEMPERATURE, seed)
            new = [*takewhile(lambda i, ends=ends: i not in ends, new)]
            pieces = [*chat.continued(model, "ఒక", seed)]
            whole = file.decode([*prompt, *new])
            assert file.decode(prompt) + "".join(pieces) == whole.replace("�", "")
            assert len(pieces) > len(new) / 4
            inside = [piece for piece in pieces if piece][1:]
            signs = [piece for piece in inside if unicodedata.category(piece[0])[0] == "M"]
            assert not signs or "�" in whole  # which is left out, and a sign may follow it
