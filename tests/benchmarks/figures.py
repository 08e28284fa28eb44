"""One measured figure: what was compared, how often, with what result, and whether the goal was met."""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

Measured = TypeVar("Measured")
CLOSE = 15  # rounds at least, where a ratio under 1.1 is claimed


@dataclass(frozen=True)
class Goal:
    """What a ratio should be; `text` says of what.

    >>> goal = Goal("<=", 1.02, "of dense")
    >>> str(goal), goal.met(1.01), goal.met(1.03), goal.met(None)
    ('<= 1.02 of dense', True, False, False)
    """

    relation: Literal["<=", ">=", "=="]
    bound: float
    text: str

    def __str__(self) -> str:
        return f"{self.relation} {self.bound:g} {self.text}"

    def met(self, ratio: float | None) -> bool:
        """Say whether a ratio is as good as the goal; one that could not be formed is not."""
        if ratio is None:
            return False
        return {"<=": ratio <= self.bound, ">=": ratio >= self.bound, "==": ratio == self.bound}[self.relation]


NO_WORSE = Goal("<=", 1.0, "of the rival")


@dataclass(frozen=True)
class Figure:
    """One line of the results: medians over the rounds, and the quartiles of the rounds' own ratios."""

    id: str
    name: str
    unit: str
    ours: float
    rival: str
    theirs: float
    ratio: float | None
    spread: tuple[float, float] | None
    rounds: int
    shape: str
    goal: Goal

    @property
    def verdict(self) -> str:
        """Whether the ratio is as good as the goal."""
        return "met" if self.goal.met(self.ratio) else "missed"

    def line(self) -> dict[str, Any]:
        """Return the figure as a JSON object."""
        return {
            "id": self.id,
            "name": self.name,
            "unit": self.unit,
            "ours": _rounded(self.ours),
            "rival": {self.rival: _rounded(self.theirs)},
            "ratio": _rounded(self.ratio),
            "spread": None if self.spread is None else [_rounded(value) for value in self.spread],
            "rounds": self.rounds,
            "shape": self.shape,
            "goal": str(self.goal),
            "verdict": self.verdict,
        }


def compared(
    label: str,
    ours: Sequence[float],
    rival: Mapping[str, Sequence[float]],
    *,
    shape: str,
    goal: Goal,
    unit: str = "s",
) -> Figure:
    """Return the figure of paired measurements: the i-th of ours and the i-th of the one rival are of one round.

    `label` begins with the id. The ratio is rival ÷ ours where the goal is a least ("times faster"), else ours ÷ rival;
    it is the median of the rounds' own ratios, so that whatever slows a whole round down drops out.

    >>> figure = compared("P0 a step", [1.0, 2.0, 9.0], {"theirs": [4.0, 4.0, 9.0]}, shape="-", goal=NO_WORSE)
    >>> figure.id, figure.ours, figure.ratio, figure.spread, figure.verdict
    ('P0', 2.0, 0.5, (0.375, 0.75), 'met')
    """
    ((name, theirs),) = rival.items()
    identity, _, title = label.partition(" ")
    upper, lower = (theirs, ours) if goal.relation == ">=" else (ours, theirs)
    pairs = list(zip(upper, lower, strict=True))
    low = middle = high = None
    if all(below > 0 for _, below in pairs):
        low, middle, high = (
            float(q) for q in np.quantile([above / below for above, below in pairs], (0.25, 0.5, 0.75))
        )
    return Figure(
        id=identity,
        name=title,
        unit=unit,
        ours=float(np.median(ours)),
        rival=name,
        theirs=float(np.median(theirs)),
        ratio=middle,
        spread=None if low is None or high is None else (low, high),
        rounds=len(pairs),
        shape=shape,
        goal=goal,
    )


def interleaved(contestants: Mapping[str, Callable[[], Measured]], rounds: int) -> dict[str, list[Measured]]:
    """Return what every contestant measured in every round; all take turns, and each round starts with another one.

    >>> log = []
    >>> _ = interleaved({name: lambda n=name: log.append(n) for name in "ab"}, rounds=2)
    >>> "".join(log)
    'abba'
    """
    results: dict[str, list[Measured]] = {name: [] for name in contestants}
    order = list(contestants)
    for turn in range(rounds):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            results[name].append(contestants[name]())
    return results


def timed(job: Callable[[], object]) -> Callable[[], float]:
    """Return a job that says how many seconds it took; what it returns is freed off the clock."""

    def measure() -> float:
        start = time.perf_counter()
        result = job()
        seconds = time.perf_counter() - start
        del result
        return seconds

    return measure


def skipped(what: str, why: object) -> None:
    """Say on stderr that a figure is left out, and why."""
    print(f"{what}: skipped, {why}", file=sys.stderr)


def markdown(figures: Sequence[Figure]) -> str:
    """Return the figures as the table of docs/performance.md, with the shapes below it."""
    rows = [
        "| figure | ours | rival | ratio | spread | rounds | goal | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for figure in figures:
        spread = "–" if figure.spread is None or figure.rounds == 1 else "–".join(f"{q:.3g}" for q in figure.spread)
        cells = (
            f"{figure.id} {figure.name}",
            _quantity(figure.ours, figure.unit),
            f"{figure.rival} {_quantity(figure.theirs, figure.unit)}",
            "–" if figure.ratio is None else f"{figure.ratio:.3g}",
            spread,
            str(figure.rounds),
            str(figure.goal),
            figure.verdict if figure.verdict == "met" else "**missed**",
        )
        rows.append("| " + " | ".join(cells) + " |")
    shapes = dict.fromkeys(f"- {figure.id} {figure.name}: {figure.shape}" for figure in figures)
    return "\n".join([*rows, "", "Shapes:", "", *shapes])


def _quantity(value: float, unit: str) -> str:
    """Return a value with its unit, bytes in megabytes.

    >>> _quantity(593733184, "bytes"), _quantity(0.38712, "s"), _quantity(15360, "weights")
    ('594 MB', '0.387 s', '15,360 weights')
    """
    if unit == "bytes":
        return f"{value / 1e6:.3g} MB"
    return f"{value:.3g} {unit}" if unit == "s" else f"{value:,.0f} {unit}"


def _rounded(value: float | None) -> float | None:
    """Return a whole number as it is, and any other with six significant digits.

    >>> _rounded(593733184.0), _rounded(0.00012345678)
    (593733184, 0.000123457)
    """
    if value is None or float(value).is_integer():
        return None if value is None else int(value)
    return round(value, 5 - math.floor(math.log10(abs(value))))
