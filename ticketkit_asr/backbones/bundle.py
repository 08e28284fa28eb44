"""A recogniser with all that belongs to it: network, features, alphabet, and what it learns and writes by."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from ticketkit import HiddenUnits
from ticketkit_asr.backbones.units import hidden_units
from ticketkit_asr.corpora.corpus import SpeechCorpus
from ticketkit_asr.features.extraction import FeatureExtractor, FeatureStatistics
from ticketkit_asr.features.hearing import Hearing, collate
from ticketkit_asr.objectives.ctc import CtcNetwork
from ticketkit_asr.objectives.objective import Emission, Objective
from ticketkit_asr.text.alphabet import Alphabet

MEAN, DEVIATION = "feature_mean", "feature_deviation"
"""Buffers of a network that hears features centred over the corpus: they are part of it, and travel with it."""


@dataclass(frozen=True, eq=False)
class SpeechBundle:
    """A network, what turns audio into its input, the labels it writes, and what it learns."""

    module: Any
    """An `nn.Module` with `output_lengths(frames)`."""
    untrained_extractor: FeatureExtractor
    alphabet: Alphabet
    objective: Objective

    @classmethod
    def of(cls, module: nn.Module, extractor: FeatureExtractor, alphabet: Alphabet, objective: Objective) -> Self:
        """Return the bundle of a network, which gets room for the corpus' statistics where its features need them."""
        if not extractor.is_fitted:
            module.register_buffer(MEAN, torch.zeros(extractor.bins))
            module.register_buffer(DEVIATION, torch.ones(extractor.bins))
        return cls(module, extractor, alphabet, objective)

    @property
    def extractor(self) -> FeatureExtractor:
        """What makes features, with the statistics that the network has learnt of its corpus, if it needs any."""
        if self.untrained_extractor.is_fitted:
            return self.untrained_extractor
        mean, deviation = (tuple(getattr(self.module, name).tolist()) for name in (MEAN, DEVIATION))
        return replace(self.untrained_extractor, statistics=FeatureStatistics(mean, deviation))

    def learn_statistics(self, statistics: FeatureStatistics) -> None:
        """Let the network keep the statistics of its train split."""
        for name, values in ((MEAN, statistics.mean), (DEVIATION, statistics.deviation)):
            getattr(self.module, name).copy_(torch.tensor(values))

    @property
    def sample_rate(self) -> int:
        """The rate of the audio that `features` takes, in Hz."""
        return self.untrained_extractor.sample_rate

    def features(self, waveform: Tensor) -> Tensor:
        """Return the features (frames, bins) of a waveform (samples,) at `sample_rate`."""
        return self.extractor(waveform)

    def frames(self, samples: int) -> int:
        """Return the number of output frames for an utterance of `samples` samples at `sample_rate`."""
        return self.output_frames(self.untrained_extractor.frames(samples))

    def output_frames(self, frames: int) -> int:
        """Return the number of output frames for an utterance of `frames` feature frames."""
        return int(self.module.output_lengths(torch.tensor(frames)))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Run the network as it is used: in evaluation mode, without gradients; its modes come back afterwards."""
        modes = {module: module.training for module in self.module.modules()}
        self.module.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for module, mode in modes.items():
                module.training = mode

    def example(self, seconds: float, batch: int) -> tuple[Tensor, ...]:
        """Return inputs of the module, always the same: noise of so many seconds, three labels in each.

        `features` (batch, frames, bins) and `lengths` (batch,), the last utterance of several a tenth shorter; of a
        transducer also targets and their lengths.
        """
        random = torch.Generator().manual_seed(0)
        device = next(self.module.parameters()).device
        extractor = self.untrained_extractor
        frames = extractor.frames(round(seconds * extractor.sample_rate))
        features = torch.randn(batch, frames, extractor.bins, generator=random)
        lengths = torch.tensor([frames] * (batch - 1) + [frames if batch == 1 else frames - frames // 10])
        labels = torch.randint(1, self.alphabet.size, (batch, max(1, round(3 * seconds))), generator=random)
        return self.objective.inputs(features.to(device), lengths.to(device), list(labels.to(device)))

    def corpus_example(self, corpus: SpeechCorpus, batch: int) -> tuple[tuple[Tensor, ...], float]:
        """Return inputs of the module, always the same, and how many seconds of sound are in them.

        They are utterances of the test split, evenly from the shortest to the longest: of one, the median.
        """
        split = corpus.split("test")
        order = sorted(range(len(split)), key=lambda i: (split[i].audio.samples, i))
        chosen = [split[order[(2 * place + 1) * len(order) // (2 * batch)]] for place in range(batch)]
        hearing = Hearing(self.extractor, corpus.sample_rate, seed=0)
        features, lengths = collate([hearing.features(utterance, None) for utterance in chosen])
        targets = [torch.tensor(self.alphabet.encode(utterance.text), dtype=torch.int64) for utterance in chosen]
        seconds = sum(utterance.audio.samples for utterance in chosen) / corpus.sample_rate
        return self.objective.inputs(features, lengths, targets), seconds

    def stepping(self) -> tuple[Callable[[], None], float] | str:
        """Return what hears a stream's next output frame, and the seconds of one; or why the network has no stream.

        What is heard is noise, a batch of one.
        """
        from ticketkit_asr.decoding.streaming import stream_of, stride_of

        stream = stream_of(self.module)
        if isinstance(stream, str):
            return stream
        stride, extractor = stride_of(self.module), self.untrained_extractor
        frames = torch.randn(stride, 1, extractor.bins, generator=torch.Generator().manual_seed(0)).unbind(0)

        def step() -> None:
            for frame in frames:
                stream.push(frame)

        return step, stride * extractor.options.hop(extractor.sample_rate) / extractor.sample_rate

    def hidden_units(self) -> Iterable[HiddenUnits]:
        """Return the units between layers of the network's own modules, which exports remove where they are idle."""
        return hidden_units(self.module)

    def graph_obstacle(self) -> str:
        """Return why the network is no single graph from features to what it writes; "" if it is one."""
        if isinstance(self.module, CtcNetwork):
            return ""
        return (
            "a transducer reads every label that it writes, one call after the other; choose the backbone cnn_lstm, "
            "conformer or transformer, or another exporter"
        )

    def text(self, emissions: Sequence[Emission]) -> str:
        """Return the text of what was written."""
        return self.alphabet.decode(emission.label for emission in emissions)
