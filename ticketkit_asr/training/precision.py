"""What a network computes in: autocast, around a fault of some CPUs."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache

import torch
from torch.backends import mkldnn


@contextmanager
def computing_in(precision: str, device: str) -> Iterator[None]:
    """Compute in `precision`, the name of a dtype of torch, on a type of device: `float32` is left as it is.

    On CPUs without bfloat16 instructions torch 2.13 gives an LSTM to oneDNN, which refuses it ("could not create a
    primitive descriptor"); there torch's own kernels are taken instead.
    """
    if precision == "float32":
        yield
        return
    dtype = getattr(torch, precision)
    refused = device == "cpu" and _onednn_refuses_lstms(dtype)
    with torch.autocast(device, dtype), _without_onednn() if refused else nullcontext():
        yield


@cache
def _onednn_refuses_lstms(dtype: torch.dtype) -> bool:
    """Say whether an LSTM that torch gives to oneDNN fails on this CPU."""
    with torch.random.fork_rng(devices=[]):
        lstm = torch.nn.LSTM(1, 1)
    try:
        with torch.no_grad(), torch.autocast("cpu", dtype):
            lstm(torch.zeros(1, 1, 1))
    except RuntimeError:
        return True
    return False


@contextmanager
def _without_onednn() -> Iterator[None]:
    enabled, *_ = mkldnn.set_flags(False)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        mkldnn.set_flags(enabled)  # type: ignore[no-untyped-call]
