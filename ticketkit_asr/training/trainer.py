"""Trains a recogniser and lets dev choose the epoch: for any bundle, on one process or several."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from itertools import islice

import torch
from torch import Tensor, nn

from ticketkit import Examination, Progress, Round
from ticketkit_asr.backbones.bundle import SpeechBundle
from ticketkit_asr.corpora.corpus import SpeechCorpus
from ticketkit_asr.decoding.scoring import error_rates, score
from ticketkit_asr.errors import TrainingError
from ticketkit_asr.features.hearing import collate
from ticketkit_asr.training.batching import evaluation_batches, steps, training_batches
from ticketkit_asr.training.examples import Example, Examples, Fault, learn_statistics, open_examples
from ticketkit_asr.training.loading import Key, Loader, Waiting
from ticketkit_asr.training.options import TrainerOptions
from ticketkit_asr.training.precision import computing_in
from ticketkit_asr.training.ranks import counts, share
from ticketkit_asr.training.training import Training, device_of

_log = logging.getLogger(__name__)

_MUCH_WAITING = 10
"""Per cent of an epoch that may go into waiting for data before a hint is given."""


class SpeechTrainer:
    """Trains the module of one bundle on one corpus; keeps nothing between trainings but the prepared examples.

    The order of batches and all augmentation depend on the seed, the epoch and the utterance alone; dropout draws from
    torch's global generator.
    """

    def __init__(self, bundle: SpeechBundle, corpus: SpeechCorpus, *, seed: int, options: TrainerOptions) -> None:
        self._bundle = bundle
        self._corpus = corpus
        self._seed = seed
        self._options = options
        self._splits: dict[str, Examples] = {}
        self._advised = False
        if options.device is not None:
            bundle.module.to(options.device)
        learn_statistics(corpus, bundle, seed=seed)

    def train(self, progress: Callable[[Progress], None]) -> Mapping[str, float]:
        """Train from the module's present weights; leave the best epoch's in it; return that epoch's dev metrics.

        Best is the lowest dev WER, then the lowest dev loss, then the earliest. Parameters keep their identity, buffers
        go with the weights. Raises `TrainingError` naming epoch and step when losses or gradients are not finite, more
        often than `nonfinite` allows.
        """
        return self._train(Training(self._bundle.module, self._options, None), progress)

    def train_round(self, current: Round, progress: Callable[[Progress], None]) -> Mapping[str, float]:
        """Train as `train` does, saving the middle of the round, and going on there after an interruption."""
        return self._train(Training(self._bundle.module, self._options, current), progress)

    def evaluate(self, split: str) -> Mapping[str, float]:
        """Return `wer` and `cer` (fractions, greedy decoding) and `loss` (nats an utterance) of the present weights."""
        return self.examine(split).metrics

    def examine(self, split: str) -> Examination:
        """Return the metrics of `evaluate`, and of each utterance how many word edits there are against how many words.

        The utterances are in their order in the corpus.
        """
        bundle, examples = self._bundle, self._examples(split)
        losses = torch.zeros(len(examples))
        recognised = [""] * len(examples)
        size, most = self._options.batch_size, self._most_frames
        plan = evaluation_batches(examples.frames, batch_size=size, most_frames=most)
        loaded = Loader(examples, workers=0).batches([(i, None) for i in indices] for indices in plan)
        with bundle.evaluating(), self._autocast():
            for indices, batch in zip(plan, loaded, strict=True):
                usable = _usable(batch)
                features, lengths = self._collated(usable)
                targets = [example.target for example in usable]
                loss, written = bundle.objective.evaluated(bundle.module, features, lengths, targets)
                losses[indices] = loss.float().cpu()
                for index, emissions in zip(indices, written, strict=True):
                    recognised[index] = bundle.text(emissions)
        ids, texts = zip(*((utterance.id, utterance.text) for utterance in examples.utterances), strict=True)
        scored = score(ids, texts, recognised)
        return Examination(
            metrics={**error_rates(scored), "loss": losses.mean().item()},
            ids=ids,
            errors=tuple(one.word_edits for one in scored),
            units=tuple(one.words for one in scored),
        )

    @property
    def steps_per_epoch(self) -> int:
        """The number of optimizer steps in the first epoch; where `batch_seconds` cuts batches others may differ."""
        return len(self._steps(epoch=1))

    def scoring_batches(self) -> list[list[Example]]:
        """Return the first training batches of an order of their own, the same at every call; not augmented."""
        examples = self._examples("train")
        plan = self._batches(epoch=0)[: self._options.scoring_batches]
        return [_usable([examples[i, None] for i in indices]) for indices in plan]

    def scoring_loss(self, module: nn.Module, batch: Sequence[Example]) -> Tensor:
        """Return the mean loss of a batch, in nats an utterance."""
        return self._losses(batch, module).mean()

    def _train(self, training: Training, progress: Callable[[Progress], None]) -> Mapping[str, float]:
        state, epochs, taken = training.state, self._options.epochs, 0
        loaded = Waiting(self._loader.batches(self._keys(training.start)))
        for epoch in range(1, epochs + 1):
            plan = self._steps(epoch)
            done, taken = taken, taken + len(plan)
            if taken <= training.start:
                continue
            if training.is_over:
                break
            self._train_epoch(epoch, plan, done, training, loaded)
            loss, metrics = state.end_epoch(), self.evaluate("dev")
            state.consider(metrics, self._bundle.module)
            progress(Progress(epoch=epoch, epochs=epochs, loss=loss, metrics=metrics))
            if epoch < epochs:
                training.save(taken)
        self._bundle.module.load_state_dict(state.weights)
        return state.metrics

    def _train_epoch(
        self, epoch: int, plan: Sequence[Sequence[list[int]]], done: int, training: Training, loaded: Waiting
    ) -> None:
        """Take the steps of an epoch that are left; `done` lie before it."""
        left = range(max(training.start - done, 0), len(plan))
        every = self._options.checkpoint_steps
        loaded.begin()
        self._bundle.module.train()
        for number in left:
            taken, step = done + number, plan[number]
            training.step(
                [partial(self._next_losses, loaded, batch) for batch in step],
                sum(map(len, step)),
                taken=taken,
                epoch=epoch,
                where=f"epoch {epoch}, step {number + 1} of {len(plan)}",
            )
            if every and (taken + 1) % every == 0 and number + 1 < len(plan):
                training.save(taken + 1)
        self._report(epoch, loaded)

    def _report(self, epoch: int, loaded: Waiting) -> None:
        """Log how long the epoch waited for data, and once in a trainer's life how to wait less."""
        percent = 100 * loaded.share
        _log.info("epoch %d: %.1f %% of the time went into waiting for data", epoch, percent)
        if percent > _MUCH_WAITING and not self._advised:
            self._advised = True
            _log.warning(
                "epoch %d: %.0f %% of the time went into waiting for data; trainer.workers is %d, one more would load "
                "ahead if a core is free",
                epoch,
                percent,
                self._options.workers,
            )

    def _next_losses(self, loaded: Waiting, batch: Sequence[int], network: nn.Module) -> Tensor:
        """Return the losses of this rank's share of the batch that is loaded next."""
        losses = self._losses(self._kept(next(loaded)), network)
        return losses if counts(batch) else 0 * losses

    def _losses(self, batch: Sequence[Example], network: nn.Module) -> Tensor:
        """Return the loss of each utterance, on the device of the network."""
        features, lengths = self._collated(batch)
        targets = [example.target for example in batch]
        with self._autocast():
            return self._bundle.objective.losses(network, features, lengths, targets)

    def _collated(self, batch: Sequence[Example]) -> tuple[Tensor, Tensor]:
        device = device_of(self._bundle.module)
        features, lengths = collate([example.features for example in batch])
        return features.to(device), lengths.to(device)

    def _kept(self, batch: Sequence[Example | Fault]) -> list[Example]:
        """Return the usable examples of a training batch; raise, or log and go on, as the options say."""
        if self._options.on_bad_utterance == "fail":
            return _usable(batch)
        usable = [item for item in batch if isinstance(item, Example)]
        faults = [item for item in batch if isinstance(item, Fault)]
        for fault in faults:
            _log.warning("training goes on without %s: %s", fault.id, fault.reason)
        return usable or _usable(batch)

    def _autocast(self) -> AbstractContextManager[None]:
        return computing_in(self._options.precision, device_of(self._bundle.module).type)

    @property
    def _most_frames(self) -> int | None:
        seconds, extractor = self._options.batch_seconds, self._bundle.untrained_extractor
        return None if seconds is None else extractor.frames(round(seconds * extractor.sample_rate))

    def _keys(self, start: int) -> Iterator[list[Key]]:
        """Yield what this rank loads: its share of each batch of all epochs, from optimizer step `start` on."""
        planned = ((epoch, step) for epoch in range(1, self._options.epochs + 1) for step in self._steps(epoch))
        for epoch, step in islice(planned, start, None):
            for batch in step:
                yield [(i, epoch) for i in share(batch)]

    def _batches(self, epoch: int) -> list[list[int]]:
        frames, size = self._examples("train").frames, self._options.batch_size
        return training_batches(frames, batch_size=size, seed=self._seed, epoch=epoch, most_frames=self._most_frames)

    def _steps(self, epoch: int) -> list[list[list[int]]]:
        """Return the batches of each optimizer step of an epoch."""
        return steps(self._batches(epoch), accumulate=self._options.accumulate)

    @cached_property
    def _loader(self) -> Loader:
        """What loads training batches, for one training after another."""
        return Loader(self._examples("train"), workers=self._options.workers)

    def _examples(self, split: str) -> Examples:
        """Return the examples of a split, prepared at the first call."""
        if split not in self._splits:
            self._splits[split], _ = open_examples(self._corpus, split, self._bundle, self._options, seed=self._seed)
        return self._splits[split]


def _usable(batch: Sequence[Example | Fault]) -> list[Example]:
    """Return the examples; raise `TrainingError` if there are faults among them."""
    if faults := [item for item in batch if isinstance(item, Fault)]:
        raise TrainingError(f"{faults[0].id} cannot be used: {faults[0].reason} (on_bad_utterance: skip goes on)")
    return [item for item in batch if isinstance(item, Example)]
