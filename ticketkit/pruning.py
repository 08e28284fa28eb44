"""One pruning step: trained weights → scores → counts → the next mask."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch

from ticketkit.allocation import checked_counts, floor_counts
from ticketkit.analysis import COLLAPSE, collapsed
from ticketkit.criterion import ScoreInputs, check_scores
from ticketkit.errors import (
    BudgetError,
    CollapseError,
    CollapseWarning,
    ConfigError,
    MaskError,
    NoEffectWarning,
    ScoreError,
)
from ticketkit.granularity import Pattern
from ticketkit.mask import Mask
from ticketkit.probe import Probe
from ticketkit.registry import Choice
from ticketkit.rng import derived_seed
from ticketkit.schedule import Target, plan
from ticketkit.sharding import placed_like

OnCollapse = Literal["warn", "stop", "reallocate"]


def _tell_nobody(event: str, **arguments: object) -> None:
    """Stand in for `Plugins.emit` where nobody watches."""


@dataclass(frozen=True)
class Pruner:
    """How every round of a run prunes: criterion, grain, split of the budget, floors, guard and seed.

    `pattern` is what `granularity` made of the parameters; `floors` and the counts of `allocation` are keyed like
    `pattern.shapes`. `probe(seed)` makes what criteria need that look at gradients or activations; it is None when the
    user gave no batches.
    """

    criterion: Choice
    pattern: Pattern
    granularity: Choice
    allocation: Choice
    floors: Mapping[str, int]
    seed: int
    on_collapse: OnCollapse = "warn"
    probe: Callable[[int], Probe] | None = None
    emit: Callable[..., None] = _tell_nobody

    def __post_init__(self) -> None:
        if self.on_collapse not in get_args(OnCollapse):
            raise ConfigError(f"on_collapse must be 'warn', 'stop' or 'reallocate', not {self.on_collapse!r}")
        if self.probe is None and (data := self.criterion.needs - {"initial"}):
            raise ConfigError(
                f"criterion {self.criterion.provenance.entry} looks at {' and '.join(sorted(data))}; give IMP batches= "
                "(a callable that returns an iterable of batches) and loss= (a callable of model and batch that "
                "returns a scalar)"
            )

    def plan(self, schedule: Choice, target: Target | None, start: Mask) -> tuple[int, ...]:
        """Return how many weights are planned after each pruning of a run that begins at `start`, itself first.

        Raises at once what a later round would raise: a floor above the end, an allocation that cannot be met. Warns
        `NoEffectWarning` of rounds that prune nothing.
        """
        with schedule.blamed(BudgetError):
            planned = plan(schedule.call, start.total, target, start=start.kept)
        end = self.pattern.final_count(planned[-1])
        counts = tuple(max(count, end) for count in planned)
        _warn_if_idle(counts)
        if sum(self.floors.values()) > end:
            raise BudgetError(
                f"the floors keep at least {sum(self.floors.values())} of {start.total} weights, but the plan ends at "
                f"{end}; lower the floor or prune fewer rounds"
            )
        capacities = self.pattern.capacities(start)
        for keep in counts[1:]:
            self._allocated(keep, self.floors, capacities)
        return counts

    def next_mask(
        self,
        mask: Mask,
        keep: int,
        *,
        weights: Mapping[str, torch.Tensor],
        initial: Mapping[str, torch.Tensor],
        index: int,
    ) -> Mask:
        """Return the mask of round `index`: a subset of `mask` that keeps `keep` of the trained `weights`.

        Whole units may keep a few less, by less than a unit. Only a criterion that was registered with `regrows` may
        bring pruned weights back. Raises `ScoreError` if the criterion changes a weight, and what `select` raises.
        """
        seed = derived_seed(self.seed, index)
        inputs = ScoreInputs(
            weights={name: weights[name].detach() for name in mask},
            initial={name: placed_like(initial[name].detach(), weights[name]) for name in mask},
            mask=mask,
            generator=torch.Generator().manual_seed(seed),
            keep=keep,
            data=self.probe(seed) if self.probe else None,
        )
        versions = {name: tensor._version for name, tensor in inputs.weights.items()}
        scores = self.criterion.call(inputs)
        with self.criterion.blamed(ScoreError):
            check_scores(scores, mask)
        self.emit("scores_ready", index=index, scores=scores, mask=mask)
        candidates = Mask.ones(mask.shapes, aliases=mask.aliases) if self.criterion.regrows else mask
        with self.criterion.blamed(ScoreError):
            chosen = self._guarded(scores, candidates, min(keep, candidates.kept), index)
        if changed := [name for name, tensor in inputs.weights.items() if tensor._version != versions[name]]:
            raise ScoreError(
                f"criterion {self.criterion.provenance.entry} changed the weights of {', '.join(changed)} in place; "
                "a criterion must only read them (use abs(), not abs_())"
            )
        return chosen

    def _guarded(self, scores: Mapping[str, torch.Tensor], mask: Mask, keep: int, index: int) -> Mask:
        """Return the chosen mask after doing what was asked for when it leaves almost nothing of a parameter."""
        chosen = self._chosen(scores, mask, keep, self.floors)
        thin = collapsed(chosen.densities)
        if not thin:
            return chosen
        listed = ", ".join(f"{name} ({density:.2%} left)" for name, density in thin.items())
        advice = "set a floor such as 0.01, or choose a criterion that compares layers fairly: 'magnitude_over_init'"
        if self.on_collapse == "stop":
            raise CollapseError(f"round {index} would leave almost nothing of {listed}; {advice}")
        if self.on_collapse == "reallocate":
            least = floor_counts(self.pattern.shapes, COLLAPSE)
            capacities = self.pattern.capacities(mask)
            raised = {name: min(max(n, self.floors.get(name, 0)), capacities[name]) for name, n in least.items()}
            chosen = self._chosen(scores, mask, keep, raised)
            advice = f"every part keeps {COLLAPSE:.0%} instead"
        verb = "leaves" if self.on_collapse == "warn" else "would leave"
        message = f"round {index} {verb} almost nothing of {listed}; {advice}"
        warnings.warn(message, CollapseWarning, stacklevel=2)
        return chosen

    def _chosen(self, scores: Mapping[str, torch.Tensor], mask: Mask, keep: int, floors: Mapping[str, int]) -> Mask:
        capacities = self.pattern.capacities(mask)
        counts = self._allocated(keep, floors, capacities)
        least = {name: min(floor, capacities[name]) for name, floor in floors.items()}
        chosen = self.pattern.select(scores, mask, counts, least)
        with self.granularity.blamed(MaskError):
            if not chosen <= mask or chosen.kept > keep:
                raise MaskError(
                    f"a pattern must choose at most {keep} of the {mask.kept} weights that are left, not {chosen.kept}"
                    + ("" if chosen <= mask else ", others among them")
                )
        return chosen

    def _allocated(
        self, keep: int, floors: Mapping[str, int], capacities: Mapping[str, int]
    ) -> int | Mapping[str, int]:
        """Return how a budget is split between the parts of the pattern."""
        counts = self.allocation.call(self.pattern.shapes, keep, floors=floors, capacities=capacities)
        with self.allocation.blamed(BudgetError):
            return checked_counts(counts, keep, floors=floors, capacities=capacities)


def _warn_if_idle(counts: Sequence[int]) -> None:
    if idle := [index for index, (before, after) in enumerate(pairwise(counts), start=1) if before == after]:
        warnings.warn(
            f"rounds {idle} prune nothing: the plan stands still at {counts}. Unless the schedule means that, so few "
            "weights are in scope that the steps vanish: choose fewer rounds or a higher rate",
            NoEffectWarning,
            stacklevel=4,
        )
