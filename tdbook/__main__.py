"""The book's commands, as the Makefile gives them; `make help` says what each takes.

    python -m tdbook book PROFILE=tiny [OUT=… TEXT=… TOKENS=… TOKENIZER=… TEACHER=… SET=… ONLY=…
        FROM=… REDO=… DRY=1 PRICE_PER_HOUR=… CLUSTER=slurm]
    python -m tdbook sweep NAME=adapter [and those of book]
    python -m tdbook status PROFILE=tiny [OUT=… SET=… FULL=1]
    python -m tdbook plan PROFILE=b200 [OUT=… TOKENS=… TEACHER=… SET=… DEVICE=b200
        PRICE_PER_HOUR=4.5 VOCAB=51800]
    python -m tdbook doctor PROFILE=b200 [OUT=… TOKENS=… TEACHER=… SET=…]
    python -m tdbook check tiny
    python -m tdbook report outputs/tiny
    python -m tdbook publish outputs/tiny [name]         → outputs/published/<name>/
    python -m tdbook zip outputs/tiny                    → outputs/tiny/tiny-reports.zip
    python -m tdbook published readme                    README's table
    python -m tdbook published compare outputs/small     does it agree with what is published?
    python -m tdbook clean-cache outputs/tiny
    python -m tdbook export MODEL=folder [OUT=… TOKENS=…]
    python -m tdbook chat MODEL=folder|file.gguf [SEGMENTER=morfessor.bin]
    python -m tdbook execute params/tiny/01_distill-50m.yaml outputs/tiny [name=value …]

Snakemake decides the order (see Snakefile), papermill runs a notebook. Imports no torch.
"""

import re
import sys
from pathlib import Path

from tdbook.runs import disk, heartbeat, ownership, parameters
from tdbook.runs.parameters import ParameterError
from tdbook.workflow import execute, graph, request, scheduler, status

# their words are never NAME=value
PLACES = ("check", "report", "clean-cache", "publish", "zip", "published")


def main(arguments: list[str]) -> int:
    command, *words = arguments or ["help"]
    pairs = [] if command in PLACES else [word for word in words if re.match(r"\w+=", word)]
    try:
        disk.find_homes()
        given = dict(pair.split("=", 1) for pair in pairs)
        return _run(command, [word for word in words if word not in pairs], given) or 0
    except (ValueError, OSError, RuntimeError) as error:
        print(error)
        return 1


def _run(command: str, words: list[str], pairs: dict[str, str]) -> int | None:
    match command, words:
        case (("book" | "sweep"), []):
            wanted = request.wanted(command, pairs)
            if not pairs.get("DRY"):
                return scheduler.make(wanted)
            from tdbook.workflow import plan

            print(plan.dry(wanted))
        case "status", []:
            out = parameters.ROOT / request.wanted("status", pairs).out
            print(status.text(out, full=bool(pairs.get("FULL"))))
        case "plan", []:
            from tdbook.workflow import plan

            print(plan.plan(pairs))
        case "doctor", []:
            from tdbook.workflow import doctor  # imports torch

            return doctor.examine(pairs)
        case "check", [profile]:
            return _check(profile)
        case "clean-cache", [out]:
            left = ", ".join(ownership.clean_cache(parameters.ROOT / out))
            print(f"left, for the book did not make it: {left}" if left else "removed")
        case "execute", [yaml, out, *job]:
            heartbeat.die_with_parent()
            return execute.execute(Path(yaml).resolve(), Path(out), pairs, *job)
        case "export", []:
            from tdbook.export import shipping  # imports torch

            shipping.export(pairs)
        case "chat", []:
            from tdbook.export import chat  # imports torch

            chat.chat(pairs)
        case _:
            return _show(command, words)


def _show(command: str, words: list[str]) -> int | None:
    """The commands that make pages, or take them to others."""
    from tdbook.report import published  # slow to import
    from tdbook.workflow import share

    match command, words:
        case "report", [out]:
            print(execute.pages(parameters.ROOT / out, again=True))
        case "publish", [out, *name]:
            share.publish(parameters.ROOT / out, *name)
        case "zip", [out]:
            share.pack(parameters.ROOT / out)
        case "published", ["readme"]:
            print("README has what is published" if published.readme() else "README: table written")
        case "published", ["compare", out]:
            return int(not published.agrees(out))
        case _:
            print(__doc__)
            return 2


def _check(profile: str) -> int:
    """A line a run; then what no single YAML shows, as two that write the same."""
    failed = 0
    for path in graph.yamls(profile):
        try:
            graph.check_yaml(path, {}, paths=False)
            print(f"{path.stem} · OK")
        except ParameterError as error:
            print(f"{path.stem} · {error}")
            failed = 1
    if not failed:
        graph.book(profile, paths=False)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
