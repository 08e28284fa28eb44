"""Tickets in SpeechBrain: one held in a training, and a round of IMP around `Brain.fit`.

    with held(brain, "ticket.safetensors", part="encoder"):
        brain.fit(epochs, train_set)

    for round in IMP(network, rounds=14, run_dir="runs/a"):
        brain = ASR({"network": network}, opt_class, hparams)  # and with it a Checkpointer with a folder of its own
        with in_round(brain, round):
            brain.fit(EpochCounter(10), train_set)

Nothing here imports SpeechBrain before it gets a Brain. Beside a torch that torchaudio's compiled part does not fit,
`import speechbrain` fails until `ticketkit_asr.torchaudio_shim.torchaudio()` has been called.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from ticketkit.adapters.holding import Holding, MaskSource, check_round, check_trains_the_model, refuse_other_mask
from ticketkit.adapters.speechbrain_position import Position, Recoverables
from ticketkit.distributed import rank
from ticketkit.errors import ConfigError, ScopeError
from ticketkit.mask import Mask
from ticketkit.names import unwrap
from ticketkit.round import Round
from ticketkit.state import Stateful
from ticketkit.ticket import Ticket

Brain = Any  # speechbrain.Brain, which is not imported here
MASK = "ticketkit"  # the name under which SpeechBrain's checkpoints hold the mask


@contextmanager
def held(brain: Brain, ticket: MaskSource, *, part: str = "") -> Iterator[Mask]:
    """Hold a ticket's mask on a Brain's modules while it fits inside the block, and in what its Checkpointer saves.

    `ticket`: a `Ticket`, its path or a `Mask`; `part`: the one of `brain.modules` that it is of, or a module in one.
    Recovering a checkpoint of another ticket raises `TicketError`, one that holds none SpeechBrain's own error. The
    mask is held once the Brain has its optimizers and has recovered. Raises `ScopeError` for a ticket of other modules
    and for optimizers of another copy of them.
    """
    holding = Holding(ticket)
    _save_with_checkpoints(brain, holding.mask)

    def start(original: Callable[[], object]) -> None:
        holding.end()
        original()
        holding.start(_part(brain, part), *_optimizers(brain).values())
        _log_facts(brain, holding.mask)

    try:
        with _around(brain, on_fit_start=start):
            yield holding.mask
    finally:
        holding.end()


@contextmanager
def in_round(brain: Brain, round: Round, *, every: int | None = None, **tracked: Stateful) -> Iterator[None]:
    """Train one round of `IMP` by a `Brain.fit` inside the block.

    The round tracks the optimizers, the scaler, the Brain's counters, what its Checkpointer knows beside them (such as
    a scheduler), and `tracked`. With a `run_dir` its middle is saved between two batches: at the end of every epoch, or
    every `every` batches, when gradients do not wait for more. It starts where the round does; what the Checkpointer
    holds is not recovered before fitting. The losses of stages are logged as `train_loss` and `valid_loss`.

    Raises `ConfigError` for a Brain or a round that was used before, `ScopeError` for a Brain that does not train the
    parameters of the round's model, or others too, and for optimizers that do not hold all.
    """
    check_round(round, every)
    check_trains_the_model(brain.modules, type(brain).__name__, round)
    _save_with_checkpoints(brain, round.mask)
    position = Position(brain, round, every if round.saves else 0)

    def start(original: Callable[[], object]) -> None:
        if brain.optimizer_step:
            raise ConfigError("this Brain has fitted before and would go on counting; make another for each round")
        with _around(brain.checkpointer, recover_if_possible=lambda _original, *_args, **_options: None):
            original()
        optimizers = _optimizers(brain)
        if optimizers:
            round.check_optimizer(*optimizers.values())
        known = {"recoverables": Recoverables(brain, MASK)} if brain.checkpointer is not None else {}
        step = round.track(loops=position, scaler=brain.scaler, **optimizers, **known, **tracked)
        position.go_on(step)
        _log_facts(brain, round.mask, round=round.index)

    def fit(
        original: Callable[..., object], epoch_counter: Iterable[int], train_set: Any, *args: Any, **kw: Any
    ) -> None:
        position.counter = epoch_counter
        original(position.epochs(epoch_counter), train_set, *args, **kw)

    def fit_train(original: Callable[..., object], train_set: Any, epoch: int, enable: bool) -> None:
        original(train_set=position.batches(train_set, epoch), epoch=epoch, enable=enable)

    def stage_end(original: Callable[..., object], stage: Any, stage_loss: float, epoch: int | None = None) -> None:
        original(stage, stage_loss, epoch)
        if stage.name in ("TRAIN", "VALID"):
            round.log(**{f"{stage.name.lower()}_loss": float(stage_loss)})

    with _around(brain, on_fit_start=start, fit=fit, _fit_train=fit_train, on_stage_end=stage_end):
        yield


@contextmanager
def _around(thing: Any, **wrappers: Callable[..., object]) -> Iterator[None]:
    """Let methods of one object be called through wrappers, which get the original first; nothing for None."""
    before = {} if thing is None else {name: vars(thing).get(name) for name in wrappers}

    def wrapped(name: str) -> Callable[..., object]:
        original, wrapper = getattr(thing, name), wrappers[name]
        return lambda *args, **kwargs: wrapper(original, *args, **kwargs)

    for name in before:
        setattr(thing, name, wrapped(name))
    try:
        yield
    finally:
        for name, earlier in before.items():
            delattr(thing, name) if earlier is None else setattr(thing, name, earlier)


def _save_with_checkpoints(brain: Brain, mask: Mask) -> None:
    """Let the Brain's checkpoints hold a mask as a ticket's file, and refuse those with another."""
    if brain.checkpointer is None:
        return

    def save(held: Mask, path: Path) -> None:
        if rank() == 0:
            Ticket(held).save(path)

    def load(held: Mask, path: Path, end_of_epoch: bool) -> None:
        refuse_other_mask(Ticket.load(path).mask, held)

    brain.checkpointer.add_recoverable(MASK, mask, custom_load_hook=load, custom_save_hook=save)


def _optimizers(brain: Brain) -> dict[str, Optimizer]:
    """Return a Brain's optimizers by name; with one it is called `optimizer`."""
    optimizers = dict(getattr(brain, "optimizers_dict", None) or {})
    if not optimizers and hasattr(brain, "optimizer"):
        optimizers = {"optimizer": brain.optimizer}
    return {"optimizer": next(iter(optimizers.values()))} if len(optimizers) == 1 else optimizers


def _part(brain: Brain, part: str) -> Any:
    """Return the Brain's modules, or the one inside them that `part` names, whatever it is wrapped in."""
    found = brain.modules
    for name in filter(None, part.split(".")):
        children = dict(unwrap(found).named_children())
        if name not in children:
            raise ScopeError(f"the Brain's modules have no part {part!r}; at {name!r} there are {', '.join(children)}")
        found = children[name]
    return found


def _log_facts(brain: Brain, mask: Mask, **facts: int) -> None:
    """Write density and number of kept weights to the Brain's `train_logger`, if its hparams have one."""
    logger = getattr(getattr(brain, "hparams", None), "train_logger", None)
    if logger is not None:
        logger.log_stats({"density": mask.density, "kept": mask.kept, **facts})
