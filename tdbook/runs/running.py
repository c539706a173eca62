"""A run: one notebook with one set of parameters. Its state while it runs, and its records.

In the run folder: state/<run>.json says who runs it and how far it is, results/<run>.json what came
out and where it comes from, hashes/<run>.json (module hashes) what it was made from. Files appear
whole or not at all. Imports no torch.
"""

import atexit
import contextlib
import datetime
import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import psutil

from tdbook.runs import hashes, heartbeat, hooks, machine, ownership, parameters
from tdbook.runs.notebooks import notebook_of
from tdbook.runs.units import PLAN, duration, minus
from tdlib import files

COUNTS = ("token_limit", "distinct_tokens", "epochs")  # what bounds a run's tokens; 0: no limit
_latest: "Run | None" = None  # a notebook's second start ends the first


def start(notebook: str, given: dict | None = None) -> "Run":
    """Check the parameters, then begin a run. Without `given` they are those of the notebook."""
    global _latest
    if shell := parameters.shell():
        shell.set_custom_exc((Exception,), _show_error)
        heartbeat.die_with_parent()  # papermill says no word to its kernel when a SIGTERM ends it
    values = parameters.from_cells(notebook) if given is None else parameters.check(notebook, given)
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
        self._texts: set[str] = set()  # tables and figures that hold words of the text
        defaults = parameters.declared(self.notebook)
        self._changed = {name: v for name, v in values.items() if v != defaults[name]}
        self._why = hashes.why(self.out, self.run, values)
        self.current = not self._why
        self._record = files.record(self._file("results")) if self.current else {}
        self._remembered = self._record.get("remembered", {})
        self._scouting, self._finding = self._record.get("scouting", ""), ""
        self._began, self._clock = time.time(), time.monotonic()
        self._status, self._seen, self._lock = "running", {}, threading.RLock()
        self._progress: dict = {"step": 0, "steps": 0}
        self._hooked = not self.current  # after_run is called once, though two signals may come
        heartbeat.wait_until_free(self.out, self.run)
        ownership.clear(self.out)
        reads = hashes.inputs(self.out, self.run, values)
        if lines := hashes.damage(self.out, self.run, reads=reads):
            raise ValueError(f"{self.run} reads what is damaged: {'; '.join(lines)}")
        if not self.current:
            self._begin_anew(reads)
        for line in hashes.damage(self.out, self.run) if self.current else ():
            print(line)  # no error: a current run shows what its record holds
        self._attach()
        self._say("running", changed=hooks.hidden(self._changed))
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
        if wanted.startswith("cuda") and not there:
            raise ValueError(f"device = {wanted!r}, and torch sees no GPU here: use auto or cpu")
        return wanted if wanted != "auto" else "cuda" if there else "cpu"

    def once(self, name: str, function: Callable, *args, **kwargs):
        """What the function returns, as JSON: called now, or remembered from when it was made."""
        if not (self.current and name in self._remembered):
            value = function(*args, **kwargs)
            self._remembered[name] = json.loads(json.dumps(value, default=heartbeat.plain))
        return self._remembered[name]

    def progress(self, step: int, steps: int, message: str = "") -> None:
        """Update the state, and one line in the notebook, at most twice a second."""
        now, p = time.monotonic(), self._progress
        if steps != p["steps"] or step < p["step"]:  # another loop begins, with a line of its own
            p = {"first": step, "began": now, "shown": 0, "line": f"{self.run}-{now}"}
        self._progress = p = p | {"step": step, "steps": steps}
        if now - p["shown"] < 0.5 and step < steps:
            return
        passed, done = now - p["began"], step - p["first"]
        left = passed / done * (steps - step) if done and step < steps else None
        self._say(step=step, steps=steps, message=message, left_s=left)
        if parameters.shell():
            from IPython.display import display

            line = heartbeat.progress(self._seen | {"state": self._status})
            line += f" · took {duration(passed)}" * (step >= steps)
            how = dict(raw=True, metadata={"progress": True}, display_id=p["line"])
            display({"text/plain": line}, **how, update=p["shown"] > 0)
        p["shown"] = now

    def figure(self, name: str, figure, alt: str, text: bool = False) -> None:
        """Save as figures/<run>-<name>.png and .svg, and show it. `text`: it holds words of the
        text, so it is not published if the text is the user's."""
        import PIL.Image
        from IPython.display import Image, display
        from matplotlib import rc_context

        self._texts |= {name} if text else set()
        svg, png, path = io.BytesIO(), io.BytesIO(), self.out / "figures" / f"{self.run}-{name}"
        with rc_context({"svg.hashsalt": path.name}):  # or ids differ every time
            figure.savefig(svg, format="svg", metadata={"Date": None})
        figure.set_layout_engine("none")  # or the layout would be computed a second time
        figure.savefig(png, format="png", dpi=150, pil_kwargs={"compress_level": 1})
        few = PIL.Image.open(png).convert("RGB")
        few = few.quantize(128, PIL.Image.Quantize.FASTOCTREE, dither=0)
        few.save(png := io.BytesIO(), "png", dpi=(150, 150))  # a fifth of the bytes
        files.write_whole(path.with_name(f"{path.name}.svg"), svg.getvalue())
        files.write_whole(path.with_name(f"{path.name}.png"), png.getvalue())
        if "matplotlib.pyplot" in sys.modules:  # or the notebook would show it a second time
            sys.modules["matplotlib.pyplot"].close(figure)
        display(Image(png.getvalue(), alt=alt), metadata={"alt": alt})

    def table(self, name: str, table, text: bool = False, shown=None, fold: str = "") -> None:
        """Save as tables/<run>-<name>.csv and .md; show it, or `shown` columns; folded under a line
        `fold`. `text` as above."""
        from IPython.display import HTML, display

        self._texts |= {name} if text else set()
        if type(table.index).__name__ != "RangeIndex":  # plain row numbers say nothing
            table = table.reset_index()
        extra = {"scouting": self._scouting} if self._scouting else {}  # no numbers to quote
        shown, table = [*(shown or table.columns), *extra], table.assign(**extra)
        if self.parameters["profile"] in PLAN["practice"]:  # of other sizes than the plan's
            shown = [name for name in shown if not name.startswith("plan")]
        path = self.out / "tables" / f"{self.run}-{name}"
        files.write_whole(path.with_name(f"{path.name}.csv"), table.to_csv(index=False))
        # four digits, three below a hundredth; "–" where nothing is known
        rounded = table.map(
            lambda x: minus(f"{x:.{3 if abs(x) < 0.01 else 4}g}") if isinstance(x, float) else x
        ).replace("nan", "–")
        plain = rounded.to_markdown(index=False, disable_numparse=True)
        files.write_whole(path.with_name(f"{path.name}.md"), plain)
        html = rounded[shown].to_html(index=False, border=0)
        display(HTML(f"<details><summary>{fold}</summary>{html}</details>" if fold else html))

    def finding(self, sentence: str) -> None:
        """What came out, in one sentence with its number."""
        from IPython.display import Markdown, display

        self._finding = minus(sentence)
        display(Markdown(f"**{self._finding}**"))

    def finish(self, tokens_per_second: float | None = None) -> None:
        """Write the records; only now is the run done. A current run keeps its first record."""
        results = {"finding": self._finding, "models": self.models, "remembered": self._remembered}
        results["texts"] = sorted(self._texts)
        record = self._record or self.provenance(tokens_per_second)
        made = {} if self.current else hashes.outputs(self.out, self.run, self.parameters)
        if missing := [path for path, where in made.items() if not where.exists()]:
            raise FileNotFoundError(f"{self.run} ends without {missing}: it must write them")
        files.write_whole(self._file("results"), heartbeat.as_json(record | results))
        if not self.current:
            kept = {"parameters": hashes.of(hashes.decisive(self.parameters)), "code": self._code}
            kept["inputs"] = self._inputs
            kept["outputs"] = {path: hashes.fingerprint(where) for path, where in made.items()}
            files.write_whole(self._file("hashes"), heartbeat.as_json(kept))
        self._status = "done"  # a signal that comes from now on does not change that
        ownership.clear(self.out)
        self._say("done")
        self.detach()
        self._after_run()

    def told(self, checkpoint: Path | None = None) -> dict:
        """The environment of a hook that is called now."""
        how_far = f"step {self._progress['step']:,} of {self._progress['steps']:,}"
        last = (self._seen.get("error") or [how_far])[-1]
        finding = self._finding if self._status == "done" else last
        return hooks.told(self.out, self.run, self._status, finding, checkpoint)

    def provenance(self, tokens_per_second: float | None = None) -> dict:
        """Where what this run makes comes from: its parameters, code, machine and inputs."""
        values, (commit, dirty) = self.parameters, machine.commit()
        began = datetime.datetime.fromtimestamp(self._began, datetime.UTC)
        makers = {run for name, (run, _) in hashes.makers(self.out).items() if name in self._inputs}
        about = {"scouting": self._scouting} if self._scouting else {}
        about |= {"run": self.run, "notebook": self.notebook, "profile": values["profile"]}
        about |= {"parameters": hooks.hidden(values), "changed": [*self._changed]}
        about |= {"seed": values["seed"], "commit": commit, "dirty": dirty, "code": self._code}
        about |= {"versions": machine.versions(), "device": machine.device_name(values["device"])}
        about["inputs"] = {name: read["sha256"] for name, read in self._inputs.items()}
        about["reads"] = {n: hashes.load(self.out, n)["parameters"] for n in sorted(makers)}
        about |= {"started": began.isoformat(timespec="seconds")}
        about |= {"seconds": time.monotonic() - self._clock, "tokens_per_second": tokens_per_second}
        return about | {"peak_memory_mib": machine.peak_memory_mib()}

    def detach(self) -> None:
        """Stop listening to the notebook; a run that is not done is interrupted."""
        if self._status == "running":
            self._say("interrupted")
        self._listening.close()

    def _file(self, folder: str) -> Path:
        return self.out / folder / f"{self.run}.json"

    def _begin_anew(self, inputs: dict[str, Path]) -> None:
        """Make the run one that is not done; its old results go to old/."""
        about = (self.out, self.run, self.parameters)
        if missing := [str(path) for path in inputs.values() if not path.exists()]:
            where = f"PROFILE={self.parameters['profile']} OUT={self.parameters['out']}"
            remedy = f"`make book {where} ONLY={self.run}` makes it, or name another model"
            fault = f"{self.run} needs {', '.join(missing)}, which is not there"
            raise FileNotFoundError(f"{fault}: {remedy}")
        ownership.claim(*about)
        self._inputs = hashes.input_hashes(self.out, self.run, inputs)
        self._code = hashes.of_code(self.notebook)
        self._scouting = _scouting(*about, inputs)
        if self._file("hashes").exists():
            ownership.put_away(*about, self._inputs, self._why)
        ownership.keep_checkpoint(*about, self._inputs, self._code)

    def _attach(self) -> None:
        """Listen to cells, SIGTERM and the end of the process; write a heartbeat meanwhile."""
        self._listening, ended = contextlib.ExitStack(), threading.Event()

        def beat() -> None:
            while not ended.wait(heartbeat.HEARTBEAT_S):
                self._say()

        events = {"pre_run_cell": self._before_cell, "post_run_cell": self._after_cell}
        for name, listener in events.items() if (shell := parameters.shell()) else ():
            shell.events.register(name, listener)
            self._listening.callback(shell.events.unregister, name, listener)
        atexit.register(self._left)
        self._listening.callback(atexit.unregister, self._left)
        self._listening.callback(ended.set)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._terminated)
        threading.Thread(target=beat, daemon=True).start()

    def _say(self, word: str | None = None, **more: object) -> None:
        """Write the state; `word` is a new one."""
        with self._lock:
            self._status = word or self._status
            self._seen |= more
            with contextlib.suppress(OSError):  # a disk that is full for a minute ends no training
                heartbeat.write_state(self.out, self.run, self._status, **self._seen)

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

    def _left(self) -> None:
        """The process ends: tell the state and the hook."""
        self.detach()
        self._after_run(limit=0)

    def _terminated(self, number: int, frame) -> None:
        signal.signal(number, signal.SIG_IGN)  # papermill's end and its kernel's both send one
        try:
            self._left()
        finally:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _after_run(self, limit: float | None = None) -> None:
        """Call the hook and, once plain papermill has written its notebook, make the page; but not
        where the parent is a book, which does both."""
        command, self._hooked = self._hooked and self.parameters.get("after_run"), False
        if os.environ.get(heartbeat.DIE_WITH) == str(parent := os.getppid()):
            return
        if command:
            hooks.call("after_run", command, self.told(), parameters.ROOT, limit)
        words = (papermill := psutil.Process(parent)).cmdline()
        if "papermill" in " ".join(words[:3]):
            written = Path(papermill.cwd(), [w for w in words if w.endswith(".ipynb")][-1])
            page = [sys.executable, "-m", "tdbook", "page-of", self.out, self.run, written, parent]
            quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
            how = dict(cwd=parameters.ROOT, start_new_session=True)
            subprocess.Popen([str(word) for word in page], **how, **quiet)


