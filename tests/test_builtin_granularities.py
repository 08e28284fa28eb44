"""Built-in granularities: each works with everything, and has the units that loops find."""

from collections.abc import Mapping
from math import ceil, prod
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ticketkit import BudgetError, ConfigError, Plugins, Scope, ScopeError, ScoreInputs, select
from ticketkit.builtin import granularities as builtin
from ticketkit.granularity import Layout, Pattern, Weights
from ticketkit.testing import TINY_NETS, bilstm_tagger, shape_maps
from ticketkit.units import Units

Scores = Mapping[str, torch.Tensor]

RECURRENT = {
    "lstm, 2 layers": lambda: nn.LSTM(3, 4, num_layers=2),
    "gru, 2 layers, both ways": lambda: nn.GRU(3, 4, num_layers=2, bidirectional=True),
    "rnn": lambda: nn.RNN(3, 4),
    "lstm, both ways, projected": lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2),
    "lstm cell": lambda: nn.LSTMCell(3, 4),
    "gru cell": lambda: nn.GRUCell(3, 4),
}
NETS = {name: net.build for name, net in TINY_NETS.items()} | RECURRENT
ANY = list(NETS)
WITH_KERNELS = {"convnet": ["0.*", "3.*"]}
CHOICES: dict[str, tuple[Any, Mapping[str, list[str] | None]]] = {
    "weight": ("weight", dict.fromkeys(ANY)),
    "row": ("row", dict.fromkeys(ANY)),
    "column": ({"name": "column", "pool": "sum"}, dict.fromkeys(ANY)),
    "block": ({"name": "block", "rows": 3, "cols": 5, "pool": "max"}, dict.fromkeys(ANY)),
    "n_m": ("n_m", dict.fromkeys(ANY)),
    "filter": ("filter", WITH_KERNELS),
    "filter, fed": ({"name": "filter", "feeds": {"0": ["3.weight"], "3": ["5.weight"]}}, {"convnet": None}),
    "channel": ("channel", WITH_KERNELS),
    "rnn_unit": ("rnn_unit", dict.fromkeys(RECURRENT) | {"bilstm_tagger": ["lstm.*"], "tied_gru": ["gru.*"]}),
    "rnn_unit, fed": ({"name": "rnn_unit", "feeds": {"lstm": ["head.weight"]}}, {"bilstm_tagger": None}),
    "head": ("head", {"attention": ["attention.*"]}),
}
NOTHING_FITS = [("block", "rnn")]  # two blocks are left, each larger than its share
CASES = [(choice, net) for choice, (_, nets) in CHOICES.items() for net in nets]


def pattern_of(model: nn.Module, chosen: Any, scope: Scope | None = None) -> Pattern:
    shapes = (scope or Scope.of(model)).shapes
    return Plugins().choose("granularity", chosen).call(Layout.of(model, shapes))


def unit_of(units: Units, name: str, member: int = 0) -> np.ndarray:
    """Return the unit of every weight, written out."""
    return np.broadcast_to(sum(units.members[name][member].terms), units.parameters[name])


def test_every_builtin_is_registered_and_tried() -> None:
    registered = {entry.name for entry in Plugins().registries["granularity"] if entry.plugin == "builtin"}
    assert registered == {name.partition(",")[0] for name in CHOICES}


@pytest.mark.parametrize(("choice", "net"), CASES, ids=lambda value: value)
def test_every_granularity_works_with_all_scores_and_splits(choice: str, net: str) -> None:
    model, (chosen, nets) = NETS[net](), CHOICES[choice]
    scope = Scope.of(model, include=nets[net])
    pattern = pattern_of(model, chosen, scope)
    plugins, end = Plugins(), pattern.final_count(round(scope.total / 2))
    assert sum(map(prod, pattern.shapes.values())) == scope.total
    assert sum(pattern.capacities(scope.ones()).values()) == scope.total
    for criterion in ("magnitude", "magnitude_over_init", "random"):
        for allocation in ("global", "uniform"):
            mask, seed = scope.ones(), torch.Generator().manual_seed(1)
            for density in (0.8, 0.64, 0.5):
                keep = min(round(density * scope.total), mask.kept)
                if choice == "n_m":
                    keep = max(keep, end)
                weights = scope.tensors(model)
                inputs = ScoreInputs(weights, weights, mask, seed, keep)
                scored = plugins.choose("criterion", criterion).call(inputs)
                split = plugins.choose("allocation", allocation).call
                if allocation == "uniform" and (choice, net) in NOTHING_FITS:
                    keep = mask.kept
                counts = split(pattern.shapes, keep, floors={}, capacities=pattern.capacities(mask))
                smaller = pattern.select(scored, mask, counts)
                assert smaller <= mask
                assert 0 < smaller.kept <= keep
                if choice in ("weight", "n_m"):
                    assert smaller.kept == keep
                mask = smaller


