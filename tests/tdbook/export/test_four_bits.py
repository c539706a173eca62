"""Files of four bits: models that are their own Q4_0, and rounding by what the inputs weigh."""

import itertools
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Kind

from tdbook.export import gguf_file, inference, llama_cpp, shipping
from tdbook.export.gguf_file import to_gguf
from tdlib import quantize
from tdlib.model import Llama
from tests.helpers import near, some_windows, tiny_model
from tests.tdbook.export.test_export import SHAPE, of_file, saved


@pytest.fixture(scope="module")
def its_own(tokenizer, tmp_path_factory) -> tuple[Path, Llama]:
    """A model that is its own Q4_0, by blocks that the plain rule would not find again."""
    model = tiny_model(vocab=tokenizer.size, **SHAPE).requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    for weight in (w for w in model.parameters() if w.ndim == 2):
        count = weight.numel() // 32
        largest_B1 = torch.randint(1, 8, (count, 1), generator=draw)
        q_BN = torch.randint(-8, 8, (count, 32), generator=draw)
        q_BN[::2] = q_BN[::2].clamp(-largest_B1[::2], largest_B1[::2])  # −8 in the others
        d_B = (torch.randn(count, generator=draw) * 0.015).half().float()  # negative too
        q_BN[5], d_B[6], d_B[7] = 0, 0, 3 * 2.0**-24  # subnormal
        weight.copy_(quantize.dequantize(q_BN.to(torch.int8), d_B, weight.shape))
    folder = tmp_path_factory.mktemp("own")
    model.save(folder, {"tokenizer.model": tokenizer.path})
    return folder, model


def random_importance(folder: Path) -> dict[str, np.ndarray]:
    draw, weights = np.random.default_rng(0), gguf_file.read(folder).weights.items()
    shapes = {name: shape for name, (_, shape) in weights if len(shape) == 2}
    return {name: draw.exponential(size=shape[1]) ** 4 for name, shape in shapes.items()}


def test_a_model_that_is_its_own_q4_0_is_in_its_file_to_the_bit(its_own, tokenizer, tmp_path):
    (folder, model), path = its_own, tmp_path / "x.gguf"
    source, weigh = gguf_file.read(folder), random_importance(folder)
    for quantization, given in itertools.product(("Q4_0", "Q4_0_DEFAULT"), (None, weigh)):
        gguf_file.write(source, path, quantization, given)
        for name, weight in of_file(path, model).items():
            if quantization == "Q4_0" or "embed" not in name:
                assert torch.equal(weight, model.get_parameter(name)), name
    size = path.stat().st_size
    saved(tmp_path / "m", tokenizer.path, tokenizer.size)  # not its own
    to_gguf(tmp_path / "m", path, "Q4_0_DEFAULT")
    assert path.stat().st_size == size
    for name, weight in gguf_file.rounded(model).named_parameters():
        assert torch.equal(weight, model.get_parameter(name))


def eight_bits(x: torch.Tensor) -> torch.Tensor:
    """Inputs of a four-bit matrix as llama.cpp takes them: Q8_0, one scale of 16 bits for 32."""
    x_BN = x.reshape(-1, 32)
    largest_B1 = x_BN.abs().amax(1, keepdim=True)
    q_BN = (x_BN * (127 / largest_B1)).nan_to_num().round()
    return (q_BN * (largest_B1 / 127).half().float()).view(x.shape)


@torch.no_grad()
def test_llama_cpp_runs_it_as_pytorch_does_but_for_inputs_of_eight_bits(its_own, tmp_path):
    """Of the same weights an F16 file meets the bars of any; the Q4_0 file is no further off than
    PyTorch whose inputs are rounded alike."""
    folder, path, source = its_own[0], tmp_path / "x.gguf", gguf_file.read(its_own[0])
    prompts = shipping.draw_prompts(source.config, None, 40)
    gguf_file.write(source, path, "F16")
    check = shipping.check(folder, path, prompts)
    assert check["likeliest"] >= 0.99 and check["largest"] <= 0.02
    gguf_file.write(source, path, "Q4_0")
    model, coarse = Llama.load(folder).eval(), Llama.load(folder).eval()
    for part in (m for m in coarse.modules() if isinstance(m, torch.nn.Linear)):
        part.register_forward_pre_hook(lambda _, x: (eight_bits(x[0]),))
    coarse.norm.register_forward_hook(lambda _, x, y: eight_bits(y))
    file, off = llama_cpp.Model(path, exact=True), []
    for ids in prompts:
        exact_TV, ours_TV = (inference.log_p(net, ids).numpy() for net in (model, coarse))
        off.append([np.abs(x - exact_TV).sum() for x in (file.logprobs(ids), ours_TV)])
    theirs, ours = np.sum(off, axis=0)
    assert 0 < theirs <= 1.2 * ours


