"""SET=: parameters for one command, in a run folder of their own."""

import json
from pathlib import Path

import pandas as pd
import pytest

from tdbook.runs import hashes, parameters
from tdbook.runs.parameters import ParameterError
from tdbook.runs.running import start
from tdbook.workflow import graph, run_pages
from tdlib import files
from tests import small_book

NAMES = ("01_distill-50m", "01_distill-50m-scratch", "05_progressive")


def jobs(text: str, what: str = "book", **pairs: str) -> dict[str, graph.BookRun]:
    pairs = {"PROFILE": "smoke", "OUT": "/tmp/none", "SET": text} | pairs
    return graph.jobs(graph.wanted(what, pairs).config, paths=False)


def test_a_bare_name_is_every_run_s_that_has_it_and_part_of_its_hash():
    asked = graph.wanted("book", {"PROFILE": "b200", "SET": "token_limit=200_000_000"})
    assert asked.out == "outputs/b200-token_limit-200_000_000"
    for name, one in graph.jobs(asked.config, paths=False).items():
        usual = parameters.read(one.yaml) | {"out": asked.out}
        given = {"token_limit": 200_000_000} if "token_limit" in one.parameters else {}
        assert one.parameters == parameters.check(one.notebook, usual | given, paths=False)
        usual = parameters.check(one.notebook, usual, paths=False)
        same = hashes.decisive(one.parameters) == hashes.decisive(usual)
        assert same != bool(given), name


def test_the_closest_name_decides_also_in_a_sweep():
    text = "seed=5 01.seed=6 01_distill.epochs=7 01_distill-50m.seed=7 02_hard_set.share=0.15"
    runs = {name: one.parameters for name, one in jobs(text).items()}
    assert [runs[name]["seed"] for name in NAMES] == [7, 6, 5]
    assert runs["01_distill-50m-scratch"]["epochs"] == 7 and runs["05_progressive"]["epochs"] != 7
    assert runs["02_hard_set"]["share"] == 0.15
    points = [one for name, one in jobs(text, "sweep", NAME="rank").items() if "rank/03" in name]
    assert points and {one.parameters["seed"] for one in points} == {5}
    with pytest.raises(ParameterError, match="SET: sweep rank varies rank"):
        jobs("rank=4", "sweep", NAME="rank")


def make(asked: graph.Wanted) -> Path:
    """What the runs of a command would leave, and what the scheduler keeps of it."""
    for one in graph.jobs(asked.config).values():
        this = start(one.notebook, one.parameters)
        this.table("x", pd.DataFrame({"loss": [3.0]}))
        small_book.finish(this, one.run)
    files.write_whole(this.out / graph.CONFIG, json.dumps(asked.config))
    run_pages.index(this.out)
    return this.out


def test_scouting_and_the_night_keep_apart_and_what_saw_fewer_tokens_is_stamped(root):
    """In one run folder they would make each other's runs again, which DRY=1 tells."""
    path = root / "notebooks/01_distill.ipynb"
    content = json.loads(path.read_text())
    content["cells"][0]["source"] += "token_limit = 0  # tokens\n"
    path.write_text(json.dumps(content))
    small_book.yaml(root, "01_distill-a", token_limit=900)
    small_book.yaml(root, "04_merge_eval")
    stamps = {"token_limit=500": "token_limit 500", "": "", "token_limit=900 seed=2": ""}
    outs = {text: make(graph.wanted("book", {"SET": text})) for text in stamps}
    assert outs["token_limit=500"].name == "tiny-token_limit-500" and outs[""].name == "tiny"
    for text, out in outs.items():
        stamp = stamps[text]
        for other in stamps:
            asked = graph.wanted("book", {"SET": other, "OUT": f"outputs/{out.name}"})
            why = graph.judged(asked, graph.jobs(asked.config))
            assert bool(why["01_distill-a"]) == (other != text), (text, other)
        for run in ("01_distill-a", "04_merge_eval"):
            assert files.record(out / f"results/{run}.json").get("scouting", "") == stamp
            assert ("scouting" in (out / f"tables/{run}-x.csv").read_text()) == bool(stamp)
        assert "scouting" not in (out / "tables/00_teacher-x.csv").read_text()
        assert (f"scouting: {stamp}" in (out / "index.html").read_text()) == bool(stamp)
