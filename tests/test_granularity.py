"""Units: a slow reference with Python loops, the laws of every pattern, and what is refused."""

import tracemalloc
from collections.abc import Mapping
from fractions import Fraction
from itertools import product
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from ticketkit import BudgetError, ConfigError, ElementwiseScores, Mask, Scope, ScopeError, ScoreError, select
from ticketkit import granularity as engine
from ticketkit.granularity import Layout, Member, Units, Weights, along
from ticketkit.testing import masks, scores, selections, shape_maps, tied_gru, tied_scores

Shapes = dict[str, tuple[int, ...]]
Scores = Mapping[str, torch.Tensor]
Unit = tuple[str, int]
POOLS = ("mean", "sum", "max")


# Drawing


def whole(draw: st.DrawFn, shape: tuple[int, ...], least: int, most: int) -> np.ndarray:
    size = prod(shape)
    values = draw(st.lists(st.integers(least, most), min_size=size, max_size=size))
    return np.array(values, np.int64).reshape(shape)


@st.composite
def patterns(draw: st.DrawFn, *, overlapping: bool) -> Units:
    """Return units of up to three spaces over up to four parameters, with every weight in any unit."""
    shapes = draw(shape_maps())
    spaces = {name: draw(st.integers(1, 4)) for name in draw(st.permutations("PQR"))[: draw(st.integers(1, 3))]}
    members = {}
    for name, shape in shapes.items():
        drawn = [draw(st.sampled_from(list(spaces))) for _ in range(draw(st.integers(1, 3)))]
        labels = [whole(draw, shape, -1 if overlapping else 0, spaces[space] - 1) for space in drawn]
        if overlapping:
            labels[-1] = np.where(np.max(labels, axis=0) < 0, 0, labels[-1])
        else:
            which = whole(draw, shape, 0, len(drawn) - 1)
            labels = [np.where(which == place, numbers, -1) for place, numbers in enumerate(labels)]
        found = [Member(space, numbers) for space, numbers in zip(drawn, labels, strict=True)]
        members[name] = tuple(found)
    return Units(shapes, spaces, members, draw(st.sampled_from(POOLS)))


@st.composite
def contests(draw: st.DrawFn, *, overlapping: bool = True) -> tuple[Units, dict[str, torch.Tensor], Mask]:
    """Return units, whole-number scores (whose means are exact) and a mask."""
    units = draw(patterns(overlapping=overlapping))
    mask = draw(st.one_of(st.just(Mask.ones(units.parameters)), masks(units.parameters)))
    scored = {n: torch.from_numpy(whole(draw, shape, -9, 9)).float() for n, shape in units.parameters.items()}
    return units, scored, mask


@st.composite
def counts(draw: st.DrawFn, most: Mapping[str, int]) -> dict[str, int]:
    return {name: draw(st.integers(0, top)) for name, top in most.items()}


# The definition, in loops over weights


class Impossible(Exception):  # noqa: N818
    """No whole units meet the budget."""


