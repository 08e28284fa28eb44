"""Invariant 8 of the design: pruned weights are exactly zero, kept ones untouched, nothing is left behind."""

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import LBFGS, SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop
from torch.optim import optimizer as optimizer_module
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from ticketkit import Mask, NoEffectWarning, Scope, ScopeError, enforced
from ticketkit.testing import TINY_NETS, masks

Make = Callable[[Iterator[nn.Parameter]], Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: SGD(p, lr=0.1),
    "momentum": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "nesterov": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "weight_decay": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda p: Adam(p, lr=0.01),
    "adam_amsgrad": lambda p: Adam(p, lr=0.01, amsgrad=True, weight_decay=0.1),
    "adam_foreach": lambda p: Adam(p, lr=0.01, foreach=True),
    "adam_fused": lambda p: Adam(p, lr=0.01, fused=True),
    "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw_foreach": lambda p: AdamW(p, lr=0.01, foreach=True),
    "adamw_fused": lambda p: AdamW(p, lr=0.01, fused=True),
    "sgd_foreach": lambda p: SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "sgd_fused": lambda p: SGD(p, lr=0.1, momentum=0.9, fused=True),
    "rmsprop": lambda p: RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: Adagrad(p, lr=0.1),
    "adagrad_fused": lambda p: Adagrad(p, lr=0.1, fused=True),
    "nadam": lambda p: NAdam(p, lr=0.01),
    "lbfgs": lambda p: LBFGS(p, lr=0.1, max_iter=4),
}

every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
every_net = pytest.mark.parametrize("name", TINY_NETS)


def half(model: nn.Module, seed: int = 3) -> Mask:
    """Return a mask over the default scope that keeps about half of each parameter."""
    draw, scope = torch.Generator().manual_seed(seed), Scope.of(model)
    flags = {name: torch.rand(shape, generator=draw) < 0.5 for name, shape in scope.shapes.items()}
    return Mask(flags, aliases=scope.aliases)


def pruned(model: nn.Module, mask: Mask) -> torch.Tensor:
    """Return all pruned weights of a model in one vector."""
    weights = dict(model.named_parameters())
    return torch.cat([weights[name].detach()[~mask[name]] for name in mask])


def is_plus_zero(values: torch.Tensor) -> bool:
    return bool((values == 0).all()) and not bool(values.signbit().any())


def step(model: nn.Module, optimizer: Optimizer, inputs: torch.Tensor) -> None:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(inputs).square().mean() + model(inputs).sum()
        loss.backward()
        return loss

    optimizer.step(closure)


def hook_counts() -> tuple[int, int]:
    return (
        len(optimizer_module._global_optimizer_pre_hooks),
        len(optimizer_module._global_optimizer_post_hooks),
    )


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


# The law


@every_optimizer
@pytest.mark.parametrize("stale", [False, True], ids=["fresh", "stale"])
def test_pruned_weights_are_zero_after_every_step(make: Make, stale: bool) -> None:
    net = TINY_NETS["bilstm_tagger"]
    model, inputs = net.build(), net.inputs()
    mask, optimizer = half(model), make(model.parameters())
    if stale:
        for _ in range(3):
            step(model, optimizer, inputs)
        assert pruned(model, mask).any()
    with enforced(model, mask):
        if not stale:
            optimizer = make(model.parameters())
        for _ in range(4):
            before = model.lstm.weight_hh_l0.detach().clone()
            step(model, optimizer, inputs)
            assert is_plus_zero(pruned(model, mask))
            moved = model.lstm.weight_hh_l0.detach() != before
            assert torch.equal(moved, mask["lstm.weight_hh_l0"])


@every_net
@every_optimizer
def test_every_network_keeps_its_zeros(name: str, make: Make) -> None:
    net = TINY_NETS[name]
    model, inputs = net.build(), net.inputs()
    mask = half(model)
    with enforced(model, mask):
        optimizer = make(model.parameters())
        for _ in range(2):
            step(model, optimizer, inputs)
            assert is_plus_zero(pruned(model, mask))


