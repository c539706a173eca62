"""The book as a graph: the runs of a profile, what each needs, and how one or all are executed.

    python -m tdlib.graph check tiny
    python -m tdlib.graph execute params/tiny/01_distill-50m.yaml outputs/tiny
    python -m tdlib.graph book PROFILE=tiny [OUT=… TEXT=… TOKENS=… TOKENIZER=… TEACHER=… ONLY=…
        FROM=… REDO=… DRY=1 PRICE_PER_HOUR=…]
    python -m tdlib.graph sweep NAME=adapter [PROFILE=… and the others of book]
    python -m tdlib.graph status PROFILE=tiny [FULL=1: reads all that was written]
    python -m tdlib.graph report outputs/tiny

Snakemake decides the order (see Snakefile), papermill runs a notebook. Imports no torch.
"""

import contextlib
import datetime
import difflib
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

from tdlib import cluster, devices, files, hashes, hooks, parameters, runs, shapes, status, sweeps
from tdlib.ownership import claim, not_ours, refusal
from tdlib.parameters import ROOT, ParameterError, notebook_of, shown, stem

# jsonschema would build a whole grammar (0.9 s) for a check of addresses that no notebook needs
sys.modules.setdefault("rfc3987_syntax", None)

CODE = Path(__file__).parents[1]
PROGRESS_S = 15
CONFIG = ".snakemake.json"  # in a run folder: what was asked of it last
LONGEST = 150  # bytes of a run folder's name; the system allows 255, for longer names beside it too
GIVEN = ("text", "tokens", "tokenizer", "teacher")  # parameters of 00 that `make book` takes
LAST = ("04", "06", "07")  # they read what all the others made


@dataclass(frozen=True)
class BookRun:
    run: str
    yaml: Path
    out: Path  # its run folder
    parameters: dict  # all of them, checked
    reads: tuple[str, ...]  # paths in the run folder
    writes: tuple[str, ...]
    needs: tuple[str, ...]  # names of the runs that make what it reads
    sweep: str = ""  # that it is a point of, or the page of
    name: str = ""  # its run's; a sweep's point also says its sweep

    def __post_init__(self):
        own = f"{self.sweep}/{self.run}" if self.sweep else self.run
        object.__setattr__(self, "name", self.name or own)

    @property
    def notebook(self) -> str:
        return notebook_of(self.run)

    @property
    def mark(self) -> Path:
        """Where Snakemake finds a file once the run is current."""
        return self.out / ".done" / self.run


def book(
    profile: str,
    out: Path | None = None,
    overrides: dict[str, str] | None = None,
    redo: tuple[str, ...] = (),
    paths: bool = True,
) -> list[BookRun]:
    """The runs of params/<profile>, checked. `overrides` (of GIVEN) are for 00;
    `redo` names runs to be repeated. ParameterError names the YAML."""
    values = {}
    for path in _yamls(profile):
        more = {"out": str(out)} if out else {}
        more |= overrides or {} if path.stem.startswith("00") else {}
        more |= {"redo": True} if path.stem in redo else {}
        values[path] = check_yaml(path, more, paths)
    made: dict[str, str] = {}
    for path, given in values.items():
        if not path.stem.startswith(LAST):
            _claim(made, hashes.writes(path.stem, given, []), path)
    everything = list(made)
    for path, given in values.items():
        if path.stem.startswith(LAST):
            _claim(made, hashes.writes(path.stem, given, everything), path)
    return [_book_run(path, given, list(made) if path.stem.startswith("07") else everything, made)
            for path, given in values.items()]  # fmt: skip


def swept(
    name: str, profile: str, found: list[BookRun], redo: tuple[str, ...] = ()
) -> list[BookRun]:
    """The runs of a sweep's points, and last the page that compares them, where each point is one
    run; `found` are the runs of the book. The page needs no point, so that those that are done can
    be compared."""
    sweep, out = sweeps.read(profile, name), found[0].out
    made = {path: one.run for one in found for path in one.writes}
    points = []
    for point in sweep.points:
        inside: dict[str, str] = {}  # what the point's earlier runs make → their names
        for run in sweep.runs(point):
            more = {"redo": True} if sweep.name_of(point, run) in redo else {}
            given = sweep.values(point, run, out) | more
            try:
                values = parameters.check(notebook_of(run), given, paths=False)
            except ParameterError as error:
                raise ParameterError(f"sweep {name}, point {point}: {error}") from None
            points.append(_swept_run(sweep, point, run, values, out, made, inside))
            inside |= dict.fromkeys(points[-1].writes, points[-1].name)
    if not sweep.notebook:
        return points
    page = next((one for one in found if one.notebook == "04_merge_eval"), None)
    if page is None:
        raise ParameterError(f"params/{profile} has no 04_merge_eval to compare the points with")
    return [*points, _page_of(sweep, page, found, made)]