class Reference:
    """Every kept weight with its owner's space and the set of its units; every unit with its exact score."""

    def __init__(self, units: Units, scored: Scores, mask: Mask):
        self.mask, self.spaces = mask, dict(units.spaces)
        self.weights: list[tuple[str, int, str, set[Unit]]] = []
        worth: dict[Unit, list[Fraction]] = {}
        for name, shape in units.parameters.items():
            labels = [
                (member.space, np.broadcast_to(sum(member.terms), shape).reshape(-1).tolist())
                for member in units.members[name]
            ]
            values, kept = scored[name].double().flatten().tolist(), mask[name].flatten().tolist()
            for index in range(prod(shape)):
                if kept[index]:
                    own = [(space, numbers[index]) for space, numbers in labels if numbers[index] >= 0]
                    self.weights.append((name, index, own[0][0], set(own)))
                    for unit in set(own):
                        worth.setdefault(unit, []).append(Fraction(values[index]))
        pool = {"mean": lambda v: sum(v) / len(v), "sum": sum, "max": max}[units.pool]
        position = {(space, number): (i, number) for i, space in enumerate(units.spaces) for number in range(99)}
        self.ranked = sorted(worth, key=lambda unit: (-pool(worth[unit]), position[unit]))

    def best(self, ranked: list[Unit], keep: int, space: str | None = None) -> int:
        """Return the length of the longest list of best units that keeps at most `keep` weights."""
        length = max(length for length in range(len(ranked) + 1) if self.size(ranked[:length], space) <= keep)
        if keep and self.size(ranked, space) and not self.size(ranked[:length], space):
            raise Impossible
        return length

    def size(self, chosen: list[Unit], space: str | None = None) -> int:
        if space is None:
            return sum(own <= set(chosen) for *_, own in self.weights)
        return sum(
            {unit for unit in own if unit[0] == space} <= set(chosen)
            for _, _, owner, own in self.weights
            if owner == space
        )

    def sure(self, space: str, floor: int) -> list[Unit]:
        own = [unit for unit in self.ranked if unit[0] == space]
        return next(own[:length] for length in range(len(own) + 1) if self.size(own[:length], space) >= floor)

    def together(self, keep: int, floors: Mapping[str, int]) -> Mask:
        sure = [unit for space in self.spaces for unit in self.sure(space, floors.get(space, 0))]
        first = [unit for unit in self.ranked if unit in sure]
        ranked = first + [unit for unit in self.ranked if unit not in sure]
        if self.size(first) > keep:
            raise Impossible
        return self.keeping(ranked[: max(len(first), self.best(ranked, keep))])

    def apart(self, keep: Mapping[str, int]) -> Mask:
        chosen = []
        for space in self.spaces:
            own = [unit for unit in self.ranked if unit[0] == space]
            chosen += own[: self.best(own, keep[space], space)]
        return self.keeping(chosen)

    def keeping(self, chosen: list[Unit]) -> Mask:
        tensors = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in self.mask.shapes.items()}
        for name, index, _, own in self.weights:
            tensors[name].view(-1)[index] = own <= set(chosen)
        return Mask(tensors)


@given(contests(), st.data())
def test_the_longest_list_of_best_units_that_fits_is_kept(case: tuple, data: st.DataObject) -> None:
    units, scored, mask = case
    keep = data.draw(st.integers(0, mask.kept))
    try:
        expected = Reference(units, scored, mask).together(keep, {})
    except Impossible:
        with pytest.raises(BudgetError, match=r"the best of the . spaces of units has"):
            units.select(scored, mask, keep)
    else:
        assert units.select(scored, mask, keep) == expected
        assert expected.kept <= keep


@given(contests(overlapping=False), st.data())
def test_counts_per_space_are_ranked_inside_each_space(case: tuple, data: st.DataObject) -> None:
    units, scored, mask = case
    keep = data.draw(counts(units.capacities(mask)))
    try:
        expected = Reference(units, scored, mask).apart(keep)
    except Impossible:
        with pytest.raises(BudgetError, match="the best of space"):
            units.select(scored, mask, keep)
    else:
        assert units.select(scored, mask, keep) == expected


@given(contests(), st.data())
def test_overlapping_spaces_keep_their_best_units_until_no_other_fits(case: tuple, data: st.DataObject) -> None:
    units, scored, mask = case
    keep = data.draw(counts(units.capacities(mask)))
    reference = Reference(units, scored, mask)
    chosen = outcome(units, scored, mask, keep)
    assume(isinstance(chosen, Mask))
    ranked = {space: [unit for unit in reference.ranked if unit[0] == space] for space in units.spaces}

    def within(lengths: Mapping[str, int]) -> bool:
        left = units.capacities(reference.keeping([u for s, length in lengths.items() for u in ranked[s][:length]]))
        return all(left[space] <= count for space, count in keep.items())

    possible = (
        dict(zip(ranked, lengths, strict=True))
        for lengths in product(*(range(len(own) + 1) for own in ranked.values()))
    )
    assert any(
        within(lengths)
        and reference.keeping([unit for space, length in lengths.items() for unit in ranked[space][:length]]) == chosen
        and not any(
            within(lengths | {space: length + 1}) for space, length in lengths.items() if length < len(ranked[space])
        )
        for lengths in possible
    )


