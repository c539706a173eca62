"""What a run shows: figures, tables and lines of progress, in the notebook and as files."""

import io
import sys
from pathlib import Path

from tdbook.runs import parameters
from tdbook.runs.units import minus
from tdlib.files import write_whole as write


def figure(path: Path, figure, alt: str) -> None:
    """Save as .png and .svg, and show it with its alternative text."""
    import PIL.Image
    from IPython.display import Image, display
    from matplotlib import rc_context

    svg, png = io.BytesIO(), io.BytesIO()
    with rc_context({"svg.hashsalt": path.name}):  # or ids differ every time
        figure.savefig(svg, format="svg", metadata={"Date": None})
    figure.set_layout_engine("none")  # places are found: a second search takes a third of the time
    figure.savefig(png, format="png", dpi=150)
    few = PIL.Image.open(png).convert("RGB").quantize(128, PIL.Image.Quantize.FASTOCTREE, dither=0)
    few.save(png := io.BytesIO(), "png", dpi=(150, 150))  # a fifth of the bytes
    for kind, file in (("svg", svg), ("png", png)):
        write(path.with_name(f"{path.name}.{kind}"), file.getvalue())
    if "matplotlib.pyplot" in sys.modules:  # or the notebook would show it a second time
        sys.modules["matplotlib.pyplot"].close(figure)
    display(Image(png.getvalue(), alt=alt), metadata={"alt": alt})


def table(path: Path, table) -> None:
    """Save as .csv and .md, and show it."""
    from IPython.display import HTML, display

    write(path.with_name(f"{path.name}.csv"), table.to_csv(index=False))
    rounded = table.map(lambda value: _figures(value) if isinstance(value, float) else value)
    rounded = rounded.replace("nan", "–")  # what is not known; in the CSV it is empty
    plain = rounded.to_markdown(index=False, disable_numparse=True)
    write(path.with_name(f"{path.name}.md"), plain)
    display(HTML(rounded.to_html(index=False, border=0)))


def _figures(value: float) -> str:
    """Four figures of a number; three below a hundredth: more fit no paper."""
    return minus(f"{value:.3g}" if abs(value) < 0.01 else f"{value:.4g}")


def line(text: str, before):
    """One line of text in the notebook, in place of the one shown before."""
    if parameters.shell() is None:
        return None
    from IPython.display import display

    if before is None:
        return display({"text/plain": text}, raw=True, display_id=True)
    before.update({"text/plain": text}, raw=True)
    return before
