"""Where a granularity is tried: networks and scopes for which it has units, each with the pattern it makes of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import nn

from ticketkit.errors import BudgetError, ScopeError, TicketkitError
from ticketkit.granularity import Layout, Pattern
from ticketkit.mask import Mask
from ticketkit.scope import Scope
from ticketkit.testing.models import TINY_NETS
from ticketkit.testing.moment import Moment, alike
from ticketkit.testing.scene import Nets, built
from ticketkit.testing.subject import ConformanceError, Subject, listed

Scores = Mapping[str, torch.Tensor]
Counts = Mapping[str, int]
PARTS = ("shapes", "capacities", "final_count", "select")


@dataclass(frozen=True, eq=False)
class Ground:
    """A granularity's pattern for one scope of one network, and what it says of masks."""

    subject: Subject
    where: str
    model: nn.Module
    scope: Scope
    pattern: Pattern

    def broken(self, law: str, where: str, came: str) -> ConformanceError:
        """Return the error that says which law the pattern breaks."""
        return self.subject.broken(law, f"{self.where}{where and ', '}{where}", came)

    def rebuilt(self) -> Self:
        """Return the same ground with a pattern of its own."""
        return replace(self, pattern=_pattern(self.subject, self.where, self.model, self.scope))

    def left(self, mask: Mask) -> dict[str, int]:
        """Return how many weights are left in each part."""
        law = "say of any mask that it reaches how many weights are left"
        left = self.subject.insist(law, f"{self.where}, {named(mask)}", self.pattern.capacities, mask)
        return dict(left)

    def selected(self, mask: Mask, scores: Scores, keep: int | Counts, floors: Counts | None = None) -> Mask | None:
        """Return what the pattern selects, inside the mask and the budget, or None if that cannot be met."""
        budget = sum(keep.values()) if isinstance(keep, Mapping) else keep
        where = f"{named(mask)}, {keep} to stay" + (f", floors={floors}" if floors else "")
        try:
            chosen = self.raw(mask, scores, keep, floors)
        except BudgetError:
            return None
        except TicketkitError as error:
            law = "refuse a budget that it cannot meet with a BudgetError"
            raise self.broken(law, where, f"{type(error).__name__}: {error}") from error
        if chosen.aliases != mask.aliases or list(chosen.shapes.items()) != list(mask.shapes.items()):
            law = "return a mask of the same parameters in the same order, with the same aliases"
            raise self.broken(law, where, f"{chosen.shapes} with aliases {chosen.aliases}")
        if not chosen <= mask:
            law = "keep nothing that is pruned already: masks are nested"
            raise self.broken(law, where, f"{(chosen - mask).kept} weights that the mask does not keep")
        if chosen.kept > budget:
            raise self.broken("keep no more weights than the budget", where, f"{chosen.kept} weights of {budget}")
        if budget and not chosen.kept:
            law = "keep something, or raise BudgetError when not even one unit fits"
            raise self.broken(law, where, "an empty mask")
        return chosen

    def raw(self, mask: Mask, scores: Scores, keep: int | Counts, floors: Counts | None = None) -> Mask:
        """Return what the pattern selects, if that is a mask and the scores are left alone."""
        before = {name: scores[name].clone() for name in scores}
        where = f"{self.where}, {named(mask)}, {keep} to stay"
        chosen: Any = self.subject.attempt(where, self.pattern.select, scores, mask, keep, floors)
        if changed := [name for name in before if not alike(before[name], scores[name])]:
            raise self.broken("leave the scores as they are", named(mask), f"other scores of {changed[0]!r}")
        if not isinstance(chosen, Mask):
            raise self.broken("return a Mask", named(mask), f"a {type(chosen).__name__}")
        return chosen


def grounds(subject: Subject, nets: Nets | None, scope: Mapping[str, Any] | None) -> list[Ground]:
    """Return the grounds on which a granularity has units; raise `ConformanceError` if there are none."""
    found: list[Ground] = []
    refusals: list[str] = []
    for name, net in (TINY_NETS if nets is None else nets).items():
        found += _on(subject, name, built(net), scope, refusals)
    if not found:
        raise subject.broken(
            "have units for some network; give nets= and scope= that it is for",
            "all that was tried",
            listed(refusals) or "no networks",
        )
    return found


def named(mask: Mask) -> str:
    """Return what messages call a mask."""
    return f"{mask.kept} of {mask.total} weights left"


def _on(
    subject: Subject, name: str, model: nn.Module, scope: Mapping[str, Any] | None, refusals: list[str]
) -> Iterator[Ground]:
    """Yield the grounds on one network: what is asked for, or else the default scope, all, and if need be layers."""
    weights = _tried(subject, name, model, scope or {}, refusals)
    yield from weights
    if scope is None:
        everything = [parameter for parameter, _ in model.named_parameters()]
        yield from _tried(subject, f"{name}, biases too", model, {"include": everything}, [])
        if not weights:
            for layer in _layers(model):
                yield from _tried(subject, f"{name}, {layer}.* alone", model, {"include": [f"{layer}.*"]}, refusals)


def _tried(
    subject: Subject, where: str, model: nn.Module, scope: Mapping[str, Any], refusals: list[str]
) -> list[Ground]:
    try:
        resolved = Scope.of(model, **scope)
        pattern = _pattern(subject, where, model, resolved)
    except ScopeError as error:
        refusals.append(f"{where}: {error}")
        return []
    return [Ground(subject, where, model, resolved, pattern)]


def _pattern(subject: Subject, where: str, model: nn.Module, scope: Scope) -> Pattern:
    """Return the pattern that a granularity makes, the model being left as it was; raise what it refuses with."""
    before = Moment.of(model)
    try:
        pattern: Any = subject.attempt(where, subject.choice.call, Layout.of(model, scope.shapes))
    except TicketkitError as error:
        if isinstance(error, ScopeError):
            raise
        law = "refuse parameters for which it has no units with a ScopeError that names them"
        raise subject.broken(law, where, f"{type(error).__name__}: {error}") from error
    if changed := before.changes():
        raise subject.broken("only look at the model and the random generators", where, f"it changed {listed(changed)}")
    if missing := [part for part in PARTS if not hasattr(pattern, part)]:
        law = f"return a pattern, which has {', '.join(PARTS)}; ticketkit.Units is one"
        raise subject.broken(law, where, f"a {type(pattern).__name__} without {', '.join(missing)}")
    found: Pattern = pattern
    return found


def _layers(model: nn.Module) -> list[str]:
    """Return the names of the parts of a network that have weights to prune."""
    return [name for name, part in model.named_children() if any(p.dim() > 1 for p in part.parameters())]
