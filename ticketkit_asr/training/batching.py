"""Which utterances train together: batches of similar length, in an order that depends on seed and epoch alone."""

from collections.abc import Iterator, Sequence
from random import Random

_POOL_BATCHES = 8
"""Batches cut from one pool: more waste less padding, fewer mix lengths better."""


def training_batches(
    lengths: Sequence[int], *, batch_size: int, seed: int, epoch: int, most_frames: int | None = None
) -> list[list[int]]:
    """Return every index of `lengths` once, in batches of similar length.

    A batch holds at most `batch_size` utterances and, padded to its longest, at most `most_frames`; an utterance that
    is longer than these is a batch of its own. Utterances are shuffled, pooled, sorted by length within their pool and
    cut into batches, which are shuffled again: the same for the same arguments on every machine, another for every
    epoch.
    """
    random = Random(f"batches/{seed}/{epoch}")
    order = list(range(len(lengths)))
    random.shuffle(order)
    pool = batch_size * _POOL_BATCHES
    pools = (sorted(order[start : start + pool], key=lambda i: lengths[i]) for start in range(0, len(order), pool))
    batches = [batch for indices in pools for batch in cut(indices, lengths, batch_size, most_frames)]
    random.shuffle(batches)
    return batches


def evaluation_batches(lengths: Sequence[int], *, batch_size: int, most_frames: int | None = None) -> list[list[int]]:
    """Return every index of `lengths` once, from the shortest utterance to the longest, in batches as in training."""
    return list(cut(sorted(range(len(lengths)), key=lambda i: (lengths[i], i)), lengths, batch_size, most_frames))


def cut(
    indices: Sequence[int], lengths: Sequence[int], batch_size: int, most_frames: int | None
) -> Iterator[list[int]]:
    """Yield consecutive pieces of at most `batch_size` indices and `most_frames` padded frames."""
    batch: list[int] = []
    for index in indices:
        longest = max((lengths[i] for i in (*batch, index)), default=0)
        full = len(batch) == batch_size or (most_frames is not None and longest * (len(batch) + 1) > most_frames)
        if batch and full:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def steps(batches: Sequence[list[int]], *, accumulate: int) -> list[list[list[int]]]:
    """Return the batches of each optimizer step."""
    return [list(batches[start : start + accumulate]) for start in range(0, len(batches), accumulate)]