def _swept_run(
    sweep: sweeps.Sweep, point: str, run: str, values: dict, out: Path,
    made: dict[str, str], inside: dict[str, str],
) -> BookRun:  # fmt: skip
    place = ROOT / values["out"]
    reads = hashes.reads(run, values, [])
    writes = hashes.writes(run, values, [])
    _must_be_made(f"sweep {sweep.name}: each point", reads, made | inside, out)
    if both := set(reads) & set(writes):
        raise ParameterError(
            f"sweep {sweep.name}: {min(both)} is read and written: give another name"
        )
    known = made | inside
    needs = tuple(sorted({known[path] for path in reads if path in known}))
    borrowed = tuple(path for path in reads if path not in inside)
    return BookRun(run, place / f"{run}.yaml", place, values, borrowed, tuple(writes), needs,
                   sweep.name, sweep.name_of(point, run))  # fmt: skip


def _page_of(sweep: sweeps.Sweep, page: BookRun, found: list[BookRun], made: dict) -> BookRun:
    """The profile's own 04 on the sweep's folder: its models are those 04 cannot do without."""
    run, place = sweeps.page(sweep.name), sweeps.folder(page.out, sweep.name)
    own = {"run": run, "out": shown(place), "sweeps": sweep.name}
    values = parameters.check("04_merge_eval", parameters.read(page.yaml) | own, paths=False)
    reads = _borrowed(run, values)
    needs = {made[path] for path in reads if path in made}
    return BookRun(run, place / f"{run}.yaml", place, values, tuple(reads), (),
                   tuple(sorted(needs)), sweep.name)  # fmt: skip


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
    folder = ROOT / "params" / profile
    if found := sorted(folder.glob("*.yaml")):
        return found
    known = sorted(p.name for p in (ROOT / "params").iterdir() if p.is_dir())
    near = difflib.get_close_matches(profile, known, 1)
    remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    raise ParameterError(f"PROFILE={profile} has no runs in {folder}: {remedy}")


def _claim(made: dict[str, str], paths: list[str], yaml: Path) -> None:
    for path in paths:
        if path in made:
            raise ParameterError(
                f"{yaml.name} and {made[path]}.yaml both write {path}: give one another name"
            )
        made[path] = yaml.stem


def _must_be_made(who: str, reads: list[str], made: dict[str, str], out: Path) -> None:
    """ParameterError for what is read and neither made by a run of the profile nor there."""
    for path in reads:
        if path not in made and not (out / path).exists():
            near = difflib.get_close_matches(path, made, 1)
            remedy = f"did you mean {near[0]}?" if near else "add the run that does"
            raise ParameterError(f"{who} reads {path}, which no run of the profile makes: {remedy}")


def _book_run(yaml: Path, values: dict, everything: list[str], made: dict[str, str]) -> BookRun:
    run, out = yaml.stem, ROOT / values["out"]
    reads = hashes.reads(run, values, everything)
    _must_be_made(yaml.name, reads, made, out)
    needs = {made[path] for path in reads if path in made}
    if run.startswith("04"):  # the tables tell of every run
        needs = {name for name in made.values() if not name.startswith("06")}
    if run.startswith("07"):
        needs = set(made.values())
    writes = [path for path, maker in made.items() if maker == run]
    needs = tuple(sorted(needs - {run}))
    return BookRun(run, yaml, out, values, tuple(reads), tuple(writes), needs)


def _borrowed(run: str, values: dict) -> list[str]:
    """What a point, or a sweep's page, reads of the run folder above."""
    if notebook_of(run) != "04_merge_eval":
        return hashes.reads(run, values, [])
    names = ("teacher", "base", "scratch", "picked_by")
    return ["tokens", *dict.fromkeys(f"models/{values[name]}" for name in names)]


