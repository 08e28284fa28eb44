import pytest
import torch
from hypothesis import given

from ticketkit import ConfigError, ElementwiseScores, Mask, ScoreError, ScoreInputs
from ticketkit.criterion import check_scores, flat_slice
from ticketkit.probe import Probe
from ticketkit.testing import mlp, scores, shape_maps


@given(shape_maps().flatmap(scores))
def test_elementwise_scores_are_the_same_whole_and_sliced(values: dict[str, torch.Tensor]) -> None:
    lazy = ElementwiseScores(lambda _, a, b: a.double().abs() + b.double(), values, values)
    assert list(lazy) == list(values)
    assert len(lazy) == len(values)
    for name, tensor in values.items():
        whole = tensor.double().abs() + tensor.double()
        assert torch.equal(lazy[name], whole)
        assert lazy.shape(name) == tuple(tensor.shape)
        for start, stop, step in [(0, 3, 1), (2, 100, 1), (1, 100, 2)]:
            assert torch.equal(lazy.flat_slice(name, start, stop, step), whole.flatten()[start:stop:step])
            assert torch.equal(flat_slice(values, name, start, stop, step), tensor.flatten()[start:stop:step])


def test_the_function_is_told_the_parameter() -> None:
    scales = {"a": 2.0, "b": 3.0}
    lazy = ElementwiseScores(lambda name, w: w * scales[name], {"a": torch.ones(1), "b": torch.ones(1)})
    assert (lazy["a"].item(), lazy["b"].item()) == (2.0, 3.0)


@pytest.mark.parametrize(
    ("dtypes", "wide"),
    [
        ([torch.float16, torch.bfloat16], torch.float32),
        ([torch.float16, torch.float32], torch.float32),
        ([torch.bfloat16, torch.float64], torch.float64),
    ],
)
def test_scores_are_ranked_in_a_dtype_that_holds_them_all(dtypes: list[torch.dtype], wide: torch.dtype) -> None:
    values = {str(index): torch.ones(2, dtype=dtype) for index, dtype in enumerate(dtypes)}
    assert check_scores(values, Mask.ones(dict.fromkeys(values, (2,)))) == wide


def test_lazy_scores_are_checked_without_computing_them() -> None:
    def fail_on_weights(_: str, values: torch.Tensor) -> torch.Tensor:
        assert values.numel() == 0
        return values

    lazy = ElementwiseScores(fail_on_weights, {"w": torch.ones(5)})
    assert check_scores(lazy, Mask.ones({"w": (5,)})) == torch.float32


def test_integer_scores_are_refused_by_name() -> None:
    lazy = ElementwiseScores(lambda _, values: values.long(), {"w": torch.ones(5)})
    with pytest.raises(ScoreError, match=r"'w' must be floating-point, not torch\.int64"):
        check_scores(lazy, Mask.ones({"w": (5,)}))


def test_inputs_without_batches_say_how_to_give_them() -> None:
    mask = Mask.ones({"w": (2,)})
    inputs = ScoreInputs({"w": torch.ones(2)}, {"w": torch.ones(2)}, mask, torch.Generator(), keep=1)
    with pytest.raises(ConfigError, match=r"give IMP batches= .* and loss="):
        _ = inputs.probe


def test_inputs_with_batches_run_the_network_on_them() -> None:
    model = mlp()
    mask = Mask.ones({"0.weight": (8, 6)})
    probe = Probe(model, lambda: [torch.ones(1, 6)], lambda model, batch: model(batch).sum(), mask)
    weights = {"0.weight": model[0].weight.detach()}
    inputs = ScoreInputs(weights, weights, mask, torch.Generator(), keep=1, data=probe)
    assert [list(gradient) for gradient in inputs.probe.gradients()] == [["0.weight"]]
