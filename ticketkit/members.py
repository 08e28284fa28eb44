"""Which units the weights of every parameter belong to: labels, how they are checked, and how they are read in runs."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from ticketkit.contenders import CHUNK
from ticketkit.errors import ConfigError
from ticketkit.granularity import Array, Labels
from ticketkit.mask import Mask, Shape


@dataclass(frozen=True, eq=False)
class Member:
    """Which unit of `space` each weight of a parameter belongs to.

    `labels` are whole numbers that broadcast to the parameter's shape; -1 belongs to none. A tuple of arrays is added
    up, so that labels of a large matrix need no array of its size: `(rows * columns_per_row, columns)`.
    """

    space: str
    labels: Labels

    @cached_property
    def terms(self) -> tuple[Array, ...]:
        """The labels as arrays to add, in int64; labels that are no whole numbers stay what they are."""
        given = map(np.asarray, self.labels if isinstance(self.labels, tuple) else (self.labels,))
        return tuple(a.astype(np.int64, copy=False) if np.issubdtype(a.dtype, np.integer) else a for a in given)

    @cached_property
    def covers(self) -> bool:
        """Whether the member surely has a unit for every weight."""
        return all(int(term.min(initial=0)) == 0 for term in self.terms)


@dataclass(frozen=True, eq=False)
class Membership:
    """All parameters' members, with the units of all spaces numbered through, space by space.

    The first member that has a unit for a weight owns it: the weight counts for that member's space.
    """

    parameters: Mapping[str, Shape]
    spaces: Mapping[str, int]
    members: Mapping[str, tuple[Member, ...]]

    def check(self) -> None:
        """Raise `ConfigError` for labels that are no units of their spaces, and for weights without a unit."""
        if wrong := sorted(name for name in self.parameters if not self.members.get(name)):
            raise ConfigError(f"these parameters belong to no unit: {', '.join(wrong)}; give each a member")
        if unknown := sorted(self.members.keys() - self.parameters.keys()):
            raise ConfigError(f"members name parameters that are not masked: {', '.join(unknown)}")
        for name, shape in self.parameters.items():
            for member in self.members[name]:
                _check_labels(name, shape, member, self.spaces)
            if not self.members[name][0].covers and (none := self._without(name)):
                raise ConfigError(f"{none} weights of {name!r} belong to no unit; leave no -1 in all of its members")

    def _without(self, name: str) -> int:
        """Return how many weights of a parameter are in no unit."""
        pieces = self.pieces(Mask.ones({name: self.parameters[name]}), [name])
        return sum(int(np.sum(np.max([s.units(piece) for s in piece.slots], axis=0) < 0)) for piece in pieces)

    @property
    def total(self) -> int:
        """How many units there are in all."""
        return sum(self.spaces.values())

    @cached_property
    def spans(self) -> dict[str, slice]:
        """The numbers of the units of each space."""
        ends = np.cumsum(list(self.spaces.values()), dtype=np.int64).tolist()
        return {space: slice(end - n, end) for (space, n), end in zip(self.spaces.items(), ends, strict=True)}

    @cached_property
    def coupled(self) -> list[str]:
        """The parameters with several members."""
        return [name for name in self.parameters if len(self.members[name]) > 1]

    def owned(self, mask: Mask) -> dict[str, int]:
        """Return the kept weights that each space owns."""
        left = dict.fromkeys(self.spaces, 0)
        for name, count in mask.counts.items():
            if self.members[name][0].covers:
                left[self.members[name][0].space] += count
                continue
            for piece in self.pieces(mask, [name]):
                for space, own in piece.owned_by():
                    left[space] += int(np.count_nonzero(own & piece.kept))
        return left

    def pieces(self, mask: Mask, names: Iterable[str]) -> Iterator["Piece"]:
        """Yield the weights of some parameters, in order."""
        for name in names:
            shape = self.parameters[name]
            slots = tuple(Slot.of(member, self.spans[member.space].start, shape) for member in self.members[name])
            for start in range(0, prod(shape), CHUNK):
                stop = min(start + CHUNK, prod(shape))
                yield Piece(name, start, kept_run(mask, name, start, stop), shape, slots)


@dataclass(frozen=True, eq=False)
class Piece:
    """A run of consecutive weights of a parameter of some shape: which are kept, and one slot for each member."""

    name: str
    start: int
    kept: Array
    shape: Shape
    slots: tuple["Slot", ...]

    @property
    def stop(self) -> int:
        """The flat index after the last weight."""
        return self.start + len(self.kept)

    def owned_by(self) -> Iterator[tuple[str, Array | bool]]:
        """Yield (space, which weights it owns) for the slots one after another; True for all."""
        if self.slots[0].covers:
            yield self.slots[0].space, True
            return
        free = np.ones(len(self.kept), np.bool_)
        for slot in self.slots:
            found = slot.units(self) >= 0
            yield slot.space, free & found
            free &= ~found


@dataclass(frozen=True, eq=False)
class Slot:
    """A member of one parameter, ready to be read: its terms have the parameter's number of dimensions.

    Their sum is the number of the unit. Of several terms that do not cover the parameter it is the label, and the first
    unit's number is still to be added where that is not negative.
    """

    space: str
    terms: tuple[Array, ...]
    covers: bool
    first: int

    @classmethod
    def of(cls, member: Member, first: int, shape: Shape) -> "Slot":
        """Return the slot of a member whose space has its first unit at number `first`."""
        top, *others = (term.reshape((1,) * (len(shape) - term.ndim) + term.shape) for term in member.terms)
        if others and not member.covers:
            return cls(member.space, (top, *others), False, first)
        return cls(member.space, (np.where(top < 0, -1, top + first), *others), member.covers, 0)

    def units(self, piece: Piece) -> Array:
        """Return the unit of every weight of a run, -1 for none."""
        return _read(self, self.terms, piece.shape, piece.start, piece.stop, None)

    def look(self, table: Array, piece: Piece) -> Array:
        """Return what a table, with one more entry at its end for no unit, says of every weight's unit."""
        return _read(self, self.terms, piece.shape, piece.start, piece.stop, table)


