"""A terminal loop with a model folder (PyTorch) or a .gguf file (llama.cpp): make chat MODEL=…

Each line typed is a text that the model continues, as it is made: these models continue text and
answer nothing. Ctrl-C ends a text, Ctrl-D the loop.
"""

import readline  # noqa: F401
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from pathlib import Path

from tdbook.corpus.tokenizer import Tokenizer
from tdbook.export import llama_cpp, model_tokenizer, shipping
from tdlib import generate
from tdlib.model import Llama

TEMPERATURE, TOKENS = 0.8, 200
HOW = "It goes on with your text; it was not taught to answer. Ctrl-C ends a text, Ctrl-D all."
Continue = Callable[[str, int], Iterator[str]]  # a text and a seed → what follows, piece by piece


def chat(pairs: dict[str, str]) -> None:
    """MODEL= [SEGMENTER=] of the command line."""
    if not (given := pairs.get("MODEL")):
        raise ValueError("give a model folder or a .gguf file: make chat MODEL=exports/50m/…")
    path, segmenter = shipping.find(given), pairs.get("SEGMENTER", "")
    texts, about = (file if path.suffix == ".gguf" else folder)(path, segmenter)
    print(f"{about.strip()}\n{HOW}")
    loop(texts)


def folder(path: Path, segmenter: str) -> tuple[Continue, str]:
    """What continues text by a model folder, and a line about it."""
    model = Llama.load(path).eval()
    tokenizer = model_tokenizer.open_beside(path, segmenter, model.config.vocab_size)
    begin, _ = model_tokenizer.around(path, tokenizer)
    stops = {*model_tokenizer.stops(path), tokenizer.eos}
    sampling = generate.Sampling(temperature=TEMPERATURE)

    def texts(text: str, seed: int) -> Iterator[str]:
        ids = [*begin, *tokenizer.encode([text])[0]] or [tokenizer.eos]
        new = generate.steps(model, ids, _room(ids, model.config.context), sampling, seed)
        return follow(takewhile(lambda i: i not in stops, new), ids, tokenizer.decode)

    return texts, f"{path}: {model.config.parameters:,} weights, in PyTorch. {_hint(tokenizer)}"


def file(path: Path, segmenter: str) -> tuple[Continue, str]:
    """The same by a .gguf file. One that takes ids alone needs its tokenizer beside it."""
    model, tokenizer = llama_cpp.Model(path), None
    if not model.raw_text:
        tokenizer = model_tokenizer.open_beside(path.parent, segmenter, model.vocab_size)

    def texts(text: str, seed: int) -> Iterator[str]:
        ids = tokenizer.encode([text])[0] if tokenizer else model.tokenize(text)
        ids = [*model.begin, *ids] or [model.eos]
        new = model.stream(ids, _room(ids, model.context), temperature=TEMPERATURE, seed=seed)
        return follow(takewhile(lambda i: not model.ends(i), new), ids, model.text)

    return texts, f"{path}: in llama.cpp. {_hint(tokenizer)}"


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


def _room(ids: list[int], context: int) -> int:
    if len(ids) >= context:
        raise ValueError(f"{len(ids)} tokens fill the model's context of {context}: shorten it")
    return min(TOKENS, context - len(ids))


def _hint(tokenizer: Tokenizer | None) -> str:
    if tokenizer and tokenizer.kind == "Morfessor" and tokenizer.model is None:
        return "Type text as segmented (ఊరి@@ లో), or give SEGMENTER=morfessor.bin."
    return ""


def loop(texts: Continue) -> None:
    """Until Ctrl-D, or the end of what is piped in."""
    seed = 0
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
            for piece in texts(text, seed):
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            print(" …", end="")
        except ValueError as error:
            print(f"\n{error}", end="")
        print(f"\n({time.perf_counter() - began:.1f} s)")
        seed += 1
