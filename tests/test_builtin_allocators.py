"""Invariant 6 of the design: counts sum to the budget between floors and capacities, in any dict order, house-monotone.

Every registered allocator is held to these laws, and each to a reference of its own.
"""

import tempfile
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import floor, prod
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ticketkit import BudgetError, ConfigError, Mask, Ticket, TicketError, select
from ticketkit.builtin.allocators import counts_like, erdos_renyi, erk, global_ranking, uniform
from ticketkit.plugins import Plugins
from ticketkit.testing import shape_maps

REGISTRY = Plugins().registries["allocation"]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Problem:
    """What an allocator is asked, and the budgets that it can meet."""

    shapes: Shapes
    floors: dict[str, int]
    capacities: dict[str, int]
    options: dict[str, Any]
    budgets: range | list[int]
    masks: tuple[Mask, ...] = ()

    @contextmanager
    def allocator(self, name: str):
        """Give the registered allocator with its options; masks lie on disk as tickets for so long."""
        if not self.masks:
            yield REGISTRY.get(name).configured(self.options).call
            return
        with tempfile.TemporaryDirectory() as folder:
            paths = [str(Path(folder) / f"{index}.safetensors") for index in range(len(self.masks))]
            for path, mask in zip(paths, self.masks, strict=True):
                Ticket(mask).save(path)
            yield REGISTRY.get(name).configured({"tickets": paths}).call


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    shapes = draw(shape_maps())
    capacities = {name: draw(st.integers(0, prod(shape))) for name, shape in shapes.items()}
    floors = {name: draw(st.integers(0, count)) for name, count in capacities.items() if draw(st.booleans())}
    budgets = range(sum(floors.values()), sum(capacities.values()) + 1)
    return Problem(shapes, floors, capacities, {}, budgets)


@st.composite
def pattern_problems(draw: st.DrawFn) -> Problem:
    problem = draw(problems())
    fixed = draw(st.sets(st.sampled_from(sorted(problem.shapes)), min_size=1))
    densities = {name: draw(st.sampled_from([0, 0.1, 0.25, 0.5, 1])) for name in sorted(fixed)}
    least = most = 0
    for name, shape in problem.shapes.items():
        low, high = problem.floors.get(name, 0), problem.capacities[name]
        if name in fixed:
            low = high = min(max(round(Fraction(str(densities[name])) * prod(shape)), low), high)
        least, most = least + low, most + high
    return Problem(problem.shapes, problem.floors, problem.capacities, {"densities": densities}, range(least, most + 1))


@st.composite
def ticket_problems(draw: st.DrawFn) -> Problem:
    """Return nested masks, as a run of IMP leaves them, in any order."""
    shapes = draw(shape_maps())
    masks = [Mask.ones(shapes)]
    scores = {name: torch.randn(shape, generator=torch.Generator().manual_seed(1)) for name, shape in shapes.items()}
    for _ in range(draw(st.integers(0, 2))):
        masks.append(select(scores, masks[-1], draw(st.integers(0, masks[-1].kept))))
    floors = {name: draw(st.integers(0, count)) for name, count in masks[-1].counts.items()}
    budgets = sorted({mask.kept for mask in masks})
    return Problem(shapes, floors, masks[0].counts, {}, budgets, tuple(draw(st.permutations(masks))))


PROBLEMS = {
    "global": problems(),
    "uniform": problems(),
    "erdos_renyi": problems(),
    "erk": problems(),
    "by_pattern": pattern_problems(),
    "layer_counts": ticket_problems(),
}
every_allocator = pytest.mark.parametrize("name", [entry.name for entry in REGISTRY])


