"""Trains a recogniser with CTC and lets dev choose the epoch."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW, Optimizer

from ticketkit import Progress
from ticketkit_asr.augment import spec_augment
from ticketkit_asr.backbones.bundle import CtcBundle
from ticketkit_asr.batching import evaluation_batches, training_batches
from ticketkit_asr.corpora.corpus import SpeechCorpus
from ticketkit_asr.errors import TrainingError
from ticketkit_asr.metrics import error_rates
from ticketkit_asr.prepare import Example, collate, prepare
from ticketkit_asr.trainer_options import CtcOptions


class CtcTrainer:
    """Trains the module of one bundle on one corpus; keeps nothing between trainings but the prepared examples.

    The order of batches depends on the seed and the epoch alone; SpecAugment draws from torch's global generator.
    """

    def __init__(self, bundle: CtcBundle, corpus: SpeechCorpus, *, seed: int, options: CtcOptions) -> None:
        self._bundle = bundle
        self._corpus = corpus
        self._seed = seed
        self._options = options
        self._prepared: dict[str, list[Example]] = {}

    def train(self, progress: Callable[[Progress], None]) -> Mapping[str, float]:
        """Train from the module's present weights; leave the best epoch's in it; return that epoch's dev metrics.

        Best is the lowest dev WER, then the lowest dev loss, then the earliest. Parameters keep their identity, buffers
        go with the weights. Raises `TrainingError` naming epoch and batch when a loss or its gradient is not finite.
        """
        options, module = self._options, self._bundle.module
        optimizer = AdamW(module.parameters(), lr=options.lr, weight_decay=options.weight_decay)
        best: dict[str, float] = {}
        chosen: dict[str, Tensor] = {}
        for epoch in range(1, options.epochs + 1):
            _set_learning_rate(optimizer, options.lr / options.lr_anneal ** (epoch - 1))
            loss = self._train_epoch(epoch, optimizer)
            metrics = self.evaluate("dev")
            progress(Progress(epoch=epoch, epochs=options.epochs, loss=loss, metrics=metrics))
            if not best or _rank(metrics) < _rank(best):
                best = metrics
                chosen = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        module.load_state_dict(chosen)
        return best

    def evaluate(self, split: str) -> dict[str, float]:
        """Return `wer` and `cer` (fractions, greedy decoding) and `loss` (nats an utterance) of the present weights."""
        examples = self._examples(split)
        losses = torch.zeros(len(examples))
        recognised = [""] * len(examples)
        batches = evaluation_batches([len(e.features) for e in examples], batch_size=self._options.batch_size)
        with torch.no_grad(), _evaluating(self._bundle.module):
            for indices in batches:
                scores, lengths, loss = self._forward([examples[i] for i in indices])
                losses[indices] = loss.cpu()
                for index, text in zip(indices, self._bundle.decode(scores, lengths), strict=True):
                    recognised[index] = text
        return {**error_rates([e.text for e in examples], recognised), "loss": losses.mean().item()}

    @property
    def steps_per_epoch(self) -> int:
        """The number of optimizer steps in one epoch."""
        return len(self._batches(epoch=1))

    def scoring_batches(self) -> list[list[Example]]:
        """Return the first training batches of an order of their own, the same at every call; not augmented."""
        examples = self._examples("train")
        return [[examples[i] for i in indices] for indices in self._batches(epoch=0)[: self._options.scoring_batches]]

    def scoring_loss(self, module: nn.Module, batch: Sequence[Example]) -> Tensor:
        """Return the mean CTC loss of a batch, in nats an utterance."""
        return self._forward(batch)[2].mean()

    def _batches(self, epoch: int) -> list[list[int]]:
        lengths = [len(example.features) for example in self._examples("train")]
        return training_batches(lengths, batch_size=self._options.batch_size, seed=self._seed, epoch=epoch)

    def _examples(self, split: str) -> list[Example]:
        """Return the examples of a split, prepared at the first call."""
        if split not in self._prepared:
            utterances = self._corpus.split(split)
            self._prepared[split] = prepare(utterances, self._bundle, sample_rate=self._corpus.sample_rate)
        return self._prepared[split]

    def _train_epoch(self, epoch: int, optimizer: Optimizer) -> float:
        """Take one step a batch over all training examples; return the mean loss of an utterance."""
        examples, options = self._examples("train"), self._options
        batches = self._batches(epoch)
        self._bundle.module.train()
        total = 0.0
        for number, indices in enumerate(batches, start=1):
            optimizer.zero_grad()
            loss = self._forward([self._augmented(examples[i]) for i in indices])[2].mean()
            _check_finite(loss, "loss", epoch, number, len(batches))
            loss.backward()  # type: ignore[no-untyped-call]
            norm = clip_grad_norm_(self._bundle.module.parameters(), options.grad_norm)
            _check_finite(norm, "gradient norm", epoch, number, len(batches))
            optimizer.step()
            total += loss.item() * len(indices)
        return total / len(examples)

    def _augmented(self, example: Example) -> Example:
        augment = self._options.augment
        return example if augment is None else replace(example, features=spec_augment(example.features, augment))

    def _forward(self, batch: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores, output lengths and the loss of each utterance, on the device of the module."""
        device = next(self._bundle.module.parameters()).device
        features, lengths = collate([example.features for example in batch])
        scores, lengths = self._bundle.module(features.to(device), lengths.to(device))
        return scores, lengths, self._bundle.loss(scores, lengths, [example.target for example in batch])


def _rank(metrics: Mapping[str, float]) -> tuple[float, float]:
    return metrics["wer"], metrics["loss"]


def _set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def _check_finite(number: Tensor, name: str, epoch: int, batch: int, batches: int) -> None:
    if not math.isfinite(number.item()):
        raise TrainingError(
            f"{name} is {number.item()} in epoch {epoch}, batch {batch} of {batches}; try a lower lr or grad_norm"
        )


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put the module in evaluation mode, and back into its own afterwards."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
