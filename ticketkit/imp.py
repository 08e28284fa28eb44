"""Iterative magnitude pruning with rewinding: the loop."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ticketkit.allocation import floor_counts
from ticketkit.analysis import Mode, best_record, collapsed, extreme_record
from ticketkit.enforce import enforced
from ticketkit.errors import BudgetError, CollapseWarning, ConfigError, NoEffectWarning, StorageError
from ticketkit.ledger import Ledger, RoundRecord
from ticketkit.mask import Mask
from ticketkit.plugins import Plugins
from ticketkit.pruning import Pruner
from ticketkit.rewind import CONTRACT, Snapshot
from ticketkit.round import Round
from ticketkit.schedule import Target, plan
from ticketkit.scope import Scope
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

    `rate`, `rounds` and `density` (of the scope, at the end): any two, or one with the default rate of 0.2.
    `criterion`, `schedule`, `allocation`: a registered name, a mapping `{"name": ..., option: ...}`, or a callable.
    `scope`: a `Scope`, or a mapping with `include` and `exclude` patterns. `floor`: the density that every parameter
    keeps at least. `rewind`: "init". `seed`: for criteria that draw random numbers. `run_dir`: a directory where every
    round is committed; a run that was interrupted goes on there, with the round it was in, to the same bits.

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
        allocation: Named = "global",
        schedule: Named = "geometric",
        rewind: str = "init",
        scope: Scope | Mapping[str, Any] | None = None,
        floor: float | None = None,
        run_dir: str | Path | None = None,
        seed: int = 0,
        plugins: Plugins | None = None,
    ):
        if rewind != "init":
            raise ConfigError(f"unknown rewind {rewind!r}; there is: 'init' (to the state before the first round)")
        self.model = model
        self.scope = scope if isinstance(scope, Scope) else Scope.of(model, **(scope or {}))
        self.target = Target.of(rate=rate, rounds=rounds, density=density)
        self.floor = floor
        self.seed = seed
        self.rewind = rewind
        self._plugins = plugins or Plugins.discover()
        floors = floor_counts(self.scope.shapes, floor)
        self._pruner = Pruner(
            criterion=self._plugins.choose("criterion", criterion),
            allocation=self._plugins.choose("allocation", allocation),
            floors=floors,
            seed=seed,
        )
        self._schedule = self._plugins.choose("schedule", schedule)
        self.plan = plan(self._schedule.call, self.scope.total, self.target)
        _warn_if_idle(self.plan)
        if sum(floors.values()) > self.plan[-1]:
            raise BudgetError(
                f"the floor of {floor} keeps at least {sum(floors.values())} of {self.scope.total} weights, but the "
                f"plan ends at {self.plan[-1]}; lower the floor or prune fewer rounds"
            )
        self._ledger = Ledger(Path(run_dir)) if run_dir is not None else None
        self._snapshot: Snapshot | None = None
        self._training: dict[nn.Module, bool] = {}
        self._masks: list[Mask] = [self.scope.ones()]
        self._records: list[RoundRecord] = []

    def __iter__(self) -> Iterator[Round]:
        with self._opened():
            self._plugins.emit("run_start", plan=self.plan, finished=len(self._records))
            while (index := len(self._records)) < len(self.plan):
                self._rewind()
                mask = self._masks[index]
                started = time.monotonic()
                with enforced(self.model, mask) as enforcement:
                    current = Round(index, mask, self.model, enforcement)
                    self._plugins.emit("round_start", round=current)
                    yield current
                    enforcement.check_trained()
                self._finish(current, time.monotonic() - started)
            self._plugins.emit("run_end", records=tuple(self._records))

    def run(
        self,
        train: Callable[..., object],
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
        *,
        optimizer_factory: Callable[[nn.Module], Optimizer] | None = None,
    ) -> tuple[Ticket, ...]:
        """Run all rounds with callables and return their tickets, the dense one first.

        `train(model)`, or `train(model, optimizer)` with a fresh optimizer each round when there is a factory;
        `evaluate(model)` returns the metrics to log.
        """
        for current in self:
            if optimizer_factory is None:
                train(self.model)
            else:
                optimizer = optimizer_factory(self.model)
                current.check_optimizer(optimizer)
                train(self.model, optimizer)
            if evaluate is not None:
                current.log(**evaluate(self.model))
        return self.tickets

    @property
    def records(self) -> tuple[RoundRecord, ...]:
        """The records of the rounds finished so far."""
        return tuple(self._records)

    @property
    def tickets(self) -> tuple[Ticket, ...]:
        """The tickets of the rounds finished so far: mask, rewind weights, metrics; the first is the dense network."""
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
            raise ConfigError(f"no pruned round has logged {metric!r}; finish a round after the dense one")
        return self._ticket(chosen)

    def extreme(self, metric: str, mode: Mode = "min", *, tolerance: float = 0.0) -> Ticket | None:
        """Return the sparsest ticket as good as the dense network within `tolerance`, or None if there is none."""
        chosen = extreme_record(self._records, metric, mode, tolerance)
        return None if chosen is None else self._ticket(chosen)

    @contextmanager
    def _opened(self) -> Iterator[None]:
        """Take the run directory, if there is one, with all that earlier processes finished in it."""
        with self._ledger.locked() if self._ledger else nullcontext():
            if self._ledger:
                self._ledger.identify(self._identity())
                self._snapshot = self._snapshot or self._ledger.snapshot()
                self._read_rounds(self._ledger)
            yield

    def _read_rounds(self, ledger: Ledger) -> None:
        """Catch up with the rounds in the directory: their masks, and the mask that follows from the last."""
        fresh = ledger.records()[len(self._records) :]
        for record in fresh:
            self._masks[record.index :] = [ledger.ticket(record).mask]
        self._records += fresh
        if fresh and len(self._records) < len(self.plan):
            self._masks.append(self._next_mask(ledger.trained(fresh[-1]).parameters()))

    def _rewind(self) -> None:
        """Put the model back to the state before the first round, which is captured when there is none yet.

        That includes every module's training flag: an evaluation that left the model in eval mode must not switch
        dropout off in the next round.
        """
        self._training = self._training or {module: module.training for module in self.model.modules()}
        for module, training in self._training.items():
            module.training = training
        if self._snapshot is not None:
            self._snapshot.restore(self.model)
            return
        self._snapshot = Snapshot.capture(self.model)
        if self._ledger:
            self._ledger.keep_snapshot(self._snapshot)

    def _finish(self, current: Round, seconds: float) -> None:
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
        )
        if self._ledger:
            bare = Ticket(mask, facts=self._facts(record))
            record = self._ledger.commit(bare, Snapshot.capture(self.model), record)
        if current.index + 1 < len(self.plan):
            self._masks.append(self._next_mask(self.scope.tensors(self.model)))
        self._records.append(record)
        self._plugins.emit("round_end", record=record)

    def _next_mask(self, trained: Mapping[str, torch.Tensor]) -> Mask:
        """Return the mask that follows from the trained weights of the last round; warn if it empties a layer."""
        index = len(self._masks)
        mask = self._pruner.next_mask(
            self._masks[-1], self.plan[index], weights=trained, initial=self._start.parameters(), index=index
        )
        _warn_if_collapsed(mask, index)
        return mask

    @property
    def _start(self) -> Snapshot:
        """The state before the first round; there is one whenever a round has begun."""
        if self._snapshot is None:
            raise StorageError("rounds without the snapshot they are rewound to: init.safetensors has vanished")
        return self._snapshot

    def _ticket(self, record: RoundRecord) -> Ticket:
        return Ticket(self._masks[record.index], self._start.tensors, self._facts(record))

    def _facts(self, record: RoundRecord) -> TicketFacts:
        return TicketFacts(
            round=record.index,
            seed=self.seed,
            include=self.scope.include,
            exclude=self.scope.exclude,
            model_total=self.scope.model_total,
            criterion=self._pruner.criterion.provenance,
            schedule=self._schedule.provenance,
            allocation=self._pruner.allocation.provenance,
            floor=self.floor,
            rewind=self.rewind,
            rewound=CONTRACT,
            metrics=record.metrics,
            parent=self._masks[record.index - 1].digest if record.index else None,
        )

    def _identity(self) -> dict[str, Any]:
        """Return what makes this run the run it is; two processes may share a directory only if they agree on it."""
        return {
            "parameters": [[name, list(shape)] for name, shape in self.scope.shapes.items()],
            "plan": list(self.plan),
            "criterion": self._pruner.criterion.provenance.model_dump(),
            "allocation": self._pruner.allocation.provenance.model_dump(),
            "floor": self.floor,
            "rewind": self.rewind,
            "seed": self.seed,
        }


def _warn_if_idle(counts: Sequence[int]) -> None:
    if idle := [index for index, (before, after) in enumerate(pairwise(counts), start=1) if before == after]:
        warnings.warn(
            f"rounds {idle} prune nothing: so few weights are in scope that the plan stands still at {counts}; "
            "choose fewer rounds or a higher rate",
            NoEffectWarning,
            stacklevel=3,
        )


def _warn_if_collapsed(mask: Mask, index: int) -> None:
    if thin := collapsed(mask.densities):
        listed = ", ".join(f"{name} ({density:.2%} left)" for name, density in thin.items())
        warnings.warn(
            f"round {index} leaves almost nothing of {listed}; set a floor such as 0.01, or choose a criterion that "
            "compares layers fairly, such as 'magnitude_over_init'",
            CollapseWarning,
            stacklevel=2,
        )
