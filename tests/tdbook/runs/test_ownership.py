"""The book removes and replaces only what it made: what others put at its places stays."""

import ast
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tdbook.__main__ import main
from tdbook.analysis import features
from tdbook.book import common
from tdbook.corpus import tokenizer_files
from tdbook.export import cards, gguf_file, shipping
from tdbook.runs import ownership, parameters, sweeps
from tdbook.runs.leftovers import clear_checkpoint
from tdbook.runs.parameters import ParameterError
from tdbook.runs.running import Run, start
from tdbook.training import cache, worker
from tdbook.workflow import execute, request, run_pages, scheduler, share
from tdlib import data, evaluate, files
from tdlib.files import write_whole as write
from tests import small_book

REPOSITORY = Path(__file__).parents[3]


def made(folder: Path, **content: str) -> Path:
    with files.whole_folder(folder) as beside:
        for name, text in content.items():
            (beside / name).write_text(text)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    paths = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != files.MARK)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def mine(path: Path, text: str = "a week of work") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_folder_of_another_is_refused_and_stays(tmp_path):
    before = content(mine(tmp_path / "teacher/optimizer.pt").parent)
    with pytest.raises(FileExistsError, match="teacher is there and was not made by the book: m"):
        made(tmp_path / "teacher", weights="new")
    assert content(tmp_path / "teacher") == before
    assert [p.name for p in tmp_path.iterdir()] == ["teacher"]


def test_an_empty_folder_and_one_of_the_books_are_replaced_and_what_others_put_there_stays(
    tmp_path,
):
    folder = tmp_path / "teacher"
    folder.mkdir()
    made(folder, weights="old", card="old")
    mine(folder / "notes/a.txt")
    mine(folder / "LICENSE", "mine")
    (folder / "link").symlink_to("/dev/null")
    made(folder, weights="new")
    theirs = {"LICENSE": b"mine", "notes/a.txt": b"a week of work"}
    assert content(folder) == {"weights": b"new"} | theirs
    assert (folder / "link").is_symlink() and [p.name for p in tmp_path.iterdir()] == ["teacher"]
    made(folder, weights="third")  # they are still not the book's
    assert content(folder)["LICENSE"] == b"mine"


@pytest.mark.parametrize("name", ["README.md", "weights"])
def test_a_file_that_was_changed_by_hand_is_not_replaced(name, tmp_path):
    folder = made(tmp_path / "50m", **{"README.md": "TODO: licence", "weights": "w" * 2**21})
    mine(folder / name, "MIT" if name == "README.md" else "w" * 2**20 + "v" + "w" * (2**20 - 1))
    before = content(folder)
    with pytest.raises(FileExistsError, match=rf"{name} in \S+50m was not made by the book, or"):
        made(folder, **{"README.md": "TODO", "weights": "new"})
    assert content(folder) == before


def test_a_link_is_never_deleted_through(tmp_path):
    elsewhere = made(tmp_path / "disk/teacher", weights="old")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/teacher").symlink_to(elsewhere)
    made(tmp_path / "out/teacher", weights="new")
    assert content(elsewhere) == {"weights": b"old"}
    (tmp_path / "out/mine").symlink_to(mine(tmp_path / "owner/x").parent)
    with pytest.raises(FileExistsError):
        made(tmp_path / "out/mine", weights="new")
    assert content(tmp_path / "owner") == {"x": b"a week of work"}


def test_temporary_names_are_no_one_elses(tmp_path):
    for name in (".teacher.new", ".teacher.old", ".scores.npy.new"):
        mine(tmp_path / name / "x" if "teacher" in name else tmp_path / name)
    before = content(tmp_path)
    made(tmp_path / "teacher", weights="old")
    made(tmp_path / "teacher", weights="new")
    files.write_whole(tmp_path / "scores.npy", b"new")
    assert before.items() <= content(tmp_path).items()


