"""Units larger than a weight: rows, blocks, recurrent units, whatever a granularity puts together."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Self

from ticketkit.contest import Contest, Pool
from ticketkit.criterion import gathered
from ticketkit.errors import BudgetError, ConfigError
from ticketkit.granularity import Counts, Labels, Scores
from ticketkit.mask import Mask, Shape, shape_differences
from ticketkit.members import Member, Membership
from ticketkit.selection import select, whole_number


@dataclass(frozen=True, eq=False)
class Units:
    """Weights live and die in units; a weight of several units is kept if all its units are.

    `spaces` counts the units of each space, and `members` says which units the weights of a parameter are in. Every
    weight is in at least one; the first of them owns it, and it counts for that unit's space. A unit's score is the
    mean, sum or maximum (`pool`) of the scores of its kept weights, in float64. Budgets stay in weights: units are
    ranked by (score, position), and the longest list of best ones is kept whose weights fit.

    >>> import torch
    >>> stripes = Units.of({"w": (4, 3)}, {"w": [[0], [0], [1], [1]]})
    >>> scores = {"w": torch.arange(12.0).reshape(4, 3)}
    >>> stripes.select(scores, Mask.ones({"w": (4, 3)}), keep=7)["w"].int().tolist()
    [[0, 0, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1]]
    """

    parameters: Mapping[str, Shape]
    spaces: Mapping[str, int]
    members: Mapping[str, tuple[Member, ...]]
    pool: Pool = "mean"

    def __post_init__(self) -> None:
        if self.pool not in ("mean", "sum", "max"):
            raise ConfigError(f"pool must be mean, sum or max, not {self.pool!r}")
        self.membership.check()

    @classmethod
    def of(cls, parameters: Mapping[str, Shape], labels: Mapping[str, Labels], pool: Pool = "mean") -> Self:
        """Return units that lie inside parameters: the unit of every weight, counted from 0 in each parameter."""
        members = {name: (Member(name, values),) for name, values in labels.items()}
        tops = {name: [int(term.max(initial=0)) for term in own.terms] for name, (own,) in members.items()}
        return cls(parameters, {name: sum(top) + 1 for name, top in tops.items()}, members, pool)

    @cached_property
    def membership(self) -> Membership:
        """The units as they are read and ranked."""
        return Membership(self.parameters, self.spaces, self.members)

    @property
    def shapes(self) -> dict[str, Shape]:
        """A space that is one parameter has its shape; any other has (units, weights per unit) if these are even."""
        shapes: dict[str, Shape] = {}
        for space, total in self.capacities(Mask.ones(self.parameters)).items():
            count, whole = self.spaces[space], self.parameters.get(space, ())
            alone = space in self.parameters and self.members[space][0].covers and total == prod(whole)
            even = (count, total // count) if count and total % count == 0 else (total,)
            shapes[space] = whole if alone and self.members[space][0].space == space else even
        return shapes

    def capacities(self, mask: Mask) -> dict[str, int]:
        """Return the kept weights that each space owns."""
        return self.membership.owned(mask)

    def final_count(self, planned: int) -> int:
        """Return `planned`; what is kept may be less, by up to one unit."""
        return planned

    def select(self, scores: Scores, mask: Mask, keep: int | Counts, floors: Counts | None = None) -> Mask:
        """Return the best units that fit into `keep` weights: all spaces ranked together, or each with its own count.

        `floors` guarantee a space its best units worth so many weights, rounded up to whole units; a weight that is
        also in another space's unit can still go with that one. Units that are already empty take no part.

        With counts per space, a weight counts for its owner's space. A space keeps no more than its count: nothing, if
        its best unit has more weights than that. No space could have another unit without some space exceeding its
        count. A floor goes before its count: the space keeps the whole units that the floor takes. If all spaces then
        exceed the sum of the counts, the others give way: all that the counts chose is ranked jointly, the floors'
        units first, and what fits into the sum is kept.

        Raises `ScoreError` as `ticketkit.select` does and if a pooled score overflows. Raises `BudgetError` if a count
        is out of range or below its floor, if the floors' units exceed the budget, or if not even one unit fits: the
        best of all, or with counts that of any space.
        """
        if problems := shape_differences(self.parameters, mask.shapes):
            raise BudgetError("the units are of other parameters than the mask:\n  " + "\n  ".join(problems))
        select(scores, mask, mask.kept)  # refuses scores that cannot be ranked
        scores = gathered(scores)
        if unknown := sorted((floors or {}).keys() - self.spaces.keys()):
            raise BudgetError(f"floors name spaces that there are not: {unknown}; there are: {', '.join(self.spaces)}")
        contest = Contest.of(self.membership, scores, mask, self.pool)
        if not isinstance(keep, Mapping):
            return contest.together(whole_number(keep, "keep"), floors or {})
        if wrong := sorted(keep.keys() ^ self.spaces.keys()):
            raise BudgetError(f"a count is needed for every space of units and no other; check {wrong}")
        return contest.apart(keep, floors or {})
