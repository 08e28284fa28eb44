"""N of every M: held against groups written out with loops."""

from collections.abc import Iterator, Mapping
from math import ceil, prod

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from ticketkit import BudgetError, ConfigError, Layout, Mask, ScopeError, ScoreError, select
from ticketkit.builtin import n_m as builtin
from ticketkit.builtin.n_m import NOfM
from ticketkit.testing import masks, scores, tied_scores

Scores = Mapping[str, torch.Tensor]


@st.composite
def n_of_m(draw: st.DrawFn) -> tuple[NOfM, dict[str, torch.Tensor]]:
    """Return an N:M pattern along any axis of up to three parameters, ragged ones included, and scores."""
    m = draw(st.integers(2, 4))
    sides = st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple)
    shapes = {name: draw(sides) for name in ("b", "a", "c")[: draw(st.integers(1, 3))]}
    axes = {name: draw(st.integers(0, len(shape) - 1)) for name, shape in shapes.items()}
    return NOfM(shapes, axes, draw(st.integers(1, m - 1)), m), draw(st.one_of(scores(shapes), tied_scores(shapes)))


def groups(pattern: NOfM) -> Iterator[tuple[str, list[tuple[int, ...]]]]:
    """Yield the indices of every group."""
    for name, shape in pattern.shapes.items():
        axis = pattern.axes[name]
        for start in np.ndindex(*[ceil(size / pattern.m) if d == axis else size for d, size in enumerate(shape)]):
            run = range(start[axis] * pattern.m, min((start[axis] + 1) * pattern.m, shape[axis]))
            yield name, [(*start[:axis], i, *start[axis + 1 :]) for i in run]


def best_of_groups(pattern: NOfM, scored: Scores, mask: Mask) -> Mask:
    tensors = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in pattern.shapes.items()}
    for name, indices in groups(pattern):
        alive = [index for index in indices if mask[name][index]]
        for index in sorted(alive, key=lambda index: -float(scored[name][index]))[: pattern.n]:  # a stable sort
            tensors[name][index] = True
    return Mask(tensors)


@given(n_of_m(), st.data())
def test_the_best_n_of_every_group_are_sure_to_stay(case: tuple, data: st.DataObject) -> None:
    pattern, scored = case
    mask = data.draw(masks(pattern.shapes))
    sure = best_of_groups(pattern, scored, mask)
    keep = data.draw(st.integers(sure.kept, mask.kept))
    chosen = pattern.select(scored, mask, keep)
    assert chosen == sure | select(scored, mask - sure, keep - sure.kept)
    assert chosen.kept == keep
    assert sure <= chosen <= mask
    halfway = pattern.select(scored, mask, data.draw(st.integers(keep, mask.kept)))
    assert pattern.select(scored, halfway, keep) == chosen


@given(n_of_m())
def test_the_end_has_exactly_n_in_every_full_group(case: tuple) -> None:
    pattern, scored = case
    total = sum(map(prod, pattern.shapes.values()))
    mask = Mask.ones(pattern.shapes)
    end = pattern.final_count(round(total * pattern.n / pattern.m))
    for keep in (max(end, round(0.8 * total)), end):
        mask = pattern.select(scored, mask, keep)
    assert mask == best_of_groups(pattern, scored, Mask.ones(pattern.shapes))
    for name, indices in groups(pattern):
        assert sum(bool(mask[name][index]) for index in indices) == min(pattern.n, len(indices))


@given(n_of_m(), st.data())
def test_counts_per_parameter_give_way_to_groups(case: tuple, data: st.DataObject) -> None:
    pattern, scored = case
    mask = data.draw(masks(pattern.shapes))
    counts = {name: data.draw(st.integers(0, count)) for name, count in mask.counts.items()}
    sure = best_of_groups(pattern, scored, mask)
    if sum(counts.values()) < sure.kept:
        with pytest.raises(BudgetError, match=f"{pattern.n} of every {pattern.m} are {sure.kept}"):
            pattern.select(scored, mask, counts)
        return
    chosen = pattern.select(scored, mask, counts)
    assert chosen.kept == sum(counts.values())
    assert sure <= chosen <= mask
    if all(counts[name] >= sure.counts[name] for name in counts):
        assert chosen.counts == counts
    assert pattern.select(dict(reversed(scored.items())), mask, dict(reversed(counts.items()))) == chosen


@given(n_of_m(), st.data())
def test_counts_never_give_way_below_their_floors(case: tuple, data: st.DataObject) -> None:
    pattern, scored = case
    mask = Mask.ones(pattern.shapes)
    counts = {name: data.draw(st.integers(0, count)) for name, count in mask.counts.items()}
    floors = {name: data.draw(st.integers(0, count)) for name, count in counts.items()}
    least = {name: max(floors[name], count) for name, count in best_of_groups(pattern, scored, mask).counts.items()}
    if sum(counts.values()) < sum(least.values()):
        with pytest.raises(BudgetError):
            pattern.select(scored, mask, counts, floors)
        return
    chosen = pattern.select(scored, mask, counts, floors)
    assert chosen.kept == sum(counts.values())
    assert all(chosen.counts[name] >= count for name, count in least.items())


