"""What is current has one judge: what the graph runs is what DRY, status and the index said of it.

A chain of four runs, made in this process by a stand-in that writes through the real records.
"""

import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tdbook.runs import hashes, heartbeat, machine, ownership, parameters
from tdbook.runs.notebooks import reads
from tdbook.runs.parameters import ParameterError
from tdbook.runs.running import start
from tdbook.workflow import graph, plan, run_pages, scheduler, status, workload
from tdlib import files, hard_set
from tests.helpers import refused
from tests.small_book import COMMON, write
from tests.tdbook.runs.test_parameters import CASES

CHAIN = ("00_teacher", "01_distill-a", "02_hard_set", "03_lora-h")


@pytest.fixture
def profile() -> str:
    return "night"


@pytest.fixture
def out(root, monkeypatch, profile) -> Path:
    """The run folder of a chain of four runs in a quick profile and in one that is not."""
    monkeypatch.setattr(machine, "commit", lambda: ("abc", False))
    fake = SimpleNamespace(works=[SimpleNamespace(seconds=lambda device: (1.0, 1.0))] * len(CHAIN))
    fake.runs = [SimpleNamespace(name=run) for run in CHAIN]
    monkeypatch.setattr(plan, "asked", lambda wanted: fake)
    monkeypatch.setattr(workload, "device_of", lambda *_: (SimpleNamespace(name="cpu"), "here"))
    for notebook, own in CASES["chain"].items():
        source = COMMON.format(notebook=notebook) + own
        content = json.loads((root / "notebooks/00_teacher.ipynb").read_text())
        content["cells"][0]["source"] = source.splitlines(keepends=True)
        (root / f"notebooks/{notebook}.ipynb").write_text(json.dumps(content))
    (root / "words.txt").write_text("words")
    (root / "params/tiny/00_teacher.yaml").unlink()
    for run in CHAIN:
        given(root, profile, run)
    return root / "outputs/here"


def given(root: Path, profile: str, run: str, **values) -> None:
    write(root / f"params/{profile}/{run}.yaml", {"run": run, "profile": profile} | values)


def told(profile: str = "night", **pairs) -> graph.Wanted:
    """A command, which the run folder keeps, as `make` has it."""
    words = {"PROFILE": profile, "OUT": "outputs/here", "TEXT": "words.txt"} | pairs
    wanted = graph.wanted("book", words)
    files.write_whole(parameters.ROOT / "outputs/here" / graph.CONFIG, json.dumps(wanted.config))
    return wanted


