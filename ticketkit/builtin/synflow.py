"""SynFlow: prune by what flows through a network when no data do, a little at a time."""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.rnn import PackedSequence

from ticketkit.criterion import ScoreInputs
from ticketkit.errors import ConfigError, ScoreError
from ticketkit.mask import Mask
from ticketkit.options import Options
from ticketkit.probe import Probe, set_evaluating, twice_differentiable
from ticketkit.scope import masked_parameters
from ticketkit.selection import select

Tensors = dict[str, torch.Tensor]


class SynflowOptions(Options):
    """In how many steps the network is pruned down while it is scored."""

    iterations: int = Field(default=100, ge=1)


def synflow(inputs: ScoreInputs, *, options: SynflowOptions) -> Mapping[str, torch.Tensor]:
    """Return when iterated synaptic-flow pruning drops each weight, the last first (Tanaka et al. 2020, Algorithm 1).

    A copy of the network in float64 takes the absolute values of all its parameters, norms become linear (they multiply
    by |weight| and nothing else), a softmax layer passes its input on, and all floating-point inputs are ones; integers
    such as tokens and lengths stay those of the first batch. With R the sum of all outputs, a weight scores ∂R/∂θ · θ.
    The network is pruned from the weights it has to `inputs.keep` in `iterations` steps along an exponential curve and
    scored anew at each; the scores returned number the weights by the step that drops them, then by score, so that they
    select what the algorithm keeps and nested masks for every other budget.

    Other non-linear functions stay as they are: gates that saturate let nothing flow, and attention over equal inputs
    nothing to the projections of queries and keys; give those a floor, or exclude them. The network must return its
    scores before any functional softmax. `loss` is asked only for the arguments that it calls the network with.
    """
    network = _copied(inputs.probe.model)
    groups = masked_parameters(network, inputs.mask.shapes)
    _linearise(network)
    args, kwargs = map_tensors(first_call(inputs.probe), _ones)
    mask = inputs.mask
    places = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in mask.shapes.items()}
    place = 0
    for keep in _exponential(mask.kept, inputs.keep, options.iterations):
        scores = _flow(lambda: network(*args, **kwargs), groups, mask)
        remaining = select(scores, mask, keep)
        place = _number(places, scores, mask - remaining, place)
        mask, dropped_by = remaining, scores
    _number(places, dropped_by, mask, place)
    return places


class _CalledError(BaseException):
    """Carries the arguments of a call out of the user's loss, past any `except Exception` there."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]):
        super().__init__()
        self.arguments = (args, kwargs)


def first_call(probe: Probe) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with which the loss calls the network on the first batch; the network is not run."""

    def intercept(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _CalledError(args, kwargs)

    def arguments(run: Callable[[], torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        probe.model.register_forward_pre_hook(intercept, with_kwargs=True)
        try:
            run()
        except _CalledError as called:
            return called.arguments
        raise ConfigError(
            f"the loss never calls the {type(probe.model).__name__} itself, as model(...); calls of its submodules or "
            "methods alone do not show how the whole network is run"
        )

    return next(probe.per_batch(arguments))


def map_tensors(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return nested tuples, lists, mappings and packed sequences with a function of every tensor inside."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, PackedSequence):
        return value._replace(data=function(value.data))
    if isinstance(value, tuple):
        mapped = [map_tensors(part, function) for part in value]
        return type(value)(*mapped) if type(value) is not tuple else tuple(mapped)
    if isinstance(value, list):
        return [map_tensors(part, function) for part in value]
    if isinstance(value, Mapping):
        return {key: map_tensors(part, function) for key, part in value.items()}
    return value


def _ones(tensor: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(tensor, dtype=torch.float64) if tensor.is_floating_point() else tensor


def _copied(model: nn.Module) -> nn.Module:
    """Return a deep copy; tensors that a forward pass has left in attributes, graph and all, are shared detached."""
    leftovers = [v for m in model.modules() for v in vars(m).values() if isinstance(v, torch.Tensor) and not v.is_leaf]
    return copy.deepcopy(model, {id(tensor): tensor.detach() for tensor in leftovers})


def _exponential(kept: int, keep: int, iterations: int) -> Iterator[int]:
    """Yield falling counts that end at `keep`; each is the same share of the one before it."""
    share = max(keep, 1) / max(kept, 1)
    for step in range(1, iterations):
        yield min(kept, max(keep, round(kept * share ** (step / iterations))))
    yield keep


def _linearise(network: nn.Module) -> None:
    """Turn a network in place into one whose every parameter and norm only adds to its output, in float64."""
    network.double()
    set_evaluating(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.requires_grad_(False).abs_()
    for module in network.modules():
        if (linear := _linear_forward(module)) is not None:
            module.forward = linear


def _linear_forward(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return what a norm or softmax layer does here: multiply by its weight along the right dimension, or nothing."""
    if isinstance(module, nn.Softmax | nn.LogSoftmax | nn.LocalResponseNorm):
        return lambda values: values
    if not isinstance(module, _BatchNorm | _InstanceNorm | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
        return None
    weight = module.weight
    if weight is None:
        return lambda values: values
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return lambda values: values * weight

    def scaled(values: torch.Tensor) -> torch.Tensor:
        unbatched = isinstance(module, _InstanceNorm) and values.dim() == module._get_no_batch_dim()  # type: ignore[no-untyped-call]
        shape = [1] * values.dim()
        shape[0 if unbatched else 1] = -1
        return values * weight.reshape(shape)

    return scaled


def _flow(run: Callable[[], Any], groups: Mapping[str, list[nn.Parameter]], mask: Mask) -> Tensors:
    """Return ∂R/∂θ · θ for every parameter in scope of a linearised network, whose pruned weights are set to zero."""
    for name, group in groups.items():
        for parameter in group:
            with torch.no_grad():
                parameter.masked_fill_(~mask[name].to(parameter.device), 0)
            parameter.requires_grad_(True)
    outputs: list[torch.Tensor] = []
    with torch.inference_mode(False), torch.enable_grad(), twice_differentiable():
        map_tensors(run(), lambda tensor: outputs.append(tensor) or tensor)  # type: ignore[func-returns-value]
        total = sum((t.sum() for t in outputs if t.is_floating_point()), torch.zeros((), dtype=torch.float64))
        if not total.requires_grad:
            raise ScoreError(
                "no synaptic flow: the floating-point outputs of the network (in tensors, tuples, lists or mappings) "
                "do not depend on any parameter in scope"
            )
        flat = [parameter for group in groups.values() for parameter in group]
        gradients = torch.autograd.grad(total, flat, allow_unused=True, materialize_grads=True)
    slopes = iter(gradients)
    return {
        name: sum(((next(slopes) * p.detach()).cpu() for p in group), torch.zeros(mask.shapes[name]).double())
        for name, group in groups.items()
    }


def _number(places: Tensors, scores: Tensors, dropped: Mask, first: int) -> int:
    """Number the dropped weights from `first` on in the order of their scores, equals alike; return what follows."""
    flat = torch.cat([scores[name][dropped[name]] for name in dropped])
    values, numbers = flat.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    for (name, flags), own in zip(dropped.items(), numbers.split(list(dropped.counts.values())), strict=True):
        places[name][flags] = (own + first).double()
    return first + len(values)
