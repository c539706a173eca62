"""Adapters against PEFT: outputs, sizes, gradients, files both ways; and merging."""

import json
import os
import shutil

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from tdlib import lora
from tdlib.model import SHAPES, Llama, LlamaConfig
from tests.helpers import near, one_line

SEVEN = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def tiny(seed=0, **change) -> Llama:
    torch.manual_seed(seed)
    shape = dict(vocab_size=97, layers=2, heads=4, kv_heads=2, dim=48, mlp_dim=80, context=32)
    model = Llama(LlamaConfig(**shape | change))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(4)  # else the adapters hardly show in the logits
    return model


def adapted(rank=4, scale=2.5, seed=0, **options) -> Llama:
    """With adapters that do something: B is drawn, too."""
    model = lora.attach(tiny(), rank, scale, seed=seed, **options)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in lora.adapters(model).values():
            part.lora_B.copy_(torch.randn(part.lora_B.shape, generator=g) * 0.1)
    return model


def some_ids() -> torch.Tensor:
    return torch.randint(97, (2, 32), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def base(tmp_path):
    tiny().save(tmp_path / "base")
    return tmp_path / "base"


def hugging_face(base) -> transformers.LlamaForCausalLM:
    return transformers.LlamaForCausalLM.from_pretrained(base)


@pytest.mark.parametrize("rank, scale", [(4, 2.5), (3, 1.0), (1, 0.1)])
def test_peft_reads_our_adapters_to_the_same_outputs_sizes_and_gradients(
    rank, scale, base, tmp_path
):
    model, ids = adapted(rank, scale), some_ids()
    lora.save(model, tmp_path / "adapter", base=str(base))
    theirs = peft.PeftModel.from_pretrained(
        hugging_face(base), tmp_path / "adapter", is_trainable=True
    )
    assert theirs.peft_config["default"].base_model_name_or_path == str(base)
    for logits in (ours := model(ids), wanted := theirs(ids).logits):
        logits.log_softmax(-1).square().mean().backward()
    near(ours, wanted, 1e-5)
    assert not torch.allclose(ours, tiny()(ids), atol=1e-2)  # the adapters do something

    mine = {n: p for n, p in model.named_parameters() if p.requires_grad}
    yours = {n: p for n, p in theirs.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in mine.values()) == sum(p.numel() for p in yours.values())
    assert len(mine) == len(yours) == 2 * 7 * 2
    for name, weight in mine.items():
        name, letter = name.rsplit(".lora_", 1)
        theirs = yours[f"base_model.model.model.{name}.lora_{letter}.default.weight"]
        near(weight.grad, theirs.grad, 1e-5)


@pytest.mark.parametrize("targets", [sorted(SEVEN), ["q_proj", "v_proj"], "all-linear"])
def test_we_read_pefts_adapters_to_the_same_outputs(targets, base, tmp_path):
    torch.manual_seed(3)
    config = peft.LoraConfig(
        r=3, lora_alpha=7.5, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    theirs, ids = peft.get_peft_model(hugging_face(base), config), some_ids()
    theirs.save_pretrained(tmp_path / "adapter")
    model = lora.load(Llama.load(base), tmp_path / "adapter")
    near(model(ids), theirs(ids).logits, 1e-5)
    near(lora.merge(model)(ids), theirs.merge_and_unload()(ids).logits, 1e-5)


@pytest.fixture(scope="module")
def pefts(tmp_path_factory):
    """A base, and an adapter of PEFT's beside q and v that does something."""
    place = tmp_path_factory.mktemp("peft")
    tiny().save(place / "base")
    config = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"], init_lora_weights=False,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    peft.get_peft_model(hugging_face(place / "base"), config).save_pretrained(place / "adapter")
    return place


def spoilt(place, folder, **change):
    """A copy, its config changed; None removes a key."""
    shutil.copytree(place / "adapter", folder)
    path = folder / "adapter_config.json"
    known = json.loads(path.read_text()) | change
    path.write_text(json.dumps({k: v for k, v in known.items() if v is not None}))
    return folder


@pytest.mark.parametrize(
    "change",
    # PEFT reads each otherwise than plain LoRA: other weights, another base, tokens, or none of it
    [dict(target_modules=["q_proj"]), dict(exclude_modules=["v_proj"]),
     dict(target_modules=["model.layers.0.self_attn.q_proj"]), dict(target_modules="x"),
     dict(init_lora_weights="pissa"), dict(init_lora_weights="olora"), dict(use_rslora=True),
     dict(layers_to_transform=[1]), dict(layer_replication=[[0, 2]]), dict(bias="all"),
     dict(trainable_token_indices=[1]), dict(alora_invocation_tokens=[5]), dict(use_qalora=True),
     dict(target_parameters=["x"]), dict(arrow_config={"top_k": 2}), dict(peft_type="LOHA"),
     dict(an_option_of_2027="x"), dict(modules_to_save=["lm_head"]), dict(megatron_config={"a": 1}),
     # and these are no numbers, or none of theirs
     dict(r=None), dict(r="3"), dict(r=0), dict(lora_alpha=float("nan")), dict(lora_alpha=None),
     dict(target_modules="("), dict(target_modules=5)],
    ids=str,
)  # fmt: skip
def test_an_option_of_peft_is_understood_or_refused_by_its_name(change, pefts, tmp_path):
    folder, model = spoilt(pefts, tmp_path / "adapter", **change), tiny()
    with pytest.raises(ValueError) as error:
        lora.load(model, folder)
    one_line(error, folder)
    if "_modules" not in (name := next(iter(change))):
        one_line(error, name)
    assert not lora.adapters(model)


@pytest.mark.parametrize(
    "change",
    [dict(lora_dropout=0.1), dict(fan_in_fan_out=True), dict(inference_mode=False),
     dict(init_lora_weights="gaussian"), dict(revision="main"), dict(an_option_of_2027=False),
     dict(target_modules=r".*\.(q|v)_proj"), dict(target_modules=None),
     dict(exclude_modules=["lm_head", "k_proj"])],
    ids=str,
)  # fmt: skip
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_an_option_of_peft_that_changes_nothing_is_read_as_peft_does(change, pefts, tmp_path):
    folder, ids = spoilt(pefts, tmp_path / "adapter", **change), some_ids()
    theirs = peft.PeftModel.from_pretrained(hugging_face(pefts / "base"), folder).eval()
    near(lora.load(tiny(), folder)(ids), theirs(ids).logits, 1e-5)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("share", [0, 0.999])
def test_a_cut_adapter_is_named(name, share, tmp_path):
    lora.save(adapted(), tmp_path / "adapter")
    path, model = tmp_path / "adapter" / name, tiny()
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(ValueError) as error:
        lora.load(model, tmp_path / "adapter")
    one_line(error, path, "copy it again")
    assert not lora.adapters(model)


@pytest.mark.parametrize(
    "rank, millions", [(4, 0.32), (8, 0.63), (16, 1.26), (32, 2.52), (64, 5.05)]
)
def test_adapters_of_the_50m_have_the_sizes_of_the_plan(rank, millions):
    with torch.device("meta"):
        model = Llama(LlamaConfig(vocab_size=51_800, **SHAPES["student-50m"]))
    lora.attach(model, rank)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert round(count / 1e6, 2) == millions


@torch.no_grad()
def test_attaching_changes_nothing_to_the_bit():
    model, ids = tiny(), some_ids()
    before = model(ids)
    names = set(lora.adapters(lora.attach(model, 4, 2.5)))
    assert torch.equal(model(ids), before)
    assert {name.rsplit(".", 1)[1] for name in names} == SEVEN and len(names) == 14


def test_only_a_and_b_get_gradients_and_a_new_adapter_learns_at_once():
    """With B zero A gets no gradient at first, but B does: with A zero too it never would."""
    for model, new in ((adapted(), False), (lora.attach(tiny(), 4), True)):
        model(some_ids()).square().mean().backward()
        for name, weight in model.named_parameters():
            assert (weight.grad is not None) == weight.requires_grad == ("lora_" in name), name
        for part in lora.adapters(model).values():
            assert part.lora_A.any() and part.lora_B.grad.any() and part.lora_A.grad.any() != new


def test_a_is_drawn_by_the_seed_within_one_over_the_root_of_its_inputs_as_pefts_is():
    one, same, other = (lora.adapters(lora.attach(tiny(), 16, seed=seed)) for seed in (5, 5, 6))
    torch.manual_seed(123)  # the global generator has no say
    for name, part in one.items():
        limit = part.weight.shape[1] ** -0.5
        assert 0.95 * limit < part.lora_A.abs().max() <= limit and not part.lora_B.any(), name
        assert torch.equal(part.lora_A, same[name].lora_A)
        assert not torch.equal(part.lora_A, other[name].lora_A)
    a, b = (one[f"layers.{i}.self_attn.q_proj"].lora_A for i in (0, 1))
    assert not torch.equal(a, b)


@pytest.mark.parametrize("tied", [True, False])
def test_head_and_embedding_have_no_adapter_and_stay_as_they_were(tied):
    model = tiny(tied=tied)
    before = model.head.clone(), model.embed_tokens.weight.clone()
    lora.attach(model, 4)
    assert all(name.startswith("layers.") for name in lora.adapters(model))
    assert type(model.embed_tokens) is torch.nn.Embedding
    assert (model.head is model.embed_tokens.weight) == tied
    with torch.no_grad():
        for part in lora.adapters(model).values():
            part.lora_B.fill_(0.1)
    lora.merge(model)
    assert torch.equal(model.head, before[0]) and torch.equal(model.embed_tokens.weight, before[1])
    assert (model.head is model.embed_tokens.weight) == tied


@pytest.mark.parametrize(
    "options, word",
    [(dict(rank=0), "0"), (dict(rank=4, targets=("lm_head",)), "lm_head"),
     (dict(rank=4, targets=("embed_tokens", "q_proj")), "embed_tokens"),
     (dict(rank=4, targets=()), "targets")],
)  # fmt: skip
def test_impossible_ranks_and_targets_are_refused(options, word):
    model = tiny()
    with pytest.raises(ValueError) as error:
        lora.attach(model, **options)
    one_line(error, word)
    assert not lora.adapters(model) and model.head.requires_grad


def test_a_second_merge_is_refused_and_a_merged_model_is_a_base_like_any_other():
    model = lora.merge(lora.attach(tiny(), 4))
    with pytest.raises(ValueError) as error:
        lora.merge(model)
    one_line(error, "nothing to merge")
    lora.attach(model, 4)


def test_an_adapter_is_refused_by_its_merged_model_and_by_one_that_has_it(tmp_path):
    adapter, folder = tmp_path / "adapter", tmp_path / "merged"
    lora.save(adapted(), adapter, base="models/50m")
    held = lora.load(tiny(), adapter)
    with pytest.raises(ValueError) as error:
        lora.load(held, adapter)
    one_line(error, "already has adapters", "merge them first")
    ids = some_ids()
    wanted = lora.merge(held)(ids)
    held.save(folder)
    merged = Llama.load(folder)
    with pytest.raises(ValueError) as error:
        lora.load(merged, adapter)  # a second merge of the same would count it twice
    one_line(error, adapter, "merged already", "models/50m")
    assert torch.equal(merged(ids), wanted) and not lora.adapters(merged)


@torch.no_grad()
def test_merging_is_exact_to_1e_5_in_logits_of_several_windows():
    for model in (adapted(16, 1.0), adapted(4, 2.5), adapted(1, 0.1)):
        ids = torch.randint(97, (8, 32), generator=torch.Generator().manual_seed(2))
        wanted = model(ids)
        assert wanted.abs().max() > 2  # a trained model's
        near(lora.merge(model)(ids), wanted, 1e-5)


@torch.no_grad()
def test_merging_adds_scale_times_b_a_and_keeps_names_and_shapes():
    model, base = adapted(), tiny()
    wanted = {
        f"{name}.weight": part.weight.double() + 2.5 * part.lora_B.double() @ part.lora_A.double()
        for name, part in lora.adapters(model).items()
    }
    lora.merge(model)
    found = model.state_dict()
    assert list(found) == list(base.state_dict())
    for name, weight in base.state_dict().items():
        assert found[name].shape == weight.shape and found[name].dtype == weight.dtype
        assert torch.equal(found[name], wanted.get(name, weight).float()), name
    assert sum(p.numel() for p in model.parameters()) == base.config.parameters
    kinds = {type(m).__name__ for m in model.modules()}
    assert kinds == {type(m).__name__ for m in base.modules()}
    assert all(p.requires_grad for p in model.parameters())


@torch.no_grad()
def test_the_merged_model_loads_in_transformers_with_the_same_logits(tmp_path):
    model, ids = adapted(), some_ids()
    wanted = model(ids)
    lora.merge(model).save(tmp_path / "merged")
    near(hugging_face(tmp_path / "merged")(ids).logits, wanted, 1e-5)


@torch.no_grad()
def test_saved_adapters_are_the_same_bytes_and_load_on_their_base_to_the_same_bits(base, tmp_path):
    model, ids, content = adapted(), some_ids(), set()
    for _ in range(12):
        lora.save(model, tmp_path / "adapter")
        content.add((tmp_path / "adapter/adapter_model.safetensors").read_bytes())
    assert len(content) == 1
    again = lora.load(Llama.load(base), tmp_path / "adapter")
    assert torch.equal(again(ids), model(ids))
    trained = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (again, model)]
    assert trained[0] == trained[1]


def test_the_file_holds_a_rank_by_in_b_out_by_rank_and_pefts_alpha(tmp_path):
    lora.save(adapted(rank=4, scale=2.5), tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 4 and config["lora_alpha"] == 10
    assert set(config["target_modules"]) == SEVEN
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.mlp.down_proj"
    assert tensors[f"{name}.lora_A.weight"].shape == (4, 80)
    assert tensors[f"{name}.lora_B.weight"].shape == (48, 4)


def test_the_hash_of_a_base_is_the_same_with_and_without_adapters(base):
    wanted = lora.base_hash(tiny())
    assert lora.base_hash(adapted()) == lora.base_hash(Llama.load(base)) == wanted
    assert lora.base_hash(lora.merge(adapted())) != wanted != lora.base_hash(tiny(seed=1))


def test_another_base_is_refused_by_its_hash_and_left_as_it_was(tmp_path):
    lora.save(adapted(), tmp_path / "adapter", base="models/50m")
    other = tiny(seed=1)
    with pytest.raises(ValueError) as error:
        lora.load(other, tmp_path / "adapter")
    one_line(error, tmp_path / "adapter", "another base", "models/50m")
    one_line(error, lora.base_hash(tiny())[:12], lora.base_hash(other)[:12])
    assert not lora.adapters(other) and other.head.requires_grad


@pytest.mark.parametrize("change", [dict(mlp_dim=96), dict(layers=1), dict(layers=3)])
def test_adapters_of_other_shapes_are_refused_and_leave_the_model_alone(change, base, tmp_path):
    config = peft.LoraConfig(r=4, target_modules=sorted(SEVEN), task_type="CAUSAL_LM")
    peft.get_peft_model(hugging_face(base), config).save_pretrained(tmp_path / "adapter")
    model = tiny(**change)  # PEFT's files carry no hash of ours
    with pytest.raises(ValueError) as error:
        lora.load(model, tmp_path / "adapter")
    one_line(error, tmp_path / "adapter")
    assert not lora.adapters(model) and model.head.requires_grad


def test_a_model_with_adapters_is_not_saved_as_a_model_and_one_without_not_as_adapters(tmp_path):
    with pytest.raises(ValueError) as error:
        adapted().save(tmp_path / "model")
    one_line(error, "lora", "merge")
    with pytest.raises(ValueError) as error:
        lora.save(tiny(), tmp_path / "adapter")
    one_line(error, "no adapters")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError) as error:
        lora.load(tiny(), tmp_path / "nowhere")
    one_line(error, tmp_path / "nowhere")
