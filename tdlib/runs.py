"""A run: one notebook with one set of parameters. Its state while it runs, and its records.

In the run folder: state/<run>.json says who runs it and how far it is, results/<run>.json what came
out and where it comes from, hashes/<run>.json (module hashes) what it was made from. Files appear
whole or not at all. Imports no torch.
"""

import atexit
import contextlib
import ctypes
import datetime
import functools
import io
import itertools
import json
import os
import platform
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tdlib import files, hashes, hooks, ownership, parameters
from tdlib.files import MARK
from tdlib.files import write_whole as write
from tdlib.hashes import is_current, older_code
from tdlib.ownership import run_of
from tdlib.parameters import notebook_of

__all__ = ["Run", "is_current", "older_code", "run_of", "start", "state", "states", "write"]

HEARTBEAT_S = 5
STOP_S = 30  # that a stopped run gets to end its step, keep its state and write its page
LOST_S = 120  # without a heartbeat, where the process cannot be looked at
# in checkpoints/<run>, while it trains; and for good
KEPT, EPOCH = r"state\.pt|made_from\.json|weights\.bin|wandb\.id", r"epoch-\d+\.safetensors"
# in a run folder, where a killed process may have left what it had begun
PLACES = """. state results hashes figures tables logs .slurm models adapters scores scores/val
 exports""".split()
DIE_WITH = "TDLIB_PARENT"  # in the environment: the process a kernel must not outlive


def state(out: Path, run: str) -> dict:
    """state/<run>.json, with "lost" for a run whose process is gone without a word; "done" where it
    had come to its records, which are there while a run is done alone."""
    try:
        found = files.record(Path(out) / "state" / f"{run}.json") or {"run": run, "state": "queued"}
    except ValueError:  # empty: the power was cut between its name and its content
        found = {"run": run, "state": "lost", "heartbeat": 0.0}
    if found["state"] == "running" and gone(found):
        found |= {"state": "lost"}
    if found["state"] in ("lost", "interrupted") and _recorded(out, run):
        found |= {"state": "done"}
    return found


def _recorded(out: Path, run: str) -> bool:
    return all((Path(out) / kind / f"{run}.json").exists() for kind in ("hashes", "results"))


def states(out: Path) -> list[dict]:
    return [state(out, path.stem) for path in sorted((Path(out) / "state").glob("*.json"))]


def write_state(out: Path, run: str, what: str, **more: object) -> None:
    """`what` is running, done, failed or interrupted; this process is the one that says so."""
    known = {"run": run, "notebook": notebook_of(run), "state": what} | who()
    content = json.dumps(known | {"heartbeat": time.time()} | more)
    write(out / "state" / f"{run}.json", content, lasting=what != "running")


def wait_until_free(out: Path, run: str) -> None:
    """Two processes that write the same files would spoil both. One that was just stopped still
    writes its page, so it gets some seconds; then RuntimeError. One on another machine, which may
    have lost its power, gets as long as it takes to tell."""
    began, here = time.monotonic(), socket.gethostname()
    ours = (os.getpid(), os.getppid())  # papermill's process speaks for a kernel until it starts
    while (other := state(out, run))["state"] == "running" and other["pid"] not in ours:
        if time.monotonic() - began > STOP_S + (LOST_S if other["host"] != here else 0):
            raise RuntimeError(
                f"{run} is already being run by process {other['pid']} on {other['host']}: "
                "wait for it, or end it"
            )
        time.sleep(0.2)


def who() -> dict:
    """This process, so that another can tell whether it lives."""
    pid, host = os.getpid(), socket.gethostname()
    return {"pid": pid, "pid_started": _started(pid), "boot": _boot(), "host": host}


def gone(found: dict) -> bool:
    """Whether the process that called itself `who` lives no more."""
    if found["host"] != socket.gethostname():  # a shared disk: only its heartbeat is known
        return time.time() - found.get("heartbeat", time.time()) > LOST_S
    return found["boot"] != _boot() or found["pid_started"] != _started(found["pid"])


def _boot() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _started(pid: int) -> int | None:
    """When a process began, in clock ticks since boot (its number may be used again); None where it
    is gone or a zombie. Without /proc, 0 for one that is there."""
    try:
        if not Path("/proc/self/stat").exists():
            os.kill(pid, 0)
            return 0
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # a program's name may hold spaces
    return None if fields[0] in "ZX" else int(fields[19])


