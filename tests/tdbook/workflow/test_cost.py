"""What a training costs: the facts' arithmetic, and memory and files as they are."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tdbook.training import cache
from tdbook.workflow import cost
from tdlib import data, lora, losses, train
from tdlib.model import SHAPES, Llama, LlamaConfig


def config(name: str, **change) -> LlamaConfig:
    return LlamaConfig(**dict(vocab_size=51_800, **SHAPES[name]) | change)


def test_flop_are_those_of_the_facts():
    """Without attention scores: teacher forward 517 and 620 MFLOP, student step 313."""
    student, teacher, larger = map(config, ("student-50m", "teacher-plan", "teacher-300m"))
    assert cost.forward_flop(teacher, 0) == pytest.approx(517e6, rel=1e-3)
    assert cost.forward_flop(larger, 0) == pytest.approx(620e6, rel=1e-3)
    assert cost.step_flop(student, None, 0) == pytest.approx(313e6, abs=0.5e6)
    # 3.7 billion tokens × 3 epochs online, 16 layers: 9.2e18, of which attention is a tenth
    assert cost.step_flop(student, teacher, 0) * 11.1e9 == pytest.approx(9.2e18, rel=0.01)
    online, alone = (cost.step_flop(student, t, 2048) for t in (teacher, None))
    assert 0.60 < 1 - alone / online < 0.66
    assert cost.step_flop(student, None, 2048, frozen=True) == pytest.approx(alone * 2 / 3)
    # 20 layers, attention included
    assert cost.step_flop(student, larger, 2048) * 11.1e9 == pytest.approx(11.8e18, rel=0.01)


def test_attention_is_half_a_square_and_an_untied_head_costs_no_look_up():
    small = config("student-small-smoke", vocab_size=100)
    # scores and their sum over values: 2 · 2 · T/2 · width a layer
    assert cost.forward_flop(small, 64) - cost.forward_flop(small, 0) == 2 * 64 * 32 * 1
    untied = config("student-small-smoke", vocab_size=100, tied=False)
    assert cost.forward_flop(untied, 64) == cost.forward_flop(small, 64)


def kept(config: LlamaConfig, windows: int, context: int, bfloat16: bool) -> int:
    """Bytes that autograd really keeps of one forward, weights in float32 apart."""
    model = Llama(config)
    own = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}
    storages = {}

    def count(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return x

    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            model.hidden(torch.zeros(windows, context, dtype=torch.long))
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("change", [{}, dict(heads=4, kv_heads=2, head_dim=24), dict(layers=4)])
def test_activations_are_those_that_autograd_keeps(device, change):
    """CUDA's are those of autocast, which a CPU can make too."""
    shape = replace(config("teacher-smoke", vocab_size=8), **change)
    found = kept(shape, 3, 40, bfloat16=device == "cuda")
    if device == "cuda":  # vectors stay in float32
        found += 2 * shape.dim * (2 * shape.layers + 1)
    assert cost.activation_bytes(shape, 3, 40, device) == found


def test_adapters_are_as_large_as_the_facts_say_and_as_lora_attaches():
    for rank, millions in ((4, 0.32), (8, 0.63), (16, 1.26), (32, 2.52), (64, 5.05)):
        weights = cost.adapter_parameters(config("student-50m"), rank)
        assert weights / 1e6 == pytest.approx(millions, abs=0.005)
    shape = replace(config("teacher-smoke", vocab_size=50), heads=4, kv_heads=2, head_dim=24)
    net = lora.attach(Llama(shape), 3)
    attached = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert cost.adapter_parameters(shape, 3) == attached


@pytest.mark.parametrize("rank", [0, 2])
def test_a_checkpoint_has_the_size_that_is_told(tmp_path, rank):
    shape = config("student-large-smoke", vocab_size=3000)
    net = Llama(shape)
    if rank:
        lora.attach(net, rank)
    windows = data.Windows(np.arange(4 * 16 + 1, dtype=np.uint32), 16)
    recipe = train.Recipe(batch_tokens=32, ce_weight=1.0, epochs=1.0)
    train.fit(net, windows, recipe, folder=tmp_path)
    # beside the weights: the position, names, and each tensor's own few hundred bytes
    extra = (tmp_path / "state.pt").stat().st_size - cost.state_bytes(shape, rank)
    assert 0 < extra < 50_000


def test_files_caches_and_chunks_have_the_sizes_that_are_told():
    """Q4_0 throughout, 52.2M parameters, was measured: 30.5 MB."""
    assert cost.file_bytes(config("student-50m")) == pytest.approx(30.5e6, abs=0.05e6)
    for vocab_size in (2048, 65_536, 86_071):
        assert cost.cache_bytes(7, 128, vocab_size, draws=5) == cache.size(7, 128, 5, vocab_size)
    assert cost.CHUNK == {device: losses.default_chunk(device) for device in ("cpu", "cuda")}


def test_memory_grows_with_all_that_is_in_it():
    student, teacher = config("student-50m"), config("teacher-plan")
    for device in ("cpu", "cuda"):
        alone, taught, twice = (
            cost.training_bytes(student, t, n, 2048, device)
            for t, n in ((None, 1), (teacher, 1), (teacher, 2))
        )
        assert taught - alone > 4 * teacher.parameters
        assert twice - taught > cost.activation_bytes(student, 1, 2048, device) * 0.99
        one = cost.activation_bytes(replace(student, layers=1), 2, 2048, device)
        again = cost.training_bytes(student, teacher, 2, 2048, device, checkpointing=True)
        assert again < twice - 5 * one
        adapter = cost.training_bytes(student, teacher, 2, 2048, device, rank=16)
        assert adapter < twice - 8 * student.parameters  # no means, no gradients of the base


def test_a_machine_reaches_a_peak():
    assert 1e8 < cost.peak_flop("cpu", seconds=0.01) < 1e15
