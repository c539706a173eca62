"""The plan: what it counts is what the book then does, and what it says can be read."""

import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tdbook import __main__
from tdbook.corpus import token_files
from tdbook.runs import machine, notebooks, parameters, units
from tdbook.runs.parameters import ParameterError
from tdbook.training import cache
from tdbook.workflow import doctor, execute, graph, plan, workload
from tdlib import data, files, lora, losses, shapes, train
from tdlib.model import SHAPES, Llama, LlamaConfig
from tests.helpers import cases, token_folder

ROOT = Path(__file__).parents[3]
PROFILES = sorted(path.name for path in (ROOT / "params").iterdir() if path.is_dir())
CASES = cases(__file__)
B200 = {"PROFILE": "b200", "OUT": "/tmp/no-such-run-folder"}


def asked(**pairs: str) -> plan.Asked:
    return plan.asked(graph.wanted("plan", B200 | pairs))


def works(**pairs: str) -> dict[str, workload.Work]:
    return {work.run: work for work in asked(**pairs).works}


def config(name: str, **change) -> LlamaConfig:
    return LlamaConfig(**dict(vocab_size=51_800, **SHAPES[name]) | change)


def training(student: LlamaConfig, teacher: LlamaConfig | None = None, path="models/a", **p):
    own = dict(epochs=1.0, token_limit=0, batch_tokens=2 * student.context, micro_windows=2)
    own |= dict(rank=16, activation_checkpointing=False) | p
    return workload.training(path, student, teacher, own.pop("epoch", 100), own)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run folder as 00 leaves it: tokens and a teacher."""
    ids = np.random.default_rng(0).integers(3, 300, 6000)
    ids[::50] = 3
    meta = dict(vocab_size=300, block_size=32, train_tokens=5000, val_tokens=1000)
    token_folder(tmp_path / "tokens", ids[:5000], ids[5000:], **meta)
    torch.manual_seed(0)
    Llama(LlamaConfig(300, **SHAPES["teacher-smoke"], context=32)).save(tmp_path / "models/teacher")
    return tmp_path


def test_an_untied_head_costs_no_look_up_and_adapters_are_those_of_lora():
    student = config("student-50m")
    flop = workload.forward_flop(student, 64)
    assert flop == workload.forward_flop(replace(student, tied=False), 64)
    assert workload.adapter_parameters(student, 64) / 1e6 == pytest.approx(5.05, abs=0.005)
    shape = replace(config("teacher-smoke", vocab_size=50), heads=4, kv_heads=2, head_dim=24)
    net = lora.attach(Llama(shape), 3)
    attached = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert workload.adapter_parameters(shape, 3) == attached


def kept(config: LlamaConfig, windows: int, bfloat16: bool) -> int:
    """Bytes that autograd really keeps of one forward, weights in float32 apart."""
    model = Llama(config)
    own = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}
    storages = {}

    def count(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return x

    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            model.hidden(torch.zeros(windows, config.context, dtype=torch.long))
    return sum(storage.nbytes() for storage in storages.values())


SHAPED = [{}, dict(kv_heads=1, head_dim=24, qk_norm=True), dict(layers=4)]


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("change", SHAPED)
def test_memory_is_a_bound_of_what_a_training_holds_and_not_a_wild_one(kind, change):
    """Gradients and two means in float32, and what autograd keeps; CUDA's is that of autocast,
    which a CPU can make too. With a vocabulary of 8 logits are nothing."""
    shape = replace(config("teacher-smoke", vocab_size=8, context=40), **change)
    held = 12 * shape.parameters + kept(shape, 3, bfloat16=kind == "cuda")
    told = training(shape, batch_tokens=120, micro_windows=3).memory[kind]
    assert held < told < 1.75 * held
    assert workload.CHUNK[kind] == losses.default_chunk(kind)
    again = training(shape, batch_tokens=120, micro_windows=3, activation_checkpointing=True)
    assert again.memory[kind] <= told - (shape.layers - 1) * 120 * workload.layer_bytes(shape, kind)


@pytest.mark.parametrize("epochs, limit", itertools.product((0.3, 2.5), (0, 7, 700, 10**9)))
def test_windows_and_steps_are_those_that_training_takes(epochs, limit):
    shape = LlamaConfig(300, **SHAPES["student-small-smoke"], context=32)
    for rows, batch in ((1, 64), (37, 64), (100, 200), (100, 10**6)):
        p = dict(epochs=epochs, token_limit=limit, batch_tokens=batch)
        lengths = [*map(len, train.order(np.arange(rows), train.Recipe(**p), 32))]
        t = training(shape, epoch=rows, **p)
        assert (t.windows, t.steps) == (sum(lengths), len(lengths))


def test_what_a_training_leaves_on_the_disk_is_counted(tmp_path):
    """The weights of every epoch, and its checkpoint with the next one beside it."""
    shape = LlamaConfig(3000, **SHAPES["student-small-smoke"], context=16)
    p = dict(batch_tokens=64, epochs=2.5, token_limit=0, ce_weight=1.0)
    windows, net = data.Windows(np.arange(8 * 16 + 1, dtype=np.uint32), 16), Llama(shape)
    train.fit(net, windows, train.Recipe(**p), folder=tmp_path)
    net.save(tmp_path / "model")
    p |= {"run": "01_distill", "student": "a", "shape": "student-small-smoke"}
    p |= {"micro_windows": 1, "activation_checkpointing": False}
    told = workload.of_run(p, workload.Size(3000, 16, 8, 8, 0, ""), shape, {}).disk
    sizes = {path.name: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    found = sum(sizes.values()) + sizes["state.pt"]
    assert abs(told - workload.RECORDS - 8 * 8 - found) < 200_000 and len(sizes) > 2


@pytest.mark.parametrize("profile", PROFILES)
def test_a_run_makes_what_the_book_says_it_writes(profile):
    of = asked(PROFILE=profile)
    for work, run in zip(of.works, of.runs, strict=True):
        written = {path for path in run.writes if path.startswith(("models/", "adapters/"))}
        assert work.made.keys() == written


def test_the_night_that_the_facts_describe(tmp_path):
    """3.7B tokens × 3 epochs online; with attention, which they leave out at 16 layers, a tenth
    more. A teacher of 20 layers is read from its folder."""
    found = works()
    (t,) = found["01_distill-50m"].trainings
    assert t.steps == round(11.1e9 / 262_144 + 0.5)
    attention = 2 * 2048 * (3 * 512 * 8 + 1024 * 16) * t.windows * 2048
    assert t.flop - attention == pytest.approx(9.2e18, rel=0.01)
    larger = LlamaConfig(51_800, **SHAPES["teacher-300m"])
    (tmp_path / "config.json").write_text(json.dumps(shapes.to_hf(larger)))
    given = works(TEACHER=str(tmp_path))
    assert given["01_distill-50m"].trainings[0].flop == pytest.approx(11.8e18, rel=0.01)
    assert not given["00_teacher"].trainings
    (narrow,), (wide,) = (found[f"03_lora-hard-r{rank}"].trainings for rank in (16, 32))
    assert narrow.windows == pytest.approx(4 * 0.2 * 3.7e9 / 2048, rel=1e-4)  # of the hard set
    more = 6 * 1.26e6 * found["03_lora-hard-r16"].tokens
    assert wide.flop - narrow.flop == pytest.approx(more, rel=0.01)
    scored = (117e6 + 4.5e6 + 517e6 + 67e6) * 3.7e9  # both models once, with attention
    assert found["02_hard_set"].flop == pytest.approx(scored, rel=0.02)
    names = [Path(t.path).name for t in found["05_progressive"].trainings]
    assert names == ["150m", "75m", "75m-direct"]
    cached = works(SET="cached_draws=12")["01_distill-50m"].trainings[0]  # one epoch is taught
    alone = 2 * t.windows * 2048 * (313e6 + 3 * 2 * 2048 * 512 * 8)
    assert 3 * cached.flop - t.flop == pytest.approx(alone, rel=0.01)


def test_tokens_at_hand_are_counted_and_a_kept_hard_set_too(folder):
    given = {"PROFILE": "smoke", "OUT": str(folder), "TEACHER": f"{folder}/models/teacher"}
    opened, share = token_files.open_tokens(folder / "tokens"), {"SET": "02_hard_set.share=0.5"}
    found = asked(**given | share).size
    assert (found.vocab_size, found.context) == (300, 32)
    assert (found.train, found.val) == (len(opened.train), len(opened.val))
    assert found.hard == round(found.train / 2)
    choice = {"share": 0.1, "threshold": 0.0, "windows_K": [2, 3, 5]}
    (folder / "hard_set.json").write_text(json.dumps(choice))
    assert asked(**given | share).size.hard == 3
    # an adapter that is done leaves what its base takes as it was
    (run,) = (run for run in asked(**given).runs if run.name == "01_distill-50m")
    wanted = plan.estimate(run.parameters, folder, "cpu")["flop"]
    made = {"adapter": "50m-hard", "base": "50m", "trains": "adapter"}
    record = {"notebook": "03_lora", "parameters": made, "models": {}}
    files.write_whole(folder / "results/03_lora-hard.json", json.dumps(record))
    assert plan.estimate(run.parameters, folder, "cpu")["flop"] == wanted > 0


def test_the_plan_fits_a_narrow_screen_and_names_every_run_and_file():
    found = plan.plan(B200 | {"DEVICE": "b200", "PRICE_PER_HOUR": "4.5"})
    assert max(map(len, found.splitlines())) <= 80
    for run in graph.book("b200", paths=False):
        assert len(re.findall(rf"^{run.run} .* (h|min) +\S+$", found, re.M)) == 1
    for words in CASES["b200"]:
        assert re.search(words, found), words
    wide = plan.plan(B200 | {"DEVICE": "b200", "SET": "vocab_size=86_071"})
    assert re.search(r"(?s)120m +151\.1 M .*50m +69\.8 M +44\.1 M [^\n]*ABOVE", wide)
    kept = asked().size.train * (cache.row_type(2048, 12, 51_800).itemsize + 1)
    assert f"cache       {units.si(kept, 'B')} a temperature" in found


def test_hours_are_flop_over_what_a_device_reaches_and_money_hours_times_the_price(monkeypatch):
    work = works()["01_distill-50m"]
    busy = work.flop / 2.25e15
    assert work.seconds(workload.DEVICES["b200"]) == (5 + busy / 0.45, 200 + busy / 0.3)
    spans = (work.seconds(workload.DEVICES["h100"]) for work in works().values())
    low, high = map(sum, zip(*spans, strict=True))
    found = plan.plan(B200 | dict(DEVICE="h100", PRICE_PER_HOUR="2"))
    assert re.search(rf"^all .* {low / 1800:,.0f}–{high / 1800:,.0f}$", found, re.M)
    spans = [(11_160, 24_840), (720, 900), (19.6, 20.2), (0.021, 0.04), (36_000, 400_000)]
    words = ["3.1–6.9 h", "12–15 min", "20 s", "0.021–0.04 s", "10–111 h"]
    assert [units.duration(*span) for span in spans] == words
    monkeypatch.setattr(torch, "ones", None)  # a GPU multiplies them faster than weights
    assert 1e8 < workload.peak_flop("cpu") < 1e15


def test_a_night_answers_its_first_question_first_and_ends_in_ten_hours():
    """By the Snakefile's order, of one run at a time; the control costs what the recipe does."""
    source, of = (ROOT / "Snakefile").read_text(), asked(PROFILE="b200-night")
    scope = {"notebooks": notebooks, "JOBS": {run.name: run for run in of.runs}}
    exec(source[source.index("def to_the_end") : source.index("\nfor name, job")], scope)
    *first, recipe, control, _, _ = scope["ORDER"]
    assert first == "00_teacher 01_distill-50m 02_hard_set 03_lora-hard 03_lora-random".split()
    flop = {work.run: work.flop for work in of.works}
    assert flop[recipe] == pytest.approx(flop[control], rel=0.01) and recipe < control
    assert sum(sum(work.seconds(workload.DEVICES["b200"])) for work in of.works) < 20 * 3600


