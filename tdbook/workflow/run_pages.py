"""The pages of a run folder: a run's own, and the index."""

import itertools
import re
import time
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from markupsafe import Markup

from tdbook.report import pages
from tdbook.runs import heartbeat, notebooks, ownership, sweeps, units
from tdbook.workflow import status
from tdlib import files

WIDGET = "application/vnd.jupyter.widget-view+json"
SHOWN_BESIDE_WIDGET = {"text/html", "image/svg+xml", "image/png"}
# as a table shows it: "[" of an interval, sign, digits, then a unit, an interval or a ± part
NUMBER = r"\[?[-−+<≤≈~]?\d[\d,.]*(e[-+]?\d+)?( ?[%×]| [A-Za-z/]+)?(\s?[±\[(,–].*)?$"


def page(out: Path, run: str) -> None:
    """Write out/<run>.html: the notebook as executed, under a head that says how it was made."""
    notebook = nbformat.read(out / f"{run}.ipynb", as_version=4)
    # not shown twice: what the head says already
    done = status.row(out, run)["state"]["state"] == "done"
    hidden = {"papermill-error-cell-tag", *["parameters", "injected-parameters"] * done}
    notebook.cells = [c for c in notebook.cells if not hidden & {*c.metadata.get("tags", [])}]
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        data = output.get("data", {})
        # a widget is dead without its kernel
        if data.pop(WIDGET, None) and not SHOWN_BESIDE_WIDGET & data.keys():
            output["data"] = {"text/html": '<p class="note">interactive in JupyterLab</p>'}
    _frame(out, run, _with_readable_tables(pages.exporter().from_notebook_node(notebook)[0]))


def refresh(out: Path, name: str = "") -> Path:
    """Write the head of every page again, for later runs and older code; then the index."""
    for run in _runs_with_page(out):
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
    path = out / "index.html"
    if not ownership.is_book(out) and path.exists():
        raise FileExistsError(f"{path} is no book's, and no run is there: give OUT=")
    content = status.morning(out) | {"now": heartbeat.date(time.time())}
    content["name"] = name or out.resolve().name
    for row in content["rows"]:
        html = row["folder"] / f"{row['run']}.html"
        row["page"] = html.relative_to(out).as_posix() if html.exists() else ""
    models = dict(m for row in content["rows"] for m in row["record"].get("models", {}).items())
    losses = sorted((m["loss"], name) for name, m in models.items() if "loss" in m)[:12]
    plan = {name: units.span(*units.of_plan(name, "loss")) for _, name in losses}
    content["best"] = [(name, loss, plan[name]) for loss, name in losses]
    content["swept"] = sweeps.listed(out, out.name) if swept else None
    quality = out / f"tables/{notebooks.COMPARISON}-quality.md"
    if quality.exists():
        content["quality"] = _with_readable_tables(pages.markdown(quality.read_text("utf-8")))
    difficulty = out / f"figures/{notebooks.HARD_SET}-difficulty.svg"
    if difficulty.exists():
        content["difficulty"] = pages.base64_of(difficulty.read_bytes())
    content["whole"] = not swept and (out / "state").is_dir()  # published/ has no states
    _write(path, "runs.html.j2", **content)
    if content["whole"]:
        template = pages.environment().get_template("morning.md.j2")
        files.write_whole(out / "morning.md", template.render(content))
    return path


def _frame(out: Path, run: str, body: Markup) -> None:
    """Put a head and links around the body of a page."""
    names = sorted({*_runs_with_page(out), run})
    at = names.index(run)
    before, _, after = [None, *names, None][at : at + 3]
    results = (out / "results").glob("*.json")
    reads = {path.stem: (files.whole(path) or {}).get("reads", {}) for path in results}
    point = sweeps.parent(out) and not (out / sweeps.POINTS).is_file()
    links = {"index": "../index.html" if point else "index.html", "before": before, "after": after}
    links["made_from"] = [name for name in names if name in reads.get(run, {})]
    links["used_by"] = [name for name in names if run in reads.get(name, {})]
    _write(out / f"{run}.html", "page.html.j2", body=body, **links, **status.row(out, run))


def _runs_with_page(out: Path) -> list[str]:
    """The runs of a folder that have a page, in reading order."""
    return [run for run in status.traces(out) if (out / f"{run}.html").exists()]


def _with_readable_tables(html: str) -> Markup:
    """Every table in a box that scrolls; its columns marked `num` where half or more of the filled
    cells are numbers, `short` where none wraps."""
    soup = BeautifulSoup(html, "html.parser")
    for table in soup.find_all("table"):
        rows = [row.find_all(["td", "th"]) for row in table.find_all("tr")]
        for column in itertools.zip_longest(*rows):
            cells = [cell for cell in column if cell is not None]
            texts = [cell.get_text(strip=True) for cell in cells if cell.name == "td"]
            numbers = [bool(re.match(NUMBER, text)) for text in texts if text.strip("–")]
            marks = ["num"] * (sum(numbers) >= max(1, len(numbers) / 2))
            marks += ["short"] * (max(map(len, texts), default=0) <= 24)
            for cell in cells:
                cell["class"] = [*cell.get("class", []), *marks]
        table.attrs.pop("border", None)
        box = {"class": "scroll", "tabindex": "0", "role": "group", "aria-label": "table"}
        table.wrap(soup.new_tag("div", attrs=box))
    return Markup(soup)


def _write(path: Path, template: str, **content: object) -> None:
    """Fill a template, give it the Telugu font it needs; it appears whole or not at all."""
    text = pages.environment().get_template(template).render(content)
    font = pages.FONT_FACE if re.search("[\u0c00-\u0c7f]", text) else ""
    files.write_whole(path, text.replace(pages.FONT_SLOT, font, 1))
