"""`check_granularity` refuses every kind of bad granularity and pattern, and says why."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ticketkit import BudgetError, ConfigError, Layout, Mask, ScopeError, Units, select
from ticketkit.testing import TINY_NETS, ConformanceError, check_granularity, mlp

MLP = {"mlp": TINY_NETS["mlp"]}
Scores = Mapping[str, torch.Tensor]


def rows(layout: Layout) -> Units:
    """Return units of one row each."""
    labels = {name: np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)) for name, shape in layout.shapes.items()}
    return Units.of(layout.shapes, labels)


def recurrent(layout: Layout) -> Units:
    """Return units of the rows of recurrent layers, and of no others."""
    if others := [name for name, (place, *_) in layout.holders.items() if not isinstance(place.module, nn.RNNBase)]:
        raise ScopeError(f"no units for {', '.join(others)}")
    return rows(layout)


@dataclass(frozen=True)
class Single:
    """Weights one by one: the pattern that mutants are made of."""

    shapes: Mapping[str, tuple[int, ...]]

    def capacities(self, mask: Mask) -> dict[str, int]:
        return mask.counts

    def final_count(self, planned: int) -> int:
        return planned

    def select(self, scores: Scores, mask: Mask, keep: Any, floors: Any = None) -> Mask:
        return select(scores, mask, keep, floors=None if isinstance(keep, Mapping) else floors)


def single(layout: Layout) -> Single:
    return Single(layout.shapes)


@pytest.mark.parametrize("good", [rows, single, recurrent], ids=lambda good: good.__name__)
def test_good_granularities_pass(good: Callable[[Layout], Any]) -> None:
    check_granularity(good, nets={name: TINY_NETS[name] for name in ("convnet", "tied_gru")}, examples=2)


def test_networks_and_a_scope_of_ones_own_are_tried() -> None:
    def heads(layout: Layout) -> Units:
        if list(layout.shapes) != ["3.weight"]:
            raise ScopeError(f"no units for {', '.join(layout.shapes)}")
        return rows(layout)

    check_granularity(heads, nets={"own": mlp}, scope={"include": ["3.*"]})
    with pytest.raises(
        ConformanceError, match=r"have units for some network.*\n.*\n  came: own: no units for 0.weight"
    ):
        check_granularity(heads, nets={"own": mlp}, scope={"include": ["0.*"]})


# Mutants


class NoShapes(Single):
    def capacities(self, mask: Mask) -> dict[str, int]:
        return dict(list(mask.counts.items())[:1])


class AllForever(Single):
    def capacities(self, mask: Mask) -> dict[str, int]:
        return mask.sizes


class Numpy(Single):
    def capacities(self, mask: Mask) -> dict[str, Any]:
        return {name: np.int64(count) for name, count in mask.counts.items()}


class Forgetful(Single):
    def capacities(self, mask: Mask) -> dict[str, int]:
        if mask.density < 1:
            raise BudgetError("pruned masks are not counted")
        return mask.counts


class HalfEnd(Single):
    def final_count(self, planned: int) -> Any:
        return planned / 2


class NoEnd(Single):
    def final_count(self, planned: int) -> int:
        raise ConfigError("no end")


class Threshold(Single):
    """Keeps all that ties with the last."""

    def select(self, scores: Scores, mask: Mask, keep: Any, floors: Any = None) -> Mask:
        chosen = super().select(scores, mask, keep, floors)
        lowest = min(float(scores[name][chosen[name]].min()) for name in chosen if chosen[name].any())
        return mask & Mask({name: scores[name] >= lowest for name in mask}, aliases=mask.aliases)


class Regrowing(Single):
    def select(self, scores: Scores, mask: Mask, keep: Any, floors: Any = None) -> Mask:
        if mask.density == 1 or isinstance(keep, Mapping) or keep == mask.kept:
            return super().select(scores, mask, keep, floors)
        super().select(scores, mask, keep, floors)
        everything = {name: torch.nan_to_num(scores[name]) for name in mask}
        return select(everything, Mask.ones(mask.shapes, aliases=mask.aliases), keep)


class OneLess(Single):
    def select(self, scores: Scores, mask: Mask, keep: Any, floors: Any = None) -> Mask:
        return super().select(scores, mask, keep if isinstance(keep, Mapping) else keep - 1, floors)


class Nothing(Single):
    def select(self, scores: Scores, mask: Mask, keep: Any, floors: Any = None) -> Mask:
        super().select(scores, mask, keep, floors)
        return mask if keep == mask.kept else mask - mask


class Refusing(Single):
    """Refuses every budget below all."""

    def select(self, scores: Scores, mask: Mask, keep: Any, floors: Any = None) -> Mask:
        if keep != mask.kept:
            super().select(scores, mask, keep, floors)
            raise BudgetError("all or nothing")
        return mask


class Impolite(Single):
    def select(self, scores: Scores, mask: Mask, keep: Any, floors: Any = None) -> Mask:
        if keep != mask.kept:
            raise ConfigError("too few")
        return mask


class Lenient(Single):
    """Takes NaN for zero."""

    def select(self, scores: Scores, mask: Mask, keep: Any, floors: Any = None) -> Mask:
        return super().select({name: torch.nan_to_num(scores[name]) for name in scores}, mask, keep, floors)


class Strict(Single):
    """Wants scores of pruned weights to be finite as well."""

    def select(self, scores: Scores, mask: Mask, keep: Any, floors: Any = None) -> Mask:
        select(scores, Mask.ones(mask.shapes), 0)
        return super().select(scores, mask, keep, floors)


class Renaming(Single):
    def select(self, scores: Scores, mask: Mask, keep: Any, floors: Any = None) -> Mask:
        return Mask(dict(super().select(scores, mask, keep, floors)))


class Bare(Single):
    def select(self, scores: Scores, mask: Mask, keep: Any, floors: Any = None) -> Any:
        return dict(super().select(scores, mask, keep, floors))


class InPlace(Single):
    def select(self, scores: Scores, mask: Mask, keep: Any, floors: Any = None) -> Mask:
        chosen = super().select(scores, mask, keep, floors)
        for name in scores:
            scores[name].zero_()
        return chosen


class DictOrder(Single):
    """Breaks ties in the order of the scores."""

    def select(self, scores: Scores, mask: Mask, keep: Any, floors: Any = None) -> Mask:
        turned = Mask({name: mask[name] for name in scores}, aliases=mask.aliases)
        chosen = super().select(scores, turned, keep, floors)
        return Mask({name: chosen[name] for name in mask}, aliases=mask.aliases)


class Squashed(Single):
    """Ranks scores as far as 1; what is above ties."""

    def select(self, scores: Scores, mask: Mask, keep: Any, floors: Any = None) -> Mask:
        return super().select({name: scores[name].clamp(max=1) for name in scores}, mask, keep, floors)


class Coarse(Single):
    """Ranks half-precision scores in quarters."""

    def select(self, scores: Scores, mask: Mask, keep: Any, floors: Any = None) -> Mask:
        if next(iter(scores.values())).dtype.itemsize == 2:
            scores = {name: (4 * scores[name]).round() for name in scores}
        return super().select(scores, mask, keep, floors)


class Wavering(Single):
    """Turns the scores round at random."""

    def select(self, scores: Scores, mask: Mask, keep: Any, floors: Any = None) -> Mask:
        sign = random.choice((1, -1))
        return super().select({name: sign * scores[name] for name in scores}, mask, keep, floors)


class Tensors(Single):
    """Takes nothing but dicts of scores."""

    def select(self, scores: Scores, mask: Mask, keep: Any, floors: Any = None) -> Mask:
        return super().select(dict.copy(scores), mask, keep, floors)  # type: ignore[arg-type]


class Floorless(Single):
    def select(self, scores: Scores, mask: Mask, keep: Any, floors: Any = None) -> Mask:
        return super().select(scores, mask, keep)


class Whole(Single):
    """Wants its budget in one number."""

    def select(self, scores: Scores, mask: Mask, keep: Any, floors: Any = None) -> Mask:
        return select(scores, mask, int(keep), floors=floors)


class Spendthrift(Single):
    """Keeps to counts only while nothing is pruned."""

    def select(self, scores: Scores, mask: Mask, keep: Any, floors: Any = None) -> Mask:
        chosen = super().select(scores, mask, keep, floors)
        return mask if isinstance(keep, Mapping) and mask.density < 1 else chosen


def made_of(pattern: Callable[[Mapping[str, tuple[int, ...]]], Any]) -> Callable[[Layout], Any]:
    return lambda layout: pattern(layout.shapes)


def trained(layout: Layout) -> Single:
    layout.model.eval()
    return single(layout)


def drawn_rows(layout: Layout) -> Units:
    labels = {name: np.array(random.Random().choices(range(4), k=prod(shape))) for name, shape in layout.shapes.items()}
    return Units.of(layout.shapes, {n: labels[n].reshape(shape) for n, shape in layout.shapes.items()})


def one_unit(layout: Layout) -> Units:
    """Return one unit of one parameter."""
    if len(layout.shapes) > 1:
        raise ScopeError("one parameter at a time")
    return Units.of(layout.shapes, dict.fromkeys(layout.shapes, 0))


def refuses(layout: Layout) -> Units:
    raise ScopeError("no units for anything")


def refuses_wrongly(layout: Layout) -> Units:
    raise ConfigError("no units for anything")


def matrices(layout: Layout) -> Units:
    """Fails for biases, which have no second axis."""
    labels = {name: np.arange(shape[1])[None, :].repeat(shape[0], 0) for name, shape in layout.shapes.items()}
    return Units.of(layout.shapes, labels)


MUTANTS: dict[str, tuple[Callable[[Layout], Any], str]] = {
    "shapes alone": (
        lambda layout: dict(layout.shapes),
        r"return a pattern, which has shapes.*\n.*\n.*a dict without shapes",
    ),
    "half of the weights": (
        made_of(lambda shapes: Single({n: (prod(s) // 2,) for n, s in shapes.items()})),
        r"cover every weight once.*\n.*\n.*which sum to 36, not 72",
    ),
    "a part without capacity": (
        made_of(NoShapes),
        r"count, while nothing is pruned, .*\n.*\n.*capacities \{'0.weight': 48\} for",
    ),
    "capacities that stay": (made_of(AllForever), r"capacities that sum to the weights that are left.*\n.*\n.*not \d+"),
    "numpy's integers": (made_of(Numpy), r"give capacities as Python ints.*\n.*72 of 72 weights left\n.*np.int64"),
    "no capacities when pruned": (
        made_of(Forgetful),
        r"say of any mask that it reaches how many.*\n.*\n.*BudgetError: pruned",
    ),
    "an end in floats": (
        made_of(HalfEnd),
        r"name as final_count a Python int from 1 to 72.*\n.*18 of 72.*\n  came: 9.0",
    ),
    "an end refused wrongly": (made_of(NoEnd), r"name as final_count .* or raise BudgetError\n.*\n  came: ConfigError"),
    "ties kept": (made_of(Threshold), r"keep no more weights than the budget\n.*\n  came: \d+ weights of \d+"),
    "weights brought back": (made_of(Regrowing), r"keep nothing that is pruned already: masks are nested"),
    "one less": (made_of(OneLess), r"keep everything when keep is all that is left\n.*\n.*71 of 72"),
    "nothing kept": (made_of(Nothing), r"keep something, or raise BudgetError when not even one unit fits"),
    "every budget refused": (made_of(Refusing), r"be able to keep a part of the weights, at one of the densities"),
    "one unit": (one_unit, r"be able to keep a part of the weights.*\n  where: mlp, 0.\* alone; mlp, 3.\* alone"),
    "a budget refused wrongly": (
        made_of(Impolite),
        r"raise ScoreError when a weight|with a BudgetError\n.*\n.*ConfigError",
    ),
    "NaN taken": (
        made_of(Lenient),
        r"raise ScoreError when a weight that is left scores NaN\n.*'0.weight'\[0, 0\] NaN",
    ),
    "NaN of pruned weights refused": (made_of(Strict), r"refuse a budget .*\n.*\n.*ScoreError"),
    "a dict": (made_of(Bare), r"return a Mask\n.*\n  came: a dict"),
    "scores changed": (made_of(InPlace), r"leave the scores as they are\n.*\n  came: other scores of '0.weight'"),
    "ties in the order of a dict": (made_of(DictOrder), r"select the same with the scores in another order"),
    "a fixed scale": (made_of(Squashed), r"select the same with all scores 2\^-?30 times as high"),
    "half precision": (made_of(Coarse), r"select the same with the same scores in float64"),
    "at random": (made_of(Wavering), r"select the same again|with a pattern that is built again"),
    "dicts of scores alone": (made_of(Tensors), r"raise nothing but a TicketkitError.*\n.*\n  came: TypeError"),
    "floors not looked at": (
        made_of(Floorless),
        r"keep of each of pattern.shapes at least its floor, or raise BudgetError",
    ),
    "counts not looked at": (made_of(Whole), r"raise nothing but a TicketkitError.*\n.*\n  came: TypeError"),
    "counts not kept to": (
        made_of(Spendthrift),
        r"keep no more weights than the budget\n.*\{'0.weight': \d+, '3.weight'",
    ),
    "other units each time": (drawn_rows, r"select the same with a pattern that is built again"),
    "a model changed": (trained, r"only look at the model and the random generators\n.*\n.*the mode of module ''"),
    "everything refused": (
        refuses,
        r"have units for some network; give nets= and scope=.*\n.*\n.*no units for anything",
    ),
    "refused by another error": (refuses_wrongly, r"for which it has no units with a ScopeError.*\n.*\n.*ConfigError"),
    "a bug with biases": (
        matrices,
        r"raise nothing but a TicketkitError.*\n  where: mlp, biases too\n  came: IndexError",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_bad_granularity_is_refused(name: str) -> None:
    granularity, message = MUTANTS[name]
    with pytest.raises(ConformanceError, match=message):
        check_granularity(granularity, nets=MLP)


def test_a_mask_without_its_aliases_is_refused() -> None:
    message = r"the same parameters in the same order, with the same aliases\n  where: tied_gru"
    with pytest.raises(ConformanceError, match=message):
        check_granularity(made_of(Renaming), nets={"tied_gru": TINY_NETS["tied_gru"]})
