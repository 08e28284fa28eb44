"""Run by torchrun: a selection over distributed scores is that over whole ones, on every rank, bit for bit."""

import os
from collections.abc import Mapping

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from ticketkit import ElementwiseScores, Mask, RunError, ScoreError, contenders, select, selection
from ticketkit.allocation import floor_counts
from ticketkit.distributed import AllRanks

torch.set_num_threads(1)
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (dist.get_world_size(),))
draw = np.random.default_rng(0)  # the same draws on every rank
SHAPES = [(7, 5), (1, 9), (16,), (2, 3, 4), (0, 3), (1, 1), (), (40, 8)]
KINDS = {
    "ties": lambda shape: draw.integers(-2, 2, shape).astype(np.float32),
    "zeros": lambda shape: np.zeros(shape, np.float32),
    "float64": lambda shape: draw.standard_normal(shape),
    "float32": lambda shape: draw.standard_normal(shape).astype(np.float32),
}


def placed(values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Shard along a random axis, hold a copy on each rank, or leave a tensor as it is."""
    found = {}
    for index, (name, tensor) in enumerate(values.items()):
        places = [Shard(axis) for axis in range(tensor.ndim)] + [Replicate(), None]
        place = places[int(draw.integers(len(places)))] if index or not tensor.ndim else Shard(0)
        found[name] = tensor if place is None else distribute_tensor(tensor, mesh, [place])
    return found


def same(whole: Mapping[str, torch.Tensor], mask: Mask, keep: int | Mapping[str, int], **options: object) -> None:
    assert select(placed(whole), mask, keep, **options) == select(whole, mask, keep, **options)
    elementwise = ElementwiseScores(lambda _, values: values.abs() / 3, placed(whole))
    expected = {name: values.abs() / 3 for name, values in whole.items()}
    assert select(elementwise, mask, keep, **options) == select(expected, mask, keep, **options)
    assert all(
        elementwise[name].full_tensor().equal(expected[name])
        for name in whole
        if hasattr(elementwise[name], "full_tensor")
    )


for case in range(12):
    contenders.CHUNK = int(draw.choice([8, 1 << 18]))
    contenders.SAMPLE = int(draw.choice([2, 1 << 17]))
    selection.UNDECIDED = int(draw.choice([0, 1 << 22]))
    kind = list(KINDS)[case % len(KINDS)]
    shapes = {f"w{index}": SHAPES[index] for index in draw.permutation(len(SHAPES))[: draw.integers(1, 5)]}
    shapes = {"first": (11, 3), **shapes}
    whole = {name: torch.from_numpy(np.asarray(KINDS[kind](shape))) for name, shape in shapes.items()}
    mask = Mask({name: torch.from_numpy(np.asarray(draw.random(shape) < 0.7)) for name, shape in shapes.items()})
    same(whole, mask, int(draw.integers(0, mask.kept + 1)))
    same(whole, mask, {name: int(draw.integers(0, count + 1)) for name, count in mask.counts.items()})
    floors = {name: min(n, mask.counts[name]) for name, n in floor_counts(shapes, 0.2).items()}
    same(whole, mask, int(draw.integers(sum(floors.values()), mask.kept + 1)), floors=floors)

broken = torch.ones(11, 3)
broken[10, 2] = torch.nan  # on the last rank alone
mask = Mask.ones({"first": (11, 3)})
for keep in (5, 33):
    with pytest.raises(ScoreError, match=f"rank {dist.get_world_size() - 1}: score of parameter 'first' is nan"):
        select({"first": distribute_tensor(broken, mesh, [Shard(0)])}, mask, keep)
with pytest.raises(RunError, match="rank 1: ZeroDivisionError: integer division"):
    AllRanks().each(lambda: 1 // (dist.get_rank() - 1))  # an error of any kind reaches every rank

print("selected alike", flush=True)
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # gloo's threads may outlive the group and abort an ordinary exit
