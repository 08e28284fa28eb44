"""Where a trainer is tried: the module it was made for, a mask to hold, and the state that trainings start from."""

import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from torch import nn

from ticketkit.enforce import enforced
from ticketkit.errors import NoEffectWarning
from ticketkit.imp import IMP
from ticketkit.mask import Mask
from ticketkit.plugins import Plugins
from ticketkit.rng import seeded
from ticketkit.roles import Progress
from ticketkit.scope import Scope
from ticketkit.snapshot import Snapshot
from ticketkit.testing.subject import Subject, listed

DENSITY = 0.7  # of the mask that trainings are held to

Making = Callable[[], tuple[nn.Module, Any]]
"""Makes a module and its trainer, the same every time."""


@dataclass(frozen=True, eq=False)
class Training:
    """What one training did: its metrics, what it reported, its optimizer steps, its weights, what it broke."""

    where: str
    metrics: Mapping[str, float]
    reports: list[Any]
    steps: int
    weights: Mapping[str, torch.Tensor]
    faults: list[str]


class _KilledError(BaseException):
    """Stands for the end of a process; no `except Exception` stops it."""


@dataclass
class _Reports:
    """Hears of every epoch, and kills the training at a report with this number, counted from 1."""

    last: int | None

    def __post_init__(self) -> None:
        self.heard: list[Any] = []

    def __call__(self, progress: Progress) -> None:
        self.heard.append(progress)
        if len(self.heard) == self.last:
            raise _KilledError


@dataclass(frozen=True, eq=False)
class Bench:
    """A trainer under test, as an experiment has it; `make` makes another one like it."""

    subject: Subject
    make: Making
    module: nn.Module
    trainer: Any
    scope: Scope
    seed: int
    mask: Mask
    start: Snapshot
    flags: Mapping[nn.Module, bool]

    @classmethod
    def of(cls, subject: Subject, make: Making, scope: Mapping[str, Any], seed: int) -> Self:
        """Return the bench of a trainer and its module, with a random mask."""
        module, trainer = make()
        resolved = Scope.of(module, **scope)
        draw = torch.Generator().manual_seed(seed)
        kept = {name: torch.rand(shape, generator=draw) < DENSITY for name, shape in resolved.shapes.items()}
        mask, flags = Mask(kept, aliases=resolved.aliases), {part: part.training for part in module.modules()}
        return cls(subject, make, module, trainer, resolved, seed, mask, Snapshot.capture(module), flags)

    def trained(self, where: str) -> Training:
        """Train once from the start, under the mask, from the same seed of the global generators."""
        self._rewind()
        reports: list[Any] = []
        names, keys = dict(self.module.named_parameters(remove_duplicate=False)), list(self.module.state_dict())
        with warnings.catch_warnings(), seeded(self.seed), enforced(self.module, self.mask) as enforcement:
            warnings.simplefilter("ignore", NoEffectWarning)  # that pruned weights came back, which is told here
            law = "train from any weights of the module it was made for"
            metrics = self.subject.insist(law, where, self.trainer.train, reports.append)
            now = dict(self.module.named_parameters(remove_duplicate=False))
            faults = [f"parameter {name!r} is another object" for name in names if now.get(name) is not names[name]]
            if other := sorted(set(self.module.state_dict()) ^ set(keys)):
                faults.append(f"state_dict has other keys: {listed(other)} came or went")
            faults += [f"pruned weights of {name!r} came back" for name in self._revived()] if not faults else []
        weights = {key: tensor.detach().clone() for key, tensor in self.module.state_dict().items()}
        numbers = self._numbers(metrics, f"train(), {where}")
        return Training(where, numbers, reports, enforcement.steps, weights, faults)

    def resumed(self, reports: int) -> Training:
        """Train a round that is killed at its last report; let another process, as it were, go on with it."""
        where = f"a round that is killed at report {reports} of its epochs, and goes on with another trainer"
        with TemporaryDirectory() as folder:
            self._rewind()
            try:
                self._round(where, self.module, self.trainer, Path(folder), _Reports(reports))
            except _KilledError:
                module, trainer = self.make()
                return self._round(where, module, trainer, Path(folder), _Reports(None))
        law = f"report as many epochs when it trains a round as in train(), which are {reports}"
        raise self.subject.broken(law, "train_round()", "fewer")

    def _round(self, where: str, module: nn.Module, trainer: Any, folder: Path, reports: "_Reports") -> Training:
        """Let a trainer train the dense round of a run under the mask."""
        imp = IMP(module, rate=0.2, rounds=0, scope=self.scope, mask=self.mask, run_dir=folder, plugins=Plugins())
        law, metrics = "train a round, or go on with it", None
        with seeded(self.seed), closing(iter(imp)) as rounds:  # type: ignore[type-var]
            for current in rounds:
                metrics = self.subject.insist(law, where, trainer.train_round, current, reports)
        weights = {key: tensor.detach().clone() for key, tensor in module.state_dict().items()}
        return Training(where, self._numbers(metrics, where), reports.heard, 0, weights, [])

    def evaluated(self, split: str, where: str) -> dict[str, float]:
        """Return the metrics of a split."""
        law, where = f"evaluate its module on {split}", f"evaluate({split!r}), {where}"
        return self._numbers(self.subject.insist(law, where, self.trainer.evaluate, split), where)

    def _numbers(self, metrics: Any, where: str) -> dict[str, float]:
        """Return metrics, which are finite numbers by name."""
        law = "return metrics: a mapping from names to finite Python numbers (.item() of a tensor)"
        if not isinstance(metrics, Mapping) or not metrics:
            raise self.subject.broken(law, where, f"{metrics!r}")
        for name, value in metrics.items():
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not isinstance(name, str) or not number:
                raise self.subject.broken(law, where, f"{name!r}: {value!r}, a {type(value).__name__}")
        return dict(metrics)

    def _rewind(self) -> None:
        self.start.restore_tensors(self.module)
        for part, flag in self.flags.items():
            part.training = flag

    def _revived(self) -> list[str]:
        tensors = self.scope.tensors(self.module)
        return [name for name in self.mask if tensors[name][~self.mask[name]].any()]
