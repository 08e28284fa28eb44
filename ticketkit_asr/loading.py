"""Batches for training, in order, from processes that load ahead, and how long training waited for them."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from ticketkit_asr.examples import Example, Examples, Fault

Key = tuple[int, int | None]


def batches(examples: Examples, plan: Sequence[Sequence[Key]], *, workers: int) -> Iterator[list[Example | Fault]]:
    """Yield the examples of each batch of the plan, in order; `workers` processes load them ahead.

    torch's global random generator is left alone. A batch is the same whatever the number of workers.
    """
    loader: DataLoader[Any] = DataLoader(
        examples,
        batch_sampler=plan,  # type: ignore[arg-type]
        collate_fn=list,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        generator=torch.Generator(),
        worker_init_fn=_one_thread if workers else None,
    )
    return iter(loader)


class Waiting:
    """Passes on what an iterator yields, and measures the seconds that were spent waiting for it."""

    def __init__(self, items: Iterator[list[Example | Fault]]):
        self._items = items
        self._started = time.monotonic()
        self.seconds = 0.0

    def __next__(self) -> list[Example | Fault]:
        started = time.monotonic()
        try:
            return next(self._items)
        finally:
            self.seconds += time.monotonic() - started

    @property
    def share(self) -> float:
        """The part of the time since the start that went into waiting."""
        passed = time.monotonic() - self._started
        return self.seconds / passed if passed else 0.0


def _one_thread(worker: int) -> None:
    """Keep a worker from waiting for threads of its own, which the training uses already."""
    torch.set_num_threads(1)
