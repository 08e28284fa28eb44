"""Effective masks against graphs that are walked edge by edge, and against a boolean LSTM."""

import random
from collections.abc import Callable, Iterable
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from ticketkit import ConfigError, Mask, RunError, Scope, ScopeError
from ticketkit.paths import effective_density, effective_mask
from ticketkit.snapshot import state_tensors
from ticketkit.testing import TINY_NETS, masks

Weight = tuple[str, tuple[int, ...]]
Node = tuple[object, ...]
Edge = tuple[Node, Node, Weight]


def on_ones(*shape: int) -> Callable[[nn.Module], torch.Tensor]:
    return lambda model: model(torch.ones(*shape))


def walked(mask: Mask, edges: Iterable[Edge], sources: Iterable[Node], sinks: Iterable[Node]) -> Mask:
    """Return the kept weights of which an edge lies on a path of kept edges from a source to a sink."""
    kept = [edge for edge in edges if mask[edge[2][0]][edge[2][1]]]

    def reach(starts: Iterable[Node], steps: Iterable[tuple[Node, Node]]) -> set[Node]:
        neighbours: dict[Node, set[Node]] = {}
        for start, end in steps:
            neighbours.setdefault(start, set()).add(end)
        seen, waiting = set(starts), list(starts)
        while waiting:
            new = neighbours.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        return seen

    forward = reach(list(sources), [(a, b) for a, b, _ in kept])
    backward = reach(list(sinks), [(b, a) for a, b, _ in kept])
    flags = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in mask.shapes.items()}
    for a, b, (name, index) in kept:
        if a in forward and b in backward:
            flags[name][index] = True
    return Mask(flags)


# Perceptrons

WIDTHS = (3, 4, 3, 2)
ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.GELU, nn.Softplus, nn.ELU, nn.Hardtanh, lambda: nn.ReLU(inplace=True), nn.SiLU]
BETWEEN = {
    "nothing": lambda n: nn.Identity(),
    "batchnorm": nn.BatchNorm1d,
    "layernorm": nn.LayerNorm,
    "rmsnorm": nn.RMSNorm,
    "groupnorm": lambda n: nn.GroupNorm(1, n),
    "dropout": lambda n: nn.Dropout(0.9),
}


def perceptron(between: str = "nothing", activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(WIDTHS):
        layers += [nn.Linear(fan_in, fan_out), BETWEEN[between](fan_out), activation()]
    return nn.Sequential(*layers[:-2])


def perceptron_edges(mask: Mask) -> list[Edge]:
    return [
        ((layer, i), (layer + 1, o), (name, (o, i)))
        for layer, name in enumerate(mask)
        for o, i in product(*map(range, mask.shapes[name]))
    ]


SHAPES = Scope.of(perceptron()).shapes
INPUTS, OUTPUTS = [(0, i) for i in range(WIDTHS[0])], [(len(WIDTHS) - 1, o) for o in range(WIDTHS[-1])]


@pytest.mark.parametrize("between", BETWEEN)
@settings(max_examples=30)
@given(mask=masks(SHAPES), activation=st.sampled_from(ACTIVATIONS), seed=st.integers(0, 5))
def test_effective_weights_of_a_perceptron_are_those_on_a_path(
    between: str, mask: Mask, activation: Callable[[], nn.Module], seed: int
) -> None:
    model = perceptron(between, activation)
    shapes = Scope.of(model).shapes
    named = Mask(dict(zip(shapes, mask.values(), strict=True)))
    expected = walked(named, perceptron_edges(named), INPUTS, OUTPUTS)
    assert effective_mask(model, named, on_ones(2, WIDTHS[0]), seed=seed) == expected


@settings(max_examples=25)
@given(masks(SHAPES))
def test_an_effective_mask_is_nested_and_its_own_effective_mask(mask: Mask) -> None:
    once = effective_mask(perceptron(), mask, on_ones(1, WIDTHS[0]))
    assert once <= mask
    assert effective_density(perceptron(), mask, on_ones(1, WIDTHS[0])) == once.kept / mask.total
    assert effective_mask(perceptron(), once, on_ones(1, WIDTHS[0])) == once


def test_values_of_the_model_do_not_matter() -> None:
    """A graph has no signs, no NaN and no dead ReLU: neither has the answer."""
    model = perceptron()
    mask = Scope.of(model).ones()
    for value in (0.0, -1.0, torch.nan, torch.inf):
        for parameter in model.parameters():
            nn.init.constant_(parameter, value)
        assert effective_mask(model, mask, on_ones(1, WIDTHS[0])) == mask
        assert effective_mask(model, mask, lambda m: m(torch.randn(3, WIDTHS[0]))) == mask


def test_a_bias_alone_starts_no_path() -> None:
    model = perceptron()
    flags = dict(Scope.of(model).ones())
    flags["0.weight"] = torch.zeros(4, 3, dtype=torch.bool)
    assert effective_mask(model, Mask(flags), on_ones(1, WIDTHS[0])).kept == 0


def test_a_masked_bias_is_effective_where_it_reaches_the_output() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    scope = Scope.of(model, include=["0.bias", "*.weight"])
    flags = dict(scope.ones())
    flags["2.weight"] = torch.tensor([[True, False]])
    found = effective_mask(model, Mask(flags), on_ones(1, 2))
    assert found["0.bias"].tolist() == [True, False]
    assert found["0.weight"].tolist() == [[True, True], [False, False]]


def test_learned_positions_can_be_named_as_biases() -> None:
    class Positioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 1)
            self.position = nn.Parameter(torch.ones(2))
            self.register_buffer("offset", torch.ones(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x) + self.position + self.offset)

    mask = Mask({"first.weight": torch.tensor([[1, 1], [0, 0]]) > 0, "second.weight": torch.tensor([[1, 1]]) > 0})
    assert effective_mask(Positioned(), mask, on_ones(1, 2)) == mask
    found = effective_mask(Positioned(), mask, on_ones(1, 2), biases=["*bias", "position", "offset"])
    assert found["second.weight"].tolist() == [[True, False]]


