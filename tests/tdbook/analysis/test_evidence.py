"""What verdicts rest on: losses of the right models on the right text, and what ships."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from tdbook.analysis import features, verdict
from tdbook.analysis.verdict import ROWS, UNDECIDED
from tdbook.book import comparison, evidence
from tdbook.corpus import token_files, writer
from tdbook.runs import hashes, units
from tdlib import data, evaluate, lora
from tdlib.files import write_whole
from tdlib.model import Llama
from tests.helpers import tiny_model
from tests.tdbook.analysis.test_judge import CASES
from tests.tdbook.analysis.test_verdict import TEACHER, distilled, replayed
from tests.tdlib.test_evaluate import dense

T, FIXED = 32, 16  # tokens of a window; windows that are looked at token by token
P07 = dict(run="07_evidence", base="50m", teacher="teacher", scratch="50m-scratch", seed=1)
P07 |= dict(picked_by="50m-seed2", sweeps="share", hard_share=0.2)
P07 |= dict(fixed_windows=FIXED)
STUDENTS = [distilled("50m"), distilled("50m-seed2", 2), distilled("50m-scratch", ce_weight=1.0)]


def finish(out: Path, record: dict, *paths: str) -> None:
    """A run's record, and what it wrote."""
    run, p = record["parameters"]["run"], record["parameters"]
    for i, name in enumerate(sorted(record["models"])):
        record["models"][name] = {"loss": 5.0 + i + p["seed"] / 8}
    record |= {"run": run, "seconds": 60}
    write_whole(out / f"results/{run}.json", json.dumps(record))
    outputs = {path: {"sha256": f"{out.name} {path}"} for path in paths}
    kept = {"parameters": {}, "code": "", "inputs": {}, "outputs": outputs}
    write_whole(out / f"hashes/{run}.json", json.dumps(kept))


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer) -> Path:
    """A run folder: a teacher, students with and without it, an adapter, and a sweep of two."""
    out = tmp_path_factory.mktemp("made") / "o"
    documents = writer.write(45_000, 1)
    splits = {"train": documents[:-12], "val": documents[-12:-8], "confirm": documents[-8:-4]}
    splits["works"] = documents[-4:]
    token_files.write_tokens(out / "tokens", splits, tokenizer, T)
    tokens = token_files.open_tokens(out / "tokens")
    for i, record in enumerate([TEACHER, *STUDENTS]):
        record = record | {"parameters": record["parameters"] | {"teacher": "teacher"}}
        (name,) = record["models"]
        tiny_model(i, tokens.vocab_size, T, scale=3.0, layers=1).save(out / "models" / name)
        finish(out, record, f"models/{name}", *["tokens"] * (i == 0))
    made = [(f"share{x}", out / f"sweeps/share/share{x}", x) for x in (0.2, 0.5)]
    made.insert(0, ("hard", out, {}))
    for i, (name, place, share) in enumerate(made):
        net = lora.attach(Llama.load(out / "models/50m"), 4, seed=i)
        for part in lora.adapters(net).values():
            torch.nn.init.normal_(part.lora_B, std=0.3)
        lora.save(net, place / "adapters/50m-hard")
        given = dict(run=f"03_lora-{name}", share=share or 0.1, teacher="teacher", out=str(place))
        finish(place, replayed("50m-hard", **given), "adapters/50m-hard")
        if place == out:
            lora.merge(net).save(out / "models/50m-hard-merged")
        else:
            (place / "models").mkdir()
            (place / "models/50m").symlink_to(out / "models/50m")
    merge = dict(notebook="04_merge_eval", models={"50m-hard-merged": {}}, remembered={})
    merge |= {"parameters": dict(run="04_merge_eval", seed=1)}
    finish(out, merge, "models/50m-hard-merged")
    write_whole(out / "hashes/05.json", "{}")  # broken, and no matter
    points = {f"share{x}": {"share": x} for x in (0.2, 0.5)}
    runs = {point: [f"03_lora-{point}"] for point in points}
    listed = {"notebook": "03_lora", "points": points, "runs": runs}
    write_whole(out / "sweeps/share/points.json", json.dumps(listed))
    for model in (out / "models").iterdir():
        found = evaluate.evaluate(Llama.load(model), tokens.val, fixed=FIXED)
        found.save(out / "scores/val", model.name)
    return out


