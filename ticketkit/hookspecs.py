"""The hooks of ticketkit: every way in which a plugin can take part.

A plugin is a module (or an object) with functions marked `@ticketkit.hookimpl`, found through the entry-point group
`ticketkit`. Registration hooks run once per plugin when plugins are loaded and receive a `register` bound to that
plugin; event hooks run during a run, only watch, and must return None. A hook implementation may take any subset of
the arguments named here.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from ticketkit.ledger import RoundRecord
    from ticketkit.mask import Mask
    from ticketkit.round import Round
    from ticketkit.ticket import Ticket

PROJECT = "ticketkit"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Register = Callable[..., None]
"""`register(name, obj, *, options=None)`: an object with a pydantic options model is called with `options=` too.

For criteria also `needs=` (any of "initial", "gradients", "activations": IMP asks the user for batches and a loss) and
`regrows=True` (it may bring pruned weights back; without it masks only shrink).
"""


@hookspec
def ticketkit_register_criteria(register: Register) -> None:
    """Register criteria: `criterion(inputs: ScoreInputs) -> {name: scores}`; the higher score is kept.

    Example: `register("movement", movement)`.
    """


@hookspec
def ticketkit_register_schedules(register: Register) -> None:
    """Register schedules: `schedule(total, target: Target | None) -> counts`, one per round and the dense one first.

    Example: `register("geometric", geometric)`.
    """


@hookspec
def ticketkit_register_granularities(register: Register) -> None:
    """Register granularities: `granularity(layout: Layout) -> Pattern`, how weights are grouped into units.

    Example: `register("row", row)`.
    """


@hookspec
def ticketkit_register_allocators(register: Register) -> None:
    """Register allocators: `allocator(shapes, keep, *, floors, capacities) -> counts per parameter, or keep`.

    Example: `register("uniform", uniform)`.
    """


@hookspec
def ticketkit_register_backbones(register: Register) -> None:
    """Register backbones: `backbone(*, options) -> Bundle`, a freshly initialised model with all that belongs to it.

    Example: `register("cnn_lstm", cnn_lstm, options=CnnLstmOptions)`.
    """


@hookspec
def ticketkit_register_corpora(register: Register) -> None:
    """Register corpora: `corpus(*, options) -> Corpus` with train, dev and test splits.

    Example: `register("fsdd", fsdd, options=FsddOptions)`.
    """


@hookspec
def ticketkit_register_trainers(register: Register) -> None:
    """Register trainers: `trainer(bundle, corpus, *, seed, options) -> Trainer`.

    Example: `register("ctc", CtcTrainer, options=CtcOptions)`.
    """


@hookspec
def ticketkit_run_start(plan: tuple[int, ...], finished: int) -> None:
    """Watch a run begin: the planned counts, the dense round first, and how many rounds are already done."""


@hookspec
def ticketkit_round_start(round: "Round") -> None:
    """Watch a round begin: the model is rewound and its mask is held."""


@hookspec
def ticketkit_scores_ready(index: int, scores: "Mapping[str, Tensor]", mask: "Mask") -> None:
    """Watch what the criterion returned before round `index`, for the weights that `mask` keeps; do not change it."""


@hookspec
def ticketkit_mask_ready(index: int, mask: "Mask", previous: "Mask") -> None:
    """Watch the mask of round `index` be decided, beside that of the round before."""


@hookspec
def ticketkit_round_end(record: "RoundRecord") -> None:
    """Watch a round end: it is committed to the run directory, if there is one."""


@hookspec
def ticketkit_ticket_saved(ticket: "Ticket", path: "Path") -> None:
    """Watch a ticket be written: that of a round into the run directory, or a chosen one beside it."""


@hookspec
def ticketkit_run_error(error: BaseException, index: int) -> None:
    """Watch a run fail in round `index`; the error goes on to the caller.

    Seen for whatever the engine raises, and for trainings inside `IMP.run`, `with imp.watched():` or the command line;
    an exception in the body of a bare `for` loop ends the iteration without a word to the engine.
    """


@hookspec
def ticketkit_run_end(records: "tuple[RoundRecord, ...]") -> None:
    """Watch a run end, with the records of all its rounds."""
