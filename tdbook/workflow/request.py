"""What a command line asks for, checked."""

import hashlib
import re
import shlex
from pathlib import Path

from tdbook.runs import parameters, sweeps
from tdbook.runs.notebooks import notebook_of
from tdbook.runs.parameters import ParameterError, nearest, stem
from tdbook.runs.units import number
from tdbook.workflow import cluster, graph
from tdlib import files

LONGEST = 158  # bytes of a run folder's path; the system allows 255 a name, also beside it
GIVEN = " ".join(name.upper() for name in parameters.GIVEN)
BOOK = f"PROFILE OUT ONLY FROM REDO DRY PRICE_PER_HOUR CLUSTER SET {GIVEN}"
TAKES = {
    "book": BOOK,
    "sweep": f"NAME {BOOK}",
    "plan": f"PROFILE OUT SET DEVICE PRICE_PER_HOUR VOCAB {GIVEN}",
    "doctor": f"PROFILE OUT SET {GIVEN}",
    "status": f"PROFILE OUT SET FULL {GIVEN}",
}


def wanted(command: str, pairs: dict[str, str]) -> graph.Wanted:
    """What `make book` or another of TAKES was given; ParameterError for what means nothing."""
    names = TAKES[command].split()
    if unknown := [name for name in pairs if name not in names]:
        raise ParameterError(f"{unknown[0]}= is not known: {nearest(unknown[0], names)}")
    given = {name: pairs[name.upper()] for name in parameters.GIVEN if pairs.get(name.upper())}
    profile = pairs.get("PROFILE") or "tiny"
    book = [path.stem for path in graph.yamls(profile)]
    words = {name: tuple(pairs.get(name, "").replace(",", " ").split()) for name in names}
    swept = words.get("NAME", ())
    if command == "sweep" and not swept:
        there = ", ".join(sweeps.names(profile)) or "none yet"
        raise ParameterError(f"give the sweep: NAME=; params/{profile}/sweeps has {there}")
    found = [sweeps.read(profile, name) for name in swept]
    points = [one.name_of(p, run) for one in found for p in one.points for run in one.runs(p)]
    runs = [*book, *(point.split("/")[-1] for point in points)]
    values = parameters.settings_of(pairs.get("SET", ""), runs)
    before = _before(book, pairs.get("FROM", ""))
    only, redo = (
        _select(profile, [*book, *points], words.get(name, ())) for name in ("ONLY", "REDO")
    )
    if both := [name for name in before if name in (*only, *redo)]:
        raise ParameterError(f"FROM={pairs['FROM']} takes {both[0]} as it is: leave FROM, or that")
    price = number(pairs, "PRICE_PER_HOUR", 0, 4.5) if pairs.get("PRICE_PER_HOUR") else None
    out = pairs.get("OUT") or default_out(profile, given.get("text", ""), values)
    if command == "sweep" and not given:  # those of the book it reads
        before_ = files.record(parameters.ROOT / out / graph.CONFIG) or {}
        given = before_.get("given", {})
    place, typed = cluster.check(pairs.get("CLUSTER", "")), {k: v for k, v in pairs.items() if v}
    typed = " ".join(f"{k}={shlex.quote(v)}" for k, v in typed.items() if k != "DRY")
    command = f"make {command} {typed}".strip()
    return graph.Wanted(
        profile, out, given, swept, only, redo, before, price, place, command, values
    )


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


def default_out(profile: str, text: str, values: dict[str, str] | None = None) -> str:
    """outputs/tiny, and after it the name of the text and what SET changes, so that nothing is
    overwritten. ParameterError: that folder is of another text of this name."""
    names = [Path(path).name.replace(" ", "_") for path in parameters.texts(text)]
    ends = re.sub(r"[^\w.+-]+", "-", parameters.in_words(values or {}))
    older, out = (
        "-".join(filter(None, [f"outputs/{profile}", "+".join(map(cut, names)), ends]))
        for cut in (lambda name: name.split(".")[0], stem)
    )
    if text and len(older.encode()) <= LONGEST and _text_of(older) == _absolute(text):
        return older  # names were cut at their first dot once: such a night goes on
    if len(out.encode()) > LONGEST:  # the whole name still tells, as a hash
        short = out.encode()[: LONGEST - 9].decode(errors="ignore")
        out = f"{short}-{hashlib.sha256(out.encode()).hexdigest()[:8]}"
    made_of = _text_of(out)
    if text and made_of and _absolute(text) != made_of:
        texts = " ".join(map(parameters.shown, made_of))
        fault = f"{out} was made of text = {texts!r}, not of {text!r}"
        remedy = f"give a folder of its own (OUT=), or OUT={out} to make that one anew"
        raise ParameterError(f"{fault}: {remedy}")
    return out


def _text_of(out: str) -> list[Path]:
    """The files that a run folder was made of, as its last command gave them."""
    config = files.whole(parameters.ROOT / out / graph.CONFIG) or {}
    return _absolute(config.get("given", {}).get("text", ""))


def _absolute(text: str) -> list[Path]:
    return [(parameters.ROOT / path).resolve() for path in parameters.texts(text)]
