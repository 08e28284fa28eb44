"""A network on several ranks: one selection, one mask, whole tickets, whatever number of ranks goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ticketkit import Mask
from ticketkit.sharding import Part

RANKS = Path(__file__).parent / "ranks"
NAMES = [f"{index}.safetensors" for index in range(4)]


def started(program: str, *arguments: str, ranks: int) -> subprocess.CompletedProcess[str]:
    """Run a program of `tests/ranks` alone, or on several ranks."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [sys.executable, *(torchrun if ranks > 1 else []), str(RANKS / program), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def run(out: Path, *, ranks: int, directory: Path | None = None, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Do an IMP run of four rounds whose tickets land in `out`."""
    out.mkdir(exist_ok=True)
    options = json.dumps({"out": str(out), "ranks": ranks, **settings})
    return started("pruning.py", str(directory or "-"), options, ranks=ranks)


def check_done(finished: subprocess.CompletedProcess[str]) -> None:
    assert finished.returncode == 0, finished.stderr


def same_tickets(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in NAMES)


def test_a_selection_over_three_ranks_is_that_over_whole_scores() -> None:
    finished = started("selecting.py", ranks=3)
    check_done(finished)
    assert finished.stdout.count("selected alike") == 3


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (3, {}),
        (2, {"columns": True, "imp": {"criterion": "magnitude_over_init", "rewind": "step:2", "floor": 0.1}}),
        (2, {"imp": {"criterion": "lamp", "granularity": "row", "rewind": "none", "lean": True}}),
        (2, {"imp": {"criterion": "random", "allocation": "uniform"}}),
    ],
)
def test_tickets_of_a_sharded_network_are_those_of_a_whole_one(
    ranks: int, settings: dict[str, Any], tmp_path: Path
) -> None:
    check_done(run(tmp_path / "sharded", ranks=ranks, directory=tmp_path / "run", **settings))
    together = {"out": str(tmp_path / "whole"), "ranks": ranks, **settings}
    (tmp_path / "whole").mkdir()
    check_done(started("pruning.py", str(tmp_path / "alone"), json.dumps(together), ranks=1))
    assert same_tickets(tmp_path / "sharded", tmp_path / "whole")
    assert (tmp_path / "run/init.safetensors").read_bytes() == (tmp_path / "alone/init.safetensors").read_bytes()


def test_a_killed_rank_ends_the_run_and_any_number_of_ranks_goes_on(tmp_path: Path) -> None:
    """Two ranks are killed in round 2 before a checkpoint, three finish it: gradients are divided by their number."""
    killed = run(tmp_path / "out", ranks=2, directory=tmp_path / "run", kill=[2, 1], rank=1)
    assert killed.returncode != 0
    assert f"Signal {signal.SIGKILL.value} (SIGKILL)" in killed.stderr
    assert len(list((tmp_path / "run").glob("rounds/*/record.json"))) == 2
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("rounds/*/*")}
    check_done(run(tmp_path / "out", ranks=3, directory=tmp_path / "run"))
    assert len(list((tmp_path / "run").glob("rounds/*/record.json"))) == 4
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_checkpoint_goes_on_to_the_same_bits_with_as_many_ranks_only(tmp_path: Path) -> None:
    check_done(run(tmp_path / "whole", ranks=2, directory=tmp_path / "one"))
    killed = run(tmp_path / "cut", ranks=2, directory=tmp_path / "two", checkpoint=True, kill=[1, 4])
    assert killed.returncode != 0
    shutil.copytree(tmp_path / "two", tmp_path / "three")
    refused = run(tmp_path / "cut", ranks=3, directory=tmp_path / "three")
    assert "the checkpoint of round 1 was saved by 2 ranks, this run has 3" in refused.stderr
    check_done(run(tmp_path / "cut", ranks=2, directory=tmp_path / "two"))
    assert same_tickets(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rewind": "reinit"}, "rewind='reinit' draws fresh weights module by module, and this network is distributed"),
        ({"data": True}, "run the whole network in one process, and this one is distributed over ranks"),
        ({"other_mask": True}, "rank 0 and ranks [1] hold different masks, first at '0.weight'"),
    ],
)
def test_what_cannot_be_done_on_ranks_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    data = {key: settings.pop(key) for key in ("data", "other_mask") if key in settings}
    refused = run(tmp_path, ranks=2, imp=settings, **data)
    assert refused.returncode != 0
    assert message in refused.stderr


def test_a_part_takes_its_bits_out_of_a_mask_and_puts_them_back() -> None:
    mask = Mask({"w": torch.rand(5, 7) < 0.5})
    part = Part((5, 7), (slice(1, 4), slice(2, 7)))
    own = part.bits(mask.bits("w"))
    assert Mask.from_bits({"w": (3, 5)}, {"w": own})["w"].equal(mask["w"][1:4, 2:7])
    back = Mask.from_bits({"w": (5, 7)}, {"w": part.spread(own).tobytes()})
    assert back["w"][1:4, 2:7].equal(mask["w"][1:4, 2:7])
    assert back.kept == int(mask["w"][1:4, 2:7].sum())
    rows, columns = torch.arange(35).reshape(5, 7)[1:4, 2:7].reshape(-1), torch.arange(15)
    assert part.positions(columns.numpy()).tolist() == rows.tolist()
