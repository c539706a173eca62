"""Upstream's checkpoint against its forward written out here, and a teacher's trial."""

import argparse
import copy
import datetime
import functools
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from upstream import state_of

from tdbook.corpus import prepare
from tdbook.report import words
from tdlib import data, evaluate, teacher
from tdlib.model import Llama
from tests.helpers import near, refused, same, tiny_model, weights_of
from tests.tdlib.test_model import CASES

SHAPE = dict(layers=2, heads=4, dim=32, mlp_dim=80)
VOCAB, CONTEXT = 211, 64
WTE, HEAD, H = "transformer.wte.weight", "lm_head.weight", "transformer.h"


def upstream(**change) -> dict:
    """Weights by upstream's names, scaled up, else a wrong rotation hardly shows in the logits."""
    shape = SHAPE | change
    state = state_of(tiny_model(0, VOCAB, CONTEXT, 12.0, **shape).requires_grad_(False))
    state |= {"freqs_cis": angles(shape["dim"] // shape["heads"]), HEAD: state[WTE]}
    return {name: weight.clone() for name, weight in state.items()}  # the head is stored twice


def second(shared: bool, norms: bool, tied: bool, kv_heads: int) -> tuple[dict, dict]:
    """Weights by the names of upstream's second version, drawn here, and its config."""
    table, g = CASES["second version"], torch.Generator().manual_seed(0)
    shapes = table["layer"] | dict.fromkeys(("attn.k_proj", "attn.v_proj"), (8 * kv_heads, 32))
    shapes |= {"attn.q_norm": (8,), "attn.k_norm": (8,)} if norms else {}
    shapes = {f"{H}.{i}.{name}": shape for i in (0, 1) for name, shape in shapes.items()}
    state = {}
    for name, shape in (shapes | table["ends"]).items():
        state[f"{name}.weight"] = torch.randn(shape, generator=g) * 0.25 + (len(shape) == 1)
    state |= ({HEAD: state[WTE]} if tied else {}) | {"freqs_cis": torch.zeros(CONTEXT, 4, 2)}
    config = table["config"] | dict(use_weight_sharing=shared, tie_embeddings=tied)
    return state, config | dict(n_kv_head=kv_heads, use_qk_norm=norms)


def angles(width, theta=10000.0) -> torch.Tensor:
    """e^(i · position · theta^(−2j/width)), (positions, width/2), complex."""
    frequency = 1 / theta ** (torch.arange(0, width, 2)[: width // 2].float() / width)
    angle = torch.outer(torch.arange(CONTEXT).float(), frequency)
    return torch.polar(torch.ones_like(angle), angle)


@torch.no_grad()
def upstream_logits(state, ids_BT, heads=4, theta=10000.0, runs=1) -> torch.Tensor:
    """All positions' logits, in float64. RoPE turns neighbours as one complex number."""
    state = {k: v if v.is_complex() else v.double() for k, v in state.items()}
    layers = sum(name.endswith("ln_1.weight") for name in state)
    b, t = ids_BT.shape
    causal = torch.ones(t, t, dtype=torch.bool).tril()

    def norm(x, name):
        return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6) * state[name]

    def turned(x_BTHK):
        pairs = torch.view_as_complex(x_BTHK.reshape(*x_BTHK.shape[:-1], -1, 2).contiguous())
        turn_T1J = angles(x_BTHK.shape[-1], theta).to(torch.complex128)[:t, None]
        return torch.view_as_real(pairs * turn_T1J).flatten(-2)

    x = state[WTE][ids_BT]
    for i in np.repeat(range(layers), runs):
        at, d = f"transformer.h.{i}", x.shape[-1]
        y = norm(x, f"{at}.ln_1.weight")
        names = (f"{at}.attn.{x}.weight" for x in ("c_attn", "q_proj", "k_proj", "v_proj"))
        qkv = torch.cat([y @ state[name].T for name in names if name in state], dim=-1)
        parts = qkv.split([d, *[(qkv.shape[-1] - d) // 2] * 2], dim=-1)
        q, k, v = (part.view(b, t, -1, d // heads) for part in parts)
        if f"{at}.attn.q_norm.weight" in state:
            q, k = (norm(x, f"{at}.attn.{name}_norm.weight") for x, name in ((q, "q"), (k, "k")))
        k, v = (x.repeat_interleave(heads // x.shape[2], dim=2) for x in (k, v))
        scores = torch.einsum("bthk,bshk->bhts", turned(q), turned(k)) / math.sqrt(d // heads)
        shares = scores.masked_fill(~causal, -math.inf).softmax(-1)
        y = torch.einsum("bhts,bshk->bthk", shares, v).flatten(2)
        x = x + y @ state[f"{at}.attn.c_proj.weight"].T
        y = norm(x, f"{at}.ln_2.weight")
        gate = y @ state[f"{at}.mlp.w_gate.weight"].T
        y = gate * torch.sigmoid(gate) * (y @ state[f"{at}.mlp.w_up.weight"].T)
        x = x + y @ state[f"{at}.mlp.w_down.weight"].T
    return norm(x, "transformer.ln_f.weight") @ state[HEAD].T


def written(folder, state=None, layers=2, heads=4, dim=32, **config) -> Path:
    """A file as upstream's training leaves it, but for the weights' size."""
    known = {"block_size": CONTEXT, "vocab_size": VOCAB, "n_layer": layers, "n_head": heads}
    known |= {"n_embd": dim, "dropout": 0.1, "bias": False, "rope_theta": 10000.0} | config
    file = {"model": upstream() if state is None else state, "optimizer": None}
    file |= {"config": known, "architecture": "llama", "step": 45000, "epoch": 3}
    file |= {"val_loss": None, "best_val_loss": 2.58, "tokens_processed": 11_796_480_000}
    torch.save(file, folder / "best.pt")
    return folder / "best.pt"


def some_ids() -> torch.Tensor:
    return torch.randint(VOCAB, (2, CONTEXT), generator=torch.Generator().manual_seed(1))


CLOSE = 1e-4  # float32 against float64: 1e-6 of the largest logit; the other order of RoPE leaves 1


@pytest.mark.parametrize("change, prefix", CASES["first version"])
def test_logits_are_upstreams_by_the_files_own_theta_type_and_head(change, prefix, tmp_path):
    shape, state = SHAPE | change, upstream(**change)
    half = {k: v.bfloat16() for k, v in state.items() if k not in ("freqs_cis", HEAD)}
    untied = state | {HEAD: torch.randn(VOCAB, shape["dim"])}
    for given, theta in ((state, 500.0), (half, 10000.0), (untied, 10000.0)):
        named = {prefix + name: weight for name, weight in given.items()}
        how = dict(rope_theta=theta, vocab_size=86_071)
        model = teacher.load(written(tmp_path, named, shape["layers"], shape["heads"], **how))
        wanted = upstream_logits({HEAD: given[WTE]} | given, some_ids(), shape["heads"], theta)
        assert wanted.std() > 1  # sharp distributions: errors show
        near(model(some_ids()), wanted, CLOSE)
        c, weights = model.config, [*model.parameters()]
        assert (c.layers, c.mlp_dim) == (shape["layers"], shape["mlp_dim"])
        assert (c.vocab_size, c.context, c.tied) == (VOCAB, CONTEXT, given is not untied)
        assert all(w.dtype == torch.float32 and not w.requires_grad for w in weights)
        assert not model.training


@pytest.mark.parametrize("options", CASES["second version"]["options"])
def test_a_second_version_is_read_with_its_heads_norms_and_layers_run_twice(options, tmp_path):
    (shared, norms, tied, kv_heads), (state, config) = options, second(*options)
    wanted = upstream_logits(state, some_ids(), theta=5e5, runs=1 + shared)
    model = teacher.load(written(tmp_path, state, **config))
    assert wanted.std() > 1
    near(model(some_ids()), wanted, CLOSE)
    c = model.config
    assert (c.layers, c.kv_heads, c.qk_norm, c.tied) == (2 + 2 * shared, kv_heads, norms, tied)


def changed(path, change) -> None:
    file = torch.load(path, weights_only=True)
    change(file)
    torch.save(file, path)


def test_numbers_of_numpy_beside_the_weights_are_read(tmp_path):
    values = [np.float64(2.58), np.float32(1), np.int64(3), np.bool_(True), np.zeros(3)]
    values += [np.array(["a"]), np.dtype("f4"), np.datetime64("2026-11-29"), Counter("a")]
    values += [np.random.RandomState(0).get_state()]
    path = written(tmp_path)
    wanted = teacher.load(path)(some_ids())
    changed(path, lambda file: file.update(val_loss=values))
    assert torch.equal(teacher.load(path)(some_ids()), wanted)


@pytest.mark.parametrize(
    "value, name",
    [(argparse.Namespace(lr=1), "argparse.Namespace"), (Path("/x"), "pathlib.PosixPath"),
     (datetime.date(2026, 11, 29), "datetime.date"), (np.array([None]), "ObjectDType")],
    ids=str,
)  # fmt: skip
def test_any_other_class_is_named_and_the_remedy_helps(value, name, tmp_path, monkeypatch):
    path = written(tmp_path)
    wanted = teacher.load(path)(some_ids())
    changed(path, lambda file: file.update(args=value))
    with refused(path, name, "whoever made it", "best.pt") as error:
        teacher.load(path)
    monkeypatch.chdir(tmp_path)
    exec(re.search('python -c "(.*)"', str(error.value))[1], {})
    assert torch.equal(teacher.load(tmp_path / "plain.pt")(some_ids()), wanted)


@functools.cache
@torch.no_grad()
def drawn(kv_heads: int, qk_norm: bool = False) -> tuple[Llama, data.Windows]:
    """A model and text drawn from it, which it predicts best, RoPE's order included."""
    model = tiny_model(0, 32, 32, 10, heads=4, kv_heads=kv_heads, mlp_dim=64, qk_norm=qk_norm)
    ids_BT = torch.randint(32, (50, 1))
    for _ in range(31):
        shares = model(ids_BT)[:, -1].softmax(-1)
        ids_BT = torch.cat([ids_BT, torch.multinomial(shares, 1)], dim=1)
    return model, data.Windows(np.append(ids_BT.numpy().ravel(), 0).astype("<u4"), 32)


@torch.no_grad()
def careless(model, folder) -> Path:
    """A Hugging Face folder as upstream's converter writes it: Q and K in neighbours' order."""
    model, c = copy.deepcopy(model), model.config
    for layer in model.layers:
        turned = {"q_proj": c.heads, "k_proj": c.kv_heads}
        for name, heads in (turned | ({"q_norm": 1, "k_norm": 1} if c.qk_norm else {})).items():
            weight = layer.self_attn.get_submodule(name).weight
            rows = np.arange(heads * c.head_dim).reshape(heads, 2, -1).swapaxes(1, 2).ravel()
            weight.copy_(weight[torch.from_numpy(rows)])
    model.save(folder)
    return folder


@pytest.mark.parametrize("kv_heads, qk_norm", [(4, False), (2, False), (2, True)])
def test_an_unpermuted_export_is_caught_and_repaired(kv_heads, qk_norm, tmp_path):
    (model, windows), folder = drawn(kv_heads, qk_norm), tmp_path / "export"
    found, wrong = teacher.check(model, windows), teacher.load(careless(model, folder))
    assert found["loss"] < found["loss_other_rope"] - 0.1 and found["windows"] == 32
    before = weights_of(wrong)
    with refused(f"{found['loss']:.2f}", "RoPE"):
        teacher.check(wrong, windows)
    assert same(weights_of(wrong), before)
    repaired = [teacher.load(folder, rope_pairs="neighbours")]
    if kv_heads == 4:  # the checkpoint it came from needs no repair
        c = model.config
        path = written(tmp_path, state_of(model), c.layers, c.heads, c.dim, block_size=32)
        repaired.append(teacher.load(path))
    assert all(same(weights_of(x), weights_of(model)) for x in repaired)


@torch.no_grad()
def test_the_trial_gives_the_mean_loss_of_windows_spread_evenly_and_their_entropy():
    (model, windows), mask = drawn(4), np.ones(50 * 32 + 1, "u1")
    trial, whole = (teacher.check(model, windows, count=count) for count in (3, 99))
    ids, targets = windows.batch([0, 24, 49])
    wanted = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
    assert trial["loss"] == pytest.approx(wanted.item(), rel=1e-5)
    assert (trial["windows"], whole["windows"]) == (3, 50)
    share_V = np.bincount(windows.ids[1:]) / (50 * 32)
    assert whole["entropy"] == pytest.approx(-(share_V * np.log(share_V)).sum(), rel=1e-6)
    assert "⚠" not in words.say("trial", **whole)
    assert "tokenizer" in words.say("trial", **whole | {"loss": whole["entropy"] + 0.01})
    mask[: 10 * 32 + 1] = 0  # windows without a target spoil nothing
    trial = teacher.check(model, data.Windows(windows.ids, 32, mask), count=50)
    loss_N = [evaluate.evaluate(model, windows).window_loss_N[10:]]
    assert trial["loss"] == pytest.approx(np.mean(loss_N), rel=1e-5)
    mask[:] = 0
    mask[20 * 32 + 1 : 21 * 32 + 1] = 1  # none of the three has a target: another stands for them
    assert teacher.check(model, data.Windows(windows.ids, 32, mask), count=3)["windows"] == 1
    noise = np.random.default_rng(0).integers(0, 32, 50 * 32 + 1)  # another tokenizer's
    with refused(f"{math.log(32):.2f}", "tokenizer"):
        teacher.check(model, data.Windows(noise, 32))


def test_rows_of_zeros_at_the_end_are_cut_and_said(tmp_path):
    state = upstream()
    state[WTE][7] = state[HEAD][7] = 0  # a zero row with others behind it is no padding
    zeros = torch.zeros(13, SHAPE["dim"])
    padded = {name: torch.cat([state[name], zeros]) for name in (WTE, HEAD)}
    path = written(tmp_path, state | padded)
    with pytest.warns(UserWarning, match=rf"{path}.*the last 13 rows .* a vocabulary of 211"):
        model = teacher.load(path)
    assert (model.cut_rows, model.config.vocab_size) == (13, 211)
    near(model(some_ids()), upstream_logits(state, some_ids()), CLOSE)
    model.save(tmp_path / "cut")
    again = teacher.load(tmp_path / "cut")
    assert again.cut_rows == 0 and torch.equal(again(some_ids()), model(some_ids()))
    model = tiny_model(0, VOCAB, CONTEXT, 1.0, **SHAPE, tied=False)
    for cut in (0, 5):  # an untied head is cut only where it is padding too
        model.embed_tokens.weight.data[-5:] = 0
        model.lm_head.weight.data[VOCAB - cut :] = 0
        model.save(tmp_path / "untied")
        loaded, ids = teacher.load(tmp_path / "untied"), some_ids() % (VOCAB - 5)
        assert loaded.cut_rows == cut
        near(loaded(ids), model(ids)[..., : VOCAB - cut], 1e-6)


@pytest.mark.parametrize("size, pieces, cut", CASES["spare rows"])
def test_spare_rows_are_cut_where_they_are_padding_and_refused_elsewhere(size, pieces, cut):
    shape = dict(layers=1, heads=1, dim=2, mlp_dim=2, tied=size % 64 > 0)
    model, ids = tiny_model(0, size, 8, **shape), torch.tensor([[1, 2, 3]])
    before = model(ids)
    if cut is None:
        with refused(f"{size:,}, the tokens' is {pieces:,}: give the tokens or"):
            prepare.cut_spare_rows(model, pieces)
        return
    said = prepare.cut_spare_rows(model, pieces)
    assert torch.equal(model(ids), before[..., : size - cut])
    assert (model.config.vocab_size, len(model.head)) == (size - cut, size - cut)
    assert bool(said) == bool(cut) and (not cut or f"last {cut:,} are of no piece" in said)
