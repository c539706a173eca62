"""What leaves the house: no word of text that others gave, no weights; and links that work."""

import base64
import hashlib
import html
import json
import re
import shutil
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import pytest
from bs4 import BeautifulSoup

from tdbook.analysis.kept_and_lost import FREQUENT_ENDINGS
from tdbook.runs import heartbeat, parameters
from tdbook.runs.parameters import ParameterError
from tdbook.workflow import run_pages, share

MARK = "Nobody else may read this"  # in English, so that it is told apart from what tables name
TELUGU = re.compile("[\u0c00-\u0c7f]+")
SHOWN = ("results", "tables", "figures", "hashes", "state", "tokens")


@pytest.fixture
def folder(out, tmp_path, monkeypatch) -> Path:
    """A copy of the smoke book, as one of somebody's own: every sample holds MARK, and published/
    is elsewhere."""
    monkeypatch.setattr(parameters, "ROOT", tmp_path)
    copied = tmp_path / "home/owner/outputs/diary"
    copied.mkdir(parents=True)
    for name in SHOWN:
        shutil.copytree(out / name, copied / name)
    for path in [*out.glob("*.html"), *out.glob("*.ipynb")]:
        shutil.copy(path, copied)
    shutil.copytree(out / "models/50m", copied / "models/50m")
    for path in (copied / "results").glob("*.json"):
        record = json.loads(path.read_text("utf-8"))
        record["parameters"] |= {"after_run": f"mail --key {MARK}", "out": str(copied)}
        record["changed"] += ["after_run"]
        path.write_text(json.dumps(marked(record), ensure_ascii=False), "utf-8")
    for kind in ("tables/*-second-thoughts.*", "tables/*-texts.*", "tables/*-sources.*"):
        for path in copied.glob(kind):
            path.write_text(path.read_text("utf-8").replace("|", f"|{MARK}"), "utf-8")
    for path in copied.glob("*.html"):
        said = f"{copied}/models" if path.stem in share.TEXTLESS else f"{MARK}: {copied}/models"
        path.write_text(path.read_text("utf-8").replace("\n</main>", f"<p>{said}</p>\n</main>"))
    (copied / "morning.md").write_text(f"failed: no column text in line 3: {MARK}")
    return copied


def marked(value: object) -> object:
    """JSON with MARK in every text that holds Telugu."""
    if isinstance(value, dict):
        return {name: marked(part) for name, part in value.items()}
    if isinstance(value, list):
        return [marked(part) for part in value]
    return f"{value} {MARK}" if isinstance(value, str) and TELUGU.search(value) else value


def given(folder: Path, **names: str) -> None:
    """As if 00 had been told to take text of others."""
    path = folder / "results/00_teacher.json"
    record = json.loads(path.read_text("utf-8"))
    record["parameters"] |= names
    record["inputs"] |= {value: "0" * 64 for value in names.values()}
    path.write_text(json.dumps(record, ensure_ascii=False), "utf-8")


def png_text(raw: bytes) -> str:
    """What a PNG says of itself, uncompressed."""
    at, said = 8, ""
    while at < len(raw):
        size, kind = struct.unpack(">I4s", raw[at : at + 8])
        body = raw[at + 8 : at + 8 + size]
        if kind in (b"tEXt", b"iTXt", b"zTXt", b"eXIf"):
            name, _, rest = body.partition(b"\0")
            rest = zlib.decompress(rest[1:]) if kind == b"zTXt" else rest
            said += f"{name.decode('latin1')} {rest.decode('utf8', 'replace')}\n"
        at += 12 + size
    return said


def decoded(raw: bytes) -> str:
    """All that can be read in a file: plain, as HTML, as JSON, and in the data it embeds."""
    if raw.startswith(b"\x89PNG"):
        return png_text(raw)
    if raw[:4] in (b"wOF2", b"wOFF"):
        return ""  # the font
    text = raw.decode("utf8")
    said = [
        text,
        html.unescape(text),
        re.sub(r"\\u([0-9a-f]{4})", lambda m: chr(int(m[1], 16)), text),
    ]
    for data in re.findall(r"base64,([A-Za-z0-9+/=]+)", text):
        said.append(decoded(base64.b64decode(data)))
    return "\n".join(said)


