"""Built-in granularities: each one's units, found with loops; and masked units are as good as removed ones."""

from collections.abc import Callable, Iterator, Mapping
from math import ceil, prod
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from ticketkit import BudgetError, ConfigError, Mask, Plugins, Scope, ScopeError, ScoreError, ScoreInputs, select
from ticketkit.builtin import granularities as builtin
from ticketkit.builtin.granularities import NOfM
from ticketkit.granularity import Layout, Pattern, Weights
from ticketkit.units import Units
from ticketkit.testing import TINY_NETS, bilstm_tagger, masks, scores, shape_maps, tied_scores

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
TOO_COARSE = [  # a parameter of so few units that its share holds none
    ("column", "convnet"),
    ("channel", "convnet"),
    ("block", "attention"),
    ("block", "rnn"),
    ("block", "lstm, both ways, projected"),
]
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
                if allocation == "uniform" and (choice, net) in TOO_COARSE:
                    keep = mask.kept
                counts = split(pattern.shapes, keep, floors={}, capacities=pattern.capacities(mask))
                smaller = pattern.select(scored, mask, counts)
                assert smaller <= mask
                assert 0 < smaller.kept <= keep
                if choice in ("weight", "n_m"):
                    assert smaller.kept == keep
                mask = smaller


def test_a_share_too_small_for_one_unit_is_refused() -> None:
    model = TINY_NETS["convnet"].build()
    scope = Scope.of(model, include=["0.*", "3.*"])
    pattern = pattern_of(model, "channel", scope)
    with pytest.raises(
        BudgetError, match=r"the best of space '0.weight' has 36; keep more, .* leave it out of the scope"
    ):
        pattern.select(scope.tensors(model), scope.ones(), {"0.weight": 29, "3.weight": 115})


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


# N:M


@st.composite
def n_of_m(draw: st.DrawFn) -> tuple[NOfM, dict[str, torch.Tensor]]:
    """Return an N:M pattern along any axis of up to three parameters, ragged ones included, and scores."""
    m = draw(st.integers(2, 4))
    sides = st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple)
    shapes = {name: draw(sides) for name in ("b", "a", "c")[: draw(st.integers(1, 3))]}
    axes = {name: draw(st.integers(0, len(shape) - 1)) for name, shape in shapes.items()}
    return NOfM(shapes, axes, draw(st.integers(1, m - 1)), m), draw(st.one_of(scores(shapes), tied_scores(shapes)))


def groups(pattern: NOfM) -> Iterator[tuple[str, list[tuple[int, ...]]]]:
    """Yield the indices of every group."""
    for name, shape in pattern.shapes.items():
        axis = pattern.axes[name]
        for start in np.ndindex(*[ceil(size / pattern.m) if d == axis else size for d, size in enumerate(shape)]):
            run = range(start[axis] * pattern.m, min((start[axis] + 1) * pattern.m, shape[axis]))
            yield name, [(*start[:axis], i, *start[axis + 1 :]) for i in run]


def best_of_groups(pattern: NOfM, scored: Scores, mask: Mask) -> Mask:
    tensors = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in pattern.shapes.items()}
    for name, indices in groups(pattern):
        alive = [index for index in indices if mask[name][index]]
        for index in sorted(alive, key=lambda index: -float(scored[name][index]))[: pattern.n]:  # a stable sort
            tensors[name][index] = True
    return Mask(tensors)


@given(n_of_m(), st.data())
def test_the_best_n_of_every_group_are_sure_to_stay(case: tuple, data: st.DataObject) -> None:
    pattern, scored = case
    mask = data.draw(masks(pattern.shapes))
    sure = best_of_groups(pattern, scored, mask)
    keep = data.draw(st.integers(sure.kept, mask.kept))
    chosen = pattern.select(scored, mask, keep)
    assert chosen == sure | select(scored, mask - sure, keep - sure.kept)
    assert chosen.kept == keep
    assert sure <= chosen <= mask
    halfway = pattern.select(scored, mask, data.draw(st.integers(keep, mask.kept)))
    assert pattern.select(scored, halfway, keep) == chosen


@given(n_of_m())
def test_the_end_has_exactly_n_in_every_full_group(case: tuple) -> None:
    pattern, scored = case
    total = sum(map(prod, pattern.shapes.values()))
    mask = Mask.ones(pattern.shapes)
    end = pattern.final_count(round(total * pattern.n / pattern.m))
    for keep in (max(end, round(0.8 * total)), end):
        mask = pattern.select(scored, mask, keep)
    assert mask == best_of_groups(pattern, scored, Mask.ones(pattern.shapes))
    for name, indices in groups(pattern):
        assert sum(bool(mask[name][index]) for index in indices) == min(pattern.n, len(indices))


