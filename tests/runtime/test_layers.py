import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.runtime.masked import assert_same, forms, masked, seeds
from ticketkit import ConfigError
from ticketkit.runtime.layers import matrices, stand_in, unsupported
from ticketkit.runtime.products import FORMS

small = st.integers(1, 6)
CELLS = {
    "lstm": nn.LSTMCell,
    "gru": nn.GRUCell,
    "tanh": nn.RNNCell,
    "relu": lambda *sizes, **more: nn.RNNCell(*sizes, nonlinearity="relu", **more),
}


@settings(max_examples=40)
@given(data=st.data(), shape=st.lists(st.integers(0, 3), max_size=3), bias=st.booleans(), form=forms, seed=seeds)
def test_a_linear_layer_of_any_form_computes_what_torchs_does(data, shape, bias, form, seed) -> None:
    torch.manual_seed(seed)
    layer = data.draw(masked(nn.Linear(data.draw(small), data.draw(small), bias=bias)))
    x = torch.randn(*shape, layer.in_features)
    with torch.no_grad():
        assert_same(stand_in(layer, form)(x), layer(x))


@settings(max_examples=50)
@given(data=st.data(), axes=st.sampled_from((1, 2)), batch=st.integers(0, 3), form=forms, seed=seeds)
def test_a_convolution_of_any_form_computes_what_torchs_does(data, axes, batch, form, seed) -> None:
    torch.manual_seed(seed)

    def sizes(least: int, most: int) -> tuple[int, ...]:
        return tuple(data.draw(st.lists(st.integers(least, most), min_size=axes, max_size=axes)))

    more = {"stride": sizes(1, 3), "padding": sizes(0, 2), "dilation": sizes(1, 2), "bias": data.draw(st.booleans())}
    kind = nn.Conv1d if axes == 1 else nn.Conv2d
    layer = data.draw(masked(kind(data.draw(small), data.draw(small), sizes(1, 3), **more)))
    x = torch.randn(*([batch] if batch else []), layer.in_channels, *sizes(5, 9))  # batch 0: none
    made = stand_in(layer, form)
    with torch.no_grad():
        assert_same(made(x), layer(x))
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
        assert getattr(made, name) == getattr(layer, name)


@settings(max_examples=50)
@given(data=st.data(), kind=st.sampled_from(sorted(CELLS)), batch=st.integers(0, 3), form=forms, seed=seeds)
def test_a_cell_of_any_form_computes_what_torchs_does(data, kind, batch, form, seed) -> None:
    torch.manual_seed(seed)
    layer = data.draw(masked(CELLS[kind](data.draw(small), data.draw(small), bias=data.draw(st.booleans()))))
    some = [batch] if batch else []  # batch 0: none
    x, h, c = torch.randn(*some, layer.input_size), *torch.randn(2, *some, layer.hidden_size)
    given_states = [(x,), (x, (h, c) if kind == "lstm" else h)]
    made = stand_in(layer, form)
    with torch.no_grad():
        for arguments in given_states:
            assert_same(made(*arguments), layer(*arguments))


class Doubled(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def hooked() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda module, inputs, output: -output)
    return layer


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv1d(4, 4, 3, groups=2), "grouped convolutions"),
        (nn.Conv1d(4, 4, 3, padding="same"), "padded by zeros 'same'"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "padded by circular"),
        (nn.MultiheadAttention(4, 2), "MultiheadAttention"),
        (nn.MultiheadAttention(4, 2).out_proj, "NonDynamicallyQuantizableLinear"),
        (nn.Embedding(4, 2), "Embedding"),
        (nn.ConvTranspose1d(2, 2, 3), "ConvTranspose1d"),
        (Doubled(2, 2), "Doubled"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "ParametrizedLinear"),
        (nn.Linear(2, 2, dtype=torch.float64), "float64"),
        (nn.LSTM(2, 2, dtype=torch.float16), "float16"),
        (hooked(), "hooks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_compute_something_else_has_no_stand_in_and_says_why(layer, reason) -> None:
    assert reason in str(unsupported(layer))
    with pytest.raises(ConfigError, match="no form for inference"):
        stand_in(layer, "csr")


def test_matrices_are_the_weights_with_their_outputs_as_rows() -> None:
    assert {name: tuple(matrix.shape) for name, matrix in matrices(nn.Conv2d(2, 5, (3, 4))).items()} == {
        "weight": (5, 24)
    }
    assert matrices(nn.LSTM(2, 3)).keys() == {"weight_ih_l0", "weight_hh_l0"}
    empty = nn.Linear(2, 3)
    empty.weight = nn.Parameter(torch.empty(3, 0))
    assert matrices(empty) == matrices(nn.BatchNorm1d(2)) == {}


@pytest.mark.parametrize("form", FORMS)
def test_a_stand_in_runs_behind_a_layer_that_records_gradients_and_records_none(form) -> None:
    torch.manual_seed(1)
    first, layers = nn.Linear(4, 4), [nn.Linear(4, 4), nn.LSTM(4, 4), nn.GRU(4, 4), nn.RNN(4, 4), nn.Conv1d(4, 4, 1)]
    for layer in layers:
        x = first(torch.randn(1, 4, 4))
        with torch.no_grad():
            expected = layer(x)
        assert_same(stand_in(layer, form)(x), expected)
