"""Generation and draws against transformers' Llama and its own ways of drawing."""

import numpy as np
import pytest
import scipy.stats
import torch
import transformers

from tdbook.export import inference
from tdbook.export.decoder import Decoder
from tdlib import generate
from tdlib.data import EOS
from tdlib.generate import Sampling
from tests.helpers import refused, tiny_model
from tests.tdlib.test_model import CASES, tiny, twin

V, CONTEXT = 97, 48


@pytest.fixture(scope="module")
def model():
    return tiny_model(4, V, CONTEXT, kv_heads=1)


def prompts(count: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(4, V, n).tolist() for n in rng.integers(1, 9, count)]


# a Llama and its Decoder, with a cache and without
WRITERS = [(form, cached) for form in (lambda model: model, Decoder) for cached in (True, False)]


@pytest.mark.parametrize("shape", [dict(kv_heads=1, heads=4), dict(tied=False)], ids=str)
def test_greedy_texts_are_those_of_transformers_with_and_without_a_penalty(shape):
    model, told = tiny(scale=12.0, vocab_size=V, context=CONTEXT, **shape), set()
    judge = twin(model)
    for prompt, penalty in zip(prompts(3), [1.0, 1.3, 0.8], strict=True):
        new = CONTEXT - len(prompt)
        how = dict(max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0)
        theirs = judge.generate(torch.tensor([prompt]), repetition_penalty=penalty, **how)
        theirs = theirs[0, len(prompt) :].tolist()
        told |= set(theirs)
        for form, cached in WRITERS:
            how = dict(repetition_penalty=penalty, cached=cached)
            assert generate.generate(form(model), prompt, new, **how) == theirs
    assert len(told) > 20  # texts that vary, or any cache would do


def test_a_text_may_fill_the_context_and_not_one_token_more(model):
    for form, cached in WRITERS:
        writer = form(model)
        assert len(generate.generate(writer, [5] * 8, CONTEXT - 8, cached=cached)) == CONTEXT - 8
        with refused("8 + 41 tokens are more than the context of 48"):
            generate.generate(writer, [5] * 8, CONTEXT - 7, cached=cached)
        for odd in (-1, V):
            with refused(f"id {odd} is not in the model's vocabulary of {V}"):
                generate.generate(writer, [5, odd], 1)


def test_stop_ends_the_text_and_an_empty_prompt_begins_after_eos(model):
    assert generate.generate(model, [], 10) == generate.generate(model, [EOS], 10)
    for prompt in prompts(6):
        whole = generate.generate(model, prompt, 20)
        end = whole.index(whole[7])
        assert generate.generate(model, prompt, 20, stop=whole[7]) == whole[: end + 1]
        drawn = generate.generate(model, prompt, 20, temperature=1.7, top_k=1, seed=end)
        assert drawn == whole  # of one likeliest id nothing is drawn


def test_the_seed_alone_draws_and_the_global_generator_is_left_alone(model):
    before = torch.random.get_rng_state()
    texts = [generate.generate(model, [7, 8], 20, temperature=1.0, seed=s) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.random.get_rng_state(), before)


WAYS = {name: Sampling(**way) for name, way in CASES["ways"].items()}
DRAWN = [(WRITERS[0][0], "temperature"), (Decoder, "top-k"), (Decoder, "all")]


def theirs(logits_NV: torch.Tensor, text: list[int], way: Sampling) -> torch.Tensor:
    """Probabilities by transformers' processors, in the order in which its own generate makes
    them, (N, V) in float64."""
    settings = transformers.GenerationConfig(do_sample=True, **vars(way))
    steps = twin(tiny(vocab_size=V))._get_logits_processor(settings, input_ids_seq_length=5)
    return steps(torch.tensor([text] * len(logits_NV)), logits_NV.double()).softmax(-1)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_probabilities_are_those_of_transformers(way):
    logits_NV = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (40, V)).astype(np.float32))
    text = [3, 9, 9, 40, 96]
    found_NV = torch.stack([generate.probabilities(x, text, way) for x in logits_NV])
    np.testing.assert_allclose(found_NV, theirs(logits_NV, text, way), atol=2e-6)
    equal = torch.tensor([1.0, 3.0, 2.0, 2.0, 0.0])  # to the last of top-k: kept
    kept = generate.probabilities(equal, [], Sampling(temperature=1.0, top_k=2)).nonzero()[:, 0]
    assert kept.tolist() == [1, 2, 3]


@pytest.mark.parametrize("form, way", DRAWN)
def test_draws_follow_the_probabilities(form, way):
    way = WAYS[way]
    model, draws = tiny_model(8, 12, 8, scale=4.0, layers=1), 1000
    with torch.no_grad():
        (p_V,) = theirs(model(torch.tensor([[3, 5]]))[:, -1], [3, 5], way).numpy()
    writer = form(model)
    found = [generate.generate(writer, [3, 5], 1, seed=seed, **vars(way)) for seed in range(draws)]
    count_V = np.bincount(np.ravel(found), minlength=12)
    assert count_V[p_V == 0].sum() == 0
    often_V = p_V * draws >= 5  # the test's own rule; the rest goes into one cell
    rest = int(p_V[~often_V].sum() > 0)
    cells = [np.r_[x[often_V], [x[~often_V].sum()] * rest] for x in (count_V, p_V * draws)]
    assert len(cells[0]) >= 3
    assert scipy.stats.chisquare(*cells).pvalue > 1e-3


def test_an_impossible_setting_is_refused_by_name(model):
    for name, values in CASES["impossible"].items():
        for value in values:
            with refused(f"{name} is {value}, it must be"):
                generate.generate(model, [5], 1, **{name: value})


def test_repetition_by_hand():
    found = inference.repetition([[1, 2, 3, 4, 1, 2, 3, 4, 1], [1, 2, 3, 4]])
    # six 4-grams of the first text, of which 1234 and 2341 come twice, and one of the second
    assert found["repeated_4grams"] == 2 / 7
    assert found["distinct_2grams"] == 4 / 11  # 12 23 34 41 among 8 + 3
    assert all(np.isnan(list(inference.repetition([[1], []]).values())))
