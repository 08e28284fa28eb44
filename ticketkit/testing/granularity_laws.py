"""The laws of granularities and of the patterns that they make."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from hypothesis import strategies as st

from ticketkit.allocation import apportion
from ticketkit.criterion import ElementwiseScores
from ticketkit.errors import BudgetError, ScoreError, TicketkitError
from ticketkit.mask import Mask
from ticketkit.plugins import Plugins
from ticketkit.testing.ground import Ground, grounds, named
from ticketkit.testing.scene import Nets
from ticketkit.testing.strategies import DTYPES
from ticketkit.testing.subject import Named, Subject, for_every, listed, without_a_trace

Tensors = dict[str, torch.Tensor]
SHARES = (0.95, 0.75, 0.5, 0.25)  # of the weights that are left


@without_a_trace
def check_granularity(
    granularity: Named,
    *,
    plugins: Plugins | None = None,
    nets: Nets | None = None,
    scope: Mapping[str, Any] | None = None,
    examples: int = 4,
) -> None:
    """Raise `ConformanceError` if a granularity or its pattern breaks a law: all weights once, the budget, only order.

    `granularity` is what `IMP(granularity=...)` takes. It is tried on `nets` (by default the five `TINY_NETS`), with
    `scope`, a mapping of what `Scope.of` takes. Without one it is tried on the default scope, on all parameters, and if
    it has no units for all of the default scope, on the layers one by one. What it refuses with a `ScopeError` is
    passed over, but not everything. On all others chains of selections are drawn, `examples` of them.

    >>> from ticketkit.testing import check_granularity
    >>> check_granularity({"name": "block", "rows": 2, "cols": 3})
    """
    subject = Subject.of("granularity", granularity, plugins)
    tried = grounds(subject, nets, scope)
    for ground in tried:
        _covers_every_weight_once(ground)
        _ends_at_whole_numbers(ground)
        _keeps_its_floors(ground)
        for_every(_chains(), partial(_obeys, ground), examples=examples)
    _prunes_somewhere(subject, tried)


@dataclass(frozen=True)
class _Chain:
    """Selections one after another: the seed of the scores, whether most of them tie, their dtype, the shares kept."""

    seed: int
    tied: bool
    dtype: torch.dtype
    shares: tuple[float, ...]


def _chains() -> st.SearchStrategy[_Chain]:
    shares = st.lists(st.sampled_from(SHARES), min_size=1, max_size=2).map(tuple)
    return st.builds(_Chain, st.integers(0, 2**20), st.booleans(), st.sampled_from(DTYPES), shares)


def _obeys(ground: Ground, chain: _Chain) -> None:
    """Hold every law against every mask of a chain, whose scores differ from step to step."""
    mask = ground.scope.ones()
    for step, share in enumerate(chain.shares):
        scores = _scores(mask, chain.seed + step, chain.dtype, tied=chain.tied)
        keep = max(1, round(share * mask.kept))
        _counts_what_is_left(ground, mask)
        _keeps_all_if_all_may_stay(ground, mask, scores)
        _refuses_scores_that_cannot_be_ranked(ground, mask, scores)
        chosen = ground.selected(mask, scores, keep)
        if chosen is None:
            return
        _selects_the_same_whatever_does_not_change_the_order(ground, mask, scores, keep, chosen)
        _takes_counts_for_its_parts(ground, mask, scores, keep)
        mask = chosen
    _counts_what_is_left(ground, mask)


def _covers_every_weight_once(ground: Ground) -> None:
    law = "cover every weight once: the products of pattern.shapes sum to the weights in scope"
    sizes = {name: prod(shape) for name, shape in ground.pattern.shapes.items()}
    if sum(sizes.values()) != ground.scope.total:
        raise ground.broken(law, "", f"{sizes}, which sum to {sum(sizes.values())}, not {ground.scope.total}")
    whole = ground.left(ground.scope.ones())
    if list(whole.items()) != list(sizes.items()):
        law = "count, while nothing is pruned, the product of each of pattern.shapes as its capacity, in their order"
        raise ground.broken(law, "", f"capacities {whole} for sizes {sizes}")


def _counts_what_is_left(ground: Ground, mask: Mask) -> None:
    left = ground.left(mask)
    if list(left) != list(ground.pattern.shapes) or any(type(count) is not int for count in left.values()):
        law = "give capacities as Python ints, for every name of pattern.shapes, in their order"
        raise ground.broken(law, named(mask), f"{left}")
    if sum(left.values()) != mask.kept:
        law = "give capacities that sum to the weights that are left"
        raise ground.broken(law, named(mask), f"{left}, which sum to {sum(left.values())}, not {mask.kept}")


def _ends_at_whole_numbers(ground: Ground) -> None:
    total = ground.scope.total
    for planned in sorted({max(1, round(share * total)) for share in SHARES}):
        law = f"name as final_count a Python int from 1 to {total}, or raise BudgetError"
        where = f"{planned} of {total} weights planned"
        try:
            end = ground.subject.attempt(f"{ground.where}, {where}", ground.pattern.final_count, planned)
        except BudgetError:
            continue
        except TicketkitError as error:
            raise ground.broken(law, where, f"{type(error).__name__}: {error}") from error
        if type(end) is not int or not 1 <= end <= total:
            raise ground.broken(law, where, f"{end!r}")


def _keeps_its_floors(ground: Ground) -> None:
    """A part with a floor keeps as many weights, though it scores lowest; unless its weights are in other parts too.

    That they are shows when only this part may keep all it has, and it does not.
    """
    mask = ground.scope.ones()
    scores = _scores(mask, 0, torch.float32)
    capacities = ground.left(mask)
    for part, capacity in capacities.items():
        only = {name: capacity if name == part else 0 for name in capacities}
        alone = ground.selected(mask, scores, only) if 1 < capacity < mask.kept else None
        if alone is None or ground.left(alone) != only:
            continue
        low = {name: values - 100 * alone[name].to(values) for name, values in scores.items()}
        floor = capacity // 2
        keep = max(mask.kept - capacity, floor)
        chosen = ground.selected(mask, low, keep, {part: floor})
        if chosen is not None and ground.left(chosen)[part] < floor:
            raise ground.broken(
                "keep of each of pattern.shapes at least its floor, or raise BudgetError",
                f"{keep} of {mask.kept} weights to stay, floors={{{part!r}: {floor}}}, the scores of {part!r} lowest",
                f"{ground.left(chosen)}",
            )


def _keeps_all_if_all_may_stay(ground: Ground, mask: Mask, scores: Tensors) -> None:
    law, where = "keep everything when keep is all that is left", f"{ground.where}, {named(mask)}"
    chosen: Mask = ground.subject.insist(law, where, ground.raw, mask, scores, mask.kept)
    if chosen != mask:
        raise ground.broken(law, named(mask), f"{chosen.kept} of {mask.kept} weights kept")


def _refuses_scores_that_cannot_be_ranked(ground: Ground, mask: Mask, scores: Tensors) -> None:
    name = next(name for name, count in mask.counts.items() if count)
    place = tuple(mask[name].nonzero()[0].tolist())
    spoilt = {**scores, name: scores[name].clone()}
    spoilt[name][place] = torch.nan
    law, where = "raise ScoreError when a weight that is left scores NaN", f"{named(mask)}, {name!r}{list(place)} NaN"
    try:
        ground.raw(mask, spoilt, max(1, mask.kept - 1))
    except ScoreError:
        return
    except TicketkitError as error:
        raise ground.broken(law, where, f"{type(error).__name__}: {error}") from error
    raise ground.broken(law, where, "a mask")


def _selects_the_same_whatever_does_not_change_the_order(
    ground: Ground, mask: Mask, scores: Tensors, keep: int, chosen: Mask
) -> None:
    """Selections follow from the order of the scores of what is left, and from nothing else."""
    variants: dict[str, tuple[Ground, Mapping[str, torch.Tensor]]] = {
        "again": (ground, scores),
        "with a pattern that is built again": (ground.rebuilt(), scores),
        "with the scores in another order": (ground, dict(list(scores.items())[::-1])),
        "with the same scores in float64": (ground, _scaled(scores, 1)),
        "with all scores 2^30 times as high": (ground, _scaled(scores, 2**30)),
        "with all scores 2^-30 times as high": (ground, _scaled(scores, 2**-30)),
        "with scores of NaN for what is pruned": (
            ground,
            {name: values.masked_fill(~mask[name], torch.nan) for name, values in scores.items()},
        ),
        "with scores that are computed when read": (ground, ElementwiseScores(lambda _, part: part, scores)),
    }
    for what, (other, same) in variants.items():
        again = other.selected(mask, same, keep)
        if again != chosen:
            came = "a BudgetError" if again is None else f"{(again - chosen).kept} other weights of {again.kept}"
            law = f"select the same {what}: only the order of the scores of what is left may matter"
            raise ground.broken(law, f"{named(mask)}, {keep} to stay", f"{chosen.kept} weights, then {came}")


def _takes_counts_for_its_parts(ground: Ground, mask: Mask, scores: Tensors, keep: int) -> None:
    """Counts for each of the shapes, as allocators make them, are a budget too."""
    capacities = ground.left(mask)
    ground.selected(mask, scores, apportion(capacities, keep, capacities=capacities))


def _prunes_somewhere(subject: Subject, tried: list[Ground]) -> None:
    """There is a budget below all weights that can be met; units that are everything prune nothing."""
    for ground in tried:
        mask = ground.scope.ones()
        scores = _scores(mask, 0, torch.float32)
        if any(ground.selected(mask, scores, max(1, round(share * mask.kept))) for share in SHARES):
            return
    raise subject.broken(
        f"be able to keep a part of the weights, at one of the densities {SHARES}; give nets= that are large enough",
        listed([ground.where for ground in tried]),
        "a BudgetError for each",
    )


def _scores(mask: Mask, seed: int, dtype: torch.dtype, *, tied: bool = False) -> Tensors:
    """Return scores of about one, of both signs; `tied`: of four different values."""
    draw = torch.Generator().manual_seed(seed)
    if tied:
        return {name: torch.randint(-2, 2, shape, generator=draw).to(dtype) for name, shape in mask.shapes.items()}
    return {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in mask.shapes.items()}


def _scaled(scores: Tensors, factor: float) -> Tensors:
    return {name: values.double() * factor for name, values in scores.items()}
