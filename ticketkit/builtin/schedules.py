"""Built-in schedules: how many weights stay after each round."""

from decimal import Context, Decimal
from fractions import Fraction

from ticketkit.schedule import Target


def geometric(total: int, target: Target) -> tuple[int, ...]:
    """Return counts that fall by the same factor each round: N, N·q, N·q², … (Audio Lottery, Algorithm 1, q = 0.8).

    Each count is the whole number nearest to the ideal, computed from the original total, so nothing drifts; the last
    is exactly the target.
    """
    ideals = [_power(target, index) * total for index in range(target.rounds)]
    return (*(round(ideal) for ideal in ideals), round(target.density * total))


def _power(target: Target, index: int) -> Fraction:
    """Return the density after `index` rounds: exact for a rational rate, else to 60 digits."""
    if target.rate is not None:
        return (1 - target.rate) ** index
    context = Context(prec=60)
    density = context.divide(Decimal(target.density.numerator), Decimal(target.density.denominator))
    exponent = context.divide(Decimal(index), Decimal(target.rounds))
    return Fraction(context.power(density, exponent))
