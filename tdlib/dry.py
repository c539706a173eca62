"""DRY=1: what `make book` or `make sweep` would run, why, how long it takes and what it costs.

Nothing is run or written. Hours are those of `make plan`, for this machine, or for a B200 where a
profile is made for one and this machine has no GPU.
"""

from tabulate import tabulate

from tdlib import graph, hashes, plan, units, workload
from tdlib.graph import BookRun, Wanted

SIZED = ("tokens", "teacher")  # what says how much text there is, and whose


def text(wanted: Wanted) -> str:
    """A line a run, in the order of the book, then the sum."""
    found = graph.jobs(wanted.config)
    targets = [name for part in graph.targets_of(wanted, found) for name in part]
    reasons, damaged = hashes.judge(found, targets, wanted.before)
    if damaged:
        said = [line for lines in damaged.values() for line in lines]
        return "\n".join([*dict.fromkeys(said), "so nothing would run"])
    names = list(reasons)
    doing = [name for name in names if reasons[name]]
    device, source = plan.device_of("", wanted.profile)
    works = _works(wanted, found)
    spans = {name: workload.seconds(works[name], device) for name in doing}
    rows = [
        {"run": name, "why": reasons[name] or "is done"} | _costs(spans.get(name), wanted.price)
        for name in names
    ]
    low, high = plan.total(spans)
    if not doing:
        return f"{tabulate(rows, headers='keys', maxcolwidths=[None, 60])}\n\nAll of them are done."
    said = (
        f"{len(doing)} of {len(names)} would run: {units.duration(low, high)} one after the other"
    )
    said += f", {units.money((low, high), wanted.price)} in all" if wanted.price else ""
    said += f"; on {device.name}, {source}. Nothing was run."
    return f"{tabulate(rows, headers='keys', maxcolwidths=[None, 60])}\n\n{said}"


def _works(wanted: Wanted, found: dict[str, BookRun]) -> dict[str, workload.Work]:
    """What each run does; a point comes after its parent's runs."""
    pairs = {"PROFILE": wanted.profile, "OUT": wanted.out}
    pairs |= {name.upper(): value for name, value in wanted.given.items() if name in SIZED}
    of = plan.asked(pairs)
    size, teacher = of.sizes[0], of.teachers[0]
    own = [one for one in found.values() if not one.sweep]
    works = {work.run: work for work in workload.of_profile(own, size, teacher)}
    made = {"teacher": (teacher, 1.0)}
    for one in own:
        softened = one.parameters.get("temperature", 1.0)
        made |= {name: (shape, softened) for name, shape in works[one.name].made.items()}
    points = (one for one in found.values() if one.sweep)
    return works | {p.name: workload.of_run(p.parameters, size, teacher, made) for p in points}


def _costs(span: tuple[float, float] | None, price: float | None) -> dict[str, str]:
    row = {"time": units.duration(*span) if span else "–"}
    return row | ({"cost": units.money(span, price) if span else "–"} if price else {})
