from collections import namedtuple
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from ticketkit import ConfigError, Mask, Plugins, Scope, ScoreError, ScoreInputs, apportion, select
from ticketkit.builtin.synflow import first_call, map_tensors
from ticketkit.probe import Probe
from ticketkit.testing import TINY_NETS, convnet, mlp

SYNFLOW = {entry.name: entry for entry in Plugins().registries["criterion"]}["synflow"]
Pair = namedtuple("Pair", "first second")


def mean_square(model: nn.Module, batch: Any) -> torch.Tensor:
    return model(batch).square().mean()


def case(
    model: nn.Module, keep: int, *, mask: Mask | None = None, data: Any = None, loss: Callable = mean_square
) -> ScoreInputs:
    scope = Scope.of(model)
    mask = mask or scope.ones()
    weights = scope.tensors(model)
    batch = torch.randn(4, 6) if data is None else data
    return ScoreInputs(weights, weights, mask, torch.Generator(), keep, Probe(model, lambda: [batch], loss, mask, 0))


def scores_of(given_: ScoreInputs, iterations: int = 100) -> dict[str, torch.Tensor]:
    return dict(SYNFLOW.configured({"iterations": iterations}).call(given_))


def chain(sizes: list[int], *, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def eighths(model: nn.Module) -> nn.Module:
    """Round every parameter to a multiple of 1/8: flows are exact in float64 then, and often equal."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8).round_().div_(8)
    return model


def flow_by_loops(weights: list[list[list[float]]], biases: list[list[float]]) -> list[list[list[float]]]:
    """Return ∂R/∂w · w for every weight of a chain of linear layers on an input of ones, by hand in Python floats."""
    forward = [[1.0] * len(weights[0][0])]
    for rows, bias in zip(weights, biases, strict=True):
        last = forward[-1]
        forward.append(
            [b + sum(w * x for w, x in zip(row, last, strict=True)) for row, b in zip(rows, bias, strict=True)]
        )
    backward = [1.0] * len(weights[-1])
    flows: list[list[list[float]]] = []
    for rows, inputs in zip(reversed(weights), reversed(forward[:-1]), strict=True):
        flows.insert(
            0, [[w * x * d for w, x in zip(row, inputs, strict=True)] for row, d in zip(rows, backward, strict=True)]
        )
        backward = [sum(rows[o][i] * backward[o] for o in range(len(rows))) for i in range(len(inputs))]
    return flows


def naive(model: nn.Sequential, mask: Mask, keep: int, iterations: int) -> list[Mask]:
    """Return the masks of Algorithm 1 of the paper, one for each iteration, ties by position."""
    linears = [module for module in model if isinstance(module, nn.Linear)]
    biases = [m.bias.abs().tolist() if m.bias is not None else [0.0] * m.out_features for m in linears]
    found = [mask]
    for step in range(1, iterations + 1):
        last = found[-1]
        weights = [(m.weight * last[n]).abs().double().tolist() for m, n in zip(linears, last, strict=True)]
        flows = flow_by_loops(weights, [[float(b) for b in bias] for bias in biases])
        ranked = sorted(
            (-flow, layer, o, i)
            for layer, (rows, name) in enumerate(zip(flows, last, strict=True))
            for o, row in enumerate(rows)
            for i, flow in enumerate(row)
            if last[name][o, i]
        )
        count = round(mask.kept * (max(keep, 1) / mask.kept) ** (step / iterations)) if step < iterations else keep
        flags = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in last.shapes.items()}
        names = list(last)
        for _, layer, o, i in ranked[:count]:
            flags[names[layer]][o, i] = True
        found.append(Mask(flags))
    return found


@given(
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    seed=st.integers(0, 99),
    bias=st.booleans(),
    iterations=st.sampled_from([1, 2, 5, 30]),
    share=st.floats(0, 1),
)
@settings(max_examples=60)
def test_synflow_keeps_what_the_algorithm_of_the_paper_keeps_at_every_step(
    sizes: list[int], seed: int, bias: bool, iterations: int, share: float
) -> None:
    torch.manual_seed(seed)
    model = eighths(chain(sizes, bias=bias))
    scope = Scope.of(model)
    start = select({n: torch.rand(s) for n, s in scope.shapes.items()}, scope.ones(), max(1, scope.total * 3 // 4))
    keep = int(start.kept * share)
    scores = scores_of(case(model, keep, mask=start, data=torch.randn(1, sizes[0])), iterations)
    for expected in naive(model, start, keep, iterations):
        assert select(scores, start, expected.kept) == expected


def test_one_iteration_orders_weights_by_their_flow() -> None:
    model = chain([3, 4, 2])
    scores = scores_of(case(model, 5, data=torch.randn(1, 3)), iterations=1)
    linears = [model[0], model[2]]
    flows = flow_by_loops(
        [m.weight.abs().double().tolist() for m in linears], [m.bias.abs().double().tolist() for m in linears]
    )
    expected = torch.tensor([f for rows in flows for row in rows for f in row])
    found = torch.cat([t.flatten() for t in scores.values()])
    # the 15 dropped come before the 5 that stay, and both groups are in the order of the flow
    assert found.argsort().tolist() == expected.argsort().tolist()


@given(st.data())
@settings(max_examples=40)
def test_scores_select_nested_masks_under_any_split_of_the_budget(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 50)))
    model = chain([3, 4, 2])
    mask = Scope.of(model).ones()
    keep = data.draw(st.integers(0, mask.total))
    scores = scores_of(case(model, keep, data=torch.randn(1, 3)), iterations=5)
    algorithm = select(scores, mask, keep)
    budgets = sorted(data.draw(st.lists(st.integers(0, mask.total), min_size=2, max_size=4)))
    split = [apportion(mask.sizes, budget, floors={}, capacities=mask.sizes) for budget in budgets]
    for counts in (budgets, split):
        chosen = [select(scores, mask, count) for count in counts]
        assert all(fewer <= more for fewer, more in pairwise(chosen))
    for name, count in algorithm.counts.items():  # within a parameter the survivors come first
        counts = dict.fromkeys(mask, 0) | {name: count}
        assert torch.equal(select(scores, mask, counts)[name], algorithm[name])


def test_what_the_data_and_the_signs_are_does_not_matter() -> None:
    model = mlp()
    first = scores_of(case(model, 20, data=torch.randn(4, 6)), 10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.randn_like(parameter).sign())
    second = scores_of(case(model, 20, data=torch.randn(4, 6) * 100), 10)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_values_of_pruned_weights_do_not_matter() -> None:
    model = mlp()
    mask = select({n: t.abs() for n, t in Scope.of(model).tensors(model).items()}, Scope.of(model).ones(), 40)
    spoiled = scores_of(case(model, 20, mask=mask), 5)
    for name, weight in Scope.of(model).tensors(model).items():
        weight.masked_fill_(~mask[name], 0)
    clean = scores_of(case(model, 20, mask=mask), 5)
    assert select(spoiled, mask, 20) == select(clean, mask, 20)


def test_no_layer_is_emptied_while_every_layer_can_keep_a_weight() -> None:
    """Theorem 3 of the paper: iterated synaptic flow avoids layer collapse, where one step of it does not."""
    model = chain([20, 30, 30, 3], bias=False)
    mask = Scope.of(model).ones()
    collapsed = {}
    for iterations in (1, 100):
        chosen = select(scores_of(case(model, 8, data=torch.randn(1, 20)), iterations), mask, 8)
        collapsed[iterations] = min(chosen.counts.values()) == 0
    assert collapsed == {1: True, 100: False}


# Norms, inputs and outputs


class Norms(nn.Module):
    """Every norm between two linear layers or convolutions, with statistics that would upset the flow."""

    def __init__(self, norm: nn.Module, spatial: int):
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial - 1]
        self.first, self.norm, self.last = conv(1, 4, 1), norm, conv(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)))


NORMS = {
    "batch1d": (nn.BatchNorm1d(4), 1),
    "batch2d": (nn.BatchNorm2d(4), 2),
    "instance1d": (nn.InstanceNorm1d(4, affine=True), 1),
    "instance2d": (nn.InstanceNorm2d(4, affine=True), 2),
    "plain_instance2d": (nn.InstanceNorm2d(4), 2),
    "group3d": (nn.GroupNorm(2, 4), 3),
    "plain_batch": (nn.BatchNorm1d(4, affine=False), 1),
    "layer": (nn.LayerNorm([4, 5]), 1),
    "rms": (nn.RMSNorm([5]), 1),
    "local": (nn.LocalResponseNorm(2), 1),
}


@pytest.mark.parametrize("kind", NORMS)
def test_norms_multiply_by_their_weight_and_do_nothing_else(kind: str) -> None:
    norm, spatial = NORMS[kind]
    model = Norms(norm, spatial)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn_like(parameter))
        for buffer in norm.buffers():
            buffer.fill_(7)
    data = torch.randn(2, 1, *[5] * spatial)
    scale = torch.ones(4, *[5] * spatial, dtype=torch.float64)
    if norm._parameters.get("weight") is not None:
        own = norm.weight.detach().abs().double()
        scale = scale * (own if kind in ("layer", "rms") else own.reshape(4, *[1] * spatial))
    first, last = model.first.weight.flatten().abs().double(), model.last.weight.flatten(1).abs().double()
    total = scale.flatten(1).sum(1) * 2  # Σ over batch and positions of the scale of each channel
    through = first * total * last.sum(0)  # R without biases, channel by channel
    entering = (first + model.first.bias.abs().double()) * total
    expected = torch.cat([through, (last * entering).flatten()])
    found = scores_of(case(model, 0, data=data), 1)
    ranks = torch.cat([t.flatten() for t in found.values()])
    assert ranks.argsort().tolist() == expected.argsort().tolist()


def test_batch_statistics_do_not_matter() -> None:
    torch.manual_seed(0)
    model, data = convnet(), TINY_NETS["convnet"].inputs()
    first = scores_of(case(model, 40, data=data), 5)
    with torch.no_grad():
        model[1].running_mean.fill_(-3), model[1].running_var.fill_(1e4), model[1].bias.fill_(9)
    second = scores_of(case(model, 40, data=data), 5)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_unbatched_instances_are_scaled_along_their_first_dimension() -> None:
    model = nn.Sequential(nn.Conv1d(1, 4, 1), nn.InstanceNorm1d(4, affine=True), nn.Conv1d(4, 2, 1))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, 1.0, 0.0, 1.0]))
    kept = select(scores_of(case(model, 9, data=torch.randn(1, 5)), 1), Scope.of(model).ones(), 9)
    assert kept["0.weight"].flatten().tolist() == [True, True, False, True]


def test_a_softmax_layer_at_the_end_does_not_stop_the_flow() -> None:
    model = mlp()
    plain = scores_of(case(model, 20), 5)
    normalised = scores_of(case(nn.Sequential(*model, nn.LogSoftmax(-1)), 20), 5)
    assert all(torch.equal(plain[name], normalised[name]) for name in plain)


def test_deep_networks_do_not_overflow() -> None:
    model = chain([64] * 40)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(20)
    given_ = case(model, 1000, data=torch.randn(1, 64))
    assert model(torch.ones(1, 64)).isfinite().all()
    copies = [p.abs() for p in model.parameters()]
    value = torch.ones(1, 64)
    for weight, bias in zip(copies[::2], copies[1::2], strict=True):
        value = value @ weight.T + bias
    assert value.isinf().any()  # in float32 the flow overflows
    assert select(scores_of(given_, 3), given_.mask, 1000).kept == 1000


class Nested(nn.Module):
    """Takes and returns nested structures, tokens and packed sequences included."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm, self.head = nn.Embedding(5, 3), nn.LSTM(3, 4), nn.Linear(4, 2)

    def forward(self, batch: dict[str, Any], *, scale: Any) -> Any:
        packed, (hidden, _) = self.lstm(batch["steps"])
        embedded = self.embedding(batch["tokens"][0])
        return {"out": [Pair(self.head(packed.data) * scale.first, embedded)], "hidden": (hidden,), "n": 3}


def test_nested_inputs_become_ones_and_nested_outputs_are_summed() -> None:
    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        found = model(batch, scale=Pair(torch.tensor(3.0), None))
        return found["out"][0].first.sum()

    def batch(fill: float) -> dict[str, Any]:
        return {
            "steps": pack_sequence([torch.full((3, 3), fill), torch.full((2, 3), fill)]),
            "tokens": [torch.tensor([1, 4])],
        }

    model = Nested()
    found = [scores_of(case(model, 20, data=batch(fill), loss=loss), 4) for fill in (0.0, 5.0)]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert found[0]["lstm.weight_hh_l0"].unique().numel() > 1


def test_mapping_over_nested_values_keeps_their_kinds() -> None:
    value = {"a": [torch.zeros(2), "x"], "b": Pair(torch.zeros(1), (torch.zeros(1), 3))}
    mapped = map_tensors(value, lambda t: t + 1)
    assert mapped["a"][0].tolist() == [1, 1]
    assert mapped["a"][1] == "x"
    assert mapped["b"].first.item() == mapped["b"].second[0].item() == 1
    assert mapped["b"].second[1] == 3


def test_a_tensor_that_training_left_in_an_attribute_does_not_stand_in_the_way() -> None:
    model = mlp()
    model.last = model(torch.ones(1, 6))
    assert scores_of(case(model, 20), 2)["0.weight"].shape == (8, 6)
    assert model.last.requires_grad


def test_the_first_call_is_what_the_loss_gives_the_network() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)
            self.runs = 0

        def forward(self, x: torch.Tensor, *, lengths: torch.Tensor) -> torch.Tensor:
            raise AssertionError("the network must not run")

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        try:
            return model(batch["x"] * 2, lengths=batch["n"]).sum()
        except Exception as error:
            raise AssertionError("the user's handler must not catch it") from error

    args, kwargs = first_call(case(Two(), 1, data={"x": torch.ones(1, 3), "n": 4}, loss=loss).probe)
    assert torch.equal(args[0], torch.full((1, 3), 2.0))
    assert kwargs == {"lengths": 4}


def test_a_loss_that_never_calls_the_whole_network_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"never calls the Sequential itself, as model\(\.\.\.\)"):
        scores_of(case(mlp(), 1, loss=lambda model, x: model[0](x).sum()))


# Refusals


def test_a_network_without_a_floating_point_output_is_refused() -> None:
    class Labels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x).argmax(-1)

    with pytest.raises(ScoreError, match="no synaptic flow"):
        scores_of(case(Labels(), 3))


@pytest.mark.parametrize("iterations", [0, -1, 1.5])
def test_iterations_are_a_positive_whole_number(iterations: float) -> None:
    with pytest.raises(ConfigError, match="iterations"):
        SYNFLOW.configured({"iterations": iterations})
