"""What the network is when an optimizer step is over, in loops with one optimizer or with several."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ticketkit.snapshot import Snapshot
from ticketkit.state import Stateful


class StepCapture:
    """Captures a network at the end of one step of a training, which several optimizers may share.

    One optimizer has taken the step; whether others belong to it shows only when the next step begins. Until then the
    network is captured again after each that does: after one that steps before the next forward pass (one backward pass
    for all, however seldom this one steps), and after one that with a forward pass of its own has then taken as many
    steps as the others, unless the next step begins without another forward pass, whose first optimizer it was. What
    the loop tracks is captured when one steps after another forward pass: schedulers and averages come in between.
    """

    def __init__(self, model: nn.Module, tracked: Mapping[str, Stateful], *, alone: bool):
        self._model = model
        self._tracked = tracked
        self._snapshot = Snapshot.capture(model)
        self._before: Snapshot | None = None
        self._settled = False
        self._moved_on = False
        self._hook = None if alone else register_module_forward_pre_hook(self._move_on)

    def after_step(self, *, together: bool) -> None:
        """Note that another optimizer has stepped; `together`: by now all have taken as many steps."""
        if not self._moved_on:
            self._snapshot, self._settled = Snapshot.capture(self._model), False
        elif together:
            self._before = self._snapshot
            self._snapshot, self._settled, self._moved_on = Snapshot.capture(self._model), False, False

    def before_step(self) -> None:
        """Capture what is tracked before an optimizer steps that may belong to the next step."""
        if self._moved_on:
            self._settle()

    def end(self, *, begins: bool) -> Snapshot:
        """Return what was captured; `begins`: since the next step begins, and not since the loop has come to an end."""
        self.drop()
        self._settle()
        if begins and self._before is not None and not self._moved_on:
            return self._before
        return self._snapshot

    def drop(self) -> None:
        """Watch no more."""
        if self._hook is not None:
            self._hook.remove()

    def _settle(self) -> None:
        if not self._settled:
            for name, thing in self._tracked.items():
                self._snapshot = self._snapshot.with_training(name, thing)
            self._settled = True

    def _move_on(self, *_: Any) -> None:
        self._moved_on = True
