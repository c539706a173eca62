"""The book up to 02 from the owner's own files, no text at all: a teacher in upstream's format, its
@@ tokenizer and its token files, used where they lie."""

import copy
import hashlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup

from tdbook.corpus import token_files, tokenizer_files, writer
from tdbook.runs import parameters
from tdlib import teacher, train
from tdlib.model import SHAPES, Llama, LlamaConfig
from tests import smoke_book, upstream

ROOT = Path(__file__).parents[1]
SIZE, CONTEXT = 700, 32


def content(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def owner(tmp_path_factory) -> Path:
    """data/, tokenizer.json and best.pt: a teacher trained for some seconds on those tokens."""
    place = tmp_path_factory.mktemp("owner")
    lines = [line for document in writer.write(60_000, 3) for line in document.lines]
    ids = upstream.write(place, lines, SIZE)
    assert len(ids) == SIZE
    torch.manual_seed(0)
    model = Llama(LlamaConfig(vocab_size=SIZE, context=CONTEXT, **SHAPES["teacher-smoke"]))
    recipe = train.Recipe(
        learning_rate=1e-2, epochs=9, token_limit=150_000, batch_tokens=128, ce_weight=1.0
    )
    train.fit(model, token_files.open_tokens(place / "data", CONTEXT).train, recipe)
    upstream.as_checkpoint(model, place / "best.pt")
    return place


@pytest.fixture(scope="module")
def made(owner, tmp_path_factory) -> Path:
    out, before = tmp_path_factory.mktemp("runs") / "owner", content(owner)
    done = smoke_book.command(
        out, f"TOKENS={owner / 'data'}", f"TEACHER={owner / 'best.pt'}",
        f"TOKENIZER={owner / 'tokenizer.json'}", "ONLY=01_distill-50m",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    given = parameters.read(ROOT / "params/smoke/02_hard_set.yaml")
    smoke_book.execute(out, "02_hard_set", given | {"out": str(out), "compare": ""})
    assert content(owner) == before
    return out


def test_every_run_has_its_report_and_each_shows_telugu_without_markers(made):
    assert {path.stem for path in made.glob("0*.html")} >= {"00_teacher", "02_hard_set"}
    for path in made.glob("0*.html"):
        state = json.loads((made / "state" / f"{path.stem}.json").read_text())
        assert state["state"] == "done", state
        words = BeautifulSoup(path.read_text("utf8"), "html.parser").get_text(" ")
        assert not re.search("[\u0c00-\u0c7f]@@", words)
        assert len(re.findall("[\u0c00-\u0c7f]{2,}", words)) > 5, path


def test_what_a_run_was_told_to_take_is_kept_beside_what_it_took(made):
    for path in (made / "results/00_teacher.json", made / "results/01_distill-50m.json"):
        record = json.loads(path.read_text())
        told = record["remembered"]["estimate"]
        assert 0 < told["seconds_low"] < told["seconds_high"] and told["flop"] > 0, path
        assert record["peak_memory_mib"] == pytest.approx(told["peak_memory_mib"], rel=0.3), path
    assert (made / "index.html").read_text("utf8").count("(estimated ") == 2


def test_the_tokens_are_the_owners_own_files(made, owner):
    for split in ("train", "val"):
        assert os.path.samefile(made / f"tokens/{split}.bin", owner / f"data/{split}.bin")
    assert json.loads((owner / "data/meta.json").read_text())["block_size"] == 2048
    assert token_files.open_tokens(made / "tokens").context == CONTEXT


def test_decoded_validation_text_is_the_source(made):
    tokens = token_files.open_tokens(made / "tokens")
    lines = [line for document in writer.write(60_000, 3) for line in document.lines]
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
    begins_MS = tokenizer_files.open(owner / "tokenizer.json").begins(ids_MS)
    assert (begins_MS[:, 1:] == ~joint_V[ids_MS[:, :-1]]).all()


def test_upstreams_own_export_is_caught_and_repaired_with_the_parameter(owner, tmp_path):
    """Its converter leaves Q and K as they are, and pads the embedding with zeros."""
    right = teacher.load(owner / "best.pt")
    wrong = copy.deepcopy(right)
    for layer in wrong.layers:
        for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            heads = linear.weight.view(2, 2, 16, 64)  # heads, halves, pairs, width
            linear.weight = torch.nn.Parameter(heads.transpose(1, 2).reshape(64, 64))
    rows = torch.cat([wrong.head, torch.zeros(9, 64)])
    wrong.embed_tokens.weight = torch.nn.Parameter(rows)
    wrong.config = replace(wrong.config, vocab_size=SIZE + 9)
    wrong.save(tmp_path / "export")
    windows = token_files.open_tokens(owner / "data", CONTEXT).val
    with pytest.raises(ValueError, match="set rope_pairs: neighbours"):
        teacher.check(teacher.load(tmp_path / "export"), windows)
    given = {"tokens": owner / "data", "tokenizer": owner / "tokenizer.json"}
    given |= {"teacher": tmp_path / "export", "rope_pairs": "neighbours"}
    given = {name: str(value) for name, value in given.items()}
    recipe = parameters.read(ROOT / "params/smoke/00_teacher.yaml")
    smoke_book.execute(
        tmp_path / "out", "00_teacher", recipe | given | {"out": str(tmp_path / "out")}
    )
    page = BeautifulSoup((tmp_path / "out/00_teacher.html").read_text("utf8"), "html.parser")
    assert "The last 9 rows of its embedding were zeros" in page.get_text(" ")
    kept = Llama.load(tmp_path / "out/models/teacher").state_dict()
    for name, weight in right.state_dict().items():
        assert torch.equal(kept[name], weight), name
