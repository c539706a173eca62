"""Reports: an executed notebook becomes one HTML file that asks for nothing outside itself.

Maths is MathML, figures are data URIs, Telugu comes with its own subset font. What came from data
passes through bleach; the page's own security policy then forbids requests once more, and every
script but the one that moves 02's slider, which it knows by its hash.
"""

import base64
import contextlib
import functools
import hashlib
import importlib.metadata
import io
import itertools
import json
import re
import time
from pathlib import Path

import bleach
import fontpkg
import jinja2
import latex2mathml.converter
import nbformat
from bleach.css_sanitizer import CSSSanitizer
from bs4 import BeautifulSoup, Tag
from fontTools import subset
from fontTools.ttLib import TTFont
from fontTools.varLib import instancer
from markupsafe import Markup, escape
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

from tdlib import files, hashes, ownership, parameters, runs, shapes, status, sweeps, units
from tdlib.status import date, duration, progress

HERE = Path(__file__).parent
FONT_SLOT = "/* font */"
# Telugu; then dandas, the joiners, the circle that a lone vowel sign stands on, and the bar between
# pieces, since a browser takes letter and sign from one font and would show nothing for the bar
LETTERS = [*range(0x0C00, 0x0C80), 0x0964, 0x0965, 0x200C, 0x200D, 0x25CC, ord("|")]
WIDGET = "application/vnd.jupyter.widget-view+json"
SHOWN_BESIDE_WIDGET = {"text/html", "image/svg+xml", "image/png"}

# as a table shows it: "[" of an interval, sign, digits, then a unit, an interval or a ± part
NUMBER = r"\[?[-−+<≤≈~]?\d[\d,.]*(e[-+]?\d+)?( ?[%×]| [A-Za-z/]+)?(\s?[±\[(,–].*)?$"
LINK = re.compile(r"(https?://|mailto:|#|[\w./%-]*(#|$))")  # relative, or of a harmless kind
# private-use characters hold the place of a formula while the HTML around it is cleaned
FORMULA = re.compile("\ue000(\\d+)\ue001")

WIDGETS_CSS = (HERE / "widgets.css").read_text("utf-8")
SCRIPT = (HERE / "explorer.js").read_text("utf-8")  # moves the slider of `explorer`
EXPLORER = re.compile(r'(?s)<section class="explorer">.*?json">(.*?)</script>.*</script>')

TAGS = """a abbr b blockquote br caption code col colgroup dd del details div dl dt em figcaption
 figure h1 h2 h3 h4 h5 h6 hr i img li mark ol p pre s small span strong sub summary sup table tbody
 td tfoot th thead tr u ul""".split()
ATTRIBUTES = """alt class colspan dir height id lang open role rowspan scope start style title
 width""".split()
# colours and boxes, for token by token texts; the page keeps its own type and layout
STYLES = """background-color border border-bottom border-color border-radius color font-style
 font-weight margin opacity padding text-align text-decoration white-space""".split()


def page(out: Path, run: str) -> None:
    """Write out/<run>.html, one file headed by where it comes from, of the notebook as executed;
    one that did not finish opens with its state and its last lines."""
    executed = nbformat.read(out / f"{run}.ipynb", as_version=4)
    _prepare(executed, done=status.row(out, run)["state"]["state"] == "done")
    _frame(out, run, _with_readable_tables(_exporter().from_notebook_node(executed)[0]))


def refresh(out: Path) -> Path:
    """Write the head of every page again, with links to the runs that came later and to code that
    is older by now; then the index, whose path it returns."""
    for run in _pages(out):
        html = (out / f"{run}.html").read_text("utf-8")
        _frame(out, run, Markup(html.partition("<main>\n")[2].rpartition("\n</main>")[0]))
    return index(out)


def index(out: Path) -> Path:
    """Write out/index.html and out/morning.md: what goes on and what it cost; quality table and
    difficulty plot, then one row a run, states true. A sweep's folder has its points as rows; of a
    point's own folder, the sweep's index is written."""
    if (out / sweeps.PARENT).is_file() and not (out / sweeps.POINTS).is_file():
        return index(out.parent)
    if above := sweeps.parent(out):
        _write_index(above)
    return _write_index(out)


def _write_index(out: Path) -> Path:
    if not ownership.is_book(out) and (out / "index.html").exists():
        raise FileExistsError(f"{out / 'index.html'} is no book's, and no run is there: give OUT=")
    morning = status.morning(out)
    for row in morning["rows"]:
        page = row["folder"] / f"{row['run']}.html"
        row["page"] = page.relative_to(out).as_posix() if page.exists() else ""
    content = {
        "name": out.resolve().name, "now": date(time.time()), "morning": morning,
        "rows": morning["rows"], "best": best(morning["rows"]),
        "swept": sweeps.listed(out, out.name) if (out / sweeps.POINTS).is_file() else None,
    }  # fmt: skip
    quality = out / "tables/04_merge_eval-quality.md"
    difficulty = out / "figures/02_hard_set-difficulty.svg"
    _write(
        out / "index.html", "runs.html.j2", **content,
        quality=quality.exists() and _with_readable_tables(_markdown(quality.read_text("utf-8"))),
        difficulty=difficulty.exists() and _base64(difficulty.read_bytes()),
    )  # fmt: skip
    if not content["swept"]:
        template = _environment().get_template("morning.md.j2")
        runs.write(out / "morning.md", template.render(content))
    return out / "index.html"


