"""Many runs: Snakemake decides the order, the summary says what came out.

With CLUSTER=slurm Snakemake submits a job a run, as profiles/slurm asks. Jobs outlive the command
that submitted them. Their names begin with that of the run folder, so that the same command, given
again, finds them in the queue and waits until they have left it.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from tdbook.runs import hashes, heartbeat, ownership, parameters, sweeps
from tdbook.runs.parameters import shown
from tdbook.workflow import execute, graph, status
from tdbook.workflow.graph import BookRun, Wanted
from tdlib import files

ASK_S = 5  # between two looks at the queue
FORGOTTEN_S = 600  # without a job in it; Snakemake looks every 3 minutes at least
STOP_S = 60  # that cancelled jobs get to leave it: SLURM kills after its KillWait, 30 s


def make(wanted: Wanted) -> int:
    """Bring a run folder up to date with Snakemake; returns the exit code."""
    out, runs = parameters.ROOT / wanted.out, graph.jobs(wanted.config)
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not (lock := execute.locked(out / ".book.lock")):
        who = f"process {now['pid']}" if (now := status.live(out)) else "another command"
        raise RuntimeError(f"{out} is being made by {who}: wait for it, or end it")
    with lock:
        if wanted.cluster:
            wait_for_jobs(out)
        prepare(wanted.config)
        graph.judged(wanted, runs)
        began, targets = time.time(), graph.targets_of(wanted, runs)
        with status.session(out, targets, wanted.command, wanted.price) as session:
            session["code"] = code = _snakemake(wanted, targets)
        return _summary(out, [runs[name] for name in targets], code, began)


def prepare(config: dict) -> dict[str, BookRun]:
    """`jobs`; every point of a sweep gets its YAML."""
    runs = graph.jobs(config)
    for name in config["sweeps"]:
        sweeps.write(sweeps.read(config["profile"], name), parameters.ROOT / config["out"])
    return runs


def _not_yet_redone(wanted: Wanted, runs: dict[str, BookRun]) -> tuple[str, ...]:
    """The runs that REDO names, but for those that this same command, stopped since, has redone."""
    began = math.inf
    for one in reversed(status.sessions(parameters.ROOT / wanted.out)):
        if one["command"] != wanted.command or one["code"] == 0:
            break
        began = one["began"]
    kept = {name: runs[name].out / f"hashes/{runs[name].run}.json" for name in wanted.redo}
    return tuple(n for n, p in kept.items() if not p.exists() or p.stat().st_mtime < began)


def _snakemake(wanted: Wanted, targets: list[str]) -> int:
    """Run Snakemake until these targets are made; 130 where it was stopped."""
    out = parameters.ROOT / wanted.out
    wanted = replace(wanted, redo=_not_yet_redone(wanted, graph.jobs(wanted.config)))
    runs = graph.jobs(wanted.config)
    for place in {out, *(one.out for one in runs.values())}:
        ownership.clear(place)
    command = _command_of(wanted, runs, targets)
    if not wanted.cluster:  # a lost connection to the login node must not cancel jobs
        heartbeat.die_with_parent()
    how = dict(cwd=parameters.ROOT, preexec_fn=lambda: heartbeat.die_with_parent(signal.SIGKILL))
    how |= dict(start_new_session=True)  # Ctrl-C reaches this process alone, which ends the others
    with (out / ".snakemake.log").open("w") as log:
        child = subprocess.Popen(command, stderr=log, **how)
    try:
        if not wanted.cluster:
            return child.wait()
        if follow(out, child):
            return child.returncode
    except KeyboardInterrupt:
        child.kill()  # its runs then get a SIGTERM; Snakemake itself would wait for them
        child.wait()
        if wanted.cluster:
            cancel(out)
        end = time.monotonic() + heartbeat.STOP_S
        while time.monotonic() < end and "running" in (s["state"] for s in heartbeat.states(out)):
            time.sleep(0.2)
        return 130
    return _snakemake(wanted, targets)


def _command_of(wanted: Wanted, runs: dict[str, BookRun], targets: list[str]) -> list:
    """Snakemake's command line. First every run that is current gets its mark, others lose it."""
    out, now = parameters.ROOT / wanted.out, time.time()
    reasons = hashes.judge(runs, runs, wanted.before)
    for name, one in runs.items():
        one.mark.parent.mkdir(parents=True, exist_ok=True)
        if reasons[name]:
            one.mark.unlink(missing_ok=True)
        else:
            one.mark.touch()
            os.utime(one.mark, (now, now))
    content = json.dumps(wanted.config)
    files.write_whole(kept := out / graph.CONFIG, content)
    if wanted.cluster:  # a file for every command: a job may read it after the next one
        kept = out / f".slurm/{hashlib.sha256(content.encode()).hexdigest()[:8]}.json"
        files.write_whole(kept, content)
    # in .done, for a repository of somebody else may not be written
    command = [sys.executable, "-m", "snakemake", "--nolock", "--directory", out / ".done"]
    command += ["--snakefile", parameters.ROOT / "Snakefile", "--configfile", kept]
    command += ["--workflow-profile", parameters.ROOT / "profiles" / (wanted.cluster or "default")]
    if wanted.cluster:
        command += ["--slurm-jobname-prefix", prefix(out), "--slurm-logdir", out / ".slurm"]
    else:
        command += ["--resources", f"gpu={len(execute.slots())}"]
    return [*command, "--", *(os.path.relpath(runs[name].mark, out / ".done") for name in targets)]