@pytest.mark.parametrize("at", ["the old one is away", "the new one is there", "half is moved"])
def test_what_a_kill_leaves_is_the_old_or_the_new_folder_and_nothing_of_others_is_lost(
    at, tmp_path
):
    folder, old = tmp_path / "teacher", tmp_path / ".teacher.77.old"
    mine(made(folder, weights="old") / "a/LICENSE")
    mine(folder / "b")
    folder.rename(old)
    if at != "the old one is away":
        shutil.copytree(made(tmp_path / "new", weights="new"), folder)
    if at == "half is moved":
        (old / "b").rename(folder / "b")
    made(folder, weights="third")
    theirs = {"a/LICENSE": b"a week of work", "b": b"a week of work"}
    assert content(folder) == {"weights": b"third"} | theirs and not old.exists()


def test_a_folder_never_gives_way_to_a_file(tmp_path):
    mine(tmp_path / "hard_set.json/x")
    with pytest.raises(FileExistsError, match="is a folder, a file is to stand there"):
        write(tmp_path / "hard_set.json", "{}")
    assert content(tmp_path) == {"hard_set.json/x": b"a week of work"}


@pytest.fixture
def folder(root) -> Path:
    """A run folder in which nothing has begun yet."""
    small_book.yaml(root, "01_distill-a")
    (root / "outputs/tiny").mkdir(parents=True)
    return root / "outputs/tiny"


NAMES = """tokens/train.bin models/teacher/w models/teacher/optimizer.pt 00_teacher.html
 results/00_teacher.json hashes/00_teacher.json state/00_teacher.json checkpoints/00_teacher/x
 figures/00_teacher-curve.png tables/00_teacher-sizes.csv logs/00_teacher-teacher.jsonl
 .done/00_teacher scores/val/teacher.npy scores/val/teacher.npz index.html morning.md""".split()


@pytest.mark.parametrize("name", [*NAMES, "00_teacher.ipynb"])
def test_what_another_left_at_a_place_of_a_run_is_refused_by_name(name, folder, capsys):
    mine(folder / name, '{"mine": 1}' if "hashes" in name else "a week of work")
    before = content(folder)
    if not name.endswith("ipynb"):  # plain papermill writes that before the run begins
        with pytest.raises(FileExistsError, match=re.escape(name.rpartition("/")[0] or name)):
            start("00_teacher", {"run": "00_teacher", "out": "outputs/tiny"})
        assert content(folder) == before and not (folder / ".claims").exists()
    assert execute.execute(Path("params/tiny/00_teacher.yaml").resolve(), folder, {}) == 1
    shown = capsys.readouterr().out
    assert "not the book's and would be replaced" in shown and shown.count("\n") == 1
    assert content(folder) == before


def test_the_book_says_all_that_is_in_its_way_before_anything_is_made(folder):
    for name in ("models/a/w", "tokens/x", "index.html"):
        mine(folder / name)
    before = content(folder)
    with pytest.raises(ParameterError) as error:
        scheduler.make(request.wanted("book", {"PROFILE": "tiny"}))
    assert "index.html, tokens, models/a in" in str(error.value)
    assert before.items() <= content(folder).items() and not (folder / ".snakemake.log").exists()


def begin(**given) -> Run:
    return start("01_distill", {"run": "01_distill-a", "out": "outputs/tiny"} | given)


def inputs(folder: Path) -> None:
    for name in ("tokens/train.bin", "models/teacher/w"):
        mine(folder / name)


def test_a_run_goes_on_with_what_it_began_and_reads_what_the_owner_put_there(folder):
    inputs(folder)
    this = begin()
    mine(this.path("models", "a", "w"), "half")
    this.detach()
    begin().detach()
    mine(folder / "models/b/w")
    with pytest.raises(FileExistsError, match="models/b in"):
        begin(student="b")


def test_a_folder_older_than_marks_goes_on_and_what_its_owner_added_stays(folder):
    inputs(folder)
    this = begin()
    mine(this.path("models", "a", "w"), "old")
    mine(this.path("scores/val/a.npy"))
    this.finish()
    shutil.rmtree(folder / ".claims")
    mine(folder / "models/a/LICENSE")
    begin(learning_rate=0.5).detach()
    (old,) = (folder / "old").iterdir()
    assert content(old / "models/a") == {"w": b"old", "LICENSE": b"a week of work"}
    made(folder / "models/a", w="new")
    assert content(folder / "models/a") == {"w": b"new"}


