"""The book as a graph: the runs of a profile, what each needs, and how one or all are executed.

    python -m tdbook check tiny
    python -m tdbook execute params/tiny/01_distill-50m.yaml outputs/tiny
    python -m tdbook book PROFILE=tiny [OUT=… TEXT=… TOKENS=… TOKENIZER=… TEACHER=… ONLY=…
        FROM=… REDO=… DRY=1 PRICE_PER_HOUR=…]
    python -m tdbook sweep NAME=adapter [PROFILE=… and the others of book]
    python -m tdbook status PROFILE=tiny [FULL=1: reads all that was written]
    python -m tdbook report outputs/tiny
    python -m tdbook plan PROFILE=b200 [DEVICE=b200 PRICE_PER_HOUR=4.5 VOCAB=51800]
    python -m tdbook doctor PROFILE=b200
    python -m tdbook publish outputs/tiny [name]         → outputs/published/<name>/
    python -m tdbook zip outputs/tiny                    → outputs/tiny/tiny-reports.zip
    python -m tdbook published readme [--check]          README's table, and the recipe's
    python -m tdbook published compare outputs/small     does it agree with what is published?
    python -m tdbook export MODEL=folder [OUT= TOKENS=]
    python -m tdbook chat MODEL=folder|file.gguf [SEGMENTER=morfessor.bin]
    plan and doctor also: OUT= (the run folder), TOKENS= and TEACHER= (paths)

Snakemake decides the order (see Snakefile), papermill runs a notebook. Imports no torch.
"""

import re
import sys
from pathlib import Path

from tdbook.runs import disk, estimates, heartbeat, parameters
from tdbook.runs.parameters import ParameterError
from tdbook.workflow import execute, graph, request, scheduler, status
from tdlib import shapes

PLACES = ("check", "report", "publish", "zip", "published")  # their words are never NAME=value


def _check(profile: str) -> int:
    bad = False
    for path in graph._yamls(profile):
        try:
            graph.check_yaml(path, {}, paths=False)
            print(f"{path.stem} · OK")
        except ParameterError as error:
            print(f"{path.stem} · {error}")
            bad = True
    if bad:
        return 1
    found = graph.book(profile, paths=False)  # what no single YAML shows: two that write the same
    used = {
        value for one in found for key, value in one.parameters.items() if key.endswith("shape")
    }
    for vocab_size in estimates.VOCABULARIES if profile.startswith("b200") else ():
        for name in (name for name in shapes.SHAPES if name in used):
            print(estimates.in_words(name, vocab_size))
    return 0


def main(arguments: list[str]) -> int:
    what, *rest = arguments or ["help"]
    named = [] if what in PLACES else [p for p in rest if re.match(r"[A-Za-z_]+=", p)]
    pairs = dict(pair.split("=", 1) for pair in named)
    try:
        disk.find_homes()
        return _command(what, [word for word in rest if word not in named], pairs)
    except (ValueError, OSError, RuntimeError) as error:
        print(error)
        return 1


def _command(what: str, words: list[str], pairs: dict[str, str]) -> int:
    match what, words:
        case "check", [profile]:
            return _check(profile)
        case "execute", [yaml, out]:
            heartbeat.die_with_parent()
            return execute.execute(Path(yaml).resolve(), Path(out), pairs)
        case "adopt", [job, yaml, out]:
            heartbeat.die_with_parent()
            return execute.adopt(job, Path(yaml).resolve(), Path(out), pairs)
        case (("book" | "sweep"), []):
            asked = request.wanted(what, pairs)
            if not pairs.get("DRY"):
                return scheduler.make(asked)
            from tdbook.workflow import dry

            print(dry.text(asked))
        case "report", [out]:
            for state in heartbeat.states(parameters.ROOT / out):
                execute._page(parameters.ROOT / out, state["run"])
            print(execute._index(parameters.ROOT / out))
        case "status", []:
            out = pairs.get("OUT") or request._default_out(pairs.get("PROFILE") or "tiny", "")
            print(status.text(parameters.ROOT / out, full=bool(pairs.get("FULL"))))
        case "plan", []:
            from tdbook.workflow import plan

            print(plan.plan(pairs))
        case "doctor", []:
            from tdbook.workflow import doctor  # imports torch

            return doctor.examine(pairs)
        case "export", []:
            from tdbook.export import shipping  # imports torch

            shipping.export(pairs)
        case "chat", []:
            from tdbook.export import chat  # imports torch

            chat.chat(pairs)
        case _:
            return _share(what, words)
    return 0


def _share(what: str, words: list[str]) -> int:
    """What is shown to others."""
    from tdbook.report import published  # slow to import, as pages are
    from tdbook.workflow import share

    match what, words:
        case "publish", [out, *name]:
            share.publish(parameters.ROOT / out, *name)
        case "zip", [out]:
            share.pack(parameters.ROOT / out)
        case "published", _:
            return published.run(words)
        case _:
            print(__doc__)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
