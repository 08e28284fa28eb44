"""Hold pruned weights at exactly zero while anybody's training loop runs.

Three guards, all in place on the live parameters, none of which changes the model's structure:
gradients of pruned weights are cleared as soon as they are accumulated, before anything like clipping can see them;
an optimizer's stale state for pruned weights is cleared before its first step; and after every optimizer step pruned
weights are cleared again, so that momentum, weight decay or noise cannot bring them back.
Clearing is a bitwise AND with an integer mask: exact +0.0 even for NaN and infinity, at the cost of one memory pass.
"""

import atexit
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
from torch import nn
from torch.optim import LBFGS, Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ticketkit.errors import NoEffectWarning, ScopeError
from ticketkit.mask import Mask, Shape
from ticketkit.names import named_parameters
from ticketkit.scope import masked_parameters
from ticketkit.sharding import Part, local

INTEGER_OF_WIDTH = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
CHUNK = 1 << 16  # weights whose mask is spelled out at a time by the lean way; a multiple of 8

# For each byte of a packed mask, the integers of its eight weights, by their width in bytes.
KEPT = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
SPELLED = {width: np.negative(KEPT.astype(f"i{width}")) for width in INTEGER_OF_WIDTH}


@contextmanager
def enforced(model: nn.Module, mask: Mask, *, lean: bool = False) -> Iterator["Enforcement"]:
    """Hold `mask` on `model` inside the `with` block: pruned weights are zero at entry and after every optimizer step.

    Works with any `torch.optim.Optimizer`, created before or inside the block, any loop, any number of optimizers;
    kept weights are bit-equal at entry. On exit every hook is gone and the weights stay as they are. `lean` holds the
    mask in a bit a weight (on a GPU, a byte) instead of a weight's own size; a step then takes longer.
    Raises `ScopeError` when the model lacks a masked parameter or has it in another shape, and when an optimizer steps
    over tensors without gradients while the model's have some (it was built for another copy of the model).

    >>> model = nn.Linear(2, 1, bias=False)
    >>> with enforced(model, Mask({"weight": torch.tensor([[True, False]])})):
    ...     _ = model(torch.ones(1, 2)).sum().backward()
    ...     torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9).step()
    >>> model.weight[0, 1].item()
    0.0
    """
    enforcement = Enforcement(model, mask, lean=lean)
    enforcement.apply()
    enforcement.attach()
    try:
        yield enforcement
    finally:
        revived = enforcement.clear_revived() if enforcement.detach() else []
    if revived:
        warnings.warn(
            f"pruned weights of {', '.join(revived)} were changed by something other than a torch.optim.Optimizer and "
            "have been set to zero only now; the network did not train as the mask says",
            NoEffectWarning,
            stacklevel=3,
        )


