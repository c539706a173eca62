"""The book as a graph: the runs of a profile and of its sweeps, and what each needs."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from tdbook.runs import hashes, notebooks, parameters, sweeps
from tdbook.runs.notebooks import COMPARISON, INFERENCE, TEACHER, notebook_of
from tdbook.runs.ownership import not_ours, refusal
from tdbook.runs.parameters import ParameterError, nearest, shown
from tdlib import files

CONFIG = ".snakemake.json"  # in a run folder: what was asked of it last


@dataclass(frozen=True)
class BookRun:
    name: str  # its run's; a sweep's point also says its sweep
    run: str
    yaml: Path
    out: Path  # its run folder
    parameters: dict  # all of them, checked
    given: dict  # those that the command line gives, not the YAML
    reads: tuple[str, ...]  # paths in the run folder
    writes: tuple[str, ...]
    needs: tuple[str, ...]  # names of the runs that make what it reads
    sweep: str = ""  # that it is a point of, or the page of

    @property
    def notebook(self) -> str:
        return notebook_of(self.run)

    @property
    def compares(self) -> bool:
        """Whether it is the page that compares a sweep's points."""
        return bool(self.sweep) and self.notebook == COMPARISON

    @property
    def mark(self) -> Path:
        """Where Snakemake finds a file once the run is current."""
        return self.out / ".done" / self.run


@dataclass(frozen=True)
class Wanted:
    """What a command line asks for."""

    profile: str
    out: str
    given: dict[str, str]  # of parameters.GIVEN, for 00
    sweeps: tuple[str, ...]
    only: tuple[str, ...]  # names of runs
    redo: tuple[str, ...]
    before: tuple[str, ...]  # that FROM takes as they are
    price: float | None  # an hour
    cluster: str  # a folder of profiles/; "" for this machine
    command: str
    settings: dict[str, str] = field(default_factory=dict)  # of SET

    @property
    def config(self) -> dict:
        """What `jobs` and the Snakefile need to find the same runs."""
        return asdict(self) | {"out_dir": self.out}


def jobs(config: dict, paths: bool = True) -> dict[str, BookRun]:
    """Every run that a command may make, by name: the book's, and the sweeps' asked for."""
    values = config.get("settings", {})
    runs = book(config["profile"], config["out_dir"], config["given"], paths, values)
    runs += [p for name in config["sweeps"] for p in swept(name, config["profile"], runs, values)]
    found = {one.name: one for one in runs}
    for name in config["redo"]:
        again = found[name].parameters | {"redo": True}
        found[name] = replace(found[name], parameters=again)
    return found


def targets_of(wanted: Wanted, runs: dict[str, BookRun]) -> tuple[list[str], list[str]]:
    """What is to be made, REDO's among it; and the pages of sweeps, which come after all else."""
    pages = [one.name for one in runs.values() if one.compares]
    every = [one.name for one in runs.values() if bool(one.sweep) == bool(wanted.sweeps)]
    names = wanted.only or [name for name in every if name not in (*pages, *wanted.before)]
    return [name for name in runs if name in {*names, *wanted.redo} - {*pages}], pages


def judged(wanted: Wanted, runs: dict[str, BookRun]) -> dict[str, str]:
    """Why each run that a command needs is to be made, "" where it is current. ParameterError says
    what stands in the way, in lines: for `make book` and DRY=1 alike."""
    if gone := [name for name in wanted.before if not hashes.load(runs[name].out, name)]:
        raise ParameterError(f"FROM takes {', '.join(gone)} as made, and it is not: leave FROM")
    before = (files.whole(parameters.ROOT / wanted.out / CONFIG) or {}).get("settings", {})
    for one in runs.values():  # SET, or that it is left out, would replace what is done otherwise
        record = files.whole(one.out / "results" / f"{one.run}.json", "parameters")
        done, now = record["parameters"] if record else {}, hashes.decisive(one.parameters)
        for name in parameters.of_run(before | wanted.settings, one.run):
            if done and name in now and done.get(name) != now[name]:
                fault = f"{one.name} in {wanted.out} is done with {name} = {done.get(name)!r}"
                same = parameters.in_words(before)
                remedy = f"give a run folder of its own (OUT=), or SET={same!r}"
                raise ParameterError(f"{fault}, now it is {now[name]!r}: {remedy}")
    targets, pages = targets_of(wanted, runs)
    reasons, damaged = hashes.judge(runs, [*targets, *pages], wanted.before)
    if lines := dict.fromkeys(line for lines in damaged.values() for line in lines):
        raise ParameterError("\n".join([*lines, "nothing is made from what is damaged"]))
    foreign: dict[Path, dict[str, None]] = {}  # what another made, in the place of what is made
    made = [name for name, why in reasons.items() if why and not why.startswith(hashes.AFTER)]
    for one in (runs[name] for name in made):
        paths = not_ours(one.out, one.run, list(one.writes), notebook=True)
        foreign.setdefault(one.out, {}).update(dict.fromkeys(paths))
    if lines := [refusal(out, list(paths)) for out, paths in foreign.items() if paths]:
        raise ParameterError("\n".join(lines))
    return reasons


