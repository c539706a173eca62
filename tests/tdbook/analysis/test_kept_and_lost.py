"""Kinds of token, by hand: every bucket of every cut, and what is kept and won back in it."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tdbook.analysis import features
from tdbook.corpus import token_files
from tdlib import data
from tests.helpers import cases, token_folder

WINDOWS = 10  # of four targets
DATA = cases(__file__, "test_kept_and_lost.yaml")
TEN, HELD = DATA["tokens"], DATA["held"]


class Pieces:
    """A vocabulary written out by hand, so that every token's place is known."""

    names = ("<pad>", "<unk>", "<bos>", "<eos>", *sorted({*TEN.split()} - {"<eos>"}))
    size, eos, shown_V = len(names), 3, names

    def vocabulary(self):
        return [name.removeprefix("▁") for name in self.names]

    def begins(self, ids_MS):
        return np.array([name[0] == "▁" for name in self.names])[ids_MS]


@pytest.fixture
def ten(tmp_path: Path) -> data.Tokens:
    train = ["▁TV"] * 1001 + ["▁ఊరు", "లో"] * 100 + ["▁ఇంట్", "లో"] * 10 + ["కు", "."] * 9
    texts = (train, ["<eos>", *TEN.split()])
    splits = ([Pieces.names.index(word) for word in text] for text in texts)
    token_folder(tmp_path, *splits, vocab_size=Pieces.size, block_size=4)
    return replace(token_files.open_tokens(tmp_path), tokenizer=Pieces())


def test_every_bucket_has_the_mean_of_the_tokens_that_it_holds_by_hand(ten):
    """Each token has a loss of its own, so a mean tells which tokens are in it."""
    loss_MT = np.arange(40.0).reshape(10, 4) ** 2
    labels = features.token_cuts(ten, np.arange(WINDOWS))
    assert labels.keys() == HELD.keys()
    losses, documents = {"50m": loss_MT, "teacher": -loss_MT}, np.arange(WINDOWS)
    found, _ = features.kept_and_lost(losses, labels, "50m", [], documents)
    wanted = []
    for cut, (names, _) in labels.items():
        each = [word.replace("_", " ") for word in HELD[cut].split()]
        assert len(each) == 40 and {*each} <= {*names, "–"}
        for name in names:
            if at := [i for i, bucket in enumerate(each) if bucket == name]:
                mean = sum(i * i for i in at) / len(at)
                wanted.append([cut, name, len(at), pytest.approx(mean), pytest.approx(-mean)])
    assert [list(row.values()) for row in found] == wanted


def test_retention_is_of_what_the_teacher_gains_on_a_guess_by_frequency(ten):
    guess_MT, train = features.unigram_loss(ten, np.arange(WINDOWS)), ten.train.ids.tolist()
    for guess, target in zip(guess_MT.flat, ten.val.ids[1:].tolist(), strict=True):
        share = (train.count(target) + 1) / (len(train) + Pieces.size)
        assert math.exp(-guess) == pytest.approx(share)
    for guess, student, teacher in np.random.default_rng(1).uniform(0, 9, (99, 3)).tolist():
        share = features.retention(guess, student, teacher)
        gained = pytest.approx((guess - student) / (guess - teacher))
        assert share == gained if teacher < guess else math.isnan(share)


def test_what_was_won_back_is_a_change_against_the_base_over_documents(ten):
    """కు gets 0.2 better, all else 0.2 worse; without spread an interval is a point."""
    labels = features.token_cuts(ten, np.arange(WINDOWS))
    names, ending_MT = labels["frequent endings"]
    base_MT = np.random.default_rng(0).random((10, 4))
    new_MT = base_MT + np.where(ending_MT == names.index("కు"), -0.2, 0.2)
    asked = labels, "50m", ["new"], np.arange(WINDOWS) // 2
    _, found = features.kept_and_lost({"50m": base_MT, "new": new_MT}, *asked)
    rows = {(row["cut"], row["bucket"]): row for row in found}
    assert rows["frequent endings", "కు"]["new"] == pytest.approx((-0.2,) * 3)
    assert rows["frequent endings", "లో"]["new"] == pytest.approx((0.2,) * 3)
    mixed, low, high = rows["place in the word", "final"]["new"]
    assert mixed == pytest.approx((3 * -0.2 + 6 * 0.2) / 9) and low < mixed < high
    assert "50m" not in rows["script", "digits"] and rows["script", "digits"]["tokens"] == 2


def test_a_masked_target_is_in_no_bucket(ten):
    mask = np.ones(len(ten.val.ids), "u1")
    mask[[1, 4, 20]] = 0
    hidden = replace(ten, val=replace(ten.val, mask=mask))
    plain, found = (features.token_cuts(t, np.arange(WINDOWS)) for t in (ten, hidden))
    for cut, (_, label_MT) in found.items():
        wanted = plain[cut][1].flatten()
        wanted[[0, 3, 19]] = -1
        np.testing.assert_array_equal(label_MT.flatten(), wanted)


def test_a_piece_is_of_the_script_of_its_first_character():
    pieces = DATA["scripts"]
    assert {k: {*map(features.script, v)} for k, v in pieces.items()} == {k: {k} for k in pieces}


@pytest.mark.parametrize("size", [2**22, 1, 499, 500])
@pytest.mark.parametrize("dtype", ["<u4", "<u2"])
def test_frequencies_are_those_of_counting_one_by_one(monkeypatch, size, dtype):
    ids = np.random.default_rng(6).zipf(1.4, 500).clip(max=29).astype(dtype)
    monkeypatch.setattr(features, "PIECE", size)
    train, listed = data.Windows(ids, 12), ids.tolist()
    assert features.frequency(train, 31).tolist() == [listed.count(i) for i in range(31)]
    previous, this = np.meshgrid(np.arange(31), np.arange(31))  # never-seen ids among them
    pairs = list(pairwise(listed))
    wanted = [[pairs.count((a, b)) for a in range(31)] for b in range(31)]
    assert features.pair_frequency(train, previous, this).tolist() == wanted
