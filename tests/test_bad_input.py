"""Bad input gets one line that says what it is, what is wrong and what to do; nothing is half made.

A row is given as a user gives it: to a notebook's own cells, run one after the other until one
refuses, as papermill and JupyterLab run them. What lay in the run folder before must lie there
afterwards, byte for byte. To add a row, add it to one of the tables: name → how it is made at a
path, or a good folder there is spoilt, and what the line says.
"""

import argparse
import bz2
import contextlib
import ctypes
import gzip
import json
import os
import pickle
import re
import resource
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import sentencepiece
import torch
import yaml
import zstandard
from IPython.core.interactiveshell import InteractiveShell
from safetensors.torch import load_file, save_file

from tdbook import __main__
from tdbook.book import common, students
from tdbook.corpus import token_files, tokenizer_files, writer
from tdbook.corpus.prepare import prepare
from tdbook.runs import heartbeat, ownership, parameters, running
from tdbook.runs.running import start
from tdbook.workflow import graph
from tdlib import files, teacher
from tdlib.files import whole_folder, write_whole
from tdlib.files import write_whole as write
from tdlib.model import Llama, LlamaConfig
from tests.smoke_book import new_shell

REPOSITORY = Path(__file__).parents[1]
SMALL = {"profile": "smoke", "shape": "teacher-smoke", "vocab_size": 500, "context": 32}
SMALL |= {"token_limit": 600, "batch_tokens": 64, "fixed_windows": 4}
A, B, C = "అమ్మ ఇంట్లో ఉంది.", "నాన్న ఊరికి వెళ్ళాడు.", "వాన కురుస్తోంది."
BODY = "".join(f"{A}\n{B}\n\n{C} {i}\n\n" for i in range(400)).encode()
WRITTEN = writer.write(30_000, 5)
PROSE = "\n\n".join("\n".join(d.lines) for d in WRITTEN)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """text.txt, tokens/ made of it, and a teacher/ that fits them."""
    place, splits = tmp_path_factory.mktemp("good"), {"train": WRITTEN[2:], "val": WRITTEN[:2]}
    (place / "text.txt").write_text(PROSE, encoding="utf8")
    made = tokenizer_files.train(PROSE.splitlines(), 500, place / "t.model")
    token_files.write_tokens(place / "tokens", splits, made, 32)
    torch.manual_seed(0)
    shape = dict(vocab_size=500, context=32, layers=1, heads=2, dim=32, mlp_dim=48)
    Llama(LlamaConfig(**shape)).save(place / "teacher")
    return place


@pytest.fixture
def out(tmp_path) -> Path:
    """A run folder in which something lies already, by its claims and marks the book's."""
    ownership.claim(tmp_path / "out", "00_teacher", {})
    for name in ("tokens/train.bin", "models/teacher/model.safetensors"):
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True)
        path.write_text(f"the old {name}")
        files.mark(path.parent)
    return tmp_path / "out"


def content(folder: Path) -> dict[str, str]:
    """Hash of every file, temporary ones too; what a run says of itself left out."""
    found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if not p.is_dir()}
    own = r"state/[\w-]+\.json|checkpoints/[\w-]+/made_from\.json|\.claims/[\w-]+\.json"
    own = re.compile(own)
    return {n: sha256(p.read_bytes()).hexdigest() for n, p in found.items() if not own.fullmatch(n)}


@contextlib.contextmanager
def unprivileged():
    """Root may read and write anything. Here it may not: Linux's capabilities 1 and 2."""
    libc, header = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    before = sets[0]
    sets[0] &= ~0b110
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = before
        libc.capset(header, sets)


@contextlib.contextmanager
def full_disk(size: int):
    """No file may grow beyond `size` bytes, as the system itself has it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def cells(notebook: str) -> list[str]:
    content = json.loads((REPOSITORY / "notebooks" / f"{notebook}.ipynb").read_text("utf8"))
    return ["".join(c["source"]) for c in content["cells"] if c["cell_type"] == "code"]


@pytest.fixture
def refusal(out, monkeypatch, capsys):
    """Runs a notebook with what is given until a cell fails; the line that its reader sees."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(running, "_latest", None)

    def run(notebook: str, given: dict) -> str:
        known = {k: v for k, v in SMALL.items() if k in parameters.declared(notebook)}
        given = known | {"out": str(out)} | given
        injected = "".join(f"{name} = {value!r}\n" for name, value in given.items())
        own, *rest = cells(notebook)
        for source in (own, f"# Parameters\n{injected}", *rest):
            capsys.readouterr()
            done = shell.run_cell(source, store_history=True)
            if error := done.error_before_exec or done.error_in_exec:
                break
        else:
            pytest.fail("not refused")
        shown = capsys.readouterr().out.split("use %tb to see the full traceback.\n\n")
        assert len(shown) == 2, f"a traceback is shown: {shown[0][-3000:]}"
        line = f"{type(error).__name__}: {error}"
        assert shown[1].rstrip("\n") == line and "\n" not in line
        tried(line, notebook, given)
        if running._latest:  # it was begun: its page and the index say the same
            state = heartbeat.state(out, running._latest.run)
            assert (state["state"], state["error"]) == ("failed", [line])
        return line

    shell = new_shell()
    with unprivileged():
        yield run
    if running._latest:
        running._latest.detach()
    InteractiveShell.clear_instance()


