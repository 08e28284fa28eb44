"""One run on several ranks: one mask, decided by rank 0, broadcast as packed bits; and what only one of them writes."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ticketkit.errors import MaskError
from ticketkit.mask import Mask

Result = TypeVar("Result")


def rank() -> int:
    """Return this process's rank in the default process group, 0 without one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def once(write: Callable[[], Result]) -> Result:
    """Let rank 0 alone do something that is seen by all, such as writing a file; return its result on every rank.

    No rank goes on before it is done. What it raises is raised on every rank.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
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
    finally:
        dist.destroy_process_group()


def agreed(mask: Mask) -> Mask:
    """Return rank 0's mask on every rank of the default process group; without one, or alone in it, the mask itself.

    Ranks may have come to different masks by scores of their own batches or seeds of their own; only rank 0's counts.
    Every rank calls this once a pruning, so that no collective waits for a rank that took another turn. Raises
    `MaskError` naming ranks and digests if the ranks mask different parameters, or hold different bits afterwards.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return mask
    _compare({name: tuple(shape) for name, shape in mask.shapes.items()}, "mask different parameters")
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    bits = {}
    for name in mask:
        packed = torch.frombuffer(bytearray(mask.bits(name) or b"\0"), dtype=torch.uint8).to(device)
        dist.broadcast(packed, src=0)
        bits[name] = bytes(packed.cpu().numpy())[: len(mask.bits(name))]
    decided = Mask.from_bits(mask.shapes, bits, aliases=mask.aliases)
    _compare(decided.digest, "hold different masks after rank 0 broadcast its own")
    return decided


def _compare(mine: object, fault: str) -> None:
    """Raise `MaskError` on every rank unless all ranks have the same value."""
    everyone: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    different = [rank for rank, other in enumerate(everyone) if other != everyone[0]]
    if different:
        raise MaskError(
            f"rank 0 and ranks {different} {fault}: {everyone[0]!r:.200} and {everyone[different[0]]!r:.200}; build "
            "the model and IMP the same way on every rank"
        )
