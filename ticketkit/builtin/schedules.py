"""Built-in schedules: how many weights stay after each round.

Every count is the whole number nearest to an ideal that is computed from the first total, so nothing drifts, and the
last is exactly the target. Ideals are exact or, where they are irrational, right to more than 50 digits.
"""

from collections.abc import Callable, Iterator
from decimal import Context, Decimal
from fractions import Fraction
from itertools import islice, pairwise
from typing import Annotated

from pydantic import Field, model_validator

from ticketkit.errors import ConfigError
from ticketkit.options import Options
from ticketkit.schedule import MOST_ROUNDS, Target, share

BITS = 192  # of fixed-point fractions: enough for 10^5 rounds of 10^12 weights to be certain of every count
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534")
RATIONAL_COSINES = {Fraction(0): Fraction(1), Fraction(1, 3): Fraction(1, 2), Fraction(1, 2): Fraction(0)}

Count = Annotated[int, Field(strict=True, ge=1)]
Share = Annotated[float, Field(strict=True, gt=0, lt=1)]


class ConstantCountOptions(Options):
    """Options of `constant_count`: how many weights go in each round."""

    count: Count


class ExplicitOptions(Options):
    """Options of `explicit`: what stays after each pruning, as strictly falling `densities` or as `counts`."""

    densities: tuple[Share, ...] | None = Field(default=None, min_length=1)
    """Shares of the weights that the run starts from: 0.8 keeps 80 % of them."""
    counts: tuple[Count, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _one_falling_list(self) -> "ExplicitOptions":
        if (self.densities is None) == (self.counts is None):
            raise ValueError("give densities (shares kept after each pruning) or counts (weights kept), exactly one")
        for earlier, later in pairwise(self.densities or self.counts or ()):
            if later >= earlier:
                raise ValueError(f"what stays must fall with each pruning, but {later} follows {earlier}")
        return self


def geometric(total: int, target: Target | None) -> tuple[int, ...]:
    """Return counts that fall by the same factor each round: N, N·q, N·q², … (Audio Lottery, Algorithm 1, q = 0.8).

    With rounds and a density, q is the root density^(1/rounds).
    """
    target = Target.required(target)
    ideals = _shrinking(total, _factor(target))
    counts = [
        whole if whole is not None else round(_power(target, index) * total)
        for index, whole in enumerate(islice(ideals, target.rounds))
    ]
    return (*counts, target.end(total))


def one_shot(total: int, target: Target | None) -> tuple[int, ...]:
    """Return two counts, the dense one and the end: all is pruned at once, whatever the number of rounds."""
    target = Target.required(target)
    return (total, target.end(total)) if target.rounds else (total,)


def linear(total: int, target: Target | None) -> tuple[int, ...]:
    """Return counts that fall by the same number of weights each round, on a straight line to the end."""
    return _along(total, target, lambda passed: 1 - passed)


def cubic(total: int, target: Target | None) -> tuple[int, ...]:
    """Return counts that fall fast first and slowly in the end: automated gradual pruning.

    The sparsity after round t of n is s_t = s_f + (s_i - s_f)(1 - t/n)³ with s_i = 0 (Zhu & Gupta 2017, equation 1), so
    the density is d + (1 - d)(1 - t/n)³.
    """
    return _along(total, target, lambda passed: (1 - passed) ** 3)


def cosine(total: int, target: Target | None) -> tuple[int, ...]:
    """Return counts that fall slowly at both ends: cosine annealing (Loshchilov & Hutter 2017, equation 5).

    The density after round t of n is d + (1 - d)(1 + cos(πt/n))/2.
    """
    return _along(total, target, lambda passed: (1 + _cos_pi(passed)) / 2)


def constant_count(total: int, target: Target | None, *, options: ConstantCountOptions) -> tuple[int, ...]:
    """Return counts that fall by `count` weights each round, as often as the target says.

    With a density it goes on until that is reached, and the last step is as short as it must be; without, it takes as
    many rounds as were asked for. Raises `ConfigError` when the target settles both and they do not agree.
    """
    target, step = Target.required(target), options.count
    if not target.settles_end:
        if step * target.rounds >= total:
            raise ConfigError(
                f"constant_count takes {step} weights in each of {target.rounds} rounds, but there are only {total}; "
                f"at most {(total - 1) // step} rounds leave any"
            )
        return tuple(total - step * index for index in range(target.rounds + 1))
    end = target.end(total)
    if (total - end) // step > MOST_ROUNDS:
        raise ConfigError(
            f"constant_count of {step} takes {(total - end) // step} rounds from {total} to {end} weights"
        )
    counts = (*range(total, end, -step), end)
    _check_agreement("constant_count", counts, target)
    return counts


def explicit(total: int, target: Target | None, *, options: ExplicitOptions) -> tuple[int, ...]:
    """Return the counts that the options list, after the dense one; it needs no target.

    Raises `ConfigError` when a target is given too and says something else, or when there are fewer weights than that.
    """
    if options.densities is not None:
        listed = [round(share("density", density) * total) for density in options.densities]
    else:
        listed = list(options.counts or ())
    if listed[0] > total:
        raise ConfigError(f"explicit keeps {listed[0]} weights after the first pruning, but there are only {total}")
    counts = (total, *listed)
    if target is not None:
        _check_agreement("explicit", counts, target)
    return counts


def _check_agreement(schedule: str, counts: tuple[int, ...], target: Target) -> None:
    """Raise `ConfigError` saying on what a schedule and what was asked for differ."""
    differences = []
    if target.settles_rounds and len(counts) - 1 != target.rounds:
        differences.append(f"it prunes {len(counts) - 1} times, the target {target.rounds} times")
    if target.settles_end and counts[-1] != (end := target.end(counts[0])):
        differences.append(f"it ends at {counts[-1]} of {counts[0]} weights, the target at {end}")
    if differences:
        raise ConfigError(
            f"schedule {schedule!r} and {' and '.join(sorted(target.asked))} do not agree: {'; '.join(differences)}; "
            "leave one of the two away"
        )


def _along(total: int, target: Target | None, to_go: Callable[[Fraction], Fraction]) -> tuple[int, ...]:
    """Return the counts N · (d + (1 - d) · to_go(t/n)), where `to_go` falls from 1 to 0.

    They rise with d. So where two close numbers around d give the same count, it is that of d too: a density with many
    thousand digits (a rate's power) is used in full only if it must be.
    """
    target = Target.required(target)
    low = Fraction(target.density.numerator * 2**BITS // target.density.denominator, 2**BITS)
    high = low + Fraction(1, 2**BITS)
    if target.density.denominator < 2**BITS:
        low = high = target.density
    counts = []
    for index in range(target.rounds):
        left = to_go(Fraction(index, target.rounds))
        whole = round((low + (1 - low) * left) * total)
        if low != high and whole != round((high + (1 - high) * left) * total):
            whole = round((target.density + (1 - target.density) * left) * total)
        counts.append(whole)
    return (*counts, target.end(total))


def _shrinking(total: int, factor: Fraction) -> Iterator[int | None]:
    """Yield the whole number nearest to total · factor^t for t = 0, 1, …, or None where only exact numbers can tell.

    `factor` may be off by 2^-BITS. Interval arithmetic: the ideal lies between `low` and `high`, in units of 2^-BITS.
    """
    least = factor.numerator * 2**BITS // factor.denominator - 1
    most = least + 3
    low = high = total << BITS
    half = 1 << (BITS - 1)
    while True:
        down, up = (low + half - 1) >> BITS, (high + half) >> BITS  # halves go down here and up there
        yield down if down == up else None
        low, high = low * least >> BITS, -(-high * most >> BITS)


def _factor(target: Target) -> Fraction:
    """Return the share that stays in each round: exact for a rational rate, else to 70 digits."""
    if target.rate is not None:
        return 1 - target.rate
    if target.density.denominator == target.density.numerator:
        return Fraction(1)
    return _root(target, Fraction(1, target.rounds), digits=70)


def _power(target: Target, index: int) -> Fraction:
    """Return the density after `index` rounds: exact for a rational rate, else to 60 digits."""
    if target.rate is not None:
        return (1 - target.rate) ** index
    return _root(target, Fraction(index, target.rounds), digits=60)


def _root(target: Target, exponent: Fraction, *, digits: int) -> Fraction:
    context = Context(prec=digits)
    density = context.divide(Decimal(target.density.numerator), Decimal(target.density.denominator))
    power = context.divide(Decimal(exponent.numerator), Decimal(exponent.denominator))
    return Fraction(context.power(density, power))


def _cos_pi(turn: Fraction) -> Fraction:
    """Return cos(π · turn) for 0 ≤ turn ≤ 1: exact where it is rational (Niven 1956), else to 2^-BITS or so."""
    if turn > Fraction(1, 2):
        return -_cos_pi(1 - turn)
    if turn in RATIONAL_COSINES:
        return RATIONAL_COSINES[turn]
    guard = BITS + 32
    angle = int(PI.scaleb(80)) * 2**guard * turn.numerator // (10**80 * turn.denominator)
    square = angle * angle >> guard
    total = term = 1 << guard
    even = 0
    while abs(term) > 1:  # the Taylor series: each term is the last times -x² / ((2n - 1) · 2n)
        even += 2
        term = -(term * square >> guard) // (even * (even - 1))
        total += term
    return Fraction(total, 1 << guard)
