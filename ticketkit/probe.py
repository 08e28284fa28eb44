"""Run a network on the user's batches to look at gradients and activations, and leave it bit-identical."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any, Self, TypeVar

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ticketkit.errors import ConfigError, ScoreError
from ticketkit.mask import Mask, Shape
from ticketkit.rng import RngState, derived_seed, seeded
from ticketkit.scope import masked_parameters

Batches = Callable[[], Iterable[Any]]
Loss = Callable[[nn.Module, Any], torch.Tensor]
Tensors = dict[str, torch.Tensor]
Result = TypeVar("Result")

_END = object()

TORCH_RECURRENT_FORWARDS = (nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward)


class Probe:
    """Runs a trained network on the user's batches; whenever it hands back control, the network is as it was.

    `batches()` returns a fresh iterable at each call, `loss(model, batch)` a scalar; `shapes` names the parameters in
    scope (a mask will do). The iterable draws its random numbers from one stream that starts from `seed`, so that every
    pass sees the same batches, and the network from another for each batch; the global generators are put back.

    The network runs in evaluation mode (no dropout, BatchNorm with its running statistics), or with `training=True` in
    its own training mode. Gradients are dense: pruned weights have one too. A weight that is tied gets the sum over its
    uses, one that the loss does not use gets zero, and parameters with `requires_grad=False` are differentiated like
    all others.
    """

    def __init__(
        self, model: nn.Module, batches: Batches, loss: Loss, shapes: Mask | Mapping[str, Shape], seed: int = 0
    ):
        if not callable(batches):
            raise ConfigError(
                f"batches must be a callable that returns a fresh iterable each time, not {type(batches).__name__}; "
                "write lambda: loader"
            )
        if not callable(loss):
            raise ConfigError(f"loss must be a callable of model and batch, not {type(loss).__name__}")
        self.model = model
        self.batches = batches
        self.loss = loss
        self.shapes: Mapping[str, Shape] = shapes.shapes if isinstance(shapes, Mask) else dict(shapes)
        self.seed = seed

    @classmethod
    def factory(
        cls, model: nn.Module, batches: Batches | None, loss: Loss | None, shapes: Mapping[str, Shape]
    ) -> Callable[[int], Self] | None:
        """Return what makes a probe from a seed, or None without data; half of it raises `ConfigError`."""
        if (batches is None) != (loss is None):
            raise ConfigError("batches= and loss= go together: a callable that returns batches, one of model and batch")
        if batches is None or loss is None:
            return None
        cls(model, batches, loss, shapes, 0)  # raises at once what would raise after hours
        return lambda seed: cls(model, batches, loss, shapes, seed)

    def per_batch(
        self, step: Callable[[Callable[[], torch.Tensor]], Result], *, training: bool = False
    ) -> Iterator[Result]:
        """Yield `step(run)` for every batch, where `run()` returns the batch's loss with its graph.

        The network may be hooked and read inside `step`; when the result is yielded it is itself again. Raises
        `ConfigError` if there are no batches or the loss is no scalar, `ScoreError` naming the batch if it is not
        finite.
        """
        draws = _Draws(self.seed)
        with sandbox(self.model), draws.continued():
            batches = self._fresh_batches()
        for index in count():
            with sandbox(self.model):
                with draws.continued():
                    batch = next(batches, _END)
                if batch is _END:
                    break
                with seeded(derived_seed(self.seed, index)):
                    self._prepare(training)
                    result = step(partial(self._loss_of, index, batch))
            yield result
        if index == 0:
            raise ConfigError(
                "batches() returned no batches; it must return a fresh iterable at each call, not an iterator that an "
                "earlier pass has used up"
            )

    def gradients(self, *, training: bool = False) -> Iterator[Tensors]:
        """Yield for every batch the gradient of its loss with respect to every parameter in scope."""
        return self.per_batch(lambda run: self._gradient(run()), training=training)

    def hessian_products(
        self, direction: Mapping[str, torch.Tensor], *, training: bool = False, exact: bool = True
    ) -> Iterator[Tensors]:
        """Yield for every batch the product of its loss's Hessian over the parameters in scope with a direction.

        `exact` differentiates twice and raises `ScoreError` for a loss without a second derivative, as torch's CTC;
        else the product comes from gradients a small step to both sides, good to some three digits in float32.
        """
        product = self._second_derivative if exact else self._central_difference
        return self.per_batch(partial(product, direction), training=training)

    def _second_derivative(self, direction: Mapping[str, torch.Tensor], run: Callable[[], torch.Tensor]) -> Tensors:
        with twice_differentiable():
            gradient = self._gradient(run(), create_graph=True)
            slopes = [(g * direction[name].to(g)).sum() for name, g in gradient.items() if g.requires_grad]
            try:
                return self._gradient(sum(slopes, torch.zeros(())), constant_too=True)
            except RuntimeError as error:
                if "is not implemented" not in str(error):
                    raise
                raise ScoreError(
                    f"the loss cannot be differentiated twice ({error}); choose a criterion of first order, such as "
                    "'snip', or for 'grasp' the option exact: false"
                ) from error

    def _central_difference(self, direction: Mapping[str, torch.Tensor], run: Callable[[], torch.Tensor]) -> Tensors:
        groups = masked_parameters(self.model, self.shapes)
        start = {name: group[0].detach().clone() for name, group in groups.items()}
        length = _norm(direction[name] for name in groups)
        if not length:
            return {name: torch.zeros_like(values) for name, values in start.items()}
        resolution = max(torch.finfo(values.dtype).eps for values in start.values())
        step = resolution ** (1 / 3) * (_norm(start.values()) or 1.0) / length  # balances rounding and curvature
        draws = RngState.capture()
        sides = []
        for sign in (1, -1):
            draws.restore()
            for name, (parameter, *_) in groups.items():
                parameter.data.copy_(start[name]).add_(direction[name].to(start[name]), alpha=sign * step)
            sides.append(self._gradient(run()))
        return {name: (sides[0][name] - sides[1][name]) / (2 * step) for name in groups}

    def _prepare(self, training: bool) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None
        for group in masked_parameters(self.model, self.shapes).values():
            for parameter in group:
                parameter.requires_grad_(True)
        if training:
            self.model.train()
        else:
            set_evaluating(self.model)

    def _fresh_batches(self) -> Iterator[Any]:
        found = self.batches()
        if not isinstance(found, Iterable):
            raise ConfigError(f"batches() must return an iterable of batches, not {type(found).__name__}")
        return iter(found)

    def _loss_of(self, index: int, batch: Any) -> torch.Tensor:
        value = self.loss(self.model, batch)
        if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.is_floating_point():
            came = f"shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, torch.Tensor) else repr(value)
            raise ConfigError(f"loss(model, batch) must return one floating-point number as a tensor, not {came}")
        if not value.isfinite().all():
            raise ScoreError(
                f"the loss of batch {index} (from 0) is {value.item()}; nothing can be scored with it. Did the "
                "training diverge, or is that batch unusable?"
            )
        return value.reshape(())

    def _gradient(self, value: torch.Tensor, *, create_graph: bool = False, constant_too: bool = False) -> Tensors:
        """Return the derivative of a scalar by every parameter in scope, in canonical order; zero where unused.

        Raises `ConfigError` if it depends on none of them, unless it may be `constant_too`.
        """
        groups = masked_parameters(self.model, self.shapes)
        flat = [parameter for group in groups.values() for parameter in group]
        found: Sequence[torch.Tensor | None] = [None] * len(flat)
        if value.requires_grad:
            found = torch.autograd.grad(value, flat, allow_unused=True, create_graph=create_graph)
        if not constant_too and all(gradient is None for gradient in found):
            raise ConfigError(
                f"the loss does not depend on any of the {len(groups)} parameters in scope; loss(model, batch) must "
                "run the model it is given and return a tensor with its graph (no detach, no no_grad, no item)"
            )
        parts = iter(found)
        result = {}
        for name, group in groups.items():
            used = [gradient for gradient in (next(parts) for _ in group) if gradient is not None]
            dense = [g if g.layout is torch.strided else g.to_dense() for g in used]
            result[name] = sum(dense[1:], dense[0]) if dense else torch.zeros_like(group[0], requires_grad=False)
        return result


class _Draws:
    """A stream of random numbers of its own, that goes on where it stopped."""

    def __init__(self, seed: int):
        with seeded(seed):
            self._state = RngState.capture()

    @contextmanager
    def continued(self) -> Iterator[None]:
        before = RngState.capture()
        self._state.restore()
        try:
            yield
            self._state = RngState.capture()
        finally:
            before.restore()


def set_evaluating(model: nn.Module) -> None:
    """Put a model in evaluation mode in which recurrent layers can be differentiated.

    cuDNN's recurrent layers have a backward pass in training mode only, so torch's own stay in it, without dropout.
    """
    for module in model.modules():
        module.training = False
        if isinstance(module, nn.RNNBase) and type(module).forward in TORCH_RECURRENT_FORWARDS:
            module.training, module.dropout = True, 0.0


def _norm(tensors: Iterable[torch.Tensor]) -> float:
    return math.sqrt(sum(t.detach().cpu().double().square().sum().item() for t in tensors))


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Use only kernels whose backward pass has a derivative: not cuDNN's recurrent layers, not fused attention."""
    cudnn = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cudnn.enabled = cudnn


