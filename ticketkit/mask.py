"""The immutable mask: which weights of each parameter are kept, its counts and its algebra."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Self

import numpy as np
import torch

from ticketkit.errors import MaskError

Shape = tuple[int, ...]
Bits = np.ndarray[tuple[int], np.dtype[np.uint8]]


class Mask(Mapping[str, torch.Tensor]):
    """An immutable mapping from parameter name to bool tensor; True means kept.

    Names are those of `model.named_parameters()`, one per group of tied parameters; `aliases` lists the other names.
    The order of the names is the canonical order in which `select` breaks ties. Inside, eight weights share a byte
    (little-endian bits, C order, padding bits zero), so every look-up unpacks a fresh CPU tensor: nobody can change a
    mask by accident. Equality and `digest` look at names, shapes and bits, never at the order.

    >>> mask = Mask({"w": torch.tensor([[True, False], [True, True]])})
    >>> mask.kept, mask.total, mask.density
    (3, 4, 0.75)
    """

    __slots__ = ("_aliases", "_bits", "_digest", "_kept", "_shapes")

    def __init__(self, tensors: Mapping[str, torch.Tensor], *, aliases: Mapping[str, Sequence[str]] | None = None):
        for name, tensor in tensors.items():
            if not isinstance(tensor, torch.Tensor) or tensor.dtype is not torch.bool:
                came = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
                raise MaskError(f"mask of {name!r} must be a torch.bool tensor (True = kept), not {came}")
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self._set(shapes, {name: _pack(tensor) for name, tensor in tensors.items()}, aliases)

    def _set(
        self, shapes: Mapping[str, Shape], bits: Mapping[str, bytes], aliases: Mapping[str, Sequence[str]] | None
    ) -> None:
        self._shapes = dict(shapes)
        self._bits = dict(bits)
        self._aliases = {name: tuple(others) for name, others in (aliases or {}).items() if others}
        self._kept = {name: int(np.bitwise_count(np.frombuffer(b, np.uint8)).sum()) for name, b in bits.items()}
        self._digest: str | None = None

    @classmethod
    def ones(cls, shapes: Mapping[str, Shape], *, aliases: Mapping[str, Sequence[str]] | None = None) -> Self:
        """Return the mask that keeps every weight of parameters with these shapes."""
        return cls.from_bits(shapes, {name: _full(prod(shape)) for name, shape in shapes.items()}, aliases=aliases)

    @classmethod
    def from_bits(
        cls,
        shapes: Mapping[str, Shape],
        bits: Mapping[str, bytes],
        *,
        aliases: Mapping[str, Sequence[str]] | None = None,
    ) -> Self:
        """Return a mask from packed bits, as `bits()` gives them; raises `MaskError` on wrong lengths or padding."""
        if missing := sorted(shapes.keys() ^ bits.keys()):
            raise MaskError(f"shapes and bits must name the same parameters; only one of them names {missing}")
        for name, shape in shapes.items():
            size, packed = prod(shape), bits[name]
            if len(packed) != (size + 7) // 8:
                raise MaskError(f"mask of {name!r}: {len(packed)} bytes for {size} weights, {(size + 7) // 8} expected")
            if size % 8 and packed[-1] >> size % 8:
                raise MaskError(f"mask of {name!r}: padding bits after the last of {size} weights must be zero")
        mask = cls.__new__(cls)
        mask._set(shapes, bits, aliases)
        return mask

    def __getitem__(self, name: str) -> torch.Tensor:
        shape = self._shapes[name]
        flags = np.unpackbits(np.frombuffer(self._bits[name], np.uint8), count=prod(shape), bitorder="little")
        return torch.from_numpy(flags).view(torch.bool).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def bits(self, name: str) -> bytes:
        """Return the packed bits of one parameter: weight i is bit i % 8 of byte i // 8."""
        return self._bits[name]

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shape of every parameter, in canonical order."""
        return dict(self._shapes)

    @property
    def aliases(self) -> dict[str, tuple[str, ...]]:
        """For a tied parameter, its other names."""
        return dict(self._aliases)

    @property
    def kept(self) -> int:
        """How many weights are kept in all."""
        return sum(self._kept.values())

    @property
    def total(self) -> int:
        """How many weights the mask covers, tied ones counted once."""
        return sum(self.sizes.values())

    @property
    def sizes(self) -> dict[str, int]:
        """How many weights each parameter has."""
        return {name: prod(shape) for name, shape in self._shapes.items()}

    @property
    def counts(self) -> dict[str, int]:
        """How many weights of each parameter are kept."""
        return dict(self._kept)

    @property
    def density(self) -> float:
        """Kept weights divided by covered weights; 1.0 for a mask over nothing."""
        return self.kept / self.total if self.total else 1.0

    @property
    def densities(self) -> dict[str, float]:
        """The density of every parameter; 1.0 for an empty one."""
        return {name: self._kept[name] / size if size else 1.0 for name, size in self.sizes.items()}

    @property
    def digest(self) -> str:
        """SHA-256 over names, shapes and bits, as 64 hexadecimal digits; equal masks have equal digests."""
        if self._digest is None:
            content = hashlib.sha256()
            for name in sorted(self._shapes):
                content.update(repr((name, self._shapes[name])).encode())
                content.update(self._bits[name])
            self._digest = content.hexdigest()
        return self._digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and self._shapes == other._shapes and self._bits == other._bits

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Mask({len(self)} parameters, {self.kept} of {self.total} weights kept, density {self.density:.4f})"

    def __or__(self, other: "Mask") -> "Mask":
        """Keep what either mask keeps."""
        return self._combined(other, lambda a, b: a | b)

    def __and__(self, other: "Mask") -> "Mask":
        """Keep what both masks keep."""
        return self._combined(other, lambda a, b: a & b)

    def __sub__(self, other: "Mask") -> "Mask":
        """Keep what this mask keeps and the other does not."""
        return self._combined(other, lambda a, b: a & ~b)

    def __le__(self, other: "Mask") -> bool:
        """Say whether every weight kept here is kept by the other mask too (the masks are nested)."""
        return (self - other).kept == 0

    def overlap(self, other: "Mask") -> float:
        """Return the Jaccard index: weights kept by both over weights kept by either; 1.0 if neither keeps any."""
        either = (self | other).kept
        return (self & other).kept / either if either else 1.0

    def _combined(self, other: "Mask", operation: Callable[[Bits, Bits], Bits]) -> "Mask":
        if not isinstance(other, Mask):
            raise MaskError(f"a mask combines only with a mask, not with {type(other).__name__}")
        if problems := shape_differences(self._shapes, other._shapes):
            raise MaskError("masks cover different parameters:\n  " + "\n  ".join(problems))
        bits = {
            name: operation(np.frombuffer(packed, np.uint8), np.frombuffer(other._bits[name], np.uint8)).tobytes()
            for name, packed in self._bits.items()
        }
        return Mask.from_bits(self._shapes, bits, aliases=self._aliases)


def shape_differences(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> list[str]:
    """Return one line for every name that one side lacks and every shape on which the two sides differ."""
    lines = [f"{name} {tuple(shape)}: missing" for name, shape in expected.items() if name not in found]
    lines += [f"{name} {tuple(shape)}: unexpected" for name, shape in found.items() if name not in expected]
    lines += [
        f"{name}: expected shape {tuple(shape)}, found {tuple(found[name])}"
        for name, shape in expected.items()
        if name in found and tuple(shape) != tuple(found[name])
    ]
    return lines


def _pack(tensor: torch.Tensor) -> bytes:
    flags = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()
    return np.packbits(flags, bitorder="little").tobytes()


def _full(size: int) -> bytes:
    whole, rest = divmod(size, 8)
    return b"\xff" * whole + (bytes([2**rest - 1]) if rest else b"")
