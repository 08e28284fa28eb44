import math
import random
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ticketkit import ConfigError, Mask, NoEffectWarning, Scope, ScopeError, Snapshot, enforced
from ticketkit.connectivity import ALPHAS, LinearPath, instability, interpolate_, linear_path
from ticketkit.snapshot import state_tensors
from ticketkit.testing import DTYPES, TINY_NETS

every_net = pytest.mark.parametrize("name", TINY_NETS)


def train(model: nn.Module, inputs: torch.Tensor, steps: int = 2) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()


def bits(model: nn.Module) -> dict[str, bytes]:
    return {k: t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for k, t in
            state_tensors(model).items()}  # fmt: skip


def two_ends(name: str) -> tuple[nn.Module, torch.Tensor, Snapshot, Snapshot]:
    model, inputs = TINY_NETS[name].build(), TINY_NETS[name].inputs()
    a = Snapshot.capture(model)
    train(model, inputs)
    b = Snapshot.capture(model)
    train(model, inputs, 1)
    return model, inputs, a, b


def linear(*weights: float, dtype: torch.dtype = torch.float32) -> nn.Linear:
    model = nn.Linear(len(weights), 1, bias=False, dtype=dtype)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weights], dtype=dtype))
    return model


# Interpolation


@every_net
@pytest.mark.parametrize("alpha", [0, 1, 0.0, 1.0])
def test_the_ends_of_the_line_are_the_two_networks_bit_for_bit(name: str, alpha: float) -> None:
    model, _, a, b = two_ends(name)
    expected = TINY_NETS[name].build()
    (b if alpha else a).restore(expected)
    interpolate_(model, a, b, alpha)
    assert bits(model) == bits(expected)


numbers = st.floats(-(2.0**100), 2.0**100, width=32)


@given(numbers, numbers, st.fractions(0, 1, max_denominator=64))
def test_a_point_of_the_line_is_the_exact_one_rounded(x: float, y: float, alpha: Fraction) -> None:
    model = linear(x)
    a, b = Snapshot.capture(model), Snapshot.capture(linear(y))
    interpolate_(model, a, b, float(alpha))
    exact = (1 - alpha) * Fraction(x) + alpha * Fraction(y)
    rounding = abs(float(exact)) * 2.0**-24 + max(abs(x), abs(y)) * 2.0**-50 + 1e-45
    assert abs(model.weight.item() - float(exact)) <= rounding
    assert min(x, y) <= model.weight.item() <= max(x, y)


awkward = st.sampled_from([0.0, -0.0, math.inf, -math.inf, 1e-45, 5e-324])


@given(st.lists(st.one_of(awkward, st.floats(-9.0, 9.0)), min_size=1, max_size=4), st.sampled_from(DTYPES))
def test_what_both_ends_share_is_kept_bit_for_bit(values: list[float], dtype: torch.dtype) -> None:
    model, other = linear(*values, 1.0, dtype=dtype), linear(*values, 2.0, dtype=dtype)
    shared = dtype.itemsize * len(values)
    before = bits(model)["parameter/weight"][:shared]
    interpolate_(model, Snapshot.capture(model), Snapshot.capture(other), 0.3)
    assert bits(model)["parameter/weight"][:shared] == before
    assert model.weight[0, -1].item() == pytest.approx(1.3, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_no_dtype_overflows_on_the_way(dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    model = linear(most, dtype=dtype)
    interpolate_(model, Snapshot.capture(model), Snapshot.capture(linear(-most, dtype=dtype)), 0.5)
    assert model.weight.item() == 0


def test_batchnorm_statistics_are_interpolated_and_its_counter_is_that_of_the_nearer_end() -> None:
    model, _, a, b = two_ends("convnet")
    for alpha, counter in ((0.25, 0), (0.5, 0), (0.75, 2)):
        interpolate_(model, a, b, alpha)
        means = [s.tensors["buffer/1.running_mean"] for s in (a, b)]
        torch.testing.assert_close(model[1].running_mean, (1 - alpha) * means[0] + alpha * means[1])
        assert model[1].num_batches_tracked.item() == counter


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_alpha_lies_on_the_line(alpha: float) -> None:
    model = linear(1.0)
    with pytest.raises(ConfigError, match="alpha must lie between 0"):
        interpolate_(model, Snapshot.capture(model), Snapshot.capture(model), alpha)


def test_networks_of_different_shape_have_no_line() -> None:
    model = linear(1.0)
    a, b = Snapshot.capture(model), Snapshot.capture(linear(1.0, 2.0))
    with pytest.raises(ScopeError, match=r"parameter/weight: expected shape \(1, 1\), found \(1, 2\)"):
        interpolate_(model, a, b, 0.5)
    with pytest.raises(ScopeError, match="not the model this snapshot was taken of"):
        interpolate_(model, b, b, 0.5)


# Paths


def test_the_barrier_is_the_highest_value_above_the_mean_of_the_ends() -> None:
    assert LinearPath((0, 0.5, 1), (1.0, 5.0, 3.0)).barrier == 3.0
    assert LinearPath((0, 0.5, 1), (1.0, 5.0, 3.0)).highest == 0.5
    assert LinearPath((0, 0.5, 1), (1.0, 0.5, 1.0)).barrier == 0.0
    assert LinearPath((0, 1), (1.0, 3.0)).barrier == 1.0
    assert LinearPath((0, 0.5, 1), (1.0, math.inf, 3.0)).barrier == math.inf


@pytest.mark.parametrize("where", range(3))
def test_a_nan_on_the_path_is_never_hidden(where: int) -> None:
    values = [1.0, 9.0, 1.0]
    values[where] = math.nan
    path = LinearPath((0, 0.5, 1), tuple(values))
    assert math.isnan(path.barrier)
    assert path.highest == (0, 0.5, 1)[where]


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=6))
def test_the_barrier_is_never_negative(values: list[float]) -> None:
    alphas = tuple(i / (len(values) - 1) for i in range(len(values)))
    assert LinearPath(alphas, tuple(values)).barrier >= 0


