"""One training on several processes: which rank this is, its share of a batch, and the network it runs."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


def world() -> tuple[int, int]:
    """Return this process's rank and how many there are; (0, 1) without a process group."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def share(batch: Sequence[int]) -> list[int]:
    """Return this rank's utterances of a batch: at least one, so that no rank waits for one that has nothing to do."""
    rank, ranks = world()
    return list(batch[rank::ranks]) or [batch[0]]


def counts(batch: Sequence[int]) -> bool:
    """Say whether this rank's share of a batch counts: an utterance lent to a rank that had none does not."""
    return world()[0] < len(batch)


def distributed_network(module: nn.Module) -> nn.Module:
    """Return the module, wrapped if several processes train it, so that gradients are averaged over them."""
    _, ranks = world()
    return module if ranks == 1 else DistributedDataParallel(module)


def without_exchange(network: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which gradients stay on their rank, for all but the last batch of an optimizer step."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()


def total(value: float, device: torch.device) -> float:
    """Return the sum of a number over all ranks, the same on each."""
    _, ranks = world()
    if ranks == 1:
        return value
    summed = torch.tensor(value, dtype=torch.float64, device=device)
    distributed.all_reduce(summed)
    return summed.item()