def _read(slot: Slot, terms: tuple[Array, ...], shape: Shape, start: int, stop: int, table: Array | None) -> Array:
    """Return a flat run of units, or of a table's entries for them, looking up before broadcasting.

    The terms are those of `slot` for a tensor of this shape or for a part of one. Memory is of the size of the run.
    """
    row = prod(shape[1:])
    if row > CHUNK:
        parts = []
        for index in range(start // row, -(-stop // row)):
            inner = tuple(term[index if len(term) > 1 else 0] for term in terms)
            begin, end = max(start - index * row, 0), min(stop - index * row, row)
            parts.append(_read(slot, inner, shape[1:], begin, end, table))
        return np.concatenate(parts)
    first, last = (start // row, -(-stop // row)) if shape else (0, 1)
    rows = [term[first:last] if shape and len(term) > 1 else term for term in terms]
    found: Any = sum(rows[1:], start=rows[0])
    if slot.first:
        found = np.where(found < 0, -1, found + slot.first)
    if table is not None:
        found = np.take(table, found)
    whole: Array = np.broadcast_to(found, (last - first, *shape[1:])).reshape(-1)
    return whole[start - first * row : stop - first * row]


def kept_run(mask: Mask, name: str, start: int, stop: int) -> Array:
    """Return a flat run of a mask as bools."""
    packed = np.frombuffer(mask.bits(name), np.uint8)[start // 8 : (stop + 7) // 8]
    return np.unpackbits(packed, bitorder="little")[start % 8 :][: stop - start].view(np.bool_)


def _check_labels(name: str, shape: Shape, member: Member, spaces: Mapping[str, int]) -> None:
    what = f"labels of {name!r} {shape} in space {member.space!r}"
    if member.space not in spaces:
        raise ConfigError(f"{what}: there is no such space; there are: {', '.join(spaces) or 'none'}")
    for term in member.terms:
        if not np.issubdtype(term.dtype, np.integer):
            raise ConfigError(f"{what} must be whole numbers, not {term.dtype}")
    try:
        fits = np.broadcast_shapes(shape, *(term.shape for term in member.terms)) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ConfigError(f"{what} have shapes {[term.shape for term in member.terms]}, which do not broadcast to it")
    if prod(shape):
        low, high = (sum(int(end(term)) for term in member.terms) for end in (np.min, np.max))
        if low < -1 or high >= spaces[member.space]:
            raise ConfigError(f"{what} go from {low} to {high}, allowed are -1 to {spaces[member.space] - 1}")