def clear(out: Path, ended: str = "") -> None:
    """Remove what is left in a run folder of a run that has just ended, and of those that were
    killed: the state of a training that is done (the weights of every epoch stay), begun files."""
    for folder in PLACES:
        files.clear(out / folder)
    for place in (out / "checkpoints").glob("*/"):
        run = place.name
        if run == ended or (_recorded(out, run) and state(out, run)["state"] == "done"):
            clear_checkpoint(place)


def clear_checkpoint(folder: Path, epochs: bool = False) -> None:
    """Remove what a run keeps while it trains; `epochs`: the weights of each epoch too."""
    own = rf"{KEPT}|\.({KEPT}|{EPOCH})\.[\w.]+" + f"|{EPOCH}" * epochs  # .state.pt.123.begun
    for path in folder.rglob(f"workers/{MARK}"):
        shutil.rmtree(path.parent, ignore_errors=True)
    for path in [*sorted(folder.rglob("*"), reverse=True), folder]:
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):  # not empty: another's, or an epoch's
                path.rmdir()
        elif re.fullmatch(own, path.name):
            path.unlink(missing_ok=True)


def die_with_parent(how: int = signal.SIGTERM) -> None:
    """Ask Linux for a signal when the parent is gone, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, how)  # 1: PR_SET_PDEATHSIG


def _under_papermill() -> bool:
    """Whether papermill's own command started this kernel; a SIGTERM ends it without a word."""
    parent = Path(f"/proc/{os.getppid()}/cmdline")
    return parent.exists() and bool(re.search(rb"(^|[/\0])papermill\0", parent.read_bytes()))


_latest: "Run | None" = None  # a notebook's second start ends the first


def start(notebook: str, given: dict | None = None) -> "Run":
    """Check the parameters, then begin: state, clock, seed. Where the run is done already, `once`
    gives back what it remembers. `given` replaces the notebook's cells in a script or a test."""
    global _latest
    if shell := parameters.shell():
        shell.set_custom_exc((Exception,), _show_error)
    values = parameters.from_cells(notebook) if given is None else parameters.check(notebook, given)
    if os.environ.get(DIE_WITH) == str(os.getppid()) or _under_papermill():
        die_with_parent()
    if _latest:
        _latest.detach()
    os.chdir(parameters.ROOT)  # Lab starts kernels in notebooks/
    _latest = Run(values)
    return _latest


