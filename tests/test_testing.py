import subprocess
import sys

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from torch import nn

from ticketkit import Mask, Scope, ScopeError, testing
from ticketkit.testing import (
    DTYPES,
    TINY_NETS,
    masks,
    models,
    scopes,
    scores,
    selections,
    shape_maps,
    shapes,
    tied_scores,
)


@pytest.mark.parametrize("name", TINY_NETS)
def test_every_tiny_net_trains_and_has_weights_to_prune(name: str) -> None:
    net = TINY_NETS[name]
    model = net.build()
    model(net.inputs()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert 0 < Scope.of(model).total < 2000


@given(st.data())
def test_strategies_give_what_they_say(data: st.DataObject) -> None:
    chosen = data.draw(shape_maps())
    mask = data.draw(masks(chosen))
    assert mask.shapes == chosen
    for strategy in (scores, tied_scores):
        for source in (mask, chosen):
            drawn = data.draw(strategy(source))
            assert {name: tuple(tensor.shape) for name, tensor in drawn.items()} == chosen
            assert len({tensor.dtype for tensor in drawn.values()}) <= 1
            assert all(tensor.isfinite().all() for tensor in drawn.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("strategy", [scores, tied_scores])
def test_scores_come_in_the_dtype_asked_for(dtype: torch.dtype, strategy: object) -> None:
    @given(strategy({"w": (3, 2)}, dtype=dtype))
    def check(drawn: dict[str, torch.Tensor]) -> None:
        assert drawn["w"].dtype == dtype

    check()


@pytest.mark.parametrize(
    "awkward",
    [
        lambda case: any(tensor.dim() == 0 for tensor in case[0].values()),
        lambda case: any(tensor.numel() == 0 for tensor in case[0].values()),
        lambda case: any((t.signbit() & (t == 0)).any() and (~t.signbit() & (t == 0)).any() for t in case[0].values()),
        lambda case: any(((t != 0) & (t.abs() < torch.finfo(t.dtype).tiny)).any() for t in case[0].values()),
        lambda case: any(t.numel() > 3 and t.unique().numel() == 1 for t in case[0].values()),
        lambda case: 0 < case[2] < case[1].kept,
        lambda case: case[1].kept == 0 and case[1].total > 0,
        lambda case: len(case[1]) > 1 and list(case[1]) != sorted(case[1]),
    ],
    ids=["0-d", "empty", "signed zeros", "subnormal", "all tied", "real choice", "nothing left", "unsorted names"],
)
def test_awkward_cases_are_drawn(awkward: object) -> None:
    find(selections(), awkward, settings=settings(max_examples=2000, phases=[Phase.generate]))


def test_shapes_stay_small() -> None:
    @given(shapes(max_dims=2, max_side=4))
    def check(shape: tuple[int, ...]) -> None:
        assert len(shape) <= 2
        assert all(side <= 4 for side in shape)

    check()


def test_masks_without_shapes_draw_their_own() -> None:
    assert isinstance(find(masks(), lambda mask: mask.total > 0), Mask)


@settings(max_examples=40)
@given(models())
def test_every_model_trains_on_its_input_and_has_weights_to_prune(drawn: tuple[nn.Module, torch.Tensor]) -> None:
    model, inputs = drawn
    assert model.training
    model(inputs).sum().backward()
    assert any(parameter.grad is not None for parameter in model.parameters())
    assert 0 < Scope.of(model).total < 2000


@pytest.mark.parametrize(
    "wanted",
    [
        lambda model: any(isinstance(part, nn.Conv2d | nn.Conv1d) and part.groups > 1 for part in model.modules()),
        lambda model: any(isinstance(part, nn.ConvTranspose2d | nn.ConvTranspose1d) for part in model.modules()),
        lambda model: any(isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d) for part in model.modules()),
        lambda model: any(isinstance(part, nn.LSTM) and part.proj_size > 0 for part in model.modules()),
        lambda model: any(isinstance(part, nn.GRU) and part.bidirectional for part in model.modules()),
        lambda model: any(isinstance(part, nn.RNNBase) and part.num_layers > 1 for part in model.modules()),
        lambda model: any(isinstance(part, nn.MultiheadAttention) and part.num_heads > 1 for part in model.modules()),
        lambda model: any(name.endswith("q_proj_weight") for name, _ in model.named_parameters()),
        lambda model: bool(Scope.of(model).aliases),
    ],
    ids=["groups", "transposed", "batch norm", "projected", "two ways", "layers", "heads", "apart", "tied"],
)
def test_models_of_every_kind_are_drawn(wanted: object) -> None:
    find(models(), lambda drawn: wanted(drawn[0]), settings=settings(max_examples=2000, phases=[Phase.generate]))


def test_a_model_drawn_twice_has_the_same_weights() -> None:
    anything = settings(max_examples=1, phases=[Phase.generate], derandomize=True, database=None)
    first, second = (find(models(), lambda _: True, settings=anything)[0] for _ in range(2))
    assert all(map(torch.equal, first.parameters(), second.parameters()))


@settings(max_examples=40)
@given(st.data())
def test_scopes_are_never_empty_and_say_the_rule_they_came_from(data: st.DataObject) -> None:
    model, _ = data.draw(models())
    scope = data.draw(scopes(model))
    assert scope.names
    assert set(scope.names) <= {name for name, _ in model.named_parameters()}
    assert not set(scope.exclude) & set(scope.names)


@pytest.mark.parametrize(
    "wanted",
    [
        lambda scope: scope.include is not None and any(name.endswith("bias") for name in scope.names),
        lambda scope: scope.include is None and scope.exclude,
        lambda scope: scope.include == ("0.*",),
        lambda scope: scope.embeddings and scope.bare,
        lambda scope: len(scope.names) == 1,
    ],
    ids=["biases", "exclude", "glob", "options", "one"],
)
def test_scopes_by_every_rule_are_drawn(wanted: object) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2), nn.Embedding(2, 2))
    find(scopes(model), wanted, settings=settings(max_examples=2000, phases=[Phase.generate]))


def test_a_model_without_weights_has_no_scopes() -> None:
    with pytest.raises(ScopeError, match="nothing to prune"):
        find(scopes(nn.LayerNorm(3)), lambda _: True, settings=settings(database=None))


def test_what_is_public_is_sorted_and_there() -> None:
    assert testing.__all__ == sorted(
        testing.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name)
    )
    assert all(getattr(testing, name).__doc__ for name in testing.__all__ if not name.isupper())


def test_without_hypothesis_the_error_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "import ticketkit\n"
        "try:\n    import ticketkit.testing\n"
        "except ModuleNotFoundError as error:\n    print(error)"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "ticketkit.testing needs hypothesis: pip install 'ticketkit[testing]'"
