"""Bad input gets one line that says what it is, what is wrong and what to do; nothing is half made.

A row of bad_input.yaml is given as a user gives it: to a notebook's own cells, until one refuses.
What lay in the run folder before must lie there afterwards, byte for byte.
"""

import contextlib
import ctypes
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from IPython.core.interactiveshell import InteractiveShell

from tdbook import __main__
from tdbook.book import students
from tdbook.corpus import token_files, tokenizer_files, writer
from tdbook.corpus.prepare import prepare
from tdbook.runs import heartbeat, ownership, parameters, running
from tdbook.workflow import graph
from tdlib import files, teacher
from tests import helpers, spoil
from tests.helpers import full_disk
from tests.smoke_book import new_shell
from tests.test_notebooks import cells

REPOSITORY = Path(__file__).parents[1]
TABLES = yaml.safe_load(Path(__file__).with_name("bad_input.yaml").read_text("utf8"))
WORDS = TABLES.pop("make book")
SMALL = {"profile": "smoke", "shape": "teacher-smoke", "vocab_size": 500, "context": 32}
SMALL |= {"token_limit": 600, "batch_tokens": 64, "fixed_windows": 4}
# what a run says of itself
OWN = r"(state|\.claims)/[\w-]+\.json|checkpoints/[\w-]+/made_from\.json|(tables|logs)/.*"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """text.txt, tokens/ made of it, and a teacher/ that fits them."""
    place, documents = tmp_path_factory.mktemp("good"), writer.write(30_000, 5)
    prose = "\n\n".join("\n".join(d.lines) for d in documents)
    (place / "text.txt").write_text(prose, encoding="utf8")
    made = tokenizer_files.train(prose.splitlines(), 500, place / "t.model")
    splits = {"train": documents[2:], "val": documents[:2]}
    token_files.write_tokens(place / "tokens", splits, made, 32)
    torch.manual_seed(0)
    spoil.llama(place / "teacher", {})
    return place


@pytest.fixture
def out(good, tmp_path) -> Path:
    """A run folder with tokens and a teacher, by its claims and marks the book's."""
    ownership.claim(tmp_path / "out", "00_teacher", {})
    for name in ("tokens", "models/teacher"):
        shutil.copytree(good / Path(name).name, tmp_path / "out" / name)
        files.mark(tmp_path / "out" / name)
    return tmp_path / "out"


def content(folder: Path) -> dict[str, bytes]:
    """Every file, temporary ones too; what a run says of itself left out."""
    found = helpers.content(folder)
    return {name: raw for name, raw in found.items() if not re.fullmatch(OWN, name)}


@contextlib.contextmanager
def unprivileged():
    """Root may read and write anything. Here it may not: Linux's capabilities 1 and 2."""
    libc, header = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    before = sets[0]
    sets[0] &= ~0b110
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = before
        libc.capset(header, sets)


