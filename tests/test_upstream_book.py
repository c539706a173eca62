"""The book up to 02 from the owner's own files, no text at all: a teacher in upstream's format, its
@@ tokenizer and its token files, used where they lie."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from bs4 import BeautifulSoup

from tdbook.corpus import token_files, writer
from tdbook.runs import parameters
from tdlib import train
from tdlib.model import SHAPES, Llama, LlamaConfig
from tests import smoke_book, upstream
from tests.helpers import content

ROOT = Path(__file__).parents[1]
SIZE, CONTEXT = 700, 32


def execute(out: Path, run: str, **given) -> None:
    """A run of the smoke book, in this process."""
    own = parameters.read(ROOT / f"params/smoke/{run}.yaml")
    given = {name: str(value) for name, value in given.items()}
    smoke_book.execute(out, run, own | given | {"out": str(out)})


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return [line for document in writer.write(60_000, 3) for line in document.lines]


@pytest.fixture(scope="module")
def owner(lines, tmp_path_factory) -> Path:
    """data/ for instruction tuning, tokenizer.json and best.pt of the second version: a teacher
    with QK norms and grouped heads, trained for some seconds on those tokens."""
    place = tmp_path_factory.mktemp("owner")
    assert len(upstream.write(place, lines, SIZE)) == SIZE
    upstream.questions(place / "data", SIZE, 2048)
    torch.manual_seed(0)
    shape = SHAPES["teacher-smoke"] | dict(qk_norm=True, kv_heads=1)
    model = Llama(LlamaConfig(vocab_size=SIZE, context=CONTEXT, **shape))
    steps = dict(epochs=9, token_limit=60_000, batch_tokens=128)
    recipe = train.Recipe(learning_rate=1e-2, ce_weight=1.0, **steps)
    train.fit(model, token_files.open_tokens(place / "data", CONTEXT).train, recipe)
    torch.save(upstream.checkpoint(model), place / "best.pt")
    return place


@pytest.fixture(scope="module")
def made(owner, tmp_path_factory) -> Path:
    out, before = tmp_path_factory.mktemp("runs") / "owner", content(owner)
    files = {"TOKENS": "data", "TEACHER": "best.pt", "TOKENIZER": "tokenizer.json"}
    given = [f"{name}={owner / path}" for name, path in files.items()]
    done = smoke_book.command(out, *given, "ONLY=01_distill-50m")
    assert done.returncode == 0, done.stdout + done.stderr
    execute(out, "01_distill-50m-sliced")  # it starts from the teacher
    execute(out, "02_hard_set", compare="")
    assert content(owner) == before
    return out


def test_every_run_has_its_report_and_each_shows_telugu_without_markers(made):
    for run in ("00_teacher", "01_distill-50m", "01_distill-50m-sliced", "02_hard_set"):
        assert not re.search("NaN|Infinity", (made / f"results/{run}.json").read_text())
        state = json.loads((made / "state" / f"{run}.json").read_text())
        assert state["state"] == "done", state
        words = BeautifulSoup((made / f"{run}.html").read_text("utf8"), "html.parser").get_text(" ")
        assert not re.search("[\u0c00-\u0c7f]@@|\\bnan\\b", words)
        assert len(re.findall("[\u0c00-\u0c7f]{2,}", words)) > 5, run


def test_what_a_run_was_told_to_take_is_kept_beside_what_it_took(made):
    for run in ("00_teacher", "01_distill-50m"):
        record = json.loads((made / f"results/{run}.json").read_text())
        told = record["remembered"]["estimate"]
        assert 0 < told["seconds_low"] < told["seconds_high"] and told["flop"] > 0, run
        assert record["peak_memory_mib"] == pytest.approx(told["peak_memory_mib"], rel=0.3), run
    assert (made / "index.html").read_text("utf8").count("(estimated ") == 2


def test_the_tokens_are_the_owners_own_files_and_decode_to_the_source(made, owner, lines):
    for split in ("train", "val"):
        assert os.path.samefile(made / f"tokens/{split}.bin", owner / f"data/{split}.bin")
    assert json.loads((owner / "data/meta.json").read_text())["max_seq_len"] == 2048
    tokens = token_files.open_tokens(made / "tokens")
    assert tokens.context == CONTEXT
    decoded = tokens.tokenizer.decode(tokens.val.ids.tolist())
    assert "".join(" ".join(line.split()) + "\n" for line in lines).endswith(decoded)
    learnt = tokens.val.ids[tokens.val.mask > 0].tolist()
    held = len(tokens.tokenizer.decode(learnt).encode()) / len(learnt)
    assert tokens.bytes_per_token() == pytest.approx(held, rel=0.05)  # from windows
