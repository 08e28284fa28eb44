import pytest
import torch

from ticketkit import Mask, ScoreError, ScoreInputs, select
from ticketkit.builtin import criteria


def inputs(weights: dict[str, torch.Tensor], initial: dict[str, torch.Tensor] | None = None, seed: int = 0):
    mask = Mask.ones({name: tuple(tensor.shape) for name, tensor in weights.items()})
    return ScoreInputs(weights, initial or weights, mask, torch.Generator().manual_seed(seed))


def test_magnitude_is_the_absolute_weight_as_it_is() -> None:
    weights = {"a": torch.tensor([-3.0, 0.5]), "b": torch.tensor([[-0.0, 2.0]])}
    scores = criteria.magnitude(inputs(weights))
    assert {name: scores[name].tolist() for name in scores} == {"a": [3.0, 0.5], "b": [[0.0, 2.0]]}


def test_magnitude_keeps_the_dtype_so_that_ranking_loses_nothing() -> None:
    weights = {"a": torch.tensor([1.0, 1.0 + 2**-52], dtype=torch.float64)}
    scored = inputs(weights)
    assert select(criteria.magnitude(scored), scored.mask, 1)["a"].tolist() == [False, True]


def test_magnitude_over_init_forgets_the_scale_of_a_layer() -> None:
    initial = {"a": torch.tensor([1.0, -2.0, 3.0]), "b": torch.tensor([1.0, -2.0, 3.0]) / 1024}
    weights = {"a": torch.tensor([2.0, 1.0, 4.0]), "b": torch.tensor([2.0, 1.0, 4.0]) / 1024}
    scores = criteria.magnitude_over_init(inputs(weights, initial))
    assert scores["a"].tolist() == scores["b"].tolist() == [1.0, 0.5, 2.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_magnitude_over_init_ranks_half_precision_weights_in_float32(dtype: torch.dtype) -> None:
    weights = {"a": torch.full((3,), 6e4).to(dtype)}
    scores = criteria.magnitude_over_init(inputs(weights, {"a": torch.full((3,), 1e-3).to(dtype)}))
    assert scores["a"].dtype == torch.float32
    assert scores["a"].isfinite().all()


def test_magnitude_over_init_refuses_parameters_that_start_at_zero() -> None:
    weights = {"a": torch.ones(2), "b": torch.ones(2), "empty": torch.ones(0)}
    with pytest.raises(ScoreError, match=r"but b start at zero"):
        criteria.magnitude_over_init(inputs(weights, weights | {"b": torch.zeros(2)}))


def test_random_depends_on_the_generator_and_nothing_else() -> None:
    weights = {"a": torch.ones(4, 3), "b": torch.zeros(5)}
    global_state = torch.get_rng_state()
    first, second = criteria.random(inputs(weights, seed=1)), criteria.random(inputs(weights, seed=1))
    other = criteria.random(inputs(weights, seed=2))
    assert all(torch.equal(first[name], second[name]) for name in weights)
    assert not any(torch.equal(first[name], other[name]) for name in weights)
    assert torch.equal(torch.get_rng_state(), global_state)
