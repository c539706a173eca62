"""The plan: what it counts is what the book then does, and what it says can be read."""

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
import yaml

from tdbook import __main__
from tdbook.corpus import token_files
from tdbook.runs import parameters, units
from tdbook.workflow import doctor, graph, plan, workload
from tdlib import data, lora, shapes, train
from tdlib.model import SHAPES, Llama, LlamaConfig

ROOT = Path(__file__).parents[1]
PROFILES = sorted(path.name for path in (ROOT / "params").iterdir() if path.is_dir())
B200 = dict(PROFILE="b200", VOCAB="51800", OUT="/tmp/no-such-run-folder")


def works(**pairs: str) -> dict[str, workload.Work]:
    return {one.run: one for one in plan.asked(B200 | pairs).works()}


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


# --- what is counted


@pytest.mark.parametrize("epochs", [0.3, 1.0, 2.5, 3.0])
@pytest.mark.parametrize("token_limit", [0, 7, 700, 10**9])
def test_windows_and_steps_are_those_that_training_takes(epochs, token_limit):
    for rows, batch in ((1, 64), (37, 64), (100, 200), (100, 10**6)):
        p = dict(epochs=epochs, token_limit=token_limit, batch_tokens=batch)
        order = train.order(np.arange(rows), train.Recipe(**p), 32)
        assert workload.counts(rows, p, 32) == (sum(map(len, order)), len(order))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_run_makes_what_the_book_says_it_writes(profile):
    of = plan.asked(dict(PROFILE=profile, OUT="/tmp/no-such-run-folder"))
    for one, run in zip(of.works(), of.runs, strict=True):
        models = {f"models/{name}" for name in one.made}
        adapters = {f"adapters/{t.name}" for t in one.trainings if t.rank}
        written = {path for path in run.writes if path.startswith(("models/", "adapters/"))}
        assert models | adapters == written


def test_the_night_that_the_facts_describe():
    """FACTS section 2: 3.7B tokens × 3 epochs online; with attention, which they leave out at 16
    layers, a tenth more."""
    (t,) = works()["01_distill-50m"].trainings
    assert t.steps == round(11.1e9 / 262_144 + 0.5)
    attention = 2 * 2048 * (3 * 512 * 8 + 1024 * 16) * t.windows * 2048
    assert workload.training_flop(t) - attention == pytest.approx(9.2e18, rel=0.01)
    assert workload.training_flop(t, taught=0) == pytest.approx((313e6 + 50.3e6) * 11.1e9, rel=0.01)


def test_the_teacher_of_a_path_is_planned_with(tmp_path):
    larger = LlamaConfig(51_800, **SHAPES["teacher-300m"])
    (tmp_path / "config.json").write_text(json.dumps(shapes.to_hf(larger)))
    found = works(TEACHER=str(tmp_path))
    assert workload.training_flop(found["01_distill-50m"].trainings[0]) == pytest.approx(
        11.8e18, rel=0.01
    )
    assert not found["00_teacher"].trainings  # it is given


def test_the_adapter_trains_on_the_hard_set_and_scoring_trains_nothing():
    found = works()
    windows = round(0.2 * 3.7e9 / 2048)
    assert found["03_lora-hard-r16"].trainings[0].windows == pytest.approx(4 * windows, rel=1e-4)
    assert found["02_hard_set"].tokens == found["04_merge_eval"].tokens == 0
    (narrow,), (wide,) = (found[f"03_lora-hard-r{rank}"].trainings for rank in (16, 32))
    more = workload.training_flop(wide) - workload.training_flop(narrow)  # FACTS: 1.26M weights
    assert more == pytest.approx(6 * 1.26e6 * found["03_lora-hard-r16"].tokens, rel=0.01)
    scored = (117e6 + 4.5e6 + 517e6 + 67e6) * 3.7e9  # both models once, with attention
    assert found["02_hard_set"].flop == pytest.approx(scored, rel=0.02)
    assert [t.name for t in found["05_progressive"].trainings] == ["150m", "75m", "75m-direct"]


