"""The book as a graph: the runs of a profile, what each needs, and how one or all are executed.

    python -m tdlib.graph check tiny
    python -m tdlib.graph execute params/tiny/01_distill-50m.yaml outputs/tiny
    python -m tdlib.graph book PROFILE=tiny [OUT=… TEXT=… TOKENS=… TOKENIZER=… TEACHER=… ONLY=…
        FROM=… REDO=… DRY=1 PRICE_PER_HOUR=…]
    python -m tdlib.graph sweep NAME=adapter [PROFILE=… and the others of book]
    python -m tdlib.graph status PROFILE=tiny [FULL=1: reads all that was written]
    python -m tdlib.graph report outputs/tiny
    python -m tdlib.graph plan PROFILE=b200 [DEVICE=b200 PRICE_PER_HOUR=4.5 VOCAB=51800]
    python -m tdlib.graph doctor PROFILE=b200
    the last two also: OUT= (the run folder), TOKENS= and TEACHER= (paths)

Snakemake decides the order (see Snakefile), papermill runs a notebook. Imports no torch.
"""

import contextlib
import datetime
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
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tdlib import cluster, devices, files, hashes, hooks, parameters, runs, shapes, status, sweeps
from tdlib.ownership import claim, not_ours, refusal
from tdlib.parameters import ROOT, ParameterError, nearest, notebook_of, shown, stem
from tdlib.units import number

# jsonschema, which papermill imports, would build a grammar of addresses: 0.9 s, for nothing here
sys.modules.setdefault("rfc3987_syntax", None)

PROGRESS_S = 15
CONFIG = ".snakemake.json"  # in a run folder: what was asked of it last
LONGEST = 158  # bytes of a run folder's path; the system allows 255 a name, also beside it
GIVEN = ("text", "tokens", "tokenizer", "teacher")  # parameters of 00 that `make book` takes
LAST = ("04", "06", "07")  # they read what all the others made


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
        return bool(self.sweep) and self.notebook == "04_merge_eval"

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
        more |= overrides or {} if path.stem.startswith("00") else {}
        values[path] = check_yaml(path, more, paths)
    makers: dict[str, str] = {}  # path → the run that makes it
    for path in sorted(values, key=lambda path: path.stem.startswith(LAST)):
        for made in hashes.writes(path.stem, values[path], list(makers)):
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
    folder = ROOT / "params" / profile
    if paths := sorted(folder.glob("*.yaml")):
        return paths
    profiles = sorted(p.name for p in (ROOT / "params").iterdir() if p.is_dir())
    raise ParameterError(f"PROFILE={profile} has no runs in {folder}: {nearest(profile, profiles)}")


def _book_run(yaml: Path, values: dict, makers: dict[str, str]) -> BookRun:
    run = yaml.stem
    reads = hashes.reads(run, values, [path for path, maker in makers.items() if maker != run])
    _must_be_made(yaml.name, reads, makers, ROOT / values["out"])
    writes = [path for path, maker in makers.items() if maker == run]
    one = _run(run, values, reads, writes, makers)
    if run.startswith(("04", "07")):  # their tables tell of every run
        every = {m for m in makers.values() if run.startswith("07") or not m.startswith("06")}
        one = replace(one, needs=tuple(sorted(every - {run})))
    return replace(one, yaml=yaml)


def _run(
    name: str, values: dict, reads: list[str], writes: list[str], makers: dict, sweep: str = ""
) -> BookRun:
    run, out = values["run"], ROOT / values["out"]
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
    page = next((one for one in runs_ if one.notebook == "04_merge_eval"), None)
    if page is None:
        raise ParameterError(f"params/{profile} has no 04_merge_eval to compare the points with")
    return [*points, _page_of(sweep, page, makers)]


def _swept_run(
    sweep: sweeps.Sweep, point: str, run: str, out: Path, makers: dict, inside: dict
) -> BookRun:
    try:
        values = parameters.check(notebook_of(run), sweep.values(point, run, out), paths=False)
    except ParameterError as error:
        raise ParameterError(f"sweep {sweep.name}, point {point}: {error}") from None
    reads, writes = hashes.reads(run, values, []), hashes.writes(run, values, [])
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
    values = parameters.check("04_merge_eval", parameters.read(page.yaml) | own, paths=False)
    return _run(f"{sweep.name}/{run}", values, _borrowed(run, values), [], makers, sweep.name)


