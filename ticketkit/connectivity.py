"""Linear mode connectivity: is there a barrier on the straight line between two networks?

Frankle, Dziugaite, Roy and Carbin, "Linear Mode Connectivity and the Lottery Ticket Hypothesis" (ICML 2020): a network
is stable to SGD noise from a state on when two trainings from there, with different seeds, end in the same linearly
connected minimum; rewinding to a step from which a sparse network is stable is what finds winning tickets.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf, isnan, nan
from typing import TypeVar
from warnings import warn

import torch
from torch import nn

from ticketkit.errors import ConfigError, NoEffectWarning, ScopeError
from ticketkit.mask import shape_differences
from ticketkit.rng import RngState, seeded
from ticketkit.snapshot import Snapshot

ALPHAS = tuple(i / 10 for i in range(11))
"""Where a path is evaluated unless told otherwise; the paper takes 30 evenly spaced points."""

Evaluate = Callable[[nn.Module], float]
Recalibrate = Callable[[nn.Module], object]
Start = TypeVar("Start", bound=Hashable)


@dataclass(frozen=True)
class LinearPath:
    """An error or a loss (lower is better) at points (1 − α)·a + α·b of the straight line from network a to b."""

    alphas: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def barrier(self) -> float:
        """The error barrier: the highest value on the path minus the mean of its two ends; NaN if any value is NaN.

        This is the definition of Frankle et al. 2020, section 2: the largest error on the path over the mean error of
        its ends. They call a network stable when the barrier is about 0 (below 2 % of error). It is never negative, and
        half the difference of the ends where the path merely slopes.
        """
        if any(isnan(value) for value in self.values):
            return nan
        return max(self.values) - (self.values[0] + self.values[-1]) / 2

    @property
    def highest(self) -> float:
        """The first α at which the value is highest, or NaN."""
        heights = [inf if isnan(value) else value for value in self.values]
        return self.alphas[heights.index(max(heights))]


def interpolate_(model: nn.Module, a: Snapshot, b: Snapshot, alpha: float) -> None:
    """Set a model to (1 − alpha)·a + alpha·b, in place; gradients are cleared, generators left alone.

    Parameters and floating-point buffers, BatchNorm statistics among them, are interpolated in float64 and rounded to
    their dtype; where both ends are equal they are kept bit for bit, so what is pruned at both stays exactly zero and
    an infinity in an attention mask stays one. Tensors of other dtypes (counters) come from the nearer end, `a` if
    neither is. At 0 and 1 the model is bit-equal to `a` and `b`.
    Raises `ConfigError` for an alpha outside [0, 1], `ScopeError` when snapshots or model do not fit each other.

    >>> model = nn.Linear(2, 1)
    >>> a = Snapshot.capture(model)
    >>> model.weight.data.zero_()
    tensor([[0., 0.]])
    >>> interpolate_(model, a, Snapshot.capture(model), 0.5)
    >>> torch.equal(model.weight, a.tensors["parameter/weight"] / 2)
    True
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha must lie between 0 (the first network) and 1 (the second), not {alpha}")
    shapes = [{key: tuple(tensor.shape) for key, tensor in s.tensors.items()} for s in (a, b)]
    if problems := shape_differences(*shapes):
        raise ScopeError("the two snapshots are not of one model:\n  " + "\n  ".join(problems))
    mixed = {key: _mixed(tensor, b.tensors[key], alpha) for key, tensor in a.tensors.items()}
    replace(a, tensors=mixed).restore_tensors(model)


