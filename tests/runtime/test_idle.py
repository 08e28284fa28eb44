from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.runtime.masked import assert_same, masked, seeds
from ticketkit import ConfigError, HiddenUnits
from ticketkit.runtime.idle import ELEMENTWISE, Removal, found_units, remove_idle_

BETWEEN: dict[str, Callable[[], list[nn.Module]]] = {
    "nothing": list,
    "relu": lambda: [nn.ReLU(inplace=True), nn.Dropout(0.5)],
    "sigmoid": lambda: [nn.Sigmoid()],
    "norm": lambda: [nn.BatchNorm1d(7), nn.Tanh()],
    "plain norm": lambda: [nn.GELU(), nn.BatchNorm1d(7, affine=False)],
}


def chain(between: list[nn.Module], *, bias: bool = True) -> nn.Sequential:
    """Return linear layers with something between them, and statistics of its own."""
    layers = nn.Sequential(nn.Linear(5, 7), *between, nn.Linear(7, 6, bias=bias), nn.SiLU(), nn.Linear(6, 3))
    for layer in layers:
        if isinstance(layer, nn.BatchNorm1d):
            layer.running_mean.normal_()  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return layers


@settings(max_examples=40)
@given(data=st.data(), name=st.sampled_from(sorted(BETWEEN)), bias=st.booleans(), seed=seeds)
def test_a_chain_of_linear_layers_without_its_idle_units_computes_the_same(data, name, bias, seed) -> None:
    torch.manual_seed(seed)
    module = data.draw(masked(nn.Sequential(chain(BETWEEN[name](), bias=bias), nn.ReLU())))
    x = torch.randn(4, 5)
    with torch.no_grad():
        expected = module(x)
        removals = remove_idle_(module, found_units)
        assert_same(module(x), expected)
    fresh: Any = nn.Sequential(chain(BETWEEN[name](), bias=bias), nn.ReLU())
    for removal in removals:
        Removal.read(removal.facts()).apply_(fresh)
    shapes = {key: value.shape for key, value in module.state_dict().items()}
    assert {key: value.shape for key, value in fresh.state_dict().items()} == shapes
    if name != "nothing" and bias:
        left = module[0]
        assert left[0].weight.any(1).all() or left[0].out_features == 1
        assert left[-3].weight.any(0).all() or left[-3].in_features == 1


@pytest.mark.parametrize("kind", ELEMENTWISE, ids=lambda kind: kind.__name__)
def test_a_unit_without_inputs_goes_into_the_bias_behind_it(kind) -> None:
    module = nn.Sequential(nn.Linear(3, 4), kind(), nn.Linear(4, 2)).eval()
    module[0].weight.data[1] = 0
    x = torch.randn(6, 3)
    with torch.no_grad():
        expected = module(x)
        remove_idle_(module, found_units)
        assert module[0].out_features == module[2].in_features == 3
        assert_same(module(x), expected)


def test_what_only_removed_units_read_goes_too() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    module[4].weight.data[:, 1:] = 0  # units 1 to 3 of the second layer are read by nobody,
    module[2].weight.data[0, 2:] = 0  # and then units 2 and 3 of the first by nobody either
    remove_idle_(module, found_units)
    assert [layer.weight.shape for layer in module if isinstance(layer, nn.Linear)] == [(2, 3), (1, 2), (2, 1)]


def hooked() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    module[0].register_forward_hook(lambda layer, inputs, output: None)
    return module


def tied() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    module[4].weight = module[2].weight = module[0].weight
    return module


def twice() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer)


class Reversed(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.flip(-1))


@pytest.mark.parametrize(
    "module",
    [
        hooked(),
        tied(),
        twice(),
        Reversed(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False)),
        nn.TransformerEncoderLayer(4, 2, 4, activation=lambda x: x.softmax(-1)),
    ],
    ids=["hooks", "tied", "twice", "derived", "norm", "softmax", "no statistics", "no bias", "unknown activation"],
)
def test_units_are_left_where_their_removal_might_be_noticed(module) -> None:
    first = module.linear1 if isinstance(module, nn.TransformerEncoderLayer) else module[0]
    first.weight.data[1] = 0
    first.bias.data[1] = 0.5
    before = {key: value.shape for key, value in module.state_dict().items()}
    assert remove_idle_(module.eval(), found_units) == []
    assert {key: value.shape for key, value in module.state_dict().items()} == before


def test_one_unit_is_left_where_all_are_idle() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).eval()
    nn.init.zeros_(module[0].weight)
    x = torch.randn(2, 3)
    with torch.no_grad():
        expected = module(x)
        remove_idle_(module, found_units)
        assert_same(module(x), expected)
    assert module[0].out_features == 1


@given(before=st.integers(3, 5), units=st.integers(-1, 5), features=st.integers(-1, 5))
@example(before=4, units=4, features=4)
def test_sizes_from_a_file_that_are_none_are_refused(before, units, features) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    removal = Removal(("0",), "1", (), None, before, features, units)
    if before == 4 and 0 < units <= features <= 4:
        removal.apply_(module)
        assert module[0].out_features == features
        return
    with pytest.raises(ConfigError, match="cannot be left"):
        removal.apply_(module)


def test_units_that_do_not_fit_are_refused_with_their_names() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2), nn.ReLU())
    with pytest.raises(ConfigError, match=r"0 and 1 do not agree on their features: \[4, 5\]"):
        remove_idle_(module, lambda network: [HiddenUnits(("0",), "1")])
    with pytest.raises(ConfigError, match=r"2 must be nn.Linear"):
        Removal(("0",), "2", (), None, 4, 2, 2).apply_(module)
    with pytest.raises(ConfigError, match=r"0\.weight is no vector"):
        Removal(("0",), "1", ("0.weight",), None, 4, 2, 2).apply_(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    with pytest.raises(ConfigError, match=r"0\.bias is no number of units"):
        Removal(("0",), "1", (), "0.bias", 4, 2, 2).apply_(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
