"""A folder's safetensors, read and checked against their shapes."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tdlib.shapes import weight_files


def read_weights(folder: Path, expected: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors, in float32, checked before any is read."""
    places, tensors = locate(folder, expected), {}
    for path in {path: None for path, _ in places.values()}:
        with open_weights(path) as f:
            for name in (name for name, place in places.items() if place[0] == path):
                tensors[name] = read_weight(f, path, name).float()
    return tensors


def locate(
    folder: Path, expected: dict[str, tuple[int, ...]]
) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """Name → file and shape of all tensors of a folder's safetensors (one file, or the shards of
    its index), checked against the shapes expected. A head where none is expected, it being tied,
    and the tables of RoPE that old exports hold are left out."""
    left_out, files, shapes = {"lm_head.weight"} - expected.keys(), {}, {}
    for path in weight_files(folder):
        with open_weights(path) as f:
            for name in f.keys():
                if name not in left_out and not name.endswith("rotary_emb.inv_freq"):
                    files[name], shapes[name] = path, tuple(f.get_slice(name).get_shape())
    check_shapes(folder, shapes, expected)
    return {name: (files[name], shapes[name]) for name in expected}


def read_weight(file: safe_open, path: Path, name: str) -> Tensor:
    """One tensor of an opened file. ValueError: it is quantized already."""
    weight = file.get_tensor(name)
    if not weight.is_floating_point():
        dtype = str(weight.dtype).removeprefix("torch.")
        fault = f"{path}: {name} is {dtype}, a weight must be a float"
        raise ValueError(f"{fault}: give the model before it was quantized")
    return weight


@contextlib.contextmanager
def open_weights(path: Path) -> Iterator[safe_open]:
    """A safetensors file. ValueError, named: cut short, or a header that its bytes do not bear."""
    try:
        with safe_open(path, "pt") as f:
            yield f
    except (SafetensorError, OSError, MemoryError) as error:
        raise ValueError(f"{path} cannot be read ({error}): copy it again") from None


def check_shapes(folder: Path, tensors: dict, expected: dict[str, tuple]) -> None:
    """ValueError: other names, or other shapes, than expected; `tensors` may be shapes alone."""
    for name in sorted(expected.keys() | tensors.keys()):
        tensor = tensors.get(name)
        shape = "missing" if tensor is None else tuple(getattr(tensor, "shape", tensor))
        wanted = tuple(expected[name]) if name in expected else "unknown to this model"
        if shape != wanted:
            remedy = "weights and config are of two models, copy both again"
            if (name, shape) == ("lm_head.weight", "missing"):
                remedy = "set tie_word_embeddings: true in config.json if it is the embedding, or "
                remedy += "copy the file that holds it"
            fault = f"{folder}: {name} is {shape}, by its config it must be {wanted}"
            raise ValueError(f"{fault}: {remedy}")
