"""The whole book from the owner's own files, no text at all: a teacher in upstream's format, its @@
tokenizer and its token files, used where they lie."""

import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import upstream
from bs4 import BeautifulSoup

from tdlib import data, telugu, tokenizer, train
from tdlib.model import SHAPES, Llama, LlamaConfig

RUNS = sorted(p.stem for p in (Path(__file__).parents[1] / "params/smoke").glob("*.yaml"))
SIZE, CONTEXT = 700, 32


def content(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def owner(tmp_path_factory) -> Path:
    """data/, tokenizer.json and best.pt: a teacher trained for some seconds on those tokens."""
    place = tmp_path_factory.mktemp("owner")
    lines = [line for document in telugu.write(60_000, 3)[0] for line in document.lines]
    ids = upstream.write(place, lines, SIZE)
    assert len(ids) == SIZE
    torch.manual_seed(0)
    model = Llama(LlamaConfig(vocab_size=SIZE, context=CONTEXT, **SHAPES["teacher-smoke"]))
    recipe = train.Recipe(
        learning_rate=1e-2, epochs=1, token_limit=30_000, batch_tokens=512, ce_weight=1.0
    )
    train.fit(model, data.open_tokens(place / "data", CONTEXT).train, recipe)
    upstream.as_checkpoint(model, place / "best.pt")
    return place


@pytest.fixture(scope="module")
def made(owner, make_book, tmp_path_factory) -> Path:
    out, before = tmp_path_factory.mktemp("runs") / "owner", content(owner)
    done = make_book(
        out, f"TOKENS={owner / 'data'}", f"TEACHER={owner / 'best.pt'}",
        f"TOKENIZER={owner / 'tokenizer.json'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert content(owner) == before
    return out


def test_every_run_has_its_report_and_each_shows_telugu_without_markers(made):
    for run in RUNS:
        state = json.loads((made / "state" / f"{run}.json").read_text())
        assert state["state"] == "done", state
        page = BeautifulSoup((made / f"{run}.html").read_text("utf8"), "html.parser")
        words = page.get_text(" ")
        assert "@@" not in words
        shows_text = not run.startswith(("03", "04"))
        assert len(re.findall("[\u0c00-\u0c7f]{2,}", words)) > 5 * shows_text, run


def test_the_tokens_are_the_owners_own_files(made, owner):
    for split in ("train", "val"):
        assert os.path.samefile(made / f"tokens/{split}.bin", owner / f"data/{split}.bin")
    assert json.loads((owner / "data/meta.json").read_text())["block_size"] == 2048
    assert data.open_tokens(made / "tokens").context == CONTEXT


def test_decoded_validation_text_is_the_source(made):
    tokens = data.open_tokens(made / "tokens")
    lines = [line for document in telugu.write(60_000, 3)[0] for line in document.lines]
    text = "\n".join(" ".join(line.split()) for line in lines) + "\n"
    assert text.endswith(tokens.tokenizer.decode(tokens.val.ids.tolist()))
    held = len(tokens.tokenizer.decode(tokens.val.ids.tolist()).encode()) / len(tokens.val.ids)
    assert tokens.bytes_per_token() == pytest.approx(held, rel=0.05)  # from some windows


def test_the_imported_teacher_is_the_checkpoint(made, owner):
    from transformers import AutoModelForCausalLM

    state = torch.load(owner / "best.pt", weights_only=True)["model"]
    theirs = AutoModelForCausalLM.from_pretrained(made / "models/teacher").state_dict()
    assert torch.equal(
        theirs["model.embed_tokens.weight"], state["_orig_mod.transformer.wte.weight"]
    )
    loss = json.loads((made / "results/00_teacher.json").read_text())["models"]["teacher"]["loss"]
    assert loss < np.log(SIZE) - 1  # it knows this text


def test_places_in_the_word_are_told_by_the_joints(made, owner):
    """Each token after one with @@ goes on with its word, by the raw table."""
    ids = json.loads((owner / "tokenizer.json").read_text("utf8"))["token_to_id"]
    joint_V = np.array([name.endswith("@@") for name in ids])
    ids_MS = np.fromfile(owner / "data/val.bin", "<u4")[: 20 * 33].reshape(20, 33)
    begins_MS = tokenizer.open(owner / "tokenizer.json").begins(ids_MS)
    assert (begins_MS[:, 1:] == ~joint_V[ids_MS[:, :-1]]).all()
