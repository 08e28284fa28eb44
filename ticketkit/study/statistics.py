"""Is one network as good as another? Rates over seeds and examples, with paired intervals and p-values.

Every network of a comparison is tested on the same examples, and seeds come in pairs: both of a pair began alike. Two
methods must agree, since each fails where the other holds:

- a paired bootstrap: examples and seeds are drawn with replacement, each drawing used for both networks (Bisani & Ney
  2004 for word error rates; Efron & Tibshirani 1993, chapters 13 and 16). It follows the skew of error counts, but with
  three seeds it sees too little of the spread between trainings;
- a t-test with the variance of seeds and of examples and Satterthwaite's degrees of freedom (Hillis 2007, with seeds as
  readers and examples as cases), which knows how few the seeds are.

Intervals reach from the lower of the two lower ends to the upper of the upper ones; of two p-values the larger counts.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ticketkit.errors import ConfigError, RunError

Array = npt.NDArray[np.int64]
Key = TypeVar("Key", bound=Hashable)

DRAWS_AT_ONCE = 1_000_000
"""Examples that are drawn together: memory does not grow with the number of resamples."""


@dataclass(frozen=True, eq=False)
class Sample:
    """What networks of one kind did: `errors` (seeds, examples) against `units` (examples,), such as words."""

    seeds: tuple[int, ...]
    ids: tuple[str, ...]
    errors: Array
    units: Array

    @property
    def rates(self) -> tuple[float, ...]:
        """The rate of each seed: the sum of errors over the sum of units."""
        return tuple(float(rate) for rate in self.errors.sum(1) / self.units.sum())

    @property
    def rate(self) -> float:
        """The mean rate of the seeds."""
        return float(np.mean(self.rates))

    @property
    def spread(self) -> float:
        """The standard deviation of the rate between seeds (n - 1); NaN for one seed."""
        return float(np.std(self.rates, ddof=1)) if len(self.seeds) > 1 else float("nan")

    def of_seeds(self, seeds: tuple[int, ...]) -> "Sample":
        """Return the sample of some of the seeds, in their order."""
        return Sample(seeds, self.ids, self.errors[[self.seeds.index(seed) for seed in seeds]], self.units)


@dataclass(frozen=True)
class Comparison:
    """One kind of network beside its rival, both means over the seeds they share; a positive difference is worse.

    `low` to `high` is the interval of the difference. `p_match` is small when the difference is below the margin: the
    network then matches its rival. `p_better` is small when the difference is below zero, `p_worse` when it is above
    the margin. All are one-sided and not corrected for looking more than once: see `holm`.
    """

    rate: float
    rival: float
    low: float
    high: float
    p_match: float
    p_better: float
    p_worse: float
    seeds: int

    @property
    def difference(self) -> float:
        """How much worse than the rival."""
        return self.rate - self.rival


def compare(
    sample: Sample, rival: Sample, *, margin: float, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """Return the comparison of two samples over the seeds that both have.

    Raises `RunError` if they share no seed, or were not tested on the same examples.
    """
    shared = tuple(one for one in sample.seeds if one in rival.seeds)
    if not shared:
        raise RunError(f"networks without a common seed cannot be compared: {sample.seeds} and {rival.seeds}")
    if sample.ids != rival.ids or not np.array_equal(sample.units, rival.units):
        raise RunError("networks that were tested on different examples cannot be compared")
    first, second = sample.of_seeds(shared), rival.of_seeds(shared)
    errors = first.errors - second.errors
    drawn, fitted = bootstrap(errors, first.units, resamples=resamples, seed=seed), fit(errors, first.units)
    low, high = _ends(drawn, fitted, confidence)
    return Comparison(
        rate=first.rate,
        rival=second.rate,
        low=low,
        high=high,
        p_match=max(_share(drawn >= margin), fitted.p_not_below(margin)),
        p_better=max(_share(drawn >= 0), fitted.p_not_below(0.0)),
        p_worse=max(_share(drawn <= margin), fitted.p_not_above(margin)),
        seeds=len(shared),
    )


@dataclass(frozen=True)
class Fit:
    """A mean rate over seeds with its standard error and Satterthwaite's degrees of freedom."""

    mean: float
    error: float
    freedom: float

    def ends(self, confidence: float) -> tuple[float, float]:
        """Return the two-sided interval."""
        reach = float(_t().ppf((1 + confidence) / 2, self.freedom)) * self.error if self.error else 0.0
        return self.mean - reach, self.mean + reach

    def p_not_below(self, bound: float) -> float:
        """Return the p-value of the hypothesis that the mean is at least the bound."""
        if not self.error:
            return 0.0 if self.mean < bound else 1.0
        return float(_t().cdf((self.mean - bound) / self.error, self.freedom))

    def p_not_above(self, bound: float) -> float:
        """Return the p-value of the hypothesis that the mean is at most the bound."""
        if not self.error:
            return 0.0 if self.mean > bound else 1.0
        return float(_t().sf((self.mean - bound) / self.error, self.freedom))


