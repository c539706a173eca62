# The book as a graph; `make book` runs it. Config keys: profile, out_dir, redo and those of graph.GIVEN.
# What has to be run is decided by the hashes alone, as in the notebooks, so that the two cannot
# disagree: before the graph is built, a run that is current gets its mark, all of the same time,
# and any other loses it. The mark is a rule's only output, for Snakemake deletes the outputs of a
# job that begins or fails; a job whose inputs came out as before says so and starts no kernel.
import os
import shlex
import sys
import time
from pathlib import Path

from tdlib import graph, hashes

PROFILE = config.get("profile", "tiny")
OUT = config.get("out_dir", f"outputs/{PROFILE}")
GIVEN = {k: str(config[k]) for k in graph.GIVEN if config.get(k)}
REDO = tuple(str(config.get("redo", "")).split())
BOOK = {one.run: one for one in graph.book(PROFILE, OUT, GIVEN, REDO)}
FOLDER = graph.ROOT / OUT
MARKS = graph.marks(OUT)

if workflow.is_main_process:  # on a cluster each job reads this file again
    now = time.time()
    MARKS.mkdir(parents=True, exist_ok=True)
    for run, one in BOOK.items():
        if hashes.is_current(FOLDER, run, one.parameters):
            (MARKS / run).touch()
            os.utime(MARKS / run, (now, now))
        else:
            (MARKS / run).unlink(missing_ok=True)


def arguments(run):
    more = dict(GIVEN) if run.startswith("00") else {}
    more |= {"redo": "true"} if run in REDO else {}
    words = [BOOK[run].yaml, OUT, *(f"{name}={value}" for name, value in more.items())]
    return shlex.join(map(str, words))


def threads_of(run):
    """Small models gain little from threads: two runs of one each. All others wait for 00."""
    return 1 if PROFILE in hashes.QUICK and not run.startswith("00") else workflow.cores


def to_the_end(run):
    """How long it takes from here to the end, in students trained: the longest chain starts first."""
    own = 3 if run.startswith(("00", "05")) else 1
    return own + max((to_the_end(one.run) for one in BOOK.values() if run in one.needs), default=0)


rule all:
    input:
        [f"{MARKS}/{run}" for run in BOOK],


for run, one in BOOK.items():

    rule:
        name:
            run.replace("-", "_")
        input:
            [f"{MARKS}/{needed}" for needed in one.needs],
        output:
            touch(f"{MARKS}/{run}"),
        log:
            f"{FOLDER}/{run}.ipynb",  # kept after a failure
        params:
            arguments=arguments(run),
        threads: threads_of(run)
        priority: to_the_end(run)
        resources:
            gpu=int(Path("/dev/nvidia0").exists()),
        shell:
            "exec env OMP_NUM_THREADS={threads} MKL_NUM_THREADS={threads}"
            " {sys.executable} -m tdlib.graph execute {params.arguments}"
