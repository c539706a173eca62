"""To share: what may be shown of a run folder, for git (`publish`) or packed for mail (`pack`).

    python -m tdbook.workflow.share publish outputs/tiny [name]    → outputs/published/<name>/
    python -m tdbook.workflow.share zip outputs/tiny               → outputs/tiny/tiny-reports.zip

Weights and token files are never taken. A mail is the owner's own and holds every page. What goes
into git holds no text of others: where text, tokens, tokenizer or teacher were given to the book,
no page is published (all but 07's show samples) and only those tables and figures that are known to
hold none. Results keep numbers and names: no samples, no paths, no commands. Imports no torch.
"""

import datetime
import hashlib
import html
import json
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urlsplit
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile

from bs4 import BeautifulSoup

from tdbook.runs import hashes, heartbeat, notebooks, parameters, rules
from tdbook.runs.hashes import older_code
from tdbook.runs.ownership import run_of
from tdbook.runs.parameters import ParameterError
from tdbook.workflow import run_pages
from tdlib import files
from tdlib.files import AWAY, replacing, whole_folder
from tdlib.files import write_whole as write

MOST_MB = 20  # that one name may take in git; of a mail, above which many servers refuse it
# tables and figures without a word of the text, by the name that their notebook gives them
PLAIN = """sizes metrics merged quality made reality cumulative hard-easy kept-lost won-back verdict
 cost curve curves calibration difficulty losses progressive files speeds shapes shapes-files
 quantization""".split()
KINDS, SHOWN = ("tables", "figures"), (".csv", ".md", ".svg", ".png")
QUALITY = f"figures/{notebooks.COMPARISON}-quality.png"
# of a record: shown as it is, beside its parameters, inputs and what it remembers; in the manifest
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
    made = [run for run in _runs(out) if _done(out, run)]
    left = [f"{run}: not done" for run in _runs(out) if run not in made]
    if not made:
        raise ParameterError(f"{out} holds no run that is done: make book, then again")
    target = parameters.ROOT / "outputs/published" / name
    lead, quality = target.with_name(f"{name}-quality.png"), target / QUALITY
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / name
        for run in made:
            left += _copy(out, run, place)
        _copy_points(out, place)
        _lead(out, place, all(_ours(out, run) for run in made))
        _check_size(place)
        manifest = _manifest(out, name, made, left, place)
        write(place / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False))
        if lead.exists() and not (quality.exists() and quality.read_bytes() == lead.read_bytes()):
            raise ParameterError(f"{lead} is not the figure of {quality}, so another's: {AWAY}")
        with whole_folder(target) as beside:
            shutil.copytree(place, beside, dirs_exist_ok=True)
    if quality.exists():
        write(lead, quality.read_bytes())
    for why, count in Counter(line.partition(": ")[2] for line in left).items():
        print(f"{count} left out: {why}")
    return target


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


def _runs(out: Path) -> list[str]:
    """All that left a trace here; what a sweep's point borrows of its parent is a link."""
    found = (path for part in ("results", "state") for path in (out / part).glob("*.json"))
    return sorted({path.stem for path in found if not path.is_symlink()})


def _done(out: Path, run: str) -> bool:
    there = (out / "results" / f"{run}.json").exists() and hashes.load(out, run)
    return bool(there) and heartbeat.state(out, run)["state"] == "done"


def _record(out: Path, run: str) -> dict:
    return files.record(out / "results" / f"{run}.json", "parameters")


def _ours(out: Path, run: str) -> bool:
    """Whether a run read, or made, tokens that the book wrote by itself, to the last part."""
    own = hashes.load(out, run)
    tokens = own["outputs"].get("tokens") or own["inputs"].get("tokens") or {}
    for path in (out / "hashes").glob(f"{notebooks.TEACHER}*.json"):
        made = hashes.load(out, path.stem)["outputs"].get("tokens", {})
        if made and made["sha256"] == tokens.get("sha256"):
            given = _record(out, path.stem)["parameters"]
            return not any(given.get(name, "unknown") for name in rules.GIVEN)
    return False


def _copy(out: Path, run: str, place: Path) -> list[str]:
    """What may be shown of a run; returns what was left out, and why."""
    ours, left = _ours(out, run) or notebooks.of(run).textless, []
    record = _public(_record(out, run))
    _write(place / "results" / f"{run}.json", json.dumps(record, indent=1, ensure_ascii=False), out)
    for path in sorted(path for kind in KINDS for path in (out / kind).glob(f"{run}-*.*")):
        name, target = path.stem.removeprefix(f"{run}-"), place / path.relative_to(out)
        if run_of(path, out) != run or path.suffix not in SHOWN:
            continue
        if not (ours or name in PLAIN or name.startswith(("sweep-", "sensitivity-"))):
            left.append(f"{path.relative_to(out)}: may hold text that was given to the book")
        elif path.suffix == ".png":
            write(target, path.read_bytes())
        else:
            _write(target, path.read_text("utf-8"), out)
    page = out / f"{run}.html"
    if not ours:
        left.append(f"{run}.html: shows text that was given to the book")
    elif not page.exists() or not _tells(page, record["finding"]):
        left.append(f"{run}.html: not of this run, or not there: make report")
    else:
        _write(place / page.name, page.read_text("utf-8"), out)
    return left


