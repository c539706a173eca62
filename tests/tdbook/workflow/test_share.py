"""What leaves the house: no word of text that others gave, no weights; and links that work."""

import base64
import hashlib
import html
import io
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import pytest
from bs4 import BeautifulSoup
from PIL import Image

from tdbook.analysis.features import FREQUENT_ENDINGS
from tdbook.runs import heartbeat, parameters
from tdbook.runs.parameters import ParameterError
from tdbook.workflow import run_pages

MARK = "Nobody else may read this"  # in English, so that it is told apart from what tables name
TELUGU = re.compile("[\u0c00-\u0c7f]+")
PRIVATE = "/home/owner/private/diary.txt"
OWN_TABLES = ("texts",)


def read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def changed(path: Path, change: Callable[[dict], dict]) -> None:
    """A JSON file with its content changed."""
    path.write_text(json.dumps(change(read(path)), ensure_ascii=False), "utf-8")


@pytest.fixture
def folder(out, tmp_path, monkeypatch) -> Path:
    """A copy of the smoke book, as one of somebody's own: every sample holds MARK, and published/
    is elsewhere."""
    monkeypatch.setattr(parameters, "ROOT", tmp_path)
    copied = tmp_path / "home/owner/outputs/diary"
    copied.mkdir(parents=True)
    for name in "results tables figures hashes state tokens models/50m sweeps".split():
        shutil.copytree(out / name, copied / name, symlinks=True)
    for path in [*out.glob("*.html"), *out.glob("*.ipynb")]:
        shutil.copy(path, copied)
    points = [path for path in copied.glob("sweeps/*/*/results/*") if not path.is_symlink()]
    for path in [*(copied / "results").glob("*.json"), *points]:
        changed(path, lambda record, path=path: owned(record, path.parents[1]))
    for path in (path for name in OWN_TABLES for path in copied.glob(f"tables/*-{name}.*")):
        path.write_text(path.read_text("utf-8").replace("|", f"|{MARK}"), "utf-8")
    for path in copied.glob("*.html"):
        words = "" if path.stem == "07_evidence" else f"{MARK}: "
        end = f"<p>{words}{copied}/models</p>\n</main>"
        path.write_text(path.read_text("utf-8").replace("\n</main>", end))
    return copied


def owned(record: dict, out: Path) -> dict:
    """A record with MARK in every text that holds Telugu, a command and the place."""
    record["parameters"] |= {"after_run": f"mail --key {MARK}", "out": str(out)}
    record["changed"] += ["after_run"]
    return marked(record)


def marked(value: object) -> object:
    if isinstance(value, dict):
        return {name: marked(part) for name, part in value.items()}
    if isinstance(value, list):
        return [marked(part) for part in value]
    return f"{value} {MARK}" if isinstance(value, str) and TELUGU.search(value) else value


def given(folder: Path, name: str) -> None:
    """As if 00 had been told to take text of others."""
    change = {"parameters": {name: PRIVATE}, "inputs": {PRIVATE: "0" * 64}}
    path = folder / "results/00_teacher.json"
    changed(path, lambda record: record | {p: record[p] | more for p, more in change.items()})


def decoded(raw: bytes) -> str:
    """All that can be read in a file: plain, as HTML, as JSON, and in the data it embeds."""
    if raw.startswith(b"\x89PNG"):
        return str(Image.open(io.BytesIO(raw)).info)
    if raw[:4] in (b"wOF2", b"wOFF"):
        return ""  # the font
    text = raw.decode("utf8")
    texts = [text, html.unescape(text)]
    texts.append(re.sub(r"\\u([0-9a-f]{4})", lambda m: chr(int(m[1], 16)), text))
    embedded = re.findall(r"base64,([A-Za-z0-9+/=]+)", text)
    return "\n".join([*texts, *(decoded(base64.b64decode(data)) for data in embedded)])


def everything(place: Path) -> dict[str, str]:
    return {str(p.relative_to(place)): decoded(p.read_bytes()) for p in run_pages.files_of(place)}


def published(folder: Path, *name: str) -> Path:
    """What publish makes: no weights, no token files, no tokenizer, no samples in a record."""
    place = run_pages.publish(folder, *name)
    paths = run_pages.files_of(place)
    assert {path.suffix for path in paths} <= {".json", ".csv", ".md", ".svg", ".png", ".html"}
    folders = {path.relative_to(place).parts[0] for path in paths if path.parent != place}
    assert folders == {"results", "tables", "figures"}
    for path in (place / "results").rglob("*.json"):
        remembered = read(path)["remembered"]
        assert "val/samples" not in json.dumps(remembered) and "texts" not in remembered
    return place


@pytest.mark.parametrize("name", ["text", "tokens", "tokenizer", "teacher"])
def test_no_word_that_others_gave_is_in_any_published_byte(folder, name):
    given(folder, name)
    assert sum(MARK in text for text in everything(folder / "results").values()) > 8
    assert MARK in decoded((folder / "04_merge_eval.html").read_bytes())
    found = everything(place := published(folder))
    assert len(found) > 60 and "figures/04_merge_eval-quality.png" in found
    for path, text in found.items():
        assert MARK not in text, path
        assert {*TELUGU.findall(text)} <= {*FREQUENT_ENDINGS}, path  # లో కు ను లు, by the plan
        assert "/home/owner" not in text and str(folder) not in text, path
        assert not any(path.startswith("tables/0") and own in path for own in OWN_TABLES), path
    # 07 shows numbers alone: it is published whole
    pages = {path for path in found if path.endswith(".html")}
    assert pages == {"07_evidence.html", "compare.html", "index.html"}
    whole = {str(path.relative_to(folder)) for path in folder.glob("[tf]*/07_evidence-*")}
    assert whole and whole <= found.keys()
    assert "Judged on whole works of which no training" in found["07_evidence.html"]
    manifest = read(place / "manifest.json")
    assert manifest["text"] == "given, not shown"
    assert "04_merge_eval.html: shows text that was given to the book" in manifest["left_out"]
    path = folder / "results/04_merge_eval.json"  # an older one does not say what holds text
    changed(path, lambda record: {name: record[name] for name in record if name != "texts"})
    names = [path.name for path in run_pages.files_of(run_pages.publish(folder))]
    assert "04_merge_eval.json" in names and "03_lora-hard-metrics.csv" in names
    assert not any(name.startswith("04_merge_eval-") for name in names)


