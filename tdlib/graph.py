"""The book as a graph: the runs of a profile, what each needs, and how one or all are executed.

    python -m tdlib.graph check tiny
    python -m tdlib.graph execute params/tiny/01_distill-50m.yaml outputs/tiny
    python -m tdlib.graph book PROFILE=tiny [OUT=… TEXT=… TOKENS=… TOKENIZER=…
        TEACHER=… ONLY=… REDO=…]
    python -m tdlib.graph report outputs/tiny

Snakemake decides the order (see Snakefile), papermill runs a notebook. Imports no torch.
"""

import difflib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tdlib import hashes, parameters, runs, shapes
from tdlib.parameters import ROOT, ParameterError, notebook_of

# jsonschema would build a whole grammar (0.9 s) for a check of addresses that no notebook needs
sys.modules.setdefault("rfc3987_syntax", None)

PROGRESS_S = 15
GIVEN = ("text", "tokens", "tokenizer", "teacher")  # parameters of 00 that `make book` takes


@dataclass(frozen=True)
class BookRun:
    run: str
    yaml: Path
    parameters: dict  # all of them, checked
    reads: tuple[str, ...]  # paths in the run folder
    writes: tuple[str, ...]
    needs: tuple[str, ...]  # the runs that make what it reads

    @property
    def notebook(self) -> str:
        return notebook_of(self.run)


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
        if not path.stem.startswith(("04", "06")):
            _claim(made, hashes.writes(path.stem, given, []), path)
    everything = list(made)
    for path, given in values.items():
        if path.stem.startswith(("04", "06")):
            _claim(made, hashes.writes(path.stem, given, everything), path)
    return [_book_run(path, given, everything, made) for path, given in values.items()]


def marks(out: str | Path) -> Path:
    """Where Snakemake finds a file for every run that is current."""
    return ROOT / out / ".done"


def check_yaml(path: Path, more: dict, paths: bool = True) -> dict:
    """A YAML's parameters, checked; errors begin with its name."""
    try:
        given = parameters.read(path) | more
        if given.get("run") != path.stem:
            raise ParameterError(f"run = {given.get('run')!r} must be its name: run: {path.stem}")
        return parameters.check(notebook_of(path.stem), given, paths=paths)
    except ParameterError as error:
        where = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        raise ParameterError(f"{where}: {error}") from None


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


def _book_run(yaml: Path, values: dict, everything: list[str], made: dict[str, str]) -> BookRun:
    run, out = yaml.stem, ROOT / values["out"]
    reads = hashes.reads(run, values, everything)
    for path in reads:
        if path not in made and not (out / path).exists():
            near = difflib.get_close_matches(path, made, 1)
            remedy = f"did you mean {near[0]}?" if near else "add the run that does"
            raise ParameterError(
                f"{yaml.name} reads {path}, which no run of its profile makes: {remedy}"
            )
    needs = {made[path] for path in reads if path in made}
    if run.startswith("04"):  # the tables tell of every run
        needs = {name for name in made.values() if not name.startswith("06")}
    writes = [path for path, maker in made.items() if maker == run]
    return BookRun(run, yaml, values, tuple(reads), tuple(writes), tuple(sorted(needs - {run})))


# --- one run


def execute(yaml: Path, out: Path, overrides: dict) -> int:
    """Run one YAML's notebook with papermill into the run folder and write its page, after a
    failure too. Says on standard output what happens; returns the exit code."""
    run = yaml.stem
    shown = out.relative_to(ROOT) if out.is_relative_to(ROOT) else out
    try:
        values = check_yaml(yaml, overrides | {"out": str(shown)})
        out = ROOT / out
        runs.wait_until_free(out, run)
    except (ParameterError, RuntimeError, OSError) as error:
        print(f"{run} · failed: {error}", flush=True)
        return 1
    if hashes.is_current(out, run, values):
        print(f"{run} · is done already", flush=True)
        return 0
    print(f"{run} · started", flush=True)
    began = time.monotonic()
    error = _papermill(run, out, {"out": values["out"]} | _given(yaml, overrides, values))
    state = _settled(out, run, error)
    _page(out, run)
    if state["state"] == "done":
        seconds, finding = time.monotonic() - began, _record(out, run)["finding"]
        print(f"{run} · done in {_time(seconds)} · {finding}", flush=True)
        return 0
    print(f"{run} · {state['state']}: {_last(state)}", flush=True)
    return 1


