"""Tickets in the `Trainer` of transformers, and in the folders that `save_pretrained` writes.

One ticket is a callback; so is one round of an `IMP` run, with a fresh `Trainer` each round:

    for round in imp:
        callback = RoundCallback(round)
        trainer = Trainer(model, arguments, train_dataset=train_set, eval_dataset=dev_set, callbacks=[callback])
        trainer.train(resume_from_checkpoint=callback.resume_from)
        trainer.evaluate()
"""

from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import finalize

from ticketkit.adapters.holding import (
    Holding,
    MaskSource,
    check_round,
    check_trains_the_model,
    mask_of,
    missing,
    numbers,
)
from ticketkit.errors import ConfigError, StorageError, TicketError
from ticketkit.ledger import TICKET
from ticketkit.mask import Mask
from ticketkit.names import unwrap
from ticketkit.rng import RngState
from ticketkit.round import Round
from ticketkit.state import Stateful
from ticketkit.ticket import Ticket

try:
    from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
    from transformers.training_args import TrainingArguments
except ModuleNotFoundError as error:
    raise missing("transformers", "hf", error) from error

from ticketkit.adapters.transformers_progress import Progress, next_step, write_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Model = TypeVar("Model", bound="PreTrainedModel")

DENSITY = "ticketkit/density"  # in the Trainer's logs: kept weights as a share of the scope
RECORD = "ticketkit"  # where a TrainerState says which mask its checkpoint was trained with
PROGRESS = "trainer"  # what a round tracks the Trainer's own progress as
NOT_MEASURED = ("epoch", DENSITY)
TIMES = ("_runtime", "_per_second", "_time")  # ends of metrics that differ from run to run


class TicketCallback(TrainerCallback):
    """Holds one ticket's mask while a `Trainer` trains, and puts it beside every checkpoint.

    `ticket`: a `Ticket`, a mask, a ticket's file, or a folder with `ticket.safetensors` in it, such as a checkpoint.
    `resume_from_checkpoint` is refused (`TicketError`) if the checkpoint was trained with another mask. Logs gain
    `ticketkit/density`. One callback serves one model.
    """

    def __init__(self, ticket: MaskSource):
        self.ticket = _bare(ticket)
        self._holding = Holding(self.ticket)

    def save(self, folder: str | Path) -> None:
        """Write the mask and its facts into a folder, for example where `trainer.save_model` has put the model."""
        self.ticket.save(Path(folder) / TICKET)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hold the mask."""
        self._holding.end()  # a training that broke off with an error never got to its end
        _check_recorded(state, self.ticket.mask)
        _record(state, self.ticket.mask)
        optimizer = kwargs["optimizer"]
        self._holding.start(kwargs["model"], optimizer)
        way_out = "call release() of that callback before the model is trained otherwise"
        self._holding.refuse_others(getattr(optimizer, "optimizer", optimizer), way_out)

    def release(self) -> None:
        """Let go of the model after a training that broke off with an error, of which a Trainer tells no callback."""
        self._holding.end()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the ticket into the checkpoint that was just written."""
        _save_beside(args, state, self.ticket)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the density."""
        _log_density(state, kwargs["logs"], self.ticket.mask)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let go of the model."""
        self._holding.end()


class RoundCallback(TrainerCallback):
    """Lets a `Trainer` train one round of an `IMP` run; make one, and a fresh `Trainer`, for each round.

    Tracks the optimizer, its schedule, the scaler of mixed precision, the `TrainerState` and the random generators, and
    what else the loop has (`RoundCallback(round, ema=average)`). In a run with a directory the round is saved `every`
    so many steps, or whenever the `Trainer` saves, and goes on from there after a crash. What `trainer.evaluate`
    measures is logged to the round, speeds aside. The `Trainer`'s logs gain `ticketkit/density`, its checkpoints
    the ticket.
    """

    def __init__(self, round: Round, *, every: int | None = None, **tracked: Stateful):
        check_round(round, every)
        self._round = round
        self._ticket = Ticket(round.mask)
        self._every = every
        self._tracked = tracked
        self._progress = Progress()
        self._begins: Any = round.start_state(PROGRESS)
        self._folder: Path | None = None
        self._started = self._due = False

    @property
    def resume_from(self) -> str | None:
        """What `trainer.train(resume_from_checkpoint=...)` needs: None, or a folder that starts it at a later step.

        That is in a round that an earlier process was killed in, and in one that is rewound to step k.
        """
        if self._begins is None:
            return None
        if self._folder is None:
            self._folder = Path(mkdtemp(prefix="ticketkit-"))
            finalize(self, rmtree, self._folder, ignore_errors=True)
            write_checkpoint(self._folder, unwrap(self._round.model), self._begins)
        return str(self._folder)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give everything that is tracked the state which the round starts from."""
        if self._started:
            raise ConfigError("this callback has served a training already; make a RoundCallback for each round")
        self._started = True
        self._check_begin(state.global_step)
        optimizer, scheduler = kwargs["optimizer"], kwargs["lr_scheduler"]
        check_trains_the_model(kwargs["model"], type(unwrap(kwargs["model"])).__name__, self._round)
        self._round.check_optimizer(optimizer)
        tracked = {"optimizer": optimizer, "scheduler": scheduler, PROGRESS: self._progress, **self._tracked}
        if (scaler := getattr(optimizer, "scaler", None)) is not None:
            tracked["scaler"] = scaler
        self._round.track(**tracked)
        if self._begins is None:
            _check_schedule(scheduler, state.max_steps)
        _record(state, self._round.mask)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the random generators, of which the data loader draws next; in a round that goes on, put them back."""
        if self._begins is not None:
            self._progress.epoch.restore()
        self._progress.epoch = RngState.capture()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note where the `Trainer` stands, and save the round if that is due."""
        if self._begins is not None:
            self._progress.step.restore()
            self._begins = None
        if self._due or self._round.index == 0:  # any step of the first round may be the one that is gone back to
            self._progress.note(state)
        if self._due:
            self._due = False
            self._round.checkpoint(step=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """See whether the round is to be saved before the next step."""
        self._due = self._every is not None and state.global_step % self._every == 0

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the ticket into the checkpoint that was just written; save the round too, before the next step."""
        _save_beside(args, state, self._ticket)
        self._due = self._due or (self._every is None and self._round.saves)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log to the round what was measured."""
        measured = numbers(kwargs["metrics"])
        self._round.log(**{name: value for name, value in measured.items() if _is_measured(name)})

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the density."""
        _log_density(state, kwargs["logs"], self._round.mask)

    def _check_begin(self, step: int) -> None:
        expected = 0 if self._begins is None else next_step(self._begins)
        if step != expected:
            raise ConfigError(
                f"round {self._round.index} starts from step {expected}, but the Trainer from step {step}; call "
                "trainer.train(resume_from_checkpoint=callback.resume_from)"
            )


