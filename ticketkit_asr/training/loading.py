"""Batches for training, in order, from processes that load ahead, and how long training waited for them."""

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ticketkit_asr.training.examples import Example, Examples, Fault

Key = tuple[int, int | None]
Batch = list[Example | Fault]


class Loader:
    """Loads batches of examples; its `workers` processes start at the first batch and stay as long as it does.

    torch's global random generator is left alone. A batch is the same whatever the number of workers.
    """

    def __init__(self, examples: Examples, *, workers: int) -> None:
        self._plan = _Plan()
        self._current: Generator[Batch] = (_ for _ in ())
        self._loader: DataLoader[Any] = DataLoader(
            examples,
            batch_sampler=self._plan,  # type: ignore[arg-type]
            collate_fn=packed if workers else list,
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
            generator=torch.Generator(),
            worker_init_fn=_one_thread if workers else None,
            persistent_workers=workers > 0,
        )

    def batches(self, plan: Iterable[Sequence[Key]]) -> Iterator[Batch]:
        """Yield the examples of each batch of the plan, in order; an earlier plan is given up."""
        self._current.close()
        self._plan.batches = plan
        self._current = self._loaded()
        return self._current

    def _loaded(self) -> Generator[Batch]:
        items = iter(self._loader)  # in the main thread, so that workers that die are noticed at once
        if not self._loader.num_workers:
            yield from items
            return
        with ThreadPoolExecutor(1) as thread:  # a batch takes several turns of two processes to arrive
            arriving = thread.submit(next, items, None)
            while (batch := arriving.result()) is not None:
                arriving = thread.submit(next, items, None)
                yield unpacked(batch)


@dataclass(frozen=True, eq=False)
class Packed:
    """A batch on its way from one process to another: each tensor that travels costs a connection."""

    features: Tensor | None
    """Those of all examples, one after another: (frames, bins); None when there are none."""
    items: Sequence[tuple[str, int, list[int], str] | Fault]
    """Of each example id, frames, labels and text."""


def packed(batch: Sequence[Example | Fault]) -> Packed:
    """Return a batch in one tensor."""
    features = [item.features for item in batch if isinstance(item, Example)]
    items = [
        item if isinstance(item, Fault) else (item.id, len(item.features), item.target.tolist(), item.text)
        for item in batch
    ]
    return Packed(torch.cat(features) if features else None, items)


def unpacked(batch: Packed) -> Batch:
    """Return what was packed; the features are views of one tensor."""
    lengths = [item[1] for item in batch.items if not isinstance(item, Fault)]
    features = iter(() if batch.features is None else torch.split(batch.features, lengths))
    return [
        item
        if isinstance(item, Fault)
        else Example(item[0], next(features), torch.tensor(item[2], dtype=torch.int64), item[3])
        for item in batch.items
    ]


class Waiting:
    """Passes on what an iterator yields, and measures how long that took; the first item, with its start, apart."""

    def __init__(self, items: Iterator[Batch]):
        self._items = items
        self.first: float | None = None
        """The seconds until the first item was there."""
        self.begin()

    def begin(self) -> None:
        """Measure from now on."""
        self._started = time.monotonic()
        self._waited = 0.0

    def __next__(self) -> Batch:
        asked = time.monotonic()
        try:
            return next(self._items)
        finally:
            waited = time.monotonic() - asked
            if self.first is None:
                self.first = waited
                self.begin()
            else:
                self._waited += waited

    @property
    def share(self) -> float:
        """The part of the time since the beginning, or since the first item, that went into waiting."""
        passed = time.monotonic() - self._started
        return self._waited / passed if passed else 0.0


class _Plan:
    """What a loader is to load next."""

    batches: Iterable[Sequence[Key]] = ()

    def __iter__(self) -> Iterator[Sequence[Key]]:
        return iter(self.batches)


def _one_thread(worker: int) -> None:
    """Keep a worker from waiting for threads of its own, which the training uses already."""
    torch.set_num_threads(1)
