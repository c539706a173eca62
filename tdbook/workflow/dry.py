"""DRY=1: what `make book` or `make sweep` would run, why, how long it takes and what it costs.

Nothing is run or written. Hours are those of `make plan`, for this machine, or for a B200 where a
profile is made for one and this machine has no GPU.
"""

from tabulate import tabulate

from tdbook.runs import hashes, units
from tdbook.workflow import graph, plan, workload
from tdbook.workflow.graph import BookRun, Wanted


def text(wanted: Wanted) -> str:
    """A line a run, in the order of the book, then the sum."""
    found = graph.jobs(wanted.config)
    targets = [name for part in graph.targets_of(wanted, found) for name in part]
    reasons, damaged = hashes.judge(found, targets, wanted.before)
    if damaged:
        lines = [line for lines in damaged.values() for line in lines]
        return "\n".join([*dict.fromkeys(lines), "so nothing would run"])
    device, source = plan.device_of("", wanted.profile)
    works = _works(wanted, found)
    spans = {name: workload.seconds(works[name], device) for name in reasons if reasons[name]}
    rows = []
    for name, reason in reasons.items():
        span = spans.get(name)
        row = {"run": name, "why": reason or "is done"}
        row["time"] = units.duration(*span) if span else "–"
        if wanted.price:
            row["cost"] = units.money(span, wanted.price) if span else "–"
        rows.append(row)
    table = tabulate(rows, headers="keys", maxcolwidths=[None, 60])
    if not spans:
        return f"{table}\n\nAll of them are done."
    low, high = plan.total(spans)
    cost = f", {units.money((low, high), wanted.price)} in all" if wanted.price else ""
    return (
        f"{table}\n\n{len(spans)} of {len(rows)} would run: {units.duration(low, high)} one after "
        f"the other{cost}; on {device.name}, {source}. Nothing was run."
    )


def _works(wanted: Wanted, found: dict[str, BookRun]) -> dict[str, workload.Work]:
    """What each run does; a point comes after its parent's runs."""
    pairs = {"PROFILE": wanted.profile, "OUT": wanted.out}
    pairs |= {name.upper(): wanted.given.get(name, "") for name in ("tokens", "teacher")}
    of = plan.asked(pairs)
    works = workload.of_profile(list(found.values()), of.sizes[0], of.teachers[0])
    return dict(zip(found, works, strict=True))
