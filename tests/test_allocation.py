from fractions import Fraction
from itertools import pairwise
from math import ceil, prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ticketkit import BudgetError, ConfigError, apportion
from ticketkit.allocation import densities_by_name, floor_counts
from ticketkit.testing import shape_maps

Split = tuple[dict[str, Fraction], dict[str, int], dict[str, int]]


@st.composite
def splits(draw: st.DrawFn) -> Split:
    """Return weights, floors and capacities of up to five parameters."""
    names = draw(st.lists(st.sampled_from("abcde"), min_size=1, max_size=5, unique=True))
    capacities = {name: draw(st.integers(0, 12)) for name in names}
    floors = {name: draw(st.integers(0, count)) for name, count in capacities.items()}
    weights = {name: draw(st.fractions(0, 20, max_denominator=6)) for name in names}
    return weights, floors, capacities


def seat_by_seat(weights: dict[str, Fraction], keep: int, floors: dict[str, int], capacities: dict[str, int]):
    """The definition of a divisor method: give one unit after another to the highest priority."""
    counts = dict(floors)
    for _ in range(keep - sum(floors.values())):
        open_ = [name for name in weights if counts[name] < capacities[name]]
        winner = max(open_, key=lambda name: weights[name] / (counts[name] + Fraction(1, 2)))  # the first of equals
        counts[winner] += 1
    return counts


@given(splits(), st.data())
def test_apportion_is_sainte_lague_seat_by_seat(split: Split, data: st.DataObject) -> None:
    weights, floors, capacities = split
    keep = data.draw(st.integers(sum(floors.values()), sum(capacities.values())))
    counts = apportion(weights, keep, floors=floors, capacities=capacities)
    assert counts == seat_by_seat(weights, keep, floors, capacities)


@given(splits(), st.data())
def test_counts_sum_to_the_budget_between_floors_and_capacities(split: Split, data: st.DataObject) -> None:
    weights, floors, capacities = split
    keep = data.draw(st.integers(sum(floors.values()), sum(capacities.values())))
    counts = apportion(weights, keep, floors=floors, capacities=capacities)
    assert sum(counts.values()) == keep
    assert all(floors[name] <= counts[name] <= capacities[name] for name in weights)


@given(splits())
def test_no_count_falls_when_the_budget_grows(split: Split) -> None:
    weights, floors, capacities = split
    budgets = range(sum(floors.values()), sum(capacities.values()) + 1)
    rows = [apportion(weights, keep, floors=floors, capacities=capacities) for keep in budgets]
    for fewer, more in pairwise(rows):
        assert all(fewer[name] <= more[name] for name in weights)


@given(splits(), st.data())
def test_only_the_order_of_weights_breaks_ties(split: Split, data: st.DataObject) -> None:
    weights, floors, capacities = split
    keep = data.draw(st.integers(sum(floors.values()), sum(capacities.values())))
    shuffled = {name: capacities[name] for name in data.draw(st.permutations(list(capacities)))}
    least = {name: floors[name] for name in data.draw(st.permutations(list(floors)))}
    expected = apportion(weights, keep, floors=floors, capacities=capacities)
    assert apportion(weights, keep, floors=least, capacities=shuffled) == expected


@given(splits(), st.integers(1, 10**30), st.data())
def test_only_proportions_matter(split: Split, factor: int, data: st.DataObject) -> None:
    weights, floors, capacities = split
    keep = data.draw(st.integers(sum(floors.values()), sum(capacities.values())))
    scaled = {name: weight * factor for name, weight in weights.items()}
    expected = apportion(weights, keep, floors=floors, capacities=capacities)
    assert apportion(scaled, keep, floors=floors, capacities=capacities) == expected


def test_large_budgets_are_split_exactly() -> None:
    sizes = {f"p{i}": 10**9 + 7 * i for i in range(200)}
    keep = sum(sizes.values()) // 5 + 1
    counts = apportion(sizes, keep, capacities=sizes)
    assert sum(counts.values()) == keep
    assert all(abs(counts[name] - Fraction(size * keep, sum(sizes.values()))) <= 1 for name, size in sizes.items())


def test_without_weights_the_first_parameters_fill_up() -> None:
    assert apportion({"a": 0, "b": 0}, 3, capacities={"a": 2, "b": 2}) == {"a": 2, "b": 1}


