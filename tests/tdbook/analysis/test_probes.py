"""Pairs against endings written down here; scores against float64, one text at a time."""

import copy
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench import probes as made
from tdbook.analysis import intervals, probes
from tdbook.analysis.probes import KINDS, LAST, PAIRS, Item
from tdbook.corpus import token_files
from tdbook.corpus.text import Document
from tdbook.report import words
from tests.helpers import cases, tiny_model

DATA = cases(__file__, "test_probes.yaml")


def test_sentences_of_a_pair_differ_in_one_form_and_that_of_the_second_is_wrong():
    found, ends = probes.pairs(), DATA["verb"]
    assert found == made.pairs() != made.pairs(seed=2)
    assert PAIRS.read_text("utf8") == made.content()
    assert Counter(item.kind for item in found) == dict.fromkeys(KINDS, 200)
    rights, wrongs = ({item.texts[i] for item in found} for i in (0, 1))
    assert len({item.texts for item in found}) == 1000 and not rights & wrongs
    for kind, _, texts, _ in found:
        right, wrong = (text.removesuffix(".").split() for text in texts)
        (at,) = (i for i, two in enumerate(zip(right, wrong, strict=True)) if len({*two}) == 2)
        assert right[1] in DATA["adverbs"].split()  # or the subject might be a genitive
        own = next(end for subject, end in ends.items() if re.fullmatch(subject, right[0]))
        assert right[-1].endswith(own)
        if kind in DATA["noun"]:
            assert re.fullmatch(DATA["noun"][kind], f"{right[at]} {wrong[at]}"), texts
            has_object = bool(re.match(DATA["with object"], right[-1]))
            assert kind != "case" or has_object == bool(re.search("(న|ని|ను)$", right[at])), texts
        else:
            assert at == len(right) - 1
            assert wrong[at].endswith(tuple(DATA["other"][kind][own].split())), texts


def test_texts_score_together_as_each_scores_alone_in_float64():
    rng, net = np.random.default_rng(0), tiny_model(context=16, scale=20.0)
    sizes, exact = rng.integers(2, 18, (40, 4)), copy.deepcopy(net).double()
    ids_IC = [tuple(tuple(rng.integers(0, 97, n).tolist()) for n in size_C) for size_C in sizes]
    items = [Item(LAST, 0, (), ids_C[: 2 + 2 * (i % 2)]) for i, ids_C in enumerate(ids_IC)]
    for item, logp_C in zip(items, probes.log_probabilities(net, items), strict=True):
        for ids, logp in zip(map(torch.tensor, item.ids), logp_C, strict=True):
            logp_TV = exact(ids[None, :-1])[0].log_softmax(-1)
            assert logp == pytest.approx(logp_TV.gather(1, ids[1:, None]).sum().item(), rel=1e-5)


def test_what_the_tokenizer_loses_or_the_context_has_no_room_for_is_left_out():
    def encode(texts):
        return [[1 if c in "ిు" else ord(c) for c in text] for text in texts]

    tokenizer = SimpleNamespace(encode=encode, joined=False)
    tokens = SimpleNamespace(tokenizer=tokenizer, eos=3, context=20)
    texts = DATA["encoded"]
    found = [*probes.encoded([Item("case", i, tuple(x)) for i, x in enumerate(texts)], tokens)]
    assert [item.group for item in found] == [1, 2]
    assert found[0].ids == tuple((3, *ids) for ids in encode(texts[1]))
    assert found[1].ids == tuple(tuple(ids[7:]) for ids in encode(texts[2]))
    tokens.tokenizer.joined = True
    assert not [*probes.encoded(found, tokens)]


def test_last_words_stand_against_words_alike_of_their_own_document(tmp_path, tokenizer):
    documents = [Document(tuple(lines), "one") for lines in DATA["documents"]]
    splits = {"train": documents, "val": documents}
    token_files.write_tokens(tmp_path / "tokens", splits, tokenizer, context=8)
    tokens = token_files.open_tokens(tmp_path / "tokens")
    found = [*probes.last_words(tokens)]
    assert sorted((item.group, item.texts[0]) for item in found) == [tuple(x) for x in DATA["last"]]
    for item in found:
        each = {text.removesuffix(".").split()[-1] for text in item.texts}
        assert len(each) == 4 and len({(len(word), word[-3:]) for word in each}) == 1
        assert each <= {*" ".join(DATA["documents"][item.group]).replace(".", "").split()}
    assert found == [*probes.last_words(tokens)]
    models = {"50m": tiny_model(vocab=700, context=8), "teacher": tiny_model(1, 700, 8)}
    items, right = [*probes.encoded(found, tokens)], []
    for name, model in models.items():
        model.save(tmp_path / name)
        best = [logp_C.argmax() for logp_C in probes.log_probabilities(model, items)]
        right.append((np.array(best) == 0).astype(float))
    measured = probes.measure(tmp_path, [*models], tokens, "50m", "cpu")
    assert [row[LAST] for row in measured["rows"]] == [*map(np.mean, right)]
    change = intervals.change(*right[::-1], np.array([item.group for item in items]))
    assert measured["rows"][1][f"{LAST} more"] == change and change.value != 0
    assert measured["last"] == len(items) and 0 < measured["asked"] < measured["made"] == 1000
    said = words.say("probes", found=measured, teacher="teacher")
    assert f"Of {measured['asked']} pairs the" in said and "are left out" in said
