"""The only place where a selection happens: keep exactly the best `keep` weights, in a streaming, exact way.

Two passes over the scores, in chunks that fit a processor cache. A sorted sample brackets the threshold; the first pass
counts what lies above the bracket and collects the few scores inside it, which settle the threshold exactly; the second
pass writes the mask and hands out ties in canonical order. When the bracket misses or ties overflow it, the threshold
comes from a radix histogram over the scores' bit patterns, equally exact and in bounded memory.
"""

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
import torch

from ticketkit.criterion import check_scores, flat_slice
from ticketkit.errors import BudgetError, ScoreError
from ticketkit.mask import Mask

Array = np.ndarray[Any, np.dtype[Any]]

CHUNK = 1 << 18  # scores per step; a multiple of 8, small enough for the second-level cache
SAMPLE = 1 << 17  # scores that bracket the threshold
UNDECIDED = 1 << 22  # scores inside the bracket that may be collected before the radix search takes over

# For each byte of a packed mask, the highest score its eight weights may show: +inf if kept, -inf if pruned.
KEPT = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
CEILINGS = {
    torch.float32: np.where(KEPT, np.float32(np.inf), np.float32(-np.inf)),
    torch.float64: np.where(KEPT, np.inf, -np.inf),
}


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
            bits |= _best(_Pool(scores, mask, (name,), dtype), whole_number(keep[name], f"keep[{name!r}]"))
        return Mask.from_bits(mask.shapes, bits, aliases=mask.aliases)
    budget = whole_number(keep, "keep")
    if not floors:
        return Mask.from_bits(mask.shapes, _best(_Pool(scores, mask, tuple(mask), dtype), budget), aliases=mask.aliases)
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
class _Chunk:
    """A run of consecutive weights of one parameter; pruned ones score -inf (or NaN, if that was their score)."""

    name: str
    values: Array


@dataclass(frozen=True)
class _Threshold:
    """Scores above `value` are kept, and the first `ties` of those equal to it."""

    value: float
    ties: int


