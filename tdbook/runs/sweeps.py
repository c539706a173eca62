"""Sweeps: one notebook over a grid of parameters, every point a run folder of its own.

    # params/<profile>/sweeps/<name>.yaml
    question: Which rank and scale does the adapter need?
    like: 03_lora-hard         # a run of the profile: its parameters hold where none is given here;
    notebook: 03_lora          # or a notebook, for its defaults
    fixed: {epochs: 1.0}       # the same at every point
    grid: {rank: [8, 16], lora_scale: [0.5, 1.0]}  # every combination,
    points: [{rank: 64}]       # and, or instead, single points
    seeds: [1, 2]              # each point with each of them

Or `runs: [01_distill-50m, 02_hard_set, 03_lora-hard]` instead of `like`: several runs of the
profile, each point has them all, under their own names, and each reads what those before it made.
`fixed`, grid and points then go to every run that has such a parameter, `01.epochs` to 01 alone.

Point `rank8-lora_scale0.5-seed1` of sweep `adapter` lives in outputs/<profile>/sweeps/adapter/.
What it reads of its parent, the run folder above, are links; it writes into its own folder alone.
Its name says all that varies, so that a new value adds points and moves none. Imports no torch.
"""

import contextlib
import itertools
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from tdbook.runs import parameters
from tdbook.runs.parameters import ParameterError, nearest, notebook_of
from tdlib import files

NOTEBOOKS = ("01_distill", "03_lora", "05_progressive")
KEYS = ("question", "like", "notebook", "runs", "fixed", "grid", "points", "seeds")
OWN = ("run", "profile", "out", "redo")  # a point's own, never given
PARENT, POINTS = ".parent", "points.json"  # in a point's folder, and in a sweep's


@dataclass(frozen=True)
class Sweep:
    name: str
    profile: str
    notebook: str  # "" where each point has several runs
    question: str
    likes: tuple[str, ...]  # runs of the profile; none: the notebook's defaults
    fixed: dict
    points: dict[str, dict]  # name → what varies

    def runs(self, point: str) -> list[str]:
        """The names of a point's runs, in the order in which one may read another's."""
        return [f"{self.notebook}-{point}"] if self.notebook else list(self.likes)

    def name_of(self, point: str, run: str) -> str:
        """A point's run as commands and states have it."""
        return f"{self.name}/{run}" if self.notebook else f"{self.name}/{point}/{run}"

    def values(self, point: str, run: str, out: Path) -> dict:
        """The parameters of a point's run, not yet checked; `out` is the parent's folder."""
        like = run if not self.notebook else next(iter(self.likes), "")
        given = parameters.read(_params(self.profile) / f"{like}.yaml") if like else {}
        place = parameters.shown(folder(out, self.name) / point)
        own = {"run": run, "profile": self.profile, "out": place}
        values = self.fixed | self.points[point]
        return given | (values if self.notebook else _of(notebook_of(run), values)) | own


def _of(notebook: str, values: dict) -> dict:
    """Of values for several runs, those that one of this notebook takes: `epochs` where it has such
    a parameter, `01.epochs` for 01 alone."""
    declared = parameters.declared(notebook)
    names = {name: name.removeprefix(f"{notebook[:2]}.") for name in values}
    return {names[name]: value for name, value in values.items() if names[name] in declared}


def folder(out: Path, name: str) -> Path:
    return out / "sweeps" / name


def page(name: str) -> str:
    """The run of 04 that compares a sweep's points, in the sweep's own folder."""
    return f"04_merge_eval-{name}"


def names(profile: str) -> list[str]:
    return sorted(path.stem for path in _folder(profile).glob("*.yaml"))


def _folder(profile: str) -> Path:
    return _params(profile) / "sweeps"


def read(profile: str, name: str) -> Sweep:
    """A sweep's YAML. ParameterError says which, what is wrong with it and what to do."""
    path = _folder(profile) / f"{name}.yaml"
    if not path.is_file():
        remedy = nearest(name, names(profile), "" if names(profile) else f"write {path}")
        raise ParameterError(f"NAME={name} is no sweep of params/{profile}: {remedy}")
    try:
        return _read(profile, name, parameters.read(path))
    except ParameterError as error:
        where = path.relative_to(parameters.ROOT)
        raise ParameterError(f"{where}: {str(error).removeprefix(f'{path} ')}") from None


def _params(profile: str) -> Path:
    return parameters.ROOT / "params" / profile


