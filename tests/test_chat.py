"""make chat as somebody at a terminal meets it: through a pipe, and in a terminal of its own."""

import fcntl
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
import unicodedata
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import pytest

from tdbook.export import chat, gguf_file, llama_cpp
from tdlib import generate
from tdlib.model import Llama
from tests import upstream

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def places(tokenizer, tiny_llama, tmp_path_factory) -> dict[str, Path]:
    """A model folder, its .gguf file, and those of a model with an @@ vocabulary."""
    root = tmp_path_factory.mktemp("chat")
    tiny_llama(vocab=tokenizer.size, context=96).save(
        root / "m", {"tokenizer.model": tokenizer.path}
    )
    gguf_file.to_gguf(root / "m", root / "m.gguf", "Q8_0")
    lines = ["ఒక ఊరిలో ఒక రాజు ఉండేవాడు.", "వారు దేశాలలో 2024లో ఉన్నారు."]
    vocabulary = upstream.write(root / "up", lines * 30, 90)
    shutil.copy(root / "up" / "tokenizer.json", root / "morfessor.json")
    model = tiny_llama(vocab=len(vocabulary), context=96)
    model.save(root / "u", {"morfessor.json": root / "morfessor.json"})
    with pytest.warns(UserWarning, match="takes ids"):
        gguf_file.to_gguf(root / "u", root / "ids" / "u.gguf", "F16")
    return {"folder": root / "m", "file": root / "m.gguf", "ids": root / "ids" / "u.gguf",
            "joined": root / "u"}  # fmt: skip


@pytest.fixture
def said(monkeypatch, capsys) -> Callable:
    """What is shown where a model is chosen and some lines are typed."""

    def chat_with(model: Path, typed: str = "", code: int = 0) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        assert chat.main([f"MODEL={model}"]) == code
        return capsys.readouterr().out

    return chat_with


@pytest.mark.parametrize("place", ["folder", "file"])
def test_every_line_is_gone_on_with_until_the_end_of_what_is_typed(place, places, said):
    found = said(places[place], "ఒక ఊరిలో\nఆ రాజు\n")
    assert "goes on with the text you type; it was not taught to answer" in found.splitlines()[1]
    for text in ("ఒక ఊరిలో", "ఆ రాజు"):
        assert re.search(f"^> {text}.", found, re.MULTILINE)
    assert "�" not in found and len(re.findall(r"^\([\d.]+ s\)$", found, re.MULTILINE)) == 2


@pytest.mark.parametrize("place", ["ids", "joined"])
def test_with_an_upstream_vocabulary_text_is_typed_as_segmented(place, places, said):
    found = said(places[place], "ఒక ఊరి@@ లో\n")
    assert "Type text as segmented" in found.splitlines()[0]
    assert "@@" not in found.replace("ఊరి@@ లో", "")


@pytest.mark.parametrize("place", ["folder", "file"])
def test_a_prompt_that_fills_the_context_is_said_and_the_loop_goes_on(place, places, said):
    found = said(places[place], "ఒక ఊరిలో " * 60 + "\nఒక\n")
    assert re.search("context of 96: shorten it", found) and re.search("^> ఒక.", found, re.M)


def test_a_typo_is_answered_with_what_is_there(places, said):
    for place, given in (("folder", "m1"), ("file", "m1.gguf")):
        assert f"did you mean {places[place]}?" in said(places[place].with_name(given), code=1)
    (places["file"].parent / "cut.gguf").write_bytes(places["file"].read_bytes()[:-5000])
    assert "no whole GGUF file" in said(places["file"].with_name("cut.gguf"), code=1)


def test_text_comes_in_whole_letters_and_together_is_the_files_own(places):
    texts, _ = chat.file(places["file"], "")
    model = llama_cpp.Model(places["file"])
    ids = [3, *model.tokenize("ఒక")]
    for seed in range(5):
        new = model.generate(ids, 96 - len(ids), temperature=0.8, seed=seed)
        pieces = [*texts("ఒక", seed)]
        whole = model.text([*ids, *takewhile(lambda i: i != 3, new)]).replace("�", "")
        assert model.text(ids) + "".join(pieces) == whole and len(pieces) > 5
        inside = [piece for piece in pieces if piece][1:]
        assert not any(unicodedata.category(piece[0]).startswith("M") for piece in inside)


