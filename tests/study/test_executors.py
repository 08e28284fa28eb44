"""Workers of a study on processes, Ray and Slurm: started as needed, replaced when they die, nothing done twice."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.study.toy_study import TOY, done, toy_plugins, toy_study
from ticketkit import ConfigError, RunError
from ticketkit.holder import Holder
from ticketkit.locks import Lock
from ticketkit.study.directory import StudyDirectory
from ticketkit.study.executors import make_executor, slurm_jobs
from ticketkit.study.executors.ray_tasks import _check
from ticketkit.study.executors.supervising import supervise
from ticketkit.study.executors.work import Work, Worker, until_told
from ticketkit.study.grids import jobs
from ticketkit.study.worker import DEATHS, states, work

# Works on a study with an executor, as the command does; before that, it asks for a machine that is not there.
DRIVER = """
import sys
from pathlib import Path
from ticketkit import ConfigError
from ticketkit.study.directory import StudyDirectory
from ticketkit.study.executors import make_executor
from ticketkit.study.executors.supervising import supervise
from ticketkit.study.executors.work import Work
from ticketkit.study.grids import jobs
study, name, plugin, impossible, *options = StudyDirectory(Path(sys.argv[1])), *sys.argv[2:]
config = study.config()
if impossible:
    try:
        make_executor(name, [impossible], workers=2, threads=1)
    except ConfigError as error:
        print(error, flush=True)
executor = make_executor(name, options, workers=2, threads=1)
work = Work(study.path, config.kinds, 1, (Path(plugin),))
supervise(executor, work, jobs(config, config.kinds), workers=2, say=lambda line: print(line, flush=True))
"""


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> StudyDirectory:
    study, _ = done(tmp_path_factory.mktemp("serial"), toy_study("existence", seeds=[0]), toy_plugins())
    return study


def content(study: StudyDirectory) -> dict[str, bytes]:
    """Return all that runs found: tickets, networks, examinations; not how long it took."""
    names = ("ticket.safetensors", "trained.safetensors", "best.safetensors", "test.json")
    return {
        str(path.relative_to(study.path)): path.read_bytes()
        for path in study.path.rglob("*")
        if path.name in names or path.parent.name == "examinations"
    }


def holder_of(study: StudyDirectory, run: str) -> Holder:
    """Return who is at work on a run when its first round is finished."""
    end = time.monotonic() + 240
    while time.monotonic() < end:
        if (study.run(run) / "rounds" / "000" / "record.json").exists():
            (name,) = os.listdir(study.path / "locks" / run)
            return Holder.of(name)
        time.sleep(0.01)
    raise TimeoutError(run)


def trained_twice(study: StudyDirectory) -> set[tuple[str, str]]:
    """Return the run and the round of every epoch that was trained more than once."""
    twice = set()
    for path in study.path.glob("runs/*/epochs.jsonl"):
        begun = Counter(line.partition('"loss"')[0] for line in path.read_text().splitlines())
        twice |= {(path.parent.name, line.partition(",")[0]) for line, times in begun.items() if times > 1}
    return twice


@pytest.mark.parametrize(
    ("executor", "options", "impossible"),
    [
        ("processes", [], ""),
        pytest.param("ray", [], "num_gpus=64", marks=pytest.mark.slow),
        pytest.param("slurm", ["cluster=local"], "", marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_is_killed_is_replaced_and_all_ends_in_the_bytes_of_one_process(
    executor: str, options: list[str], impossible: str, serial: StudyDirectory, tmp_path: Path
) -> None:
    study = StudyDirectory(tmp_path)
    study.claim(serial.config())
    command = [sys.executable, "-c", DRIVER, str(tmp_path), executor, str(TOY / "toy_plugin.py"), impossible, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as driver:
        victim = holder_of(study, "mlp-imp-s0")
        os.kill(victim.pid, signal.SIGKILL)
        said, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, said
    assert content(study) == content(serial)
    assert len(trained_twice(study)) <= 1  # the round that the victim was in
    logs = said + "".join(path.read_text() for path in tmp_path.glob("slurm/*.out"))
    assert f"mlp-imp-s0: begins, after {victim} was gone" in logs
    assert logs.count(": done in") == 1
    if impossible:
        assert "a worker asks for 1 CPU, 64 GPU, which no machine of the Ray cluster has (it has " in said


class Failing:
    """An executor whose workers die at once."""

    def __init__(self) -> None:
        self.started = 0

    def start(self, work: Work, count: int) -> Sequence[Worker]:
        self.started += count
        return [Dead()] * count


class Dead:
    def __str__(self) -> str:
        return "worker 7"

    def ended(self) -> str | None:
        return "was killed"

    def stop(self) -> None:
        raise AssertionError("it has ended")


def test_workers_that_die_again_and_again_end_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ticketkit.study.executors.supervising.LOOK", 0.0)
    config = toy_study("existence")
    study, failing, said = StudyDirectory(tmp_path), Failing(), list[str]()
    study.claim(config)
    with pytest.raises(RunError, match=r"6 workers in a row ended early.*worker 7 was killed"):
        supervise(failing, Work(tmp_path, ("existence",), 1), jobs(config, ("existence",)), workers=2, say=said.append)
    assert failing.started == 6
    assert said.count("worker 7 was killed") == 6


def ended_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_run_that_processes_die_at_fails_and_is_tried_again_by_the_next_command(tmp_path: Path) -> None:
    config = toy_study("existence", seeds=[0], base={**toy_study("existence").base, "prune": {"rounds": 1}})
    study, found = StudyDirectory(tmp_path), jobs(config, ("existence",))
    study.claim(config)
    dead = replace(Holder.here(takeovers=DEATHS), pid=ended_process())
    (tmp_path / "locks" / "mlp-imp-s0").mkdir(parents=True)
    (tmp_path / "locks" / "mlp-imp-s0" / dead.name).touch()
    work(study, found, toy_plugins(), threads=1)
    failure = study.failure(found[0])
    assert failure is not None
    assert f"4 processes in a row were gone before they had finished a training of this run, the last one {dead}" in (
        failure.error
    )
    study.forget_failure(found[0])
    work(study, found, toy_plugins(), threads=1)
    assert states(found, study) == {"mlp-imp-s0": "done"}


def test_a_worker_that_is_told_to_leave_gives_back_what_it_holds(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock")
    before = signal.getsignal(signal.SIGUSR2)

    def work() -> None:
        assert lock.acquire()
        try:
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(10)
        finally:
            lock.release()

    assert until_told(work, signal.SIGUSR2)
    assert not until_told(lambda: None, signal.SIGUSR2)
    assert os.listdir(tmp_path / "lock") == ["free"]
    assert signal.getsignal(signal.SIGUSR2) == before


@pytest.mark.parametrize(
    ("name", "options", "workers", "said"),
    [
        ("rai", [], 2, r"no executor 'rai'; did you mean 'ray'\?"),
        ("kubernetes", [], 2, r"no executor 'kubernetes'; there are: processes, ray, serial, slurm"),
        ("serial", [], 2, "'serial' is one worker; for 2 choose processes, ray or slurm"),
        ("processes", ["gpus=1"], 2, "of processes, which takes none:\n  gpus: Extra inputs are not permitted"),
        ("ray", ["num_gpus=-1"], 2, "num_gpus: Input should be greater than or equal to 0"),
        ("slurm", ["time=soon"], 2, "which takes cluster, partition, time.*\n  time: Input should be a valid integer"),
        ("slurm", ["debug"], 2, "--executor-option takes key=value, not 'debug'"),
    ],
)
def test_what_is_no_executor_or_option_is_refused(name: str, options: list[str], workers: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_executor(name, options, workers=workers, threads=1)


@pytest.mark.parametrize(("name", "package", "extra"), [("ray", "ray", "ray"), ("slurm", "submitit", "slurm")])
def test_a_framework_that_is_missing_is_named_with_its_extra(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"pip install 'ticketkit\[{extra}\]'"):
        make_executor(name, [], workers=1, threads=1)


def test_a_machine_must_have_all_that_a_worker_asks_for() -> None:
    _check({"CPU": 2, "GPU": 1}, [{"CPU": 1, "GPU": 1}, {"CPU": 4, "GPU": 1}])
    with pytest.raises(ConfigError, match=r"asks for 2 CPU, 1 GPU, which no .*has 1 CPU, 1 GPU; 4 CPU, 0 GPU"):
        _check({"CPU": 2, "GPU": 1, "large": 0}, [{"CPU": 1, "GPU": 1}, {"CPU": 4}])


def slurm(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Put commands of a Slurm into the path, in place of all others."""
    folder.mkdir()
    for name, script in scripts.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))