def _says_all(error: BaseException) -> bool:
    """Whether an error needs no traceback: we raised it, or the system did and names a file."""
    if isinstance(error, OSError) and error.filename:
        return True
    places = traceback.extract_tb(error.__traceback__)
    ours = places and {"tdlib", "tdbook"} & {p.name for p in Path(places[-1].filename).parents}
    return bool(ours and places[-1].line.startswith("raise"))


def _show_error(shell, kind, error, trace, tb_offset=None) -> None:
    """IPython's way to show an error, without a traceback where the words say all."""
    shell.showtraceback((kind, error, trace), exception_only=_says_all(error))


def _scouting(out: Path, run: str, values: dict, inputs: dict[str, Path]) -> str:
    """Which limits kept this run, or one that it reads, below its YAML's tokens; "" for none."""
    # a sweep's point has its YAML in its own folder
    yamls = (out / f"{run}.yaml", parameters.ROOT / f"params/{values['profile']}/{run}.yaml")
    usual = {}
    with contextlib.suppress(parameters.ParameterError, StopIteration):  # `make plan` tells
        yaml = next(path for path in yamls if path.is_file())
        usual = parameters.check(notebook_of(run), parameters.read(yaml), paths=False)
    limits = {key: values[key] for key in COUNTS if key in usual}
    fewer = (f"{k} {v:,}" for k, v in limits.items() if 0 < v < (usual[k] or math.inf))
    makers = hashes.makers(out)
    records = [path for name, path in inputs.items() if name.startswith("sweeps/")]
    records += [out / f"results/{makers[name][0]}.json" for name in inputs if name in makers]
    above = [(files.whole(path) or {}).get("scouting", "") for path in dict.fromkeys(records)]
    return next(filter(None, [", ".join(fewer), *above]), "")
