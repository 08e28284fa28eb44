"""A ticket: a mask, the weights it is rewound to, and where it came from, in one safetensors file.

| tensor | holds |
|---|---|
| `mask/<parameter>` | uint8, the packed mask: weight i is bit i % 8 of byte i // 8, C order, padding bits zero |
| `gaps/<parameter>` | uint8, the same mask in fewer bits (`ticketkit.gaps`), in place of it (optional) |
| `kept/<parameter>` | the rewind values of the kept weights of a parameter in scope, in flat order (optional) |
| `parameter/<name>`, `buffer/<name>` | rewind values of everything else (optional) |

One metadata key, `ticketkit`, holds canonical JSON: format, parameters with shapes and counts, aliases, facts and the
SHA-256 digest of all of it and of every tensor's bytes, masks packed. Equal tickets give equal bytes, saved alike.
Loading executes nothing and checks everything: a flipped byte, a truncation or a renamed tensor raises `TicketError`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ticketkit import gaps
from ticketkit.distributed import ALONE, present_ranks
from ticketkit.errors import MaskError, ScopeError, TicketError
from ticketkit.mask import Mask, shape_differences
from ticketkit.provenance import Provenance
from ticketkit.scope import check_in_memory, masked_parameters
from ticketkit.sharding import has_shards, local, part_like, write_
from ticketkit.snapshot import content_digest, state_tensors
from ticketkit.storage import canonical_json, write_atomically


class TicketFacts(BaseModel):
    """Where a ticket came from. Everything is optional: a bare mask is a ticket too."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    round: int | None = None
    seed: int | None = None
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    where: str | None = None
    embeddings: bool = False
    bare: bool = False
    model_total: int | None = None
    criterion: Provenance | None = None
    granularity: Provenance | None = None
    schedule: Provenance | None = None
    allocation: Provenance | None = None
    floor: float | dict[str, float] | None = None
    rewind: str | None = None
    rewound: tuple[str, ...] = ()
    metrics: dict[str, float] = {}
    parent: str | None = None


class TicketHeader(BaseModel):
    """The JSON in the file's one metadata key; `docs/ticket.schema.json` is its schema."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    parameters: tuple[tuple[str, tuple[int, ...], int], ...]
    """Name, shape and number of kept weights of every parameter in scope, in canonical order."""
    aliases: dict[str, tuple[str, ...]]
    facts: TicketFacts
    digest: str | None = None
    """SHA-256 of the header without this field, and of every tensor's name, dtype, shape and bytes."""

    def to_json(self) -> str:
        """Return canonical JSON, without what has its default value."""
        return canonical_json({"format": self.format, **json.loads(self.model_dump_json(exclude_defaults=True))})


