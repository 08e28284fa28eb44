"""Built-in granularities whose units reach across parameters: filter, rnn_unit, head."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from pydantic import Field
from torch import nn
from torch.nn.modules.rnn import RNNBase, RNNCellBase

from ticketkit.builtin.granularities import UnitOptions, refuse_missing
from ticketkit.errors import ScopeError
from ticketkit.granularity import Labels, Layout, along
from ticketkit.members import Member
from ticketkit.names import named_modules
from ticketkit.units import Units


class FeedOptions(UnitOptions):
    """What a unit is worth, and where its output goes."""

    feeds: dict[str, list[str]] = Field(default_factory=dict)
    """For a layer (its module name or a glob), the parameters that take its output features as their inputs."""


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
    for path, module in named_modules(layout.model):
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
        refuse_missing(what, [name for name in self._members if name not in fitting], fitting)
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
    for path, module in named_modules(model):
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
