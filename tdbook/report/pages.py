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
import json
import re
from pathlib import Path

import bleach
import fontpkg
import jinja2
import latex2mathml.converter
from bleach.css_sanitizer import CSSSanitizer
from fontTools import subset
from fontTools.ttLib import TTFont
from fontTools.varLib import instancer
from markupsafe import Markup, escape
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

from tdbook.runs import hashes, heartbeat, parameters, units
from tdbook.runs.heartbeat import date, duration, progress
from tdlib.files import write_whole as write

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


def explorer(numbers: dict) -> str:
    """The explorer of widgets.py as HTML that needs no kernel, and no script to show its start."""
    embedded = json.dumps(numbers, ensure_ascii=False, separators=(",", ":"))
    embedded = Markup(embedded.replace("<", "\\u003c"))
    template = _environment().get_template("explorer.html.j2")
    return template.render(n=numbers, embedded=embedded, script=Markup(SCRIPT))


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


@functools.cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(HERE / "report_template")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
    words = (date, duration, estimated, literal, progress, heartbeat.in_words, heartbeat.word, size)
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
        write(path, rule)
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
