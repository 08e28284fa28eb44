"""Optimal Brain Damage against Hessians written out, and a run that names it through the entry point."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ticketkit
from ticketkit.testing import TINY_NETS, check_criterion, mlp, plugin_installed

PROJECT = Path(__file__).parents[1]
LABELS = torch.tensor([0, 2, 1, 2])
Scores = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ticketkit.Plugins]:
    """The plugins of an environment where this one is installed."""
    with plugin_installed(PROJECT, tmp_path_factory.mktemp("site")), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TICKETKIT_LOAD_PLUGINS", "hessian")
        yield ticketkit.Plugins.discover()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def cross_entropy(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch).reshape(-1, 3)[:4], LABELS)


def inputs(
    model: nn.Module, data: list[Any], loss: Callable[..., Any], mask: ticketkit.Mask | None = None, seed: int = 0
) -> ticketkit.ScoreInputs:
    scope = ticketkit.Scope.of(model)
    mask = mask or scope.ones()
    weights = scope.tensors(model)
    probe = ticketkit.Probe(model, lambda: data, loss, mask, 0)
    return ticketkit.ScoreInputs(weights, weights, mask, torch.Generator().manual_seed(seed), mask.kept // 2, probe)


def obd(plugins: ticketkit.Plugins, given: ticketkit.ScoreInputs, **options: Any) -> Scores:
    found: Scores = plugins.choose("criterion", {"name": "obd", **options}).call(given)
    return found


def flat(tensors: Scores) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def explicit_hessian(given: ticketkit.ScoreInputs, data: list[torch.Tensor]) -> torch.Tensor:
    """The Hessian of the mean loss over all weights in scope, written out."""
    names = list(given.mask)

    def loss(vector: torch.Tensor) -> torch.Tensor:
        parts = vector.split([given.weights[name].numel() for name in names])
        values = {name: part.reshape(given.weights[name].shape) for name, part in zip(names, parts, strict=True)}
        outputs = [torch.func.functional_call(given.probe.model, values, (batch,)) for batch in data]
        return torch.stack([nn.functional.cross_entropy(o.reshape(-1, 3)[:4], LABELS) for o in outputs]).mean()

    return torch.autograd.functional.hessian(loss, flat(dict(given.weights)))


def tiny(net: str = "mlp") -> tuple[nn.Module, list[torch.Tensor]]:
    model = TINY_NETS[net].build().double().eval()
    return model, [TINY_NETS[net].inputs().double() for _ in range(2)]


def half(model: nn.Module) -> ticketkit.Mask:
    """Prune half of a model by magnitude in place."""
    scope = ticketkit.Scope.of(model)
    mask = ticketkit.select({n: w.abs() for n, w in scope.tensors(model).items()}, scope.ones(), scope.total // 2)
    for name, weights in scope.tensors(model).items():
        weights.masked_fill_(~mask[name], 0)
    return mask


def parabola(model: nn.Module, slopes: torch.Tensor) -> torch.Tensor:
    """½ Σ c w²: its Hessian is diagonal, and different for every batch c."""
    return (slopes * model.weight.square()).sum() / 2


@pytest.mark.parametrize("samples", [1, 3])
def test_a_diagonal_hessian_is_found_exactly(plugins: ticketkit.Plugins, samples: int) -> None:
    model = nn.Linear(4, 3, bias=False).double()
    data = [torch.randn(3, 4, dtype=torch.float64) for _ in range(5)]
    scores = obd(plugins, inputs(model, data, parabola), samples=samples)["weight"]
    torch.testing.assert_close(scores, torch.stack(data).mean(0) * model.weight.detach().square() / 2)


def test_scores_of_a_diagonal_parabola_are_how_far_the_loss_rises(plugins: ticketkit.Plugins) -> None:
    model = nn.Linear(4, 3, bias=False).double()
    slopes = torch.rand(3, 4, dtype=torch.float64)
    scores = obd(plugins, inputs(model, [slopes], parabola))["weight"].flatten()
    target = model.weight.detach().clone()

    def loss() -> float:
        """The same curvature, with its minimum where the weights are."""
        return float((slopes * (model.weight.detach() - target).square()).sum() / 2)

    for index in range(12):
        model.weight.data.view(-1)[index] = 0
        assert scores[index].item() == pytest.approx(loss(), rel=1e-12)
        model.weight.data.copy_(target)


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("net", ["mlp", "attention"])
def test_errors_are_those_of_random_signs_over_kept_weights(plugins: ticketkit.Plugins, net: str, pruned: bool) -> None:
    """z ⊙ Hz has mean h_ii and variance Σ_{j≠i} H_ij² over kept j; other draws, or pruned weights in, have more."""
    model, data = tiny(net)
    mask = half(model) if pruned else None
    given = inputs(model, data, cross_entropy, mask)
    samples = 60
    scores = flat(obd(plugins, given, samples=samples))
    weights = flat(dict(given.weights))
    hessian, kept = explicit_hessian(given, data), flat({name: given.mask[name] for name in given.mask})
    assert (scores[~kept] == 0).all()
    curvature = 2 * scores[kept] / weights[kept].square()
    among = hessian[kept][:, kept]
    deviation = ((among - among.diag().diag()).square().sum(dim=1) / samples).sqrt()
    errors = (curvature - among.diag())[deviation > 1e-12] / deviation[deviation > 1e-12]
    assert len(errors) > 20
    assert errors.abs().max() < 5
    assert 0.5 < errors.square().mean() < 1.6


def test_clamped_curvature_is_nowhere_negative_and_else_the_same(plugins: ticketkit.Plugins) -> None:
    model = nn.Linear(4, 3, bias=False).double()
    slopes = torch.randn(3, 4, dtype=torch.float64)
    raw = obd(plugins, inputs(model, [slopes], parabola))["weight"]
    clamped = obd(plugins, inputs(model, [slopes], parabola), clamp=True)["weight"]
    assert ((raw < 0) == (slopes < 0)).all()
    assert (raw < 0).any()
    assert torch.equal(clamped, torch.where(slopes < 0, 0, raw))


def test_differences_of_gradients_stand_in_for_second_derivatives(plugins: ticketkit.Plugins) -> None:
    model, data = tiny()
    exact = obd(plugins, inputs(model, data, cross_entropy), samples=2)
    near = obd(plugins, inputs(model, data, cross_entropy), samples=2, exact=False)
    torch.testing.assert_close(flat(near), flat(exact), rtol=1e-4, atol=1e-6)


def test_other_seeds_draw_other_signs(plugins: ticketkit.Plugins) -> None:
    model, data = tiny()
    first, other = (flat(obd(plugins, inputs(model, data, cross_entropy, seed=seed))) for seed in (3, 4))
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("net", "options"),
    [("attention", {}), ("convnet", {"training": True, "clamp": True}), ("mlp", {"exact": False})],
    ids=str,
)
def test_it_obeys_the_laws_of_criteria(plugins: ticketkit.Plugins, net: str, options: dict[str, Any]) -> None:
    chosen = {"name": "obd", "samples": 1, **options}
    check_criterion(chosen, nets={net: TINY_NETS[net]}, plugins=plugins, examples=2)


def test_an_option_that_makes_no_sense_is_refused(plugins: ticketkit.Plugins) -> None:
    with pytest.raises(ticketkit.ConfigError, match="samples: Input should be greater than or equal to 1"):
        plugins.choose("criterion", {"name": "obd", "samples": 0})
    with pytest.raises(ticketkit.ConfigError, match="criterion hessian:obd looks at gradients; give IMP batches="):
        ticketkit.IMP(mlp(), rounds=1, criterion="obd", plugins=plugins)


def test_a_run_that_names_it_keeps_what_curves_most(plugins: ticketkit.Plugins) -> None:
    model = nn.Linear(4, 3, bias=False)
    slopes = torch.linspace(0.1, 3, 12).flip(0).reshape(3, 4)
    imp = ticketkit.IMP(
        model,
        rate=0.5,
        rounds=2,
        criterion={"name": "obd", "samples": 2},
        batches=lambda: [slopes],
        loss=parabola,
        rewind="none",
        plugins=plugins,
    )
    saliencies = []
    for _ in imp:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        parabola(model, slopes).backward()
        optimizer.step()
        saliencies.append((slopes * model.weight.detach().square()).flatten().tolist())
    for ticket, saliency in zip(imp.tickets[1:], saliencies, strict=False):
        best = sorted(range(12), key=saliency.__getitem__)[-ticket.mask.kept :]
        assert ticket.mask["weight"].flatten().nonzero().flatten().tolist() == sorted(best)
    assert [ticket.mask.kept for ticket in imp.tickets] == [12, 6, 3]
    facts = imp.tickets[1].facts.criterion
    assert (facts.entry, facts.options) == ("hessian:obd", {"samples": 2})