def best(rows: list[dict]) -> list[dict]:
    """The models that are done, best first, each beside the plan's estimate."""
    models = {name: m for row in rows for name, m in row["record"].get("models", {}).items()}
    losses = sorted((m["loss"], name) for name, m in models.items() if "loss" in m)
    return [
        {"model": name, "loss": loss, "plan": shapes.span(*shapes.of_plan(name, "loss"))}
        for loss, name in losses[:12]
    ]


def explorer(numbers: dict) -> str:
    """The explorer of widgets.py as HTML that needs no kernel, and no script to show its start."""
    embedded = json.dumps(numbers, ensure_ascii=False, separators=(",", ":"))
    embedded = Markup(embedded.replace("<", "\\u003c"))
    template = _environment().get_template("explorer.html.j2")
    return template.render(n=numbers, embedded=embedded, script=Markup(SCRIPT))


def _frame(out: Path, run: str, body: Markup) -> None:
    pages = sorted({*_pages(out), run})
    at = pages.index(run)
    results = (out / "results").glob("*.json")
    reads = {path.stem: (files.whole(path) or {}).get("reads", {}) for path in results}
    point = sweeps.parent(out) and not (out / sweeps.POINTS).is_file()
    before, _, after = [None, *pages, None][at : at + 3]
    _write(
        out / f"{run}.html", "page.html.j2", body=body, **status.row(out, run),
        index="../index.html" if point else "index.html", before=before, after=after,
        made_from=[name for name in pages if name in reads.get(run, {})],
        used_by=[name for name in pages if run in reads.get(name, {})],
    )  # fmt: skip


def _pages(out: Path) -> list[str]:
    """The runs of a folder that have a page, in reading order."""
    return sorted(row["run"] for row in status.rows(out, look=False)
                  if row["folder"] == out and (out / f"{row['run']}.html").exists())  # fmt: skip


def size(count: float) -> str:
    """Bytes, as 31.2 MB."""
    return units.si(count, "B")


def estimated(record: dict) -> str:
    """What was expected of a run before it began, beside what it took."""
    if not (span := record.get("remembered", {}).get("estimate")):
        return ""
    return f" (estimated {units.duration(span['seconds_low'], span['seconds_high'])})"


