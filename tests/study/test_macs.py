"""Multiply-adds: against torch's own counter, and by hand where it counts none."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

from ticketkit.macs import multiply_adds, weight_uses

BATCH, STEPS, WIDTH, HIDDEN = 3, 5, 4, 6


def sizes(model: nn.Module) -> dict[str, int]:
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


def counted(model: nn.Module, call: Callable[[], object]) -> float:
    """Return the multiply-adds that torch counts: two operations each."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        call()
    return counter.get_total_flops() / 2


def ours(model: nn.Module, call: Callable[[], object]) -> int:
    return multiply_adds(weight_uses(model, call), sizes(model))


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, torch.Tensor]:
    """Return a layer with weights and an input for it."""
    kind = draw(st.sampled_from([nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d]))
    batch, number = draw(st.integers(1, 3)), st.integers(1, 3)
    if kind is nn.Linear:
        shape = draw(st.lists(number, max_size=2))
        width = draw(st.integers(1, 5))
        return nn.Linear(width, draw(number), bias=draw(st.booleans())), torch.randn(batch, *shape, width)
    groups = draw(st.integers(1, 2))
    options: dict[str, Any] = {"stride": draw(number), "padding": draw(st.integers(0, 2)), "dilation": draw(number)}
    layer = kind(groups * draw(number), groups * draw(number), draw(number), groups=groups, **options)
    space = draw(st.lists(st.integers(9, 12), min_size=kind.__name__.endswith("2d") + 1, max_size=2))
    space = space[: 2 if kind.__name__.endswith("2d") else 1]
    return layer, torch.randn(batch, layer.in_channels, *space)


@given(layers())
def test_layers_agree_with_torch(found: tuple[nn.Module, torch.Tensor]) -> None:
    layer, x = found
    assert ours(layer, lambda: layer(x)) == counted(layer, lambda: layer(x))
    assert ours(layer, lambda: layer(input=x)) == counted(layer, lambda: layer(x))


def test_networks_agree_with_torch() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, groups=2),
        nn.Flatten(2),
        nn.Conv1d(8, 5, 3),
        nn.Flatten(),
        nn.LazyLinear(7),
        nn.Linear(7, 2, bias=False),
    )
    x = torch.randn(2, 1, 12, 12)
    net(x)
    assert ours(net, lambda: net(x)) == counted(net, lambda: net(x)) > 0


GATES = {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4}


@pytest.mark.parametrize("kind", list(GATES))
@pytest.mark.parametrize(("depth", "directions"), [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("packed", [False, True])
def test_recurrent_layers_by_hand(kind: type[nn.RNNBase], depth: int, directions: int, packed: bool) -> None:
    layer = kind(WIDTH, HIDDEN, num_layers=depth, bidirectional=directions == 2, batch_first=True)
    x: Any = torch.randn(BATCH, STEPS, WIDTH)
    steps = BATCH * STEPS
    if packed:
        lengths = [5, 3, 1]
        x, steps = pack_padded_sequence(x, torch.tensor(lengths), batch_first=True), sum(lengths)
    inputs = [WIDTH, *[HIDDEN * directions] * (depth - 1)]
    weights = sum(directions * GATES[kind] * HIDDEN * (width + HIDDEN) for width in inputs)
    assert ours(layer, lambda: layer(x)) == steps * weights


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # slower, and as right
def test_a_projection_is_counted_and_an_unbatched_sequence_is_a_batch_of_one() -> None:
    layer = nn.LSTM(WIDTH, HIDDEN, proj_size=2)
    weights = 4 * HIDDEN * (WIDTH + 2) + 2 * HIDDEN
    assert ours(layer, lambda: layer(torch.randn(STEPS, WIDTH))) == STEPS * weights
    assert ours(layer, lambda: layer(input=torch.randn(STEPS, BATCH, WIDTH))) == STEPS * BATCH * weights


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNNCell, 1), (nn.GRUCell, 3), (nn.LSTMCell, 4)])
def test_cells_by_hand(kind: Any, gates: int) -> None:
    cell = kind(WIDTH, HIDDEN)
    weights = gates * HIDDEN * (WIDTH + HIDDEN)
    assert ours(cell, lambda: cell(torch.randn(BATCH, WIDTH))) == BATCH * weights
    assert ours(cell, lambda: cell(input=torch.randn(WIDTH))) == weights
    assert ours(cell, lambda: [cell(torch.randn(BATCH, WIDTH)) for _ in range(STEPS)]) == STEPS * BATCH * weights


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("fast", [False, True])
def test_attention_projects_queries_keys_values_and_what_comes_out(batch_first: bool, fast: bool) -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=batch_first).train(not fast)
    x = torch.randn(BATCH, STEPS, 8)
    assert weight_uses(layer, lambda: layer(x, x, x)) == {"out_proj.weight": 15, "in_proj_weight": 15}
    assert ours(layer, lambda: layer(query=x, key=x, value=x)) == 15 * 4 * 8 * 8