@pytest.mark.parametrize(("fan_out_first", "size"), [(True, 1e-200), (False, 1e200)])
def test_hundreds_of_sparse_layers_neither_underflow_nor_overflow(fan_out_first: bool, size: float) -> None:
    """One unit feeds 40 and 40 feed one, 150 times over: products of 1/40 would end below 1e-308."""
    depth, width = 300, 40
    model = nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.Tanh())))
    flags = {}
    for i, name in enumerate(Scope.of(model).shapes):
        flags[name] = torch.zeros(width, width, dtype=torch.bool)
        if i % 2 == int(not fan_out_first):
            flags[name][:, 0] = True  # one unit feeds all
        else:
            flags[name][0, :] = True  # all feed one unit
    mask = Mask(flags)
    found = effective_mask(model, mask, lambda m: m(torch.full((1, width), size, dtype=torch.float64)))
    edges = [(((k, i), (k + 1, o), (n, (o, i)))) for k, n in enumerate(mask) for o, i in mask[n].nonzero().tolist()]
    ends = [[(layer, unit) for unit in range(width)] for layer in (0, depth)]
    assert found == walked(mask, edges, *ends)
    assert found.kept > depth


@pytest.mark.parametrize("collects", [True, False])
def test_units_with_vastly_different_numbers_of_paths_are_all_seen(collects: bool) -> None:
    """Every unit feeds itself, and unit 0 is fed by all (or feeds all): some have 40**300 paths, some one."""
    depth, width = 300, 40
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))
    flags = {name: torch.eye(width, dtype=torch.bool) for name in Scope.of(model).shapes}
    for flag in flags.values():
        flag[(0, slice(None)) if collects else (slice(None), 0)] = True
    first, *_, last = flags
    if collects:
        flags[last][1:] = False
    else:
        flags[first][:, 1:] = False
    mask = Mask(flags)
    edges = [(((k, i), (k + 1, o), (n, (o, i)))) for k, n in enumerate(mask) for o, i in mask[n].nonzero().tolist()]
    ends = [[(layer, unit) for unit in range(width)] for layer in (0, depth)]
    assert effective_mask(model, mask, on_ones(1, width)) == walked(mask, edges, *ends)


# Convolutions


