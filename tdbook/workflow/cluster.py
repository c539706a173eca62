"""A SLURM cluster: with CLUSTER=slurm Snakemake submits a job a run, as profiles/slurm asks.

Jobs outlive the command that submitted them. Their names begin with that of the run folder, so that
the same command, given again, finds them in the queue and waits for them instead of running twice.
Imports no torch.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from tdbook.runs import parameters
from tdbook.runs.parameters import ParameterError, nearest, shown
from tdlib.files import write_whole as write

ASK_S = 5  # between two looks at the queue
FORGOTTEN_S = 600  # without a job in it; Snakemake looks every 3 minutes at least
STOP_S = 60  # that cancelled jobs get to leave it: SLURM kills after its KillWait, 30 s


def check(name: str) -> str:
    """The name, or "" for none. ParameterError: no such profile, or no SLURM here."""
    if not name:
        return ""
    names = sorted({path.name for path in (parameters.ROOT / "profiles").iterdir()} - {"default"})
    if name not in names:
        remedy = nearest(name, names)
        raise ParameterError(f"CLUSTER={name}: no profiles/{name}/config.yaml for one: {remedy}")
    if not shutil.which("sbatch"):
        raise ParameterError(
            f"CLUSTER={name} needs SLURM, and this machine has no sbatch: give the command on a "
            "login node of the cluster, or leave CLUSTER out"
        )
    return name


def begin(out: Path, name: str) -> None:
    """Say where the jobs go. RuntimeError: SLURM does not answer."""
    queue(out)
    profile = shown(parameters.ROOT / f"profiles/{name}/config.yaml")
    words = f"jobs go to SLURM as {profile} says: see `squeue --me` and {shown(out / '.slurm')}"
    print(words, flush=True)


def options(out: Path, name: str, config: dict) -> list[str]:
    """Snakemake's, for the jobs of a run folder."""
    folder, content = out / ".slurm", json.dumps(config)
    # a file of its own for every command: a job may read it when another has been given
    path = folder / f"{hashlib.sha256(content.encode()).hexdigest()[:8]}.json"
    write(path, content)
    words = ["--workflow-profile", str(parameters.ROOT / "profiles" / name)]
    words += ["--configfile", str(path), "--slurm-jobname-prefix", prefix(out)]
    return [*words, "--slurm-logdir", str(folder)]


def queue(out: Path) -> dict[str, str]:
    """The jobs of a run folder that wait or run, whoever submitted them: number by Snakemake's
    rule. RuntimeError: SLURM does not answer."""
    rows = [line.split("|") for line in _squeue("--format=%i|%j|%k")]
    own = ((comment, job) for job, name, comment in rows if name.startswith(f"{prefix(out)}_"))
    return {comment.removeprefix("rule_"): job for comment, job in own}


def wait(job: str) -> None:
    """Until it has left the queue."""
    while True:
        with contextlib.suppress(RuntimeError):  # a controller that starts again
            if job not in _squeue("--format=%i"):
                return
        time.sleep(ASK_S)


def end_if_forgotten(out: Path, snakemake: subprocess.Popen) -> None:
    """Kill a Snakemake that waits while nothing is in the queue. It would for ever: it loses its
    jobs where the controller does not answer for a minute, or forgets them (MinJobAge) before it
    was asked again."""
    seen = time.monotonic()
    while snakemake.poll() is None:
        try:
            waits = not queue(out)
        except RuntimeError:
            waits = False
        seen = seen if waits else time.monotonic()
        if time.monotonic() - seen > FORGOTTEN_S:
            line = "no job is in the queue, and Snakemake waits for one: it is started again"
            print(line, flush=True)
            snakemake.kill()
        time.sleep(ASK_S)


def cancel(out: Path) -> None:
    """End the jobs of a run folder; their runs keep their state first."""
    cancelled, end = set(), time.monotonic() + STOP_S
    while (jobs := set(queue(out).values())) and time.monotonic() < end:
        if new := jobs - cancelled:
            print(f"scancel {' '.join(sorted(new))}: their runs keep their state", flush=True)
            subprocess.run(["scancel", *new])
        cancelled |= jobs
        time.sleep(1)


def refusals(log: str) -> list[str]:
    """What sbatch said of jobs that it did not take, from Snakemake's log."""
    errors = re.findall(r"SLURM sbatch failed\. The error message was '(.*)'\.$", log, re.M)
    return [f"sbatch: {error}" for error in dict.fromkeys(errors)]


def _squeue(form: str) -> list[str]:
    ask = ["squeue", f"--user={os.getuid()}", "--noheader", form]
    done = subprocess.run(ask, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise RuntimeError(f"SLURM does not answer ({said}): try again when squeue does")
    return done.stdout.splitlines()


def prefix(out: Path) -> str:
    """A run folder as part of a job's name: what it is called, and where it lies."""
    out = out.resolve()
    where = hashlib.sha256(str(out).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9-]', '-', out.name)[:32]}-{where}"
