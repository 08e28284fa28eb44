"""One round, as the training loop sees it: which it is, what it may train, and where to note what was measured."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from ticketkit.distributed import ranks
from ticketkit.enforce import Enforcement
from ticketkit.errors import ConfigError, NoEffectWarning
from ticketkit.mask import Mask
from ticketkit.rewind import PARTS
from ticketkit.snapshot import Snapshot
from ticketkit.state import Stateful, copied, load_state

AVERAGES = ("ema", "swa", "average")  # what a tracked module is called if it is an average of the network
PROGRESS = "round"  # the name under which a checkpoint holds the round's own counters


@dataclass(frozen=True)
class Start:
    """Where a round starts from.

    `step` is the number of optimizer steps that the network it is rewound to has behind it; `training` the states that
    tracked objects go back to or carry over; `checkpoint` the middle of this round, if an earlier process saved it.
    """

    step: int = 0
    training: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Snapshot | None = None


class Round:
    """One training in an IMP run: the model is rewound, the mask is held; train it, then log what you measured."""

    def __init__(
        self,
        index: int,
        mask: Mask,
        model: nn.Module,
        enforcement: Enforcement,
        start: Start,
        *,
        on_track: Callable[[str, Stateful], object],
        on_checkpoint: Callable[[], object],
        save: Callable[[Snapshot], None] | None,
    ):
        self.index = index
        self.mask = mask
        self.model = model
        self.metrics: dict[str, float] = {}
        self.tracked: dict[str, Stateful] | None = None
        self._enforcement = enforcement
        self._start = start
        self._on_track = on_track
        self._on_checkpoint = on_checkpoint
        self._save = save

    @property
    def density(self) -> float:
        """Kept weights as a share of the scope."""
        return self.mask.density

    def start_state(self, name: str) -> Any:
        """Return the state that `track` will give to an object, if the round does not start at step 0; else None.

        For a loop that must know where it begins before it can build what it tracks: in a round that an earlier process
        was killed in, and in one that goes back to the k of `rewind="step:k"`.
        """
        checkpoint = self._start.checkpoint
        if checkpoint is None and not self._start.step:
            return None
        return copied((self._start.training if checkpoint is None else checkpoint.training).get(name))

    @property
    def saves(self) -> bool:
        """Whether `checkpoint` saves anything: only a run with a directory does."""
        return self._save is not None

    def log(self, **metrics: float) -> None:
        """Note metrics of the trained network; a later value of the same name replaces the earlier."""
        for name, value in metrics.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"metric {name!r} must be a number, not {value!r}; use .item() on a tensor")
            try:
                self.metrics[name] = float(value)
            except OverflowError as error:
                raise ConfigError(f"metric {name!r} is a whole number too large for a float") from error

    def check_optimizer(self, *optimizers: Optimizer) -> None:
        """Raise `ScopeError` unless the optimizers together hold every trainable parameter in scope."""
        self._enforcement.check_optimizer(*optimizers)

    def track(self, **objects: Stateful) -> int:
        """Hand over the training state beyond the model, and return the step from which the loop goes on.

        The names are the loop's own: `optimizer`, `scheduler`, `scaler`, `ema`, `sampler`, anything with `state_dict`
        and `load_state_dict`. Call it once a round, after building these objects and before the first step. Each gets
        the state that the rewind policy gives it. In a round that an earlier process was killed in, they, the model and
        the random generators get the state of the last `checkpoint`. The returned step is 0 for a fresh start, the step
        given to that checkpoint, or the k of `rewind="step:k"`. An `AveragedModel`, or a module that is tracked as
        `ema`, `swa` or `average`, is masked with the network. Track the same objects in every round.

            start = round.track(optimizer=optimizer, scheduler=scheduler)
            for step in range(start, steps):
                ...
                if (step + 1) % 1000 == 0:
                    round.checkpoint(step=step + 1)
        """
        if self.tracked is not None:
            raise ConfigError("round.track() was called before in this round; hand all objects over in one call")
        _check_stateful(objects)
        self.tracked = objects
        checkpoint = self._start.checkpoint
        for name, thing in objects.items():
            if checkpoint is None and self.index == 0:
                self._on_track(name, thing)
            elif checkpoint is None:
                self._go_back(name, thing)
        step = self._start.step if checkpoint is None else self._continue(checkpoint, objects)
        for name, thing in objects.items():
            if isinstance(thing, AveragedModel) or (isinstance(thing, nn.Module) and name.startswith(AVERAGES)):
                self._enforcement.hold_average(thing)
        return step

    def checkpoint(self, *, step: int) -> None:
        """Save the middle of this round: model, random generators, logged metrics, everything tracked; and `step`.

        After a crash the round goes on from here to the same bits. Needs a `run_dir` and `track` before.
        """
        if self.tracked is None:
            raise ConfigError("call round.track(optimizer=..., ...) first: it restores what checkpoint() saves")
        self._on_checkpoint()
        if self._save is None:
            warnings.warn(
                "round.checkpoint() saves nothing without a run directory; give IMP a run_dir",
                NoEffectWarning,
                stacklevel=2,
            )
            return
        counters = {
            "step": step,
            "optimizer_steps": self._enforcement.steps,
            "metrics": self.metrics,
            "ranks": ranks(),
        }
        self._save(Snapshot.capture(self.model, {**self.tracked, PROGRESS: _Held(counters)}))

    def recall(self, trained: Snapshot, tracked: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Take over the end of another run's training that had the same start, mask and settings, instead of training.

        `tracked` are the states that its loop's objects had before the first round, by the names it tracked them under.
        """
        self.tracked = {name: _Held(state) for name, state in tracked.items()}
        if self.index == 0:
            for name, thing in self.tracked.items():
                self._on_track(name, thing)
        trained.restore(self.model)
        self.log(**metrics)

    def _go_back(self, name: str, thing: Stateful) -> None:
        if name not in self._start.training:
            raise ConfigError(
                f"round.track({name}=...) in round {self.index}, but an earlier round did not track it, so there is no "
                "state to give it; track the same objects in every round, the first one included"
            )
        load_state(thing, self._start.training[name])

    def _continue(self, checkpoint: Snapshot, objects: Mapping[str, Stateful]) -> int:
        """Put model, objects and generators to the middle of the round; return the step that it stands at."""
        saved = checkpoint.training.keys() - {PROGRESS}
        if saved != objects.keys():
            raise ConfigError(
                f"the checkpoint of round {self.index} holds {sorted(saved)}, but the loop tracks {sorted(objects)}; "
                "track the same objects, or delete the checkpoint to train the round from its start"
            )
        counters = checkpoint.training[PROGRESS]
        saved_by = counters.get("ranks", ranks())  # earlier versions did not say
        if saved_by != ranks():
            raise ConfigError(
                f"the checkpoint of round {self.index} was saved by {saved_by} ranks, this run has {ranks()}, "
                "and its data would go on in another order; go on with as many ranks, or delete the checkpoint to "
                "train the round from its start"
            )
        checkpoint.restore_tensors(self.model)
        for name, thing in objects.items():
            load_state(thing, checkpoint.training[name])
        self._enforcement.continue_from(counters["optimizer_steps"])
        self.metrics.update(counters["metrics"])
        checkpoint.rng.restore()
        step: int = counters["step"]
        return step


@dataclass(frozen=True)
class _Held:
    """A state in the form of something that can be tracked: the round's own counters, or another run's optimizer."""

    values: dict[str, Any]

    def state_dict(self) -> dict[str, Any]:
        return self.values

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values.update(state_dict)


def _check_stateful(objects: Mapping[str, Any]) -> None:
    for name, thing in objects.items():
        if name in (*PARTS, PROGRESS):
            raise ConfigError(f"round.track({name}=...): the engine itself keeps {name!r}; choose another name")
        if not all(callable(getattr(thing, method, None)) for method in ("state_dict", "load_state_dict")):
            raise ConfigError(
                f"round.track({name}=...) needs an object with state_dict() and load_state_dict(), not a "
                f"{type(thing).__name__}"
            )
