"""Parameters of a run: checked before torch is imported or a file is opened.

parameters.yaml says what each may be. A notebook declares its own in the cell tagged `parameters`,
one literal a line; a YAML or papermill changes some. Names are checked first, then values, then
paths: the first of the three with a problem stops the run, one line a problem: the value, the rule,
the remedy. Imports no torch.
"""

import ast
import contextlib
import difflib
import importlib.util
import itertools
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import jinja2
import yaml

from tdbook.runs.notebooks import TEACHER, notebook_of
from tdlib.shapes import SHAPES, LlamaConfig, sized

# paths in parameters are relative to it; the tests bring notebooks and params of their own
ROOT = Path(os.environ.get("TDLIB_ROOT", Path(__file__).parents[2])).resolve()
GIVEN = ("text", "tokens", "tokenizer", "teacher")  # 00's, with words of their own, as have:
WORDS = {"run": "ONLY", "profile": "PROFILE", "out": "OUT", "redo": "REDO"}
_TEXT = Path(__file__).with_name("parameters.yaml").read_text("utf8")
_TEXT = _TEXT.replace("(SHAPES)", f"({'|'.join(SHAPES)})").replace("SHAPES", " ".join(SHAPES))
TABLE = yaml.safe_load(_TEXT)
PARAMETERS = {name: row for names, row in TABLE["rules"].items() for name in names.split()}
SOURCES = {name: (getattr(os.path, how), says) for name, (how, says) in TABLE["given"].items()}
_ROLES = {role: tuple(names.split()) for role, names in TABLE["roles"].items()}
VOLATILE, LABELS, TUNED = ({*_ROLES[role]} for role in ("volatile", "labels", "tuned"))
COMMANDS, OWN = _ROLES["commands"], _ROLES["own"]
NAME, PLAN = PARAMETERS["run"], TABLE["plan"]


class ParameterError(ValueError):
    """One line a problem."""


def external(notebook: str, parameters: dict) -> list[str]:
    """The paths outside the run folder that a run reads, as its parameters name them."""
    given = {name: parameters.get(name) for name in SOURCES if notebook == TEACHER}
    paths = [texts(path) if name == "text" else [path] for name, path in given.items() if path]
    return [*itertools.chain(*paths)]


def nearest(given: object, names: Iterable[str], otherwise: str = "", cutoff: float = 0.6) -> str:
    """The remedy for an unknown name: "did you mean …?" or else, if not `otherwise`, all names."""
    names = [*names]
    near = difflib.get_close_matches(str(given), names, 1, cutoff)
    every = otherwise or f"there are {', '.join(names) or 'none yet'}"
    return f"did you mean {near[0]}?" if near else every


def texts(given: str) -> list[str]:
    """The paths in 00's `text`: one that is there, spaces and all, or several."""
    return [given] if given and os.path.exists(ROOT / given) else given.split()


def stem(name: str) -> str:
    """te.wiki.txt.gz → te.wiki: a text's name without what says its kind."""
    return re.sub(r"(?i)(\.(txt|jsonl|parquet))?(\.(gz|xz|bz2|zst))?$", "", name) or name


def declared(notebook: str) -> dict[str, object]:
    """Parameter → default, in the order of the committed notebook's parameter cell."""
    path, tagged = ROOT / "notebooks" / f"{notebook}.ipynb", ""
    for cell in json.loads(path.read_text("utf8"))["cells"] if path.is_file() else ():
        if "parameters" in cell["metadata"].get("tags", []):
            tagged = "".join(cell["source"])
    pairs = dict(_assignments(tagged) or [])
    if not pairs or ... in pairs.values():
        raise ParameterError(f"{path} must have a cell tagged `parameters`: literals, one a line")
    return pairs


def names_of(run: str) -> dict[str, str]:
    """What a command or a sweep may call a parameter of a run, the most general first (epochs,
    01.epochs, 01_distill.epochs, 01_distill-50m.epochs) → the parameter."""
    places = ["", f"{run[:2]}.", f"{notebook_of(run)}.", f"{run}."]
    return {place + key: key for place in places for key in declared(notebook_of(run))}


def of_run(given: dict, run: str) -> dict:
    """Those of values by such names that are one run's; the longer name goes before."""
    return {key: given[name] for name, key in names_of(run).items() if name in given}


