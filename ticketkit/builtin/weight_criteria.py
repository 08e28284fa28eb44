"""Built-in criteria that look at weights alone: trained ones, and those they began with."""

from collections.abc import Mapping
from typing import Literal

import torch

from ticketkit.criterion import Criterion, ElementwiseScores, ScoreInputs
from ticketkit.errors import ScoreError
from ticketkit.options import Options
from ticketkit.sharding import placed_like, whole


def magnitude(inputs: ScoreInputs) -> Mapping[str, torch.Tensor]:
    """Return |w|, compared across parameters as it is (Han et al. 2015; the criterion of Audio Lottery)."""
    return ElementwiseScores(lambda _, weights: weights.abs(), inputs.weights)


def magnitude_over_init(inputs: ScoreInputs) -> Mapping[str, torch.Tensor]:
    """Return |w| divided by the mean |w0| of its parameter, so that layers of different initial scale compare fairly.

    Raw global magnitude empties layers whose initial weights are small; this undoes their scale and nothing else.
    Raises `ScoreError` for a parameter that was initialised to zero, which has no scale.
    """
    scales = {name: whole(initial).abs().mean(dtype=torch.float64) for name, initial in inputs.initial.items()}
    if zero := [name for name, scale in scales.items() if not scale > 0 and inputs.initial[name].numel()]:
        raise ScoreError(
            f"magnitude_over_init needs initial weights with a scale, but {', '.join(zero)} start at zero; "
            "exclude them from the scope or use 'magnitude'"
        )
    return ElementwiseScores(
        lambda name, weights: weights.abs().to(torch.promote_types(weights.dtype, torch.float32)) / scales[name].item(),
        inputs.weights,
    )


def layer_normalised_magnitude(inputs: ScoreInputs) -> Mapping[str, torch.Tensor]:
    """Return |w| / ‖w‖₂, the norm taken over the kept weights of its own parameter, in float64.

    Within a parameter the order is that of `magnitude`; across parameters only the share in the norm counts. Weights of
    a parameter that is zero as a whole score 0.
    """
    peaks, norms = {}, {}
    for name in inputs.mask:
        kept = _kept(inputs, name)
        peaks[name] = _peak(kept)
        norms[name] = torch.linalg.vector_norm(kept / peaks[name]).item() or 1.0
    return ElementwiseScores(
        lambda name, weights: weights.to("cpu", torch.float64).abs() / peaks[name] / norms[name], inputs.weights
    )


def magnitude_increase(inputs: ScoreInputs) -> Mapping[str, torch.Tensor]:
    """Return |w| − |w0|: what grew in training stays (Zhou et al. 2019, "magnitude increase"), in float64."""
    return ElementwiseScores(
        lambda _, weights, initial: weights.to("cpu", torch.float64).abs() - initial.to("cpu", torch.float64).abs(),
        inputs.weights,
        inputs.initial,
    )


def signed_movement(inputs: ScoreInputs) -> Mapping[str, torch.Tensor]:
    """Return w · (w − w0): positive where training moved a weight away from zero, in float64.

    Movement pruning accumulates S = −Σ_t w_t · ∂L/∂w_t while it trains (Sanh et al. 2020). This is its version
    from end points alone: under plain gradient descent −Σ_t ∂L/∂w_t is proportional to w − w0, and w_t is taken at the
    end of training. Nothing has to be recorded; what happened on the way is lost.
    """

    def moved(_: str, weights: torch.Tensor, initial: torch.Tensor) -> torch.Tensor:
        wide = weights.to("cpu", torch.float64)
        return wide * (wide - initial.to("cpu", torch.float64))

    return ElementwiseScores(moved, inputs.weights, inputs.initial)


def lamp(inputs: ScoreInputs) -> Mapping[str, torch.Tensor]:
    """Return w² / Σ v² over the kept weights v of its parameter that are no smaller (Lee et al. 2021: LAMP).

    The largest weight of every parameter scores 1, so no parameter is emptied before all are down to one weight. Of
    equal magnitudes the earlier counts as larger, the order in which `select` breaks ties. In float64, each parameter
    scaled by its largest weight first.
    """
    return {
        name: placed_like(_lamp(_kept(inputs, name), inputs.mask[name]), inputs.weights[name]) for name in inputs.mask
    }


def random(inputs: ScoreInputs) -> Mapping[str, torch.Tensor]:
    """Return uniform random scores from the run's own generator: the control without any criterion."""
    return {
        name: placed_like(torch.rand(weights.shape, generator=inputs.generator, dtype=torch.float64), weights)
        for name, weights in inputs.weights.items()
    }


INVERTIBLE: dict[str, Criterion] = {
    "magnitude": magnitude,
    "magnitude_over_init": magnitude_over_init,
    "layer_normalised_magnitude": layer_normalised_magnitude,
    "magnitude_increase": magnitude_increase,
    "signed_movement": signed_movement,
    "lamp": lamp,
}


class InvertedOptions(Options):
    """Whose scores are inverted."""

    of: Literal[
        "magnitude",
        "magnitude_over_init",
        "layer_normalised_magnitude",
        "magnitude_increase",
        "signed_movement",
        "lamp",
    ] = "magnitude"


def inverted(inputs: ScoreInputs, *, options: InvertedOptions) -> Mapping[str, torch.Tensor]:
    """Return the negated scores of another criterion of weights, `of`: the control that keeps what that would prune."""
    scores = INVERTIBLE[options.of](inputs)
    return {name: -scores[name] for name in scores}


def _kept(inputs: ScoreInputs, name: str) -> torch.Tensor:
    """Return the kept weights of one parameter, flat, in float64 on the CPU."""
    return whole(inputs.weights[name]).to(torch.float64)[inputs.mask[name]]


def _peak(values: torch.Tensor) -> float:
    """Return the largest magnitude, or 1 where there is none, to divide by before squaring."""
    return (values.abs().max().item() if values.numel() else 0.0) or 1.0


def _lamp(kept: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    squares = (kept / _peak(kept)).square()
    order = torch.sort(kept.abs(), descending=True, stable=True).indices
    ranked = squares[order]
    shares = ranked / ranked.cumsum(0).clamp(min=torch.finfo(torch.float64).tiny)  # all zero: 0 / tiny = 0
    scores = torch.zeros(mask.shape, dtype=torch.float64)
    scores[mask] = torch.empty_like(shares).scatter_(0, order, shares)
    return scores
