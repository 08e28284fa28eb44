"""Trains Whisper to write characters and lets dev choose the epoch."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW, Optimizer

from ticketkit import Progress, RunError
from ticketkit_whisper.bundle import WhisperBundle
from ticketkit_whisper.examples import Example, SpeechCorpus, batches, prepare
from ticketkit_whisper.options import Seq2SeqOptions
from ticketkit_whisper.text import error_rates


class Seq2SeqTrainer:
    """Trains the module of one bundle on one corpus; keeps nothing between trainings but the prepared examples.

    The order of batches depends on the seed and the epoch alone; dropout draws from torch's global generator.
    """

    def __init__(self, bundle: WhisperBundle, corpus: SpeechCorpus, *, seed: int, options: Seq2SeqOptions) -> None:
        self._bundle = bundle
        self._corpus = corpus
        self._seed = seed
        self._options = options
        self._prepared: dict[str, list[Example]] = {}

    def train(self, progress: Callable[[Progress], None]) -> Mapping[str, float]:
        """Train from the module's present weights; leave the best epoch's in it; return that epoch's dev metrics.

        Best is the lowest dev WER, then the lowest dev loss, then the earliest. Raises `RunError` naming epoch and
        batch when a loss or its gradient is not finite.
        """
        options, module = self._options, self._bundle.module
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = AdamW(trained, lr=options.lr, weight_decay=options.weight_decay)
        best: dict[str, float] = {}
        chosen: dict[str, Tensor] = {}
        for epoch in range(1, options.epochs + 1):
            loss = self._train_epoch(epoch, optimizer, trained)
            metrics = self.evaluate("dev")
            progress(Progress(epoch=epoch, epochs=options.epochs, loss=loss, metrics=metrics))
            if not best or _rank(metrics) < _rank(best):
                best = metrics
                chosen = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        module.load_state_dict(chosen)
        return best

    def evaluate(self, split: str) -> dict[str, float]:
        """Return `wer` and `cer` (fractions, greedy decoding) and `loss` (nats a label) of the present weights."""
        examples, size = self._examples(split), self._options.batch_size
        recognised: list[str] = []
        nats, labels = 0.0, 0
        with torch.no_grad(), _evaluating(self._bundle.module):
            for start in range(0, len(examples), size):
                batch = examples[start : start + size]
                features = self._features(batch)
                losses, counts = self._bundle.losses(self._bundle.module, features, [e.target for e in batch])
                nats, labels = nats + losses.sum().item(), labels + int(counts.sum())
                recognised += self._bundle.transcribe(features)
        return {**error_rates([example.text for example in examples], recognised), "loss": nats / labels}

    @property
    def steps_per_epoch(self) -> int:
        """The number of optimizer steps in one epoch."""
        return len(self._batches(epoch=1))

    def scoring_batches(self) -> list[list[Example]]:
        """Return the first training batches of an order of their own, the same at every call."""
        examples = self._examples("train")
        return [[examples[i] for i in indices] for indices in self._batches(epoch=0)[: self._options.scoring_batches]]

    def scoring_loss(self, module: nn.Module, batch: Sequence[Example]) -> Tensor:
        """Return the mean cross-entropy of a batch, in nats a label."""
        losses, counts = self._bundle.losses(module, self._features(batch), [example.target for example in batch])
        return losses.sum() / counts.sum()

    def _batches(self, epoch: int) -> list[list[int]]:
        size = self._options.batch_size
        return batches(len(self._examples("train")), batch_size=size, seed=self._seed, epoch=epoch)

    def _examples(self, split: str) -> list[Example]:
        """Return the examples of a split, prepared at the first call."""
        if split not in self._prepared:
            utterances = self._corpus.split(split)
            self._prepared[split] = prepare(utterances, self._bundle, sample_rate=self._corpus.sample_rate)
        return self._prepared[split]

    def _features(self, batch: Sequence[Example]) -> Tensor:
        """Return the features of a batch (batch, mels, frames) on the device of the module."""
        device = next(self._bundle.module.parameters()).device
        return torch.stack([example.features for example in batch]).to(device)

    def _train_epoch(self, epoch: int, optimizer: Optimizer, trained: Sequence[nn.Parameter]) -> float:
        """Take one step a batch over all training examples; return the mean loss of the batches."""
        examples, plan = self._examples("train"), self._batches(epoch)
        self._bundle.module.train()
        total = 0.0
        for number, indices in enumerate(plan, start=1):
            optimizer.zero_grad()
            loss = self.scoring_loss(self._bundle.module, [examples[i] for i in indices])
            _check_finite(loss, "loss", epoch, number, len(plan))
            loss.backward()  # type: ignore[no-untyped-call]
            norm = clip_grad_norm_(trained, self._options.grad_norm)
            _check_finite(norm, "gradient norm", epoch, number, len(plan))
            optimizer.step()
            total += loss.item()
        return total / len(plan)


def _rank(metrics: Mapping[str, float]) -> tuple[float, float]:
    return metrics["wer"], metrics["loss"]


def _check_finite(number: Tensor, name: str, epoch: int, batch: int, of: int) -> None:
    if not math.isfinite(number.item()):
        raise RunError(
            f"{name} is {number.item()} in epoch {epoch}, batch {batch} of {of}; try a lower lr or grad_norm"
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
