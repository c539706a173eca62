"""The model against transformers' own Llama and Qwen3, its files both ways, and what it refuses."""

import copy
import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tdlib.model import SHAPES, Cache, Llama, LlamaConfig
from tests import helpers
from tests.helpers import cases, refused, same, tiny_model, weights_of

CASES = cases(__file__)
CONTEXT, CONFIGS = 96, CASES["shapes"]
SHAPE = dict(layers=3, heads=4, dim=64)


def tiny(seed=0, scale=8.0, vocab_size=211, context=CONTEXT, **change) -> Llama:
    """Weights are scaled up, else a wrong rotation or norm hardly shows in the logits."""
    shape = SHAPE | dict(mlp_dim=80) | change
    return tiny_model(seed, vocab_size, context, scale, **shape).requires_grad_(False)


def some_ids(batch=2, length=CONTEXT, vocab=211, seed=1) -> torch.Tensor:
    return torch.randint(vocab, (batch, length), generator=torch.Generator().manual_seed(seed))


def twin(model: Llama) -> transformers.PreTrainedModel:
    """transformers' Llama or Qwen3 of the same shape and weights, its configuration by hand."""
    c = model.config
    shape = dict(vocab_size=c.vocab_size, hidden_size=c.dim, intermediate_size=c.mlp_dim)
    shape |= dict(num_hidden_layers=c.layers, num_attention_heads=c.heads, head_dim=c.head_dim)
    shape |= dict(num_key_value_heads=c.kv_heads, max_position_embeddings=c.context)
    shape |= dict(rms_norm_eps=c.norm_eps, tie_word_embeddings=c.tied, hidden_act="silu")
    rope = {"rope_type": "default", "rope_theta": c.rope_theta}
    how = dict(rope_parameters=rope, attn_implementation="eager")
    kind = transformers.Qwen3Config if c.qk_norm else transformers.LlamaConfig
    theirs = transformers.AutoModelForCausalLM.from_config(kind(**shape, **how)).eval()
    weights = {k if "lm_head" in k else f"model.{k}": v for k, v in model.state_dict().items()}
    weights.setdefault("lm_head.weight", model.head)
    theirs.load_state_dict(weights)
    return theirs


hugging_face = transformers.AutoModelForCausalLM.from_pretrained
# Three layers of float32 sums in another order leave about 2e-6 of the largest logit; a norm's eps
# or a rotation gone wrong over 1e-2.
near = partial(helpers.near, relative=1e-4)


@pytest.mark.parametrize("change", CONFIGS.values(), ids=CONFIGS.keys())
@torch.no_grad()
def test_logits_are_those_of_transformers_and_so_are_files_both_ways(change, tmp_path):
    model, ids = tiny(**change), some_ids()
    judge = twin(model)
    wanted = judge(ids).logits
    assert wanted.std() > 1  # the scaled weights make sharp distributions, errors show
    near(model(ids), wanted)
    assert torch.equal(model.hidden(ids) @ model.head.T, model(ids))
    for dtype in (torch.float32, torch.bfloat16):
        half = copy.deepcopy(model).to(dtype)
        half.save(tmp_path / "ours")
        theirs, report = hugging_face(tmp_path / "ours", output_loading_info=True)
        assert not any(report.values()) and theirs.dtype == dtype, report
        again = Llama.load(tmp_path / "ours")  # in float32
        near(theirs.float()(ids).logits, again(ids))
        assert same(weights_of(again), weights_of(half.float()))
    judge.save_pretrained(tmp_path / "theirs", max_shard_size="100KB" if change else "1GB")
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 2 or not change
    stray = {"model.norm.weight": torch.zeros(64)}  # no file that transformers would read
    save_file(stray, tmp_path / "theirs/model-stray.safetensors")
    back = Llama.load(tmp_path / "theirs")
    near(back(ids), wanted)
    assert back.config == model.config and all(w.requires_grad for w in back.parameters())


@pytest.mark.parametrize("kv_heads", [4, 2])
@torch.no_grad()
def test_cached_steps_give_the_logits_of_one_full_forward(kv_heads):
    model, ids = tiny(kv_heads=kv_heads), some_ids(batch=3)
    wanted = model(ids)
    for blocks in ([1] * CONTEXT, [64] + [1] * 32, [5, 1, 30, 2, 58], [1, 95], [CONTEXT]):
        cache = Cache(model.config, batch=3, size=CONTEXT, like=model.head)  # just what is needed
        parts = [model(block, cache) for block in ids.split(blocks, dim=1)]
        assert cache.length == CONTEXT
        near(torch.cat(parts, dim=1), wanted, relative=1e-5)


@torch.no_grad()
def test_more_tokens_than_the_context_are_refused_and_leave_the_cache_alone():
    model = tiny()
    with refused(CONTEXT + 1, CONTEXT):
        model(some_ids(length=CONTEXT + 1))
    cache = Cache(model.config, batch=2, size=CONTEXT + 8, like=model.head)
    model(some_ids(length=CONTEXT - 1), cache)
    with refused(CONTEXT + 1, CONTEXT):
        model(some_ids(length=2), cache)
    assert cache.length == CONTEXT - 1
    model(some_ids(length=1), cache)


