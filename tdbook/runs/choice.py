"""hard_set.json, kept for the runs that read it."""

import json
import re
from dataclasses import asdict
from pathlib import Path

from tdbook.runs import hashes
from tdbook.runs.notebooks import HARD_SET
from tdlib import files, hard_set
from tdlib.hard_set import HardSet


def keep(chosen: HardSet, path: Path, words: str, p: dict | None = None) -> None:
    """hard_set.json, whole or not at all, with the choice in words and the parameters that make it
    again. A run leaves one that was chosen by hand."""
    if re.match(hashes.BY_A_RUN, words) and hashes.by_hand(path):
        print(f"{path.name} was chosen by hand and stays: REDO={HARD_SET} replaces it")
        return
    content = asdict(chosen) | {"windows_K": chosen.windows_K.tolist(), "words": words}
    own = {name: value for name, value in (p or {}).items() if name in hard_set.RULE}
    content["rule"] = {"threshold": chosen.threshold} | hard_set.RULE | own
    files.write_whole(path, json.dumps(content, ensure_ascii=False).encode())


def rule_of(path: Path) -> dict:
    """The parameters that make the kept choice again; of one made elsewhere, its threshold."""
    content = hashes.chosen(path) or {"threshold": hard_set.load(path).threshold}
    return {"threshold": float(content["threshold"])} | hard_set.RULE | content.get("rule", {})
