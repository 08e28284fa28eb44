import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import combinations, pairwise, product

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ticketkit import Mask, MaskError, RunError
from ticketkit import comparison as engine
from ticketkit.comparison import Overlap, nestedness, overlap, sign_agreement
from ticketkit.testing import masks, shape_maps

Pair = tuple[Mask, Mask]


def pairs() -> st.SearchStrategy[Pair]:
    return shape_maps().flatmap(lambda shapes: st.tuples(masks(shapes), masks(shapes)))


@st.composite
def tiny_pairs(draw: st.DrawFn) -> Pair:
    """Return two masks over so few weights that all pairs of masks with the same counts can be listed."""
    shapes = {f"p{i}": (n,) for i, n in enumerate(draw(st.lists(st.integers(0, 4), min_size=1, max_size=3)))}
    assume(sum(n for (n,) in shapes.values()) <= 7)
    return draw(masks(shapes)), draw(masks(shapes))


def redrawn(mask: Mask) -> Iterator[set[tuple[str, int]]]:
    """Yield the kept weights of every mask with the same count in every parameter."""
    choices = [[[(n, i) for i in c] for c in combinations(range(mask.sizes[n]), k)] for n, k in mask.counts.items()]
    for parts in product(*choices):
        yield {weight for part in parts for weight in part}


def kept(mask: Mask) -> set[tuple[str, int]]:
    return {(name, i) for name, flags in mask.items() for i, flag in enumerate(flags.flatten().tolist()) if flag}


# Overlap


@given(pairs())
def test_overlap_counts_sets(two: Pair) -> None:
    a, b = two
    for found, one, other in [
        (overlap(a, b), kept(a), kept(b)),
        *((overlap(a, b).parameters[n], kept(Mask({n: a[n]})), kept(Mask({n: b[n]}))) for n in a),
    ]:
        assert (found.kept_a, found.kept_b, found.both) == (len(one), len(other), len(one & other))
        assert found.jaccard == (len(one & other) / len(one | other) if one | other else 1.0)
        smaller = min(len(one), len(other))
        assert found.coefficient == (len(one & other) / smaller if smaller else 1.0)
    assert overlap(a, b).total == a.total
    assert overlap(a, b).jaccard == a.overlap(b)


@given(tiny_pairs())
@example((Mask({"p": torch.ones(4, dtype=torch.bool)}), Mask({"p": torch.zeros(4, dtype=torch.bool)})))
def test_chance_is_that_of_all_masks_with_the_same_counts(two: Pair) -> None:
    a, b = two
    fixed, observed = kept(a), len(kept(a) & kept(b))
    shared = [len(fixed & drawn) for drawn in redrawn(b)]
    mean = Fraction(sum(shared), len(shared))
    variance = Fraction(sum((x - mean) ** 2 for x in shared), len(shared))
    found = overlap(a, b)
    assert found.method == "exact"
    assert found.expected == float(mean)
    assert found.variance == float(variance)
    assert found.p_at_least == sum(x >= observed for x in shared) / len(shared)
    assert found.p_at_most == sum(x <= observed for x in shared) / len(shared)
    assert found.z == ((observed - float(mean)) / math.sqrt(variance) if variance else 0.0)


def test_redrawing_both_masks_or_only_one_is_the_same_chance() -> None:
    a = Mask({"x": torch.tensor([True, True, False, False]), "y": torch.tensor([True, False, False])})
    b = Mask({"x": torch.tensor([True, False, True, True]), "y": torch.tensor([True, True, False])})
    shared = [len(one & other) for one in redrawn(a) for other in redrawn(b)]
    assert overlap(a, b).p_at_least == sum(x >= 2 for x in shared) / len(shared)


@given(tiny_pairs())
def test_a_parameter_alone_has_the_chance_of_a_mask_over_it_alone(two: Pair) -> None:
    a, b = two
    for name, found in overlap(a, b).parameters.items():
        alone = overlap(Mask({name: a[name]}), Mask({name: b[name]}))
        assert found == alone.parameters[name]
        assert (found.p_at_least, found.p_at_most) == (alone.p_at_least, alone.p_at_most)


@given(pairs())
def test_overlap_is_symmetric_and_ignores_the_order_of_parameters(two: Pair) -> None:
    a, b = two
    one, other = overlap(a, b), overlap(b, Mask({name: a[name] for name in reversed(list(a))}))
    facts = ("both", "total", "expected", "variance", "p_at_least", "p_at_most", "jaccard", "coefficient", "z")
    assert [getattr(one, fact) for fact in facts] == [getattr(other, fact) for fact in facts]


def test_agreeing_on_layer_densities_alone_is_no_overlap() -> None:
    """Masks that agree only on which layer is sparse share no more than chance; a pooled null model says they do."""
    draw = torch.Generator().manual_seed(0)

    def layered() -> Mask:
        return Mask({"a": torch.rand(400, generator=draw) < 0.9, "b": torch.rand(400, generator=draw) < 0.1})

    found = overlap(layered(), layered())
    assert 0.01 < found.p_at_least < 0.99
    pooled = found.kept_a * found.kept_b / found.total
    assert found.both > pooled + 100


