"""Small fixed inputs, and what a CPU makes of them in float64: carried to a GPU, which must agree.

The inputs are made anew on every machine, from numpy's uniform numbers; a hash of them is carried.
Of a gradient a sketch of S numbers is carried, each a sum of many entries with random signs. That
is linear, and the expectation of |sketch|² is |gradient|², so the relative error of a whole
gradient is read from its sketch, to within a few per cent of that error (√(1 / 2S)).
Legend: N tokens, D student width, E teacher width, V vocabulary, K draws a token, S sketch.
"""

import contextlib
import functools
import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdlib import data, hard_set, lora, losses, train
from tdlib.model import Llama
from tdlib.shapes import SHAPES, LlamaConfig

FILE = Path(__file__).with_name("gpu_carry.npz")
S, K = 512, 12
# the plan's vocabulary, and more than two chunks, the last one odd
N, D, E, V, CHUNK = 1076, 128, 192, 51_800, 512
HEADS = {
    "T 2, ce 0.5": dict(ce_weight=0.5, temperature=2.0),
    "T 1, ce 0.1": dict(ce_weight=0.1, temperature=1.0),
    "T 4, KL alone": dict(ce_weight=0.0, temperature=4.0),
    "text alone": dict(ce_weight=1.0, temperature=2.0),
    "masks and weights": dict(ce_weight=0.5, temperature=2.0, weighted=True),
    "12 draws": dict(ce_weight=0.5, temperature=2.0, drawn=True),
    "12 draws, masks and weights": dict(ce_weight=0.1, temperature=1.0, drawn=True, weighted=True),
}
MODEL = dict(vocab_size=2048, layers=2, heads=4, dim=256, mlp_dim=704, context=256)
WHOLE = dict(ce_weight=0.5, temperature=2.0)
MODELS = {
    "model": WHOLE,
    "model, masks and weights": WHOLE | dict(weighted=True),
    "model, 12 draws": WHOLE | dict(drawn=True),
    "model, adapters": WHOLE | dict(adapters=True),
    "model, grouped heads": WHOLE | dict(kv_heads=2),
    "model, activation checkpointing": WHOLE | dict(again=True),
}
STEPS, TINY_V, TINY_T = 470, 512, 128


class Numbers:
    """Uniform numbers in the order in which they are asked for; `digest` is of all of them."""

    def __init__(self, seed: int):
        self.random, self.hash = np.random.default_rng(seed), hashlib.sha256()

    def array(self, *size: int) -> np.ndarray:
        """Mean 0 and deviation 1, not normal: numpy's normal numbers may change with a version."""
        x = ((self.random.random(size) - 0.5) * 12**0.5).astype(np.float32)
        self.hash.update(x)
        return x

    def normal(self, *size: int) -> Tensor:
        return torch.from_numpy(self.array(*size))

    def whole(self, below: int, *size: int) -> Tensor:
        x = (self.random.random(size) * below).astype(np.int64)
        self.hash.update(x)
        return torch.from_numpy(x)


@functools.cache
def head_case(name: str) -> tuple[dict, dict, str]:
    """Tensors and options of one case, as losses.distillation_loss names them, and their hash."""
    options = dict(HEADS[name])
    numbers = Numbers(list(HEADS).index(name))
    case = {"student_hidden_ND": numbers.normal(N, D), "targets_N": numbers.whole(V, N)}
    case["student_head_VD"] = numbers.normal(V, D) * (2 / D**0.5)  # logits of deviation 2
    case |= _about(options, numbers, N, V, case["targets_N"])
    if options["ce_weight"] < 1 and "teacher_ids_NK" not in case:
        case["teacher_hidden_NE"] = numbers.normal(N, E)
        case["teacher_head_VE"] = numbers.normal(V, E) * (2 / E**0.5)
    return case, options, numbers.hash.hexdigest()


