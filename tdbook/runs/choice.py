"""hard_set.json: what a run chooses never replaces what a person chose."""

import re
from pathlib import Path

from tdbook.runs import hashes
from tdbook.runs.notebooks import HARD_SET
from tdlib import hard_set


def keep(chosen: hard_set.HardSet, path: Path, words: str) -> None:
    """`hard_set.keep`, unless this is a run's choice and a person's stands there."""
    if re.match(hashes.BY_A_RUN, words) and hashes.by_hand(path):
        print(f"{path.name} was chosen by hand and stays: REDO={HARD_SET} replaces it")
    else:
        hard_set.keep(chosen, path, words)
