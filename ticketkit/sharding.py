"""Parameters that lie on several ranks (`fully_shard`, tensor parallelism): which part of each is here.

A sharded parameter is a DTensor: this rank holds one box of it, with the same number of dimensions. Nothing here
imports torch.distributed.tensor: an object can only be a DTensor if that has been loaded.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from ticketkit.errors import ScopeError

Box = tuple[slice, ...]


def is_sharded(tensor: torch.Tensor) -> bool:
    """Say whether a tensor is distributed over ranks, even if each of them should hold all of it."""
    loaded = sys.modules.get("torch.distributed.tensor")
    return loaded is not None and isinstance(tensor, loaded.DTensor)


def has_shards(model: nn.Module) -> bool:
    """Say whether any parameter of a model is distributed over ranks."""
    resharded(model)
    return any(map(is_sharded, model.parameters()))


def resharded(model: nn.Module) -> nn.Module:
    """Return the model with the parameters that its optimizer knows in place.

    `fully_shard` puts whole parameters in their places for a forward pass, and leaves those of the outermost module
    there until a backward pass; they are views that nothing writes back.
    """
    loaded = sys.modules.get("torch.distributed.fsdp")
    sharded_module = getattr(loaded, "FSDPModule", None)
    if sharded_module is not None:
        for module in model.modules():
            if isinstance(module, sharded_module):
                module.reshard()
    return model


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a tensor that is here, sharing its memory; a tensor that is not sharded is here as a whole."""
    if not is_sharded(tensor):
        return tensor.detach()
    detached: Any = tensor.detach()
    part: torch.Tensor = detached.to_local()
    return part


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor on the CPU; every rank that holds a part of a sharded one must ask for it."""
    if not is_sharded(tensor):
        return tensor.detach().cpu()
    detached: Any = tensor.detach()
    full: torch.Tensor = detached.full_tensor()
    return full.cpu()


def part_like(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the part of a whole tensor that another one of its shape has here; of a sharded one, its own part."""
    if is_sharded(values) or not is_sharded(like):
        return local(values)
    return values.detach()[Part.of(like).box]


def placed_like(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a tensor distributed over the ranks as another one of its shape is."""
    if is_sharded(values) or not is_sharded(like):
        return values
    return with_local(part_like(values, like).to(local(like).device), like)


def with_local(part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the distributed tensor of which this rank holds `part`, distributed as `like`."""
    if not is_sharded(like):
        return part
    known: Any = like
    placed: torch.Tensor = type(known).from_local(
        part, known.device_mesh, known.placements, run_check=False, shape=known.shape, stride=known.stride()
    )
    return placed


def write_(target: torch.Tensor, values: torch.Tensor) -> None:
    """Copy a tensor of the same shape, whole or distributed alike, into what is here of another."""
    local(target).copy_(part_like(values, target))


class Gathered(Mapping[str, torch.Tensor]):
    """Distributed tensors, each gathered whole when it is read; all ranks must read the same ones in the same order.

    The one that was read last is kept, so that reading it slice by slice gathers it once.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]):
        self._tensors = tensors
        self._last: tuple[str, torch.Tensor] | None = None

    def __getitem__(self, name: str) -> torch.Tensor:
        if self._last is None or self._last[0] != name:
            self._last = (name, whole(self._tensors[name]))
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def any_sharded(tensors: Iterable[torch.Tensor]) -> bool:
    """Say whether any of some tensors is distributed; without reading one where none can be."""
    return "torch.distributed.tensor" in sys.modules and any(map(is_sharded, tensors))


@dataclass(frozen=True)
class Part:
    """The box of a tensor that this rank holds; `is_owned` on one rank only of those that hold the same."""

    shape: tuple[int, ...]
    """Of the whole tensor."""
    box: Box
    is_owned: bool = True

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Self:
        """Return the part of a tensor; raises `ScopeError` for one that lies on the ranks in another way."""
        shape = tuple(tensor.shape)
        if not is_sharded(tensor):
            return cls(shape, tuple(slice(0, size) for size in shape))
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        known: Any = tensor
        sizes, offsets = compute_local_shape_and_global_offset(known.shape, known.device_mesh, known.placements)
        found = tuple(known.to_local().shape)
        if any(placement.is_partial() for placement in known.placements) or found != tuple(sizes):
            raise ScopeError(
                f"a parameter of shape {shape} is placed as {known.placements}, of which rank-local parts of shape "
                f"{found} are no boxes; shard parameters in rows or columns (Shard), or replicate them"
            )
        coordinate = known.device_mesh.get_coordinate() or []
        copies = [at for at, placement in zip(coordinate, known.placements, strict=True) if placement.is_replicate()]
        box = tuple(slice(min(at, size), min(at, size) + n) for at, size, n in zip(offsets, shape, sizes, strict=True))
        return cls(shape, box, not any(copies))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape of the part."""
        return tuple(side.stop - side.start for side in self.box)

    @property
    def is_whole(self) -> bool:
        """Say whether the part is the whole tensor."""
        return self.sizes == self.shape

    @property
    def run(self) -> slice | None:
        """The flat indices of the part in the whole tensor, if they follow on each other."""
        inner, size = prod(self.shape[1:]), prod(self.sizes)
        if not self.shape or self.sizes[1:] != self.shape[1:]:
            return slice(0, size) if self.is_whole else None
        return slice(self.box[0].start * inner, self.box[0].start * inner + size)

    def bits(self, packed: bytes) -> bytes:
        """Return the packed bits of the part, from those of the whole tensor."""
        if self.is_whole:
            return packed
        if (run := self.run) is not None:
            own = np.frombuffer(packed, np.uint8)[run.start // 8 : (run.stop + 7) // 8]
            flags = np.unpackbits(own, bitorder="little")[run.start % 8 :][: run.stop - run.start]
            return np.packbits(flags, bitorder="little").tobytes()
        flags = np.unpackbits(np.frombuffer(packed, np.uint8), count=prod(self.shape), bitorder="little")
        return np.packbits(flags.reshape(self.shape)[self.box], bitorder="little").tobytes()

    def spread(self, packed: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return the packed bits of a tensor that are set in the part where those of the part are, nowhere else."""
        own = np.frombuffer(packed, np.uint8)
        if self.is_whole:
            return own
        if (run := self.run) is not None:
            spread = np.zeros((prod(self.shape) + 7) // 8, np.uint8)
            if run.start % 8:
                flags = np.unpackbits(own, count=run.stop - run.start, bitorder="little")
                own = np.packbits(np.concatenate([np.zeros(run.start % 8, np.uint8), flags]), bitorder="little")
            spread[run.start // 8 :][: len(own)] = own
            return spread
        flags = np.zeros(self.shape, np.uint8)
        flags[self.box] = np.unpackbits(own, count=prod(self.sizes), bitorder="little").reshape(self.sizes)
        return np.packbits(flags, bitorder="little")

    def positions(self, indices: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the flat indices in the whole tensor of flat indices in the part; their order is the same."""
        if not self.shape:
            return indices
        inside = np.unravel_index(indices, self.sizes)
        starts = [side.start for side in self.box]
        found = np.ravel_multi_index([at + start for at, start in zip(inside, starts, strict=True)], self.shape)
        return np.asarray(found, np.int64)
