"""The page with models inside, in a real browser: it writes what llama.cpp itself writes."""

from pathlib import Path

import pytest

from tdbook.__main__ import main
from tdbook.book import common
from tdbook.export import llama_cpp, shipping
from tdbook.export.gguf_file import to_gguf
from tdbook.report import try_page
from tests import upstream
from tests.helpers import fonts_of, refused, tiny_model, token_folder

NAME, TEXT = "50m\"<b>&'", "ఒక ఊరిలో <eos> ఒక"  # a special token that is spelled stays text
ROOM = 96, 1024  # tokens of the student's context and of its teacher's


@pytest.fixture(scope="module")
def made(tokenizer, tmp_path_factory) -> tuple[Path, Path, Path]:
    """A student's folder in a run that exported it, with a card; that file; and a teacher's."""
    run = tmp_path_factory.mktemp("run")
    ids = tokenizer.encode(["ఒక ఊరిలో ఒక రాజు ఉండేవాడు."])[0] * 900
    token_folder(run / "tokens", ids[:6000], ids[6000:9000], vocab_size=700, block_size=48)
    folder, teacher = run / "models" / NAME, run / "teacher.gguf"
    for seed, place in enumerate((folder, run / "models/teacher")):
        model = tiny_model(seed, tokenizer.size, ROOM[seed], dim=64, mlp_dim=96)
        model.save(place, {"tokenizer.model": tokenizer.path})
    to_gguf(place, teacher, "F16")
    shipping.export({"MODEL": folder, "OUT": run / "exports"}, common.file_costs)
    return folder, next((run / "exports" / NAME).glob("*-Q4_0.gguf")), teacher


@pytest.fixture(scope="module")
def page(made, tmp_path_factory) -> Path:
    if not try_page.PROGRAM.is_dir():
        pytest.skip("no llama.cpp for browsers: `make .wllama/made` fetches it, and needs npm")
    out = tmp_path_factory.mktemp("out")
    assert main(["page", f"MODEL={made[0]} {made[2]}", f"OUT={out}"]) == 0
    return out / NAME / "try-teacher.html"


@pytest.fixture
def tab(page, browser):
    tab, urls = browser.new_context(offline=True).new_page(), []
    tab.set_default_timeout(150_000)  # a thousand tokens on a busy core
    tab.on("request", lambda request: urls.append(request.url.partition(":")[0]))
    tab.goto(page.as_uri())
    tab.locator("[name=text]").fill(TEXT)
    tab.locator("#go:enabled").wait_for()
    yield tab
    assert {*urls} == {"file", "blob"}  # it asks nothing of the outside


def go(tab, temperature: str, most: str, stop: bool = False) -> list[list[int]]:
    """The ids that each model wrote; by keyboard."""
    tab.locator("[name=temperature]").fill(temperature)
    tab.locator("[name=most]").fill(most)
    tab.locator("#go").press("Enter")
    if stop:
        tab.locator("[data-ids*=' ']").nth(1).wait_for()  # both have begun
        tab.locator("#stop:focus").press("Enter")
    tab.locator("#go:enabled").wait_for()
    texts = [box.get_attribute("data-ids") for box in tab.locator("[data-ids]").all()]
    return [[*map(int, text.split())] for text in texts]


def test_both_write_llama_cpps_own_ids_and_ask_nothing_of_the_outside(made, page, tab):
    greedy, boxes = go(tab, "0", "60"), tab.locator(".text").all()
    for path, ids, box in zip(made[1:], greedy, boxes, strict=True):
        model = llama_cpp.Model(path)
        prompt = [*model.begin, *model.tokenize(TEXT)]
        assert ids == model.generate(prompt, 60) and len(set(ids)) > 9
        written = model.decode([*prompt, *ids]).removeprefix(model.decode(prompt))
        assert box.inner_text() == TEXT + written.rstrip("�")
    assert any(font["isCustomFont"] for font in fonts_of(tab, ".text"))  # the page's own Telugu
    assert len({str(go(tab, "1", "60")) for _ in range(3)}) == 3  # drawn anew each time
    inside = [*made[1:], *(try_page.PROGRAM / part for part in try_page.PARTS)]
    assert page.stat().st_size <= 1.5 * sum(path.stat().st_size for path in inside)
    card = made[1].with_name("README.md").read_text("utf8").splitlines()
    (cells,) = (line.strip("| ").split("|") for line in card if "| +" in line and "Q4_0 " in line)
    assert {cell.strip() for cell in cells[1:]} <= {*tab.locator("td").all_inner_texts()}


def test_a_text_ends_where_it_is_stopped_or_the_context_ends(tab):
    assert 1 < len(go(tab, "0", "1024", stop=True)[1]) < 900
    student, teacher = map(len, go(tab, "0", "1024"))
    assert student < ROOM[0] < teacher < ROOM[1]
    tab.locator("[name=text]").fill("ఒక " * 200)
    go(tab, "0", "9")
    assert "fill its 96: shorten the text" in tab.locator("[role=status]").first.inner_text()


def test_it_is_whole_on_a_phone_and_a_name_stays_text(page, tab, faults):
    assert [fault for fault in faults(page) if not fault.startswith("request: blob:null/")] == []
    assert tab.locator("h2").all_inner_texts()[:2] == [NAME, "teacher"]
    assert tab.locator("textarea").evaluate("e => parseFloat(getComputedStyle(e).fontSize)") >= 16


@pytest.mark.filterwarnings("ignore:.*takes ids")
def test_what_cannot_be_tried_is_refused_in_a_line(made, tmp_path):
    words, place = upstream.write(tmp_path / "up", ["ఒక ఊరిలో ఒక రాజు."] * 60, 90), tmp_path / "m/m"
    beside = {"morfessor.json": tmp_path / "up/tokenizer.json"}
    tiny_model(vocab=len(words)).save(place, beside)
    shipping.ship(place, tmp_path / "exports/m")
    with refused("takes token ids, no raw text: its pieces are joined by @@", "make chat"):
        try_page.write({"MODEL": f"{place}"})
    tiny_model(1, len(words)).save(place, beside)  # trained again since
    with refused("no GGUF files of these weights", "make export", error=FileNotFoundError):
        try_page.write({"MODEL": f"{place}"})
    with refused("are 3 with 1 MB: a page holds two models of 380 MB"):
        try_page.write({"MODEL": f"{made[2]} {made[2]} {made[2]}"})
