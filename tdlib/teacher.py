"""The teacher in: a Hugging Face folder (Llama or Qwen3), or upstream's checkpoint, as a `Llama`.

Upstream's file differs: RoPE turns NEIGHBOURING pairs (0, 1), (2, 3), … of a head where we turn its
halves, and the MLP's width is only in the weights. In the first version Q, K and V are one matrix;
in the second there may be grouped heads, QK norms, a head of its own, and layers that run twice.
"""

import copy
import pickle
import re
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tdlib import data, hard_set, shapes, weights
from tdlib.model import Llama, LlamaConfig

REMEDY = "give upstream's best.pt, or a Hugging Face folder of a Llama or Qwen3"
COUNTS = {"n_layer": "layers", "n_head": "heads", "n_embd": "dim", "block_size": "context"}
COUNTS |= {"n_kv_head": "kv_heads"}
FUSED = ("q_proj", "k_proj", "v_proj")  # in the first version thirds of c_attn
# numpy's numbers, such as a loss beside the weights: classes that run no code, under the names of
# both its versions; but for the three types that may hold anything
_MADE_BY = {"scalar": np._core.multiarray.scalar, "_reconstruct": np._core.multiarray._reconstruct}
_OPEN = {"ObjectDType", "VoidDType", "StringDType"}
NUMPY = [np.ndarray, np.dtype, *(getattr(np.dtypes, n) for n in {*np.dtypes.__all__} - _OPEN)]
NUMPY += [(f, f"numpy.{c}.multiarray.{n}") for n, f in _MADE_BY.items() for c in ("core", "_core")]


def load(path: str | Path, device: str = "cpu", rope_pairs: str = "halves") -> Llama:
    """The teacher at a path, in float32 and frozen; never unpickles code. `rope_pairs` "neighbours"
    repairs a Llama folder whose Q and K were exported unpermuted. Rows of zeros that pad the
    embedding are cut, with a warning: a logit of 0 is real probability. `.cut_rows` of the model is
    their number. ValueError names the file, and a weight that is not finite."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"teacher {path} is not there: give a Llama folder or a .pt file")
    model = Llama.load(path) if path.is_dir() else _upstream(path)
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise ValueError(f"{path}: {name} holds NaN or infinity: give an earlier checkpoint")
    if rope_pairs == "neighbours" and path.is_dir():  # a .pt is permuted as it is read
        _turn(model)
    zero_V = (model.embed_tokens.weight == 0).all(1) & (model.head == 0).all(1)
    model.cut_rows = cut = int(zero_V.flip(0).cumprod(0).sum())
    if cut == len(zero_V):
        raise ValueError(f"{path}: every row of the embedding is zero: {REMEDY}")
    if cut:
        keep_rows(model, size := len(zero_V) - cut)
        rows = f"the last {cut:,} rows of its embedding are zeros, padding"
        warnings.warn(f"{path}: {rows}: cut to a vocabulary of {size:,}", stacklevel=2)
    return model.to(device).eval().requires_grad_(False)


def keep_rows(model: Llama, size: int) -> None:
    """Cut a vocabulary, in place, to its first pieces."""
    model.config = replace(model.config, vocab_size=size)
    for module in (model.embed_tokens, *([] if model.config.tied else [model.lm_head])):
        module.weight = nn.Parameter(module.weight[:size].detach().clone(), requires_grad=False)
    model.embed_tokens.num_embeddings = size


def halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of a Q or K matrix, or of a head's norm, reordered from neighbouring pairs to halves, in
    each head: new row j of the first half is old row 2j, of the second half old row 2j + 1."""
    by_pair = weight.view(heads, -1, 2, *weight.shape[1:])
    return by_pair.transpose(1, 2).reshape(weight.shape)


def neighbours(weight: Tensor, heads: int) -> Tensor:
    """The inverse of `halves`."""
    by_half = weight.view(heads, 2, -1, *weight.shape[1:])
    return by_half.transpose(1, 2).reshape(weight.shape)


def _in_halves(name: str, weight: Tensor, config: LlamaConfig) -> Tensor:
    """A weight by its name, its rows reordered where RoPE turns them."""
    heads = {"q_proj": config.heads, "k_proj": config.kv_heads, "q_norm": 1, "k_norm": 1}
    part = name.split(".")[-2]
    return halves(weight, heads[part]) if part in heads else weight


def _turn(model: Llama) -> None:
    for name, weight in model.named_parameters():
        weight.data = _in_halves(name, weight.data, model.config)


