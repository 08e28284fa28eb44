"""Pooled scores to the bit, whatever the chunks and threads, and memory that does not grow with the weights."""

import tracemalloc

import numpy as np
import pytest
import torch

from ticketkit import ElementwiseScores, Mask, Member, ScoreError, Units
from ticketkit import members as reading
from ticketkit.contest import Contest
from ticketkit.granularity import along

POOLS = ("mean", "sum", "max")


def large_case() -> tuple[Units, dict[str, torch.Tensor], Mask]:
    shapes = {"a": (300, 70), "b": (7, 11, 13), "c": (), "d": (0, 3)}
    draw = torch.Generator().manual_seed(0)
    rows = {name: along(np.arange(shape[0]) % 50, 0, len(shape)) if shape else 3 for name, shape in shapes.items()}
    members = {name: (Member("rows", labels),) for name, labels in rows.items()}
    members["a"] += (Member("columns", along(np.arange(70) - 1, 1, 2)),)
    units = Units(shapes, {"columns": 69, "rows": 50}, members)
    mask = Mask({name: torch.rand(shape, generator=draw) < 0.6 for name, shape in shapes.items()})
    return units, {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}, mask


@pytest.mark.parametrize("chunk", [8, 64, 4096])
@pytest.mark.parametrize("pool", POOLS)
def test_the_chunk_size_changes_no_bit(monkeypatch: pytest.MonkeyPatch, chunk: int, pool: str) -> None:
    units, scored, mask = large_case()
    units = Units(units.parameters, units.spaces, units.members, pool)
    whole = Contest.of(units.membership, scored, mask, units.pool)
    joint = units.select(scored, mask, mask.kept // 3)
    monkeypatch.setattr(reading, "CHUNK", chunk)
    cut = Contest.of(units.membership, scored, mask, units.pool)
    assert np.array_equal(cut.scores, whole.scores)
    assert np.array_equal(cut.counts, whole.counts)
    assert units.select(scored, mask, mask.kept // 3) == joint
    assert 0 < joint.kept < mask.kept // 3 + 1


def test_threads_change_no_bit() -> None:
    units, scored, mask = large_case()
    lazy = ElementwiseScores(lambda _, values: values.abs(), scored)
    before, chosen = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            chosen.append(units.select(lazy, mask, mask.kept // 2))
    finally:
        torch.set_num_threads(before)
    assert chosen[0] == chosen[1]


def test_labels_of_a_large_matrix_are_never_written_out() -> None:
    side = 3000  # written out, the labels alone would be 72 MB
    labels = (along(np.arange(side) // 4 * (side // 4), 0, 2), along(np.arange(side) // 4, 1, 2))
    units = Units.of({"w": (side, side)}, {"w": labels})
    scored, mask = (
        {"w": torch.rand(side, side, generator=torch.Generator().manual_seed(0))},
        Mask.ones(units.parameters),
    )
    tracemalloc.start()
    chosen = units.select(scored, mask, side * side // 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert chosen.kept == side * side // 5
    assert peak < 48e6


def test_half_precision_scores_are_pooled_in_float64() -> None:
    units = Units.of({"w": (3, 4000)}, {"w": [[0], [1], [2]]}, pool="sum")
    scored = torch.full((3, 4000), 6e4, dtype=torch.float16)
    scored[1, 7] = 59968  # the next float16 below: lost in a sum of float16, or of float32
    scored[2, :] = 6e4
    chosen = units.select({"w": scored}, Mask.ones({"w": (3, 4000)}), 8000)
    assert chosen["w"].all(dim=1).tolist() == [True, False, True]


def test_a_weight_counts_once_in_a_unit_it_belongs_to_twice() -> None:
    labels = np.array([0, 1, 1])
    twice = (Member("u", along(labels, 0, 2)), Member("u", along(labels, 1, 2)))
    units = Units({"w": (3, 3)}, {"u": 2}, {"w": twice}, pool="sum")
    contest = Contest.of(units.membership, {"w": torch.ones(3, 3)}, Mask.ones({"w": (3, 3)}), "sum")
    assert contest.scores.tolist() == contest.counts.tolist() == [5, 8]


def test_a_pooled_score_that_overflows_is_refused() -> None:
    units = Units.of({"w": (2,)}, {"w": [0, 0]})
    with pytest.raises(ScoreError, match="the mean of the scores of a unit overflows"):
        units.select({"w": torch.full((2,), 1e308, dtype=torch.float64)}, Mask.ones({"w": (2,)}), 2)
