"""A run killed at any point goes on to the bits of a run that was not, with real processes and SIGKILL."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Trains a tiny network with everything random a loop may use, saves the tickets at the end.
RUN = """
import os, random, signal, sys
from pathlib import Path
import numpy as np
import torch
from torch import nn
import ticketkit
from ticketkit.testing import convnet

torch.set_num_threads(1)

def train(model, steps, pause=0.0):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(steps):
        batch = torch.randn(4, 1, 8, 8)[torch.randperm(4)[: random.randint(2, 4)]]
        optimizer.zero_grad()
        model(batch + float(np.random.rand())).square().mean().backward()
        optimizer.step()
        sys.audit("test.step")
        time.sleep(pause)

def run(run_dir, out, pause=0.0):
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    model = nn.Sequential(convnet(2), nn.Dropout(0.2))
    imp = ticketkit.IMP(model, rate=0.5, rounds=2, floor=0.02, run_dir=run_dir, plugins=ticketkit.Plugins())
    for current in imp:
        train(model, 3, pause)
        current.log(norm=model[0][0].weight.norm().item())
    out.mkdir()
    for ticket in imp.tickets:
        ticket.save(out / f"{ticket.facts.round}.ticket")

import time
"""

ONCE = RUN + "run(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))"

# Forks a child for every point (every seventh, unless the profile is `thorough`): it kills itself at that training step
# or file-system event, then a second child resumes. Forking saves importing torch two hundred times; the children are
# real processes and really killed.
EVERYWHERE = (
    RUN
    + """
root = Path(sys.argv[1])
EVENTS = {"test.step", "open", "os.rename", "os.remove", "os.mkdir", "os.chmod", "tempfile.mkstemp", "os.listdir"}

def child(job):
    pid = os.fork()
    if pid == 0:
        try:
            job()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

def killed_at(point, folder):
    left = point
    def hook(event, arguments):
        nonlocal left
        if event in EVENTS and (event == "test.step" or str(folder) in str(arguments)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    run(folder / "run", folder / "out")

def tickets(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}

torch.optim.AdamW(convnet().parameters())  # imports what the children would each import again
whole = root / "whole"
assert child(lambda: run(whole / "run", whole / "out")) == 0
expected = tickets(whole / "out")
assert len(expected) == 3
point, killed, stride = 0, 0, int(sys.argv[2])
while True:
    point += stride
    folder = root / f"at{point}"
    status = child(lambda: killed_at(point, folder))
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    killed += 1
    assert child(lambda: run(folder / "run", folder / "resumed")) == 0, point
    assert tickets(folder / "resumed") == expected, point
    assert not list((folder / "run").rglob("*.partial")), point
print(killed)
"""
)


def test_a_run_killed_at_a_step_or_file_operation_resumes_to_the_same_tickets(tmp_path: Path) -> None:
    stride = 1 if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else 7
    command = [sys.executable, "-W", "error", "-c", EVERYWHERE, str(tmp_path), str(stride)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) >= 100 // stride


def start(folder: Path, name: str, pause: float) -> subprocess.Popen[bytes]:
    arguments = [str(folder / name), str(folder / f"{name}-tickets"), str(pause)]
    return subprocess.Popen([sys.executable, "-W", "error", "-c", ONCE, *arguments])


def tickets(folder: Path, name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / f"{name}-tickets").iterdir()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    assert start(folder, "whole", 0.0).wait() == 0
    return tickets(folder, "whole")


@pytest.mark.parametrize("seen", ["init.safetensors", "rounds/001/record.json"])
def test_a_process_killed_from_outside_resumes_to_the_same_tickets(
    seen: str, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    victim = start(tmp_path, "victim", 0.2)
    while not (tmp_path / "victim" / seen).exists():
        assert victim.poll() is None
        time.sleep(0.01)
    os.kill(victim.pid, signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    assert start(tmp_path, "victim", 0.0).wait() == 0
    assert tickets(tmp_path, "victim") == expected
