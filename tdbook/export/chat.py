"""A terminal loop with a model folder (PyTorch) or a .gguf file (llama.cpp): make chat MODEL=…

Each line typed is a text that the model continues, as it is made: these models continue text and
answer nothing. Ctrl-C ends a text, Ctrl-D the loop.
"""

import readline  # noqa: F401
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace

from tdbook.corpus.tokenizer import Tokenizer
from tdbook.export import llama_cpp, model_tokenizer, shipping
from tdlib import generate
from tdlib.model import Llama

TEMPERATURE, TOKENS = 0.8, 200
HOW = "It goes on with your text; it was not taught to answer. Ctrl-C ends a text, Ctrl-D all."
HINT = "\nType text as segmented (ఊరి@@ లో; in v4 the mark comes first), or give SEGMENTER=m.bin."


def chat(pairs: dict[str, str]) -> None:
    """MODEL= [SEGMENTER=] of the command line. Until Ctrl-D, or the end of what is piped in."""
    path, seed = shipping.find(pairs.get("MODEL", "")), 0
    model, tokenizer = opened(path, pairs.get("SEGMENTER", ""))
    raw = not tokenizer or not tokenizer.joined
    print(f"{path}\n{HOW}{'' if raw else HINT}")
    while True:
        try:
            text = input("\n> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            continue
        began = time.perf_counter()
        try:
            print(text, end="", flush=True)
            for piece in continued(model, text, seed):
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            print(" …", end="")
        except ValueError as error:
            print(f"\n{error}", end="")
        print(f"\n({time.perf_counter() - began:.1f} s)")
        seed += 1


def opened(path: Path, segmenter: str) -> tuple[llama_cpp.Model | SimpleNamespace, Tokenizer]:
    """What continues text, asked as llama_cpp.Model is; the tokenizer beside it, where needed."""
    if path.suffix == ".gguf":
        model = llama_cpp.Model(path)
        if model.raw_text:
            return model, None
        tokenizer = model_tokenizer.open_beside(path.parent, segmenter, model.vocab_size).tokenizer
    else:
        net = Llama.load(path).eval()
        beside = model_tokenizer.open_beside(path, segmenter, net.config.vocab_size)
        tokenizer, sampling = beside.tokenizer, generate.Sampling(temperature=TEMPERATURE)
        ends = {*beside.stops, tokenizer.eos}.__contains__
        model = SimpleNamespace(begin=beside.begin, eos=tokenizer.eos, ends=ends)
        model.context, model.decode = net.config.context, tokenizer.decode
        model.stream = lambda ids, n, _, seed: generate.steps(net, ids, n, sampling, seed)
    model.tokenize = lambda text: tokenizer.encode([text])[0]
    return model, tokenizer


def continued(model, text: str, seed: int) -> Iterator[str]:
    """What follows a text, in pieces of whole letters."""
    ids = [*model.begin, *model.tokenize(text)] or [model.eos]
    if len(ids) >= model.context:
        raise ValueError(f"{len(ids)} tokens fill the context of {model.context}: shorten it")
    stream = model.stream(ids, min(TOKENS, model.context - len(ids)), TEMPERATURE, seed)
    new = takewhile(lambda i: not model.ends(i), stream)
    return follow(new, ids, model.decode)


def follow(ids: Iterable[int], prompt: list[int], text_of: Callable) -> Iterator[str]:
    """The text of ids as they come after a prompt, word by word, less bytes of no character."""
    seen, text, shown = [*prompt], "", len(text_of(prompt))
    for i in ids:
        seen.append(i)
        text = text_of(seen)
        end = max(shown, text.rfind(" "))
        yield text[shown:end].replace("�", "")
        shown = end
    yield text[shown:].replace("�", "")