def test_cached_targets_are_made_once_a_temperature_and_never_of_another_teacher():
    of = plan.asked(B200)
    shares = workload.cached_shares(of.works(), of.sizes[0].train)
    first, third = shares["120m"], pytest.approx(1 / 3)
    assert first == third and shares["50m-t4"] == third
    read = ("50m", "55m", "80m", "50m-seed2", "50m-hard-r16", "150m", "75m-direct")
    assert {shares[name] for name in read} == {0.0}
    assert "75m" not in shares and "50m-scratch" not in shares  # its teacher is 150m; it has none
    assert shares["scores"] == 0
    quick = plan.asked(B200 | dict(PROFILE="b200-quick"))
    few = workload.cached_shares(quick.works(), quick.sizes[0].train)
    assert few["scores"] == 1 and few["50m-seed2"] == 1 and few["55m"] == 0  # by the same order


def test_what_a_run_leaves_on_the_disk(tmp_path):
    """Epochs' weights, as fit keeps them."""
    shape, p = LlamaConfig(300, **SHAPES["student-small-smoke"], context=16), dict(batch_tokens=64)
    for epochs, limit, kept in ((3.0, 0, 2), (2.5, 0, 2), (3.0, 16 * 12, 1), (1.0, 0, 0)):
        p |= dict(epochs=epochs, token_limit=limit, ce_weight=1.0)
        windows = data.Windows(np.arange(8 * 16 + 1, dtype=np.uint32), 16)
        train.fit(Llama(shape), windows, train.Recipe(**p), folder=tmp_path / f"{epochs}-{limit}")
        found = list((tmp_path / f"{epochs}-{limit}").glob("epoch-*"))
        t = workload.Training("", shape, None, 1.0, *workload.counts(8, p, 16), p)
        assert workload.epochs_kept(t, 8) == len(found) == kept


# --- what is known of the tokens and the teacher


def test_tokens_at_hand_are_counted_and_a_kept_hard_set_too(folder):
    found = plan.size_of(folder / "tokens", folder, 0.5)
    assert (found.vocab_size, found.context) == (300, 32)
    opened = token_files.open_tokens(folder / "tokens")
    assert (found.train, found.val) == (len(opened.train), len(opened.val))
    assert found.hard == round(found.train / 2)
    choice = {"share": 0.1, "threshold": 0.0, "windows_K": [2, 3, 5]}
    (folder / "hard_set.json").write_text(json.dumps(choice))
    assert plan.size_of(folder / "tokens", folder, 0.5).hard == 3
    (folder / "hard_set.json").unlink()  # 02 will score ten windows, and take half of those
    assert plan.size_of(folder / "tokens", folder, 0.5, 10 * 32 + 5).hard == 5


def test_an_estimate_tells_what_the_run_then_does(folder):
    """From the run folder alone; and the random numbers after it are those without it."""
    given = parameters.read(ROOT / "params/smoke/01_distill-50m.yaml") | {"out": str(folder)}
    p = parameters.check("01_distill", given, paths=False)
    torch.manual_seed(0), np.random.seed(0)
    wanted = torch.rand(1), np.random.rand()
    torch.manual_seed(0), np.random.seed(0)
    told = plan.estimate(p, folder, "cpu")
    assert (torch.rand(1), np.random.rand()) == wanted
    assert told == json.loads(json.dumps(told))
    assert 0 < told["seconds_low"] < told["seconds_high"] < 3600
    tokens = token_files.open_tokens(folder / "tokens")
    order = train.order(np.arange(len(tokens.train)), train.recipe(p), tokens.context)
    assert told["steps"] == len(order)
    assert told["tokens"] == sum(map(len, order)) * tokens.context
    resident = workload.status("VmRSS", 0) / 2**20
    assert resident < told["peak_memory_mib"] < resident + 400


def test_every_notebook_of_a_run_folder_has_an_estimate(folder):
    """Also with an adapter to merge; what trains nothing has no tokens."""
    small = LlamaConfig(300, **SHAPES["student-small-smoke"], context=32)
    Llama(small).save(folder / "models/50m")
    lora.save(lora.attach(Llama(small), 2), folder / "adapters/50m-hard", "models/50m")
    for begun in ("models/.75m.new/config.json", "adapters/.a.new/adapter_config.json"):
        (folder / begun).parent.mkdir()
        (folder / begun).write_text("{")  # by a process that was killed
    for path in sorted((ROOT / "params/smoke").glob("*.yaml")):
        given = parameters.read(path) | {"out": str(folder)}
        given |= {"teacher": f"{folder}/models/teacher"} if path.stem.startswith("00") else {}
        p = parameters.check(parameters.notebook_of(path.stem), given, paths=False)
        told = plan.estimate(p, folder, "cpu")
        assert told["flop"] > 0 and told["seconds_high"] > told["seconds_low"] > 0
        assert (told["tokens"] > 0) == path.stem.startswith(("01", "03", "05"))