@dataclass(frozen=True, eq=False)
class Ticket:
    """A mask with its rewind weights and facts; two tickets are equal when their digests are.

    `weights` maps `parameter/<name>` and `buffer/<name>` to the values the network is rewound to; those of pruned
    weights are no part of the ticket.
    """

    mask: Mask
    weights: Mapping[str, torch.Tensor] | None = None
    facts: TicketFacts = field(default_factory=TicketFacts)

    @property
    def digest(self) -> str:
        """SHA-256 of facts, mask and kept rewind weights, as 64 hexadecimal digits."""
        return _digest(self._header(), self._tensors())

    @property
    def metrics(self) -> dict[str, float]:
        """What was measured of the network trained with this mask."""
        return dict(self.facts.metrics)

    def __repr__(self) -> str:
        rewind = "no rewind weights" if self.weights is None else f"{len(self.weights)} rewind tensors"
        return f"Ticket(round {self.facts.round}, {self.mask!r}, {rewind}, metrics {self.facts.metrics})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ticket) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def save(self, path: str | Path, *, compact: bool = False) -> None:
        """Write the ticket, whole or not at all; a file that was there stays intact if writing fails.

        `compact` codes masks by the gaps between weights, near their entropy; the digest stays the same.
        """
        header, tensors = self._header(), self._tensors()
        metadata = {"ticketkit": header.model_copy(update={"digest": _digest(header, tensors)}).to_json()}
        stored = _with_gaps(self.mask, tensors) if compact else tensors
        write_atomically(Path(path), lambda temporary: save_file(stored, temporary, metadata=metadata))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Return the ticket in a file; raises `TicketError` saying what is wrong with it."""
        path = Path(path)
        header = _read_header(path)
        try:
            tensors = _without_gaps(header, load_file(path))
        except (OSError, SafetensorError, TicketError, ValueError, MemoryError) as error:
            raise TicketError(f"{path} is damaged: {error}") from error
        if _digest(header.model_copy(update={"digest": None}), tensors) != header.digest:
            raise TicketError(f"{path} is damaged: its content does not have the digest it was saved with")
        try:
            return cls._from_parts(header, tensors)
        except (KeyError, ValueError, TypeError, MaskError) as error:
            raise TicketError(f"{path} is not a well-formed ticket: {error!r}") from error

    def apply_(self, model: nn.Module) -> nn.Module:
        """Rewind a model to this ticket in place and return it: rewind weights if there are any, pruned weights zero.

        Raises `TicketError` listing every name and shape on which model and ticket differ, and `ScopeError` for a model
        on the meta device; the model is then untouched.
        """
        self.check_fits(model)
        check_in_memory(model, self.mask.shapes)
        if self.weights is not None:
            for key, tensor in state_tensors(model).items():
                write_(tensor, self.weights[key])
        for name, group in masked_parameters(model, self.mask.shapes).items():
            for parameter in group:
                local(parameter).masked_fill_(part_like(~self.mask[name], parameter).to(parameter.device), 0.0)
        return model

    def verify(self, model: nn.Module) -> None:
        """Raise `TicketError` unless the ticket fits the model and every pruned weight of it is exactly zero.

        Of a model that is distributed over ranks, each checks what it holds: all must ask, and all raise.
        """

        def check() -> None:
            self.check_fits(model)
            check_in_memory(model, self.mask.shapes)
            groups = masked_parameters(model, self.mask.shapes)
            _check_pruned(self.mask, {name: group[0] for name, group in groups.items()})

        (present_ranks() if has_shards(model) else ALONE).each(check)

    def verify_file(self, path: str | Path) -> None:
        """Raise `TicketError` unless every pruned weight is exactly zero in a safetensors file of weights.

        Keys may be parameter names or `parameter/<name>`, as in a run's `trained.safetensors`.
        """
        try:
            tensors = {key.removeprefix("parameter/"): tensor for key, tensor in load_file(path).items()}
        except (OSError, SafetensorError) as error:
            raise TicketError(f"cannot read weights from {path}: {error}") from error
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name in self.mask}
        if problems := shape_differences(self.mask.shapes, found):
            raise TicketError(f"{path} is of another architecture than this ticket:\n  " + "\n  ".join(problems))
        _check_pruned(self.mask, tensors)

    def check_fits(self, model: nn.Module) -> None:
        """Raise `TicketError` listing every name and shape on which model and ticket differ."""
        try:
            masked_parameters(model, self.mask.shapes)
        except ScopeError as error:
            raise TicketError(f"this ticket is for another architecture: {error}") from error
        if self.weights is not None:
            found = {key: tuple(tensor.shape) for key, tensor in state_tensors(model).items()}
            expected = {key: tuple(tensor.shape) for key, tensor in self.weights.items()}
            if problems := shape_differences(expected, found):
                raise TicketError(
                    f"this ticket is for another architecture than {type(model).__name__}:\n  " + "\n  ".join(problems)
                )

    def _header(self) -> TicketHeader:
        counts = self.mask.counts
        parameters = tuple((name, shape, counts[name]) for name, shape in self.mask.shapes.items())
        return TicketHeader(parameters=parameters, aliases=self.mask.aliases, facts=self.facts)

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {f"mask/{name}": _bytes_tensor(self.mask.bits(name)) for name in self.mask}
        for key, tensor in (self.weights or {}).items():
            name = key.removeprefix("parameter/")
            values = tensor.detach().cpu()
            if key != name and name in self.mask:
                tensors[f"kept/{name}"] = values[self.mask[name]].contiguous()
            else:
                tensors[key] = values.contiguous()
        return tensors

    @classmethod
    def _from_parts(cls, header: TicketHeader, tensors: dict[str, torch.Tensor]) -> Self:
        shapes = {name: shape for name, shape, _ in header.parameters}
        bits = {name: bytes(tensors.pop(f"mask/{name}").numpy()) for name in shapes}
        mask = Mask.from_bits(shapes, bits, aliases=header.aliases)
        if mask.counts != {name: count for name, _, count in header.parameters}:
            raise ValueError("the masks do not keep as many weights as the header says")
        for name in [key.removeprefix("kept/") for key in tensors if key.startswith("kept/")]:
            values = tensors.pop(f"kept/{name}")
            tensors[f"parameter/{name}"] = values.new_zeros(shapes[name]).masked_scatter_(mask[name], values)
        if strangers := [key for key in tensors if not key.startswith(("parameter/", "buffer/"))]:
            raise ValueError(f"unknown tensors {strangers}")
        return cls(mask, tensors or None, header.facts)


def _check_pruned(mask: Mask, tensors: Mapping[str, torch.Tensor]) -> None:
    counts = {}
    for name in mask:
        values = tensors[name]
        counts[name] = int(torch.count_nonzero(local(values).cpu()[part_like(~mask[name], values)]))
    if broken := ", ".join(f"{name}: {count}" for name, count in counts.items() if count):
        raise TicketError(f"these weights do not hold the ticket; pruned weights that are not zero: {broken}")


def _digest(header: TicketHeader, tensors: Mapping[str, torch.Tensor]) -> str:
    return content_digest(header.to_json(), tensors)


def _with_gaps(mask: Mask, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a file with each mask in its shorter form."""
    coded = {name: gaps.encoded(mask.bits(name), mask.sizes[name], mask.counts[name]) for name in mask}
    shorter = {name: code for name, code in coded.items() if code is not None}
    others = {key: tensor for key, tensor in tensors.items() if key.removeprefix("mask/") not in shorter}
    return others | {f"gaps/{name}": _bytes_tensor(code) for name, code in shorter.items()}


