"""The plan: what it counts is what the book then does, and what it says can be read."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tdbook import __main__
from tdbook.corpus import token_files
from tdbook.runs import parameters, units
from tdbook.workflow import cost, doctor, graph, plan, request, workload
from tdlib import data, lora, shapes, train
from tdlib.model import SHAPES, Llama, LlamaConfig

ROOT = Path(__file__).parents[3]
PROFILES = sorted(path.name for path in (ROOT / "params").iterdir() if path.is_dir())
NOWHERE = "/tmp/no-such-run-folder"
B200 = {"PROFILE": "b200", "VOCAB": "51800", "OUT": NOWHERE}


def asked(**pairs: str) -> plan.Asked:
    return plan.asked(request.wanted("plan", B200 | pairs), 51_800)


def works(**pairs: str) -> dict[str, workload.Work]:
    return {work.run: work for work in asked(**pairs).works()}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run folder as 00 leaves it: tokens and a teacher."""
    ids = np.random.default_rng(0).integers(3, 300, 6000).astype("<u4")
    for split, part in (("train", ids[:5000]), ("val", ids[5000:])):
        part[::50] = 3
        (tmp_path / "tokens").mkdir(exist_ok=True)
        part.tofile(tmp_path / "tokens" / f"{split}.bin")
    meta = dict(vocab_size=300, block_size=32, train_tokens=5000, val_tokens=1000, dtype="uint32")
    (tmp_path / "tokens/meta.json").write_text(json.dumps(meta))
    torch.manual_seed(0)
    Llama(LlamaConfig(300, **SHAPES["teacher-smoke"], context=32)).save(tmp_path / "models/teacher")
    return tmp_path


# what is counted


def test_windows_and_steps_are_those_that_training_takes():
    shape = LlamaConfig(300, **SHAPES["student-small-smoke"], context=32)
    sizes = ((1, 64), (37, 64), (100, 200), (100, 10**6))
    for epochs, limit, (rows, batch) in itertools.product(
        (0.3, 1.0, 2.5), (0, 7, 700, 10**9), sizes
    ):
        p = dict(epochs=epochs, token_limit=limit, batch_tokens=batch)
        order = train.order(np.arange(rows), train.Recipe(**p), 32)
        t = workload.Training("models/a", shape, None, rows, p)
        assert (t.windows, t.steps) == (sum(map(len, order)), len(order))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_run_makes_what_the_book_says_it_writes(profile):
    of = asked(PROFILE=profile)
    for work, run in zip(of.works(), of.runs, strict=True):
        written = {path for path in run.writes if path.startswith(("models/", "adapters/"))}
        assert work.made.keys() == written


def test_the_night_that_the_facts_describe(tmp_path):
    """3.7B tokens × 3 epochs online; with attention, which they leave out at 16 layers, a tenth
    more. A teacher of 20 layers is read from its folder."""
    (t,) = works()["01_distill-50m"].trainings
    assert t.steps == round(11.1e9 / 262_144 + 0.5)
    attention = 2 * 2048 * (3 * 512 * 8 + 1024 * 16) * t.windows * 2048
    assert t.flop - attention == pytest.approx(9.2e18, rel=0.01)
    larger = LlamaConfig(51_800, **SHAPES["teacher-300m"])
    (tmp_path / "config.json").write_text(json.dumps(shapes.to_hf(larger)))
    given = works(TEACHER=str(tmp_path))
    assert given["01_distill-50m"].trainings[0].flop == pytest.approx(11.8e18, rel=0.01)
    assert not given["00_teacher"].trainings


def test_the_adapter_trains_on_the_hard_set_and_scoring_trains_nothing():
    found = works()
    windows = round(0.2 * 3.7e9 / 2048)
    (narrow,), (wide,) = (found[f"03_lora-hard-r{rank}"].trainings for rank in (16, 32))
    assert narrow.windows == pytest.approx(4 * windows, rel=1e-4)
    assert found["02_hard_set"].tokens == found["04_merge_eval"].tokens == 0
    more = wide.flop - narrow.flop  # 1.26M weights
    assert more == pytest.approx(6 * 1.26e6 * found["03_lora-hard-r16"].tokens, rel=0.01)
    scored = (117e6 + 4.5e6 + 517e6 + 67e6) * 3.7e9  # both models once, with attention
    assert found["02_hard_set"].flop == pytest.approx(scored, rel=0.02)
    names = [Path(t.path).name for t in found["05_progressive"].trainings]
    assert names == ["150m", "75m", "75m-direct"]


