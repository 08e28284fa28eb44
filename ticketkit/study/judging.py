"""How numbers of a study are written, and how comparisons are judged: the same in every chapter."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from math import isnan
from typing import TypeVar

from ticketkit.study.findings import Verdict
from ticketkit.study.points import Point
from ticketkit.study.statistics import Comparison, Sample, compare, holm, interval

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Judge:
    """The rules of a study: its metric, margin, confidence and resamples."""

    metric: str
    percent: bool
    margin: float
    confidence: float
    resamples: int

    @property
    def alpha(self) -> float:
        """The p-value below which something counts as shown."""
        return 1 - self.confidence

    @property
    def unit(self) -> str:
        """The metric with its unit."""
        return f"{self.metric} %" if self.percent else self.metric

    def number(self, value: float) -> str:
        """Return a rate as text."""
        return "–" if isnan(value) else f"{100 * value:.2f}" if self.percent else f"{value:.4g}"

    def signed(self, value: float) -> str:
        """Return a difference of rates as text."""
        return f"{100 * value:+.2f}" if self.percent else f"{value:+.4g}"

    def mean(self, sample: Sample) -> str:
        """Return a mean over seeds and, where there are several, its spread between them."""
        spread = "" if len(sample.seeds) < 2 else f" ± {self.number(sample.spread)}"
        return f"{self.number(sample.rate)}{spread}"

    def scaled(self, value: float) -> float:
        """Return a rate in the unit that it is shown in."""
        return 100 * value if self.percent else value

    def compare(self, sample: Sample, rival: Sample) -> Comparison:
        """Return the comparison by the study's rules."""
        return compare(sample, rival, margin=self.margin, confidence=self.confidence, resamples=self.resamples)

    def interval(self, sample: Sample) -> tuple[float, float]:
        """Return the interval of a mean rate by the study's rules."""
        return interval(sample, confidence=self.confidence, resamples=self.resamples)

    def difference(self, comparison: Comparison) -> str:
        """Return a difference with its interval."""
        return f"{self.signed(comparison.difference)} [{self.signed(comparison.low)}, {self.signed(comparison.high)}]"

    def family(self, pairs: Mapping[Key, tuple[Sample, Sample]]) -> dict[Key, "Judgement"]:
        """Return what each pair of a network and its rival shows; pairs without a common seed, as yet, are left out."""
        shared = {key: pair for key, pair in pairs.items() if {*pair[0].seeds} & {*pair[1].seeds}}
        return self.judged({key: self.compare(*pair) for key, pair in shared.items()})

    def judged(self, comparisons: Mapping[Key, Comparison]) -> dict[Key, "Judgement"]:
        """Return what each comparison of a family shows, p-values corrected for all of them."""
        match = holm({key: one.p_match for key, one in comparisons.items()})
        better = holm({key: one.p_better for key, one in comparisons.items()})
        worse = holm({key: one.p_worse for key, one in comparisons.items()})
        return {
            key: Judgement(one, match[key], better[key], worse[key], self.alpha) for key, one in comparisons.items()
        }


@dataclass(frozen=True)
class Judgement:
    """A comparison with its p-values corrected for the family that it is one of."""

    comparison: Comparison
    p_match: float
    p_better: float
    p_worse: float
    alpha: float

    @property
    def word(self) -> str:
        """What is shown: `better`, `matches`, `worse` (by more than the margin), or `undecided`."""
        if self.p_better < self.alpha:
            return "better"
        if self.p_match < self.alpha:
            return "matches"
        return "worse" if self.p_worse < self.alpha else "undecided"

    @property
    def as_good(self) -> Verdict:
        """Whether the network is as good as its rival."""
        return "yes" if self.word in ("better", "matches") else "no" if self.word == "worse" else "not decided"

    @property
    def superior(self) -> Verdict:
        """Whether the network is better than its rival."""
        return "yes" if self.word == "better" else "no" if self.word == "worse" else "not decided"


def probability(p: float) -> str:
    """Return a p-value as text.

    >>> probability(0.0123), probability(0.00004)
    ('0.012', '<0.001')
    """
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def share(value: float) -> str:
    """Return a share of 1 in percent.

    >>> share(0.4096), share(0.8**20)
    ('41.0 %', '1.2 %')
    """
    return f"{100 * value:.1f} %"


def count(point: Point) -> str:
    """Return the parameters that are left in the whole model."""
    return f"{point.left:,.0f}"


def together(verdicts: list[Verdict]) -> Verdict:
    """Return the verdict on several questions of a kind: yes or no only if all agree."""
    return verdicts[0] if verdicts and len(set(verdicts)) == 1 else "not decided"