def _borrowed(run: str, values: dict) -> list[str]:
    """What a point, or a sweep's page, reads of the run folder above."""
    if notebook_of(run) != "04_merge_eval":
        return hashes.reads(run, values, [])
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


def prepare(config: dict, found: dict[str, BookRun] | None = None) -> dict[str, BookRun]:
    """`jobs`, with the points' files written and linked to what is there of what they read."""
    found = found or jobs(config)
    book_out = next(iter(found.values())).out
    for name in config["sweeps"]:
        own = [one for one in found.values() if one.sweep == name]
        page = own[-1].parameters if own[-1].compares else None
        sweeps.write(sweeps.read(config["profile"], name), book_out, page)
        for one in own:
            sweeps.link(one.out, list(one.reads))
    return found


def targets_of(wanted: Wanted, found: dict[str, BookRun]) -> tuple[list[str], list[str]]:
    """What is to be made, REDO's among it, and the pages of sweeps, which come when all else has
    ended: the points that are done are compared, whatever became of the others."""
    pages = [one.name for one in found.values() if one.compares]
    every = [one.name for one in found.values() if bool(one.sweep) == bool(wanted.sweeps)]
    names = wanted.only or [name for name in every if name not in (*pages, *wanted.before)]
    return [name for name in found if name in {*names, *wanted.redo} - {*pages}], pages


# --- one run


def execute(yaml: Path, out: Path, overrides: dict) -> int:
    """Run one YAML's notebook with papermill into the run folder and write its page, after a
    failure too. Says on standard output what happens; returns the exit code."""
    run, out = yaml.stem, ROOT / out
    try:
        values = check_yaml(yaml, overrides | {"out": shown(out)})
        if sweeps.parent(out):
            sweeps.link(out, _borrowed(run, values))
        runs.wait_until_free(out, run)
        if hashes.is_current(out, run, values):
            print(f"{run} · is done already", flush=True)
            return 0
        claim(out, run, values, notebook=True)
        gpus = devices.take(values["device"], values.get("processes", 1))
    except (ValueError, RuntimeError, OSError) as error:
        print(f"{run} · failed: {error}", flush=True)
        return 1
    print(f"{run} · started{gpus and f' on GPU {gpus}'}", flush=True)
    began, before = time.monotonic(), out / f".{run}.ipynb"
    if (out / f"{run}.ipynb").exists():  # papermill writes over it; a finished run's goes to old/
        shutil.copy2(out / f"{run}.ipynb", before)
    # what the notebook is told: the names of the YAML, with values that are already converted
    given = {name: values[name] for name in parameters.read(yaml) | overrides}
    error = _papermill(run, out, {"out": values["out"]} | given)
    state = _settled(out, run, error)
    before.unlink(missing_ok=True)
    if state.get("old"):
        print(f"{run} · {state['old']}", flush=True)
    _page(out, run)
    done, seconds = state["state"] == "done", time.monotonic() - began
    said = _record(out, run)["finding"] if done else _last(state)
    how = f"done in {status.duration(seconds)} ·" if done else f"{state['state']}:"
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


