"""Laws of dead units, against brute force."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ticketkit import Mask, Scope, ScopeError
from ticketkit.dead import dead_units
from ticketkit.testing import TINY_NETS, masks


def without(mask: Mask, name: str, axis: int) -> tuple[int, ...]:
    """Return the indices along an axis at which nothing is kept, by looking at every weight."""
    shape, flags = mask.shapes[name], mask[name]
    alive = {index[axis] for index in product(*map(range, shape)) if flags[index]}
    return tuple(i for i in range(shape[axis]) if i not in alive)


@given(masks())
def test_dead_rows_and_columns_are_those_without_a_kept_weight(mask: Mask) -> None:
    found = dead_units(mask)
    for name, shape in mask.shapes.items():
        if shape:
            assert found.rows[name] == without(mask, name, 0)
        assert found.columns[name] == (without(mask, name, 1) if len(shape) > 1 else ())
        assert found.counts[name] == (len(found.rows[name]), len(found.columns[name]))
    assert found.hidden == {}


RECURRENT = {
    "lstm": (4, lambda: nn.LSTM(2, 3)),
    "lstm_projected": (4, lambda: nn.LSTM(2, 3, proj_size=2)),
    "lstm_projected_to_one": (4, lambda: nn.LSTM(2, 3, proj_size=1)),
    "gru": (3, lambda: nn.GRU(2, 3)),
    "rnn": (1, lambda: nn.RNN(2, 3)),
    "rnn_relu": (1, lambda: nn.RNN(2, 3, nonlinearity="relu")),
    "lstm_cell": (4, lambda: nn.LSTMCell(2, 3)),
    "gru_cell": (3, lambda: nn.GRUCell(2, 3)),
    "rnn_cell": (1, lambda: nn.RNNCell(2, 3)),
}


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("with_model", [True, False])
@given(data=st.data())
def test_a_hidden_unit_is_dead_when_all_its_gate_rows_are(kind: str, with_model: bool, data: st.DataObject) -> None:
    gates, build = RECURRENT[kind]
    model = nn.ModuleDict({"net": build()})
    drawn = data.draw(masks(Scope.of(model).shapes))
    sparse = Mask({name: drawn[name] & (torch.arange(len(drawn[name])) % 3 != 1)[:, None] for name in drawn})
    found = dead_units(sparse, model if with_model else None)
    (layer,) = found.hidden
    assert layer == ("net" if kind.endswith("cell") else "net.l0")
    suffix = "" if kind.endswith("cell") else "_l0"
    expected = [
        unit
        for unit in range(3)
        if not any(
            sparse[f"net.weight_{side}{suffix}"][gate * 3 + unit].any()
            for side, gate in product(("ih", "hh"), range(gates))
        )
    ]
    assert found.hidden[layer] == tuple(expected)
    assert 1 in expected


def test_every_layer_and_direction_has_its_own_hidden_units() -> None:
    model = TINY_NETS["bilstm_tagger"].build()
    mask = Scope.of(model).ones()
    flags = {name: tensor.clone() for name, tensor in mask.items()}
    for side in ("ih", "hh"):
        flags[f"lstm.weight_{side}_l1_reverse"][2::5] = False
    assert dead_units(Mask(flags), model).hidden == {
        "lstm.l0": (), "lstm.l0_reverse": (), "lstm.l1": (), "lstm.l1_reverse": (2,)
    }  # fmt: skip
    assert dead_units(Mask({"lstm.weight_hh_l1_reverse": flags["lstm.weight_hh_l1_reverse"]}), model).hidden == {}


def test_a_layer_at_the_root_has_no_dot() -> None:
    model = nn.LSTM(2, 2)
    assert dead_units(Scope.of(model).ones(), model).hidden == {"l0": ()}


def test_names_alone_do_not_make_a_module_recurrent() -> None:
    model = nn.Module()
    model.weight_ih, model.weight_hh = nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(5, 2))
    mask = Mask({name: torch.zeros(p.shape, dtype=torch.bool) for name, p in model.named_parameters()})
    assert dead_units(mask, model).hidden == {}
    assert dead_units(mask, model).rows["weight_hh"] == (0, 1, 2, 3, 4)


CONVOLUTIONS = {
    "conv": lambda: nn.Conv1d(4, 6, 2),
    "grouped": lambda: nn.Conv2d(4, 6, (1, 2), groups=2),
    "depthwise": lambda: nn.Conv1d(4, 4, 2, groups=4),
    "transposed": lambda: nn.ConvTranspose1d(4, 6, 2),
    "transposed_grouped": lambda: nn.ConvTranspose1d(4, 6, 2, groups=2),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@given(data=st.data())
def test_filters_and_channels_are_those_that_move_nothing(kind: str, data: st.DataObject) -> None:
    """A filter is dead if it gives zero for ones everywhere, a channel if a one in it alone gives zero everywhere."""
    layer = CONVOLUTIONS[kind]().requires_grad_(False)
    flags = torch.zeros(layer.weight.shape, dtype=torch.bool)
    for _ in range(data.draw(st.integers(0, 6))):
        flags[tuple(data.draw(st.integers(0, n - 1)) for n in flags.shape)] = True
    mask = Mask({"weight": flags})
    layer.weight.copy_(flags)
    layer.bias.zero_()
    one_by_one = torch.eye(4).reshape(4, 4, *[1] * (flags.ndim - 2)).expand(4, 4, *[3] * (flags.ndim - 2))
    moved = layer(one_by_one).flatten(2).amax(2) > 0  # (channel, filter)
    found = dead_units(mask, layer)
    assert found.rows["weight"] == tuple((~moved.any(0)).nonzero().flatten().tolist())
    assert found.columns["weight"] == tuple((~moved.any(1)).nonzero().flatten().tolist())


def test_a_model_without_the_masked_parameters_is_refused() -> None:
    with pytest.raises(ScopeError, match="missing"):
        dead_units(Mask.ones({"fc.weight": (2, 2)}), nn.Linear(2, 2))


def test_wrapped_models_keep_their_names() -> None:
    inner = nn.Sequential(nn.ConvTranspose1d(2, 3, 1))
    mask = Scope.of(inner).ones() - Mask({"0.weight": torch.tensor([[True] * 3, [False] * 3])[..., None]})
    assert dead_units(mask, nn.DataParallel(inner)).columns == {"0.weight": (0,)}