@given(st.data())
@settings(max_examples=40)
def test_kept_weights_are_bit_equal_at_entry_and_twice_is_once(data: st.DataObject) -> None:
    model = nn.Module()
    mask = data.draw(masks())
    values = [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45, 1.5]
    for position, name in enumerate(list(mask)):
        picks = data.draw(st.lists(st.sampled_from(values), min_size=mask.sizes[name], max_size=mask.sizes[name]))
        model.register_parameter(f"p{position}", nn.Parameter(torch.tensor(picks).reshape(mask.shapes[name])))
    renamed = Mask({f"p{position}": mask[name] for position, name in enumerate(mask)})
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in range(2):
        with enforced(model, renamed):
            for name, parameter in model.named_parameters():
                kept = renamed[name]
                assert bits(parameter[kept]) == bits(before[name][kept])
                assert is_plus_zero(parameter.detach()[~kept])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_every_floating_dtype_is_held(dtype: torch.dtype) -> None:
    model = nn.Linear(6, 5).to(dtype)
    mask, inputs = half(model), torch.randn(4, 6, dtype=dtype)
    with enforced(model, mask):
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        for _ in range(3):
            step(model, optimizer, inputs)
            assert is_plus_zero(pruned(model, mask))


def test_non_contiguous_weights_are_held_in_place() -> None:
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    mask, address, stride = half(model), model.weight.data_ptr(), model.weight.stride()
    with enforced(model, mask):
        optimizer = AdamW(model.parameters(), lr=0.01)
        step(model, optimizer, torch.randn(2, 3, 5, 5).to(memory_format=torch.channels_last))
    assert is_plus_zero(pruned(model, mask))
    assert (model.weight.data_ptr(), model.weight.stride()) == (address, stride)


# Gradients


class MaskedTagger(nn.Module):
    """The reparametrised reference: raw weights w, effective weights w * m, nothing of ticketkit in it."""

    def __init__(self, model: nn.Module, mask: Mask):
        super().__init__()
        self.names = [name for name, _ in model.lstm.named_parameters()]
        raw = {
            **{f"lstm.{n}": p for n, p in model.lstm.named_parameters()},
            **{f"head.{n}": p for n, p in model.head.named_parameters()},
        }
        self.raw = nn.ParameterDict({n.replace(".", "-"): nn.Parameter(p.detach().clone()) for n, p in raw.items()})
        self.masks = {name: mask[name].float() for name in mask}

    def effective(self, name: str) -> torch.Tensor:
        weight = self.raw[name.replace(".", "-")]
        return weight * self.masks[name] if name in self.masks else weight

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        flat = [self.effective(f"lstm.{name}") for name in self.names]
        zeros = frames.new_zeros(4, frames.shape[0], flat[1].shape[1])
        outputs, _, _ = torch._VF.lstm(frames, (zeros, zeros), flat, True, 2, 0.0, True, True, True)
        return nn.functional.linear(outputs, self.effective("head.weight"), self.effective("head.bias"))


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_training_with_clipping_equals_a_reparametrised_network(name: str) -> None:
    net = TINY_NETS["bilstm_tagger"]
    model = net.build()
    mask = half(model)
    reference = MaskedTagger(model, mask)
    inputs = [net.inputs() for _ in range(20)]
    optimizer, other = OPTIMIZERS[name](model.parameters()), OPTIMIZERS[name](reference.parameters())
    with enforced(model, mask):
        for frames in inputs:
            norms = []
            for network, update in ((model, optimizer), (reference, other)):
                update.zero_grad()
                network(frames).sub(3).square().sum().backward()
                norms.append(nn.utils.clip_grad_norm_(network.parameters(), 1.0))
                update.step()
            assert norms[0] > 1  # clipping was at work
            assert abs(norms[0] - norms[1]) <= 1e-5 * norms[1]
            for key, parameter in model.named_parameters():
                assert (parameter - reference.effective(key)).abs().max() <= 1e-6


def test_gradients_are_masked_before_anything_can_see_them() -> None:
    net = TINY_NETS["attention"]
    model, inputs = net.build(), net.inputs()
    mask = half(model)
    with enforced(model, mask):
        model(inputs).square().sum().backward()
        for name, parameter in model.named_parameters():
            if name in mask:
                assert is_plus_zero(parameter.grad[~mask[name]])


def test_gradients_from_before_the_block_are_masked_at_entry() -> None:
    net = TINY_NETS["mlp"]
    model, inputs = net.build(), net.inputs()
    mask = half(model)
    model(inputs).sum().backward()
    with enforced(model, mask):
        assert all(is_plus_zero(dict(model.named_parameters())[name].grad[~mask[name]]) for name in mask)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@every_optimizer
