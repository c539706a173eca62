"""Sweeps: one notebook over a grid of parameters, every point a run folder of its own.

sweep.yaml shows the keys of params/<profile>/sweeps/<name>.yaml.
Point `rank8-lora_scale0.5-seed1` of sweep `adapter` lives in outputs/<profile>/sweeps/adapter/.
What it reads of its parent, the run folder above, are links. Its name says all that varies, so a
new value adds points and moves none. compare.html shows them; 04 and 07 read what their YAMLs name.

`Folder` reads what the runs of a folder, and the points of its sweeps, have made.
"""

import contextlib
import itertools
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from tdbook.runs import notebooks, parameters
from tdbook.runs.notebooks import HARD_SET, LORA, SWEPT, notebook_of
from tdbook.runs.parameters import ParameterError, nearest
from tdlib import files, shapes

PARENT, POINTS = ".parent", "points.json"  # in a point's folder, and in a sweep's
KEYS = yaml.safe_load(Path(__file__).with_name("sweep.yaml").read_text("utf8"))


@dataclass(frozen=True)
class Sweep:
    name: str
    profile: str
    question: str
    likes: tuple[str, ...]  # runs of the profile
    several: bool  # each point has all of them, under their names; else one like the first
    fixed: dict
    points: dict[str, dict]  # name → what varies

    def runs(self, point: str) -> list[str]:
        """The names of a point's runs, in the order in which one may read another's."""
        return [*self.likes] if self.several else [f"{notebook_of(self.likes[0])}-{point}"]

    def name_of(self, point: str, run: str) -> str:
        """A point's run as commands and states have it."""
        return f"{self.name}/{point}/{run}" if self.several else f"{self.name}/{run}"

    def values(self, point: str, run: str, out: Path) -> dict:
        """The parameters of a point's run, not yet checked; `out` is the parent's folder."""
        like = run if self.several else self.likes[0]
        given = parameters.read(_params(self.profile) / f"{like}.yaml")
        given |= parameters.of_run(self.fixed | self.points[point], like)
        place = parameters.shown(folder(out, self.name) / point)
        return given | {"run": run, "profile": self.profile, "out": place}


def folder(out: Path, name: str) -> Path:
    return out / "sweeps" / name


def names(profile: str) -> list[str]:
    return sorted(path.stem for path in _params(profile).glob("sweeps/*.yaml"))


def _params(profile: str) -> Path:
    return parameters.ROOT / "params" / profile


def read(profile: str, name: str) -> Sweep:
    """A sweep's YAML. ParameterError says which, what is wrong with it and what to do."""
    path = _params(profile) / f"sweeps/{name}.yaml"
    if not path.is_file():
        remedy = nearest(name, names(profile), "" if names(profile) else f"write {path}")
        raise ParameterError(f"NAME={name} is no sweep of params/{profile}: {remedy}")
    try:
        return _checked(profile, name, parameters.read(path))
    except ParameterError as error:
        where = path.relative_to(parameters.ROOT)
        raise ParameterError(f"{where}: {str(error).removeprefix(f'{path} ')}") from None


def _checked(profile: str, name: str, given: dict) -> Sweep:
    _all_known("key", given, KEYS)
    for key, value in given.items():
        example = KEYS[key]
        kinds = {type(item) for item in value} if isinstance(value, list) else set()
        if type(value) is not type(example) or not kinds <= {type(item) for item in example}:
            raise ParameterError(f"{key}: {value!r} must be of the kind of {key}: {example}")
    several, fixed = "runs" in given, given.get("fixed", {})
    likes = given.get("runs", [given["like"]] if "like" in given else [])
    if not likes or (several and "like" in given):
        raise ParameterError("give like: a run of the profile, or runs: several; one of the two")
    _all_known("run", likes, [path.stem for path in _params(profile).glob("*.yaml")])
    swept = [*SWEPT, *[HARD_SET] * several]
    if others := [run for run in likes if notebook_of(run) not in swept]:
        raise ParameterError(f"{others[0]} is the book's own: give runs of {', '.join(swept)}")
    likes = sorted(dict.fromkeys(likes), key=notebook_of)  # in the order of the book
    points = _points(given, fixed)
    names = {name for run in likes for name in parameters.names_of(run)}
    for each in (fixed, *points.values()):
        _all_known("parameter", each, names)
        if own := [key for key in each if key.rpartition(".")[2] in parameters.OWN]:
            raise ParameterError(f"{own[0]} is every point's own: leave it out")
    return Sweep(name, profile, given.get("question", ""), tuple(likes), several, fixed, points)


def _all_known(what: str, given, known) -> None:
    for name in given:
        if name not in known:
            raise ParameterError(f"{what} {name} is not known: {nearest(name, sorted(known))}")


def _points(given: dict, fixed: dict) -> dict[str, dict]:
    """Grid and single points, each with each seed, by name: rank8-lora_scale0.5-seed1."""
    grid, seeds = given.get("grid", {}), given.get("seeds", [])
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ParameterError(f"grid: {key} = {values!r} must be a list, for example [{values}]")
    combinations = itertools.product(*grid.values()) if grid else ()
    points = [dict(zip(grid, values, strict=True)) for values in combinations]
    points += given.get("points", [])
    varied = [*dict.fromkeys(key for point in points for key in point), *["seed"] * bool(seeds)]
    if twice := [key for key in varied if key in fixed or varied.count(key) > 1]:
        raise ParameterError(f"{twice[0]} is given twice (fixed, grid or points, seeds): keep one")
    if seeds:
        points = [point | {"seed": seed} for point in points or [{}] for seed in seeds]
    if not any(points):
        raise ParameterError("it has no points: give a grid, points or seeds, as rank: [8, 16]")
    keys, named = sorted(varied, key="seed".__eq__), {}  # the seed ends a point's name
    for point in points:
        name = "-".join(f"{key}{_short(point[key])}" for key in keys if key in point)
        name = re.sub(r"[^\w.+-]+", "_", name) or "as-it-is"
        if name in named:
            raise ParameterError(f"point {name} is there twice: keep one")
        named[name] = point
    return named


