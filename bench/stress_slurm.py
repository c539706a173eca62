"""The book on a real SLURM of one node, without an accounting database: part of `make stress`.

    python -m bench.stress_slurm

Jobs are cancelled, killed and run out of time; the command that submitted them is stopped, killed
and forgotten. After each, every run's state must be true, and the same command must complete all,
none of it twice, with the numbers of runs that nobody disturbed. Needs root and bench/slurm.py's
packages. Every run trains for some seconds, so that it can be caught in the middle.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
import yaml

from bench import slurm
from tdbook.runs import heartbeat

ROOT = Path(__file__).parents[1]
POINTS = "rank: [1, 2, 3, 4]"
TWO = "ONLY=03_lora"  # of the book
# the real patience is ten minutes
HASTY = """import sys
from tdbook import __main__
from tdbook.workflow import scheduler
scheduler.FORGOTTEN_S = 100
sys.exit(__main__.main(sys.argv[1:]))"""


class Place:
    """A repository whose small runs are long enough, its SLURM, and a base that 03 starts from."""

    def __init__(self, folder: Path):
        self.root, self.count, self.started = folder / "root", 0, []
        for name in ("notebooks", "profiles", "params/smoke"):
            shutil.copytree(ROOT / name, self.root / name)
        shutil.copy(ROOT / "Snakefile", self.root)
        for path in (self.root / "params/smoke").glob("03*.yaml"):
            path.write_text(re.sub("epochs: .*", "epochs: 80", path.read_text()))
        sweep = f"question: Four.\nlike: 03_lora-hard\ngrid:\n  {POINTS}\n"
        (self.root / "params/smoke/sweeps/four.yaml").write_text(sweep)
        path = self.root / "profiles/slurm/config.yaml"
        self.asked = yaml.safe_load(path.read_text())
        self.asked |= {"jobs": 2, "latency-wait": 5, "slurm-keep-successful-logs": True}
        self.asked["slurm-init-seconds-before-status-checks"] = 1
        self.asked["default-resources"]["mem_mb"] = 500
        self.asked["config"]["cpus"] = 1
        path.write_text(yaml.safe_dump(self.asked))
        self.slurm = slurm.Slurm(folder / "slurm")
        here = {"TDLIB_ROOT": str(self.root), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.environment = self.slurm.environment | here

    def start(self, what: str, out: str, *words: str, how=("-m", "tdbook")) -> subprocess.Popen:
        command = [sys.executable, *how, what, "PROFILE=smoke", f"OUT={out}", *words]
        self.started.append(subprocess.Popen(
            command, cwd=self.root, env=self.environment, text=True, stdout=subprocess.PIPE,
            start_new_session=True,
        ))  # fmt: skip
        return self.started[-1]

    def make(self, *words: str) -> tuple[str, int]:
        process = self.start(*words)
        return process.communicate(timeout=1800)[0], process.returncode

    def copy(self) -> str:
        """The base, as a run folder of its own."""
        self.count += 1
        shutil.copytree(self.root / "base", self.root / f"out{self.count}", symlinks=True)
        return f"out{self.count}"

    def states(self, out: str) -> dict[str, dict]:
        """Of all runs of 03, the sweep's points too."""
        found = (self.root / out).glob("**/state/03_*.json")
        return {p.stem: heartbeat.state(p.parents[1], p.stem) for p in sorted(found)}

    def training(self, out: str) -> dict[str, dict]:
        """Those in the middle of their training, as they are now."""
        found = self.states(out).items()
        return {n: s for n, s in found if s["state"] == "running" and s.get("step", 0) > 5
                and s["step"] < s["steps"] - 50}  # fmt: skip

    def jobs(self) -> dict[str, str]:
        """Rule → number, of all jobs that wait or run."""
        rows = self.slurm.ask("squeue", "-h", "-o", "%k %i").splitlines()
        return dict(row.removeprefix("rule_").split() for row in rows)

    def job_of(self, run: str) -> str:
        rule = re.sub(r"\W", "_", run)
        return next(job for name, job in self.jobs().items() if name.endswith(rule))

    def said(self, out: str) -> Counter:
        """How often each run of 03 was started, and done, by the jobs of a run folder."""
        logs = (path.read_text() for path in (self.root / out).glob(".slurm/*/*.log"))
        return Counter(re.findall(r"^(03_\S+) · (started|done in)", "\n".join(logs), re.M))

    def numbers(self, out: str) -> dict[str, dict]:
        """What each run of 03 measured; nothing about time."""
        found = (self.root / out).glob("**/results/03_*.json")
        rows = {path.stem: json.loads(path.read_text())["models"] for path in sorted(found)}
        return json.loads(json.dumps(rows), object_hook=untimed)

    def kept(self, out: str, run: str) -> int:
        """The step of a run's checkpoint."""
        path = next((self.root / out).glob(f"**/checkpoints/{run}/*/state.pt"))
        return int(torch.load(path, weights_only=True)["step"])


