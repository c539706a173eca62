# The book as a graph; `make book` and `make sweep` run it. Its config is that of graph.Wanted.
# What has to be run is decided before, by the hashes alone, as in the notebooks, so that the two
# cannot disagree: a run that is current has its mark, any other has none. The mark is a rule's only
# output, for Snakemake deletes the outputs of a job that begins or fails; a job whose inputs came
# out as before says so and starts no kernel.
import os
import re
import shlex
import sys

from tdbook.runs import hashes, notebooks, parameters
from tdbook.workflow import execute, graph

JOBS = graph.jobs(config, paths=False)
GPUS = len(execute.gpus())
ON = config["cluster"]  # then config has cpus, gres and minutes too, of its profile


def rule_of(job):
    return re.sub(r"\W", "_", job.name)


def mark_of(job):
    """Below .done, where paths are short: Snakemake takes { and } for wildcards."""
    return os.path.relpath(job.mark, parameters.ROOT / config["out"] / ".done")


def is_first(job):
    return job.notebook == notebooks.TEACHER


def threads_of(job):
    """Small models gain little from threads: two runs of one each. All others wait for 00."""
    if ON:
        return int(config["cpus"])
    if config["profile"] in hashes.ONE_THREAD and not is_first(job):
        return 1
    return max(1, workflow.cores // max(1, len(execute.slots())))


def resources_of(job):
    """GPUs, where there are any; and how long a job of the cluster may take."""
    wanted = 0 if job.parameters["device"] == "cpu" else job.parameters.get("processes", 1)
    if not ON:
        return {"gpu": min(wanted, GPUS)}
    asked = {"gres": f"{config['gres']}:{wanted}"} if config["gres"] and wanted else {}
    minutes = config["minutes"].get(job.notebook)
    return asked | ({"runtime": int(minutes)} if minutes else {})


def command_of(job):
    given = job.given | ({"redo": "true"} if job.parameters["redo"] else {})
    words = [sys.executable, "-m", "tdbook", "execute", str(job.yaml), str(job.out)]
    words += [f"{name}={value}" for name, value in given.items()]
    return lambda wildcards: shlex.join(words)  # of a text it would fill in {…}


def to_the_end(name):
    """How long it takes from here to the end, in students trained."""
    after = (to_the_end(job.name) for job in JOBS.values() if name in job.needs)
    return notebooks.BOOK[JOBS[name].notebook].weight + max(after, default=0)


def from_the_start(name):
    """Runs one after the other that lead to it, itself among them."""
    return 1 + max(map(from_the_start, JOBS[name].needs), default=0)


# The longest way to the end starts first. Of equals, what goes on with something begun: a night that
# is cut short has then answered its first question.
ORDER = sorted(JOBS, key=lambda name: (-to_the_end(name), -from_the_start(name), name))

for name, job in JOBS.items():

    rule:
        name:
            rule_of(job)
        input:
            [mark_of(JOBS[needed]) for needed in job.needs],
        output:
            touch(mark_of(job)),
        params:
            command=command_of(job),
            root=lambda wildcards: shlex.quote(str(parameters.ROOT)),
        threads: threads_of(job)
        priority: len(JOBS) - ORDER.index(name)  # what has less than 1 would never begin
        resources:
            **resources_of(job),
        shell:
            "cd {params.root} && exec env OMP_NUM_THREADS={threads} MKL_NUM_THREADS={threads}"
            " {params.command}"