@given(n_of_m(), st.data())
def test_counts_per_parameter_give_way_to_groups(case: tuple, data: st.DataObject) -> None:
    pattern, scored = case
    mask = data.draw(masks(pattern.shapes))
    counts = {name: data.draw(st.integers(0, count)) for name, count in mask.counts.items()}
    sure = best_of_groups(pattern, scored, mask)
    if sum(counts.values()) < sure.kept:
        with pytest.raises(BudgetError, match=f"{pattern.n} of every {pattern.m} are {sure.kept}"):
            pattern.select(scored, mask, counts)
        return
    chosen = pattern.select(scored, mask, counts)
    assert chosen.kept == sum(counts.values())
    assert sure <= chosen <= mask
    if all(counts[name] >= sure.counts[name] for name in counts):
        assert chosen.counts == counts
    assert pattern.select(dict(reversed(scored.items())), mask, dict(reversed(counts.items()))) == chosen


@given(n_of_m(), st.data())
def test_floors_hold_besides_the_groups(case: tuple, data: st.DataObject) -> None:
    pattern, scored = case
    mask = Mask.ones(pattern.shapes)
    floors = {name: data.draw(st.integers(0, count)) for name, count in mask.counts.items()}
    least = {name: max(floors[name], count) for name, count in best_of_groups(pattern, scored, mask).counts.items()}
    assume(sum(least.values()) <= mask.kept)
    chosen = pattern.select(scored, mask, data.draw(st.integers(sum(least.values()), mask.kept)), floors)
    assert all(chosen.counts[name] >= count for name, count in least.items())


def test_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = {"a": (13, 9), "b": (13, 9), "c": (5, 7, 3)}
    pattern = NOfM(shapes, {"a": 0, "b": 1, "c": 1}, 2, 4)
    scored = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    mask = Mask({name: torch.rand(shape, generator=draw) < 0.7 for name, shape in shapes.items()})
    whole = pattern.best_of_groups(scored, mask)
    assert whole == best_of_groups(pattern, scored, mask)
    for chunk in (8, 64):
        monkeypatch.setattr(builtin, "CHUNK", chunk)
        assert pattern.best_of_groups(scored, mask) == whole


@pytest.mark.parametrize(
    ("layer", "axis"),
    [(nn.Linear(8, 4), 1), (nn.Conv2d(8, 4, 3), 1), (nn.ConvTranspose2d(8, 4, 3), 0), (nn.Embedding(4, 8), 1)],
    ids=lambda value: type(value).__name__,
)
def test_n_m_runs_along_inputs(layer: nn.Module, axis: int) -> None:
    pattern = builtin.n_m(Layout.of(layer, {"weight": tuple(layer.weight.shape)}), options=builtin.NOfMOptions())
    assert pattern == NOfM({"weight": tuple(layer.weight.shape)}, {"weight": axis}, 2, 4)


def test_n_m_ends_at_its_own_density_only() -> None:
    pattern = NOfM({"w": (3, 10)}, {"w": 1}, 2, 4)
    assert pattern.final_count(15) == 3 * (2 + 2 + 2)
    for planned in (14, 16, 3):
        with pytest.raises(BudgetError, match=r"2:4 ends with 2 of every 4 weights, .* use density=0.5"):
            pattern.final_count(planned)
    assert NOfM({"w": (3, 3)}, {"w": 1}, 1, 3).final_count(round(9 * (1 / 3))) == 3


def test_equals_in_a_large_group_stay_by_position() -> None:
    pattern, mask = NOfM({"w": (2, 80)}, {"w": 1}, 20, 40), Mask.ones({"w": (2, 80)})
    scored = {"w": torch.randint(3, (2, 80), generator=torch.Generator().manual_seed(0)).float()}
    assert pattern.select(scored, mask, 80) == best_of_groups(pattern, scored, mask)


