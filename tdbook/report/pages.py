"""Reports: an executed notebook becomes one HTML file that asks for nothing outside itself.

Maths is MathML, figures are data URIs, Telugu has its own subset font (bench/telugu_font.py). What
came from data is escaped where it becomes HTML: by Markdown, the templates, pandas, widgets.py. Of
what slips through the page's security policy allows no request, and no script but the two of this
folder, known by their hashes.
"""

import base64
import functools
import hashlib
from pathlib import Path

import jinja2
import latex2mathml.converter
from markupsafe import Markup, escape
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

from tdbook.runs import heartbeat, units

HERE = Path(__file__).parent
FONT_SLOT = "/* font */"
FONT_FACE = Markup((HERE / "telugu_font.css").read_text("utf-8"))
WIDGETS_CSS = (HERE / "widgets.css").read_text("utf-8")
# they move the sliders of `explorer`, and fill the page that compares runs
SCRIPT, COMPARE = ((HERE / f"{name}.js").read_text("utf-8") for name in ("explorer", "compare"))


def exporter() -> HTMLExporter:
    """Makes the HTML of a notebook's cells."""
    places = {"template_name": "report_template", "extra_template_basedirs": [str(HERE)]}
    html = HTMLExporter(filters={"markdown2html": markdown}, **places)
    html.exclude_input_prompt = html.exclude_output_prompt = True
    html.register_preprocessor(CoalesceStreamsPreprocessor, enabled=True)  # \r of progress
    return html


class _Renderer(IPythonRenderer):
    """Formulas as MathML, HTML as text. (A subclass is the way to extend a mistune renderer.)"""

    def block_math(self, body: str) -> str:  # focusable, since a wide one scrolls
        return f'<span class="math" tabindex="0">{self.inline_math(body, "block")}</span>'

    def inline_math(self, latex: str, display: str = "inline") -> str:
        try:
            return latex2mathml.converter.convert(latex, display=display)
        except Exception:  # its errors share no base; what is no formula ("$5 {") is shown as it is
            return f"<code>{escape(latex)}</code>"

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return super().image(text, url, title) if url.startswith("data:image/") else escape(text)


def markdown(source: str) -> str:
    """Markdown as HTML; HTML in it is shown as written."""
    safe = {"escape": True, "allow_harmful_protocols": False}
    return MarkdownWithMath(_Renderer(**safe, exclude_anchor_links=True)).render(source)


@functools.cache
def environment() -> jinja2.Environment:
    """The templates, what they call, and what every page holds."""
    loader = jinja2.FileSystemLoader(HERE / "report_template")
    templates = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
    templates.filters |= {"date": heartbeat.date, "progress": heartbeat.progress, "si": units.si}
    templates.filters["duration"] = units.duration
    hashes = (hashlib.sha256(script.encode()).digest() for script in (SCRIPT, COMPARE))
    ours = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in hashes)
    css = (HERE / "report.css").read_text("utf-8") + WIDGETS_CSS
    safe = {"css": css, "our_scripts": ours, "font_slot": FONT_SLOT, "widgets_css": WIDGETS_CSS}
    safe |= {"script": SCRIPT, "compare_script": COMPARE}
    templates.globals |= {name: Markup(text) for name, text in safe.items()}
    # of what a page's script reads; tojson escapes what could end it
    templates.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    return templates
