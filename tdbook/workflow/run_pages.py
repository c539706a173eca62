"""The pages of a run folder, and what of it goes to others: for git (`publish`), for mail (`pack`).

Weights and token files are never taken. A mail is the owner's own and holds every page. What goes
into git holds no text that was given to the book: no page (all but 07's show samples), no table or
figure with text=True. Results keep numbers and names: no samples, no paths, no commands.
"""

import base64
import datetime
import hashlib
import itertools
import json
import re
import time
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import nbformat
from bs4 import BeautifulSoup
from markupsafe import Markup

from tdbook.report import pages
from tdbook.runs import hashes, heartbeat, notebooks, ownership, parameters, sweeps, units
from tdbook.runs.parameters import ParameterError
from tdbook.workflow import status
from tdlib import files

WIDGET = "application/vnd.jupyter.widget-view+json"
SHOWN_BESIDE_WIDGET = {"text/html", "image/svg+xml", "image/png"}
# as a table shows it: "[" of an interval, sign, digits, then a unit, an interval or a ± part
NUMBER = r"\[?[-−+<≤≈~]?\d[\d,.]*(e[-+]?\d+)?( ?[%×]| [A-Za-z/]+)?(\s?[±\[(,–].*)?$"
COLUMNS, ROWS = 5, 30  # of a table that a page shows at first; a switch shows all
# records of runs, of a sweep's points, and of those as `publish` copies them
RECORDS = ("results/*.json", "sweeps/*/*/results/*.json", "results/sweeps/*/*/*.json")
COMPARED = ("run", "notebook", "parameters", "models")  # of a record
KINDS, SHOWN = ("tables", "figures"), (".csv", ".md", ".svg", ".png")
# of a record, shown as it is
OPEN = """run notebook profile changed seed commit dirty code versions device reads started seconds
 tokens_per_second peak_memory_mib finding scouting""".split()


def page(out: Path, run: str) -> None:
    """Write out/<run>.html: the notebook as executed, under a head that says how it was made."""
    notebook = nbformat.read(out / f"{run}.ipynb", as_version=4)
    # not shown twice: what the head says already
    done = status.row(out, run)["state"]["state"] == "done"
    hidden = {"papermill-error-cell-tag", *["parameters", "injected-parameters"] * done}
    notebook.cells = [c for c in notebook.cells if not hidden & {*c.metadata.get("tags", [])}]
    for cell, code in itertools.pairwise(notebook.cells):
        shown = [o for o in code.get("outputs", ()) if "progress" not in o.get("metadata", {})]
        if code.cell_type == "code" and not shown and cell.source[:1] != "#":  # it is about code
            cell.metadata["tags"] = ["aside"]
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        data = output.get("data", {})
        # a widget is dead without its kernel
        if data.pop(WIDGET, None) and not SHOWN_BESIDE_WIDGET & data.keys():
            output["data"] = {"text/html": '<p class="note">interactive in JupyterLab</p>'}
    soup = BeautifulSoup(pages.exporter().from_notebook_node(notebook)[0], "html.parser")
    finding = status.row(out, run)["record"].get("finding", "") if done else ""
    if title := soup.find("h1"):  # below it what came out, and the first figure
        answer = soup.new_tag("p", attrs={"class": "finding"}, string=finding)
        for part in filter(None, (soup.find("figure"), finding and answer)):
            title.insert_after(part)
    _frame(out, run, _with_readable_tables(soup))


def refresh(out: Path, name: str = "") -> Path:
    """Write the head of every page again, for later runs and older code; then the index."""
    for run in (run for run in status.traces(out) if (out / f"{run}.html").exists()):
        html = (out / f"{run}.html").read_text("utf-8")
        _frame(out, run, Markup(html.partition("<main>\n")[2].rpartition("\n</main>")[0]))
    return index(out, name)