def book(
    profile: str,
    out: Path | None = None,
    given: dict | None = None,
    paths: bool = True,
    values: dict | None = None,
) -> list[BookRun]:
    """The runs of params/<profile>, checked. `given` is for 00, `values` are SET's."""
    own = {path: parameters.of_run(values or {}, path.stem) for path in yamls(profile)}
    for path in own:
        own[path] |= given or {} if notebook_of(path.stem) == TEACHER else {}
    place = {"out": str(out)} if out else {}
    checked = {path: check_yaml(path, place | more, paths) for path, more in own.items()}
    makers: dict[str, str] = {}  # path → the run that makes it
    for path in sorted(checked, key=lambda path: notebook_of(path.stem) == COMPARISON):
        for made in notebooks.writes(path.stem, checked[path], list(makers)):
            if made in makers:
                both = f"{path.name} and {makers[made]}.yaml both write {made}"
                raise ParameterError(f"{both}: give one another name")
            makers[made] = path.stem
    runs = []
    for path, more in own.items():
        one = _run(path.name, path.stem, checked[path], more, makers)
        if notebooks.of(one.run).compares:  # its tables tell of every run; 06 ships what 04 made
            later = INFERENCE if one.notebook == COMPARISON else ""
            others = {maker for maker in makers.values() if notebook_of(maker) != later}
            one = replace(one, needs=tuple(sorted(others - {one.run})))
        runs.append(replace(one, yaml=path))
    return runs


def check_yaml(path: Path, more: dict, paths: bool = True) -> dict:
    """A YAML's parameters, checked; errors begin with its name."""
    with _naming(shown(path)):
        given = parameters.read(path) | more
        if given.get("run") != path.stem:
            raise ParameterError(f"run = {given.get('run')!r} must be its name: run: {path.stem}")
        return parameters.check(notebook_of(path.stem), given, paths=paths)


@contextlib.contextmanager
def _naming(who: str) -> Iterator[None]:
    try:
        yield
    except ParameterError as error:
        raise ParameterError(f"{who}: {error}") from None


def yamls(profile: str) -> list[Path]:
    folder = parameters.ROOT / "params" / profile
    if paths := sorted(folder.glob("*.yaml")):
        return paths
    profiles = sorted(p.name for p in (parameters.ROOT / "params").iterdir() if p.is_dir())
    raise ParameterError(f"PROFILE={profile} has no runs in {folder}: {nearest(profile, profiles)}")


def _run(
    who: str, name: str, values: dict, given: dict, makers: dict[str, str], above: str = ""
) -> BookRun:
    """A run whose YAML lies in its own folder. `makers`: path → the run that makes it; `above`: the
    folder of the book for a sweep's point. ParameterError: what it reads is not there."""
    run, out = values["run"], parameters.ROOT / values["out"]
    others = [path for path, maker in makers.items() if maker != name]
    reads, writes = notebooks.reads(run, values, others), notebooks.writes(run, values, others)
    if both := {*reads} & {*writes}:
        raise ParameterError(f"{who}: {min(both)} is read and written: give another name")
    for path in reads:
        if path not in makers and not (parameters.ROOT / (above or out) / path).exists():
            what = nearest(path, makers, "add the run that does")
            raise ParameterError(f"{who} reads {path}, which no run of the profile makes: {what}")
    needs = tuple(sorted({makers[path] for path in reads if path in makers}))
    yaml = out / f"{run}.yaml"
    return BookRun(name, run, yaml, out, values, given, tuple(reads), tuple(writes), needs)


def swept(
    name: str, profile: str, runs: list[BookRun], values: dict | None = None
) -> list[BookRun]:
    """The runs of a sweep's points, and last the page that compares them, where each point is one
    run. It needs no point: those that are done are compared. `runs` are the book's."""
    sweep, out = sweeps.read(profile, name), runs[0].out
    makers = {path: one.name for one in runs for path in one.writes}
    points = []
    for point in sweep.points:
        inside: dict[str, str] = {}  # what the point's earlier runs make → their names
        for run in sweep.runs(point):
            given, who = parameters.of_run(values or {}, run), f"sweep {name}, point {point}"
            if both := given.keys() & {key.rpartition(".")[2] for key in sweep.points[point]}:
                raise ParameterError(f"SET: sweep {name} varies {min(both)}: leave it out of SET")
            with _naming(who):
                own = sweep.values(point, run, out) | given
                own = parameters.check(notebook_of(run), own, paths=False)
            one = _run(who, sweep.name_of(point, run), own, given, makers | inside, out)
            outside = tuple(path for path in one.reads if path not in inside)
            points.append(replace(one, reads=outside, sweep=name))
            inside |= dict.fromkeys(one.writes, one.name)
    if sweep.several:
        return points
    page = next((one for one in runs if one.notebook == COMPARISON), None)
    if page is None:
        raise ParameterError(f"params/{profile} has no {COMPARISON} to compare the points with")
    return [*points, _page_of(name, page, makers)]


def _page_of(sweep: str, page: BookRun, makers: dict) -> BookRun:
    """The profile's own 04 on the sweep's folder: its models are those 04 cannot do without."""
    run, place = sweeps.page(sweep), sweeps.folder(page.out, sweep)
    values = parameters.read(page.yaml) | {"run": run, "out": shown(place), "sweeps": sweep}
    values = parameters.check(COMPARISON, values | page.given, paths=False)
    reads, yaml = tuple(borrowed(run, values)), place / f"{run}.yaml"
    needs = tuple(sorted({makers[path] for path in reads if path in makers}))
    return BookRun(f"{sweep}/{run}", run, yaml, place, values, page.given, reads, (), needs, sweep)


def borrowed(run: str, values: dict) -> list[str]:
    """What a point, or a sweep's page, reads of the run folder above."""
    if notebook_of(run) != COMPARISON:
        return notebooks.reads(run, values, [])
    names = ("teacher", "base", "scratch", "picked_by")
    return ["tokens", *dict.fromkeys(f"models/{values[name]}" for name in names)]