def test_what_a_gpu_needs_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for module in (execute, doctor):
        monkeypatch.setattr(module, "Path", lambda path: tmp_path / path[1:])
    assert workload.device_of("", "b200")[0] == workload.DEVICES["b200"]
    (tmp_path / "dev/nvidia3").mkdir(parents=True)  # alone, as a container may have it
    assert execute.gpus() == ["0"] and workload.device_of("", "b200")[1] == "measured now"
    for there, fault in ((False, "cannot use the GPU here"), (True, "no .*Python.h")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        with pytest.raises(ValueError, match=fault):
            doctor._torch()
    t = training(config("teacher-smoke", vocab_size=300, context=64))
    assert "windows: 2," in doctor.two_steps(t, "cpu")
    plain = doctor.attention_gap(t.student, 2, "cpu", (doctor.FLASH, doctor.FLASH[1:]))
    assert 0 < plain < doctor.APART / 2 and "flash" in machine.versions()["attention"]
    monkeypatch.setattr(doctor, "APART", 0.0)
    with pytest.raises(ValueError, match=f"export {machine.FLASH_FIRST}=1"):
        doctor.two_steps(t, "cpu")


@pytest.mark.parametrize("pairs, words", CASES["commands"])
def test_what_means_nothing_is_said_in_one_line(pairs, words, capsys):
    given = B200 | pairs if "SET" not in pairs else {"PROFILE": "smoke", "OUT": "/tmp/none"} | pairs
    assert __main__.main(["plan", *(f"{k}={v}" for k, v in given.items())]) == 1
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and re.search(words, line), line


def test_tokens_that_do_not_fit_the_teacher_are_refused(folder):
    for name, vocab_size, context in (("vocabulary is 600", 600, 32), ("context is 16", 300, 16)):
        shape = LlamaConfig(vocab_size, **SHAPES["teacher-smoke"], context=context)
        Llama(shape).save(folder / name)
        with pytest.raises(ParameterError, match=f"{name}, the tokens'"):
            asked(PROFILE="smoke", TOKENS=f"{folder}/tokens", TEACHER=f"{folder}/{name}")
    Llama(LlamaConfig(309, **SHAPES["teacher-smoke"], context=32)).save(folder / "spare rows")
    found = asked(PROFILE="smoke", TOKENS=f"{folder}/tokens", TEACHER=f"{folder}/spare rows")
    assert found.teacher.vocab_size == 300


def test_a_healthy_machine_passes_and_damaged_tokens_do_not(folder, monkeypatch, capsys):
    """Two runs; then tokens that were emptied, then none."""
    monkeypatch.setattr(parameters, "ROOT", folder / "root")
    shutil.copytree(ROOT / "notebooks", folder / "root/notebooks")
    for run in ("00_teacher", "01_distill-50m"):
        text = (ROOT / f"params/smoke/{run}.yaml").read_text().replace("outputs/smoke", str(folder))
        files.write_whole(folder / f"root/params/one/{run}.yaml", text)

    def examined(**more: str) -> tuple[int, str]:
        pairs = {"PROFILE": "one", "OUT": str(folder), "TEACHER": f"{folder}/models/teacher"}
        pairs["TOKENS"] = f"{folder}/tokens"
        return doctor.examine(pairs | more), capsys.readouterr().out

    code, lines = examined()
    assert code == 0 and not (folder / "results").exists()  # nothing is left behind
    assert re.search("✓ torch: 2.*✓ tokens: 5 k for.*✓ two steps of 50m: ", lines, re.S)
    (folder / "tokens/train.bin").write_bytes(b"\0" * 12_000)
    (folder / "root/params/one/01_distill-50m.yaml").unlink()
    code, lines = examined()
    assert code == 1 and re.search("✗ tokens: .*12,000 bytes, by meta.json 5,000 tokens", lines)
    shutil.rmtree(folder / "tokens")
    code, lines = examined(SET="text_characters=0", TOKENS="", TEACHER="")
    assert code == 1 and re.search("✗ paths: .*no text: give TEXT=path", lines)


def test_a_plan_of_one_run_says_first_how_long_that_and_what_it_needs_take(capsys):
    words = ["PROFILE=b200-night", "ONLY=01_distill-50m-recommended", "PRICE_PER_HOUR=4"]
    assert __main__.main(["plan", *words, "DEVICE=b200"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    runs = [line.split()[0] for line in lines[lines.index("RUNS, one after the other") + 2 :]]
    assert runs == ["00_teacher", "01_distill-50m-recommended", "all"]
    assert re.fullmatch(r"time +[\d.]+–[\d.]+ h, for [\d.]+–[\d.]+, one run after the other", first)
