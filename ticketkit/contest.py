"""The ranking of units: what each is worth, and the longest list of best ones whose weights fit a budget."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import Literal, Self

import numpy as np
import torch

from ticketkit.criterion import flat_slice
from ticketkit.errors import BudgetError, ScoreError
from ticketkit.granularity import Array, Counts, Scores
from ticketkit.mask import Mask
from ticketkit.members import Membership, Piece
from ticketkit.selection import whole_number

Pool = Literal["mean", "sum", "max"]


@dataclass(frozen=True, eq=False)
class Contest:
    """Units about to be ranked: the pooled score of each and the kept weights in it, by its number.

    `alone` are those of its weights whose parameter has no other members.
    """

    members: Membership
    mask: Mask
    scores: Array
    counts: Array
    alone: Array

    @classmethod
    def of(cls, members: Membership, scores: Scores, mask: Mask, pool: Pool) -> Self:
        """Return the contest of all units; a weight counts once for each of its units.

        For each place in the lists of members, scores are added in float64 one by one in the order of parameters and
        flat indices; then the sums of the places, in their order. So neither the chunks nor threads can change a bit.
        """
        slots = max(map(len, members.members.values()), default=1)
        values = np.full((slots, members.total + 1), -np.inf if pool == "max" else 0.0)  # at the end what is in no unit
        counts, alone = np.zeros((2, members.total + 1), np.int64)
        join, neutral = (np.maximum, _or_lowest) if pool == "max" else (np.add, _or_zero)
        with np.errstate(over="ignore", invalid="ignore"):
            for piece in members.pieces(mask, members.parameters):
                run = flat_slice(scores, piece.name, piece.start, piece.stop).to("cpu", torch.float64).numpy()
                for (own, counted), pools in zip(_distinct(piece), values, strict=False):
                    join.at(pools, own, neutral(run, counted))
                    np.add.at(alone if len(piece.slots) == 1 else counts, own, counted.astype(np.int64))
            counts, alone = (counts + alone)[:-1], alone[:-1]
            pooled = join.reduce(values[:, :-1], axis=0)
        if pool == "mean":
            pooled = pooled / np.maximum(counts, 1)
        if not np.isfinite(pooled[counts > 0]).all():
            raise ScoreError(f"the {pool} of the scores of a unit overflows float64; divide the scores by 1e100")
        return cls(members, mask, pooled, counts, alone)

    def together(self, keep: int, floors: Counts) -> Mask:
        """Return the mask of the best units of all spaces, after those that the floors guarantee."""
        sure = np.zeros(len(self.scores), np.bool_)
        if any(floors.values()):
            ranks = self._ranks(list(self.members.spans.values()), sure)
            sure = self._sure(ranks, self._sizes(ranks, apart=True), floors)
        return self._jointly(keep, sure, f"the {len(self.members.spans)} spaces of units")

    def apart(self, keep: Counts, floors: Counts) -> Mask:
        """Return the mask of the best units of each space within its own count, none if not even the best one fits.

        A space with a floor has its count raised to the whole units that the floor takes. If that exceeds the sum of
        the counts, the units chosen so far are ranked jointly, those of the floors first; if no space's count is enough
        for a unit, all units are.
        """
        spans = self.members.spans
        budgets = {space: whole_number(keep[space], f"keep[{space!r}]") for space in spans}
        if below := [space for space, floor in floors.items() if budgets[space] < floor]:
            listed = ", ".join(f"{space!r} has {budgets[space]} below {floors[space]}" for space in below)
            raise BudgetError(f"counts are below their floors: {listed}; raise the counts or lower the floors")
        ranks = self._ranks(list(spans.values()), np.zeros(len(self.scores), np.bool_))
        sizes = self._sizes(ranks, apart=True)
        for space, budget in budgets.items():
            _check_range(sizes[space], budget, f"space {space!r}")
        sure = self._sure(ranks, sizes, floors)
        numbers = {
            space: max(int(np.searchsorted(sizes[space], budgets[space], side="right")), int(np.sum(sure[span])))
            for space, span in spans.items()
        }
        if any(len({member.space for member in self.members.members[name]}) > 1 for name in self.members.coupled):
            self._grow(ranks, numbers, budgets)
        stay = self._stay(ranks, numbers)
        chosen, total = self._mask(stay), sum(budgets.values())
        if total and not chosen.kept:
            return self._jointly(total, sure, "what is split in too small counts")
        if chosen.kept <= total:
            return chosen
        counts, alone = (np.where(stay[:-1], numbers_of, 0) for numbers_of in (self.counts, self.alone))
        return Contest(self.members, chosen, self.scores, counts, alone)._jointly(total, sure, "what the counts leave")

    def _jointly(self, keep: int, sure: Array, what: str) -> Mask:
        """Return the mask of the best units of all spaces, after those that are sure."""
        ranks = self._ranks([slice(0, len(self.scores))], sure)
        sizes, guaranteed = self._sizes(ranks, apart=False)[""], int(np.sum(sure))
        _check_range(sizes, keep, what)
        number = int(np.searchsorted(sizes, keep, side="right"))
        if number < guaranteed:
            raise BudgetError(f"floors ask for {sizes[guaranteed - 1]} weights, the budget is {keep}; lower the floors")
        if keep and not (number and sizes[number - 1]):
            raise BudgetError(
                f"cannot keep {keep} weights: units stay or go whole, and the best of {what} has {_least(sizes)}; "
                "keep more, choose a finer granularity, or leave it out of the scope"
            )
        return self._mask(ranks < number)

    def _sure(self, ranks: Array, sizes: Mapping[str, Array], floors: Counts) -> Array:
        """Return which units the floors guarantee, for ranks inside each space."""
        sure = np.zeros(len(self.scores), np.bool_)
        for space, span in self.members.spans.items():
            stop = span.start + _needed(sizes[space], floors.get(space, 0), space)
            sure[span] = (ranks[span] >= 0) & (ranks[span] < stop)
        return sure

    def _grow(self, ranks: Array, numbers: dict[str, int], budgets: Counts) -> None:
        """Give every space as many more units as fit, space by space, until none can have another.

        Counts started from each space alone, so that where its weights are also in units of other spaces, which take
        some of them, there is room left.
        """
        kept = self.members.owned(self._mask(self._stay(ranks, numbers)))
        room = np.array([max(0, budgets[space] - kept[space]) for space in budgets])[:, None]
        idle = 0
        for space in cycle(budgets):
            added = np.cumsum(self._gains(ranks, numbers, space), axis=1)
            more = int(np.sum((added <= room).all(axis=0)))
            idle = 1 if more else idle + 1
            if more:
                numbers[space] += more
                room = room - added[:, more - 1 : more]
            if idle == len(budgets):
                return

    def _gains(self, ranks: Array, numbers: Mapping[str, int], space: str) -> Array:
        """Return, for each owner (row), how many weights come with each next unit of a space (column)."""
        span, stay = self.members.spans[space], self._stay(ranks, numbers)
        next_rank, rows = span.start + numbers[space], {other: row for row, other in enumerate(self.members.spans)}
        gains = np.zeros((len(rows), max(0, span.stop - next_rank)), np.int64)
        of_space = [name for name, own in self.members.members.items() if space in [member.space for member in own]]
        for piece in self.members.pieces(self.mask, of_space if gains.size else []):
            places, waiting = (
                _worst([slot.look(ranks, piece) for slot in piece.slots if slot.space == space]),
                piece.kept,
            )
            for slot in piece.slots:
                if slot.space != space:
                    waiting = waiting & slot.look(stay, piece)
            waiting, columns = waiting & (places >= next_rank), np.maximum(places - next_rank, 0)
            for owner, owned in piece.owned_by():
                np.add.at(gains[rows[owner]], columns, (waiting & owned).astype(np.int64))
        return gains

    def _stay(self, ranks: Array, numbers: Mapping[str, int]) -> Array:
        """Return for every unit whether it is among so many best of its space; True for empty units and none."""
        stay: Array = ranks < 0
        for space, span in self.members.spans.items():
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

    def _sizes(self, ranks: Array, *, apart: bool) -> dict[str, Array]:
        """Return how many weights the best 1, 2, … units of each space keep (`apart`), or (as "") those of all spaces.

        A weight goes with the worst of its units; `apart`, only those in its owner's space count.
        """
        histogram = np.zeros(len(ranks), np.int64)  # at the end what has no place, which is no kept weight
        histogram[ranks[:-1]] = self.alone
        for piece in self.members.pieces(self.mask, self.members.coupled):
            for owner, owned in piece.owned_by():
                slots = [slot for slot in piece.slots if not apart or slot.space == owner]
                places = _worst([slot.look(ranks, piece) for slot in slots])
                np.add.at(histogram, places, (piece.kept & owned).astype(np.int64))
        spans = self.members.spans if apart else {"": slice(0, len(self.scores))}
        return {space: np.cumsum(histogram[span]) for space, span in spans.items()}

    def _mask(self, stay: Array) -> Mask:
        """Return the weights all of whose units stay."""
        packed: dict[str, list[bytes]] = {name: [] for name in self.mask}
        for piece in self.members.pieces(self.mask, self.members.parameters):
            kept = np.logical_and.reduce([piece.kept, *(slot.look(stay, piece) for slot in piece.slots)])
            packed[piece.name].append(np.packbits(kept, bitorder="little").tobytes())
        bits = {name: b"".join(parts) for name, parts in packed.items()}
        return Mask.from_bits(self.mask.shapes, bits, aliases=self.mask.aliases)


def _distinct(piece: Piece) -> list[tuple[Array, Array]]:
    """Return for each slot the units of the weights, and which are kept and not in that unit by an earlier slot."""
    found: list[tuple[Array, Array]] = []
    for slot in piece.slots:
        own, counted = slot.units(piece), piece.kept
        for earlier, (before, _) in zip(piece.slots, found, strict=False):
            if earlier.space == slot.space:
                counted = counted & (own != before)
        found.append((own, counted))
    return found


def _or_zero(run: Array, counted: Array) -> Array:
    """Return the scores with +0.0, which no sum can feel, for what is not counted, whatever its score."""
    return run if counted.all() else (run.view(np.int64) & -counted.astype(np.int64)).view(np.float64)


def _or_lowest(run: Array, counted: Array) -> Array:
    """Return the scores with -inf for what is not counted, whatever its score."""
    return run if counted.all() else np.where(counted, run, -np.inf)


def _worst(places: list[Array]) -> Array:
    """Return the last of the places of every weight."""
    worst: Array = np.maximum.reduce(places) if len(places) > 1 else places[0]
    return worst


def _least(sizes: Array) -> int:
    """Return how many weights the fewest best units have that have any."""
    return int(sizes[np.flatnonzero(sizes)[0]])


def _needed(sizes: Array, floor: int, space: str) -> int:
    """Return how many of the best units it takes for `floor` weights."""
    left = int(sizes[-1]) if len(sizes) else 0
    if floor > left:
        raise BudgetError(f"floor of {space!r} is {floor} weights, but only {left} are left")
    return int(np.searchsorted(sizes, floor)) + 1 if floor > 0 else 0


def _check_range(sizes: Array, keep: int, what: str) -> None:
    left = int(sizes[-1]) if len(sizes) else 0
    if not 0 <= keep <= left:
        raise BudgetError(f"cannot keep {keep} weights: {what} has {left} left; choose a count from 0 to {left}")
