"""P10: what iterative pruning costs beside the trainings it consists of."""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from figures import NO_WORSE, Figure, Goal, compared, interleaved
from networks import LeNet5
from processes import started
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
    with TemporaryDirectory() as folder:
        spent = [all_rounds(steps, rounds, Path(folder, str(run))) for run in range(runs)]
    shape = f"LeNet-5, {runs} runs of {rounds + 1} trainings of {steps} steps of 60 images"
    totals = {name: [one.total for run in spent for one in run[name]] for name in spent[0]}
    for name, where in (("ours", "in memory"), ("ours on disk", "with a run directory")):
        beside = [sum(one.beside for one in run[name]) for run in spent]
        whole = {"the run": [sum(one.total for one in run[name]) for run in spent]}
        label = f"P10 a run beside its trainings, {where}"
        yield compared(label, beside, whole, shape=shape, goal=Goal("<=", 0.01, "of the run"))
        label = f"P10 a round, {where}"
        goal = Goal("<=", 1.05, "of a dense training")
        yield compared(label, totals[name], {"dense": totals["dense"]}, shape=shape, goal=goal)
        yield compared(label, totals[name], {"prune": totals["prune"]}, shape=shape, goal=NO_WORSE)


def all_rounds(steps: int, rounds: int, run_dir: Path) -> dict[str, list[Spent]]:
    """Return what every contestant spent in every round; each lives in a process of its own and waits for its turn."""
    contestants = {
        "dense": (dense_rounds,),
        "ours": (imp_rounds,),
        "ours on disk": (imp_rounds, run_dir),
        "prune": (prune_rounds,),
    }
    with ExitStack() as running:
        turns = {}
        for name, (contestant, *options) in contestants.items():
            child, pipe = started(take_turns, contestant, steps, rounds, *options)
            running.callback(child.join)
            running.enter_context(pipe)
            turns[name] = partial(one_turn, pipe)
        return interleaved(turns, rounds + 1)


def one_turn(pipe: Connection) -> Spent:
    """Let a contestant run one round and return what it spent."""
    pipe.send("next")
    return pipe.recv()


def take_turns(pipe: Connection, contestant: Callable[..., Iterator[Spent]], steps: int, *options: Any) -> None:
    """Run one round whenever it is asked for, until nobody asks any more."""
    train = trainer(steps)
    train(LeNet5())  # whatever a first training sets up
    measured = contestant(LeNet5(), train, *options)
    with suppress(EOFError):
        while pipe.recv():
            pipe.send(next(measured))


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