def test_shapes_have_the_sizes_of_the_plan_and_sizes_are_true_counts():
    for name, (low, high, *dims) in CASES["sizes"].items():
        config = LlamaConfig(vocab_size=51_800, **SHAPES[name])
        assert [*SHAPES[name].values()][: len(dims)] == dims
        assert low <= config.parameters / 1e6 <= high
        assert (config.context, config.rope_theta, config.norm_eps) == (2048, 10000.0, 1e-6)
    named = [shape | {"vocab_size": 51_800} for shape in SHAPES.values()]
    assert all(shape["dim"] % 32 == shape["mlp_dim"] % 32 == 0 for shape in named)  # 4-bit blocks
    odd = [dict(vocab_size=211, mlp_dim=80, **SHAPE) | x for x in CONFIGS.values()]
    for shape in (*named, *(x | dict(tied=False) for x in named), *odd):
        with torch.device("meta"):
            model = Llama(LlamaConfig(**shape))
        assert sum(p.numel() for p in model.parameters()) == model.config.parameters
        assert model.embed_tokens.weight.numel() == model.config.embedding_parameters


def test_weights_start_at_0_02_and_residual_outputs_smaller_by_the_root_of_twice_the_layers():
    torch.manual_seed(0)
    shape = dict(vocab_size=2000, layers=8, heads=4, dim=128, mlp_dim=256, tied=False)
    for name, weight in Llama(LlamaConfig(**shape)).named_parameters():
        if "norm" in name:
            assert (weight == 1).all()
        else:
            residual = "o_proj" in name or "down_proj" in name
            wanted = 0.02 / math.sqrt(16) if residual else 0.02
            # a standard deviation of n draws has a relative error of 1/√(2n), here ≤ 0.6 %
            assert weight.std().item() == pytest.approx(wanted, rel=0.03), name
            assert abs(weight.mean().item()) < 0.03 * wanted


def test_a_saved_folder_is_whole_and_has_both_spellings_one_head_and_the_files_given(tmp_path):
    (tmp_path / "tokenizer").write_text("pieces")
    model, folder = tiny(rope_theta=500.0), tmp_path / "model"
    model.save(folder, files={"tokenizer.model": tmp_path / "tokenizer"})
    assert (folder / "tokenizer.model").read_text() == "pieces"
    names = load_file(folder / "model.safetensors").keys()
    assert "lm_head.weight" not in names and len(names) == 3 * 9 + 2
    c = json.loads((folder / "config.json").read_text())
    assert c["rope_theta"] == c["rope_parameters"]["rope_theta"] == 500.0
    assert c["torch_dtype"] == c["dtype"] == "float32"  # of transformers 4 and 5
    edit(folder, rope_parameters=None, dtype=None, rope_scaling={}, head_dim=None)
    assert Llama.load(folder).config == model.config
    with pytest.raises(FileNotFoundError):
        model.save(tmp_path / "new", files={"x": tmp_path / "absent"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "tokenizer"]


@pytest.fixture
def folder(tmp_path):
    tiny().save(tmp_path / "model")
    return tmp_path / "model"


def edit(folder, name="config.json", **changes):
    """Change a JSON file; None removes a key."""
    content = json.loads((folder / name).read_text()) | changes
    kept = {key: value for key, value in content.items() if value is not None}
    (folder / name).write_text(json.dumps(kept))


@pytest.mark.parametrize("change, words", CASES["configs"], ids=str)
def test_a_config_this_model_cannot_be_is_refused_by_name(change, words, folder):
    edit(folder, **change)
    with refused(folder, *words):
        Llama.load(folder)


@torch.no_grad()
def test_options_that_change_no_number_are_read_over(folder):
    edit(folder, **CASES["options without effect"])
    assert Llama.load(folder).config == tiny().config
    edit(folder, sliding_window=16, use_sliding_window=False, rope_scaling={})
    assert torch.equal(Llama.load(folder)(some_ids()), tiny()(some_ids()))


@torch.no_grad()
def test_the_owners_pothana_is_a_qwen3_or_a_llama_by_another_name(tmp_path):
    for qk_norm in (True, False):
        (model := tiny(qk_norm=qk_norm)).save(folder := tmp_path / str(qk_norm))
        edit(folder, model_type="pothana", auto_map={"AutoConfig": "a.B"}, use_qk_norm=qk_norm)
        assert torch.equal(Llama.load(folder)(some_ids()), model(some_ids()))


def test_a_student_has_its_teachers_rope_and_eps_and_qk_norms_over_the_same_heads():
    own, size = dict(rope_theta=5e5, norm_eps=1e-5), dict(vocab_size=95, context=64)
    old = LlamaConfig(97, 48, heads=16, dim=768, mlp_dim=2048, tied=False, kv_heads=4, **own)
    plain = LlamaConfig(**size, **own, **SHAPES["student-50m"])
    assert old.student("student-50m", **size) == plain
    new = replace(old, qk_norm=True).student("student-50m", **size)
    assert new == replace(plain, qk_norm=True, head_dim=48, heads=11, kv_heads=11)  # 528 ≈ 512


@torch.no_grad()
def test_a_head_beside_the_embedding_is_read_as_transformers_does(tmp_path):
    """Whatever tie_word_embeddings says: a merge of modules_to_save leaves it true."""
    theirs, ids = twin(tiny(tied=False)), some_ids()
    wanted = theirs(ids).logits
    theirs.save_pretrained(tmp_path, max_shard_size="60KB")
    edit(tmp_path, tie_word_embeddings=True)
    near(hugging_face(tmp_path)(ids).logits, wanted)
    with pytest.warns(UserWarning, match=rf"{tmp_path}.*tie_word_embeddings is true, but the lm_h"):
        model = Llama.load(tmp_path)
    assert not model.config.tied
    near(model(ids), wanted)


@pytest.mark.filterwarnings("error")
def test_a_tied_head_stored_twice_is_tied_and_old_tables_of_rope_are_left_out(folder):
    path, model = folder / "model.safetensors", tiny()
    more = {"lm_head.weight": model.head.clone()}
    more |= {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file(load_file(path) | more, path)
    again = Llama.load(folder)
    assert again.config.tied and torch.equal(again(some_ids()), model(some_ids()))
