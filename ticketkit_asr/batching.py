"""Which utterances train together: batches of similar length, in an order that depends on seed and epoch alone."""

from collections.abc import Sequence
from random import Random

_POOL_BATCHES = 8
"""Batches cut from one pool: more waste less padding, fewer mix lengths better."""


def training_batches(lengths: Sequence[int], *, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return every index of `lengths` once, in batches of `batch_size` (one may be smaller) of similar length.

    Utterances are shuffled, pooled, sorted by length within their pool and cut into batches, which are shuffled again:
    the same for the same arguments on every machine, another for every epoch.
    """
    random = Random(f"batches/{seed}/{epoch}")
    order = list(range(len(lengths)))
    random.shuffle(order)
    pool = batch_size * _POOL_BATCHES
    pools = (sorted(order[start : start + pool], key=lambda i: lengths[i]) for start in range(0, len(order), pool))
    batches = [batch for indices in pools for batch in chunks(indices, batch_size)]
    random.shuffle(batches)
    return batches


def evaluation_batches(lengths: Sequence[int], *, batch_size: int) -> list[list[int]]:
    """Return every index of `lengths` once, from the shortest utterance to the longest, in batches of `batch_size`."""
    return chunks(sorted(range(len(lengths)), key=lambda i: (lengths[i], i)), batch_size)


def chunks(indices: Sequence[int], size: int) -> list[list[int]]:
    """Return consecutive pieces of `size` indices; the last may be shorter."""
    return [list(indices[start : start + size]) for start in range(0, len(indices), size)]
