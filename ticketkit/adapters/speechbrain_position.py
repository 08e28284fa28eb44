"""Where a `Brain.fit` stands, between two batches, in a form that it goes on from.

A round tracks this as `loops`. Batches are handed to the Brain one by one; when the next is asked for, all that belongs
to the one before is done, and that is when a round is saved. A fit that goes on draws the batches of its epoch
again, with the generators that they were drawn with, and leaves out those that are trained.
"""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from ticketkit.distributed import once
from ticketkit.rng import RngState
from ticketkit.round import Round

COUNTERS = ("step", "optimizer_step", "avg_train_loss", "nonfinite_count")


class Position:
    """Epoch, batch and counters of one Brain, and what random numbers its data was drawn with."""

    def __init__(self, brain: Any, round: Round, every: int | None):
        self.counter: Iterable[int] = ()
        self._brain = brain
        self._round = round
        self._every = every  # 0: never save
        self._epoch = 0
        self._saved_at = 0
        self._counters: dict[str, Any] = {}  # after the last optimizer step
        self._epoch_start: RngState | None = None
        self._saving = False
        self._given: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last optimizer step; nothing before the first epoch."""
        if self._epoch_start is None:
            return {}
        state = {"round": self._round.index, "epoch": self._epoch, **self._counters}
        state["epoch_start"] = self._epoch_start
        state["counter"] = _saved(self.counter)
        if self._saving:
            state["now"] = RngState.capture()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Note a position; `go_on` takes it."""
        self._given = state_dict

    def go_on(self, step: int) -> None:
        """Put the Brain's counters to the position that was loaded, unless the round starts from step 0 again."""
        if not (step or self._given.get("round") == self._round.index):
            self._given = {}
        if not self._given:
            return
        for name in COUNTERS:
            setattr(self._brain, name, self._given[name])
        if self._given["counter"] is not None:
            _load(self.counter, self._given["counter"], end_of_epoch=False)
        self._given.setdefault("now", RngState.capture())

    def epochs(self, counter: Iterable[int]) -> Iterator[int]:
        """Yield the epochs that are not done yet."""
        for epoch in counter:
            if epoch >= self._given.get("epoch", epoch):
                yield epoch

    def batches(self, data: Any, epoch: int) -> "_Batches":
        """Return the data of one epoch from where the fit stands in it."""
        self._epoch = epoch
        return _Batches(self, data)

    def draw(self, data: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches of an epoch that are left, and save the round between two of them when it is time."""
        given, self._given = self._given, {}
        if given:
            given["epoch_start"].restore()
        self._epoch_start = RngState.capture()
        self._note()
        if not given and self._every is None and self._brain.optimizer_step:
            self._save()
        batches = iter(data)
        if given and given["step"]:
            for _ in range(given["step"]):
                next(batches)
            given["now"].restore()
        self._saved_at = self._brain.step
        while True:
            if self._brain.step % self._brain.grad_accumulation_factor == 0:
                self._note()
                if self._every and self._brain.step - self._saved_at >= self._every:
                    self._save()
            try:
                batch = next(batches)
            except StopIteration:
                return
            yield batch

    def _note(self) -> None:
        self._counters = {name: getattr(self._brain, name) for name in COUNTERS}

    def _save(self) -> None:
        self._saved_at = self._brain.step
        self._saving = True
        self._round.checkpoint(step=self._brain.optimizer_step)
        self._saving = False


class _Batches:
    """One epoch's data, as long as the loader it comes from."""

    def __init__(self, position: Position, data: Any):
        self._position = position
        self._data = data

    def __iter__(self) -> Iterator[Any]:
        return self._position.draw(self._data)

    def __len__(self) -> int:
        return len(self._data)


class Recoverables:
    """What a Brain's Checkpointer knows beside modules, optimizers, scaler, loaders and the Brain, as its own files."""

    def __init__(self, brain: Any, mask: str):
        self._brain = brain
        self._mask = mask

    def state_dict(self) -> dict[str, Any]:
        """Return each object's file by name."""
        return {name: _saved(thing, self._hook(name, "save")) for name, thing in self._things().items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let each object load its file."""
        for name, thing in self._things().items():
            if state_dict.get(name) is not None:
                _load(thing, state_dict[name], end_of_epoch=True, hook=self._hook(name, "load"))

    def _things(self) -> dict[str, Any]:
        others = (nn.Module, Optimizer, GradScaler, DataLoader, type(self._brain))
        found = self._brain.checkpointer.recoverables.items()
        return {n: t for n, t in found if n != self._mask and not isinstance(t, others) and not hasattr(t, "limit")}

    def _hook(self, name: str, kind: str) -> Any:
        return getattr(self._brain.checkpointer, f"custom_{kind}_hooks").get(name)


def _saved(thing: Any, hook: Any = None) -> Any:
    """Return the bytes that SpeechBrain would write of an object, on rank 0; None if it has no hook for it."""
    from speechbrain.utils.checkpoints import DEFAULT_SAVE_HOOKS, get_default_hook

    hook = hook or get_default_hook(thing, DEFAULT_SAVE_HOOKS)
    if hook is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "saved.ckpt"
        hook(thing, path)  # on every rank, since some ask all; what they write may be on rank 0 alone
        return np.frombuffer(once(path.read_bytes), np.uint8)


def _load(thing: Any, content: Any, *, end_of_epoch: bool, hook: Any = None) -> None:
    from speechbrain.utils.checkpoints import DEFAULT_LOAD_HOOKS, get_default_hook

    hook = hook or get_default_hook(thing, DEFAULT_LOAD_HOOKS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "saved.ckpt"
        path.write_bytes(content.tobytes())
        hook(thing, path, end_of_epoch)
