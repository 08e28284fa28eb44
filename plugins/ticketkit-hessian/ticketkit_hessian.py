"""A pruning criterion for ticketkit: Optimal Brain Damage, with the curvature of the loss estimated at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field

import ticketkit

if TYPE_CHECKING:
    Tensors = dict[str, ticketkit.Tensor]


class ObdOptions(ticketkit.Options):
    """How the Hessian's diagonal is estimated, and what becomes of negative curvature."""

    samples: int = Field(default=8, strict=True, ge=1)
    """Random directions; each takes one pass over the batches. The error falls as 1 / √samples: see the README."""
    clamp: bool = False
    """Whether a weight along which the loss curves downwards scores 0, as along a flat direction."""
    training: bool = False
    """Whether the network runs as in training, with dropout and batch statistics."""
    exact: bool = True
    """Whether to differentiate twice; without, differences of gradients stand in, for losses such as CTC."""


@ticketkit.hookimpl
def ticketkit_register_criteria(register: Callable[..., None]) -> None:
    """Register the criterion under its name."""
    register("obd", obd, options=ObdOptions, needs={"gradients"})


def obd(inputs: ticketkit.ScoreInputs, *, options: ObdOptions) -> Tensors:
    """Return the saliency ½ h w², h the weight's second derivative of the mean loss over all batches.

    LeCun, Denker & Solla 1990 (Optimal Brain Damage, section 2): to second order this is how much the loss rises when
    the weight goes, if training has converged and weights do not interact. Their rule for h is exact only for layers of
    a certain form; here it is estimated for any network by `diagonal`.

    Away from a minimum, or with few samples, some h are negative. By default the score is then negative as the formula
    says, so such weights go first, those first whose removal promises the loss the deepest fall. With `clamp` they
    score 0; ties go by position, so choose it only where negative curvature is noise and rare.
    """
    curvature = diagonal(inputs, options)
    if options.clamp:
        curvature = {name: values.clamp(min=0) for name, values in curvature.items()}
    return {name: values * inputs.weights[name].detach().cpu().double() ** 2 / 2 for name, values in curvature.items()}


def diagonal(inputs: ticketkit.ScoreInputs, options: ObdOptions) -> Tensors:
    """Return the diagonal of the mean loss's Hessian H over the kept weights, zero elsewhere, in float64 on the CPU.

    Hutchinson's method (Bekas, Kokiopoulou & Saad 2007): the mean over `samples` of z ⊙ Hz, where z is ±1 at random,
    drawn from `inputs.generator`. It is unbiased, with a variance of Σ_{j≠i} H_ij² / samples at i, so that a diagonal H
    is found exactly with one sample. Pruned weights have z = 0: they stay what they are, and would only add noise.
    """
    import torch

    total: Tensors = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in inputs.mask.shapes.items()}
    for _ in range(options.samples):
        signs = {name: _signs(inputs, name) for name in inputs.mask}
        batches = 0
        products: Tensors = {name: torch.zeros_like(values) for name, values in total.items()}
        for product in inputs.probe.hessian_products(signs, training=options.training, exact=options.exact):
            batches += 1
            for name, values in product.items():
                products[name] += values.detach().cpu().double()
        for name, values in products.items():
            total[name] += values * signs[name] / (batches * options.samples)
    return total


def _signs(inputs: ticketkit.ScoreInputs, name: str) -> ticketkit.Tensor:
    """Return a random sign for every kept weight of a parameter, and zero for the others."""
    import torch

    kept = inputs.mask[name]
    coins = torch.randint(0, 2, kept.shape, generator=inputs.generator, dtype=torch.float32)
    return (2 * coins - 1).masked_fill(~kept, 0)