def test_a_space_uses_the_room_that_units_of_another_leave_it() -> None:
    rows, columns = Member("rows", [[0], [1]]), Member("columns", [[0, 1, 2, 3]])
    shapes = {"v": (1, 4), "w": (2, 4)}
    units = Units(shapes, {"columns": 4, "rows": 2}, {"v": (columns,), "w": (rows, columns)})
    scored = {"v": torch.tensor([[4.0, 3.0, 2.0, 1.0]]), "w": torch.tensor([[2.0], [1.0]]).expand(2, 4)}
    chosen = units.select(scored, Mask.ones(shapes), {"columns": 2, "rows": 4})
    assert chosen["w"].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]


@given(contests(), st.data())
def test_floors_keep_the_best_units_of_a_space_first(case: tuple, data: st.DataObject) -> None:
    units, scored, mask = case
    floors = data.draw(counts(units.capacities(mask)))
    keep = data.draw(st.integers(0, mask.kept))
    try:
        expected = Reference(units, scored, mask).together(keep, floors)
    except Impossible:
        with pytest.raises(BudgetError):
            units.select(scored, mask, keep, floors)
    else:
        assert units.select(scored, mask, keep, floors) == expected


@given(contests(overlapping=False), st.data())
def test_floors_of_disjoint_units_hold_in_weights(case: tuple, data: st.DataObject) -> None:
    units, scored, mask = case
    floors = data.draw(counts(units.capacities(mask)))
    try:
        chosen = units.select(scored, mask, data.draw(st.integers(0, mask.kept)), floors)
    except BudgetError:
        assume(False)
    assert all(units.capacities(chosen)[space] >= floor for space, floor in floors.items())


# Laws


def outcome(units: Units, *arguments: object) -> Mask | str:
    try:
        return units.select(*arguments)
    except BudgetError as error:
        return str(error)


@given(patterns(overlapping=True), st.data())
def test_any_scores_keep_at_most_the_budget_inside_the_prior_mask(units: Units, data: st.DataObject) -> None:
    mask = data.draw(masks(units.parameters))
    dtype = data.draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
    scored = data.draw(st.one_of(scores(mask, dtype=dtype), tied_scores(mask, dtype=dtype)))
    keep = data.draw(st.integers(0, mask.kept))
    chosen = outcome(units, scored, mask, keep)
    if isinstance(chosen, Mask):
        assert chosen <= mask
        assert chosen.kept <= keep
        assert chosen.kept or not keep
    assert units.select(scored, mask, mask.kept) == mask
    assert units.select(scored, mask, 0).kept == 0


@given(contests(overlapping=False), st.data())
def test_the_next_best_unit_would_exceed_the_budget(case: tuple, data: st.DataObject) -> None:
    units, scored, mask = case
    keep = data.draw(st.integers(0, mask.kept))
    chosen = outcome(units, scored, mask, keep)
    assume(isinstance(chosen, Mask) and chosen.kept < mask.kept)
    lost = mask - chosen
    reference = Reference(units, scored, mask)
    best_lost = next(unit for unit in reference.ranked if not reference.keeping([unit]) <= chosen)
    assert reference.keeping([best_lost]) <= lost, "units stay or go whole"
    assert chosen.kept + reference.size([best_lost]) > keep


@given(contests(overlapping=False), st.data())
def test_disjoint_units_are_a_chain(case: tuple, data: st.DataObject) -> None:
    units, scored, mask = case
    keep = data.draw(st.integers(0, mask.kept))
    halfway = outcome(units, scored, mask, data.draw(st.integers(keep, mask.kept)))
    assume(isinstance(halfway, Mask) and halfway.kept >= keep)
    assert outcome(units, scored, halfway, keep) == outcome(units, scored, mask, keep)