def settings_of(text: str, runs: Iterable[str]) -> dict[str, str]:
    """SET="token_limit=200_000_000 02_hard_set.share=0.15", which replaces YAMLs' values."""
    try:
        words = [word.partition("=") for word in shlex.split(text)]
    except ValueError as error:
        raise ParameterError(f"SET={text}: {error}: close the quotes") from None
    known = dict.fromkeys(name for run in runs for name in names_of(run)) if words else {}
    names = [name for name, _, _ in words]
    for name, sign, _ in words:
        place, _, key = name.rpartition(".")
        if not sign or names.count(name) > 1:
            raise ParameterError(f"SET: {name} must be there once, as token_limit=200_000_000")
        if key in WORDS or (key in GIVEN and place[:2] in ("", "00")):
            raise ParameterError(f"SET: {name} is not for SET: give {WORDS.get(key, key.upper())}=")
        if name not in known:
            remedy = nearest(name, known, "no run of the profile has it")
            raise ParameterError(f"SET: {name} is no parameter of these runs: {remedy}")
    return {name: value for name, _, value in words}


def read(path: Path) -> dict[str, object]:
    """A run's YAML. A key that is there twice is an error; YAML itself would keep the last."""
    text = path.read_text(encoding="utf8")
    try:
        node, content = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ParameterError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ParameterError(f"{path} must hold lines of `name: value`")
    keys = [key.value for key, _ in node.value]
    if twice := [key for key in content if keys.count(key) > 1]:
        raise ParameterError(f"{path} has {', '.join(map(str, twice))} twice: keep one")
    for key, value in node.value:  # YAML 1.1 counts 010 in eights, and 1:30 in sixties
        if value.tag.endswith((":int", ":float")) and re.match(r"[-+]?0[\d_]|.*:", value.value):
            meant = yaml.safe_load(value.value)
            fault = f"{path}: {key.value} = {value.value} is read as {meant}"
            raise ParameterError(f"{fault}: write {meant}, or put it in quotes where it is text")
    return content


def check(notebook: str, given: dict, paths: bool = True) -> dict:
    """All parameters of a run, converted. Without `paths` the disk is not looked at."""
    defaults, run = declared(notebook), given.get("run", notebook)
    if isinstance(run, str) and notebook_of(run) != notebook:
        fault = f"run = {run!r} is a run of {notebook_of(run)}, this is {notebook}"
        raise ParameterError(f"{fault}: give its YAML")
    has, wrong = f"it has {', '.join(defaults)}", [name for name in given if name not in defaults]
    stop(f"{notebook} has no parameter {name}: {nearest(name, defaults, has)}" for name in wrong)
    values, problems = {}, []
    for name, default in defaults.items():
        try:
            values[name] = _value(notebook, name, given.get(name, default), default)
        except ParameterError as error:
            problems.append(str(error))
    stop(problems or _wrong_together(values))
    stop(_wrong_paths(notebook, values) if paths else ())
    return values


def from_cells(notebook: str) -> dict:
    """The parameters under IPython, checked, and written back converted. Names are those of the
    parameter cell that ran last, and of papermill's after it; nothing else there counts."""
    own, papermills = set(), set()
    namespace = shell().user_ns if shell() else {}
    for source in namespace.get("In", []):
        assigned = dict(_assignments(source) or [])
        if source.startswith("# Parameters\n"):
            papermills = set(assigned)
        elif isinstance(assigned.get("run"), str):
            own, papermills = set(assigned), set()  # what papermill set before is overwritten
    if not own:
        raise ParameterError(f"no parameters of {notebook} yet: run its cell of parameters first")
    values = check(notebook, {name: namespace.get(name) for name in own | papermills})
    namespace.update(values)
    return values


def shell():
    """IPython's shell where there is one; it is not imported to find out."""
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None


def _value(notebook: str, name: str, given: object, default: object) -> object:
    rule = PARAMETERS.get(f"{notebook}.{name}", PARAMETERS.get(name))
    example = f"for example {name}: {json.dumps(default, ensure_ascii=False)}"
    try:
        value = _convert(rule, given)
    except TypeError as error:
        raise ParameterError(f"{name} = {given!r} {error}: {example}") from None
    if value is None or _holds(rule, value):
        return value
    remedy = nearest(value, rule.get("near", "").split(), example)
    raise ParameterError(f"{name} = {value!r} must be {rule['says']}: {remedy}")