def test_n_m_refuses_bad_scores_budgets_and_shapes() -> None:
    pattern, mask = NOfM({"w": (1, 4)}, {"w": 1}, 2, 4), Mask.ones({"w": (1, 4)})
    with pytest.raises(ScoreError, match="parameter 'w' is nan"):
        pattern.select({"w": torch.tensor([[1.0, float("nan"), 2.0, 3.0]])}, mask, 3)
    for keep in (1, 5, -1):
        with pytest.raises(BudgetError, match="cannot keep"):
            pattern.select({"w": torch.ones(1, 4)}, mask, keep)
    with pytest.raises(BudgetError, match="cannot keep -1 weights of 'w'"):
        pattern.select({"w": torch.ones(1, 4)}, mask, {"w": -1})
    with pytest.raises(BudgetError, match=r"check \['v'\]"):
        pattern.select({"w": torch.ones(1, 4)}, mask, {"w": 3, "v": 0})
    with pytest.raises(BudgetError, match="number of weights"):
        pattern.select({"w": torch.ones(1, 4)}, mask, 2.0)
    with pytest.raises(ScopeError, match="'n_m' has no units for p1; set the scope"):
        builtin.n_m(layout_of({"a": (2, 2), "b": (3,)}), options=builtin.NOfMOptions())
    with pytest.raises(ConfigError, match="1 <= n < m, not 4:2"):
        NOfM({}, {}, 4, 2)


# Recurrent units: masked is as good as removed

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def prune(model: nn.Module, chosen: Any, density: float, include: list[str] | None = None) -> Mask:
    """Mask a model by magnitude in place and return the mask."""
    scope = Scope.of(model, include=include)
    scored = {name: weights.abs() for name, weights in scope.tensors(model).items()}
    mask = pattern_of(model, chosen, scope).select(scored, scope.ones(), round(density * scope.total))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in mask:
                parameter.masked_fill_(~mask[name], 0)
    return mask


def kept_units(module: nn.RNNBase, mask: Mask, suffix: str, prefix: str = "") -> list[int]:
    """Return the hidden units of a stage that are still there: an unmasked weight to itself or to its projection."""
    if module.proj_size:
        kept = mask[f"{prefix}weight_hr{suffix}"].any(dim=0)
    else:
        kept = mask[f"{prefix}weight_hh{suffix}"][: module.hidden_size].diagonal()
    return kept.nonzero().flatten().tolist()


def stages(module: nn.RNNBase) -> Iterator[tuple[int, int, str]]:
    for layer in range(module.num_layers):
        for direction in range(1 + module.bidirectional):
            yield layer, direction, f"_l{layer}" + "_reverse" * direction


