"""One run on several ranks: what they tell each other, the one mask they hold, and what only one of them writes."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from ticketkit.errors import ConfigError, MaskError, RunError, TicketkitError
from ticketkit.mask import Mask
from ticketkit.sharding import is_sharded, whole

Result = TypeVar("Result")
Array = np.ndarray[Any, np.dtype[Any]]


def rank() -> int:
    """Return this process's rank in the default process group, 0 without one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def ranks() -> int:
    """Return the number of ranks in the default process group, 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class Ranks(Protocol):
    """How those that work on one thing, each on a part of it, put their findings together."""

    def each(self, work: Callable[[], Result]) -> Result:
        """Return what this rank's own share of the work returns; what it raises on one rank, all raise."""
        ...

    def summed(self, counts: Array) -> Array:
        """Return the sum over all ranks of an array of whole numbers."""
        ...

    def joined(self, values: Array) -> Array:
        """Return a one-dimensional array of all ranks' values, those of rank 0 first; their numbers may differ."""
        ...


class Alone:
    """A process that has all there is."""

    def each(self, work: Callable[[], Result]) -> Result:
        """Return what the work returns."""
        return work()

    def summed(self, counts: Array) -> Array:
        """Return the array."""
        return counts

    def joined(self, values: Array) -> Array:
        """Return the array."""
        return values


class AllRanks:
    """All ranks of the default process group; each of them makes the same calls in the same order."""

    def each(self, work: Callable[[], Result]) -> Result:
        """Return what this rank's share of the work returns; a fault of one rank is raised on every rank."""
        failure: Exception | None = None
        fault: tuple[type[TicketkitError], str] | None = None
        try:
            result = work()
        except TicketkitError as error:
            failure, fault = error, (type(error), str(error))
        except Exception as error:  # of any library's, which may not travel; raised on every rank below
            failure, fault = error, (RunError, f"{type(error).__name__}: {error}")
        for number, found in enumerate(everyones(fault)):
            if found is not None:
                kind, message = found
                raise kind(f"rank {number}: {message}") from failure
        return result

    def summed(self, counts: Array) -> Array:
        """Return the sum over all ranks."""
        total = torch.from_numpy(counts.copy()).to(_device())
        dist.all_reduce(total)
        return total.cpu().numpy()

    def joined(self, values: Array) -> Array:
        """Return all ranks' values, padded on the way to the longest."""
        lengths = self.summed(np.eye(ranks(), dtype=np.int64)[rank()] * len(values)).tolist()
        padded = torch.zeros(max(lengths), dtype=torch.from_numpy(values[:0]).dtype, device=_device())
        padded[: len(values)] = torch.from_numpy(values)
        everyone = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(everyone, padded)
        return np.concatenate([found[:length].cpu().numpy() for found, length in zip(everyone, lengths, strict=True)])


ALONE, ALL_RANKS = Alone(), AllRanks()


def present_ranks() -> Ranks:
    """Return all ranks of the default process group, or this process alone without one."""
    return ALL_RANKS if ranks() > 1 else ALONE


def collect(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor on the CPU of rank 0, and nothing of a distributed one elsewhere; all ranks must ask."""
    full = whole(tensor)
    return full.new_empty(0) if rank() and is_sharded(tensor) else full


def everyones(mine: Result) -> list[Result]:
    """Return an object of each rank, that of rank 0 first; all ranks must ask."""
    found: list[Any] = [mine] * ranks()
    if ranks() > 1:
        dist.all_gather_object(found, mine)
    return found


def _device() -> torch.device:
    """Return the device from which the process group sends."""
    on_gpu = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def once(write: Callable[[], Result]) -> Result:
    """Let rank 0 alone do something that is seen by all, such as writing a file; return its result on every rank.

    No rank goes on before it is done. What it raises is raised on every rank.
    """
    if ranks() == 1:
        return write()
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = write()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    result: Result = outcome[0]
    return result


def not_joined() -> str:
    """Return what a process should do that was started as one of several ranks and has joined no group; else ""."""
    started = os.environ.get("WORLD_SIZE", "1")
    if not started.isdecimal() or int(started) <= 1 or ranks() > 1:
        return ""
    return (
        f"WORLD_SIZE={started} says that this process is one of several ranks; if they share the run, call "
        "torch.distributed.init_process_group() before IMP"
    )


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group that torchrun has prepared, inside the block; do nothing in a process of its own.

    With several GPUs each rank takes the one of its local rank.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield
        dist.barrier()
        let_go()
    finally:
        dist.destroy_process_group()


def let_go() -> None:
    """Let gloo's threads give back what they hold of Python's after the last message, since the process may end now.

    A thread that comes too late for that takes the interpreter down with it (torch 2.13): "terminate called without an
    active exception". It needs but a moment in which no Python code runs here.
    """
    if ranks() > 1:
        time.sleep(0.2)


def agreed(mask: Mask) -> Mask:
    """Return rank 0's mask on every rank of the default process group; without one, or alone in it, the mask itself.

    Ranks may have come to different masks by scores of their own batches or seeds of their own; only rank 0's counts.
    Every rank calls this once a pruning, so that no collective waits for a rank that took another turn. Raises
    `MaskError` naming ranks and digests if the ranks mask different parameters, or hold different bits afterwards.
    """
    if ranks() == 1:
        return mask
    _compare({name: tuple(shape) for name, shape in mask.shapes.items()}, "mask different parameters")
    bits = {}
    for name in mask:
        packed = torch.frombuffer(bytearray(mask.bits(name) or b"\0"), dtype=torch.uint8).to(_device())
        dist.broadcast(packed, src=0)
        bits[name] = bytes(packed.cpu().numpy())[: len(mask.bits(name))]
    decided = Mask.from_bits(mask.shapes, bits, aliases=mask.aliases)
    check_same(decided)
    return decided


def check_alike(settings: Mapping[str, object]) -> None:
    """Raise `ConfigError` on every rank, naming ranks and setting, unless all ranks have these settings."""
    if ranks() > 1:
        _compare(settings, "run with different settings", ConfigError)


def check_same(mask: Mask) -> None:
    """Raise `MaskError` on every rank, naming ranks and parameter, unless all ranks hold this mask."""
    if ranks() > 1:
        digests = {name: hashlib.sha256(mask.bits(name)).hexdigest() for name in mask}
        _compare({name: tuple(shape) for name, shape in mask.shapes.items()}, "mask different parameters")
        _compare(digests, "hold different masks")


def _compare(mine: Mapping[str, object], fault: str, kind: type[TicketkitError] = MaskError) -> None:
    """Raise an error on every rank unless all ranks have the same items."""
    everyone = everyones(mine)
    different = [number for number, other in enumerate(everyone) if other != everyone[0]]
    if different:
        one, other = everyone[0], everyone[different[0]]
        name = next(name for name in {**one, **other} if one.get(name) != other.get(name))
        raise kind(
            f"rank 0 and ranks {different} {fault}, first at {name!r}: {one.get(name, 'missing')} and "
            f"{other.get(name, 'missing')}; build the model and IMP the same way on every rank"
        )
