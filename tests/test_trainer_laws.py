"""`check_trainer` refuses every kind of bad trainer, and says why."""

import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ticketkit import Progress
from ticketkit.testing import ConformanceError, check_trainer

EPOCHS = 2


def backbone() -> SimpleNamespace:
    """Return a bundle with dropout and BatchNorm, which react to modes."""
    layers = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1)
    return SimpleNamespace(module=nn.Sequential(*layers))


class Squares:
    """Points and their squared lengths."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.splits = {name: torch.randn(8, 3, generator=draw) for name in ("train", "dev", "test")}

    def describe(self) -> dict[str, Any]:
        return {"name": "squares"}


class Regression:
    """A good trainer; mutants override a part."""

    lr = 0.05

    def __init__(self, bundle: Any, corpus: Any, *, seed: int) -> None:
        self.module, self.splits, self.seed = bundle.module, corpus.splits, seed

    def train(self, progress: Callable[[Progress], None]) -> Any:
        optimizer = self.optimizer()
        best: dict[str, float] = {}
        chosen: dict[str, Any] = {}
        for epoch in range(1, EPOCHS + 1):
            loss = self.epoch(optimizer, epoch)
            metrics = self.evaluate("dev")
            progress(self.report(epoch, loss, metrics))
            if not best or metrics["loss"] < best["loss"]:
                best, chosen = metrics, {key: tensor.clone() for key, tensor in self.module.state_dict().items()}
        self.module.load_state_dict(chosen)
        return best

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.module.parameters(), lr=self.lr, momentum=0.9)

    def epoch(self, optimizer: torch.optim.Optimizer, epoch: int) -> float:
        self.module.train()
        loss = torch.zeros(())
        for batch in self.batches(epoch):
            optimizer.zero_grad()
            loss = self.scoring_loss(self.module, batch)
            loss.backward()
            optimizer.step()
        return loss.item()

    def batches(self, epoch: int) -> list[torch.Tensor]:
        order = torch.randperm(8, generator=torch.Generator().manual_seed(1000 * self.seed + epoch))
        return list(self.splits["train"][order].split(4))

    def report(self, epoch: int, loss: float, metrics: dict[str, float]) -> Any:
        return Progress(epoch=epoch, epochs=EPOCHS, loss=loss, metrics=metrics)

    def evaluate(self, split: str) -> Any:
        modes = [part.training for part in self.module.modules()]
        self.module.eval()
        with torch.no_grad():
            loss = self.scoring_loss(self.module, self.splits[split]).item()
        for part, mode in zip(self.module.modules(), modes, strict=True):
            part.training = mode
        return {"loss": loss}

    @property
    def steps_per_epoch(self) -> Any:
        return 2

    def scoring_batches(self) -> Any:
        return self.batches(0)

    def scoring_loss(self, module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return (module(batch).squeeze(-1) - batch.square().sum(-1)).square().mean()


class Plain:
    """A trainer without what is optional: no batches to score with, no steps per epoch."""

    def __init__(self, bundle: Any, corpus: Any, *, seed: int) -> None:
        self.inner = Regression(bundle, corpus, seed=seed)

    def train(self, progress: Callable[[Progress], None]) -> Any:
        return self.inner.train(progress)

    def evaluate(self, split: str) -> Any:
        return self.inner.evaluate(split)


class Resuming(Regression):
    """Trains rounds of a run, saving after every epoch, and keeps the last weights."""

    def train(self, progress: Callable[[Progress], None]) -> Any:
        return self.from_epoch(1, self.optimizer(), progress, lambda step: None)

    def train_round(self, current: Any, progress: Callable[[Progress], None]) -> Any:
        optimizer = self.optimizer()
        start = self.after(current.track(optimizer=optimizer))
        return self.from_epoch(start, optimizer, progress, lambda step: current.checkpoint(step=step))

    def after(self, step: int) -> int:
        return step // self.steps_per_epoch + 1

    def from_epoch(self, start: int, optimizer: Any, progress: Callable[[Progress], None], save: Any) -> Any:
        metrics = {}
        for epoch in range(start, EPOCHS + 1):
            loss, metrics = self.epoch(optimizer, epoch), self.evaluate("dev")
            progress(self.report(epoch, loss, metrics))
            save(epoch * self.steps_per_epoch)
        return metrics


class Hasty(Regression):
    """Has announced one epoch more than it trains."""

    def report(self, epoch: int, loss: float, metrics: dict[str, float]) -> Any:
        return Progress(epoch=epoch, epochs=EPOCHS + 1, loss=loss, metrics=metrics)


@pytest.mark.parametrize("good", [Regression, Plain, Resuming])
def test_good_trainers_pass(good: type) -> None:
    check_trainer(good, backbone=backbone, corpus=Squares)


def test_a_trainer_may_stop_early_if_that_is_said() -> None:
    check_trainer(Hasty, backbone=backbone, corpus=Squares, stops_early=True)
    with pytest.raises(
        ConformanceError, match=r"from epoch 1 to epochs.*say stops_early=True.*\n.*\n.*\[1, 2\] of \[3, 3\]"
    ):
        check_trainer(Hasty, backbone=backbone, corpus=Squares)


def test_the_global_generators_are_where_they_were() -> None:
    before = torch.get_rng_state()
    check_trainer(Plain, backbone=backbone, corpus=Squares)
    assert torch.equal(before, torch.get_rng_state())


# Mutants


def with_(**parts: Any) -> type:
    """Return the good trainer with some methods replaced."""
    return type("Mutant", (Regression,), parts)


def changed(part: str, change: Callable[..., Any]) -> type:
    """Return the good trainer with what one method returns changed."""
    return with_(**{part: lambda self, *args: change(getattr(Regression, part)(self, *args))})


def reported(**facts: Any) -> type:
    """Return the good trainer with other reports, computed from the good ones."""

    def report(self: Regression, epoch: int, loss: float, metrics: dict[str, float]) -> Progress:
        good = {"epoch": epoch, "epochs": EPOCHS, "loss": loss}
        return Progress(**{key: facts.get(key, lambda value: value)(value) for key, value in good.items()})

    return with_(report=report)


class Stuck(Regression):
    """Computes the loss and takes no step."""

    def epoch(self, optimizer: torch.optim.Optimizer, epoch: int) -> float:
        return self.scoring_loss(self.module, self.batches(epoch)[0]).item()


class ByHand(Regression):
    """Changes weights without an optimizer, at the end of an epoch."""

    def epoch(self, optimizer: torch.optim.Optimizer, epoch: int) -> float:
        loss = super().epoch(optimizer, epoch)
        for parameter in self.module.parameters():
            parameter.data.add_(0.01)
        return loss


class Replacing(Regression):
    def optimizer(self) -> torch.optim.Optimizer:
        self.module[0].weight = nn.Parameter(self.module[0].weight.detach().clone())
        return super().optimizer()


class Growing(Regression):
    def optimizer(self) -> torch.optim.Optimizer:
        if not hasattr(self.module, "extra"):
            self.module.register_buffer("extra", torch.zeros(1))
        return super().optimizer()


class Unchosen(Regression):
    """Returns the metrics of the best epoch, and leaves other weights."""

    def train(self, progress: Callable[[Progress], None]) -> Any:
        best = super().train(progress)
        for parameter in self.module.parameters():
            parameter.data.mul_(0.5)
        return best


class Remembering(Regression):
    """Uses one optimizer for all trainings, momentum and all."""

    kept: Any = None

    def optimizer(self) -> torch.optim.Optimizer:
        self.kept = self.kept or super().optimizer()
        return self.kept


class Unseeded(Regression):
    """Orders its batches as it likes."""

    def batches(self, epoch: int) -> list[torch.Tensor]:
        order = random.Random().sample(range(8), 8) if epoch else list(range(8))
        return list(self.splits["train"][order].split(4))


class Starting(Resuming):
    """Goes on with the weights of a checkpoint, but from the first epoch."""

    def after(self, step: int) -> int:
        return 1


class Untracked(Resuming):
    """Goes on with a fresh optimizer."""

    def train_round(self, current: Any, progress: Callable[[Progress], None]) -> Any:
        start = self.after(current.track(optimizer=self.optimizer()))
        return self.from_epoch(start, self.optimizer(), progress, lambda step: current.checkpoint(step=step))


class Forgetful(Resuming):
    """Fails when there is nothing left of the state it wants."""

    def train_round(self, current: Any, progress: Callable[[Progress], None]) -> Any:
        if current.track(optimizer=self.optimizer()):
            raise KeyError("epoch")
        return super().from_epoch(1, self.optimizer(), progress, lambda step: current.checkpoint(step=step))


class Silent(Resuming):
    """Reports nothing of a round."""

    def train_round(self, current: Any, progress: Callable[[Progress], None]) -> Any:
        return super().train_round(current, lambda _: None)


class Boasting(Regression):
    """Returns what depends on how often it was asked."""

    times = 0

    def train(self, progress: Callable[[Progress], None]) -> Any:
        self.times += 1
        return {**super().train(progress), "times": self.times}


class Moody(Regression):
    """Evaluates in whatever mode the module is."""

    def evaluate(self, split: str) -> Any:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            running = self.module[1].running_mean.clone(), self.module[1].running_var.clone()
            counted = self.module[1].num_batches_tracked.clone()
            loss = self.scoring_loss(self.module, self.splits[split]).item()
            for buffer, value in zip(self.module[1].buffers(), (*running, counted), strict=True):
                buffer.copy_(value)
        return {"loss": loss}


class Adapting(Regression):
    """Lets BatchNorm see what it evaluates."""

    def evaluate(self, split: str) -> Any:
        self.module[1].train()
        with torch.no_grad():
            self.module[1](self.module[0](self.splits[split]))
        return super().evaluate(split)


class Leaning(Regression):
    """Leaves the module in evaluation mode."""

    def evaluate(self, split: str) -> Any:
        metrics = super().evaluate(split)
        self.module.eval()
        return metrics


class Blind(Regression):
    """Has no test."""

    def evaluate(self, split: str) -> Any:
        return super().evaluate({"dev": "dev"}[split])


class Endless(Regression):
    def scoring_batches(self) -> Iterator[torch.Tensor]:
        self.module.zero_grad(set_to_none=True)
        self.module[0].weight.grad = torch.ones_like(self.module[0].weight)
        return iter(self.batches(0))


def detached(self: Regression, module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    loss = Regression.scoring_loss(self, module, batch)
    return loss if module.training else loss.detach()


def steep(self: Regression, module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    loss = Regression.scoring_loss(self, module, batch)
    return loss if module.training or not loss.requires_grad else (loss - loss.detach()).sqrt()


def vector(self: Regression, module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return (
        Regression.scoring_loss(self, module, batch)
        .reshape(1)
        .repeat(1 + (torch.is_grad_enabled() and not module.training))
    )


def needing_options(bundle: Any, corpus: Any, *, seed: int, options: Any) -> Regression:
    return Regression(bundle, corpus, seed=seed)


REPORTS = r"report a ticketkit.Progress after every epoch, from epoch 1 to epochs"
ROUND = r"train a round to the bits that train\(\) ends in, also when it was killed"
METRICS = r"return metrics: a mapping from names to finite Python numbers"
MUTANTS: dict[str, tuple[Any, str]] = {
    "an argument that nobody gives": (needing_options, r"raise nothing but a TicketkitError.*\n.*\n  came: TypeError"),
    "no metrics": (
        changed("train", lambda _: None),
        METRICS + r".*\n  where: train\(\), the first training\n  came: None",
    ),
    "a metric that is a tensor": (
        changed("train", lambda found: {"loss": torch.ones(())}),
        METRICS + r".*\n.*\n.*a Tensor",
    ),
    "a metric that is NaN": (
        changed("train", lambda found: {**found, "wer": float("nan")}),
        METRICS + r".*\n.*\n.*'wer': nan",
    ),
    "a truth as a metric": (
        changed("train", lambda found: {**found, "good": True}),
        METRICS + r".*\n.*\n.*True, a bool",
    ),
    "dev without metrics": (changed("evaluate", lambda found: {**found, "wer": None}), METRICS),
    "no reports": (with_(report=lambda self, *_: None), REPORTS + r".*\n.*\n  came: None"),
    "epochs from 0": (
        reported(epoch=lambda epoch: epoch - 1),
        REPORTS + r".*\n.*\n  came: epochs \[0, 1\] of \[2, 2\]",
    ),
    "more epochs than announced": (
        reported(epochs=lambda _: 1),
        REPORTS + r".*\n.*\n  came: epochs \[1, 2\] of \[1, 1\]",
    ),
    "a loss that is NaN": (
        reported(loss=lambda _: float("nan")),
        REPORTS + r".*\n.*\n  came: a loss of nan in epoch 1",
    ),
    "no training": (Stuck, r"change the weights of the module\n"),
    "weights changed by hand": (
        ByHand,
        r"in place, by a torch.optim.Optimizer alone.*\n.*\n.*pruned weights of .* came back",
    ),
    "new parameters": (
        Replacing,
        r"train the module's own parameters in place.*\n.*70%|.*parameter '0.weight' is another",
    ),
    "new state": (
        Growing,
        r"train the module's own parameters in place.*\n.*\n.*state_dict has other keys: extra came",
    ),
    "other steps than it says": (
        with_(steps_per_epoch=property(lambda self: 3)),
        r"how many optimizer steps it takes in an epoch.*\n.*\n  came: steps_per_epoch 3, and 4 steps in 2 epochs",
    ),
    "steps in floats": (
        with_(steps_per_epoch=property(lambda self: 2.0)),
        r"how many optimizer steps.*\n.*\n.*2.0, and 4",
    ),
    "BatchNorm that learns from dev": (Adapting, r"leave weights, buffers, gradients and modes.*\n.*\n.*running_mean"),
    "evaluation mode left": (
        Leaning,
        r"leave weights, buffers, gradients and modes.*\n  where: module.train\(True\)\n.*mode of",
    ),
    "metrics that go with the mode": (
        Moody,
        r"the same metrics, whatever mode the module is in|weights that dev chose",
    ),
    "no test": (Blind, r"raise nothing but a TicketkitError.*\n  where: evaluate\('test'\).*\n  came: KeyError"),
    "the best metrics, the last weights": (
        Unchosen,
        r"leave in the module the weights that dev chose.*\n.*\n  came: loss .* returned, but evaluate\('dev'\) gives",
    ),
    "names of its own": (
        changed("train", lambda found: {"best": found["loss"]}),
        r"by the names that evaluate\('dev'\) gives",
    ),
    "an optimizer that is kept": (Remembering, r"train to the same bits .*\n  where: the second training"),
    "batches without a seed": (Unseeded, r"train to the same bits from the same weights and seeds"),
    "a count of trainings": (
        Boasting,
        r"train to the same bits .*\n.*\n  came: other metrics: .*'times': 1.*'times': 2",
    ),
    "a round from its start again": (Starting, ROUND + r".*\n  where: a round that is killed at report 2"),
    "a round without its optimizer": (Untracked, ROUND),
    "a round without reports": (Silent, r"report as many epochs when it trains a round as in train\(\), which are 2"),
    "a round that cannot go on": (
        Forgetful,
        r"raise nothing but a TicketkitError.*\n.*goes on with another.*\n.*KeyError",
    ),
    "no batches to score with": (
        with_(scoring_batches=lambda self: []),
        r"scoring_batches that are the same.*\n.*\n.*0 batches",
    ),
    "other batches each time": (
        with_(scoring_batches=lambda self: list(self.splits["train"][torch.randperm(8)].split(4))),
        r"return scoring_batches that are the same at every call.*\n.*\n  came: 2 batches, then 2, with other content",
    ),
    "gradients touched": (Endless, r"make scoring_batches of the corpus alone\n.*\n.*the gradient of parameter"),
    "a loss without a graph": (
        with_(scoring_loss=detached),
        r"a finite scalar that depends on the weights\n.*\n.*ConfigError",
    ),
    "a loss for each": (with_(scoring_loss=vector), r"a finite scalar that depends on the weights\n.*\n.*shape \(2,\)"),
    "a slope without end": (
        with_(scoring_loss=steep),
        r"a finite scalar .*\n.*\n  came: gradients that are not finite",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_bad_trainer_is_refused(name: str) -> None:
    trainer, message = MUTANTS[name]
    with pytest.raises(ConformanceError, match=message):
        check_trainer(trainer, backbone=backbone, corpus=Squares)