def test_pruned_weights_stay_plus_zero_under_bad_gradients(make: Make, bad: float) -> None:
    net = TINY_NETS["mlp"]
    model, inputs = net.build(), net.inputs()
    mask = half(model)
    with enforced(model, mask):
        optimizer = make(model.parameters())

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = (model(inputs) * bad).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        assert is_plus_zero(pruned(model, mask))
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, bad)  # behind the hooks' back
        if not isinstance(optimizer, LBFGS):
            optimizer.step()
        assert is_plus_zero(pruned(model, mask))


def test_accumulated_gradients_are_those_of_the_masked_network() -> None:
    net = TINY_NETS["bilstm_tagger"]
    model = net.build()
    mask, batches = half(model), [net.inputs() for _ in range(3)]
    with enforced(model, mask):
        for frames in batches:
            model(frames).square().sum().backward()
        accumulated = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    plain = net.build()
    plain.load_state_dict(model.state_dict())
    for frames in batches:
        plain(frames).square().sum().backward()
    for name, parameter in plain.named_parameters():
        expected = parameter.grad * mask[name] if name in mask else parameter.grad
        assert torch.equal(accumulated[name], expected)


def test_bfloat16_autocast_and_a_disabled_scaler_work() -> None:
    net = TINY_NETS["mlp"]
    model, inputs = net.build(), net.inputs()
    mask, scaler = half(model), torch.amp.GradScaler("cpu", enabled=False)
    with enforced(model, mask):
        optimizer = AdamW(model.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(inputs).square().mean()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            assert is_plus_zero(pruned(model, mask))


def test_an_enabled_scaler_skips_and_steps_without_reviving_weights() -> None:
    net = TINY_NETS["mlp"]
    model, inputs = net.build(), net.inputs()
    mask, scaler = half(model), torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=1)
    with enforced(model, mask):
        optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
        for factor in (1.0, float("inf"), 1.0):
            optimizer.zero_grad()
            scaler.scale(model(inputs).square().mean() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
            assert is_plus_zero(pruned(model, mask))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


# Structure


def test_nothing_is_left_after_exit() -> None:
    net = TINY_NETS["bilstm_tagger"]
    model, inputs = net.build(), net.inputs()
    mask, before = half(model), hook_counts()
    attributes = {name: sorted(vars(module)) for name, module in model.named_modules()}
    with enforced(model, mask):
        assert hook_counts() == (before[0] + 1, before[1] + 1)
    assert hook_counts() == before
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == attributes
    step(model, SGD(model.parameters(), lr=0.1), inputs)
    assert pruned(model, mask).all()


def test_nothing_is_left_after_an_exception() -> None:
    model = TINY_NETS["mlp"].build()
    before = hook_counts()
    with pytest.raises(KeyError), enforced(model, half(model)):
        raise KeyError
    assert hook_counts() == before
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())


def test_a_dense_mask_installs_no_parameter_hook() -> None:
    model = TINY_NETS["mlp"].build()
    with enforced(model, Scope.of(model).ones()):
        assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())


def test_nested_blocks_hold_both_masks() -> None:
    net = TINY_NETS["mlp"]
    model, inputs = net.build(), net.inputs()
    outer, inner = half(model, 1), half(model, 2)
    with enforced(model, outer):
        with enforced(model, inner):
            step(model, Adam(model.parameters()), inputs)
            assert is_plus_zero(pruned(model, outer & inner))
        step(model, Adam(model.parameters()), inputs)
        assert is_plus_zero(pruned(model, outer))
        assert pruned(model, inner | (Scope.of(model).ones() - outer)).any()  # the inner mask is off again


@every_net
def test_identity_keys_copies_and_checkpoints_work_while_masks_are_on(name: str) -> None:
    net = TINY_NETS[name]
    model, inputs = net.build(), net.inputs()
    keys, identities = list(model.state_dict()), [id(parameter) for parameter in model.parameters()]
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    mask = half(model)
    with enforced(model, mask):
        step(model, AdamW(model.parameters()), inputs)
        model.eval()
        expected = model(inputs)
        assert list(model.state_dict()) == keys
        assert [id(parameter) for parameter in model.parameters()] == identities
        assert [parameter.data_ptr() for parameter in model.parameters()] == addresses
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        loaded = net.build().eval()
        loaded.load_state_dict(model.state_dict(), strict=True)
        model.load_state_dict(copy.deepcopy(model.state_dict()), strict=True)
        copies = [
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            torch.load(buffer, weights_only=False),
            loaded,
            model,
        ]
        for other in copies:
            assert torch.equal(other(inputs), expected)
            assert is_plus_zero(pruned(other, mask))