@pytest.mark.parametrize("density", [0.2, 0.5, 0.9])
def test_the_normal_approximation_is_near_the_exact_one(density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(3)
    a, b = (
        Mask({name: torch.rand(size, generator=draw) < density for name, size in (("a", 900), ("b", 700))})
        for _ in range(2)
    )
    exact = overlap(a, b)
    monkeypatch.setattr(engine, "EXACT_BITS", 0)
    normal = overlap(a, b)
    assert (exact.method, normal.method) == ("exact", "normal")
    assert (exact.expected, exact.variance, exact.z) == (normal.expected, normal.variance, normal.z)
    assert abs(exact.p_at_least - normal.p_at_least) < 0.01
    assert abs(exact.p_at_most - normal.p_at_most) < 0.01


def test_large_dense_masks_are_compared_by_the_normal_approximation() -> None:
    draw = torch.Generator().manual_seed(1)
    a, b = (Mask({"w": torch.rand(100_000, generator=draw) < 0.5}) for _ in range(2))
    independent, same = overlap(a, b), overlap(a, a)
    assert (independent.method, same.method) == ("normal", "normal")
    assert 0.001 < independent.p_at_least < 0.999
    assert (same.p_at_least, same.p_at_most) == (0.0, 1.0)
    assert same.z > 300


def test_few_kept_weights_are_compared_exactly_however_many_there_are() -> None:
    flags = torch.zeros(1_000_000, dtype=torch.bool)
    flags[:2] = True
    almost_all = overlap(Mask({"w": ~flags}), Mask({"w": ~flags}))
    two = overlap(Mask({"w": flags}), Mask({"w": flags}))
    for found in (two, almost_all):
        assert found.method == "exact"
        assert found.p_at_least == 1 / math.comb(1_000_000, 2)
        assert found.p_at_most == 1.0
    eight, half = (Mask({"w": torch.arange(1_000_000) < size}) for size in (8, 500_000))
    for found in (overlap(half, eight), overlap(eight, half)):
        assert found.method == "exact"
        assert found.p_at_least == math.comb(500_000, 8) / math.comb(1_000_000, 8)


@given(tiny_pairs())
def test_the_tails_overlap_in_what_was_observed(two: Pair) -> None:
    found = overlap(*two)
    assert found.p_at_least + found.p_at_most > 1 - 1e-12
    assert 0 < found.p_at_least <= 1
    assert 0 < found.p_at_most <= 1


def test_masks_over_nothing_agree() -> None:
    empty = Mask({"w": torch.zeros(0, 3, dtype=torch.bool)})
    assert overlap(empty, empty).p_at_least == overlap(empty, empty).p_at_most == 1.0
    assert overlap(Mask({}), Mask({})) == Overlap(0, 0, 0, 0, 0.0, 0.0, 1.0, 1.0, "exact", {})


def test_masks_of_different_models_are_refused() -> None:
    with pytest.raises(MaskError, match=r"w: expected shape \(2,\), found \(3,\)"):
        overlap(Mask.ones({"w": (2,)}), Mask.ones({"w": (3,)}))


# Nesting


@given(shape_maps().flatmap(lambda shapes: st.lists(masks(shapes), max_size=4)))
def test_nestedness_counts_what_left_and_what_came_back(chain: list[Mask]) -> None:
    found = nestedness(chain)
    assert len(found) == max(0, len(chain) - 1)
    for step, (before, after) in zip(found, pairwise(chain), strict=True):
        left, back = kept(before) - kept(after), kept(after) - kept(before)
        assert step.dropped == {name: sum(n == name for n, _ in left) for name in before}
        assert step.returned == {name: sum(n == name for n, _ in back) for name in before}
        assert step.nested == (after <= before)


# Signs


VALUES = (-2.0, -0.0, 0.0, 5e-324, 3.0, math.inf, -math.inf)


def sign(x: float) -> int:
    return (x > 0) - (x < 0)


@given(masks(), st.randoms(use_true_random=False))
def test_signs_are_counted_weight_by_weight(mask: Mask, rng: object) -> None:
    drawn = [{n: [rng.choice(VALUES) for _ in range(size)] for n, size in mask.sizes.items()} for _ in range(2)]
    tensors = [
        {n: torch.tensor(v, dtype=torch.float64).reshape(mask.shapes[n]) for n, v in side.items()} for side in drawn
    ]
    found = sign_agreement(mask, *tensors)
    both = [(sign(drawn[0][n][i]), sign(drawn[1][n][i])) for n, i in sorted(kept(mask))]
    assert found.same == sum(x == y != 0 for x, y in both)
    assert found.opposite == sum(x == -y != 0 for x, y in both)
    assert found.zero_weight == sum(x == 0 != y for x, y in both)
    assert found.zero_reference == sum(x != 0 == y for x, y in both)
    assert found.zero_both == sum(x == y == 0 for x, y in both)
    signed = found.same + found.opposite
    assert found.share == found.same / signed if signed else math.isnan(found.share)
    for name in mask:
        part = sign_agreement(Mask({name: mask[name]}), *tensors)
        assert (part.same, part.opposite, part.zero_both) == (
            found.parameters[name].same,
            found.parameters[name].opposite,
            found.parameters[name].zero_both,
        )


def test_signs_need_every_masked_parameter_and_no_nan() -> None:
    mask = Mask({"w": torch.tensor([True, False])})
    fine = {"w": torch.tensor([1.0, 2.0]), "other": torch.zeros(3)}
    assert sign_agreement(mask, fine, {"w": torch.tensor([1.0, math.nan])}).share == 1.0
    with pytest.raises(RunError, match="1 kept weights of 'w' are NaN"):
        sign_agreement(mask, fine, {"w": torch.tensor([math.nan, 1.0])})
    with pytest.raises(MaskError, match=r"(?s)does not fit the reference.*w \(2,\): missing"):
        sign_agreement(mask, fine, {})
    with pytest.raises(MaskError, match=r"(?s)does not fit the weights.*found \(2, 1\)"):
        sign_agreement(mask, {"w": torch.zeros(2, 1)}, fine)
