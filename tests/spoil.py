"""What bad_input.yaml makes of a file or folder: each function takes its path and an argument."""

import argparse
import bz2
import functools
import gzip
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
import zstandard
from safetensors.torch import load_file, save_file

from tdlib.model import Llama, LlamaConfig
from tests import upstream
from tests.helpers import trained_sentencepiece

SHAPE = dict(vocab_size=500, context=32, layers=1, heads=2, dim=32, mlp_dim=48)
PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstandard.ZstdCompressor().compress}
LINES = [f"అమ్మ ఇంట్లో ఉంది. నాన్న ఊరికి వెళ్ళాడు. వాన కురుస్తోంది. {i}" for i in range(400)]
WRONG = {
    "terabytes": torch.ones(1).expand(10**12),
    "a vector": torch.ones(500),
    "infinite": torch.full((32,), torch.inf),
    "int8": torch.ones(32).char(),
    "a namespace": argparse.Namespace(lr=1),
}


def write(path: Path, content: str | dict, more: str = "") -> Path:
    """A file, or those of a folder by their names."""
    for name, text in (content if isinstance(content, dict) else {"": content}).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(text if isinstance(text, bytes) else (text + more).encode())
    return path


nest = functools.partial(write, more="[" * 99_999)


def encode(path: Path, codec_and_text: list[str]) -> None:
    codec, text = codec_and_text
    path.write_bytes(text.encode(codec))


def pack(path: Path, cut: int) -> None:
    packed = PACK[path.suffix]("\n".join(LINES).encode())
    path.write_bytes(packed[: len(packed) - cut])


def inflate(path: Path, size: int) -> None:
    path.write_bytes(gzip.compress(b"\n" * size, 1))


def garble(path: Path, start: int) -> None:
    path.write_bytes(path.read_bytes()[:start] + b"\xff" * 90)


def table(path: Path, columns: list) -> None:
    names, values = zip(*columns, strict=True)
    made = pyarrow.table([[value] for value in values], names)
    pyarrow.parquet.write_table(made, path, compression="zstd")


def pipe(path: Path, _) -> None:
    os.mkfifo(path)


def link(path: Path, targets: dict) -> None:
    for name, target in targets.items():
        (path / name).symlink_to(target)


def close(path: Path, name: str) -> None:
    (path / name).chmod(0)


def gone(path: Path, name: str) -> None:
    shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink()


def cut(path: Path, sizes: dict) -> None:
    """To a size; below 0: by so many bytes."""
    for name, size in sizes.items():
        os.truncate(path / name, size if size >= 0 else (path / name).stat().st_size + size)


def config(folder: Path, change: dict, name: str = "config.json") -> None:
    """Keys of a JSON file; "" takes one out."""
    content = json.loads((folder / name).read_text()) | change
    (folder / name).write_text(json.dumps({k: v for k, v in content.items() if v != ""}))


meta = functools.partial(config, name="meta.json")


def end_in(folder: Path, last: dict) -> None:
    for name, last_id in last.items():
        np.memmap(folder / name, "<u4", "r+")[-1] = last_id


def zero(folder: Path, name: str) -> None:
    (folder / name).write_bytes(bytes((folder / name).stat().st_size))


def narrow(folder: Path, names: list[str]) -> None:
    for name in names:
        np.fromfile(folder / name, "<u4").astype("<u2").tofile(folder / name)


def mask(folder: Path, split: str) -> None:
    """All targets, but for what lies after the last whole window."""
    count = (folder / f"{split}.bin").stat().st_size // 4
    rest = (count - 1) % SHAPE["context"]
    masked = bytes(count - 1 - rest) + b"\0" + b"\1" * rest
    (folder / f"{split}.mask.bin").write_bytes(masked)


def usual_sentencepiece(folder: Path, name: str) -> None:
    trained_sentencepiece(folder / name, LINES[:9], vocab_size=300)


def llama(folder: Path, change: dict) -> None:
    Llama(LlamaConfig(**SHAPE | change)).save(folder)


def teacher(out: Path, change: dict) -> None:
    llama(out / "models/teacher", change)


def weights(folder: Path, change: dict) -> None:
    known = load_file(folder / "model.safetensors")
    for name, how in change.items():
        known[name] = known[name] * torch.nan if how == "nan" else known[name].char()
    save_file(known, folder / "model.safetensors")


def header(folder: Path, claims: dict) -> None:
    """A safetensors file of 64 bytes of weights that claims a shape and an end of each."""
    for name, (shape, end) in claims.items():
        claims = claims | {name: dict(dtype="F32", shape=shape, data_offsets=[0, end])}
    text = json.dumps(claims).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(64)
    (folder / "model.safetensors").write_bytes(content)


def checkpoint(path: Path, change: dict, **how) -> None:
    """Upstream's, with another part, or other weights or numbers in a part."""
    made = upstream.checkpoint(Llama(LlamaConfig(**SHAPE)))
    for name, value in change.items():
        prefix = "_orig_mod." * (name == "model")
        if isinstance(value, dict):
            value = made[name] | {prefix + key: wrong(x) for key, x in value.items()}
            value = {key: x for key, x in value.items() if x is not None}
        made[name] = value if isinstance(value, dict) else wrong(value)
    torch.save({name: part for name, part in made.items() if part != ""}, path, **how)


def wrong(value):
    """A list is a shape."""
    return torch.zeros(1).expand(value) if isinstance(value, list) else WRONG.get(value, value)


def packed(path: Path, more: int) -> None:
    """A checkpoint whose parts are compressed, with so many zeros behind its pickle."""
    with zipfile.ZipFile(path) as file:
        parts = {part.filename: file.read(part) for part in file.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, part in parts.items():
            file.writestr(name, part + bytes(more * name.endswith("data.pkl")))


old_checkpoint = functools.partial(checkpoint, _use_new_zipfile_serialization=False)


class Hostile:
    """Unpickling it writes a file."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def hostile(path: Path, name: str) -> None:
    """Beside sound weights, what would leave a trace."""
    checkpoint(path / name, {"optimizer": Hostile(path.parent / "trace")})


def bare_pickle(path: Path, _) -> None:
    path.write_bytes(pickle.dumps(Hostile(path.parent / "trace")))


def morfessor(path: Path, change: dict) -> None:
    """Upstream's tokenizer with 16 pieces, and some of its values changed."""
    pieces = ["<pad>", "<unk>", "<bos>", "<eos>", *"అఆఇఈఉకగమయరలవ"]
    table = {"type": "morfessor_bpe_telugu", "separator": "@@", "bpe_merges": []}
    table["special_tokens"] = {name: i for i, name in enumerate(pieces[:4])}
    table["token_to_id"] = {piece: i for i, piece in enumerate(pieces)}
    for name, value in change.items():
        table[name] = table[name] | value if isinstance(value, dict) else value
    write(path, json.dumps(table))


def beside_a_tokenizer(path: Path, name: str) -> None:
    morfessor(path.with_name(name), {})