@pytest.fixture
def refusal(out, monkeypatch, capsys):
    """Runs a notebook with what is given until a cell fails; the line that its reader sees."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(running, "_latest", None)

    def run(notebook: str, given: dict) -> str:
        known = {k: v for k, v in SMALL.items() if k in parameters.declared(notebook)}
        given = known | {"out": str(out)} | given
        injected = "".join(f"{name} = {value!r}\n" for name, value in given.items())
        own, *rest = (c.source for c in cells(REPOSITORY / f"notebooks/{notebook}.ipynb"))
        for source in (own, f"# Parameters\n{injected}", *rest):
            capsys.readouterr()
            done = shell.run_cell(source, store_history=True)
            if error := done.error_before_exec or done.error_in_exec:
                break
        else:
            pytest.fail("not refused")
        shown = capsys.readouterr().out.split("use %tb to see the full traceback.\n\n")
        assert len(shown) == 2, f"a traceback is shown: {shown[0][-3000:]}"
        line = f"{type(error).__name__}: {error}"
        assert shown[1].rstrip("\n") == line and "\n" not in line
        tried(line, notebook, given)
        if running._latest:  # it was begun: its page and the index say the same
            state = heartbeat.state(out, running._latest.run)
            assert (state["state"], state["error"]) == ("failed", [line])
        return line

    shell = new_shell()
    with unprivileged():
        yield run
    if running._latest:
        running._latest.detach()
    InteractiveShell.clear_instance()


def tried(line: str, notebook: str, given: dict) -> None:
    """Where a line offers a name, a value or a command, that is taken."""
    cure = {}
    if offer := re.search(r"no parameter \w+: (?:did you mean|it has) (\w+)", line):
        cure = {offer[1]: parameters.declared(notebook)[offer[1]]}
    elif offer := re.search(r": (\w+) = .*: did you mean ([\w-]+)\?$", line):
        cure = {offer[1]: offer[2]}
    elif offer := re.search(r"(?:for example|set|write) (\w+: [^,\s]+)", line):
        cure = yaml.safe_load(offer[1])
    elif offer := re.search(r"`make book (.*)` makes it", line):
        assert graph.wanted("book", dict(word.split("=") for word in offer[1].split())).only
    elif line.endswith("or a shorter context"):
        cure = {"context": 8}
    named = {k: v for k, v in given.items() if k in parameters.declared(notebook)}
    if cure:  # nothing is said any more against the parameters
        assert parameters.check(notebook, named | cure).items() >= cure.items()


def put(section: str, name: str, place: Path, good: Path) -> tuple[str, dict, Path]:
    """Make what a row describes: the notebook it is given to, what is given, and where it lies."""
    table = TABLES[section]
    row, at = table["rows"][name], place / table.get("at", name)
    if (good / at.name).is_dir():  # a good one, to be spoilt
        shutil.copytree(good / at.name, at)
    for maker, argument in row.items():
        if maker not in ("notebook", "given", "says"):
            getattr(spoil, maker)(at, argument)
    given = table.get("given", {}) | row.get("given", {})
    places = {"at": at, "place": place, "good": good}
    given = {n: v.format(**places) if isinstance(v, str) else v for n, v in given.items()}
    return row.get("notebook", "00_teacher"), given, at


FULL = {1_000: "/model", 12_000: "out/tokens", 100_000: "out/models/teacher"}
ROWS = [(section, name) for section, table in TABLES.items() for name in table["rows"]]


@pytest.mark.parametrize("section, name", ROWS, ids=map(": ".join, ROWS))
def test_what_is_given_is_refused(section, name, good, refusal, out, tmp_path):
    notebook, given, at = put(section, name, tmp_path, good)
    before = content(out)
    line = refusal(notebook, given)
    assert re.search(TABLES[section]["rows"][name]["says"], line), line
    assert str(at) in line or section in ("text that does not fit", "run folder", "parameters")
    assert content(out) == before and not [*tmp_path.rglob("trace")]
    assert section != "parameters" or not (out / "state").exists()
    for folder in filter(Path.is_dir, tmp_path.iterdir()):
        folder.chmod(0o700)


def test_rows_that_pad_an_embedding_are_cut_and_told(good, tmp_path):
    """Whatever is in them: 64 is what an embedding is rounded up to, by its multiples."""
    spoil.llama(tmp_path / "teacher", {"vocab_size": 512})
    p = parameters.declared("00_teacher") | {"tokens": str(good / "tokens"), "context": 32}
    p |= {"teacher": str(tmp_path / "teacher")}
    model = teacher.load(tmp_path / "teacher")
    rows = model.head[:500].clone()
    said = prepare(p, tmp_path / "out", model)["cut"]
    assert "512 rows for 500 pieces: the last 12 are of no piece, which no text ever" in said
    assert torch.equal(model.head, rows)
    assert token_files.open_tokens(tmp_path / "out").vocab_size == model.config.vocab_size == 500


def test_the_hostile_checkpoints_are_hostile(tmp_path):
    spoil.bare_pickle(tmp_path / "a.pt", None)
    pickle.loads((tmp_path / "a.pt").read_bytes())
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize("size, says", FULL.items())
@pytest.mark.filterwarnings("ignore:.*is not written, the one before stays")
def test_a_full_disk(size, says, good, refusal, out):
    before = content(out)
    with full_disk(size):
        line = refusal("00_teacher", {"text": str(good / "text.txt"), "epochs": 0.1})
    assert re.search(rf"no room for \S*{says} \(File too large\): make room", line)
    changed = {path.split("/")[0] for path, _ in before.items() ^ content(out).items()}
    assert changed == ({"tokens"} if "models" in says else set())  # all before it is done
    assert token_files.open_tokens(out / "tokens").vocab_size == 500


def test_a_full_disk_is_told_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "scores.npz"
    path.write_bytes(b"old")
    path.with_name(f".{path.name}.{os.getpid()}.begun").symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"no room for {path} \(No space left on device\): make"):
        files.write_whole(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_gets_its_name_is_on_the_disk_before(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def note_fsync(number):
        done.append(Path(os.readlink(f"/proc/self/fd/{number}")).name)
        fsync(number)

    def note_replace(old, new):
        done.append(f"{Path(new).name} is there")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    with files.whole_folder(tmp_path / "model") as beside:
        (beside / "deep").mkdir()
        (beside / "deep/a").write_text("a")
        (beside / "b").write_text("b")
        (beside / "link").symlink_to("/dev/null")
    assert sorted(done[:2]) == ["a", "b"] and done[2:] == ["model is there"]
    files.write_whole(tmp_path / "record.json", "{}")
    assert done[3:] == [f".record.json.{os.getpid()}.begun", "record.json is there"]


def test_a_disk_full_for_a_while_ends_no_training_and_no_run_is_called_done(out, monkeypatch):
    monkeypatch.setattr(running, "_latest", None)
    monkeypatch.chdir(REPOSITORY)
    this = running.start("00_teacher", SMALL | {"out": str(out)})
    record = students.Log(this, "a", lambda row: None).record
    record({"step": 1})
    before = content(out)
    this.progress(1, 5)
    with full_disk(20):  # less than one row
        this.progress(5, 5)  # the last is always said
        record({"step": 5})
        with pytest.raises(OSError, match=r"no room for .*results/00_teacher.json \(File too"):
            this.finish()
    assert heartbeat.state(out, "00_teacher")["step"] == 1
    this.progress(5, 5)
    assert heartbeat.state(out, "00_teacher")["step"] == 5
    this.detach()
    assert content(out) == before


@pytest.mark.parametrize("word", WORDS)
def test_make_book(word, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    before = sorted(os.listdir("outputs"))
    assert __main__.main(["book", word]) == 1
    said = capsys.readouterr()
    line, end, rest = said.out.partition("\n")
    assert re.search(WORDS[word], line) and (end, rest, said.err) == ("\n", "", ""), said
    if near := re.search(r"did you mean ([\w.-]+)", line):
        graph.wanted("book", {word.partition("=")[0]: near[1]})
    assert sorted(os.listdir("outputs")) == before
