"""Units: a slow reference with Python loops, the laws of every pattern, and what is refused."""

import tracemalloc
from collections.abc import Mapping
from fractions import Fraction
from itertools import product
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ticketkit import BudgetError, ConfigError, Mask, Member, ScoreError, Units, select
from ticketkit.contest import Contest
from ticketkit.granularity import along
from ticketkit.testing import masks, scores, selections, shape_maps, tied_scores

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

    def longest(self, ranked: list[Unit], keep: int, space: str | None = None) -> int:
        """Return the length of the longest list of best units that keeps at most `keep` weights."""
        return max(length for length in range(len(ranked) + 1) if self.size(ranked[:length], space) <= keep)

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
        number = max(len(first), self.longest(ranked, keep))
        if self.size(first) > keep or (keep and not self.size(ranked[:number])):
            raise Impossible
        return self.keeping(ranked[:number])

    def apart(self, keep: Mapping[str, int], floors: Mapping[str, int]) -> Mask:
        total, sure, chosen = sum(keep.values()), [], []
        for space in self.spaces:
            own, held = [unit for unit in self.ranked if unit[0] == space], self.sure(space, floors.get(space, 0))
            sure += held
            chosen += own[: max(len(held), self.longest(own, keep[space], space))]
        if self.size(chosen) > total:
            first = [unit for unit in self.ranked if unit in sure]
            ranked = first + [unit for unit in self.ranked if unit in chosen and unit not in sure]
            chosen = ranked[: self.longest(ranked, total)]
            if len(chosen) < len(first):
                raise Impossible
        if total and not self.size(chosen):
            return self.together(total, floors)
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


@given(contests(overlapping=False), st.booleans(), st.data())
def test_counts_per_space_are_ranked_inside_each_space(case: tuple, floored: bool, data: st.DataObject) -> None:
    units, scored, mask = case
    keep = data.draw(counts(units.capacities(mask)))
    floors = data.draw(counts(keep)) if floored else {}
    try:
        expected = Reference(units, scored, mask).apart(keep, floors)
    except Impossible:
        with pytest.raises(BudgetError, match=r"floors ask for|too small counts has"):
            units.select(scored, mask, keep, floors)
    else:
        assert units.select(scored, mask, keep, floors) == expected


@given(contests(), st.data())
def test_counts_with_floors_never_keep_more_than_their_sum(case: tuple, data: st.DataObject) -> None:
    units, scored, mask = case
    keep = data.draw(counts(units.capacities(mask)))
    chosen = outcome(units, scored, mask, keep, data.draw(counts(keep)))
    if isinstance(chosen, Mask):
        assert chosen.kept <= sum(keep.values())
        assert bool(chosen.kept) == any(keep.values())


@given(contests(overlapping=False), st.data())
def test_counts_of_disjoint_units_hold_their_floors_in_weights(case: tuple, data: st.DataObject) -> None:
    units, scored, mask = case
    keep = data.draw(counts(units.capacities(mask)))
    floors = data.draw(counts(keep))
    chosen = outcome(units, scored, mask, keep, floors)
    assume(isinstance(chosen, Mask))
    assert all(units.capacities(chosen)[space] >= floor for space, floor in floors.items())


PAIRS = Units.of({"a": (2, 2), "b": (2, 2)}, {"a": [[0], [1]], "b": [[0], [1]]})


@pytest.mark.parametrize(
    ("keep", "floors", "kept"),
    [
        ({"a": 4, "b": 1}, {}, {"a": 4, "b": 0}),
        ({"a": 4, "b": 1}, {"b": 1}, {"a": 2, "b": 2}),  # b's unit first, then as much of a as still fits
        ({"a": 3, "b": 1}, {"b": 1}, {"a": 2, "b": 2}),  # the room that a leaves is enough
        ({"a": 3, "b": 4}, {"a": 3}, {"a": 4, "b": 2}),
        ({"a": 3, "b": 4}, {"a": 2, "b": 4}, {"a": 2, "b": 4}),
    ],
)
def test_a_count_below_a_unit_keeps_none_unless_a_floor_takes_the_unit(
    keep: dict[str, int], floors: dict[str, int], kept: dict[str, int]
) -> None:
    scored = {"a": torch.ones(2, 2), "b": torch.zeros(2, 2)}
    assert PAIRS.select(scored, Mask.ones(PAIRS.parameters), keep, floors).counts == kept


