"""Adapters against PEFT: outputs, sizes, gradients, files both ways; and merging."""

import itertools
import os
import shutil
from functools import partial

import peft
import pytest
import torch

from tdlib import lora
from tdlib.model import Llama
from tests.helpers import near, refused, same, tiny_model, weights_of
from tests.tdlib import test_model
from tests.tdlib.test_model import edit, hugging_face

OPTIONS = test_model.CASES["options of PEFT"]
some_ids = partial(test_model.some_ids, length=32, vocab=97)
SEVEN = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def tiny(seed=0, **change) -> Llama:
    return tiny_model(seed, 97, 32, 4, **dict(heads=4, kv_heads=2, dim=48, mlp_dim=80) | change)


def adapted(rank=4, scale=2.5, seed=0) -> Llama:
    """With adapters that do something: B is drawn, too."""
    model, g = lora.attach(tiny(), rank, scale, seed=seed), torch.Generator().manual_seed(seed)
    for part in lora.adapters(model).values():
        part.lora_B.data = torch.randn(part.lora_B.shape, generator=g) * 0.1
    return model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    tiny().save(folder := tmp_path_factory.mktemp("base") / "50m")
    return folder


def peft_of(base, folder, targets, **how) -> peft.PeftModel:
    torch.manual_seed(3)
    how = dict(init_lora_weights=False, task_type="CAUSAL_LM", target_modules=targets) | how
    theirs = peft.get_peft_model(hugging_face(base), peft.LoraConfig(**how))
    theirs.save_pretrained(folder)
    return theirs


@pytest.mark.parametrize("rank, scale", [(4, 2.5), (3, 1.0), (1, 0.1)])
def test_peft_reads_our_adapters_to_the_same_outputs_and_gradients(rank, scale, base, tmp_path):
    model, ids, folder = adapted(rank, scale), some_ids(), tmp_path / "adapter"
    lora.save(model, folder, base=str(base))
    theirs = peft.PeftModel.from_pretrained(hugging_face(base), folder, is_trainable=True)
    config = theirs.peft_config["default"]
    assert (config.base_model_name_or_path, config.r) == (str(base), rank)
    assert config.lora_alpha == pytest.approx(scale * rank) and config.target_modules == SEVEN
    for logits in (ours := model(ids), wanted := theirs(ids).logits):
        logits.log_softmax(-1).square().mean().backward()
    near(ours, wanted, 1e-5)
    assert not torch.allclose(ours, tiny()(ids), atol=1e-2)  # the adapters do something
    mine, yours = ({n: p.grad for n, p in m.named_parameters()} for m in (model, theirs))
    learn = [{n for n in grads if grads[n] is not None} for grads in (mine, yours)]
    assert len(learn[0]) == len(learn[1]) == 2 * 7 * 2
    for name in learn[0]:
        near(mine[name], yours[f"base_model.model.model.{name}.default.weight"], 1e-5)


