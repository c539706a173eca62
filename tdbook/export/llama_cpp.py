"""A GGUF file in llama.cpp, inside this process: ids → the whole distribution of every next token.

The package xllamacpp carries llama.cpp as one library, which exports all of llama.h (its server
gives only the likeliest few tokens). llama.cpp ends the process where it meets what it does not
expect, so a file is looked at first, and tried in another process.
Legend: T tokens, V vocabulary.
"""

import ctypes
import json
import math
import mmap
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
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
KINDS, TEXT, LIST = "BbHhIif?--Qqd", 8, 9  # GGUF's kinds of values, as struct writes them
REMAKE = "make it again, by make export MODEL=folder"


class _Settings(ctypes.Structure):
    """llama_model_params or llama_context_params. Larger than either: passed by value it lies in
    memory, and the library reads its own part. The first numbers are n_ctx and n_batch."""

    _fields_ = [("numbers", c_int32 * 8), ("rest", ctypes.c_uint64 * 124)]


class _Batch(ctypes.Structure):
    """Where positions and sequences are null, llama.cpp goes on with the one text it has."""

    _fields_ = [
        ("count", c_int32),
        ("ids", POINTER(c_int32)),
        ("embedding_positions_sequences", c_void_p * 4),
        ("wanted", POINTER(c_int8)),
    ]


_IDS = POINTER(c_int32)
_SIGNATURES = {  # llama.h: what comes back, what goes in
    "llama_model_default_params": (_Settings,),
    "llama_context_default_params": (_Settings,),
    "llama_model_load_from_file": (c_void_p, c_char_p, _Settings),
    "llama_init_from_model": (c_void_p, c_void_p, _Settings),
    "llama_model_free": (None, c_void_p),
    "llama_free": (None, c_void_p),
    "llama_model_get_vocab": (c_void_p, c_void_p),
    "llama_model_n_ctx_train": (c_int32, c_void_p),
    "llama_set_n_threads": (None, c_void_p, c_int32, c_int32),
    "llama_get_memory": (c_void_p, c_void_p),
    "llama_memory_clear": (None, c_void_p, c_bool),
    "llama_decode": (c_int32, c_void_p, _Batch),
    "llama_get_logits": (POINTER(c_float), c_void_p),
    "llama_vocab_n_tokens": (c_int32, c_void_p),
    "llama_vocab_bos": (c_int32, c_void_p),
    "llama_vocab_eos": (c_int32, c_void_p),
    "llama_vocab_is_eog": (c_bool, c_void_p, c_int32),
    "llama_vocab_get_add_bos": (c_bool, c_void_p),
    "llama_tokenize": (c_int32, c_void_p, c_char_p, c_int32, _IDS, c_int32, c_bool, c_bool),
    "llama_detokenize": (c_int32, c_void_p, _IDS, c_int32, c_char_p, c_int32, c_bool, c_bool),
    "ggml_quantize_chunk": (c_size_t, c_int32, *[c_void_p] * 2, *[c_int64] * 3, c_void_p),
}

OTHER_LIBRARY = "this xllamacpp has another llama.h than the one used here: install the pinned one"
_log: list[str] = []  # llama.cpp's last messages


@ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)
def _listen(level: int, text: bytes, _: int) -> None:
    del _log[:-20]
    _log.append(text.decode(errors="replace").strip())


