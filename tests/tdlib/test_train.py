"""Training against plain torch on transformers' Llama, and going on after a stop."""

import contextlib
import itertools
import math
import signal
from dataclasses import asdict, replace

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from tdlib import checkpoint, data, lora, train
from tdlib.model import Llama
from tests.helpers import Stopped, distance, full_disk, quick, refused, same, stop_at, tiny_model
from tests.helpers import weights_of as weights
from tests.tdlib.test_model import CASES, twin

VOCAB, T = 61, 12


def tiny(seed=0, **change) -> Llama:
    """Gradients of all sizes, and norms away from 1."""
    return tiny_model(seed, VOCAB, **dict(context=T, scale=4.0) | change)


def wider(seed=9) -> Llama:
    """A teacher: another width, and weights that do ask for gradients."""
    return tiny(seed, dim=48, heads=4, kv_heads=2, tied=False)


def some_windows(count=12, mask=False, most=0) -> data.Windows:
    """Its mask leaves from hardly a target to nearly all, window by window; its tokens count up to
    `most` times."""
    rng = np.random.default_rng(3)
    ids = rng.integers(0, VOCAB, count * T + 5).astype("<u4")
    share = np.repeat(np.linspace(0.1, 0.9, count + 1), T)[: len(ids)]
    mask = (rng.random(len(ids)) < share).astype("u1") if mask else None
    weights = rng.integers(0, most + 1, len(ids)).astype("u1") if most else None
    return data.Windows(ids, T, mask, weights)


CE = dict(ce_weight=1.0)  # without a teacher


def timeless(log) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "train/tokens_per_sec"} for row in log]


def fit(student, recipe=None, teacher=None, windows=None, **how) -> list[dict]:
    """Trained on some windows, from a teacher where the recipe needs one."""
    recipe = recipe or quick()
    teacher = teacher or (wider() if recipe.ce_weight < 1 else None)
    return train.fit(student, windows or some_windows(), recipe, teacher=teacher, **how)


class Faulty:
    """A teacher, and no Llama, whose hidden states are at some calls `factor` times the right."""

    def __init__(self, calls: set[int], factor: float):
        self.model, self.calls, self.factor, self.call = wider(), calls, factor, 0
        self.head = self.model.head

    def hidden(self, ids_BT):
        assert not torch.is_grad_enabled()  # no graph is kept of a teacher
        self.call += 1
        return self.model.hidden(ids_BT) * (self.factor if self.call in self.calls else 1)


def stopped_at(step, student, *given, **how) -> None:
    with pytest.raises(Stopped):
        fit(student, *given, progress=stop_at(step), **how)