def test_values_are_those_of_the_interpolated_networks_in_order() -> None:
    a, b = Snapshot.capture(linear(-1.0, 0.0)), Snapshot.capture(linear(1.0, 4.0))
    path = linear_path(linear(9.0, 9.0), a, b, lambda m: m.weight.prod().item(), alphas=(0, 0.25, 1))
    assert path == LinearPath((0.0, 0.25, 1.0), (-0.0, -0.5, 4.0))
    assert linear_path(linear(9.0, 9.0), a, b, lambda m: m.weight[0, 0].item()).alphas == ALPHAS


def noisy_evaluation(inputs: torch.Tensor) -> Callable[[nn.Module], float]:
    def evaluate(model: nn.Module) -> float:
        """Disturb all that an evaluation can disturb: statistics, gradients, flags, generators."""
        model.train()
        loss = (model(inputs) * torch.rand(())).square().mean() * random.random() * np.random.rand()
        loss.backward()
        torch.optim.SGD(model.parameters(), lr=1.0).step()
        for child in model.children():
            child.eval()
        return loss.item()

    return evaluate


@every_net
def test_a_path_leaves_the_model_and_the_generators_bit_identical(name: str) -> None:
    model, inputs, a, b = two_ends(name)
    model(inputs).sum().backward()
    next(model.children()).eval()
    gradients = {n: (p.grad, p.grad.clone()) for n, p in model.named_parameters()}
    before, flags = bits(model), [m.training for m in model.modules()]
    identity = [id(t) for t in state_tensors(model).values()]
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    linear_path(model, a, b, noisy_evaluation(inputs), alphas=(0, 0.5, 1), recalibrate=lambda m: m(inputs))
    assert bits(model) == before
    assert [id(t) for t in state_tensors(model).values()] == identity
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    for n, parameter in model.named_parameters():
        assert parameter.grad is gradients[n][0]
        assert torch.equal(parameter.grad, gradients[n][1])


@every_net
def test_points_do_not_depend_on_the_points_before_them(name: str) -> None:
    model, inputs, a, b = two_ends(name)
    few = linear_path(model, a, b, noisy_evaluation(inputs), alphas=(0, 0.5, 1))
    many = linear_path(model, a, b, noisy_evaluation(inputs), alphas=(0, 0.1, 0.3, 0.5, 1))
    assert (
        dict(zip(few.alphas, few.values, strict=True)).items()
        <= dict(zip(many.alphas, many.values, strict=True)).items()
    )


def test_a_failing_evaluation_leaves_the_model_as_it_was() -> None:
    model, _, a, b = two_ends("convnet")
    before = bits(model)
    with pytest.raises(ZeroDivisionError):
        linear_path(model, a, b, lambda m: 1 / 0)
    assert bits(model) == before


def test_recalibration_sees_every_point_before_its_evaluation() -> None:
    model, inputs, a, b = two_ends("convnet")

    def recalibrate(m: nn.Module) -> None:
        m[1].reset_running_stats()
        m[1].momentum = None
        m.train()
        with torch.no_grad():
            m(inputs)
        m.eval()

    def evaluate(m: nn.Module) -> float:
        with torch.no_grad():
            torch.testing.assert_close(m[1].running_mean, m[0](inputs).mean((0, 2, 3)))
        return 0.0

    linear_path(model, a, b, evaluate, recalibrate=recalibrate)
    with pytest.raises(AssertionError):
        linear_path(model, a, b, evaluate)