# --- what is said


@pytest.mark.parametrize("profile", [p for p in PROFILES if p.startswith("b200")])
def test_the_plan_fits_a_narrow_screen_and_names_every_run_and_file(profile):
    found = plan.plan(dict(PROFILE=profile, DEVICE="b200", PRICE_PER_HOUR="4.5",
                           OUT="/tmp/no-such-run-folder"))  # fmt: skip
    assert max(map(len, found.splitlines())) <= 80
    for run in graph.book(profile, paths=False):
        assert len(re.findall(rf"^{run.run} ", found, re.M)) == 2  # work, and time
    # FACTS section 2, for both vocabularies, as no tokens tell which
    for words in (r"teacher +258\.6 M +53\.0 M", r"120m +124\.7 M +39\.8 M", r"80m +84\.0 M +33\.2",
                  r"50m +52\.2 M +26\.5 M .* 30\.5 MB +within", r"55m +55\.\d M +26\.5 M .*within",
                  r"50m +69\.8 M +44\.1 M .*ABOVE", r"120m +151\.1 M"):  # fmt: skip
        assert re.search(words, found), words
    assert re.search(r"within 33 MB +50m 30\.5 MB, 55m 32\.\d MB", found)
    assert "nominal" in found and "cache         178 GB a temperature" in found


def test_a_price_is_hours_times_it():
    assert units.money((3600, 7200), 4.5) == "4.5–9.0"
    assert units.money((36_000, 72_000), 4.5) == "45–90"
    online = {one.run: workload.seconds(one, workload.DEVICES["h100"]) for one in works().values()}
    low, high = plan.total(online)
    found = plan.plan(B200 | dict(DEVICE="h100", PRICE_PER_HOUR="2"))
    assert f"cost          {low / 1800:,.0f}–{high / 1800:,.0f};" in found


def test_hours_are_flop_over_what_the_device_reaches():
    one, device = works()["01_distill-50m"], workload.DEVICES["b200"]
    low, high = workload.seconds(one, device)
    training = workload.training_flop(one.trainings[0])
    scoring = (one.flop - training) / 1.1e15
    assert low == pytest.approx(training / 2.25e15 / 0.45 + scoring / 0.85 + workload.BEGIN_S[0])
    assert high == pytest.approx(
        training / 2.25e15 / 0.2 + scoring / 0.3 + workload.BEGIN_S[1] + workload.COMPILE_S
    )
    cached = workload.seconds(one, device, {"50m": 0.0, "scores": 0.0})
    assert cached[0] < low and cached[1] < high


def test_hours_of_b200_are_told_for_a_b200_where_there_is_no_gpu():
    without = not Path("/dev/nvidia0").exists()
    assert (plan.device_of("", "b200")[0] == workload.DEVICES["b200"]) == without
    assert plan.device_of("l4", "tiny") == (workload.DEVICES["l4"], "published")


@pytest.mark.parametrize(
    "span, words",
    [((11_160, 24_840), "3.1–6.9 h"), ((720, 900), "12–15 min"), ((19.6, 20.2), "20 s"),
     ((0.021, 0.04), "0.021–0.04 s"), ((36_000, 400_000), "10–111 h")],
)  # fmt: skip
def test_a_time_has_one_unit_and_two_digits(span, words):
    assert units.duration(*span) == words


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
    code = "import sys\nfrom tdbook.workflow import plan\nplan.plan(dict(PROFILE='b200', DEVICE='b200', "
    code += "OUT='/tmp/no-such-run-folder'))\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


# --- doctor


