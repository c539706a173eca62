"""README.md of models/<name>, with measured numbers; its words: release.yaml.

What only the owner knows is left open. Nothing here asks the network.
"""

import math
import re
from pathlib import Path

import yaml
from jinja2 import Environment, StrictUndefined

from tdbook.runs import parameters
from tdlib import data
from tdlib.shapes import read_config


def card(folder: Path, tokens: data.Tokens, rows: dict, record: dict, texts: dict) -> str:
    """`rows`: name → metrics, its own first; `record`: results/<run>.json of its training, if
    merged 03's; `texts`: name → what it and its teacher write, drawn alike."""
    parts = templates("release.yaml")
    way = next(way for name, way in parts["ways"].items() if (folder / name).is_file())
    telling = {  # what changes a result; no paths, which would tell where the owner keeps things
        name: value
        for name, value in record["parameters"].items()
        if name not in parameters.VOLATILE and value not in ("", None) and "/" not in str(value)
    }
    repository = "YOUR-NAME/telugu-" + re.sub("[^A-Za-z0-9.]+", "-", folder.name)
    values = dict(name=folder.name, repository=repository, rows=rows, record=record, texts=texts)
    values["own"] = {key: x for key, x in rows[folder.name].items() if abs(x) < math.inf}
    values |= dict(config=read_config(folder), metrics=parts["metrics"], tokens=tokens, way=way)
    values["parameters"] = yaml.safe_dump(telling, sort_keys=False, allow_unicode=True).rstrip()
    for part in ("origin", "program", "worth"):
        values[part] = fill(parts[part], values)
    return fill(parts["card"], values)


def templates(file: str) -> dict:
    """The templates in a .yaml beside this module, by name."""
    return yaml.safe_load(Path(__file__).with_name(file).read_text(encoding="utf8"))


def fill(template: str, values: dict) -> str:
    engine = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return engine.from_string(template).render(values)
