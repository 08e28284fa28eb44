"""Masks beside masks: what two keep in common and how likely that is by chance, nesting, and signs of kept weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate, pairwise
from math import comb, erfc, lgamma, log, nan, sqrt
from typing import Literal

import torch

from ticketkit.errors import MaskError, RunError
from ticketkit.mask import Mask, shape_differences

EXACT_BITS = 1 << 22  # largest convolution, in bits, that is computed exactly; about half a second of integer products


@dataclass(frozen=True)
class Overlap:
    """How many weights two masks keep in common, against chance; all numbers count weights.

    Chance draws both masks anew, uniformly among those with the same count in every parameter: what is shared follows a
    hypergeometric distribution per parameter, independent of the others. `p_at_least` is the probability of sharing at
    least `both` (one-sided: small when the masks agree), `p_at_most` that of sharing at most `both` (small when they
    avoid each other). `method` says how both were computed: "exact" by integer arithmetic, "normal" by the normal
    approximation with continuity correction, rough where the variance is below about 10 and in far tails.
    """

    kept_a: int
    kept_b: int
    both: int
    total: int
    expected: float
    variance: float
    p_at_least: float
    p_at_most: float
    method: Literal["exact", "normal"]
    parameters: Mapping[str, "Overlap"] = field(default_factory=dict)  # of each parameter; empty for a parameter's own

    @property
    def jaccard(self) -> float:
        """Weights kept by both over weights kept by either; 1.0 if neither keeps any."""
        either = self.kept_a + self.kept_b - self.both
        return self.both / either if either else 1.0

    @property
    def coefficient(self) -> float:
        """Weights kept by both over those of the sparser mask, which is 1.0 for nested masks and for an empty one."""
        smaller = min(self.kept_a, self.kept_b)
        return self.both / smaller if smaller else 1.0

    @property
    def z(self) -> float:
        """Standard deviations above what chance expects; 0.0 where the counts leave nothing to chance."""
        return (self.both - self.expected) / sqrt(self.variance) if self.variance else 0.0


def overlap(a: Mask, b: Mask) -> Overlap:
    """Return what two masks share, in all and per parameter, and its probability under chance.

    A parameter of n weights of which the masks keep k_a and k_b shares k_a·k_b / n by chance, with the variance
    k_a·k_b·(n − k_a)·(n − k_b) / (n²·(n − 1)). Jaccard's index alone rises with density: two random masks that keep
    half already reach 1/3. Raises `MaskError` when the masks cover different parameters.

    >>> shared = overlap(Mask({"w": torch.tensor([1, 1, 0, 0]) > 0}), Mask({"w": torch.tensor([1, 1, 0, 0]) > 0}))
    >>> shared.both, shared.expected, shared.p_at_least == 1 / 6, shared.method
    (2, 1.0, True, 'exact')
    """
    shared, sizes = (a & b).counts, a.sizes
    draws = {name: _Draw(sizes[name], a.counts[name], b.counts[name]) for name in a}
    parameters = {name: _against_chance(shared[name], [draw]) for name, draw in draws.items()}
    return _against_chance(sum(shared.values()), list(draws.values()), parameters)


@dataclass(frozen=True)
class Nesting:
    """One mask after another: how many weights the later one dropped, and how many came back, per parameter."""

    dropped: Mapping[str, int]
    returned: Mapping[str, int]

    @property
    def nested(self) -> bool:
        """Whether the later mask keeps only what the earlier one kept."""
        return not any(self.returned.values())


def nestedness(masks: Sequence[Mask]) -> list[Nesting]:
    """Return for each consecutive pair of masks what was dropped and what came back; no pairs, no entries.

    >>> first, second = Mask({"w": torch.tensor([True, False])}), Mask({"w": torch.tensor([False, True])})
    >>> nestedness([first, second])[0].returned, nestedness([first, first])[0].nested
    ({'w': 1}, True)
    """
    return [Nesting((before - after).counts, (after - before).counts) for before, after in pairwise(masks)]


@dataclass(frozen=True)
class SignAgreement:
    """Signs of kept weights in two networks; the five counts add up to the kept weights. ±0.0 has no sign."""

    same: int
    opposite: int
    zero_weight: int  # zero in the first network only
    zero_reference: int  # zero in the reference only
    zero_both: int
    parameters: Mapping[str, "SignAgreement"] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Share with the same sign among weights that have a sign in both networks; NaN if there are none."""
        signed = self.same + self.opposite
        return self.same / signed if signed else nan


def sign_agreement(
    mask: Mask, weights: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor]
) -> SignAgreement:
    """Return how far the signs of kept weights agree between two networks, in all and per parameter.

    Trained against initial weights this shows whether training kept the signs a ticket started with (Zhou et al. 2019,
    "Deconstructing Lottery Tickets"). Both mappings go from name to tensor; names that the mask lacks are ignored.
    Raises `MaskError` when a masked parameter is missing or has another shape, `RunError` when a kept weight is NaN.

    >>> mask = Mask({"w": torch.tensor([True, True, True, False])})
    >>> signs = sign_agreement(mask, {"w": torch.tensor([1.0, -2, 0, 5])}, {"w": torch.tensor([0.1, 3, 1, -5])})
    >>> signs.same, signs.opposite, signs.zero_weight, signs.share
    (1, 1, 1, 0.5)
    """
    for what, tensors in (("weights", weights), ("reference", reference)):
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name in mask}
        if problems := shape_differences(mask.shapes, found):
            raise MaskError(f"the mask does not fit the {what}:\n  " + "\n  ".join(problems))
    parameters = {}
    for name, kept in mask.items():
        first, second = _signs(name, weights[name], kept), _signs(name, reference[name], kept)
        both_signed = (first != 0) & (second != 0)
        parameters[name] = SignAgreement(
            same=int(((first == second) & both_signed).sum()),
            opposite=int(((first != second) & both_signed).sum()),
            zero_weight=int(((first == 0) & (second != 0)).sum()),
            zero_reference=int(((first != 0) & (second == 0)).sum()),
            zero_both=int(((first == 0) & (second == 0)).sum()),
        )
    return SignAgreement(
        same=sum(p.same for p in parameters.values()),
        opposite=sum(p.opposite for p in parameters.values()),
        zero_weight=sum(p.zero_weight for p in parameters.values()),
        zero_reference=sum(p.zero_reference for p in parameters.values()),
        zero_both=sum(p.zero_both for p in parameters.values()),
        parameters=parameters,
    )