def removed(module: nn.RNNBase, units: Mapping[str, list[int]]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the network without the units that are not listed; its output lists those left, then nothing."""
    kind, gates, hidden = type(module), GATES[module.mode[:4].rstrip("_")], module.hidden_size

    def stage(suffix: str, inputs: list[int]) -> nn.RNNBase:
        kept = units[suffix]
        size = {"proj_size": module.proj_size} if module.proj_size else {}
        small = kind(len(inputs), len(kept), dtype=torch.float64, **size)
        rows = [gate * hidden + unit for gate in range(gates) for unit in kept]
        columns = list(range(module.proj_size)) if module.proj_size else kept
        with torch.no_grad():
            small.weight_ih_l0.copy_(module.get_parameter("weight_ih" + suffix)[rows][:, inputs])
            small.weight_hh_l0.copy_(module.get_parameter("weight_hh" + suffix)[rows][:, columns])
            small.bias_ih_l0.copy_(module.get_parameter("bias_ih" + suffix)[rows])
            small.bias_hh_l0.copy_(module.get_parameter("bias_hh" + suffix)[rows])
            if module.proj_size:
                small.weight_hr_l0.copy_(module.get_parameter("weight_hr" + suffix)[:, kept])
        return small

    def run(frames: torch.Tensor) -> torch.Tensor:  # (time, batch, features)
        inputs, width = list(range(module.input_size)), module.proj_size or hidden
        for layer in range(module.num_layers):
            halves, left = [], []
            for direction in range(1 + module.bidirectional):
                suffix = f"_l{layer}" + "_reverse" * direction
                turned = frames.flip(0) if direction else frames
                half = stage(suffix, inputs)(turned)[0]
                halves.append(half.flip(0) if direction else half)
                own = range(width) if module.proj_size else units[suffix]
                left += [direction * width + unit for unit in own]
            frames, inputs = torch.cat(halves, dim=-1), left
        return frames

    return run


SHAPES_OF_RNN = [
    {"num_layers": 2},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 3, "bidirectional": True, "proj_size": 2},
]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", SHAPES_OF_RNN, ids=str)
def test_masked_recurrent_units_are_as_good_as_removed(kind: type[nn.RNNBase], options: dict[str, Any]) -> None:
    if "proj_size" in options and kind is not nn.LSTM:
        return
    module = kind(5, 7, dtype=torch.float64, **options)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.startswith("bias"):
                parameter.zero_()
    mask = prune(module, "rnn_unit", 0.7 if module.proj_size else 0.4)
    units = {suffix: kept_units(module, mask, suffix) for _, _, suffix in stages(module)}
    assert all(module.proj_size < len(kept) for kept in units.values())
    assert sum(map(len, units.values())) < 7 * len(units)
    frames = torch.randn(6, 2, 5, dtype=torch.float64)
    masked = module(frames)[0]
    if module.proj_size:
        torch.testing.assert_close(masked, removed(module, units)(frames))
        return
    last = [suffix for layer, _, suffix in stages(module) if layer == module.num_layers - 1]
    left = [direction * 7 + unit for direction, suffix in enumerate(last) for unit in units[suffix]]
    torch.testing.assert_close(masked[..., left], removed(module, units)(frames))
    gone = sorted(set(range(masked.shape[-1])) - set(left))
    assert (masked[..., gone] == 0).all()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrent_mask_is_made_of_whole_units_and_nothing_else(kind: type[nn.RNNBase]) -> None:
    module = kind(5, 7, num_layers=2, bidirectional=True)
    mask = prune(module, "rnn_unit", 0.3)
    units = {suffix: kept_units(module, mask, suffix) for _, _, suffix in stages(module)}
    for layer, _, suffix in stages(module):
        inputs = [0, 1, 2, 3, 4] if layer == 0 else units["_l0"] + [7 + unit for unit in units["_l0_reverse"]]
        for row in range(GATES[kind.__name__] * 7):
            for column in range(mask[f"weight_ih{suffix}"].shape[1]):
                expected = row % 7 in units[suffix] and column in inputs
                assert bool(mask[f"weight_ih{suffix}"][row, column]) == expected
            for column in range(7):
                expected = row % 7 in units[suffix] and column in units[suffix]
                assert bool(mask[f"weight_hh{suffix}"][row, column]) == expected


def test_with_their_readers_recurrent_units_go_whatever_their_biases() -> None:
    model = bilstm_tagger().double()
    mask = prune(model, CHOICES["rnn_unit, fed"][0], 0.4)
    units = {suffix: kept_units(model.lstm, mask, suffix, "lstm.") for _, _, suffix in stages(model.lstm)}
    assert any(0 < len(kept) < 5 for kept in units.values())
    left = [direction * 5 + u for direction, suffix in enumerate(("_l1", "_l1_reverse")) for u in units[suffix]]
    frames = torch.randn(4, 5, 6, dtype=torch.float64)
    small = removed(model.lstm, units)(frames.transpose(0, 1)).transpose(0, 1)
    expected = small @ model.head.weight[:, left].T + model.head.bias
    torch.testing.assert_close(model(frames), expected)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_masked_units_of_a_cell_are_as_good_as_removed(kind: type[nn.RNNCellBase]) -> None:
    cell = kind(3, 6, bias=False, dtype=torch.float64)
    mask = prune(cell, "rnn_unit", 0.4)
    kept = mask["weight_hh"][:6].diagonal().nonzero().flatten().tolist()
    assert 0 < len(kept) < 6
    small = kind(3, len(kept), bias=False, dtype=torch.float64)
    rows = [gate * 6 + unit for gate in range(cell.weight_hh.shape[0] // 6) for unit in kept]
    with torch.no_grad():
        small.weight_ih.copy_(cell.weight_ih[rows])
        small.weight_hh.copy_(cell.weight_hh[rows][:, kept])
    state = other = None
    for frame in torch.randn(4, 2, 3, dtype=torch.float64):
        state, other = cell(frame, state), small(frame, other)
    whole, part = (s[0] if isinstance(s, tuple) else s for s in (state, other))
    torch.testing.assert_close(whole[:, kept], part)
    assert (whole.sum(dim=1) - part.sum(dim=1)).abs().max() < 1e-12


def test_a_recurrent_layer_in_another_reads_the_units_it_is_fed() -> None:
    model = nn.ModuleDict({"one": nn.GRU(2, 3), "two": nn.LSTM(3, 2)})
    pattern = pattern_of(model, {"name": "rnn_unit", "feeds": {"o*": ["two.weight_ih_l0"]}})
    assert [member.space for member in pattern.members["two.weight_ih_l0"]] == ["two.l0", "one.l0"]
    assert unit_of(pattern, "two.weight_ih_l0", 1)[0].tolist() == [0, 1, 2]
    assert pattern.shapes == {"one.l0": (3, 15), "two.l0": (2, 20)}


def test_a_bias_in_scope_goes_with_its_unit() -> None:
    model = nn.LSTM(2, 3)
    scope = Scope.of(model, include=["weight_*", "bias_hh_l0"])
    pattern = pattern_of(model, "rnn_unit", scope)
    assert unit_of(pattern, "bias_hh_l0").tolist() == [0, 1, 2] * 4


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"lstn": ["head.weight"]}, r"feeds 'lstn' matches no layer .*nearest: \['lstm'\]"),
        ({"lstm": ["head.bias"]}, "names head.bias, not in scope; there are: .*head.weight"),
        ({"lstm": ["lstm.weight_ih_l0"]}, "'lstm.weight_ih_l0' reads 6 features, but lstm.l1, lstm.l1_reverse make 10"),
    ],
)
def test_feeds_that_do_not_fit_are_refused(feeds: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ScopeError, match=message):
        pattern_of(bilstm_tagger(), {"name": "rnn_unit", "feeds": feeds})


def test_projections_are_no_units_that_feed() -> None:
    model = nn.ModuleDict({"lstm": nn.LSTM(2, 3, proj_size=2), "head": nn.Linear(2, 2)})
    with pytest.raises(ScopeError, match="feeds 'lstm' matches no layer whose outputs are units"):
        pattern_of(model, {"name": "rnn_unit", "feeds": {"lstm": ["head.weight"]}})


# Heads and filters


@pytest.mark.parametrize("widths", [{}, {"kdim": 5, "vdim": 7}], ids=["one matrix", "three matrices"])
def test_masked_heads_are_as_good_as_removed(widths: dict[str, int]) -> None:
    heads, size = 4, 3
    attention = nn.MultiheadAttention(heads * size, heads, batch_first=True, dtype=torch.float64, **widths)
    nn.init.normal_(attention.in_proj_bias)
    nn.init.normal_(attention.out_proj.bias)
    if widths:
        weights = [attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight]
    else:
        weights = list(attention.in_proj_weight.chunk(3))
    dense = [weight.detach().clone() for weight in weights]
    dense_out = attention.out_proj.weight.detach().clone()
    mask = prune(attention, "head", 0.5)
    kept = [h for h in range(heads) if mask["out_proj.weight"][:, h * size].any()]
    assert len(kept) == 2
    assert mask.kept == mask.total // 2
    inputs = [torch.randn(2, 6, w, dtype=torch.float64) for w in (12, widths.get("kdim", 12), widths.get("vdim", 12))]
    expected = attention.out_proj.bias
    for h in kept:
        own = slice(h * size, (h + 1) * size)
        query, key, value = (
            x @ weight[own].T + bias[own]
            for x, weight, bias in zip(inputs, dense, attention.in_proj_bias.chunk(3), strict=True)
        )
        looked = torch.softmax(query @ key.transpose(1, 2) / size**0.5, dim=-1) @ value
        expected = expected + looked @ dense_out[:, own].T
    torch.testing.assert_close(attention(*inputs)[0], expected)


def test_masked_filters_and_their_readers_are_as_good_as_removed() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 4, 3)
    ).double()
    mask = prune(model, {"name": "filter", "feeds": {"0": ["2.weight"], "2": ["5.weight"]}}, 0.5)
    first = mask["0.weight"].flatten(1).any(dim=1).nonzero().flatten().tolist()
    second = mask["2.weight"].flatten(1).any(dim=1).nonzero().flatten().tolist()
    assert 0 < len(first) < 6
    assert 0 < len(second) < 5
    columns = [channel * 4 + pixel for channel in second for pixel in range(4)]
    small = nn.Sequential(
        nn.Conv2d(2, len(first), 3), nn.ReLU(), nn.Conv2d(len(first), len(second), 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(len(columns), 3),
    ).double()  # fmt: skip
    with torch.no_grad():
        small[0].weight.copy_(model[0].weight[first])
        small[0].bias.copy_(model[0].bias[first])
        small[2].weight.copy_(model[2].weight[second][:, first])
        small[2].bias.copy_(model[2].bias[second])
        small[5].weight.copy_(model[5].weight[:, columns])
        small[5].bias.copy_(model[5].bias)
    images = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(model(images), small(images))


def test_a_filter_is_a_space_of_its_kernel_until_it_is_fed() -> None:
    model = TINY_NETS["convnet"].build()
    assert pattern_of(model, "filter", Scope.of(model, include=["0.*", "3.*"])).shapes == {
        "0.weight": (4, 1, 3, 3),
        "3.weight": (4, 4, 3, 3),
    }
    assert pattern_of(model, CHOICES["filter, fed"][0]).shapes == {"0.weight": (4, 1, 3, 3), "3.weight": (4, 48)}
