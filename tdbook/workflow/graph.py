"""graph."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tdbook.runs import notebooks, parameters, sweeps
from tdbook.runs.notebooks import COMPARISON, INFERENCE, TEACHER, notebook_of
from tdbook.runs.parameters import ParameterError, nearest, shown

PROGRESS_S = 15
CONFIG = ".snakemake.json"  # in a run folder: what was asked of it last
GIVEN = ("text", "tokens", "tokenizer", "teacher")  # parameters of 00 that `make book` takes


@dataclass(frozen=True)
class BookRun:
    name: str  # its run's; a sweep's point also says its sweep
    run: str
    yaml: Path
    out: Path  # its run folder
    parameters: dict  # all of them, checked
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
    given: dict[str, str]  # of GIVEN, for 00
    sweeps: tuple[str, ...]
    only: tuple[str, ...]  # names of runs
    redo: tuple[str, ...]
    before: tuple[str, ...]  # that FROM takes as they are
    price: float | None  # an hour
    cluster: str  # a folder of profiles/; "" for this machine
    command: str

    @property
    def config(self) -> dict:
        """What `jobs` and the Snakefile need to find the same runs."""
        return asdict(self) | {"out_dir": self.out}


def book(
    profile: str, out: Path | None = None, overrides: dict | None = None, paths: bool = True
) -> list[BookRun]:
    """The runs of params/<profile>, checked. `overrides` (of GIVEN) are for 00. ParameterError
    names the YAML."""
    values = {}
    for path in _yamls(profile):
        more = {"out": str(out)} if out else {}
        more |= overrides or {} if notebook_of(path.stem) == TEACHER else {}
        values[path] = check_yaml(path, more, paths)
    makers: dict[str, str] = {}  # path → the run that makes it
    for path in sorted(values, key=lambda path: notebook_of(path.stem) == COMPARISON):
        for made in notebooks.writes(path.stem, values[path], list(makers)):
            if made in makers:
                both = f"{path.name} and {makers[made]}.yaml both write {made}"
                raise ParameterError(f"{both}: give one another name")
            makers[made] = path.stem
    return [_book_run(path, given, makers) for path, given in values.items()]


def check_yaml(path: Path, more: dict, paths: bool = True) -> dict:
    """A YAML's parameters, checked; errors begin with its name."""
    try:
        given = parameters.read(path) | more
        if given.get("run") != path.stem:
            raise ParameterError(f"run = {given.get('run')!r} must be its name: run: {path.stem}")
        return parameters.check(notebook_of(path.stem), given, paths=paths)
    except ParameterError as error:
        raise ParameterError(f"{shown(path)}: {error}") from None


def _yamls(profile: str) -> list[Path]:
    folder = parameters.ROOT / "params" / profile
    if paths := sorted(folder.glob("*.yaml")):
        return paths
    profiles = sorted(p.name for p in (parameters.ROOT / "params").iterdir() if p.is_dir())
    raise ParameterError(f"PROFILE={profile} has no runs in {folder}: {nearest(profile, profiles)}")


def _book_run(yaml: Path, values: dict, makers: dict[str, str]) -> BookRun:
    run = yaml.stem
    reads = notebooks.reads(run, values, [path for path, maker in makers.items() if maker != run])
    _must_be_made(yaml.name, reads, makers, parameters.ROOT / values["out"])
    writes = [path for path, maker in makers.items() if maker == run]
    one = _run(run, values, reads, writes, makers)
    if one.notebook == COMPARISON:  # which what is shipped comes after
        every = {maker for maker in makers.values() if notebook_of(maker) != INFERENCE}
        one = replace(one, needs=tuple(sorted(every - {run})))
    elif notebooks.of(run).compares:  # its tables tell of every run
        one = replace(one, needs=tuple(sorted({*makers.values()} - {run})))
    return replace(one, yaml=yaml)


def _run(
    name: str, values: dict, reads: list[str], writes: list[str], makers: dict, sweep: str = ""
) -> BookRun:
    run, out = values["run"], parameters.ROOT / values["out"]
    needs = sorted({makers[path] for path in reads if path in makers})
    paths = tuple(reads), tuple(writes)
    return BookRun(name, run, out / f"{run}.yaml", out, values, *paths, tuple(needs), sweep)


