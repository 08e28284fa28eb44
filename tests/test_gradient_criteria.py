from collections.abc import Callable

import pytest
import torch
from torch import nn

from ticketkit import Mask, Plugins, Scope, ScoreError, ScoreInputs, select
from ticketkit.probe import Probe
from ticketkit.testing import TINY_NETS, mlp

REGISTERED = {entry.name: entry for entry in Plugins().registries["criterion"]}
LABELS = torch.tensor([0, 2, 1, 2])


def cross_entropy(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch).reshape(-1, 3)[:4], LABELS)


def case(
    model: nn.Module, data: list[torch.Tensor], loss: Callable = cross_entropy, mask: Mask | None = None
) -> ScoreInputs:
    scope = Scope.of(model)
    mask = mask or scope.ones()
    weights = scope.tensors(model)
    for name, weight in weights.items():
        weight.masked_fill_(~mask[name], 0)
    probe = Probe(model, lambda: data, loss, mask, 0)
    return ScoreInputs(weights, weights, mask, torch.Generator(), mask.kept // 2, probe)


def tiny(net: str = "mlp") -> tuple[nn.Module, list[torch.Tensor]]:
    model = TINY_NETS[net].build().double().eval()
    return model, [TINY_NETS[net].inputs().double() for _ in range(3)]


def half(model: nn.Module) -> Mask:
    scope = Scope.of(model)
    return select({name: t.abs() for name, t in scope.tensors(model).items()}, scope.ones(), scope.total // 2)


def batch_gradients(model: nn.Module, data: list[torch.Tensor], name: str) -> list[torch.Tensor]:
    found = []
    for batch in data:
        model.zero_grad()
        cross_entropy(model, batch).backward()
        found.append(model.get_parameter(name).grad.clone())
    return found


REFERENCES: dict[str, Callable[[float, list[float]], float]] = {
    "snip": lambda w, slopes: abs(w * sum(slopes) / len(slopes)),
    "taylor": lambda w, slopes: sum(abs(w * g) for g in slopes) / len(slopes),
    "fisher": lambda w, slopes: 0.5 * w * w * sum(g * g for g in slopes) / len(slopes),
}


@pytest.mark.parametrize("net", ["mlp", "convnet", "bilstm_tagger", "attention"])
@pytest.mark.parametrize("name", REFERENCES)
def test_first_order_scores_follow_their_formulas_weight_by_weight(name: str, net: str) -> None:
    model, data = tiny(net)
    given = case(model, data, mask=half(model))
    found = REGISTERED[name].configured({}).call(given)
    for parameter, scores in found.items():
        gradients = [g.flatten().tolist() for g in batch_gradients(model, data, parameter)]
        for index, weight in enumerate(given.weights[parameter].flatten().tolist()):
            expected = REFERENCES[name](weight, [g[index] for g in gradients])
            assert scores.flatten()[index].item() == pytest.approx(expected, rel=1e-9, abs=1e-18)


def test_snip_predicts_how_far_the_loss_moves_when_a_connection_weakens() -> None:
    model, data = tiny()
    scores = REGISTERED["snip"].configured({}).call(case(model, data))["0.weight"].flatten()
    flat, step = model[0].weight.data.view(-1), 1e-6

    def loss() -> float:
        return sum(cross_entropy(model, batch).item() for batch in data) / 3

    for index in range(0, 48, 7):
        kept, values = flat[index].item(), []
        for strength in (1 + step, 1 - step):
            flat[index] = kept * strength
            values.append(loss())
        flat[index] = kept
        assert scores[index].item() == pytest.approx(abs(values[0] - values[1]) / (2 * step), rel=1e-4, abs=1e-9)


def test_slopes_of_different_sign_cancel_in_snip_but_not_in_taylor_and_fisher() -> None:
    model = nn.Linear(1, 1, bias=False)
    data = [torch.tensor([[1.0]]), torch.tensor([[-1.0]])]
    given = case(model, data, lambda model, x: model(x).sum())
    assert REGISTERED["snip"].configured({}).call(given)["weight"].item() == 0
    assert REGISTERED["taylor"].configured({}).call(given)["weight"].item() == abs(model.weight.item())
    assert REGISTERED["fisher"].configured({}).call(given)["weight"].item() > 0


def test_fisher_of_single_examples_is_the_rise_of_a_converged_loss() -> None:
    """For a Gaussian log-likelihood at its maximum the expected rise is ½ w² Σ x² / n = ½ w² F with unit noise."""
    torch.manual_seed(1)
    x = torch.randn(4000, 1, dtype=torch.float64)
    y = 2 * x + torch.randn(4000, 1, dtype=torch.float64)
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_((x * y).sum() / x.square().sum())

    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return (model(batch[0]) - batch[1]).square().sum() / 2

    given = case(model, [(x[i], y[i]) for i in range(0, 4000, 8)], loss)
    found = REGISTERED["fisher"].configured({}).call(given)["weight"].item()
    rise = (0.5 * (y.square() - (model.weight * x - y).square())).mean().item()
    assert found == pytest.approx(rise, rel=0.2)


# GraSP


def explicit_grasp(model: nn.Module, data: list[torch.Tensor], mask: Mask) -> torch.Tensor:
    """w · (H m g) with the Hessian of the mean loss written out, all weights in scope in one vector."""
    names = list(mask)
    sizes = [mask[name].numel() for name in names]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = [p.reshape(mask[n].shape) for n, p in zip(names, flat.split(sizes), strict=True)]
        values = dict(zip(names, parts, strict=True))
        outputs = [torch.func.functional_call(model, values, (batch,)) for batch in data]
        return torch.stack([nn.functional.cross_entropy(o.reshape(-1, 3)[:4], LABELS) for o in outputs]).mean()

    flat = torch.cat([model.get_parameter(name).detach().flatten() for name in names])
    gradient = torch.autograd.functional.jacobian(loss, flat)
    gradient = gradient * torch.cat([mask[name].flatten() for name in names])
    return flat * (torch.autograd.functional.hessian(loss, flat) @ gradient)


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("net", ["mlp", "convnet", "attention"])
def test_grasp_is_the_weight_times_the_explicit_hessian_gradient_product(net: str, pruned: bool) -> None:
    model, data = tiny(net)
    mask = half(model) if pruned else Scope.of(model).ones()
    given = case(model, data, mask=mask)
    found = REGISTERED["grasp"].configured({}).call(given)
    flat = torch.cat([found[name].flatten() for name in mask])
    assert torch.allclose(flat, explicit_grasp(model, data, mask), rtol=1e-7, atol=1e-14)


def test_grasp_keeps_the_weights_whose_loss_would_cut_the_gradient_flow() -> None:
    """The sign, from the aim of the paper: weaken one weight and see whether the squared gradient norm falls."""
    model, data = tiny()
    scores = REGISTERED["grasp"].configured({}).call(case(model, data))

    def flow() -> float:
        gradients = {n: torch.stack(batch_gradients(model, data, n)).mean(0) for n in scores}
        return sum(g.square().sum().item() for g in gradients.values())

    step, before = 1e-6, flow()
    for name, parameter in [("0.weight", model[0].weight), ("3.weight", model[3].weight)]:
        for index in range(0, parameter.numel(), 5):
            flat = parameter.data.view(-1)
            kept = flat[index].item()
            flat[index] = kept * (1 - step)
            fall = (before - flow()) / step
            flat[index] = kept
            assert 2 * scores[name].flatten()[index].item() == pytest.approx(fall, rel=1e-3, abs=1e-6)


def test_grasp_refuses_a_loss_without_a_second_derivative() -> None:
    def ctc(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.ctc_loss(model(x).log_softmax(-1), torch.ones(4, 1).long(), [5] * 4, [1] * 4)

    given = case(mlp(), [torch.randn(5, 4, 6)], ctc)
    with pytest.raises(ScoreError, match="cannot be differentiated twice"):
        REGISTERED["grasp"].configured({}).call(given)
    assert REGISTERED["snip"].configured({}).call(given)["0.weight"].sum() > 0


def test_grasp_from_differences_scores_what_has_no_second_derivative() -> None:
    """Torch's CTC against one in plain torch operations, which can be differentiated twice."""
    labels, frames = torch.tensor([1, 2, 1]), torch.randn(6, 1, 6).double()
    model = mlp().double()

    def torch_ctc(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.ctc_loss(model(x).log_softmax(-1), labels[None], [6], [3], reduction="sum")

    def plain_ctc(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        shares = model(x).softmax(-1)[:, 0]
        states = [0, 1, 0, 2, 0, 1, 0]
        alpha = torch.cat([shares[0, states[:2]], shares.new_zeros(5)])
        for share in shares[1:]:
            arriving = []
            for s in range(7):
                skips = s > 1 and states[s] != 0 and states[s] != states[s - 2]
                arriving.append(alpha[max(s - 1 - skips, 0) : s + 1].sum())
            alpha = torch.stack(arriving) * share[states]
        return -alpha[-2:].sum().log()

    near = REGISTERED["grasp"].configured({"exact": False}).call(case(model, [frames], torch_ctc))
    exact = REGISTERED["grasp"].configured({}).call(case(model, [frames], plain_ctc))
    assert all(torch.allclose(near[name], exact[name], rtol=1e-4, atol=1e-8) for name in exact)


# Options and precision


@pytest.mark.parametrize("name", ["snip", "taylor", "fisher", "grasp"])
def test_training_mode_is_an_option_and_repeats_its_dropout(name: str) -> None:
    model = mlp(dropout=0.5)
    given = case(model, [torch.randn(4, 6)])
    choose = REGISTERED[name].configured
    noisy = [choose({"training": True}).call(given) for _ in range(2)]
    plain = choose({}).call(given)
    assert torch.equal(noisy[0]["0.weight"], noisy[1]["0.weight"])
    assert not torch.equal(noisy[0]["0.weight"], plain["0.weight"])


def test_squares_of_half_precision_gradients_do_not_vanish() -> None:
    model = nn.Linear(2, 1, bias=False).half()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 1.0]]))
    given = case(model, [torch.tensor([[1e-4, 2e-4]]).half()], lambda model, x: model(x).float().sum())
    scores = REGISTERED["fisher"].configured({}).call(given)["weight"]
    assert scores.dtype == torch.float64
    assert select({"weight": scores}, given.mask, 1)["weight"].tolist() == [[False, True]]
    assert (scores > 0).all()