def index(out: Path, name: str = "") -> Path:
    """Write index.html and morning.md: of a point its sweep's, of a sweep the book's too."""
    swept, above = (out / sweeps.POINTS).is_file(), sweeps.parent(out)
    if above and not swept:
        return index(out.parent)
    if above:
        index(above)
    path, there = out / "index.html", [out / x for x in ownership.PAGES if (out / x).exists()]
    if there and not ownership.is_book(out):
        raise FileExistsError(f"{there[0]} is no book's, and no run is there: give OUT=")
    content = status.morning(out) | {"now": heartbeat.date(time.time())}
    content["name"] = name or out.resolve().name
    for row in content["rows"]:
        html = row["folder"] / f"{row['run']}.html"
        row["page"] = html.relative_to(out).as_posix() if html.exists() else ""
    models = dict(m for row in content["rows"] for m in row["record"].get("models", {}).items())
    best = sorted((m["loss"], model) for model, m in models.items() if "loss" in m)[:12]
    content["best"] = [(m, loss, units.span(*units.of_plan(m, "loss"))) for loss, m in best]
    content["swept"] = sweeps.listed(above, out.name) if swept else None
    quality = out / f"tables/{notebooks.COMPARISON}-quality.md"
    if quality.exists():
        html = pages.markdown(quality.read_text("utf-8"))
        content["quality"] = _with_readable_tables(BeautifulSoup(html, "html.parser"))
    difficulty = out / f"figures/{notebooks.HARD_SET}-difficulty.svg"
    if difficulty.exists():
        content["difficulty"] = base64.b64encode(difficulty.read_bytes()).decode()
    content["whole"] = not swept and (out / "state").is_dir()  # published/ has no states
    _write(path, "runs.html.j2", **content)
    if content["whole"]:
        _write(out / "morning.md", "morning.md.j2", **content)
    if not swept and any(row["record"] for row in content["rows"]):
        compare([out], content["name"])
    return path


def compare(outs: list[Path], name: str = "") -> Path:
    """Write compare.html of a folder; of several, compare-<others>.html in the first of them."""
    if empty := [out for out in outs if not status.traces(out)]:
        raise ParameterError(f"{empty[0]} holds no run: give OUT=, of several with spaces between")
    path = outs[0] / f"{'-'.join(['compare', *(out.name for out in outs[1:])])}.html"
    if outs[1:]:
        files.own(path)
    folders = {name or parameters.shown(out): [*records(out)] for out in outs}
    _write(path, "compare.html.j2", folders=folders, parameters=parameters)
    if outs[1:]:
        files.mark(outs[0], path.name)
    return path


def records(out: Path) -> Iterator[dict]:
    """What compare.js reads of each finished run and point; `place`: [] or the sweep and the point.
    Of records alone: those of a published folder hold no text and no path, so its page has none."""
    for path in (path for place in RECORDS for path in sorted(out.glob(place))):
        record = files.whole(path, *COMPARED)
        if record and not path.is_symlink():  # as what a point reads of its parent
            place = [x for x in path.relative_to(out).parts[:-1] if x not in ("sweeps", "results")]
            kept = {key: record.get(key) for key in (*COMPARED, "seconds", "tokens_per_second")}
            curves, logs = {}, record.get("remembered", {})
            for model in record["models"]:
                log = logs.get(f"log of {model}") or ()
                known = [row for row in log if row.get("val/loss") is not None]
                curves[model] = [(row["tokens"], row["val/loss"]) for row in known]
            yield kept | {"place": place, "curves": curves}


def _frame(out: Path, run: str, body: Markup) -> None:
    """Put head and foot around the body of a page, and no link: in a mail it would be dead."""
    row, results = status.row(out, run), (out / "results").glob("*.json")
    users = [p.stem for p in sorted(results) if run in (files.whole(p) or {}).get("reads", {})]
    about = {"users": users, "body": body}
    about["practice"] = units.PLAN["practice"].get(row["record"].get("profile"), "")
    first = files.whole(out / f"results/{notebooks.TEACHER}.json", "parameters")
    about["given"] = first and any(first["parameters"].get(name) for name in ("text", "tokens"))
    _write(out / f"{run}.html", "page.html.j2", **about, **row)