def linear_path(
    model: nn.Module,
    a: Snapshot,
    b: Snapshot,
    evaluate: Evaluate,
    *,
    alphas: Sequence[float] = ALPHAS,
    recalibrate: Recalibrate | None = None,
) -> LinearPath:
    """Return `evaluate(model)` (an error or a loss: lower is better) along the straight line from `a` to `b`.

    Interpolated BatchNorm statistics are not those of the interpolated network, which alone can raise a barrier; pass
    `recalibrate(model)`, called before every evaluation, to estimate them anew on training data. Every point starts
    from the same training flags and random numbers. Afterwards the model is bit-identical: parameters, buffers,
    gradients, training flags and the global generators.
    Raises `ConfigError` unless `alphas` rise from 0 to 1, and when `evaluate` does not return a number.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> ends = []
    >>> for weight in (-1.0, 1.0):
    ...     _ = model.weight.data.fill_(weight)
    ...     ends.append(Snapshot.capture(model))
    >>> path = linear_path(model, *ends, lambda m: 1 - m.weight.item() ** 2)
    >>> path.barrier, path.highest
    (1.0, 0.5)
    """
    points = tuple(float(alpha) for alpha in alphas)
    if len(points) < 2 or (points[0], points[-1]) != (0, 1) or any(x >= y for x, y in pairwise(points)):
        raise ConfigError(f"alphas must rise from 0 to 1, both included; got {points}")
    values = []
    for alpha in points:
        with _untouched(model):
            interpolate_(model, a, b, alpha)
            if recalibrate is not None:
                recalibrate(model)
            values.append(_number(evaluate(model)))
    return LinearPath(points, tuple(values))


def instability(
    model: nn.Module,
    train: Callable[[nn.Module, int], object],
    evaluate: Evaluate,
    starts: Mapping[Start, Snapshot],
    *,
    seeds: tuple[int, int] = (0, 1),
    alphas: Sequence[float] = ALPHAS,
    recalibrate: Recalibrate | None = None,
) -> dict[Start, LinearPath]:
    """Return for every start the path between two networks trained from it with two seeds (instability analysis).

    `starts` are snapshots of one training at several steps, keyed by step; the earliest whose barrier is about 0 is the
    step to rewind to. `train(model, seed)` trains to the end from the model's present state with a fresh optimizer; the
    seed decides the order of the data, and the global generators (dropout) are seeded with it too. To analyse a sparse
    network, train inside `enforced(model, mask)`: zeros at both ends are zeros all along. A single pair of seeds is a
    noisy estimate: repeat with others. The model is left as `linear_path` leaves it.
    Raises `ConfigError` for equal seeds; warns `NoEffectWarning` when both seeds lead to the same network, bit for bit.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> def train(model, seed):
    ...     model.weight.data += (-1) ** seed
    >>> paths = instability(model, train, lambda m: m.weight.item() ** 2, {0: Snapshot.capture(model)})
    >>> paths[0].barrier > 0
    True
    """
    if len(seeds) != 2 or seeds[0] == seeds[1]:
        raise ConfigError(f"seeds must be two different numbers, not {seeds}; equal ones train the same network twice")
    paths = {}
    for step, start in starts.items():
        a, b = (_trained(model, train, start, seed) for seed in seeds)
        if all(torch.equal(tensor, b.tensors[key]) for key, tensor in a.tensors.items()):
            warn(
                f"from {step!r} the seeds {seeds[0]} and {seeds[1]} led to the same network, bit for bit; the barrier "
                "says nothing unless train(model, seed) orders its data by the seed",
                NoEffectWarning,
                stacklevel=2,
            )
        paths[step] = linear_path(model, a, b, evaluate, alphas=alphas, recalibrate=recalibrate)
    return paths


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Put parameters, buffers, training flags and global generators back at the end of the block.

    The gradients of before are put back as the tensors they were: take them off the model before anything adds to them,
    as restoring a snapshot does.
    """
    before, rng = Snapshot.capture(model), RngState.capture()
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        before.restore_tensors(model)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, training in flags:
            module.training = training
        rng.restore()


def _trained(model: nn.Module, train: Callable[[nn.Module, int], object], start: Snapshot, seed: int) -> Snapshot:
    with _untouched(model), seeded(seed):
        start.restore_tensors(model)
        train(model, seed)
        return Snapshot.capture(model)


def _mixed(a: torch.Tensor, b: torch.Tensor, alpha: float) -> torch.Tensor:
    if alpha in (0, 1) or not (a.is_floating_point() or a.is_complex()):
        return b if alpha > 0.5 else a
    wide = torch.promote_types(a.dtype, torch.float64)
    mixed = ((1 - alpha) * a.to(wide) + alpha * b.to(wide)).to(a.dtype)
    return torch.where(a == b, a, mixed)


def _number(value: float) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"evaluate(model) must return a number, not {type(value).__name__}") from error
