"""Generation against full forwards of transformers' Llama, and draws against float64 by hand."""

import numpy as np
import pytest
import scipy.stats
import torch

from tdbook.export import inference
from tdbook.export.decoder import Decoder
from tdlib import generate
from tdlib.data import EOS
from tests.helpers import refused, tiny_model
from tests.tdlib.test_model import tiny, twin

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
def test_greedy_texts_are_those_of_transformers(shape):
    model, told = tiny(scale=12.0, vocab_size=V, context=CONTEXT, **shape), set()
    judge = twin(model)
    for prompt in prompts(3):
        new = CONTEXT - len(prompt)
        how = dict(max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0)
        theirs = judge.generate(torch.tensor([prompt]), **how)[0, len(prompt) :].tolist()
        told |= set(theirs)
        for form, cached in WRITERS:
            assert generate.generate(form(model), prompt, new, cached=cached) == theirs
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


def test_the_seed_alone_draws_and_the_global_generator_is_left_alone(model):
    before = torch.random.get_rng_state()
    texts = [generate.generate(model, [7, 8], 20, temperature=1.0, seed=s) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("form", [lambda model: model, Decoder], ids=["Llama", "Decoder"])
@pytest.mark.parametrize("temperature", [0.6, 1.5])
def test_draws_follow_the_probabilities_by_hand(form, temperature):
    """The softmax in float64."""
    model, draws = tiny_model(8, 12, 8, scale=4.0, layers=1), 1000
    with torch.no_grad():
        p_V = (model(torch.tensor([[3, 5]]))[0, -1].double() / temperature).softmax(0).numpy()
    how, writer = dict(temperature=temperature), form(model)
    found = [generate.generate(writer, [3, 5], 1, seed=seed, **how) for seed in range(draws)]
    count_V = np.bincount(np.ravel(found), minlength=12)
    often_V = p_V * draws >= 5  # the test's own rule; the rest goes into one cell
    rest = int(p_V[~often_V].sum() > 0)
    cells = [np.r_[x[often_V], [x[~often_V].sum()] * rest] for x in (count_V, p_V * draws)]
    assert len(cells[0]) >= 3
    assert scipy.stats.chisquare(*cells).pvalue > 1e-3
    with refused("temperature is -0.1, it must be 0 or more"):
        generate.generate(writer, [5], 1, temperature=-0.1)


def test_repetition_by_hand():
    found = inference.repetition([[1, 2, 3, 4, 1, 2, 3, 4, 1], [1, 2, 3, 4]])
    # six 4-grams of the first text, of which 1234 and 2341 come twice, and one of the second
    assert found["repeated_4grams"] == 2 / 7
    assert found["distinct_2grams"] == 4 / 11  # 12 23 34 41 among 8 + 3
    assert all(np.isnan(list(inference.repetition([[1], []]).values())))
