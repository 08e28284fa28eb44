"""How the trainings of a point went: the mean over its seeds, epoch by epoch."""

from statistics import mean

from ticketkit.history import read_history
from ticketkit.study.directory import StudyDirectory
from ticketkit.study.points import Point


def mean_history(study: StudyDirectory, point: Point, metric: str) -> tuple[list[float], list[float]]:
    """Return epochs and the mean dev metric after each, over the seeds whose epochs were written down.

    Trainings that were taken from another run have their epochs there; what has none is left out.
    """
    found: dict[int, list[float]] = {}
    for place in point.places:
        for epoch in read_history(study.run(place.run)):
            if epoch.round == place.record.index and metric in epoch.metrics:
                found.setdefault(epoch.epoch, []).append(epoch.metrics[metric])
    return [float(epoch) for epoch in sorted(found)], [mean(found[epoch]) for epoch in sorted(found)]