def test_with_a_cache_the_teacher_sees_one_epoch():
    online, cached = (works(SET=f"cached_draws={n}")["01_distill-50m"] for n in (0, 12))
    assert online.trainings[0].taught == 1
    assert cached.trainings[0].taught == pytest.approx(1 / 3)
    student = 313e6 + 3 * 2 * 2048 * 512 * 8
    twice = 3 * cached.trainings[0].flop - online.trainings[0].flop
    assert twice == pytest.approx(2 * online.tokens * student, rel=0.01)


@pytest.mark.parametrize("epochs, limit", [(3.0, 0), (2.5, 0), (3.0, 16 * 12), (1.0, 0)])
def test_the_weights_of_every_epoch_that_a_run_leaves_are_counted(tmp_path, epochs, limit):
    shape = LlamaConfig(300, **SHAPES["student-small-smoke"], context=16)
    p = dict(batch_tokens=64, epochs=epochs, token_limit=limit, ce_weight=1.0)
    windows = data.Windows(np.arange(8 * 16 + 1, dtype=np.uint32), 16)
    train.fit(Llama(shape), windows, train.Recipe(**p), folder=tmp_path)
    kept = len(list(tmp_path.glob("epoch-*")))
    assert workload.Training("models/a", shape, None, 8, p).kept_epochs == kept


# what is known of the tokens and the teacher


def test_tokens_at_hand_are_counted_and_a_kept_hard_set_too(folder):
    found = plan.size_of(folder / "tokens", folder)
    assert (found.vocab_size, found.context) == (300, 32)
    opened = token_files.open_tokens(folder / "tokens")
    assert (found.train, found.val) == (len(opened.train), len(opened.val))
    given = {"PROFILE": "smoke", "OUT": str(folder), "TEACHER": f"{folder}/models/teacher"}
    more = "02_hard_set.share=0.5 02_hard_set.token_limit="
    for limit, windows in ((0, round(found.train / 2)), (10 * 32 + 5, 5)):
        assert asked(**given, SET=f"{more}{limit}").size.hard == windows
    choice = {"share": 0.1, "threshold": 0.0, "windows_K": [2, 3, 5]}
    (folder / "hard_set.json").write_text(json.dumps(choice))
    assert asked(**given, SET=f"{more}0").size.hard == 3


def test_every_notebook_of_a_run_folder_has_an_estimate(folder):
    """From the folder alone, also with an adapter to merge; what trains nothing has no tokens, and
    random numbers after it are those without it."""
    small = LlamaConfig(300, **SHAPES["student-small-smoke"], context=32)
    Llama(small).save(folder / "models/50m")
    lora.save(lora.attach(Llama(small), 2), folder / "adapters/50m-hard", "models/50m")
    for begun in ("models/.75m.new/config.json", "adapters/.a.new/adapter_config.json"):
        (folder / begun).parent.mkdir()
        (folder / begun).write_text("{")  # by a process that was killed
    torch.manual_seed(0), np.random.seed(0)
    wanted = torch.rand(1), np.random.rand()
    torch.manual_seed(0), np.random.seed(0)
    estimates = {}
    for path in sorted((ROOT / "params/smoke").glob("*.yaml")):
        given = parameters.read(path) | {"out": str(folder)}
        given |= {"teacher": f"{folder}/models/teacher"} if path.stem.startswith("00") else {}
        p = parameters.check(path.stem.split("-")[0], given, paths=False)
        estimates[path.stem] = found = plan.estimate(p, folder, "cpu")
        assert found["flop"] > 0 and 0 < found["seconds_low"] < found["seconds_high"] < 3600
        assert found["peak_memory_mib"] < 1024
        assert (found["tokens"] > 0) == path.stem.startswith(("01", "03", "05"))
    assert (torch.rand(1), np.random.rand()) == wanted
    given = parameters.read(ROOT / "params/smoke/01_distill-50m.yaml") | {"out": str(folder)}
    recipe = train.recipe(parameters.check("01_distill", given, paths=False))
    order = train.order(
        np.arange(len(token_files.open_tokens(folder / "tokens").train)), recipe, 32
    )
    assert estimates["01_distill-50m"]["steps"] == len(order)
    assert estimates["01_distill-50m"]["tokens"] == sum(map(len, order)) * 32


