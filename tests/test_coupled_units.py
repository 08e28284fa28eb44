"""Units that reach across parameters: masked ones are as good as removed ones."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ticketkit import Mask, Pattern, Plugins, Scope, ScopeError, Units
from ticketkit.granularity import Layout
from ticketkit.testing import TINY_NETS, bilstm_tagger

RNN_FED = {"name": "rnn_unit", "feeds": {"lstm": ["head.weight"]}}


def pattern_of(model: nn.Module, chosen: Any, scope: Scope | None = None) -> Pattern:
    shapes = (scope or Scope.of(model)).shapes
    return Plugins().choose("granularity", chosen).call(Layout.of(model, shapes))


def unit_of(units: Units, name: str, member: int = 0) -> np.ndarray:
    """Return the unit of every weight, written out."""
    return np.broadcast_to(sum(units.members[name][member].terms), units.parameters[name])


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
    mask = prune(model, RNN_FED, 0.4)
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


def test_units_are_the_same_in_a_wrapped_network() -> None:
    """Nothing of a name depends on DDP, torch.compile or an average of weights around the model or a part of it."""
    model = nn.ModuleDict({"lstm": nn.LSTM(2, 3, num_layers=2), "attention": nn.MultiheadAttention(4, 2)})
    inner = nn.ModuleDict({name: AveragedModel(part) for name, part in model.items()})
    for chosen, include in (("rnn_unit", ["lstm.*"]), ("head", ["attention.*"])):
        plain = pattern_of(model, chosen, Scope.of(model, include=include))
        for wrapped in (AveragedModel(model), nn.DataParallel(model), torch.compile(model, backend="eager"), inner):
            pattern = pattern_of(wrapped, chosen, Scope.of(wrapped, include=include))
            assert pattern.spaces == plain.spaces
            assert pattern.shapes == plain.shapes
            for name in plain.parameters:
                assert [m.space for m in pattern.members[name]] == [m.space for m in plain.members[name]]


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
    assert pattern_of(model, {"name": "filter", "feeds": {"0": ["3.weight"], "3": ["5.weight"]}}).shapes == {
        "0.weight": (4, 1, 3, 3),
        "3.weight": (4, 48),
    }
