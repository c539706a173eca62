"""Long loops that try to break the book of the smoke profile; part of `make stress`.

    kills    the whole tree of processes, or one of them, gets SIGKILL at a random moment
    ends     six other ends: SIGTERM, kernel, worker, full disk, timeout, power-off
    sweep    forty points, interrupted twice; one value more; a changed comment
    beside   two at once: in two folders, in one folder, and two `make book` in one

    python -m bench.stress book 10 [kills|singles|ends|sweep|beside …]

After each end the state must be true, no process left and nothing half written; the same command
must then go on to the numbers of a book that nobody disturbed. It all happens on a copy of this
repository, so that it may be worked on meanwhile. What was found goes to LOG.md by hand.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import load_file

from tdbook.runs import heartbeat
from tdbook.workflow import status
from tests.small_book import alive, wait_for

ROOT = Path(__file__).parents[1]
COPIED = (
    "tdlib",
    "tdbook",
    "notebooks",
    "params",
    "profiles",
    "Snakefile",
    "Makefile",
    "pyproject.toml",
)
MARK = "TDLIB_STRESS"  # in the environment of all that a check starts: its folder
OURS = {
    ".done",
    ".book.lock",
    ".looked.json",
    ".sessions.json",
    ".snakemake.json",
    ".snakemake.log",
    ".parent",
}
VARIES = re.compile("second|memory|_mib|hours|estimate")  # from one machine's minute to the next
OTHER_BOOT = "00000000-0000-4000-8000-000000000000"
TOO_LONG_S = 1800
TWO = ("05_progressive", "01_distill-50m-seed2")  # long; and in two processes


class Checks:
    """Says a line a check, and counts."""

    def __init__(self) -> None:
        self.held: list[bool] = []

    def __call__(self, what: str, wrong: list[str], said: str = "") -> None:
        self.held.append(not wrong)
        line = f"{'held' if not wrong else 'FAILED'} · {what}{said and f' · {said}'}"
        print("\n    ".join([line, *wrong]), flush=True)


# --- what a check starts, and how it ends


def repository(place: Path) -> Path:
    """A copy of what a book needs of this repository, with its environment."""
    place.mkdir(parents=True)
    skip = shutil.ignore_patterns("__pycache__")
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, place / name, **({"ignore": skip} if copy is shutil.copytree else {}))
    os.utime(place / "pyproject.toml", (0, 0))  # older than the environment: make sets nothing up
    (place / ".venv").symlink_to(sys.prefix)
    return place


def start(place: Path, *command: str | Path) -> subprocess.Popen:
    """A command in the copy beside `place`, a check's folder; what it says goes to said.txt."""
    place.mkdir(exist_ok=True)
    copy = place.parent / "repository"  # a part that changes it has one of its own
    known = {MARK: str(place), "PYTHONPATH": str(copy), "TDLIB_ROOT": str(copy)}
    with (place / "said.txt").open("w") as said:
        return subprocess.Popen(
            [*map(str, command)], cwd=copy, stdout=said, stderr=said, start_new_session=True,
            env=os.environ | known | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def book(place: Path, what: str = "book", *more: str) -> list[str]:
    """`make book` or another of graph's commands, on the check's own run folder."""
    named = ["PROFILE=smoke", f"OUT={place / 'out'}"]
    return [sys.executable, "-m", "tdbook", what, *named, *more]


def end_of(process: subprocess.Popen, place: Path) -> tuple[int, str]:
    """Its exit code and what it said, once all that it started has ended."""
    code, seen = process.wait(TOO_LONG_S), set()
    wait_for(lambda: _ended(place, seen), 2 * heartbeat.STOP_S)
    return code, (place / "said.txt").read_text()


def finish(place: Path, *command: str) -> list[str]:
    """Give a command and say what is wrong with how it ended."""
    code, said = end_of(start(place, *(command or book(place))), place)
    return [] if code == 0 else [f"exit code {code}: {said[-1500:]}"]


def tree(place: Path) -> list[int]:
    """All living processes that a check started, however deep."""
    return [pid for pid, _ in _processes(place)]


def _processes(place: Path) -> Iterator[tuple[int, dict[str, str]]]:
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            pairs = (path / "environ").read_bytes().decode(errors="replace").split("\0")
            known = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
            if known.get(MARK) == str(place) and alive(int(path.name)):
                yield int(path.name), known


def kill_all(place: Path) -> int:
    """SIGKILL to the whole tree at one moment: none may speak for another that is gone."""
    found = tree(place)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in {*found, *tree(place)}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    seen = set(found)
    wait_for(lambda: _ended(place, seen))
    return len(found)


def _ended(place: Path, seen: set[int]) -> bool:
    """Whether all are gone; one that is just going has lost the mark in its environment already."""
    seen.update(tree(place))
    return not any(map(alive, seen))


def training(place: Path, run: str) -> Callable[[], bool]:
    """Whether a run's notebook is amid its work."""

    def there() -> bool:
        found = heartbeat.state(place / "out", run)
        return found["state"] == "running" and 0 < found.get("step", 0) < found["steps"]

    return there


def both_at_work(place: Path) -> bool:
    """Whether a notebook is amid its work, and two workers beside it."""
    return training(place, TWO[0])() and bool(workers(place))


def workers(place: Path) -> list[int]:
    return [pid for pid, known in _processes(place) if known.get("RANK") == "1"]


# --- what must hold


def numbers(out: Path) -> dict[str, object]:
    """All that a book comes out with: metrics of its models, hashes of its files, tables, the
    hard set."""
    found: dict[str, object] = {}
    for path in sorted(out.glob("results/0[0-5]*.json")):  # 06 measures speeds
        models = json.loads(path.read_text("utf8"))["models"]
        found |= {f"{path.stem}: {name}": {k: v for k, v in row.items() if not VARIES.search(k)}
                  for name, row in models.items()}  # fmt: skip
    for path in sorted(out.glob("hashes/0[0-5]*.json")):
        outputs = json.loads(path.read_text("utf8"))["outputs"]
        found |= {f"{path.stem} wrote {name}": made["sha256"] for name, made in outputs.items()}
    for path in sorted(out.glob("tables/0[0-5]*.csv")):
        if not path.stem.endswith("-cost"):  # minutes and speeds
            found[path.name] = path.read_text("utf8")
    if (out / "hard_set.json").exists():
        found["hard_set.json"] = json.loads((out / "hard_set.json").read_text("utf8"))
    return found


def differs(out: Path, wanted: dict[str, object]) -> list[str]:
    """The first few numbers that are not those of the book that nobody disturbed."""
    found = numbers(out)
    names = sorted(name for name in found.keys() | wanted.keys()
                   if found.get(name) != wanted.get(name))  # fmt: skip
    few = [f"{n}: {str(found.get(n))[:100]!r} is not {str(wanted.get(n))[:100]!r}" for n in names]
    return [*few[:3], f"{len(names)} numbers in all differ"] if names else []


def half_written(out: Path) -> list[str]:
    """Files under their own names that cannot be read: what was begun lies under a hidden one."""
    bad = []
    for path in sorted(p for p in out.rglob("*") if p.is_file() and not _hidden(p, out)):
        try:
            match path.suffix:
                case ".json" | ".ipynb":
                    json.loads(path.read_text("utf8"))
                case ".safetensors":
                    load_file(path)
                case ".npz" | ".npy":
                    read = np.load(path)
                    [read[name] for name in getattr(read, "files", ())]
                case ".html":
                    assert path.read_text("utf8").rstrip().endswith("</html>")
        except Exception as error:  # any: the file is not what its name says
            bad.append(f"{path.relative_to(out)}: {type(error).__name__}: {error}")
    return bad


def litter(out: Path) -> list[str]:
    """What a finished book leaves of folders and files that were begun and never came to be."""
    return [f"left over: {path.relative_to(out)}" for path in sorted(out.rglob(".*"))
            if path.name not in OURS and not {".done", ".snakemake"} & {*path.parts}]  # fmt: skip


def _hidden(path: Path, out: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(out).parts)


def untrue(out: Path, wanted: dict[str, str], says: str = "") -> list[str]:
    """Where `make status`, index.html or morning.md tell of a run's state otherwise; `says`: what
    the index must say besides. Nothing may be said to run: nothing lives."""
    found, bad = {row["run"]: heartbeat.word(row) for row in status.rows(out)}, []
    text = status.text(out)
    if "running" in found.values() or " runs since " in text:
        bad.append(f"nothing runs here, and status says {text}")
    for run, word in wanted.items():
        if not re.search(rf"(?m)^{re.escape(run)} +{word}\b", text):
            bad.append(f"status of {run} is {found.get(run)}, should be {word}")
        page = (out / "index.html").read_text("utf8").partition(f'<li id="{run}">')[2]
        shown = re.search(r'class="state [\w-]+">([\w ]+)<', page)
        if not shown or shown[1] != word:
            bad.append(f"the index shows {run} as {shown and shown[1]}, should be {word}")
        elif says not in page.partition("</li>")[0]:
            bad.append(f"the index does not say {says!r} of {run}")
        if f"**{run}** {word}" not in (out / "morning.md").read_text("utf8"):
            bad.append(f"morning.md does not say that {run} is {word}")
    return bad


# --- kills


def kills(checks: Checks, place: Path, times: int, wanted: dict, whole_s: float) -> None:
    """The whole tree of a new book, killed once."""
    rng = random.Random(8)
    for i in range(times):
        here = place / f"kill-{i}"
        process, moment = _amid(here, rng, whole_s)
        count = kill_all(here)
        process.wait()
        _goes_on(checks, here, wanted, f"{count} processes killed after {moment:.0f} s")


def singles(checks: Checks, place: Path, times: int, wanted: dict, whole_s: float) -> None:
    """One process of the tree of a new book, killed; the others end by themselves."""
    rng = random.Random(9)
    for i in range(times):
        here = place / f"single-{i}"
        process, moment = _amid(here, rng, whole_s)
        found = sorted(tree(here))
        pid = rng.choice(found)
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        os.kill(pid, signal.SIGKILL)
        end_of(process, here)
        what = " ".join(Path(word).name for word in words[1:4])
        said = f"one of {len(found)} processes killed after {moment:.0f} s ({what})"
        _goes_on(checks, here, wanted, said)


def _amid(here: Path, rng: random.Random, whole_s: float) -> tuple[subprocess.Popen, float]:
    """A new book at a random moment of its life; one that had ended by then is made again."""
    while True:
        process, moment = start(here, *book(here)), rng.uniform(0, whole_s)
        try:
            process.wait(moment)
            shutil.rmtree(here)
        except subprocess.TimeoutExpired:
            return process, moment


def _goes_on(checks: Checks, here: Path, wanted: dict, said: str) -> None:
    """After a kill: how many runs it found, what is wrong then, and after the same command."""
    out = here / "out"
    kept = sorted(path.stem for path in out.glob("hashes/*.json"))
    begun = [s["run"] for s in heartbeat.states(out) if s["state"] != "done"]
    wrong = half_written(out) + (untrue(out, {}) if (out / "state").is_dir() else [])
    began = time.monotonic()
    wrong += finish(here) + differs(out, wanted) + half_written(out) + litter(out)
    took = f"{len(kept)} runs were done, amid {', '.join(begun) or 'none'}"
    checks(said, wrong, f"{took}; went on for {time.monotonic() - began:.0f} s")
    if not wrong:
        shutil.rmtree(here)


# --- six ends


def without(place: Path, name: str, *gone: str) -> Path:
    """The folder of a check that begins with a copy of the whole book but for some runs."""
    here = place / name
    shutil.copytree(place / "whole", here, symlinks=True)
    for run in gone:
        _forget(here / "out", run)
    return here


def _forget(out: Path, run: str) -> None:
    made = json.loads((out / "hashes" / f"{run}.json").read_text("utf8"))["outputs"]
    paths = [*made, f"hashes/{run}.json", f"results/{run}.json", f"state/{run}.json"]
    for path in (out / one for one in [*paths, f"checkpoints/{run}", f"{run}.ipynb"]):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def ends(checks: Checks, place: Path, times: int, wanted: dict, whole_s: float) -> None:
    for end in (sigterm, kernel, worker, full_disk, timeout, timeout_of_make, power_off):
        here, wrong, said = end(place)
        out = here / "out"
        wrong += half_written(out) if end is not power_off else []
        wrong += finish(here) + differs(out, wanted) + half_written(out) + litter(out)
        checks(f"{end.__name__}: {end.__doc__}", wrong, said)
        if end is full_disk:
            subprocess.run(["umount", out], check=True)


def sigterm(place: Path) -> tuple[Path, list[str], str]:
    """`make book` gets SIGTERM while a notebook and two workers train"""
    here = without(place, "sigterm", *TWO)
    process = start(here, *book(here))
    wait_for(lambda: both_at_work(here), 300)
    process.terminate()
    code, said = end_of(process, here)
    wrong = untrue(here / "out", dict.fromkeys(TWO, "interrupted"))
    wrong += [] if code == 130 and "the same command goes on" in said else [f"{code}: {said}"]
    return here, wrong, said.splitlines()[-1]


def kernel(place: Path) -> tuple[Path, list[str], str]:
    """a kernel gets SIGKILL"""
    run = TWO[0]
    here = without(place, "kernel", run)
    process = start(here, *book(here))
    wait_for(training(here, run), 300)
    os.kill(heartbeat.state(here / "out", run)["pid"], signal.SIGKILL)
    return _failed(here, process, run, "lost", "the kernel died")


def worker(place: Path) -> tuple[Path, list[str], str]:
    """one of two workers gets SIGKILL"""
    run = TWO[1]
    here = without(place, "worker", run)
    process = start(here, *book(here))
    wait_for(lambda: workers(here), 300)
    os.kill(workers(here)[0], signal.SIGKILL)
    return _failed(here, process, run, "failed", "process 1 of 2 failed: signal SIGKILL")


def full_disk(place: Path) -> tuple[Path, list[str], str]:
    """the disk is full amid a run"""
    run = TWO[0]
    here = without(place, "full-disk", run)
    out, kept = here / "out", here / "kept"
    out.rename(kept)
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", out]
    subprocess.run(mount, check=True)
    shutil.copytree(kept, out, dirs_exist_ok=True)
    full = shutil.disk_usage(out).used // 1024 + 200
    subprocess.run(["mount", "-o", f"remount,size={full}k", out], check=True)
    found = _failed(here, start(here, *book(here)), run, "failed", "no room for")
    subprocess.run(["mount", "-o", "remount,size=1g", out], check=True)
    return found


def _failed(here: Path, process, run: str, word: str, says: str) -> tuple[Path, list[str], str]:
    """What is wrong with how a book ended in which one run failed."""
    code, said = end_of(process, here)
    line = next((one for one in said.splitlines() if f"{run} · {word}: " in one), "")
    wrong = untrue(here / "out", {run: word}, says)
    if code != 1 or says not in line:
        wrong.append(f"exit code {code}, and no line says {says!r}: {said}")
    return here, wrong, line[:150]


def timeout(place: Path) -> tuple[Path, list[str], str]:
    """plain papermill ends a cell that takes too long"""
    run = TWO[0]
    here = without(place, "timeout", run)
    out, copy = here / "out", here.parent / "repository"
    command = [sys.executable, "-m", "papermill", f"notebooks/{run}.ipynb"]
    command += [out / f"{run}.ipynb", "-f", f"params/smoke/{run}.yaml", "-p", "out", out]
    code, said = end_of(start(here, *command, "--execution-timeout", "3"), here)
    report = [sys.executable, "-m", "tdbook", "report", out]
    subprocess.run(report, cwd=copy, check=True, capture_output=True)
    wrong = untrue(out, {run: "interrupted"})
    wrong += [] if code and "Timeout" in said else [f"exit code {code}: {said[-500:]}"]
    return here, wrong, "exit code 1, CellTimeoutError"


def timeout_of_make(place: Path) -> tuple[Path, list[str], str]:
    """`timeout 20 make book`"""
    here = without(place, "timeout-of-make", *TWO)
    told = ["PROFILE=smoke", f"OUT={here / 'out'}"]
    code, said = end_of(start(here, "timeout", "20", "make", "book", *told), here)
    stopped = {
        s["run"]: "interrupted" for s in heartbeat.states(here / "out") if s["state"] != "done"
    }
    wrong = untrue(here / "out", stopped) + ([] if stopped else ["nothing was running"])
    wrong += [] if code == 124 else [f"exit code {code}: {said}"]
    return here, wrong, f"interrupted {', '.join(stopped)}"


def power_off(place: Path) -> tuple[Path, list[str], str]:
    """all is gone at once, and another boot has given its processes' numbers to others"""
    here = without(place, "power-off", *TWO)
    out, copy = here / "out", here.parent / "repository"
    start(here, *book(here))
    wait_for(lambda: both_at_work(here), 300)
    kill_all(here)
    wrong = half_written(out)
    other = {"boot": OTHER_BOOT, "pid": os.getpid(), "pid_started": heartbeat.started(os.getpid())}
    for run in TWO:
        path = out / f"state/{run}.json"
        path.write_text(json.dumps(json.loads(path.read_text("utf8")) | other))
    kept = status.sessions(out)
    (out / status.SESSIONS).write_text(json.dumps([*kept[:-1], kept[-1] | other]))
    (out / f"state/{TWO[0]}.json").write_text("")  # renamed, its content not on the disk yet
    report = [sys.executable, "-m", "tdbook", "report", out]
    done = subprocess.run(report, cwd=copy, capture_output=True, text=True)
    wrong += [] if done.returncode == 0 else [done.stdout + done.stderr]
    return here, wrong + untrue(out, dict.fromkeys(TWO, "lost")), "both runs are lost"


# --- a sweep


def sweep(checks: Checks, place: Path, times: int, wanted: dict, whole_s: float) -> None:
    """Forty points, interrupted twice; then another value."""
    copy = repository(place / "swept/repository")
    here = without(place, "swept/forty")
    folder, sweep_ = here / "out/sweeps/forty", book(here, "sweep", "NAME=forty")
    before = {}
    for how, share in ((signal.SIGKILL, 0.25), (signal.SIGTERM, 0.6)):
        process = start(here, *sweep_)
        wait_for(lambda share=share: len(ended(folder)) >= 40 * share, TOO_LONG_S)
        time.sleep(random.Random(8).uniform(0, 5))
        if how == signal.SIGKILL:
            kill_all(here)
            process.wait()
        else:
            process.terminate()
            end_of(process, here)
        now = ended(folder)
        wrong = half_written(here / "out") + untrue(here / "out", {}) + untrue(folder, {})
        wrong += [f"{p} was run twice" for p in before if now.get(p) != before[p]]
        checks(f"sweep forty, {how.name}", wrong, f"{len(now)} of 40 points were done")
        before = now
    wrong = finish(here, *sweep_) + half_written(here / "out") + litter(here / "out")
    now = ended(folder)
    wrong += [f"{p} was run twice" for p in before if now.get(p) != before[p]]
    wrong += [] if len(now) == 40 else [f"{len(now)} of 40 points are done"]
    wrong += untrue(folder, {}) + differs(here / "out", wanted)
    checks("sweep forty goes on twice: complete, no point twice", wrong, f"{len(now)} points")
    before = now

    _add_value(copy)
    wrong = finish(here, *sweep_)
    now = ended(folder)
    new = now.keys() - before.keys()
    wrong += [f"{p} was run twice" for p in before if now.get(p) != before[p]]
    wrong += [] if len(new) == 20 and all("rank8" in p for p in new) else [f"new: {sorted(new)}"]
    checks("one value more runs the new points alone", wrong, f"{len(new)} points")


def _add_value(copy: Path) -> None:
    path = copy / "params/smoke/sweeps/forty.yaml"
    given = yaml.safe_load(path.read_text("utf8"))
    given["grid"]["rank"].append(8)
    path.write_text(yaml.safe_dump(given, sort_keys=False))  # their order names the points


def ended(folder: Path) -> dict[str, tuple]:
    """Points that are done → when each began, and when that was written down."""
    found = {}
    for path in folder.glob("*/hashes/03_lora-*.json"):
        record = path.parents[1] / "results" / path.name
        began = json.loads(record.read_text("utf8"))["started"]
        found[path.parents[1].name] = (began, path.stat().st_mtime_ns)
    return found


def comment(checks: Checks, place: Path, times: int, wanted: dict, whole_s: float) -> None:
    """A profile that is not quick, as a copy of smoke; then a comment in tdlib."""
    copy = repository(place / "commented/repository")
    here = place / "commented/night"
    shutil.copytree(copy / "params/smoke", copy / "params/night")
    for path in (copy / "params/night").glob("*.yaml"):
        path.write_text(path.read_text("utf8").replace("profile: smoke", "profile: night"))
    night = [sys.executable, "-m", "tdbook", "sweep", "PROFILE=night", "NAME=rank"]
    night.append(f"OUT={here / 'out'}")
    wrong = finish(here, *night)
    with (copy / "tdlib/shapes.py").open("a") as code:
        code.write("# another comment\n")
    folder = here / "out/sweeps/rank"
    before = {path: path.stat().st_mtime_ns for path in here.rglob("hashes/*.json")}
    wrong += finish(here, *night)
    said = (here / "said.txt").read_text()
    wrong += [line for line in said.splitlines() if "started" in line]
    wrong += [f"{path} is new" for path, when in before.items() if path.stat().st_mtime_ns != when]
    for place_, run in ((here / "out", "01_distill-50m"), (folder, "03_lora-rank2-lora_scale0.5")):
        told = [sys.executable, "-m", "tdbook", "status", f"OUT={place_}"]
        text = subprocess.run(told, cwd=copy, capture_output=True, text=True).stdout
        wrong += [] if re.search(rf"(?m)^{run} +stale", text) else [f"not stale: {text}"]
        page = (place_ / "index.html").read_text("utf8").partition(f'<li id="{run}">')[2]
        wrong += [] if "stale: made by older code" in page.partition("</li>")[0] else ["the index"]
    checks("a comment repeats nothing in a profile of nights, and shows as stale", wrong,
           f"{len(before)} runs and points")  # fmt: skip

    here = without(place, "commented/quick")
    wrong = finish(here, *book(here, "book", "ONLY=00_teacher"))
    said = (here / "said.txt").read_text()
    wrong += [] if "00_teacher · started" in said else [said]
    checks("in smoke it does", wrong)


# --- two at once


def beside(checks: Checks, place: Path, times: int, wanted: dict, whole_s: float) -> None:
    two = [place / "one", place / "other"]
    started = [start(here, *book(here)) for here in two]
    wrong = [said for process, here in zip(started, two, strict=True)
             for code, said in [end_of(process, here)] if code]  # fmt: skip
    for here in two:
        wrong += differs(here / "out", wanted) + half_written(here / "out") + litter(here / "out")
    checks("two books at once in two folders", wrong)
    for check in (_plain, _locked, _redo):
        check(checks, place, wanted)


def _plain(checks: Checks, place: Path, wanted: dict) -> None:
    here = without(place, "plain", *TWO)
    out, started = here / "out", []
    for run in TWO:
        command = [sys.executable, "-m", "papermill", f"notebooks/{run.split('-')[0]}.ipynb"]
        command += [out / f"{run}.ipynb", "-f", f"params/smoke/{run}.yaml", "-p", "out", out]
        started.append(start(here, *command))
    wrong = [f"exit code {code}" for p in started for code, _ in [end_of(p, here)] if code]
    wrong += finish(here)
    said = (here / "said.txt").read_text()
    wrong += [said] if "started" in said else []
    wrong += differs(out, wanted) + half_written(out) + litter(out) + untrue(out, {})
    checks("two plain papermill at once in one folder, then a book with nothing to do", wrong)


def _locked(checks: Checks, place: Path, wanted: dict) -> None:
    run = TWO[0]
    here = without(place, "locked", run)
    first = start(here, *book(here))
    wait_for(training(here, run), 300)
    env = os.environ | {"PYTHONPATH": str(place / "repository")}
    second = subprocess.run(
        book(here, "book", f"ONLY={run}"), cwd=place / "repository", env=env,
        capture_output=True, text=True,
    )  # fmt: skip
    told = f"process {first.pid} (make book PROFILE=smoke OUT={here / 'out'})"
    wrong = [] if second.returncode == 1 and told in second.stdout else [second.stdout]
    code, said = end_of(first, here)
    wrong += ([said] if code else []) + differs(here / "out", wanted) + litter(here / "out")
    checks("two `make book` at once: the second says who holds the lock", wrong, second.stdout)


def _redo(checks: Checks, place: Path, wanted: dict) -> None:
    run = TWO[0]
    here = without(place, "redo")
    out, again = here / "out", book(here, "book", f"REDO={run}")
    record = json.loads((out / f"results/{run}.json").read_text("utf8"))
    model = (out / "models/75m/model.safetensors").read_bytes()
    for _ in range(2):
        process = start(here, *again)
        wait_for(training(here, run), 300)
        kill_all(here)
        process.wait()
    wrong = finish(here, *again) + differs(out, wanted) + litter(out)
    old = [path for path in (out / "old").glob("*") if path.name.startswith(run)]
    kept = [(path / "models/75m/model.safetensors").read_bytes() == model for path in old]
    wrong += [] if kept == [True] else [f"old/ has {old}, same model: {kept}"]
    now = json.loads((out / f"results/{run}.json").read_text("utf8"))
    wrong += [] if now["started"] > record["started"] else ["it was not repeated"]
    checks("REDO, killed twice, goes on and keeps the old model once", wrong)


# ---

PARTS = {one.__name__: one for one in (kills, singles, ends, sweep, comment, beside)}


def main(times: int, parts: list[str]) -> tuple[int, int]:
    """How many checks held, of how many."""
    checks = Checks()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        repository(place / "repository")
        whole, began = place / "whole", time.monotonic()
        wrong = finish(whole)
        whole_s = time.monotonic() - began
        wrong += half_written(whole / "out") + litter(whole / "out")
        checks("a book that nobody disturbs", wrong, f"{whole_s:.0f} s")
        wanted = numbers(whole / "out")
        for name in parts or PARTS:
            PARTS[name](checks, place, times, wanted, whole_s)
    print(f"{sum(checks.held)} of {len(checks.held)} held: the book, {', '.join(parts or PARTS)}")
    return sum(checks.held), len(checks.held)
