"""Sweeps: every point once, in its own folder; the parent is only read; a failure costs itself."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tdbook import __main__
from tdbook.runs import hashes, notebooks, sweeps
from tdbook.workflow import graph, run_pages, scheduler, status
from tdlib.files import write_whole
from tests import small_book
from tests.helpers import content
from tests.small_book import wait_for, write
from tests.small_book import yaml as run_yaml
from tests.tdbook.runs.test_parameters import CASES

RATES = {"like": "01_distill-a", "grid": {"learning_rate": [1e-3, 2e-3]}, "seeds": [1, 2]}


def sweep(root: Path, profile: str = "tiny", **given) -> Path:
    return write(root / f"params/{profile}/sweeps/rates.yaml", RATES | given)


def own(out: Path) -> dict[str, bytes]:
    return {name: raw for name, raw in content(out).items() if not name.startswith("sweeps/")}


@pytest.fixture
def book(root):
    run_yaml(root, "01_distill-a")
    run_yaml(root, "04_merge_eval")
    return root


def test_points_are_combinations_and_single_ones_with_each_seed_and_go_before_what_is_fixed(book):
    run_yaml(book, "01_distill-a", seed=7, checkpoint_minutes=3.0)
    sweep(book, points=[{"student": "b"}], fixed={"checkpoint_minutes": 5.0})
    points = sweeps.read("tiny", "rates").points
    starts = ("learning_rate0.001", "learning_rate0.002", "studentb")
    assert list(points) == [f"{start}-seed{seed}" for start in starts for seed in (1, 2)]
    assert points["learning_rate0.002-seed1"] == {"learning_rate": 2e-3, "seed": 1}
    sweep(book, fixed={"checkpoint_minutes": 5.0}, seeds=[])
    points = graph.swept("rates", "tiny", graph.book("tiny"), {})
    names = ("learning_rate", "seed", "checkpoint_minutes")
    found = [[one.parameters[name] for name in names] for one in points]
    assert found == [[1e-3, 7, 5.0], [2e-3, 7, 5.0]]
    assert all(one.needs == ("00_teacher",) for one in points)


REFUSED = [("rates", given, "sweep NAME=rates", says) for given, says in CASES["sweeps"]]
REFUSED += [("", {}, " ".join(words), re.escape(says)) for words, says in CASES["commands"]]
REFUSED += [(run, given, "book", says) for run, given, says in CASES["books"]]


@pytest.mark.parametrize("name, given, words, says", REFUSED)
def test_what_cannot_be_meant_gets_one_line(book, name, given, words, says, capsys, monkeypatch):
    sweep(book, **(given if name == "rates" else {}))
    if words == "book":
        run_yaml(book, name, **given)
    monkeypatch.setenv("PATH", "")  # no sbatch
    assert __main__.main([*words.split(), "PROFILE=tiny"]) == 1
    said = capsys.readouterr().out.strip()
    assert re.search(says, said) and "\n" not in said, said
    assert name != "rates" or "rates.yaml" in said or "sweep rates" in said
    assert not (book / "outputs/tiny/sweeps").exists()


def test_every_sweep_that_we_ship_can_be_meant():
    for profile in ("smoke", "tiny", "small", "b200"):
        found = graph.book(profile, paths=False)
        for name in sweeps.names(profile):
            points = graph.swept(name, profile, found, {})
            assert 2 <= len(points) <= 100 and all(one.needs for one in points), (profile, name)
    assert len(sweeps.read("smoke", "forty").points) == 40
    assert sweeps.names("b200") == sweeps.names("tiny")


def by_hand(wanted: graph.Wanted, *names: str) -> list[str]:
    """Make some of the runs in this process, as their notebooks would; those that were not done."""
    jobs, made = scheduler.prepare(wanted.config), []
    for job in (jobs[name] for name in names or jobs):
        if sweeps.parent(job.out):
            sweeps.link(job.out, notebooks.reads(job.run, job.parameters, []))
        found = sorted(sweeps.results(job.out, job.parameters.get("sweeps", "")))
        if small_book.make(job.notebook, job.parameters, job.run, found.copy):
            made.append(job.name)
    return made


def test_each_point_is_made_once_in_its_own_folder_and_the_parent_is_only_read(book):
    sweep(book, seeds=[])
    wanted = graph.wanted("sweep", {"PROFILE": "tiny", "NAME": "rates"})
    assert len(by_hand(wanted)) == 5
    assert graph.targets_of(wanted, jobs := graph.jobs(wanted.config)) == [*jobs][3:]
    for one in (job for job in graph.jobs(wanted.config).values() if job.sweep):
        assert graph.check_yaml(one.yaml, {}, paths=False) == one.parameters
    out, points = book / "outputs/tiny", sweeps.read("tiny", "rates").points
    before = own(out)
    for point in points:  # linked, and what it wrote is its own
        place = out / "sweeps/rates" / point
        assert (place / "models/teacher").is_symlink() and (place / "tokens").is_symlink()
        assert not (place / "models/a").is_symlink()
        assert (place / "models/a/w").read_text() == f"01_distill-{point}"
    sweep(book, grid={"learning_rate": [5e-3, 1e-3, 2e-3]}, seeds=[])
    assert points.items() < sweeps.read("tiny", "rates").points.items()
    new, jobs = ["rates/01_distill-learning_rate0.005"], graph.jobs(wanted.config)
    assert [n for n, why in hashes.judge(jobs, jobs).items() if why] == new
    assert by_hand(wanted, *new) == new and own(out) == before
    assert not any(hashes.judge(jobs, jobs).values())
    run_yaml(book, "04_merge_eval", sweeps="rates")  # 04 reads those that its YAML names
    assert by_hand(wanted, "04_merge_eval") == ["04_merge_eval"]
    record = json.loads((out / "results/04_merge_eval.json").read_text())
    places = [f"sweeps/rates/{point}" for point in sweeps.read("tiny", "rates").points]
    assert record["remembered"]["once"] == sorted(places)
    sweep(book, seeds=[], fixed={"seed": 7})
    reasons = hashes.judge(jobs := scheduler.prepare(wanted.config), jobs)
    assert reasons["rates/01_distill-learning_rate0.002"] == "seed was 1, is 7"
    assert reasons["04_merge_eval"] == f"reads {places[0]} no longer"


def test_the_page_that_an_older_book_made_of_a_sweep_is_told_and_counts_as_no_point(book):
    sweep(book, seeds=[])
    by_hand(graph.wanted("sweep", {"NAME": "rates"}))
    out, run = book / "outputs/tiny", "04_merge_eval-rates"
    for kind in ("results", "hashes", "state"):
        was = (out / f"{kind}/04_merge_eval.json").read_text()
        new = was.replace("04_merge_eval is done.", "The second is best.")
        write_whole(
            out / f"sweeps/rates/{kind}/{run}.json", new.replace('"04_merge_eval"', f'"{run}"')
        )
    told = {one["run"]: one["state"]["state"] for one in status.rows(out / "sweeps/rates")}
    assert [*told][-1] == run and {*told.values()} == {"done"}
    assert status.sweeps_of(out)["rates"]["counts"] == {"done": 2}
    assert "The second is best." in run_pages.index(out / "sweeps/rates").read_text("utf8")
    assert "REDO" not in status.text(out / "sweeps/rates")


def test_a_point_whose_kernel_is_killed_keeps_no_other_from_being_made(book):
    sweep(book, grid={"student": ["slow", "b"]}, seeds=[])
    wanted = graph.wanted("sweep", {"PROFILE": "tiny", "NAME": "rates"})
    by_hand(wanted, "00_teacher", "01_distill-a")
    out, run = book / "outputs/tiny", "01_distill-studentslow"
    slow = out / "sweeps/rates/studentslow"
    command = [sys.executable, "-m", "tdbook", "sweep", "NAME=rates", "PROFILE=tiny"]
    process = subprocess.Popen(command, stdout=-1, text=True)
    wait_for(lambda: status.row(slow, run)["state"].get("step") == 3)
    assert f"{run}  running      step 3 of 3 · loss 4.32" in status.text(out / "sweeps/rates")
    os.kill(status.row(slow, run)["state"]["pid"], signal.SIGKILL)
    told = process.communicate(timeout=300)[0]
    assert process.returncode == 1
    assert re.search(rf"{run} · lost: the kernel died.* · {slow}/", told)
    assert told.endswith("1 of 2 runs done · outputs/tiny/compare.html\n")
    assert "studentb" in (out / "compare.html").read_text("utf8")
    reasons = graph.judged(wanted, graph.jobs(wanted.config))  # of the same command again
    assert {name: why for name, why in reasons.items() if why} == {f"rates/{run}": "not finished"}
    assert status.sweeps_of(out)["rates"]["counts"] == {"done": 1, "lost": 1}
    morning = (out / "morning.md").read_text("utf8")
    assert f"{run}** lost" in morning
    assert "`make sweep NAME=rates PROFILE=tiny` goes on" in morning.split("## Next")[1]


def test_a_redo_that_was_stopped_is_not_repeated_by_the_same_command(book):
    by_hand(graph.wanted("book", {}), "00_teacher", "01_distill-a")
    wanted = graph.wanted("book", {"PROFILE": "tiny", "REDO": "01_distill-a"})
    out, run, jobs = book / "outputs/tiny", "01_distill-a", graph.jobs(wanted.config)
    os.utime(out / f"hashes/{run}.json", (0, 0))
    with pytest.raises(KeyboardInterrupt):  # stopped before all is made
        with status.session(out, [], wanted.command, None):
            assert scheduler._not_yet_redone(wanted, jobs) == (run,)
            assert by_hand(wanted, run) == [run]
            raise KeyboardInterrupt
    assert scheduler._not_yet_redone(wanted, jobs) == ()  # the same command goes on
    with status.session(out, [], wanted.command, None) as session:
        session["code"] = 0
    assert scheduler._not_yet_redone(wanted, jobs) == (run,)  # that one had ended: a new wish


def test_a_list_of_points_that_is_not_there_is_none_and_a_broken_one_is_told_with_its_remedy(book):
    sweep(book, seeds=[])
    wanted, out = graph.wanted("sweep", {"NAME": "rates"}), book / "outputs/tiny"
    assert sweeps.results(out, "rates") == {}  # not run yet
    with pytest.raises(ValueError, match="not there: `make sweep NAME=raets"):  # nobody wrote it
        sweeps.results(out, "rates raets")
    by_hand(wanted, "00_teacher", "rates/01_distill-learning_rate0.001")
    (out / "sweeps/rates/points.json").write_text("")
    remedy = "points.json is broken: `make sweep NAME=rates`"
    assert f"{remedy} writes it again" in status.text(out)
    assert "points.json is broken" in run_pages.index(out).read_text("utf8")
    with pytest.raises(ValueError, match=remedy):
        sweeps.results(out, "rates")
    scheduler.prepare(wanted.config)
    assert "broken" not in status.text(out)


def test_a_sweep_need_not_be_told_again_what_the_book_was_told(book):
    sweep(book)
    (book / "words.txt").write_text("words")
    told = graph.wanted("book", {"OUT": "outputs/here", "TEXT": "words.txt"})
    write_whole(book / "outputs/here/.snakemake.json", json.dumps(told.config))
    found = graph.jobs(graph.wanted("sweep", {"NAME": "rates", "OUT": "outputs/here"}).config)
    assert found["00_teacher"].parameters["text"] == "words.txt"