def shuffled(draw: Any, mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {name: mapping[name] for name in draw(st.permutations(list(mapping)))}


def test_every_registered_allocator_is_tested_here() -> None:
    assert sorted(PROBLEMS) == [entry.name for entry in REGISTRY]


@every_allocator
@given(data=st.data())
def test_counts_sum_to_the_budget_between_floors_and_capacities(name: str, data: st.DataObject) -> None:
    problem = data.draw(PROBLEMS[name])
    keep = data.draw(st.sampled_from(problem.budgets))
    with problem.allocator(name) as allocate:
        counts = allocate(problem.shapes, keep, floors=problem.floors, capacities=problem.capacities)
    if name == "global":
        assert counts == keep
        return
    assert counts.keys() == problem.shapes.keys()
    assert sum(counts.values()) == keep
    assert all(problem.floors.get(n, 0) <= count <= problem.capacities[n] for n, count in counts.items())
    assert all(type(count) is int for count in counts.values())


@every_allocator
@given(data=st.data())
def test_the_order_of_dicts_decides_nothing(name: str, data: st.DataObject) -> None:
    """The order of `shapes` is the canonical one; it may settle ties, which differ by no more than one weight."""
    problem = data.draw(PROBLEMS[name])
    keep = data.draw(st.sampled_from(problem.budgets))
    shapes = shuffled(data.draw, problem.shapes)
    floors, capacities = shuffled(data.draw, problem.floors), shuffled(data.draw, problem.capacities)
    with problem.allocator(name) as allocate:
        counts = allocate(problem.shapes, keep, floors=problem.floors, capacities=problem.capacities)
        assert allocate(problem.shapes, keep, floors=floors, capacities=capacities) == counts
        other = allocate(shapes, keep, floors=floors, capacities=capacities)
    if name == "global":
        assert other == counts
    else:
        assert all(abs(other[n] - count) <= 1 for n, count in counts.items())
        assert sum(other.values()) == sum(counts.values())


@every_allocator
@given(data=st.data())
def test_trap_9_no_count_falls_when_the_budget_grows(name: str, data: st.DataObject) -> None:
    problem = data.draw(PROBLEMS[name])
    with problem.allocator(name) as allocate:
        rows = [
            allocate(problem.shapes, keep, floors=problem.floors, capacities=problem.capacities)
            for keep in problem.budgets
        ]
    rows = [row if isinstance(row, dict) else {"all together": row} for row in rows]
    for fewer, more in pairwise(rows):
        assert all(fewer[n] <= more[n] for n in fewer)


def largest_remainder(sizes: Mapping[str, int], keep: int) -> dict[str, int]:
    shares = {name: Fraction(size * keep, sum(sizes.values())) for name, size in sizes.items()}
    counts = {name: floor(share) for name, share in shares.items()}
    for name in sorted(sizes, key=lambda name: counts[name] - shares[name])[: keep - sum(counts.values())]:
        counts[name] += 1
    return counts


def test_trap_9_largest_remainders_would_take_a_weight_from_a_layer_when_the_budget_grows() -> None:
    sizes = {"a": 6, "b": 6, "c": 2}
    shapes = {name: (size,) for name, size in sizes.items()}
    assert [largest_remainder(sizes, keep)["c"] for keep in (10, 11)] == [2, 1]
    fewer, more = (uniform(shapes, keep, floors={}, capacities=sizes)["c"] for keep in (10, 11))
    assert fewer <= more


def published(shapes: Shapes, keep: int, *, kernel: bool) -> dict[str, Fraction]:
    """RigL's published loop in exact arithmetic: scale all densities, make the densest layers whole, scale again."""
    raw = {}
    for name, shape in shapes.items():
        sides = shape if kernel else shape[:2]
        raw[name] = Fraction(sum(sides), prod(sides))
    dense: set[str] = set()
    while True:
        free = [name for name in shapes if name not in dense]
        left = keep - sum(prod(shapes[name]) for name in dense)
        scale = left / sum(raw[name] * prod(shapes[name]) for name in free)
        highest = max(raw[name] for name in free)
        if highest * scale <= 1:
            return {name: Fraction(1) if name in dense else raw[name] * scale for name in shapes}
        dense |= {name for name in free if raw[name] == highest}


LAYERS = st.one_of(
    st.tuples(st.integers(1, 600), st.integers(1, 600)),
    st.tuples(st.integers(1, 64), st.integers(1, 64), st.integers(1, 7)),
    st.tuples(st.integers(1, 64), st.integers(1, 64), st.integers(1, 7), st.integers(1, 7)),
)


@pytest.mark.parametrize("kernel", [True, False], ids=["erk", "erdos_renyi"])
@given(layers=st.lists(LAYERS, min_size=1, max_size=6), percent=st.integers(1, 99))
def test_erk_has_the_densities_of_the_published_loop(kernel: bool, layers: list[tuple[int, ...]], percent: int) -> None:
    shapes = {f"layer{index}": shape for index, shape in enumerate(layers)}
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    keep = max(1, sum(sizes.values()) * percent // 100)
    counts = (erk if kernel else erdos_renyi)(shapes, keep, floors={}, capacities=sizes)
    ideal = published(shapes, keep, kernel=kernel)
    assert all(abs(counts[name] - ideal[name] * sizes[name]) <= len(shapes) for name in shapes)


def test_trap_9_clamping_erk_without_redistribution_would_miss_the_budget() -> None:
    shapes = {"conv": (8, 4, 3, 3), "big": (512, 512), "head": (10, 512)}
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    keep = sum(sizes.values()) // 5
    scale = Fraction(keep, sum(map(sum, shapes.values())))
    clamped = {name: min(round(scale * sum(shape)), sizes[name]) for name, shape in shapes.items()}
    assert sum(clamped.values()) < keep
    counts = erk(shapes, keep, floors={}, capacities=sizes)
    assert sum(counts.values()) == keep
    assert counts["conv"] == sizes["conv"]


def test_erk_and_erdos_renyi_by_hand() -> None:
    shapes = {"conv": (20, 10, 3, 3), "linear": (40, 30)}
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    assert erk(shapes, 106, floors={}, capacities=sizes) == {"conv": 36, "linear": 70}
    assert erdos_renyi(shapes, 340, floors={}, capacities=sizes) == {"conv": 270, "linear": 70}


@pytest.mark.parametrize("allocate", [erk, erdos_renyi])
def test_vectors_and_scalars_count_as_densest(allocate: Any) -> None:
    shapes = {"w": (50, 50), "b": (50,), "scale": ()}
    sizes = {"w": 2500, "b": 50, "scale": 1}
    assert allocate(shapes, 251, floors={}, capacities=sizes) == {"w": 200, "b": 50, "scale": 1}
    assert allocate({"scale": (), "none": (0, 3)}, 1, floors={}, capacities={"scale": 1, "none": 0})["scale"] == 1


def test_spaces_of_units_are_split_like_parameters() -> None:
    spaces = {"lstm.l0": (64, 1040), "lstm.l1": (64, 1056)}
    sizes = {name: prod(shape) for name, shape in spaces.items()}
    for allocate in (uniform, erk, erdos_renyi):
        assert sum(allocate(spaces, 50_000, floors={}, capacities=sizes).values()) == 50_000


def test_uniform_gives_every_parameter_its_share() -> None:
    shapes = {"a": (10, 10), "b": (20,), "c": (40, 2)}
    counts = uniform(shapes, 50, floors={}, capacities={"a": 100, "b": 20, "c": 80})
    assert counts == {"a": 25, "b": 5, "c": 20}


def test_global_ranking_leaves_the_budget_whole() -> None:
    assert global_ranking({"a": (3,)}, 2, floors={}, capacities={"a": 3}) == 2


SHAPES: Shapes = {"enc.0.w": (10, 10), "enc.1.w": (10, 10), "mid.w": (20, 10), "head.w": (10, 10)}
SIZES = {name: prod(shape) for name, shape in SHAPES.items()}


def by_pattern(keep: int, floors: Mapping[str, int] | None = None, **densities: float) -> dict[str, int]:
    named = {pattern.replace("__", "."): density for pattern, density in densities.items()}
    call = REGISTRY.get("by_pattern").configured({"densities": named}).call
    counts: dict[str, int] = call(SHAPES, keep, floors=floors or {}, capacities=SIZES)
    return counts


def test_by_pattern_fixes_what_it_names_and_shares_the_rest_by_size() -> None:
    counts = by_pattern(200, **{"enc.*": 0.1, "enc.1.w": 0.3})
    assert counts == {"enc.0.w": 10, "enc.1.w": 30, "mid.w": 107, "head.w": 53}
    assert by_pattern(200, floors={"head.w": 90}, **{"enc.*": 0.1})["head.w"] == 90


def test_by_pattern_gives_a_floor_its_due() -> None:
    assert by_pattern(200, floors={"enc.0.w": 15}, **{"enc.*": 0.1})["enc.0.w"] == 15


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (
            400,
            r"cannot keep 400 weights: it fixes 20 \(enc.0.w: 10, enc.1.w: 10\) and the 2 other parameters can keep "
            r"0 to 300, which makes 20 to 320 in all",
        ),
        (19, "cannot keep 19 weights: .* 20 to 320 in all"),
    ],
)
def test_a_budget_that_patterns_cannot_meet_names_the_numbers(keep: int, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        by_pattern(keep, **{"enc.*": 0.1})


def test_a_pattern_that_matches_nothing_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"by_pattern: 'haed.w' matches none of 4 parameters; nearest: 'head.w'"):
        by_pattern(200, **{"haed.w": 0.1})