def _holds(rule: dict, value: str | float) -> bool:
    if isinstance(value, str):
        return re.fullmatch(rule.get("pattern", "(?s).*"), value) is not None
    inside = rule.get("least", -math.inf) <= value <= rule.get("most", math.inf)
    inside = inside and rule.get("above", -math.inf) < value < rule.get("below", math.inf)
    return inside or value == rule.get("also")


def _convert(rule: dict, given: object) -> object:
    """The value as its kind. "5e-4" is a number: YAML 1.1, and so papermill, reads it as text.
    TypeError says what is meant instead."""
    kind, value, text = rule.get("kind", "str"), given, isinstance(given, str)
    if rule.get("none") and given in (None, "null", "None"):
        return None
    if kind == "str" and not text:
        raise TypeError("is not text: put it in quotes, or in papermill give it by -r, not -p")
    if kind == "bool":
        value = {"true": True, "false": False}.get(str(given).lower())
        if value is None or not isinstance(given, str | bool):
            raise TypeError("is not true or false")
    if kind in ("int", "float"):
        for parse in (float, int) if text else ():  # int: exact beyond 2^53
            with contextlib.suppress(ValueError):
                value = parse(given)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise TypeError("is not a number")
        if kind == "int" and value != int(value):
            raise TypeError("is not a whole number")
        return int(value) if kind == "int" else float(value)
    return value


def _wrong_together(values: dict) -> Iterator[str]:
    """Values that each may be, and not so."""
    lengths = tokens_of(values.get("cooldowns", "")).values()
    yield from _broken("any", values, longest=max(lengths, default=0))
    for name in (n for n in values if n.endswith("shape")):
        try:
            LlamaConfig(vocab_size=1, **sized(values[name]))
        except ValueError as error:
            yield f"{name} = {values[name]}: {error}"


def _broken(rules: str, values: dict, **more: object) -> list[str]:
    """A line for each of parameters.yaml's rules of several values that these break."""
    template = jinja2.Template(TABLE["together"][rules], trim_blocks=True)
    return template.render(values, repr=repr, **more).splitlines()


def tokens_of(cooldowns: str) -> dict[str, int]:
    """ "500k 1.5M" → name of each length → its tokens, the shortest first."""
    units = {"k": 1_000, "M": 1_000_000}
    pairs = ((name, round(float(name[:-1]) * units[name[-1]])) for name in cooldowns.split())
    return dict(sorted(pairs, key=lambda pair: pair[1]))


def _wrong_paths(notebook: str, values: dict) -> Iterator[str]:
    good = True
    for name, (exists, says) in SOURCES.items():
        paths = [ROOT / path for path in external(notebook, {name: values.get(name)})]
        readable = [exists(path) and os.access(path, os.R_OK, effective_ids=True) for path in paths]
        if not all(readable):
            good, path = False, paths[readable.index(False)]
            fault = f"{path} is not there, is not one, or may not be read (chmod -R a+rX)"
            must = f"{name} = {values[name]!r} must be {says}"
            yield f'{must}: {fault}; correct the path, or give "" for none'
    if values.get("wandb") and importlib.util.find_spec("wandb") is None:
        fault = f"wandb = {values['wandb']!r} needs the package wandb, which is not installed"
        yield f'{fault}: {sys.executable} -m pip install wandb, or give "" for none'
    if notebook == TEACHER and good:
        yield from _broken("given", values)
    out = ROOT / values["out"]
    there = next(p for p in (out, *out.parents) if os.path.lexists(p))  # it makes what is below
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        what = "may not be written here" if there.is_dir() else "is no folder"
        yield f"out = {values['out']!r} must be a folder: {there} {what}; give another"


def shown(path: Path) -> str:
    """A path as a reader would write it: from the repository's root where it lies in there."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def _assignments(source: str) -> list[tuple[str, object]] | None:
    """Name, value of a cell of plain assignments (... for no literal); None for any other cell."""
    pairs = []
    try:
        for statement in ast.parse(source).body:
            (target,) = statement.targets
            try:
                pairs.append((target.id, ast.literal_eval(statement.value)))
            except ValueError:
                pairs.append((target.id, ...))
    except (SyntaxError, AttributeError, ValueError):  # a cell with % or !, or of other statements
        return None
    return pairs


def stop(problems: Iterable[str]) -> None:
    """ParameterError with a line for each problem, where there is one."""
    if lines := "\n".join(problems):
        raise ParameterError(lines)
