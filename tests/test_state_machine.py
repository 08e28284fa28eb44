"""Any history of training, pruning, saving, crashing and branching ends in the bits of a plain Python model of a run.

The model below knows nothing of ticketkit: masks are lists of bools, pruning is a sort, momentum SGD is three lines.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn

from ticketkit import IMP, Plugins, Round, Ticket, TicketError
from ticketkit.testing import convnet

STEPS, ROUNDS, LR, MOMENTUM = 3, 2, 0.1, 0.9
REWINDS = ("init", "step:1", "none")
COUNTS = (15, 8, 4)  # of 3·3 + 3·2 weights, halved twice


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 2))


def loss_of(first: torch.Tensor, second: torch.Tensor, bias: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    return nn.functional.linear(torch.tanh(nn.functional.linear(batch, first)), second, bias).square().sum()


@dataclass
class PlainRun:
    """What must be: for every round its mask, and after each of its steps the weights."""

    masks: list[list[bool]] = field(default_factory=list)
    weights: list[list[list[torch.Tensor]]] = field(default_factory=list)


@cache
def plain_run(rewind: str) -> PlainRun:
    """Train, prune and rewind without ticketkit."""
    torch.manual_seed(11)
    model = network()
    values = [model[0].weight.detach().clone(), model[2].weight.detach().clone(), model[2].bias.detach().clone()]
    generator = torch.get_rng_state()
    origin, momenta = [v.clone() for v in values], [torch.zeros_like(v) for v in values]
    start, first_step = (origin, momenta, generator), 0
    mask = [True] * COUNTS[0]
    run = PlainRun()
    for index in range(ROUNDS + 1):
        if index:
            order = sorted(range(len(mask)), key=lambda i: (not mask[i], -flat(values)[i].abs().item(), i))
            mask = [i in order[: COUNTS[index]] for i in range(len(mask))]
            first_step = 1 if rewind == "step:1" else 0
            if rewind != "none":
                values, momenta = [v.clone() for v in start[0]], [m.clone() for m in start[1]]
                torch.set_rng_state(start[2])
        values, momenta = masked(values, mask), masked(momenta, mask)
        run.masks.append(mask)
        steps: list[list[torch.Tensor]] = [[]] * first_step
        steps.append([v.clone() for v in values])
        for step in range(first_step, STEPS):
            leaves = [v.clone().requires_grad_() for v in values]
            gradients = masked(list(torch.autograd.grad(loss_of(*leaves, torch.randn(4, 3)), leaves)), mask)
            momenta = [m * MOMENTUM + g for m, g in zip(momenta, gradients, strict=True)]
            values = masked([v.add(m, alpha=-LR) for v, m in zip(values, momenta, strict=True)], mask)
            steps.append([v.clone() for v in values])
            if rewind == "step:1" and (index, step) == (0, 0):
                start = ([v.clone() for v in values], [m.clone() for m in momenta], torch.get_rng_state())
        run.weights.append(steps)
    return run


def flat(values: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([values[0].flatten(), values[1].flatten()])


def masked(values: list[torch.Tensor], mask: list[bool]) -> list[torch.Tensor]:
    keep = torch.tensor(mask)
    return [
        torch.where(keep[:9].reshape(3, 3), values[0], 0.0),
        torch.where(keep[9:].reshape(2, 3), values[1], 0.0),
        values[2],
    ]


def aside(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network without a trace in the generator that the training draws from."""
    with torch.random.fork_rng(devices=[]):
        return build()