@pytest.mark.parametrize("left", [None, "", '["models/a"'])  # none: older than claims; a power cut
def test_a_stopped_run_without_claims_owns_only_what_is_younger_than_its_beginning(folder, left):
    inputs(folder)
    before = mine(folder / "models/a/w")
    this, claims = begin(student="b"), folder / ".claims/01_distill-a.json"
    mine(this.path("models", "b", "w"), "half")
    this.detach()
    shutil.rmtree(folder / ".claims")
    if left is not None:
        mine(claims, left)
    os.utime(before, (1e9, 1e9))
    begin(student="b").detach()
    assert "models/b" in files.record(claims, kind=list)
    with pytest.raises(FileExistsError, match="models/a in"):
        begin(student="a", redo=True)


@pytest.mark.parametrize("how", ["the same", "linked", "a file in it", "its files are links"])
def test_what_a_run_reads_is_never_what_it_replaces(how, folder, tmp_path):
    source = mine(folder / "tokens/train.bin").parent
    given = {"tokens": str(source)}
    (folder / ".claims").mkdir()  # even where it is the book's
    (folder / ".claims/00_teacher.json").write_text('["tokens", "models/teacher"]')
    if how == "linked":
        (tmp_path / "link").symlink_to(source)
        given = {"tokens": f"{tmp_path}/../{tmp_path.name}/link/"}
    if how == "a file in it":
        given = {"tokenizer": str(mine(source / "t.model"))}
    if how == "its files are links":
        (tmp_path / "other").mkdir()
        (tmp_path / "other/train.bin").symlink_to(source / "train.bin")
        given = {"tokens": str(tmp_path / "other")}
    with pytest.raises(
        FileExistsError, match=r"is the run's own folder: leave (tokens|tokenizer) empty"
    ):
        start("00_teacher", {"run": "00_teacher", "out": str(folder)} | given)
    assert (source / "train.bin").read_text() == "a week of work"


def test_of_a_runs_checkpoints_only_its_own_go(folder):
    inputs(folder)
    this = begin()
    place = this.path("checkpoints", this.run, "a", "x").parent
    for name in ("state.pt", ".state.pt.77.begun", "epoch-1.safetensors", "notes.txt"):
        mine(place / name)
    mine(this.path("models", "a", "w"), "w")
    this.finish()
    assert content(place).keys() == {"epoch-1.safetensors", "notes.txt"}
    begin(redo=True).detach()
    (old,) = (folder / "old").iterdir()
    assert content(old / place.relative_to(folder)).keys() == {"epoch-1.safetensors", "notes.txt"}
    for name in ("state.pt", "epoch-1.safetensors", "notes.txt"):
        mine(place / name)
    clear_checkpoint(place.parent, epochs=True)
    assert content(place).keys() == {"notes.txt"}


def test_a_website_is_no_run_folder(folder):
    mine(folder / "index.html")
    with pytest.raises(FileExistsError, match="no run is there"):
        run_pages.index(folder)
    assert content(folder) == {"index.html": b"a week of work"}


@pytest.fixture
def windows():
    return data.Windows(np.arange(97, dtype="<u2").repeat(3), 16)


def test_a_cache_takes_no_file_that_it_did_not_make(tmp_path, windows, tiny_llama):
    mine(tmp_path / "rows.bin")
    with pytest.raises(FileExistsError, match="holds what the book did not write"):
        cache.Cache(tmp_path, tiny_llama(), windows, temperature=1.0)
    assert content(tmp_path) == {"rows.bin": b"a week of work"}


def test_cleaning_removes_kept_targets_alone(tmp_path, windows, tiny_llama):
    with cache.Cache(tmp_path / "cache/teacher-T1", tiny_llama(), windows, temperature=1.0):
        pass
    mine(tmp_path / "cache/teacher-T1/.key-77.new")
    shutil.copytree(tmp_path / "cache/teacher-T1", tmp_path / "cache/other")
    for name in ("other/notes.txt", "mine/rows.bin", "mine/key.json"):
        mine(tmp_path / "cache" / name)
    said = ownership.clean_cache(tmp_path)
    assert said == ["cache/mine/key.json", "cache/mine/rows.bin", "cache/other/notes.txt"]
    assert sorted(content(tmp_path)) == said
    (tmp_path / "point").mkdir()
    (tmp_path / "point/cache").symlink_to("../cache")
    assert not ownership.clean_cache(tmp_path / "point") and len(content(tmp_path)) == 3


