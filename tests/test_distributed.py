"""Trap 23: masks of different ranks must not drift apart, whatever scores or seeds the ranks have of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ticketkit import Mask
from ticketkit.distributed import agreed

RANK = """
import os
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import ticketkit

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
network = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3))
settings = {"scope": {"include": ["0.*"]}} if sys.argv[1] == "scope" and rank == 1 else {}
imp = ticketkit.IMP(
    DistributedDataParallel(network),
    rate=0.5,
    rounds=2,
    criterion=sys.argv[1] if sys.argv[1] != "scope" else "magnitude",
    seed=rank,  # another one on every rank: random scores differ
    batches=lambda: [torch.randn(4, 6, generator=torch.Generator().manual_seed(rank))],  # and so do gradients
    loss=lambda model, batch: ticketkit.names.unwrap(model)(batch).square().mean(),
    plugins=ticketkit.Plugins(),
    **settings,
)
torch.manual_seed(rank)
for current in imp:
    optimizer = torch.optim.SGD(imp.model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        imp.model(torch.randn(4, 6)).square().mean().backward()
        optimizer.step()
    weights = torch.cat([p.detach().flatten() for p in network.parameters()])
    everyone = [torch.empty_like(weights) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, weights)
    assert all(other.equal(weights) for other in everyone)
    assert not any(network.get_parameter(n).detach()[~current.mask[n]].any() for n in current.mask)
digests = [None] * dist.get_world_size()
dist.all_gather_object(digests, [ticket.mask.digest for ticket in imp.tickets])
assert all(other == digests[0] for other in digests), digests
assert len(set(digests[0])) == 3
print("agreed", flush=True)
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # gloo's threads may outlive the group and abort an ordinary exit
"""


def torchrun(folder: Path, criterion: str) -> subprocess.CompletedProcess[str]:
    (folder / "rank.py").write_text(RANK.replace("import ticketkit\n", "import ticketkit\nimport ticketkit.names\n"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [*command, str(folder / "rank.py"), criterion]
    return subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment, timeout=300)


@pytest.mark.parametrize("criterion", ["random", "snip"])
def test_two_ranks_with_scores_of_their_own_hold_one_mask(criterion: str, tmp_path: Path) -> None:
    finished = torchrun(tmp_path, criterion)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("agreed") == 2


def test_ranks_with_different_scopes_are_told_and_none_waits_for_ever(tmp_path: Path) -> None:
    finished = torchrun(tmp_path, "scope")
    assert finished.returncode != 0
    assert "rank 0 and ranks [1] mask different parameters" in finished.stderr


def test_a_process_alone_agrees_with_itself() -> None:
    mask = Mask.ones({"w": (2, 2)})
    assert agreed(mask) is mask


TOY = Path(__file__).parent / "toy"


def run_toy(folder: Path, out: str, *, ranks: int) -> subprocess.CompletedProcess[str]:
    """Run the toy recipe in a directory, on several ranks as torchrun starts them."""
    program = ["-m", "ticketkit", "run", str(TOY / "toy.yaml"), "--out", out]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "--no-python"]
    command = [sys.executable, *program] if ranks == 1 else [sys.executable, *torchrun, sys.executable, *program]
    environment = os.environ | {"PYTHONPATH": str(TOY), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_ranks_share_a_run_directory_that_rank_0_writes_and_all_go_on_from(tmp_path: Path) -> None:
    alone, together = run_toy(tmp_path, "one", ranks=1), run_toy(tmp_path, "two", ranks=2)
    assert alone.returncode == 0, alone.stderr
    assert together.returncode == 0, together.stderr
    files = [*(f"rounds/{index:03d}/{name}.safetensors" for index in range(4) for name in ("ticket", "trained"))]
    for name in [*files, "best.safetensors", "test.json"]:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    assert together.stdout.count("run directory: two") == 1
    for name in ("test.json", "results.json", "best.safetensors"):
        (tmp_path / "two" / name).unlink()
    shutil.rmtree(tmp_path / "two" / "rounds" / "003")
    resumed = run_toy(tmp_path, "two", ranks=2)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on: 3 of 4 rounds are done" in resumed.stdout
    for name in [*files, "best.safetensors", "test.json"]:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name


def test_what_rank_0_cannot_write_fails_on_every_rank(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, no directory")
    failed = run_toy(tmp_path, "taken", ranks=2)
    assert failed.returncode != 0
    assert failed.stderr.count("error: cannot write taken/plugins.json") == 2
