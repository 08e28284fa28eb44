"""Where a fit of Lightning stands, between two batches, in a form that its loops go on from.

A round tracks this as `loops`. What is captured while a step is under way, as the engine does for `rewind="step:k"`, is
written as it was when the last optimizer step had been taken: batches after it, whose gradients wait for the next
step, are drawn again. Batches are drawn in the order of the epoch that was left: its generators are put back to its
start, as many batches are drawn as were trained, and the generators put forward again.
"""

from collections.abc import Iterator
from typing import Any, TypeVar

from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch import Trainer

from ticketkit.rng import RngState

Batch = TypeVar("Batch")
STEPS = ("epoch_loop.automatic_optimization.optim_progress", "epoch_loop.manual_optimization.optim_step_progress")


class Position:
    """The loops of one trainer, and what random numbers its data was drawn with."""

    def __init__(self, trainer: Trainer, index: int):
        self._trainer = trainer
        self._index = index
        self._batch = 0  # batches of this epoch up to the last optimizer step
        self._batches = 0  # the same of all epochs
        self._epoch_start: RngState | None = None
        self._before_fetch: RngState | None = None
        self._saving = False
        self._given: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last optimizer step; nothing before the first epoch."""
        if self._epoch_start is None:
            return {}
        loops = _standing(self._trainer.fit_loop.state_dict(), self._trainer.current_epoch, self._batch, self._batches)
        state = {"round": self._index, "batch": self._batch, "loops": loops}
        state["epoch_start"] = self._epoch_start
        if self._saving:
            state["now"] = RngState.capture()
            state["metrics"] = dict(self._trainer.callback_metrics)
            if self._before_fetch is not None and self._batch:
                state["before_fetch"] = self._before_fetch
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Note a position; `go_on` takes it."""
        self._given = state_dict

    def saving(self, on: bool) -> None:
        """Say whether states are asked for between two batches, so that the generators are part of the position."""
        self._saving = on

    @property
    def saved_in_this_round(self) -> bool:
        """Whether the position that was loaded is the middle of this round, and not what the round is rewound to."""
        return self._given.get("round") == self._index

    def go_on(self, step: int) -> bool:
        """Put the loops to the position that was loaded; return False if that is only where another round ended.

        A round that carries weights over, as with `rewind="none"`, has such a position and starts from step 0 again.
        """
        ended = bool(self._given) and not step and not self.saved_in_this_round
        if ended or not self._given:
            self._given = {}
            self._epoch_start = RngState.capture()
            return not ended
        loop = self._trainer.fit_loop
        loop.load_state_dict(self._given["loops"])
        self._batch = self._given["batch"]
        self._batches = loop.epoch_loop.batch_progress.total.ready
        self._epoch_start = self._given["epoch_start"]
        self._before_fetch = self._given.get("before_fetch") or RngState.capture()  # as the rewinding left them
        if self._batch == 0:
            loop.epoch_loop.restarting = False  # this epoch begins; there is nothing in it to go on from
        return True

    def place_data(self) -> None:
        """Draw the batches of the epoch again that are trained already. Call it when the loader's iterator exists."""
        fetcher, loader = self._trainer.fit_loop._data_fetcher, self._trainer.fit_loop._combined_loader
        if not self._given or fetcher is None or loader is None or self._epoch_start is None:
            return
        self._trainer.callback_metrics.update(self._given.get("metrics", {}))  # early stopping may ask for them
        for one in loader.flattened:
            _set_sampler_epoch(one, self._trainer.current_epoch)
        self._epoch_start.restore()
        iter(fetcher)
        drawn = RngState.capture()  # the order of the data is drawn with the first batch
        now = (self._before_fetch if self._batch else None) or drawn
        if fetcher.length is None:  # one batch ahead, to know the last
            for _ in range(self._batch):
                next(fetcher)
            now.restore()
        elif fetcher.iterator is not None:
            fetcher.iterator = _after(fetcher.iterator, self._batch, drawn, now)

    def begin_epoch(self) -> None:
        """Note the generators that the epoch's batches are drawn with."""
        if self._given:
            return  # the epoch was begun before
        self._batch, self._before_fetch = 0, None
        if self._trainer.current_epoch:
            self._epoch_start = RngState.capture()

    def begin_batch(self) -> None:
        """Put the generators forward to where the first batch of a resumed fit is trained with them."""
        if "now" in self._given:
            self._given["now"].restore()
        if self._given:
            # Otherwise Lightning, which does not know this epoch's metrics, would leave its plateau schedulers alone.
            self._trainer.fit_loop._restarting = False
            self._given = {}

    def end_step(self, batch: int) -> None:
        """Note that so many batches of the epoch went into the optimizer steps so far."""
        self._batch, self._batches = batch, self._trainer.fit_loop.total_batch_idx + 1

    def note_generators(self) -> None:
        """Note the generators that the next batch is drawn with."""
        self._before_fetch = RngState.capture()


def _after(iterator: Iterator[Batch], batches: int, drawn: RngState, now: RngState) -> Iterator[Batch]:
    """Yield what an iterator does after so many batches; they and what follows are drawn with the given generators."""
    drawn.restore()
    for _ in range(batches):
        next(iterator)
    now.restore()
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        yield batch


def _standing(loops: dict[str, Any], epoch: int, batch: int, batches: int) -> dict[str, Any]:
    """Return the state of a fit loop as when batch `batch` of an epoch has ended; with 0, before the epoch begins."""
    begun = int(batch > 0)
    stated: dict[str, Any] = {
        **loops,
        "state_dict": {key: value for key, value in loops["state_dict"].items() if key != "combined_loader"},
        "epoch_loop.state_dict": dict(loops["epoch_loop.state_dict"]),
        "epoch_progress": _counts(epoch + begun, epoch + begun, epoch, epoch),
        "epoch_loop.batch_progress": {
            "total": _counts(batches, batches, batches, batches - begun)["total"],
            "current": _counts(batch, batch, batch, batch - begun)["current"],
            "is_last_batch": False,
        },
    }
    if begun and "_batches_that_stepped" in stated["epoch_loop.state_dict"]:
        stated["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # Lightning counts this one again
    return {key: _completed(value) if key in STEPS else value for key, value in stated.items()}


def _counts(ready: int, started: int, processed: int, completed: int) -> dict[str, dict[str, int]]:
    counts = {"ready": ready, "started": started, "processed": processed, "completed": completed}
    return {"total": dict(counts), "current": dict(counts)}


def _completed(progress: Any) -> Any:
    """Return nested progress counters without what has begun and not ended."""
    if not isinstance(progress, dict):
        return progress
    if "completed" not in progress:
        return {key: _completed(value) for key, value in progress.items()}
    return dict.fromkeys(progress, progress["completed"])
