"""The book's commands: `make help` says what each takes, the Makefile how each is called.

Snakemake decides the order (see Snakefile), papermill runs a notebook. Imports no torch.
"""

import re
import sys
from pathlib import Path

from tdbook.runs import heartbeat, machine, ownership, parameters
from tdbook.workflow import execute, graph, plan, scheduler, status

# their words are never NAME=value
PLACES = ("page-of", "report", "compare", "clean-cache", "publish", "zip")


def main(arguments: list[str]) -> int:
    command, *words = arguments or ["help"]
    pairs = [] if command in PLACES else [word for word in words if re.match(r"\w+=", word)]
    try:
        machine.find_homes()
        given = dict(pair.split("=", 1) for pair in pairs)
        return _run(command, [word for word in words if word not in pairs], given) or 0
    except (ValueError, OSError, RuntimeError, KeyboardInterrupt) as error:
        print(str(error) or "stopped; the same command goes on from here")
        return 1


def _run(command: str, words: list[str], pairs: dict[str, str]) -> int | None:
    match command, words:
        case (("book" | "sweep"), []):
            wanted = graph.wanted(command, pairs)
            if not pairs.get("DRY"):
                return scheduler.make(wanted)
            print(plan.dry(wanted))
        case "status", []:
            out = parameters.ROOT / graph.wanted("status", pairs).out
            print(status.text(out, full=bool(pairs.get("FULL"))))
        case "plan", []:
            print(plan.plan(pairs))
        case "doctor", []:
            from tdbook.workflow import doctor  # imports torch

            return doctor.examine(pairs)
        case "clean-cache", [out]:
            left = ", ".join(ownership.clean_cache(parameters.ROOT / out))
            print(f"left, for the book did not make it: {left}" if left else "removed")
        case "execute", [yaml, out]:
            heartbeat.die_with_parent()
            return execute.execute(Path(yaml).resolve(), Path(out), pairs)
        case "export", []:
            from tdbook.book import common  # imports torch
            from tdbook.export import shipping

            shipping.export(pairs, common.file_costs)
        case "chat", []:
            from tdbook.export import chat  # imports torch

            chat.chat(pairs)
        case "page", []:
            from tdbook.report import try_page  # imports torch

            print(try_page.write(pairs))
        case _:
            return _show(command, words)


def _show(command: str, words: list[str]) -> int | None:
    """The commands that make pages, or take them to others."""
    from tdbook.workflow import run_pages  # slow to import

    match command, words:
        case "page-of", [out, run, notebook, papermill]:
            execute.page_after(int(papermill), Path(out), run, Path(notebook))
        case "report", [out]:
            execute.pages(parameters.ROOT / out, again=True)
            print(run_pages.refresh(parameters.ROOT / out))
        case "compare", [outs]:
            print(run_pages.compare([parameters.ROOT / out for out in parameters.texts(outs)]))
        case "publish", [out, *name]:
            run_pages.publish(parameters.ROOT / out, *name)
        case "zip", [out]:
            run_pages.pack(parameters.ROOT / out)
        case _:
            print(f"{' '.join([command, *words])} is no command of the book: see `make help`")
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