# --- one run


def execute(yaml: Path, out: Path, overrides: dict) -> int:
    """Run one YAML's notebook with papermill into the run folder and write its page, after a
    failure too. Says on standard output what happens; returns the exit code."""
    run = yaml.stem
    out = ROOT / out
    try:
        values = check_yaml(yaml, overrides | {"out": shown(out)})
        if sweeps.parent(out):
            sweeps.link(out, _borrowed(run, values))
        runs.wait_until_free(out, run)
    except (ParameterError, RuntimeError, OSError) as error:
        print(f"{run} · failed: {error}", flush=True)
        return 1
    if hashes.is_current(out, run, values):
        print(f"{run} · is done already", flush=True)
        return 0
    try:
        claim(out, run, values, notebook=True)
        gpus = devices.take(values["device"], values.get("processes", 1))
    except (ValueError, OSError) as error:
        print(f"{run} · failed: {error}", flush=True)
        return 1
    print(f"{run} · started{gpus and f' on GPU {gpus}'}", flush=True)
    began, before = time.monotonic(), out / f".{run}.ipynb"
    if (out / f"{run}.ipynb").exists():  # papermill writes over it; a finished run's goes to old/
        shutil.copy2(out / f"{run}.ipynb", before)
    error = _papermill(run, out, {"out": values["out"]} | _given(yaml, overrides, values))
    state = _settled(out, run, error)
    before.unlink(missing_ok=True)
    if state.get("old"):
        print(f"{run} · {state['old']}", flush=True)
    _page(out, run)
    done = state["state"] == "done"
    said = _record(out, run)["finding"] if done else _last(state)
    how = f"done in {_time(time.monotonic() - began)} ·" if done else f"{state['state']}:"
    print(f"{run} · {how} {said}", flush=True)
    if command := values.get("after_run"):
        signal.alarm(0)  # of a stop; the hook has a limit of its own
        limit = runs.STOP_S if error == "stopped" else hooks.LIMIT_S
        told = hooks.told(out, run, state["state"], said)
        hooks.call("after_run", command, told, ROOT, limit)
    return 0 if done else 1


def adopt(job: str, yaml: Path, out: Path, overrides: dict) -> int:
    """Wait for a job of the cluster that an earlier command submitted for this run; once more the
    same command makes what it did not."""
    run, out = yaml.stem, ROOT / out
    print(f"{run} · job {job} of an earlier command is in the queue: waiting for it", flush=True)
    cluster.wait(job)
    values = check_yaml(yaml, overrides | {"out": shown(out), "redo": False})  # it did, if asked
    return 0 if hashes.is_current(out, run, values) else 1


def _given(yaml: Path, overrides: dict, values: dict) -> dict:
    """What the notebook is told: the names of the YAML, with values that are already converted."""
    return {name: values[name] for name in parameters.read(yaml) | overrides}


def _papermill(run: str, out: Path, given: dict) -> str | None:
    """Execute; what went wrong in one line, or None."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    _write_notebooks_whole()
    paths = (ROOT / "notebooks" / f"{notebook_of(run)}.ipynb", out / f"{run}.ipynb")
    runs.write_state(out, run, "running", message="starting")
    os.environ[runs.DIE_WITH] = str(os.getpid())
    ended, stopping = threading.Event(), threading.Event()

    def stop(number: int, _) -> None:
        if stopping.is_set() and number == signal.SIGTERM:
            return  # a cluster sends it more than once, and to the kernel too
        stopping.set()
        kernel = runs.state(out, run)["pid"]
        if kernel == os.getpid() or number == signal.SIGALRM:
            sys.exit(143)
        with contextlib.suppress(ProcessLookupError):
            os.kill(kernel, signal.SIGTERM)  # in a training: ends its step and keeps its state
        signal.alarm(runs.STOP_S - 5)  # before those who wait, or a cluster, lose patience

    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, stop)
    threading.Thread(target=_report_progress, args=(out, run, ended), daemon=True).start()
    try:
        papermill.execute_notebook(
            *(str(path).replace("{", "{{").replace("}", "}}") for path in paths),  # it formats them
            given, kernel_name="python3", kernel_manager_class=_our_kernel(), progress_bar=False,
            coalesce_streams=True, cwd=ROOT,
        )  # fmt: skip
        return None
    except papermill.PapermillExecutionError as error:
        return f"{error.ename}: {error.evalue}"
    except Exception as error:  # any: a kernel that does not start must not look like running
        if stopping.is_set():
            return "stopped"
        if isinstance(error, DeadKernelError):
            return "the kernel died; where memory is short, fewer micro_windows need less"
        return f"{type(error).__name__}: {error}"
    except (SystemExit, KeyboardInterrupt):
        return "stopped"
    finally:
        ended.set()


def _our_kernel() -> type:
    """Starts kernels of this interpreter, whatever Jupyter's paths hold under the name python3."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = KernelSpec(argv=argv, display_name="Python 3", language="python")
    return type("OurKernel", (AsyncKernelManager,), {"kernel_spec": spec})