def _must_be_made(who: str, reads: list[str], makers: dict[str, str], out: Path) -> None:
    """ParameterError for what is read and neither made by a run of the profile nor there."""
    for path in reads:
        if path not in makers and not (out / path).exists():
            what = nearest(path, makers, "add the run that does")
            raise ParameterError(f"{who} reads {path}, which no run of the profile makes: {what}")


def swept(name: str, profile: str, runs_: list[BookRun]) -> list[BookRun]:
    """The runs of a sweep's points, and last the page that compares them, where each point is one
    run; `runs_` are those of the book. The page needs no point, so that those that are done can be
    compared."""
    sweep, out = sweeps.read(profile, name), runs_[0].out
    makers = {path: one.run for one in runs_ for path in one.writes}
    points = []
    for point in sweep.points:
        inside: dict[str, str] = {}  # what the point's earlier runs make → their names
        for run in sweep.runs(point):
            points.append(_swept_run(sweep, point, run, out, makers, inside))
            inside |= dict.fromkeys(points[-1].writes, points[-1].name)
    if not sweep.notebook:
        return points
    page = next((one for one in runs_ if one.notebook == COMPARISON), None)
    if page is None:
        raise ParameterError(f"params/{profile} has no {COMPARISON} to compare the points with")
    return [*points, _page_of(sweep, page, makers)]


def _swept_run(
    sweep: sweeps.Sweep, point: str, run: str, out: Path, makers: dict, inside: dict
) -> BookRun:
    try:
        values = parameters.check(notebook_of(run), sweep.values(point, run, out), paths=False)
    except ParameterError as error:
        raise ParameterError(f"sweep {sweep.name}, point {point}: {error}") from None
    reads, writes = notebooks.reads(run, values, []), notebooks.writes(run, values, [])
    _must_be_made(f"sweep {sweep.name}: each point", reads, makers | inside, out)
    if both := {*reads} & {*writes}:
        fault = f"{min(both)} is read and written: give another name"
        raise ParameterError(f"sweep {sweep.name}: {fault}")
    one = _run(sweep.name_of(point, run), values, reads, writes, makers | inside, sweep.name)
    return replace(one, reads=tuple(path for path in reads if path not in inside))


def _page_of(sweep: sweeps.Sweep, page: BookRun, makers: dict) -> BookRun:
    """The profile's own 04 on the sweep's folder: its models are those 04 cannot do without."""
    run, place = sweeps.page(sweep.name), sweeps.folder(page.out, sweep.name)
    own = {"run": run, "out": shown(place), "sweeps": sweep.name}
    values = parameters.check(COMPARISON, parameters.read(page.yaml) | own, paths=False)
    return _run(f"{sweep.name}/{run}", values, _borrowed(run, values), [], makers, sweep.name)


def _borrowed(run: str, values: dict) -> list[str]:
    """What a point, or a sweep's page, reads of the run folder above."""
    if notebook_of(run) != COMPARISON:
        return notebooks.reads(run, values, [])
    names = ("teacher", "base", "scratch", "picked_by")
    return ["tokens", *dict.fromkeys(f"models/{values[name]}" for name in names)]


def jobs(config: dict, paths: bool = True) -> dict[str, BookRun]:
    """Every run that a command may make, by name: the book's, and those of the sweeps asked for."""
    found = book(config["profile"], config["out_dir"], config["given"], paths)
    found += [one for name in config["sweeps"] for one in swept(name, config["profile"], found)]
    return _repeated({one.name: one for one in found}, config["redo"])


def _repeated(found: dict[str, BookRun], redo: tuple[str, ...]) -> dict[str, BookRun]:
    """The same runs, those named to be made again."""
    again = {name: found[name].parameters | {"redo": True} for name in redo}
    return found | {name: replace(found[name], parameters=p) for name, p in again.items()}


def targets_of(wanted: Wanted, found: dict[str, BookRun]) -> tuple[list[str], list[str]]:
    """What is to be made, REDO's among it, and the pages of sweeps, which come when all else has
    ended: the points that are done are compared, whatever became of the others."""
    pages = [one.name for one in found.values() if one.compares]
    every = [one.name for one in found.values() if bool(one.sweep) == bool(wanted.sweeps)]
    names = wanted.only or [name for name in every if name not in (*pages, *wanted.before)]
    return [name for name in found if name in {*names, *wanted.redo} - {*pages}], pages
