"""A terminal loop with a model folder (PyTorch) or a .gguf file (llama.cpp): make chat MODEL=…

Each line typed is a text that the model goes on with, as it is made: these models continue text and
answer nothing. Ctrl-C ends a text, Ctrl-D the loop.
"""

import readline  # noqa: F401  (gives input() its history and arrow keys)
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import tdlib.tokenizer
from tdlib import export, generate, gguf_tokenizer, llama_cpp
from tdlib.model import Llama
from tdlib.tokenizer import Tokenizer

TEMPERATURE, TOKENS = 0.8, 200
Continue = Callable[[str, int], Iterator[str]]  # a text and a seed → what follows, piece by piece


def folder(path: Path, segmenter: str) -> tuple[Continue, str]:
    """What goes on with text by a model folder, and what it says of itself first."""
    model = Llama.load(path).eval()
    tokenizer = _tokenizer(path, segmenter, model.config.vocab_size)
    begin, stops = gguf_tokenizer.around(path, tokenizer)[0], gguf_tokenizer.stops(path)
    sampling = generate.Sampling(temperature=TEMPERATURE)

    def texts(text: str, seed: int) -> Iterator[str]:
        ids = [*begin, *tokenizer.encode([text])[0]]
        room = min(TOKENS, model.config.context - len(ids))
        return generate.stream(model, tokenizer, ids, room, sampling, seed=seed, stop=stops)

    return texts, f"{path}: {model.config.parameters:,} weights, in PyTorch. {_said(tokenizer)}"


def file(path: Path, segmenter: str) -> tuple[Continue, str]:
    """The same by a .gguf file. One that takes ids alone needs its tokenizer beside it."""
    model = llama_cpp.Model(path)
    tokenizer = None if model.raw_text else _tokenizer(path.parent, segmenter, model.vocab_size)

    def texts(text: str, seed: int) -> Iterator[str]:
        ids = tokenizer.encode([text])[0] if tokenizer else model.tokenize(text)
        ids, new, shown = [*model.begin, *ids] or [model.eos], [], 0
        if len(ids) >= model.context:
            raise ValueError(f"{len(ids)} tokens fill the context of {model.context}: shorten it")
        count, before = min(TOKENS, model.context - len(ids)), len(model.text(ids))
        for token in model.stream(ids, count, temperature=TEMPERATURE, seed=seed):
            if model.ends(token):
                break
            new.append(token)
            found = model.text([*ids, *new])[before:].replace("�", "")  # of half a character
            end = max(shown, tdlib.tokenizer._settled(found))
            yield found[shown:end]
            shown = end
        yield model.text([*ids, *new])[before:].replace("�", "")[shown:]

    return texts, f"{path}: in llama.cpp. {_said(tokenizer)}"


def _tokenizer(path: Path, segmenter: str, rows: int = 0) -> Tokenizer:
    return gguf_tokenizer.beside(path, rows, segmenter)


def _said(tokenizer: Tokenizer | None) -> str:
    if tokenizer and tokenizer.kind == "Morfessor" and tokenizer.model.segment is None:
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


def main(arguments: list[str]) -> int:
    pairs = dict(pair.split("=", 1) for pair in arguments if "=" in pair)
    given, segmenter = pairs.get("MODEL", ""), pairs.get("SEGMENTER", "")
    try:
        if given.endswith(".gguf"):
            texts, said = file(export.find(given), segmenter)
        elif given:
            texts, said = folder(export.find(given), segmenter)
        else:
            raise ValueError("give a model folder or a .gguf file: make chat MODEL=exports/50m/…")
    except (ValueError, OSError) as error:
        print(error)
        return 1
    print(said.strip())
    print("It goes on with the text you type; it was not taught to answer. Ctrl-C ends a text, "
          "Ctrl-D the loop.")  # fmt: skip
    loop(texts)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
