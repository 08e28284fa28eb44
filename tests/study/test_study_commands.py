"""`ticketkit study`, run as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.study.toy_study import SECTIONS, SETTINGS, TOY, toy_study
from ticketkit.study.directory import StudyDirectory
from ticketkit.study.grids import jobs


def ticketkit(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(TOY), "COLUMNS": "160", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "ticketkit", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    kinds = ("existence", "structure")
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump({**SETTINGS, **{kind: SECTIONS[kind] for kind in kinds}}))
    return tmp_path


def test_one_command_runs_a_study_in_several_processes_and_writes_its_report(folder: Path) -> None:
    result = ticketkit("study", "all", "--config", "toy.yaml", "--workers", "2", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "started process " in result.stdout
    assert "mlp-imp-s0: done in" in result.stdout
    assert "wrote studies/toy/report.html" in result.stdout
    assert "6 of 6 runs" in (folder / "studies/toy/report.html").read_text()
    status = ticketkit("study", "status", "studies/toy", cwd=folder)
    assert "6 runs: 6 done" in status.stdout
    again = ticketkit("report", "studies/toy", cwd=folder)
    assert again.returncode == 0
    assert "wrote studies/toy/report.md" in again.stdout


def test_status_names_who_is_at_work_and_what_is_waited_for(folder: Path) -> None:
    study = StudyDirectory(folder / "toy")
    config = toy_study("existence", controls={"levels": [2]}, seeds=[0])
    study.claim(config)
    found = {job.id: job for job in jobs(config, config.kinds)}
    lock = study.lock(found["mlp-imp-s0"])
    assert lock.acquire()
    study.note_failure(found["mlp-standard-s0"], ValueError("no luck"))
    said = " ".join(ticketkit("study", "status", "toy", cwd=folder).stdout.replace("│", " ").split())
    lock.release()
    assert f"mlp-imp-s0 running 0 process {os.getpid()} on {os.uname().nodename}, for " in said
    assert "last sign of life" in said
    assert "mlp-standard-s0 failed 0 ValueError: no luck" in said
    assert "mlp-random_ticket-k2-s0 waiting 0 needs mlp-imp-s0" in said
    assert "mlp-one_shot-k2-s0 waiting 0 " in said


def test_one_study_leaves_the_others_for_later(folder: Path) -> None:
    result = ticketkit("study", "existence", "--config", "toy.yaml", "--out", "one", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "6 runs: 2 done, 4 waiting" in ticketkit("study", "status", "one", cwd=folder).stdout


def test_a_failed_run_ends_with_one_and_says_how_to_go_on(folder: Path) -> None:
    override = ["--set", "structure.granularities.heads={granularity: head}"]
    result = ticketkit("study", "structure", "--config", "toy.yaml", "--out", "s", *override, cwd=folder)
    assert result.returncode == 1
    assert "2 of 8 runs failed or need one that did: mlp-heads-s0, mlp-heads-s1" in result.stderr
    assert "the same command tries them again" in result.stderr
    status = ticketkit("study", "status", "s", cwd=folder).stdout
    assert "granularity 'head' has no units" in " ".join(status.split()).replace("│ │ ", "")
    assert (folder / "s" / "report.html").exists()


def test_a_dry_run_lists_runs_and_costs_and_leaves_nothing(folder: Path) -> None:
    scale = {"mlp": {"hours": 100, "stand_in": {"corpus": {"name": "majority", "examples": 32}}}}
    (folder / "toy.yaml").write_text(yaml.safe_dump({**SETTINGS, "existence": {}, "scale": scale}))
    before = sorted(folder.iterdir())
    result = ticketkit("study", "all", "--config", "toy.yaml", "--dry-run", cwd=folder)
    assert result.returncode == 2  # its corpus does not say how many hours it has
    assert "does not say how many hours it trains on" in result.stderr
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"variants": {}}, "variants: Dictionary should have at least 1 item"),
        ({"seeds": [1, 1]}, "seeds are given once each"),
        ({"existence": {"variants": ["mpl"]}}, "existence: there is no variant 'mpl'; did you mean 'mlp'?"),
        ({"margin": -1}, "margin: Input should be greater than or equal to 0"),
        ({"rounds": 3}, "rounds: Extra inputs are not permitted"),
        ({"controls": {"levels": [9]}}, r"levels [9] lie beyond the ladder of 'mlp', which has 3 rounds"),
    ],
)
def test_a_config_that_cannot_work_is_refused_before_anything_runs(
    folder: Path, change: dict[str, object], said: str
) -> None:
    (folder / "toy.yaml").write_text(yaml.safe_dump({**SETTINGS, "existence": {}, **change}))
    result = ticketkit("study", "all", "--config", "toy.yaml", cwd=folder)
    assert result.returncode == 2
    assert said in result.stderr
    assert not (folder / "studies").exists()


def test_an_executor_that_cannot_be_is_refused_before_anything_is_written(folder: Path) -> None:
    result = ticketkit("study", "all", "--config", "toy.yaml", "--executor", "pbs", cwd=folder)
    assert result.returncode == 2
    assert "there is no executor 'pbs'; there are: processes, ray, serial, slurm" in result.stderr
    assert not (folder / "studies").exists()


def test_a_study_that_is_not_declared_is_named(folder: Path) -> None:
    result = ticketkit("study", "noise", "--config", "toy.yaml", cwd=folder)
    assert result.returncode == 2
    assert "the config declares no study 'noise'; it declares existence, structure" in result.stderr
    nothing = ticketkit("study", "status", "nowhere", cwd=folder)
    assert nothing.returncode == 2
    assert "nowhere holds no study" in nothing.stderr