def test_a_copy_made_inside_the_block_is_not_held() -> None:
    net = TINY_NETS["mlp"]
    model, inputs = net.build(), net.inputs()
    mask = half(model)
    with enforced(model, mask):
        other = copy.deepcopy(model)
        step(other, SGD(other.parameters(), lr=0.1), inputs)
    assert pruned(other, mask).any()
    assert is_plus_zero(pruned(model, mask))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_flat_weights_still_alias_the_parameters(kind: type[nn.RNNBase]) -> None:
    model = kind(3, 4, num_layers=2, bidirectional=True)
    mask, inputs = half(model), torch.randn(5, 2, 3)
    with enforced(model, mask):
        optimizer = Adam(model.parameters(), lr=0.1)
        optimizer.zero_grad()
        model(inputs)[0].sum().backward()
        optimizer.step()
        for flat, (_, parameter) in zip(model._flat_weights, model.named_parameters(), strict=True):
            assert flat is parameter
        with torch.no_grad():
            plain = kind(3, 4, num_layers=2, bidirectional=True)
            plain.load_state_dict(model.state_dict())
            assert torch.equal(model(inputs)[0], plain(inputs)[0])


def test_tied_weights_are_masked_at_both_ends() -> None:
    net = TINY_NETS["tied_gru"]
    model, inputs = net.build(), net.inputs()
    mask = half(model)
    assert mask.aliases == {"embedding.weight": ("output.weight",)}
    with enforced(model, mask):
        step(model, Adam(model.parameters()), inputs)
        assert model.output.weight is model.embedding.weight
        assert is_plus_zero(model.output.weight.detach()[~mask["embedding.weight"]])


def test_two_parameters_over_one_storage_are_both_held() -> None:
    model = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)])
    model[1].weight = nn.Parameter(model[0].weight.detach())
    mask = half(model)
    assert list(mask) == ["0.weight"]
    with enforced(model, mask):
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        for layer in model:
            layer(torch.randn(2, 3)).sum().backward()
            assert is_plus_zero(layer.weight.grad[~mask["0.weight"]])
        optimizer.step()
        assert is_plus_zero(pruned(model, mask))


def test_sparse_gradients_are_masked() -> None:
    model = nn.Embedding(5, 2, sparse=True)
    mask = Mask({"weight": torch.arange(10).reshape(5, 2) % 2 == 0})
    with enforced(model, mask):
        optimizer = SGD(model.parameters(), lr=0.1)
        model(torch.tensor([0, 3, 3])).sum().backward()
        optimizer.step()
        assert is_plus_zero(pruned(model, mask))


def test_frozen_parameters_are_masked_too() -> None:
    net = TINY_NETS["mlp"]
    model, inputs = net.build(), net.inputs()
    model[0].weight.requires_grad_(False)
    mask = half(model)
    with enforced(model, mask):
        step(model, SGD(model.parameters(), lr=0.1), inputs)
        assert is_plus_zero(pruned(model, mask))


def test_a_compiled_wrapper_shares_the_held_parameters() -> None:
    net = TINY_NETS["mlp"]
    model, inputs = net.build(), net.inputs()
    mask = half(model)
    wrapped = torch.compile(model, backend="eager")
    with enforced(model, mask):
        step(wrapped, SGD(wrapped.parameters(), lr=0.1), inputs)
        assert is_plus_zero(pruned(model, mask))