class Run:
    """`run`, `notebook`, `out`, `parameters`, `device` and `models` are there to be read."""

    def __init__(self, values: dict):
        import numpy as np

        self.run, self.notebook = values["run"], notebook_of(values["run"])
        self.parameters, self.out = values, parameters.ROOT / values["out"]
        self.models: dict[str, dict] = {}
        defaults = parameters.declared(self.notebook)
        self._changed = {name: v for name, v in values.items() if v != defaults[name]}
        self._why = hashes.why(self.out, self.run, values)
        self.current = not self._why
        self._record = files.record(self._file("results", "json")) if self.current else {}
        self._remembered = self._record.get("remembered", {})
        self._finding = ""
        self._began, self._clock = time.time(), time.monotonic()
        self._status, self._seen, self._lock = "running", {}, threading.RLock()
        self._progress: dict = {"step": 0, "steps": 0}
        self._hooked = not self.current  # after_run is called once, though two signals may come
        wait_until_free(self.out, self.run)
        clear(self.out)
        if lines := hashes.input_damage(self.out, self.run, values):
            raise ValueError(f"{self.run} reads what is damaged: {'; '.join(lines)}")
        old = {} if self.current else self._begin_anew()
        for line in hashes.damage(self.out, self.run) if self.current else ():
            print(line)  # what is shown was remembered
        self._attach()
        self._say("running", changed=hooks.hidden(self._changed), **old)
        random.seed(values["seed"])  # torch's is set where weights are drawn
        np.random.seed(values["seed"] % 2**32)

    def path(self, *parts: str) -> Path:
        """A path in the run folder, the folder it lies in made."""
        path = self.out.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def device(self) -> str:
        """cpu or cuda; "auto" is cuda where there is one."""
        import torch

        wanted, there = self.parameters["device"], torch.cuda.is_available()
        # scoring and evaluation are float32 products: on a GPU's tensor cores, 10 bits of mantissa
        torch.backends.cuda.matmul.allow_tf32 = True
        if wanted.startswith("cuda") and not there:
            raise ValueError(f"device = {wanted!r}, and torch sees no GPU here: use auto or cpu")
        return wanted if wanted != "auto" else "cuda" if there else "cpu"

    def once(self, name: str, function: Callable, *args, **kwargs):
        """What the function returns, as JSON gives it back: called now, or remembered from when
        this same run was made."""
        if not (self.current and name in self._remembered):
            value = function(*args, **kwargs)
            self._remembered[name] = json.loads(json.dumps(value, default=_plain))
        return self._remembered[name]

    def progress(self, step: int, steps: int, message: str = "") -> None:
        """Heartbeat, and one line in the notebook that is updated in place, twice a second."""
        now, p = time.monotonic(), self._progress
        if steps != p["steps"] or step < p["step"]:  # another loop begins, with a line of its own
            p = {"first": step, "began": now, "said": 0, "line": None}
        p |= {"step": step, "steps": steps}
        self._progress = p
        if now - p["said"] < 0.5 and step < steps:
            return
        passed, done = now - p["began"], step - p["first"]
        left = passed / done * (steps - step) if done else None
        self._say(step=step, steps=steps, message=message, left_s=left)
        ending = f"took {_clock(passed)}" if step >= steps else left and f"{_clock(left)} left"
        parts = (f"step {step:,} of {steps:,}", message, ending)
        p["line"] = _show(" · ".join(filter(None, parts)), p["line"])
        p["said"] = now

    def figure(self, name: str, figure, alt: str) -> None:
        """Save as figures/<run>-<name>.png and .svg, and show it with its alternative text."""
        import PIL.Image
        from IPython.display import Image, display
        from matplotlib import rc_context

        options = {"png": {"dpi": 150}, "svg": {"metadata": {"Date": None}}}
        for kind in ("svg", "png"):
            file = io.BytesIO()
            with rc_context({"svg.hashsalt": f"{self.run}-{name}"}):  # or ids differ every time
                figure.savefig(file, format=kind, bbox_inches="tight", **options[kind])
            if kind == "png":  # a page is mailed: 128 colours take a third of the bytes
                few = PIL.Image.open(file).convert("RGB").quantize(128, dither=0)
                few.save(file := io.BytesIO(), "png", optimize=True, dpi=(150, 150))
            write(self.out / "figures" / f"{self.run}-{name}.{kind}", file.getvalue())
        if "matplotlib.pyplot" in sys.modules:  # or the notebook would show it a second time
            sys.modules["matplotlib.pyplot"].close(figure)
        display(Image(file.getvalue(), alt=alt), metadata={"alt": alt})

    def table(self, name: str, table) -> None:
        """Save as tables/<run>-<name>.csv and .md, and show it."""
        from IPython.display import HTML, display

        if type(table.index).__name__ != "RangeIndex":  # plain row numbers say nothing
            table = table.reset_index()
        if self.parameters["profile"].endswith("-quick"):  # no numbers to quote: on every row
            table = table.assign(scouting=self.parameters["profile"])
        path = self.out / "tables" / f"{self.run}-{name}"
        write(path.with_name(f"{path.name}.csv"), table.to_csv(index=False))
        shown = table.map(lambda value: _figures(value) if isinstance(value, float) else value)
        shown = shown.replace("nan", "–")  # what is not known; in the CSV it is empty
        plain = shown.to_markdown(index=False, disable_numparse=True)
        write(path.with_name(f"{path.name}.md"), plain)
        display(HTML(shown.to_html(index=False, border=0)))

    def model(self, name: str, metrics: dict) -> None:
        """One row of results["models"]."""
        self.models[name] = metrics

    def finding(self, sentence: str) -> None:
        """What came out, in one sentence with its number."""
        from IPython.display import Markdown, display

        self._finding = re.sub(r"(?<![\w-])-(?=\d)", "−", sentence)
        display(Markdown(f"**{self._finding}**"))

    def finish(self, tokens_per_second: float | None = None) -> None:
        """Write the records; only now is the run done. A run that only gave back what it remembered
        keeps the record of when it was made."""
        came = {"finding": self._finding, "models": self.models, "remembered": self._remembered}
        record = self._record or self.provenance(tokens_per_second)
        hooks.settle()
        p = self._progress
        if p.get("line") and p["step"] < p["steps"]:  # a loop that ended early has nothing left
            took = _clock(p["said"] - p["began"])
            _show(f"step {p['step']:,} of at most {p['steps']:,} · took {took}", p["line"])
        if not self.current:
            made = hashes.outputs(self.out, self.run, self.parameters)
            if missing := [path for path, where in made.items() if not where.exists()]:
                raise FileNotFoundError(f"{self.run} ends without {missing}: it must write them")
        write(self._file("results", "json"), _json(record | came))
        if not self.current:
            kept = hashes.record(self.out, self.run, self.parameters, self._code, self._inputs)
            write(self._file("hashes", "json"), _json(kept))
        self._status = "done"  # whatever comes now
        clear(self.out, ended=self.run)
        self._say("done")
        self.detach()
        self._after_run()

    def told(self, checkpoint: Path | None = None) -> dict:
        """What a hook hears of this run, as it is now."""
        how_far = f"step {self._progress['step']:,} of {self._progress['steps']:,}"
        last = how_far if checkpoint else (self._seen.get("error") or [how_far])[-1]
        finding = self._finding if self._status == "done" else last
        return hooks.told(self.out, self.run, self._status, finding, checkpoint)

    def _after_run(self, leave: float = 0) -> None:
        """Call it, where no book does that once the page is written."""
        command, self._hooked = self._hooked and self.parameters.get("after_run"), False
        if command and os.environ.get(DIE_WITH) != str(os.getppid()):
            hooks.call("after_run", command, self.told(), parameters.ROOT, leave=leave)

    def detach(self) -> None:
        """No longer listen to the notebook; a run that is not done is interrupted."""
        self._stop.set()
        self._interrupted()
        atexit.unregister(self._left)
        if self._shell:
            self._shell.events.unregister("pre_run_cell", self._before_cell)
            self._shell.events.unregister("post_run_cell", self._after_cell)
            self._shell = None  # finished, then started again in the same kernel: twice here

    def _file(self, folder: str, kind: str) -> Path:
        return self.out / folder / f"{self.run}.{kind}"

    def _begin_anew(self) -> dict[str, str]:
        """Look at the inputs; from now on the run is not done. Says under "old" where that went."""
        inputs = hashes.inputs(self.out, self.run, self.parameters)
        if missing := [str(path) for path in inputs.values() if not path.exists()]:
            where = f"PROFILE={self.parameters['profile']} OUT={self.parameters['out']}"
            beside = self.parameters.get("beside")  # a run of the book may not make it
            leave = ', or give beside: ""' * any(Path(path).name == beside for path in missing)
            raise FileNotFoundError(
                f"{self.run} needs {', '.join(missing)}, which is not there: "
                f"`make book {where} ONLY={self.run}` makes it{leave}"
            )
        ownership.claim(self.out, self.run, self.parameters)
        self._inputs = hashes.input_hashes(self.out, self.run, inputs)
        self._code = hashes.of_code(self.notebook)
        old = {"old": self._keep_the_old()} if self._file("hashes", "json").exists() else {}
        self._keep_or_refuse_checkpoint()
        self._file("hashes", "json").unlink(missing_ok=True)
        return old

    def _keep_the_old(self) -> str:
        """All that a finished run made goes to old/, before it is made anew. A hard set chosen by
        hand stays where it is, if its tokens do and nobody asked for a redo."""
        kept = hashes.load(self.out, self.run) or hashes.EMPTY
        record = files.whole(self._file("results", "json"), "started", "models")
        record = record or {"started": "", "models": {}}
        old = _new_folder(self.out / "old", self.run, record["started"])
        tokens = {made.get("tokens", {}).get("sha256") for made in (kept["inputs"], self._inputs)}
        hand = self.notebook == "02_hard_set" and hashes.by_hand(self.out / hashes.HARD_SET)
        stays = hand and not self.parameters["redo"] and len(tokens) == 1
        for path, place in self._made(kept["outputs"], record["models"]).items():
            if os.path.lexists(path) and not (stays and path.name == hashes.HARD_SET):
                (old / place).parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, old / place)
        note = f"{self._why}: what it made before is in {parameters.shown(old)}"
        note += ", the hard set chosen by hand with it" * (hand and not stays)
        note += f"; the hard set chosen by hand stays, REDO={self.run} replaces it" * stays
        print(note)
        return note

    def _made(self, outputs: dict, models: dict) -> dict[Path, Path]:
        """All that this run wrote when it was made → its place in a run folder. What it is given
        now is not among it, wherever that lies."""
        outputs = outputs or hashes.outputs(self.out, self.run, self.parameters)
        own = [path for path in ownership.named(self.out, self.run)
               if path.parent.name not in ("state", ".done")]  # fmt: skip
        losses = ownership.losses([*outputs, *(f"models/{name}" for name in models)])
        own += [self.out / name for name in (*outputs, *losses)]
        made = {path: path.relative_to(self.out) for path in own}
        notebook, before = self._file("", "ipynb"), self.out / f".{self.run}.ipynb"
        # graph.execute puts the finished notebook aside before papermill writes a new one
        made[before if before.exists() else notebook] = Path(notebook.name)
        given = parameters.external(self.notebook, self.parameters)
        given = [(parameters.ROOT / path).resolve() for path in given]
        return {path: place for path, place in made.items()
                if not any(one.is_relative_to(path.resolve()) for one in given)}  # fmt: skip

    def _keep_or_refuse_checkpoint(self) -> None:
        """A checkpoint goes on only with what it was made from. Other inputs or, in quick profiles,
        other code make it useless; other parameters may be a slip, which must not cost a night.
        `redo` starts over once: what that began goes on after a stop, like any other."""
        folder = self.out / "checkpoints" / self.run
        wanted = {
            "parameters": hashes.decisive(self.parameters),
            "inputs": {name: found["sha256"] for name, found in self._inputs.items()},
            "code": self._code if self.parameters["profile"] in hashes.QUICK else "",
            "redo": self.parameters["redo"],
        }
        if (path := folder / "made_from.json").exists() and files.whole(path) is None:
            os.replace(folder, old := _new_folder(self.out / "old", self.run, "") / "checkpoint")
            print(f"{path} is broken: {self.run} starts over; its checkpoint is in {old}")
        before = {"redo": False} | (files.record(path) or {})
        starts_over = wanted["redo"] and not before["redo"]
        wanted["redo"] = wanted["redo"] or before["redo"]
        fits = not starts_over and before.get("inputs") == wanted["inputs"]
        if fits and before["code"] == wanted["code"] and any(folder.rglob("state.pt")):
            for name, value in wanted["parameters"].items():
                if (was := before["parameters"].get(name)) != value:
                    raise ValueError(
                        f"{self.run} has a checkpoint made with {name} = {was!r}, now it is "
                        f"{value!r}: put it back to go on, or start over with redo = True "
                        f"(make book REDO={self.run})"
                    )
        if before != wanted:
            clear_checkpoint(folder, epochs=True)
        write(folder / "made_from.json", json.dumps(wanted))

    def _attach(self) -> None:
        """Listen to cells that fail, to signals and to the end; and keep the heart beating."""
        self._shell, self._stop = parameters.shell(), threading.Event()
        if self._shell:
            self._shell.events.register("pre_run_cell", self._before_cell)
            self._shell.events.register("post_run_cell", self._after_cell)
        atexit.register(self._left)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._terminated)
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            self._say()

    def _say(self, what: str | None = None, **more: object) -> None:
        """Write the state; without `what` it is the one before."""
        with self._lock:
            self._status = what or self._status
            self._seen |= more
            with contextlib.suppress(OSError):  # a disk that is full for a minute ends no training
                write_state(self.out, self.run, self._status, **self._seen)

    def _before_cell(self, info) -> None:
        if self._status in ("failed", "interrupted"):
            self._say("running", error=[])

    def _after_cell(self, result) -> None:
        error = result.error_before_exec or result.error_in_exec
        if isinstance(error, KeyboardInterrupt):
            self._say("interrupted")
        elif error is not None:
            short, whole = traceback.format_exception_only, traceback.format_exception
            lines = "".join((short if _says_all(error) else whole)(error)).rstrip().splitlines()
            self._say("failed", error=lines[-8:])

    def _interrupted(self) -> None:
        if self._status == "running":
            self._say("interrupted")

    def _left(self) -> None:
        """The process ends, and the run is not done."""
        self._interrupted()
        self._after_run(leave=hooks.SOON_S)

    def _terminated(self, number: int, frame) -> None:
        signal.signal(number, signal.SIG_IGN)  # papermill's end and its kernel's both send one
        try:
            self._left()
        finally:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def provenance(self, tokens_per_second: float | None = None) -> dict:
        """Where what this run makes comes from: its parameters, code, machine and inputs."""
        values, (commit, dirty) = self.parameters, _commit()
        began = datetime.datetime.fromtimestamp(self._began, datetime.UTC)
        makers = {run for name, (run, _) in hashes.makers(self.out).items() if name in self._inputs}
        about = {"run": self.run, "notebook": self.notebook, "profile": values["profile"]}
        about |= {"parameters": hooks.hidden(values), "changed": [*self._changed]}
        about |= {"seed": values["seed"], "commit": commit, "dirty": dirty, "code": self._code}
        about |= {"versions": _versions(), "device": _device(values["device"])}
        return about | {
            "inputs": {name: read["sha256"] for name, read in self._inputs.items()},
            "reads": {run: hashes.load(self.out, run)["parameters"] for run in sorted(makers)},
            "started": began.isoformat(timespec="seconds"),
            "seconds": time.monotonic() - self._clock,
            "tokens_per_second": tokens_per_second,
            "peak_memory_mib": peak_memory_mib(),
        }


