"""Tickets in Lightning: one held in a training, and a round of IMP around `Trainer.fit`.

    Trainer(callbacks=[TicketCallback("ticket.safetensors")]).fit(module, data)

    for round in IMP(module, rounds=14, run_dir="runs/a"):
        Trainer(callbacks=[RoundCallback(round)]).fit(module, data)

Both attach when fitting starts, when the optimizers exist and a checkpoint's weights are loaded.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

from ticketkit.adapters.holding import (
    Holding,
    MaskSource,
    check_round,
    check_same_mask,
    check_trains_the_model,
    mask_state,
    missing,
    numbers,
)
from ticketkit.errors import ConfigError, ScopeError, TicketError
from ticketkit.mask import Mask
from ticketkit.names import named_modules, named_parameters, unwrap
from ticketkit.round import Round
from ticketkit.state import Stateful

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import Checkpoint
except ModuleNotFoundError as error:
    raise missing("lightning", "lightning", error) from error

from ticketkit.adapters.lightning_position import Position


class TicketCallback(Callback):
    """Hold a ticket's mask in one training.

    `ticket`: a `Ticket`, its path or a `Mask`; `part`: the submodule that it is of, such as `"encoder"`, if not the
    whole `LightningModule`. Weights are not rewound; `Ticket.apply_` before fitting does that. Lightning's checkpoints
    hold the mask, a bit a weight; resuming (`ckpt_path`) with another ticket raises `TicketError`. Models that average
    the weights (`WeightAveraging`) are masked too.
    """

    def __init__(self, ticket: MaskSource, *, part: str = ""):
        self._holding = Holding(ticket)
        self._part = part

    @property
    def mask(self) -> Mask:
        """The mask that is held."""
        return self._holding.mask

    @property
    def state_key(self) -> str:
        """The name under which checkpoints hold the mask."""
        return self._generate_state_key(part=self._part)

    def state_dict(self) -> dict[str, Any]:
        """Return the mask for a checkpoint."""
        return mask_state(self.mask)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raise `TicketError` unless the checkpoint was trained with this mask."""
        check_same_mask(state_dict, self.mask)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Raise `TicketError` for a checkpoint that was trained with tickets of other parts."""
        saved = {key for key in checkpoint.get("callbacks", {}) if key.startswith(f"{TicketCallback.__name__}{{")}
        if saved and self.state_key not in saved:
            raise TicketError(
                f"the checkpoint was trained with {', '.join(sorted(saved))}, not with {self.state_key}; resume with a "
                "ticket of the same part, or start without the checkpoint"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hold the mask from now on."""
        try:
            model = pl_module.get_submodule(self._part)
        except AttributeError as error:
            parts = ", ".join(name for name, _ in pl_module.named_children())
            raise ScopeError(f"{type(pl_module).__name__} has no part {self._part!r}; it has {parts}") from error
        try:
            enforcement = self._holding.start(model, *trainer.optimizers)
        except ScopeError as error:
            raise ScopeError(f"{error}{_where_it_fits(self.mask, model, self._part)}") from error
        for average in _averages(trainer, pl_module):
            enforcement.hold_average(unwrap(average).get_submodule(self._part))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the loggers how much is left."""
        _log_facts(trainer, self.mask)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of the model."""
        self._holding.end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the model."""
        self._holding.end()


class RoundCallback(Callback):
    """Train one round of `IMP` with a `Trainer` of its own.

    The round tracks what Lightning keeps: optimizers, schedulers, the scaler of mixed precision, its loops (so that
    `rewind="step:500"` goes on at `global_step` 500, with the data that the first round had then), averaged models and
    other callbacks' states. With a `run_dir` the middle of a round is saved between two batches: at the end of every
    epoch, or every `every` optimizer steps. At the end, `trainer.callback_metrics` are the round's.

    Raises `ConfigError` for a trainer or a round that was used before, and for `ckpt_path`; `ScopeError` for a module
    that does not train the parameters of the round's model, or others too, and for optimizers that do not hold all.
    """

    def __init__(self, round: Round, *, every: int | None = None):
        check_round(round, every)
        self.round = round
        self._every = every
        self._saves = round.saves
        self._position: Position | None = None
        self._steps = 0
        self._due = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the trainer's objects the state that this round starts from."""
        self._check(trainer, pl_module)
        position = Position(trainer, self.round.index)
        callbacks = _CallbackStates(trainer)
        step = self.round.track(
            loops=position, callbacks=callbacks, **_averages_of(self.round, trainer, pl_module), **_states(trainer)
        )
        in_this_round = position.saved_in_this_round
        if position.go_on(step):
            callbacks.go_on(with_checkpoints=in_this_round)
        self._position, self._steps = position, trainer.global_step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on in the data where the round does, and tell the loggers which round it is."""
        self._there.place_data()
        _log_facts(trainer, self.round.mask, round=self.round.index)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where the epoch starts."""
        if self._saves and self._every is None:
            self._due = trainer.current_epoch > 0
        self._there.begin_epoch()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save the round if it is time; all that belongs to the batch before is done."""
        self._there.begin_batch()
        if self._due:
            self._due = False
            self._there.saving(True)
            self.round.checkpoint(step=trainer.global_step)
            self._there.saving(False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step."""
        if trainer.global_step == self._steps:
            return  # gradients wait for more batches
        if self._saves and self._every is not None:
            self._due = trainer.global_step // self._every > self._steps // self._every
        self._steps = trainer.global_step
        self._there.end_step(batch_idx + 1)
        if self._due:
            self._there.note_generators()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the generators again, which validation has moved."""
        if self._due and not trainer.sanity_checking:
            self._there.note_generators()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the metrics to the round."""
        self.round.log(**_final(trainer.callback_metrics))

    @property
    def _there(self) -> Position:
        if self._position is None:
            raise ConfigError("this callback has not seen the start of fitting; hand it to the Trainer before fit()")
        return self._position

    def _check(self, trainer: Trainer, module: LightningModule) -> None:
        """Raise for what cannot be a round of this model."""
        if trainer.ckpt_path is not None:
            raise ConfigError("fit(ckpt_path=...) would undo where the round starts; IMP(run_dir=...) resumes it")
        if trainer.fit_loop.total_batch_idx >= 0:
            raise ConfigError("this Trainer has fitted before and would go on counting; make another for each round")
        if self.round.tracked is not None:
            raise ConfigError(f"round {self.round.index} was trained before; make a RoundCallback for each round")
        check_trains_the_model(module, type(module).__name__, self.round)
        if trainer.optimizers:
            self.round.check_optimizer(*trainer.optimizers)