def test_a_share_too_small_for_one_unit_keeps_none_and_leaves_it_to_the_guard() -> None:
    model = TINY_NETS["convnet"].build()
    scope = Scope.of(model, include=["0.*", "3.*"])
    pattern = pattern_of(model, "channel", scope)
    assert pattern.select(scope.tensors(model), scope.ones(), {"0.weight": 29, "3.weight": 115}).counts == {
        "0.weight": 0,
        "3.weight": 108,
    }
    assert pattern.select(scope.tensors(model), scope.ones(), {"0.weight": 29, "3.weight": 7}).kept == 36
    with pytest.raises(BudgetError, match=r"cannot keep 35 weights: .* split in too small counts has 36"):
        pattern.select(scope.tensors(model), scope.ones(), {"0.weight": 28, "3.weight": 7})


def test_weight_is_select_to_the_bit() -> None:
    model = bilstm_tagger()
    scope = Scope.of(model)
    pattern = pattern_of(model, "weight", scope)
    assert pattern == Weights(scope.shapes)
    scored = {name: weights.abs() for name, weights in scope.tensors(model).items()}
    assert pattern.select(scored, scope.ones(), scope.total // 3) == select(scored, scope.ones(), scope.total // 3)


# Units inside a parameter


class Bare(nn.Module):
    """Parameters of any shape, of no known layer."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        super().__init__()
        self.names = {f"p{i}": shape for i, shape in enumerate(shapes.values())}
        for name, shape in self.names.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


def layout_of(shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    model = Bare(shapes)
    return Layout.of(model, model.names)


@given(shape_maps(), st.integers(1, 4), st.integers(1, 4))
def test_blocks_partition_every_shape_ragged_edges_included(shapes: dict, rows: int, cols: int) -> None:
    layout = layout_of(shapes)
    units = builtin.block(layout, options=builtin.BlockOptions(rows=rows, cols=cols))
    for name, shape in layout.shapes.items():
        height = shape[0] if shape else 1
        width = prod(shape[1:])
        labels = unit_of(units, name).reshape(height, width)
        across = ceil(width / cols)
        assert units.spaces[name] == (ceil(height / rows) * across)
        for i in range(height):
            for j in range(width):
                assert labels[i, j] == (i // rows) * across + j // cols


@given(shape_maps())
def test_rows_partition_every_shape_and_columns_every_matrix(shapes: dict) -> None:
    layout = layout_of(shapes)
    rows = builtin.row(layout, options=builtin.UnitOptions())
    for name, shape in layout.shapes.items():
        assert all(unit_of(rows, name)[index] == (index or (0,))[0] for index in np.ndindex(shape))
        assert rows.spaces[name] == (shape[0] if shape else 1)
    if flat := [name for name, shape in layout.shapes.items() if len(shape) < 2]:
        with pytest.raises(ScopeError, match=f"granularity 'column' has no units for {', '.join(flat)};"):
            builtin.column(layout, options=builtin.UnitOptions())
        return
    columns = builtin.column(layout, options=builtin.UnitOptions())
    for name, shape in layout.shapes.items():
        assert all(unit_of(columns, name)[index] == index[1] for index in np.ndindex(shape))
        assert columns.spaces[name] == shape[1]


def test_blocks_of_a_transposed_kernel_lie_along_its_outputs() -> None:
    model = nn.ConvTranspose1d(4, 6, 3)
    units = pattern_of(model, {"name": "block", "rows": 2, "cols": 6})
    assert units.spaces == {"weight": 6}
    labels = unit_of(units, "weight")
    assert all(labels[i, o, k] == o // 2 * 2 + (i * 3 + k) // 6 for i in range(4) for o in range(6) for k in range(3))


@pytest.mark.parametrize("name", ["filter", "channel", "rnn_unit", "head"])
def test_parameters_without_units_are_refused_by_name(name: str) -> None:
    model = TINY_NETS["convnet"].build() if name in ("filter", "channel") else bilstm_tagger()
    if name == "head":
        model = TINY_NETS["attention"].build()
    last = {"filter": "5.weight", "channel": "5.weight", "rnn_unit": "head.weight", "head": "head.weight"}[name]
    with pytest.raises(ScopeError, match=rf'.{name}. has no units for {last}; set the scope, e.g. scope=."include": '):
        pattern_of(model, name)
    with pytest.raises(ScopeError, match="choose another granularity"):
        pattern_of(nn.Linear(2, 2), name)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"name": "row", "pool": "median"}, "pool"),
        ({"name": "block", "rows": 0}, "rows"),
        ({"name": "n_m", "n": 4, "m": 4}, "n must be below m"),
        ({"name": "weight", "pool": "mean"}, "takes no options"),
        ({"name": "head", "feeds": {}}, "feeds"),
    ],
)
def test_wrong_options_are_refused(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Plugins().choose("granularity", chosen)
