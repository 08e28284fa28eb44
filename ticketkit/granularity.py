"""How weights group into units: the layout of a model, and the patterns in which a selection happens at that grain."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Literal, Protocol, Self

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ticketkit.criterion import flat_slice
from ticketkit.errors import BudgetError, ConfigError, ScoreError
from ticketkit.mask import Mask, Shape, shape_differences
from ticketkit.scope import masked_parameters, tied_groups
from ticketkit.selection import CHUNK, select, whole_number

Array = np.ndarray[Any, np.dtype[Any]]
Scores = Mapping[str, torch.Tensor]
Counts = Mapping[str, int]
Labels = Any  # an integer array or tensor, or a tuple of them


@dataclass(frozen=True)
class Holder:
    """A place where a parameter lives: attribute `leaf` of `module`, which the model calls `path`."""

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
        places = {
            place.name: place
            for path, module in model.named_modules(remove_duplicate=False)
            for place in (Holder(path, module, leaf) for leaf in module._parameters)
        }
        return cls(model, dict(shapes), {name: tuple(places[n] for n in groups[name]) for name in shapes})

    def kernel(self, name: str) -> _ConvNd | None:
        """Return the convolution whose kernel this parameter is."""
        place = self.holders[name][0]
        return place.module if isinstance(place.module, _ConvNd) and place.leaf == "weight" else None

    def output_axis(self, name: str) -> int:
        """Return the axis of output features: 0, or 1 for the kernel of a transposed convolution."""
        return int(isinstance(self.kernel(name), _ConvTransposeNd))

    def input_axis(self, name: str) -> int | None:
        """Return the axis of input features: 1, or 0 for a transposed convolution; None below two dimensions."""
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
        """Return a mask inside `mask` of at most `keep` weights, the best by `scores`; see `ticketkit.select`."""
        ...


class Granularity(Protocol):
    """Says how the weights of a model group. One registered with an options model is called with `options=` too."""

    def __call__(self, layout: Layout) -> Pattern:
        """Return the pattern; raise `ScopeError` naming the parameters for which there are no units."""
        ...


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


@dataclass(frozen=True, eq=False)
class Units:
    """Weights live and die in units; a weight of several units is kept if all its units are.

    `spaces` counts the units of each space, and `members` says which units the weights of a parameter are in. Every
    weight is in at least one; the first of them owns it, and it counts for that unit's space. A unit's score is the
    mean, sum or maximum (`pool`) of the scores of its kept weights, in float64. Budgets stay in weights: units are
    ranked by (score, position), and the longest list of best ones is kept whose weights fit.

    >>> stripes = Units.of({"w": (4, 3)}, {"w": [[0], [0], [1], [1]]})
    >>> scores = {"w": torch.arange(12.0).reshape(4, 3)}
    >>> stripes.select(scores, Mask.ones({"w": (4, 3)}), keep=7)["w"].int().tolist()
    [[0, 0, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1]]
    """

    parameters: Mapping[str, Shape]
    spaces: Mapping[str, int]
    members: Mapping[str, tuple[Member, ...]]
    pool: Literal["mean", "sum", "max"] = "mean"

    def __post_init__(self) -> None:
        if self.pool not in ("mean", "sum", "max"):
            raise ConfigError(f"pool must be mean, sum or max, not {self.pool!r}")
        if wrong := sorted(name for name in self.parameters if not self.members.get(name)):
            raise ConfigError(f"these parameters belong to no unit: {', '.join(wrong)}; give each a member")
        if unknown := sorted(self.members.keys() - self.parameters.keys()):
            raise ConfigError(f"members name parameters that are not masked: {', '.join(unknown)}")
        for name, shape in self.parameters.items():
            for member in self.members[name]:
                _check_labels(name, shape, member, self.spaces)
            if not _covers(self.members[name][0]) and (none := sum(_unowned(self, name))):
                raise ConfigError(f"{none} weights of {name!r} belong to no unit; leave no -1 in all of its members")

    @classmethod
    def of(
        cls,
        parameters: Mapping[str, Shape],
        labels: Mapping[str, Labels],
        pool: Literal["mean", "sum", "max"] = "mean",
    ) -> Self:
        """Return units that lie inside parameters: the unit of every weight, counted from 0 in each parameter."""
        members = {name: (Member(name, values),) for name, values in labels.items()}
        tops = {name: [int(term.max(initial=0)) for term in own.terms] for name, (own,) in members.items()}
        return cls(parameters, {name: sum(top) + 1 for name, top in tops.items()}, members, pool)

    @property
    def shapes(self) -> dict[str, Shape]:
        """A space that is one parameter has its shape; any other has (units, weights per unit) if these are even."""
        shapes: dict[str, Shape] = {}
        for space, total in self.capacities(Mask.ones(self.parameters)).items():
            count, whole = self.spaces[space], self.parameters.get(space, ())
            alone = space in self.parameters and _covers(self.members[space][0]) and total == prod(whole)
            even = (count, total // count) if count and total % count == 0 else (total,)
            shapes[space] = whole if alone and self.members[space][0].space == space else even
        return shapes

    def capacities(self, mask: Mask) -> dict[str, int]:
        """Return the kept weights that each space owns."""
        left = dict.fromkeys(self.spaces, 0)
        for name, count in mask.counts.items():
            if _covers(self.members[name][0]):
                left[self.members[name][0].space] += count
                continue
            for piece in _pieces(self, mask, [name]):
                owned = np.bincount(_owners(self, piece)[piece.kept], minlength=len(left))
                for space, some in zip(left, owned.tolist(), strict=True):
                    left[space] += some
        return left

    def final_count(self, planned: int) -> int:
        """Return `planned`; what is kept may be less, by up to one unit."""
        return planned

    def select(self, scores: Scores, mask: Mask, keep: int | Counts, floors: Counts | None = None) -> Mask:
        """Return the best units that fit into `keep` weights: all spaces ranked together, or each with its own count.

        `floors` guarantee a space its best units worth so many weights, rounded up to whole units; a weight that is
        also in another space's unit can still go with that one. With counts per space, a weight counts for its owner's
        space, and no space can have another unit without some space exceeding its count. Units that are already empty
        take no part.

        Raises `ScoreError` as `ticketkit.select` does and if a pooled score overflows, `BudgetError` if a count is out
        of range, or not even the best unit fits.
        """
        if problems := shape_differences(self.parameters, mask.shapes):
            raise BudgetError("the units are of other parameters than the mask:\n  " + "\n  ".join(problems))
        select(scores, mask, mask.kept)  # refuses scores that cannot be ranked
        if unknown := sorted((floors or {}).keys() - self.spaces.keys()):
            raise BudgetError(f"floors name spaces that there are not: {unknown}; there are: {', '.join(self.spaces)}")
        contest = _Contest(self, mask, *_pooled(self, scores, mask))
        if not isinstance(keep, Mapping):
            return contest.together(whole_number(keep, "keep"), floors or {})
        if wrong := sorted(keep.keys() ^ self.spaces.keys()):
            raise BudgetError(f"a count is needed for every space of units and no other; check {wrong}")
        return contest.apart(keep, floors or {})


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


@dataclass(frozen=True)
class _Piece:
    """A run of consecutive weights: which are kept, and for each member the unit of each (-1: none)."""

    name: str
    start: int
    kept: Array
    units: list[Array]


def _pieces(units: Units, mask: Mask, names: Iterable[str]) -> Iterator[_Piece]:
    """Yield the weights of some parameters, in order; the units of all spaces are numbered through."""
    first = _firsts(units)
    for name in names:
        shape = units.parameters[name]
        for start in range(0, prod(shape), CHUNK):
            stop = min(start + CHUNK, prod(shape))
            numbered = []
            for member in units.members[name]:
                labels = sum(_flat(term, shape, start, stop) for term in member.terms)
                numbered.append(np.where(labels >= 0, labels + first[member.space], -1))
            yield _Piece(name, start, kept_run(mask, name, start, stop), numbered)


def _firsts(units: Units) -> dict[str, int]:
    """Return the number of the first unit of each space."""
    ends = np.cumsum(list(units.spaces.values()), dtype=np.int64).tolist()
    return {space: end - count for (space, count), end in zip(units.spaces.items(), ends, strict=True)}


def _covers(member: Member) -> bool:
    """Return whether a member surely has a unit for every weight."""
    return all(int(term.min(initial=0)) == 0 for term in member.terms)


def _unowned(units: Units, name: str) -> Iterator[int]:
    """Yield how many weights of each run of a parameter are in no unit."""
    for piece in _pieces(units, Mask.ones({name: units.parameters[name]}), [name]):
        yield int(np.sum(np.max(piece.units, axis=0) < 0))


def _owners(units: Units, piece: _Piece) -> Array:
    """Return for every weight which space owns it, by its place among the spaces."""
    owner = piece.units[0]
    for other in piece.units[1:]:
        owner = np.where(owner < 0, other, owner)
    return np.searchsorted(list(_firsts(units).values()), owner, side="right") - 1


def _flat(term: Array, shape: Shape, start: int, stop: int) -> Array:
    """Return a flat run of an array that broadcasts to `shape`, in memory of the size of the run."""
    whole = np.broadcast_to(term, shape)
    row = prod(shape[1:])
    if not shape or row > CHUNK:
        return whole.flat[start:stop]
    first = start // row
    return whole[first : -(-stop // row)].reshape(-1)[start - first * row : stop - first * row]


def kept_run(mask: Mask, name: str, start: int, stop: int) -> Array:
    """Return a flat run of a mask as bools."""
    packed = np.frombuffer(mask.bits(name), np.uint8)[start // 8 : (stop + 7) // 8]
    return np.unpackbits(packed, bitorder="little")[start % 8 :][: stop - start].view(np.bool_)


def _pooled(units: Units, scores: Scores, mask: Mask) -> tuple[Array, Array]:
    """Return the pooled score of every unit and its kept weights, a weight counted once for each of its units.

    Sums run over the weights in order, member by member, so that neither the chunks nor threads can change a bit.
    """
    slots = max((len(members) for members in units.members.values()), default=1)
    total = sum(units.spaces.values())
    highest = units.pool == "max"
    values = np.full((slots, total), -np.inf if highest else 0.0)
    counts = np.zeros(total, np.int64)
    pool = np.maximum if highest else np.add
    with np.errstate(over="ignore", invalid="ignore"):
        for piece in _pieces(units, mask, units.parameters):
            stop = piece.start + len(piece.kept)
            run = flat_slice(scores, piece.name, piece.start, stop).to("cpu", torch.float64).numpy()
            for slot, own in enumerate(piece.units):
                new = piece.kept & (own >= 0)
                for earlier in piece.units[:slot]:
                    new &= own != earlier
                pool.at(values[slot], own[new], run[new])
                np.add.at(counts, own[new], 1)
        pooled = pool.reduce(values, axis=0)
    if units.pool == "mean":
        pooled = pooled / np.maximum(counts, 1)
    if not np.isfinite(pooled[counts > 0]).all():
        raise ScoreError(f"the {units.pool} of the scores of a unit overflows float64; divide the scores by 1e100")
    return pooled, counts


@dataclass(frozen=True, eq=False)
class _Contest:
    """Units about to be ranked: the pooled score of each, the weights still in it, and the span of every space."""

    units: Units
    mask: Mask
    scores: Array
    counts: Array

    @property
    def spans(self) -> dict[str, slice]:
        """The numbers of the units of each space."""
        return {space: slice(first, first + self.units.spaces[space]) for space, first in _firsts(self.units).items()}

    def together(self, keep: int, floors: Counts) -> Mask:
        """Return the mask of the best units of all spaces, after those that the floors guarantee."""
        sure = np.zeros(len(self.scores), np.bool_)
        if any(floors.values()):
            ranks = self._ranks(list(self.spans.values()), sure)
            for (space, span), sizes in zip(self.spans.items(), self._sizes(ranks, apart=True), strict=True):
                stop = span.start + _needed(sizes, floors.get(space, 0), space)
                sure[span] = (ranks[span] >= 0) & (ranks[span] < stop)
        ranks = self._ranks([slice(0, len(self.scores))], sure)
        (sizes,) = self._sizes(ranks, apart=False)
        number, guaranteed = _fitting(sizes, keep, f"the {len(self.spans)} spaces of units"), int(np.sum(sure))
        if number < guaranteed:
            raise BudgetError(f"floors ask for {sizes[guaranteed - 1]} weights, the budget is {keep}; lower the floors")
        return self._mask(ranks < number)

    def apart(self, keep: Counts, floors: Counts) -> Mask:
        """Return the mask of the best units of each space within its own count."""
        budgets = {space: whole_number(keep[space], f"keep[{space!r}]") for space in self.spans}
        ranks = self._ranks(list(self.spans.values()), np.zeros(len(self.scores), np.bool_))
        sizes = dict(zip(self.spans, self._sizes(ranks, apart=True), strict=True))
        for space, budget in budgets.items():
            _check_range(sizes[space], budget, f"space {space!r}")
        numbers = {space: int(np.searchsorted(sizes[space], budgets[space], side="right")) for space in self.spans}
        if any(len({member.space for member in members}) > 1 for members in self.units.members.values()):
            self._grow(ranks, numbers, budgets)
        chosen = self._mask(self._stay(ranks, numbers))
        for space, kept in self.units.capacities(chosen).items():
            if budgets[space] and not kept:
                raise _nothing_fits(sizes[space], budgets[space], f"space {space!r}")
            if numbers[space] < (needed := _needed(sizes[space], floors.get(space, 0), space)):
                raise BudgetError(
                    f"the floor of {space!r} is {floors[space]} weights, which whole units meet with "
                    f"{sizes[space][needed - 1]}, but its count is {budgets[space]}; lower the floor or raise the count"
                )
        return chosen

    def _grow(self, ranks: Array, numbers: dict[str, int], budgets: Counts) -> None:
        """Give every space as many more units as fit, space by space, until none can have another.

        Counts started from each space alone, so that where its weights are also in units of other spaces, which take
        some of them, there is room left.
        """
        kept = self.units.capacities(self._mask(self._stay(ranks, numbers)))
        room = np.array([budgets[space] - kept[space] for space in self.spans])[:, None]
        grown = True
        while grown:
            grown = False
            for space in self.spans:
                added = np.cumsum(self._gains(ranks, numbers, space), axis=1)
                more = int(np.sum((added <= room).all(axis=0)))
                if more:
                    numbers[space] += more
                    room -= added[:, more - 1 : more]
                    grown = True

    def _gains(self, ranks: Array, numbers: Mapping[str, int], space: str) -> Array:
        """Return, for each owner (row), how many weights come with each next unit of a space (column)."""
        span, stay = self.spans[space], self._stay(ranks, numbers)
        next_rank = span.start + numbers[space]
        gains = np.zeros((len(self.spans), max(0, span.stop - next_rank)), np.int64)
        names = [name for name, members in self.units.members.items() if space in [member.space for member in members]]
        for piece in _pieces(self.units, self.mask, names):
            places, waiting = np.full(len(piece.kept), -1), piece.kept.copy()
            for member, own in zip(self.units.members[piece.name], piece.units, strict=True):
                if member.space == space:
                    places = np.maximum(places, ranks[own])
                else:
                    waiting &= stay[own]
            waiting &= places >= next_rank
            np.add.at(gains, (_owners(self.units, piece)[waiting], places[waiting] - next_rank), 1)
        return gains

    def _stay(self, ranks: Array, numbers: Mapping[str, int]) -> Array:
        """Return for every unit whether it is among so many best of its space; True for empty units and none."""
        stay: Array = ranks < 0
        for space, span in self.spans.items():
            stay[span] = ranks[span] < span.start + numbers[space]
        return stay

    def _ranks(self, spans: list[slice], sure: Array) -> Array:
        """Return each unit's place, counted from the start of its span; -1 for an empty unit and (at -1) for none."""
        ranks = np.full(len(self.scores) + 1, -1)
        for span in spans:
            alive = np.flatnonzero(self.counts[span]) + span.start
            order = alive[np.lexsort((-self.scores[alive], ~sure[alive]))]  # stable: equals by position
            ranks[order] = np.arange(span.start, span.start + len(order))
        return ranks

    def _sizes(self, ranks: Array, *, apart: bool) -> list[Array]:
        """Return how many weights the best 1, 2, … units of each space keep (`apart`), or those of all spaces.

        A weight goes with the worst of its units; `apart`, only those in its owner's space count.
        """
        histogram, spaces = np.zeros(len(self.scores), np.int64), list(self.spans)
        for piece in _pieces(self.units, self.mask, self.units.parameters):
            places = np.full(len(piece.kept), -1)
            owners = _owners(self.units, piece) if apart else None
            for member, own in zip(self.units.members[piece.name], piece.units, strict=True):
                counted = True if owners is None else owners == spaces.index(member.space)
                places = np.where(counted, np.maximum(places, ranks[own]), places)
            np.add.at(histogram, places[piece.kept], 1)
        return [np.cumsum(histogram[span]) for span in (self.spans.values() if apart else [slice(None)])]

    def _mask(self, stay: Array) -> Mask:
        """Return the weights all of whose units stay."""
        packed: dict[str, list[bytes]] = {name: [] for name in self.mask}
        for piece in _pieces(self.units, self.mask, self.units.parameters):
            kept = piece.kept & np.logical_and.reduce([stay[own] for own in piece.units])
            packed[piece.name].append(np.packbits(kept, bitorder="little").tobytes())
        bits = {name: b"".join(parts) for name, parts in packed.items()}
        return Mask.from_bits(self.mask.shapes, bits, aliases=self.mask.aliases)