def _says_all(error: BaseException) -> bool:
    """Whether a line of this library raised it, or the system with a file's name. Anything else is
    a fault whose place is worth knowing."""
    if isinstance(error, OSError) and error.filename:
        return True
    places = traceback.extract_tb(error.__traceback__)
    ours = places and Path(places[-1].filename).parent == Path(__file__).parent
    return bool(ours and places[-1].line.startswith("raise"))


def _show_error(shell, kind, error, trace, tb_offset=None) -> None:
    """How IPython shows an error: one whose words say all without sixty lines of traceback."""
    shell.showtraceback((kind, error, trace), exception_only=_says_all(error))


def _new_folder(place: Path, run: str, started: str) -> Path:
    """place/<run>-<when it was started>; two of one second are told apart."""
    when = re.sub(r"\D", "", started)[:14] or f"{time.time():.0f}"
    for more in itertools.count(1):
        with contextlib.suppress(FileExistsError):
            (folder := place / f"{run}-{when}{f'-{more}' * (more > 1)}").mkdir(parents=True)
            return folder


def _json(value: object) -> str:
    """null for a number that is not known: NaN is no JSON."""
    plain = json.loads(json.dumps(value, default=_plain), parse_constant=lambda nan: None)
    return json.dumps(plain, indent=1, ensure_ascii=False)