@pytest.mark.parametrize("change", [dict(qk_norm=True), dict(tied=False, kv_heads=2, mlp_dim=100)])
def test_rounded_has_the_weights_of_the_file(change, tokenizer, tmp_path):
    folder, path, heads = tmp_path / "m", tmp_path / "x.gguf", []
    model = saved(folder, tokenizer.path, tokenizer.size, **change)
    for given in (None, random_importance(folder)):
        gguf_file.write(gguf_file.read(folder), path, "Q4_0", given)
        ours, theirs = gguf_file.rounded(model, given), of_file(path, model)
        assert all(torch.equal(w, theirs[name]) for name, w in ours.named_parameters())
        heads.append(ours.head)
    assert not torch.equal(*heads)  # importance weighed
    assert torch.equal(Llama.load(folder).head, model.head)  # the model is as it was


@pytest.mark.parametrize("change", [{}, {"tied": False, "kv_heads": 2}], ids=str)
def test_an_imatrix_is_the_mean_square_of_every_input(change, tokenizer, tmp_path):
    model = saved(tmp_path / "m", tokenizer.path, tokenizer.size, **change)
    windows = some_windows(tokenizer.size, 24, count=40)
    rows, inputs = np.linspace(0, 39, 6).round().astype(int), {}
    found = inference.mean_squares(model, windows, 6)
    judge = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float64)
    for name, part in judge.named_modules():
        if isinstance(part, torch.nn.Linear):
            keep = partial(lambda name, _, x: inputs.update({f"{name}.weight": x[0]}), name)
            part.register_forward_pre_hook(keep)
    judge(windows.batch(rows)[0])
    if model.config.tied:
        inputs["model.embed_tokens.weight"] = inputs.pop("lm_head.weight")
    assert found.keys() == inputs.keys() and found["model.layers.1.mlp.down_proj.weight"].ndim == 1
    for name, x_BTI in inputs.items():
        near(torch.from_numpy(found[name]), x_BTI.square().mean((0, 1)))
    assert not model.norm._forward_hooks


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.IQ4_NL, Kind.Q5_0, Kind.Q4_K, Kind.Q6_K])
def test_importance_lessens_the_error_it_weighs_and_0_is_no_matter(kind):
    draw = np.random.default_rng(0)
    weight, w = draw.normal(size=(64, 512)).astype(np.float32), draw.exponential(size=512) ** 3

    def error(importance: np.ndarray | None, of=w) -> float:
        blocks = llama_cpp.quantize(weight, kind, importance)
        return (of * (gguf.quants.dequantize(blocks, kind) - weight) ** 2).sum()

    assert error(w) < 0.99 * error(None)
    plain = llama_cpp.quantize(weight, kind)
    for none in (np.zeros(512), np.full(512, np.nan), np.full(512, np.inf)):
        assert (llama_cpp.quantize(weight, kind, none) == plain).all()
    w[:256] = 0  # of whole blocks
    assert error(w, of=w == 0) < 2 * error(None, of=w == 0)
    assert (llama_cpp.quantize(weight, Kind.Q8_0, w) == llama_cpp.quantize(weight, Kind.Q8_0)).all()


def test_q4_k_is_for_widths_that_256_divides(tokenizer, tmp_path):
    given, path, folder = (tokenizer.path, tokenizer.size, 3.0), tmp_path / "x.gguf", tmp_path / "m"
    narrow = saved(tmp_path / "128", *given, dim=128, mlp_dim=512, layers=1)
    with pytest.raises(ValueError, match="needs a width that 256 divides"):
        to_gguf(tmp_path / "128", path, "Q4_K")
    net = saved(folder, *given, dim=256, mlp_dim=704, layers=1)
    assert ["Q4_K" in gguf_file.formats(m.config) for m in (narrow, net)] == [False, True]
    with pytest.warns(UserWarning, match=COARSE) as told:
        to_gguf(folder, path, "Q4_K", random_importance(folder))
    model = gguf_file.read(folder)
    kinds = gguf_file.kinds(model, "Q4_K")
    names = "model.embed_tokens", *(f"model.layers.0.mlp.{x}_proj" for x in ("up", "down"))
    assert [kinds[f"{n}.weight"] for n in names] == [Kind.Q6_K, Kind.Q4_K, Kind.Q5_0]
    assert len(told) == 1 and gguf_file.coarse(model, "IQ4_NL") == ""
    net.load_state_dict(of_file(path, net))
    found = llama_cpp.Model(path, exact=True).logprobs(ids := [3, 300, 5, 60, 7])
    off_TV = found - inference.log_p(net, ids).numpy()
    assert np.abs(off_TV).mean() < 0.02  # inputs have 8 bits there


COARSE = r"\d\d\.\d% of Q4_K is in 4 bits: rows of 704 weights .* 256, and stay in 5 bits"