def _with_readable_tables(soup: BeautifulSoup) -> Markup:
    """Every table in a box that scrolls; its columns marked `num` where half or more of the filled
    cells are numbers, `short` where none wraps, `more` beyond COLUMNS and, not folded, ROWS."""
    for table in soup.find_all("table"):
        rows = [row.find_all(["td", "th"]) for row in table.find_all("tr")]
        for number, column in enumerate(itertools.zip_longest(*rows)):
            cells = [cell for cell in column if cell is not None]
            texts = [cell.get_text(strip=True) for cell in cells if cell.name == "td"]
            numbers = [bool(re.match(NUMBER, text)) for text in texts if text.strip("–")]
            marks = ["num"] * (sum(numbers) >= max(1, len(numbers) / 2))
            marks += ["short"] * (max(map(len, texts), default=0) <= 24)
            marks += ["more"] * (number >= COLUMNS)
            for cell in cells:
                cell["class"] = [*cell.get("class", []), *marks]
        for row in table.find_all("tr")[ROWS + 1 :] * (not table.find_parent("details")):
            row["class"] = ["more"]
        table.attrs.pop("border", None)
        box = {"class": "scroll", "tabindex": "0", "role": "group", "aria-label": "table"}
        table.wrap(soup.new_tag("div", attrs=box))
    return Markup(soup)


def _write(path: Path, template: str, **content: object) -> None:
    """Fill a template, give it the Telugu font it needs; it appears whole or not at all."""
    text = pages.environment().get_template(template).render(content)
    font = pages.FONT_FACE if re.search("[\u0c00-\u0c7f]", text) else ""
    files.write_whole(path, text.replace(pages.FONT_SLOT, font, 1))


def publish(out: Path, name: str = "") -> Path:
    """outputs/published/<name>/: what may be shown of the runs that are done, and a manifest."""
    name = name or out.resolve().name
    if not re.fullmatch(parameters.NAME["pattern"], name):
        raise ParameterError(f"NAME={name} must be {parameters.NAME['says']}: NAME=tiny")
    records = {run: _done(out, run) for run in status.traces(out)}
    if not any(records.values()):
        raise ParameterError(f"{out} holds no run that is done: make book, then again")
    left_out = [f"{run}: not done" for run, record in records.items() if not record]
    target = parameters.ROOT / "outputs/published" / name
    with files.whole_folder(target) as place:
        for record in filter(None, records.values()):
            left_out += _copy(out, record, place)
        for path in sorted(out.glob("sweeps/*/*/results/*.json")):
            point = path.parents[1]  # its record: the tables' numbers are traced to it
            if not path.is_symlink() and (record := _done(point, path.stem)):
                shown = place / "results" / point.relative_to(out) / path.name
                _write_public(shown, _public(record), out)
        refresh(place, name)
        shown, now = parameters.shown(out), datetime.datetime.now(datetime.UTC)
        command = f"make publish OUT={out.name if shown[0] == '/' else shown} NAME={name}"
        manifest = {"command": command, "published": now.isoformat(timespec="seconds")}
        ours = all(_ours(out, path.stem) for path in (place / "results").glob("*.json"))
        manifest["text"] = "the book's own" if ours else "given, not shown"
        sums = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in files_of(place)}
        manifest["files"] = {str(p.relative_to(place)): sha for p, sha in sums.items()}
        manifest["left_out"] = left_out
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        files.write_whole(place / "manifest.json", text)
    print(f"{target}: {len(files_of(target))} files; left out, by manifest.json: {len(left_out)}")
    return target


def _done(out: Path, run: str) -> dict | None:
    """The record of a run that is done."""
    done = hashes.load(out, run) and heartbeat.state(out, run)["state"] == "done"
    return files.record(out / "results" / f"{run}.json", "parameters") if done else None


def _ours(out: Path, run: str) -> bool:
    """Whether a run read, or made, tokens that the book wrote by itself, to the last part."""
    known = hashes.load(out, run)
    tokens = (known["inputs"] | known["outputs"]).get("tokens", {})
    maker, made = hashes.makers(out).get("tokens", ("", {"sha256": ""}))
    given = (_done(out, maker) or {}).get("parameters", {})
    ours = not any(given.get(name, "unknown") for name in parameters.SOURCES)
    return ours and made["sha256"] == tokens.get("sha256")