@given(contests(), st.data())
def test_no_order_of_a_dict_changes_the_mask(case: tuple, data: st.DataObject) -> None:
    units, scored, mask = case
    floors = data.draw(counts(units.capacities(mask)))
    keep = data.draw(counts(units.capacities(mask)))
    turned = Units(units.parameters, units.spaces, dict(reversed(units.members.items())), units.pool)

    def back(mapping: Mapping) -> dict:
        return dict(reversed(mapping.items()))

    assert outcome(turned, back(scored), mask, keep) == outcome(units, scored, mask, keep)
    joint = sum(keep.values())
    assert outcome(turned, back(scored), mask, joint, back(floors)) == outcome(units, scored, mask, joint, floors)


@given(contests(), st.integers(-4, 4), st.data())
def test_scaling_by_a_power_of_two_changes_nothing(case: tuple, power: int, data: st.DataObject) -> None:
    units, scored, mask = case
    keep = data.draw(st.integers(0, mask.kept))
    scaled = {name: values * 2.0**power for name, values in scored.items()}
    assert outcome(units, scaled, mask, keep) == outcome(units, scored, mask, keep)


@given(contests(overlapping=False))
def test_scores_expanded_from_units_pool_to_themselves(case: tuple) -> None:
    units, _, mask = case
    first, worth = engine._firsts(units), np.arange(sum(units.spaces.values())) * 3.0 - 7
    expanded = {
        name: torch.tensor(
            sum(
                np.where(member.terms[0] < 0, 0, worth[member.terms[0] + first[member.space]])
                for member in units.members[name]
            )
        )
        for name in units.parameters
    }
    for pool in ("mean", "max"):
        pooled, left = engine._pooled(Units(units.parameters, units.spaces, units.members, pool), expanded, mask)
        assert (pooled == worth)[left > 0].all()
        assert left.sum() == mask.kept


