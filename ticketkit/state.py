"""Training state beyond the network (what `state_dict()` returns) as JSON and tensors, written without pickle.

Any nesting of dicts, lists and tuples over tensors, NumPy arrays, numbers, strings, bytes, dtypes and None is kept with
its types, so that an optimizer, a scheduler, a gradient scaler or a sampler gets back exactly what it gave. Of what the
ranks have, rank 0's is written, and every rank gets it; an `RngState` in it is written for each, and each gets its own.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from ticketkit.distributed import collect
from ticketkit.errors import ConfigError, StorageError
from ticketkit.rng import EveryRank, RngState
from ticketkit.sharding import is_sharded, placed_like

Tensors = dict[str, torch.Tensor]


class Stateful(Protocol):
    """What can be tracked: optimizers, schedulers, scalers, averaged models, samplers."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state; it may share memory with the object."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take over a state that `state_dict` returned."""
        ...


def copied(state: Any) -> Any:
    """Return a nested state that shares no memory with the given one.

    Tensors come to the CPU, except those that are distributed over ranks: they stay where they are.
    """
    return _mapped(state, lambda tensor: _on_cpu(tensor).clone())


def collected(state: Any) -> Any:
    """Return a nested state as rank 0 can write it for all: tensors whole, on its CPU; all ranks must ask for it."""
    return _mapped(state, collect, EveryRank.collect)


def load_state(thing: Stateful, state: dict[str, Any]) -> None:
    """Let an object take over a copy of a state; its whole tensors are distributed as the object's own are.

    An optimizer has no tensors before its first step: those of its state go where their parameters are.
    """
    if isinstance(thing, Optimizer):
        _check_same_kind(thing, state)
        thing.load_state_dict(copied(state))
        for parameter, values in thing.state.items():
            for key, value in values.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    values[key] = placed_like(value, parameter)
        return
    own = thing.state_dict() if isinstance(thing, nn.Module) else {}
    thing.load_state_dict({k: placed_like(v, own[k]) if k in own else v for k, v in copied(state).items()})


def _check_same_kind(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for the state of another kind of optimizer, which torch takes and stumbles over later."""
    own = set(optimizer.defaults)
    for group in state.get("param_groups", ()):
        there = group.keys() - {"params"}
        if missing := sorted(own - there):
            raise ConfigError(
                f"a {type(optimizer).__name__} gets the state of an optimizer that has no {', '.join(missing)} but "
                f"{', '.join(sorted(there - own)) or 'nothing else'}: it was saved of another kind, or by another "
                "version of torch; go on with the optimizer that the run was started with"
            )


def _on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach() if is_sharded(tensor) else tensor.detach().cpu()


def _mapped(
    state: Any, function: Callable[[torch.Tensor], torch.Tensor], generators: Callable[[RngState], Any] = lambda s: s
) -> Any:
    """Return a nested state with functions applied to its tensors and generators' states, all else copied."""
    if isinstance(state, torch.Tensor):
        return function(state)
    if isinstance(state, RngState):
        return generators(state)
    if isinstance(state, np.ndarray):
        return state.copy()
    if isinstance(state, Mapping):
        return {key: _mapped(value, function, generators) for key, value in state.items()}
    if isinstance(state, list | tuple):
        values = [_mapped(value, function, generators) for value in state]
        return tuple(values) if isinstance(state, tuple) else values
    return state


def flattened(state: Any, path: str, tensors: Tensors) -> Any:
    """Return a state as JSON; its tensors are put into `tensors`, not copied, under keys that begin with `path`.

    Mappings of any kind come back as dicts, in their order.

    Raises `StorageError` naming the place of anything that cannot be written, such as a function.

    >>> tensors = {}
    >>> flattened({"step": torch.tensor(3.0), "betas": (0.9, 0.95)}, "adam", tensors)
    ['d', [['step', ['t', 'adam.step#0']], ['betas', ['u', [0.9, 0.95]]]]]
    """
    if state is None or isinstance(state, bool | int | str):
        return state
    if isinstance(state, float):
        return state if np.isfinite(state) else ["f", repr(float(state))]
    if isinstance(state, torch.Tensor):
        key = f"{path}#{len(tensors)}"  # numbered: the paths of {"a.b": x} and {"a": {"b": y}} are spelled alike
        tensors[key] = state.detach().cpu().contiguous()
        return ["t", key]
    if isinstance(state, np.ndarray) and state.dtype.kind in "biuf":
        key = f"{path}#{len(tensors)}"
        tensors[key] = torch.from_numpy(np.array(state, order="C"))
        return ["n", key]
    if isinstance(state, np.generic) and state.dtype.kind in "biuf":
        return ["g", state.dtype.str, state.tobytes().hex()]
    if isinstance(state, bytes):
        return ["b", state.hex()]
    if isinstance(state, torch.dtype):
        return ["y", str(state).removeprefix("torch.")]
    if isinstance(state, RngState):
        state = EveryRank((state,))
    if isinstance(state, EveryRank):
        parts = [flattened(one.to_tensors(), f"{path}.{index}", tensors) for index, one in enumerate(state.states)]
        return ["r", parts]
    if isinstance(state, Mapping):
        return ["d", [[_key(key, path), flattened(value, f"{path}.{key}", tensors)] for key, value in state.items()]]
    if isinstance(state, list | tuple):
        values = [flattened(value, f"{path}.{index}", tensors) for index, value in enumerate(state)]
        return ["u" if isinstance(state, tuple) else "l", values]
    raise StorageError(
        f"the state of {path!r} is a {type(state).__name__}, which cannot be written without pickle; track an object "
        "whose state_dict() holds tensors, arrays, numbers, strings, lists, tuples and dicts"
    )


def unflattened(skeleton: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return the state that `flattened` took apart."""
    if not isinstance(skeleton, list):
        return skeleton
    kind, *content = skeleton
    match kind:
        case "f":
            return float(content[0])
        case "t":
            return tensors[content[0]].clone()
        case "n":
            return tensors[content[0]].numpy().copy()
        case "g":
            return np.frombuffer(bytes.fromhex(content[1]), content[0])[0]
        case "b":
            return bytes.fromhex(content[0])
        case "y":
            return getattr(torch, content[0])
        case "r":
            return EveryRank(tuple(RngState.from_tensors(unflattened(one, tensors)) for one in content[0])).mine
        case "d":
            return {key: unflattened(value, tensors) for key, value in content[0]}
        case "u":
            return tuple(unflattened(value, tensors) for value in content[0])
        case "l":
            return [unflattened(value, tensors) for value in content[0]]
    raise StorageError(f"unknown kind of state {kind!r}; the file was written by a later version of ticketkit")


def _key(key: Any, path: str) -> int | str:
    if isinstance(key, bool) or not isinstance(key, int | str):
        raise StorageError(f"the state of {path!r} has the key {key!r}; only strings and whole numbers can be written")
    return key