# what is said


def test_the_plan_fits_a_narrow_screen_and_names_every_run_and_file():
    found = plan.plan(
        {"PROFILE": "b200", "DEVICE": "b200", "PRICE_PER_HOUR": "4.5", "OUT": NOWHERE}
    )
    assert max(map(len, found.splitlines())) <= 80
    for run in graph.book("b200", paths=False):
        assert len(re.findall(rf"^{run.run} .* (h|min) +\S+$", found, re.M)) == 1
    # for both vocabularies, as no tokens tell which
    facts = r"""teacher +258\.6 M +53\.0 M; 120m +124\.7 M +39\.8 M; 80m +84\.0 M +33\.2;
        50m +52\.2 M +26\.5 M .* 30\.5 MB +within; 55m +55\.\d M +26\.5 M .*within;
        50m +69\.8 M +44\.1 M .*ABOVE; 120m +151\.1 M; within 33 MB +50m 30\.5 MB, 55m 32\.\d MB;
        nominal; cache         178 GB a temperature"""
    for words in facts.split(";"):
        assert re.search(words.strip(), found), words


def test_hours_are_flop_over_what_the_device_reaches_and_money_is_hours_times_the_price():
    work, device = works()["01_distill-50m"], cost.DEVICES["b200"]
    low, high = work.seconds(device)
    training = work.trainings[0].flop
    scoring = (work.flop - training) / 1.1e15
    assert low == pytest.approx(training / 2.25e15 / 0.45 + scoring / 0.85 + 5)
    assert high == pytest.approx(training / 2.25e15 / 0.2 + scoring / 0.3 + 20 + 180)
    spans = [work.seconds(cost.DEVICES["h100"]) for work in works().values()]
    low, high = (sum(span[i] for span in spans) for i in (0, 1))
    found = plan.plan(B200 | dict(DEVICE="h100", PRICE_PER_HOUR="2"))
    assert f"cost          {low / 1800:,.0f}–{high / 1800:,.0f}\n" in found
    assert re.search(rf"^all .* {low / 1800:,.0f}–{high / 1800:,.0f}$", found, re.M)
    assert units.money((3600, 7200), 4.5) == "4.5–9.0"


def test_hours_of_b200_are_told_for_a_b200_where_there_is_no_gpu():
    without = not Path("/dev/nvidia0").exists()
    assert (cost.device_of("", "b200")[0] == cost.DEVICES["b200"]) == without
    assert cost.device_of("l4", "tiny") == (cost.DEVICES["l4"], "published")


def test_a_time_has_one_unit_and_two_digits():
    spans = [(11_160, 24_840), (720, 900), (19.6, 20.2), (0.021, 0.04), (36_000, 400_000)]
    words = ["3.1–6.9 h", "12–15 min", "20 s", "0.021–0.04 s", "10–111 h"]
    assert [units.duration(*span) for span in spans] == words