@pytest.fixture
def opened(made, tmp_path):
    """Begins 07 on a copy, in which nothing has read the text that judges."""
    out = tmp_path / "o"
    shutil.copytree(made, out, symlinks=True)

    def start(**more) -> tuple[SimpleNamespace, data.Tokens]:
        this = SimpleNamespace(out=out, run="07_evidence", models={}, device="cpu")
        this.path, this.parameters = out.joinpath, P07 | more
        this.progress = lambda *_: None
        return this, token_files.open_tokens(out / "tokens")

    return start


def by_hand(model: Llama, windows: data.Windows) -> np.ndarray:
    """Loss of every token, (N, T), in float64."""
    return dense(model, model, windows, range(len(windows)))["loss"].reshape(len(windows), T)


@pytest.mark.parametrize("split", ["works", "confirm"])
def test_losses_are_those_of_every_window_of_a_split(opened, split):
    this, tokens = opened()
    found = evidence.Losses(this, tokens, split)
    text, net = getattr(tokens, split), Llama.load(this.out / "models/50m")
    loss_NT = by_hand(net, text)
    np.testing.assert_allclose(found["50m"], loss_NT.mean(1), atol=1e-5)
    rows = evaluate.fixed_rows(text, FIXED)
    np.testing.assert_allclose(found.tokens("50m"), loss_NT[rows], atol=1e-4)
    net = lora.merge(lora.load(net, this.out / "sweeps/share/share0.5/adapters/50m-hard"))
    adapted_N = by_hand(net, text).mean(1)
    np.testing.assert_allclose(found["share0.5"], adapted_N, atol=1e-5)
    assert np.abs(adapted_N - loss_NT.mean(1)).max() > 1e-3  # it is not the base's
    assert list(found) == ["50m", "share0.5"]  # no other was asked for


def test_a_model_is_read_when_asked_for_and_again_where_it_or_the_text_changed(opened, monkeypatch):
    seen, names, load = [], ["50m", "50m-scratch", "teacher"], Llama.load
    monkeypatch.setattr(Llama, "load", lambda path, *more: seen.append(path.name) or load(path))

    def ask(**more) -> list[str]:
        """What is read for the losses of four models."""
        this, tokens = opened(**more)
        found = evidence.Losses(this, tokens, "works")
        seen.clear()
        assert {len(found[name]) for name in (*names, "share0.2")} == {len(tokens.works)}
        assert len(found.tokens("50m")) == more.get("fixed_windows", FIXED)
        return sorted(seen)

    def rehash(run: str, name: str) -> None:
        path = opened()[0].out / f"hashes/{run}.json"
        content = json.loads(path.read_text())
        content["outputs"][name]["sha256"] = "f" * 64
        path.write_text(json.dumps(content))

    all_of_them = sorted([*names, "50m"])  # and the base of share0.2, beside its adapter
    assert ask() == all_of_them and ask() == []
    rehash("01_distill-50m", "models/50m")
    assert ask() == ["50m"] and ask() == []
    rehash("00_teacher", "tokens")  # beside which a given teacher stays the same
    assert ask() == all_of_them and ask() == []
    assert ask(fixed_windows=5) == all_of_them


def test_without_another_split_the_validation_text_judges_and_that_is_said(opened):
    this, _ = opened()
    for split in ("works", "confirm"):
        (this.out / f"tokens/{split}.bin").unlink()
    tokens = token_files.open_tokens(this.out / "tokens")
    assert evidence.judged_on(tokens).startswith("Judged on ⚠ the validation text, on which")
    t = evidence.trial(this, tokens)
    for name in ("teacher", "50m", "50m-hard-merged"):  # as their own runs left them
        kept = np.load(this.out / f"scores/val/{name}.npy")
        np.testing.assert_allclose(t.losses[name], kept, atol=1e-5)
    assert len(t.document_N) == len(tokens.val)


