"""Reports: an executed notebook becomes one HTML file that asks for nothing outside itself.

Maths is MathML, figures are data URIs, Telugu comes with its own subset font. What came from data
passes through bleach; the page's own security policy then forbids requests once more, and every
script but the one that moves 02's slider, which it knows by its hash.
"""

import base64
import csv
import datetime
import functools
import hashlib
import importlib.metadata
import io
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

from tdlib import parameters, runs

HERE = Path(__file__).parent
FONT_SLOT = "/* font */"
WIDGET = "application/vnd.jupyter.widget-view+json"
SHOWN_BESIDE_WIDGET = {"text/html", "image/svg+xml", "image/png"}

# as a table shows it: "[" of an interval, sign, digits, then a unit, an interval or a ± part
NUMBER = r"\[?[-−+<≤≈~]?\d[\d,.]*(e[-+]?\d+)?( ?[%×]| [A-Za-z/]+)?(\s?[±\[(,–].*)?$"
LINK = re.compile(r"(https?://|mailto:|#|[\w./%-]*(#|$))")  # relative, or of a harmless kind
# private-use characters hold the place of a formula while the HTML around it is cleaned
FORMULA = re.compile("\ue000(\\d+)\ue001")

SCRIPT = (HERE / "explorer.js").read_text("utf-8")  # moves the slider of `explorer`
EXPLORER = re.compile(r'(?s)<section class="offline-explorer">.*?json">(.*?)</script>.*</script>')

TAGS = """a abbr b blockquote br caption code col colgroup dd del details div dl dt em figcaption
 figure h1 h2 h3 h4 h5 h6 hr i img li mark ol p pre s small span strong sub summary sup table tbody
 td tfoot th thead tr u ul""".split()
ATTRIBUTES = """alt class colspan dir height id lang open role rowspan scope start style title
 width""".split()
# colours and boxes, for token by token texts; the page keeps its own type and layout
STYLES = """background-color border border-bottom border-color border-radius color font-style
 font-weight margin opacity padding text-align text-decoration white-space""".split()


def page(notebook: Path, html: Path, record: dict | None, state: dict | None = None) -> None:
    """Write an executed notebook, finished or failed, as one file headed by where it comes from.

    `record` is results/<run>.json, `state` what runs.state says. Where the run is not done, or has
    no record, its state and last lines stand at the head.
    """
    executed = _prepared(nbformat.read(notebook, as_version=4))
    body = _with_readable_tables(_exporter().from_notebook_node(executed)[0])
    run = (record or state or {}).get("run", notebook.stem)
    _write(html, "page.html.j2", run=run, record=record, state=state, body=body)


def index(out: Path) -> Path:
    """Write out/index.html: quality table and difficulty plot, then one row a run, states true."""
    names = {path.stem for part in ("results", "state") for path in (out / part).glob("*.json")}
    rows = [_row(out, name) for name in sorted(names)]
    states = [row["state"]["state"] for row in rows]
    counts = ", ".join(f"{states.count(word)} {word}" for word in dict.fromkeys(states))
    _write(
        out / "index.html",
        "runs.html.j2",
        name=out.resolve().name,
        counts=f"{len(rows)} run{'' if len(rows) == 1 else 's'}: {counts or 'none'}",
        now=date(time.time()),
        quality=_quality_table(out / "tables"),
        difficulty=_picture(out / "figures" / "02_hard_set-difficulty"),
        rows=rows,
    )
    return out / "index.html"


def explorer(stops: list, texts: list, windows: int, known: int, at: int, legend: str) -> str:
    """A slider over the hard set as HTML that needs no kernel, in a report and in JupyterLab.

    `stops` are [threshold, windows at or above it], `at` the one it starts on; `texts` are [rank,
    HTML] of some windows by ascending difficulty, of which `known` have one and `windows` are all.
    """
    numbers = {"stops": stops, "texts": texts, "windows": windows, "known": known, "at": at}
    embedded = json.dumps(numbers | {"legend": legend}, ensure_ascii=False).replace("<", "\\u003c")
    return _environment().get_template("explorer.html.j2").render(
        last=len(stops) - 1, at=at, legend=Markup(legend), embedded=Markup(embedded),
        script=Markup(SCRIPT),
    )  # fmt: skip


def _row(out: Path, run: str) -> dict:
    record_path = out / "results" / f"{run}.json"
    record = json.loads(record_path.read_text("utf-8")) if record_path.exists() else None
    has_state = (out / "state" / f"{run}.json").exists()
    return {
        "run": run,
        "record": record,
        "state": runs.state(out, run) if has_state else {"run": run, "state": "done"},
        "older": record is not None and runs.older_code(out, run),
        "link": f"{run}.html" if (out / f"{run}.html").exists() else None,
    }


