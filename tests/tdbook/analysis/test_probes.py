"""Minimal pairs against forms typed by hand, scores against torch's own loss in float64."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tdbook.analysis import probes
from tdbook.corpus import token_files, writer
from tdbook.report import tables
from tests.helpers import cases, tiny_model

BY_HAND, DOCUMENTS = cases(__file__, "test_probes.yaml"), writer.write(30_000, 2)


@pytest.fixture(scope="module")
def tokens(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("probes") / "tokens"
    token_files.write_tokens(folder, {"train": DOCUMENTS, "val": DOCUMENTS}, tokenizer, 64)
    return token_files.open_tokens(folder)


def test_a_pair_is_right_and_wrong_in_one_word_by_forms_typed_by_hand():
    pairs, seen = probes.pairs(5000), set()
    assert len({right for _, right, _ in pairs}) == 5000 and pairs == probes.pairs(5000)
    assert [kind for kind, *_ in pairs] == np.repeat([*probes.FRAMES], 1000).tolist()
    for kind, *both in pairs:
        assert both[0] not in BY_HAND["wrong"] and both[1] not in BY_HAND["right"]
        right, wrong = (sentence.split() for sentence in both)
        (at,) = (i for i, (a, b) in enumerate(zip(right, wrong, strict=True)) if a != b)
        assert at == len(right) - 1 or kind not in ("person", "gender")
        if end := BY_HAND["verbs"].get(right[0]):
            assert right[-1].endswith(f"{end}."), both
            assert wrong[-1].endswith(f"{end}.") == (kind != "person"), both
        for noun in {*right[:2]} & {*BY_HAND["agrees"]} if kind == "gender" else ():
            good, bad = (tuple(ends.split()) for ends in BY_HAND["agrees"][noun].split("|"))
            assert right[-1].endswith(good) and wrong[-1].endswith(bad), both
            seen.add(noun)
        if form := BY_HAND["words"].get(kind, {}).get(right[at]):
            assert wrong[at] == form, both
            seen.add((kind, right[at]))
        if kind == "case":
            dative = right[-1].startswith((*BY_HAND["datives"].split(),))
            assert dative == bool(re.search("(కు|కి)$", right[at])), both
    assert len(seen) == len(BY_HAND["agrees"]) + sum(map(len, BY_HAND["words"].values())), seen


def test_scores_are_torchs_own_losses_in_float64_whatever_shares_a_batch(monkeypatch, tokens):
    model, rng, p = tiny_model(3), np.random.default_rng(0), []
    sizes = [(int(n), int(rng.integers(1, n))) for n in rng.integers(2, 17, 80)]
    texts = [(rng.integers(0, 97, n).tolist(), start) for n, start in sizes]
    for ids, start in texts:
        logits_SV = model.double()(torch.tensor([ids[:-1]]))[0, start - 1 :].detach()
        p.append(-F.cross_entropy(logits_SV, torch.tensor(ids[start:]), reduction="sum").item())
    for size in (1, 50, 1024):
        monkeypatch.setattr(probes, "BATCH", size)
        assert probes.log_p(model.float(), texts) == pytest.approx(p, rel=1e-5, abs=1e-5)
    wanted = [p[i] > max(p[i + 1 : i + 4]) for i in range(0, 80, 4)]
    items = [probes.Item("", texts[i : i + 4]) for i in range(0, 80, 4)]
    assert probes.right(model, items) == "".join("01"[x] for x in wanted) and 0 < sum(wanted) < 20
    assert probes.right(model, [probes.Item("", texts[:1] * 2)]) == "0"  # a draw
    # pairs are scored from where they differ: what is the same, 100 nats, changes no difference
    model, items = tiny_model(2, tokens.vocab_size, 64), probes.pair_items(tokens)[::50]
    apart = [text for item in items for text in item.texts]
    whole = [([tokens.eos, *ids[1:-1], tokens.eos], 1) for ids, _ in apart]
    whole, apart = (np.diff(probes.log_p(model, x).reshape(-1, 2)) for x in (whole, apart))
    np.testing.assert_allclose(apart, whole, atol=1e-3)


def test_last_words_are_of_one_document_of_a_length_and_of_an_ending(tokens):
    items, decode = probes.cloze_items(tokens), tokens.tokenizer.decode
    assert len(items) > 50 and len({item.group for item in items}) > 2
    for document, texts in items:
        text = "\n".join(DOCUMENTS[document].lines)
        (start,) = {decode(ids[:start]) for ids, start in texts}
        assert decode(texts[0][0]).strip() in text and max(start for _, start in texts) <= 32
        words = [decode(ids)[len(start) :].strip()[:-1] for ids, _ in texts]
        assert len({*words}) == 4 and len({word[-2:] for word in words}) == 1, words
        assert all(abs(len(word) - len(words[0])) <= 1 and word in text for word in words)


def test_without_plain_text_there_is_a_dash_and_shares_are_those_by_hand(tokens):
    upstream = replace(tokens.tokenizer, kind="Morfessor", model=None)
    assert probes.pair_items(replace(tokens, tokenizer=upstream)) == []
    fewer = replace(tokens, meta=tokens.meta | {"vocab_size": 645})  # than pieces
    texts = [t for i in probes.pair_items(fewer) + probes.cloze_items(fewer) for t in i.texts]
    assert texts and max(max(ids[start:]) for ids, start in texts) < 645
    none = replace(tokens, tokenizer=None)
    items = {"pairs": probes.pair_items(none), "cloze": probes.cloze_items(none)}
    right = {"50m": {key: "" for key in items}}
    assert probes.right(tiny_model(), items["pairs"] + items["cloze"]) == ""
    for table in tables.grammar(items, right, "50m", "50m", 100):
        assert {*table.loc["50m"]} <= {"–", "baseline"}
    items = {"pairs": [probes.Item(kind, []) for kind in ("case", "case", "plural", "plural")]}
    items["cloze"] = [probes.Item(document, []) for document in (3, 3, 5)]
    right = {"50m": {"pairs": "1100", "cloze": "100"}, "teacher": {"pairs": "1011", "cloze": "111"}}
    shares, kinds = tables.grammar(items, right, "50m", "teacher", 100)
    cells = [cell.split(" [")[0] for cell in shares.loc["teacher"]]
    assert cells == ["75.0%", "+25.0%", "100.0%", "+66.7%"]
    assert kinds.loc["50m"].tolist() == ["50.0%", "33.3%", "–", "–", "0.0%", "100.0%", "–"]
