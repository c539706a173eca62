"""A SLURM cluster: with CLUSTER=slurm Snakemake submits a job a run, as profiles/slurm asks.

Jobs outlive the command that submitted them. Their names begin with that of the run folder, so that
the same command, given again, finds them in the queue and waits until they have left it.
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
from tdbook.runs.parameters import ParameterError, nearest
from tdlib import files

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
        fault = f"CLUSTER={name} needs SLURM, and this machine has no sbatch"
        raise ParameterError(f"{fault}: give the command on a login node, or leave CLUSTER out")
    return name


def begin(out: Path, name: str) -> None:
    """Wait for the jobs of an earlier command. RuntimeError: SLURM does not answer."""
    jobs = queue(out)
    for job in sorted(jobs):
        print(f"job {job} of an earlier command is in the queue: waiting for it", flush=True)
    try:
        while jobs:
            time.sleep(ASK_S)
            with contextlib.suppress(RuntimeError):  # a controller that starts again
                jobs = queue(out)
    except KeyboardInterrupt:
        cancel(out)
        raise RuntimeError("stopped; the same command goes on from here") from None
    where = f"profiles/{name}/config.yaml says"
    print(f"jobs go to SLURM as {where}: `make status` and `squeue --me` follow them", flush=True)


def options(out: Path, name: str, config: dict) -> list:
    """Snakemake's, for the jobs of a run folder."""
    content = json.dumps(config)  # a file for every command: a job may read it after the next one
    path = out / f".slurm/{hashlib.sha256(content.encode()).hexdigest()[:8]}.json"
    files.write_whole(path, content)
    words = ["--workflow-profile", parameters.ROOT / "profiles" / name, "--configfile", path]
    return [*words, "--slurm-jobname-prefix", prefix(out), "--slurm-logdir", path.parent]


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
    while snakemake.poll() is None:
        time.sleep(ASK_S)
        waits = False
        with contextlib.suppress(RuntimeError):
            waits = not queue(out)
        seen = seen if waits else time.monotonic()
        if time.monotonic() - seen > FORGOTTEN_S:
            print(
                "no job is in the queue, Snakemake waits for one: it is started again", flush=True
            )
            snakemake.kill()
            snakemake.wait()
            return False
    return True


def cancel(out: Path) -> None:
    """End the jobs of a run folder; their runs keep their state first."""
    cancelled, end = set(), time.monotonic() + STOP_S
    while (jobs := queue(out)) and time.monotonic() < end:
        if new := sorted(jobs - cancelled):
            print(f"scancel {' '.join(new)}: their runs keep their state", flush=True)
            subprocess.run(["scancel", *new])
        cancelled |= jobs
        time.sleep(1)
