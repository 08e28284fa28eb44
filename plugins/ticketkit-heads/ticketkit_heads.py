"""A granularity for ticketkit: attention heads made of separate linear layers, as in Hugging Face models.

It goes by the names and sizes of layers, so it needs no transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

import ticketkit

if TYPE_CHECKING:
    from torch import nn

UP = "../"
COUNTS = ("num_heads", "num_attention_heads", "n_heads")
Names = tuple[str, ...]


class HeadOptions(ticketkit.Options):
    """How many heads there are, what the layers of an attention are called, and what a head is worth.

    Names are relative to the module that holds the query; `../` goes up to the module around it. Of several names the
    first that is there counts. The defaults fit BERT, Whisper, Wav2Vec2, DistilBERT, T5, Llama and models like these.
    """

    heads: int | None = Field(default=None, strict=True, ge=1)
    """Query heads of every attention; by default what it says itself, in `num_heads` or the like or by `head_dim`."""
    query: Names = Field(default=("q_proj", "query", "q_lin", "q"), min_length=1)
    """What the layer that makes queries may be called."""
    key: Names = Field(default=("k_proj", "key", "k_lin", "k"), min_length=1)
    """The same of keys."""
    value: Names = Field(default=("v_proj", "value", "v_lin", "v"), min_length=1)
    """The same of values."""
    output: Names = Field(default=("out_proj", "o_proj", "out_lin", "o", "../output.dense"), min_length=1)
    """What the layer that reads the heads may be called."""
    pool: Literal["mean", "sum", "max"] = "mean"
    """How the scores of a head's kept weights become its score."""


@ticketkit.hookimpl
def ticketkit_register_granularities(register: Callable[..., None]) -> None:
    """Register the granularity under its name."""
    register("hf_head", hf_head, options=HeadOptions)


def hf_head(layout: ticketkit.Layout, *, options: HeadOptions) -> ticketkit.Units:
    """A head of an attention with separate query, key, value and output layers.

    It has its rows of the first three and its columns of the output layer, so that a masked head is as good as removed
    whatever the biases (Michel et al. 2019). With grouped queries (Ainslie et al. 2023) every h / k query heads that
    follow one another share a key-value head. That is a unit of its own space, with the rows of key and value and all
    that its query heads have: if it goes they go too, and each of them can go alone. Raises `ScopeError` for parameters
    in scope that belong to no head, and for attentions whose sizes do not fit.
    """
    parts = _Parts(layout.shapes)
    held: dict[int, list[_Place]] = {}
    for name, holders in layout.holders.items():
        for holder in holders:
            held.setdefault(id(holder.module), []).append(_Place(name, holder.path, holder.leaf))
    for attention in _attentions(layout.model, options):
        parts.add(attention, {role: held.get(id(layer), []) for role, layer in attention.layers.items()}, options.heads)
    return parts.units(options.pool)


@dataclass(frozen=True)
class _Place:
    """A parameter in scope and where it is: attribute `leaf` of the layer called `path`."""

    name: str
    path: str
    leaf: str


