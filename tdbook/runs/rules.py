"""The table of parameters, parameters.yaml: what each may be, and what else is known of it."""

import operator
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from tdlib.shapes import SHAPES

TABLE = yaml.safe_load(Path(__file__).with_name("parameters.yaml").read_text("utf8"))
LARGE_SCALE = 8  # a lora_scale above it is most likely PEFT's lora_alpha
KINDS = {"str": str, "int": int, "float": float, "bool": bool}
BOUNDS = {
    "above": ("above", operator.gt),
    "least": ("at least", operator.ge),
    "below": ("below", operator.lt),
    "most": ("at most", operator.le),
}


@dataclass(frozen=True)
class Parameter:
    kind: type
    says: str  # what a value must be
    near: tuple[str, ...]  # one of them is offered where a value is near it
    none: bool  # None is allowed
    pattern: str
    bounds: dict[str, float]  # of a number
    also: float | None

    def holds(self, value) -> bool:
        if isinstance(value, str):
            return re.fullmatch(self.pattern, value) is not None
        inside = all(BOUNDS[word][1](value, bound) for word, bound in self.bounds.items())
        return inside or value == self.also


def _parameter(row: dict) -> Parameter:
    names = row.get("one_of") or row.get("some_of") or row.get("near", "")
    near = tuple(SHAPES) if names == "shapes" else tuple(names.split())
    pattern, one = row.get("pattern", "(?s).*"), "|".join(map(re.escape, near))
    bounds = {word: row[word] for word in BOUNDS if word in row}
    says = row.get("says", " and ".join(f"{BOUNDS[w][0]} {x:,}" for w, x in bounds.items()))
    if "one_of" in row:
        pattern, says = one, f"one of {', '.join(near)}"
    if "some_of" in row:
        pattern, says = rf" *(({one})( +|$))*", f"names with spaces between, of {', '.join(near)}"
    kind, none, also = KINDS[row.get("kind", "str")], "none" in row, row.get("also")
    return Parameter(kind, says, near, none, pattern, bounds, also)


PARAMETERS = {n: _parameter(row) for names, row in TABLE["rules"].items() for n in names.split()}
GIVEN = {name: (getattr(Path, how), says) for name, (how, says) in TABLE["given"].items()}
_ROLES = {role: tuple(names.split()) for role, names in TABLE["roles"].items()}
VOLATILE, LABELS, TUNED = ({*_ROLES[role]} for role in ("volatile", "labels", "tuned"))
COMMANDS, OWN, TRIED = (_ROLES[role] for role in ("commands", "own", "tried"))
ADAPTERS, REPLAYS = _ROLES["adapters"], _ROLES["replays"]
NAME, PLAN = PARAMETERS["run"], TABLE["plan"]


def of(notebook: str, name: str) -> Parameter | None:
    return PARAMETERS.get(f"{notebook}.{name}", PARAMETERS.get(name))


def plan(notebook: str, name: str) -> tuple[float, float] | None:
    """What the plan says of a parameter, which may differ between notebooks; None for nothing."""
    return PLAN.get(f"{notebook}.{name}", PLAN.get(name))
