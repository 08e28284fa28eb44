"""What adapters share: a mask held between a framework's start and its end, and what goes into its checkpoints."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from weakref import finalize, ref

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ticketkit.enforce import Enforcement, enforced
from ticketkit.errors import ConfigError, MaskError, ScopeError, TicketError
from ticketkit.mask import Mask
from ticketkit.names import named_parameters
from ticketkit.round import Round
from ticketkit.scope import check_in_memory, masked_parameters
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
        check_in_memory(model, self.mask.shapes)
        if optimizers:
            Enforcement(model, self.mask).check_optimizer(*optimizers)  # before anything is zeroed
        enforcement = self._held.enter_context(enforced(model, self.mask))
        self._enforcement, self._model = enforcement, ref(model)
        return enforcement

    def refuse_others(self, optimizer: Optimizer, way_out: str) -> None:
        """Raise `ConfigError` with a way out if another optimizer steps over the masked weights before `end`.

        For a framework that does not tell its callbacks when a training breaks off with an error.
        """
        mine, model, shapes = ref(optimizer), self._model, self.mask.shapes

        def check(stepping: Optimizer, *_: Any) -> None:
            trained = None if model is None else model()
            if stepping is mine() or trained is None:
                return
            held = {id(p) for group in masked_parameters(trained, shapes).values() for p in group}
            if any(id(p) in held for group in stepping.param_groups for p in group["params"]):
                raise ConfigError(
                    "a callback still holds its mask on this model, since the training it was in broke off with an "
                    f"error; {way_out}"
                )

        handle = register_optimizer_step_pre_hook(check)
        self._held.callback(handle.remove)
        finalize(self, handle.remove)

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


def check_round(round: Any, every: Any) -> None:
    """Raise `ConfigError` unless this is a round, and `every` None or a whole number from 1 on."""
    if not isinstance(round, Round):
        raise ConfigError(f"a round is needed, one that `for round in imp` gives, not a {type(round).__name__}")
    if every is not None and (type(every) is not int or every < 1):
        raise ConfigError(f"every must be at least 1, or None for whenever the framework itself saves, not {every!r}")


def check_trains_the_model(trained: nn.Module, name: str, round: Round) -> None:
    """Raise `ScopeError` unless all that the round prunes is trained, and nothing that is not in the round's model.

    That would neither be rewound nor saved with it.
    """
    there = {id(parameter) for parameter in trained.parameters()}
    own = dict(named_parameters(round.model, remove_duplicate=False))
    if lost := [found for found in round.mask if id(own[found]) not in there]:
        raise ScopeError(
            f"{name} does not train the model of this round: {', '.join(lost)} are not among its parameters; build it "
            "around the model that IMP has"
        )
    known = {id(parameter) for parameter in own.values()}
    parameters = named_parameters(trained, remove_duplicate=False)
    if more := [found for found, p in parameters if p.requires_grad and id(p) not in known]:
        raise ScopeError(
            f"{name} trains parameters that are not in the model of this round: {', '.join(more)}; they would neither "
            "be rewound nor saved with it: give IMP all that is trained, and say what may be pruned by "
            "scope={'include': [...]}"
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
