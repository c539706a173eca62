"""A GGUF file in llama.cpp, inside this process: ids → the whole distribution of every next token.

The package xllamacpp carries llama.cpp as one library, which exports all of llama.h; its own server
gives the likeliest few tokens alone, and only of what it generated. llama.cpp ends the process
where it meets what it does not expect, so a file is looked at first, and tried in another one.
Legend: T tokens, V vocabulary.
"""

import ctypes
import json
import math
import mmap
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_int64, c_size_t, c_void_p
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np

BATCH = 512  # tokens that go in at once
BYTE = 6  # llama.cpp's type of a piece such as <0xE0>
RAW = "tdlib.raw_text"  # metadata: whether the file makes the right ids of raw text
ITEMS, MOST = 2**22, 2**16  # values in all lists of a file's metadata; entries, and weights
LONGEST = 2**20  # tokens of a context: room for its keys and values is made at once
_TEXT, _LIST = 8, 9  # of GGUF's kinds of values, and the bytes of each
_WIDTH = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8]


class _Settings(ctypes.Structure):
    """llama_model_params or llama_context_params, of which only the first numbers are known here
    (n_ctx, n_batch). Larger than either: passed by value it lies in memory, and the library reads
    its own part."""

    _fields_ = [("numbers", c_int32 * 8), ("rest", ctypes.c_uint64 * 124)]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("count", c_int32), ("ids", POINTER(c_int32)), ("embedding", c_void_p),
        ("place", POINTER(c_int32)), ("sequences", POINTER(c_int32)),
        ("sequence", POINTER(POINTER(c_int32))), ("wanted", POINTER(c_int8)),
    ]  # fmt: skip


_SIGNATURES = {  # llama.h: what comes back, what goes in
    "llama_model_default_params": (_Settings,),
    "llama_context_default_params": (_Settings,),
    "llama_model_load_from_file": (c_void_p, c_char_p, _Settings),
    "llama_init_from_model": (c_void_p, c_void_p, _Settings),
    "llama_model_free": (None, c_void_p),
    "llama_free": (None, c_void_p),
    "llama_model_get_vocab": (c_void_p, c_void_p),
    "llama_model_n_ctx_train": (c_int32, c_void_p),
    "llama_n_ctx": (c_int32, c_void_p),
    "llama_set_n_threads": (None, c_void_p, c_int32, c_int32),
    "llama_get_memory": (c_void_p, c_void_p),
    "llama_memory_clear": (None, c_void_p, c_bool),
    "llama_batch_init": (_Batch, c_int32, c_int32, c_int32),
    "llama_batch_free": (None, _Batch),
    "llama_decode": (c_int32, c_void_p, _Batch),
    "llama_get_logits": (POINTER(c_float), c_void_p),
    "llama_vocab_n_tokens": (c_int32, c_void_p),
    "llama_vocab_bos": (c_int32, c_void_p),
    "llama_vocab_eos": (c_int32, c_void_p),
    "llama_vocab_is_eog": (c_bool, c_void_p, c_int32),
    "llama_vocab_get_add_bos": (c_bool, c_void_p),
    "llama_tokenize": (
        c_int32, c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool,
    ),
    "llama_detokenize": (
        c_int32, c_void_p, POINTER(c_int32), c_int32, c_char_p, c_int32, c_bool, c_bool,
    ),
    "ggml_quantize_chunk": (
        c_size_t, c_int32, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p,
    ),
}  # fmt: skip

OTHER_LIBRARY = "this xllamacpp has another llama.h than the one used here: install the pinned one"
_said: list[str] = []  # llama.cpp's last words


@ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)
def _listen(level: int, text: bytes, _: int) -> None:
    del _said[:-20]
    _said.append(text.decode(errors="replace").strip())


@cache
def library() -> ctypes.CDLL:
    """llama.cpp. ValueError: the package is missing, or holds another library than this expects."""
    found = find_spec("xllamacpp")
    if not found:
        raise ValueError("llama.cpp comes in the package xllamacpp, which is not installed: "
                         "pip install xllamacpp")  # fmt: skip
    lib = ctypes.CDLL(str(next(Path(found.origin).parent.glob("xllamacpp*.so"))))
    for name, (back, *into) in _SIGNATURES.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = back, into
    lib.llama_log_set(_listen, None)
    lib.llama_backend_init()
    if list(lib.llama_context_default_params().numbers[:2]) != [512, 2048]:
        raise ValueError(OTHER_LIBRARY)
    return lib


