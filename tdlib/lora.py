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

from tdlib import files, shapes, weights
from tdlib.model import Llama

# All linear layers of a Llama layer. Never the head: tied, it is the embedding too.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STARTS = (None, True, False, "gaussian", "orthogonal")  # other init_lora_weights change the base


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
    for name, part in list(model.named_modules()):
        if name.split(".")[-1] in targets:
            model.set_submodule(name, LoRALinear(part, rank, scale, generator))
    return model


def merge(model: Llama) -> Llama:
    """W + scale · B A for good, in place: the shapes, names and speed of the base. In float64,
    rounded once. ValueError: nothing to merge (a second merge, say)."""
    if not (parts := adapters(model)):
        raise ValueError("nothing to merge: the model has no adapters (merged already?)")
    for name, part in parts.items():
        delta = part.lora_B.double() @ part.lora_A.double() * part.scale
        outs, ins = part.weight.shape
        linear = nn.Linear(ins, outs, bias=False, device="meta")
        merged = (part.weight.double() + delta).to(part.weight.dtype)
        linear.weight = nn.Parameter(merged.detach())
        model.set_submodule(name, linear)
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
    parts = adapters(model)
    if not parts:
        raise ValueError("nothing to save: the model has no adapters")
    first = next(iter(parts.values()))
    rank, targets = first.lora_A.shape[0], sorted({name.split(".")[-1] for name in parts})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base}
    config |= {"r": rank, "lora_alpha": first.scale * rank, "lora_dropout": 0.0, "bias": "none"}
    config |= {"inference_mode": True, "target_modules": targets}
    tensors = {}
    for part, linear in parts.items():
        pair = linear.lora_A.detach(), linear.lora_B.detach()
        tensors |= zip(_names(part), (x.contiguous().cpu() for x in pair), strict=True)
    # one entry: the package writes several in any order, and the same weights have the same hash
    content = safetensors.torch.save(tensors, {"base_sha256": base_hash(model)})
    with files.whole_folder(Path(folder)) as beside:
        (beside / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf8")
        (beside / "adapter_model.safetensors").write_bytes(content)


def _names(linear: str) -> tuple[str, str]:
    """Of A and B beside a Linear, in PEFT's file: its wrapper, Hugging Face's wrapper, ours."""
    return tuple(f"base_model.model.model.{linear}.lora_{letter}.weight" for letter in "AB")


def load(model: Llama, folder: str | Path) -> Llama:
    """Attach the adapters of a PEFT folder to their base, in place, to merge or train on.
    ValueError: adapters of another base (by hash, where one was stored) or of other shapes."""
    with weights.open_weights(Path(folder, "adapter_model.safetensors")) as f:
        config, targets = _read_config(Path(folder, "adapter_config.json"), f.keys())
        base = (f.metadata() or {}).get("base_sha256")
        if base and base != (own := base_hash(model)):
            fault = f"{folder} was trained on another base (sha256 {base[:12]}…, this model has"
            remedy = f"load {config.get('base_model_name_or_path')!r}"
            raise ValueError(f"{fault} {own[:12]}…; merged already, it is another): {remedy}")
        rank, expected = config["r"], {}
        for name, part in model.named_modules():
            if name.split(".")[-1] in targets:
                outs, ins = part.weight.shape
                expected |= zip(_names(name), ((rank, ins), (outs, rank)), strict=True)
        stored = {name: f.get_slice(name).get_shape() for name in f.keys()}
        weights.check_shapes(Path(folder), stored, expected)
        tensors = {name: f.get_tensor(name) for name in expected}
    attach(model, rank, config["lora_alpha"] / rank, targets)
    for name, part in adapters(model).items():
        for weight, theirs in zip((part.lora_A, part.lora_B), _names(name), strict=True):
            weight.data.copy_(tensors[theirs])
    return model


def _read_config(path: Path, stored: list[str]) -> tuple[dict, tuple[str, ...]]:
    """adapter_config.json, and which of TARGETS have a weight of these names. ValueError: an option
    that is not understood, by its name."""
    config = shapes.read_json(path)
    odd = list(shapes.odd_options(config, "adapter"))
    if (start := config.get("init_lora_weights")) not in STARTS:
        odd += [f"init_lora_weights is {start!r}, which changes the base: not read here"]
    for name, kinds in (("r", (int,)), ("lora_alpha", (int, float))):
        value = config.get(name)
        if type(value) not in kinds or not 0 < value < 2**31:
            odd += [f"{name} is {value!r}, it must be a number above 0: copy it again"]
    linears = {name.split(".lora_")[0] for name in stored}
    targets = tuple(x for x in TARGETS if any(name.endswith(f".{x}") for name in linears))
    given = config.get("target_modules") or ["q_proj", "v_proj"]  # PEFT's for a Llama
    names = [*TARGETS] if given == "all-linear" else given
    ends = tuple(f".{x}" for x in names) if type(names) is list else ()
    alike = all(x.endswith(ends) for x in linears) and all(x.endswith(targets) for x in ends)
    if not alike or not targets:
        fault = f"target_modules is {given!r:.60}, the weights are of {targets or 'none of them'}"
        odd += [f"{fault}: it must be a list of the same names"]
    if odd:
        raise ValueError(f"{path}: {odd[0]}")
    return config, targets