def tried(line: str, notebook: str, given: dict) -> None:
    """Where a line offers a name, a value or a command, that is taken."""
    cure = {}
    if offer := re.search(r"no parameter \w+: (?:did you mean|it has) (\w+)", line):
        cure = {offer[1]: parameters.declared(notebook)[offer[1]]}
    elif offer := re.search(r": (\w+) = .*: did you mean ([\w-]+)\?$", line):
        cure = {offer[1]: offer[2]}
    elif offer := re.search(r"(?:for example|set|write) (\w+: [^,\s]+)", line):
        cure = yaml.safe_load(offer[1])
    elif offer := re.search(r"`make book (.*)` makes it", line):
        assert graph.wanted("book", dict(word.split("=") for word in offer[1].split())).only
    elif line.endswith("or a shorter context"):
        cure = {"context": 8}
    named = {k: v for k, v in given.items() if k in parameters.declared(notebook)}
    if cure:  # nothing is said any more against the parameters
        assert parameters.check(notebook, named | cure).items() >= cure.items()


# Texts, by the name of their file


def table(columns: dict | list, names: list[str] | None = None) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns, names), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def folder(files: dict[str, bytes]):
    def make(path):
        path.mkdir()
        for name, part in files.items():
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_bytes(part)

    return make


def under(path):
    path.parent.mkdir()
    path.touch()
    path.parent.chmod(0)


def closed_part(path):
    (path / "a").mkdir(parents=True)
    (path / "a").chmod(0)


def broken_link(path):
    folder({"a.txt": BODY})(path)
    (path / "b.txt").symlink_to("gone")


zst, gz = zstandard.ZstdCompressor().compress, gzip.compress
ENDED = r"cannot be read \(Compressed file ended before"
NO_COLUMN = "no string column called text"
TEXT = {
    # the path
    "gone.txt": (None, "must be a file or folder.*gone.txt is not there; correct the path"),
    "gone where.txt": (None, "must be .* without spaces in them: .*/gone is not there"),
    "loop.txt": (lambda p: p.symlink_to(p), "loop.txt is not one; correct"),
    "pipe.txt": (os.mkfifo, "is neither a file nor a folder: give one"),
    "closed.txt": (lambda p: p.touch(0), r"closed.txt may not be read \(chmod"),
    "under/closed.txt": (under, r"closed.txt cannot be seen \(Permission denied\)"),
    "book.pdf": (b"x", r"is no .txt, .jsonl, .parquet \(plain or .gz, .xz, .bz2, .zst\): convert"),
    "book.xz": (b"x", "is no .txt, .jsonl, .parquet"),
    # folders
    "folder": (folder({}), r"holds no text: put .txt, .jsonl, .parquet \(plain or .gz"),
    "pictures": (folder({"a.png": b"x", "b/c.md": b"x"}), "holds no text: put"),
    "one empty": (folder({"a.txt": BODY, "b.txt": b""}), "b.txt is empty"),
    "one of them gone": (broken_link, r"b.txt cannot be read \(No such file or directory\)"),
    "closed": (closed_part, r"closed/a cannot be read \(Permission denied\): allow it, chmod -R"),
    # no text
    "empty.txt": (b"", "is empty: give a file with text"),
    "blank.txt": (b"\n \n\t\n", "is empty"),
    "nothing.jsonl": (b'{"text": ""}\n', "is empty"),
    "norows.parquet": (table({"text": pyarrow.array([], "string")}), "is empty"),
    "english.txt": (b"once upon a time\n", r"no Telugu \(U\+0C00–U\+0C7F\) in .*: give Telugu"),
    # encodings
    "latin.txt": (b"caf\xe9\n" + BODY, r"is not UTF-8 \(byte 3; .*: convert it, iconv -f ITS_ENC"),
    "latin.txt.gz": (gz(BODY + b"\xe0 "), rf"not UTF-8 \(byte {len(BODY):,};"),
    "wide.txt": (BODY.decode().encode("utf-16"), r"not UTF-8 \(byte 0; UTF-16 .*iconv -f"),
    "widebare.txt": (BODY.decode().encode("utf-16-le"), r"not UTF-8 \(byte 9; UTF-16 has zero"),
    "zeros.txt": (bytes(9999), r"not UTF-8 \(byte 0; UTF-16 has zero bytes, so have damaged"),
    "zeros.jsonl": (b'{"text": "x\0"}', r"not UTF-8 \(byte 11;"),
    "hole.txt": (BODY + bytes(99), rf"not UTF-8 \(byte {len(BODY):,}; .*copy it again"),
    "half.txt": (BODY + A.encode()[:-3], r"is not UTF-8 \(byte [\d,]+; .*, or copy it again"),
    "half.jsonl": (b'{"text": "\xe0\xb0"}', r"is not UTF-8 \(byte 10;"),
    # packings
    "cut.txt.gz": (gz(BODY)[:-9], ENDED),
    "cut.txt.bz2": (bz2.compress(BODY)[:-9], ENDED),
    "cut.txt.zst": (zst(BODY)[:-9], r"cannot be read \(Truncated compressed stream\): copy"),
    "junk.txt.gz": (BODY, r"cannot be read \(Not a gzipped file"),
    "junk.txt.xz": (BODY, r"cannot be read \(Input format not supported"),
    "junk.txt.bz2": (BODY, r"cannot be read \(Invalid data stream"),
    "junk.txt.zst": (BODY, r"cannot be read \(ZSTD decompress failed"),
    "hurt.txt.gz": (gz(BODY)[:40] + b"\xff" * 90, r"cannot be read \(Error -3 while"),
    # rows and columns
    "plain.jsonl": (f'{{"text": "{A}"}}\n\n{B}'.encode(), f"line 3 is '{B}', it must be like"),
    "field.jsonl": (b'{"content": "x"}', r'line 1 is \'{"content": "x"}\', it must be like'),
    "number.jsonl": (b'{"text": 5}', r'line 1 is \'{"text": 5}\', it must be like {"text": "…"}'),
    "null.jsonl": (b'{"text": null}', "is empty"),
    "list.jsonl": (b'["x"]', r"line 1 is '\[\"x\"\]'"),
    "surrogate.jsonl": (b'{"text": "\\ud83d"}', "line 1 is"),
    "deep.jsonl": (b'{"text": "x", "a": ' + b"[" * 99_999, 'line 1 is .*"x".* must be like'),
    "junk.parquet": (BODY, r"cannot be read \(Parquet magic bytes not found"),
    "short.parquet": (b"PAR1", r"cannot be read \(Parquet file size is 4 bytes"),
    "numbers.parquet": (table({"n": [1]}), r"has the columns n \(int64\): call the one with the t"),
    "two.parquet": (table({"a": [A], "b": [B]}), r"the columns a \(string\), b \(string\): call"),
    "bytes.parquet": (table({"text": [b"x"]}), r"has the columns text \(binary\): call"),
    # the only string column is not the text
    "lists.parquet": (table({"text": [[A, B]], "title": [C]}), rf"{NO_COLUMN}, .* text \(list"),
    "beside.parquet": (table({"text": [b"x"], "category": [A]}), NO_COLUMN),
    "body.parquet": (table({"body": [A]}), NO_COLUMN),
    "messages.parquet": (table({"m": [[{"content": A}]], "lang": [B]}), NO_COLUMN),
    "twice.parquet": (table([[A], [B]], ["text", "text"]), rf"{NO_COLUMN}, .*: call"),
}


