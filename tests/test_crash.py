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
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
import ticketkit
from ticketkit.testing import convnet

torch.set_num_threads(1)

def train(current, steps, pause=0.0):
    # A checkpoint every second step, and all that a loop may want back.
    model = current.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    start = current.track(optimizer=optimizer, scheduler=scheduler, scaler=scaler, ema=ema)
    for step in range(start, steps):
        batch = torch.randn(4, 1, 8, 8)[torch.randperm(4)[: random.randint(2, 4)]]
        optimizer.zero_grad()
        scaler.scale(model(batch + float(np.random.rand())).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        ema.update_parameters(model)
        sys.audit("test.step")
        current.log(**{f"loss{step}": ema.module[0][0].weight.norm().item()})
        time.sleep(pause)
        if step % 2:
            current.checkpoint(step=step + 1)

def run(run_dir, out, pause=0.0, rewind="init"):
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    model = nn.Sequential(convnet(2), nn.Dropout(0.2))
    settings = {"rate": 0.5, "rounds": 2, "floor": 0.02, "rewind": rewind}
    imp = ticketkit.IMP(model, run_dir=run_dir, plugins=ticketkit.Plugins(), **settings)
    for current in imp:
        train(current, 5, pause)
        current.log(norm=model[0][0].weight.norm().item())
    out.mkdir(exist_ok=True)
    for ticket in imp.tickets:
        ticket.save(out / f"{ticket.facts.round}.ticket")

import time
"""

ONCE = RUN + "run(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))"

# Forking saves importing torch hundreds of times; the children are real processes and really killed.
FORKING = (
    RUN
    + """
EVENTS = {"test.step", "open", "os.rename", "os.remove", "os.mkdir", "os.chmod", "tempfile.mkstemp", "os.listdir"}
REWIND = sys.argv[2]

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
    # Runs in the folder until the given number of training steps and file operations there, then dies.
    left = point
    def hook(event, arguments):
        nonlocal left
        if event in EVENTS and (event == "test.step" or str(folder) in str(arguments)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    run(folder / "run", folder / "out", rewind=REWIND)

def tickets(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.ticket")}

torch.optim.AdamW(convnet().parameters())  # imports what the children would each import again
root = Path(sys.argv[1])
assert child(lambda: run(root / "whole", root / "out", rewind=REWIND)) == 0
expected = tickets(root / "out")
assert len(expected) == 3
"""
)

EVERYWHERE = (
    FORKING
    + """
point, killed, stride = 0, 0, int(sys.argv[3])
while True:
    point += stride
    folder = root / f"at{point}"
    status = child(lambda: killed_at(point, folder))
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    killed += 1
    assert child(lambda: run(folder / "run", folder / "resumed", rewind=REWIND)) == 0, point
    assert tickets(folder / "resumed") == expected, point
    assert not list((folder / "run").rglob("*.partial")), point
    assert not list((folder / "run").rglob("checkpoint.safetensors")), point
print(killed)
"""
)

AGAIN_AND_AGAIN = (
    FORKING
    + """
draw, killed, folder = random.Random(sys.argv[3]), 0, root / "victim"
while killed < 40:
    status = child(lambda: killed_at(draw.randint(1, 60), folder))
    if status == 0:  # got through between two kills: begin again in a new directory
        assert tickets(folder / "out") == expected
        folder = root / f"victim{killed}"
        continue
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    killed += 1
assert child(lambda: run(folder / "run", folder / "out", rewind=REWIND)) == 0
assert tickets(folder / "out") == expected
print(killed)
"""
)


def forked(script: str, *arguments: str) -> int:
    """Run a script that kills its children; return how many it killed."""
    command = [sys.executable, "-W", "error", "-c", script, *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return int(finished.stdout)


@pytest.mark.parametrize("rewind", ["init", "step:3"])
def test_a_run_killed_at_a_step_or_file_operation_resumes_to_the_same_tickets(rewind: str, tmp_path: Path) -> None:
    stride = 1 if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else 11
    assert forked(EVERYWHERE, str(tmp_path), rewind, str(stride)) >= 150 // stride


@pytest.mark.slow
@pytest.mark.parametrize("rewind", ["init", "step:3", "none"])
def test_forty_random_kills_over_one_run_end_in_the_bits_of_the_uninterrupted_run(rewind: str, tmp_path: Path) -> None:
    """Trap 25: mid-round too, with optimizer, schedule, scaler, average, generators and logged metrics."""
    assert forked(AGAIN_AND_AGAIN, str(tmp_path), rewind, "17") == 40


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
