"""A folder's safetensors, read and checked against their shapes."""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tdlib.files import refused
from tdlib.shapes import LlamaConfig, read_config, weight_files

Shapes = dict[str, tuple[int, ...]]  # by a tensor's name
TIED = ("model.embed_tokens.weight", "lm_head.weight")


def stored_config(folder: Path) -> LlamaConfig:
    """The shape of a model by its config and its weights: as in transformers, a head that is stored
    and is not the embedding is not tied, with a warning."""
    config, heads = read_config(folder), []
    for path in weight_files(folder) if config.tied else ():
        with open_weights(path) as f:
            heads += [f.get_tensor(name).float() for name in TIED if name in f.keys()]
    if len(heads) < 2 or torch.equal(*heads):
        return config
    fault = f"tie_word_embeddings is true, but the {TIED[1]} beside it is not the embedding"
    warnings.warn(f"{folder / 'config.json'}: {fault}: both are read", stacklevel=2)
    return replace(config, tied=False)


def read_weights(folder: Path, expected: Shapes) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors, in float32, checked before any is read."""
    places = locate(folder, expected).items()
    return {name: read_weight(path, name).float() for name, (path, _) in places}


def locate(folder: Path, expected: Shapes) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """Name → file and shape of a folder's tensors, checked against those expected. Left out are a
    head where none is expected, it being tied, and the tables of RoPE that old exports hold."""
    left_out, places = {"lm_head.weight"} - expected.keys(), {}
    for path in weight_files(folder):
        with open_weights(path) as f:
            for name in f.keys():
                if name not in left_out and not name.endswith("rotary_emb.inv_freq"):
                    places[name] = path, tuple(f.get_slice(name).get_shape())
    check_shapes(folder, {name: shape for name, (_, shape) in places.items()}, expected)
    return {name: places[name] for name in expected}


def read_weight(path: Path, name: str) -> Tensor:
    """One tensor of a file. ValueError: it is quantized already."""
    with open_weights(path) as f:  # anew: a mapped file counts as memory while it is open
        weight = f.get_tensor(name)
    check_float(f"{path}: {name}", weight)
    return weight


def check_float(name: str, weight: Tensor) -> None:
    if not weight.is_floating_point():
        fault = f"{name} is {str(weight.dtype).removeprefix('torch.')}, a weight must be a float"
        raise ValueError(f"{fault}: give the model before it was quantized")


@contextlib.contextmanager
def open_weights(path: Path) -> Iterator[safe_open]:
    """A safetensors file. ValueError, named: cut short, or a header that its bytes do not bear."""
    errors = SafetensorError, OSError, MemoryError
    with refused(f"{path} cannot be read", "copy it again", *errors), safe_open(path, "pt") as f:
        yield f


def check_shapes(folder: Path, shapes: Shapes, expected: Shapes) -> None:
    """ValueError: other names, or other shapes, than expected."""
    for name in sorted(expected.keys() | shapes.keys()):
        shape = tuple(shapes[name]) if name in shapes else "missing"
        wanted = tuple(expected[name]) if name in expected else "unknown to this model"
        if shape != wanted:
            fault = f"{folder}: {name} is {shape}, by its config it must be {wanted}"
            remedy = "copy both again, or correct tie_word_embeddings in config.json"
            raise ValueError(f"{fault}: weights and config are of two models, {remedy}")
