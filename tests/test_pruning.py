from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import nn

from ticketkit import (
    BudgetError,
    CollapseError,
    CollapseWarning,
    ConfigError,
    Mask,
    Plugins,
    ScoreError,
    ScoreInputs,
)
from ticketkit.granularity import Layout, Weights
from ticketkit.pruning import Pruner
from ticketkit.rng import derived_seed

SHAPES = {"a": (4, 5), "b": (10,)}


def pruner(criterion="magnitude", allocation="global", floors=None, seed: int = 0, **settings: Any) -> Pruner:
    plugins = Plugins()
    return Pruner(
        criterion=plugins.choose("criterion", criterion),
        pattern=Weights(SHAPES),
        granularity=plugins.choose("granularity", "weight"),
        allocation=plugins.choose("allocation", allocation),
        floors=floors or {},
        seed=seed,
        **settings,
    )


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}


@pytest.mark.filterwarnings("ignore::ticketkit.CollapseWarning")
@pytest.mark.parametrize("criterion", ["magnitude", "magnitude_over_init", "random"])
@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_every_builtin_keeps_exactly_the_budget_inside_the_prior_mask(criterion: str, allocation: str) -> None:
    mask = Mask.ones(SHAPES)
    for index, keep in enumerate((23, 16, 7, 2), start=1):
        smaller = pruner(criterion, allocation).next_mask(
            mask, keep, weights=weights(index), initial=weights(), index=index
        )
        assert smaller.kept == keep
        assert smaller <= mask
        mask = smaller


def test_floors_hold_for_joint_and_for_split_budgets() -> None:
    small = {"a": weights()["a"] + 10, "b": weights()["b"] / 1000}
    for allocation in ("global", "uniform"):
        chosen = pruner(allocation=allocation, floors={"b": 3}).next_mask(
            Mask.ones(SHAPES), 8, weights=small, initial=small, index=1
        )
        assert chosen.counts["b"] == 3
        assert chosen.kept == 8


def test_the_seed_and_the_round_decide_random_masks() -> None:
    def mask(seed: int, index: int) -> Mask:
        return pruner("random", seed=seed).next_mask(
            Mask.ones(SHAPES), 15, weights=weights(), initial=weights(), index=index
        )

    assert mask(1, 1) == mask(1, 1)
    assert mask(1, 1) != mask(2, 1)
    assert mask(1, 1) != mask(1, 2)


