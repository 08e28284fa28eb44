"""Work on a study: every job once, in any number of processes, failures kept apart."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.study.toy_study import SECTIONS, SETTINGS, TOY, done, toy_plugins, toy_study
from ticketkit.errors import ConfigError, StorageError
from ticketkit.history import read_history
from ticketkit.plugins import Plugins
from ticketkit.results import Results
from ticketkit.study.directory import StudyDirectory
from ticketkit.study.grids import jobs
from ticketkit.study.worker import states, work


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return toy_plugins()


def digests(study: StudyDirectory) -> dict[str, list[str]]:
    """Return the digests of the trained networks and masks of every run."""
    return {
        path.name: [
            f"{record.trained_file} {record.mask_digest} {record.metrics}"
            for record in study.ledger(path.name).records()
        ]
        for path in sorted((study.path / "runs").iterdir())
    }


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory, plugins: Plugins) -> StudyDirectory:
    study, _ = done(tmp_path_factory.mktemp("serial"), toy_study("existence", "controls"), plugins)
    return study


def test_all_jobs_are_done_and_nothing_is_done_again(serial: StudyDirectory, plugins: Plugins) -> None:
    found = jobs(serial.config(), serial.config().kinds)
    assert set(states(found, serial).values()) == {"done"}
    before = {path: path.stat().st_mtime_ns for path in serial.path.glob("runs/*/results.json")}
    said: list[str] = []
    work(serial, found, plugins, threads=1, say=said.append)
    assert said == []
    assert {path: path.stat().st_mtime_ns for path in serial.path.glob("runs/*/results.json")} == before


def test_controls_have_as_many_weights_as_the_ladder_at_their_level(serial: StudyDirectory) -> None:
    ladder = [row.kept for row in Results.read(serial.run("mlp-imp-s0")).rows]
    for arm in ("random_layers", "random_ticket"):
        assert [row.kept for row in Results.read(serial.run(f"mlp-{arm}-k2-s0")).rows] == [ladder[2]]
    for arm in ("one_shot", "random_global"):
        assert [row.kept for row in Results.read(serial.run(f"mlp-{arm}-k2-s0")).rows] == [ladder[0], ladder[2]]
    small = Results.read(serial.run("mlp-small_dense-k2-s0"))
    left = serial.ledger("mlp-imp-s0").records()[2]
    assert small.model_total <= left.model_total - left.total + left.kept
    assert small.config["trainer"]["epochs"] == 2
    assert Results.read(serial.run("mlp-small_dense_long-k2-s0")).config["trainer"]["epochs"] == 6


def test_a_dense_round_that_many_runs_have_is_trained_once(serial: StudyDirectory) -> None:
    sharing = [f"mlp-{arm}-k{level}-s0" for arm in ("one_shot", "random_global") for level in (1, 2)]
    dense = {serial.ledger(run).records()[0].trained_file for run in ["mlp-imp-s0", *sharing]}
    assert len(dense) == 1
    trained = {epoch.round for run in sharing for epoch in read_history(serial.run(run))}
    assert trained == {1}
    done_in = [json.loads(path.read_text())["run"] for path in serial.path.glob("trainings/*.json")]
    assert Counter(done_in)["mlp-imp-s0"] == 4


def test_unrewound_pruning_carries_on_and_shares_nothing(serial: StudyDirectory) -> None:
    assert {epoch.round for epoch in read_history(serial.run("mlp-standard-s0"))} == {0, 1, 2}


def test_a_run_that_fails_leaves_the_others_alone_and_is_tried_again(tmp_path: Path, plugins: Plugins) -> None:
    controls = {"levels": [1], "small": {"mlp": {"size": "backbone.hidden"}}}
    config = toy_study(controls=controls, seeds=[0], variants={"mlp": {"backbone": {"name": "mlp", "hidden": 12}}})
    study, found = StudyDirectory(tmp_path), jobs(config, config.kinds)
    study.claim(config)
    study.run("mlp-imp-s0").mkdir(parents=True)
    (study.run("mlp-imp-s0") / "config.json").write_text("{")  # somebody's disk was full
    said: list[str] = []
    work(study, found, plugins, threads=1, say=said.append)
    known = states(found, study)
    assert known["mlp-imp-s0"] == "failed"
    assert {known[job.id] for job in found if "mlp-imp-s0" in job.needs} == {"blocked"}
    assert known["mlp-standard-s0"] == known["mlp-one_shot-k1-s0"] == "done"
    failure = study.failure(found[[job.id for job in found].index("mlp-imp-s0")])
    assert failure is not None
    assert "config.json" in failure.error
    assert "Traceback" in failure.traceback
    assert any(line.startswith("mlp-imp-s0: failed: ") for line in said)
    (study.run("mlp-imp-s0") / "config.json").unlink()
    for job in found:
        study.forget_failure(job)
    work(study, found, plugins, threads=1)
    assert set(states(found, study).values()) == {"done"}


WORKER = """
import sys
from pathlib import Path
from tests.study.toy_study import toy_plugins
from ticketkit.study.directory import StudyDirectory
from ticketkit.study.grids import jobs
from ticketkit.study.worker import work
study = StudyDirectory(Path(sys.argv[1]))
config = study.config()
work(study, jobs(config, config.kinds), toy_plugins(), threads=1, say=lambda line: print(line, flush=True))
"""


def start_worker(path: Path) -> "subprocess.Popen[str]":
    root = str(TOY.parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(path)],
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_share_a_study_survive_a_kill_and_end_in_the_bits_of_one(
    serial: StudyDirectory, tmp_path: Path, plugins: Plugins
) -> None:
    study = StudyDirectory(tmp_path)
    study.claim(serial.config())
    victim, other = start_worker(tmp_path), start_worker(tmp_path)
    assert victim.stdout is not None
    for line in victim.stdout:
        if "done in" in line:
            break
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    victim.stdout.close()
    printed, _ = other.communicate(timeout=120)
    assert other.returncode == 0
    found = jobs(study.config(), study.config().kinds)
    assert set(states(found, study).values()) == {"done"}
    assert digests(study) == digests(serial)
    begun = Counter(line.partition(":")[0] for line in printed.splitlines() if line.endswith("begins"))
    assert begun
    assert max(begun.values()) == 1


def test_a_job_that_another_process_has_is_waited_for(tmp_path: Path, plugins: Plugins) -> None:
    config = toy_study("existence", seeds=[0])
    study, found = StudyDirectory(tmp_path), jobs(config, config.kinds)
    study.claim(config)
    with study.taken(found[0]) as ours:
        assert ours
        assert states(found, study) == {"mlp-imp-s0": "running"}
        other = start_worker(tmp_path)
        time.sleep(4)
        assert other.poll() is None
    other.communicate(timeout=60)
    assert states(found, study) == {"mlp-imp-s0": "done"}


def test_a_directory_holds_one_study_which_may_grow(tmp_path: Path) -> None:
    study = StudyDirectory(tmp_path)
    study.claim(toy_study("existence"))
    study.claim(toy_study("existence", "structure"))
    assert study.config().kinds == ("existence", "structure")
    changed: dict[str, Any] = {**SETTINGS, "base": {**SETTINGS["base"], "metric": "cer"}}
    with pytest.raises(Exception, match="holds a study with another base; choose another --out"):
        study.claim(toy_study(base=changed["base"], existence=SECTIONS["existence"]))


def test_what_is_wrong_with_a_studys_own_files_is_said_with_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, config = StudyDirectory(tmp_path), toy_study("existence", seeds=[0])
    study.claim(config)
    (job, *_) = jobs(config, config.kinds)
    study.note_failure(job, ValueError("no luck"))
    path = tmp_path / "failures" / f"{job.id}.json"
    for content in ("{}", json.dumps({"error": "a", "traceback": "b", "later": 1}), "[1]", "{"):
        path.write_text(content)
        with pytest.raises(StorageError, match=f"{job.id}.json .*; delete it to write it again"):
            study.failure(job)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(StorageError, match=f"cannot write .*{job.id}.json: .*Read-only"):
            study.forget_failure(job)
    study.forget_failure(job)
    study.forget_failure(job)
    (tmp_path / "study.json").write_text('{"title": 1}')
    with pytest.raises(ConfigError, match=r"study\.json: "):
        study.config()
