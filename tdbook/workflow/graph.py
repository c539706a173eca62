"""The book as a graph: what a command asks for, the runs of a profile and of its sweeps."""

import hashlib
import re
import shlex
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import yaml

from tdbook.runs import hashes, notebooks, parameters, sweeps
from tdbook.runs.notebooks import COMPARISON, INFERENCE, TEACHER, notebook_of
from tdbook.runs.ownership import not_ours, refusal
from tdbook.runs.parameters import ParameterError, nearest, shown, stem
from tdbook.runs.units import number
from tdlib import files

CONFIG = ".snakemake.json"  # in a run folder: what was asked of it last
LONGEST = 158  # bytes of a run folder's path; the system allows 255 a name, also beside it
TAKES = yaml.safe_load(Path(__file__).with_name("commands.yaml").read_text("utf8"))


@dataclass(frozen=True)
class BookRun:
    name: str  # its run's; a sweep's point also says its sweep
    run: str
    yaml: Path
    out: Path  # its run folder
    parameters: dict  # all of them, checked
    given: dict  # those that the command line gives, not the YAML
    writes: tuple[str, ...]  # paths in the run folder
    needs: tuple[str, ...]  # names of the runs that make what it reads
    sweep: str = ""  # that it is a point of

    @property
    def notebook(self) -> str:
        return notebook_of(self.run)

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
    settings: dict[str, str]  # of SET

    config = property(asdict)  # what `jobs` and the Snakefile need to find the same runs


def wanted(command: str, pairs: dict[str, str]) -> Wanted:
    """What `make book` or another of TAKES was given; ParameterError for what means nothing."""
    names = TAKES[command].split()
    if unknown := [name for name in pairs if name not in names]:
        raise ParameterError(f"{unknown[0]}= is not known: {nearest(unknown[0], names)}")
    given = {name: pairs[name.upper()] for name in parameters.GIVEN if pairs.get(name.upper())}
    profile = pairs.get("PROFILE") or "tiny"
    book = [path.stem for path in yamls(profile)]
    several = ("NAME", "ONLY", "REDO")
    words = {key: tuple(pairs.get(key, "").replace(",", " ").split()) for key in several}
    if command == "sweep" and not words["NAME"]:
        there = ", ".join(sweeps.names(profile)) or "none yet"
        raise ParameterError(f"give the sweep: NAME=; params/{profile}/sweeps has {there}")
    found = [sweeps.read(profile, name) for name in words["NAME"]]
    points = [one.name_of(p, run) for one in found for p in one.points for run in one.runs(p)]
    runs = [*book, *(point.split("/")[-1] for point in points)]
    values = parameters.settings_of(pairs.get("SET", ""), runs)
    every, first = sorted({notebook_of(run) for run in book}), pairs.get("FROM", "")
    begins = [notebook for notebook in every if first in (notebook, notebook[:2])]
    if first and not begins:
        raise ParameterError(f"FROM={first} is no notebook: {nearest(first, every)}")
    before = tuple(run for run in book if first and notebook_of(run) < begins[0])
    only, redo = (_select(profile, [*book, *points], words[key]) for key in ("ONLY", "REDO"))
    if both := [name for name in before if name in (*only, *redo)]:
        raise ParameterError(f"FROM={first} takes {both[0]} as it is: leave FROM, or that")
    price = number(pairs, "PRICE_PER_HOUR", 0, 4.5) if pairs.get("PRICE_PER_HOUR") else None
    out = pairs.get("OUT") or default_out(profile, given.get("text", ""), values)
    if command == "sweep" and not given:  # those of the book it reads
        given = (files.record(parameters.ROOT / out / CONFIG) or {}).get("given", {})
    place, swept = cluster(pairs.get("CLUSTER", "")), words["NAME"]
    typed = (f"{k}={shlex.quote(v)}" for k, v in pairs.items() if v and k != "DRY")
    command = " ".join(["make", command, *typed])
    return Wanted(profile, out, given, swept, only, redo, before, price, place, command, values)


def _select(profile: str, every: list[str], words: tuple[str, ...]) -> tuple[str, ...]:
    """Runs by their own name, by their notebook's, or points by sweep or by all that varies."""
    names = {}
    for name in every:
        *sweep, run = name.split("/")  # of several runs a point: sweep/point/run
        point = run.partition("-")[2] if len(sweep) == 1 else name
        names[name] = {name, run, notebook_of(run), run[:2], point, *sweep}
    for word in words:
        if not any(word in own for own in names.values()):
            known = dict.fromkeys([*every, *(part for own in names.values() for part in own)])
            ends = [f"did you mean {n}?" for n in every if n.endswith(f"-{word}")]
            meant = ends[0] if ends else nearest(word, known)
            raise ParameterError(f"{word} is no run of params/{profile}: {meant}")
    return tuple(name for name, own in names.items() if own & set(words))


def cluster(name: str) -> str:
    """The name, or "" for none. ParameterError: no such profile, or no SLURM here."""
    if not name:
        return ""
    names = sorted({path.name for path in (parameters.ROOT / "profiles").iterdir()} - {"default"})
    if name not in names:
        remedy = nearest(name, names)
        raise ParameterError(f"CLUSTER={name}: no profiles/{name}/config.yaml for one: {remedy}")
    if not shutil.which("sbatch"):
        fault = f"CLUSTER={name} needs SLURM, and this machine has no sbatch"
        raise ParameterError(f"{fault}: give the command on a login node, or leave CLUSTER out")
    return name