# Texts that are fine, and do not fit the other parameters

ALIKE, SHARES = f"{A * 9}\n\n{B}", {"val_share": 0.2, "confirm_share": 0.1}
CHINESE = "".join(map(chr, range(0x4E00, 0x4F00)))
FIT = {
    "one document": (A, {}, r"val_share 0.1 of the text cannot be put aside: it is 1 documents"),
    "two alike": (f"{A}\n\n{A}", {}, r"2 documents in 1 groups .*give more documents"),
    "no small share": (f"{A}\n\n{B} {C}", {"confirm_share": 0.1}, "val_share 0.1 .*too large"),
    "none left to confirm on": (ALIKE, SHARES, "confirm_share 0.1 of the text"),
    "too short to train on": (ALIKE, {"val_share": 0.2}, r"too high .*: lower it, or"),
    "no window": (PROSE, {"context": 99_999}, r"for train makes [\d,]+ .*, too few .* 99,999"),
    "no validation window": (PROSE, {"context": 2000, "val_share": 0.05}, "for val makes"),
    "a large vocabulary": (PROSE, {"vocab_size": 100_000}, "vocab_size 100000 does .*: lower"),
    "a small one": (f"{CHINESE}{A}\n\n{B}", {"vocab_size": 300}, "vocab_size 300 does .*: raise"),
}


# Token files


def edit(file: str, change: dict):
    """Change keys of a JSON file; "" takes one out."""

    def spoil(folder):
        content = json.loads((folder / file).read_text()) | change
        (folder / file).write_text(json.dumps({k: v for k, v in content.items() if v != ""}))

    return spoil


def meta(**change):
    return edit("meta.json", change)


def config(**change):
    return edit("config.json", change)


def cut(name, by):
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - by)


def ids(name, change, **promised):
    def spoil(folder):
        change(np.fromfile(folder / name, "<u4")).astype("<u4").tofile(folder / name)
        meta(**promised)(folder)

    return spoil


def text_in(name, text):
    return lambda folder: (folder / name).write_text(text)


def gone(name):
    return lambda folder: (folder / name).unlink()


def narrow(folder):
    for path in folder.glob("*.bin"):
        np.fromfile(path, "<u4").astype("<u2").tofile(path)


def closed(name):
    return lambda folder: (folder / name).chmod(0)


def other_tokenizer(folder):
    tokenizer_files.train([f"{A} {B} {C} {i}" for i in range(99)], 330, folder / "tokenizer.model")


def usual_tokenizer(folder):
    options = dict(vocab_size=300, model_type="bpe", byte_fallback=True, minloglevel=2)
    with open(folder / "tokenizer.model", "wb") as model:  # SentencePiece's own default ids
        options |= dict(sentence_iterator=iter([A, B, C] * 9), model_writer=model)
        sentencepiece.SentencePieceTrainer.train(**options)


def undeclared(folder):
    meta(dtype="", train_tokens="", val_tokens="")(folder)
    narrow(folder)


def unpromised(folder):
    cut("train.bin", 3)(folder)
    meta(train_tokens="")(folder)


