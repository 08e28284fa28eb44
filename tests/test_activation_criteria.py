"""Wanda against its definition: for every weight, the values it multiplies, gathered one by one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from ticketkit import Plugins, Scope, ScoreError, ScoreInputs
from ticketkit.probe import Probe

WANDA = {entry.name: entry for entry in Plugins().registries["criterion"]}["wanda"]
State = tuple[torch.Tensor, torch.Tensor]


def first(output: Any) -> torch.Tensor:
    """Return the first tensor in nested outputs."""
    while not isinstance(output, torch.Tensor):
        output = output[0]
    return output


def run(model: nn.Module, batch: Any) -> torch.Tensor:
    args, kwargs = batch
    return first(model(*args, **kwargs)).sum()


def wanda(model: nn.Module, *batches: Any, loss: Callable = run, **scope: Any) -> dict[str, torch.Tensor]:
    found = Scope.of(model, **scope)
    weights = found.tensors(model)
    data = list(batches)
    probe = Probe(model, lambda: data, loss, found.ones(), 0)
    return dict(WANDA.configured({}).call(ScoreInputs(weights, weights, found.ones(), torch.Generator(), 1, probe)))


def norms(model: nn.Module, *batches: Any, **options: Any) -> dict[str, torch.Tensor]:
    """Return the scores over the weights' magnitudes: the norms."""
    scores = wanda(model, *batches, **options)
    return {name: t / model.get_parameter(name).detach().double().abs() for name, t in scores.items()}


