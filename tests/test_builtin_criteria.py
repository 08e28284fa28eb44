from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from ticketkit import Mask, Plugins, Scope, ScoreError, ScoreInputs, select
from ticketkit.builtin import weight_criteria as criteria
from ticketkit.errors import ConfigError
from ticketkit.probe import Probe
from ticketkit.testing import DTYPES, TINY_NETS, masks, scores

REGISTERED = {entry.name: entry for entry in Plugins().registries["criterion"]}
OF_WEIGHTS = [
    "layer_normalised_magnitude",
    "lamp",
    "magnitude",
    "magnitude_increase",
    "magnitude_over_init",
    "signed_movement",
]


def inputs(
    weights: dict[str, torch.Tensor],
    initial: dict[str, torch.Tensor] | None = None,
    seed: int = 0,
    mask: Mask | None = None,
) -> ScoreInputs:
    mask = mask or Mask.ones({name: tuple(tensor.shape) for name, tensor in weights.items()})
    return ScoreInputs(weights, initial or weights, mask, torch.Generator().manual_seed(seed), mask.kept // 2)


@st.composite
def pruned_weights(draw: st.DrawFn, dtype: torch.dtype | None = None) -> ScoreInputs:
    """Return trained weights with their pruned entries at zero, and initial ones, none of them at zero as a whole."""
    mask = draw(masks())
    weights = draw(scores(mask, dtype=dtype))
    weights = {name: t.masked_fill(~mask[name], 0) for name, t in weights.items()}
    return inputs(weights, {name: torch.full_like(t, 0.5) for name, t in weights.items()}, mask=mask)


def by_magnitude(given_: ScoreInputs, name: str) -> list[int]:
    """Return the flat indices of a parameter's kept weights, the best first, as `select` ranks them."""
    kept = given_.mask[name].flatten().nonzero().flatten().tolist()
    flat = given_.weights[name].double().flatten().tolist()
    return sorted(kept, key=lambda index: (-abs(flat[index]), index))


# Every registered criterion


def probed(net: str, seed: int = 0, keep: float = 0.4) -> ScoreInputs:
    """Return inputs of a trained network of which a third is pruned already."""
    torch.manual_seed(seed)
    model = TINY_NETS[net].build()
    scope = Scope.of(model)
    weights = scope.tensors(model)
    mask = select({name: t.abs() for name, t in weights.items()}, scope.ones(), 2 * scope.total // 3)
    for name, weight in weights.items():
        weight.masked_fill_(~mask[name], 0)
    initial = {name: weight + torch.randn_like(weight) / 9 for name, weight in weights.items()}
    data = [TINY_NETS[net].inputs() for _ in range(2)]
    probe = Probe(model, lambda: data, lambda model, batch: model(batch).square().mean(), mask, 1)
    return ScoreInputs(weights, initial, mask, torch.Generator().manual_seed(1), int(mask.kept * keep), probe)


@pytest.mark.parametrize("net", TINY_NETS)
@pytest.mark.parametrize("name", REGISTERED)
def test_every_criterion_gives_the_same_scores_twice_and_select_accepts_them(name: str, net: str) -> None:
    options = {"iterations": 3} if name == "synflow" else {}
    chosen = []
    for _ in range(2):
        given_ = probed(net)
        found = REGISTERED[name].configured(options).call(given_)
        chosen.append({n: found[n].clone() for n in found})
        assert list(found) == list(given_.mask)
        mask = select(found, given_.mask, given_.keep)
        assert mask.kept == given_.keep
        assert mask <= given_.mask
    assert all(torch.equal(chosen[0][n], chosen[1][n]) for n in chosen[0])


@pytest.mark.parametrize("name", sorted(REGISTERED.keys() - {"magnitude_over_init"}))
def test_what_pruned_weights_began_with_does_not_matter(name: str) -> None:
    options = {"iterations": 3} if name == "synflow" else {}
    kept = []
    for elsewhere in (0.0, 7.0):
        given_ = probed("mlp")
        for parameter, initial in given_.initial.items():
            initial.masked_fill_(~given_.mask[parameter], elsewhere)
        found = REGISTERED[name].configured(options).call(given_)
        kept.append({n: found[n][given_.mask[n]] for n in found})
    assert all(torch.equal(kept[0][n], kept[1][n]) for n in kept[0])


@pytest.mark.parametrize("name", OF_WEIGHTS)
@given(case=pruned_weights(torch.float32), value=st.sampled_from([5.0, -1e30, 1e-30]))
def test_values_of_pruned_weights_do_not_matter(name: str, case: ScoreInputs, value: float) -> None:
    revived = {n: t.masked_fill(~case.mask[n], value) for n, t in case.weights.items()}
    clean = REGISTERED[name].call(case)
    spoiled = REGISTERED[name].call(inputs(revived, dict(case.initial), mask=case.mask))
    for parameter in case.mask:
        kept = case.mask[parameter]
        assert torch.equal(clean[parameter][kept], spoiled[parameter][kept])


def test_criteria_declare_what_they_look_at() -> None:
    needs = {name: tuple(entry.needs) for name, entry in REGISTERED.items() if entry.needs}
    assert needs == {
        **dict.fromkeys(["magnitude_over_init", "magnitude_increase", "signed_movement", "inverted"], ("initial",)),
        **dict.fromkeys(["snip", "taylor", "fisher", "grasp", "synflow"], ("gradients",)),
        "wanda": ("activations",),
    }


# Magnitude


def test_magnitude_is_the_absolute_weight_as_it_is() -> None:
    weights = {"a": torch.tensor([-3.0, 0.5]), "b": torch.tensor([[-0.0, 2.0]])}
    found = criteria.magnitude(inputs(weights))
    assert {name: found[name].tolist() for name in found} == {"a": [3.0, 0.5], "b": [[0.0, 2.0]]}


def test_magnitude_keeps_the_dtype_so_that_ranking_loses_nothing() -> None:
    weights = {"a": torch.tensor([1.0, 1.0 + 2**-52], dtype=torch.float64)}
    scored = inputs(weights)
    assert select(criteria.magnitude(scored), scored.mask, 1)["a"].tolist() == [False, True]


def test_magnitude_over_init_forgets_the_scale_of_a_layer() -> None:
    initial = {"a": torch.tensor([1.0, -2.0, 3.0]), "b": torch.tensor([1.0, -2.0, 3.0]) / 1024}
    weights = {"a": torch.tensor([2.0, 1.0, 4.0]), "b": torch.tensor([2.0, 1.0, 4.0]) / 1024}
    found = criteria.magnitude_over_init(inputs(weights, initial))
    assert found["a"].tolist() == found["b"].tolist() == [1.0, 0.5, 2.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_magnitude_over_init_ranks_half_precision_weights_in_float32(dtype: torch.dtype) -> None:
    weights = {"a": torch.full((3,), 6e4).to(dtype)}
    found = criteria.magnitude_over_init(inputs(weights, {"a": torch.full((3,), 1e-3).to(dtype)}))
    assert found["a"].dtype == torch.float32
    assert found["a"].isfinite().all()


def test_magnitude_over_init_refuses_parameters_that_start_at_zero() -> None:
    weights = {"a": torch.ones(2), "b": torch.ones(2), "empty": torch.ones(0)}
    with pytest.raises(ScoreError, match=r"but b start at zero"):
        criteria.magnitude_over_init(inputs(weights, weights | {"b": torch.zeros(2)}))


@given(pruned_weights())
def test_layer_normalised_scores_are_shares_of_the_norm_of_the_kept_weights(case: ScoreInputs) -> None:
    found = criteria.layer_normalised_magnitude(case)
    for name, mask in case.mask.items():
        exact = [Fraction(value) for value in case.weights[name].double()[mask].tolist()]
        total = sum(value * value for value in exact)
        shares = found[name][mask].tolist()
        assert all(0 <= share <= 1 + 1e-12 for share in shares)
        for value, share in zip(exact, shares, strict=True):
            expected = float(value * value / total) ** 0.5 if total else 0.0
            assert share == pytest.approx(expected, rel=1e-9, abs=1e-150)


def test_raw_magnitude_compares_across_layers_and_the_normalised_one_within() -> None:
    weights = {"a": torch.tensor([10.0, 9.0, 8.0]), "b": torch.tensor([0.3, 0.2, 0.1])}
    scored = inputs(weights)
    assert select(criteria.magnitude(scored), scored.mask, 3).counts == {"a": 3, "b": 0}
    assert select(criteria.layer_normalised_magnitude(scored), scored.mask, 3).counts == {"a": 2, "b": 1}


# Movement


@given(st.data())
def test_movement_criteria_are_exact_differences_in_float64(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES[:3]))
    shapes = {"a": (2, 3), "b": (4,)}
    weights, initial = data.draw(scores(shapes, dtype=dtype)), data.draw(scores(shapes, dtype=dtype))
    increase = criteria.magnitude_increase(inputs(weights, initial))
    signed = criteria.signed_movement(inputs(weights, initial))
    for name in shapes:
        pairs = zip(weights[name].flatten().tolist(), initial[name].flatten().tolist(), strict=True)
        for index, (w, w0) in enumerate(pairs):
            assert increase[name].flatten()[index].item() == abs(w) - abs(w0)
            assert signed[name].flatten()[index].item() == w * (w - w0)


def test_signed_movement_is_the_sum_of_movement_scores_when_the_weight_hardly_changes() -> None:
    """−Σ w_t g_t of gradient descent on a quadratic, against the end points."""
    rate, target = 1e-4, torch.tensor([3.0, -1.0, 0.2], dtype=torch.float64)
    initial = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    weights, summed = initial.clone(), torch.zeros(3, dtype=torch.float64)
    for _ in range(20):
        gradient = weights - target
        summed -= weights * gradient
        weights -= rate * gradient
    found = criteria.signed_movement(inputs({"w": weights}, {"w": initial}))["w"]
    assert torch.allclose(found, rate * summed, rtol=5e-3)
    assert found.sign().tolist() == [1.0, -1.0, -1.0]


# LAMP


@given(pruned_weights())
@example(inputs({"w": torch.tensor([2.0, -2.0, 2.0, 0.0])}))
@example(inputs({"w": torch.zeros(3)}))
@example(inputs({"w": torch.tensor([1e308, 1e-308, -1e308], dtype=torch.float64)}))
def test_lamp_is_the_square_over_the_sum_of_all_that_are_no_smaller(case: ScoreInputs) -> None:
    found = criteria.lamp(case)
    for name in case.mask:
        flat = case.weights[name].double().flatten().tolist()
        rest = Fraction(0)
        for index in by_magnitude(case, name):  # the definition, in exact arithmetic, from the largest down
            square = Fraction(flat[index]) ** 2
            rest += square
            expected = float(square / rest) if rest else 0.0
            assert found[name].flatten()[index].item() == pytest.approx(expected, rel=1e-9, abs=1e-150)


@given(pruned_weights(), st.data())
def test_lamp_keeps_the_largest_of_each_parameter_and_gives_each_its_one_first(
    case: ScoreInputs, data: st.DataObject
) -> None:
    if any(not case.weights[name][case.mask[name]].any() for name in case.mask):
        return
    keep = data.draw(st.integers(0, case.mask.kept))
    chosen = select(criteria.lamp(case), case.mask, keep)
    if keep >= len(case.mask):
        assert all(count > 0 for count in chosen.counts.values())
    if case.weights[next(iter(case.mask))].dtype != torch.float64:  # there squares of a ratio of 1e-162 vanish
        for name in case.mask:
            best = by_magnitude(case, name)[: chosen.counts[name]]
            assert sorted(best) == chosen[name].flatten().nonzero().flatten().tolist()


def test_lamp_ranks_thousands_of_equal_weights_by_position() -> None:
    found = criteria.lamp(inputs({"w": torch.full((300, 20), -0.25)}))["w"].flatten()
    assert torch.allclose(found, 1 / torch.arange(1, 6001, dtype=torch.float64), rtol=1e-12)


# Controls


def test_random_depends_on_the_generator_and_nothing_else() -> None:
    weights = {"a": torch.ones(4, 3), "b": torch.zeros(5)}
    global_state = torch.get_rng_state()
    first, second = criteria.random(inputs(weights, seed=1)), criteria.random(inputs(weights, seed=1))
    other = criteria.random(inputs(weights, seed=2))
    assert all(torch.equal(first[name], second[name]) for name in weights)
    assert not any(torch.equal(first[name], other[name]) for name in weights)
    assert torch.equal(torch.get_rng_state(), global_state)


@pytest.mark.parametrize("of", OF_WEIGHTS)
def test_inverted_keeps_exactly_what_the_other_prunes(of: str) -> None:
    given_ = probed("mlp", keep=0.5)
    upright = select(REGISTERED[of].call(given_), given_.mask, given_.keep)
    inverted = REGISTERED["inverted"].configured({"of": of}).call(given_)
    assert select(inverted, given_.mask, given_.mask.kept - given_.keep) == given_.mask - upright


@pytest.mark.parametrize("options", [{"of": "random"}, {"of": "magnitud"}, {"off": "lamp"}])
def test_inverted_refuses_what_it_cannot_invert(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="criterion 'inverted'"):
        REGISTERED["inverted"].configured(options)


def test_everything_that_can_be_inverted_is_registered() -> None:
    assert sorted(criteria.INVERTIBLE) == sorted(OF_WEIGHTS)
    assert all(REGISTERED[name].call is call for name, call in criteria.INVERTIBLE.items())
