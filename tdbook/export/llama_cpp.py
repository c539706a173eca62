"""A GGUF file in llama.cpp, inside this process: ids → the whole distribution of every next token.

The package xllamacpp carries llama.cpp as one library, which exports all of llama.h (its server
gives only the likeliest few tokens). It ends the process where it meets what it does not expect: so
every file is run once in a process of its own first.
Legend: T tokens, V vocabulary.
"""

import ctypes
import json
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_int64, c_size_t, c_void_p
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Kind

RAW_TEXT = "tdlib.raw_text"  # metadata: whether the file makes the tokenizer's own ids of raw text
REMAKE = "copy it again, or make it again, by make export MODEL=folder"
LONGEST = 2**20  # tokens of a context: room for its keys and values is made at once
TYPE_K = 26  # where the settings of a context hold the type of keys; that of values follows


class _Settings(ctypes.Structure):
    """llama_model_params or llama_context_params. It is larger than both: passed by value it lies
    in memory, and the library reads its own part. It begins with n_ctx and n_batch."""

    _fields_ = [("numbers", c_int32 * 32), ("rest", ctypes.c_uint64 * 112)]


class _Batch(ctypes.Structure):
    """llama_batch. With null positions and sequences llama.cpp continues its one text."""

    _fields_ = [("count", c_int32), ("ids", POINTER(c_int32))]
    _fields_ += [("embedding_positions_sequences", c_void_p * 4), ("wanted", POINTER(c_int8))]


class _Handle(c_void_p):
    """A subclass, which ctypes passes on as a whole pointer; a bare c_void_p becomes an int."""


_RETURNS = {  # by llama.h; other functions return an int32, or nothing
    "llama_model_default_params llama_context_default_params": _Settings,
    "llama_model_load_from_file llama_init_from_model": _Handle,
    "llama_model_get_vocab llama_get_memory": _Handle,
    "llama_get_logits": POINTER(c_float),
    "llama_model_chat_template llama_vocab_get_text": c_char_p,
    "llama_vocab_is_eog llama_vocab_get_add_bos": c_bool,
}
_silence = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)(lambda *_: None)


@cache
def library() -> ctypes.CDLL:
    """llama.cpp. ValueError: the package holds another library than this expects."""
    package = Path(find_spec("xllamacpp").origin).parent
    lib = ctypes.CDLL(str(next(package.glob("xllamacpp*.so"))))
    for names, kind in _RETURNS.items():
        for name in names.split():
            getattr(lib, name).restype = kind
    lib.ggml_quantize_chunk.argtypes = [c_int32, *[c_void_p] * 2, *[c_int64] * 3, c_void_p]
    lib.llama_log_set(_silence, None)
    lib.llama_backend_init()
    numbers = lib.llama_context_default_params().numbers
    if [numbers[i] for i in (0, 1, TYPE_K, TYPE_K + 1)] != [512, 2048, 1, 1]:
        raise ValueError("xllamacpp has another llama.h than is used here: install the pinned one")
    return lib


