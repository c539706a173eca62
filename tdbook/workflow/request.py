"""What a command line asks for, checked."""

import hashlib
import os
import shlex
from collections.abc import Callable
from pathlib import Path

from tdbook.runs import parameters, sweeps
from tdbook.runs.notebooks import notebook_of
from tdbook.runs.parameters import ParameterError, nearest, stem
from tdbook.runs.units import number
from tdbook.workflow import cluster, graph
from tdlib import files

LONGEST = 158  # bytes of a run folder's path; the system allows 255 a name, also beside it


def wanted(what: str, pairs: dict[str, str]) -> graph.Wanted:
    """What `make book` or `make sweep` was told; ParameterError for what means nothing."""
    names = "PROFILE OUT ONLY FROM REDO NAME DRY PRICE_PER_HOUR CLUSTER".split()
    names += [name.upper() for name in graph.GIVEN]
    for name in (name for name in pairs if name not in names):
        raise ParameterError(f"{name}= is not known: {nearest(name, names)}")
    given = {name: pairs[name.upper()] for name in graph.GIVEN if pairs.get(name.upper())}
    profile = pairs.get("PROFILE") or "tiny"
    own = [path.stem for path in graph._yamls(profile)]
    words = {name: tuple(pairs.get(name, "").replace(",", " ").split()) for name in names}
    asked = words["NAME"] if what == "sweep" else ()
    if what == "sweep" and not asked:
        there = ", ".join(sweeps.names(profile)) or "none yet"
        raise ParameterError(f"give the sweep: NAME=; params/{profile}/sweeps has {there}")
    found = [sweeps.read(profile, name) for name in asked]
    points = [one.name_of(p, run) for one in found for p in one.points for run in one.runs(p)]
    before = _before(own, pairs.get("FROM", ""))
    only, redo = (_select(profile, [*own, *points], words[name]) for name in ("ONLY", "REDO"))
    if both := [name for name in before if name in (*only, *redo)]:
        raise ParameterError(f"FROM={pairs['FROM']} takes {both[0]} as it is: leave FROM, or that")
    price = number(pairs, "PRICE_PER_HOUR", 0, 4.5) if pairs.get("PRICE_PER_HOUR") else None
    typed = " ".join(f"{k}={shlex.quote(v)}" for k, v in pairs.items() if v and k != "DRY")
    out = pairs.get("OUT") or _default_out(profile, given.get("text", ""))
    if what == "sweep" and not given:
        given = (files.record(parameters.ROOT / out / graph.CONFIG) or {}).get(
            "given", {}
        )  # of the book it reads
    place, command = cluster.check(pairs.get("CLUSTER", "")), f"make {what} {typed}".strip()
    return graph.Wanted(profile, out, given, asked, only, redo, before, price, place, command)


def _select(profile: str, every: list[str], words: tuple[str, ...]) -> tuple[str, ...]:
    """Runs by their own name, by their notebook's, or points by sweep or by all that varies."""
    names = {name: {name, name.split("/")[-1], notebook_of(name.split("/")[-1])} for name in every}
    for name in (name for name in every if "/" in name):
        sweep, *point, run = name.split("/")
        names[name] |= {sweep, point[0] if point else run.partition("-")[2]}
    for word in words:
        if not any(word in own for own in names.values()):
            ends = [name for name in every if name.endswith(f"-{word}")]
            known = dict.fromkeys([*every, *(part for own in names.values() for part in own)])
            meant = f"did you mean {ends[0]}?" if ends else nearest(word, known)
            raise ParameterError(f"{word} is no run of params/{profile}: {meant}")
    return tuple(name for name, own in names.items() if own & set(words))


def _before(every: list[str], first: str) -> tuple[str, ...]:
    """The runs of the notebooks before FROM=02 or FROM=02_hard_set."""
    notebooks = sorted({notebook_of(run) for run in every})
    begins = [name for name in notebooks if first in (name, name[:2])]
    if first and not begins:
        raise ParameterError(f"FROM={first} is no notebook: {nearest(first, notebooks)}")
    return tuple(run for run in every if first and notebook_of(run) < begins[0])


def _default_out(profile: str, text: str) -> str:
    """outputs/tiny, or outputs/tiny-<name of the text>, so that nothing is overwritten.
    ParameterError: that folder is of another text of this name."""

    def absolute(texts: str) -> list[Path]:
        return [(parameters.ROOT / path).resolve() for path in parameters.texts(texts)]

    def folder(of: Callable[[str], str]) -> str:
        return "outputs/" + "-".join(filter(None, [profile, "+".join(map(of, names))]))

    names = [Path(path).name.replace(" ", "_") for path in parameters.texts(text)]
    # names were cut at their first dot once
    older, own = folder(lambda name: name.split(".")[0]), folder(stem)
    if len(own.encode()) > LONGEST:  # the whole name still tells, as a hash
        short = own.encode()[: LONGEST - 9].decode(errors="ignore")
        own = f"{short}-{hashlib.sha256(own.encode()).hexdigest()[:8]}"
    for out in (older, own):
        path = parameters.ROOT / out / graph.CONFIG
        before = files.whole(path) if os.path.isfile(path) else None  # too long a name is none
        if made_of := (before or {}).get("given", {}).get("text", ""):
            if absolute(text) == absolute(made_of):
                return out
            if text and out == own:
                fault = f"{out} was made of text = {made_of!r}, not of {text!r}"
                remedy = f"give a folder of its own (OUT=), or OUT={out} to make that one anew"
                raise ParameterError(f"{fault}: {remedy}")
    return own
