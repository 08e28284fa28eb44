import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ticketkit import ConfigError, Mask, Plugins, Scope, ScoreError, ScoreInputs
from ticketkit.probe import Probe
from ticketkit.rng import RngState
from ticketkit.testing import TINY_NETS, attention, mlp, tied_gru

CRITERIA = {entry.name: entry for entry in Plugins().registries["criterion"]}


def mean_square(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean()


def batches_of(name: str, number: int = 2) -> list[torch.Tensor]:
    return [TINY_NETS[name].inputs() for _ in range(number)]


def probe_of(model: nn.Module, data: list[Any], loss: Callable = mean_square, seed: int = 3, **scope: Any) -> Probe:
    return Probe(model, lambda: data, loss, Scope.of(model, **scope).shapes, seed)


def bits(tensor: torch.Tensor | None) -> Any:
    return (
        None if tensor is None else (tensor.dtype, tensor.shape, tensor.detach().cpu().contiguous().numpy().tobytes())
    )


def rng_state() -> tuple[Any, ...]:
    state = RngState.capture()
    return state.python, bits(state.to_tensors()["rng/python_numpy"]), bits(state.torch_cpu)


def fingerprint(model: nn.Module) -> list[Any]:
    """All that a run may change: identities and bits of every tensor, flags, hooks, attributes, random generators."""
    facts: list[Any] = [rng_state(), torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled()]
    for name, module in model.named_modules():
        plain = {k: repr(v) for k, v in module.__dict__.items() if not k.startswith("_")}
        hooks = {k: list(v) for k, v in module.__dict__.items() if "hook" in k and isinstance(v, dict)}
        facts.append((name, id(module), plain, hooks, list(module._parameters), list(module._buffers)))
        facts += [(key, id(buffer), bits(buffer)) for key, buffer in module._buffers.items()]
        facts += [
            (key, id(p), bits(p), p.data_ptr(), p.requires_grad, id(p.grad), bits(p.grad), p._version)
            for key, p in module._parameters.items()
            if p is not None
        ]
    return facts


def with_history(model: nn.Module, data: list[torch.Tensor]) -> nn.Module:
    """Leave the traces of a training: gradients, statistics, a mixture of modes, a frozen parameter."""
    model.train()
    mean_square(model, data[0]).backward()
    for index, module in enumerate(model.modules()):
        module.training = index % 2 == 0
    list(model.parameters())[-1].requires_grad_(False)
    return model


# Trap 24: scoring side effects


@pytest.mark.parametrize("net", TINY_NETS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_scoring_leaves_the_model_bit_identical(net: str, criterion: str) -> None:
    data = batches_of(net)
    model = with_history(TINY_NETS[net].build(), data)
    scope = Scope.of(model)
    probe = Probe(model, lambda: data, mean_square, scope.ones(), 1)
    weights = scope.tensors(model)
    initial = {name: w + 0.1 for name, w in weights.items()}
    inputs = ScoreInputs(weights, initial, scope.ones(), torch.Generator().manual_seed(0), scope.total // 2, probe)
    options = {"iterations": 3} if criterion == "synflow" else {}
    options |= {"training": True} if criterion == "snip" else {}
    before = fingerprint(model)
    scores = dict(CRITERIA[criterion].configured(options).call(inputs))
    assert fingerprint(model) == before
    assert not any(t.requires_grad for t in scores.values())


@pytest.mark.parametrize(
    "careless",
    [
        lambda model, x: mean_square(model, x).backward(),
        lambda model, x: model.train()(x),
        lambda model, x: model.eval(),
        lambda model, x: model[0].weight.data.abs_(),
        lambda model, x: model[0].register_forward_hook(lambda *_: None),
        lambda model, x: model[0].weight.requires_grad_(False),
        lambda model, x: torch.rand(1),
        lambda model, x: random.random(),
        lambda model, x: np.random.rand(),
    ],
)
def test_the_fingerprint_notices_careless_scoring(careless: Callable[[nn.Module, torch.Tensor], Any]) -> None:
    model, data = TINY_NETS["convnet"].build(), batches_of("convnet", 1)
    model[0].eval()
    before = fingerprint(model)
    careless(model, data[0])
    assert fingerprint(model) != before


class Unruly(nn.Module):
    """Does all that a forward pass should not: changes its weights, buffers, attributes and flags."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4, max_norm=0.01)
        self.norm = nn.BatchNorm1d(4)
        self.output = nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("scratch", torch.ones(2), persistent=False)
        self.seen: list[int] = []
        self.facts = {"runs": 0}

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1
        self.scratch.fill_(float("nan"))
        self.seen.append(1)
        self.facts["runs"] += 1
        self.last = self.norm(self.embedding(tokens))
        self.output.bias.data.add_(1)
        self.output.training = not self.output.training
        random.random()
        np.random.rand()
        return self.output(self.last) * torch.rand(())


def unruly_loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    model.norm.register_forward_hook(lambda *_: None)
    model.norm.bias.requires_grad_(False)
    model.zero_grad()
    model(batch).sum().backward()
    return model(batch).square().mean()


def unruly() -> tuple[nn.Module, Probe]:
    model = Unruly()
    model.norm(torch.randn(3, 4)).sum().backward()
    data = [torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])]
    return model, probe_of(model, data, unruly_loss, include=["output.weight"])


@pytest.mark.parametrize("training", [False, True])
def test_an_unruly_model_is_put_back_whenever_control_returns(training: bool) -> None:
    model, probe = unruly()
    before = fingerprint(model)

    def same() -> bool:
        now = fingerprint(model)
        return _without_version(now, model) == _without_version(before, model) and not hasattr(model, "last")

    found = probe.gradients(training=training)
    for _ in range(2):
        assert next(found)["output.weight"].abs().sum() > 0
        assert same()
    assert list(found) == []
    assert same()
    abandoned = probe.gradients(training=training)
    next(abandoned)
    assert same()


def _without_version(facts: list[Any], model: nn.Module) -> list[Any]:
    """max_norm changes the embedding in place; its values are put back, its version counter cannot be."""
    return [fact[:-1] if isinstance(fact, tuple) and fact[1] == id(model.embedding.weight) else fact for fact in facts]


def test_a_loss_that_raises_leaves_nothing_behind() -> None:
    model, _ = unruly()

    def failing(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        unruly_loss(model, batch)
        raise KeyError("in the user's loss")

    before = fingerprint(model)
    probe = probe_of(model, [torch.tensor([1, 2])], failing, include=["output.weight"])
    with pytest.raises(KeyError, match="in the user's loss"):
        next(probe.gradients())
    assert _without_version(fingerprint(model), model) == _without_version(before, model)


def test_weights_that_a_loss_moves_to_other_memory_come_back_to_their_own() -> None:
    model, data = mlp(), batches_of("mlp")
    before = fingerprint(model)

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return mean_square(model.double(), batch.double())

    assert next(probe_of(model, data, loss).gradients())["0.weight"].dtype == torch.float64
    assert fingerprint(model) == before


def test_fused_kernels_and_cudnn_are_switched_back() -> None:
    model = attention()
    seen = []

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        seen.append((torch.backends.mha.get_fastpath_enabled(), torch.backends.cudnn.enabled))
        return mean_square(model, batch)

    probe = probe_of(model, batches_of("attention", 1), loss)
    before = torch.backends.mha.get_fastpath_enabled(), torch.backends.cudnn.enabled
    list(probe.hessian_products(next(probe.gradients())))
    assert seen == [(False, before[1]), (False, False)]
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.cudnn.enabled) == before


# Gradients


def by_differences(model: nn.Module, batch: Any, parameter: torch.Tensor, index: int, step: float = 1e-6) -> float:
    flat = parameter.data.view(-1)
    kept, values = flat[index].item(), []
    for sign in (1, -1):
        flat[index] = kept + sign * step
        values.append(mean_square(model, batch).item())
    flat[index] = kept
    return (values[0] - values[1]) / (2 * step)


@pytest.mark.parametrize("net", TINY_NETS)
def test_gradients_are_finite_differences_of_the_loss_in_evaluation_mode(net: str) -> None:
    model = TINY_NETS[net].build().double().train()
    data = [x.double() if x.is_floating_point() else x for x in batches_of(net)]
    probe = probe_of(model, data)
    found = list(probe.gradients())
    assert len(found) == 2
    model.eval()
    parameters = dict(model.named_parameters())
    for batch, gradient in zip(data, found, strict=True):
        assert list(gradient) == list(probe.shapes)
        for name, values in gradient.items():
            for index in random.Random(0).sample(range(values.numel()), min(10, values.numel())):
                expected = by_differences(model, batch, parameters[name], index)
                assert values.flatten()[index].item() == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_evaluation_mode_switches_dropout_off_inside_and_between_recurrent_layers() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.LSTM(3, 4, num_layers=2, dropout=0.5))
    modes = []

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        modes.append((model.training, model[0].training, model[1].training, model[1].dropout))
        return model(batch)[0].square().sum()

    probe = probe_of(model, [torch.randn(5, 2, 3)], loss)
    assert torch.equal(next(probe.gradients())["1.weight_ih_l0"], next(probe.gradients())["1.weight_ih_l0"])
    assert modes[0] == (False, False, True, 0.0)  # cuDNN differentiates recurrent layers in training mode only
    model.eval()
    next(probe.gradients(training=True))
    assert modes[-1] == (True, True, True, 0.5)
    assert not model.training


def test_a_recurrent_layer_with_a_forward_of_its_own_is_in_plain_evaluation_mode() -> None:
    class Noisy(nn.LSTM):
        def forward(self, steps: torch.Tensor) -> Any:
            return super().forward(steps + 100 * self.training)

    model = nn.Sequential(Noisy(3, 4))
    data = [torch.randn(5, 2, 3)]

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch)[0].square().sum()

    found = next(probe_of(model, data, loss).gradients())["0.weight_hh_l0"]
    model.eval()
    loss(model, data[0]).backward()
    assert torch.allclose(found, model[0].weight_hh_l0.grad)


def test_training_mode_normalises_each_batch_by_itself_and_forgets_it() -> None:
    model = TINY_NETS["convnet"].build()
    data = batches_of("convnet", 3)
    found = list(probe_of(model, data).gradients(training=True))
    assert model[1].num_batches_tracked == 0
    for batch, gradient in zip(data, found, strict=True):
        model.zero_grad()
        mean_square(model.train(), batch).backward()
        for name, values in gradient.items():
            assert torch.equal(values, model.get_parameter(name).grad)


def test_pruned_frozen_tied_and_unused_parameters_all_have_gradients() -> None:
    model = tied_gru()
    model.spare = nn.Linear(2, 2)
    model.gru.weight_hh_l0.requires_grad_(False)
    with torch.no_grad():
        model.gru.weight_ih_l0.zero_()
    data = batches_of("tied_gru", 1)
    gradient = next(probe_of(model, data).gradients())
    assert not model.gru.weight_hh_l0.requires_grad
    model.gru.weight_hh_l0.requires_grad_(True)
    mean_square(model, data[0]).backward()
    for name in ("embedding.weight", "gru.weight_ih_l0", "gru.weight_hh_l0"):
        assert torch.allclose(gradient[name], model.get_parameter(name).grad)
        assert gradient[name].count_nonzero() > 0
    assert torch.equal(gradient["spare.weight"], torch.zeros(2, 2))


def test_parameters_tied_by_storage_alone_get_the_sum() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False)).double()
    model[2].weight = nn.Parameter(model[0].weight.detach())
    data = [torch.randn(4, 3).double()]
    gradient = next(probe_of(model, data).gradients())
    assert list(gradient) == ["0.weight"]
    for index in range(9):
        expected = by_differences(model, data[0], model[0].weight, index)
        assert gradient["0.weight"].flatten()[index].item() == pytest.approx(expected, rel=1e-6)


def test_sparse_gradients_come_out_dense() -> None:
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 1))
    probe = probe_of(model, [torch.tensor([1, 1, 3])], include=["0.weight", "1.weight"])
    assert next(probe.gradients())["0.weight"].ne(0).any(dim=1).tolist() == [False, True, False, True, False]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_recorded_whatever_the_mode_outside(mode: Callable[[], Any]) -> None:
    model, data = mlp(), batches_of("mlp", 1)
    expected = next(probe_of(model, data).gradients())
    with mode():
        found = next(probe_of(model, data).gradients())
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# Products with the Hessian


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("net", TINY_NETS)
def test_hessian_products_are_how_gradients_change_along_the_direction(net: str, exact: bool) -> None:
    model = TINY_NETS[net].build().double().eval()
    data = [x.double() if x.is_floating_point() else x for x in batches_of(net, 1)]
    probe = probe_of(model, data)
    direction = {name: torch.randn(shape, dtype=torch.float64) for name, shape in probe.shapes.items()}
    found = next(probe.hessian_products(direction, exact=exact))
    parameters = [model.get_parameter(name) for name in probe.shapes]
    step = 1e-5
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            for name, parameter in zip(probe.shapes, parameters, strict=True):
                parameter.add_(direction[name], alpha=sign * step)
        model.zero_grad()
        mean_square(model, data[0]).backward()
        sides.append([p.grad.clone() for p in parameters])
        with torch.no_grad():
            for name, parameter in zip(probe.shapes, parameters, strict=True):
                parameter.sub_(direction[name], alpha=sign * step)
    for name, above, below in zip(probe.shapes, *sides, strict=True):
        assert torch.allclose(found[name], (above - below) / (2 * step), rtol=1e-5, atol=1e-7 if exact else 1e-6)


@pytest.mark.parametrize("net", TINY_NETS)
def test_products_from_differences_are_good_to_some_digits_in_float32_and_leave_no_trace(net: str) -> None:
    model, data = TINY_NETS[net].build(), batches_of(net, 1)
    probe = probe_of(model, data)
    direction = next(probe.gradients())
    before = fingerprint(model)
    near = torch.cat([t.flatten() for t in next(probe.hessian_products(direction, exact=False)).values()])
    exact = torch.cat([t.flatten() for t in next(probe.hessian_products(direction)).values()])
    assert (near - exact).norm() < 2e-3 * exact.norm()
    assert fingerprint(model) == before
    nowhere = {name: torch.zeros_like(t) for name, t in direction.items()}
    assert all(t.eq(0).all() for t in next(probe.hessian_products(nowhere, exact=False)).values())


def test_both_sides_of_a_difference_draw_the_same_dropout() -> None:
    model = mlp(dropout=0.5).double()
    probe = probe_of(model, [torch.randn(4, 6).double()])
    direction = next(probe.gradients())
    near = next(probe.hessian_products(direction, training=True, exact=False))
    exact = next(probe.hessian_products(direction, training=True))
    assert all(torch.allclose(near[name], exact[name], rtol=1e-6, atol=1e-9) for name in exact)


def test_fused_attention_is_replaced_where_a_second_derivative_is_needed() -> None:
    model = nn.MultiheadAttention(4, 2)

    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return model(x, x, x, need_weights=False)[0].square().sum()

    probe = probe_of(model, [torch.randn(3, 2, 4)], loss)
    assert next(probe.hessian_products(next(probe.gradients())))["in_proj_weight"].abs().sum() > 0


def test_a_loss_that_is_linear_in_the_weights_has_no_curvature() -> None:
    model = nn.Linear(3, 2)
    probe = probe_of(model, [torch.ones(1, 3)], lambda model, x: model(x).sum())
    assert torch.equal(next(probe.hessian_products({"weight": torch.ones(2, 3)}))["weight"], torch.zeros(2, 3))


def test_a_loss_without_a_second_derivative_is_refused_with_advice() -> None:
    def ctc(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        lengths = torch.tensor([6]), torch.tensor([2])
        return nn.functional.ctc_loss(model(x).log_softmax(-1), torch.tensor([[1, 2]]), *lengths)

    probe = probe_of(nn.Linear(3, 5), [torch.randn(6, 1, 3)], ctc)
    gradient = next(probe.gradients())
    with pytest.raises(ScoreError, match=r"cannot be differentiated twice .*ctc_loss.*'snip', .* exact: false"):
        next(probe.hessian_products(gradient))


# Batches and random numbers


def noisy_batches() -> Iterator[torch.Tensor]:
    for _ in range(3):
        yield torch.randn(2, 6) * random.random() * np.random.rand()


def test_every_pass_sees_the_same_batches_however_much_the_network_draws() -> None:
    model = mlp(dropout=0.5)
    seen: list[torch.Tensor] = []

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        seen.append(batch)
        return mean_square(model, batch)

    probe = Probe(model, noisy_batches, loss, Scope.of(model).shapes, seed=5)
    before = rng_state()
    first = list(probe.gradients(training=True))
    second = list(probe.gradients(training=True))
    list(probe.gradients())
    torch.rand(3)
    assert before != rng_state()
    assert all(torch.equal(seen[i], seen[i + 3]) and torch.equal(seen[i], seen[i + 6]) for i in range(3))
    assert not torch.equal(seen[0], seen[1])
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    other_seed = Probe(model, noisy_batches, loss, Scope.of(model).shapes, seed=6)
    assert not torch.equal(next(other_seed.gradients())["0.weight"], next(probe.gradients())["0.weight"])


# Refusals


@pytest.mark.parametrize(
    ("batches", "loss", "error", "message"),
    [
        (list, mean_square, ConfigError, "returned no batches"),
        (lambda: 3, mean_square, ConfigError, "must return an iterable of batches, not int"),
        (None, lambda m, x: m(x), ConfigError, r"one floating-point number as a tensor, not shape \(4, 3\)"),
        (None, lambda m, x: m(x).sum().item(), ConfigError, r"as a tensor, not -?\d"),
        (None, lambda m, x: m(x).argmax(), ConfigError, "torch.int64"),
        (None, lambda m, x: m(x).sum().detach(), ConfigError, "does not depend on any of the 2 parameters"),
        (None, lambda m, x: x.clone().requires_grad_().sum(), ConfigError, "does not depend on any of the 2"),
        (None, lambda m, x: m(x).sum() / 0 * 0, ScoreError, r"loss of batch 0 \(from 0\) is nan"),
    ],
)
def test_what_cannot_be_scored_is_refused(batches: Any, loss: Any, error: type[Exception], message: str) -> None:
    model = mlp()
    data = batches_of("mlp", 2)
    probe = Probe(model, batches or (lambda: data), loss, Scope.of(model).shapes)
    with pytest.raises(error, match=message):
        list(probe.gradients())


def test_the_batch_that_spoils_the_loss_is_named() -> None:
    data = [*batches_of("mlp", 2), torch.full((4, 6), float("inf"))]
    with pytest.raises(ScoreError, match=r"loss of batch 2 \(from 0\)"):
        list(probe_of(mlp(), data).gradients())


def test_an_iterator_is_refused_and_one_that_is_used_up_is_explained() -> None:
    model, data = mlp(), batches_of("mlp", 1)
    with pytest.raises(
        ConfigError, match="must be a callable that returns a fresh iterable each time, not list_iterator"
    ):
        Probe(model, iter(data), mean_square, Scope.of(model).shapes)
    with pytest.raises(ConfigError, match="loss must be a callable of model and batch, not NoneType"):
        Probe(model, lambda: data, None, Scope.of(model).shapes)
    used = iter(data)
    probe = Probe(model, lambda: used, mean_square, Scope.of(model).shapes)
    assert len(list(probe.gradients())) == 1
    with pytest.raises(ConfigError, match="an earlier pass has used up"):
        list(probe.gradients())


def test_a_mask_names_the_parameters_as_well_as_shapes_do() -> None:
    model, data = mlp(), batches_of("mlp", 1)
    mask = Mask.ones({"3.weight": (3, 8)})
    assert list(next(Probe(model, lambda: data, mean_square, mask).gradients())) == ["3.weight"]
