from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from tests.runtime.masked import assert_same, forms, masked, seeds
from ticketkit import ConfigError
from ticketkit.runtime.recurrent import Recurrent

KINDS: dict[str, Any] = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "tanh": nn.RNN,
    "relu": lambda *sizes, **more: nn.RNN(*sizes, nonlinearity="relu", **more),
}

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # torch's own


@st.composite
def layers(draw: st.DrawFn, *, two_ways: bool = True) -> nn.RNNBase:
    """Return any recurrent layer of torch's under any mask."""
    kind, hidden = draw(st.sampled_from(sorted(KINDS))), draw(st.integers(2, 6))
    more: dict[str, Any] = {
        "num_layers": draw(st.integers(1, 2)),
        "bidirectional": two_ways and draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "dropout": 0.5,
    }
    if more["num_layers"] == 1:
        del more["dropout"]
    if kind == "lstm" and draw(st.booleans()):
        more["proj_size"] = draw(st.integers(1, hidden - 1))
    return draw(masked(KINDS[kind](draw(st.integers(1, 5)), hidden, **more)))


@st.composite
def stand_ins(draw: st.DrawFn, layer: nn.RNNBase) -> Recurrent:
    """Return the layer's stand-in: all matrices in one form, or each in one of its own."""
    names = [name for name, _ in layer.named_parameters() if name.startswith("weight")]
    alike = draw(st.none() | forms)
    return Recurrent(layer, {name: alike or draw(forms) for name in names})


def states(layer: nn.RNNBase, *batch: int) -> Any:
    """Return random states to start from."""
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    h = torch.randn(count, *batch, layer.proj_size or layer.hidden_size)
    return (h, torch.randn(count, *batch, layer.hidden_size)) if isinstance(layer, nn.LSTM) else h


@settings(max_examples=60)
@given(data=st.data(), steps=st.integers(1, 4), batch=st.integers(0, 3), with_state=st.booleans(), seed=seeds)
def test_outputs_and_states_are_torchs(data, steps, batch, with_state, seed) -> None:
    torch.manual_seed(seed)
    layer = data.draw(layers())
    made = data.draw(stand_ins(layer))
    shape = [batch, steps] if layer.batch_first else [steps, batch]
    x = torch.randn(*(shape if batch else [steps]), layer.input_size)  # batch 0: none
    start = states(layer, *([batch] if batch else [])) if with_state else None
    before = [tensor.clone() for tensor in (start if isinstance(start, tuple) else [start]) if tensor is not None]
    with torch.no_grad():
        assert_same(made(x, start), layer(x, start))
    after = [tensor for tensor in (start if isinstance(start, tuple) else [start]) if tensor is not None]
    assert all(map(torch.equal, before, after))


@settings(max_examples=60)
@given(
    data=st.data(),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    enforce_sorted=st.booleans(),
    with_state=st.booleans(),
    seed=seeds,
)
def test_packed_sequences_come_out_as_torchs_do(data, lengths, enforce_sorted, with_state, seed) -> None:
    torch.manual_seed(seed)
    layer = data.draw(layers())
    made = data.draw(stand_ins(layer))
    lengths = sorted(lengths, reverse=True) if enforce_sorted else lengths
    x = torch.randn(len(lengths), max(lengths), layer.input_size)
    packed = pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=enforce_sorted)
    start = states(layer, len(lengths)) if with_state else None
    with torch.no_grad():
        assert_same(made(packed, start), layer(packed, start))


@settings(max_examples=30)
@given(data=st.data(), steps=st.integers(1, 5), batch=st.integers(1, 3), seed=seeds)
def test_one_step_at_a_time_is_the_whole_sequence(data, steps, batch, seed) -> None:
    torch.manual_seed(seed)
    layer = data.draw(layers(two_ways=False))
    made = data.draw(stand_ins(layer))
    axis = 1 if layer.batch_first else 0
    x = torch.randn(*([batch, steps] if layer.batch_first else [steps, batch]), layer.input_size)
    with torch.no_grad():
        outputs, state = [], None
        for step in x.split(1, axis):
            output, state = made(step, state)
            outputs.append(output)
        whole = made(x)
    assert_same((torch.cat(outputs, axis).contiguous(), state), (whole[0].contiguous(), whole[1]))


def test_what_networks_call_of_torchs_layers_is_there() -> None:
    layer = nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True, proj_size=2)
    made = Recurrent(layer, dict.fromkeys(layer.state_dict(), "csr"))
    made.flatten_parameters()
    for name in ("mode", "input_size", "hidden_size", "num_layers", "batch_first", "bidirectional", "proj_size"):
        assert getattr(made, name) == getattr(layer, name)


def test_another_mode_is_refused() -> None:
    layer = nn.RNN(2, 2)
    layer.mode = "QRNN"
    with pytest.raises(ConfigError, match="mode 'QRNN' has no form"):
        Recurrent(layer, {})


DAMAGE = {
    "columns": [[[0, 1]], [0, 2], [-1, 0], [0]],
    "busy": [[0, 9], [1, 1], [-1, 2], [[0, 2]]],
    "idle": [[0], [3], []],
    "weight_ih": [[[1.0]]],
    "weight_hh": [[[1.0]]],
    "bias_ih": [[1.0]],
    "idle_bias_hh": [[1.0]],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in DAMAGE.items() for value in values])
def test_buffers_that_are_no_such_layer_are_refused(name, value) -> None:
    layer = nn.GRU(2, 3)
    for parameter in layer.parameters():
        parameter.data.view(3, 3, -1)[:, 1] = 0
    layer.weight_hh_l0.data[:, 1] = 0
    made: Any = Recurrent(layer, dict.fromkeys(("weight_ih_l0", "weight_hh_l0"), "compact")).layers[0]
    made.check()
    setattr(made, name, torch.tensor(value, dtype=getattr(made, name).dtype))
    with pytest.raises(ValueError, match=r"."):
        made.check()
