"""The notebooks of the book, of notebooks.yaml: the one place that spells their numbers."""

import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import yaml

TEACHER, HARD_SET, LORA = "00_teacher", "02_hard_set", "03_lora"
COMPARISON, PROGRESSIVE = "04_merge_eval", "05_progressive"
INFERENCE, EVIDENCE = "06_inference", "07_evidence"
_TABLE = yaml.safe_load(Path(__file__).with_name("notebooks.yaml").read_text("utf8"))
BOOK = {name: SimpleNamespace(**_TABLE["default"] | row) for name, row in _TABLE["book"].items()}
TRAINING = [name for name, notebook in BOOK.items() if notebook.trains]
SWEPT = [name for name in TRAINING if name != TEACHER]  # may be a sweep's own


def notebook_of(run: str) -> str:
    """01_distill-50m → 01_distill"""
    return run.split("-")[0]


def of(run: str) -> SimpleNamespace:
    return BOOK[notebook_of(run)]


def reads(run: str, values: dict, others: list[str]) -> list[str]:
    """The paths in the run folder that a run reads; `others`: what the other runs there write."""
    if notebook_of(run) == LORA:  # it replays 02's choice, or makes its own from 02's scores
        if values.get("share") is not None:
            values = values | {"hard_set": ""}
        elif values.get("windows") != "easiest":
            values = values | {"scores": ""}
    models = [path for path in others if path.startswith(("models/", "adapters/"))]
    return _paths(of(run).reads, values) + (models if of(run).compares else [])


def writes(run: str, values: dict, others: list[str]) -> list[str]:
    if values.get("trains") in ("weights", "scales"):
        return [f"models/{values['adapter']}"]
    adapters = [path.removeprefix("adapters/") for path in others if path.startswith("adapters/")]
    merged = [f"models/{name}-merged" for name in adapters]
    return _paths(of(run).writes, values) + (merged if notebook_of(run) == COMPARISON else [])


def losses(writes: Iterable[str]) -> list[str]:
    """Where evaluations keep the losses of the models among these."""
    names = [Path(path).name for path in writes if path.startswith(("models/", "adapters/"))]
    return [f"scores/val/{name}.{kind}" for name in names for kind in ("npy", "npz")]


def _paths(patterns: str, values: dict) -> list[str]:
    paths = []
    for pattern in patterns.split():
        names = [values.get(parameter, "").split() for parameter in re.findall("{(.*?)}", pattern)]
        plain = re.sub("{.*?}", "{}", pattern)
        paths += [plain.format(*each) for each in itertools.product(*names)]
    return paths