def fit(errors: Array, units: Array) -> Fit:
    """Return the mean over seeds of errors (seeds, examples) against units (examples,), with its uncertainty.

    The variance is s²/S of the S seeds' rates plus that of a ratio over the N examples, its degrees of freedom those of
    the two in proportion. What seeds and examples do together counts twice, so the variance is rather too large. One
    seed shows no spread between seeds: the result is about that network alone.
    """
    seeds, examples = errors.shape
    total = units.sum()
    rates = errors.sum(1) / total
    mean = float(rates.mean())
    between = float(rates.var(ddof=1)) / seeds if seeds > 1 else 0.0
    residuals = errors.mean(0) - mean * units
    within = float((residuals**2).sum()) / float(total) ** 2 * (examples / (examples - 1) if examples > 1 else 1.0)
    variance = between + within
    shares = [(between, seeds - 1), (within, examples - 1)]
    below = sum(part**2 / free for part, free in shares if free)
    return Fit(mean, sqrt(variance), variance**2 / below if below else float("inf"))


def _ends(drawn: npt.NDArray[np.float64], fitted: Fit, confidence: float) -> tuple[float, float]:
    """Return the interval that holds those of both methods."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    fitted_low, fitted_high = fitted.ends(confidence)
    return min(float(low), fitted_low), max(float(high), fitted_high)


def _t() -> Any:
    """Return Student's t distribution."""
    try:
        from scipy.stats import t
    except ImportError as error:
        raise ConfigError("studies compare by scipy's t distribution; pip install 'ticketkit[study]'") from error
    return t


def bootstrap(errors: Array, units: Array, *, resamples: int, seed: int) -> npt.NDArray[np.float64]:
    """Return the mean rate over seeds in resamples of both: errors (seeds, examples) against units (examples,).

    Resamples without a single unit are left out; raises `RunError` if the examples have none at all.
    """
    if not units.any():
        raise RunError(f"{len(units)} examples without a single unit, such as a word, have no error rate")
    random = np.random.default_rng(seed)
    seeds, examples = errors.shape
    rows = max(1, DRAWS_AT_ONCE // examples)
    parts = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    rates = np.concatenate([_resampled(errors, units, resamples=part, random=random) for part in parts])
    drawn = random.integers(0, seeds, (len(rates), seeds))
    means: npt.NDArray[np.float64] = np.take_along_axis(rates, drawn, axis=1).mean(1)
    return means


def _resampled(errors: Array, units: Array, *, resamples: int, random: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return the rate of each seed in resamples of the examples: (resamples, seeds)."""
    examples = len(units)
    places = random.integers(0, examples, (resamples, examples)) + examples * np.arange(resamples)[:, None]
    times = np.bincount(places.ravel(), minlength=resamples * examples).reshape(resamples, examples)
    sums = times @ units
    rates: npt.NDArray[np.float64] = (times @ errors.T)[sums > 0] / sums[sums > 0][:, None]
    return rates


def interval(
    sample: Sample, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return the interval of the mean rate, over seeds and examples; a rate is not below zero."""
    drawn = bootstrap(sample.errors, sample.units, resamples=resamples, seed=seed)
    low, high = _ends(drawn, fit(sample.errors, sample.units), confidence)
    return max(0.0, low), high


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Return the p-values corrected for looking at all of them: Holm 1979, which needs no independence.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    corrected: dict[Key, float] = {}
    largest = 0.0
    for rank, (key, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        corrected[key] = largest
    return corrected


def _share(hits: npt.NDArray[np.bool_]) -> float:
    """Return a bootstrap p-value, never zero: (hits + 1) / (resamples + 1)."""
    return (int(hits.sum()) + 1) / (len(hits) + 1)
