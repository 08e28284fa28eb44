"""One training in progress: its optimizer steps, the middle it can be saved in, and what dev likes best so far."""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from ticketkit import Round
from ticketkit_asr.errors import TrainingError
from ticketkit_asr.training.optimisation import build_optimizer, learning_rate, set_learning_rate
from ticketkit_asr.training.options import TrainerOptions
from ticketkit_asr.training.ranks import distributed_network, total, without_exchange, world
from ticketkit_asr.training.state import TrainingState

_log = logging.getLogger(__name__)

Losses = Callable[[nn.Module], Tensor]
"""The losses (utterances,) of one batch, those of this rank, given the network."""


class Training:
    """Network, optimizer and state of one training; in a round of IMP they are tracked, so that it can be resumed."""

    def __init__(self, module: nn.Module, options: TrainerOptions, current: Round | None):
        self.state = TrainingState(current.index if current else 0)
        self._module = module
        self._options = options
        self._current = current
        self._device = device_of(module)
        self._trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._optimizer = build_optimizer(self._trained, options)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=options.precision == "float16")
        self.start = 0
        """How many optimizer steps are already behind it."""
        if current is not None:
            self.start = current.track(optimizer=self._optimizer, scaler=self._scaler, training=self.state)
        self._network = distributed_network(module)

    @property
    def is_over(self) -> bool:
        """Whether dev has liked no epoch better for as long as the options are patient."""
        return self._options.patience is not None and self.state.waited >= self._options.patience

    def save(self, step: int) -> None:
        """Save the middle of the round, after so many optimizer steps, if it is one of IMP."""
        if self._current is not None:
            self._current.checkpoint(step=step)

    def step(self, batches: Sequence[Losses], utterances: int, *, taken: int, epoch: int, where: str) -> None:
        """Take one optimizer step over some batches, each of the `utterances` in them counting the same.

        `taken` steps lie behind it. A step whose loss or gradient is not finite is left out and counted; raises
        `TrainingError` when there are more than the options allow.
        """
        set_learning_rate(self._optimizer, learning_rate(taken, epoch, self._options))
        self._optimizer.zero_grad()
        _, ranks = world()
        summed = 0.0
        for place, losses_of in enumerate(batches):
            with self._exchange(last=place == len(batches) - 1):
                loss = losses_of(self._network).sum()
                self._scaler.scale(loss * ranks / utterances).backward()  # type: ignore[no-untyped-call]
            summed += loss.item()
        summed = total(summed, self._device)
        self._scaler.unscale_(self._optimizer)
        norm = clip_grad_norm_(self._trained, self._options.grad_norm).item()
        if not math.isfinite(summed) or not (math.isfinite(norm) or self._scaler.is_enabled()):
            self._leave_out(summed, norm, where)
        else:
            self._scaler.step(self._optimizer)
            self.state.add(summed, utterances)
        self._scaler.update()

    def _exchange(self, *, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last else without_exchange(self._network)

    def _leave_out(self, loss: float, norm: float, where: str) -> None:
        """Count a step that would spoil the weights; raise when there are too many."""
        state, allowed = self.state, self._options.nonfinite
        state.left_out += 1
        fault = f"gradient norm is {norm}" if math.isfinite(loss) else f"loss is {loss}"
        if state.left_out > allowed:
            raise TrainingError(
                f"{fault} in {where}; {state.left_out} such steps came and nonfinite allows {allowed}; try a lower lr "
                "or grad_norm"
            )
        _log.warning("%s in %s: step left out, %d of %d", fault, where, state.left_out, allowed)


def device_of(module: nn.Module) -> torch.device:
    """Return the device that a network is on."""
    return next(module.parameters()).device