def _write_notebooks_whole() -> None:
    """papermill saves a notebook after each cell by emptying the file first: a kill in between, and
    nothing is left of it."""
    from papermill.iorw import LocalHandler, papermill_io

    local = LocalHandler()
    whole = SimpleNamespace(
        read=local.read, listdir=local.listdir, pretty_path=str,
        write=lambda content, path: runs.write(Path(path), content, lasting=False),
    )  # fmt: skip
    papermill_io.register("/", whole)  # all absolute paths


def _settled(out: Path, run: str, error: str | None) -> dict:
    """The state after the kernel is gone; this process speaks for a kernel that could not."""
    state = runs.state(out, run)
    if state["state"] == "done" or state["state"] == "failed":
        return state
    if error == "stopped" or (error and state["state"] == "interrupted"):  # it said so itself
        runs.write_state(out, run, "interrupted", error=["stopped"])
        return runs.state(out, run) | {"state": "interrupted"}  # though an earlier one is done
    elif state["state"] != "lost":
        error = error or "the notebook ended without this.finish(): add it as its last call"
        runs.write_state(out, run, "failed", error=[error])
    else:
        kept = state | {"error": [error or "its process is gone"]}
        runs.write(out / "state" / f"{run}.json", json.dumps(kept))
    return runs.state(out, run)


def _report_progress(out: Path, run: str, ended: threading.Event) -> None:
    said = ""
    while not ended.wait(PROGRESS_S):
        state = runs.state(out, run)
        line = status.progress(state)
        if state["state"] == "running" and line != said:
            print(f"{run} · {line}", flush=True)
            said = line


def _record(out: Path, run: str) -> dict | None:
    return files.whole(out / "results" / f"{run}.json")


def _last(state: dict) -> str:
    return (state.get("error") or ["no word of why"])[-1]


def _page(out: Path, run: str) -> None:
    """The run's page and the index. What goes wrong here must not cost hours of training."""
    from tdlib import report

    try:
        if (out / f"{run}.ipynb").exists():
            report.page(out, run)
        report.index(out)
    except Exception as error:  # any: the run itself is done and recorded
        print(f"{run} · its page failed: {type(error).__name__}: {error}", flush=True)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


# --- all runs


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
        """What the Snakefile needs to find the same runs."""
        return {
            "profile": self.profile, "out_dir": self.out, "given": self.given,
            "sweeps": list(self.sweeps), "redo": list(self.redo), "before": list(self.before),
            "cluster": self.cluster,
        }  # fmt: skip