def _copy(out: Path, record: dict, place: Path) -> list[str]:
    """What may be shown of a run; returns what was left out, and why."""
    run, left_out = record["run"], []
    _write_public(place / "results" / f"{run}.json", _public(record, indent=1), out)
    textless = _ours(out, run) or notebooks.of(run).textless
    for path in sorted(path for kind in KINDS for path in (out / kind).glob(f"{run}-*.*")):
        shown, name = path.relative_to(out), path.stem.removeprefix(f"{run}-")
        if ownership.run_of(path, out) != run or path.suffix not in SHOWN:
            continue
        if not textless and name in record.get("texts", [name]):  # an older record does not say
            left_out.append(f"{shown}: may hold text that was given to the book")
        elif path.suffix == ".png":
            files.write_whole(place / shown, path.read_bytes())
        else:
            _write_public(place / shown, path.read_text("utf-8"), out)
    html = out / f"{run}.html"
    if not textless:
        left_out.append(f"{html.name}: shows text that was given to the book")
    elif not html.exists() or not _tells(html, record["finding"]):
        left_out.append(f"{html.name}: not of this run, or not there: make report")
    else:
        _write_public(place / html.name, html.read_text("utf-8"), out)
    return left_out


def _tells(page: Path, finding: str) -> bool:
    """Whether what a page's notebook says is of the run that a record is of."""
    body = page.read_text("utf-8").partition("<main>")[2]
    body = re.sub('<p class="finding">.*?</p>|<[^>]*>', "", body, flags=re.DOTALL)
    finding = re.sub("[*`]", "", finding)  # as Markdown shows it
    return " ".join(finding.split()) in " ".join(unescape(body).split())


def _public(record: dict, indent: int | None = None) -> str:
    """A record without samples, paths and commands: of text only names, and what was computed."""
    given = parameters.external(record["notebook"], record["parameters"])
    places = {name: f"given {i + 1}" for i, name in enumerate(given)}
    remembered = record.get("remembered", {}).items()
    logs = {name: value for name, value in remembered if re.match("estimate|log of |probes", name)}
    public = {name: record[name] for name in OPEN if name in record}
    public["parameters"] = {name: _shown(name, v) for name, v in record["parameters"].items()}
    public["inputs"] = {places.get(name, name): sha for name, sha in record["inputs"].items()}
    public |= {"models": _numbers(record["models"]), "remembered": _numbers(logs)}
    return json.dumps(public, indent=indent, ensure_ascii=False)


def _shown(name: str, value: object) -> object:
    """A parameter's value, unless it is a path, a command, a sentence or what was given."""
    hidden = {"out", "wandb", *parameters.COMMANDS, *parameters.SOURCES} - {"teacher"}
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


def _write_public(path: Path, text: str, out: Path) -> None:
    """Paths of this machine are shortened: to the run folder, the repository, the home."""
    places = {str(out.resolve()): "run-folder", str(parameters.ROOT): ".", str(Path.home()): "~"}
    for place, short in places.items():
        text = re.sub(rf"(?<![\w+/=.-]){re.escape(place)}(?![\w+=.-])", short, text)
    files.write_whole(path, text)


def files_of(place: Path) -> list[Path]:
    return sorted(path for path in place.rglob("*") if path.is_file())


def pack(out: Path) -> Path:
    """<out>/<name>-reports.zip: all pages, figures and tables, in one folder; its links work."""
    if not status.traces(out):
        raise ParameterError(f"{out} holds no run: make book, then again")
    refresh(out)
    shown = ["morning.md", *(f"{kind}/[!.]*.*" for kind in KINDS)]
    shown += [f"{place}[!.]*.html" for place in ("", "sweeps/*/", "sweeps/*/*/")]
    packed = [path for pattern in shown for path in out.glob(pattern)]
    name = re.sub(r"[^A-Za-z0-9.+-]+", "_", out.resolve().name).strip("_.-") or "book"
    target, folder = out / f"{name}-reports.zip", f"{name}-reports"
    files.own(target)
    with files.replacing(target) as beside, ZipFile(beside, "w", ZIP_DEFLATED) as archive:
        for path in sorted(packed):
            archive.write(path, f"{folder}/{path.relative_to(out).as_posix()}")
    files.mark(out, target.name)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")
    return target