def quantize(weight_OD: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """The blocks of a float32 matrix, (O, bytes of a row), by ggml's own rounding."""
    rows, width = weight_OD.shape
    weight_OD = np.ascontiguousarray(weight_OD, np.float32)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    found = np.empty((rows, width // block * size), np.uint8)
    library().ggml_quantize_chunk(
        kind, weight_OD.ctypes.data, found.ctypes.data, 0, rows, width, None
    )
    return found


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    try:
        yield
    # what is raised depends on where a file was cut, or what it is instead
    except (ValueError, LookupError, TypeError, OverflowError, OSError, MemoryError,
            AttributeError, struct.error) as error:  # fmt: skip
        raise ValueError(f"{path} is no whole GGUF file ({error!r:.150}): copy it again, or make "
                         "it again") from None  # fmt: skip


def look(path: Path) -> None:
    """ValueError where the counts and lengths in a GGUF's header are more than its bytes can hold,
    or than ITEMS and MOST: a reader would make room for what is not there."""
    with _whole(path), path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as d:
        _, version, tensors, entries = struct.unpack_from("<4sIQQ", d)
        at, room, alignment, end = 24, ITEMS, gguf.GGUF_DEFAULT_ALIGNMENT, 0

        def take(form: str) -> int:
            nonlocal at
            at += (size := struct.calcsize(form))
            return struct.unpack_from(f"<{form}", d, at - size)[0]

        def skip(size: int, what: str = "a name") -> bytes:
            nonlocal at
            if size > len(d) - at:
                raise ValueError(f"{what} of {size:,} bytes in a file of {len(d):,}")
            at += size
            return d[at - min(size, 64) : at]

        if version not in (2, 3) or max(tensors, entries) > MOST:
            raise ValueError(f"version {version}, {tensors:,} weights, {entries:,} values: at most "
                             f"{MOST:,} are read")  # fmt: skip
        for _ in range(entries):
            name, kind = skip(take("Q")), take("I")
            inner, count = (take("I"), take("Q")) if kind == _LIST else (kind, 1)
            room -= count
            if room < 0 or inner == _LIST or inner >= len(_WIDTH):
                raise ValueError(f"{count:,} values of kind {inner} in {name}: at most {ITEMS:,} "
                                 "plain ones are read")  # fmt: skip
            if name == b"general.alignment":
                alignment = struct.unpack_from("<I", d, at)[0] or alignment
            for _ in range(count if inner == _TEXT else 0):
                skip(take("Q"), f"a text in {name}")
            skip(count * _WIDTH[inner], f"the value of {name}")
        for _ in range(tensors):
            name, axes = skip(take("Q")), take("I")
            if axes > 4:
                raise ValueError(f"{axes:,} axes of {name}")
            size, kind = math.prod(take("Q") for _ in range(axes)), take("I")
            block, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
            end = max(end, take("Q") + size // block * width)
        skip(-at % alignment + end, "weights")


def read(path: Path) -> gguf.GGUFReader:
    """A GGUF's metadata and tensors, mapped. One line where it is damaged, cut short, of another
    architecture or without a vocabulary: llama.cpp may end the process on such a file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: make it by make export MODEL=folder")
    look(path)
    with _whole(path):
        reader = gguf.GGUFReader(path)  # maps each tensor: none may end beyond the file
        known = {name: field.contents() for name, field in reader.fields.items()
                 if name in ("general.architecture", "tokenizer.ggml.model")}  # fmt: skip
    if (kind := known.get("general.architecture", "not said")) != "llama":
        raise ValueError(f"{path}: its architecture is {kind!r:.40}, only llama is used here: give "
                         "a file of a Llama")  # fmt: skip
    pieces = reader.fields.get("tokenizer.ggml.tokens")
    if known.get("tokenizer.ggml.model", "none") == "none" or not (pieces and len(pieces.data)):
        raise ValueError(f"{path} holds no vocabulary (tokenizer.ggml.tokens), so its ids are no "
                         "text: make it again, by make export MODEL=folder")  # fmt: skip
    return reader


@cache
def _try(path: Path, size: int, changed: int) -> None:
    """Open and run a file where it can do no harm; once, until it changes."""
    done = _elsewhere("try", path, "")
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"signal {-done.returncode}"]
        raise ValueError(f"llama.cpp cannot run {path} ({said[-1]:.120}): make it again, by "
                         "make export MODEL=folder")  # fmt: skip


def _elsewhere(what: str, path: Path, given: str) -> subprocess.CompletedProcess:
    root = str(Path(__file__).parents[1])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "tdlib.llama_cpp", what, str(path)], input=given, text=True,
        capture_output=True, env=os.environ | {"PYTHONPATH": paths}, check=False,
    )  # fmt: skip


def ids_elsewhere(path: Path, lines: Sequence[str]) -> list[list[int]] | None:
    """What llama.cpp makes of lines of text, in a process of its own; None where that ended it."""
    done = _elsewhere("ids", path, json.dumps(list(lines)))
    return json.loads(done.stdout) if done.returncode == 0 else None


class Model:
    """A GGUF file, opened. `context` 0 takes the file's; `tried` says that it ran before; `exact`
    keeps keys and values in float32, where llama.cpp would round them to 16 bits."""

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int = 1,
        context: int = 0,
        tried: bool = False,
        exact: bool = False,
    ):
        self.path, self.lib, self._handles = Path(path), library(), []
        fields = read(self.path).fields
        if not tried:
            now = self.path.stat()
            _try(self.path.resolve(), now.st_size, now.st_mtime_ns)
        types = fields.get("tokenizer.ggml.token_type")
        known = types is None or BYTE in types.contents()
        known |= fields["tokenizer.ggml.model"].contents() != "llama"
        self.raw_text = bool(fields[RAW].contents()) if RAW in fields else known
        lib = self.lib
        model = lib.llama_model_load_from_file(
            str(self.path).encode(), lib.llama_model_default_params()
        )
        self._keep(lib.llama_model_free, model)
        settings = lib.llama_context_default_params()
        self.context = context or lib.llama_model_n_ctx_train(model)
        if self.context > LONGEST:
            raise ValueError(
                f"{self.path} claims a context of {self.context:,}, at most "
                f"{LONGEST:,} are read: make it again, by make export MODEL=folder"
            )
        settings.numbers[0], settings.numbers[1] = self.context, BATCH
        if exact:
            kinds = (c_int32 * 32).from_buffer(settings)
            if (kinds[26], kinds[27]) != (1, 1):  # type_k, type_v: F16 unless told
                raise ValueError(OTHER_LIBRARY)
            kinds[26] = kinds[27] = 0
        self._run = self._keep(lib.llama_free, lib.llama_init_from_model(model, settings))
        self._batch = lib.llama_batch_init(BATCH, 0, 1)
        self._vocab = lib.llama_model_get_vocab(model)
        self.vocab_size = lib.llama_vocab_n_tokens(self._vocab)
        self.bos, self.eos = lib.llama_vocab_bos(self._vocab), lib.llama_vocab_eos(self._vocab)
        self.begin = [self.bos] if lib.llama_vocab_get_add_bos(self._vocab) else []
        self.threads(threads)
        self.length = 0  # tokens in the cache

    def _keep(self, free, handle: int | None) -> int:
        if not handle:
            raise ValueError(f"llama.cpp cannot open {self.path}: {' '.join(_said[-3:])[-200:]}")
        self._handles.append((free, handle))
        return handle

    def __del__(self):
        for free, handle in reversed(self._handles):
            free(handle)
        if hasattr(self, "_batch"):
            self.lib.llama_batch_free(self._batch)

    def threads(self, count: int) -> None:
        self.lib.llama_set_n_threads(self._run, count, count)

    def clear(self) -> None:
        """Forget all tokens seen."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self._run), True)
        self.length = 0

    def _feed(self, ids: Sequence[int], every: bool) -> Iterator[np.ndarray]:
        """Tokens after those in the cache, some at a time → logits (t, V): of each, or of the last.
        An array is overwritten by the next."""
        if odd := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise ValueError(f"id {odd[0]} is none of the {self.vocab_size:,} of {self.path}: "
                             "give ids of its own tokenizer")  # fmt: skip
        if self.length + len(ids) > self.context:
            raise ValueError(f"{self.length + len(ids)} tokens are more than the context of "
                             f"{self.context}: shorten the prompt")  # fmt: skip
        batch = self._batch
        for start in range(0, len(ids), BATCH):
            part = ids[start : start + BATCH]
            batch.count, last = len(part), start + BATCH >= len(ids)
            for i, token in enumerate(part):
                batch.ids[i], batch.place[i] = token, self.length + i
                batch.sequences[i], batch.sequence[i][0] = 1, 0
                batch.wanted[i] = every or (last and i == len(part) - 1)
            if self.lib.llama_decode(self._run, batch):
                raise ValueError(f"llama.cpp cannot decode {self.path}: {' '.join(_said[-2:])}")
            self.length += len(part)
            if every or last:
                shape = (len(part) if every else 1, self.vocab_size)
                yield np.ctypeslib.as_array(self.lib.llama_get_logits(self._run), shape)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """(T, V) float32, what follows each token of a text that begins with them."""
        self.clear()
        return np.concatenate([x.copy() for x in self._feed(ids, True)])

    def logprobs(self, ids: Sequence[int]) -> np.ndarray:
        """(T, V), natural logarithms."""
        logits_TV = self.logits(ids)
        logits_TV -= logits_TV.max(1, keepdims=True)
        logits_TV -= np.log(np.exp(logits_TV).sum(1, keepdims=True))
        return logits_TV

    def tokenize(self, text: str) -> list[int]:
        """The file's own ids of raw text, without <bos>; text that spells a special token stays
        text. ValueError where the file has no tokenizer for it."""
        if not self.raw_text:
            raise ValueError(f"{self.path} takes ids, no raw text: encode it as run_gguf.py beside "
                             "the file does")  # fmt: skip
        data = text.encode()
        found = (c_int32 * (len(data) + 8))()
        count = self.lib.llama_tokenize(
            self._vocab, data, len(data), found, len(found), False, False
        )
        return list(found[:count])

    def ends(self, token: int) -> bool:
        """Whether a text ends with this id: <eos>, or another that the file names."""
        return self.lib.llama_vocab_is_eog(self._vocab, token)

    def text(self, ids: Sequence[int]) -> str:
        """Text of ids by the file's own pieces; special tokens are nothing."""
        size = 64 * len(ids) + 64
        given, found = (c_int32 * len(ids))(*ids), ctypes.create_string_buffer(size)
        count = self.lib.llama_detokenize(self._vocab, given, len(ids), found, size, False, False)
        return found.raw[: max(0, count)].decode(errors="replace")

    def stream(
        self, ids: Sequence[int], tokens: int, *, temperature: float = 0.0, seed: int = 0,
        stop: int | None = None,
    ) -> Iterator[int]:  # fmt: skip
        """Up to `tokens` new ids, one by one; temperature 0 takes the likeliest."""
        draw, following = np.random.default_rng(seed), list(ids)
        self.clear()
        for _ in range(tokens):
            (logits_V,) = next(self._feed(following, False))
            following = [_pick(logits_V, temperature, draw)]
            yield following[0]
            if following[0] == stop:
                return

    def generate(
        self, ids: Sequence[int], tokens: int, *, temperature: float = 0.0, seed: int = 0,
        stop: int | None = None,
    ) -> list[int]:  # fmt: skip
        """All that `stream` gives."""
        return list(self.stream(ids, tokens, temperature=temperature, seed=seed, stop=stop))


def _pick(logits_V: np.ndarray, temperature: float, draw: np.random.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    p_V = np.exp((logits_V - logits_V.max()).astype(np.float64) / temperature)
    return int(np.searchsorted(p_V.cumsum(), draw.random() * p_V.sum()))


def _main(what: str, path: str) -> None:
    model = Model(path, tried=True, context=64)
    if what == "try":
        model.logits([0, 1])
        return
    model.raw_text = True  # whether it is right is what the caller wants to know
    print(json.dumps([model.tokenize(line) for line in json.load(sys.stdin)]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