def _read(profile: str, name: str, given: dict) -> Sweep:
    if not re.fullmatch(r"[^\W_][\w.+-]*", name):
        raise ParameterError(f"its name must be of letters, digits, - _ . +: {name!r}")
    _known("key", given, KEYS)
    like, notebook, several = (given.get(key, "") for key in ("like", "notebook", "runs"))
    runs = sorted(path.stem for path in _params(profile).glob("*.yaml"))
    if like:
        _known("like: run", [like], runs)
    notebook = notebook or (like and notebook_of(like)) or ""
    if several:
        _several(several, notebook, runs)
    elif notebook not in NOTEBOOKS or (like and notebook_of(like) != notebook):
        raise ParameterError(
            f"notebook: {notebook} must be one of {', '.join(NOTEBOOKS)}, that of `like` if given"
        )
    fixed = _mapping("fixed", given.get("fixed", {}))
    points = _points(_mapping("grid", given.get("grid", {})), given.get("points", []))
    points = _seeded(points, given.get("seeds", []))
    if not any(points):
        raise ParameterError("it has no points: give a grid, points or seeds, as rank: [8, 16]")
    points = _named(points, fixed, _declared(notebook, several))
    likes = tuple(several) if several else (like,) if like else ()
    return Sweep(name, profile, notebook, str(given.get("question", "")), likes, fixed, points)


def _named(points: list[dict], fixed: dict, declared: list[str]) -> dict[str, dict]:
    """Points by their names. ParameterError for a parameter that no point can have."""
    for each in (fixed, *points):
        _known("parameter", each, declared)
        if own := [key for key in each if key.rpartition(".")[2] in OWN]:
            raise ParameterError(f"{own[0]} is every point's own: leave it out")
    varied = sorted(dict.fromkeys(key for point in points for key in point), key="seed".__eq__)
    if both := [key for key in varied if key in fixed]:
        raise ParameterError(f"{both[0]} is fixed and varied: give it once")
    names = [point_name(point, varied) for point in points]
    if twice := [one for one in names if names.count(one) > 1]:
        raise ParameterError(f"point {twice[0]} is there twice: keep one")
    return dict(zip(names, points, strict=True))


def _several(several: object, also: str, runs: list[str]) -> None:
    """ParameterError where `runs` is no list of runs that a point can have."""
    if not isinstance(several, list) or also:
        raise ParameterError("runs: it must be a list of runs, without like and notebook")
    _known("runs: run", several, runs)
    if bad := [run for run in several if run[:2] in ("00", "04", "06", "07")]:
        raise ParameterError(f"runs: {bad[0]} is the book's own: leave it out")
    if several != sorted(set(several), key=lambda run: (notebook_of(run), several.index(run))):
        raise ParameterError("runs: each once, in the order of their notebooks")


def _declared(notebook: str, several: list[str]) -> list[str]:
    """The parameters that a sweep may give."""
    if not several:
        return list(parameters.declared(notebook))
    own = {notebook[:2]: parameters.declared(notebook) for notebook in map(notebook_of, several)}
    names = (f"{start}{name}" for n in own for start in ("", f"{n}.") for name in own[n])
    return [*dict.fromkeys(names)]


def _known(what: str, given, known) -> None:
    for one in given:
        if one not in known:
            raise ParameterError(f"{what} {one} is not known: {nearest(one, known)}")


def _mapping(key: str, given: object) -> dict:
    if not isinstance(given, dict):
        raise ParameterError(f"{key}: {given!r} must be lines of `name: value`")
    return given


def _points(grid: dict, points: object) -> list[dict]:
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ParameterError(f"grid: {key} = {values!r} must be a list, for example [{values}]")
    if not isinstance(points, list) or not all(isinstance(one, dict) for one in points):
        raise ParameterError(f"points: {points!r} must be a list of {{name: value}}")
    every = itertools.product(*grid.values()) if grid else ()
    return [dict(zip(grid, values, strict=True)) for values in every] + points


def _seeded(points: list[dict], seeds: object) -> list[dict]:
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
        raise ParameterError(f"seeds: {seeds!r} must be a list of whole numbers, as [1, 2, 3]")
    if seeds and any("seed" in point for point in points):
        raise ParameterError("seed is varied and seeds are given: one of the two")
    return [p | {"seed": seed} for p in points or [{}] for seed in seeds] if seeds else points