class SmallConvNet(nn.Module):
    """Two convolutions with BatchNorm and pooling: (batch, 2, 9) → (batch, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3)
        self.second = nn.Conv1d(3, 2, 2, padding=1)
        self.head = nn.Linear(2 * 5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool1d(self.norm(self.first(x)).relu(), 2)
        return self.head(torch.tanh(self.second(x)).flatten(1))


def convolution_edges() -> list[Edge]:
    edges: list[Edge] = []
    for t, o, i, tap in product(range(8), range(3), range(2), range(2)):
        edges.append((("x", i, t + tap), ("a", o, t // 2), ("first.weight", (o, i, tap))))
    for t, o, i, tap in product(range(5), range(2), range(3), range(2)):
        if 0 <= t + tap - 1 < 4:
            edges.append((("a", i, t + tap - 1), ("b", o, t), ("second.weight", (o, i, tap))))
    edges += [(("b", c, t), ("y", o), ("head.weight", (o, c * 5 + t))) for o, c, t in product(*map(range, (2, 2, 5)))]
    return edges


@settings(max_examples=50)
@given(st.data())
def test_effective_weights_of_a_convolutional_net_are_those_on_a_path(data: st.DataObject) -> None:
    model = SmallConvNet()
    mask = data.draw(masks(Scope.of(model).shapes))
    thinned = mask & data.draw(masks(Scope.of(model).shapes))
    expected = walked(
        thinned, convolution_edges(), [("x", i, t) for i in range(2) for t in range(9)], [("y", 0), ("y", 1)]
    )
    assert effective_mask(model, thinned, on_ones(1, 2, 9)) == expected


def test_a_pool_passes_what_is_not_the_highest() -> None:
    """The head sees only the pooled maximum of two filters' positions; both positions are paths all the same."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spread = nn.Linear(1, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            square = self.spread(x).reshape(-1, 1, 2, 2)
            return F.max_pool2d(square, 2) if self.spread.out_features else square

    model = Pooled()
    assert effective_mask(model, Scope.of(model).ones(), on_ones(1, 1)).kept == 4


# Recurrent layers


def lstm_masks(model: nn.Module) -> st.SearchStrategy[Mask]:
    shapes = Scope.of(model).shapes
    return st.tuples(masks(shapes), masks(shapes)).map(lambda two: two[0] | two[1])