def examined(folder: Path, profile: str, *runs: str) -> subprocess.CompletedProcess:
    """The doctor on a profile of these runs alone: each of its shapes is a process with a torch."""
    root = folder / "root"
    shutil.copytree(ROOT / "notebooks", root / "notebooks", dirs_exist_ok=True)
    (root / "params" / profile).mkdir(parents=True)
    for run in runs:
        text = (ROOT / f"params/smoke/{run}.yaml").read_text().replace("outputs/smoke", str(folder))
        (root / f"params/{profile}/{run}.yaml").write_text(text)
    environment = os.environ | {"TDLIB_ROOT": str(root), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tdbook", "doctor", f"PROFILE={profile}"]
    command += [f"TEACHER={folder}/models/teacher"]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_healthy_machine_passes_with_a_line_for_each_shape(folder):
    done = examined(folder, "one", "00_teacher", "01_distill-50m")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and all(line.startswith("✓ ") for line in lines), done
    for words in ("torch: 2", "tokens: 5 k for training", "run folder: ", "disk: ", "memory: at m",
                  "two steps of 50m: 0"):  # fmt: skip
        assert any(words in line for line in lines), words
    assert not (folder / "results").exists()  # nothing is left behind


def test_damaged_tokens_fail_with_their_line(folder):
    (folder / "tokens/train.bin").write_bytes(b"\0" * 12_000)
    done = examined(folder, "two", "00_teacher")
    assert done.returncode == 1
    assert "✗ tokens: " in done.stdout and "12,000 bytes, by meta.json 20,000" in done.stdout


def test_what_this_machine_cannot_do_is_named(folder):
    big = int(20e9)
    models = list(works().values())
    with pytest.raises(ValueError, match="none yet"):
        doctor._tokens(plan.asked(B200))
    with pytest.raises(ValueError, match="01_distill-120m 25") as error:
        doctor._memory(models, "cuda", big)
    assert "01_distill-50m 14" not in str(error.value)
    assert doctor._memory(models, "cuda", 9 * big).startswith("at most 36")
    with pytest.raises(ValueError, match=r"1e.09 GB needed|TB needed"):
        doctor._disk(folder, [replace(models[0], disk=10**18)])
    assert doctor._writable(folder / "a/b") == f"{folder / 'a/b'} can be written"
    with pytest.raises(ValueError, match=r"^/proc cannot be written"):  # or a read-only disk
        doctor._writable(Path("/proc/new"))


@pytest.mark.parametrize(
    "built, gpu, runs",
    [
        (["sm_80", "sm_90"], (9, 0), True),
        (["sm_80", "sm_90"], (8, 6), True),  # binary code of the same major version
        (["sm_80", "sm_90"], (10, 0), False),  # a B200, an older torch
        (["sm_80", "sm_90a"], (10, 0), False),
        (["sm_90", "compute_90"], (10, 0), True),  # compiled by the driver
        (["sm_100"], (10, 0), True),
        (["sm_120", "compute_120"], (10, 0), False),
        (["sm_89"], (8, 6), False),
    ],
)
def test_torch_has_code_for_a_gpu_or_not(built, gpu, runs):
    assert doctor.covers(built, *gpu) is runs


# --- b200-quick


@pytest.mark.parametrize(
    "path", sorted((ROOT / "params/b200").glob("*.yaml")), ids=lambda p: p.stem
)
def test_b200_quick_is_b200_with_fewer_tokens_and_nothing_else(path):
    full, quick = (
        yaml.safe_load(p.read_text()) for p in (path, ROOT / "params/b200-quick" / path.name)
    )
    changed = {"profile": "b200-quick", "out": "outputs/b200-quick"}
    changed |= {"token_limit": 200_000_000} if "token_limit" in full else {}
    assert quick == full | changed


def test_b200_quick_has_the_runs_of_b200():
    full, quick = ((ROOT / "params" / p).glob("*.yaml") for p in ("b200", "b200-quick"))
    assert {path.name for path in full} == {path.name for path in quick}


def test_scouting_trainings_take_about_an_hour():
    """With a given teacher, and without what is scored: 02 and 04 go over the whole text."""
    trained = (t for run, one in works(PROFILE="b200-quick").items() if run != "00_teacher"
               for t in one.trainings)  # fmt: skip
    spans = [workload.training_seconds(t, workload.DEVICES["b200"], 1.0) for t in trained]
    assert sum(low for low, _ in spans) < 3600 < sum(high for _, high in spans) < 3 * 3600