def wanted(what: str, pairs: dict[str, str]) -> Wanted:
    """What `make book` or `make sweep` was told; ParameterError for what means nothing."""
    known = {"PROFILE", "OUT", "ONLY", "FROM", "REDO", "NAME", "DRY", "PRICE_PER_HOUR", "CLUSTER"}
    known |= {name.upper() for name in GIVEN}
    for name in set(pairs) - known:
        near = difflib.get_close_matches(name, known, 1)
        remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
        raise ParameterError(f"{name}= is not known: {remedy}")
    given = {name: pairs[name.upper()] for name in GIVEN if pairs.get(name.upper())}
    profile = pairs.get("PROFILE") or "tiny"
    runs_ = [path.stem for path in _yamls(profile)]
    words = {name: tuple(pairs.get(name, "").replace(",", " ").split())
             for name in ("ONLY", "REDO", "NAME")}  # fmt: skip
    asked = words["NAME"] if what == "sweep" else ()
    if what == "sweep" and not asked:
        there = ", ".join(sweeps.names(profile)) or "none yet"
        raise ParameterError(f"give the sweep: NAME=; params/{profile}/sweeps has {there}")
    found = [sweeps.read(profile, name) for name in asked]
    points = [one.name_of(p, run) for one in found for p in one.points for run in one.runs(p)]
    before = _before(runs_, pairs.get("FROM", ""))
    only, redo = (_select(profile, [*runs_, *points], words[name]) for name in ("ONLY", "REDO"))
    if both := [name for name in before if name in (*only, *redo)]:
        raise ParameterError(f"FROM={pairs['FROM']} takes {both[0]} as it is: leave FROM, or that")
    price = _price(pairs.get("PRICE_PER_HOUR", ""))
    said = " ".join(f"{k}={shlex.quote(v)}" for k, v in pairs.items() if v and k != "DRY")
    out = pairs.get("OUT") or _default_out(profile, given.get("text", ""))
    if what == "sweep" and not given:
        given = _told_before(ROOT / out)
    return Wanted(
        profile, out, given, asked, only, redo, before, price,
        cluster.check(pairs.get("CLUSTER", "")), f"make {what} {said}".strip(),
    )  # fmt: skip


def _told_before(out: Path) -> dict[str, str]:
    """The text, tokens and teacher of the book that a sweep reads, which need not be said again."""
    try:
        return (files.record(out / CONFIG) or {}).get("given", {})
    except ValueError:
        raise ParameterError(
            f"{out / CONFIG} is broken: `make book`, given what it was given, writes it anew"
        ) from None


def _select(profile: str, known: list[str], words: tuple[str, ...]) -> tuple[str, ...]:
    """Runs by their own name, by their notebook's, or points by sweep or by all that varies."""
    names = {name: {name, name.split("/")[-1], notebook_of(name.split("/")[-1])} for name in known}
    for name in (name for name in known if "/" in name):
        sweep, *point, run = name.split("/")
        names[name] |= {sweep, point[0] if point else run.partition("-")[2]}
    for word in words:
        if not any(word in own for own in names.values()):
            every = [*known, *(part for own in names.values() for part in own)]
            near = difflib.get_close_matches(word, every, 1) or [", ".join(known)]
            raise ParameterError(f"{word} is no run of params/{profile}: did you mean {near[0]}?")
    return tuple(name for name, own in names.items() if own & set(words))


def _before(known: list[str], first: str) -> tuple[str, ...]:
    """The runs of the notebooks before FROM=02 or FROM=02_hard_set."""
    notebooks = sorted({notebook_of(run) for run in known})
    found = [name for name in notebooks if first in (name, name[:2])]
    if first and not found:
        near = difflib.get_close_matches(first, notebooks, 1)
        remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(notebooks)}"
        raise ParameterError(f"FROM={first} is no notebook: {remedy}")
    return tuple(run for run in known if first and notebook_of(run) < found[0])


def _price(given: str) -> float | None:
    try:
        price = float(given) if given else None
    except ValueError:
        price = -1.0
    if price is not None and not 0 <= price < 1e6:
        raise ParameterError(
            f"PRICE_PER_HOUR={given} must be a number, at least 0: for example 4.5"
        )
    return price


def jobs(config: dict, paths: bool = True) -> dict[str, BookRun]:
    """Every run that a command may make, by name: the book's, and those of the sweeps asked for."""
    redo, profile = tuple(config["redo"]), config["profile"]
    found = book(profile, config["out_dir"], config["given"], redo, paths)
    points = [one for name in config["sweeps"] for one in swept(name, profile, found, redo)]
    return {one.name: one for one in [*found, *points]}


def prepare(config: dict) -> dict[str, BookRun]:
    """The same, with the points' files written and linked to what is there of what they read."""
    found = jobs(config)
    for name in config["sweeps"]:
        own = [one for one in found.values() if one.sweep == name]
        book_out = next(iter(found.values())).out
        page = own[-1].parameters if own[-1].notebook == "04_merge_eval" else None
        sweeps.write(sweeps.read(config["profile"], name), book_out, page)
        for one in own:
            sweeps.link(one.out, list(one.reads))
    return found