class Tagger(nn.Module):
    """Two LSTM layers and a linear layer on the last step: (batch, time, 2) → (batch, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 3, num_layers=2, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(frames)[0][:, -1])


def boolean_lstm(mask: Mask, steps: int) -> Mask:
    """Return the effective weights of `Tagger`, by following which values and which gradients are not zero."""
    m = {name: flags.numpy() for name, flags in mask.items()}
    effective = {name: np.zeros(flags.shape, bool) for name, flags in m.items()}
    value = {(0, t): np.ones(2, bool) for t in range(steps)}  # (layer, time) → whether each unit of h has a value
    cell, candidate = {}, {}
    for layer, t in product((1, 2), range(steps)):
        w_x, w_h = (m[f"lstm.weight_{side}_l{layer - 1}"].reshape(4, 3, -1) for side in ("ih", "hh"))
        before = value.get((layer, t - 1), np.zeros(3, bool)) if t else np.zeros(3, bool)
        candidate[layer, t] = (w_x[2] & value[layer - 1, t]).any(1) | (w_h[2] & before).any(1)
        cell[layer, t] = candidate[layer, t] | (cell[layer, t - 1] if t else False)
        value[layer, t] = cell[layer, t]
    needed = {(2, steps - 1): m["head.weight"].any(0)}  # whether each unit of h matters for the output
    effective["head.weight"] = m["head.weight"] & value[2, steps - 1]
    for layer in (2, 1):
        cell_needed = np.zeros(3, bool)
        for t in reversed(range(steps)):
            h_needed = needed.get((layer, t), np.zeros(3, bool))
            cell_needed = cell_needed | h_needed
            past = cell[layer, t - 1] if t else np.zeros(3, bool)
            gates = np.stack([cell_needed & candidate[layer, t], cell_needed & past, cell_needed,
                              h_needed & cell[layer, t]])  # i, f, g, o  # fmt: skip
            before = value[layer, t - 1] if t else np.zeros(3, bool)
            for side, entering, place in (("ih", value[layer - 1, t], (layer - 1, t)), ("hh", before, (layer, t - 1))):
                name = f"lstm.weight_{side}_l{layer - 1}"
                carried = m[name].reshape(4, 3, -1) & gates[:, :, None]
                effective[name] |= (carried & entering).reshape(effective[name].shape)
                needed[place] = needed.get(place, np.zeros(carried.shape[2], bool)) | carried.any((0, 1))
    return Mask({name: torch.from_numpy(flags) for name, flags in effective.items()})


@settings(max_examples=60)
@given(data=st.data(), steps=st.integers(1, 4))
def test_effective_weights_of_an_lstm_are_those_that_values_and_gradients_pass(data: st.DataObject, steps: int) -> None:
    model = Tagger()
    mask = data.draw(lstm_masks(model))
    assert effective_mask(model, mask, on_ones(1, steps, 2)) == boolean_lstm(mask, steps)


def test_a_dead_hidden_unit_takes_all_that_enters_and_leaves_it_along() -> None:
    """Unit 1 of layer 0 has no way out, unit 2 of layer 1 no candidate: their weights everywhere stop counting."""
    model = Tagger()
    flags = {name: tensor.clone() for name, tensor in Scope.of(model).ones().items()}
    flags["lstm.weight_ih_l1"][:, 1] = False  # to layer 1
    flags["lstm.weight_hh_l0"][:, 1] = False  # and to itself and its neighbours
    flags["lstm.weight_ih_l1"].view(4, 3, 3)[2, 2] = False  # g of unit 2
    flags["lstm.weight_hh_l1"].view(4, 3, 3)[2, 2] = False
    expected = {name: tensor.clone() for name, tensor in flags.items()}
    for side in ("ih", "hh"):
        expected[f"lstm.weight_{side}_l0"].view(4, 3, -1)[:, 1] = False  # enters the unit without a way out
        expected[f"lstm.weight_{side}_l1"].view(4, 3, -1)[:, 2] = False  # enters the gates of the unit without a value
    expected["lstm.weight_hh_l1"][:, 2] = False  # leaves the unit without a value
    expected["head.weight"][:, 2] = False
    assert effective_mask(model, Mask(flags), on_ones(1, 4, 2)) == Mask(expected)


@pytest.mark.parametrize("kind", ["GRU", "RNN"])
def test_a_dead_unit_of_other_recurrent_layers_too(kind: str) -> None:
    model = nn.Sequential()
    model.add_module("net", getattr(nn, kind)(2, 3, batch_first=True))
    model.add_module("head", nn.Linear(3, 1))
    gates = {"GRU": 3, "RNN": 1}[kind]
    flags = {name: tensor.clone() for name, tensor in Scope.of(model).ones().items()}
    flags["net.weight_ih_l0"].view(gates, 3, -1)[-1, 1] = False  # n is the last gate of a GRU, the only one of an RNN
    flags["net.weight_hh_l0"].view(gates, 3, -1)[-1, 1] = False
    expected = {name: tensor.clone() for name, tensor in flags.items()}
    expected["net.weight_ih_l0"].view(gates, 3, -1)[:, 1] = False
    expected["net.weight_hh_l0"].view(gates, 3, -1)[:, 1] = False
    expected["net.weight_hh_l0"][:, 1] = False
    expected["head.weight"][:, 1] = False
    found = effective_mask(model, Mask(flags), lambda m: m.head(m.net(torch.rand(2, 4, 2) + 0.5)[0]))
    assert found == Mask(expected)


def test_packed_sequences_and_large_inputs_saturate_nothing() -> None:
    model = nn.LSTM(2, 3, bidirectional=True)
    frames = nn.utils.rnn.pack_padded_sequence(torch.full((4, 2, 2), 1e6), torch.tensor([4, 2]))
    mask = Scope.of(model).ones()
    assert effective_mask(model, mask, lambda m: m(frames)[0].data) == mask


def test_dropout_inside_recurrent_and_attention_layers_drops_nothing() -> None:
    lstm = nn.LSTM(2, 4, num_layers=2, dropout=0.9).train()
    assert effective_mask(lstm, Scope.of(lstm).ones(), lambda m: m(torch.ones(2, 1, 2))[0]) == Scope.of(lstm).ones()
    attention = nn.MultiheadAttention(4, 2, dropout=0.9).train()
    frames = torch.rand(3, 1, 4) + 0.1
    ones = Scope.of(attention).ones()
    assert effective_mask(attention, ones, lambda m: m(frames, frames, frames)[0]) == ones


# Any network


def positive(name: str) -> torch.Tensor:
    inputs = TINY_NETS[name].inputs()
    return inputs.abs() + 0.1 if inputs.is_floating_point() else inputs


@pytest.mark.parametrize("name", TINY_NETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_weight_of_a_dense_network_is_effective(name: str, dtype: torch.dtype) -> None:
    model, inputs = TINY_NETS[name].build().to(dtype), positive(name)
    mask = Scope.of(model).ones()
    assert effective_mask(model, mask, lambda m: m(inputs)) == mask


@pytest.mark.parametrize("name", TINY_NETS)
def test_the_model_and_the_generators_stay_as_they_are(name: str) -> None:
    model, inputs = TINY_NETS[name].build(), TINY_NETS[name].inputs()
    model(inputs).sum().backward()
    next(model.children()).eval()
    before = {k: (id(t), t.data_ptr(), t.dtype, t.detach().clone()) for k, t in state_tensors(model).items()}
    gradients = [(p.grad, p.grad.clone()) for p in model.parameters()]
    flags = [(m.training, len(m._forward_pre_hooks)) for m in model.modules()]
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    mask = Scope.of(model).ones()

    def run(copy: nn.Module) -> torch.Tensor:
        assert copy is not model
        random.random(), np.random.rand(), torch.rand(3)
        return copy(positive(name))

    effective_mask(model, mask, run)
    for key, tensor in state_tensors(model).items():
        assert (id(tensor), tensor.data_ptr(), tensor.dtype) == before[key][:3]
        assert torch.equal(tensor, before[key][3])
    for parameter, (gradient, values) in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is gradient
        assert torch.equal(gradient, values)
    assert [(m.training, len(m._forward_pre_hooks)) for m in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


def test_a_dead_attention_head_takes_its_queries_and_keys_along() -> None:
    model = TINY_NETS["attention"].build()
    flags = {name: tensor.clone() for name, tensor in Scope.of(model).ones().items()}
    flags["attention.in_proj_weight"].view(3, 2, 3, 6)[2, 1] = False  # values of head 1
    expected = {name: tensor.clone() for name, tensor in flags.items()}
    expected["attention.in_proj_weight"].view(3, 2, 3, 6)[:, 1] = False
    expected["attention.out_proj.weight"][:, 3:] = False
    assert effective_mask(model, Mask(flags), lambda m: m(positive("attention"))) == Mask(expected)


def test_a_query_without_its_key_is_ineffective() -> None:
    model = TINY_NETS["attention"].build()
    flags = {name: tensor.clone() for name, tensor in Scope.of(model).ones().items()}
    flags["attention.in_proj_weight"].view(3, 6, 6)[1, 4] = False  # unit 4 of the keys
    expected = {name: tensor.clone() for name, tensor in flags.items()}
    expected["attention.in_proj_weight"].view(3, 6, 6)[0, 4] = False  # unit 4 of the queries
    assert effective_mask(model, Mask(flags), lambda m: m(positive("attention"))) == Mask(expected)


class TwoObjects(nn.Module):
    """Two Parameter objects over one storage: what one end does not use, the other does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.second.weight = nn.Parameter(self.first.weight.data)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))[:, :1]