def test_a_job_of_workers_takes_no_folder_of_another(tmp_path, windows, tiny_llama):
    mine(tmp_path / "workers/x")
    with pytest.raises(FileExistsError, match="workers is there and was not made by the book"):
        worker.fit(tiny_llama(), None, None, processes=1, folder=tmp_path)
    assert content(tmp_path) == {"workers/x": b"a week of work"}


def test_features_and_losses_of_another_stay(tmp_path, windows, monkeypatch):
    monkeypatch.setattr(features, "_look", lambda tokens, progress: "found")
    monkeypatch.setattr(features, "_key", lambda tokens: "key")
    np.savez(mine(tmp_path / "features.npz"), mine=1)
    before = content(tmp_path)
    assert features.of(None, tmp_path) == "found" and content(tmp_path) == before
    mine(tmp_path / "features.npz")
    assert features.of(None, tmp_path) == "found"
    mine(tmp_path / "a-12345678.npz")
    found = evaluate.Evaluation(np.zeros(3), np.arange(3), np.zeros((3, 2)), {}, 0.0, 0.0)
    found.save(tmp_path, "a-12345678", whole=False)
    assert content(tmp_path)["a-12345678.npz"] == b"a week of work"


def test_a_sweep_takes_no_file_of_another_and_no_folder_in_a_links_place(tmp_path, monkeypatch):
    sweep = sweeps.Sweep("s", "tiny", "01_distill", "?", (), {}, {"a": {}}, *())
    monkeypatch.setattr(sweeps.Sweep, "values", lambda self, point, run, out: {"run": run})
    place = tmp_path / "sweeps/s"
    for path in (place / "a/01_distill-a.yaml", place / "points.json"):
        before = content(mine(path).parents[1])
        with pytest.raises(FileExistsError, match=f"{path.name} is there and was not made"):
            sweeps.write(sweep, tmp_path, None)
        assert content(path.parents[1]) == before
        path.unlink()
    sweeps.write(sweep, tmp_path, None)
    sweeps.write(replace(sweep, question="!"), tmp_path, None)  # its own it may
    mine(tmp_path / "models/teacher/w", "theirs")
    mine(place / "a/models/teacher/w")
    sweeps.link(place / "a", ["models/teacher"])
    assert (place / "a/models/teacher/w").read_text() == "a week of work"


def test_a_vocabulary_takes_no_file_of_another(tmp_path):
    mine(tmp_path / "t.model")
    with pytest.raises(FileExistsError, match=r"t.model is there and was not made by the book"):
        tokenizer_files.train(["a"], 300, tmp_path / "t.model")
    assert content(tmp_path) == {"t.model": b"a week of work"}


@pytest.fixture
def model(tokenizer, tiny_llama, tmp_path) -> Path:
    folder = tmp_path / "models/50m"
    tiny_llama(vocab=tokenizer.size).save(folder, {"tokenizer.model": tokenizer.path})
    mine(folder / "notes.txt")
    return folder


def test_an_export_never_takes_its_models_place(model, tmp_path, monkeypatch, capsys):
    (tmp_path / "link").symlink_to("models")
    before = content(model)
    monkeypatch.chdir(tmp_path)
    for name in ("models/50m", str(model), "link/50m/"):
        for out in "models/50m models/../models/50m/ link/50m models models/50m/notes".split():
            mine(model / "notes/x") if out.endswith("notes") else None
            with pytest.raises(ValueError, match="is, or holds, the model itself"):
                shipping.ship(name, out)
            shutil.rmtree(model / "notes", ignore_errors=True)
    assert main(["export", "MODEL=link/50m", "OUT=models/"]) == 1
    assert "is, or holds, the model itself" in capsys.readouterr().out
    assert content(model) == before