def everything(place: Path) -> dict[str, str]:
    return {str(p.relative_to(place)): decoded(p.read_bytes()) for p in share._files(place)}


def nothing_heavy(place: Path) -> None:
    """No weights, no token files, no tokenizer, no samples in what was recorded."""
    paths = share._files(place)
    assert {path.suffix for path in paths} <= {".json", ".csv", ".md", ".svg", ".png", ".html"}
    folders = {str(path.parent.relative_to(place)) for path in paths}
    assert folders == {".", "results", "tables", "figures"}
    for path in (place / "results").glob("*.json"):
        said = json.loads(path.read_text("utf-8"))["remembered"]
        assert "val/samples" not in json.dumps(said) and "texts" not in said


@pytest.mark.parametrize("name", ["text", "tokens", "tokenizer", "teacher"])
def test_no_word_that_others_gave_is_in_any_published_byte(folder, name, capsys):
    given(folder, **{name: "/home/owner/private/diary.txt"})
    held = {path for path, said in everything(folder / "results").items() if MARK in said}
    assert len(held) > 8 and MARK in decoded((folder / "04_merge_eval.html").read_bytes())
    place = share.publish(folder)
    found = everything(place)
    assert len(found) > 60 and "figures/04_merge_eval-quality.png" in found
    for path, said in found.items():
        assert MARK not in said, path
        assert {*TELUGU.findall(said)} <= {*FREQUENT_ENDINGS}, path  # లో కు ను లు, by the plan
        assert "/home/owner" not in said and str(folder) not in said, path
    # 07 shows numbers alone: it is published whole
    assert [path for path in found if path.endswith(".html")] == ["07_evidence.html", "index.html"]
    for kind in ("tables", "figures"):
        whole = {f"{kind}/{path.name}" for path in (folder / kind).glob("07_evidence-*")}
        assert whole and whole <= found.keys()
    assert "the confirmation text" in found["07_evidence.html"]
    nothing_heavy(place)
    assert (
        json.loads(found["manifest.json"].split("\n}\n")[0] + "\n}")["text"] == "given, not shown"
    )
    assert "left out: shows text that was given to the book" in capsys.readouterr().out


def test_of_its_own_text_the_book_publishes_pages_with_links_that_work(folder):
    place = share.publish(folder)
    pages = sorted(path.name for path in place.glob("*.html"))
    assert pages == sorted(path.name for path in folder.glob("*.html"))
    for path in place.glob("*.html"):
        soup = BeautifulSoup(path.read_text("utf-8"), "html.parser")
        assert all((place / a["href"]).exists() for a in soup.select("header a, footer a, h3 a"))
        assert str(folder) not in path.read_text("utf-8")
        assert "mail --key" not in path.read_text("utf-8")
        if path.name != "index.html":  # its body is whole, and names no place on this machine
            said = "" if path.stem in share.TEXTLESS else f"{MARK}: "
            assert f"<p>{said}run-folder/models</p>" in path.read_text("utf-8")
    assert MARK in (place / "morning.md").read_text()
    nothing_heavy(place)


