"""Built-in granularities: which weights stay or go together."""

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, PositiveInt, model_validator
from torch import nn
from torch.nn.modules.rnn import RNNBase, RNNCellBase

from ticketkit.criterion import flat_slice
from ticketkit.errors import BudgetError, ConfigError, ScopeError
from ticketkit.granularity import Array, Labels, Layout, Weights, along
from ticketkit.members import Member, kept_run
from ticketkit.units import Units
from ticketkit.mask import Mask, Shape
from ticketkit.selection import CHUNK, select, whole_number


class UnitOptions(BaseModel):
    """What a unit is worth."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: Literal["mean", "sum", "max"] = "mean"
    """How the scores of a unit's kept weights become its score."""


class BlockOptions(UnitOptions):
    """The size of a block, and what it is worth."""

    rows: PositiveInt = 4
    cols: PositiveInt = 4


class FeedOptions(UnitOptions):
    """What a unit is worth, and where its output goes."""

    feeds: dict[str, list[str]] = {}
    """For a layer (its module name or a glob), the parameters that take its output features as their inputs."""


class NOfMOptions(BaseModel):
    """How many of how many consecutive weights stay."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: PositiveInt = 2
    m: PositiveInt = 4

    @model_validator(mode="after")
    def _prunes(self) -> Self:
        if self.n >= self.m:
            raise ValueError(f"n must be below m to prune anything, not {self.n}:{self.m}")
        return self


def weight(layout: Layout) -> Weights:
    """Every weight by itself."""
    return Weights(layout.shapes)


def row(layout: Layout, *, options: UnitOptions) -> Units:
    """An output: a row of a matrix, a filter of a convolution, one gate row of a recurrent layer.

    The output axis is 0, of transposed convolutions 1 (with groups: output channels, across the groups).
    """
    return _inside(layout, layout.outputs, "row", options)


def column(layout: Layout, *, options: UnitOptions) -> Units:
    """An input: a column of a matrix, an input channel of a convolution (of grouped ones too)."""
    return _inside(layout, layout.inputs, "column", options)


def channel(layout: Layout, *, options: UnitOptions) -> Units:
    """An input channel of a convolution: all kernels that read it; parameters of other layers are refused."""
    return _inside(layout, lambda name: layout.inputs(name) if layout.kernel(name) else None, "channel", options)


def block(layout: Layout, *, options: BlockOptions) -> Units:
    """A block of rows x cols of the matrix (outputs, everything else); blocks at the edges are smaller.

    Narang et al. 2017, block-sparse recurrent networks.
    """

    def blocks(name: str) -> tuple[int, Labels]:
        shape, axis = layout.shapes[name], layout.output_axis(name)
        if not shape:
            return 1, np.zeros((), np.int64)
        rest = [1 if other == axis else size for other, size in enumerate(shape)]
        across = -(-prod(rest) // options.cols)
        down = np.arange(shape[axis]) // options.rows
        columns = np.arange(prod(rest)).reshape(rest) // options.cols
        return -(-shape[axis] // options.rows) * across, (along(down * across, axis, len(shape)), columns)

    return _inside(layout, blocks, "block", options)


def filter_(layout: Layout, *, options: FeedOptions) -> Units:
    """A filter of a convolution (Li et al. 2017); with `feeds`, also what reads its output channel.

    `feeds={"0": ["3.weight"]}` adds the input channels of convolution `3`, or, if it is linear, the features of each
    channel of a flattened map. Parameters that are neither kernels nor fed are refused.
    """
    parts = _Parts(layout)
    outputs: dict[str, list[tuple[str, int]]] = {}
    for name in layout.shapes:
        if layout.kernel(name):
            count, labels = layout.outputs(name)
            parts.add(name, name, labels, count)
            outputs |= {holder.path: [(name, count)] for holder in layout.holders[name]}
    parts.feed(options.feeds, outputs, flattened=True)
    return parts.units("filter", options)


def rnn_unit(layout: Layout, *, options: FeedOptions) -> Units:
    """A hidden unit of an LSTM, GRU, RNN or cell: its gate rows and whatever reads its output inside the layer.

    These are its rows in `weight_ih` and `weight_hh`, its recurrent column in `weight_hh`, and its column in the next
    layer's `weight_ih`. With `proj_size` the last two read projections, so the unit has its column of `weight_hr`
    instead. `feeds={"lstm": ["head.weight"]}` adds the columns of what reads the last layer, forward half first; masked
    units are then as good as removed whatever their biases (Wen et al. 2018, intrinsic sparse structures).
    """
    parts = _Parts(layout)
    stages = list(_stages(layout.model))
    for stage in stages:
        for leaf in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            if name := parts.masked(stage.path, leaf + stage.suffix):
                shape = layout.shapes[name]
                parts.add(name, stage.space, along(np.arange(shape[0]) % stage.hidden, 0, len(shape)), stage.hidden)
        if name := parts.masked(stage.path, "weight_hr" + stage.suffix):
            parts.add(name, stage.space, along(np.arange(stage.hidden), 1, 2), stage.hidden)
    outputs: dict[str, list[tuple[str, int]]] = {}
    for stage in stages:
        if stage.projected:
            continue
        if name := parts.masked(stage.path, "weight_hh" + stage.suffix):
            parts.read(name, [(stage.space, stage.hidden)])
        if stage.below and (name := parts.masked(stage.path, "weight_ih" + stage.suffix)):
            parts.read(name, [(space, stage.hidden) for space in stage.below])
        if stage.last:
            outputs.setdefault(stage.path, []).append((stage.space, stage.hidden))
    parts.feed(options.feeds, outputs)
    return parts.units("rnn_unit", options)


def head(layout: Layout, *, options: UnitOptions) -> Units:
    """A head of `nn.MultiheadAttention`: its rows of query, key and value projections, its columns of `out_proj`.

    A masked head is as good as removed whatever the biases (Michel et al. 2019).
    """
    parts = _Parts(layout)
    for path, module in layout.model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            heads, width, space = module.num_heads, module.embed_dim, _join(path, "heads")
            of_row = np.arange(3 * width) % width // module.head_dim
            for leaf in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"):
                if name := parts.masked(path, leaf):
                    shape = layout.shapes[name]
                    parts.add(name, space, along(of_row[: shape[0]], 0, len(shape)), heads)
            if name := parts.masked(path, "out_proj.weight"):
                parts.add(name, space, along(of_row[:width], 1, 2), heads)
    return parts.units("head", options)


def n_m(layout: Layout, *, options: NOfMOptions) -> "NOfM":
    """Of every m consecutive inputs of an output, n stay in the end (Zhou et al. 2021); for density n/m.

    Inputs run along the columns of a matrix, the input channels of a convolution.
    """
    axes = {name: axis for name in layout.shapes if (axis := layout.input_axis(name)) is not None}
    _refuse("n_m", [name for name in layout.shapes if name not in axes], list(axes))
    return NOfM(layout.shapes, axes, options.n, options.m)


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

    def select(
        self,
        scores: Mapping[str, torch.Tensor],
        mask: Mask,
        keep: int | Mapping[str, int],
        floors: Mapping[str, int] | None = None,
    ) -> Mask:
        """Return exactly the best `keep` weights among the masks that leave every group its best n.

        Counts per parameter that are too low for its groups are raised, and the others give way.

        Raises `BudgetError` if the groups need more than the budget, and what `ticketkit.select` raises.
        """
        select(scores, mask, mask.kept)  # refuses scores that cannot be ranked
        sure = self.best_of_groups(scores, mask)
        wanted = {name: whole_number(count, f"keep[{name!r}]") for name, count in _counts(keep)}
        if below := [name for name, count in wanted.items() if count < 0]:
            raise BudgetError(f"cannot keep {wanted[below[0]]} weights of {below[0]!r}; choose a count of 0 or more")
        budget = sum(wanted.values()) if isinstance(keep, Mapping) else whole_number(keep, "keep")
        if budget < sure.kept:
            raise BudgetError(
                f"cannot keep {budget} weights: {self.n} of every {self.m} are {sure.kept}; keep at least as many"
            )
        if not isinstance(keep, Mapping):
            rest = {name: max(0, floor - sure.counts.get(name, 0)) for name, floor in (floors or {}).items()}
            return sure | select(scores, mask - sure, budget - sure.kept, floors=rest)
        beyond = {name: max(0, count - sure.counts.get(name, 0)) for name, count in wanted.items()}
        extra = select(scores, mask - sure, beyond)
        return sure | select(scores, extra, budget - sure.kept)

    def best_of_groups(self, scores: Mapping[str, torch.Tensor], mask: Mask) -> Mask:
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


def _counts(keep: int | Mapping[str, int]) -> list[tuple[str, int]]:
    return list(keep.items()) if isinstance(keep, Mapping) else []


def _inside(
    layout: Layout, units_of: Callable[[str], tuple[int, Labels] | None], what: str, options: UnitOptions
) -> Units:
    """Return units that lie inside parameters."""
    found = {name: units for name in layout.shapes if (units := units_of(name)) is not None}
    _refuse(what, [name for name in layout.shapes if name not in found], list(found))
    members = {name: (Member(name, labels),) for name, (_, labels) in found.items()}
    return Units(layout.shapes, {name: count for name, (count, _) in found.items()}, members, options.pool)


def _refuse(what: str, without: list[str], fitting: list[str]) -> None:
    if without:
        shown = [*fitting[:6], *(["..."] if len(fitting) > 6 else [])]
        advice = f'set the scope, e.g. scope={{"include": {shown}}}' if fitting else "choose another granularity"
        raise ScopeError(f"granularity {what!r} has no units for {', '.join(without)}; {advice}")


class _Parts:
    """Units under construction that reach across parameters."""

    def __init__(self, layout: Layout):
        self._layout = layout
        self._names = {place.name: name for name, places in layout.holders.items() for place in places}
        self._spaces: dict[str, int] = {}
        self._members: dict[str, list[Member]] = {name: [] for name in layout.shapes}

    def masked(self, path: str, leaf: str) -> str | None:
        """Return the masked parameter that a module holds under `leaf`, if it is in scope."""
        return self._names.get(_join(path, leaf))

    def add(self, name: str, space: str, labels: Labels, count: int) -> None:
        """Make a parameter a member of a space of `count` units; its first is its owner."""
        self._spaces[space] = count
        self._members[name].append(Member(space, labels))

    def read(self, name: str, sources: list[tuple[str, int]], *, flattened: bool = False) -> None:
        """Let a parameter's inputs belong to the units that make them: those of (space, units) one after another.

        `flattened`: each unit may be several inputs next to each other, as in a flattened feature map.
        """
        count, labels = self._layout.inputs(name) or (0, 0)
        made = sum(units for _, units in sources)
        spread = flattened and not self._layout.kernel(name) and made and count % made == 0
        if not count or (count != made and not spread):
            raise ScopeError(
                f"{name!r} reads {count} features, but {', '.join(space for space, _ in sources)} make {made}; "
                "a parameter that is fed must read exactly these"
            )
        index = np.asarray(sum(labels) if isinstance(labels, tuple) else labels) // (count // made)
        for position, (space, units) in enumerate(sources):
            own = index - sum(before for _, before in sources[:position])
            if space in self._spaces:
                self.add(name, space, np.where((own >= 0) & (own < units), own, -1), units)

    def feed(
        self,
        feeds: Mapping[str, list[str]],
        outputs: Mapping[str, list[tuple[str, int]]],
        *,
        flattened: bool = False,
    ) -> None:
        """Let the outputs of layers be read by the parameters that `feeds` names."""
        for pattern, readers in feeds.items():
            layers = [path for path in outputs if fnmatchcase(path, pattern)]
            if not layers:
                nearest = difflib.get_close_matches(pattern, outputs, n=3, cutoff=0.3) or list(outputs)
                raise ScopeError(f"feeds {pattern!r} matches no layer whose outputs are units; nearest: {nearest}")
            if absent := [name for name in readers if name not in self._names]:
                raise ScopeError(
                    f"feeds[{pattern!r}] names {', '.join(absent)}, not in scope; there are: {', '.join(self._names)}"
                )
            for layer in layers:
                for name in readers:
                    self.read(self._names[name], outputs[layer], flattened=flattened)

    def units(self, what: str, options: UnitOptions) -> Units:
        """Return the units; raise `ScopeError` if a parameter has none."""
        fitting = [name for name, members in self._members.items() if members]
        _refuse(what, [name for name in self._members if name not in fitting], fitting)
        owned = [members[0].space for members in self._members.values()]
        spaces = {space: self._spaces[space] for space in dict.fromkeys([*owned, *self._spaces])}
        members = {name: tuple(found) for name, found in self._members.items()}
        return Units(self._layout.shapes, spaces, members, options.pool)


@dataclass(frozen=True)
class _Stage:
    """One direction of one recurrent layer: its hidden units, and where its inputs and outputs go."""

    path: str
    suffix: str
    space: str
    hidden: int
    projected: bool = False
    below: tuple[str, ...] = ()
    last: bool = True


def _stages(model: nn.Module) -> Iterator[_Stage]:
    """Yield the stages of all recurrent layers and cells of a model."""
    for path, module in model.named_modules():
        if isinstance(module, RNNCellBase):
            yield _Stage(path, "", _join(path, "l0"), module.hidden_size)
        if isinstance(module, RNNBase):
            below: tuple[str, ...] = ()
            for layer in range(module.num_layers):
                suffixes = [f"_l{layer}", f"_l{layer}_reverse"][: 1 + module.bidirectional]
                spaces = tuple(_join(path, suffix[1:]) for suffix in suffixes)
                for suffix, space in zip(suffixes, spaces, strict=True):
                    last, projected = layer == module.num_layers - 1, module.proj_size > 0
                    yield _Stage(path, suffix, space, module.hidden_size, projected, below, last)
                below = spaces


def _join(path: str, leaf: str) -> str:
    return f"{path}.{leaf}" if path else leaf