class Enforcement:
    """One mask held on one model. Parameters whose mask is all ones cost nothing and are left alone."""

    def __init__(self, model: nn.Module, mask: Mask, *, lean: bool = False):
        self._model = model
        groups = masked_parameters(model, mask.shapes)
        sizes, counts = mask.sizes, mask.counts
        self._scope = {id(p): name for name, group in groups.items() for p in group}
        self._parameters = {name: group for name, group in groups.items() if counts[name] < sizes[name]}
        self._all_parameters = groups
        self._mask = mask
        kind = _LeanKeep if lean else _Keep
        self._keep = {name: kind(*_here(mask, name, group[0])) for name, group in self._parameters.items()}
        self._met: WeakSet[Optimizer] = WeakSet()
        self._steps: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()
        self._averages: list[nn.Module] = []
        self._handles: list[Any] = []
        self.steps = 0
        self.foreign_steps = 0
        self._first_step = 0
        self.on_step: Callable[[bool], object] | None = None
        """Called after every step of any optimizer, once one has stepped over the scope; is told whether that makes all
        that do so have taken as many."""
        self.before_step: Callable[[bool], object] | None = None
        """Called before every step of any optimizer; is told whether it is the first to take a step over the scope."""

    def apply(self) -> None:
        """Set every pruned weight to zero now, also in averaged models; a second call changes nothing."""
        for group in (self._parameters, *map(self._pruned_in, self._averages)):
            for name, parameters in group.items():
                for parameter in parameters:
                    self._keep[name].clear_pruned(parameter)

    def hold_average(self, average: nn.Module) -> None:
        """Clear pruned weights in a running average of the model too: now, and whenever `apply` is called.

        An average (EMA, SWA) of weights that are zero stays zero; what it holds of a dense phase would not.
        """
        inner = getattr(average, "module", None)
        fits = {name: tuple(p.shape) for name, p in named_parameters(average, remove_duplicate=False)}
        if isinstance(inner, nn.Module) and not self._mask.shapes.items() <= fits.items():
            average = inner  # a wrapper of another library's
        self._pruned_in(average)  # raises unless it has the masked parameters
        self._averages.append(average)
        self.apply()

    def _pruned_in(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        groups = masked_parameters(model, self._mask.shapes)
        return {name: groups[name] for name in self._parameters}

    def check_optimizer(self, *optimizers: Optimizer) -> None:
        """Raise `ScopeError` naming the trainable parameters in scope that none of the optimizers holds."""
        held = {id(p) for optimizer in optimizers for p in _parameters_of(optimizer)}
        missing = [
            f"{name} {tuple(group[0].shape)}"
            for name, group in self._all_parameters.items()
            if group[0].requires_grad and not any(id(p) in held for p in group)
        ]
        if missing:
            raise ScopeError(
                f"the optimizer holds {len(held)} tensors, but not these parameters in scope: {', '.join(missing)}; "
                "build it from this model's parameters, after the model was copied, wrapped or moved"
            )

    @property
    def is_idle(self) -> bool:
        """Whether no optimizer has stepped, and none had before a round that is resumed."""
        return not (self._steps or self.foreign_steps or self._first_step)

    @property
    def several(self) -> bool:
        """Whether more than one optimizer has stepped."""
        return len(self._steps) > 1 or bool(self.foreign_steps)

    def continue_from(self, steps: int) -> None:
        """Count on from a number of steps that were taken before, in a round that is resumed."""
        self._first_step = self.steps = steps

    def check_trained(self) -> None:
        """Raise `ScopeError` if optimizers stepped, but never over a parameter in scope."""
        if self.foreign_steps and not self.steps:
            raise ScopeError(
                f"optimizers took {self.foreign_steps} steps in this round, none of them over any of the "
                f"{len(self._all_parameters)} parameters in scope; build the optimizer from this model's parameters, "
                "after the model was copied, wrapped or moved"
            )

    def attach(self) -> None:
        """Install the hooks."""
        self._handles = [
            _on_gradient(parameter, partial(_clear_pruned_gradient, self._keep[name]))
            for name, group in self._parameters.items()
            for parameter in group
        ]
        for group in self._parameters.values():
            for parameter in group:
                if parameter.grad is not None:
                    _clear_pruned_gradient(self._keep[self._scope[id(parameter)]], parameter)
        self._handles.append(register_optimizer_step_pre_hook(self._before_step))
        self._handles.append(register_optimizer_step_post_hook(self._after_step))
        _ATTACHED.add(self)

    def detach(self) -> bool:
        """Remove the hooks, and say whether there were any."""
        attached = bool(self._handles)
        for handle in self._handles:
            handle.remove()
        self._handles = []
        _ATTACHED.discard(self)
        return attached

    def clear_revived(self) -> list[str]:
        """Clear pruned weights a last time; return the parameters of which some were not zero any more.

        These are the model's present parameters: one that was replaced inside the block has not been held.
        """
        present = self._pruned_in(self._model)
        revived = [name for name, group in present.items() if any(_has_revived(p, self._keep[name]) for p in group)]
        for name in revived:
            for parameter in present[name]:
                self._keep[name].clear_pruned(parameter)
        self.apply()
        return revived

    def _before_step(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        if self.before_step is None and optimizer in self._met:
            return
        parameters = _parameters_of(optimizer)
        in_scope = [parameter for parameter in parameters if id(parameter) in self._scope]
        if self.before_step is not None:
            self.before_step(bool(in_scope) and self._steps.get(optimizer, self._first_step) == self.steps)
        if optimizer in self._met:
            return
        self._met.add(optimizer)
        if not in_scope:
            self._refuse_stale_copy(parameters)
        for parameter in in_scope:
            name = self._scope[id(parameter)]
            if name in self._keep:
                for value in optimizer.state.get(parameter, {}).values():
                    if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                        self._keep[name].clear_pruned(value)
        if isinstance(optimizer, LBFGS) and self._remembers_pruned(optimizer, parameters):
            optimizer.state.clear()  # its flat history would move pruned weights inside a step, between closures

    def _remembers_pruned(self, optimizer: LBFGS, parameters: Sequence[torch.Tensor]) -> bool:
        """Say whether the flat vectors of an LBFGS history hold anything for a pruned weight."""
        names = [self._scope.get(id(parameter)) for parameter in parameters]
        kept = [
            _pruned(self._keep[name].packed, self._keep[name].shape).flatten()
            if name in self._keep
            else torch.zeros(local(parameter).numel(), dtype=torch.bool)
            for name, parameter in zip(names, parameters, strict=True)
        ]
        pruned = torch.cat(kept).to(parameters[0].device)
        for state in optimizer.state.values():
            lists = [value if isinstance(value, list) else [value] for value in state.values()]
            vectors = [v for values in lists for v in values if isinstance(v, torch.Tensor) and v.shape == pruned.shape]
            if any(bool(vector[pruned].any()) for vector in vectors):
                return True
        return False

    def _after_step(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        ours = [p for p in _parameters_of(optimizer) if id(p) in self._scope]
        if not ours:
            self.foreign_steps += 1
            self._tell(together=False)
            return
        for parameter in ours:
            if keep := self._keep.get(self._scope[id(parameter)]):
                keep.clear_pruned(parameter)
        self._steps[optimizer] = self._steps.get(optimizer, self._first_step) + 1
        self.steps = max(self._steps.values())
        self._tell(together=len(set(self._steps.values())) == 1)

    def _tell(self, *, together: bool) -> None:
        if self.on_step is not None and self._steps:
            self.on_step(together)

    def _refuse_stale_copy(self, parameters: Sequence[torch.Tensor]) -> None:
        ours = any(group[0].grad is not None for group in self._all_parameters.values())
        if ours and all(parameter.grad is None for parameter in parameters):
            raise ScopeError(
                f"an optimizer steps over {len(parameters)} tensors of which none has a gradient, while the parameters "
                "in scope have gradients and are in no optimizer; build it from this model's parameters, after the "
                "model was copied, wrapped or moved"
            )


class _Keep:
    """The integer mask of one parameter: all bits set where a weight is kept, none where it is pruned.

    Of a parameter that is distributed over ranks, it covers the part that is here.
    """

    def __init__(self, packed: bytes, shape: Shape):
        self.packed = packed
        self.shape = shape
        self._integers: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}

    def clear_pruned(self, tensor: torch.Tensor) -> None:
        """Set the pruned entries of a tensor shaped and placed like the parameter to +0.0."""
        values = local(tensor)
        bits = values.view(INTEGER_OF_WIDTH[values.element_size()])
        bits.bitwise_and_(self._for(values.device, bits.dtype))

    def _for(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        if (device, dtype) not in self._integers:
            integers = _integers(self.packed, prod(self.shape), dtype.itemsize)
            self._integers[device, dtype] = torch.from_numpy(integers).reshape(self.shape).to(device)
        return self._integers[device, dtype]


class _LeanKeep:
    """The mask of one parameter in a bit a weight, spelled out chunk by chunk; elsewhere than on a CPU, in a byte."""

    def __init__(self, packed: bytes, shape: Shape):
        self.packed = packed
        self.shape = shape
        self._pruned: dict[torch.device, torch.Tensor] = {}

    def clear_pruned(self, tensor: torch.Tensor) -> None:
        """Set the pruned entries of a tensor shaped and placed like the parameter to +0.0."""
        values = local(tensor)
        if values.device.type == "cpu" and values.is_contiguous():
            width = values.element_size()
            integers = values.view(INTEGER_OF_WIDTH[width]).reshape(-1).numpy()
            for start in range(0, len(integers), CHUNK):
                chunk = integers[start : start + CHUNK]
                chunk &= _integers(self.packed[start // 8 : (start + CHUNK) // 8], len(chunk), width)
            return
        if values.device not in self._pruned:
            self._pruned[values.device] = _pruned(self.packed, self.shape).to(values.device)
        values.masked_fill_(self._pruned[values.device], 0.0)


_ATTACHED: WeakSet[Enforcement] = WeakSet()


@atexit.register
def _detach_all() -> None:
    """Remove all hooks before the interpreter ends: torch 2.13 aborts if it has to take apart a tensor that has one."""
    for enforcement in list(_ATTACHED):
        enforcement.detach()


def _integers(packed: bytes, size: int, width: int) -> np.ndarray[Any, np.dtype[Any]]:
    """Return an integer of `width` bytes for each of the first `size` weights: -1 where kept, 0 where pruned."""
    return np.take(SPELLED[width], np.frombuffer(packed, np.uint8), axis=0).reshape(-1)[:size]


def _on_gradient(parameter: nn.Parameter, hook: Callable[[torch.Tensor], None]) -> Any:
    """Call a hook whenever a gradient is accumulated, also in a parameter unfrozen only later; return its handle."""
    trainable = parameter.requires_grad
    parameter.requires_grad_(True)
    handle = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    parameter.requires_grad_(trainable)
    return handle


def _clear_pruned_gradient(keep: _Keep | _LeanKeep, parameter: torch.Tensor) -> None:
    """Clear the pruned entries of a parameter's gradient, dense or sparse."""
    gradient = parameter.grad
    if gradient is None:
        return
    if gradient.layout is not torch.strided:
        parameter.grad = gradient = gradient.to_dense()
    keep.clear_pruned(gradient)


def _has_revived(tensor: torch.Tensor, keep: _Keep | _LeanKeep) -> bool:
    """Say whether any pruned entry differs from zero."""
    values = local(tensor)
    return bool((values != 0).logical_and_(_pruned(keep.packed, keep.shape).to(values.device)).any())


def _here(mask: Mask, name: str, parameter: torch.Tensor) -> tuple[bytes, Shape]:
    """Return the packed mask and the shape of what is here of a parameter."""
    part = Part.of(parameter)
    return part.bits(mask.bits(name)), part.sizes


def _pruned(packed: bytes, shape: Shape) -> torch.Tensor:
    """Return True where a packed mask of a shape prunes."""
    flags = np.unpackbits(np.frombuffer(packed, np.uint8), count=prod(shape), bitorder="little")
    return torch.from_numpy(flags ^ 1).view(torch.bool).reshape(shape)


def _parameters_of(optimizer: Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
