"""From a masked network to one for inference: idle units out, attention apart where that pays, layers in forms."""

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Self

from torch import nn

from ticketkit.errors import ConfigError
from ticketkit.names import named_modules
from ticketkit.roles import HiddenUnits
from ticketkit.runtime.attention import obstacle, taken_apart
from ticketkit.runtime.choosing import (
    LEAST_GAIN,
    READ,
    Choice,
    Runtime,
    applied,
    captured,
    choose,
    compact_share,
    density_of,
)
from ticketkit.runtime.idle import Removal, found_units, remove_idle_
from ticketkit.runtime.layers import matrices
from ticketkit.timing import timed

AS_FAST = "taken apart and compressed it was no faster"


@dataclass(frozen=True)
class Structure:
    """What became of the network's structure: where attention was taken apart, and what was removed."""

    apart: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Paths of attention with the seconds of both kinds, where they were measured."""
    removed: tuple[Removal, ...] = ()

    @classmethod
    def read(cls, facts: Any) -> Self:
        """Return what a file holds; raises `TypeError`, `KeyError` or `AttributeError` for anything else."""
        apart = {path: dict(seconds) for path, seconds in facts["apart"].items()}
        return cls(apart, tuple(Removal.read(each) for each in facts["removed"]))

    def facts(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "apart": {path: dict(seconds) for path, seconds in self.apart.items()},
            "removed": [removal.facts() for removal in self.removed],
        }

    def given_to(self, module: nn.Module) -> nn.Module:
        """Return a freshly built module with this structure and any values; it may be changed.

        Raises `ConfigError` or `AttributeError` if it is another model.
        """
        for path in self.apart:
            found = module.get_submodule(path)
            if not isinstance(found, nn.MultiheadAttention) or obstacle(found) is not None:
                raise ConfigError(f"{path or 'it'} is no attention that can be taken apart")
            module = taken_apart(module, path)
        for removal in self.removed:
            removal.apply_(module)
        return module


def prepared(
    module: nn.Module,
    runtime: Runtime,
    example: tuple[Any, ...] | None = None,
    units: Iterable[HiddenUnits] = (),
) -> tuple[nn.Module, dict[str, Choice], Structure]:
    """Return a module for inference, the form of each layer, and its structure; the module given is used up.

    It is in evaluation mode. `units` are hidden units that its own modules declare. Raises `ConfigError` for a compact
    runtime of a network in which nothing can be removed.
    """
    if runtime == "dense":
        return module, choose(module, runtime), Structure()
    declared = list(units)
    removed = remove_idle_(module, lambda network: [*found_units(network), *declared])
    apart, whole = dict[str, Mapping[str, float]](), dict[str, str]()
    for path, owner, reason in _attentions(module):
        if reason is None:
            seconds = _worth(module, path, owner, runtime, example)
            if seconds is None:
                reason = AS_FAST if runtime == "auto" else None
            else:
                apart[path] = seconds
        if reason is not None:
            whole[path] = reason
    for path in apart:
        module = taken_apart(module, path)
    removed += remove_idle_(module, found_units)
    choices = choose(module, runtime, example)
    for path, choice in choices.items():
        if path in whole and choice.left_dense is not None:
            choices[path] = replace(choice, left_dense=whole[path])
    if runtime == "compact" and not removed and all(choice.form == "dense" for choice in choices.values()):
        raise ConfigError(
            "nothing can be compacted: no layer has a whole row or column of zeros; prune with a granularity that "
            "removes units, such as rnn_unit, row, filter or head, or use the runtime sparse"
        )
    return applied(module, choices), choices, Structure(apart, tuple(removed))


def _attentions(module: nn.Module) -> Iterator[tuple[str, str, str | None]]:
    """Yield the path of each attention, that of the layer whose fused path it is in, and why it must stay whole."""
    layers = dict(named_modules(module))
    for path, layer in layers.items():
        if not isinstance(layer, nn.MultiheadAttention):
            continue
        above = path.rpartition(".")[0]
        fused = bool(path) and isinstance(layers.get(above), nn.TransformerEncoderLayer)
        own = fused and type(layers[above]) is not nn.TransformerEncoderLayer
        yield path, above if fused else path, READ if own else obstacle(layer)


def _worth(
    module: nn.Module, path: str, owner: str, runtime: Runtime, example: tuple[Any, ...] | None
) -> Mapping[str, float] | None:
    """Return the seconds of an attention whole and apart, nothing where that is a decree; None to leave it whole."""
    layer = module.get_submodule(owner)
    inside = [part for _, part in named_modules(layer) if matrices(part)]
    if all(density_of(part) == 1 for part in inside):
        return None
    if runtime != "auto":
        return {} if runtime == "sparse" or any(compact_share(part) < 1 for part in inside) else None
    if example is None:
        raise ConfigError("runtime 'auto' measures each layer, so it needs example inputs of the module")
    found = captured(module, example, {owner: layer}, {}).get(owner)
    if found is None:
        return None
    args, named = found
    apart = taken_apart(deepcopy(layer), path.removeprefix(owner).removeprefix("."))
    remove_idle_(apart, found_units)
    made = applied(apart, choose(apart, "auto", args, named))
    seconds = timed({"whole": lambda: layer(*args, **named), "apart": lambda: made(*args, **named)}, repeats=9)
    return seconds if seconds["apart"] < LEAST_GAIN * seconds["whole"] else None