def untimed(row: dict) -> dict:
    return {name: value for name, value in row.items() if "second" not in name}


def until(condition, seconds: float = 900):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
    return found


def once(place: Place, out: str, again: tuple[str, ...] = ()) -> bool:
    """Every run of 03 was done by one job, and started by no more; those in `again` twice."""
    said = place.said(out)
    starts = {run: said[run, "started"] for run in place.states(out)}
    return all(said[run, "done in"] == 1 and n == 1 + (run in again) for run, n in starts.items())


# --- what is done to it: each returns what it saw, and what held


def cancelled(place: Place, wanted: dict) -> dict[str, bool]:
    """A sweep of four points, two jobs at a time; one is scancelled in its training."""
    out, most, seen = place.copy(), 0, {}
    command = ("sweep", out, "NAME=four", "CLUSTER=slurm")
    process = place.start(*command)
    victim, at = next(iter(until(lambda: place.training(out)).items()))
    place.slurm.ask("scancel", place.job_of(victim))
    until(lambda: place.states(out)[victim]["state"] != "running")
    seen["its state is interrupted"] = place.states(out)[victim]["state"] == "interrupted"
    kept = place.kept(out, victim)
    seen[f"step {kept} kept, seen at {at['step']}"] = kept >= at["step"]
    visible = set()
    while process.poll() is None:
        most = max(most, len(place.jobs()))
        visible |= gpus(place)
        time.sleep(1)
    said = process.stdout.read()
    states = place.states(out)
    seen["the command says so and fails"] = process.returncode == 1 and any(
        victim in line and "interrupted" in line for line in said.splitlines()[-8:]
    )
    seen["the other three done"] = [s["state"] for s in states.values()].count("done") == 3
    seen[f"at most {most} jobs at once"] = most == 2
    seen[f"each sees one GPU: {sorted(visible)}"] = visible == {"0", "1"}
    said, code = place.make(*command)
    seen["the same command completes it"] = code == 0 and "5 of 5 runs done" in said
    seen["it alone was started again"] = once(place, out, (victim,))
    seen["numbers as undisturbed"] = place.numbers(out) == wanted["sweep"]
    return seen


def gpus(place: Place) -> set[str]:
    """What the kernels that live there see of the GPUs."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if "ipykernel_launcher" in (path / "cmdline").read_text():
                words = (path / "environ").read_text().split("\0")
                words = words if f"TDLIB_ROOT={place.root}" in words else []
                found |= {w.partition("=")[2] for w in words if w.startswith("CUDA_VISIBLE_DEV")}
        except OSError:  # gone meanwhile
            pass
    return found


def killed_command(place: Place, wanted: dict) -> dict[str, bool]:
    """SIGKILL of the command and its Snakemake, while jobs run; the same command again."""
    out, seen = place.copy(), {}
    command = ("sweep", out, "NAME=four", "CLUSTER=slurm")
    process = place.start(*command)
    until(lambda: len(place.jobs()) == 2 and place.training(out))
    process.kill()
    process.wait()
    seen["its jobs go on"] = len(place.jobs()) == 2
    said, code = place.make(*command)
    seen["its jobs are waited for"] = "waits for jobs of an earlier command" in said
    seen["the same command completes it"] = code == 0 and "5 of 5 runs done" in said
    seen["no run was started twice"] = once(place, out)
    seen["numbers as undisturbed"] = place.numbers(out) == wanted["sweep"]
    return seen


def stopped_command(place: Place, wanted: dict) -> dict[str, bool]:
    """SIGTERM, as Ctrl-C, to the command."""
    out, seen = place.copy(), {}
    process = place.start("book", out, TWO, "CLUSTER=slurm")
    until(lambda: len(place.training(out)) == 2)
    before = place.training(out)
    process.send_signal(signal.SIGTERM)
    said, code = process.communicate(timeout=90)[0], process.returncode
    seen["it ends with 130 and cancels its jobs"] = code == 130 and "scancel" in said
    seen["no job is left"] = not place.jobs()
    states = place.states(out)
    seen["both interrupted"] = [s["state"] for s in states.values()] == 2 * ["interrupted"]
    seen["both kept their step"] = all(place.kept(out, r) >= s["step"] for r, s in before.items())
    said, code = place.make("book", out, TWO, "CLUSTER=slurm")
    seen["the same command completes it"] = code == 0 and "2 of 2 runs done" in said
    seen["each was started twice"] = once(place, out, tuple(states))
    seen["numbers as undisturbed"] = place.numbers(out) == wanted["book"]
    return seen


def out_of_time_and_killed(place: Place, wanted: dict) -> dict[str, bool]:
    """One job's time is over; kernel and papermill of another are killed with SIGKILL."""
    out, seen = place.copy(), {}
    process = place.start("book", out, TWO, "CLUSTER=slurm")
    late, dead = until(lambda: len(f := sorted(place.training(out))) == 2 and f)
    at = place.training(out)[late]["step"]
    kernel = place.states(out)[dead]["pid"]
    papermill = int(Path(f"/proc/{kernel}/stat").read_text().rpartition(")")[2].split()[1])
    for pid in (papermill, kernel):  # scancel --signal=KILL would send SIGTERM first
        os.kill(pid, signal.SIGKILL)
    place.slurm.ask("scontrol", "update", f"JobId={place.job_of(late)}", "EndTime=now")
    until(lambda: "running" not in {s["state"] for s in place.states(out).values()})
    states = {run: s["state"] for run, s in place.states(out).items()}
    seen[f"SIGKILL: {states[dead]}"] = states[dead] == "lost"
    seen[f"out of time: {states[late]}"] = states[late] in ("interrupted", "done")
    if states[late] == "interrupted":
        kept = place.kept(out, late)
        seen[f"step {kept} kept, seen at {at}"] = kept >= at
    said, code = process.communicate(timeout=900)[0], process.returncode
    seen["the command fails"] = code == 1
    said, code = place.make("book", out, TWO, "CLUSTER=slurm")
    seen["the same command completes it"] = code == 0 and "2 of 2 runs done" in said
    seen["numbers as undisturbed"] = place.numbers(out) == wanted["book"]
    return seen


