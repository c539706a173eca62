"""A terminal loop with a model folder (PyTorch) or a .gguf file (llama.cpp): make chat MODEL=…

A chat model answers, and remembers the conversation; an empty line begins a new one. Of any other
model each line typed is a text that it continues. Ctrl-C ends a text, Ctrl-D the loop.
"""

import readline  # noqa: F401
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace

from tdbook.corpus.tokenizer import Tokenizer
from tdbook.export import llama_cpp, model_tokenizer, shipping
from tdbook.export.turns import Turns
from tdlib import generate
from tdlib.model import Llama

TEMPERATURE, TOKENS = 0.8, 200
HOW = "It goes on with your text; it was not taught to answer. Ctrl-C ends a text, Ctrl-D all."
IN_TURNS = "It answers. An empty line begins anew, Ctrl-C ends an answer, Ctrl-D all."
HINT = "\nType text as segmented (ఊరి@@ లో; in v4 the mark comes first)"
SEGMENT = ", or give SEGMENTER=m.bin"  # for upstream's own tokenizer


def chat(pairs: dict[str, str]) -> None:
    """MODEL= [SEGMENTER=] of the command line. Until Ctrl-D, or the end of what is piped in."""
    path, seed, talk = shipping.find(pairs.get("MODEL", "")), 0, []
    model, tokenizer = opened(path, pairs.get("SEGMENTER", ""))
    joined = tokenizer.kind if tokenizer and tokenizer.joined else ""
    hint = HINT * bool(joined) + SEGMENT * (joined == "Morfessor")
    print(f"{path}\n{IN_TURNS if model.turns else HOW}{hint}")
    while True:
        try:
            text = input("\n> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            continue
        talk = answer(model, text, talk, seed) if text or not model.turns else []
        seed += 1


def answer(model, text: str, talk: list[tuple[str, str]], seed: int) -> list[tuple[str, str]]:
    """Prints what follows a text, and how fast; the conversation with both."""
    began, pieces = time.perf_counter(), []
    try:
        print("" if model.turns else text, end="", flush=True)
        for piece in continued(model, [*talk, ("user", text)], seed):
            pieces.append(piece)  # one a token, and what is left at the end
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" …", end="")
    except ValueError as error:
        print(f"\n{error}", end="")
    seconds, count = time.perf_counter() - began, max(0, len(pieces) - 1)
    print(f"\n({seconds:.1f} s, {count / seconds:,.1f} tokens/s)")
    return [*talk, ("user", text), ("assistant", "".join(pieces))] if pieces else talk


def opened(path: Path, segmenter: str) -> tuple[llama_cpp.Model | SimpleNamespace, Tokenizer]:
    """What continues text, asked as llama_cpp.Model is; the tokenizer beside it, where needed."""
    if path.suffix == ".gguf":
        model = llama_cpp.Model(path)
        if model.raw_text:
            named = {"bos_token": model.piece(model.bos), "eos_token": model.piece(model.eos)}
            model.turns = model.template and Turns(model.template, named, model.tokenize)
            return model, None
        beside = model_tokenizer.open_beside(path.parent, segmenter, model.vocab_size)
        tokenizer = beside.tokenizer
    else:
        net = Llama.load(path).eval()
        beside = model_tokenizer.open_beside(path, segmenter, net.config.vocab_size)
        tokenizer, sampling = beside.tokenizer, generate.Sampling(temperature=TEMPERATURE)
        ends = {*beside.stops, tokenizer.eos}.__contains__
        model = SimpleNamespace(begin=beside.begin, eos=tokenizer.eos, ends=ends)
        model.context, model.decode = net.config.context, tokenizer.decode
        model.stream = lambda ids, n, _, seed: generate.steps(net, ids, n, sampling, seed)
    model.turns, model.tokenize = beside.turns, lambda text: tokenizer.encode([text])[0]
    return model, tokenizer


def continued(model, talk: list[tuple[str, str]], seed: int) -> Iterator[str]:
    """What follows a conversation (role, text), or without a template its last text, in pieces of
    whole letters."""
    ids = model.turns.ids(talk) if model.turns else [*model.begin, *model.tokenize(talk[-1][1])]
    if len(ids) >= model.context:
        fault = f"{len(ids)} tokens fill the context of {model.context}: shorten it"
        raise ValueError(f"{fault}, or begin anew" if model.turns else fault)
    ids = ids or [model.eos]
    stream = model.stream(ids, min(TOKENS, model.context - len(ids)), TEMPERATURE, seed)
    return follow(takewhile(lambda i: not model.ends(i), stream), ids, model.decode)


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
