"""To share: what may be shown of a run folder, for git (`publish`) or packed for mail (`pack`).

Weights and token files are never taken. A mail is the owner's own and holds every page. What goes
into git holds no text of others: where text, tokens, tokenizer or teacher were given to the book,
no page is published (all but 07's show samples), and no table or figure that was said to hold words
of the text (`text=True` of Run.table and Run.figure). Results keep numbers and names: no samples,
no paths, no commands. Imports no torch.
"""

import datetime
import hashlib
import html
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urlsplit
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile

from bs4 import BeautifulSoup

from tdbook.runs import hashes, heartbeat, notebooks, parameters, rules
from tdbook.runs.ownership import run_of
from tdbook.runs.parameters import ParameterError
from tdbook.workflow import run_pages
from tdlib import files
from tdlib.files import AWAY, replacing, whole_folder
from tdlib.files import write_whole as write

MOST_MB = 20  # that one name may take in git; of a mail, above which many servers refuse it
KINDS, SHOWN = ("tables", "figures"), (".csv", ".md", ".svg", ".png")
QUALITY = f"figures/{notebooks.COMPARISON}-quality.png"
# of a record, shown as it is; and the part of that in the manifest
OPEN = """run notebook profile changed seed commit dirty code versions device reads started seconds
 tokens_per_second peak_memory_mib finding scouting""".split()
ABOUT = "commit dirty seed profile versions device started seconds".split()


def publish(out: Path, name: str = "") -> Path:
    """outputs/published/<name>/: results, tables, figures and pages of the runs that are done, with
    a manifest of where they come from and the hash of every file; what was there before goes.
    The quality figure also lies beside it, as <name>-quality.png, for a README."""
    name = name or out.resolve().name
    if not rules.NAME.holds(name):
        raise ParameterError(f"NAME={name} must be {rules.NAME.says}: NAME=tiny")
    runs = _runs(out)
    done = [run for run in runs if _done(out, run)]
    if not done:
        raise ParameterError(f"{out} holds no run that is done: make book, then again")
    left_out = [f"{run}: not done" for run in runs if run not in done]
    target = parameters.ROOT / "outputs/published" / name
    lead, quality = target.with_name(f"{name}-quality.png"), target / QUALITY
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / name
        for run in done:
            left_out += _copy(out, run, place)
        _copy_points(out, place)
        _lead(out, place, all(_ours(out, run) for run in done))
        _check_size(place)
        manifest = _manifest(out, place, done) | {"left_out": left_out}
        write(place / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False))
        if lead.exists() and not (quality.exists() and quality.read_bytes() == lead.read_bytes()):
            raise ParameterError(f"{lead} is not the figure of {quality}, so another's: {AWAY}")
        with whole_folder(target) as beside:
            shutil.copytree(place, beside, dirs_exist_ok=True)
    if quality.exists():
        write(lead, quality.read_bytes())
    for why, count in Counter(line.partition(": ")[2] for line in left_out).items():
        print(f"{count} left out: {why}")
    sizes = [path.stat().st_size / 1e6 for path in files_of(target)]
    print(f"{target}: {len(sizes)} files, {sum(sizes):.1f} MB")
    return target


def _runs(out: Path) -> list[str]:
    """All that left a trace here; what a sweep's point borrows of its parent is a link."""
    traces = (path for part in ("results", "state") for path in (out / part).glob("*.json"))
    return sorted({path.stem for path in traces if not path.is_symlink()})


def _done(out: Path, run: str) -> bool:
    there = (out / "results" / f"{run}.json").exists() and hashes.load(out, run)
    return bool(there) and heartbeat.state(out, run)["state"] == "done"


def _record(out: Path, run: str) -> dict:
    return files.record(out / "results" / f"{run}.json", "parameters")


def _ours(out: Path, run: str) -> bool:
    """Whether a run read, or made, tokens that the book wrote by itself, to the last part."""
    known = hashes.load(out, run)
    tokens = known["outputs"].get("tokens") or known["inputs"].get("tokens") or {}
    for path in (out / "hashes").glob(f"{notebooks.TEACHER}*.json"):
        made = hashes.load(out, path.stem)["outputs"].get("tokens", {})
        if made and made["sha256"] == tokens.get("sha256"):
            given = _record(out, path.stem)["parameters"]
            return not any(given.get(name, "unknown") for name in rules.GIVEN)
    return False