@pytest.mark.parametrize("alphas", [(), (0,), (0, 0.5), (0.5, 1), (0, 1, 1), (0, 0.6, 0.5, 1), (1, 0)])
def test_alphas_rise_from_0_to_1(alphas: tuple[float, ...]) -> None:
    model = linear(1.0)
    a = Snapshot.capture(model)
    with pytest.raises(ConfigError, match="alphas must rise from 0 to 1"):
        linear_path(model, a, a, lambda m: 0.0, alphas=alphas)


def test_an_evaluation_returns_a_number() -> None:
    model = linear(1.0)
    a = Snapshot.capture(model)
    assert linear_path(model, a, a, lambda m: torch.tensor(2.0), alphas=(0, 1)).values == (2.0, 2.0)
    with pytest.raises(ConfigError, match=r"evaluate\(model\) must return a number, not NoneType"):
        linear_path(model, a, a, lambda m: None)


# Instability


DATA = torch.randn(16, 6, generator=torch.Generator().manual_seed(5))


def train_in_order(model: nn.Module, seed: int) -> None:
    order = torch.randperm(len(DATA), generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for rows in order.split(4):
        optimizer.zero_grad()
        (model(DATA[rows]) - DATA[rows, :3].relu()).square().mean().backward()
        optimizer.step()


def error(model: nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        return (model(DATA) - DATA[:, :3].relu()).square().mean().item()


def test_every_start_is_trained_twice_and_its_ends_are_connected() -> None:
    model = TINY_NETS["mlp"].build()
    starts = {0: Snapshot.capture(model)}
    train_in_order(model, 7)
    starts[4] = Snapshot.capture(model)
    before, state = bits(model), torch.get_rng_state()
    paths = instability(model, train_in_order, error, starts, seeds=(3, 8))
    assert bits(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert list(paths) == [0, 4]
    for step, start in starts.items():
        ends = []
        for seed in (3, 8):
            start.restore_tensors(model)
            train_in_order(model, seed)
            ends.append(Snapshot.capture(model))
        assert paths[step] == linear_path(model, *ends, error)


def test_dropout_differs_between_the_seeds_and_is_repeatable() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    starts = {"start": Snapshot.capture(model)}

    def same_order(m: nn.Module, seed: int) -> None:
        train_in_order(m, 0)

    first = instability(model, same_order, error, starts)
    torch.rand(5)
    assert instability(model, same_order, error, starts) == first
    assert first["start"].values[0] != first["start"].values[-1]


def test_a_training_that_ignores_its_seed_is_told() -> None:
    model = TINY_NETS["mlp"].build()
    with pytest.warns(NoEffectWarning, match="from 0 the seeds 0 and 1 led to the same network"):
        paths = instability(model, lambda m, seed: train_in_order(m, 0), error, {0: Snapshot.capture(model)})
    assert paths[0].barrier == 0
    with pytest.raises(ConfigError, match="two different numbers"):
        instability(model, train_in_order, error, {}, seeds=(1, 1))


def test_a_failing_training_leaves_the_model_as_it_was() -> None:
    model = TINY_NETS["mlp"].build()
    start, before = Snapshot.capture(model), bits(model)

    def fail(m: nn.Module, seed: int) -> None:
        train_in_order(m, seed)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        instability(model, fail, error, {0: start})
    assert bits(model) == before


def test_a_sparse_network_stays_sparse_along_its_path() -> None:
    model = TINY_NETS["mlp"].build()
    mask = Mask({name: torch.rand(shape) < 0.5 for name, shape in Scope.of(model).shapes.items()})

    def train_sparse(m: nn.Module, seed: int) -> None:
        with enforced(m, mask):
            train_in_order(m, seed)

    def revived(m: nn.Module) -> float:
        parameters = dict(m.named_parameters())
        return float(sum(int((parameters[name] != 0)[~kept].sum()) for name, kept in mask.items()))

    assert set(instability(model, train_sparse, revived, {0: Snapshot.capture(model)})[0].values) == {0.0}


def test_a_barrier_between_two_basins_is_found_and_none_within_one() -> None:
    """Two units that swap roles compute the same function with a barrier between; a small move has none."""

    def network(first: list[list[float]], second: list[float]) -> Snapshot:
        model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor(first))
            model[2].weight.copy_(torch.tensor([second]))
        return Snapshot.capture(model)

    a, swapped = network([[1, 0], [0, 1]], [1, -1]), network([[0, 1], [1, 0]], [-1, 1])
    near = network([[2, 0], [0, 1]], [0.5, -1])
    inputs = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))

    def loss(m: nn.Module) -> float:
        with torch.no_grad():
            return (m(inputs).flatten() - torch.tensor([1.0, -1.0])).square().mean().item()

    assert linear_path(model, a, swapped, loss).values[0] == linear_path(model, a, swapped, loss).values[-1] == 0
    assert linear_path(model, a, swapped, loss).barrier == 1.0
    assert linear_path(model, a, near, loss).barrier < 0.01
