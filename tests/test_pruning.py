from fractions import Fraction

import pytest
import torch

from ticketkit import Mask, Plugins, ScoreError, ScoreInputs
from ticketkit.pruning import Pruner, derived_seed

SHAPES = {"a": (4, 5), "b": (10,)}


def pruner(criterion="magnitude", allocation="global", floors=None, seed: int = 0) -> Pruner:
    plugins = Plugins()
    return Pruner(plugins.choose("criterion", criterion), plugins.choose("allocation", allocation), floors or {}, seed)


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}


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
