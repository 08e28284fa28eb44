"""Pooled scores to the bit, whatever the chunks and threads."""

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


@pytest.mark.parametrize("pool", ["sum", "mean"])
def test_scores_are_added_one_by_one_in_canonical_order(pool: str) -> None:
    """The stated order, in Python floats: places in the lists of members apart, pruned weights left out."""
    units, scored, mask = large_case()
    scored["a"][~mask["a"]] = float("nan")
    sums = [[0.0] * sum(units.spaces.values()) for _ in range(2)]
    counts = [0] * len(sums[0])
    first = {"columns": 0, "rows": 69}
    for name, shape in units.parameters.items():
        values, kept = scored[name].double().flatten().tolist(), mask[name].flatten().tolist()
        for place, member in enumerate(units.members[name]):
            labels = np.broadcast_to(member.terms[0], shape).reshape(-1).tolist()
            for value, stays, label in zip(values, kept, labels, strict=True):
                if stays and label >= 0:
                    sums[place][first[member.space] + label] += value
                    counts[first[member.space] + label] += 1
    expected = [sum(parts) for parts in zip(*sums, strict=True)]
    if pool == "mean":
        expected = [value / count for value, count in zip(expected, counts, strict=True)]
    contest = Contest.of(units.membership, scored, mask, pool)
    assert contest.scores.tolist() == expected
    assert contest.counts.tolist() == counts