def _short(value: object) -> str:
    """2.0 and 2 are one value, and so one name; so is 1e-3, which YAML takes for text."""
    with contextlib.suppress(TypeError, ValueError):
        return str(value).lower() if isinstance(value, bool) else f"{float(value):g}"
    return str(value)


def write(sweep: Sweep, out: Path) -> None:
    """Write the points' YAMLs and the list of points."""
    place = folder(out, sweep.name)
    # who a folder's parent is comes first: then all else in it under these names is the book's
    folders = (place, *(place / point for point in sweep.points))
    content = {each / PARENT: os.path.relpath(out, each) for each in folders}
    for point in sweep.points:
        for run in sweep.runs(point):
            values = sweep.values(point, run, out)
            text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
            content[place / point / f"{run}.yaml"] = text
    one = "" if sweep.several else notebook_of(sweep.likes[0])
    listed = {"question": sweep.question, "notebook": one, "points": sweep.points}
    listed["runs"] = {point: sweep.runs(point) for point in sweep.points}
    content[place / POINTS] = json.dumps(listed, ensure_ascii=False, indent=1)
    there = (str(path) for path in content if os.path.lexists(path) and not parent(path.parent))
    if foreign := ", ".join(there):
        raise FileExistsError(f"{foreign} is there and was not made by the book: {files.AWAY}")
    for path, text in content.items():
        files.write_whole(path, text, lasting=False)  # every command writes them


def listed(out: Path, name: str) -> dict:
    """What a sweep's folder says of it."""
    path = folder(out, name) / POINTS
    if content := files.whole(path, "points", "notebook", "runs"):
        return content
    fault = "broken" if path.exists() else "not there"
    raise ValueError(f"{path} is {fault}: `make sweep NAME={name}` writes it again")


def parent(out: Path) -> Path | None:
    """The run folder above a point, or above a sweep's folder; None for one of its own."""
    path = out / PARENT
    return Path(os.path.normpath(out / path.read_text("utf8"))) if path.is_file() else None


def link(out: Path, reads: list[str]) -> None:
    """Let a point find what it reads of its parent, and the records of what made that."""
    above = parent(out)
    made = {path.stem: files.whole(path, "outputs") for path in (above / "hashes").glob("*.json")}
    makers = [run for run, kept in made.items() if kept and kept["outputs"].keys() & {*reads}]
    records = [f"{kind}/{run}.json" for run in makers for kind in ("hashes", "results")]
    for path in [*reads, *records, *notebooks.losses(reads), "cache"]:
        here = out / path
        if (above / path).exists() and not os.path.lexists(here):
            here.parent.mkdir(parents=True, exist_ok=True)
            here.symlink_to(os.path.relpath(above / path, here.parent))


def results(out: Path, sweeps: str) -> dict[str, Path]:
    """Point → record of the finished points of some sweeps; of several runs, point/run → record."""
    records = {}
    for name in sweeps.split():
        place, yamls = folder(out, name), parameters.ROOT / "params"
        if not (place / POINTS).is_file() and any(yamls.glob(f"*/sweeps/{name}.yaml")):
            continue  # not run yet: it has no point that is done
        sweep = listed(out, name)
        for point, run in ((point, run) for point, runs in sweep["runs"].items() for run in runs):
            path = place / point / "results" / f"{run}.json"
            if path.exists() and (place / point / "hashes" / path.name).exists():
                key = f"sweeps/{name}/{point}"
                records[key if sweep["notebook"] else f"{key}/{run}"] = path
    return records


@dataclass(frozen=True)
class Point:
    """A model of a sweep's point."""

    sweep: str
    out: Path  # the point's folder
    model: str  # its name in there
    varied: dict
    record: dict
    metrics: dict  # the model's, of the record


class Folder:
    """The records and models of a run folder's finished runs other than `run`, each read once."""

    def __init__(self, out: Path, run: str = "", sweeps: str = ""):
        self.out, self.run, self.sweeps = out, run, sweeps

    @cached_property
    def records(self) -> dict[str, dict]:
        """Run → record, in the order of the book."""
        paths = sorted({*self.out.glob("results/*.json")} - {self.out / f"results/{self.run}.json"})
        return {path.stem: files.record(path, "parameters", "models") for path in paths}

    @cached_property
    def points(self) -> dict[str, Point]:
        """The models of the sweeps' finished points, by point; by sweep too if names coincide."""
        labelled: list[tuple[str, str, Point]] = []
        for key, path in results(self.out, self.sweeps).items():
            _, sweep, name, *several = key.split("/")
            record = files.record(path, "parameters", "models")
            varied = listed(self.out, sweep)["points"][name]
            alone = len(record["models"]) == 1 and not several
            for model, metrics in record["models"].items():
                point = Point(sweep, path.parents[1], model, varied, record, metrics)
                labelled.append((sweep, name if alone else f"{name} {model}", point))
        times = Counter(label for _, label, _ in labelled)
        return {n if times[n] == 1 else f"{sweep}/{n}": point for sweep, n, point in labelled}

    @cached_property
    def adapters(self) -> dict[str, str]:
        """Adapter → its base."""
        parameters = [record["parameters"] for record in self.of(LORA)]
        return {p["adapter"]: p["base"] for p in parameters if p["trains"] == "adapter"}

    def of(self, notebook: str) -> list[dict]:
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
