"""Cuts Noto Sans Telugu (SIL Open Font License) for pages: tdbook/report/telugu_font.css.

    python -m bench.telugu_font       seconds; once for each new version of the font

The Telugu block and every conjunct it can form; dandas, the joiners, the circle that a lone vowel
sign stands on, and the bar between pieces, since a browser takes letter and sign from one font and
would show nothing for the bar.
"""

import base64
import io
from pathlib import Path

import fontpkg
from fontTools import subset
from fontTools.ttLib import TTFont
from fontTools.varLib import instancer

LETTERS = [*range(0x0C00, 0x0C80), 0x0964, 0x0965, 0x200C, 0x200D, 0x25CC, ord("|")]
CSS = Path(__file__).parents[1] / "tdbook/report/telugu_font.css"


def rule() -> str:
    """A style rule that holds the font."""
    font, file = TTFont(fontpkg.path("Noto Sans Telugu"), recalcTimestamp=False), io.BytesIO()
    subsetter = subset.Subsetter(subset.Options(layout_features=["*"], hinting=False))
    subsetter.populate(unicodes=LETTERS)
    subsetter.subset(font)
    instancer.instantiateVariableFont(font, {"wght": (400, 700), "wdth": 100}, inplace=True)
    font.flavor = "woff2"
    font.save(file)
    ranges = ", ".join(f"U+{code:04X}" for code in sorted(font.getBestCmap()))
    source = f'url("data:font/woff2;base64,{base64.b64encode(file.getvalue()).decode()}")'
    face = f'font-family: "Report Telugu"; font-weight: 400 700; unicode-range: {ranges}'
    return f"@font-face {{{face}; src: {source}}}\n"


if __name__ == "__main__":
    CSS.write_text(rule(), "utf-8")
