"""CLUSTER=slurm without a cluster: what would be asked of SLURM, and what is said where it refuses.
The real one is in bench/stress_slurm.py."""

import subprocess
from pathlib import Path

import yaml
from snakemake.cli import get_argument_parser

from tdbook import __main__
from tdbook.workflow import scheduler
from tdlib.files import write_whole
from tests import small_book

ASKED = yaml.safe_load((small_book.REPOSITORY / "profiles/slurm/config.yaml").read_text())
INDEX = "outputs/tiny/index.html"


def programs(folder: Path, monkeypatch, **scripts: str) -> None:
    """Shell scripts in the place of SLURM's."""
    for name, script in scripts.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")


def test_snakemake_knows_every_line_of_the_profile():
    known = {name for action in get_argument_parser()._actions for name in action.option_strings}
    assert {f"--{name}" for name in ASKED} <= known
    notebooks = {path.stem for path in (small_book.REPOSITORY / "notebooks").glob("*.ipynb")}
    assert notebooks <= ASKED["config"]["minutes"].keys()
    # squeue forgets a job after MinJobAge, 300 s by default
    assert 3 * ASKED["slurm-init-seconds-before-status-checks"] < 300


def test_a_slurm_that_does_not_answer_starts_nothing(root, monkeypatch, capsys):
    programs(root, monkeypatch, sbatch="exit 1", squeue="echo 'no controller' >&2; exit 1")
    assert __main__.main(["book", "PROFILE=tiny", "CLUSTER=slurm"]) == 1
    answer = "SLURM does not answer (no controller): try again when squeue does\n"
    assert capsys.readouterr().out == answer


def test_an_earlier_command_s_job_is_waited_for_and_can_be_ended(tmp_path, monkeypatch, capsys):
    """It is in the queue twice, and then gone. Those of other run folders are not its own."""
    job = f"7|{scheduler.prefix(tmp_path)}_f2ce"
    count = f"echo x >> {tmp_path}/asked; test $(wc -l < {tmp_path}/asked) -gt 2 || echo '{job}'"
    programs(tmp_path, monkeypatch, squeue=count)
    monkeypatch.setattr(scheduler, "ASK_S", 0.01)
    scheduler.wait_for_jobs(tmp_path)
    assert (tmp_path / "asked").read_text() == "x\nx\nx\n"
    assert capsys.readouterr().out == "waits for jobs of an earlier command: 7\n"
    gone = f"test -e {tmp_path}/cancelled || echo '{job}'"
    programs(tmp_path, monkeypatch, squeue=gone, scancel=f"echo $1 > {tmp_path}/cancelled")
    scheduler.cancel(tmp_path)
    assert (tmp_path / "cancelled").read_text() == "7\n"
    ours, theirs = (scheduler.prefix(tmp_path / name / "tiny") for name in ("a", "b"))
    assert ours != theirs and len(ours) <= 50
    rows = [f"7|{ours}_f2ce", f"8|{theirs}_f2ce", "9|other", f"10_1|{ours}_0000"]
    programs(tmp_path, monkeypatch, squeue="\n".join(f"echo '{row}'" for row in rows))
    assert scheduler.queue(tmp_path / "a" / "tiny") == {"7", "10_1"}


def test_a_snakemake_that_waits_for_no_job_is_ended(tmp_path, monkeypatch):
    programs(tmp_path, monkeypatch, squeue="")
    monkeypatch.setattr(scheduler, "ASK_S", 0.01)
    waits, ends = (subprocess.Popen(["sleep", s]) for s in ("60", "0"))
    assert scheduler.follow(tmp_path, ends) and ends.returncode == 0
    monkeypatch.setattr(scheduler, "FORGOTTEN_S", 0.05)
    assert not scheduler.follow(tmp_path, waits) and waits.returncode < 0


def test_what_is_asked_for_is_the_profiles_and_a_refusal_is_one_line(root, monkeypatch, capfd):
    small_book.yaml(root, "01_distill-a")
    small_book.yaml(root, "00_teacher", device="auto")
    refuse = f"echo \"$@\" > {root}/asked; echo 'invalid partition: gup' >&2; exit 1"
    slurm = {"squeue": "", "sinfo": "echo 'main*'", "sbatch": refuse, "sacct": "exit 1"}
    programs(root, monkeypatch, **slurm, scontrol="exit 1")
    (root / "profiles").unlink()
    profile = (small_book.REPOSITORY / "profiles/slurm/config.yaml").read_text()
    write_whole(root / "profiles/slurm/config.yaml", profile.replace("checks: 10", "checks: 1"))
    monkeypatch.setattr(scheduler, "ASK_S", 0.1)
    assert __main__.main(["book", "PROFILE=tiny", "CLUSTER=slurm"]) == 1
    asked = (root / "asked").read_text()
    assert f"--job-name {scheduler.prefix(root / 'outputs/tiny')}_" in asked
    for words in ("-t 720", "--mem 64000", "--gres=gpu:1", "--cpus-per-task=8", "TERM@120"):
        assert words in asked
    refused, *lines = capfd.readouterr().out.splitlines()
    assert refused == "sbatch: invalid partition: gup"
    assert lines == ["not run: 00_teacher, 01_distill-a", f"0 of 2 runs done · {INDEX}"]