def _given(yaml: Path, overrides: dict, values: dict) -> dict:
    """What the notebook is told: the names of the YAML, with values that are already converted."""
    return {name: values[name] for name in parameters.read(yaml) | overrides}


def _papermill(run: str, out: Path, given: dict) -> str | None:
    """Execute; what went wrong in one line, or None."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    runs.write_state(out, run, "running", message="starting")
    os.environ[runs.DIE_WITH] = str(os.getpid())
    ended, stopping = threading.Event(), threading.Event()

    def stop(*_) -> None:
        kernel = runs.state(out, run)["pid"]
        if kernel == os.getpid() or stopping.is_set():
            sys.exit(143)
        stopping.set()
        os.kill(kernel, signal.SIGTERM)  # in a training it ends its step and keeps its state first
        signal.alarm(runs.STOP_S)

    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, stop)
    threading.Thread(target=_report_progress, args=(out, run, ended), daemon=True).start()
    try:
        papermill.execute_notebook(
            ROOT / "notebooks" / f"{notebook_of(run)}.ipynb", out / f"{run}.ipynb", given,
            kernel_name="python3", progress_bar=False, coalesce_streams=True, cwd=ROOT,
        )  # fmt: skip
        return None
    except papermill.PapermillExecutionError as error:
        return f"{error.ename}: {error.evalue}"
    except DeadKernelError:
        return (
            "stopped"
            if stopping.is_set()
            else "the kernel died; where memory is short, fewer micro_windows need less"
        )
    except Exception as error:  # any: a kernel that does not start must not look like running
        return f"{type(error).__name__}: {error}"
    except (SystemExit, KeyboardInterrupt):
        return "stopped"
    finally:
        ended.set()


def _settled(out: Path, run: str, error: str | None) -> dict:
    """The state after the kernel is gone; this process speaks for a kernel that could not."""
    state = runs.state(out, run)
    if state["state"] == "done" or state["state"] == "failed":
        return state
    if error == "stopped":
        runs.write_state(out, run, "interrupted", error=[error])
    elif state["state"] != "lost":
        error = error or "the notebook ended without this.finish(): add it as its last call"
        runs.write_state(out, run, "failed", error=[error])
    else:
        return state | {"error": [error or "its process is gone"]}
    return runs.state(out, run)


def _report_progress(out: Path, run: str, ended: threading.Event) -> None:
    said = ""
    while not ended.wait(PROGRESS_S):
        from tdlib import report  # slow to import, and no short run needs it

        state = runs.state(out, run)
        line = report.progress(state)
        if state["state"] == "running" and line != said:
            print(f"{run} · {line}", flush=True)
            said = line


def _record(out: Path, run: str) -> dict | None:
    path = out / "results" / f"{run}.json"
    return json.loads(path.read_text(encoding="utf8")) if path.exists() else None


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


def make(profile: str, out: Path, overrides: dict, only: list[str], redo: list[str]) -> int:
    """Bring a run folder up to date with Snakemake; returns the exit code. The lock goes with this
    process, and so do Snakemake and what it started."""
    found = {one.run: one for one in book(profile, out, overrides, _select(profile, redo))}
    targets = _select(profile, only) or tuple(found)
    out = ROOT / out
    out.mkdir(parents=True, exist_ok=True)
    lock = (out / ".book.lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        print(f"{out} is being made by process {lock.read().strip()}: wait for it, or end it")
        return 1
    lock.truncate(0)
    print(os.getpid(), file=lock, flush=True)
    began = time.time()
    code = _snakemake(profile, out, overrides, targets, _select(profile, redo))
    return _summary(out, [found[name] for name in targets], code, began)


def _select(profile: str, names: list[str]) -> tuple[str, ...]:
    """Runs by their own name or by their notebook's."""
    known = [path.stem for path in _yamls(profile)]
    for name in names:
        if name not in known and name not in map(notebook_of, known):
            near = difflib.get_close_matches(name, known, 1) or [", ".join(known)]
            raise ParameterError(f"{name} is no run of params/{profile}: did you mean {near[0]}?")
    return tuple(run for run in known if run in names or notebook_of(run) in names)


