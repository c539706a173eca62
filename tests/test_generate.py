"""Generation against full forwards without a cache, and draws against the softmax."""

import numpy as np
import pytest
import scipy.stats
import torch

from tdlib import generate
from tdlib.data import EOS

V, CONTEXT = 97, 48


@pytest.fixture(scope="module")
def model(tiny_llama):
    return tiny_llama(4, V, CONTEXT, kv_heads=1)


def prompts(count: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(4, V, n).tolist() for n in rng.integers(1, 9, count)]


def test_each_greedy_token_is_the_argmax_of_one_full_forward(model):
    told, wrong = set(), []
    for prompt in prompts(12):
        new = generate.generate(model, prompt, 30)
        with torch.no_grad():
            logits_TV = model(torch.tensor([prompt + new]))[0, len(prompt) - 1 : -1]
        two_T2 = logits_TV.topk(2).values
        clear_T = two_T2[:, 0] - two_T2[:, 1] > 1e-4
        wrong += [t for t in range(30) if clear_T[t] and new[t] != logits_TV[t].argmax()]
        assert clear_T.float().mean() > 0.9
        told |= set(new)
    assert not wrong
    assert len(told) > 20  # texts that vary, or any cache would do


def test_a_text_may_fill_the_context_and_not_one_token_more(model):
    assert len(generate.generate(model, [5] * 8, CONTEXT - 8)) == CONTEXT - 8
    with pytest.raises(ValueError, match=r"8 \+ 41 tokens are more than the context of 48"):
        generate.generate(model, [5] * 8, CONTEXT - 7)


def test_an_empty_prompt_begins_after_eos(model):
    assert generate.generate(model, [], 10) == generate.generate(model, [EOS], 10)


def test_stop_ends_the_text_and_is_its_last_token(model):
    for prompt in prompts(6):
        whole = generate.generate(model, prompt, 20)
        end = whole.index(whole[7])
        assert generate.generate(model, prompt, 20, stop=whole[7]) == whole[: end + 1]


def test_the_same_seed_draws_the_same_text_and_another_another(model):
    texts = [generate.generate(model, [7, 8], 20, temperature=1.0, seed=s) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_top_k_of_one_is_greedy(model):
    for seed, prompt in enumerate(prompts(6)):
        drawn = generate.generate(model, prompt, 20, temperature=1.7, top_k=1, seed=seed)
        assert drawn == generate.generate(model, prompt, 20)


def test_the_global_generator_is_left_alone(model):
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    generate.generate(model, [7], 10, temperature=1.0, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.5, 0), (2.0, 5)])
def test_draws_follow_the_softmax_at_the_temperature(tiny_llama, temperature, top_k):
    model, draws = tiny_llama(8, 12, 8, scale=4.0, layers=1), 1500
    with torch.no_grad():
        logits_V = model(torch.tensor([[3, 5]]))[0, -1].double().numpy()
    p_V = np.exp(logits_V / temperature - (logits_V / temperature).max())
    p_V[np.argsort(p_V)[: -top_k or None][: 12 - (top_k or 12)]] = 0
    p_V /= p_V.sum()
    found = [
        generate.generate(model, [3, 5], 1, temperature=temperature, top_k=top_k, seed=s)[0]
        for s in range(draws)
    ]
    count_V = np.bincount(found, minlength=12)
    assert count_V[p_V == 0].sum() == 0
    often_V = p_V * draws >= 5  # the test's own rule; the rest goes into one cell
    cells = [
        np.r_[x[often_V], x[~often_V].sum()] if p_V[~often_V].sum() > 0 else x[often_V]
        for x in (count_V, p_V * draws)
    ]
    assert len(cells[0]) >= 3
    assert scipy.stats.chisquare(*cells).pvalue > 1e-3


def test_likeliest_are_the_highest_of_the_softmax(model):
    top = generate.likeliest(model, [5, 6, 7], 5, temperature=2.0)
    with torch.no_grad():
        p_V = (model(torch.tensor([[5, 6, 7]]))[0, -1].double() / 2).softmax(-1).numpy()
    order = np.argsort(-p_V)[:5].tolist()
    assert list(top) == order
    assert list(top.values()) == pytest.approx(p_V[order].tolist(), rel=1e-5)


def test_repetition_by_hand():
    found = generate.repetition([[1, 2, 3, 4, 1, 2, 3, 4, 1], [1, 2, 3, 4]])
    # six 4-grams of the first text, of which 1234 and 2341 come twice, and one of the second
    assert found["repeated_4grams"] == 2 / 7
    assert found["distinct_2grams"] == 4 / 11  # 12 23 34 41 among 8 + 3
    assert generate.repetition([[1, 2, 3, 4, 5]]) == {"repeated_4grams": 0, "distinct_2grams": 1}
    assert all(np.isnan(list(generate.repetition([[1], []]).values())))
