"""Pairs against endings written down here; scores against float64, one text at a time."""

import copy
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench import probes
from bench.probes import KINDS, LAST, Item
from tdbook.corpus import token_files
from tdbook.corpus.text import Document
from tests.helpers import cases, tiny_model

DATA = cases(__file__, "test_probes.yaml")


def test_sentences_of_a_pair_differ_in_one_form_and_that_of_the_second_is_wrong():
    found, ends = probes.pairs(), DATA["verb"]
    assert found == probes.pairs() != probes.pairs(seed=2)
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


def test_a_batch_scores_a_text_as_it_scores_alone_in_float64():
    rng, net = np.random.default_rng(0), tiny_model(context=16, scale=20.0)
    sizes = rng.integers(2, 18, (40, 4))
    ids_IC = [tuple(tuple(rng.integers(0, 97, n).tolist()) for n in size_C) for size_C in sizes]
    items = [Item(LAST, 0, (), ids_C[: 2 + 2 * (i % 2)]) for i, ids_C in enumerate(ids_IC)]
    exact, found = copy.deepcopy(net).double(), probes.log_probabilities(net, items, batch=7)
    for item, logp_C in zip(items, found, strict=True):
        for ids, logp in zip(map(torch.tensor, item.ids), logp_C, strict=True):
            logp_TV = exact(ids[None, :-1])[0].log_softmax(-1)
            assert logp == pytest.approx(logp_TV.gather(1, ids[1:, None]).sum().item(), rel=1e-5)
    assert probes.log_probabilities(net, []) == []


def test_what_the_tokenizer_loses_or_the_context_has_no_room_for_is_left_out():
    def encode(texts):
        return [[1 if c in "ిు" else ord(c) for c in text] for text in texts]

    tokens = SimpleNamespace(tokenizer=SimpleNamespace(encode=encode), eos=3, context=20)
    texts = DATA["encoded"]
    found = probes.encoded([Item("case", i, tuple(x)) for i, x in enumerate(texts)], tokens)
    assert [item.group for item in found] == [1, 2]
    assert found[0].ids == tuple((3, *ids) for ids in encode(texts[1]))
    assert found[1].ids == tuple(tuple(ids[7:]) for ids in encode(texts[2]))


def test_last_words_stand_against_words_alike_of_their_own_document(tmp_path, tokenizer):
    documents = [Document(tuple(lines), "one") for lines in DATA["documents"]]
    splits = {"train": documents, "val": documents}
    token_files.write_tokens(tmp_path / "tokens", splits, tokenizer, context=8)
    tokens = token_files.open_tokens(tmp_path / "tokens")
    found = probes.last_words(tokens)
    assert sorted((item.group, item.texts[0]) for item in found) == [tuple(x) for x in DATA["last"]]
    for item in found:
        each = {text.removesuffix(".").split()[-1] for text in item.texts}
        assert len(each) == 4 and len({(len(word), word[-3:]) for word in each}) == 1
        assert each <= {*" ".join(DATA["documents"][item.group]).replace(".", "").split()}
    assert found == probes.last_words(tokens) and len(probes.last_words(tokens, count=2)) == 2
