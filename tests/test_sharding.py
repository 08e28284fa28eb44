"""A network on several ranks: one selection, one mask, whole tickets, whatever number of ranks goes on."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ticketkit import ConfigError, Mask
from ticketkit.sharding import Part

RANKS = Path(__file__).parent / "ranks"
NAMES = [f"{index}.safetensors" for index in range(4)]


def started(program: str, *arguments: str, ranks: int, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program of `tests/ranks` on several ranks."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [sys.executable, *torchrun, str(RANKS / program), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)


def run(out: Path, directory: Path, *, ranks: int, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Do an IMP run of four rounds on several ranks; its tickets land in `out`."""
    out.mkdir(exist_ok=True)
    return started("pruning.py", str(directory), json.dumps({"out": str(out), **settings}), ranks=ranks)


def run_alone(out: Path, directory: Path, *, ranks: int, **settings: Any) -> None:
    """Do in this process what several ranks do."""
    out.mkdir(exist_ok=True)
    names = runpy.run_path(str(RANKS / "pruning.py"))
    names["prune"](names["built"](), directory, {"out": str(out), "ranks": ranks, **settings})


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
        (3, {"imp": {"allocation": "uniform", "criterion": "random"}}),
        pytest.param(
            2,
            {"columns": True, "imp": {"criterion": "magnitude_over_init", "rewind": "step:2", "floor": 0.1}},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            2,
            {"imp": {"criterion": "lamp", "granularity": "row", "rewind": "none", "lean": True}},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_tickets_of_a_sharded_network_are_those_of_a_whole_one(
    ranks: int, settings: dict[str, Any], tmp_path: Path
) -> None:
    check_done(run(tmp_path / "sharded", tmp_path / "together", ranks=ranks, **settings))
    run_alone(tmp_path / "whole", tmp_path / "alone", ranks=ranks, **settings)
    assert same_tickets(tmp_path / "sharded", tmp_path / "whole")
    for name in ("init.safetensors", "rounds/002/trained.safetensors"):
        assert (tmp_path / "together" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_and_any_number_of_ranks_goes_on(tmp_path: Path) -> None:
    killed = run(tmp_path / "out", tmp_path / "run", ranks=2, kill=[2, 1], rank=1)
    assert killed.returncode != 0
    assert f"Signal {signal.SIGKILL.value} (SIGKILL)" in killed.stderr
    assert len(list((tmp_path / "run").glob("rounds/*/record.json"))) == 2
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("rounds/*/*")}
    check_done(run(tmp_path / "out", tmp_path / "run", ranks=3))
    assert len(list((tmp_path / "run").glob("rounds/*/record.json"))) == 4
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.slow
def test_a_checkpoint_goes_on_to_the_same_bits_with_as_many_ranks_only(tmp_path: Path) -> None:
    run_alone(tmp_path / "whole", tmp_path / "one", ranks=2)
    killed = run(tmp_path / "cut", tmp_path / "two", ranks=2, checkpoint=True, kill=[1, 4])
    assert killed.returncode != 0
    shutil.copytree(tmp_path / "two", tmp_path / "three")
    with pytest.raises(ConfigError, match="the checkpoint of round 1 was saved by 2 ranks, this run has 1"):
        run_alone(tmp_path / "cut", tmp_path / "three", ranks=2)
    check_done(run(tmp_path / "cut", tmp_path / "two", ranks=2))
    assert same_tickets(tmp_path / "whole", tmp_path / "cut")


def test_what_cannot_be_done_on_ranks_is_refused() -> None:
    finished = started("refusing.py", ranks=2)
    check_done(finished)
    assert finished.stdout.count("refused") == 2


@pytest.mark.slow
def test_the_example_of_the_page_on_scaling_prints_what_it_shows(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text(encoding="utf-8")
    code, _, shown = page.partition("```python\n")[2].partition("```\n\n```console\n")
    (tmp_path / "sharded.py").write_text(code, encoding="utf-8")
    command, printed, *_ = shown.splitlines()
    assert command == "$ torchrun --nproc-per-node 2 sharded.py"
    finished = started(str(tmp_path / "sharded.py"), ranks=2, cwd=tmp_path)
    check_done(finished)
    assert printed in finished.stdout.splitlines()


@pytest.mark.parametrize("box", [(slice(1, 4), slice(2, 7)), (slice(1, 4), slice(0, 7)), (slice(0, 5), slice(0, 7))])
def test_a_part_takes_its_bits_out_of_a_mask_and_puts_them_back(box: tuple[slice, slice]) -> None:
    mask = Mask({"w": torch.rand(5, 7) < 0.5})
    part = Part((5, 7), box)
    own = part.bits(mask.bits("w"))
    assert Mask.from_bits({"w": part.sizes}, {"w": own})["w"].equal(mask["w"][box])
    back = Mask.from_bits({"w": (5, 7)}, {"w": part.spread(own).tobytes()})
    assert back["w"][box].equal(mask["w"][box])
    assert back.kept == int(mask["w"][box].sum())
    inside = torch.arange(mask["w"][box].numel())
    assert part.positions(inside.numpy()).tolist() == torch.arange(35).reshape(5, 7)[box].reshape(-1).tolist()