def test_a_text_without_a_target_judges_nothing(monkeypatch):
    def windows(mask: np.ndarray) -> data.Windows:
        return data.Windows(np.arange(33, dtype="<u4"), 4, mask)

    some, none = np.ones(33, "u1"), np.zeros(33, "u1")
    some[5:13] = 0  # the second and the third of eight
    monkeypatch.setattr(token_files, "origins", lambda tokens, split: (np.arange(8), []))
    tokens = SimpleNamespace(val=windows(some), confirm=windows(none), works=None)
    assert evidence.split_of(tokens) == "val"
    words = evidence.judged_on(tokens)
    assert "no other was put aside: 6 of 8 windows have a target, of 6 documents" in words
    for split in ("confirm", "works"):
        setattr(tokens, split, windows(some))
        assert evidence.split_of(tokens) == split
        assert ": 6 of 8 windows have a target" in evidence.judged_on(tokens)


def test_what_is_kept_and_lost_is_the_lag_in_a_bucket_beyond_that_elsewhere(opened):
    this, tokens = opened()
    t = evidence.trial(this, tokens)
    found = {e.what: e for effects in evidence.kept(this, tokens, t).values() for e in effects}
    nets = (Llama.load(this.out / "models" / name) for name in ("50m", "teacher"))
    base, teacher = (by_hand(net, tokens.works) for net in nets)
    rows = np.unique(np.linspace(0, len(base) - 1, FIXED).round().astype(int))
    lag_MT = (base - teacher)[rows]
    labels = features.token_cuts(replace(tokens, val=tokens.works), rows)  # by hand elsewhere
    kinds = [kind for row in ROWS.values() for kind in row.get("kinds", ())]
    for cut, bucket, claimed in kinds:
        in_MT = labels[cut][1] == labels[cut][0].index(bucket)
        if effect := found.pop(f"{bucket} ({cut})", None):
            lag = lag_MT[in_MT].mean() - lag_MT[~in_MT].mean()
            assert effect.interval.value == pytest.approx(lag, abs=1e-4)
            assert (effect.claimed, effect.seeds) == (claimed, 1)
    assert not found and len(kinds) == 8


def test_what_the_hardest_windows_hold_is_counted_beside_the_rest(opened):
    this, tokens = opened()
    t = evidence.trial(this, tokens)
    found = evidence.hard_text(this, tokens, t)
    lag_N = t.losses["50m"] - t.losses["teacher"]
    hard_N = lag_N >= np.sort(lag_N)[-round(0.2 * len(lag_N))]
    pairs = set(itertools.pairwise(tokens.train.ids.tolist()))
    ids = tokens.works.ids.tolist()
    new = [(a, b) not in pairs for a, b in itertools.pairwise(ids[: len(lag_N) * T + 1])]
    share_N = np.reshape(new, (-1, T)).mean(1)
    (effect,) = found["hard_pairs"]
    assert effect.interval.value == pytest.approx(share_N[hard_N].mean() - share_N[~hard_N].mean())
    assert [*found] == ["hard_rare", "hard_pairs", "hard_script"]


def test_every_claim_has_a_verdict_and_only_models_that_one_needs_are_run(opened):
    this, tokens = opened()
    t = evidence.trial(this, tokens)
    judged = {v.key: v for v in evidence.judged(this, tokens, t)}
    assert [*judged] == [*ROWS] and {v.result for v in judged.values()} == {UNDECIDED}  # one seed
    effect, cost = judged["distilled"].effects[:2]
    apart = t.losses["50m"].mean() - t.losses["50m-scratch"].mean()
    assert effect.interval.value == pytest.approx(apart, abs=1e-5) and not cost.seeds
    assert not {"share0.2", "share0.5", "50m-seed2"} & t.losses.keys()  # no verdict asked for them
    read, every = {*t.losses}, evidence.models_table(this, tokens, t).set_index("model")
    assert {*every.index} == read == {*t.losses}
    assert every.loc["50m-hard-merged", "seeds"] == "1 1"
    assert every["training tokens"][["50m", "50m-hard-merged"]].tolist() == ["1,000", "1,200"]
    assert "Not decided: the adapter on the" in comparison.headline(t, [*judged.values()])