def test_derived_seeds_are_distinct_and_fit_a_generator() -> None:
    seeds = {derived_seed(seed, index) for seed in range(50) for index in range(20)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed(1, 11) != derived_seed(11, 1)


def test_a_criterion_that_changes_weights_is_refused_by_name() -> None:
    def careless(inputs: ScoreInputs) -> dict[str, torch.Tensor]:
        return {name: (w.abs_() if name == "b" else w.abs()) for name, w in inputs.weights.items()}

    with pytest.raises(ScoreError, match=r"careless changed the weights of b in place"):
        pruner(careless).next_mask(Mask.ones(SHAPES), 8, weights=weights(), initial=weights(), index=1)


def test_a_criterion_sees_mask_weights_and_initial_values() -> None:
    seen: list[ScoreInputs] = []

    def watching(inputs: ScoreInputs) -> dict[str, torch.Tensor]:
        seen.append(inputs)
        return {name: w.abs() for name, w in inputs.weights.items()}

    mask = Mask.ones(SHAPES)
    trained, start = {n: t.requires_grad_() for n, t in weights(1).items()}, weights(2) | {"bias": torch.ones(1)}
    pruner(watching).next_mask(mask, 8, weights=trained, initial=start, index=1)
    assert seen[0].mask is mask
    assert seen[0].weights.keys() == seen[0].initial.keys() == mask.keys()
    assert not any(tensor.requires_grad for tensor in seen[0].weights.values())
    assert torch.equal(seen[0].initial["a"], start["a"])


def test_uniform_keeps_the_same_share_of_every_parameter() -> None:
    chosen = pruner(allocation="uniform").next_mask(
        Mask.ones(SHAPES), 15, weights=weights(), initial=weights(), index=1
    )
    assert {Fraction(chosen.counts[n], chosen.sizes[n]) for n in chosen} == {Fraction(1, 2)}


# Regrowth, the collapse guard, what a criterion needs


def by_position(inputs: ScoreInputs) -> dict[str, torch.Tensor]:
    """Return the reverse of the flat index: the first weights are the best, pruned or not."""
    return {name: -torch.arange(w.numel(), dtype=torch.float64).reshape(w.shape) for name, w in inputs.weights.items()}


HALF = Mask({"a": torch.arange(20).reshape(4, 5) >= 10, "b": torch.zeros(10, dtype=torch.bool)})


@pytest.mark.filterwarnings("ignore::ticketkit.CollapseWarning")
def test_only_a_criterion_that_declares_it_may_bring_pruned_weights_back() -> None:
    """Trap 11: masks are nested unless the criterion was registered with `regrows`."""
    nested = pruner(by_position).next_mask(HALF, 4, weights=weights(), initial=weights(), index=1)
    assert nested <= HALF
    assert nested["a"].flatten().nonzero().flatten().tolist() == [10, 11, 12, 13]
    declared = pruner(by_position)
    declared = replace(declared, criterion=replace(declared.criterion, regrows=True))
    regrown = declared.next_mask(HALF, 4, weights=weights(), initial=weights(), index=1)
    assert not regrown <= HALF
    assert regrown["a"].flatten().nonzero().flatten().tolist() == [0, 1]
    assert regrown.kept == 4


def lopsided() -> dict[str, torch.Tensor]:
    return {"a": torch.ones(40, 50), "b": torch.full((400,), 0.001)}


def guard(on_collapse: str) -> Mask:
    pattern = Weights({"a": (40, 50), "b": (400,)})
    guarded = replace(pruner(), pattern=pattern, on_collapse=on_collapse)
    scored = lopsided()
    return guarded.next_mask(Mask.ones(pattern.shapes), 1000, weights=scored, initial=scored, index=2)


def test_a_collapse_is_warned_of() -> None:
    """Trap 13."""
    with pytest.warns(CollapseWarning, match=r"round 2 leaves almost nothing of b \(0\.00% left\); set a floor"):
        assert guard("warn").counts == {"a": 1000, "b": 0}


def test_a_collapse_stops_the_run_when_told_to() -> None:
    with pytest.raises(CollapseError, match=r"round 2 would leave almost nothing of b"):
        guard("stop")


def test_a_collapse_is_reallocated_when_told_to() -> None:
    with pytest.warns(CollapseWarning, match=r"would leave almost nothing of b .*every part keeps 1% instead"):
        assert guard("reallocate").counts == {"a": 996, "b": 4}


def test_a_budget_below_one_unit_is_refused() -> None:
    plugins = Plugins()
    rows = plugins.choose("granularity", "row").call(Layout.of(nn.Linear(5, 4, bias=False), {"weight": (4, 5)}))
    structured = replace(pruner(), pattern=rows)
    mask = Mask({"weight": torch.arange(4).reshape(4, 1).expand(4, 5) < 1})
    values = {"weight": torch.rand(4, 5)}
    with pytest.raises(BudgetError, match=r"cannot keep 4 weights: .* has 5"):
        structured.next_mask(mask, 4, weights=values, initial=values, index=1)


def test_a_criterion_that_needs_data_is_refused_without_it() -> None:
    with pytest.raises(ConfigError, match=r"builtin:snip looks at gradients; give IMP batches="):
        pruner("snip")
    with pytest.raises(ConfigError, match=r"builtin:wanda looks at activations"):
        pruner("wanda")


def test_a_criterion_that_asks_for_data_without_saying_so_is_refused_when_it_asks() -> None:
    def curious(inputs: ScoreInputs) -> dict[str, torch.Tensor]:
        return next(inputs.probe.gradients())

    with pytest.raises(ConfigError, match="give IMP batches="):
        pruner(curious).next_mask(Mask.ones(SHAPES), 8, weights=weights(), initial=weights(), index=1)