@pytest.mark.parametrize("keep", [-1, 1, 8])
def test_a_budget_outside_floors_and_capacities_is_refused(keep: int) -> None:
    with pytest.raises(BudgetError, match=f"cannot keep {keep} weights: floors ask for 2, 7 are left"):
        apportion({"a": 1, "b": 1}, keep, floors={"a": 2}, capacities={"a": 3, "b": 4})


def test_a_floor_above_the_capacity_is_refused_by_name() -> None:
    with pytest.raises(BudgetError, match="floor of 'b' is 5 weights, but only 4 are left"):
        apportion({"a": 1, "b": 1}, 6, floors={"b": 5}, capacities={"a": 3, "b": 4})


def test_much_budget_without_weight_is_handed_out_at_once() -> None:
    sizes = {"a": 10**9, "b": 10**9, "c": 10**9}
    counts = apportion({"a": 0, "b": 1, "c": 0}, 25 * 10**8, capacities=sizes, floors={"c": 7})
    assert counts == {"a": 10**9, "b": 10**9, "c": 5 * 10**8}


@given(splits(), st.data())
def test_trap_9_a_full_parameter_leaves_its_share_to_the_others(split: Split, data: st.DataObject) -> None:
    """Filling the full ones by hand and splitting what is left among the others is the same."""
    weights, floors, capacities = split
    keep = data.draw(st.integers(sum(floors.values()), sum(capacities.values())))
    counts = apportion(weights, keep, floors=floors, capacities=capacities)
    full = {name for name, count in counts.items() if count == capacities[name]}
    rest = {name: weight for name, weight in weights.items() if name not in full}
    left = keep - sum(counts[name] for name in full)
    unbounded = dict.fromkeys(rest, keep)
    assert apportion(rest, left, floors=floors, capacities=unbounded) == {name: counts[name] for name in rest}


@given(shape_maps(), st.integers(0, 99))
def test_floors_are_rounded_up(shapes: dict[str, tuple[int, ...]], percent: int) -> None:
    expected = {name: ceil(Fraction(percent, 100) * prod(shape)) for name, shape in shapes.items()}
    assert floor_counts(shapes, percent / 100) == expected


@pytest.mark.parametrize("floor", [1, 1.0, 5, -0.1, True, float("nan"), "0.1"])
def test_a_floor_is_a_density_below_one(floor: float) -> None:
    with pytest.raises(ConfigError, match="floor must be a density from 0 to below 1"):
        floor_counts({"a": (2,)}, floor)


def test_no_floor_is_no_count() -> None:
    assert floor_counts({"a": (2,)}, None) == {}


SHAPES = {"enc.0.w": (10, 10), "enc.1.w": (10, 10), "head.w": (5, 5), "head.b": (5,)}


def test_floors_by_pattern_leave_the_others_without() -> None:
    assert floor_counts(SHAPES, {"enc.*": 0.1, "head.w": 0.5}) == {"enc.0.w": 10, "enc.1.w": 10, "head.w": 13}
    assert floor_counts(SHAPES, {}) == {}


@given(st.permutations(["*", "enc.*", "enc.0.w", "*.w"]))
def test_full_names_go_before_patterns_in_any_order(order: list[str]) -> None:
    given_ = {"*": 0.5, "enc.*": 0.5, "*.w": 0.5, "enc.0.w": 0.1}
    expected = {name: Fraction(1, 10) if name == "enc.0.w" else Fraction(1, 2) for name in SHAPES}
    assert densities_by_name("floor", {pattern: given_[pattern] for pattern in order}, SHAPES) == expected


@pytest.mark.parametrize(
    ("densities", "message"),
    [
        ({"encodr.*": 0.1}, "floor: 'encodr.*' matches none of 4 parameters"),
        ({"haed.w": 0.1}, "floor: 'haed.w' matches none of 4 parameters; nearest: 'head.w'"),
        (
            {"enc.*": 0.1, "*.w": 0.2},
            r"'enc.0.w' matches patterns of different densities \('\*.w': 0.2, 'enc.\*': 0.1\)",
        ),
        ({"enc.*": 1.0}, "floor must be a density from 0 to below 1"),
        ({"enc.*": True}, "floor must be a density from 0 to below 1"),
    ],
)
def test_floors_that_match_nothing_or_contradict_are_refused(densities: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        floor_counts(SHAPES, densities)


def test_a_name_with_glob_signs_in_it_is_a_name() -> None:
    shapes = {"a[0]": (4,), "a0": (4,)}
    assert densities_by_name("floor", {"a[0]": 0.5}, shapes) == {"a[0]": Fraction(1, 2)}
