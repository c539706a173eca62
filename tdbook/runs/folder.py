"""A run folder, to be read: the records of its finished runs and its models, each file once."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tdbook.runs import sweeps
from tdbook.runs.notebooks import LORA
from tdlib import files, shapes


@dataclass(frozen=True)
class Point:
    """A model of a sweep's point."""

    out: Path  # the point's folder
    model: str  # its name in there
    varied: dict
    record: dict

    @property
    def sweep(self) -> str:
        return self.out.parent.name

    @property
    def metrics(self) -> dict:
        return self.record["models"][self.model]


class Folder:
    """The folder of a run; the run's own record, if it has one, is not read."""

    def __init__(self, out: Path, run: str = "", sweeps: str = ""):
        self.out, self.run, self.sweeps = out, run, sweeps

    @cached_property
    def records(self) -> dict[str, dict]:
        """Run → record, in the order of the book."""
        paths = sorted((self.out / "results").glob("*.json"))
        paths = [path for path in paths if path.stem != self.run]
        return {path.stem: files.record(path, "parameters", "models") for path in paths}

    @cached_property
    def points(self) -> dict[str, Point]:
        """The models of the sweeps' finished points, by point; by sweep too if names coincide."""
        labelled: list[tuple[str, str, Point]] = []
        for key, path in sweeps.results(self.out, self.sweeps).items():
            _, sweep, name, *several = key.split("/")
            record = files.record(path, "parameters", "models")
            varied = sweeps.listed(self.out, sweep)["points"][name]
            alone = len(record["models"]) == 1 and not several
            for model in record["models"]:
                point = Point(path.parents[1], model, varied, record)
                labelled.append((sweep, name if alone else f"{name} {model}", point))
        times = Counter(label for _, label, _ in labelled)
        return {n if times[n] == 1 else f"{sweep}/{n}": point for sweep, n, point in labelled}

    @cached_property
    def adapters(self) -> dict[str, str]:
        """Adapter → its base."""
        parameters = [record["parameters"] for record in self.of(LORA)]
        return {p["adapter"]: p["base"] for p in parameters if p.get("trains") != "weights"}

    def of(self, notebook: str) -> list[dict]:
        """The records of a notebook's runs."""
        return [record for record in self.records.values() if record["notebook"] == notebook]

    def metrics(self, name: str) -> dict:
        """The metrics of a model, or of a sweep's point. ValueError: nothing has made it."""
        if point := self.points.get(name):
            return point.metrics
        for record in self.records.values():
            if name in record["models"]:
                return record["models"][name]
        raise ValueError(f"no results file of {self.out} names the model {name}: run what makes it")

    def place(self, name: str) -> tuple[Path, str]:
        """The run folder in which a model lies, and its name there."""
        point = self.points.get(name)
        return (point.out, point.model) if point else (self.out, name)

    def shape(self, name: str) -> shapes.LlamaConfig:
        out, model = self.place(name)
        return shapes.read_config(out / "models" / model)