def test_an_export_replaces_its_own_and_no_other(model, tmp_path, monkeypatch):
    same = {"likeliest": 1.0, "mean": 0.0, "largest": 0.0}
    monkeypatch.setattr(shipping, "check", lambda *_: same)
    monkeypatch.setattr(shipping, "other_weight", lambda *_: "")
    monkeypatch.setattr(gguf_file, "write", lambda model, path, kind: path.write_text(kind))
    monkeypatch.setattr(shipping, "_card", lambda *_: "TODO: licence")
    out = mine(tmp_path / "ship/50m/README.md").parent
    with pytest.raises(FileExistsError, match="50m is there and was not made by the book"):
        shipping.ship(model, out)
    assert content(out) == {"README.md": b"a week of work"}
    shutil.rmtree(out)
    shipping.ship(model, out)
    mine(out / "LICENSE")
    shipping.ship(model, out)
    mine(out / "README.md", "MIT")  # the owner has filled in the card
    with pytest.raises(FileExistsError, match=r"README.md in \S+50m was not made by the book, or"):
        shipping.ship(model, out)
    assert (out / "README.md").read_text() == "MIT"
    assert (out / "LICENSE").read_text() == "a week of work"


@pytest.mark.parametrize("name", ["x.gguf", "model.safetensors", "config.json", "notes.txt"])
def test_a_gguf_takes_no_file_of_another(name, model):
    path = mine(model / name, "GGUF of another") if name == "x.gguf" else model / name
    before = content(model)
    with pytest.raises(FileExistsError, match=f"{name} is there and was not made by the book"):
        gguf_file.to_gguf(model, path, "F16")
    assert content(model) == before
    if name == "x.gguf":
        mine(model / "new.gguf", "GGUF")
        files.mark(model, "new.gguf")
        files.own(model / "new.gguf")  # its own it may


def test_a_cards_place_is_its_owners(tmp_path, monkeypatch):
    this = SimpleNamespace(parameters={}, provenance=dict, notebook="00_teacher", run="x")
    this.path, this.out = tmp_path.joinpath, tmp_path
    mine(tmp_path / "models/a/w")
    for text in ("card", "a later card"):
        monkeypatch.setattr(cards, "card", lambda *_, text=text: text)
        common.write_card(this, "a", None, {})
        assert (tmp_path / "models/a/README.md").read_text() == text
    mine(tmp_path / "models/a/README.md", "the owner's own")
    common.write_card(this, "a", None, {})
    assert (tmp_path / "models/a/README.md").read_text() == "the owner's own"


def test_what_is_published_and_packed_takes_only_its_own_place(root, monkeypatch):
    out = root / "outputs/tiny"
    small_book.yaml(root, "01_distill-a")
    inputs(out)
    this = begin()
    mine(this.path("models", "a", "w"), "w")
    this.finish()
    monkeypatch.setattr(parameters, "ROOT", root)
    target = mine(root / "outputs/published/a/index.html").parent
    with pytest.raises(FileExistsError, match="a is there and was not made by the book"):
        share.publish(out, "a")
    assert content(target) == {"index.html": b"a week of work"}
    share.publish(out, "b")
    mine(root / "outputs/published/b/notes.md")
    assert content(share.publish(out, "b"))["notes.md"] == b"a week of work"
    lead = mine(root / "outputs/published/b-quality.png")
    with pytest.raises(ParameterError, match=r"b-quality.png is not the figure"):
        share.publish(out, "b")
    archive = mine(out / "tiny-reports.zip")
    with pytest.raises(ParameterError, match="zip is there and was not packed here"):
        share.pack(out)
    assert lead.read_text() == archive.read_text() == "a week of work"
    archive.unlink()
    share.pack(out)
    share.pack(out)  # its own it may


@pytest.mark.parametrize("made", [True, False])
def test_make_clean_takes_the_books_own_environment_alone(made, tmp_path):
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    for name in (".venv/x", "outputs/x", *[".venv/made"] * made):
        mine(tmp_path / name)
    subprocess.run(["make", "-C", tmp_path, "clean"], check=True, capture_output=True)
    assert (tmp_path / ".venv/x").exists() == (not made) and (tmp_path / "outputs/x").exists()


