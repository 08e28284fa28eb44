"""The layout: which axes are outputs and inputs, under which names; and every weight by itself."""

import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ticketkit import Mask, Plugins, Scope, ScopeError, select
from ticketkit.granularity import Layout, Weights
from ticketkit.members import Member
from ticketkit.testing import selections, tied_gru


@given(selections())
def test_single_weights_are_selected_as_ever(case: tuple) -> None:
    scored, mask, keep = case
    pattern = Weights(mask.shapes)
    assert pattern.select(scored, mask, keep) == select(scored, mask, keep)
    chosen = select(scored, mask, keep)
    assert pattern.select(scored, mask, chosen.counts, {"no": 1}) == select(scored, mask, chosen.counts)
    floors = {name: min(1, count) for name, count in chosen.counts.items()}
    assert pattern.select(scored, mask, keep, floors) == select(scored, mask, keep, floors=floors)
    assert pattern.capacities(mask) == mask.counts
    assert pattern.final_count(keep) == keep


def test_a_tied_parameter_has_all_its_holders() -> None:
    model = tied_gru()
    layout = Layout.of(model, Scope.of(model).shapes)
    assert [holder.name for holder in layout.holders["embedding.weight"]] == ["embedding.weight", "output.weight"]
    assert [type(holder.module) for holder in layout.holders["embedding.weight"]] == [nn.Embedding, nn.Linear]
    assert list(layout.shapes) == list(Scope.of(model).shapes)


def test_a_layout_of_another_model_is_refused() -> None:
    with pytest.raises(ScopeError, match=r"no\.weight"):
        Layout.of(nn.Linear(2, 2), {"no.weight": (2, 2)})


CONVOLUTIONS = {
    "conv": lambda: nn.Conv1d(4, 6, 3, bias=False),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False),
    "depthwise": lambda: nn.Conv1d(4, 4, 3, groups=4, bias=False),
    "transposed": lambda: nn.ConvTranspose1d(4, 6, 3, bias=False),
    "transposed, grouped": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False),
    "linear": lambda: nn.Linear(4, 6, bias=False),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_outputs_and_inputs_are_what_the_layer_writes_and_reads(name: str) -> None:
    layer = CONVOLUTIONS[name]().double()
    shape = tuple(layer.weight.shape)
    dims = 0 if isinstance(layer, nn.Linear) else layer.weight.dim() - 2
    signal = torch.randn(2, 4, *[7] * dims, dtype=torch.float64)
    layout = Layout.of(layer, {"weight": shape})
    before, weight = layer(signal).detach(), layer.weight.detach().clone()
    for side, (count, labels) in {"out": layout.outputs("weight"), "in": layout.inputs("weight")}.items():
        assert count == (before.shape[1] if side == "out" else 4)
        unit = torch.from_numpy(np.broadcast_to(sum(Member("", labels).terms), shape).copy())
        for index in range(count):
            with torch.no_grad():
                layer.weight.copy_(weight).masked_fill_(unit == index, 0)
            if side == "out":
                expected = before.clone()
                expected[:, index] = 0
                torch.testing.assert_close(layer(signal), expected, rtol=0, atol=0)
            else:
                silent = signal.clone()
                silent[:, index] = 0
                after = layer(signal)
                layer.weight.data.copy_(weight)
                torch.testing.assert_close(after, layer(silent))
        layer.weight.data.copy_(weight)


@pytest.mark.parametrize("wrap", [AveragedModel, nn.DataParallel, partial(torch.compile, backend="eager")])
def test_a_layout_has_canonical_names_however_the_network_is_wrapped(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = tied_gru()
    plain = Layout.of(model, Scope.of(model).shapes)
    layout = Layout.of(wrap(model), plain.shapes)
    names = {name: [(h.path, h.leaf) for h in places] for name, places in plain.holders.items()}
    assert {name: [(h.path, h.leaf) for h in places] for name, places in layout.holders.items()} == names
    part = Layout.of(nn.ModuleDict({"net": wrap(model)}), {f"net.{n}": shape for n, shape in plain.shapes.items()})
    assert [h.name for h in part.holders["net.embedding.weight"]] == ["net.embedding.weight", "net.output.weight"]


def test_the_transposed_linear_layer_of_transformers_has_its_outputs_on_axis_1(monkeypatch: pytest.MonkeyPatch) -> None:
    class Conv1D(nn.Module):
        def __init__(self, inputs: int, outputs: int):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(inputs, outputs))
            self.bias = nn.Parameter(torch.zeros(outputs))

    model = nn.Sequential(Conv1D(4, 6))
    shapes = {"0.weight": (4, 6), "0.bias": (6,)}
    layout = Layout.of(model, shapes)
    assert (layout.output_axis("0.weight"), layout.input_axis("0.weight")) == (0, 1), "a class of that name elsewhere"
    library = ModuleType("transformers.pytorch_utils")
    library.Conv1D = Conv1D
    monkeypatch.setitem(sys.modules, library.__name__, library)
    assert (layout.output_axis("0.weight"), layout.input_axis("0.weight")) == (1, 0)
    assert layout.output_axis("0.bias") == 0
    rows = Plugins().choose("granularity", "row").call(layout)
    assert rows.spaces == {"0.weight": 6, "0.bias": 6}
    scored = {"0.weight": torch.arange(6.0).expand(4, 6), "0.bias": torch.zeros(6)}
    assert rows.select(scored, Mask.ones(shapes), 8)["0.weight"][0].tolist() == [False] * 4 + [True] * 2