def targets_of(wanted: Wanted, found: dict[str, BookRun]) -> tuple[list[str], list[str]]:
    """What is to be made, REDO's among it, and the pages of sweeps, which come when all else has
    ended: the points that are done are compared, whatever became of the others."""
    pages = [one.name for one in found.values() if one.sweep and one.notebook == "04_merge_eval"]
    every = [one.name for one in found.values() if bool(one.sweep) == bool(wanted.sweeps)]
    names = wanted.only or [name for name in every if name not in (*pages, *wanted.before)]
    return [name for name in found if name in {*names, *wanted.redo} - {*pages}], pages


def make(wanted: Wanted) -> int:
    """Bring a run folder up to date with Snakemake; returns the exit code. The lock goes with this
    process, and so do Snakemake and what it started."""
    out = ROOT / wanted.out
    jobs(wanted.config)  # what is wrong with them is said before anything is made
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".book.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            print(f"{out} is being made by process {lock.read().strip()}: wait for it, or end it")
            return 1
        lock.truncate(0)
        print(f"{os.getpid()} ({wanted.command})", file=lock, flush=True)
        wanted = replace(wanted, redo=_not_yet_redone(wanted, out))
        found = prepare(wanted.config)
        if gone := [name for name in wanted.before if not hashes.load(out, name)]:
            raise ParameterError(f"FROM takes {', '.join(gone)} as made, and it is not: leave FROM")
        _refuse_foreign(wanted, found)
        began, (targets, pages) = time.time(), targets_of(wanted, found)
        if damaged := hashes.judge(found, [*targets, *pages], wanted.before)[1]:
            said = dict.fromkeys(line for lines in damaged.values() for line in lines)
            print(*said, "nothing was run: nothing is made from what is damaged", sep="\n")
            return 1
        if wanted.cluster:
            cluster.begin(out, wanted.cluster)
        with status.session(out, [*targets, *pages], wanted.command, wanted.price) as ended:
            code = _snakemake(wanted, found, targets)
            if pages and code != 130:
                wanted = replace(wanted, redo=())  # that is done by now
                code = max(code, _snakemake(wanted, found, pages))
            ended(code)
        return _summary(out, [found[name] for name in [*targets, *pages]], code, began)


def _refuse_foreign(wanted: Wanted, found: dict[str, BookRun]) -> None:
    """ParameterError where what is to be made would take the place of what another made."""
    waiting = [name for part in targets_of(wanted, found) for name in part]
    for name in waiting:  # it grows: what they need is made too
        waiting += [n for n in found[name].needs if n not in (*waiting, *wanted.before)]
    foreign: dict[Path, dict[str, None]] = {}
    for one in (found[name] for name in waiting):
        if not hashes.is_current(one.out, one.run, one.parameters):
            paths = not_ours(one.out, one.run, list(one.writes), notebook=True)
            foreign.setdefault(one.out, {}).update(dict.fromkeys(paths))
    if lines := [refusal(out, list(paths)) for out, paths in foreign.items() if paths]:
        raise ParameterError("\n".join(lines))


def _not_yet_redone(wanted: Wanted, out: Path) -> tuple[str, ...]:
    """What REDO names, without what this same command repeated already before it was stopped."""
    began, found = status.began_of(out, wanted.command), jobs(wanted.config)
    records = {name: _record(found[name].out, found[name].run) for name in wanted.redo}
    when = {name: datetime.datetime.fromisoformat(r["started"]).timestamp()
            for name, r in records.items() if r}  # fmt: skip
    return tuple(name for name in wanted.redo if when.get(name, 0) < began - 1)  # whole seconds