@given(n_of_m(), st.data())
def test_floors_hold_besides_the_groups(case: tuple, data: st.DataObject) -> None:
    pattern, scored = case
    mask = Mask.ones(pattern.shapes)
    floors = {name: data.draw(st.integers(0, count)) for name, count in mask.counts.items()}
    least = {name: max(floors[name], count) for name, count in best_of_groups(pattern, scored, mask).counts.items()}
    assume(sum(least.values()) <= mask.kept)
    chosen = pattern.select(scored, mask, data.draw(st.integers(sum(least.values()), mask.kept)), floors)
    assert all(chosen.counts[name] >= count for name, count in least.items())


def test_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = {"a": (13, 9), "b": (13, 9), "c": (5, 7, 3)}
    pattern = NOfM(shapes, {"a": 0, "b": 1, "c": 1}, 2, 4)
    scored = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    mask = Mask({name: torch.rand(shape, generator=draw) < 0.7 for name, shape in shapes.items()})
    whole = pattern.best_of_groups(scored, mask)
    assert whole == best_of_groups(pattern, scored, mask)
    for chunk in (8, 64):
        monkeypatch.setattr(builtin, "CHUNK", chunk)
        assert pattern.best_of_groups(scored, mask) == whole


@pytest.mark.parametrize(
    ("layer", "axis"),
    [(nn.Linear(8, 4), 1), (nn.Conv2d(8, 4, 3), 1), (nn.ConvTranspose2d(8, 4, 3), 0), (nn.Embedding(4, 8), 1)],
    ids=lambda value: type(value).__name__,
)
def test_n_m_runs_along_inputs(layer: nn.Module, axis: int) -> None:
    pattern = builtin.n_m(Layout.of(layer, {"weight": tuple(layer.weight.shape)}), options=builtin.NOfMOptions())
    assert pattern == NOfM({"weight": tuple(layer.weight.shape)}, {"weight": axis}, 2, 4)


def test_n_m_ends_at_its_own_density_only() -> None:
    pattern = NOfM({"w": (3, 10)}, {"w": 1}, 2, 4)
    assert pattern.final_count(15) == 3 * (2 + 2 + 2)
    for planned in (14, 16, 3):
        with pytest.raises(BudgetError, match=r"2:4 ends with 2 of every 4 weights, .* use density=0.5"):
            pattern.final_count(planned)
    assert NOfM({"w": (3, 3)}, {"w": 1}, 1, 3).final_count(round(9 * (1 / 3))) == 3


def test_equals_in_a_large_group_stay_by_position() -> None:
    pattern, mask = NOfM({"w": (2, 80)}, {"w": 1}, 20, 40), Mask.ones({"w": (2, 80)})
    scored = {"w": torch.randint(3, (2, 80), generator=torch.Generator().manual_seed(0)).float()}
    assert pattern.select(scored, mask, 80) == best_of_groups(pattern, scored, mask)


def test_n_m_refuses_bad_scores_budgets_and_shapes() -> None:
    pattern, mask = NOfM({"w": (1, 4)}, {"w": 1}, 2, 4), Mask.ones({"w": (1, 4)})
    with pytest.raises(ScoreError, match="parameter 'w' is nan"):
        pattern.select({"w": torch.tensor([[1.0, float("nan"), 2.0, 3.0]])}, mask, 3)
    for keep in (1, 5, -1):
        with pytest.raises(BudgetError, match="cannot keep"):
            pattern.select({"w": torch.ones(1, 4)}, mask, keep)
    with pytest.raises(BudgetError, match="cannot keep -1 weights of 'w'"):
        pattern.select({"w": torch.ones(1, 4)}, mask, {"w": -1})
    with pytest.raises(BudgetError, match=r"check \['v'\]"):
        pattern.select({"w": torch.ones(1, 4)}, mask, {"w": 3, "v": 0})
    with pytest.raises(BudgetError, match="number of weights"):
        pattern.select({"w": torch.ones(1, 4)}, mask, 2.0)
    with pytest.raises(ScopeError, match="'n_m' has no units for bias; set the scope"):
        builtin.n_m(Layout.of(nn.Linear(2, 3), {"weight": (3, 2), "bias": (3,)}), options=builtin.NOfMOptions())
    with pytest.raises(ConfigError, match="1 <= n < m, not 4:2"):
        NOfM({}, {}, 4, 2)