def _plain(value: object):
    if hasattr(value, "tolist"):  # numpy's numbers and arrays, tensors
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be remembered: return numbers, text or lists")


def _clock(seconds: float) -> str:
    """0:31, 12:05, 1:02:03"""
    text = str(datetime.timedelta(seconds=round(seconds)))
    return re.sub("^0:0?", "", text)


def _figures(value: float) -> str:
    """Four figures of a number; three below a hundredth: more fit no paper."""
    return f"{value:.3g}" if abs(value) < 0.01 else f"{value:.4g}"


def _show(line: str, shown):
    """One line of text in the notebook, in place of the one shown before."""
    if parameters.shell() is None:
        return None
    from IPython.display import display

    if shown is None:
        return display({"text/plain": line}, raw=True, display_id=True)
    shown.update({"text/plain": line}, raw=True)
    return shown


def _commit() -> tuple[str | None, bool | None]:
    """The commit, and whether anything differs from it; None where there is no git."""
    # without its lock, which would stay if this process were killed, and stop the user's own git
    git = ["git", "--no-optional-locks", "-C", str(parameters.ROOT)]
    ask = functools.partial(subprocess.check_output, stderr=subprocess.DEVNULL, text=True)
    try:
        commit = ask([*git, "rev-parse", "--short", "HEAD"]).strip()
        changes = ask([*git, "status", "--porcelain"]).strip()
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return commit, bool(changes)


def _versions() -> dict[str, str]:
    packages = ("torch", "numpy", "sentencepiece", "pandas", "matplotlib")
    loaded = {p: sys.modules[p].__version__ for p in packages if p in sys.modules}
    return {"python": platform.python_version()} | loaded


def _device(wanted: str) -> str:
    torch = sys.modules.get("torch")
    if torch and wanted != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads() if torch else os.cpu_count()
    cpuinfo = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*:(.*)", cpuinfo.read_text() if cpuinfo.exists() else "")
    name = name[1].strip() if name else platform.machine()
    return f"cpu, {threads} thread{'s' * (threads > 1)}, {name}"


def peak_memory_mib() -> float:
    """Of the GPU where one was used, else of the process."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