@given(patterns(overlapping=True), st.data())
def test_owners_partition_every_shape(units: Units, data: st.DataObject) -> None:
    assert list(units.shapes) == list(units.spaces)
    assert sum(map(prod, units.shapes.values())) == sum(map(prod, units.parameters.values()))
    mask = data.draw(masks(units.parameters))
    left = units.capacities(mask)
    assert sum(left.values()) == mask.kept
    assert all(0 <= left[space] <= prod(shape) for space, shape in units.shapes.items())


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
    whole, joint = engine._pooled(units, scored, mask), units.select(scored, mask, mask.kept // 3)
    monkeypatch.setattr(engine, "CHUNK", chunk)
    pooled = engine._pooled(units, scored, mask)
    assert all(np.array_equal(one, other) for one, other in zip(pooled, whole, strict=True))
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


def test_a_single_row_longer_than_a_chunk_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CHUNK", 8)
    units = Units.of({"w": (2, 30)}, {"w": (along(np.arange(2) * 3, 0, 2), along(np.arange(30) // 10, 1, 2))})
    chosen = units.select({"w": torch.arange(60.0).reshape(2, 30)}, Mask.ones({"w": (2, 30)}), 25)
    assert chosen["w"].flatten().nonzero().flatten().tolist() == list(range(40, 60))


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
    pooled, left = engine._pooled(units, {"w": torch.ones(3, 3)}, Mask.ones({"w": (3, 3)}))
    assert pooled.tolist() == left.tolist() == [5, 8]


def test_units_that_are_empty_take_no_part() -> None:
    units = Units.of({"w": (4,)}, {"w": [0, 1, 2, 3]})
    mask = Mask({"w": torch.tensor([True, False, True, False])})
    chosen = units.select({"w": torch.tensor([1.0, 9.0, 2.0, float("nan")])}, mask, 1)
    assert chosen["w"].tolist() == [False, False, True, False]


# Every weight by itself


@given(selections())
def test_single_weights_are_selected_as_ever(case: tuple) -> None:
    scored, mask, keep = case
    pattern = Weights(mask.shapes)
    assert pattern.select(scored, mask, keep) == select(scored, mask, keep)
    chosen = select(scored, mask, keep)
    assert pattern.select(scored, mask, chosen.counts, {"no": 1}) == select(scored, mask, chosen.counts)
    floors = {name: min(1, count) for name, count in chosen.counts.items()}
    assert pattern.select(scored, mask, keep, floors) == select(scored, mask, keep, floors=floors)
    assert pattern.capacities(mask) == mask.counts
    assert pattern.final_count(keep) == keep


@given(selections().filter(lambda case: max(float(t.double().abs().sum()) for t in case[0].values()) < 1e300))
def test_units_of_one_weight_are_selected_like_weights(case: tuple) -> None:
    scored, mask, keep = case
    labels = {name: np.arange(prod(shape)).reshape(shape) for name, shape in mask.shapes.items()}
    assert Units.of(mask.shapes, labels).select(scored, mask, keep) == select(scored, mask, keep)


# Refusals


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_refused_unless_its_weight_is_gone(bad: float) -> None:
    units = Units.of({"w": (4,)}, {"w": [0, 0, 1, 1]})
    scored = {"w": torch.tensor([1.0, 2.0, bad, 0.0])}
    for keep in (0, 2, 4):
        with pytest.raises(ScoreError, match="parameter 'w' is"):
            units.select(scored, Mask.ones({"w": (4,)}), keep)
    mask = Mask({"w": torch.tensor([True, True, False, True])})
    assert units.select(scored, mask, 2)["w"].tolist() == [True, True, False, False]


def test_a_pooled_score_that_overflows_is_refused() -> None:
    units = Units.of({"w": (2,)}, {"w": [0, 0]})
    with pytest.raises(ScoreError, match="the mean of the scores of a unit overflows"):
        units.select({"w": torch.full((2,), 1e308, dtype=torch.float64)}, Mask.ones({"w": (2,)}), 2)


@pytest.mark.parametrize(
    ("keep", "floors", "message"),
    [
        (-1, {}, "cannot keep -1 weights"),
        (9, {}, "cannot keep 9 weights: the 2 spaces of units has 8 left"),
        (1, {}, "cannot keep 1 weights: units stay or go whole, and the best of the 2 spaces of units has 2"),
        (0.5, {}, "keep must be a number of weights"),
        ({"a": 4, "b": 2.0}, {}, r"keep\['b'\] must be a number of weights"),
        ({"a": 4}, {}, r"every space of units and no other; check \['b'\]"),
        ({"a": 4, "b": 1}, {}, "the best of space 'b' has 2"),
        ({"a": 5, "b": 2}, {}, "cannot keep 5 weights: space 'a' has 4 left"),
        ({"a": 3, "b": 4}, {"a": 3}, "floor of 'a' is 3 weights, which whole units meet with 4, but its count is 3"),
        (4, {"a": 5}, "floor of 'a' is 5 weights, but only 4 are left"),
        (4, {"a": 3, "b": 1}, "floors ask for 6 weights, the budget is 4"),
        (4, {"c": 1}, r"floors name spaces that there are not: \['c'\]; there are: a, b"),
    ],
)
def test_a_budget_that_units_cannot_meet_is_refused(keep: object, floors: dict[str, int], message: str) -> None:
    shapes = {"a": (2, 2), "b": (2, 2)}
    units = Units.of(shapes, {"a": [[0], [1]], "b": [[0], [1]]})
    with pytest.raises(BudgetError, match=message):
        units.select({"a": torch.ones(2, 2), "b": torch.ones(2, 2)}, Mask.ones(shapes), keep, floors)


def test_a_mask_of_other_parameters_is_refused() -> None:
    units = Units.of({"w": (2,)}, {"w": [0, 1]})
    with pytest.raises(BudgetError, match=r"w: expected shape \(2,\), found \(3,\)"):
        units.select({"w": torch.ones(3)}, Mask.ones({"w": (3,)}), 1)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "belong to no unit: w"),
        ({"w": (Member("u", [[0], [1]]),), "v": (Member("u", 0),)}, "not masked: v"),
        ({"w": (Member("t", 0),)}, "no such space; there are: u"),
        ({"w": (Member("u", [[0.0], [1.0]]),)}, "must be whole numbers, not float64"),
        ({"w": (Member("u", [0, 1, 1]),)}, r"have shapes \[\(3,\)\], which do not broadcast"),
        ({"w": (Member("u", np.zeros((3, 2, 2), int)),)}, "do not broadcast"),
        ({"w": (Member("u", [[0], [2]]),)}, "go from 0 to 2, allowed are -1 to 1"),
        ({"w": (Member("u", [[0], [-1]]),)}, "2 weights of 'w' belong to no unit"),
        ({"w": (Member("u", [[0], [-1]]), Member("u", [[-1, 0]]))}, "1 weights of 'w' belong to no unit"),
        ({"w": (Member("u", 0), Member("u", [[-2], [1]]))}, "go from -2 to 1, allowed are -1 to 1"),
        ({"w": (Member("u", (np.array([[0], [1]]), np.array([0, 1]))),)}, "go from 0 to 2"),
    ],
)
def test_wrong_labels_are_refused(members: dict[str, tuple[Member, ...]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Units({"w": (2, 2)}, {"u": 2}, members)


def test_an_unknown_pool_is_refused() -> None:
    with pytest.raises(ConfigError, match="pool must be mean, sum or max, not 'median'"):
        Units({"w": (2,)}, {"u": 1}, {"w": (Member("u", 0),)}, "median")


def test_labels_may_be_tensors() -> None:
    units = Units.of({"w": (2, 2)}, {"w": torch.tensor([[0], [1]])})
    assert units.spaces == {"w": 2}
    assert units.shapes == {"w": (2, 2)}


def test_narrow_labels_do_not_overflow() -> None:
    labels = {name: torch.arange(100, dtype=torch.int8) for name in "abc"}
    units = Units.of(dict.fromkeys("abc", (100,)), labels)
    scored = {name: torch.arange(100.0) + place for place, name in enumerate("abc")}
    chosen = units.select(scored, Mask.ones(units.parameters), 3)
    assert [flags.nonzero().flatten().tolist() for flags in chosen.values()] == [[], [99], [98, 99]]


# The layout


def test_a_tied_parameter_has_all_its_holders() -> None:
    model = tied_gru()
    layout = Layout.of(model, Scope.of(model).shapes)
    assert [holder.name for holder in layout.holders["embedding.weight"]] == ["embedding.weight", "output.weight"]
    assert [type(holder.module) for holder in layout.holders["embedding.weight"]] == [nn.Embedding, nn.Linear]
    assert list(layout.shapes) == list(Scope.of(model).shapes)


def test_a_layout_of_another_model_is_refused() -> None:
    with pytest.raises(ScopeError, match=r"no\.weight"):
        Layout.of(nn.Linear(2, 2), {"no.weight": (2, 2)})


CONVOLUTIONS = {
    "conv": lambda: nn.Conv1d(4, 6, 3, bias=False),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False),
    "depthwise": lambda: nn.Conv1d(4, 4, 3, groups=4, bias=False),
    "transposed": lambda: nn.ConvTranspose1d(4, 6, 3, bias=False),
    "transposed, grouped": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False),
    "linear": lambda: nn.Linear(4, 6, bias=False),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_outputs_and_inputs_are_what_the_layer_writes_and_reads(name: str) -> None:
    layer = CONVOLUTIONS[name]().double()
    shape = tuple(layer.weight.shape)
    dims = 0 if isinstance(layer, nn.Linear) else layer.weight.dim() - 2
    signal = torch.randn(2, 4, *[7] * dims, dtype=torch.float64)
    layout = Layout.of(layer, {"weight": shape})
    before, weight = layer(signal).detach(), layer.weight.detach().clone()
    for side, (count, labels) in {"out": layout.outputs("weight"), "in": layout.inputs("weight")}.items():
        assert count == (before.shape[1] if side == "out" else 4)
        unit = torch.from_numpy(np.broadcast_to(sum(Member("", labels).terms), shape).copy())
        for index in range(count):
            with torch.no_grad():
                layer.weight.copy_(weight).masked_fill_(unit == index, 0)
            if side == "out":
                expected = before.clone()
                expected[:, index] = 0
                torch.testing.assert_close(layer(signal), expected, rtol=0, atol=0)
            else:
                silent = signal.clone()
                silent[:, index] = 0
                after = layer(signal)
                layer.weight.data.copy_(weight)
                torch.testing.assert_close(after, layer(silent))
        layer.weight.data.copy_(weight)