# how a file of another survives there, as a test of this file or in words → functions
PLACES = {
    "test_an_empty_folder_and_one_of_the_books_are_replaced_and_what_others_put_there_stays": """
        files.whole_folder files._put files.mark model.Llama.save lora.save token_files.write_tokens
        token_files.link_tokens""",
    "test_what_a_kill_leaves_is_the_old_or_the_new_folder_and_nothing_of_others_is_lost": """
        files._finish""",
    "test_temporary_names_are_no_one_elses": """files.replacing files.write_whole files.remove
        data.weighted""",
    "test_what_another_left_at_a_place_of_a_run_is_refused_by_name": """
        students.Log.record adapters.weighed running.Run.figure running.Run.table running.Run.finish
        running.Run._begin_anew heartbeat.write_state
        execute._settled execute._write_notebooks_whole run_pages._write hard_set.keep
        hard_set.new_scores evaluate.Evaluation.save""",
    "test_a_website_is_no_run_folder": "run_pages._write_index",
    "test_of_a_runs_checkpoints_only_its_own_go": """leftovers.clear_checkpoint checkpoint.save
        leftovers.keep_or_refuse_checkpoint""",
    "test_a_cards_place_is_its_owners": "common.write_card",
    "test_a_cache_takes_no_file_that_it_did_not_make": "cache._make",
    "test_cleaning_removes_kept_targets_alone": "ownership.clean_cache",
    "test_a_job_of_workers_takes_no_folder_of_another": "worker.fit worker._run worker._train",
    "test_features_and_losses_of_another_stay": "features.of",
    "test_a_sweep_takes_no_file_of_another_and_no_folder_in_a_links_place": """sweeps.write
        sweeps.link""",
    "test_a_vocabulary_takes_no_file_of_another": "tokenizer_files.train",
    "test_an_export_replaces_its_own_and_no_other": "shipping.ship",
    "test_a_gguf_takes_no_file_of_another": """gguf_file.to_gguf gguf_file.write""",
    "test_what_is_published_and_packed_takes_only_its_own_place": "share.publish share.pack",
    "a temporary folder that was made for it": """share._lead share._copy share._write
        model_tokenizer.tokenizer_files""",
    "only what is between its own two marks, and an error without them": "published.readme",
    "only where nothing is there": "dashboard.logging pages.font_face",
    "it adds to the end": "hooks._main devices._locked",
    "a hidden name of the book's own": """scheduler._locked scheduler._snakemake
        scheduler._command_of execute.execute status.session cluster.options ownership.claim
        hashes._hurt""",
    "a broken record is renamed to .broken, never removed": "disk.set_aside",
    "a name that holds the second when the run began": "leftovers.put_away",
    "this process's own entry in /proc": "doctor.step",
}
CALLS = """rmtree unlink rmdir replacing whole_folder write_whole write_text write_bytes symlink
 symlink_to copytree truncate mark os.rename os.replace runs.write write shutil.move""".split()

LAST = {"open", *(call.rpartition(".")[2] for call in CALLS)}


def writing(path: Path) -> set[str]:
    """The functions of a module that delete, replace, rename or write."""
    found = set()

    def look(node: ast.AST, name: str) -> None:
        for one in ast.iter_child_nodes(node):
            inner = isinstance(one, ast.FunctionDef | ast.ClassDef)
            if isinstance(one, ast.Call):
                last = getattr(one.func, "attr", getattr(one.func, "id", ""))
                called = ast.unparse(one.func) if last in LAST else ""
                modes = [m.value for m in one.args if isinstance(m, ast.Constant)]
                opens = [m for m in modes if re.fullmatch("[wax+b]*[wax+][b+]*", str(m))]
                opens = called.endswith("open") and opens
                if opens or called in CALLS or (last in CALLS and last != "write"):
                    found.add(name)
            look(one, f"{name}.{one.name}" if inner else name)

    look(ast.parse(path.read_text("utf8")), path.stem)
    return found


def test_every_place_that_deletes_replaces_or_renames_has_a_test_here():
    known = {place: how for how, places in PLACES.items() for place in places.split()}
    modules = [p for place in ("tdlib", "tdbook") for p in (REPOSITORY / place).rglob("*.py")]
    found = {name for path in modules for name in writing(path)}
    assert found == known.keys()
    assert all(how in globals() for how in PLACES if how.startswith("test_"))
    calls = re.compile(r".*(?:\brm |unlink|rename|rmtree).*")
    lines = [len(calls.findall((REPOSITORY / n).read_text())) for n in ("Makefile", "Snakefile")]
    assert lines == [4, 0]  # test_make_clean…
    for path in (REPOSITORY / "notebooks").glob("*.ipynb"):
        assert not re.search(r"unlink|rmtree|os\.re|write_|open\(", path.read_text("utf8")), path
