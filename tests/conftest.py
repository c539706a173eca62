"""What every test shares."""

import os
from pathlib import Path

# Before torch and its thread pools are there, and for every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks the network

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data: missing is a failure under CI, a skip elsewhere."""
    root = Path(__file__).parents[1]
    folder = Path(os.environ.get("SHARED") or root.parent / "shared")
    if not (folder / "data" / "telugu").is_dir():
        stop = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        stop(f"no data/telugu in {folder}: set SHARED to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A small tokenizer, trained here on text of the writer."""
    from tdlib import data, telugu

    documents, _ = telugu.write(60_000, 3)
    lines = [line for d in documents for line in d.lines]
    return data.train_tokenizer(lines, 700, tmp_path_factory.mktemp("tokenizer") / "t.model")


@pytest.fixture(scope="session")
def tiny_llama():
    """Makes models whose weights are large enough for texts and losses to vary."""
    import torch

    from tdlib.model import Llama, LlamaConfig

    def make(seed=0, vocab=97, context=16, scale=12.0, **shape):
        shape = dict(layers=2, heads=2, dim=32, mlp_dim=48) | shape
        torch.manual_seed(seed)
        model = Llama(LlamaConfig(vocab_size=vocab, context=context, **shape))
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(scale) if weight.ndim == 2 else weight.uniform_(0.5, 1.5)
        return model.eval()

    return make