def default_out(profile: str, text: str, values: dict[str, str] | None = None) -> str:
    """outputs/tiny, and after it the name of the text and what SET changes, so that nothing is
    overwritten. ParameterError: that folder is of another text of this name."""

    def absolute(text: str) -> list[Path]:
        return [(parameters.ROOT / path).resolve() for path in parameters.texts(text)]

    names = [Path(path).name.replace(" ", "_") for path in parameters.texts(text)]
    changes = " ".join(f"{name}={value}" for name, value in sorted((values or {}).items()))
    ends = re.sub(r"[^\w.+-]+", "-", changes)
    out = "-".join(filter(None, [f"outputs/{profile}", "+".join(map(stem, names)), ends]))
    if len(out.encode()) > LONGEST:  # the whole name still tells, as a hash
        short = out.encode()[: LONGEST - 9].decode(errors="ignore")
        out = f"{short}-{hashlib.sha256(out.encode()).hexdigest()[:8]}"
    config = files.whole(parameters.ROOT / out / CONFIG) or {}  # of its last command
    made_of = config.get("given", {}).get("text", "")
    if text and made_of and absolute(made_of) != absolute(text):
        remedy = f"give a folder of its own (OUT=), or OUT={out} to make that one anew"
        raise ParameterError(f"{out} was made of text = {made_of!r}, not of {text!r}: {remedy}")
    return out


def jobs(config: dict, paths: bool = True) -> dict[str, BookRun]:
    """Every run that a command may make, by name: the book's, and the sweeps' asked for."""
    values = config.get("settings", {})
    values = values | {f"{TEACHER}.{name}": value for name, value in config["given"].items()}
    runs = book(config["profile"], config["out"], values, paths)
    runs += [p for name in config["sweeps"] for p in swept(name, config["profile"], runs, values)]
    found = {one.name: one for one in runs}
    for name in config["redo"]:
        found[name] = replace(found[name], parameters=found[name].parameters | {"redo": True})
    return found


def targets_of(wanted: Wanted, runs: dict[str, BookRun]) -> list[str]:
    """What is to be made, REDO's among it; of a sweep its points."""
    every = [one.name for one in runs.values() if bool(one.sweep) == bool(wanted.sweeps)]
    names = wanted.only or [name for name in every if name not in wanted.before]
    return [name for name in runs if name in (*names, *wanted.redo)]


def judged(wanted: Wanted, runs: dict[str, BookRun]) -> dict[str, str]:
    """Run → why it is to be made, "" where it is current. ParameterError: what is in the way."""
    if gone := [name for name in wanted.before if not hashes.load(runs[name].out, name)]:
        raise ParameterError(f"FROM takes {', '.join(gone)} as made, and it is not: leave FROM")
    reasons = hashes.judge(runs, targets_of(wanted, runs), wanted.before)
    new = [name for name, why in reasons.items() if why and not why.startswith(hashes.AFTER)]
    stand = [runs[name] for name in reasons if name not in new]
    if lines := dict.fromkeys(line for one in stand for line in hashes.damage(one.out, one.run)):
        raise ParameterError("\n".join([*lines, "nothing is made from what is damaged"]))
    foreign: list[Path] = []  # what another made, in the place of what is made
    for one in (runs[name] for name in new):
        foreign += not_ours(one.out, one.run, [*one.writes], notebook=True)
    if foreign:
        raise ParameterError(refusal(foreign))
    return reasons


def book(profile: str, out: str = "", given: dict | None = None, paths=True) -> list[BookRun]:
    """The runs of params/<profile>, checked. `given` are the values of the command line."""
    place = {"out": out} if out else {}
    own = {path: parameters.of_run(given or {}, path.stem) for path in yamls(profile)}
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
    try:
        given = parameters.read(path) | more
        if given.get("run") != path.stem:
            raise ParameterError(f"run = {given.get('run')!r} must be its name: run: {path.stem}")
        return parameters.check(notebook_of(path.stem), given, paths=paths)
    except ParameterError as error:
        raise ParameterError(f"{shown(path)}: {error}") from None


def yamls(profile: str) -> list[Path]:
    folder = parameters.ROOT / "params" / profile
    if paths := sorted(folder.glob("*.yaml")):
        return paths
    profiles = sorted(p.name for p in (parameters.ROOT / "params").iterdir() if p.is_dir())
    raise ParameterError(f"PROFILE={profile} has no runs in {folder}: {nearest(profile, profiles)}")


def _run(who: str, name: str, values: dict, given: dict, makers: dict, above="") -> BookRun:
    """A run. `makers`: path → the run that makes it; `above`: of a point the book's folder."""
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
    return BookRun(name, run, out / f"{run}.yaml", out, values, given, tuple(writes), needs)


def swept(name: str, profile: str, runs: list[BookRun], values: dict) -> list[BookRun]:
    """The runs of a sweep's points. `runs`: the book's."""
    sweep, out, points = sweeps.read(profile, name), runs[0].out, []
    makers = {path: one.name for one in runs for path in one.writes}
    for point in sweep.points:
        inside: dict[str, str] = {}  # what the point's earlier runs make → their names
        for run in sweep.runs(point):
            given, who = parameters.of_run(values, run), f"sweep {name}, point {point}"
            if both := given.keys() & {key.rpartition(".")[2] for key in sweep.points[point]}:
                raise ParameterError(f"SET: sweep {name} varies {min(both)}: leave it out of SET")
            try:
                own = sweep.values(point, run, out) | given
                own = parameters.check(notebook_of(run), own, paths=False)
            except ParameterError as error:
                raise ParameterError(f"{who}: {error}") from None
            one = _run(who, sweep.name_of(point, run), own, given, makers | inside, out)
            points.append(replace(one, sweep=name))
            inside |= dict.fromkeys(one.writes, one.name)
    return points
