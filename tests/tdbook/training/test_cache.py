"""What the cache keeps of a teacher; what a kill, a full disk or another key do to it."""

import dataclasses
import os
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tdbook.training import cache
from tdlib import data, hard_set, train
from tests.helpers import Stopped, full_disk, quick, refused, same, stop_at, tiny_model, weights_of
from tests.tdlib.test_evaluate import dense

VOCAB, T, WINDOWS = 301, 12, 12
tiny = partial(tiny_model, vocab=VOCAB, context=T, scale=8.0, layers=1)


class Seen:
    """A teacher that notes the first token of every window it is asked about."""

    def __init__(self, seed=9, **change):
        self.model, self.windows = tiny(seed, dim=48, **change), []
        self.head, self.config = self.model.head, self.model.config
        self.state_dict = self.model.state_dict

    def hidden(self, ids_BT):
        assert not torch.is_grad_enabled()
        self.windows += ids_BT[:, 0].tolist()
        return self.model.hidden(ids_BT)


def some_windows(count=WINDOWS, mask=False) -> data.Windows:
    """The first token of window i is i; with a mask, window 1 has no target at all."""
    rng = np.random.default_rng(3)
    ids = rng.integers(0, VOCAB, count * T + 5).astype("<u4")
    ids[: count * T : T] = np.arange(count) % VOCAB
    if not mask:
        return data.Windows(ids, T)
    mask = (rng.random(len(ids)) < 0.6).astype("u1")
    mask[T + 1 : 2 * T + 1] = 0
    return data.Windows(ids, T, mask)


def opened(folder, teacher=None, windows=None, **change) -> cache.Cache:
    options = dict(temperature=2.0, draws=5, seed=1) | change
    return cache.Cache(folder, teacher or Seen(), windows or some_windows(), **options)


def fill(targets: cache.Cache, batches) -> None:
    for rows_B in batches:
        with torch.no_grad():
            targets.draws(rows_B, *targets.windows.batch(rows_B))
    targets.sync()