def masked(folder):
    (folder / "val.mask.bin").write_bytes(bytes((folder / "val.bin").stat().st_size // 4))


def rest_unmasked(folder):
    """But for what lies after the last whole window."""
    count = (folder / "train.bin").stat().st_size // 4
    rest = (count - 1) % 32
    (folder / "train.mask.bin").write_bytes(bytes(count - 1 - rest) + b"\0" + b"\1" * rest)


COUNT = "it must be a whole number above 0, .*: copy or correct it"
DTYPE = "its dtype is another; copy it again, or correct meta.json"
BEYOND = ids("train.bin", lambda i: np.r_[i[:-1], 500])
TOKENS = {
    "no meta.json": (gone("meta.json"), "meta.json is not there: give a folder of tok"),
    "no train.bin": (gone("train.bin"), "train.bin is not there: give a folder"),
    "no val.bin": (gone("val.bin"), "val.bin is not there: give a folder"),
    "no tokenizer": (gone("tokenizer.model"), "tokenizer.model is not there: put the tokens' t"),
    "closed meta.json": (closed("meta.json"), "Permission denied: .*meta.json"),
    "closed val.bin": (closed("val.bin"), "Permission denied: '.*val.bin'"),
    "half a meta.json": (text_in("meta.json", '{"vocab_size": 5'), r"meta.json is no table in JS"),
    "a list for a meta.json": (text_in("meta.json", "[1]"), "meta.json is no table in JSON"),
    "a deep meta.json": (text_in("meta.json", "[" * 100_000), "no table in JSON .*: copy it"),
    "vocab_size of 10^12": (meta(vocab_size=10**12), "is 1000000000000, .* at most 16,777,216: "),
    "eos_id as text": (meta(eos_id="</s>"), "is id 3, the tokens' .* is </s>: gi"),
    "eos_id beyond": (meta(eos_id=500), "is id 3, the tokens' .* is 500: give"),
    "val_bytes as text": (meta(val_bytes="many"), f'val_bytes is "many", {COUNT}'),
    "a dtype that is a list": (meta(dtype=["u4"]), r"dtype \['u4'\] in meta.json must be uint16"),
    "no dtype, and it is another": (undeclared, r"holds id .* correct vocab_size or dt"),
    "no vocab_size": (meta(vocab_size=""), f"meta.json: vocab_size is null, {COUNT}"),
    "vocab_size 0": (meta(vocab_size=0), f"meta.json: vocab_size is 0, {COUNT}"),
    "block_size −1": (meta(block_size=-1), f"meta.json: block_size is -1, {COUNT}"),
    "cut short": (cut("train.bin", 400), r"has [\d,]+ bytes, by meta.json .* was cut short or its"),
    "cut within a token": (cut("train.bin", 3), r"has [\d,]+ bytes, by meta.json [\d,]+ \("),
    "cut, nothing promised": (unpromised, "the file was cut short or"),
    "another dtype": (meta(dtype="uint16"), DTYPE),
    "an unknown dtype": (meta(dtype="int64"), "dtype 'int64' in meta.json must be uint16 or uint3"),
    "empty": (ids("val.bin", lambda i: i[:0], val_tokens=""), "val.bin has 0 tokens, too few for"),
    "short": (ids("val.bin", lambda i: i[:32], val_tokens=32), r"has 32 tokens, too .* 32 \+ 1: g"),
    "an id too high": (BEYOND, "train.bin holds id 500, the vocabulary has"),
    "a smaller vocabulary": (meta(vocab_size=300), r"holds id \d+, the vocabulary has 300: copy"),
    "a larger vocabulary": (meta(vocab_size=600), "tokenizer.model has 500 pieces .* is 600 and"),
    "zeros": (ids("train.bin", np.zeros_like), r"holds no <eos> \(id 3\), which ends each line"),
    "another tokenizer": (other_tokenizer, "tokenizer.model has 330 pieces .* vocab_size is 500"),
    "a tokenizer of other ids": (usual_tokenizer, "tokenizer.model has .* <eos> is id 2, the"),
    "no tokenizer but text": (text_in("tokenizer.model", "x"), "is not a SentencePiece .model"),
    "a short mask": (text_in("val.mask.bin", "\1" * 9), r"val.mask.bin has 9 bytes, it must have"),
    "a mask of everything": (masked, r"val.mask.bin masks every target .*: correct it, or take it"),
    "a mask but for the rest": (rest_unmasked, "train.mask.bin masks every target"),
}


# Teachers


def weights(**change):
    def spoil(folder):
        path = folder / "model.safetensors"
        known = load_file(path)
        known |= {n.replace("_", "."): f(known.get(n.replace("_", "."))) for n, f in change.items()}
        save_file({n: w for n, w in known.items() if w is not None}, path)

    return spoil


def llama(**shape):
    known = dict(vocab_size=500, context=32, layers=1, heads=2, dim=32, mlp_dim=48)
    return lambda folder: Llama(LlamaConfig(**known | shape)).save(folder)


def a_layer_more(folder):
    llama(layers=2)(folder)
    config(num_hidden_layers=1)(folder)


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def pickled(folder):
    gone("model.safetensors")(folder)
    torch.save(Hostile(folder / "trace"), folder / "pytorch_model.bin")


LLAMA, MANY = "config.json describes no Llama for this book", 10**9
LINEAR = {"type": "linear"}
NORM = {"nan": weights(model_norm_weight=lambda w: w * torch.nan)}
NORM["int8"] = weights(model_norm_weight=lambda w: w.to(torch.int8))
TEACHER = {
    "an empty folder": (emptied, "config.json is not there"),
    "no config.json": (gone("config.json"), "config.json is not there: give a folder with a Huggi"),
    "no weights": (gone("model.safetensors"), "holds no .safetensors by the name of model: save"),
    "a pickle": (pickled, "holds no .safetensors by the name of model: save"),
    "closed": (lambda f: f.chmod(0), r"teacher may not be read \(chmod -R"),
    "half a config.json": (text_in("config.json", '{"vocab'), rf"{LLAMA} \(.*\): copy it"),
    "a list for a config.json": (text_in("config.json", "[]"), LLAMA),
    "closed config.json": (closed("config.json"), "Permission denied: .*config.json"),
    "no hidden_size": (config(hidden_size=""), rf"{LLAMA} \(hidden_size is missing"),
    "layers as a word": (config(num_hidden_layers="one"), LLAMA),
    "a negative width": (config(intermediate_size=-48), LLAMA),
    "heads that do not divide": (config(num_attention_heads=5, head_dim=None), LLAMA),
    "another architecture": (config(model_type="gpt2"), rf"{LLAMA} \(model_type is 'gpt2', only"),
    "scaled": (config(rope_parameters="", rope_scaling=LINEAR), rf"{LLAMA} \(RoPE scaling is"),
    "a new option": (config(new_scale=2.0), rf"{LLAMA} \(new_scale is 2.0, unknown here, .*; take"),
    "two RoPEs": (config(rope_scaling=LINEAR), rf"{LLAMA} \(RoPE scaling is 'linear'"),
    "a billion layers": (config(num_hidden_layers=MANY), rf"{LLAMA} \(layers is 1,000,000,000"),
    "a layer too few": (config(num_hidden_layers=2), "layers.1.* is missing, by its config it mus"),
    "a layer too many": (a_layer_more, "layers.1.* by its config it must be unknown"),
    "another width": (config(intermediate_size=64), r"is \(32, 48\), by its config .*: weights"),
    "cut short": (cut("model.safetensors", 99), "model.safetensors cannot be read .*: copy it aga"),
    "no weights but text": (text_in("model.safetensors", "x"), "model.safetensors cannot be read"),
    "closed weights": (closed("model.safetensors"), "Permission denied: .*model.safet"),
    "a weight that is NaN": (NORM["nan"], "norm.weight holds NaN or infinity: giv"),
    "quantised": (NORM["int8"], "model.norm.weight is int8, a weight"),
    "another vocabulary": (llama(vocab_size=501), "is 501, the tokens' is 500: give the tokens or"),
    "a shorter context": (llama(context=31), "is 31, the windows' is 32: give a shorter context"),
}


@pytest.mark.parametrize("by", ["tokens", "text"])
def test_rows_that_pad_an_embedding_are_cut_and_told(by, good, tmp_path):
    """Whatever is in them: 64 is what an embedding is rounded up to, by its multiples."""
    llama(vocab_size=512)(tmp_path / "teacher")
    given = {"text": good / "text.txt", "tokenizer": good / "tokens/tokenizer.model"}
    given = {"tokens": good / "tokens"} if by == "tokens" else given
    p = parameters.declared("00_teacher") | {"teacher": str(tmp_path / "teacher"), "context": 32}
    model = teacher.load(tmp_path / "teacher")
    rows = model.head[:500].clone()
    said = prepare(p | {k: str(v) for k, v in given.items()}, tmp_path / "out", model)
    assert "512 rows for 500 pieces: the last 12 are padding, which no text ever predicts" in said
    assert torch.equal(model.head, rows)
    tokens = token_files.open_tokens(tmp_path / "out")
    assert tokens.vocab_size == model.config.vocab_size == 500
    common.save(model, tmp_path / "saved", tokens)
    assert torch.equal(teacher.load(tmp_path / "saved").head, rows)


# Checkpoints as upstream's


class Hostile:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def upstream(config: dict | None = None, **change) -> dict:
    """The right names and shapes, and no sense in the numbers."""
    known = {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 32}
    shapes = {"wte": (500, 32), "ln_f": (32,), "h.0.ln_1": (32,), "h.0.ln_2": (32,)}
    shapes |= {"h.0.attn.c_attn": (96, 32), "h.0.attn.c_proj": (32, 32)}
    shapes |= {f"h.0.mlp.w_{name}": (48, 32) for name in ("gate", "up")}
    shapes |= {"h.0.mlp.w_down": (32, 48)}
    made = {name: torch.ones(shape) for name, shape in shapes.items()} | change
    state = {f"transformer.{name}.weight": weight for name, weight in made.items()}
    return {"model": state, "config": known | (config or {})}


def saved(thing, share=1.0, **how):
    def write(path):
        torch.save(thing, path, **how)
        os.truncate(path, int(share * path.stat().st_size))

    return write


def hostile(beside: dict | None = None, write=torch.save):
    """A pickle that would leave a trace, alone or beside sound weights."""

    def make(path):
        trace = Hostile(path.parent / "trace")
        with path.open("wb") as file:
            write(trace if beside is None else beside | {"optimizer": trace}, file)

    return make


def closed_checkpoint(path):
    saved(upstream())(path)
    path.chmod(0)


def prose(path):
    path.write_text("తెలుగు text, not tensors\n" * 100, encoding="utf8")


NO = "is no checkpoint of tensors and plain values .*: give upstream's best.pt, or a Hugging Face"
OWN = "best.pt: .*: give upstream's own best.pt"
HUGE, INFINITE = torch.ones(1).expand(10**12), torch.full((32,), torch.inf)
ARGS = argparse.Namespace(lr=1)
CHECKPOINT = {
    "no file": (None, "must be an existing Llama folder or .pt file: .* is not there"),
    "empty": (Path.touch, NO),
    "text": (prose, NO),
    "closed": (closed_checkpoint, r"may not be read \(chmod"),
    "cut in half": (saved(upstream(), 0.5), NO),
    "cut at the end": (saved(upstream(), 0.999), NO),
    "weights alone": (saved(upstream()["model"]), NO),
    "a list": (saved([1, 2]), NO),
    "no weights": (saved({"model": None, "config": {}}), NO),
    "the old format": (saved(upstream(), _use_new_zipfile_serialization=False), NO),
    "hostile": (hostile(), NO),
    "hostile beside weights": (hostile(upstream()), NO),
    "a bare pickle": (hostile({}, pickle.dump), NO),
    "a namespace": (saved(upstream() | {"args": ARGS}), "holds argparse.Namespace, .* saves it"),
    "no layers": (saved(upstream(config={"n_layer": 0})), "best.pt: n_layer is 0, it must be a"),
    "a billion layers": (saved(upstream(config={"n_layer": MANY})), "best.pt: n_layer is 1000000"),
    "terabytes": (saved(upstream(ln_f=HUGE)), "its weights claim 4,000,.* the file h"),
    "n_layer as a word": (saved(upstream(config={"n_layer": "one"})), OWN),
    "heads that do not divide": (saved(upstream(config={"n_head": 5})), OWN),
    "no heads": (saved(upstream(config={"n_head": 0})), OWN),
    "a vector for a matrix": (saved(upstream(wte=torch.ones(500))), OWN),
    "a number for a matrix": (saved(upstream(ln_f=5)), OWN),
    "infinite": (saved(upstream(ln_f=INFINITE)), "norm.weight holds NaN or infinity: give an earl"),
}


def test_the_hostile_checkpoints_are_hostile(tmp_path):
    pickle.loads(pickle.dumps(Hostile(tmp_path / "trace")))
    assert (tmp_path / "trace").exists()


# Tokenizers: a file's name, its content, what the line says

PIECES = ["<pad>", "<unk>", "<bos>", "<eos>", *"అఆఇఈఉకగమయరలవ"]
SPECIAL = {name: i for i, name in enumerate(PIECES[:4])}


def morfessor(change=lambda content: {}) -> str:
    known = {"type": "morfessor_bpe_telugu", "separator": "@@", "special_tokens": SPECIAL}
    known |= {"token_to_id": {piece: i for i, piece in enumerate(PIECES)}, "bpe_merges": []}
    return json.dumps(known | change(known))


def gap(content: dict) -> dict:
    return {"token_to_id": content["token_to_id"] | {"ళ": 99}}


ELSEWHERE = morfessor(lambda c: {"special_tokens": SPECIAL | {"<eos>": 2}})
NO_TABLE = morfessor(lambda c: {"token_to_id": []})
TOKENIZER = {
    "half a file": (
        "a.json",
        '{"type": "morfessor',
        "a.json is no table in JSON .*: copy it again",
    ),
    "of neither kind": ("a.json", '{"vocab": {}}', "a.json is neither a Hugging Face tokenizer"),
    "a list": ("a.json", "[1]", "a.json is not a SentencePiece .model, nor a tokenizer.json"),
    "text for a model": ("a.model", "x", "a.model is not a SentencePiece .model"),
    "a broken model in it": ("a.json", '{"model": {"type": "BPE"}}', "a.json cannot be read by"),
    "a gap in its ids": ("a.json", morfessor(gap), "no piece has the id 16, they run from 0"),
    "special tokens elsewhere": ("a.json", ELSEWHERE, "<eos> is 2 in s"),
    "an unknown key": ("a.json", morfessor(lambda c: {"lower": 1}), "what 'lower' .1. does is not"),
    "nested": (
        "a.json",
        '{"model": ' + "[" * 99_999,
        "a.json is no table in JSON .*: copy it again",
    ),
    "no table": ("a.json", NO_TABLE, "token_to_id is .*JSON obj"),
    "another vocabulary": ("a.json", morfessor(), "has 16 pieces .* tokens' vocab_size is 500"),
}


# All of these in one way


def put(kind: str, row: tuple, name: str, place: Path, good: Path) -> tuple[str, dict]:
    """Make what a row gives; its path and the parameters that give it."""
    tokens = {"tokens": str(good / "tokens")}
    match kind:
        case "tokens" | "teacher":
            path = place / kind
            shutil.copytree(good / kind, path)
            row[0](path)
            return str(path), tokens | {kind: str(path)}
        case "text that does not fit":
            path = place / "a.txt"
            path.write_text(row[0], encoding="utf8")
            return str(path), {"text": str(path), "val_share": 0.1} | row[1]
        case "tokenizer":
            path = place / row[0]
            path.write_text(row[1], encoding="utf8")
            return str(path), tokens | {kind: str(path)}
    path = place / (name if kind == "text" else "best.pt")
    if row[0] is not None:
        row[0](path) if callable(row[0]) else path.write_bytes(row[0])
    return str(path), {"text": str(path)} if kind == "text" else tokens | {"teacher": str(path)}


TABLES = {"text": TEXT, "text that does not fit": FIT, "tokens": TOKENS, "teacher": TEACHER}
TABLES |= {"checkpoint": CHECKPOINT, "tokenizer": TOKENIZER}
ROWS = [(kind, name) for kind, rows in TABLES.items() for name in rows]


@pytest.mark.parametrize("kind, name", ROWS, ids=[": ".join(row) for row in ROWS])
def test_what_is_given_is_refused(kind, name, good, refusal, out, tmp_path):
    row, before = TABLES[kind][name], content(out)
    path, given = put(kind, row, name, tmp_path, good)
    line = refusal("00_teacher", given)
    assert path in line or kind == "text that does not fit"
    assert re.search(row[-1], line), line
    assert content(out) == before and not [*tmp_path.rglob("trace")]
    for folder_ in (tmp_path / "under", tmp_path / "teacher"):
        folder_.exists() and folder_.chmod(0o700)


def test_the_run_folders_own_tokens_are_refused_and_survive(good, refusal, out):
    shutil.rmtree(out / "tokens")
    shutil.copytree(good / "tokens", out / "tokens")
    before = content(out)
    line = refusal("00_teacher", {"tokens": str(out / "tokens")})
    assert "is the run's own folder: leave tokens empty, or change out" in line
    assert content(out) == before


def test_a_hostile_segmenter_and_a_tokenizer_that_does_not_know_the_text(
    good, refusal, out, tmp_path
):
    path, before = tmp_path / "model.bin", content(out)
    path.write_bytes(pickle.dumps(Hostile(tmp_path / "trace")))
    (tmp_path / "a.json").write_text(morfessor(), encoding="utf8")
    given = {"text": str(good / "text.txt"), "tokenizer": str(tmp_path / "a.json")}
    line = refusal("00_teacher", given | {"segmenter": str(path)})
    assert f"{path} is no Morfessor baseline model" in line
    line = refusal("00_teacher", given)
    assert re.search(r"a.json makes \d+% of this text <unk>: give the tokenizer of the teach", line)
    assert content(out) == before and not (tmp_path / "trace").exists()


# Parameters: notebook, what is given, what the line says (the value, the rule, the remedy)

GIVEN = [
    # names
    ("01_distill", {"temprature": 2.0}, r"no parameter temprature: did you mean temperature\?"),
    ("01_distill", {"lr": 1e-3}, r"no parameter lr: "),
    ("01_distill", {"run": "02_hard_set", "share": 3}, r"a run of 02_hard_set, this is 01_distill"),
    # types
    ("01_distill", {"learning_rate": "fast"}, r"learning_rate = 'fast' is not a number: .*rate: 0"),
    ("01_distill", {"batch_tokens": 2048.5}, r"batch_tokens = 2048\.5 is not a whole number"),
    ("01_distill", {"seed": True}, r"seed = True is not a number"),
    ("01_distill", {"epochs": None}, r"epochs = None is not a number"),
    ("01_distill", {"epochs": [1]}, r"epochs = \[1\] is not a number"),
    ("01_distill", {"student": 50}, r"student = 50 is not text: put it in quotes"),
    ("01_distill", {"redo": 1}, r"redo = 1 is not true or false: for example redo: false"),
    # values
    ("02_hard_set", {"share": 1.5}, r"share = 1\.5 must be above 0 and below 1: .*share: 0"),
    ("01_distill", {"temperature": 0}, r"temperature = 0\.0 must be above 0 and at most 100: for"),
    ("01_distill", {"ce_weight": -0.1}, r"ce_weight = -0\.1 must be at least 0 and at most 1"),
    ("01_distill", {"seed": -1}, r"seed = -1 must be at least 0"),
    ("01_distill", {"shape": "student-50"}, r"shape = 'student-50' must be .*did you mean stude"),
    ("01_distill", {"device": "gpu"}, r"device = 'gpu' must be auto, cpu, cuda"),
    ("01_distill", {"student": "../50m"}, r"student = '\.\./50m' must be a name of"),
    ("01_distill", {"student": "teacher"}, r"student = 'teacher' is the teacher's name too"),
    ("01_distill", {"out": " "}, r"out = ' ' must be the path of a run folder"),
    ("00_teacher", {"context": 4}, r"context = 4 must be at least 8"),
    ("00_teacher", {"val_share": 0.5}, r"val_share = 0\.5 must be above 0 and below 0\.5"),
    ("00_teacher", {"tokenizer": "a.txt"}, r"tokenizer = 'a\.txt' must be a SentencePiece \.model"),
    ("03_lora", {"hard_set": "../a.json"}, r"hard_set = '\.\./a\.json' must be the name of"),
    ("03_lora", {"windows": "rand"}, r"windows = 'rand' must be .*did you mean random\?"),
    ("03_lora", {"lora_scale": 32, "rank": 16}, r"= 32 at rank .*lora_alpha 512.*lora_scale: 2,"),
    ("04_merge_eval", {"resamples": 10}, r"resamples = 10 must be at least 100"),
    # paths
    ("00_teacher", {"text": "README.md nowhere.txt"}, r"nowhere\.txt is not there"),
    ("00_teacher", {"tokens": "README.md"}, r"must be an existing folder.*README\.md is not one"),
    ("00_teacher", {"tokenizer": "no.model"}, r"tokenizer = 'no\.model' must be an existing"),
    ("01_distill", {"out": "README.md"}, r"out = 'README\.md' must be a folder: .*is no folder; g"),
    ("01_distill", {"out": "README.md/x"}, r"README\.md is no folder; give another"),
    # together
    ("00_teacher", {"text_characters": 0}, r"text_characters = 0 and no text or tokens: give one"),
    ("00_teacher", {"text": "tests", "tokens": "tests"}, r"tokens = 'tests': give one of the two"),
    ("00_teacher", {"teacher": "tests"}, r"teacher = 'tests' reads only .*: give tokens, or"),
]


@pytest.mark.parametrize("notebook, given, says", GIVEN, ids=lambda v: str(v)[:40])
def test_a_parameter(notebook, given, says, refusal, out):
    before = content(out)
    line = refusal(notebook, given)
    assert re.search(says, line), line
    assert content(out) == before and not (out / "state").exists()


def test_a_folder_that_may_not_be_written(refusal, tmp_path):
    (tmp_path / "closed").mkdir(0o500)
    line = refusal("01_distill", {"out": str(tmp_path / "closed/a/b")})
    assert f"must be a folder: {tmp_path / 'closed'} may not be written here; give another" in line
    assert not list((tmp_path / "closed").iterdir())


# Run folders: notebook, what is given, how a good folder is spoilt, what the line says

TEACHERS, TRAIN = "models/teacher", "tokens/train.bin"
WEIGHTS = f"{TEACHERS}/model.safetensors"
SLICES = {"init": "teacher", "shape": "student-small-smoke"}
GONE = "which is not there: `make book"


def no_tokens(out):
    shutil.rmtree(out / "tokens")


FOLDER = {
    "no tokens": ("01_distill", {}, no_tokens, f"needs .*tokens, {GONE} PROFILE=smoke OUT=.* ONLY"),
    "cut tokens": ("01_distill", {}, lambda out: cut(TRAIN, 4)(out), "was cut short"),
    "cut weights": ("01_distill", {}, lambda out: cut(WEIGHTS, 4)(out), f"{WEIGHTS} cannot be"),
    "no student": ("02_hard_set", {}, lambda out: None, f"needs .*models/50m, {GONE}"),
    "no hard set": ("03_lora", {}, lambda out: None, f"needs .*50m, .*hard_set.json, {GONE}"),
    "beside nothing": ("01_distill", {"beside": "80m"}, lambda out: None, f"models/80m, {GONE}"),
    "slices": (
        "01_distill",
        SLICES,
        lambda out: llama(heads=4)(out / TEACHERS),
        "head_dim .*: ran",
    ),
}


@pytest.mark.parametrize("notebook, given, spoil, says", FOLDER.values(), ids=FOLDER)
def test_a_run_folder(notebook, given, spoil, says, good, refusal, out):
    for name in ("tokens", TEACHERS):
        shutil.rmtree(out / name)
        shutil.copytree(good / Path(name).name, out / name)
    spoil(out)
    before = content(out)
    line = refusal(notebook, given)
    assert re.search(says, line), line
    after = {name: value for name, value in content(out).items() if not name.startswith("tables")}
    assert after == before


# A full disk: bytes that a file may have, what there is no room for

FULL = [(1_000, "/model"), (12_000, "out/tokens"), (100_000, "out/models/teacher")]


@pytest.mark.parametrize("size, says", FULL)
@pytest.mark.filterwarnings("ignore:.*is not written, the one before stays")
def test_a_full_disk(size, says, good, refusal, out):
    before = content(out)
    with full_disk(size):
        line = refusal("00_teacher", {"text": str(good / "text.txt"), "epochs": 0.1})
    assert re.search(rf"no room for \S*{says} \(File too large\): make room", line)
    after = content(out)
    if "models" in says:  # all before it was done, and is whole
        assert token_files.open_tokens(out / "tokens").vocab_size == 500
        after = {n: c for n, c in after.items() if not n.startswith(("tokens", "tables", "logs"))}
        before = {n: c for n, c in before.items() if not n.startswith("tokens")}
    assert after == before


def test_a_full_disk_is_told_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "scores.npz"
    path.write_bytes(b"old")
    path.with_name(f".{path.name}.{os.getpid()}.begun").symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"no room for {path} \(No space left on device\): make"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_gets_its_name_is_on_the_disk_before(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def note_fsync(number):
        done.append(Path(os.readlink(f"/proc/self/fd/{number}")).name)
        fsync(number)

    def note_replace(old, new):
        done.append(f"{Path(new).name} is there")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    with whole_folder(tmp_path / "model") as beside:
        (beside / "deep").mkdir()
        (beside / "deep/a").write_text("a")
        (beside / "b").write_text("b")
        (beside / "link").symlink_to("/dev/null")
    assert sorted(done[:2]) == ["a", "b"] and done[2:] == ["model is there"]
    write(tmp_path / "record.json", "{}")
    assert done[3:] == [f".record.json.{os.getpid()}.begun", "record.json is there"]


def test_a_disk_full_for_a_while_ends_no_training_and_no_run_is_called_done(out, monkeypatch):
    monkeypatch.setattr(running, "_latest", None)
    monkeypatch.chdir(REPOSITORY)
    this = start("00_teacher", SMALL | {"out": str(out)})
    record = students.Log(this, "a", lambda row: None).record
    record({"step": 1})
    before = content(out)
    this.progress(1, 5)
    with full_disk(20):  # less than one row
        this.progress(5, 5)  # the last is always said
        record({"step": 5})
        with pytest.raises(OSError, match=r"no room for .*results/00_teacher.json \(File too"):
            this.finish()
    assert heartbeat.state(out, "00_teacher")["step"] == 1
    this.progress(5, 5)
    assert heartbeat.state(out, "00_teacher")["step"] == 5
    this.detach()
    assert content(out) == before


# How it is told elsewhere

OF_00 = r"params/tiny/00_teacher.yaml: "
WORDS = [  # of `make book`, which are those of python -m tdbook book
    ("PROFILE=tny", r"PROFILE=tny has no runs in .*: did you mean tiny\?"),
    ("ONLY=03_lorra", r"03_lorra is no run of params/tiny: did you mean 03_lora"),
    ("REDO=50m", r"50m is no run of params/tiny: did you mean .*50m"),
    ("TEXT=nowhere.txt", OF_00 + r"text = 'nowhere.txt' must be .*not there"),
    ("TOKENS=Makefile", OF_00 + r"tokens = 'Makefile' .*is not one; correct"),
    ("TEACHER=tests", OF_00 + r"teacher = 'tests' reads only .*: give token"),
    ("OUT=Makefile/x", r"out = 'Makefile/x' must be a folder: .*Makefile is no folder; give anoth"),
    ("OUT=/proc/x", r"No such file or directory: '/proc/x'"),
]


@pytest.mark.parametrize("word, says", WORDS, ids=str)
def test_make_book(word, says, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    before = sorted(os.listdir("outputs"))
    assert __main__.main(["book", word]) == 1
    said = capsys.readouterr()
    line, end, rest = said.out.partition("\n")
    assert re.search(says, line) and (end, rest, said.err) == ("\n", "", ""), said
    if near := re.search(r"did you mean ([\w.-]+)", line):
        graph.wanted("book", {word.partition("=")[0]: near[1]})
    assert sorted(os.listdir("outputs")) == before


# What looks bad and is good


def test_a_path_with_spaces_is_one_path_and_several_are_several(tmp_path, monkeypatch):
    monkeypatch.setattr(parameters, "ROOT", tmp_path)
    for name in ("my book.txt", "a.txt", "b.txt"):
        (tmp_path / name).write_bytes(BODY)
    assert parameters.texts("my book.txt") == ["my book.txt"]
    assert parameters.texts("a.txt b.txt") == ["a.txt", "b.txt"]
    assert parameters.texts("") == []
    assert graph.default_out("tiny", "my book.txt") == "outputs/tiny-my_book"
    assert graph.default_out("tiny", "a.txt b.txt") == "outputs/tiny-a+b"
