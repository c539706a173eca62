# The book as a graph; `make book` and `make sweep` run it. Its config is graph.Wanted.config.
# What has to be run is decided by the hashes alone, as in the notebooks, so that the two cannot
# disagree: before the graph is built, a run that is current gets its mark, all of the same time,
# and any other loses it, and so does all that is to be looked at again once that is made. The mark is a rule's only output, for Snakemake deletes the outputs of a
# job that begins or fails; a job whose inputs came out as before says so and starts no kernel.
import os
import re
import shlex
import sys
import time

from tdlib import cluster, devices, graph, hashes

JOBS = graph.prepare(config) if workflow.is_main_process else graph.jobs(config)
GPUS = len(devices.there())
ON = config["cluster"]  # then config has cpus, gres and minutes too, of its profile
# jobs that an earlier command left in its queue, by rule, are waited for
QUEUED = cluster.queue(graph.ROOT / config["out_dir"]) if ON and workflow.is_main_process else {}

if workflow.is_main_process:  # on a cluster each job reads this file again
    now, reasons = time.time(), hashes.judge(JOBS, JOBS, config["before"])[0]
    for name, one in JOBS.items():
        one.mark.parent.mkdir(parents=True, exist_ok=True)
        if not reasons[name]:
            one.mark.touch()
            os.utime(one.mark, (now, now))
        else:
            one.mark.unlink(missing_ok=True)


def arguments(one):
    more = dict(config["given"]) if one.run.startswith("00") else {}
    more |= {"redo": "true"} if one.name in config["redo"] else {}
    return [one.yaml, one.out, *(f"{name}={value}" for name, value in more.items())]


def threads_of(one):
    """Small models gain little from threads: two runs of one each. All others wait for 00."""
    if ON:
        return int(config["cpus"])
    if config["profile"] in hashes.ONE_THREAD and not one.run.startswith("00"):
        return 1
    return max(1, workflow.cores // max(1, devices.slots()))


def resources_of(one):
    """GPUs, as many as it has processes, where there are any and it may use them; and how long a
    job of the cluster may take."""
    wanted = 0 if one.parameters["device"] == "cpu" else one.parameters.get("processes", 1)
    if not ON:
        return {"gpu": min(wanted, GPUS)}
    asked = {"gres": f"{config['gres']}:{wanted}"} if config["gres"] and wanted else {}
    minutes = config["minutes"].get(one.notebook)
    return asked | ({"runtime": int(minutes)} if minutes else {})


def rule_of(one):
    return re.sub(r"\W", "_", one.name)


def command_of(one):
    job = QUEUED.get(rule_of(one))
    what = ["adopt", job] if job else ["execute"]
    words = [sys.executable, "-m", "tdlib.graph", *what, *arguments(one)]
    return lambda wildcards: shlex.join(map(str, words))  # of a text it would fill in {…}


def mark_of(one):
    """Relative to Snakemake's directory: the name of the run folder may hold anything."""
    return os.path.relpath(one.mark, graph.ROOT / config["out_dir"] / ".done")


def to_the_end(name):
    """How long it takes from here to the end, in students trained: the longest chain starts first."""
    own = 3 if name.startswith(("00", "05")) else 1
    return own + max((to_the_end(one.name) for one in JOBS.values() if name in one.needs), default=0)


for name, one in JOBS.items():

    rule:
        name:
            rule_of(one)
        localrule: rule_of(one) in QUEUED
        input:
            [mark_of(JOBS[needed]) for needed in one.needs],
        output:
            touch(mark_of(one)),
        params:
            command=command_of(one),
            root=lambda wildcards: shlex.quote(str(graph.ROOT)),
        threads: threads_of(one)
        priority: to_the_end(name)
        resources:
            **resources_of(one),
        shell:
            "cd {params.root} && exec env OMP_NUM_THREADS={threads} MKL_NUM_THREADS={threads}"
            " {params.command}"