def _upstream(path: Path) -> Llama:
    try:
        size = path.stat().st_size
        # torch packs nothing, and what is packed may be without end
        for part in zipfile.ZipFile(path).infolist() if zipfile.is_zipfile(path) else ():
            if part.compress_type != zipfile.ZIP_STORED or part.file_size > size:
                fault = f"its {part.filename!r:.60} is packed, {part.file_size:,} bytes"
                raise ValueError(f"{fault} in a file of {size:,}: save it with torch.save")
        with torch.serialization.safe_globals(NUMPY):
            file = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state, shape = dict(file["model"]), dict(file["config"])
    except Exception as error:  # torch's depend on where a file was cut, or what it is instead
        fault = f"{path} is no checkpoint of tensors and plain values with 'model' and 'config'"
        raise ValueError(f"{fault}{_reason(path, error)}: {REMEDY}") from None
    try:
        if odd := next(shapes.odd_options(shape, "checkpoint"), ""):
            raise ValueError(f"of its config {odd}")
        if (kind := file.get("architecture") or "llama") != "llama":
            raise ValueError(f"its architecture is {kind!r:.60}, only 'llama' is read here")
        return _converted(path, state, shape)
    except KeyError as error:
        raise ValueError(f"{path}: {error} is missing: give upstream's own best.pt") from None
    # what is raised depends on how weights and config do not fit each other
    except (ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        why = str(error).removeprefix(f"{path}: ").splitlines()[-1].strip()
        raise ValueError(f"{path}: {why}: give upstream's own best.pt") from None


def _reason(path: Path, error: Exception) -> str:
    """Why a checkpoint was not opened; a class in it is named, never unpickled."""
    found = re.search(r"GLOBAL (\S+)|but got <class '(\S+)'>", str(error))
    if found and type(error) is pickle.UnpicklingError:
        plain = f"import torch; c = torch.load('{path.name}', weights_only=False); "
        plain += "torch.save({k: c[k] for k in ('model', 'config')}, 'plain.pt')"
        why = f" (it holds {found[1] or found[2]}, never opened here; whoever made it saves it"
        return f'{why} without: python -c "{plain}")'
    return f" ({str(error).splitlines()[0]})" if type(error) is ValueError else ""


def _converted(path: Path, state: dict[str, Tensor], shape: dict) -> Llama:
    state = {name.removeprefix("_orig_mod."): tensor for name, tensor in state.items()}
    config, fused = _config(state, shape), not any(".q_proj." in name for name in state)
    with torch.device("meta"):
        expected = {name: weight.shape for name, weight in Llama(config).named_parameters()}
    names = shapes.TABLES["upstream"] | (dict.fromkeys(FUSED, "c_attn") if fused else {})
    runs, theirs = config.layers // int(shape["n_layer"]), {}
    for ours in expected:  # a layer that runs twice is two of ours
        parts = [str(int(part) // runs) if part.isdecimal() else part for part in ours.split(".")]
        theirs[ours] = ".".join(names.get(part, part) for part in parts)
    derived = {"freqs_cis"} | ({"lm_head.weight"} - expected.keys())  # made here; tied
    state = {name: tensor for name, tensor in state.items() if name not in derived}
    claim, size = sum(x.numel() * x.element_size() for x in state.values()), path.stat().st_size
    if claim > size:  # no room is made for it
        raise ValueError(f"its weights claim {claim:,} bytes, the file has {size:,}")
    wanted = {}
    for ours, (rows, *width) in expected.items():
        third = fused and ours.split(".")[-2] in FUSED
        wanted[theirs[ours]] = (3 * rows if third else rows, *width)
    weights.check_shapes(path, {name: x.shape for name, x in state.items()}, wanted)
    converted = {}
    for ours in expected:
        part, weight = ours.split(".")[-2], state[theirs[ours]]
        weights.check_float(theirs[ours], weight)
        weight = weight.chunk(3)[FUSED.index(part)] if fused and part in FUSED else weight
        converted[ours] = _in_halves(ours, weight, config).float()
    model = Llama(config)
    model.load_state_dict(converted)
    return model


def _config(state: dict[str, Tensor], shape: dict) -> LlamaConfig:
    numbers, shape = {}, {"n_kv_head": shape["n_head"]} | shape
    for theirs, ours in COUNTS.items():
        value, most = shape[theirs], shapes.MOST[ours]
        if int(value) != value or not 0 < value <= most:
            raise ValueError(f"{theirs} is {value!r}, it must be a whole number from 1 to {most:,}")
        numbers[ours] = int(value)
    embedding, mlp = state["transformer.wte.weight"], state["transformer.h.0.mlp.w_gate.weight"]
    numbers |= {"vocab_size": len(embedding), "mlp_dim": len(mlp)}
    numbers["layers"] *= 1 + bool(shape.get("use_weight_sharing"))  # each runs twice in a row
    numbers["qk_norm"] = bool(shape.get("use_qk_norm"))
    head = state.get("lm_head.weight")
    tied = head is None or torch.equal(head, embedding)
    return LlamaConfig(**numbers, tied=tied, rope_theta=float(shape.get("rope_theta", 10000.0)))


def check(model: Llama, windows: data.Windows, *, count: int = 32, device: str = "cpu") -> dict:
    """The trial 00 makes: loss on some validation windows as the model is, and with RoPE's other
    order (upstream's own Hugging Face export has the wrong one), beside the entropy of their
    tokens, which the best guess without any context reaches. ValueError: the other is better by
    more than 0.1 nats, or the loss is no better than guessing."""
    rows = np.unique(np.linspace(0, len(windows) - 1, count).astype(int))
    rows = hard_set.with_targets(windows, rows)
    other = copy.deepcopy(model)
    _turn(other)
    each = (hard_set.window_loss(m, windows, rows, device) for m in (model, other))
    loss, turned = map(hard_set.known_mean, each)
    if turned < loss - 0.1:
        fault = f"the teacher's loss is {loss:.2f}, with RoPE's other order {turned:.2f}: its Q and"
        raise ValueError(f"{fault} K were exported unpermuted; set rope_pairs: neighbours")
    if not loss < (guessing := np.log(model.config.vocab_size)):
        fault = f"the teacher's loss is {loss:.2f}, guessing gives {guessing:.2f}"
        raise ValueError(f"{fault}: are the tokens from its own tokenizer?")
    targets = windows.batch(rows)[1]
    count_V = torch.bincount(targets[targets != data.IGNORE]).double()
    entropy = float(torch.special.entr(count_V / count_V.sum()).sum())
    return {"loss": loss, "loss_other_rope": turned, "entropy": entropy, "windows": len(rows)}