@contextmanager
def sandbox(model: nn.Module) -> Iterator[None]:
    """Undo on exit whatever happens inside to a model; gradients are recorded, whatever the mode outside.

    Parameters and buffers get back their identity, values, `requires_grad` and `.grad`; modules their attributes:
    training flags, hooks, lists, dicts and sets one level deep. Fused inference kernels, which skip the hooks of
    submodules, are off.
    """
    memory = _Memory(model)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        memory.restore()


class _Memory:
    """All that makes up a model's state, copied."""

    def __init__(self, model: nn.Module):
        self._attributes = [(module, dict(module.__dict__)) for module in model.modules()]
        self._containers = [
            (value, copy.copy(value))
            for _, attributes in self._attributes
            for value in attributes.values()
            if isinstance(value, dict | list | set)
        ]
        tensors = (*model.parameters(), *model.buffers())
        self._values = [(tensor, tensor.detach(), tensor.detach().clone(), tensor._version) for tensor in tensors]
        self._gradients = [(p, p.requires_grad, p.grad) for p in model.parameters()]

    def restore(self) -> None:
        for container, content in self._containers:
            container.clear()
            if isinstance(container, list):
                container.extend(content)
            else:
                container.update(content)
        for module, attributes in self._attributes:
            module.__dict__.clear()
            module.__dict__.update(attributes)
        for tensor, memory, value, version in self._values:
            if tensor.dtype != memory.dtype or tensor.data_ptr() != memory.data_ptr():
                tensor.data = memory
            if tensor._version != version or not torch.equal(tensor, value):
                tensor.data.copy_(value)  # .data leaves the version alone: nobody need know that the value was away
        for parameter, requires_grad, gradient in self._gradients:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