def _papermill(run: str, out: Path, given: dict) -> str | None:
    """Execute; what went wrong in one line, or None."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    _write_notebooks_whole()
    paths = (ROOT / "notebooks" / f"{notebook_of(run)}.ipynb", out / f"{run}.ipynb")
    runs.write_state(out, run, "running", message="starting")
    os.environ[runs.DIE_WITH] = str(os.getpid())
    ended, stopping = threading.Event(), _stop_on_signals(out, run)
    threading.Thread(target=_report_progress, args=(out, run, ended), daemon=True).start()
    try:
        papermill.execute_notebook(
            *(str(path).replace("{", "{{").replace("}", "}}") for path in paths),  # it formats them
            given,
            kernel_name="python3",
            kernel_manager_class=_our_kernel(),
            progress_bar=False,
            coalesce_streams=True,
            cwd=ROOT,
        )
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


def _stop_on_signals(out: Path, run: str) -> threading.Event:
    """Pass a SIGTERM on to the kernel, which in a training ends its step and keeps its state; later
    an alarm ends this process. The event is set by the first signal."""
    stopping = threading.Event()

    def stop(number: int, _) -> None:
        if stopping.is_set() and number == signal.SIGTERM:
            return  # a cluster sends it more than once, and to the kernel too
        stopping.set()
        kernel = runs.state(out, run)["pid"]
        if kernel == os.getpid() or number == signal.SIGALRM:
            sys.exit(143)
        with contextlib.suppress(ProcessLookupError):
            os.kill(kernel, signal.SIGTERM)
        signal.alarm(runs.STOP_S - 5)  # before those who wait, or a cluster, lose patience

    for caught in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(caught, stop)
    return stopping


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

    whole = LocalHandler()
    whole.write = lambda content, path: runs.write(Path(path), content, lasting=False)
    papermill_io.register("/", whole)  # all absolute paths


def _settled(out: Path, run: str, error: str | None) -> dict:
    """The state after the kernel is gone; this process speaks for a kernel that could not."""
    state = runs.state(out, run)
    if state["state"] in ("done", "failed"):
        return state
    if error == "stopped" or (error and state["state"] == "interrupted"):  # it said so itself
        runs.write_state(out, run, "interrupted", error=["stopped"])
        return runs.state(out, run) | {"state": "interrupted"}  # though an earlier one is done
    if state["state"] == "lost":
        kept = state | {"error": [error or "its process is gone"]}
        runs.write(out / "state" / f"{run}.json", json.dumps(kept))
    else:
        error = error or "the notebook ended without this.finish(): add it as its last call"
        runs.write_state(out, run, "failed", error=[error])
    return runs.state(out, run)


def _report_progress(out: Path, run: str, ended: threading.Event) -> None:
    before = ""
    while not ended.wait(PROGRESS_S):
        state = runs.state(out, run)
        line = status.progress(state)
        if state["state"] == "running" and line != before:
            print(f"{run} · {line}", flush=True)
            before = line


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


# --- all runs, by Snakemake


def make(wanted: Wanted) -> int:
    """Bring a run folder up to date with Snakemake; returns the exit code. The lock goes with this
    process, and so do Snakemake and what it started."""
    out = ROOT / wanted.out
    # what is wrong with the runs is said before anything is made
    every = jobs(wanted.config | {"redo": []})
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
        wanted = replace(wanted, redo=_not_yet_redone(wanted, every))
        found = _repeated(prepare(wanted.config, every), wanted.redo)
        if gone := [name for name in wanted.before if not hashes.load(out, name)]:
            raise ParameterError(f"FROM takes {', '.join(gone)} as made, and it is not: leave FROM")
        began, (targets, pages) = time.time(), targets_of(wanted, found)
        reasons, damaged = hashes.judge(found, [*targets, *pages], wanted.before)
        _refuse_foreign(found, reasons)
        if damaged:
            lines = dict.fromkeys(line for lines in damaged.values() for line in lines)
            print(*lines, "nothing was run: nothing is made from what is damaged", sep="\n")
            return 1
        if wanted.cluster:
            cluster.begin(out, wanted.cluster)
        with status.session(out, [*targets, *pages], wanted.command, wanted.price) as ended:
            code = _snakemake(wanted, every, targets)
            if pages and code != 130:  # what was to be made again is by now
                code = max(code, _snakemake(replace(wanted, redo=()), every, pages))
            ended(code)
        return _summary(out, [found[name] for name in [*targets, *pages]], code, began)


def _refuse_foreign(found: dict[str, BookRun], reasons: dict[str, str]) -> None:
    """ParameterError where what is to be made would take the place of what another made."""
    foreign: dict[Path, dict[str, None]] = {}
    for one in (
        found[name] for name, why in reasons.items() if why and not why.startswith(hashes.AFTER)
    ):
        paths = not_ours(one.out, one.run, list(one.writes), notebook=True)
        foreign.setdefault(one.out, {}).update(dict.fromkeys(paths))
    if lines := [refusal(out, list(paths)) for out, paths in foreign.items() if paths]:
        raise ParameterError("\n".join(lines))


def _not_yet_redone(wanted: Wanted, found: dict[str, BookRun]) -> tuple[str, ...]:
    """What REDO names, without what this same command repeated already before it was stopped."""
    began = status.began_of(ROOT / wanted.out, wanted.command)

    def started(name: str) -> float:
        record = _record(found[name].out, found[name].run)
        return datetime.datetime.fromisoformat(record["started"]).timestamp() if record else 0.0

    return tuple(name for name in wanted.redo if started(name) < began - 1)  # whole seconds


def _snakemake(wanted: Wanted, every: dict[str, BookRun], targets: list[str]) -> int:
    """Run Snakemake until these targets are made; 130 where it was stopped."""
    out, found = ROOT / wanted.out, _repeated(every, wanted.redo)
    for place in {out, *(one.out for one in found.values())}:
        runs.clear(place)
    command = _command_of(wanted, found, targets)

    def stop(*_) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    if not wanted.cluster:  # a lost connection to the login node must not cancel jobs
        runs.die_with_parent()
    below = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    with (out / ".snakemake.log").open("w") as log:
        # a session of its own: Ctrl-C is for this process alone, which ends the others in order
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(below)},
            preexec_fn=lambda: runs.die_with_parent(signal.SIGKILL),
        )
    if wanted.cluster:
        for watch, about in ((_follow, found), (cluster.end_if_forgotten, out)):
            threading.Thread(target=watch, args=(about, child), daemon=True).start()
    try:
        code = child.wait()
    except KeyboardInterrupt:
        child.kill()  # its runs then get a SIGTERM; Snakemake itself would wait for them
        child.wait()
        if wanted.cluster:
            cluster.cancel(out)
        end = time.monotonic() + runs.STOP_S
        while time.monotonic() < end and "running" in (s["state"] for s in runs.states(out)):
            time.sleep(0.2)
        return 130
    if wanted.cluster and code == -signal.SIGKILL:  # by cluster.end_if_forgotten
        return _snakemake(replace(wanted, redo=_not_yet_redone(wanted, found)), every, targets)
    return code


def _command_of(wanted: Wanted, found: dict[str, BookRun], targets: list[str]) -> list:
    """Snakemake's command line. Before it a run that is current gets its mark, all of one time, and
    any other loses it: the hashes alone decide what is run, as in the notebooks."""
    out = ROOT / wanted.out
    now, reasons = time.time(), hashes.judge(found, found, wanted.before)[0]
    for name, one in found.items():
        one.mark.parent.mkdir(parents=True, exist_ok=True)
        if reasons[name]:
            one.mark.unlink(missing_ok=True)
        else:
            one.mark.touch()
            os.utime(one.mark, (now, now))
    # in there paths are short, for Snakemake takes { and } for wildcards; and a repository of
    # somebody else may not be written
    place = out / ".done"
    marks = {name: os.path.relpath(one.mark, place) for name, one in found.items()}
    config = wanted.config | {"jobs": [_job(one, marks[one.name]) for one in found.values()]}
    files.set_aside(out / CONFIG)
    runs.write(out / CONFIG, json.dumps(config))
    command = [sys.executable, "-m", "snakemake", "--nolock", "--directory", place]
    command += ["--snakefile", ROOT / "Snakefile"]
    if wanted.cluster:
        command += cluster.options(out, wanted.cluster, config)
    else:
        command += ["--workflow-profile", ROOT / "profiles/default", "--configfile", out / CONFIG]
        command += ["--resources", f"gpu={devices.slots()}"]
    return [*command, "--", *(marks[name] for name in targets)]


def _job(one: BookRun, mark: str) -> dict:
    """What the Snakefile needs to know of a run."""
    p, needs, arguments = one.parameters, list(one.needs), [str(one.yaml), str(one.out)]
    gpus = 0 if p["device"] == "cpu" else p.get("processes", 1)
    more = {"mark": mark, "arguments": arguments, "redo": p["redo"], "gpus": gpus}
    return {"name": one.name, "notebook": one.notebook, "needs": needs} | more


def _follow(found: dict[str, BookRun], snakemake: subprocess.Popen) -> None:
    """On a cluster a run speaks into a file of its job: what becomes of it is said here too."""
    before = {name: _word(one) for name, one in found.items()}
    while snakemake.poll() is None:
        time.sleep(cluster.ASK_S)
        for name, one in found.items():
            if (word := _word(one)) != before[name] and word:
                print(f"{name} · {word}", flush=True)
            before[name] = word


def _word(one: BookRun) -> str:
    """How it stands with a run: on which node it runs, or what came out."""
    state = runs.state(one.out, one.run)
    finding = (_record(one.out, one.run) or {}).get("finding", "")
    words = {"queued": "", "running": f"runs on {state.get('host')}", "done": f"done · {finding}"}
    return words.get(state["state"], f"{state['state']}: {_last(state)}")


def _summary(out: Path, targets: list[BookRun], code: int, began: float) -> int:
    """The last lines: what failed and where to read why, or the finding; then the index."""
    index = _write_pages(out, targets)
    if code == 130:
        print(f"stopped; the same command goes on from here · {shown(index)}")
        return code
    states = {s["run"]: (out, s) for s in runs.states(out)}
    states |= {one.name: (one.out, runs.state(one.out, one.run)) for one in targets}
    bad = []
    for name, (folder, state) in states.items():
        if state["state"] not in ("done", "queued") and state["heartbeat"] >= began:
            bad.append(name)
            print(f"{name} · {state['state']}: {_last(state)} · {folder / state['run']}.html")
    undone = [one.name for one in targets if not one.mark.exists()]
    log = (out / ".snakemake.log").read_text(encoding="utf8")
    refused = cluster.refusals(log)
    print("".join(f"{line}\n" for line in refused), end="")
    if waiting := [name for name in undone if name not in bad]:
        print(f"not run: {', '.join(waiting)}")
    if code and not bad and not refused:
        print(log[-2000:])
    for one in [] if undone else targets:  # the headline, where it was not just said
        if one.notebook == "04_merge_eval" and states[one.name][1]["heartbeat"] < began:
            print(_record(one.out, one.run)["finding"])
    print(f"{len(targets) - len(undone)} of {len(targets)} runs done · {shown(index)}")
    return 1 if code or undone else 0


def _write_pages(out: Path, targets: list[BookRun]) -> Path:
    """The pages that a kill, or plain papermill, left unwritten, and every index; the last one."""
    for folder in dict.fromkeys([out, *(one.out for one in targets)]):
        for run in (state["run"] for state in runs.states(folder)):
            notebook, html = (folder / f"{run}.{kind}" for kind in ("ipynb", "html"))
            written = html.stat().st_mtime if html.exists() else 0
            if notebook.exists() and notebook.stat().st_mtime > written:
                _page(folder, run)
    names = dict.fromkeys(one.sweep for one in targets if one.sweep)
    places = [out, *(sweeps.folder(out, name) for name in names)]
    return [_index(place) for place in places][-1]


def _index(out: Path) -> Path:
    from tdlib import report

    return report.refresh(out)


# --- the command line


def wanted(what: str, pairs: dict[str, str]) -> Wanted:
    """What `make book` or `make sweep` was told; ParameterError for what means nothing."""
    names = "PROFILE OUT ONLY FROM REDO NAME DRY PRICE_PER_HOUR CLUSTER".split()
    names += [name.upper() for name in GIVEN]
    for name in (name for name in pairs if name not in names):
        raise ParameterError(f"{name}= is not known: {nearest(name, names)}")
    given = {name: pairs[name.upper()] for name in GIVEN if pairs.get(name.upper())}
    profile = pairs.get("PROFILE") or "tiny"
    own = [path.stem for path in _yamls(profile)]
    words = {name: tuple(pairs.get(name, "").replace(",", " ").split()) for name in names}
    asked = words["NAME"] if what == "sweep" else ()
    if what == "sweep" and not asked:
        there = ", ".join(sweeps.names(profile)) or "none yet"
        raise ParameterError(f"give the sweep: NAME=; params/{profile}/sweeps has {there}")
    found = [sweeps.read(profile, name) for name in asked]
    points = [one.name_of(p, run) for one in found for p in one.points for run in one.runs(p)]
    before = _before(own, pairs.get("FROM", ""))
    only, redo = (_select(profile, [*own, *points], words[name]) for name in ("ONLY", "REDO"))
    if both := [name for name in before if name in (*only, *redo)]:
        raise ParameterError(f"FROM={pairs['FROM']} takes {both[0]} as it is: leave FROM, or that")
    price = number(pairs, "PRICE_PER_HOUR", 0, 4.5) if pairs.get("PRICE_PER_HOUR") else None
    typed = " ".join(f"{k}={shlex.quote(v)}" for k, v in pairs.items() if v and k != "DRY")
    out = pairs.get("OUT") or _default_out(profile, given.get("text", ""))
    if what == "sweep" and not given:
        given = (files.record(ROOT / out / CONFIG) or {}).get("given", {})  # of the book it reads
    place, command = cluster.check(pairs.get("CLUSTER", "")), f"make {what} {typed}".strip()
    return Wanted(profile, out, given, asked, only, redo, before, price, place, command)


def _select(profile: str, every: list[str], words: tuple[str, ...]) -> tuple[str, ...]:
    """Runs by their own name, by their notebook's, or points by sweep or by all that varies."""
    names = {name: {name, name.split("/")[-1], notebook_of(name.split("/")[-1])} for name in every}
    for name in (name for name in every if "/" in name):
        sweep, *point, run = name.split("/")
        names[name] |= {sweep, point[0] if point else run.partition("-")[2]}
    for word in words:
        if not any(word in own for own in names.values()):
            ends = [name for name in every if name.endswith(f"-{word}")]
            known = dict.fromkeys([*every, *(part for own in names.values() for part in own)])
            meant = f"did you mean {ends[0]}?" if ends else nearest(word, known)
            raise ParameterError(f"{word} is no run of params/{profile}: {meant}")
    return tuple(name for name, own in names.items() if own & set(words))