class _CallbackStates:
    """The states of a trainer's callbacks."""

    def __init__(self, trainer: Trainer):
        self._trainer = trainer
        self._given: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        states = {callback.state_key: callback.state_dict() for callback in self._callbacks}
        return {key: state for key, state in states.items() if state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._given = state_dict

    def go_on(self, *, with_checkpoints: bool) -> None:
        """Give the callbacks their states; those that save checkpoints only in the middle of the same round."""
        for callback in self._callbacks:
            state = self._given.get(callback.state_key)
            if state and (with_checkpoints or not isinstance(callback, Checkpoint)):
                callback.load_state_dict(state)

    @property
    def _callbacks(self) -> list[Callback]:
        return [callback for callback in _callbacks(self._trainer) if not isinstance(callback, TicketCallback)]


def _callbacks(trainer: Trainer) -> list[Callback]:
    found: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return found


def _states(trainer: Trainer) -> dict[str, Stateful]:
    """Return by name what a trainer keeps beside its callbacks and loops."""
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    found = {**_numbered("optimizer", trainer.optimizers), **_numbered("scheduler", schedulers)}
    found["precision"] = trainer.precision_plugin
    datamodule = vars(trainer).get("datamodule")
    if datamodule is not None:
        found["datamodule"] = datamodule
    return found


def _numbered(name: str, objects: list[Any]) -> dict[str, Stateful]:
    """Return one object under a name, or several under the name with their numbers."""
    return {name: objects[0]} if len(objects) == 1 else {f"{name}_{i}": thing for i, thing in enumerate(objects)}


def _averages(trainer: Trainer, module: LightningModule) -> list[nn.Module]:
    """Return the averages of the module that callbacks keep."""
    held = [value for callback in _callbacks(trainer) for value in vars(callback).values()]
    return [v for v in held if isinstance(v, AveragedModel) or (type(v) is type(module) and v is not module)]


def _averages_of(round: Round, trainer: Trainer, module: LightningModule) -> dict[str, Stateful]:
    """Return what a round tracks of them: each, and where only a part of the module is the round's, that part."""
    part = next((name for name, found in named_modules(module) if found is unwrap(round.model)), "")
    averages = _averages(trainer, module)
    if not part:
        return _numbered("ema", averages)
    parts = _numbered("ema", [unwrap(average).get_submodule(part) for average in averages])
    return {**_numbered("averaged", [_Bare(average) for average in averages]), **parts}


class _Bare:
    """An averaged model as its state alone: it is masked elsewhere."""

    def __init__(self, average: nn.Module):
        self._average = average

    def state_dict(self) -> dict[str, Any]:
        return self._average.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._average.load_state_dict(state_dict)


def _log_facts(trainer: Trainer, mask: Mask, **facts: int) -> None:
    """Write density and number of kept weights to every logger of the trainer."""
    found = {"density": mask.density, "kept": mask.kept, **facts}
    for logger in trainer.loggers:
        logger.log_metrics({f"ticketkit/{name}": value for name, value in found.items()}, step=trainer.global_step)


def _final(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return a fit's metrics without those of single steps, and without one of two names for the same value.

    >>> _final({"loss": 0.5, "loss_epoch": 0.5, "loss_step": 0.7, "lr_step": 0.1, "wer": 0.2})
    {'loss': 0.5, 'lr_step': 0.1, 'wer': 0.2}
    """
    forked = {name.removesuffix("_step") for name in metrics if name.endswith("_step")}
    forked &= {name.removesuffix("_epoch") for name in metrics if name.endswith("_epoch")}
    twice = {f"{name}_step" for name in forked} | {f"{name}_epoch" for name in forked if name in metrics}
    return numbers({name: value for name, value in metrics.items() if name not in twice})


def _where_it_fits(mask: Mask, model: nn.Module, part: str) -> str:
    """Return a hint naming the parts of a model that have exactly the masked parameters by name and shape."""
    found = []
    for name, module in named_modules(model):
        shapes = {n: tuple(p.shape) for n, p in named_parameters(module, remove_duplicate=False)}
        if name and mask.shapes.items() <= shapes.items():
            found.append(f"{part}.{name}".removeprefix("."))
    return f"\nit fits part={' or part='.join(map(repr, found))}" if found else ""
