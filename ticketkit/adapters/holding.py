"""What adapters share: a mask held between a framework's start and its end, and what goes into its checkpoints."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from weakref import ref

import torch
from torch import nn
from torch.optim import Optimizer

from ticketkit.enforce import Enforcement, enforced
from ticketkit.errors import ConfigError, MaskError, ScopeError, TicketError
from ticketkit.mask import Mask
from ticketkit.scope import masked_parameters
from ticketkit.ticket import Ticket

MaskSource = Ticket | Mask | str | Path


class Holding:
    """One mask that a callback holds on one model, from the framework's start to its end.

    A training that ends without `end` is let go of when the callback is dropped. The same callback may hold its mask on
    the same model again, after the end.
    """

    def __init__(self, source: MaskSource):
        self.mask = mask_of(source)
        self._held = ExitStack()
        self._enforcement: Enforcement | None = None
        self._model: ref[nn.Module] | None = None

    def start(self, model: nn.Module, *optimizers: Optimizer) -> Enforcement:
        """Hold the mask on a model from now on; optimizers that exist already are checked.

        Raises `ConfigError` for a callback that is at work or has been for another model, and `ScopeError` for a mask
        of another architecture, a parameter without memory, and optimizers that hold not all it trains.
        """
        if self._enforcement is not None:
            raise ConfigError("this callback holds its mask already; make another one for a second training")
        if self._model is not None and self._model() is not model:
            raise ConfigError("this callback has held its mask on another model; make another one for this model")
        _check_in_memory(model, self.mask)
        enforcement = self._held.enter_context(enforced(model, self.mask))
        try:
            if optimizers:
                enforcement.check_optimizer(*optimizers)
        except ScopeError:
            self._held.close()
            raise
        self._enforcement, self._model = enforcement, ref(model)
        return enforcement

    def end(self) -> None:
        """Let go of the model; without effect before `start` and after an earlier end."""
        self._enforcement = None
        self._held.close()


def mask_of(source: MaskSource) -> Mask:
    """Return the mask of a ticket, of a ticket's file, or the mask itself; raises `TicketError` for a bad file."""
    if isinstance(source, Mask):
        return source
    if isinstance(source, str | Path):
        source = Ticket.load(source)
    if not isinstance(source, Ticket):
        raise ConfigError(f"a ticket, its path or a mask is needed, not a {type(source).__name__}")
    return source.mask


def mask_state(mask: Mask) -> dict[str, Any]:
    """Return a mask as strings, numbers and tensors of a bit a weight, for a framework's own checkpoint."""
    bits = {name: torch.frombuffer(bytearray(mask.bits(name)), dtype=torch.uint8) for name in mask if mask.sizes[name]}
    aliases = {name: list(others) for name, others in mask.aliases.items()}
    shapes = {name: list(shape) for name, shape in mask.shapes.items()}
    return {"digest": mask.digest, "shapes": shapes, "aliases": aliases, "bits": bits}


def mask_from_state(state: Mapping[str, Any]) -> Mask:
    """Return the mask that `mask_state` wrote; raises `TicketError` for anything else, or if its digest differs.

    >>> mask = Mask({"weight": torch.tensor([[True, False]])})
    >>> mask_from_state(mask_state(mask)) == mask
    True
    """
    try:
        shapes = {name: tuple(shape) for name, shape in state["shapes"].items()}
        bits = {name: bytes(state["bits"][name].numpy()) if name in state["bits"] else b"" for name in shapes}
        mask = Mask.from_bits(shapes, bits, aliases={name: tuple(others) for name, others in state["aliases"].items()})
        digest = state["digest"]
    except (KeyError, TypeError, ValueError, AttributeError, MaskError) as error:
        raise TicketError(f"the checkpoint does not hold a mask as ticketkit writes it: {error!r}") from error
    if mask.digest != digest:
        raise TicketError("the mask in the checkpoint is damaged: it does not have the digest it was saved with")
    return mask


def check_same_mask(state: Mapping[str, Any], mask: Mask) -> None:
    """Raise `TicketError` unless the mask in a checkpoint is this one."""
    refuse_other_mask(mask_from_state(state), mask)


def refuse_other_mask(saved: Mask, mask: Mask) -> None:
    """Raise `TicketError` unless the mask that a checkpoint was trained with is this one."""
    if saved != mask:
        raise TicketError(
            f"the checkpoint was trained with another mask ({saved.kept:,} of {saved.total:,} weights, "
            f"{saved.digest[:12]}) than this ticket's ({mask.kept:,} of {mask.total:,}, {mask.digest[:12]}); "
            "resume with the ticket it was trained with, or start without the checkpoint"
        )


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return those metrics that are one number each, tensors of one element included.

    >>> numbers({"loss": torch.tensor(0.5), "epoch": 3, "done": True, "matrix": torch.ones(2, 2), "name": "a"})
    {'loss': 0.5, 'epoch': 3.0}
    """
    found = {}
    for name, value in metrics.items():
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = float(value)
    return found


def missing(library: str, extra: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    """Return an error that says what brings a missing library, or the given one if another package is missing."""
    if str(error.name).partition(".")[0] != library.partition(".")[0]:
        return error
    return ModuleNotFoundError(
        f"{library} is not installed; it comes with: pip install 'ticketkit[{extra}]'", name=error.name
    )


def _check_in_memory(model: nn.Module, mask: Mask) -> None:
    groups = masked_parameters(model, mask.shapes)
    if absent := [name for name, group in groups.items() if group[0].is_meta]:
        raise ScopeError(
            f"{', '.join(absent)}: on the meta device, without memory to hold a mask in; load the weights first"
        )
