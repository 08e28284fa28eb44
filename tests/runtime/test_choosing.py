import time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.runtime.masked import assert_same, masked, seeds
from ticketkit import ConfigError
from ticketkit.runtime.choosing import LEAST_GAIN, applied, choose, measured
from ticketkit.runtime.layers import ProductLinear
from ticketkit.testing import TINY_NETS


def thinned(module: nn.Module, density: float = 0.1) -> nn.Module:
    """Return a module of whose matrices a random share is left, in evaluation mode."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(torch.rand(parameter.shape) < density)
    return module.eval()


class Slow(nn.Linear):
    """Set aside as `nn.Linear` for a moment: slower than any form."""

    def forward(self, input: Tensor) -> Tensor:
        time.sleep(0.002)
        return super().forward(input)


@pytest.mark.parametrize("name", TINY_NETS)
def test_auto_takes_no_form_that_it_measured_as_no_faster_than_dense(name) -> None:
    net = TINY_NETS[name]
    for choice in choose(thinned(net.build()), "auto", (net.inputs(),)).values():
        enough = {form for form, took in choice.seconds.items() if took < LEAST_GAIN * choice.seconds["dense"]}
        assert choice.form == (min(enough, key=lambda form: choice.seconds[form]) if enough else "dense")


def test_what_is_faster_is_taken_and_what_is_not_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = ((torch.randn(2, 8),), {})
    slow = thinned(nn.Linear(8, 8))
    monkeypatch.setattr(slow, "forward", lambda x: (time.sleep(0.002), nn.functional.linear(x, slow.weight))[1])
    assert measured(slow, inputs).form != "dense"
    monkeypatch.setattr(ProductLinear, "forward", lambda self, x: time.sleep(0.002))
    choice = measured(thinned(nn.Linear(8, 8)), inputs)
    assert choice.form == "dense"
    assert choice.seconds.keys() >= {"dense", "csr"}


class Odd(nn.Module):
    """Layers that have no other form, and one that is called by nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 8)
        self.grouped = nn.Conv1d(8, 8, 1, groups=8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.derived = type("Derived", (nn.Linear,), {})(8, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        self.output = nn.Linear(8, 8)
        self.unused = nn.Linear(8, 8)
        self.whole = nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.grouped(self.embedding(tokens).transpose(1, 2)).transpose(1, 2)
        x = self.derived(self.attention(x, x, x)[0])
        result: Tensor = self.output(self.whole(self.block(x)))
        return result


REASONS = {
    "embedding": "Embedding",
    "grouped": "grouped convolutions",
    "attention": "MultiheadAttention",
    "attention.out_proj": "NonDynamicallyQuantizableLinear",
    "derived": "Derived",
    "block.self_attn": "TransformerEncoderLayer",
    "block.self_attn.out_proj": "TransformerEncoderLayer",
    "block.linear1": "TransformerEncoderLayer",
    "block.linear2": "TransformerEncoderLayer",
}


@pytest.mark.parametrize("runtime", ["auto", "sparse"])
def test_what_has_no_other_form_stays_dense_and_says_why(runtime) -> None:
    module = thinned(Odd(), 0.3)
    nn.init.ones_(module.whole.weight)
    example = (torch.tensor([[1, 2, 3]]),)
    choices = choose(module, runtime, example)
    reasons = {path: choice.left_dense for path, choice in choices.items() if choice.left_dense}
    unused = {"unused": "the example does not call it"} if runtime == "auto" else {}
    assert reasons.keys() == (REASONS | unused).keys()
    for path, part in (REASONS | unused).items():
        assert part in reasons[path]
        assert choices[path].form == "dense"
    assert (choices["whole"].form, choices["whole"].density, choices["whole"].left_dense) == ("dense", 1.0, None)
    assert choices["output"].density == module.output.weight.count_nonzero() / 64
    assert choices["output"].form == "csr" or runtime == "auto"
    with torch.no_grad():
        expected = module(*example)
        assert_same(applied(module, choices)(*example), expected)


@settings(max_examples=10)
@given(data=st.data(), name=st.sampled_from(sorted(TINY_NETS)), seed=seeds)
def test_a_network_with_its_layers_in_any_chosen_form_computes_the_same(data, name, seed) -> None:
    torch.manual_seed(seed)
    net = TINY_NETS[name]
    module, x = data.draw(masked(net.build())), net.inputs()
    with torch.no_grad():
        expected = module(x)
        for runtime in ("dense", "sparse"):
            assert_same(applied(module, choose(module, runtime))(x), expected)


def test_compact_takes_what_has_whole_rows_or_columns_of_zeros_alone() -> None:
    module = thinned(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)), 2.0)
    module[0].weight.data[3] = 0
    module[1].weight.data[2, 2] = 0
    choices = choose(module, "compact")
    assert {path: choice.form for path, choice in choices.items()} == {"0": "compact", "1": "dense", "2": "dense"}
    x = torch.randn(3, 8)
    with torch.no_grad():
        expected = module(x)
        assert_same(applied(module, choices)(x), expected)


def test_auto_without_an_example_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs example inputs"):
        choose(thinned(nn.Linear(3, 3)), "auto")


@pytest.mark.parametrize(("runtime", "form"), [("sparse", "csr"), ("compact", "compact")])
def test_a_module_that_is_a_layer_itself_becomes_its_stand_in(runtime, form) -> None:
    layer = nn.Linear(4, 4).eval()
    layer.weight.data[1] = 0
    choices = choose(layer, runtime, (torch.randn(1, 4),))
    assert {path: choice.form for path, choice in choices.items()} == {"": form}
    x = torch.randn(2, 4)
    made = applied(layer, choices)
    assert isinstance(made, ProductLinear)
    with torch.no_grad():
        assert_same(made(x), layer(x))


@pytest.mark.parametrize("runtime", ["auto", "dense", "sparse"])
def test_choosing_leaves_the_module_its_modes_and_the_random_numbers_as_they_were(runtime) -> None:
    module = thinned(
        nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.LSTM(16, 4, 2, dropout=0.5)
        )
    )
    module.train()
    module[2].eval()
    modes = [child.training for child in module.modules()]
    before: dict[str, Any] = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    random = torch.get_rng_state()
    choose(module, runtime, (torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(1)),))
    assert torch.equal(torch.get_rng_state(), random)
    assert [child.training for child in module.modules()] == modes
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert not any(child._forward_pre_hooks for child in module.modules())
