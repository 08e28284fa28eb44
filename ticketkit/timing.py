"""How long calls take beside each other."""

import time
from collections.abc import Callable, Hashable, Mapping
from statistics import median
from typing import TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)


def timed(calls: Mapping[Key, Callable[[], object]], *, repeats: int = 15) -> dict[Key, float]:
    """Return the median seconds of each call, all taken in turn so that a busy machine slows all alike."""
    return {key: median(seconds) for key, seconds in measured(calls, repeats=repeats).items()}


def measured(calls: Mapping[Key, Callable[[], object]], *, repeats: int = 15) -> dict[Key, list[float]]:
    """Return the seconds of every call, taken in turn after one that does not count; without gradients."""
    seconds: dict[Key, list[float]] = {key: [] for key in calls}
    with torch.no_grad():
        for turn in range(repeats + 1):
            for key, call in calls.items():
                started = time.perf_counter()
                call()
                if turn:
                    seconds[key].append(time.perf_counter() - started)
    return seconds