def test_a_compiled_network_is_not_compiled_again_for_another_mask() -> None:
    """A round changes values only: its guards hold, so that the compiler has nothing to do after the first round."""
    net = TINY_NETS["mlp"]
    model, inputs = net.build(), net.inputs()
    graphs = []

    def counting(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    wrapped = torch.compile(model, backend=counting)
    for seed in range(4):
        with enforced(wrapped, half(model, seed)):
            optimizer = AdamW(wrapped.parameters(), lr=0.1)
            for _ in range(2):
                step(wrapped, optimizer, inputs)
                assert is_plus_zero(pruned(model, half(model, seed)))
        if seed == 0:
            first_round = len(graphs)
    assert first_round > 0
    assert len(graphs) == first_round


def test_a_network_compiled_ahead_of_time_holds_the_mask() -> None:
    net = TINY_NETS["mlp"]
    model, inputs = net.build(), net.inputs()
    mask = half(model)
    with enforced(model, mask):
        optimizer = AdamW(model.parameters(), lr=0.1)
        compiled = torch.compile(model, backend="aot_eager")
        for _ in range(2):
            optimizer.zero_grad()
            compiled(inputs).square().mean().backward()
            optimizer.step()
            assert is_plus_zero(pruned(model, mask))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_trains_to_the_same_bits(reentrant: bool) -> None:
    def trained(checkpointed: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(4)
        net = TINY_NETS["mlp"]
        model, inputs = net.build(), net.inputs().requires_grad_()
        with enforced(model, half(model)):
            optimizer = AdamW(model.parameters(), lr=0.1)
            for _ in range(3):
                optimizer.zero_grad()
                outputs = checkpoint(model, inputs, use_reentrant=reentrant) if checkpointed else model(inputs)
                outputs.square().mean().backward()
                optimizer.step()
                assert is_plus_zero(pruned(model, half(model)))
        return model.state_dict()

    plain, recomputed = trained(False), trained(True)
    assert all(plain[name].equal(recomputed[name]) for name in plain)


# Averages, several optimizers, histories


@pytest.mark.parametrize("make", [get_ema_multi_avg_fn(0.9), None], ids=["ema", "swa"])
def test_an_average_from_a_dense_phase_is_masked_and_stays_so(make: Callable[..., object] | None) -> None:
    """Trap 22."""
    net = TINY_NETS["bilstm_tagger"]
    model, inputs = net.build(), net.inputs()
    average = AveragedModel(model, multi_avg_fn=make)
    average.update_parameters(model)
    mask = half(model)
    assert pruned(average.module, mask).any()
    with enforced(model, mask) as enforcement:
        enforcement.hold_average(average)
        optimizer = AdamW(model.parameters(), lr=0.1)
        for _ in range(3):
            assert is_plus_zero(pruned(average.module, mask))
            step(model, optimizer, inputs)
            average.update_parameters(model)
    assert is_plus_zero(pruned(average.module, mask))
    assert all(bool(p.any()) for p in average.module.parameters())


def test_several_optimizers_over_parts_of_the_scope_hold_the_mask() -> None:
    net = TINY_NETS["bilstm_tagger"]
    model, inputs = net.build(), net.inputs()
    parts = [list(model.lstm.parameters()), list(model.head.parameters())]
    optimizers = [AdamW(parts[0], lr=0.1), SGD([{"params": [p], "momentum": 0.9} for p in parts[1]], lr=0.1)]
    for optimizer in optimizers:
        step(model, optimizer, inputs)
    mask = half(model)
    with enforced(model, mask) as enforcement:
        enforcement.check_optimizer(*optimizers)
        for _ in range(3):
            for optimizer in optimizers:
                step(model, optimizer, inputs)
                assert is_plus_zero(pruned(model, mask))
        assert enforcement.steps == 3


def test_steps_are_counted_once_however_many_optimizers_share_the_scope() -> None:
    net = TINY_NETS["mlp"]
    model, inputs, seen = net.build(), net.inputs(), []
    with enforced(model, half(model)) as enforcement:
        enforcement.on_step = lambda together: seen.append((enforcement.steps, together))
        enforcement.continue_from(5)
        optimizers = [SGD([p], lr=0.1) for p in [*model.parameters()][::2]]
        for _ in range(2):
            for optimizer in optimizers:
                step(model, optimizer, inputs)
    assert seen == [(6, True), (6, True), (7, False), (7, True)]


def test_a_stale_lbfgs_history_moves_no_pruned_weight_even_inside_a_step() -> None:
    net = TINY_NETS["mlp"]
    model, inputs = net.build(), net.inputs()
    optimizer = LBFGS(model.parameters(), lr=0.5, max_iter=6, line_search_fn="strong_wolfe")
    step(model, optimizer, inputs)
    mask = half(model)
    with enforced(model, mask):

        def closure() -> torch.Tensor:
            assert is_plus_zero(pruned(model, mask))
            optimizer.zero_grad()
            loss = model(inputs).square().mean()
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
        history = len(optimizer.state[next(iter(model.parameters()))]["old_dirs"])
    with enforced(model, mask):  # a history that knows the mask is kept: a resumed run goes on to the same bits
        optimizer.step(closure)
        assert len(optimizer.state[next(iter(model.parameters()))]["old_dirs"]) >= history > 0


@every_optimizer
def test_the_lean_mask_trains_to_the_same_bits(make: Make) -> None:
    def trained(lean: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(4)
        net = TINY_NETS["convnet"]
        model, inputs = net.build(), net.inputs()
        optimizer = make(model.parameters())
        step(model, optimizer, inputs)
        with enforced(model, half(model), lean=lean):
            for _ in range(2):
                step(model, optimizer, inputs)
                assert is_plus_zero(pruned(model, half(model)))
        return model.state_dict()

    plain, lean = trained(False), trained(True)
    assert all(plain[name].equal(lean[name]) for name in plain)


def test_a_parameter_unfrozen_inside_the_block_has_masked_gradients() -> None:
    net = TINY_NETS["mlp"]
    model, inputs = net.build(), net.inputs()
    model[0].weight.requires_grad_(False)
    mask = half(model)
    with enforced(model, mask):
        assert not model[0].weight.requires_grad
        model[0].weight.requires_grad_(True)
        model(inputs).square().sum().backward()
        assert is_plus_zero(model[0].weight.grad[~mask["0.weight"]])
        assert bool(model[0].weight.grad.any())


def test_a_parameter_replaced_inside_the_block_is_cleared_with_a_warning() -> None:
    net = TINY_NETS["mlp"]
    model = net.build()
    mask = half(model)
    with pytest.warns(NoEffectWarning, match=r"pruned weights of 0\.weight were changed"), enforced(model, mask):
        model[0].weight = nn.Parameter(torch.ones_like(model[0].weight))
    assert is_plus_zero(pruned(model, mask))


# Refusals


def test_another_model_is_refused_with_names_and_shapes() -> None:
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    with pytest.raises(ScopeError) as caught, enforced(model, Mask.ones({"weight": (2, 4), "head.weight": (1, 2)})):
        pass
    assert "head.weight (1, 2): missing" in str(caught.value)
    assert "weight: expected shape (2, 4), found (2, 3)" in str(caught.value)
    assert torch.equal(model.weight, before)


def test_an_optimizer_over_a_stale_copy_is_refused_at_its_first_step() -> None:
    net = TINY_NETS["mlp"]
    model, inputs = net.build(), net.inputs()
    stale = copy.deepcopy(model)
    with enforced(model, half(model)):
        optimizer = SGD(stale.parameters(), lr=0.1)
        model(inputs).sum().backward()
        with pytest.raises(ScopeError, match="steps over 4 tensors of which none has a gradient"):
            optimizer.step()


def test_an_optimizer_without_the_parameters_in_scope_is_refused_by_name() -> None:
    model = TINY_NETS["mlp"].build()
    with enforced(model, half(model)) as enforcement:
        enforcement.check_optimizer(SGD(model.parameters(), lr=0.1))
        enforcement.check_optimizer(SGD([model[0].weight], lr=0.1), SGD([model[3].weight], lr=0.1))
        with pytest.raises(ScopeError, match=r"not these parameters in scope: 3.weight \(3, 8\)"):
            enforcement.check_optimizer(SGD([model[0].weight], lr=0.1))


def test_steps_over_other_tensors_only_are_found_out_at_the_end() -> None:
    net = TINY_NETS["mlp"]
    model, inputs = net.build(), net.inputs()
    other = copy.deepcopy(model)
    with enforced(model, half(model)) as enforcement:
        enforcement.check_trained()
        step(other, SGD(other.parameters(), lr=0.1), inputs)
        with pytest.raises(ScopeError, match="took 1 steps in this round, none of them over any of the 2 parameters"):
            enforcement.check_trained()
        step(model, SGD(model.parameters(), lr=0.1), inputs)
        enforcement.check_trained()


def test_weights_revived_behind_the_optimizers_back_are_cleared_with_a_warning() -> None:
    model = TINY_NETS["mlp"].build()
    mask = half(model)
    expected = pytest.warns(NoEffectWarning, match=r"pruned weights of 3.weight were changed by something other")
    with expected, enforced(model, mask):
        model[3].weight.data.add_(1.0)
    assert is_plus_zero(pruned(model, mask))


@pytest.mark.parametrize("left", ["held.__enter__()", "rounds = iter(IMP(model, rounds=1)); next(rounds)"])
def test_a_process_may_end_while_a_mask_is_held(left: str) -> None:
    script = f"""
import torch
from ticketkit import IMP, Mask, enforced
model = torch.nn.Linear(4, 4)
held = enforced(model, Mask({{"weight": torch.rand(4, 4) < 0.5}}))
{left}
model(torch.ones(1, 4)).sum().backward()
torch.optim.SGD(model.parameters(), lr=0.1).step()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