def test_a_text_begins_and_ends_where_the_models_own_files_say(places, tokenizer, tmp_path):
    shutil.copytree(places["folder"], tmp_path / "m")
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "add_bos_token": False}
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(config))
    model, ids = Llama.load(tmp_path / "m"), tokenizer.encode(["ఒక"])[0]
    how = dict(temperature=chat.TEMPERATURE, seed=0, stop=tokenizer.eos)
    new = generate.generate(model, ids, 96 - len(ids), **how)
    wanted = "".join(tokenizer.running([i for i in new if i != tokenizer.eos], ids))
    assert "".join(chat.folder(tmp_path / "m", "")[0]("ఒక", 0)) == wanted
    new = generate.generate(model, ids, 20, temperature=chat.TEMPERATURE, seed=0)
    (tmp_path / "m" / "generation_config.json").write_text(f'{{"eos_token_id": [3, {new[4]}]}}')
    short = "".join(chat.folder(tmp_path / "m", "")[0]("ఒక", 0))
    assert wanted.startswith(short) and len(short) < len(wanted) / 2
    gguf_file.to_gguf(tmp_path / "m", tmp_path / "m.gguf", "F16")
    file = llama_cpp.Model(tmp_path / "m.gguf")
    new = file.generate(ids, 90, temperature=chat.TEMPERATURE, seed=0)
    end = next(i for i, token in enumerate(new) if file.ends(token))
    before, whole = (file.text([*ids, *x]).replace("�", "") for x in ([], new[:end]))
    assert "".join(chat.file(tmp_path / "m.gguf", "")[0]("ఒక", 0)) == whole[len(before) :]


def test_a_folder_without_a_tokenizer_and_a_list_of_odd_ends_are_said(places, said, tmp_path):
    shutil.copytree(places["folder"], tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text('{"eos_token_id": [3, "</s>"]}')
    assert "eos_token_id holds '</s>', it must be ids" in said(tmp_path / "m", code=1)
    (tmp_path / "m" / "generation_config.json").write_text("{")
    assert "generation_config.json is no JSON" in said(tmp_path / "m", code=1)
    (tmp_path / "m" / "tokenizer.model").unlink()
    assert "m holds no tokenizer (tokenizer.json, " in said(tmp_path / "m", code=1)
    shutil.copy(places["ids"], tmp_path / "u.gguf")
    assert "holds no tokenizer (" in said(tmp_path / "u.gguf", code=1)


def test_control_c_ends_a_text_and_not_the_loop(monkeypatch, capsys):
    def endless(text: str, seed: int):
        yield f" {seed}"
        if text == "long":
            os.kill(os.getpid(), signal.SIGINT)  # as the terminal does
            while True:
                yield "!"

    monkeypatch.setattr(sys, "stdin", io.StringIO("long\nshort\n"))
    chat.loop(endless)
    found = capsys.readouterr().out
    assert re.search(r"^> long 0!* …\n\([\d.]+ s\)$", found, re.MULTILINE)
    assert re.search(r"^> short 1\n\([\d.]+ s\)$", found, re.MULTILINE)


def test_in_a_terminal_control_c_loses_nothing_and_control_d_ends(places):
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tdbook.export.chat", f"MODEL={places['folder']}"], cwd=ROOT,
        stdin=slave, stdout=slave, stderr=slave, start_new_session=True, preexec_fn=_own_terminal,
    )  # fmt: skip
    os.close(slave)
    try:
        _until(master, "> ")
        # at the prompt; one pressed between the prompt and readline's wait for a key is seen with
        # the next key only, so it is pressed again
        _until(master, "> ", b"\x03")
        os.write(master, "ఒక ఊరిలో\n".encode())
        assert "ఒక ఊరిలో" in _until(master, r"s\)\s+> ")
        os.write(master, b"\x04")
        assert process.wait(20) == 0
    finally:
        process.kill()
        os.close(master)


def _own_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _until(master: int, wanted: str, pressed: bytes = b"", seconds: float = 60) -> str:
    """What the terminal shows until there is a match in it; `pressed` once a second until then."""
    found, end, press = b"", time.monotonic() + seconds, 0.0
    while not re.search(wanted, found.decode(errors="ignore")):
        assert time.monotonic() < end, found.decode(errors="replace")
        if pressed and time.monotonic() > press:
            os.write(master, pressed)
            press = time.monotonic() + 1
        if select.select([master], [], [], 0.2)[0]:
            found += os.read(master, 4096)
    return found.decode(errors="replace")
