"""The table of parameters, parameters.yaml: what each may be, and what else is known of it."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from tdlib.shapes import SHAPES

_TEXT = Path(__file__).with_name("parameters.yaml").read_text("utf8")
TABLE = yaml.safe_load(_TEXT.replace(" SHAPES", f" {' '.join(SHAPES)}"))
LARGE_SCALE = 8  # a lora_scale above it is most likely PEFT's lora_alpha


@dataclass(frozen=True)
class Parameter:
    """A row of the table, which says what its words mean."""

    kind: str = "str"
    says: str = ""
    near: str = ""
    one_of: str = ""
    some_of: str = ""
    pattern: str = "(?s).*"
    least: float = -math.inf
    above: float = -math.inf
    below: float = math.inf
    most: float = math.inf
    also: float | None = None
    none: bool = False

    def holds(self, value) -> bool:
        if not isinstance(value, str):
            inside = self.least <= value <= self.most and self.above < value < self.below
            return inside or value == self.also
        if self.one_of:
            return value in self.one_of.split()
        if self.some_of:
            return {*value.split()} <= {*self.some_of.split()}
        return re.fullmatch(self.pattern, value) is not None


PARAMETERS = {n: Parameter(**row) for names, row in TABLE["rules"].items() for n in names.split()}
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