@pytest.mark.parametrize("density", [10, 1.5, -0.1, True, "0.1", float("nan")])
def test_trap_27_a_density_of_a_pattern_is_from_0_to_1(density: Any) -> None:
    with pytest.raises(ConfigError, match=r"allocation 'by_pattern':\n  densities"):
        REGISTRY.get("by_pattern").configured({"densities": {"enc.*": density}})


@pytest.mark.parametrize(("name", "option"), [("by_pattern", "densities"), ("layer_counts", "tickets")])
def test_an_allocator_that_needs_options_says_so(name: str, option: str) -> None:
    for options in ({}, {option: {} if name == "by_pattern" else []}, {"nothing": 1}):
        with pytest.raises(ConfigError, match=f"{option}: "):
            REGISTRY.get(name).configured(options)


A = Mask({"a": torch.tensor([True, False, True, True]), "b": torch.tensor([False, True])})
B = Mask({"a": torch.tensor([True, False, False, False]), "b": torch.tensor([False, True])})
C = Mask({"a": torch.tensor([True, True, False, False]), "b": torch.tensor([True, True])})
FULL = {"a": 4, "b": 2}


def test_counts_like_masks_are_those_of_the_mask_that_keeps_as_many() -> None:
    allocate = counts_like(mask for mask in (A, B))
    for _ in range(2):  # an iterator of masks serves every round
        assert allocate(A.shapes, 4, floors={}, capacities=FULL) == {"a": 3, "b": 1}
        assert allocate(A.shapes, 2, floors={}, capacities=FULL) == {"a": 1, "b": 1}