def forgotten(place: Place, wanted: dict) -> dict[str, bool]:
    """SLURM forgets a job that has ended before Snakemake asked: it would wait for ever."""
    out, seen = place.copy(), {}
    process = place.start("book", out, TWO, "CLUSTER=slurm", how=("-c", HASTY))
    until(lambda: len(place.training(out)) == 2)
    snakemake = child_of(process.pid)
    os.kill(snakemake, signal.SIGSTOP)  # a login node that sleeps; or SLURM is quicker to forget
    place.slurm.forget()
    os.kill(snakemake, signal.SIGCONT)
    said, code = process.communicate(timeout=900)[0], process.returncode
    seen["Snakemake is started again"] = "it is started again" in said
    seen["all is done"] = code == 0 and "2 of 2 runs done" in said
    seen["no run was started twice"] = once(place, out)
    seen["numbers as undisturbed"] = place.numbers(out) == wanted["book"]
    return seen


def child_of(parent: int) -> int:
    """The Snakemake that a command started."""
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return next(int(p) for p in found if "snakemake" in Path(f"/proc/{p}/cmdline").read_text())


def main(names: list[str]) -> tuple[int, int]:
    """A line a check; how many held, of how many."""
    tried = [cancelled, killed_command, stopped_command, out_of_time_and_killed, forgotten]
    if missing := slurm.missing():
        print(f"no SLURM is tried, for want of {', '.join(missing)}: {slurm.APT}")
        return 0, len(tried)
    held = 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        place = Place(Path(folder))
        try:
            began = time.monotonic()
            said, code = place.make("book", "base", "ONLY=02_hard_set 01_distill")
            assert code == 0, said
            book, sweep = place.copy(), place.copy()
            place.make("book", book, TWO)
            place.make("sweep", sweep, "NAME=four")
            wanted = {"book": place.numbers(book), "sweep": place.numbers(sweep)}
            assert (len(wanted["book"]), len(wanted["sweep"])) == (2, 4), wanted
            print(f"undisturbed, without a cluster: {time.monotonic() - began:.0f} s", flush=True)
            for one in (t for t in tried if not names or t.__name__ in names):
                began = time.monotonic()
                seen = one(place, wanted)
                held += all(seen.values())
                took, what = time.monotonic() - began, one.__name__.replace("_", " ")
                lines = [f"{said}: {'yes' if true else 'NO'}" for said, true in seen.items()]
                print(f"SLURM, {what} ({took:.0f} s): {', '.join(lines)}", flush=True)
        finally:
            for process in place.started:
                process.kill()
            place.slurm.stop()
    print(f"{held} of {len(names or tried)} held on SLURM", flush=True)
    return held, len(names or tried)


if __name__ == "__main__":
    held, tried = main(sys.argv[1:])
    sys.exit(held < tried)
