"""P5: what a mask costs in a training step."""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from figures import NO_WORSE, Figure, Goal, compared, interleaved, skipped
from networks import MLP, BiLSTM, Conformer, Encoder
from rivals import hold_with_parametrize, hold_with_prune
from torch import nn

from ticketkit import DataError, Mask, Scope, enforced

ROUNDS = 21
Make = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-4),  # its sqrt is 8 times slower where v is 0
    "fused AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-4, fused=True),
}


def training_time(quick: bool) -> Iterator[Figure]:
    """P5: a training step with half the weights pruned, against a dense one and what the rivals take."""
    small = 16 if quick else 1
    width, wide = 256 // small, 1024 // small
    cases: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, float]] = {
        "BiLSTM-CTC": (lambda: BiLSTM(width), (40 if quick else 100, 8, 80), 2, 1.02),
        "Conformer": (lambda: Conformer(width), (8, 8 if quick else 64, width), 2, 1.02),
        "Transformer encoder": (lambda: Encoder(width), (8, 8 if quick else 64, width), 2, 1.02),
        "MLP": (lambda: MLP(wide), (64, wide), 6, 1.05),
    }
    for name, (build, input_shape, steps, most) in cases.items():
        try:
            model = build()
        except DataError as error:
            skipped(f"P5 {name}", error)
            continue
        scope = Scope.of(model)
        mask = Mask({n: torch.rand(shape) < 0.5 for n, shape in scope.shapes.items()})
        shape = f"{scope.total:,} of {scope.model_total:,} weights in scope, half pruned, input {input_shape}"
        for optimizer, make in OPTIMIZERS.items():
            contestants = training_contestants(model, torch.randn(input_shape), mask, make, 1 if quick else steps)
            seconds = interleaved(contestants, 2 if quick else ROUNDS)
            label = f"P5 training step, {name}, {optimizer}"
            for rival in ("dense", "prune", "parametrize"):
                goal = Goal("<=", most, "of dense") if rival == "dense" else NO_WORSE
                yield compared(label, seconds["ours"], {rival: seconds[rival]}, shape=shape, goal=goal)


def training_contestants(
    model: nn.Module, inputs: torch.Tensor, mask: Mask, make: Make, steps: int
) -> dict[str, Callable[[], float]]:
    """Return one job per way to train, which measures the seconds of one of `steps` steps on a copy of its own."""

    def contestant(network: nn.Module, held: Mask | None = None) -> Callable[[], float]:
        optimizer = make(network.parameters())

        def step() -> None:
            optimizer.zero_grad()
            network(inputs).backward()
            optimizer.step()

        def measure() -> float:
            with nullcontext() if held is None else enforced(network, held):
                step()  # whatever a first step sets up
                start = time.perf_counter()
                for _ in range(steps):
                    step()
                return (time.perf_counter() - start) / steps

        return measure

    return {
        "ours": contestant(copy.deepcopy(model), mask),
        "dense": contestant(copy.deepcopy(model)),
        "prune": contestant(hold_with_prune(copy.deepcopy(model), mask)),
        "parametrize": contestant(hold_with_parametrize(copy.deepcopy(model), mask)),
    }