def test_a_tied_weight_is_effective_where_either_end_is() -> None:
    model = TwoObjects()
    mask = Mask(
        {"first.weight": torch.tensor([[True, False], [True, True]])}, aliases={"first.weight": ["second.weight"]}
    )
    # row 1 is effective in neither end: nothing of it reaches output 0
    assert effective_mask(model, mask, on_ones(1, 2))["first.weight"].tolist() == [[True, False], [False, False]]
    assert effective_mask(model, mask, on_ones(1, 2)).aliases == mask.aliases
    tied = TINY_NETS["tied_gru"].build()
    ones = Scope.of(tied).ones()
    assert effective_mask(tied, ones, lambda m: m(torch.tensor([[0, 1, 2]]))) == ones


# Refusals


def test_an_output_of_another_network_is_refused() -> None:
    model = perceptron()
    mask = Scope.of(model).ones()
    with pytest.raises(RunError, match="does not depend on any masked parameter of the model it was given"):
        effective_mask(model, mask, lambda copy: model(torch.ones(1, 3)))
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(RunError, match="has no gradient"):
        effective_mask(model, mask, lambda copy: copy(torch.ones(1, 3)).detach())
    with pytest.raises(ConfigError, match="one floating-point tensor, not tuple"):
        effective_mask(model, mask, lambda copy: (copy(torch.ones(1, 3)),))
    with pytest.raises(ConfigError, match=r"not torch\.int64"):
        effective_mask(model, mask, lambda copy: copy(torch.ones(1, 3)).argmax())


def test_an_input_of_zeros_is_refused_and_a_mask_without_a_path_is_not() -> None:
    model = perceptron()
    with pytest.raises(RunError, match="give it an input without zeros"):
        effective_mask(model, Scope.of(model).ones(), lambda copy: copy(torch.zeros(1, 3)))
    nothing = Mask({name: torch.zeros(shape, dtype=torch.bool) for name, shape in SHAPES.items()})
    assert effective_mask(model, nothing, on_ones(1, 3)) == nothing


def test_gradients_that_are_not_finite_are_refused() -> None:
    model = nn.Linear(2, 1)
    mask = Mask({"weight": torch.zeros(1, 2, dtype=torch.bool)}) | Mask({"weight": torch.tensor([[True, False]])})
    with pytest.raises(RunError, match="gradients of 'weight' are not finite"):
        effective_mask(model, mask, lambda m: (m(torch.ones(1, 2)) * 0).log())


def test_a_model_without_the_masked_parameters_is_refused() -> None:
    with pytest.raises(ScopeError, match="missing"):
        effective_mask(nn.Linear(2, 2), Mask.ones({"other": (2, 2)}), on_ones(1, 2))
