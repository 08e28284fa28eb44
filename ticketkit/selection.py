"""The only place where a selection happens: keep exactly the best `keep` weights, in a streaming, exact way.

Two passes over the scores, in chunks that fit a processor cache. A sorted sample brackets the threshold; the first pass
counts what lies above the bracket and collects the few scores inside it, which settle the threshold exactly; the second
pass writes the mask and hands out ties in canonical order. When the bracket misses or ties overflow it, the threshold
comes from a radix histogram over the scores' bit patterns, equally exact and in bounded memory.

Of scores that are distributed over ranks, each rank reads its own. They exchange counts, the sample, the few undecided
scores and in the end the bits of the mask: the same mask, bit for bit, as one rank would find.
"""

import operator
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isqrt, prod
from typing import Any

import numpy as np
import torch

from ticketkit.contenders import Array, Chunk, Contenders
from ticketkit.criterion import check_scores
from ticketkit.errors import BudgetError
from ticketkit.mask import Mask
from ticketkit.sharding import Part

UNDECIDED = 1 << 22  # scores inside the bracket that may be collected before the radix search takes over,
UNDECIDED_SHARE = 128  # or one in so many of all, if that is more


def select(
    scores: Mapping[str, torch.Tensor],
    mask: Mask,
    keep: int | Mapping[str, int],
    *,
    floors: Mapping[str, int] | None = None,
) -> Mask:
    """Return the mask that keeps the `keep` highest scores among the weights that `mask` keeps.

    With an integer, all parameters are ranked together; with a mapping, each parameter keeps its own count. `floors`
    guarantees a number of weights to a parameter under a joint ranking: its own best are kept first, the rest is ranked
    jointly. Exact for ties: of equal scores the earlier is kept, by (order of names in `mask`, flat index). The result
    is the same for any order of `scores`, any chunk size, and any wider dtype; -0.0 and +0.0 are equal.

    Scores may be distributed tensors (DTensor): every rank then calls this and gets the whole mask.

    Raises `ScoreError` for wrong names, shapes, dtypes or a NaN or infinite score of a weight that is still there, and
    `BudgetError` for a count below 0 or above what `mask` keeps.

    >>> mask = Mask.ones({"a": (3,), "b": (2,)})
    >>> chosen = select({"a": torch.tensor([1.0, 3.0, 2.0]), "b": torch.tensor([2.0, 9.0])}, mask, keep=3)
    >>> chosen["a"].tolist(), chosen["b"].tolist()
    ([False, True, True], [False, True])
    """
    dtype = check_scores(scores, mask)
    if isinstance(keep, Mapping):
        if floors:
            raise BudgetError("floors go with a joint budget (an int); counts per parameter already say it all")
        if wrong := sorted(keep.keys() ^ mask.keys()):
            raise BudgetError(f"a count is needed for every parameter of the mask and no other; check {wrong}")
        bits: dict[str, bytes] = {}
        for name in mask:
            bits |= _best(Contenders.of(scores, mask, (name,), dtype), whole_number(keep[name], f"keep[{name!r}]"))
        return Mask.from_bits(mask.shapes, bits, aliases=mask.aliases)
    budget = whole_number(keep, "keep")
    if not floors:
        return Mask.from_bits(
            mask.shapes, _best(Contenders.of(scores, mask, tuple(mask), dtype), budget), aliases=mask.aliases
        )
    if unknown := sorted(floors.keys() - mask.keys()):
        raise BudgetError(f"floors name parameters that the mask does not cover: {unknown}")
    guaranteed = select(scores, mask, {name: floors.get(name, 0) for name in mask})
    if budget < guaranteed.kept:
        raise BudgetError(f"floors ask for {guaranteed.kept} weights, the budget is {budget}; lower the floors")
    return guaranteed | select(scores, mask - guaranteed, budget - guaranteed.kept)


