"""A moment of a model and of what is global beside it, to be compared with a later one, bit by bit."""

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from ticketkit.rng import RngState
from ticketkit.snapshot import same_bits

BY_IDENTITY: Any = object.__eq__  # how objects compare whose class does not say
PLAIN = (bool, int, float, complex, str, bytes, type(None))


@dataclass(frozen=True, eq=False)
class Moment:
    """A model's state as it is at one time: tensors copied, everything else by identity."""

    model: nn.Module
    facts: Mapping[str, Any]
    all: bool

    @classmethod
    def of(cls, model: nn.Module, *, all: bool = True) -> Self:
        """Return the present tensors, gradients and modes, and with `all` everything else that a reader must not touch.

        That is: what the modules hold (hooks, caches, submodules), the global random generators, torch's settings.
        """
        facts = _tensors_and_modes(model)
        return cls(model, facts | _attributes(model) | _settings() | _generators() if all else facts, all)

    def changes(self) -> list[str]:
        """Return what is not as it was, in words; nothing if all is."""
        now = Moment.of(self.model, all=self.all).facts
        gone = [name for name in self.facts if name not in now or not _unchanged(self.facts[name], now[name])]
        return gone + [name for name in now if name not in self.facts]


def alike(one: Any, other: Any) -> bool:
    """Say whether two nested values are the same: tensors and arrays bit by bit, objects by what they hold."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return same_bits(one.detach().cpu().contiguous(), other.detach().cpu().contiguous())
    if isinstance(one, np.ndarray):
        return bool(one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes())
    if isinstance(one, PLAIN):
        return bool(one == other or (one != one and other != other))  # NaN is like NaN
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if is_dataclass(one) or (type(one).__eq__ is BY_IDENTITY and not callable(one)):
        return alike(_held(one), _held(other))
    return bool(one == other)


def first_difference(one: torch.Tensor, other: torch.Tensor) -> str:
    """Return the first place where two tensors differ in their bits, and what is there; or what else differs."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return f" is {one.dtype} {tuple(one.shape)}, then {other.dtype} {tuple(other.shape)}"
    place = next(i for i in np.ndindex(tuple(one.shape)) if not alike(one[i], other[i]))
    return f"{list(place)} is {one[place].item()!r}, then {other[place].item()!r}"


def _held(thing: Any) -> dict[str, Any]:
    """Return what an object holds, in its slots or not."""
    slots = [slot for kind in type(thing).__mro__ for slot in getattr(kind, "__slots__", ())]
    return {**{slot: getattr(thing, slot, None) for slot in slots}, **getattr(thing, "__dict__", {})}


def _tensors_and_modes(model: nn.Module) -> dict[str, Any]:
    facts: dict[str, Any] = {f"the mode of module {path!r}": part.training for path, part in model.named_modules()}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        facts[f"the values of parameter {name!r}"] = _copied(parameter)
        facts[f"requires_grad of parameter {name!r}"] = parameter.requires_grad
        facts[f"the gradient of parameter {name!r}"] = None if gradient is None else _copied(gradient)
    for name, buffer in model.named_buffers():
        facts[f"the values of buffer {name!r}"] = _copied(buffer)
    return facts


def _attributes(model: nn.Module) -> dict[str, Any]:
    """Return what every module holds, one level deep."""
    facts: dict[str, Any] = {}
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            inner = list(value.items()) if isinstance(value, dict) else value
            held = tuple(inner) if isinstance(inner, list | tuple | set) else inner
            facts[f"attribute {key!r} of module {path!r}"] = held
    return facts


def _settings() -> dict[str, Any]:
    return {
        "torch's default dtype": str(torch.get_default_dtype()),
        "torch's grad mode": torch.is_grad_enabled(),
        "torch's number of threads": torch.get_num_threads(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
    }


@dataclass(frozen=True, eq=False)
class _Values:
    """A tensor's values, copied."""

    tensor: torch.Tensor


def _copied(tensor: torch.Tensor) -> _Values:
    dense = tensor.detach() if tensor.layout is torch.strided else tensor.detach().to_dense()
    return _Values(dense.clone())


def _generators() -> dict[str, Any]:
    """Return the states of the global generators, in a form that compares by value."""
    state = RngState.capture()
    numpy = tuple(part.tolist() if isinstance(part, np.ndarray) else part for part in state.numpy)
    return {
        "the state of Python's random": repr(state.python),
        "the state of numpy.random": repr(numpy),
        "the state of torch's global generator": _Values(state.torch_cpu),
    }


def _unchanged(before: Any, now: Any) -> bool:
    """Say whether a fact still holds: copied values by their bits, plain ones by value, all else by identity."""
    if isinstance(before, _Values):
        return isinstance(now, _Values) and alike(before.tensor, now.tensor)
    if before is now:
        return True
    if isinstance(before, tuple) and isinstance(now, tuple):
        return len(before) == len(now) and all(map(_unchanged, before, now))
    return isinstance(before, PLAIN) and type(before) is type(now) and bool(before == now)