def _copy(out: Path, run: str, place: Path) -> list[str]:
    """What may be shown of a run; returns what was left out, and why."""
    ours, record, left_out = _ours(out, run), _record(out, run), []
    _write(place / "results" / f"{run}.json", _public(record, indent=1), out)
    page, textless = out / f"{run}.html", ours or notebooks.of(run).textless
    for path in sorted(path for kind in KINDS for path in (out / kind).glob(f"{run}-*.*")):
        shown, name = path.relative_to(out), path.stem.removeprefix(f"{run}-")
        if run_of(path, out) != run or path.suffix not in SHOWN:
            continue
        if not textless and name in record.get("texts", [name]):  # an older record does not say
            left_out.append(f"{shown}: may hold text that was given to the book")
        elif path.suffix == ".png":
            write(place / shown, path.read_bytes())
        else:
            _write(place / shown, path.read_text("utf-8"), out)
    if not textless:
        left_out.append(f"{page.name}: shows text that was given to the book")
    elif not page.exists() or not _tells(page, record["finding"]):
        left_out.append(f"{page.name}: not of this run, or not there: make report")
    else:
        _write(place / page.name, page.read_text("utf-8"), out)
    return left_out


def _tells(page: Path, finding: str) -> bool:
    """Whether what a page shows, not just its head, is the run that a record is of."""
    body = page.read_text("utf-8").partition("<main>")[2]
    body = html.unescape(re.sub("<[^>]*>", "", body))
    finding = re.sub("[*`]", "", finding)  # as Markdown shows it
    return " ".join(finding.split()) in " ".join(body.split())


def _copy_points(out: Path, place: Path) -> None:
    """The records of sweeps' points, which the tables' numbers are traced to."""
    for path in sorted(out.glob("sweeps/*/*/results/*.json")):
        point = path.parents[1]
        if not path.is_symlink() and _done(point, path.stem):
            shown = place / "results" / point.relative_to(out) / path.name
            _write(shown, _public(_record(point, path.stem)), out)


def _lead(out: Path, place: Path, ours: bool) -> None:
    """The index of what is published, without disk and next command, which are of the run folder;
    and its morning report, unless its lines of errors may quote a text that was given."""
    run_pages.refresh(place)
    soup = BeautifulSoup((place / "index.html").read_text("utf-8"), "html.parser")
    for section in soup.select("main > section.provenance"):
        section.decompose()
    write(place / "index.html", str(soup))
    (place / "morning.md").unlink(missing_ok=True)
    if ours and (out / "morning.md").exists():
        _write(place / "morning.md", (out / "morning.md").read_text("utf-8"), out)


def _public(record: dict, indent: int | None = None) -> str:
    """A record without samples, paths and commands: of text only names, and what was computed."""
    given = parameters.external(record["notebook"], record["parameters"])
    places = {name: f"given {i + 1}" for i, name in enumerate(given)}
    logs = {name: value for name, value in record.get("remembered", {}).items()
            if name.startswith(("estimate", "log of "))}  # fmt: skip
    public = {name: record[name] for name in OPEN if name in record}
    public["parameters"] = {name: _shown(name, v) for name, v in record["parameters"].items()}
    public["inputs"] = {places.get(name, name): sha for name, sha in record["inputs"].items()}
    public |= {"models": _numbers(record["models"]), "remembered": _numbers(logs)}
    return json.dumps(public, indent=indent, ensure_ascii=False)


def _shown(name: str, value: object) -> object:
    """A parameter's value, unless it is a path, a command, a sentence or what was given."""
    hidden = {"out", "wandb", *rules.COMMANDS, *rules.GIVEN} - {"teacher"}
    if not isinstance(value, str) or value == "":
        return value
    return value if name not in hidden and re.fullmatch(r"[\w.+-]+", value) else "given"


def _numbers(value: object) -> object:
    """Without any text."""
    if isinstance(value, dict):
        numbers = {name: _numbers(part) for name, part in value.items()}
        return {name: part for name, part in numbers.items() if part not in (None, [])}
    if isinstance(value, list):
        return [part for part in map(_numbers, value) if part is not None]
    return None if isinstance(value, str) else value


