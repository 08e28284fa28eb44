"""What a report is made of: answers, tables, figures and maps, one chapter for each study. No formatting, no files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["yes", "no", "not decided"]


@dataclass(frozen=True)
class Answer:
    """A question of a study, what these data say to it, and the numbers that say so."""

    question: str
    verdict: Verdict
    because: str


@dataclass(frozen=True)
class Table:
    """A table of texts; `name` is that of its CSV file. `marked` are rows to stand out."""

    name: str
    title: str
    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""
    marked: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Series:
    """A line in a figure, with an interval around it where there is one."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dashed: bool = False


@dataclass(frozen=True)
class Figure:
    """Lines over a common axis; `level` draws a dotted horizontal line."""

    name: str
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_x: bool = False
    reversed_x: bool = False
    log_y: bool = False
    level: tuple[str, float] | None = None
    ticks: Sequence[tuple[float, str]] | None = None
    note: str = ""


@dataclass(frozen=True)
class HeatMap:
    """Numbers from 0 to 1 by row and column, NaN where there is none."""

    name: str
    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]
    note: str = ""


@dataclass(frozen=True)
class Chapter:
    """What one study has found."""

    kind: str
    title: str
    claim: str
    """What the paper says."""
    answers: Sequence[Answer] = ()
    parts: Sequence[Table | Figure | HeatMap] = ()
    missing: Sequence[str] = field(default_factory=tuple)
    """Runs that are not done."""
