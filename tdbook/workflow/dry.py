"""DRY=1: what `make book` or `make sweep` would run, why, how long it takes and what it costs.

Nothing is run or written. Hours are those of `make plan`.
"""

from tabulate import tabulate

from tdbook.runs import hashes, units
from tdbook.workflow import cost, graph, plan
from tdbook.workflow.workload import total


def text(wanted: graph.Wanted) -> str:
    """A line a run, in the order of the book, then the sum."""
    runs = graph.jobs(wanted.config)
    graph.refuse_other_settings(wanted, runs)
    targets = [name for part in graph.targets_of(wanted, runs) for name in part]
    reasons, damaged = hashes.judge(runs, targets, wanted.before)
    if damaged:
        lines = [line for lines in damaged.values() for line in lines]
        return "\n".join([*dict.fromkeys(lines), "so nothing would run"])
    every, source = spans(wanted)
    rows, todo = [], {name: every[name] for name, reason in reasons.items() if reason}
    for name, reason in reasons.items():
        span = todo.get(name)
        row = {"run": name, "why": reason or "is done"}
        row["time"] = units.duration(*span) if span else "–"
        if wanted.price:
            row["cost"] = units.money(span, wanted.price) if span else "–"
        rows.append(row)
    table = tabulate(rows, headers="keys", maxcolwidths=[None, 60])
    if not todo:
        return f"{table}\n\nAll of them are done."
    span = total(todo.values())
    money = f", {units.money(span, wanted.price)} in all" if wanted.price else ""
    return (
        f"{table}\n\n{len(todo)} of {len(rows)} would run: {units.duration(*span)} one after the "
        f"other{money}; on {source}. Nothing was run."
    )


def spans(wanted: graph.Wanted) -> tuple[dict[str, tuple[float, float]], str]:
    """Seconds of every run, low and high; and of which device."""
    of, (device, source) = plan.asked(wanted), cost.device_of("", wanted.profile)
    times = [work.seconds(device) for work in of.works()]
    names = [one.name for one in of.runs]
    return dict(zip(names, times, strict=True)), f"{device.name}, {source}"