def test_attention_to_another_sequence_counts_each_at_its_length() -> None:
    queries, keys = torch.randn(BATCH, 4, 8), torch.randn(BATCH, 7, 8)
    one = nn.MultiheadAttention(8, 2, batch_first=True)
    assert ours(one, lambda: one(queries, keys, keys)) == BATCH * (4 + 7 + 7 + 4) * 8 * 8
    wide, values = nn.MultiheadAttention(8, 2, kdim=3, vdim=5, batch_first=True), torch.randn(BATCH, 7, 5)
    expected = BATCH * (4 * 64 + 7 * 3 * 8 + 7 * 5 * 8 + 4 * 64)
    assert ours(wide, lambda: wide(queries, keys[..., :3], values)) == expected


def test_a_transformer_layer_is_counted_on_its_fast_path_too() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    x = torch.randn(BATCH, STEPS, 8)
    by_hand = 15 * (4 * 64 + 2 * 8 * 16)
    assert [ours(layer.train(mode), lambda: layer(x)) for mode in (True, False)] == [by_hand, by_hand]


def test_a_layer_that_is_called_twice_is_used_twice_and_one_that_is_not_called_never() -> None:
    net = nn.ModuleDict({"twice": nn.Linear(2, 2), "never": nn.Linear(2, 2)})
    assert weight_uses(net, lambda: net["twice"](net["twice"](torch.randn(3, 2)))) == {"twice.weight": 6}


def test_layers_without_weight_matrices_use_none() -> None:
    net = nn.Sequential(nn.Embedding(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Dropout())
    assert weight_uses(net, lambda: net(torch.tensor([[1, 2]]))) == {}


@settings(max_examples=30)
@given(st.lists(st.booleans(), min_size=12, max_size=12), st.lists(st.booleans(), min_size=8, max_size=8))
def test_with_zeros_skipped_only_kept_weights_count(first: list[bool], second: list[bool]) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    kept = {"0.weight": sum(first), "2.weight": sum(second)}
    uses = weight_uses(net, lambda: net(torch.randn(5, 3)))
    with torch.no_grad():
        net[0].weight.mul_(torch.tensor(first).view(4, 3))
        net[2].weight.mul_(torch.tensor(second).view(2, 4))
    left = sum(5 * int(layer.weight.count_nonzero()) for layer in (net[0], net[2]))
    assert multiply_adds(uses, kept) == left


def test_counting_leaves_the_network_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(RuntimeError):
        weight_uses(net, lambda: net(torch.randn(5, 9)))
    assert all(not module._forward_hooks for module in net.modules())
    x = torch.randn(5, 3, requires_grad=True)
    weight_uses(net, lambda: net(x))
    assert all(not module._forward_hooks for module in net.modules())
    assert net(x).requires_grad
