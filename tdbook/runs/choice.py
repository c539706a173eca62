"""hard_set.json: of what runs write, this alone may be changed by hand."""

import re
from pathlib import Path

from tdbook.runs import notebooks
from tdlib import files

HARD_SET = "hard_set.json"
BY_A_RUN = r"by [\w.+-]+'s parameters"  # how its words begin where a run chose it


def chosen(path: Path) -> dict | None:
    """A hard set as its file has it; None where that is no choice of windows."""
    choice = files.whole(path, "windows_K", "threshold", "share")
    if choice is None or not isinstance(rows := choice["windows_K"], list):
        return None
    numbers = all(type(choice[key]) in (int, float) for key in ("threshold", "share"))
    whole = all(type(row) is int and row >= 0 for row in rows) and rows == sorted({*rows})
    return choice if numbers and whole else None


def by_hand(path: Path) -> bool:
    """Whether a person chose it, in the explorer or elsewhere."""
    choice = chosen(path)
    return choice is not None and not re.match(BY_A_RUN, choice.get("words", ""))


def keep(hard_set, path: Path, words: str) -> None:
    """`tdlib.hard_set.keep`, unless this is a run's choice and a person's stands there."""
    from tdlib.hard_set import keep  # needs torch

    if re.match(BY_A_RUN, words) and by_hand(path):
        print(f"{path.name} was chosen by hand and stays: REDO={notebooks.HARD_SET} replaces it")
    else:
        keep(hard_set, path, words)
