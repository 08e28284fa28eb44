"""What a study has to run: jobs, each one run in a directory of its own, and what they take from each other."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ticketkit.controls import Within
from ticketkit.errors import ConfigError
from ticketkit.study.overlay import Settings

OWN = "test"
"""The test condition of the run's own settings."""


@dataclass(frozen=True)
class Arm:
    """What is compared in a study: networks of one kind, of every seed; such as `cnn_lstm` and `imp`."""

    variant: str
    name: str

    def __str__(self) -> str:
        return f"{self.variant} {self.name}"


@dataclass(frozen=True)
class MaskOrigin:
    """A mask of another run: of the round at a level, as it is or shuffled."""

    run: str
    level: int
    shuffle: Within | None = None


@dataclass(frozen=True)
class WeightsOrigin:
    """Weights to start from: those that another run began with or ended a level in, or fresh ones of another seed."""

    run: str
    level: int
    what: Literal["initial", "trained", "fresh"]


@dataclass(frozen=True)
class Resize:
    """Make a dense network as large as another run's at a level, by the whole number at a dotted path."""

    run: str
    level: int
    path: str


@dataclass(frozen=True)
class Test:
    """A condition that trained networks are tested under: settings over those of the run, at some rounds or at all."""

    settings: Settings = field(default_factory=dict)
    rounds: frozenset[int] | None = None

    __test__ = False  # not one of pytest's


@dataclass(frozen=True)
class Job:
    """One run of a study. `levels` says which of its rounds are points of its arm, and at which level of the ladder."""

    id: str
    arm: Arm
    seed: int
    settings: Settings
    levels: Mapping[int, int] | None = None
    """Round -> level; by default every round, at its own."""
    mask: MaskOrigin | None = None
    weights: WeightsOrigin | None = None
    resize: Resize | None = None
    tests: Mapping[str, Test] = field(default_factory=lambda: {OWN: Test()})

    @property
    def needs(self) -> frozenset[str]:
        """The runs that must be finished before."""
        return frozenset(origin.run for origin in (self.mask, self.weights, self.resize) if origin)

    def level(self, index: int) -> int | None:
        """Return the level that a round is a point at, or None if it is no point of the arm."""
        return index if self.levels is None else self.levels.get(index)


def united(jobs: Iterable[Job]) -> list[Job]:
    """Return the jobs, those that several studies ask for once, with the tests of all of them.

    Raises `ConfigError` if one id stands for different runs, or different runs for one point of an arm.
    """
    found: dict[str, Job] = {}
    for job in jobs:
        other = found.setdefault(job.id, job)
        if replace(job, tests=other.tests, levels=other.levels) != other:
            raise ConfigError(f"two studies mean different runs by {job.id!r}; give one of their variants another name")
        found[job.id] = replace(other, tests=_both(other.tests, job.tests))
    _check_points(found.values())
    return list(found.values())


def _check_points(jobs: Iterable[Job]) -> None:
    """Raise `ConfigError` if two runs are the network of one arm, seed and level."""
    known: dict[tuple[Arm, int], list[Job]] = {}
    for job in jobs:
        others = known.setdefault((job.arm, job.seed), [])
        for other in others:
            if job.levels is None or other.levels is None or {*job.levels.values()} & {*other.levels.values()}:
                raise ConfigError(f"{other.id!r} and {job.id!r} would both be {job.arm}; give one of them another name")
        others.append(job)


def _both(first: Mapping[str, Test], second: Mapping[str, Test]) -> dict[str, Test]:
    tests = dict(first)
    for name, test in second.items():
        if (there := tests.get(name)) is not None:
            if there.settings != test.settings:
                raise ConfigError(f"two studies mean different tests by {name!r}; give one of them another name")
            every = there.rounds is None or test.rounds is None
            test = replace(test, rounds=None if every else (there.rounds or frozenset()) | (test.rounds or frozenset()))
        tests[name] = test
    return tests


def described(settings: Settings, key: str) -> str:
    """Return the name of what settings choose for a role."""
    chosen: Any = settings.get(key)
    return str(chosen["name"]) if isinstance(chosen, Mapping) else str(chosen)
