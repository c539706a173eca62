"""The page with models inside, in a real browser: it writes what llama.cpp itself writes."""

import shutil
import subprocess
import types
from pathlib import Path

import pytest

from tdbook.__main__ import main
from tdbook.book import common
from tdbook.export import llama_cpp, shipping
from tdbook.export.gguf_file import to_gguf
from tdbook.report import try_page
from tests import upstream
from tests.helpers import refused, tiny_model, token_folder

NAME, ROOM = "50m\"<b>&'", {"student": 96, "teacher": 1024}  # tokens of context
TEXT = "ఒక ఊరిలో <eos> ఒక"  # a special token that is spelled stays text


@pytest.fixture(scope="module")
def made(tokenizer, tmp_path_factory) -> types.SimpleNamespace:
    """A student's folder in a run that exported it, with a card, and the file of a teacher."""
    run, size = tmp_path_factory.mktemp("run"), tokenizer.size
    ids = tokenizer.encode(["ఒక ఊరిలో ఒక రాజు ఉండేవాడు."])[0] * 900
    token_folder(run / "tokens", ids[:6000], ids[6000:9000], vocab_size=size, block_size=48)
    folders = {"student": run / "models" / NAME, "teacher": run / "models/teacher"}
    for seed, (name, folder) in enumerate(folders.items()):
        model = tiny_model(seed, size, ROOM[name], dim=64, mlp_dim=96)
        model.save(folder, {"tokenizer.model": tokenizer.path})
    to_gguf(folders["teacher"], run / "teacher.gguf", "F16")
    shipping.export({"MODEL": folders["student"], "OUT": run / "exports"}, common.file_costs)
    (file,) = (run / "exports" / NAME).glob("*-Q4_0.gguf")
    files = [file, run / "teacher.gguf"]
    return types.SimpleNamespace(run=run, folder=folders["student"], files=files)


@pytest.fixture(scope="module")
def page(made, tmp_path_factory) -> Path:
    if not try_page.PROGRAM.is_dir():
        pytest.skip("no llama.cpp for browsers: `make .wllama/made` fetches it, and needs npm")
    out = tmp_path_factory.mktemp("out")
    assert main(["page", f"MODEL={made.folder} {made.files[1]}", f"OUT={out}"]) == 0
    return out / NAME / "try-teacher.html"


@pytest.fixture
def tab(page, browser):
    tab, tab.requests = browser.new_context(offline=True).new_page(), []
    tab.on("request", lambda request: tab.requests.append(request.url))
    tab.on("dialog", lambda dialog: pytest.fail(dialog.message))
    tab.goto(page.as_uri())
    tab.locator("[name=text]").fill(TEXT)
    tab.locator("#go:enabled").wait_for()
    yield tab
    tab.context.close()


def go(tab, temperature: float, most: int, stop: bool = False) -> list[list[int]]:
    """The ids that each model wrote; by keyboard."""
    tab.locator("[name=temperature]").fill(str(temperature))
    tab.locator("[name=most]").fill(str(most))
    tab.locator("#go").press("Enter")
    if stop:
        tab.locator("#stop:focus").press("Enter")
    tab.locator("#go:enabled").wait_for()
    boxes = tab.locator("[data-ids]").all()
    return [[*map(int, box.get_attribute("data-ids").split())] for box in boxes]


def test_both_write_llama_cpps_own_ids_and_ask_nothing_of_the_outside(made, page, tab):
    for path, ids, box in zip(made.files, go(tab, 0, 60), tab.locator(".text").all(), strict=True):
        model = llama_cpp.Model(path)
        prompt = [*model.begin, *model.tokenize(TEXT)]
        assert ids == model.generate(prompt, 60) and len(set(ids)) > 9
        written = model.decode([*prompt, *ids]).removeprefix(model.decode(prompt))
        assert box.inner_text() == TEXT + written.rstrip("�")
    assert len({str(go(tab, 1, 60)) for _ in range(3)}) == 3  # drawn anew each time
    assert {url.partition(":")[0] for url in tab.requests} == {"file", "blob"}
    inside = [*made.files, *(try_page.PROGRAM / part for part in try_page.PARTS)]
    assert page.stat().st_size <= 1.5 * sum(path.stat().st_size for path in inside)
    card = (made.files[0].parent / "README.md").read_text("utf8").splitlines()
    (cells,) = (line.strip("| ").split("|") for line in card if "| +" in line and "Q4_0 " in line)
    assert {cell.strip() for cell in cells[1:]} <= {*tab.locator("td").all_inner_texts()}


def test_a_text_can_be_stopped_by_keyboard_and_ends_where_the_context_does(tab):
    student, teacher = go(tab, 0, 1024, stop=True)
    assert len(teacher) < 900
    student, teacher = go(tab, 0, 1024)
    assert len(student) < ROOM["student"] < len(teacher)
    tab.locator("[name=text]").fill("ఒక " * 200)
    go(tab, 0, 9)
    assert "fill its 96: shorten the text" in tab.locator("[role=status]").first.inner_text()


def test_it_is_whole_on_a_phone_and_names_stay_text(page, tab, faults):
    assert [fault for fault in faults(page) if not fault.startswith("request: blob:null/")] == []
    assert tab.locator("h2").all_inner_texts()[:2] == [NAME, "teacher"]
    assert tab.locator("main b b").count() == 0
    size = "element => parseFloat(getComputedStyle(element).fontSize)"
    assert tab.locator("[name=text]").evaluate(size) >= 16