@pytest.mark.parametrize("shape, targets", OPTIONS["read"], ids=str)
@torch.no_grad()
def test_we_read_pefts_adapters_and_it_those_that_we_read(shape, targets, tmp_path):
    """QK norms have none."""
    (model := tiny(**shape)).save(base := tmp_path / "base")
    theirs, ids = peft_of(base, tmp_path / "adapter", targets, r=3, lora_alpha=7.5), some_ids()
    lora.load(model, tmp_path / "adapter")
    names = {name.split(".")[-1] for name in lora.adapters(model)}
    assert names == (SEVEN if targets == "all-linear" else {*targets})
    lora.save(model, tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(hugging_face(base), tmp_path / "ours")(ids).logits
    found, wanted = [model(ids), again], theirs(ids).logits
    lora.merge(model).save(tmp_path / "merged")
    for logits in (*found, model(ids), hugging_face(tmp_path / "merged")(ids).logits):
        near(logits, wanted, 1e-5)


@pytest.fixture(scope="module")
def pefts(base, tmp_path_factory):
    """An adapter of PEFT's beside q and v that does something."""
    folder = tmp_path_factory.mktemp("peft") / "adapter"
    peft_of(base, folder, ["q_proj", "v_proj"], r=3, lora_alpha=6)
    return folder


def spoilt(adapter, folder, **change):
    """A copy, its config changed; None removes a key."""
    shutil.copytree(adapter, folder)
    edit(folder, "adapter_config.json", **change)
    return folder


@pytest.mark.parametrize("change", OPTIONS["refused"], ids=str)
def test_an_option_of_peft_is_understood_or_refused_by_its_name(change, pefts, tmp_path):
    folder, model = spoilt(pefts, tmp_path / "adapter", **change), tiny()
    name = next(iter(change))
    with refused(folder, *[name] * ("_modules" not in name)):
        lora.load(model, folder)
    assert not lora.adapters(model)


@pytest.mark.parametrize("change", OPTIONS["without effect"], ids=str)
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_an_option_of_peft_that_changes_nothing_is_read_as_peft_does(change, base, pefts, tmp_path):
    folder, ids = spoilt(pefts, tmp_path / "adapter", **change), some_ids()
    theirs = peft.PeftModel.from_pretrained(hugging_face(base), folder).eval()
    near(lora.load(tiny(), folder)(ids), theirs(ids).logits, 1e-5)


def test_a_cut_adapter_is_named(tmp_path):
    model = tiny()
    for name, share in itertools.product(("config.json", "model.safetensors"), (0.999, 0)):
        folder = tmp_path / f"{name}-{share}"
        lora.save(adapted(), folder)
        path = folder / f"adapter_{name}"
        os.truncate(path, int(share * path.stat().st_size))
        with refused(path, "copy it again"):
            lora.load(model, folder)
        assert not lora.adapters(model)


def test_a_is_drawn_by_the_seed_within_one_over_the_root_of_its_inputs_as_pefts_is():
    one, again, other = (lora.adapters(lora.attach(tiny(), 16, seed=seed)) for seed in (5, 5, 6))
    for name, part in one.items():
        limit = part.weight.shape[1] ** -0.5
        assert 0.95 * limit < part.lora_A.abs().max() <= limit and not part.lora_B.any(), name
        assert torch.equal(part.lora_A, again[name].lora_A)
        assert not torch.equal(part.lora_A, other[name].lora_A)
    a, b = (one[f"layers.{i}.self_attn.q_proj"].lora_A for i in (0, 1))
    assert not torch.equal(a, b)


@torch.no_grad()
def test_merging_is_exact_to_1e_5_in_logits_and_adds_scale_times_b_a():
    for rank, scale in ((16, 1.0), (1, 0.1), (4, 2.5)):
        model, base, ids = adapted(rank, scale), tiny(), some_ids(8, seed=2)
        logits, pairs = model(ids), {n: p.weight.double() for n, p in lora.adapters(model).items()}
        for name, part in lora.adapters(model).items():
            pairs[name] += scale * part.lora_B.double() @ part.lora_A.double()
        assert logits.abs().max() > 2  # a trained model's
        near(lora.merge(model)(ids), logits, 1e-5)
        found = model.state_dict()
        assert list(found) == list(base.state_dict())
        for name, weight in base.state_dict().items():
            wanted = pairs.get(name.removesuffix(".weight"), weight).float()
            assert torch.equal(found[name], wanted) and found[name].dtype == weight.dtype, name
        kinds = [[type(m).__name__ for m in x.modules()] for x in (model, base)]
        assert kinds[0] == kinds[1] and all(p.requires_grad for p in model.parameters())


@torch.no_grad()
def test_saved_adapters_are_the_same_bytes_and_load_on_their_base_to_the_same_bits(base, tmp_path):
    model, content = adapted(), set()
    for _ in range(12):
        lora.save(model, tmp_path / "adapter")
        content.add((tmp_path / "adapter/adapter_model.safetensors").read_bytes())
    again = lora.load(Llama.load(base), tmp_path / "adapter")
    assert len(content) == 1 and torch.equal(again(some_ids()), model(some_ids()))
    trained = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (again, model)]
    assert trained[0] == trained[1]


def test_another_base_is_refused_and_left_as_it_was(base, tmp_path):
    """By our hash; PEFT's files carry none, and are told by their shapes."""
    own, merged, folder = lora.base_hash(tiny()), lora.merge(adapted()), tmp_path / "adapter"
    assert lora.base_hash(adapted()) == lora.base_hash(Llama.load(base)) == own
    lora.save(adapted(), folder, base="models/50m")
    peft_of(base, tmp_path / "peft", sorted(SEVEN), r=4)
    others = [(folder, tiny(seed=1)), (folder, merged)]  # a second merge would count it twice
    others += [(tmp_path / "peft", tiny(**x)) for x in (dict(mlp_dim=96), dict(layers=1))]
    for path, other in (*others, (tmp_path / "peft", tiny(layers=3))):
        before = weights_of(other)
        told = ["another base", "merged already", "models/50m", own[:12]] if path == folder else []
        with refused(path, *told):
            lora.load(other, path)
        assert same(weights_of(other), before)
        assert not lora.adapters(other) and other.head.requires_grad


REFUSED = {
    "0": lambda model: lora.attach(model, 0),
    "lm_head": lambda model: lora.attach(model, 4, targets=("lm_head",)),
    "embed_tokens": lambda model: lora.attach(model, 4, targets=("embed_tokens", "q_proj")),
    "targets": lambda model: lora.attach(model, 4, targets=()),
    "nothing to merge": lora.merge,
    "no adapters": lambda model: lora.save(model, "nowhere"),
    "nowhere": lambda model: lora.load(model, "nowhere"),
}


def test_what_cannot_be_attached_merged_or_saved_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny()
    for word, act in REFUSED.items():
        with refused(word):
            act(model)
        assert not lora.adapters(model) and model.head.requires_grad
    with refused("already has adapters", "merge them first"):
        lora.attach(adapted(), 4)
    with refused("lora", "merge"):
        adapted().save(tmp_path / "model")
    assert not list(tmp_path.iterdir())