@dataclass(frozen=True)
class _Attention:
    """An attention: the module that holds the query, its layers by role, and their names relative to the module."""

    module: nn.Module
    layers: Mapping[str, nn.Linear]
    names: Mapping[str, str]

    def sizes(self, path: str, asked: int | None) -> tuple[int, int]:
        """Return how many query heads and how many key-value heads there are; raise `ScopeError` if they do not fit."""
        wide, keys, values = (self.layers[role].out_features for role in ("query", "key", "value"))
        heads = asked or _own_count(self.module, wide)
        what = f"attention {path!r} ({type(self.module).__name__})"
        if heads is None:
            raise ticketkit.ScopeError(f"{what} does not say how many heads it has; give the option heads")
        if wide % heads:
            raise ticketkit.ScopeError(f"{what} has {wide} query rows, which are not {heads} heads; check heads")
        size = wide // heads
        shared = keys // size
        if not shared or keys % size or heads % shared or values % shared:
            raise ticketkit.ScopeError(
                f"{what} has {heads} heads of {size} query rows, to which {keys} key and {values} value rows do not "
                "fit; check heads"
            )
        if "output" not in self.layers:
            raise ticketkit.ScopeError(f"{what} has no output layer under the names known; give the option output")
        if (reads := self.layers["output"].in_features) != heads * (values // shared):
            raise ticketkit.ScopeError(
                f"{what} makes {heads} heads of {values // shared} values, but {self.names['output']!r} reads {reads} "
                "features; check output and heads"
            )
        return heads, shared


class _Parts:
    """Units under construction: how many each space has, and which the weights of every parameter belong to."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        self._shapes = shapes
        self._spaces: dict[str, int] = {}
        self._members: dict[str, list[ticketkit.Member]] = {name: [] for name in shapes}

    def add(self, attention: _Attention, places: Mapping[str, list[_Place]], asked: int | None) -> None:
        """Make the parameters in scope of an attention, by role, members of its heads."""
        present = [role for role in places if places[role]]
        if not present:
            return
        path = _around(places[present[0]][0].path, attention.names[present[0]])
        heads, shared = attention.sizes(path, asked)
        own, common = (f"{path}.{what}" if path else what for what in ("heads", "kv_heads"))
        grouped = shared < heads and not {"key", "value"}.isdisjoint(present)
        for role in ("query", "output"):
            axis = int(role == "output")
            for place in places.get(role, []):
                if axis < len(self._shapes[place.name]):  # the output's bias belongs to no head
                    self._join(place.name, axis, own, heads)
                    if grouped:
                        self._join(place.name, axis, common, shared)
        for place in [*places["key"], *places["value"]]:
            self._join(place.name, 0, common if grouped else own, shared)

    def _join(self, name: str, axis: int, space: str, count: int) -> None:
        """Share the indices of an axis out among the units of a space, in runs of one length."""
        shape = self._shapes[name]
        unit = np.arange(shape[axis]) // (shape[axis] // count)
        self._spaces[space] = count
        self._members[name].append(ticketkit.Member(space, np.expand_dims(unit, tuple(range(1, len(shape) - axis)))))

    def units(self, pool: Literal["mean", "sum", "max"]) -> ticketkit.Units:
        """Return the units; raise `ScopeError` if a parameter has none."""
        if missing := [name for name, members in self._members.items() if not members]:
            fitting = [name for name, members in self._members.items() if members]
            shown = [*fitting[:6], *["..."] * (len(fitting) > 6)]
            advice = (
                f"set the scope, e.g. scope={{'include': {shown}}}" if fitting else "say what its layers are called"
            )
            raise ticketkit.ScopeError(f"granularity 'hf_head' has no heads for {', '.join(missing)}; {advice}")
        owners = [members[0].space for members in self._members.values()]
        spaces = {space: self._spaces[space] for space in dict.fromkeys([*owners, *self._spaces])}
        return ticketkit.Units(self._shapes, spaces, {name: tuple(m) for name, m in self._members.items()}, pool)


def _attentions(model: nn.Module, options: HeadOptions) -> Iterator[_Attention]:
    """Yield every module that holds linear query, key and value layers, with the output layer that belongs to them."""
    from torch import nn

    roles = {"query": options.query, "key": options.key, "value": options.value, "output": options.output}
    parents = {id(child): module for module in model.modules() for child in module.children()}
    for module in model.modules():
        layers, names = {}, {}
        for role, candidates in roles.items():
            for name in candidates:
                layer = _reached(module, name, parents)
                if role not in layers and isinstance(layer, nn.Linear):
                    layers[role], names[role] = layer, name
        if layers.keys() >= {"query", "key", "value"}:
            yield _Attention(module, layers, names)


def _reached(module: nn.Module, name: str, parents: Mapping[int, nn.Module]) -> object:
    """Return what a relative name leads to from a module; None if nothing is there."""
    place: object = module
    for _ in range(name.count(UP)):
        place = parents.get(id(place))
    for part in name.replace(UP, "").split("."):
        place = getattr(place, part, None)
    return place


def _own_count(module: nn.Module, wide: int) -> int | None:
    """Return how many heads of all `wide` query rows a module says it has."""
    for attribute in COUNTS:
        count = getattr(module, attribute, None)
        if isinstance(count, int) and count > 0:
            return count
    size = getattr(module, "head_dim", None)
    return wide // size if isinstance(size, int) and size > 0 else None


def _around(path: str, name: str) -> str:
    """Return the path of what holds a layer, given the layer's path and its name relative to that."""
    return ".".join(path.split(".")[: -1 - name.replace(UP, "").count(".")])
