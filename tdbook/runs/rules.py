"""The table of parameters: what each may be, and what else the book knows of it."""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from tdbook.runs.notebooks import DISTILL, HARD_SET, LORA, TEACHER
from tdlib.shapes import SHAPES

LARGE_SCALE = 8  # a lora_scale above it is most likely PEFT's lora_alpha


@dataclass(frozen=True)
class Parameter:
    kind: type  # str, int, float, bool or list
    says: str = ""  # what a value must be
    holds: Callable[..., bool] = lambda value: True
    none: bool = False  # None is allowed
    choices: tuple[str, ...] = ()  # one of them is offered where a value is near it


def _number(kind, low, high=math.inf, *, open_low=False, open_high=False, none=False) -> Parameter:
    says = f"{'above' if open_low else 'at least'} {low:,}"
    if high < math.inf:
        says += f" and {'below' if open_high else 'at most'} {high:,}"

    def holds(value) -> bool:
        above = low < value or (low == value and not open_low)
        return above and (value < high or (value == high and not open_high))

    return Parameter(kind, says, holds, none)


def _choice(*choices: str) -> Parameter:
    return Parameter(str, f"one of {', '.join(choices)}", choices.__contains__, choices=choices)


def _some(says: str, choices: Iterable[str], holds: Callable[[list[str]], bool]) -> Parameter:
    says = f"{says} with spaces between, of {', '.join(choices)}"
    return Parameter(str, says, lambda value: holds(value.split()), choices=tuple(choices))


def _text(pattern: str, says: str, *choices: str) -> Parameter:
    matches = re.compile(pattern).fullmatch
    return Parameter(str, says, lambda value: matches(value) is not None, choices=choices)


def _is_fold(value: str) -> bool:
    fold = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", value)
    return value == "" or (fold is not None and 1 < int(fold[2]) >= int(fold[1]))


def _all(names: str, parameter: Parameter) -> dict[str, Parameter]:
    return dict.fromkeys(names.split(), parameter)


