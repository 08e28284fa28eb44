"""Built-in criteria that look at the loss's derivatives on the user's batches.

All sum in float64 on the CPU. A batch counts as one example of the mean: give batches of one size. By default the
network runs in evaluation mode; `training: true` runs it as in training, dropout and batch statistics included.
"""

from collections.abc import Callable, Iterable, Mapping

import torch

from ticketkit.criterion import ScoreInputs
from ticketkit.options import Options

Tensors = dict[str, torch.Tensor]


class GradientOptions(Options):
    """How the network runs while its gradients are taken."""

    training: bool = False


class GraspOptions(GradientOptions):
    """How the network runs, and whether second derivatives are taken exactly or from differences of gradients."""

    exact: bool = True


def snip(inputs: ScoreInputs, *, options: GradientOptions) -> Mapping[str, torch.Tensor]:
    """Return |g · w| with g the mean gradient over all batches (Lee et al. 2019: SNIP, s_j ∝ |g_j|, g_j = ∂L/∂c_j).

    The paper divides by the sum of all scores, which changes no order and is left out. It scores a network at
    initialisation; here it is the trained one that is scored.
    """
    gradient = _mean(inputs.probe.gradients(training=options.training))
    return {name: (gradient[name] * weights).abs() for name, weights in _weights(inputs).items()}


def taylor(inputs: ScoreInputs, *, options: GradientOptions) -> Mapping[str, torch.Tensor]:
    """Return the mean over batches of |g_b · w|, g_b a batch's gradient (Molchanov et al. 2017, Θ_TE).

    To first order this is how much the loss of a batch changes when the weight goes; unlike in `snip`, changes of
    different sign do not cancel between batches. Molchanov et al. 2019 (I^(1) = (g w)²) average
    the squares instead: that is the order of `fisher`.
    """
    slope = _mean(inputs.probe.gradients(training=options.training), torch.abs)
    return {name: slope[name] * weights.abs() for name, weights in _weights(inputs).items()}


def fisher(inputs: ScoreInputs, *, options: GradientOptions) -> Mapping[str, torch.Tensor]:
    """Return ½ F w² with F the mean over batches of g_b² (Theis et al. 2018: Fisher pruning, per weight).

    To second order this is how much the loss rises when the weight goes, if training has converged and the Hessian is
    the diagonal empirical Fisher information. That information is a mean over examples; here over batches, of which
    every gradient is one, so the two agree for batches of one example.
    """
    information = _mean(inputs.probe.gradients(training=options.training), torch.square)
    return {name: information[name] * weights.square() / 2 for name, weights in _weights(inputs).items()}


def grasp(inputs: ScoreInputs, *, options: GraspOptions) -> Mapping[str, torch.Tensor]:
    """Return w · (H g): how much the squared gradient norm falls, to first order, when the weight goes (GraSP).

    Wang et al. 2020 prune the weights with the highest S = −w · (H g), whose removal keeps or raises the
    gradient norm; as the higher score is kept here, the sign is turned round. g and H are means over all batches, of
    the network as it is pruned: only kept weights count in the norm. The loss is used as it is, without the paper's
    temperature. A loss without a second derivative, such as CTC in torch, needs `exact: false`, or raises `ScoreError`.
    """
    mask, probe = inputs.mask, inputs.probe
    gradient = _mean(probe.gradients(training=options.training))
    flow = {name: slope.masked_fill(~mask[name], 0) for name, slope in gradient.items()}
    product = _mean(probe.hessian_products(flow, training=options.training, exact=options.exact))
    return {name: product[name] * weights for name, weights in _weights(inputs).items()}


def _weights(inputs: ScoreInputs) -> Tensors:
    return {name: inputs.weights[name].detach().cpu().double() for name in inputs.mask}


def _mean(batches: Iterable[Tensors], function: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.clone) -> Tensors:
    """Return the mean over batches of a function of every tensor."""
    total: Tensors = {}
    number = 0
    for tensors in batches:
        number += 1
        for name, tensor in tensors.items():
            values = function(tensor.detach().cpu().double())
            total[name] = total[name].add_(values) if name in total else values
    return {name: values.div_(number) for name, values in total.items()}
