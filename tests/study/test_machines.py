"""Several machines on one study, each emulated by a process that takes its host's name for another."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.study.toy_study import TOY, done, toy_plugins, toy_study
from ticketkit.study.directory import StudyDirectory
from ticketkit.study.worker import states

# Works on a study as the machine that it is told to be; a machine that is silent for three seconds is gone.
WORKER = """
import socket, sys
from pathlib import Path
socket.gethostname = lambda: sys.argv[2]
from tests.study.toy_study import toy_plugins
from ticketkit import locks
from ticketkit.study.directory import StudyDirectory
from ticketkit.study.grids import jobs
from ticketkit.study.worker import work
locks.BEAT, locks.LIMIT = 0.1, 3.0
study = StudyDirectory(Path(sys.argv[1]))
config = study.config()
work(study, jobs(config, config.kinds), toy_plugins(), threads=1, say=lambda line: print(line, flush=True))
"""


def machine(path: Path, host: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(TOY.parents[1])}
    command = [sys.executable, "-c", WORKER, str(path), host]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def networks(study: StudyDirectory) -> dict[str, bytes]:
    return {str(path.relative_to(study.path)): path.read_bytes() for path in study.path.rglob("trained.safetensors")}


@pytest.mark.slow
def test_a_job_of_a_machine_that_is_silent_goes_on_at_another_once(tmp_path: Path) -> None:
    config = toy_study("existence", seeds=[0])
    serial, found = done(tmp_path / "serial", config, toy_plugins())
    study = StudyDirectory(tmp_path / "shared")
    study.claim(config)
    far, near = machine(study.path, "far"), machine(study.path, "near")
    first = study.run("mlp-imp-s0") / "rounds" / "000" / "record.json"
    while not first.exists():
        time.sleep(0.01)
    holder = study.lock(found[0]).holder()
    assert holder is not None
    silent, other = (far, near) if holder.host == "far" else (near, far)
    silent.send_signal(signal.SIGSTOP)
    said, _ = other.communicate(timeout=120)
    assert f"mlp-imp-s0: begins, after {holder} was gone" in said
    assert "mlp-imp-s0: done in" in said
    silent.send_signal(signal.SIGCONT)
    late, _ = silent.communicate(timeout=120)
    assert "mlp-imp-s0: lost: " in late
    assert "mlp-imp-s0: done in" not in late
    assert states(found, study) == {"mlp-imp-s0": "done"}
    assert networks(study) == networks(serial)