def _without_gaps(header: TicketHeader, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a file with every mask packed; raises `TicketError` for a code nobody writes."""
    facts = {name: (prod(shape), kept) for name, shape, kept in header.parameters}
    for name in [key.removeprefix("gaps/") for key in tensors if key.startswith("gaps/")]:
        if name not in facts or f"mask/{name}" in tensors:
            raise TicketError(f"the gaps of {name!r} belong to no masked parameter, or to one that has its mask too")
        tensors[f"mask/{name}"] = _bytes_tensor(gaps.decoded(bytes(tensors.pop(f"gaps/{name}").numpy()), *facts[name]))
    return tensors


def _bytes_tensor(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


def _read_header(path: Path) -> TicketHeader:
    """Return the ticket's header after checking that every byte outside the tensors is as `save` writes it."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            text = file.read(min(length, size))
    except OSError as error:
        raise TicketError(f"cannot read the ticket {path}: {error}") from error
    try:
        layout = json.loads(text)
        metadata = layout["__metadata__"]
        end = max((entry["data_offsets"][1] for key, entry in layout.items() if key != "__metadata__"), default=0)
        header = TicketHeader.model_validate_json(metadata["ticketkit"])
        spelled = json.dumps(layout, separators=(",", ":"), ensure_ascii=False).encode()
        expected = 8 + length + end
        whole = text == spelled + b" " * (-len(spelled) % 8) and len(metadata) == 1
        whole = whole and header.to_json() == metadata["ticketkit"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise TicketError(f"{path} is not a ticket, or its header is damaged: {error!r}") from error
    if size != expected:
        raise TicketError(f"{path} is truncated or damaged: {size} bytes, {expected} expected")
    if not whole:
        raise TicketError(f"{path} is damaged: its header is not spelled as ticketkit writes it")
    return header
