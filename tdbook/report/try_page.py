"""A page with a model inside, or two side by side, that goes on with typed text, offline: the GGUF
file and llama.cpp as WebAssembly (npm's wllama, which the Makefile fetches), both as base64.
"""

import base64
import hashlib
from pathlib import Path

from tdbook.export import llama_cpp, shipping
from tdbook.report import pages, words
from tdbook.runs import parameters, units
from tdlib import files

PROGRAM = parameters.ROOT / ".wllama/node_modules/@wllama/wllama"
PARTS = "LICENCE", "esm/index.min.js", "esm/single-thread/wllama.wasm"
MOST = 380_000_000  # bytes of models: a browser's longest text is 2**29, base64 takes 4 for 3


def write(pairs: dict[str, str]) -> str:
    """MODEL="one [other]" [OUT=] of the command line → exports/<one>/try.html, and where that is.
    ValueError: more than a page holds, or a file that takes ids alone."""
    models = [_model(given) for given in parameters.texts(pairs.get("MODEL", "")) or [""]]
    size, names = sum(model["bytes"] for model in models), [model["name"] for model in models]
    if len(models) > 2 or size > MOST:
        raise ValueError(words.say("page_too_large", names=names, size=size, most=MOST))
    licence, script, wasm = ((PROGRAM / part).read_bytes() for part in PARTS)
    script += (pages.HERE / "try.js").read_bytes()
    values = dict(models=models, licence=licence.decode(), script=script, wasm=wasm, units=units)
    values |= dict(encode=base64.b64encode, sha256=hashlib.sha256, font_slot=pages.FONT_FACE)
    place = Path(pairs.get("OUT") or parameters.ROOT / "exports") / names[0]
    files.own(path := place / f"{'-'.join(['try', *names[1:]])}.html")
    template = pages.environment().get_template("try.html.j2")
    with files.replacing(path) as beside, beside.open("w", encoding="utf8") as page:
        page.writelines(template.generate(values))
    files.mark(place, path.name)
    values = dict(path=parameters.shown(path), bytes=path.stat().st_size, size=size)
    return words.say("page_written", **values)


def _model(given: str) -> dict:
    """What the page holds and tells of a model folder or a .gguf file."""
    found = shipping.find(given)
    path = found if found.suffix == ".gguf" else _exported(found.resolve())
    cards = [folder / "README.md" for folder in (found, path.parent)]
    cards = [card.read_text("utf8") for card in cards if card.is_file()]
    if not (file := llama_cpp.Model(path)).raw_text:
        raise ValueError(words.say("page_of_ids", path=path, card="".join(cards)))
    name = found.absolute().name.removesuffix(".gguf")
    return dict(name=name, path=path, bytes=path.stat().st_size, file=file, cards=cards)


def _exported(folder: Path) -> Path:
    """Q4_0, else the smallest file, of an export whose F16 file holds the folder's own weights."""
    for place in (parameters.ROOT, folder.parent.parent):
        paths = sorted(place.glob(f"exports/{folder.name}/*.gguf"), key=lambda p: p.stat().st_size)
        form = {path.stem.rpartition("-")[2]: path for path in paths}
        if "F16" in form and not shipping.other_weight(folder, form["F16"]):
            return form.get("Q4_0", paths[0])
    raise FileNotFoundError(words.say("page_without_file", folder=parameters.shown(folder)))