def _quality_table(tables: Path) -> Markup | None:
    markdown, rows = (tables / f"04_merge_eval-quality.{kind}" for kind in ("md", "csv"))
    if markdown.exists():  # preferred: its numbers are already rounded
        return _with_readable_tables(_markdown(markdown.read_text("utf-8")))
    if rows.exists():
        head, *body = csv.reader(io.StringIO(rows.read_text("utf-8")))
        table = _environment().get_template("table.html.j2").render(head=head, body=body)
        return _with_readable_tables(table)
    return None


def _picture(stem: Path) -> str | None:
    for suffix, kind in ((".svg", "svg+xml"), (".png", "png")):
        path = stem.with_name(stem.name + suffix)
        if path.exists():
            return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    return None


def provenance(record: dict) -> list[tuple[str, str]]:
    """The plain rows of the provenance table; what the record does not know is left out."""
    known = {name: value for name, value in record.items() if value not in (None, "", {})}
    changes = " + uncommitted changes" if record.get("dirty") else ""
    versions = known.get("versions", {})
    rows = {
        "commit": known.get("commit", "none") + changes,
        "device": known.get("device"),
        "versions": " · ".join(f"{package} {version}" for package, version in versions.items()),
        "started": "started" in known and date(known["started"]),
        "duration": "seconds" in known and duration(known["seconds"]),
        "speed": "tokens_per_second" in known and f"{known['tokens_per_second']:,.0f} tokens/s",
        "peak memory": "peak_memory_mib" in known and f"{known['peak_memory_mib']:,.0f} MiB",
    }
    return [(name, value) for name, value in rows.items() if value]


def date(moment: str | float) -> str:
    """2026-11-24T11:36:38+00:00, or unix seconds, → 24 Nov 2026, 11:36 UTC."""
    if isinstance(moment, str):
        moment = datetime.datetime.fromisoformat(moment).timestamp()
    when = datetime.datetime.fromtimestamp(moment, datetime.UTC)
    return f"{when.day} {when:%b %Y, %H:%M} UTC"


def duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    hours, rest = divmod(round(seconds), 3600)
    if hours:
        return f"{hours} h {rest // 60} min"
    return f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{rest} s"


def progress(state: dict) -> str:
    """How far a run that is not done has come: step 120 of 400 · loss 4.32 · about 31 s left."""
    parts = [state.get("message")]
    if state.get("steps"):
        parts.insert(0, f"step {state.get('step') or 0:,} of {state['steps']:,}")
    if state["state"] == "running" and state.get("left_s") is not None:
        parts.append(f"about {duration(state['left_s'])} left")
    elif state["state"] != "running" and state.get("heartbeat"):
        parts.append(f"last heard of {date(state['heartbeat'])}")
    return " · ".join(part for part in parts if part)


def literal(value: object) -> str:
    """A parameter's value as YAML has it: text plain, the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _exporter() -> HTMLExporter:
    filters = {
        "markdown2html": _cell_markdown,
        "harmless": _output_html,
        "figure_text": _figure_text,
    }
    exporter = HTMLExporter(
        template_name="report_template", extra_template_basedirs=[str(HERE)], filters=filters
    )
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    exporter.register_preprocessor(CoalesceStreamsPreprocessor, enabled=True)  # \r of progress
    return exporter


def _prepared(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without papermill's red banners, which the page's head replaces, and without widgets.

    A widget is dead without its kernel: what lies beside it is shown, else a note.
    """
    banner = "papermill-error-cell-tag"
    notebook.cells = [c for c in notebook.cells if banner not in c.metadata.get("tags", [])]
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        data = output.get("data", {})
        if data.pop(WIDGET, None) and not SHOWN_BESIDE_WIDGET & data.keys():
            output["data"] = {"text/html": '<p class="note">interactive in JupyterLab</p>'}
    return notebook


def _figure_text(output: nbformat.NotebookNode) -> str:
    """A figure's alternative text: its metadata's `alt`, else its text unless that is a repr."""
    for place in (output.metadata, *(output.metadata.get(kind, {}) for kind in output.data)):
        if place.get("alt"):
            return place["alt"]
    text = output.data.get("text/plain", "<")
    return "figure" if text.startswith("<") else text


