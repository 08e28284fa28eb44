"""Built-in criteria: what a weight is worth."""

from collections.abc import Mapping

import torch

from ticketkit.criterion import ElementwiseScores, ScoreInputs
from ticketkit.errors import ScoreError


def magnitude(inputs: ScoreInputs) -> Mapping[str, torch.Tensor]:
    """Return |w|, compared across parameters as it is (Han et al. 2015; the criterion of Audio Lottery)."""
    return ElementwiseScores(lambda _, weights: weights.abs(), inputs.weights)


def magnitude_over_init(inputs: ScoreInputs) -> Mapping[str, torch.Tensor]:
    """Return |w| divided by the mean |w0| of its parameter, so that layers of different initial scale compare fairly.

    Raw global magnitude empties layers whose initial weights are small; this undoes their scale and nothing else.
    Raises `ScoreError` for a parameter that was initialised to zero, which has no scale.
    """
    scales = {name: initial.abs().mean(dtype=torch.float64) for name, initial in inputs.initial.items()}
    if zero := [name for name, scale in scales.items() if not scale > 0 and inputs.initial[name].numel()]:
        raise ScoreError(
            f"magnitude_over_init needs initial weights with a scale, but {', '.join(zero)} start at zero; "
            "exclude them from the scope or use 'magnitude'"
        )
    return ElementwiseScores(
        lambda name, weights: weights.abs().to(torch.promote_types(weights.dtype, torch.float32)) / scales[name].item(),
        inputs.weights,
    )


def random(inputs: ScoreInputs) -> Mapping[str, torch.Tensor]:
    """Return uniform random scores from the run's own generator: the control without any criterion."""
    return {
        name: torch.rand(weights.shape, generator=inputs.generator, dtype=torch.float64)
        for name, weights in inputs.weights.items()
    }