def _snakemake(profile: str, out: Path, overrides: dict, targets, redo) -> int:
    config = {"profile": profile, "out_dir": str(out), "redo": " ".join(redo)} | overrides
    runs.write(out / ".snakemake.json", json.dumps(config))
    command = [sys.executable, "-m", "snakemake", "--nolock", "--snakefile", ROOT / "Snakefile"]
    command += ["--workflow-profile", ROOT / "profiles/default"]
    command += ["--configfile", out / ".snakemake.json"]
    command += ["--", *(str(marks(out) / name) for name in targets)]

    def stop(*_) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    runs.die_with_parent()
    with (out / ".snakemake.log").open("w") as log:
        # a session of its own: Ctrl-C is for this process alone, which ends the others in order
        child = subprocess.Popen(
            command, cwd=ROOT, stderr=log, start_new_session=True,
            preexec_fn=lambda: runs.die_with_parent(signal.SIGKILL),
        )  # fmt: skip
        try:
            return child.wait()
        except KeyboardInterrupt:
            child.kill()  # its runs then get a SIGTERM; Snakemake itself would wait for them
            child.wait()
            end = time.monotonic() + runs.STOP_S
            while time.monotonic() < end and "running" in (s["state"] for s in runs.states(out)):
                time.sleep(0.2)
            return 130


def _summary(out: Path, targets: list[BookRun], code: int, began: float) -> int:
    """The last lines: what failed and where to read why, or the finding; then the index."""
    from tdlib import report

    for run in (state["run"] for state in runs.states(out)):
        notebook, html = (out / f"{run}.{kind}" for kind in ("ipynb", "html"))
        written = html.stat().st_mtime if html.exists() else 0
        if notebook.exists() and notebook.stat().st_mtime > written:
            _page(out, run)  # a kill, or plain papermill, left it unwritten
    index = report.refresh(out)
    shown = index.relative_to(Path.cwd()) if index.is_relative_to(Path.cwd()) else index
    if code == 130:
        print(f"stopped; the same command goes on from here · {shown}")
        return code
    states = {state["run"]: state for state in runs.states(out)}
    bad = [s for s in states.values() if s["state"] != "done" and s["heartbeat"] >= began]
    for state in bad:
        print(f"{state['run']} · {state['state']}: {_last(state)} · {out / state['run']}.html")
    undone = [one.run for one in targets if not (marks(out) / one.run).exists()]
    if waiting := [run for run in undone if run not in {state["run"] for state in bad}]:
        print(f"not run: {', '.join(waiting)}")
    if code and not bad:
        print((out / ".snakemake.log").read_text(encoding="utf8")[-2000:])
    for one in [] if undone else targets:  # the headline, where it was not just said
        if one.notebook == "04_merge_eval" and states[one.run]["heartbeat"] < began:
            print(_record(out, one.run)["finding"])
    print(f"{len(targets) - len(undone)} of {len(targets)} runs done · {shown}")
    return 1 if code or undone else 0


def main(arguments: list[str]) -> int:
    # jsonschema, which papermill imports, would build a grammar of URIs: a second, for nothing here
    sys.modules["rfc3987_syntax"] = None
    what, *rest = arguments or ["help"]
    pairs = dict(pair.split("=", 1) for pair in rest if "=" in pair)
    words = [word for word in rest if "=" not in word]
    try:
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
            case "book", []:
                given = {n: pairs[n.upper()] for n in GIVEN if pairs.get(n.upper())}
                profile = pairs.get("PROFILE") or "tiny"
                out = Path(pairs.get("OUT") or _default_out(profile, given.get("text", "")))
                words = {name: pairs.get(name, "").replace(",", " ").split()
                         for name in ("ONLY", "REDO")}  # fmt: skip
                return make(profile, out, given, words["ONLY"], words["REDO"])
    except (ParameterError, OSError) as error:
        print(error)
        return 1
    print(__doc__)
    return 2


def _default_out(profile: str, text: str) -> str:
    """outputs/tiny, or outputs/tiny-<stem of the text>, so that nothing is overwritten."""
    names = (Path(path).name.replace(" ", "_") for path in parameters.texts(text))
    stems = [name.split(".")[0] for name in names]
    return f"outputs/{'-'.join([profile, *(['+'.join(stems)] if stems else [])])}"


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
