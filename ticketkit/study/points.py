"""What a study has found, as points: networks of one arm at one level of the ladder, of all seeds, under one test."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np

from ticketkit.errors import RunError
from ticketkit.ledger import RoundRecord
from ticketkit.roles import Examination
from ticketkit.study.directory import StudyDirectory
from ticketkit.study.examinations import read_examinations
from ticketkit.study.jobs import OWN, Arm, Job
from ticketkit.study.statistics import Sample


@dataclass(frozen=True)
class Place:
    """One seed's network: a run and a round of it."""

    seed: int
    run: str
    record: RoundRecord


@dataclass(frozen=True, eq=False)
class Point:
    """The networks of an arm at a level, one of each seed, under one test condition."""

    arm: Arm
    level: int
    condition: str
    places: tuple[Place, ...]
    test: Sample

    @property
    def density(self) -> float:
        """The mean share of the scope that is left."""
        return mean(place.record.density for place in self.places)

    @property
    def left(self) -> float:
        """The mean number of parameters of the whole model that are left."""
        records = [place.record for place in self.places]
        return mean(record.model_total - record.total + record.kept for record in records)

    def dev(self, metric: str) -> tuple[float, ...]:
        """Return the dev metric of each seed."""
        return tuple(place.record.metrics[metric] for place in self.places)


@dataclass(frozen=True)
class Points:
    """All points of a study, by arm, level and condition."""

    found: Mapping[tuple[Arm, int, str], Point]

    def get(self, arm: Arm, level: int, condition: str = OWN) -> Point | None:
        """Return a point, or None where nothing has been run."""
        return self.found.get((arm, level, condition))

    def ladder(self, arm: Arm, condition: str = OWN) -> list[Point]:
        """Return an arm's points from dense to sparse."""
        chosen = [point for (one, _, test), point in self.found.items() if one == arm and test == condition]
        return sorted(chosen, key=lambda point: point.level)

    def arms(self, variant: str) -> list[Arm]:
        """Return the arms of a variant."""
        return list(dict.fromkeys(arm for arm, _, _ in self.found if arm.variant == variant))


def collect(jobs: Iterable[Job], study: StudyDirectory) -> Points:
    """Return the points of the jobs that are done."""
    places: dict[tuple[Arm, int, str], list[tuple[Place, Examination]]] = defaultdict(list)
    for job in jobs:
        if not study.is_done(job):
            continue
        records = study.ledger(job.id).records()
        for condition in job.tests:
            for index, examination in read_examinations(study.run(job.id), condition).items():
                if (level := job.level(index)) is not None:
                    place = Place(job.seed, job.id, records[index])
                    places[job.arm, level, condition].append((place, examination))
    return Points({key: _point(*key, found) for key, found in places.items()})


def _point(arm: Arm, level: int, condition: str, found: Sequence[tuple[Place, Examination]]) -> Point:
    found = sorted(found, key=lambda one: one[0].seed)
    examinations = [examination for _, examination in found]
    first = examinations[0]
    if any(one.ids != first.ids or one.units != first.units for one in examinations):
        raise RunError(f"{arm}, level {level}: its seeds were tested on different examples")
    errors = np.array([one.errors for one in examinations], dtype=np.int64)
    seeds = tuple(place.seed for place, _ in found)
    sample = Sample(seeds, first.ids, errors, np.array(first.units, dtype=np.int64))
    return Point(arm, level, condition, tuple(place for place, _ in found), sample)