def content_of(run: str, p: dict, read: dict[str, str]) -> dict[str, str]:
    """What a run writes: seeds of one ten come out the same."""
    said = "|".join([run, str(p["seed"] // 10), *read.values()])
    match run[:2]:
        case "00":
            found = {"tokens/train.bin": read["text"], "tokens/documents.tsv": "0\ta\n"}
            return found | {"models/teacher/w": said}
        case "01":
            return {f"models/{p['student']}/w": said, f"models/{p['student']}/more": ""}
        case "02":
            rows = {"windows_K": [p["seed"] // 10], "threshold": 1.0, "share": 0.2}
            rows = json.dumps(rows | {"words": "by 02_hard_set's parameters: all"})
            return {"scores/02_hard_set.npy": said, "hard_set.json": rows}
    return {f"adapters/{p['adapter']}/w": said}


def read_by(out: Path, run: str, names: list[str]) -> dict[str, str]:
    first = {"text": (parameters.ROOT / "words.txt").read_text()} if run[:2] == "00" else {}
    for name in names:
        paths = sorted((out / name).glob("*[!E]")) or [out / name]
        first[name] = "".join(path.read_text() for path in paths)
    return first


def make_one(one) -> None:
    """As a notebook would."""
    read = read_by(one.out, one.run, reads(one.run, one.parameters, []))
    this = start(one.notebook, one.parameters)
    assert not this.current
    for path, text in content_of(one.run, one.parameters, read).items():
        this.path(path).write_text(text)
    this.path(f"figures/{one.run}-x.svg").write_text(one.run)
    this.finding(f"{one.run} is done.")
    this.finish()


def make(wanted: graph.Wanted) -> list[str]:
    """What really runs, by the Snakefile's marks and Snakemake's rule: a job whose mark is gone, or
    below one that has run, is executed, and a run that is current says so."""
    found = graph.jobs(wanted.config)
    reasons = hashes.judge(found, found, wanted.before)
    assert not any(hashes.damage(found[n].out, n) for n, why in reasons.items() if not why)
    touched, made = {}, []

    def visit(name: str) -> bool:
        if name not in touched:
            above = [visit(needed) for needed in found[name].needs]
            touched[name] = bool(reasons[name]) or any(above)
            one = found[name]
            if touched[name] and hashes.why(one.out, one.run, one.parameters):
                make_one(one)
                made.append(name)
        return touched[name]

    for name in graph.targets_of(wanted, found):
        visit(name)
    return sorted(made)


class Oracle:
    """What each run was made from, as plain values: knows nothing of hashes."""

    def __init__(self, quick: bool):
        self.quick, self.last = quick, {}

    def plan(self, wanted: graph.Wanted, out: Path, code: dict[str, int]) -> list[str]:
        found, scope, made = graph.jobs(wanted.config), set(), []
        waiting = graph.targets_of(wanted, found)
        while waiting:
            name = waiting.pop()
            scope.add(name)
            waiting += [] if name in wanted.before else found[name].needs
        now: dict[str, str] = {}
        for name in CHAIN:
            one, written = found[name], {path: out / path for path in found[name].writes}
            there = all(path.exists() for path in written.values())
            now |= read_by(out, "99", [path for path, place in written.items() if place.exists()])
            if name not in scope or name in wanted.before:
                continue
            read = {path: now.get(path, "gone") for path in reads(one.run, one.parameters, [])}
            if name[:2] == "00":
                read["text"] = (parameters.ROOT / "words.txt").read_text()
            decisive = [one.parameters.get(key) for key in ("seed", "learning_rate")]
            key = (decisive, self.quick and code[one.notebook], read)
            if self.last.get(name) != key or not there or name in wanted.redo:
                self.last[name] = key
                made.append(name)
                texts = sorted(content_of(name, one.parameters, read).items())
                for path in one.writes:
                    now[path] = "".join(text for n, text in texts if n.startswith(path))
        return made


def change(rng: random.Random, root: Path, profile: str, state: dict, code: dict) -> None:
    """One thing that an owner, a developer or an accident may do."""
    run, out = rng.choice(CHAIN), root / "outputs/here"
    match rng.choice(["seed", "seed", "rate", "text", "code", "gone", "beside", "touch"]):
        case "seed":
            state[run] |= {"seed": rng.choice([1, 2, 15, 16])}
        case "rate":
            run = "01_distill-a"
            state[run] |= {"learning_rate": rng.choice([1e-3, 2e-3])}
        case "text":
            (root / "words.txt").write_text(rng.choice(["words", "other words"]))
        case "code":
            notebook = parameters.notebook_of(run)
            code[notebook] += 1
            path = root / f"notebooks/{notebook}.ipynb"
            content = json.loads(path.read_text())
            content["cells"][2]["source"] = f"# changed {code[notebook]}"
            path.write_text(json.dumps(content))
        case "gone":
            path = out / rng.choice(["models/a", "scores/02_hard_set.npy", "adapters/h"])
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
        case "beside":
            for place in ("models/a", "models/teacher"):
                if (out / place).is_dir():
                    (out / place / "LICENSE").write_text(str(rng.random()))
        case "touch":
            for path in out.glob("models/*/w"):
                os.utime(path, (rng.randrange(10**9), 1))
    given(root, profile, run, **state[run])


@pytest.mark.parametrize("profile", ["tiny", "night"])
def test_what_runs_is_what_everyone_said_after_any_change(root, out, profile):
    rng, oracle = random.Random(19), Oracle(profile in hashes.QUICK)
    state, code = {run: {} for run in CHAIN}, {parameters.notebook_of(run): 0 for run in CHAIN}
    expected = oracle.plan(told(profile), out, code)
    assert make(told(profile)) == expected == [*CHAIN]
    kinds = set()
    for round_ in range(16):
        for _ in range(rng.choice([0, 1, 1, 2])):
            change(rng, root, profile, state, code)
        pairs = {}
        if rng.random() < 0.5:
            pairs["ONLY"] = rng.choice(CHAIN)
        if rng.random() < 0.4:
            pairs["REDO"] = rng.choice(CHAIN)
        if rng.random() < 0.3 and (out / "models/a").exists():
            pairs["FROM"] = rng.choice(["01", "02"])
        try:
            wanted = told(profile, **pairs)
        except ParameterError as error:  # FROM, and a wish for what comes before it
            assert "FROM=" in str(error)
            continue
        # one answer, before anything runs
        found = graph.jobs(wanted.config)
        reasons = hashes.judge(found, graph.targets_of(wanted, found), wanted.before)
        plain = hashes.judge(graph.jobs(told(profile).config), CHAIN)
        done = {name: not reason for name, reason in plain.items()}
        lines = (line for line in plan.dry(told(profile)).splitlines() if " " in line)
        lines = {line.split()[0]: "is done" in line for line in lines}
        assert {name: lines[name] for name in CHAIN} == done, pairs
        words = {row["run"]: heartbeat.word(row) for row in status.rows(out)}
        for name, word in words.items():
            assert (word == "done") == (done[name] and not status.row(out, name)["older"]), pairs
        if round_ % 8 == 0:
            page = run_pages.index(out).read_text("utf8")
            assert page.count(">outdated<") == [*words.values()].count("outdated")
        # and then just that
        expected = oracle.plan(wanted, out, code)
        made = make(wanted)
        assert made == expected, (round_, pairs, reasons)
        certain = {n for n, why in reasons.items() if why and not why.startswith(hashes.AFTER)}
        assert certain <= {*made} <= {n for n, why in reasons.items() if why}, (pairs, reasons)
        kinds |= {*pairs} | {f"{len(made)} ran"}
        found = graph.jobs(wanted.config | {"redo": []})
        again = hashes.judge(found, wanted.only or CHAIN, wanted.before)
        assert not any(again.values()), again
    assert {"ONLY", "REDO", "FROM", "0 ran", "1 ran"} < kinds


STAND_IN = """import sys, types
no_pages = types.SimpleNamespace(page=print, index=print, refresh=print)
sys.modules["tdbook.workflow.run_pages"] = no_pages
class PapermillExecutionError(Exception): pass
def execute_notebook(source, out, given, **_):
    from tests import small_book
    made = small_book.make(given["run"].split("-")[0], given, str(given))
    open(given["out"] + "/calls", "a").write(f"{given['run']} " * made)
"""
BY_HAND = {"windows_K": [1, 3], "threshold": 0.5, "share": 0.1, "words": "by hand, by threshold"}


def test_snakemake_repeats_a_stale_run_in_the_middle_of_what_is_asked_for(root, out, monkeypatch):
    make(told())
    given(root, "night", "01_distill-a", seed=20)
    files.write_whole(root / "stand_in/papermill/__init__.py", STAND_IN)
    monkeypatch.setenv("PYTHONPATH", f"{root / 'stand_in'}:{Path(__file__).parents[3]}")
    monkeypatch.setattr(heartbeat, "die_with_parent", lambda *_: None)
    monkeypatch.setattr(run_pages, "refresh", lambda out: out)
    assert scheduler.make(told(ONLY="02_hard_set")) == 0
    assert (out / "calls").read_text().split() == ["01_distill-a", "02_hard_set"]


CUT = {
    "cut": lambda raw: raw[: len(raw) // 2],
    "emptied": lambda raw: b"",
    "turned": lambda raw: raw[:-1] + b"\x7f",
    "zeroed": lambda raw: bytes(len(raw)),  # at the same size and time, as a disk may do it
}
MAKERS = {"models": CHAIN[1], "tokens": CHAIN[0], "adapters": CHAIN[3]}  # others: 02


def hurt(out: Path, table: str) -> Iterator[tuple[str, str]]:
    """One file after the other, in a run folder that is else whole: how, and which."""
    shutil.copytree(out, whole := out.with_name("whole"))
    for how, name in re.findall(r"([\w.]+) (\S+)", table):
        shutil.rmtree(out)
        shutil.copytree(whole, out)
        stat, raw = (out / name).stat(), (out / name).read_bytes()
        (out / name).unlink()
        if how in CUT:
            (out / name).write_bytes(CUT[how](raw))
        if how == "linked":  # to a file of another, who has changed it since
            (out / name).symlink_to(mine := out.with_name("mine"))
            mine.write_bytes(raw + b" more")
        if how == "zeroed":
            os.utime(out / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        yield how, name


def test_damage_is_told_by_file_with_what_makes_it_again_and_nothing_is_made_of_it(out):
    make(told())
    for how, name in hurt(out, CASES["hurt"]):
        maker = MAKERS.get(name.split("/")[0], CHAIN[2])
        remedy, full = f"{maker} wrote it otherwise: REDO={maker} makes it again", how == "zeroed"
        lines = [line for line in status.text(out, full=full).splitlines() if remedy in line]
        assert len(lines) == 1 and f"{name} " in lines[0] and "damaged" in lines[0], (how, name)
        if full:  # no time and no size moved
            assert "damaged" not in status.text(out)
            continue
        for ask in (plan.dry, scheduler.make):
            with pytest.raises(ParameterError, match=f"{name} .*{remedy}"):
                ask(told())
        if maker.startswith("01"):
            assert remedy in run_pages.index(out).read_text("utf8")
            assert f"REDO={maker}` makes again" in (out / "morning.md").read_text("utf8")
        for one in graph.jobs(told().config).values():  # as plain papermill begins
            if any(name.startswith(path) for path in reads(one.run, one.parameters, [])):
                with refused("reads what is damaged: ", remedy):
                    start(one.notebook, one.parameters)
        assert make(told(REDO=maker)) == [maker]  # the way out: the same comes out
        assert (out / name).read_bytes() == (out.with_name("whole") / name).read_bytes()
        assert [path.name[: len(maker)] for path in (out / "old").iterdir()] == [maker]
        assert make(told()) == []


def test_files_laid_beside_copied_folders_and_choices_by_hand_are_no_damage(root, out):
    make(told())
    shutil.copytree(out, copy := root / "outputs/copy", copy_function=shutil.copyfile)
    (copy / "models/a/LICENSE").write_text("mine")
    assert [heartbeat.word(row) for row in status.rows(copy)] == ["done"] * 4
    for rows in ([3, 1], [-1, 2], [1, 1], ["1"], [1.5], None):
        (copy / "hard_set.json").write_text(json.dumps(BY_HAND | {"windows_K": rows}))
        assert "hard_set.json is no whole choice of" in hashes.damage(copy, "02_hard_set")[0]
    (out / "notes.txt").write_text("mine")
    (out / "hard_set.json").write_text(json.dumps(BY_HAND))
    words = {row["run"]: heartbeat.word(row) for row in status.rows(out)}
    assert words == dict.fromkeys(CHAIN, "done") | {"03_lora-h": "outdated"}
    assert make(told()) == ["03_lora-h"]


def test_a_broken_record_is_named_and_means_that_its_run_is_made_again(out):
    make(told())
    with status.session(out, [*CHAIN], "make book", None) as session:
        session["code"] = 0
    for _, name in hurt(out, CASES["records"]):
        again = [Path(name).stem] if name.startswith(("results", "hashes")) else []
        for said in (status.text(out), run_pages.index(out).read_text("utf8")):
            if again:
                assert f"{name} is broken: the next `make book` makes it again" in said
        if not again and "." == name[0]:
            assert f"{out / name} is broken" in status.text(out)
        if again:
            assert f"{name} is broken" in plan.dry(told())
        with status.session(out, [], "make book", None) as session:
            session["code"] = 0
        assert make(told()) == again, name
        assert len(list(out.glob("old/*"))) == len(again)
    assert make(told()) == []


def test_a_finished_run_is_kept_whole_in_old_whatever_the_reason_it_is_made_anew(root, out, capsys):
    make(told())
    lists = (CASES["whole"].split(), CASES["others of it"].split())
    whole, others = ({name: f'"{name}"' for name in names} for names in lists)
    for name, text in (whole | others).items():
        files.write_whole(out / name, text)
    whole["models/a/w"] = (out / "models/a/w").read_text()
    given(root, "night", "01_distill-a", learning_rate=5e-4)
    assert make(told())[0] == "01_distill-a"
    (old,) = out.glob("old/01_distill-a-*")
    assert {name: (old / name).read_text() for name in whole} == whole
    assert (old / "results/01_distill-a.json").exists() and (old / "hashes").is_dir()
    assert {name: (out / name).read_text() for name in others} == others
    gone = set(whole) - {"models/a/w", "figures/01_distill-a-x.svg"}
    assert not [name for name in gone if (out / name).exists()]
    note = "learning_rate was 0.001, is 0.0005: what it made before is in outputs/here/old/"
    assert note + old.name in capsys.readouterr().out
    for rate in (1e-4, 2e-4, 3e-4):  # all within a second
        given(root, "night", "01_distill-a", learning_rate=rate)
        make(told(ONLY="01_distill-a"))
    assert len(list(out.glob("old/01_distill-a-*/models/a/w"))) == 4


def test_a_hard_set_chosen_by_hand_stays_until_a_redo_or_other_tokens(root, out, capsys):
    make(told())
    chosen = hard_set.HardSet(np.array([7]), 1.0, 0.2)

    def by_hand_then(*above: str, **values) -> bool:
        """Whether what was chosen by hand is in force after 02 was made anew."""
        (path := out / "hard_set.json").write_text(json.dumps(BY_HAND))
        given(root, "night", "02_hard_set", **values)
        for run in above:
            make(told(ONLY=run))
        one = graph.jobs(told().config)["02_hard_set"]
        this = start(one.notebook, one.parameters)
        assert not this.current
        this.path("scores/02_hard_set.npy").write_text("x")
        ownership.keep_hard_set(chosen, path, "by 02_hard_set's parameters: the hardest")
        this.finish()
        return json.loads(path.read_text())["windows_K"] == [1, 3]

    assert by_hand_then(seed=2)
    assert "stays: REDO=02_hard_set replaces it" in capsys.readouterr().out
    assert not by_hand_then(seed=2, redo=True)
    (root / "words.txt").write_text("other words")
    assert not by_hand_then("00_teacher", "01_distill-a", seed=2)
    assert "the hard set chosen by hand goes too" in capsys.readouterr().out
    kept = [json.loads(p.read_text())["windows_K"] for p in out.glob("old/*/hard_set.json")]
    assert kept.count([1, 3]) == 2


def test_a_fingerprint_is_what_it_was_at_fc5e254(tmp_path):
    """By hashes made there, so that older nights are current: no hidden file, no card."""
    for name in ("b", "a/c", "a/.hidden", ".made.json", "README.md", "a/README.md"):
        files.write_whole(tmp_path / name, name)
    found, alone = hashes.fingerprint(tmp_path), hashes.fingerprint(tmp_path / "b")
    assert found["sha256"] == "7254bf360ffaa7647369c882f2651996ad36595e22d89aa25842718439bd4d12"
    assert found["each"] == {"a/c": "24586ae9e14fc882", "b": "3e23e8160039594a"}
    assert found["files"]["b"] == alone["files"]["."] == [1, (tmp_path / "b").stat().st_mtime_ns]
    assert alone["sha256"] == "053f2dd9243e6e5dbac9dd52ca74afad03c2185949f824f6a3792e92966351f4"
    assert alone["each"] == {".": "3e23e8160039594a"}
