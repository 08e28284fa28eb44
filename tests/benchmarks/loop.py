"""P10: what iterative pruning costs beside the trainings it consists of."""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from figures import NO_WORSE, Figure, Goal, compared
from networks import LeNet5
from torch import nn
from torch.nn.utils import prune

from ticketkit import IMP

Train = Callable[[nn.Module], None]


@dataclass(frozen=True)
class Spent:
    """The seconds of one round: in the user's training, and beside it."""

    training: float
    beside: float

    @property
    def total(self) -> float:
        """Seconds of the whole round."""
        return self.training + self.beside


def imp_overhead(quick: bool) -> Iterator[Figure]:
    """P10: IMP on a LeNet-5, an epoch of 60,000 images a round, with Adam as in Frankle & Carbin 2019."""
    steps, rounds, runs = (2, 2, 1) if quick else (1000, 10, 2)
    train = trainer(steps)
    with TemporaryDirectory() as folder:
        spent: dict[str, list[Spent]] = {}
        for run in range(runs):
            model = LeNet5()
            contestants = {
                "dense": dense_rounds(copy.deepcopy(model), train, rounds),
                "ours": imp_rounds(copy.deepcopy(model), train, rounds),
                "ours on disk": imp_rounds(copy.deepcopy(model), train, rounds, Path(folder, str(run))),
                "prune": prune_rounds(copy.deepcopy(model), train, rounds),
            }
            for name, measured in taking_turns(contestants, rounds + 1).items():
                spent.setdefault(name, []).extend(measured)
    shape = f"LeNet-5, {rounds + 1} trainings of {steps} steps of 60 images, {runs} runs"
    totals = {name: [one.total for one in measured] for name, measured in spent.items()}
    for name, where in (("ours", "in memory"), ("ours on disk", "with a run directory")):
        beside = [one.beside for one in spent[name]]
        label = f"P10 IMP beside training, {where}"
        goal = Goal("<=", 0.01, "of the wall time")
        yield compared(label, beside, {"the whole round": totals[name]}, shape=shape, goal=goal)
        label = f"P10 IMP altogether, {where}"
        goal = Goal("<=", 1.05, "of dense trainings")
        yield compared(label, totals[name], {"dense": totals["dense"]}, shape=shape, goal=goal)
        yield compared(label, totals[name], {"prune": totals["prune"]}, shape=shape, goal=NO_WORSE)


def taking_turns(contestants: dict[str, Iterator[Spent]], rounds: int) -> dict[str, list[Spent]]:
    """Return what every contestant spent in every round; each round starts with another one."""
    spent: dict[str, list[Spent]] = {name: [] for name in contestants}
    order = list(contestants)
    for turn in range(rounds):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            spent[name].append(next(contestants[name]))
    return spent


def trainer(steps: int) -> Train:
    """Return a training of a number of steps on random images; all models see the same."""
    images = torch.randn(100, 60, 1, 28, 28)
    labels = torch.randint(10, (100, 60))

    def train(model: nn.Module) -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=1.2e-3)
        for step in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[step % 100]), labels[step % 100]).backward()
            optimizer.step()

    return train


def dense_rounds(model: nn.Module, train: Train, rounds: int) -> Iterator[Spent]:
    """Train a dense network again and again from the same weights; putting them back is not counted."""
    for _ in range(rounds + 1):
        fresh = copy.deepcopy(model)
        start = time.perf_counter()
        train(fresh)
        yield Spent(time.perf_counter() - start, 0.0)


def imp_rounds(model: nn.Module, train: Train, rounds: int, run_dir: Path | None = None) -> Iterator[Spent]:
    """Find tickets with IMP; a round counts until the next begins, the first from before IMP is made."""
    before = time.perf_counter()
    iteration = iter(IMP(model, rate=0.2, rounds=rounds, run_dir=run_dir))
    current = next(iteration)
    opening = time.perf_counter() - before
    for _ in range(rounds + 1):
        start = time.perf_counter()
        train(model)
        trained = time.perf_counter()
        current.log(index=current.index)
        current = next(iteration, current)
        yield Spent(trained - start, time.perf_counter() - trained + opening)
        opening = 0.0


def prune_rounds(model: nn.Module, train: Train, rounds: int) -> Iterator[Spent]:
    """Do the same with torch.nn.utils.prune: prune a fifth of what is left, put back what the rest began with."""
    weights = [(module, "weight") for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    saved = copy.deepcopy(model.state_dict())
    for _ in range(rounds + 1):
        start = time.perf_counter()
        train(model)
        trained = time.perf_counter()
        prune.global_unstructured(weights, prune.L1Unstructured, amount=0.2)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(saved[name.removesuffix("_orig")])
        yield Spent(trained - start, time.perf_counter() - trained)