def _about(options: dict, numbers: Numbers, n: int, v: int, targets_N: Tensor) -> dict:
    """Draws, and masks and weights, of n tokens."""
    case = {}
    if options.pop("drawn", False):
        # half of them among few ids, so that a token has the same draw twice
        near, far = numbers.whole(8, n, K // 2), numbers.whole(v, n, K - K // 2)
        probs_NK = numbers.whole(1000, n, K).float().add(1) / 1001
        case = {"teacher_ids_NK": torch.cat([near, far], 1), "teacher_probs_NK": probs_NK}
    if options.pop("weighted", False):
        targets_N[numbers.whole(n, n // 8)] = data.IGNORE
        case["weights_N"] = numbers.whole(3, n).float()
    return case


def plain_loss(case: dict, ce_weight: float, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss by its formula, with all logits, through torch's own functions and autograd."""
    s_NV = case["student_hidden_ND"] @ case["student_head_VD"].T
    y_N, t = case["targets_N"], temperature
    w_N = case.get("weights_N", torch.ones(len(y_N))).to(s_NV.dtype) * (y_N != data.IGNORE)
    ce_N = F.cross_entropy(s_NV, y_N, reduction="none", ignore_index=data.IGNORE)
    kl_N, log_q_NV = torch.zeros_like(ce_N), (s_NV / t).log_softmax(-1)
    if "teacher_ids_NK" in case:
        log_p_NK = case["teacher_probs_NK"].to(s_NV.dtype).log()
        kl_N = (log_p_NK - log_q_NV.gather(-1, case["teacher_ids_NK"])).mean(-1)
    elif ce_weight < 1:
        g_NV = case["teacher_hidden_NE"] @ case["teacher_head_VE"].T
        log_p_NV = (g_NV / t).log_softmax(-1)
        kl_N = F.kl_div(log_q_NV, log_p_NV, reduction="none", log_target=True).sum(-1)
    each_N = ce_weight * ce_N + (1 - ce_weight) * t * t * kl_N
    return (w_N * each_N).sum(), w_N.sum(), w_N


def head_reference(name: str) -> dict[str, np.ndarray]:
    """Loss and sketches of both gradients in float64, some rows at a time."""
    case, options, _ = head_case(name)
    case = {k: x.double() if x.is_floating_point() else x for k, x in case.items()}
    leaves = [case[k].requires_grad_() for k in ("student_hidden_ND", "student_head_VD")]
    by_token = [k for k in case if k[-3:] not in ("_VD", "_VE")]
    y_N = case["targets_N"]
    total = (case.get("weights_N", torch.ones(N)).double() * (y_N != data.IGNORE)).sum()
    loss = 0.0
    for i in range(0, N, 128):
        part = case | {k: case[k][i : i + 128] for k in by_token}
        value = plain_loss(part, **options)[0] / total
        value.backward()
        loss += float(value)
    return result(loss, [x.grad for x in leaves])


def head_loss(name: str, device: str, cast: torch.dtype | None = None) -> dict[str, np.ndarray]:
    """The same by tdlib, on a device, under autocast to `cast`."""
    case, options, _ = head_case(name)
    case = {k: x.clone().to(device) for k, x in case.items()}
    leaves = [case[k].requires_grad_() for k in ("student_hidden_ND", "student_head_VD")]
    with torch.autocast(device.split(":")[0], cast, enabled=cast is not None):
        loss = losses.distillation_loss(**case, **options, chunk=CHUNK).loss
    loss.backward()
    return result(loss, [x.grad for x in leaves])


def llama(config: LlamaConfig, device: str, numbers: Numbers) -> Llama:
    with torch.device(device):
        model = Llama(config)
    return fill(model, numbers)


def fill(model: nn.Module, numbers: Numbers) -> nn.Module:
    """Weights that are the same on every machine; logits of deviation 1."""
    with torch.no_grad():
        for weight in model.parameters():
            x = numbers.normal(*weight.shape)
            weight.copy_(x / weight.shape[-1] ** 0.5 if weight.ndim == 2 else 1 + 0.1 * x)
    return model


def model_loss(
    name: str,
    device: str,
    cast: torch.dtype | None = None,
    compile: Callable = lambda function: function,
    dtype: torch.dtype = torch.float32,
) -> dict[str, np.ndarray]:
    """Loss and sketch of the gradient of a whole small student. In float64 by `plain_loss`."""
    options = dict(MODELS[name])
    numbers, rank = Numbers(100), 8 * options.pop("adapters", False)
    shape, again = MODEL | {"kv_heads": options.pop("kv_heads", 0)}, options.pop("again", False)
    shapes = shape, shape | {"dim": 320, "head_dim": 64}
    student, teacher = (llama(LlamaConfig(**one), device, numbers) for one in shapes)
    if rank:
        lora.attach(student, rank)
        for part in lora.adapters(student).values():
            fill(part.requires_grad_(False), numbers)
            part.lora_A.requires_grad_(), part.lora_B.requires_grad_()
    ids_BT = numbers.whole(shape["vocab_size"], 2, shape["context"] + 1)
    targets_N = ids_BT[:, 1:].flatten()
    case = _about(options, numbers, len(targets_N), shape["vocab_size"], targets_N)
    case = {k: x.to(device) for k, x in (case | {"targets_N": targets_N}).items()}
    if dtype == torch.float64:
        student, teacher = student.double(), teacher.double()
    student.activation_checkpointing, ids_BT = again, ids_BT[:, :-1].to(device)
    loss_of = losses.distillation_loss if dtype == torch.float32 else _plain_mean
    with torch.autocast(device.split(":")[0], cast, enabled=cast is not None), _double(dtype):
        if "teacher_ids_NK" not in case:
            with torch.no_grad():
                case["teacher_hidden_NE"] = compile(teacher.hidden)(ids_BT).flatten(0, 1)
            case["teacher_head_VE"] = teacher.head
        case["student_hidden_ND"] = compile(student.hidden)(ids_BT).flatten(0, 1)
        loss = loss_of(**case, student_head_VD=student.head, **options)
        loss = getattr(loss, "loss", loss)
        loss.backward()
    trained = [p.grad.flatten() for p in student.parameters() if p.requires_grad]
    return result(loss, [torch.cat(trained)])


def _plain_mean(ce_weight: float, temperature: float, **case: Tensor) -> Tensor:
    total, count, _ = plain_loss(case, ce_weight, temperature)
    return total / count


@contextlib.contextmanager
def _double(dtype: torch.dtype) -> Iterator[None]:
    """The model's norms are made in float32; for a reference in float64 they are not."""
    own = dtype == torch.float64
    with mock.patch.object(Tensor, "float", Tensor.double) if own else contextlib.nullcontext():
        yield


def result(loss: Tensor | float, gradients: list[Tensor]) -> dict[str, np.ndarray]:
    sketches = [sketch(g) for g in gradients]
    return {
        "loss": np.float64(loss.item() if isinstance(loss, Tensor) else loss),
        "gradients": np.stack(sketches),
    }


def sketch(gradient: Tensor) -> np.ndarray:
    """(S,) float64: sums of the entries i, i + S, i + 2S, … with random signs."""
    x = gradient.detach().double().flatten()
    x = F.pad(torch.where(_signs(len(x)).to(x.device), -x, x), (0, -len(x) % S))
    return x.view(-1, S).sum(0).cpu().numpy()


@functools.cache
def _signs(count: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).random(count) < 0.5)


def errors(found: dict, reference: dict) -> tuple[float, float]:
    """Relative error of the loss, and of the worse of the gradients."""
    loss, right = float(found["loss"]), float(reference["loss"])
    apart = np.linalg.norm(found["gradients"] - reference["gradients"], axis=1)
    return abs(loss / right - 1), float(
        (apart / np.linalg.norm(reference["gradients"], axis=1)).max()
    )


class Bigram(nn.Module):
    """A teacher that is the truth: what follows depends on the last id alone."""

    def __init__(self, device: str):
        super().__init__()
        numbers = Numbers(200)
        self.table_VE = numbers.array(TINY_V, 16), numbers.array(TINY_V, 16) * 0.6
        first, then = (torch.from_numpy(x).to(device) for x in self.table_VE)
        self.next, self.head = nn.Embedding(TINY_V, 16, _weight=first), nn.Parameter(then)
        self.requires_grad_(False)

    def hidden(self, ids_BT: Tensor) -> Tensor:
        return self.next(ids_BT)

    def text(self, windows: int) -> np.ndarray:
        """Ids of so many windows, drawn from it, and one more."""
        first, then = (x.astype(np.float64) for x in self.table_VE)
        logits_VV = first @ then.T
        p_VV = np.exp(logits_VV - logits_VV.max(1, keepdims=True))
        until_VV = np.cumsum(p_VV / p_VV.sum(1, keepdims=True), 1)
        random, ids = np.random.default_rng(201), np.zeros((TINY_T, windows), np.int64)
        for t in range(1, TINY_T):  # all windows at once
            passed = until_VV[ids[t - 1]] < random.random((windows, 1))
            ids[t] = np.minimum(passed.sum(1), TINY_V - 1)
        return np.append(ids.T.flatten(), 0).astype("<u4")


def tiny(device: str, moved: float = 0.0, steps: int = STEPS) -> dict[str, np.ndarray]:
    """A tiny training, in float32 on a CPU: the mean loss of every two steps, and the validation
    loss in the end. `moved` changes the start by that much."""
    teacher, batch, val = Bigram(device), 16, 64
    ids = teacher.text(batch * STEPS // 2 + val)
    windows = data.Windows(ids[: batch * STEPS // 2 * TINY_T + 1], TINY_T)
    checked = data.Windows(ids[batch * STEPS // 2 * TINY_T :], TINY_T)
    shape = LlamaConfig(TINY_V, context=TINY_T, **SHAPES["student-50m-tiny"])
    student, numbers, rows = llama(shape, device, Numbers(202)), Numbers(203), []
    with torch.no_grad():
        for weight in student.parameters():
            weight.mul_((1 + moved * numbers.normal(*weight.shape)).to(device))
    recipe = train.Recipe(learning_rate=2e-3, epochs=2.0, batch_tokens=batch * TINY_T)
    if steps < STEPS:
        recipe = replace(recipe, token_limit=steps * batch * TINY_T)
    train.fit(student, windows, recipe, teacher=teacher, device=device, record=rows.append)
    loss = hard_set.window_loss(student, checked, np.arange(val), device)
    found = {"loss": np.array([r["train/loss"] for r in rows if "train/loss" in r], np.float32)}
    digest = hashlib.sha256(ids.tobytes()).hexdigest()
    return found | {"val": np.float64(loss.mean()), "hash": np.array(digest)}


def make() -> None:
    """All that is carried, beside what this CPU makes of the same in float32 and bfloat16."""
    carried = {}
    for name in HEADS:
        found = head_reference(name)
        told = {f"{cast}": errors(head_loss(name, "cpu", cast), found) for cast in CASTS}
        _keep(carried, name, found, told, head_case(name)[2])
    for name in MODELS:
        found = model_loss(name, "cpu", dtype=torch.float64)
        told = {f"{cast}": errors(model_loss(name, "cpu", cast), found) for cast in CASTS}
        _keep(carried, name, found, told)
    for name, moved in (("tiny", 0.0), ("tiny, moved", 1e-3)):
        carried |= {f"{name}/{key}": value for key, value in tiny("cpu", moved).items()}
        print(name, carried[f"{name}/val"], flush=True)
    file = io.BytesIO()
    np.savez_compressed(file, **carried)
    FILE.write_bytes(file.getvalue())
    print(f"{FILE}: {len(file.getvalue()):,} bytes")


CASTS = (None, torch.bfloat16)


def _keep(carried: dict, name: str, found: dict, told: dict, digest: str = "") -> None:
    carried[f"{name}/loss"] = found["loss"]
    carried[f"{name}/gradients"] = found["gradients"].astype(np.float32)
    carried[f"{name}/cpu"] = np.array([*told.values()])  # float32, bfloat16: loss, gradient
    carried[f"{name}/hash"] = np.array(digest)
    print(
        name,
        float(found["loss"]),
        {k: [f"{x:.1e}" for x in v] for k, v in told.items()},
        flush=True,
    )


def load() -> dict[str, dict[str, np.ndarray]]:
    """Case → what is carried of it."""
    cases: dict[str, dict[str, np.ndarray]] = {}
    with np.load(FILE) as carried:
        for key in carried:
            case, _, what = key.rpartition("/")
            cases.setdefault(case, {})[what] = carried[key]
    return cases
