"""SET=: values for one command, in the place of those in a profile's YAML files.

    SET="token_limit=200_000_000 02_hard_set.share=0.15"

A bare name means every run that has such a parameter; `02.share` and `02_hard_set.share` one
notebook's; `01_distill-50m.epochs` one run's. They are checked as any parameter and are part of a
run's hashes. Imports no torch.
"""

import contextlib
import math
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from tdbook.runs import hashes, parameters
from tdbook.runs.notebooks import notebook_of
from tdbook.runs.parameters import ParameterError, nearest
from tdlib import files

# parameters with a word of their own on the command line; those of GIVEN are 00's
GIVEN = ("text", "tokens", "tokenizer", "teacher")
WORDS = {"run": "ONLY", "profile": "PROFILE", "out": "OUT", "redo": "REDO"}
COUNTS = ("token_limit", "distinct_tokens", "epochs")  # what bounds a run's tokens; 0: no limit


def parse(text: str, runs: Iterable[str]) -> dict[str, str]:
    """Name → value, both as typed. ParameterError: a name that means no parameter of these runs,
    or one that the command line has another word for."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ParameterError(f"SET={text}: {error}: close the quotes") from None
    called = (parameters.names_of(run).values() for run in runs) if words else ()
    known = {name: None for names in called for each in names for name in each}
    settings: dict[str, str] = {}
    for word in words:
        name, sign, value = word.partition("=")
        place, _, key = name.rpartition(".")
        fault = "is there twice: keep one" if name in settings else ""
        if not sign:
            fault = "must be name=value, as token_limit=200_000_000"
        elif key in WORDS or (key in GIVEN and place[:2] in ("", "00")):
            fault = f"is not for SET: give {WORDS.get(key, key.upper())}="
        elif name not in known:
            remedy = nearest(name, known, "no run of the profile has it")
            fault = f"is no parameter of these runs: {remedy}"
        if fault:
            raise ParameterError(f"SET: {name} {fault}")
        settings[name] = value
    return settings


def in_words(settings: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(settings.items()))


def for_folder(settings: dict[str, str]) -> str:
    """What a run folder's name says of them: token_limit-200_000_000."""
    return re.sub(r"[^\w.+-]+", "-", in_words(settings))


def scouting(out: Path, run: str, values: dict, inputs: dict[str, Path]) -> str:
    """Why a run's numbers are not to be quoted: it, or a run whose files it reads, was trained on
    fewer tokens than its YAML says. "" where none was."""
    makers = hashes.makers(out)
    records = [path for name, path in inputs.items() if name.startswith("sweeps/")]
    records += [out / f"results/{makers[name][0]}.json" for name in inputs if name in makers]
    found = [(files.whole(path) or {}).get("scouting", "") for path in dict.fromkeys(records)]
    return next(filter(None, [_fewer_tokens(out, run, values), *found]), "")


def _fewer_tokens(out: Path, run: str, values: dict) -> str:
    """What bounds a run's tokens below what its YAML says, as token_limit 200,000,000; "" for
    nothing. A sweep's point has its YAML in its own folder."""
    paths = (out / f"{run}.yaml", parameters.ROOT / f"params/{values['profile']}/{run}.yaml")
    usual: dict = {}
    with contextlib.suppress(ParameterError, StopIteration):  # `make check` tells of a bad YAML
        path = next(path for path in paths if path.is_file())
        usual = parameters.check(notebook_of(run), parameters.read(path), paths=False)
    fewer = [key for key in COUNTS if key in usual and 0 < values[key] < (usual[key] or math.inf)]
    return ", ".join(f"{key} {values[key]:,}" for key in fewer)