def quantize(weight_OI: np.ndarray, kind: Kind, squares_I: np.ndarray | None = None) -> np.ndarray:
    """The blocks of a float32 matrix, (O, bytes of a row), by ggml's own rounding. With the mean
    square of each input it weights their errors. It would make a block of importance 0 zero: none
    is below a millionth of the mean, and where all is 0 there is none."""
    rows, width = weight_OI.shape
    weight_OI = np.ascontiguousarray(weight_OI, np.float32)
    block, size = GGML_QUANT_SIZES[kind]
    blocks, importance = np.empty((rows, width // block * size), np.uint8), None
    if squares_I is not None and 0 < (mean := squares_I.mean(dtype=np.float64)) < np.inf:
        kept_I = np.maximum(squares_I / mean, 1e-6).astype(np.float32)
        importance = kept_I.ctypes.data
    source, target = weight_OI.ctypes.data, blocks.ctypes.data
    library().ggml_quantize_chunk(kind, source, target, 0, rows, width, importance)
    return blocks


def ids_of(path: Path, texts: Sequence[tuple[str, bool]] = ()) -> list[list[int]]:
    """What `tokenize` of a file makes of each, in a process of its own. ValueError: that ended."""
    command = [sys.executable, "-P", __file__, str(path)]  # -P: none of tdbook
    done = subprocess.run(command, input=json.dumps(texts), text=True, capture_output=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines() or [f"signal {-done.returncode}"]
        raise ValueError(f"llama.cpp cannot run {path} ({reason[-1]:.200}): {REMAKE}")
    return json.loads(done.stdout)


_try = cache(lambda path, changed: ids_of(path))  # once, and once more where a file has changed


class Model:
    """An opened GGUF file. `trial`: in a process of its own, with a short context. `exact`: keys
    and values in float32; llama.cpp's own choice is 16 bits."""

    def __init__(self, path: str | Path, threads=1, trial: bool = False, exact: bool = False):
        self.path, self.length = Path(path), 0  # tokens in the cache
        if not trial:
            _try(self.path.resolve(), self.path.stat().st_mtime_ns)
        self.lib = lib = library()
        settings = lib.llama_model_default_params()
        model = lib.llama_model_load_from_file(str(self.path).encode(), settings)
        self._model = self._keep(lib.llama_model_free, model)
        self._vocabulary = lib.llama_model_get_vocab(model)
        self.vocab_size = lib.llama_vocab_n_tokens(self._vocabulary)
        if not lib.llama_vocab_type(self._vocabulary):
            raise ValueError(f"{self.path} holds no vocabulary (tokenizer.ggml.model)")
        key = RAW_TEXT.encode(), (value := ctypes.create_string_buffer(9)), c_size_t(len(value))
        known = lib.llama_model_meta_val_str(model, *key) > 0  # not where it was made elsewhere
        self.raw_text = not known or value.value != b"false"
        self.context = 64 if trial else min(LONGEST, lib.llama_model_n_ctx_train(model))
        settings = lib.llama_context_default_params()
        settings.numbers[0] = settings.numbers[1] = self.context  # in all, and at once
        if exact:
            settings.numbers[TYPE_K] = settings.numbers[TYPE_K + 1] = 0
        self._run = self._keep(lib.llama_free, lib.llama_init_from_model(model, settings))
        self.template = (lib.llama_model_chat_template(model, None) or b"").decode()
        self.bos, self.eos = (getattr(lib, f"llama_vocab_{x}os")(self._vocabulary) for x in "be")
        self.begin = [self.bos] if lib.llama_vocab_get_add_bos(self._vocabulary) else []
        self.threads(threads)

    def _keep(self, free: Callable, handle: _Handle) -> _Handle:
        """A handle that is freed with this object, the latest first."""
        if not handle:
            raise ValueError(f"llama.cpp cannot open {self.path}")
        weakref.finalize(self, free, handle)
        return handle

    def threads(self, count: int) -> None:
        self.lib.llama_set_n_threads(self._run, count, count)

    def _logits(self, ids: Sequence[int], every: bool, anew: bool) -> np.ndarray:
        """Of `every` token, (T, V), or of the last, (1, V), after those in the cache, or `anew`.
        The next call overwrites it."""
        if anew:
            self.lib.llama_memory_clear(self.lib.llama_get_memory(self._run), True)
            self.length = 0
        if odd := [i for i in ids if not 0 <= i < self.vocab_size]:
            fault = f"id {odd[0]} is none of the {self.vocab_size:,} of {self.path}"
            raise ValueError(f"{fault}: give ids of its own tokenizer")
        count, self.length = len(ids), self.length + len(ids)
        if self.length > self.context:
            fault = f"{self.length} tokens are more than the context of {self.context}"
            raise ValueError(f"{fault}: shorten the prompt")
        wanted = (c_int8 * count)(*[every] * (count - 1), True)
        if self.lib.llama_decode(self._run, _Batch(count, (c_int32 * count)(*ids), wanted=wanted)):
            raise ValueError(f"llama.cpp cannot decode {self.path}: {REMAKE}")
        shape = (count if every else 1, self.vocab_size)
        return np.ctypeslib.as_array(self.lib.llama_get_logits(self._run), shape)

    def logprobs(self, ids: Sequence[int]) -> np.ndarray:
        """(T, V) float32, after each token of a text that begins with them; natural logarithms."""
        logits_TV = self._logits(ids, True, True).copy()
        logits_TV -= logits_TV.max(1, keepdims=True)
        logits_TV -= np.log(np.exp(logits_TV).sum(1, keepdims=True))
        return logits_TV

    def stream(self, ids: Sequence[int], tokens: int, temperature=0.0, seed=0) -> Iterator[int]:
        """Up to `tokens` new ids, one by one; temperature 0 takes the likeliest."""
        draw, new = np.random.default_rng(seed), list(ids)
        for i in range(tokens):
            (logits_V,) = self._logits(new, False, anew=i == 0)
            token = int(logits_V.argmax())
            if temperature:
                p_V = np.exp((logits_V - logits_V.max()).astype(np.float64) / temperature)
                token = int(np.searchsorted(p_V.cumsum(), draw.random() * p_V.sum()))
            new = [token]
            yield token

    def generate(self, ids: Sequence[int], tokens: int) -> list[int]:
        return list(self.stream(ids, tokens))

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """The file's own ids of raw text; the special tokens that it spells are text, or these.
        ValueError: it makes none."""
        if not self.raw_text:
            raise ValueError(f"{self.path} takes ids, no raw text: encode it as run_gguf.py does")
        data = text.encode()
        ids = (c_int32 * (len(data) + 8))()
        arguments = data, len(data), ids, len(ids), False, special
        return ids[: self.lib.llama_tokenize(self._vocabulary, *arguments)]

    def piece(self, token: int) -> str:
        """As it stands in the file; "" for an id below 0, which is none."""
        return "" if token < 0 else self.lib.llama_vocab_get_text(self._vocabulary, token).decode()

    def ends(self, token: int) -> bool:
        """Whether the id ends a text."""
        return self.lib.llama_vocab_is_eog(self._vocabulary, token)

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens, and without half a character at the end."""
        text = ctypes.create_string_buffer(64 * len(ids) + 64)
        arguments = (c_int32 * len(ids))(*ids), len(ids), text, len(text), False, False
        length = self.lib.llama_detokenize(self._vocabulary, *arguments)
        return text.raw[: max(0, length)].decode(errors="replace").rstrip("�")


if __name__ == "__main__":
    model = Model(sys.argv[1], trial=True)
    model.logprobs([0, 1])
    model.raw_text = True  # whether its ids are right is what the caller wants to know
    print(json.dumps([model.tokenize(*each) for each in json.load(sys.stdin)]))