WORD = r"[^\W_][\w.+-]*"
NAME = _text(WORD, "a name of letters (no vowel signs), digits, - _ . +")
_NAME_OR_NONE = _text(f"|{WORD}", 'a name of letters, digits, - _ . +, or ""')
_FLAG, _COUNT, _FROM_0 = Parameter(bool), _number(int, 1), _number(int, 0)
_PART = _number(float, 0, 1, open_low=True)
_TEMPERATURE = _number(float, 0, 100, open_low=True)
# lora.TARGETS, which would need torch
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# "notebook.name" goes before "name"
PARAMETERS = {
    **_all("run profile teacher student base scratch picked_by adapter", NAME),
    **_all("beside unseen_teacher recipe", _NAME_OR_NONE),
    **_all("compare models sweeps", _text(f"|{WORD}( +{WORD})*", "names with spaces between")),
    **_all(f"text tokens {TEACHER}.teacher after_checkpoint after_run", Parameter(str)),
    **_all("redo check_every_id cache_middle compile activation_checkpointing", _FLAG),
    **_all("deterministic leave_out_junk allow_large_scale timed_compile", _FLAG),
    **_all("processes batch_tokens micro_windows fixed_windows sample_tokens", _COUNT),
    **_all("prompt_tokens new_tokens repeats quality_windows", _COUNT),
    **_all("text_seed split_seed token_limit distinct_tokens max_skipped", _FROM_0),
    **_all("checkpoint_minutes epochs clip spike lora_scale", _number(float, 0, open_low=True)),
    **_all("shape middle_shape small_shape", _choice(*SHAPES)),
    "out": _text(r"(?s).*\S.*", "the path of a run folder"),
    "seed": _number(int, 0, 2**63 - 1),  # what torch takes
    "device": _text(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:0", "auto", "cpu", "cuda"),
    "wandb": _text(r"|[^\W_][\w.-]*", 'the name of a project: letters, digits, - _ ., or ""'),
    # the text and the teacher
    "tokenizer": _text(r"|.*\.(model|json)", 'a SentencePiece .model, a tokenizer.json, or ""'),
    "segmenter": _text(r"|.*\.bin", 'a Morfessor model that ends in .bin, or ""'),
    "rope_pairs": _choice("halves", "neighbours"),
    "text_characters": Parameter(
        int, "at least 10,000, or 0 where text or tokens are given", lambda v: v == 0 or v >= 10_000
    ),
    "section_characters": _number(int, 1000),
    **_all("vocab_size shapes_vocab", _number(int, 300, 1_000_000)),
    "context": _number(int, 8),
    "val_share": _number(float, 0, 0.5, open_low=True, open_high=True),
    "confirm_share": _number(float, 0, 0.5, open_high=True),
    # training
    "learning_rate": _PART,
    **_all(f"warmup_share {HARD_SET}.clip", _number(float, 0, 1, open_high=True)),
    "cached_draws": _number(int, 0, 1000),
    "init": _choice("random", "teacher"),
    "weight_decay": _number(float, 0),
    "ce_weight": _number(float, 0, 1),
    "temperature": _TEMPERATURE,
    f"{LORA}.temperature": replace(_TEMPERATURE, none=True),
    "left_out": Parameter(str, 'a fold of several, "1/10", or ""', _is_fold),
    # the hard set and the adapter
    **_all("share hard_share", _number(float, 0, 1, open_low=True, open_high=True)),
    "token_share": _PART,
    **_all(f"{LORA}.share {LORA}.token_share", replace(_PART, none=True)),
    "scores": _text(r"[\w+-][\w.+-]*\.npy", "the name of a .npy file in the folder's scores/"),
    "threshold": Parameter(float, none=True),
    "hard_set": _text(r"[\w+-][\w.+-]*\.json", "the name of a .json file in the run folder"),
    "easy_share": _number(float, 0, 100),
    "windows": _choice("hard", "random", "easiest", "all"),
    "trains": _choice("adapter", "weights"),
    "targets": _some(
        "all, or names", LINEARS, lambda words: words == ["all"] or set() < {*words} <= {*LINEARS}
    ),
    "rank": _number(int, 1, 1024),
    # comparisons, speed and size
    "resamples": _number(int, 100),
    "shapes": _some("shapes", SHAPES, lambda words: {*words} <= {*SHAPES}),
}
# change no result
VOLATILE = {*"redo device out checkpoint_minutes micro_windows max_skipped deterministic".split()}
VOLATILE |= {*"processes activation_checkpointing after_checkpoint after_run wandb".split()}
COMMANDS = ("after_checkpoint", "after_run")  # may hold a key or an address: shown as "set"
OWN = ("run", "profile", "out", "redo")  # of every point of a sweep
# names, places and seeds: two models that differ in these alone are of one setting
LABELS = {*"run profile out seed student adapter base beside hard_set scores fixed_windows".split()}
# what may be given to the first notebook: on the disk, and others' work. What it must be there
GIVEN = {
    "text": (Path.exists, "a file or folder, or several without spaces in them"),
    "tokens": (Path.is_dir, "an existing folder of tokens"),
    "teacher": (Path.exists, "an existing Llama folder or .pt file"),
    "tokenizer": (Path.is_file, "an existing tokenizer file"),
    "segmenter": (Path.is_file, "an existing Morfessor .bin"),
}
TRIED = ("init", "ce_weight", "temperature", "learning_rate", "warmup_share")  # by the recipe
TUNED = {"learning_rate", "temperature", "ce_weight", "weight_decay"}  # for each model alike
ADAPTERS = ("rank", "lora_scale", "targets")  # mean nothing where all weights train
# what two trainings on the hard set may differ in besides what they are compared for
REPLAYS = "share token_share ce_weight temperature epochs token_limit learning_rate".split()
# what the plan says of them: one value, or from, to
PLAN = dict(rank=(16, 32), share=(0.15, 0.25), temperature=(2, 4), epochs=(3, 5))
PLAN |= dict(lora_scale=(1, 1), ce_weight=(0.5, 0.5))
PLAN |= {f"{DISTILL}.learning_rate": (5e-4, 5e-4), f"{LORA}.learning_rate": (1e-4, 1e-4)}


def of(notebook: str, name: str) -> Parameter | None:
    return PARAMETERS.get(f"{notebook}.{name}", PARAMETERS.get(name))


def plan(notebook: str, name: str) -> tuple[float, float] | None:
    """What the plan says of a parameter, which may differ between notebooks; None for nothing."""
    return PLAN.get(f"{notebook}.{name}", PLAN.get(name))