def _snakemake(wanted: Wanted, found: dict[str, BookRun], targets: list[str]) -> int:
    out = ROOT / wanted.out
    for place in {out, *(one.out for one in found.values())}:
        runs.clear(place)
    files.set_aside(out / CONFIG)
    runs.write(out / CONFIG, json.dumps(wanted.config))
    (out / ".done").mkdir(exist_ok=True)
    # in there paths are short, for Snakemake takes { and } for wildcards; and a repository of
    # somebody else may not be written
    command = [sys.executable, "-m", "snakemake", "--nolock", "--directory", out / ".done"]
    command += ["--snakefile", ROOT / "Snakefile"]
    if wanted.cluster:
        command += cluster.options(out, wanted.cluster, wanted.config)
    else:
        command += ["--workflow-profile", ROOT / "profiles/default", "--configfile", out / CONFIG,
                    "--resources", f"gpu={devices.slots()}"]  # fmt: skip
    command += ["--", *(os.path.relpath(found[name].mark, out / ".done") for name in targets)]
    below = os.pathsep.join(filter(None, (str(CODE), os.environ.get("PYTHONPATH"))))

    def stop(*_) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    if not wanted.cluster:  # a lost connection to the login node must not cancel jobs
        runs.die_with_parent()
    with (out / ".snakemake.log").open("w") as log:
        # a session of its own: Ctrl-C is for this process alone, which ends the others in order
        child = subprocess.Popen(
            command, cwd=ROOT, stderr=log, start_new_session=True,
            env=os.environ | {"PYTHONPATH": below},
            preexec_fn=lambda: runs.die_with_parent(signal.SIGKILL),
        )  # fmt: skip
        if wanted.cluster:
            watch = ((_follow, (child, found)), (cluster.end_if_forgotten, (out, child)))
            for what, about in watch:
                threading.Thread(target=what, args=about, daemon=True).start()
        try:
            code = child.wait()
            if wanted.cluster and code == -signal.SIGKILL:  # by cluster.end_if_forgotten
                wanted = replace(wanted, redo=_not_yet_redone(wanted, out))
                return _snakemake(wanted, found, targets)
            return code
        except KeyboardInterrupt:
            child.kill()  # its runs then get a SIGTERM; Snakemake itself would wait for them
            child.wait()
            if wanted.cluster:
                cluster.cancel(out)
            end = time.monotonic() + runs.STOP_S
            while time.monotonic() < end and "running" in (s["state"] for s in runs.states(out)):
                time.sleep(0.2)
            return 130


def _follow(snakemake: subprocess.Popen, found: dict[str, BookRun]) -> None:
    """On a cluster a run speaks into a file of its job: what becomes of it is said here too."""
    said = {name: _word(one) for name, one in found.items()}
    while snakemake.poll() is None:
        time.sleep(cluster.ASK_S)
        for name, one in found.items():
            if (word := _word(one)) != said[name] and word:
                print(f"{name} · {word}", flush=True)
            said[name] = word


def _word(one: BookRun) -> str:
    """How it stands with a run: on which node it runs, or what came out."""
    state = runs.state(one.out, one.run)
    match state["state"]:
        case "queued":
            return ""
        case "running":
            return f"runs on {state['host']}"
        case "done":
            return f"done · {(_record(one.out, one.run) or {}).get('finding', '')}"
    return f"{state['state']}: {_last(state)}"


def _summary(out: Path, targets: list[BookRun], code: int, began: float) -> int:
    """The last lines: what failed and where to read why, or the finding; then the index."""
    from tdlib import report

    folders = list(dict.fromkeys([out, *(one.out for one in targets)]))
    for folder, run in ((f, s["run"]) for f in folders for s in runs.states(f)):
        notebook, html = (folder / f"{run}.{kind}" for kind in ("ipynb", "html"))
        written = html.stat().st_mtime if html.exists() else 0
        if notebook.exists() and notebook.stat().st_mtime > written:
            _page(folder, run)  # a kill, or plain papermill, left it unwritten
    places = [
        sweeps.folder(out, name) for name in dict.fromkeys(t.sweep for t in targets if t.sweep)
    ]
    index = [report.refresh(place) for place in [out, *places]][-1]
    if code == 130:
        print(f"stopped; the same command goes on from here · {shown(index)}")
        return code
    states = {one.name: runs.state(one.out, one.run) for one in targets}
    seen = {one.name: states[one.name] for one in targets} | {
        s["run"]: s for s in runs.states(out)
    }  # fmt: skip
    bad = {n: s for n, s in seen.items()
           if s["state"] not in ("done", "queued") and s["heartbeat"] >= began}  # fmt: skip
    for name, found in bad.items():
        page = next((one.out for one in targets if one.name == name), out) / f"{found['run']}.html"
        print(f"{name} · {found['state']}: {_last(found)} · {page}")
    undone = [one.name for one in targets if not one.mark.exists()]
    log = (out / ".snakemake.log").read_text(encoding="utf8")
    refused = cluster.refusals(log)
    print("".join(f"{line}\n" for line in refused), end="")
    if waiting := [name for name in undone if name not in bad]:
        print(f"not run: {', '.join(waiting)}")
    if code and not bad and not refused:
        print(log[-2000:])
    for one in [] if undone else targets:  # the headline, where it was not just said
        if one.notebook == "04_merge_eval" and states[one.name]["heartbeat"] < began:
            print(_record(one.out, one.run)["finding"])
    print(f"{len(targets) - len(undone)} of {len(targets)} runs done · {shown(index)}")
    return 1 if code or undone else 0


