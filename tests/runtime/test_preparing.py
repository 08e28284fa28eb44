import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.runtime.masked import assert_same
from ticketkit import ConfigError
from ticketkit.runtime.attention import Attention
from ticketkit.runtime.choosing import LEAST_GAIN, READ
from ticketkit.runtime.preparing import AS_FAST, Structure, prepared


def network(density: float = 0.3) -> nn.Module:
    """Return an encoder layer and attention on its own, in evaluation mode, of whose matrices a share is left."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.encoder(x)
            result: Tensor = self.attention(x, x, x)[0]
            return result

    torch.manual_seed(1)
    module = Network().eval()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(torch.rand(parameter.shape) < density)
    return module


def test_dense_leaves_everything_as_it_is() -> None:
    module = network()
    made, choices, structure = prepared(module, "dense")
    assert made is module
    assert structure == Structure()
    assert {choice.form for choice in choices.values()} == {"dense"}


def test_attention_is_taken_apart_where_that_was_measured_as_faster_and_left_whole_elsewhere() -> None:
    x = torch.randn(2, 4, 8)
    module = network()
    with torch.no_grad():
        expected = module(x)
    made: Any
    made, choices, structure = prepared(module, "auto", (x,))
    for path, seconds in structure.apart.items():
        assert seconds["apart"] < LEAST_GAIN * seconds["whole"]
        assert isinstance(made.get_submodule(path), Attention)
    for path in {"encoder.layers.0.self_attn", "encoder.layers.1.self_attn", "attention"} - structure.apart.keys():
        assert choices[path].left_dense == AS_FAST
        assert isinstance(made.get_submodule(path), nn.MultiheadAttention)
        if path != "attention":
            assert choices[path.replace("self_attn", "linear1")].left_dense == READ
    with torch.no_grad():
        assert_same(made(x), expected)


@pytest.mark.parametrize("slow", [True, False])
def test_what_is_clearly_faster_apart_is_taken_apart(slow, monkeypatch: pytest.MonkeyPatch) -> None:
    slowed = nn.MultiheadAttention if slow else Attention
    forward = slowed.forward

    def late(self: Any, *args: Any, **named: Any) -> Any:
        time.sleep(0.005)
        return forward(self, *args, **named)

    monkeypatch.setattr(slowed, "forward", late)
    structure = prepared(network(), "auto", (torch.randn(1, 3, 8),))[2]
    assert ("attention" in structure.apart) is slow


@pytest.mark.parametrize("runtime", ["sparse", "compact"])
def test_attention_without_a_zero_and_encoders_around_it_are_left(runtime) -> None:
    module = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 4), nn.Linear(8, 8)).eval()
    nn.init.ones_(module[0].self_attn.in_proj_weight)
    module[1].weight.data[1] = 0
    structure = prepared(module, runtime)[2]
    assert structure == Structure()
    assert isinstance(module[0].self_attn, nn.MultiheadAttention)


def test_auto_without_an_example_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs example inputs"):
        prepared(network(), "auto")


def test_compact_without_anything_to_compact_says_what_it_would_need() -> None:
    module = nn.Linear(3, 3)
    module.weight.data[0, 0] = 0
    with pytest.raises(ConfigError, match="no layer has a whole row or column of zeros; prune with a granularity"):
        prepared(module, "compact")


def test_hidden_units_alone_are_enough_for_compact() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    module[2].weight.data[:, 1] = 0
    made, choices, structure = prepared(module, "compact")
    assert [removal.features for removal in structure.removed] == [3]
    assert {choice.form for choice in choices.values()} == {"dense"}
    assert made[0].out_features == 3


@pytest.mark.parametrize("runtime", ["auto", "sparse"])
def test_a_structure_is_given_to_another_such_module_and_no_other(runtime) -> None:
    x = torch.randn(2, 4, 8)
    module = network()
    with torch.no_grad():
        for layer in module.encoder.layers:
            layer.linear1.weight[:6] = 0
    made, _, structure = prepared(module, runtime, (x,))
    again = Structure.read(structure.facts())
    assert again == structure
    assert again.removed
    assert type(again.given_to(network()).encoder) is type(made.encoder)
    with pytest.raises((ConfigError, AttributeError)):
        again.given_to(nn.Sequential(nn.Linear(8, 8)))