def test_the_manifest_tells_of_every_file_and_where_it_comes_from(folder):
    place = share.publish(folder, "small")
    manifest = json.loads((place / "manifest.json").read_text("utf-8"))
    files = {str(p.relative_to(place)): p for p in share._files(place)}
    assert manifest["files"].keys() == files.keys() - {"manifest.json"}
    for name, digest in manifest["files"].items():
        assert digest == hashlib.sha256(files[name].read_bytes()).hexdigest()
    for run, told in manifest["runs"].items():
        record = json.loads((folder / "results" / f"{run}.json").read_text("utf-8"))
        assert {k: told[k] for k in ("commit", "dirty", "seed", "versions", "device")} == {
            k: record[k] for k in ("commit", "dirty", "seed", "versions", "device")
        }
        public = json.loads((place / "results" / f"{run}.json").read_text("utf-8"))
        for kept in ("models", "finding", "seconds", "commit"):
            assert public[kept] == record[kept]
        assert public["parameters"].keys() == record["parameters"].keys()
    assert manifest["command"].endswith("NAME=small")
    beside = place.with_name("small-quality.png")
    assert beside.read_bytes() == (folder / "figures/04_merge_eval-quality.png").read_bytes()


def test_a_run_that_is_not_done_is_left_out_and_a_second_time_replaces_the_first(folder):
    first = share.publish(folder)
    assert (first / "results/05_progressive.json").exists()
    heartbeat.write_state(folder, "05_progressive", "failed", error=["stopped"])
    second = share.publish(folder)
    assert first == second and [*second.parent.iterdir()].count(second) == 1
    assert not [path for path in share._files(second) if "05_progressive" in path.name]
    manifest = json.loads((second / "manifest.json").read_text("utf-8"))
    assert "05_progressive: not done" in manifest["left_out"]
    assert {path.name for path in second.parent.iterdir()} == {"diary", "diary-quality.png"}


def test_a_page_that_is_not_of_the_run_that_is_recorded_is_left_out(folder):
    path = folder / "results/01_distill-50m.json"
    record = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(record | {"finding": "Another run reached 4.321."}), "utf-8")
    run_pages.refresh(folder)  # its head now says so too
    place = share.publish(folder)
    assert not (place / "01_distill-50m.html").exists()
    assert (place / "01_distill-50m-scratch.html").exists()


def test_tokens_of_another_00_are_taken_for_text_of_others(folder):
    path = folder / "hashes/02_hard_set.json"
    kept = json.loads(path.read_text("utf-8"))
    kept["inputs"]["tokens"]["sha256"] = "0" * 64
    path.write_text(json.dumps(kept), "utf-8")
    place = share.publish(folder)
    assert not (place / "02_hard_set.html").exists() and not (place / "morning.md").exists()
    assert not [*place.glob("*/02_hard_set-sources.*")] and [*place.glob("*/02_hard_set-losses.*")]
    assert (place / "04_merge_eval.html").exists()


def test_what_cannot_be_published_is_one_line_and_leaves_what_was_there(folder, monkeypatch):
    place = share.publish(folder)
    before = {path: path.read_bytes() for path in share._files(place)}
    monkeypatch.setattr(share, "MOST_MB", 0.5)
    with pytest.raises(ParameterError, match=r"would take \d\.\d MB, git gets 0.5 at most .*zip"):
        share.publish(folder)
    with pytest.raises(ParameterError, match=r"NAME=\.\./x must be a name"):
        share.publish(folder, "../x")
    shutil.rmtree(folder / "hashes")
    with pytest.raises(ParameterError, match="holds no run that is done: make book"):
        share.publish(folder)
    assert {path: path.read_bytes() for path in share._files(place)} == before


