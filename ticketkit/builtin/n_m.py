"""The granularity `n_m`: of every m consecutive weights, n stay."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Self

import numpy as np
import torch
from pydantic import PositiveInt, model_validator

from ticketkit.builtin.granularities import refuse_missing
from ticketkit.contenders import CHUNK
from ticketkit.criterion import flat_slice, gathered
from ticketkit.errors import BudgetError, ConfigError
from ticketkit.granularity import Array, Counts, Layout, Scores
from ticketkit.mask import Mask, Shape
from ticketkit.members import kept_run
from ticketkit.options import Options
from ticketkit.selection import select, whole_number


class NOfMOptions(Options):
    """How many of how many consecutive weights stay."""

    n: PositiveInt = 2
    m: PositiveInt = 4

    @model_validator(mode="after")
    def _prunes(self) -> Self:
        if self.n >= self.m:
            raise ValueError(f"n must be below m to prune anything, not {self.n}:{self.m}")
        return self


@dataclass(frozen=True)
class NOfM:
    """At least n of every m consecutive weights along an axis stay, and exactly n at the end.

    Groups start at index 0 of the axis; what is left over at its end is a smaller group, which keeps at most n too.
    On the way there a group may keep more: its best n are sure to stay, the rest is ranked jointly.

    >>> pairs = NOfM({"w": (1, 4)}, {"w": 1}, n=1, m=2)
    >>> pairs.select({"w": torch.tensor([[4.0, 3.0, 1.0, 2.0]])}, Mask.ones({"w": (1, 4)}), keep=2)["w"].tolist()
    [[True, False, False, True]]
    """

    shapes: Mapping[str, Shape]
    axes: Mapping[str, int]
    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise ConfigError(f"N:M needs 1 <= n < m, not {self.n}:{self.m}")

    def capacities(self, mask: Mask) -> dict[str, int]:
        """Return the kept weights of every parameter."""
        return mask.counts

    def final_count(self, planned: int) -> int:
        """Return the weights when no group has more than n; raise `BudgetError` unless n/m of all were planned."""
        total = sum(prod(shape) for shape in self.shapes.values())
        if 2 * abs(planned * self.m - self.n * total) > self.m:
            raise BudgetError(
                f"{self.n}:{self.m} ends with {self.n} of every {self.m} weights, but {planned} of {total} are planned "
                f"({planned / max(total, 1):.4g}); use density={self.n / self.m:g}"
            )
        return sum(self._final(shape, self.axes[name]) for name, shape in self.shapes.items())

    def _final(self, shape: Shape, axis: int) -> int:
        full, over = divmod(shape[axis], self.m)
        return prod(shape[:axis]) * (full * self.n + min(over, self.n)) * prod(shape[axis + 1 :])

    def select(self, scores: Scores, mask: Mask, keep: int | Counts, floors: Counts | None = None) -> Mask:
        """Return exactly the best `keep` weights among the masks that leave every group its best n.

        Counts per parameter that are too low for its groups are raised, and the others give way, down to their floors.

        Raises `BudgetError` if the groups need more than the budget, and what `ticketkit.select` raises.
        """
        select(scores, mask, mask.kept)  # refuses scores that cannot be ranked
        scores = gathered(scores)
        sure = self.best_of_groups(scores, mask)
        wanted = {name: whole_number(count, f"keep[{name!r}]") for name, count in _counts(keep)}
        if below := [name for name, count in wanted.items() if count < 0]:
            raise BudgetError(f"cannot keep {wanted[below[0]]} weights of {below[0]!r}; choose a count of 0 or more")
        budget = sum(wanted.values()) if isinstance(keep, Mapping) else whole_number(keep, "keep")
        if budget < sure.kept:
            raise BudgetError(
                f"cannot keep {budget} weights: {self.n} of every {self.m} are {sure.kept}; keep at least as many"
            )
        rest = {name: max(0, floor - sure.counts.get(name, 0)) for name, floor in (floors or {}).items()}
        if not isinstance(keep, Mapping):
            return sure | select(scores, mask - sure, budget - sure.kept, floors=rest)
        beyond = {name: max(0, count - sure.counts.get(name, 0)) for name, count in wanted.items()}
        extra = select(scores, mask - sure, beyond)
        return sure | select(scores, extra, budget - sure.kept, floors=rest)

    def best_of_groups(self, scores: Scores, mask: Mask) -> Mask:
        """Return the best n kept weights of every group, equals by position."""
        bits = {}
        for name, shape in self.shapes.items():
            flags = np.zeros(prod(shape), np.bool_)
            for start, stop in self._slabs(shape, self.axes[name]):
                values = flat_slice(scores, name, start, stop).to("cpu", torch.float64).numpy()
                kept = kept_run(mask, name, start, stop)
                worth = np.where(kept, values, -np.inf).reshape(-1, *shape[1:])
                flags[start:stop] = self._best(worth, self.axes[name]).reshape(-1) & kept
            bits[name] = np.packbits(flags, bitorder="little").tobytes()
        return Mask.from_bits(self.shapes, bits, aliases=mask.aliases)

    def _slabs(self, shape: Shape, axis: int) -> Iterator[tuple[int, int]]:
        """Yield flat runs of whole groups, about as large as a chunk or a few of the parameter's first-axis slices."""
        size = prod(shape[1:])
        step = max(1, CHUNK // max(size, 1))
        step = max(self.m, step // self.m * self.m) if axis == 0 else step
        for first in range(0, shape[0] if size else 0, step):
            yield first * size, min(first + step, shape[0]) * size

    def _best(self, worth: Array, axis: int) -> Array:
        """Return which weights are among the best n of their group along an axis."""
        last = np.moveaxis(worth, axis, -1)
        padding = [(0, 0)] * (last.ndim - 1) + [(0, -last.shape[-1] % self.m)]
        groups = np.pad(last, padding, constant_values=-np.inf)
        grouped = groups.reshape(*groups.shape[:-1], -1, self.m)
        best = np.zeros(grouped.shape, np.bool_)
        order = np.argsort(-grouped, axis=-1, kind="stable")
        np.put_along_axis(best, order[..., : self.n], True, axis=-1)
        return np.moveaxis(best.reshape(groups.shape)[..., : last.shape[-1]], -1, axis)


def n_m(layout: Layout, *, options: NOfMOptions) -> NOfM:
    """Of every m consecutive inputs of an output, n stay in the end (Zhou et al. 2021); for density n/m.

    Inputs run along the columns of a matrix, the input channels of a convolution.
    """
    axes = {name: axis for name in layout.shapes if (axis := layout.input_axis(name)) is not None}
    refuse_missing("n_m", [name for name in layout.shapes if name not in axes], list(axes))
    return NOfM(layout.shapes, axes, options.n, options.m)


def _counts(keep: int | Counts) -> list[tuple[str, int]]:
    return list(keep.items()) if isinstance(keep, Mapping) else []