def _write(path: Path, text: str, out: Path) -> None:
    """Paths of this machine are shortened: to the run folder, the repository, the home."""
    places = {str(out.resolve()): "run-folder", str(parameters.ROOT): ".", str(Path.home()): "~"}
    for place, short in places.items():
        text = re.sub(rf"(?<![\w+/=.-]){re.escape(place)}(?![\w+=.-])", short, text)
    write(path, text)


def _check_size(place: Path) -> None:
    sizes = [(path.stat().st_size / 1e6, path.name) for path in files_of(place)]
    if (whole := sum(size for size, _ in sizes)) > MOST_MB:
        size, largest = max(sizes)
        raise ParameterError(
            f"outputs/published/{place.name} would take {whole:.1f} MB, git gets {MOST_MB} at most "
            f"(the largest is {largest}, {size:.1f} MB): `make zip` packs a mail"
        )


def _manifest(out: Path, place: Path, runs: list[str]) -> dict:
    """Where all of it comes from, and the hash of every file."""
    inside = out.resolve().is_relative_to(parameters.ROOT)
    shown = out.resolve().relative_to(parameters.ROOT) if inside else out.name
    about = {run: {key: _record(out, run)[key] for key in ABOUT} for run in runs}
    for run, record in about.items():
        record["older_code"] = hashes.older_code(out, run)
    now = datetime.datetime.now(datetime.UTC)
    names = {str(path.relative_to(place)): path for path in files_of(place)}
    return {
        "command": f"make publish OUT={shown} NAME={place.name}",
        "published": now.isoformat(timespec="seconds"),
        "text": "the book's own" if all(_ours(out, run) for run in runs) else "given, not shown",
        "runs": about,
        "files": {name: hashlib.sha256(p.read_bytes()).hexdigest() for name, p in names.items()},
    }


def files_of(place: Path) -> list[Path]:
    return sorted(path for path in place.rglob("*") if path.is_file())


def pack(out: Path) -> Path:
    """<out>/<name>-reports.zip: the index, every page, its sweeps' pages and all that these link
    to, figures and tables. It unpacks into one folder whose links work anywhere."""
    if not _runs(out):
        raise ParameterError(f"{out} holds no run: make book, then again")
    run_pages.refresh(out)
    pages = [*out.glob("*.html"), *out.glob("sweeps/*/*.html")]
    packed = {*pages, *out.glob("morning.md")}
    for folder in (out, *out.glob("sweeps/*")):
        packed |= {path for kind in KINDS for path in (folder / kind).glob("[!.]*.*")}
    while pages:
        linked = _linked(pages.pop(), out) - packed
        pages += [path for path in linked if path.suffix == ".html"]
        packed |= linked
    name = re.sub(r"[^A-Za-z0-9.+-]+", "_", out.resolve().name).strip("_.-") or "book"
    target, folder = out / f"{name}-reports.zip", f"{name}-reports"
    if os.path.lexists(target) and not _packed(target, folder):
        raise ParameterError(f"{target} is there and was not packed here: {AWAY}")
    with replacing(target) as beside, ZipFile(beside, "w", ZIP_DEFLATED) as archive:
        for path in sorted(packed):
            archive.write(path, f"{folder}/{path.relative_to(out).as_posix()}")
    size = target.stat().st_size / 1e6
    more = f"; above {MOST_MB} MB many mail servers refuse it" * (size > MOST_MB)
    print(f"{target}: {size:.1f} MB{more}")
    return target


def _packed(path: Path, folder: str) -> bool:
    """Whether a file is an archive of ours: all of it in one folder."""
    try:
        with ZipFile(path) as archive:
            return all(name.startswith(f"{folder}/") for name in archive.namelist())
    except (OSError, BadZipFile):
        return False


def _linked(page: Path, out: Path) -> set[Path]:
    """The files of the run folder that a page links to; weights and the like are no reports."""
    soup, base = BeautifulSoup(page.read_text("utf-8"), "html.parser"), out.resolve()
    links = (unquote(urlsplit(a["href"]).path) for a in soup.find_all("a", href=True))
    paths = ((page.parent / link).resolve() for link in links if link and "//" not in link)
    inside = (path for path in paths if path.is_relative_to(base) and path.is_file())
    return {out / p.relative_to(base) for p in inside if p.suffix in (".html", *SHOWN)}