@dataclass(frozen=True)
class _Pool:
    """The weights that are ranked together."""

    scores: Mapping[str, torch.Tensor]
    mask: Mask
    names: tuple[str, ...]
    dtype: torch.dtype

    @property
    def alive(self) -> int:
        counts = self.mask.counts
        return sum(counts[name] for name in self.names)

    def chunks(self, *, check: bool = False) -> Iterator[_Chunk]:
        """Yield the scores in canonical order; with `check`, raise `ScoreError` at the first that is not finite."""
        sizes, counts = self.mask.sizes, self.mask.counts
        for name in self.names:
            bits = np.frombuffer(self.mask.bits(name), np.uint8)
            full = counts[name] == sizes[name]
            for start in range(0, sizes[name], CHUNK):
                stop = min(start + CHUNK, sizes[name])
                values = self._values(name, start, stop)
                packed = bits[start // 8 : (stop + 7) // 8]
                if check and not np.isfinite(values).all():
                    _check_finite(name, values[np.unpackbits(packed, count=len(values), bitorder="little") == 1])
                if not full:
                    ceilings = np.take(CEILINGS[self.dtype], packed, axis=0)
                    values = np.minimum(values, ceilings.reshape(-1)[: len(values)])
                yield _Chunk(name, values)

    def sorted_sample(self) -> Array:
        """Return about `SAMPLE` scores of kept weights, evenly spaced over all, in rising order."""
        sizes = self.mask.sizes
        stride = max(1, sum(sizes[name] for name in self.names) // SAMPLE) | 1
        sampled = []
        for name in self.names:
            values = self._values(name, 0, sizes[name], stride)
            index = np.arange(0, sizes[name], stride)
            bits = np.frombuffer(self.mask.bits(name), np.uint8)
            sampled.append(values[(bits[index >> 3] >> (index & 7) & 1).astype(np.bool_)])
        sample = np.concatenate(sampled)
        return np.sort(sample[np.isfinite(sample)])

    def _values(self, name: str, start: int, stop: int, step: int = 1) -> Array:
        return flat_slice(self.scores, name, start, stop, step).to("cpu", self.dtype).numpy()


def _best(pool: _Pool, keep: int) -> dict[str, bytes]:
    """Return the packed bits of the best `keep` weights of the pool."""
    alive = pool.alive
    if not 0 <= keep <= alive:
        where = f"parameter {pool.names[0]!r} has" if len(pool.names) == 1 else f"{len(pool.names)} parameters have"
        raise BudgetError(f"cannot keep {keep} weights: {where} {alive} left; choose a count from 0 to {alive}")
    if keep in (0, alive):
        for _ in pool.chunks(check=True):
            pass
        return {name: pool.mask.bits(name) if keep else bytes(len(pool.mask.bits(name))) for name in pool.names}
    return _write(pool, _bracketed_threshold(pool, keep) or _radix_threshold(pool, keep))


def _bracketed_threshold(pool: _Pool, keep: int) -> _Threshold | None:
    """Return the exact threshold if a sample brackets it closely, else None; checks that all scores are finite."""
    low, high = _bracket(pool.sorted_sample(), keep / pool.alive)
    above, collected, inside = 0, 0, []
    for chunk in pool.chunks(check=True):
        over = chunk.values > high
        above += int(np.count_nonzero(over))
        if collected <= UNDECIDED:
            inside.append(chunk.values[(chunk.values >= low) ^ over])
            collected += len(inside[-1])
    rank = keep - above
    if collected > UNDECIDED or not 0 < rank <= collected:
        return None
    undecided = np.concatenate(inside)
    value = float(np.partition(undecided, collected - rank)[collected - rank])
    return _Threshold(value, rank - int(np.count_nonzero(undecided > value)))


def _bracket(sample: Array, density: float) -> tuple[float, float]:
    """Return scores just below and above the `density` upper quantile: five standard errors of the sample's rank."""
    size = len(sample)
    expected = int(size * density)
    margin = 5 * isqrt(expected * (size - expected) // max(size, 1)) + 16
    lowest = np.finfo(sample.dtype).min  # finite, so that pruned weights at -inf stay out
    high = sample[size - expected + margin] if expected > margin else np.inf
    low = sample[size - expected - margin] if expected + margin <= size else lowest
    return low, high


def _radix_threshold(pool: _Pool, keep: int) -> _Threshold:
    """Return the exact threshold by histograms of 16 bits at a time, highest first."""
    width = 8 * pool.dtype.itemsize
    prefix, rank = 0, keep
    for shift in range(width - 16, -1, -16):
        histogram = np.zeros(1 << 16, np.int64)
        for chunk in pool.chunks():
            keys = _ordered_keys(chunk.values[chunk.values > -np.inf])
            if shift < width - 16:
                keys = keys[keys >> (shift + 16) == prefix]
            histogram += np.bincount((keys >> shift & 0xFFFF).astype(np.intp), minlength=1 << 16)
        from_top = np.cumsum(histogram[::-1])
        skipped = int(np.searchsorted(from_top, rank))
        rank -= int(from_top[skipped - 1]) if skipped else 0
        prefix = prefix << 16 | 0xFFFF - skipped
    return _Threshold(_score_of_key(prefix, width), rank)


def _write(pool: _Pool, threshold: _Threshold) -> dict[str, bytes]:
    """Return packed bits: everything above the threshold, and the first ties in canonical order."""
    packed: dict[str, list[bytes]] = {name: [] for name in pool.names}
    ties = threshold.ties
    for chunk in pool.chunks():
        kept = chunk.values > threshold.value
        if ties:
            equal = np.flatnonzero(chunk.values == threshold.value)[:ties]
            kept[equal] = True
            ties -= len(equal)
        packed[chunk.name].append(np.packbits(kept, bitorder="little").tobytes())
    return {name: b"".join(parts) for name, parts in packed.items()}


def _check_finite(name: str, alive: Array) -> None:
    """Raise `ScoreError` when a weight that is still there has a NaN or infinite score."""
    bad = alive[~np.isfinite(alive)]
    if len(bad):
        raise ScoreError(
            f"score of parameter {name!r} is {bad[0]} for at least {len(bad)} weights; only finite scores can be "
            "ranked. Did the training diverge, or the criterion divide by zero?"
        )


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