def test_where_there_is_no_slurm_the_missing_commands_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm(tmp_path / "bin", monkeypatch, srun="exit 1")
    with pytest.raises(ConfigError, match="there is no sbatch and no squeue here; submit from a machine of the Slurm"):
        make_executor("slurm", [], workers=1, threads=1)


def test_what_sbatch_says_against_a_job_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(tmp_path / "bin", monkeypatch, srun="", squeue="", sbatch="echo 'invalid partition: huge' >&2; exit 1")
    executor = make_executor("slurm", ["partition=huge"], workers=1, threads=1)
    assert executor is not None
    with pytest.raises(RunError, match=r"Slurm takes no job: .*invalid partition: huge.*--executor-option"):
        executor.start(Work(tmp_path, ("existence",), 1), 1)


def test_a_slurm_job_that_vanished_is_named_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_jobs, "EVERY", 0.0)
    monkeypatch.setattr(slurm_jobs, "GRACE", 0.2)
    queued = f"[ -e {tmp_path}/queued ] && echo 71_0 && echo 71_1; exit 0"
    slurm(tmp_path / "bin", monkeypatch, srun="", squeue=queued, sbatch="echo Submitted batch job 71", sacct="exit 1")
    (tmp_path / "queued").touch()
    executor = make_executor("slurm", ["partition=small", "sbatch.reservation=r1"], workers=2, threads=3)
    assert executor is not None
    first, second = executor.start(Work(tmp_path, ("existence",), 3), 2)
    assert (str(first), str(second)) == ("Slurm job 71_0", "Slurm job 71_1")
    script = (tmp_path / "slurm" / "71_submission.sh").read_text()
    for line in ("--array=0-1", "--cpus-per-task=3", "--partition=small", "--reservation=r1", "--time=1440"):
        assert f"#SBATCH {line}" in script
    assert first.ended() is None
    (tmp_path / "queued").unlink()
    assert first.ended() is None  # its result may still be on its way
    time.sleep(0.3)
    ended = first.ended()
    assert ended is not None
    assert f"vanished from Slurm's queue without a result (accounting says nothing); log: {tmp_path}/slurm" in ended