def test_of_its_own_text_the_book_publishes_pages_with_links_and_a_manifest(folder):
    place = published(folder, "small")
    assert {p.name for p in place.glob("0*.html")} == {p.name for p in folder.glob("0*.html")}
    for path in place.glob("*.html"):
        text = path.read_text("utf-8")
        soup = BeautifulSoup(text, "html.parser")
        assert all((place / a["href"]).exists() for a in soup.select("header a, footer a, h3 a"))
        assert str(folder) not in text and "mail --key" not in text
        if path.name[0] == "0":  # the body of others is whole, and names no place on this machine
            words = "" if path.stem == "07_evidence" else f"{MARK}: "
            assert f"<p>{words}run-folder/models</p>" in text
    index = BeautifulSoup((place / "index.html").read_text("utf-8"), "html.parser")
    assert index.h1.get_text().endswith("· small") and "GB free" not in index.get_text()
    manifest = read(place / "manifest.json")
    files = {str(p.relative_to(place)): p.read_bytes() for p in run_pages.files_of(place)}
    del files["manifest.json"]
    assert manifest["files"] == {n: hashlib.sha256(raw).hexdigest() for n, raw in files.items()}
    paths = {path.name: path for path in folder.glob("results/*.json")}
    for path in folder.glob("sweeps/share/*/results/*.json"):
        if not path.is_symlink():  # those are the folder's, borrowed
            paths[f"sweeps/share/{path.parents[1].name}/{path.name}"] = path
    results = place / "results"
    assert {str(path.relative_to(results)) for path in run_pages.files_of(results)} == {*paths}
    assert len(paths) > 11 and manifest["command"].endswith("NAME=small")
    for name, path in paths.items():
        record, public = read(path), read(results / name)
        for kept in ("models", "finding", "seconds", "commit", "dirty", "seed", "versions"):
            assert public[kept] == record[kept]
        assert public["parameters"].keys() == record["parameters"].keys()
        assert public["parameters"]["out"] == "given"


def test_what_is_not_done_not_of_its_record_or_of_other_tokens_is_left_out(folder):
    first = run_pages.publish(folder)
    assert (first / "results/05_progressive.json").exists()
    heartbeat.write_state(folder, "05_progressive", "failed", error=["stopped"])
    other = {"finding": "Another run reached 4.321."}
    changed(folder / "results/01_distill-50m.json", lambda record: record | other)
    run_pages.refresh(folder)  # its head now says so too
    path = folder / "hashes/02_hard_set.json"  # of another 00, so taken for text of others
    kept = read(path)
    kept["inputs"]["tokens"]["sha256"] = "0" * 64
    path.write_text(json.dumps(kept), "utf-8")
    second = run_pages.publish(folder)
    assert first == second  # it replaces the first
    assert {path.name for path in second.parent.iterdir()} == {"diary"}
    names = {path.name for path in run_pages.files_of(second)}
    assert not any("05_progressive" in name for name in names)
    assert "05_progressive: not done" in read(second / "manifest.json")["left_out"]
    assert "01_distill-50m.html" not in names and "01_distill-50m-scratch.html" in names
    assert not names & {"02_hard_set.html", "morning.md"}
    assert names >= {"02_hard_set-difficulty.png", "04_merge_eval.html"}
    before = everything(second)
    with pytest.raises(ParameterError, match=r"NAME=\.\./x must be a name"):
        run_pages.publish(folder, "../x")
    shutil.rmtree(folder / "hashes")
    with pytest.raises(ParameterError, match="holds no run that is done: make book"):
        run_pages.publish(folder)
    assert everything(second) == before


def test_every_link_of_every_page_in_the_archive_is_in_the_archive(folder):
    folder = folder.rename(folder.with_name("tiny-నా డైరీ"))  # the archive's name is ASCII
    path = run_pages.pack(folder)
    assert path == folder / "tiny-reports.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
        pages = {n: archive.read(n).decode() for n in names if n.endswith(".html")}
    assert all(name.isascii() and "\\" not in name for name in names)
    for name, page in pages.items():
        for a in BeautifulSoup(page, "html.parser").find_all("a", href=True):
            link = unquote(a["href"].partition("#")[0])
            if link and "//" not in link:
                target = (Path("/") / PurePosixPath(name).parent / link).resolve().relative_to("/")
                assert str(target) in names, (name, a["href"])
    shown = [*folder.glob("*.html"), *folder.glob("figures/*"), *folder.glob("tables/*")]
    shown += [folder / "morning.md", *folder.glob("sweeps/*/*/*.html")]
    assert {f"tiny-reports/{path.relative_to(folder)}" for path in shown} <= names
    assert {PurePosixPath(n).suffix for n in names} == {".html", ".md", ".csv", ".png", ".svg"}
    size = run_pages.pack(folder).stat().st_size
    assert abs(run_pages.pack(folder).stat().st_size - size) < 2000  # it does not hold itself
    with pytest.raises(ParameterError, match="holds no run: make book, then again"):
        run_pages.pack(folder.parent)