def save_pretrained(model: "PreTrainedModel", ticket: MaskSource, folder: str | Path, **options: Any) -> None:
    """Write a model by its `save_pretrained(folder, **options)`, and the ticket's mask and facts beside it.

    Raises `TicketError` unless every weight that the ticket prunes is zero.
    """
    bare = _bare(ticket)
    bare.verify(model)
    model.save_pretrained(folder, **options)
    bare.save(Path(folder) / TICKET)


def load_pretrained(model_class: type[Model], folder: str | Path, **options: Any) -> tuple[Model, Ticket]:
    """Return the model of a folder, by `model_class.from_pretrained(folder, **options)`, and its ticket.

    `Trainer(model, ..., callbacks=[TicketCallback(ticket)])` trains it further under its mask. Raises `TicketError` if
    the folder has no ticket, or one of another model, or weights that the ticket prunes are not zero.
    """
    ticket = load_ticket(folder)
    model = model_class.from_pretrained(folder, **options)
    ticket.verify(model)
    return model, ticket


def load_ticket(folder: str | Path) -> Ticket:
    """Return the ticket in a folder: a checkpoint of a `Trainer`, or a model's; raises `TicketError` if none is there.

    `TicketCallback(ticket)` holds it on another model, `Ticket(ticket.mask).apply_(model)` sets its pruned weights to
    zero once.
    """
    return Ticket.load(Path(folder) / TICKET)


def _bare(source: MaskSource) -> Ticket:
    """Return a ticket's mask with its facts, without rewind weights: what belongs beside trained weights."""
    if isinstance(source, str | Path):
        source = load_ticket(source) if Path(source).is_dir() else Ticket.load(source)
    return Ticket(source.mask, facts=source.facts) if isinstance(source, Ticket) else Ticket(mask_of(source))


def _record(state: TrainerState, mask: Mask) -> None:
    """Note the mask in what the Trainer writes into its checkpoints."""
    _records(state)[RECORD] = {"mask": mask.digest, "kept": mask.kept, "total": mask.total}


def _check_recorded(state: TrainerState, mask: Mask) -> None:
    """Raise `TicketError` if the Trainer resumes from a checkpoint that was trained with another mask."""
    saved = _records(state).get(RECORD)
    if saved is not None and saved["mask"] != mask.digest:
        there = f"the checkpoint of step {state.global_step} was trained with"
        way_out = "resume with the ticket beside it, or start without the checkpoint"
        if not state.global_step:
            there, way_out = "another callback of this Trainer holds", "give it one TicketCallback"
        raise TicketError(
            f"{there} another mask ({saved['kept']:,} of "
            f"{saved['total']:,} weights, {saved['mask'][:12]}) than this ticket's ({mask.kept:,} of {mask.total:,}, "
            f"{mask.digest[:12]}); {way_out}"
        )


def _records(state: TrainerState) -> dict[str, Any]:
    records: Any = state.stateful_callbacks  # declared as a list, and made into a dict
    found: dict[str, Any] = records
    return found


def _save_beside(args: TrainingArguments, state: TrainerState, ticket: Ticket) -> None:
    if not args.should_save:
        return
    folder = Path(args.output_dir or "", state.trial_name or "", f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
    if not folder.is_dir():
        raise StorageError(
            f"the Trainer has saved, but not to {folder}; the ticket cannot be put beside its checkpoint"
        )
    ticket.save(folder / TICKET)


def _log_density(state: TrainerState, logs: dict[str, float], mask: Mask) -> None:
    """Add the density to what the callbacks after this one see, and to the Trainer's own history."""
    logs[DENSITY] = mask.density
    if state.log_history:
        state.log_history[-1][DENSITY] = mask.density


def _is_measured(name: str) -> bool:
    return name not in NOT_MEASURED and not name.endswith(TIMES) and "_mem_" not in name


def _check_schedule(scheduler: Any, steps: int) -> None:
    """Raise `ConfigError` for a schedule that an earlier round has brought to its end, at a rate of zero."""
    if getattr(scheduler, "last_epoch", 0) >= steps and not any(scheduler.get_last_lr()):
        raise ConfigError(
            "the learning rate schedule goes on from the round before, which ended it at zero; use "
            "rewind='learning_rate' to keep the weights and start the schedule anew"
        )