def some_probabilities(n, v, spread=3.0, zeros=0.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(v)
    logits = spread * torch.randn(n, v, generator=g)
    logits[torch.rand(n, v, generator=g) < zeros] = -torch.inf
    return logits.softmax(1)


@pytest.mark.parametrize("v", [3, 128, 129, 640, 51_803])
@pytest.mark.parametrize("zeros", [0.0, 0.9])
def test_a_draw_is_where_the_cumulated_probabilities_pass_u(v, zeros):
    p_NV = some_probabilities(4, v, zeros=zeros if v > 100 else 0.0)
    u_NK = torch.rand(4, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ids_NK = cache.draw(p_NV, u_NK)
    for p_V, u_K, ids_K in zip(p_NV.double().numpy(), u_NK.numpy(), ids_NK, strict=True):
        until_V = np.cumsum(p_V)
        wanted = np.searchsorted(until_V, u_K * until_V[-1], side="right")
        # a u within float32's rounding of a sum from the border may fall to the neighbour
        differ = np.flatnonzero(wanted != ids_K.numpy())
        gaps = np.abs(until_V[np.minimum(wanted, ids_K.numpy())] - u_K * until_V[-1])
        assert len(differ) <= 1 and (gaps[differ] < 1e-6).all()
    # what has no probability is never drawn, not even at the ends
    certain = F.one_hot(torch.tensor([v - 1, v // 2, 2 % v]), v).float()
    ends = torch.tensor([[0.0, 1e-300, 0.5, cache.BELOW_1]], dtype=torch.float64).expand(3, 4)
    assert cache.draw(certain, ends).tolist() == [[i] * 4 for i in (v - 1, v // 2, 2 % v)]


def test_where_it_is_asked_depends_on_seed_window_and_position_alone():
    u = cache.uniform(7, range(20), T, 5).view(20, T, 5)
    for rows in ([3], [19, 3, 0], np.array([0, 19])):
        assert torch.equal(cache.uniform(7, rows, T, 5).view(-1, T, 5), u[list(rows)])
    assert not torch.equal(cache.uniform(8, range(20), T, 5).view_as(u), u)
    assert len(u.unique()) == u.numel() and (0 <= u).all() and (u < 1).all()
    assert torch.equal((u * 5).floor(), torch.arange(5.0).double().expand_as(u))  # a part each


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_row_holds_the_teachers_probabilities_and_loss(temperature, tmp_path):
    teacher, windows = Seen(), some_windows(mask=True)
    targets = opened(tmp_path, teacher, windows, temperature=temperature)
    fill(targets, [[0, 1], [5]])
    for row in (0, 5):
        ids, y = windows.batch([row])
        with torch.no_grad():
            logits_TV = teacher.model(ids)[0].double()
        p_TV = (logits_TV / temperature).softmax(1)
        drawn_TK = torch.from_numpy(targets.rows["ids"][row].astype(np.int64))
        wanted = p_TV.gather(1, drawn_TK).log()
        assert (torch.from_numpy(targets.rows["logp"][row]).double() - wanted).abs().max() < 2**-8
        loss = float(F.cross_entropy(logits_TV, y[0]))
        assert targets.losses([row])[0] == pytest.approx(loss, rel=1e-6)
        ids_NK, probs_NK = targets.read([row])
        assert torch.equal(ids_NK.long(), drawn_TK)
        torch.testing.assert_close(probs_NK.log().double(), wanted, rtol=0, atol=2**-8)
    assert np.isnan(targets.losses([1])).all()  # it has no target
    assert targets.losses([0, 2]) is None and targets.read([0, 2]) == ()


@pytest.mark.parametrize("vocab, width", [(2**16, 2), (2**16 + 1, 4)])
def test_its_size_is_known_before_and_taken_only_as_it_fills(vocab, width, tmp_path):
    """Ids take two bytes up to 65,536, and four beyond."""
    teacher = Seen(vocab=vocab)
    with torch.no_grad():
        teacher.head[-1] = 40 * teacher.model.norm.weight  # the last id is nearly certain
    targets = opened(tmp_path / "made", teacher, some_windows(500), draws=40)
    files, wanted = list((tmp_path / "made").glob("*.bin")), 500 * (T * 40 * (width + 2) + 4 + 1)
    on_disk = lambda: sum(f.stat().st_blocks * 512 for f in files)  # noqa: E731
    assert sum(f.stat().st_size for f in files) == wanted > 20 * on_disk()
    fill(targets, [[2]])
    assert targets.read([2])[0].max() == vocab - 1
    place, wanted = tmp_path / "large" / "here", 10**5 * (T * 4 * 10**7 * 4 + 5) / 2**20
    with refused("no room", place, f"{wanted:,.1f} MiB", "make room", error=OSError):  # 192 TB
        opened(place, windows=some_windows(10**5), draws=4 * 10**7)
    assert not place.parent.exists()


OTHER = some_windows()
OTHER.ids[-7] += 1
KEYS = {
    "teacher": dict(teacher=Seen(seed=10)),
    "teacher's angles": dict(teacher=Seen(rope_theta=5e3)),
    "tokens": dict(windows=OTHER),
    "tokens under a mask": dict(windows=some_windows(mask=True)),
    "tokens of more windows": dict(windows=some_windows(13)),
    "temperature": dict(temperature=1.0),
    "draws": dict(draws=6),
    "seed": dict(seed=2),
}


def test_a_cache_of_before_qk_norms_is_still_the_same_teachers(tmp_path):
    names = "vocab_size layers heads dim mlp_dim context kv_heads head_dim tied rope_theta norm_eps"
    older, seen = dataclasses.make_dataclass("LlamaConfig", f"{names} eos_id".split()), Seen()
    seen.config = older(*(getattr(seen.config, field.name) for field in dataclasses.fields(older)))
    assert opened(tmp_path / "older", seen).key == opened(tmp_path / "now").key


def test_another_key_a_damaged_folder_and_rows_without_a_key_are_refused_by_name(tmp_path):
    opened(tmp_path)
    (key := tmp_path / "key.json").unlink()
    fill(opened(tmp_path), [[0]])  # no row yet: as if its making had been cut short
    for name, change in KEYS.items():
        with refused(tmp_path, name.split()[0].removesuffix("'s"), "make clean-cache"):
            opened(tmp_path, **change)
    assert opened(tmp_path).there([0, 1]).tolist() == [True, False]
    stored = key.read_text()
    key.unlink()
    with refused("rows.bin", "move it away", error=FileExistsError):
        opened(tmp_path)
    for content in ("{", "[1]", "3"):
        key.write_text(content)
        with refused(key, "make clean-cache"):
            opened(tmp_path)
    key.write_text(stored)
    os.truncate(tmp_path / "rows.bin", 100)
    with refused(tmp_path / "rows.bin", "make clean-cache"):
        opened(tmp_path)


def trained(folder, teacher=None, windows=None, **change) -> tuple[dict, cache.Cache]:
    student = tiny()
    with opened(folder, teacher, windows) as targets:
        train.fit(student, targets.windows, quick(**change), teacher=targets)
    return weights_of(student), targets


def poison(targets: cache.Cache, rows) -> None:
    """They do not count any more, and hold ids beyond the vocabulary, probabilities NaN."""
    for name, width, byte in (("rows", targets.row.itemsize, b"\xff"), ("valid", 1, b"\0")):
        with open(targets.folder / f"{name}.bin", "r+b") as file:
            for row in rows:
                file.seek(row * width)
                file.write(byte * width)


def test_a_row_that_does_not_count_is_never_read_and_the_teacher_is_asked_once(tmp_path):
    windows, teacher, again, rows = some_windows(mask=True), Seen(), Seen(), [0, 3, 7, 8]
    wanted, targets = trained(tmp_path, teacher, windows)
    assert sorted(teacher.windows) == list(range(WINDOWS)) and targets.valid.all()
    content = targets.rows.tobytes()
    second, _ = trained(tmp_path, again, windows)
    assert again.windows == [] and same(second, wanted)
    poison(targets, rows)
    assert targets.rows.tobytes() != content and (targets.valid == 0).sum() == len(rows)
    found, targets = trained(tmp_path, again, windows)
    assert same(found, wanted) and all(w.isfinite().all() for w in found.values())
    assert set(rows) <= set(again.windows) and len(set(again.windows)) == len(again.windows)
    assert targets.rows.tobytes() == content and targets.valid.all()
    with opened(tmp_path, Seen(), windows, read_only=True) as targets:
        targets.draws = None  # every row comes with its batch, read ahead
        recipe = quick(seed=3, micro_windows=3)  # in another order, for another student
        train.fit(tiny(2), windows, recipe, teacher=targets)
    # the teacher may have rounded otherwise, on another device: what is written stays
    content = np.zeros(1, targets.row)
    content["logp"] = -1.5
    (tmp_path / "rows.bin").write_bytes(content.tobytes() + targets.rows[1:].tobytes())
    poison(targets, [1])
    targets = opened(tmp_path, teacher, windows)
    with torch.no_grad():
        ids_NK, probs_NK = targets.draws([1, 0], *windows.batch([1, 0]))
    assert (ids_NK[T:] == 0).all() and (probs_NK[T:].log() == -1.5).all()
    assert len(ids_NK[:T].unique()) > 5 and targets.there([0, 1]).all()
    assert targets.rows[:1].tobytes() == content.tobytes()


def test_a_row_counts_only_after_the_disk_has_it(tmp_path, monkeypatch):
    """What the system is asked to do, in order: neither a kill nor a power cut in between leaves a
    row that counts and is not whole."""
    asked, targets = [], opened(tmp_path)

    def noted(call):
        def note(file, *content_offset):
            asked.append((call.__name__, targets.files.index(file), *content_offset[1:]))
            return call(file, *content_offset)

        return note

    monkeypatch.setattr(os, "pwrite", noted(os.pwrite))
    monkeypatch.setattr(os, "fsync", noted(os.fsync))
    monkeypatch.setattr(cache, "SYNC_S", 0.005)
    fill(targets, [[i, i + 1, i + 2] for i in range(0, WINDOWS, 3)])
    assert targets.valid.all()
    for row in range(WINDOWS):
        written = asked.index(("pwrite", 0, row * targets.row.itemsize))
        assert ("fsync", 0) in asked[written : asked.index(("pwrite", 1, row))]


def test_a_full_disk_ends_the_writing_and_not_the_training(tmp_path):
    """A limit on the size of files stands for it: the system then refuses to write on."""
    wanted, _ = trained(tmp_path / "whole")
    student, targets = tiny(), opened(tmp_path / "full")
    told = pytest.warns(UserWarning, match="full takes no more rows")
    with full_disk(10 * targets.row.itemsize + 20), told as warned, targets:
        train.fit(student, targets.windows, quick(), teacher=targets)
    assert same(weights_of(student), wanted) and len(warned) == 1
    assert np.flatnonzero(targets.valid).tolist() == [8]  # 11 came next, beyond the limit
    assert trained(tmp_path / "full")[1].valid.all()  # there is room again


def test_with_very_many_draws_a_batch_from_it_is_the_dense_one(tmp_path):
    """Filling and then reading, against float64; of any draws the loss is that of test_losses."""
    windows, teacher, rows = some_windows(mask=True), Seen(), np.arange(3)
    recipe, (ids, y) = quick(ce_weight=0.5, temperature=1.0), windows.batch(rows)
    wanted = dense(tiny(), teacher.model, windows, rows)
    targets = opened(tmp_path, teacher, windows, draws=2000, temperature=1.0)
    for _ in range(2):
        found = train.batch_loss(tiny(), targets, ids, y, recipe, rows, targets.read(rows))
        assert float(found.kl) == pytest.approx(wanted["kl"].mean(), rel=0.02)
        assert float(found.ce) == pytest.approx(wanted["loss"].mean(), rel=1e-5)
    assert sorted(teacher.windows) == [0, 1, 2]


@pytest.mark.parametrize("stop, lost", [(2, False), (4, True), (6, True)])
def test_a_stopped_training_goes_on_to_the_same_bits(stop, lost, tmp_path):
    """Also where rows that were written do not count yet when it is killed, and where some of the
    windows of a batch do."""

    def fit(student, name, last=99) -> dict:
        with opened(tmp_path / "cache" / name) as targets:
            how = dict(teacher=targets, folder=tmp_path / name, progress=stop_at(last))
            train.fit(student, targets.windows, quick(), **how)
        return weights_of(student)

    wanted = fit(tiny(), "straight")
    with pytest.raises(Stopped):
        fit(tiny(), "stopped", stop)
    if lost:
        poison(opened(tmp_path / "cache" / "stopped"), [0, 1, 5, 6])
    assert same(fit(tiny(seed=5), "stopped"), wanted)


def test_no_checkpoint_is_ahead_of_the_rows_that_led_to_it(tmp_path, monkeypatch):
    """Else a row lost to a kill would be made again, later and in another batch."""
    monkeypatch.setattr(cache, "SYNC_S", 1e9)
    recipe, steps = quick(), train.order(np.arange(WINDOWS), quick(), T)
    with opened(tmp_path / "cache") as targets:

        def look(step, *_):  # after the step, before its checkpoint
            assert targets.valid[np.concatenate([[], *steps[: step - 1]]).astype(int)].all()
            assert not targets.valid[steps[step - 1]].all() or step > 3

        train.fit(tiny(), some_windows(), recipe, teacher=targets, folder=tmp_path, progress=look)


def test_a_training_of_other_targets_is_refused_and_a_text_alone_asks_for_none(tmp_path):
    recipe, teacher, options = quick(epochs=1.0), Seen(), dict(folder=tmp_path / "state")
    with opened(tmp_path / "cache", teacher) as targets:
        others = [(some_windows(), 1.0, "temperature"), (some_windows(13), 2.0, "tokens")]
        for windows, wrong, word in others:
            with refused(tmp_path / "cache", word):
                train.fit(tiny(), windows, quick(temperature=wrong), teacher=targets)
        with refused("tokens"):
            hard_set.score(tiny(), targets, some_windows(13))
        train.fit(tiny(), some_windows(), recipe, teacher=targets, **options)
        with refused("targets", "5 draws, seed 1", "redo"):
            train.fit(tiny(), some_windows(), recipe, teacher=teacher, **options)
        targets.read = targets.draws = None  # to call them would be an error
        train.fit(tiny(), some_windows(), quick(ce_weight=1.0), teacher=targets)


def test_scores_from_a_read_only_cache_ask_the_teacher_only_what_is_missing(tmp_path, recwarn):
    windows, teacher = some_windows(140, mask=True), Seen()
    wanted = hard_set.score(tiny(), teacher.model, windows)
    fill(opened(tmp_path, teacher, windows), np.random.default_rng(0).permutation(140)[None])
    targets = opened(tmp_path, teacher, windows, read_only=True)
    for missing, asked in ([], []), ([3, 139], [*range(64), *range(128, 140)]):  # whole batches
        poison(targets, missing)
        teacher.windows.clear()
        found = hard_set.score(tiny(), targets, windows)
        assert sorted(teacher.windows) == asked
        for field in ("student_loss_N", "teacher_loss_N", "difficulty_N"):
            np.testing.assert_allclose(getattr(found, field), getattr(wanted, field), atol=1e-5)
        assert np.isnan(found.difficulty_N[1])
    fill(targets, [missing])
    assert not targets.valid[missing].any() and not recwarn