def _signs(name: str, values: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    chosen = values.detach().cpu()[kept]
    if bad := int(chosen.isnan().sum()):
        raise RunError(f"{bad} kept weights of {name!r} are NaN and have no sign; the training diverged")
    return chosen.sign()


@dataclass(frozen=True)
class _Draw:
    """Two random subsets of `n` weights, of `a` and of `b` weights: how many do they share?"""

    n: int
    a: int
    b: int

    @property
    def mean(self) -> Fraction:
        return Fraction(self.a * self.b, self.n) if self.n else Fraction(0)

    @property
    def variance(self) -> Fraction:
        if self.n < 2:
            return Fraction(0)
        return Fraction(self.a * self.b * (self.n - self.a) * (self.n - self.b), self.n**2 * (self.n - 1))

    @property
    def least(self) -> int:
        return max(0, self.a + self.b - self.n)

    @property
    def outcomes(self) -> int:
        return min(self.a, self.b) - self.least + 1

    @property
    def bits(self) -> float:
        """The logarithm to base 2 of the number of equally likely draws, with the subset that has fewer held open."""
        k = self._chosen[1]
        return (lgamma(self.n + 1) - lgamma(k + 1) - lgamma(self.n - k + 1)) / log(2)

    def ways(self) -> list[int]:
        """Return in how many draws 0, 1, 2, … more than the least number of weights are shared."""
        fixed, drawn = self._chosen
        ways = [comb(fixed, self.least) * comb(self.n - fixed, drawn - self.least)]
        for x in range(self.least, self.least + self.outcomes - 1):
            # C(f, x+1)·C(n−f, d−x−1) from C(f, x)·C(n−f, d−x); the division leaves no rest
            ways.append(ways[-1] * (fixed - x) * (drawn - x) // ((x + 1) * (self.n - fixed - drawn + x + 1)))
        return ways

    @property
    def _chosen(self) -> tuple[int, int]:
        """The distribution is the same whichever subset is held fixed; draw the one with fewer possibilities."""
        fixed, drawn = sorted((self.a, self.b), key=lambda k: -min(k, self.n - k))
        return fixed, drawn


def _against_chance(both: int, draws: Sequence[_Draw], parameters: Mapping[str, Overlap] | None = None) -> Overlap:
    mean, variance = sum((d.mean for d in draws), Fraction(0)), sum((d.variance for d in draws), Fraction(0))
    outcomes, bits = sum(d.outcomes for d in draws), sum(d.bits for d in draws)
    exact = outcomes * bits <= EXACT_BITS
    at_least, at_most = _exact_tails(both, draws) if exact else _normal_tails(both, float(mean), float(variance))
    return Overlap(
        kept_a=sum(d.a for d in draws),
        kept_b=sum(d.b for d in draws),
        both=both,
        total=sum(d.n for d in draws),
        expected=float(mean),
        variance=float(variance),
        p_at_least=at_least,
        p_at_most=at_most,
        method="exact" if exact else "normal",
        parameters=parameters or {},
    )


def _exact_tails(both: int, draws: Sequence[_Draw]) -> tuple[float, float]:
    """Return P(X ≥ both) and P(X ≤ both), rounded once, at the division of two integers."""
    ways = _convolved([draw.ways() for draw in draws])
    sums = [0, *accumulate(ways)]
    above = both - sum(draw.least for draw in draws)
    return (sums[-1] - sums[above]) / sums[-1], sums[above + 1] / sums[-1]


def _convolved(factors: Sequence[Sequence[int]]) -> list[int]:
    """Return the coefficients of a product of polynomials, through one product of integers (Kronecker substitution)."""
    largest = 1
    for factor in factors:
        largest *= sum(factor)
    width = largest.bit_length() // 8 + 1  # bytes that hold every coefficient of the product
    packed = [int.from_bytes(b"".join(c.to_bytes(width, "little") for c in f), "little") for f in factors]
    while len(packed) > 1:  # pairs of like size: big products stay balanced, so that fast multiplication pays
        packed = [a * b for a, b in zip(packed[::2], [*packed[1::2], 1], strict=False)]
    length = sum(len(factor) - 1 for factor in factors) + 1
    content = (packed[0] if packed else 1).to_bytes(length * width, "little")
    return [int.from_bytes(content[i : i + width], "little") for i in range(0, len(content), width)]


def _normal_tails(both: int, mean: float, variance: float) -> tuple[float, float]:
    scale = sqrt(2 * variance)
    return erfc((both - 0.5 - mean) / scale) / 2, erfc((mean - both - 0.5) / scale) / 2