class History(RuleBasedStateMachine):
    """A user, a power cut, and ticketkit."""

    @initialize(rewind=st.sampled_from(REWINDS))
    def begin(self, rewind: str) -> None:
        self.rewind, self.expected = rewind, plain_run(rewind)
        self.folder = Path(tempfile.mkdtemp(prefix="history"))
        self.directory = self.folder / "run"
        self.saved: tuple[int, int] | None = None
        self.current: Round | None = None
        self.finished = 0
        torch.manual_seed(11)
        self.open()

    def open(self) -> None:
        """Start, or go on, as a new process would: with a network and an optimizer of its own."""
        self.model = network()
        spec = {"name": "none"} if self.rewind == "none" else self.rewind
        self.imp = IMP(self.model, rate=0.5, rounds=ROUNDS, rewind=spec, run_dir=self.directory, plugins=Plugins())
        assert self.imp.plan == COUNTS
        self.rounds: Iterator[Round] = iter(self.imp)
        self.advance()

    def advance(self) -> None:
        """Enter the next round, as the top of a `for` loop does."""
        self.current = next(self.rounds, None)
        self.finished = len(self.imp.records)
        if self.current is not None:
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR, momentum=MOMENTUM)
            self.step = self.current.track(optimizer=self.optimizer)

    @precondition(lambda self: self.current is not None and self.step < STEPS)
    @rule()
    def train(self) -> None:
        self.optimizer.zero_grad()
        loss_of(self.model[0].weight, self.model[2].weight, self.model[2].bias, torch.randn(4, 3)).backward()
        self.optimizer.step()
        self.step += 1

    @precondition(lambda self: self.current is not None)
    @rule()
    def checkpoint(self) -> None:
        assert self.current is not None
        self.current.checkpoint(step=self.step)
        self.saved = (self.current.index, self.step)

    @precondition(lambda self: self.current is not None and self.step == STEPS)
    @rule()
    def prune_and_rewind(self) -> None:
        assert self.current is not None
        self.current.log(step=self.step)
        self.advance()

    @rule(scramble=st.integers(0, 100))
    def crash_and_resume(self, scramble: int) -> None:
        index = self.current.index if self.current else ROUNDS + 1
        self.rounds.close()  # type: ignore[attr-defined]
        torch.manual_seed(scramble)
        self.open()
        assert (self.current.index if self.current else ROUNDS + 1) == index
        if self.current is not None:
            fresh = 1 if self.rewind == "step:1" and index else 0
            assert self.step == (self.saved[1] if self.saved and self.saved[0] == index else fresh)

    @rule()
    def branch(self) -> None:
        """Copy the run's directory and go on in the copy."""
        copy = Path(tempfile.mkdtemp(dir=self.folder)) / "branch"
        shutil.copytree(self.directory, copy)
        self.directory = copy
        self.crash_and_resume(0)

    @precondition(lambda self: self.finished > 0)
    @rule()
    def save_and_reload(self) -> None:
        for ticket in self.imp.tickets:
            path = self.folder / "a.safetensors"
            ticket.save(path)
            loaded = Ticket.load(path)
            assert loaded == ticket
            stranger = aside(network)
            loaded.apply_(stranger)
            loaded.verify(stranger)

    @rule()
    def load_wrong_ticket(self) -> None:
        other = aside(convnet)
        before = {name: p.clone() for name, p in other.named_parameters()}
        ticket = Ticket(self.imp.scope.ones())
        with pytest.raises(TicketError, match="another architecture"):
            ticket.apply_(other)
        assert all(p.equal(before[name]) for name, p in other.named_parameters())

    @invariant()
    def weights_and_masks_are_those_of_the_plain_run(self) -> None:
        for index, ticket in enumerate(self.imp.tickets if hasattr(self, "imp") else ()):
            found = torch.cat([ticket.mask[name].flatten() for name in ticket.mask]).tolist()
            assert found == self.expected.masks[index]
        if getattr(self, "current", None) is None:
            return
        index, step = self.current.index, self.step  # type: ignore[union-attr]
        here = [p.detach() for p in (self.model[0].weight, self.model[2].weight, self.model[2].bias)]
        assert all(a.equal(b) for a, b in zip(here, self.expected.weights[index][step], strict=True))

    def teardown(self) -> None:
        if getattr(self, "folder", None):
            self.rounds.close()  # type: ignore[attr-defined]
            shutil.rmtree(self.folder)


TestHistory = History.TestCase
TestHistory.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.parametrize("rewind", REWINDS)
def test_the_plain_run_itself_prunes_and_rewinds(rewind: str) -> None:
    run = plain_run(rewind)
    assert [sum(mask) for mask in run.masks] == list(COUNTS)
    assert len({tuple(mask) for mask in run.masks}) == 3
