"""A complete third-party plugin in one file: a corpus, a backbone and a trainer that need a second, and a criterion."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

import ticketkit


class CorpusOptions(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    examples: int = 64


class BackboneOptions(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    hidden: int = 32


class TrainerOptions(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    epochs: int = 3
    diverge_in_round: int | None = None


class MajorityCorpus:
    """Which of two halves of a vector has the larger sum?"""

    def __init__(self, *, options: CorpusOptions) -> None:
        generator = torch.Generator().manual_seed(7)
        self.splits = {}
        for split in ("train", "dev", "test"):
            x = torch.randn(options.examples, 8, generator=generator)
            self.splits[split] = (x, (x[:, :4].sum(1) > x[:, 4:].sum(1)).long())

    def describe(self) -> Mapping[str, Any]:
        return {"name": "majority", "examples": len(self.splits["train"][0])}


@dataclass
class MlpBundle:
    module: nn.Module


def mlp(*, options: BackboneOptions) -> MlpBundle:
    """Return a small multi-layer perceptron."""
    return MlpBundle(
        nn.Sequential(nn.Linear(8, options.hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(options.hidden, 2))
    )


class Trainer:
    """Plain SGD over the whole split."""

    def __init__(self, bundle: MlpBundle, corpus: MajorityCorpus, *, seed: int, options: TrainerOptions) -> None:
        self.module, self.corpus, self.options, self.trainings = bundle.module, corpus, options, 0

    def train(self, progress: Callable[[ticketkit.Progress], None]) -> Mapping[str, float]:
        x, y = self.corpus.splits["train"]
        optimizer = torch.optim.Adam(self.module.parameters(), lr=0.02)
        for epoch in range(1, self.options.epochs + 1):
            self.module.train()
            for rows in torch.randperm(len(x)).split(16):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(self.module(x[rows]), y[rows])
                loss.backward()
                optimizer.step()
            progress(ticketkit.Progress(epoch, self.options.epochs, loss.item(), self.evaluate("dev")))
        if self.trainings == self.options.diverge_in_round:
            with torch.no_grad():
                next(self.module.parameters()).fill_(float("nan"))
        self.trainings += 1
        return self.evaluate("dev")

    def evaluate(self, split: str) -> Mapping[str, float]:
        return self.examine(split).metrics

    def examine(self, split: str) -> ticketkit.Examination:
        x, y = self.corpus.splits[split]
        self.module.eval()
        with torch.no_grad():
            errors = (self.module(x).argmax(1) != y).int().tolist()
        ids = tuple(f"{split}-{index}" for index in range(len(errors)))
        return ticketkit.Examination({"wer": sum(errors) / len(errors)}, ids, tuple(errors), (1,) * len(errors))

    @property
    def steps_per_epoch(self) -> int:
        return len(self.corpus.splits["train"][0].split(16))

    def scoring_batches(self) -> list[Any]:
        x, y = self.corpus.splits["train"]
        return list(zip(x.split(16), y.split(16), strict=True))

    def scoring_loss(self, module: nn.Module, batch: Any) -> ticketkit.Tensor:
        return nn.functional.cross_entropy(module(batch[0]), batch[1])


def signed(inputs: ticketkit.ScoreInputs) -> dict[str, ticketkit.Tensor]:
    """Return w itself: a criterion that keeps the largest positive weights."""
    return dict(inputs.weights)


@ticketkit.hookimpl
def ticketkit_register_corpora(register: Any) -> None:
    register("majority", MajorityCorpus, options=CorpusOptions)


@ticketkit.hookimpl
def ticketkit_register_backbones(register: Any) -> None:
    register("mlp", mlp, options=BackboneOptions)


@ticketkit.hookimpl
def ticketkit_register_trainers(register: Any) -> None:
    register("sgd", Trainer, options=TrainerOptions)


@ticketkit.hookimpl
def ticketkit_register_criteria(register: Any) -> None:
    register("signed", signed)