def test_a_mask_with_the_same_counts_twice_is_no_contradiction() -> None:
    assert counts_like([A, A])(A.shapes, 4, floors={}, capacities=FULL) == A.counts


@pytest.mark.parametrize(
    ("masks", "keep", "floors", "capacities", "error", "message"),
    [
        ([A, B], 3, {}, FULL, BudgetError, "no mask keeps exactly 3 weights; those given keep 4, 2: use the same plan"),
        ([A, C], 4, {}, FULL, ConfigError, "mask 0 and mask 1 both keep 4 weights, with other counts"),
        ([A], 4, {"b": 2}, FULL, BudgetError, r"mask 0 keeps 1 weights of 'b', but from 2 \(its floor\) to 2"),
        ([A], 4, {}, {"a": 2, "b": 2}, BudgetError, r"keeps 3 weights of 'a', but from 0 .* to 2 \(what is left\)"),
    ],
)
def test_counts_that_cannot_be_taken_over_are_refused(
    masks: list[Mask], keep: int, floors: Any, capacities: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        counts_like(masks)(A.shapes, keep, floors=floors, capacities=capacities)


@pytest.mark.parametrize("shapes", [{"a": (4,)}, {"a": (4,), "b": (3,)}, {"a": (4,), "b": (2,), "c": (1,)}])
def test_masks_of_something_else_are_refused(shapes: Shapes) -> None:
    capacities = {name: prod(shape) for name, shape in shapes.items()}
    with pytest.raises(ConfigError, match=r"mask 0 does not cover what is pruned here; of other name or size: [bc]"):
        counts_like([A])(shapes, 4, floors={}, capacities=capacities)


def test_layer_counts_of_a_missing_ticket_say_which(tmp_path: Path) -> None:
    call = REGISTRY.get("layer_counts").configured({"tickets": [str(tmp_path / "none.safetensors")]}).call
    with pytest.raises(TicketError, match=r"none.safetensors"):
        call(A.shapes, 4, floors={}, capacities=FULL)
