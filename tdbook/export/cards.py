"""README.md of models/<name> and adapters/<name>, with measured numbers; its words: release.yaml.

What only the owner knows is left open. Nothing here asks the network.
"""

import json
import re
import shlex
from pathlib import Path

import yaml
from jinja2 import Environment, StrictUndefined
from safetensors import safe_open

from tdbook.runs import rules
from tdlib import data
from tdlib.shapes import read_config

OWNER = "YOUR-NAME"  # on the Hub


def card(
    folder: Path, tokens: data.Tokens, row: dict, record: dict, teacher: dict | None = None
) -> str:
    """The card of models/<name>. `row`: the model's metrics (common.measure); `record`:
    results/<run>.json of the run that trained it, of a merged model that of 03."""
    rows = {folder.name: row} | ({"teacher": teacher} if teacher else {})
    return _fill_card(folder, folder, tokens, rows, record, {"adapter": None})


def adapter_card(
    folder: Path, base: Path, tokens: data.Tokens, row: dict, record: dict, before: dict
) -> str:
    """The card of adapters/<name>, made for the model in the folder `base`. `row`: the metrics with
    it; `before`: those of the base alone; `record`: results/<run>.json of its run."""
    rows = {folder.name: row, f"{base.name} alone": before}
    adapter = {"adapter": json.loads((folder / "adapter_config.json").read_bytes())}
    with safe_open(folder / "adapter_model.safetensors", "pt") as f:
        adapter["base_sha256"] = f.metadata()["base_sha256"]
    adapter |= {"base": base.name, "base_repository": _repository(base)}
    return _fill_card(folder, base, tokens, rows, record, adapter)


def upload_command(folder: Path) -> str:
    """Puts a folder on the Hub, where nobody else sees it until its card is filled in."""
    what = [_repository(folder), str(folder), "."]
    return shlex.join(["hf", "upload", *what, "--repo-type", "model", "--private"])


def _repository(folder: Path) -> str:
    return f"{OWNER}/telugu-" + re.sub("[^A-Za-z0-9.]+", "-", folder.name)


def templates(file: str) -> dict:
    """The templates in a .yaml beside this module, by name."""
    return yaml.safe_load(Path(__file__).with_name(file).read_text(encoding="utf8"))


def fill(template: str, values: dict) -> str:
    engine = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return engine.from_string(template).render(values)


def _fill_card(
    folder: Path, model: Path, tokens: data.Tokens, rows: dict, record: dict, adapter: dict
) -> str:
    parts = templates("release.yaml")
    way = next((way for name, way in parts["ways"].items() if (model / name).is_file()), None)
    if way is None:
        fault = f"{model} holds none of {', '.join(parts['ways'])}"
        raise FileNotFoundError(f"{fault}: save it with files=model_tokenizer.tokenizer_files(…)")
    telling = {  # what changes a result; no paths, which would tell where the owner keeps things
        name: value
        for name, value in record["parameters"].items()
        if name not in rules.VOLATILE and value not in ("", None) and "/" not in str(value)
    }
    values = adapter | dict(name=folder.name, repository=_repository(folder), way=way, rows=rows)
    values |= dict(config=read_config(model), metrics=parts["metrics"], record=record)
    values |= dict(tokens=tokens, new_tokens=min(60, values["config"].context // 2))
    values["parameters"] = yaml.safe_dump(telling, sort_keys=False, allow_unicode=True).rstrip()
    for part in ("origin", "program"):
        values[part] = fill(parts[part], values)
    return fill(parts["card"], values)
