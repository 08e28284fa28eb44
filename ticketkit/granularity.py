"""At which grain a selection happens: what a granularity sees of a model, and what it returns for it.

Units that are larger than a weight are in `units.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ticketkit.errors import ConfigError
from ticketkit.mask import Mask, Shape
from ticketkit.names import _is_foreign_layer, owned_parameters, tied_groups
from ticketkit.scope import masked_parameters
from ticketkit.selection import select

Array = np.ndarray[Any, np.dtype[Any]]
Scores = Mapping[str, torch.Tensor]
Counts = Mapping[str, int]
Labels = Any  # an integer array or tensor, or a tuple of them


@dataclass(frozen=True)
class Holder:
    """A place where a parameter lives: attribute `leaf` of `module`, whose canonical name is `path`."""

    path: str
    module: nn.Module
    leaf: str

    @property
    def name(self) -> str:
        """The parameter's name in this place."""
        return f"{self.path}.{self.leaf}" if self.path else self.leaf


@dataclass(frozen=True)
class Layout:
    """What a granularity looks at: the model, its masked parameters in canonical order, and who holds them.

    A tied parameter has several holders, in the order of their names; the first decides what its axes mean.
    """

    model: nn.Module
    shapes: Mapping[str, Shape]
    holders: Mapping[str, tuple[Holder, ...]]

    @classmethod
    def of(cls, model: nn.Module, shapes: Mapping[str, Shape]) -> Self:
        """Return the layout of a model's masked parameters; raises `ScopeError` listing those that it lacks.

        >>> layout = Layout.of(nn.Sequential(nn.ConvTranspose1d(4, 6, 3, groups=2)), {"0.weight": (4, 3, 3)})
        >>> layout.outputs("0.weight")[0], layout.inputs("0.weight")[0]
        (6, 4)
        """
        masked_parameters(model, shapes)
        groups = {member: names for names in tied_groups(model).values() for member in names}
        places = {}
        for name, _, module in owned_parameters(model, remove_duplicate=False):
            path, _, leaf = name.rpartition(".")
            places[name] = Holder(path, module, leaf)
        return cls(model, dict(shapes), {name: tuple(places[n] for n in groups[name]) for name in shapes})

    def kernel(self, name: str) -> _ConvNd | None:
        """Return the convolution whose kernel this parameter is."""
        place = self.holders[name][0]
        return place.module if isinstance(place.module, _ConvNd) and place.leaf == "weight" else None

    def output_axis(self, name: str) -> int:
        """Return the axis of output features: 0, or 1 for the kernel of a transposed convolution.

        It is 1 too for the weight of the `Conv1D` of transformers, a linear layer stored as (inputs, outputs).
        """
        place = self.holders[name][0]
        stored_transposed = place.leaf == "weight" and _is_foreign_layer(place.module)
        return int(stored_transposed or isinstance(self.kernel(name), _ConvTransposeNd))

    def input_axis(self, name: str) -> int | None:
        """Return the axis of input features, 0 or 1: not that of the outputs; None below two dimensions."""
        return 1 - self.output_axis(name) if len(self.shapes[name]) > 1 else None

    def outputs(self, name: str) -> tuple[int, Labels]:
        """Return how many outputs a parameter has (rows, filters, output channels) and which each weight belongs to."""
        return self._features(name, self.output_axis(name))

    def inputs(self, name: str) -> tuple[int, Labels] | None:
        """Return how many inputs a parameter has (columns, input channels) and which each weight belongs to.

        None for a parameter of fewer than two dimensions, which has none.
        """
        axis = self.input_axis(name)
        return None if axis is None else self._features(name, axis)

    def _features(self, name: str, axis: int) -> tuple[int, Labels]:
        shape, kernel = self.shapes[name], self.kernel(name)
        if not shape:
            return 1, np.zeros((), np.int64)
        own = along(np.arange(shape[axis]), axis, len(shape))
        groups = 1 if kernel is None else kernel.groups
        if axis == 0 or groups == 1:
            return shape[axis], own
        group = np.arange(shape[0]) // (shape[0] // groups)  # axis 1 counts channels inside a group
        return shape[axis] * groups, (along(group * shape[axis], 0, len(shape)), own)


def along(values: Array, axis: int, dims: int) -> Array:
    """Return one label per index of `axis`, ready to broadcast to a tensor of `dims` dimensions."""
    return values.reshape([-1 if other == axis else 1 for other in range(dims)])


@runtime_checkable
class Pattern(Protocol):
    """How a selection happens at one grain.

    `shapes` is what an allocator splits a budget between, in canonical order: parameters, or spaces of units.
    """

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """The shape of each, its product the weights in it."""
        ...

    def capacities(self, mask: Mask) -> dict[str, int]:
        """Return how many weights are still there in each of `shapes`; they sum to `mask.kept`."""
        ...

    def final_count(self, planned: int) -> int:
        """Return the budget with which a run ends that plans `planned` weights; raise `BudgetError` if none."""
        ...

    def select(self, scores: Scores, mask: Mask, keep: int | Counts, floors: Counts | None = None) -> Mask:
        """Return a mask inside `mask` of at most `keep` weights, the best by `scores`; see `ticketkit.select`.

        Each of `shapes` that has a floor keeps so many weights at least. With counts, which an allocator has already
        raised to the floors, only a pattern of whole units still needs them, to round them up.
        """
        ...


class Granularity(Protocol):
    """Says how the weights of a model group. One registered with an options model is called with `options=` too."""

    def __call__(self, layout: Layout) -> Pattern:
        """Return the pattern; raise `ScopeError` naming the parameters for which there are no units."""
        ...


def checked_pattern(pattern: object, shapes: Mapping[str, Shape]) -> Pattern:
    """Return what a granularity made of parameters of these shapes.

    Raises `ConfigError` if that is no pattern, or its parts do not hold every weight once.
    """
    if not isinstance(pattern, Pattern):
        raise ConfigError(
            "a granularity must return a pattern (shapes, capacities, final_count, select), such as Units, not "
            f"{pattern!r}"
        )
    parts, total = sum(pattern.capacities(Mask.ones(shapes)).values()), sum(map(prod, shapes.values()))
    if parts != total:
        raise ConfigError(f"a granularity must hold every weight once: its parts have {parts} weights of {total}")
    return pattern


@dataclass(frozen=True)
class Weights:
    """Every weight is a unit: exactly `ticketkit.select`."""

    shapes: Mapping[str, Shape]

    def capacities(self, mask: Mask) -> dict[str, int]:
        """Return the kept weights of every parameter."""
        return mask.counts

    def final_count(self, planned: int) -> int:
        """Return `planned`."""
        return planned

    def select(self, scores: Scores, mask: Mask, keep: int | Counts, floors: Counts | None = None) -> Mask:
        """Return the best `keep` weights; an allocator's counts already hold the floors."""
        return select(scores, mask, keep, floors=None if isinstance(keep, Mapping) else floors)