def _before(every: list[str], first: str) -> tuple[str, ...]:
    """The runs of the notebooks before FROM=02 or FROM=02_hard_set."""
    notebooks = sorted({notebook_of(run) for run in every})
    begins = [name for name in notebooks if first in (name, name[:2])]
    if first and not begins:
        raise ParameterError(f"FROM={first} is no notebook: {nearest(first, notebooks)}")
    return tuple(run for run in every if first and notebook_of(run) < begins[0])


def _default_out(profile: str, text: str) -> str:
    """outputs/tiny, or outputs/tiny-<name of the text>, so that nothing is overwritten.
    ParameterError: that folder is of another text of this name."""

    def absolute(texts: str) -> list[Path]:
        return [(ROOT / path).resolve() for path in parameters.texts(texts)]

    def folder(of: Callable[[str], str]) -> str:
        return "outputs/" + "-".join(filter(None, [profile, "+".join(map(of, names))]))

    names = [Path(path).name.replace(" ", "_") for path in parameters.texts(text)]
    # names were cut at their first dot once
    older, own = folder(lambda name: name.split(".")[0]), folder(stem)
    if len(own.encode()) > LONGEST:  # the whole name still tells, as a hash
        short = own.encode()[: LONGEST - 9].decode(errors="ignore")
        own = f"{short}-{hashlib.sha256(own.encode()).hexdigest()[:8]}"
    for out in (older, own):
        path = ROOT / out / CONFIG
        before = files.whole(path) if os.path.isfile(path) else None  # too long a name is none
        if made_of := (before or {}).get("given", {}).get("text", ""):
            if absolute(text) == absolute(made_of):
                return out
            if text and out == own:
                fault = f"{out} was made of text = {made_of!r}, not of {text!r}"
                remedy = f"give a folder of its own (OUT=), or OUT={out} to make that one anew"
                raise ParameterError(f"{fault}: {remedy}")
    return own


