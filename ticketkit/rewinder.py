"""Puts the model where each round of a run starts, and remembers what later rounds go back to."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from ticketkit.capture import StepCapture
from ticketkit.enforce import Enforcement
from ticketkit.errors import ConfigError, StorageError
from ticketkit.ledger import INIT, REWIND, Ledger
from ticketkit.rewind import (
    PARTS,
    Initialiser,
    Rewind,
    check_reinitialisable,
    load_pretrained_,
    part_of,
    reinitialise_,
    rewind_,
)
from ticketkit.rng import derived_seed
from ticketkit.round import Round, Start
from ticketkit.scope import Scope
from ticketkit.sharding import has_shards, whole
from ticketkit.snapshot import Snapshot
from ticketkit.state import Stateful, load_state


@dataclass
class Rewinder:
    """One run's rewinding. With a ledger every snapshot lives on disk and is mapped into memory when it is read."""

    model: nn.Module
    scope: Scope
    policy: Rewind
    seed: int
    initialise: Initialiser | None = None
    ledger: Ledger | None = None

    def __post_init__(self) -> None:
        self._capture_step = self.policy.capture_step
        self._initial: Snapshot | None = None
        self._captured: Snapshot | None = None
        self._last: Snapshot | None = None
        self._flags: dict[nn.Module, bool] = {}
        self._trainable: dict[nn.Parameter, bool] = {}
        self._capture: StepCapture | None = None
        if self._reinitialises:
            self._check_reinitialisable()

    def _check_reinitialisable(self) -> None:
        if has_shards(self.model):
            raise ConfigError(
                "rewind='reinit' draws fresh weights module by module, and this network is distributed over ranks; "
                "make the control where it fits on one"
            )
        if self.initialise is None:
            check_reinitialisable(self.model)

    def open(self) -> None:
        """Take over the snapshots that earlier processes left in the run directory."""
        if self.ledger:
            self.ledger.check_snapshots()
            self._initial = self.ledger.snapshot(INIT)
            self._captured = self.ledger.snapshot(REWIND)

    @property
    def origin(self) -> Snapshot:
        """What rounds after the first go back to."""
        found = self._initial if self._capture_step is None else self._captured
        if found is None:
            missing = INIT if self._capture_step is None else REWIND
            raise StorageError(f"rounds without the snapshot they are rewound to: {missing} has vanished")
        return found

    def begin(self, index: int) -> Start:
        """Put the model where round `index` starts, and return what its loop may need to know of that.

        Every module's training flag and every parameter's `requires_grad` go back too: an evaluation that left the
        model in eval mode must not switch dropout off in the next round, nor a layer that was frozen stay so.
        """
        self._flags = self._flags or {module: module.training for module in self.model.modules()}
        self._trainable = self._trainable or {p: p.requires_grad for p in self.model.parameters()}
        for module, flag in self._flags.items():
            module.training = flag
        for parameter, trainable in self._trainable.items():
            parameter.requires_grad_(trainable)
        checkpoint = self.ledger.checkpoint(index) if self.ledger else None
        if index == 0:
            self._begin_first(checkpoint)
            return Start(checkpoint=checkpoint)
        carried = self.trained(index - 1) if self._carries(()) else None
        if carried is not None:
            carried.restore(self.model)
        goal = replace(self.origin, tensors=self._reinitialised(index)) if self._reinitialises else self.origin
        rewind_(self.model, goal, self.policy, self.scope.names)
        went_back = {name: state for name, state in goal.training.items() if self.policy.rewinds(name)}
        training = {**(carried.training if carried else {}), **went_back}
        return Start((self._capture_step or 0) if self.policy.rewinds("weights") else 0, training, checkpoint)

    @contextmanager
    def watching(self, current: Round, enforcement: Enforcement) -> Iterator[None]:
        """In the first round, capture the network at the optimizer step that later rounds go back to."""
        if current.index == 0:
            self._watch(current, enforcement)
        try:
            yield
            self.settle()
        finally:
            if self._capture is not None:
                self._capture.drop()
                self._capture = None

    def _watch(self, current: Round, enforcement: Enforcement) -> None:
        def after(together: bool) -> None:
            if enforcement.steps == 1:
                self.policy.check_parts(current.tracked or ())
            if self._capture is not None:
                self._capture.after_step(together=together)
            elif enforcement.steps == self._capture_step and self._captured is None:
                alone = enforcement.steps > 1 and not enforcement.several
                self._capture = StepCapture(self.model, current.tracked or {}, alone=alone)

        def before(begins: bool) -> None:
            if begins:
                self._end_capture(begins=True)
            elif self._capture is not None:
                self._capture.before_step()

        enforcement.on_step = after
        enforcement.before_step = before

    def settle(self) -> None:
        """Keep what was captured, since the loop says that it is between two steps."""
        self._end_capture(begins=False)

    def _end_capture(self, *, begins: bool) -> None:
        if self._capture is not None:
            self._captured, self._capture = self._kept(self._capture.end(begins=begins), REWIND), None

    def track(self, name: str, thing: Stateful) -> None:
        """Note what the loop of the first round tracks, as it is before that round; in a second try, put it back."""
        if self._initial is None:
            return
        if name in self._initial.training:
            load_state(thing, self._initial.training[name])
        else:
            self._initial = self._kept(self._initial.with_training(name, thing), INIT)

    def finish(self, current: Round, enforcement: Enforcement) -> Snapshot | None:
        """Return the network at the end of a round if anything needs it; raise if the round never got to step k."""
        tracked = current.tracked or {}
        if current.index == 0:
            self.policy.check_parts(tracked)
            if self._capture_step is not None and self._captured is None:
                raise ConfigError(
                    f"rewind {str(self.policy)!r} goes back to optimizer step {self._capture_step}, but the first "
                    f"round took only {enforcement.steps}; rewind earlier or train longer"
                )
        if self.ledger is None and not self._carries(tracked):
            return None
        carried = {name: thing for name, thing in tracked.items() if not self.policy.rewinds(name)}
        trained = Snapshot.capture(self.model, carried)
        self._last = trained if self.ledger is None else None
        return trained

    def start_tensors(self, index: int) -> Mapping[str, torch.Tensor] | None:
        """Return what the network was at the start of a round, before its mask; None if nothing kept that.

        What is distributed over ranks is gathered: all of them must ask.
        """
        tensors = self._reinitialised(index) if index and self._reinitialises else self.origin.tensors
        tensors = {key: whole(tensor) for key, tensor in tensors.items()}
        if index == 0 or all(self._goes_back(key) for key in tensors):
            return tensors
        if self.ledger is None:
            return None
        before = self.ledger.trained(self.ledger.records()[index - 1]).tensors
        return {key: tensor if self._goes_back(key) else before[key] for key, tensor in tensors.items()}

    def _begin_first(self, checkpoint: Snapshot | None) -> None:
        """Put the model to its first state; what an earlier try captured counts only if this one goes on from it."""
        if checkpoint is None:
            self._captured = None
        if self._initial is not None:
            self._initial.restore(self.model)
            return
        if self.policy.path is not None:
            load_pretrained_(self.model, self.policy.path)
        self._initial = self._kept(Snapshot.capture(self.model), INIT)

    def _kept(self, snapshot: Snapshot, name: str) -> Snapshot:
        """Write a snapshot to the run directory and return it mapped from there, so that it takes no memory."""
        if self.ledger is None:
            return snapshot
        self.ledger.keep_snapshot(snapshot, name)
        return self.ledger.snapshot(name) or snapshot

    def trained(self, index: int) -> Snapshot | None:
        """Return the network at the end of the last round, if it was kept."""
        return self.ledger.trained(self.ledger.records()[index]) if self.ledger else self._last

    def _reinitialised(self, index: int) -> Mapping[str, torch.Tensor]:
        """Return the fresh initial weights of a round; the model is left as it was."""
        now = Snapshot.capture(self.model)
        reinitialise_(self.model, derived_seed(self.seed, index), self.initialise)
        fresh = Snapshot.capture(self.model).tensors
        now.restore(self.model)
        return fresh

    def _goes_back(self, key: str) -> bool:
        return self.policy.rewinds(part_of(key, self.scope.names))

    def _carries(self, tracked: Iterable[str]) -> bool:
        """Say whether a round takes over anything from the one before it."""
        return bool(self.policy.keep) or not all(self.policy.rewinds(part) for part in (*PARTS, *tracked))

    @property
    def _reinitialises(self) -> bool:
        return self.policy.name == "reinit"