class _MathRenderer(IPythonRenderer):
    """Puts formulas aside as MathML. (A subclass is the way to extend a mistune renderer.)"""

    def __init__(self, attachments: dict) -> None:
        super().__init__(escape=False, attachments=attachments, exclude_anchor_links=True)
        self.formulas: list[str] = []

    def inline_math(self, body: str) -> str:
        return self._put_aside(body, "inline")

    def block_math(self, body: str) -> str:
        return self._put_aside(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return self._put_aside(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")

    def _put_aside(self, latex: str, display: str) -> str:
        try:
            formula = latex2mathml.converter.convert(latex, display=display)
        except Exception:  # its errors share no base; what is no formula ("$5 {") is shown as it is
            formula = f"<code>{escape(latex)}</code>"
        if display == "block":  # focusable, since a wide one scrolls
            formula = f'<span class="math" tabindex="0">{formula}</span>'
        self.formulas.append(formula)
        return f"\ue000{len(self.formulas) - 1}\ue001"


def _markdown(source: str, attachments: dict | None = None) -> str:
    renderer = _MathRenderer(attachments or {})
    html = MarkdownWithMath(renderer).render(re.sub("[\ue000\ue001]", "", source))
    formulas = {str(number): formula for number, formula in enumerate(renderer.formulas)}
    return FORMULA.sub(lambda match: formulas.get(match[1], ""), _harmless(html))


@jinja2.pass_context
def _cell_markdown(context: jinja2.runtime.Context, source: str) -> str:
    return _markdown(source, context["cell"].get("attachments", {}))


def _allowed(tag: str, name: str, value: str) -> bool:
    if name == "href":
        return tag == "a" and LINK.match(value) is not None
    if name == "src":
        return value.startswith("data:image/")
    return name in ATTRIBUTES or name.startswith("aria-")


CLEANER = bleach.Cleaner(
    TAGS,
    _allowed,
    protocols=("http", "https", "mailto", "data"),
    strip=True,
    css_sanitizer=CSSSanitizer(allowed_css_properties=STYLES),
)


def _harmless(html: str) -> str:
    # bleach drops the tags but would leave a script's or a style sheet's text to be read
    return CLEANER.clean(re.sub(r"(?is)<(script|style)\b.*?</\1\s*>", "", html))


def _output_html(html: str) -> str:
    """HTML that a cell put out, cleaned; an explorer is built anew from its numbers and texts."""
    found = EXPLORER.search(html)
    if not found:
        return _harmless(html)
    n = json.loads(found[1])
    stops = [[float(threshold), int(count)] for threshold, count in n["stops"]]
    texts = [[int(rank), _harmless(text)] for rank, text in n["texts"]]
    counts = (int(n[name]) for name in ("windows", "known", "at"))
    return explorer(stops, texts, *counts, _harmless(n["legend"]))


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
    for column in range(max(map(len, rows), default=0)):
        cells = [row[column] for row in rows if column < len(row)]
        texts = [cell.get_text(strip=True) for cell in cells if cell.name == "td"]
        filled = [text for text in texts if text]
        number_count = sum(re.match(NUMBER, text) is not None for text in filled)
        marks = ["num"] if number_count >= max(1, len(filled) / 2) else []
        marks += ["short"] if max(map(len, filled), default=0) <= 24 else []
        for cell in cells:
            cell["class"] = [*cell.get("class", []), *marks]


@functools.cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(HERE / "report_template")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
    for function in (date, duration, literal, progress, provenance):
        environment.filters[function.__name__] = function
    environment.globals["css"] = Markup((HERE / "report.css").read_text("utf-8"))
    environment.globals["font_slot"] = FONT_SLOT
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    environment.globals["script_hash"] = f"sha256-{digest}"
    return environment


def _write(path: Path, template: str, **content: object) -> None:
    """Fill a template, give it the Telugu font it needs; it appears whole or not at all."""
    text = _environment().get_template(template).render(content)
    telugu = re.search("[\u0c00-\u0c7f]", text)
    runs.write(path, text.replace(FONT_SLOT, _font_face() if telugu else "", 1))


@functools.cache
def _font_face() -> str:
    """A style rule with Noto Sans Telugu cut to the Telugu block and every conjunct it can form.
    Cutting takes seconds, so the rule is kept in outputs/ for the next page."""
    version = importlib.metadata.version("fontpkg-noto-sans-telugu")
    kept = parameters.ROOT / "outputs" / f".telugu-font-{version}.css"
    if not kept.exists():
        runs.write(kept, _cut_font())
    return kept.read_text("utf-8")


def _cut_font() -> str:
    font = TTFont(fontpkg.path("Noto Sans Telugu"))
    # the subsetter would walk all tables for names in use: a third of its time, for a kilobyte
    names = font["name"]
    del font["name"]
    subsetter = subset.Subsetter(subset.Options(layout_features=["*"], hinting=False))
    # beside the letters: dandas, the joiners, and the circle that a lone vowel sign stands on
    more = (0x0964, 0x0965, 0x200C, 0x200D, 0x25CC)
    subsetter.populate(unicodes=[*range(0x0C00, 0x0C80), *more])
    subsetter.subset(font)
    font["name"] = names  # holds the copyright line that the licence asks for
    instancer.instantiateVariableFont(font, {"wght": (400, 700), "wdth": 100}, inplace=True)
    font.flavor = "woff2"
    file = io.BytesIO()
    font.save(file)
    ranges = ", ".join(f"U+{code:04X}" for code in sorted(font.getBestCmap()))
    source = f'url("data:font/woff2;base64,{base64.b64encode(file.getvalue()).decode()}")'
    face = f'font-family: "Report Telugu"; font-weight: 400 700; unicode-range: {ranges}'
    return f"@font-face {{{face}; src: {source}}}"
