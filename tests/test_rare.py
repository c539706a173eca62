"""Rare constructions: where they stand in the tokens, and that a small student's hard set finds
those that its teacher has learnt and it has not."""

import csv
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from tdlib import book, data, hard_set, tables, telugu, text, train
from tdlib.model import Llama, LlamaConfig

OFTEN = (2, 6)  # every fourth sentence is rare; in ordinary text it is one in 66

# where they stand


def written(folder, characters, seed, tokenizer, **often) -> data.Tokens:
    documents, rares = telugu.write(characters, seed, **often)
    rare = book.rare_lines(documents, rares)
    data.write_tokens(folder, {"train": documents, "val": documents[-2:]}, tokenizer, 24, rare)
    return data.open_tokens(folder)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> data.Tokens:
    """Written text as 00 prepares it, its documents cut into short sections, three splits."""
    p = dict(
        text="", tokens="", tokenizer="", text_characters=150_000, text_seed=4, split_seed=1,
        section_characters=1_500, vocab_size=700, context=32, val_share=0.2, confirm_share=0.1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("run") / "tokens"
    assert "Rare constructions, at known places" in book.prepare(p, folder)
    return data.open_tokens(folder)


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
    documents, rares = telugu.write(150_000, 4)
    assert len(text.section(documents, 1_500)) > 1.5 * len(documents)  # the cutting did happen
    parts = [sentences(prepared, split) for split in ("train", "val", "confirm")]
    assert all(parts)
    assert sum(parts, Counter()) == Counter((rare.kind, rare.text) for rare in rares)
    _, rares = telugu.write(60_000, 5, rare_every=OFTEN)
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
    data.write_tokens(tmp_path / "tokens", splits, tokenizer, context, rare)
    tokens = data.open_tokens(tmp_path / "tokens")
    assert len(tokens.train) == 1
    assert {kind: holds_N.tolist() for kind, holds_N in tokens.rare("train").items()} == {
        "numeral": [False]
    }


def test_a_text_that_reports_none_has_none_and_02_says_so(tokenizer, tmp_path):
    documents, _ = telugu.write(20_000, 1)
    data.write_tokens(
        tmp_path / "tokens", {"train": documents, "val": documents[:1]}, tokenizer, 32
    )
    assert not (tmp_path / "tokens" / "rare.tsv").exists()
    tokens = data.open_tokens(tmp_path / "tokens")
    assert tokens.rare("train") == {}
    nothing_N = np.zeros(len(tokens.train), np.float32)
    areas = book.rare_areas(tokens, hard_set.Scores(nothing_N, nothing_N))
    assert areas == [] and "has no rare constructions reported" in book.rare_in_words(areas)


# the area under the curve


@pytest.mark.parametrize("ties", [False, True])
def test_the_area_is_the_share_of_pairs_in_the_right_order_and_half_of_the_ties(ties):
    rng = np.random.default_rng(3)
    score_N = rng.integers(0, 5, 60) if ties else rng.normal(size=60).astype(np.float32)
    holds_N = rng.random(60) < 0.3
    pairs = [(a > b) + (a == b) / 2 for a in score_N[holds_N] for b in score_N[~holds_N]]
    assert tables.area_under_curve(score_N, holds_N) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_02_scores_the_targets_of_windows_by_difficulty_by_teacher_loss_and_by_short_text(dense):
    losses_SN = np.random.default_rng(1).normal(size=(2, len(dense.train))).astype(np.float32)
    _, targets_NT = dense.train.batch(range(len(dense.train)))
    characters_N = np.array([len(dense.tokenizer.decode(ids.tolist())) for ids in targets_NT])
    wanted = {"difficulty": losses_SN[0] - losses_SN[1], "teacher loss": losses_SN[1]}
    any_N = np.any(list(dense.rare("train").values()), axis=0)
    every = book.rare_areas(dense, hard_set.Scores(*losses_SN))[0]
    assert every.pop("kind") == "all kinds" and every.pop("windows") == any_N.sum()
    for name, score_N in (wanted | {"length": -characters_N}).items():
        pairs_AB = score_N[any_N][:, None] - score_N[~any_N]
        area = ((pairs_AB > 0) + (pairs_AB == 0) / 2).mean()
        assert every.pop(name) == pytest.approx(area, abs=1e-12)
    assert not every


def test_each_kind_is_compared_with_the_windows_that_hold_none():
    score_N = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    holds = {
        "a": np.array([0, 1, 0, 0, 0], bool),
        "b_c": np.array([0, 0, 0, 1, 1], bool),
        "d": np.zeros(5, bool),  # only in another split
    }
    # without any: 0 and 2. Pairs in order: of a 1 of 2, of b 4 of 4
    areas = tables.rare_areas(holds, {"s": score_N})
    assert areas == [
        {"kind": "all kinds", "windows": 3, "s": 5 / 6},
        {"kind": "a", "windows": 1, "s": 0.5},
        {"kind": "b c", "windows": 2, "s": 1.0},
    ]
    assert tables.rare(areas)["s"].tolist() == ["0.833", "0.500", "1.000"]
    assert tables.rare_areas({"a": np.ones(5, bool)}, {"s": score_N}) == []


def test_the_sentence_of_02_says_whether_difficulty_is_above_both_simple_scores():
    row = {"kind": "all kinds", "windows": 188, "difficulty": 0.61}
    said = book.rare_in_words([row | {"teacher loss": 0.52, "length": 0.6}])
    assert "188 windows" in said and "0.610, above both" in said
    assert "**not** above" in book.rare_in_words([row | {"teacher loss": 0.52, "length": 0.62}])
    assert "**not** above" in book.rare_in_words([row | {"teacher loss": 0.61, "length": 0.4}])


# the hard set finds them

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
    every = book.rare_areas(found.tokens, found.seldom)[0]
    simple = [every["teacher loss"], every["length"]]
    assert every["difficulty"] >= 0.75
    assert every["difficulty"] > max(simple + [1 - area for area in simple]) + 0.05  # either way up
    chosen = hard_set.select(found.seldom.difficulty_N, share=0.2)
    assert found.holds_N[chosen.windows_K].sum() > 0.5 * found.holds_N.sum()


def test_difficulty_knows_nothing_of_them_where_the_student_has_read_them_as_often(found):
    assert book.rare_areas(found.tokens, found.often)[0]["difficulty"] < 0.65


def test_shuffled_difficulty_knows_nothing_of_them(found):
    shuffled_N = np.random.default_rng(0).permutation(found.seldom.difficulty_N)
    # the area's standard error with some 140 windows is 0.02
    assert tables.area_under_curve(shuffled_N, found.holds_N) == pytest.approx(0.5, abs=0.1)