def _check(profile: str) -> int:
    bad = False
    for path in _yamls(profile):
        try:
            check_yaml(path, {}, paths=False)
            print(f"{path.stem} · OK")
        except ParameterError as error:
            print(f"{path.stem} · {error}")
            bad = True
    if bad:
        return 1
    found = book(profile, paths=False)  # what no single YAML shows: two that write the same
    used = {
        value for one in found for key, value in one.parameters.items() if key.endswith("shape")
    }
    for vocab_size in shapes.VOCABULARIES if profile.startswith("b200") else ():
        for name in (name for name in shapes.SHAPES if name in used):
            print(shapes.in_words(name, vocab_size))
    return 0


def main(arguments: list[str]) -> int:
    what, *rest = arguments or ["help"]
    named = [] if what in ("check", "report") else [p for p in rest if re.match(r"[A-Za-z_]+=", p)]
    pairs = dict(pair.split("=", 1) for pair in named)
    try:
        files.find_homes()
        return _command(what, [word for word in rest if word not in named], pairs)
    except (ValueError, OSError, RuntimeError) as error:
        print(error)
        return 1


def _command(what: str, words: list[str], pairs: dict[str, str]) -> int:
    match what, words:
        case "check", [profile]:
            return _check(profile)
        case "execute", [yaml, out]:
            runs.die_with_parent()
            return execute(Path(yaml).resolve(), Path(out), pairs)
        case "adopt", [job, yaml, out]:
            runs.die_with_parent()
            return adopt(job, Path(yaml).resolve(), Path(out), pairs)
        case (("book" | "sweep"), []):
            asked = wanted(what, pairs)
            if not pairs.get("DRY"):
                return make(asked)
            from tdlib import dry

            print(dry.text(asked))
        case "report", [out]:
            for state in runs.states(ROOT / out):
                _page(ROOT / out, state["run"])
            print(_index(ROOT / out))
        case "status", []:
            out = pairs.get("OUT") or _default_out(pairs.get("PROFILE") or "tiny", "")
            print(status.text(ROOT / out, full=bool(pairs.get("FULL"))))
        case "plan", []:
            from tdlib import plan

            print(plan.plan(pairs))
        case "doctor", []:
            from tdlib import doctor  # imports torch

            return doctor.examine(pairs)
        case _:
            print(__doc__)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
