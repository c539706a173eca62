"""LoRA: y = x Wᵀ + scale · x Aᵀ Bᵀ, with W (out, in) frozen, A (rank, in), B (out, rank).

Hu et al. 2021, arXiv 2106.09685. B starts at zero, so attaching changes nothing; merging adds
scale · B A to W for good. `scale` multiplies directly: PEFT's lora_alpha is scale · rank.

    attach(model, rank, scale)  ──train A, B──▶  merge(model)      plain Linear, as before
                                └─ save(model, folder) ─▶ load(model, folder)
"""

import hashlib
import json
import math
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdlib import data, files
from tdlib.model import Llama

# All linear layers of a Llama layer. Never the head: tied, it is the embedding too.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_PREFIX = "base_model.model.model."  # PEFT's names: its wrapper, Hugging Face's wrapper, ours


class LoRALinear(nn.Module):
    """A frozen Linear with an adapter beside it."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float, generator: torch.Generator):
        super().__init__()
        outs, ins = linear.weight.shape
        self.weight, self.scale = linear.weight, scale
        # PEFT's start: A uniform within 1/√in, B zero
        a = torch.rand(rank, ins, generator=generator) * 2 - 1
        self.lora_A = nn.Parameter((a / math.sqrt(ins)).to(linear.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(outs, rank, device=linear.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(F.linear(x, self.lora_A), self.lora_B)
        return F.linear(x, self.weight) + self.scale * low


def attach(
    model: Llama, rank: int, scale: float = 1.0, targets: tuple[str, ...] = TARGETS, seed: int = 0
) -> Llama:
    """Freeze the whole model and put an adapter beside every target Linear, in place. ValueError:
    a rank below 1, a target that is not one of TARGETS, a model that already has adapters."""
    odd = sorted(set(targets) - set(TARGETS))
    if rank < 1 or odd or not targets:
        raise ValueError(f"rank {rank} must be ≥ 1 and targets {odd or targets} among {TARGETS}")
    if adapters(model):
        raise ValueError("the model already has adapters: merge them first")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for layer in model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, child in list(block.named_children()):
                if name in targets:
                    setattr(block, name, LoRALinear(child, rank, scale, generator))
    return model


def merge(model: Llama) -> Llama:
    """W + scale · B A for good, in place: the shapes, names and speed of the base. Computed in
    float64 and rounded once. ValueError where there is nothing to merge (a second merge, say)."""
    if not (parts := adapters(model)):
        raise ValueError("nothing to merge: the model has no adapters (merged already?)")
    for name, part in parts.items():
        delta = part.lora_B.double() @ part.lora_A.double() * part.scale
        outs, ins = part.weight.shape
        linear = nn.Linear(ins, outs, bias=False, device="meta")
        merged = (part.weight.double() + delta).to(part.weight.dtype)
        linear.weight = nn.Parameter(merged.detach())
        block, _, child = name.rpartition(".")
        setattr(model.get_submodule(block), child, linear)
    return model.requires_grad_(True)


def adapters(model: Llama) -> dict[str, LoRALinear]:
    """The adapters by their Linear's name: {"layers.0.self_attn.q_proj": …}; empty without any."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


def base_hash(model: Llama) -> str:
    """sha256 of the base's weights, the same with and without adapters attached."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        if "lora_" not in name:
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save(model: Llama, folder: str | Path, base: str = "") -> None:
    """The adapters as PEFT reads them, whole or not at all; `base` is the base model's path. The
    base's hash goes into the file, so that `load` refuses another base."""
    folder, parts = Path(folder), adapters(model)
    if not parts:
        raise ValueError("nothing to save: the model has no adapters")
    one = next(iter(parts.values()))
    rank = one.lora_A.shape[0]
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base,
        "r": rank, "lora_alpha": one.scale * rank, "lora_dropout": 0.0, "bias": "none",
        "inference_mode": True, "target_modules": sorted({n.rsplit(".", 1)[1] for n in parts}),
    }  # fmt: skip
    tensors = {}
    for name, part in parts.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = part.lora_A.detach().contiguous().cpu()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = part.lora_B.detach().contiguous().cpu()
    with data.whole_folder(folder) as beside:
        (beside / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf8")
        metadata = {"format": "pt", "base_sha256": base_hash(model)}
        content = files.in_order(safetensors.torch.save(tensors, metadata))
        (beside / "adapter_model.safetensors").write_bytes(content)


def load(model: Llama, folder: str | Path) -> Llama:
    """Attach the adapters of a PEFT folder to their base, in place, to merge or train on.
    ValueError: adapters of another base (by hash, where one was stored) or of other shapes."""
    folder = Path(folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is not there: give an adapter's folder")
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf8"))
    with safetensors.safe_open(folder / "adapter_model.safetensors", "pt") as f:
        base = (f.metadata() or {}).get("base_sha256")
        tensors = {name: f.get_tensor(name) for name in f.keys()}
    if base and base != base_hash(model):
        raise ValueError(
            f"{folder} was trained on another base (sha256 {base[:12]}…, this model has "
            f"{base_hash(model)[:12]}…; merged already, it is another): load "
            f"{config.get('base_model_name_or_path')!r}"
        )
    odd = [x for x in ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern") if config.get(x)]
    if odd:  # each changes what A and B mean
        raise ValueError(f"{folder}: {odd[0]} is {config[odd[0]]!r}, only plain LoRA is read here")
    rank = config["r"]
    # PEFT may write target_modules as whole names or as a pattern: what is there tells
    targets = tuple(x for x in TARGETS if any(f".{x}.lora_" in key for key in tensors))
    expected = {}
    for name, part in model.named_modules():
        if name.rsplit(".", 1)[-1] in targets:
            outs, ins = part.weight.shape
            expected[f"{_PREFIX}{name}.lora_A.weight"] = (rank, ins)
            expected[f"{_PREFIX}{name}.lora_B.weight"] = (outs, rank)
    data.check_shapes(folder, tensors, expected)
    attach(model, rank, config["lora_alpha"] / rank, targets)
    for name, part in adapters(model).items():
        part.lora_A.data.copy_(tensors[f"{_PREFIX}{name}.lora_A.weight"])
        part.lora_B.data.copy_(tensors[f"{_PREFIX}{name}.lora_B.weight"])
    return model