def _summary(out: Path, targets: list[BookRun], code: int, began: float) -> int:
    """The last lines: what failed and where to read why; then the index."""
    from tdbook.workflow import run_pages  # slow to import

    for folder in dict.fromkeys([out, *(one.out for one in targets)]):
        execute.pages(folder)
    index = run_pages.refresh(out)
    for name in dict.fromkeys(one.sweep for one in targets if one.sweep):
        run_pages.refresh(sweeps.folder(out, name))
        index = next(out.glob("compare.html"), index)  # the points side by side
    trouble = status.morning(out)["trouble"]
    bad = [one for one in trouble if one["state"].get("heartbeat", 0.0) >= began]
    undone = [one for one in targets if not one.mark.exists()]
    log = (out / ".snakemake.log").read_text(encoding="utf8")
    # what sbatch said of jobs that it did not take
    refused = re.findall(r"SLURM sbatch failed\. The error message was '(.*)'\.$", log, re.M)
    ended = [one["folder"] / one["run"] for one in bad]
    waiting = [one.name for one in undone if one.out / one.run not in ended]
    about = {"done": len(targets) - len(undone), "all": len(targets), "index": shown(index)}
    about |= {"code": code, "log": log[-2000:], "last_words": execute.last_words}
    print(status.filled("summary", bad=bad, refused=refused, waiting=waiting, **about))
    return code if code == 130 else int(bool(code or undone))


def wait_for_jobs(out: Path) -> None:
    """Wait for the jobs of an earlier command. RuntimeError: SLURM does not answer."""
    if jobs := queue(out):
        print(f"waits for jobs of an earlier command: {' '.join(sorted(jobs))}", flush=True)
    while queue(out):
        time.sleep(ASK_S)


def prefix(out: Path) -> str:
    """A run folder as part of a job's name: what it is called, and where it lies."""
    where = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9-]', '-', out.resolve().name)[:32]}-{where}"


def queue(out: Path) -> set[str]:
    """A run folder's jobs, waiting or running. RuntimeError: SLURM does not answer."""
    ask = ["squeue", f"--user={os.getuid()}", "--noheader", "--format=%i|%j"]
    done = subprocess.run(ask, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise RuntimeError(f"SLURM does not answer ({said}): try again when squeue does")
    rows = [line.split("|") for line in done.stdout.splitlines()]
    return {job for job, name in rows if name.startswith(f"{prefix(out)}_")}


def follow(out: Path, snakemake: subprocess.Popen) -> bool:
    """Wait for Snakemake. False: the queue was empty for long, and it was killed."""
    seen = time.monotonic()  # a controller that was silent, or forgot a job, leaves it waiting
    while time.monotonic() - seen <= FORGOTTEN_S:
        if snakemake.poll() is not None:
            return True
        time.sleep(ASK_S)
        with contextlib.suppress(RuntimeError):
            if not queue(out):
                continue
        seen = time.monotonic()
    print("no job is in the queue: Snakemake is started again", flush=True)
    snakemake.kill()
    snakemake.wait()
    return False


def cancel(out: Path) -> None:
    """End the jobs of a run folder; their runs keep their state first."""
    cancelled, end = set(), time.monotonic() + STOP_S
    while (jobs := queue(out)) and time.monotonic() < end:
        if new := sorted(jobs - cancelled):
            print(f"scancel {' '.join(new)}: their runs keep their state", flush=True)
            subprocess.run(["scancel", *new])
        cancelled |= jobs
        time.sleep(1)