def _needed(sizes: Array, floor: int, space: str) -> int:
    """Return how many of the best units it takes for `floor` weights."""
    left = int(sizes[-1]) if len(sizes) else 0
    if floor > left:
        raise BudgetError(f"floor of {space!r} is {floor} weights, but only {left} are left")
    return int(np.searchsorted(sizes, floor)) + 1 if floor > 0 else 0


def _fitting(sizes: Array, keep: int, what: str) -> int:
    """Return how many of the best units fit into `keep` weights."""
    _check_range(sizes, keep, what)
    number = int(np.searchsorted(sizes, keep, side="right"))
    if keep and not (number and sizes[number - 1]):
        raise _nothing_fits(sizes, keep, what)
    return number


def _check_range(sizes: Array, keep: int, what: str) -> None:
    left = int(sizes[-1]) if len(sizes) else 0
    if not 0 <= keep <= left:
        raise BudgetError(f"cannot keep {keep} weights: {what} has {left} left; choose a count from 0 to {left}")


def _nothing_fits(sizes: Array, keep: int, what: str) -> BudgetError:
    return BudgetError(
        f"cannot keep {keep} weights: units stay or go whole, and the best of {what} has "
        f"{sizes[np.flatnonzero(sizes)[0]]}; keep more, choose a finer granularity, or leave it out of the scope"
    )