def test_records_of_sweeps_points_are_published_without_paths_words_or_links(folder, out):
    given(folder, text="/home/owner/private/diary.txt")
    shutil.copytree(out / "sweeps", folder / "sweeps", symlinks=True)
    held = sorted(path for path in folder.glob("sweeps/*/*/results/*.json"))
    own = [path for path in held if not path.is_symlink()]
    assert len(own) == 2 < len(held)  # the others are the folder's own, borrowed
    for path in own:
        record = marked(json.loads(path.read_text("utf-8")))
        record["parameters"] |= {"after_run": f"mail --key {MARK}", "out": str(path.parents[1])}
        path.write_text(json.dumps(record, ensure_ascii=False), "utf-8")
        assert MARK in json.dumps(record["remembered"])
    place = share.publish(folder)
    found = sorted((place / "results/sweeps").rglob("*"))
    points = {f"share/{path.parents[1].name}/{path.name}": path for path in own}
    assert {str(p.relative_to(place / "results/sweeps")) for p in found if p.is_file()} == set(
        points
    )
    assert not any(path.is_symlink() for path in place.rglob("*"))
    for name, path in points.items():
        said = (place / "results/sweeps" / name).read_text("utf-8")
        assert MARK not in said and not TELUGU.search(said)
        assert str(folder) not in said and "/home/owner" not in said
        public, record = json.loads(said), json.loads(path.read_text("utf-8"))
        for kept in ("models", "finding", "seed", "commit", "notebook"):
            assert public[kept] == record[kept]
        assert public["parameters"]["rank"] == record["parameters"]["rank"] == 4
        assert public["parameters"]["out"] == "given"
    (own[0].parents[1] / "hashes" / own[0].name).unlink()  # it is no longer done
    place = share.publish(folder)
    assert [path.name for path in place.rglob("results/sweeps/*/*/*.json")] == [own[1].name]


# --- for mail


def test_every_link_of_every_page_in_the_archive_is_in_the_archive(folder, tmp_path):
    point = folder / "sweeps/ranks/lr=0.1"
    (folder / "sweeps/ranks/figures").mkdir(parents=True)
    point.mkdir()
    (folder / "sweeps/ranks/figures/04_merge_eval-a.png").write_bytes(b"x")
    (folder / "sweeps/ranks/index.html").write_text(
        '<a href="lr%3D0.1/03_lora.html#top">a</a> <a href="../../index.html">b</a>'
        '<a href="https://example.org/x.html">c</a> <a href="#here">d</a>'
        '<a href="../../models/50m/model.safetensors">e</a>'
    )
    (point / "03_lora.html").write_text('<a href="../index.html">a</a>')
    (point / "other.html").write_text("no one links it")
    path = share.pack(folder)
    assert path == folder / "diary-reports.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
        pages = {n: archive.read(n).decode() for n in names if n.endswith(".html")}
    assert all(name.isascii() and "\\" not in name for name in names)
    top = PurePosixPath("diary-reports")
    for name, page in pages.items():
        for a in BeautifulSoup(page, "html.parser").find_all("a", href=True):
            link = unquote(a["href"].partition("#")[0])
            if link and "//" not in link and "safetensors" not in link:
                target = (Path("/") / PurePosixPath(name).parent / link).resolve().relative_to("/")
                assert str(target) in names, (name, a["href"])
    assert {str(top / p.name) for p in folder.glob("*.html")} <= pages.keys()
    for kind in ("figures", "tables"):
        assert {str(top / kind / p.name) for p in (folder / kind).iterdir()} <= names
    assert {str(top / "morning.md"), str(top / "sweeps/ranks/lr=0.1/03_lora.html")} <= names
    assert {PurePosixPath(name).suffix for name in names} == {
        ".html", ".md", ".csv", ".png", ".svg"
    }  # fmt: skip
    size = path.stat().st_size
    share.pack(folder)
    assert abs(path.stat().st_size - size) < 2000  # it does not hold itself


def test_a_name_that_is_not_ascii_is_written_so(folder):
    renamed = folder.rename(folder.with_name("tiny-నా డైరీ"))
    path = share.pack(renamed)
    assert path.name == "tiny-reports.zip"
    with zipfile.ZipFile(path) as archive:
        assert all(name.startswith("tiny-reports/") for name in archive.namelist())


def test_a_large_archive_is_told_and_an_empty_folder_is_one_line(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(parameters, "ROOT", tmp_path)
    monkeypatch.setattr(share, "MOST_MB", 0.1)
    assert share.main(["zip", str(folder)]) == 0
    assert re.search(r"reports\.zip: \d\.\d MB; above 0\.1 MB many", capsys.readouterr().out)
    assert share.main(["zip", str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().out.endswith("nowhere holds no run: make book, then again\n")
