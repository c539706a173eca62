"""What several test files measure alike."""

import contextlib
import json
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
import yaml

from tdlib.data import Windows
from tdlib.model import Llama, LlamaConfig
from tdlib.train import Recipe


def cases(file: str, name: str = "cases.yaml"):
    """The table beside a test file."""
    return yaml.safe_load(Path(file).with_name(name).read_text("utf8"))


def tiny_model(seed=0, vocab=97, context=16, scale=12.0, **shape) -> Llama:
    """Its weights are large enough for texts and losses to vary."""
    shape = dict(layers=2, heads=2, dim=32, mlp_dim=48) | shape
    torch.manual_seed(seed)
    model = Llama(LlamaConfig(vocab_size=vocab, context=context, **shape))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(scale) if weight.ndim == 2 else weight.uniform_(0.5, 1.5)
    return model.eval()


def quick(**change) -> Recipe:
    """Four windows of twelve tokens a step, with a checkpoint after each; four epochs."""
    options = dict(learning_rate=3e-3, epochs=4.0, batch_tokens=4 * 12, micro_windows=2)
    return Recipe(**options | dict(warmup_share=0.2, checkpoint_minutes=1e-9) | change)


class Stopped(Exception):
    pass


def stop_at(step: int) -> Callable:
    """What a training tells its progress; at a step it is stopped, before that step is kept."""

    def progress(now, *_):
        if now == step:
            raise Stopped

    return progress


def some_windows(vocab=97, context=12, count=30, mask_share=0.0) -> Windows:
    """Windows of random ids, a share of whose targets is masked."""
    rng = np.random.default_rng(0)
    n = count * context + 5
    mask = (rng.random(n) >= mask_share).astype("u1") if mask_share else None
    return Windows(rng.integers(0, vocab, n).astype("<u4"), context, mask)


def masked(windows: Windows, rows) -> Windows:
    """The windows with every target of some rows masked."""
    mask, t = np.ones(len(windows.ids), "u1"), windows.context
    for i in rows:
        mask[i * t + 1 : (i + 1) * t + 1] = 0
    return replace(windows, mask=mask)


def token_folder(folder: Path, train, val, dtype="uint32", **meta) -> Path:
    """Token files as others make them; meta.json says what is given and the dtype."""
    folder.mkdir(exist_ok=True)
    for name, ids in (("train", train), ("val", val)):
        np.asarray(ids).astype(dtype).tofile(folder / f"{name}.bin")
    (folder / "meta.json").write_text(json.dumps({"dtype": dtype} | meta))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@contextlib.contextmanager
def full_disk(size: int):
    """No file may grow beyond `size` bytes, as the system itself has it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def refused(*words, error=ValueError):
    """What is done here raises an error of one line that holds these words."""
    with pytest.raises(error) as raised:
        yield raised
    text = str(raised.value)
    assert "\n" not in text and all(str(word) in text for word in words), text


def near(found, wanted, relative=5e-6) -> None:
    """No number is further off than a share of the largest one."""
    found, wanted = found.detach().double(), wanted.detach().double()
    error, largest = (found - wanted).abs().max(), wanted.abs().max()
    assert error <= relative * largest, f"{error:.3g} of {largest:.3g}"


def fonts_of(page, selector: str) -> list[dict]:
    """The fonts that an element's text is drawn with, and how many glyphs of each."""
    session = page.context.new_cdp_session(page)
    session.send("DOM.enable")
    session.send("CSS.enable")
    root = session.send("DOM.getDocument", {"depth": 0})["root"]["nodeId"]
    node = session.send("DOM.querySelector", {"nodeId": root, "selector": selector})
    return session.send("CSS.getPlatformFontsForNode", node)["fonts"]


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: w.detach().clone() for name, w in model.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    """Equal tensors under the same names."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def distance(found: dict, wanted: dict) -> float:
    """Of all weights together, relative."""
    a, b = (torch.cat([w[k].flatten() for k in sorted(w)]).double() for w in (found, wanted))
    return ((a - b).norm() / b.norm()).item()


def trained_sentencepiece(path: Path, lines: list[str], **options):
    """An opened SentencePiece BPE, with the package's own ids (<unk> 0, <s> 1, </s> 2)."""
    from tdbook.corpus import tokenizer_files

    with open(path, "wb") as model:
        known = dict(sentence_iterator=iter(lines), model_writer=model, vocab_size=500)
        known |= dict(model_type="bpe", normalization_rule_name="identity", byte_fallback=True)
        known |= dict(remove_extra_whitespaces=False, minloglevel=2)
        sentencepiece.SentencePieceTrainer.train(**known | options)
    return tokenizer_files.open(path)