@settings(max_examples=40)
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

    possible = [
        dict(zip(ranked, lengths, strict=True))
        for lengths in product(*(range(len(own) + 1) for own in ranked.values()))
    ]
    if any(keep.values()) and not any(
        reference.size([unit for space, length in lengths.items() for unit in ranked[space][:length]])
        for lengths in possible
        if within(lengths)
    ):
        assert chosen == reference.together(sum(keep.values()), {})
        return
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
    held = {space: count // 2 for space, count in keep.items()}
    assert outcome(turned, back(scored), mask, keep, back(held)) == outcome(units, scored, mask, keep, held)
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
    spans, worth = units.membership.spans, np.arange(sum(units.spaces.values())) * 3.0 - 7
    expanded = {
        name: torch.tensor(
            sum(
                np.where(member.terms[0] < 0, 0, worth[member.terms[0] + spans[member.space].start])
                for member in units.members[name]
            )
        )
        for name in units.parameters
    }
    for pool in ("mean", "max"):
        contest = Contest.of(units.membership, expanded, mask, pool)
        assert (contest.scores == worth)[contest.counts > 0].all()
        assert contest.counts.sum() == mask.kept


@given(patterns(overlapping=True), st.data())
def test_owners_partition_every_shape(units: Units, data: st.DataObject) -> None:
    assert list(units.shapes) == list(units.spaces)
    assert sum(map(prod, units.shapes.values())) == sum(map(prod, units.parameters.values()))
    mask = data.draw(masks(units.parameters))
    left = units.capacities(mask)
    assert sum(left.values()) == mask.kept
    assert all(0 <= left[space] <= prod(shape) for space, shape in units.shapes.items())


def test_units_that_are_empty_take_no_part() -> None:
    units = Units.of({"w": (4,)}, {"w": [0, 1, 2, 3]})
    mask = Mask({"w": torch.tensor([True, False, True, False])})
    chosen = units.select({"w": torch.tensor([1.0, 9.0, 2.0, float("nan")])}, mask, 1)
    assert chosen["w"].tolist() == [False, False, True, False]


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


# Units of one weight


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


@pytest.mark.parametrize(
    ("keep", "floors", "message"),
    [
        (-1, {}, "cannot keep -1 weights"),
        (9, {}, "cannot keep 9 weights: the 2 spaces of units has 8 left"),
        (1, {}, "cannot keep 1 weights: units stay or go whole, and the best of the 2 spaces of units has 2"),
        (0.5, {}, "keep must be a number of weights"),
        ({"a": 4, "b": 2.0}, {}, r"keep\['b'\] must be a number of weights"),
        ({"a": 4}, {}, r"every space of units and no other; check \['b'\]"),
        ({"a": 1, "b": 0}, {}, "cannot keep 1 weights: .* the best of what is split in too small counts has 2"),
        ({"a": 5, "b": 2}, {}, "cannot keep 5 weights: space 'a' has 4 left"),
        ({"a": 2, "b": 4}, {"a": 3}, "counts are below their floors: 'a' has 2 below 3; raise the counts"),
        ({"a": 3, "b": 3}, {"a": 3, "b": 3}, "floors ask for 8 weights, the budget is 6; lower the floors"),
        (4, {"a": 5}, "floor of 'a' is 5 weights, but only 4 are left"),
        (4, {"a": 3, "b": 1}, "floors ask for 6 weights, the budget is 4"),
        (4, {"c": 1}, r"floors name spaces that there are not: \['c'\]; there are: a, b"),
    ],
)
def test_a_budget_that_units_cannot_meet_is_refused(keep: object, floors: dict[str, int], message: str) -> None:
    scored = {"a": torch.ones(2, 2), "b": torch.ones(2, 2)}
    with pytest.raises(BudgetError, match=message):
        PAIRS.select(scored, Mask.ones(PAIRS.parameters), keep, floors)


def test_a_mask_of_other_parameters_is_refused() -> None:
    units = Units.of({"w": (2,)}, {"w": [0, 1]})
    with pytest.raises(BudgetError, match=r"w: expected shape \(2,\), found \(3,\)"):
        units.select({"w": torch.ones(3)}, Mask.ones({"w": (3,)}), 1)


def test_an_unknown_pool_is_refused() -> None:
    with pytest.raises(ConfigError, match="pool must be mean, sum or max, not 'median'"):
        Units({"w": (2,)}, {"u": 1}, {"w": (Member("u", 0),)}, "median")


# The layout
