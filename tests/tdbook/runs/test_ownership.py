"""The book removes and replaces only what it made: what others put at its places stays."""

import re
import shutil
import subprocess
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tdbook.__main__ import main
from tdbook.book import common
from tdbook.corpus import tokenizer_files
from tdbook.export import cards, gguf_file, shipping
from tdbook.runs import ownership, parameters, sweeps
from tdbook.runs.parameters import ParameterError
from tdbook.runs.running import Run, start
from tdbook.training import cache, worker
from tdbook.workflow import execute, graph, run_pages, scheduler
from tdlib import data, files
from tests import helpers, small_book
from tests.helpers import tiny_model
from tests.tdbook.runs.test_parameters import CASES

NOT_OURS = "is there and was not made by the book"
MINE = "a week of work"


def made(folder: Path, **content: str) -> Path:
    with files.whole_folder(folder) as beside:
        for name, text in content.items():
            (beside / name).write_text(text)
    return folder


def content(folder: Path) -> dict[str, str]:
    found = helpers.content(folder).items()
    return {name: raw.decode("latin1") for name, raw in found if files.MARK not in name}


def mine(path: Path, text: str = MINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(folder: Path, says: str, what, *given) -> None:
    """It is refused, and all in the folder is as it was."""
    before = content(folder)
    with pytest.raises((FileExistsError, ParameterError), match=says):
        what(*given)
    assert content(folder) == before


# what another left → what is said, and who would have taken its place
NET, WINDOWS = tiny_model(), data.Windows(np.arange(97, dtype="<u2").repeat(3), 16)
FIT = partial(worker.fit, NET, None, SimpleNamespace(ce_weight=1), processes=1)
REFUSED = {
    "teacher/optimizer.pt": (f"teacher {NOT_OURS}: move", lambda at: made(at / "teacher", w="new")),
    "hard_set.json/x": ("is a folder, a", lambda at: files.write_whole(at / "hard_set.json", "{}")),
    "index.html": ("no run is there", run_pages.index),
    "compare.html": ("no run is there", run_pages.index),
    "workers/x": (f"workers {NOT_OURS}", lambda at: FIT(folder=at)),
    "t.model": (f"t.model {NOT_OURS}", lambda at: tokenizer_files.train("a", 300, at / "t.model")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_or_folder_of_another_is_refused_and_stays(name, tmp_path):
    mine(tmp_path / name)
    refused(tmp_path, REFUSED[name][0], REFUSED[name][1], tmp_path)


def test_a_folder_of_the_books_is_replaced_and_what_others_put_there_or_near_stays(tmp_path):
    folder = tmp_path / "teacher"
    folder.mkdir()
    near = {".teacher.new/x": MINE, ".teacher.old/x": MINE, ".scores.npy.new": MINE}
    for name in near:
        mine(tmp_path / name)
    made(folder, weights="old", card="old")
    mine(folder / "notes/a.txt")
    (folder / "link").symlink_to("/dev/null")
    for weights in ("new", "third"):  # they are still not the book's
        made(folder, weights=weights)
        files.write_whole(tmp_path / "scores.npy", weights)
        theirs = {"teacher/weights": weights, "scores.npy": weights, "teacher/notes/a.txt": MINE}
        assert content(tmp_path) == near | theirs and (folder / "link").is_symlink()


@pytest.mark.parametrize("name", ["README.md", "weights"])
def test_a_file_that_was_changed_by_hand_is_not_replaced(name, tmp_path):
    folder = made(tmp_path / "50m", **{"README.md": "TODO: licence", "weights": "w" * 2**21})
    mine(folder / name, "MIT" if name == "README.md" else "w" * 2**20 + "v" + "w" * (2**20 - 1))
    new = {"README.md": "TODO", "weights": "new"}
    says = rf"{name} in \S+50m was not made by the book, or"
    refused(folder, says, lambda: made(folder, **new))


def test_a_link_is_never_deleted_through(tmp_path):
    elsewhere = made(tmp_path / "disk/teacher", weights="old")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/teacher").symlink_to(elsewhere)
    made(tmp_path / "out/teacher", weights="new")
    assert content(elsewhere) == {"weights": "old"}
    (tmp_path / "out/mine").symlink_to(mine(tmp_path / "owner/x").parent)
    refused(tmp_path, NOT_OURS, lambda: made(tmp_path / "out/mine", weights="new"))


@pytest.mark.parametrize("at", ["the old one is away", "the new one is there", "half is moved"])
def test_what_a_kill_leaves_is_the_old_or_the_new_folder_and_all_of_others(at, tmp_path):
    folder, old = tmp_path / "teacher", tmp_path / ".teacher.77.old"
    mine(made(folder, weights="old") / "a/LICENSE")
    mine(folder / "b")
    folder.rename(old)
    if at != "the old one is away":
        shutil.copytree(made(tmp_path / "new", weights="new"), folder)
    if at == "half is moved":
        (old / "b").rename(folder / "b")
    made(folder, weights="third")
    assert content(folder) == {"weights": "third", "a/LICENSE": MINE, "b": MINE}
    assert not old.exists()


@pytest.fixture
def folder(root) -> Path:
    """A run folder in which nothing has begun yet."""
    small_book.yaml(root, "01_distill-a")
    (root / "outputs/tiny").mkdir(parents=True)
    return root / "outputs/tiny"


@pytest.mark.parametrize("name", CASES["places"].split())
def test_what_another_left_at_a_place_of_a_run_is_refused_by_name(name, folder, capsys):
    mine(folder / name, '{"mine": 1}' if "hashes" in name else MINE)
    if not name.endswith("ipynb"):  # plain papermill writes that before the run begins
        given = {"run": "00_teacher", "out": "outputs/tiny"}
        refused(folder, re.escape(name.rpartition("/")[0] or name), start, "00_teacher", given)
    before = content(folder)
    assert execute.execute(Path("params/tiny/00_teacher.yaml").resolve(), folder, {}) == 1
    shown = capsys.readouterr().out
    assert "not the book's and would be replaced" in shown and shown.count("\n") == 1
    assert content(folder) == before


def test_the_book_says_all_that_is_in_its_way_before_anything_is_made(folder):
    for name in ("models/a/w", "tokens/x", "index.html"):
        mine(folder / name)
    before = content(folder)
    with pytest.raises(ParameterError, match=r"index\.html, \S+tokens, \S+models/a: not"):
        scheduler.make(graph.wanted("book", {"PROFILE": "tiny"}))
    assert before.items() <= content(folder).items() and not (folder / ".snakemake.log").exists()


def begin(**given) -> Run:
    for name in ("tokens/train.bin", "models/teacher/w"):
        mine(parameters.ROOT / "outputs/tiny" / name)
    return start("01_distill", {"run": "01_distill-a", "out": "outputs/tiny"} | given)


def test_a_run_goes_on_with_what_it_began_and_takes_nothing_else(folder):
    this = begin()
    mine(this.path("models", "a", "w"), "half")
    this.detach()
    begin().detach()
    mine(folder / "models/b/w")
    refused(folder / "models", "models/b: not the", lambda: begin(student="b"))


@pytest.mark.parametrize("how", ["the same", "linked", "a file in it", "its files are links"])
def test_what_a_run_reads_is_never_what_it_replaces(how, folder, tmp_path):
    source = mine(folder / "tokens/train.bin").parent
    mine(folder / ".claims/00_teacher.json", '["tokens", "models/teacher"]')  # even the book's
    given = {"tokens": str(source)}
    if how == "linked":
        (tmp_path / "link").symlink_to(source)
        given = {"tokens": f"{tmp_path}/../{tmp_path.name}/link/"}
    if how == "a file in it":
        given = {"tokenizer": str(mine(source / "t.model"))}
    if how == "its files are links":
        (tmp_path / "other").mkdir()
        (tmp_path / "other/train.bin").symlink_to(source / "train.bin")
        given = {"tokens": str(tmp_path / "other")}
    given |= {"run": "00_teacher", "out": str(folder)}
    refused(folder, "would replace tokens in .*: give another path", start, "00_teacher", given)


def test_cleaning_removes_kept_targets_alone(tmp_path):
    with cache.Cache(tmp_path / "cache/teacher-T1", tiny_model(), WINDOWS, temperature=1.0):
        pass
    mine(tmp_path / "cache/teacher-T1/.key-77.new")
    shutil.copytree(tmp_path / "cache/teacher-T1", tmp_path / "cache/other")
    for name in ("other/notes.txt", "mine/rows.bin", "mine/key.json"):
        mine(tmp_path / "cache" / name)
    said = ownership.clean_cache(tmp_path)
    assert {"cache/mine/key.json", "cache/mine/rows.bin", "cache/other/notes.txt"} <= {*said}
    assert sorted(content(tmp_path)) == said and not (tmp_path / "cache/teacher-T1").exists()
    (tmp_path / "point").mkdir()
    (tmp_path / "point/cache").symlink_to("../cache")
    assert not ownership.clean_cache(tmp_path / "point") and len(content(tmp_path)) == len(said)


def test_a_sweep_takes_no_file_of_another_and_no_folder_in_a_links_place(folder):
    path = folder.parents[1] / "params/tiny/sweeps/s.yaml"
    small_book.write(path, {"like": "01_distill-a", "grid": {"student": ["b"]}})
    place, write = folder / "sweeps/s", lambda: sweeps.write(sweeps.read("tiny", "s"), folder)
    for path in (place / "studentb/01_distill-studentb.yaml", place / "points.json"):
        refused(mine(path).parents[1], f"{path.name} {NOT_OURS}", write)
        path.unlink()
    write()
    mine(place / "points.json", (place / "points.json").read_text().replace('""', '"?"'))
    write()  # its own it may
    mine(folder / "models/teacher/w", "theirs")
    mine(place / "studentb/models/teacher/w")
    sweeps.link(place / "studentb", ["models/teacher"])
    assert (place / "studentb/models/teacher/w").read_text() == MINE


@pytest.fixture
def model(tokenizer, tmp_path) -> Path:
    folder = tmp_path / "models/50m"
    tiny_model(vocab=tokenizer.size).save(folder, {"tokenizer.model": tokenizer.path})
    mine(folder / "notes.txt")
    return folder


def test_an_export_never_takes_its_models_place_nor_anothers(model, tmp_path, monkeypatch, capsys):
    (tmp_path / "link").symlink_to("models")
    mine(model / "notes/x")
    before = content(model)
    monkeypatch.chdir(tmp_path)
    for name in ("models/50m", str(model), "link/50m/"):
        for out in "models/50m models/../models/50m/ link/50m models models/50m/notes".split():
            with pytest.raises(ValueError, match="is, or holds, the model itself"):
                shipping.ship(name, out)
    assert main(["export", "MODEL=link/50m", "OUT=models/"]) == 1
    assert "is, or holds, the model itself" in capsys.readouterr().out
    assert content(model) == before
    other = mine(tmp_path / "ship/README.md").parent
    refused(other, f"ship {NOT_OURS}", shipping.ship, model, other)


@pytest.mark.parametrize("name", ["x.gguf", "model.safetensors", "notes.txt"])
def test_a_gguf_takes_no_file_of_another(name, model):
    path = mine(model / name, "GGUF of another") if name == "x.gguf" else model / name
    refused(model, f"{name} {NOT_OURS}", gguf_file.to_gguf, model, path, "F16")
    mine(model / "new.gguf", "GGUF")
    files.mark(model, "new.gguf")
    files.own(model / "new.gguf")  # its own it may


def test_a_cards_place_is_its_owners(tmp_path, monkeypatch):
    this = SimpleNamespace(path=tmp_path.joinpath, out=tmp_path, parameters={}, provenance=dict)
    this.notebook, this.run = "00_teacher", "x"
    card = mine(tmp_path / "models/a/w").with_name("README.md")
    for text, stands in (("card", "card"), ("later", "later"), ("third", "the owner's own")):
        monkeypatch.setattr(cards, "card", lambda *_, text=text: text)
        if text == "third":
            mine(card, stands)
        common.write_card(this, "a", None, {}, {})
        assert card.read_text() == stands


def test_what_is_published_and_packed_takes_only_its_own_place(folder, root):
    small_book.finish(begin())
    published = mine(root / "outputs/published/a/index.html").parents[1]
    refused(published, f"a {NOT_OURS}", run_pages.publish, folder, "a")
    run_pages.publish(folder, "b")
    mine(published / "b/notes.md")
    assert content(run_pages.publish(folder, "b"))["notes.md"] == MINE
    archive = mine(folder / "tiny-reports.zip")
    with pytest.raises(FileExistsError, match=f"zip {NOT_OURS}"):
        run_pages.pack(folder)
    assert archive.read_text() == MINE
    archive.unlink()
    run_pages.pack(folder)
    run_pages.pack(folder)  # its own it may


@pytest.mark.parametrize("made", [True, False])
def test_make_clean_takes_the_books_own_environment_alone(made, tmp_path):
    shutil.copy(small_book.REPOSITORY / "Makefile", tmp_path)
    for name in (".venv/x", "outputs/x", *[".venv/made"] * made):
        mine(tmp_path / name)
    subprocess.run(["make", "-C", tmp_path, "clean"], check=True, capture_output=True)
    assert (tmp_path / ".venv/x").exists() == (not made) and (tmp_path / "outputs/x").exists()
