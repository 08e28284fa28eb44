"""What chapters are written from: the config, the points, the rules, and what was measured of the networks' costs."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean

from ticketkit.study.config import StudyConfig
from ticketkit.study.costs import Costs
from ticketkit.study.directory import StudyDirectory
from ticketkit.study.findings import Series
from ticketkit.study.jobs import OWN, Arm
from ticketkit.study.judging import Judge
from ticketkit.study.ladder import IMP
from ticketkit.study.points import Point, Points


@dataclass(frozen=True)
class Evidence:
    """All that a chapter may use."""

    config: StudyConfig
    points: Points
    judge: Judge
    study: StudyDirectory
    costs: Mapping[str, Costs]
    """Of variants whose costs were measured."""

    def dense(self, variant: str, condition: str = OWN) -> Point | None:
        """Return the dense networks of a variant."""
        return self.points.get(Arm(variant, IMP), 0, condition)

    def selected(self, ladder: list[Point]) -> tuple[Point | None, Point | None]:
        """Return the best and the extreme ticket of a ladder, chosen on dev alone, by the mean over seeds.

        Best has the best dev metric, of equals the sparsest; extreme is the sparsest no worse than dense by more than
        the margin.
        """
        if len(ladder) < 2:
            return None, None
        sign = -1 if self.config.base.get("mode") == "max" else 1
        dev = {point.level: sign * mean(point.dev(self.judge.metric)) for point in ladder}
        tickets = ladder[1:]
        best = min(tickets, key=lambda point: (dev[point.level], point.density))
        matching = [point for point in tickets if dev[point.level] <= dev[ladder[0].level] + self.judge.margin]
        return best, min(matching, key=lambda point: point.density, default=None)

    def series(self, label: str, points: list[Point], x: list[float], *, dashed: bool = False) -> Series:
        """Return the test metric of points as a line with intervals."""
        bounds = [self.judge.interval(point.test) for point in points]
        return Series(
            label,
            x,
            [self.judge.scaled(point.test.rate) for point in points],
            [self.judge.scaled(low) for low, _ in bounds],
            [self.judge.scaled(high) for _, high in bounds],
            dashed,
        )


def percents(points: list[Point]) -> list[float]:
    """Return the density of each point in percent, as an axis takes it."""
    return [100 * point.density for point in points]