def by_hand(student, teacher, windows, recipe, steps, rates) -> tuple[list[dict], dict]:
    """Plain torch: transformers' logits, cross_entropy and kl_div, no micro-batches. The rows of
    the log, and how far each weight moved."""
    model, teacher = twin(student), twin(teacher)
    for judge in (model, teacher):  # to transformers id 0 is padding whose embedding stays
        judge.model.embed_tokens.padding_idx = None
    groups = [{"params": [p for p in model.parameters() if p.ndim == 2]}]
    groups += [{"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0}]
    how = dict(lr=1.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=recipe.weight_decay)
    optimizer, rows, t = torch.optim.AdamW(groups, **how), [], recipe.temperature
    times_S = np.ones(len(windows.ids), int)  # each token as often as it counts
    for given in (windows.mask, windows.weights):
        times_S *= 1 if given is None else given
    for numbers, rate in zip(steps, rates, strict=True):
        cut = [windows.ids[i * T : (i + 1) * T + 1].astype(np.int64) for i in numbers]
        ids = torch.tensor(np.stack(cut))
        times = [times_S[i * T + 1 : (i + 1) * T + 1] for i in numbers]
        kept_N = torch.tensor(np.repeat(np.arange(len(numbers) * T), np.concatenate(times)))
        logits_NV = model(input_ids=ids[:, :-1]).logits.flatten(0, 1)[kept_N]
        ce = F.cross_entropy(logits_NV, ids[:, 1:].flatten()[kept_N])
        with torch.no_grad():
            theirs_NV = teacher(input_ids=ids[:, :-1]).logits.flatten(0, 1)[kept_N]
        log_p, log_q = (theirs_NV / t).log_softmax(-1), (logits_NV / t).log_softmax(-1)
        kl = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        loss = recipe.ce_weight * ce + (1 - recipe.ce_weight) * t**2 * kl
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        row = dict(loss=loss, ce=ce, kl=kl, grad_norm=norm)
        rows.append({name: x.item() for name, x in row.items()} | {"count": len(kept_N)})
    found = {n.removeprefix("model."): p.detach() for n, p in model.named_parameters()}
    return rows, moved(found, weights(student))


def moved(found: dict, start: dict) -> dict:
    return {name: weight - start[name] for name, weight in found.items()}


@pytest.mark.parametrize("ce_weight, temperature, mask, most, micro", CASES["steps"])
def test_steps_are_those_of_plain_torch(ce_weight, temperature, mask, most, micro, monkeypatch):
    """On transformers, in micro-batches of any size; rows are means since the last row."""
    monkeypatch.setattr(train, "LOGGED", 1)
    student, teacher, windows = tiny(kv_heads=1), wider(), some_windows(16, mask, most)
    start, rows = weights(student), np.array([0, 3, 4, 5, 7, 9, 10, 11, 12, 13, 14, 15])
    how = dict(ce_weight=ce_weight, temperature=temperature, micro_windows=micro)
    recipe = quick(epochs=4 / 3, warmup_share=0.5, clip=0.2, **how)
    rates = [recipe.learning_rate * x for x in (0.5, 1, 1, 0.55)]
    log, wanted = by_hand(student, teacher, windows, recipe, train.order(rows, recipe, T), rates)
    found = fit(student, recipe, teacher, windows, rows=rows, evaluations=2)
    assert all(row["grad_norm"] > 1.2 * recipe.clip for row in log)  # it did clip
    for ours, theirs in zip(found[1:], (log[:2], log[2:]), strict=True):
        for name in ("loss", "ce", *["kl"] * (ce_weight < 1)):
            counts = [row["count"] for row in theirs]
            mean = np.average([row[name] for row in theirs], weights=counts)
            assert ours[f"train/{name}"] == pytest.approx(mean, rel=1e-4 if name == "kl" else 1e-5)
        assert ours["train/grad_norm"] == pytest.approx(theirs[1]["grad_norm"], rel=1e-4)
        assert ("train/kl" in ours) == (ce_weight < 1)
    # Adam divides by the gradient's own size, so rounding shows most where a gradient is nearly 0:
    # 4e-5 of all updates at most, and a hundredth of a step where it is largest (measured)
    assert distance(change := moved(weights(student), start), wanted) < 2e-4
    for name in start:
        assert (change[name] - wanted[name]).abs().max() < 0.05 * recipe.learning_rate, name
    assert same(weights(teacher), weights(wider()))
    assert all(weight.grad is None for weight in teacher.parameters())


def test_the_rate_warms_up_from_a_part_of_the_peak_and_falls_to_a_tenth():
    recipe = quick(learning_rate=2.0, warmup_share=0.1)
    rates = [train.learning_rate(step, 40, recipe) for step in range(41)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0] and rates[4] == 2.0
    assert rates[40] == pytest.approx(0.2)  # the step after the last one
    assert rates[13] == pytest.approx(0.2 + 1.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))
    for steps, share in ((1, 0.01), (1, 0.99), (2, 0.0), (7, 0.99)):  # short runs
        recipe = quick(learning_rate=1.0, warmup_share=share)
        rates = [train.learning_rate(step, steps, recipe) for step in range(steps)]
        assert all(0.1 <= rate <= 1 for rate in rates) and max(rates) == 1
    recipe = quick(learning_rate=2.0, warmup_share=0.1, schedule="wsd", cooldown_share=0.4)
    rates = [train.learning_rate(step, 40, recipe) for step in range(41)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0] and rates[4:25] == [2.0] * 21
    # 1 − √(a quarter, four ninths, all) of the 16 steps from the 24th on
    assert [rates[28], rates[40]] == [1.0, 0.0] and rates[24 + 9] == pytest.approx(2 * (1 - 3 / 4))


@pytest.mark.parametrize("averaged", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_trunk_cooled_down_at_several_lengths_gives_each_its_own_bits(
    optimizer, averaged, tmp_path
):
    """Wherever a longer one begins: at the shorter one's trunk, or its own checkpoint."""
    shared = dict(schedule="wsd", cooldown_share=1 / 3, ce_weight=1.0, optimizer=optimizer)
    shared |= {"averaged_share": averaged}
    told = []
    for windows in (12, 24, 48):
        recipe = quick(token_limit=windows * T, warmup_share=0.2 * 12 / windows, **shared)
        straight, student, folder = tiny(), tiny(seed=windows - 12), tmp_path / f"{windows}"
        fit(straight, recipe)
        if windows > 12:
            folder.mkdir()
            trunk = (tmp_path / f"{windows // 2}" / checkpoint.TRUNK).read_bytes()
            (folder / checkpoint.TRUNK).write_bytes(trunk)
        if windows == 48:
            stopped_at(10, tiny(), recipe, folder=folder)
        fit(student, recipe, folder=folder, progress=lambda step, *_: told.append(step))
        assert same(weights(student), weights(straight))
    # 3 steps of which 2 are stable, or 1 before the mean's; of 6 those after it; then at the 10th
    trunk = 2 if averaged < 0.5 else 1
    assert told == [1, 2, 3, *range(trunk + 1, 7), *range(10, 13)]
    with refused("learning_rate", tmp_path, "redo"):
        fit(tiny(), quick(learning_rate=1.0, token_limit=60 * T, **shared), folder=folder)


def test_averaged_weights_are_the_mean_of_the_last_steps():
    def of_every_step(share: float) -> list[dict]:
        student, kept = tiny(), []
        how = dict(ce_weight=1.0, epochs=2.0, learning_rate=0.1, averaged_share=share)
        fit(student, quick(**how), progress=lambda *_: kept.append(weights(student)))
        return kept

    each, averaged = of_every_step(0.0), of_every_step(0.4)
    last = each[-round(0.4 * len(each)) :]
    assert len(last) > 1 and len(averaged) == len(each)
    for name, weight in averaged[-1].items():
        mean = torch.stack([w[name].double() for w in last]).mean(0)
        torch.testing.assert_close(weight.double(), mean, rtol=1e-5, atol=1e-7)
        assert torch.equal(averaged[-2][name], each[-2][name])  # training itself is as without


def test_muon_turns_the_matrices_within_layers_and_adamw_all_else():
    """A first step's update is the gradient with singular values near 1, times 0.2 √(longer side):
    Newton–Schulz ends between 0.5 and 1.5 where a singular value is not tiny (Jordan 2024)."""
    how = dict(ce_weight=1.0, epochs=1 / 3, weight_decay=0.0, warmup_share=0.0)
    rate, start, change = 3e-3, weights(tiny()), {}
    for optimizer in ("adamw", "muon"):
        fit(student := tiny(), quick(optimizer=optimizer, **how))
        change[optimizer] = moved(weights(student), start)
    for name, update in change["muon"].items():
        inner = update.ndim == 2 and "layers" in name
        assert same({name: update}, {name: change["adamw"][name]}) != inner, name
        if inner:
            sizes = torch.linalg.svdvals(update.double()) / (0.2 * max(update.shape) ** 0.5 * rate)
            assert sizes.max() < 1.5 and sizes.median() > 0.5, name


def order(windows=10, **change) -> list[np.ndarray]:
    return train.order(np.arange(windows), quick(**change), T)


def test_an_epoch_is_every_window_once_in_an_order_that_the_seed_alone_decides():
    np.random.seed(0), torch.manual_seed(0)
    each = [np.concatenate(order(epochs=e)).tolist() for e in (3.0, 1.5, 0.5, 3.0)]
    epochs = np.reshape(each[0], (3, 10))
    assert (np.sort(epochs) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in (*epochs, range(10))}) == 4
    assert each[1:] == [each[0][:15], each[0][:5], each[0]]  # a part is the beginning of the whole
    other = np.concatenate(order(epochs=3.0, seed=2)).tolist()
    # seeds next to each other must not share epochs, as seed + epoch would make them
    assert each[0] != other and other[:10] != each[0][10:20]
    rows = np.array([2, 3, 7])
    assert sorted(np.concatenate(train.order(rows, quick(epochs=2.0), T))) == [2, 2, 3, 3, 7, 7]
    for tokens, sizes in ((4 * T, [4, 4, 2]), (10**6, [10]), (1, [1] * 10)):
        assert [len(x) for x in order(epochs=1.0, batch_tokens=tokens)] == sizes
    for limit, windows in ((7 * T + T - 1, 7), (1, 1), (10**6, 30)):
        cut = np.concatenate(order(epochs=3.0, token_limit=limit)).tolist()
        assert cut == each[0][:windows]


@pytest.mark.parametrize("name, stop, ce_weight", CASES["stops"])
def test_a_stopped_run_goes_on_to_the_same_bits(name, stop, ce_weight, tmp_path, capsys):
    """SIGTERM and Ctrl-C wait for the end of a step, then do what they would have done; any other
    end comes at once, when the step is not yet kept."""

    def raises(*_):
        raise Stopped

    waits, told, number = name != "SIGUSR1", [], getattr(signal, name)
    recipe = quick(ce_weight=ce_weight, checkpoint_minutes=60 if waits else 1e-9)
    recipe = replace(recipe, optimizer="muon" if stop == 4 else "adamw")
    how = dict(evaluations=3, evaluate=lambda s: {"val/loss": s.head.norm().item()})
    straight, resumed, again = tiny(), tiny(seed=5), tiny(seed=6)  # own weights must not matter
    wanted = fit(straight, recipe, folder=tmp_path / "straight", **how)
    before = signal.signal(number, raises)
    try:
        with pytest.raises(Stopped):
            fit(tiny(), recipe, folder=tmp_path, **how,
                progress=lambda step, *_: step == stop and signal.raise_signal(number))  # fmt: skip
        assert signal.getsignal(number) is raises
    finally:
        signal.signal(number, before)
    assert (f"step {stop} of 12" in capsys.readouterr().out) == waits
    how |= dict(folder=tmp_path, progress=lambda *x: told.append(x[:2]))
    log = fit(resumed, recipe, **how)
    assert same(weights(resumed), weights(straight)) and timeless(log) == timeless(wanted)
    assert told == [(step, 12) for step in range(stop + waits, 13)]
    kept = [torch.load(p, weights_only=True) for p in tmp_path.rglob("state.pt")]
    assert len(kept) == 2 and kept[0]["usual"] == kept[1]["usual"]  # what spikes are told by
    assert fit(again, recipe, **how) == log  # a finished run is not trained again
    assert len(told) == 13 - stop - waits and same(weights(again), weights(straight))


def test_adapters_go_on_too_and_their_checkpoint_holds_no_base(tmp_path):
    recipe, straight = quick(ce_weight=0.0), lora.attach(tiny(), 4)
    before, base = weights(straight), lora.base_hash(straight)
    fit(straight, recipe)
    assert lora.base_hash(straight) == base  # bit for bit
    for name, weight in straight.named_parameters():
        assert torch.equal(weight, before[name]) == ("lora_" not in name), name
        assert weight.grad is None and weight.requires_grad == ("lora_" in name), name
    stopped_at(7, lora.attach(tiny(), 4), recipe, folder=tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["weights"] and all("lora_" in name for name in state["weights"])
    resumed = lora.attach(tiny(), 4, seed=8)
    fit(resumed, recipe, folder=tmp_path)
    assert same(weights(resumed), weights(straight))


def test_a_checkpoint_of_another_recipe_or_windows_is_refused_by_name(tmp_path):
    stopped_at(3, tiny(), folder=tmp_path)
    student, told = tiny(), []
    other = dict(learning_rate=1e-3, epochs=5.0, token_limit=100, batch_tokens=2 * T, clip=0.5)
    other |= dict(warmup_share=0.5, weight_decay=0.2, ce_weight=0.75, temperature=1.0, seed=2)
    for name, value in other.items():
        with refused(name, value, asdict(quick())[name], tmp_path, "redo"):
            fit(student, quick(**{name: value}), folder=tmp_path)
    with refused("windows", tmp_path):
        fit(student, folder=tmp_path, rows=np.arange(11))
    assert same(weights(student), weights(tiny()))
    free = quick(micro_windows=4, checkpoint_minutes=60.0)  # change no result
    fit(tiny(), free, folder=tmp_path, progress=lambda step, *_: told.append(step))
    assert told == list(range(3, 13))


@pytest.mark.parametrize("at", ["before epoch-2", "after epoch-2", "after state", "epoch-2 lost"])
def test_an_epochs_weights_are_kept_for_good_wherever_it_is_killed(at, tmp_path, monkeypatch):
    """A file is lost where the disk was full for a moment."""
    save, recipe = checkpoint.save, quick(checkpoint_minutes=60.0, batch_tokens=5 * T, **CE)
    folder, seen = tmp_path / "killed", {}
    straight, student = tiny(), tiny(seed=5)
    fit(straight, recipe, progress=lambda step, *_: seen.update({step: weights(straight)}))

    def killed(path, content):
        name = "epoch-2" if at in ("before epoch-2", "after epoch-2") else "state"
        here = path.stem == name and content.get("step", 5) == 5
        if not here or "before" not in at:
            save(path, content)
        if here:
            raise Stopped

    monkeypatch.setattr(checkpoint, "save", killed)
    stopped_at(2, tiny(), recipe, folder=folder)
    assert not folder.exists()  # nothing is written before its time
    with pytest.raises(Stopped):
        fit(tiny(), recipe, folder=folder)
    monkeypatch.setattr(checkpoint, "save", save)
    if "lost" in at:
        (folder / "epoch-2.safetensors").unlink()
    fit(student, recipe, folder=folder)
    # 12 windows at 5 a step: the first epoch ends within step 3, then 5 and 8
    for path, step in zip(sorted(folder.glob("epoch-*")), (3, 5, 8), strict=True):
        assert path.name == f"epoch-{(3, 5, 8).index(step) + 1}.safetensors"
        assert same(safetensors.torch.load_file(path), seen[step])
    assert same(weights(student), weights(straight)) and len(seen) == 10


def test_a_full_disk_leaves_the_old_checkpoint_and_the_training_goes_on(tmp_path):
    """A limit on the size of files stands for it: the system then refuses to write on."""
    path, kept, recipe = tmp_path / "state.pt", [], quick(**CE)
    student, undisturbed, again, disk = tiny(), tiny(), tiny(seed=5), contextlib.ExitStack()

    def fills_up(step, *_):
        if step == 5:
            kept.append(path.read_bytes())
            disk.enter_context(full_disk(1000))

    with disk, pytest.warns(UserWarning, match="state.pt is not written, the one before stays"):
        fit(student, recipe, folder=tmp_path, progress=fills_up)
    assert [path.read_bytes()] == kept
    assert {p.name for p in tmp_path.iterdir()} == {"state.pt", "epoch-1.safetensors"}
    fit(undisturbed, recipe), fit(again, recipe, folder=tmp_path)
    assert same(weights(student), weights(undisturbed))
    assert same(weights(again), weights(undisturbed))


@pytest.mark.parametrize("factor", [math.nan, math.inf, 1000.0])
def test_a_step_whose_loss_is_not_finite_or_jumps_leaves_no_trace(factor, tmp_path):
    """The weights are those of plain torch that never saw the step, at the other steps' rates."""
    recipe, student, rows = quick(ce_weight=0.0, epochs=2.0, spike=1.0), tiny(), []
    # two micro-batches a step: the first of step 0, the second of step 3
    calls = {8} if factor == 1000 else {1, 8}  # nothing is usual before the first
    log = fit(student, recipe, Faulty(calls, factor), evaluations=1, record=rows.append)
    assert log[-1]["train/skipped"] == len(calls) and rows[-1] == log[-1]
    left = [step for step in range(6) if step != 3 and (step or factor == 1000)]
    steps = [train.order(np.arange(12), recipe, T)[step] for step in left]
    rates = [train.learning_rate(step, 6, recipe) for step in left]
    _, wanted = by_hand(tiny(), wider(), some_windows(), recipe, steps, rates)
    assert distance(moved(weights(student), weights(tiny())), wanted) < 2e-4
    fit(skipping := tiny(), replace(recipe, optimizer="muon", epochs=1 / 3), Faulty({1, 2}, factor))
    assert factor == 1000 or same(weights(skipping), weights(tiny()))  # nothing was usual before
    student = tiny()
    with refused("3 steps were skipped", "2 may be", "learning_rate", error=RuntimeError):
        fit(student, quick(max_skipped=2), Faulty({*range(1, 99)}, math.nan), folder=tmp_path)
    assert same(weights(student), weights(tiny()))


def test_masked_batches_leave_every_number_finite():
    windows = replace(some_windows(), mask=np.ones(12 * T + 5, "u1"))
    windows.mask[: 8 * T + 1] = 0  # windows 0 to 7 have no target at all
    for ce_weight, rows in itertools.product((0.5, 1.0), (None, np.arange(8))):
        student, recipe = tiny(), quick(ce_weight=ce_weight, micro_windows=1, epochs=2.0)
        log = fit(student, recipe, windows=windows, rows=rows, evaluations=6)
        assert all(w.isfinite().all() for w in student.state_dict().values())
        assert all(math.isfinite(value) for row in log for value in row.values())
        assert any("train/loss" in row for row in log) == (rows is None)


@pytest.mark.parametrize("evaluations, steps", [(4, [0, 3, 6, 9, 12]), (50, range(13))])
def test_the_student_is_evaluated_before_evenly_between_and_after(evaluations, steps):
    student, undisturbed, seen = tiny(), tiny(), []

    def evaluate(model):
        assert model is student
        torch.manual_seed(0), np.random.seed(0)  # shifts no data
        seen.append(model.head.norm().item())
        return {"val/loss": seen[-1]}

    log = fit(student, evaluate=evaluate, evaluations=evaluations)
    assert [(row["step"], row["tokens"]) for row in log] == [(s, 4 * T * s) for s in steps]
    assert [row["val/loss"] for row in log] == seen and len(set(seen)) == len(seen)
    assert seen[0] == tiny().head.norm().item() and seen[-1] == student.head.norm().item()
    fit(undisturbed)
    assert same(weights(student), weights(undisturbed))


def test_steps_without_a_target_do_not_make_the_next_ones_look_like_a_jump():
    state = checkpoint.State(tiny(), quick(), "cpu", {})
    for step, loss in enumerate([0.0, *[5.0] * 3, *[0.0] * 200, 5.0], 1):
        state.update(step, 1e-3, torch.tensor(loss))
    assert not state.skipped and state.loss_ema == 5