def call(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def root(total: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return total.double().sqrt().expand(shape)


# Feed-forward layers


def test_linear_weights_are_multiplied_by_the_norm_of_their_input_over_all_batches_and_positions() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    data = [torch.randn(2, 5, 3).double(), torch.randn(4, 3).double()]
    found = wanda(model, *(call(x) for x in data))
    squares = [[0.0] * 3, [0.0] * 4]
    for batch in data:
        for x in batch.reshape(-1, 3):
            hidden = torch.tanh(model[0].weight @ x + model[0].bias).tolist()
            for total, values in zip(squares, (x.tolist(), hidden), strict=True):
                for index, value in enumerate(values):
                    total[index] += value**2
    for index, total in ((0, squares[0]), (2, squares[1])):
        weight = model[index].weight
        for row in range(weight.shape[0]):
            for column in range(weight.shape[1]):
                expected = abs(weight[row, column].item()) * total[column] ** 0.5
                assert found[f"{index}.weight"][row, column].item() == pytest.approx(expected, rel=1e-12)


def conv_patches(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Return Σ x² under every element of the kernel, by taking every patch of the padded input."""
    modes = {"zeros": "constant"}
    padding = module._reversed_padding_repeated_twice
    padded = functional.pad(x, padding, mode=modes.get(module.padding_mode, module.padding_mode))
    totals = torch.zeros_like(module.weight, dtype=torch.float64)
    output = module(x)
    per_group = module.in_channels // module.groups
    for index in torch.cartesian_prod(*(torch.arange(n) for n in totals.shape)).tolist():
        out, channel, *offsets = index
        source = out // (module.out_channels // module.groups) * per_group + channel
        for position in torch.cartesian_prod(*(torch.arange(n) for n in output.shape[2:])).reshape(-1, len(offsets)):
            spots = [
                p * s + o * d
                for p, s, o, d in zip(position.tolist(), module.stride, offsets, module.dilation, strict=True)
            ]
            totals[tuple(index)] += padded[(slice(None), source, *spots)].double().square().sum()
    return totals


CONVOLUTIONS = {
    "conv1d": lambda: (nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 2, 7)),
    "dilated": lambda: (nn.Conv1d(2, 2, 2, dilation=3), (2, 2, 8)),
    "circular": lambda: (nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular"), (2, 2, 5)),
    "reflect": lambda: (nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), (1, 1, 4, 5)),
    "same": lambda: (nn.Conv1d(1, 2, 3, padding="same"), (2, 1, 6)),
    "grouped": lambda: (nn.Conv2d(4, 4, 2, groups=2, padding=(1, 0)), (2, 4, 3, 4)),
    "depthwise": lambda: (nn.Conv2d(3, 3, 2, groups=3), (2, 3, 4, 4)),
    "conv3d": lambda: (nn.Conv3d(1, 2, 2), (1, 1, 3, 3, 3)),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_kernel_elements_are_multiplied_by_the_values_under_them(kind: str) -> None:
    module, shape = CONVOLUTIONS[kind]()
    x = torch.randn(shape)
    assert torch.allclose(norms(module, call(x))["weight"].square(), conv_patches(module, x), rtol=1e-5)


def test_transposed_convolutions_multiply_their_kernel_by_every_input() -> None:
    module = nn.ConvTranspose1d(2, 3, 3, stride=2)
    x = torch.randn(4, 2, 5)
    total = x.double().square().sum((0, 2))
    assert torch.allclose(norms(module, call(x))["weight"], root(total[:, None, None], module.weight.shape), rtol=1e-5)


def test_bilinear_weights_multiply_products_of_inputs() -> None:
    module = nn.Bilinear(2, 3, 4)
    one, two = torch.randn(5, 2), torch.randn(5, 3)
    total = (one[:, :, None] * two[:, None, :]).double().square().sum(0)
    assert torch.allclose(norms(module, call(one, input2=two))["weight"], root(total, module.weight.shape), rtol=1e-5)


def test_large_half_precision_activations_do_not_overflow() -> None:
    module = nn.Linear(2, 2).half()
    found = norms(module, call(torch.full((3, 2), 3e3).half()))
    assert torch.allclose(found["weight"], torch.full((2, 2), 3e3 * 3**0.5).double(), rtol=1e-3)


# Uses of one parameter


def test_a_tied_embedding_adds_how_often_a_token_comes_to_the_input_of_the_output_layer() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.output = nn.Embedding(5, 3), nn.Linear(3, 5)
            self.output.weight = self.embedding.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.output(self.embedding(tokens).tanh())

    model, tokens = Tied(), torch.tensor([[0, 1, 1], [4, 1, 0]])
    hidden = model.embedding(tokens).tanh().double().square().sum((0, 1))
    counts = torch.tensor([2.0, 3.0, 0.0, 0.0, 1.0])
    expected = root(counts[:, None] + hidden, model.embedding.weight.shape)
    assert torch.allclose(norms(model, call(tokens))["embedding.weight"], expected, rtol=1e-5)


def test_a_layer_that_is_run_several_times_adds_all_its_inputs() -> None:
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    x = torch.randn(4, 3)
    total = x.double().square().sum(0) + layer(x).tanh().double().square().sum(0)
    assert torch.allclose(norms(model, call(x))["0.weight"], root(total, layer.weight.shape), rtol=1e-5)


# Recurrent layers, by hand


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(-x))


class Tally:
    """Adds up the squares of everything that a weight multiplies."""

    def __init__(self) -> None:
        self.squares: dict[str, torch.Tensor] = {}

    def times(self, module: nn.Module, name: str, x: torch.Tensor) -> torch.Tensor:
        self.squares[name] = self.squares.get(name, 0) + x.square()
        return getattr(module, name) @ x


def step(module: Any, tally: Tally, suffix: str, x: torch.Tensor, state: State) -> State:
    """Return the next hidden and cell state of one sequence, from the equations in torch's documentation."""
    h, c = state
    bias = [getattr(module, f"bias_{part}{suffix}") if module.bias else 0.0 for part in ("ih", "hh")]
    from_input = tally.times(module, f"weight_ih{suffix}", x) + bias[0]
    from_state = tally.times(module, f"weight_hh{suffix}", h) + bias[1]
    if isinstance(module, nn.LSTM | nn.LSTMCell):
        i, f, g, o = (from_input + from_state).chunk(4)
        c = sigmoid(f) * c + sigmoid(i) * torch.tanh(g)
        h = sigmoid(o) * torch.tanh(c)
        return (tally.times(module, f"weight_hr{suffix}", h) if getattr(module, "proj_size", 0) else h), c
    if isinstance(module, nn.GRU | nn.GRUCell):
        (ir, iz, inn), (hr, hz, hn) = from_input.chunk(3), from_state.chunk(3)
        r, z = sigmoid(ir + hr), sigmoid(iz + hz)
        return (1 - z) * torch.tanh(inn + r * hn) + z * h, c
    return (torch.tanh if module.nonlinearity == "tanh" else torch.relu)(from_input + from_state), c


def by_hand(module: Any, sequences: list[torch.Tensor], states: list[State]) -> tuple[Tally, list[torch.Tensor]]:
    """Run a recurrent module over single sequences; `states` are per sequence, (layers · directions, features)."""
    tally, outputs = Tally(), []
    for sequence, (hidden, cell) in zip(sequences, states, strict=True):
        steps = list(sequence)
        for layer in range(module.num_layers):
            columns = []
            for direction in range(2 if module.bidirectional else 1):
                suffix = f"_l{layer}" + ("_reverse" if direction else "")
                index = layer * (2 if module.bidirectional else 1) + direction
                state, found = (hidden[index], cell[index]), []
                for x in reversed(steps) if direction else steps:
                    state = step(module, tally, suffix, x, state)
                    found.append(state[0])
                columns.append(found[::-1] if direction else found)
            steps = [torch.cat(parts) for parts in zip(*columns, strict=True)]
        outputs.append(torch.stack(steps))
    return tally, outputs


@st.composite
def recurrent_cases(draw: st.DrawFn) -> tuple[Any, list[torch.Tensor], bool, bool]:
    """Return a recurrent module in float64, sequences, whether they are packed and whether they start from a state."""
    torch.manual_seed(draw(st.integers(0, 999)))
    kind = draw(st.sampled_from([nn.LSTM, nn.GRU, nn.RNN]))
    extra: dict[str, Any] = {}
    if kind is nn.LSTM and draw(st.booleans()):
        extra["proj_size"] = 2
    if kind is nn.RNN:
        extra["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    module = kind(
        draw(st.integers(1, 3)),
        draw(st.integers(3, 4)),
        num_layers=draw(st.integers(1, 3)),
        bidirectional=draw(st.booleans()),
        bias=draw(st.booleans()),
        batch_first=draw(st.booleans()),
        **extra,
    ).double()
    packed = draw(st.booleans())
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    lengths = lengths if packed else [lengths[0]] * len(lengths)
    sequences = [torch.randn(length, module.input_size).double() for length in lengths]
    return module, sequences, packed, draw(st.booleans())


@given(recurrent_cases())
@settings(max_examples=60)
def test_recurrent_weights_multiply_what_a_hand_written_loop_says(
    case: tuple[Any, list[torch.Tensor], bool, bool],
) -> None:
    agree_with_the_loop(*case)


@pytest.mark.parametrize("given_state", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_packed_sequences_of_unequal_length_in_both_directions_agree_with_the_loop(
    kind: type[Any], given_state: bool
) -> None:
    extra = {"proj_size": 2} if kind is nn.LSTM else {}
    module = kind(2, 4, num_layers=2, bidirectional=True, **extra).double()
    agree_with_the_loop(module, [torch.randn(n, 2).double() for n in (2, 6, 1)], True, given_state)


def agree_with_the_loop(module: Any, sequences: list[torch.Tensor], packed: bool, given_state: bool) -> None:
    rows = module.num_layers * (2 if module.bidirectional else 1)
    sizes = (module.proj_size or module.hidden_size, module.hidden_size)
    scale = 1.0 if given_state else 0.0
    hidden, cell = (scale * torch.randn(rows, len(sequences), size).double() for size in sizes)
    batch: Any = nn.utils.rnn.pad_sequence(sequences, batch_first=module.batch_first)
    if packed:
        lengths = [len(sequence) for sequence in sequences]
        batch = pack_padded_sequence(batch, lengths, batch_first=module.batch_first, enforce_sorted=False)
    state = (hidden, cell) if isinstance(module, nn.LSTM) else hidden
    found = norms(module, call(batch, hx=state) if given_state else call(batch))
    states = [(hidden[:, i], cell[:, i]) for i in range(len(sequences))]
    with torch.no_grad():
        tally, outputs = by_hand(module, sequences, states)
        real = module(batch, state)[0]
    if not packed:  # the loop is the module
        padded = nn.utils.rnn.pad_sequence(outputs, batch_first=module.batch_first)
        assert torch.allclose(real, padded)
    assert sorted(found) == sorted(tally.squares)
    for name, squares in tally.squares.items():
        assert torch.allclose(found[name], root(squares, found[name].shape), rtol=1e-9, atol=0)


def test_recurrent_weights_that_never_meet_a_state_score_exactly_zero() -> None:
    found = wanda(nn.LSTM(2, 3, bidirectional=True), call(torch.randn(1, 4, 2)))
    assert found["weight_hh_l0"].eq(0).all()
    assert found["weight_hh_l0_reverse"].eq(0).all()
    assert found["weight_ih_l0"].gt(0).all()


def test_an_unbatched_sequence_is_a_batch_of_one() -> None:
    module = nn.GRU(2, 3, num_layers=2, batch_first=True)
    x, h = torch.randn(5, 2), torch.randn(2, 3)
    alone, batched = wanda(module, call(x, h)), wanda(module, call(x[None], h[:, None]))
    assert all(torch.allclose(alone[name], batched[name]) for name in alone)


def test_dropout_between_recurrent_layers_does_not_touch_the_norms() -> None:
    module = nn.LSTM(2, 3, num_layers=2, dropout=0.9)
    x = torch.randn(5, 4, 2)
    noisy = wanda(module, call(x))
    module.dropout = 0.0
    plain = wanda(module, call(x))
    assert all(torch.equal(noisy[name], plain[name]) for name in noisy)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_multiply_their_input_and_the_state_they_are_given(kind: type[Any]) -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = kind(2, 3)

        def forward(self, steps: torch.Tensor) -> torch.Tensor:
            state = None
            for x in steps:
                state = self.cell(x, state)
            return first(state)

    model, steps = Loop().double(), torch.randn(4, 1, 2).double()
    tally, state = Tally(), (torch.zeros(3).double(), torch.zeros(3).double())
    with torch.no_grad():
        for x in steps[:, 0]:
            state = step(model.cell, tally, "", x, state)
    found = norms(model, call(steps))
    for name, squares in tally.squares.items():
        assert torch.allclose(found[f"cell.{name}"], root(squares, found[f"cell.{name}"].shape), rtol=1e-9)


# Attention


def heads_by_hand(module: nn.MultiheadAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor):
    """Return what the output layer multiplies, (tokens, features), of one sequence, head by head."""
    if module._qkv_same_embed_dim:
        weights = module.in_proj_weight.chunk(3)
    else:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    biases = module.in_proj_bias.chunk(3)
    q, k, v = (x @ w.T + b for x, w, b in zip((query, key, value), weights, biases, strict=True))
    outputs = []
    for head in range(module.num_heads):
        part = slice(head * module.head_dim, (head + 1) * module.head_dim)
        shares = (q[:, part] @ k[:, part].T / module.head_dim**0.5).softmax(-1)
        outputs.append(shares @ v[:, part])
    return torch.cat(outputs, dim=-1)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("kdim", [4, 3])
def test_attention_projections_multiply_queries_keys_values_and_the_heads(kdim: int, need_weights: bool) -> None:
    module = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True, kdim=kdim, vdim=kdim).double()
    nn.init.normal_(module.in_proj_bias)
    query, key, value = (
        torch.randn(2, 3, 4).double(),
        torch.randn(2, 5, kdim).double(),
        torch.randn(2, 5, kdim).double(),
    )
    found = norms(module, call(query, key, value=value, need_weights=need_weights))
    sums = [x.square().sum((0, 1)) for x in (query, key, value)]
    with torch.no_grad():
        heads = torch.cat([heads_by_hand(module, *parts) for parts in zip(query, key, value, strict=True)])
    assert torch.allclose(found["out_proj.weight"], root(heads.square().sum(0), (4, 4)), rtol=1e-9)
    if kdim == 4:
        expected = torch.cat([root(total, (4, 4)) for total in sums])
        assert torch.allclose(found["in_proj_weight"], expected, rtol=1e-12)
    else:
        for name, total in zip("qkv", sums, strict=True):
            weight = found[f"{name}_proj_weight"]
            assert torch.allclose(weight, root(total, weight.shape), rtol=1e-12)


def test_a_transformer_is_seen_through_whatever_fast_path_torch_would_take() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.1)
    model = nn.TransformerEncoder(layer, 2).eval()
    found = wanda(model, call(torch.randn(2, 3, 4)))
    assert len(found) == 8
    assert all(t.gt(0).any() for t in found.values())


# Refusals


def test_parameters_of_other_kinds_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    with pytest.raises(ScoreError, match=r"0\.bias \(Linear\), 1\.weight \(LayerNorm\) multiply"):
        wanda(model, call(torch.ones(1, 3)), include=["0.weight", "0.bias", "1.weight"])


def test_a_layer_that_the_loss_does_not_run_is_named() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 3), "spare": nn.Linear(3, 3)})
    with pytest.raises(ScoreError, match=r"saw no input of spare\.weight"):
        wanda(model, torch.ones(1, 3), loss=lambda model, x: model["used"](x).sum())
    found = wanda(model, torch.ones(1, 3), loss=lambda model, x: model["used"](x).sum(), exclude=["spare.*"])
    assert list(found) == ["used.weight"]
