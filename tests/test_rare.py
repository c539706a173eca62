"""Rare constructions: where they stand in the tokens, and that a small student's hard set finds
those that its teacher has learnt and it has not."""

import csv
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats

from tdbook.corpus import prepare, text, token_files, writer
from tdlib import data, hard_set, train
from tdlib.model import Llama, LlamaConfig

OFTEN = (2, 6)  # every fourth sentence is rare; in ordinary text it is one in 66

# where they stand


def written(folder, characters, seed, tokenizer, **often) -> data.Tokens:
    documents, rares = writer.write(characters, seed, **often)
    rare = prepare.rare_lines(documents, rares)
    token_files.write_tokens(
        folder, {"train": documents, "val": documents[-2:]}, tokenizer, 24, rare
    )
    return token_files.open_tokens(folder)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> data.Tokens:
    """Written text as 00 prepares it, its documents cut into short sections, three splits."""
    p = dict(
        text="", tokens="", tokenizer="", text_characters=150_000, text_seed=4, split_seed=1,
        section_characters=1_500, vocab_size=700, context=32, val_share=0.2, confirm_share=0.1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("run") / "tokens"
    assert "Rare constructions, at known places" in prepare.prepare(p, folder)
    return token_files.open_tokens(folder)


def rows(tokens: data.Tokens) -> list[dict]:
    with open(tokens.folder / "rare.tsv", encoding="utf8", newline="") as f:
        return list(csv.DictReader(f, delimiter="\t"))


@pytest.fixture(scope="module")
def dense(tokenizer, tmp_path_factory) -> data.Tokens:
    """Text with so many that a line may hold several, and windows may end on any part of one."""
    return written(tmp_path_factory.mktemp("dense"), 60_000, 5, tokenizer, rare_every=OFTEN)


def sentences(tokens: data.Tokens, split: str) -> Counter:
    """Kind and text at each reported position."""
    found = Counter()
    for row in rows(tokens):
        if row["split"] == split:
            ids = getattr(tokens, split).ids[int(row["first"]) : int(row["end"])]
            found[row["kind"], tokens.tokenizer.decode(ids.tolist())] += 1
    return found


def test_the_tokens_at_a_reported_position_are_the_sentence_and_none_is_missing(prepared, dense):
    documents, rares = writer.write(150_000, 4)
    assert len(text.section(documents, 1_500)) > 1.5 * len(documents)  # the cutting did happen
    parts = [sentences(prepared, split) for split in ("train", "val", "confirm")]
    assert all(parts)
    assert sum(parts, Counter()) == Counter((rare.kind, rare.text) for rare in rares)
    _, rares = writer.write(60_000, 5, rare_every=OFTEN)
    assert len({(rare.document, rare.line) for rare in rares}) < len(rares)  # two in a line
    assert sentences(dense, "train") == Counter((rare.kind, rare.text) for rare in rares)


def test_a_window_holds_a_construction_if_it_must_predict_the_middle_of_its_sentence(dense):
    holds = dense.rare("train")
    targets_NT = np.arange(1, len(dense.train) * 24 + 1).reshape(-1, 24)  # places of the targets
    wanted, on_an_edge = {kind: np.zeros(len(dense.train), bool) for kind in holds}, 0
    for row in rows(dense):
        if row["split"] == "train":
            middle = (int(row["first"]) + int(row["end"])) // 2
            on_an_edge += middle % 24 == 0
            wanted[row["kind"]] |= (targets_NT == middle).any(1)
    assert on_an_edge and len(holds) == 12
    for kind, holds_N in holds.items():
        np.testing.assert_array_equal(holds_N, wanted[kind])


def test_a_construction_after_the_last_whole_window_is_in_none(tokenizer, tmp_path):
    document = text.Document(("ఇది ఒకటి.", "ఇది రెండు."), "a")
    ids = tokenizer.encode(document.lines)
    count = sum(map(len, ids)) + 2  # with each line's <eos>
    context = (count + 1) // 2  # one window, which ends before the middle of the second line
    assert len(ids[0]) + 1 + len(ids[1]) // 2 > context
    rare = {"ఇది రెండు.": {"ఇది రెండు.": "numeral"}}
    splits = {"train": [document], "val": [document]}
    token_files.write_tokens(tmp_path / "tokens", splits, tokenizer, context, rare)
    tokens = token_files.open_tokens(tmp_path / "tokens")
    assert len(tokens.train) == 1
    assert {kind: holds_N.tolist() for kind, holds_N in tokens.rare("train").items()} == {
        "numeral": [False]
    }


def test_a_text_that_reports_none_has_none(tokenizer, tmp_path):
    documents, _ = writer.write(20_000, 1)
    token_files.write_tokens(
        tmp_path / "tokens", {"train": documents, "val": documents[:1]}, tokenizer, 32
    )
    assert not (tmp_path / "tokens" / "rare.tsv").exists()
    assert token_files.open_tokens(tmp_path / "tokens").rare("train") == {}


# the hard set finds them


def area(score_N: np.ndarray, holds_N: np.ndarray) -> float:
    """The chance that a window that holds something scores above one that does not; 0.5 is chance
    (Mann-Whitney U, by scipy)."""
    u = stats.mannwhitneyu(score_N[holds_N], score_N[~holds_N]).statistic
    return float(u) / (holds_N.sum() * (~holds_N).sum())


def length(tokens: data.Tokens) -> np.ndarray:
    """Characters of every training window's text, (N,)."""
    _, targets_NT = tokens.train.batch(range(len(tokens.train)))
    return np.array([len(tokens.tokenizer.decode(ids.tolist())) for ids in targets_NT])


SMALL = dict(layers=1, heads=2, dim=48, mlp_dim=128)
LARGE = dict(layers=2, heads=2, dim=64, mlp_dim=160)


@dataclass(frozen=True)
class Found:
    tokens: data.Tokens  # ordinary text that no model has read
    holds_N: np.ndarray
    seldom: hard_set.Scores  # of a student that read ordinary text
    often: hard_set.Scores  # of one as small that read what the teacher read


def trained(shape: dict, tokens: data.Tokens, seed: int) -> Llama:
    torch.manual_seed(seed)
    net = Llama(LlamaConfig(tokens.vocab_size, context=24, **shape))
    recipe = train.Recipe(
        learning_rate=5e-3, batch_tokens=512, micro_windows=32, warmup_share=0.1, ce_weight=1.0,
        seed=seed,
    )  # fmt: skip
    train.fit(net, tokens.train, recipe, evaluations=1)
    return net


def find(folder, tokenizer, seed: int) -> Found:
    """A teacher that has learnt the rare constructions, a small student that met them seldom, and
    one that met them as often; all scored on fresh ordinary text, in windows of 24 tokens, little
    more than a sentence. `seed` draws text, weights and order."""
    ordinary = written(folder / "ordinary", 300_000, seed, tokenizer)
    dense = written(folder / "dense", 300_000, seed + 1, tokenizer, rare_every=OFTEN)
    fresh = written(folder / "fresh", 450_000, seed + 2, tokenizer)
    teacher = trained(LARGE, dense, seed)
    seldom, often = (trained(SMALL, tokens, seed + 1) for tokens in (ordinary, dense))
    scores = [hard_set.score(student, teacher, fresh.train) for student in (seldom, often)]
    return Found(fresh, np.any(list(fresh.rare("train").values()), axis=0), *scores)


@pytest.fixture(scope="module")
def found(tokenizer, tmp_path_factory) -> Found:
    return find(tmp_path_factory.mktemp("rare"), tokenizer, 100)


def test_the_teacher_has_learnt_the_rare_constructions_and_the_student_has_not(found):
    losses = (found.seldom.teacher_loss_N, found.often.student_loss_N, found.seldom.student_loss_N)
    extra = [float(x[found.holds_N].mean() - x[~found.holds_N].mean()) for x in losses]  # nats
    teacher, often, seldom = extra
    assert found.holds_N.sum() > 100 and found.holds_N.mean() < 0.03
    assert teacher < 0.1 and often < 0.1 and seldom > 0.4


def test_the_hard_set_of_a_small_student_finds_the_rare_constructions(found):
    by_difficulty = area(found.seldom.difficulty_N, found.holds_N)
    simple = [area(x, found.holds_N) for x in (found.seldom.teacher_loss_N, length(found.tokens))]
    assert by_difficulty >= 0.75
    assert by_difficulty > max(simple + [1 - x for x in simple]) + 0.05  # either way up
    chosen = hard_set.select(found.seldom.difficulty_N, share=0.2)
    assert found.holds_N[chosen.windows_K].sum() > 0.5 * found.holds_N.sum()


def test_difficulty_knows_nothing_of_them_where_the_student_has_read_them_as_often(found):
    assert area(found.often.difficulty_N, found.holds_N) < 0.65


def test_shuffled_difficulty_knows_nothing_of_them(found):
    shuffled_N = np.random.default_rng(0).permutation(found.seldom.difficulty_N)
    # the area's standard error with some 140 windows is 0.02
    assert area(shuffled_N, found.holds_N) == pytest.approx(0.5, abs=0.1)