@cache
def library() -> ctypes.CDLL:
    """llama.cpp. ValueError: the package is missing, or holds another library than this expects."""
    package = find_spec("xllamacpp")
    if not package:
        raise ValueError("llama.cpp is not installed: pip install xllamacpp")
    lib = ctypes.CDLL(str(next(Path(package.origin).parent.glob("xllamacpp*.so"))))
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
    blocks = np.empty((rows, width // block * size), np.uint8)
    source, target = weight_OD.ctypes.data, blocks.ctypes.data
    library().ggml_quantize_chunk(kind, source, target, 0, rows, width, None)
    return blocks


def look(path: Path) -> dict[str, object]:
    """The metadata of a GGUF: texts, numbers, and lists of either. ValueError where a count or a
    length in its header is more than its bytes can hold, or than ITEMS and MOST: a reader would
    make room for what is not there."""
    try:
        with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _header(content)
    # what is raised depends on where a file was cut, or what it is instead
    except (ValueError, TypeError, OverflowError, OSError, struct.error) as error:
        raise ValueError(f"{path} is no whole GGUF file ({error!r:.150}): copy it again, or make "
                         "it again") from None  # fmt: skip


def _header(content: mmap.mmap) -> dict[str, object]:
    _, version, tensors, entries = struct.unpack_from("<4sIQQ", content)
    at, room, end, fields = 24, ITEMS, 0, {}

    def take(size: int, what: str = "a name") -> bytes:
        nonlocal at
        if size > len(content) - at:
            raise ValueError(f"{what} of {size:,} bytes in a file of {len(content):,}")
        at += size
        return content[at - size : at]

    def number(kind: str = "Q") -> int:
        return struct.unpack(f"<{kind}", take(struct.calcsize(kind)))[0]

    def text(what: str = "a name") -> str:
        return take(number(), what).decode(errors="replace")

    if version not in (2, 3) or max(tensors, entries) > MOST:
        raise ValueError(f"version {version}, {tensors:,} weights, {entries:,} values: at most "
                         f"{MOST:,} are read")  # fmt: skip
    for _ in range(entries):
        name, kind = text(), number("I")
        inner, count = (number("I"), number()) if kind == LIST else (kind, 1)
        room -= count
        if room < 0 or inner == LIST or inner >= len(KINDS):
            raise ValueError(f"{count:,} values of kind {inner} in {name!r:.40}: at most {ITEMS:,} "
                             "plain ones are read")  # fmt: skip
        if inner == TEXT:
            values = [text(f"a text in {name!r:.40}") for _ in range(count)]
        else:
            size = count * np.dtype(KINDS[inner]).itemsize
            values = np.frombuffer(take(size, f"{name!r:.40}"), f"<{KINDS[inner]}").tolist()
        fields[name] = values if kind == LIST else values[0]
    for _ in range(tensors):
        name, axes = text(), number("I")
        if axes > 4:
            raise ValueError(f"{axes:,} axes of {name!r:.40}")
        size, kind = math.prod(number() for _ in range(axes)), number("I")
        block, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        end = max(end, number() + size // block * width)
    padding = -at % (fields.get("general.alignment") or gguf.GGUF_DEFAULT_ALIGNMENT)
    if padding + end > len(content) - at:
        raise ValueError(f"weights of {end:,} bytes in a file of {len(content):,}")
    return fields


def read(path: Path) -> dict[str, object]:
    """The metadata of a Llama's GGUF. ValueError where it is damaged, cut short, of another
    architecture or without a vocabulary: llama.cpp may end the process on such a file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: make it by make export MODEL=folder")
    fields = look(path)
    kind = str(fields.get("general.architecture", "not said"))
    if kind != "llama":
        raise ValueError(f"{path}: its architecture is {kind!r:.40}, only llama is used: give one")
    pieces, model = fields.get("tokenizer.ggml.tokens"), fields.get("tokenizer.ggml.model", "none")
    if model == "none" or not pieces or not isinstance(pieces, list):
        raise ValueError(f"{path} holds no vocabulary (tokenizer.ggml.tokens): {REMAKE}")
    return fields


@cache
def _try(path: Path, size: int, changed: int) -> None:
    """Open and run a file where it can do no harm; once, until it changes."""
    done = _elsewhere("try", path, "")
    if done.returncode:
        why = done.stderr.strip().splitlines() or [f"signal {-done.returncode}"]
        raise ValueError(f"llama.cpp cannot run {path} ({why[-1]:.120}): {REMAKE}")


def _elsewhere(what: str, path: Path, given: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-P", __file__, what, str(path)]  # -P: text.py here hides no other
    return subprocess.run(command, input=given, text=True, capture_output=True, check=False)


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
        threads: int = 1,
        context: int = 0,
        tried: bool = False,
        exact: bool = False,
    ):
        self.path, self._handles = Path(path), []
        fields, lib = read(self.path), library()
        if not tried:
            now = self.path.stat()
            _try(self.path.resolve(), now.st_size, now.st_mtime_ns)
        complete = BYTE in fields.get("tokenizer.ggml.token_type", [BYTE])
        self.raw_text = bool(fields.get(RAW, complete or fields["tokenizer.ggml.model"] != "llama"))
        settings = lib.llama_model_default_params()
        model = lib.llama_model_load_from_file(str(self.path).encode(), settings)
        self._keep(lib.llama_model_free, model)
        settings = lib.llama_context_default_params()
        self.context = context or lib.llama_model_n_ctx_train(model)
        if self.context > LONGEST:
            claim = f"{self.path} claims a context of {self.context:,}"
            raise ValueError(f"{claim}, at most {LONGEST:,} are read: {REMAKE}")
        settings.numbers[0], settings.numbers[1] = self.context, BATCH
        if exact:
            kinds = (c_int32 * 32).from_buffer(settings)
            if (kinds[26], kinds[27]) != (1, 1):  # type_k, type_v: F16 unless told
                raise ValueError(OTHER_LIBRARY)
            kinds[26] = kinds[27] = 0
        self._run = self._keep(lib.llama_free, lib.llama_init_from_model(model, settings))
        self.lib, self._vocab = lib, lib.llama_model_get_vocab(model)
        self.vocab_size = lib.llama_vocab_n_tokens(self._vocab)
        self.eos, bos = lib.llama_vocab_eos(self._vocab), lib.llama_vocab_bos(self._vocab)
        self.begin = [bos] if lib.llama_vocab_get_add_bos(self._vocab) else []
        self.threads(threads)
        self.length = 0  # tokens in the cache

    def _keep(self, free, handle: int | None) -> int:
        if not handle:
            raise ValueError(f"llama.cpp cannot open {self.path}: {' '.join(_log[-3:])[-200:]}")
        self._handles.append((free, handle))
        return handle

    def __del__(self):
        for free, handle in reversed(self._handles):
            free(handle)

    def threads(self, count: int) -> None:
        self.lib.llama_set_n_threads(self._run, count, count)

    def _clear(self) -> None:
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self._run), True)
        self.length = 0

    def _feed(self, ids: Sequence[int], every: bool) -> Iterator[np.ndarray]:
        """Tokens after those in the cache, some at a time → logits (t, V): of each, or of the last.
        An array is overwritten by the next."""
        if odd := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise ValueError(f"id {odd[0]} is none of the {self.vocab_size:,} of {self.path}: "
                             "give ids of its own tokenizer")  # fmt: skip
        if (length := self.length + len(ids)) > self.context:
            raise ValueError(f"{length} tokens are more than the context of {self.context}: "
                             "shorten the prompt")  # fmt: skip
        for start in range(0, len(ids), BATCH):
            part, last = ids[start : start + BATCH], start + BATCH >= len(ids)
            wanted = (c_int8 * len(part))(*[every] * len(part))
            wanted[-1] |= last
            batch = _Batch(len(part), (c_int32 * len(part))(*part), wanted=wanted)
            if self.lib.llama_decode(self._run, batch):
                raise ValueError(f"llama.cpp cannot decode {self.path}: {' '.join(_log[-2:])}")
            self.length += len(part)
            if every or last:
                shape = (len(part) if every else 1, self.vocab_size)
                yield np.ctypeslib.as_array(self.lib.llama_get_logits(self._run), shape)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """(T, V) float32, what follows each token of a text that begins with them."""
        self._clear()
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
            raise ValueError(f"{self.path} takes ids, no raw text: encode it as run_gguf.py does")
        data = text.encode()
        size = len(data) + 8
        ids = (c_int32 * size)()
        count = self.lib.llama_tokenize(self._vocab, data, len(data), ids, size, False, False)
        return ids[:count]

    def ends(self, token: int) -> bool:
        """Whether a text ends with this id: <eos>, or another that the file names."""
        return self.lib.llama_vocab_is_eog(self._vocab, token)

    def text(self, ids: Sequence[int]) -> str:
        """Text of ids by the file's own pieces; special tokens are nothing."""
        size = 64 * len(ids) + 64
        ids_, text = (c_int32 * len(ids))(*ids), ctypes.create_string_buffer(size)
        count = self.lib.llama_detokenize(self._vocab, ids_, len(ids), text, size, False, False)
        return text.raw[: max(0, count)].decode(errors="replace")

    def stream(
        self, ids: Sequence[int], tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> Iterator[int]:
        """Up to `tokens` new ids, one by one; temperature 0 takes the likeliest."""
        draw, following = np.random.default_rng(seed), list(ids)
        self._clear()
        for _ in range(tokens):
            (logits_V,) = next(self._feed(following, False))
            token = int(logits_V.argmax())
            if temperature:
                p_V = np.exp((logits_V - logits_V.max()).astype(np.float64) / temperature)
                token = int(np.searchsorted(p_V.cumsum(), draw.random() * p_V.sum()))
            following = [token]
            yield token

    def generate(
        self, ids: Sequence[int], tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[int]:
        return list(self.stream(ids, tokens, temperature, seed))


def _main(what: str, path: str) -> None:
    model = Model(path, tried=True, context=64)
    model.raw_text = True  # whether it is right is what the caller wants to know
    if what == "try":
        model.logits([0, 1])
    else:
        print(json.dumps([model.tokenize(line) for line in json.load(sys.stdin)]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