def whole_number(value: Any, what: str) -> int:
    """Return an integer count; raise `BudgetError` for floats, bools and anything else."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise BudgetError(f"{what} must be a number of weights (an int), not {value!r}; use density for a fraction")
    return operator.index(value)


@dataclass(frozen=True)
class _Threshold:
    """Scores above `value` are kept, and the first `ties` of those equal to it."""

    value: float
    ties: int
    equal: Mapping[str, int] | None = field(default=None, compare=False)
    """How many scores of each parameter that are here equal it, where that is known."""


def _best(contenders: Contenders, keep: int) -> dict[str, bytes]:
    """Return the packed bits of the best `keep` weights of the contenders."""
    if not 0 <= keep <= contenders.alive:
        where = (
            f"parameter {contenders.names[0]!r} has"
            if len(contenders.names) == 1
            else f"{len(contenders.names)} parameters have"
        )
        raise BudgetError(
            f"cannot keep {keep} weights: {where} {contenders.alive} left; choose a count from 0 to {contenders.alive}"
        )
    if keep in (0, contenders.alive):
        contenders.ranks.each(contenders.check)
        return contenders.whole({name: bits if keep else bytes(len(bits)) for name, bits in contenders.bits.items()})
    threshold = _bracketed_threshold(contenders, keep) or _radix_threshold(contenders, keep)
    return contenders.whole(_write(contenders, threshold))


def _bracketed_threshold(contenders: Contenders, keep: int) -> _Threshold | None:
    """Return the exact threshold if a sample brackets it closely, else None; checks that all scores are finite."""
    low, high = _bracket(contenders.sorted_sample(), keep / contenders.alive)
    limit = max(UNDECIDED, contenders.total // UNDECIDED_SHARE)
    above, inside = contenders.ranks.each(lambda: _compared(contenders, low, high, limit))
    above, collected = map(int, contenders.ranks.summed(np.array([above, sum(len(chunk.values) for chunk in inside)])))
    rank = keep - above
    if collected > limit or not 0 < rank <= collected:
        return None
    undecided = contenders.ranks.joined(np.concatenate([contenders.empty, *(chunk.values for chunk in inside)]))
    value = float(np.partition(undecided, collected - rank)[collected - rank])
    return _Threshold(value, rank - int(np.count_nonzero(undecided > value)), _equal(inside, value))


def _compared(contenders: Contenders, low: float, high: float, limit: int) -> tuple[int, list[Chunk]]:
    """Return how many scores lie above a bracket, and those inside; of more than the limit, the first."""
    above, collected = 0, 0
    inside: list[Chunk] = []
    for chunk in contenders.chunks(check=True):
        over = chunk.values > high
        above += int(np.count_nonzero(over))
        if collected <= limit:
            inside.append(Chunk(chunk.name, chunk.values[(chunk.values >= low) ^ over]))
            collected += len(inside[-1].values)
    return above, inside


def _equal(chunks: Iterable[Chunk], value: float) -> Counter[str]:
    """Return how many of some scores equal a value, by parameter."""
    found: Counter[str] = Counter()
    for chunk in chunks:
        found[chunk.name] += int(np.count_nonzero(chunk.values == value))
    return found


def _bracket(sample: Array, density: float) -> tuple[float, float]:
    """Return scores just below and above the `density` upper quantile: five standard errors of the sample's rank."""
    size = len(sample)
    expected = int(size * density)
    margin = 5 * isqrt(expected * (size - expected) // max(size, 1)) + 16
    lowest = np.finfo(sample.dtype).min  # finite, so that pruned weights at -inf stay out
    high = sample[size - expected + margin] if expected > margin else np.inf
    low = sample[size - expected - margin] if expected + margin <= size else lowest
    return low, high


def _radix_threshold(contenders: Contenders, keep: int) -> _Threshold:
    """Return the exact threshold by histograms of 16 bits at a time, highest first."""
    width = 8 * contenders.dtype.itemsize
    prefix, rank = 0, keep
    for shift in range(width - 16, -1, -16):
        histogram = np.zeros(1 << 16, np.int64)
        for chunk in contenders.chunks():
            keys = _ordered_keys(chunk.values[chunk.values > -np.inf])
            if shift < width - 16:
                keys = keys[keys >> (shift + 16) == prefix]
            histogram += np.bincount((keys >> shift & 0xFFFF).astype(np.intp), minlength=1 << 16)
        from_top = np.cumsum(contenders.ranks.summed(histogram)[::-1])
        skipped = int(np.searchsorted(from_top, rank))
        rank -= int(from_top[skipped - 1]) if skipped else 0
        prefix = prefix << 16 | 0xFFFF - skipped
    return _Threshold(_score_of_key(prefix, width), rank)


def _write(contenders: Contenders, threshold: _Threshold) -> dict[str, bytes]:
    """Return packed bits of what is here: everything above the threshold, and the first ties in canonical order."""
    packed: dict[str, list[bytes]] = {name: [] for name in contenders.sizes}
    ties = {"": threshold.ties} if contenders.parts is None else _own_ties(contenders, contenders.parts, threshold)
    for chunk in contenders.chunks():
        kept = chunk.values > threshold.value
        share = "" if contenders.parts is None else chunk.name
        if ties[share]:
            equal = np.flatnonzero(chunk.values == threshold.value)[: ties[share]]
            kept[equal] = True
            ties[share] -= len(equal)
        packed[chunk.name].append(np.packbits(kept, bitorder="little").tobytes())
    return {name: b"".join(parts) for name, parts in packed.items()}


def _own_ties(contenders: Contenders, parts: Mapping[str, Part], threshold: _Threshold) -> dict[str, int]:
    """Return how many ties to keep in each part that is here, so that all ranks keep the first in canonical order.

    Parameters are settled by counts alone; inside the one where ties run out, a bisection of counts finds the place.
    """
    known = _equal(contenders.chunks(), threshold.value) if threshold.equal is None else threshold.equal
    here = {name: known.get(name, 0) for name in parts}
    everywhere = contenders.ranks.summed(np.array(list(here.values()), np.int64))
    left = threshold.ties
    for name, found in zip(here, everywhere.tolist(), strict=True):
        if found > left:
            here[name] = _ties_before(contenders, parts[name], name, threshold.value, left) if left else 0
        left -= min(found, left)
    return {name: here[name] for name in contenders.sizes}


def _ties_before(contenders: Contenders, part: Part, name: str, value: float, ties: int) -> int:
    """Return how many of the first `ties` scores of a parameter that equal `value` are here."""
    runs, start = [np.empty(0, np.int64)], 0
    for chunk in contenders.chunks(name):
        runs.append(start + np.flatnonzero(chunk.values == value))
        start += len(chunk.values)
    positions = part.positions(np.concatenate(runs))
    low, high = 0, prod(part.shape)  # as many ties as asked for lie before `high`, fewer before `low`
    while high - low > 1:
        middle = (low + high) // 2
        before = np.array([np.searchsorted(positions, middle)])
        low, high = (low, middle) if contenders.ranks.summed(before)[0] >= ties else (middle, high)
    return int(np.searchsorted(positions, high))


def _ordered_keys(values: Array) -> Array:
    """Return unsigned integers in the order of the floats; -0.0 and +0.0 get one key."""
    unsigned = np.uint32 if values.dtype == np.float32 else np.uint64
    bits = (values + values.dtype.type(0)).view(unsigned)
    sign = unsigned(1 << bits.itemsize * 8 - 1)
    keys: Array = np.where(bits & sign, ~bits, bits | sign)
    return keys


def _score_of_key(key: int, width: int) -> float:
    """Return the float that `_ordered_keys` maps to `key`."""
    sign = 1 << width - 1
    bits = key ^ sign if key & sign else key ^ (2 * sign - 1)
    unsigned, floating = (np.uint32, np.float32) if width == 32 else (np.uint64, np.float64)
    return float(np.array([bits], unsigned).view(floating)[0])