def test_a_model_that_was_judged_may_lose_its_weights(opened):
    told = []
    for _ in range(2):
        this, tokens = opened()
        t = evidence.trial(this, tokens)
        verdicts = evidence.judged(this, tokens, t)
        told.append((verdict.table(verdicts), evidence.models_table(this, tokens, t)))
        reads = hashes.inputs(this.out, this.run, this.parameters)
        assert ("models/50m" in reads) == (len(told) == 1) and "tokens" in reads
        for weights in this.out.rglob("*.safetensors"):
            weights.unlink()
    for first, again in zip(*told, strict=True):
        pd.testing.assert_frame_equal(first, again)
    with pytest.raises(FileNotFoundError, match="50m-seed2"):  # no verdict has asked for it
        t.losses["50m-seed2"]


def test_beside_every_effect_stand_sections_and_the_sources_of_the_works(opened):
    this, tokens = opened()
    t = evidence.trial(this, tokens)
    verdicts = [t.judged(key) for key in ("distilled", "adapter")]
    table = evidence.effects_table(this, tokens, t, verdicts).set_index("effect")
    nets = [Llama.load(this.out / "models" / name) for name in ("50m", "50m-scratch")]
    for column, split in (("value", "works"), ("on sections", "confirm")):
        base, scratch = (by_hand(net, getattr(tokens, split)).mean() for net in nets)
        found = table.loc["distilled − scratch", column]
        assert found == pytest.approx(base - scratch, abs=1e-5)
    sources = evidence.by_source(tokens, t, verdicts).set_index("effect")
    adapter = "adapter on hard (learning_rate 0.001) − its base"
    assert sources.index.tolist() == ["distilled − scratch", adapter]
    change_N = t.losses["50m"] - t.losses["50m-scratch"]
    document_N, source_D = token_files.origins(tokens, "works")
    for source in set(source_D):
        of_source_N = np.array(source_D)[document_N] == source
        mean = f"{change_N[of_source_N].mean():+.3f} [".replace("-", "−")
        assert sources.loc["distilled − scratch", source].startswith(mean)


MERGED = {"adapter": "a", "weights": "32,608", "weights of the base": "32,608"}
MERGED |= {"largest logit difference": "8.0e-05", "of logits up to": "0.845"}


@pytest.mark.parametrize("shape", ["student-50m", "student-120m"])
@pytest.mark.parametrize(("what", "times", "merged", "result"), CASES["ships"])
def test_what_ships_is_judged_by_the_plans_numbers(tmp_path, shape, what, times, merged, result):
    """Beside a shape and a merge that reach all of them, and an 80m of which the plan says none."""
    remembered = {}
    for name, slower in {"teacher-300m": {}, shape: times or {}, "student-80m": {}}.items():
        plan = {key: row[0] for key, row in units.PLAN.get(name, units.PLAN[shape]).items()}
        speed = {"raw": plan["raw"], "KV": 1e9, "KV + INT8": 0.9 * plan["phase1"]}
        speed |= {"KV + INT8 + compile": plan["phase1"], "Q4_0_DEFAULT": 1.0}
        speed |= {"Q4_0": plan["phase2"]}
        rows = [{"way": way, "decode": n * slower.get(way, 1)} for way, n in speed.items()]
        size = 1.1 * plan["megabytes"] * slower.get("megabytes", 1)
        sizes = {"Q4_0": round(1e6 * size), "Q8_0": 10**9}
        remembered |= {f"shape {name}": {"rows": rows, "bytes": sizes}} if times is not None else {}
    (tmp_path / "tables").mkdir()
    pd.DataFrame([MERGED, MERGED | merged]).to_csv(tmp_path / "tables/04_merge_eval-merged.csv")
    record = dict(notebook="06_inference", models={}, parameters={}, remembered=remembered)
    write_whole(tmp_path / "results/06_inference.json", json.dumps(record))
    this = SimpleNamespace(out=tmp_path, run="x", parameters={})
    found, why, measured = evidence.shipped(this, what)
    assert found == result and bool(measured) == (result != UNDECIDED)
    if result == verdict.FAILS:  # of several what is missed is told
        assert measured.startswith("a: " if what == "merge" else shape)
    reached = {verdict.HOLDS: "2 of 2 reached", UNDECIDED: "not run"}
    assert why == reached.get(result, "1 of 2 reached")
    low, high = units.PLAN["teacher-300m"]["phase2"]
    words = f"teacher-300m, Q4_0: {low:,.0f} tokens/s ({low:g}–{high:g})"
    assert (words == measured) == (what == "phase2" and result == verdict.HOLDS)
