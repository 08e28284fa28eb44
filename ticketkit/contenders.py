"""The weights that are ranked together: their scores, read in chunks that fit a processor cache, in canonical order."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Self

import numpy as np
import torch

from ticketkit.criterion import flat_slice, here, parts_of
from ticketkit.distributed import ALL_RANKS, ALONE, Ranks
from ticketkit.errors import ScoreError
from ticketkit.mask import Mask
from ticketkit.sharding import Part

Array = np.ndarray[Any, np.dtype[Any]]

CHUNK = 1 << 18  # scores per step; a multiple of 8, small enough for the second-level cache
SAMPLE = 1 << 17  # scores that bracket the threshold, at least
STRIDE = 1 << 10  # of so many scores, one at least is in the sample

# For each byte of a packed mask, the highest score its eight weights may show: +inf if kept, -inf if pruned.
KEPT = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
CEILINGS = {
    torch.float32: np.where(KEPT, np.float32(np.inf), np.float32(-np.inf)),
    torch.float64: np.where(KEPT, np.inf, -np.inf),
}


@dataclass(frozen=True)
class Chunk:
    """A run of consecutive weights of one parameter; pruned ones score -inf (or NaN, if that was their score)."""

    name: str
    values: Array


@dataclass(frozen=True)
class Contenders:
    """The weights that are ranked together, as far as they are here: flat scores and packed bits, part by part."""

    scores: Mapping[str, torch.Tensor]
    bits: Mapping[str, bytes]
    sizes: Mapping[str, int]
    parts: Mapping[str, Part] | None
    """Where the parts lie in the parameters; None if everything is here."""
    dtype: torch.dtype
    alive: int
    """Weights that the mask keeps, on all ranks."""
    total: int
    """Weights that the mask covers, on all ranks."""
    ranks: Ranks = ALONE

    @classmethod
    def of(cls, scores: Mapping[str, torch.Tensor], mask: Mask, names: tuple[str, ...], dtype: torch.dtype) -> Self:
        """Return the weights of some parameters of a mask, with their scores."""
        sizes, counts = mask.sizes, mask.counts
        alive, total = (sum(numbers[name] for name in names) for numbers in (counts, sizes))
        parts = parts_of(scores, names)
        if parts is None:
            bits = {name: mask.bits(name) for name in names}
            return cls(scores, bits, {name: sizes[name] for name in names}, None, dtype, alive, total)
        own = {name: part for name, part in parts.items() if part.is_owned}
        return cls(
            scores=here(scores, own),
            bits={name: part.bits(mask.bits(name)) for name, part in own.items()},
            sizes={name: prod(part.sizes) for name, part in own.items()},
            parts=parts,
            dtype=dtype,
            alive=alive,
            total=total,
            ranks=ALL_RANKS,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """All parameters of the pool."""
        return tuple(self.sizes if self.parts is None else self.parts)

    @property
    def empty(self) -> Array:
        """No scores, of the pool's own kind."""
        return np.empty(0, np.float64 if self.dtype is torch.float64 else np.float32)

    def check(self) -> None:
        """Raise `ScoreError` if a weight that is still there has a NaN or infinite score."""
        for _ in self.chunks(check=True):
            pass

    def chunks(self, only: str | None = None, *, check: bool = False) -> Iterator[Chunk]:
        """Yield what is here in canonical order, `only` one parameter or all; `check` refuses what is not finite."""
        for name, size in self.sizes.items():
            if only not in (None, name):
                continue
            bits = np.frombuffer(self.bits[name], np.uint8)
            full = int(np.bitwise_count(bits).sum()) == size
            for start in range(0, size, CHUNK):
                stop = min(start + CHUNK, size)
                values = self._values(name, start, stop)
                packed = bits[start // 8 : (stop + 7) // 8]
                if check and not np.isfinite(values).all():
                    _check_finite(name, values[np.unpackbits(packed, count=len(values), bitorder="little") == 1])
                if not full:
                    ceilings = np.take(CEILINGS[self.dtype], packed, axis=0)
                    values = np.minimum(values, ceilings.reshape(-1)[: len(values)])
                yield Chunk(name, values)

    def sorted_sample(self) -> Array:
        """Return scores of kept weights, evenly spaced over all, in rising order."""
        stride = max(1, min(self.total // SAMPLE, STRIDE)) | 1
        sampled = [self.empty]
        for name, size in self.sizes.items():
            values = self._values(name, 0, size, stride)
            index = np.arange(0, size, stride)
            bits = np.frombuffer(self.bits[name], np.uint8)
            sampled.append(values[(bits[index >> 3] >> (index & 7) & 1).astype(np.bool_)])
        sample = self.ranks.joined(np.concatenate(sampled))
        return np.sort(sample[np.isfinite(sample)])

    def whole(self, bits: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return the packed bits of whole parameters, from those of the parts that are here."""
        if self.parts is None:
            return dict(bits)
        merged = {}
        for name, part in self.parts.items():
            spread = part.spread(bits[name]) if name in bits else np.zeros((prod(part.shape) + 7) // 8, np.uint8)
            merged[name] = self.ranks.summed(spread).tobytes()
        return merged

    def _values(self, name: str, start: int, stop: int, step: int = 1) -> Array:
        return flat_slice(self.scores, name, start, stop, step).to("cpu", self.dtype).numpy()


def _check_finite(name: str, alive: Array) -> None:
    """Raise `ScoreError` when a weight that is still there has a NaN or infinite score."""
    bad = alive[~np.isfinite(alive)]
    if len(bad):
        raise ScoreError(
            f"score of parameter {name!r} is {bad[0]} for at least {len(bad)} weights; only finite scores can be "
            "ranked. Did the training diverge, or the criterion divide by zero?"
        )
