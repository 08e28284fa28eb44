"""Iterative magnitude pruning with rewinding: the loop."""

import inspect
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ticketkit.allocation import floor_counts
from ticketkit.analysis import Mode, best_record, extreme_record
from ticketkit.distributed import agreed, check_alike, check_same, let_go, once, present_ranks
from ticketkit.enforce import Enforcement, enforced
from ticketkit.errors import ConfigError, NoEffectWarning
from ticketkit.granularity import Layout, checked_pattern
from ticketkit.ledger import Ledger, RoundRecord
from ticketkit.mask import Mask
from ticketkit.observers import tell
from ticketkit.plugins import Plugins
from ticketkit.probe import Batches, Loss, Probe
from ticketkit.pruning import OnCollapse, Pruner
from ticketkit.rewind import Initialiser, Rewind
from ticketkit.rewinder import Rewinder
from ticketkit.round import Round, Start
from ticketkit.schedule import Target
from ticketkit.scope import Scope, check_in_memory
from ticketkit.sharding import has_shards
from ticketkit.snapshot import Snapshot
from ticketkit.ticket import Ticket, TicketFacts

Named = str | Mapping[str, Any] | Callable[..., Any]


class IMP:
    """Find lottery tickets: train, prune a share of what is left, rewind, and again (Audio Lottery, Algorithm 1).

    Iterating yields `rounds + 1` rounds, the first dense. Before each the model is rewound to what it was when the
    iteration began, and until the next round its pruned weights stay exactly zero, whatever loop trains it:

        imp = IMP(model, rate=0.2, rounds=14)
        for round in imp:
            train(model)
            round.log(wer=evaluate(model))
        ticket = imp.extreme("wer")

    How far: `rate`, `rounds` and `density` (of the scope, at the end): any two, or one with the default rate of 0.2; or
    a `schedule` that says it all. What goes: `criterion`, `granularity`, `allocation`, `schedule`, each a registered
    name, a mapping `{"name": ..., option: ...}`, or a callable; `scope`: a `Scope`, or a mapping of what `Scope.of`
    takes; `floor`: the density that every parameter keeps at least, or a mapping from patterns to densities;
    `on_collapse`: `"warn"`, `"stop"` or `"reallocate"` when a parameter would fall under 1 %. Criteria that look at
    gradients or activations need `batches()`, the same at every call, and `loss(model, batch)`.

    From where: `mask` starts the run at a mask found elsewhere. `rewind`: `"init"`, `"step:500"`, `"epoch:1"`,
    `"none"`, `"reinit"`, `"learning_rate"`, or a mapping with options (`ticketkit.rewind`); `initialise(model)` draws
    fresh weights for `"reinit"` where modules' own initialisers would not do. `seed`: of all that is drawn.

    `run_dir`: a directory where every round is committed; a run that was interrupted goes on there, with the round it
    was in, to the same bits. `lean`: hold masks in a bit a weight.

    Raises `ConfigError`, `ScopeError` or `BudgetError` at once for settings that cannot work.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        rate: float | None = None,
        rounds: int | None = None,
        density: float | None = None,
        criterion: Named = "magnitude",
        granularity: Named = "weight",
        allocation: Named = "global",
        schedule: Named = "geometric",
        rewind: str | Mapping[str, Any] | Rewind = "init",
        scope: Scope | Mapping[str, Any] | None = None,
        floor: float | Mapping[str, float] | None = None,
        on_collapse: OnCollapse = "warn",
        mask: Mask | None = None,
        batches: Batches | None = None,
        loss: Loss | None = None,
        initialise: Initialiser | None = None,
        run_dir: str | Path | None = None,
        lean: bool = False,
        seed: int = 0,
        plugins: Plugins | None = None,
    ):
        _check_kinds(scope=scope, mask=mask, seed=seed)
        self.model = model
        self.scope = scope if isinstance(scope, Scope) else Scope.of(model, **(scope or {}))
        self._is_sharded = has_shards(model)
        check_in_memory(model, self.scope.shapes)
        if batches is not None and self._is_sharded:
            raise ConfigError(
                "criteria that look at gradients or activations run the whole network in one process, and this one is "
                "distributed over ranks; choose a criterion of weights, such as 'magnitude', and give no batches="
            )
        self.floor = floor
        self.seed = seed
        self.rewind = Rewind.of(rewind)
        self._plugins = plugins or Plugins.discover()
        self._emit = partial(tell, self._plugins, model)
        start = self.scope.ones() if mask is None else self.scope.ordered(mask)
        self._granularity = self._plugins.choose("granularity", granularity)
        with self._granularity.blamed(ConfigError):
            pattern = checked_pattern(self._granularity.call(Layout.of(model, self.scope.shapes)), self.scope.shapes)
        self._pruner = Pruner(
            criterion=self._plugins.choose("criterion", criterion),
            pattern=pattern,
            granularity=self._granularity,
            allocation=self._plugins.choose("allocation", allocation),
            floors=floor_counts(pattern.shapes, floor),
            seed=seed,
            on_collapse=on_collapse,
            probe=Probe.factory(model, batches, loss, self.scope.shapes),
            emit=self._emit,
        )
        self._schedule = self._plugins.choose("schedule", schedule)
        self.plan = self._pruner.plan(self._schedule, Target.of(rate=rate, rounds=rounds, density=density), start)
        self._lean = lean
        self._ledger = Ledger(Path(run_dir)) if run_dir is not None else None
        self._rewinder = Rewinder(model, self.scope, self.rewind, seed, initialise, self._ledger)
        self._masks: dict[int, Mask] = {0: start}  # of all rounds so far; with a run directory, of the last alone
        self._records: list[RoundRecord] = []
        self._trains = False
        self._start_digest = start.digest
        self._seen: BaseException | None = None  # an error that observers know of

    def __iter__(self) -> Iterator[Round]:
        with self.watched(), self._opened():
            directory = self._ledger.directory if self._ledger else None
            self._emit("run_start", plan=self.plan, finished=len(self._records), directory=directory)
            while (index := len(self._records)) < len(self.plan):
                if index not in self._masks:
                    self._prune(index)
                start = self._rewinder.begin(index)
                started = time.monotonic()
                with enforced(self.model, self._masks[index], lean=self._lean) as enforcement:
                    current = self._round(index, start, enforcement)
                    with self._rewinder.watching(current, enforcement):
                        self._emit("round_start", round=current)
                        yield current
                        enforcement.check_trained()
                self._check_has_effect(index, enforcement)
                self._finish(current, enforcement, time.monotonic() - started)
            self._emit("run_end", records=tuple(self._records))
        let_go()

    def run(
        self,
        train: Callable[..., object],
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
        *,
        optimizer_factory: Callable[[nn.Module], Optimizer] | None = None,
    ) -> tuple[Ticket, ...]:
        """Run all rounds with callables and return their tickets, the dense one first.

        `train(model)`, or `train(model, optimizer)` with a fresh optimizer each round when there is a factory, which
        gets the state that the rewind policy says; `evaluate(model)` returns the metrics to log.
        """
        with self.watched():
            for current in self:
                if optimizer_factory is None:
                    train(self.model)
                else:
                    optimizer = optimizer_factory(self.model)
                    current.check_optimizer(optimizer)
                    current.track(optimizer=optimizer)
                    train(self.model, optimizer)
                if evaluate is not None:
                    current.log(**_metrics(evaluate(self.model)))
        return self.tickets

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Let observers see an error that ends the block, such as one in the body of a `for` loop over the rounds."""
        try:
            yield
        except Exception as error:
            if error is not self._seen:
                self._seen = error
                self._emit("run_error", error=error, index=len(self._records))
            raise

    @property
    def records(self) -> tuple[RoundRecord, ...]:
        """The records of the rounds finished so far."""
        return tuple(self._records)

    @property
    def tickets(self) -> tuple[Ticket, ...]:
        """The tickets of the rounds finished so far; the first is the dense network.

        Each holds its mask, metrics and the weights its round started from. A run that carries weights over from round
        to round (`rewind="none"`) has these only with a `run_dir`.
        """
        return tuple(self._ticket(record) for record in self._records)

    def trained(self, index: int) -> Snapshot:
        """Return the network at the end of a finished round; only a run with a `run_dir` keeps these."""
        if self._ledger is None:
            raise ConfigError("trained networks are kept only on disk; give IMP a run_dir")
        return self._ledger.trained(self._records[index])

    def best(self, metric: str, mode: Mode = "min") -> Ticket:
        """Return the pruned ticket with the best metric; of equals, the sparsest. Raises `ConfigError` without any."""
        chosen = best_record(self._records, metric, mode)
        if chosen is None:
            logged = ", ".join(sorted({name for record in self._records[1:] for name in record.metrics})) or "nothing"
            raise ConfigError(
                f"no pruned round has logged {metric!r}, they have logged {logged}; iterate over the rounds first, and "
                "log it after the dense one"
            )
        return self._ticket(chosen)

    def extreme(self, metric: str, mode: Mode = "min", *, tolerance: float = 0.0) -> Ticket | None:
        """Return the sparsest ticket as good as the dense network within `tolerance`, or None if there is none."""
        chosen = extreme_record(self._records, metric, mode, tolerance)
        return None if chosen is None else self._ticket(chosen)

    @contextmanager
    def _opened(self) -> Iterator[None]:
        """Take the run directory, if there is one, with all that earlier processes finished in it."""
        check_same(self._masks[max(self._masks)])
        settings = {**self._identity(), "a run_dir": self._ledger is not None}
        if not self._is_sharded:
            del settings["seed"]  # rank 0's scores decide
        check_alike(settings)
        with self._ledger.locked() if self._ledger else nullcontext():
            if self._ledger:
                self._ledger.identify(self._identity())
                self._rewinder.open()
                self._read_rounds(self._ledger)
            if self._records and (trained := self._rewinder.trained(len(self._records) - 1)):
                trained.restore(self.model)  # where the last round ended, as if no time had passed
            yield

    def _read_rounds(self, ledger: Ledger) -> None:
        """Catch up with the rounds in the directory."""
        fresh = ledger.records()[len(self._records) :]
        for record in fresh:
            self._masks = {record.index: ledger.ticket(record).mask}
        self._records += fresh

    def _round(self, index: int, start: Start, enforcement: Enforcement) -> Round:
        return Round(
            index,
            self._masks[index],
            self.model,
            enforcement,
            start,
            on_track=self._rewinder.track,
            on_checkpoint=self._rewinder.settle,
            save=partial(self._ledger.keep_checkpoint, index) if self._ledger else None,
        )

    def _check_has_effect(self, index: int, enforcement: Enforcement) -> None:
        """Warn of a round in which no optimizer stepped, unless there was none in the rounds before it, too."""
        if enforcement.is_idle and self._trains:
            warnings.warn(
                f"round {index} trained nothing: no optimizer took a step, as they did before it; see where its loop "
                "starts and ends (rewind='step:k' with k at its end, an epoch counter that was used before)",
                NoEffectWarning,
                stacklevel=3,  # the loop over the rounds
            )
        self._trains = self._trains or not enforcement.is_idle

    def _finish(self, current: Round, enforcement: Enforcement, seconds: float) -> None:
        """Record a round, commit it, and compute the next mask from the trained weights."""
        mask = current.mask
        record = RoundRecord(
            index=current.index,
            kept=mask.kept,
            total=mask.total,
            model_total=self.scope.model_total,
            densities=mask.densities,
            metrics=current.metrics,
            seconds=seconds,
            mask_digest=mask.digest,
            rewound=self.rewind.rewound_parts(current.tracked or ()),
        )
        trained = self._rewinder.finish(current, enforcement)
        if self._ledger and trained:
            bare = Ticket(mask, facts=self._facts(record))
            record = self._ledger.commit(bare, trained, record)
            self._emit("ticket_saved", ticket=bare, path=self._ledger.ticket_path(record))
        record = once(lambda: record)  # rank 0 has measured for all
        self._records.append(record)
        self._emit("round_end", record=record)

    def _prune(self, index: int) -> None:
        """Note the mask of round `index`, which follows from the model as the round before it has left it."""
        previous, initial = self._masks[index - 1], self._rewinder.origin.parameters()
        trained = self.scope.tensors(self.model)

        def decide() -> Mask:
            return self._pruner.next_mask(previous, self.plan[index], weights=trained, initial=initial, index=index)

        self._masks[index] = agreed(decide() if self._is_sharded else present_ranks().each(decide))
        self._emit("mask_ready", index=index, mask=self._masks[index], previous=previous)
        if self._ledger:
            del self._masks[index - 1]

    def _ticket(self, record: RoundRecord) -> Ticket:
        if self._ledger and record.index not in self._masks:
            mask = self._ledger.ticket(record).mask
        else:
            mask = self._masks[record.index]
        return Ticket(mask, self._rewinder.start_tensors(record.index), self._facts(record))

    def _facts(self, record: RoundRecord) -> TicketFacts:
        return TicketFacts(
            round=record.index,
            seed=self.seed,
            include=self.scope.include,
            exclude=self.scope.exclude,
            where=self.scope.where,
            embeddings=self.scope.embeddings,
            bare=self.scope.bare,
            model_total=self.scope.model_total,
            criterion=self._pruner.criterion.provenance,
            granularity=self._granularity.provenance,
            schedule=self._schedule.provenance,
            allocation=self._pruner.allocation.provenance,
            floor=dict(self.floor) if isinstance(self.floor, Mapping) else self.floor,
            rewind=str(self.rewind),
            rewound=record.rewound,
            metrics=record.metrics,
            parent=self._records[record.index - 1].mask_digest if record.index else None,
        )

    def _identity(self) -> dict[str, Any]:
        """Return what makes this run the run it is; two processes may share a directory only if they agree on it."""
        return {
            "parameters": [[name, list(shape)] for name, shape in self.scope.shapes.items()],
            "plan": list(self.plan),
            "criterion": self._pruner.criterion.provenance.model_dump(exclude={"distribution"}),
            "granularity": self._granularity.provenance.model_dump(exclude={"distribution"}),
            "allocation": self._pruner.allocation.provenance.model_dump(exclude={"distribution"}),
            "floor": self.floor,
            "on_collapse": self._pruner.on_collapse,
            "rewind": self.rewind.model_dump(mode="json", exclude_defaults=True),
            "start": self._start_digest,
            "seed": self.seed,
        }


def _check_kinds(*, scope: object, mask: object, seed: object) -> None:
    """Raise `ConfigError` for what a type checker would have refused."""
    known = [name for name, p in inspect.signature(Scope.of).parameters.items() if p.kind is p.KEYWORD_ONLY]
    if scope is not None and not isinstance(scope, Scope | Mapping):
        raise ConfigError(f"scope must be a Scope or a mapping such as {{'include': [...]}}, not {scope!r}")
    if isinstance(scope, Mapping) and (strange := sorted(set(scope) - set(known))):
        raise ConfigError(f"scope takes {', '.join(known)}, not {', '.join(map(repr, strange))}")
    if mask is not None and not isinstance(mask, Mask):
        raise ConfigError(f"mask must be a Mask (of a ticket: ticket.mask), not a {type(mask).__name__}")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ConfigError(f"seed must be a whole number from 0 to 2^63 - 1, not {seed!r}")


def _metrics(measured: object) -> Mapping[str, float]:
    if not isinstance(measured, Mapping):
        raise ConfigError(f"evaluate(model) must return a mapping from names to numbers, not {measured!r}")
    return measured