def point_name(point: dict, varied: list[str]) -> str:
    """rank8-lora_scale0.5-seed1; a value that is left to `like` or the notebook is left out."""
    parts = (f"{key}{_short(point[key])}" for key in varied if key in point)
    return re.sub(r"[^\w.+-]+", "_", "-".join(parts)) or "as-it-is"


def _short(value: object) -> str:
    """2.0 and 2 are one value, and so one name; so is 1e-3, which YAML takes for text."""
    if isinstance(value, bool):
        return str(value).lower()
    with contextlib.suppress(TypeError, ValueError):
        return f"{float(value):g}"
    return str(value)


def write(sweep: Sweep, out: Path, compare: dict | None) -> None:
    """The YAMLs of every point in its folder, and in the sweep's a list of all and the YAML of the
    page that compares them, which is as `compare` says; None where there is no such page."""
    place = folder(out, sweep.name)
    # who a folder's parent is comes first: then all else in it under these names is the book's
    folders = (place, *(place / point for point in sweep.points))
    content = {one / PARENT: os.path.relpath(out, one) for one in folders}
    for point in sweep.points:
        for run in sweep.runs(point):
            content[place / point / f"{run}.yaml"] = _yaml(sweep.values(point, run, out))
    if compare:
        content[place / f"{page(sweep.name)}.yaml"] = _yaml(compare)
    listed = {"question": sweep.question, "notebook": sweep.notebook, "points": sweep.points}
    listed["runs"] = {point: sweep.runs(point) for point in sweep.points}
    content[place / POINTS] = json.dumps(listed, ensure_ascii=False, indent=1)
    new = [path for path in content if not path.exists() or path.read_text("utf8") != content[path]]
    old = (path for path in new if os.path.lexists(path))
    if foreign := ", ".join(str(path) for path in old if parent(path.parent) is None):
        raise FileExistsError(f"{foreign} is there and was not made by the book: {files.AWAY}")
    for path in new:
        files.write_whole(path, content[path])


def _yaml(values: dict) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def listed(out: Path, name: str) -> dict:
    """What a sweep's folder says of it. FileNotFoundError where there is none."""
    path = folder(parent(out) or out, name) / POINTS
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: `make sweep NAME={name}` makes it")
    try:
        return files.record(path, "points", "notebook")
    except ValueError:
        raise ValueError(f"{path} is broken: `make sweep NAME={name}` writes it again") from None


def parent(out: Path) -> Path | None:
    """The run folder that a point, or a sweep's page, reads from; None for a folder of its own."""
    path = out / PARENT
    return Path(os.path.normpath(out / path.read_text("utf8"))) if path.is_file() else None


def link(out: Path, reads: list[str]) -> None:
    """Let a folder find what it reads of its parent, and the records of what made that."""
    above = parent(out)
    made = {path.stem: files.whole(path, "outputs") for path in (above / "hashes").glob("*.json")}
    makers = [run for run, kept in made.items() if kept and kept["outputs"].keys() & {*reads}]
    records = [f"{kind}/{run}.json" for run in makers for kind in ("hashes", "results")]
    models = [Path(path).name for path in reads if path.startswith("models/")]
    losses = [f"scores/val/{model}.{kind}" for model in models for kind in ("npy", "npz")]
    looked_at = "scores/features.npz"  # a point that finds it of other tokens writes its own
    for path in [*reads, *records, *losses, "cache", looked_at]:
        here = out / path
        if (above / path).exists() and not os.path.lexists(here):
            here.parent.mkdir(parents=True, exist_ok=True)
            here.symlink_to(os.path.relpath(above / path, here.parent))


def results(out: Path, wanted: str) -> dict[str, Path]:
    """The records of all finished points of some sweeps, names with spaces between → where; where a
    point has several runs, of each."""
    records = {}
    for name in wanted.split():
        place, yamls = folder(parent(out) or out, name), parameters.ROOT / "params"
        if not (place / POINTS).is_file() and any(yamls.glob(f"*/sweeps/{name}.yaml")):
            continue  # not run yet: it has no point that is done
        known = listed(out, name)
        for point, run in ((p, run) for p in known["points"] for run in runs_of(known, p)):
            path = place / point / "results" / f"{run}.json"
            if path.exists() and (place / point / "hashes" / path.name).exists():
                key = f"sweeps/{name}/{point}"
                records[key if known["notebook"] else f"{key}/{run}"] = path
    return records


def runs_of(known: dict, point: str) -> list[str]:
    """The runs of a point, as `listed` has them; older lists say no more than the notebook."""
    return known.get("runs", {}).get(point) or [f"{known['notebook']}-{point}"]