def literal(value: object) -> str:
    """A parameter's value as YAML has it: text plain, the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _exporter() -> HTMLExporter:
    filters = {"markdown2html": _markdown, "harmless": _output_html}
    places = {"template_name": "report_template", "extra_template_basedirs": [str(HERE)]}
    exporter = HTMLExporter(filters=filters, **places)
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    exporter.register_preprocessor(CoalesceStreamsPreprocessor, enabled=True)  # \r of progress
    return exporter


def _prepare(notebook: nbformat.NotebookNode, done: bool) -> None:
    """Take out papermill's red banners, which the page's head replaces, and of a run that is done
    the parameters, which that head shows. A widget, dead without its kernel, leaves a note where
    nothing lies beside it."""
    hidden = {"papermill-error-cell-tag", *["parameters", "injected-parameters"] * done}
    notebook.cells = [c for c in notebook.cells if not hidden & {*c.metadata.get("tags", [])}]
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        data = output.get("data", {})
        if data.pop(WIDGET, None) and not SHOWN_BESIDE_WIDGET & data.keys():
            output["data"] = {"text/html": '<p class="note">interactive in JupyterLab</p>'}


class _MathRenderer(IPythonRenderer):
    """Puts formulas aside as MathML. (A subclass is the way to extend a mistune renderer.)"""

    def __init__(self) -> None:
        super().__init__(escape=False, exclude_anchor_links=True)
        self.formulas: list[str] = []

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")

    def block_math(self, body: str) -> str:
        return self.inline_math(body, "block")

    def inline_math(self, latex: str, display: str = "inline") -> str:
        try:
            formula = latex2mathml.converter.convert(latex, display=display)
        except Exception:  # its errors share no base; what is no formula ("$5 {") is shown as it is
            formula = f"<code>{escape(latex)}</code>"
        if display == "block":  # focusable, since a wide one scrolls
            formula = f'<span class="math" tabindex="0">{formula}</span>'
        self.formulas.append(formula)
        return f"\ue000{len(self.formulas) - 1}\ue001"


def _markdown(source: str) -> str:
    renderer = _MathRenderer()
    html = MarkdownWithMath(renderer).render(re.sub("[\ue000\ue001]", "", source))
    formulas = {str(number): formula for number, formula in enumerate(renderer.formulas)}
    return FORMULA.sub(lambda match: formulas.get(match[1], ""), _harmless(html))


def _allowed(tag: str, name: str, value: str) -> bool:
    if name == "href":
        return tag == "a" and LINK.match(value) is not None
    if name == "src":
        return value.startswith("data:image/")
    return name in ATTRIBUTES or name.startswith("aria-")


PROTOCOLS = ("http", "https", "mailto", "data")
CLEANER = bleach.Cleaner(TAGS, _allowed, PROTOCOLS, strip=True, css_sanitizer=CSSSanitizer(STYLES))


def _harmless(html: str) -> str:
    # bleach drops the tags but would leave a script's or a style sheet's text to be read
    return CLEANER.clean(re.sub(r"(?is)<(script|style)\b.*?</\1\s*>", "", html))


def _output_html(html: str) -> str:
    """HTML that a cell put out, cleaned; an explorer is built anew from its numbers and texts."""
    found = EXPLORER.search(html)
    return explorer(_all_harmless(json.loads(found[1]))) if found else _harmless(html)


def _all_harmless(value: object) -> object:
    """JSON in which every text is harmless as HTML."""
    if isinstance(value, dict):
        return {_harmless(name): _all_harmless(part) for name, part in value.items()}
    if isinstance(value, list):
        return [*map(_all_harmless, value)]
    return _harmless(value) if isinstance(value, str) else value


def _with_readable_tables(html: str) -> Markup:
    """Every table in a box of its own that scrolls, its columns of numbers marked `num`."""
    soup = BeautifulSoup(html, "html.parser")
    for table in soup.find_all("table"):
        _mark_columns(table)
        table.attrs.pop("border", None)
        box = {"class": "scroll", "tabindex": "0", "role": "group", "aria-label": "table"}
        table.wrap(soup.new_tag("div", attrs=box))
    return Markup(soup)


def _mark_columns(table: Tag) -> None:
    """`num` where half or more of a column's filled cells are numbers, `short` where none wraps."""
    rows = [row.find_all(["td", "th"]) for row in table.find_all("tr")]
    for column in itertools.zip_longest(*rows):
        cells = [cell for cell in column if cell is not None]
        texts = [cell.get_text(strip=True) for cell in cells if cell.name == "td"]
        filled = [text for text in texts if text]
        numbers = sum(re.match(NUMBER, text) is not None for text in filled)
        marks = ["num"] * (numbers >= max(1, len(filled) / 2))
        marks += ["short"] * all(len(text) <= 24 for text in filled)
        for cell in cells:
            cell["class"] = [*cell.get("class", []), *marks]


@functools.cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(HERE / "report_template")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
    words = (date, duration, estimated, literal, progress, status.in_words, status.word, size)
    for function in words:
        environment.filters[function.__name__] = function
    environment.globals["css"] = Markup((HERE / "report.css").read_text("utf-8") + WIDGETS_CSS)
    environment.globals["font_slot"] = FONT_SLOT
    environment.globals["script_hash"] = (
        f"sha256-{_base64(hashlib.sha256(SCRIPT.encode()).digest())}"
    )
    return environment


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _write(path: Path, template: str, **content: object) -> None:
    """Fill a template, give it the Telugu font it needs; it appears whole or not at all."""
    text = _environment().get_template(template).render(content)
    telugu = re.search("[\u0c00-\u0c7f]", text)
    runs.write(path, text.replace(FONT_SLOT, font_face() if telugu else "", 1))


@functools.cache
def font_face() -> str:
    """A style rule with Noto Sans Telugu cut to the Telugu block and every conjunct it can form.
    Cutting takes seconds, so the rule is kept in outputs/ for the next page."""
    version = importlib.metadata.version("fontpkg-noto-sans-telugu")
    path = parameters.ROOT / "outputs" / f".telugu-font-{version}-{hashes.of(LETTERS)[:8]}.css"
    if path.exists():
        return path.read_text("utf-8")
    rule = _cut_font()
    with contextlib.suppress(OSError):  # a repository that may only be read
        runs.write(path, rule)
    return rule


def _cut_font() -> str:
    font = TTFont(fontpkg.path("Noto Sans Telugu"))
    subsetter = subset.Subsetter(subset.Options(layout_features=["*"], hinting=False))
    subsetter.populate(unicodes=LETTERS)
    subsetter.subset(font)
    instancer.instantiateVariableFont(font, {"wght": (400, 700), "wdth": 100}, inplace=True)
    font.flavor = "woff2"
    file = io.BytesIO()
    font.save(file)
    ranges = ", ".join(f"U+{code:04X}" for code in sorted(font.getBestCmap()))
    source = f'url("data:font/woff2;base64,{_base64(file.getvalue())}")'
    face = f'font-family: "Report Telugu"; font-weight: 400 700; unicode-range: {ranges}'
    return f"@font-face {{{face}; src: {source}}}"