def _copy_points(out: Path, place: Path) -> None:
    """The records of sweeps' points, which the tables' numbers are traced to."""
    for path in sorted(out.glob("sweeps/*/*/results/*.json")):
        point = path.parents[1]
        if not path.is_symlink() and _done(point, path.stem):
            text = json.dumps(_public(_record(point, path.stem)), ensure_ascii=False)
            shown = Path("results", point.relative_to(out), path.name)
            _write(place / shown, text, out)


def _tells(page: Path, finding: str) -> bool:
    """Whether what a page shows, not just its head, is the run that a record is of."""
    body = page.read_text("utf-8").partition("<main>")[2]
    body = html.unescape(re.sub("<[^>]*>", "", body))
    finding = re.sub("[*`]", "", finding)  # as Markdown shows it
    return " ".join(finding.split()) in " ".join(body.split())


def _public(record: dict) -> dict:
    """A record without samples, paths and commands: of text only names, and what was computed."""
    outside = parameters.external(record["notebook"], record["parameters"])
    places = {name: f"given {i + 1}" for i, name in enumerate(outside)}
    logs = {name: value for name, value in record.get("remembered", {}).items()
            if name.startswith(("estimate", "log of "))}  # fmt: skip
    return {name: record[name] for name in OPEN if name in record} | {
        "parameters": {n: _shown(n, v) for n, v in record["parameters"].items()},
        "inputs": {places.get(name, name): digest for name, digest in record["inputs"].items()},
        "models": _numbers(record["models"]),
        "remembered": _numbers(logs),
    }


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
    sizes = [(path.stat().st_size / 1e6, path.name) for path in _files(place)]
    if (whole := sum(size for size, _ in sizes)) > MOST_MB:
        size, largest = max(sizes)
        raise ParameterError(
            f"outputs/published/{place.name} would take {whole:.1f} MB, git gets {MOST_MB} at most "
            f"(the largest is {largest}, {size:.1f} MB): `make zip` packs a mail"
        )


def _manifest(out: Path, name: str, made: list[str], left: list[str], place: Path) -> dict:
    shown = (
        out.resolve().relative_to(parameters.ROOT)
        if out.resolve().is_relative_to(parameters.ROOT)
        else out.name
    )
    records = {run: _record(out, run) for run in made}
    return {
        "command": f"make publish OUT={shown} NAME={name}",
        "published": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "text": "the book's own" if all(_ours(out, run) for run in made) else "given, not shown",
        "runs": {run: {key: record[key] for key in ABOUT}
                 | {"older_code": older_code(out, run)} for run, record in records.items()},
        "left_out": left,
        "files": {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
                  for path in _files(place)},
    }  # fmt: skip


def _files(place: Path) -> list[Path]:
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
    target = out / f"{name}-reports.zip"
    if os.path.lexists(target) and not _packed(target, f"{name}-reports/"):
        raise ParameterError(f"{target} is there and was not packed here: {AWAY}")
    with replacing(target) as beside, ZipFile(beside, "w", ZIP_DEFLATED) as archive:
        for path in sorted(packed):
            archive.write(path, f"{name}-reports/{path.relative_to(out).as_posix()}")
    return target


def _packed(path: Path, folder: str) -> bool:
    """Whether a file is an archive of ours: all of it in one folder."""
    try:
        with ZipFile(path) as archive:
            return all(name.startswith(folder) for name in archive.namelist())
    except (OSError, BadZipFile):
        return False


def _linked(page: Path, out: Path) -> set[Path]:
    """The files of the run folder that a page links to; weights and the like are no reports."""
    soup = BeautifulSoup(page.read_text("utf-8"), "html.parser")
    links = (unquote(urlsplit(a["href"]).path) for a in soup.find_all("a", href=True))
    paths = ((page.parent / link).resolve() for link in links if link and "//" not in link)
    base = out.resolve()
    return {out / path.relative_to(base) for path in paths
            if path.is_relative_to(base) and path.is_file()
            and path.suffix in (".html", *SHOWN)}  # fmt: skip


def main(arguments: list[str]) -> int:
    try:
        match arguments:
            case "publish", out, *name:
                target = publish(parameters.ROOT / out, *name)
                files = _files(target)
                size = sum(path.stat().st_size for path in files) / 1e6
                print(f"{target}: {len(files)} files, {size:.1f} MB")
            case "zip", out:
                target = pack(parameters.ROOT / out)
                size = target.stat().st_size / 1e6
                more = f"; above {MOST_MB} MB many mail servers refuse it" * (size > MOST_MB)
                print(f"{target}: {size:.1f} MB{more}")
            case _:
                print(__doc__)
                return 2
    except (ValueError, OSError) as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
