"""Built-in exporters of networks that are smaller and faster: compressed, sparse, compact, and whatever is fastest."""

from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from ticketkit.names import unwrap
from ticketkit.options import Options
from ticketkit.planes import deflated
from ticketkit.roles import Bundle, ExampleBundle, HidingBundle
from ticketkit.runtime.choosing import Runtime
from ticketkit.runtime.preparing import prepared
from ticketkit.runtime.saving import Dtype, save
from ticketkit.snapshot import state_tensors
from ticketkit.ticket import Ticket


class RuntimeOptions(Options):
    """What an export is for."""

    dtype: Dtype = "fp32"
    """How values are kept on disk; they are computed with in float32, int8 with a scale for each row."""
    batch: PositiveInt = 1
    """Utterances at once that layers are measured with, for `auto`."""
    seconds: PositiveFloat = Field(default=5.0)
    """The length of these, where the backbone knows what a second is."""


class CompressedOptions(Options):
    """How small the file is to be."""

    half: bool = False
    """Whether values are kept in half precision, which is not bit-exact."""
    deflate: bool = False
    """Whether the file is deflated, a sixth smaller; `load_exported` alone reads it then, and not `Ticket.load`."""


def compressed(bundle: Bundle, ticket: Ticket, directory: Path, *, options: CompressedOptions) -> None:
    """The mask and the surviving trained weights in one ticket file, bit-exact: `Ticket.load(path).apply_(model)`."""
    tensors = {key: tensor.detach().cpu().clone() for key, tensor in state_tensors(bundle.module).items()}
    if options.half:
        tensors = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
    path = directory / "ticket.safetensors"
    Ticket(ticket.mask, tensors, ticket.facts).save(path, compact=True)
    if options.deflate:
        (directory / "ticket.planes").write_bytes(deflated(path.read_bytes()))
        path.unlink()


def auto(bundle: Bundle, ticket: Ticket, directory: Path, *, options: RuntimeOptions) -> None:
    """The fastest form of each layer on this machine, measured: dense, CSR, BSR or compacted."""
    _export("auto", bundle, directory, options)


def dense(bundle: Bundle, ticket: Ticket, directory: Path, *, options: RuntimeOptions) -> None:
    """All layers as they are, zeros included; smaller only by a smaller dtype."""
    _export("dense", bundle, directory, options)


def sparse(bundle: Bundle, ticket: Ticket, directory: Path, *, options: RuntimeOptions) -> None:
    """All pruned layers in compressed rows (CSR), whether that is faster or not."""
    _export("sparse", bundle, directory, options)


def compact(bundle: Bundle, ticket: Ticket, directory: Path, *, options: RuntimeOptions) -> None:
    """Rows, columns, hidden units and heads that are idle removed: for tickets of units, rows, filters and heads."""
    _export("compact", bundle, directory, options)


def _export(runtime: Runtime, bundle: Bundle, directory: Path, options: RuntimeOptions) -> None:
    module: nn.Module = deepcopy(unwrap(bundle.module)).cpu().eval()
    example: tuple[Any, ...] | None = None
    if isinstance(bundle, ExampleBundle):
        inputs = bundle.example(options.seconds, options.batch)
        example = tuple(each.cpu() if isinstance(each, Tensor) else each for each in inputs)
    units = bundle.hidden_units() if isinstance(bundle, HidingBundle) else ()
    made, choices, structure = prepared(module, runtime, example, units)
    save(made, choices, directory, structure=structure, dtype=options.dtype)