def main(arguments: list[str]) -> int:
    # jsonschema, which papermill imports, would build a grammar of URIs: a second, for nothing here
    sys.modules["rfc3987_syntax"] = None
    what, *rest = arguments or ["help"]
    named = [] if what in ("check", "report") else [p for p in rest if re.match(r"[A-Za-z_]+=", p)]
    pairs = dict(pair.split("=", 1) for pair in named)
    words = [word for word in rest if word not in named]
    try:
        files.find_homes()
        match what, words:
            case "check", [profile]:
                return _check(profile)
            case "execute", [yaml, out]:
                runs.die_with_parent()
                return execute(Path(yaml).resolve(), Path(out), pairs)
            case "report", [out]:
                from tdlib import report

                for state in runs.states(ROOT / out):
                    _page(ROOT / out, state["run"])
                print(report.refresh(ROOT / out))
                return 0
            case "status", []:
                profile = pairs.get("PROFILE") or "tiny"
                out = ROOT / (pairs.get("OUT") or _default_out(profile, ""))
                print(status.text(out, full=bool(pairs.get("FULL"))))
                return 0
            case "adopt", [job, yaml, out]:
                runs.die_with_parent()
                return adopt(job, Path(yaml).resolve(), Path(out), pairs)
            case (("book" | "sweep"), []):
                asked = wanted(what, pairs)
                if pairs.get("DRY"):
                    from tdlib import dry

                    print(dry.text(asked))
                    return 0
                return make(asked)
    except (ValueError, OSError, RuntimeError) as error:
        print(error)
        return 1
    print(__doc__)
    return 2


def _default_out(profile: str, text: str) -> str:
    """outputs/tiny, or outputs/tiny-<name of the text>, so that nothing is overwritten.
    ParameterError: that folder is of another text of this name."""
    paths = [(ROOT / path).resolve() for path in parameters.texts(text)]
    names = [Path(path).name.replace(" ", "_") for path in parameters.texts(text)]
    name = "-".join([profile, *filter(None, ["+".join(map(stem, names))])])
    if len(name.encode()) > LONGEST:  # the whole name still tells, as a hash
        short = name.encode()[: LONGEST - 9].decode(errors="ignore")
        name = f"{short}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    before = "-".join([profile, *filter(None, ["+".join(n.split(".")[0] for n in names)])])
    for out in (f"outputs/{before}", f"outputs/{name}"):  # names were cut at their first dot once
        known = ROOT / out / CONFIG
        kept = files.whole(known) if os.path.isfile(known) else None  # too long a name is none
        if told := (kept or {}).get("given", {}).get("text", ""):
            if paths == [(ROOT / path).resolve() for path in parameters.texts(told)]:
                return out
            if text and out == f"outputs/{name}":
                raise ParameterError(
                    f"{out} was made of text = {told!r}, not of {text!r}: give a folder of its own "
                    f"(OUT=), or OUT={out} to make that one anew"
                )
    return f"outputs/{name}"


def _check(profile: str) -> int:
    bad = 0
    for path in _yamls(profile):
        try:
            check_yaml(path, {}, paths=False)
            print(f"{path.stem} · OK")
        except ParameterError as error:
            bad += 1
            print(f"{path.stem} · {error}")
    if not bad:
        found = book(profile, paths=False)  # what no single YAML shows: two that write the same
        keys = ("shape", "middle_shape", "small_shape")
        used = {one.parameters[key] for one in found for key in keys if key in one.parameters}
        for vocab_size in shapes.VOCABULARIES if profile.startswith("b200") else ():
            for name in (name for name in shapes.SHAPES if name in used):
                print(shapes.in_words(name, vocab_size))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