@pytest.mark.parametrize(
    "pairs, words",
    [
        (dict(PROFILE="b20"), "PROFILE=b20 .*did you mean b200"),
        (dict(DEVICE="h10"), "DEVICE=h10 .*did you mean h100"),
        (dict(DEVICE="quantum"), "there are b200, h100, a100, l4, cpu, here"),
        (dict(PRICE_PER_HOUR="free"), "PRICE_PER_HOUR=free must be a number.*PRICE_PER_HOUR=4.5"),
        (dict(PRICE_PER_HOUR="-1"), "PRICE_PER_HOUR=-1 must be"),
        (dict(VOCAB="12"), "VOCAB=12 must be a number, at least 300.*VOCAB=51800"),
        (dict(TOKENS="nowhere"), "TOKENS=nowhere is not there"),
        (dict(TEACHER="nowhere"), "TEACHER=nowhere is not there"),
        (dict(TOKENS="params"), "params/meta.json is not there: give a folder of tokens"),
        (dict(TEACHER="params"), "params is no teacher: give a Llama folder"),
    ],
)
def test_what_means_nothing_is_said_in_one_line(pairs, words, capsys):
    assert __main__.main(["plan", *(f"{k}={v}" for k, v in (B200 | pairs).items())]) == 1
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and re.search(words, line), line


def test_tokens_of_another_vocabulary_than_the_teachers_are_refused(folder, capsys):
    other = folder / "other"
    Llama(LlamaConfig(400, **SHAPES["teacher-smoke"], context=32)).save(other)
    given = ["PROFILE=smoke", f"OUT={folder}", f"TOKENS={folder}/tokens", f"TEACHER={other}"]
    for what in ("plan", "doctor"):
        assert __main__.main([what, *given]) == 1
        assert "vocabulary is 400, the tokens' 300: give the tokens" in capsys.readouterr().out


def test_arithmetic_needs_no_torch():
    pairs = {"PROFILE": "b200", "DEVICE": "b200", "OUT": NOWHERE}
    code = f"import sys; from tdbook.workflow import plan; plan.plan({pairs})"
    code += "; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


# doctor


def test_a_healthy_machine_passes_and_damaged_tokens_fail_with_their_line(folder):
    """Two runs; then tokens that were emptied. Each shape is a process of its own."""
    root = folder / "root"
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    (root / "params/one").mkdir(parents=True)
    for run in ("00_teacher", "01_distill-50m"):
        text = (ROOT / f"params/smoke/{run}.yaml").read_text().replace("outputs/smoke", str(folder))
        (root / f"params/one/{run}.yaml").write_text(text)
    environment = os.environ | {"TDLIB_ROOT": str(root), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tdbook", "doctor", "PROFILE=one", f"OUT={folder}"]
    command += [f"TEACHER={folder}/models/teacher"]
    ask = dict(capture_output=True, text=True, env=environment)
    done = subprocess.run(command, **ask)
    assert done.returncode == 0, done
    wanted = ("torch: 2", "tokens: 5 k for training", "run folder: ", "disk: ", "memory: at m")
    for line, words in zip(done.stdout.splitlines(), (*wanted, "two steps of 50m: 0"), strict=True):
        assert line.startswith(f"✓ {words}")
    assert not (folder / "results").exists()  # nothing is left behind
    (folder / "tokens/train.bin").write_bytes(b"\0" * 12_000)
    (root / "params/one/01_distill-50m.yaml").unlink()
    done = subprocess.run(command, **ask)
    assert done.returncode == 1
    assert "✗ tokens: " in done.stdout and "12,000 bytes, by meta.json 20,000" in done.stdout


def test_what_this_machine_cannot_do_is_named(folder):
    models = list(works().values())
    with pytest.raises(ValueError, match="none yet"):
        doctor.tokens_of(asked())
    with pytest.raises(ValueError, match="01_distill-120m 25") as error:
        doctor.memory(models, "cuda", int(20e9))
    assert "01_distill-50m 14" not in str(error.value)
    assert doctor.memory(models, "cuda", int(180e9)).startswith("at most 37")
    with pytest.raises(ValueError, match=r"1e.09 GB needed|TB needed"):
        doctor.disk(folder, [replace(models[0], disk=10**18)])
    assert doctor.writable(folder / "a/b") == f"{folder / 'a/b'} can be written"
    with pytest.raises(ValueError, match=r"^/proc cannot be written"):  # or a read-only disk
        doctor.writable(Path("/proc/new"))
